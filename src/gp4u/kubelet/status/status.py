"""What a pod's status says, made of what the node knows about its containers.

Hides the shape of `v1.PodStatus` and the API's rules for it: how a phase follows from containers,
what each condition says, which members belong to others and are kept, and how a change becomes a
patch. It exists so that one place decides what the cluster is told, without any I/O: a phase never
goes back, a count never falls, a pod that ended stays ended. Writing it is `status_writer.py`'s
part; why a container runs, waits or ended is the controller's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from msgspec import Struct

from gp4u.kubelet.held import ContainerState, Ended, PodObject, Run
from gp4u.kubelet.status.conditions import (
    ENDED,
    conditions,
    incomplete_init,
    is_ours,
    is_sidecar,
    present,
    stamp,
)

Json = dict[str, Any]

LOST: Final = "ContainerStatusUnknown"
"""Reason of a container whose end nobody saw."""
_LOST_EXIT: Final = 137
_MESSAGE_BYTES: Final = (4096, 12 * 1024)
"""Of a container's message, and of all of a pod's together.
Source: Kubernetes documentation, "Determine the Reason for Pod Failure", 1.36; checked 2026-11."""
_PLAIN: Final = ("phase", "reason", "message", "hostIP", "podIP", "startTime")
_WHOLE_LISTS: Final = ("initContainerStatuses", "containerStatuses")
_BY_IP: Final = ("hostIPs", "podIPs")
_ORDER: Final = {"": 0, "Unknown": 0, "Pending": 0, "Running": 1, "Succeeded": 2, "Failed": 2}


class PodState(Struct, frozen=True, kw_only=True):
    """What the node knows about one pod, for its status."""

    containers: tuple[ContainerState, ...] = ()
    init_containers: tuple[ContainerState, ...] = ()
    acknowledged_at: datetime
    """When the node first took it on; only for a pod that has no `startTime` yet."""
    host_ip: str
    pod_ip: str | None = None
    machine_up: bool = False
    """Whether there is a machine in which containers can be started."""
    reason: str = ""
    """Of the pod as a whole: `DeadlineExceeded`, `ProviderFailed`, ...; empty: none."""
    message: str = ""
    phase: str | None = None
    """`Failed` or `Succeeded` by decision, whatever the containers say."""
    disruption: tuple[str, str] | None = None
    """Reason and message of `DisruptionTarget`: the infrastructure took the machine."""
    finalising: bool = False
    """Whether nothing of it will be started again; so is every pod that is being deleted."""
    stopped: bool = False
    """Whether nothing of it runs any more, as it is deleted: what has not ended has failed."""


def phase_of(
    pod: PodObject,
    containers: Sequence[ContainerState],
    init: Sequence[ContainerState],
    *,
    finalising: bool,
) -> str:
    """Return the phase that follows from the containers, as a kubelet would compute it.

    Source: kubernetes pkg/kubelet/kubelet_pods.go, getPhase, 1.32; checked 2026-11.
    """
    spec = pod["spec"]
    policy = spec.get("restartPolicy", "Always")
    states = {each.name: each for each in containers}
    # Where nothing is started again, what waits after its end waits for another machine.
    tally = _Tally(moves=policy == "Never" and not finalising)
    for each in spec["containers"]:
        tally.count(states.get(each["name"]))
    started = any(each.run is not Run.WAITING or each.last_ended for each in containers)
    first = {each.name: each for each in init}
    for each in spec.get("initContainers") or ():
        state = first.get(each["name"])
        if each.get("restartPolicy") == "Always":
            tally.count_sidecar(state)
        else:
            tally.count_init(state)
    if tally.init_failed and policy == "Never":
        return "Failed"
    if tally.init_pending or (tally.sidecars_pending and not started) or tally.waiting:
        return "Pending"
    if tally.running and not tally.unknown:
        return "Running"
    if tally.running or tally.unknown or not tally.stopped:
        return "Pending"
    well = tally.stopped == tally.succeeded
    if finalising:
        return "Succeeded" if well else "Failed"
    if policy == "Always":
        return "Running"
    if well:
        return "Succeeded"
    return "Failed" if policy == "Never" else "Running"


class _Tally:
    """How many containers there are of each kind."""

    def __init__(self, *, moves: bool) -> None:
        self._moves = moves
        self.running = self.waiting = self.stopped = self.succeeded = self.unknown = 0
        self.init_pending = self.init_failed = self.sidecars_pending = 0

    def count(self, state: ContainerState | None) -> None:
        if state is None:
            self.unknown += 1
        elif state.run is Run.RUNNING:
            self.running += 1
        elif state.run is Run.TERMINATED:
            self.stopped += 1
            self.succeeded += int(state.ended is not None and state.ended.exit_code == 0)
        elif state.last_ended is not None and not self._moves:
            # In back-off: it will not do to go back to Pending.
            self.stopped += 1
        else:
            self.waiting += 1

    def count_init(self, state: ContainerState | None) -> None:
        ended = None
        if state is not None:
            if state.run is Run.TERMINATED:
                ended = state.ended
            elif state.run is Run.WAITING:
                ended = state.last_ended
        if ended is None:
            self.init_pending += 1
        elif ended.exit_code != 0:
            self.init_failed += 1

    def count_sidecar(self, state: ContainerState | None) -> None:
        if state is None:
            self.unknown += 1
            self.sidecars_pending += 1
        elif state.run is Run.RUNNING:
            self.running += 1
            self.sidecars_pending += int(not state.started)
        elif state.run is Run.WAITING and state.last_ended is None:
            self.waiting += 1
            self.sidecars_pending += 1


def status_of(pod: PodObject, state: PodState, *, at: datetime) -> Json:
    """Return the whole status of a pod: ours, with everything that belongs to others kept."""
    old = _old_status(pod)
    was = str(old.get("phase") or "")
    finalising = state.finalising or "deletionTimestamp" in pod["metadata"]
    computed = state.phase or phase_of(
        pod, state.containers, state.init_containers, finalising=finalising
    )
    if state.stopped and computed not in ENDED:
        computed = "Failed"
    phase = was if was in ENDED or _ORDER[computed] < _ORDER[was] else computed
    status: Json = {**old, "phase": phase}
    if was not in ENDED:
        _put(status, "reason", state.reason)
        _put(status, "message", state.message)
        _put_addresses(status, "host", state.host_ip)
        _put_addresses(status, "pod", state.pod_ip)
    status.setdefault("startTime", stamp(state.acknowledged_at))
    over = phase in ENDED
    stopped = state.stopped and was not in ENDED
    states = {each.name: each for each in (*state.init_containers, *state.containers)}
    spec = pod["spec"]
    first = spec.get("initContainers") or []
    # What ran before containers were initialised must not wait for them again.
    incomplete = incomplete_init(pod, state.init_containers)
    ran = any(each.run is not Run.WAITING or each.last_ended for each in state.containers)
    initialised = ran or not incomplete
    waiting = "ContainerCreating" if initialised else "PodInitializing"
    each_most, all_most = _MESSAGE_BYTES
    limit = min(each_most, all_most // (len(first) + len(spec["containers"])))
    for member, listed in zip(_WHOLE_LISTS, (first, spec["containers"]), strict=True):
        before = {each["name"]: each for each in old.get(member) or ()}
        default = waiting if listed is not first else _init_default(first)
        entries = []
        for each in listed:
            known = states.get(each["name"])
            entry = _entry(each, known, default, is_init=listed is first, limit=limit)
            earlier = before.get(each["name"])
            entries.append(_settled(entry, earlier, pod, each, was=was, over=over, stopped=stopped))
        if entries:
            status[member] = entries
    status["conditions"] = conditions(
        pod,
        status,
        initialised=initialised,
        incomplete=incomplete,
        machine_up=state.machine_up,
        disruption=state.disruption,
        was=was,
        at=at,
    )
    generation = pod["metadata"].get("generation")
    if generation:
        status["observedGeneration"] = generation
    return status


def status_patch(pod: PodObject, status: Mapping[str, Any]) -> Json | None:
    """Return the strategic merge patch that leads from the pod's status to this one.

    Only members of ours are in it, and only those that changed: a list of containers as a whole,
    conditions by type, addresses by value. `metadata.uid` makes it fail on a namesake. None where
    nothing is to be written.

    Source: kubernetes api core/v1 types.go, patch strategies of PodStatus; checked 2026-11.
    """
    old, changes = _old_status(pod), Json()
    for member in _PLAIN:
        if (old.get(member) or None) != (status.get(member) or None):
            changes[member] = status.get(member) or None
    for member in _WHOLE_LISTS:
        if member in status and not _same(old.get(member) or [], status[member]):
            changes[member] = status[member]
    for member in _BY_IP:
        before = [each["ip"] for each in old.get(member) or ()]
        after = [each["ip"] for each in status.get(member) or ()]
        if before != after:
            gone = [{"ip": ip, "$patch": "delete"} for ip in before if ip not in after]
            changes[member] = [*({"ip": ip} for ip in after), *gone]
    had = {each["type"]: each for each in old.get("conditions") or ()}
    changed = [
        # They are merged member by member, so what is to go has to be named.
        {**dict.fromkeys(had.get(each["type"], {}).keys() - each.keys()), **each}
        for each in status.get("conditions") or ()
        if is_ours(each["type"], had) and not _same_condition(each, had.get(each["type"], {}))
    ]
    if changed:
        changes["conditions"] = changed
    observed = status.get("observedGeneration")
    if observed != old.get("observedGeneration") and (changes or "observedGeneration" in old):
        # A server that does not know the member drops it: by itself that is no reason to write.
        changes["observedGeneration"] = observed
    if not changes:
        return None
    return {"metadata": {"uid": pod["metadata"]["uid"]}, "status": changes}


def resettled(pod: PodObject, status: Mapping[str, Any]) -> Json:
    """Return a status made for an older look at the pod, as it may be written to this one.

    What others wrote meanwhile stays; an end, a start and a count that are there are not undone.
    """
    old = _old_status(pod)
    was = str(old.get("phase") or "")
    if was in ENDED and was != status["phase"]:
        return {**old}
    fresh: Json = {**old, **{each: status[each] for each in status if each != "conditions"}}
    for member in (*_PLAIN, *_BY_IP):
        if was in ENDED and member in old:
            fresh[member] = old[member]
        elif member not in status or (was in ENDED and member != "startTime"):
            fresh.pop(member, None)
    if _ORDER[status["phase"]] < _ORDER[was]:
        fresh["phase"] = was
    if old.get("startTime"):
        fresh["startTime"] = old["startTime"]
    for member in _WHOLE_LISTS:
        before = {each["name"]: each for each in old.get(member) or ()}
        entries = [
            _not_undone(each, before.get(each["name"]), was) for each in status.get(member) or ()
        ]
        if entries:
            fresh[member] = entries
    told = {each["type"]: each for each in old.get("conditions") or ()}
    for each in status["conditions"]:
        before = told.get(each["type"], {})
        if not is_ours(each["type"], told):
            continue
        if each["status"] == before.get("status") and before.get("lastTransitionTime"):
            each = {**each, "lastTransitionTime": before["lastTransitionTime"]}
        told[each["type"]] = each
    fresh["conditions"] = list(told.values())
    return fresh


def _old_status(pod: PodObject) -> Mapping[str, Any]:
    status: Mapping[str, Any] = pod.get("status") or {}
    return status


def _put(status: Json, member: str, text: str) -> None:
    if text:
        status[member] = text
    else:
        status.pop(member, None)


def _put_addresses(status: Json, kind: str, address: str | None) -> None:
    """Write `hostIP` and `hostIPs`, or `podIP` and `podIPs`; the first of the list is the one."""
    if address:
        status[f"{kind}IP"], status[f"{kind}IPs"] = address, [{"ip": address}]
    else:
        status.pop(f"{kind}IP", None)
        status.pop(f"{kind}IPs", None)


def _init_default(first: Sequence[Mapping[str, Any]]) -> str:
    """Return why an init container of which nothing is known waits."""
    return "PodInitializing" if len(first) > 1 else "ContainerCreating"


def _entry(
    container: Mapping[str, Any],
    known: ContainerState | None,
    default: str,
    *,
    is_init: bool,
    limit: int,
) -> Json:
    """Return one container's entry; of one that nothing is known of, that it waits."""
    known = known or ContainerState(name=container["name"], image=container["image"])
    running = known.run is Run.RUNNING
    if is_init and not is_sidecar(container):
        ready = known.ended is not None and known.ended.exit_code == 0
    else:
        ready = running and known.started and known.ready
    if known.run is Run.WAITING:
        reason = default if known.reason == "ContainerCreating" else known.reason
        told = {"waiting": present(reason=reason, message=_cut(known.message, limit))}
    elif running:
        told = {"running": present(startedAt=known.started_at)}
    else:
        told = {"terminated": _terminated(known.ended or _unseen(known), limit)}
    last = {"terminated": _terminated(known.last_ended, limit)} if known.last_ended else {}
    entry: Json = {
        "name": known.name,
        "image": known.image,
        "imageID": "",
        "ready": ready,
        "started": running and known.started,
        "restartCount": known.restarts,
        "state": told,
        "lastState": last,
    }
    ended = [each.container_id for each in (known.ended, known.last_ended) if each is not None]
    container_id = next(filter(None, [known.container_id, *ended]), "")
    return {**entry, "containerID": container_id} if container_id else entry


