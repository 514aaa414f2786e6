"""What would have to give way, where a market's own search brings nothing at all."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from gp4u.model import Demand, Requirements
from gp4u.rentals.widening import wider_searches
from gp4u.selection.decide import explain, relaxations
from tests.laws import Story, told


def demand(**bounds: Any) -> Demand:
    """A demand for an RTX 3090 with some bounds that Vast.ai applies itself."""
    return Demand(requirements=Requirements(gpu_models=("RTX 3090",), **bounds))


def searches(story: Story) -> int:
    """How often the market was searched."""
    return sum("/bundles/" in path for _, path, _ in story.market.requests)


def test_a_bound_that_the_market_applied_is_named_with_what_would_do(tmp_path: Path) -> None:
    """L4: `0/0 offers fit` tells nobody that one GPU less would have been enough."""

    async def tale(story: Story) -> None:
        decision = await story.app.broker.decide(demand(gpu_count=64))

        assert decision.best is None
        (found,) = [each for each in relaxations(decision) if each.filter == "gpu_count"]
        assert found.excluded_alone > 0
        assert found.nearest is not None
        assert {each.offer.gpu_model for each in decision.rejections} == {"RTX 3090"}
        assert "nobody offers anything now" not in explain(decision)

    told(tale, tmp_path)


def test_a_gpu_that_nobody_sells_is_named_as_what_has_to_give_way(tmp_path: Path) -> None:
    """A misspelt or retired model is the commonest reason; there are others to choose from."""

    async def tale(story: Story) -> None:
        none = Requirements(gpu_models=("Tesla K80",), gpu_count=1)
        decision = await story.app.broker.decide(Demand(requirements=none))

        assert decision.best is None
        assert "gpu_type" in {each.filter for each in relaxations(decision) if each.excluded_alone}

    told(tale, tmp_path)


def test_spot_machines_that_are_sold_on_demand_only_say_so(tmp_path: Path) -> None:
    """Only where nothing can be bid for is it said that steady ones can be had."""
    asked = Requirements(gpu_models=("RTX 3090",), interruptible=True, disk_gib=50)
    last = list(wider_searches(asked))[-1]
    assert (last.interruptible, last.gpu_models, last.disk_gib) == (False, (), 50)
    steady = replace(asked, interruptible=False)
    assert all(not each.interruptible for each in wider_searches(steady))


def test_however_many_ask_the_wider_search_is_made_once_a_minute(tmp_path: Path) -> None:
    """A market grants ten searches a minute, and those who can rent need them."""

    async def tale(story: Story) -> None:
        wanted = demand(gpu_count=64)
        async with asyncio.TaskGroup() as group:
            for _ in range(20):
                group.create_task(story.app.broker.decide(wanted))
        first = searches(story)
        for _ in range(20):
            await asyncio.sleep(2)
            decision = await story.app.broker.decide(wanted)
            assert relaxations(decision)
        story.app.book.invalidate()
        await story.app.broker.decide(wanted)
        assert searches(story) <= first + 2, "the narrow search, and no wider one"

    told(tale, tmp_path)


def test_nothing_wider_is_asked_where_offers_came(tmp_path: Path) -> None:
    """Their rejections say it all, and a search is not for nothing."""

    async def tale(story: Story) -> None:
        await story.app.broker.decide(demand(min_vram_gib=1000.0))
        assert searches(story) == 1

    told(tale, tmp_path)
