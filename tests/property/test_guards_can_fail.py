"""The tests can see: with any one guard taken out, the laws are found broken within a few seeds.

A law that never failed proves nothing. Each mutant below is the program without one of its guards;
its weather leans towards the fault that the guard is for. The same weather must do no harm to the
program as it is, or the verdict would be on the weather. This is the only place where our own code
is patched.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from msgspec.structs import replace

from gp4u.errors import OfferGone, OutcomeUnknown
from gp4u.model import Listing, Offer, RentalKey, Workload
from gp4u.providers.contract import Choose, Query
from gp4u.providers.vastai.adapter import VastAI
from gp4u.rentals import plan as plans
from gp4u.rentals import reconcile
from gp4u.rentals.budget import Budget
from gp4u.rentals.ledger import Ledger
from gp4u.rentals.plan import Action, Close, GiveUp, Policy, ReleaseOrphan
from gp4u.rentals.rental import Hopeless, Rental, RentalState
from gp4u.sim.faults import Rule
from tests.contract.vastai.test_read_faults import (
    test_an_empty_list_while_five_machines_are_held_concludes_nothing as hold_five,
)
from tests.property.test_crash import cuts, rent
from tests.simulated import DEMAND
from tests.weathered import Broken, live_through

SEEDS = range(15)
CONTROL = range(3)
LIFE_S = 350.0

Remove = Callable[[pytest.MonkeyPatch], None]


def without_patience(patch: pytest.MonkeyPatch) -> None:
    """Every complete listing proves absence, however young what it is about."""

    def at_once(r: Rental, _policy: Policy) -> datetime:
        return r.intended_at

    patch.setattr(plans, "_provable_at", at_once)


def without_settle_time(patch: pytest.MonkeyPatch) -> None:
    """A listing is believed to know of all that was done before it began."""
    patch.setattr(Policy, "settle", property(lambda _: timedelta(0)))


def without_doubt(patch: pytest.MonkeyPatch) -> None:
    """A rent call whose reply was lost is sent again."""
    honest = VastAI.rent

    async def twice(
        self: VastAI, offer: Offer, workload: Workload, key: RentalKey, *, choose: Choose | None
    ) -> str:
        del choose
        try:
            return await honest(self, offer, workload, key)
        except OutcomeUnknown:
            for found in (await self.offers(Query(requirements=DEMAND.requirements))).offers:
                with suppress(OfferGone):
                    return await honest(self, found, workload, key)
            raise

    patch.setattr(VastAI, "rent", twice)


def without_completeness(patch: pytest.MonkeyPatch) -> None:
    """A listing that lost a page is read as if it were whole."""
    honest = plans.plan

    def careless(
        open_rentals: Sequence[Rental], listing: Listing, *a: object, **k: object
    ) -> object:
        whole = replace(listing, complete=True)
        return honest(open_rentals, whole, *a, **k)  # type: ignore[arg-type] # handed through

    patch.setattr(reconcile, "plan", careless)


def without_proof(patch: pytest.MonkeyPatch) -> None:
    """A release that was answered with success counts as done."""
    honest = plans._shown

    def trusting(r: Rental, *rest: object) -> list[Action]:
        if r.state is RentalState.RELEASING and r.release_tries:
            return [Close(r)]
        return honest(r, *rest)  # type: ignore[arg-type] # handed through

    patch.setattr(plans, "_shown", trusting)


def without_a_second_look(patch: pytest.MonkeyPatch) -> None:
    """One listing without a machine is enough to give it up."""
    honest = plans._absent

    def hasty(r: Rental, began_at: datetime, policy: Policy) -> list[Action]:
        if r.is_live and r.seen_at is not None:
            return [GiveUp(r, Hopeless.INSTANCE_LOST)]
        return honest(r, began_at, policy)

    patch.setattr(plans, "_absent", hasty)


def without_a_sweep(patch: pytest.MonkeyPatch) -> None:
    """What no rental explains is nobody's business."""
    honest = plans.plan

    def blind(*a: object, **k: object) -> list[Action]:
        actions = honest(*a, **k)  # type: ignore[arg-type] # handed through
        return [action for action in actions if not isinstance(action, ReleaseOrphan)]

    patch.setattr(reconcile, "plan", blind)


