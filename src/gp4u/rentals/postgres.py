"""A ledger in PostgreSQL, by asyncpg.

It keeps the promises that SQLite keeps by nature. One writer at a time: each `writing()` block
begins with an advisory lock that ends with its transaction, so what one block read and concluded
still holds when it writes, and events are committed in the order of their ids. Durable: a role
that has `synchronous_commit` off gets it switched on. One holder: a session of its own keeps an
advisory lock; when that session dies, the server frees the lock at once.

A connection can break at any moment. Before the commit that means that nothing was written; while
the commit is under way nobody can know, and that is said (`CommitLost`). A connection that turns
out to be broken when a block begins is replaced once, since nothing was done with it.

SQLAlchemy only spells the statements. Its own asyncio layer would add a C extension that switches
stacks, and would hide where a commit begins and ends.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit
from zlib import crc32

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import ExecutableDDLElement
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.dml import UpdateBase
from sqlalchemy.sql.visitors import cloned_traverse

from gp4u.errors import BadInput, LedgerLocked, LedgerUnusable
from gp4u.rentals.database import (
    BUSY_S,
    VARIABLE,
    CommitLost,
    NotUnique,
    Query,
    Rows,
    Session,
    Statement,
)

CONNECTIONS: Final = 4
"""Kept open at most, besides the one that holds; readers wait for their turn."""
CONNECT_S: Final = 10.0
ANSWER_S: Final = 2 * BUSY_S
"""How long one statement may take; waiting for another writer takes `BUSY_S` at most."""
LOOK_S: Final = 5.0
"""Between two looks whether the session that holds still lives."""
GOODBYE_S: Final = 2.0
_WRITER, _HOLDER = 0x67703477, 0x67703468
"""Classes of our advisory locks; the second number of each tells schemas apart."""
_SHAPE: Final = "must be postgresql://USER:PASSWORD@HOST/DATABASE, special characters as %XX"
_dialect: Final = postgresql.dialect(paramstyle="numeric_dollar")  # type: ignore[no-untyped-call] # not annotated in SQLAlchemy


@asynccontextmanager
async def open_postgres(url: str) -> AsyncIterator[Postgres]:
    """Connect, and close everything in the end.

    Raises:
        BadInput: the URL cannot be read, or asyncpg is not installed.
        LedgerUnusable: there is no such server or database, or it does not let us in.
    """
    place = _Place(url)
    try:
        import asyncpg  # type: ignore[import-untyped] # it brings no types
    except ImportError:
        why = "needs the driver: pip install 'gp4u[postgres]'"
        raise BadInput(VARIABLE, place.name, why) from None
    database = Postgres(asyncpg, place)
    try:
        await database.find_schema()
        yield database
    finally:
        await database.aclose()


class _Place:
    """What a URL says, apart from what may be secret in it."""

    def __init__(self, url: str) -> None:
        """Read a URL.

        Raises:
            BadInput: it is none.
        """
        try:
            parts = urlsplit(url)
            port = f":{parts.port}" if parts.port else ""
        except ValueError:
            raise BadInput(VARIABLE, "postgresql:...", _SHAPE) from None
        asked = dict(parse_qsl(parts.query))
        self.url = url
        self.name = f"postgresql://{parts.hostname or asked.get('host', '')}{port}{parts.path}"
        given = [parts.password or "", asked.get("password", "")]
        self._secrets = [word for each in given for word in {each, unquote(each)} if word]

    def told(self, error: BaseException) -> str:
        """Return an error's text in one line, without the password."""
        text = "; ".join(str(error).split("\n")) or type(error).__name__
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text


