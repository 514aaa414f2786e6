"""How one machine of a pod goes through its runs, by its first container; pure.

`noticed` takes what the ledger, the log and the probes say now, compares it with what was known,
and returns the slot as it is from now on, with what should be told as Events. What follows from
that is decided in `steps.py`.

Facts come in any order and may be missed: a workload can have ended before anybody saw it run, and
the reconciler may have given up the machine of an ended workload before or after we saw its end.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from gp4u.kubelet.held import Ended
from gp4u.kubelet.logs.store import Ending as Marker
from gp4u.kubelet.pods import wording
from gp4u.kubelet.pods.loss import Ending, Kind, ending_of
from gp4u.kubelet.pods.memory import CREATING, UNKNOWN_EXIT, Begun, Slot, Why, runs_again
from gp4u.kubelet.pods.wording import News
from gp4u.model import InstanceState
from gp4u.rentals.rental import Rental, RentalState

CRASH_WAIT_S: Final = 10.0
CRASH_WAIT_MAX_S: Final = 300.0
STEADY: Final = timedelta(minutes=10)
"""A run that lasted so long ends whatever back-off there was."""
RENT_WAIT_S: Final = 10.0
RENT_WAIT_MAX_S: Final = 1800.0
AVOID_S: Final = 1800.0
"""A machine that did not serve is not rented again for the same pod for so long."""


class Rules(Struct, frozen=True, kw_only=True):
    """What a pod and its market say about ends and restarts."""

    restart_policy: str
    interruptible: bool = False
    can_restart: bool = False
    """Whether the market can start the workload anew in its machine."""
    replace_unhealthy: bool = True
    """Whether another machine is rented where one cannot be restarted that its probes want to be;
    else the pod fails."""
    settle: timedelta = timedelta(seconds=30)
    """How long a listing may be blind to a restart."""

    def again(self, exit_code: int) -> bool:
        """Whether a run that ended so is followed by another one."""
        return runs_again(self.restart_policy, exit_code)


class Signs(Struct, frozen=True, kw_only=True):
    """What is known of a machine's container that is not in the ledger."""

    marker: Marker | None = None
    """The newest line about a run that the log showed."""
    unhealthy: str = ""
    """Why its probes want it to be restarted."""
    culprit: str = ""
    """Which container that is; empty: the machine's first."""


class Noticed(Struct, frozen=True):
    """A slot as it is now, what to tell, and how its machine was lost, if it was."""

    slot: Slot
    news: tuple[News, ...] = ()
    lost: Ending | None = None


def crash_wait_s(crashes: int) -> float:
    """Return the seconds before a run that follows so many that ended soon."""
    return min(CRASH_WAIT_MAX_S, CRASH_WAIT_S * 2.0 ** min(max(crashes - 1, 0), 20))


def rent_wait_s(misses: int) -> float:
    """Return the seconds before a rent that follows so many that came to nothing."""
    return min(RENT_WAIT_MAX_S, RENT_WAIT_S * 2.0 ** min(max(misses - 1, 0), 20)) if misses else 0.0


def noticed(
    slot: Slot, rental: Rental, rules: Rules, signs: Signs, *, at: datetime, now_s: float
) -> Noticed:
    """Return the slot after a look at its newest rental; `at` and `now_s` are the same moment."""
    before = slot.rental
    slot = replace(slot, rental=rental)
    if slot.done is not None or rental.key == slot.settled:
        return Noticed(slot)
    news = tuple(wording.progress(before, rental))
    if not rental.is_live:
        return _told(news, _over(slot, rental, rules, at=at, now_s=now_s))
    if slot.replace:
        return Noticed(slot, news)
    if rental.state is RentalState.INTENDED or rental.seen is None:
        return Noticed(replace(slot, why=wording.waiting(rental)), news)
    if not _is_fresh(slot, rental, rules, at):
        return Noticed(slot, news)
    if rental.seen is InstanceState.EXITED:
        return _told(news, _exited(slot, rental, rules, signs, at=at, now_s=now_s))
    if rental.state is not RentalState.RUNNING:
        return Noticed(replace(slot, why=wording.waiting(rental)), news)
    return _told(news, _alive(slot, rental, rules, signs, at=at, now_s=now_s))


def missed(
    slot: Slot, why: Why, *, now_s: float, avoid: tuple[str, str] | None, at_most_s: float = 1e9
) -> Slot:
    """Return the slot after a rent or a machine that came to nothing: the next one has to wait."""
    misses = slot.misses + 1
    kept = tuple(each for each in slot.avoid if each[2] > now_s)
    if avoid is not None:
        kept = (*kept, (*avoid, now_s + AVOID_S))[-50:]
    return replace(
        slot,
        misses=misses,
        why=why,
        avoid=kept,
        rent_at_s=now_s + min(at_most_s, rent_wait_s(misses)),
    )


