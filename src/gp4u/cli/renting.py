"""`gp4u rent`, `ps` and `release`: a rental from its intent to its proven end.

The broker and the reconciler do the work. Here it is said what happens, and the key is said before
anything can cost money and again when somebody interrupts.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

from msgspec.structs import replace

from gp4u.app import App
from gp4u.cli.failures import Code, Leave, next_steps
from gp4u.cli.follow import LAUNCHING, Follower, selection_lines
from gp4u.cli.markets import find_rental, provider_of, refresh
from gp4u.cli.screen import Form, Screen
from gp4u.cli.views import name_of, say_nothing_is_rented, show_rental, show_rentals
from gp4u.errors import (
    BadInput,
    NothingFits,
    OutcomeUnknown,
    OwnerHasRental,
)
from gp4u.model import Demand, Workload
from gp4u.providers.contract import Call
from gp4u.rentals.broker import Intended, Progress
from gp4u.rentals.rental import Rental
from gp4u.selection.decide import to_json
from gp4u.telemetry import Redactor

_SECRET_NAME: Final = re.compile(r"KEY|TOKEN|SECRET|PASS|CREDENTIAL|AUTH", re.IGNORECASE)
_PASSWORD: Final = re.compile(r"(?<=://)[^/@\s]+@")
HIDDEN: Final = "***"


async def rent(
    opened: App, screen: Screen, owner: str, demand: Demand, workload: Workload, *, wait: bool
) -> None:
    """Rent, follow the rental until it answers, and print it.

    Raises:
        Gp4uError: it came to nothing; see `Broker.rent`.
    """
    for held in await opened.ledger.open_rentals():
        if held.owner == owner and held.is_live:
            if screen.form is not Form.NAME:
                show_rental(screen, held, opened.clock.now())
            raise OwnerHasRental(owner, held.key)
    screen.busy(f"asking {', '.join(demand.requirements.providers or tuple(opened.providers))}")
    follower = Follower(screen, now=opened.clock.now)
    try:
        rental = await _telling_the_key(
            screen,
            follower,
            lambda tell: opened.broker.rent(owner, demand, workload, wait=wait, tell=tell),
        )
    except OutcomeUnknown as error:
        held_now = await opened.ledger.get(error.key)
        if held_now is not None:
            show_rental(screen, held_now, opened.clock.now())
        raise
    show_rental(screen, rental, opened.clock.now())
    if not wait and rental.instance_id is None:
        raise OutcomeUnknown(rental.provider, "rent", "not confirmed yet", key=rental.key)
    name = name_of(rental)
    screen.hint(f"`gp4u logs {name}` shows what it prints, `gp4u release {name}` ends it")


async def dry_run(opened: App, screen: Screen, demand: Demand, workload: Workload) -> None:
    """Print the decision and the calls that `rent` would send; send none of them.

    Raises:
        NothingFits: nothing would be rented.
    """
    hidden = {k: HIDDEN if _SECRET_NAME.search(k) else v for k, v in workload.env.items()}
    # Before the calls are made: a market may put the environment into a text of its own.
    shown = replace(workload, env=hidden)
    decision, first, calls = await opened.broker.dry_run(demand, shown)
    if first is None:
        raise NothingFits(decision)
    answer = to_json(decision, top=3, rejections=False)
    secrets = [v for k, v in workload.env.items() if _SECRET_NAME.search(k)]
    redact = Redactor([*opened.settings.secrets(), *secrets])
    answer["calls"] = [_redacted(call, redact) for call in calls]
    if screen.form is Form.NAME:
        screen.names([f"{first.offer.provider}/{first.offer.offer_id}"])
    elif screen.is_data:
        screen.data(answer)
    else:
        for line in selection_lines(decision, top=3):
            screen.note(line.removesuffix(LAUNCHING))
        screen.data({"calls": answer["calls"]})
        screen.note("dry run: nothing was sent", "dim")


async def ps(opened: App, screen: Screen, *, everything: bool) -> None:
    """Ask the markets what there is, and print it beside what the ledger knows.

    Raises:
        Leave: a market could not be asked, so its part is as it was last seen.
    """
    screen.busy(f"asking {', '.join(opened.providers)}" if opened.providers else "reading")
    seen = await refresh(opened, screen)
    screen.rest()
    ledger = opened.ledger
    found = await (ledger.all_rentals() if everything else ledger.open_rentals())
    show_rentals(screen, found, opened.clock.now(), seen.unexplained)
    if not found and not seen.unexplained:
        say_nothing_is_rented(screen, everything=everything)
    for rental in found:
        if rental.is_open and rental.provider not in opened.providers:
            raise Leave(Code.NOT_ALLOWED)
    if seen.failed is not None:
        raise Leave(seen.failed)


async def release(
    opened: App,
    screen: Screen,
    words: Sequence[str],
    *,
    everything: bool,
    wait: bool,
    forget: bool,
    confirm: Callable[[str], None],
) -> None:
    """Release rentals, each to its proven end, and print what became of them.

    With `forget` they are closed on the user's word instead, and no market is asked.

    Raises:
        BadInput: a word names no rental, or several.
        Leave: a rental's market is closed to us.
    """
    if everything == bool(words):
        raise BadInput("KEY", " ".join(words), "name rentals, or --all for every open one")
    if everything:
        screen.busy(f"asking {', '.join(opened.providers)}")
        await refresh(opened, screen)
        found = await opened.ledger.open_rentals()
    else:
        found = list({r.key: r for r in [await find_rental(opened, w) for w in words]}.values())
    if forget:
        confirm(f"close {len(found)} rentals without proof? what still runs goes on costing money")
        forgotten = [await opened.broker.forget(rental.key) for rental in found]
        show_rentals(screen, forgotten, opened.clock.now())
        return
    for rental in found:
        provider_of(opened, screen, rental)  # before the first one is released
    if len(found) > 1:
        confirm(f"release {len(found)} rentals?")
    done: list[Rental] = []
    for rental in found:
        follower = Follower(screen, now=opened.clock.now)
        try:
            done.append(
                await opened.broker.release(
                    rental.key, reason="released_by_user", wait=wait, tell=follower
                )
            )
        except asyncio.CancelledError:
            screen.rest()
            screen.fail(f"interrupted; {rental.key} is being released and may still cost money")
            screen.steps(next_steps(rental.key))
            raise
    screen.rest()
    show_rentals(screen, done, opened.clock.now())
    if not done and not screen.is_data:
        screen.note("nothing to release")


async def _telling_the_key(
    screen: Screen,
    follower: Follower,
    start: Callable[[Callable[[Progress], None]], Awaitable[Rental]],
) -> Rental:
    """Await a rent; if it is interrupted, say last which key to ask for."""
    intended: Rental | None = None

    def tell(step: Progress) -> None:
        nonlocal intended
        if isinstance(step, Intended):
            intended = step.rental
        follower(step)

    try:
        return await start(tell)
    except asyncio.CancelledError:
        screen.rest()
        if intended is None:
            screen.fail("interrupted; nothing was rented")
        else:
            screen.fail(f"interrupted; rental {intended.key} may be paid for")
            screen.steps(next_steps(intended.key))
        raise
    finally:
        screen.rest()


def _redacted(call: Call, redact: Redactor) -> dict[str, object]:
    """Return a call as it would be sent, with keys of ours and passwords in URLs hidden, at any
    depth.
    """

    def hide(value: Any) -> Any:
        match value:
            case str():
                return _PASSWORD.sub(f"{HIDDEN}@", redact(value))
            case Mapping():
                return {name: hide(inner) for name, inner in value.items()}
            case list() | tuple():
                return [hide(inner) for inner in value]
            case _:
                return value

    body = hide(call.body) if call.body is not None else None
    return {"method": call.method, "url": hide(call.url), "body": body}
