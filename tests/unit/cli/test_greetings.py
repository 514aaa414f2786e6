"""What a start says: how many markets answered, and why each other one did not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import cast

import httpx2
import pytest

from gp4u.app import greetings, open_app
from gp4u.cli.markets import show_greetings
from gp4u.cli.screen import Screen
from gp4u.cli.terminal import Colour
from gp4u.errors import Malformed, ProviderError, Unavailable
from gp4u.providers.contract import Provider
from gp4u.providers.plugins import Plugins
from gp4u.providers.registry import Registry
from tests.unit.cli.paper import Paper
from tests.unit.providers.scripted import Script
from tests.virtual_loop import VirtualClock


def said(
    outcomes: Mapping[str, ProviderError | None],
    closed: Mapping[str, str] | None = None,
    *,
    tty: bool = False,
) -> list[str]:
    """Return the lines that a start prints."""
    paper = Paper(tty=tty)
    show_greetings(Screen(colour=Colour.NEVER, out=Paper(), err=paper), outcomes, closed or {})
    return paper.plain.replace("\r", "").splitlines()


async def start(folder: Path, reply: object) -> Mapping[str, ProviderError | None]:
    """Return the outcomes of a start at which Vast.ai answers like this."""
    registry = Registry(Plugins((), {}))
    environ = {
        "VASTAI_API_KEY": "key-of-vastai",
        "PROVIDER_MAX_RETRIES": "1",
        "GP4U_DATABASE_URL": f"sqlite:///{folder}/ledger.db",
    }
    settings = registry.load_settings(environ, folder)
    async with open_app(
        settings,
        clock=VirtualClock(),
        random=Random(1),
        transport=Script(reply),
        registry=registry,
    ) as app:
        return await greetings(app.providers)


@pytest.mark.parametrize(
    ("status", "line", "step"),
    [
        (401, "401 Unauthorized", "VASTAI_API_KEY"),
        (403, "403 Forbidden", "a new key"),
        (429, "429 Too Many Requests", "VASTAI_RATE_LIMIT"),
        (503, "503 Service Unavailable", "wait"),
    ],
)
async def test_a_failure_is_told_by_its_status_with_the_next_step(
    status: int, line: str, step: str, tmp_path: Path
) -> None:
    """The first seed tells people to look for these very lines, and what to do on each."""
    lines = said(await start(tmp_path, httpx2.Response(status, json={"msg": "no \x1b[2J"})))
    assert lines[0] == f"Provider vastai initialization failed: {line}"
    assert any(each.strip().startswith(step) for each in lines[1:-1])
    assert lines[-1] == "Initialized 0 GPU providers"
    assert "\x1b" not in "".join(lines)


async def test_a_refused_key_is_told_as_such_whatever_status_the_market_uses(
    tmp_path: Path,
) -> None:
    """Vast.ai answers 404 to a wrong key; `404 Not Found` would send people looking elsewhere."""
    reply = httpx2.Response(404, json={"error": "auth_error", "msg": "Invalid user key"})
    lines = said(await start(tmp_path, reply))
    assert lines[0] == "Provider vastai initialization failed: 401 Unauthorized"
    assert lines[1] == "  its reply: HTTP 404: auth_error Invalid user key"


@pytest.mark.parametrize(
    ("cause", "words"),
    [
        (ConnectionRefusedError(111, "x"), "connection refused"),
        (OSError("the cable is out"), "OSError: the cable is out"),
    ],
)
async def test_a_failure_without_a_reply_is_told_in_words(
    cause: Exception, words: str, tmp_path: Path
) -> None:
    """There is no status to tell; a class name of some library would help nobody."""
    try:
        raise Unavailable("vastai", "ping", f"{type(cause).__name__}: {cause}") from cause
    except Unavailable as error:
        lines = said({"vastai": error})
    assert lines[0] == f"Provider vastai initialization failed: {words}"


async def test_a_success_with_a_bad_body_is_not_told_as_a_success(tmp_path: Path) -> None:
    """`failed: 200 OK` would be the one line that helps nobody."""
    lines = said(await start(tmp_path, httpx2.Response(200, text="<html>")))
    assert lines[0].startswith("Provider vastai initialization failed: ")
    assert "200" not in lines[0]
    error = Malformed("vastai", "ping", "odd")
    error.status = 799
    assert said({"vastai": error})[0].endswith("failed: 799 of the market's own")


def test_a_provider_counts_once_it_has_answered() -> None:
    """The number is what people look at first: it must not count hopes."""
    four = dict.fromkeys(("vastai", "ionet", "akash", "render"))
    assert said(four) == ["Initialized 4 GPU providers"]
    assert said({"vastai": None})[-1] == "Initialized 1 GPU providers"


def test_the_marks_are_for_a_terminal_alone() -> None:
    """A log that is searched for `Initialized` has no use for pictures."""
    outcomes = {"vastai": None, "ionet": Unavailable("ionet", "ping", "slow")}
    lines = said(outcomes, tty=True)
    assert lines[0].startswith("\N{WARNING SIGN} Provider ionet initialization failed: slow")
    assert lines[-1] == "\N{WHITE HEAVY CHECK MARK} Initialized 1 GPU providers"
    assert said(outcomes)[-1] == "Initialized 1 GPU providers"


def test_a_closed_market_is_told_with_its_reason() -> None:
    """Else one would look for the fault in the ones that are open."""
    why = "no IONET_API_KEY; make a key at https://io.example/keys"
    assert said({}, {"ionet": why})[0] == f"Provider ionet disabled: {why}"


class Buggy:
    """A plug-in's market whose account cannot be read."""

    async def ping(self) -> object:
        """Fail as a program does that nobody tried."""
        raise KeyError("credit")


async def test_a_bug_in_one_market_is_told_and_ends_no_start() -> None:
    """`gp4u serve` greets beside everything else it does: rentals at the others go on."""
    outcomes = await greetings({"lab": cast("Provider", Buggy())})
    lines = said(outcomes)
    assert lines[0].startswith("Provider lab initialization failed: ")
    assert lines[-1] == "Initialized 0 GPU providers"
