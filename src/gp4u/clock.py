"""Where wall time comes from.

Durations never come from here: they belong to the event loop (`loop.time()`), so that a virtual
loop can drive every wait in a test. Stamps that people read, or that must outlive the process,
come from an injected `Clock`, always aware and always UTC.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """Tells the wall time; the one thing about time that is injected."""

    def now(self) -> datetime:
        """Return the current time, aware, in UTC."""


class SystemClock:
    """The machine's own clock."""

    def now(self) -> datetime:
        return datetime.now(UTC)
