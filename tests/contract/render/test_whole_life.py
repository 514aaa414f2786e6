"""Render through the whole house: decide, intend, rent, probe, release; the ledger is the meter."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from decimal import Decimal
from pathlib import Path
from random import Random

import httpx2
import msgspec
import pytest

from gp4u.book import Book, TtlPolicy
from gp4u.errors import BadInput, ProviderError
from gp4u.model import Demand, HealthCheck, Port, Requirements, Workload
from gp4u.providers.contract import Provider
from gp4u.rentals import rental as rentals
from gp4u.rentals.broker import Broker
from gp4u.rentals.ledger import Ledger, open_ledger
from gp4u.rentals.plan import make_policy
from gp4u.rentals.probe import Prober
from gp4u.rentals.reconcile import Reconciler
from gp4u.rentals.rental import RentalState
from gp4u.sim.faults import Rule
from tests.contract.render.market import Market, dispersed, legacy
from tests.virtual_loop import VirtualClock, run_virtual

TO_THE_CENT_OF_A_CENT = Decimal("0.000001")
DEMAND = Demand(requirements=Requirements(disk_gib=0, ports=1, verified_only=False))
"""Nobody vouches for hosts of the proposed API, and it does not know their disks."""
WORKLOAD = Workload(
    image="nginx",
    ports=(Port(number=8000),),
    disk_gib=0,
    health=(HealthCheck(port=8000, path="/health"),),
)


class Workloads(httpx2.AsyncBaseTransport):
    """Answers for what runs in the world, and for nothing else."""

    def __init__(self, market: Market) -> None:
        self._market = market

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        await self._market.world.advance()
        for contract in self._market.live:
            if contract.running and request.url.port in contract.running.ports.values():
                return httpx2.Response(200, request=request)
        raise httpx2.ConnectError("nothing listens there", request=request)


class House:
    """Everything between a person and one market."""

    def __init__(self, adapter: Provider, market: Market, ledger: Ledger) -> None:
        clock, providers = VirtualClock(), {"render": adapter}
        self.market, self.ledger = market, ledger
        self.prober = Prober(allow_loopback=True, transport=Workloads(market))
        self.reconciler = Reconciler(
            providers=providers,
            ledger=ledger,
            prober=self.prober,
            policies={
                "render": make_policy(
                    adapter.spec,
                    settle_s=5,
                    late_window_s=60,
                    bill_lag_s=0,
                    rent_timeout_s=60,
                    boot_timeout_s=900,
                    orphan_grace_s=30,
                )
            },
            logins={"render": ""},
            clock=clock,
        )
        self.broker = Broker(
            providers=providers,
            book=Book(
                providers,
                {"render": lambda: 1.0},
                ttl=TtlPolicy(base_s=30, max_s=300, min_s=10, enabled=True),
                clock=clock,
            ),
            ledger=ledger,
            reconciler=self.reconciler,
            clock=clock,
            random=Random(5),
            max_offer_age_s=600,
        )

    async def cost(self) -> Decimal:
        """Return what the ledger says that everything has cost."""
        at = VirtualClock().now()
        every = await self.ledger.every_rental()
        return sum((rentals.cost_usd(each, at=at) for each in every), Decimal(0))


@asynccontextmanager
async def house(flavor: str, folder: Path, *rules: Rule) -> AsyncIterator[House]:
    """Build a house on a simulated market of a flavour."""
    opened = dispersed(*rules) if flavor == "dispersed" else legacy(*rules)
    async with opened as (adapter, market), open_ledger(f"sqlite:///{folder / 'l.db'}") as ledger:
        one = House(adapter, market, ledger)
        yield one
        await one.prober.aclose()


@pytest.mark.parametrize("flavor", ["dispersed", "legacy"])
def test_a_rental_runs_answers_and_ends_and_the_ledger_is_the_meter(
    flavor: str, tmp_path: Path
) -> None:
    """The main job, with its bill."""

    async def scene() -> None:
        async with house(flavor, tmp_path) as h:
            rental = await h.broker.rent("cli:a", DEMAND, WORKLOAD)
            assert rental.state is RentalState.RUNNING
            assert [e.container_port for e in rental.endpoints] == [8000]
            await asyncio.sleep(600)
            rental = await h.broker.release(rental.key)
            assert rental.state is RentalState.RELEASED
            assert h.market.live == []
            assert abs(await h.cost() - h.market.world.meter_total()) <= TO_THE_CENT_OF_A_CENT

    run_virtual(scene)


@pytest.mark.parametrize("flavor", ["dispersed", "legacy"])
@pytest.mark.parametrize("kind", ["reset_after", "late_effect", "late_listing", "status_after"])
def test_a_lost_reply_is_settled_by_its_key_and_nothing_is_bought_twice(
    flavor: str, kind: str, tmp_path: Path
) -> None:
    """Titles and references are no idempotency keys: only the listing tells."""

    async def scene() -> None:
        rule = Rule(kind=kind, endpoint="create", seconds=20, times=1)
        async with house(flavor, tmp_path, rule) as h:
            rental = await h.broker.rent("cli:a", DEMAND, WORKLOAD)
            assert rental.state is RentalState.RUNNING
            assert len(h.market.world.contracts) == 1
            await h.broker.release(rental.key)
            assert h.market.live == []

    run_virtual(scene)


@pytest.mark.parametrize("flavor", ["dispersed", "legacy"])
@pytest.mark.parametrize(
    "kind", ["duplicate", "dead_start", "oci_error", "host_loss", "failed_with_id"]
)
def test_whatever_befalls_a_rent_nothing_is_left(flavor: str, kind: str, tmp_path: Path) -> None:
    """A double, a container that dies, a node that vanishes: the end is an empty market."""

    async def scene() -> None:
        rule = Rule(kind=kind, endpoint="create", seconds=30, times=1)
        async with house(flavor, tmp_path, rule) as h:
            with suppress(ProviderError):  # that every candidate came to nothing is an answer too
                await h.broker.rent("cli:a", DEMAND, WORKLOAD)
            for _ in range(100):
                await h.reconciler.tick("render")
                await asyncio.sleep(5)
            for rental in await h.ledger.open_rentals():
                await h.broker.release(rental.key)
            assert h.market.live == []

    run_virtual(scene)


def test_an_oversized_node_is_released_before_it_is_used(tmp_path: Path) -> None:
    """Given a node of several GPUs at several times the price, the house does not keep it."""

    async def scene() -> None:
        rule = Rule(kind="wrong_machine", endpoint="create", times=1)
        async with house("dispersed", tmp_path, rule) as h:
            rental = await h.broker.rent("cli:a", DEMAND, WORKLOAD)
            assert rental.state is RentalState.RUNNING
            first, second = await h.ledger.every_rental()
            assert {first.reason, second.reason} == {"price_above_ceiling", ""}
            (contract,) = h.market.live
            assert len(contract.gpus) == 1

    run_virtual(scene)


def test_an_offer_that_is_gone_gives_way_to_the_next(tmp_path: Path) -> None:
    """Taken between decision and rent."""

    async def scene() -> None:
        gone = Rule(kind="offer_gone", endpoint="create", times=1)
        async with house("legacy", tmp_path, gone) as h:
            rental = await h.broker.rent("cli:a", DEMAND, WORKLOAD)
            assert rental.state is RentalState.RUNNING
            reasons = [each.reason for each in await h.ledger.every_rental()]
            assert reasons.count("offer_gone") == 1

    run_virtual(scene)


@pytest.mark.parametrize("flavor", ["dispersed", "legacy"])
def test_a_command_is_refused_before_an_intent_is_written(flavor: str, tmp_path: Path) -> None:
    """Nothing sent, nothing on disk."""

    async def scene() -> None:
        async with house(flavor, tmp_path) as h:
            shell = msgspec.structs.replace(WORKLOAD, command=("sh",))
            with pytest.raises(BadInput):
                await h.broker.rent("cli:a", DEMAND, shell)
            assert await h.ledger.every_rental() == []
            assert h.market.world.contracts == []

    run_virtual(scene)
