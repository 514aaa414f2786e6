"""The gateways of all simulated providers, at one address: status, logs and shell.

Hides the token check and the shell's frames. Which provider is meant follows from the lease in the
path, as each has its own address in the real world. A command runs in what the service runs in;
where that is pretended only a few words are understood.

Source: provider:gateway/rest and its websocket handlers, 2026-06, as restated in
docs/reference/akash.md 6; checked 2026-11.
"""

from __future__ import annotations

import asyncio
import struct
from contextlib import suppress

import msgspec
from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from gp4u.sim.akash.gate import AkashGate
from gp4u.sim.akash.market import AkashMarket, Lease, Placed, main_of
from gp4u.sim.akash.rows import told_status
from gp4u.sim.akash.token import TokenError, opened
from gp4u.sim.faults import Faults, Kind, Strike
from gp4u.sim.gate import Call
from gp4u.sim.launch import ERR, Inside, LaunchFailed, Running

STDOUT, STDERR, RESULT, FAILURE, STDIN, RESIZE = 100, 101, 102, 103, 104, 105
LEASE_NOT_FOUND = 4001
_LEASE = "/lease/{dseq}/{gseq:int}/{oseq:int}"
_POLL_S = 0.5
_TAIL = 100


class _RefusedError(Exception):
    def __init__(self, response: Response) -> None:
        self.response = response
        super().__init__(response.status_code)


class Gateways:
    """The gateways' handlers."""

    def __init__(self, market: AkashMarket, faults: Faults, secret: bytes) -> None:
        self._market, self._faults, self._secret = market, faults, secret

    def routes(self, gate: AkashGate) -> list[BaseRoute]:
        """Return every path."""
        answer = gate.wrap("gateway", self._public, public=True)
        status = gate.wrap("gateway", self._status, public=True)
        return [
            *(Route(path, answer, methods=["GET"]) for path in ("/status", "/version", "/address")),
            Route(f"{_LEASE}/status", status, methods=["GET"]),
            WebSocketRoute(f"{_LEASE}/logs", self._logs),
            WebSocketRoute(f"{_LEASE}/shell", self._shell),
        ]

    async def _public(self, call: Call) -> Response:
        told = {"akash": {"version": "2.1.0"}, "cluster": {"leases": 0}}
        return JSONResponse({"address": "akash1"} if "address" in call.request.url.path else told)

    async def _status(self, call: Call) -> Response:
        try:
            placed, lease = self._admit(call.request, "status")
        except _RefusedError as refused:
            return refused.response
        return JSONResponse(told_status(self._market.world, self._market, placed, lease))

    def _admit(self, connection: HTTPConnection, scope: str) -> tuple[Placed, Lease]:
        """Return the lease that the path names, if the token opens it.

        Raises:
            _RefusedError: as the gateway answers.
        """
        params = connection.path_params
        deployment = self._market.deployments.get(params["dseq"])
        placed = next(
            (p for p in deployment.placed if p.gseq == params["gseq"]) if deployment else iter(()),
            None,
        )
        provider = placed.lease.bid.host.owner if placed and placed.lease else ""
        scheme, _, token = connection.headers.get("authorization", "").partition(" ")
        world = self._market.world
        try:
            if scheme.lower() != "bearer":
                raise TokenError("no token")
            at = world.epoch(world.now_s)
            opened(self._secret, token, at=at, provider=provider, scope=scope)
        except TokenError as error:
            raise _RefusedError(JSONResponse({"message": str(error)}, 401)) from error
        except PermissionError:
            raise _RefusedError(JSONResponse({"message": "not allowed"}, 403)) from None
        if placed is None or placed.lease is None or not placed.lease.live:
            raise _RefusedError(PlainTextResponse("no such lease", 404))
        if provider in self._market.unreachable:
            raise _RefusedError(PlainTextResponse("unavailable", 503))
        return placed, placed.lease

    async def _enter(
        self, socket: WebSocket, endpoint: str, scope: str
    ) -> tuple[Placed, Lease, Strike] | None:
        """Let a WebSocket in, or decline it; None: it was declined."""
        strike = self._faults.strike(endpoint, at=self._market.world.age_s)
        if (slow := strike.get(Kind.LATENCY)) is not None:
            await asyncio.sleep(slow.seconds or 1.0)
        if strike.get(Kind.REFUSE) is not None or strike.get(Kind.RESET_BEFORE) is not None:
            await socket.close()
            return None
        await self._market.world.advance()
        await self._market.step()
        try:
            if (rule := strike.get(Kind.STATUS)) is not None:
                headers = {"location": "https://127.0.0.1/"} if rule.status == 302 else {}
                raise _RefusedError(PlainTextResponse("trouble", rule.status or 503, headers))
            placed, lease = self._admit(socket, scope)
        except _RefusedError as refused:
            await socket.send_denial_response(refused.response)
            return None
        return placed, lease, strike

    async def _logs(self, socket: WebSocket) -> None:
        entered = await self._enter(socket, "logs", "logs")
        if entered is None:
            return
        placed, lease, strike = entered
        await socket.accept()
        params = socket.query_params
        wanted = params.get("service") or None
        tail = int(params["tail"]) if params.get("tail", "").isdecimal() else _TAIL
        follow = params.get("follow") == "true"
        sent: dict[str, int] = {}
        with suppress(WebSocketDisconnect):
            while True:
                for name, text in (await self._texts(placed, lease, wanted)).items():
                    lines = text.splitlines()
                    begin = sent.get(name, max(0, len(lines) - tail))
                    for line in lines[begin:]:
                        pod = f"{name}-7d9c5b8f6d-{lease.contract.id % 10**5:05d}"
                        told = {"name": pod, "message": line}
                        await socket.send_text(msgspec.json.encode(told).decode())
                        if strike.get(Kind.CUT_BODY) is not None:
                            await socket.close(LEASE_NOT_FOUND - 1)
                            return
                    sent[name] = len(lines)
                if not follow:
                    break
                await asyncio.sleep(_POLL_S)
                if not lease.live:
                    await socket.close(LEASE_NOT_FOUND, "lease closed")
                    return
            await socket.close()

    async def _texts(self, placed: Placed, lease: Lease, wanted: str | None) -> dict[str, str]:
        """Return what each service of a lease, or the one that is wanted, has printed."""
        texts = {}
        for service in placed.group.services:
            if wanted not in (None, service.name):
                continue
            running = self._running(placed, lease, service.name)
            if running is not None:
                texts[service.name] = await running.logs(10_000)
            elif service is main_of(placed.group):
                texts[service.name] = lease.contract.logs_kept
        return texts

    async def _shell(self, socket: WebSocket) -> None:
        entered = await self._enter(socket, "shell", "shell")
        if entered is None:
            return
        placed, lease, strike = entered
        params = socket.query_params
        missing = {"cmd0", "service", "podIndex", "tty", "stdin"} - set(params)
        if missing:
            text = f"missing parameters: {', '.join(sorted(missing))}"
            await socket.send_denial_response(PlainTextResponse(text, 400))
            return
        await socket.accept()
        argv: list[str] = []
        while f"cmd{len(argv)}" in params:
            argv.append(params[f"cmd{len(argv)}"])
        with suppress(WebSocketDisconnect):
            known = {service.name for service in placed.group.services}
            if params["service"] not in known or not lease.contract.up:
                failure = "no such service exists with that name"
                await socket.send_bytes(bytes([FAILURE]) + failure.encode())
            elif strike.get(Kind.CUT_BODY) is not None:
                await socket.send_bytes(bytes([STDOUT]) + b"half of ")
                await socket.close()
                return
            else:
                running = self._running(placed, lease, params["service"])
                await _run(socket, running, argv, tty=params["tty"] == "1")
            await socket.close()

    def _running(self, placed: Placed, lease: Lease, service: str) -> Running | None:
        """Return what runs for a service of a lease."""
        if service == main_of(placed.group).name:
            return lease.contract.running
        return lease.beside.get(service)


