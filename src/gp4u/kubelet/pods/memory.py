"""What a worker knows of its pod beside the pod itself: frozen values, replaced step by step.

A slot is the place of one machine: an ordinary pod has one, a pod that is split has one for each
container. Nothing here outlives the process, and nothing has to: what must not be forgotten is in
the ledger (what is rented) and in the pod's status (when it was acknowledged, how often it was
restarted), and `recalled` reads it from there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from msgspec import Struct
from msgspec.structs import replace

from gp4u.kubelet.held import Ended, PodObject
from gp4u.kubelet.logs.store import Ending as Marker
from gp4u.kubelet.spec.annotations import PREFIX, Wish
from gp4u.kubelet.spec.workload import Machine
from gp4u.model import Demand, RentalKey, Workload
from gp4u.rentals.rental import Rental

TERMINAL: Final = frozenset({"Succeeded", "Failed"})
UNKNOWN_EXIT: Final = 137
"""What is reported of a run whose end nobody saw."""


class Why(Struct, frozen=True):
    """Why a container does not run: the reason and message of its `waiting` state."""

    reason: str
    message: str = ""


CREATING: Final = Why("ContainerCreating")


class Begun(Struct, frozen=True, kw_only=True):
    """A run that goes on."""

    container_id: str
    started_at: datetime
    number: int = 0
    """As the machine counts its runs, from 1; 0: it has not told."""


class Beside(Struct, frozen=True, kw_only=True):
    """A container beside the first one of a machine; its members mean what they do in `Slot`."""

    name: str
    why: Why | None = None
    """None: it waits for what its machine waits for."""
    begun: Begun | None = None
    done: Ended | None = None
    last: Ended | None = None
    had_run: bool = False
    restarts: int = 0
    crashes: int = 0
    inside: int = 0


class Slot(Struct, frozen=True, kw_only=True):
    """One machine of a pod, whether it is there or only wanted, and the first container on it."""

    suffix: str = ""
    """What follows the pod in the rental's owner."""
    containers: tuple[str, ...]
    beside: tuple[Beside, ...] = ()
    """The containers but the first, in order."""
    workload: Workload
    demand: Demand
    rental: Rental | None = None
    """The newest one, in any state."""
    renting: bool = False
    """Whether a rent is under way, or waits for its turn."""
    settled: RentalKey | None = None
    """The rental whose end has been dealt with."""
    replace: bool = False
    """Whether the machine that is there shall make room for another one."""
    why: Why = CREATING
    rent_at_s: float = 0.0
    """Loop time before which nothing is rented."""
    misses: int = 0
    """Rents and machines in a row that came to nothing."""
    avoid: tuple[tuple[str, str, float], ...] = ()
    """Machines that did not serve: provider, machine, loop time up to which they are avoided."""
    begun: Begun | None = None
    done: Ended | None = None
    """How the last run ended, where no other one follows."""
    last: Ended | None = None
    """How the run before ended."""
    ran_on: RentalKey | None = None
    """The rental of the newest run."""
    had_run: bool = False
    restarts: int = 0
    crashes: int = 0
    """Runs in a row that ended soon."""
    again_at_s: float | None = None
    """When the workload is to be started again in its machine."""
    restarted_at: datetime | None = None
    """When it last was: what a listing says of the time before is no news."""
    stale: Marker | None = None
    """What the log said last before that."""
    inside: int = 0
    """The run that ended, as the machine counts, where the machine itself begins the next one."""
    looked_s: float = 0.0
    """When its log was last read for the end of a run, and how often since it began."""
    looks: int = 0

    @property
    def is_held(self) -> bool:
        """Whether there is a rental that its owner wants."""
        return self.rental is not None and self.rental.is_live

    @property
    def runs(self) -> Mapping[str, Slot | Beside]:
        """Container to what is known of its runs."""
        return {self.containers[0]: self, **{each.name: each for each in self.beside}}

    @property
    def running(self) -> tuple[str, ...]:
        """The containers of which a run goes on."""
        return tuple(name for name, each in self.runs.items() if each.begun is not None)

    @property
    def is_done(self) -> bool:
        """Whether none of its containers will run again."""
        return all(each.done is not None for each in self.runs.values())

    @property
    def exit_code(self) -> int:
        """With what its containers ended, as one: 0 only if all did with it."""
        ends = [each.done for each in self.runs.values()]
        return next((end.exit_code for end in ends if end is not None and end.exit_code), 0)


class Outcome(Struct, frozen=True, kw_only=True):
    """How the whole pod ended, where its containers alone do not tell."""

    phase: str
    reason: str
    message: str
    disruption: tuple[str, str] | None = None
    """Reason and message of the condition `DisruptionTarget`."""
    exit_reason: str = "ContainerStatusUnknown"
    """Of containers that were running then."""


