"""What is written down of prices, and what happens when it cannot be."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from gp4u.book import STANDING
from gp4u.errors import Malformed
from gp4u.rentals.history import RAW_FOR, PriceHistory, PricePoint, PriceRow
from gp4u.rentals.ledger import open_ledger
from gp4u.rentals.recorder import PriceRecorder
from tests.unit.api.quarter import Quarter, offer
from tests.virtual_loop import EPOCH, run_virtual

MODEL = "RTX 4090"


class Office:
    """A quarter whose book is kept warm, and whose prices are written to a file."""

    def __init__(self, quarter: Quarter, history: PriceHistory, path: Path) -> None:
        self.quarter, self.history, self.path = quarter, history, path
        self.recorder = PriceRecorder(
            book=quarter.book, history=history, clock=quarter.clock, query=STANDING
        )
        quarter.book.on_refresh = self.recorder.refreshed

    async def points(self, slug: str = "vastai") -> Sequence[PricePoint]:
        """What is on disk of one market."""
        now = self.quarter.clock.now()
        found = await self.history.series(MODEL, EPOCH - timedelta(days=90), now, slug)
        return found[0].points if found else []

    def sql(self, statement: str) -> None:
        """Reach into the file past everything of ours."""
        with sqlite3.connect(self.path) as connection:
            connection.execute(statement)
        connection.close()


@asynccontextmanager
async def office(tmp_path: Path, *slugs: str) -> AsyncIterator[Office]:
    """An office whose recorder and keeper run."""
    path = tmp_path / "ledger.db"
    async with open_ledger(f"sqlite:///{path}") as ledger:
        one = Office(Quarter(*slugs), PriceHistory(ledger.database), path)
        with suppress(asyncio.CancelledError):
            async with asyncio.TaskGroup() as group:
                parts = [
                    group.create_task(one.recorder.run()),
                    group.create_task(one.quarter.book.keep(STANDING)),
                ]
                yield one
                for part in parts:
                    part.cancel()


def test_each_fetch_of_a_market_adds_a_point_of_its_prices(tmp_path: Path) -> None:
    """Whoever asks next week what a GPU cost must find every change."""

    async def life() -> None:
        async with office(tmp_path, "vastai", "ionet") as one:
            market = one.quarter.markets["vastai"]
            market.offered = [
                offer("vastai", n, price_usd_per_hour=Decimal(n) / 10) for n in (4, 2, 3)
            ]
            await asyncio.sleep(200)
            market.offered = [
                offer("vastai", 9, gpu_count=2, price_usd_per_hour=Decimal("0.5")),
                offer("vastai", 5, available=False, price_usd_per_hour=Decimal("0.1")),
            ]
            await asyncio.sleep(200)
            first, second = await one.points()
            assert (first.count, first.min, first.median, first.p90) == (
                3,
                Decimal("0.2"),
                Decimal("0.3"),
                Decimal("0.4"),
            )
            assert first.at == EPOCH
            assert (second.count, second.min) == (1, Decimal("0.25")), (
                "by the GPU, and what is free"
            )
            assert second.at == EPOCH + timedelta(seconds=300), "cut to whole seconds"
            assert [p.min for p in await one.points("ionet")] == [Decimal("0.4")] * 2

    run_virtual(life)


def test_a_market_that_fails_leaves_a_gap_and_not_yesterdays_price(tmp_path: Path) -> None:
    """Its last known offers are still served, but nobody knows what it would ask now."""

    async def life() -> None:
        async with office(tmp_path, "vastai") as one:
            await asyncio.sleep(10)
            one.quarter.markets["vastai"].error = Malformed("vastai", "offers", "rubbish")
            await asyncio.sleep(1000)
            assert one.quarter.markets["vastai"].called > 2
            assert len(await one.points()) == 1

    run_virtual(life)


def test_a_ledger_in_trouble_costs_a_gap_that_is_told_at_its_start_and_end(
    tmp_path: Path,
) -> None:
    """The server goes on, and its log is not filled with one line for each fetch."""

    async def life() -> None:
        async with office(tmp_path, "vastai") as one:
            await asyncio.sleep(10)
            one.sql("ALTER TABLE prices RENAME TO hidden")
            with capture_logs() as log:
                await asyncio.sleep(910)
                one.sql("ALTER TABLE hidden RENAME TO prices")
                await asyncio.sleep(600)
            told = [line for line in log if line["event"].startswith("price_history")]
            assert [line["event"] for line in told] == [
                "price_history_gap_begins",
                "price_history_gap_ends",
            ]
            assert told[1]["missed"] == 3
            minutes = [(point.at - EPOCH).total_seconds() // 60 for point in await one.points()]
            assert minutes == [0, 20, 25]

    run_virtual(life)


@pytest.mark.parametrize("fetches", [1, 50])
def test_fetches_that_come_faster_than_they_are_written_leave_the_newest(
    tmp_path: Path, fetches: int
) -> None:
    """What waits to be written must not grow with trouble on disk."""

    async def life() -> None:
        path = tmp_path / "ledger.db"
        async with open_ledger(f"sqlite:///{path}") as ledger:
            one = Office(Quarter("vastai"), PriceHistory(ledger.database), path)
            await one.quarter.book.snapshot(STANDING)
            for _ in range(fetches):
                one.recorder.refreshed("vastai", 1, "")
                await asyncio.sleep(1)
            written: list[tuple[str, int]] = []
            one.recorder.on_written = lambda slug, rows: written.append((slug, rows))
            with suppress(TimeoutError):
                async with asyncio.timeout(10):
                    await one.recorder.run()
            assert written == [("vastai", 1)]
            [point] = await one.points()
            assert point.at == EPOCH + timedelta(seconds=fetches - 1)

    run_virtual(life)


def test_old_points_are_folded_every_hour(tmp_path: Path) -> None:
    """A server that runs for months must not keep each fetch of them."""

    async def life() -> None:
        path = tmp_path / "ledger.db"
        async with open_ledger(f"sqlite:///{path}") as ledger:
            one = Office(Quarter("vastai"), PriceHistory(ledger.database), path)
            old = EPOCH.replace(minute=0) - RAW_FOR - timedelta(hours=1)
            row = PriceRow(
                provider="vastai",
                gpu_model=MODEL,
                count=1,
                min=Decimal(1),
                median=Decimal(2),
                p90=Decimal(3),
            )
            for minute in range(0, 60, 10):
                await one.history.append(old + timedelta(minutes=minute), [row])
                await one.history.append(old + timedelta(hours=1, minutes=minute), [row])
            counts = []
            async with asyncio.TaskGroup() as group:
                run = group.create_task(one.recorder.run())
                for wait_s in (1, 3500, 200, 3600):
                    await asyncio.sleep(wait_s)
                    counts.append(len(await one.points()))
                run.cancel()
            assert counts == [7, 7, 2, 2], "one hour is due at the start, the next an hour later"

    run_virtual(life)
