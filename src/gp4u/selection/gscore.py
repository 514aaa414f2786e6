"""G-Score: how much offer an offer is, 0..100, by one formula for every provider.

    G = 100 x performance^0.5 x reliability^0.3 x efficiency^0.2

Each part lies on a fixed scale of 0..1, so the score of an offer depends on nothing but the offer:
it can be compared between providers, between days, and with an offer that is long gone. It is a
geometric mean on purpose: what is worthless in one respect cannot buy itself out in another.

Efficiency is what a unit of throughput costs here, all-in, against what it costs in the middle of
its class. A class is one GPU model, so throughput stands on both sides, and what is left is price
against reference price. That middle is a dated constant of `gpus.py` and no median of the offers at
hand, for the reason above.

The score knows no demand. Which offer suits somebody is decided by the scorers; this number stands
beside theirs. Reasons and rejected forms: docs/adr/0009-g-score.md.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING

import msgspec

from gp4u import gpus

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from gp4u.model import Columns, Offer, Snapshot

PERFORMANCE_WEIGHT, RELIABILITY_WEIGHT, EFFICIENCY_WEIGHT = 0.5, 0.3, 0.2

# Throughput is counted in H100 SXM, the GPU whose published rates these are.
_UNIT_TFLOPS, _UNIT_GB_S = 989.4, 3350.0
# Zero performance is no GPU; one step up the logarithm begins at about an RTX 3060 (1/20 H100), and
# the top is a machine of eight B200, the largest that is sold whole.
_STEP, _TOP = 0.05, 20.0
_TOP_STEPS = math.log1p(_TOP / _STEP)

RELIABILITY_PRIOR = 0.6
"""What stands in for an unknown reliability: what Vast.ai gives to a host it knows nothing about.

Source: the market's own documentation, "Concepts": new machines start at 60 % (checked 2026-11).
"""


class GScore(msgspec.Struct, frozen=True):
    """A score and the parts that multiply to it."""

    score: float
    """0..100."""
    performance: float
    """0..1, logarithmic in throughput: 0 is none, 0.99 is eight B200, 1 is twenty H100 and more."""
    reliability: float
    """0..1: the provider's own number, or the prior where it gives none."""
    efficiency: float
    """0..1: 0.5 at the reference price of these GPUs, 2/3 at half of it, 1/3 at twice."""

    @property
    def parts(self) -> dict[str, float]:
        """The parts by name, to three decimals, as people and programs are shown them."""
        names = ("performance", "reliability", "efficiency")
        return {name: round(getattr(self, name), 3) for name in names}


class _Card(msgspec.Struct, frozen=True):
    """What one GPU of a model brings to the formula."""

    throughput: float
    """In H100 SXM."""
    reference_usd_per_hour: float


def g_score(offer: Offer) -> GScore | None:
    """Return the score of an offer; None where its GPU, or what is published of it, is unknown."""
    card = _card(offer.gpu_model)
    if card is None or offer.gpu_count < 1:
        return None
    count = offer.gpu_count
    performance = min(1.0, math.log1p(card.throughput * count / _STEP) / _TOP_STEPS)
    told = offer.reliability
    reliability = RELIABILITY_PRIOR if told is None else min(1.0, max(0.0, told))
    reference = card.reference_usd_per_hour * count
    efficiency = reference / (reference + max(0.0, float(offer.price_usd_per_hour)))
    score = (
        100
        * performance**PERFORMANCE_WEIGHT
        * reliability**RELIABILITY_WEIGHT
        * efficiency**EFFICIENCY_WEIGHT
    )
    return GScore(score, performance, reliability, efficiency)


def g_scores(snapshot: Snapshot) -> NDArray[np.float64]:
    """Return the scores of all offers, in the snapshot's order; NaN where `g_score` says None."""
    return scores_of(snapshot.columns)


def scores_of(columns: Columns) -> NDArray[np.float64]:
    """Return the scores of offers that are told by column; NaN where `g_score` says None."""
    import numpy as np  # 60 ms that most commands never need

    cards = [_card(model) if isinstance(model, str) else None for model in columns.gpu.values]
    unknown = _Card(math.nan, math.nan)
    throughput = np.array([(card or unknown).throughput for card in cards], np.float64)
    usd = np.array([(card or unknown).reference_usd_per_hour for card in cards], np.float64)

    codes = columns.gpu.codes
    count = np.where(columns.gpu_count >= 1, columns.gpu_count, np.nan)
    performance = np.minimum(1.0, np.log1p(throughput[codes] * count / _STEP) / _TOP_STEPS)
    told = np.clip(columns.reliability, 0.0, 1.0)
    reliability = np.where(np.isnan(told), RELIABILITY_PRIOR, told)
    reference = usd[codes] * count
    efficiency = reference / (reference + np.maximum(0.0, columns.price))
    scores: NDArray[np.float64] = (
        100
        * performance**PERFORMANCE_WEIGHT
        * reliability**RELIABILITY_WEIGHT
        * efficiency**EFFICIENCY_WEIGHT
    )
    return scores


@lru_cache(maxsize=4096)
def _card(model: str) -> _Card | None:
    """Half arithmetic, half memory: the harmonic mean of both rates against an H100 SXM.

    A job is modelled as spending half of its H100 time on each, so a GPU needs
    `0.5 x unit/tflops + 0.5 x unit/bandwidth` times as long for it.
    """
    gpu = gpus.canonical(model)
    if gpu is None or not (gpu.tflops and gpu.bandwidth_gb_s and gpu.reference_usd_per_hour):
        return None
    time = 0.5 * _UNIT_TFLOPS / gpu.tflops + 0.5 * _UNIT_GB_S / gpu.bandwidth_gb_s
    return _Card(1 / time, gpu.reference_usd_per_hour)
