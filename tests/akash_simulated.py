"""A simulated Akash in this process, the adapter over it, and a gateway without a socket.

`Akash` is everything a test may look at: the adapter, the market's truth, its world and its faults.
The gateway's WebSockets go straight into the simulator's ASGI app, so that everything runs on the
virtual loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping, Sequence
from contextlib import asynccontextmanager
from decimal import Decimal
from random import Random
from typing import Any

import httpx2
from starlette.applications import Starlette

from gp4u.model import Instance, Offer, Port, RentalKey, Requirements, Workload
from gp4u.providers.akash.adapter import SPEC, Akash
from gp4u.providers.akash.chain import Chain, Node, rest_urls
from gp4u.providers.akash.console import Console
from gp4u.providers.akash.dial import Closed, Declined, Door, Socket
from gp4u.providers.akash.gateway import Gateway
from gp4u.providers.akash.wire import judge
from gp4u.providers.contract import Query
from gp4u.providers.http import Http
from gp4u.resilience.guard import build_guard
from gp4u.sim.akash.app import akash_app, client_env
from gp4u.sim.akash.market import AkashMarket, AkashSettings
from gp4u.sim.faults import Faults, Rule
from gp4u.sim.inprocess import InProcessTransport
from gp4u.sim.launch import Runtime
from gp4u.sim.runtime import pretend
from gp4u.sim.world import World
from tests.virtual_loop import EPOCH, VirtualClock, run_virtual

ORIGIN = "http://127.0.0.1:9"
API_KEY = "ac.sk.sim.account-key-canary"
KEY = RentalKey("gp4u-abcde-0123456789-abcdefghij")
EASY = AkashSettings(api_key=API_KEY, list_lag_s=(0.0, 0.0), replica_lags=False)
"""No lag, so that a test shows one thing at a time."""
WANTED = Requirements(gpu_models=("RTX 3090",), disk_gib=16, ports=1)
WORKLOAD = Workload(image="busybox:1.36", ports=(Port(number=8000),), disk_gib=16)


class Sim:
    """A market, and one client of it."""

    def __init__(self, provider: Akash, market: AkashMarket, faults: Faults, wire: Wire) -> None:
        self.provider, self.market, self.faults, self.wire = provider, market, faults, wire
        self.world = market.world

    async def offer(self, wanted: Requirements = WANTED) -> Offer:
        """Return the cheapest estimate of an audited host."""
        page = await self.provider.offers(Query(requirements=wanted))
        fitting = [
            o
            for o in page.offers
            if o.gpu_model in wanted.gpu_models and o.verified and o.gpu_count == wanted.gpu_count
        ]
        return min(fitting, key=lambda o: (o.price_usd_per_hour, o.offer_id))

    async def rented(
        self, workload: Workload = WORKLOAD, key: RentalKey = KEY, wanted: Requirements = WANTED
    ) -> str:
        """Rent the cheapest estimate; its own host bids."""
        return await self.provider.rent(await self.offer(wanted), workload, key, choose=cheapest)

    async def running(self, workload: Workload = WORKLOAD) -> str:
        """Rent, and wait until everything is up."""
        dseq = await self.rented(workload)
        await asyncio.sleep(60)
        return dseq

    async def only(self) -> Instance:
        """Return the one instance there is."""
        listing = await self.provider.instances()
        (instance,) = listing.instances
        return instance

    def sent(self, method: str, part: str) -> list[httpx2.Request]:
        """Return the requests of this kind."""
        return [r for r in self.wire.requests if r.method == method and part in r.url.path]


def cheapest(offers: Sequence[Offer]) -> Offer | None:
    """Choose as a decision without wishes would."""
    return min(offers, key=lambda o: (o.price_usd_per_hour, o.offer_id), default=None)


class Wire(httpx2.AsyncBaseTransport):
    """A client's connections to the market, kept for a look at them."""

    def __init__(self, app: Starlette) -> None:
        self._inner = InProcessTransport(app)
        self.requests: list[httpx2.Request] = []

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        await request.aread()
        self.requests.append(request)
        return await self._inner.handle_async_request(request)


class _AppSocket:
    """A WebSocket to an ASGI app."""

    def __init__(self) -> None:
        self.inbox: asyncio.Queue[MutableMapping[str, Any]] = asyncio.Queue()
        self.outbox: asyncio.Queue[MutableMapping[str, Any]] = asyncio.Queue()

    async def send(self, message: bytes) -> None:
        await self.inbox.put({"type": "websocket.receive", "bytes": message, "text": None})

    async def receive(self) -> bytes | str:
        message = await self.outbox.get()
        if message["type"] == "websocket.close":
            raise Closed(message.get("code", 1000), message.get("reason") or "")
        text: str | None = message.get("text")
        data: bytes = message.get("bytes") or b""
        return data if text is None else text


