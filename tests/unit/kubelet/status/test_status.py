"""What a pod's status says, and what of it is written."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from msgspec.structs import replace

from gp4u.kubelet.held import ContainerState, Ended, Run
from gp4u.kubelet.status.status import PodState, phase_of, resettled, status_of, status_patch
from tests.kube_merge import strategic

AT = datetime(2026, 11, 1, 12, tzinfo=UTC)
LATER = AT + timedelta(minutes=1)


def pod(
    *names: str,
    policy: str = "Always",
    init: tuple[str, ...] = (),
    sidecars: tuple[str, ...] = (),
    status: dict[str, Any] | None = None,
    **meta: Any,
) -> dict[str, Any]:
    first = [{"name": name, "image": "init:1"} for name in init]
    first += [{"name": name, "image": "side:1", "restartPolicy": "Always"} for name in sidecars]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "job", "namespace": "default", "uid": "u-1", **meta},
        "spec": {
            "restartPolicy": policy,
            "containers": [{"name": name, "image": "app:1"} for name in names or ("app",)],
            **({"initContainers": first} if first else {}),
        },
        "status": status or {"phase": "Pending", "qosClass": "BestEffort"},
    }


def waiting(name: str = "app", **more: Any) -> ContainerState:
    return ContainerState(name=name, image="app:1", **more)


def running(name: str = "app", **more: Any) -> ContainerState:
    more = {"started": True, "ready": True, **more}
    return ContainerState(
        name=name, image="app:1", run=Run.RUNNING, started_at=AT, container_id="gp4u://i/1", **more
    )


def ended(code: int, name: str = "app", **more: Any) -> ContainerState:
    end = Ended(exit_code=code, reason="Error" if code else "Completed", finished_at=AT)
    return ContainerState(name=name, image="app:1", run=Run.TERMINATED, ended=end, **more)


def backing_off(code: int, name: str = "app") -> ContainerState:
    end = Ended(exit_code=code, reason="Error", finished_at=AT)
    return waiting(name, reason="CrashLoopBackOff", last_ended=end, restarts=3)


def state(*containers: ContainerState, **more: Any) -> PodState:
    more = {"acknowledged_at": AT, "host_ip": "10.0.0.9", **more}
    return PodState(containers=containers or (waiting(),), **more)


def condition(status: dict[str, Any], kind: str) -> dict[str, Any]:
    return next(each for each in status["conditions"] if each["type"] == kind)


def applied(old: dict[str, Any], status: dict[str, Any]) -> dict[str, Any]:
    patch = status_patch(old, status)
    assert patch is not None
    merged: dict[str, Any] = strategic(old, patch)
    return merged


@pytest.mark.parametrize(
    ("policy", "containers", "finalising", "phase"),
    [
        ("Always", (waiting("a"), running("b")), False, "Pending"),
        ("Always", (running("a"), running("b")), False, "Running"),
        ("Always", (running("a"), ended(0, "b")), False, "Running"),
        ("Always", (running("a"), backing_off(1, "b")), False, "Running"),
        ("Always", (backing_off(1, "a"), ended(0, "b")), False, "Running"),
        ("Always", (ended(0, "a"), ended(0, "b")), True, "Succeeded"),
        ("Always", (ended(0, "a"), ended(1, "b")), True, "Failed"),
        ("OnFailure", (ended(0, "a"), ended(0, "b")), False, "Succeeded"),
        ("OnFailure", (ended(0, "a"), ended(1, "b")), False, "Running"),
        ("Never", (ended(0, "a"), ended(0, "b")), False, "Succeeded"),
        ("Never", (ended(0, "a"), ended(1, "b")), False, "Failed"),
        ("Never", (ended(1, "a"), backing_off(1, "b")), True, "Failed"),
        ("Always", (running("a"),), False, "Pending"),
    ],
)
def test_a_phase_follows_from_the_containers_as_a_kubelet_has_it(
    policy: str, containers: tuple[ContainerState, ...], finalising: bool, phase: str
) -> None:
    """Controllers of Kubernetes act on the phase, and were written against a kubelet's."""
    found = phase_of(pod("a", "b", policy=policy), containers, (), finalising=finalising)
    assert found == phase


