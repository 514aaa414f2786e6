"""How a pod's containers stand, from what its worker knows; pure.

This is the way from slots to the entries that a pod's status and the kubelet API speak of: one for
each container of the spec, from the first look on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from msgspec.structs import replace

from gp4u.kubelet.held import ContainerState, Ended, PodObject, Run
from gp4u.kubelet.logs.store import Ending as Marker
from gp4u.kubelet.pods.memory import CREATING, UNKNOWN_EXIT, Memory, Slot, Why
from gp4u.model import InstanceState
from gp4u.rentals.rental import RentalState

TAIL_BYTES = 2048

Tail = Callable[[str, bool], str]
"""Container to the end of the log of its newest run; True: of the run before it."""
Checks = Mapping[str, tuple[bool, bool]]
"""Container to whether its startup probe, and whether its readiness probe, says yes."""


def container_states(
    pod: PodObject, memory: Memory, checks: Checks, *, tail: Tail
) -> tuple[ContainerState, ...]:
    """Return the ordinary containers in the order of the spec.

    `tail` gives the end of a log, for those containers whose termination message falls back to it.
    """
    before = {e["name"]: e for e in pod.get("status", {}).get("containerStatuses", ())}
    states = []
    for spec in pod["spec"]["containers"]:
        name, image = spec["name"], spec.get("image", "")
        slot = next((slot for slot in memory.slots if name in slot.containers), None)
        if slot is None:
            state = _without_machine(pod, memory, name, image)
            told = before.get(name, {}).get("restartCount", 0)
            states.append(replace(state, restarts=told))
            continue
        states.append(_in_slot(spec, memory, slot, checks, tail))
    return tuple(states)


def init_states(
    pod: PodObject,
    memory: Memory,
    app: tuple[ContainerState, ...],
    markers: Callable[[str], Marker | None],
) -> tuple[ContainerState, ...]:
    """Return the init containers: commands that came first in the first machine."""
    begun = any(state.run is not Run.WAITING or state.last_ended for state in app)
    over = memory.is_over
    states = []
    for spec in pod["spec"].get("initContainers", ()):
        name, image = spec["name"], spec.get("image", "")
        state = ContainerState(name=name, image=image, reason="PodInitializing")
        marker = markers(name)
        code = marker.exit_code if marker is not None else None
        if code is None and begun and not (memory.outcome and not app):
            code = 0
        if code is not None:
            ended = Ended(exit_code=code, reason="Completed" if code == 0 else "Error")
            state = replace(state, run=Run.TERMINATED, ended=ended, ready=code == 0, reason="")
        elif over:
            state = _terminated(state, _unknown("the pod ended before it ran"))
        states.append(state)
    return tuple(states)


def is_up(memory: Memory) -> bool:
    """Whether every machine of the pod is there."""
    return bool(memory.slots) and all(
        slot.is_done or (slot.rental is not None and slot.rental.state is RentalState.RUNNING)
        for slot in memory.slots
    )


def is_reachable(slot: Slot) -> bool:
    """Whether the newest listing showed its machine running."""
    rental = slot.rental
    return (
        rental is not None
        and rental.state is RentalState.RUNNING
        and rental.seen is InstanceState.RUNNING
        and rental.missing_since is None
    )


def _without_machine(pod: PodObject, memory: Memory, name: str, image: str) -> ContainerState:
    why = memory.hold or (Why("PodInitializing") if pod["spec"].get("initContainers") else CREATING)
    state = ContainerState(name=name, image=image, reason=why.reason, message=why.message)
    if memory.outcome is None:
        return state
    # Refused before anything ran: a kubelet leaves these containers waiting.
    return state


def _in_slot(
    spec: Mapping[str, object],
    memory: Memory,
    slot: Slot,
    checks: Checks,
    tail: Tail,
) -> ContainerState:
    name, image = str(spec["name"]), str(spec.get("image", ""))
    runs = slot.runs[name]
    follows = runs.begun is not None or runs.done is not None
    last = _told(runs.last, spec, tail, before=follows)
    state = ContainerState(name=name, image=image, restarts=runs.restarts, last_ended=last)
    if runs.done is not None:
        return _terminated(state, _told(runs.done, spec, tail, before=False) or runs.done)
    if memory.outcome is not None:
        if runs.begun is None:
            ended = runs.last or _unknown(memory.outcome.message)
            return _terminated(replace(state, last_ended=None), ended)
        ended = Ended(
            exit_code=UNKNOWN_EXIT,
            reason=memory.outcome.exit_reason,
            message=memory.outcome.message,
            started_at=runs.begun.started_at,
            container_id=runs.begun.container_id,
        )
        return _terminated(state, ended)
    if runs.begun is None:
        why = memory.hold or runs.why or slot.why
        return replace(state, reason=why.reason, message=why.message)
    started, ready = checks.get(name, (False, False))
    return replace(
        state,
        run=Run.RUNNING,
        reason="",
        started_at=runs.begun.started_at,
        container_id=runs.begun.container_id,
        started=started,
        ready=ready and is_reachable(slot),
    )


def _terminated(state: ContainerState, ended: Ended) -> ContainerState:
    return replace(
        state,
        run=Run.TERMINATED,
        reason="",
        ended=ended,
        container_id=ended.container_id,
        started_at=ended.started_at,
    )


def _unknown(message: str) -> Ended:
    return Ended(exit_code=UNKNOWN_EXIT, reason="ContainerStatusUnknown", message=message)


def _told(
    ended: Ended | None, spec: Mapping[str, object], tail: Tail, *, before: bool
) -> Ended | None:
    """Add the end of the log where the container wants it as its message, and failed."""
    if ended is None or ended.message or ended.exit_code == 0:
        return ended
    if spec.get("terminationMessagePolicy") != "FallbackToLogsOnError":
        return ended
    return replace(ended, message=tail(str(spec["name"]), before))
