"""The one door through which every call to a provider goes: one guard per provider.

A call is wrapped as backoff(breaker(bucket(timeout(call)))), so each try asks the breaker, waits
for its turn, and has a deadline of its own. What a failure means for the breaker, for the pace and
for a retry is decided here and nowhere else, from the type of the error alone; the guard knows
nothing of HTTP. It also keeps the newest outcomes, from which success rate, latency and health are
read.

Calls to one endpoint leave in the order in which they came. Each waits for its own turn, so a
freed slot wakes one of them and not all. A call that would wait longer than `max_wait_s` is
refused at once.

This file is the only one of the package that awaits. The arithmetic is in `breaker.py`,
`bucket.py` and `backoff.py`; what is safe to repeat is the caller's word.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Mapping
from datetime import datetime
from enum import StrEnum
from random import Random
from typing import TypeVar

import msgspec

from gp4u.clock import Clock
from gp4u.errors import (
    CircuitBreakerOpen,
    Denied,
    Malformed,
    OutcomeUnknown,
    ProviderError,
    RateLimitExceeded,
    Throttled,
    Unavailable,
)
from gp4u.resilience.backoff import Backoff, RetryQuota, retryable, sane_retry_after
from gp4u.resilience.breaker import Breaker, BreakerSettings, BreakerState, BreakerStats, Ticket
from gp4u.resilience.bucket import Bucket, BucketStats, Pace, Window
from gp4u.resilience.shared import ALONE, SharedPace

T = TypeVar("T")

OUTCOMES_KEPT = 100
DEGRADED_BELOW = 0.7
"""Success rate under which a provider counts as degraded."""

PACE_SLACK_S = 0.05
"""Added to each documented interval: two calls that leave a second apart can arrive closer."""

UNKNOWN_PACE = Pace(per_s=1.0)
"""For an endpoint without a documented interval, once it has said 429.

Source: `docs/reference/vastai.md`, rate limits: without a stated threshold, back off from 1 s.
"""

SLOW_DOWN_FOR_S = 60.0
"""How long an endpoint runs at half its rate after a 429 that did not say how long to wait."""

SHORTEST_NAP_S = 0.001
"""A timer may fire a hair early; without a floor the waiter would spin on the remainder."""


class HealthStatus(StrEnum):
    """The seed's names, as they appear in every status answer."""

    HEALTHY = "HEALTHY"
    DEGRADED = "DEGRADED"
    UNAVAILABLE = "UNAVAILABLE"


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """One provider's health at one moment, over its newest outcomes."""

    provider: str
    status: HealthStatus
    success_rate: float
    """0..1 of the newest 100 outcomes; 1.0 while there are none. A 429 is no outcome."""
    calls: int
    """How many outcomes that rate and the latencies below are taken from."""
    avg_response_time_ms: float | None
    """None while nothing was called."""
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    breaker: BreakerStats
    last_failure_time: datetime | None
    """When the newest failure that the breaker counts came in; aware UTC."""
    rate_limit: BucketStats | None
    """None where the provider's overall limit is switched off."""
    rate_limit_utilization: float
    """0..1."""
    requests_blocked: int
    """Tries that had to wait for their turn, or were refused because it was too far away."""
    retry_tokens: int
    """What is left of the retry quota."""
    denied: bool
    """The newest answer of at least one endpoint was that the key will not do."""
    last_error: str
    """Text of the newest provider error; empty if there was none."""
    since: datetime
    """When the guard was made, with which the counts begin; aware UTC."""
    uptime: float
    """Share of the time since then in which the breaker was not OPEN, 0..1."""
    shared: bool | None
    """Whether other processes of the account are counted in; None where nothing is shared."""


class _Seen(msgspec.Struct, frozen=True, kw_only=True):
    """What the outcomes say; of response times, None throughout while there are none."""

    success_rate: float
    mean_ms: float | None
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None


class _Gate:
    """The turnstile of one endpoint; `turn` is held by the first in line."""

    __slots__ = ("endpoint", "turn", "waiting", "window")

    def __init__(self, endpoint: str, window: Window | None) -> None:
        self.endpoint = endpoint
        self.window = window
        self.turn = asyncio.Lock()
        self.waiting = 0

    def wait(self, at: float) -> float:
        return 0.0 if self.window is None else self.window.wait(at)

    def take(self, at: float) -> None:
        if self.window is not None:
            self.window.take(at)


