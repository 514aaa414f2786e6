"""`plan`: what follows from one listing. Each rule of not leaking, on its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal

import pytest
from msgspec.structs import replace

from gp4u.model import Instance, InstanceState, Listing
from gp4u.rentals import rental as rentals
from gp4u.rentals.plan import (
    Action,
    Close,
    Extend,
    Frozen,
    GiveUp,
    Miss,
    Observe,
    Probe,
    Release,
    ReleaseOrphan,
    plan,
)
from gp4u.rentals.rental import Hopeless, Rental, key_in
from tests.unit.rentals.builders import (
    AT,
    INSTALLATION,
    POLICY,
    SECRET,
    after,
    instance,
    intended,
    key,
    listing,
    releasing,
    running,
    seen,
    starting,
)


def planned(
    open_rentals: Sequence[Rental],
    shown: Listing,
    *,
    orphans: Mapping[str, datetime] | None = None,
    at: float = 1000.0,
) -> list[Action]:
    """`plan` with keys read from labels as the reconciler does."""
    keys = {
        i.instance_id: found
        for i in shown.instances
        if (found := key_in(i.label, INSTALLATION, SECRET)) is not None
    }
    return plan(open_rentals, shown, keys, orphans=orphans or {}, policy=POLICY, at=after(at))


def test_a_lost_reply_is_settled_by_the_key_in_a_listing() -> None:
    """H2: the rent worked, the reply was lost; the listing shows the key, so it is adopted."""
    rental = intended()
    shown = instance(rental, InstanceState.BOOTING)

    assert planned([rental], listing([shown], began=5), at=5) == [Observe(rental, shown)]


def test_an_intent_is_given_up_only_after_patience() -> None:
    """H3: a parked rent call may take effect long after we looked and saw nothing."""
    rental = intended()
    patience_s = POLICY.patience.total_seconds()

    assert planned([rental], listing(began=patience_s - 1)) == []
    assert planned([rental], listing(began=patience_s + 1)) == [
        GiveUp(rental, Hopeless.NEVER_RENTED)
    ]


@pytest.mark.parametrize("make", [intended, starting, running])
def test_an_incomplete_listing_proves_no_absence(make: object) -> None:
    """H23, L6: a page was lost; what is missing from the rest may be on it."""
    rental = make()  # type: ignore[operator] # parametrised builders

    assert planned([rental], listing(began=9999, complete=False), at=9999) == []


def test_a_wished_end_is_asked_for_by_id_whatever_a_listing_hides() -> None:
    """H23, H32: a lost page must not make us pay for what nobody wants any more."""
    rental = releasing()
    asked = rentals.release_tried(rental, at=after(9000), settle=POLICY.settle)

    assert planned([rental], listing(began=9999, complete=False)) == [Release(rental, "901")]
    assert planned([asked], listing(began=9001, complete=False), at=9001) == []
    assert planned([asked], listing(began=9999, complete=False), at=9999) == [Release(asked, "901")]


def test_absence_counts_only_after_the_settle_time() -> None:
    """H7: a listing may be blind to what we did a moment ago."""
    rental = releasing(rentals.answer(seen(starting(), InstanceState.RUNNING), at=AT))
    rental = rentals.release_tried(rental, at=after(100), settle=POLICY.settle)

    assert planned([rental], listing(began=129)) == []
    assert planned([rental], listing(began=131)) == [Close(rental)]


def test_a_running_rental_that_vanished_is_given_up_before_it_is_closed() -> None:
    """H30: the host died; the owner learns of it as a reason."""
    rental = rentals.miss(running(), at=after(1000))

    assert planned([rental], listing(began=1030)) == [GiveUp(rental, Hopeless.INSTANCE_LOST)]


def test_one_listing_without_a_machine_is_only_remembered() -> None:
    """L6: a suddenly empty listing changes nothing; it must stay so for the settle time."""
    rental = running()
    missed = rentals.miss(rental, at=after(1000))

    assert planned([rental], listing(began=1000)) == [Miss(rental)]
    assert planned([missed], listing(began=1029)) == []


def test_a_machine_that_is_listed_again_is_no_longer_missed() -> None:
    """H29: two gaps with a sight between them are two glitches, not one absence."""
    rental = rentals.miss(running(), at=after(1000))
    shown = instance(rental)

    assert planned([rental], listing([shown])) == [Observe(rental, shown)]
    assert rentals.observe(rental, shown, at=after(1010)).missing_since is None


def test_a_lost_machine_is_asked_to_end_before_its_rental_is_closed() -> None:
    """L5: what no listing shows may still be there, and its id is known."""
    lost = releasing(reason="instance_lost")

    assert planned([lost], listing(began=1000)) == [Release(lost, "901")]


def test_a_twin_does_not_take_the_place_of_a_machine_that_is_only_unlisted() -> None:
    """H6: the bound machine serves; one listing without it must not make the duplicate ours."""
    rental = running()
    twin = instance(rental, instance_id="100")

    assert planned([rental], listing([twin])) == [Release(rental, "100", duplicate=True)]


def test_a_confirmed_instance_that_no_listing_ever_showed_gets_the_late_window() -> None:
    """H8: it is more likely to be slow to show than not to be there."""
    rental = starting()

    assert planned([rental], listing(began=149)) == []
    assert planned([rental], listing(began=151)) == [GiveUp(rental, Hopeless.NEVER_LISTED)]


def test_a_never_listed_instance_is_released_by_id_before_it_is_closed() -> None:
    """H8: never silently released; its id is known, so the provider is asked to end it."""
    rental = releasing(starting(), reason="never_listed")

    assert planned([rental], listing(began=1000)) == [Release(rental, "901")]
    asked = rentals.release_tried(rental, at=after(1000), settle=POLICY.settle)
    assert planned([asked], listing(began=1031)) == [Close(asked)]


def test_a_releasing_rental_that_is_still_listed_is_released_again() -> None:
    """H31: success of the release call is not believed, the listing is."""
    rental = seen(running(), InstanceState.RUNNING)
    rental = rentals.release_tried(releasing(rental), at=after(10), settle=POLICY.settle)
    shown = instance(rental)

    assert planned([rental], listing([shown], began=11), at=11) == []
    assert planned([rental], listing([shown], began=50), at=50) == [Release(rental, "901")]


def test_release_tries_back_off_but_never_end() -> None:
    """H32: never `released` by giving up."""
    rental = seen(running(), InstanceState.RUNNING)
    rental = releasing(rental)
    for _ in range(500):
        rental = rentals.release_tried(rental, at=AT, settle=POLICY.settle)

    assert planned([rental], listing([instance(rental)]), at=59) == []
    assert planned([rental], listing([instance(rental)]), at=61) == [Release(rental, "901")]


def test_two_instances_under_one_key_keep_the_bound_one() -> None:
    """H6: duplicates are released, never the machine that serves."""
    rental = running()
    twin = instance(rental, instance_id="100")

    assert planned([rental], listing([twin, instance(rental)])) == [
        Release(rental, "100", duplicate=True)
    ]


def test_an_instance_whose_label_was_lost_is_still_ours_by_id() -> None:
    """H34: the provider or a user rewrote the label."""
    rental = running()

    assert planned([rental], listing([instance(rental, label=None)])) == []


def test_a_running_instance_of_a_starting_rental_is_probed() -> None:
    """The provider's `running` is about the container; only an answer counts."""
    rental = seen(starting(), InstanceState.RUNNING)
    shown = instance(rental)

    assert planned([rental], listing([shown], began=5), at=5) == [Probe(rental, shown)]