def lost(slot: Slot, ending: Ending, *, at: datetime, now_s: float) -> Slot:
    """Return the slot of a machine that was lost, where the same pod gets another one."""
    ended = end_of(slot.begun, UNKNOWN_EXIT, at, reason=ending.reason, message=ending.message)
    steady = ended.started_at is not None and at - ended.started_at >= STEADY
    slot = replace(slot, begun=None, last=ended, misses=0 if steady else slot.misses)
    return missed(slot, Why("ContainerCreating", ending.message), now_s=now_s, avoid=None)


def restarted(slot: Slot, marker: Marker | None, *, at: datetime) -> Slot:
    """Return the slot of a machine that was just told to start its workload anew.

    `marker` is the newest one in its log, which is of the time before.
    """
    return replace(
        slot, again_at_s=None, restarted_at=at, begun=None, inside=0, stale=marker, why=CREATING
    )


def stopped(slot: Slot, exit_code: int | None, *, at: datetime, message: str) -> Slot:
    """Return the slot of a workload that was ended from outside, for good."""
    if slot.done is not None or slot.begun is None:
        return slot
    if exit_code is not None:
        ended = end_of(slot.begun, exit_code, at)
    else:
        ended = end_of(
            slot.begun, UNKNOWN_EXIT, at, reason="ContainerStatusUnknown", message=message
        )
    return replace(slot, begun=None, done=ended)


def _is_fresh(slot: Slot, rental: Rental, rules: Rules, at: datetime) -> bool:
    """Whether what a listing says can be of the time after the last restart."""
    if slot.restarted_at is None or at - slot.restarted_at >= rules.settle:
        return True
    return rental.changed_at is not None and rental.changed_at > slot.restarted_at


def _over(slot: Slot, rental: Rental, rules: Rules, *, at: datetime, now_s: float) -> Noticed:
    """Deal with a rental that left the live states."""
    ending, again_at_s = ending_of(rental, interruptible=rules.interruptible), slot.again_at_s
    slot = replace(slot, settled=rental.key, again_at_s=None, replace=False, inside=0, stale=None)
    match ending.kind:
        case Kind.EXITED if slot.begun is None and slot.ran_on == rental.key:
            # Its end was seen before, and the machine given up while the next run was waited for.
            return Noticed(replace(slot, rent_at_s=max(slot.rent_at_s, again_at_s or now_s)))
        case Kind.EXITED:
            slot, news = (slot, ()) if slot.begun else _began(slot, rental, at)
            code = UNKNOWN_EXIT if ending.exit_code is None else ending.exit_code
            reason = "ContainerStatusUnknown" if ending.exit_code is None else ""
            return _told(
                news, _end(slot, code, rules, at=at, now_s=now_s, reason=reason, in_place=False)
            )
        case Kind.UNSERVED:
            machine = (rental.provider, rental.machine_id) if rental.machine_id else None
            why = wording.unserved(rental, ending)
            slot = missed(replace(slot, begun=None), why, now_s=now_s, avoid=machine)
            wait_s = slot.rent_at_s - now_s
            text = f"{ending.message}; the next machine is rented in {wait_s:.0f} s"
            return Noticed(slot, (News("Warning", wording.failure_reason(rental), text),))
        case Kind.REPLACED | Kind.DELETED:
            return Noticed(replace(slot, begun=None))
        case Kind.PREEMPTED | Kind.LOST | Kind.RELEASED | Kind.FAILED:
            return Noticed(slot, lost=ending)


def _exited(
    slot: Slot, rental: Rental, rules: Rules, signs: Signs, *, at: datetime, now_s: float
) -> Noticed:
    """Deal with an instance whose workload is not running any more."""
    if slot.again_at_s is not None or slot.inside:
        return Noticed(slot)  # this end has been dealt with
    if slot.restarted_at is not None and (rental.changed_at or at) <= slot.restarted_at:
        return Noticed(slot)  # so it was before, too
    code = rental.exit_code
    if code is None and signs.marker is not None and signs.marker != slot.stale:
        code = signs.marker.exit_code
    if code is None:
        return Noticed(slot)  # its log is read; until it is given up, it may yet come back
    slot, news = (slot, ()) if slot.begun else _began(slot, rental, at)
    return _told(news, _end(slot, code, rules, at=at, now_s=now_s))


