"""Connections to the API server, over a socket: what goes out, what comes back, what is kept."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import httpx
import pytest

from gp4u.kube.connections import Connections

Answer = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]


class Server:
    """Answers each request as it is told to, and counts connections."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self.connections = 0
        self.ended = asyncio.Event()
        """The client ended a connection."""
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = [
                    line for line in head.lower().split(b"\r\n") if b"content-length:" in line
                ]
                body = await reader.readexactly(int(length[0].split(b":")[1]) if length else 0)
                await self._answer(head + body, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            self.ended.set()
        finally:
            writer.close()


@asynccontextmanager
async def serving(answer: Answer) -> AsyncIterator[Server]:
    """Serve on a port of its own."""
    server = Server(answer)
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    host, port = listener.sockets[0].getsockname()
    server.url = f"http://{host}:{port}"
    async with listener:
        yield server


async def ok(_: bytes, writer: asyncio.StreamWriter) -> None:
    """Answer with two bytes."""
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")


async def call(
    line: Connections, url: str, method: str = "GET", body: bytes | None = None
) -> tuple[int, bytes]:
    """Make one call, and read all of its reply."""
    request = httpx.Request(method, url, content=body, headers={"x-mine": "yes"})
    reply = await line.handle_async_request(request)
    try:
        return reply.status_code, b"".join([piece async for piece in reply.aiter_bytes()])
    finally:
        await reply.aclose()


@pytest.fixture
async def line() -> AsyncIterator[Connections]:
    """Connections that are closed after the test."""
    async with Connections(ssl.create_default_context()) as line:
        yield line


async def test_a_connection_serves_one_call_after_another(line: Connections) -> None:
    """A handshake costs more than the call that it is made for."""
    async with serving(ok) as server:
        for _ in range(5):
            assert await call(line, server.url) == (200, b"ok")
        assert server.connections == 1


async def test_what_is_sent_is_what_was_asked_for(line: Connections) -> None:
    """A path is quoted once, by whoever builds it; a second time would name another object."""
    heard: list[bytes] = []

    async def hear(request: bytes, writer: asyncio.StreamWriter) -> None:
        heard.append(request)
        await ok(request, writer)

    async with serving(hear) as server:
        url = f"{server.url}/api/v1/nodes/a%2Fb?fieldSelector=x%3Dy"
        await call(line, url, "PATCH", b'{"a":1}')
    head = heard[0].lower()
    assert heard[0].startswith(b"PATCH /api/v1/nodes/a%2Fb?fieldSelector=x%3Dy HTTP/1.1\r\n")
    assert heard[0].endswith(b'\r\n\r\n{"a":1}')
    assert head.count(b"x-mine: yes") == 1
    assert head.count(b"content-length:") == head.count(b"host:") == 1


async def test_a_redirect_is_not_followed(line: Connections) -> None:
    """It would carry our token to whoever it names."""

    async def away(_: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 307 Off\r\nlocation: /there\r\ncontent-length: 0\r\n\r\n")

    async with serving(away) as server:
        assert await call(line, server.url) == (307, b"")


async def test_no_server_is_an_error_of_the_network(line: Connections) -> None:
    """The client tells outages by it, and tries again."""
    async with serving(ok) as server:
        url = server.url
    with pytest.raises(httpx.NetworkError):
        await call(line, url)


async def test_a_reply_that_breaks_off_is_an_error_of_the_network(line: Connections) -> None:
    """Half an object is not an object."""

    async def half(_: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 20\r\n\r\nhalf")
        writer.close()

    async with serving(half) as server:
        with pytest.raises(httpx.NetworkError):
            await call(line, server.url)


async def test_a_reply_that_is_left_early_ends_its_connection(line: Connections) -> None:
    """A watch that nobody reads any more must not stay open at the server."""

    async def stream(_: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n")

    async with serving(stream) as server:
        reply = await line.handle_async_request(httpx.Request("GET", server.url))
        assert await anext(reply.aiter_bytes()) == b"one"
        await reply.aclose()
        async with asyncio.timeout(10):
            await server.ended.wait()


async def test_what_is_packed_stays_packed(line: Connections) -> None:
    """We ask for plain bytes; unpacking what comes all the same could fill the memory."""

    async def packed(_: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-encoding: x-odd\r\ncontent-length: 3\r\n\r\n\x1f\x8b\x08"
        )

    async with serving(packed) as server:
        assert await call(line, server.url) == (200, b"\x1f\x8b\x08")