class _Deadline:
    """`asyncio.timeout_at` without its bookkeeping, which would be half the cost of a call.

    The rules are the same: the task is cancelled once when the time is up, and on the way out that
    cancellation becomes `TimeoutError`, unless somebody else has cancelled the task as well.
    """

    __slots__ = ("_at", "_cancelling", "_handle", "_loop", "_task", "expired")

    def __init__(self, loop: asyncio.AbstractEventLoop, at: float) -> None:
        task = asyncio.current_task(loop)
        if task is None:
            raise RuntimeError("a guarded call needs a task to run in")
        self.expired = False
        self._loop, self._task, self._at = loop, task, at

    def __enter__(self) -> None:
        self._cancelling = self._task.cancelling()
        self._handle = self._loop.call_at(self._at, self._expire)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._handle.cancel()
        if self.expired:
            only_ours = self._task.uncancel() <= self._cancelling
            if only_ours and kind is asyncio.CancelledError:
                raise TimeoutError

    def _expire(self) -> None:
        self.expired = True
        self._task.cancel()


class Guard:
    """Guards all calls to one provider; belongs to one event loop."""

    def __init__(
        self,
        provider: str,
        *,
        breaker: Breaker,
        bucket: Bucket | None,
        windows: Mapping[str, Window],
        backoff: Backoff,
        quota: RetryQuota,
        random: Random,
        clock: Clock,
        max_wait_s: float = 30.0,
        shared: SharedPace | None = None,
    ) -> None:
        """`windows` is keyed by endpoint name; an endpoint without one has no pace of its own.

        With `shared`, all processes of the account keep these limits together as well.
        """
        self.provider = provider
        self.max_wait_s = max_wait_s
        self._breaker = breaker
        self._bucket = bucket
        self._bucket_turn = asyncio.Lock()
        self._gates = {name: _Gate(name, window) for name, window in windows.items()}
        self._backoff = backoff
        self._quota = quota
        self._random = random
        self._clock = clock
        self._shared = shared
        self._outcomes: deque[tuple[bool, float]] = deque(maxlen=OUTCOMES_KEPT)
        self._seen: _Seen | None = None
        self._queued = 0
        self._denied_at: set[str] = set()
        self._last_error = ""
        self._last_failure_time: datetime | None = None
        self._since = clock.now()
        self.on_change: Callable[[str, str], None] | None = None
        """Told the breaker's old and new state whenever a call, or a reset by hand, moves it."""
        breaker.on_change = self._breaker_moved

    async def call(
        self, fn: Callable[[], Awaitable[T]], *, endpoint: str, safe: bool, timeout_s: float
    ) -> T:
        """Run `fn` under all guards, again where that is allowed, and return what it returns.

        `safe` says that running it twice does no harm; an unsafe call is sent again only where
        nothing of it left this machine, and is never a trial of a recovering provider.
        `timeout_s` is the deadline of one try, body and all; waiting for a turn does not use it up.

        Raises:
            CircuitBreakerOpen: nothing was sent.
            RateLimitExceeded: its turn is more than `max_wait_s` away; nothing was sent.
            Unavailable: also for a deadline that passed; for an unsafe call that is no proof
                that nothing happened.
            ProviderError: whatever else `fn` raised.
        """
        gate = self._gates.get(endpoint)
        if gate is None:
            gate = self._gates[endpoint] = _Gate(endpoint, None)
        tries = 0
        while True:
            tries += 1
            try:
                return await self._try_once(fn, gate, safe, timeout_s)
            except ProviderError as error:
                pause_s = self._pause_before_retry(error, tries, safe)
                if pause_s is None:
                    raise
            await asyncio.sleep(pause_s)

    @property
    def success_rate(self) -> float:
        """0..1 of the newest outcomes; 1.0 while there are none."""
        return self._look().success_rate

    @property
    def is_healthy(self) -> bool:
        """Whether `health` would say HEALTHY; may be asked outside the event loop."""
        good = self.success_rate >= DEGRADED_BELOW
        return self._breaker.is_closed and not self._denied_at and good

    def reset_breaker(self) -> None:
        """Close the breaker by hand; must be called inside the event loop."""
        self._breaker.reset(asyncio.get_running_loop().time())

    def health(self) -> Health:
        """Return the health at this moment; must be called inside the event loop."""
        at = asyncio.get_running_loop().time()
        breaker = self._breaker.stats(at)
        bucket = self._bucket.stats(at) if self._bucket is not None else None
        took = self._look()
        lived_s = max((self._clock.now() - self._since).total_seconds(), breaker.open_s)
        return Health(
            provider=self.provider,
            status=self._status(breaker.state),
            success_rate=took.success_rate,
            calls=len(self._outcomes),
            avg_response_time_ms=took.mean_ms,
            p50_ms=took.p50_ms,
            p95_ms=took.p95_ms,
            p99_ms=took.p99_ms,
            breaker=breaker,
            last_failure_time=self._last_failure_time,
            rate_limit=bucket,
            rate_limit_utilization=bucket.utilization if bucket is not None else 0.0,
            requests_blocked=self._queued,
            retry_tokens=self._quota.tokens,
            denied=bool(self._denied_at),
            last_error=self._last_error,
            since=self._since,
            uptime=1.0 - breaker.open_s / lived_s if lived_s > 0.0 else 1.0,
            shared=None if self._shared is None else self._shared.is_up,
        )

    def _breaker_moved(self, old: BreakerState, new: BreakerState) -> None:
        if self.on_change is None:
            return
        try:
            self.on_change(str(old), str(new))
        except Exception:
            # A rim: a listener's bug must not become the outcome of a call that may cost money.
            import structlog  # 60 ms that only a process in trouble has to pay

            log = structlog.get_logger()
            log.exception("listener_failed", provider=self.provider)

    def _look(self) -> _Seen:
        if self._seen is None:  # sorting is worth it once per outcome, not once per reader
            self._seen = _seen(self._outcomes)
        return self._seen

    def _status(self, state: BreakerState) -> HealthStatus:
        if state is BreakerState.OPEN or self._denied_at:
            return HealthStatus.UNAVAILABLE
        if state is BreakerState.HALF_OPEN or self.success_rate < DEGRADED_BELOW:
            return HealthStatus.DEGRADED
        return HealthStatus.HEALTHY

    async def _try_once(
        self, fn: Callable[[], Awaitable[T]], gate: _Gate, safe: bool, timeout_s: float
    ) -> T:
        loop = asyncio.get_running_loop()
        now = loop.time
        began = now()
        ticket = self._enter_at_once(gate, safe, began)
        if ticket is None:
            ticket = await self._enter_in_turn(gate, safe)
            began = now()
        if self._shared is not None:
            ticket = await self._enter_among_all(self._shared, ticket, gate, safe)
            began = now()
        limit = _Deadline(loop, began + timeout_s)
        try:
            with limit:
                answer = await fn()
        except TimeoutError as error:
            ours = limit.expired
            detail = f"no answer within {timeout_s:g} s" if ours else str(error) or "timed out"
            late = Unavailable(self.provider, gate.endpoint, detail, sent=True)
            self._judge(late, ticket, gate, now(), began, timeout_s)
            raise late from error
        except ProviderError as error:
            self._judge(error, ticket, gate, now(), began, timeout_s)
            if self._shared is not None and isinstance(error, Throttled):
                await self._keep_all_off(self._shared, gate, error)
            raise
        except BaseException:  # cancelled, or a bug: says nothing about the provider
            self._breaker.abandon(ticket)
            raise
        self._answered(ticket, gate, now(), began, timeout_s)
        self._quota.earn()
        return answer

    def _enter_at_once(self, gate: _Gate, safe: bool, at: float) -> Ticket | None:
        """Admit the call if nobody is ahead of it and nothing is in the way; None: get in line."""
        ticket = self._admit(gate, safe, at)
        free = not gate.waiting and not self._bucket_turn.locked() and gate.wait(at) <= 0.0
        if free and (self._bucket is None or self._bucket.take(1, at) <= 0.0):
            gate.take(at)
            return ticket
        self._breaker.abandon(ticket)  # a trial's place is not for those who stand in line
        return None

    async def _enter_in_turn(self, gate: _Gate, safe: bool) -> Ticket:
        """Wait in line for the endpoint's window, then for the provider's bucket."""
        now = asyncio.get_running_loop().time
        deadline = now() + self.max_wait_s
        self._queued += 1
        self._refuse_beyond(deadline, now() + self._expected_wait(gate, now()), gate)
        gate.waiting += 1
        try:
            async with asyncio.timeout_at(deadline), gate.turn:
                while True:
                    await self._wait_for_window(gate, deadline)
                    async with self._bucket_turn:
                        await self._wait_for_bucket(gate, deadline)
                        if gate.wait(now()) <= 0.0:  # else a 429 came in meanwhile
                            return self._take(gate, safe, now())
        except TimeoutError:
            wait_s = max(gate.wait(now()), SHORTEST_NAP_S)
            raise RateLimitExceeded(self.provider, gate.endpoint, retry_in_s=wait_s) from None
        finally:
            gate.waiting -= 1

    async def _enter_among_all(
        self, shared: SharedPace, ticket: Ticket, gate: _Gate, safe: bool
    ) -> Ticket:
        """Wait for the turn that all processes of the account together leave to this call."""
        now = asyncio.get_running_loop().time
        deadline = now() + self.max_wait_s
        try:
            turn = await shared.take(
                gate.endpoint, self._bucket, gate.window, patience_s=self.max_wait_s
            )
        except BaseException:  # cancelled
            self._breaker.abandon(ticket)
            raise
        if turn.wait_s <= 0.0:
            return ticket
        self._breaker.abandon(ticket)  # a trial's place is not for those who stand in line
        self._queued += 1
        while turn.wait_s > 0.0:
            self._refuse_beyond(deadline, now() + turn.wait_s, gate)
            await asyncio.sleep(turn.wait_s)
            turn = await shared.take(
                gate.endpoint,
                self._bucket,
                gate.window,
                patience_s=deadline - now(),
                mark=turn.mark,
            )
        if turn is ALONE:  # it fell silent meanwhile; what was taken here is long paid back
            return self._enter_at_once(gate, safe, now()) or await self._enter_in_turn(gate, safe)
        return self._admit(gate, safe, now())

    def _expected_wait(self, gate: _Gate, at: float) -> float:
        """Estimate the wait from the length of the line; only to refuse early what is hopeless."""
        wait_s = 0.0
        if gate.window is not None:
            wait_s = gate.window.wait(at) + gate.waiting * gate.window.interval_s
        if self._bucket is not None:
            ahead = sum(other.waiting for other in self._gates.values())
            wait_s = max(wait_s, self._bucket.wait(1, at) + ahead / self._bucket.rate_per_s)
        return wait_s

    async def _wait_for_window(self, gate: _Gate, deadline: float) -> None:
        now = asyncio.get_running_loop().time
        while (wait_s := gate.wait(now())) > 0.0:
            self._refuse_beyond(deadline, now() + wait_s, gate)
            await asyncio.sleep(max(wait_s, SHORTEST_NAP_S))

    async def _wait_for_bucket(self, gate: _Gate, deadline: float) -> None:
        now = asyncio.get_running_loop().time
        while self._bucket is not None and (wait_s := self._bucket.wait(1, now())) > 0.0:
            self._refuse_beyond(deadline, now() + wait_s, gate)
            await asyncio.sleep(max(wait_s, SHORTEST_NAP_S))

    def _take(self, gate: _Gate, safe: bool, at: float) -> Ticket:
        """Admit a call whose turn has come; asked last, since the breaker may have tripped."""
        ticket = self._admit(gate, safe, at)
        if self._bucket is not None:
            self._bucket.take(1, at)
        gate.take(at)
        return ticket

    def _admit(self, gate: _Gate, safe: bool, at: float) -> Ticket:
        verdict = self._breaker.admit(at, probe_ok=safe)
        if isinstance(verdict, Ticket):
            return verdict
        raise CircuitBreakerOpen(self.provider, gate.endpoint, retry_in_s=verdict.retry_in_s)

    def _refuse_beyond(self, deadline: float, free_at: float, gate: _Gate) -> None:
        if free_at > deadline:
            wait_s = free_at - asyncio.get_running_loop().time()
            raise RateLimitExceeded(self.provider, gate.endpoint, retry_in_s=wait_s)

    def _answered(
        self, ticket: Ticket, gate: _Gate, at: float, began: float, timeout_s: float
    ) -> None:
        took_s = at - began
        self._breaker.success(ticket, at, took_s=took_s, deadline_s=timeout_s)
        self._outcomes.append((True, took_s))
        self._seen = None
        if self._denied_at:
            self._denied_at.discard(gate.endpoint)

    def _judge(
        self,
        error: ProviderError,
        ticket: Ticket,
        gate: _Gate,
        at: float,
        began: float,
        timeout_s: float,
    ) -> None:
        """Draw the conclusions from an error that a try ended in."""
        self._last_error = str(error)
        match error:
            case Throttled():
                self._breaker.abandon(ticket)
                self._keep_off(gate, error, at)
            case CircuitBreakerOpen() | RateLimitExceeded():  # an inner guard's: nothing was sent
                self._breaker.abandon(ticket)
            case Unavailable() | Malformed() | OutcomeUnknown():
                self._breaker.failure(ticket, at)
                self._outcomes.append((False, at - began))
                self._seen = None
                self._last_failure_time = self._clock.now()
            case Denied():
                self._answered(ticket, gate, at, began, timeout_s)
                self._denied_at.add(gate.endpoint)
            case _:  # declined, gone, absent: an answer like any other
                self._answered(ticket, gate, at, began, timeout_s)

    def _keep_off(self, gate: _Gate, error: Throttled, at: float) -> None:
        """Let the endpoint rest after a 429, and halve its rate if nobody said for how long."""
        if gate.window is None:
            gate.window = Window(UNKNOWN_PACE, slack_s=PACE_SLACK_S)
        rest_s, slow_for_s = _rest_after(error, gate.window.pace)
        gate.window.penalise(at, rest_s)
        if slow_for_s > 0.0:
            gate.window.slow_down(at, slow_for_s)

    async def _keep_all_off(self, shared: SharedPace, gate: _Gate, error: Throttled) -> None:
        pace = UNKNOWN_PACE if gate.window is None else gate.window.pace
        rest_s, slow_for_s = _rest_after(error, pace)
        await shared.penalise(gate.endpoint, gate.window, rest_s=rest_s, slow_for_s=slow_for_s)

    def _pause_before_retry(self, error: ProviderError, tries: int, safe: bool) -> float | None:
        """Return the seconds to wait before the next try, or None if this one was the last."""
        if tries >= self._backoff.max_tries or not retryable(error, safe=safe):
            return None
        pause_s = self._backoff.delay(tries, error, self._random)
        if pause_s > max(self.max_wait_s, self._backoff.longest_s):
            return None  # the provider wants peace for minutes: the caller has better things to do
        return pause_s if self._quota.spend(error) else None


