"""Who may leave when: bursts, intervals, lines, and what a 429 changes; in virtual time."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest

from gp4u.errors import CircuitBreakerOpen, Malformed, RateLimitExceeded, Throttled
from gp4u.resilience.breaker import BreakerState
from gp4u.resilience.bucket import Pace
from gp4u.resilience.guard import PACE_SLACK_S, Guard
from tests.unit.resilience.scripted_market import Market, ask, fail_times, guard_for_test
from tests.virtual_loop import run_virtual

INTERVAL_S = 4.5 + PACE_SLACK_S


def paced_guard() -> Guard:
    """A guard with Vast's interval for a rent."""
    return guard_for_test(paces={"rent": Pace(per_s=4.5, penalty_s=12.0)})


def test_a_burst_passes_and_the_next_call_waits_for_a_token() -> None:
    """100 a minute: a hundred at once, the next after 0.6 s, whatever the endpoint."""

    async def story() -> None:
        guard, market = guard_for_test(), Market()
        for number in range(101):
            await ask(guard, market, endpoint=f"endpoint-{number % 3}")

        assert market.called_at[:100] == [0.0] * 100
        assert market.called_at[100] == pytest.approx(0.6)
        health = guard.health()
        assert health.requests_blocked == 1
        assert health.rate_limit is not None
        assert health.rate_limit.requests_blocked == 1
        assert health.rate_limit_utilization == pytest.approx(1.0)

    run_virtual(story)


def test_without_a_rate_limit_the_documented_intervals_still_hold() -> None:
    """Switching our own ceiling off does not switch the provider's off."""

    async def story() -> None:
        guard = guard_for_test(rate_per_min=None, paces={"rent": Pace(per_s=4.5)})
        free, paced = Market(), Market()
        for _ in range(500):
            await ask(guard, free)
        for _ in range(2):
            await ask(guard, paced, endpoint="rent")

        assert free.called_at == [0.0] * 500
        assert paced.called_at == [0.0, INTERVAL_S]
        assert guard.health().rate_limit is None
        assert guard.health().rate_limit_utilization == 0.0

    run_virtual(story)


@pytest.mark.parametrize("seed", range(10))
def test_a_line_is_served_in_order_one_per_interval(seed: int) -> None:
    """First come, first served, and nobody wakes up only to go back to sleep."""

    async def story() -> None:
        guard, served = paced_guard(), []
        loop = asyncio.get_running_loop()

        async def one(number: int) -> None:
            await asyncio.sleep(number / 1024)  # arrive in a known order

            async def note() -> str:
                served.append((number, loop.time()))
                return ""

            await ask(guard, note, endpoint="rent")

        async with asyncio.TaskGroup() as group:
            for number in range(6):
                group.create_task(one(number))
        assert [number for number, _ in served] == list(range(6))
        gaps = [b - a for (_, a), (_, b) in pairwise(served)]
        assert gaps == pytest.approx([INTERVAL_S] * 5)

    run_virtual(story, seed)


def test_a_line_longer_than_our_patience_is_refused_at_once() -> None:
    """Seven waits of 4.5 s are more than thirty seconds; better to know now than then."""

    async def story() -> None:
        guard, market = paced_guard(), Market()
        refused_at = []

        async def one() -> None:
            try:
                await ask(guard, market, endpoint="rent")
            except RateLimitExceeded as refusal:
                refused_at.append((asyncio.get_running_loop().time(), refusal.retry_in_s))

        async with asyncio.TaskGroup() as group:
            for _ in range(10):
                group.create_task(one())
        assert len(market.called_at) == 7
        assert [at for at, _ in refused_at] == [0.0] * 3
        assert [wait for _, wait in refused_at] == pytest.approx([7 * INTERVAL_S] * 3)

    run_virtual(story)


def test_a_drained_bucket_with_a_long_line_refuses_at_once() -> None:
    """One token a minute and a second one wanted: no reason to wait half a minute to say no."""

    async def story() -> None:
        guard, market = guard_for_test(rate_per_min=1.0), Market()
        await ask(guard, market)

        with pytest.raises(RateLimitExceeded):
            await ask(guard, market)
        assert asyncio.get_running_loop().time() == 0.0
        assert len(market.called_at) == 1

    run_virtual(story)


def test_a_drained_bucket_lets_in_as_many_as_our_patience_covers() -> None:
    """One token per 8.6 s: three waits fit into thirty, the others hear no at once."""

    async def story() -> None:
        guard, market = guard_for_test(rate_per_min=7.0, burst=1.0), Market()
        refused_at = []

        async def one(number: int) -> None:
            try:
                await ask(guard, market, endpoint=f"endpoint-{number % 2}")
            except RateLimitExceeded:
                refused_at.append(asyncio.get_running_loop().time())

        async with asyncio.TaskGroup() as group:
            for number in range(10):
                group.create_task(one(number))
        assert market.called_at == pytest.approx([n * 60 / 7 for n in range(4)])
        assert refused_at == [0.0] * 6

    run_virtual(story)