def test_an_adopted_running_instance_is_observed_then_probed() -> None:
    """After a crash the first look may already find it up."""
    rental = intended()
    shown = instance(rental)

    assert planned([rental], listing([shown], began=5), at=5) == [
        Observe(rental, shown),
        Probe(rental, shown),
    ]


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (InstanceState.STOPPED, Hopeless.STOPPED_BY_PROVIDER),
        (InstanceState.FAILED, Hopeless.CANNOT_START),
    ],
)
def test_what_will_not_run_again_is_released_at_once(
    state: InstanceState, reason: Hopeless
) -> None:
    """A stopped instance still bills its disk (M4); a failed one never comes up (H28)."""
    rental = seen(starting(), state)

    assert planned([rental], listing([instance(rental, state)], began=5), at=5) == [
        GiveUp(rental, reason),
        Release(rental, "901"),
    ]


def test_a_container_that_ended_gets_a_moment_to_come_back() -> None:
    """`exited` with the wish still `running` can be a restart (vast.md 5.5)."""
    rental = seen(running(), InstanceState.EXITED, 0)
    shown = [instance(rental, InstanceState.EXITED)]

    assert planned([rental], listing(shown), at=29) == []
    assert planned([rental], listing(shown), at=31) == [
        GiveUp(rental, Hopeless.WORKLOAD_EXITED),
        Release(rental, "901"),
    ]


