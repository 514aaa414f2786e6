"""Laws of a pod's status, whatever its containers do and whoever else writes to it."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from gp4u.kubelet.held import ContainerState, Ended, Run
from gp4u.kubelet.status.status import PodState, resettled, status_of, status_patch
from tests.kube_merge import strategic
from tests.virtual_loop import EPOCH

RANK = {"Pending": 0, "Running": 1, "Succeeded": 2, "Failed": 2}
OURS = {"PodReadyToStartContainers", "Initialized", "ContainersReady", "Ready", "DisruptionTarget"}
TEXTS = st.sampled_from(["", "why", "because of this"])
STAMPS = st.integers(0, 100).map(lambda s: EPOCH + timedelta(seconds=s))
IPS = st.sampled_from([None, "10.0.0.1", "10.0.0.2", "fd00::1"])


@st.composite
def endings(draw: st.DrawFn) -> Ended:
    return Ended(
        exit_code=draw(st.sampled_from([0, 1, 137])),
        reason=draw(st.sampled_from(["Completed", "Error", "OOMKilled"])),
        message=draw(TEXTS),
        started_at=draw(st.none() | STAMPS),
        finished_at=draw(st.none() | STAMPS),
        container_id=draw(st.sampled_from(["", "gp4u://i/1"])),
    )


@st.composite
def containers(draw: st.DrawFn, name: str) -> ContainerState:
    run = draw(st.sampled_from(list(Run)))
    return ContainerState(
        name=name,
        image="app:1",
        run=run,
        reason=draw(st.sampled_from(["ContainerCreating", "CrashLoopBackOff"])),
        message=draw(TEXTS),
        started_at=draw(st.none() | STAMPS),
        container_id=draw(st.sampled_from(["", "gp4u://i/1", "gp4u://i/2"])),
        ended=draw(endings()) if run is Run.TERMINATED else None,
        last_ended=draw(st.none() | endings()),
        restarts=draw(st.integers(0, 5)),
        started=draw(st.booleans()),
        ready=draw(st.booleans()),
    )


class PodStatus(RuleBasedStateMachine):
    """One pod under random reports of the node, and writes of others in between."""

    def __init__(self) -> None:
        super().__init__()
        self.pod: dict[str, Any] = {}
        self.at: datetime = EPOCH
        self.before: dict[str, Any] = {}
        self.tidy = True
        """Whether the node has reported since anybody else ended the pod."""

    @initialize(
        policy=st.sampled_from(["Always", "OnFailure", "Never"]),
        count=st.integers(1, 2),
        first=st.sampled_from([(), ("init",), ("init", "proxy"), ("proxy",)]),
        generation=st.sampled_from([None, 1]),
        gates=st.booleans(),
    )
    def begin(
        self, policy: str, count: int, first: tuple[str, ...], generation: int | None, gates: bool
    ) -> None:
        init: list[dict[str, Any]] = [{"name": name, "image": "app:1"} for name in first]
        for each in init:
            if each["name"] == "proxy":
                each["restartPolicy"] = "Always"
        self.pod = {
            "metadata": {"name": "p", "namespace": "n", "uid": "u", "generation": generation},
            "spec": {
                "restartPolicy": policy,
                "containers": [{"name": f"c{i}", "image": "app:1"} for i in range(count)],
                "initContainers": init,
                "readinessGates": [{"conditionType": "example.org/gate"}] if gates else [],
            },
            "status": {"phase": "Pending", "qosClass": "Burstable"},
        }

    @rule(data=st.data(), stale=st.booleans())
    def report(self, data: st.DataObject, stale: bool) -> None:
        """The node tells how things stand; `stale`: it has seen only the pod of the last report."""
        spec = self.pod["spec"]
        self.at += timedelta(seconds=data.draw(st.integers(0, 3)))
        known = [c["name"] for c in spec["containers"] if data.draw(st.integers(0, 9))]
        state = PodState(
            containers=tuple(data.draw(containers(name)) for name in known),
            init_containers=tuple(
                data.draw(containers(each["name"])) for each in spec["initContainers"]
            ),
            acknowledged_at=self.at,
            host_ip="10.9.9.9",
            pod_ip=data.draw(IPS),
            machine_up=data.draw(st.booleans()),
            reason=data.draw(TEXTS),
            message=data.draw(TEXTS),
            phase=data.draw(st.sampled_from([None] * 8 + ["Failed", "Succeeded"])),
            disruption=data.draw(st.sampled_from([None, None, ("TerminationByKubelet", "gone")])),
            finalising=data.draw(st.booleans()),
        )
        seen = {**self.pod, "status": self.before} if stale and self.before else self.pod
        status = resettled(self.pod, status_of(seen, state, at=self.at))
        self._write(status)
        self.tidy = self.tidy or not stale
        repeated = resettled(self.pod, status_of(self.pod, state, at=self.at))
        if not stale:
            assert status_patch(self.pod, repeated) is None, "a report that is repeated is written"

    @rule(chance=st.integers(0, 9))
    def others_write(self, chance: int) -> None:
        """Somebody opens a gate; seldom, the pod collector ends the pod."""
        gate = {"type": "example.org/gate", "status": "True", "lastTransitionTime": str(chance)}
        change: dict[str, Any] = {"conditions": [gate]}
        if chance == 0 and RANK[self.pod["status"]["phase"]] < 2:
            change["phase"] = "Failed"
            self.tidy = False
        self.pod = strategic(self.pod, {"status": change})

    def _write(self, status: dict[str, Any]) -> None:
        old = self.pod["status"]
        patch = status_patch(self.pod, status)
        self.before = old
        if patch is None:
            return
        assert patch["metadata"]["uid"] == "u"
        self.pod = strategic(self.pod, patch)
        new = self.pod["status"]
        for member in ("phase", "reason", "message", "hostIP", "podIP", "startTime"):
            assert new.get(member) == status.get(member), f"the patch does not bring {member}"
        for member in ("containerStatuses", "initContainerStatuses"):
            assert new.get(member, []) == status.get(member, [])
        assert sorted(each["ip"] for each in new.get("podIPs", ())) == sorted(
            each["ip"] for each in status.get("podIPs", ())
        )
        told = {each["type"]: each for each in status["conditions"]}
        assert {each["type"]: each for each in new["conditions"]} == told
        self._compare(old, new)

    def _compare(self, old: dict[str, Any], new: dict[str, Any]) -> None:
        was, phase = old["phase"], new["phase"]
        assert RANK[phase] >= RANK[was], f"{was} became {phase}"
        if RANK[was] == 2:
            assert phase == was
            assert old.get("reason") == new.get("reason")
        assert old.get("startTime") in (None, new["startTime"])
        assert new["qosClass"] == "Burstable"
        for member in ("containerStatuses", "initContainerStatuses"):
            counts = {each["name"]: each["restartCount"] for each in old.get(member, ())}
            for each in new.get(member, ()):
                assert each["restartCount"] >= counts.get(each["name"], 0)
        had = {each["type"]: each for each in old.get("conditions", ())}
        for each in new["conditions"]:
            before = had.get(each["type"])
            if before is None:
                continue
            if each["type"] not in OURS:
                assert each == before, "a condition of others was written"
            elif each["status"] == before["status"]:
                assert each["lastTransitionTime"] == before["lastTransitionTime"]

    @invariant()
    def it_is_whole(self) -> None:
        """What the API would refuse, or what breaks a client."""
        status = self.pod.get("status", {})
        if "containerStatuses" not in status:
            return
        spec = self.pod["spec"]
        names = [each["name"] for each in status["containerStatuses"]]
        assert names == [each["name"] for each in spec["containers"]]
        for each in (*status["containerStatuses"], *status.get("initContainerStatuses", ())):
            assert len(each["state"]) == 1
            assert not (each["ready"] and "waiting" in each["state"])
            if RANK[status["phase"]] == 2:
                assert "running" not in each["state"] or not self.tidy
        told = {each["type"]: each["status"] for each in status["conditions"]}
        if RANK[status["phase"]] == 2 and self.tidy:
            assert told["Ready"] == told["ContainersReady"] == "False"
        if told["Ready"] == "True":
            assert told["ContainersReady"] == "True"
            assert all(each["ready"] for each in status["containerStatuses"])

    def teardown(self) -> None:
        if "conditions" in self.pod.get("status", {}):
            self.it_is_whole()


TestPodStatus = PodStatus.TestCase
TestPodStatus.settings = settings(max_examples=100, stateful_step_count=12, deadline=None)
