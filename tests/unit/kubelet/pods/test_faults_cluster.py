"""Trouble with the API server, seen from a pod that has a machine: K1 to K12, K19.

What the informer, the status writer and the publisher do about each of these has tests of its own.
Here they work together, judged by what costs money: a pod keeps its one machine through all of it,
and a pod that is gone costs nothing soon after it can be known.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from gp4u.kubelet.policy import Tier
from gp4u.sim.faults import Rule
from tests.kube_api import Cut, KubeApi
from tests.kube_store import Target
from tests.unit.kubelet.cluster import Cluster, by, gpu_pod, told, with_policy

PODS = r"/pods$"


class Forgetful(KubeApi):
    """An API server that leaves every pod out of its lists while it is told to."""

    forgets = False

    def _list(self, target: Target, query: Mapping[str, str]) -> dict[str, Any]:
        found = super()._list(target, query)
        return {**found, "items": []} if self.forgets and target.resource == "pods" else found


def machine(cluster: Cluster, name: str) -> str:
    """Return the machine that a pod runs on, as its status names it."""
    entry = cluster.status(name)["containerStatuses"][0]
    found: str = entry["containerID"]
    return found


def uid_of(cluster: Cluster, name: str) -> str:
    """Return the UID of a pod that there is."""
    pod = cluster.pod(name)
    assert pod is not None
    uid: str = pod["metadata"]["uid"]
    return uid


def while_it_is_down(api: KubeApi, remove: Callable[[], object]) -> None:
    """The server is restarted, and has compacted what happened meanwhile: 410 as a status."""
    api.set_down()
    remove()
    api.forget_history()
    api.set_down(False)


def behind_an_error(api: KubeApi, remove: Callable[[], object]) -> None:
    """The watch is told 410 as an ERROR event, and never shows the delete."""
    api.cut(Cut.GONE)
    remove()
    api.forget_history()


def behind_a_silent_watch(api: KubeApi, remove: Callable[[], object]) -> None:
    """The connection is half open: it neither shows the delete nor breaks."""
    api.cut(Cut.SILENT)
    remove()


@pytest.mark.parametrize(
    ("unseen", "within_s"),
    [(while_it_is_down, 30.0), (behind_an_error, 30.0), (behind_a_silent_watch, 420.0)],
)
def test_a_delete_that_nobody_saw_ends_what_it_cost(
    unseen: Callable[[KubeApi, Callable[[], object]], None], within_s: float, tmp_path: Path
) -> None:
    """K1, K2, K5: a force delete leaves no object to tell of it; its neighbour is left alone."""

    async def tale(cluster: Cluster) -> None:
        async with cluster.node():
            cluster.create("gone")
            cluster.create("stays")
            await cluster.until_ready("gone", "stays")
            before = machine(cluster, "stays")
            unseen(cluster.api, lambda: cluster.delete("gone", grace_s=0))
            await cluster.until_true(lambda: len(cluster.market.live) == 1, within_s=within_s)
            await asyncio.sleep(60)
            assert cluster.is_ready("stays")
            assert machine(cluster, "stays") == before
            assert cluster.market.rents() == 2

    told(tale, tmp_path)


def test_a_list_that_fails_proves_nothing(tmp_path: Path) -> None:
    """K5: a node that starts while the API server answers 500 knows of no pod, and waits."""

    async def tale(cluster: Cluster) -> None:
        async with cluster.node():
            cluster.create("a")
            await cluster.until_ready("a")
        sick = cluster.api.fail("list", PODS, 500)
        async with cluster.node(seed=2) as node:
            await asyncio.sleep(600)
            assert sick.hits > 3
            assert len(cluster.market.live) == 1
            sick.lift()
            await cluster.until_true(lambda: bool(node.controller.all()), within_s=60)
            await asyncio.sleep(60)
            assert [r.is_live for r in await node.rentals()] == [True]

    told(tale, tmp_path)


def test_an_empty_list_is_asked_about_before_it_is_believed(tmp_path: Path) -> None:
    """K5: a list that is good and wrong would release everything at once; a GET says otherwise."""

    async def tale(cluster: Cluster) -> None:
        cluster.api = api = Forgetful()
        async with cluster.node() as node:
            cluster.create("a")
            await cluster.until_ready("a")
            api.forgets = True
            api.cut(Cut.GONE)
            await cluster.until_true(lambda: not node.informer.objects, within_s=30)
            await asyncio.sleep(300)
            assert len(cluster.market.live) == 1
            api.forgets = False
            api.cut(Cut.GONE)
            await asyncio.sleep(60)
            assert cluster.is_ready("a")
            assert len(await node.rentals()) == 1

    told(tale, tmp_path)


@pytest.mark.parametrize("code", [429, 500, 503])
def test_a_storm_costs_no_machine_and_work_goes_on_when_it_is_over(
    code: int, tmp_path: Path
) -> None:
    """K3: ten minutes without an API server are nothing to a machine that runs."""

    async def tale(cluster: Cluster) -> None:
        async with cluster.node() as node:
            cluster.create("a")
            await cluster.until_ready("a")
            before = machine(cluster, "a")
            storm = cluster.api.fail("*", "", code)
            cluster.api.cut(Cut.RESET)
            await asyncio.sleep(600)
            assert len(cluster.market.live) == 1
            storm.lift()
            cluster.create("b")
            await cluster.until_true(lambda: "startTime" in cluster.status("b"), within_s=35)
            await cluster.until_ready("a", "b")
            assert machine(cluster, "a") == before
            assert len(await node.rentals()) == 2

    told(tale, tmp_path)


def test_an_api_server_that_was_away_is_noticed_within_five_seconds(tmp_path: Path) -> None:
    """K3: connections that are refused say nothing of when to come back, so it is tried often."""

    async def tale(cluster: Cluster) -> None:
        async with cluster.node():
            cluster.create("a")
            await cluster.until_ready("a")
            cluster.api.set_down()
            await asyncio.sleep(120)
            cluster.create("b")
            cluster.api.set_down(False)
            await cluster.until_true(lambda: "startTime" in cluster.status("b"), within_s=6)

    told(tale, tmp_path)


def test_a_cluster_that_was_restored_from_a_backup_is_followed(tmp_path: Path) -> None:
    """K4: versions go back, newer pods are gone, and the others have the statuses of then."""

    async def tale(cluster: Cluster) -> None:
        store = cluster.api.store
        async with cluster.node() as node:
            cluster.create("old")
            await cluster.until_true(lambda: "startTime" in cluster.status("old"))
            version, objects = store.version, deepcopy(store.objects)
            cluster.create("new")
            await cluster.until_ready("old", "new")
            before = machine(cluster, "old")

            cluster.api.set_down()
            await asyncio.sleep(5)
            store.objects, store.version = objects, version
            store.forget()
            cluster.api.set_down(False)

            await cluster.until_ready("old")
            assert machine(cluster, "old") == before
            await cluster.until_true(lambda: len(cluster.market.live) == 1, within_s=120)
            assert len(await node.rentals()) == 2

    told(tale, tmp_path)


@pytest.mark.parametrize("after_s", [0.0, 0.3, 1.0, 2.0, 3.5, 5.0, 9.0])
@pytest.mark.parametrize("grace_s", [None, 0])
def test_a_pod_deleted_in_mid_rent_leaves_nothing_and_is_never_an_endpoint(
    after_s: float, grace_s: int | None, tmp_path: Path
) -> None:
    """K6: whatever the rent is at, it is settled, released, and nobody was ever sent there."""
    slow = Rule(kind="latency", endpoint="create", seconds=3.0)

    async def tale(cluster: Cluster) -> None:
        cluster.api.add(serving("a"))
        async with cluster.node() as node:
            cluster.create("a")
            await asyncio.sleep(after_s)
            cluster.delete("a", grace_s=grace_s)
            await cluster.until("gone", within_s=60)
            await cluster.until_true(lambda: not node.controller.all(), within_s=200)
            await cluster.until_nothing_costs(within_s=200)
            await asyncio.sleep(120)
            assert cluster.market.rents() <= 1
            assert cluster.market.live == []
            assert cluster.api.told("create", "endpointslices") == []

    told(tale, tmp_path, rules=[slow], boot_s=(10.0, 10.0))


@pytest.mark.parametrize("lost", ["reset_after", "hang_after", "late_effect"])
def test_a_pod_deleted_while_its_rent_is_in_doubt_leaves_nothing(lost: str, tmp_path: Path) -> None:
    """K6: the reply was lost, and so nobody knows yet whether there is a machine."""
    rule = Rule(kind=lost, endpoint="create", seconds=8.0, calls=(1,))

    async def tale(cluster: Cluster) -> None:
        async with cluster.node():
            cluster.create("a")
            await cluster.until_true(lambda: cluster.market.rents() > 0 or lost == "late_effect")
            await asyncio.sleep(1)
            cluster.delete("a")
            await cluster.until("gone", within_s=60)
            await asyncio.sleep(300)
            assert cluster.market.rents() == 1
            assert cluster.market.live == []

    told(tale, tmp_path, rules=[rule])


def test_a_name_that_is_made_again_is_another_pod(tmp_path: Path) -> None:
    """K7: the first one's machine and status are nothing to the second, and go."""

    async def tale(cluster: Cluster) -> None:
        async with cluster.node() as node:
            cluster.create("a", owner=by("StatefulSet"))
            await cluster.until_ready("a")
            first, before = uid_of(cluster, "a"), machine(cluster, "a")
            cluster.delete("a", grace_s=0)
            cluster.create("a", owner=by("StatefulSet"))
            second = uid_of(cluster, "a")
            await cluster.until_ready("a")
            assert machine(cluster, "a") != before
            assert cluster.status("a")["containerStatuses"][0]["restartCount"] == 0
            await cluster.until_true(lambda: len(cluster.market.live) == 1, within_s=120)
            owners = [rental.owner for rental in await node.rentals()]
            assert owners == [f"pod:{first}", f"pod:{second}"]

    told(tale, tmp_path)


