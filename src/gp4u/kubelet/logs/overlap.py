"""What is new in the newest lines of a log, and which of its lines are ours.

Markets give the end of a log again and again, without a time or a number on its lines. `Overlap`
finds where the known part of such a text ends. `Sections` takes out the marker lines that our own
bootstrap prints in front of and behind each run of a container, which say what a text of several
runs cannot: where one ends and the next begins, and with which code. Both are pure.
"""

from __future__ import annotations

import re
from array import array
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Final

from msgspec import Struct

WINDOW_LINES: Final = 4096
"""How many lines of what is known are compared."""
MAX_OPEN: Final = 65_536
"""How many characters of an unfinished line are remembered."""
MARKER: Final = b"gp4u: "
_MARKS: Final = re.compile(
    rb"gp4u: (?:run (\d{1,9})|exit (\d{1,3})|init (\d{1,4}) exit (\d{1,3}))\r?\n"
)
_LONGEST_MARK: Final = 32
_LATE_CHARS: Final = 1024 * 1024
"""How much of what was followed is kept as it came, before it is told by hashes alone."""


class Overlap:
    """Remembers the end of a log by its lines' hashes."""

    def __init__(self) -> None:
        self._window = array("q")
        self._open = ""
        """The last line, where it did not end with a line feed: it may go on."""
        self._from_start = True
        """Whether the window begins with the log's first line."""
        self._has_gaps = False
        """Whether lines may be missing within the window."""
        self._late = deque[tuple[str, int]]()
        """What was followed lately and is not in the window yet, each with its line feeds."""
        self._late_lines = self._late_chars = 0

    @property
    def has_seen(self) -> bool:
        """Whether anything is known."""
        return bool(self._window or self._open or self._late_chars)

    def new(self, text: str, *, tail: int) -> str:
        """Return what of `text`, the newest `tail` lines at most, has not been seen.

        Where nothing of the known part is in it, all of it is new: lines between were lost, or the
        log has begun anew. A text that shows only lines seen before is an old one, and brings
        nothing.
        """
        self._settle()
        *complete, rest = text.split("\n")
        hashes = array("q", map(hash, complete))
        from_start = len(complete) + bool(rest) < tail
        known: int | None = 0
        if self.has_seen:
            known = self._known(hashes, complete, rest, from_start=from_start)
        told = "" if known is None else self._unseen(known, complete, rest)
        if told:
            self._window = hashes[-WINDOW_LINES:]
            self._from_start = from_start and len(hashes) <= WINDOW_LINES
            self._has_gaps = False
            self._open = rest
        return told

    def join(self, text: str) -> str:
        """Take what was followed while the log was read; return what of it has not been seen."""
        self._settle()
        *complete, rest = text.split("\n")
        matches = _matches(self._window, array("q", map(hash, complete)))
        known = max((end for end, size in enumerate(matches) if size == end), default=0)
        told = self._unseen(known, complete, rest) if known else text
        self.follow(told)
        return told

    def follow(self, text: str) -> None:
        """Note what came by another way, right behind what is known, or nearly so.

        A stream may bring a million lines a second, and few of them will ever be compared: only
        the last ones are looked at, once they are needed.
        """
        lines = text.count("\n")
        self._late.append((text, lines))
        self._late_lines += lines
        self._late_chars += len(text)
        # One line more than the window holds: the first one that is left may be cut.
        while self._late_lines - self._late[0][1] > WINDOW_LINES:
            first, lines = self._late.popleft()
            self._late_lines -= lines
            self._late_chars -= len(first)
            self._window, self._open, self._from_start = array("q"), "", False
        self._has_gaps = True
        if self._late_chars > _LATE_CHARS:
            self._settle()

    def _settle(self) -> None:
        """Take into the window what was followed."""
        if not self._late:
            return
        text = "".join(each for each, _ in self._late)
        self._late.clear()
        self._late_lines = self._late_chars = 0
        *complete, rest = (self._open + text).split("\n")
        self._window.extend(map(hash, complete))
        if len(self._window) > WINDOW_LINES:
            self._window = self._window[-WINDOW_LINES:]
            self._from_start = False
        # A line without an end is compared no more: it could be as long as its printer likes.
        self._open = rest if len(rest) <= MAX_OPEN else ""

    def _unseen(self, known: int, complete: Sequence[str], rest: str) -> str:
        """Return everything behind the first `known` lines, less what is open already."""
        return "\n".join([*complete[known:], rest]).removeprefix(self._open)

    def _known(
        self, hashes: array[int], complete: Sequence[str], rest: str, *, from_start: bool
    ) -> int | None:
        """Return how many whole lines of a text are known; None: it is older than what we have."""
        size = len(self._window)

        def fits(end: int) -> bool:
            line = complete[end] if end < len(complete) else rest
            return line.startswith(self._open)

        if self._from_start and from_start and hashes[:size] == self._window and fits(size):
            return size
        found = [
            (length, end)
            for end, length in enumerate(_matches(self._window, hashes))
            # What matches reaches back to where one of the two begins, unless lines are missing.
            if (length == min(end, size) or (self._has_gaps and length)) and fits(end)
        ]
        length, end = max(found, default=(0, 0))
        if length or not _is_within(hashes, self._window):
            return end if length else 0
        return None


