"""How a pod comes to run, or is told why it does not, over a fake API server and a market."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from gp4u.kube import paths
from gp4u.model import Demand, Requirements
from gp4u.rentals.rental import RentalState
from gp4u.sim.faults import Rule
from tests.unit.kubelet.cluster import Cluster, by, gpu_pod, told, with_policy


def test_a_pod_becomes_a_machine_and_goes_with_it(tmp_path: Path) -> None:
    """The one thing that a virtual node is for; in the end nothing is left anywhere."""

    async def tale(cluster: Cluster) -> None:
        async with cluster.node() as node:
            cluster.create("a")
            await cluster.until_ready("a")
            assert cluster.status("a")["phase"] == "Running"
            assert len(cluster.market.live) == 1
            cluster.delete("a")
            await cluster.until("gone")
            await cluster.until_nothing_costs()
            await cluster.until_true(lambda: not node.controller.all())
            assert cluster.market.rents() == 1
            assert [r.state for r in await node.rentals()] in (
                [RentalState.RELEASING],
                [RentalState.RELEASED],
            )

    told(tale, tmp_path)


def test_a_pod_is_acknowledged_before_anything_is_rented(tmp_path: Path) -> None:
    """Users and controllers look at the status first; a silent pod is the oldest complaint."""

    async def tale(cluster: Cluster) -> None:
        async with cluster.node():
            cluster.create("a")
            await cluster.until_true(lambda: "startTime" in cluster.status("a"), within_s=2)
            status = cluster.status("a")
            assert status["phase"] == "Pending"
            assert status["hostIP"] == "10.0.0.5"
            assert cluster.state("a")["waiting"]["reason"] == "ContainerCreating"
            started = status["startTime"]
            await cluster.until_ready("a")
            assert cluster.status("a")["startTime"] == started

    told(tale, tmp_path, boot_s=(30.0, 30.0))


def test_describe_shows_why_this_machine(tmp_path: Path) -> None:
    """The Event has market, GPU, price, place, score and its parts, and who came next."""

    async def tale(cluster: Cluster) -> None:
        async with cluster.node():
            cluster.create("a")
            await cluster.until_ready("a")
            await asyncio.sleep(5)
            (text,) = cluster.messages("a", "OfferSelected")
            for part in ("RTX 3090 on vastai", "/h", "score 0.", "price 0.", "next: offer", "fit"):
                assert part in text
            reasons = cluster.reasons("a")
            assert {"OfferSelected", "InstanceRenting", "Pulling", "Started"} <= set(reasons)

    told(tale, tmp_path)


def test_a_pod_that_can_never_run_is_refused_before_money(tmp_path: Path) -> None:
    """K13: Failed with the reason in words, a Warning, and no call to any market."""

    async def tale(cluster: Cluster) -> None:
        async with cluster.node() as node:
            cluster.create("a", volumes=[{"name": "host", "hostPath": {"path": "/"}}])
            await cluster.until("Failed", within_s=10)
            status = cluster.status("a")
            assert status["message"].startswith("Pod was rejected: ")
            await asyncio.sleep(60)
            assert status["reason"] in cluster.reasons("a")
            assert await node.rentals() == []

    told(tale, tmp_path)


def test_nothing_is_rented_before_what_the_pod_names_exists(tmp_path: Path) -> None:
    """K14: a missing ConfigMap costs a wait and no money; once it is there the pod runs."""
    needs = {"env": [{"name": "X", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "x"}}}]}

    async def tale(cluster: Cluster) -> None:
        async with cluster.node() as node:
            cluster.create("a", containers=[needs])
            await asyncio.sleep(120)
            assert cluster.status("a")["phase"] == "Pending"
            assert cluster.state("a")["waiting"]["reason"] == "CreateContainerConfigError"
            assert await node.rentals() == []
            cluster.api.add(
                {"kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"x": "value"}}
            )
            await cluster.until_ready("a")
            (program,) = cluster.market.programs.running.values()
            assert program.launch.env["X"] == "value"

    told(tale, tmp_path)


def test_a_pod_without_an_offer_waits_and_says_why(tmp_path: Path) -> None:
    """L4: Pending with the reason and what would have to give way; it is looked for again."""

    async def tale(cluster: Cluster) -> None:
        async with cluster.node() as node:
            cluster.create("a", annotations={"gp4u.io/max-price": "0.0001"})
            await asyncio.sleep(200)
            waiting = cluster.state("a")["waiting"]
            assert waiting["reason"] == "NoOffer"
            assert "price <= $0.0001/h alone keeps out" in waiting["message"]
            assert cluster.status("a")["phase"] == "Pending"
            assert "NoOffer" in cluster.reasons("a")
            assert node.controller.lane.asked >= 4
            assert await node.rentals() == []

    told(tale, tmp_path)


def test_a_waiting_pod_that_asks_for_less_is_rented_for(tmp_path: Path) -> None:
    """Its Event says which bound to loosen, and `kubectl annotate` does that."""

    async def tale(cluster: Cluster) -> None:
        async with cluster.node() as node:
            cluster.create("a", annotations={"gp4u.io/max-price": "0.0001"})
            await cluster.until_true(lambda: "NoOffer" in cluster.reasons("a"))
            asked = {"metadata": {"annotations": {"gp4u.io/max-price": "5"}}}
            cluster.api.change(paths.pod("default", "a"), asked)
            await cluster.until_ready("a")
            asked = {"metadata": {"annotations": {"gp4u.io/max-price": "nonsense"}}}
            cluster.api.change(paths.pod("default", "a"), asked)
            await asyncio.sleep(60)
            assert cluster.is_ready("a")
            assert len(await node.rentals()) == 1

    told(tale, tmp_path)


def test_a_pod_whose_gpus_no_machine_has_is_told_what_would_do(tmp_path: Path) -> None:
    """L4: the market leaves such machines out of its answer, so there is nothing to explain by."""

    async def tale(cluster: Cluster) -> None:
        async with cluster.node():
            many = {"resources": {"limits": {"nvidia.com/gpu": "64"}}}
            cluster.create("a", containers=[many])
            await asyncio.sleep(60)
            (text,) = set(cluster.messages("a", "NoOffer"))
            assert "gpu_count == 64 alone keeps out" in text, text

    told(tale, tmp_path)


def test_a_pod_that_waits_too_long_for_an_offer_fails_if_it_says_so(tmp_path: Path) -> None:
    """Somebody else may place it elsewhere; without the annotation it would wait for ever."""
    wish = {"gp4u.io/max-price": "0.0001", "gp4u.io/max-wait": "90s"}

    async def tale(cluster: Cluster) -> None:
        async with cluster.node():
            cluster.create("a", annotations=wish)
            await asyncio.sleep(80)
            assert cluster.status("a")["phase"] == "Pending"
            await cluster.until("Failed", within_s=30)
            assert cluster.status("a")["reason"] == "NoOffer"

    told(tale, tmp_path)


def test_a_pod_over_the_budget_waits_until_there_is_room(tmp_path: Path) -> None:
    """M2: the operator's budget is no failure of the pod's; when another pod goes, it runs."""

    async def tale(cluster: Cluster) -> None:
        async with cluster.node(GP4U_MAX_RENTALS="1"):
            cluster.create("a")
            await cluster.until_ready("a")
            cluster.create("b")
            await asyncio.sleep(60)
            assert cluster.state("b")["waiting"]["reason"] == "BudgetExceeded"
            assert "BudgetExceeded" in cluster.reasons("b")
            cluster.delete("a")
            await cluster.until_ready("b")

    told(tale, tmp_path)


def test_pods_of_daemon_sets_never_rent(tmp_path: Path) -> None:
    """Whatever tolerates everything lands on every node; failing it would make it come back."""

    async def tale(cluster: Cluster) -> None:
        async with cluster.node() as node:
            cluster.create("a", owner=by("DaemonSet"))
            await asyncio.sleep(300)
            assert cluster.status("a")["phase"] == "Pending"
            assert cluster.reasons("a") == ["NotRunHere"]
            assert await node.rentals() == []
            cluster.delete("a")
            await cluster.until("gone", within_s=10)

    told(tale, tmp_path)


def test_a_machine_that_cannot_start_is_not_tried_again(tmp_path: Path) -> None:
    """H28, K16: the next one is rented after a wait, on another machine; the pod stays Pending."""
    broken = Rule(kind="oci_error", endpoint="create", calls=(1,))

    async def tale(cluster: Cluster) -> None:
        async with cluster.node() as node:
            cluster.create("a", restart="Never")
            await cluster.until_true(lambda: "InstanceFailed" in cluster.reasons("a"))
            assert cluster.status("a")["phase"] == "Pending"
            await cluster.until_ready("a")
            first, second = await node.rentals()
            assert first.machine_id != second.machine_id
            assert (second.intended_at - first.releasing_at).total_seconds() >= 9  # type: ignore[operator] # it was released
            assert cluster.status("a")["containerStatuses"][0]["restartCount"] == 0

    told(tale, tmp_path, rules=[broken])


def test_an_image_that_cannot_be_pulled_says_so(tmp_path: Path) -> None:
    """`ImagePullBackOff` is what people look for first, with the market's words in it."""
    broken = Rule(kind="pull_error", endpoint="create")

    async def tale(cluster: Cluster) -> None:
        async with cluster.node() as node:
            cluster.create("a")
            await cluster.until_true(
                lambda: cluster.state("a").get("waiting", {}).get("reason") == "ImagePullBackOff",
                within_s=1800,
            )
            await asyncio.sleep(3)
            assert "Failed" in cluster.reasons("a")
            assert "busybox" in cluster.state("a")["waiting"]["message"]
            before = len(await node.rentals())
            await asyncio.sleep(3600)
            assert len(await node.rentals()) - before <= 8, "it tries too often"

    told(tale, tmp_path, rules=[broken])


