"""Tables that give way where a terminal is narrow: a column is shortened or left out, never folded.

Hides the arithmetic of widths. Who draws a table says for each column how early it may go, and what
must be seen whatever happens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from msgspec import Struct

from gp4u.cli.terminal import cut, width_of

GAP: Final = "  "


class Column(Struct, frozen=True, kw_only=True):
    """A column's head and what may happen to it where there is no room.

    `drop` and `short` share one order: the step with the lowest number is taken first, each only
    if what was taken before it does not suffice.
    """

    head: str
    right: bool = False
    drop: int | None = None
    """When the column goes; None: never."""
    short: int | None = None
    """When `shorten` is applied to its cells; None: never."""
    shorten: Callable[[str], str] | None = None
    least: int | None = None
    """Down to how many columns its cells may be cut, if no step suffices; None: not at all."""
    style: str = ""


class Cell(Struct, frozen=True):
    """A text with a style of its own."""

    text: str
    style: str = ""


Row = Sequence[str | Cell]
Paint = Callable[[str, str], str]


def draw(columns: Sequence[Column], rows: Sequence[Row], width: int | None, paint: Paint) -> str:
    """Return the lines of a table that fits into `width` columns; None: as wide as it likes."""
    table = _Table(columns, rows)
    if width is not None:
        table.fit(width)
    return table.text(paint)


class _Table:
    def __init__(self, columns: Sequence[Column], rows: Sequence[Row]) -> None:
        self.columns = list(columns)
        self.cells = [
            [cell if isinstance(cell, Cell) else Cell(cell) for cell in row] for row in rows
        ]

    def widths(self) -> list[int]:
        return [
            max([width_of(column.head), *(width_of(row[i].text) for row in self.cells)])
            for i, column in enumerate(self.columns)
        ]

    def total(self) -> int:
        return sum(self.widths()) + len(GAP) * (len(self.columns) - 1)

    def fit(self, width: int) -> None:
        steps = [(c.drop, "drop", c) for c in self.columns if c.drop is not None]
        steps += [(c.short, "short", c) for c in self.columns if c.short is not None]
        for _, kind, column in sorted(steps, key=lambda step: step[0]):
            if self.total() <= width:
                return
            if column not in self.columns:
                continue
            at = self.columns.index(column)
            if kind == "drop":
                del self.columns[at]
                for row in self.cells:
                    del row[at]
            elif column.shorten is not None:
                self._each(at, column.shorten)
        self._cut(width)

    def _cut(self, width: int) -> None:
        """Cut the widest of the columns that may be cut, until it fits or nothing is left to."""
        for at, column in sorted(enumerate(self.columns), key=lambda c: -self.widths()[c[0]]):
            over = self.total() - width
            if over <= 0:
                return
            if column.least is not None:
                room = max(column.least, width_of(column.head), self.widths()[at] - over)
                self._each(at, lambda text, room=room: cut(text, room))  # type: ignore[misc] # mypy cannot infer a lambda's default

    def _each(self, at: int, change: Callable[[str], str]) -> None:
        for row in self.cells:
            row[at] = Cell(change(row[at].text), row[at].style)

    def text(self, paint: Paint) -> str:
        widths = self.widths()
        heads = [Cell(column.head, "bold") for column in self.columns]
        lines = []
        for row in [heads, *self.cells]:
            shown = [
                self._padded(cell, column, wide, paint, last=i == len(self.columns) - 1)
                for i, (cell, column, wide) in enumerate(
                    zip(row, self.columns, widths, strict=True)
                )
            ]
            lines.append(GAP.join(shown) + "\n")
        return "".join(lines)

    def _padded(self, cell: Cell, column: Column, wide: int, paint: Paint, *, last: bool) -> str:
        space = " " * (wide - width_of(cell.text))
        text = paint(cell.text, cell.style or column.style)
        if column.right:
            return space + text
        return text if last else text + space
