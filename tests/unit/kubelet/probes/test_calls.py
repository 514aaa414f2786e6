"""Questions of probes, put to real sockets on this machine."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import h2.config
import h2.connection
import h2.events
import pytest
from msgspec.structs import replace

from gp4u.kubelet.probes.calls import AGENT, MAX_BODY, Outside, Place, place_of
from gp4u.kubelet.probes.grpc_health import HealthCall
from tests.unit.kubelet.identity import certificate

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def listening(serve: Serve, tls: ssl.SSLContext | None = None) -> AsyncIterator[Place]:
    """Serve on a port of this machine; each connection is closed after `serve`."""

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await serve(reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass  # a probe leaves without a farewell
        finally:
            writer.close()

    server = await asyncio.start_server(one, "127.0.0.1", 0, ssl=tls)
    async with server:
        yield Place(host="127.0.0.1", port=server.sockets[0].getsockname()[1], tls=tls is not None)


class Answers:
    """Answers GETs with what was scripted, by path, and keeps what was asked."""

    def __init__(self, **replies: bytes) -> None:
        self.replies = {f"/{path}": reply for path, reply in replies.items()}
        self.heads: list[str] = []

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        self.heads.append(head)
        path = head.split()[1].partition("?")[0]
        writer.write(self.replies.get(path, reply(404)))
        await writer.drain()


def reply(status: int, *headers: str, body: bytes = b"") -> bytes:
    lines = [f"HTTP/1.1 {status} x", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def outside() -> Outside:
    return Outside(allow_loopback=True)


@pytest.mark.parametrize(
    ("status", "problem"),
    [
        (200, ""),
        (204, ""),
        (399, ""),
        (400, "answered HTTP 400"),
        (404, "answered HTTP 404"),
        (500, "answered HTTP 500"),
    ],
)
async def test_a_status_from_200_to_399_passes(status: int, problem: str) -> None:
    """The contract of an HTTP probe."""
    async with listening(Answers(healthz=reply(status))) as place:
        assert (await outside().http(place, "/healthz", ())).problem == problem


async def test_the_probes_headers_win_and_ours_fill_in() -> None:
    """Virtual hosts and tokens are told by headers; a server's log knows a probe by its agent."""
    answers = Answers(x=reply(200))
    async with listening(answers) as place:
        theirs = [("Host", "app.example"), ("X-A", "1"), ("X-A", "2"), ("Content-Length", "9")]
        await outside().http(place, "x?a=b c#part", theirs)
        await outside().http(place, "/x", [("User-Agent", "mine"), ("Accept", "")])
    first, second = answers.heads
    assert first.startswith("GET /x?a=b%20c HTTP/1.1\r\n")
    assert "Host: app.example\r\n" in first
    assert "X-A: 1\r\nX-A: 2\r\n" in first
    assert f"User-Agent: {AGENT}\r\n" in first
    assert "Connection: close" in first
    assert "content-length" not in first.lower()
    assert "User-Agent: mine\r\n" in second
    assert "accept" not in second.lower()


async def test_a_redirect_on_the_same_host_is_followed() -> None:
    """A kubelet does."""
    answers = Answers(a=reply(302, "Location: /b"), b=reply(301, "Location: c?x=1"), c=reply(200))
    async with listening(answers) as place:
        answer = await outside().http(place, "/a", ())
        assert (answer.problem, answer.warning) == ("", "")
        assert len(answers.heads) == 3


@pytest.mark.parametrize("to", ["http://127.0.0.1:1/x", "http://other.example/x", "ftp://x/"])
async def test_a_redirect_to_elsewhere_is_not_followed_and_passes_with_a_warning(to: str) -> None:
    """S6: a machine must not send our probes around the network; its answer is an answer."""
    async with listening(Answers(a=reply(302, f"Location: {to}"))) as place:
        answer = await outside().http(place, "/a", ())
        assert answer.problem == ""
        assert "another host" in answer.warning


