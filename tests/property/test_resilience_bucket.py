"""The laws of pacing: they are what keeps a provider from punishing us (law L11)."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gp4u.resilience.bucket import Bucket, Pace, Window

TICKS = st.integers(0, 3_000).map(lambda n: n / 1024)
"""Gaps in seconds that add up without rounding, so that the laws can be tested strictly."""


@given(
    rate=st.floats(0.1, 50.0),
    capacity=st.integers(1, 20),
    asks=st.lists(st.tuples(TICKS, st.integers(1, 3)), min_size=1, max_size=80),
)
def test_no_stretch_of_time_sees_more_than_its_rate_and_one_burst(
    rate: float, capacity: int, asks: list[tuple[float, int]]
) -> None:
    """taken(t) <= rate * t + capacity, between any two departures."""
    bucket, at, taken = Bucket(rate, capacity), 0.0, []
    for gap, n in asks:
        at += gap
        if n <= capacity and bucket.take(n, at) == 0.0:
            taken.append((at, n))

    for first, (begin, _) in enumerate(taken):
        total = 0
        for end, n in taken[first:]:
            total += n
            assert total <= rate * (end - begin) + capacity + 1e-6


@given(
    rate=st.floats(0.01, 50.0),
    capacity=st.integers(1, 20),
    asks=st.lists(st.tuples(TICKS, st.integers(1, 20)), max_size=40),
)
def test_the_promised_wait_is_enough(
    rate: float, capacity: int, asks: list[tuple[float, int]]
) -> None:
    """Whoever waits as told gets the tokens; else the line would never move."""
    bucket, at = Bucket(rate, capacity), 0.0
    for gap, n in asks:
        at += gap
        if n > capacity:
            continue
        wait_s = bucket.take(n, at)
        assert wait_s >= 0.0
        if wait_s > 0.0:
            at += wait_s + 1e-6
            assert bucket.take(n, at) == 0.0


@given(
    calls=st.integers(1, 5),
    per_s=st.integers(1, 3_000).map(lambda n: n / 1024),
    moves=st.lists(
        st.tuples(TICKS, st.sampled_from(["take"] * 6 + ["penalise", "slow_down", "step back"])),
        max_size=80,
    ),
)
def test_no_window_holds_more_than_its_calls(
    calls: int, per_s: float, moves: list[tuple[float, str]]
) -> None:
    """Any `calls + 1` departures in a row span at least `per_s`, whatever happened in between."""
    window, at, left = Window(Pace(calls=calls, per_s=per_s)), 0.0, []
    for gap, move in moves:
        at += gap
        match move:
            case "take":
                if window.take(at) == 0.0:
                    left.append(at)
            case "penalise":
                window.penalise(at, gap)
            case "slow_down":
                window.slow_down(at, gap)
            case _:
                assert window.wait(at - gap) >= 0.0

    assert all(later - earlier >= per_s for earlier, later in zip(left, left[calls:], strict=False))


@given(
    calls=st.integers(1, 5),
    per_s=st.integers(1, 3_000).map(lambda n: n / 1024),
    gaps=st.lists(TICKS, max_size=60),
)
def test_a_window_refuses_nobody_whom_its_law_would_admit(
    calls: int, per_s: float, gaps: list[float]
) -> None:
    """Refusing everything would keep the law as well."""
    window, at = Window(Pace(calls=calls, per_s=per_s)), 0.0
    left: list[float] = []
    for gap in gaps:
        at += gap
        allowed = len(left) < calls or at - left[-calls] >= per_s
        wait_s = window.take(at)
        assert (wait_s == 0.0) == allowed
        if allowed:
            left.append(at)
        else:
            assert at + wait_s == left[-calls] + per_s


@given(st.lists(st.tuples(TICKS, TICKS), min_size=1, max_size=30))
def test_the_latest_end_of_all_penalties_counts(moves: list[tuple[float, float]]) -> None:
    """Nothing leaves before the end of any penalty that was ever given."""
    window, at, latest = Window(Pace(per_s=1 / 1024)), 0.0, 0.0
    for gap, seconds in moves:
        at += gap
        window.penalise(at, seconds)
        latest = max(latest, at + seconds)
        assert at + window.wait(at) == latest
