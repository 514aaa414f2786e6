"""What a rental cost where no bill says it: from when it was made, however late anybody looked."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal

import pytest

from gp4u.model import InstanceState
from gp4u.rentals import rental as rentals
from gp4u.rentals.rental import Rental
from tests.unit.rentals.builders import POLICY, after, instance, intended

HOUR = 3600.0
DISK_USD_PER_HOUR = Decimal("0.036")


def ended(rental: Rental) -> Rental:
    """Release a rental an hour after its intent, and prove it absent a minute later."""
    if rental.is_live:
        rental = rentals.give_up(rental, "asked", at=after(HOUR))
    rental = rentals.release_tried(rental, at=after(HOUR), settle=POLICY.settle)
    return rentals.close(rental, at=after(HOUR + 60))


def found(made_at: datetime | None, *, at: datetime) -> Rental:
    """Adopt an intent by what a listing shows at that time."""
    rental = intended()
    return rentals.confirm(rental, "901", at=at, settle=POLICY.settle, made_at=made_at)


def test_a_machine_found_late_costs_from_when_it_was_made() -> None:
    """A process died after its rent call; its heir looked half an hour later, and all of it was
    paid."""
    rental = ended(found(after(0), at=after(HOUR / 2)))

    assert rentals.cost_usd(rental, at=after(2 * HOUR)) == DISK_USD_PER_HOUR


@pytest.mark.parametrize(
    ("made_at", "believed"),
    [(after(-HOUR), after(0)), (after(9), after(9)), (after(HOUR), after(60)), (None, after(60))],
    ids=["before the intent", "between", "yet to come", "not told"],
)
def test_a_foreign_clock_is_believed_between_the_intent_and_now(
    made_at: datetime | None, believed: datetime
) -> None:
    """A market whose clock is off must not make a rental older than its intent."""
    assert found(made_at, at=after(60)).confirmed_at == believed


def test_a_machine_that_shows_after_it_was_given_up_costs_from_when_it_was_made() -> None:
    """Its owner had lost patience, and it came to be all the same."""
    rental = rentals.give_up(intended(), "asked", at=after(10))
    shown = instance(rental, InstanceState.BOOTING, created_at=after(0))

    rental = ended(rentals.observe(rental, shown, at=after(HOUR / 2)))

    assert rentals.cost_usd(rental, at=after(2 * HOUR)) == DISK_USD_PER_HOUR


def test_a_refusal_that_names_what_it_made_costs_until_its_release() -> None:
    """It may be ended before any listing shows it."""
    rental = rentals.give_up(intended(), "refused", at=after(0), instance_id="901")

    assert rentals.cost_usd(ended(rental), at=after(2 * HOUR)) == DISK_USD_PER_HOUR


def test_a_refusal_that_made_nothing_costs_nothing() -> None:
    """Most refusals are what they say."""
    rental = rentals.give_up(intended(), "refused", at=after(0))

    assert rentals.cost_usd(ended(rental), at=after(2 * HOUR)) == 0
