"""What failed pods of one controller have cost: what counts, for how long, and who is told."""

from __future__ import annotations

from datetime import datetime, timedelta
from decimal import Decimal

import pytest

from gp4u.kubelet.pods import loss
from gp4u.kubelet.pods.spending import (
    Failed,
    Overspent,
    Spending,
    failures,
    goes_on_at,
    is_failure,
    place,
    spent_usd,
    whose,
)
from gp4u.model import InstanceState
from gp4u.rentals import rental as rentals
from gp4u.rentals.ledger import open_ledger
from gp4u.rentals.rental import Hopeless
from tests.unit.rentals.builders import AT, after, intended, releasing, running, seen, starting
from tests.virtual_loop import run_virtual

MAKER = "11111111-1111-4111-8111-111111111111"
LINE = place("cluster/node", "default/a", MAKER)


def failed(began_s: float, ended_s: float, usd: str) -> Failed:
    """A failure between two moments."""
    return Failed(began_at=after(began_s), ended_at=after(ended_s), usd=Decimal(usd))


@pytest.mark.parametrize(
    ("reason", "counts"),
    [
        (loss.failed("DeadlineExceeded"), True),
        (loss.failed("Unhealthy"), True),
        (loss.exited(1), True),
        (loss.exited(None), True),
        (loss.exited(0), False),
        (loss.DELETED, False),
        (loss.REPLACED, False),
        (Hopeless.INSTANCE_LOST, False),
        (Hopeless.STOPPED_BY_PROVIDER, False),
        (loss.failed("InstanceLost"), False),
        (loss.failed("Preempted"), False),
        ("asked", False),
    ],
)
def test_what_counts_is_a_pod_that_failed_and_not_a_market_that_did(
    reason: str, counts: bool
) -> None:
    """A spot machine that is taken away is no fault of what ran on it."""
    assert is_failure(releasing(reason=reason)) is counts


def test_a_machine_that_never_ran_the_workload_counts() -> None:
    """K16: an image that cannot be pulled costs a machine each time."""
    booting = seen(starting(), InstanceState.BOOTING)
    assert is_failure(releasing(booting, reason=Hopeless.CANNOT_START))


def test_a_line_says_whose_pod_it_was_with_or_without_a_controller() -> None:
    """Rentals from before there were controllers in it are still read."""
    assert whose(LINE) == ("cluster/node", "default/a", MAKER)
    assert whose(place("cluster/node", "default/a", None)) == ("cluster/node", "default/a", None)
    assert whose("") == ("", "", None)


def test_only_the_last_hour_of_a_long_run_counts() -> None:
    """A pod that worked for days must not be held against its controller with all it cost."""
    day = failed(-86_400, 0, "24")
    assert spent_usd([day], at=AT) == 1
    assert spent_usd([day], at=after(1800)) == Decimal("0.5")
    assert spent_usd([day], at=after(3600)) == 0


def test_the_time_to_go_on_is_when_enough_is_an_hour_ago() -> None:
    """The Event names it: it has to be neither too early nor a guess."""
    two = [failed(-600, -300, "6"), failed(-300, 0, "6")]
    until = goes_on_at(two, Decimal(9), at=AT)
    assert until == after(3600 - 600 + 150)
    assert spent_usd(two, at=until) <= 9
    assert spent_usd(two, at=until - timedelta(seconds=2)) > 9


def test_each_controller_answers_for_its_own_pods_only() -> None:
    """Two teams share a node."""
    gone = rentals.close(releasing(reason=loss.exited(1)), at=after(3600))
    other = rentals.close(releasing(reason=loss.exited(1)), at=after(3600))
    bare = place("cluster/node", "default/b", None)
    found = failures([(gone, LINE), (other, "cluster/node default/c 2"), (gone, bare)], at=after(0))
    assert {uid: len(each) for uid, each in found.items()} == {MAKER: 1, "2": 1}


def test_a_controller_over_the_bound_is_refused_by_name_and_others_are_not() -> None:
    """The Event has to say how much, how much is allowed, and when it goes on."""

    class Stopped:
        def now(self) -> datetime:
            return after(1800)

    async def life() -> None:
        async with open_ledger("sqlite://") as ledger:
            clock, at = Stopped(), after(1800)
            spending = Spending(ledger, clock, lambda: Decimal("0.10"))
            rental = intended("pod:1")
            await ledger.intend(rental, b"{}", note=("pod", LINE))
            ran = rentals.confirm(rental, "901", at=AT, settle=timedelta())
            ran = await ledger.move(rental, rentals.bill(ran, Decimal("0.36"), final=True), at=at)
            await spending.check(MAKER)
            over = await ledger.move(ran, rentals.give_up(ran, loss.exited(1), at=at), at=at)
            fresh = Spending(ledger, clock, lambda: Decimal("0.10"))
            with pytest.raises(Overspent, match=r"cost \$0\.36 .*_FAILED_USD_PER_HOUR .* \$0\.10"):
                await fresh.check(MAKER)
            await fresh.check("another")
            await fresh.check(None)
            await Spending(ledger, clock, lambda: None).check(MAKER)
            await ledger.move(over, rentals.close(over, at=at), at=at)
            with pytest.raises(Overspent):
                await Spending(ledger, clock, lambda: Decimal("0.10")).check(MAKER)

    run_virtual(life)


def test_a_run_that_goes_on_is_no_failure() -> None:
    """Its cost is what it is there for."""
    assert failures([(releasing(running(), reason=loss.DELETED), LINE)], at=AT) == {}
