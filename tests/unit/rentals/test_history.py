"""The price history: what is written, what is read, and what remains when it grows old."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gp4u.rentals import history
from gp4u.rentals.history import Mark, PriceHistory, PriceRow, PriceSeries, folded, thinned
from gp4u.rentals.ledger import Ledger

NOON = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)
WEEK = timedelta(days=7)


def row(model: str = "RTX 4090", provider: str = "vastai", **values: object) -> PriceRow:
    """A model's prices at a market."""
    usual = {"count": 10, "min": "0.30", "median": "0.40", "p90": "0.55"} | values
    money = {name: Decimal(str(usual[name])) for name in ("min", "median", "p90")}
    return PriceRow(provider=provider, gpu_model=model, count=int(str(usual["count"])), **money)


@pytest.fixture
def prices(ledger: Ledger) -> PriceHistory:
    return PriceHistory(ledger.database)


async def everything(prices: PriceHistory, model: str = "RTX 4090") -> list[PriceSeries]:
    """Return all that is known of a model."""
    return list(await prices.series(model, NOON - 400 * HOUR * 24, NOON + 400 * HOUR * 24))


async def test_what_was_written_is_read_oldest_first_and_by_market(prices: PriceHistory) -> None:
    """A chart draws what it gets in the order it gets it; prices keep their millionths."""
    await prices.append(NOON + HOUR, [row(min="0.310001"), row(provider="akash"), row("H100")])
    await prices.append(NOON, [row()])

    akash, vastai = await everything(prices)

    assert (akash.provider, [point.at for point in akash.points]) == ("akash", [NOON + HOUR])
    assert vastai.provider == "vastai"
    first, second = vastai.points
    assert (first.at, first.span_s, first.count) == (NOON, 0, 10)
    assert (first.min, first.median, first.p90) == tuple(map(Decimal, ("0.30", "0.40", "0.55")))
    assert second.min == Decimal("0.310001")


async def test_only_what_was_asked_for_is_told(prices: PriceHistory) -> None:
    """By model, market and time, both ends included."""
    for hour in range(5):
        await prices.append(NOON + hour * HOUR, [row(), row(provider="akash"), row("H100")])

    found = await prices.series("RTX 4090", NOON + HOUR, NOON + 3 * HOUR, provider="akash")

    assert [(each.provider, len(each.points)) for each in found] == [("akash", 3)]
    assert await prices.series("RTX 5090", NOON, NOON + HOUR) == []


async def test_the_newer_of_two_refreshes_in_one_second_counts(prices: PriceHistory) -> None:
    """Times are whole seconds; a second write must neither fail nor double the point."""
    await prices.append(NOON, [row(min="0.30"), row("H100")])
    await prices.append(NOON + timedelta(milliseconds=400), [row(min="0.20")])

    (only,) = await everything(prices)

    assert [point.min for point in only.points] == [Decimal("0.20")]
    assert len((await everything(prices, "H100"))[0].points) == 1


