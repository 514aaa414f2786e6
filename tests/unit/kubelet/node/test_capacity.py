"""How many GPUs a node offers: slowly, and never a wrong number; the laws by random walks."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gp4u.kubelet.node.capacity import (
    NO_OFFER,
    SLOW_S,
    Offered,
    Rentable,
    Room,
    offered,
    still_rentable,
)
from gp4u.model import Candidate, Offer, RentalKey, Workload
from gp4u.rentals.budget import Budget
from gp4u.rentals.rental import Rental

NOW = datetime(2026, 11, 1, tzinfo=UTC)
LOOK_S = 10.0


def walk(rooms: list[Room], most: int = 16) -> list[Offered]:
    """Return what is offered when these rooms are seen, ten seconds apart."""
    held: list[Offered] = []
    for step, room in enumerate(rooms):
        held.append(offered(held[-1] if held else None, room, most=most, at=step * LOOK_S))
    return held


def room(in_use: int, more: int | None) -> Room:
    """Return a look."""
    return Room(in_use=in_use, more=more)


def test_a_new_node_offers_at_once_what_there_is() -> None:
    """Nobody was told another number before."""
    assert offered(None, room(2, 5), most=16, at=0).gpus == 7
    assert offered(None, room(2, 50), most=16, at=0).gpus == 16
    assert offered(None, room(2, None), most=16, at=0).gpus == 2


def test_the_first_thing_that_is_known_counts_at_once() -> None:
    """A node that waits for its first book would turn pods away for a minute and more."""
    looks = walk([room(0, None), room(0, None), room(0, 6)])

    assert [each.gpus for each in looks] == [0, 0, 6]


def test_a_wish_has_to_last_a_minute() -> None:
    """A market that dips for a moment must not wake every pending pod of the cluster."""
    dip = [room(0, 8)] * 12 + [room(0, 3)] * 5 + [room(0, 8)] * 10
    assert {each.gpus for each in walk(dip)} == {8}

    fall = walk([room(0, 8)] * 12 + [room(0, 3)] * 8)
    assert [each.gpus for each in fall[12:]] == [8] * 6 + [3] * 2


def test_a_wish_that_wavers_is_met_as_far_as_all_looks_agree() -> None:
    """Between 10 and 14 for a minute: 10 were there all the time."""
    looks = walk([room(0, 4)] * 12 + [room(0, 10), room(0, 14)] * 4)

    assert [each.gpus for each in looks[12:]] == [4] * 6 + [10] * 2


def test_a_budget_that_is_used_up_shrinks_the_node_to_what_is_in_use() -> None:
    """Every pod that binds meanwhile would wait for money that is not there."""
    looks = walk([room(3, 5)] * 12 + [room(3, 0)])

    assert looks[-1].gpus == 3


def test_what_a_static_pod_uses_is_told_at_once() -> None:
    """Allocatable below what is used looks like a broken node."""
    looks = walk([room(0, 2), room(5, 0), room(5, 0)])

    assert [each.gpus for each in looks] == [2, 5, 5]


def test_a_lower_bound_of_the_operator_holds_at_once() -> None:
    """A ConfigMap that says less means now."""
    before = offered(None, room(2, 20), most=16, at=0)

    assert offered(before, room(2, 20), most=8, at=1).gpus == 8
    assert offered(before, room(2, 20), most=1, at=1).gpus == 2


def test_a_market_that_says_nothing_changes_nothing() -> None:
    """Not knowing is no stock of zero: the taint keeps pods away, and not this number."""
    looks = walk([room(1, 6)] * 12 + [room(1, None)] * 60)

    assert {each.gpus for each in looks} == {7}


def rooms_up_to(in_use: int) -> st.SearchStrategy[list[Room]]:
    """Return random looks with so many GPUs in use at most."""
    look = st.builds(Room, in_use=st.integers(0, in_use), more=st.none() | st.integers(0, 20))
    return st.lists(look, min_size=1, max_size=80)


@given(rooms_up_to(20), st.integers(0, 24))
def test_never_below_what_is_in_use_and_never_above_the_bound(rooms: list[Room], most: int) -> None:
    """The two promises to the scheduler and to the operator; the first one goes first."""
    for seen, told in zip(rooms, walk(rooms, most), strict=True):
        assert told.gpus >= seen.in_use
        assert told.gpus <= max(most, seen.in_use)


@given(rooms_up_to(16))
def test_the_market_changes_the_number_once_a_minute_at_most(rooms: list[Room]) -> None:
    """Each change wakes the scheduler; only first news, and pods it did not send, are sooner."""
    looks = walk(rooms)
    changes = [
        step * LOOK_S
        for step in range(1, len(looks))
        if looks[step].gpus != looks[step - 1].gpus
        and not looks[step].gpus == rooms[step].in_use > looks[step - 1].gpus
        and not looks[step - 1].is_blind
    ]
    assert all(
        later - sooner >= SLOW_S for sooner, later in zip([0.0, *changes], changes, strict=False)
    )


@given(rooms_up_to(16), st.integers(0, 10), st.integers(0, 20))
def test_a_steady_market_is_told_truly_in_the_end(
    rooms: list[Room], in_use: int, more: int
) -> None:
    """Slow, and not stuck: two steady minutes bring the very number."""
    looks = walk([*rooms, *[room(in_use, more)] * 13])

    assert looks[-1].gpus == max(in_use, min(in_use + more, 16))


def offer(price: str, gpus: int = 1, machine: str | None = None, number: int = 0) -> Candidate:
    """Return a candidate at a price per hour."""
    it = Offer(
        provider="vastai",
        offer_id=f"{price}-{number}",
        gpu_model="RTX 3090",
        gpu_count=gpus,
        vram_gib=24,
        price_usd_per_hour=Decimal(price),
        gpu_usd_per_hour=Decimal(price),
        storage_usd_per_hour=Decimal(0),
        fetched_at=NOW,
        machine_id=machine,
    )
    return Candidate(offer=it, score=0.5, parts={})


def rental(price: str, hours: float = 1.0) -> Rental:
    """Return a rental that has been open for so long."""
    return Rental(
        key=RentalKey("gp4u-x"),
        owner="pod:x",
        provider="vastai",
        offer_id="1",
        account="",
        machine_id=None,
        gpu_model="RTX 3090",
        gpu_count=1,
        region=None,
        workload=Workload(image="busybox"),
        price_usd_per_hour=Decimal(price),
        gpu_usd_per_hour=Decimal(0),
        storage_usd_per_hour=Decimal(price),
        ceiling_usd_per_hour=Decimal(price),
        intended_at=NOW - timedelta(hours=hours),
        confirmed_at=NOW - timedelta(hours=hours),
        provable_at=NOW,
        instance_id="1",
    )


@pytest.mark.parametrize(
    ("budget", "open_", "gpus", "bound"),
    [
        (Budget(), [], 6, None),
        (Budget(usd_per_hour=Decimal("1.00")), [], 2, None),
        (Budget(usd_per_hour=Decimal("1.00")), ["0.60"], 1, None),
        (Budget(usd_per_hour=Decimal("1.00")), ["0.90"], 0, "GP4U_BUDGET_USD_PER_HOUR"),
        (Budget(usd_per_day=Decimal("1.50")), ["0.50"], 1, None),
        (Budget(usd_per_day=Decimal("1.50")), ["0.70"], 0, "GP4U_BUDGET_USD_PER_DAY"),
        (Budget(max_rentals=2), [], 2, None),
        (Budget(max_rentals=2), ["0.10", "0.10", "0.10"], 0, "GP4U_MAX_RENTALS"),
        (Budget(usd_per_hour=Decimal(9), usd_per_day=Decimal("0.40")), [], 1, None),
        (
            Budget(usd_per_hour=Decimal(9), usd_per_day=Decimal("0.20")),
            [],
            0,
            "GP4U_BUDGET_USD_PER_DAY",
        ),
    ],
)
def test_what_could_be_rented_is_bounded_by_every_budget(
    budget: Budget, open_: list[str], gpus: int, bound: str | None
) -> None:
    """The cheapest first: 0.30 and 0.50 for one GPU each, then four GPUs for 2.00."""
    candidates = [offer("2.00", gpus=4), offer("0.50"), offer("0.30")]
    rentals = [rental(price) for price in open_]

    found = still_rentable(candidates, budget, rentals, most=16, at=NOW)
    assert found.gpus == gpus
    assert (found.shortage is None) == (bound is None)
    if found.shortage is not None and bound is not None:
        assert found.shortage.reason == "BudgetUsedUp"
        assert found.shortage.message.startswith(bound)


def test_offers_of_one_machine_count_once() -> None:
    """A market lists a machine as one GPU, two and four: they are the same four."""
    candidates = [offer(f"0.{n}", gpus=1, machine="m1", number=n) for n in range(1, 9)]

    assert still_rentable(candidates, Budget(), [], most=16, at=NOW) == Rentable(1)
    assert still_rentable(candidates, Budget(), [], most=0, at=NOW) == Rentable(0)
    assert still_rentable([], Budget(), [], most=16, at=NOW) == Rentable(0, NO_OFFER)