@pytest.mark.parametrize(
    ("policy", "init", "phase"),
    [
        ("Always", (running("setup"),), "Pending"),
        ("Always", (ended(1, "setup"),), "Pending"),
        ("Never", (ended(1, "setup"),), "Failed"),
        ("Never", (), "Pending"),
    ],
)
def test_a_pod_whose_init_container_is_not_through_is_pending_or_failed(
    policy: str, init: tuple[ContainerState, ...], phase: str
) -> None:
    """Nothing of the pod itself runs before that."""
    about = pod(policy=policy, init=("setup",))
    assert phase_of(about, (waiting(),), init, finalising=False) == phase


def test_a_sidecar_that_is_not_started_holds_the_phase_until_something_runs() -> None:
    """Later on its restart must not throw the pod back to Pending."""
    about = pod(sidecars=("proxy",))
    slow = running("proxy", started=False, ready=False)
    assert phase_of(about, (waiting(),), (slow,), finalising=False) == "Pending"
    assert phase_of(about, (running(),), (slow,), finalising=False) == "Running"


def test_the_first_status_has_an_entry_for_every_container() -> None:
    """Clients index by name, and a list that is short breaks them."""
    about = pod("a", "b", init=("setup", "more"), sidecars=("proxy",))
    status = status_of(about, state(waiting("a")), at=AT)
    assert [each["name"] for each in status["containerStatuses"]] == ["a", "b"]
    assert [each["name"] for each in status["initContainerStatuses"]] == ["setup", "more", "proxy"]
    reasons = {each["state"]["waiting"]["reason"] for each in status["containerStatuses"]}
    assert reasons == {"PodInitializing"}
    assert status["phase"] == "Pending"
    assert status["startTime"] == "2026-11-01T12:00:00Z"
    told = condition(status, "Initialized")
    assert told["reason"] == "ContainersNotInitialized"
    assert told["message"] == "containers with incomplete status: [setup more proxy]"


def test_a_running_pod_says_that_it_is_ready() -> None:
    """What Services, Deployments and people go by."""
    status = status_of(pod(), state(running(), machine_up=True, pod_ip="10.1.2.3"), at=AT)
    values = {each["type"]: each["status"] for each in status["conditions"]}
    assert values == {
        "PodScheduled": "True",
        "PodReadyToStartContainers": "True",
        "Initialized": "True",
        "ContainersReady": "True",
        "Ready": "True",
    }
    assert status["podIP"] == "10.1.2.3"
    assert status["podIPs"] == [{"ip": "10.1.2.3"}]
    assert status["qosClass"] == "BestEffort"
    entry = status["containerStatuses"][0]
    assert entry["containerID"] == "gp4u://i/1"
    assert entry["state"] == {"running": {"startedAt": "2026-11-01T12:00:00Z"}}


def test_a_readiness_gate_that_is_closed_keeps_a_pod_from_being_ready() -> None:
    """Load balancers open it once they know the pod."""
    about = pod()
    about["spec"]["readinessGates"] = [{"conditionType": "example.org/lb"}]
    status = status_of(about, state(running()), at=AT)
    assert condition(status, "ContainersReady")["status"] == "True"
    assert condition(status, "Ready")["reason"] == "ReadinessGatesNotReady"
    about["status"]["conditions"] = [{"type": "example.org/lb", "status": "True"}]
    assert condition(status_of(about, state(running()), at=AT), "Ready")["status"] == "True"


def test_conditions_of_others_are_kept_and_never_written() -> None:
    """Whoever owns one would fight with us."""
    theirs = {"type": "example.org/lb", "status": "True", "lastTransitionTime": "x"}
    about = pod(status={"phase": "Pending", "conditions": [theirs]})
    status = status_of(about, state(), at=AT)
    assert condition(status, "example.org/lb") == theirs
    patch = status_patch(about, status)
    assert patch is not None
    assert "example.org/lb" not in {each["type"] for each in patch["status"]["conditions"]}


