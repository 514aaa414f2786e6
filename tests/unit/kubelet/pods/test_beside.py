"""Several containers on one machine: each has its own runs, and the machine waits for all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from msgspec.structs import replace

from gp4u.kubelet.held import Ended, Run
from gp4u.kubelet.logs.store import Ending as Marker
from gp4u.kubelet.pods import loss
from gp4u.kubelet.pods.beside import noticed, stopped
from gp4u.kubelet.pods.checks import probed_runs
from gp4u.kubelet.pods.containers import container_states
from gp4u.kubelet.pods.loss import Kind
from gp4u.kubelet.pods.memory import Beside, Memory, Slot, recalled
from gp4u.kubelet.pods.runs import Noticed, Rules, Signs
from gp4u.kubelet.pods.steps import Look, Stop, Wait, step
from gp4u.kubelet.spec.workload import Machine
from gp4u.kubelet.status.status import phase_of
from gp4u.model import Demand, InstanceState, RentalKey, Workload
from gp4u.rentals.rental import Hopeless, Rental, RentalState
from tests.unit.rentals.builders import AT, after, intended

NAMES = ("main", "side")
SLOT = Slot(
    containers=NAMES,
    beside=(Beside(name="side"),),
    workload=Workload(image="busybox"),
    demand=Demand(),
)
UP = replace(
    intended("pod:1"),
    state=RentalState.RUNNING,
    seen=InstanceState.RUNNING,
    instance_id="7",
    running_at=after(20),
    changed_at=after(20),
    ever_ran=True,
)
ALWAYS, NEVER = Rules(restart_policy="Always"), Rules(restart_policy="Never")
POD: Mapping[str, Any] = {
    "metadata": {"name": "a", "namespace": "default", "uid": "1"},
    "spec": {
        "restartPolicy": "Never",
        "containers": [{"name": name, "image": f"{name}:1"} for name in NAMES],
    },
    "status": {"phase": "Running"},
}
MACHINE = Machine(owner_suffix="", containers=NAMES, workload=SLOT.workload, demand=SLOT.demand)


def look(
    slot: Slot,
    rules: Rules = NEVER,
    *,
    rental: Rental = UP,
    s: float = 30.0,
    main: Marker | None = None,
    side: Marker | None = None,
    told: Mapping[str, Marker | None] | None = None,
    unhealthy: Mapping[str, str] | None = None,
) -> Noticed:
    """Notice a machine so many seconds after `AT`, with what the two logs have told last."""
    ends: Mapping[str, Marker | None] = told or {"main": main, "side": side}
    why = unhealthy or {}
    signs = {name: Signs(marker=ends.get(name), unhealthy=why.get(name, "")) for name in NAMES}
    return noticed(slot, rental, rules, signs, at=after(s), now_s=s)


def side_of(slot: Slot) -> Beside:
    (side,) = slot.beside
    return side


def gone(reason: str) -> Rental:
    """The rental once it left the live states."""
    return replace(UP, state=RentalState.RELEASING, reason=reason)


RUNNING = look(SLOT).slot


def statuses(slot: Slot) -> list[tuple[Run, int | None]]:
    """How the pod's containers are shown: whether they run, and their exit codes."""
    states = container_states(POD, Memory(slots=(slot,)), {}, tail=lambda _name, _before: "")
    return [(each.run, each.ended.exit_code if each.ended else None) for each in states]


def phase(slot: Slot) -> str:
    memory = Memory(slots=(slot,))
    states = container_states(POD, memory, {}, tail=lambda _name, _before: "")
    return phase_of(POD, states, (), finalising=False)


def test_the_words_of_a_run_that_failed_come_from_its_own_log() -> None:
    """With another run behind it, the newest log is not its own any more."""
    side = {**POD["spec"]["containers"][1], "terminationMessagePolicy": "FallbackToLogsOnError"}
    pod = {**POD, "spec": {**POD["spec"], "containers": [POD["spec"]["containers"][0], side]}}
    failed = Ended(exit_code=1, reason="Error")

    def words(of: Beside) -> str:
        memory = Memory(slots=(replace(RUNNING, beside=(of,)),))
        told = ("of the newest run", "of the run before")
        _, shown = container_states(pod, memory, {}, tail=lambda _, before: told[before])
        assert shown.last_ended is not None
        return shown.last_ended.message

    goes_on = replace(side_of(RUNNING), last=failed)
    assert words(goes_on) == "of the run before"
    assert words(replace(goes_on, begun=None)) == "of the newest run"
    assert words(replace(goes_on, begun=None, done=failed)) == "of the run before"


