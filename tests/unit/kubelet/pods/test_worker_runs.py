"""What follows for one machine of a pod from what ledger, log and probes say, in any order."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from msgspec.structs import replace

from gp4u.kubelet.logs.store import Ending as Marker
from gp4u.kubelet.pods.loss import Kind, ending_of, exited, failed
from gp4u.kubelet.pods.memory import Slot
from gp4u.kubelet.pods.runs import (
    Noticed,
    Rules,
    Signs,
    crash_wait_s,
    noticed,
    rent_wait_s,
    restarted,
)
from gp4u.model import Demand, InstanceState, Workload
from gp4u.rentals.rental import Hopeless, Rental, RentalState
from tests.unit.rentals.builders import AT, after, intended

SLOT = Slot(containers=("main",), workload=Workload(image="busybox"), demand=Demand())
UP = replace(
    intended("pod:1"),
    state=RentalState.RUNNING,
    seen=InstanceState.RUNNING,
    instance_id="7",
    confirmed_at=AT,
    running_at=after(20),
    changed_at=after(20),
    ever_ran=True,
)
ALWAYS, NEVER = Rules(restart_policy="Always", can_restart=True), Rules(restart_policy="Never")


def look(
    slot: Slot,
    rental: Rental,
    rules: Rules = ALWAYS,
    *,
    s: float = 30.0,
    **signs: Any,
) -> Noticed:
    """Notice a rental so many seconds after `AT`."""
    return noticed(slot, rental, rules, Signs(**signs), at=after(s), now_s=s)


def gone(reason: str, **more: Any) -> Rental:
    """The rental once it left the live states."""
    return replace(UP, state=RentalState.RELEASING, reason=reason, **more)


RUNNING = look(SLOT, UP).slot
EXITED = replace(UP, seen=InstanceState.EXITED, exit_code=1, changed_at=after(40))


def test_a_run_begins_when_its_market_says_that_it_is_up() -> None:
    """With the time at which it was first seen, and an id of its own."""
    assert RUNNING.begun is not None
    assert RUNNING.begun.started_at == after(20)
    assert RUNNING.begun.container_id == "gp4u://7/1"
    assert look(RUNNING, UP).slot == replace(RUNNING, rental=UP)


@pytest.mark.parametrize(
    ("policy", "code", "again"),
    [
        ("Always", 0, True),
        ("Always", 1, True),
        ("OnFailure", 0, False),
        ("OnFailure", 1, True),
        ("Never", 0, False),
        ("Never", 1, False),
    ],
)
def test_restart_policy_decides_what_follows_an_end(policy: str, code: int, again: bool) -> None:
    """As a kubelet has it."""
    rules = Rules(restart_policy=policy, can_restart=True)
    slot = look(RUNNING, replace(EXITED, exit_code=code), rules, s=45).slot

    assert (slot.done is None) is again
    assert (slot.again_at_s is not None) is again
    assert slot.begun is None


def test_an_end_counts_once_however_often_it_is_seen() -> None:
    """The reconciler gives such a machine up after a while, and that is no second end."""
    once = look(RUNNING, EXITED, s=45).slot
    twice = look(once, EXITED, s=50).slot
    later = look(twice, gone(Hopeless.WORKLOAD_EXITED, exit_code=1), s=75).slot

    assert (once.crashes, twice.crashes, later.crashes) == (1, 1, 1)
    assert later.rent_at_s == 55.0, "the next run keeps the time that was planned"


def test_an_end_is_known_from_either_side() -> None:
    """Whether the machine is given up before its end was seen, or after."""
    first = look(RUNNING, EXITED, NEVER, s=45).slot.done
    second = look(RUNNING, gone(Hopeless.WORKLOAD_EXITED, exit_code=1), NEVER, s=45).slot.done

    assert first is not None
    assert first == second


def test_a_restart_is_not_taken_for_another_end() -> None:
    """A listing may be blind to it for a while, and show the end from before."""
    crashed = look(RUNNING, EXITED, s=45).slot
    again = restarted(crashed, None, at=after(55))

    assert look(again, EXITED, s=58).slot.crashes == 1
    back = look(again, replace(UP, changed_at=after(60)), s=61).slot
    assert (back.restarts, back.crashes) == (1, 1)
    ended = look(back, replace(EXITED, changed_at=after(70)), s=71).slot
    assert ended.crashes == 2


def test_a_long_run_ends_the_back_off() -> None:
    """Ten minutes of work are a new beginning."""
    slot = replace(RUNNING, crashes=5)
    assert look(slot, replace(EXITED, changed_at=after(700)), s=700).slot.crashes == 1


def test_the_machine_tells_of_runs_that_nobody_saw() -> None:
    """Its own script restarts the workload; the count follows, also over two looks."""
    first = look(SLOT, UP, marker=Marker(1, None)).slot
    crashed = look(first, UP, marker=Marker(1, 2), s=40).slot
    assert crashed.last is not None
    assert (crashed.begun, crashed.last.exit_code, crashed.again_at_s) == (None, 2, None)
    assert look(crashed, UP, marker=Marker(1, 2), s=45).slot.begun is None
    third = look(crashed, UP, marker=Marker(3, None), s=60).slot
    assert third.begun is not None
    fifth = look(third, UP, marker=Marker(5, None), s=90).slot
    assert fifth.restarts == third.restarts + 2


def test_a_script_that_says_the_end_ends_the_pod_though_its_machine_is_up() -> None:
    """On some markets the machine goes on without its workload, and on costing."""
    done = look(RUNNING, UP, NEVER, marker=Marker(1, 0), s=50).slot.done
    assert done is not None
    assert (done.exit_code, done.reason) == (0, "Completed")


def test_probes_that_give_up_restart_the_workload_or_fail_the_pod() -> None:
    """In place where the market can; else by another machine, or not at all."""
    kept = look(RUNNING, UP, ALWAYS, unhealthy="liveness").slot
    assert kept.again_at_s is not None
    no_restart = Rules(restart_policy="Always", can_restart=False)
    assert look(RUNNING, UP, no_restart, unhealthy="liveness").slot.replace
    neither = Rules(restart_policy="Always", replace_unhealthy=False)
    lost = look(RUNNING, UP, neither, unhealthy="liveness").lost
    assert lost is not None
    assert (lost.kind, lost.reason) == (Kind.FAILED, "Unhealthy")


def test_a_machine_that_never_served_is_avoided_and_the_next_one_waits() -> None:
    """H28, K16."""
    failed_start = gone(Hopeless.BOOT_TIMEOUT, ever_ran=False)
    slot = look(SLOT, failed_start, s=30).slot

    assert slot.settled == failed_start.key
    assert slot.rent_at_s == 40.0
    assert slot.avoid[0][:2] == ("vastai", "77")
    assert look(slot, failed_start, s=31).slot.misses == 1


@pytest.mark.parametrize(
    ("reason", "interruptible", "kind"),
    [
        (Hopeless.INSTANCE_LOST, False, Kind.LOST),
        (Hopeless.HOST_OFFLINE, False, Kind.LOST),
        (Hopeless.STOPPED_BY_PROVIDER, False, Kind.LOST),
        (Hopeless.STOPPED_BY_PROVIDER, True, Kind.PREEMPTED),
        (Hopeless.WORKLOAD_EXITED, False, Kind.EXITED),
        ("asked", False, Kind.RELEASED),
        ("offer_gone", False, Kind.UNSERVED),
        ("refused:insufficient_credit", False, Kind.UNSERVED),
        ("pod_deleted", False, Kind.DELETED),
        ("pod_replaced", False, Kind.REPLACED),
        (failed("DeadlineExceeded"), False, Kind.FAILED),
        (exited(4), False, Kind.EXITED),
    ],
)
def test_each_reason_means_one_thing_to_a_pod(reason: str, interruptible: bool, kind: Kind) -> None:
    """Every end of a rental has its meaning; none is taken for another one's."""
    assert ending_of(gone(reason), interruptible=interruptible).kind is kind


