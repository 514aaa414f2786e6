"""The Node object and its heartbeat, against a server in trouble."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from random import Random
from typing import Any

import pytest
from msgspec import structs

from gp4u.errors import BadInput
from gp4u.kube.events import EventRecorder
from gp4u.kubelet.node import node_object
from gp4u.kubelet.node.capacity import Room, Shortage
from gp4u.kubelet.node.node import NodeKeeper, Outlook
from gp4u.kubelet.policy import NodePolicy, Taint
from tests.kube_api import KubeApi
from tests.virtual_loop import VirtualClock, run_virtual

NODE = "/api/v1/nodes/vast-gpu-node-1"
LEASE = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/vast-gpu-node-1"
OURS = {"key": "virtual-kubelet.io/provider", "value": "gp4u", "effect": "NoSchedule"}
CORDON = {"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}


class Scene:
    """A node on a server, and what the rest of the process would know."""

    def __init__(self) -> None:
        self.api = KubeApi()
        self.policy = NodePolicy(name="vast-gpu-node-1", address="203.0.113.46")
        self.room = Room(in_use=0, more=4)
        self.markets: dict[str, str] = {"vastai": "", "akash": ""}
        self.features: tuple[str, ...] = ()

    @property
    def node(self) -> dict[str, Any]:
        """The Node object as it is now."""
        found = self.api.find(NODE)
        assert found is not None
        return found

    def condition(self, kind: str) -> dict[str, Any]:
        """Return one condition of the node."""
        found = [each for each in self.node["status"]["conditions"] if each["type"] == kind]
        assert len(found) == 1
        return dict(found[0])

    def reasons(self) -> Counter[str]:
        """Return how often each reason was told by an event about the node."""
        return Counter(each["reason"] for each in self.api.all("events"))

    @asynccontextmanager
    async def running(self, *, register: bool = True) -> AsyncIterator[NodeKeeper]:
        """Keep the node, as a process would."""
        api = self.api
        async with (
            api.client() as client,
            api.client(timeout_s=10) as heartbeat,
            asyncio.TaskGroup() as group,
        ):
            recorder = EventRecorder(
                client, component="gp4u", host="n1", clock=VirtualClock(), random=Random(3)
            )
            keeper = NodeKeeper(
                client,
                heartbeat,
                policy=lambda: self.policy,
                outlook=lambda: Outlook(room=self.room, markets=self.markets),
                clock=VirtualClock(),
                random=Random(4),
                recorder=recorder,
                features=self.features,
            )
            telling = group.create_task(recorder.run())
            if register:
                await keeper.register()
            running = group.create_task(keeper.run())
            try:
                yield keeper
            finally:
                running.cancel()
                telling.cancel()


def scene(life: Any, seed: int | None = None) -> None:
    """Run one scene under virtual time."""
    run_virtual(life, seed)


def test_a_new_node_says_all_that_the_cluster_looks_for() -> None:
    """Labels, taint, amounts, address and port: each is asked for by somebody."""

    async def life() -> None:
        it = Scene()
        async with it.running():
            await asyncio.sleep(2)
            node = it.node
        labels, status = node["metadata"]["labels"], node["status"]
        assert labels["type"] == "virtual-kubelet"
        assert labels["kubernetes.io/hostname"] == "vast-gpu-node-1"
        assert labels["kubernetes.io/os"] == "linux"
        assert "node.kubernetes.io/exclude-from-external-load-balancers" in labels
        assert node["spec"] == {"providerID": "gp4u://vast-gpu-node-1", "taints": [OURS]}
        assert status["allocatable"] == status["capacity"]
        assert status["allocatable"]["nvidia.com/gpu"] == "4"
        assert status["allocatable"]["pods"] == "1000"
        assert status["addresses"] == [{"type": "InternalIP", "address": "203.0.113.46"}]
        assert status["daemonEndpoints"] == {"kubeletEndpoint": {"Port": 10250}}
        assert status["nodeInfo"]["kubeletVersion"].startswith("v1.")
        told = {each["type"]: each["status"] for each in status["conditions"]}
        assert told == {
            "Ready": "True",
            "MemoryPressure": "False",
            "DiskPressure": "False",
            "PIDPressure": "False",
            "NetworkUnavailable": "False",
            "MarketsAvailable": "True",
            "GpusRentable": "True",
        }
        assert it.reasons() == {"NodeReady": 1}

    scene(life)


def test_the_lease_belongs_to_the_node_and_is_renewed_every_ten_seconds() -> None:
    """40 s without it and the cluster begins to give the pods up."""

    async def life() -> None:
        it = Scene()
        async with it.running():
            await asyncio.sleep(61)
            lease = it.api.find(LEASE)
            assert lease is not None
            assert lease["metadata"]["ownerReferences"] == [
                {
                    "apiVersion": "v1",
                    "kind": "Node",
                    "name": "vast-gpu-node-1",
                    "uid": it.node["metadata"]["uid"],
                }
            ]
            assert lease["spec"]["leaseDurationSeconds"] == 40
            assert lease["spec"]["holderIdentity"] == "vast-gpu-node-1"
            assert lease["spec"]["renewTime"].startswith("2026-01-01T00:01:0")
            assert lease["spec"]["renewTime"].endswith("000Z")
            renewals = [call.at for call in it.api.told("update", "leases")]
            assert len(renewals) == 6
            gaps = [b - a for a, b in pairwise(renewals)]
            assert all(gap == pytest.approx(10, abs=0.01) for gap in gaps)

    scene(life)


def test_an_idle_node_makes_six_and_a_half_calls_a_minute() -> None:
    """The measure: six renewals, one status in five minutes, and the watch's reconnections."""

    async def life() -> None:
        it = Scene()
        async with it.running():
            await asyncio.sleep(60)
            it.api.calls.clear()
            await asyncio.sleep(3600)
            calls = Counter((call.verb, call.target.resource) for call in it.api.calls)
        assert calls["update", "leases"] == 360
        assert calls["patch", "nodes"] == 12
        assert calls["watch", "nodes"] <= 12
        assert sum(calls.values()) / 60 < 6.5

    scene(life)


