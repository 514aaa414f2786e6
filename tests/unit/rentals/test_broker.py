"""The broker where nothing goes wrong: what it sends, what it says, and what it refuses."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from gp4u.errors import BadInput, CalledOff, NothingFits, OwnerHasRental
from gp4u.model import Demand, HealthCheck, RentalKey
from gp4u.rentals.broker import Decided, Intended, Progress, Rented, Settled, Watched
from gp4u.rentals.rental import RentalState
from tests.laws import Story, told
from tests.simulated import DEMAND, WORKLOAD


def test_a_rent_tells_its_steps_in_order_and_the_key_before_the_call(tmp_path: Path) -> None:
    """Ctrl-C in mid-rent must find the key on the screen already (U2)."""
    heard: list[tuple[Progress, int]] = []

    async def tale(story: Story) -> None:
        rental = await story.rent(tell=lambda p: heard.append((p, story.rent_calls)))

        kinds = [type(p) for p, _ in heard if not isinstance(p, Watched)]
        assert kinds == [Decided, Intended, Rented, Settled]
        intended, calls = heard[1]
        assert isinstance(intended, Intended)
        assert intended.rental.key == rental.key
        assert calls == 0, "the key was told after the rent call had been sent"

    told(tale, tmp_path)


def test_a_rented_workload_really_answers(tmp_path: Path) -> None:
    """`running` is our word for it: the endpoint is known, and a probe got through."""

    async def tale(story: Story) -> None:
        rental = await story.rent()

        assert rental.state is RentalState.RUNNING
        assert rental.running_at is not None
        (endpoint,) = rental.endpoints
        assert endpoint.container_port == 8000
        assert endpoint.port in story.contracts[0].ports.values()
        assert story.app.reconciler.probes[rental.key] == ""

    told(tale, tmp_path)


def test_the_best_candidate_is_the_one_that_is_rented(tmp_path: Path) -> None:
    """The decision on disk is the decision that was acted on."""

    async def tale(story: Story) -> None:
        decision = await story.app.broker.decide(DEMAND)
        assert decision.best is not None
        rental = await story.rent()

        assert rental.offer_id == decision.best.offer.offer_id
        assert rental.price_usd_per_hour == decision.best.offer.price_usd_per_hour
        stored = await story.app.ledger.decision(rental.key)
        assert stored is not None
        assert msgspec.json.decode(stored)["ranked"][0]["offer"]["offer_id"] == rental.offer_id

    told(tale, tmp_path)


def test_without_waiting_a_rental_is_returned_once_it_is_confirmed(tmp_path: Path) -> None:
    """`--no-wait`: paid for and on its way; the loop does the rest."""

    async def tale(story: Story) -> None:
        rental = await story.rent(wait=False)
        assert rental.state is RentalState.STARTING
        assert rental.instance_id == str(story.contracts[0].id)
        assert story.sent("GET", "/instances/") == [], "nobody was to wait for a listing"

        await story.client.settle(seconds=60)
        assert (await story.newest(rental)).state is RentalState.RUNNING

    told(tale, tmp_path)


def test_an_owner_holds_one_live_rental_at_most(tmp_path: Path) -> None:
    """A repeated command must not buy a second machine; it is told which one there is."""

    async def tale(story: Story) -> None:
        rental = await story.rent("cli:a", wait=False)
        with pytest.raises(OwnerHasRental) as refused:
            await story.rent("cli:a")

        assert (refused.value.owner, refused.value.key) == ("cli:a", rental.key)
        assert story.rent_calls == 1

    told(tale, tmp_path)


def test_another_owner_gets_another_machine(tmp_path: Path) -> None:
    """The limit is per owner."""

    async def tale(story: Story) -> None:
        one, other = await story.rent("cli:a"), await story.rent("cli:b")

        assert one.key != other.key
        assert len(story.market.live) == 2

    told(tale, tmp_path)


def test_an_owner_may_rent_again_as_soon_as_the_first_is_being_released(tmp_path: Path) -> None:
    """Only live rentals block; a slow release must not stop the next job."""

    async def tale(story: Story) -> None:
        first = await story.rent("cli:a")
        await story.app.broker.release(first.key, wait=False)
        assert (await story.newest(first)).state is RentalState.RELEASING
        second = await story.rent("cli:a")

        assert second.state is RentalState.RUNNING

    told(tale, tmp_path)


def test_rents_at_the_same_time_do_not_race_for_one_machine(tmp_path: Path) -> None:
    """All but one would lose, and each loss is a call of which the market grants few."""

    async def tale(story: Story) -> None:
        async with asyncio.TaskGroup() as group:
            rents = [story.rent(f"pod:{n}", Demand(), wait=False) for n in range(3)]
            tasks = [group.create_task(each) for each in rents]
        offers = [task.result().offer_id for task in tasks]

        assert len(set(offers)) == len(offers)
        assert story.rent_calls == len(offers), "nobody lost to another one of ours"
        fourth = await story.rent("pod:3", Demand(), wait=False)
        assert fourth.offer_id not in offers, "the book may still show what we have got"

    told(tale, tmp_path)


def test_a_dry_run_sends_nothing_that_costs(tmp_path: Path) -> None:
    """It may search; it may neither rent nor write."""

    async def tale(story: Story) -> None:
        await story.app.broker.dry_run(DEMAND, WORKLOAD)

        assert {path for _, path, _ in story.market.requests} == {"/api/v0/bundles/"}
        assert await story.app.ledger.every_rental() == []

    told(tale, tmp_path)


def test_a_dry_run_shows_exactly_what_a_rent_sends(tmp_path: Path) -> None:
    """A plan that differs from the deed is worse than none; only the minted key may differ."""

    async def tale(story: Story) -> None:
        _, _, (call,) = await story.app.broker.dry_run(DEMAND, WORKLOAD)
        rental = await story.rent()

        (sent,) = [r for r in story.market.requests if "/asks/" in r[1]]
        method, path, body = sent
        assert (call.method, call.url.endswith(path)) == (method, True)
        assert call.body is not None
        planned = msgspec.json.decode(
            msgspec.json.Encoder(decimal_format="number").encode(call.body)
        )
        done = msgspec.json.decode(body)
        planned_key = planned["label"]
        assert planned_key != rental.key
        assert (
            msgspec.json.decode(
                msgspec.json.encode(planned).replace(planned_key.encode(), rental.key.encode())
            )
            == done
        )

    told(tale, tmp_path)


def test_a_demand_that_nothing_fits_is_refused_with_its_decision(tmp_path: Path) -> None:
    """Exit 3: the decision explains itself, and neither market nor ledger were touched."""
    cheap = replace(
        DEMAND,
        requirements=replace(
            DEMAND.requirements, max_price_usd_per_hour=Decimal("0.0001"), verified_only=False
        ),
    )

    async def tale(story: Story) -> None:
        with pytest.raises(NothingFits) as nothing:
            await story.rent(demand=cheap)

        assert nothing.value.decision.rejections
        assert {r.filter for r in nothing.value.decision.rejections} >= {"price"}
        assert story.rent_calls == 0
        assert await story.app.ledger.every_rental() == []

    told(tale, tmp_path)


def test_a_dry_run_that_nothing_fits_has_no_calls(tmp_path: Path) -> None:
    """There is no winner to show a call for."""
    none = replace(DEMAND, requirements=replace(DEMAND.requirements, gpu_count=64))

    async def tale(story: Story) -> None:
        decision, first, calls = await story.app.broker.dry_run(none, WORKLOAD)

        assert (decision.best, first, calls) == (None, None, ())

    told(tale, tmp_path)


def test_a_workload_that_no_market_takes_is_refused_before_anything_is_written(
    tmp_path: Path,
) -> None:
    """Bad input is the caller's to mend: no intent, no call."""
    huge = replace(WORKLOAD, env={"BLOB": "x" * 100_000})

    async def tale(story: Story) -> None:
        with pytest.raises(BadInput):
            await story.rent(workload=huge)

        assert story.rent_calls == 0
        assert await story.app.ledger.every_rental() == []

    told(tale, tmp_path)


