"""The ledger: what we rented, why, and what became of it. The only SQL of the project.

Five tables: `installation` (who we are), `accounts` (which account each key is of), `rentals` (one
row each, the newest state), `events` (every move, append only) and `decisions` (the explained
choice behind each intent). Statements are SQLAlchemy Core, so that the same ones serve PostgreSQL;
here they run on SQLite, in the loop's own thread: one writer, deterministic, and a commit of 0.2
ms. Methods are coroutines because the other database will need it.

What it promises:

- An intent is on disk (`synchronous=FULL`) when `intend` returns.
- One live rental per owner, by a partial unique index and not by a check in Python.
- A move is written only over the version and epoch that it was made from (`StaleRental` otherwise),
  so any number of processes may share one ledger.
- Several processes may read and move; only one may be the loop that reconciles (`hold`).
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import hmac
import os
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime
from pathlib import Path
from random import Random
from typing import Final

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from gp4u.errors import BadInput, LedgerLocked, LedgerUnusable, OwnerHasRental, StaleRental
from gp4u.model import RentalKey
from gp4u.rentals.rental import (
    LIVE,
    Rental,
    RentalState,
    is_foreign_key,
    key_in,
    mint_key,
)

SCHEMA_VERSION: Final = 1
BUSY_S: Final = 5.0
"""How long a statement waits for another process's transaction before it fails."""