def _unseen(known: ContainerState) -> Ended:
    return Ended(
        exit_code=_LOST_EXIT,
        reason=LOST,
        message="nobody saw how it ended",
        started_at=known.started_at,
        container_id=known.container_id,
    )


def _cut(text: str, limit: int) -> str:
    """Return what of a text fits into so many bytes of UTF-8."""
    return text.encode(errors="replace")[:limit].decode(errors="ignore")


def _terminated(ended: Ended, limit: int) -> Json:
    return {
        "exitCode": ended.exit_code,
        **present(
            reason=ended.reason,
            message=_cut(ended.message, limit),
            startedAt=ended.started_at,
            finishedAt=ended.finished_at,
            containerID=ended.container_id,
        ),
    }


def _settled(
    entry: Json,
    earlier: Mapping[str, Any] | None,
    pod: PodObject,
    container: Mapping[str, Any],
    *,
    was: str,
    over: bool,
    stopped: bool,
) -> Json:
    """Return the entry as the API's rules and the pod's past allow it."""
    if earlier is not None:
        entry["restartCount"] = max(entry["restartCount"], earlier.get("restartCount", 0))
        ended = (earlier.get("state") or {}).get("terminated")
        if ended is not None:
            back = "terminated" not in entry["state"]
            if was in ENDED or (back and not _may_return(pod, container, ended["exitCode"])):
                return dict(earlier)
    before = (earlier or {}).get("state") or {}
    running = entry["state"].get("running", before.get("running"))
    ran = running is not None or entry["lastState"]
    if over and (ran or stopped) and "terminated" not in entry["state"]:
        since = (running or {}).get("startedAt")
        text = "nobody saw how it ended" if ran else "the pod was deleted before it ran"
        told = {"exitCode": _LOST_EXIT, "reason": LOST, "message": text}
        entry["state"] = {"terminated": {**told, **({"startedAt": since} if since else {})}}
        entry["ready"] = entry["started"] = False
    return entry