def test_many_pods_rent_a_few_at_a_time_and_namespaces_take_turns(tmp_path: Path) -> None:
    """K15: who comes second must not wait behind somebody's hundred pods."""

    slow = Rule(kind="latency", endpoint="create", seconds=8.0)

    async def tale(cluster: Cluster) -> None:
        with_policy(cluster, defaults=Demand())
        async with cluster.node() as node:
            for number in range(30):
                cluster.create(f"many-{number}")
            await asyncio.sleep(1)
            assert node.controller.lane.waiting > 20
            other = cluster.api.add(gpu_pod("one", namespace="other"))["metadata"]["uid"]
            while f"pod:{other}" not in [r.owner for r in await node.rentals()]:
                assert node.controller.lane.under_way <= 8
                await asyncio.sleep(1)
            assert len({r.owner for r in await node.rentals()}) <= 17, "it waited behind others"

    told(tale, tmp_path, offers=400, rules=[slow])


def test_deleting_does_not_wait_behind_renting(tmp_path: Path) -> None:
    """A burst of new pods must not keep money running for those that go."""
    slow = Rule(kind="latency", endpoint="create", seconds=50.0, calls=tuple(range(2, 40)))

    async def tale(cluster: Cluster) -> None:
        async with cluster.node():
            cluster.create("a")
            await cluster.until_ready("a")
            for number in range(12):
                cluster.create(f"b-{number}")
            await asyncio.sleep(5)
            cluster.delete("a")
            await cluster.until("gone", within_s=15)

    told(tale, tmp_path, rules=[slow])


