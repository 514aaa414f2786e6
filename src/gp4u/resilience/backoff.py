"""Which failures may be tried again, when, and how many of them in all; pure.

Three questions, three answers. `retryable`: may this call be sent twice at all? `Backoff`: how long
to wait first? `RetryQuota`: can we afford it, or are retries themselves about to become the outage?
Time and randomness come from the caller; who sleeps is `guard.py`.
"""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from random import Random

import msgspec

from gp4u.errors import ProviderError, Throttled, Unavailable

MAX_RETRY_AFTER_S = 300.0
"""The longest wait that a provider's word can impose on us."""

_SECONDS = re.compile(r"[0-9]+(\.[0-9]*)?")


class Backoff(msgspec.Struct, frozen=True, kw_only=True):
    """Waits of 2, 4, 8, 16, 32 s, each with up to `jitter_s` added.

    The default keeps the delays that the settings' names promise and adds jitter on top, so a
    reader of the log can recognise them. `full_jitter` draws from zero up to that same envelope
    instead: better where many clients share one provider account, since it spreads them wider.
    """

    max_tries: int = 3
    """Tries in all, the first one included."""
    base_s: float = 2.0
    max_s: float = 32.0
    jitter_s: float = 1.0
    full_jitter: bool = False

    def delay(self, attempt: int, error: ProviderError, random: Random) -> float:
        """Return the seconds to wait after the `attempt`-th try (from 1) failed with `error`.

        A provider's own word on how long to wait goes first, clamped; nonsense is not its word.
        """
        told_s = sane_retry_after(error.retry_after_s) if isinstance(error, Throttled) else None
        if told_s is not None:
            return told_s + random.uniform(0.0, self.jitter_s)
        envelope_s = min(self.max_s, self.base_s * 2 ** min(max(attempt - 1, 0), 60))
        lowest_s = 0.0 if self.full_jitter else envelope_s
        return random.uniform(lowest_s, envelope_s) + random.uniform(0.0, self.jitter_s)

    @property
    def longest_s(self) -> float:
        """The longest wait of our own making."""
        return self.max_s + self.jitter_s


class RetryQuota:
    """A purse that every retry pays from and every success pays into.

    One failing call in a healthy stream is retried at once; when everything fails the purse is
    empty after some dozens of retries, and from then on each call is sent once. Without it, three
    tries per call triple the load on a provider at the moment when it can bear the least.
    Source: AWS SDK reference guide, "Retry behavior" (500 tokens; 14 for a transient error since
    the 2026 revision), checked November 2026. The price of a throttled retry is our own.
    """

    def __init__(
        self,
        *,
        capacity: int = 500,
        transient_cost: int = 14,
        throttled_cost: int = 5,
        refund: int = 1,
    ) -> None:
        self.capacity = capacity
        self.tokens = capacity
        self._transient_cost = transient_cost
        self._throttled_cost = throttled_cost
        self._refund = refund

    def spend(self, error: ProviderError) -> bool:
        """Pay for one retry after `error`; False, and nothing is paid, if the purse is too thin."""
        cost = self._throttled_cost if isinstance(error, Throttled) else self._transient_cost
        if cost > self.tokens:
            return False
        self.tokens -= cost
        return True

    def earn(self) -> None:
        """Pay one success's refund in."""
        if self.tokens < self.capacity:
            self.tokens = min(self.capacity, self.tokens + self._refund)


def retryable(error: ProviderError, *, safe: bool) -> bool:
    """Say whether the call that ended in `error` may be sent again.

    `safe` means that a second execution changes nothing. An unsafe call is sent again only where
    no byte of the first one left this machine.
    """
    match error:
        case Unavailable(sent=False):
            return True
        case Unavailable() | Throttled():
            return safe
        case _:
            return False


def sane_retry_after(seconds: float | None) -> float | None:
    """Clamp a provider's wait to 0..300 s; None for what is no wait at all (NaN, inf, negative)."""
    if seconds is None or not math.isfinite(seconds) or seconds < 0:
        return None
    return min(seconds, MAX_RETRY_AFTER_S)


def parse_retry_after(header: str, now: datetime | None) -> float | None:
    """Read a `Retry-After` header: seconds (fractions allowed) or an HTTP date; 0..300 s or None.

    `now` is aware; without it a date says nothing. A date in the past means now; garbage means
    None, and the caller backs off on its own terms.
    Source: RFC 9110 section 10.2.3; the fractions are what Vast's own SDK reads.
    """
    text = header.strip()
    if _SECONDS.fullmatch(text):
        return min(float(text), MAX_RETRY_AFTER_S)
    if now is None:
        return None
    try:
        date = parsedate_to_datetime(text)
        if date.tzinfo is None:
            date = date.replace(tzinfo=UTC)
        seconds = (date - now).total_seconds()
    except (ValueError, TypeError, IndexError, OverflowError):  # it slices; noise trips it anywhere
        return None
    return min(max(seconds, 0.0), MAX_RETRY_AFTER_S)
