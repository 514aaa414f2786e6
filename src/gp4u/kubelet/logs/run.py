"""What one run of a container printed, as far as it is kept: bounded, and stamped.

Bytes are held in pieces, each with the moment at which it came, so that the newest lines, those
since a moment, and stamped ones can all be told without looking at a line twice. What is dropped to
make room is counted. Fetching is the business of `store.py`, and so is when a run ends.
"""

from __future__ import annotations

import asyncio
import struct
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Final

RUN_BYTES: Final = 4 * 1024 * 1024
PIECE_BYTES: Final = 256 * 1024
OVERHEAD_BYTES: Final = 160
"""What a piece costs beside its data."""
MERGE: Final = timedelta(milliseconds=20)
"""Pieces that come closer to each other share a stamp."""
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MAGIC: Final = b"gp4u-log-1\n"
_HEAD: Final = struct.Struct(">iQ")
_PIECE: Final = struct.Struct(">QI")


class _Piece:
    __slots__ = ("at", "data", "offset")

    def __init__(self, offset: int, at: datetime, data: bytearray) -> None:
        self.offset, self.at, self.data = offset, at, data


class RunLog:
    """The log of one run. Offsets count bytes from the run's beginning, dropped ones included."""

    def __init__(self, *, most_bytes: int = RUN_BYTES) -> None:
        self._most = most_bytes
        self._pieces: list[_Piece] = []
        self._waiting: asyncio.Event | None = None
        self._followers = self._read_to = 0
        self._was_read = asyncio.Event()
        self.end = 0
        """Offset behind the last byte."""
        self.dropped = 0
        """Bytes that are no longer kept: the offset of the first one that is."""
        self.held_bytes = 0
        """What it costs in memory."""
        self.exit_code: int | None = None
        """As the container's own bootstrap told it; a guest's claim."""
        self.is_over = False
        """Nothing more will be added."""

    def append(self, data: bytes, at: datetime) -> None:
        """Add what was printed; the oldest goes where there is too much."""
        for start in range(0, len(data), PIECE_BYTES):
            self._add(data[start : start + PIECE_BYTES], at)
            self.shrink(self._most)
        self._tell()

    def finish(self, exit_code: int | None = None) -> None:
        """Say that nothing more will come."""
        self.is_over = True
        if exit_code is not None:
            self.exit_code = exit_code
        self._tell()

    def shrink(self, most_bytes: int) -> None:
        """Drop the oldest pieces until no more than so much memory is used."""
        gone = 0
        while gone < len(self._pieces) and self.held_bytes > most_bytes:
            size = len(self._pieces[gone].data)
            self.held_bytes -= size + OVERHEAD_BYTES
            self.dropped += size
            gone += 1
        del self._pieces[:gone]

    def first(self, *, since: datetime | None = None, tail: int | None = None) -> int:
        """Return the offset of the first byte of the last `tail` lines among those since then."""
        kept = self._pieces
        start = self.dropped
        if since is not None:
            start = next((each.offset for each in kept if each.at >= since), self.end)
        if tail is None:
            return start
        if tail == 0:
            return self.end
        seen = 0
        for piece in reversed(kept):
            place = len(piece.data)
            if piece.offset + place <= start:
                break
            if piece.offset + place == self.end and piece.data.endswith(b"\n"):
                place -= 1  # the end of the last line begins no other one
            while (place := piece.data.rfind(b"\n", 0, place)) >= 0:
                seen += 1
                if seen == tail:
                    return max(start, piece.offset + place + 1)
        return start

    def read(
        self, offset: int, most_bytes: int = PIECE_BYTES
    ) -> tuple[list[tuple[datetime, bytes]], int]:
        """Return stamped data from an offset on, and the offset behind it.

        What was dropped meanwhile is skipped.
        """
        found: list[tuple[datetime, bytes]] = []
        at = max(offset, self.dropped)
        for piece in self._from(at):
            start = at - piece.offset
            data = bytes(memoryview(piece.data)[start : start + most_bytes])
            found.append((piece.at, data))
            at += len(data)
            most_bytes -= len(data)
            if most_bytes <= 0:
                break
        if at > self._read_to:
            self._read_to = at
            self._was_read.set()
        return found, at

    @contextmanager
    def followed(self, offset: int) -> Iterator[None]:
        """Have whoever adds to it know, by `room`, that somebody reads from an offset on."""
        if not self._followers:
            self._read_to = offset
        self._followers += 1
        try:
            yield
        finally:
            self._followers -= 1
            self._was_read.set()

    async def room(self) -> None:
        """Wait while even the fastest follower, if there is one, is half of what is kept behind."""
        while self._followers and self.end - self._read_to > self._most // 2:
            self._was_read.clear()
            await self._was_read.wait()

    async def grown(self, offset: int) -> None:
        """Wait until there is something behind the offset, or the run is over."""
        while self.end <= offset and not self.is_over:
            if self._waiting is None:
                self._waiting = asyncio.Event()
            await self._waiting.wait()

    def tail(self, lines: int, most_bytes: int) -> bytes:
        """Return the end of it: so many whole lines at most, and so many bytes."""
        start = max(self.first(tail=lines), self.end - most_bytes)
        pieces, _ = self.read(start, most_bytes)
        return b"".join(data for _, data in pieces)

    def dump(self) -> bytes:
        """Return it as one block, for `load`."""
        code = -1 if self.exit_code is None else self.exit_code
        parts = [_MAGIC, _HEAD.pack(code, self.dropped)]
        for piece in self._pieces:
            at_us = (piece.at - _EPOCH) // timedelta(microseconds=1)
            parts += [_PIECE.pack(at_us, len(piece.data)), bytes(piece.data)]
        return b"".join(parts)

    @classmethod
    def load(cls, block: bytes, *, most_bytes: int = RUN_BYTES) -> RunLog:
        """Return a run that is over as it was; what cannot be read is left out."""
        run = cls(most_bytes=most_bytes)
        run.is_over = True
        place = len(_MAGIC) + _HEAD.size
        if not block.startswith(_MAGIC) or len(block) < place:
            return run
        code, run.dropped = _HEAD.unpack_from(block, len(_MAGIC))
        run.exit_code = None if code < 0 else code
        run.end = run.dropped
        while place + _PIECE.size <= len(block):
            at_us, size = _PIECE.unpack_from(block, place)
            place += _PIECE.size
            run._add(block[place : place + size], _EPOCH + timedelta(microseconds=at_us))
            place += size
        return run

    def _add(self, data: bytes, at: datetime) -> None:
        last = self._pieces[-1] if self._pieces else None
        if last and at - last.at < MERGE and len(last.data) + len(data) <= PIECE_BYTES:
            last.data += data
            self.held_bytes += len(data)
        else:
            self._pieces.append(_Piece(self.end, at, bytearray(data)))
            self.held_bytes += len(data) + OVERHEAD_BYTES
        self.end += len(data)

    def _from(self, offset: int) -> Iterator[_Piece]:
        """Yield the pieces that hold what lies behind an offset, in order."""
        pieces = self._pieces
        place = max(0, bisect_right(pieces, offset, key=lambda piece: piece.offset) - 1)
        for number in range(place, len(pieces)):
            if pieces[number].offset + len(pieces[number].data) > offset:
                yield pieces[number]

    def _tell(self) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.set()


class Stamper:
    """Puts the time in front of each line, as `kubectl logs --timestamps` shows it."""

    def __init__(self) -> None:
        self._within_line = False

    def __call__(self, pieces: Iterable[tuple[datetime, bytes]]) -> Iterator[bytes]:
        """Yield the data with RFC 3339 stamps, to the nanosecond, in front of each line."""
        for at, data in pieces:
            stamp = f"{at:%Y-%m-%dT%H:%M:%S.%f}000Z ".encode()
            head = b"" if self._within_line else stamp
            self._within_line = not data.endswith(b"\n")
            body = data if self._within_line else data[:-1]
            yield head + body.replace(b"\n", b"\n" + stamp) + (b"" if self._within_line else b"\n")
