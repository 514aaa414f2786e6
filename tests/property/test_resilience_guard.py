"""Random crowds in front of one guard, judged by what the far side saw; in virtual time."""

from __future__ import annotations

import asyncio
from collections import Counter
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from gp4u.errors import Malformed, ProviderError, Throttled, Unavailable
from gp4u.resilience.bucket import Pace
from gp4u.resilience.guard import Guard, build_guard
from tests.virtual_loop import VirtualClock, run_virtual

PACES = {"search": Pace(calls=3, per_s=10.0), "rent": Pace(per_s=4.5, penalty_s=12.0)}
ENDPOINTS = ("search", "rent", "free")


class Sighting:
    """What the far side wrote down: when each endpoint was called, and for which caller."""

    def __init__(self) -> None:
        self.calls: list[tuple[float, str, int]] = []

    def at(self, endpoint: str) -> list[float]:
        return [at for at, name, _ in self.calls if name == endpoint]


def crowd(seed: int, callers: int, trouble: float, *, safe: bool) -> Sighting:
    """Send random callers in; a share `trouble` of the answers are errors or never come."""
    dice, seen = Random(seed), Sighting()

    async def one(guard: Guard, number: int) -> None:
        endpoint = dice.choice(ENDPOINTS)
        await asyncio.sleep(dice.uniform(0.0, 60.0))

        async def answer() -> None:
            seen.calls.append((asyncio.get_running_loop().time(), endpoint, number))
            await asyncio.sleep(dice.uniform(0.0, 0.5))
            if dice.random() < trouble:
                kind = dice.randrange(5)
                if kind == 0:
                    raise Unavailable("vastai", endpoint)
                if kind == 1:
                    raise Malformed("vastai", endpoint)
                if kind == 2:
                    raise Throttled("vastai", endpoint)
                if kind == 3:
                    raise Throttled("vastai", endpoint, retry_after_s=dice.uniform(-1.0, 20.0))
                await asyncio.sleep(1e6)

        try:
            async with asyncio.timeout(dice.choice([5.0, 500.0])):
                await guard.call(answer, endpoint=endpoint, safe=safe, timeout_s=10.0)
        except (ProviderError, TimeoutError):
            pass

    async def story() -> None:
        guard = build_guard(
            "vastai",
            random=dice,
            clock=VirtualClock(),
            rate_per_min=60.0,
            burst=10.0,
            paces=PACES,
        )
        async with asyncio.TaskGroup() as group:
            for number in range(callers):
                group.create_task(one(guard, number))

    run_virtual(story, seed)
    return seen


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    callers=st.integers(1, 80),
    trouble=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
)
def test_the_far_side_never_sees_more_than_any_limit_allows(
    seed: int, callers: int, trouble: float
) -> None:
    """L11, through retries, lines, cancellations and trips: every window and the ceiling hold."""
    seen = crowd(seed, callers, trouble, safe=True)

    for endpoint, pace in PACES.items():
        left = seen.at(endpoint)
        for earlier, later in zip(left, left[pace.calls :], strict=False):
            assert later - earlier >= pace.per_s
    every = [at for at, _, _ in seen.calls]
    for first, begin in enumerate(every):
        for count, end in enumerate(every[first:], start=1):
            assert count <= 1.0 * (end - begin) + 10.0 + 1e-6


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), trouble=st.sampled_from([0.1, 0.5, 1.0]))
def test_an_unsafe_call_reaches_the_far_side_at_most_once(seed: int, trouble: float) -> None:
    """The law that keeps a rent from being bought twice."""
    seen = crowd(seed, 40, trouble, safe=False)

    assert set(Counter(number for _, _, number in seen.calls).values()) <= {1}


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32), callers=st.integers(1, 300))
def test_when_nothing_works_the_load_stays_near_its_normal(seed: int, callers: int) -> None:
    """Three tries per call would triple it; the quota and the breaker keep it down."""
    sent = 0

    async def down() -> None:
        nonlocal sent
        sent += 1
        raise Unavailable("vastai", "search")

    async def story() -> None:
        guard = build_guard(
            "vastai",
            random=Random(seed),
            clock=VirtualClock(),
            threshold=10**6,
            timeout_s=0.001,  # open for a blink: only the quota is left to hold the load down
            rate_per_min=None,
        )
        for _ in range(callers):
            guard.reset_breaker()
            try:
                await guard.call(down, endpoint="search", safe=True, timeout_s=10.0)
            except ProviderError:
                await asyncio.sleep(1.0)

    run_virtual(story)

    assert callers <= sent <= min(3 * callers, callers + 500 // 14)
