"""Rented lives on any simulated market: how each is rented from, and the laws they are judged by.

`TRADES` names the markets that are not Vast.ai, each with a demand and a workload that it serves.
`Place` is such a market with its truth: what is held, what was made, what was paid, whatever the
market tells its customers. `judge_now` and `judge_end` are the laws; Vast.ai, which bills by the
second, has its own in `laws.py`. Everything runs on the virtual loop, in the market's own times.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Coroutine, Generator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from random import Random
from typing import Any

import sqlalchemy as sa

from gp4u.model import Demand, HealthCheck, Port, Requirements, Workload
from gp4u.rentals import rental as rentals
from gp4u.rentals.broker import Progress, Watched
from gp4u.rentals.rental import Rental, RentalState
from gp4u.sim.akash.market import AkashMarket
from gp4u.sim.faults import Faults, Kind, Rule
from gp4u.testing import Held
from tests.contract.conformance.dialects import AKASH, IONET, IONET_VMAAS, RENDER
from tests.contract.conformance.simulated import Dialect, make_world
from tests.simulated import Behind, Client, client_of, engine_of

SMALLEST_USD = Decimal("0.000001")
CREDIT_USD = Decimal(1000)
"""What `make_world` pays in."""
_ALL = ("VASTAI", "IONET", "AKASH", "RENDER")


@dataclass(frozen=True)
class Trade:
    """How one market is rented from."""

    name: str
    dialect: Dialect
    demand: Demand
    workload: Workload
    top_up: tuple[str, str] | None = None
    """Endpoint that buys more time, by the simulator's name and by a part of its path."""
    tells_bills: bool = True
    """False: the ledger's figure is an estimate from what listings showed, and when."""

    @property
    def slug(self) -> str:
        """The provider."""
        return self.dialect.slug

    @property
    def environ(self) -> dict[str, str]:
        """The variables of a client that knows this market alone."""
        others = {f"{env}_ENABLED": "false" for env in _ALL if env.lower() != self.slug}
        return {**others, **self.dialect.env}


_CHECKED = (HealthCheck(port=8000, path="/health"),)
_CONTAINER = Workload(image="nginx:1.27", ports=(Port(number=8000),), disk_gib=16, health=_CHECKED)
_MACHINE = Workload(
    image="vm:general",
    env={"SSH_PUBLIC_KEY": "ssh-ed25519 AAAAC3Nza ada"},
    ports=(Port(number=22), Port(number=8000)),
    disk_gib=16,
    health=_CHECKED,
)


def _wanted(ports: int = 1) -> Demand:
    return Demand(requirements=Requirements(disk_gib=16, ports=ports, verified_only=False))


_HOURS = ("extend", "/extend")
TRADES = {
    trade.name: trade
    for trade in (
        Trade("ionet-caas", IONET, _wanted(), _CONTAINER, _HOURS),
        Trade("ionet-vmaas", IONET_VMAAS, _wanted(2), _MACHINE, _HOURS),
        Trade("akash", AKASH, _wanted(), _CONTAINER, ("deposit", "/deposit-deployment")),
        Trade("render", RENDER, _wanted(), _CONTAINER, tells_bills=False),
    )
}


class Place(Behind):
    """One simulated market, and what is true of it."""

    def __init__(self, trade: Trade, *rules: Rule, faults: Faults | None = None, seed: int = 1):
        world = make_world(seed=seed, offers=60)
        faults = faults or Faults(rules, Random(seed))
        self.trade, self._app = trade, trade.dialect.app(world, faults)
        super().__init__(world, faults, self._app)

    @property
    def akash(self) -> AkashMarket:
        """Its orders and their money, where it is an Akash."""
        market: AkashMarket = self._app.state.market
        return market

    def held(self) -> list[Held]:
        """Return everything that was ever made, by label, and whether it still costs or locks."""
        if self.trade.dialect.held is not None:
            return list(self.trade.dialect.held(self._app, self.world))
        return [Held(contract.label, contract.alive) for contract in self.world.contracts]

    def top_ups(self) -> int:
        """Return how many calls that buy more time have arrived."""
        part = self.trade.top_up[1] if self.trade.top_up is not None else "/"
        return sum(1 for m, path, _ in self.requests if m == "POST" and path.endswith(part))

    async def present(self) -> None:
        """Bring the market to the clock's now."""
        await self.world.advance()
        if self.trade is TRADES["akash"]:
            await self.akash.step()


