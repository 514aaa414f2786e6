"""Prices by model and market, against the same done by hand."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from gp4u.model import Offer, Snapshot, stretches
from gp4u.selection.prices import ModelPrices, model_prices
from tests.unit.api.quarter import offer
from tests.virtual_loop import EPOCH, run_virtual

OFFERS = st.builds(
    offer,
    provider=st.sampled_from(("vastai", "akash")),
    number=st.integers(0, 10**9),
    gpu_model=st.sampled_from(("RTX 4090", "RTX 3060", "H100 SXM")),
    gpu_count=st.sampled_from((1, 2, 8)),
    vram_gib=st.sampled_from((12.0, 24.0)),
    price_usd_per_hour=st.integers(0, 40_000_000).map(lambda micros: Decimal(micros) / 10**6),
    available=st.booleans(),
    interruptible=st.booleans(),
)


def found(offers: Sequence[Offer], provider: str | None = None) -> list[ModelPrices]:
    """Prices over a snapshot of these offers, cut into stretches of three."""
    parts = [
        part
        for start in range(0, len(offers), 3)
        for part in stretches(offers[start : start + 3], taken_at=EPOCH)
    ]
    snapshot = Snapshot(taken_at=EPOCH, of=parts)

    async def ask() -> list[ModelPrices]:
        return await model_prices(snapshot, provider)

    return run_virtual(ask)


def by_hand(offers: Sequence[Offer]) -> list[tuple[Any, ...]]:
    """The same, one offer at a time."""
    groups: dict[tuple[str, str], list[Offer]] = defaultdict(list)
    for each in offers:
        if each.available and not each.interruptible:
            groups[each.provider, each.gpu_model].append(each)
    told = []
    for (slug, model), own in sorted(groups.items()):
        usd = sorted(each.price_usd_per_hour / each.gpu_count for each in own)
        ranked = [usd[math.ceil(share * len(usd)) - 1] for share in (0.5, 0.9)]
        gpus, vram = sum(each.gpu_count for each in own), min(each.vram_gib for each in own)
        told.append((slug, model, len(own), gpus, vram, usd[0], *ranked))
    return told


@given(st.lists(OFFERS, max_size=40))
def test_prices_are_those_that_are_asked_by_model_and_market(offers: list[Offer]) -> None:
    """However a market is cut into stretches; to the micro-dollar that is kept."""
    told = found(offers)
    expected = by_hand(offers)
    keys = [(p.provider, p.gpu_model, p.count, p.gpus, p.vram_gib) for p in told]
    assert keys == [row[:5] for row in expected]
    for prices, row in zip(told, expected, strict=True):
        for amount, right in zip((prices.min, prices.median, prices.p90), row[5:], strict=True):
            assert abs(amount - right) <= Decimal("0.000001")
        assert prices.min <= prices.median <= prices.p90


@given(st.lists(OFFERS, max_size=20))
def test_one_market_alone_has_the_prices_that_it_has_among_all(offers: list[Offer]) -> None:
    """What is written down after one market's fetch must not depend on the others."""
    together = [prices for prices in found(offers) if prices.provider == "akash"]
    assert found(offers, "akash") == together
    assert found(offers, "render") == []


def test_a_machine_of_eight_counts_by_the_gpu() -> None:
    """Eight for 4 dollars are cheaper than one for 60 cents."""
    eight = offer("vastai", 1, gpu_count=8, price_usd_per_hour=Decimal(4))
    one = offer("vastai", 2, price_usd_per_hour=Decimal("0.6"))
    [prices] = found([eight, one])
    assert (prices.count, prices.gpus) == (2, 9)
    assert (prices.min, prices.median, prices.p90) == (
        Decimal("0.500000"),
        Decimal("0.500000"),
        Decimal("0.600000"),
    )
