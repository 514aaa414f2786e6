"""A relay between the cluster and a machine, over real sockets on this machine."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gp4u.errors import BadInput
from gp4u.kubelet.policy import NodePolicy
from gp4u.kubelet.server.health import tell_health
from gp4u.kubelet.services import relay as relay_module
from gp4u.kubelet.services.relay import Relay, Route, routes_in, routes_text, run_relay
from gp4u.kubelet.services.relay_pod import (
    RELAY_FOR,
    relay_address,
    relay_config,
    relay_name,
    relay_pod,
    relay_routes,
)
from gp4u.model import Endpoint, Protocol
from tests.unit.kubelet.identity import certificate

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def machine(serve: Serve, tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """A machine outside; its address."""

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await serve(reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass  # the relay has cut it
        finally:
            writer.close()

    server = await asyncio.start_server(one, "127.0.0.1", 0, ssl=tls)
    async with server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()


@asynccontextmanager
async def relaying(
    *targets: str, trusted: ssl.SSLContext | None = None, allow_loopback: bool = True
) -> AsyncIterator[tuple[Relay, list[int]]]:
    """A relay to these targets, and the ports it listens on."""
    routes = [Route(port, target) for port, target in zip(free_ports(), targets, strict=False)]
    relay = Relay(
        routes,
        host="127.0.0.1",
        health_port=0,
        allow_loopback=allow_loopback,
        trusted=trusted,
    )
    async with asyncio.TaskGroup() as group:
        task = group.create_task(relay.run())
        await relay.listening.wait()
        yield relay, [relay.port_of(route) for route in routes]
        task.cancel()


def free_ports(count: int = 8) -> list[int]:
    """Return ports that nobody listens on just now."""
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    found = [each.getsockname()[1] for each in held]
    for each in held:
        each.close()
    return found


async def say(port: int, data: bytes) -> bytes:
    """Send, end, and return all that comes back."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    writer.write_eof()
    try:
        return await reader.read()
    finally:
        writer.close()


async def test_bytes_go_both_ways_and_the_end_is_passed_on() -> None:
    """A client that has sent everything says so by closing its half, and still reads."""
    sent = Random(1).randbytes(3_000_000)
    async with machine(echo) as there, relaying(there) as (_, (port,)):
        assert await say(port, sent) == sent


async def test_many_connections_are_forwarded_at_a_time() -> None:
    """Each is its own."""
    async with machine(echo) as there, relaying(there) as (relay, (port,)):
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(say(port, b"%d" % number)) for number in range(100)]
        assert [each.result() for each in tasks] == [b"%d" % number for number in range(100)]
        while relay.connections:  # noqa: ASYNC110 - a test that waits for what has no event
            await asyncio.sleep(0)


async def test_a_machine_that_sends_without_being_read_is_held_back() -> None:
    """L14: what waits in the relay is bounded by its buffers."""
    sent = 0

    async def flood(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        while True:
            writer.write(bytes(65536))
            await writer.drain()
            sent += 65536

    async with machine(flood) as there, relaying(there) as (_, (port,)):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        await reader.readexactly(1)
        before = -1
        for _ in range(10_000):  # until nothing moves any more
            await asyncio.sleep(0)
            if sent == before and sent > 0:
                break
            before = sent
        assert sent < 64 * 1024 * 1024
        writer.close()


async def test_a_connection_to_a_machine_that_is_gone_is_closed() -> None:
    """A hang would be worse: nobody retries it."""
    async with machine(echo) as there:
        pass
    async with relaying(there) as (_, (port,)):
        assert await say(port, b"x") == b""


async def test_too_many_connections_are_turned_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """L14: everything is bounded."""
    monkeypatch.setattr(relay_module, "MAX_CONNECTIONS", 2)
    async with machine(echo) as there, relaying(there) as (_, (port,)):
        held = []
        for _ in range(2):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"x")
            assert await reader.read(1) == b"x"
            held.append(writer)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"x")
        with suppress(ConnectionResetError):  # that is a no as well
            assert await reader.read(1) == b""
        for each in (*held, writer):
            each.close()


