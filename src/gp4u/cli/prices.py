"""`gp4u prices`: what a GPU model cost over time, drawn market by market.

A chart shows the median, since that is what one pays; minimum and 90th percentile stand beside it
as they are now. How a chart becomes text is `charts.py`.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

from gp4u.cli.charts import FINE, PLAIN, Strokes, axis, bars, resampled
from gp4u.cli.screen import Form, Screen
from gp4u.cli.terminal import USUAL
from gp4u.cli.views import age
from gp4u.desk.desk import Desk
from gp4u.desk.shapes import PricePointShape, PriceSeriesShape, PricesShape
from gp4u.desk.spans import span_text
from gp4u.errors import NoSuch

_HEIGHT: Final = 5
_TALL: Final = 10
_WIDEST: Final = 120
"""Columns; a wider chart is no clearer."""
_NARROWEST: Final = 8


async def show_prices(
    desk: Desk,
    screen: Screen,
    gpu_model: str,
    *,
    within: timedelta,
    provider: str | None,
    at: datetime,
) -> None:
    """Print what a canonical model cost; `at` is now.

    Raises:
        NoSuch: there is no such market; says so of the flag.
    """
    try:
        found = await desk.prices(gpu_model, within=within, provider=provider)
    except NoSuch as error:
        raise NoSuch("--provider", str(error.value), error.known) from error
    show(screen, found, within=within, at=at)


def show(screen: Screen, found: PricesShape, *, within: timedelta, at: datetime) -> None:
    """Print prices in the form that was asked for; `within` is how far back they were asked for."""
    if screen.form is Form.NAME:
        screen.names(series.provider for series in found.series if series.points)
        return
    if screen.is_data:
        screen.data(found)
        return
    drawn = [series for series in found.series if series.points]
    back = span_text(within)
    if not drawn:
        screen.note(f"no price of {found.gpu_model} was written down in the last {back}")
        screen.steps([("gp4u serve", "writes them down after each fetch, while it runs")])
        return
    screen.line(f"{found.gpu_model}, USD per GPU and hour, last {back}, times in UTC", "bold")
    for series in drawn:
        screen.line("")
        _draw_series(screen, found, series, at)


def _draw_series(
    screen: Screen, found: PricesShape, series: PriceSeriesShape, at: datetime
) -> None:
    first, now = series.points[0], series.points[-1]
    strokes = _strokes(screen)
    medians = [(point.at, float(point.median)) for point in series.points]
    low, high = (_usd(bound(value for _, value in medians)) for bound in (min, max))
    margin = max(len(low), len(high))
    width = min(screen.out.width or USUAL, _WIDEST) - margin - 2
    width = max(width, _NARROWEST)
    height = _TALL if screen.form is Form.WIDE else _HEIGHT
    values = resampled(medians, found.since, found.until, width)
    rows = bars(values, height, strokes)
    screen.line(f"{series.provider}: {_told(first, now, at)}")
    for place, row in enumerate(rows):
        label = high if place == 0 else low if place == height - 1 else ""
        painted = screen.out.painted(row.rstrip(), "cyan")
        screen.text(f"{label:>{margin}} {strokes.side}{painted}\n")
    foot, labels = axis(found.since, found.until, width, strokes)
    screen.text(f"{'':>{margin}} {strokes.corner}{foot}\n{'':>{margin}}  {labels}\n")


def _told(first: PricePointShape, now: PricePointShape, at: datetime) -> str:
    """Return the newest prices in words, and how the median has moved."""
    moved = ""
    if first is not now and first.median:
        moved = f" ({float(now.median / first.median - 1):+.1%})"
    offers = "offer" if now.count == 1 else "offers"
    return (
        f"min {_usd(float(now.min))}, median {_usd(float(now.median))}{moved}, "
        f"p90 {_usd(float(now.p90))}, {now.count} {offers}, {age(now.at, at)} ago"
    )


def _usd(amount: float) -> str:
    return f"{amount:.3f}"


def _strokes(screen: Screen) -> Strokes:
    encoding = (getattr(screen.out.file, "encoding", "") or "").lower()
    return FINE if "utf" in encoding else PLAIN
