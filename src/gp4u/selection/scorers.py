"""How good an offer is for a demand: five criteria on fixed scales, and the weights over them.

Every score depends on the offer and the demand, never on the other offers. With scales stretched
between the best and the worst of the day, an offer that is worse in every respect could change who
wins; here it cannot. The price of that are the constants below: they say what counts as dear, fast
or risky when the demand itself does not.

A function maps the offers that passed the filters to an array in 0..1, in their order. Which offers
those are is `filters.py`; who comes first is `decide.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from gp4u.errors import BadInput
from gp4u.gpus import Gpu, canonical
from gp4u.model import DEFAULT_WEIGHTS, Coded, Columns, Region, Requirements
from gp4u.places import within

Scores: TypeAlias = NDArray[np.float64]

WEIGHT_SUM_TOLERANCE = 1e-6

REFERENCE_USD_PER_HOUR = 0.40
"""Per GPU: what an hour of a model costs whose going price is not known."""
TARGET_TFLOPS = 100.0
"""Per GPU: the speed that is fast enough when no model was asked for."""
RELIABILITY_PRIOR = 0.60
"""Stands in for an unknown reliability.
Source: Vast.ai documentation, guides/concepts: a new machine starts at 60 %."""

PLACE_STEP = 0.15
"""What each place further down an ordered list costs."""
LOCATION_FLOOR = 0.1
OVERSIZE = 2.0
"""VRAM beyond this many times the need is paid for and not used."""
OVERSIZE_COST = 0.2

ON_DEMAND_CHANCE = 0.95
"""That an on-demand offer starts, and stays for the job."""
INTERRUPTIBLE_CHANCE = 0.70
"""The same for one that a higher bid takes away."""
VERIFIED_CHANCE: Mapping[bool | None, float] = {True: 1.0, None: 0.9, False: 0.8}
DATACENTER_CHANCE: Mapping[bool | None, float] = {True: 1.0, None: 0.95, False: 0.95}
LISTING_HALF_LIFE_S = 1800.0
"""After so long, half of the listings are taken for gone."""


@dataclass(frozen=True, slots=True)
class Field:
    """The offers that passed, and what they are measured against."""

    columns: Columns
    rows: NDArray[np.intp]
    """Of the columns; the scores come in this order."""
    requirements: Requirements
    elapsed_s: float
    """From the snapshot to the decision."""

    def numbers(self, column: Scores) -> Scores:
        """Return one column for these offers only."""
        return column[self.rows]

    def per_value(self, coded: Coded, score: Callable[[Hashable], float]) -> Scores:
        """Score each distinct value once, then spread the scores over these offers."""
        table: Scores = np.array([score(value) for value in coded.values], np.float64)
        return table[coded.codes[self.rows]]


@dataclass(frozen=True, slots=True)
class Scored:
    """All parts and totals, in the order of `Field.rows`."""

    parts: Mapping[str, Scores]
    """Criterion to weighted scores."""
    total: Scores


def price(field: Field) -> Scores:
    """Cheaper is better: the share of the budget left over, or halved per reference price.

    Without a budget the reference is the going price of the first wanted model, or of the offer's
    own model where any will do, times the number of GPUs.
    """
    asked, prices = field.requirements, field.numbers(field.columns.price)
    if asked.max_price_usd_per_hour is not None:
        budget = float(asked.max_price_usd_per_hour)
        if budget <= 0:
            return (prices <= 0).astype(np.float64)
        return np.clip(1.0 - prices / budget, 0.0, 1.0)
    if asked.gpu_models:
        return _halved(prices, _reference(asked.gpu_models[0]) * (asked.gpu_count or 1))
    own = field.per_value(field.columns.gpu, _reference)
    return _halved(prices, own * field.numbers(field.columns.gpu_count))


def performance(field: Field) -> Scores:
    """The mean of speed, as a share of the target and at most 1, and reliability.

    The target is what was asked for: the first wanted model, as many times as wanted.
    """
    asked, columns = field.requirements, field.columns
    wanted = asked.gpu_models[0] if asked.gpu_models else None
    target = (_tflops(wanted) if wanted else 0.0) or TARGET_TFLOPS

    def share(model: Hashable) -> float:
        # What was asked for is fast enough, even where nobody publishes how fast it is.
        return 1.0 if model == wanted else _tflops(model) / target

    counts = field.numbers(columns.gpu_count) / (asked.gpu_count or 1)
    speed = np.minimum(1.0, field.per_value(columns.gpu, share) * counts)
    uptime = field.numbers(columns.reliability)
    uptime = np.clip(np.where(np.isnan(uptime), RELIABILITY_PRIOR, uptime), 0.0, 1.0)
    return (speed + uptime) / 2


def gpu_match(field: Field) -> Scores:
    """1 for the first preferred model, less per place in the list, less for VRAM left unused.

    Models of one family share a place: whoever asks for `A100` asked for one thing, not for four.
    """
    asked = field.requirements
    families = {model: _family(model) for model in asked.gpu_models}
    ranks = {family: rank for rank, family in enumerate(dict.fromkeys(families.values()))}
    places = {model: ranks[family] for model, family in families.items()}

    def of_model(model: Hashable) -> float:
        if not places:
            return 1.0
        return 1.0 - PLACE_STEP * places[str(model)] if model in places else 0.0

    scores = field.per_value(field.columns.gpu, of_model)
    if asked.min_vram_gib is not None:
        oversized = field.numbers(field.columns.vram_gib) > OVERSIZE * asked.min_vram_gib
        scores = scores - OVERSIZE_COST * oversized
    return np.clip(scores, 0.0, 1.0)


def _family(model: str) -> str:
    gpu = canonical(model)
    return gpu.family if gpu is not None else model


def location(field: Field) -> Scores:
    """1 within the first preferred place, less per place in the list; 1 where any place will do."""
    wanted = field.requirements.locations
    if not wanted:
        return np.ones(len(field.rows))

    def of_region(region: Hashable) -> float:
        if not isinstance(region, Region):
            return LOCATION_FLOOR
        place = next((i for i, token in enumerate(wanted) if within(region, token)), len(wanted))
        return (
            LOCATION_FLOOR if place == len(wanted) else max(LOCATION_FLOOR, 1 - PLACE_STEP * place)
        )

    return field.per_value(field.columns.region, of_region)


def availability(field: Field) -> Scores:
    """The chance that the offer is still there, starts, and stays: a product of fixed guesses."""
    columns = field.columns
    kind = np.where(columns.interruptible[field.rows], INTERRUPTIBLE_CHANCE, ON_DEMAND_CHANCE)
    vetted = field.per_value(columns.verified, lambda said: _chance(VERIFIED_CHANCE, said))
    housed = field.per_value(columns.datacenter, lambda said: _chance(DATACENTER_CHANCE, said))
    age_s = np.maximum(0.0, field.numbers(columns.age_s) + field.elapsed_s)
    return kind * vetted * housed * np.exp2(-age_s / LISTING_HALF_LIFE_S)


SCORERS: Mapping[str, Callable[[Field], Scores]] = {
    "price": price,
    "performance": performance,
    "gpu_match": gpu_match,
    "location": location,
    "availability": availability,
}


def check_weights(weights: Mapping[str, float]) -> dict[str, float]:
    """Return one weight per criterion, in the order of `SCORERS`, scaled to sum to exactly 1.

    A criterion that is not named weighs nothing.

    Raises:
        BadInput: an unknown criterion, a weight that is not from 0 to 1, or a sum other than 1.
    """
    for criterion, weight in weights.items():
        if criterion not in SCORERS:
            raise BadInput("weights", criterion, f"criteria are {', '.join(SCORERS)}")
        number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not number or not 0 <= weight <= 1 + WEIGHT_SUM_TOLERANCE:
            raise BadInput(f"weights.{criterion}", weight, "a number from 0 to 1")
    total = math.fsum(weights.values())
    if abs(total - 1) > WEIGHT_SUM_TOLERANCE:
        raise BadInput("weights", f"sum {total:g}", "the weights must sum to 1")
    return {criterion: weights.get(criterion, 0.0) / total for criterion in SCORERS}


def score(field: Field, weights: Mapping[str, float] = DEFAULT_WEIGHTS) -> Scored:
    """Return the weighted parts of every offer of the field, and their sums in 0..1.

    Raises:
        BadInput: see `check_weights`.
    """
    parts = {name: weight * SCORERS[name](field) for name, weight in check_weights(weights).items()}
    total = np.zeros(len(field.rows))
    for part in parts.values():
        total += part
    return Scored(parts, np.minimum(total, 1.0))


def _halved(prices: Scores, reference: float | Scores) -> Scores:
    halved: Scores = np.exp2(-prices / reference)
    return np.clip(halved, 0.0, 1.0)


@lru_cache(maxsize=1024)
def _known(model: str) -> Gpu | None:
    """Look a model up once: every decision meets the same hundred names."""
    return canonical(model)


def _reference(model: Hashable) -> float:
    """Dollars per hour and GPU."""
    gpu = _known(str(model))
    known = gpu.reference_usd_per_hour if gpu else None
    return float(known) if known else REFERENCE_USD_PER_HOUR


def _tflops(model: Hashable) -> float:
    """Per GPU; 0 for a model that nobody can vouch for."""
    gpu = _known(str(model))
    return float(gpu.tflops or 0.0) if gpu else 0.0


def _chance(chances: Mapping[bool | None, float], said: Hashable) -> float:
    return chances[said if isinstance(said, bool) else None]