def test_a_condition_moves_its_time_only_when_it_flips() -> None:
    """How long a pod has been ready is read from there."""
    first = applied(pod(), status_of(pod(), state(running(ready=False)), at=AT))
    again = status_of(first, state(running(ready=False), waiting("other")), at=LATER)
    assert condition(again, "Ready")["lastTransitionTime"] == "2026-11-01T12:00:00Z"
    ready = status_of(first, state(running()), at=LATER)
    assert condition(ready, "Ready")["lastTransitionTime"] == "2026-11-01T12:01:00Z"
    assert condition(ready, "Initialized")["lastTransitionTime"] == "2026-11-01T12:00:00Z"


def test_a_pod_that_ended_stays_as_it_ended() -> None:
    """A Job has counted it; a second end would be another one."""
    about = pod(policy="Never")
    over = applied(about, status_of(about, state(ended(3)), at=AT))
    assert over["status"]["phase"] == "Failed"
    again = status_of(over, state(running(), pod_ip="10.1.1.1", reason="Other"), at=LATER)
    assert status_patch(over, again) is None


def test_a_pod_that_is_failed_by_decision_leaves_no_container_running() -> None:
    """A container that runs in a pod that failed would be waited for, for ever."""
    about = pod(policy="Always")
    up = applied(about, status_of(about, state(running()), at=AT))
    lost = state(
        running(),
        phase="Failed",
        reason="InstanceLost",
        message="its host went away",
        disruption=("TerminationByKubelet", "the market took the machine"),
    )
    status = status_of(up, lost, at=LATER)
    assert status["phase"] == "Failed"
    assert status["reason"] == "InstanceLost"
    entry = status["containerStatuses"][0]
    assert entry["state"]["terminated"]["exitCode"] == 137
    assert entry["state"]["terminated"]["reason"] == "ContainerStatusUnknown"
    assert entry["ready"] is False
    assert condition(status, "Ready")["reason"] == "PodFailed"
    assert condition(status, "DisruptionTarget")["status"] == "True"


def test_a_refused_pod_has_containers_that_never_ran() -> None:
    """An exit code of something that was never started would be an invention."""
    status = status_of(pod(), state(phase="Failed", reason="OutOfnvidia.com/gpu"), at=AT)
    assert status["phase"] == "Failed"
    assert "waiting" in status["containerStatuses"][0]["state"]


def test_a_pod_that_is_deleted_ends_when_its_containers_have() -> None:
    """With restartPolicy Always it would otherwise run for ever."""
    about = pod(deletionTimestamp="2026-11-01T12:00:30Z")
    assert status_of(about, state(ended(0)), at=AT)["phase"] == "Succeeded"
    assert status_of(about, state(ended(137)), at=AT)["phase"] == "Failed"


def test_a_restart_count_never_falls() -> None:
    """After a restart of this process its own count begins anew, the pod's does not."""
    about = pod()
    up = applied(about, status_of(about, state(running(restarts=4)), at=AT))
    again = status_of(up, state(running(restarts=0)), at=LATER)
    assert again["containerStatuses"][0]["restartCount"] == 4


def test_a_container_that_may_not_run_again_is_left_as_it_ended() -> None:
    """The API server refuses a status that says otherwise, and all of it."""
    about = pod("a", "b", policy="Never")
    half = applied(about, status_of(about, state(ended(0, "a"), running("b")), at=AT))
    again = status_of(half, state(running("a"), running("b")), at=LATER)
    assert "terminated" in again["containerStatuses"][0]["state"]


def test_a_running_pod_does_not_become_pending_again() -> None:
    """A machine that is replaced leaves the phase alone; the containers tell."""
    up = applied(pod(), status_of(pod(), state(running()), at=AT))
    status = status_of(up, state(waiting()), at=LATER)
    assert status["phase"] == "Running"
    assert condition(status, "Ready")["status"] == "False"