@pytest.mark.parametrize("code", [0, 3])
def test_a_finished_pod_stays_finished_when_the_node_starts_anew(code: int, tmp_path: Path) -> None:
    """K8: a restart that rents again for a finished Job buys a machine that nobody asked for."""

    async def tale(cluster: Cluster) -> None:
        async with cluster.node():
            cluster.create("a", restart="Never", owner=by("Job"))
            await cluster.until_ready("a")
            cluster.market.end(cluster.market.live[0], code)
            await cluster.until("Succeeded" if code == 0 else "Failed", within_s=60)
            await cluster.until_nothing_costs(within_s=60)
            ended = cluster.status("a")
        async with cluster.node(seed=2):
            await asyncio.sleep(300)
            assert cluster.status("a") == ended
            assert cluster.market.rents() == 1

    told(tale, tmp_path)


def test_what_ends_while_no_node_is_there_is_told_and_not_run_again(tmp_path: Path) -> None:
    """K8: the next process reads from the machine how it ended."""

    async def tale(cluster: Cluster) -> None:
        async with cluster.node():
            cluster.create("a", restart="Never", owner=by("Job"))
            await cluster.until_ready("a")
        cluster.market.end(cluster.market.live[0], 7)
        await asyncio.sleep(60)
        async with cluster.node(seed=2):
            await cluster.until("Failed", within_s=120)
            assert cluster.state("a")["terminated"]["exitCode"] == 7
            await cluster.until_nothing_costs(within_s=60)
            await asyncio.sleep(120)
            assert cluster.market.rents() == 1

    told(tale, tmp_path)