def test_exited_before_it_ever_ran_is_waited_out_for_ten_minutes() -> None:
    """Right after a start the old word can stand for minutes."""
    rental = seen(starting(), InstanceState.EXITED, 0)
    shown = [instance(rental, InstanceState.EXITED)]

    assert planned([rental], listing(shown), at=599) == []
    assert planned([rental], listing(shown), at=601)[0] == GiveUp(rental, Hopeless.WORKLOAD_EXITED)


def test_a_machine_that_never_boots_is_given_up_at_the_deadline() -> None:
    """H28: stuck in loading."""
    rental = seen(starting(), InstanceState.BOOTING, 0)
    shown = [instance(rental, InstanceState.BOOTING)]

    assert planned([rental], listing(shown), at=899) == []
    assert planned([rental], listing(shown), at=901)[0] == GiveUp(rental, Hopeless.BOOT_TIMEOUT)


def test_a_machine_that_came_up_while_nobody_looked_is_asked_before_it_is_given_up() -> None:
    """Its client was dead past the deadline; what was paid for may have served all the while."""
    rental = seen(starting(), InstanceState.BOOTING, 0)

    first = planned([rental], listing([instance(rental)]), at=2000)
    assert [type(each) for each in first] == [Observe, Probe]
    up = seen(rental, InstanceState.RUNNING, 2000)
    assert [type(each) for each in planned([up], listing([instance(up)]), at=2029)] == [Probe]
    late = planned([up], listing([instance(up)]), at=2031)
    assert late[0] == GiveUp(up, Hopeless.BOOT_TIMEOUT)


def test_a_running_rental_has_no_boot_deadline() -> None:
    """Long jobs are the point."""
    rental = running()

    assert planned([rental], listing([instance(rental)]), at=10**6) == []


def test_an_unknown_word_is_neither_gone_nor_failed() -> None:
    """H20: markets add states; an unknown one means wait."""
    rental = seen(running(), InstanceState.UNKNOWN, 0)

    assert planned([rental], listing([instance(rental, InstanceState.UNKNOWN)]), at=9999) == []


def test_a_price_above_the_ceiling_on_first_sight_is_refused() -> None:
    """H26: the price moved between decision and rent."""
    rental = starting()
    dear = instance(
        rental, InstanceState.BOOTING, price_usd_per_hour=rental.ceiling_usd_per_hour * 2
    )

    assert planned([rental], listing([dear], began=5), at=5) == [
        Observe(rental, dear),
        GiveUp(rental, Hopeless.PRICE_ABOVE_CEILING),
        Release(rental, "901"),
    ]


def test_an_orphan_is_released_after_its_grace_and_not_before() -> None:
    """An instance with our key that no open rental explains; its intent may be milliseconds old."""
    stray = instance(intended(), instance_id="55", label=key())

    assert planned([], listing([stray]), orphans={"55": after(971)}) == []
    actions = planned([], listing([stray]), orphans={"55": after(970)})
    assert [type(a) for a in actions] == [ReleaseOrphan]


def test_an_orphan_seen_for_the_first_time_is_left_alone() -> None:
    """The grace begins with the first sight."""
    stray = instance(intended(), instance_id="55", label=key())

    assert planned([], listing([stray])) == []