def _not_undone(entry: Json, earlier: Mapping[str, Any] | None, was: str) -> Json:
    """Return a container's entry with the count that is there, and the end if the pod has one."""
    if earlier is None:
        return entry
    if was in ENDED and "terminated" in (earlier.get("state") or {}):
        return dict(earlier)
    return {**entry, "restartCount": max(entry["restartCount"], earlier.get("restartCount", 0))}


def _may_return(pod: PodObject, container: Mapping[str, Any], exit_code: int) -> bool:
    """Whether a container that ended may run again: the API refuses a status that breaks this.

    Source: kubernetes pkg/apis/core/validation, ValidateContainerStateTransition, 1.32; checked
    2026-11.
    """
    if is_sidecar(container):
        return True
    policy = pod["spec"].get("restartPolicy", "Always")
    return policy == "Always" or (policy == "OnFailure" and exit_code != 0)


def _same(one: Any, other: Any) -> bool:
    """Whether both say the same, apart from what only says that nothing is there."""
    return bool(one == other or _pruned(one) == _pruned(other))


def _pruned(value: Any) -> Any:
    if isinstance(value, dict):
        kept = {key: _pruned(each) for key, each in value.items()}
        return {key: each for key, each in kept.items() if each not in (None, "", [])}
    if isinstance(value, list):
        return [_pruned(each) for each in value]
    return value


def _same_condition(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    if one == other:
        return True
    return all(
        (one.get(key) or None) == (other.get(key) or None)
        for key in one.keys() | other.keys()
        if key not in ("observedGeneration", "lastProbeTime")
    )
