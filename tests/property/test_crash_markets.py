"""`kill -9` at io.net, Akash and Render: the laws of `test_crash.py`, where money moves in blocks.

Each point of a life is cut once: every await of the rent call, and elsewhere the first await of
each state that the next process could find (what is on disk, what was sent, whether it was
answered). After some time that nobody watches, a new process starts on
the same ledger, serves, and releases. The market's own truth is the judge: nothing is left, nothing
was made twice, no hour was bought twice, every deposit is back, and the ledger's cost is the
meter's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from random import Random

import pytest

from gp4u.rentals.rental import RentalState
from gp4u.sim.faults import Kind, Rule
from tests.market_lives import (
    TRADES,
    Life,
    Place,
    Point,
    Traced,
    Trade,
    calm,
    customer,
    judge_end,
    judge_now,
    release_everything,
    worth_a_cut,
)
from tests.patient import Killed
from tests.simulated import Client, Cut, cut
from tests.virtual_loop import run_virtual

DEAD_S = 37.0
"""How long nobody watches between two processes."""
NEARLY = timedelta(minutes=9)
"""Before its paid time ends a rental is looked after; more is bought ten minutes before."""
SEED = 3
Saga = Callable[[Life], Awaitable[None]]


async def rent_and_release(life: Life) -> None:
    """A whole life."""
    await life.rent()
    await release_everything(life.one)


async def go_on(place: Place, ledger: Path) -> None:
    """Start anew after a while, serve, check the laws, release, check the books."""
    await asyncio.sleep(DEAD_S)
    async with customer(place, ledger, seed=2) as again:
        ending = any(not r.is_live for r in await again.app.ledger.open_rentals())
        await calm(place, again)
        await judge_now(place, again)
        await nothing_given_up(place, again)
        await release_everything(again)
        # Without a bill nobody can say when a release took effect that nobody heard of.
        unseen_s = DEAD_S + 1 if ending and not place.trade.tells_bills else 0.0
        await judge_end(place, again, slack_s=unseen_s)


async def nothing_given_up(place: Place, one: Client) -> None:
    """Whatever was made and could run is kept, unless its owner asked for its end (L6)."""
    made = {contract.label for contract in place.world.contracts}
    for rental in await one.app.ledger.every_rental():
        assert rental.is_live or rental.reason == "asked" or rental.key not in made, (
            f"L6: {rental.key} was given up as {rental.reason}, and it could run"
        )


async def nothing(_life: Life) -> None:
    """What comes before a saga that begins at the beginning."""


def cuts(
    trade: Trade,
    saga: Saga,
    folder: Path,
    *rules: Rule,
    before: Saga = nothing,
    after: Callable[[Place, Path], Awaitable[None]] = go_on,
    phase: str = "",
    most: int | None = None,
) -> list[str]:
    """Cut a saga wherever it is worth it, each time in a world of its own; return where.

    `before` is never cut; `after` judges. What lies before the first point of `phase` is not cut.
    Of all points `most` are drawn, by a seed.
    """
    points: list[Point] = []

    async def whole() -> list[int]:
        place = Place(trade, *rules, seed=SEED)
        async with customer(place, folder / "whole.db") as one:
            life = Life(place, one)
            await before(life)
            traced = Traced(life, _coroutine(saga, life))
            await traced
        points.extend(traced.points)
        phases = [point.phase for point in points]
        assert phase in ("", *phases), f"the life was never {phase}"
        early = phases.index(phase) if phase else 0
        chosen = [early + n for n in worth_a_cut(points[early:])]
        return chosen if most is None else sorted(Random(SEED).sample(chosen, most))

    async def life(number: int) -> str:
        place = Place(trade, *rules, seed=SEED)
        ledger = folder / f"{number}.db"
        async with customer(place, ledger) as one:
            life = Life(place, one)
            await before(life)
            with pytest.raises(Cut):
                await cut(_coroutine(saga, life), number)
            one.kill()
        try:
            await after(place, ledger)
        except AssertionError as broken:  # told outside, for what was frozen ends with the loop
            return str(broken)
        return ""

    told = []
    for number in run_virtual(whole):
        told.append(f"await {number}: {points[number - 1]}")
        print(told[-1])  # what a failure of this test is read by
        broken = run_virtual(lambda n=number: life(n))  # type: ignore[misc] # mypy cannot infer a lambda's default
        assert not broken, f"{trade.name}, cut at {told[-1]}: {broken}"
    return told


async def _coroutine(saga: Saga, life: Life) -> None:
    await saga(life)


@pytest.mark.parametrize("name", TRADES)
def test_a_kill_at_each_point_of_a_life_leaks_nothing(name: str, tmp_path: Path) -> None:
    """Between "the market did it" and "we know it" lies a gap of each market's own shape."""
    told = cuts(TRADES[name], rent_and_release, tmp_path)

    assert len(told) >= 20


