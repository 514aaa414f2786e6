"""Handing out work: everybody healthy has a turn, nobody ill ever has, and a seed repeats it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from random import Random
from typing import NoReturn

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gp4u import Balancer, BaseProvider, Registry
from gp4u.errors import Denied, Malformed, NoneHealthy
from gp4u.providers.plugins import Plugins
from gp4u.resilience.guard import Guard
from tests.virtual_loop import run_virtual

NAMES = ("one", "two", "three", "four")


def shops(count: int = 4) -> Registry:
    """Return a registry with so many markets, all of them well."""
    registry = Registry(Plugins((), {}))
    for name in NAMES[:count]:
        registry.register(BaseProvider(name))
    return registry


def guard_of(registry: Registry, name: str) -> Guard:
    return registry._alone[name].guards[name]


async def answer(guard: Guard, *, failures: int = 0, successes: int = 0) -> None:
    """Let a market answer so many calls, and fail so many."""

    async def good() -> None:
        return

    async def bad() -> NoReturn:
        raise Malformed(guard.provider, "offers")

    for fn in [good] * successes + [bad] * failures:
        with suppress(Malformed):
            await guard.call(fn, endpoint="offers", safe=True, timeout_s=1)


async def set_health(guard: Guard, *, healthy: bool) -> None:
    """Have the market refuse our key, or accept it again."""

    async def refuse() -> NoReturn:
        raise Denied(guard.provider, "ping")

    async def accept() -> None:
        return

    with suppress(Denied):
        await guard.call(accept if healthy else refuse, endpoint="ping", safe=True, timeout_s=1)


@settings(deadline=None)
@given(count=st.integers(1, 4), calls=st.integers(0, 30))
def test_every_healthy_provider_has_its_turn(count: int, calls: int) -> None:
    """Over any stretch the counts differ by one at most, and the order is that of the registry."""
    balancer = Balancer(shops(count), Random(0))
    chosen = [balancer.round_robin().spec.slug for _ in range(calls)]
    assert chosen == [NAMES[n % count] for n in range(calls)]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.frozensets(st.integers(0, 3)), max_size=25))
def test_nobody_ill_is_chosen_and_who_stays_well_is_chosen_soon(ill: Sequence[set[int]]) -> None:
    """Whoever comes and goes, four calls in which one is well all the time include that one."""

    async def life() -> None:
        registry = shops()
        balancer = Balancer(registry, Random(0))
        chosen: list[str] = []
        for sick in ill:
            for number, name in enumerate(NAMES):
                await set_health(guard_of(registry, name), healthy=number not in sick)
            if len(sick) == len(NAMES):
                with pytest.raises(NoneHealthy) as caught:
                    balancer.round_robin()
                assert set(caught.value.why) == set(NAMES)
                with pytest.raises(NoneHealthy):
                    balancer.weighted()
                chosen.append("nobody")
                continue
            assert NAMES.index(balancer.weighted().spec.slug) not in sick
            chosen.append(balancer.round_robin().spec.slug)
            assert NAMES.index(chosen[-1]) not in sick
        for start in range(len(ill) - 3):
            window = range(start, start + 4)
            for number, name in enumerate(NAMES):
                if all(number not in ill[n] for n in window):
                    assert name in {chosen[n] for n in window}

    run_virtual(life)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32))
def test_the_same_seed_gives_the_same_choices(seed: int) -> None:
    """A test, or somebody who looks for a fault, has to see the same run twice."""
    first, second = (Balancer(shops(), Random(seed)) for _ in range(2))
    assert [first.weighted().spec.slug for _ in range(20)] == [
        second.weighted().spec.slug for _ in range(20)
    ]


def test_who_answers_more_of_its_calls_is_chosen_more_often() -> None:
    """In the ratio of the success rates, as the first seed weighs them."""

    async def life() -> None:
        registry = shops(2)
        await answer(guard_of(registry, "one"), successes=30, failures=0)
        await answer(guard_of(registry, "two"), successes=21, failures=4)
        await answer(guard_of(registry, "two"), successes=1, failures=4)
        rates = [p.get_metrics().get_success_rate() for p in registry.get_all_healthy()]
        assert rates == [1.0, pytest.approx(22 / 30)]
        balancer = Balancer(registry, Random(7))
        counts = Counter(balancer.weighted().spec.slug for _ in range(20_000))
        assert counts["two"] / counts["one"] == pytest.approx(rates[1], rel=0.05)

    run_virtual(life)


def test_with_nobody_registered_the_error_says_so() -> None:
    """An index error would not tell what to do."""
    with pytest.raises(NoneHealthy, match="no provider is HEALTHY: none is open"):
        Balancer(Registry(Plugins((), {})), Random(0)).round_robin()