def test_a_restart_changes_only_what_is_ours_and_stays_ready() -> None:
    """Taints of controllers, labels of users and a cordon outlive every restart (K9)."""

    async def life() -> None:
        it = Scene()
        async with it.running():
            await asyncio.sleep(20)
        uid = it.node["metadata"]["uid"]
        it.api.change(
            NODE,
            {
                "metadata": {"labels": {"team": "ml", "kubernetes.io/os": "windows"}},
                "spec": {"unschedulable": True, "taints": [CORDON]},
            },
        )
        it.policy = structs.replace(it.policy, address="203.0.113.47")
        async with it.running():
            await asyncio.sleep(20)
            node = it.node
        assert node["metadata"]["uid"] == uid
        assert node["metadata"]["labels"]["team"] == "ml"
        assert node["metadata"]["labels"]["kubernetes.io/os"] == "linux"
        assert node["spec"]["taints"] == [CORDON, OURS]
        assert node["spec"]["unschedulable"] is True
        assert node["status"]["addresses"] == [{"type": "InternalIP", "address": "203.0.113.47"}]
        assert not it.api.told("update", "nodes")
        assert it.condition("Ready")["lastTransitionTime"] == "2026-01-01T00:00:00Z"

    scene(life)


def test_a_restart_offers_what_was_offered_until_the_market_was_seen() -> None:
    """Pods would be kept away, and jobs given up, for nothing but a new process."""

    async def life() -> None:
        it = Scene()
        async with it.running():
            await asyncio.sleep(20)
        it.room = Room(in_use=1, more=None)
        told = list[str]()
        async with it.running():
            for second in range(40):
                if second == 20:
                    it.room = Room(in_use=1, more=8)
                told.append(it.node["status"]["allocatable"]["nvidia.com/gpu"])
                await asyncio.sleep(1)
        assert told[:20] == ["4"] * 20
        assert told[23:] == ["9"] * 17

    scene(life)