def test_a_changed_image_is_told_where_the_machine_may_not_be_replaced(tmp_path: Path) -> None:
    """A kubelet would restart the container; here that would be another machine's money."""

    async def tale(cluster: Cluster) -> None:
        async with cluster.node() as node:
            cluster.create("a", owner=by("ReplicaSet"))
            await cluster.until_ready("a")
            pod = cluster.pod("a")
            assert pod is not None
            pod["spec"]["containers"][0]["image"] = "busybox:2"
            cluster.api.change(paths.pod("default", "a"), {"spec": pod["spec"]})
            await asyncio.sleep(60)
            assert cluster.reasons("a").count("ImageChangeIgnored") == 1
            assert len(await node.rentals()) == 1

    told(tale, tmp_path)


def test_a_changed_image_gets_another_machine_where_that_is_allowed(tmp_path: Path) -> None:
    """With `on-loss: rerent` the pod is one that may move."""

    async def tale(cluster: Cluster) -> None:
        async with cluster.node() as node:
            cluster.create("a", annotations={"gp4u.io/on-loss": "rerent"})
            await cluster.until_ready("a")
            pod = cluster.pod("a")
            assert pod is not None
            pod["spec"]["containers"][0]["image"] = "busybox:2"
            cluster.api.change(paths.pod("default", "a"), {"spec": pod["spec"]})
            await cluster.until_true(lambda: not cluster.is_ready("a"))
            await cluster.until_ready("a")
            first, second = [r for r in await node.rentals() if r.instance_id is not None]
            assert (first.reason, second.workload.image) == ("pod_replaced", "busybox:2")
            assert cluster.status("a")["containerStatuses"][0]["restartCount"] == 1

    told(tale, tmp_path)


