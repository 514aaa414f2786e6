"""A small world for the virtual node: an API server, a market, and processes that come and go.

`Cluster` outlives its nodes, as a real one does. `Node` is one life of the process: everything that
`gp4u` is, by its composition root, and the controller with all that it works with, on a ledger file
that outlives it too. Everything runs on the virtual loop.

Programs in rented machines do what a test says: `Programs.end` ends one with an exit code.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from random import Random
from types import MappingProxyType
from typing import Any

import httpx
from msgspec.structs import replace

from gp4u.kube import paths
from gp4u.kube.client import open_client
from gp4u.kube.events import EventRecorder
from gp4u.kube.watch import Informer
from gp4u.kubelet.logs.store import LogStore
from gp4u.kubelet.pods.controller import Controller
from gp4u.kubelet.policy import NodePolicy
from gp4u.kubelet.services.publish import Publisher
from gp4u.kubelet.status.writer import StatusWriter
from gp4u.model import Demand, Requirements
from gp4u.rentals.rental import Rental
from gp4u.sim.contracts import Contract
from gp4u.sim.faults import Faults, Rule
from gp4u.sim.launch import Launch, Running
from gp4u.sim.runtime import pretend
from gp4u.sim.vastai.app import vast_app
from gp4u.sim.vastai.gate import VastSettings
from gp4u.sim.world import World
from tests import simulated
from tests.kube_api import KubeApi
from tests.patient import Killed
from tests.simulated import API_KEY, BASE_URL, Behind, Client, client_of
from tests.virtual_loop import EPOCH, VirtualClock, run_virtual

NODE = "vast-gpu-node-1"
POLICY = NodePolicy(
    name=NODE,
    address="10.0.0.5",
    defaults=Demand(requirements=Requirements(gpu_models=("RTX 3090",), disk_gib=16)),
    max_gpus=4096,
)
PUBLIC_IP = "203.0.113.45"


class Program:
    """What runs in one machine: it goes on until it is told to end."""

    def __init__(self, inner: Running, launch: Launch) -> None:
        self._inner, self.launch = inner, launch
        self.code: int | None = None
        self.lines: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def logs(self, tail: int) -> str:
        """Return what it printed, and whatever a pretended program says."""
        return await self._inner.logs(tail) + "".join(f"{line}\n" for line in self.lines[-tail:])

    def exited(self) -> int | None:
        """Return its exit code once it has one."""
        return self.code


class Programs:
    """A runtime of programs that end when a test says so."""

    name = "pretend"

    def __init__(self, random: Random) -> None:
        self._inner, self.address = pretend(random, PUBLIC_IP), PUBLIC_IP
        self.running: dict[str, Program] = {}
        """By instance."""
        self.code: int | None = None
        """What every program ends with at once; None: it goes on."""

    async def start(self, launch: Launch) -> Running:
        """Start one."""
        program = Program(await self._inner.start(launch), launch)
        program.code = self.code
        self.running[launch.instance_id] = program
        return program

    async def aclose(self) -> None:
        """Nothing really runs."""


class Market(simulated.Market):
    """A Vast.ai whose programs can end."""

    def __init__(
        self,
        seed: int = 1,
        *,
        rules: Iterable[Rule] = (),
        faults: Faults | None = None,
        boot_s: tuple[float, float] = (5.0, 20.0),
        offers: int = 60,
        dead_start_ratio: float = 0.0,
    ) -> None:
        loop = asyncio.get_running_loop()
        self.programs = Programs(Random(seed))
        world = World(
            loop.time,
            Random(seed),
            runtime=self.programs,
            offers=offers,
            boot_s=boot_s,
            epoch_s=EPOCH.timestamp() + loop.time(),
            dead_start_ratio=dead_start_ratio,
        )
        faults = faults or Faults(rules, Random(seed))
        settings = VastSettings(api_key=API_KEY, list_lag_s=(0.0, 3.0))
        Behind.__init__(self, world, faults, vast_app(world, faults, settings))

    def end(self, contract: Contract, code: int) -> None:
        """Have what runs in a machine end."""
        self.programs.running[str(contract.id)].code = code


class _Line(httpx.AsyncBaseTransport):
    """One process's connections to the API server: they end with it."""

    def __init__(self, inner: httpx.AsyncBaseTransport) -> None:
        self._inner = inner
        self.alive = True

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if not self.alive:
            await asyncio.get_running_loop().create_future()
        reply = await self._inner.handle_async_request(request)
        if not self.alive:
            await asyncio.get_running_loop().create_future()
        return reply