def without_an_intent(patch: pytest.MonkeyPatch) -> None:
    """The intent is written after the rent call instead of before it."""
    write, call = Ledger.intend, VastAI.rent
    waiting: list[tuple[Ledger, Rental, bytes]] = []

    async def later(
        self: Ledger, rental: Rental, decision: bytes, *, budget: Budget, note: str = ""
    ) -> None:
        del budget, note
        waiting.append((self, rental, decision))

    async def rent_first(
        self: VastAI, offer: Offer, workload: Workload, key: RentalKey, *, choose: Choose | None
    ) -> str:
        del choose
        try:
            return await call(self, offer, workload, key)
        finally:
            ledger, rental, decision = waiting.pop()
            await write(ledger, rental, decision)

    patch.setattr(Ledger, "intend", later)
    patch.setattr(VastAI, "rent", rent_first)


def without_keys(patch: pytest.MonkeyPatch) -> None:
    """What a listing shows is not recognised by its label."""
    patch.setattr(Ledger, "key_in", lambda *_: None)


def without_the_mass_guard(patch: pytest.MonkeyPatch) -> None:
    """However much vanishes at once, it is believed."""
    patch.setattr(plans, "MASS_COUNT", 10**9)


@dataclass(frozen=True)
class Mutant:
    """The program without a guard, and the weather that the guard is for."""

    remove: Remove
    law: str
    """How the verdict must begin: what is seen is what the guard is for."""
    weather: tuple[Rule, ...]


def often(kind: str, endpoint: str, **more: object) -> Rule:
    """A fault that strikes every other time."""
    fields = {"chance": 0.5} | more
    return Rule(kind=kind, endpoint=endpoint, **fields)  # type: ignore[arg-type] # fields of one rule


MUTANTS = [
    Mutant(without_patience, "L5", (often("late_effect", "create", seconds=60.0),)),
    Mutant(
        without_settle_time,
        "L[56]",
        (
            often("late_listing", "create", seconds=20.0),
            often("reset_before", "destroy"),
            often("list_stale", "list", seconds=20.0),
        ),
    ),
    Mutant(without_doubt, "H6", (often("reset_after", "create"),)),
    Mutant(
        without_completeness,
        "L[56]",
        (often("list_lost_page", "list", chance=0.9), often("release_ignored", "destroy")),
    ),
    Mutant(without_proof, "L5", (often("release_ignored", "destroy"),)),
    Mutant(
        without_a_second_look,
        "L6",
        (Rule(kind="list_empty", endpoint="list", after_s=120, until_s=140),),
    ),
    Mutant(without_a_sweep, "leaked", (often("late_effect", "create", seconds=700.0),)),
]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.remove.__name__)
def test_without_its_guard_the_program_is_caught_and_with_it_it_is_not(
    mutant: Mutant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The verdict must be the guard's absence, not the weather's presence."""
    strict = mutant.remove is not without_a_sweep  # its fault outlasts every patience
    for seed in CONTROL:
        live_through(seed, tmp_path / "as it is", more=mutant.weather, life_s=LIFE_S, strict=strict)
    mutant.remove(monkeypatch)
    verdict = first_verdict(mutant, tmp_path, strict=strict)

    assert verdict is not None, f"no law saw it in {len(SEEDS)} seeds"
    assert re.search(mutant.law, verdict), "it was seen, but as something else"


def first_verdict(mutant: Mutant, folder: Path, *, strict: bool) -> str | None:
    """Return what the first law that is broken says; None if no seed breaks one."""
    for seed in SEEDS:
        try:
            live_through(seed, folder, more=mutant.weather, life_s=LIFE_S, strict=strict)
        except Broken as broken:
            return str(broken)
    return None


@pytest.mark.parametrize(
    ("remove", "law"),
    [(without_an_intent, "meter_total"), (without_keys, "a machine that no rental explains")],
)
def test_a_crash_finds_a_program_that_cannot_remember_or_recognise(
    remove: Remove, law: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cuts of `test_crash.py` pass without a mutant; with one they must not."""
    remove(monkeypatch)

    with pytest.raises(AssertionError, match=law):
        cuts(rent, tmp_path)


def test_an_empty_list_finds_a_program_that_believes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """H24: five machines lost at one word of a wrong account."""
    without_the_mass_guard(monkeypatch)

    with pytest.raises(AssertionError):
        hold_five(tmp_path)
