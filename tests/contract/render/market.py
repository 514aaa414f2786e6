"""Simulated Render markets in process, and adapters that speak to them under the virtual clock.

`Market` is the world behind; `dispersed` and `legacy` open the two adapters on it. Calls to
Dispersed are signed, every attempt anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from decimal import Decimal
from random import Random
from typing import Any

import httpx2
import msgspec

from gp4u.model import Instance, Offer, Port, RentalKey, Requirements, Workload
from gp4u.providers.contract import Query
from gp4u.providers.http import Http, Request, Sign
from gp4u.providers.render.adapter import Render
from gp4u.providers.render.legacy import RenderLegacy
from gp4u.providers.render.signing import Signer
from gp4u.providers.render.wire import judge
from gp4u.resilience.guard import build_guard
from gp4u.sim.contracts import Contract
from gp4u.sim.faults import Faults, Rule
from gp4u.sim.inprocess import InProcessTransport
from gp4u.sim.render.app import render_app
from gp4u.sim.render.gate import RenderSettings
from gp4u.sim.runtime import pretend
from gp4u.sim.world import World
from tests.virtual_loop import EPOCH, VirtualClock

PUBLIC, SECRET = "pk_test_0001", "sk_test_0001"
EASY = RenderSettings(
    api_key=PUBLIC, api_secret=SECRET, list_lag_s=(0.0, 0.0), address_lag_s=(0.0, 0.0)
)
"""No lag, so that a test shows one thing at a time."""
KEY = RentalKey("gp4u-abc-defghijklm-nopqrstuvw")
WORKLOAD = Workload(
    image="nginx:1.27", env={"B": "2", "A": "1"}, ports=(Port(number=8000),), disk_gib=16
)
ONE_GPU = Query(requirements=Requirements(gpu_count=1, disk_gib=16, verified_only=False))


class Wire(httpx2.AsyncBaseTransport):
    """Keeps a record of what leaves."""

    def __init__(self, inner: httpx2.AsyncBaseTransport) -> None:
        self._inner = inner
        self.sent: list[tuple[Request, Mapping[str, str]]] = []

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        body = await request.aread()
        leaving = Request(request.method, request.url.path, request.url.query.decode(), body)
        self.sent.append((leaving, dict(request.headers)))
        return await self._inner.handle_async_request(request)

    def calls(self, method: str) -> list[str]:
        """Return the paths called with a method, oldest first."""
        return [leaving.path for leaving, _ in self.sent if leaving.method == method]


class Market:
    """The truth behind a simulated market, and the wire to it."""

    def __init__(self, world: World, faults: Faults, wire: Wire, sign: Sign | None) -> None:
        self.world, self.faults, self.wire, self.sign = world, faults, wire, sign

    @property
    def live(self) -> list[Contract]:
        """Contracts that cost money now."""
        return self.world.leaked()


def _market(
    rules: tuple[Rule, ...], settings: RenderSettings, secret: str | None, **world_options: Any
) -> Market:
    loop = asyncio.get_running_loop()
    options: dict[str, Any] = {"offers": 60, "boot_s": (10.0, 10.0), **world_options}
    world = World(
        loop.time,
        Random(1),
        runtime=pretend(Random(2)),
        epoch_s=EPOCH.timestamp() + loop.time(),
        credit_usd=Decimal(1000),
        **options,
    )
    faults = Faults(rules, Random(3))
    inner = InProcessTransport(render_app(world, faults, settings))
    sign = Signer(PUBLIC, secret, VirtualClock()) if secret is not None else None
    return Market(world, faults, Wire(inner), sign)


def _http(market: Market, headers: Mapping[str, str]) -> Http:
    guard = build_guard("render", random=Random(4), clock=VirtualClock(), jitter_s=0.0)
    return Http(
        "render",
        guard=guard,
        judge=judge,
        headers=headers,
        sign=market.sign,
        timeout_s=30.0,
        transport=market.wire,
    )


@asynccontextmanager
async def dispersed(
    *rules: Rule, settings: RenderSettings = EASY, secret: str = SECRET, **world_options: Any
) -> AsyncIterator[tuple[Render, Market]]:
    """Open the adapter of the real market on a simulator of it; boots take ten seconds."""
    market = _market(rules, settings, secret, **world_options)
    adapter = Render(_http(market, {}), base_url="https://sim.test", clock=VirtualClock())
    try:
        yield adapter, market
    finally:
        await adapter.aclose()


@asynccontextmanager
async def legacy(
    *rules: Rule, settings: RenderSettings = EASY, key: str = PUBLIC, **world_options: Any
) -> AsyncIterator[tuple[RenderLegacy, Market]]:
    """Open the adapter of the proposed API on a simulator of it."""
    settings = msgspec.structs.replace(settings, flavor="legacy")
    market = _market(rules, settings, None, **world_options)
    http = _http(market, {"authorization": f"Bearer {key}"})
    adapter = RenderLegacy(http, base_url="https://sim.test/v1", clock=VirtualClock())
    try:
        yield adapter, market
    finally:
        await adapter.aclose()


async def cheapest(adapter: Render | RenderLegacy, query: Query = ONE_GPU) -> Offer:
    """Return the cheapest offer with exactly as many GPUs as asked for."""
    page = await adapter.offers(query)
    fitting = [o for o in page.offers if o.gpu_count == query.requirements.gpu_count]
    return min(fitting, key=lambda o: (o.price_usd_per_hour, o.offer_id))


async def rented(adapter: Render, workload: Workload = WORKLOAD) -> tuple[str, Offer]:
    """Rent the cheapest single GPU."""
    offer = await cheapest(adapter)
    return await adapter.rent(offer, workload, KEY), offer


async def only(adapter: Render) -> Instance:
    """Return the one instance that a complete listing shows."""
    listing = await adapter.instances()
    assert listing.complete, listing.why_incomplete
    (instance,) = listing.instances
    return instance
