"""Clients of the kubelet's streams, written from the wire formats and sharing no code with ours.

`SpdyClient` packs and unpacks frames by hand, `WebSocketClient` as well; both keep what comes, by
stream, until a test asks. `Line` is one connection with a server function at its other end.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import os
import socket
import struct
import zlib
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from gp4u.kubelet.streams.spdy_headers import DICTIONARY
from gp4u.kubelet.streams.upgrade import Upgrade

Serve = Callable[[Upgrade], Awaitable[None]]


class Line:
    """The client's end of a connection, and the server's task."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        tasks: asyncio.TaskGroup,
        task: asyncio.Task[None],
    ) -> None:
        self.reader, self.writer = reader, writer
        self.tasks, self.task = tasks, task

    def meanwhile(self, sending: Awaitable[None]) -> None:
        """Send something that takes its time; that the connection ends is no error."""
        self.tasks.create_task(_tolerant(sending))

    async def reply(self) -> tuple[int, dict[str, list[str]], bytes]:
        """Return status, headers by lower-case name, and the body of an error."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers: dict[str, list[str]] = defaultdict(list)
        for line in head[1:]:
            name, colon, value = line.partition(":")
            if colon:
                headers[name.lower()].append(value.strip())
        length = int(headers.get("content-length", ["0"])[0])
        return int(head[0].split()[1]), headers, await self.reader.readexactly(length)

    def leave(self, *, reset: bool = False) -> None:
        """Vanish, as a process that is killed does; `reset`: what it sent last is lost."""
        if reset:
            connection = self.writer.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


def _pair(tcp: bool) -> tuple[socket.socket, socket.socket]:
    if not tcp:
        return socket.socketpair()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        client = socket.create_connection(listening.getsockname())
        server, _ = listening.accept()
    return client, server


@asynccontextmanager
async def line(
    serve: Serve,
    method: str,
    target: str,
    headers: Sequence[tuple[str, str]],
    *,
    pending: bytes = b"",
    tcp: bool = False,
) -> AsyncIterator[Line]:
    """Yield a connection whose request has been read; ends the server if it has not ended."""
    near, far = _pair(tcp)
    reader, writer = await asyncio.open_connection(sock=near)
    upgrade = Upgrade(
        method, target, headers, *await asyncio.open_connection(sock=far), pending=pending
    )
    try:
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(_served(serve, upgrade))
            yield Line(reader, writer, tasks, task)
            writer.transport.abort()
            task.cancel()
    finally:
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def _tolerant(sending: Awaitable[None]) -> None:
    with contextlib.suppress(OSError):
        await sending


async def _served(serve: Serve, upgrade: Upgrade) -> None:
    await serve(upgrade)


def spdy_headers(*versions: str) -> list[tuple[str, str]]:
    """Return the headers of a SPDY upgrade that offers these stream protocols."""
    asked = [("Connection", "Upgrade"), ("Upgrade", "SPDY/3.1")]
    return asked + [("X-Stream-Protocol-Version", each) for each in versions]


def websocket_headers(*protocols: str) -> list[tuple[str, str]]:
    """Return the headers of a WebSocket upgrade that offers these subprotocols."""
    asked = [
        ("Connection", "Upgrade"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Key", base64.b64encode(os.urandom(16)).decode()),
        ("Sec-WebSocket-Version", "13"),
    ]
    return asked + ([("Sec-WebSocket-Protocol", ", ".join(protocols))] if protocols else [])


class Client:
    """Reads frames as tests ask for them, and keeps what they said."""

    def __init__(self, line: Line) -> None:
        self.line = line
        self.ended_at_all = False

    async def until(self, happened: Callable[[], Any]) -> None:
        """Read on until something happened; the connection's end is an error, unless it is it."""
        while not happened():
            if self.ended_at_all:
                raise EOFError("the connection ended")
            try:
                await self._one()
            except (asyncio.IncompleteReadError, OSError):
                self.ended_at_all = True

    async def until_closed(self) -> None:
        """Read on until the server closed the connection."""
        await self.until(lambda: self.ended_at_all)

    async def _one(self) -> None:
        raise NotImplementedError

    async def push(self, data: bytes) -> None:
        """Send, with patience."""
        self.line.writer.write(data)
        await self.line.writer.drain()


