"""When to stop calling a provider that fails, and how to come back; pure, time is an argument.

CLOSED lets every call pass. OPEN refuses all of them for a while. HALF_OPEN lets a few trial calls
through: all of them must succeed to close, and one failure opens again for twice as long. The
breaker trips on failures in a row, and on the share of bad calls in a window of recent ones, where
a call that was merely very slow counts as bad as well: a provider that answers at the edge of every
deadline is as good as gone.

It hides which result still matters. Each admitted call carries a ticket with the generation of the
state that admitted it, so a call that was sent before a trip and ends after it moves nothing.

What counts as a failure is not decided here but in `guard.py`, and so is whether to try again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from enum import StrEnum

import msgspec

TRIAL_RETRY_S = 1.0
"""What a refused call in HALF_OPEN is told to wait: nobody knows when the trials will end."""

SLOW_SHARE = 0.8
"""A call that needs more of its deadline than this counts as slow."""


class BreakerState(StrEnum):
    """The seed's names, as they appear in every status answer."""

    CLOSED = "CLOSED"
    OPEN = "OPEN"
    HALF_OPEN = "HALF_OPEN"


class BreakerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """When to trip and how to recover."""

    threshold: int = 5
    """Failures in a row that trip the breaker."""
    timeout_s: float = 60.0
    """How long it stays open after the first trip."""
    max_timeout_s: float = 600.0
    """Open time doubles with each failed trial, up to this (or `timeout_s`, if that is more)."""
    half_open_max_calls: int = 3
    """Trial calls that must all succeed."""
    window_calls: int = 20
    """How many recent calls are judged together; fewer than this never trip by their share."""
    window_failure_rate: float = 0.5
    """Share of bad calls in a full window that trips the breaker, 0..1."""
    slow_call_s: float | None = None
    """Slower calls are bad in the window; None: a fixed share of each call's own deadline."""

    def __post_init__(self) -> None:
        if min(self.threshold, self.half_open_max_calls, self.window_calls) < 1:
            raise ValueError("threshold, half_open_max_calls and window_calls must be at least 1")
        if not self.timeout_s > 0:
            raise ValueError("timeout_s must be above 0")
        if not 0 < self.window_failure_rate <= 1:
            raise ValueError("window_failure_rate must be above 0 and at most 1")


class Ticket(msgspec.Struct, frozen=True):
    """Proof of admission; give it back with `success`, `failure` or `abandon`, exactly once."""

    generation: int
    """Counts the breaker's changes of state; a result of an older one is late."""
    trial: int = 0
    """Number of the trial call; 0 for a call that was admitted while CLOSED."""


class Refusal(msgspec.Struct, frozen=True):
    """The call may not be sent."""

    retry_in_s: float
    """Time to the next trial."""


class BreakerStats(msgspec.Struct, frozen=True, kw_only=True):
    """What the breaker knows at one moment."""

    state: BreakerState
    failure_count: int
    """Failures in a row, up to now; 0 after a success or a manual reset."""
    success_count: int
    """Successes since the start of the process."""
    trip_count: int
    """Trips since the start of the process."""
    last_failure_at: float | None
    """Loop time of the newest failure."""
    retry_in_s: float
    """Time to the next trial; 0 unless OPEN."""
    open_s: float
    """Seconds spent OPEN since the start of the process, trials not included."""
    opened_at: float | None
    """Loop time of the trip that began this outage; None while CLOSED. Failed trials keep it."""


