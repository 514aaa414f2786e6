"""How pods end: by themselves, by a deadline, or by losing their machine."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from pathlib import Path

import pytest

from gp4u.rentals.rental import RentalState
from gp4u.sim.faults import Rule
from tests.unit.kubelet.cluster import Cluster, by, told, with_policy


def terminated(cluster: Cluster, name: str = "a") -> tuple[int, str]:
    """Exit code and reason of a pod's first container."""
    state = cluster.state(name)["terminated"]
    return state["exitCode"], state["reason"]


def test_a_job_succeeds_and_its_machine_goes_at_once(tmp_path: Path) -> None:
    """What has finished must not cost; its log is kept from before the machine went."""

    async def tale(cluster: Cluster) -> None:
        async with cluster.node() as node:
            cluster.create("a", restart="Never", owner=by("Job"))
            await cluster.until_ready("a")
            cluster.market.end(cluster.market.live[0], 0)
            await cluster.until("Succeeded", within_s=40)
            assert terminated(cluster) == (0, "Completed")
            await cluster.until_nothing_costs(within_s=20)
            held = node.controller.find("default", "a")
            assert held is not None
            await asyncio.sleep(600)
            assert cluster.market.rents() == 1, "a finished pod was rented for again"
            assert cluster.pod("a") is not None

    told(tale, tmp_path)


def test_a_job_fails_with_the_exit_code_of_its_workload(tmp_path: Path) -> None:
    """`podFailurePolicy` reads it."""

    async def tale(cluster: Cluster) -> None:
        async with cluster.node():
            cluster.create("a", restart="Never")
            await cluster.until_ready("a")
            cluster.market.end(cluster.market.live[0], 42)
            await cluster.until("Failed", within_s=40)
            assert terminated(cluster) == (42, "Error")
            await cluster.until_nothing_costs(within_s=20)

    told(tale, tmp_path)


def test_a_job_that_ends_before_anybody_looks_still_ends(tmp_path: Path) -> None:
    """A run can be shorter than the time between two listings."""

    async def tale(cluster: Cluster) -> None:
        cluster.market.programs.code = 0
        async with cluster.node():
            cluster.create("a", restart="Never")
            await cluster.until("Succeeded", within_s=120)
            assert terminated(cluster) == (0, "Completed")
            await cluster.until_nothing_costs(within_s=20)

    told(tale, tmp_path)


def test_a_workload_that_fails_is_started_again_in_its_machine(tmp_path: Path) -> None:
    """OnFailure and Always restart in place: same pod, same machine, one more on the count."""

    async def tale(cluster: Cluster) -> None:
        async with cluster.node() as node:
            cluster.create("a", restart="OnFailure")
            await cluster.until_ready("a")
            cluster.market.end(cluster.market.live[0], 1)
            await cluster.until_true(
                lambda: cluster.state("a").get("waiting", {}).get("reason") == "CrashLoopBackOff",
                within_s=40,
            )
            assert cluster.status("a")["phase"] == "Running", "a pod that ran is not Pending again"
            entry = cluster.status("a")["containerStatuses"][0]
            assert entry["lastState"]["terminated"]["exitCode"] == 1
            await cluster.until_ready("a")
            entry = cluster.status("a")["containerStatuses"][0]
            assert entry["restartCount"] == 1
            assert len(await node.rentals()) == 1
            cluster.market.end(cluster.market.live[0], 0)
            await cluster.until("Succeeded", within_s=60)

    told(tale, tmp_path)


def test_a_crash_loop_costs_ever_less(tmp_path: Path) -> None:
    """The back-off doubles up to five minutes, and a machine that waits for long is given back."""

    async def tale(cluster: Cluster) -> None:
        cluster.market.programs.code = 1
        async with cluster.node():
            cluster.create("a")
            await asyncio.sleep(3600)
            entry = cluster.status("a")["containerStatuses"][0]
            assert 5 <= entry["restartCount"] <= 20
            assert cluster.status("a")["phase"] == "Running"
            assert "BackOff" in cluster.reasons("a")
            cluster.delete("a")
            await cluster.until("gone", within_s=60)
            await cluster.until_nothing_costs()

    told(tale, tmp_path)


def test_a_pod_ends_at_its_deadline(tmp_path: Path) -> None:
    """activeDeadlineSeconds counts from the start, the boot of the machine included."""

    async def tale(cluster: Cluster) -> None:
        async with cluster.node():
            cluster.create("a", activeDeadlineSeconds=60)
            await cluster.until_ready("a")
            await cluster.until("Failed", within_s=62)
            assert cluster.status("a")["reason"] == "DeadlineExceeded"
            assert terminated(cluster)[0] != 0
            await cluster.until_nothing_costs(within_s=30)

    told(tale, tmp_path)


