"""The ledger: what we rented, why, and what became of it.

What it promises, on either database:

- An intent is on disk when `intend` returns, and within the budget.
- One live rental per owner, by a partial unique index and not by a check in Python.
- A move is written only over the version and epoch that it was made from (`StaleRental` otherwise),
  so any number of processes may share one ledger.
- Several processes may read and move; only one may be the loop that reconciles (`hold`). Each that
  becomes it begins a new epoch, and whoever held an earlier one can neither intend nor move any
  more (`Fenced`), however late it notices that it was replaced.
- Where the commit of an intent or a move was lost on its way, the row is read again: what is told
  is what is on disk, or that nobody could tell.

How a database is spoken to is in `database.py`, which tables there are in `schema.py`. What was
asked with an idempotency key, and decisions that led to no rental, are kept by `requests.py`.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from random import Random
from typing import Any, Final, NamedTuple, TypeVar

import msgspec
import sqlalchemy as sa

from gp4u.errors import BadInput, Fenced, LedgerUnusable, OwnerHasRental, StaleRental
from gp4u.model import RentalKey
from gp4u.rentals import requests, schema
from gp4u.rentals.budget import DAY, UNBOUND, Budget
from gp4u.rentals.database import CommitLost, Database, NotUnique, Session, open_database
from gp4u.rentals.rental import (
    Rental,
    RentalState,
    is_foreign_key,
    key_in,
    mint_key,
)
from gp4u.rentals.requests import Begun
from gp4u.rentals.schema import accounts, decisions, events, installation, kept_decisions, rentals

T = TypeVar("T")


class LedgerEvent(msgspec.Struct, frozen=True):
    """One line of a rental's history."""

    at: datetime
    kind: str
    text: str


class LedgerMove(NamedTuple):
    """One line of everybody's history; `id` grows with each."""

    id: int
    key: str
    at: datetime
    kind: str
    text: str


Hear = Callable[[int, str, datetime, str, str], None]
"""Takes id, key, at, kind and text of an event."""


