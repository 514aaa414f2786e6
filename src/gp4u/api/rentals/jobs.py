"""Work of the server that outlives the request that asked for it.

A client that hangs up in the middle of a rent must not leave half of one behind, so a rent runs
here and not in the request. The number is bounded: what a full house cannot take is refused, since
every job may hold money. A server that stops cancels them all; that is a polite crash, and what is
on disk settles them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Final, Generic, TypeVar

from gp4u.errors import Gp4uError

MAX_JOBS: Final = 64
RETRY_S: Final = 5.0
T = TypeVar("T")


class NoRoom(Gp4uError):
    """So many jobs are under way that no other is taken; `retry_in_s` is when to come again."""

    def __init__(self, jobs: int) -> None:
        self.retry_in_s = RETRY_S
        super().__init__(f"{jobs} jobs are under way, and no more are taken")


class Stopped(Gp4uError):
    """The server stopped before a job had ended."""


class Job(Generic[T]):
    """One piece of work; any number may wait for it, and none of them stops it."""

    def __init__(self, outcome: asyncio.Future[T]) -> None:
        self._outcome = outcome

    @property
    def is_done(self) -> bool:
        """Whether it has ended, one way or another."""
        return self._outcome.done()

    async def result(self) -> T:
        """Return what it came to.

        Raises:
            Stopped: the server stopped before it ended; else whatever it raised.
        """
        await asyncio.wait([self._outcome])  # awaited itself, it would be cancelled with who waits
        if self._outcome.cancelled():
            raise Stopped("the server stopped in the middle of it; what is on disk settles it")
        return self._outcome.result()


class Jobs:
    """Owns the tasks; see the module's docstring."""

    def __init__(self, limit: int = MAX_JOBS) -> None:
        self._limit, self._count = limit, 0
        self._group: asyncio.TaskGroup | None = None

    @property
    def is_idle(self) -> bool:
        """Whether nothing is under way."""
        return not self._count

    async def run(self) -> None:
        """Take jobs until cancelled."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                self._group = None  # at once: a group that ends would wait for what comes now

    def start(self, work: Coroutine[Any, Any, T]) -> Job[T]:
        """Start a job.

        Raises:
            NoRoom: too many are under way, or the server is not up; the work was not begun.
        """
        if self._group is None or self._count >= self._limit:
            work.close()
            raise NoRoom(self._count)
        outcome: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        outcome.add_done_callback(_heard)
        self._count += 1

        def ended(_task: object) -> None:
            self._count -= 1
            outcome.cancel()  # says something only where nothing was said
            work.close()  # the same: it may have been cancelled before it began

        self._group.create_task(_done(work, outcome)).add_done_callback(ended)
        return Job(outcome)


async def _done(work: Coroutine[Any, Any, T], outcome: asyncio.Future[T]) -> None:
    try:
        outcome.set_result(await work)
    except Gp4uError as error:
        outcome.set_exception(error)
    except Exception as error:  # noqa: BLE001 - a rim: one job's bug must stop no other one
        import structlog  # 60 ms that only trouble costs

        structlog.get_logger().exception("job_failed")
        outcome.set_exception(error)


def _heard(outcome: asyncio.Future[Any]) -> None:
    """Take note of a failure that nobody may be waiting for."""
    if not outcome.cancelled():
        outcome.exception()