def test_a_strangers_node_is_not_taken_over() -> None:
    """A typo in the name must not turn a real machine into a virtual one."""

    async def life() -> None:
        it = Scene()
        it.api.add(
            {
                "kind": "Node",
                "metadata": {"name": "vast-gpu-node-1"},
                "spec": {"providerID": "aws:///eu-1/i-1"},
            }
        )
        before = it.node
        with pytest.raises(ExceptionGroup) as caught:
            async with it.running():
                pass
        assert caught.group_contains(BadInput, match="providerID is aws")
        assert it.node == before

    scene(life)


def test_a_taint_that_somebody_removed_comes_back() -> None:
    """Without it every DaemonSet and every ordinary pod would land here."""

    async def life() -> None:
        it = Scene()
        async with it.running():
            await asyncio.sleep(30)
            it.api.change(NODE, {"spec": {"taints": [CORDON]}})
            await asyncio.sleep(2)
            assert it.node["spec"]["taints"] == [CORDON, OURS]

    scene(life)


def test_a_change_of_policy_is_told_and_dropped_labels_go() -> None:
    """The ConfigMap is re-read while running; what it no longer says must not stay."""

    async def life() -> None:
        it = Scene()
        it.policy = structs.replace(it.policy, labels={"tier": "spot", "zone": "a"})
        async with it.running():
            await asyncio.sleep(5)
            taint = Taint(key="example.com/gpu", value="x")
            it.policy = structs.replace(it.policy, labels={"tier": "metal"}, taint=taint)
            await asyncio.sleep(15)
            labels = it.node["metadata"]["labels"]
            assert labels["tier"] == "metal"
            assert "zone" not in labels
            assert [each["key"] for each in it.node["spec"]["taints"]] == ["example.com/gpu"]

    scene(life)


def test_no_market_keeps_pods_away_and_never_makes_the_node_unready() -> None:
    """Else the cluster would delete pods that run and are paid for (K10)."""

    async def life() -> None:
        it = Scene()
        async with it.running():
            await asyncio.sleep(30)
            it.markets = {"vastai": "503", "akash": "breaker open"}
            await asyncio.sleep(45)
            assert it.node["spec"]["taints"] == [OURS]
            await asyncio.sleep(45)
            shut = {"key": "gp4u.io/markets-unavailable", "effect": "NoSchedule"}
            assert it.node["spec"]["taints"] == [OURS, shut]
            assert it.condition("MarketsAvailable")["status"] == "False"
            assert it.condition("Ready")["status"] == "True"
            assert it.node["status"]["allocatable"]["nvidia.com/gpu"] == "4"
            it.markets = {"vastai": "", "akash": "breaker open"}
            await asyncio.sleep(15)
            assert it.node["spec"]["taints"] == [OURS]
            assert it.condition("MarketsAvailable")["status"] == "True"
            assert it.reasons() == {
                "NodeReady": 1,
                "MarketsUnavailable": 1,
                "MarketsAvailable": 1,
            }

    scene(life)


def test_a_feature_that_is_no_longer_declared_goes() -> None:
    """Else an API server goes on to send what the operator has turned off."""

    async def life() -> None:
        it = Scene()
        for features in ((), ("ExtendWebSocketsToKubelet",), ()):
            it.features = features
            async with it.running():
                await asyncio.sleep(20)
            assert (it.node["status"].get("declaredFeatures") or []) == list(features)

    scene(life)


def test_a_deleted_node_is_registered_anew_with_a_lease_of_its_own() -> None:
    """PodGC forgives 40 s; and a Lease of the dead Node's UID would be collected (K9)."""

    async def life() -> None:
        it = Scene()
        async with it.running():
            await asyncio.sleep(30)
            old = it.node["metadata"]["uid"]
            it.api.remove(NODE)
            it.api.collect_garbage()
            await asyncio.sleep(3)
            uid = it.node["metadata"]["uid"]
            assert uid != old
            lease = it.api.find(LEASE)
            assert lease is not None
            assert lease["metadata"]["ownerReferences"][0]["uid"] == uid
            assert it.condition("Ready")["status"] == "True"

    scene(life)