@pytest.mark.parametrize("seed", range(10))
def test_a_newcomer_does_not_overtake_the_line_of_its_endpoint(seed: int) -> None:
    """It may come at the very moment when the slot that another waited for is free."""

    async def story() -> None:
        guard, old, new = paced_guard(), Market(), Market()
        await ask(guard, old, endpoint="rent")

        async def late() -> None:
            await asyncio.sleep(INTERVAL_S)
            await ask(guard, new, endpoint="rent")

        async with asyncio.TaskGroup() as group:
            group.create_task(ask(guard, old, endpoint="rent"))
            group.create_task(late())
        assert old.called_at == pytest.approx([0.0, INTERVAL_S])
        assert new.called_at == pytest.approx([2 * INTERVAL_S])

    run_virtual(story, seed)


@pytest.mark.parametrize("seed", range(10))
def test_tokens_go_to_endpoints_in_the_order_of_asking(seed: int) -> None:
    """A busy endpoint must not live on the tokens that a quiet one waits for."""

    async def story() -> None:
        guard, served = guard_for_test(rate_per_min=60.0, burst=1.0), []
        await ask(guard, Market())

        async def one(number: int, arrives_at: float) -> None:
            await asyncio.sleep(arrives_at)

            async def note() -> str:
                served.append(number)
                return ""

            await ask(guard, note, endpoint=f"endpoint-{number}")

        async with asyncio.TaskGroup() as group:
            for number in range(5):
                group.create_task(one(number, number / 1024))
            group.create_task(one(5, 1.0))
        assert served == [0, 1, 2, 3, 4, 5]

    run_virtual(story, seed)


def test_a_line_that_is_gone_is_forgotten() -> None:
    """The next call finds the door open, and nobody calls it blocked."""

    async def story() -> None:
        guard, market = paced_guard(), Market()
        async with asyncio.TaskGroup() as group:
            for _ in range(3):
                group.create_task(ask(guard, market, endpoint="rent"))
        assert guard.health().requests_blocked == 2
        await asyncio.sleep(60.0)
        await ask(guard, market, endpoint="rent")

        assert guard.health().requests_blocked == 2

    run_virtual(story)


def test_a_429_holds_for_one_who_waits_for_a_token() -> None:
    """Its interval was free when it got in line for the bucket, and is so no more."""

    async def story() -> None:
        guard = guard_for_test(
            rate_per_min=12.0, burst=2.0, paces={"list": Pace(per_s=1.0, penalty_s=9.0)}
        )
        second = Market()
        await ask(guard, Market())

        async def told_off() -> None:
            await asyncio.sleep(3.0)
            raise Throttled("vastai", "list")

        async with asyncio.TaskGroup() as group:

            async def one() -> None:
                with pytest.raises(Throttled):
                    await guard.call(told_off, endpoint="list", safe=False, timeout_s=30.0)

            group.create_task(one())
            await asyncio.sleep(2.0)
            group.create_task(ask(guard, second, endpoint="list"))
        assert second.called_at == [13.0]

    run_virtual(story)


def test_whoever_leaves_the_line_holds_nobody_up() -> None:
    """A cancelled waiter takes neither a slot nor a token with it."""

    async def story() -> None:
        guard, market = paced_guard(), Market()
        await ask(guard, market, endpoint="rent")
        async with asyncio.TaskGroup() as group:
            leaver = group.create_task(ask(guard, market, endpoint="rent"))
            await asyncio.sleep(1.0)
            group.create_task(ask(guard, market, endpoint="rent"))
            await asyncio.sleep(1.0)
            leaver.cancel()

        assert market.called_at == pytest.approx([0.0, INTERVAL_S])

    run_virtual(story)


def test_those_in_line_learn_of_a_trip_before_they_send() -> None:
    """The weather may change while one waits."""

    async def story() -> None:
        guard, market = paced_guard(), Market()
        await ask(guard, market, endpoint="rent")
        refused = 0

        async def one() -> None:
            nonlocal refused
            try:
                await ask(guard, market, endpoint="rent")
            except CircuitBreakerOpen:
                refused += 1

        async with asyncio.TaskGroup() as group:
            for _ in range(4):
                group.create_task(one())
            await asyncio.sleep(1.0)
            await fail_times(guard, 5)
        assert refused == 4
        assert market.called_at == [0.0]
        assert asyncio.get_running_loop().time() == pytest.approx(INTERVAL_S)

    run_virtual(story)


def test_the_time_in_line_does_not_eat_the_deadline() -> None:
    """Thirty seconds are for the provider, not for our own queue."""

    async def story() -> None:
        guard = paced_guard()
        await ask(guard, Market(), endpoint="rent")

        assert await ask(guard, Market(took_s=29.0), endpoint="rent") == "answer"

    run_virtual(story)


