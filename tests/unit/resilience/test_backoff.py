"""Which errors may be tried again, after how long, and for how many tokens."""

from __future__ import annotations

from datetime import UTC, datetime
from random import Random

import pytest

from gp4u.errors import (
    CircuitBreakerOpen,
    Denied,
    InstanceAbsent,
    Malformed,
    OfferGone,
    OutcomeUnknown,
    ProviderError,
    RateLimitExceeded,
    Refused,
    Throttled,
    Unavailable,
)
from gp4u.model import RentalKey
from gp4u.resilience.backoff import (
    Backoff,
    RetryQuota,
    parse_retry_after,
    retryable,
    sane_retry_after,
)

DOWN = Unavailable("vastai", "offers")
NOW = datetime(2026, 11, 22, 12, 0, 0, tzinfo=UTC)


def test_delays_have_the_seeds_shape() -> None:
    """2, 4, 8, 16, 32 s, and no more."""
    backoff = Backoff(jitter_s=0.0)

    delays = [backoff.delay(attempt, DOWN, Random(1)) for attempt in range(1, 8)]

    assert delays == [2.0, 4.0, 8.0, 16.0, 32.0, 32.0, 32.0]


def test_jitter_is_added_and_bounded() -> None:
    """Clients that failed together must not come back together."""
    random = Random(1)
    delays = [Backoff().delay(1, DOWN, random) for _ in range(200)]

    assert all(2.0 <= delay <= 3.0 for delay in delays)
    assert max(delays) - min(delays) > 0.8


def test_full_jitter_draws_from_zero() -> None:
    """Widest spread under the same envelope."""
    random = Random(1)
    backoff = Backoff(full_jitter=True, jitter_s=0.0)
    delays = [backoff.delay(3, DOWN, random) for _ in range(200)]

    assert all(0.0 <= delay <= 8.0 for delay in delays)
    assert min(delays) < 1.0
    assert max(delays) > 7.0


def test_the_providers_word_goes_first() -> None:
    """`Retry-After: 7` means seven seconds, on the first try as on the third."""
    told = Throttled("vastai", "offers", retry_after_s=7.0)

    assert [Backoff(jitter_s=0.0).delay(n, told, Random(1)) for n in (1, 3)] == [7.0, 7.0]


@pytest.mark.parametrize("nonsense", [float("nan"), float("inf"), -1.0, None])
def test_nonsense_means_our_own_backoff(nonsense: float | None) -> None:
    """A provider must not be able to stop us by a typing error."""
    told = Throttled("vastai", "offers", retry_after_s=nonsense)

    assert Backoff(jitter_s=0.0).delay(2, told, Random(1)) == 4.0


@pytest.mark.parametrize(("told", "sane"), [(0.0, 0.0), (299.5, 299.5), (1e12, 300.0)])
def test_a_wait_is_clamped_to_five_minutes(told: float, sane: float) -> None:
    """Longer than that is for the breaker and for people, not for a sleeping call."""
    assert sane_retry_after(told) == sane


def test_attempts_without_end_do_not_overflow() -> None:
    """A loop that releases for ever reaches any number."""
    assert Backoff(jitter_s=0.0).delay(10**9, DOWN, Random(1)) == 32.0


def outcome(error: type[ProviderError]) -> ProviderError:
    if error is OutcomeUnknown:
        return OutcomeUnknown("vastai", "rent", key=RentalKey("gp4u-1"))
    if error is CircuitBreakerOpen:
        return CircuitBreakerOpen("vastai", "rent", retry_in_s=1.0)
    if error is RateLimitExceeded:
        return RateLimitExceeded("vastai", "rent", retry_in_s=1.0)
    return error("vastai", "rent")


@pytest.mark.parametrize("error", [Unavailable, Throttled])
def test_trouble_on_a_safe_call_may_be_tried_again(error: type[ProviderError]) -> None:
    """It changes nothing to ask twice."""
    assert retryable(outcome(error), safe=True)
    assert not retryable(outcome(error), safe=False)


def test_what_never_left_may_be_sent_even_if_it_is_a_rent() -> None:
    """A refused connection bought nothing."""
    assert retryable(Unavailable("vastai", "rent", sent=False), safe=False)


@pytest.mark.parametrize(
    "error",
    [
        CircuitBreakerOpen,
        Denied,
        InstanceAbsent,
        Malformed,
        OfferGone,
        OutcomeUnknown,
        RateLimitExceeded,
        Refused,
    ],
)
def test_an_answer_is_not_asked_for_again(error: type[ProviderError]) -> None:
    """The provider has spoken, or we have; saying it again changes nothing."""
    assert not retryable(outcome(error), safe=True)
    assert not retryable(outcome(error), safe=False)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("0", 0.0),
        (" 7 ", 7.0),
        ("1.5", 1.5),
        ("300.5", 300.0),
        ("9" * 400, 300.0),
        ("Sun, 22 Nov 2026 12:00:30 GMT", 30.0),
        ("Sun, 22 Nov 2026 13:00:30 +0100", 30.0),
        ("Sun, 22 Nov 2026 12:00:30 -0000", 30.0),
        ("Sun, 22 Nov 2026 11:00:00 GMT", 0.0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 300.0),
    ],
)
def test_retry_after_is_read_as_seconds_or_date(header: str, seconds: float) -> None:
    """Both forms are in use, and some send fractions."""
    assert parse_retry_after(header, NOW) == seconds


@pytest.mark.parametrize(
    "header",
    ["", " ", "-5", "nan", "inf", "1e9", "soon", "0x10", "٣", "1,5", "Sun, 99 Nov 2026 12:00 GMT"],
)
def test_retry_after_garbage_is_no_word_at_all(header: str) -> None:
    """The caller then backs off on its own terms."""
    assert parse_retry_after(header, NOW) is None


def test_a_retry_costs_and_a_success_refunds() -> None:
    """500 tokens, 14 for trouble, 5 for a 429, 1 back."""
    quota = RetryQuota()

    assert quota.spend(DOWN)
    assert quota.tokens == 486
    assert quota.spend(Throttled("vastai", "offers"))
    assert quota.tokens == 481
    quota.earn()

    assert quota.tokens == 482


def test_an_empty_purse_refuses_and_takes_nothing() -> None:
    """When everything fails, each call is sent once and no more."""
    quota = RetryQuota(capacity=20)

    assert [quota.spend(DOWN), quota.spend(DOWN)] == [True, False]
    assert quota.tokens == 6
    assert quota.spend(Throttled("vastai", "offers"))


def test_a_purse_never_holds_more_than_its_capacity() -> None:
    """A good week must not pay for a storm of retries."""
    quota = RetryQuota(capacity=20, refund=3)
    quota.spend(Throttled("vastai", "offers"))

    for _ in range(100):
        quota.earn()

    assert quota.tokens == 20