def test_what_was_marked_for_deletion_while_no_node_was_there_goes(tmp_path: Path) -> None:
    """K9: a node that was away lets go exactly what it is asked to, and keeps the rest."""

    async def tale(cluster: Cluster) -> None:
        async with cluster.node():
            cluster.create("a")
            cluster.create("b")
            await cluster.until_ready("a", "b")
            kept = machine(cluster, "b")
        cluster.delete("a")
        async with cluster.node(seed=2):
            await cluster.until("gone", within_s=90)
            await cluster.until_true(lambda: len(cluster.market.live) == 1, within_s=60)
            await cluster.until_ready("b")
            assert machine(cluster, "b") == kept
            assert cluster.market.rents() == 2

    told(tale, tmp_path)


@pytest.mark.parametrize(
    ("verb", "resource"),
    [
        ("*", "events"),
        ("*", "endpointslices"),
        ("*", "services"),
        ("*", "secrets"),
        ("*", "configmaps"),
        ("*", "namespaces"),
    ],
)
def test_without_a_permission_only_what_needs_it_is_missing(
    verb: str, resource: str, tmp_path: Path
) -> None:
    """K12: a pod that needs none of it runs and goes as ever; nothing falls over or asks on."""

    async def tale(cluster: Cluster) -> None:
        denied = cluster.api.deny(verb, resource)
        async with cluster.node() as node:
            cluster.create("a")
            await cluster.until_ready("a")
            await asyncio.sleep(300)
            assert node.is_alive
            assert denied.hits <= 40, "it goes on asking for what it may not have"
            cluster.delete("a")
            await cluster.until("gone", within_s=60)
            await cluster.until_nothing_costs(within_s=60)

    told(tale, tmp_path)


