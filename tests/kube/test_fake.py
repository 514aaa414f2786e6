"""The fake API server of the unit tests beside the real one: the same calls, the same answers.

Hundreds of tests stand on `tests/kube_api.py`. Each scene here is played by our own client on both,
and what comes back is compared: the error, or the part of the answer that the scene is about.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from itertools import count
from typing import Any

import pytest

from gp4u.errors import KubeError
from gp4u.kube import paths
from gp4u.kube.access import find_access
from gp4u.kube.client import KubeClient, PatchKind, open_client
from tests.kube.controlplane import ControlPlane
from tests.kube_api import KubeApi

NOBODY = "00000000-0000-0000-0000-000000000000"
NODE = "scene-node"
Scene = Callable[[KubeClient, str], Awaitable[list[object]]]
_numbers = count()


async def heard(call: Awaitable[Any], *about: str) -> object:
    """Return what came of a call: the error's name, or the named part of the answer."""
    try:
        found = await call
    except KubeError as error:
        return type(error).__name__
    for key in about:
        found = found.get(key) if isinstance(found, dict) else None
    return found if about else "done"


def pod(name: str, **spec: Any) -> dict[str, Any]:
    """Return a pod that is bound to a node which does not exist."""
    containers = [{"name": "main", "image": "registry.test/it"}]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {"nodeName": NODE, "containers": containers} | spec,
    }


async def making(client: KubeClient, space: str) -> list[object]:
    """Create, create again, find, miss."""
    where = paths.pods(space)
    return [
        await heard(client.create(where, pod("a")), "status", "phase"),
        await heard(client.create(where, pod("a"))),
        await heard(client.get(paths.pod(space, "a")), "metadata", "name"),
        await heard(client.get(paths.pod(space, "b"))),
        await heard(client.delete(paths.pod(space, "b"))),
        await heard(client.create(where, {"apiVersion": "v1", "kind": "Pod", "metadata": {}})),
    ]


async def patching_status(client: KubeClient, space: str) -> list[object]:
    """What a status patch merges, replaces and refuses."""
    made = await client.create(paths.pods(space), pod("a"))
    uid, path = made["metadata"]["uid"], paths.pod(space, "a", "status")
    entry = {"name": "main", "image": "it", "imageID": "", "ready": False, "restartCount": 0}

    def status(*, uid: str = uid, **members: Any) -> dict[str, Any]:
        return {"metadata": {"uid": uid}, "status": members}

    def condition(kind: str, value: str) -> dict[str, Any]:
        return {"type": kind, "status": value, "lastTransitionTime": "2026-11-01T00:00:00Z"}

    waiting = entry | {"state": {"waiting": {"reason": "ContainerCreating"}}}
    first = status(
        phase="Pending",
        conditions=[condition("Ready", "False"), condition("theirs.io/gate", "True")],
        containerStatuses=[waiting],
        podIP="10.1.0.1",
        podIPs=[{"ip": "10.1.0.1"}],
    )
    flipped = status(conditions=[condition("Ready", "True")])
    moved = status(
        podIP="10.1.0.2", podIPs=[{"ip": "10.1.0.2"}, {"$patch": "delete", "ip": "10.1.0.1"}]
    )
    back = [
        await heard(client.patch(path, first), "status", "podIPs"),
        await heard(client.patch(path, status(uid=NOBODY, phase="Running"))),
        await heard(client.patch(path, flipped), "status", "conditions"),
        await heard(client.patch(path, moved), "status", "podIPs"),
        await heard(client.patch(path, {"metadata": {"labels": {"a": "b"}}}), "metadata", "labels"),
        await heard(client.patch(paths.pod(space, "a"), status(phase="Failed")), "status", "phase"),
        await heard(client.patch(paths.pod(space, "b", "status"), status(phase="Failed"))),
        await heard(client.patch(path, status(phase="Succeeded")), "status", "phase"),
    ]
    # The order of merged conditions is the server's own business.
    conditions = back[2]
    assert isinstance(conditions, list)
    back[2] = sorted((each["type"], each["status"]) for each in conditions)
    return back


async def replacing(client: KubeClient, space: str) -> list[object]:
    """A lease is written whole, by the version that was read."""
    made = await client.create(
        paths.leases(space),
        {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": "a"},
            "spec": {"holderIdentity": "one", "leaseDurationSeconds": 40},
        },
    )
    path = paths.lease(space, "a")
    other = made | {"spec": {"holderIdentity": "two", "leaseDurationSeconds": 40}}
    return [
        await heard(client.replace(path, other), "spec", "holderIdentity"),
        await heard(client.replace(path, other | {"spec": {"holderIdentity": "three"}})),
        await heard(client.replace(path, other | {"metadata": {"name": "a"}}), "spec"),
    ]


