"""The Docker Engine API over a unix socket: the few calls that running an instance takes.

It hides paths, versions, JSON shapes and the framing of logs, and speaks to Docker and to podman
alike. What a container should look like, who owns it, and what its failure means to an instance
is decided in `runtime.py`.

Source: Docker Engine API v1.41 reference (docs.docker.com/reference/api/engine/version/v1.41),
checked November 2026; the same calls tried against podman 4.3.1.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import httpx2
import msgspec

from gp4u.sim.entering import Entered, HijackRefusedError, hijacked

LOG_BYTES = 1024 * 1024
"""The most that `logs` returns: the newest part."""

_PING_S = 10.0
"""For the first answer: podman asks two other programs for their versions before it gives its."""
_CALL_S = 60.0
_EXEC_POLL_S, _EXEC_POLLS = 0.02, 250
"""An engine may close a command's streams a moment before it knows how it ended."""
_PULL_S = 600.0
"""Without a word from the engine while it pulls; a big layer is unpacked in silence."""

_T = TypeVar("_T")


class EngineError(Exception):
    """The engine said no (`status`, and its own text), or could not be reached (`status` None)."""

    def __init__(self, status: int | None, text: str) -> None:
        self.status = status
        super().__init__(text)


class Binding(msgspec.Struct, rename="pascal"):
    """Where on the host a container port is bound."""

    host_ip: str = ""
    host_port: str = ""


class _Version(msgspec.Struct, rename="pascal"):
    api_version: str


class _Created(msgspec.Struct, rename="pascal"):
    id: str


class _Attached(msgspec.Struct, rename={"address": "IPAddress"}):
    address: str = ""


class _Network(msgspec.Struct, rename="pascal"):
    ports: dict[str, list[Binding] | None] | None = None
    networks: dict[str, _Attached] | None = None


class _State(msgspec.Struct, rename="pascal"):
    exit_code: int


class _Inspected(msgspec.Struct, rename="pascal"):
    network_settings: _Network
    state: _State


class _Exec(msgspec.Struct, rename="pascal"):
    running: bool = False
    exit_code: int | None = None


class _Listed(msgspec.Struct, rename="pascal"):
    id: str
    labels: dict[str, str] | None = None


class _Message(msgspec.Struct):
    message: str


class _Progress(msgspec.Struct):
    error: str | None = None


def sockets(env: Mapping[str, str]) -> Iterator[str]:
    """Name the paths where an engine may listen, the one the user chose first.

    A `DOCKER_HOST` that is no unix socket names nothing: ports of a container elsewhere are not
    on this machine's loopback.
    """
    if chosen := env.get("DOCKER_HOST"):
        if chosen.startswith("unix://"):
            yield chosen.removeprefix("unix://")
        return
    yield "/var/run/docker.sock"
    if mine := env.get("XDG_RUNTIME_DIR"):
        yield os.path.join(mine, "podman/podman.sock")  # noqa: PTH118 -- text in, text out
    yield "/run/podman/podman.sock"


def image_parts(image: str) -> tuple[str, str]:
    """Split an image's name into what pulls call `fromImage` and `tag`; no tag means `latest`.

    Without a tag, Docker would pull every one there is.
    """
    name, at, digest = image.partition("@")
    if at:
        return name, digest
    head, slash, last = image.rpartition("/")
    last, _, tag = last.partition(":")
    return head + slash + last, tag or "latest"


class Frames:
    """Takes the multiplexed stream of a container without a terminal apart; sans-IO.

    Each frame: one byte of stream (1 stdout, 2 stderr), three of nothing, a big-endian length
    in four, and the output. Frames may arrive in any pieces.
    """

    def __init__(self) -> None:
        self._pending = bytearray()

    def feed(self, data: bytes) -> bytes:
        """Return the output of all frames that `data` completes, in order."""
        self._pending += data
        output = bytearray()
        while len(self._pending) >= 8:
            (length,) = struct.unpack_from(">I", self._pending, 4)
            if len(self._pending) < 8 + length:
                break
            output += self._pending[8 : 8 + length]
            del self._pending[: 8 + length]
        return bytes(output)