async def test_one_refresh_writes_so_many_models_and_counts_the_rest(
    prices: PriceHistory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A market that invents names must not fill the disk; the most offered models are kept."""
    monkeypatch.setattr(history, "MAX_MODELS", 3)
    rows = [row(f"GPU {n}", count=n) for n in range(5)]

    assert await prices.append(NOON, [*rows, row("GPU 0", "akash")]) == 2

    kept = [n for n in range(5) if await everything(prices, f"GPU {n}")]
    assert kept == [0, 2, 3, 4], "and GPU 0 only for akash, which has few"


async def test_a_week_stays_as_it_was_and_what_is_older_is_folded(prices: PriceHistory) -> None:
    """One point per hour: mean count, least minimum, median of medians and of 90 % points."""
    old = NOON - WEEK - HOUR
    for minute, count, low, middle in (
        (0, 1, "0.5", "1"),
        (20, 2, "0.3", "3"),
        (40, 6, "0.4", "2"),
    ):
        at = old + timedelta(minutes=minute)
        await prices.append(at, [row(count=count, min=low, median=middle, p90=middle)])
    await prices.append(NOON - WEEK, [row()])
    await prices.append(NOON - WEEK + timedelta(minutes=5), [row()])

    await prices.fold(NOON)

    (series,) = await everything(prices)
    first, *rest = series.points
    assert (first.at, first.span_s, first.count) == (old, 3600, 3)
    assert (first.min, first.median, first.p90) == (Decimal("0.3"), Decimal(2), Decimal(2))
    assert [point.span_s for point in rest] == [0, 0]


async def test_folding_twice_is_folding_once(prices: PriceHistory) -> None:
    """It runs every hour, and again after a crash."""
    for minute in range(0, 300, 7):
        at = NOON - WEEK - 9 * HOUR + timedelta(minutes=minute)
        await prices.append(at, [row(count=minute), row(provider="akash"), row("H100")])
    await prices.fold(NOON)
    once = [await everything(prices), await everything(prices, "H100")]

    await prices.fold(NOON)

    assert [await everything(prices), await everything(prices, "H100")] == once
    assert {point.span_s for series in once[0] for point in series.points} == {3600}


async def test_a_late_point_joins_the_hour_that_was_folded_already(prices: PriceHistory) -> None:
    """A clock that was set back must not make two points of one hour, nor fail."""
    old = NOON - WEEK - HOUR
    await prices.append(old, [row(min="0.5")])
    await prices.fold(NOON)
    await prices.append(old + timedelta(minutes=1), [row(min="0.2")])
    await prices.fold(NOON)

    (series,) = await everything(prices)

    assert [(p.at, p.span_s, p.min) for p in series.points] == [(old, 3600, Decimal("0.2"))]


async def test_what_is_older_than_is_kept_is_deleted(ledger: Ledger) -> None:
    """The history's size must not grow with the years, folded or not."""
    prices = PriceHistory(ledger.database, keep=timedelta(days=10))
    for days in (12, 11, 10, 9, 1):
        await prices.append(NOON - timedelta(days=days), [row()])
    await prices.fold(NOON - timedelta(days=4))  # the oldest are folded by then
    await prices.fold(NOON)

    (series,) = await everything(prices)

    assert [(NOON - point.at).days for point in series.points] == [10, 9, 1]


async def test_a_history_that_is_kept_for_less_than_a_week_is_deleted_all_the_same(
    ledger: Ledger,
) -> None:
    """Nothing is old enough to be folded then."""
    prices = PriceHistory(ledger.database, keep=timedelta(days=1))
    for hours in (49, 25, 24, 1):
        await prices.append(NOON - hours * HOUR, [row()])
    await prices.fold(NOON)

    (series,) = await everything(prices)

    assert [point.at for point in series.points] == [NOON - 24 * HOUR, NOON - HOUR]


async def test_a_long_series_is_thinned(
    prices: PriceHistory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ninety days of points are more than a chart can show, or a reply should carry."""
    monkeypatch.setattr(history, "MAX_POINTS", 10)
    for minute in range(0, 600, 10):
        await prices.append(NOON + timedelta(minutes=minute), [row(min=1 + minute)])

    (series,) = await prices.series("RTX 4090", NOON, NOON + timedelta(seconds=35_999))

    assert len(series.points) == 10
    assert series.points[0].at == NOON
    assert [point.min for point in series.points] == [1 + 60 * n for n in range(10)]


marks = st.builds(
    lambda at, count, cents: Mark(at, 0, count, *(sorted(cents))),
    st.integers(0, 10_000),
    st.integers(0, 400),
    st.lists(st.integers(1, 10**7), min_size=3, max_size=3),
)


@given(st.lists(marks, min_size=1, max_size=50))
def test_folding_keeps_what_a_span_was_like(points: list[Mark]) -> None:
    """Law: least minimum, mean count, and the order of minimum, median and 90 % point."""
    one = folded(points, 0, 3600)

    assert one.min == min(point.min for point in points)
    assert one.count == pytest.approx(fmean(point.count for point in points))
    assert min(p.median for p in points) <= one.median <= max(p.median for p in points)
    assert one.min <= one.median <= one.p90
    assert folded([one], 0, 3600) == one, "folding one point changes nothing"


@given(st.lists(marks, min_size=1, max_size=60, unique_by=lambda m: m.at), st.integers(1, 20))
def test_thinning_loses_no_stretch_of_time_and_no_minimum(points: list[Mark], bound: int) -> None:
    """Law: at most so many points, in order, from the first one on, the least price among them."""
    points = sorted(points, key=lambda m: m.at)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(history, "MAX_POINTS", bound)
        found = thinned(points, 0, 10_000)

    assert len(found) <= bound
    assert [m.at for m in found] == sorted({m.at for m in found})
    assert found[0].at == points[0].at
    assert min(m.min for m in found) == min(m.min for m in points)
