"""The wire: raw bytes against a real server on loopback; whatever they are, it stays up."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest
import uvicorn
from fastapi import APIRouter, FastAPI, Request
from starlette.responses import Response, StreamingResponse

from gp4u.api import failing
from gp4u.api.door.door import Door
from gp4u.api.door.tokens import Tokens
from gp4u.api.door.wire import FILES_KEPT, WireLimits, _at_most, server_config
from gp4u.api.replies import role
from gp4u.api.server import serve_api

GOOD = b"GET /api/v1/gpus HTTP/1.1\r\nHost: localhost\r\n\r\n"
POST = b"POST /api/v1/echo HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
QUICK = WireLimits(header_timeout_s=0.2, stall_s=0.2, linger_s=0.2, stop_s=1)
"""Patience shrunk, so that a test waits for the server and not for the clock."""
LARGE = 8 << 20
"""More than the kernel takes for a peer that does not read."""


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Served:
    """A small app behind door and wire."""

    def __init__(self, limits: WireLimits, **door: Any) -> None:
        self.ended = asyncio.Event()
        app = FastAPI(openapi_url=None)
        app.include_router(self._routes())
        failing.install(app)
        self.server = _Server(server_config(Door(app, tokens=Tokens(), **door), limits))
        self.port = 0

    def _routes(self) -> APIRouter:
        router = APIRouter()

        @router.get("/api/v1/gpus", openapi_extra=role("read"))
        async def gpus() -> Response:
            return Response(b"good", media_type="text/plain")

        @router.get("/api/v1/large", openapi_extra=role("read"))
        async def large() -> Response:
            return Response(bytes(LARGE))

        @router.post("/api/v1/echo", openapi_extra=role("rent"))
        async def echo(request: Request) -> Response:
            return Response(await request.body())

        @router.get("/api/v1/events", openapi_extra=role("read"))
        async def events() -> Response:
            async def lines() -> AsyncIterator[bytes]:
                try:
                    yield b"one\n"
                    await asyncio.Event().wait()
                finally:
                    self.ended.set()

            return StreamingResponse(lines())

        return router

    async def dial(self) -> Peer:
        return Peer(*await asyncio.open_connection("127.0.0.1", self.port))

    async def say(self, *parts: bytes) -> bytes:
        """Send bytes on a new connection and return all that comes until the server ends it."""
        async with await self.dial() as peer:
            for part in parts:
                await peer.send(part)
            return await peer.rest()

    async def is_up(self) -> bool:
        """Whether a good request is answered."""
        async with await self.dial() as peer:
            await peer.send(GOOD)
            status, _, body = await peer.reply()
            return (status, body) == (200, b"good")


class Peer:
    """A client's end of a connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def __aenter__(self) -> Peer:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.transport.abort()

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def reply(self) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers and body of one reply that says its length."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
        body = await self.reader.readexactly(int(headers["content-length"]))
        return int(head[0].split()[1]), headers, body

    async def rest(self) -> bytes:
        """Return everything up to the end, however it ends."""
        found = bytearray()
        try:
            while data := await self.reader.read(65_536):
                found += data
        except ConnectionError:
            pass
        return bytes(found)


@asynccontextmanager
async def serving(limits: WireLimits = QUICK, **door: Any) -> AsyncIterator[Served]:
    served = Served(limits, **door)
    listener = socket.create_server(("127.0.0.1", 0))
    served.port = listener.getsockname()[1]
    async with asyncio.TaskGroup() as group:
        task = group.create_task(served.server.serve(sockets=[listener]))
        try:
            yield served
        finally:
            served.server.should_exit = True
            await task


def status_of(reply: bytes) -> int:
    return int(reply.split(b" ", 2)[1])


async def test_a_good_request_is_answered_and_the_connection_kept() -> None:
    """The yardstick of all the others."""
    async with serving() as served, await served.dial() as peer:
        for _ in range(3):
            await peer.send(GOOD)
            assert (await peer.reply())[::2] == (200, b"good")


