"""The virtual nodes put together: what `gp4u node run` is, from its settings to its last loop.

Beside `serving.py`, which it builds on: a node is a server's market side with a kubelet in front of
it instead of routes. One process is one or several nodes. What any replica does stands here as
well as what only the one that leads may do: the kubelet API is served by all, rentals, statuses and
heartbeats are the leader's, from the moment it holds both the Lease and the ledger.
"""

from __future__ import annotations

import asyncio
import gc
import socket
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from random import Random, SystemRandom
from typing import Final
from urllib.parse import urlsplit

import structlog
import yaml

from gp4u.api.health.operations import MetricsPage
from gp4u.app import App
from gp4u.clock import Clock, SystemClock
from gp4u.desk import asking
from gp4u.errors import BadInput, KubeUnavailable, LedgerLocked, SettingsError
from gp4u.kube import paths
from gp4u.kube.access import Access
from gp4u.kube.client import KubeClient, open_client
from gp4u.kube.events import EventRecorder
from gp4u.kube.leases import LeaderLease
from gp4u.kube.watch import Informer
from gp4u.kubelet.held import Held, Pods
from gp4u.kubelet.live import ConfigMapName, Document, LivePolicies, Read
from gp4u.kubelet.logs.store import LogStore
from gp4u.kubelet.node.decommission import decommission
from gp4u.kubelet.node.node import NodeKeeper
from gp4u.kubelet.node.outlook import MarketOutlook
from gp4u.kubelet.pods.controller import Controller
from gp4u.kubelet.policy import NodePolicy, OnLoss, Taint, Tier
from gp4u.kubelet.probes.tally import ProbeTally
from gp4u.kubelet.server.auth import Open, Reviewer
from gp4u.kubelet.server.certificates import Certificates
from gp4u.kubelet.server.health import tell_health
from gp4u.kubelet.server.server import KubeletServer
from gp4u.kubelet.server.trust import ClientTrust
from gp4u.kubelet.services.publish import Publisher
from gp4u.kubelet.services.relays import Relays
from gp4u.kubelet.status.writer import StatusWriter
from gp4u.metrics import Metrics
from gp4u.model import Demand
from gp4u.providers.contract import Provider
from gp4u.rentals.ledger import open_ledger
from gp4u.serving import Server, open_server
from gp4u.settings import Settings, load_settings

LEADER_LEASE: Final = "gp4u-node"
COMPONENT: Final = "gp4u"
OLD_SELDOM: Final = 100
"""How much rarer than usual old objects are looked through for garbage."""
EVENTS_PER_S: Final = 50.0
"""Of a pace of their own, so that statuses never wait behind them.

Source: kubernetes pkg/kubelet/apis/config/v1beta1/defaults.go (eventRecordQPS), 1.32; checked
2026-11.
"""
LOCKED_PAUSE_S: Final = 1.0
HEARTBEAT_S: Final = 10.0
WEBSOCKETS: Final = "ExtendWebSocketsToKubelet"
"""Source: Kubernetes KEP-4006 and KEP-5328, 1.36; checked 2026-11."""
LIVE_WAIT_S: Final = 5.0
POD_OWNER: Final = "pod:"
HOME_NAMESPACE: Final = "kube-system"
"""Source: the second seed, which asks there for the logs of `virtual-kubelet-vast`."""


def policies_of(settings: Settings, *, address: str) -> dict[str, NodePolicy]:
    """Return the policy of each node by its name, as the settings alone have it.

    Raises:
        BadInput: a default of the settings does not fit.
    """
    node = settings.node
    defaults = asking.demand(asking.Asked(), settings)
    taint = Taint(key=node.taint_key, value=node.taint_value, effect=node.taint_effect)
    wait_s = node.no_offer_after_s
    return {
        each.name: NodePolicy(
            name=each.name,
            address=address,
            port=node.port + place if node.port else 0,
            interruptible=each.is_spot,
            defaults=defaults,
            max_price_usd_per_hour=node.max_price,
            failed_usd_per_hour=node.failed_usd_per_hour,
            taint=taint if node.taint_key else None,
            max_gpus=node.max_gpus,
            max_pods=node.max_pods,
            cpus=node.cpus,
            memory_gib=node.memory_gib,
            accept_cpu=node.accept_cpu,
            allow_split=node.allow_split,
            secret_tier=Tier(node.secret_tier),
            on_loss=OnLoss(node.on_loss),
            no_offer_after=None if wait_s is None else timedelta(seconds=wait_s),
            service_variables=node.service_variables,
            relay_image=node.relay_image,
            kubelet_version=node.version,
        )
        for place, each in enumerate(node.nodes)
    }