def test_a_pod_ends_with_its_lifetime(tmp_path: Path) -> None:
    """M7: what was forgotten ends by itself."""

    async def tale(cluster: Cluster) -> None:
        async with cluster.node():
            cluster.create("a", annotations={"gp4u.io/max-lifetime": "10m"})
            await cluster.until_ready("a")
            await asyncio.sleep(540)
            assert cluster.status("a")["phase"] == "Running"
            await cluster.until("Failed", within_s=70)
            assert cluster.status("a")["reason"] == "MaxLifetime"
            await cluster.until_nothing_costs(within_s=30)

    told(tale, tmp_path)


def test_a_lost_machine_fails_the_pod_of_a_controller(tmp_path: Path) -> None:
    """H30: what made the pod makes another one; the condition says that the pod is not to blame."""

    async def tale(cluster: Cluster) -> None:
        async with cluster.node() as node:
            cluster.create("a", owner=by("ReplicaSet"))
            await cluster.until_ready("a")
            await cluster.market.world.destroy(cluster.market.live[0])
            await cluster.until("Failed", within_s=120)
            status = cluster.status("a")
            assert status["reason"] == "InstanceLost"
            targets = [c for c in status["conditions"] if c["type"] == "DisruptionTarget"]
            assert (targets[0]["status"], targets[0]["reason"]) == ("True", "TerminationByKubelet")
            assert "InstanceLost" in cluster.reasons("a")
            await asyncio.sleep(120)
            assert len(await node.rentals()) == 1

    told(tale, tmp_path)


def test_a_bare_pod_gets_another_machine(tmp_path: Path) -> None:
    """Nobody else would bring it back; its restart is counted, and it is never silently moved."""

    async def tale(cluster: Cluster) -> None:
        async with cluster.node() as node:
            cluster.create("a")
            await cluster.until_ready("a")
            await cluster.market.world.destroy(cluster.market.live[0])
            await cluster.until_true(lambda: not cluster.is_ready("a"), within_s=120)
            await cluster.until_ready("a")
            entry = cluster.status("a")["containerStatuses"][0]
            assert entry["restartCount"] == 1
            assert entry["lastState"]["terminated"]["reason"] == "InstanceLost"
            assert "InstanceLost" in cluster.reasons("a")
            states = [r.state for r in await node.rentals()]
            assert states == [RentalState.RELEASED, RentalState.RUNNING]

    told(tale, tmp_path)


