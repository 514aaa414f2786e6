"""`gp4u rent`, `ps` and `release`: a rental from its intent to its proven end.

The desk does the work. Here it is said what happens, and the key is said before anything can cost
money and again when somebody interrupts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from gp4u.cli.failures import Code, Leave, code_of_look, explain, next_steps, reasons_told
from gp4u.cli.follow import Follower
from gp4u.cli.markets import need_markets
from gp4u.cli.run import Counter
from gp4u.cli.screen import Form, Screen
from gp4u.cli.views import (
    decision_data,
    name_of,
    say_nothing_is_rented,
    show_rental,
    show_rentals,
)
from gp4u.desk.desk import NoOfferFits, Tell
from gp4u.desk.shapes import IntendedStep, MarketShape, RentalShape, StepShape
from gp4u.desk.wording import LAUNCHING
from gp4u.errors import BadInput, NoSuch, OutcomeUnknown, OwnerHasRental, ServerUnavailable
from gp4u.model import Demand, RentalKey, Workload

_NOT_HERE = "no such market in this version"


async def rent(
    at: Counter, screen: Screen, owner: str, demand: Demand, workload: Workload, *, wait: bool
) -> None:
    """Rent, follow the rental until it answers, and print it.

    Raises:
        Gp4uError: it came to nothing; see `Desk.rent`.
        Leave: nothing fits, or no market is open.
    """
    asked = await need_markets(at.desk, screen, demand)
    screen.busy(f"asking {', '.join(asked)}")
    with reasons_told(screen, demand):
        try:
            rental = await _telling_the_key(
                at,
                screen,
                lambda tell: at.desk.rent(owner, demand, workload, wait=wait, tell=tell),
            )
        except OwnerHasRental as error:
            if screen.form is not Form.NAME:
                await _show_held(at, screen, error.key)
            raise
        except OutcomeUnknown as error:
            await _show_held(at, screen, error.key)
            raise
    show_rental(screen, rental)
    if not wait and rental.instance_id is None:
        raise OutcomeUnknown(
            rental.provider, "rent", "not confirmed yet", key=RentalKey(rental.key)
        )
    name = name_of(rental)
    screen.hint(f"`gp4u logs {name}` shows what it prints, `gp4u release {name}` ends it")


async def dry_run(at: Counter, screen: Screen, demand: Demand, workload: Workload) -> None:
    """Print the decision and the calls that `rent` would send; send none of them.

    Raises:
        Leave: nothing would be rented.
    """
    await need_markets(at.desk, screen, demand)
    found = await at.desk.dry_run(demand, workload)
    with reasons_told(screen, demand):
        if found.offer is None:
            raise NoOfferFits(found.decision)
    if screen.form is Form.NAME:
        screen.names([found.offer.id])
    elif screen.is_data:
        screen.data({**decision_data(found.decision), "calls": found.calls})
    else:
        for line in found.decision.log:
            screen.note(line.removesuffix(LAUNCHING))
        screen.data({"calls": found.calls})
        screen.note("dry run: nothing was sent", "dim")


async def ps(at: Counter, screen: Screen, *, everything: bool, ask: bool) -> None:
    """Print what there is; with `ask` as the markets say now, else as it was last seen.

    Raises:
        Leave: a market could not be asked, so its part is as it was last seen.
    """
    if ask:
        good = [each.provider for each in await at.desk.markets() if each.open]
        screen.busy(f"asking {', '.join(good)}" if good else "reading")
    found = await at.desk.look(everything=everything, ask=ask)
    screen.rest()
    for warning in found.warnings:
        screen.warn(warning)
    show_rentals(screen, found.rentals, at.now(), found.unexplained)
    if not found.rentals and not found.unexplained:
        say_nothing_is_rented(screen, everything=everything)
    if ask and found.failed is not None:
        raise Leave(code_of_look(found.failed))


async def release(
    at: Counter,
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
    markets = {each.provider: each for each in await at.desk.markets()}
    if everything:
        screen.busy(f"asking {', '.join(slug for slug, each in markets.items() if each.open)}")
        seen = await at.desk.look(everything=False, ask=True)
        screen.rest()
        for warning in seen.warnings:
            screen.warn(warning)
        found = list(seen.rentals)
    else:
        named = [await at.desk.find(word) for word in words]
        found = list({rental.key: rental for rental in named}.values())
    if forget:
        confirm(f"close {len(found)} rentals without proof? what still runs goes on costing money")
        forgotten = [await at.desk.forget(rental.key) for rental in found]
        show_rentals(screen, forgotten, at.now())
        return
    for rental in found:
        _need_open(screen, markets.get(rental.provider), rental)  # before the first is released
    if len(found) > 1:
        confirm(f"release {len(found)} rentals?")
    done = [await _released(at, screen, rental.key, wait=wait) for rental in found]
    screen.rest()
    show_rentals(screen, done, at.now())
    if not done and not screen.is_data:
        screen.note("nothing to release")


def say_closed(screen: Screen, key: str, provider: str, why: str) -> Leave:
    """Say that a rental is at a market that is closed to us; return what to leave with."""
    screen.fail(f"rental {key} is at {provider}: {why}")
    return Leave(Code.NOT_ALLOWED)


def _need_open(screen: Screen, market: MarketShape | None, rental: RentalShape) -> None:
    """Refuse a rental whose market is closed.

    Raises:
        Leave: it is.
    """
    if market is None or not market.open:
        why = _NOT_HERE if market is None else market.why
        raise say_closed(screen, rental.key, rental.provider, why)


async def _released(at: Counter, screen: Screen, key: str, *, wait: bool) -> RentalShape:
    follower = Follower(screen, now=at.now)
    try:
        return await at.desk.release(key, reason="released_by_user", wait=wait, tell=follower)
    except asyncio.CancelledError:
        screen.rest()
        screen.fail(f"interrupted; {key} is being released and may still cost money")
        screen.steps(next_steps(key))
        raise


async def _show_held(at: Counter, screen: Screen, key: str) -> None:
    """Print the rental that an error is about, if it is known."""
    screen.rest()
    try:
        held = await at.desk.find(key)
    except (NoSuch, ServerUnavailable):
        return  # what is known of it is in the error
    show_rental(screen, held)


async def _telling_the_key(
    at: Counter, screen: Screen, start: Callable[[Tell], Awaitable[RentalShape]]
) -> RentalShape:
    """Await a rent; if it is interrupted, say last which key to ask for."""
    follower = Follower(screen, now=at.now)
    intended: RentalShape | None = None

    def tell(step: StepShape) -> None:
        nonlocal intended
        if isinstance(step, IntendedStep):
            intended = step.rental
        follower(step)

    try:
        return await start(tell)
    except ServerUnavailable as error:
        if not error.sent:
            raise
        screen.rest()
        explain(screen, error, at.secrets)
        screen.warn("nobody knows whether it was rented: `gp4u ps` will show it")
        raise Leave(Code.UNKNOWN) from error
    except asyncio.CancelledError:
        screen.rest()
        if intended is not None:
            goes_on = f": {at.server} goes on with it" if at.server else ""
            screen.fail(f"interrupted; rental {intended.key} may be paid for{goes_on}")
            screen.steps(next_steps(intended.key))
        elif at.server:
            screen.fail(f"interrupted; {at.server} goes on, and may rent it yet")
            screen.steps((("gp4u ps", "shows what became of it"),))
        else:
            screen.fail("interrupted; nothing was rented")
        raise
    finally:
        screen.rest()
