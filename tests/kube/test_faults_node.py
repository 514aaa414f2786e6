"""What befalls pods of two nodes that are one process, an on-demand and a spot one, for real.

What the scheduler and the controllers make of what the nodes say is the point; how a node comes to
say it is told in process, by `tests/unit/kubelet/test_faults_*.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.kube.controlplane import ControlPlane
from tests.kube.manifests import PROGRAM, Manifest, job, pod, pod_spec, sh, template
from tests.kube.town import Ground, Town, town, until

pytestmark = pytest.mark.timeout(300)
NODE, SPOT = "gp4u-steady", "gp4u-spot"
OUTBID = [{"kind": "outbid_running", "endpoint": "create", "times": 1, "seconds": 3.0}]
IGNORED = {
    "rules": [
        {
            "action": "Ignore",
            "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
        }
    ]
}


@pytest.fixture(scope="module")
def taken(
    plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Town, Ground]]:
    """Two nodes, and a Job whose machine, the first that is rented, is taken away."""
    folder = tmp_path_factory.mktemp("weather")
    faults = folder / "faults.json"
    faults.write_text(json.dumps(OUTBID))
    env = {"GP4U_NODE_NAME": f"{NODE},{SPOT}=spot"}
    both = f"node.names={{{NODE},{SPOT}}}"
    with town(plane, folder, node=NODE, faults=faults, switches=[both], **env) as running:
        ground = running.namespace("taken")
        spec = pod_spec(SPOT, sh("sleep 12; echo computed"), restart="Never")
        manifest = job("sum", spec)
        manifest["spec"]["podFailurePolicy"] = IGNORED
        ground.apply(manifest)
        until(
            lambda: running.rentals(), "a machine", lambda: ground.kubectl("describe", "pods").out
        )
        yield running, ground
        ground.leave()
        until(lambda: not ground.items("pods"), "the pods of the spot node to go", running.said)
        plane.admitted("delete", "node", SPOT, "--ignore-not-found")


@pytest.fixture
def place(taken: tuple[Town, Ground], request: pytest.FixtureRequest) -> Iterator[Ground]:
    """A namespace for one test."""
    words = request.node.name.removeprefix("test_").split("[")[0].split("_")
    made = taken[0].namespace("-".join(words)[:40].rstrip("-"))
    yield made
    made.leave()


def rented_for(ground: Ground, uid: str) -> int:
    """Return how many machines were ever rented for a pod."""
    return sum(each.owner.startswith(f"pod:{uid}") for each in ground.town.rentals())


def test_a_job_looks_past_a_machine_that_was_taken_away(taken: tuple[Town, Ground]) -> None:
    """M4: the condition says that the pod is not to blame, so the Job, which forgives nothing,
    makes another one; both were bought by bid, as their node is a spot node."""
    _, ground = taken
    ground.admitted("wait", "job/sum", "--for=condition=Complete", "--timeout=90s")
    pods = ground.items("pods", "-l", "app=sum")
    by_phase = {each["status"]["phase"]: each for each in pods}
    assert sorted(by_phase) == ["Failed", "Succeeded"]
    lost = by_phase["Failed"]["status"]
    assert lost["reason"] == "Preempted"
    [target] = [each for each in lost["conditions"] if each["type"] == "DisruptionTarget"]
    assert (target["status"], target["reason"]) == ("True", "TerminationByKubelet")
    for each in pods:
        said = ground.wait_event(each["metadata"]["name"], "OfferSelected")
        assert "higher bid" in said


def test_a_pod_of_the_steady_node_is_not_bought_by_bid(place: Ground) -> None:
    """The class of the node decides, though one process is both."""
    place.apply(pod("june", pod_spec(NODE, PROGRAM, ports=[8000])))
    place.wait_ready("june")
    assert "higher bid" not in place.wait_event("june", "OfferSelected")


def test_a_daemon_set_that_tolerates_everything_rents_nothing(place: Ground) -> None:
    """Every cluster has some: a log shipper would be the dearest of all, one machine a node."""
    spec = pod_spec(NODE, PROGRAM, tolerations=[{"operator": "Exists"}])
    shipper: Manifest = {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": "shipper"},
        "spec": {
            "selector": {"matchLabels": {"app": "shipper"}},
            "template": template(spec, "shipper"),
        },
    }
    place.apply(shipper)
    [made] = until(lambda: place.items("pods", "-l", "app=shipper"), "its pod", place.town.said)
    place.wait_event(made["metadata"]["name"], "NotRunHere")
    assert place.get("pod", made["metadata"]["name"])["status"]["phase"] == "Pending"
    assert rented_for(place, made["metadata"]["uid"]) == 0


def test_a_pod_ends_at_its_deadline(place: Ground) -> None:
    """`activeDeadlineSeconds` counts from the start, whatever the machine is at."""
    place.apply(pod("brief", pod_spec(NODE, PROGRAM, ports=[8000], activeDeadlineSeconds=12)))
    ended = place.wait_phase("brief", "Failed")
    assert ended["status"]["reason"] == "DeadlineExceeded"
    uid = ended["metadata"]["uid"]
    until(
        lambda: not [e for e in place.town.open_rentals() if e.owner == f"pod:{uid}"],
        "its machine to be released",
        place.town.said,
    )


@pytest.mark.parametrize(
    ("name", "value", "bound"),
    [("max-price", "cheap", "dollars per hour"), ("trust", "blind", "verified")],
)
def test_a_bad_annotation_is_described_with_field_value_and_bound(
    place: Ground, name: str, value: str, bound: str
) -> None:
    """A wish that cannot be read is no reason to rent something else."""
    place.apply(pod("odd", pod_spec(NODE, PROGRAM), annotations={name: value}))
    uid = place.wait_phase("odd", "Failed")["metadata"]["uid"]
    shown = place.describe("pod", "odd")
    for part in (f"gp4u.io/{name}", value, bound):
        assert part in shown
    assert rented_for(place, uid) == 0
