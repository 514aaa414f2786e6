"""How containers beside the first one of a machine go through their runs; pure.

A market tells of a machine as a whole, and a machine goes by its first container: see `runs.py`,
which this stands over. Of the others only their own log tells an end, by the script that runs
around them and starts them again. Until each of them has ended the machine is kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Final

from msgspec.structs import replace

from gp4u.kubelet.held import Ended
from gp4u.kubelet.pods import runs, wording
from gp4u.kubelet.pods.loss import Ending, Kind, ending_of
from gp4u.kubelet.pods.memory import UNKNOWN_EXIT, Begun, Beside, Slot
from gp4u.kubelet.pods.runs import Noticed, Rules, Signs
from gp4u.kubelet.pods.wording import News
from gp4u.model import InstanceState
from gp4u.rentals.rental import Rental, RentalState

_LOST: Final = "ContainerStatusUnknown"


def noticed(
    slot: Slot,
    rental: Rental,
    rules: Rules,
    signs: Mapping[str, Signs],
    *,
    at: datetime,
    now_s: float,
) -> Noticed:
    """Return the slot after a look at its newest rental, with all its containers.

    `signs` are by container; `at` and `now_s` are the same moment.
    """
    first = signs[slot.containers[0]]
    if slot.beside and rules.again(UNKNOWN_EXIT):
        # None of them can be restarted by itself: whichever wants to be takes the machine along.
        wants = ((each.unhealthy, name) for name, each in signs.items() if each.unhealthy)
        unhealthy, culprit = next(wants, ("", ""))
        first = replace(first, unhealthy=unhealthy, culprit=culprit)
    found = runs.noticed(slot, rental, rules, first, at=at, now_s=now_s)
    if found.lost is not None or found.slot.is_done or not slot.beside:
        return found
    if not rental.is_live:
        return _without_machine(found, rental, rules, at=at)
    if found.slot.done is not None and first.unhealthy:
        # The first one has ended, so another machine would begin what is over.
        ending = Ending(kind=Kind.FAILED, reason="Unhealthy", message=first.unhealthy)
        return replace(found, lost=ending)
    others, news = [], list(found.news)
    for other in slot.beside:
        if found.slot.replace:
            other = _cut(other, at)
        elif rental.state is RentalState.RUNNING:
            other, told = _seen(other, rental, rules, signs[other.name], at=at)
            news += told
        others.append(other)
    return replace(found, slot=replace(found.slot, beside=tuple(others)), news=tuple(news))


def stopped(slot: Slot, codes: Mapping[str, int | None], *, at: datetime, message: str) -> Slot:
    """Return the slot of containers that were ended from outside, for good, with these codes."""
    slot = runs.stopped(slot, codes[slot.containers[0]], at=at, message=message)
    others = []
    for other in slot.beside:
        code = codes[other.name]
        if other.done is None and other.begun is not None:
            reason, text = ("", "") if code is not None else (_LOST, message)
            ended = _ended(other, code, at, reason=reason, message=text)
            other = replace(other, begun=None, done=ended)
        others.append(other)
    return replace(slot, beside=tuple(others))


def _without_machine(found: Noticed, rental: Rental, rules: Rules, *, at: datetime) -> Noticed:
    """Deal with the end of a machine on which not everything had ended."""
    slot = found.slot
    if slot.done is None:
        return replace(found, slot=replace(slot, beside=tuple(_cut(o, at) for o in slot.beside)))
    ending = ending_of(rental, interruptible=rules.interruptible)
    if ending.kind is not Kind.EXITED:
        return replace(found, lost=ending)
    # We let it go ourselves, once everything had ended, and this process did not see that.
    others = [
        other
        if other.done is not None
        else replace(other, begun=None, done=_ended(other, ending.exit_code, at))
        for other in slot.beside
    ]
    return replace(found, slot=replace(slot, beside=tuple(others)))


def _seen(
    other: Beside, rental: Rental, rules: Rules, signs: Signs, *, at: datetime
) -> tuple[Beside, tuple[News, ...]]:
    """Deal with a container on a machine that runs."""
    marker = signs.marker
    news: tuple[News, ...] = ()
    if other.done is not None:
        return other, news
    number = other.begun.number if other.begun is not None else other.inside
    if other.begun is not None and marker is not None and number and marker.run > number:
        skipped = marker.run - number - 1  # they began and ended between two looks
        other = replace(other, begun=None, last=_ended(other, None, at))
        other = replace(other, restarts=other.restarts + skipped)
    if other.begun is None:
        is_up = rental.seen is InstanceState.RUNNING
        if not is_up or (other.inside and (marker is None or marker.run == other.inside)):
            return other, news
        other, news = _began(other, rental, at)
    if marker is None or other.begun is None:
        return _unhealthy(other, rules, signs.unhealthy, at=at), news
    other = replace(other, begun=replace(other.begun, number=marker.run))
    if marker.exit_code is not None:
        other = _end(other, marker.exit_code, marker.run, rules, at=at)
        return other, (*news, *_backing_off(other))
    return _unhealthy(other, rules, signs.unhealthy, at=at), news


def _unhealthy(other: Beside, rules: Rules, text: str, *, at: datetime) -> Beside:
    """Return a container whose probes gave it up, where it is not to run again."""
    if not text or rules.again(UNKNOWN_EXIT):
        return other
    # It goes on in there until the machine goes: a host would start anew what is killed.
    ended = _ended(other, UNKNOWN_EXIT, at, reason="Error", message=text)
    return replace(other, begun=None, done=ended)


def _began(other: Beside, rental: Rental, at: datetime) -> tuple[Beside, tuple[News, ...]]:
    restarts = other.restarts + (1 if other.had_run else 0)
    begun = Begun(
        container_id=f"gp4u://{rental.instance_id}/{other.name}-{restarts + 1}",
        started_at=at if other.had_run else rental.running_at or at,
    )
    # The first time it is told together with the machine's first container.
    news = (wording.started((other.name,), rental),) if other.had_run else ()
    other = replace(other, begun=begun, had_run=True, restarts=restarts, inside=0, why=None)
    return other, news


def _end(other: Beside, code: int, run: int, rules: Rules, *, at: datetime) -> Beside:
    """Return a container after the end of a run, as its own script told it."""
    ended = _ended(other, code, at)
    if not rules.again(code):
        return replace(other, begun=None, done=ended)
    steady = ended.started_at is not None and at - ended.started_at >= runs.STEADY
    crashes = 1 if steady else other.crashes + 1
    why = wording.crash_loop(other.name, runs.crash_wait_s(crashes))
    return replace(other, begun=None, last=ended, crashes=crashes, inside=run, why=why)


def _backing_off(other: Beside) -> tuple[News, ...]:
    if other.done is not None:
        return ()
    text = f"Back-off restarting failed container {other.name}"
    return (News("Warning", "BackOff", text),)


def _cut(other: Beside, at: datetime) -> Beside:
    """Return a container whose machine went from under it."""
    if other.begun is None:
        return replace(other, inside=0, why=None)
    return replace(other, begun=None, last=_ended(other, None, at), inside=0, why=None)


def _ended(
    other: Beside, code: int | None, at: datetime, *, reason: str = "", message: str = ""
) -> Ended:
    if code is None:
        return runs.end_of(other.begun, UNKNOWN_EXIT, at, reason=reason or _LOST, message=message)
    return runs.end_of(other.begun, code, at, reason=reason, message=message)