def test_a_secret_that_may_not_be_read_is_named_and_costs_nothing(tmp_path: Path) -> None:
    """K12, K14: the pod waits by the reason that people know, with the refusal in its message."""
    wanted = {"name": "X", "valueFrom": {"secretKeyRef": {"name": "token", "key": "x"}}}

    async def tale(cluster: Cluster) -> None:
        denied = cluster.api.deny("get", "secrets")
        with_policy(cluster, secret_tier=Tier.ANY)
        secret = {"kind": "Secret", "metadata": {"name": "token"}, "data": {"x": "c2VjcmV0"}}
        cluster.api.add(secret)
        async with cluster.node() as node:
            wish = {"gp4u.io/trust": "any"}
            cluster.create("a", containers=[{"env": [wanted]}], annotations=wish)
            await asyncio.sleep(60)
            waiting = cluster.state("a")["waiting"]
            assert waiting["reason"] == "CreateContainerConfigError"
            assert "token" in waiting["message"]
            assert "forbidden" in waiting["message"].lower()
            assert await node.rentals() == []
            denied.lift()
            await cluster.until_ready("a")

    told(tale, tmp_path)


def test_statuses_that_may_not_be_written_are_an_alert_and_release_nothing(tmp_path: Path) -> None:
    """K11: nobody sees the pod run, but it does; readiness of the node names what is missing."""

    async def tale(cluster: Cluster) -> None:
        async with cluster.node() as node:
            cluster.create("a")
            await cluster.until_ready("a")
            denied = cluster.api.deny("patch", "pods/status")
            cluster.market.world.lose_host(cluster.market.live[0].machine.machine_id, for_s=60)
            await asyncio.sleep(300)
            assert 0 < denied.hits <= 20
            assert len(cluster.market.live) == 1
            denied.lift()
            await cluster.until_ready("a")
            assert len(await node.rentals()) == 1

    told(tale, tmp_path)


def test_nobody_is_sent_to_a_machine_that_is_being_released(tmp_path: Path) -> None:
    """K19: the market may give the address to a stranger at once, so the slice goes first."""

    async def tale(cluster: Cluster) -> None:
        cluster.api.add(serving("a"))
        async with cluster.node():
            cluster.create("a")
            await cluster.until_ready("a")
            await cluster.until_true(lambda: bool(cluster.api.all("endpointslices")))
            cluster.api.latency_s = 2.0
            cluster.delete("a")
            while not any(method == "DELETE" for method, *_ in cluster.market.requests):
                assert cluster.market.live
                await asyncio.sleep(0.01)
            assert cluster.api.all("endpointslices") == []

    told(tale, tmp_path)


def test_slices_of_a_process_that_died_are_swept_by_the_next(tmp_path: Path) -> None:
    """K19: killed between the end of a pod and its withdrawal, nobody else would do it."""

    async def tale(cluster: Cluster) -> None:
        cluster.api.add(serving("a"))
        async with cluster.node() as node:
            cluster.create("a")
            await cluster.until_ready("a")
            await cluster.until_true(lambda: bool(cluster.api.all("endpointslices")))
            await node.kill()
        cluster.delete("a", grace_s=0)
        async with cluster.node(seed=2):
            await cluster.until_true(lambda: not cluster.api.all("endpointslices"), within_s=30)
            await cluster.until_nothing_costs(within_s=200)

    told(tale, tmp_path)


def test_a_namesake_elsewhere_is_no_proof_of_anything(tmp_path: Path) -> None:
    """K4: a pod is its UID; one of the same name in another namespace is a stranger."""

    async def tale(cluster: Cluster) -> None:
        async with cluster.node() as node:
            cluster.create("a")
            cluster.api.add(gpu_pod("a", namespace="other"))
            await cluster.until_true(lambda: len(node.controller.all()) == 2)
            await cluster.until_ready("a")
            cluster.delete("a", grace_s=0)
            other = cluster.pod("a", namespace="other")
            assert other is not None
            await asyncio.sleep(200)
            live = [r.owner for r in await node.rentals() if r.is_live]
            assert live == [f"pod:{other['metadata']['uid']}"]

    told(tale, tmp_path)


def serving(pod: str) -> dict[str, Any]:
    """Return a Service that the node points at a pod."""
    return {
        "kind": "Service",
        "metadata": {"name": "front", "annotations": {"gp4u.io/pod": pod}},
        "spec": {
            "clusterIP": "10.96.0.9",
            "ipFamilies": ["IPv4"],
            "ports": [{"name": "http", "port": 80, "targetPort": 8000, "protocol": "TCP"}],
        },
    }