def test_nothing_is_written_when_nothing_changed() -> None:
    """A node of a thousand pods would otherwise write all day."""
    up = applied(pod(), status_of(pod(), state(running()), at=AT))
    # As the server gives it back: with what is empty.
    entry = up["status"]["containerStatuses"][0]
    entry["lastState"], entry["imageID"] = {}, ""
    for each in up["status"]["conditions"]:
        each["lastProbeTime"] = None
    assert status_patch(up, status_of(up, state(running()), at=LATER)) is None


def test_an_address_that_is_gone_is_deleted_from_its_list() -> None:
    """The lists of addresses are merged by value, so that what is left out would stay."""
    up = applied(pod(), status_of(pod(), state(running(), pod_ip="10.1.1.1"), at=AT))
    moved = status_of(up, state(running(), pod_ip="10.1.1.2"), at=LATER)
    patch = status_patch(up, moved)
    assert patch is not None
    assert {"ip": "10.1.1.1", "$patch": "delete"} in patch["status"]["podIPs"]
    after = applied(up, moved)
    assert after["status"]["podIPs"] == [{"ip": "10.1.1.2"}]
    gone = applied(after, status_of(after, state(running()), at=LATER))
    assert "podIP" not in gone["status"]
    assert gone["status"]["podIPs"] == []


def test_a_patch_names_the_pod_that_it_is_meant_for() -> None:
    """A StatefulSet makes a pod of the same name; its status is not ours to write."""
    patch = status_patch(pod(), status_of(pod(), state(), at=AT))
    assert patch is not None
    assert patch["metadata"] == {"uid": "u-1"}


def test_a_reason_that_has_passed_is_taken_back() -> None:
    """`kubectl get pods` would show it in place of Running."""
    refused = state(reason="ProviderFailed", message="no offer")
    about = applied(pod(), status_of(pod(), refused, at=AT))
    assert about["status"]["reason"] == "ProviderFailed"
    cleared = applied(about, status_of(about, state(running()), at=LATER))
    assert "reason" not in cleared["status"]
    assert "message" not in cleared["status"]


def test_the_generation_acted_on_is_told_where_there_is_one() -> None:
    """From 1.33 on; a server that drops it must not be written to for ever."""
    about = pod(generation=2)
    status = status_of(about, state(running()), at=AT)
    assert status["observedGeneration"] == 2
    assert condition(status, "Ready")["observedGeneration"] == 2
    kept = applied(about, status)
    for each in kept["status"]["conditions"]:
        del each["observedGeneration"]
    del kept["status"]["observedGeneration"]
    assert status_patch(kept, status_of(kept, state(running()), at=LATER)) is None


def test_a_status_for_an_older_look_does_not_undo_what_came_meanwhile() -> None:
    """PodGC may have failed the pod, and another controller may have opened a gate."""
    about = pod()
    status = status_of(about, state(running()), at=AT)
    gate = {"type": "example.org/lb", "status": "True"}
    fresh = {**about, "status": {"phase": "Failed", "reason": "Lost", "conditions": [gate]}}
    assert status_patch(fresh, resettled(fresh, status)) is None
    fresh = {**about, "status": {"phase": "Pending", "conditions": [gate]}}
    after = applied(fresh, resettled(fresh, status))
    assert after["status"]["phase"] == "Running"
    assert gate in after["status"]["conditions"]


def test_a_long_message_is_cut_to_what_the_api_takes() -> None:
    """A log's end can be as long as it likes; a status cannot."""
    end = Ended(exit_code=1, reason="Error", message="x" * 10_000)
    dead = replace(ended(1), ended=end)
    status = status_of(pod(policy="Never"), state(dead), at=AT)
    assert len(status["containerStatuses"][0]["state"]["terminated"]["message"]) == 4096


def test_what_runs_since_nobody_knows_when_ends_with_its_pod_as_well() -> None:
    """Nothing of a pod that is over may count as running, seen to begin or not."""
    unseen = ContainerState(name="app", image="app:1", run=Run.RUNNING)
    status = status_of(pod(), state(unseen, phase="Failed"), at=AT)
    (entry,) = status["containerStatuses"]
    assert entry["state"]["terminated"]["exitCode"] == 137
