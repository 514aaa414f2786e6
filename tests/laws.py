"""The laws that every story about rentals is judged by, with the market's own meter as witness.

`Story` is one market and one client on one ledger; `told` runs it under virtual time, heals the
market, releases what is held, and judges: nothing still costs, every rental is released, every
machine was made under a key that was on disk, and the ledger's cost is the meter's. `held_now` is
what can be asked at any moment in between.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterable
from decimal import Decimal
from pathlib import Path
from typing import Any

from gp4u.model import Demand, InstanceState, Workload
from gp4u.rentals import rental as rentals
from gp4u.rentals.broker import Progress
from gp4u.rentals.rental import Rental, RentalState
from gp4u.sim.contracts import Contract
from gp4u.sim.faults import Kind, Rule
from tests.simulated import DEMAND, WORKLOAD, Client, Market, client
from tests.virtual_loop import run_virtual

SMALLEST_USD = Decimal("0.000001")
UNSEEN_USD = Decimal("0.0002")
"""What the disk of a machine may cost that the market made, never listed, and took down itself."""


class Story:
    """A market, a client of it, and what a test wants to know of both."""

    def __init__(self, market: Market, one: Client) -> None:
        self.market, self.client, self.app = market, one, one.app
        self.world, self.faults = market.world, market.faults

    async def rent(
        self,
        owner: str = "cli:a",
        demand: Demand = DEMAND,
        workload: Workload = WORKLOAD,
        *,
        wait: bool = True,
        tell: Callable[[Progress], None] = lambda _: None,
    ) -> Rental:
        """Rent through the broker."""
        return await self.app.broker.rent(owner, demand, workload, wait=wait, tell=tell)

    async def newest(self, rental: Rental) -> Rental:
        """Read a rental again."""
        found = await self.app.ledger.get(rental.key)
        assert found is not None
        return found

    async def kinds(self, rental: Rental) -> list[str]:
        """Return the kinds of a rental's events, oldest first."""
        return [event.kind for event in await self.app.ledger.events(rental.key)]

    async def reasons(self) -> list[str]:
        """Return why each rental so far left the live states, oldest first."""
        return [r.reason for r in await self.app.ledger.every_rental()]

    def sent(self, method: str, part: str) -> list[bytes]:
        """Return the bodies of all requests of this kind that reached the market."""
        return [b for m, path, b in self.market.requests if m == method and part in path]

    async def still_serves(self, rental: Rental) -> bool:
        """Whether its owner still has the very machine, and no second one was asked for."""
        return is_serving(await self.newest(rental)) and self.rent_calls == 1

    @property
    def rent_calls(self) -> int:
        """How many rent calls left the client."""
        return len(self.sent("PUT", "/asks/"))

    @property
    def contracts(self) -> list[Contract]:
        """Everything that was ever made."""
        return self.world.contracts

    @property
    def trips(self) -> int:
        """How often the breaker tripped."""
        return self.app.guards["vastai"].health().breaker.trip_count


def on_rent(kind: str, *calls: int, **more: object) -> Rule:
    """A fault of the rent call; without numbers, of every one."""
    return Rule(kind=kind, endpoint="create", calls=calls, **more)  # type: ignore[arg-type] # fields of one rule, spelled by the test


Tale = Callable[[Story], Awaitable[None]]


def told(tale: Tale, folder: Path, *rules: Rule, seed: int = 3, **market_options: Any) -> Market:
    """Run a story in a market with these faults, end it, judge it; return the market."""

    async def life() -> Market:
        market = Market(seed=seed, rules=rules, **market_options)
        async with client(market, folder / "ledger.db") as one:
            await tale(Story(market, one))
            await end(market, one)
        return market

    return run_virtual(life, seed=seed)


