"""Bad weather at io.net, Akash and Render, drawn from a seed and judged by the market's truth.

As in `test_weather.py` two owners rent, hold for some minutes and release, again and again. Settle
time and late window are as long as the weather's worst lag, so each moment is judged and not only
the end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest

from gp4u.sim.faults import Faults, Kind, Rule
from tests.market_lives import (
    TRADES,
    Place,
    Trade,
    calm,
    customer,
    judge_end,
    judge_now,
    release_everything,
)
from tests.simulated import Client
from tests.virtual_loop import run_virtual
from tests.weathered import first_of, owner

SETTLE_S, LATE_WINDOW_S = 60, 180
"""A list lags by up to 1 s, plus 20 s for a late contract, plus 20 s for a stale view, and a node
of the chain by 8 s more; a parked call takes effect up to 110 s late, after a wait for a turn."""
LIFE_S = 500.0
HEALED_S = 150.0
"""For so long parked calls may still take effect, once the weather is over."""
SEEDS = range(15)


def live_through(trade: Trade, seed: int, folder: Path, *more: Rule) -> tuple[int, int]:
    """Live one seed's life and judge it; return how many rentals ran, and how many faults struck.

    Raises:
        AssertionError: a law is broken; the text names market, seed and law.
    """

    async def life() -> tuple[int, int]:
        random = Random(seed)
        faults = Faults.weather(random, severity=random.random())
        for rule in more:
            faults.add(rule)
        place = Place(trade, faults=faults, seed=seed)
        ledger = folder / f"{trade.name}-{seed}.db"
        times = {"settle_s": SETTLE_S, "late_window_s": LATE_WINDOW_S}
        async with customer(place, ledger, seed=seed, **times) as one:
            return await _live(place, one, random)

    try:
        return run_virtual(life, seed=seed)
    except (AssertionError, ExceptionGroup) as error:
        raise AssertionError(f"{trade.name}, seed {seed}: {first_of(error)}") from error


async def _live(place: Place, one: Client, random: Random) -> tuple[int, int]:
    trade = place.trade
    owners = [
        owner(one, f"cli:{n}", Random(random.getrandbits(32)), trade.demand, trade.workload)
        for n in range(2)
    ]
    with suppress(TimeoutError):
        async with asyncio.timeout(LIFE_S):
            await one.app.run(*owners, _watch(place, one))
    struck = len(place.faults.fired)
    place.faults.clear()
    await one.settle(seconds=HEALED_S)
    await calm(place, one)
    await release_everything(one)
    await one.settle(seconds=HEALED_S)
    await judge_end(place, one, slack_s=LIFE_S)
    everything = await one.app.ledger.every_rental()
    return sum(r.running_at is not None for r in everything), struck


def _watch(place: Place, one: Client) -> Callable[[], Awaitable[None]]:
    """Judge every few seconds."""

    async def look() -> None:
        while True:
            await judge_now(place, one)
            await asyncio.sleep(4.9)

    return look


@pytest.mark.parametrize("slug", ["ionet", "akash", "render"])
def test_no_weather_breaks_a_law(slug: str, tmp_path: Path) -> None:
    """Nothing unexplained, nothing twice, nothing left, and the ledger is the meter."""
    trades = [trade for trade in TRADES.values() if trade.slug == slug]
    lives = [live_through(trades[seed % len(trades)], seed, tmp_path) for seed in SEEDS]

    assert sum(served for served, _ in lives) >= 10, "the owners got next to nothing"
    assert sum(struck for _, struck in lives) >= 100, "there was hardly any weather"


@pytest.mark.parametrize("name", ["ionet-caas", "render"])
def test_a_refused_create_that_made_something_is_in_the_books(name: str, tmp_path: Path) -> None:
    """It is ended at once, and those seconds were paid; found by seeds 2 and 11 at Render."""

    async def life() -> None:
        rule = Rule(kind=Kind.FAILED_WITH_ID, endpoint="create", calls=(1,), status=422)
        place = Place(TRADES[name], rule)
        async with customer(place, tmp_path / "ledger.db") as one:
            await one.app.broker.rent("cli:a", place.trade.demand, place.trade.workload)
            await release_everything(one)
            await one.settle(seconds=60)
            reasons = [r.reason for r in await one.app.ledger.every_rental()]
            assert reasons[0].startswith("refused"), reasons
            await judge_end(place, one)

    run_virtual(life)