@pytest.mark.parametrize("begun", [b"", b"GET /api/v1/gpus HTTP/1.1\r\nHost: loc", b"G"])
async def test_a_head_that_does_not_arrive_ends_the_connection(begun: bytes) -> None:
    """A thousand peers that send a byte now and then would hold every connection there is."""
    async with serving() as served:
        reply = await served.say(begun)
        assert status_of(reply) == 408 if begun else reply == b""
        assert await served.is_up()


async def test_bytes_that_trickle_do_not_prolong_a_head() -> None:
    """The deadline is for the whole head, not for the next byte."""
    async with serving() as served, await served.dial() as peer:
        async with asyncio.TaskGroup() as group:
            trickle = group.create_task(_trickle(peer))
            reply = await peer.rest()
            trickle.cancel()
        assert status_of(reply) == 408
        assert await served.is_up()


async def _trickle(peer: Peer) -> None:
    for byte in GOOD * 1000:
        await peer.send(bytes([byte]))
        await asyncio.sleep(0.02)


async def test_a_slow_second_head_has_the_same_deadline() -> None:
    """A first good request must not buy endless patience."""
    async with serving() as served, await served.dial() as peer:
        await peer.send(GOOD)
        assert (await peer.reply())[0] == 200
        await peer.send(b"GET /")
        assert status_of(await peer.rest()) == 408
        assert await served.is_up()


@pytest.mark.parametrize(
    "framing", [b"Content-Length: 100\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n5\r\n12"]
)
async def test_a_body_that_stalls_ends_the_connection(framing: bytes) -> None:
    """It holds a place among the requests that are served."""
    async with serving() as served:
        assert await served.say(POST + framing) == b""
        assert await served.is_up()


async def test_a_body_that_only_crawls_ends_the_connection() -> None:
    """A byte now and then is no progress."""
    limits = WireLimits(stall_s=0.2, min_bytes_per_s=1000)
    async with serving(limits) as served, await served.dial() as peer:
        await peer.send(POST + b"Content-Length: 100000\r\n\r\n")
        async with asyncio.TaskGroup() as group:
            trickle = group.create_task(_trickle(peer))
            assert await peer.rest() == b""
            trickle.cancel()
        assert await served.is_up()


async def test_a_body_that_moves_is_waited_for() -> None:
    """Slow is not bad: beyond the least rate a body may take several looks."""
    limits = WireLimits(stall_s=0.1, min_bytes_per_s=100)
    async with serving(limits) as served, await served.dial() as peer:
        await peer.send(POST + b"Content-Length: 600\r\n\r\n")
        for _ in range(6):
            await asyncio.sleep(0.06)
            await peer.send(b"x" * 100)
        assert (await peer.reply())[::2] == (200, b"x" * 600)


async def test_the_rest_of_a_refused_body_is_not_read_for_ever() -> None:
    """It is refused at once, and who goes on sending is cut off."""
    async with serving(max_body_bytes=1024) as served, await served.dial() as peer:
        await peer.send(POST + b"Transfer-Encoding: chunked\r\n\r\n" + b"400\r\n" + b"x" * 1024)
        await peer.send(b"\r\n400\r\n" + b"x" * 1024 + b"\r\n")
        status, _, body = await peer.reply()
        assert (status, json.loads(body)["code"]) == (413, "body_too_large")
        assert await peer.rest() == b""
        assert await served.is_up()


async def test_after_a_refused_body_that_came_whole_the_connection_goes_on() -> None:
    """A client that sent it already should not have to dial again."""
    async with serving(max_body_bytes=1024) as served, await served.dial() as peer:
        await peer.send(POST + b"Content-Length: 2000\r\n\r\n" + b"x" * 2000 + GOOD)
        assert (await peer.reply())[0] == 413
        assert (await peer.reply())[::2] == (200, b"good")


