"""HTTP/1.1 over TLS: what a connection may cost, and how it can be taken over."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import pytest

from gp4u.errors import BadInput
from gp4u.kubelet.server.http import Handler, Limits, Reply, Request, Takeover
from gp4u.kubelet.server.keys import context_of, new_key, self_signed
from gp4u.kubelet.server.listener import Listener
from gp4u.kubelet.streams.upgrade import Upgrade

QUICK = Limits(handshake_s=0.3, head_s=0.3, body_s=0.3, idle_s=0.3, write_s=0.5)


def served_with() -> ssl.SSLContext:
    """Return TLS with a fresh certificate of our own."""
    pair = self_signed(new_key(), node_name="n", address="127.0.0.1", at=datetime.now(UTC))
    return context_of(pair, None)


SERVED_WITH = served_with()


@asynccontextmanager
async def serving(
    handle: Handler,
    limits: Limits | None = None,
    context: Callable[[], ssl.SSLContext] = lambda: SERVED_WITH,
) -> AsyncIterator[Listener]:
    """Serve on a free port of loopback."""
    listener = Listener(handle, context=context, limits=limits)
    async with asyncio.TaskGroup() as group:
        listener.open("127.0.0.1", 0)
        task = group.create_task(listener.run())
        await listener.started.wait()
        yield listener
        task.cancel()


async def connect(listener: Listener) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect without looking at the certificate."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    assert listener.address is not None
    return await asyncio.open_connection(*listener.address, ssl=context)


async def ask(listener: Listener, sent: bytes) -> bytes:
    """Send bytes, and return everything that comes until the server closes."""
    reader, writer = await connect(listener)
    writer.write(sent)
    async with asyncio.timeout(5):
        got = await reader.read()
    writer.close()
    return got


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop turn until it holds."""
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - of the server's inside, which tells nobody
            await asyncio.sleep(0)


def idle(listener: Listener) -> int:
    """Return how many connections wait for a request."""
    return sum(each is not None and each.is_idle for each in listener._open.values())


async def hello(request: Request) -> Reply:
    """Tell back what was asked."""
    return Reply(
        body=f"{request.method} {request.path} {request.first('a')} ".encode() + request.body
    )


async def test_a_connection_serves_one_request_after_the_other() -> None:
    """The API server keeps its connections; pipelined requests are answered in order."""
    async with serving(hello) as listener:
        one = b"GET /x%20y?a=1 HTTP/1.1\r\nHost: n\r\n\r\n"
        two = b"POST /z HTTP/1.1\r\nHost: n\r\nContent-Length: 3\r\n\r\nabc"
        end = b"GET /end HTTP/1.1\r\nHost: n\r\nConnection: close\r\n\r\n"
        got = await ask(listener, one + two + end)
    assert [part.split(b"\r\n\r\n")[-1] for part in got.split(b"HTTP/1.1 200 ")[1:]] == [
        b"GET /x%20y 1 ",
        b"POST /z None abc",
        b"GET /end None ",
    ]


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: n\r\nX: " + b"x" * 70_000 + b"\r\n", 431),
        (b"POST / HTTP/1.1\r\nHost: n\r\nContent-Length: 2000000\r\n\r\n" + b"x" * 1_100_000, 413),
        (
            b"POST / HTTP/1.1\r\nHost: n\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n"
            b"\r\n0\r\n\r\n",
            400,
        ),
        (b"GET / HTTP/1.1\r\nHost: n\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (b"nonsense\r\n\r\n", 400),
        (b"GET /?" + b"&".join(b"a=1" for _ in range(1100)) + b" HTTP/1.1\r\nHost: n\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHo", 408),
        (b"POST / HTTP/1.1\r\nHost: n\r\nContent-Length: 5\r\n\r\nab", 408),
    ],
)
async def test_what_cannot_be_read_is_answered_and_cut_off(sent: bytes, status: int) -> None:
    """Oversized, slow and two-faced requests (S12, S13, S14)."""
    async with serving(hello, QUICK) as listener:
        got = await ask(listener, sent)
    assert got.startswith(b"HTTP/1.1 %d " % status)


