"""What a guarded call costs on success, against a bare `await` in the same process.

The guard has everything a real one has: breaker, bucket, an endpoint's window, a deadline, the
outcome log. None of them is ever in the way, so the number is pure overhead. Rounds of both sides
alternate and the median counts, so that a busy machine slows both alike.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import time
from random import Random

from gp4u.clock import SystemClock
from gp4u.resilience.backoff import Backoff, RetryQuota
from gp4u.resilience.breaker import Breaker
from gp4u.resilience.bucket import Bucket, Pace, Window
from gp4u.resilience.guard import Guard

BOUND = 100.0
CALLS = 5_000
ROUNDS = 15


async def _answer() -> int:
    return 1


def _guard() -> Guard:
    return Guard(
        "bench",
        breaker=Breaker(),
        bucket=Bucket(1e9, 1e9),
        windows={"offers": Window(Pace(calls=10, per_s=1e-9))},
        backoff=Backoff(),
        quota=RetryQuota(),
        random=Random(1),
        clock=SystemClock(),
    )


async def _bare_us() -> float:
    began = time.perf_counter()
    for _ in range(CALLS):
        await _answer()
    return (time.perf_counter() - began) / CALLS * 1e6


async def _guarded_us(guard: Guard) -> float:
    began = time.perf_counter()
    for _ in range(CALLS):
        await guard.call(_answer, endpoint="offers", safe=True, timeout_s=30.0)
    return (time.perf_counter() - began) / CALLS * 1e6


async def _measure() -> tuple[float, float]:
    """Return microseconds per call, guarded and bare."""
    guard = _guard()
    await _guarded_us(guard)
    rounds = [(await _guarded_us(guard), await _bare_us()) for _ in range(ROUNDS)]
    return statistics.median(g for g, _ in rounds), statistics.median(b for _, b in rounds)


def main() -> int:
    """Print the measure as one line of JSON; 1 if it is over its bound."""
    guarded_us, bare_us = asyncio.run(_measure())
    overhead_us = guarded_us - bare_us
    ratio = overhead_us / bare_us
    ok = ratio <= BOUND
    print(
        json.dumps(
            {
                "name": "guarded call overhead",
                "ours": round(overhead_us, 3),
                "yardstick": round(bare_us, 4),
                "unit": "us",
                "ratio": round(ratio, 1),
                "bound": BOUND,
                "ok": ok,
            }
        )
    )
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
