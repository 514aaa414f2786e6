"""How the node goes on after its process ended: by signal, by `kill -9`, or for a long time."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from gp4u.kube import paths
from gp4u.model import Demand, Requirements, Workload
from gp4u.rentals.rental import RentalState
from gp4u.sim.faults import Rule
from tests.kube_api import Cut
from tests.unit.kubelet.cluster import Cluster, by, gpu_pod, told, with_policy


def restarts(cluster: Cluster, name: str = "a") -> int:
    """Restart count of a pod's first container."""
    count: int = cluster.status(name)["containerStatuses"][0]["restartCount"]
    return count


def test_a_rolling_update_releases_nothing(tmp_path: Path) -> None:
    """P4: the next process finds pods and machines as they were, and says nothing new of them."""

    async def tale(cluster: Cluster) -> None:
        async with cluster.node():
            cluster.create("a")
            await cluster.until_ready("a")
        before = cluster.status("a")
        await asyncio.sleep(30)
        assert len(cluster.market.live) == 1
        async with cluster.node(seed=2) as node:
            await asyncio.sleep(120)
            assert cluster.is_ready("a")
            assert cluster.status("a")["containerStatuses"] == before["containerStatuses"]
            assert len(await node.rentals()) == 1
            cluster.delete("a")
            await cluster.until("gone")
            await cluster.until_nothing_costs()

    told(tale, tmp_path)


