"""Keeps a relay for each pod that wants one, and tells the address that it gives the pod.

Hides that a relay is a pod of its own, with a life of its own: it is made once the machine's
endpoints are known, its routes follow them, it is made anew when it ended or was drained, and it
goes with the pod it serves (the cluster's garbage collector sees to that). What it is made of is
`relay_pod.py`'s, what it runs `relay.py`'s.

A pod without a relay has the node's own address, as one on the host network would: many clients
wait until a pod has any.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from random import Random
from typing import Any, Final

import structlog
from msgspec import Struct

from gp4u.errors import (
    BadInput,
    KubeAbsent,
    KubeConflict,
    KubeDenied,
    KubeError,
    KubeExists,
)
from gp4u.kube import paths
from gp4u.kube.client import KubeClient, PatchKind
from gp4u.kube.events import EventRecorder
from gp4u.kube.watch import Informer
from gp4u.kubelet.held import Held, Pods, Run
from gp4u.kubelet.policy import NodePolicy
from gp4u.kubelet.services.relay_pod import (
    RELAY_FOR,
    relay_address,
    relay_config,
    relay_name,
    relay_pod,
    relay_routes,
)
from gp4u.kubelet.spec.annotations import wish_of
from gp4u.model import Endpoint
from gp4u.telemetry import clean

LOOK_S: Final = 5.0
"""Between two looks at what pods want."""
OVER: Final = ("Succeeded", "Failed")
FAILED: Final = "RelayFailed"
ENDED: Final = "RelayEnded"
END_WAIT_S: Final = (5.0, 300.0)
"""First and longest wait before another relay takes the place of one that ended."""
STEADY_S: Final = 600.0
"""One that ends so long after the last one began to be replaced starts with the first wait."""


class _End(Struct, frozen=True, kw_only=True):
    """A relay's pod that will not run again."""

    relay: str
    """Its UID."""
    why: str
    in_a_row: int
    again_s: float
    """Loop time from which it is replaced."""


