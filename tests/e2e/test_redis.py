"""Processes that share a pace through a real Redis: together within the limits, whatever dies.

Real processes and a real server take real time; each test needs two to four seconds of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
import structlog

from gp4u.clock import SystemClock
from gp4u.errors import CircuitBreakerOpen, Malformed, RateLimitExceeded, Throttled
from gp4u.providers.registry import open_providers
from gp4u.resilience.bucket import Pace, Window
from gp4u.resilience.guard import Guard, build_guard
from gp4u.resilience.shared import DEADLINE_S, FURTHEST_S, RETRY_S, SharedLimits, _patience
from gp4u.settings import load_settings
from tests.redis_server import RedisServer, redis_server

RATE_PER_S, BURST = 20.0, 5.0
JITTER_S = 0.1
"""Between being let go and being seen: a busy machine runs a ready task late."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis of this test's own."""
    with redis_server(tmp_path) as server:
        yield server


def guard_at(limits: SharedLimits | None, **changes: Any) -> Guard:
    """A guard of an account that others use as well."""
    shared = limits.pace("vastai", "an account's key") if limits is not None else None
    settings: dict[str, Any] = {
        "random": Random(1),
        "clock": SystemClock(),
        "rate_per_min": RATE_PER_S * 60,
        "burst": BURST,
        "max_retries": 1,
        "jitter_s": 0.0,
        "shared": shared,
    }
    return build_guard("vastai", **(settings | changes))


@contextlib.asynccontextmanager
async def limits_at(server: RedisServer, deadline_s: float = 5.0) -> AsyncIterator[SharedLimits]:
    """Shared limits that are closed in the end, patient enough for a busy machine."""
    limits = SharedLimits(server.url, deadline_s=deadline_s)
    try:
        yield limits
    finally:
        await limits.aclose()


async def answer() -> str:
    """Be a call that goes well."""
    return "answer"


async def ask(guard: Guard, fn: Callable[[], Awaitable[str]] = answer) -> str:
    """Call once."""
    return await guard.call(fn, endpoint="offers", safe=True, timeout_s=5.0)


async def took_s(guard: Guard, times: int = 1) -> float:
    """Call so often and return the seconds that it took."""
    began = time.monotonic()
    for _ in range(times):
        await ask(guard)
    return time.monotonic() - began


def most_beyond(left: list[float], rate_per_s: float = RATE_PER_S, burst: float = BURST) -> float:
    """Return by how many calls the fullest stretch of time is over rate x t + burst."""
    left = sorted(left)
    return max(
        count - (rate_per_s * (end - begin + JITTER_S) + burst)
        for number, begin in enumerate(left)
        for count, end in enumerate(left[number:], start=1)
    )


class Caller:
    """A process of `shared_caller`, and when its calls left."""

    def __init__(self, url: str) -> None:
        self.left: list[float] = []
        words = (url, str(RATE_PER_S * 60), str(BURST))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.e2e.shared_caller", *words],
            stdout=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.endswith("\n"):  # the last one may be cut by a kill
                self.left.append(float(line))

    def began(self) -> None:
        """Wait for its first call."""
        until = time.monotonic() + 20.0
        while not self.left:
            assert time.monotonic() < until, "the process made no call"
            time.sleep(0.01)

    def kill(self) -> None:
        """`kill -9`."""
        self._process.kill()
        self._process.wait()
        self._reader.join()
        assert self._process.stdout is not None
        self._process.stdout.close()


@contextlib.contextmanager
def callers(server: RedisServer, number: int) -> Iterator[list[Caller]]:
    """Processes of one account, all of them calling."""
    processes = [Caller(server.url) for _ in range(number)]
    try:
        for each in processes:
            each.began()
        yield processes
    finally:
        for each in processes:
            each.kill()


def test_processes_of_one_account_keep_its_limits_together(server: RedisServer) -> None:
    """The market counts the account's calls; three processes at full speed would be thrice over."""
    with callers(server, 3) as all_three:
        began = time.monotonic()
        time.sleep(2.0)
        ended = time.monotonic()

    every = [at for each in all_three for at in each.left]
    counted = [at for at in every if began <= at <= ended]
    assert most_beyond(every) <= 0.0
    assert len(counted) >= 0.8 * RATE_PER_S * (ended - began), "what is allowed must be used"
    for each in all_three:
        own = sum(began <= at <= ended for at in each.left)
        assert own >= 0.2 * len(counted), "one of them is starved"


def test_a_process_that_is_killed_takes_nothing_with_it(server: RedisServer) -> None:
    """A lock that a dead process holds would stop all others; a turn that it had is only lost."""
    with callers(server, 2) as (first, second):
        first.kill()
        killed_at = time.monotonic()
        time.sleep(1.5)
        ended_at = time.monotonic()

    after = [at for at in second.left if killed_at <= at <= ended_at]
    assert most_beyond([*first.left, *second.left]) <= 0.0
    assert len(after) >= 0.8 * RATE_PER_S * (ended_at - killed_at) - 4, "4 turns may be lost"