def own_address(access_server: str) -> str:
    """Return the address of this machine that faces the API server.

    Raises:
        BadInput: there is none.
    """
    try:
        server = urlsplit(access_server)
        if not server.hostname:
            raise ValueError("no host")
        found = socket.getaddrinfo(server.hostname, server.port or 443, type=socket.SOCK_DGRAM)
        family, kind, proto, _, place = found[0]
        with socket.socket(family, kind, proto) as way:
            way.connect(place)  # no byte leaves: the kernel only chooses the way
            address: str = way.getsockname()[0]
    except (OSError, ValueError) as error:
        bound = "an address at which the API server reaches this machine; none was found"
        raise BadInput("GP4U_NODE_ADDRESS", access_server, bound) from error
    return address


def place_to_listen(listen: str, address: str) -> str:
    """Return where a node listens: everywhere, where that is asked, by its own address's family."""
    everywhere = str(IPv4Address(0))
    return str(IPv6Address(0)) if listen == everywhere and ":" in address else listen


def reading(environ: Mapping[str, str], cwd: Path) -> Read:
    """Return what makes a demand of a document that lies where a `GP4U_CONFIG` file would."""

    def read(document: Document) -> Demand:
        with tempfile.NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8") as file:
            yaml.safe_dump(dict(document), file, allow_unicode=True)
            file.flush()
            where = dict(environ)
            if document:
                where["GP4U_CONFIG"] = file.name
            try:
                settings = load_settings(where, cwd)
            except SettingsError as error:
                raise _refused(str(error), file.name) from error
            if strange := [each for each in settings.unknown if file.name in each]:
                raise _refused("; ".join(strange), file.name)
            return asking.demand(asking.Asked(), settings)

    return read


def _refused(why: str, file: str) -> BadInput:
    return BadInput("data", "the document", why.replace(file, "the ConfigMap"))


class PodsNow:
    """The pods of whoever leads; none while nobody does here. Implements `Pods`."""

    def __init__(self) -> None:
        self.of: Pods | None = None

    def all(self) -> Sequence[Held]:
        """See `Pods`."""
        return () if self.of is None else self.of.all()

    def find(self, namespace: str, name: str, uid: str | None = None) -> Held | None:
        """See `Pods`."""
        return None if self.of is None else self.of.find(namespace, name, uid)


class Standing:
    """What one node that this process is has for parts, as far as others ask how it is."""

    def __init__(
        self,
        *,
        name: str,
        controller: Controller,
        keeper: NodeKeeper,
        informer: Informer,
        writer: StatusWriter,
        publisher: Publisher,
        certificates: Certificates,
        clock: Clock,
    ) -> None:
        self._name, self._controller, self._keeper = name, controller, keeper
        self._informer, self._writer, self._publisher = informer, writer, publisher
        self._certificates, self._clock = certificates, clock

    def troubles(self) -> Mapping[str, str]:
        """Return part to why it does not work; none where all do."""
        told = {
            "controller": self._controller.trouble,
            "watch": self._informer.trouble,
            "status": self._writer.denied,
            "endpoints": self._publisher.trouble,
            **self._keeper.troubles,
        }
        return {part: why for part, why in told.items() if why}

    def show(self, metrics: Metrics) -> None:
        """Set the gauges of the node."""
        now = asyncio.get_running_loop().time()
        beat, until, offered = (
            self._keeper.beat_at,
            self._certificates.until_at,
            self._keeper.offered,
        )
        left = until - self._clock.now() if until is not None else timedelta()
        life = self._certificates.lifetime or timedelta()
        metrics.node(
            self._name,
            pods=self._controller.phases(),
            offered=offered.gpus if offered is not None else 0,
            in_use=self._controller.gpus_in_use,
            waiting=self._controller.lane.waiting,
            heartbeat_s=0.0 if beat is None else now - beat,
            watch_s=self._informer.heard_s,
            certificate_s=left.total_seconds(),
            certificate_life_s=life.total_seconds(),
        )