async def test_redirects_in_a_circle_end() -> None:
    """Else one probe asks for ever."""
    answers = Answers(a=reply(302, "Location: /a"))
    async with listening(answers) as place:
        assert "more than 10" in (await outside().http(place, "/a", ())).problem
        assert len(answers.heads) == 11


async def test_no_more_than_ten_kibibytes_are_read() -> None:
    """S17: a machine may send for as long as it likes."""
    sent = 0

    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 x\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            writer.write(b"1000\r\n" + b"x" * 0x1000 + b"\r\n")
            await writer.drain()
            sent += 0x1000

    async with listening(endless) as place:
        assert (await outside().http(place, "/", ())).problem == ""
    assert sent >= MAX_BODY


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        (b"SSH-2.0-x\r\n\r\n", "not HTTP"),
        (b"", "no answer (ConnectionResetError)"),
        (b"HTTP/1.1 200 x\r\n", "no answer (ConnectionResetError)"),
        (b"HTTP/1.1 200 x\r\nContent-Length: 5\r\n\r\nx", "not HTTP"),
    ],
)
async def test_what_is_not_http_fails(said: bytes, problem: str) -> None:
    """A port may be another program's."""

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(said)
        await writer.drain()

    async with listening(speak) as place:
        answer = await outside().http(place, "/", ())
        assert problem in answer.problem


async def test_a_certificate_that_nobody_signed_is_good_enough(tmp_path: Path) -> None:
    """A probe asks whether something answers, not who; a container shows what it has."""
    shown, _ = certificate(tmp_path, "someone.example")
    async with listening(Answers(x=reply(200)), shown) as place:
        assert (await outside().http(place, "/x", ())).problem == ""
        plain = replace(place, tls=False)
        assert (await outside().http(plain, "/x", ())).problem
        assert (await outside().tcp(plain)).problem == ""
    async with listening(Answers(x=reply(200))) as place:
        assert (await outside().http(replace(place, tls=True), "/x", ())).problem


async def test_a_refused_connection_fails_by_name() -> None:
    """The commonest reason of all while a program starts."""
    async with listening(Answers()) as place:
        pass
    assert (await outside().http(place, "/", ())).problem == "connection refused"
    assert (await outside().tcp(place)).problem == "connection refused"
    assert (await outside().grpc(place, "")).problem == "connection refused"


@pytest.mark.parametrize("host", ["127.0.0.1", "10.0.0.1", "169.254.169.254", "localhost"])
async def test_an_address_that_is_not_public_is_not_asked(host: str) -> None:
    """S6: `host:` in a probe is a user's word; it must not reach into the cluster."""
    answers = Answers(x=reply(200))
    async with listening(answers) as place:
        there = Place(host=host, port=place.port)
        outsider = Outside(allow_loopback=False)
        for asked in (
            outsider.http(there, "/x", ()),
            outsider.tcp(there),
            outsider.grpc(there, ""),
        ):
            assert "not public" in (await asked).problem
    assert answers.heads == []


