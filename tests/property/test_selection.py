"""Laws of selection that hold for every market: what never depends on order, company or luck."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import pairwise
from random import Random

import msgspec
import pytest
from hypothesis import assume, given, reject
from hypothesis import strategies as st

from gp4u.gpus import canonical
from gp4u.model import (
    DEFAULT_WEIGHTS,
    Decision,
    Demand,
    Offer,
    Preferences,
    Region,
    Requirements,
    Snapshot,
)
from gp4u.selection.decide import Sieve, decide, explain, relaxations, to_json
from gp4u.selection.filters import Asked

NOW = datetime(2026, 1, 5, 12, 0, tzinfo=UTC)
MODELS = tuple(
    gpu.model for name in ("RTX 3060", "RTX 3090", "RTX 4090") if (gpu := canonical(name))
)
UNHEARD_OF = "Voodoo 9"
REGIONS = (Region("US", "CA"), Region("US", "TX"), Region("US"), Region("DE"), None)


FINE = Offer(
    provider="vastai",
    offer_id="0",
    gpu_model=MODELS[0],
    gpu_count=1,
    vram_gib=24.0,
    price_usd_per_hour=Decimal("0.2"),
    gpu_usd_per_hour=Decimal("0.2"),
    storage_usd_per_hour=Decimal(0),
    fetched_at=NOW,
    region=REGIONS[0],
    reliability=0.97,
    download_mbps=1000.0,
    cpu_cores=16.0,
    ram_gib=64.0,
    disk_gib=500.0,
    open_ports=4,
    verified=True,
    datacenter=True,
)
"""Passes nearly every demand below."""
PRICES = st.sampled_from((Decimal("0.5"), Decimal("0.2"))) | st.decimals(
    Decimal("0.001"), Decimal(3), places=5
)
VARIATIONS: dict[str, st.SearchStrategy[object]] = {
    "provider": st.sampled_from(("akash", "render")),
    "gpu_model": st.sampled_from((*MODELS, UNHEARD_OF)),
    "gpu_count": st.sampled_from((2, 4)),
    "vram_gib": st.sampled_from((8.0, 11.5, 12.0, 48.0)),
    "price_usd_per_hour": PRICES,
    "fetched_at": st.sampled_from((1, 300, 600, 601)).map(lambda s: NOW - timedelta(seconds=s)),
    "interruptible": st.just(True),
    "region": st.sampled_from(REGIONS),
    "reliability": st.none() | st.sampled_from((0.95, 0.99)) | st.floats(0, 1),
    "download_mbps": st.none() | st.sampled_from((50.0, 99.99, 100.0)),
    "cpu_cores": st.none() | st.sampled_from((2.0, 4.0)),
    "ram_gib": st.none() | st.sampled_from((7.75, 16.0)),
    "disk_gib": st.none() | st.sampled_from((10.0, 20.0)),
    "open_ports": st.none() | st.integers(0, 4),
    "verified": st.sampled_from((False, None)),
    "datacenter": st.sampled_from((False, None)),
    "available": st.just(False),
}


@st.composite
def offers(draw: st.DrawFn, offer_id: str = "0") -> Offer:
    """A fine offer with up to three changes: ties, near misses and double faults are all common."""
    names = draw(st.lists(st.sampled_from(sorted(VARIATIONS)), max_size=3, unique=True))
    changes = {name: draw(VARIATIONS[name]) for name in names}
    return msgspec.structs.replace(FINE, offer_id=offer_id, **changes)


@st.composite
def markets(draw: st.DrawFn) -> tuple[Offer, ...]:
    """Up to a dozen offers with ids of their own."""
    return tuple(draw(offers(str(number))) for number in range(draw(st.integers(0, 12))))


@st.composite
def requirements(draw: st.DrawFn) -> Requirements:
    """Mostly a few bounds, so that something fits often enough to say something about it."""

    def bound(*values: float) -> float | None:
        return draw(st.sampled_from((None, None, *values)))

    budget = draw(st.none() | st.sampled_from((Decimal("0.5"), Decimal(2), Decimal(100))))
    return Requirements(
        gpu_models=draw(st.sampled_from(((), MODELS[:1], MODELS[::-1], MODELS[1:]))),
        gpu_count=draw(st.sampled_from((1, 1, 1, 2))),
        min_vram_gib=bound(8.0, 12.0),
        max_price_usd_per_hour=budget,
        min_reliability=bound(0.0, 0.95),
        min_download_mbps=bound(100.0),
        min_cpus=bound(4.0),
        min_ram_gib=bound(16.0),
        disk_gib=draw(st.sampled_from((0.0, 20.0))),
        ports=draw(st.sampled_from((0, 0, 2))),
        locations=draw(st.sampled_from(((), (), ("US",), ("US-CA", "US", "EU")))),
        providers=draw(st.sampled_from(((), (), ("vastai",)))),
        interruptible=draw(st.sampled_from((False, False, False, True))),
        verified_only=draw(st.booleans()),
        datacenter_only=draw(st.booleans()),
    )


@st.composite
def demands(draw: st.DrawFn) -> Demand:
    """Bounds with the default weights, or with some that leave criteria out."""
    shares = draw(st.lists(st.integers(0, 5), min_size=5, max_size=5).filter(any))
    weights = {name: n / sum(shares) for name, n in zip(DEFAULT_WEIGHTS, shares, strict=True)}
    preferences = draw(st.sampled_from((Preferences(), Preferences(weights=weights))))
    return Demand(requirements=draw(requirements()), preferences=preferences)


def over(market: tuple[Offer, ...], demand: Demand) -> Decision:
    """Decide at the moment of the snapshot."""
    return decide(Snapshot(market, taken_at=NOW), demand, at=NOW)


def fitting(market: tuple[Offer, ...], wanted: Requirements) -> set[str]:
    """Ids of what passes."""
    return {c.offer.offer_id for c in over(market, Demand(requirements=wanted)).candidates}


@given(market=markets(), demand=demands(), shuffled=st.randoms(use_true_random=False))
def test_the_order_of_the_offers_does_not_matter(
    market: tuple[Offer, ...], demand: Demand, shuffled: Random
) -> None:
    """Providers answer in any order; the purchase must not depend on who was faster."""
    other = list(market)
    shuffled.shuffle(other)
    first, second = over(market, demand), over(tuple(other), demand)
    assert to_json(first, top=None, rejections=True) == to_json(second, top=None, rejections=True)
    assert explain(first) == explain(second)


@given(market=markets(), demand=demands())
def test_every_offer_is_either_ranked_or_rejected(
    market: tuple[Offer, ...], demand: Demand
) -> None:
    """Nothing is lost, and nothing that was refused is ever bought."""
    decision = over(market, demand)
    ranked = [c.offer.id for c in decision.candidates]
    rejected = [r.offer.id for r in decision.rejections]
    assert sorted(ranked + rejected) == sorted(offer.id for offer in market)
    assert decision.best is None or decision.best.offer.id not in rejected


@given(market=markets(), demand=demands())
def test_parts_sum_to_the_score_and_scores_fall_down_the_ranking(
    market: tuple[Offer, ...], demand: Demand
) -> None:
    """A score that cannot be taken apart cannot be explained."""
    ranking = over(market, demand).candidates
    for candidate in ranking:
        assert set(candidate.parts) == set(DEFAULT_WEIGHTS)
        assert all(part >= 0 for part in candidate.parts.values())
        assert sum(candidate.parts.values()) == pytest.approx(candidate.score, abs=1e-9)
        assert 0 <= candidate.score <= 1
    scores = [candidate.score for candidate in ranking]
    assert all(a >= b - 1e-9 for a, b in pairwise(scores))


@given(market=markets(), demand=demands())
def test_a_score_does_not_depend_on_the_company(market: tuple[Offer, ...], demand: Demand) -> None:
    """Fixed scales: an offer alone scores what it scores in a crowd."""
    for candidate in over(market, demand).candidates:
        alone = over((candidate.offer,), demand).best
        assert alone is not None
        assert alone.score == pytest.approx(candidate.score, abs=1e-12)


@given(
    market=markets(),
    demand=demands(),
    dearer=st.integers(1, 50),
    shakier=st.floats(0, 0.5),
    older_s=st.integers(0, 300),
)
def test_a_dominated_offer_never_changes_the_winner(
    market: tuple[Offer, ...], demand: Demand, dearer: int, shakier: float, older_s: int
) -> None:
    """A worse copy of the winner, or of anybody else, is no reason to buy something else."""
    winner = over(market, demand).best
    if winner is None:
        reject()
    for model in market:
        worse = msgspec.structs.replace(
            model,
            offer_id="!first by id",
            provider="a",
            price_usd_per_hour=model.price_usd_per_hour + Decimal(dearer) / 100,
            reliability=model.reliability and max(0.0, model.reliability - shakier),
            fetched_at=model.fetched_at - timedelta(seconds=older_s),
        )
        again = over((*market, worse), demand).best
        assert again is not None
        assert again.offer.id == winner.offer.id


@given(market=markets(), demand=demands(), extra=offers("extra"))
def test_a_rejected_offer_never_changes_the_ranking(
    market: tuple[Offer, ...], demand: Demand, extra: Offer
) -> None:
    """What cannot be bought has no say in what is."""
    with_extra = over((*market, extra), demand)
    assume(any(r.offer.offer_id == "extra" for r in with_extra.rejections))
    assert list(with_extra.candidates) == list(over(market, demand).candidates)


@given(market=markets(), loose=requirements(), tight=requirements())
def test_tightening_a_bound_never_adds_candidates(
    market: tuple[Offer, ...], loose: Requirements, tight: Requirements
) -> None:
    """Each bound in turn: the stricter of two, everything else equal."""
    for name in (
        "min_vram_gib",
        "min_reliability",
        "min_download_mbps",
        "min_cpus",
        "min_ram_gib",
        "disk_gib",
        "ports",
        "max_price_usd_per_hour",
        "gpu_models",
        "locations",
        "providers",
    ):
        stricter = getattr(tight, name)
        weaker = getattr(loose, name)
        if stricter in (None, ()):
            continue
        if isinstance(stricter, tuple):
            if weaker and not set(stricter) <= set(weaker):
                continue
        elif weaker is not None:
            stricter = min(stricter, weaker) if name.startswith("max") else max(stricter, weaker)
        tightened = msgspec.structs.replace(loose, **{name: stricter})
        assert fitting(market, tightened) <= fitting(market, loose)
    for name in ("verified_only", "datacenter_only"):
        vouched = msgspec.structs.replace(loose, **{name: True})
        assert fitting(market, vouched) <= fitting(market, loose)


@given(market=markets(), demand=demands())
def test_a_rejection_names_the_first_filter_that_refuses_the_offer_alone(
    market: tuple[Offer, ...], demand: Demand
) -> None:
    """The reason has to be true of that offer by itself, with the same words."""
    for rejection in over(market, demand).rejections:
        alone = Snapshot((rejection.offer,), taken_at=NOW)
        sieve = Sieve(alone, Asked(demand.requirements, NOW, 0.0))
        first = next(verdict for verdict in sieve.verdicts if not verdict.passes[0])
        assert (rejection.filter, rejection.bound) == (first.filter, first.bound)
        assert rejection.value == first.value(rejection.offer)


UNKNOWABLE = {
    "reliability": "min_reliability",
    "download_mbps": "min_download_mbps",
    "cpu_cores": "min_cpus",
    "ram_gib": "min_ram_gib",
    "open_ports": "ports",
    "disk_gib": "disk_gib",
    "region": "locations",
    "verified": "verified_only",
    "datacenter": "datacenter_only",
}


@given(market=markets(), wanted=requirements(), field=st.sampled_from(sorted(UNKNOWABLE)))
def test_an_unknown_value_fails_a_bound_by_name(
    market: tuple[Offer, ...], wanted: Requirements, field: str
) -> None:
    """Silence is not consent: a host that hides a number does not get around the bound on it."""
    assume(getattr(wanted, UNKNOWABLE[field]))
    silent = tuple(msgspec.structs.replace(offer, **{field: None}) for offer in market)
    decision = over(silent, Demand(requirements=wanted))
    assert not decision.candidates
    otherwise_fine = fitting(market, wanted)
    for rejection in decision.rejections:
        if rejection.offer.offer_id in otherwise_fine:
            assert rejection.value == "unknown"


NUMBERS: dict[str, tuple[str, Callable[[str], float]]] = {
    "gpu_count": ("gpu_count", int),
    "vram": ("min_vram_gib", float),
    "reliability": ("min_reliability", float),
    "download": ("min_download_mbps", float),
    "cpus": ("min_cpus", float),
    "ram": ("min_ram_gib", float),
    "disk": ("disk_gib", float),
    "ports": ("ports", int),
}


def relaxed(wanted: Requirements, filter_name: str, nearest: str) -> Requirements:
    """Follow the advice as a person would: type the value in place of the old one."""
    many = tuple(nearest.split(", "))
    match filter_name:
        case "provider":
            return msgspec.structs.replace(wanted, providers=(*wanted.providers, *many))
        case "gpu_type":
            return msgspec.structs.replace(wanted, gpu_models=(*wanted.gpu_models, *many))
        case "location":
            return msgspec.structs.replace(wanted, locations=(*wanted.locations, *many))
        case "kind":
            return msgspec.structs.replace(wanted, interruptible=nearest == "interruptible")
        case "verified":
            return msgspec.structs.replace(wanted, verified_only=False)
        case "datacenter":
            return msgspec.structs.replace(wanted, datacenter_only=False)
        case "price":
            return msgspec.structs.replace(wanted, max_price_usd_per_hour=Decimal(nearest))
    name, number = NUMBERS[filter_name]
    return msgspec.structs.replace(wanted, **{name: number(nearest)})


@given(market=markets(), demand=demands())
def test_following_a_relaxation_admits_an_offer(market: tuple[Offer, ...], demand: Demand) -> None:
    """Advice that does not work when it is typed in is worse than none."""
    decision = over(market, demand)
    before = {c.offer.offer_id for c in decision.candidates}
    for advice in relaxations(decision):
        if advice.excluded_alone and advice.nearest:
            wanted = relaxed(demand.requirements, advice.filter, advice.nearest)
            assert fitting(market, wanted) - before, advice
        if not advice.excluded_alone:
            assert advice.nearest is None