def test_a_release_ends_with_proof_and_with_the_bill(tmp_path: Path) -> None:
    """Released means proven absent, and the cost is the provider's own figure."""

    async def tale(story: Story) -> None:
        rental = await story.rent()
        done = await story.app.broker.release(rental.key, reason="enough")

        assert (done.state, done.reason) == (RentalState.RELEASED, "enough")
        assert done.billed_usd is not None
        assert story.market.live == []

    told(tale, tmp_path)


def test_releasing_again_is_no_error_and_sends_nothing(tmp_path: Path) -> None:
    """A script may run twice."""

    async def tale(story: Story) -> None:
        rental = await story.rent()
        done = await story.app.broker.release(rental.key)
        before = len(story.market.requests)
        again = await story.app.broker.release(rental.key, reason="again")

        assert again == done
        assert len(story.market.requests) == before

    told(tale, tmp_path)


def test_releasing_what_is_being_released_joins_in(tmp_path: Path) -> None:
    """Two terminals, one rental: both see its end, and the first reason stays."""

    async def tale(story: Story) -> None:
        rental = await story.rent()
        await story.app.broker.release(rental.key, reason="first", wait=False)
        done = await story.app.broker.release(rental.key, reason="second")

        assert (done.state, done.reason) == (RentalState.RELEASED, "first")

    told(tale, tmp_path)


