"""The two databases that can hold a ledger, behind one way to ask them.

A `Database` gives sessions that execute SQLAlchemy Core statements: `writing()` for changes,
`reading()` for a consistent look. Whichever it is, one writer works at a time, what a `writing()`
block did is durable when the block ends, and a block that raises leaves nothing behind. Failures
are told as `LedgerUnusable`; text of the database's URL that may be secret is in none of them.

SQLite runs in the loop's own thread: nothing here really waits, so the same run does the same
things in the same order, and a commit takes 0.2 ms. PostgreSQL is in `postgres.py`, and is loaded
only for a ledger that is there. What is asked is for `ledger.py` and `history.py` to say; which
tables there are, `schema.py` says.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Protocol

import sqlalchemy as sa
from msgspec import Struct
from sqlalchemy.dialects import sqlite
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.schema import ExecutableDDLElement
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.dml import UpdateBase

from gp4u.errors import BadInput, LedgerLocked, LedgerUnusable

BUSY_S: Final = 5.0
"""How long a statement waits for another process's transaction before it fails."""
VARIABLE: Final = "GP4U_DATABASE_URL"
POSTGRES: Final = ("postgresql://", "postgres://")

Query = sa.Select[Any] | UpdateBase | sa.TextClause
Statement = Query | ExecutableDDLElement
"""What a session executes: Core, so that it can be spelled for either database."""


class NotUnique(LedgerUnusable):
    """A unique index refused a row; nothing was written."""


class CommitLost(LedgerUnusable):
    """The connection broke while a commit was under way: it was written, or it was not.

    Whoever reads again inside `writing()` sees which: by then the lost commit has ended.
    """


class Rows(Struct, frozen=True):
    """What a statement brought: rows as sequences, and how many it changed."""

    rows: Sequence[Sequence[Any]]
    changed: int

    def scalar(self) -> Any:
        """Return the first column of the first row, or None."""
        return self.rows[0][0] if self.rows else None

    def scalars(self) -> list[Any]:
        """Return the first column of every row."""
        return [row[0] for row in self.rows]


class Session(Protocol):
    """What is inside a `writing()` or `reading()` block."""

    async def execute(
        self,
        statement: Statement,
        many: Sequence[Mapping[str, object]] | None = None,
        *,
        values: Mapping[str, object] | None = None,
    ) -> Rows:
        """Run a statement, with `values` for all of its parameters, by name or column.

        A statement with `values` is built once and run often; what it compiles to is kept. With
        `many` it is run once for each mapping of column to value.

        Raises:
            LedgerUnusable: it failed; leave the block.
        """


class Database(Protocol):
    """Where a ledger lives."""

    name: str
    """For people; without anything secret."""
    on_commit: Callable[[float], None] | None
    """Told after each committed `writing()` how many seconds it took; it must not raise."""

    def writing(self, *, durable: bool = True) -> AbstractAsyncContextManager[Session]:
        """Be the one writer; what was done is durable when the block ends.

        With `durable` False it may be lost to a power cut, never to the end of this process, until
        something durable is written after it. What others read meanwhile may not be durable yet.

        Raises:
            LedgerUnusable: it could not be begun or ended, and nothing was written; or it was, and
                the disk failed.
            CommitLost: nobody knows whether it was written.
        """

    def reading(self) -> AbstractAsyncContextManager[Session]:
        """Look at one moment's state.

        Raises:
            LedgerUnusable: it cannot be read.
        """

    def hold(self) -> AbstractAsyncContextManager[None]:
        """Be the one process that holds this database, until the block ends or we die.

        Raises:
            LedgerLocked: another process holds it.
            LedgerUnusable: it cannot be asked, or holding it was lost on the way.
        """


@asynccontextmanager
async def open_database(url: str) -> AsyncIterator[Database]:
    """Open the database at a URL: `sqlite:///PATH`, `sqlite://` (in memory), `postgresql://...`.

    Raises:
        BadInput: no URL of a database that is served, or what serves it is not installed.
        LedgerUnusable: it cannot be opened.
    """
    if url.startswith(POSTGRES):
        from gp4u.rentals.postgres import open_postgres  # only for who has one

        async with open_postgres(url) as postgres:
            yield postgres
        return
    database = Sqlite(_path_in(url))
    try:
        await database.check()
        yield database
    finally:
        database.engine.dispose()


