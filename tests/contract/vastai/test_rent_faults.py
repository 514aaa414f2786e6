"""What goes wrong around a rent call, fault by fault, through the whole stack.

Each story ends with the market healed and everything released, and is then judged by the laws of
`tests/laws.py`: nothing leaked, nothing bought twice under one key, ledger = meter.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from gp4u.errors import (
    CircuitBreakerOpen,
    NothingFits,
    OutcomeUnknown,
    OwnerHasRental,
    Refused,
    Unavailable,
)
from gp4u.rentals.broker import Progress, Unsettled
from gp4u.rentals.rental import RentalState
from gp4u.sim.faults import BODY_SHAPES, Rule
from tests.laws import Story, held_now, on_rent, told


def test_a_refused_connection_is_tried_again_with_the_same_key(tmp_path: Path) -> None:
    """H1: no byte left, so even a rent may be sent again; all tries carry one key."""

    async def tale(story: Story) -> None:
        rental = await story.rent()

        assert rental.state is RentalState.RUNNING
        bodies = story.sent("PUT", "/asks/")
        assert len(bodies) == 3
        assert all(rental.key.encode() in body for body in bodies)
        assert len(story.contracts) == 1

    told(tale, tmp_path, on_rent("refuse", 1, 2))


def test_a_market_that_refuses_every_connection_sells_nothing(tmp_path: Path) -> None:
    """H1: the breaker ends it; nothing was made, and no rental stays open for ever."""

    async def tale(story: Story) -> None:
        with pytest.raises((Unavailable, CircuitBreakerOpen)):
            await story.rent()

        assert story.contracts == []
        assert story.rent_calls == 5
        assert story.trips == 1

    told(tale, tmp_path, on_rent("refuse"))


@pytest.mark.parametrize("kind", ["reset_after", "cut_body", "hang_after"])
def test_a_lost_reply_is_settled_by_the_key_and_never_sent_again(tmp_path: Path, kind: str) -> None:
    """H2, H16: the rent worked and nobody told us; a listing does."""
    heard: list[Progress] = []

    async def tale(story: Story) -> None:
        rental = await story.rent(tell=heard.append)

        assert rental.state is RentalState.RUNNING
        assert story.rent_calls == 1
        assert [str(c.id) for c in story.contracts] == [rental.instance_id]
        kinds = await story.kinds(rental)
        assert kinds[:3] == ["intended", "unknown", "adopted"]
        assert kinds[-1] == "running"
        assert any(isinstance(progress, Unsettled) for progress in heard)

    told(tale, tmp_path, on_rent(kind, 1, seconds=300.0), boot_s=(10, 20), list_lag_s=(1, 1))


def test_a_call_that_never_arrived_costs_patience_and_then_the_next_candidate(
    tmp_path: Path,
) -> None:
    """H2 from the other side: the reply is lost and nothing was made; only time can tell that."""

    async def tale(story: Story) -> None:
        loop_began = story.world.now_s
        rental = await story.rent()

        assert rental.state is RentalState.RUNNING
        assert await story.reasons() == ["never_rented", ""]
        assert story.rent_calls == 2
        assert len(story.contracts) == 1
        assert story.contracts[0].created_at - loop_began >= 125, "patience was cut short"

    told(tale, tmp_path, on_rent("reset_before", 1))


def test_patience_counts_from_the_end_of_the_call_and_not_from_the_wish(tmp_path: Path) -> None:
    """H3: two refused connections, a wait for a turn, a minute of silence: all before it counts."""

    async def tale(story: Story) -> None:
        rental = await story.rent(wait=False)

        left = rental.provable_at - story.app.clock.now()
        assert rental.state is RentalState.INTENDED
        assert left.total_seconds() == 65, "late window and settle time"
        assert (rental.provable_at - rental.intended_at).total_seconds() > 125

    told(tale, tmp_path, on_rent("refuse", 1, 2), on_rent("hang_before", 3, seconds=100.0))


def test_an_effect_within_patience_is_adopted_and_not_bought_twice(tmp_path: Path) -> None:
    """H3: the call was parked on its way; listings before its effect prove nothing."""

    async def tale(story: Story) -> None:
        rental = await story.rent()

        assert rental.state is RentalState.RUNNING
        assert story.rent_calls == 1
        assert [str(c.id) for c in story.contracts] == [rental.instance_id]

    told(tale, tmp_path, on_rent("late_effect", 1, seconds=100.0))


def test_an_effect_after_patience_is_swept_as_an_orphan(tmp_path: Path) -> None:
    """H3: later than any window we wait; what then appears is found by its key, and its cost too
    is booked on the rental that it was meant for."""

    async def tale(story: Story) -> None:
        rental = await story.rent()
        assert await story.reasons() == ["never_rented", ""]
        await story.client.settle(seconds=600)

        late = next(c for c in story.contracts if str(c.id) != rental.instance_id)
        assert late.destroyed_at is not None
        assert late.destroyed_at - late.created_at <= 120, "L3"
        assert [str(c.id) for c in story.market.live] == [rental.instance_id]
        first, _ = await story.app.ledger.every_rental()
        assert first.others == (str(late.id),)
        assert first.billed_usd == pytest.approx(story.world.meter(late))

    told(tale, tmp_path, on_rent("late_effect", 1, seconds=400.0))


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_a_server_error_after_a_rent_proves_nothing(tmp_path: Path, status: int) -> None:
    """H4: the gateway gave up, the marketplace did not."""

    async def tale(story: Story) -> None:
        rental = await story.rent()

        assert rental.state is RentalState.RUNNING
        assert story.rent_calls == 1
        assert len(story.contracts) == 1

    told(tale, tmp_path, on_rent("status_after", 1, status=status))


@pytest.mark.parametrize("status", [None, 200, 503])
def test_an_error_that_names_an_instance_gets_it_released(
    tmp_path: Path, status: int | None
) -> None:
    """H5: the market declined and made a stopped, billing contract all the same."""

    async def tale(story: Story) -> None:
        rental = await story.rent()
        await story.client.settle(seconds=60)

        first, second = await story.app.ledger.every_rental()
        assert first.reason.startswith("refused")
        assert first.instance_id == str(story.contracts[0].id)
        assert first.state is RentalState.RELEASED
        assert second.key == rental.key
        assert [str(c.id) for c in story.market.live] == [rental.instance_id]

    told(tale, tmp_path, on_rent("failed_with_id", 1, status=status))


def test_a_rent_that_fails_altogether_still_sees_the_named_instance_gone(tmp_path: Path) -> None:
    """H5: when every candidate ends so, `rent` may be the last process there is to see to it."""

    async def tale(story: Story) -> None:
        with pytest.raises(Refused):
            await story.rent()

        assert len(story.contracts) == story.rent_calls > 1
        assert story.market.live == []
        assert {r.state for r in await story.app.ledger.every_rental()} == {RentalState.RELEASED}

    told(tale, tmp_path, on_rent("failed_with_id"))


def test_a_failure_without_an_id_is_found_by_its_key(tmp_path: Path) -> None:
    """vast.md 4.5: `200 success:false` that made a contract and does not name it."""

    async def tale(story: Story) -> None:
        rental = await story.rent()
        await story.client.settle(seconds=60)

        first, second = await story.app.ledger.every_rental()
        assert (first.reason, first.state) == ("stopped_by_provider", RentalState.RELEASED)
        assert first.instance_id == str(story.contracts[0].id)
        assert second.key == rental.key
        assert len(story.contracts) == story.rent_calls == 2

    told(tale, tmp_path, on_rent("failed_without_id", 1))


@pytest.mark.parametrize("lost_reply", [False, True])
def test_of_a_doubled_rent_one_is_kept_and_the_other_released(
    tmp_path: Path, lost_reply: bool
) -> None:
    """H6: something between us and the market sent our one call twice."""

    async def tale(story: Story) -> None:
        rental = await story.rent()
        await story.client.settle(seconds=60)

        assert rental.state is RentalState.RUNNING
        assert story.rent_calls == 1
        assert len(story.contracts) == 2
        assert [str(c.id) for c in story.market.live] == [rental.instance_id]
        assert "double" in await story.kinds(rental)

    rules = [on_rent("duplicate", 1)] + ([on_rent("reset_after", 1)] if lost_reply else [])
    told(tale, tmp_path, *rules)


def test_the_machine_that_serves_is_kept_when_only_its_twin_is_listed(tmp_path: Path) -> None:
    """H6 and H7: the twin shows first; the one we were told of must not be taken for the extra."""

    async def tale(story: Story) -> None:
        rental = await story.rent(wait=False)
        told_id = rental.instance_id
        story.market.faults.add(Rule(kind="latency", seconds=0.1))
        await story.client.settle(seconds=120)

        assert (await story.newest(rental)).instance_id == told_id
        assert [str(c.id) for c in story.market.live] == [told_id]

    told(tale, tmp_path, on_rent("duplicate", 1), list_lag_s=(0.0, 40.0), seed=11)


def test_an_instance_that_is_listed_late_is_waited_for(tmp_path: Path) -> None:
    """H7: read-after-write lag of half a minute; absence inside the window proves nothing."""

    async def tale(story: Story) -> None:
        rental = await story.rent()

        assert rental.state is RentalState.RUNNING
        assert story.rent_calls == len(story.contracts) == 1

    told(tale, tmp_path, on_rent("late_listing", 1, seconds=40.0))


def test_a_rent_released_before_it_was_ever_listed_is_released_by_its_id(tmp_path: Path) -> None:
    """H7: the wish ended while listings were still blind to the instance."""

    async def tale(story: Story) -> None:
        rental = await story.rent(wait=False)
        released = await story.app.broker.release(rental.key)

        assert released.state is RentalState.RELEASED
        assert story.market.live == []

    told(tale, tmp_path, on_rent("late_listing", 1, seconds=40.0))


def test_a_confirmed_instance_that_no_listing_shows_is_released_by_its_id(tmp_path: Path) -> None:
    """H8: a phantom; it is asked to end by the id that the reply gave, then another is tried."""

    async def tale(story: Story) -> None:
        rental = await story.rent()
        await story.client.settle(seconds=60)

        first, second = await story.app.ledger.every_rental()
        assert (first.reason, first.state) == ("never_listed", RentalState.RELEASED)
        assert second.key == rental.key
        assert story.contracts[0].destroyed_at is not None
        assert [str(c.id) for c in story.market.live] == [rental.instance_id]

    told(tale, tmp_path, on_rent("late_listing", 1, seconds=1e6))


@pytest.mark.parametrize("shape", BODY_SHAPES)
def test_an_unreadable_reply_to_a_rent_is_an_unknown_outcome(tmp_path: Path, shape: str) -> None:
    """H17: status 200 around nonsense; the rent worked and must not be sent again."""

    async def tale(story: Story) -> None:
        rental = await story.rent()

        assert rental.state is RentalState.RUNNING
        assert story.rent_calls == len(story.contracts) == 1
        assert "unknown" in await story.kinds(rental)

    told(tale, tmp_path, on_rent("body", 1, shape=shape))


def test_a_lost_label_alone_costs_nothing(tmp_path: Path) -> None:
    """H34: the reply named the instance, so it stays ours by its id."""

    async def tale(story: Story) -> None:
        rental = await story.rent()

        assert rental.state is RentalState.RUNNING
        assert story.contracts[0].label is None

    told(tale, tmp_path, on_rent("label_lost", 1))


def test_a_lost_label_and_a_lost_reply_together_cannot_be_told_from_a_stranger(
    tmp_path: Path,
) -> None:
    """H34, the limit: nothing on the machine is ours, so L7 (only ours) wins over L3 (no leak).

    It is never touched, the owner is served by another machine after patience, and the first one
    bills until a person ends it. No client can do better: it may as well be somebody else's.
    """

    async def tale(story: Story) -> None:
        rental = await story.rent()
        await story.client.settle(seconds=600)

        stranger, ours = story.contracts
        assert str(ours.id) == rental.instance_id
        assert await story.reasons() == ["never_rented", ""]
        assert stranger.alive
        assert not [path for _, path, _ in story.market.requests if f"/{stranger.id}/" in path]
        await story.world.destroy(stranger)  # the person

    told(tale, tmp_path, on_rent("label_lost", 1), on_rent("reset_after", 1))


def test_a_search_without_a_reply_buys_nothing_and_says_why(tmp_path: Path) -> None:
    """H11: no offers because the market is down is told apart from no offers that fit."""

    async def tale(story: Story) -> None:
        with pytest.raises(NothingFits) as nothing:
            await story.rent()

        assert "503" in nothing.value.decision.sources[0].error
        assert story.rent_calls == 0
        assert len(story.sent("POST", "/bundles")) == 3

    told(tale, tmp_path, Rule(kind="status", endpoint="search", status=503))


def test_an_owner_whose_outcome_is_unknown_cannot_buy_a_second_machine(tmp_path: Path) -> None:
    """L2: while only time can tell, the same owner is refused, and told which rental it is."""

    async def tale(story: Story) -> None:
        rental = await story.rent(wait=False)
        assert rental.state is RentalState.INTENDED
        with pytest.raises(OwnerHasRental) as refused:
            await story.rent()

        assert refused.value.key == rental.key
        assert story.rent_calls == 1
        await story.client.settle(seconds=60)
        held_now(story.market, await story.app.ledger.every_rental())

    told(tale, tmp_path, on_rent("reset_after", 1))


def test_when_nothing_ever_comes_of_it_the_outcome_stays_an_unknown_one(tmp_path: Path) -> None:
    """H2: five calls, five silences; the error says that they may have worked."""

    async def tale(story: Story) -> None:
        with pytest.raises((OutcomeUnknown, CircuitBreakerOpen)):
            await story.rent()

        assert story.contracts == []

    told(tale, tmp_path, on_rent("reset_before"))
