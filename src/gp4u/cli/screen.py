"""Where a command's words go: results to stdout, everything else to stderr, in the form asked for.

Hides the difference between a person at a terminal and a program behind a pipe. Data is printed
whole, with stable keys (`api/shapes.py`); tables give way to narrow terminals (`tables.py`); colour
and motion are for terminals only (`terminal.py`). Foreign text must be cleaned before it comes
here.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from datetime import datetime
from enum import StrEnum
from typing import IO, Any, Final

from gp4u.cli.tables import Column, Row, draw
from gp4u.cli.terminal import Colour, Terminal

_OBEYED: Final = re.compile("[\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]")
"""What JSON need not escape, and what yet moves a cursor or turns a line around."""


class Form(StrEnum):
    """What `-o` takes."""

    TABLE = "table"
    WIDE = "wide"
    JSON = "json"
    YAML = "yaml"
    NAME = "name"


class Screen:
    """One command's two streams."""

    def __init__(
        self,
        form: Form = Form.TABLE,
        colour: Colour = Colour.AUTO,
        *,
        out: IO[str] | None = None,
        err: IO[str] | None = None,
    ) -> None:
        self.form = form
        self.out = Terminal(out or sys.stdout, colour)
        self.err = Terminal(err or sys.stderr, colour)
        self.told = False
        """Whether stdout holds a value for programs already; a second one would break the first."""

    @property
    def is_data(self) -> bool:
        """Whether stdout holds something for programs."""
        return self.form in (Form.JSON, Form.YAML, Form.NAME)

    @property
    def is_for_people(self) -> bool:
        """Whether somebody reads along, so that a hint is no noise."""
        return not self.is_data and self.out.is_terminal and self.err.is_terminal

    def data(self, value: object) -> None:
        """Print a value as YAML where that was asked for, else as JSON."""
        import msgspec  # not needed by the commands that print none

        plain = _stamped(msgspec.to_builtins(value, builtin_types=(datetime,)))
        if self.form is Form.YAML:
            import yaml  # 40 ms that JSON never needs

            text = yaml.safe_dump(plain, sort_keys=False)  # which escapes all that is not ASCII
        else:
            text = msgspec.json.format(msgspec.json.encode(plain), indent=2).decode() + "\n"
            text = _OBEYED.sub(lambda found: f"\\u{ord(found.group()):04x}", text)
        self._write(text)
        self.told = True

    def names(self, names: Iterable[str]) -> None:
        """Print one name a line."""
        self._write("".join(f"{name}\n" for name in names))

    def text(self, text: str) -> None:
        """Print lines that are a result by themselves, such as a log, without wrapping them."""
        self._write(text)

    def line(self, text: str, style: str = "") -> None:
        """Print a line of the result for people."""
        self.err.clear()
        self.out.lines(text, style)

    def table(self, columns: Sequence[Column], rows: Sequence[Row]) -> None:
        """Print a table; one without rows is not printed at all where a person reads it."""
        if rows or not self.out.is_terminal:
            self._write(draw(columns, rows, self.out.width, self.out.painted))

    def note(self, text: str, style: str = "") -> None:
        """Print a line beside the result; what cannot be printed is no reason to stop a rent."""
        with suppress(OSError):
            self.err.lines(text, style)

    def note_table(self, columns: Sequence[Column], rows: Sequence[Row]) -> None:
        """Print a table beside the result, indented."""
        width = self.err.width
        text = draw(columns, rows, None if width is None else width - 2, self.err.painted)
        with suppress(OSError):
            self.err.write("".join(f"  {line}\n" for line in text.splitlines()))

    def steps(self, steps: Sequence[tuple[str, str]]) -> None:
        """Say under a failure what one may type or change next, and what that does."""
        wide = max((len(what) for what, _ in steps), default=0)
        for what, does in steps:
            self.note(f"  {what:<{wide}}  {does}", "dim")

    def hint(self, text: str) -> None:
        """Say what one may want to do next, if a person reads along."""
        if self.is_for_people:
            self.note(text, "dim")

    def warn(self, text: str) -> None:
        """Say that something is not as it should be."""
        self.note(text, "yellow")

    def fail(self, text: str) -> None:
        """Say what went wrong, under the program's name; further lines are indented."""
        lines = self.err.wrapped("\n  ".join(f"gp4u: {text}".splitlines()))
        # Painted after it was wrapped: colour has no width.
        lines[0] = self.err.painted("gp4u:", "bold red") + lines[0].removeprefix("gp4u:")
        with suppress(OSError):
            self.err.write("".join(f"{line}\n" for line in lines))

    def busy(self, text: str | Callable[[], str]) -> None:
        """Show on a terminal that something goes on."""
        self.err.busy((lambda: text) if isinstance(text, str) else text)

    def rest(self) -> None:
        """End what `busy` shows."""
        with suppress(OSError):
            self.err.rest()

    def _write(self, text: str) -> None:
        self.err.clear()
        self.out.write(text)


def _stamped(value: Any) -> Any:
    """Return plain values with every moment written out, and with its offset in digits."""
    match value:
        case dict():
            return {name: _stamped(inner) for name, inner in value.items()}
        case list() | tuple():
            return [_stamped(inner) for inner in value]
        case datetime():
            return value.isoformat()
        case _:
            return value
