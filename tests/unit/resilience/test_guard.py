"""What each outcome of a call means for its retry, the breaker and the health; in virtual time."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta

import pytest
import structlog

from gp4u.errors import (
    CircuitBreakerOpen,
    Denied,
    InstanceAbsent,
    Malformed,
    OfferGone,
    OutcomeUnknown,
    ProviderError,
    Refused,
    Throttled,
    Unavailable,
)
from gp4u.model import RentalKey
from gp4u.resilience.breaker import BreakerState
from gp4u.resilience.bucket import Pace
from gp4u.resilience.guard import HealthStatus
from tests.unit.resilience.scripted_market import Market, ask, fail_times, guard_for_test
from tests.virtual_loop import EPOCH, run_virtual

DOWN = Unavailable("vastai", "offers", "503")


def test_an_answer_passes_through_and_counts_as_health() -> None:
    """The common case: no wait, no change, one outcome."""

    async def story() -> None:
        guard, market = guard_for_test(), Market(took_s=0.25)

        assert await ask(guard, market) == "answer"

        health = guard.health()
        assert (health.status, health.success_rate, health.calls) == (HealthStatus.HEALTHY, 1.0, 1)
        assert health.avg_response_time_ms == 250.0
        assert health.last_failure_time is None
        assert health.last_error == ""

    run_virtual(story)


def test_a_guard_that_was_never_used_is_healthy_and_says_that_it_knows_nothing() -> None:
    """No latency is unknown, not zero."""

    async def story() -> None:
        health = guard_for_test().health()

        assert (health.status, health.success_rate, health.calls) == (HealthStatus.HEALTHY, 1.0, 0)
        assert (health.avg_response_time_ms, health.p50_ms, health.p95_ms) == (None, None, None)

    run_virtual(story)


def test_a_safe_call_is_tried_three_times_two_and_four_seconds_apart() -> None:
    """The seed's delays, seen from the far side."""

    async def story() -> None:
        market = Market(DOWN, DOWN)

        assert await ask(guard_for_test(), market) == "answer"
        assert market.called_at == [0.0, 2.0, 6.0]

    run_virtual(story)


def test_the_third_failure_is_the_callers() -> None:
    """Three tries in all, and then the error itself."""

    async def story() -> None:
        market = Market(DOWN, DOWN, DOWN)

        with pytest.raises(Unavailable, match="503"):
            await ask(guard_for_test(), market)
        assert len(market.called_at) == 3

    run_virtual(story)


def test_an_unsafe_call_is_sent_once() -> None:
    """A rent that may have worked is never sent again."""

    async def story() -> None:
        for error in (DOWN, Throttled("vastai", "rent")):
            market = Market(error)
            with pytest.raises(ProviderError):
                await ask(guard_for_test(), market, safe=False)
            assert len(market.called_at) == 1

    run_virtual(story)


def test_an_unsafe_call_of_which_nothing_was_sent_is_tried_again() -> None:
    """A refused connection bought nothing."""

    async def story() -> None:
        market = Market(Unavailable("vastai", "rent", "refused", sent=False))

        assert await ask(guard_for_test(), market, safe=False) == "answer"
        assert len(market.called_at) == 2

    run_virtual(story)


def test_a_missed_deadline_is_unavailable_and_may_have_been_sent() -> None:
    """Whoever waits longer than agreed gets an error that claims nothing about the effect."""

    async def story() -> None:
        guard, market = guard_for_test(), Market(took_s=1e6)

        with pytest.raises(Unavailable, match="no answer within 30 s") as caught:
            await ask(guard, market, safe=False)
        assert caught.value.sent
        assert asyncio.get_running_loop().time() == 30.0
        assert guard.health().breaker.failure_count == 1
        assert guard.health().last_failure_time == EPOCH + timedelta(seconds=30)

    run_virtual(story)


def test_the_deadline_covers_the_whole_call_and_not_each_piece() -> None:
    """A body that trickles a byte per second is never idle, and never done."""

    async def trickle() -> str:
        for _ in range(1_000):
            await asyncio.sleep(1.0)
        return "done"

    async def story() -> None:
        with pytest.raises(Unavailable):
            await ask(guard_for_test(max_retries=1), trickle)
        assert asyncio.get_running_loop().time() == 30.0

    run_virtual(story)


def test_a_timeout_from_below_is_unavailable_too() -> None:
    """Sockets have deadlines of their own, and the text must not name ours."""

    async def story() -> None:
        with pytest.raises(Unavailable, match="connect"):
            await ask(guard_for_test(), Market(TimeoutError("connect")), safe=False)

    run_virtual(story)


