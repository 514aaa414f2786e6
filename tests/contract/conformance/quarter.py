"""Four simulated markets behind one open app, one of which can be troubled on the way.

`Quarter` is the app with everything that a test looks at. A trouble is a transport between the app
and the victim, so that nothing but the victim's own replies can be different.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from decimal import Decimal
from pathlib import Path
from random import Random
from typing import Any, Final

import httpx2

from gp4u.app import App, open_app
from gp4u.model import Demand, Offer, Port, RentalKey, Requirements, Workload
from gp4u.providers.contract import Query
from gp4u.providers.registry import Registry
from gp4u.rentals.rental import Rental
from gp4u.settings import load_settings
from gp4u.sim.faults import Faults
from gp4u.sim.inprocess import InProcessTransport
from gp4u.sim.world import World
from tests.contract.conformance.dialects import AKASH, IONET, RENDER, VASTAI
from tests.contract.conformance.simulated import ORIGIN, Dialect, make_world
from tests.virtual_loop import VirtualClock

MARKETS: Final[Mapping[str, Dialect]] = {each.slug: each for each in (VASTAI, IONET, AKASH, RENDER)}
_PORTS: Final = {slug: 9001 + place for place, slug in enumerate(MARKETS)}
WANTED: Final = Requirements(disk_gib=16, ports=1, verified_only=False)
WORKLOAD: Final = Workload(image="busybox:1.36", ports=(Port(number=8000),), disk_gib=16)
SLOW_S: Final = 12.0
_PRICES: Final = re.compile(r"price|dph|cost|usd|amount|hour", re.IGNORECASE)

Way = Callable[[httpx2.AsyncBaseTransport], httpx2.AsyncBaseTransport]


def _answer(request: httpx2.Request, status: int, body: bytes) -> httpx2.Response:
    """Return a reply that is read from a stream, as one from a network is."""
    return httpx2.Response(status, stream=httpx2.ByteStream(body), request=request)


class _Through(httpx2.AsyncBaseTransport):
    """A way to a market that does something to what passes."""

    def __init__(self, inner: httpx2.AsyncBaseTransport) -> None:
        self._inner = inner

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        return await self._inner.handle_async_request(request)


class Dead(_Through):
    """Nobody listens."""

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        raise httpx2.ConnectError("connection refused", request=request)


class Hanging(_Through):
    """Takes the call and says nothing."""

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        await asyncio.get_running_loop().create_future()
        raise AssertionError("a future that nobody resolves was resolved")


class Slow(_Through):
    """Says the truth, late."""

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        await asyncio.sleep(SLOW_S)
        return await super().handle_async_request(request)


class Garbage(_Through):
    """Answers in no language."""

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        return _answer(request, 200, b'{"offers": [{"id": 1, \x00\xff')


class Denying(_Through):
    """Does not know the key any more."""

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        return _answer(request, 401, b'{"error": "unauthorized"}')


class _Liar(_Through):
    """Answers in time, in the right shape, with other prices."""

    lie: object = None

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        reply = await super().handle_async_request(request)
        body = await reply.aread()
        with suppress(ValueError):  # no JSON: a log, a page
            body = json.dumps(self._spoilt(json.loads(body))).encode()
        return _answer(request, reply.status_code, body)

    def _spoilt(self, told: Any, name: str = "") -> Any:
        match told:
            case dict():
                return {key: self._spoilt(value, key) for key, value in told.items()}
            case list():
                return [self._spoilt(value, name) for value in told]
            case int() | float() if not isinstance(told, bool) and _PRICES.search(name):
                return self.lie
            case str() if _PRICES.search(name) and re.fullmatch(r"[0-9.]+", told):
                return str(self.lie)
        return told


class PricesNan(_Liar):
    """Every price is not a number, which no comparison puts behind another."""

    lie = float("nan")


class PricesNegative(_Liar):
    """Every price is below zero, which would win every decision."""

    lie = -1.0


class Quarter:
    """The app, the worlds behind it, and what is asked of both."""

    def __init__(self, app: App, worlds: Mapping[str, World], faults: Mapping[str, Faults]) -> None:
        self.app, self.worlds, self.faults = app, worlds, faults

    async def offers(self) -> tuple[dict[str, set[tuple[str, Decimal]]], float]:
        """Return (offer id, price) by market, and how many seconds they took together."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        snapshot = await self.app.book.snapshot(Query(requirements=WANTED))
        found: dict[str, set[tuple[str, Decimal]]] = {slug: set() for slug in MARKETS}
        for offer in snapshot.offers:
            found[offer.provider].add((offer.offer_id, offer.price_usd_per_hour))
        return found, loop.time() - began

    async def rent(self, slug: str) -> tuple[Rental, float]:
        """Rent at one market; return it once it runs, and after how many seconds that was."""
        began = asyncio.get_running_loop().time()
        wanted = Requirements(disk_gib=16, ports=1, verified_only=False, providers=(slug,))
        rental = await self.app.broker.rent(f"cli:{slug}", Demand(requirements=wanted), WORKLOAD)
        return rental, asyncio.get_running_loop().time() - began

    async def release(self, rental: Rental) -> tuple[Rental, float]:
        """Release to the proven end; return it, and after how many seconds that was."""
        began = asyncio.get_running_loop().time()
        done = await self.app.broker.release(rental.key)
        return done, asyncio.get_running_loop().time() - began

    async def held(self, slug: str) -> set[str]:
        """Return the keys that a market lists, once a listing is complete."""
        listing = await self.app.providers[slug].instances()
        assert listing.complete, listing.why_incomplete
        return {instance.label or "" for instance in listing.instances}

    async def foreign(self, slug: str) -> RentalKey:
        """Let somebody else with the same account rent something at a market."""
        provider = self.app.providers[slug]
        wanted = Requirements(disk_gib=16, ports=1, verified_only=False, providers=(slug,))
        page = await provider.offers(Query(requirements=wanted))
        key = RentalKey("gp4u-other-abcdefghij-klmnopqrst")

        def cheapest(offers: Any) -> Offer:
            best: Offer = min(offers, key=lambda o: (o.price_usd_per_hour, o.offer_id))
            return best

        fitting = [o for o in page.offers if o.gpu_count == 1 and o.available and o.open_ports]
        await provider.rent(cheapest(fitting), WORKLOAD, key, choose=cheapest)
        return key