def change_image(cluster: Cluster, name: str, image: str) -> None:
    """Have a pod run another image, as a user does."""
    pod = cluster.pod(name)
    assert pod is not None
    pod["spec"]["containers"][0]["image"] = image
    cluster.api.change(paths.pod("default", name), {"spec": pod["spec"]})


def test_an_image_changed_in_mid_rent_costs_one_more_machine_and_no_third(tmp_path: Path) -> None:
    """The first one runs the old image, so it is let go as soon as it is known."""
    slow = Rule(kind="latency", endpoint="create", seconds=20.0)

    async def tale(cluster: Cluster) -> None:
        async with cluster.node() as node:
            cluster.create("a")
            await asyncio.sleep(5)
            (rental,) = await node.rentals()
            assert rental.state is RentalState.INTENDED
            change_image(cluster, "a", "busybox:2")
            await cluster.until_ready("a")
            await asyncio.sleep(60)
            first, second = await node.rentals()
            assert (first.reason, second.workload.image) == ("pod_replaced", "busybox:2")
            assert "RentFailed" not in cluster.reasons("a")

    told(tale, tmp_path, rules=[slow])


@pytest.mark.parametrize("owner", [None, by("ReplicaSet")])
def test_an_image_changed_before_its_turn_to_rent_is_the_one_that_runs(
    owner: dict[str, Any] | None, tmp_path: Path
) -> None:
    """Nothing was sent for the pod yet, so nothing is replaced."""
    slow = Rule(kind="latency", endpoint="create", seconds=20.0)

    async def tale(cluster: Cluster) -> None:
        with_policy(cluster, defaults=Demand(requirements=Requirements(disk_gib=16)))
        async with cluster.node() as node:
            for number in range(10):
                cluster.create(f"b-{number}")
            await asyncio.sleep(2)
            cluster.create("a", owner=owner)
            await asyncio.sleep(1)
            change_image(cluster, "a", "busybox:2")
            await cluster.until_ready("a")
            uid = (cluster.pod("a") or {})["metadata"]["uid"]
            found = [r.workload.image for r in await node.rentals() if r.owner == f"pod:{uid}"]
            assert found == ["busybox:2"]
            assert not {"Killing", "ImageChangeIgnored"} & set(cluster.reasons("a"))

    told(tale, tmp_path, rules=[slow], offers=300)


def test_a_split_pod_has_a_machine_for_each_container(tmp_path: Path) -> None:
    """Each is rented, ends and is released by itself; the pod is Ready when all are."""
    two = [{"name": "one"}, {"name": "two", "ports": [{"containerPort": 9000}]}]
    split = {"gp4u.io/containers": "split"}

    async def tale(cluster: Cluster) -> None:
        with_policy(cluster, allow_split=True)
        async with cluster.node() as node:
            cluster.create("a", containers=two, annotations=split, restart="Never")
            await cluster.until_ready("a")
            uid = (cluster.pod("a") or {})["metadata"]["uid"]
            first, second = sorted(await node.rentals(), key=lambda r: r.owner)
            assert (first.owner, second.owner) == (f"pod:{uid}/one", f"pod:{uid}/two")
            by_id = {str(c.id): c for c in cluster.market.live}
            cluster.market.end(by_id[first.instance_id or ""], 0)
            await cluster.until_true(lambda: len(cluster.market.live) == 1, within_s=60)
            assert cluster.status("a")["phase"] == "Running"
            cluster.market.end(by_id[second.instance_id or ""], 0)
            await cluster.until("Succeeded", within_s=60)
            await cluster.until_nothing_costs(within_s=30)

    told(tale, tmp_path)
