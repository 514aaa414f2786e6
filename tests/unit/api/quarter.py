"""Markets that answer as told behind real guards and a real book, and a client of routes over them.

For routes that read what guards and book know. No socket and no wall clock: everything runs on the
virtual loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from decimal import Decimal
from functools import partial
from random import Random
from typing import Any

import httpx2
from fastapi import APIRouter, FastAPI

from gp4u.api import failing
from gp4u.book import Book, TtlPolicy
from gp4u.errors import ProviderError
from gp4u.model import Offer
from gp4u.providers.contract import Account, OfferPage, Provider, Query
from gp4u.resilience.guard import Guard, build_guard
from tests.unit.fair import Window
from tests.virtual_loop import EPOCH, VirtualClock


def offer(provider: str, number: int, **changes: Any) -> Offer:
    """An offer that is told apart by its id."""
    known: dict[str, Any] = {
        "provider": provider,
        "offer_id": str(number),
        "gpu_model": "RTX 4090",
        "gpu_count": 1,
        "vram_gib": 24.0,
        "price_usd_per_hour": Decimal("0.4"),
        "gpu_usd_per_hour": Decimal("0.4"),
        "storage_usd_per_hour": Decimal(0),
        "reliability": 0.99,
        "fetched_at": EPOCH,
    }
    return Offer(**(known | changes))


class Market(Window):
    """A market whose calls pass its guard, and end as it is told."""

    def __init__(self, slug: str, guard: Guard) -> None:
        super().__init__(slug)
        self.guard = guard
        self.offered: Sequence[Offer] = (offer(slug, 1),)
        self.account = Account(id="17", name="ada", credit_usd=Decimal("24.18"))
        self.error: ProviderError | None = None
        self.takes_s = 0.2
        self.called = 0

    async def _answer(self) -> None:
        self.called += 1
        await asyncio.sleep(self.takes_s)
        if self.error is not None:
            raise self.error

    async def ping(self) -> Account:
        await self.guard.call(self._answer, endpoint="ping", safe=True, timeout_s=30)
        return self.account

    async def offers(self, query: Query) -> OfferPage:
        del query
        await self.guard.call(self._answer, endpoint="offers", safe=True, timeout_s=30)
        return OfferPage(offers=tuple(self.offered))


class Quarter:
    """Some markets, their guards, and the book over them."""

    def __init__(self, *slugs: str, **changes: Any) -> None:
        """`changes` are for the guards; without them, the first seed's defaults."""
        self.clock = VirtualClock()
        made: dict[str, Any] = {"clock": self.clock, "max_retries": 1} | changes
        self.guards: Mapping[str, Guard] = {
            slug: build_guard(slug, random=Random(1), **made) for slug in slugs
        }
        self.markets = {slug: Market(slug, guard) for slug, guard in self.guards.items()}
        self.providers: Mapping[str, Provider] = self.markets
        self.book = Book(
            self.providers,
            {slug: partial(getattr, guard, "success_rate") for slug, guard in self.guards.items()},
            ttl=TtlPolicy(),
            clock=self.clock,
        )


@asynccontextmanager
async def client_of(*routers: APIRouter) -> AsyncIterator[httpx2.AsyncClient]:
    """Return a client of an app that has these routes and our problems."""
    app = FastAPI()
    failing.install(app)
    for router in routers:
        app.include_router(router)
    transport = httpx2.ASGITransport(app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://gp4u.test") as client:
        yield client