class Process:
    """One process that is, or stands by to be, some nodes; see the module's docstring."""

    def __init__(
        self,
        settings: Settings,
        *,
        client: KubeClient,
        heartbeat: KubeClient,
        reviews: KubeClient,
        policies: Mapping[str, NodePolicy],
        read: Read,
        namespace: str,
        clock: Clock,
        random: Random,
        told: Callable[[str], None],
    ) -> None:
        """`heartbeat` and `reviews` have connections of their own; `namespace` is where we live."""
        self._settings, self._client, self._heartbeat = settings, client, heartbeat
        self._namespace, self._clock, self._random, self._told = namespace, clock, random, told
        self._denials = tuple(each.denials for each in (client, heartbeat, reviews))
        node = settings.node
        address = next(iter(policies.values())).address
        self._listen = place_to_listen(node.listen, address)
        events = client.beside(writes_per_s=EVENTS_PER_S)
        self._recorders = {
            name: EventRecorder(events, component=COMPONENT, host=name, clock=clock, random=random)
            for name in policies
        }
        self._live = LivePolicies(
            client,
            policies,
            weights=_place(node.weights, namespace),
            preferences=_place(node.preferences, namespace),
            read=read,
            recorder=next(iter(self._recorders.values())),
            random=random,
        )
        self._providers: dict[str, Provider] = {}
        """Open markets, while this process leads; the kubelet API asks them."""
        # One for each: a node that starts drops the logs of pods that it does not know.
        self._logs = {
            name: LogStore(
                self._providers,
                clock=clock,
                directory=None if node.spool is None else node.spool / "logs" / name,
            )
            for name in policies
        }
        self._pods = {name: PodsNow() for name in policies}
        self._tallies = {name: ProbeTally() for name in policies}
        self._page: Callable[[], Awaitable[bytes]] = _empty_page
        self._standing: dict[str, Standing] = {}
        """Of the nodes that this process is now; empty while it stands by."""
        self._certificates: dict[str, Certificates] = {}
        self._servers = {name: self._server(name, reviews) for name in policies}

    def _server(self, name: str, reviews: KubeClient) -> KubeletServer:
        node = self._settings.node
        policy = self._live.policy(name)
        trust = ClientTrust(reviews, file=node.client_ca_file, random=self._random)
        files = None
        if node.tls_cert_file is not None and node.tls_key_file is not None:
            files = (node.tls_cert_file, node.tls_key_file)
        certificates = Certificates(
            reviews,
            node_name=name,
            address=lambda: policy().address,
            trust=trust,
            clock=self._clock,
            random=self._random,
            files=files,
            self_approve=node.self_approve,
            directory=None if node.spool is None else node.spool / "certificates" / name,
        )
        self._certificates[name] = certificates
        gate = (
            Open() if node.auth == "none" else Reviewer(reviews, node_name=name, clock=self._clock)
        )
        return KubeletServer(
            pods=self._pods[name],
            policy=policy,
            providers=self._providers,
            logs=self._logs[name],
            gate=gate,
            trust=trust,
            certificates=certificates,
            clock=self._clock,
            metrics_text=self._metrics_page,
            probes_text=self._tallies[name].text,
            checks={"node": lambda: self._trouble_of(name)},
            allow_loopback=self._settings.allow_loopback,
        )

    async def _metrics_page(self) -> bytes:
        return await self._page()

    def _trouble_of(self, name: str) -> str:
        """Return what is wrong with a node, in words; empty: nothing, or another one leads."""
        standing = self._standing.get(name)
        told = {} if standing is None else standing.troubles()
        told = {**told, **{f"configmap {part}": why for part, why in self._live.refused.items()}}
        if lacks := [right for each in self._denials for right in each.told()]:
            told = {"rights": f"may not {', '.join(lacks)}", **told}  # first: clients cut a reply
        return "; ".join(f"{part}: {why}" for part, why in told.items())

    async def run(self) -> None:
        """Serve, and lead when it is our turn, until cancelled.

        Raises:
            BadInput: a port is taken, or a certificate cannot be used.
            LedgerLocked: another process holds the ledger, and nobody waits for a turn.
        """
        node, listen = self._settings.node, self._listen
        for name, server in self._servers.items():
            server.open(listen, self._live.policy(name)().port)
        async with asyncio.TaskGroup() as group:
            for recorder in self._recorders.values():
                group.create_task(recorder.run())
            for informer in self._live.informers:
                group.create_task(informer.run())
            for name, server in self._servers.items():
                group.create_task(server.run(listen, self._live.policy(name)().port))
            for name, server in self._servers.items():
                await server.started.wait()
                if server.address is not None:
                    self._live.listens(name, server.address[1])
                self._told(f"the kubelet API of {name} is at {server.address}")
            group.create_task(tell_health(listen, node.health_port))
            await self._heard()
            if node.leader_election:
                group.create_task(self._lease().run(self._lead))
            else:
                group.create_task(self._lead())

    async def _heard(self) -> None:
        """Wait a little for the ConfigMaps: a pod should not be rented for by stale weights."""
        with suppress(TimeoutError):
            async with asyncio.timeout(LIVE_WAIT_S):
                for informer in self._live.informers:
                    await informer.synced.wait()

    def _lease(self) -> LeaderLease:
        return LeaderLease(
            self._heartbeat,
            namespace=self._namespace,
            name=LEADER_LEASE,
            identity=f"{socket.gethostname()}_{self._random.getrandbits(48):012x}",
            clock=self._clock,
            random=self._random,
        )

    async def _lead(self) -> None:
        """Open markets and ledger, and be the nodes, until cancelled."""
        while True:
            try:
                async with open_server(
                    self._settings, clock=self._clock, random=self._random
                ) as server:
                    await server.run(lambda: self._act(server))
            except* LedgerLocked:
                if not self._settings.node.leader_election:
                    raise
                structlog.get_logger().warning("ledger_still_held")
            await asyncio.sleep(LOCKED_PAUSE_S)  # whoever led before us has still to let go

    async def _act(self, server: Server) -> None:
        app = server.app
        self._providers.update(app.providers)
        page = MetricsPage(
            clock=app.clock,
            book=app.book,
            ledger=app.ledger,
            guards=app.guards,
            metrics=server.metrics,
            beats=app.beats(),
            budget=app.budget,
        )

        async def shown() -> bytes:
            for standing in self._standing.values():
                standing.show(server.metrics)
            return await page.text()

        self._page = shown
        self._told(f"open markets: {', '.join(app.providers) or 'none'}")
        try:
            async with asyncio.TaskGroup() as group:
                for name in self._pods:
                    group.create_task(self._be(name, app))
        finally:
            self._page = _empty_page
            self._standing.clear()
            for pods in self._pods.values():
                pods.of = None
            self._providers.clear()

    async def _be(self, name: str, app: App) -> None:
        """Be one node."""
        policy, recorder = self._live.policy(name), self._recorders[name]
        publisher = Publisher(
            self._client,
            node_name=name,
            random=self._random,
            recorder=recorder,
            allow_loopback=self._settings.allow_loopback,
        )
        writer = StatusWriter(self._client, random=self._random)
        controller: Controller
        relays = Relays(
            self._client,
            policy=policy,
            pods=lambda: controller,
            wake=lambda uid: controller.wake(uid),
            recorder=recorder,
            random=self._random,
            allow_loopback=self._settings.allow_loopback,
        )
        informer = Informer(
            self._client,
            paths.pods(),
            random=self._random,
            params={"fieldSelector": f"spec.nodeName={name}"},
            on_change=lambda old, new: controller.on_change(old, new),
        )
        controller = Controller(
            broker=app.broker,
            ledger=app.ledger,
            reconciler=app.reconciler,
            providers=app.providers,
            clock=app.clock,
            random=self._random,
            client=self._client,
            informer=informer,
            recorder=recorder,
            publisher=publisher,
            logs=self._logs[name],
            writer=writer,
            policy=policy,
            max_rents=self._settings.node.max_rents,
            tally=self._tallies[name],
            allow_unlabelled=self._settings.allow_unlabelled,
            pod_ip=relays.address,
            allow_loopback=self._settings.allow_loopback,
        )
        outlook = MarketOutlook(
            book=app.book,
            ledger=app.ledger,
            guards=app.guards,
            budget=app.budget,
            policy=policy,
            pods=controller,
            clock=app.clock,
        )
        keeper = NodeKeeper(
            self._client,
            self._heartbeat,
            policy=policy,
            outlook=outlook.tell,
            features=(WEBSOCKETS,) if self._settings.node.websockets else (),
            clock=app.clock,
            random=self._random,
            recorder=recorder,
        )
        self._standing[name] = Standing(
            name=name,
            controller=controller,
            keeper=keeper,
            informer=informer,
            writer=writer,
            publisher=publisher,
            certificates=self._certificates[name],
            clock=app.clock,
        )
        async with asyncio.TaskGroup() as group:
            group.create_task(publisher.run())
            group.create_task(informer.run())
            group.create_task(controller.run())
            group.create_task(outlook.run())
            group.create_task(relays.run())
            await informer.synced.wait()
            self._pods[name].of = controller
            await keeper.register()
            self._told(f"node {name} takes pods")
            await keeper.run()


