"""The five criteria: fixed scales, stated constants, weights that sum to one."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import msgspec
import numpy as np
import pytest

from gp4u.errors import BadInput
from gp4u.gpus import canonical
from gp4u.model import DEFAULT_WEIGHTS, Offer, Region, Requirements, Snapshot
from gp4u.selection import scorers
from gp4u.selection.scorers import SCORERS, Field, check_weights, score

NOW = datetime(2026, 1, 5, 12, 0, tzinfo=UTC)
SLOW, FAST = canonical("RTX 3060"), canonical("RTX 4090")
assert SLOW is not None
assert FAST is not None
PLAIN = Offer(
    provider="vastai",
    offer_id="1",
    gpu_model=SLOW.model,
    gpu_count=1,
    vram_gib=12.0,
    price_usd_per_hour=Decimal("0.20"),
    gpu_usd_per_hour=Decimal("0.20"),
    storage_usd_per_hour=Decimal(0),
    fetched_at=NOW,
    region=Region("US", "CA"),
    reliability=0.9,
    verified=True,
    datacenter=True,
)


def scored(criterion: str, requirements: Requirements, *changes: dict[str, Any]) -> list[float]:
    """Return one criterion's scores for variations of a plain offer."""
    offers = [msgspec.structs.replace(PLAIN, **change) for change in changes]
    columns = Snapshot(offers, taken_at=NOW).columns
    field = Field(columns, np.arange(len(offers)), requirements, 0.0)
    scores: list[float] = SCORERS[criterion](field).tolist()
    return scores


def test_with_a_budget_the_price_score_is_the_share_left_over() -> None:
    """The scale is the user's own limit, not the dearest offer of the day."""
    budget = Requirements(max_price_usd_per_hour=Decimal("0.50"))
    prices = [{"price_usd_per_hour": Decimal(p)} for p in ("0", "0.20", "0.50", "0.90")]
    assert scored("price", budget, *prices) == pytest.approx([1.0, 0.6, 0.0, 0.0])


def test_a_budget_of_nothing_admits_only_what_is_free() -> None:
    """Zero is a legal budget, and must not divide."""
    budget = Requirements(max_price_usd_per_hour=Decimal(0))
    prices = [{"price_usd_per_hour": Decimal(p)} for p in ("0", "0.20")]
    assert scored("price", budget, *prices) == [1.0, 0.0]


def test_without_a_budget_the_score_halves_per_going_price_of_the_wanted_model() -> None:
    """With two GPUs wanted, twice the going price is the going price."""
    assert FAST is not None
    assert FAST.reference_usd_per_hour is not None
    going = Decimal(str(FAST.reference_usd_per_hour))
    wanted = Requirements(gpu_models=(FAST.model,), gpu_count=2)
    prices = [{"price_usd_per_hour": going * n, "gpu_count": 2} for n in (0, 2, 4)]
    assert scored("price", wanted, *prices) == pytest.approx([1.0, 0.5, 0.25])


def test_where_any_gpu_will_do_each_is_held_against_its_own_going_price() -> None:
    """A fair price for a big card is as good as a fair price for a small one."""
    assert SLOW is not None
    assert FAST is not None
    assert SLOW.reference_usd_per_hour is not None
    assert FAST.reference_usd_per_hour is not None
    fair = [
        {"gpu_model": gpu.model, "price_usd_per_hour": Decimal(str(gpu.reference_usd_per_hour))}
        for gpu in (SLOW, FAST)
    ]
    unheard_of = {
        "gpu_model": "Voodoo 9",
        "price_usd_per_hour": Decimal(str(scorers.REFERENCE_USD_PER_HOUR)),
    }
    assert scored("price", Requirements(), *fair, unheard_of) == pytest.approx([0.5] * 3)


def test_performance_is_the_mean_of_speed_and_reliability() -> None:
    """Faster than what was asked for earns nothing; slower earns its share."""
    assert SLOW is not None
    assert FAST is not None
    assert SLOW.tflops is not None
    assert FAST.tflops is not None
    wanted = Requirements(gpu_models=(FAST.model,))
    share = SLOW.tflops / FAST.tflops
    offers = (
        {"gpu_model": FAST.model, "reliability": 1.0},
        {"gpu_model": FAST.model, "gpu_count": 4, "reliability": 1.0},
        {"reliability": 0.8},
        {"gpu_model": "Voodoo 9", "reliability": 0.8},
    )
    assert scored("performance", wanted, *offers) == pytest.approx(
        [1.0, 1.0, (share + 0.8) / 2, 0.4]
    )


def test_a_wanted_model_of_unknown_speed_is_as_fast_as_wanted() -> None:
    """Laptop chips have no published speed; asking for one must not make it the slow choice."""
    laptop = canonical("RTX 4090 Laptop")
    assert laptop is not None
    assert laptop.tflops is None
    wanted = Requirements(gpu_models=(laptop.model,))
    alone = {"gpu_model": laptop.model, "reliability": 1.0}
    assert scored("performance", wanted, alone) == [1.0]
    assert scored("performance", Requirements(), alone) == [0.5]


def test_unknown_reliability_scores_as_its_prior() -> None:
    """Where it is not a bound, silence is neither perfect nor worthless."""
    prior, unknown = scored(
        "performance",
        Requirements(),
        {"reliability": scorers.RELIABILITY_PRIOR},
        {"reliability": None},
    )
    assert unknown == prior


