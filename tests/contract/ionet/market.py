"""A simulated io.net in process with the real adapter in front of it, on the virtual loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from random import Random
from typing import Any

import httpx2

from gp4u.model import HealthCheck, Offer, Port, RentalKey, Requirements, Workload
from gp4u.providers.contract import Provider, Query
from gp4u.providers.http import Http
from gp4u.providers.ionet.judge import judge
from gp4u.providers.ionet.legacy import headers
from gp4u.providers.ionet.opening import make
from gp4u.resilience.guard import build_guard
from gp4u.sim.contracts import Contract
from gp4u.sim.faults import Faults, Rule
from gp4u.sim.inprocess import InProcessTransport
from gp4u.sim.ionet.app import ionet_app
from gp4u.sim.ionet.gate import IoNetSettings
from gp4u.sim.runtime import pretend
from gp4u.sim.world import World
from tests.virtual_loop import EPOCH, VirtualClock

ACCOUNT_KEY = "account-key-canary"
ROOT = "http://127.0.0.1:9/enterprise/v1/io-cloud"
LEGACY_ROOT = "http://127.0.0.1:9/v1"
EASY = IoNetSettings(api_key=ACCOUNT_KEY, list_lag_s=(0.0, 0.0), throttle=0.0, log_open_s=0.0)
"""No throttle, no lag and logs that end, so that a test shows one thing at a time."""
KEY = RentalKey("gp4u-abcd-abcdefghij-klmnopqrst")
DEMAND = Requirements(gpu_models=("RTX 4090",), ports=1)
WORKLOAD = Workload(
    image="busybox",
    command=("sh", "-c", "echo $HOME"),
    env={"TOKEN": "workload-secret"},
    ports=(Port(number=8000),),
    health=(HealthCheck(port=8000, path="/"),),
)
VM = Workload(
    image="vm:general",
    env={"SSH_PUBLIC_KEY": "ssh-ed25519 AAAAC3Nza ada"},
    ports=(Port(number=22), Port(number=8080)),
)


class Market:
    """The adapter, and the truth behind it."""

    def __init__(
        self, provider: Provider, world: World, faults: Faults, requests: list[httpx2.Request]
    ) -> None:
        self.provider, self.world, self.faults, self.requests = provider, world, faults, requests

    async def offer(self, wanted: Requirements = DEMAND) -> Offer:
        """Return the cheapest free offer that fits."""
        page = await self.provider.offers(Query(requirements=wanted))
        fits = [
            o
            for o in page.offers
            if o.available and o.gpu_model in wanted.gpu_models and o.gpu_count == wanted.gpu_count
        ]
        return min(fits, key=lambda o: o.price_usd_per_hour)

    async def rented(self, workload: Workload = WORKLOAD) -> str:
        """Rent what fits and return the instance's id."""
        return await self.provider.rent(await self.offer(), workload, KEY)

    async def running(self, workload: Workload = WORKLOAD) -> str:
        """Rent, and let time pass until it serves."""
        instance_id = await self.rented(workload)
        await asyncio.sleep(30)
        return instance_id

    def contract(self) -> Contract:
        """Return the one contract that was ever made."""
        (only,) = self.world.contracts
        return only


class _Recorder(httpx2.AsyncBaseTransport):
    def __init__(self, inner: httpx2.AsyncBaseTransport, seen: list[httpx2.Request]) -> None:
        self._inner, self._seen = inner, seen

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        self._seen.append(request)
        return await self._inner.handle_async_request(request)


@asynccontextmanager
async def market(
    *rules: Rule,
    settings: IoNetSettings = EASY,
    flavor: str = "auto",
    credit: str = "25",
    key: str = ACCOUNT_KEY,
    max_retries: int = 1,
    timeout_s: float = 20.0,
    allow_loopback: bool = True,
    transport: httpx2.AsyncBaseTransport | None = None,
    **world_options: Any,
) -> AsyncIterator[Market]:
    """Open a market on the running loop's clock; boots take ten seconds."""
    world = World(
        asyncio.get_running_loop().time,
        Random(1),
        runtime=pretend(Random(2)),
        offers=120,
        boot_s=(10.0, 10.0),
        credit_usd=Decimal(credit),
        epoch_s=EPOCH.timestamp() + asyncio.get_running_loop().time(),
        **world_options,
    )
    faults = Faults(rules, Random(3))
    base_url = LEGACY_ROOT if flavor == "legacy" else ROOT
    clock = VirtualClock()
    app = InProcessTransport(ionet_app(world, faults, settings))
    requests: list[httpx2.Request] = []
    http = Http(
        "ionet",
        guard=build_guard("ionet", random=Random(4), clock=clock, max_retries=max_retries),
        judge=judge,
        headers=headers(key, flavor, base_url),
        timeout_s=timeout_s,
        allow_loopback=True,
        transport=_Recorder(transport or app, requests),
    )
    provider = make(
        http, base_url=base_url, clock=clock, flavor=flavor, allow_loopback=allow_loopback
    )
    try:
        yield Market(provider, world, faults, requests)
    finally:
        await provider.aclose()
