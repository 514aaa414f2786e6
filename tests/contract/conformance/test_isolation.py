"""One market that is dead, silent, slow, mad or lying changes nothing for the other three."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from msgspec import Struct

from gp4u.book import LAGGARD_S
from gp4u.errors import ProviderError
from gp4u.model import Demand, InstanceState
from gp4u.rentals.rental import RentalState
from gp4u.sim.faults import Kind, Rule
from tests.contract.conformance.quarter import (
    MARKETS,
    WANTED,
    WORKLOAD,
    Dead,
    Denying,
    Garbage,
    Hanging,
    PricesNan,
    PricesNegative,
    Quarter,
    Slow,
    Way,
    quarter,
)
from tests.virtual_loop import run_virtual

AWAY: dict[str, Way] = {
    "dead": Dead,
    "hanging": Hanging,
    "garbage": Garbage,
    "denying": Denying,
}
LYING: dict[str, Way] = {"nan": PricesNan, "negative": PricesNegative}
EVERY_WAY = AWAY | LYING | {"slow": Slow}
DEMAND = Demand(requirements=WANTED)
ONE_MARKET = pytest.mark.parametrize("victim", list(MARKETS))


class Seen(Struct, frozen=True):
    """What one market showed, and how many seconds each step took."""

    offers: frozenset[tuple[str, Decimal]]
    offer_id: str
    rent_s: float
    release_s: float


async def _visit(place: Quarter, slug: str) -> Seen:
    """Rent at one market, see it listed, release it."""
    found, _ = await place.offers()
    rental, rent_s = await place.rent(slug)
    assert rental.state is RentalState.RUNNING
    assert await place.held(slug) == {rental.key}
    done, release_s = await place.release(rental)
    assert done.state is RentalState.RELEASED
    assert await place.held(slug) == set()
    return Seen(frozenset(found[slug]), rental.offer_id, rent_s, release_s)


async def _run(place: Quarter, seconds: float) -> None:
    """Reconcile as `serve` does."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await place.app.run()


@pytest.fixture(scope="module")
def undisturbed() -> Mapping[str, Seen]:
    """Visit every market while nothing is wrong anywhere."""

    async def life() -> dict[str, Seen]:
        with TemporaryDirectory() as folder:
            async with quarter(Path(folder)) as place:
                return {slug: await _visit(place, slug) for slug in MARKETS}

    return run_virtual(life, seed=1)


@ONE_MARKET
@pytest.mark.parametrize("trouble", list(EVERY_WAY))
def test_the_others_show_rent_list_and_release_as_ever(
    tmp_path: Path, undisturbed: Mapping[str, Seen], victim: str, trouble: str
) -> None:
    """The same offers at the same prices, the same choice, no second later: of three markets."""

    async def life() -> None:
        async with quarter(tmp_path, victim, EVERY_WAY[trouble]) as place:
            for slug, before in undisturbed.items():
                if slug != victim:
                    now = await _visit(place, slug)
                    assert (now.offers, now.offer_id) == (before.offers, before.offer_id)
                    assert now.rent_s <= before.rent_s + 5, "a rent waited for another market"
                    assert now.release_s <= before.release_s + 5, "a release did"

    run_virtual(life, seed=1)


@ONE_MARKET
@pytest.mark.parametrize("trouble", list(EVERY_WAY))
def test_one_table_of_all_waits_no_longer_than_the_book_has_patience(
    tmp_path: Path, undisturbed: Mapping[str, Seen], victim: str, trouble: str
) -> None:
    """A snapshot of every market comes, with a note of why one is missing."""

    async def life() -> None:
        async with quarter(tmp_path, victim, EVERY_WAY[trouble]) as place:
            found, took_s = await place.offers()
            assert took_s <= LAGGARD_S + 5
            for slug, before in undisturbed.items():
                if slug != victim:
                    assert found[slug] == before.offers
            assert all(price > 0 and price.is_finite() for _, price in found[victim])
            if trouble in AWAY:
                assert found[victim] == set()
                decision = await place.app.broker.decide(DEMAND)
                notes = {note.provider: note.error for note in decision.sources}
                assert notes.pop(victim), "nobody is told why a market is missing"
                assert not any(notes.values()), notes

    run_virtual(life, seed=1)


@ONE_MARKET
@pytest.mark.parametrize("trouble", list(AWAY))
def test_rentals_elsewhere_are_seen_through_while_a_market_is_away(
    tmp_path: Path, victim: str, trouble: str
) -> None:
    """The loop of one market must not stop the loops of the others: each minute costs money."""

    async def life() -> None:
        async with quarter(tmp_path, victim, AWAY[trouble]) as place:
            others = [slug for slug in MARKETS if slug != victim]
            held = [(await place.rent(slug))[0] for slug in others]
            for rental in held:
                await place.app.broker.release(rental.key, wait=False)
            await _run(place, 300)
            states = {(await place.app.ledger.get(r.key)).state for r in held}  # type: ignore[union-attr] # they were written above
            assert states == {RentalState.RELEASED}
            assert [slug for slug in others if place.worlds[slug].leaked()] == []

    run_virtual(life, seed=1)


@ONE_MARKET
def test_instances_of_somebody_else_are_never_touched(tmp_path: Path, victim: str) -> None:
    """A key of this software that another installation made is listed, and left alone."""

    async def life() -> None:
        async with quarter(tmp_path) as place:
            foreign = await place.foreign(victim)
            held = {slug: (await place.rent(slug))[0] for slug in MARKETS}
            await _run(place, 300)
            for rental in held.values():
                await place.release(rental)
            await _run(place, 300)

            assert await place.held(victim) == {foreign}
            for slug, world in place.worlds.items():
                assert len(world.leaked()) == (slug == victim), f"at {slug}"

    run_virtual(life, seed=1)


@ONE_MARKET
def test_a_list_that_is_suddenly_empty_ends_nothing_elsewhere(tmp_path: Path, victim: str) -> None:
    """We hold something everywhere, and one market says that it has nothing."""

    async def life() -> None:
        async with quarter(tmp_path) as place:
            held = {slug: (await place.rent(slug))[0] for slug in MARKETS}
            place.faults[victim].add(Rule(kind=Kind.LIST_EMPTY))
            await _run(place, 20)

            for slug, rental in held.items():
                now = await place.app.ledger.get(rental.key)
                assert now is not None
                assert now.is_live, f"{slug} was given up: {now.reason}"
                if slug != victim:
                    assert (now.seen, now.missing_since) == (InstanceState.RUNNING, None)
            place.faults[victim].clear()
            await _run(place, 300)
            for rental in held.values():
                await place.release(rental)
            assert [slug for slug, world in place.worlds.items() if world.leaked()] == []

    run_virtual(life, seed=1)


@ONE_MARKET
def test_a_rent_anywhere_takes_the_best_that_answers(tmp_path: Path, victim: str) -> None:
    """Nobody who names no market has to know which one is down."""

    async def life() -> None:
        async with quarter(tmp_path, victim, Dead) as place:
            rental = await place.app.broker.rent("cli:any", DEMAND, WORKLOAD)
            assert rental.provider != victim
            assert rental.state is RentalState.RUNNING
            with pytest.raises(ProviderError):
                await place.app.providers[victim].ping()

    run_virtual(life, seed=1)
