"""Which markets are open, what they hold of ours, and which rental a word means.

The commands that act on rentals share these; each says what it could not find out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from socket import gaierror
from typing import Any, Final

from msgspec import Struct

from gp4u.app import App
from gp4u.cli.failures import Code, Leave, code_of, hints_of
from gp4u.cli.screen import Screen
from gp4u.cli.shapes import unexplained_json
from gp4u.errors import BadInput, Denied, ProviderError, Throttled
from gp4u.model import Demand
from gp4u.providers.contract import Provider
from gp4u.rentals.rental import Rental
from gp4u.telemetry import clean

_STATUSES: Final = frozenset(map(int, HTTPStatus))
_NOT_HERE = "no such market in this version"
_NAMING_DASHES = 2
"""What stands before the second dash is the same in every key of an installation."""


class Seen(Struct, frozen=True):
    """What one look at every open market brought."""

    unexplained: list[dict[str, Any]]
    """Instances without a rental, as `ps` prints them."""
    failed: Code | None
    """The gravest reason why a market could not be asked, or None."""


def need_markets(opened: App, screen: Screen, demand: Demand | None = None) -> None:
    """Leave with 4 where none of the wanted markets is open, saying what would open each.

    Where only some are closed, those that were asked for by name are said to be.

    Raises:
        Leave: none is open.
    """
    wanted = demand.requirements.providers if demand else ()
    asked = wanted or (*opened.providers, *opened.disabled)
    if any(slug in opened.providers for slug in asked):
        for slug in wanted:
            if slug not in opened.providers:
                screen.warn(f"{slug} is not asked: {opened.disabled.get(slug, _NOT_HERE)}")
        return
    screen.fail("no market is open")
    for slug in asked:
        screen.note(f"  {slug}: {opened.disabled.get(slug, _NOT_HERE)}")
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


async def refresh(opened: App, screen: Screen) -> Seen:
    """Reconcile every open market once; trouble is said, and does not stop the others."""
    unexplained: list[dict[str, Any]] = []
    failed: Code | None = None
    for slug in opened.providers:
        try:
            tick = await opened.reconciler.tick(slug)
        except ProviderError as error:
            screen.warn(f"{clean(str(error), 400)}; its rentals are shown as last seen")
            failed = max(failed or Code.DONE, code_of(error))
            continue
        for problem in tick.problems:
            screen.warn(clean(problem, 400))
        if tick.elsewhere:
            accounts = ", ".join(sorted({clean(r.account, 40) for r in tick.elsewhere}))
            screen.warn(
                f"{slug}: {len(tick.elsewhere)} of its rentals are paid by another account "
                f"({accounts}) and are shown as last seen"
            )
        unexplained += [unexplained_json(slug, o.instance, "orphan", o.key) for o in tick.orphans]
        unexplained += [unexplained_json(slug, i, "foreign", i.label) for i in tick.foreign]
    for slug in {r.provider for r in await opened.ledger.open_rentals()} - set(opened.providers):
        reason = opened.disabled.get(slug, _NOT_HERE)
        screen.warn(f"{slug}: {reason}; its rentals are shown as last seen")
    return Seen(unexplained, failed)


async def find_rental(opened: App, word: str) -> Rental:
    """Return the rental that a key, its beginning, a name or an instance id means.

    Raises:
        BadInput: it means none, or several.
    """
    found = await opened.ledger.find(word) if word else []
    if not found:
        raise BadInput("KEY", word, "no rental has this key, name or id; `gp4u ps -a` lists all")
    by_key = all(r.key.startswith(word) and r.owner != f"cli:{word}" for r in found)
    if by_key and (word.count("-") < _NAMING_DASHES or word.endswith("-")):
        raise BadInput("KEY", word, "is how every key begins; give more of it")
    several = [r for r in found if r.is_open]
    if len(several) > 1:
        keys = ", ".join(r.key for r in several[:5])
        raise BadInput("KEY", word, f"is not one rental but {len(several)}: {keys}")
    return found[0]


def provider_of(opened: App, screen: Screen, rental: Rental) -> Provider:
    """Return the market of a rental.

    Raises:
        Leave: it is closed to us.
    """
    provider = opened.providers.get(rental.provider)
    if provider is None:
        reason = opened.disabled.get(rental.provider, _NOT_HERE)
        screen.fail(f"rental {rental.key} is at {rental.provider}: {reason}")
        raise Leave(Code.NOT_ALLOWED)
    return provider