def test_both_begin_with_their_machine_under_ids_of_their_own() -> None:
    """Probes and logs go by the id, which is another one for each run; one Event tells of both."""
    found = look(SLOT)
    side = side_of(found.slot)
    assert found.slot.begun is not None
    assert side.begun is not None
    assert side.begun.container_id == "gp4u://7/side-1"
    assert found.slot.begun.container_id == "gp4u://7/1"
    (news,) = found.news
    assert "Started container main, side on instance 7" in news.message
    assert look(found.slot).news == ()
    runs = probed_runs(POD, Memory(slots=(found.slot,)))
    assert {name: each.container_id for name, each in runs.items()} == {
        "main": "gp4u://7/1",
        "side": "gp4u://7/side-1",
    }


@pytest.mark.parametrize(
    ("codes", "ends"), [((0, 0), "Succeeded"), ((0, 3), "Failed"), ((4, 0), "Failed")]
)
@pytest.mark.parametrize("first", NAMES)
def test_a_pod_ends_when_its_last_container_does(
    first: str, codes: tuple[int, int], ends: str
) -> None:
    """A Job with a helper succeeds if both do, and each is shown with its own exit code."""
    markers = {name: Marker(1, code) for name, code in zip(NAMES, codes, strict=True)}
    half = look(RUNNING, told={first: markers[first]}).slot
    assert not half.is_done
    assert half.is_held
    assert phase(half) == "Running"
    shown = dict(zip(NAMES, statuses(half), strict=True))
    (other,) = set(NAMES) - {first}
    assert shown[first] == (Run.TERMINATED, markers[first].exit_code)
    assert shown[other] == (Run.RUNNING, None)
    whole = look(half, told=markers).slot
    assert whole.is_done
    assert statuses(whole) == [(Run.TERMINATED, code) for code in codes]
    assert phase(whole) == ends


def test_a_machine_is_kept_and_its_log_read_until_the_last_one_ended() -> None:
    """The helper's work would be lost with a machine that goes when the first one ends."""
    half = look(RUNNING, main=Marker(1, 0)).slot
    pod = {**POD, "metadata": {**POD["metadata"]}}

    def next_step(slot: Slot) -> object:
        memory = Memory(acknowledged=True, slots=(slot,), images=("main:1", "side:1"))
        memory = replace(memory, resources=(None, None))
        return step(pod, memory, at=after(40), now_s=40.0, is_held=True, look_s=5.0)

    assert next_step(half) == Look("")
    assert isinstance(next_step(replace(half, looked_s=40.0)), Wait)
    whole = look(half, side=Marker(1, 6)).slot
    assert whole.exit_code == 6
    assert loss.exited(whole.exit_code) == "pod_exited:6"
    kept = replace(whole, beside=(*whole.beside, Beside(name="third")))
    assert not isinstance(next_step(kept), Stop)


def test_one_that_ends_is_started_again_while_the_other_runs_on() -> None:
    """Its script does so, with the back-off of a kubelet; a count tells of what nobody saw."""
    crashed = look(RUNNING, ALWAYS, side=Marker(1, 1))
    side = side_of(crashed.slot)
    assert crashed.slot.begun is not None
    assert [each.reason for each in crashed.news] == ["BackOff"]
    assert side.why is not None
    assert side.why.reason == "CrashLoopBackOff"
    assert "container side" in side.why.message
    assert look(crashed.slot, ALWAYS, side=Marker(1, 1)).slot == crashed.slot
    again = look(crashed.slot, ALWAYS, s=60.0, side=Marker(2))
    assert side_of(again.slot).restarts == 1
    assert "Started container side on" in again.news[0].message
    (ended,) = [side_of(again.slot).last]
    assert ended is not None
    assert ended.exit_code == 1
    later = side_of(look(again.slot, ALWAYS, s=90.0, side=Marker(5)).slot)
    assert later.restarts == 4
    assert later.begun is not None
    assert later.begun.number == 5


def test_one_that_went_well_is_not_started_again_under_on_failure() -> None:
    """Nor does its machine go for it."""
    rules = Rules(restart_policy="OnFailure")
    side = side_of(look(RUNNING, rules, side=Marker(1, 0)).slot)
    assert side.done is not None
    assert side_of(look(RUNNING, rules, side=Marker(1, 2)).slot).done is None