def test_when_redis_dies_each_goes_on_alone_and_when_it_is_back_they_share_again(
    server: RedisServer,
) -> None:
    """The place where the pace is kept must never be what stops the work."""
    with callers(server, 2) as both:
        time.sleep(0.5)
        server.kill()
        died_at = time.monotonic()
        time.sleep(1.5)
        server.start()
        time.sleep(2 * RETRY_S)  # each has found out by now
        back_at = time.monotonic()
        time.sleep(1.5)

    for each in both:
        alone = [at for at in each.left if died_at + 0.2 <= at <= died_at + 1.5]
        assert most_beyond(alone) <= 0.0
        assert len(alone) >= 0.7 * RATE_PER_S * 1.3, "it stood still"
    again = [at for each in both for at in each.left if at >= back_at]
    assert most_beyond(again) <= 0.0
    assert len(again) >= 0.7 * RATE_PER_S * 1.5


async def test_a_frozen_redis_costs_one_short_wait_and_not_one_per_call(
    server: RedisServer,
) -> None:
    """Its connections open and nothing answers: the worst way to be down."""
    async with limits_at(server, DEADLINE_S) as limits:
        guard = guard_at(limits, rate_per_min=60_000.0, burst=1000.0)
        await ask(guard)
        with structlog.testing.capture_logs() as logged:
            with server.frozen():
                assert await took_s(guard, times=200) < 0.5
                assert guard.health().shared is False
            await asyncio.sleep(RETRY_S)
            await took_s(guard, times=50)

        assert guard.health().shared is True
    assert [line["event"] for line in logged] == [
        "shared_limits_failed",
        "shared_limits_work_again",
    ]


async def test_a_process_that_was_busy_itself_does_not_take_redis_for_slow() -> None:
    """Decoding a large market holds the loop up for longer than Redis may take to answer."""
    ours, theirs = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=ours)

    async def asked() -> bytes:
        async with _patience(DEADLINE_S):
            return await reader.read(100)

    async def busy() -> None:
        theirs.send(b"in time")
        time.sleep(3 * DEADLINE_S)  # noqa: ASYNC251 - holding the loop up is what is tried

    with theirs, contextlib.closing(writer):
        async with asyncio.TaskGroup() as group:
            answered = group.create_task(asked())
            group.create_task(busy())
        assert answered.result() == b"in time"
        with pytest.raises(TimeoutError):
            await asked()


async def test_who_waited_for_all_goes_by_its_own_limits_if_redis_dies(
    server: RedisServer,
) -> None:
    """Its own token was taken before the wait, and may have come back when it leaves."""
    async with limits_at(server) as one, limits_at(server) as two:
        paces = {"offers": Pace(per_s=0.3)}
        first = guard_at(one, paces=paces, rate_per_min=0.01)
        guard = guard_at(two, paces=paces, rate_per_min=0.01)
        await ask(first)
        async with asyncio.TaskGroup() as group:
            group.create_task(ask(guard))
            await asyncio.sleep(0.1)
            server.kill()

        bucket = guard.health().rate_limit
        assert bucket is not None
        assert bucket.available_tokens == pytest.approx(BURST - 2, abs=0.01)


async def test_a_turn_too_far_ahead_leaves_no_mark(server: RedisServer) -> None:
    """Who comes back with the mark of a turn that was never taken would be let through."""
    async with limits_at(server) as limits:
        pace, window = limits.pace("vastai", "key"), Window(Pace(per_s=FURTHEST_S + 5))
        assert (await pace.take("offers", None, window, patience_s=0.0)).wait_s == 0.0

        for patience_s in (0.0, FURTHEST_S, FURTHEST_S + 10):
            turn = await pace.take("offers", None, window, patience_s=patience_s)
            assert turn.wait_s > FURTHEST_S
            assert turn.mark == ""


async def test_answers_that_came_too_late_are_not_taken_for_later_ones(
    server: RedisServer,
) -> None:
    """A connection with an unread answer in it would be one answer behind for ever."""
    async with limits_at(server, DEADLINE_S) as limits:
        narrow, wide = limits.pace("vastai", "narrow"), limits.pace("vastai", "wide")
        window = Window(Pace(per_s=30.0))
        await narrow.take("offers", None, window, patience_s=30.0)
        with server.frozen():
            await narrow.take("offers", None, window, patience_s=60.0)
        await asyncio.sleep(RETRY_S)

        for _ in range(20):
            assert (await wide.take("offers", None, None, patience_s=60.0)).wait_s == 0.0
        assert limits.is_up


async def test_a_429_at_one_is_a_429_at_all(server: RedisServer) -> None:
    """The market throttles the account, so the others need not find out each for himself."""

    async def throttled() -> str:
        raise Throttled("vastai", "offers", retry_after_s=0.4)

    async with limits_at(server) as one, limits_at(server) as two:
        paces = {"offers": Pace(per_s=0.01)}
        first, second = guard_at(one, paces=paces), guard_at(two, paces=paces)
        with pytest.raises(Throttled):
            await ask(first, throttled)

        assert 0.3 <= await took_s(second) <= 1.0


