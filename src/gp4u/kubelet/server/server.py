"""The kubelet API: what the API server, metrics-server and kubectl ask of a node, on one TLS port.

Each request is read once (`routes.py`), its caller found and reviewed (`auth.py`), and answered
from what the node holds at this moment. Nobody gets past the review: neither a scrape nor a request
to take the connection over. How streams are spoken is in `streams/`, how a log is made in
`logs/store.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

import msgspec
import structlog

from gp4u.clock import Clock
from gp4u.errors import Gp4uError, KubeError
from gp4u.kubelet.held import ContainerState, Held, Pods, Run
from gp4u.kubelet.logs.store import LogStore
from gp4u.kubelet.policy import NodePolicy
from gp4u.kubelet.server import routes
from gp4u.kubelet.server.auth import Caller, Gate, Open, allowed
from gp4u.kubelet.server.certificates import Certificates
from gp4u.kubelet.server.http import Limits, Reply, Request, Takeover, told
from gp4u.kubelet.server.listener import Listener
from gp4u.kubelet.server.logs import Logs
from gp4u.kubelet.server.routes import Route, What
from gp4u.kubelet.server.sampling import Sampler
from gp4u.kubelet.server.stats import Usage, own_usage, resource_text, summary
from gp4u.kubelet.server.trust import ClientTrust
from gp4u.kubelet.server.ways_in import Watching, WaysIn, state_of, waits
from gp4u.kubelet.streams.closing import close
from gp4u.kubelet.streams.port_forward import serve_port_forward
from gp4u.kubelet.streams.remote_command import serve_attach, serve_exec
from gp4u.kubelet.streams.upgrade import Upgrade
from gp4u.providers.contract import Provider
from gp4u.providers.session import Link, Session

JSON: Final = "application/json"
METRICS_TEXT: Final = "text/plain; version=0.0.4; charset=utf-8"
RUN_BYTES: Final = 1024 * 1024
RUN_S: Final = 60.0
TRUST_S: Final = 10.0
_PODS_AT_ONCE: Final = 50
_encode = msgspec.json.Encoder().encode


class KubeletServer:
    """One node's port; see the module's docstring."""

    def __init__(
        self,
        *,
        pods: Pods,
        policy: Callable[[], NodePolicy],
        providers: Mapping[str, Provider],
        logs: LogStore,
        gate: Gate,
        trust: ClientTrust,
        certificates: Certificates,
        clock: Clock,
        metrics_text: Callable[[], Awaitable[bytes]],
        probes_text: Callable[[], bytes] = bytes,
        checks: Mapping[str, Callable[[], str]] | None = None,
        allow_loopback: bool = False,
        limits: Limits | None = None,
    ) -> None:
        """`checks` say "" or what is wrong; together they are `/healthz`."""
        self._pods, self._policy, self._clock = pods, policy, clock
        self._gate, self._trust, self._certificates = gate, trust, certificates
        self._metrics_text, self._probes_text = metrics_text, probes_text
        always: dict[str, Callable[[], str]] = {"ping": str, "log": str, "syncloop": str}
        self._checks = {**always, **(checks or {})}
        self._logs = Logs(logs, clock=clock)
        self._ways = WaysIn(providers, allow_loopback=allow_loopback)
        self._sampler = Sampler(pods, self._ways, clock=clock)
        self._listener = Listener(self._handle, context=certificates.context, limits=limits)
        self._started_at = clock.now()
        self._used: Usage | None = None
        trust.on_change = self._listener.drop_idle

    @property
    def started(self) -> asyncio.Event:
        """Set once the port is open: only then may the node be registered."""
        return self._listener.started

    @property
    def address(self) -> tuple[str, int] | None:
        """Where it listens, once it does."""
        return self._listener.address

    def open(self, host: str, port: int) -> None:
        """Take the port, and have a certificate; before `run`, for a start that fails in words.

        Raises:
            BadInput: the port cannot be had, or the certificate files that are named.
        """
        self._certificates.begin()
        self._listener.open(host, port)

    async def run(self, host: str, port: int) -> None:
        """Serve until cancelled; opens the port where nobody has.

        Raises:
            BadInput: see `open`.
        """
        if self.address is None:
            self.open(host, port)
        with suppress(TimeoutError):
            async with asyncio.timeout(TRUST_S):
                await self._trust.read()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._trust.run())
            group.create_task(self._certificates.run())
            group.create_task(self._sampler.run())
            group.create_task(self._listener.run())

    # --- who, and what ---

    async def _handle(self, request: Request) -> Reply | Takeover:
        caller = await self._caller(request)
        if caller is None:
            return Reply(status=401, body=b"Unauthorized", headers=[("WWW-Authenticate", "Bearer")])
        route = routes.read(request.path)
        known = route is not None and request.method in route.methods
        # What is no path of ours is not told to somebody who may do nothing here.
        verb = routes.VERBS.get(request.method, "get")
        verbs = route.verbs(request.method) if route is not None and known else (verb,)
        wanted = route.subresources if route is not None else ("proxy",)
        try:
            if not await allowed(self._gate, caller, verbs, wanted):
                which = f"verb={'+'.join(verbs)}, resource=nodes, subresource={'|'.join(wanted)}"
                return told(403, f"Forbidden (user={caller.name}, {which})")
        except KubeError as error:
            structlog.get_logger().warning("kubelet_review_failed", error=str(error))
            return told(500, "Internal Server Error: the authorizer could not be asked")
        if route is None:
            return told(404, "404 page not found")
        if not known:
            return told(405, f"Method Not Allowed: use {' or '.join(route.methods)}")
        if route.what in routes.INTO:
            about = {"what": route.what.value, "pod": f"{route.namespace}/{route.pod}"}
            structlog.get_logger().info("kubelet_entered", user=caller.name, **about)
        return await self._answer(route, request)

    async def _caller(self, request: Request) -> Caller | None:
        try:
            return await self._gate.who(request.certificate, request.header("authorization"))
        except KubeError as error:
            structlog.get_logger().warning("kubelet_caller_unknown", error=str(error))
            return None

    async def _answer(self, route: Route, request: Request) -> Reply | Takeover:
        match route.what:
            case What.LOGS | What.EXEC | What.ATTACH | What.RUN | What.PORT_FORWARD:
                return await self._of_pod(route, request)
            case What.PODS:
                return Reply(
                    body=_listed([held.pod for held in self._pods.all()]), content_type=JSON
                )
            case What.RUNNING_PODS:
                running = [_running_pod(held) for held in self._pods.all() if not held.leaving]
                return Reply(body=_listed([each for each in running if each]), content_type=JSON)
            case What.SUMMARY:
                return self._summary(request)
            case What.METRICS:
                return Reply(body=await self._metrics_text(), content_type=METRICS_TEXT)
            case What.RESOURCE | What.CADVISOR:
                text = resource_text(self._usage(), self._pods.all(), self._sampler.samples())
                return Reply(body=text, content_type=METRICS_TEXT)
            case What.PROBES:
                return Reply(body=self._probes_text(), content_type=METRICS_TEXT)
            case What.HEALTH:
                return self._health(route.rest, verbose="verbose" in request.query)
            case What.CONFIG:
                return Reply(body=_encode({"kubeletconfig": self._config()}), content_type=JSON)
            case What.NODE_LOGS:
                return told(403, "the node has no log files: its log is that of its own pod")

    # --- one pod ---

    async def _of_pod(self, route: Route, request: Request) -> Reply | Takeover:
        held = self._pods.find(route.namespace, route.pod, route.uid)
        if held is None:
            return told(404, f'pod "{route.pod}" does not exist')
        if route.what is What.PORT_FORWARD:
            return self._port_forward(held)
        state = state_of(held, route.container)
        if state is None:
            return told(404, f'container "{route.container}" not found in pod "{route.pod}"')
        find = self._finder(held)
        if route.what is What.LOGS:
            return await self._logs.reply(held, state, request.query, find)
        if state.run is not Run.RUNNING:
            return told(400, waits(held, state))
        if route.what is What.ATTACH:
            return self._attach(held, state, find)
        problem = self._ways.problem_of_exec(held, state.name)
        if problem:
            return told(501, problem)
        if route.what is What.RUN:
            return await self._run(held, state, request)

        async def start(command: tuple[str, ...], tty: bool) -> Session:
            return await self._ways.command(held, state.name, command, tty=tty)

        async def serve(upgrade: Upgrade) -> None:
            await serve_exec(upgrade, start)

        return Takeover(serve)

    def _attach(
        self, held: Held, state: ContainerState, find: Callable[[], Held | None]
    ) -> Takeover:
        async def watch(tty: bool) -> Session:
            del tty
            return Watching(self._logs.printed(state, held, find))

        async def serve(upgrade: Upgrade) -> None:
            await serve_attach(upgrade, watch)

        return Takeover(serve)

    def _port_forward(self, held: Held) -> Reply | Takeover:
        if not any(rental.instance_id for rental in held.rentals.values()):
            return told(400, f'pod "{held.name}" has no machine: it does not run')

        async def connect(port: int) -> Link:
            return await self._ways.port(self._pods.find(*_named(held)) or held, port)

        async def serve(upgrade: Upgrade) -> None:
            await serve_port_forward(upgrade, connect)

        return Takeover(serve)

    async def _run(self, held: Held, state: ContainerState, request: Request) -> Reply:
        """Run a command to its end and return what it wrote: `exec` from before it streamed."""
        command = tuple((request.first("cmd") or "").split())
        if not command:
            return told(400, "cmd: you must specify a command")
        output = b""
        try:
            async with asyncio.timeout(RUN_S):
                session = await self._ways.command(held, state.name, command, tty=False)
                try:
                    await session.end_input()
                    async for _, data in session.output():
                        output = (output + data)[:RUN_BYTES]
                finally:
                    await close(session)
        except TimeoutError:
            return told(504, f"it did not end within {RUN_S:g} s")
        except (Gp4uError, OSError) as error:
            return told(500, str(error))
        return Reply(body=output)

    def _finder(self, held: Held) -> Callable[[], Held | None]:
        where = _named(held)
        return lambda: self._pods.find(*where)

    # --- the node ---

    def _usage(self) -> Usage:
        return own_usage(self._clock.now())

    def _summary(self, request: Request) -> Reply:
        own, before = self._usage(), self._used
        body = summary(
            node_name=self._policy().name,
            started_at=self._started_at,
            own=own,
            before=before,
            pods=self._pods.all(),
            samples=self._sampler.samples(),
            only_cpu_and_memory=request.first("only_cpu_and_memory") == "true",
        )
        self._used = own
        return Reply(body=_encode(body), content_type=JSON)

    def _health(self, name: str, *, verbose: bool) -> Reply:
        if name and name not in self._checks:
            return told(404, "404 page not found")
        asked = {name: self._checks[name]} if name else self._checks
        problems = {each: check() for each, check in asked.items()}
        is_well = not any(problems.values())
        if is_well and not verbose:
            return Reply(body=b"ok")
        lines = [f"[-]{n} failed: {why}" if why else f"[+]{n} ok" for n, why in problems.items()]
        text = "\n".join([*lines, f"healthz check {'passed' if is_well else 'failed'}"])
        return told(200 if is_well else 500, text)

    def _config(self) -> dict[str, Any]:
        """Return what of a kubelet's settings means something here, as it is in force."""
        policy, is_open = self._policy(), isinstance(self._gate, Open)
        return {
            "kind": "KubeletConfiguration",
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "port": policy.port,
            "maxPods": policy.max_pods,
            "registerNode": True,
            "nodeStatusUpdateFrequency": "10s",
            "nodeStatusReportFrequency": "5m0s",
            "nodeLeaseDurationSeconds": 40,
            "streamingConnectionIdleTimeout": "4h0m0s",
            "authentication": {
                "anonymous": {"enabled": is_open},
                "webhook": {"enabled": not is_open, "cacheTTL": "2m0s"},
            },
            "authorization": {
                "mode": "AlwaysAllow" if is_open else "Webhook",
                "webhook": {"cacheAuthorizedTTL": "5m0s", "cacheUnauthorizedTTL": "30s"},
            },
        }


def _named(held: Held) -> tuple[str, str, str]:
    return held.namespace, held.name, held.uid


def _running_pod(held: Held) -> dict[str, Any] | None:
    names = {each.name: each for each in held.containers if each.run is Run.RUNNING}
    if not names:
        return None
    containers = [{"name": n, "image": each.image, "resources": {}} for n, each in names.items()]
    about = {"name": held.name, "namespace": held.namespace, "uid": held.uid}
    return {"metadata": about, "spec": {"containers": containers}, "status": {}}


async def _listed(items: Sequence[Mapping[str, Any]]) -> AsyncIterator[bytes]:
    """Yield a v1.PodList bit by bit: a large one must not hold up the heartbeat."""
    yield b'{"kind":"PodList","apiVersion":"v1","metadata":{},"items":['
    for start in range(0, len(items), _PODS_AT_ONCE):
        some = _encode(items[start : start + _PODS_AT_ONCE])
        yield (b"," if start else b"") + some[1:-1]
        await asyncio.sleep(0)
    yield b"]}\n"