class Ledger:
    """Rentals on disk; see the module's docstring for what it promises."""

    def __init__(self, database: Database, *, installation: str, secret: bytes) -> None:
        self.database, self._secret = database, secret
        self.installation = installation
        self.epoch = 1
        self.on_event: Hear | None = None
        """Called after the commit with each event that this process wrote; it must not raise."""
        self._leads = False
        """Whether this process has held the ledger: from then on only its own epoch will do."""
        self._runner = secrets.token_hex(8)
        self._requests: set[str] = set()
        """Idempotency keys that this process is at work on."""
        self._holding = False

    def mint(self, random: Random) -> RentalKey:
        """Return a new key of this installation."""
        return mint_key(self.installation, self._secret, random)

    def key_in(self, label: str | None) -> RentalKey | None:
        """Return our key at the start of a provider's label, or None if this one is not ours."""
        return key_in(label, self.installation, self._secret)

    def is_foreign(self, label: str | None) -> bool:
        """Whether a label carries a key of this software that another installation made."""
        return is_foreign_key(label, self.installation, self._secret)

    def signing_key(self, purpose: str) -> bytes:
        """Return a secret of this installation's for one purpose, the same after a restart."""
        return hmac.new(self._secret, f"gp4u {purpose}".encode(), hashlib.sha256).digest()

    async def account_of(self, provider: str, login: str) -> str | None:
        """Return which account a login belongs to, or None where that was never asked."""
        query = sa.select(accounts.c.account).where(
            accounts.c.provider == provider, accounts.c.login == self._print(login)
        )
        async with self.database.reading() as db:
            found: str | None = (await db.execute(query)).scalar()
        return found

    async def remember_account(self, provider: str, login: str, account: str) -> None:
        """Remember which account a login belongs to. Of the login itself only a digest is kept."""
        row = {"provider": provider, "login": self._print(login), "account": account}
        known = sa.and_(accounts.c.provider == provider, accounts.c.login == row["login"])
        async with self.database.writing() as db:
            await db.execute(sa.delete(accounts).where(known))
            await db.execute(sa.insert(accounts).values(**row))

    async def intend(
        self,
        rental: Rental,
        decision: bytes,
        *,
        budget: Budget = UNBOUND,
        note: tuple[str, str] | None = None,
    ) -> None:
        """Put an intent and the decision behind it on disk, durably, before money moves.

        `note` is a kind and a text for its history, which nobody then ever sees without it.

        Raises:
            OwnerHasRental: the owner already has a live rental.
            BudgetRefused: it would break the budget.
            Fenced: another process holds the ledger by now.
            LedgerUnusable: it could not be written, so nothing may be rented.
        """
        event = None
        try:
            async with self.database.writing() as db:
                await self._check_epoch(db)
                event = await _write_intent(db, rental, decision, budget)
                if note is not None:
                    await _note(db, rental.key, rental.intended_at, *note)
        except NotUnique:
            async with self.database.reading() as db:
                live = await _live_of(db, rental.owner)
            if live is None:
                raise
            raise OwnerHasRental(rental.owner, live) from None
        except CommitLost:
            if await self._reread(rental.key) is None:
                raise LedgerUnusable(f"{rental.key}: the intent was lost on its way") from None
        self._tell(event)

    async def move(
        self,
        before: Rental,
        after: Rental,
        *,
        at: datetime,
        kind: str = "",
        text: str = "",
        durable: bool = True,
    ) -> Rental:
        """Write a move over exactly the version it was made from; return `after`.

        `durable` False is for what any later listing would say again: it waits for no disk.

        Raises:
            StaleRental: the row changed since `before` was read.
            Fenced: another process holds the ledger by now.
            LedgerUnusable: it could not be written.
        """
        event = None
        if after.state is not before.state:
            kind, text = kind or after.state.value, text or after.reason
        try:
            async with self.database.writing(durable=durable) as db:
                await self._check_epoch(db)
                over = {"of": before.key, "was": before.version, "then": before.epoch}
                written = await db.execute(_MOVE, values={**_row(after), **over})
                if written.changed != 1:
                    raise StaleRental(f"{before.key}: version {before.version} is not the newest")
                if kind:
                    event = await _note(db, after.key, at, kind, text)
        except CommitLost:
            found = await self._reread(before.key)
            if found == before:
                raise LedgerUnusable(f"{before.key}: the move was lost on its way") from None
            if found != after:
                raise StaleRental(f"{before.key}: somebody moved it meanwhile") from None
        self._tell(event)
        return after

    async def note(self, key: str, kind: str, text: str, *, at: datetime) -> None:
        """Add a line to a rental's history that is not a move."""
        async with self.database.writing() as db:
            event = await _note(db, key, at, kind, text)
        self._tell(event)

    async def get(self, key: str) -> Rental | None:
        """Return the rental with this key, or None."""
        async with self.database.reading() as db:
            return await _get(db, key)

    async def find(self, word: str) -> list[Rental]:
        """Return the rentals that a person may mean: by key, start of key, owner, or instance id.

        An exact key wins alone; open rentals come before released ones, newest first.
        """
        exact = await self.get(word)
        if exact is not None:
            return [exact]
        owned = [word, f"cli:{word}"]
        found = await self._select(
            sa.select(rentals.c.body)
            .where(
                sa.or_(
                    rentals.c.key.startswith(word, autoescape=True),
                    rentals.c.owner.in_(owned),
                    rentals.c.instance_id == word,
                )
            )
            .order_by(rentals.c.intended_at.desc())
        )
        return [r for r in found if r.is_open] or found

    async def open_rentals(self, provider: str | None = None) -> list[Rental]:
        """Return every rental that may still cost money, oldest first."""
        # Named one by one: the index finds those, and steps over nothing of the past.
        query = sa.select(rentals.c.body).where(rentals.c.state.in_(_OPEN))
        if provider is not None:
            query = query.where(rentals.c.provider == provider)
        return await self._select(query.order_by(rentals.c.intended_at))

    async def all_rentals(self, *, limit: int = 100) -> list[Rental]:
        """Return the newest rentals of any state, newest first."""
        query = sa.select(rentals.c.body).order_by(rentals.c.intended_at.desc())
        return await self._select(query.limit(limit))

    async def rentals_page(
        self,
        *,
        limit: int,
        after: tuple[str, str] | None = None,
        open_only: bool = False,
        states: Collection[str] = (),
        provider: str | None = None,
        owner: str | None = None,
    ) -> list[Rental]:
        """Return at most `limit` rentals: open ones oldest first, else any, the newest first.

        `after` is (`intended_at` in ISO form, key) of the last rental of the page before.
        """
        place = sa.tuple_(rentals.c.intended_at, rentals.c.key)
        query = sa.select(rentals.c.body)
        if open_only:
            query = query.where(rentals.c.state != RentalState.RELEASED.value)
        if states:
            query = query.where(rentals.c.state.in_(states))
        for column, wanted in ((rentals.c.provider, provider), (rentals.c.owner, owner)):
            if wanted is not None:
                query = query.where(column == wanted)
        if after is not None:
            there = sa.tuple_(*map(sa.literal, after))
            query = query.where(place > there if open_only else place < there)
        order = (rentals.c.intended_at, rentals.c.key)
        by = order if open_only else [column.desc() for column in order]
        return await self._select(query.order_by(*by).limit(limit))

    async def every_rental(self) -> list[Rental]:
        """Return all rentals there ever were, oldest first."""
        return await self._select(sa.select(rentals.c.body).order_by(rentals.c.intended_at))

    async def ended_since(self, since: datetime, *, kind: str) -> list[tuple[Rental, str]]:
        """Return the rentals that are wanted no more and were open since then, in no order.

        Each comes with the newest line of that kind in its history; who has none is left out.
        """
        ours = sa.and_(events.c.key == rentals.c.key, events.c.kind == kind)
        newest = sa.select(sa.func.max(events.c.id)).where(ours).correlate(rentals)
        lately = sa.select((moves := events.alias()).c.key).where(moves.c.at >= since.isoformat())
        releasing = rentals.c.state == RentalState.RELEASING.value
        released = rentals.c.state == RentalState.RELEASED.value
        query = (
            sa.select(rentals.c.body, events.c.text)
            .join_from(rentals, events, events.c.id == newest.scalar_subquery())
            .where(sa.or_(releasing, sa.and_(released, rentals.c.key.in_(lately))))
        )
        async with self.database.reading() as db:
            found = await db.execute(query)
        return [(_decode(body), text) for body, text in found.rows]

    async def events(self, key: str) -> list[LedgerEvent]:
        """Return a rental's history, oldest first."""
        query = sa.select(events.c.at, events.c.kind, events.c.text).where(events.c.key == key)
        async with self.database.reading() as db:
            found = await db.execute(query.order_by(events.c.id))
        return [LedgerEvent(datetime.fromisoformat(at), kind, txt) for at, kind, txt in found.rows]

    async def events_after(self, event_id: int, limit: int) -> list[LedgerMove]:
        """Return at most `limit` events of all rentals that came after one, oldest first."""
        after = min(event_id, _LAST_EVENT)
        query = sa.select(*_EVENT).where(events.c.id > after).order_by(events.c.id).limit(limit)
        async with self.database.reading() as db:
            found = await db.execute(query)
        return [_move(row) for row in found.rows]

    async def newest_event(self) -> int:
        """Return the id of the newest event of any rental; 0 where there is none."""
        async with self.database.reading() as db:
            found = await db.execute(sa.select(sa.func.max(events.c.id)))
        return found.scalar() or 0

    async def decision(self, key: str) -> bytes | None:
        """Return the decision (JSON) behind a rental, or one that was kept by its id; or None."""
        async with self.database.reading() as db:
            for table, column in (
                (decisions, decisions.c.key),
                (kept_decisions, kept_decisions.c.id),
            ):
                found = await db.execute(sa.select(table.c.body).where(column == key))
                if found.rows:
                    return bytes(found.scalar())
        return None

    async def keep_decision(self, decision_id: str, body: bytes, at: datetime) -> None:
        """Keep a decision (JSON) that led to no rental, for a day; `decision` reads it."""

        async def write() -> None:
            async with self.database.writing() as db:
                await requests.keep_decision(db, decision_id, body, at=at)

        await _again_if_lost(write)

    async def begin_request(
        self, key: str, *, fingerprint: bytes, at: datetime, owner: str = ""
    ) -> Begun:
        """Take up a request with an idempotency key, or say where it stands.

        `owner` is whom it rents for. What is `new` has to be finished or abandoned by the caller.

        Raises:
            BadInput: the key came with another request before.
        """
        is_ours = key in self._requests

        async def write() -> Begun:
            async with self.database.writing() as db:
                return await requests.begin(
                    db,
                    key,
                    fingerprint=fingerprint,
                    owner=owner,
                    at=at,
                    runner=self._runner,
                    is_ours=is_ours,
                    alone=self._holding,
                )

        self._requests.add(key)  # at once: others see the row before it is on disk
        is_new = False
        try:
            begun = await _again_if_lost(write)
            is_new = begun.state == "new"
        finally:
            if not (is_new or is_ours):
                self._requests.discard(key)
        return begun

    async def finish_request(self, key: str, *, status: int, body: bytes, at: datetime) -> None:
        """Keep the reply to a request; whoever asks again gets it for a day."""

        async def write() -> None:
            async with self.database.writing() as db:
                await requests.finish(db, key, status=status, body=body, at=at)

        try:
            await _again_if_lost(write)
        finally:
            self._requests.discard(key)  # whatever came: nobody is at work on it any more

    async def abandon_request(self, key: str) -> None:
        """Forget a request that came to nothing and left nothing, so that it can be asked again."""
        try:
            async with self.database.writing() as db:
                await requests.abandon(db, key, runner=self._runner)
        finally:
            self._requests.discard(key)

    @asynccontextmanager
    async def hold(self) -> AsyncIterator[None]:
        """Be the one process whose loop reconciles this ledger, until the block ends or we die.

        Begins a new epoch: what an earlier holder still tries to write is refused.

        Raises:
            LedgerLocked: another process holds it.
            LedgerUnusable: the database was lost, and with it the hold.
        """
        async with self.database.hold():
            await self._begin_epoch()
            self._holding = True
            try:
                yield
            finally:
                self._holding = False

    async def _begin_epoch(self) -> None:
        async with self.database.writing() as db:
            self.epoch = await _epoch(db) + 1
            await db.execute(sa.update(installation).values(epoch=self.epoch))
        self._leads = True

    async def _check_epoch(self, db: Session) -> None:
        """Let nobody write whose epoch is over."""
        current = await _epoch(db)
        if self._leads and current != self.epoch:
            raise Fenced(f"epoch {self.epoch} is over: another process holds the ledger")
        self.epoch = current

    def _tell(self, event: LedgerMove | None) -> None:
        if event is not None and self.on_event is not None:
            self.on_event(*event)

    def _print(self, login: str) -> bytes:
        return hmac.new(self._secret, login.encode(), hashlib.sha256).digest()

    async def _select(self, query: sa.Select[tuple[bytes]]) -> list[Rental]:
        async with self.database.reading() as db:
            found = await db.execute(query)
        return [_decode(body) for body in found.scalars()]

    async def _reread(self, key: str) -> Rental | None:
        """Read a rental as the writer: what was under way before has ended by then."""
        async with self.database.writing() as db:
            return await _get(db, key)


