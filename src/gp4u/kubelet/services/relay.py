"""A relay: listens on a pod's container ports inside the cluster, and leads to its machine outside.

Hides copying in both directions, half-closed connections, and what an HTTP address wants that a
plain port does not: TLS, and requests that ask for its own name (`by_name.py`). It exists for
markets that publish URLs only, and for everything in a cluster that dials a pod's address and the
container's port. It holds no credentials and knows no market; what leads where is a file, which is
read anew when it changes. The pod that it runs in is described by `relay_pod.py`.
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, NoReturn

import structlog
from msgspec import Struct

from gp4u.errors import BadInput
from gp4u.kubelet.probes.calls import Place, place_of
from gp4u.kubelet.services.by_name import MAX_HEAD, NotRelayed, renamed
from gp4u.providers.http import addresses_of, may_connect
from gp4u.telemetry import clean

MAX_CONNECTIONS: Final = 1024
"""At a time, over all routes; more are turned away."""
MAX_ROUTES: Final = 100
CONNECT_S: Final = 10.0
HEAD_S: Final = 30.0
"""How long the head of a request may take, where there is one to be read."""
IDLE_S: Final = 3600.0
"""A connection on which nothing moves for so long is given up."""
REREAD_S: Final = 2.0
_PIECE: Final = 64 * 1024
_MAX_FILE: Final = 1024 * 1024
_MAX_PORT: Final = 65535


class Route(Struct, frozen=True, order=True):
    """One port that is listened on, and where it leads."""

    listen_port: int
    target: str
    """`host:port`, or an `http` or `https` URL without a path."""


def routes_in(text: str) -> tuple[Route, ...]:
    """Return the routes of a file: `{"routes": [{"port": 8001, "to": "203.0.113.45:42352"}]}`.

    Raises:
        BadInput: it is no such file, or a port or an address is none.
    """
    try:
        told = json.loads(text)
        listed = [(each["port"], each["to"]) for each in told["routes"]]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadInput("routes", clean(text, 64), 'must be {"routes": [{port, to}]}') from error
    if len(listed) > MAX_ROUTES:
        raise BadInput("routes", len(listed), f"at most {MAX_ROUTES}")
    for port, target in listed:
        if type(port) is not int or not 1 <= port <= _MAX_PORT:
            raise BadInput("routes[].port", port, f"must be from 1 to {_MAX_PORT}")
        if not isinstance(target, str) or _place(target) is None:
            raise BadInput("routes[].to", target, "must be host:port, or an http or https URL")
    if len({port for port, _ in listed}) != len(listed):
        raise BadInput("routes[].port", len(listed), "must differ from each other")
    return tuple(sorted(Route(port, target) for port, target in listed))


def routes_text(routes: Sequence[Route]) -> str:
    """Return the file that `routes_in` reads."""
    listed = [{"port": each.listen_port, "to": each.target} for each in sorted(routes)]
    return json.dumps({"routes": listed}, indent=1)


class Relay:
    """Listens and forwards; `run` it in a task, and `set` what it forwards at any time."""

    def __init__(
        self,
        routes: Sequence[Route] = (),
        *,
        host: str | None = None,
        health_port: int | None = None,
        allow_loopback: bool = False,
        trusted: ssl.SSLContext | None = None,
    ) -> None:
        """`host` None: every address of this machine. `trusted`: whose certificates are good."""
        self._wanted = tuple(routes)
        self._host, self._health_port = host, health_port
        self._allow_loopback = allow_loopback
        self._tls = trusted or ssl.create_default_context()
        self._open: dict[Route, _Listener] = {}
        self._doors: list[asyncio.Server] = []
        """What is open beside the routes."""
        self._changed = asyncio.Event()
        self._changed.set()
        self._log = structlog.get_logger()
        self.listening = asyncio.Event()
        """Set while every route is listened on."""
        self.health: tuple[str, int] | None = None
        """Where it says that it lives, once it does."""
        self.connections = 0

    def set(self, routes: Sequence[Route]) -> None:
        """Change what is forwarded; connections of a route that goes away are cut.

        Its machine is given up by now, and its address may soon be somebody else's.
        """
        self._wanted = tuple(routes)
        self.listening.clear()
        self._changed.set()

    def port_of(self, route: Route) -> int:
        """Return the port on which a route is listened on; for routes whose port was 0."""
        port: int = self._open[route].server.sockets[0].getsockname()[1]
        return port

    async def run(self) -> NoReturn:
        """Forward until cancelled.

        Raises:
            BadInput: the port of its health cannot be listened on.
        """
        try:
            async with asyncio.TaskGroup() as group:
                if self._health_port is not None:
                    await self._tell_health(group, self._health_port)
                while True:
                    await self._changed.wait()
                    self._changed.clear()
                    await self._follow(group)
        finally:
            for each in (*(listener.server for listener in self._open.values()), *self._doors):
                each.close()
        raise AssertionError("the group ends by cancellation alone")

    async def _follow(self, group: asyncio.TaskGroup) -> None:
        """Listen on what is wanted and on nothing else."""
        wanted = self._wanted
        for route in [route for route in self._open if route not in wanted]:
            self._open.pop(route).close()
        for route in wanted:
            if route in self._open:
                continue
            listener = _Listener()
            try:
                listener.server = await asyncio.start_server(
                    self._taking(route, listener, group),
                    self._host,
                    route.listen_port,
                    limit=MAX_HEAD,
                )
            except OSError as error:
                self._log.error("relay_cannot_listen", port=route.listen_port, problem=str(error))
                asyncio.get_running_loop().call_later(REREAD_S, self._changed.set)
                continue
            self._open[route] = listener
            self._log.info("relay_listens", port=route.listen_port, to=route.target)
        if wanted == self._wanted and all(route in self._open for route in wanted):
            self.listening.set()

    def _taking(
        self, route: Route, listener: _Listener, group: asyncio.TaskGroup
    ) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], None]:
        def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if self.connections >= MAX_CONNECTIONS:
                writer.transport.abort()
                return
            task = group.create_task(self._serve_safely(route, reader, writer))
            self.connections += 1
            listener.tasks.add(task)

            def ended(_: object) -> None:
                self.connections -= 1
                listener.tasks.discard(task)

            task.add_done_callback(ended)

        return take

    async def _serve_safely(
        self, route: Route, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        try:
            await self._serve(route, reader, writer)
        except Exception:  # noqa: BLE001 - a connection's bug must not become another one's
            self._log.exception("relay_connection_failed", to=route.target)

    async def _serve(
        self, route: Route, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Forward one connection until both sides have ended."""
        there: asyncio.StreamWriter | None = None
        place = _place(route.target)
        try:
            if place is None:
                return
            head = b""
            if place.by_name:
                async with asyncio.timeout(HEAD_S):
                    head = renamed(await reader.readuntil(b"\r\n\r\n"), place)
            back, there = await self._connect(place)
            there.write(head)
            beat = _Beat()
            async with asyncio.TaskGroup() as both:
                watch = both.create_task(beat.watch())
                one = both.create_task(_copy(reader, there, beat))
                other = both.create_task(_copy(back, writer, beat))
                # A machine that has ended has said all it will; one that has not may still answer.
                await other
                if place.tls or one.done():
                    one.cancel()
                else:
                    await one
                watch.cancel()
        except* (
            OSError,
            asyncio.IncompleteReadError,
            asyncio.LimitOverrunError,
            NotRelayed,
        ) as told:
            problem = told.exceptions[0]
            self._log.debug("relay_connection_failed", to=route.target, problem=str(problem))
            if place is not None and place.by_name and there is None:
                writer.write(_bad_gateway(str(problem)))
                with suppress(OSError):
                    await writer.drain()
        finally:
            if there is not None:
                there.close()
            writer.close()

    async def _connect(self, place: Place) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect to a checked address of a place.

        Raises:
            OSError: none answers in time.
            NotRelayed: one of them is none that a market may lead us to.
        """
        async with asyncio.timeout(CONNECT_S):
            try:
                addresses = await addresses_of(place.host, place.port)
            except ValueError as error:
                raise NotRelayed("the name cannot be one") from error
            for address in addresses:
                if not may_connect(address, allow_loopback=self._allow_loopback):
                    raise NotRelayed(f"the address {address} is not public")
            problem: OSError = ConnectionError("the name has no address")
            for address in addresses:
                try:
                    reader, writer = await asyncio.open_connection(
                        str(address),
                        place.port,
                        ssl=self._tls if place.tls else None,
                        server_hostname=place.host if place.tls else None,
                    )
                except OSError as error:
                    problem = error
                    continue
                _keep_alive(writer)
                return reader, writer
        raise problem

    async def _tell_health(self, group: asyncio.TaskGroup, port: int) -> None:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                async with asyncio.timeout(HEAD_S):
                    await reader.readuntil(b"\r\n\r\n")
                good = self.listening.is_set()
                line = "200 OK" if good else "503 Service Unavailable"
                body = b"ok\n" if good else b"not every route is open\n"
                writer.write(_reply(line, body))
                await writer.drain()
            except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
                pass  # whoever asked is gone
            finally:
                writer.close()

        def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            group.create_task(answer(reader, writer))

        try:
            server = await asyncio.start_server(take, self._host, port, limit=MAX_HEAD)
        except OSError as error:
            bound = f"cannot be listened on: {error.strerror or error}"
            raise BadInput("--health-port", port, bound) from error
        self._doors.append(server)
        self.health = server.sockets[0].getsockname()[:2]


async def run_relay(
    routes: Path, *, health_port: int, told: Callable[[str], None], allow_loopback: bool = False
) -> NoReturn:
    """Forward what a file says until cancelled, and follow its changes.

    A file that is bad once the relay runs changes nothing, and that is told.

    Raises:
        BadInput: the file cannot be read or used at the start, or the port of its health is taken.
    """
    text = _text(routes)
    relay = Relay(routes_in(text), health_port=health_port, allow_loopback=allow_loopback)
    async with asyncio.TaskGroup() as group:
        group.create_task(relay.run())
        while True:
            await asyncio.sleep(REREAD_S)
            try:
                newest = _text(routes)
                if newest != text:
                    text = newest
                    relay.set(routes_in(newest))
                    told("the routes have changed")
            except BadInput as error:
                told(f"the routes stay as they were: {error}")
    raise AssertionError("the group ends by cancellation alone")


class _Listener:
    """One open port and its connections."""

    server: asyncio.Server

    def __init__(self) -> None:
        self.tasks: set[asyncio.Task[None]] = set()

    def close(self) -> None:
        self.server.close()
        for task in self.tasks:
            task.cancel()


class _Beat:
    """Notices that nothing has moved in either direction for too long."""

    def __init__(self) -> None:
        self.at = asyncio.get_running_loop().time()

    def now(self) -> None:
        self.at = asyncio.get_running_loop().time()

    async def watch(self) -> NoReturn:
        loop = asyncio.get_running_loop()
        while True:
            left_s = self.at + IDLE_S - loop.time()
            if left_s <= 0:
                raise TimeoutError("nothing moved for too long")
            await asyncio.sleep(left_s)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, beat: _Beat) -> None:
    """Copy until the end, and say that it is one. What waits in between is a piece or two."""
    while data := await reader.read(_PIECE):
        beat.now()
        writer.write(data)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()


def _place(target: str) -> Place | None:
    """Return where a target leads; None where it is none."""
    if "://" in target:
        place = place_of(target)
        return place if place is not None and target.isascii() else None
    host, _, port = target.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isascii() or not port.isdigit() or not 1 <= int(port) <= _MAX_PORT:
        return None
    return Place(host=host, port=int(port))


def _keep_alive(writer: asyncio.StreamWriter) -> None:
    """Have the system find out about a machine that is gone without a word."""
    sock = writer.get_extra_info("socket")
    if sock is not None:
        with suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


def _bad_gateway(problem: str) -> bytes:
    return _reply("502 Bad Gateway", f"the machine cannot be reached: {clean(problem)}\n".encode())


def _reply(line: str, body: bytes) -> bytes:
    head = f"HTTP/1.1 {line}\r\nContent-Type: text/plain\r\nContent-Length: {len(body)}\r\n"
    return f"{head}Connection: close\r\n\r\n".encode() + body


def _text(path: Path) -> str:
    """Read the routes' file.

    Raises:
        BadInput: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return file.read(_MAX_FILE).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput("routes", str(path), f"cannot be read: {error}") from error
