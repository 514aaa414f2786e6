"""Taking a node out of service: in order, and for good."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from msgspec import structs

from gp4u.errors import BadInput
from gp4u.kubelet.node.decommission import decommission
from tests.kube_api import KubeApi
from tests.unit.kubelet.node.test_node import LEASE, NODE, Scene
from tests.virtual_loop import VirtualClock, run_virtual


def pod(api: KubeApi, name: str, *, phase: str = "Running", **meta: Any) -> str:
    """Add a pod of the node; return its path."""
    body = {
        "kind": "Pod",
        "metadata": {"name": name, **meta},
        "spec": {"nodeName": "vast-gpu-node-1"},
        "status": {"phase": phase},
    }
    api.add(body)
    return f"/api/v1/namespaces/default/pods/{name}"


class Rentals:
    """What the ledger would say: one rental that is released a while after its pod is gone."""

    def __init__(self, api: KubeApi, path: str) -> None:
        self._api, self._path = api, path
        self.asked: list[bool] = []
        """Of each look, whether the pod was still there."""

    async def left(self) -> int:
        """Return how many are open: one, for the first four looks."""
        self.asked.append(self._api.find(self._path) is not None)
        return 1 if len(self.asked) < 5 else 0


async def leave(it: Scene, told: list[str], path: str, **options: Any) -> Rentals:
    """Decommission the scene's node; pods end as soon as they are asked to."""
    rentals = Rentals(it.api, path)
    async with it.api.client() as client, asyncio.TaskGroup() as group:

        async def finish() -> None:
            while True:
                await asyncio.sleep(1)
                for each in it.api.all("pods"):
                    if "deletionTimestamp" in each["metadata"]:
                        name = each["metadata"]["name"]
                        it.api.remove(f"/api/v1/namespaces/default/pods/{name}", grace_s=0)

        finishing = group.create_task(finish())
        await decommission(
            client,
            "vast-gpu-node-1",
            open_rentals=rentals.left,
            tell=told.append,
            clock=VirtualClock(),
            **options,
        )
        finishing.cancel()
    return rentals


def test_pods_leave_then_rentals_end_and_only_then_the_node_goes() -> None:
    """A Node that goes first takes the pods with it, and nobody is left to release."""

    async def life() -> None:
        it, told = Scene(), list[str]()
        async with it.running() as keeper:
            await asyncio.sleep(5)
            path = pod(it.api, "a")
            done = pod(it.api, "done", phase="Succeeded")
            daemon = pod(it.api, "ds", ownerReferences=[{"kind": "DaemonSet", "uid": "u"}])
            rentals = await leave(it, told, path)
            assert rentals.asked == [False] * 5
            assert it.api.find(path) is None
            assert it.api.find(NODE) is None
            assert it.api.find(LEASE) is None
            assert it.api.find(done) is not None
            assert it.api.find(daemon) is not None
            assert keeper.retired.is_set()
            await asyncio.sleep(60)
            assert it.api.find(NODE) is None, "the running process brought it back"
            assert it.api.find(LEASE) is None
        assert told == [
            "node vast-gpu-node-1 takes no more pods",
            "1 pods still there",
            "no pod is left",
            "1 rentals are not released yet",
            "everything is released",
            "node vast-gpu-node-1 is gone; stop its process before it is started again",
        ]

    run_virtual(life)


@asynccontextmanager
async def kept_by_a_budget(it: Scene, told: list[str]) -> AsyncIterator[str]:
    """Decommission the node around a pod that may not be evicted before the block ends."""
    path = pod(it.api, "a")
    it.api.blocked.add(("default", "a"))
    async with asyncio.TaskGroup() as group:
        group.create_task(leave(it, told, path))
        yield path
        it.api.blocked.clear()


def test_a_disruption_budget_is_waited_for_and_named() -> None:
    """Evictions go by the API, so that PodDisruptionBudgets hold."""

    async def life() -> None:
        it, told = Scene(), list[str]()
        async with it.running():
            async with kept_by_a_budget(it, told) as path:
                await asyncio.sleep(60)
                assert it.api.find(path) is not None
                assert "kept by a disruption budget, e.g. default/a" in told[-1]
            assert it.api.find(NODE) is None
            assert not it.api.told("delete", "pods")

    run_virtual(life)


def test_the_node_beats_on_while_a_disruption_budget_keeps_a_pod() -> None:
    """After 50 s of silence its pods are unready; after five minutes more they are deleted, budget
    or not."""

    async def life() -> None:
        it = Scene()
        async with it.running():
            async with kept_by_a_budget(it, []):
                await asyncio.sleep(600)
                it.api.calls.clear()
                await asyncio.sleep(300)
                assert len(it.api.told("update", "leases")) == 30
                assert it.api.told("patch", "nodes/vast-gpu-node-1/status")
            it.api.calls.clear()
            await asyncio.sleep(60)
            assert it.api.find(NODE) is None
            assert it.api.find(LEASE) is None
            assert not it.api.told("create", "nodes")

    run_virtual(life)


def test_who_insists_deletes_past_a_disruption_budget() -> None:
    """There has to be a way out, and it has to be asked for by name."""

    async def life() -> None:
        it, told = Scene(), list[str]()
        async with it.running():
            path = pod(it.api, "a")
            it.api.blocked.add(("default", "a"))
            await leave(it, told, path, evict=False, grace_s=5)
            assert it.api.find(NODE) is None
            assert not it.api.told("create", "eviction")

    run_virtual(life)


def test_a_process_that_restarts_meanwhile_does_not_bring_the_node_back() -> None:
    """The mark is on the object: a new process finds it, and only keeps what is left alive."""

    async def life() -> None:
        it = Scene()
        async with it.running():
            await asyncio.sleep(5)
            it.api.change(NODE, {"metadata": {"annotations": {"gp4u.io/decommissioned": "now"}}})
            await asyncio.sleep(5)
        it.policy = structs.replace(it.policy, address="203.0.113.47")
        async with it.running() as keeper:
            assert keeper.retired.is_set()
            await asyncio.sleep(120)
            assert it.node["status"]["addresses"][0]["address"] == "203.0.113.47"
            it.api.remove(NODE)
            it.api.collect_garbage()
            await asyncio.sleep(120)
            assert it.api.find(NODE) is None
            assert it.api.find(LEASE) is None

    run_virtual(life)


def test_it_can_be_called_again_after_it_was_interrupted() -> None:
    """Somebody's terminal closed: the second call goes on where the first one was."""

    async def life() -> None:
        it, told = Scene(), list[str]()
        async with it.running():
            path = pod(it.api, "a")
            it.api.blocked.add(("default", "a"))
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(30):
                    await leave(it, told, path)
            it.api.blocked.clear()
            await leave(it, told, path)
            assert it.api.find(NODE) is None
            await leave(it, told, path)
            assert told[-5] == "there is no node vast-gpu-node-1"

    run_virtual(life)


def test_a_strangers_node_is_left_alone() -> None:
    """`gp4u node decommission` with another node's name must not drain it."""

    async def life() -> None:
        it = Scene()
        it.api.add(
            {
                "kind": "Node",
                "metadata": {"name": "vast-gpu-node-1"},
                "spec": {"providerID": "aws:///eu-1/i-1"},
            }
        )
        path = pod(it.api, "a")
        before = it.node
        with pytest.raises(ExceptionGroup) as caught:
            await leave(it, [], path)
        assert caught.group_contains(BadInput)
        assert it.node == before
        assert it.api.find(path) is not None

    run_virtual(life)
