"""Markets that a test drives by hand, and a book over them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from random import Random
from typing import ClassVar

import msgspec

from gp4u.book import (
    Book,
    TtlPolicy,
)
from gp4u.errors import ProviderError
from gp4u.model import (
    Listing,
    Offer,
    Region,
    RentalKey,
    Requirements,
    Snapshot,
    Workload,
)
from gp4u.providers.contract import Account, Call, Choose, OfferPage, Provider, ProviderSpec, Query
from tests.virtual_loop import EPOCH, VirtualClock

ANY = Query(requirements=Requirements())


def offer(provider: str, number: int) -> Offer:
    """Return an offer that is told apart by its id."""
    return Offer(
        provider=provider,
        offer_id=str(number),
        gpu_model="RTX 4090",
        gpu_count=1,
        vram_gib=24.0,
        price_usd_per_hour=Decimal("0.4"),
        gpu_usd_per_hour=Decimal("0.4"),
        storage_usd_per_hour=Decimal(0),
        fetched_at=EPOCH,
    )


def varied(random: Random, number: int) -> Offer:
    """Return an offer of one of few models and places, some of whose numbers are not known."""
    return msgspec.structs.replace(
        offer(random.choice("ab"), number),
        gpu_model=random.choice(("RTX 4090", "RTX 3060", "H100 SXM")),
        price_usd_per_hour=Decimal(random.randrange(1, 40_000)) / 10_000,
        fetched_at=EPOCH + timedelta(seconds=random.choice((0.25, 1.5, random.random()))),
        region=random.choice((None, Region("US"), Region("US", "CA"), Region("DE"))),
        reliability=random.choice((None, random.random())),
        disk_gib=random.choice((None, 20.0, 999.5)),
        verified=random.choice((None, True, False)),
        available=random.random() < 0.5,
    )


class Window(Provider):
    """A market that is only looked at: whoever tries to rent there has gone astray."""

    spec: ClassVar[ProviderSpec]

    def __init__(self, slug: str) -> None:
        self.spec = ProviderSpec(  # type: ignore[misc]  # one class stands for several markets here
            slug=slug, title=slug.title(), env="X", base_url="", rate_limit_per_min=1, key_url=""
        )

    async def ping(self) -> Account:
        raise AssertionError("nobody should ask who we are")

    def rent_calls(self, offer: Offer, workload: Workload, key: RentalKey) -> tuple[Call, ...]:
        raise AssertionError("nobody should rent, or look at rentals")

    async def rent(
        self, offer: Offer, workload: Workload, key: RentalKey, *, choose: Choose | None = None
    ) -> str:
        raise AssertionError("nobody should rent, or look at rentals")

    async def instances(self) -> Listing:
        raise AssertionError("nobody should rent, or look at rentals")

    async def release(self, instance_id: str) -> None:
        raise AssertionError("nobody should rent, or look at rentals")

    async def logs(
        self, instance_id: str, *, tail: int = 1000, container: str | None = None
    ) -> str:
        raise AssertionError("nobody should rent, or look at rentals")


class Market(Window):
    """A market whose n-th answer is an offer with the id n; it can be slow, and it can fail."""

    def __init__(self, slug: str = "a", *, takes_s: float = 0.0, skipped: int = 0) -> None:
        super().__init__(slug)
        self.asked: list[Query] = []
        self.takes_s, self.skipped = takes_s, skipped
        self.error: ProviderError | None = None
        self.success_rate = 1.0

    async def offers(self, query: Query) -> OfferPage:
        self.asked.append(query)
        number = len(self.asked)
        await asyncio.sleep(self.takes_s)
        if self.error is not None:
            raise self.error
        found = (offer(self.spec.slug, number),)
        return OfferPage(offers=found, complete=False, skipped_rows=self.skipped)


def book_of(*markets: Market, ttl: TtlPolicy | None = None) -> Book:
    """Return a book over some markets."""

    def rate_of(market: Market) -> Callable[[], float]:
        return lambda: market.success_rate

    return Book(
        {m.spec.slug: m for m in markets},
        {m.spec.slug: rate_of(m) for m in markets},
        ttl=ttl or TtlPolicy(),
        clock=VirtualClock(),
    )


def ids(snapshot: Snapshot) -> list[tuple[str, str]]:
    """Return what is in a snapshot."""
    return [each.id for each in snapshot.offers]


def asking(**bounds: object) -> Query:
    """Return a query of its own."""
    return Query(requirements=Requirements(**bounds))  # type: ignore[arg-type]  # fields by name
