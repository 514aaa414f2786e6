"""The breaker's moves, one by one; random sequences are in tests/property."""

from __future__ import annotations

import pytest

from gp4u.resilience.breaker import (
    TRIAL_RETRY_S,
    Breaker,
    BreakerSettings,
    BreakerState,
    Refusal,
    Ticket,
)


def admitted(breaker: Breaker, at: float, *, probe_ok: bool = True) -> Ticket:
    """Return the ticket of a call that must be admitted."""
    ticket = breaker.admit(at, probe_ok=probe_ok)
    assert isinstance(ticket, Ticket)
    return ticket


def fail(breaker: Breaker, at: float, times: int = 1) -> None:
    for _ in range(times):
        breaker.failure(admitted(breaker, at), at)


def succeed(breaker: Breaker, at: float, times: int = 1) -> None:
    for _ in range(times):
        breaker.success(admitted(breaker, at), at)


def refused_for(breaker: Breaker, at: float, *, probe_ok: bool = True) -> float:
    """Return the wait of a call that must be refused."""
    refusal = breaker.admit(at, probe_ok=probe_ok)
    assert isinstance(refusal, Refusal)
    return refusal.retry_in_s


def test_five_failures_in_a_row_open_it_for_sixty_seconds() -> None:
    """The seed's threshold and timeout are the defaults."""
    breaker = Breaker()

    fail(breaker, 10.0, times=4)
    assert breaker.state(10.0) is BreakerState.CLOSED
    fail(breaker, 10.0)

    assert breaker.state(10.0) is BreakerState.OPEN
    assert refused_for(breaker, 10.0) == 60.0
    assert refused_for(breaker, 55.0) == 15.0
    assert breaker.state(70.0) is BreakerState.HALF_OPEN


def test_a_success_ends_the_row() -> None:
    """Scattered failures are weather, not an outage."""
    breaker = Breaker()

    for _ in range(4):
        fail(breaker, 0.0, times=4)
        succeed(breaker, 0.0, times=6)

    assert breaker.state(0.0) is BreakerState.CLOSED
    assert breaker.stats(0.0).failure_count == 0


def test_half_of_a_full_window_trips_it_without_any_row() -> None:
    """A provider that fails every second call never fails five times in a row."""
    breaker = Breaker()

    for _ in range(9):
        succeed(breaker, 0.0)
        fail(breaker, 0.0)
    succeed(breaker, 0.0)
    assert breaker.state(0.0) is BreakerState.CLOSED
    fail(breaker, 0.0)

    assert breaker.state(0.0) is BreakerState.OPEN


def test_old_failures_leave_the_window() -> None:
    """Nine bad calls of twenty are tolerable, and so are nine of the next twenty."""
    breaker = Breaker()

    for _ in range(10):
        for _ in range(9):
            fail(breaker, 0.0)
            succeed(breaker, 0.0)
        succeed(breaker, 0.0, times=2)

    assert breaker.state(0.0) is BreakerState.CLOSED


def test_slow_answers_trip_it_like_failures() -> None:
    """Answers at the edge of the deadline are an outage that says 200."""
    breaker = Breaker()

    for _ in range(10):
        breaker.success(admitted(breaker, 0.0), 0.0, took_s=24.1, deadline_s=30.0)
        breaker.success(admitted(breaker, 0.0), 0.0, took_s=24.0, deadline_s=30.0)

    assert breaker.state(0.0) is BreakerState.OPEN
    assert breaker.stats(0.0).last_failure_at is None


def test_a_fixed_bound_for_slow_calls_replaces_the_share_of_the_deadline() -> None:
    """An operator may know better what slow means."""
    breaker = Breaker(BreakerSettings(slow_call_s=1.0, window_calls=2))

    breaker.success(admitted(breaker, 0.0), 0.0, took_s=1.0, deadline_s=1.0)
    breaker.success(admitted(breaker, 0.0), 0.0, took_s=0.9, deadline_s=1.0)
    assert breaker.state(0.0) is BreakerState.CLOSED
    breaker.success(admitted(breaker, 0.0), 0.0, took_s=1.1, deadline_s=100.0)

    assert breaker.state(0.0) is BreakerState.OPEN


def test_three_trials_must_all_succeed_to_close() -> None:
    """The seed's rule: three test requests after the timeout."""
    breaker = Breaker()
    fail(breaker, 0.0, times=5)

    succeed(breaker, 60.0, times=2)
    assert breaker.state(60.0) is BreakerState.HALF_OPEN
    succeed(breaker, 60.0)

    assert breaker.state(60.0) is BreakerState.CLOSED
    assert breaker.stats(60.0).failure_count == 0


def test_no_more_than_three_trials_are_out_at_once() -> None:
    """A recovering provider must not be met by everybody who waited."""
    breaker = Breaker()
    fail(breaker, 0.0, times=5)

    for _ in range(3):
        admitted(breaker, 60.0)

    assert refused_for(breaker, 60.0) == TRIAL_RETRY_S


