"""Starts that overlap with an end: a gate that is shut first, and a stop of everything at once."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from gp4u.sim.launch import LaunchFailed, Running


class Gate:
    """Lets starts begin until it is shut, so that closing sees all that they bring about."""

    def __init__(self) -> None:
        self._open = True
        self._inside = 0
        self._empty = asyncio.Event()
        self._empty.set()

    @contextmanager
    def passed(self) -> Iterator[None]:
        if not self._open:
            raise LaunchFailed("the container runtime is shutting down")
        self._inside += 1
        self._empty.clear()
        try:
            yield
        finally:
            self._inside -= 1
            if not self._inside:
                self._empty.set()

    async def shut(self) -> None:
        self._open = False
        await self._empty.wait()


async def stop_all(running: Sequence[Running]) -> None:
    """Stop every instance, all at the same time."""
    async with asyncio.TaskGroup() as group:
        for each in running:
            group.create_task(each.stop())