class AppDial:
    """Opens WebSockets into an ASGI app, and remembers which doors were knocked at."""

    def __init__(self, app: Starlette) -> None:
        self._app = app
        self.doors: list[Door] = []
        self.paths: list[str] = []

    @asynccontextmanager
    async def __call__(
        self, door: Door, path: str, token: str, pins: Sequence[bytes]
    ) -> AsyncIterator[Socket]:
        self.doors.append(door)
        self.paths.append(path)
        bare, _, query = path.partition("?")
        scope = {
            "type": "websocket",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "scheme": "ws",
            "path": bare,
            "raw_path": bare.encode(),
            "root_path": "",
            "query_string": query.encode(),
            "headers": [
                (b"host", door.host.encode()),
                (b"authorization", f"Bearer {token}".encode()),
            ],
            "client": ("127.0.0.1", 40_000),
            "server": (door.host, door.port),
            "subprotocols": [],
            "extensions": {"websocket.http.response": {}},
        }
        socket = _AppSocket()
        await socket.inbox.put({"type": "websocket.connect"})
        # The host's side goes on for a moment when the client has gone, so it is a task of its own.
        app = asyncio.get_running_loop().create_task(
            self._app(scope, socket.inbox.get, socket.outbox.put)
        )
        try:
            await _opened(socket)
            yield socket
        finally:
            await socket.inbox.put({"type": "websocket.disconnect", "code": 1000})
            done, _ = await asyncio.wait([app], timeout=1.0)
            if not done:
                app.cancel()


async def _opened(socket: _AppSocket) -> None:
    first = await socket.outbox.get()
    if first["type"] == "websocket.accept":
        return
    if first["type"] == "websocket.close":
        raise Declined(403)
    body = await socket.outbox.get()
    raise Declined(first["status"], bytes(body.get("body", b"")).decode())


@asynccontextmanager
async def simulated(
    *rules: Rule,
    settings: AkashSettings = EASY,
    api_key: str | None = API_KEY,
    offers: int = 60,
    credit_usd: Decimal = Decimal(100),
    runtime: Runtime | None = None,
    rest: Sequence[str] | None = None,
    block_time_s: float | None = None,
    max_retries: int = 3,
    threshold: int = 50,
    seed: int = 1,
    boot_s: tuple[float, float] = (5.0, 20.0),
) -> AsyncIterator[Sim]:
    """Open a market on the running loop's clock and an adapter over it; no pacing.

    `rest` names other nodes than the market's own; `block_time_s` is what the adapter takes a block
    to last, where that is not what it lasts.
    """
    loop = asyncio.get_running_loop()
    world = World(
        loop.time,
        Random(seed),
        runtime=runtime or pretend(Random(seed)),
        offers=offers,
        credit_usd=credit_usd,
        boot_s=boot_s,
        epoch_s=EPOCH.timestamp() + loop.time(),
    )
    faults = Faults(rules, Random(seed))
    app = akash_app(world, faults, settings)
    wire, dial, clock = Wire(app), AppDial(app), VirtualClock()

    def http(part: str, headers: dict[str, str]) -> Http:
        guard = build_guard(
            part,
            threshold=threshold,
            timeout_s=60,
            half_open_max_calls=3,
            rate_per_min=None,
            burst=50,
            paces=SPEC.paces,
            max_retries=max_retries,
            base_delay_s=2,
            max_delay_s=32,
            jitter_s=0.5,
            random=Random(seed),
            clock=clock,
        )
        return Http(
            "akash",
            guard=guard,
            judge=judge,
            headers=headers,
            timeout_s=30,
            allow_loopback=True,
            transport=wire,
        )

    env = client_env(ORIGIN, settings)
    given = env["AKASH_REST_URL"].split(",") if rest is None else rest
    nodes = rest_urls(given, env["AKASH_RPC_URL"])
    block_time_s = block_time_s or float(env["AKASH_BLOCK_TIME_S"])
    console = Console(
        http("akash", {"x-api-key": api_key} if api_key else {}),
        url=env["AKASH_CONSOLE_URL"],
        block_time_s=block_time_s,
        clock=clock,
    )

    def node(url: str) -> Node:
        return Node(url, http(url, {}))

    provider = Akash(
        console,
        Chain(rest=[node(url) for url in nodes], rpc=node(env["AKASH_RPC_URL"])),
        Gateway(dial, allow_loopback=True),
        has_key=api_key is not None,
        block_time_s=block_time_s,
        clock=clock,
    )
    try:
        yield Sim(provider, app.state.market, faults, wire)
    finally:
        await provider.aclose()
        await world.aclose()


def told(tale: Callable[[Sim], Awaitable[None]], *rules: Rule, **options: object) -> None:
    """Run a story on the virtual loop; `options` are those of `simulated`."""

    async def life() -> None:
        async with simulated(*rules, **options) as sim:  # type: ignore[arg-type]  # passed on
            await tale(sim)

    run_virtual(life)


async def everything_returned(sim: Sim) -> None:
    """Judge the end: nothing is held, so every deposit is back but for what was paid.

    Raises:
        AssertionError: something still holds money.
    """
    await sim.world.advance()
    await sim.market.step()
    assert sim.market.held() == []
    assert sim.world.leaked() == []
    assert sim.market.balance_usd == Decimal(100) - sim.world.meter_total()
