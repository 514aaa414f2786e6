"""What one rent has come to so far: which offers it may still try, and why it may fail. Pure.

The broker goes through the candidates of a decision and tells this what became of each; here is
what follows for the others. A market that sent us away is not asked again, a machine that would not
run is not tried again, an offer over the budget rules out the dearer ones, and some answers end it.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Final

from gp4u.errors import (
    BadInput,
    BudgetRefused,
    CircuitBreakerOpen,
    Denied,
    OutcomeUnknown,
    OwnerHasRental,
    ProviderError,
    RateLimitExceeded,
    Refused,
)
from gp4u.model import Offer, RentalKey
from gp4u.rentals.budget import room_for
from gp4u.rentals.rental import Rental

MAX_ATTEMPTS: Final = 5
"""Candidates tried for one rent before it gives up."""


class Shopping:
    """One rent on its way through the candidates; see the module's docstring."""

    def __init__(self) -> None:
        self.is_over = False
        """Whether no other candidate may be tried."""
        self.may_cost: list[RentalKey] = []
        """Rentals that came to nothing, and of which something may be left."""
        self._tried: list[tuple[Offer, RentalKey]] = []
        self._failure: Exception | None = None
        self._over: BudgetRefused | None = None
        self._unfit: BadInput | None = None
        self._room: Decimal | None = None
        self._passed_over: set[str] = set()
        self._shut: set[str] = set()
        self._machines: set[tuple[str, str]] = set()

    @property
    def failure(self) -> Exception | None:
        """Why nothing was rented; None where nothing was tried."""
        return self._failure or self._over or self._unfit

    def may_try(self, offer: Offer) -> bool:
        """Whether this offer is still worth an attempt."""
        if offer.provider in self._shut or (offer.provider, offer.machine_id) in self._machines:
            return False
        return self._room is None or offer.price_usd_per_hour <= self._room

    def intended(self, offer: Offer, key: RentalKey) -> None:
        """Take note that the intent to rent an offer is on disk."""
        self._tried.append((offer, key))
        self.is_over = len(self._tried) == MAX_ATTEMPTS

    def pass_over(self, provider: str, why: BadInput) -> bool:
        """Take note that a market cannot take the workload; return whether that is news."""
        self._unfit = self._unfit or why  # the best market's reason is the one that helps
        is_news = provider not in self._passed_over
        self._passed_over.add(provider)
        return is_news

    def refused(self, offer: Offer, why: BudgetRefused | OwnerHasRental | ProviderError) -> None:
        """Take note that an attempt at an offer was refused, here or at its market."""
        match why:
            case BudgetRefused():
                self._over = why
                self._room = room_for(offer.price_usd_per_hour, why)
                self.is_over = self.is_over or self._room is None
                return
            case OwnerHasRental() | OutcomeUnknown():
                self.is_over = True  # it may run and cost: another one would be a second machine
            case Refused(instance_id=str()):
                self.may_cost.append(self._tried[-1][1])
        self._failure = why
        was_intended = bool(self._tried) and self._tried[-1][0] is offer
        if not was_intended or _shuts(why):
            self._shut.add(offer.provider)

    def dropped(self, offer: Offer, rental: Rental, why: ProviderError) -> None:
        """Take note that a machine was rented and did not come to run."""
        if offer.machine_id:
            self._machines.add((offer.provider, offer.machine_id))
        self.may_cost.append(rental.key)
        self._failure = why


def _shuts(error: Exception) -> bool:
    """Whether a market that failed so need not be tried again for this rent."""
    no_credit = isinstance(error, Refused) and error.code == "insufficient_credit"
    return no_credit or isinstance(error, (Denied, CircuitBreakerOpen, RateLimitExceeded))