def test_a_passed_trial_does_not_make_room_for_a_fourth() -> None:
    """Three in all, not three at a time."""
    breaker = Breaker()
    fail(breaker, 0.0, times=5)
    first, _, _ = (admitted(breaker, 60.0) for _ in range(3))

    breaker.success(first, 61.0)

    assert refused_for(breaker, 61.0) == TRIAL_RETRY_S


def test_a_trial_without_verdict_makes_room() -> None:
    """Else three cancelled trials would keep the provider shut for ever."""
    breaker = Breaker()
    fail(breaker, 0.0, times=5)
    for ticket in [admitted(breaker, 60.0) for _ in range(3)]:
        breaker.abandon(ticket)

    succeed(breaker, 61.0, times=3)

    assert breaker.state(61.0) is BreakerState.CLOSED


def test_a_trial_settled_twice_counts_once() -> None:
    """A caller's slip must not close the breaker on less evidence."""
    breaker = Breaker()
    fail(breaker, 0.0, times=5)
    ticket = admitted(breaker, 60.0)

    for _ in range(3):
        breaker.success(ticket, 60.0)
    breaker.failure(ticket, 60.0)

    assert breaker.state(60.0) is BreakerState.HALF_OPEN


def test_a_failed_trial_doubles_the_time_up_to_ten_minutes() -> None:
    """Asking a dead provider every minute for a day helps nobody."""
    breaker = Breaker()
    fail(breaker, 0.0, times=5)
    at, waits = 0.0, []

    for _ in range(6):
        waits.append(refused_for(breaker, at))
        at += waits[-1]
        fail(breaker, at)

    assert waits == [60.0, 120.0, 240.0, 480.0, 600.0, 600.0]
    assert breaker.stats(at).trip_count == 7


def test_closing_forgets_the_doubling() -> None:
    """The next outage is a new one."""
    breaker = Breaker()
    fail(breaker, 0.0, times=5)
    fail(breaker, 60.0)
    succeed(breaker, 180.0, times=3)

    fail(breaker, 200.0, times=5)

    assert refused_for(breaker, 200.0) == 60.0


def test_a_timeout_longer_than_the_cap_stands() -> None:
    """The cap bounds the doubling, it does not overrule a setting."""
    breaker = Breaker(BreakerSettings(timeout_s=900.0))

    fail(breaker, 0.0, times=5)
    assert refused_for(breaker, 0.0) == 900.0
    fail(breaker, 900.0)

    assert refused_for(breaker, 900.0) == 900.0


def test_a_rent_is_never_a_trial() -> None:
    """Its failure may cost money, a listing's costs nothing."""
    breaker = Breaker()
    assert admitted(breaker, 0.0, probe_ok=False) == admitted(breaker, 0.0)
    fail(breaker, 0.0, times=5)

    assert refused_for(breaker, 0.0, probe_ok=False) == 60.0
    assert refused_for(breaker, 60.0, probe_ok=False) == TRIAL_RETRY_S
    succeed(breaker, 60.0, times=3)

    assert admitted(breaker, 60.0, probe_ok=False).trial == 0


def test_late_results_move_nothing() -> None:
    """A call sent before the trip tells of a time that is over."""
    breaker = Breaker()
    early = [admitted(breaker, 0.0) for _ in range(10)]
    fail(breaker, 0.0, times=5)

    breaker.success(early[0], 1.0)
    breaker.failure(early[1], 1.0)
    assert refused_for(breaker, 1.0) == 59.0
    trial = admitted(breaker, 60.0)
    for ticket in early[2:6]:
        breaker.success(ticket, 60.0)
    breaker.failure(early[6], 60.0)
    assert breaker.state(60.0) is BreakerState.HALF_OPEN
    breaker.success(trial, 60.0)
    succeed(breaker, 60.0, times=2)
    for ticket in early[7:]:
        breaker.failure(ticket, 61.0)

    stats = breaker.stats(61.0)
    assert (stats.state, stats.failure_count) == (BreakerState.CLOSED, 0)
    assert stats.last_failure_at == 61.0


def test_a_late_success_does_not_end_a_newer_row() -> None:
    """That the provider worked before the outage is no news after it."""
    breaker = Breaker()
    early = admitted(breaker, 0.0)
    breaker.reset(0.0)

    fail(breaker, 1.0, times=4)
    breaker.success(early, 1.0)
    fail(breaker, 1.0)

    assert breaker.state(1.0) is BreakerState.OPEN