class Node:
    """One life of the process."""

    def __init__(
        self, one: Client, controller: Controller, informer: Informer, recorder: EventRecorder
    ) -> None:
        self.client, self.app, self.controller = one, one.app, controller
        self.informer, self.recorder = informer, recorder
        self.parts: list[Callable[[], Awaitable[None]]] = []
        self.line: _Line | None = None
        self._life: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin."""
        self._life = asyncio.get_running_loop().create_task(self._live())

    async def stop(self) -> None:
        """End as by SIGTERM: everything is cancelled, nothing is released."""
        if self._life is not None:
            self._life.cancel()
            with suppress(asyncio.CancelledError):
                await self._life
            self._life = None

    async def kill(self) -> None:
        """End as by SIGKILL: nothing that is under way has any effect any more."""
        self.client.kill()
        if self.line is not None:
            self.line.alive = False
        if self._life is not None:
            self._life.cancel()
            with suppress(asyncio.CancelledError, Killed, BaseExceptionGroup):
                await self._life
            self._life = None

    @property
    def is_alive(self) -> bool:
        """Whether it has not fallen over; raises what it fell over."""
        if self._life is None or not self._life.done():
            return self._life is not None
        self._life.result()
        return False

    async def rentals(self) -> list[Rental]:
        """Return all rentals there ever were, oldest first."""
        return await self.app.ledger.every_rental()

    async def _live(self) -> None:
        await self.app.run(*self.parts)


class Cluster:
    """The world; see the module's docstring."""

    def __init__(self, folder: Path, market: Market) -> None:
        self.api, self.market, self.ledger = KubeApi(), market, folder / "ledger.db"
        self.policy = POLICY
        self._lives = 0

    @asynccontextmanager
    async def node(self, *, seed: int = 1, **environ: str) -> AsyncIterator[Node]:
        """Start a process, and stop it at the end of the block."""
        self._lives += 1
        ours = {
            "VASTAI_BASE_URL": BASE_URL,
            "VASTAI_API_KEY": API_KEY,
            "VASTAI_BILL_LAG_S": "0",
            "VASTAI_SETTLE_S": "5",
            "VASTAI_LATE_WINDOW_S": "60",
            **environ,
        }
        async with AsyncExitStack() as stack:
            one = await stack.enter_async_context(
                client_of(self.market, ours, self.ledger, seed=seed)
            )
            line = _Line(self.api.transport())
            client = await stack.enter_async_context(open_client(transport=line, writes_per_s=None))
            random, clock, app = Random(seed), VirtualClock(), one.app
            made: list[Controller] = []
            informer = Informer(
                client,
                paths.pods(),
                random=random,
                params={"fieldSelector": f"spec.nodeName={NODE}"},
                on_change=lambda old, new: made[0].on_change(old, new),
            )
            recorder = EventRecorder(
                client, component="gp4u", host=NODE, clock=clock, random=random
            )
            publisher = Publisher(
                client, node_name=NODE, random=random, recorder=recorder, allow_loopback=True
            )
            controller = Controller(
                broker=app.broker,
                ledger=app.ledger,
                reconciler=app.reconciler,
                providers=app.providers,
                clock=clock,
                random=random,
                client=client,
                informer=informer,
                recorder=recorder,
                publisher=publisher,
                logs=LogStore(app.providers, clock=clock),
                writer=StatusWriter(client, random=random),
                policy=lambda: self.policy,
                allow_loopback=True,
            )
            made.append(controller)
            node = Node(one, controller, informer, recorder)
            node.line = line
            node.parts = [informer.run, recorder.run, publisher.run, controller.run]
            node.start()
            try:
                yield node
            finally:
                await node.stop()

    def create(self, name: str, **more: Any) -> dict[str, Any]:
        """Create a pod that is bound to the node; see `gpu_pod`."""
        return self.api.add(gpu_pod(name, **more))

    def pod(self, name: str, namespace: str = "default") -> dict[str, Any] | None:
        """Return a pod as it is now."""
        return self.api.find(paths.pod(namespace, name))

    def status(self, name: str) -> Mapping[str, Any]:
        """Return a pod's status."""
        pod = self.pod(name)
        return pod["status"] if pod is not None else {}

    def state(self, name: str) -> Mapping[str, Any]:
        """Return the state of a pod's first container."""
        entries = self.status(name).get("containerStatuses") or [{}]
        found: Mapping[str, Any] = entries[0].get("state", {})
        return found

    def reasons(self, name: str) -> list[str]:
        """Return the reasons of the Events about a pod, oldest first."""
        return [
            event["reason"]
            for event in self.api.all("events")
            if event["involvedObject"]["name"] == name
        ]

    def messages(self, name: str, reason: str) -> list[str]:
        """Return the messages of the Events about a pod with that reason."""
        return [
            event["message"]
            for event in self.api.all("events")
            if event["involvedObject"]["name"] == name and event["reason"] == reason
        ]

    def delete(self, name: str, *, grace_s: int | None = None) -> None:
        """Delete a pod, as a user does."""
        self.api.remove(paths.pod("default", name), grace_s=grace_s)

    async def until(self, *phases: str, name: str = "a", within_s: float = 300.0) -> None:
        """Wait until a pod is in one of these phases; `gone` is one of them."""

        def there() -> bool:
            pod = self.pod(name)
            return ("gone" if pod is None else pod["status"].get("phase")) in phases

        await self.until_true(there, within_s=within_s)

    async def until_ready(self, *names: str, within_s: float = 300.0) -> None:
        """Wait until pods are Ready."""
        await self.until_true(lambda: all(map(self.is_ready, names)), within_s=within_s)

    async def until_true(self, there: Callable[[], bool], *, within_s: float = 300.0) -> None:
        """Wait until something is so.

        Raises:
            AssertionError: it is not so in time.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + within_s
        while not there():
            assert loop.time() < until, [
                (pod["metadata"]["name"], pod["status"]) for pod in self.api.all("pods")
            ]
            await asyncio.sleep(0.25)

    def is_ready(self, name: str) -> bool:
        """Whether a pod is Ready."""
        return any(
            each["type"] == "Ready" and each["status"] == "True"
            for each in self.status(name).get("conditions", ())
        )

    async def until_nothing_costs(self, *, within_s: float = 300.0) -> None:
        """Wait until no machine costs anything any more."""
        await self.until_true(lambda: not self.market.live, within_s=within_s)


def gpu_pod(
    name: str,
    *,
    restart: str = "Always",
    annotations: Mapping[str, str] = MappingProxyType({}),
    owner: Mapping[str, Any] | None = None,
    containers: Sequence[Mapping[str, Any]] = (),
    namespace: str = "default",
    **spec: Any,
) -> dict[str, Any]:
    """Return a pod with one GPU; `containers` are merged into the one it has by default."""
    main = {
        "name": "main",
        "image": "busybox",
        "resources": {"limits": {"nvidia.com/gpu": "1"}},
        "ports": [{"containerPort": 8000}],
        "imagePullPolicy": "IfNotPresent",
    }
    metadata: dict[str, Any] = {
        "name": name,
        "namespace": namespace,
        "annotations": {"gp4u.io/exec": "false", **annotations},
    }
    if owner is not None:
        metadata["ownerReferences"] = [owner]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": {
            "nodeName": NODE,
            "restartPolicy": restart,
            "terminationGracePeriodSeconds": 30,
            "containers": [{**main, **each} for each in containers] or [main],
            **spec,
        },
        "status": {"phase": "Pending"},
    }


Tale = Callable[[Cluster], Awaitable[None]]


def told(tale: Tale, folder: Path, *, seed: int = 3, **market: Any) -> None:
    """Tell a story of a cluster under virtual time."""

    async def life() -> None:
        await tale(Cluster(folder, Market(seed, **market)))

    run_virtual(life, seed=seed)


def by(kind: str, uid: str = "11111111-1111-4111-8111-111111111111") -> dict[str, Any]:
    """Return the reference of a pod to what made it."""
    return {
        "apiVersion": "apps/v1",
        "kind": kind,
        "name": "maker",
        "uid": uid,
        "controller": True,
    }


def with_policy(cluster: Cluster, **changes: Any) -> None:
    """Change what the operator allows."""
    cluster.policy = replace(cluster.policy, **changes)