class SpdyClient(Client):
    """A client of SPDY/3.1."""

    def __init__(self, line: Line) -> None:
        super().__init__(line)
        self._deflate = zlib.compressobj(9, 8, 15, 9, 0, DICTIONARY)
        self._inflate = zlib.decompressobj(15, DICTIONARY)
        self._next = 1
        self.data: dict[int, bytes] = defaultdict(bytes)
        self.counted: dict[int, int] = defaultdict(int)
        self.keeps = True
        self.fins: list[int] = []
        self.resets: dict[int, int] = {}
        self.replied: list[int] = []
        self.pongs: list[int] = []
        self.gone_away = False

    async def open(self, headers: Mapping[str, str]) -> int:
        """Open a stream; returns its number without waiting for the reply."""
        number, self._next = self._next, self._next + 2
        plain = struct.pack(">I", len(headers))
        for pair in headers.items():
            for text in pair:
                plain += struct.pack(">I", len(text.encode())) + text.encode()
        block = self._deflate.compress(plain) + self._deflate.flush(zlib.Z_SYNC_FLUSH)
        body = struct.pack(">IIBB", number, 0, 0, 0) + block
        await self.push(struct.pack(">HHBBH", 0x8003, 1, 0, 0, len(body)) + body)
        return number

    async def send(self, stream: int, data: bytes, *, fin: bool = False) -> None:
        """Send a data frame."""
        head = struct.pack(">I", stream) + bytes((int(fin),)) + len(data).to_bytes(3, "big")
        await self.push(head + data)

    async def reset(self, stream: int) -> None:
        """Give a stream up."""
        await self.push(struct.pack(">HHIII", 0x8003, 3, 8, stream, 5))

    async def ping(self, number: int) -> None:
        """Ask for a sign of life."""
        await self.push(struct.pack(">HHII", 0x8003, 6, 4, number))

    async def go_away(self) -> None:
        """Say that this was all."""
        await self.push(struct.pack(">HHIII", 0x8003, 7, 8, 0, 0))

    async def _one(self) -> None:
        head = await self.line.reader.readexactly(8)
        length = int.from_bytes(head[5:], "big")
        body = await self.line.reader.readexactly(length)
        first = int.from_bytes(head[:4], "big")
        if not first >> 31:
            assert first not in self.fins, "data after the end of a stream"
            self.counted[first] += length
            if self.keeps:
                self.data[first] += body
            if head[4] & 1:
                self.fins.append(first)
            return
        assert first >> 16 == 0x8003
        number = int.from_bytes(body[:4], "big")
        match first & 0xFFFF:
            case 2:
                assert self._inflate.decompress(body[4:]) == b"\0\0\0\0"
                self.replied.append(number)
            case 3:
                self.resets[number] = int.from_bytes(body[4:], "big")
            case 6:
                self.pongs.append(number)
            case 7:
                self.gone_away = True
            case kind:
                raise AssertionError(f"a frame of type {kind}")


class WebSocketClient(Client):
    """A client of RFC 6455; keeps messages by their first byte."""

    def __init__(self, line: Line) -> None:
        super().__init__(line)
        self.messages: list[tuple[int, bytes]] = []
        """Opcode and payload."""
        self.pongs: list[bytes] = []
        self.close_code: int | None = None

    def of(self, channel: int) -> bytes:
        """Return all that came on a channel of a binary subprotocol."""
        return b"".join(data[1:] for _, data in self.messages if data[0] == channel)

    async def message(self, data: bytes, *, opcode: int = 2, fin: bool = True) -> None:
        """Send a masked frame."""
        mask = os.urandom(4)
        size = len(data)
        if size < 126:
            head = bytes((fin << 7 | opcode, 0x80 | size))
        elif size < 65536:
            head = struct.pack(">BBH", fin << 7 | opcode, 0x80 | 126, size)
        else:
            head = struct.pack(">BBQ", fin << 7 | opcode, 0x80 | 127, size)
        stream = int.from_bytes((mask * (size // 4 + 1))[:size], "big")
        masked = (int.from_bytes(data, "big") ^ stream).to_bytes(size, "big")
        await self.push(head + mask + masked)

    async def close(self) -> None:
        """Begin the end of the connection."""
        await self.message(struct.pack(">H", 1000), opcode=8)

    async def _one(self) -> None:
        first, second = await self.line.reader.readexactly(2)
        assert not second & 0x80, "a server does not mask"
        size = second & 0x7F
        if size == 126:
            (size,) = struct.unpack(">H", await self.line.reader.readexactly(2))
        elif size == 127:
            (size,) = struct.unpack(">Q", await self.line.reader.readexactly(8))
        data = await self.line.reader.readexactly(size)
        match first & 0xF:
            case 1 | 2:
                assert first & 0x80
                self.messages.append((first & 0xF, data))
            case 8:
                self.close_code = int.from_bytes(data[:2], "big")
                await self.message(data, opcode=8)
            case 10:
                self.pongs.append(data)
            case opcode:
                raise AssertionError(f"a frame of opcode {opcode}")


def accept_of(headers: Sequence[tuple[str, str]]) -> str:
    """Return the answer that RFC 6455 wants for the key of a request."""
    key = dict(headers)["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
    return base64.b64encode(hashlib.sha1(key.encode(), usedforsecurity=False).digest()).decode()
