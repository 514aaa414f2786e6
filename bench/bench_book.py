"""What a cached read of the book costs, against a bare `await` in the same process.

The book holds a market's worth of offers that stay young for the whole run, so each read is a hit.
Two readers are measured: one that keeps its query, and one that builds an equal query for each
read, as a request that comes in over HTTP does. Rounds of all sides alternate and the median
counts, so that a busy machine slows all alike.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial

from gp4u.book import Book, TtlPolicy
from gp4u.clock import SystemClock
from gp4u.model import Listing, Offer, RentalKey, Requirements, Workload
from gp4u.providers.contract import Account, Call, Choose, OfferPage, Provider, ProviderSpec, Query

BOUND = 20.0
READS = 5_000
ROUNDS = 15
OFFERS = 192


class _Market(Provider):
    """A market that answers at once, and only searches."""

    spec = ProviderSpec(
        slug="bench",
        title="Bench",
        env="BENCH",
        base_url="https://bench.invalid",
        rate_limit_per_min=1,
        key_url="",
    )

    async def ping(self) -> Account:
        return Account()

    async def offers(self, query: Query) -> OfferPage:
        del query
        return OfferPage(offers=tuple(_offer(number) for number in range(OFFERS)))

    def rent_calls(self, offer: Offer, workload: Workload, key: RentalKey) -> tuple[Call, ...]:
        raise NotImplementedError

    async def rent(
        self, offer: Offer, workload: Workload, key: RentalKey, *, choose: Choose | None = None
    ) -> str:
        raise NotImplementedError

    async def instances(self) -> Listing:
        raise NotImplementedError

    async def release(self, instance_id: str) -> None:
        raise NotImplementedError

    async def logs(
        self, instance_id: str, *, tail: int = 1000, container: str | None = None
    ) -> str:
        raise NotImplementedError


def _offer(number: int) -> Offer:
    return Offer(
        provider="bench",
        offer_id=str(number),
        gpu_model="RTX 4090",
        gpu_count=1,
        vram_gib=24.0,
        price_usd_per_hour=Decimal("0.40"),
        gpu_usd_per_hour=Decimal("0.39"),
        storage_usd_per_hour=Decimal("0.01"),
        fetched_at=datetime(2026, 1, 1, tzinfo=UTC),
    )


def _query() -> Query:
    requirements = Requirements(
        gpu_models=("RTX 4090", "RTX 3090"),
        min_vram_gib=24.0,
        max_price_usd_per_hour=Decimal("0.50"),
        min_reliability=0.95,
        min_download_mbps=100.0,
        locations=("US-CA", "US", "EU"),
    )
    return Query(requirements=requirements)


async def _answer() -> int:
    return 1


async def _each_us(read: Callable[[], Awaitable[object]]) -> float:
    began = time.perf_counter()
    for _ in range(READS):
        await read()
    return (time.perf_counter() - began) / READS * 1e6


async def _building_us() -> float:
    began = time.perf_counter()
    for _ in range(READS):
        _query()
    return (time.perf_counter() - began) / READS * 1e6


async def _measure() -> list[tuple[str, float, float]]:
    """Return (name, microseconds of a read, microseconds of a bare await)."""
    forever = TtlPolicy(max_s=86_400.0)
    book = Book({"bench": _Market()}, {"bench": lambda: 1.0}, ttl=forever, clock=SystemClock())
    query = _query()
    filled = await book.snapshot(query)
    assert len(filled.offers) == OFFERS
    bare, kept, fresh = [], [], []
    for _ in range(ROUNDS):
        bare.append(await _each_us(_answer))
        kept.append(await _each_us(partial(book.snapshot, query)))
        built_us = await _building_us()
        fresh.append(await _each_us(lambda: book.snapshot(_query())) - built_us)
    assert book.stats()["bench"].misses == 1
    yardstick = statistics.median(bare)
    return [
        ("cached read", statistics.median(kept), yardstick),
        ("cached read, query built anew", statistics.median(fresh), yardstick),
    ]


def main() -> int:
    """Print each measure as a line of JSON; 1 if one is over its bound."""
    all_ok = True
    for name, ours_us, bare_us in asyncio.run(_measure()):
        ok = ours_us / bare_us <= BOUND
        all_ok = all_ok and ok
        print(
            json.dumps(
                {
                    "name": name,
                    "ours": round(ours_us, 3),
                    "yardstick": round(bare_us, 4),
                    "unit": "us",
                    "ratio": round(ours_us / bare_us, 1),
                    "bound": BOUND,
                    "ok": ok,
                }
            )
        )
    return 0 if all_ok else 1


if __name__ == "__main__":
    sys.exit(main())
