"""The loop that the other tests stand on must itself be right."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.virtual_loop import EPOCH, VirtualClock, run, run_virtual


def test_a_day_of_sleep_takes_no_time_and_moves_the_clock_by_a_day() -> None:
    """Tests of minute-long waits are only possible if waiting is free."""

    async def day() -> float:
        began = asyncio.get_running_loop().time()
        await asyncio.sleep(86_400)
        return asyncio.get_running_loop().time() - began

    real = time.perf_counter()

    assert run_virtual(day) == 86_400
    assert time.perf_counter() - real < 5


def test_timers_fire_in_their_order_whatever_the_seed() -> None:
    """The shuffle may reorder what is ready at once, never what is due at different times."""

    async def record() -> list[int]:
        seen: list[int] = []

        async def note(delay: int) -> None:
            await asyncio.sleep(delay)
            seen.append(delay)

        async with asyncio.TaskGroup() as group:
            for delay in (3, 1, 2):
                group.create_task(note(delay))
        return seen

    assert [run_virtual(record, seed) for seed in range(20)] == [[1, 2, 3]] * 20


def test_the_seed_shuffles_what_is_ready_and_repeats_itself() -> None:
    """A failing schedule must be reproducible; this also notices a change inside asyncio."""

    async def record() -> list[int]:
        seen: list[int] = []

        async def note(number: int) -> None:
            await asyncio.sleep(0)
            seen.append(number)

        async with asyncio.TaskGroup() as group:
            for number in range(8):
                group.create_task(note(number))
        return seen

    orders = [tuple(run_virtual(record, seed)) for seed in range(10)]

    assert tuple(run_virtual(record)) == tuple(range(8))
    assert len(set(orders)) > 5
    assert orders == [tuple(run_virtual(record, seed)) for seed in range(10)]


def test_a_deadlock_is_an_error_and_not_a_hang() -> None:
    """With nothing ready and no timer set, nothing can ever happen again."""

    async def stuck() -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(RuntimeError, match="deadlock"):
        run(stuck())


def test_threads_are_refused() -> None:
    """A thread takes real time, which the virtual clock would jump over."""

    async def threaded() -> None:
        await asyncio.to_thread(int)

    with pytest.raises(RuntimeError, match="threads"):
        run(threaded())


def test_the_wall_clock_keeps_step_with_the_loop() -> None:
    """Stamps and durations of one test must tell the same story."""

    async def stamp() -> float:
        await asyncio.sleep(90)
        return (VirtualClock().now() - EPOCH).total_seconds()

    assert run_virtual(stamp) == 90


def test_a_group_ends_its_tasks_in_the_same_order_in_each_run() -> None:
    """They are kept in a set; a seed that fails is worth nothing if it does not fail again."""

    def ended() -> list[int]:
        order: list[int] = []

        async def wait(number: int) -> None:
            try:
                await asyncio.sleep(10)
            finally:
                order.append(number)

        async def life() -> None:
            async with asyncio.TaskGroup() as group:
                for number in range(100):
                    group.create_task(wait(number))
                await asyncio.sleep(1)
                raise ZeroDivisionError

        with pytest.raises(ExceptionGroup):
            run_virtual(life)
        return order

    first, taken = ended(), [object() for _ in range(1000)]
    assert ended() == first, "whatever lies in memory meanwhile"
    assert len(taken) == 1000