def test_another_machine_is_given_what_the_pod_names_by_then(tmp_path: Path) -> None:
    """A kubelet reads it at each start; a token of an hour ago would open nothing any more."""
    path = "/api/v1/namespaces/default/configmaps/c"
    config = {"kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"MODE": "old"}}

    async def tale(cluster: Cluster) -> None:
        cluster.api.add(config)
        async with cluster.node():
            cluster.create("a", containers=[{"envFrom": [{"configMapRef": {"name": "c"}}]}])
            await cluster.until_ready("a")
            cluster.api.change(path, {"data": {"MODE": "new"}})
            await cluster.market.world.destroy(cluster.market.live[0])
            await cluster.until_true(lambda: not cluster.is_ready("a"), within_s=120)
            await cluster.until_ready("a")
            launched = [each.launch for each in cluster.market.programs.running.values()]
            assert [launch.env["MODE"] for launch in launched] == ["old", "new"]

    told(tale, tmp_path)


@pytest.mark.parametrize("policy", ["Never", "OnFailure"])
def test_a_job_that_may_move_gets_another_machine(policy: str, tmp_path: Path) -> None:
    """Its run did not end, it was cut off: the pod has not failed by that."""

    async def tale(cluster: Cluster) -> None:
        async with cluster.node():
            rerent = {"gp4u.io/on-loss": "rerent"}
            cluster.create("a", restart=policy, owner=by("Job"), annotations=rerent)
            await cluster.until_ready("a")
            await cluster.market.world.destroy(cluster.market.live[0])
            await cluster.until_true(lambda: not cluster.is_ready("a"), within_s=120)
            await cluster.until_ready("a")
            assert cluster.status("a")["phase"] == "Running"
            cluster.market.end(cluster.market.live[0], 0)
            await cluster.until("Succeeded", within_s=60)

    told(tale, tmp_path)


def test_an_outbid_pod_is_preempted(tmp_path: Path) -> None:
    """M4: the stopped contract still costs its disk, so it is released; the reason is told."""

    async def tale(cluster: Cluster) -> None:
        async with cluster.node():
            cluster.create("a", owner=by("Job"), annotations={"gp4u.io/interruptible": "true"})
            await cluster.until_ready("a")
            cluster.market.world.script(cluster.market.live[0], "outbid")
            await cluster.until("Failed", within_s=60)
            assert cluster.status("a")["reason"] == "Preempted"
            await cluster.until_nothing_costs(within_s=60)

    told(tale, tmp_path)


def test_readiness_follows_a_lost_contact_at_once_and_the_machine_is_kept(tmp_path: Path) -> None:
    """H29: a host that flaps keeps its pod; traffic does not go there meanwhile."""

    async def tale(cluster: Cluster) -> None:
        async with cluster.node() as node:
            cluster.create("a")
            await cluster.until_ready("a")
            machine = cluster.market.live[0].machine.machine_id
            cluster.market.world.lose_host(machine, for_s=120)
            await cluster.until_true(lambda: not cluster.is_ready("a"), within_s=40)
            assert cluster.status("a")["phase"] == "Running"
            await cluster.until_ready("a")
            assert len(await node.rentals()) == 1
            assert cluster.status("a")["containerStatuses"][0]["restartCount"] == 0

    told(tale, tmp_path)


def test_what_holds_again_before_it_was_told_otherwise_is_told_at_once(tmp_path: Path) -> None:
    """The write that is under way says what held before; nobody should go by it for long."""

    async def tale(cluster: Cluster) -> None:
        async with cluster.node():
            cluster.create("a")
            await cluster.until_ready("a")
            await asyncio.sleep(40)
            cluster.api.latency_s = 15.0
            cluster.market.world.lose_host(cluster.market.live[0].machine.machine_id, for_s=4)
            await cluster.until_true(lambda: not cluster.is_ready("a"), within_s=20)
            await cluster.until_ready("a", within_s=17)

    told(tale, tmp_path)


def test_a_person_who_releases_a_pods_machine_fails_the_pod(tmp_path: Path) -> None:
    """`gp4u release` means that it shall end, not that another one is rented."""

    async def tale(cluster: Cluster) -> None:
        async with cluster.node() as node:
            cluster.create("a")
            await cluster.until_ready("a")
            (rental,) = await node.rentals()
            await node.app.broker.release(rental.key)
            await cluster.until("Failed", within_s=60)
            assert cluster.status("a")["reason"] == "InstanceReleased"
            await asyncio.sleep(120)
            assert len(await node.rentals()) == 1

    told(tale, tmp_path)


def test_a_person_who_releases_it_in_mid_rent_fails_the_pod_too(tmp_path: Path) -> None:
    """Whoever did that did not want another one instead."""
    slow = Rule(kind="latency", endpoint="create", seconds=20.0)

    async def tale(cluster: Cluster) -> None:
        async with cluster.node() as node:
            cluster.create("a")
            await asyncio.sleep(5)
            (rental,) = await node.rentals()
            assert rental.state is RentalState.INTENDED
            await node.app.broker.call_off(rental.key, reason="asked by a person")
            await cluster.until("Failed", within_s=60)
            assert cluster.status("a")["reason"] == "InstanceReleased"
            await cluster.until_nothing_costs(within_s=120)
            assert len(await node.rentals()) == 1

    told(tale, tmp_path, rules=[slow])


def test_owners_of_failing_pods_have_to_wait(tmp_path: Path) -> None:
    """K16: a controller that makes a new pod for each that fails must not rent one a minute."""

    async def tale(cluster: Cluster) -> None:
        cluster.market.programs.code = 1
        async with cluster.node() as node:
            for number in range(8):
                name = f"a-{number}"
                cluster.create(name, restart="Never", owner=by("ReplicaSet"))
                await cluster.until("Failed", name=name, within_s=3000)
            *_, before, last = await node.rentals()
            assert (last.intended_at - before.intended_at).total_seconds() >= 640

    told(tale, tmp_path)


def test_failing_pods_of_one_owner_cannot_spend_without_end(tmp_path: Path) -> None:
    """K16: over the cap its pods wait, whoever runs the node by then, and go on within the hour."""

    async def tale(cluster: Cluster) -> None:
        cluster.market.programs.code = 1
        with_policy(cluster, failed_usd_per_hour=Decimal("0.0002"))
        async with cluster.node() as node:
            cluster.create("a-0", restart="Never", owner=by("ReplicaSet"))
            await cluster.until("Failed", name="a-0", within_s=300)
            await cluster.until_nothing_costs()
        async with cluster.node(seed=2) as node:
            cluster.create("a-1", restart="Never", owner=by("ReplicaSet"))
            cluster.create("b", restart="Never", owner=by("Job", "another"))
            await cluster.until("Failed", name="b", within_s=300)
            (text,) = cluster.messages("a-1", "SpendCapReached")
            assert "GP4U_NODE_FAILED_USD_PER_HOUR allows $0.0002" in text
            assert cluster.status("a-1")["phase"] == "Pending"
            assert cluster.state("a-1")["waiting"] == {"reason": "SpendCapReached", "message": text}
            assert len(await node.rentals()) == 2
            await cluster.until("Failed", name="a-1", within_s=3700)
            first, _, last = await node.rentals()
            assert (last.intended_at - first.intended_at).total_seconds() > 1800

    told(tale, tmp_path)