class Postgres:
    """One database of one server; see `database.Database` for the methods."""

    def __init__(self, driver: Any, place: _Place) -> None:
        self._driver, self._place = driver, place
        self._troubles = (driver.PostgresError, driver.InterfaceError, OSError)
        self._turns = asyncio.Semaphore(CONNECTIONS)
        self._idle: list[Any] = []
        self._schema = 0
        self.name = place.name
        self.on_commit: Callable[[float], None] | None = None

    async def find_schema(self) -> None:
        """Learn in which schema the tables are: each has its own locks.

        Raises:
            BadInput: the URL cannot be read.
            LedgerUnusable: the server cannot be asked.
        """
        async with self._connection() as connection:
            try:
                name = await connection.fetchval("SELECT current_schema()")
            except self._troubles as error:
                raise self._unusable(error) from error
        if name is None:
            raise LedgerUnusable(f"the ledger {self.name}: the search path names no schema")
        self._schema = crc32(str(name).encode()) >> 1

    async def aclose(self) -> None:
        """Take leave of the server."""
        for connection in self._idle:
            with suppress(*self._troubles):
                await connection.close(timeout=GOODBYE_S)

    @asynccontextmanager
    async def writing(self, *, durable: bool = True) -> AsyncIterator[Session]:
        """See `Database`."""
        began = asyncio.get_running_loop().time()
        lock = f"SELECT pg_advisory_xact_lock({_WRITER}, {self._schema})"
        # Read committed: each statement sees what others committed before we got the lock.
        begin = f"BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; {lock}"
        if not durable:
            begin += "; SET LOCAL synchronous_commit = off"
        async with self._transaction(begin) as session:
            yield session
        if self.on_commit is not None:
            self.on_commit(asyncio.get_running_loop().time() - began)

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[Session]:
        """See `Database`."""
        begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
        async with self._transaction(begin) as session:
            yield session

    @asynccontextmanager
    async def hold(self) -> AsyncIterator[None]:
        """See `Database`."""
        connection = await self._connect(f"gp4u {os.getpid()} on {socket.gethostname()}")
        try:
            await self._take(connection)
            async with _while_watched(self._still_holds(connection)):
                yield
        finally:
            # The server frees it by itself; saying so spares the next holder that moment.
            with suppress(*self._troubles, TimeoutError):
                async with asyncio.timeout(GOODBYE_S):
                    await connection.execute("SELECT pg_advisory_unlock_all()")
            connection.terminate()

    async def _take(self, connection: Any) -> None:
        try:
            taken = await connection.fetchval(
                "SELECT pg_try_advisory_lock($1, $2)", _HOLDER, self._schema
            )
            holder = None if taken else await connection.fetchval(_WHO, _HOLDER, self._schema)
        except self._troubles as error:
            raise self._unusable(error) from error
        if not taken:
            raise LedgerLocked(self.name, str(holder or "").replace("gp4u ", "process ", 1))

    async def _still_holds(self, connection: Any) -> None:
        """Return never, unless the session that holds is lost.

        Raises:
            LedgerUnusable: it is.
        """
        lost = asyncio.Event()
        connection.add_termination_listener(lambda _: lost.set())
        while True:
            try:
                async with asyncio.timeout(LOOK_S):
                    await lost.wait()
                break
            except TimeoutError:
                pass
            try:
                await connection.execute("SELECT 1")
            except self._troubles:
                break
        raise LedgerUnusable(f"the ledger {self.name}: the session that held it was lost")

    @asynccontextmanager
    async def _transaction(self, begin: str) -> AsyncIterator[Session]:
        async with self._connection(begin) as connection:
            try:
                yield _PostgresSession(self, connection)
            except Exception:
                await self._roll_back(connection)
                raise
            await self._commit(connection)

    @asynccontextmanager
    async def _connection(self, begin: str = "") -> AsyncIterator[Any]:
        """Lend a connection, inside a new transaction if `begin` says so."""
        try:
            async with asyncio.timeout(CONNECT_S):
                await self._turns.acquire()
        except TimeoutError as error:
            raise LedgerUnusable(f"the ledger {self.name}: no connection is free") from error
        connection: Any = None
        try:
            connection = await self._begun(begin)
            yield connection
        except BaseException:
            # Cancelled in the middle, or broken: the server undoes what was not committed.
            alive = connection is not None and not connection.is_closed()
            if alive and connection.is_in_transaction():
                connection.terminate()
            raise
        finally:
            if connection is not None and not connection.is_closed():
                self._idle.append(connection)
            self._turns.release()

    async def _begun(self, begin: str) -> Any:
        """Return a connection; one that was lost while it was idle is replaced."""
        while True:
            was_idle = bool(self._idle)
            connection = self._idle.pop() if was_idle else await self._connect("gp4u")
            if connection.is_closed():
                continue
            try:
                if begin:
                    await connection.execute(begin)
            except BaseException as error:
                connection.terminate()
                if not isinstance(error, self._troubles):
                    raise
                if not (was_idle and self._is_loss(error)):
                    raise self._unusable(error) from error
            else:
                return connection

    async def _connect(self, name: str) -> Any:
        try:
            connection = await self._driver.connect(
                self._place.url,
                timeout=CONNECT_S,
                command_timeout=ANSWER_S,
                server_settings=_server_settings(name),
            )
            await connection.execute(_DURABLE)
        except ValueError:  # its text may quote the password
            raise BadInput(VARIABLE, self.name, _SHAPE) from None
        except self._troubles as error:
            raise self._unusable(error) from error
        return connection

    async def _commit(self, connection: Any) -> None:
        try:
            ended = await connection.execute("COMMIT")
        except self._troubles as error:
            connection.terminate()
            why = f"{self._place.told(error)}; whether it was written is not known"
            raise CommitLost(f"the ledger {self.name}: {why}") from error
        if ended != "COMMIT":
            raise LedgerUnusable(f"the ledger {self.name}: the server said {ended}")

    async def _roll_back(self, connection: Any) -> None:
        try:
            await connection.execute("ROLLBACK")
        except self._troubles:
            connection.terminate()  # the server does it by itself

    def _is_loss(self, error: BaseException) -> bool:
        lost = (
            self._driver.PostgresConnectionError,
            self._driver.InterfaceError,
            self._driver.OperatorInterventionError,  # the server stops, or was told to end us
            ConnectionError,
        )
        return isinstance(error, lost)

    def _unusable(self, error: BaseException) -> LedgerUnusable:
        kind = NotUnique if isinstance(error, self._driver.UniqueViolationError) else LedgerUnusable
        return kind(f"the ledger {self.name}: {self._place.told(error)}")

    async def run(
        self,
        connection: Any,
        statement: Statement,
        many: Sequence[Mapping[str, object]] | None,
        given: Mapping[str, object] | None,
    ) -> Rows:
        """Execute one statement, with `given` for its parameters.

        Raises:
            LedgerUnusable: the server declined, or cannot be reached.
        """
        text, names, values, answers = _spelled(statement, many, given)
        try:
            if many is not None:
                rows = [tuple(_plain(row[name]) for name in names) for row in many]
                await connection.executemany(text, rows)
                return Rows((), len(rows))
            arguments = [_plain(values[name]) for name in names]
            if answers:
                found = await connection.fetch(text, *arguments)
                return Rows(found, len(found))
            status = await connection.execute(text, *arguments)
        except self._troubles as error:
            raise self._unusable(error) from error
        count = status.rpartition(" ")[2]
        return Rows((), int(count) if count.isdecimal() else 0)


