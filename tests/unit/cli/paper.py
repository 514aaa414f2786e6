"""A stream that claims to be a terminal, to see what would be drawn on it."""

from __future__ import annotations

import io
import re

_ESCAPE = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


class Paper(io.StringIO):
    """Keeps what is written; `tty` is what it claims to be."""

    encoding = "utf-8"

    def __init__(self, *, tty: bool = True) -> None:
        super().__init__()
        self._tty = tty

    def isatty(self) -> bool:
        """Whether it claims to be a terminal."""
        return self._tty

    @property
    def plain(self) -> str:
        """What is on it without its escapes."""
        return _ESCAPE.sub("", self.getvalue())


class Torn(Paper):
    """A terminal that was closed."""

    def write(self, text: str) -> int:
        """Fail as a closed terminal does."""
        raise BrokenPipeError
