"""An event loop whose clock jumps instead of sleeping, so hours of waiting take milliseconds.

`run_virtual(fn)` runs a coroutine function to its end on such a loop. When nothing is ready, the
loop moves its clock to the next timer; when there is no timer either, that is a deadlock and an
error, not a hang. The ready queue can be shuffled by a seed, which finds code that leans on an
order that asyncio happens to keep. Threads are refused: a thread's time is real, and this is not
(but the ledger's wait for its disk, which is done at once).

For code that stays in one process. Data that travels through a real socket arrives "too late"
here, because the clock jumps while the kernel still carries it; unless somebody says so in
`outside`: as long as anything is in there the clock stands, and what is outside takes real time.
"""

from __future__ import annotations

import asyncio
import random
import selectors
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from concurrent.futures import Executor
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any, TypeVar, TypeVarTuple

from gp4u.rentals.database import flush

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
"""The wall time of `VirtualClock` at loop time 0."""
BRIEF: tuple[object, ...] = (flush,)
"""What may be done in a thread elsewhere: here it is done at once, and takes no time."""
OUTSIDE_S = 30.0
"""What is outside answers within so many real seconds."""


class _JumpingSelector(selectors.BaseSelector):
    """Polls a real selector and never waits: it asks the loop to move its clock instead."""

    def __init__(self, jump: Callable[[float], None], outside: set[object]) -> None:
        self._real = selectors.DefaultSelector()
        self._jump, self._outside = jump, outside

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._real.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._real.unregister(fileobj)

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._real.modify(fileobj, events, data)

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = self._real.select(0)
        if ready or timeout == 0:
            return ready
        if self._outside:
            ready = self._real.select(OUTSIDE_S)
            if not ready:
                raise RuntimeError(f"nothing came from outside for {OUTSIDE_S} s")
            return ready
        if timeout is None:
            raise RuntimeError("deadlock: nothing is ready and no timer is set")
        self._jump(max(timeout, 0.0))
        return []

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._real.get_map()

    def close(self) -> None:
        self._real.close()


class _NumberedTask(asyncio.Task[Any]):
    """Takes its place in a set by its number, and not by where it happens to lie in memory.

    A group cancels its tasks in the order of a set: the same run again has to cancel them alike.
    """

    number = 0

    def __hash__(self) -> int:
        return self.number

    def __eq__(self, other: object) -> bool:
        return self is other


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop with virtual time; `seed` None keeps asyncio's own order of ready callbacks."""

    def __init__(self, seed: int | None = None, *, start_s: float = 0.0) -> None:
        self._virtual_s = start_s
        self._shuffle = random.Random(seed).shuffle if seed is not None else None
        self.outside: set[object] = set()
        """What is waited for in real time."""
        super().__init__(_JumpingSelector(self._advance, self.outside))
        self._numbers = count()
        self.set_task_factory(self._numbered)

    def _numbered(
        self, loop: asyncio.AbstractEventLoop, coro: Any, **given: Any
    ) -> asyncio.Task[Any]:
        task = _NumberedTask(coro, loop=loop, **given)
        task.number = next(self._numbers)
        return task

    def time(self) -> float:
        return self._virtual_s

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[*Ts], T], *args: *Ts
    ) -> asyncio.Future[T]:
        if func not in BRIEF:
            raise RuntimeError("threads have no place under a virtual clock")
        del executor
        done: asyncio.Future[T] = self.create_future()
        done.set_result(func(*args))
        return done

    def _advance(self, seconds: float) -> None:
        self._virtual_s += seconds

    def _run_once(self) -> None:
        # Private to asyncio, and of this shape since 3.4; `test_virtual_loop.py` notices a change.
        ready = self._ready  # type: ignore[attr-defined]  # not in the stubs, being private
        # asyncio's own sockets lean on its order: what is outside is not shuffled.
        if self._shuffle is not None and len(ready) > 1 and not self.outside:
            handles = list(ready)
            self._shuffle(handles)
            ready.clear()
            ready.extend(handles)
        super()._run_once()  # type: ignore[misc]  # not in the stubs, being private


class VirtualClock:
    """Wall time that keeps step with the running virtual loop; `EPOCH` while none runs yet."""

    def now(self) -> datetime:
        try:
            at = asyncio.get_running_loop().time()
        except RuntimeError:  # what is built before a run begins is built at its beginning
            at = 0.0
        return EPOCH + timedelta(seconds=at)


def run(coro: Coroutine[Any, Any, T], seed: int | None = None) -> T:
    """Run a coroutine to its end under virtual time and close everything."""
    with asyncio.Runner(loop_factory=lambda: VirtualLoop(seed)) as runner:
        return runner.run(coro)


def run_virtual(fn: Callable[[], Awaitable[T]], seed: int | None = None) -> T:
    """Call `fn` inside a virtual loop and await what it returns; see `run`."""

    async def inside() -> T:
        return await fn()

    return run(inside(), seed)
