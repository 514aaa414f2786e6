"""How fast a provider may be called; pure, time is an argument.

Two limits hold at once. `Bucket` is the ceiling for a whole provider: a rate, with a burst.
`Window` is the provider's own rule for one endpoint: never more than so many calls in any stretch
of so many seconds. Only a log of real departures can promise that; a bucket would let two bursts
touch.

Both answer `wait` (how long until there is room; changes nothing) and `take` (0.0 and it is taken,
or the seconds to wait and nothing is). Who waits, in which order and for how long at most is the
business of `guard.py`.

A clock that steps back earns nothing: the latest moment ever seen stays the present.
"""

from __future__ import annotations

from collections import deque

import msgspec

MAX_SLOWDOWN = 8
"""A window is never stretched further than this by repeated 429 answers."""


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """At most `calls` in any window of `per_s` seconds on one endpoint; one call: an interval."""

    calls: int = 1
    per_s: float
    penalty_s: float = 0.0
    """Added to the wait after the provider said 429 on this endpoint."""


class BucketStats(msgspec.Struct, frozen=True, kw_only=True):
    """What the bucket knows at one moment."""

    rate_per_s: float
    capacity: float
    available_tokens: float
    utilization: float
    """Share of the capacity that is in use, 0..1."""
    requests_blocked: int
    """How often `take` said no since the start."""


class Bucket:
    """A token bucket: `capacity` calls at once, then `rate_per_s`.

    In any stretch of t seconds at most `rate_per_s * t + capacity` tokens are taken.
    """

    def __init__(self, rate_per_s: float, capacity: float) -> None:
        if not rate_per_s > 0 or not capacity >= 1:
            raise ValueError("rate_per_s must be above 0 and capacity at least 1")
        self.rate_per_s = rate_per_s
        self.capacity = capacity
        self.requests_blocked = 0
        self._tokens = float(capacity)
        self._latest = float("-inf")

    def wait(self, n: float, at: float) -> float:
        """Return the seconds until `n` tokens are there; 0.0 where they are.

        Raises:
            ValueError: the bucket can never hold so many.
        """
        if n > self.capacity:
            raise ValueError(f"{n} tokens never fit into a bucket of {self.capacity}")
        tokens = self.available(at)
        return 0.0 if tokens >= n else (n - tokens) / self.rate_per_s

    def take(self, n: float, at: float) -> float:
        """Take `n` tokens and return 0.0, or take nothing and return the seconds to wait.

        Raises:
            ValueError: the bucket can never hold so many.
        """
        wait_s = self.wait(n, at)
        if wait_s > 0.0:
            self.requests_blocked += 1
        else:
            self._tokens -= n
        return wait_s

    def available(self, at: float) -> float:
        """Return the tokens there are at that moment."""
        if at > self._latest:
            tokens = self._tokens + (at - self._latest) * self.rate_per_s
            self._tokens = tokens if tokens < self.capacity else self.capacity
            self._latest = at
        return self._tokens

    def stats(self, at: float) -> BucketStats:
        """Return what is known at that moment."""
        available = self.available(at)
        return BucketStats(
            rate_per_s=self.rate_per_s,
            capacity=self.capacity,
            available_tokens=available,
            utilization=1.0 - available / self.capacity,
            requests_blocked=self.requests_blocked,
        )


class Window:
    """A log of departures: no stretch of `pace.per_s` seconds ever holds more than `pace.calls`.

    `slack_s` is added to the pace's seconds, for requests that leave in good order and arrive
    closer together than they left.
    """

    def __init__(self, pace: Pace, *, slack_s: float = 0.0) -> None:
        if pace.calls < 1 or not pace.per_s > 0:
            raise ValueError("a pace needs at least 1 call and more than 0 seconds")
        self.pace = pace
        self.span_s = pace.per_s + slack_s
        self._log: deque[float] = deque(maxlen=pace.calls)
        self._latest = float("-inf")
        self._not_before = float("-inf")
        self._slowdown = 1
        self._slow_until = float("-inf")

    @property
    def interval_s(self) -> float:
        """Mean seconds per call at full speed."""
        return self.span_s / self.pace.calls

    def wait(self, at: float) -> float:
        """Return the seconds until the next call may leave; 0.0 if it may leave now."""
        at = self._now(at)
        free_at = self._not_before
        if len(self._log) == self._log.maxlen:
            span_s = self.span_s if at >= self._slow_until else self.span_s * self._slowdown
            free_at = max(free_at, self._log[0] + span_s)
        return free_at - at if free_at > at else 0.0

    def take(self, at: float) -> float:
        """Log a departure and return 0.0, or log nothing and return the seconds to wait."""
        wait_s = self.wait(at)
        if wait_s == 0.0:
            self._log.append(self._latest)
        return wait_s

    def penalise(self, at: float, seconds: float) -> None:
        """Let nothing leave before `at + seconds`; never shortens an earlier penalty."""
        self._not_before = max(self._not_before, self._now(at) + seconds)

    def slow_down(self, at: float, for_s: float) -> None:
        """Halve the rate for a while, and halve it again if that was not enough."""
        at = self._now(at)
        self._slowdown = min(self._slowdown * 2, MAX_SLOWDOWN) if at < self._slow_until else 2
        self._slow_until = at + for_s

    def _now(self, at: float) -> float:
        if at > self._latest:
            self._latest = at
        return self._latest
