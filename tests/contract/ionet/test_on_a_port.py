"""The io.net adapter over a real connection: a program that runs, and a log that never ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random

import msgspec
import pytest

from gp4u.clock import SystemClock
from gp4u.model import InstanceState, Workload
from gp4u.providers.contract import Provider, Query
from gp4u.providers.http import Http
from gp4u.providers.ionet import adapter
from gp4u.providers.ionet.judge import judge
from gp4u.providers.ionet.legacy import headers
from gp4u.providers.ionet.opening import make
from gp4u.resilience.guard import build_guard
from gp4u.sim.faults import Faults
from gp4u.sim.ionet.app import ENTERPRISE, ionet_app
from gp4u.sim.ionet.gate import IoNetSettings
from gp4u.sim.runtime import process
from gp4u.sim.serve import _listening, _Server
from gp4u.sim.world import World
from tests.contract.ionet.market import DEMAND, KEY, WORKLOAD

SETTINGS = IoNetSettings(list_lag_s=(0.0, 0.0), log_open_s=3600.0, terminate_s=0.0)
PLAIN = msgspec.structs.replace(WORKLOAD, command=())


@asynccontextmanager
async def listening() -> AsyncIterator[tuple[Provider, World]]:
    """Run the simulator on a port with the adapter in front of it; boots take no time."""
    world = World(
        asyncio.get_running_loop().time,
        Random(1),
        runtime=process(),
        offers=60,
        boot_s=(0.05, 0.05),
        stop_s=0.01,
    )
    clock = SystemClock()
    with _listening(0) as listener:
        port = listener.getsockname()[1]
        base_url = f"http://127.0.0.1:{port}{ENTERPRISE}"
        server = _Server(ionet_app(world, Faults(), SETTINGS))
        http = Http(
            "ionet",
            guard=build_guard("ionet", random=Random(4), clock=clock),
            judge=judge,
            headers=headers("sim-key", "auto", base_url),
            timeout_s=10.0,
            allow_loopback=True,
        )
        provider = make(http, base_url=base_url, clock=clock, allow_loopback=True)
        try:
            async with asyncio.TaskGroup() as tasks:
                serving = tasks.create_task(server.serve(sockets=[listener]))
                await server.up.wait()
                try:
                    yield provider, world
                finally:
                    await provider.aclose()
                    server.should_exit = True
                    await asyncio.wait([serving])
        finally:
            await world.aclose()


async def rented(provider: Provider, workload: Workload) -> str:
    """Rent the cheapest offer that fits."""
    page = await provider.offers(Query(requirements=DEMAND))
    fits = [o for o in page.offers if o.gpu_model == "RTX 4090" and o.gpu_count == 1]
    offer = min(fits, key=lambda o: (not o.available, o.price_usd_per_hour))
    return await provider.rent(offer, workload, KEY)


async def until(provider: Provider, state: InstanceState | None) -> int:
    """Look until the one instance is in a state, or gone for None; return its port outside."""
    async with asyncio.timeout(10):
        while True:
            found = (await provider.instances()).instances
            if [i.state for i in found] == ([] if state is None else [state]):
                return found[0].endpoints[0].port if found and found[0].endpoints else 0
            await asyncio.sleep(0.02)  # a real process starts in its own time


async def test_a_program_gets_its_url_and_its_log_is_read_while_it_stays_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The stream ends in an hour, the reader in a moment; both leave nothing behind."""
    monkeypatch.setattr(adapter, "LOG_QUIET_S", 0.3)
    async with listening() as (provider, world):
        instance_id = await rented(provider, PLAIN)
        port = await until(provider, InstanceState.RUNNING)
        assert port in world.contracts[0].ports.values()
        assert await provider.logs(instance_id)
        await provider.release(instance_id)
        await until(provider, None)
        assert world.leaked() == []


async def test_a_program_that_answers_503_never_gets_a_url() -> None:
    """The market asks for itself; a process that only listens does not serve."""
    async with listening() as (provider, world):
        sick = msgspec.structs.replace(PLAIN, env={"GP4U_SIM_UNHEALTHY": "1"})
        instance_id = await rented(provider, sick)
        async with asyncio.timeout(10):
            while not world.contracts[0].up:
                await provider.instances()
        for _ in range(5):
            (shown,) = (await provider.instances()).instances
            assert (shown.state, shown.endpoints) == (InstanceState.BOOTING, ())
        await provider.release(instance_id)
        await until(provider, None)
