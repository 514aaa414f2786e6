"""Port-forward over SPDY, through a tunnel, and over WebSocket channels."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable

import pytest

from gp4u.errors import Unavailable
from gp4u.kubelet.streams.forward_spdy import SpdyForward
from gp4u.kubelet.streams.pipe import ClientLeft
from gp4u.kubelet.streams.port_forward import PORT_FORWARD, TUNNEL, serve_port_forward
from gp4u.kubelet.streams.upgrade import Upgrade
from gp4u.providers.session import Link
from tests.unit.kubelet.streams.clients import (
    Line,
    SpdyClient,
    WebSocketClient,
    line,
    spdy_headers,
    websocket_headers,
)
from tests.unit.kubelet.streams.sessions import Port
from tests.virtual_loop import run_virtual

AT = "/portForward/default/pod"
REFUSED = Unavailable("tcp", "connect", "203.0.113.9:80: Connection refused")
BROKE = Unavailable("ssh", "copy", "the connection broke")


class Ports:
    """The ports of a pod; remembers every connection that was opened."""

    def __init__(self, *, echoes: bool = True) -> None:
        self.opened: list[tuple[int, Port]] = []
        self._echoes = echoes

    async def connect(self, port: int) -> Link:
        """Open a connection; nobody listens on 81."""
        if port == 81:
            raise REFUSED
        link = Port(echoes=self._echoes)
        self.opened.append((port, link))
        return link

    def serve(self, upgrade: Upgrade) -> Awaitable[None]:
        """Serve them on a connection."""
        return serve_port_forward(upgrade, self.connect)


async def connected(at: Line) -> SpdyClient:
    """Read the 101."""
    status, headers, _ = await at.reply()
    assert status == 101
    assert headers["x-stream-protocol-version"] == [PORT_FORWARD]
    return SpdyClient(at)


async def pair(client: SpdyClient, request: int | None, port: int = 80) -> tuple[int, int]:
    """Open a pair as client-go does: the error stream first, and ended at once."""
    named = {} if request is None else {"requestid": str(request)}
    error = await client.open({"streamtype": "error", "port": str(port), **named})
    await client.send(error, b"", fin=True)
    data = await client.open({"streamtype": "data", "port": str(port), **named})
    return error, data


def test_a_pair_carries_bytes_both_ways_and_ends() -> None:
    """One forwarded connection from its first byte to the end of both streams."""

    async def go() -> None:
        ports = Ports()
        async with line(ports.serve, "POST", AT, spdy_headers(PORT_FORWARD)) as there:
            client = await connected(there)
            error, data = await pair(client, 0, 8080)
            await client.send(data, b"GET / HTTP/1.0\r\n\r\n", fin=True)
            await client.until(lambda: {error, data} <= set(client.fins))
            assert client.data[data] == b"GET / HTTP/1.0\r\n\r\n"
            assert client.data[error] == b""
            ((port, link),) = ports.opened
            assert port == 8080
            await link.closed.wait()

    run_virtual(go)


def test_a_hundred_pairs_share_a_connection_and_keep_apart() -> None:
    """A browser opens many; each gets its own bytes, whatever the order in which they come."""

    async def go() -> None:
        ports = Ports()
        async with line(ports.serve, "POST", AT, spdy_headers(PORT_FORWARD)) as there:
            client = await connected(there)
            pairs = [await pair(client, each) for each in range(100)]
            for part in range(3):
                for number, (_, data) in enumerate(pairs):
                    await client.send(data, b"%d:%d;" % (number, part), fin=part == 2)
            await client.until(lambda: len(client.fins) == 200)
            for number, (_, data) in enumerate(pairs):
                assert client.data[data] == b"".join(b"%d:%d;" % (number, n) for n in range(3))
            assert len(ports.opened) == 100

    run_virtual(go)


def test_pairs_without_a_request_id_are_told_by_their_numbers() -> None:
    """Clients of the first days: data is the stream right after error."""

    async def go() -> None:
        ports = Ports()
        async with line(ports.serve, "POST", AT, spdy_headers(PORT_FORWARD)) as there:
            client = await connected(there)
            (_, one), (_, two) = await pair(client, None), await pair(client, None)
            await client.send(one, b"one", fin=True)
            await client.send(two, b"two", fin=True)
            await client.until(lambda: len(client.fins) == 4)
            assert (client.data[one], client.data[two]) == (b"one", b"two")

    run_virtual(go)


@pytest.mark.parametrize("ended_by", ["client", "port"])
def test_a_half_that_ended_leaves_the_other_open(ended_by: str) -> None:
    """`printf request | nc` ends its half and waits for the answer; a server may do it too."""

    async def go() -> None:
        ports = Ports(echoes=False)
        async with line(ports.serve, "POST", AT, spdy_headers(PORT_FORWARD)) as there:
            client = await connected(there)
            error, data = await pair(client, 1)
            await client.send(data, b"request", fin=ended_by == "client")
            await client.until(lambda: ports.opened)
            link = ports.opened[0][1]
            if ended_by == "client":
                await link.input_ended.wait()
                await asyncio.sleep(3600)
                link.say(b"answer")
                link.say(b"")
                await client.until(lambda: error in client.fins)
                assert client.data[data] == b"answer"
            else:
                link.say(b"")
                await client.until(lambda: data in client.fins)
                await asyncio.sleep(3600)
                await client.send(data, b" and more", fin=True)
                await client.until(lambda: error in client.fins)
                assert link.taken == b"request and more"

    run_virtual(go)


def test_a_port_that_cannot_be_reached_is_told_in_words() -> None:
    """The text reaches the user; the pair ends, and its neighbour lives on."""

    async def go() -> None:
        ports = Ports()
        async with line(ports.serve, "POST", AT, spdy_headers(PORT_FORWARD)) as there:
            client = await connected(there)
            _, alive = await pair(client, 1)
            error, data = await pair(client, 2, 81)
            await client.until(lambda: error in client.fins and data in client.resets)
            assert b"Connection refused" in client.data[error]
            await client.send(alive, b"still", fin=True)
            await client.until(lambda: client.data[alive] == b"still")

    run_virtual(go)


def test_a_connection_that_breaks_is_reset_without_words() -> None:
    """Words on the error stream make kubectl drop every other connection."""

    async def go() -> None:
        ports = Ports(echoes=False)
        async with line(ports.serve, "POST", AT, spdy_headers(PORT_FORWARD)) as there:
            client = await connected(there)
            error, data = await pair(client, 1)
            await client.until(lambda: ports.opened)
            ports.opened[0][1].say(b"half")
            ports.opened[0][1].break_with(BROKE)
            await client.until(lambda: data in client.resets and error in client.fins)
            assert client.data[data] == b"half"
            assert client.data[error] == b""
            assert data not in client.fins

    run_virtual(go)


def test_a_client_that_resets_a_pair_closes_its_link_alone() -> None:
    """client-go resets the data stream once it has had enough, and waits for the error stream."""

    async def go() -> None:
        ports = Ports()
        async with line(ports.serve, "POST", AT, spdy_headers(PORT_FORWARD)) as there:
            client = await connected(there)
            (error, data), (_, other) = await pair(client, 1), await pair(client, 2)
            await client.until(lambda: len(ports.opened) == 2)
            await client.reset(data)
            await client.until(lambda: error in client.fins)
            await ports.opened[0][1].closed.wait()
            assert not ports.opened[1][1].closed.is_set()
            await client.send(other, b"x", fin=True)
            await client.until(lambda: client.data[other] == b"x")

    run_virtual(go)


def test_a_pair_that_is_reset_in_the_same_breath_leaves_nothing() -> None:
    """A task that is cancelled before its first step must still let go of its pair."""

    async def go() -> None:
        left, right = Ends(), Ports()
        client_side = SpdyFrames()
        forward = SpdyForward(left, right.connect)
        left.coming = [client_side.pair("7") + client_side.reset_data() + client_side.pair("7")]
        await forward.run()
        assert forward._pairs == {}
        assert forward._parts == {}

    run_virtual(go)


@pytest.mark.parametrize(
    "headers",
    [
        {"streamtype": "data", "port": "0", "requestid": "1"},
        {"streamtype": "data", "port": "65536", "requestid": "1"},
        {"streamtype": "data", "port": "http", "requestid": "1"},
        {"streamtype": "data", "port": "\u0661", "requestid": "1"},
        {"streamtype": "data", "requestid": "1"},
        {"streamtype": "stdin", "port": "80", "requestid": "1"},
        {"port": "80", "requestid": "1"},
    ],
)
def test_a_stream_without_a_good_port_or_type_is_reset(headers: dict[str, str]) -> None:
    """It costs that stream only, and opens nothing."""

    async def go() -> None:
        ports = Ports()
        async with line(ports.serve, "POST", AT, spdy_headers(PORT_FORWARD)) as there:
            client = await connected(there)
            bad = await client.open(headers)
            await client.until(lambda: bad in client.resets)
            assert ports.opened == []
            _, good = await pair(client, 1)
            await client.send(good, b"x", fin=True)
            await client.until(lambda: client.data[good] == b"x")

    run_virtual(go)


def test_a_third_stream_of_a_pair_is_reset() -> None:
    """Two streams of one kind, or of two ports, are no pair."""

    async def go() -> None:
        ports = Ports()
        async with line(ports.serve, "POST", AT, spdy_headers(PORT_FORWARD)) as there:
            client = await connected(there)
            await pair(client, 1)
            again = await client.open({"streamtype": "data", "port": "80", "requestid": "1"})
            await client.open({"streamtype": "error", "port": "80", "requestid": "2"})
            other = await client.open({"streamtype": "data", "port": "82", "requestid": "2"})
            await client.until(lambda: {again, other} <= set(client.resets))
            assert len(ports.opened) == 1

    run_virtual(go)


def test_a_stream_that_stays_alone_is_given_up() -> None:
    """Half a pair must not be kept for ever."""

    async def go() -> None:
        ports = Ports()
        async with line(ports.serve, "POST", AT, spdy_headers(PORT_FORWARD)) as there:
            client = await connected(there)
            alone = await client.open({"streamtype": "error", "port": "80", "requestid": "1"})
            await client.until(lambda: alone in client.fins)
            assert asyncio.get_running_loop().time() >= 30
            assert b"did not come" in client.data[alone]
            data = await client.open({"streamtype": "data", "port": "80", "requestid": "2"})
            await client.until(lambda: data in client.resets)

    run_virtual(go)


def test_a_client_that_leaves_closes_every_link() -> None:
    """Nothing of it is left within a second (K18)."""

    async def go() -> None:
        ports = Ports()
        async with line(ports.serve, "POST", AT, spdy_headers(PORT_FORWARD)) as there:
            client = await connected(there)
            for each in range(10):
                await pair(client, each)
            await client.until(lambda: len(ports.opened) == 10)
            left_at = asyncio.get_running_loop().time()
            there.leave()
            await there.task
            assert asyncio.get_running_loop().time() - left_at <= 1.0
            assert all(link.closed.is_set() for _, link in ports.opened)

    run_virtual(go)


def test_a_port_that_takes_nothing_bounds_what_is_kept() -> None:
    """An upload to a stalled program stops the client, and goes on when it does."""

    async def go() -> None:
        ports = Ports(echoes=False)
        async with line(ports.serve, "POST", AT, spdy_headers(PORT_FORWARD)) as there:
            client = await connected(there)
            _, data = await pair(client, 1)
            await client.until(lambda: ports.opened)
            link = ports.opened[0][1]
            link.takes.clear()
            pushed = 0
            try:
                async with asyncio.timeout(60):
                    while True:
                        await client.send(data, bytes(64 * 1024))
                        pushed += 64 * 1024
            except TimeoutError:
                pass
            assert pushed <= 8 * 1024 * 1024
            link.takes.set()
            await client.send(data, b"", fin=True)
            await link.input_ended.wait()
            assert len(link.taken) >= pushed

    run_virtual(go)


def test_much_goes_through_unharmed_while_others_talk() -> None:
    """64 MiB up and down again, beside a neighbour that exchanges a few bytes."""

    async def go() -> None:
        ports = Ports(echoes=False)
        piece = bytes(range(256)) * 4096
        async with line(ports.serve, "POST", AT, spdy_headers(PORT_FORWARD)) as there:
            client = await connected(there)
            (_, much), (_, few) = await pair(client, 1), await pair(client, 2)
            await client.until(lambda: len(ports.opened) == 2)
            (_, large), (_, small) = ports.opened
            for _ in range(64):
                await client.send(much, piece)
            await client.send(few, b"hello")
            await client.send(much, b"", fin=True)
            await large.input_ended.wait()
            assert bytes(large.taken) == piece * 64
            assert small.taken == b"hello"
            client.keeps = False
            for _ in range(64):
                large.say(piece)
            small.say(b"there")
            large.say(b"")
            await client.until(lambda: much in client.fins)
            assert client.counted[much] == 64 * len(piece)
            assert client.counted[few] == 5

    run_virtual(go)


# WebSocket


def test_a_tunnel_is_the_same_inside_messages() -> None:
    """What a 1.36 API server passes through to a node that declares it."""

    async def go() -> None:
        ports = Ports()
        async with line(ports.serve, "GET", AT, websocket_headers(TUNNEL)) as there:
            status, headers, _ = await there.reply()
            assert status == 101
            assert headers["sec-websocket-protocol"] == [TUNNEL]
            outside = WebSocketClient(there)
            frames = SpdyFrames()
            sent = frames.pair("1") + frames.carrying(b"through") + frames.fin()
            for at in range(0, len(sent), 7):
                await outside.message(sent[at : at + 7])
            await outside.until(lambda: b"through" in b"".join(m for _, m in outside.messages))
            await outside.close()
            await outside.until_closed()
            assert ports.opened[0][1].closed.is_set()

    run_virtual(go)


@pytest.mark.parametrize("protocol", ["v4.channel.k8s.io", "v4.base64.channel.k8s.io", ""])
def test_websocket_ports_have_two_channels_each(protocol: str) -> None:
    """The port comes first on both, as two bytes, little end first; then bytes as they are."""
    is_text = "base64" in protocol

    def packed(channel: int, data: bytes) -> bytes:
        return b"%d" % channel + base64.b64encode(data) if is_text else bytes((channel,)) + data

    async def go() -> None:
        ports = Ports()
        headers = websocket_headers(*([protocol] if protocol else []))
        async with line(ports.serve, "GET", AT + "?port=80,8080&port=81", headers) as there:
            assert (await there.reply())[0] == 101
            client = WebSocketClient(there)
            opcode = 1 if is_text else 2
            await client.message(packed(2, b"hello"), opcode=opcode)
            await client.message(packed(9, b"nobody"), opcode=opcode)
            await client.until(lambda: len(client.messages) == 8)
            said = [message for _, message in client.messages]
            for index, port in enumerate((80, 8080, 81)):
                number = port.to_bytes(2, "little")
                assert packed(2 * index, number) in said
                assert packed(2 * index + 1, number) in said
            assert packed(2, b"hello") in said
            assert packed(5, str(REFUSED).encode()) in said

    run_virtual(go)


def test_a_websocket_ends_with_its_last_connection() -> None:
    """Nothing can come any more, so the client is told; what went wrong is on the error channel."""

    async def go() -> None:
        ports = Ports(echoes=False)
        headers = websocket_headers("v4.channel.k8s.io")
        async with line(ports.serve, "GET", AT + "?port=80&port=82", headers) as there:
            assert (await there.reply())[0] == 101
            client = WebSocketClient(there)
            await client.until(lambda: len(ports.opened) == 2)
            ports.opened[0][1].say(b"bye")
            ports.opened[0][1].say(b"")
            ports.opened[1][1].break_with(BROKE)
            await client.until(lambda: client.close_code == 1000)
            assert client.of(0) == b"\x50\0bye"
            assert b"the connection broke" in client.of(3)
            assert all(link.closed.is_set() for _, link in ports.opened)

    run_virtual(go)


@pytest.mark.parametrize(
    ("at", "headers", "status", "told"),
    [
        (AT, websocket_headers("v4.channel.k8s.io"), 400, b'"port" is required'),
        (AT + "?port=x", websocket_headers(), 400, b"1..65535"),
        (AT + "?port=" + ",".join(["80"] * 65), websocket_headers(), 400, b"too many"),
        (AT + "?port=80", websocket_headers("v5.channel.k8s.io"), 403, b"v4.channel.k8s.io"),
        (AT, spdy_headers(), 400, b"X-Stream-Protocol-Version"),
        (AT, spdy_headers("v4.channel.k8s.io"), 403, b"portforward.k8s.io"),
        (AT, [], 400, b"unable to upgrade"),
    ],
)
def test_what_cannot_be_forwarded_is_refused_in_words(
    at: str, headers: list[tuple[str, str]], status: int, told: bytes
) -> None:
    """A clear 4xx before anything is opened (K17)."""

    async def go() -> None:
        ports = Ports()
        async with line(ports.serve, "GET", at, headers) as there:
            answered, _, body = await there.reply()
            assert answered == status
            assert told in body
            assert await there.reader.read() == b""
            assert ports.opened == []

    run_virtual(go)


class SpdyFrames(SpdyClient):
    """Frames as bytes, for those who carry them in another way."""

    def __init__(self) -> None:
        self._made = bytearray()
        super().__init__(_Nowhere(self._made))  # type: ignore[arg-type]  # a line that only collects

    def pair(self, request: str) -> bytes:
        """Return the frames that open a pair."""
        for kind in ("error", "data"):
            named = {"streamtype": kind, "port": "80", "requestid": request}
            _finished(self.open(named))
        return self._taken()

    def carrying(self, data: bytes) -> bytes:
        """Return a frame of data on the stream that was opened last."""
        _finished(self.send(self._next - 2, data))
        return self._taken()

    def fin(self) -> bytes:
        """Return the end of the stream that was opened last."""
        _finished(self.send(self._next - 2, b"", fin=True))
        return self._taken()

    def reset_data(self) -> bytes:
        """Return the reset of the stream that was opened last."""
        _finished(self.reset(self._next - 2))
        return self._taken()

    def _taken(self) -> bytes:
        made = bytes(self._made)
        self._made.clear()
        return made


class _Nowhere:
    """A line whose writer keeps what is written."""

    def __init__(self, made: bytearray) -> None:
        self.writer = self
        self.write = made.extend

    async def drain(self) -> None:
        """There is always room."""


def _finished(work: Awaitable[object]) -> None:
    """Run what never waits."""
    for _ in work.__await__():
        raise AssertionError("it waited")


class Ends:
    """A pipe that brings what a test put there, and then its end."""

    def __init__(self) -> None:
        self.coming: list[bytes] = []
        self.went = bytearray()

    async def read(self) -> bytes:
        """Return the next piece."""
        await asyncio.sleep(0)
        if not self.coming:
            await asyncio.sleep(1)
            raise ClientLeft("that was all")
        return self.coming.pop(0)

    def write(self, data: bytes) -> None:
        """Keep it."""
        self.went += data

    async def drain(self) -> None:
        """There is always room."""

    def left(self) -> bool:
        """It is there until its end."""
        return False
