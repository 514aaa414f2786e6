"""One life in bad weather: what `tests/property` draws by seed, and its verdict.

Kept apart from its tests because the mutants of `test_guards_can_fail.py` live the same life.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random

from gp4u.errors import Gp4uError, ProviderError
from gp4u.model import Demand, Workload
from gp4u.rentals.rental import RentalState
from gp4u.sim.faults import Faults, Rule
from tests.laws import end, held_now, lost_without_cause
from tests.simulated import DEMAND, WORKLOAD, Client, Market, client
from tests.virtual_loop import run_virtual

SETTLE_S, LATE_WINDOW_S = 45, 180
"""The weather's list lags by up to 3 s, plus 20 s for a late contract, plus 20 s for a stale view;
its parked calls take effect up to 110 s late, after a wait for a turn."""
LIFE_S = 500.0


@dataclass(frozen=True)
class Outcome:
    """What came of one life; equal for equal seeds."""

    served: int
    """How many rentals came to run."""
    contracts: int
    faults: int
    cost: str


class Broken(AssertionError):
    """A law is broken; names the seed."""


def live_through(
    seed: int,
    folder: Path,
    *,
    more: tuple[Rule, ...] = (),
    life_s: float = LIFE_S,
    strict: bool = True,
    url: str | None = None,
) -> Outcome:
    """Live one seed's life and judge it, on a ledger of its own in `folder` or at `url`.

    `more` rules come on top of the weather's. `strict=False` judges the end alone: for faults that
    outlast every honest patience, which no client can tell from absence while they last.

    Raises:
        Broken: a law is broken; the text names seed and law.
    """
    folder.mkdir(parents=True, exist_ok=True)

    async def life() -> Outcome:
        random = Random(seed)
        faults = Faults.weather(random, severity=random.random())
        for rule in more:
            faults.add(rule)
        market = Market(seed=seed, faults=faults, dead_start_ratio=0.03)
        async with client(
            market,
            url or folder / f"{seed}.db",
            seed=seed,
            settle_s=SETTLE_S,
            late_window_s=LATE_WINDOW_S,
        ) as one:
            return await _live(market, one, random, life_s, strict=strict)

    try:
        return run_virtual(life, seed=seed)
    except (AssertionError, ExceptionGroup) as error:
        raise Broken(f"seed {seed}: {first_of(error)}") from error


async def _live(
    market: Market, one: Client, random: Random, life_s: float, *, strict: bool
) -> Outcome:
    with suppress(TimeoutError):
        async with asyncio.timeout(life_s):
            parts: list[Callable[[], Awaitable[None]]] = [
                owner(one, f"cli:{n}", Random(random.getrandbits(32))) for n in range(2)
            ]
            await one.app.run(*parts, *([_watch(market, one)] if strict else []))
    faults = len(market.faults.fired)
    await end(market, one)
    everything, cost = await one.books()
    return Outcome(
        served=sum(r.running_at is not None for r in everything),
        contracts=market.rents(),
        faults=faults,
        cost=f"{cost:.6f}",
    )


def owner(
    one: Client,
    name: str,
    random: Random,
    demand: Demand = DEMAND,
    workload: Workload = WORKLOAD,
) -> Callable[[], Awaitable[None]]:
    """Somebody who rents, uses, releases and does so again, whatever it is told."""

    async def want() -> None:
        while True:
            patience_s = random.uniform(5, 600)
            with suppress(Gp4uError, TimeoutError):
                async with asyncio.timeout(patience_s):
                    await one.app.broker.rent(name, demand, workload)
            await asyncio.sleep(random.uniform(1, 120))
            for rental in await one.app.ledger.open_rentals():
                if rental.owner == name and rental.is_live:
                    with suppress(ProviderError, TimeoutError):
                        async with asyncio.timeout(random.uniform(5, 300)):
                            await one.app.broker.release(rental.key)
            await asyncio.sleep(random.uniform(1, 60))

    return want


def _watch(market: Market, one: Client) -> Callable[[], Awaitable[None]]:
    """Judge every few seconds."""

    async def look() -> None:
        known: set[str] = set()
        while True:
            everything = await one.app.ledger.every_rental()
            held_now(market, everything)
            lost = [r for r in lost_without_cause(market, everything) if r.key not in known]
            for rental in lost:
                known.add(rental.key)
                assert rental.state is not RentalState.RELEASING or not rental.seen_at, (
                    f"L6: {rental.key} was given up as {rental.reason}, and it serves"
                )
            await asyncio.sleep(4.9)

    return look


def first_of(error: BaseException) -> str:
    """Return the text of the first law in a group."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"
