"""The many ways in which a rent is declined: taken, dearer by now, too fast, not paid for.

None of them is a failure of the market, so none may trip the breaker (H9, H10, H25, H26, M1).
"""

from __future__ import annotations

from pathlib import Path

import pytest

from gp4u.errors import (
    OfferGone,
    ProviderError,
    Refused,
    Throttled,
)
from gp4u.rentals.broker import Dropped, Progress
from gp4u.rentals.rental import RentalState
from gp4u.sim.faults import THROTTLE_SHAPES
from tests.laws import Story, on_rent, told
from tests.simulated import DEMAND


@pytest.mark.parametrize("shape", THROTTLE_SHAPES[:4])
def test_a_throttled_rent_is_paced_and_then_succeeds(tmp_path: Path, shape: str) -> None:
    """H9: 429 in every shape that was seen, none with a Retry-After; no failure of the market."""

    async def tale(story: Story) -> None:
        rental = await story.rent()

        assert rental.state is RentalState.RUNNING
        assert len(story.contracts) == 1
        assert story.trips == 0
        assert story.app.guards["vastai"].health().breaker.failure_count == 0
        times = [at for at, endpoint, _ in story.faults.fired if endpoint == "create"]
        assert story.contracts[0].created_at - times[-1] >= 12, "the documented penalty"

    told(tale, tmp_path, on_rent("throttle", 1, shape=shape))


def test_a_used_up_quota_is_said_and_buys_nothing(tmp_path: Path) -> None:
    """H9: a daily quota with its reset hours away; nobody waits so long in a rent."""

    async def tale(story: Story) -> None:
        with pytest.raises(ProviderError):
            await story.rent()

        assert story.contracts == []
        assert story.trips == 0

    told(tale, tmp_path, on_rent("throttle", shape="quota"))


@pytest.mark.parametrize("header", ["1", "0", "-5", "NaN", "1e999", "soon", "\x7f", "7 apples"])
def test_any_retry_after_of_a_throttled_rent_is_survived(tmp_path: Path, header: str) -> None:
    """H10: seconds, nonsense and hostile values; the next candidate is rented all the same."""

    async def tale(story: Story) -> None:
        rental = await story.rent()

        assert rental.state is RentalState.RUNNING
        assert len(story.contracts) == 1

    told(tale, tmp_path, on_rent("throttle", 1, retry_after=header))


def test_a_rent_that_is_always_throttled_ends_with_its_reason(tmp_path: Path) -> None:
    """H9: the owner is told what it was, within minutes, and nothing was made."""

    async def tale(story: Story) -> None:
        began = story.world.now_s
        with pytest.raises(Throttled):
            await story.rent()

        assert story.contracts == []
        assert story.trips == 0
        assert story.world.now_s - began <= 300

    told(tale, tmp_path, on_rent("throttle"))


@pytest.mark.parametrize("status", [400, 404, 409, 410])
def test_a_taken_offer_leads_to_the_next_candidate(tmp_path: Path, status: int) -> None:
    """H25: all four ways to say it; a market that sells well is no failing market."""
    heard: list[Progress] = []

    async def tale(story: Story) -> None:
        rental = await story.rent(tell=heard.append)
        await story.client.settle(seconds=60)

        assert rental.state is RentalState.RUNNING
        dropped = [p for p in heard if isinstance(p, Dropped)]
        assert [p.reason for p in dropped] == ["offer_gone"]
        first, second = await story.app.ledger.every_rental()
        assert first.offer_id != second.offer_id
        assert first.state is RentalState.RELEASED
        assert len(story.contracts) == 1
        assert story.trips == 0

    told(tale, tmp_path, on_rent("offer_gone", 1, status=status))


def test_a_taken_offer_is_not_tried_again_at_once(tmp_path: Path) -> None:
    """H25: the book still shows it for a while; it is cooled, not asked for again and again."""

    async def tale(story: Story) -> None:
        await story.rent()
        await story.rent("cli:b")

        paths = [path for _, path, _ in story.market.requests if "/asks/" in path]
        assert len(story.contracts) == 2
        assert paths.count(paths[0]) == 1

    told(tale, tmp_path, on_rent("offer_gone", 1))


def test_a_rent_whose_every_offer_is_taken_says_so(tmp_path: Path) -> None:
    """H25: an end is an answer, too; each offer was asked for once."""

    async def tale(story: Story) -> None:
        with pytest.raises(OfferGone):
            await story.rent()

        paths = [path for _, path, _ in story.market.requests if "/asks/" in path]
        assert 1 < len(paths) == len(set(paths)) <= 5
        assert story.contracts == []
        assert story.trips == 0

    told(tale, tmp_path, on_rent("offer_gone"))


def test_a_price_that_moved_above_the_ceiling_is_released_on_sight(tmp_path: Path) -> None:
    """H26: the host raised it between decision and rent; the first listing shows the new one."""

    async def tale(story: Story) -> None:
        decision = await story.app.broker.decide(DEMAND)
        assert decision.best is not None
        found = story.world.find_offer(int(decision.best.offer.offer_id))
        assert found is not None
        dear = found[0].usd_per_gpu_hour * 3
        story.world.change_machine(found[0].machine_id, usd_per_gpu_hour=dear)

        rental = await story.rent()
        await story.client.settle(seconds=60)

        assert rental.state is RentalState.RUNNING
        assert await story.reasons() == ["price_above_ceiling", ""]
        first = story.contracts[0]
        assert first.destroyed_at is not None
        assert first.destroyed_at - first.created_at < 20
        assert story.contracts[1].machine.machine_id != found[0].machine_id

    told(tale, tmp_path)


def test_an_account_without_credit_ends_the_rent_at_once(tmp_path: Path) -> None:
    """M1: the next candidate would cost the same nothing; the refusal is typed."""

    async def tale(story: Story) -> None:
        with pytest.raises(Refused) as refused:
            await story.rent()

        assert refused.value.code == "insufficient_credit"
        assert story.rent_calls == 1
        assert story.contracts == []
        assert story.trips == 0

    told(tale, tmp_path, on_rent("no_credit"))