@pytest.mark.parametrize("reason", list(Hopeless))
def test_what_never_ran_was_never_lost(reason: Hopeless) -> None:
    """A pod is not failed for a machine that it never had: it waits for the next one."""
    never = gone(reason, ever_ran=False, exit_code=None)
    assert ending_of(never, interruptible=True).kind is Kind.UNSERVED


def test_how_a_pod_ended_can_be_read_from_the_ledger() -> None:
    """The process may die before the status is written, and the machine is gone by then."""
    ending = ending_of(gone(exited(42)), interruptible=False)
    assert (ending.kind, ending.exit_code) == (Kind.EXITED, 42)
    ending = ending_of(gone(failed("Preempted")), interruptible=False)
    assert (ending.kind, ending.reason) == (Kind.FAILED, "Preempted")


def test_waits_double_up_to_their_bounds() -> None:
    """10 s to 5 min for runs, 10 s to 30 min for machines."""
    assert [crash_wait_s(n) for n in (1, 2, 5, 6, 99)] == [10, 20, 160, 300, 300]
    assert [rent_wait_s(n) for n in (0, 1, 2, 8, 9, 99)] == [0, 10, 20, 1280, 1800, 1800]
    assert timedelta(seconds=rent_wait_s(99)) == timedelta(minutes=30)