class _Router(httpx2.AsyncBaseTransport):
    def __init__(self, ways: Mapping[int, httpx2.AsyncBaseTransport]) -> None:
        self._ways = ways

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        way = self._ways.get(request.url.port or 0)
        if way is None:  # inside an instance, whose workload nobody runs here
            return _answer(request, 200, b"ok")
        return await way.handle_async_request(request)


class Markets:
    """The four, what leads to each, and the variables that say so."""

    def __init__(self, folder: Path, victim: str = "", way: Way | None = None) -> None:
        self.environ = {
            "GP4U_ALLOW_LOOPBACK": "1",
            "GP4U_DATABASE_URL": f"sqlite:///{folder / 'ledger.db'}",
        }
        self.worlds: dict[str, World] = {}
        self.faults: dict[str, Faults] = {}
        self._apps = {}
        ways: dict[int, httpx2.AsyncBaseTransport] = {}
        for slug, dialect in MARKETS.items():
            port = _PORTS[slug]
            self.worlds[slug], self.faults[slug] = make_world(), Faults(random=Random(3))
            self._apps[slug] = dialect.app(self.worlds[slug], self.faults[slug])
            inner = InProcessTransport(self._apps[slug])
            ways[port] = way(inner) if way is not None and slug == victim else inner
            own = f"http://127.0.0.1:{port}"
            self.environ |= {name: text.replace(ORIGIN, own) for name, text in dialect.env.items()}
        self.transport: httpx2.AsyncBaseTransport = _Router(ways)

    def finish(self, app: App) -> None:
        """Give opened adapters what else they need to run without a socket."""
        for slug, dialect in MARKETS.items():
            if dialect.finish is not None:
                dialect.finish(app.providers[slug], self._apps[slug])

    async def aclose(self) -> None:
        """End what runs in the worlds."""
        for world in self.worlds.values():
            await world.aclose()


@asynccontextmanager
async def quarter(folder: Path, victim: str = "", way: Way | None = None) -> AsyncIterator[Quarter]:
    """Open all four; the way to the victim leads through `way`."""
    markets = Markets(folder, victim, way)
    async with open_app(
        load_settings(markets.environ, folder),
        clock=VirtualClock(),
        random=Random(1),
        transport=markets.transport,
        registry=Registry(),
    ) as app:
        markets.finish(app)
        yield Quarter(app, markets.worlds, markets.faults)
    await markets.aclose()
