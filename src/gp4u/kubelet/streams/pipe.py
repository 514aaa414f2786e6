"""A connection as bytes both ways, and when it may be read.

Reading stops while too much of what came is waiting to be taken, or while the client does not read
the answers that it asks for; a client that leaves is noticed then as well. What one side of a
command writes never stops the reading of the other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

from gp4u.kubelet.streams.intake import Room

IDLE_S: Final = 4 * 3600.0
"""A connection on which nothing happens either way is closed after so long.

Source: the default `streamingConnectionIdleTimeout` of a kubelet; checked 2026-11.
"""
LOOK_S: Final = 0.5
"""How often somebody who does not read looks whether the client is still there."""
MOST_OWED_BYTES: Final = 64 * 1024
"""What may be answered to a client that reads nothing; some thousand PINGs."""

LINGER_S: Final = 5.0
"""How long the client has to close the connection after our last word, before we do.

Closing first would cut off what it has not read, if it was still sending.
"""


class ClientLeft(Exception):  # never leaves this package: serving ends, and there is nobody to tell
    """The other end of the connection is gone."""


class Pipe(Protocol):
    """Bytes both ways."""

    async def read(self) -> bytes:
        """Return what came, never nothing.

        Raises:
            ClientLeft: the other end is gone.
        """

    def write(self, data: bytes) -> None:
        """Send, without waiting."""

    async def drain(self) -> None:
        """Return once there is room for more.

        Raises:
            ClientLeft: the other end is gone.
        """

    def left(self) -> bool:
        """Say whether the other end is known to be gone, though not all it sent was read."""


class Flow:
    """One connection: read it as far as there is room, answer at once, send with patience."""

    def __init__(self, pipe: Pipe, room: Room, *, idle_s: float = IDLE_S) -> None:
        self._pipe, self._room, self._idle_s = pipe, room, idle_s
        self._owed = 0
        self._sent_at = 0.0

    async def read(self) -> bytes:
        """Return what came next, once there is room for it.

        Raises:
            ClientLeft: the other end is gone, or nothing happened for too long.
        """
        if self._owed > MOST_OWED_BYTES:
            await self._patiently(self._drained)
        while self._room.is_full:
            await self._patiently(self._room.wait)
        clock = asyncio.get_running_loop().time
        while True:
            began_at = clock()
            try:
                async with asyncio.timeout(self._idle_s):
                    return await self._pipe.read()
            except TimeoutError:
                if self._sent_at < began_at:
                    raise ClientLeft(f"nothing happened for {self._idle_s:.0f} s") from None

    def answer(self, data: bytes) -> None:
        """Send what cannot wait; it is counted until the client reads."""
        if data:
            self._pipe.write(data)
            self._owed += len(data)

    async def send(self, data: bytes) -> None:
        """Send, and return once there is room for more.

        Raises:
            ClientLeft: the other end is gone.
        """
        self._pipe.write(data)
        await self._drained()
        self._sent_at = asyncio.get_running_loop().time()

    async def _drained(self) -> None:
        await self._pipe.drain()
        self._owed = 0

    async def _patiently(self, wait: Callable[[], Awaitable[None]]) -> None:
        """Wait for something that is not the client's next word, as long as it is there."""
        while True:
            try:
                async with asyncio.timeout(LOOK_S):
                    return await wait()
            except TimeoutError:
                if self._pipe.left():
                    raise ClientLeft("the client left") from None