class Memory(Struct, frozen=True, kw_only=True):
    """All that a worker knows of its pod; see the module's docstring."""

    acknowledged_at: datetime | None = None
    acknowledged: bool = False
    """Whether this process has told so, and looked for what must be known before anything else."""
    wish: Wish | None = None
    slots: tuple[Slot, ...] = ()
    images: tuple[str, ...] = ()
    """Of the containers that the machines were prepared for."""
    resources: tuple[Any, ...] = ()
    asked: Mapping[str, str] = {}
    """Our annotations, as the machines were prepared by them."""
    stale: bool = False
    """Whether the pod has changed so that its machines must be prepared anew."""
    provisional: bool = False
    """Whether it was prepared for machines that are there, and not for renting others."""
    ignored: tuple[str, ...] = ()
    """Changes of the pod that were told to be ignored."""
    hold: Why | None = None
    """Why the pod as a whole waits."""
    again_s: float = 0.0
    tries: int = 0
    outcome: Outcome | None = None
    concluded: bool = False
    """Whether everything that follows from its end was begun."""
    daemon: bool = False
    """Whether it belongs to what runs on every node, and so not here."""

    def slot(self, suffix: str) -> Slot | None:
        """Return the slot with this suffix."""
        return next((slot for slot in self.slots if slot.suffix == suffix), None)

    def with_slot(self, slot: Slot) -> Memory:
        """Return the same with one slot replaced."""
        return replace(
            self, slots=tuple(slot if s.suffix == slot.suffix else s for s in self.slots)
        )

    @property
    def is_prepared(self) -> bool:
        """Whether it is known what to rent."""
        return bool(self.slots)

    @property
    def is_over(self) -> bool:
        """Whether no container will run again."""
        if self.outcome is not None:
            return True
        return bool(self.slots) and all(slot.is_done for slot in self.slots)


def acknowledged_at(pod: PodObject) -> datetime | None:
    """Return the pod's `startTime`, if it has one."""
    return stamp(pod.get("status", {}).get("startTime"))


def is_terminal(pod: PodObject) -> bool:
    """Whether the pod's phase is one that it never leaves."""
    return pod.get("status", {}).get("phase") in TERMINAL


def controller_of(pod: PodObject) -> str | None:
    """Return the UID of what makes such pods; None for a bare one."""
    for each in pod["metadata"].get("ownerReferences", ()):
        if each.get("controller"):
            uid: str = each["uid"]
            return uid
    return None


def has_begun(pod: PodObject) -> bool:
    """Whether the API server knows of a container of it that ran."""
    return any(
        "running" in entry.get("state", {})
        or "terminated" in entry.get("state", {})
        or entry.get("lastState")
        for entry in pod.get("status", {}).get("containerStatuses", ())
    )


def images_of(pod: PodObject) -> tuple[str, ...]:
    """Return what its containers run."""
    return tuple(each.get("image", "") for each in pod["spec"]["containers"])


def resources_of(pod: PodObject) -> tuple[Any, ...]:
    """Return what its containers ask for."""
    return tuple(each.get("resources") for each in pod["spec"]["containers"])


def asked_of(pod: PodObject) -> dict[str, str]:
    """Return its annotations that ask something of us."""
    annotations = pod["metadata"].get("annotations") or {}
    return {name: text for name, text in annotations.items() if name.startswith(PREFIX)}


def recalled(pod: PodObject, machine: Machine, rental: Rental | None) -> Slot:
    """Return the slot of a machine as far as pod and ledger know it."""
    first, *others = (_recalled_runs(pod, name, rental) for name in machine.containers)
    return Slot(
        suffix=machine.owner_suffix,
        containers=machine.containers,
        beside=tuple(others),
        workload=machine.workload,
        demand=machine.demand,
        rental=rental,
        begun=first.begun,
        # Of a machine by itself the ledger tells the end; among others, the pod's status alone.
        done=first.done if others else None,
        ran_on=rental.key if first.begun is not None and rental is not None else None,
        last=first.last,
        had_run=first.had_run,
        restarts=first.restarts,
    )


def _recalled_runs(pod: PodObject, name: str, rental: Rental | None) -> Beside:
    """Return what a pod's status knows of a container."""
    entries = {entry["name"]: entry for entry in pod.get("status", {}).get("containerStatuses", ())}
    entry: Mapping[str, Any] = entries.get(name, {})
    state = entry.get("state", {})
    running, terminated = state.get("running"), state.get("terminated")
    before = terminated or entry.get("lastState", {}).get("terminated")
    begun, last = None, _ended(before) if before else None
    if running and rental is not None and rental.is_live:
        container_id = entry.get("containerID", "")
        if _instance_of(container_id) == rental.instance_id:
            started_at = stamp(running.get("startedAt")) or rental.running_at
            if started_at is not None:
                begun = Begun(container_id=container_id, started_at=started_at)
    policy = pod["spec"].get("restartPolicy", "Always")
    is_over = terminated and last is not None and not runs_again(policy, last.exit_code)
    return Beside(
        name=name,
        begun=begun,
        done=last if is_over else None,
        last=last,
        had_run=bool(running or before),
        restarts=entry.get("restartCount", 0),
    )


def prepared_again(slots: Sequence[Slot], machine: Machine) -> Slot | None:
    """Return the slot that a machine had, with what it is now prepared for."""
    for slot in slots:
        if slot.suffix == machine.owner_suffix:
            return replace(
                slot,
                containers=machine.containers,
                workload=machine.workload,
                demand=machine.demand,
            )
    return None


def runs_again(restart_policy: str, exit_code: int) -> bool:
    """Whether a run that ended so is followed by another one."""
    if restart_policy == "OnFailure":
        return exit_code != 0
    return restart_policy == "Always"


def stamp(text: str | None) -> datetime | None:
    """Read a time of the Kubernetes API; None where there is none."""
    return datetime.fromisoformat(text) if text else None


def _instance_of(container_id: str) -> str | None:
    """Return the instance in `gp4u://<instance>/<run>`."""
    _, _, rest = container_id.partition("://")
    instance, _, _ = rest.rpartition("/")
    return instance or None


def _ended(state: Mapping[str, Any]) -> Ended:
    return Ended(
        exit_code=state.get("exitCode", UNKNOWN_EXIT),
        reason=state.get("reason", "Error"),
        message=state.get("message", ""),
        started_at=stamp(state.get("startedAt")),
        finished_at=stamp(state.get("finishedAt")),
        container_id=state.get("containerID", ""),
    )
