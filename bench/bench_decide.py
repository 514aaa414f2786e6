"""What a decision over 10,000 offers costs, beside one bare numpy pass over the same columns.

The yardstick is what a person would write for one demand by hand: a mask, five weighted scores
over the survivors, and the ten best by `argpartition`. Ours does the same, keeps what it takes to
explain every rejection, breaks ties, and makes ten `Candidate` objects. Both get columns that are
already built; the book builds them once per snapshot. Two demands are timed, a narrow and a wide
one, in interleaved passes; the worse ratio counts.
"""

from __future__ import annotations

import json
import random
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import numpy as np

from gp4u.model import DEFAULT_WEIGHTS, Demand, Offer, Region, Requirements, Snapshot
from gp4u.places import within
from gp4u.selection.decide import decide

OFFERS = 10_000
TOP = 10
ROUNDS = 201
BOUND = 12.0
NOW = datetime(2026, 1, 5, 12, 0, tzinfo=UTC)
MODELS = {"RTX 3060": 12.0, "RTX 3090": 24.0, "RTX 4090": 24.0, "RTX A4000": 16.0}
REGIONS = (Region("US", "CA"), Region("US", "TX"), Region("US"), Region("DE"), Region("JP"), None)
NARROW = Requirements(
    gpu_models=("RTX 3060", "RTX 4090"),
    min_vram_gib=12,
    max_price_usd_per_hour=Decimal("0.50"),
    min_reliability=0.95,
    min_download_mbps=100,
    locations=("US-CA", "US", "EU"),
)
WIDE = Requirements(max_price_usd_per_hour=Decimal(5), min_vram_gib=8, verified_only=False)


def market(count: int, seed: int = 7) -> Snapshot:
    """Return a seeded market with unknown values, places and models in it."""
    rng = random.Random(seed)
    offers = []
    for number in range(count):
        model = rng.choice(list(MODELS))
        price = Decimal(str(round(rng.lognormvariate(-1.2, 0.6), 4)))
        offers.append(
            Offer(
                provider="vastai",
                offer_id=str(number),
                gpu_model=model,
                gpu_count=1,
                vram_gib=MODELS[model],
                price_usd_per_hour=price,
                gpu_usd_per_hour=price,
                storage_usd_per_hour=Decimal(0),
                fetched_at=NOW - timedelta(seconds=rng.uniform(0, 120)),
                region=rng.choice(REGIONS),
                reliability=None if rng.random() < 0.05 else rng.uniform(0.8, 1.0),
                download_mbps=rng.uniform(20, 2000),
                cpu_cores=rng.choice((4, 8, 16)),
                ram_gib=rng.choice((16, 32, 64)),
                disk_gib=rng.uniform(30, 900),
                open_ports=100,
                verified=rng.random() < 0.8,
                datacenter=rng.random() < 0.3,
            )
        )
    return Snapshot(offers, taken_at=NOW)


def numpy_pass(snapshot: Snapshot, asked: Requirements) -> Callable[[], object]:
    """Return the same question as one hand-written pass, its tables per distinct value made."""
    c = snapshot.columns
    budget = float(asked.max_price_usd_per_hour or 1)
    need_gib = asked.min_vram_gib or 0.0
    wanted = asked.gpu_models or tuple(MODELS)
    model_ok = np.array([model in wanted for model in c.gpu.values])
    model_score = np.array(
        [1 - 0.15 * wanted.index(str(m)) if m in wanted else 0.0 for m in c.gpu.values]
    )
    places = [
        [isinstance(region, Region) and within(region, token) for token in asked.locations]
        for region in c.region.values
    ]
    place_ok = np.array([any(row) or not asked.locations for row in places])
    place_score = np.array([1 - 0.15 * row.index(True) if any(row) else 0.1 for row in places])
    vetted = np.array([said is True for said in c.verified.values])
    weights = tuple(DEFAULT_WEIGHTS.values())

    def run() -> object:
        mask = c.available & ~c.interruptible & (c.gpu_count == 1) & (c.disk_gib >= asked.disk_gib)
        mask &= model_ok[c.gpu.codes] & (c.price <= budget) & (c.vram_gib >= need_gib)
        mask &= c.age_s <= 600
        if asked.min_reliability is not None:
            mask &= (c.reliability >= asked.min_reliability) & vetted[c.verified.codes]
        if asked.min_download_mbps is not None:
            mask &= (c.download_mbps >= asked.min_download_mbps) & place_ok[c.region.codes]
        rows = np.flatnonzero(mask)
        uptime = np.nan_to_num(c.reliability[rows], nan=0.6)
        total = weights[0] * np.clip(1 - c.price[rows] / budget, 0, 1)
        total += weights[1] * (np.minimum(1, model_score[c.gpu.codes[rows]]) + uptime) / 2
        total += weights[2] * model_score[c.gpu.codes[rows]]
        total += weights[3] * place_score[c.region.codes[rows]]
        total += weights[4] * 0.95 * np.exp2(-c.age_s[rows] / 1800)
        best = np.argpartition(-total, TOP)[:TOP]
        return rows[best[np.argsort(-total[best])]]

    return run


def interleaved(ours: Callable[[], object], yardstick: Callable[[], object]) -> tuple[float, float]:
    """Return the median of each in microseconds; alternating, so both meet the same machine."""
    taken: tuple[list[float], list[float]] = ([], [])
    for _ in range(ROUNDS):
        for times, run in zip(taken, (ours, yardstick), strict=True):
            began = time.perf_counter()
            run()
            times.append((time.perf_counter() - began) * 1e6)
    return statistics.median(taken[0]), statistics.median(taken[1])


def measure(snapshot: Snapshot, asked: Requirements) -> tuple[float, float]:
    """Return (ours, yardstick) in microseconds for one demand."""
    demand = Demand(requirements=asked)

    def ours() -> object:
        decision = decide(snapshot, demand, at=NOW)
        return decision.candidates[:TOP], len(decision.rejections)

    return interleaved(ours, numpy_pass(snapshot, asked))


def main() -> int:
    """Print the result as one JSON object; 0 where it is within the bound."""
    snapshot = market(OFFERS)
    results = [measure(snapshot, asked) for asked in (NARROW, WIDE)]
    ours, yardstick = max(results, key=lambda pair: pair[0] / pair[1])
    ratio = ours / yardstick
    result = {
        "name": f"decide over {OFFERS} offers",
        "ours": round(ours, 1),
        "yardstick": round(yardstick, 1),
        "unit": "us",
        "ratio": round(ratio, 2),
        "bound": BOUND,
        "ok": ratio <= BOUND,
    }
    print(json.dumps(result))
    return 0 if result["ok"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
