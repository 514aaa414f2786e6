"""Budgets: what one more rental may cost, judged in the transaction that writes its intent."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, suppress
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from gp4u.errors import BudgetRefused
from gp4u.model import Demand, Preferences
from gp4u.rentals import rental as rentals
from gp4u.rentals.budget import Budget, counts, room_for, spent_since, used
from gp4u.rentals.ledger import Ledger, open_ledger
from gp4u.rentals.rental import Rental
from gp4u.sim.faults import Rule
from tests.laws import Story, told
from tests.simulated import DEMAND
from tests.unit.rentals.builders import AT, after, intended, releasing, running

HOUR_S = 3600.0
prices = st.decimals("0.01", "5", places=4)


def at_price(
    usd_per_hour: Decimal | str, owner: str = "cli:a", *, hours: float = 0, **changes: Any
) -> Rental:
    """An intent at a price per hour, so many hours after `AT`."""
    made = intended(owner, price_usd_per_hour=Decimal(usd_per_hour), **changes)
    return replace(made, intended_at=after(hours * HOUR_S))


def held(usd_per_hour: Decimal | str, owner: str = "cli:a") -> Rental:
    """A rental whose GPU has run since `AT`."""
    price = Decimal(usd_per_hour)
    return replace(
        running(owner),
        price_usd_per_hour=price,
        gpu_usd_per_hour=price,
        storage_usd_per_hour=Decimal(0),
    )


@given(others=st.lists(prices, max_size=6), wanted=prices, bound=prices)
def test_the_hourly_budget_admits_exactly_what_fits(
    others: list[Decimal], wanted: Decimal, bound: Decimal
) -> None:
    """Neither a cent more nor a cent less than the operator said."""
    budget = Budget(usd_per_hour=bound)
    open_ones = [at_price(each, f"cli:{n}") for n, each in enumerate(others)]
    fits = sum(others, wanted) <= bound

    if fits:
        budget.check(at_price(wanted), open_ones, at=AT)
    else:
        with pytest.raises(BudgetRefused) as caught:
            budget.check(at_price(wanted), open_ones, at=AT)
        refused = caught.value
        assert (refused.budget, refused.bound) == ("GP4U_BUDGET_USD_PER_HOUR", f"{bound:f}")
        assert Decimal(refused.would_be) == sum(others, wanted)


@given(others=st.lists(prices, max_size=6), wanted=prices, bound=prices, daily=st.booleans())
def test_a_cheaper_one_of_which_the_refusal_says_that_it_fits_does_fit(
    others: list[Decimal], wanted: Decimal, bound: Decimal, daily: bool
) -> None:
    """The broker goes on with that bound; a wrong one would refuse what may be had, or loop."""
    budget = Budget(usd_per_day=bound) if daily else Budget(usd_per_hour=bound)
    open_ones = [at_price(each, f"cli:{n}") for n, each in enumerate(others)]
    try:
        budget.check(at_price(wanted), open_ones, at=AT)
    except BudgetRefused as refused:
        room = room_for(wanted, refused)
        assert room is not None
        assert room < wanted
        if room > 0:
            budget.check(at_price(room), open_ones, at=AT)
            with pytest.raises(BudgetRefused):
                budget.check(at_price(room + Decimal("0.0001")), open_ones, at=AT)


@given(number=st.integers(0, 5), bound=st.integers(0, 5))
def test_the_number_of_rentals_is_bounded(number: int, bound: int) -> None:
    """0 means that nothing may be rented; no other candidate would change that."""
    open_ones = [at_price("0.1", f"cli:{n}") for n in range(number)]
    budget = Budget(max_rentals=bound)
    if number < bound:
        budget.check(at_price("0.1"), open_ones, at=AT)
    else:
        with pytest.raises(BudgetRefused) as refused:
            budget.check(at_price("0.1"), open_ones, at=AT)
        assert (refused.value.would_be, refused.value.bound) == (str(number + 1), str(bound))
        assert room_for(Decimal("0.1"), refused.value) is None


def test_the_daily_budget_counts_what_was_spent_and_one_hour_more() -> None:
    """Ten hours at a dollar, and an hour of both: twelve dollars and not a cent less will do."""
    old, wanted = held("1"), at_price("1", "cli:b")
    at = after(10 * HOUR_S)

    Budget(usd_per_day=Decimal("12")).check(wanted, [old], at=at)
    with pytest.raises(BudgetRefused) as refused:
        Budget(usd_per_day=Decimal("11.99")).check(wanted, [old], at=at)

    assert refused.value.budget == "GP4U_BUDGET_USD_PER_DAY"
    assert Decimal(refused.value.would_be) == 12


def test_only_the_last_day_counts_of_a_long_rental() -> None:
    """A rental of last month must not use up today."""
    old = held("1")
    at = after(100 * HOUR_S)

    assert spent_since(old, at - timedelta(hours=24), at=at) == 24
    assert spent_since(old, AT - timedelta(hours=1), at=at) == 100
    ended = replace(releasing(old), state=rentals.RentalState.RELEASED, released_at=after(HOUR_S))
    assert spent_since(ended, after(HOUR_S), at=at) == 0


def test_what_a_rental_ever_cost_is_the_most_that_it_cost_lately() -> None:
    """A stopped GPU costs less than its price; the bound must not count what nobody paid."""
    parked = replace(held("1"), gpu_since=None, gpu_seconds=HOUR_S)
    at = after(100 * HOUR_S)

    assert spent_since(parked, at - timedelta(hours=24), at=at) == 1


@pytest.mark.parametrize(
    ("rental", "counted"),
    [
        (intended(), True),
        (running(), True),
        (releasing(), True),
        (releasing(intended(), reason="asked"), True),
        (releasing(intended(), reason="never_rented"), True),
        (releasing(intended(), reason="failed"), True),
        (releasing(intended(), reason="offer_gone"), False),
        (releasing(intended(), reason="not_sent"), False),
        (releasing(intended(), reason="refused:no_such_ask"), True),
        (releasing(running(), reason="refused:bid_too_low"), True),
    ],
)
def test_what_may_yet_cost_counts(rental: Rental, counted: bool) -> None:
    """Only a clear no of the market's sets its share free before the proof is there."""
    assert counts(rental) is counted


