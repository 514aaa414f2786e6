"""A host's gateway: which doors are knocked at, what frames mean, and a real WebSocket."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path
from socket import AF_INET, SOCK_STREAM, socket
from urllib.parse import parse_qs

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse, RedirectResponse
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket
from websockets.utils import accept_key

from gp4u.errors import Denied, InstanceAbsent, Malformed, ProviderError, Refused, Unavailable
from gp4u.providers.akash import gateway
from gp4u.providers.akash.dial import MAX_MESSAGE, Closed, Declined, Door, Socket, dial
from gp4u.providers.akash.frames import MAX_OUTPUT, Frame, Shell
from gp4u.providers.akash.gateway import Gateway, logs_path
from gp4u.providers.akash.wire import LeaseId
from gp4u.providers.contract import Finished
from tests.virtual_loop import run_virtual

PAYLOADS = Path(__file__).parents[3] / "payloads" / "akash"
LEASE = LeaseId(dseq="123", gseq=1, oseq=1, provider="akash1host")


class Scripted:
    """A socket that says what it was told to say."""

    def __init__(self, *messages: bytes | str | Exception) -> None:
        self.messages, self.sent, self.pause_s = list(messages), b"", 0.1

    async def send(self, message: bytes) -> None:
        self.sent += message

    async def receive(self) -> bytes | str:
        if not self.messages:
            await asyncio.sleep(10_000)
        await asyncio.sleep(self.pause_s)
        message = self.messages.pop(0)
        if isinstance(message, Exception):
            raise message
        return message


def through(wire: Socket | Exception) -> Gateway:
    """Return a gateway whose every door leads to one socket, or to an error."""

    @asynccontextmanager
    async def scripted(
        door: Door, path: str, token: str, pins: Sequence[bytes]
    ) -> AsyncIterator[Socket]:
        if isinstance(wire, Exception):
            raise wire
        yield wire

    return Gateway(scripted, allow_loopback=True)


async def run_in(wire: Socket | Exception, *, stdin: bytes = b"") -> Finished:
    """Run a command through a socket."""
    return await through(wire).exec(
        "http://127.0.0.1:8443",
        LEASE,
        "token",
        service="app",
        command=["cat"],
        stdin=stdin,
        timeout_s=30,
    )


def test_frames_become_output_and_a_result() -> None:
    """Output comes in pieces and in both channels."""
    shell = Shell()
    for frame in (b"\x64ab", b"\x65err", b"\x64c", b"\xc8later kinds", b'\x66{"exit_code":3}'):
        shell.feed(frame)
    done = shell.finished()
    assert (done.exit_code, done.stdout, done.stderr) == (3, b"abc", b"err")


def test_an_end_without_a_result_is_never_a_success() -> None:
    """A shell on a closed lease can look as if all went well."""
    shell = Shell()
    shell.feed(b"\x64half")
    with pytest.raises(Unavailable):
        shell.finished()


@pytest.mark.parametrize("frame", [b"\x67no such pod", b'\x66{"message":"gone"}'])
def test_a_host_that_cannot_run_it_says_so(frame: bytes) -> None:
    """Not the command failed, but running it."""
    shell = Shell()
    shell.feed(frame)
    with pytest.raises(Refused):
        shell.finished()


@pytest.mark.parametrize("message", ["text", b"", b"\x66nonsense", b"\x66[]"])
def test_what_is_no_frame_is_malformed(message: bytes | str) -> None:
    """A host may say anything."""
    with pytest.raises(Malformed):
        Shell().feed(message)


def test_output_is_bounded() -> None:
    """A host must not fill our memory."""
    shell = Shell()
    frame = bytes([Frame.STDOUT]) + bytes(MAX_MESSAGE)
    for _ in range(MAX_OUTPUT // MAX_MESSAGE):
        shell.feed(frame)
    with pytest.raises(Malformed):
        shell.feed(frame)


def test_every_parameter_of_a_shell_stands_in_its_path() -> None:
    """One that is missing is a 400."""
    path = gateway.shell_path(LEASE, "app", ["echo", "a b&c"], stdin=b"")
    assert path.startswith("/lease/123/1/1/shell?cmd0=echo&cmd1=a")
    assert "service=app&podIndex=0&tty=0&stdin=0" in path
    assert "a b" not in path
    assert "cmd2" not in path


def test_a_commands_input_has_an_end() -> None:
    """The frames have none, so the command is given a counted number of bytes."""
    path = gateway.shell_path(LEASE, "app", ["cat"], stdin=b"12345")
    assert "cmd4=5" in path
    assert "stdin=1" in path
    wire = Scripted(b"\x64ready", b'\x66{"exit_code":0}')
    run_virtual(lambda: run_in(wire, stdin=b"12345"))
    assert wire.sent == b"\x6812345"


@pytest.mark.parametrize(
    ("wire", "kind"),
    [
        (Scripted(b"\x64a", Closed(1006)), Unavailable),
        (Scripted(Closed(4000)), Unavailable),
        (Scripted(Closed(4001)), InstanceAbsent),
        (Scripted(Closed(4002)), Unavailable),
        (Scripted(), Unavailable),
        (Declined(401), Denied),
        (Declined(403), Denied),
        (Declined(404), InstanceAbsent),
        (Declined(400), Refused),
        (Declined(302), Malformed),
        (Declined(503), Unavailable),
        (ConnectionResetError(), Unavailable),
        (ssl.SSLError("bad"), Unavailable),
    ],
)
def test_every_end_of_a_connection_means_something(
    wire: Socket | Exception, kind: type[ProviderError]
) -> None:
    """And none of them means that the command succeeded."""
    with pytest.raises(kind):
        run_virtual(lambda: run_in(wire))


def logs_of(wire: Socket | Exception, tail: int = 10) -> str:
    """Read logs through a socket."""
    return run_virtual(
        lambda: through(wire).logs(
            "http://127.0.0.1:8443", LEASE, "token", service="app", tail=tail
        )
    )


def test_lines_come_without_the_pods_name() -> None:
    """One service is asked for, and what it printed is the log, whatever its pods are called."""
    wire = Scripted(
        '{"name":"app-1","message":"a"}', '{"name":"app-2","message":"b: c"}', Closed(1000)
    )
    assert logs_of(wire) == "a\nb: c\n"


@pytest.mark.parametrize("follow", [True, False])
def test_a_log_is_asked_of_one_service(follow: bool) -> None:
    """Without a service a host mixes the lines of all, and nothing tells them apart for sure."""
    path = logs_path(LEASE, "side car", tail=7, follow=follow)
    query = parse_qs(path.partition("?")[2])
    assert query == {"follow": [str(follow).lower()], "tail": ["7"], "service": ["side car"]}


def test_only_the_newest_lines_are_returned() -> None:
    """`tail` is per service at the host, and in all here."""
    lines = [f'{{"name":"a","message":"{n}"}}' for n in range(5)]
    assert logs_of(Scripted(*lines, Closed(1000)), tail=2) == "3\n4\n"


def test_a_log_that_falls_silent_is_at_its_end() -> None:
    """A host need not close the connection."""
    assert logs_of(Scripted('{"name":"a","message":"x"}')) == "x\n"


def test_a_line_that_is_no_json_is_a_line() -> None:
    """Better shown as it is than lost."""
    assert logs_of(Scripted("plain", Closed(1000))) == "plain\n"


def test_a_host_that_cannot_be_reached_has_no_empty_log() -> None:
    """An empty log says that nothing was printed."""
    with pytest.raises(Unavailable):
        logs_of(TimeoutError())


def test_a_log_without_an_end_is_cut() -> None:
    """A host must not fill our memory, nor keep us reading; the newest lines are kept."""
    wire = Scripted(*("x" * MAX_MESSAGE for _ in range(99)))
    wire.pause_s = 0.0
    assert len(logs_of(wire, tail=3)) == 3 * (MAX_MESSAGE + 1)
    assert len(wire.messages) == 99 - MAX_OUTPUT // MAX_MESSAGE


@pytest.mark.parametrize(
    "uri",
    [
        "http://8.8.8.8:8443",
        "https://10.0.0.1:8443",
        "https://192.168.1.1",
        "https://169.254.169.254",
        "https://[::1]:8443",
        "https://[::ffff:10.0.0.1]",
        "https://127.0.0.1:8443",
        "http://127.0.0.1:8443",
        "https://localhost:8443",
        "https://user:pass@8.8.8.8",
        "https://8.8.8.8/path",
        "https://8.8.8.8/?q=1",
        "ftp://8.8.8.8",
        "",
        "https://" + "a" * 3000,
        "nonsense",
    ],
)
async def test_a_hosts_address_must_be_https_and_public(uri: str) -> None:
    """It is written by the host: without this, any host could have us call into our own network."""
    with pytest.raises((Malformed, Unavailable)):
        await Gateway(dial).door("logs", uri)


async def test_the_address_that_was_checked_is_the_one_that_is_called() -> None:
    """A name could point elsewhere a moment later."""
    door = await Gateway(dial).door("logs", "https://8.8.8.8:8443/")
    assert (door.address, door.port, door.url) == ("8.8.8.8", 8443, "wss://8.8.8.8:8443")
    assert (await Gateway(dial).door("logs", "https://8.8.8.8")).port == 443


async def test_loopback_needs_the_development_switch() -> None:
    """And the switch opens nothing else."""
    open_ = Gateway(dial, allow_loopback=True)
    assert (await open_.door("logs", "http://127.0.0.1:80")).url == "ws://127.0.0.1:80"
    for uri in ("http://10.0.0.1", "https://10.0.0.1", "http://8.8.8.8"):
        with pytest.raises(Malformed):
            await open_.door("logs", uri)


Endpoint = Callable[[WebSocket], object]


@asynccontextmanager
async def host(answer: Callable[[WebSocket], object], *, tls: bool = False) -> AsyncIterator[str]:
    """Serve a gateway on a real port; yield its address."""
    server = uvicorn.Server(
        uvicorn.Config(
            Starlette(routes=[WebSocketRoute("/{path:path}", answer)]),
            ws="websockets-sansio",
            lifespan="off",
            log_config=None,
            ssl_certfile=str(PAYLOADS / "gateway-cert.pem") if tls else None,
            ssl_keyfile=str(PAYLOADS / "gateway-key.pem") if tls else None,
        )
    )
    with closing(socket(AF_INET, SOCK_STREAM)) as listener:
        listener.bind(("127.0.0.1", 0))
        serving = asyncio.get_running_loop().create_task(server.serve(sockets=[listener]))
        while not server.started:  # noqa: ASYNC110 -- uvicorn has no event for it
            await asyncio.sleep(0.01)
        try:
            scheme = "https" if tls else "http"
            yield f"{scheme}://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            with suppress(asyncio.CancelledError):
                await serving


async def echo(ws: WebSocket) -> None:
    """Send back what comes in, and the token, and end with a result."""
    await ws.accept()
    token = ws.headers.get("authorization", "").encode()
    await ws.send_bytes(bytes([Frame.STDERR]) + token)
    body = (await ws.receive_bytes())[1:]
    await ws.send_bytes(bytes([Frame.STDOUT]) + body)
    await ws.send_bytes(bytes([Frame.RESULT]) + b'{"exit_code":0}')
    await ws.close()


async def call(uri: str, *, stdin: bytes = b"hello", pins: Sequence[bytes] = ()) -> Finished:
    """Run a command at a real address."""
    return await Gateway(dial, allow_loopback=True).exec(
        uri, LEASE, "t0ken", service="app", command=["cat"], stdin=stdin, timeout_s=10, pins=pins
    )


async def test_a_real_websocket_carries_frames_and_the_token() -> None:
    """The same frames over a real connection, larger than a packet."""
    async with host(echo) as uri:
        done = await call(uri, stdin=b"x" * 10_000)
    assert done.stdout == b"x" * 10_000
    assert done.stderr == b"Bearer t0ken"


async def test_a_real_decline_is_told_with_its_status() -> None:
    """The gateway answers before it speaks WebSocket."""

    async def decline(ws: WebSocket) -> None:
        await ws.send_denial_response(PlainTextResponse("no such lease", 404))

    async with host(decline) as uri:
        with pytest.raises(InstanceAbsent):
            await call(uri)


async def test_a_redirect_is_not_followed() -> None:
    """It would carry the token to wherever the host says."""
    seen: list[str] = []

    async def redirect(ws: WebSocket) -> None:
        seen.append(ws.url.path)
        await ws.send_denial_response(RedirectResponse("/elsewhere", 302))

    async with host(redirect) as uri:
        with pytest.raises(Malformed):
            await call(uri)
    assert len(seen) == 1


async def test_a_connection_that_dies_leaves_no_success() -> None:
    """Half of the output came, and then nothing."""

    async def die(ws: WebSocket) -> None:
        await ws.accept()
        await ws.send_bytes(bytes([Frame.STDOUT]) + b"half")
        await ws.close(4000)

    async with host(die) as uri:
        with pytest.raises(Unavailable):
            await call(uri)


async def test_a_certificate_of_its_own_needs_the_chains_word() -> None:
    """Hosts sign their own; anybody in between could as well."""
    pem = (PAYLOADS / "gateway-cert.pem").read_text()
    async with host(echo, tls=True) as uri:
        with pytest.raises(Unavailable):
            await call(uri)
        with pytest.raises(Unavailable):
            await call(uri, pins=[b"another"])
        done = await call(uri, pins=[ssl.PEM_cert_to_DER_cert(pem)])
    assert done.stdout == b"hello"


async def test_a_host_that_speaks_no_http_is_unavailable() -> None:
    """Whatever listens there."""

    async def garbage(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-OpenSSH_9.9\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(garbage, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(Unavailable):
            await call(f"http://127.0.0.1:{port}")


@asynccontextmanager
async def deaf_host() -> AsyncIterator[str]:
    """Serve a gateway that shakes hands, and then reads nothing more; yield its address."""
    gone = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        (key,) = [line[19:] for line in head.split("\r\n") if "Sec-WebSocket-Key:" in line]
        writer.write(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + accept_key(key).encode() + b"\r\n\r\n"
        )
        await gone.wait()
        writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        try:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            gone.set()


async def test_a_host_that_reads_nothing_holds_nobody_beyond_the_time_there_is() -> None:
    """What was not sent is of no use to a command that is given up."""
    async with deaf_host() as uri, asyncio.timeout(5):
        with pytest.raises(Unavailable, match="no result within"):
            await Gateway(dial, allow_loopback=True).exec(
                uri, LEASE, "t", service="app", command=["cat"], stdin=bytes(1 << 25), timeout_s=0.5
            )


async def test_a_session_is_left_though_its_host_reads_nothing() -> None:
    """Somebody pasted much into a command that does not read, and hung up."""
    async with deaf_host() as uri, asyncio.timeout(5):
        session = await Gateway(dial, allow_loopback=True).session(
            uri, LEASE, "t", service="app", command=["sleep"], tty=True
        )
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await session.send(bytes(1 << 25))
        await session.aclose()
