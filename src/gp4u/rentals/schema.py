"""The ledger's tables, and the steps that lead an older ledger to them.

One set of SQLAlchemy Core tables serves SQLite and PostgreSQL. `STEPS` is how a ledger of any age
becomes a new one: a fresh database takes all of them, an older one those it lacks, each inside one
transaction with the number that says how far it is. So a fresh ledger and a migrated one are the
same by construction. What a published step does is never changed: before a table changes, the form
that its step made is copied here.

Times that are compared are text in ISO 8601, UTC, ordered byte by byte (PostgreSQL would otherwise
order them by a language's rules), or whole seconds since 1970. Prices are whole millionths of a
dollar, since SQLite has no decimals.
"""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from sqlalchemy.schema import CreateIndex, CreateTable, ExecutableDDLElement

_meta: Final = sa.MetaData()
_Stamp: Final = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")

installation: Final = sa.Table(
    "installation",
    _meta,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("secret", sa.LargeBinary, nullable=False),
    sa.Column("schema_version", sa.Integer, nullable=False),
    sa.Column("epoch", sa.Integer, nullable=False),
)
"""Who we are: one row."""

accounts: Final = sa.Table(
    "accounts",
    _meta,
    sa.Column("provider", sa.Text, primary_key=True),
    sa.Column("login", sa.LargeBinary, primary_key=True),
    sa.Column("account", sa.Text, nullable=False),
)
"""Which account each key is of; of the key itself there is only a digest."""

rentals: Final = sa.Table(
    "rentals",
    _meta,
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("provider", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("epoch", sa.Integer, nullable=False),
    sa.Column("instance_id", sa.Text),
    sa.Column("intended_at", _Stamp, nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
    sa.CheckConstraint(
        "state IN ('intended','starting','running','releasing','released')", name="known_state"
    ),
)
"""One row for each rental there ever was: its newest state, as JSON in `body`."""

ONE_LIVE: Final = sa.text("state IN ('intended', 'starting', 'running')")
"""Which rentals an owner may have but one of."""
_owners = sa.Index(
    "one_live_rental_per_owner",
    rentals.c.owner,
    unique=True,
    sqlite_where=ONE_LIVE,
    postgresql_where=ONE_LIVE,
)
_by_state = sa.Index("rentals_by_state", rentals.c.state)
_by_time = sa.Index("rentals_by_time", rentals.c.intended_at)

events: Final = sa.Table(
    "events",
    _meta,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("key", sa.Text, nullable=False),
    sa.Column("at", _Stamp, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("text", sa.Text, nullable=False),
)
"""Every move, append only. Ids grow in the order in which moves were committed."""
_events_of = sa.Index("ix_events_key", events.c.key)
_events_since = sa.Index("events_by_time", events.c.at)

decisions: Final = sa.Table(
    "decisions",
    _meta,
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("at", _Stamp, nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
)
"""The explained choice behind each rental; kept as long as the rental."""

kept_decisions: Final = sa.Table(
    "kept_decisions",
    _meta,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("at", _Stamp, nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
)
"""Choices that led to no rental; kept for a day."""

requests: Final = sa.Table(
    "requests",
    _meta,
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("fingerprint", sa.LargeBinary, nullable=False),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("runner", sa.Text, nullable=False),
    sa.Column("at", _Stamp, nullable=False),
    sa.Column("status", sa.Integer),
    sa.Column("body", sa.LargeBinary),
)
"""What was asked with an idempotency key, by which process it is worked on, and the reply."""

prices: Final = sa.Table(
    "prices",
    _meta,
    sa.Column("gpu_model", sa.Text, primary_key=True),
    sa.Column("provider", sa.Text, primary_key=True),
    sa.Column("at", sa.BigInteger, primary_key=True),
    sa.Column("span_s", sa.Integer, nullable=False),
    sa.Column("count", sa.Float, nullable=False),
    sa.Column("min", sa.BigInteger, nullable=False),
    sa.Column("median", sa.BigInteger, nullable=False),
    sa.Column("p90", sa.BigInteger, nullable=False),
)
"""What models cost; `at` in seconds since 1970, prices in millionths of a dollar."""
_unfolded = sa.Index("prices_by_span", prices.c.span_s, prices.c.at)

STEPS: Final[tuple[tuple[ExecutableDDLElement, ...], ...]] = (
    (
        *(CreateTable(table) for table in (accounts, rentals, events, decisions)),
        *(CreateIndex(index) for index in (_owners, _by_state, _events_of)),
    ),
    (
        *(CreateTable(table) for table in (kept_decisions, requests, prices)),
        *(CreateIndex(index) for index in (_by_time, _events_since, _unfolded)),
    ),
)
"""Step n leads from schema n-1 to schema n; 0 is a database with nothing of ours in it."""
SCHEMA_VERSION: Final = len(STEPS)
BEGINNING: Final = CreateTable(installation, if_not_exists=True)
"""The table that tells how far a ledger is."""
