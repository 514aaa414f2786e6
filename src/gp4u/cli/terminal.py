"""What a terminal can show: how wide it is, whether it takes colour, one line that moves.

Hides escape codes, the width of a character, and what the environment says about colour, so that
nothing else in the command line writes a control character. Small on purpose: drawing a table must
not cost a tenth of a second of imports.

What is shown, and when, is left to `screen.py`.
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import IO, TYPE_CHECKING, Final

if TYPE_CHECKING:
    import asyncio

_SGR: Final[Mapping[str, str]] = {
    "bold": "1",
    "dim": "2",
    "red": "31",
    "green": "32",
    "yellow": "33",
    "magenta": "35",
    "cyan": "36",
}
_ERASE: Final = "\r\x1b[2K"
_FRAMES: Final = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
_PLAIN_FRAMES: Final = "|/-\\"
FRAME_S: Final = 0.1
USUAL: Final = 80
NARROWEST: Final = 20
"""Columns; a terminal that claims less is laid out as if it had these."""


class Colour(StrEnum):
    """What `--color` takes."""

    AUTO = "auto"
    ALWAYS = "always"
    NEVER = "never"


def width_of(text: str) -> int:
    """Return how many columns a text takes."""
    if text.isascii():
        return len(text)
    import unicodedata  # a shared library of its own; most text is ASCII

    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )


def cut(text: str, width: int) -> str:
    """Return a text that takes at most `width` columns; a cut is marked."""
    if width_of(text) <= width:
        return text
    kept = text[: max(0, width - 1)]
    while kept and width_of(kept) > width - 1:
        kept = kept[:-1]
    return f"{kept}…" if width > 0 else ""


def paint(text: str, style: str) -> str:
    """Return a text in a style of one or more words, such as `bold green`; empty is as it is."""
    codes = ";".join(_SGR[word] for word in style.split())
    return f"\x1b[{codes}m{text}\x1b[0m" if codes and text else text


class Terminal:
    """One output stream, and what may be written to it."""

    def __init__(
        self, file: IO[str], colour: Colour = Colour.AUTO, environ: Mapping[str, str] = os.environ
    ) -> None:
        self.file = file
        self._environ = environ
        self.is_terminal = file.isatty()
        smart = self.is_terminal and environ.get("TERM") != "dumb"
        self.moves = smart
        """Whether a line can be drawn anew."""
        # Source: https://no-color.org, checked November 2026: set and not empty means no colour.
        self.has_colour = colour is Colour.ALWAYS or (
            colour is Colour.AUTO and smart and not environ.get("NO_COLOR")
        )
        self._live = _MovingLine(self)

    @property
    def width(self) -> int | None:
        """Columns; None for a file or a pipe, which have no edge to wrap at."""
        if not self.is_terminal:
            return None
        try:  # first the true width: shells leave an old COLUMNS behind after a resize
            columns = os.get_terminal_size(self.file.fileno()).columns
        except (OSError, ValueError):
            columns = 0
        told = self._environ.get("COLUMNS", "")
        return max(NARROWEST, columns or (int(told) if told.isdecimal() else USUAL))

    def painted(self, text: str, style: str) -> str:
        """Return a text in a style, or plain where there is no colour."""
        return paint(text, style) if self.has_colour else text

    def lines(self, text: str, style: str = "") -> None:
        """Print lines; on a terminal they are wrapped between words, below their indent."""
        self.write("".join(self.painted(line, style) + "\n" for line in self.wrapped(text)))

    def wrapped(self, text: str) -> list[str]:
        """Return the lines of a text, wrapped between words where the terminal is narrower."""
        width = self.width
        result = []
        for line in text.splitlines() or [""]:
            if width is None or width_of(line) <= width:
                result.append(line)
                continue
            indent = line[: len(line) - len(line.lstrip())]
            result += textwrap.wrap(
                line,
                width,
                subsequent_indent=f"{indent}    ",
                break_long_words=False,  # what gets copied, keys and addresses, stays in one piece
                break_on_hyphens=False,
                drop_whitespace=True,
            )
        return result

    def write(self, text: str) -> None:
        """Print text as it is, at once, above what moves."""
        self._live.clear()
        self.file.write(text)
        self.file.flush()

    def clear(self) -> None:
        """Erase what `busy` shows, until it is drawn the next time."""
        self._live.clear()

    def busy(self, text: Callable[[], str]) -> None:
        """Show a line that is drawn anew ten times a second; without a smart terminal, nothing."""
        if self.moves:
            self._live.show(text)

    def rest(self) -> None:
        """End what `busy` shows."""
        self._live.stop()


class _MovingLine:
    """The last line of a terminal, drawn by the event loop between other work."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._text: Callable[[], str] | None = None
        self._next: asyncio.TimerHandle | None = None
        self._frame = 0
        self._drawn = False
        encoding = (getattr(terminal.file, "encoding", "") or "").lower()
        self._frames = _FRAMES if "utf" in encoding else _PLAIN_FRAMES

    def show(self, text: Callable[[], str]) -> None:
        self._text = text
        if self._next is None:
            self._draw()

    def stop(self) -> None:
        self._text = None
        if self._next is not None:
            self._next.cancel()
            self._next = None
        self.clear()

    def clear(self) -> None:
        if self._drawn:
            self._drawn = False
            self._terminal.file.write(_ERASE)
            self._terminal.file.flush()

    def _draw(self) -> None:
        if self._text is None:
            return
        self._frame += 1
        frame = self._frames[self._frame % len(self._frames)]
        room = (self._terminal.width or USUAL) - 3
        text = cut(self._text(), room)
        try:
            self._terminal.file.write(f"{_ERASE}{self._terminal.painted(frame, 'cyan')} {text}")
            self._terminal.file.flush()
        except OSError:  # the terminal was closed; what it showed was for its reader alone
            self._text = None
            return
        self._drawn = True
        import asyncio  # runs already, or nothing would move; help pages do without

        self._next = asyncio.get_running_loop().call_later(FRAME_S, self._draw)