def test_a_lost_machine_takes_all_of_them_along() -> None:
    """What ran there ended with it, unseen; on the next machine each begins anew."""
    found = look(RUNNING, ALWAYS, rental=gone(Hopeless.INSTANCE_LOST))
    assert found.lost is not None
    cut = look(replace(RUNNING, settled=UP.key), ALWAYS, rental=gone(Hopeless.INSTANCE_LOST)).slot
    side = side_of(cut)
    assert side.begun is None
    assert side.last is not None
    assert (side.last.exit_code, side.last.reason) == (137, "ContainerStatusUnknown")
    other = replace(UP, key=RentalKey("gp4u-x-2"), instance_id="8")
    begun = side_of(look(cut, ALWAYS, rental=other, s=99.0).slot).begun
    assert begun is not None
    assert (begun.container_id, begun.started_at) == ("gp4u://8/side-2", after(99))


def test_a_machine_lost_after_the_first_one_ended_fails_the_pod() -> None:
    """What is over is not begun again for the sake of what is not."""
    half = look(RUNNING, main=Marker(1, 0)).slot
    found = look(half, rental=gone(Hopeless.INSTANCE_LOST))
    assert found.lost is not None
    assert found.lost.kind is Kind.LOST


@pytest.mark.parametrize("code", [0, 9])
def test_a_release_of_ours_tells_the_next_process_how_the_pod_ended(code: int) -> None:
    """It is written once all have ended; the process may end before it has said so."""
    half = look(RUNNING, main=Marker(1, 0)).slot
    found = look(half, rental=gone(loss.exited(code)))
    assert found.lost is None
    assert found.slot.is_done
    assert found.slot.exit_code == code


def test_one_that_its_probes_give_up_ends_alone_where_it_is_not_to_run_again() -> None:
    """Else the machine is replaced or the pod fails: nobody can restart it by itself."""
    alone = look(RUNNING, NEVER, unhealthy={"side": "liveness"}).slot
    side = side_of(alone)
    assert alone.begun is not None
    assert side.done is not None
    assert (side.done.exit_code, side.done.message) == (137, "liveness")
    together = look(RUNNING, ALWAYS, unhealthy={"side": "liveness"})
    assert together.slot.replace
    assert together.news[0].message.startswith("Container side will be restarted")
    strict = replace(ALWAYS, replace_unhealthy=False)
    failed = look(RUNNING, strict, unhealthy={"side": "liveness"})
    assert failed.lost is not None
    assert failed.lost.kind is Kind.FAILED


def test_an_unhealthy_one_fails_a_pod_whose_first_one_is_over() -> None:
    """Another machine would begin with what has ended."""
    rules = Rules(restart_policy="OnFailure")
    half = look(RUNNING, rules, main=Marker(1, 0)).slot
    found = look(half, rules, unhealthy={"side": "liveness"})
    assert found.lost is not None
    assert found.lost.reason == "Unhealthy"


def test_each_of_a_deleted_pod_has_the_code_that_its_log_told() -> None:
    """And 137 where it told none."""
    ended = stopped(RUNNING, {"main": None, "side": 0}, at=AT, message="the pod was deleted")
    assert statuses(ended) == [(Run.TERMINATED, 137), (Run.TERMINATED, 0)]


def test_what_a_status_tells_is_recalled_for_each_of_them() -> None:
    """A process that starts anew neither begins a finished container again nor forgets a count."""
    half = look(RUNNING, main=Marker(1, 0)).slot
    assert half.done is not None
    entries = [
        {"name": "main", "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}},
        {
            "name": "side",
            "containerID": "gp4u://7/side-3",
            "restartCount": 2,
            "state": {"running": {"startedAt": "2026-11-01T00:00:00Z"}},
        },
    ]
    pod = {**POD, "status": {"phase": "Running", "containerStatuses": entries}}
    slot = recalled(pod, MACHINE, UP)
    assert slot.done == Ended(exit_code=0, reason="Completed")
    assert slot.begun is None
    side = side_of(slot)
    assert (side.restarts, side.done) == (2, None)
    assert side.begun is not None
    assert side.begun.container_id == "gp4u://7/side-3"
    assert look(slot).news == ()