def test_shares_of_a_budget_are_told_for_the_bounds_that_are_set() -> None:
    """The operator's metrics: how near is each bound?"""
    budget = Budget(usd_per_hour=Decimal(4), usd_per_day=Decimal(20), max_rentals=0)

    shares = used(budget, [held("1"), held("2", "cli:b")], at=after(HOUR_S))

    assert shares == {"usd_per_hour": 0.75, "usd_per_day": 0.15, "rentals": 1.0}
    assert used(Budget(), [held("1")], at=AT) == {}


async def test_a_refused_intent_leaves_nothing_behind(ledger: Ledger) -> None:
    """Nothing on disk, so nothing to be found, released or explained later."""
    await ledger.intend(at_price("0.6"), b"{}")
    with pytest.raises(BudgetRefused):
        await ledger.intend(at_price("0.6", "cli:b"), b"{}", budget=Budget(usd_per_hour=Decimal(1)))

    assert len(await ledger.every_rental()) == 1
    assert len(await ledger.events_after(0, 10)) == 1


async def test_what_ended_today_counts_and_what_ended_earlier_does_not(ledger: Ledger) -> None:
    """The day's budget looks at released rentals too, as far as they touched the day."""
    budget = Budget(usd_per_day=Decimal("2.5"))
    await _lived(ledger, "cli:a", hours=2)
    with pytest.raises(BudgetRefused):
        await ledger.intend(at_price("1", "cli:b", hours=3), b"{}", budget=budget)

    late = at_price("1", "cli:b", hours=27)
    await ledger.intend(late, b"{}", budget=budget)


async def _lived(ledger: Ledger, owner: str, *, hours: float) -> None:
    """Have a rental at a dollar an hour that ran for so long."""
    rental = at_price("1", owner, gpu_usd_per_hour=Decimal(1), storage_usd_per_hour=Decimal(0))
    await ledger.intend(rental, b"{}")
    end = after(hours * HOUR_S)
    gone = replace(
        rental,
        version=2,
        state=rentals.RentalState.RELEASED,
        confirmed_at=AT,
        gpu_seconds=hours * HOUR_S,
        released_at=end,
    )
    await ledger.move(rental, gone, at=end)


async def test_processes_that_rent_at_once_cannot_overrun_a_budget_together(url: str) -> None:
    """The check stands in the transaction that writes: what one reads, no other can outdate."""
    budget = Budget(usd_per_hour=Decimal("1.0"))
    async with AsyncExitStack() as stack:
        ledgers = [await stack.enter_async_context(open_ledger(url)) for _ in range(4)]

        async def greedy(number: int) -> None:
            for turn in range(3):
                with suppress(BudgetRefused):
                    wanted = at_price("0.3", f"cli:{number}.{turn}")
                    await ledgers[number].intend(wanted, b"{}", budget=budget)

        async with asyncio.TaskGroup() as group:
            for number in range(len(ledgers)):
                group.create_task(greedy(number))
        held_now = await ledgers[0].open_rentals()

    assert len(held_now) == 3, "0.9 fits into 1.0, and 1.2 does not"


def test_a_cheaper_candidate_that_fits_is_rented(tmp_path: Path) -> None:
    """The best offer is too dear for the hour: the next one that fits is taken, unasked."""

    async def tale(story: Story) -> None:
        demand = Demand(
            requirements=replace(DEMAND.requirements, gpu_models=("RTX 3090", "RTX 4090")),
            preferences=Preferences(weights={"performance": 1.0}),
        )
        decision = await story.app.broker.decide(demand)
        offers = [each.offer.price_usd_per_hour for each in decision.candidates]
        bound = next(price for price in offers if price < offers[0])
        story.app.broker._budget = Budget(usd_per_hour=bound)

        rental = await story.rent(demand=demand)

        assert rental.price_usd_per_hour == bound, "the best of those that fit"
        assert story.rent_calls == 1

    told(tale, tmp_path)


def test_a_budget_that_nothing_fits_sends_nothing(tmp_path: Path) -> None:
    """No call, no intent; the error names the variable."""

    async def tale(story: Story) -> None:
        story.app.broker._budget = Budget(usd_per_hour=Decimal("0.0001"))
        with pytest.raises(BudgetRefused, match="GP4U_BUDGET_USD_PER_HOUR"):
            await story.rent()

        assert story.rent_calls == 0
        assert await story.app.ledger.every_rental() == []

    told(tale, tmp_path)


def test_a_taken_offer_does_not_use_up_the_number_of_rentals(tmp_path: Path) -> None:
    """With room for one rental a candidate that is gone must not keep the next one out."""

    async def tale(story: Story) -> None:
        story.app.broker._budget = Budget(max_rentals=1)
        rental = await story.rent()

        assert rental.state is rentals.RentalState.RUNNING
        assert await story.reasons() == ["offer_gone", ""]
        with pytest.raises(BudgetRefused, match="GP4U_MAX_RENTALS"):
            await story.rent("cli:b")

    told(tale, tmp_path, Rule(kind="offer_gone", endpoint="create", calls=(1,)))
