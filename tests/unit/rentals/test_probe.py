"""When a workload counts as answering, on real loopback sockets, and where a probe must not go."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import httpx2
import pytest

from gp4u.model import Endpoint, HealthCheck, Protocol
from gp4u.rentals import probe
from gp4u.rentals.probe import Prober

Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]
HTTP = HealthCheck(port=8000, path="/health")
TCP = HealthCheck(port=8000)


@asynccontextmanager
async def workload(answer: Answer, heads: list[str] | None = None) -> AsyncIterator[Endpoint]:
    """Serve `answer` on loopback, as container port 8000."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            if heads is not None:
                heads.append(head.decode())
            await answer(writer)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # a TCP probe asks for nothing
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        yield Endpoint(container_port=8000, host="127.0.0.1", port=port)


def status(line: str, headers: str = "") -> Answer:
    """Return an answer with a status line and an empty body."""

    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(f"HTTP/1.1 {line}\r\nContent-Length: 0\r\n{headers}\r\n".encode())

    return answer


async def verdict(*endpoints: Endpoint, checks: tuple[HealthCheck, ...] = (HTTP,)) -> str:
    """Probe with loopback allowed."""
    prober = Prober(allow_loopback=True)
    try:
        return await prober.healthy(endpoints, checks)
    finally:
        await prober.aclose()


@pytest.mark.parametrize("line", ["200 OK", "204 Nothing", "302 Elsewhere", "399 Odd"])
async def test_an_answer_below_400_is_health(line: str) -> None:
    """A login redirect comes from a server that works; nobody follows it."""
    heads: list[str] = []
    async with workload(status(line, "Location: http://10.0.0.1/\r\n"), heads) as endpoint:
        assert await verdict(endpoint) == ""
    assert len(heads) == 1
    assert heads[0].startswith("GET /health HTTP/1.1\r\n")
    assert "authorization" not in heads[0].lower()


@pytest.mark.parametrize("line", ["404 No", "503 Loading"])
async def test_an_answer_from_400_on_is_not(line: str) -> None:
    """A server that is still loading its model says 503."""
    async with workload(status(line)) as endpoint:
        assert await verdict(endpoint) == f"port 8000: HTTP {line[:3]}"


async def test_a_connection_is_enough_where_no_path_is_given() -> None:
    """Not every workload speaks HTTP."""
    async with workload(status("500 whatever")) as endpoint:
        assert await verdict(endpoint, checks=(TCP,)) == ""