def test_a_rolling_update_takes_no_pod_out_of_its_services(tmp_path: Path) -> None:
    """Before what the pod names was read again, the next process knows nothing better of it."""
    config = {"kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"MODE": "fast"}}
    service = {
        "kind": "Service",
        "metadata": {"name": "s", "annotations": {"gp4u.io/pod": "a"}},
        "spec": {"ports": [{"port": 80, "targetPort": 8000}], "clusterIP": "10.96.0.9"},
    }

    async def tale(cluster: Cluster) -> None:
        cluster.api.add(config)
        cluster.api.add(service)
        async with cluster.node():
            cluster.create("a", containers=[{"envFrom": [{"configMapRef": {"name": "c"}}]}])
            await cluster.until_ready("a")
            await cluster.until_true(lambda: bool(cluster.api.all("endpointslices")), within_s=10)
            await asyncio.sleep(30)
        (before,) = cluster.api.all("endpointslices")
        cluster.api.calls.clear()
        cluster.api.fail("get", "configmaps/c", 503, times=3)
        async with cluster.node(seed=2):
            await asyncio.sleep(60)
        assert cluster.api.told("patch", "pods/a") == []
        assert cluster.api.all("endpointslices") == [before]

    told(tale, tmp_path)


@pytest.mark.parametrize("after_s", [0.3, 1.0, 3.0, 6.0, 9.0, 12.0, 20.0])
def test_a_process_killed_in_mid_rent_leaves_one_machine(tmp_path: Path, after_s: float) -> None:
    """P1: whatever was on its way, the next process ends with exactly one machine for the pod."""

    async def tale(cluster: Cluster) -> None:
        async with cluster.node() as node:
            cluster.create("a")
            await asyncio.sleep(after_s)
            await node.kill()
        async with cluster.node(seed=2) as node:
            await cluster.until_ready("a", within_s=400)
            await asyncio.sleep(200)
            assert cluster.is_ready("a")
            assert len(cluster.market.live) == 1
            live = [r for r in await node.rentals() if r.is_live]
            assert len(live) == 1
            cluster.delete("a")
            await cluster.until("gone")
            await cluster.until_nothing_costs()

    told(tale, tmp_path, rules=[Rule(kind="latency", endpoint="create", seconds=5.0)])


def test_pods_that_went_while_nobody_was_there_cost_nothing_for_long(tmp_path: Path) -> None:
    """K5: their rentals are found in the ledger, looked at twice, and asked for by name."""

    async def tale(cluster: Cluster) -> None:
        async with cluster.node():
            cluster.create("a")
            cluster.create("b")
            await cluster.until_ready("a", "b")
        cluster.delete("a", grace_s=0)
        await asyncio.sleep(10)
        async with cluster.node(seed=2) as node:
            await cluster.until_true(lambda: len(cluster.market.live) == 1, within_s=120)
            await asyncio.sleep(60)
            assert cluster.is_ready("b")
            assert [r.reason for r in await node.rentals() if not r.is_live] == ["pod_gone"]

    told(tale, tmp_path)


def test_a_deletion_that_began_while_nobody_was_there_is_finished(tmp_path: Path) -> None:
    """Nobody else removes a pod's object from a node."""

    async def tale(cluster: Cluster) -> None:
        async with cluster.node():
            cluster.create("a")
            await cluster.until_ready("a")
        cluster.delete("a")
        await asyncio.sleep(60)
        async with cluster.node(seed=2):
            await cluster.until("gone", within_s=60)
            await cluster.until_nothing_costs()

    told(tale, tmp_path)


def test_rentals_of_another_node_are_left_alone(tmp_path: Path) -> None:
    """Several nodes, and several clusters, may share a ledger; each knows its own pods only."""

    async def tale(cluster: Cluster) -> None:
        async with cluster.node() as node:
            demand = Demand(requirements=Requirements(gpu_models=("RTX 3090",), disk_gib=16))
            rental = await node.app.broker.rent(
                "pod:00000000-0000-4000-8000-00000000abcd", demand, Workload(image="busybox")
            )
            place = "another-cluster/vast-gpu-node-1 default/x"
            await node.app.ledger.note(rental.key, "pod", place, at=node.app.clock.now())
            await asyncio.sleep(600)
            assert len(cluster.market.live) == 1

    told(tale, tmp_path)


def test_a_finished_pod_is_never_run_again(tmp_path: Path) -> None:
    """K8: neither by a restart of ours, nor by the watch that begins anew."""

    async def tale(cluster: Cluster) -> None:
        async with cluster.node():
            cluster.create("a", restart="Never", owner=by("Job"))
            await cluster.until_ready("a")
            cluster.market.end(cluster.market.live[0], 0)
            await cluster.until("Succeeded", within_s=40)
        async with cluster.node(seed=2) as node:
            await asyncio.sleep(100)
            cluster.api.cut(Cut.GONE)
            await asyncio.sleep(100)
            assert cluster.status("a")["phase"] == "Succeeded"
            assert len(await node.rentals()) == 1

    told(tale, tmp_path)


def test_a_run_that_ended_while_nobody_was_there_counts(tmp_path: Path) -> None:
    """The market still knows the exit code, and the Job wants it."""

    async def tale(cluster: Cluster) -> None:
        async with cluster.node():
            cluster.create("a", restart="Never", owner=by("Job"))
            await cluster.until_ready("a")
        cluster.market.end(cluster.market.live[0], 7)
        await asyncio.sleep(300)
        async with cluster.node(seed=2) as node:
            await cluster.until("Failed", within_s=60)
            assert cluster.state("a")["terminated"]["exitCode"] == 7
            assert len(await node.rentals()) == 1

    told(tale, tmp_path)


def test_an_end_that_was_not_told_before_the_process_died_is_told_by_the_next(
    tmp_path: Path,
) -> None:
    """The machine went first; why it went is in the ledger, with the exit code."""

    async def tale(cluster: Cluster) -> None:
        async with cluster.node() as node:
            cluster.create("a", restart="Never", owner=by("Job"))
            await cluster.until_ready("a")
            cluster.api.fail("patch", "pods/a/status", 503)
            cluster.market.end(cluster.market.live[0], 5)
            await cluster.until_nothing_costs(within_s=120)
            await node.kill()
        cluster.api.faults.clear()
        assert cluster.status("a")["phase"] == "Running"
        async with cluster.node(seed=2) as node:
            await cluster.until("Failed", within_s=60)
            assert cluster.state("a")["terminated"]["exitCode"] == 5
            assert len(await node.rentals()) == 1

    told(tale, tmp_path)


def test_a_running_pod_is_not_failed_for_what_the_operator_changed(tmp_path: Path) -> None:
    """What was admitted goes on; the next pod is judged by the new rules."""

    async def tale(cluster: Cluster) -> None:
        async with cluster.node():
            cluster.create("a")
            await cluster.until_ready("a")
        cluster.policy = type(cluster.policy)(
            name=cluster.policy.name, address=cluster.policy.address, max_gpus=0
        )
        async with cluster.node(seed=2):
            cluster.create("b")
            await cluster.until("Failed", name="b", within_s=60)
            await asyncio.sleep(60)
            assert cluster.is_ready("a")
            assert restarts(cluster) == 0

    told(tale, tmp_path)


@pytest.mark.parametrize("change", ["the node allows it no more", "the pod asks for one machine"])
def test_a_split_pod_keeps_its_machines_whatever_was_changed(change: str, tmp_path: Path) -> None:
    """They are paid for and serve; how the next pod is placed is another matter."""
    two = [{"name": "one"}, {"name": "two", "ports": [{"containerPort": 9000}]}]
    asked = {"gp4u.io/containers": "split", "gp4u.io/max-price": "9"}

    async def tale(cluster: Cluster) -> None:
        with_policy(cluster, allow_split=True)
        async with cluster.node() as node:
            cluster.create("a", containers=two, annotations=asked)
            await cluster.until_ready("a")
            before = {rental.key for rental in await node.rentals()}
        if change == "the node allows it no more":
            with_policy(cluster, allow_split=False, max_price_usd_per_hour=5.0)
        else:
            native = {"metadata": {"annotations": {"gp4u.io/containers": "native"}}}
            cluster.api.change(paths.pod("default", "a"), native)
        async with cluster.node(seed=2) as node:
            await asyncio.sleep(120)
            assert cluster.is_ready("a")
            assert {rental.key for rental in await node.rentals()} == before
            assert len(cluster.market.live) == 2
            cluster.delete("a")
            await cluster.until("gone")
            await cluster.until_nothing_costs()

    told(tale, tmp_path)


def test_a_rental_that_was_not_known_is_taken_over(tmp_path: Path) -> None:
    """The ledger allows one live rental per pod; whoever made it, it serves."""

    async def tale(cluster: Cluster) -> None:
        async with cluster.node() as node:
            uid = "99999999-9999-4999-8999-999999999999"
            demand = Demand(requirements=Requirements(gpu_models=("RTX 3090",), disk_gib=16))
            await node.app.broker.rent(f"pod:{uid}", demand, Workload(image="busybox"), wait=False)
            body = gpu_pod("a")
            body["metadata"]["uid"] = uid
            cluster.api.add(body)
            await cluster.until_ready("a")
            assert [r.state for r in await node.rentals()] == [RentalState.RUNNING]

    told(tale, tmp_path)