_meta = sa.MetaData()
_installation = sa.Table(
    "installation",
    _meta,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("secret", sa.LargeBinary, nullable=False),
    sa.Column("schema_version", sa.Integer, nullable=False),
    sa.Column("epoch", sa.Integer, nullable=False),
)
_rentals = sa.Table(
    "rentals",
    _meta,
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("provider", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("epoch", sa.Integer, nullable=False),
    sa.Column("instance_id", sa.Text),
    sa.Column("intended_at", sa.Text, nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
    sa.CheckConstraint(
        "state IN ('intended','starting','running','releasing','released')", name="known_state"
    ),
)
_one_live = sa.text("state IN ('intended', 'starting', 'running')")
sa.Index(
    "one_live_rental_per_owner",
    _rentals.c.owner,
    unique=True,
    sqlite_where=_one_live,
    postgresql_where=_one_live,
)
sa.Index("rentals_by_state", _rentals.c.state)
_events = sa.Table(
    "events",
    _meta,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("key", sa.Text, nullable=False, index=True),
    sa.Column("at", sa.Text, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("text", sa.Text, nullable=False),
)
_accounts = sa.Table(
    "accounts",
    _meta,
    sa.Column("provider", sa.Text, primary_key=True),
    sa.Column("login", sa.LargeBinary, primary_key=True),
    sa.Column("account", sa.Text, nullable=False),
)
_decisions = sa.Table(
    "decisions",
    _meta,
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("at", sa.Text, nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
)


class LedgerEvent(msgspec.Struct, frozen=True):
    """One line of a rental's history."""

    at: datetime
    kind: str
    text: str


class Ledger:
    """Rentals on disk; see the module's docstring for what it promises."""

    def __init__(
        self, engine: Engine, path: Path | None, *, installation: str, secret: bytes
    ) -> None:
        self._engine, self._path = engine, path
        self._secret = secret
        self.installation = installation
        self.epoch = 1

    def mint(self, random: Random) -> RentalKey:
        """Return a new key of this installation."""
        return mint_key(self.installation, self._secret, random)

    def key_in(self, label: str | None) -> RentalKey | None:
        """Return our key at the start of a provider's label, or None if this one is not ours."""
        return key_in(label, self.installation, self._secret)

    def is_foreign(self, label: str | None) -> bool:
        """Whether a label carries a key of this software that another installation made."""
        return is_foreign_key(label, self.installation, self._secret)

    async def account_of(self, provider: str, login: str) -> str | None:
        """Return which account a login belongs to, or None where that was never asked."""
        with self._reading() as db:
            return db.execute(
                sa.select(_accounts.c.account).where(
                    _accounts.c.provider == provider, _accounts.c.login == self._print(login)
                )
            ).scalar()

    async def remember_account(self, provider: str, login: str, account: str) -> None:
        """Remember which account a login belongs to. Of the login itself only a digest is kept."""
        with self._transaction() as db:
            known = sa.and_(
                _accounts.c.provider == provider, _accounts.c.login == self._print(login)
            )
            db.execute(sa.delete(_accounts).where(known))
            db.execute(
                sa.insert(_accounts).values(
                    provider=provider, login=self._print(login), account=account
                )
            )

    async def intend(self, rental: Rental, decision: bytes) -> None:
        """Put an intent and the decision behind it on disk, durably, before money moves.

        Raises:
            OwnerHasRental: the owner already has a live rental.
            LedgerUnusable: it could not be written, so nothing may be rented.
        """
        with self._transaction() as db:
            live = db.execute(
                sa.select(_rentals.c.key).where(
                    _rentals.c.owner == rental.owner, _rentals.c.state.in_([s.value for s in LIVE])
                )
            ).scalar()
            if live is not None:
                raise OwnerHasRental(rental.owner, RentalKey(live))
            db.execute(sa.insert(_rentals).values(**_row(rental)))
            db.execute(
                sa.insert(_decisions).values(
                    key=rental.key, at=rental.intended_at.isoformat(), body=decision
                )
            )
            self._note(
                db,
                rental.key,
                rental.intended_at,
                "intended",
                f"{rental.provider} offer {rental.offer_id} at ${rental.price_usd_per_hour:.4f}/h",
            )

    async def move(
        self, before: Rental, after: Rental, *, at: datetime, kind: str = "", text: str = ""
    ) -> Rental:
        """Write a move over exactly the version it was made from; return `after`.

        Raises:
            StaleRental: the row changed since `before` was read, or the epoch is over.
        """
        with self._transaction() as db:
            written = db.execute(
                sa.update(_rentals)
                .where(
                    _rentals.c.key == before.key,
                    _rentals.c.version == before.version,
                    _rentals.c.epoch == before.epoch,
                )
                .values(**_row(after))
            )
            if written.rowcount != 1:
                raise StaleRental(f"{before.key}: version {before.version} is not the newest")
            if after.state is not before.state:
                self._note(db, after.key, at, kind or after.state.value, text or after.reason)
            elif kind:
                self._note(db, after.key, at, kind, text)
        return after

    async def note(self, key: str, kind: str, text: str, *, at: datetime) -> None:
        """Add a line to a rental's history that is not a move."""
        with self._transaction() as db:
            self._note(db, key, at, kind, text)

    async def get(self, key: str) -> Rental | None:
        """Return the rental with this key, or None."""
        with self._reading() as db:
            body = db.execute(sa.select(_rentals.c.body).where(_rentals.c.key == key)).scalar()
        return None if body is None else _decode(body)

    async def find(self, word: str) -> list[Rental]:
        """Return the rentals that a person may mean: by key, start of key, owner, or instance id.

        An exact key wins alone; open rentals come before released ones, newest first.
        """
        exact = await self.get(word)
        if exact is not None:
            return [exact]
        owned = [word, f"cli:{word}"]
        with self._reading() as db:
            bodies = db.execute(
                sa.select(_rentals.c.body)
                .where(
                    sa.or_(
                        _rentals.c.key.startswith(word, autoescape=True),
                        _rentals.c.owner.in_(owned),
                        _rentals.c.instance_id == word,
                    )
                )
                .order_by(_rentals.c.intended_at.desc())
            ).scalars()
            found = [_decode(body) for body in bodies]
        return [r for r in found if r.is_open] or found

    async def open_rentals(self, provider: str | None = None) -> list[Rental]:
        """Return every rental that may still cost money, oldest first."""
        return self._where(_rentals.c.state != RentalState.RELEASED.value, provider)

    async def all_rentals(self, *, limit: int = 100) -> list[Rental]:
        """Return the newest rentals of any state, newest first."""
        with self._reading() as db:
            bodies = db.execute(
                sa.select(_rentals.c.body).order_by(_rentals.c.intended_at.desc()).limit(limit)
            ).scalars()
            return [_decode(body) for body in bodies]

    async def every_rental(self) -> list[Rental]:
        """Return all rentals there ever were, oldest first."""
        return self._where(sa.true(), None)

    async def events(self, key: str) -> list[LedgerEvent]:
        """Return a rental's history, oldest first."""
        with self._reading() as db:
            rows = db.execute(
                sa.select(_events.c.at, _events.c.kind, _events.c.text)
                .where(_events.c.key == key)
                .order_by(_events.c.id)
            )
            return [LedgerEvent(datetime.fromisoformat(at), kind, text) for at, kind, text in rows]

    async def decision(self, key: str) -> bytes | None:
        """Return the stored decision (JSON) behind a rental, or None."""
        with self._reading() as db:
            return db.execute(sa.select(_decisions.c.body).where(_decisions.c.key == key)).scalar()

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Be the one process whose loop reconciles this ledger, until the block ends or we die.

        Raises:
            LedgerLocked: another process holds it.
        """
        if self._path is None:
            yield
            return
        lock = self._path.with_name(self._path.name + ".lock")
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.pread(descriptor, 100, 0).decode(errors="replace").strip()
                raise LedgerLocked(str(self._path), holder) from None
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()}".encode(), 0)
            yield
        finally:
            os.close(descriptor)

    def _print(self, login: str) -> bytes:
        return hmac.new(self._secret, login.encode(), hashlib.sha256).digest()

    def _where(self, condition: sa.ColumnElement[bool], provider: str | None) -> list[Rental]:
        query = sa.select(_rentals.c.body).where(condition).order_by(_rentals.c.intended_at)
        if provider is not None:
            query = query.where(_rentals.c.provider == provider)
        with self._reading() as db:
            return [_decode(body) for body in db.execute(query).scalars()]

    def _note(self, db: Connection, key: str, at: datetime, kind: str, text: str) -> None:
        db.execute(sa.insert(_events).values(key=key, at=at.isoformat(), kind=kind, text=text))

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        with _translated(self._path), self._engine.begin() as db:
            yield db

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        with (
            _translated(self._path),
            self._engine.connect().execution_options(reading=True) as db,
        ):
            yield db


@asynccontextmanager
async def open_ledger(
    url: str, *, installation_secret: bytes | None = None
) -> AsyncIterator[Ledger]:
    """Open (and make, where there is none) the ledger at a database URL.

    Raises:
        BadInput: the URL names a database that this version does not serve.
        LedgerUnusable: corrupt, unreadable, or written by a newer version.
    """
    path = _sqlite_path(url)
    if path is not None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise LedgerUnusable(f"the ledger's folder {path.parent}: {error}") from error
    engine = _sqlite_engine(path)
    try:
        with _translated(path):
            installation, secret = _prepare(engine, installation_secret)
        if path is not None:
            path.chmod(0o600)
        yield Ledger(engine, path, installation=installation, secret=secret)
    finally:
        engine.dispose()


def _sqlite_path(url: str) -> Path | None:
    if url in ("sqlite://", "sqlite:///:memory:"):
        return None
    if not url.startswith("sqlite:///"):
        scheme = url.split(":", 1)[0]
        raise BadInput(
            "GP4U_DATABASE_URL",
            f"{scheme}:...",
            "must be sqlite:///PATH (an absolute path: 4 slashes)",
        )
    return Path(url.removeprefix("sqlite:///")).expanduser()


def _sqlite_engine(path: Path | None) -> Engine:
    engine = sa.create_engine(
        "sqlite://" if path is None else f"sqlite:///{path}",
        poolclass=sa.pool.StaticPool,
        connect_args={"timeout": BUSY_S, "check_same_thread": False},
    )

    @sa.event.listens_for(engine, "connect")
    def set_up(connection: sa.engine.interfaces.DBAPIConnection, _record: object) -> None:
        connection.isolation_level = None  # BEGIN is ours: the driver's own would be deferred
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=FULL")  # an intent must survive a power cut
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.close()

    @sa.event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # A reader takes no write lock; a writer takes it at once, since upgrading can deadlock.
        reading = connection.get_execution_options().get("reading", False)
        connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")

    return engine


def _prepare(engine: Engine, given: bytes | None) -> tuple[str, bytes]:
    with engine.begin() as db:
        verdict = db.exec_driver_sql("PRAGMA quick_check").scalar()
        if verdict != "ok":
            raise LedgerUnusable(f"the ledger is corrupt: {verdict}")
        _meta.create_all(db)
        row = db.execute(sa.select(_installation)).one_or_none()
        if row is None:
            installation, secret = _new_installation(given)
            db.execute(
                sa.insert(_installation).values(
                    id=installation, secret=secret, schema_version=SCHEMA_VERSION, epoch=1
                )
            )
            return installation, secret
        if row.schema_version > SCHEMA_VERSION:
            raise LedgerUnusable(
                f"the ledger has schema {row.schema_version}, this version knows {SCHEMA_VERSION}"
            )
        if given is not None and given != row.secret:
            raise BadInput(
                "GP4U_INSTALLATION_SECRET", "***", "must be the one this ledger was made with"
            )
        return row.id, row.secret


def _new_installation(given: bytes | None) -> tuple[str, bytes]:
    # With a given secret the same installation comes back after the ledger was lost, and its
    # machines are recognised as its own.
    secret = given or secrets.token_bytes(32)
    digest = hashlib.sha256(b"gp4u installation" + secret).digest()
    return base64.b32encode(digest).decode().lower()[:6], secret


@contextmanager
def _translated(path: Path | None) -> Iterator[None]:
    try:
        yield
    except sa.exc.IntegrityError as error:
        if "rentals.owner" in str(error.orig):
            raise OwnerHasRental("", RentalKey("?")) from error
        raise LedgerUnusable(f"the ledger {path or 'in memory'}: {error.orig}") from error
    except sa.exc.DatabaseError as error:
        raise LedgerUnusable(f"the ledger {path or 'in memory'}: {error.orig}") from error


def _row(rental: Rental) -> dict[str, object]:
    return {
        "key": rental.key,
        "owner": rental.owner,
        "provider": rental.provider,
        "state": rental.state.value,
        "version": rental.version,
        "epoch": rental.epoch,
        "instance_id": rental.instance_id,
        "intended_at": rental.intended_at.isoformat(),
        "body": msgspec.json.encode(rental),
    }


_decoder = msgspec.json.Decoder(Rental)


def _decode(body: bytes) -> Rental:
    return _decoder.decode(body)
