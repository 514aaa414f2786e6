"""What a pod's worker should do next; pure.

`step` looks at the pod as the API server has it and at what the worker knows, and returns one
action. It is asked again after each, so nothing depends on what woke the worker or on what was
missed. The order of its questions is the order of what matters: what is gone is let go, what is
being deleted is torn down, what ended is never begun again, and nothing is rented before it is
known that the pod can run here at all.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Final

from msgspec import Struct

from gp4u.kubelet.held import PodObject
from gp4u.kubelet.pods import loss
from gp4u.kubelet.pods.memory import (
    Memory,
    Outcome,
    Slot,
    asked_of,
    images_of,
    is_terminal,
    resources_of,
)
from gp4u.model import InstanceState
from gp4u.rentals.rental import RentalState

RESYNC_S: Final = 30.0
"""However quiet it is, everything is compared again after so long."""
LOOK_S: Final = 5.0
"""How long after a run began its log is first read for its end; then ever more rarely."""
LOOK_MAX_S: Final = 20.0


class Forget(Struct, frozen=True):
    """The pod is gone, and so is everything behind it."""


class Acknowledge(Struct, frozen=True):
    """Take note of the pod: from now on its deadline runs."""


class Prepare(Struct, frozen=True):
    """Find out what to rent for it, or why not."""


class Conclude(Struct, frozen=True):
    """The pod has ended: nobody is sent there any more, its log is kept, its machines go."""

    outcome: Outcome | None = None
    """None: as it is known already."""


class Stop(Struct, frozen=True):
    """One machine is no longer needed."""

    suffix: str
    reason: str


class Again(Struct, frozen=True):
    """Start the workload anew in its machine."""

    suffix: str


class Rent(Struct, frozen=True):
    """Rent a machine."""

    suffix: str


class Look(Struct, frozen=True):
    """Read the log for the end of a run."""

    suffix: str


class TearDown(Struct, frozen=True):
    """The pod is being deleted: let everything go, and the object with it."""


class Review(Struct, frozen=True):
    """The pod was changed while it had machines."""


class Wait(Struct, frozen=True):
    """Nothing to do before that time of the loop, unless something happens."""

    until_s: float


Action = (
    Forget
    | Acknowledge
    | Prepare
    | Conclude
    | Stop
    | Again
    | Rent
    | Look
    | TearDown
    | Review
    | Wait
)


def step(
    pod: PodObject | None,
    memory: Memory,
    *,
    at: datetime,
    now_s: float,
    is_held: bool,
    resync_s: float = RESYNC_S,
    look_s: float = 0.0,
) -> Action:
    """Return what to do next for a pod; None: it is known to be gone.

    `at` and `now_s` are one moment, on the wall and of the loop. `is_held`: there are live rentals
    of it. `look_s`: how often its log may be read where the end of a run may show there alone; 0:
    never.
    """
    if pod is None:
        return Forget()
    if pod["metadata"].get("deletionTimestamp"):
        return TearDown()
    if is_terminal(pod) or memory.is_over:
        return Conclude() if is_held or not memory.concluded else Wait(now_s + resync_s)
    if not memory.acknowledged:
        return Acknowledge()
    if memory.daemon:
        return Wait(now_s + resync_s)
    deadline = _deadline(pod, memory)
    if deadline is not None and at >= deadline[0]:
        return Conclude(deadline[1])
    until = [now_s + resync_s]
    if deadline is not None:
        until.append(now_s + (deadline[0] - at).total_seconds())
    if not memory.is_prepared or memory.stale or _wants_other(pod, memory, renting=False):
        if now_s >= memory.again_s:
            return Prepare()
        return Wait(min([*until, memory.again_s]))
    if _wants_other(pod, memory, renting=True):
        return Review()
    for slot in memory.slots:
        action = _slot_step(slot, now_s=now_s, look_s=look_s)
        if isinstance(action, Rent) and memory.provisional:
            action = Prepare() if now_s >= memory.again_s else Wait(memory.again_s)
        if not isinstance(action, Wait):
            return action
        until.append(action.until_s)
    return Wait(min(until))


def _slot_step(slot: Slot, *, now_s: float, look_s: float) -> Action:
    never = Wait(float("inf"))
    if slot.is_done:
        if slot.is_held:
            return Stop(slot.suffix, loss.exited(slot.exit_code))
        return never
    rental = slot.rental
    if slot.is_held and rental is not None:
        if slot.replace:
            return Stop(slot.suffix, loss.REPLACED)
        if slot.again_at_s is not None:
            return Again(slot.suffix) if now_s >= slot.again_at_s else Wait(slot.again_at_s)
        ended_unseen = rental.seen is InstanceState.EXITED and rental.exit_code is None
        running = rental.state is RentalState.RUNNING and rental.instance_id is not None
        if ended_unseen or (running and look_s):
            # Often at first; where many share a market, as rarely as that takes.
            soon_s = min(LOOK_MAX_S, LOOK_S * 2.0 ** min(slot.looks, 10))
            due_s = slot.looked_s + (soon_s if look_s <= LOOK_MAX_S else look_s)
            return Look(slot.suffix) if now_s >= due_s else Wait(due_s)
        return never
    if slot.renting:
        return never
    return Rent(slot.suffix) if now_s >= slot.rent_at_s else Wait(slot.rent_at_s)


def _deadline(pod: PodObject, memory: Memory) -> tuple[datetime, Outcome] | None:
    """Return when the pod has to end at the latest, and how; the earliest of its deadlines."""
    start = memory.acknowledged_at
    if start is None:
        return None
    found = []
    active_s = pod["spec"].get("activeDeadlineSeconds")
    if active_s is not None:
        text = "Pod was active on the node longer than the specified deadline"
        found.append((timedelta(seconds=active_s), "DeadlineExceeded", text))
    wish = memory.wish
    if wish is not None and wish.max_lifetime is not None:
        text = f"Pod lived longer than gp4u.io/max-lifetime allows ({wish.max_lifetime})"
        found.append((wish.max_lifetime, "MaxLifetime", text))
    if wish is not None and wish.max_wait is not None and _waits_for_first(memory.slots):
        text = f"No machine was had within {wish.max_wait}: {_why(memory)}"
        found.append((wish.max_wait, "NoOffer", text))
    if not found:
        return None
    after, reason, text = min(found, key=lambda each: each[0])
    return start + after, Outcome(phase="Failed", reason=reason, message=text, exit_reason="Error")


def _waits_for_first(slots: Iterable[Slot]) -> bool:
    """Whether some container of the pod has never had a machine."""
    return any(not slot.had_run and not slot.is_held for slot in slots)


def _why(memory: Memory) -> str:
    return next((slot.why.message for slot in memory.slots if slot.why.message), "nothing fits")


def _wants_other(pod: PodObject, memory: Memory, *, renting: bool) -> bool:
    """Whether the pod was changed since its machines were prepared; `renting`: and has some."""
    held = any(slot.is_held or slot.renting or slot.had_run for slot in memory.slots)
    if not memory.is_prepared or held is not renting:
        return False
    if images_of(pod) != memory.images and "images" not in memory.ignored:
        return True
    if not renting:
        return asked_of(pod) != memory.asked
    return resources_of(pod) != memory.resources and "resources" not in memory.ignored