@asynccontextmanager
async def customer(
    place: Place, ledger: Path, *, seed: int = 1, **times: float
) -> AsyncIterator[Client]:
    """Start a client of the market; `times` are `settle_s` and the like, else the market's own."""
    own = {f"{place.trade.slug}_{name}".upper(): f"{value:g}" for name, value in times.items()}
    async with client_of(place, {**place.trade.environ, **own}, ledger, seed=seed) as one:
        yield one


PATIENCE_S = 900.0
"""After so long of good weather everything is settled, or never will be."""


async def release_everything(one: Client) -> None:
    """Release every open rental and wait for the proof.

    Raises:
        AssertionError: it never came.
    """
    try:
        async with asyncio.timeout(PATIENCE_S):
            await one.release_everything()
    except TimeoutError:
        raise AssertionError(f"a release was not proven within {PATIENCE_S:g} s") from None


async def calm(place: Place, one: Client) -> None:
    """Serve until everything that is held runs, and nothing else costs.

    Raises:
        AssertionError: it never came to that.
    """
    until = asyncio.get_running_loop().time() + PATIENCE_S
    while True:
        await one.settle(seconds=20)
        await place.present()
        rented = await one.app.ledger.open_rentals()
        under_way = [f"{r.key} is {r.state}" for r in rented if r.state is not RentalState.RUNNING]
        known = {str(r.key) for r in rented}
        strays = [f"{h.label} costs" for h in place.held() if h.costs and h.label not in known]
        if not under_way and not strays:
            return
        waiting = asyncio.get_running_loop().time() < until
        assert waiting, f"not settled after {PATIENCE_S:g} s: {', '.join([*under_way, *strays])}"


async def judge_now(place: Place, one: Client) -> None:
    """Judge one moment: what costs is explained by an open rental, was made once, for one owner.

    Raises:
        AssertionError: a law is broken; the text says which.
    """
    await place.present()
    everything = await one.app.ledger.every_rental()
    known = {r.key: r for r in everything}
    copies = Counter(held.label for held in place.held())
    doubled = any(kind == Kind.DUPLICATE for _, _, kind in place.faults.fired)
    owners: Counter[str] = Counter()
    for held in place.held():
        if not held.costs:
            continue
        rental = known.get(held.label or "")  # type: ignore[call-overload] # a label may be a key
        assert rental is not None, f"L1: {held.label} was made before its intent was on disk"
        assert rental.is_open, f"L5: {rental.key} ({rental.reason}) is released, and still costs"
        assert doubled or copies[held.label] == 1, f"H6: {rental.key} was rented more than once"
        owners[rental.owner] += rental.is_live
    assert doubled or max(owners.values(), default=0) <= 1, f"L2: {owners} at once"


async def judge_end(place: Place, one: Client, *, slack_s: float = 0.0) -> None:
    """Judge the end: nothing is left, all is paid as the ledger says, every deposit is back.

    `slack_s` is for a market without bills: so long nobody of ours could see what became of it.

    Raises:
        AssertionError: a law is broken; the text says which.
    """
    await place.present()
    everything = await one.app.ledger.every_rental()
    assert [h.label for h in place.held() if h.costs] == [], "leaked: it still costs money"
    assert place.live == [], "leaked: a machine still runs"
    shown = await one.app.providers[place.trade.slug].instances()
    assert shown.complete, shown.why_incomplete
    assert shown.instances == (), "leaked: the market still shows it"
    assert {r.state for r in everything} <= {RentalState.RELEASED}, "a release that never ended"
    unknown = {h.label for h in place.held()} - {r.key for r in everything}
    assert not unknown, "made under a key that no ledger knows"
    at = one.app.clock.now()
    for rental in everything:
        if not place.trade.tells_bills and _beyond_an_estimate(rental):
            continue
        cost, metered = rentals.cost_usd(rental, at=at), meter_of(place, rental)
        most = metered + SMALLEST_USD + rental.price_usd_per_hour * Decimal(slack_s) / 3600
        assert metered - SMALLEST_USD <= cost <= most, (
            f"{rental.key} ({rental.reason}): ledger ${cost:.7f}, meter ${metered:.7f}"
        )
    if place.trade.slug == "akash":
        assert place.akash.locked_usd == 0, "a deposit is still locked"
        paid = place.world.meter_total()
        assert place.akash.balance_usd == CREDIT_USD - paid, "a deposit has not come back"