@pytest.mark.parametrize("check", [HTTP, TCP])
async def test_a_port_that_nobody_listens_on_is_not_healthy(check: HealthCheck) -> None:
    """The container runs, the program does not listen yet."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
    endpoint = Endpoint(container_port=8000, host="127.0.0.1", port=port)
    assert (await verdict(endpoint, checks=(check,))).startswith("port 8000: no answer")


async def test_a_workload_that_says_nothing_is_not_healthy_once_the_time_is_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """S17: one deadline for the probe, however slowly the other side trickles."""
    monkeypatch.setattr(probe, "PROBE_TIMEOUT_S", 0.2)

    async def trickle(writer: asyncio.StreamWriter) -> None:
        while True:
            writer.write(b"H")
            await writer.drain()
            await asyncio.sleep(0.01)

    async with workload(trickle) as endpoint:
        assert await verdict(endpoint) == "port 8000: no answer (TimeoutError)"


async def test_an_endless_body_is_not_read() -> None:
    """S17: what the workload answers is its own business, only that it does is ours."""
    sent = 0

    async def endless(writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
        while True:
            writer.write(b"x" * 65_536)
            await writer.drain()
            sent += 65_536

    async with workload(endless) as endpoint:
        assert await verdict(endpoint) == ""
    assert sent < 64 * 1024 * 1024


async def test_garbage_is_no_answer() -> None:
    """Something listens, and it is not what was asked for."""

    async def garbage(writer: asyncio.StreamWriter) -> None:
        writer.write(b"\x00\x01\x02 nonsense\r\n\r\n")

    async with workload(garbage) as endpoint:
        assert (await verdict(endpoint)).startswith("port 8000: no answer")


async def test_every_check_must_pass_and_the_first_that_does_not_is_named() -> None:
    """Two services in one workload, of which one is still starting."""
    async with workload(status("200 OK")) as fine, workload(status("503 wait")) as slow:
        second = Endpoint(container_port=8001, host=slow.host, port=slow.port)
        checks = (HTTP, HealthCheck(port=8001, path="/health"), HealthCheck(port=9999))
        assert await verdict(fine, second, checks=checks) == "port 8001: HTTP 503"
        assert await verdict(fine, second, checks=(HTTP,)) == ""


async def test_a_port_that_is_not_published_is_not_healthy() -> None:
    """`ports` stays empty until the container runs; and UDP cannot be connected to."""
    udp = Endpoint(container_port=8000, host="127.0.0.1", port=1, protocol=Protocol.UDP)
    assert await verdict() == "port 8000 is not published yet"
    assert await verdict(udp) == "port 8000 is not published yet"


async def test_without_checks_a_running_instance_is_healthy() -> None:
    """Nothing was asked for, so nothing is sent."""
    assert await verdict(checks=()) == ""


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "::1",
        "::ffff:127.0.0.1",
        "10.0.0.5",
        "192.168.0.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",  # noqa: S104 - an address to refuse
        "224.0.0.1",
        "fe80::1",
        "fd00::1",
    ],
)
@pytest.mark.parametrize("check", [HTTP, TCP], ids=["http", "tcp"])
async def test_an_address_that_is_not_public_is_never_connected_to(
    host: str, check: HealthCheck
) -> None:
    """S6: the address is the provider's word, and would be called from inside our network."""

    def never(request: httpx2.Request) -> httpx2.Response:
        raise AssertionError(request)

    prober = Prober(allow_loopback=False, transport=httpx2.MockTransport(never))
    said = await prober.healthy([Endpoint(container_port=8000, host=host, port=9)], [check])
    assert said.endswith("is not public")


async def test_the_switch_for_loopback_opens_nothing_else() -> None:
    """Development allows the machine itself, not the network around it."""
    private = Endpoint(container_port=8000, host="10.0.0.5", port=9)
    assert (await verdict(private)).endswith("is not public")