async def _run(socket: WebSocket, running: Running | None, argv: list[str], *, tty: bool) -> None:
    """Run a command in a service, and pass everything on."""
    try:
        if running is None:
            raise LaunchFailed("the service does not run")
        inside = await running.enter(argv, tty=tty)
    except LaunchFailed as failed:
        await socket.send_bytes(bytes([FAILURE]) + str(failed).encode())
        return

    async def out(which: int, data: bytes) -> None:
        with suppress(WebSocketDisconnect, OSError, RuntimeError):  # who asked has left
            await socket.send_bytes(bytes([STDERR if which == ERR else STDOUT]) + data)

    async with asyncio.TaskGroup() as tasks:
        feeding = tasks.create_task(_feed(socket, inside))
        code = await inside.run(out)
        feeding.cancel()
    await _told(socket, code)


async def _told(socket: WebSocket, code: int) -> None:
    """Send the result of a command."""
    result = msgspec.json.encode({"exit_code": code})
    await socket.send_bytes(bytes([RESULT]) + result)


async def _feed(socket: WebSocket, inside: Inside) -> None:
    """Pass on what is typed, and sizes; when the other side is gone the command goes as well."""
    with suppress(WebSocketDisconnect, ConnectionError):
        while True:
            message = await socket.receive_bytes()
            if message[:1] == bytes([STDIN]):
                await inside.write(message[1:])
            elif message[:1] == bytes([RESIZE]) and len(message) == 5:
                await inside.resize(*struct.unpack(">HH", message[1:]))
    await inside.end()
