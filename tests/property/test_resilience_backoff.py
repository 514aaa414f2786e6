"""Waits stay inside their envelope, hostile headers included, and retries stay affordable."""

from __future__ import annotations

from datetime import UTC, datetime
from random import Random

from hypothesis import example, given
from hypothesis import strategies as st

from gp4u.errors import Throttled, Unavailable
from gp4u.resilience.backoff import (
    MAX_RETRY_AFTER_S,
    Backoff,
    RetryQuota,
    parse_retry_after,
    sane_retry_after,
)

DOWN = Unavailable("vastai", "offers")
NOW = datetime(2026, 11, 22, 12, 0, 0, tzinfo=UTC)


@given(
    attempt=st.integers(1, 2_000),
    seed=st.integers(0, 2**32),
    base_s=st.just(0.0) | st.floats(0.001, 10.0),
    max_s=st.floats(0.0, 100.0),
    jitter_s=st.floats(0.0, 5.0),
    full=st.booleans(),
)
def test_a_delay_lies_between_its_bounds(
    attempt: int, seed: int, base_s: float, max_s: float, jitter_s: float, full: bool
) -> None:
    """Doubling from the base, under the cap, plus at most the jitter."""
    backoff = Backoff(base_s=base_s, max_s=max_s, jitter_s=jitter_s, full_jitter=full)
    envelope = min(max_s, base_s * 2.0 ** min(attempt - 1, 1000))

    delay = backoff.delay(attempt, DOWN, Random(seed))

    assert (0.0 if full else envelope) <= delay <= envelope + jitter_s + 1e-9
    assert delay <= backoff.longest_s + 1e-9


@given(told=st.floats(allow_nan=True, allow_infinity=True), seed=st.integers(0, 2**32))
def test_no_number_a_provider_can_send_makes_us_wait_longer_than_five_minutes(
    told: float, seed: int
) -> None:
    """Nor less than nothing."""
    error = Throttled("vastai", "offers", retry_after_s=told)

    assert 0.0 <= Backoff().delay(1, error, Random(seed)) <= MAX_RETRY_AFTER_S + 1.0
    assert (sane := sane_retry_after(told)) is None or 0.0 <= sane <= MAX_RETRY_AFTER_S


WORDS = st.sampled_from(
    ["Sun,", "22", "Nov", "2026", "12:00:30", "GMT", "+9999", "-0000", "1e5", "nan", "0", "(", ":"]
)


@given(header=st.one_of(st.text(), st.lists(WORDS, max_size=8).map(" ".join), st.floats().map(str)))
@example(header="Sun, 22 Nov 0000 00:00:00 GMT")
@example(header="Sun, 22 Nov 99999999999999999999 00:00:00 GMT")
@example(header="Sun, 22 Nov 2026 12:00:30 +99999999999999999999")
def test_no_header_breaks_the_parser_or_its_bounds(header: str) -> None:
    """It is the provider's text: anything may stand there."""
    seconds = parse_retry_after(header, NOW)

    assert seconds is None or 0.0 <= seconds <= MAX_RETRY_AFTER_S


@given(
    calls=st.lists(st.sampled_from(["fine", "down", "throttled"]), max_size=400),
    capacity=st.integers(0, 600),
)
def test_retries_never_cost_more_than_the_purse_and_the_refunds(
    calls: list[str], capacity: int
) -> None:
    """What is spent was there: at most capacity/5 retries, and one more per five successes."""
    quota = RetryQuota(capacity=capacity)
    spent = earned = 0
    for call in calls:
        if call == "fine":
            quota.earn()
            earned += 1
        elif call == "down":
            spent += 14 * quota.spend(DOWN)
        else:
            spent += 5 * quota.spend(Throttled("vastai", "offers"))

        assert 0 <= quota.tokens <= capacity
        assert spent <= capacity + earned