def test_the_callers_own_deadline_stays_the_callers() -> None:
    """A cancellation from outside must not be mistaken for a slow provider."""

    async def story() -> None:
        guard = guard_for_test()

        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5.0):
                await ask(guard, Market(took_s=1e6))
        assert asyncio.get_running_loop().time() == 5.0
        assert guard.health().calls == 0

    run_virtual(story)


@pytest.mark.parametrize("seed", range(20))
def test_a_cancellation_at_the_very_moment_of_the_deadline_is_not_lost(seed: int) -> None:
    """Whoever was cancelled must end cancelled, or its task group waits for ever."""

    async def story() -> None:
        guard, ends = guard_for_test(), []

        async def one() -> None:
            try:
                await ask(guard, Market(took_s=1e6), safe=False)
            except Unavailable:
                ends.append("late")
            except asyncio.CancelledError:
                ends.append("cancelled")
                raise

        async with asyncio.TaskGroup() as group:
            task = group.create_task(one())
            await asyncio.sleep(30.0)
            expected = "cancelled" if task.cancel() else "late"
        assert ends == [expected]

    run_virtual(story, seed)


def test_garbage_is_not_asked_for_again_but_counts() -> None:
    """A captive portal answers the same page three times."""

    async def story() -> None:
        guard, market = guard_for_test(), Market(Malformed("vastai", "offers", "HTML"))

        with pytest.raises(Malformed):
            await ask(guard, market)
        assert len(market.called_at) == 1
        assert guard.health().breaker.failure_count == 1
        assert guard.health().success_rate == 0.0

    run_virtual(story)


def test_an_unknown_outcome_counts_and_is_never_sent_again() -> None:
    """Transport trouble by another name."""

    async def story() -> None:
        lost = OutcomeUnknown("vastai", "rent", key=RentalKey("gp4u-1"))
        guard, market = guard_for_test(), Market(lost)

        with pytest.raises(OutcomeUnknown):
            await ask(guard, market, safe=True)
        assert len(market.called_at) == 1
        assert guard.health().breaker.failure_count == 1

    run_virtual(story)


@pytest.mark.parametrize("answer", [Denied, InstanceAbsent, OfferGone, Refused])
def test_an_answer_we_do_not_like_is_an_answer(answer: type[ProviderError]) -> None:
    """The provider works; opening the breaker would stop releases as well."""

    async def story() -> None:
        guard = guard_for_test()

        for _ in range(10):
            with pytest.raises(answer):
                await ask(guard, Market(answer("vastai", "rent")))
        assert guard.health().breaker.state is BreakerState.CLOSED
        assert guard.health().success_rate == 1.0

    run_virtual(story)


def test_a_bad_key_makes_the_provider_unavailable_until_the_endpoint_takes_it() -> None:
    """An open endpoint that still answers must not hide that we can no longer release."""

    async def story() -> None:
        guard = guard_for_test()
        with pytest.raises(Denied):
            await ask(guard, Market(Denied("vastai", "instances", "key")), endpoint="instances")

        await ask(guard, Market(), endpoint="offers")
        assert guard.health().status is HealthStatus.UNAVAILABLE
        assert guard.health().denied
        await ask(guard, Market(), endpoint="instances")

        assert guard.health().status is HealthStatus.HEALTHY

    run_virtual(story)


def test_five_failures_stop_all_calls_for_a_minute() -> None:
    """Nothing is sent while the breaker is open."""

    async def story() -> None:
        guard, market = guard_for_test(), Market()
        await fail_times(guard, 5)

        with pytest.raises(CircuitBreakerOpen, match="60 s"):
            await ask(guard, market)
        assert market.called_at == []
        assert guard.health().status is HealthStatus.UNAVAILABLE
        assert guard.health().breaker.trip_count == 1

    run_virtual(story)


def test_recovery_goes_through_three_trials_and_no_rent() -> None:
    """Listings prove the provider; only then money is risked."""

    async def story() -> None:
        guard = guard_for_test()
        await fail_times(guard, 5)
        await asyncio.sleep(60.0)

        assert guard.health().status is HealthStatus.DEGRADED
        rent = Market()
        with pytest.raises(CircuitBreakerOpen):
            await ask(guard, rent, endpoint="rent", safe=False)
        for _ in range(3):
            await ask(guard, Market())
        assert guard.health().breaker.state is BreakerState.CLOSED
        await ask(guard, rent, endpoint="rent", safe=False)

        assert rent.called_at == [60.0]

    run_virtual(story)