async def run_nodes(
    settings: Settings,
    *,
    access: Access,
    read: Read,
    told: Callable[[str], None],
    clock: Clock | None = None,
    random: Random | None = None,
) -> None:
    """Be the nodes of the settings until cancelled. Stopping releases nothing.

    `read` validates what live ConfigMaps say; `told` hears in words what a person wants to know.

    Raises:
        BadInput: a setting does not fit, or a Node of that name is somebody else's.
        LedgerLocked: another process holds the ledger, and no leader is elected.
    """
    address = settings.node.address or own_address(access.server)
    policies = policies_of(settings, address=address)
    async with (
        open_client(access, writes_per_s=settings.node.writes_per_s) as client,
        open_client(access, timeout_s=HEARTBEAT_S, writes_per_s=None) as heartbeat,
        open_client(access, timeout_s=HEARTBEAT_S, writes_per_s=None) as reviews,
    ):
        process = Process(
            settings,
            client=client,
            heartbeat=heartbeat,
            reviews=reviews,
            policies=policies,
            read=read,
            namespace=settings.node.namespace or HOME_NAMESPACE,
            clock=clock or SystemClock(),
            random=random or SystemRandom(),
            told=told,
        )
        with _old_things_left_alone():
            await process.run()


@contextmanager
def _old_things_left_alone() -> Iterator[None]:
    """Have garbage be looked for among what is young, and seldom among the rest.

    The objects of a thousand pods take a third of a second to look through, in which nothing else
    happens, and each change of a pod brings the next look nearer. Most garbage dies young.
    """
    thresholds = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(*thresholds[:2], OLD_SELDOM * thresholds[2])
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()


