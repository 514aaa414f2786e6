"""A whole market's rows in small pieces, with a turn for everybody else in between.

What this file hides: how much may be done at one go. A loop over a hundred thousand rows would hold
up every other call, watch and answer of this process for a second; in pieces it takes as long, and
nobody waits. What a row means is the adapter's part, what a body may weigh is said in `http.py`.

A long list is cut into its rows before any of them is read. Where it is written as lists usually
are, that is done in pieces as well; else it is one skip over all of it, a millisecond for each MiB.
"""

from __future__ import annotations

import asyncio
import gc
import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate, chain, islice
from typing import Final, TypeVar, overload

import msgspec

from gp4u.errors import Malformed
from gp4u.providers.http import UNREADABLE

T = TypeVar("T")

PIECE: Final = 250
"""Rows at one go: one or two milliseconds."""
AT_ONCE_BYTES: Final = 2 * 1024 * 1024
"""A body up to this long may be read in one pass, which spares the cut into rows: 10 ms at most."""

CUT_BYTES: Final = 2 * 1024 * 1024
"""Of a list that is cut at one go: a few milliseconds."""
_TRIES: Final = 8
"""Places at which a cut is tried before the list is taken as one."""


class Pieces(Sequence[T]):
    """A long list as the pieces that it was made in.

    As one tuple, it would be filled at one go and then visited at another by the garbage collector,
    some ten milliseconds each for a third of a million.
    """

    __slots__ = ("_ends", "_pieces")

    def __init__(self, pieces: Iterable[Sequence[T]]) -> None:
        self._pieces = [piece for piece in pieces if piece]
        self._ends = list(accumulate(map(len, self._pieces)))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __iter__(self) -> Iterator[T]:
        return chain.from_iterable(self._pieces)

    @overload
    def __getitem__(self, at: int) -> T: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[T]: ...
    def __getitem__(self, at: int | slice) -> T | Sequence[T]:
        if isinstance(at, slice):
            start, stop, step = at.indices(len(self))
            if step != 1:
                return tuple(self[place] for place in range(start, stop, step))
            first = bisect_right(self._ends, start)
            before = self._ends[first - 1] if first else 0
            ahead = chain.from_iterable(islice(self._pieces, first, None))
            return tuple(islice(ahead, start - before, max(start, stop) - before))
        place = range(len(self))[at]
        number = bisect_right(self._ends, place)
        return self._pieces[number][place - (self._ends[number - 1] if number else 0)]


async def in_turns(steps: Iterable[T], *, piece: int = PIECE) -> list[T]:
    """Return everything that an iterator yields; others run before each `piece` of it."""
    found: list[T] = []
    rest = iter(steps)
    while True:
        await asyncio.sleep(0)
        ahead = list(islice(rest, piece))
        found += ahead
        if len(ahead) < piece:
            return found


def settled(steps: Iterable[T]) -> Iterator[T]:
    """Yield each step after the garbage collector has seen what it made.

    The collector visits every element of a new tuple once, and then never again where none of them
    can lead to garbage. Left to itself it visits hundreds of tuples at one go, some ten
    milliseconds of elements that are no longer in a cache.
    """
    for step in steps:
        gc.collect(0)
        yield step


def cut(
    body: bytes,
    opening: re.Pattern[bytes],
    whole: Callable[[bytes], list[msgspec.Raw]],
    *,
    at_once: int = CUT_BYTES,
) -> Iterator[msgspec.Raw]:
    """Yield the rows of a list, unread.

    `opening` matches what a body usually has before its first row, `whole` returns the rows of any
    body at once, and is asked for what could not be cut off before.

    A cut in the wrong place is always noticed: of what is open inside of a row, or of a text in it,
    one more bracket closes at most the innermost, so what was cut off is no JSON.

    Raises:
        ProviderError: what `whole` raises.
    """
    match = opening.match(body)
    start = at = match.end() if match else len(body)
    while len(body) - at > at_once:
        end, found = at + at_once, None
        for _ in range(_TRIES):
            end = body.rfind(b"},{", at, end) + 1
            if end and (found := _list_of(body[at:end])) is not None:
                break
        if found is None:
            break
        yield from found
        at = end + 1
    yield from whole(body if at in (start, len(body)) else body[:start] + body[at:])


def _list_of(rows: bytes) -> list[msgspec.Raw] | None:
    try:
        return msgspec.json.decode(b"[" + rows + b"]", type=list[msgspec.Raw])
    except UNREADABLE:
        return None


def each_row(rows: Iterable[msgspec.Raw], kind: type[T]) -> Iterator[T | None]:
    """Yield each row in its type; None for one that breaks it."""
    decode = msgspec.json.Decoder(kind).decode
    for row in rows:
        try:
            yield decode(row)
        except UNREADABLE:
            yield None


def good_rows(provider: str, operation: str, found: Iterable[T | None]) -> tuple[list[T], int]:
    """Return the rows that kept their schema, and how many did not.

    Raises:
        Malformed: more than half of them are bad, so it is another list than we think.
    """
    rows = found if isinstance(found, list) else list(found)
    good = [row for row in rows if row is not None]
    return _believed(provider, operation, good, len(rows) - len(good))


async def good_in_turns(
    provider: str, operation: str, rows: Iterable[T | None], *, piece: int = PIECE
) -> tuple[list[T], int]:
    """Do what `good_rows` does, letting others run before each `piece` of the rows.

    Raises:
        Malformed: as `good_rows`, or whatever is found out while the rows are read.
    """
    good: list[T] = []
    bad = 0
    rest = iter(rows)
    while True:
        await asyncio.sleep(0)
        ahead = list(islice(rest, piece))
        kept = [row for row in ahead if row is not None]
        good += kept
        bad += len(ahead) - len(kept)
        if len(ahead) < piece:
            return _believed(provider, operation, good, bad)


def pieces(rows: list[T], size: int = PIECE) -> Iterator[list[T]]:
    """Yield a list's rows in order, `size` at a time, taking them out of it.

    What was made of a row need not stand beside the row, and what is let go in pieces holds up
    nobody: to free a whole market at once takes as long as to read it.
    """
    rows.reverse()  # the end of a list is taken off for nothing
    while rows:
        piece = rows[-size:]
        del rows[-size:]
        piece.reverse()
        yield piece


def _believed(provider: str, operation: str, good: list[T], bad: int) -> tuple[list[T], int]:
    if bad > len(good):
        raise Malformed(provider, operation, f"{bad} of {bad + len(good)} rows break the schema")
    return good, bad