@pytest.mark.parametrize("seed", range(5))
def test_a_crowd_at_the_reopening_is_let_in_by_threes(seed: int) -> None:
    """Everybody waited for the same minute to pass."""

    async def story() -> int:
        guard, market = guard_for_test(), Market(took_s=2.0)
        await fail_times(guard, 5)
        await asyncio.sleep(60.0)
        refused = 0

        async def one() -> None:
            nonlocal refused
            try:
                await ask(guard, market)
            except CircuitBreakerOpen:
                refused += 1

        async with asyncio.TaskGroup() as group:
            for _ in range(50):
                group.create_task(one())
        assert len(market.called_at) == 3
        return refused

    assert run_virtual(story, seed) == 47


@pytest.mark.parametrize("end", ["cancelled", "throttled", "bug"])
def test_a_trial_without_verdict_gives_its_place_back(end: str) -> None:
    """Else three unlucky trials would shut the provider out for ever."""

    async def story() -> None:
        guard = guard_for_test(max_retries=1)
        await fail_times(guard, 5)
        await asyncio.sleep(60.0)

        for number in range(4):
            endpoint = f"trial-{number}"
            if end == "cancelled":
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(1.0):
                        await ask(guard, Market(took_s=9.0), endpoint=endpoint)
            elif end == "throttled":
                with pytest.raises(Throttled):
                    await ask(guard, Market(Throttled("vastai", endpoint)), endpoint=endpoint)
            else:
                with pytest.raises(ZeroDivisionError):
                    await ask(guard, Market(ZeroDivisionError()), endpoint=endpoint)

        for _ in range(3):
            await ask(guard, Market())
        assert guard.health().breaker.state is BreakerState.CLOSED

    run_virtual(story)


def test_a_trial_does_not_hold_its_place_while_it_stands_in_line() -> None:
    """Three calls that wait for a slow endpoint must not keep all others from probing."""

    async def story() -> None:
        guard = guard_for_test(paces={"slow": Pace(per_s=20.0)})
        await fail_times(guard, 5)
        await asyncio.sleep(60.0)
        await ask(guard, Market(), endpoint="slow")

        async with asyncio.TaskGroup() as group:
            group.create_task(ask(guard, Market(), endpoint="slow"))
            await asyncio.sleep(1.0)
            for _ in range(2):
                await ask(guard, Market())
            assert guard.health().breaker.state is BreakerState.CLOSED

    run_virtual(story)


def test_an_hour_of_outage_costs_the_provider_a_handful_of_calls() -> None:
    """Five failures to open, then one trial per doubling; not a call per second."""

    async def story() -> int:
        guard, market = guard_for_test(), Market(*[DOWN] * 10_000)
        loop = asyncio.get_running_loop()
        while loop.time() < 3_600.0:
            with pytest.raises(ProviderError):
                await ask(guard, market)
            await asyncio.sleep(1.0)
        return len(market.called_at)

    assert 5 < run_virtual(story) <= 5 + 3 * 10


def test_answers_at_the_edge_of_the_deadline_trip_the_breaker() -> None:
    """A provider that needs 25 of 30 seconds is down in all but name."""

    async def story() -> None:
        guard = guard_for_test()
        for _ in range(20):
            await ask(guard, Market(took_s=25.0))
        assert guard.health().breaker.state is BreakerState.OPEN

    run_virtual(story)


def test_the_breaker_is_closed_by_hand() -> None:
    """The operator's button."""

    async def story() -> None:
        guard, market = guard_for_test(), Market()
        await fail_times(guard, 5)

        guard.reset_breaker()
        await ask(guard, market)

        assert market.called_at == [0.0]

    run_virtual(story)


def test_when_everything_fails_retries_run_dry() -> None:
    """500 tokens at 14 each: 35 retries, and then every call is sent once."""

    async def story() -> None:
        guard = guard_for_test(threshold=10_000, rate_per_min=None)
        for _ in range(19):  # the share of bad calls trips the breaker too, so it is helped along
            guard.reset_breaker()
            with pytest.raises(Unavailable):
                await ask(guard, Market(DOWN, DOWN, DOWN))
        market = Market(DOWN, DOWN, DOWN)
        guard.reset_breaker()
        with pytest.raises(Unavailable):
            await ask(guard, market)

        assert len(market.called_at) == 1
        assert guard.health().retry_tokens == 500 - 35 * 14

    run_virtual(story)


def test_success_pays_for_later_retries() -> None:
    """One token back per answer, none for a refusal."""

    async def story() -> None:
        guard = guard_for_test()
        await ask(guard, Market(DOWN))
        for _ in range(4):
            await ask(guard, Market())
        with pytest.raises(Refused):
            await ask(guard, Market(Refused("vastai", "rent")))

        assert guard.health().retry_tokens == 500 - 14 + 5

    run_virtual(story)