async def decommission_nodes(
    settings: Settings,
    names: Sequence[str],
    *,
    access: Access,
    timeout_s: float,
    told: Callable[[str], None],
) -> None:
    """Take nodes out of their cluster: see `kubelet/node/decommission.py`. Their process goes on.

    Raises:
        BadInput: a node is not ours. KubeError: the API server refused a step.
        KubeUnavailable: it was not done within `timeout_s`; nothing is forced.
    """
    secret = settings.installation_secret
    async with (
        open_client(access) as client,
        open_ledger(
            settings.database_url,
            installation_secret=secret.get_secret_value().encode() if secret else None,
        ) as ledger,
    ):
        for name in names:

            async def still_open(node: str = name) -> int:
                pods = (await client.list(paths.pods())).items
                elsewhere = {
                    f"{POD_OWNER}{pod['metadata']['uid']}"
                    for pod in pods
                    if pod["spec"].get("nodeName") != node
                }
                owners = [r.owner.partition("/")[0] for r in await ledger.open_rentals()]
                return sum(o.startswith(POD_OWNER) and o not in elsewhere for o in owners)

            try:
                async with asyncio.timeout(timeout_s):
                    await decommission(
                        client, name, open_rentals=still_open, tell=told, clock=SystemClock()
                    )
            except TimeoutError:
                why = f"not done within {timeout_s:g} s; the same command goes on"
                raise KubeUnavailable("decommission", name, why) from None


async def _empty_page() -> bytes:
    return b""


def _place(name: str | None, namespace: str) -> ConfigMapName | None:
    """Read NAME or NAMESPACE/NAME."""
    if name is None:
        return None
    where, _, own = name.rpartition("/")
    return where or namespace, own
