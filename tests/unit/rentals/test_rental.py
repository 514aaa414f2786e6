"""The rental's legal moves, its key, and what it costs."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gp4u.errors import IllegalMove
from gp4u.model import InstanceState
from gp4u.rentals import rental as rentals
from gp4u.rentals.rental import RentalState, is_foreign_key, key_in, mint_key
from tests.unit.rentals.builders import (
    AT,
    INSTALLATION,
    POLICY,
    SECRET,
    after,
    instance,
    intended,
    key,
    releasing,
    running,
    seen,
    starting,
)


def test_a_key_is_recognised_at_the_start_of_a_label() -> None:
    """Markets append to labels; the key comes first and is found there."""
    mine = key()

    assert key_in(mine, INSTALLATION, SECRET) == mine
    assert key_in(f"{mine} and a note", INSTALLATION, SECRET) == mine


def test_a_key_fits_every_market_label_and_a_kubernetes_name() -> None:
    """Lower case, digits and dashes, at most 63 characters."""
    mine = key()

    assert len(mine) <= 63
    assert all(c.isalnum() or c == "-" for c in mine)
    assert mine == mine.lower()


@given(st.text(max_size=60), st.integers(0, 40))
def test_no_forged_label_is_taken_for_ours(noise: str, cut: int) -> None:
    """A stranger who copies our prefix must not get us to release his machine, or keep ours."""
    mine = mint_key(INSTALLATION, SECRET, Random(1))
    forged = mine[:cut] + noise

    found = key_in(forged, INSTALLATION, SECRET)

    assert found is None or found == mine


def test_a_key_of_another_installation_is_foreign_and_not_ours() -> None:
    """Two clusters may share one account; each touches only its own."""
    theirs = mint_key("zzzzzz", b"another secret", Random(1))

    assert key_in(theirs, INSTALLATION, SECRET) is None
    assert is_foreign_key(theirs, INSTALLATION, SECRET)
    assert not is_foreign_key("somebody's training run", INSTALLATION, SECRET)


def test_the_stored_workload_has_no_environment() -> None:
    """What is in the environment may be secret, and the ledger has no use for it."""
    assert intended().workload.env == {}


@pytest.mark.parametrize(
    "make", [starting, running, releasing], ids=["starting", "running", "releasing"]
)
def test_only_an_intent_can_be_confirmed(make: object) -> None:
    """A second confirmation would overwrite the instance that is paid for."""
    rental = make()  # type: ignore[operator] # parametrised builders
    with pytest.raises(IllegalMove):
        rentals.confirm(rental, "902", at=AT, settle=POLICY.settle)


def test_released_is_reached_only_through_releasing() -> None:
    """`released` means proven absence, which nobody can prove for what is still wanted."""
    for rental in (intended(), starting(), running()):
        with pytest.raises(IllegalMove):
            rentals.close(rental, at=AT)

    assert rentals.close(releasing(), at=AT).state is RentalState.RELEASED


def test_a_released_rental_accepts_no_move_at_all() -> None:
    """The end is the end; whatever shows up later is an orphan."""
    done = rentals.close(releasing(), at=AT)
    moves: list[Callable[[], object]] = [
        lambda: rentals.give_up(done, "again", at=AT),
        lambda: rentals.close(done, at=AT),
        lambda: rentals.answer(done, at=AT),
        lambda: rentals.release_tried(done, at=AT, settle=POLICY.settle),
        lambda: seen(done, InstanceState.RUNNING),
    ]
    for move in moves:
        with pytest.raises(IllegalMove):
            move()


def test_every_move_raises_the_version_by_one() -> None:
    """The version is what keeps two processes from writing over each other."""
    first = intended()
    second = rentals.confirm(first, "901", at=AT, settle=POLICY.settle)
    third = seen(second, InstanceState.RUNNING)
    fourth = rentals.answer(third, at=AT)

    assert [r.version for r in (first, second, third, fourth)] == [1, 2, 3, 4]


def test_an_intent_waits_out_the_rent_call_and_its_late_window() -> None:
    """A crash right after the intent leaves a call that may still take effect (fault H3)."""
    assert intended().provable_at == AT + POLICY.patience
    assert POLICY.patience.total_seconds() == 60 + 120 + 30


def test_asking_for_a_release_pushes_out_what_can_prove_absence() -> None:
    """A listing from before the release call says nothing about its effect (fault H31)."""
    rental = rentals.release_tried(releasing(), at=after(500), settle=POLICY.settle)

    assert rental.provable_at == after(530)
    assert rental.release_tries == 1


def test_cost_counts_the_gpu_while_it_ran_and_the_disk_throughout() -> None:
    """A loading instance pays for its disk only; a stopped one goes on paying for it."""
    rental = seen(starting(), InstanceState.BOOTING, 0)
    assert rentals.cost_usd(rental, at=after(100)) == Decimal("0.036") * 100 / 3600

    rental = seen(rental, InstanceState.RUNNING, 100)
    rental = seen(rental, InstanceState.STOPPED, 3700)

    assert rentals.cost_usd(rental, at=after(7200)) == pytest.approx(
        Decimal("0.36") + Decimal("0.036") * 2, abs=Decimal("1e-9")
    )


def test_cost_stops_when_the_release_was_heard() -> None:
    """Waiting for the proof of absence costs nothing."""
    rental = seen(starting(), InstanceState.RUNNING, 0)
    rental = rentals.give_up(rental, "asked", at=after(3600))
    rental = rentals.release_tried(rental, at=after(3600), settle=POLICY.settle)
    done = rentals.close(rental, at=after(4000))

    assert rentals.cost_usd(done, at=after(9000)) == pytest.approx(
        Decimal("0.396"), abs=Decimal("1e-9")
    )


def test_the_provider_s_final_bill_replaces_the_estimate() -> None:
    """Its figure is what is paid."""
    done = rentals.close(releasing(), at=AT)

    assert rentals.cost_usd(
        rentals.bill(done, Decimal("1.25"), final=True), at=after(9999)
    ) == Decimal("1.25")


def test_a_bill_that_may_still_grow_never_lowers_the_cost() -> None:
    """Charges come hours late: a first look may show a part, or nothing."""
    rental = seen(starting(), InstanceState.RUNNING, 0)
    rental = rentals.release_tried(
        rentals.give_up(rental, "asked", at=after(3600)), at=after(3600), settle=POLICY.settle
    )
    done = rentals.close(rental, at=after(4000))
    estimate = rentals.cost_usd(done, at=after(9999))

    part = rentals.bill(done, estimate / 2, final=False)
    more = rentals.bill(done, estimate * 2, final=False)

    assert rentals.cost_usd(part, at=after(9999)) == estimate
    assert rentals.cost_usd(more, at=after(9999)) == estimate * 2


def test_an_estimate_gives_way_to_what_the_market_charges() -> None:
    """Where bids make the price, the estimate is only what the search went by."""
    guessed = intended(estimated=True)
    told = rentals.observe(guessed, instance(guessed, price_usd_per_hour=Decimal("0.5")), at=AT)
    assert (told.price_usd_per_hour, told.gpu_usd_per_hour) == (Decimal("0.5"), Decimal("0.464"))
    assert not told.estimated
    assert rentals.tells_something_new(guessed, instance(guessed))


def test_a_price_that_was_agreed_stays() -> None:
    """A market's later word on an agreed price is a reason to look, not to believe it."""
    agreed = intended()
    told = rentals.observe(agreed, instance(agreed, price_usd_per_hour=Decimal("0.5")), at=AT)
    assert told.price_usd_per_hour == agreed.price_usd_per_hour