@asynccontextmanager
async def open_ledger(
    url: str, *, installation_secret: bytes | None = None
) -> AsyncIterator[Ledger]:
    """Open (and make, where there is none) the ledger at a database URL.

    Raises:
        BadInput: the URL names a database that this version does not serve.
        LedgerUnusable: corrupt, unreadable, or written by a newer version.
    """
    async with open_database(url) as database:
        async with database.writing() as db:
            name, secret = await _prepare(db, installation_secret)
        yield Ledger(database, installation=name, secret=secret)


async def _prepare(db: Session, given: bytes | None) -> tuple[str, bytes]:
    """Bring the tables up to date; return the installation's name and secret."""
    await db.execute(schema.BEGINNING)
    columns = (installation.c.id, installation.c.secret, installation.c.schema_version)
    known = (await db.execute(sa.select(*columns))).rows
    name, secret, version = known[0] if known else (*_new_installation(given), 0)
    if version > schema.SCHEMA_VERSION:
        raise LedgerUnusable(
            f"the ledger has schema {version}, this version knows {schema.SCHEMA_VERSION}"
        )
    if given is not None and given != secret:
        raise BadInput(
            "GP4U_INSTALLATION_SECRET", "***", "must be the one this ledger was made with"
        )
    for step in schema.STEPS[version:]:
        for statement in step:
            await db.execute(statement)
    if not known:
        await db.execute(
            sa.insert(installation).values(
                id=name, secret=secret, schema_version=schema.SCHEMA_VERSION, epoch=1
            )
        )
    elif version < schema.SCHEMA_VERSION:
        await db.execute(sa.update(installation).values(schema_version=schema.SCHEMA_VERSION))
    return str(name), bytes(secret)


