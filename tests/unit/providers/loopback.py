"""A raw server on loopback that misbehaves as it is told, and our client against it."""

from __future__ import annotations

import asyncio
import socket
import struct
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from gp4u.errors import ProviderError
from gp4u.providers.contract import Call
from gp4u.providers.http import (
    Http,
)
from tests.unit.providers.scripted import http_over

MIB = 1024 * 1024


class Wire:
    """A raw TCP server on loopback: it reads a request's head and body, then follows its script."""

    def __init__(self) -> None:
        self.url = ""
        self.heads: list[str] = []
        self.bodies: list[bytes] = []
        self.sent = 0

    @property
    def connections(self) -> int:
        """How many requests came in."""
        return len(self.heads)


Answer = Callable[[Wire, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def serving(answer: Answer) -> AsyncIterator[Wire]:
    """Serve `answer` to every request; each has a connection of its own."""
    wire = Wire()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            length = next(
                (
                    int(line.split(":")[1])
                    for line in head.lower().split("\r\n")
                    if "content-length:" in line
                ),
                0,
            )
            wire.bodies.append(await reader.readexactly(length))
            wire.heads.append(head)
            await answer(wire, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client left, as some tests want it to
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    wire.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        yield wire


def replying(
    body: bytes, *, status: str = "200 OK", headers: str = "", length: int | None = None
) -> Answer:
    """Return an answer that sends one whole reply and closes."""

    async def answer(wire: Wire, writer: asyncio.StreamWriter) -> None:
        size = len(body) if length is None else length
        writer.write(
            f"HTTP/1.1 {status}\r\nContent-Length: {size}\r\nConnection: close\r\n".encode()
        )
        writer.write(f"{headers}\r\n".encode() + body)
        await writer.drain()

    return answer


def reset(writer: asyncio.StreamWriter) -> None:
    """Close a connection with RST instead of FIN."""
    sock: socket.socket = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


@asynccontextmanager
async def client(**options: Any) -> AsyncIterator[Http]:
    """Open an `Http` on real sockets and close it in the end."""
    http = http_over(None, **options)
    try:
        yield http
    finally:
        await http.aclose()


async def get(http: Http, url: str, *, safe: bool = True, **more: Any) -> bytes:
    """Send a GET as the operation `offers`."""
    return await http.send("offers", Call(method="GET", url=url), safe=safe, **more)


async def caught(doing: Awaitable[object]) -> ProviderError:
    """Return the provider error that something ends in."""
    with pytest.raises(ProviderError) as info:
        await doing
    return info.value


def closed_port() -> int:
    """Return a port on which nobody listens."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port: int = held.getsockname()[1]
        return port


def bomb(size: int) -> bytes:
    """Return `size` zero bytes, packed."""
    pack = zlib.compressobj(level=1, wbits=31)
    parts = [pack.compress(bytes(MIB)) for _ in range(size // MIB)]
    return b"".join([*parts, pack.flush()])
