"""Writes down what GPUs cost after each fetch of a market: the feeder of the price history.

The book calls `refreshed` in the middle of its work, so that only notes which market has something
new; `run` does the rest when it comes to it. Of two fetches of one market that come faster than
they can be written down, the newer one is kept, so nothing piles up. A ledger in trouble costs a
gap in the history, told once when it begins and once when it ends; rentals have first call on it.

What is kept for how long, and how it is thinned, is `history.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Final

from gp4u.book import Book
from gp4u.clock import Clock
from gp4u.errors import LedgerUnusable
from gp4u.providers.contract import Query
from gp4u.rentals.history import PriceHistory, PriceRow
from gp4u.selection.prices import ModelPrices, model_prices

FOLD_EVERY_S: Final = 3600.0


class PriceRecorder:
    """Keeps the history up with the book; see the module's docstring."""

    def __init__(self, *, book: Book, history: PriceHistory, clock: Clock, query: Query) -> None:
        """`query` is the one that the book keeps warm; its offers are what prices are taken of."""
        self._book, self._history, self._clock, self._query = book, history, clock, query
        self._waiting: dict[str, datetime] = {}
        """Market to the moment of its newest fetch; never more than there are markets."""
        self._wake = asyncio.Event()
        self._missed = 0
        self.on_written: Callable[[str, int], None] | None = None
        """Told the market and how many prices of it were written; it must not raise."""

    def refreshed(self, slug: str, offers: int, error: str) -> None:
        """Take note of a fetch; returns at once. One that failed is a gap in the history."""
        if error or not offers:
            return
        self._waiting[slug] = self._clock.now()
        self._wake.set()

    async def run(self) -> None:
        """Write and thin until cancelled."""
        now = asyncio.get_running_loop().time
        fold_at = now()
        while True:
            try:
                async with asyncio.timeout_at(fold_at):
                    await self._wake.wait()
            except TimeoutError:
                fold_at = now() + FOLD_EVERY_S
                await self._attempt(self._history.fold(self._clock.now()))
            self._wake.clear()
            while self._waiting:
                slug = next(iter(self._waiting))
                await self._attempt(self._write(slug, self._waiting.pop(slug)))

    async def _write(self, slug: str, at: datetime) -> None:
        found = await model_prices(self._book.current(self._query), slug)
        await self._history.append(at, [_row(prices) for prices in found])
        if self.on_written is not None:
            self.on_written(slug, len(found))

    async def _attempt(self, job: Awaitable[object]) -> None:
        """Do something with the ledger; what it refuses is lost, and told when that begins."""
        import structlog  # 60 ms that only a process that stays has to pay

        log = structlog.get_logger()
        try:
            await job
        except LedgerUnusable as error:
            if not self._missed:
                log.warning("price_history_gap_begins", error=str(error))
            self._missed += 1
        else:
            if self._missed:
                log.info("price_history_gap_ends", missed=self._missed)
            self._missed = 0


def _row(prices: ModelPrices) -> PriceRow:
    return PriceRow(
        provider=prices.provider,
        gpu_model=prices.gpu_model,
        count=prices.count,
        min=prices.min,
        median=prices.median,
        p90=prices.p90,
    )