class _PostgresSession:
    def __init__(self, database: Postgres, connection: Any) -> None:
        self._database, self._connection = database, connection

    async def execute(
        self,
        statement: Statement,
        many: Sequence[Mapping[str, object]] | None = None,
        *,
        values: Mapping[str, object] | None = None,
    ) -> Rows:
        if many is not None and not many:
            return Rows((), 0)
        return await self._database.run(self._connection, statement, many, values)


_DURABLE: Final = """
SELECT set_config('synchronous_commit', 'on', false)
WHERE current_setting('synchronous_commit') = 'off'
"""
"""An intent must survive a crash of the server, whatever the role or the server has chosen."""
_WHO: Final = """
SELECT a.application_name FROM pg_locks l JOIN pg_stat_activity a USING (pid)
WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 2
  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND l.classid::bigint = $1::bigint AND l.objid::bigint = $2::bigint
"""
"""What the session that holds a lock says of itself."""


def _server_settings(name: str) -> dict[str, str]:
    ms = str(int(BUSY_S * 1000))
    return {
        "application_name": name[:63],
        "lock_timeout": ms,
        # A process that hangs in the middle must not keep every other one from writing.
        "idle_in_transaction_session_timeout": str(int(4 * BUSY_S * 1000)),
        "tcp_keepalives_idle": "15",
        "tcp_keepalives_interval": "5",
        "tcp_keepalives_count": "3",
    }


def _spelled(
    statement: Statement,
    many: Sequence[Mapping[str, object]] | None,
    given: Mapping[str, object] | None,
) -> tuple[str, Sequence[str], Mapping[str, object], bool]:
    """Return the text, its parameters in order, their values, and whether it brings rows."""
    if isinstance(statement, ExecutableDDLElement):
        return str(statement.compile(dialect=_dialect)), (), {}, False
    compiled = _bound(statement, given or {}).compile(
        dialect=_dialect,
        column_keys=list(many[0]) if many else None,
        compile_kwargs={"render_postcompile": True},
    )
    assert isinstance(compiled, SQLCompiler)  # noqa: S101 - and DDL is handled above
    answers = not isinstance(statement, UpdateBase) or bool(compiled.effective_returning)
    return compiled.string, compiled.positiontup or (), compiled.params, answers


def _bound(statement: Query, given: Mapping[str, object]) -> Query:
    """Return a statement with the values of its columns and of its parameters in it."""
    columns: Mapping[str, object] = {}
    if isinstance(statement, sa.Insert | sa.Update):
        columns = {name: given[name] for name in given if name in statement.table.c}
        statement = statement.values(**columns)
    named = {name: given[name] for name in given if name not in columns}

    def give(parameter: sa.BindParameter[Any]) -> None:
        if parameter.key in named:
            parameter.value, parameter.required = named[parameter.key], False

    return cloned_traverse(statement, {}, {"bindparam": give}) if named else statement


def _plain(value: object) -> object:
    """Return a value that PostgreSQL can store: its texts have no NUL."""
    return value.replace("\x00", "\ufffd") if isinstance(value, str) else value


@asynccontextmanager
async def _while_watched(watch: Any) -> AsyncIterator[None]:
    """Cancel the block when `watch` fails, and fail as it did."""
    failure: Exception | None = None
    try:
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(watch)
            try:
                yield
            except Exception as error:  # noqa: BLE001 - raised again, outside of the group
                failure = error
            finally:
                watching.cancel()
    except ExceptionGroup as found:
        raise found.exceptions[0] from None
    if failure is not None:
        raise failure