async def test_who_would_wait_too_long_is_refused_and_takes_no_turn(server: RedisServer) -> None:
    """As at a limit of one's own: refused at once, nothing sent, and told when to come again."""
    async with limits_at(server) as one, limits_at(server) as two:
        paces = {"offers": Pace(per_s=1.0)}
        first = guard_at(one, paces=paces, max_wait_s=0.5)
        second = guard_at(two, paces=paces, max_wait_s=0.5)
        await ask(first)

        for _ in range(3):
            began = time.monotonic()
            other = guard_at(two, paces=paces, max_wait_s=0.5)
            with pytest.raises(RateLimitExceeded) as caught:
                await ask(other)
            assert time.monotonic() - began < 0.3
            assert 0.5 < caught.value.retry_in_s <= 1.05
        assert (await took_s(guard_at(two, paces=paces, max_wait_s=5.0))) <= 1.3
        assert second.health().requests_blocked == 0


async def test_a_breaker_that_trips_while_one_waits_refuses_it(server: RedisServer) -> None:
    """A turn of all processes is no leave to call a market that has gone down meanwhile."""

    async def broken() -> str:
        raise Malformed("vastai", "offers")

    async with limits_at(server) as one, limits_at(server) as two:
        paces = {"offers": Pace(per_s=0.3)}
        other, guard = guard_at(one, paces=paces), guard_at(two, paces=paces, threshold=1)
        await ask(other)
        async with asyncio.TaskGroup() as group:
            waiting = group.create_task(_outcome(guard))
            await asyncio.sleep(0.1)
            with pytest.raises(Malformed):
                await guard.call(broken, endpoint="rent", safe=False, timeout_s=1.0)

        assert isinstance(waiting.result(), CircuitBreakerOpen)


async def test_a_call_that_is_cancelled_in_line_leaves_the_line_as_it_was(
    server: RedisServer,
) -> None:
    """Its turn is wasted, once; no connection and no place is kept."""
    async with limits_at(server) as limits:
        guard = guard_at(limits, paces={"offers": Pace(per_s=0.05)}, burst=1000.0)
        for _ in range(30):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.001):
                    await ask(guard)

        assert await took_s(guard) <= 30 * 0.1 + 0.5
        assert limits.is_up


@pytest.mark.parametrize("poison", ["not a hash", "not a number"])
async def test_keys_that_somebody_spoiled_leave_each_on_its_own(
    server: RedisServer, poison: str
) -> None:
    """A wrong answer is no answer; the caller never hears of it."""
    async with limits_at(server) as limits:
        guard = guard_at(limits)
        await ask(guard)
        with server.client() as client:
            (account,) = [key for key in client.scan_iter("gp4u:*") if key.count(b":") == 2]
            if poison == "not a hash":
                client.set(account, "x")
            else:
                client.hset(account, "full_at", "soon")
                client.hset(account, "seen", "9" * 400)

        assert await took_s(guard, times=4) < 1.0
        assert guard.health().shared is False


async def test_a_redis_that_wants_a_password_is_as_good_as_none(server: RedisServer) -> None:
    """The settings may be wrong about it; the markets are still asked, and the log says why."""
    with server.client() as client:
        client.config_set("requirepass", "hunter2hunter2")
    with structlog.testing.capture_logs() as logged:
        async with limits_at(server) as limits:
            guard = guard_at(limits)
            assert await ask(guard) == "answer"
            assert guard.health().shared is False
    assert "unauthenticated" in logged[0]["error"]


async def test_open_markets_share_by_their_own_keys_and_show_none_of_them(
    server: RedisServer, tmp_path: Path
) -> None:
    """What an operator sees in Redis names the market, and gives no key away."""
    key = "vast-0123456789-a-key-of-its-own"
    settings = load_settings({"VASTAI_API_KEY": key, "GP4U_REDIS_URL": server.url}, tmp_path)
    opened = open_providers(settings, clock=SystemClock(), random=Random(1))
    try:
        await ask(opened.guards["vastai"])
        assert opened.guards["vastai"].health().shared is True
    finally:
        await opened.aclose()

    with server.client() as client:
        names: list[Any] = list(client.scan_iter())
        held: list[Any] = [client.hgetall(name) for name in names]
    assert [name.split(b":")[1] for name in names] == [b"vastai", b"vastai"]
    assert key not in f"{names} {held}"


async def test_without_an_address_nothing_is_shared(tmp_path: Path) -> None:
    """One process needs no Redis."""
    settings = load_settings({"VASTAI_API_KEY": "a-key"}, tmp_path)
    opened = open_providers(settings, clock=SystemClock(), random=Random(1))
    try:
        assert opened.shared is None
        assert opened.guards["vastai"].health().shared is None
    finally:
        await opened.aclose()


async def _outcome(guard: Guard) -> object:
    try:
        return await ask(guard)
    except CircuitBreakerOpen as error:
        return error
