"""A book over markets whose offers a test sets, and the market's routes over it.

`many` draws offers of every kind from a seed: few models and places, some numbers unknown, some
prices the same. What a listing must answer is worked out in the tests by plain loops over them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from decimal import Decimal
from random import Random

import httpx2
import msgspec

from gp4u.api.market.catalogue import Catalogue
from gp4u.api.market.gpus import gpu_routes
from gp4u.book import STANDING, Book
from gp4u.model import Offer, Region
from gp4u.providers.contract import OfferPage, Query
from tests.unit.api.quarter import client_of
from tests.unit.fair import Market, book_of, offer

SECRET = b"a secret of the test"
PATH = "/api/v1/gpus"


class Shop(Market):
    """A market that has what a test puts into it."""

    def __init__(self, slug: str, offers: Sequence[Offer] = ()) -> None:
        super().__init__(slug)
        self.stock = tuple(offers)

    async def offers(self, query: Query) -> OfferPage:
        self.asked.append(query)
        await asyncio.sleep(self.takes_s)
        if self.error is not None:
            raise self.error
        return OfferPage(offers=self.stock)


def many(slug: str, count: int, seed: int = 0) -> list[Offer]:
    """Return different offers of one market."""
    random = Random(seed)

    def maybe(value: float) -> float | None:
        return None if random.random() < 0.2 else value

    return [
        msgspec.structs.replace(
            offer(slug, number),
            gpu_model=random.choice(("RTX 4090", "RTX 3060", "H100 SXM", "Nobody's Card")),
            gpu_count=random.choice((1, 1, 2, 8)),
            vram_gib=random.choice((12.0, 24.0, 80.0)),
            price_usd_per_hour=Decimal(random.randrange(1, 60)) / 100,
            region=random.choice((None, Region("US"), Region("US", "CA"), Region("DE"))),
            reliability=maybe(random.random()),
            download_mbps=maybe(random.randrange(10, 2000)),
            upload_mbps=maybe(random.randrange(10, 2000)),
            cpu_cores=maybe(random.randrange(1, 64)),
            ram_gib=maybe(random.randrange(1, 512)),
            disk_gib=maybe(random.randrange(10, 4000)),
            open_ports=random.choice((None, 0, 1, 100)),
            verified=random.choice((None, True, False)),
            datacenter=random.choice((None, True, False)),
            interruptible=random.random() < 0.3,
            available=random.random() < 0.8,
        )
        for number in range(count)
    ]


class Front:
    """An open shop front: shops, their book, the catalogue, and a client of its routes."""

    def __init__(self, book: Book, catalogue: Catalogue, http: httpx2.AsyncClient) -> None:
        self.book, self.catalogue, self.http = book, catalogue, http

    async def refreshed(self) -> None:
        """Have every shop asked again."""
        self.book.invalidate()
        await self.book.snapshot(STANDING)

    async def get(self, query: str = "", **headers: str) -> httpx2.Response:
        """Return a listing, in no coding unless one is asked for."""
        told = {"accept-encoding": "identity"}
        told |= {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.http.get(PATH + query, headers=told)

    async def ids(self, query: str = "") -> list[str]:
        """Return what a listing has, by id."""
        reply = await self.get(query)
        assert reply.status_code == 200, reply.text
        return [item["id"] for item in reply.json()["items"]]


@asynccontextmanager
async def front_of(*shops: Shop, others: Sequence[str] = ()) -> AsyncIterator[Front]:
    """Open the routes over some shops, all of them asked once; `others` are closed markets."""
    book = book_of(*shops)
    await book.snapshot(STANDING)
    catalogue = Catalogue(
        book=book,
        clock=book._clock,
        providers=[*(shop.spec.slug for shop in shops), *others],
        secret=SECRET,
    )
    async with client_of(gpu_routes(catalogue=catalogue)) as http:
        yield Front(book, catalogue, http)