def test_a_node_that_was_written_off_says_at_once_that_it_lives() -> None:
    """The controller turns Ready to Unknown and never back: only the node can."""

    async def life() -> None:
        it = Scene()
        async with it.running():
            await asyncio.sleep(30)
            conditions = it.node["status"]["conditions"]
            for each in conditions:
                each["status"] = "Unknown"
            it.api.change(f"{NODE}/status", {"status": {"conditions": conditions}})
            await asyncio.sleep(2)
            assert it.condition("Ready")["status"] == "True"
            assert it.condition("Ready")["lastTransitionTime"] >= "2026-01-01T00:00:30Z"

    scene(life)


def test_amounts_that_the_server_spells_anew_are_no_change() -> None:
    """8192Gi comes back as 8Ti; a status written every ten seconds fails conformance."""

    async def life() -> None:
        it = Scene()
        async with it.running():
            await asyncio.sleep(5)
            spelled = {"memory": "8Ti", "cpu": "1024", "ephemeral-storage": "64Ti"}
            status = {"capacity": spelled, "allocatable": spelled}
            it.api.change(f"{NODE}/status", {"status": status})
            it.api.calls.clear()
            await asyncio.sleep(200)
            assert not it.api.told("patch", "nodes")

    scene(life)


def test_a_condition_says_why_there_are_no_more_gpus() -> None:
    """A scheduler calls everything `Insufficient`: the node tells a budget from an empty market."""

    async def life() -> None:
        it = Scene()
        used_up = Shortage("BudgetUsedUp", "GP4U_BUDGET_USD_PER_HOUR leaves no room")
        async with it.running():
            for room, told in (
                (Room(in_use=2, more=0, shortage=used_up), ("False", "BudgetUsedUp", "PER_HOUR")),
                (Room(in_use=2, more=None), ("Unknown", "NotLookedYet", "no market has told")),
                (Room(in_use=2, more=3), ("True", "OffersFit", "more GPUs can be rented")),
                (Room(in_use=16, more=3), ("False", "MaxGpusReached", "GP4U_NODE_MAX_GPUS")),
            ):
                it.room = room
                await asyncio.sleep(120)
                found = it.condition("GpusRentable")
                assert (found["status"], found["reason"]) == told[:2]
                assert told[2] in found["message"]

    scene(life)


def test_a_condition_of_somebody_else_stays() -> None:
    """node-problem-detector and others keep theirs in the same list."""

    async def life() -> None:
        it = Scene()
        async with it.running():
            await asyncio.sleep(5)
            other = {"type": "KernelDeadlock", "status": "False"}
            conditions = [*it.node["status"]["conditions"], other]
            it.api.change(f"{NODE}/status", {"status": {"conditions": conditions}})
            it.room = Room(in_use=2, more=0)
            await asyncio.sleep(120)
            assert it.node["status"]["allocatable"]["nvidia.com/gpu"] == "2"
            assert it.condition("KernelDeadlock") == other

    scene(life)


@pytest.mark.parametrize("trouble", ["down", "hung", "429", "500"])
def test_after_an_outage_of_the_api_the_heartbeat_is_back_within_five_seconds(
    trouble: str,
) -> None:
    """The cluster counts from the last renewal: ours must not add to the outage (K3)."""

    async def life() -> None:
        it = Scene()
        async with it.running() as keeper:
            await asyncio.sleep(30)
            fault = None
            match trouble:
                case "down":
                    it.api.set_down()
                case "hung":
                    it.api.hung = True
                case code:
                    fault = it.api.fail("*", ".", int(code))
            await asyncio.sleep(33)
            assert keeper.troubles["lease"]
            if fault is not None:
                fault.lift()
            it.api.set_down(False)
            it.api.hung = False
            back = asyncio.get_running_loop().time()
            await asyncio.sleep(10 if trouble == "hung" else 5)
            assert keeper.beat_at is not None
            assert keeper.beat_at >= back
            assert "lease" not in keeper.troubles

    scene(life)


