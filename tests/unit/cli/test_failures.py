"""What a failure becomes: a code for the script, a hint for the person, no secret for anybody."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any

import pytest

from gp4u import errors
from gp4u.cli.failures import Code, Leave, code_of, explain, hints_of
from gp4u.cli.run import run
from gp4u.cli.screen import Form, Screen
from gp4u.errors import Gp4uError
from gp4u.model import RentalKey
from tests.unit.cli.paper import Paper

KEY = RentalKey("gp4u-abcdef-abcdefghij-abcdefghij")

FAILURES: list[tuple[Gp4uError, Code]] = [
    (errors.BadInput("--port", 0, "must be above 0"), Code.USAGE),
    (errors.UnknownGpu("--gpu", "x", ("RTX 3090",)), Code.USAGE),
    (errors.Denied("vastai", "offers", "auth_error"), Code.NOT_ALLOWED),
    (errors.Refused("vastai", "rent", code="insufficient_credit"), Code.NOT_ALLOWED),
    (errors.Refused("vastai", "release", code="other_account"), Code.NOT_ALLOWED),
    (errors.Refused("vastai", "rent", code="invalid_args"), Code.FAILED),
    (errors.Unavailable("vastai", "offers", "HTTP 502"), Code.UNAVAILABLE),
    (errors.Throttled("vastai", "offers", retry_after_s=3), Code.UNAVAILABLE),
    (errors.CircuitBreakerOpen("vastai", "offers", retry_in_s=30), Code.UNAVAILABLE),
    (errors.RateLimitExceeded("vastai", "offers", retry_in_s=30), Code.UNAVAILABLE),
    (errors.OwnerHasRental("cli:june", KEY), Code.CONFLICT),
    (errors.LedgerLocked("/x/ledger.db", "process 7"), Code.HELD),
    (errors.LedgerUnusable("the ledger is corrupt"), Code.FAILED),
    (errors.OutcomeUnknown("vastai", "rent", "lost", key=KEY), Code.UNKNOWN),
    (errors.Malformed("vastai", "offers", "no JSON"), Code.FAILED),
]


@pytest.mark.parametrize(("error", "code"), FAILURES, ids=lambda v: type(v).__name__)
def test_each_failure_has_its_code(error: Gp4uError, code: Code) -> None:
    """Scripts act on these: try again, ask a person, or look before anything else."""
    assert code_of(error) is code


@pytest.mark.parametrize(("error", "code"), FAILURES, ids=lambda v: type(v).__name__)
def test_what_is_said_fits_eighty_columns(
    monkeypatch: pytest.MonkeyPatch, error: Gp4uError, code: Code
) -> None:
    """A hint that wraps in mid-command cannot be copied."""
    monkeypatch.setenv("COLUMNS", "80")
    paper = Paper()
    explain(Screen(err=paper, out=Paper()), error)
    assert paper.plain.startswith("gp4u: ")
    assert max(map(len, paper.plain.splitlines())) <= 80
    for what, does in hints_of(error):
        assert f"  {what}" in paper.plain, code
        assert does in paper.plain


def test_a_secret_in_an_error_is_not_repeated() -> None:
    """A market may echo the key that it refuses."""
    paper = Paper(tty=False)
    error = errors.Denied("vastai", "offers", "no such key: canary-0123456789\x1b[2J")
    explain(Screen(err=paper), error, ["canary-0123456789"])
    assert "canary" not in paper.getvalue()
    assert "\x1b" not in paper.getvalue()


def ended(job: Coroutine[Any, Any, None]) -> tuple[int, str]:
    """Run a command; return its code and what it said on stderr."""
    paper = Paper(tty=False)
    with pytest.raises(SystemExit) as leaving:
        run(job, Screen(Form.TABLE, out=Paper(tty=False), err=paper))
    code = leaving.value.code
    assert isinstance(code, int)
    return code, paper.getvalue()


def test_a_failure_inside_a_task_group_is_still_that_failure() -> None:
    """`serve` runs its parts in a group; a taken port must not end as a traceback."""

    async def part() -> None:
        raise errors.BadInput("--port", 80, "cannot listen")

    async def job() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(part())

    code, said = ended(job())
    assert (code, "--port" in said) == (Code.USAGE, True)


def test_a_bug_is_not_dressed_up_as_a_failure() -> None:
    """Its traceback is what gets it mended."""

    async def job() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(job(), Screen(out=Paper(), err=Paper()))


def test_leaving_and_being_told_to_leave_have_their_codes() -> None:
    """130 and 143 tell a supervisor who ended it."""

    async def leaves() -> None:
        raise Leave(Code.CONFLICT)

    async def signalled(number: signal.Signals) -> None:
        signal.raise_signal(number)
        await asyncio.get_running_loop().create_future()

    assert ended(leaves())[0] == Code.CONFLICT
    assert ended(signalled(signal.SIGTERM))[0] == Code.TERMINATED
    assert ended(signalled(signal.SIGINT))[0] == Code.INTERRUPTED