def test_latencies_are_those_of_the_newest_hundred() -> None:
    """An old slow hour must not colour today's numbers."""

    async def story() -> None:
        guard = guard_for_test(rate_per_min=None)
        for _ in range(30):
            await ask(guard, Market(took_s=20.0))
        for milliseconds in range(1, 101):
            await ask(guard, Market(took_s=milliseconds / 1000))

        health = guard.health()
        assert health.calls == 100
        assert health.avg_response_time_ms == pytest.approx(50.5)
        assert health.p50_ms == pytest.approx(50.0)
        assert health.p95_ms == pytest.approx(95.0)

    run_virtual(story)


def test_below_seventy_percent_is_degraded() -> None:
    """The seed's middle word: it works, but do not lean on it."""

    async def story() -> None:
        guard = guard_for_test(threshold=100)
        for _ in range(7):
            await ask(guard, Market())
        await fail_times(guard, 3)
        assert guard.health().status is HealthStatus.HEALTHY
        await fail_times(guard, 1)

        assert guard.health().status is HealthStatus.DEGRADED
        assert guard.health().success_rate == pytest.approx(7 / 11)
        assert guard.health().last_error == "vastai offers"

    run_virtual(story)


def test_the_slowest_of_a_hundred_show_in_the_tail() -> None:
    """The 99th percentile is the second slowest of a hundred, and only of the newest hundred."""

    async def story() -> None:
        guard = guard_for_test(rate_per_min=None)
        for took_s in [9.0] * 50 + [0.1] * 97 + [1.0, 2.0, 3.0]:
            await ask(guard, Market(took_s=took_s))
        health = guard.health()
        assert (health.p50_ms, health.p95_ms, health.p99_ms) == pytest.approx((100, 100, 2000))

        await ask(guard, Market(took_s=4.0))
        assert guard.health().p99_ms == pytest.approx(3000)

    run_virtual(story)


def test_uptime_is_the_share_of_time_in_which_calls_were_let_through() -> None:
    """60 s OPEN of 240 s; while nobody tries, an OPEN still ends when its time is up."""

    async def story() -> None:
        await asyncio.sleep(1000.0)
        guard = guard_for_test()
        assert (guard.health().uptime, guard.health().since) == (
            1.0,
            EPOCH + timedelta(seconds=1000),
        )

        await asyncio.sleep(60.0)
        await fail_times(guard, 5)
        await asyncio.sleep(30.0)
        assert guard.health().uptime == pytest.approx(60.0 / 90.0)
        await asyncio.sleep(150.0)

        assert guard.health().uptime == pytest.approx(180.0 / 240.0)

    run_virtual(story)


def test_uptime_stays_a_share_when_the_wall_clock_steps_back() -> None:
    """A corrected clock must not make it negative, or more than all."""

    async def story() -> None:
        now = [EPOCH]

        class Stepping:
            def now(self) -> datetime:
                return now[0]

        guard = guard_for_test(clock=Stepping())
        await fail_times(guard, 5)
        await asyncio.sleep(30.0)
        now[0] = EPOCH - timedelta(days=1)

        assert guard.health().uptime == 0.0

    run_virtual(story)


def test_a_listener_is_told_of_every_move_a_call_or_a_hand_makes() -> None:
    """The event stream shows a provider going and coming back without asking all the time."""

    async def story() -> None:
        guard = guard_for_test()
        moves: list[tuple[str, str]] = []
        guard.on_change = lambda old, new: moves.append((old, new))

        await fail_times(guard, 5)
        await asyncio.sleep(61.0)
        assert moves == [("CLOSED", "OPEN")]
        await ask(guard, Market())
        assert moves == [("CLOSED", "OPEN"), ("OPEN", "HALF_OPEN")]
        guard.reset_breaker()
        guard.reset_breaker()

        assert moves[2:] == [("HALF_OPEN", "CLOSED")]

    run_virtual(story)


def test_a_listeners_bug_does_not_become_the_outcome_of_a_call() -> None:
    """A rent whose reply was lost must end as that, whoever stumbles over the news of a trip."""

    def stumble(old: str, new: str) -> None:
        raise KeyError(new)

    async def story() -> None:
        guard = guard_for_test(threshold=1)
        guard.on_change = stumble
        lost = OutcomeUnknown("vastai", "rent", key=RentalKey("gp4u-a-b"))

        with pytest.raises(OutcomeUnknown):
            await ask(guard, Market(lost), endpoint="rent", safe=False)
        assert guard.health().breaker.state is BreakerState.OPEN

    with structlog.testing.capture_logs() as logged:
        run_virtual(story)
    assert [(line["event"], line["provider"]) for line in logged] == [("listener_failed", "vastai")]
