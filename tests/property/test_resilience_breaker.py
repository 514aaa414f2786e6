"""The breaker against a model that keeps the whole history and re-reads it for every answer."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)

from gp4u.resilience.breaker import Breaker, BreakerSettings, BreakerState, Refusal, Ticket

SETTINGS = BreakerSettings(
    threshold=3,
    timeout_s=10.0,
    max_timeout_s=35.0,
    half_open_max_calls=2,
    window_calls=6,
    window_failure_rate=0.5,
    slow_call_s=5.0,
)


class History:
    """What happened since the last change of state, as plain lists."""

    def __init__(self) -> None:
        self.state = BreakerState.CLOSED
        self.period = 0
        self.results: list[str] = []
        self.out = 0
        self.until = 0.0
        self.failed_trials = 0
        self.trips = 0
        self.opened: list[tuple[float, float]] = []
        self.outage: float | None = None

    def open_s(self, at: float) -> float:
        """Sum every OPEN anew; one that was reset has its end moved there."""
        return sum(max(0.0, min(at, until) - since) for since, until in self.opened)

    def begin(self, state: BreakerState) -> None:
        if state is BreakerState.CLOSED:
            self.outage = None
        self.state, self.period = state, self.period + 1
        self.results, self.out = [], 0

    def look(self, at: float) -> None:
        if self.state is BreakerState.OPEN and at >= self.until:
            self.begin(BreakerState.HALF_OPEN)

    def trip(self, at: float) -> None:
        self.trips += 1
        self.until = at + min(10.0 * 2**self.failed_trials, 35.0)
        self.opened.append((at, self.until))
        self.outage = at if self.outage is None else self.outage
        self.begin(BreakerState.OPEN)

    def judge(self, result: str, at: float) -> None:
        self.results.append(result)
        if self.state is BreakerState.HALF_OPEN:
            self.out -= 1
            if result == "failure":
                self.failed_trials += 1
                self.trip(at)
            elif len(self.results) == 2:
                self.failed_trials = 0
                self.begin(BreakerState.CLOSED)
            return
        row = self.results[-3:] == ["failure"] * 3
        newest = self.results[-6:]
        share = len(newest) == 6 and sum(r != "success" for r in newest) >= 3
        if row or share:
            self.trip(at)


class BreakerMachine(RuleBasedStateMachine):
    """Random calls, results in any order and at any delay, resets by hand."""

    tickets = Bundle("tickets")

    @initialize()
    def begin(self) -> None:
        self.breaker, self.model = Breaker(SETTINGS), History()
        self.at = 0.0
        self.periods: dict[int, int] = {}
        self.answers = 0

    @rule(seconds=st.sampled_from([0.0, 0.5, 4.0, 10.0, 40.0]))
    def pass_time(self, seconds: float) -> None:
        self.at += seconds

    @rule(target=tickets, probe_ok=st.booleans())
    def admit(self, probe_ok: bool) -> object:
        verdict, model = self.breaker.admit(self.at, probe_ok=probe_ok), self.model
        model.look(self.at)
        room = probe_ok and model.out + len(model.results) < 2
        expected = {
            BreakerState.CLOSED: True,
            BreakerState.OPEN: False,
            BreakerState.HALF_OPEN: room,
        }[model.state]
        assert isinstance(verdict, Ticket) == expected
        if isinstance(verdict, Refusal):
            if model.state is BreakerState.OPEN:
                assert verdict.retry_in_s == model.until - self.at
            assert verdict.retry_in_s > 0
            return multiple()
        model.out += 1
        return (verdict, model.period)

    @rule(given=consumes(tickets), result=st.sampled_from(["success", "slow", "failure"]))
    def settle(self, given: tuple[Ticket, int], result: str) -> None:
        ticket, period = given
        if result == "failure":
            self.breaker.failure(ticket, self.at)
        else:
            self.answers += 1
            self.breaker.success(ticket, self.at, took_s=6.0 if result == "slow" else 5.0)
        if period == self.model.period:
            self.model.judge(result, self.at)

    @rule(given=consumes(tickets))
    def abandon(self, given: tuple[Ticket, int]) -> None:
        ticket, period = given
        self.breaker.abandon(ticket)
        if period == self.model.period:
            self.model.out -= 1

    @rule(results=st.lists(st.sampled_from(["success", "slow", "failure"]), max_size=8))
    def call_in_a_row(self, results: list[str]) -> None:
        for result in results:
            given = self.admit(True)
            if isinstance(given, tuple):
                self.settle(given, result)

    @rule()
    def wait_for_the_trial(self) -> None:
        self.at = max(self.at, self.model.until)

    @precondition(lambda self: self.model.period % 5 == 4)
    @rule()
    def reset(self) -> None:
        self.breaker.reset(self.at)
        self.model.failed_trials = 0
        if self.model.opened:
            since, until = self.model.opened[-1]
            self.model.opened[-1] = (since, min(until, self.at))
        self.model.begin(BreakerState.CLOSED)

    @invariant()
    def agrees_with_the_model(self) -> None:
        stats, model = self.breaker.stats(self.at), self.model
        timed_out = model.state is BreakerState.OPEN and self.at >= model.until
        assert stats.state is (BreakerState.HALF_OPEN if timed_out else model.state)
        assert stats.trip_count == model.trips
        assert stats.success_count == self.answers
        assert stats.retry_in_s <= 35.0
        assert stats.open_s == model.open_s(self.at)
        assert stats.opened_at == model.outage


def test_the_breaker_never_disagrees_with_its_history() -> None:
    """No sequence of calls, results and resets tells the two apart."""
    run_state_machine_as_test(
        BreakerMachine,
        settings=settings(max_examples=300, stateful_step_count=60, deadline=None),
    )