class Relays:
    """Of all pods of one node; `run` it in a task."""

    def __init__(
        self,
        client: KubeClient,
        *,
        policy: Callable[[], NodePolicy],
        pods: Callable[[], Pods],
        wake: Callable[[str], None],
        recorder: EventRecorder,
        random: Random,
        allow_loopback: bool = False,
    ) -> None:
        """`wake` has a pod of this UID looked at again, once its relay has an address."""
        self._client, self._policy, self._pods, self._wake = client, policy, pods, wake
        self._recorder, self._allow_loopback = recorder, allow_loopback
        self._addresses: dict[str, str] = {}
        """UID of the pod that is served to the relay's address."""
        self._made: dict[str, Mapping[str, Any]] = {}
        """UID to the routes that its relay was told last."""
        self._told: dict[str, str] = {}
        self._ends: dict[str, _End] = {}
        """UID to the last relay of that pod which ended."""
        self._informer = Informer(
            client,
            paths.pods(),
            random=random,
            params={"labelSelector": RELAY_FOR},
            on_change=self._seen,
        )

    def address(self, held: Held) -> str | None:
        """Return a pod's address inside the cluster; None: it has none yet."""
        if self._wants(held):
            return self._addresses.get(held.uid)
        is_up = any(each.run is not Run.WAITING for each in held.containers)
        return self._policy().address if is_up else None

    async def run(self) -> None:
        """Make relays and keep their routes true until cancelled; nothing without an image."""
        if self._policy().relay_image is None:
            return
        async with asyncio.TaskGroup() as group:
            group.create_task(self._informer.run())
            while True:
                for held in self._pods().all():
                    await self._serve(held)
                there = {held.uid for held in self._pods().all()}
                for known in (self._made, self._told, self._ends):
                    for uid in known.keys() - there:
                        del known[uid]
                await asyncio.sleep(LOOK_S)

    async def _serve(self, held: Held) -> None:
        endpoints = _endpoints(held)
        leads = bool(relay_routes(endpoints))
        if held.leaving or not (leads or self._leads_astray(held)) or not self._wants(held):
            return
        config = relay_config(held.pod, endpoints)
        ended = self._ended(held) if leads else None
        if ended is None and self._made.get(held.uid) == config["data"]:
            return
        try:
            if ended is not None:
                await self._clear(held, ended)
            if leads:
                await self._put(held, config, endpoints)
            else:
                await self._cut(held, config)
        except KubeError as error:
            kind = "denied" if isinstance(error, KubeDenied) else "failed"
            problem = f"{kind}: {error}"
            if self._told.get(held.uid) != problem:
                self._recorder.tell(held.pod, "Warning", FAILED, f"no relay: {error}")
                structlog.get_logger().warning("relay_failed", pod=held.uid, error=problem)
            self._told[held.uid] = problem
            return
        self._made[held.uid] = config["data"]
        self._told.pop(held.uid, None)

    def _leads_astray(self, held: Held) -> bool:
        """Whether a relay is there, and its pod's machine, as far as it was looked for, is not."""
        is_there = held.uid in self._made or held.uid in self._addresses
        has_machine = any(each.is_live for each in held.rentals.values())
        return is_there and bool(held.containers) and not has_machine

    def _ended(self, held: Held) -> _End | None:
        """Return the pod's relay if it ended, is still there, and is due to be replaced."""
        end = self._ends.get(held.uid)
        relay = None if end is None else self._informer.objects.get(end.relay)
        if end is None or relay is None or "deletionTimestamp" in relay["metadata"]:
            return None
        return end if asyncio.get_running_loop().time() >= end.again_s else None

    async def _clear(self, held: Held, end: _End) -> None:
        """Make room: the next one bears the same name."""
        path = paths.pod(held.namespace, relay_name(held.pod))
        with suppress(KubeAbsent, KubeConflict):
            await self._client.delete(path, uid=end.relay, grace_s=0)
        text = f"the relay ended ({end.why}); another one takes its place"
        self._recorder.tell(held.pod, "Warning", ENDED, text)

    async def _put(
        self, held: Held, config: Mapping[str, Any], endpoints: tuple[Endpoint, ...]
    ) -> None:
        try:
            await self._client.create(paths.configmaps(held.namespace), config)
        except KubeExists:
            path = paths.configmap(held.namespace, relay_name(held.pod))
            await self._client.patch(path, {"data": config["data"]}, kind=PatchKind.MERGE)
        manifest = relay_pod(
            held.pod, endpoints, self._policy(), allow_loopback=self._allow_loopback
        )
        try:
            await self._client.create(paths.pods(held.namespace), manifest)
        except KubeExists:
            return  # its routes are read from the ConfigMap again

    async def _cut(self, held: Held, config: Mapping[str, Any]) -> None:
        """Have it lead nowhere: the machine's address may soon be somebody else's."""
        path = paths.configmap(held.namespace, relay_name(held.pod))
        with suppress(KubeAbsent):
            await self._client.patch(path, {"data": config["data"]}, kind=PatchKind.MERGE)

    def _wants(self, held: Held) -> bool:
        policy = self._policy()
        if policy.relay_image is None:
            return False  # and whoever asks for one is refused for that
        try:
            return wish_of(held.pod, policy).relay
        except BadInput:
            return False  # such a pod is refused for that

    def _seen(self, old: Mapping[str, Any] | None, new: Mapping[str, Any] | None) -> None:
        relay = new or old
        if relay is None:
            return
        uid = (relay["metadata"].get("labels") or {}).get(RELAY_FOR, "")
        if new is None:
            self._made.pop(uid, None)  # somebody drained its node: it is made anew
        elif (new.get("status") or {}).get("phase") in OVER:
            self._note_end(uid, new)
        address = relay_address(new) if new is not None else None
        if self._addresses.get(uid) == address:
            return
        if address is None:
            self._addresses.pop(uid, None)
        else:
            self._addresses[uid] = address
        self._wake(uid)

    def _note_end(self, uid: str, relay: Mapping[str, Any]) -> None:
        known, now_s = self._ends.get(uid), asyncio.get_running_loop().time()
        if known is not None and known.relay == relay["metadata"]["uid"]:
            return
        steady = known is None or now_s - known.again_s >= STEADY_S
        in_a_row = 1 if known is None or steady else known.in_a_row + 1
        first_s, most_s = END_WAIT_S
        status = relay["status"]
        told = (status["phase"], status.get("reason"), status.get("message"))
        self._ends[uid] = _End(
            relay=relay["metadata"]["uid"],
            why=clean(": ".join(filter(None, told)), 300),
            in_a_row=in_a_row,
            again_s=now_s + min(most_s, first_s * 2.0 ** min(in_a_row - 1, 16)),
        )


def _endpoints(held: Held) -> tuple[Endpoint, ...]:
    rentals = {rental.key: rental for rental in held.rentals.values() if rental.is_live}
    return tuple(each for rental in rentals.values() for each in rental.endpoints)
