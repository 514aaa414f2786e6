"""`exec` over WebSocket, as web terminals, the Python client and a modern kubectl speak it."""

from __future__ import annotations

import asyncio
import base64
import json
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gp4u.kubelet.streams.websocket import WebSocketConnection
from gp4u.providers.session import Stream
from tests.unit.kubelet.streams.clients import WebSocketClient, accept_of, line, websocket_headers
from tests.unit.kubelet.streams.sessions import V4, Cat, Told, serving, target
from tests.virtual_loop import run_virtual


@pytest.mark.parametrize("protocol", ["v5.channel.k8s.io", V4, "channel.k8s.io", ""])
def test_websocket_exec_carries_input_outputs_and_exit_code(protocol: str) -> None:
    """As web terminals and the Python client do, with and without a subprotocol."""

    async def go() -> None:
        session = Told()
        headers = websocket_headers(*([protocol] if protocol else []))
        at = target(input=1, output=1, error=1)
        async with line(serving(session), "GET", at, headers) as there:
            status, fields, _ = await there.reply()
            assert status == 101
            assert fields["sec-websocket-accept"] == [accept_of(headers)]
            assert fields.get("sec-websocket-protocol", [""]) == [protocol]
            client = WebSocketClient(there)
            await client.until(lambda: client.messages)
            assert client.messages == [(2, b"\1")]
            await client.message(b"\0typed")
            session.say(b"out")
            session.say(b"err", Stream.ERR)
            await client.until(lambda: client.of(2) == b"err")
            assert client.of(1) == b"out"
            assert session.taken == b"typed"
            session.end(3)
            await client.until(lambda: client.close_code is not None)
            assert client.close_code == 1000
            told = client.of(3)
            if protocol.startswith("v"):
                assert json.loads(told)["details"]["causes"][0]["message"] == "3"
            else:
                assert b"3" in told
            await client.until_closed()

    run_virtual(go)


@pytest.mark.parametrize("protocol", ["v4.base64.channel.k8s.io", "base64.channel.k8s.io"])
def test_base64_dialects_are_text(protocol: str) -> None:
    """Browsers of the first days: the channel is a digit, the rest is base64, all is text."""

    async def go() -> None:
        session = Cat()
        at = target(input=1, output=1)
        async with line(serving(session), "GET", at, websocket_headers(protocol)) as there:
            assert (await there.reply())[0] == 101
            client = WebSocketClient(there)
            await client.message(b"0not base64!", opcode=1)
            await client.message(b"0" + base64.b64encode(b"\xff\x00typed"), opcode=1)
            await client.until(lambda: len(client.messages) == 2)
            assert client.messages == [(1, b"1"), (1, b"1" + base64.b64encode(b"\xff\x00typed"))]

    run_virtual(go)


def test_v5_can_end_its_input() -> None:
    """The one thing that v5 adds: `echo x | kubectl exec -i -- cat` ends."""

    async def go() -> None:
        session = Cat()
        at = target(input=1, output=1)
        headers = websocket_headers("v5.channel.k8s.io", V4)
        async with line(serving(session), "GET", at, headers) as there:
            assert (await there.reply())[0] == 101
            client = WebSocketClient(there)
            await client.message(b"\0abc")
            await client.message(b"\xff\0")
            await client.until(lambda: client.close_code is not None)
            assert client.of(1) == b"abc"
            assert json.loads(client.of(3))["status"] == "Success"

    run_virtual(go)


def test_v4_has_no_message_that_ends_the_input() -> None:
    """Byte 255 is an unknown channel there, not an end."""

    async def go() -> None:
        session = Cat()
        at = target(input=1, output=1)
        async with line(serving(session), "GET", at, websocket_headers(V4)) as there:
            assert (await there.reply())[0] == 101
            client = WebSocketClient(there)
            await client.message(b"\xff\0")
            await client.message(b"\0abc")
            await client.until(lambda: client.of(1) == b"abc")
            assert not session.input_ended.is_set()

    run_virtual(go)


def test_fragments_pings_and_sizes_are_understood() -> None:
    """A message may come in fragments, and a ping between them is answered."""

    async def go() -> None:
        session = Told()
        at = target(input=1, output=1, tty=1)
        async with line(serving(session), "GET", at, websocket_headers(V4)) as there:
            assert (await there.reply())[0] == 101
            client = WebSocketClient(there)
            await client.message(b"\0ab", fin=False)
            await client.message(b"alive?", opcode=9)
            await client.message(b"cd", opcode=0)
            await client.message(b'\4{"Width":80,"Height":24}')
            await client.until(lambda: client.pongs == [b"alive?"])
            await session.resized.wait()
            await session.has_taken(4)
            assert session.taken == b"abcd"
            assert session.sizes == [(80, 24)]

    run_virtual(go)


@pytest.mark.parametrize("how", ["vanish", "close", "nonsense", "huge"])
def test_a_websocket_client_that_leaves_ends_the_session_at_once(how: str) -> None:
    """K18 and S13: however it leaves, and a message beyond the bound is leaving."""

    async def go() -> None:
        session = Told()
        async with line(serving(session), "GET", target(output=1), websocket_headers(V4)) as there:
            assert (await there.reply())[0] == 101
            client = WebSocketClient(there)
            await client.until(lambda: client.messages)
            left_at = asyncio.get_running_loop().time()
            match how:
                case "vanish":
                    there.leave()
                case "close":
                    await client.close()
                case "nonsense":
                    await client.push(b"\xff\xff\xff\xff\xff\xff")
                case "huge":
                    await client.push(b"\x82\xff" + (2**40).to_bytes(8, "big"))
            await session.closed.wait()
            assert session.closed_at is not None
            assert session.closed_at - left_at <= 1.0
            await client.until_closed()

    run_virtual(go)


def test_a_websocket_reader_that_sleeps_is_waited_for() -> None:
    """Bounded memory on this transport as well, and every byte in the end."""

    async def go() -> None:
        session = Told()
        for _ in range(300):
            session.say(bytes(64 * 1024))
        session.end(0)
        async with line(serving(session), "GET", target(output=1), websocket_headers(V4)) as there:
            assert (await there.reply())[0] == 101
            await asyncio.sleep(10)
            assert session.written <= 4 * 1024 * 1024
            client = WebSocketClient(there)
            await client.until(lambda: client.close_code is not None)
            assert len(client.of(1)) == 300 * 64 * 1024

    run_virtual(go)


@settings(deadline=None)
@given(st.lists(st.binary(max_size=300), max_size=10))
def test_any_bytes_are_messages_or_the_end(pieces: list[bytes]) -> None:
    """A hostile client reaches nothing but the end of its connection."""
    websocket, came, owed = WebSocketConnection(), 0, 0
    for piece in pieces:
        came += sum(map(len, websocket.receive(piece)))
        owed += len(websocket.answers())
    assert came <= sum(map(len, pieces))
    assert owed <= sum(map(len, pieces)) + 127


def test_fragments_that_carry_nothing_take_no_memory() -> None:
    """A message without an end is bounded in its bytes, and these have none."""
    connection = WebSocketConnection()
    assert connection.receive(b"\x02\x81\0\0\0\0a") == []
    empty = b"\x00\x80\0\0\0\0" * 1000
    connection.receive(empty)
    tracemalloc.start()
    try:
        for _ in range(100):
            assert connection.receive(empty) == []
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 200_000
    assert connection.receive(b"\x80\x81\0\0\0\0b") == [b"ab"]
