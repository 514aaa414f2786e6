"""How one pod stands: what its worker knows, and the questions that can be asked of it.

Hides where an answer comes from: the pod's newest object, its slots, or rentals from before this
process whose machines are not prepared yet. There is one for each worker, which alone changes it;
nothing here waits.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from msgspec.structs import replace

from gp4u.kube.events import EventRecorder
from gp4u.kubelet.held import PodObject
from gp4u.kubelet.pods import loss
from gp4u.kubelet.pods.memory import (
    Memory,
    Slot,
    acknowledged_at,
    controller_of,
    is_terminal,
    stamp,
)
from gp4u.kubelet.pods.showing import Showing
from gp4u.kubelet.pods.wording import News
from gp4u.kubelet.spec.resources import main_container
from gp4u.providers import bootstrap
from gp4u.rentals.rental import Rental


class Standing:
    """One pod as far as it is known."""

    def __init__(
        self, showing: Showing, rentals: Iterable[Rental], *, recorder: EventRecorder
    ) -> None:
        self.showing, self._recorder = showing, recorder
        self.uid: str = showing.pod["metadata"]["uid"]
        self.strays = {rental.owner.partition("/")[2]: rental for rental in rentals}
        """Rentals of machines that are not prepared yet, by what follows the pod in the owner."""
        self.memory = Memory(acknowledged_at=acknowledged_at(showing.pod))
        self._gpus: tuple[Memory, PodObject, int] = (self.memory, {}, 0)
        self.is_gone = False
        """Whether the pod has no object any more."""
        self.leaving = False
        """Whether its teardown has begun."""

    @property
    def pod(self) -> PodObject:
        """The newest look at it."""
        return self.showing.pod

    @property
    def named(self) -> str:
        """Namespace and name, for logs."""
        meta = self.pod["metadata"]
        return f"{meta['namespace']}/{meta['name']}"

    @property
    def slots(self) -> tuple[Slot, ...]:
        """The places of its machines."""
        return self.memory.slots

    def slot(self, suffix: str) -> Slot | None:
        """Return the slot with this suffix."""
        return self.memory.slot(suffix)

    def put(self, slot: Slot) -> None:
        """Replace a slot."""
        self.memory = self.memory.with_slot(slot)

    def change(self, **members: Any) -> None:
        """Replace members of the memory."""
        self.memory = replace(self.memory, **members)

    def rentals(self) -> Sequence[Rental]:
        """Return every rental that is known of it."""
        known = [slot.rental for slot in self.slots if slot.rental is not None]
        return [*self.strays.values(), *known]

    def live(self) -> Sequence[Rental]:
        """Return the rentals that it is still said to want."""
        return [rental for rental in self.rentals() if rental.is_live]

    def by_container(self) -> dict[str, Rental]:
        """Return the open rentals by the containers that they run."""
        every = [each["name"] for each in self.pod["spec"]["containers"]]
        found: dict[str, Rental] = {}
        for suffix, rental in self.strays.items():
            if rental.is_open:
                found.update(dict.fromkeys([suffix] if suffix else every, rental))
        for slot in self.slots:
            if slot.rental is not None and slot.rental.is_open:
                found.update(dict.fromkeys(slot.containers, slot.rental))
        return found

    def rental_of(self, container: str) -> Rental | None:
        """Return the open rental that runs a container."""
        return self.by_container().get(container)

    def beside(self) -> frozenset[str]:
        """Return the containers that run beside the first one of their machine."""
        found = {name for slot in self.slots for name in slot.containers[1:]}
        if "" in self.strays:
            spec = self.pod["spec"]
            first = main_container(spec)["name"]
            found.update(each["name"] for each in spec["containers"] if each["name"] != first)
        return frozenset(found)

    def known_as(self, container: str) -> str | None:
        """Return the name by which a market tells a container; None: the first of its machine."""
        return container if container in self.beside() else None

    def owner(self, suffix: str) -> str:
        """Return the owner of the rental of one machine."""
        return f"pod:{self.uid}/{suffix}" if suffix else f"pod:{self.uid}"

    def owners(self) -> Sequence[str]:
        """Return the owners of all its rentals."""
        return [self.owner(slot.suffix) for slot in self.slots]

    @property
    def controller(self) -> str | None:
        """UID of what makes such pods; None for a bare one."""
        return controller_of(self.pod)

    @property
    def is_renting(self) -> bool:
        """Whether a rent for it is under way, or waits for its turn."""
        return any(slot.renting for slot in self.slots)

    @property
    def is_split(self) -> bool | None:
        """Whether the machines that it has, or is about to, run one container each; None: it has
        none."""
        suffixes = [suffix for suffix, rental in self.strays.items() if rental.is_live]
        suffixes += [slot.suffix for slot in self.slots if slot.is_held or slot.renting]
        return any(suffixes) if suffixes else None

    @property
    def is_unread(self) -> bool:
        """Whether it has machines from before this process, and goes on, and nothing is known of
        it yet but what its status says."""
        over = self.memory.is_over or is_terminal(self.pod) or self.is_gone
        adopts = any(rental.is_live for rental in self.strays.values())
        return adopts and not self.memory.is_prepared and not over

    @property
    def gpus(self) -> int:
        """How many GPUs it was admitted with."""
        memory, pod, count = self._gpus
        if memory is not self.memory or pod is not self.pod:
            over = self.memory.is_over or is_terminal(self.pod)
            wanted = (slot.demand.requirements.gpu_count or 0 for slot in self.slots)
            count = 0 if over else sum(wanted)
            self._gpus = self.memory, self.pod, count  # each pod asks it of each other one
        return count

    @property
    def market(self) -> str:
        """Where its machine runs; empty where none does."""
        running = (slot.rental for slot in self.slots if slot.running)
        return next((rental.provider for rental in running if rental is not None), "")

    @property
    def log_tells(self) -> bool:
        """Whether the end of a run may show in the log alone."""
        return any(
            bootstrap.is_needed(each)
            or (each.shell and each.entrypoint)
            or (each.restart and any(beside.entrypoint for beside in each.beside))
            for each in (slot.workload for slot in self.slots)
        )

    def reason_of(self, slot: Slot | None) -> str:
        """Return why a machine of an ended pod goes, so that who comes after us knows the end."""
        if slot is not None and slot.is_done:
            return loss.exited(slot.exit_code)
        outcome = self.memory.outcome
        if outcome is not None:
            return loss.failed(outcome.reason)
        phase = self.pod.get("status", {}).get("phase", "")
        return loss.exited(0) if phase == "Succeeded" else loss.failed("Terminal")

    def grace_left_s(self, at: datetime) -> float:
        """Return how long its workload still has to end by itself."""
        until = stamp(self.pod["metadata"].get("deletionTimestamp"))
        if until is None or self.is_gone:
            return 0.0
        return max(0.0, (until - at).total_seconds())

    def tell(self, *news: News) -> None:
        """Tell Events about the pod."""
        for each in news:
            self._recorder.tell(self._about, each.kind, each.reason, each.message)

    def warn(self, container: str, reason: str, message: str) -> None:
        """Tell a Warning about one container."""
        part = f"spec.containers{{{container}}}"
        self._recorder.tell(self._about, "Warning", reason, message, field_path=part)

    @property
    def _about(self) -> Mapping[str, Any]:
        return {"apiVersion": "v1", "kind": "Pod", "metadata": self.pod["metadata"]}