async def test_a_peer_that_does_not_read_is_cut_off() -> None:
    """Its reply would stay in memory, and its place be taken, for ever."""
    async with serving() as served, await served.dial() as peer:
        peer.writer.transport.pause_reading()  # type: ignore[attr-defined] # a transport that reads as well
        await peer.send(b"GET /api/v1/large HTTP/1.1\r\nHost: localhost\r\n\r\n")
        while not served.server.server_state.connections:  # noqa: ASYNC110 - uvicorn tells nobody
            await asyncio.sleep(0.01)
        while served.server.server_state.connections:  # noqa: ASYNC110 - uvicorn tells nobody
            await asyncio.sleep(0.01)
        peer.writer.transport.resume_reading()  # type: ignore[attr-defined] # as above
        assert len(await peer.rest()) < LARGE
        assert await served.is_up()


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /api/v1/gpus?" + b"x" * 9000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 414),
        (b"GET /api/v1/gpus HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 17_000 + b"\r\n\r\n", 431),
        (b"GET /api/v1/gpus HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 101 + b"\r\n", 431),
        (b"GET /api/v1/gpus HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 100_000, 431),
        (b"GET /" + b"x" * 100_000, 431),
        (b"BREW /api/v1/gpus HTTP/1.1\r\nHost: localhost\r\n\r\n", 405),
        (b"GET /api/v1/gpus HTTP/1.1\r\n\r\n", 400),
        (b"GET /api/v1/gpus HTTP/1.1\r\nHost: a\r\nHost: localhost\r\n\r\n", 400),
        (b"GET /api/v1/gpus HTTP/1.0\r\n\r\n", 421),
        (b"GET /api/v1/gp\x00us HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"GET /api/v1/gpus HTTP/1.1\r\nHost: localhost\r\nX: \x00\r\n\r\n", 400),
        (b"GET /api/v1/gpus%00 HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
        (b"GET http://evil.example/api/v1/gpus HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
        (b"CONNECT localhost:1 HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
        (b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 421),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
        (b"GET /api/v1/gpus\r\n\r\n", 400),
        (b"\x00" * 70_000, 400),
    ],
)
async def test_a_bad_head_is_told_as_a_problem(head: bytes, status: int) -> None:
    """Also where no route is ever reached, an answer is one that a program can read."""
    async with serving() as served:
        async with await served.dial() as peer:
            await peer.send(head)
            found, headers, body = await peer.reply()
            assert found == status
            assert headers["content-type"] == "application/problem+json"
            assert json.loads(body)["status"] == status
        assert await served.is_up()


@pytest.mark.parametrize(
    "framing",
    [
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n12345",
        b"Content-Length: 5, 6\r\n\r\n12345",
        b"Content-Length: +5\r\n\r\n12345",
        b"Content-Length: 5 5\r\n\r\n12345",
        b"Content-Length: 0x5\r\n\r\n12345",
        b"Content-Length : 5\r\n\r\n12345",
        b"Transfer-Encoding: identity\r\n\r\n",
        b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
        b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        b"Transfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\nzz\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n-1\r\n\r\n",
    ],
)
async def test_a_body_with_two_framings_is_refused_and_nothing_behind_it_is_served(
    framing: bytes,
) -> None:
    """What one reader takes for a body, the next would take for a request of somebody else's."""
    smuggled = b"GET /api/v1/gpus?smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n"
    async with serving() as served:
        reply = await served.say(POST + framing + smuggled)
        assert status_of(reply) == 400
        assert reply.count(b"HTTP/1.1 ") == 1
        assert b"good" not in reply
        assert await served.is_up()


async def test_a_small_reply_leaves_at_once() -> None:
    """Its body would wait 40 ms for the peer to acknowledge its head (Nagle, delayed ACK)."""
    async with serving() as served, await served.dial() as peer:
        await peer.send(GOOD)
        await peer.reply()
        (connection,) = served.server.server_state.connections
        accepted = connection.transport.get_extra_info("socket")
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_pipelined_requests_are_answered_in_turn() -> None:
    """HTTP/1.1 allows it, and an order that is wrong gives one caller another's answer."""
    async with serving() as served, await served.dial() as peer:
        body = b"Content-Length: 3\r\n\r\n"
        await peer.send((POST + body + b"one" + GOOD + POST + body + b"two") * 20)
        for _ in range(20):
            assert [(await peer.reply())[2] for _ in range(3)] == [b"one", b"good", b"two"]


async def test_half_a_connection_closed_is_a_caller_gone() -> None:
    """Nobody who still wants an answer closes its end; the server is not held up."""
    async with serving() as served:
        async with await served.dial() as peer:
            await peer.send(POST + b"Content-Length: 100\r\n\r\nabc")
            peer.writer.write_eof()
            assert await peer.rest() == b""
        async with await served.dial() as peer:
            await peer.send(b"GET /api/v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await peer.reader.readuntil(b"one")
            peer.writer.write_eof()
            async with asyncio.timeout(10):
                await served.ended.wait()
        assert await served.is_up()


async def test_an_upgrade_is_ignored() -> None:
    """There is nothing to upgrade to; the request is answered as what it is."""
    head = GOOD[:-2] + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    async with serving() as served, await served.dial() as peer:
        await peer.send(head)
        assert (await peer.reply())[::2] == (200, b"good")


async def test_three_hundred_connections_at_once_are_all_served() -> None:
    """A crowd is not an attack."""
    async with serving() as served, asyncio.TaskGroup() as group:
        tasks = [group.create_task(served.is_up()) for _ in range(300)]
    assert all(task.result() for task in tasks)


async def test_a_newcomer_takes_the_place_of_who_waits_longest() -> None:
    """Whoever holds all connections without a request must not shut out somebody with one."""
    limits = WireLimits(max_connections=3)
    async with serving(limits) as served:
        idle = [await served.dial() for _ in range(3)]
        await idle[1].send(GOOD)
        assert (await idle[1].reply())[0] == 200
        await idle[2].send(GOOD)
        assert (await idle[2].reply())[0] == 200
        assert await served.is_up()
        assert await idle[0].rest() == b""
        await idle[2].send(GOOD)
        assert (await idle[2].reply())[0] == 200
        for peer in idle:
            peer.writer.transport.abort()


async def test_where_every_connection_is_at_work_a_newcomer_gets_503() -> None:
    """An answer, not a connection that hangs."""
    async with serving(WireLimits(max_connections=2, stop_s=1)) as served:
        busy = [await served.dial() for _ in range(2)]
        for peer in busy:
            await peer.send(b"GET /api/v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await peer.reader.readuntil(b"one")
        assert status_of(await served.say()) == 503
        for peer in busy:
            peer.writer.transport.abort()


async def test_a_stop_ends_streams_in_time() -> None:
    """A dashboard that is left open must not hold up a restart."""
    loop = asyncio.get_running_loop()
    async with serving(WireLimits(stop_s=3)) as served:
        peer = await served.dial()
        await peer.send(b"GET /api/v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await peer.reader.readuntil(b"one")
        began_s = loop.time()
    assert loop.time() - began_s < 3
    assert served.ended.is_set()
    assert not (await peer.rest()).endswith(b"0\r\n\r\n")  # cut, and not told as whole
    peer.writer.transport.abort()


async def test_a_server_that_is_cancelled_leaves_no_connection_behind() -> None:
    """Ctrl-C cancels everything at once: replies end, streams are cut, and nothing hangs."""
    served, url = Served(QUICK), asyncio.Queue[str]()
    config = served.server.config
    async with asyncio.TaskGroup() as group:
        serving_it = group.create_task(
            serve_api(config, host="127.0.0.1", port=0, started=url.put_nowait)
        )
        served.port = int((await url.get()).rpartition(":")[2])
        async with await served.dial() as peer:
            await peer.send(b"GET /api/v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await peer.reader.readuntil(b"one")
            serving_it.cancel()
            await peer.rest()
    assert served.ended.is_set()
    with pytest.raises(ConnectionRefusedError):
        await served.dial()


def test_connections_leave_files_for_everything_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ledger that cannot be opened because of idle callers would stop every rent."""
    monkeypatch.setattr("gp4u.api.door.wire.resource.getrlimit", lambda _: (256, 256))
    assert _at_most(1024) == 256 - FILES_KEPT
    monkeypatch.setattr("gp4u.api.door.wire.resource.getrlimit", lambda _: (100_000, 100_000))
    assert _at_most(1024) == 1024


def test_a_header_does_not_say_who_calls() -> None:
    """Behind X-Forwarded-For anybody could be loopback."""
    config = server_config(lambda *_: None)  # type: ignore[arg-type] # never called
    assert config.proxy_headers is False
    assert config.timeout_graceful_shutdown == 3
