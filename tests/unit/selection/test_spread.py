"""How scores are spread, against the same done by sorting them."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gp4u.model import Columns, Offer, Snapshot, Stretch, stretches
from gp4u.selection.gscore import g_score
from gp4u.selection.spread import PERCENTILES, Spread, Spreads
from tests.unit.api.quarter import offer
from tests.virtual_loop import EPOCH, run_virtual

OFFERS = st.builds(
    offer,
    provider=st.sampled_from(("vastai", "akash")),
    number=st.integers(0, 10**9),
    gpu_model=st.sampled_from(("RTX 4090", "RTX 3060", "H100 SXM", "Abacus 1")),
    gpu_count=st.sampled_from((1, 8)),
    reliability=st.one_of(st.none(), st.floats(0, 1)),
    price_usd_per_hour=st.integers(0, 40_000_000).map(lambda micros: Decimal(micros) / 10**6),
)


def parts_of(offers: Sequence[Offer]) -> list[Stretch]:
    """These offers, cut into stretches of three."""
    return [
        part
        for start in range(0, len(offers), 3)
        for part in stretches(offers[start : start + 3], taken_at=EPOCH)
    ]


def spread_of(offers: Sequence[Offer]) -> tuple[Spread, Any]:
    """How their scores are spread."""
    snapshot = Snapshot(taken_at=EPOCH, of=parts_of(offers))

    async def ask() -> tuple[Spread, Any]:
        return await Spreads().of(snapshot)

    return run_virtual(ask)


@given(st.lists(OFFERS, max_size=40))
def test_the_spread_is_that_of_the_sorted_scores(offers: list[Offer]) -> None:
    """Counting in tenths must cost no more than half a tenth."""
    every, by_slug = spread_of(offers)
    scores = sorted(score.score for each in offers if (score := g_score(each)) is not None)
    assert (every.scored, every.unscored) == (len(scores), len(offers) - len(scores))
    assert sum(every.buckets) == len(scores)
    for place, count in enumerate(every.buckets):
        low, high = 10 * place, 10 * place + 10
        surely = sum(low + 0.05 < score < high - 0.05 for score in scores)
        perhaps = sum(low - 0.05 <= score <= high + 0.05 for score in scores)
        assert surely <= count <= perhaps
    if scores:
        ranked = [scores[math.ceil(share * len(scores)) - 1] for share in PERCENTILES]
        assert every.percentiles == pytest.approx(ranked, abs=0.0501)
        assert every.lowest == pytest.approx(scores[0], abs=0.0501)
        assert every.highest == pytest.approx(scores[-1], abs=0.0501)
    else:
        assert (every.percentiles, every.lowest, every.highest) == (None, None, None)
    assert set(by_slug) == {each.provider for each in offers}
    assert sum(own.scored for own in by_slug.values()) == every.scored
    for slug, own in by_slug.items():
        assert own == spread_of([each for each in offers if each.provider == slug])[0]


class Noted(Stretch):
    """A stretch that notes how often its columns were read."""

    read = 0

    @property
    def columns(self) -> Columns:
        self.read += 1
        return super().columns


def test_a_stretch_is_counted_once_and_forgotten_with_its_offers() -> None:
    """A dashboard asks every few seconds, and most of a market is what it was before."""

    async def life() -> None:
        spreads = Spreads()
        old, new = (
            [Noted([offer("vastai", n)], taken_at=EPOCH) for n in range(3)] for _ in range(2)
        )
        first = await spreads.of(Snapshot(taken_at=EPOCH, of=old))
        read = [part.read for part in old]
        assert all(read)
        mixed = Snapshot(taken_at=EPOCH, of=[*old[:2], new[2]])
        assert await spreads.of(mixed) == first
        assert [part.read for part in old] == read
        assert [bool(part.read) for part in new] == [False, False, True]
        held = [weakref.ref(part) for part in (*old, *new)]
        del old, new, mixed
        gc.collect()
        assert [part() for part in held] == [None] * 6

    run_virtual(life)