def _new_installation(given: bytes | None) -> tuple[str, bytes]:
    # With a given secret the same installation comes back after the ledger was lost, and its
    # machines are recognised as its own.
    secret = given or secrets.token_bytes(32)
    digest = hashlib.sha256(b"gp4u installation" + secret).digest()
    return base64.b32encode(digest).decode().lower()[:6], secret


# Built once: making such a statement anew takes longer than running it.
_OPEN: Final = [each.value for each in RentalState if each is not RentalState.RELEASED]
_EPOCH: Final = sa.select(installation.c.epoch)
_GET: Final = sa.select(rentals.c.body).where(rentals.c.key == sa.bindparam("of"))
_LIVE_OF: Final = sa.select(rentals.c.key).where(
    rentals.c.owner == sa.bindparam("of"),
    schema.ONE_LIVE,  # in the index's own words, or it would not be used
)
_MOVE: Final = sa.update(rentals).where(
    rentals.c.key == sa.bindparam("of"),
    rentals.c.version == sa.bindparam("was"),
    rentals.c.epoch == sa.bindparam("then"),
)
_INTEND: Final = sa.insert(rentals)
_DECIDE: Final = sa.insert(decisions)
_NOTE: Final = sa.insert(events).returning(events.c.id)
_LAST_EVENT: Final = 2**31 - 1
"""No id is above it; PostgreSQL takes no larger number for one."""
_EVENT = (events.c.id, events.c.key, events.c.at, events.c.kind, events.c.text)


