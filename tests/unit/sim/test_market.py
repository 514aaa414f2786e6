"""The market that a seed draws: plausible, exact in its size, never without the common kinds."""

from __future__ import annotations

from collections import Counter
from decimal import Decimal
from random import Random

import pytest

from gp4u.sim.market import ANCHORS_FROM, GPUS, Machine, draw_market


def offers(machines: tuple[Machine, ...]) -> int:
    """Count rentable offers: one per machine and size."""
    return sum(len({len(part.gpus) for part in m.slices}) for m in machines if not m.taken)


@pytest.mark.parametrize("wanted", [1, 2, 7, ANCHORS_FROM - 1, ANCHORS_FROM, 200, 1000])
@pytest.mark.parametrize("seed", range(5))
def test_a_market_has_exactly_the_offers_asked_for(wanted: int, seed: int) -> None:
    """`--offers N` is a promise that benchmarks and tests count on."""
    assert offers(draw_market(Random(seed), wanted)) == wanted


def test_one_seed_makes_one_market() -> None:
    """A failing run must be repeatable from its seed."""
    assert draw_market(Random(7), 100) == draw_market(Random(7), 100)
    assert draw_market(Random(7), 100) != draw_market(Random(8), 100)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("name", ["RTX 3060", "RTX 4090"])
def test_common_demands_find_three_good_hosts_in_any_market(seed: int, name: str) -> None:
    """The demo and the seeds' examples must not depend on a lucky seed."""
    good = [
        m
        for m in draw_market(Random(seed), ANCHORS_FROM)
        if m.gpu.name == name
        and m.gpu_count == 1
        and not m.taken
        and m.verification == "verified"
        and m.reliability > 0.95
        and m.down_mbps > 100
        and (m.place or "").endswith(", US")
        and m.open_ports >= 2
        and m.disk_gb >= 100
    ]
    assert len(good) >= 3


def test_a_large_market_has_every_kind_of_host() -> None:
    """Filters that never see an unverified, a home or a null host are not tested."""
    machines = draw_market(Random(3), 1000)
    assert {m.verification for m in machines} == {"verified", "unverified", "deverified"}
    assert {m.datacenter for m in machines} == {True, False, None}
    assert {m.external for m in machines} == {False, None}
    assert {1, 2, 4, 8} <= {m.gpu_count for m in machines}
    assert {m.gpu.name for m in machines} == {gpu.name for gpu in GPUS}
    assert any(m.min_bid_per_gpu is None for m in machines)
    assert any(m.place is None for m in machines)
    assert any(m.taken for m in machines)
    assert any(m.not_reported for m in machines)


def test_ids_are_unique() -> None:
    """Two machines or offers of one id could not be told apart by any client."""
    machines = draw_market(Random(4), 1000)
    assert max(Counter(m.machine_id for m in machines).values()) == 1
    assert max(Counter(p.offer_id for m in machines for p in m.slices).values()) == 1


@pytest.mark.parametrize("seed", range(5))
def test_slices_of_one_size_do_not_overlap_and_cover_no_more_than_the_machine(seed: int) -> None:
    """Overlap within a size would sell a GPU twice."""
    for machine in draw_market(Random(seed), 200):
        for size in {len(part.gpus) for part in machine.slices}:
            gpus = [g for part in machine.slices if len(part.gpus) == size for g in part.gpus]
            assert len(gpus) == len(set(gpus))
            assert set(gpus) <= set(range(machine.gpu_count))


def test_a_bid_floor_lies_below_the_price_on_demand() -> None:
    """Otherwise nobody would bid."""
    for machine in draw_market(Random(5), 500):
        if machine.min_bid_per_gpu is not None:
            assert Decimal(0) < machine.min_bid_per_gpu < machine.usd_per_gpu_hour


def test_storage_by_the_hour_is_exact() -> None:
    """Sums of prices must agree to the last digit, so a month of 720 h must divide evenly."""
    for machine in draw_market(Random(6), 100):
        hourly = machine.storage_usd_per_hour(Decimal(1))
        assert hourly * 720 == machine.storage_usd_per_gb_month
        assert hourly == round(hourly, 5)