class Sqlite:
    """A file, or memory where there is no path; used from the loop's own thread alone.

    Only the wait for the disk is made in another one: see `flush`.
    """

    def __init__(self, path: Path | None) -> None:
        """Make the file's folder where there is none.

        Raises:
            LedgerUnusable: it cannot be made.
        """
        # SQLite follows links: its log is beside the file itself, and our lock has to be there too.
        self.path = path = path and Path(os.path.realpath(path))
        self.name = str(path or "in memory")
        self.on_commit: Callable[[float], None] | None = None
        self._committed = self._on_disk = 0
        """How many writes were committed, and how many of them are known to be on disk."""
        self._at_disk = asyncio.Lock()
        if path is not None:
            try:
                path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            except OSError as error:
                raise LedgerUnusable(f"the ledger's folder {path.parent}: {error}") from error
        self.engine = _engine(path)

    async def check(self) -> None:
        """See that the file is sound, and nobody else's to read.

        Raises:
            LedgerUnusable: it is corrupt, or cannot be opened.
        """
        async with self.reading() as session:
            verdict = (await session.execute(sa.text("PRAGMA quick_check"))).scalar()
        if verdict != "ok":
            raise LedgerUnusable(f"the ledger is corrupt: {verdict}")
        if self.path is not None:
            with self._told():
                self.path.chmod(0o600)

    @asynccontextmanager
    async def writing(self, *, durable: bool = True) -> AsyncIterator[Session]:
        """See `Database`."""
        began = asyncio.get_running_loop().time()
        with self._translated(), self.engine.begin() as connection:
            yield _SqliteSession(connection)
        self._committed += 1
        if durable and self.path is not None:
            await self._wait_for_disk(self.path, self._committed)
        if self.on_commit is not None:
            self.on_commit(asyncio.get_running_loop().time() - began)

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[Session]:
        """See `Database`."""
        with (
            self._translated(),
            self.engine.connect().execution_options(reading=True) as connection,
        ):
            yield _SqliteSession(connection)

    @asynccontextmanager
    async def hold(self) -> AsyncIterator[None]:
        """See `Database`; the lock is the kernel's, on a file beside the ledger."""
        if self.path is None:
            yield
            return
        lock = self.path.with_name(self.path.name + ".lock")
        with self._told():
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            with self._told():
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    holder = os.pread(descriptor, 100, 0).decode(errors="replace").strip()
                    raise LedgerLocked(self.name, holder) from None
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, f"process {os.getpid()}".encode(), 0)
            yield
        finally:
            os.close(descriptor)

    async def _wait_for_disk(self, path: Path, committed: int) -> None:
        """Return once so many commits are on disk; one wait serves all who came before it began."""
        async with self._at_disk:
            if self._on_disk >= committed:
                return
            now = self._committed
            loop = asyncio.get_running_loop()
            try:
                await loop.run_in_executor(None, flush, path, not self._on_disk)
            except OSError as error:
                raise LedgerUnusable(
                    f"the ledger {self.name} did not get to disk: {error}"
                ) from error
            self._on_disk = now

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Tell what the file system declines as trouble with the ledger."""
        try:
            yield
        except OSError as error:
            raise LedgerUnusable(f"the ledger {self.name}: {error}") from error

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sa.exc.IntegrityError as error:
            raise NotUnique(f"the ledger {self.name}: {error.orig}") from error
        except sa.exc.DatabaseError as error:
            raise LedgerUnusable(f"the ledger {self.name}: {error.orig}") from error


class _SqliteSession:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def execute(
        self,
        statement: Statement,
        many: Sequence[Mapping[str, object]] | None = None,
        *,
        values: Mapping[str, object] | None = None,
    ) -> Rows:
        if many is not None and not many:
            return Rows((), 0)
        if values is None:
            done = self._connection.execute(statement, many)
        else:
            text, names = _spelled(statement, tuple(values))
            done = self._connection.exec_driver_sql(text, tuple(values[name] for name in names))
        if done.returns_rows:
            rows = done.all()
            return Rows(rows, len(rows))
        return Rows((), done.rowcount)


def flush(path: Path, first: bool) -> None:
    """Wait until all that was committed to a database with a write-ahead log is on disk; blocks.

    It is what SQLite does within each commit at `synchronous=FULL`. The first time the folder is
    waited for as well, which has to know the files.

    Source: sqlite.org, Write-Ahead Logging and PRAGMA synchronous; checked 2026-11.

    Raises:
        OSError: the disk failed.
    """
    for each in (path.with_name(f"{path.name}-wal"), *((path.parent,) if first else ())):
        try:
            descriptor = os.open(each, os.O_RDONLY)
        except FileNotFoundError:
            continue  # a file system without shared memory: SQLite keeps no such log there
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@lru_cache(maxsize=64)
def _spelled(statement: Query, columns: tuple[str, ...]) -> tuple[str, Sequence[str]]:
    """Return the text of a statement that is run again and again, and the order of its values."""
    compiled = statement.compile(dialect=sqlite.dialect(), column_keys=list(columns))
    assert isinstance(compiled, SQLCompiler)  # noqa: S101 - each query is compiled to text
    return compiled.string, compiled.positiontup or ()


def _path_in(url: str) -> Path | None:
    if url in ("sqlite://", "sqlite:///:memory:"):
        return None
    if not url.startswith("sqlite:///"):
        scheme = url.split(":", 1)[0]
        raise BadInput(
            VARIABLE,
            f"{scheme}:...",
            "must be sqlite:///PATH (an absolute path: 4 slashes) or "
            "postgresql://USER:PASSWORD@HOST/DATABASE",
        )
    return Path(url.removeprefix("sqlite:///")).expanduser()


def _engine(path: Path | None) -> Engine:
    engine = sa.create_engine(
        "sqlite://" if path is None else f"sqlite:///{path}",
        poolclass=sa.pool.StaticPool,
        connect_args={"timeout": BUSY_S, "check_same_thread": False},
    )

    @sa.event.listens_for(engine, "connect")
    def set_up(connection: sa.engine.interfaces.DBAPIConnection, _record: object) -> None:
        connection.isolation_level = None  # BEGIN is ours: the driver's own would be deferred
        cursor = connection.cursor()
        # With a log ahead, whoever has to wait for the disk does so in `flush`.
        ahead = cursor.execute("PRAGMA journal_mode=WAL").fetchone() == ("wal",)
        cursor.execute(f"PRAGMA synchronous={'NORMAL' if ahead else 'FULL'}")
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.close()

    @sa.event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # A reader takes no write lock; a writer takes it at once, since upgrading can deadlock.
        reading = connection.get_execution_options().get("reading", False)
        connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")

    return engine
