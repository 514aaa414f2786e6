"""How what was opened for a client ends: in the task that used it, and in bounded time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final, TypeVar

from gp4u.providers.session import Link, Session

T = TypeVar("T")

CLOSE_S: Final = 10.0
"""A machine that vanished may never answer a farewell."""


async def close(opened: Session | Link) -> None:
    """Leave it; one that does not end in time is left as it is."""
    with suppress(TimeoutError):
        async with asyncio.timeout(CLOSE_S):
            await opened.aclose()


@asynccontextmanager
async def drawn(source: AsyncIterator[T]) -> AsyncIterator[AsyncIterator[T]]:
    """Give the source; a generator that is left half way cleans up here, not in a task of the loop.

    One with tasks or deadlines of its own could not do so anywhere else.
    """
    try:
        yield source
    finally:
        if isinstance(source, AsyncGenerator):
            await source.aclose()