def test_a_status_that_may_not_be_written_does_not_stop_the_heartbeat() -> None:
    """A role that lacks nodes/status is a poorer node; a missed lease would be a dead one."""

    async def life() -> None:
        it = Scene()
        async with it.running() as keeper:
            await asyncio.sleep(30)
            denied = it.api.deny("patch", "nodes/status")
            await asyncio.sleep(400)
            assert "nodes/status" in keeper.troubles["node"]
            assert denied.hits <= 41
            assert len(it.api.told("update", "leases")) >= 42
            denied.lift()
            await asyncio.sleep(15)
            assert keeper.troubles == {}

    scene(life)


def test_without_the_right_to_watch_nodes_the_node_still_lives() -> None:
    """Less is known then: a deleted node is noticed by its next report (K12)."""

    async def life() -> None:
        it = Scene()
        it.api.deny("list", "nodes")
        async with it.running():
            await asyncio.sleep(30)
            it.api.remove(NODE)
            await asyncio.sleep(300)
            assert it.condition("Ready")["status"] == "True"

    scene(life)


def test_registration_waits_for_the_api_and_then_works() -> None:
    """The node may come up before the control plane does."""

    async def life() -> None:
        it = Scene()
        it.api.set_down()

        async with asyncio.TaskGroup() as group:

            async def later() -> None:
                await asyncio.sleep(60)
                it.api.set_down(False)

            group.create_task(later())
            async with it.running():
                assert 60 <= asyncio.get_running_loop().time() <= 68
                assert it.condition("Ready")["status"] == "True"

    scene(life)


def test_a_lost_reply_of_the_registration_is_no_second_node() -> None:
    """The create may have worked: then it exists, and is ours."""

    async def life() -> None:
        it = Scene()
        policy = it.policy
        face = node_object.Face(gpus=4, markets={})
        it.api.add(node_object.new_node(policy, face, at=VirtualClock().now()))
        async with it.running():
            await asyncio.sleep(15)
            assert it.condition("Ready")["status"] == "True"

    scene(life)


@pytest.mark.parametrize("seed", range(10))
def test_whatever_happens_the_node_ends_ready_with_its_taint_and_lease(seed: int) -> None:
    """The law: deletes, edits, outages and conflicts in any order leave a whole node."""
    random = Random(seed)

    async def life() -> None:
        it = Scene()
        async with it.running():
            for _ in range(30):
                present = it.api.find(NODE) is not None
                match random.randrange(7):
                    case 0 if present:
                        it.api.remove(NODE)
                        it.api.collect_garbage()
                    case 1 if present:
                        it.api.change(NODE, {"spec": {"taints": random.choice([None, [CORDON]])}})
                    case 2 if present:
                        it.api.change(f"{NODE}/status", {"status": {"conditions": None}})
                    case 3:
                        it.api.set_down(not it.api.down)
                    case 4:
                        it.api.fail("*", "nodes|leases", random.choice([409, 429, 500]), times=3)
                    case 5:
                        it.room = Room(in_use=random.randrange(4), more=random.randrange(9))
                    case _:
                        it.markets = {"vastai": random.choice(["", "down"])}
                await asyncio.sleep(random.choice([0, 0.1, 3, 30, 90]))
            it.api.set_down(False)
            it.markets = {"vastai": ""}
            await asyncio.sleep(200)
            assert OURS in it.node["spec"]["taints"]
            assert it.condition("Ready")["status"] == "True"
            gpus = it.node["status"]["allocatable"]["nvidia.com/gpu"]
            assert gpus == str(it.room.in_use + (it.room.more or 0))
            lease = it.api.find(LEASE)
            assert lease is not None
            assert lease["metadata"]["ownerReferences"][0]["uid"] == it.node["metadata"]["uid"]

    scene(life, seed)