@pytest.mark.parametrize("name", TRADES)
def test_a_kill_before_each_commit_leaks_nothing(name: str, tmp_path: Path) -> None:
    """What the disk says is older than what happened at the market."""

    async def life(number: int) -> bool:
        place = Place(TRADES[name], seed=SEED)
        ledger = tmp_path / f"{number}.db"
        async with customer(place, ledger) as one:
            one.die_at_commit(number)
            try:
                await rent_and_release(Life(place, one))
            except (Killed, BaseExceptionGroup):
                finished = False
            else:
                finished = True
        await go_on(place, ledger)
        return finished

    number = 1
    while not run_virtual(lambda n=number: life(n)):  # type: ignore[misc] # mypy cannot infer a lambda's default
        number += 1
    assert number - 1 >= 10, "fewer commits than moves: nothing was killed"


@pytest.mark.parametrize("name", TRADES)
def test_a_kill_after_a_lost_create_reply_leaks_nothing(name: str, tmp_path: Path) -> None:
    """It was made, the reply was lost, and then the process died as well."""
    lost = Rule(kind=Kind.RESET_AFTER, endpoint="create", calls=(1,))
    told = cuts(TRADES[name], rent_and_release, tmp_path, lost, phase="unsettled", most=12)

    assert len(told) >= 10


async def until_it_is_nearly_over(life: Life) -> None:
    """Rent, and let all the paid time pass but a little, unwatched."""
    rental = await life.rent()
    assert rental.paid_until is not None
    left = rental.paid_until - life.one.app.clock.now()
    await asyncio.sleep((left - NEARLY).total_seconds())


async def look_after_it(life: Life) -> None:
    """Buy time, and see that it was bought."""
    await life.one.look(3, life.place.trade.slug)


async def outlive_what_was_paid(place: Place, ledger: Path) -> None:
    """Start anew, serve beyond the end of the time that was paid first, and go on from there."""
    await asyncio.sleep(DEAD_S)
    async with customer(place, ledger, seed=2) as again:
        (before,) = await again.app.ledger.open_rentals()
        await again.settle(seconds=NEARLY.total_seconds() + 120)
        (now,) = await again.app.ledger.open_rentals()
        assert now.instance_id == before.instance_id
        assert now.state is RentalState.RUNNING, f"lost with its paid time: {now.reason}"
        assert now.paid_until is not None
        assert now.paid_until > again.app.clock.now()
        assert place.top_ups() == 1, f"time was bought {place.top_ups()} times"
    await go_on(place, ledger)


@pytest.mark.parametrize("lost", [False, True], ids=["clean", "reply lost"])
@pytest.mark.parametrize("name", [name for name, trade in TRADES.items() if trade.top_up])
def test_a_kill_while_time_is_bought_buys_it_once_and_loses_nothing(
    name: str, lost: bool, tmp_path: Path
) -> None:
    """An hour bought twice is money, and one that was not bought is the machine."""
    trade = TRADES[name]
    assert trade.top_up is not None
    rules = [Rule(kind=Kind.RESET_AFTER, endpoint=trade.top_up[0], calls=(1,))] if lost else []
    told = cuts(
        trade,
        look_after_it,
        tmp_path,
        *rules,
        before=until_it_is_nearly_over,
        after=outlive_what_was_paid,
        most=12 if name == "akash" else None,
    )

    assert any(trade.top_up[1] in point for point in told), "it was never cut where time is bought"
