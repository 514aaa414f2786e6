"""The order of a worker's questions: what is let go, what is begun, and what is never begun."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest
from msgspec.structs import replace

from gp4u.kubelet.held import Ended
from gp4u.kubelet.pods.memory import Memory, Outcome, Slot, asked_of, images_of, resources_of
from gp4u.kubelet.pods.steps import (
    Acknowledge,
    Action,
    Again,
    Conclude,
    Forget,
    Look,
    Prepare,
    Rent,
    Review,
    Stop,
    TearDown,
    Wait,
    step,
)
from gp4u.model import Demand, InstanceState, Workload
from gp4u.rentals.rental import RentalState
from tests.unit.kubelet.cluster import gpu_pod
from tests.unit.rentals.builders import AT, intended

POD = gpu_pod("a")
SLOT = Slot(containers=("main",), workload=Workload(image="busybox"), demand=Demand())
RENTAL = replace(
    intended("pod:1"), state=RentalState.RUNNING, seen=InstanceState.RUNNING, instance_id="7"
)
ENDED = Ended(exit_code=3, reason="Error")


def known(*slots: Slot, **members: Any) -> Memory:
    """A pod that was acknowledged and prepared."""
    return Memory(
        acknowledged=True,
        acknowledged_at=AT,
        slots=slots,
        images=images_of(POD),
        resources=resources_of(POD),
        asked=asked_of(POD),
        **members,
    )


def asked(
    memory: Memory,
    pod: dict[str, Any] | None = POD,
    *,
    at: datetime = AT,
    now_s: float = 100.0,
    is_held: bool = False,
    look_s: float = 0.0,
) -> Action:
    """Ask for the next step."""
    return step(pod, memory, at=at, now_s=now_s, is_held=is_held, resync_s=30.0, look_s=look_s)


def deleted(pod: dict[str, Any]) -> dict[str, Any]:
    """The same pod, being deleted."""
    return {**pod, "metadata": {**pod["metadata"], "deletionTimestamp": "2026-11-20T12:00:30Z"}}


def in_phase(phase: str) -> dict[str, Any]:
    """The pod in a phase."""
    return {**POD, "status": {"phase": phase}}


@pytest.mark.parametrize("memory", [Memory(), known(SLOT), known(replace(SLOT, rental=RENTAL))])
def test_what_is_gone_or_going_is_let_go_whatever_else_there_is(memory: Memory) -> None:
    """Every other wish is void then."""
    assert asked(memory, None) == Forget()
    assert asked(memory, deleted(POD)) == TearDown()
    assert asked(memory, deleted(in_phase("Succeeded"))) == TearDown()


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_a_terminal_pod_is_concluded_once_and_never_rented_for(phase: str) -> None:
    """K8: a process that starts anew finds finished pods, and maybe a machine that outlived it."""
    assert asked(Memory(), in_phase(phase)) == Conclude()
    assert isinstance(asked(Memory(concluded=True), in_phase(phase)), Wait)
    assert asked(Memory(concluded=True), in_phase(phase), is_held=True) == Conclude()
    assert isinstance(asked(known(SLOT, concluded=True), in_phase(phase)), Wait)


def test_a_pod_is_acknowledged_then_prepared_then_rented_for() -> None:
    """No money before everything is known."""
    assert asked(Memory()) == Acknowledge()
    assert asked(Memory(acknowledged=True)) == Prepare()
    assert asked(known(SLOT)) == Rent("")
    assert isinstance(asked(known(replace(SLOT, renting=True))), Wait)


def test_what_has_to_wait_waits_exactly_as_long() -> None:
    """A back-off that is cut short costs money, one that is overslept costs time."""
    assert asked(Memory(acknowledged=True, again_s=107.0)) == Wait(107.0)
    assert asked(known(replace(SLOT, rent_at_s=112.0))) == Wait(112.0)
    assert asked(known(replace(SLOT, rent_at_s=112.0)), now_s=112.0) == Rent("")
    assert asked(known(replace(SLOT, rent_at_s=1000.0))) == Wait(130.0), "it is looked at anyway"


def test_daemons_wait_for_ever() -> None:
    """Failing them would bring them back at once."""
    assert isinstance(asked(Memory(acknowledged=True, daemon=True)), Wait)


def test_the_earliest_deadline_ends_the_pod() -> None:
    """It is slept until, and not until the next look."""
    pod = {**POD, "spec": {**POD["spec"], "activeDeadlineSeconds": 20}}
    assert asked(known(replace(SLOT, rental=RENTAL)), pod, at=AT + timedelta(seconds=5)) == Wait(
        115.0
    )
    action = asked(known(replace(SLOT, rental=RENTAL)), pod, at=AT + timedelta(seconds=20))
    assert isinstance(action, Conclude)
    assert action.outcome is not None
    assert (action.outcome.phase, action.outcome.reason) == ("Failed", "DeadlineExceeded")


def test_a_machine_that_is_not_needed_any_more_goes() -> None:
    """One of several that is done, one that makes room; the last one goes with the pod."""
    other = replace(SLOT, suffix="b", rental=RENTAL)
    done = replace(SLOT, rental=RENTAL, done=ENDED)
    assert asked(known(done, other)) == Stop("", "pod_exited:3")
    assert asked(known(replace(SLOT, rental=RENTAL, replace=True))) == Stop("", "pod_replaced")
    assert asked(known(done), is_held=True) == Conclude()


def test_a_pod_with_an_outcome_is_concluded() -> None:
    """Whatever its containers do."""
    outcome = Outcome(phase="Failed", reason="InstanceLost", message="")
    assert asked(known(SLOT, outcome=outcome)) == Conclude()


def test_a_run_that_ended_in_its_machine_is_begun_again_in_time() -> None:
    """The back-off of a crash loop."""
    slot = replace(SLOT, rental=RENTAL, again_at_s=110.0)
    assert asked(known(slot)) == Wait(110.0)
    assert asked(known(slot), now_s=110.0) == Again("")


def test_logs_are_read_for_ends_that_show_nowhere_else() -> None:
    """Often at first, and as rarely as the market's limit wants where many share it."""
    slot = replace(SLOT, rental=RENTAL, looked_s=90.0, looks=1)
    assert isinstance(asked(known(slot), look_s=0.0), Wait)
    assert asked(known(slot), look_s=20.0) == Look("")
    assert asked(known(slot), look_s=40.0) == Wait(130.0)
    unseen = replace(RENTAL, seen=InstanceState.EXITED)
    assert asked(known(replace(slot, rental=unseen))) == Look("")


def test_a_changed_pod_is_prepared_anew_before_money_and_reviewed_after() -> None:
    """An image that changes while the pod waits costs nothing; later it costs a machine."""
    pod = gpu_pod("a", containers=[{"image": "busybox:2"}])
    assert asked(known(SLOT), pod) == Prepare()
    assert asked(known(replace(SLOT, rental=RENTAL)), pod) == Review()
    assert isinstance(asked(known(replace(SLOT, rental=RENTAL), ignored=("images",)), pod), Wait)


def test_what_was_prepared_for_a_machine_that_is_there_is_not_rented_by() -> None:
    """It may lack what has gone since, and was judged by nothing."""
    assert asked(known(SLOT, provisional=True)) == Prepare()
    held = replace(SLOT, rental=RENTAL)
    assert isinstance(asked(known(held, provisional=True)), Wait)
