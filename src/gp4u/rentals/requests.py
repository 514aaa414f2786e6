"""What was asked before: requests with an idempotency key, and decisions that led to no rental.

A request is on disk before it is worked on and its reply before it is told, so a caller that asks
again with the same key gets the same reply, also from a process that was started since. Where the
process died in between, the request is taken up anew, with the rental that it had come to: the one
live rental per owner keeps the second try from renting another machine.

Both are kept for a day, and not more of them than stated here. The functions run inside a session
of the ledger's; they open none.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final, Literal

import sqlalchemy as sa
from msgspec import Struct

from gp4u.errors import BadInput
from gp4u.model import RentalKey
from gp4u.rentals.database import Session
from gp4u.rentals.schema import kept_decisions, rentals, requests

KEPT: Final = timedelta(hours=24)
MAX_REPLIES: Final = 10_000
MAX_DECISIONS: Final = 1_000
MAX_DECISION_BYTES: Final = 64 << 20
"""Of all kept decisions together; the newest one is kept whatever its size."""
DEAD_AFTER: Final = timedelta(minutes=2)
"""A request of a process that may yet live is left to it for so long."""


class Begun(Struct, frozen=True):
    """Where a request stands: to be done now, being done elsewhere, or done."""

    state: Literal["new", "running", "done"]
    status: int | None = None
    body: bytes | None = None
    """Of the reply, where it is done."""
    rental: RentalKey | None = None
    """What a process that died had rented for it; to be told instead of renting again."""


async def begin(
    db: Session,
    key: str,
    *,
    fingerprint: bytes,
    owner: str,
    at: datetime,
    runner: str,
    is_ours: bool,
    alone: bool,
) -> Begun:
    """Put a request on disk, or say what became of it.

    `runner` is this process; `is_ours` says that it works on this very key at the moment, `alone`
    that no other process can be at work.

    Raises:
        BadInput: the key came with another request before.
    """
    await db.execute(sa.delete(requests).where(requests.c.at < (at - KEPT).isoformat()))
    known = await db.execute(
        sa.select(
            requests.c.fingerprint,
            requests.c.owner,
            requests.c.runner,
            requests.c.at,
            requests.c.status,
            requests.c.body,
        ).where(requests.c.key == key)
    )
    if not known.rows:
        await db.execute(
            sa.insert(requests).values(
                key=key, fingerprint=fingerprint, owner=owner, runner=runner, at=at.isoformat()
            )
        )
        return Begun("new")
    was, whose, by, since, status, body = known.rows[0]
    if was != fingerprint:
        raise BadInput("Idempotency-Key", key, "came with another request; a new one needs its own")
    if status is not None:
        return Begun("done", status, body)
    elsewhere = by != runner and not alone
    if is_ours or (elsewhere and at - datetime.fromisoformat(since) < DEAD_AFTER):
        return Begun("running")
    await db.execute(sa.update(requests).where(requests.c.key == key).values(runner=runner))
    had = await db.execute(
        sa.select(rentals.c.key)
        .where(rentals.c.owner == whose, rentals.c.intended_at >= since)
        .order_by(rentals.c.intended_at.desc())
        .limit(1)
    )
    return Begun("new", rental=had.scalar() if whose else None)


async def finish(db: Session, key: str, *, status: int, body: bytes, at: datetime) -> None:
    """Keep the reply to a request, and drop the oldest where there are too many."""
    await db.execute(
        sa.update(requests)
        .where(requests.c.key == key)
        .values(status=status, body=body, at=at.isoformat())
    )
    surplus = (
        sa.select(requests.c.key)
        .where(requests.c.status.is_not(None))
        .order_by(requests.c.at.desc(), requests.c.key)
        .offset(MAX_REPLIES)
    )
    await db.execute(sa.delete(requests).where(requests.c.key.in_(surplus)))


async def abandon(db: Session, key: str, *, runner: str) -> None:
    """Forget a request that came to nothing, so that it can be asked again."""
    await db.execute(
        sa.delete(requests).where(
            requests.c.key == key, requests.c.runner == runner, requests.c.status.is_(None)
        )
    )


async def keep_decision(db: Session, decision_id: str, body: bytes, *, at: datetime) -> None:
    """Keep a decision (JSON) that led to no rental, and drop what is old or too much."""
    await db.execute(
        sa.delete(kept_decisions).where(
            sa.or_(
                kept_decisions.c.id == decision_id,
                kept_decisions.c.at < (at - KEPT).isoformat(),
            )
        )
    )
    await db.execute(sa.insert(kept_decisions).values(id=decision_id, at=at.isoformat(), body=body))
    newest_first = (kept_decisions.c.at.desc(), kept_decisions.c.id)
    ranked = sa.select(
        kept_decisions.c.id,
        sa.func.row_number().over(order_by=newest_first).label("rank"),
        sa.func.sum(sa.func.length(kept_decisions.c.body))
        .over(order_by=newest_first)
        .label("bytes"),
    ).subquery()
    surplus = sa.select(ranked.c.id).where(
        ranked.c.id != decision_id,
        sa.or_(ranked.c.rank > MAX_DECISIONS, ranked.c.bytes > MAX_DECISION_BYTES),
    )
    await db.execute(sa.delete(kept_decisions).where(kept_decisions.c.id.in_(surplus)))
