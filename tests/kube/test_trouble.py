"""Trouble around a running node: it is killed, the API server restarts, markets fall silent.

Whatever happens, a pod keeps its machine, and no pod ever has two.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from gp4u.rentals.rental import Rental
from tests.kube.controlplane import ControlPlane
from tests.kube.manifests import PROGRAM, pod, pod_spec
from tests.kube.town import Ground, Town, town, until

pytestmark = pytest.mark.timeout(300)


SOON = {
    "VASTAI_TIMEOUT": "3",
    "PROVIDER_MAX_RETRIES": "2",
    "PROVIDER_CIRCUIT_BREAKER_THRESHOLD": "2",
    "PROVIDER_CIRCUIT_BREAKER_TIMEOUT": "5",
}
"""What makes silence count after seconds, and not after minutes."""


@pytest.fixture(scope="module")
def storm(plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    """A town of its own: what is done to it here would disturb the shared one."""
    folder = tmp_path_factory.mktemp("storm")
    with town(plane, folder, node="gp4u-storm", **SOON) as running:
        yield running


@pytest.fixture
def place(storm: Town) -> Iterator[Ground]:
    """A namespace in it."""
    made = storm.namespace("storm")
    yield made
    made.leave()


def machines(town: Town, uid: str) -> list[Rental]:
    """Return every rental that a pod ever had."""
    return [each for each in town.rentals() if each.owner == f"pod:{uid}"]


def condition(town: Town, kind: str) -> str:
    """Return the status of a condition of the node."""
    found = town.plane.get("node", town.node)["status"]["conditions"]
    return next((each["status"] for each in found if each["type"] == kind), "")


@pytest.mark.parametrize("reason", ["OfferSelected", "InstanceRenting"])
def test_a_node_killed_in_mid_rent_goes_on_with_one_machine(place: Ground, reason: str) -> None:
    """The gap between the purchase and its record is where peers pay for two machines."""
    spec = pod_spec(place.town.node, PROGRAM, ports=[8000])
    place.apply(pod("june", spec))
    place.wait_event("june", reason)
    place.town.process.kill()
    uid = place.get("pod", "june")["metadata"]["uid"]
    place.town.process.start()
    place.wait_ready("june")
    found = machines(place.town, uid)
    assert sum(each.is_open for each in found) == 1, found
    assert sum(each.instance_id is not None for each in found) == 1, found


def test_a_restarted_node_takes_its_pods_over_as_they_are(place: Ground) -> None:
    """An upgrade of the node must not restart the work of anybody."""
    spec = pod_spec(place.town.node, PROGRAM, ports=[8000])
    place.apply(pod("june", spec))
    before = place.wait_ready("june")
    place.town.process.end(signal.SIGTERM)
    assert place.town.open_rentals(), "nothing is released when the node stops"
    place.town.process.start()
    place.town.wait_ready()
    after = place.wait_ready("june")
    for key in ("startTime", "containerStatuses"):
        assert after["status"][key] == before["status"][key]
    assert len(machines(place.town, before["metadata"]["uid"])) == 1


def test_an_api_server_restart_costs_no_machine(place: Ground) -> None:
    """It restarts at each upgrade of the cluster; work that is paid for goes on."""
    spec = pod_spec(place.town.node, PROGRAM, ports=[8000])
    place.apply(pod("before", spec))
    uid = place.wait_ready("before")["metadata"]["uid"]
    place.plane.restart_api_server()
    place.apply(pod("after", spec))
    place.wait_ready("after")
    assert place.get("pod", "before")["status"]["phase"] == "Running"
    assert len(machines(place.town, uid)) == 1


def test_a_silent_market_makes_no_node_unready(place: Ground) -> None:
    """NotReady would have every pod evicted within minutes, and its paid machine with it."""
    place.apply(pod("june", pod_spec(place.town.node, PROGRAM, ports=[8000])))
    place.wait_ready("june")
    os.kill(place.town.market.pid, signal.SIGSTOP)
    try:
        until(
            lambda: condition(place.town, "MarketsAvailable") == "False",
            "the condition that says so",
            patience_s=150,  # a minute of silence is no reason yet
        )
        assert condition(place.town, "Ready") == "True"
        assert place.get("pod", "june")["status"]["phase"] == "Running"
    finally:
        os.kill(place.town.market.pid, signal.SIGCONT)
    until(lambda: condition(place.town, "MarketsAvailable") == "True", "the market to be back")


def test_a_pod_deleted_in_mid_rent_leaves_nothing(place: Ground) -> None:
    """The rent may have worked: its machine is found by its key, and released."""
    place.apply(pod("brief", pod_spec(place.town.node, PROGRAM, ports=[8000])))
    place.wait_event("brief", "OfferSelected")
    uid = place.get("pod", "brief")["metadata"]["uid"]
    place.admitted("delete", "pod", "brief", "--timeout=60s")
    until(
        lambda: not any(each.is_open for each in machines(place.town, uid)),
        "its machine to be released",
        place.town.said,
        patience_s=120,
    )