@pytest.mark.parametrize("target", ["10.0.0.1:80", "169.254.169.254:80", "127.0.0.1:1"])
async def test_an_address_that_is_not_public_is_not_connected_to(target: str) -> None:
    """S6: a market that lies must not reach into the cluster through the relay."""
    async with relaying(f"http://{target}", allow_loopback=False) as (_, (port,)):
        told = await say(port, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert told.startswith(b"HTTP/1.1 502 ")
        assert b"is not public" in told


class Web:
    """An HTTP server that tells what it was asked."""

    def __init__(self) -> None:
        self.heads: list[bytes] = []
        self.bodies: list[bytes] = []

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        self.heads.append(head)
        if b"upgrade" in head.lower():
            writer.write(b"HTTP/1.1 101 x\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n")
            await echo(reader, writer)
            return
        length = next(
            (int(each.split(b":")[1]) for each in head.split(b"\r\n") if each.startswith(b"Conte")),
            0,
        )
        self.bodies.append(await reader.readexactly(length))
        writer.write(b"HTTP/1.1 200 x\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok")
        await writer.drain()


async def test_a_url_is_asked_by_its_own_name_over_tls(tmp_path: Path) -> None:
    """A market's proxy knows no Service names, and inside the cluster nobody speaks TLS."""
    shown, trusted = certificate(tmp_path, "127.0.0.1")
    web = Web()
    async with (
        machine(web, shown) as there,
        relaying(f"https://{there}", trusted=trusted) as (
            _,
            (port,),
        ),
    ):
        asked = (
            b"POST /tts?x=1 HTTP/1.1\r\nHost: june-tts.default:8000\r\nX-A: 1\r\n"
            b"Connection: keep-alive\r\nKeep-Alive: 5\r\nContent-Length: 5\r\n\r\nhello"
        )
        told = await say(port, asked)
    assert told.endswith(b"\r\n\r\nok")
    (head,) = web.heads
    lines = head.rstrip().split(b"\r\n")
    assert lines[0] == b"POST /tts?x=1 HTTP/1.1"
    assert set(lines[1:]) == {
        b"Host: " + there.encode(),
        b"X-A: 1",
        b"Content-Length: 5",
        b"Connection: close",
    }
    assert web.bodies == [b"hello"]


async def test_a_certificate_for_another_name_is_not_accepted(tmp_path: Path) -> None:
    """Whoever stands in between would read everything."""
    shown, trusted = certificate(tmp_path, "other.example")
    web = Web()
    async with (
        machine(web, shown) as there,
        relaying(f"https://{there}", trusted=trusted) as (
            _,
            (port,),
        ),
    ):
        told = await say(port, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert told.startswith(b"HTTP/1.1 502 ")
    assert web.heads == []


async def test_a_websocket_goes_through_to_a_url() -> None:
    """Speech services stream."""
    async with machine(Web()) as there, relaying(f"http://{there}") as (_, (port,)):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(
            b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
        )
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101")
        for _ in range(3):
            writer.write(b"frame")
            assert await reader.readexactly(5) == b"frame"
        writer.close()


@pytest.mark.parametrize(
    "said", [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"hello\r\n\r\n", b"x" * 100_000]
)
async def test_what_is_not_http_1_is_refused_where_there_is_a_url(said: bytes) -> None:
    """It cannot be given the right name."""
    web = Web()
    async with machine(web) as there, relaying(f"http://{there}") as (_, (port,)):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(said)
        try:
            told = await reader.read()
        except ConnectionResetError:
            told = b""
        assert told == b"" or told.startswith(b"HTTP/1.1 502 ")
        writer.close()
    assert web.heads == []


async def test_connections_are_cut_when_their_route_changes() -> None:
    """The machine is given up; its address may be a stranger's in a moment."""
    async with machine(echo) as one, machine(echo) as other, relaying(one) as (relay, (port,)):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"x")
        assert await reader.read(1) == b"x"
        relay.set([Route(port, other)])
        with suppress(ConnectionResetError):  # cut is cut
            assert await reader.read() == b""
        writer.close()
        await relay.listening.wait()
        assert await say(port, b"y") == b"y"
        relay.set([])
        await relay.listening.wait()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)


