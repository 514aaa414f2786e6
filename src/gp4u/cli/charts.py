"""Curves in text: columns of blocks over a time axis, for terminals of any width.

Hides which characters make a column, how moments become columns, and where an axis has room for a
label. A terminal that is not UTF-8 gets the same picture in ASCII. What is drawn, and in which
colour, is the caller's.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from statistics import median
from typing import Final

from msgspec import Struct

_BLOCKS: Final = " ▁▂▃▄▅▆▇█"
_PLAIN_BLOCKS: Final = " .:#"
_LONGEST_HOLD: Final = timedelta(hours=2)
"""A value holds until the next one, but not longer: what comes after that is a gap."""
_PER_LABEL: Final = 16
"""Columns of the axis for each label."""
_DAYS_WITH_HOURS: Final = timedelta(days=2)


class Strokes(Struct, frozen=True, kw_only=True):
    """The characters of a picture."""

    levels: str
    """From nothing to a full cell."""
    side: str
    foot: str
    corner: str
    tick: str


FINE: Final = Strokes(levels=_BLOCKS, side="│", foot="─", corner="└", tick="┴")
PLAIN: Final = Strokes(levels=_PLAIN_BLOCKS, side="|", foot="-", corner="+", tick="+")


def resampled(
    points: Sequence[tuple[datetime, float]], since: datetime, until: datetime, width: int
) -> list[float | None]:
    """Return a value for each of `width` columns; None where nothing is known.

    `points` are ordered by time. A column that several fall into has their median; one that none
    falls into has what was known before it, for two hours.
    """
    wide = (until - since) / width
    found: list[list[float]] = [[] for _ in range(width)]
    for at, value in points:
        place = int((at - since) / wide)
        if 0 <= place <= width:
            found[min(place, width - 1)].append(value)
    held = max(1, int(_LONGEST_HOLD / wide))
    columns: list[float | None] = []
    last, age = None, 0
    for values in found:
        age += 1
        if values:
            last, age = median(values), 0
        columns.append(last if age < held else None)
    return columns


def bars(values: Sequence[float | None], height: int, strokes: Strokes) -> list[str]:
    """Return `height` lines, top first, with a bar for each value; None is an empty column.

    The smallest value is a bar of one step, the largest fills the height; if all are equal, they
    fill half of it.
    """
    known = [value for value in values if value is not None]
    if not known:
        return [" " * len(values)] * height
    low, high = min(known), max(known)
    steps = len(strokes.levels) - 1
    full = steps * height

    def filled(value: float | None) -> int:
        if value is None:
            return 0
        return 1 + round((full - 1) * (value - low) / (high - low)) if high > low else full // 2

    fills = [filled(value) for value in values]
    return [
        "".join(strokes.levels[min(steps, max(0, fill - steps * below))] for fill in fills)
        for below in reversed(range(height))
    ]


def axis(since: datetime, until: datetime, width: int, strokes: Strokes) -> tuple[str, str]:
    """Return the line under a chart and, below it, when its ticks are (UTC)."""
    shape = "%H:%M" if until - since <= _DAYS_WITH_HOURS else "%m-%d"
    parts = max(1, width // _PER_LABEL)
    line, labels = [strokes.foot] * width, [" "] * width
    free = width + 1
    for part in reversed(range(parts + 1)):
        place = round(part * (width - 1) / parts)
        line[place] = strokes.tick
        label = (since + (until - since) * part / parts).strftime(shape)
        start = min(max(0, place - len(label) // 2), width - len(label))
        if start + len(label) < free:  # else it would run into the one after it
            labels[start : start + len(label)] = label
            free = start
    return "".join(line), "".join(labels).rstrip()
