"""The scripts that Redis runs, against `Bucket`, `Window` and the law itself, at made-up moments.

Only the line that asks Redis for its time is exchanged: the time comes from a key instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis import Redis

from gp4u.resilience.bucket import MAX_SLOWDOWN, Bucket, Pace, Window
from gp4u.resilience.shared import PENALISE, TAKE
from tests.redis_server import redis_server

S = 1_000_000
"""A second in the scripts' unit."""
BEGAN_US = 1_767_225_600 * S
KEYS = ("gp4u:vastai:0123456789abcdef", "gp4u:vastai:0123456789abcdef:offers")
STEP = st.sampled_from([0, 1, 250_000, 500_000, S, 3 * S, 20 * S])

checked = settings(max_examples=150, deadline=None)


class Limits(NamedTuple):
    """What a call of the script says of the limits; 0 stands for none."""

    interval_us: int
    burst: int
    calls: int
    span_us: int


LIMITS = st.builds(
    Limits,
    interval_us=st.sampled_from([0, 250_000, 500_000, 4 * S]),
    burst=st.integers(1, 5),
    calls=st.integers(0, 4),
    span_us=st.sampled_from([500_000, 2 * S, 10 * S]),
)


class Place:
    """The scripts with a clock of the test's."""

    def __init__(self, redis: Redis) -> None:
        redis.flushall()
        self._redis = redis
        self.now_us = BEGAN_US

    def take(
        self, limits: Limits, *, patience_us: int = 0, mark: str = "", endpoint: str = KEYS[1]
    ) -> tuple[int, str]:
        """Return the wait and the mark."""
        return self._run(TAKE, endpoint, *limits, patience_us, 3600, mark)

    def penalise(self, rest_us: int, slow_for_us: int) -> None:
        """Let the endpoint rest."""
        self._run(PENALISE, KEYS[1], rest_us, slow_for_us, 3600, MAX_SLOWDOWN)

    def _run(self, script: str, endpoint: str, *args: object) -> tuple[int, str]:
        text = script.replace("redis.call('TIME')", "redis.call('LRANGE', 'clock', 0, 1)")
        assert text != script
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.delete("clock")
            pipe.rpush("clock", *divmod(self.now_us, S))
            pipe.eval(text, 2, KEYS[0], endpoint, *map(str, args))
            reply: Any = pipe.execute()[-1]
        wait_us, mark = reply
        return wait_us, mark.decode()


def never_more_than(limits: Limits, left: list[int]) -> bool:
    """Whether any stretch of t seconds holds at most rate x t + burst of these, in order."""
    return all(
        count <= (end - begin) / limits.interval_us + limits.burst
        for number, begin in enumerate(left)
        for count, end in enumerate(left[number:], start=1)
    )


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    """A server for the whole file; each example empties it."""
    with redis_server(tmp_path_factory.mktemp("redis")) as server, server.client() as client:
        yield client


@given(rate=st.sampled_from([0.25, 1.0, 2.0, 4.0]), burst=st.integers(1, 5), steps=st.lists(STEP))
@checked
def test_without_patience_the_bucket_is_the_bucket(
    redis: Redis, rate: float, burst: int, steps: list[int]
) -> None:
    """A process alone must not notice, but for the way, that its pace is kept elsewhere."""
    place, bucket = Place(redis), Bucket(rate, burst)
    limits = Limits(int(S / rate), burst, 0, 0)

    for step in steps:
        place.now_us += step
        wait_us, _ = place.take(limits)
        assert wait_us == pytest.approx(bucket.take(1, place.now_us / S) * S, abs=2)


@given(
    calls=st.integers(1, 4),
    span_us=st.sampled_from([500_000, 2 * S, 10 * S]),
    steps=st.lists(st.tuples(STEP, st.sampled_from(["take", "rest", "rest and slow"]))),
)
@checked
def test_without_patience_the_window_is_the_window(
    redis: Redis, calls: int, span_us: int, steps: list[tuple[int, str]]
) -> None:
    """Departures, penalties and slowing down mean in Redis what they mean here."""
    place, window = Place(redis), Window(Pace(calls=calls, per_s=span_us / S))
    limits = Limits(0, 1, calls, span_us)

    for step, what in steps:
        place.now_us += step
        at = place.now_us / S
        if what == "take":
            wait_us, _ = place.take(limits)
            assert wait_us == pytest.approx(window.take(at) * S, abs=2)
            continue
        slow_for_us = 30 * S if what == "rest and slow" else 0
        place.penalise(2 * S, slow_for_us)
        window.penalise(at, 2.0)
        if slow_for_us:
            window.slow_down(at, 30.0)