async def test_it_says_whether_it_lives() -> None:
    """The cluster restarts one that does not, and sends nothing to one that is not ready."""
    async with machine(echo) as there, relaying(there) as (relay, _):
        assert relay.health is not None
        told = await say(relay.health[1], b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert told.startswith(b"HTTP/1.1 200 OK")
        relay.listening.clear()
        told = await say(relay.health[1], b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert told.startswith(b"HTTP/1.1 503 ")


async def test_a_health_port_that_is_taken_is_refused_by_name() -> None:
    """Whoever starts two of them on one machine reads what to change."""
    taken = await asyncio.start_server(echo, "127.0.0.1", 0)
    port = taken.sockets[0].getsockname()[1]
    async with taken:
        with pytest.raises(ExceptionGroup) as caught:
            await Relay(host="127.0.0.1", health_port=port).run()
        assert caught.group_contains(BadInput, match=f"--health-port: '?{port}")
        with pytest.raises(BadInput, match=f"GP4U_NODE_HEALTH_PORT: '?{port}"):
            await tell_health("127.0.0.1", port)


async def test_routes_are_read_anew_while_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ConfigMap changes under it; a bad one changes nothing."""
    monkeypatch.setattr(relay_module, "REREAD_S", 0.0)
    file, (first, second, *_) = tmp_path / "routes.json", free_ports()
    told: list[str] = []

    async def until(port: int, sent: bytes) -> None:
        while True:
            try:
                assert await say(port, sent) == sent
                return
            except OSError:
                await asyncio.sleep(0)

    async with machine(echo) as there, asyncio.TaskGroup() as group:
        file.write_text(routes_text([Route(first, there)]))
        running = run_relay(file, health_port=0, told=told.append, allow_loopback=True)
        task = group.create_task(running)
        await until(first, b"one")
        file.write_text("nonsense")
        while not told:  # noqa: ASYNC110 - it is told by a plain callback
            await asyncio.sleep(0)
        await until(first, b"two")
        file.write_text(routes_text([Route(first, there), Route(second, there)]))
        await until(second, b"three")
        task.cancel()
    assert "stay as they were" in told[0]
    assert told[-1] == "the routes have changed"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"routes": [{"port": 0, "to": "x:1"}]}',
        '{"routes": [{"port": true, "to": "x:1"}]}',
        '{"routes": [{"port": 1, "to": "x"}]}',
        '{"routes": [{"port": 1, "to": "x:99999"}]}',
        '{"routes": [{"port": 1, "to": 5}]}',
        '{"routes": [{"port": 1, "to": "gopher://x"}]}',
        '{"routes": [{"port": 1, "to": "https://u:p@x"}]}',
        '{"routes": [{"port": 1, "to": "x:1"}, {"port": 1, "to": "y:1"}]}',
    ],
)
def test_bad_routes_are_refused_by_name(text: str) -> None:
    """At the start; later the last good ones stay."""
    with pytest.raises(BadInput, match=r"^routes"):
        routes_in(text)


def test_a_file_of_routes_that_is_not_there_is_refused_by_name(tmp_path: Path) -> None:
    """Nothing listens, and nobody would know why."""
    with pytest.raises(BadInput, match="cannot be read"):
        asyncio.run(run_relay(tmp_path / "none", health_port=0, told=print))


@given(
    st.dictionaries(
        st.integers(1, 65535),
        st.sampled_from(["203.0.113.45:42352", "[2001:db8::1]:7", "https://x.example", "h:1"]),
        max_size=20,
    )
)
def test_routes_survive_their_file(wanted: dict[int, str]) -> None:
    """What the node writes is what the relay reads."""
    routes: Sequence[Route] = sorted(Route(port, target) for port, target in wanted.items())
    assert list(routes_in(routes_text(routes))) == routes


POD = {
    "metadata": {
        "name": "june",
        "namespace": "speech",
        "uid": "ABCDEF12-0000",
        "labels": {"a": "b"},
    }
}
ENDS = (
    Endpoint(container_port=8001, host="203.0.113.45", port=42352),
    Endpoint(container_port=80, host="x.example", port=443, url="https://x.example"),
    Endpoint(container_port=53, protocol=Protocol.UDP, host="203.0.113.45", port=1),
    Endpoint(container_port=8099, host="2001:db8::1", port=7),
)
POLICY = NodePolicy(name="node-1", address="10.0.0.9", relay_image="gp4u:1")


def test_a_relays_pod_is_small_safe_and_elsewhere() -> None:
    """It is put into the namespaces of others, some of which allow nothing else."""
    made = relay_pod(POD, ENDS, POLICY)
    meta, spec = made["metadata"], made["spec"]
    assert meta["name"] == relay_name(POD) == "june-relay-abcdef12"
    assert meta["namespace"] == "speech"
    assert meta["labels"][RELAY_FOR] == "ABCDEF12-0000"
    assert "a" not in meta["labels"]
    (owner,) = meta["ownerReferences"]
    assert (owner["kind"], owner["uid"]) == ("Pod", "ABCDEF12-0000")
    (term,) = spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][
        "nodeSelectorTerms"
    ]
    assert term["matchExpressions"] == [
        {"key": "type", "operator": "NotIn", "values": ["virtual-kubelet"]}
    ]
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["sysctls"][0]["name"] == "net.ipv4.ip_unprivileged_port_start"
    (container,) = spec["containers"]
    assert container["image"] == "gp4u:1"
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert container["resources"]["limits"]
    assert [each["containerPort"] for each in container["ports"]] == [80, 8001, 8099]
    # Its own port is none of the pod's.
    assert container["args"][-1] == "8100"
    assert container["readinessProbe"]["httpGet"]["port"] == 8100


def test_a_relays_routes_are_those_of_the_machine() -> None:
    """Under the container's numbers, by TCP alone, and by URL where there is one."""
    config = relay_config(POD, ENDS)
    assert config["metadata"]["name"] == relay_name(POD)
    routes = routes_in(config["data"]["routes.json"])
    assert routes == relay_routes(ENDS)
    assert routes == (
        Route(80, "https://x.example"),
        Route(8001, "203.0.113.45:42352"),
        Route(8099, "[2001:db8::1]:7"),
    )


@pytest.mark.parametrize(
    ("relay", "address"),
    [
        ({"metadata": {}, "status": {"phase": "Running", "podIP": "10.244.1.7"}}, "10.244.1.7"),
        ({"metadata": {}, "status": {"phase": "Pending"}}, None),
        ({"metadata": {}}, None),
        (
            {
                "metadata": {"deletionTimestamp": "x"},
                "status": {"phase": "Running", "podIP": "10.244.1.7"},
            },
            None,
        ),
    ],
)
def test_a_relay_has_an_address_while_it_runs(
    relay: dict[str, object], address: str | None
) -> None:
    """Before and after that its address is nobody's, or somebody else's."""
    assert relay_address(relay) == address
