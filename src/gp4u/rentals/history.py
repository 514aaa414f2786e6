"""What GPUs cost over time: one point per market, model and refresh, thinned as it grows old.

Points stay as they were written for a week. Older ones are folded to one per hour, and after `keep`
they are deleted, so the history has a size that does not grow with the years: an hour's point has
the mean of the counts, the least of the minima, the median of the medians and of the 90 % points.
Folding and deleting go on hour by hour, each in a transaction of its own, with turns for everybody
else in between; a process that dies in the middle has folded fewer hours.

Prices are USD per GPU and hour. Who writes points and when is `recorder.py`; who draws them, the
API and the command line.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_EVEN, Decimal
from itertools import groupby
from statistics import median
from typing import Any, Final

import sqlalchemy as sa
from msgspec import Struct

from gp4u.rentals.database import Database
from gp4u.rentals.schema import prices

RAW_FOR: Final = timedelta(days=7)
"""After this long points are folded."""
KEPT_FOR: Final = timedelta(days=90)
MAX_MODELS: Final = 500
"""Of one market in one refresh; those with the fewest offers beyond it are not written."""
MAX_POINTS: Final = 500
"""Of one market in an answer."""
_HOUR_S: Final = 3600
_RAW: Final = 0
_MICROS: Final = 1_000_000
_COLUMNS: Final = tuple(prices.c[n] for n in ("at", "span_s", "count", "min", "median", "p90"))


class PriceRow(Struct, frozen=True, kw_only=True):
    """What one model costs at one market now."""

    provider: str
    gpu_model: str
    count: int
    """Offers."""
    min: Decimal
    median: Decimal
    p90: Decimal


class PricePoint(Struct, frozen=True, kw_only=True):
    """What a model cost at one market at a moment, or over `span_s` seconds from it on."""

    at: datetime
    span_s: int
    count: int
    """Offers at that moment, or the mean over the span, to the next whole one."""
    min: Decimal
    median: Decimal
    p90: Decimal


class PriceSeries(Struct, frozen=True, kw_only=True):
    """One market's points, oldest first."""

    provider: str
    points: Sequence[PricePoint]


class Mark(Struct, frozen=True):
    """A point as it is stored: `at` in seconds since 1970, prices in millionths of a dollar."""

    at: int
    span_s: int
    count: float
    min: int
    median: int
    p90: int