async def deleting(client: KubeClient, space: str) -> list[object]:
    """Grace, who shortens it, preconditions, finalizers."""
    where, path = paths.pods(space), paths.pod(space, "a")
    uid = (await client.create(where, pod("a")))["metadata"]["uid"]
    about = ("metadata", "deletionGracePeriodSeconds")
    back = [
        await heard(client.delete(path, uid=NOBODY)),
        await heard(client.delete(path), *about),
        await heard(client.delete(path, grace_s=5), *about),
        await heard(client.delete(path, grace_s=60), *about),
        await heard(client.delete(path, grace_s=0, uid=NOBODY)),
        await heard(client.get(path), *about),
        await heard(client.delete(path, grace_s=0, uid=uid)),
        await heard(client.get(path)),
        await heard(client.create(where, pod("free", nodeName="")), "status", "phase"),
        await heard(client.delete(paths.pod(space, "free"))),
        await heard(client.get(paths.pod(space, "free"))),
    ]
    held = pod("held") | {"metadata": {"name": "held", "finalizers": ["test.io/hold"]}}
    await client.create(where, held)
    path = paths.pod(space, "held")
    return [
        *back,
        await heard(client.delete(path, grace_s=0), *about),
        await heard(client.get(path), *about),
        await heard(client.patch(path, {"metadata": {"finalizers": None}}, kind=PatchKind.MERGE)),
        await heard(client.get(path)),
    ]


async def listing(client: KubeClient, space: str) -> list[object]:
    """What can be selected by, and what cannot."""
    for name, node in (("a", NODE), ("b", "other-node")):
        await client.create(paths.pods(space), pod(name, nodeName=node))
    here = {"fieldSelector": f"spec.nodeName={NODE}"}
    found = await client.list(paths.pods(space), **here)
    return [
        [(each["kind"], each["metadata"]["name"]) for each in found.items],
        await heard(client.list(paths.secrets(space), **here)),
        await heard(client.list(paths.pods(space), labelSelector="app=none")),
    ]


async def watching(client: KubeClient, space: str) -> list[object]:
    """What a watch of one node's pods tells of its pods, in order; one on its way out as well."""
    here = f"spec.nodeName={NODE}"
    listed = await client.list(paths.pods(space), fieldSelector=here)
    await client.create(paths.pods(space), pod("other", nodeName="other-node"))
    await client.create(paths.pods(space), pod("a"))
    await client.patch(paths.pod(space, "a"), {"metadata": {"labels": {"x": "y"}}})
    await client.delete(paths.pod(space, "a"))
    await client.delete(paths.pod(space, "a"), grace_s=0)
    seen: list[object] = []
    async with (
        asyncio.timeout(20),
        aclosing(
            client.watch(paths.pods(space), version=listed.version, fieldSelector=here)
        ) as stream,
    ):
        async for event in stream:
            seen.append((event.kind, event.object["metadata"]["name"]))
            if event.kind == "DELETED":
                break
    return seen


async def going_over(client: KubeClient, space: str) -> list[object]:
    """A pod that is over is deleted at once, without grace."""
    await client.create(paths.pods(space), pod("a"))
    path = paths.pod(space, "a", "status")
    await client.patch(path, {"status": {"phase": "Failed"}})
    return [
        await heard(client.delete(paths.pod(space, "a"))),
        await heard(client.get(paths.pod(space, "a"))),
    ]


@asynccontextmanager
async def real(plane: ControlPlane) -> AsyncIterator[tuple[KubeClient, str]]:
    """Our client at the real API server, and a namespace of its own."""
    space = f"scene-{next(_numbers)}"
    plane.admitted("create", "namespace", space)
    plane.wait(("get", "serviceaccount", "default", "-n", space), "its account")
    async with open_client(find_access(kubeconfig=str(plane.admin))) as client:
        yield client, space
    plane.admitted("delete", "namespace", space, "--wait=false")


SCENES: list[Scene] = [
    making,
    patching_status,
    replacing,
    deleting,
    listing,
    watching,
    going_over,
]


@pytest.mark.parametrize("scene", SCENES, ids=lambda each: each.__name__)
async def test_the_fake_answers_as_the_real_one_does(scene: Scene, plane: ControlPlane) -> None:
    """A fake that is wrong in one place lets a bug through in every test that meets it."""
    async with real(plane) as (client, space):
        true = await scene(client, space)
    async with KubeApi().client() as client:
        assert await scene(client, "default") == true
