"""A command in a container, over the connection that an engine gives up to it.

Hides the upgrade of an HTTP call to a stream of bytes, and the framing of two outputs on one
connection. Which calls surround it is the business of `engine.py`.

Source: Docker Engine API v1.41 reference, exec and attach ("hijacking"), checked November 2026; the
same tried against podman 4.3.1.
"""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Final

from gp4u.sim.launch import ERR, OUT, Output

_CHUNK: Final = 64 * 1024
_HEAD_BYTES: Final = 16 * 1024
_OPEN_S: Final = 60.0


class HijackRefusedError(Exception):
    """The engine answered otherwise; status, and its text."""

    def __init__(self, status: int, text: str) -> None:
        self.status = status
        super().__init__(text)


async def hijacked(
    socket: str, path: str, body: Mapping[str, object]
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Make a call that turns its connection into a stream, and return that.

    Raises:
        HijackRefusedError: the engine said no.
        OSError: it does not answer, or not in HTTP.
    """
    content = json.dumps(body).encode()
    lines = (
        f"POST {path} HTTP/1.1",
        "Host: engine",
        "Connection: Upgrade",
        "Upgrade: tcp",
        "Content-Type: application/json",
        f"Content-Length: {len(content)}",
    )
    async with asyncio.timeout(_OPEN_S):
        reader, writer = await asyncio.open_unix_connection(socket, limit=_HEAD_BYTES)
        try:
            writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + content)
            await writer.drain()
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            status = int(head.split(" ", 2)[1])
            if status not in (101, 200):
                raise HijackRefusedError(status, (await reader.read(_HEAD_BYTES)).decode())
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError) as error:
            writer.close()
            raise ConnectionError("the engine's answer is not HTTP") from error
        except BaseException:
            writer.close()
            raise
    return reader, writer


class Entered:
    """A command in a container."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        tty: bool,
        resize: Callable[[int, int], Awaitable[None]],
        code: Callable[[], Awaitable[int]],
    ) -> None:
        self._reader, self._writer, self._tty = reader, writer, tty
        self._resize, self._code = resize, code

    async def run(self, out: Output) -> int:
        """Hand on what it writes until it ends; return its exit code."""
        try:
            async for which, data in self._pieces():
                await out(which, data)
            return await self._code()
        finally:
            await self.end()

    async def write(self, data: bytes) -> None:
        """Write to its input; what comes too late is dropped."""
        with suppress(OSError):
            self._writer.write(data)
            await self._writer.drain()

    async def end_input(self) -> None:
        """Close its input; on a terminal by what a user would type."""
        if self._tty:
            await self.write(b"\x04")
            return
        with suppress(OSError):
            self._writer.write_eof()

    async def resize(self, columns: int, rows: int) -> None:
        """Tell the size of its terminal, if it has one."""
        if self._tty:
            await self._resize(columns, rows)

    async def end(self) -> None:
        """Hang up. What does not notice runs on until the container ends."""
        self._writer.close()
        with suppress(OSError):
            await self._writer.wait_closed()

    async def _pieces(self) -> AsyncIterator[tuple[int, bytes]]:
        while self._tty:
            data = await self._reader.read(_CHUNK)
            if not data:
                return
            yield OUT, data
        with suppress(asyncio.IncompleteReadError):
            while True:
                head = await self._reader.readexactly(8)
                (length,) = struct.unpack_from(">I", head, 4)
                data = await self._reader.readexactly(length)
                yield (ERR if head[0] == ERR else OUT), data
