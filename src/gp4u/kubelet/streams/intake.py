"""What came over a connection and nobody took yet, bounded.

None of the protocols has flow control of its own that its clients obey, so the one way to slow a
client down is not to read: all that a connection brings counts against one `Room`, and whoever
reads the connection waits for it. A stream that is not taken from holds up its neighbours once the
room is full; that is the price of a protocol without windows.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

TAKE_BYTES: Final = 64 * 1024
"""Pieces are joined up to this size when they are taken."""


class Room:
    """How much one connection may hold of what came; `most` in bytes, passed by one read."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._held = 0
        self._freed = asyncio.Event()
        self._freed.set()

    @property
    def is_full(self) -> bool:
        """Whether nothing more should be read."""
        return self._held >= self._most

    async def wait(self) -> None:
        """Return once there is room."""
        await self._freed.wait()

    def fill(self, count: int) -> None:
        """Count what came in."""
        self._held += count
        if self.is_full:
            self._freed.clear()

    def free(self, count: int) -> None:
        """Count what was taken or thrown away."""
        self._held -= count
        if not self.is_full:
            self._freed.set()


class Intake:
    """What came on one stream, for the one who takes it."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self._pieces: deque[bytes] = deque()
        self._came = asyncio.Event()
        self._ended = False
        self._unwanted = False

    def put(self, data: bytes) -> None:
        """Add what came; after the end, or where nobody wants it, it is thrown away."""
        if data and not self._ended and not self._unwanted:
            self._pieces.append(data)
            self._room.fill(len(data))
            self._came.set()

    def end(self) -> None:
        """Say that nothing more comes; what is there already can still be taken."""
        self._ended = True
        self._came.set()

    def discard(self) -> None:
        """Throw away what is there and all that will come: nobody takes it any more."""
        self._unwanted = True
        self._room.free(sum(map(len, self._pieces)))
        self._pieces.clear()

    async def take(self) -> bytes:
        """Return what came, once something did; nothing once all was taken and the end came."""
        while not self._pieces:
            if self._ended:
                return b""
            self._came.clear()
            await self._came.wait()
        taken = [self._pieces.popleft()]
        size = len(taken[0])
        while self._pieces and size + len(self._pieces[0]) <= TAKE_BYTES:
            taken.append(self._pieces.popleft())
            size += len(taken[-1])
        self._room.free(size)
        return taken[0] if len(taken) == 1 else b"".join(taken)