def _beyond_an_estimate(rental: Rental) -> bool:
    """Whether a rental has cost what only a bill could tell.

    That is a second or another machine than the offer's, and one that ended before anybody saw it.
    """
    other = bool(rental.others) or rental.reason == "price_above_ceiling"
    return other or rental.instance_id is None


def meter_of(place: Place, rental: Rental) -> Decimal:
    """Return what everything that was made for a rental has really cost."""
    made = [c for c in place.world.contracts if c.label == rental.key]
    return sum((place.world.meter(c) for c in made), Decimal(0))


@dataclass(frozen=True)
class Point:
    """Where a life stands when it waits: what is on disk, what was sent last, and is it answered.

    Two moments of one point differ in nothing that the next process could find.
    """

    phase: str
    commits: int
    sent: str
    answered: bool

    def __str__(self) -> str:
        word = "after" if self.answered else "during"
        return f"{self.phase}, {self.commits} commits, {word} {self.sent or 'nothing'}"


class Life:
    """One client's doings, and where they stand: it is told of progress and counts commits."""

    def __init__(self, place: Place, one: Client) -> None:
        self.place, self.one, self.phase, self.commits = place, one, "", 0

        @sa.event.listens_for(engine_of(one.app), "commit")
        def count(_connection: object) -> None:
            self.commits += 1

    async def rent(self) -> Rental:
        """Rent, and wait until the workload answers."""
        trade = self.place.trade
        return await self.one.app.broker.rent(
            "cli:a", trade.demand, trade.workload, tell=self._hear
        )

    @property
    def point(self) -> Point:
        """Where it stands now."""
        sent = ""
        if self.place.requests:
            method, path, _ = self.place.requests[-1]
            sent = f"{method} {_ID.sub('*', path)}"
        return Point(self.phase, self.commits, sent, not self.one.is_waiting)

    def _hear(self, progress: Progress) -> None:
        if not isinstance(progress, Watched):
            self.phase = type(progress).__name__.lower()


_ID = re.compile(r"[0-9a-f-]{36}|[0-9]{13}")


class Traced(Awaitable[None]):
    """Runs a life to its end and notes the point of each await."""

    def __init__(self, life: Life, coroutine: Coroutine[Any, Any, None]) -> None:
        self.points: list[Point] = []
        self._life, self._coroutine = life, coroutine

    def __await__(self) -> Generator[Any, Any, None]:
        steps = self._coroutine.__await__()
        thrown: BaseException | None = None
        while True:
            try:
                waited_for = steps.send(None) if thrown is None else steps.throw(thrown)
            except StopIteration:
                return
            thrown = None
            self.points.append(self._life.point)
            try:
                yield waited_for
            except BaseException as error:  # noqa: BLE001 - handed on to where it belongs
                thrown = error


def worth_a_cut(points: Sequence[Point]) -> list[int]:
    """Return the numbers, from 1, of the awaits to cut, in order.

    Those are each await of the rent call, and the first one of every other point.
    """
    first = {point: number for number, point in reversed(list(enumerate(points, 1)))}
    renting = {n for n, point in enumerate(points, 1) if point.phase == "intended"}
    return sorted(renting | set(first.values()))
