"""A PostgreSQL under a virtual clock: while it is asked, the clock stands; and a client can die.

`patient` makes every connection of ours say when it waits for the server, so that no virtual time
goes by meanwhile. `hang_up` is what the kernel does to a killed process: its connections end at
once, whatever was going on in them, and the server undoes what was not committed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import pytest

from gp4u.rentals.database import Database
from gp4u.rentals.postgres import Postgres
from tests.virtual_loop import VirtualLoop


class Killed(BaseException):
    """This client is dead; whatever it still tries does not happen."""


class Client:
    """What one client has to do with the server."""

    def __init__(self) -> None:
        self.lines: list[Line] = []
        self.waits: set[object] = set()
        self.dead = False
        self.before_commit: Callable[[], None] = lambda: None

    async def wait(self, answer: Callable[[], Awaitable[Any]]) -> Any:
        """Wait for the server while the clock stands."""
        if self.dead:
            raise Killed
        wait, outside = object(), _outside()
        self.waits.add(wait)
        outside.add(wait)
        try:
            return await answer()
        finally:
            self.waits.discard(wait)
            outside.discard(wait)


class Line:
    """A connection that says when it waits; anything else goes to the connection itself."""

    def __init__(self, client: Client, connection: Any) -> None:
        self._client, self._connection = client, connection

    def __getattr__(self, name: str) -> Any:
        it = getattr(self._connection, name)
        if name not in ("execute", "executemany", "fetch", "fetchval", "close"):
            return it

        async def ask(*words: Any, **more: Any) -> Any:
            if name == "close" and self._client.dead:
                return None  # hung up already
            if words == ("COMMIT",):
                self._client.before_commit()
            return await self._client.wait(lambda: it(*words, **more))

        return ask


_clients: WeakKeyDictionary[Database, Client] = WeakKeyDictionary()


@contextmanager
def patient() -> Iterator[None]:
    """Have every ledger on PostgreSQL that is opened in this block be patient."""
    connect = Postgres._connect

    async def patiently(database: Postgres, name: str) -> Any:
        client = _clients.setdefault(database, Client())
        line = Line(client, await client.wait(lambda: connect(database, name)))
        client.lines.append(line)
        return line

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Postgres, "_connect", patiently)
        yield


def hang_up(database: Database) -> None:
    """End everything that a client has to do with the server; it stays dead."""
    client = _clients[database]
    client.dead = True
    _outside().difference_update(client.waits)
    for line in client.lines:
        if not line.is_closed():
            line.terminate()


def before_commits(database: Database, call: Callable[[], None]) -> None:
    """Call something before each commit of a client; what it raises is raised there."""
    _clients[database].before_commit = call


def _outside() -> set[object]:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    return loop.outside
