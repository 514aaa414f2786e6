"""G-Score: fixed scales, honest unknowns, and the same number one by one as for a whole market."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from decimal import Decimal
from random import Random

import msgspec
import pytest

from gp4u.gpus import canonical, models
from gp4u.model import Offer, Snapshot
from gp4u.selection.gscore import RELIABILITY_PRIOR, g_score, g_scores

NOW = datetime(2026, 11, 1, 12, 0, tzinfo=UTC)


def offer(
    model: str = "RTX 4090",
    count: int = 1,
    usd_per_hour: str = "0.35",
    reliability: float | None = 0.98,
    offer_id: str = "1",
) -> Offer:
    price = Decimal(usd_per_hour)
    return Offer(
        provider="vastai",
        offer_id=offer_id,
        gpu_model=model,
        gpu_count=count,
        vram_gib=24.0,
        price_usd_per_hour=price,
        gpu_usd_per_hour=price,
        storage_usd_per_hour=Decimal(0),
        fetched_at=NOW,
        reliability=reliability,
    )


def score_of(one: Offer) -> float:
    found = g_score(one)
    assert found is not None
    return found.score


def test_the_score_is_the_weighted_product_of_its_parts() -> None:
    """Who sees the parts must be able to check the score with a pocket calculator."""
    found = g_score(offer())
    assert found is not None
    product = found.performance**0.5 * found.reliability**0.3 * found.efficiency**0.2
    assert found.score == pytest.approx(100 * product)


def test_the_worked_example_of_the_decision_record_holds() -> None:
    """The record explains the formula with one RTX 4090; it must not drift from the code."""
    found = g_score(offer())
    assert found is not None
    assert found.performance == pytest.approx(0.278, abs=5e-4)
    assert found.reliability == 0.98
    assert found.efficiency == pytest.approx(0.5)
    assert found.score == pytest.approx(45.6, abs=0.05)


def test_the_parts_that_are_shown_multiply_to_the_score_that_is_shown() -> None:
    """A program that reads `g_score_parts` must come to `g_score`, but for the rounding."""
    found = g_score(offer())
    assert found is not None
    weights = {"performance": 0.5, "reliability": 0.3, "efficiency": 0.2}
    assert found.parts.keys() == weights.keys()
    product = math.prod(found.parts[name] ** weight for name, weight in weights.items())
    assert 100 * product == pytest.approx(found.score, rel=2e-3)


@pytest.mark.parametrize(("model", "count"), [("RTX 4090", 1), ("RTX 3060", 4), ("H100 SXM", 8)])
@pytest.mark.parametrize("share", [0.25, 1.0, 3.0])
def test_efficiency_compares_the_price_of_throughput_with_that_of_its_class(
    model: str, count: int, share: float
) -> None:
    """What a unit of throughput costs against the class, written out though throughput cancels."""
    gpu = canonical(model)
    assert gpu is not None
    assert gpu.reference_usd_per_hour is not None
    assert gpu.tflops is not None
    usd = gpu.reference_usd_per_hour * count * share
    found = g_score(offer(model, count, repr(usd)))
    assert found is not None
    ours = usd / (gpu.tflops * count)
    median = gpu.reference_usd_per_hour / gpu.tflops
    assert found.efficiency == pytest.approx(median / (median + ours))


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        (offer(usd_per_hour="0.30"), offer(usd_per_hour="0.35")),
        (offer(reliability=0.99), offer(reliability=0.98)),
        (offer(count=2, usd_per_hour="0.70"), offer(count=1, usd_per_hour="0.35")),
        (offer("H100 SXM", usd_per_hour="1.9"), offer("RTX 4090", usd_per_hour="0.35")),
        (offer("RTX 3090", usd_per_hour="0.17"), offer("RTX 3060", usd_per_hour="0.07")),
        (offer("B200", 8, "28.8"), offer("H100 SXM", 8, "15.2")),
    ],
)
def test_what_is_better_in_one_respect_and_equal_in_the_others_scores_higher(
    better: Offer, worse: Offer
) -> None:
    """Cheaper, steadier, more and faster are each worth something."""
    assert score_of(better) > score_of(worse)


def test_an_unknown_reliability_scores_like_a_new_host() -> None:
    """Unknown is neither perfect nor worthless, and never better than a host that proved itself."""
    unknown = score_of(offer(reliability=None))
    assert unknown == score_of(offer(reliability=RELIABILITY_PRIOR))
    assert score_of(offer(reliability=0.5)) < unknown < score_of(offer(reliability=0.9))


def test_efficiency_is_a_half_at_the_reference_price_whatever_the_card_and_count() -> None:
    """Only then do offers of different classes compare by how well they are priced."""
    for model in ("RTX 3060", "RTX 4090", "H100 SXM"):
        gpu = canonical(model)
        assert gpu is not None
        assert gpu.reference_usd_per_hour is not None
        for count in (1, 8):
            price = str(round(gpu.reference_usd_per_hour * count, 4))
            found = g_score(offer(model, count, price))
            assert found is not None
            assert found.efficiency == pytest.approx(0.5)


def test_an_offer_for_nothing_is_fully_efficient_and_a_useless_host_is_worth_nothing() -> None:
    """The ends of the scales are reached, not divided by."""
    free = g_score(offer(usd_per_hour="0"))
    assert free is not None
    assert free.efficiency == 1.0
    assert score_of(offer(reliability=0.0)) == 0.0


@pytest.mark.parametrize("model", ["Voodoo 9", "RTX 4070 Laptop"])
def test_a_gpu_without_published_numbers_has_no_score(model: str) -> None:
    """A guess would rank an unknown card among known ones."""
    assert g_score(offer(model)) is None


def test_an_offer_without_gpus_has_no_score() -> None:
    """Its throughput is nothing, and a score of 0 would say that it is a bad GPU."""
    assert g_score(offer(count=0)) is None
    assert math.isnan(g_scores(Snapshot([offer(count=0)], taken_at=NOW))[0])


def test_every_score_lies_between_0_and_100() -> None:
    """Fixed scales have ends, also for what is larger than anything sold today."""
    for gpu in models():
        for count in (1, 8, 64):
            found = g_score(offer(gpu.model, count, "0.001", 1.0))
            if found is not None:
                assert 0 < found.score <= 100
                assert all(0 < part <= 1 for part in msgspec.structs.astuple(found)[1:])


def test_a_whole_market_scores_as_its_offers_do_one_by_one() -> None:
    """Two paths to one number: a table and a detail view must not disagree."""
    random = Random(7)
    names = [*(gpu.model for gpu in models()), "Voodoo 9", "RTX 3080 20GB"]
    market = [
        offer(
            random.choice(names),
            random.choice([1, 2, 4, 8]),
            f"{random.uniform(0, 5):.4f}",
            random.choice([None, 0.0, 0.6, 0.95, 0.999, 1.2]),
            str(number),
        )
        for number in range(2000)
    ]
    together = g_scores(Snapshot(market, taken_at=NOW))
    for one, score in zip(market, together, strict=True):
        alone = g_score(one)
        assert math.isnan(score) if alone is None else score == pytest.approx(alone.score)


def test_an_empty_market_has_no_scores() -> None:
    """No offers is an ordinary answer."""
    assert g_scores(Snapshot([], taken_at=NOW)).shape == (0,)