def build_guard(
    provider: str,
    *,
    random: Random,
    clock: Clock,
    threshold: int = 5,
    timeout_s: float = 60.0,
    half_open_max_calls: int = 3,
    rate_per_min: float | None = 100.0,
    burst: float | None = None,
    paces: Mapping[str, Pace] | None = None,
    max_retries: int = 3,
    base_delay_s: float = 2.0,
    max_delay_s: float = 32.0,
    jitter_s: float = 1.0,
    max_wait_s: float = 30.0,
    shared: SharedPace | None = None,
) -> Guard:
    """Build a provider's guard from its settings.

    `timeout_s` is how long the breaker stays open. `rate_per_min` None switches the overall limit
    off, the documented `paces` (keyed by endpoint) hold all the same; `burst` None is a full
    minute's worth. `max_retries` counts tries in all; below 1 it means one.
    """
    settings = BreakerSettings(
        threshold=threshold, timeout_s=timeout_s, half_open_max_calls=half_open_max_calls
    )
    bucket = None
    if rate_per_min is not None:
        bucket = Bucket(rate_per_min / 60.0, max(1.0, rate_per_min if burst is None else burst))
    return Guard(
        provider,
        breaker=Breaker(settings),
        bucket=bucket,
        windows={name: Window(p, slack_s=PACE_SLACK_S) for name, p in (paces or {}).items()},
        backoff=Backoff(
            max_tries=max(1, max_retries),
            base_s=base_delay_s,
            max_s=max_delay_s,
            jitter_s=jitter_s,
        ),
        quota=RetryQuota(),
        random=random,
        clock=clock,
        max_wait_s=max_wait_s,
        shared=shared,
    )


def _rest_after(error: Throttled, pace: Pace) -> tuple[float, float]:
    """Return for how long an endpoint rests after a 429, and for how long it is slow then."""
    told_s = sane_retry_after(error.retry_after_s)
    rest_s = max(told_s or 0.0, pace.per_s) + pace.penalty_s
    return rest_s, SLOW_DOWN_FOR_S if told_s is None else 0.0


def _seen(outcomes: Collection[tuple[bool, float]]) -> _Seen:
    ordered = sorted(took_s * 1000.0 for _, took_s in outcomes)
    return _Seen(
        success_rate=sum(ok for ok, _ in outcomes) / len(outcomes) if outcomes else 1.0,
        mean_ms=sum(ordered) / len(ordered) if ordered else None,
        p50_ms=_nearest_rank(ordered, 0.50),
        p95_ms=_nearest_rank(ordered, 0.95),
        p99_ms=_nearest_rank(ordered, 0.99),
    )


def _nearest_rank(ordered: list[float], share: float) -> float | None:
    """Return the value below or at which that share of the ordered values lies."""
    if not ordered:
        return None
    return ordered[math.ceil(share * len(ordered)) - 1]