async def end(market: Market, one: Client) -> None:
    """Heal the market, let the reconciler settle, release everything, judge.

    Raises:
        AssertionError: a law is broken; the text says which.
    """
    market.faults.clear()
    await _calm(market, one)
    await one.release_everything()
    await _calm(market, one)
    await one.settle(seconds=20)  # what was too early believed to be gone shows itself again
    everything = await one.app.ledger.every_rental()
    assert [c.id for c in market.live] == [], "leaked: it still costs money"
    assert {r.state for r in everything} <= {RentalState.RELEASED}, "a release that never ended"
    unknown_keys = {c.order.label for c in market.world.contracts} - {r.key for r in everything}
    assert not unknown_keys - {None}, "a machine was made under a key that no ledger knows"
    at = one.app.clock.now()
    for rental in everything:
        cost = rentals.cost_usd(rental, at=at)
        metered = meter_of(market, rental)
        allowed = UNSEEN_USD if _was_never_seen(rental) else SMALLEST_USD
        assert abs(cost - metered) <= allowed, (
            f"{rental.key} ({rental.reason}): ledger ${cost:.7f}, meter ${metered:.7f}"
        )
    ledger = sum((rentals.cost_usd(r, at=at) for r in everything), Decimal(0))
    if None not in {c.order.label for c in market.world.contracts}:
        allowed = SMALLEST_USD + UNSEEN_USD * sum(map(_was_never_seen, everything))
        assert abs(ledger - market.world.meter_total()) <= allowed, "ledger is not meter"


def _was_never_seen(rental: Rental) -> bool:
    """Whether nobody but the market can know that there was a machine: no reply, no listing."""
    return rental.instance_id is None and rental.confirmed_at is None


async def _calm(market: Market, one: Client) -> None:
    """Reconcile until nothing is under way, at most as long as a breaker may stay open."""
    for _ in range(24):
        await one.settle(seconds=30)
        rented = await one.app.ledger.open_rentals()
        explained = {r.key for r in rented}
        under_way = any(r.state is not RentalState.RUNNING for r in rented)
        strays = any(c.order.label not in explained for c in market.live)
        if not (under_way or strays or market.world._later):
            return


def meter_of(market: Market, rental: Rental) -> Decimal:
    """Return what everything that was made for a rental has really cost."""
    ids = {rental.instance_id, *rental.others}
    return sum(
        (
            market.world.meter(c)
            for c in market.world.contracts
            if c.order.label == rental.key or str(c.id) in ids
        ),
        Decimal(0),
    )


def held_now(market: Market, everything: Iterable[Rental]) -> None:
    """Judge one moment: what costs money now is explained, once, by a rental that is still open.

    Raises:
        AssertionError: a law is broken; the text says which.
    """
    rented: dict[str | None, Rental] = {r.key: r for r in everything}
    by_owner: defaultdict[str, list[Contract]] = defaultdict(list)
    copies = Counter(c.order.label for c in market.world.contracts)
    doubled = any(kind == Kind.DUPLICATE for _, _, kind in market.faults.fired)
    for contract in market.live:
        key = contract.order.label
        assert key in rented, f"L1: {contract.id} was made before its intent was on disk"
        rental = rented[key]
        assert rental.state is not RentalState.RELEASED, (
            f"L5: {key} ({rental.reason}) counts as released, and {contract.id} still costs"
        )
        assert doubled or copies[key] == 1, f"H6: {key} was rented {copies[key]} times"
        if rental.is_live:
            by_owner[rental.owner].append(contract)
    for owner, contracts in by_owner.items():
        assert doubled or len(contracts) == 1, f"L2: {owner} holds {[c.id for c in contracts]}"


def lost_without_cause(market: Market, everything: Iterable[Rental]) -> list[Rental]:
    """Return rentals that were given up as lost while their machine was there and served (L6)."""
    served = {str(c.id) for c in market.live if c.up and not c.offline}
    return [
        r
        for r in everything
        if r.reason in ("instance_lost", "never_listed") and r.instance_id in served
    ]


def is_serving(rental: Rental) -> bool:
    """Whether the owner has what was asked for."""
    return rental.state is RentalState.RUNNING and rental.seen is InstanceState.RUNNING