def test_a_reset_by_hand_closes_at_once_and_keeps_the_totals() -> None:
    """The operator knows that it is over; the record of what happened stays."""
    breaker = Breaker()
    succeed(breaker, 0.0, times=2)
    fail(breaker, 0.0, times=5)
    fail(breaker, 60.0)

    breaker.reset(61.0)

    stats = breaker.stats(61.0)
    assert stats.state is BreakerState.CLOSED
    assert (stats.failure_count, stats.success_count, stats.trip_count) == (0, 2, 2)
    assert stats.last_failure_at == 60.0
    fail(breaker, 62.0, times=5)
    assert refused_for(breaker, 62.0) == 60.0


def test_a_new_state_begins_with_an_empty_window() -> None:
    """Twenty calls since the reset are judged, not twenty calls since ever."""
    breaker = Breaker()
    succeed(breaker, 0.0, times=20)
    breaker.reset(0.0)

    for _ in range(9):
        fail(breaker, 0.0)
        succeed(breaker, 0.0)
    fail(breaker, 0.0)
    assert breaker.state(0.0) is BreakerState.CLOSED
    succeed(breaker, 0.0)

    assert breaker.state(0.0) is BreakerState.OPEN


def test_a_failed_round_of_trials_counts_for_nothing_in_the_next() -> None:
    """Three of three, not three of five."""
    breaker = Breaker()
    fail(breaker, 0.0, times=5)
    succeed(breaker, 60.0, times=2)
    fail(breaker, 60.0)

    succeed(breaker, 180.0, times=2)
    assert breaker.state(180.0) is BreakerState.HALF_OPEN
    succeed(breaker, 180.0)

    assert breaker.state(180.0) is BreakerState.CLOSED


def test_stats_tell_the_time_to_the_next_trial() -> None:
    """A status page shows it, and reading it changes nothing."""
    breaker = Breaker()
    fail(breaker, 0.0, times=5)

    assert breaker.stats(20.0).retry_in_s == 40.0
    assert breaker.stats(100.0).state is BreakerState.HALF_OPEN
    assert breaker.stats(100.0).retry_in_s == 0.0
    assert breaker.stats(20.0).state is BreakerState.OPEN


@pytest.mark.parametrize(
    "bad",
    [
        {"threshold": 0},
        {"half_open_max_calls": 0},
        {"window_calls": 0},
        {"timeout_s": 0.0},
        {"timeout_s": float("nan")},
        {"window_failure_rate": 0.0},
        {"window_failure_rate": 1.1},
    ],
)
def test_settings_that_make_no_sense_are_refused(bad: dict[str, float]) -> None:
    """A breaker that opens on nothing, or never closes, is a bug in the making."""
    with pytest.raises(ValueError, match="must be"):
        BreakerSettings(**bad)  # type: ignore[arg-type]  # counts come as ints


def test_open_time_is_counted_while_it_lasts_and_kept_when_it_is_over() -> None:
    """Uptime is read from it, at any moment; an OPEN that nobody tried ends by the clock."""
    breaker = Breaker()
    fail(breaker, 10.0, times=5)

    assert breaker.stats(10.0).open_s == 0.0
    assert breaker.stats(35.0).open_s == 25.0
    assert breaker.stats(500.0).open_s == 60.0
    succeed(breaker, 500.0, times=3)
    assert breaker.stats(600.0).open_s == 60.0
    fail(breaker, 700.0, times=5)
    breaker.reset(705.0)
    assert breaker.stats(900.0).open_s == 65.0


def test_an_outage_begins_with_its_first_trip_and_lasts_until_it_is_closed() -> None:
    """Each failed trial opens anew, and "open for five minutes" must not start over with it."""
    breaker = Breaker()
    assert breaker.stats(0.0).opened_at is None

    fail(breaker, 10.0, times=5)
    fail(breaker, 70.0)
    fail(breaker, 190.0)
    assert breaker.stats(431.0).opened_at == 10.0
    succeed(breaker, 431.0, times=3)

    assert breaker.stats(431.0).opened_at is None
    assert breaker.stats(431.0).open_s == 60.0 + 120.0 + 240.0


def test_every_move_is_told_once_with_where_it_came_from() -> None:
    """Who shows states as they change must not have to compare them himself."""
    breaker = Breaker()
    moves: list[tuple[str, str]] = []
    breaker.on_change = lambda old, new: moves.append((str(old), str(new)))

    breaker.reset(0.0)
    fail(breaker, 0.0, times=5)
    fail(breaker, 60.0)
    refused_for(breaker, 61.0)
    succeed(breaker, 180.0, times=3)
    fail(breaker, 181.0, times=5)
    breaker.reset(182.0)

    assert moves == [
        ("CLOSED", "OPEN"),
        ("OPEN", "HALF_OPEN"),
        ("HALF_OPEN", "OPEN"),
        ("OPEN", "HALF_OPEN"),
        ("HALF_OPEN", "CLOSED"),
        ("CLOSED", "OPEN"),
        ("OPEN", "CLOSED"),
    ]