@pytest.mark.parametrize("label", [None, "my training", "gp4u-zzzzzz-aaaaaaaaaa-bbbbbbbbbb"])
def test_what_is_not_ours_is_never_touched(label: str | None) -> None:
    """H35, L7: shared accounts hold other tools' and other clusters' machines."""
    stranger = instance(intended(), instance_id="55", label=label)

    assert planned([], listing([stranger]), orphans={"55": AT}, at=10**6) == []


def many_running(count: int) -> tuple[list[Rental], list[Instance]]:
    """So many running rentals, and their instances."""
    held = [running(f"cli:{n}", str(900 + n)) for n in range(count)]
    return held, [instance(r) for r in held]


def test_mass_absence_freezes_every_conclusion() -> None:
    """H24: an empty answer with 200 while we hold machines is a wrong account or an outage."""
    held, _ = many_running(10)
    leaving = rentals.release_tried(
        releasing(running("cli:leaving", "500")), at=after(10**6), settle=POLICY.settle
    )

    assert planned([*held, leaving], listing(began=10**6 + 31), at=10**6) == [Frozen(10, 10)]


def test_a_few_absences_among_many_are_believed() -> None:
    """Hosts die; three of twenty is life."""
    held, shown = many_running(20)

    actions = planned(held, listing(shown[3:], began=10**6), at=10**6)

    assert actions == [Miss(r) for r in held[:3]]


def test_the_order_of_rentals_and_instances_changes_nothing() -> None:
    """A plan is a function of what is there, not of how it was listed."""
    held, shown = many_running(4)
    held[0] = releasing(held[0])
    shown[1] = replace(shown[1], state=InstanceState.STOPPED)

    one = planned(held, listing(shown))
    other = planned(held[::-1], listing(shown[::-1]))

    assert sorted(map(repr, one)) == sorted(map(repr, other))


def test_paid_time_that_is_nearly_over_is_extended() -> None:
    """A prepaid machine ends with its hour, whoever still needs it."""
    held = running()
    soon = replace(instance(held), paid_until=after(1000 + 599))
    late = replace(instance(held), paid_until=after(1000 + 600))

    assert Extend(held, "901") in planned([held], listing([soon]))
    assert Extend(held, "901") not in planned([held], listing([late]))


def test_time_is_not_bought_twice_before_the_first_purchase_can_show() -> None:
    """A lost reply may have been a purchase: what was paid until tells, five minutes later."""
    held = rentals.extend_tried(running(), at=after(1000))
    soon = replace(instance(held), paid_until=after(1500))

    assert Extend(held, "901") not in planned([held], listing([soon]), at=1299)
    assert Extend(held, "901") in planned([held], listing([soon]), at=1300)


def test_no_time_is_bought_for_what_is_not_wanted() -> None:
    """Its hour may run out; that is the end that was asked for."""
    soon = {"paid_until": after(1001)}
    leaving, failed = releasing(), running()
    shown = replace(instance(leaving), **soon)
    dead = replace(instance(failed), state=InstanceState.FAILED, **soon)

    for rental, seen_now in ((leaving, shown), (failed, dead)):
        actions = planned([rental], listing([seen_now]))
        assert not any(isinstance(action, Extend) for action in actions)


def test_an_end_of_paid_time_that_moved_is_taken_over_and_a_wobble_is_not() -> None:
    """Each take-over is an event; an estimate that moves by seconds would write one per look."""
    held = rentals.observe(
        running(), replace(instance(running()), paid_until=after(9000)), at=after(1)
    )
    wobble = replace(instance(held), paid_until=after(9060))
    moved = replace(instance(held), paid_until=after(12_600))

    assert planned([held], listing([wobble])) == []
    assert planned([held], listing([moved])) == [Observe(held, moved)]


def test_a_price_above_the_ceiling_counts_until_the_instance_ran() -> None:
    """Some markets tell the price only once a machine is found, after the first sight."""
    booting = seen(starting(), InstanceState.BOOTING)
    dear = replace(instance(booting), state=InstanceState.BOOTING, price_usd_per_hour=Decimal(9))
    held = running()

    assert GiveUp(booting, Hopeless.PRICE_ABOVE_CEILING) in planned([booting], listing([dear]))
    dearer = replace(instance(held), price_usd_per_hour=Decimal(9))
    assert planned([held], listing([dearer])) == []
