"""What may be spent: the operator's bounds, and whether one more rental stays within them. Pure.

The ledger asks inside the transaction that writes an intent, with the rentals that it read there,
so two processes that rent at once cannot overrun a bound together.

What a rental of longer ago cost within the last 24 hours is not on record, so it counts with its
price for those hours, or with all that it ever cost where that is less: never with too little. An
estimated price counts as it is estimated; a market may then charge up to the rental's ceiling.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Final

from msgspec import Struct

from gp4u.errors import BudgetRefused
from gp4u.rentals.rental import Rental, cost_usd

PER_HOUR: Final = "GP4U_BUDGET_USD_PER_HOUR"
PER_DAY: Final = "GP4U_BUDGET_USD_PER_DAY"
RENTALS: Final = "GP4U_MAX_RENTALS"
DAY: Final = timedelta(hours=24)
_DECLINED: Final = frozenset({"offer_gone", "denied", "throttled", "not_sent"})
"""Reasons that the broker gives a rental whose rent call was not even tried by the market.

A refusal is not among them: markets are known to refuse and to make an instance all the same.
"""


class Budget(Struct, frozen=True, kw_only=True):
    """The bounds; None is no bound."""

    usd_per_hour: Decimal | None = None
    """Of all open rentals together."""
    usd_per_day: Decimal | None = None
    """Spent in the last 24 hours, and one hour more of everything that is open."""
    max_rentals: int | None = None
    """Open at a time; what is being released may still cost, and counts until it is gone."""

    @property
    def is_bound(self) -> bool:
        """Whether there is any bound."""
        return (self.usd_per_hour, self.usd_per_day, self.max_rentals) != (None, None, None)

    def check(self, wanted: Rental, others: Sequence[Rental], *, at: datetime) -> None:
        """Return if `wanted` may be rented beside `others`.

        `others` are all that are open, and all that were until 24 hours ago; more do no harm.

        Raises:
            BudgetRefused: it may not.
        """
        still_open = [rental for rental in others if counts(rental)]
        if self.max_rentals is not None and len(still_open) + 1 > self.max_rentals:
            raise BudgetRefused(RENTALS, str(len(still_open) + 1), str(self.max_rentals))
        per_hour = sum((each.price_usd_per_hour for each in (*still_open, wanted)), Decimal(0))
        if self.usd_per_hour is not None and per_hour > self.usd_per_hour:
            raise BudgetRefused(PER_HOUR, f"{per_hour:f}", f"{self.usd_per_hour:f}")
        if self.usd_per_day is None:
            return
        spent = sum((spent_since(each, at - DAY, at=at) for each in others), Decimal(0))
        if spent + per_hour > self.usd_per_day:
            raise BudgetRefused(PER_DAY, f"{spent + per_hour:f}", f"{self.usd_per_day:f}")


UNBOUND: Final = Budget()


def counts(rental: Rental) -> bool:
    """Whether a rental takes its share of what may be open.

    It does until it is released, unless the market itself said that nothing was made: then only the
    proof is missing, and the next candidate must not be kept out by it.
    """
    declined = rental.reason in _DECLINED and rental.instance_id is None
    return rental.is_live or (rental.is_open and not declined)


def used(budget: Budget, rentals: Iterable[Rental], *, at: datetime) -> Mapping[str, float]:
    """Return the share of each bound that is taken, 0..1 and above where it is exceeded.

    Keyed `usd_per_hour`, `usd_per_day`, `rentals`; a bound that is not set has none. A bound of 0
    is always taken.
    """
    everything = list(rentals)
    still_open = [rental for rental in everything if counts(rental)]
    spent = sum((spent_since(each, at - DAY, at=at) for each in everything), Decimal(0))
    per_hour = sum((each.price_usd_per_hour for each in still_open), Decimal(0))
    taken = {
        "usd_per_hour": (per_hour, budget.usd_per_hour),
        "usd_per_day": (spent, budget.usd_per_day),
        "rentals": (Decimal(len(still_open)), budget.max_rentals),
    }
    return {
        name: float(amount / bound) if bound else 1.0
        for name, (amount, bound) in taken.items()
        if bound is not None
    }


def spent_since(rental: Rental, since: datetime, *, at: datetime) -> Decimal:
    """Return dollars that a rental has cost between `since` and `at`, at most."""
    end = min(at, rental.released_at or at)
    if end <= since:
        return Decimal(0)
    whole = cost_usd(rental, at=at)
    if rental.intended_at >= since:
        return whole
    hours = Decimal(str((end - since).total_seconds())) / 3600
    return min(whole, rental.price_usd_per_hour * hours)


def room_for(price_usd_per_hour: Decimal, refused: BudgetRefused) -> Decimal | None:
    """Return how much a rental may cost per hour, after one at this price was refused.

    None means that its price was not the reason, so that no other one will do either. The day's
    budget counts one hour of a new rental, so what is too much is too much per hour there as well.
    """
    if refused.budget == RENTALS:
        return None
    return price_usd_per_hour - (Decimal(refused.would_be) - Decimal(refused.bound))
