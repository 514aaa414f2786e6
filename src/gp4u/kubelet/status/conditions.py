"""The conditions of a pod: what each says, and which of them are ours to write.

Hides their order, their reasons, and that a time in one moves only when it flips. Conditions of
others - readiness gates, the scheduler, controllers - are kept as they are. What the rest of a
status says is `status.py`'s part.

Source: kubernetes pkg/kubelet/status/generate.go, 1.32; checked 2026-11.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final

from gp4u.kubelet.held import ContainerState, PodObject

Json = dict[str, Any]

ENDED: Final = frozenset({"Succeeded", "Failed"})
_READY_TO_START: Final = "PodReadyToStartContainers"
_OURS: Final = frozenset(
    {
        _READY_TO_START,
        "Initialized",
        "ContainersReady",
        "Ready",
        "DisruptionTarget",
        "PodResizePending",
    }
)


def conditions(
    pod: PodObject,
    status: Mapping[str, Any],
    *,
    initialised: bool,
    incomplete: Sequence[str],
    machine_up: bool,
    disruption: tuple[str, str] | None,
    was: str,
    at: datetime,
) -> list[Json]:
    """Return all conditions for a new status: those of others as they are, and ours.

    `status` has its phase and its container entries, and the conditions as they were; `was` is the
    phase before; `disruption` is reason and message of one that there is.
    """
    had = {each["type"]: each for each in status.get("conditions") or ()}
    generation = pod["metadata"].get("generation")
    phase = status["phase"]
    said: dict[str, tuple[bool, str, str]] = {}
    if "PodScheduled" not in had:
        said["PodScheduled"] = (True, "", "")
    said[_READY_TO_START] = (machine_up and phase not in ENDED, "", "")
    said["Initialized"] = _initialised(
        phase, had.get("Initialized"), initialised=initialised, incomplete=incomplete
    )
    ready = _containers_ready(pod, status)
    said["ContainersReady"] = ready
    said["Ready"] = _ready(pod, ready, had)
    if disruption is not None and was not in ENDED:
        said["DisruptionTarget"] = (True, *disruption)
    told = dict(had)
    for kind, (holds, reason, message) in said.items():
        value, before = "True" if holds else "False", had.get(kind, {})
        flipped = before.get("status") != value
        condition: Json = {
            "type": kind,
            "status": value,
            "lastTransitionTime": stamp(at)
            if flipped or not before.get("lastTransitionTime")
            else before["lastTransitionTime"],
            **present(reason=reason, message=message),
        }
        if generation:
            condition["observedGeneration"] = generation
        told[kind] = condition
    return list(told.values())


def is_ours(kind: str, had: Mapping[str, object]) -> bool:
    """Whether we write a condition; that a pod is bound we only add where nobody says it.

    `had` is keyed by the types that the pod has.
    """
    return kind in _OURS or (kind == "PodScheduled" and kind not in had)


def is_sidecar(container: Mapping[str, Any]) -> bool:
    """Whether an init container stays beside the others."""
    return container.get("restartPolicy") == "Always"


def incomplete_init(pod: PodObject, init: Sequence[ContainerState]) -> list[str]:
    """Return the names of the init containers that are not through yet."""
    states = {each.name: each for each in init}
    names = []
    for each in pod["spec"].get("initContainers") or ():
        found = states.get(each["name"])
        if found is None:
            done = False
        elif is_sidecar(each):
            done = found.started or found.ended is not None
        else:
            done = found.ended is not None and found.ended.exit_code == 0
        if not done:
            names.append(each["name"])
    return names


def stamp(at: datetime) -> str:
    """Return a time as the API writes it: RFC 3339, whole seconds, `Z`."""
    return _stamped(int(at.timestamp()))


@lru_cache(maxsize=64)
def _stamped(at_s: int) -> str:
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def present(**members: str | datetime | None) -> Json:
    """Return the members that have a value, times as the API writes them."""
    return {
        name: stamp(value) if isinstance(value, datetime) else value
        for name, value in members.items()
        if value
    }


def _initialised(
    phase: str,
    before: Mapping[str, Any] | None,
    *,
    initialised: bool,
    incomplete: Sequence[str],
) -> tuple[bool, str, str]:
    if phase == "Succeeded":
        return True, "PodCompleted", ""
    if initialised or (before or {}).get("status") == "True":
        return True, "", ""
    told = f"containers with incomplete status: [{' '.join(incomplete)}]"
    return False, "ContainersNotInitialized", told


def _containers_ready(pod: PodObject, status: Mapping[str, Any]) -> tuple[bool, str, str]:
    match status["phase"]:
        case "Succeeded":
            return False, "PodCompleted", ""
        case "Failed":
            return False, "PodFailed", ""
    sidecars = {
        each["name"] for each in pod["spec"].get("initContainers") or () if is_sidecar(each)
    }
    beside = [
        each for each in status.get("initContainerStatuses") or () if each["name"] in sidecars
    ]
    entries = [*beside, *status["containerStatuses"]]
    unready = " ".join(each["name"] for each in entries if not each["ready"])
    if unready:
        return False, "ContainersNotReady", f"containers with unready status: [{unready}]"
    return True, "", ""


def _ready(
    pod: PodObject, containers: tuple[bool, str, str], had: Mapping[str, Mapping[str, Any]]
) -> tuple[bool, str, str]:
    if not containers[0]:
        return containers
    gates = [each["conditionType"] for each in pod["spec"].get("readinessGates") or ()]
    closed = [gate for gate in gates if had.get(gate, {}).get("status") != "True"]
    if closed:
        return False, "ReadinessGatesNotReady", f"readiness gates that are not True: {closed}"
    return True, "", ""