@pytest.mark.parametrize(
    ("more", "status"),
    [
        (b"", 200),
        (b"Content-Length: 5\r\n", 408),
        (b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", 400),
    ],
)
async def test_a_head_is_answered_without_a_body(more: bytes, status: int) -> None:
    """Nor can a bad one, which needs no name to be sent, end the port for everybody."""
    async with serving(hello, QUICK) as listener:
        both = await ask(listener, b"HEAD /x HTTP/1.1\r\nHost: n\r\n\r\nnonsense\r\n\r\n")
        got = await ask(listener, b"HEAD /x HTTP/1.1\r\nHost: n\r\n" + more + b"\r\n")
        after = await ask(listener, b"GET /y HTTP/1.1\r\nHost: n\r\n\r\n")
    assert got.startswith(b"HTTP/1.1 %d " % status)
    assert got.endswith(b"\r\n\r\n")
    assert both.endswith(b"\r\n\r\nbad request\n")
    assert after.endswith(b"GET /y None ")


async def test_a_silent_connection_is_closed() -> None:
    """Connections that never ask must not use up the descriptors (S14)."""
    async with serving(hello, QUICK) as listener:
        assert await ask(listener, b"") == b""
        got = await ask(listener, b"GET / HTTP/1.1\r\nHost: n\r\n\r\n")
    assert got.endswith(b"GET / None ")


async def test_a_handshake_that_does_not_come_is_given_up() -> None:
    """A port scan speaks no TLS."""
    async with serving(hello, QUICK) as listener:
        assert listener.address is not None
        reader, writer = await asyncio.open_connection(*listener.address)
        async with asyncio.timeout(5):
            assert await reader.read() == b""
        writer.close()
        reader, writer = await asyncio.open_connection(*listener.address)
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        async with asyncio.timeout(5):
            await reader.read()
        writer.close()
        assert (await ask(listener, b"GET / HTTP/1.0\r\n\r\n")).endswith(b"GET / None ")


async def test_a_newcomer_takes_the_place_of_an_idle_connection() -> None:
    """The cap must not let idle ones keep the API server out."""
    async with serving(hello, Limits(connections=2)) as listener:
        waiting = [await connect(listener) for _ in range(2)]
        await until(lambda: idle(listener) == 2)
        got = await ask(listener, b"GET / HTTP/1.1\r\nHost: n\r\nConnection: close\r\n\r\n")
        for _, writer in waiting:
            writer.close()
    assert got.startswith(b"HTTP/1.1 200 ")


async def test_an_idle_connection_makes_room_for_one_newcomer_only() -> None:
    """One whose peer does not agree to its end is open for a while: that must not lift the cap."""
    async with serving(hello, Limits(connections=2)) as listener:
        assert listener.address is not None
        waiting = [await connect(listener) for _ in range(2)]
        await until(lambda: idle(listener) == 2)
        for _, writer in waiting:
            assert isinstance(writer.transport, asyncio.Transport)
            writer.transport.pause_reading()
        newcomers = [await asyncio.open_connection(*listener.address) for _ in range(8)]
        for reader, writer in newcomers[2:]:
            async with asyncio.timeout(1):
                assert await reader.read() == b""
            writer.close()
        assert len(listener._open) <= 4
        for _, writer in (*waiting, *newcomers):
            writer.transport.abort()


async def test_a_bug_in_one_request_is_not_another_ones() -> None:
    """A traceback belongs in the log, and a 500 to whoever asked."""

    async def handle(request: Request) -> Reply:
        if request.path == "/bad":
            raise ZeroDivisionError
        return Reply(body=b"fine")

    async with serving(handle) as listener:
        bad = b"GET /bad HTTP/1.1\r\nHost: n\r\n\r\n"
        good = b"GET /good HTTP/1.1\r\nHost: n\r\nConnection: close\r\n\r\n"
        got = await ask(listener, bad + good)
    assert got.startswith(b"HTTP/1.1 500 ")
    assert got.endswith(b"fine")
    assert b"ZeroDivision" not in got


async def test_a_bug_in_a_connection_that_was_taken_over_is_not_another_ones() -> None:
    """A command that breaks in a way nobody thought of must not take the node along."""

    async def serve(upgrade: Upgrade) -> None:
        raise ZeroDivisionError(upgrade.path)

    async def handle(request: Request) -> Reply | Takeover:
        return Takeover(serve) if request.path == "/exec" else await hello(request)

    async with serving(handle) as listener:
        assert await ask(listener, b"GET /exec HTTP/1.1\r\nHost: n\r\n\r\n") == b""
        got = await ask(listener, b"GET /x HTTP/1.0\r\n\r\n")
    assert got.endswith(b"GET /x None ")


async def test_a_client_that_leaves_ends_its_reply_within_a_second() -> None:
    """`kubectl logs -f` ends by Ctrl-C; a follower that is left asks a market for ever (K18)."""
    ended = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        try:
            yield b"first"
            await asyncio.Event().wait()
        finally:
            ended.set()

    async def handle(request: Request) -> Reply:
        return Reply(body=endless())

    async with serving(handle) as listener:
        reader, writer = await connect(listener)
        writer.write(b"GET / HTTP/1.1\r\nHost: n\r\n\r\n")
        assert b"first" in await reader.readuntil(b"first\r\n")
        writer.close()
        async with asyncio.timeout(1):
            await ended.wait()


async def test_a_client_that_does_not_read_holds_no_memory() -> None:
    """Logs are made as they are read: nothing piles up for a paused `less` (K18)."""
    made = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal made
        while True:
            made += 1
            yield b"x" * 65536
            await asyncio.sleep(0)

    async def handle(request: Request) -> Reply:
        return Reply(body=endless())

    async with serving(handle) as listener:
        _, writer = await connect(listener)
        writer.write(b"GET / HTTP/1.1\r\nHost: n\r\n\r\n")
        before = -1
        while before != made:
            before = made
            for _ in range(100):
                await asyncio.sleep(0)
        assert 0 < made < 400
        writer.transport.abort()


async def test_a_reply_that_breaks_is_seen_to_be_cut_off() -> None:
    """Half a log must not look like a whole one."""

    async def broken() -> AsyncIterator[bytes]:
        yield b"half"
        raise ZeroDivisionError

    async def handle(request: Request) -> Reply:
        return Reply(body=broken())

    async with serving(handle) as listener:
        got = await ask(listener, b"GET / HTTP/1.1\r\nHost: n\r\n\r\n")
    assert b"half" in got
    assert not got.endswith(b"0\r\n\r\n")


async def test_a_connection_is_handed_over_with_what_was_read_already() -> None:
    """Bytes behind the head belong to the other protocol; losing them hangs kubectl."""

    async def take(upgrade: Upgrade) -> None:
        await upgrade.accept([("Connection", "Upgrade"), ("Upgrade", "SPDY/3.1")])
        upgrade.write(b"got " + await upgrade.read())
        await upgrade.drain()
        await upgrade.aclose()

    async def handle(request: Request) -> Takeover:
        assert request.header("upgrade") == "SPDY/3.1"
        return Takeover(take)

    async with serving(handle) as listener:
        head = (
            b"POST /exec HTTP/1.1\r\nHost: n\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n"
            b"Content-Length: 0\r\n\r\n"
        )
        got = await ask(listener, head + b"\x80\x03bytes")
    assert got.startswith(b"HTTP/1.1 101 ")
    assert got.endswith(b"got \x80\x03bytes")


async def test_an_upgrade_that_is_refused_leaves_the_connection_in_use() -> None:
    """A 403 to an exec is an answer like any other."""

    async def handle(request: Request) -> Reply:
        return Reply(status=403, body=b"no")

    async with serving(handle) as listener:
        one = b"GET /exec HTTP/1.1\r\nHost: n\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
        two = b"GET / HTTP/1.1\r\nHost: n\r\nConnection: close\r\n\r\n"
        got = await ask(listener, one + two)
    assert got.count(b"HTTP/1.1 403 ") == 2


async def test_the_next_connection_has_the_new_certificate() -> None:
    """Certificates are replaced without a restart (S20); open connections go on."""
    contexts = [served_with(), served_with()]

    def seen(writer: asyncio.StreamWriter) -> bytes:
        told = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        assert isinstance(told, bytes)
        return told

    async with serving(hello, context=lambda: contexts[0]) as listener:
        reader, writer = await connect(listener)
        before = seen(writer)
        contexts.reverse()
        _, other = await connect(listener)
        assert seen(other) != before
        writer.write(b"GET / HTTP/1.1\r\nHost: n\r\nConnection: close\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 200 OK")
        writer.close()
        other.close()


async def test_idle_connections_are_dropped_when_trust_changes() -> None:
    """Whom an old CA let in must come again under the new one."""
    async with serving(hello) as listener:
        reader, writer = await connect(listener)
        writer.write(b"GET / HTTP/1.1\r\nHost: n\r\n\r\n")
        await reader.readuntil(b"GET / None ")
        await until(lambda: idle(listener) == 1)
        listener.drop_idle()
        async with asyncio.timeout(1):
            assert await reader.read() == b""
        writer.close()


async def test_a_busy_connection_is_dropped_behind_its_reply_when_trust_changes() -> None:
    """A client of the former CA must not live on because it was asking when the CA went."""
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def handle(request: Request) -> Reply:
        asked.set()
        await go_on.wait()
        return await hello(request)

    async with serving(handle) as listener, asyncio.timeout(5):
        reader, writer = await connect(listener)
        writer.write(b"GET /one HTTP/1.1\r\nHost: n\r\n\r\n")
        await asked.wait()
        listener.drop_idle()
        writer.write(b"GET /two HTTP/1.1\r\nHost: n\r\n\r\n")
        go_on.set()
        got = await reader.read()
        writer.close()
    assert got.endswith(b"GET /one None ")


async def test_a_port_that_is_taken_is_told_in_words() -> None:
    """Two nodes on one machine are set up by mistake; a traceback helps nobody."""
    async with serving(hello) as listener:
        assert listener.address is not None
        with pytest.raises(BadInput, match="cannot be listened on"):
            Listener(hello, context=served_with).open(*listener.address)