async def test_tcp_asks_for_a_connection_and_says_nothing() -> None:
    """A database would log what we say."""
    heard = asyncio.get_running_loop().create_future()

    async def listen(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        try:
            heard.set_result(await reader.read())
        except OSError:
            heard.set_result(b"")

    async with listening(listen) as place:
        assert (await outside().tcp(place)).problem == ""
        assert await heard == b""


@pytest.mark.parametrize(("status", "passes"), [(200, True), (404, True), (502, False)])
async def test_tcp_behind_a_proxy_asks_whether_anybody_is_there(status: int, passes: bool) -> None:
    """A market's proxy takes every connection, whether the workload lives or not."""
    answers = Answers()
    answers.replies["/"] = reply(status)
    async with listening(answers) as there:
        place = place_of(f"http://127.0.0.1:{there.port}")
        assert place is not None
        assert place.by_name
        assert ((await outside().tcp(place)).problem == "") is passes


def test_a_url_that_is_none_leads_nowhere() -> None:
    """A market's word is foreign text."""
    for url in ("", "ftp://x", "https://", "http://u@x/", "http://x:99999", "x:1"):
        assert place_of(url) is None
    assert place_of("https://x.example/") == Place(
        host="x.example", port=443, tls=True, by_name=True
    )


class Health:
    """A gRPC server with the health service alone."""

    def __init__(self, state: bytes = b"\x08\x01", grpc_status: str = "0") -> None:
        self.state, self.grpc_status = state, grpc_status
        self.asked: list[tuple[dict[str, str], bytes]] = []

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        config = h2.config.H2Configuration(client_side=False, header_encoding="utf-8")
        http = h2.connection.H2Connection(config=config)
        http.initiate_connection()
        headers: dict[str, str] = {}
        data = b""
        while True:
            writer.write(http.data_to_send())
            await writer.drain()
            piece = await reader.read(65536)
            if not piece:
                return
            for event in http.receive_data(piece):
                if isinstance(event, h2.events.RequestReceived):
                    headers = {str(k): str(v) for k, v in event.headers or ()}
                elif isinstance(event, h2.events.DataReceived):
                    data += event.data or b""
                elif isinstance(event, h2.events.StreamEnded):
                    self.asked.append((headers, data))
                    assert event.stream_id is not None
                    self.answer(http, event.stream_id)

    def answer(self, http: h2.connection.H2Connection, stream: int) -> None:
        told = [(":status", "200"), ("content-type", "application/grpc")]
        http.send_headers(stream, told)
        if self.grpc_status == "0":
            prefix = b"\0" + len(self.state).to_bytes(4, "big")
            http.send_data(stream, prefix + self.state)
        http.send_headers(stream, [("grpc-status", self.grpc_status)], end_stream=True)


@pytest.mark.parametrize(
    ("health", "problem"),
    [
        (Health(), ""),
        (Health(b"\x08\x02"), "service is NOT_SERVING"),
        (Health(b"\x08\x03"), "service is SERVICE_UNKNOWN"),
        (Health(b""), "service is UNKNOWN"),
        (Health(b"\x12\x01x\x08\x01"), ""),
        (Health(b"\x08"), "no health reply"),
        (Health(b"\x0d\x01\x01\x01\x01"), "no health reply"),
        (Health(grpc_status="12"), "does not have the health service"),
        (Health(grpc_status="5"), "gRPC status 5"),
    ],
)
async def test_a_grpc_service_passes_when_it_says_that_it_serves(
    health: Health, problem: str
) -> None:
    """Anything else is a failure, and its name is told."""
    async with listening(health) as place:
        answer = await outside().grpc(place, "june.Speech")
        assert answer.problem == "" if not problem else problem in answer.problem
    ((headers, data),) = health.asked
    assert headers[":path"] == "/grpc.health.v1.Health/Check"
    assert headers["te"] == "trailers"
    assert headers["user-agent"] == AGENT
    assert data == b"\0\0\0\0\x0d\x0a\x0bjune.Speech"


async def test_what_is_not_grpc_fails() -> None:
    """An HTTP/1 server answers as well, in its way."""
    async with listening(Answers()) as place:
        assert (await outside().grpc(place, "")).problem


@pytest.mark.parametrize("piece", [1, 7, 4096])
def test_a_grpc_answer_may_come_in_any_pieces(piece: int) -> None:
    """TCP knows no messages."""
    call = HealthCall("", authority="x", agent="y")
    server = h2.connection.H2Connection(config=h2.config.H2Configuration(client_side=False))
    server.initiate_connection()
    server.receive_data(call.begin())
    Health().answer(server, 1)
    told = server.data_to_send()
    for at in range(0, len(told), piece):
        call.receive(told[at : at + piece])
    assert call.result == ""
