"""How pods are deleted: whatever happens at that moment, nothing is left, and nothing hangs."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from gp4u.kube import paths
from gp4u.rentals.rental import RentalState
from gp4u.sim.faults import Rule
from tests.kube_api import Cut
from tests.unit.kubelet.cluster import Cluster, Node, by, gpu_pod, told

SERVICE = {
    "kind": "Service",
    "metadata": {"name": "s", "annotations": {"gp4u.io/pod": "a"}},
    "spec": {"ports": [{"port": 80, "targetPort": 8000}], "clusterIP": "10.96.0.9"},
}


def slices(cluster: Cluster) -> list[dict[str, object]]:
    """All EndpointSlices there are."""
    return cluster.api.all("endpointslices")


async def nothing_is_left(cluster: Cluster, node: Node) -> None:
    """Wait until no machine costs, every rental is released, and no worker is there."""
    await cluster.until_nothing_costs()
    for _ in range(300):
        if all(not r.is_open for r in await node.rentals()):
            break
        await asyncio.sleep(1)
    assert {r.state for r in await node.rentals()} <= {RentalState.RELEASED}
    await cluster.until_true(lambda: not node.controller.all())
    assert node.is_alive


def test_endpoints_are_withdrawn_before_the_machine_goes(tmp_path: Path) -> None:
    """A moment later the market may give the address to a stranger."""

    async def tale(cluster: Cluster) -> None:
        cluster.api.add(SERVICE)
        async with cluster.node() as node:
            cluster.create("a")
            await cluster.until_ready("a")
            await cluster.until_true(lambda: len(slices(cluster)) == 1, within_s=10)
            cluster.delete("a")
            await cluster.until_true(lambda: not slices(cluster), within_s=15)
            (rental,) = await node.rentals()
            assert rental.is_live, "released before nobody was sent there any more"
            await cluster.until("gone")
            await nothing_is_left(cluster, node)

    # The log is asked for in between, and takes its time.
    told(tale, tmp_path, rules=[Rule(kind="latency", endpoint="logs", seconds=9.0)])


def test_a_deleted_pod_is_out_of_the_running_ones_at_once(tmp_path: Path) -> None:
    """Harnesses for virtual nodes look there within a second."""

    async def tale(cluster: Cluster) -> None:
        async with cluster.node() as node:
            cluster.create("a")
            await cluster.until_ready("a")
            cluster.delete("a")
            await asyncio.sleep(1)
            held = node.controller.find("default", "a")
            assert held is None or held.leaving
            await cluster.until("gone")

    told(tale, tmp_path)


def test_a_pod_deleted_while_it_is_rented_for_is_never_published(tmp_path: Path) -> None:
    """K6: the rent was sent and cannot be taken back, but its machine is released by its key."""
    slow = Rule(kind="latency", endpoint="create", seconds=30.0)

    async def tale(cluster: Cluster) -> None:
        cluster.api.add(SERVICE)
        async with cluster.node() as node:
            cluster.create("a")
            await asyncio.sleep(8)
            (rental,) = await node.rentals()
            assert rental.state is RentalState.INTENDED
            cluster.delete("a")
            await cluster.until("gone", within_s=20)
            await asyncio.sleep(60)
            assert cluster.api.told("create", "endpointslices") == []
            await nothing_is_left(cluster, node)
            assert cluster.market.rents() <= 1

    told(tale, tmp_path, rules=[slow])


def test_a_pod_deleted_before_its_turn_is_never_rented_for(tmp_path: Path) -> None:
    """What waits in line is taken out of it."""
    slow = Rule(kind="latency", endpoint="create", seconds=20.0)

    async def tale(cluster: Cluster) -> None:
        async with cluster.node() as node:
            for number in range(12):
                cluster.create(f"b-{number}")
            await asyncio.sleep(2)
            cluster.create("a")
            await asyncio.sleep(1)
            uid = (cluster.pod("a") or {})["metadata"]["uid"]
            cluster.delete("a")
            await cluster.until("gone", within_s=10)
            await asyncio.sleep(200)
            assert f"pod:{uid}" not in [r.owner for r in await node.rentals()]

    told(tale, tmp_path, rules=[slow], offers=300)


def test_a_forced_deletion_leaves_nothing(tmp_path: Path) -> None:
    """K5: there is no object any more to write to, only the event that it is gone."""

    async def tale(cluster: Cluster) -> None:
        async with cluster.node() as node:
            cluster.create("a")
            await cluster.until_ready("a")
            cluster.delete("a", grace_s=0)
            await nothing_is_left(cluster, node)

    told(tale, tmp_path)


def test_a_deletion_that_nobody_told_of_is_noticed(tmp_path: Path) -> None:
    """K5, K1: the watch was away, its history is gone; the next list lacks the pod."""

    async def tale(cluster: Cluster) -> None:
        async with cluster.node() as node:
            cluster.create("a")
            cluster.create("b")
            await cluster.until_ready("a", "b")
            cluster.api.cut(Cut.SILENT)
            cluster.delete("a", grace_s=0)
            cluster.api.forget_history()
            await asyncio.sleep(30)
            assert len(cluster.market.live) == 2, "nobody could know yet"
            await cluster.until_true(lambda: len(cluster.market.live) == 1, within_s=400)
            assert cluster.is_ready("b")
            assert node.is_alive

    told(tale, tmp_path)


def test_a_list_that_fails_proves_nothing(tmp_path: Path) -> None:
    """K3, K5: an API server that restarts, or says no, must not cost a machine."""

    async def tale(cluster: Cluster) -> None:
        async with cluster.node() as node:
            cluster.create("a")
            await cluster.until_ready("a")
            cluster.api.set_down()
            await asyncio.sleep(200)
            cluster.api.set_down(down=False)
            cluster.api.fail("list", "pods", 500, times=5)
            cluster.api.forget_history()
            await asyncio.sleep(120)
            assert len(cluster.market.live) == 1
            assert cluster.is_ready("a")
            (rental,) = await node.rentals()
            assert rental.state is RentalState.RUNNING

    told(tale, tmp_path)


def test_the_same_name_with_another_uid_is_another_pod(tmp_path: Path) -> None:
    """K7: a StatefulSet makes it at once; the old machine goes, the new pod gets its own."""

    async def tale(cluster: Cluster) -> None:
        async with cluster.node() as node:
            cluster.create("a")
            await cluster.until_ready("a")
            first = (cluster.pod("a") or {})["metadata"]["uid"]
            cluster.api.cut(Cut.SILENT)
            cluster.delete("a", grace_s=0)
            cluster.create("a")
            await cluster.until_ready("a", within_s=600)
            old, new = [r for r in await node.rentals() if r.instance_id is not None]
            assert old.owner == f"pod:{first}"
            assert not old.is_live
            assert new.state is RentalState.RUNNING
            await cluster.until_true(lambda: len(cluster.market.live) == 1)

    told(tale, tmp_path)


def test_a_dead_market_does_not_hold_up_the_deletion(tmp_path: Path) -> None:
    """The release is on disk, and goes on by itself when the market answers again."""
    dead = Rule(kind="refuse", after_s=60.0, until_s=900.0)

    async def tale(cluster: Cluster) -> None:
        async with cluster.node() as node:
            cluster.create("a")
            await cluster.until_ready("a")
            await asyncio.sleep(70)
            cluster.delete("a")
            await cluster.until("gone", within_s=90)
            assert len(cluster.market.live) == 1
            (rental,) = await node.rentals()
            assert (rental.state, rental.reason) == (RentalState.RELEASING, "pod_deleted")
            await asyncio.sleep(900)
            await nothing_is_left(cluster, node)

    told(tale, tmp_path, rules=[dead])


def test_the_object_is_removed_in_the_end_whatever_the_server_says_first(tmp_path: Path) -> None:
    """Whoever waits with `kubectl delete` must not wait for ever; the release came first."""

    async def tale(cluster: Cluster) -> None:
        async with cluster.node() as node:
            cluster.create("a")
            await cluster.until_ready("a")
            cluster.api.fail("delete", "pods/a", 503, times=3)
            cluster.delete("a")
            await cluster.until("gone", within_s=120)
            assert not (await node.rentals())[0].is_live
            assert len(cluster.api.told("delete", "pods/a")) == 4

    told(tale, tmp_path)


def test_a_pod_with_a_finalizer_is_let_go_of_once(tmp_path: Path) -> None:
    """Jobs hold their pods back; the object stays, and nothing behind it does."""

    async def tale(cluster: Cluster) -> None:
        async with cluster.node() as node:
            cluster.create("a")
            cluster.api.change(
                paths.pod("default", "a"), {"metadata": {"finalizers": ["batch/job-tracking"]}}
            )
            await cluster.until_ready("a")
            cluster.delete("a")
            await cluster.until_nothing_costs(within_s=60)
            await asyncio.sleep(120)
            assert cluster.pod("a") is not None
            assert len(await node.rentals()) == 1
            cluster.api.change(paths.pod("default", "a"), {"metadata": {"finalizers": []}})
            await cluster.until("gone")
            await nothing_is_left(cluster, node)

    told(tale, tmp_path)


def held_back(name: str, **more: Any) -> dict[str, Any]:
    """Return the pod of a Job, which keeps the object until it has counted how it ended."""
    body = gpu_pod(name, restart="Never", owner=by("Job"), **more)
    body["metadata"]["finalizers"] = ["batch.kubernetes.io/job-tracking"]
    return body


def test_a_pod_deleted_before_it_had_a_machine_has_failed(tmp_path: Path) -> None:
    """A Job with a podFailurePolicy waits for the end of each pod, and nobody else tells it."""

    async def tale(cluster: Cluster) -> None:
        async with cluster.node():
            cluster.api.add(held_back("a", annotations={"gp4u.io/max-price": "0.0001"}))
            await cluster.until_true(lambda: "NoOffer" in cluster.reasons("a"))
            assert cluster.status("a")["phase"] == "Pending"
            cluster.delete("a")
            await cluster.until("Failed", within_s=10)
            assert cluster.state("a")["terminated"]["exitCode"] == 137

    told(tale, tmp_path)


def test_a_pod_deleted_before_anybody_saw_it_has_failed(tmp_path: Path) -> None:
    """It was bound and deleted while no node was there."""

    async def tale(cluster: Cluster) -> None:
        cluster.api.add(held_back("a"))
        cluster.delete("a")
        async with cluster.node() as node:
            await cluster.until("Failed", within_s=10)
            assert await node.rentals() == []

    told(tale, tmp_path)


def test_a_deletion_that_another_process_goes_on_with_ends_in_failure_too(tmp_path: Path) -> None:
    """The next process never learns what ran, and still everything has ended."""

    async def tale(cluster: Cluster) -> None:
        async with cluster.node():
            cluster.api.add(held_back("a"))
            await cluster.until_ready("a")
        before = cluster.status("a")["containerStatuses"][0]
        cluster.delete("a")
        async with cluster.node(seed=2) as node:
            await cluster.until("Failed", within_s=60)
            entry = cluster.status("a")["containerStatuses"][0]
            ended = entry["state"]["terminated"]
            assert (ended["exitCode"], ended["reason"]) == (137, "ContainerStatusUnknown")
            assert ended["startedAt"] == before["state"]["running"]["startedAt"]
            cluster.api.change(paths.pod("default", "a"), {"metadata": {"finalizers": []}})
            await cluster.until("gone")
            await nothing_is_left(cluster, node)

    told(tale, tmp_path)
