"""Curves in text: what a column says, and that it fits."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gp4u.cli.charts import FINE, PLAIN, Strokes, axis, bars, resampled

SINCE = datetime(2026, 11, 13, 12, tzinfo=UTC)
VALUES = st.lists(st.one_of(st.none(), st.floats(0, 1000)), min_size=1, max_size=50)


def height_of(rows: list[str], column: int, strokes: Strokes) -> int:
    """How many steps a column has, counted from below; it must have no hole."""
    cells = [strokes.levels.index(row[column]) for row in reversed(rows)]
    full = len(strokes.levels) - 1
    for lower, upper in pairwise(cells):
        assert lower == full or upper == 0
    return sum(cells)


@given(VALUES, st.integers(1, 12), st.sampled_from((FINE, PLAIN)))
def test_a_higher_value_is_never_a_lower_bar(
    values: list[float | None], height: int, strokes: Strokes
) -> None:
    """Whatever the numbers are: the picture keeps their order, and a gap is no zero."""
    rows = bars(values, height, strokes)
    assert [len(row) for row in rows] == [len(values)] * height
    heights = [height_of(rows, column, strokes) for column in range(len(values))]
    known = [value for value in values if value is not None]
    for value, bar in zip(values, heights, strict=True):
        assert (bar == 0) == (value is None)
        if value is not None and max(known) > min(known):
            assert (bar == (len(strokes.levels) - 1) * height) or value < max(known)
            assert (bar == 1) or value > min(known)
    told = sorted((v, bar) for v, bar in zip(values, heights, strict=True) if v is not None)
    assert [bar for _, bar in told] == sorted(bar for _, bar in told)


def test_a_price_that_never_moved_is_a_line_in_the_middle() -> None:
    """Neither at its lowest nor at its highest."""
    assert bars([0.4, 0.4, None], 2, FINE) == ["   ", "██ "]


def test_a_value_holds_for_two_hours_and_then_nothing_is_known() -> None:
    """A server that was down for a day must not look like a day of steady prices."""
    points = [(SINCE + timedelta(hours=h), float(h)) for h in (0, 1, 8)]
    columns = resampled(points, SINCE, SINCE + timedelta(hours=12), 12)
    assert columns == [0, 1, 1, None, None, None, None, None, 8, 8, None, None]


def test_several_values_in_a_column_are_their_median() -> None:
    """One host that asks a hundred dollars for a minute is not a market."""
    points = [(SINCE + timedelta(minutes=m), v) for m, v in ((0, 1.0), (5, 100.0), (9, 2.0))]
    assert resampled(points, SINCE, SINCE + timedelta(hours=2), 2)[0] == 2.0


def test_the_newest_moment_belongs_to_the_last_column() -> None:
    """A point at the very end must not fall off the chart, and one outside is left out."""
    end = SINCE + timedelta(hours=2)
    points = [(SINCE - timedelta(hours=1), 7.0), (end, 3.0), (end + timedelta(hours=5), 9.0)]
    assert resampled(points, SINCE, end, 4) == [None, None, None, 3.0]


@pytest.mark.parametrize("width", [8, 40, 71, 120])
@pytest.mark.parametrize("hours", [1, 24, 24 * 7, 24 * 90])
def test_an_axis_fits_under_its_chart_and_names_both_ends(width: int, hours: int) -> None:
    """Labels must not run into each other, nor out of the terminal."""
    until = SINCE + timedelta(hours=hours)
    line, labels = axis(SINCE, until, width, PLAIN)
    assert len(line) == width
    assert len(labels) <= width
    shape = "%H:%M" if hours <= 48 else "%m-%d"
    words = labels.split()
    assert words[-1] == until.strftime(shape)
    if width > 10:
        assert words[0] == SINCE.strftime(shape)
        assert all(len(word) == 5 for word in words)
        assert line.count(PLAIN.tick) == len(words)