def _alive(
    slot: Slot, rental: Rental, rules: Rules, signs: Signs, *, at: datetime, now_s: float
) -> Noticed:
    """Deal with an instance that its market calls up, or cannot tell about for the moment."""
    if slot.again_at_s is not None:
        return Noticed(slot)  # ended, and waiting to be started again
    marker = signs.marker if signs.marker != slot.stale else None
    news: tuple[News, ...] = ()
    if slot.begun is None:
        is_up = rental.seen is InstanceState.RUNNING
        if not is_up or (slot.inside and (marker is None or marker.run == slot.inside)):
            return Noticed(slot)
        slot, news = _began(slot, rental, at, number=marker.run if marker is not None else 0)
    number = slot.begun.number if slot.begun is not None else 0
    if marker is not None and slot.begun is not None and not number:
        slot = replace(slot, begun=replace(slot.begun, number=marker.run))
    elif marker is not None and marker.run > number:
        skipped = marker.run - number - 1  # they began and ended between two looks
        slot = replace(slot, last=end_of(slot.begun, UNKNOWN_EXIT, at), begun=None)
        slot, news = _began(slot, rental, at, number=marker.run)
        slot = replace(slot, restarts=slot.restarts + skipped)
    if marker is not None and marker.exit_code is not None:
        return _told(news, _end(slot, marker.exit_code, rules, at=at, now_s=now_s, marker=marker))
    if signs.unhealthy:
        text = signs.unhealthy
        restarts = rules.can_restart or rules.replace_unhealthy
        if rules.again(UNKNOWN_EXIT) and not restarts:
            return Noticed(slot, news, Ending(kind=Kind.FAILED, reason="Unhealthy", message=text))
        ended = _end(slot, UNKNOWN_EXIT, rules, at=at, now_s=now_s, reason="Error", message=text)
        return _told((*news, wording.killing(signs.culprit or slot.containers[0], text)), ended)
    return Noticed(slot, news)


def _began(
    slot: Slot, rental: Rental, at: datetime, *, number: int = 0
) -> tuple[Slot, tuple[News, ...]]:
    """Return the slot in which a run has begun; `number` is the machine's own count of it."""
    restarts = slot.restarts + (1 if slot.had_run else 0)
    is_first = not slot.had_run and rental.running_at is not None
    begun = Begun(
        container_id=f"gp4u://{rental.instance_id}/{restarts + 1}",
        started_at=(rental.running_at or at) if is_first else at,
        number=number,
    )
    names = slot.containers[:1] if slot.had_run else slot.containers
    slot = replace(
        slot,
        begun=begun,
        ran_on=rental.key,
        had_run=True,
        restarts=restarts,
        restarted_at=None,
        inside=0,
        why=CREATING,
        looks=0,
    )
    return slot, (wording.started(names, rental),)


def _end(
    slot: Slot,
    exit_code: int,
    rules: Rules,
    *,
    at: datetime,
    now_s: float,
    reason: str = "",
    message: str = "",
    in_place: bool = True,
    marker: Marker | None = None,
) -> Noticed:
    """Return the slot after the end of a run: for good, or with the next one to come.

    `in_place`: the machine is still there; `marker`: its own script told of the end, and starts the
    workload again by itself, with the same back-off.
    """
    ended = end_of(slot.begun, exit_code, at, reason=reason, message=message)
    if not rules.again(exit_code):
        return Noticed(replace(slot, begun=None, done=ended, again_at_s=None))
    steady = ended.started_at is not None and at - ended.started_at >= STEADY
    crashes = 1 if steady else slot.crashes + 1
    wait_s = crash_wait_s(crashes)
    slot = replace(
        slot,
        begun=None,
        last=ended,
        crashes=crashes,
        misses=0 if steady else slot.misses,
        why=wording.crash_loop(slot.containers[0], wait_s),
    )
    if marker is not None:
        slot = replace(slot, inside=marker.run)
    elif in_place and rules.can_restart:
        slot = replace(slot, again_at_s=now_s + wait_s)
    else:
        slot = replace(slot, replace=in_place, rent_at_s=now_s + wait_s)
    told = f"Back-off restarting failed container {slot.containers[0]}"
    return Noticed(slot, (News("Warning", "BackOff", told),))


def end_of(
    begun: Begun | None, exit_code: int, at: datetime, *, reason: str = "", message: str = ""
) -> Ended:
    """Return the end of a run."""
    return Ended(
        exit_code=exit_code,
        reason=reason or ("Completed" if exit_code == 0 else "Error"),
        message=message,
        started_at=begun.started_at if begun is not None else None,
        finished_at=at,
        container_id=begun.container_id if begun is not None else "",
    )


def _told(news: Sequence[News], then: Noticed) -> Noticed:
    return replace(then, news=(*news, *then.news))
