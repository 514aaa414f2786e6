"""Schemathesis over the whole OpenAPI document of the real server: whatever it says, holds.

Every operation is called with its examples, at the borders of each bound, with data that the
document allows and with data that it forbids. What comes back must never be a server's error, and
always be what the document says: status, content type, headers, schema.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import schemathesis
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import events, from_schema
from schemathesis.hooks import unregister

from gp4u.api.docs import OPENAPI_PATH
from tests.contract.api_server import api_server

CASES: Final = 2000
_MORE_RULES: Final = ["402", "413", "422"]
"""Rules that a schema cannot tell: names that must exist, cursors that must be ours, budgets."""
_EVENTS, _EXEC = "/api/v1/events", "/api/v1/rentals/{word}/exec"
CONFIG: Final[dict[str, Any]] = {
    "continue-on-failure": True,
    "request-timeout": 20,
    "max-stream-events": 2,
    "generation": {"max-examples": 25, "database": "none", "no-shrink": True},
    "phases": {"stateful": {"enabled": False}},
    "suppress-health-check": ["filter_too_much"],  # an offer's id has a slash in it
    "checks": {
        "positive_data_acceptance": {
            "expected-statuses": ["2xx", "3xx", "401", "403", "404", "409", "5xx", *_MORE_RULES]
        },
        "negative_data_rejection": {"expected-statuses": ["4xx"]},
    },
    "operations": [
        # It never ends, and mostly has nothing to tell.
        {"include-path": _EVENTS, "request-timeout": 0.3},
        # A command may be given less time than it takes (503), and a market may decline (502).
        {
            "include-path": _EXEC,
            "checks": {
                "not_a_server_error": {
                    "expected-statuses": ["2xx", "3xx", "4xx", "502", "503", "504"]
                },
            },
        },
    ],
}


@pytest.fixture
def bounded_logs() -> Iterator[None]:
    """Ask for logs as they are: following them would take as long as the machine is rented."""

    def before_call(context: object, case: schemathesis.Case[Any], **_: object) -> None:
        if "follow" in (case.query or {}):
            case.query = {**case.query, "follow": "false"}

    schemathesis.hook(before_call)
    yield
    unregister(before_call)


@pytest.mark.timeout(300)
def test_every_operation_does_what_its_schema_says(tmp_path: Path, bounded_logs: None) -> None:
    """People write clients from the document; what it leaves out breaks them."""
    seed = random.getrandbits(32)
    print(f"seed {seed}")
    cases: Counter[str] = Counter()
    statuses: Counter[int] = Counter()
    broken: dict[tuple[str, str], str] = {}
    with api_server(tmp_path) as url:
        config = SchemathesisConfig.from_dict({"seed": seed, **CONFIG})
        schema = schemathesis.openapi.from_url(url + OPENAPI_PATH, config=config)
        for event in from_schema(schema).execute():
            match event:
                case events.ScenarioFinished(recorder=recorder, label=label):
                    assert label is not None
                    for call in recorder.interactions.values():
                        cases[label] += 1
                        statuses[call.response.status_code if call.response else 0] += 1
                    for check in (each for some in recorder.checks.values() for each in some):
                        if check.failure_info is not None:
                            told = f"{check.failure_info.failure}\n{check.failure_info.code_sample}"
                            broken.setdefault((label, check.name), told)
                case events.NonFatalError():
                    broken.setdefault((event.label, "error"), repr(event.value))
                case events.FatalError():
                    raise event.exception
                case _:
                    pass
    operations = {
        f"{method.upper()} {path}"
        for path, methods in schema.raw_schema["paths"].items()
        for method in methods
    }
    told = "\n\n".join(f"{label}: {name}: {text}" for (label, name), text in broken.items())
    assert not broken, f"seed {seed}\n{told}"
    assert set(cases) == operations
    assert sum(cases.values()) >= CASES, cases
    assert {200, 201, 404, 405, 415, 422} <= set(statuses), statuses
