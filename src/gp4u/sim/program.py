"""The small HTTP program that stands in for a workload where a rented instance has no command.

It exists so that a simulated rental ends in something that really answers: it listens on every
port it is told of, says who it is in one line of JSON, logs each request, and misbehaves on
request. What starts it, gives it ports and ends it is `runtime.py`'s and `tether.py`'s business.

Only the standard library is imported, and nothing of ours: it must be up in well under 100 ms,
and it also runs by file path, in an interpreter without site packages. Run it as
`python -m gp4u.sim.program`; it is told everything by its environment:

    GP4U_PORTS               "8000=43121,53/udp=43122": container port = host port
    GP4U_ADDRESS             where to listen; default 127.0.0.1
    GP4U_SERVICE_8000        the name that port 8000 gives itself; default "port-8000"
    GP4U_SIM_SLOW_S          wait so many seconds before each answer
    GP4U_SIM_UNHEALTHY       "1": answer 503 everywhere; "8000,8001": on those container ports
    GP4U_SIM_UNHEALTHY_FOR_S answer 503 for so many seconds after the start
    GP4U_SIM_EXIT_AFTER_S    end by itself after so many seconds
    GP4U_SIM_EXIT_CODE       the exit code of that end; default 1

SIGTERM ends it at once with exit code 0. A bad variable ends it with 2, a port that is taken
with 1, both with a sentence on stderr.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import signal
import sys
from collections.abc import Mapping
from typing import NamedTuple, cast

HEAD_LIMIT = 32 * 1024
"""Bytes of a request's head, and of one line of a chunked body."""

_REASONS = {200: "OK", 400: "Bad Request", 431: "Request Header Fields Too Large"}
_REASONS[503] = "Service Unavailable"


class Service(NamedTuple):
    """One port to listen on."""

    port: int
    """As the container knows it."""
    protocol: str
    host_port: int
    name: str


class Script(NamedTuple):
    """What the environment asked for."""

    services: tuple[Service, ...] = ()
    address: str = "127.0.0.1"
    slow_s: float = 0.0
    all_unhealthy: bool = False
    unhealthy_ports: frozenset[int] = frozenset()
    """Container ports."""
    unhealthy_for_s: float = 0.0
    exit_after_s: float | None = None
    exit_code: int = 1

    def is_healthy(self, port: int, uptime_s: float) -> bool:
        """Tell whether container port `port` should answer 200 at this age of the program."""
        if self.all_unhealthy or port in self.unhealthy_ports:
            return False
        return uptime_s >= self.unhealthy_for_s


def read_script(env: Mapping[str, str]) -> Script:
    """Read the variables in this module's docstring.

    Raises:
        ValueError: a variable cannot be read; the text names it and its value.
    """
    unhealthy = [word.strip() for word in env.get("GP4U_SIM_UNHEALTHY", "").split(",")]
    unhealthy = [word for word in unhealthy if word not in ("", "0")]
    return Script(
        services=_services(env),
        address=env.get("GP4U_ADDRESS") or "127.0.0.1",
        slow_s=_seconds(env, "GP4U_SIM_SLOW_S") or 0.0,
        all_unhealthy="1" in unhealthy,
        unhealthy_ports=frozenset(
            _number("GP4U_SIM_UNHEALTHY", word, 65535) for word in unhealthy if word != "1"
        ),
        unhealthy_for_s=_seconds(env, "GP4U_SIM_UNHEALTHY_FOR_S") or 0.0,
        exit_after_s=_seconds(env, "GP4U_SIM_EXIT_AFTER_S"),
        exit_code=_number("GP4U_SIM_EXIT_CODE", env.get("GP4U_SIM_EXIT_CODE") or "1", 255),
    )


def _services(env: Mapping[str, str]) -> tuple[Service, ...]:
    services = []
    for item in filter(None, env.get("GP4U_PORTS", "").split(",")):
        container, _, host = item.partition("=")
        number, _, protocol = container.partition("/")
        if protocol not in ("", "tcp", "udp"):
            raise ValueError(f"GP4U_PORTS: {item!r} has a protocol other than tcp and udp")
        port = _number("GP4U_PORTS", number, 65535)
        services.append(
            Service(
                port=port,
                protocol=protocol or "tcp",
                host_port=_number("GP4U_PORTS", host, 65535),
                name=env.get(f"GP4U_SERVICE_{port}") or f"port-{port}",
            )
        )
    return tuple(services)


def _number(name: str, text: str, most: int) -> int:
    if not text.strip().isdecimal() or int(text) > most:
        raise ValueError(f"{name}: {text!r} is not a whole number from 0 to {most}")
    return int(text)


def _seconds(env: Mapping[str, str], name: str) -> float | None:
    text = env.get(name, "")
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise ValueError(f"{name}: {text!r} is not a number of seconds")
    return seconds


class _BadRequestError(Exception):
    """The bytes are not HTTP; the argument is the status to say so with."""