def test_without_waiting_a_release_returns_once_the_market_was_asked(tmp_path: Path) -> None:
    """`--no-wait`: the money stops; the proof comes later."""

    async def tale(story: Story) -> None:
        rental = await story.rent()
        asked = await story.app.broker.release(rental.key, wait=False)

        assert asked.state is RentalState.RELEASING
        assert asked.release_tries == 1
        assert story.market.live == []

    told(tale, tmp_path)


def test_an_unknown_key_is_bad_input(tmp_path: Path) -> None:
    """A typo must not look like success."""

    async def tale(story: Story) -> None:
        with pytest.raises(BadInput, match="no rental"):
            await story.app.broker.release(RentalKey("gp4u-nobody"))

    told(tale, tmp_path)


def test_a_workload_without_checks_runs_when_its_container_does(tmp_path: Path) -> None:
    """Nothing was asked to be probed, so the market's word is enough."""

    async def tale(story: Story) -> None:
        rental = await story.rent(workload=replace(WORKLOAD, health=()))

        assert rental.state is RentalState.RUNNING

    told(tale, tmp_path)


def test_a_workload_that_never_answers_is_given_up_at_its_deadline(tmp_path: Path) -> None:
    """The check is for a port that nobody publishes: running is not serving."""
    mute = replace(WORKLOAD, health=(HealthCheck(port=9999),))
    problems: list[str] = []

    def hear(progress: Progress) -> None:
        if isinstance(progress, Watched):
            problems.append(progress.probe)

    async def tale(story: Story) -> None:
        one = replace(DEMAND, requirements=replace(DEMAND.requirements, gpu_count=1))
        with pytest.raises(Exception, match="boot_timeout"):
            await story.rent(demand=one, workload=mute, tell=hear)

        assert "port 9999 is not published yet" in problems
        assert story.market.live == []

    told(tale, tmp_path)


@pytest.mark.parametrize("after_s", [0.0, 0.05, 0.5, 2.0, 5.0, 8.0])
def test_a_rental_released_while_it_comes_up_is_not_followed_by_another(
    after_s: float, tmp_path: Path
) -> None:
    """Two that use one desk: one waits for a machine, the other one takes it away meanwhile."""
    known = asyncio.Event()
    keys: list[RentalKey] = []

    def hear(progress: Progress) -> None:
        if isinstance(progress, Intended):
            keys.append(progress.rental.key)
            known.set()

    async def tale(story: Story) -> None:
        async def call_off() -> None:
            await known.wait()
            await asyncio.sleep(after_s)
            await story.app.broker.release(keys[0], reason="released_by_user")

        async with asyncio.TaskGroup() as group:
            group.create_task(call_off())
            with pytest.raises(CalledOff, match="released_by_user"):
                await story.rent(tell=hear)

        assert len(keys) == 1, "another one was rented for somebody who wants none"
        assert not await story.app.ledger.open_rentals()
        assert story.market.live == []

    told(tale, tmp_path)


def test_a_reason_that_only_a_machine_can_give_is_not_taken_from_a_person(tmp_path: Path) -> None:
    """A rent that waits would take it for a machine's failure, and rent the next one."""

    async def tale(story: Story) -> None:
        rental = await story.rent()
        with pytest.raises(BadInput, match="boot_timeout"):
            await story.app.broker.release(rental.key, reason="boot_timeout")

    told(tale, tmp_path)