def test_a_429_rests_the_endpoint_for_its_interval_and_penalty() -> None:
    """Vast punishes a rent that came too soon with 12 s more; asking earlier prolongs it."""

    async def story() -> None:
        guard = paced_guard()
        market = Market(Throttled("vastai", "rent"))

        with pytest.raises(Throttled):
            await ask(guard, market, endpoint="rent", safe=False)
        await ask(guard, market, endpoint="rent", safe=False)

        assert market.called_at == [0.0, 16.5]

    run_virtual(story)


def test_a_429_without_a_word_halves_the_rate_for_a_minute() -> None:
    """The documented interval was wrong, so it is doubled until the storm is over."""

    async def story() -> None:
        guard = guard_for_test(paces={"list": Pace(per_s=1.0)})
        market = Market(Throttled("vastai", "list"))

        for _ in range(3):
            await ask(guard, market, endpoint="list")
        await asyncio.sleep(60.0)
        for _ in range(2):
            await ask(guard, market, endpoint="list")

        gaps = [b - a for a, b in pairwise(market.called_at)]
        assert gaps[:3] == pytest.approx([2 * (1.0 + PACE_SLACK_S)] * 3)
        assert gaps[4] == pytest.approx(1.0 + PACE_SLACK_S)

    run_virtual(story)


def test_an_endpoint_without_an_interval_gets_one_when_it_says_429() -> None:
    """There is a limit after all; a second is what we assume."""

    async def story() -> None:
        guard, market = guard_for_test(max_retries=1), Market(Throttled("vastai", "offers"))
        with pytest.raises(Throttled):
            await ask(guard, market)
        await ask(guard, market)
        await asyncio.sleep(60.0)
        for _ in range(2):
            await ask(guard, market)

        assert market.called_at[1] == 1.0
        assert market.called_at[3] - market.called_at[2] == pytest.approx(1.0 + PACE_SLACK_S)

    run_virtual(story)


def test_a_429_is_neither_a_failure_nor_an_outcome() -> None:
    """We were too fast; the provider is well."""

    async def story() -> None:
        guard = guard_for_test(max_retries=1)
        for _ in range(20):
            with pytest.raises(Throttled):
                await ask(guard, Market(Throttled("vastai", "offers")))
        health = guard.health()

        assert health.breaker.state is BreakerState.CLOSED
        assert (health.calls, health.success_rate) == (0, 1.0)
        assert health.last_failure_time is None

    run_virtual(story)


def test_a_wait_of_minutes_is_the_callers_to_make() -> None:
    """The book serves what it has; a call that sleeps for five minutes serves nobody."""

    async def story() -> None:
        guard = guard_for_test()
        market = Market(Throttled("vastai", "offers", retry_after_s=86_400.0))

        with pytest.raises(Throttled):
            await ask(guard, market)
        with pytest.raises(RateLimitExceeded) as refusal:
            await ask(guard, market)
        assert refusal.value.retry_in_s == 300.0
        assert asyncio.get_running_loop().time() == 0.0
        await asyncio.sleep(300.0)
        await ask(guard, market)

        assert market.called_at == [0.0, 300.0]

    run_virtual(story)


def test_a_429_for_those_ahead_holds_for_those_in_line() -> None:
    """One endpoint, one limit: the next waiter would only be the next to be told off."""

    async def story() -> None:
        guard = guard_for_test(paces={"list": Pace(per_s=1.0, penalty_s=5.0)}, max_retries=1)
        first, second = Market(0.5, Throttled("vastai", "list")), Market()

        async def told_off() -> None:
            await ask(guard, first, endpoint="list")
            with pytest.raises(Throttled):
                await ask(guard, first, endpoint="list")

        async with asyncio.TaskGroup() as group:
            group.create_task(told_off())
            await asyncio.sleep(0.75)
            group.create_task(ask(guard, second, endpoint="list"))
        assert first.called_at == pytest.approx([0.0, 1.0 + PACE_SLACK_S])
        assert second.called_at == pytest.approx([1.0 + PACE_SLACK_S + 6.0])

    run_virtual(story)


def test_an_inner_guards_refusal_says_nothing_about_the_provider() -> None:
    """Nothing was sent, so nothing was learned."""

    async def story() -> None:
        outer, inner = guard_for_test(threshold=1), guard_for_test()
        await fail_times(inner, 5)

        with pytest.raises(CircuitBreakerOpen):
            await ask(outer, lambda: ask(inner, Market()))
        assert outer.health().calls == 0
        with pytest.raises(Malformed):
            await ask(outer, Market(Malformed("vastai", "offers")))

        assert outer.health().breaker.state is BreakerState.OPEN

    run_virtual(story)
