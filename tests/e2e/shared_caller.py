"""A process that calls a pretended market through a guard as fast as it may, and says when.

`python -m tests.e2e.shared_caller URL RATE BURST` prints the monotonic time of each departure, a
line each; that clock is the same for all processes of a machine. It ends when it is killed.
"""

from __future__ import annotations

import asyncio
import sys
import time
from random import Random

from gp4u.clock import SystemClock
from gp4u.errors import RateLimitExceeded
from gp4u.resilience.guard import Guard, build_guard
from gp4u.resilience.shared import SharedLimits
from gp4u.telemetry import configure

CALLERS = 4


async def leave() -> None:
    """Be the call."""
    print(f"{time.monotonic():.6f}", flush=True)


async def call_on(guard: Guard) -> None:
    """Call for ever."""
    while True:
        try:
            await guard.call(leave, endpoint="offers", safe=True, timeout_s=1.0)
        except RateLimitExceeded as error:
            await asyncio.sleep(min(error.retry_in_s, 0.1))


async def main(url: str, rate_per_min: float, burst: float) -> None:
    """Call from several tasks at once."""
    configure("WARNING", "json", [], sys.stderr)  # stdout is for the departures
    guard = build_guard(
        "vastai",
        random=Random(1),
        clock=SystemClock(),
        rate_per_min=rate_per_min,
        burst=burst,
        # On a busy machine Redis itself may be late, and who gives it up keeps no common law.
        shared=SharedLimits(url, deadline_s=5.0).pace("vastai", "an account's key"),
    )
    async with asyncio.TaskGroup() as group:
        for _ in range(CALLERS):
            group.create_task(call_on(guard))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], float(sys.argv[2]), float(sys.argv[3])))
