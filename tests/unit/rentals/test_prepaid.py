"""Time that is bought in blocks: a rental outlives its first hour, and no hour is bought twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from decimal import Decimal
from pathlib import Path
from random import Random

import httpx2
import pytest

from gp4u.app import App, open_app
from gp4u.model import Demand, Port, Requirements, Workload
from gp4u.rentals.rental import Rental, RentalState
from gp4u.settings import load_settings
from gp4u.sim.faults import Faults, Kind, Rule
from gp4u.sim.inprocess import InProcessTransport
from gp4u.sim.ionet.app import ENTERPRISE, ionet_app
from gp4u.sim.ionet.gate import IoNetSettings
from gp4u.sim.runtime import pretend
from gp4u.sim.world import World
from tests.virtual_loop import EPOCH, VirtualClock, run_virtual

HOUR_S = 3600.0
DEMAND = Demand(requirements=Requirements(gpu_models=("RTX 4090",), ports=1))
WORKLOAD = Workload(image="busybox", ports=(Port(number=8000),))


class _Counting(httpx2.AsyncBaseTransport):
    def __init__(self, inner: httpx2.AsyncBaseTransport) -> None:
        self._inner = inner
        self.extensions = 0

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        self.extensions += request.method == "POST" and request.url.path.endswith("/extend")
        return await self._inner.handle_async_request(request)


@asynccontextmanager
async def renting(folder: Path, *rules: Rule) -> AsyncIterator[tuple[App, _Counting, Rental]]:
    """Open everything on a market that sells hours, with one rental that runs."""
    loop = asyncio.get_running_loop()
    world = World(
        loop.time,
        Random(1),
        runtime=pretend(Random(2)),
        offers=120,
        boot_s=(10.0, 10.0),
        credit_usd=Decimal(25),
        epoch_s=EPOCH.timestamp() + loop.time(),
    )
    market = ionet_app(world, Faults(rules, Random(3)), IoNetSettings(throttle=0.0))
    wire = _Counting(InProcessTransport(market))
    settings = load_settings(
        {
            "IONET_BASE_URL": f"http://127.0.0.1:9{ENTERPRISE}",
            "IONET_API_KEY": "sim-key",
            "GP4U_ALLOW_LOOPBACK": "1",
            "GP4U_DATABASE_URL": f"sqlite:///{folder}/ledger.db",
        },
        folder,
    )
    async with open_app(settings, clock=VirtualClock(), random=Random(4), transport=wire) as app:
        yield app, wire, await app.broker.rent("cli:a", DEMAND, WORKLOAD)
        await app.broker.release((await app.ledger.open_rentals())[0].key)
    await world.aclose()


async def passes(app: App, seconds: float) -> None:
    """Reconcile as `serve` does, for so long."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await app.run()


@pytest.mark.parametrize("lost", [False, True], ids=["clean", "first reply lost"])
def test_a_rental_outlives_the_hours_it_was_bought_by(tmp_path: Path, lost: bool) -> None:
    """Its owner knows nothing of blocks. A lost reply may have been a purchase, and was one."""
    rules = [Rule(kind=Kind.RESET_AFTER, endpoint="extend", calls=(1,))] if lost else []

    async def life() -> None:
        async with renting(tmp_path, *rules) as (app, wire, rental):
            await passes(app, 2.5 * HOUR_S)
            (now,) = await app.ledger.open_rentals()
            assert now.state is RentalState.RUNNING
            assert now.instance_id == rental.instance_id
            assert now.paid_until is not None
            assert app.clock.now() < now.paid_until
            assert wire.extensions == 2, "the second and the third hour, each bought once"
            kinds = [event.kind for event in await app.ledger.events(rental.key)]
            assert kinds.count("extend") == (3 if lost else 2)

    run_virtual(life)


def test_nothing_is_bought_for_a_rental_that_is_being_released(tmp_path: Path) -> None:
    """Its last paid minutes are the end."""

    async def life() -> None:
        async with renting(tmp_path) as (app, wire, rental):
            await passes(app, HOUR_S - 900)
            await app.broker.release(rental.key, wait=False)
            await passes(app, HOUR_S)
            assert wire.extensions == 0
            assert await app.ledger.open_rentals() == []
            await app.broker.rent("cli:b", DEMAND, WORKLOAD)  # what the block's end releases

    run_virtual(life)