class PriceHistory:
    """The price history in a ledger's database; see the module's docstring."""

    def __init__(self, database: Database, *, keep: timedelta = KEPT_FOR) -> None:
        """Points older than `keep` are deleted."""
        self._database, self._keep = database, keep

    async def append(self, at: datetime, rows: Sequence[PriceRow]) -> int:
        """Write one refresh; return how many models were left out because there are too many.

        A model that was written for the same second already gets the newer prices.

        Raises:
            LedgerUnusable: it could not be written.
        """
        by_provider: defaultdict[str, list[PriceRow]] = defaultdict(list)
        for row in rows:
            by_provider[row.provider].append(row)
        second = int(at.timestamp())
        for provider, found in by_provider.items():
            found.sort(key=lambda row: (-row.count, row.gpu_model))
            written = {row.gpu_model: _values(row, second) for row in found[:MAX_MODELS]}
            async with self._database.writing() as db:
                await db.execute(
                    sa.delete(prices).where(
                        prices.c.span_s == _RAW,
                        prices.c.at == second,
                        prices.c.provider == provider,
                        prices.c.gpu_model.in_(list(written)),
                    )
                )
                await db.execute(sa.insert(prices), list(written.values()))
        return sum(max(0, len(found) - MAX_MODELS) for found in by_provider.values())

    async def series(
        self, gpu_model: str, since: datetime, until: datetime, provider: str | None = None
    ) -> Sequence[PriceSeries]:
        """Return what a canonical model cost, by market in alphabetical order.

        Where a market has more than `MAX_POINTS` points, neighbours are folded.

        Raises:
            LedgerUnusable: it cannot be read.
        """
        start, end = int(since.timestamp()), int(until.timestamp())
        wanted = sa.and_(prices.c.gpu_model == gpu_model, prices.c.at.between(start, end))
        if provider is not None:
            wanted = sa.and_(wanted, prices.c.provider == provider)
        async with self._database.reading() as db:
            markets = (await db.execute(sa.select(prices.c.provider).where(wanted).distinct())).rows
        found = []
        for slug in sorted(row[0] for row in markets):
            query = sa.select(*_COLUMNS).where(wanted, prices.c.provider == slug)
            async with self._database.reading() as db:
                rows = (await db.execute(query.order_by(prices.c.at))).rows
            points = [_point(each) for each in thinned([Mark(*row) for row in rows], start, end)]
            found.append(PriceSeries(provider=slug, points=points))
            await asyncio.sleep(0)  # thousands of rows for each market: others get their turn
        return found

    async def fold(self, at: datetime) -> None:
        """Fold what is older than a week by the hour, and delete what is older than is kept.

        Raises:
            LedgerUnusable: it could not be done; the next time takes up what is left.
        """
        horizon = int((at - RAW_FOR).timestamp()) // _HOUR_S * _HOUR_S
        while (oldest := await self._oldest(_RAW, horizon)) is not None:
            hour = oldest // _HOUR_S * _HOUR_S
            for provider in await self._providers(hour):
                await self._fold_hour(provider, hour)
                await asyncio.sleep(0)
        forgotten = int((at - self._keep).timestamp())
        for span_s in (_RAW, _HOUR_S):
            while (oldest := await self._oldest(span_s, forgotten)) is not None:
                until = min(oldest + _HOUR_S, forgotten)
                async with self._database.writing() as db:
                    old = sa.and_(prices.c.span_s == span_s, prices.c.at < until)
                    await db.execute(sa.delete(prices).where(old))
                await asyncio.sleep(0)

    async def _oldest(self, span_s: int, before: int) -> int | None:
        query = sa.select(sa.func.min(prices.c.at)).where(
            prices.c.span_s == span_s, prices.c.at < before
        )
        async with self._database.reading() as db:
            oldest: int | None = (await db.execute(query)).scalar()
        return oldest

    async def _providers(self, hour: int) -> list[str]:
        query = sa.select(prices.c.provider).where(_in_hour(hour)).distinct()
        async with self._database.reading() as db:
            return sorted((await db.execute(query)).scalars())

    async def _fold_hour(self, provider: str, hour: int) -> None:
        # An hour that was folded already and got another point takes part again.
        whole = sa.and_(prices.c.span_s == _HOUR_S, prices.c.at == hour)
        old = sa.and_(prices.c.provider == provider, sa.or_(_in_hour(hour), whole))
        async with self._database.writing() as db:
            query = sa.select(prices.c.gpu_model, *_COLUMNS).where(old).order_by(prices.c.gpu_model)
            rows = (await db.execute(query)).rows
            new = [
                {"gpu_model": model, "provider": provider, **_fields(one)}
                for model, group in groupby(rows, key=lambda row: row[0])
                for one in [folded([Mark(*row[1:]) for row in group], hour, _HOUR_S)]
            ]
            await db.execute(sa.delete(prices).where(old))
            await db.execute(sa.insert(prices), new)


def folded(marks: Sequence[Mark], at: int, span_s: int) -> Mark:
    """Return one point for several, of which there must be at least one."""
    return Mark(
        at,
        span_s,
        sum(each.count for each in marks) / len(marks),
        min(each.min for each in marks),
        _middle(each.median for each in marks),
        _middle(each.p90 for each in marks),
    )


def thinned(marks: Sequence[Mark], start: int, end: int) -> Sequence[Mark]:
    """Return at most `MAX_POINTS` points, oldest first; all in equal steps from `start` to `end`.

    `marks` are in order of time, all of them between the two, in seconds since 1970.
    """
    if len(marks) <= MAX_POINTS:
        return marks
    step_s = (end - start) // MAX_POINTS + 1
    steps = groupby(marks, key=lambda each: (each.at - start) // step_s)
    groups = [list(group) for _, group in steps]
    return [folded(group, group[0].at, step_s) for group in groups]


def _middle(values: Iterable[int]) -> int:
    return round(median(values))


def _in_hour(hour: int) -> sa.ColumnElement[bool]:
    return sa.and_(prices.c.span_s == _RAW, prices.c.at.between(hour, hour + _HOUR_S - 1))


def _values(row: PriceRow, second: int) -> dict[str, Any]:
    mark = Mark(second, _RAW, row.count, _micros(row.min), _micros(row.median), _micros(row.p90))
    return {"gpu_model": row.gpu_model, "provider": row.provider, **_fields(mark)}


def _fields(mark: Mark) -> dict[str, Any]:
    return {column.name: getattr(mark, column.name) for column in _COLUMNS}


def _micros(usd: Decimal) -> int:
    return int((usd * _MICROS).to_integral_value(ROUND_HALF_EVEN))


def _usd(micros: int) -> Decimal:
    return Decimal(micros).scaleb(-6)


def _point(mark: Mark) -> PricePoint:
    return PricePoint(
        at=datetime.fromtimestamp(mark.at, UTC),
        span_s=mark.span_s,
        count=round(mark.count),
        min=_usd(mark.min),
        median=_usd(mark.median),
        p90=_usd(mark.p90),
    )
