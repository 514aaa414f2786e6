"""A far side that answers as told, and a guard in front of it; shared by the tests of the guard."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any

import pytest

from gp4u.errors import Malformed
from gp4u.resilience.guard import Guard, build_guard
from tests.virtual_loop import VirtualClock


class Market:
    """A far side that answers as told and notes when it was called."""

    def __init__(self, *script: BaseException | float, took_s: float = 0.0) -> None:
        """Each call takes the next of `script`: an error, or a time to answer in; then `took_s`."""
        self.script = list(script)
        self.took_s = took_s
        self.called_at: list[float] = []

    async def __call__(self) -> str:
        self.called_at.append(asyncio.get_running_loop().time())
        step = self.script.pop(0) if self.script else self.took_s
        if isinstance(step, BaseException):
            raise step
        await asyncio.sleep(step)
        return "answer"


def guard_for_test(**changes: Any) -> Guard:
    """A guard with the seeds' defaults and no jitter."""
    settings: dict[str, Any] = {"random": Random(1), "clock": VirtualClock(), "jitter_s": 0.0}
    return build_guard("vastai", **(settings | changes))


async def ask(
    guard: Guard, fn: Callable[[], Awaitable[str]], *, endpoint: str = "offers", safe: bool = True
) -> str:
    return await guard.call(fn, endpoint=endpoint, safe=safe, timeout_s=30.0)


async def fail_times(guard: Guard, times: int) -> None:
    """Let so many calls fail, each sent once."""
    for _ in range(times):
        with pytest.raises(Malformed):
            await ask(guard, Market(Malformed("vastai", "offers")))