def _matches(known: Sequence[int], text: Sequence[int]) -> list[int]:
    """Return for each place in a text how many lines before it are the last of what is known."""
    lines = [*reversed(known), None, *reversed(text)]
    sizes = [0] * len(lines)  # how long the part that begins here agrees with the beginning
    left = right = 0
    for place in range(1, len(lines)):
        size = min(right - place, sizes[place - left]) if place < right else 0
        while place + size < len(lines) and lines[size] == lines[place + size] is not None:
            size += 1
        sizes[place] = size
        if place + size > right:
            left, right = place, place + size
    return [0, *reversed(sizes[len(known) + 1 :])]


def _is_within(part: array[int], whole: array[int]) -> bool:
    """Whether some lines stand in others, one after the other."""
    wanted, size = part.tobytes(), part.itemsize
    among, at = whole.tobytes(), -1
    while wanted and (at := among.find(wanted, at + 1)) >= 0:
        if at % size == 0:
            return True
    return False


class Mark(Struct, frozen=True):
    """One marker line of our bootstrap; see `providers/bootstrap.py`."""

    run: int | None = None
    """A run begins: its number since the machine's start, from 1."""
    exit_code: int | None = None
    """The run, or the init container that `init` names, has ended."""
    init: int | None = None
    """Which init container, from 0."""


class Sections:
    """Takes a log apart into what was printed and our own marks, wherever it is cut.

    A mark stands at the end of a line, behind what the workload left unfinished there.
    """

    def __init__(self) -> None:
        self._held = b""
        """The end of what came, as far as it may become a mark."""

    @property
    def has_whole_mark(self) -> bool:
        """Whether what is held back is a mark, but for the end of its line."""
        return _MARKS.fullmatch(self._held + b"\n") is not None

    def feed(self, data: bytes) -> Iterator[bytes | Mark]:
        """Yield printed text, in order, and the marks in between."""
        data, self._held = self._held + data, b""
        start = 0
        for found in _MARKS.finditer(data):
            if found.start() > start:
                yield data[start : found.start()]
            yield _mark(found)
            start = found.end()
        held = _may_become(data, start)
        self._held = data[held:]
        if held > start:
            yield data[start:held]

    def flush(self) -> Iterator[bytes | Mark]:
        """Yield what was held back: nothing more will come."""
        held, self._held = self._held, b""
        found = _MARKS.fullmatch(held + b"\n")
        if found is not None:
            yield _mark(found)
        elif held:
            yield held


def _may_become(data: bytes, start: int) -> int:
    """Return where the unfinished mark begins with which the data may end."""
    start = max(start, len(data) - _LONGEST_MARK, data.rfind(b"\n") + 1)
    end = data[start:]
    found = end.find(MARKER)
    if found >= 0:
        return start + found
    for size in range(len(MARKER) - 1, 0, -1):
        if end.endswith(MARKER[:size]):
            return len(data) - size
    return len(data)


def _mark(found: re.Match[bytes]) -> Mark:
    run, code, init, init_code = (None if each is None else int(each) for each in found.groups())
    return Mark(run=run, exit_code=init_code if code is None else code, init=init)