class Program:
    """The listening program: one script, any number of ports and clients."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self._began_at = 0.0

    async def run(self) -> int:
        """Listen until SIGTERM or the script's end; return the exit code.

        Raises:
            OSError: a host port cannot be listened on.
        """
        loop = asyncio.get_running_loop()
        self._began_at = loop.time()
        stop = asyncio.Event()
        loop.add_signal_handler(signal.SIGTERM, stop.set)
        loop.add_signal_handler(signal.SIGINT, stop.set)
        for service in self._script.services:
            await self._listen(service)
        if not self._script.services:
            self._log("no port to listen on")
        try:
            async with asyncio.timeout(self._script.exit_after_s):
                await stop.wait()
        except TimeoutError:
            self._log(f"exiting with {self._script.exit_code} as told")
            return self._script.exit_code
        self._log("told to stop")
        return 0

    async def _listen(self, service: Service) -> None:
        if service.protocol == "udp":
            here = (self._script.address, service.host_port)
            await asyncio.get_running_loop().create_datagram_endpoint(
                lambda: _Datagrams(self, service), local_addr=here
            )
        else:

            async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                await self._serve(service, reader, writer)

            await asyncio.start_server(
                serve, self._script.address, service.host_port, limit=HEAD_LIMIT, backlog=512
            )
        where = f"{service.port}/{service.protocol} at {self._script.address}:{service.host_port}"
        self._log(f"{service.name} listening on {where}")

    async def _serve(
        self, service: Service, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Answer one client's requests, one after the other, until either side has had enough."""
        try:
            while await self._answer(service, reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client left; that is its right at any moment
        except _BadRequestError as bad:
            status = int(bad.args[0])
            self._log(f'{service.name} {service.port} "not HTTP" {status}')
            writer.write(_reply(status, b'{"error": "bad request"}\n', head=False, keep=False))
        finally:
            writer.close()

    async def _answer(
        self, service: Service, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        """Read one request, answer it, and tell whether the connection stays open."""
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            raise _BadRequestError(431) from None
        method, path, version, headers = _parse_head(head)
        if headers.get("expect", "").lower() == "100-continue":
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        await _skip_body(reader, headers)
        if self._script.slow_s:
            await asyncio.sleep(self._script.slow_s)
        wish = headers.get("connection", "").lower()
        keep = wish != "close" if version == "HTTP/1.1" else wish == "keep-alive"
        status, body = self.answer(service, method, path)
        writer.write(_reply(status, body, head=method == "HEAD", keep=keep))
        self._log(f"{service.name} {service.port} {json.dumps(f'{method} {path}')} {status}")
        await writer.drain()
        return keep

    def answer(self, service: Service, method: str, path: str) -> tuple[int, bytes]:
        """Return the status and the line of JSON for one request, and log nothing."""
        uptime_s = asyncio.get_running_loop().time() - self._began_at
        healthy = self._script.is_healthy(service.port, uptime_s)
        told = {
            "service": service.name,
            "status": "ok" if healthy else "unhealthy",
            "port": service.port,
            "method": method,
            "path": path,
            "uptime_s": round(uptime_s, 3),
        }
        return 200 if healthy else 503, json.dumps(told).encode() + b"\n"

    def _log(self, line: str) -> None:
        uptime_s = asyncio.get_running_loop().time() - self._began_at
        sys.stdout.write(f"[{uptime_s:9.3f}] {line}\n")
        sys.stdout.flush()


class _Datagrams(asyncio.DatagramProtocol):
    """Answers each datagram with the line that HTTP would have got."""

    def __init__(self, program: Program, service: Service) -> None:
        self._program, self._service = program, service

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:  # noqa: ARG002 -- the protocol's signature
        _, line = self._program.answer(self._service, "DATAGRAM", "")
        self._transport.sendto(line, addr)


def _parse_head(head: bytes) -> tuple[str, str, str, dict[str, str]]:
    """Split a request's head into method, path, version and headers with lower-case names."""
    first, *rest = head.decode("latin-1").strip("\r\n").split("\r\n")
    match first.split(" "):
        case [method, path, "HTTP/1.0" | "HTTP/1.1" as version] if method and path:
            pass
        case _:
            raise _BadRequestError(400)
    headers = {}
    for line in rest:
        name, colon, value = line.partition(":")
        if not colon:
            raise _BadRequestError(400)
        headers[name.strip().lower()] = value.strip()
    return method, path, version, headers


async def _skip_body(reader: asyncio.StreamReader, headers: Mapping[str, str]) -> None:
    """Read the body away, so that the next request starts where it should."""
    if "chunked" in headers.get("transfer-encoding", "").lower():
        while size := await _chunk_size(reader):
            await _skip(reader, size + 2)
        while (await _line(reader)).strip():
            pass  # trailers
        return
    length = headers.get("content-length", "0")
    if not length.isdecimal():
        raise _BadRequestError(400)
    await _skip(reader, int(length))


async def _chunk_size(reader: asyncio.StreamReader) -> int:
    text = (await _line(reader)).partition(b";")[0].strip()
    try:
        return int(text, 16)
    except ValueError:
        raise _BadRequestError(400) from None


async def _line(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.readuntil(b"\n")
    except asyncio.LimitOverrunError:
        raise _BadRequestError(400) from None


async def _skip(reader: asyncio.StreamReader, count: int) -> None:
    if count < 0:
        raise _BadRequestError(400)
    while count:
        data = await reader.read(min(count, 65536))
        if not data:
            raise ConnectionError
        count -= len(data)


def _reply(status: int, body: bytes, *, head: bool, keep: bool) -> bytes:
    lines = (
        f"HTTP/1.1 {status} {_REASONS[status]}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        f"Connection: {'keep-alive' if keep else 'close'}",
    )
    start = "\r\n".join(lines).encode() + b"\r\n\r\n"
    return start if head else start + body


def main() -> int:
    """Run the program from the environment; return its exit code."""
    try:
        script = read_script(os.environ)
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    try:
        return asyncio.run(Program(script).run())
    except OSError as error:
        sys.stderr.write(f"cannot listen: {error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