@given(
    limits=LIMITS,
    steps=st.lists(
        st.tuples(
            STEP, st.sampled_from([0, 3 * S, 30 * S]), st.sampled_from(["offers", "rent", "429"])
        ),
        max_size=60,
    ),
)
@checked
def test_turns_ahead_keep_the_law_in_whatever_order_they_are_given(
    redis: Redis, limits: Limits, steps: list[tuple[int, int, str]]
) -> None:
    """Two endpoints wait for different lengths of time, and share one bucket all the same."""
    place = Place(redis)
    left: dict[str, list[int]] = {KEYS[1]: [], f"{KEYS[0]}:rent": []}

    for step, patience_us, what in steps:
        place.now_us += step
        if what == "429":
            place.penalise(S, 5 * S)
            continue
        endpoint = f"{KEYS[0]}:{what}"
        pace = limits._replace(calls=0) if what == "rent" else limits
        wait_us, _ = place.take(pace, patience_us=patience_us, endpoint=endpoint)
        if wait_us <= patience_us:
            left[endpoint].append(place.now_us + wait_us)

    assert all(a <= b for a, b in pairwise(left[KEYS[1]])), "somebody was overtaken"
    if limits.calls:
        own = left[KEYS[1]]
        for first, last in zip(own, own[limits.calls :], strict=False):
            assert last - first >= limits.span_us
    if limits.interval_us:
        assert never_more_than(limits, sorted(at for each in left.values() for at in each))


@given(limits=LIMITS, patience_us=st.sampled_from([0, 5 * S]), ahead=st.integers(0, 10))
@checked
def test_a_refusal_takes_nothing(
    redis: Redis, limits: Limits, patience_us: int, ahead: int
) -> None:
    """Who gives up at once must not make the line longer for those who wait."""
    place = Place(redis)
    for _ in range(ahead):
        place.take(limits, patience_us=60 * S)
    first, _ = place.take(limits, patience_us=patience_us)
    if first <= patience_us:
        return

    assert [place.take(limits)[0] for _ in range(5)] == [first] * 5


@given(limits=LIMITS, steps=st.lists(st.tuples(STEP, st.integers(0, 7200)), max_size=40))
@checked
def test_a_clock_that_is_set_back_neither_stops_the_line_nor_feeds_it(
    redis: Redis, limits: Limits, steps: list[tuple[int, int]]
) -> None:
    """By true time the law holds, and nobody waits for more than the limits are worth."""
    place, true_us = Place(redis), 0
    left: list[int] = []
    longest_us = max(limits.interval_us, limits.span_us)

    for step, back_s in steps:
        true_us += step
        place.now_us += step - back_s * S
        wait_us, _ = place.take(limits)
        assert wait_us <= longest_us
        if wait_us == 0:
            left.append(true_us)
    place.now_us += longest_us
    assert place.take(limits)[0] == 0, "it waits for the clock to catch up"
    if limits.calls:
        for first, last in zip(left, left[limits.calls :], strict=False):
            assert last - first >= limits.span_us
    if limits.interval_us:
        assert never_more_than(limits, left)


def test_a_turn_ahead_stands_unless_a_penalty_comes_in_between(redis: Redis) -> None:
    """Who waited must not leave into a market that has just said 429, nor all of them at once."""
    place, limits = Place(redis), Limits(0, 1, 1, S)
    place.take(limits)
    waits = [place.take(limits, patience_us=30 * S) for _ in range(3)]
    assert [wait for wait, _ in waits] == [S, 2 * S, 3 * S]

    place.now_us += S
    assert place.take(limits, patience_us=30 * S, mark=waits[0][1])[0] == 0
    place.penalise(10 * S, 0)
    place.now_us += S

    again = [place.take(limits, patience_us=30 * S, mark=mark)[0] for _, mark in waits[1:]]
    assert again == [9 * S, 10 * S]


def test_nobody_is_overtaken_when_a_slow_time_ends(redis: Redis) -> None:
    """A turn that was given at half the rate lies further ahead than one at the whole of it."""
    place, limits = Place(redis), Limits(0, 1, 2, 2 * S)
    place.take(limits)
    place.take(limits)
    place.penalise(0, S)
    assert place.take(limits, patience_us=30 * S)[0] == 4 * S

    place.now_us += S

    assert place.take(limits, patience_us=30 * S)[0] == 3 * S


def test_every_key_vanishes_by_itself(redis: Redis) -> None:
    """An account that is no longer used must leave nothing behind."""
    place = Place(redis)
    for touch in (lambda: place.take(Limits(S, 1, 1, S)), lambda: place.penalise(S, S)):
        redis.flushall()
        touch()
        left_s: list[Any] = [redis.ttl(key) for key in KEYS]
        assert all(0 < each <= 3600 for each in left_s)
    assert set(redis.keys("gp4u:*")) == {key.encode() for key in KEYS}
