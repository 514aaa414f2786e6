"""How many GPUs the node offers: what is in use, and what could still be rented; pure.

The scheduler knows no prices and no stock. A node that offers too much collects pods that wait on
it; one that offers too little leaves them to others. And each change of the number wakes every
pending pod of the cluster. So the number follows the market slowly: a wish to change must last,
and a change is at least a minute away from the one before.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from decimal import Decimal
from itertools import islice
from typing import Final

from msgspec import Struct

from gp4u.model import Candidate
from gp4u.rentals.budget import DAY, PER_DAY, PER_HOUR, RENTALS, Budget, counts, spent_since
from gp4u.rentals.rental import Rental

SLOW_S: Final = 60.0
"""Between two changes, and how long a wish for one has to last."""
LOOKED_AT: Final = 500
"""Candidates that are counted, best first; a node offers tens of GPUs, a book has thousands."""


class Shortage(Struct, frozen=True):
    """Why not one more GPU can be rented. No figures of the market: those change at each look."""

    reason: str
    """In one word, as conditions have it."""
    message: str


class Rentable(Struct, frozen=True):
    """What could be rented besides, in GPUs."""

    gpus: int
    shortage: Shortage | None = None
    """None where there are any."""


NO_OFFER: Final = Shortage("NoOffer", "no market has a machine that the node's defaults allow")


class Room(Struct, frozen=True, kw_only=True):
    """What one look at pods, market and budget says, in GPUs."""

    in_use: int
    """Asked for by the pods that are bound to the node and have not ended."""
    more: int | None
    """What could be rented besides; None: nobody knows now."""
    shortage: Shortage | None = None
    """Why that is nothing, where it is."""


class Offered(Struct, frozen=True, kw_only=True):
    """The GPUs that the node offers, and what it takes to change the number."""

    gpus: int
    changed_at: float
    """Loop time of the last change that the market made."""
    wish_since: float | None = None
    """Loop time since which every look wished for more, or every look for less."""
    wish: int = 0
    """The least change that satisfies every look since then: a number of GPUs."""
    is_blind: bool = False
    """Whether the market has never been seen: then what it holds is offered at once."""


def offered(before: Offered | None, room: Room, *, most: int, at: float) -> Offered:
    """Return what is offered from loop time `at` on; `before` None: the node is new.

    Never less than what is in use, and never more than `most` unless more is in use. The first
    thing that is heard of the market counts at once. When nothing more can be rented (the budget
    is used up), it falls to what is in use without lasting first.
    """
    held = before.gpus if before is not None else room.in_use
    more = held - room.in_use if room.more is None else room.more
    target = max(room.in_use, min(room.in_use + max(0, more), most))
    if before is None or before.is_blind:
        return Offered(gpus=target, changed_at=at, is_blind=room.more is None)
    forced = max(room.in_use, min(before.gpus, most))
    if forced != before.gpus:
        # A pod that no scheduler sent, or another bound by the operator: told at once, and no
        # reason to start the minute again.
        before = Offered(gpus=forced, changed_at=before.changed_at)
    if target == before.gpus:
        return Offered(gpus=before.gpus, changed_at=before.changed_at)
    wish, since = target, at
    if before.wish_since is not None and (before.wish > before.gpus) == (target > before.gpus):
        since = before.wish_since
        wish = min(before.wish, target) if target > before.gpus else max(before.wish, target)
    exhausted = room.more == 0 and target < before.gpus
    ripe = exhausted or at - since >= SLOW_S
    if ripe and at - before.changed_at >= SLOW_S:
        return Offered(gpus=target if exhausted else wish, changed_at=at)
    return Offered(gpus=before.gpus, changed_at=before.changed_at, wish_since=since, wish=wish)


def shortage(room: Room, *, most: int) -> Shortage | None:
    """Return why not one more GPU can be had from this node; None where one can."""
    if room.in_use >= most:
        text = f"as many GPUs as GP4U_NODE_MAX_GPUS allows are in use: {most}"
        return Shortage("MaxGpusReached", text)
    return (room.shortage or NO_OFFER) if room.more == 0 else None


def still_rentable(
    candidates: Iterable[Candidate],
    budget: Budget,
    rentals: Sequence[Rental],
    *,
    most: int,
    at: datetime,
) -> Rentable:
    """Return what could be rented now, at most `most` GPUs: the cheapest machines first.

    `candidates` are best first, `rentals` all that are open and all that were until 24 hours ago.
    """
    still_open = [each for each in rentals if counts(each)]
    per_hour = sum((each.price_usd_per_hour for each in still_open), Decimal(0))
    left_usd: Decimal | None = None
    bound = PER_HOUR
    if budget.usd_per_hour is not None:
        left_usd = budget.usd_per_hour - per_hour
    if budget.usd_per_day is not None:
        spent = sum((spent_since(each, at - DAY, at=at) for each in rentals), Decimal(0))
        day_usd = budget.usd_per_day - spent - per_hour
        if left_usd is None or day_usd < left_usd:
            left_usd, bound = day_usd, PER_DAY
    machines = most
    if budget.max_rentals is not None:
        machines = min(machines, max(0, budget.max_rentals - len(still_open)))
    offers = sorted(
        (each.offer for each in islice(candidates, LOOKED_AT)),
        key=lambda each: each.price_usd_per_hour,
    )
    gpus, taken = 0, set[tuple[str, str]]()
    for offer in offers:
        machine = (offer.provider, offer.machine_id or f"offer {offer.offer_id}")
        if machine in taken:
            continue  # offers of one machine share its GPUs
        if left_usd is not None:
            left_usd -= offer.price_usd_per_hour
        if len(taken) == machines or (left_usd is not None and left_usd < 0):
            break
        taken.add(machine)
        gpus += offer.gpu_count
    if gpus or not most:
        return Rentable(min(gpus, most))
    if not offers:
        return Rentable(0, NO_OFFER)
    return Rentable(0, _used_up(bound if machines else RENTALS))


def _used_up(bound: str) -> Shortage:
    return Shortage("BudgetUsedUp", f"{bound} leaves no room for any machine that the markets have")
