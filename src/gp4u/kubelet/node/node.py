"""Keeps the Node object true and its Lease fresh: to the cluster, this is the machine.

Hides registration, the heartbeat, and how seldom a status has to be written. What the object says
is in `node_object.py`, how many GPUs it offers in `capacity.py`; whether pods can be served is
left to others, who call `register` once they can.

The heartbeat has a task and a client of its own and waits for nobody: a lease that is late by
40 s makes every pod of the node unready, and after five more minutes the cluster deletes them all,
which costs rented machines. A market that is down never makes the node NotReady, for the same
reason: it gets a condition and a taint, and pods that run go on.

Source: kubernetes pkg/kubelet/kubelet_node_status.go (10 s looks, 5 min reports, registration from
100 ms to 7 s) and component-helpers apimachinery/lease/controller.go (40 s lease, renewed every
10 s, 5 tries), 1.36; checked 2026-11.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from random import Random
from typing import Any, Final

import structlog
from msgspec import Struct

from gp4u.clock import Clock
from gp4u.errors import KubeAbsent, KubeConflict, KubeDenied, KubeError, KubeExists, KubeInvalid
from gp4u.kube import paths
from gp4u.kube.client import KubeClient, KubeObject
from gp4u.kube.events import EventKind, EventRecorder
from gp4u.kube.watch import Informer
from gp4u.kubelet.node import node_object
from gp4u.kubelet.node.capacity import Offered, Room, offered, shortage
from gp4u.kubelet.node.node_object import Face
from gp4u.kubelet.policy import NodePolicy

LOOK_S: Final = 10.0
BLIND_LOOK_S: Final = 1.0
"""Between two looks until the market was seen: a new node offers nothing before that."""
REPORT_S: Final = 300.0
"""Between two reports of a status that has not changed."""
LEASES_IN: Final = "kube-node-lease"
LEASE_S: Final = 40
RENEW_S: Final = 10.0
RENEW_AGAIN_S: Final = 2.0
"""After a renewal that failed, so that a server that is back is noticed within 5 s."""
TRIES: Final = 5
FIRST_TRY_S, LONGEST_TRY_S, REFUSED_TRY_S = 0.1, 7.0, 30.0
SHUT_AFTER_S: Final = 60.0
"""No market may answer for so long before pods are kept away; one that answers ends it at once."""


class Outlook(Struct, frozen=True, kw_only=True):
    """What the rest of the node knows at this moment."""

    room: Room
    markets: Mapping[str, str]
    """Open market to why it does not answer; empty text: it does."""


class NodeKeeper:
    """One Node object and its Lease: `register` once pods can be served, then `run`."""

    def __init__(
        self,
        client: KubeClient,
        heartbeat: KubeClient,
        *,
        policy: Callable[[], NodePolicy],
        outlook: Callable[[], Outlook],
        clock: Clock,
        random: Random,
        recorder: EventRecorder,
        features: Sequence[str] = (),
    ) -> None:
        """`heartbeat` has connections of its own and deadlines of 10 s; `features` are declared."""
        self._client, self._heartbeat = client, heartbeat
        self._policy, self._outlook, self._features = policy, outlook, tuple(features)
        self._clock, self._random, self._recorder = clock, random, recorder
        self._name = policy().name
        self._node: KubeObject | None = None
        """As it was last seen or written; None: there is none."""
        self._lease: KubeObject | None = None
        self._reported_at = float("-inf")
        self._silent_since: float | None = None
        self._shut = False
        self._wake = asyncio.Event()
        self._born = asyncio.Event()
        """Set by a registration: the Lease belongs to that very object, so it cannot wait."""
        self._troubles: dict[str, str] = {}
        self._log = structlog.get_logger().bind(node=self._name)
        self.offered: Offered | None = None
        """What the node offers now; None before the first look."""
        self.beat_at: float | None = None
        """Loop time of the last heartbeat that arrived; None before the first."""
        self.retired = asyncio.Event()
        """Set when somebody takes the node out of service: it is not registered again."""
        self._gone = asyncio.Event()
        """Set when the object of such a node is gone."""

    @property
    def troubles(self) -> Mapping[str, str]:
        """What does not work now, by part (`node`, `lease`): for readiness."""
        return {part: told for part, told in self._troubles.items() if told}

    async def register(self) -> None:
        """Create the Node, or make what is ours right on one that exists; tries until it works.

        Sets `retired` where the node is being taken out of service.

        Raises:
            BadInput: a node of this name stands for somebody else's machine.
        """
        pause_s = FIRST_TRY_S
        while True:
            try:
                await self._register()
                break
            except KubeError as error:
                self._trouble("node", error)
                if isinstance(error, KubeDenied | KubeInvalid):
                    pause_s = REFUSED_TRY_S
            await asyncio.sleep(pause_s * self._random.uniform(1.0, 1.1))
            pause_s = min(pause_s * 2, LONGEST_TRY_S)
        self._trouble("node", None)
        self._born.set()
        if not self.retired.is_set():
            self._tell("Normal", "NodeReady", f"Node {self._name} takes pods")

    async def run(self) -> None:
        """Keep Node and Lease until cancelled, or until the node was taken out of service.

        While that goes on, its last pods need a node that lives: a cluster deletes those of a
        silent one, whatever a disruption budget says. It ends when the object is gone. Whoever
        called it should then stay idle: a process that is started again would create it again.

        Raises:
            BadInput: the node was replaced by somebody else's.
        """
        informer = Informer(
            self._client,
            paths.nodes(),
            random=self._random,
            params={"fieldSelector": f"metadata.name={self._name}"},
            on_change=self._see,
        )
        async with asyncio.TaskGroup() as group:
            parts = [
                group.create_task(each) for each in (informer.run(), self._look(), self._beat())
            ]
            await self._gone.wait()
            for part in parts:
                part.cancel()
        self._log.warning("node_retired")

    # The object

    def _see(self, _old: KubeObject | None, new: KubeObject | None) -> None:
        last = new or _old or {}
        if node_object.is_retired(last):
            self.retired.set()
        if new is None and self._node is not None:
            if last["metadata"]["uid"] == self._node["metadata"]["uid"]:
                self._node = None
                self._wake.set()
            return
        self._node = new
        if not self._is_right():
            self._wake.set()

    async def _look(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._wake.clear()
            began = loop.time()
            try:
                await self._reconcile()
                self._trouble("node", None)
            except KubeConflict as error:
                # Somebody else wrote at the same time: the informer brings what they wrote.
                self._log.info("node_changed_meanwhile", error=str(error))
                await self._read()
            except KubeAbsent:
                self._node = None
                self._wake.set()
            except KubeError as error:
                self._trouble("node", error)
            # Even what wakes us is looked at once a second at most.
            await asyncio.sleep(1.0)
            is_blind = self.offered is None or self.offered.is_blind
            with suppress(TimeoutError):
                async with asyncio.timeout_at(began + (BLIND_LOOK_S if is_blind else LOOK_S)):
                    await self._wake.wait()

    async def _reconcile(self) -> None:
        """Look at everything, and write what differs."""
        if self._node is None and self.retired.is_set():
            self._gone.set()
            return
        if self._node is None:
            self._log.warning("node_is_gone", next="registering it again")
            await self.register()
            return
        policy, face = self._policy(), self._face()
        node = self._node
        change = node_object.outer_patch(node, policy, face)
        if change is not None:
            node = self._node = await self._client.patch(paths.node(self._name), change)
        await self._report(node, policy, face)

    async def _report(self, node: KubeObject, policy: NodePolicy, face: Face) -> None:
        at = asyncio.get_running_loop().time()
        wanted = node_object.status(node, policy, face, at=self._clock.now())
        due = at - self._reported_at >= REPORT_S
        if not due and node_object.says_the_same(node, wanted):
            return
        change = node_object.status_patch(node, wanted)
        self._node = await self._client.patch(paths.node(self._name, "status"), change)
        self._reported_at = at

    async def _register(self) -> None:
        policy, face = self._policy(), self._face()
        wanted = node_object.new_node(policy, face, at=self._clock.now())
        try:
            self._node = await self._client.create(paths.nodes(), wanted)
        except KubeExists:
            node = await self._client.get(paths.node(self._name))
            node_object.check_ours(node)
            if node_object.is_retired(node):
                self.retired.set()
            self._remember_offer(node)
            face = self._face()
            change = node_object.outer_patch(node, policy, face)
            if change is not None:
                node = await self._client.patch(paths.node(self._name), change)
            self._reported_at = float("-inf")
            await self._report(node, policy, face)
        else:
            self._reported_at = asyncio.get_running_loop().time()
            self._log.info("node_registered")

    def _remember_offer(self, node: KubeObject) -> None:
        """Go on from what the last process offered, until this one has seen the market."""
        if self.offered is None or self.offered.is_blind:
            at = asyncio.get_running_loop().time()
            self.offered = Offered(gpus=node_object.gpus(node), changed_at=at, is_blind=True)

    async def _read(self) -> None:
        with suppress(KubeError):
            self._node = await self._client.get(paths.node(self._name))
            self._wake.set()

    def _is_right(self) -> bool:
        """Whether nobody took away what is ours, and the cluster still takes us for Ready."""
        if self._node is None:
            return False
        conditions = (self._node.get("status") or {}).get("conditions") or ()
        ready = any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)
        face = Face(gpus=0, markets={}, shut=self._shut)
        return ready and node_object.outer_patch(self._node, self._policy(), face) is None

    def _face(self) -> Face:
        at = asyncio.get_running_loop().time()
        outlook, policy = self._outlook(), self._policy()
        self.offered = offered(self.offered, outlook.room, most=policy.max_gpus, at=at)
        self._judge(outlook.markets, at)
        return Face(
            gpus=self.offered.gpus,
            markets=outlook.markets,
            more=outlook.room.more,
            shortage=shortage(outlook.room, most=policy.max_gpus),
            shut=self._shut,
            features=self._features,
        )

    def _judge(self, markets: Mapping[str, str], at: float) -> None:
        if any(not why for why in markets.values()):
            self._silent_since = None
            if self._shut:
                self._shut = False
                self._tell("Normal", "MarketsAvailable", "A market answers again")
            return
        if self._silent_since is None:
            self._silent_since = at
        if not self._shut and at - self._silent_since >= SHUT_AFTER_S:
            self._shut = True
            why = "; ".join(f"{slug}: {told}" for slug, told in sorted(markets.items()))
            message = f"No market answers, so no more pods are taken: {why or 'none is open'}"
            self._tell("Warning", "MarketsUnavailable", message)

    # The heartbeat

    async def _beat(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            if loop.time() - due > RENEW_S / 2:
                self._log.warning("heartbeat_late", late_s=round(loop.time() - due, 1))
            self._born.clear()
            worked = self._node is not None and await self._renew()
            due = loop.time() + (RENEW_S if worked else RENEW_AGAIN_S)
            with suppress(TimeoutError):
                async with asyncio.timeout_at(due):
                    await self._born.wait()
                    due = loop.time()

    async def _renew(self) -> bool:
        """Renew the Lease, whatever stands in the way for a moment; return whether it worked."""
        for tries in range(TRIES):
            try:
                await self._renew_once()
            except KubeConflict:
                self._lease = None
            except KubeAbsent:
                self._lease = None
            except KubeError as error:
                self._trouble("lease", error)
                await asyncio.sleep(FIRST_TRY_S * 2**tries)
            else:
                self._trouble("lease", None)
                self.beat_at = asyncio.get_running_loop().time()
                return True
        return False

    async def _renew_once(self) -> None:
        node, path = self._node, paths.lease(LEASES_IN, self._name)
        if node is None:
            return  # a Lease without its owner would be collected
        if self._lease is None:
            try:
                self._lease = await self._heartbeat.get(path)
            except KubeAbsent:
                body = self._lease_of(node, {"metadata": {"namespace": LEASES_IN}})
                body |= {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease"}
                self._lease = await self._heartbeat.create(paths.leases(LEASES_IN), body)
                return
        self._lease = await self._heartbeat.replace(path, self._lease_of(node, self._lease))

    def _lease_of(self, node: KubeObject, lease: KubeObject) -> KubeObject:
        owner = {
            "apiVersion": "v1",
            "kind": "Node",
            "name": self._name,
            "uid": node["metadata"]["uid"],
        }
        spec: dict[str, Any] = {
            **(lease.get("spec") or {}),
            "holderIdentity": self._name,
            "leaseDurationSeconds": LEASE_S,
            "renewTime": self._clock.now().strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        }
        meta = {**lease["metadata"], "name": self._name, "ownerReferences": [owner]}
        return {**lease, "metadata": meta, "spec": spec}

    # Telling

    def _tell(self, kind: EventKind, reason: str, message: str) -> None:
        # A node's events carry its name for a UID: that is how `kubectl describe node` finds them.
        about = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": self._name, "uid": self._name},
        }
        self._recorder.tell(about, kind, reason, message)

    def _trouble(self, part: str, error: KubeError | None) -> None:
        told = str(error or "")
        before = self._troubles.get(part, "")
        if told and not before:
            self._log.warning("node_trouble", part=part, error=told)
        if before and not told:
            self._log.info("node_works_again", part=part)
        self._troubles[part] = told
