"""What the end of a rental means to its pod; pure.

The ledger says why a rental left its live states in the words of machines. Here that becomes one of
five things: it never served, its workload ended, the market took it away, it was lost, or somebody
released it. Our own releases carry what had become of the pod, so that a process that starts anew
does not run a finished pod again.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from msgspec import Struct

from gp4u.rentals.rental import Hopeless, Rental

DELETED: Final = "pod_deleted"
GONE: Final = "pod_gone"
REPLACED: Final = "pod_replaced"
_EXITED: Final = "pod_exited:"
_FAILED: Final = "pod_failed:"


class Kind(StrEnum):
    """What became of a machine."""

    UNSERVED = "unserved"
    """It never ran the workload: another one is rented, after a while."""
    EXITED = "exited"
    """The workload ended by itself."""
    PREEMPTED = "preempted"
    """The market took it away, as one sold by bid may be."""
    LOST = "lost"
    """It vanished, died, or was stopped by its provider."""
    RELEASED = "released"
    """A person ended it."""
    FAILED = "failed"
    """We released it because its pod had failed."""
    REPLACED = "replaced"
    """We released it to rent another one for the same pod."""
    DELETED = "deleted"
    """We released it because its pod was deleted."""


class Ending(Struct, frozen=True, kw_only=True):
    """How a rental ended."""

    kind: Kind
    reason: str
    """For the pod: `Preempted`, `InstanceLost`, ...; of a failed one its own."""
    message: str
    exit_code: int | None = None
    """Of an ended workload; None: nobody can tell."""


_UNSERVED: Final = {
    Hopeless.NEVER_RENTED: "the market never made it",
    Hopeless.NEVER_LISTED: "the market never listed it",
    Hopeless.PRICE_ABOVE_CEILING: "it cost more than was agreed",
    Hopeless.BOOT_TIMEOUT: "it did not come up in time",
    Hopeless.CANNOT_START: "it could not start the workload",
}
_LOST: Final = {
    Hopeless.INSTANCE_LOST: "it vanished from the market's list",
    Hopeless.HOST_OFFLINE: "its host could not be reached for ten minutes",
    Hopeless.STOPPED_BY_PROVIDER: "its provider stopped it",
    Hopeless.CANNOT_START: "it could not start the workload again",
}

_SAID_NO: Final = frozenset({"offer_gone", "denied", "throttled", "not_sent", "failed"})
"""What the broker records where the market declined the rent itself."""


def exited(exit_code: int | None) -> str:
    """Return the reason for releasing the machine of a workload that ended for good."""
    return f"{_EXITED}{'' if exit_code is None else exit_code}"


def failed(reason: str) -> str:
    """Return the reason for releasing the machine of a pod that failed."""
    return f"{_FAILED}{reason}"


def ending_of(rental: Rental, *, interruptible: bool) -> Ending:
    """Say what the end of a rental that left the live states means.

    `interruptible` is whether the pod asked for what can be taken away: what a provider stops is
    then taken for outbid.
    """
    why = rental.reason
    named = f"instance {rental.instance_id or '(none)'} on {rental.provider}"
    told = f" ({rental.seen_status})" if rental.seen_status else ""
    if why in (DELETED, GONE):
        return Ending(kind=Kind.DELETED, reason="Deleted", message="the pod was deleted")
    if why == REPLACED:
        return Ending(kind=Kind.REPLACED, reason="Replaced", message=f"{named} was replaced")
    if why.startswith(_FAILED):
        return Ending(kind=Kind.FAILED, reason=why.removeprefix(_FAILED), message=f"{named}{told}")
    if why.startswith(_EXITED):
        code = why.removeprefix(_EXITED)
        return Ending(
            kind=Kind.EXITED,
            reason="Exited",
            message=f"{named} ended",
            exit_code=int(code) if code.isdigit() else None,
        )
    if why == Hopeless.WORKLOAD_EXITED and (rental.ever_ran or rental.exit_code is not None):
        return Ending(
            kind=Kind.EXITED,
            reason="Exited",
            message=f"{named}: the workload ended{told}",
            exit_code=rental.exit_code,
        )
    if why not in frozenset(Hopeless):
        return _by_another(rental, named)
    if not rental.ever_ran:
        text = _UNSERVED.get(Hopeless(why), why.replace("_", " "))
        return Ending(kind=Kind.UNSERVED, reason="InstanceFailed", message=f"{named}: {text}{told}")
    if why == Hopeless.STOPPED_BY_PROVIDER and interruptible:
        text = f"{named} was taken away by a higher bid{told}"
        return Ending(kind=Kind.PREEMPTED, reason="Preempted", message=text)
    text = _LOST.get(Hopeless(why), why.replace("_", " "))
    return Ending(kind=Kind.LOST, reason="InstanceLost", message=f"{named} was lost: {text}{told}")


def _by_another(rental: Rental, named: str) -> Ending:
    """Say what an end means that no listing concluded: the broker's own, or a person's."""
    if rental.reason in _SAID_NO or rental.reason.startswith("refused"):
        return Ending(
            kind=Kind.UNSERVED,
            reason="RentFailed",
            message=f"{rental.provider} did not rent out offer {rental.offer_id}: {rental.reason}",
        )
    text = f"{named} was released by somebody: {rental.reason}"
    return Ending(kind=Kind.RELEASED, reason="InstanceReleased", message=text)