def resolving(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    """Let every name lead to these addresses."""

    async def found(
        _loop: object, host: str, port: int, **_: object
    ) -> list[tuple[int, int, int, str, tuple[str, int]]]:
        assert host == "machine.example", host
        return [(2, 1, 6, "", (address, port)) for address in addresses]

    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", found)


NAMED = Endpoint(container_port=8000, host="machine.example", port=40001)
AT_URL = Endpoint(
    container_port=8000, host="machine.example", port=443, url="https://machine.example"
)


@pytest.mark.parametrize("endpoint", [NAMED, AT_URL], ids=["name", "url"])
@pytest.mark.parametrize("check", [HTTP, TCP], ids=["http", "tcp"])
async def test_a_name_that_leads_to_a_private_address_is_never_connected_to(
    monkeypatch: pytest.MonkeyPatch, endpoint: Endpoint, check: HealthCheck
) -> None:
    """S6: one bad address among good ones spoils the name; which is taken is not ours to say."""
    resolving(monkeypatch, "8.8.8.8", "10.0.0.5")

    def never(request: httpx2.Request) -> httpx2.Response:
        raise AssertionError(request)

    prober = Prober(allow_loopback=False, transport=httpx2.MockTransport(never))
    said = await prober.healthy([endpoint], [check])
    assert said == "port 8000: the published address 10.0.0.5 is not public"


@pytest.mark.parametrize(
    ("endpoint", "url", "host"),
    [
        (NAMED, "http://8.8.8.8:40001/health", "machine.example:40001"),
        (AT_URL, "https://8.8.8.8/health", "machine.example"),
    ],
    ids=["name", "url"],
)
async def test_a_name_is_asked_at_the_address_that_was_checked(
    monkeypatch: pytest.MonkeyPatch, endpoint: Endpoint, url: str, host: str
) -> None:
    """S6: a second look-up could lead elsewhere; `Host` and certificate stay the name's."""
    resolving(monkeypatch, "8.8.8.8")
    asked: list[httpx2.Request] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        asked.append(request)
        return httpx2.Response(200)

    prober = Prober(allow_loopback=False, transport=httpx2.MockTransport(answer))
    assert await prober.healthy([endpoint], [HTTP]) == ""
    assert [str(request.url) for request in asked] == [url]
    assert asked[0].headers["host"] == host
    assert asked[0].extensions["sni_hostname"] == "machine.example"
    assert asked[0].headers["connection"] == "close"


async def test_an_http_url_is_asked_and_its_own_port_is_taken() -> None:
    """A market that publishes URLs says nothing about ports; the URL does."""
    heads: list[str] = []
    async with workload(status("200 OK"), heads) as endpoint:
        url = f"http://127.0.0.1:{endpoint.port}"
        published = Endpoint(container_port=8000, host="127.0.0.1", port=443, url=url)
        assert await verdict(published) == ""
        assert await verdict(published, checks=(TCP,)) == ""
    assert heads[0].startswith("GET /health HTTP/1.1")


async def test_a_url_that_promises_encryption_is_not_asked_without() -> None:
    """Anybody on the way could answer in the clear."""

    async def in_the_clear(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(in_the_clear, "127.0.0.1", 0)
    async with server:
        url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        published = Endpoint(container_port=8000, host="127.0.0.1", port=443, url=url)
        assert (await verdict(published)).startswith("port 8000: no answer")


@pytest.mark.parametrize("url", ["ftp://8.8.8.8", "https://", "https://me@8.8.8.8", "//8.8.8.8"])
async def test_a_url_that_is_no_plain_web_address_is_refused(url: str) -> None:
    """It is the provider's text."""
    published = Endpoint(container_port=8000, host="8.8.8.8", port=443, url=url)
    said = await verdict(published)
    assert said == "port 8000: the published address is none that can be called"


@pytest.mark.parametrize(
    ("host", "path", "url"),
    [
        ("8.8.8.8", "/health?deep=1", "http://8.8.8.8:40001/health?deep=1"),
        ("8.8.8.8", "health", "http://8.8.8.8:40001/health"),
        ("8.8.8.8", "", "http://8.8.8.8:40001/"),
        ("8.8.8.8", "@10.0.0.1/x", "http://8.8.8.8:40001/@10.0.0.1/x"),
        ("8.8.8.8", "//10.0.0.1/x", "http://8.8.8.8:40001//10.0.0.1/x"),
        ("2606:4700::1111", "/", "http://[2606:4700::1111]:40001/"),
    ],
)
async def test_the_path_never_changes_where_the_probe_goes(host: str, path: str, url: str) -> None:
    """S6: `@10.0.0.1` behind a port would make the public address a user name."""
    asked: list[str] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        asked.append(str(request.url))
        return httpx2.Response(200)

    prober = Prober(allow_loopback=False, transport=httpx2.MockTransport(answer))
    endpoint = Endpoint(container_port=8000, host=host, port=40001)
    check = HealthCheck(port=8000, path=path)
    assert await prober.healthy([endpoint], [check]) == ""
    assert asked == [url]


async def test_a_path_that_is_none_is_a_problem_and_not_a_crash() -> None:
    """The tick that probes serves every rental."""
    endpoint = Endpoint(container_port=8000, host="127.0.0.1", port=9)
    said = await verdict(endpoint, checks=(HealthCheck(port=8000, path="/\x00\r\n"),))
    assert said == "port 8000: the path is not one"


async def test_a_guests_cookie_is_not_carried_to_another() -> None:
    """Ports on one shared address belong to different people."""
    heads: list[str] = []
    setting = status("200 OK", "Set-Cookie: who=first; Path=/\r\n")
    prober = Prober(allow_loopback=True)
    async with workload(setting, heads) as one, workload(setting, heads) as other:
        assert await prober.healthy([one], [HTTP]) == ""
        assert await prober.healthy([other], [HTTP]) == ""
    await prober.aclose()
    assert "cookie" not in heads[1].lower()