class Breaker:
    """One provider's circuit breaker; every `at` is in seconds of the event loop's clock."""

    def __init__(self, settings: BreakerSettings | None = None) -> None:
        self.settings = settings or BreakerSettings()
        self._state = BreakerState.CLOSED
        self._pass = Ticket(0)
        self._open_until = 0.0
        self._failed_trials = 0
        self._trials: set[int] = set()
        self._trials_begun = 0
        self._trials_passed = 0
        self._window: deque[bool] = deque(maxlen=self.settings.window_calls)
        self._bad_in_window = 0
        self._failure_count = 0
        self._success_count = 0
        self._trip_count = 0
        self._last_failure_at: float | None = None
        self._opened_at: float | None = None
        self._tripped_at = 0.0
        self._was_open_s = 0.0
        self.on_change: Callable[[BreakerState, BreakerState], None] | None = None
        """Told the old and the new state after each move; it must not raise."""

    def admit(self, at: float, *, probe_ok: bool = True) -> Ticket | Refusal:
        """Say whether a call may be sent now.

        `probe_ok=False` marks a call that must not serve as a trial, because its failure would
        cost more than the knowledge is worth (a rent): it is refused until the breaker is CLOSED.
        """
        if self._state is BreakerState.CLOSED:
            return self._pass
        if self._state is BreakerState.OPEN:
            if at < self._open_until:
                return Refusal(self._open_until - at)
            self._add_up(at)
            self._enter(BreakerState.HALF_OPEN)
        taken = len(self._trials) + self._trials_passed
        if not probe_ok or taken >= self.settings.half_open_max_calls:
            return Refusal(TRIAL_RETRY_S)
        self._trials_begun += 1
        self._trials.add(self._trials_begun)
        return Ticket(self._pass.generation, self._trials_begun)

    def success(
        self, ticket: Ticket, at: float, *, took_s: float = 0.0, deadline_s: float | None = None
    ) -> None:
        """Record that the provider answered; a slow answer is bad in the window all the same."""
        self._success_count += 1
        if ticket.generation != self._pass.generation:
            return
        if self._state is BreakerState.CLOSED:
            self._failure_count = 0
            if self._is_window_bad(self._is_slow(took_s, deadline_s)):
                self._trip(at)
        elif ticket.trial in self._trials:
            self._trials.remove(ticket.trial)
            self._trials_passed += 1
            if self._trials_passed >= self.settings.half_open_max_calls:
                self._close()

    def failure(self, ticket: Ticket, at: float) -> None:
        """Record that the provider failed the call."""
        self._last_failure_at = at
        if ticket.generation != self._pass.generation:
            return
        if self._state is BreakerState.CLOSED:
            self._failure_count += 1
            bad = self._is_window_bad(True)
            if bad or self._failure_count >= self.settings.threshold:
                self._trip(at)
        elif ticket.trial in self._trials:
            self._failure_count += 1
            self._failed_trials += 1
            self._trip(at)

    def abandon(self, ticket: Ticket) -> None:
        """Give an admission back without a verdict: cancelled, throttled, or never sent."""
        self._trials.discard(ticket.trial)

    def reset(self, at: float) -> None:
        """Close by hand and forgive; the totals since the start stay."""
        self._add_up(at)
        self._close()

    @property
    def is_closed(self) -> bool:
        """Whether calls pass freely; unlike the other states, this one does not end by itself."""
        return self._state is BreakerState.CLOSED

    def state(self, at: float) -> BreakerState:
        """Return the state at that moment; an OPEN whose time is up reads as HALF_OPEN."""
        if self._state is BreakerState.OPEN and at >= self._open_until:
            return BreakerState.HALF_OPEN
        return self._state

    def stats(self, at: float) -> BreakerStats:
        """Return what is known at that moment."""
        state = self.state(at)
        return BreakerStats(
            state=state,
            failure_count=self._failure_count,
            success_count=self._success_count,
            trip_count=self._trip_count,
            last_failure_at=self._last_failure_at,
            retry_in_s=self._open_until - at if state is BreakerState.OPEN else 0.0,
            open_s=self._was_open_s + self._open_for_s(at),
            opened_at=self._opened_at,
        )

    def _is_slow(self, took_s: float, deadline_s: float | None) -> bool:
        bound = self.settings.slow_call_s
        if bound is None:
            return deadline_s is not None and took_s > SLOW_SHARE * deadline_s
        return took_s > bound

    def _is_window_bad(self, newest_is_bad: bool) -> bool:
        """Add one call to the window and say whether the whole of it is bad enough to trip."""
        window, size = self._window, self.settings.window_calls
        if len(window) == size:
            self._bad_in_window -= window[0]
        window.append(newest_is_bad)
        self._bad_in_window += newest_is_bad
        enough = self._bad_in_window >= self.settings.window_failure_rate * size
        return enough and len(window) == size

    def _trip(self, at: float) -> None:
        self._trip_count += 1
        first_s = self.settings.timeout_s
        doublings = min(self._failed_trials, 32)  # far above any cap; an int shift that stays small
        self._open_until = at + min(
            first_s * 2**doublings, max(self.settings.max_timeout_s, first_s)
        )
        self._tripped_at = at
        if self._opened_at is None:
            self._opened_at = at
        self._enter(BreakerState.OPEN)

    def _open_for_s(self, at: float) -> float:
        """Return how long this OPEN has lasted; one whose time is up ended when it was up."""
        if self._state is not BreakerState.OPEN:
            return 0.0
        return max(0.0, min(at, self._open_until) - self._tripped_at)

    def _add_up(self, at: float) -> None:
        """Add an OPEN that ends now to the total; asked while the state is still OPEN."""
        self._was_open_s += self._open_for_s(at)

    def _close(self) -> None:
        self._failed_trials = 0
        self._failure_count = 0
        self._opened_at = None
        self._enter(BreakerState.CLOSED)

    def _enter(self, state: BreakerState) -> None:
        """Change the state and make every ticket of the old one late."""
        old, self._state = self._state, state
        self._pass = Ticket(self._pass.generation + 1)
        self._trials.clear()
        self._trials_passed = 0
        self._window.clear()
        self._bad_in_window = 0
        if self.on_change is not None and old is not state:
            self.on_change(old, state)
