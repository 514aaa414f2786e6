"""Pods on a real control plane: run, refused, waiting, finished, deleted, made again."""

from __future__ import annotations

from typing import Any

import pytest

from gp4u.rentals.rental import Rental
from tests.kube.manifests import (
    PROGRAM,
    job,
    pod,
    pod_spec,
    sh,
    stateful_set,
)
from tests.kube.town import Ground, Town, until

pytestmark = pytest.mark.timeout(240)


def rentals_of(town: Town, uid: str) -> list[Rental]:
    """Return every rental that a pod ever had."""
    return [each for each in town.rentals() if each.owner.startswith(f"pod:{uid}")]


def held_by(town: Town, uid: str) -> list[Rental]:
    """Return those of them of which something may be left."""
    return [each for each in rentals_of(town, uid) if each.is_open]


def test_a_job_completes_with_the_exit_code_of_its_program(ground: Ground) -> None:
    """A finished pod keeps its log, and its machine is paid no longer."""
    spec = pod_spec(ground.town.node, sh("echo computed; exit 0"), restart="Never")
    ground.apply(job("sum", spec))
    ground.admitted("wait", "job/sum", "--for=condition=Complete", "--timeout=60s")
    [made] = ground.items("pods", "-l", "app=sum")
    state = made["status"]["containerStatuses"][0]["state"]["terminated"]
    assert (state["exitCode"], state["reason"]) == (0, "Completed")
    assert "computed" in ground.admitted("logs", "job/sum")
    uid = made["metadata"]["uid"]
    until(lambda: not held_by(ground.town, uid), "its machine to be released")
    assert "computed" in ground.admitted("logs", "job/sum"), "the log outlives the machine"


def test_a_job_that_fails_says_with_what(ground: Ground) -> None:
    """`podFailurePolicy` and people read the real exit code, not a stand-in."""
    spec = pod_spec(ground.town.node, sh("echo broken >&2; exit 42"), restart="Never")
    ground.apply(job("bad", spec))
    ground.admitted("wait", "job/bad", "--for=condition=Failed", "--timeout=60s")
    [made] = ground.items("pods", "-l", "app=bad")
    assert made["status"]["phase"] == "Failed"
    assert made["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"] == 42


def test_nothing_is_rented_before_a_secret_is_there(ground: Ground) -> None:
    """Money would run while the pod cannot start; once it appears the pod does."""
    wanted = {"secretKeyRef": {"name": "token", "key": "value"}}
    spec = pod_spec(
        ground.town.node,
        sh('echo "got $TOKEN"; sleep 600'),
        container={"env": [{"name": "TOKEN", "valueFrom": wanted}]},
    )
    ground.apply(pod("needy", spec, annotations={"trust": "any"}))

    def waits() -> bool:
        statuses = ground.get("pod", "needy")["status"].get("containerStatuses", [])
        return any(
            each["state"].get("waiting", {}).get("reason") == "CreateContainerConfigError"
            for each in statuses
        )

    until(waits, "CreateContainerConfigError", lambda: ground.describe("pod", "needy"))
    uid = ground.get("pod", "needy")["metadata"]["uid"]
    assert rentals_of(ground.town, uid) == []
    assert "token" in ground.wait_event("needy", "MandatorySecretNotFound")
    ground.admitted("create", "secret", "generic", "token", "--from-literal=value=s3cret")
    ground.wait_ready("needy")
    until(lambda: "got s3cret" in ground.admitted("logs", "needy"), "the value to arrive")


def test_a_pod_that_nobody_offers_anything_for_waits_and_says_why(ground: Ground) -> None:
    """A silent Pending is the commonest complaint about virtual nodes."""
    ground.apply(pod("dreamer", pod_spec(ground.town.node), annotations={"max-price": "0.001"}))
    said = ground.wait_event("dreamer", "NoOffer")
    assert "0.001" in said, said
    made = ground.get("pod", "dreamer")
    assert made["status"]["phase"] == "Pending"
    assert rentals_of(ground.town, made["metadata"]["uid"]) == []
    assert "NoOffer" in ground.describe("pod", "dreamer")


@pytest.mark.parametrize(
    ("name", "more", "says"),
    [
        ("host-path", {"volumes": [{"name": "v", "hostPath": {"path": "/"}}]}, "hostPath"),
        ("host-network", {"hostNetwork": True}, "hostNetwork"),
        ("privileged", {"container": {"securityContext": {"privileged": True}}}, "privileged"),
    ],
)
def test_what_no_rented_machine_can_do_is_refused_before_money(
    ground: Ground, name: str, more: dict[str, Any], says: str
) -> None:
    """A pod that can never run here must say so at once, and for nothing."""
    ground.apply(pod(name, pod_spec(ground.town.node, **more)))
    failed = ground.wait_phase(name, "Failed")
    assert failed["status"]["message"].startswith("Pod was rejected: ")
    assert says in failed["status"]["message"]
    assert rentals_of(ground.town, failed["metadata"]["uid"]) == []


def test_a_pod_deleted_by_force_leaks_no_machine(ground: Ground) -> None:
    """Nobody tells the node but by the object's absence: that has to be enough."""
    ground.apply(pod("gone", pod_spec(ground.town.node, PROGRAM, ports=[8000])))
    uid = ground.wait_ready("gone")["metadata"]["uid"]
    assert len(held_by(ground.town, uid)) == 1
    ground.admitted("delete", "pod", "gone", "--force", "--grace-period=0")
    until(lambda: not held_by(ground.town, uid), "its machine to be released")


def test_the_same_name_made_again_is_another_pod(ground: Ground) -> None:
    """A StatefulSet makes the name anew at once: one machine each, and never the old one's."""
    spec = pod_spec(ground.town.node, PROGRAM, ports=[8000])
    ground.apply(stateful_set("db", spec))
    until(lambda: ground.find("pod", "db-0"), "db-0")
    first = ground.wait_ready("db-0")["metadata"]["uid"]
    ground.admitted("delete", "pod", "db-0", "--wait=false")

    def anew() -> str | None:
        made = ground.find("pod", "db-0")
        return made["metadata"]["uid"] if made and made["metadata"]["uid"] != first else None

    second = until(anew, "another db-0")
    ground.wait_ready("db-0")
    until(lambda: not held_by(ground.town, first), "the first machine to be released")
    assert len(held_by(ground.town, second)) == 1


def test_what_probes_brought_is_told_as_a_kubelet_tells_it(ground: Ground) -> None:
    """Alerts on probes that fail read it from every node, by the API server."""
    probe = {"httpGet": {"path": "/health", "port": 8000}, "periodSeconds": 1, "timeoutSeconds": 5}
    spec = pod_spec(ground.town.node, PROGRAM, ports=[8000], container={"readinessProbe": probe})
    ground.apply(pod("asked", spec))
    uid = ground.wait_ready("asked")["metadata"]["uid"]

    def page() -> str:
        path = f"/api/v1/nodes/{ground.town.node}/proxy/metrics/probes"
        return ground.plane.admitted("get", "--raw", path)

    about = f'container="main",namespace="{ground.name}",pod="asked",pod_uid="{uid}"'
    row = f'prober_probe_total{{{about},probe_type="Readiness",result="successful"}} '
    assert row in page()
    ground.admitted("delete", "pod", "asked", "--timeout=60s")
    until(lambda: uid not in page(), "its counts to go with it")
