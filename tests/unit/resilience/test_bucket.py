"""Rates, bursts, intervals and penalties, one by one; the laws are in tests/property."""

from __future__ import annotations

import pytest

from gp4u.resilience.bucket import Bucket, Pace, Window


def test_a_full_bucket_gives_a_burst_and_then_its_rate() -> None:
    """100 requests a minute: a hundred at once, then one per 0.6 s."""
    bucket = Bucket(100 / 60, 100)

    assert [bucket.take(1, 5.0) for _ in range(100)] == [0.0] * 100
    assert bucket.take(1, 5.0) == pytest.approx(0.6)
    assert bucket.take(1, 5.61) == 0.0


def test_nothing_is_taken_by_a_no() -> None:
    """Else those who ask often would starve everybody, themselves first."""
    bucket = Bucket(1.0, 2)
    bucket.take(2, 0.0)

    waits = [bucket.take(2, 1.0) for _ in range(5)]

    assert waits == [1.0] * 5
    assert bucket.take(2, 2.0) == 0.0
    assert bucket.requests_blocked == 5


def test_looking_at_the_wait_blocks_nobody() -> None:
    """Waiters look many times, and each of them was blocked once."""
    bucket = Bucket(1.0, 1)
    bucket.take(1, 0.0)

    assert bucket.wait(1, 0.25) == 0.75
    assert bucket.requests_blocked == 0


def test_a_bucket_never_holds_more_than_its_capacity() -> None:
    """A quiet night must not turn into a thousand calls at dawn."""
    bucket = Bucket(10.0, 3)
    bucket.take(3, 0.0)

    assert bucket.available(86_400.0) == 3


def test_a_clock_that_steps_back_earns_nothing() -> None:
    """Else a moment seen twice would pay twice."""
    bucket = Bucket(1.0, 10)
    bucket.take(10, 100.0)

    assert bucket.available(90.0) == 0.0
    assert bucket.available(100.0) == 0.0
    assert bucket.available(101.0) == 1.0


def test_stats_have_the_seeds_numbers() -> None:
    """87 of 100 tokens left is a utilisation of 0.13."""
    bucket = Bucket(100 / 60, 100)
    bucket.take(13, 0.0)

    stats = bucket.stats(0.0)

    assert (stats.available_tokens, stats.capacity, stats.requests_blocked) == (87, 100, 0)
    assert stats.utilization == pytest.approx(0.13)


def test_more_than_the_bucket_holds_is_a_bug_and_not_a_wait() -> None:
    """Waiting for it would never end."""
    with pytest.raises(ValueError, match="never fit"):
        Bucket(1.0, 2).take(3, 0.0)


@pytest.mark.parametrize(("rate", "capacity"), [(0.0, 1), (-1.0, 1), (1.0, 0.5), (float("nan"), 1)])
def test_a_bucket_that_can_never_give_is_refused(rate: float, capacity: float) -> None:
    """Every call would wait for ever."""
    with pytest.raises(ValueError, match="must be"):
        Bucket(rate, capacity)


def test_one_call_per_interval() -> None:
    """Vast's rent: 4.5 s between two calls."""
    window = Window(Pace(per_s=4.5))

    assert window.take(10.0) == 0.0
    assert window.take(11.5) == 3.0
    assert window.take(14.5) == 0.0


def test_ten_calls_per_minute_may_come_at_once_but_not_twice() -> None:
    """Vast's search: a token bucket would allow up to twenty around a burst's edge."""
    window = Window(Pace(calls=10, per_s=60.0))

    assert [window.take(float(at)) for at in range(10)] == [0.0] * 10
    assert window.take(10.0) == 50.0
    assert window.take(60.0) == 0.0
    assert window.take(60.0) == 1.0


def test_slack_widens_the_interval() -> None:
    """What leaves in time can arrive too early."""
    window = Window(Pace(per_s=1.0), slack_s=0.25)
    window.take(0.0)

    assert window.wait(1.0) == 0.25
    assert window.interval_s == 1.25


def test_a_penalty_holds_and_is_never_shortened() -> None:
    """A second, milder 429 must not lift the first one's ban."""
    window = Window(Pace(per_s=1.0))

    window.penalise(0.0, 20.0)
    window.penalise(1.0, 2.0)

    assert window.wait(5.0) == 15.0
    assert window.take(20.0) == 0.0


def test_slowing_down_halves_the_rate_for_a_while_and_again_if_needed() -> None:
    """The documented interval was too short; how much too short, nobody says."""
    window = Window(Pace(per_s=1.0))
    window.take(0.0)

    waits = []
    for _ in range(5):
        window.slow_down(0.0, 60.0)
        waits.append(window.wait(0.0))

    assert waits == [2.0, 4.0, 8.0, 8.0, 8.0]
    window.take(60.0)
    assert window.wait(60.0) == 1.0
    window.slow_down(61.0, 60.0)
    assert window.wait(61.0) == 1.0


def test_a_window_does_not_follow_a_clock_that_steps_back() -> None:
    """The log must stay in order, or the law means nothing."""
    window = Window(Pace(per_s=2.0))
    window.take(10.0)

    assert window.take(0.0) == 2.0
    assert window.take(12.0) == 0.0


@pytest.mark.parametrize("pace", [Pace(calls=0, per_s=1.0), Pace(per_s=0.0), Pace(per_s=-1.0)])
def test_a_pace_that_means_nothing_is_refused(pace: Pace) -> None:
    """No calls at all, or no time at all, is a slip in a spec."""
    with pytest.raises(ValueError, match="a pace needs"):
        Window(pace)
