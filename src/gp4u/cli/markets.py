"""Which markets are open, what each of them said at first, and what would open the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from socket import gaierror
from typing import TYPE_CHECKING, Final

from gp4u.cli.failures import Code, Leave, hints_of
from gp4u.cli.screen import Screen
from gp4u.errors import BadInput, Denied, ProviderError, Throttled
from gp4u.model import Demand
from gp4u.telemetry import clean

if TYPE_CHECKING:
    from gp4u.desk.desk import Desk

_STATUSES: Final = frozenset(map(int, HTTPStatus))


async def need_markets(desk: Desk, screen: Screen, demand: Demand | None = None) -> Sequence[str]:
    """Return the open ones of the wanted markets; where there is none, say what would open each.

    Where only some are closed, those that were asked for by name are said to be.

    Raises:
        BadInput: a market was asked for that nobody knows.
        Leave: none is open.
    """
    known = {each.provider: each for each in await desk.markets()}
    wanted = demand.requirements.providers if demand else ()
    for slug in wanted:
        if slug not in known:
            raise BadInput("--provider", slug, f"known: {', '.join(known)}")
    asked = [known[slug] for slug in wanted or known]
    good = [each.provider for each in asked if each.open]
    if good:
        for each in asked if wanted else ():
            if not each.open:
                screen.warn(f"{each.provider} is not asked: {each.why}")
        return good
    screen.fail("no market is open")
    for each in asked:
        screen.note(f"  {each.provider}: {each.why}")
    screen.steps([("gp4u demo", "shows it all on a simulated market, without an account")])
    raise Leave(Code.NOT_ALLOWED)


def show_greetings(
    screen: Screen, outcomes: Mapping[str, ProviderError | None], closed: Mapping[str, str]
) -> None:
    """Say how many markets answered, why each other one did not, and what to do about it.

    A market that is closed by choice or for want of a key is no failure, and is told with its
    reason. The words are the first seed's.
    """
    marked = screen.err.is_terminal
    for slug, error in outcomes.items():
        if error is None:
            continue
        sign = "\N{WARNING SIGN} " if marked else ""
        screen.note(f"{sign}Provider {slug} initialization failed: {_reason(error)}", "yellow")
        if error.status is not None:
            told = clean(error.detail, 200)
            if not told.startswith(f"HTTP {error.status}"):
                told = f"HTTP {error.status} {told}".rstrip()
            screen.note(f"  its reply: {told}", "dim")
        screen.steps(_next_steps(error))
    for slug, why in closed.items():
        screen.note(f"Provider {slug} disabled: {clean(why, 300)}", "dim")
    mark = "\N{WHITE HEAVY CHECK MARK} " if marked else ""
    good = sum(error is None for error in outcomes.values())
    screen.note(f"{mark}Initialized {good} GPU providers")


def _reason(error: ProviderError) -> str:
    """Return the status and its phrase, or in words why there was none.

    Some markets refuse a key with a status that means something else (Vast.ai with 404, others
    with 200). Such a reply is told by what it means.
    """
    status = error.status
    if isinstance(error, Denied) and status != HTTPStatus.FORBIDDEN:
        status = HTTPStatus.UNAUTHORIZED
    elif isinstance(error, Throttled) and status is not None:
        status = HTTPStatus.TOO_MANY_REQUESTS
    if status is not None and status >= HTTPStatus.BAD_REQUEST:
        phrase = HTTPStatus(status).phrase if status in _STATUSES else "of the market's own"
        return f"{status} {phrase}"
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ConnectionRefusedError):
            return "connection refused"
        if isinstance(cause, gaierror):
            return "its name has no address"
        cause = cause.__cause__ or cause.__context__
    return clean(error.detail, 200) or type(error).__name__


def _next_steps(error: ProviderError) -> Sequence[tuple[str, str]]:
    match error:
        case Denied(status=HTTPStatus.FORBIDDEN):
            return (
                ("a new key", "may do: this one has expired, or lacks a right"),
                *hints_of(error),
            )
        case Denied():
            return hints_of(error)
        case Throttled(retry_after_s=wait_s):
            when = "in a minute" if wait_s is None else f"in {max(1, round(wait_s))} s"
            slower = f"{error.provider.upper().replace('-', '_')}_RATE_LIMIT"
            return ((when, "it is asked again"), (slower, "makes us ask less often"))
        case _:
            return (("wait", "it is asked again by itself; the other markets go on"),)