class Engine:
    """One engine behind one socket; `connect` makes it, `aclose` lets go of it."""

    def __init__(self, socket: str, http: httpx2.AsyncClient) -> None:
        self.socket = socket
        self._http = http
        self._version = ""

    @classmethod
    async def connect(cls, socket: str) -> Engine | None:
        """Return the engine that answers at this path, or None where none does."""
        http = httpx2.AsyncClient(
            transport=httpx2.AsyncHTTPTransport(
                uds=socket,
                # Each running container holds a connection on which we wait for its end.
                limits=httpx2.Limits(max_connections=None, max_keepalive_connections=8),
            ),
            base_url="http://engine",
            trust_env=False,
            timeout=_PING_S,
        )
        engine = cls(socket, http)
        try:
            reply = await engine._call("GET", "/version", timeout_s=_PING_S)
            engine._version = "/v" + _decode(reply, _Version).api_version
        except EngineError:
            await http.aclose()
            return None
        return engine

    async def aclose(self) -> None:
        """Close the connections; containers stay."""
        await self._http.aclose()

    async def create(self, spec: Mapping[str, object]) -> str:
        """Create a container as `POST /containers/create` describes it; return its id."""
        reply = await self._call("POST", "/containers/create", body=spec)
        return _decode(reply, _Created).id

    async def start(self, container: str) -> None:
        """Start a created container; its first process runs when this returns."""
        await self._call("POST", f"/containers/{container}/start")

    async def ports(self, container: str) -> dict[str, list[Binding]]:
        """Return where each exposed port ("8000/tcp") is bound on the host."""
        ports = (await self._inspect(container)).network_settings.ports or {}
        return {port: bindings for port, bindings in ports.items() if bindings}

    async def address(self, container: str) -> str:
        """Return a container's own address on its network; empty where it has none."""
        networks = (await self._inspect(container)).network_settings.networks or {}
        return next((each.address for each in networks.values() if each.address), "")

    async def enter(self, container: str, argv: Sequence[str], *, tty: bool) -> Entered:
        """Start a command in a running container, with its streams open."""
        wanted = {
            "AttachStdin": True,
            "AttachStdout": True,
            "AttachStderr": True,
            "Tty": tty,
            "Cmd": list(argv),
            "Env": ["TERM=xterm-256color"] if tty else [],
        }
        reply = await self._call("POST", f"/containers/{container}/exec", body=wanted)
        number = _decode(reply, _Created).id
        path = f"{self._version}/exec/{number}/start"
        try:
            reader, writer = await hijacked(self.socket, path, {"Detach": False, "Tty": tty})
        except HijackRefusedError as error:
            raise EngineError(error.status, _message(str(error).encode())) from error
        except OSError as error:
            raise self._unreachable(error) from error

        async def resize(columns: int, rows: int) -> None:
            size = {"w": str(columns), "h": str(rows)}
            with suppress(EngineError):  # it may have ended
                await self._call("POST", f"/exec/{number}/resize", size)

        async def code() -> int:
            for _ in range(_EXEC_POLLS):
                reply = await self._call("GET", f"/exec/{number}/json")
                told = _decode(reply, _Exec)
                if not told.running:
                    return told.exit_code or 0
                await asyncio.sleep(_EXEC_POLL_S)
            raise EngineError(None, "the command's streams ended, and it goes on")

        return Entered(reader, writer, tty=tty, resize=resize, code=code)

    async def wait(self, container: str) -> None:
        """Wait, without end, until the container does not run.

        The reply's exit code is not used: podman 4.3.1 says 0 of a container that was removed.
        """
        path = f"/containers/{container}/wait"
        await self._call("POST", path, {"condition": "not-running"}, timeout_s=None)

    async def exit_code(self, container: str) -> int:
        """Return the exit code of a container that has ended."""
        return (await self._inspect(container)).state.exit_code

    async def logs(self, container: str, tail: int) -> bytes:
        """Return the last `tail` lines of both streams, at most `LOG_BYTES`."""
        frames, kept = Frames(), bytearray()
        params = {"stdout": "1", "stderr": "1", "tail": str(tail)}
        path = f"{self._version}/containers/{container}/logs"
        try:
            async with self._http.stream("GET", path, params=params, timeout=_CALL_S) as reply:
                if reply.status_code >= 400:
                    raise EngineError(reply.status_code, _message(await reply.aread()))
                async for data in reply.aiter_bytes():
                    kept += frames.feed(data)
                    del kept[:-LOG_BYTES]
        except httpx2.TransportError as error:
            raise self._unreachable(error) from error
        return bytes(kept)

    async def stop(self, container: str, grace_s: int) -> None:
        """Send SIGTERM and, after the grace, SIGKILL; an ended container is no error."""
        path = f"/containers/{container}/stop"
        await self._call("POST", path, {"t": str(grace_s)}, timeout_s=_CALL_S + grace_s)

    async def remove(self, container: str) -> None:
        """Kill it if it runs, and remove it with its volumes."""
        await self._call("DELETE", f"/containers/{container}", {"force": "1", "v": "1"})

    async def labelled(self, label: str) -> dict[str, str]:
        """Return id and the label's value for each container, running or not, that has it."""
        query = {"all": "1", "filters": json.dumps({"label": [label]})}
        reply = await self._call("GET", "/containers/json", query)
        listed = _decode(reply, list[_Listed])
        return {each.id: (each.labels or {}).get(label.partition("=")[0], "") for each in listed}

    async def pull(self, image: str, login: tuple[str, str, str] | None = None) -> None:
        """Fetch an image from its registry.

        Raises:
            EngineError: the registry cannot be reached, or has no such image for us.
        """
        name, tag = image_parts(image)
        reply = await self._call(
            "POST",
            "/images/create",
            {"fromImage": name, "tag": tag},
            headers={"X-Registry-Auth": _login(*login)} if login else None,
            timeout_s=_PULL_S,
        )
        # A failure after the first byte comes as a line of a reply that began with 200.
        for line in filter(None, map(bytes.strip, reply.splitlines())):
            if error := _decode(line, _Progress).error:
                raise EngineError(404, error)

    async def _inspect(self, container: str) -> _Inspected:
        return _decode(await self._call("GET", f"/containers/{container}/json"), _Inspected)

    async def _call(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        *,
        body: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None = _CALL_S,
    ) -> bytes:
        try:
            reply = await self._http.request(
                method,
                self._version + path,
                params=query,
                json=body,
                headers=headers,
                timeout=timeout_s,
            )
        except httpx2.TransportError as error:
            raise self._unreachable(error) from error
        if reply.status_code >= 400:
            raise EngineError(reply.status_code, _message(reply.content))
        return reply.content

    def _unreachable(self, error: Exception) -> EngineError:
        reason = str(error) or type(error).__name__
        return EngineError(None, f"no answer from the container engine at {self.socket}: {reason}")


def _login(server: str, user: str, password: str) -> str:
    told = {"username": user, "password": password, "serveraddress": server}
    return base64.urlsafe_b64encode(json.dumps(told).encode()).decode()


def _decode(data: bytes, shape: type[_T]) -> _T:
    try:
        return msgspec.json.decode(data, type=shape)
    except msgspec.DecodeError as error:
        raise EngineError(None, f"the container engine's reply cannot be read: {error}") from error


def _message(data: bytes) -> str:
    with suppress(msgspec.DecodeError):
        return msgspec.json.decode(data, type=_Message).message
    return data.decode(errors="replace").strip() or "no reason given"