def test_gpu_match_follows_the_order_of_the_wish() -> None:
    """The seed calls the list first, second and third choice."""
    wish = tuple("ABCDEFGHI")
    asked = Requirements(gpu_models=wish)
    models = [{"gpu_model": model} for model in (*wish, "other")]
    assert scored("gpu_match", asked, *models) == pytest.approx(
        [1.0, 0.85, 0.7, 0.55, 0.4, 0.25, 0.1, 0.0, 0.0, 0.0]
    )
    assert scored("gpu_match", Requirements(), {}, {"gpu_model": "other"}) == [1.0, 1.0]


def test_vram_of_more_than_twice_the_need_costs_a_fixed_part() -> None:
    """Memory that stays empty is paid for all the same; exactly twice is still fine."""
    asked = Requirements(min_vram_gib=12)
    sizes = [{"vram_gib": float(v)} for v in (12, 24, 25)]
    assert scored("gpu_match", asked, *sizes) == pytest.approx([1.0, 1.0, 0.8])


def test_location_follows_the_order_of_the_list_down_to_a_floor() -> None:
    """The first place that contains the offer counts, even if a later one is narrower."""
    regions = [{"region": r} for r in (Region("US", "CA"), Region("US", "TX"), Region("DE"))]
    ordered = Requirements(locations=("US-CA", "US", "EU"))
    assert scored("location", ordered, *regions) == pytest.approx([1.0, 0.85, 0.7])
    wide_first = Requirements(locations=("US", "US-CA"))
    assert scored("location", wide_first, {"region": Region("US", "CA")}) == [1.0]
    long_list = Requirements(locations=("FR", "GB", "SE", "NO", "FI", "PL", "CZ", "US"))
    assert scored("location", long_list, {}, {"region": None}) == [scorers.LOCATION_FLOOR] * 2


def test_without_a_list_every_place_is_alike() -> None:
    """A neutral score keeps the weights comparable between demands."""
    assert scored("location", Requirements(), {}, {"region": None}) == [1.0, 1.0]


def test_availability_falls_with_risk_and_with_age() -> None:
    """Each doubt multiplies: bids, unverified hosts, homes, old listings."""
    stale = {"fetched_at": NOW - timedelta(seconds=scorers.LISTING_HALF_LIFE_S)}
    best, bid, unverified, unknown, home, old, tomorrow = scored(
        "availability",
        Requirements(),
        {},
        {"interruptible": True},
        {"verified": False},
        {"verified": None},
        {"datacenter": False},
        stale,
        {"fetched_at": NOW + timedelta(days=1)},
    )
    assert best == scorers.ON_DEMAND_CHANCE
    assert bid == scorers.INTERRUPTIBLE_CHANCE
    assert unverified < unknown < best
    assert home < best
    assert old == pytest.approx(best / 2)
    assert tomorrow == best


def test_an_offer_keeps_ageing_after_the_snapshot() -> None:
    """A snapshot may be decided over late; its listings have aged meanwhile."""
    columns = Snapshot((PLAIN,), taken_at=NOW).columns
    late = Field(columns, np.arange(1), Requirements(), scorers.LISTING_HALF_LIFE_S)
    assert scorers.availability(late).tolist() == pytest.approx([scorers.ON_DEMAND_CHANCE / 2])


def test_parts_are_weighted_and_sum_to_the_total() -> None:
    """The parts are shown beside the score, so they have to add up."""
    columns = Snapshot((PLAIN,), taken_at=NOW).columns
    result = score(
        Field(columns, np.arange(1), Requirements(), 0.0), {"price": 0.6, "location": 0.4}
    )
    assert list(result.parts) == list(DEFAULT_WEIGHTS)
    assert result.parts["location"][0] == pytest.approx(0.4)
    assert result.parts["gpu_match"][0] == 0.0
    assert sum(float(part[0]) for part in result.parts.values()) == pytest.approx(
        float(result.total[0]), abs=1e-9
    )


@pytest.mark.parametrize(
    ("weights", "field"),
    [
        ({"price": 0.5, "colour": 0.5}, "weights"),
        ({"price": 1.5, "location": -0.5}, "weights.price"),
        ({"location": -0.5, "price": 1.0}, "weights.location"),
        ({"price": math.nan}, "weights.price"),
        ({"price": "much"}, "weights.price"),
        ({"price": True}, "weights.price"),
        ({"price": 0.5, "location": 0.4}, "weights"),
        ({}, "weights"),
    ],
)
def test_bad_weights_are_refused_by_name(weights: dict[str, Any], field: str) -> None:
    """A silent zero or a typo would quietly change which machine is bought."""
    with pytest.raises(BadInput) as caught:
        check_weights(weights)
    assert caught.value.field == field


def test_weights_come_back_complete_and_summing_to_one() -> None:
    """Within the tolerance a sum may be off; the score may not leave 0..1 for it."""
    checked = check_weights({"availability": 0.4 + 9e-7, "price": 0.6})
    assert list(checked) == list(DEFAULT_WEIGHTS)
    assert math.fsum(checked.values()) == pytest.approx(1.0, abs=1e-15)
    assert checked["location"] == 0.0
    assert check_weights(DEFAULT_WEIGHTS) == pytest.approx(dict(DEFAULT_WEIGHTS))


def test_every_criterion_of_the_seed_has_a_scorer() -> None:
    """A weight without a scorer would be dead, a scorer without a weight unreachable."""
    assert set(SCORERS) == set(DEFAULT_WEIGHTS)