def _move(row: Sequence[Any]) -> LedgerMove:
    event_id, key, at, kind, text = row
    return LedgerMove(event_id, key, datetime.fromisoformat(at), kind, text)


async def _write_intent(db: Session, rental: Rental, decision: bytes, budget: Budget) -> LedgerMove:
    at = rental.intended_at
    live = await _live_of(db, rental.owner)
    if live is not None:
        raise OwnerHasRental(rental.owner, live)
    if budget.is_bound:
        budget.check(rental, await _costing(db, budget, at), at=at)
    await db.execute(_INTEND, values=_row(rental))
    row = {"key": rental.key, "at": at.isoformat(), "body": decision}
    await db.execute(_DECIDE, values=row)
    text = f"{rental.provider} offer {rental.offer_id} at ${rental.price_usd_per_hour:.4f}/h"
    return await _note(db, rental.key, at, "intended", text)


async def _note(db: Session, key: str, at: datetime, kind: str, text: str) -> LedgerMove:
    row = {"key": key, "at": at.isoformat(), "kind": kind, "text": text}
    made = await db.execute(_NOTE, values=row)
    return LedgerMove(made.scalar(), key, at, kind, text)


async def _epoch(db: Session) -> int:
    epoch: int = (await db.execute(_EPOCH, values={})).scalar()
    return epoch


async def _get(db: Session, key: str) -> Rental | None:
    body = (await db.execute(_GET, values={"of": key})).scalar()
    return None if body is None else _decode(body)


async def _live_of(db: Session, owner: str) -> RentalKey | None:
    found: RentalKey | None = (await db.execute(_LIVE_OF, values={"of": owner})).scalar()
    return found


async def _costing(db: Session, budget: Budget, at: datetime) -> list[Rental]:
    """Return what a budget asks for: the rentals that are open, and for a day's those of a day."""
    wanted: sa.ColumnElement[bool] = rentals.c.state.in_(_OPEN)
    if budget.usd_per_day is not None:
        lately = sa.select(events.c.key).where(events.c.at >= (at - DAY).isoformat())
        wanted = sa.or_(wanted, rentals.c.key.in_(lately))
    query = sa.select(rentals.c.body).where(wanted)
    return [_decode(body) for body in (await db.execute(query)).scalars()]


async def _again_if_lost(write: Callable[[], Awaitable[T]]) -> T:
    """Do once more what does no harm when it is done twice, where its commit was lost."""
    try:
        return await write()
    except CommitLost:
        return await write()


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
