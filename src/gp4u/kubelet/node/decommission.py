"""Takes a node out of service for good: nobody new, everybody out, nothing paid, then no node.

Exists because nothing else may delete the Node object: at every restart of the process that would
kill the pods it runs. Works beside a node process that goes on meanwhile, which does the releasing
and which, seeing the mark, does not register the node again.

Evictions come first, so that PodDisruptionBudgets hold. Pods of DaemonSets are left to their
controller, which would make them anew as long as the node exists, and finished pods to the garbage
collector.

Source: kubernetes kubectl pkg/drain/drain.go (order and exceptions), 1.36; checked 2026-11.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

from gp4u.clock import Clock
from gp4u.errors import KubeAbsent, KubeConflict, KubeUnavailable
from gp4u.kube import paths
from gp4u.kube.client import KubeClient, KubeObject
from gp4u.kubelet.node import node_object
from gp4u.kubelet.node.node import LEASES_IN

LOOK_S: Final = 5.0


async def decommission(
    client: KubeClient,
    name: str,
    *,
    open_rentals: Callable[[], Awaitable[int]],
    tell: Callable[[str], None],
    clock: Clock,
    grace_s: int | None = None,
    evict: bool = True,
) -> None:
    """Cordon the node, empty it, wait until nothing is rented for it, then delete it.

    Goes on for as long as a budget or a market keeps it waiting; bounded by the caller, and safe
    to call again. `open_rentals` counts the rentals of the node that are not released. `tell` gets
    each step in words. `evict` False deletes pods although a PodDisruptionBudget protects them.

    Raises:
        BadInput: the node of this name is not ours.
        KubeError: the API server refused a step, or was away for it.
    """
    uid = await _cordon(client, name, clock, tell)
    told = ""
    while pods := await _to_leave(client, name):
        kept = [pod for pod in pods if not await _sent_away(client, pod, grace_s, evict=evict)]
        now = f"{len(pods)} pods still there"
        if kept:
            first = f"{kept[0]['metadata']['namespace']}/{kept[0]['metadata']['name']}"
            now += f", {len(kept)} of them kept by a disruption budget, e.g. {first}"
        if now != told:
            tell(now)
        told = now
        await asyncio.sleep(LOOK_S)
    tell("no pod is left")
    left = -1
    while still := await open_rentals():
        if still != left:
            tell(f"{still} rentals are not released yet")
        left = still
        await asyncio.sleep(LOOK_S)
    tell("everything is released")
    if uid is not None:
        with suppress(KubeAbsent):
            await client.delete(paths.node(name), uid=uid)
    with suppress(KubeAbsent):
        await client.delete(paths.lease(LEASES_IN, name))
    tell(f"node {name} is gone; stop its process before it is started again")


async def _cordon(
    client: KubeClient, name: str, clock: Clock, tell: Callable[[str], None]
) -> str | None:
    """Keep pods and a restarted process away; return the node's UID, None where there is none."""
    try:
        node = await client.get(paths.node(name))
    except KubeAbsent:
        tell(f"there is no node {name}")
        return None
    node_object.check_ours(node)
    mark = clock.now().strftime("%Y-%m-%dT%H:%M:%SZ")
    uid = str(node["metadata"]["uid"])
    change = {
        "metadata": {"uid": uid, "annotations": {node_object.RETIRED: mark}},
        "spec": {"unschedulable": True},
    }
    await client.patch(paths.node(name), change)
    tell(f"node {name} takes no more pods")
    return uid


async def _to_leave(client: KubeClient, name: str) -> list[KubeObject]:
    listed = await client.list(paths.pods(), fieldSelector=f"spec.nodeName={name}")
    return [pod for pod in listed.items if not _is_left(pod)]


def _is_left(pod: KubeObject) -> bool:
    owners = pod["metadata"].get("ownerReferences") or ()
    over = (pod.get("status") or {}).get("phase") in {"Succeeded", "Failed"}
    return over or any(each["kind"] == "DaemonSet" for each in owners)


async def _sent_away(
    client: KubeClient, pod: KubeObject, grace_s: int | None, *, evict: bool
) -> bool:
    """Ask a pod to leave; False: a disruption budget keeps it for now."""
    meta = pod["metadata"]
    if "deletionTimestamp" in meta:
        return True
    path, uid = paths.pod(meta["namespace"], meta["name"]), meta["uid"]
    options: KubeObject = {"preconditions": {"uid": uid}}
    if grace_s is not None:
        options["gracePeriodSeconds"] = grace_s
    eviction = {
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"namespace": meta["namespace"], "name": meta["name"]},
        "deleteOptions": options,
    }
    try:
        if evict:
            await client.create(f"{path}/eviction", eviction)
        else:
            await client.delete(path, uid=uid, grace_s=grace_s)
    except (KubeAbsent, KubeConflict):
        return True  # gone, or another one of that name, which the next look finds
    except KubeUnavailable:
        return False  # 429 is how a disruption budget says no
    return True
