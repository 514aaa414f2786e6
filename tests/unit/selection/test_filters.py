"""What each hard requirement lets through, and the words it says no with."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import msgspec
import numpy as np
import pytest

from gp4u.model import Offer, Region, Requirements, Snapshot
from gp4u.selection import filters
from gp4u.selection.filters import FILTERS, Asked, Verdict, floored, typed_up, usd, verdicts

NOW = datetime(2026, 1, 5, 12, 0, tzinfo=UTC)
PLAIN = Offer(
    provider="vastai",
    offer_id="1",
    gpu_model="RTX 3060",
    gpu_count=1,
    vram_gib=12.0,
    price_usd_per_hour=Decimal("0.22"),
    gpu_usd_per_hour=Decimal("0.20"),
    storage_usd_per_hour=Decimal("0.02"),
    fetched_at=NOW,
    region=Region("US", "CA"),
    reliability=0.98,
    download_mbps=500.0,
    cpu_cores=8.0,
    ram_gib=32.0,
    disk_gib=200.0,
    open_ports=10,
    verified=True,
    datacenter=True,
)
EVERY_BOUND = Requirements(
    gpu_models=("RTX 3060",),
    min_vram_gib=12,
    max_price_usd_per_hour=Decimal("0.50"),
    min_reliability=0.95,
    min_download_mbps=100,
    min_cpus=4,
    min_ram_gib=16,
    ports=2,
    locations=("US",),
    providers=("vastai",),
    datacenter_only=True,
)


def said(name: str, requirements: Requirements, *offers: Offer, at: datetime = NOW) -> Verdict:
    """Return one filter's verdict over some offers."""
    snapshot = Snapshot(offers, taken_at=NOW)
    asked = Asked(requirements, at, (at - NOW).total_seconds())
    found = [v for v in verdicts(snapshot.columns, asked) if v.filter == name]
    assert len(found) == 1
    return found[0]


BREACHES: list[tuple[str, dict[str, Any], str, str]] = [
    ("provider", {"provider": "akash"}, "akash", "vastai"),
    ("available", {"available": False}, "no", "yes"),
    ("kind", {"interruptible": True}, "interruptible", "on demand"),
    ("verified", {"verified": False}, "no", "yes"),
    ("verified", {"verified": None}, "unknown", "yes"),
    ("datacenter", {"datacenter": False}, "no", "yes"),
    ("datacenter", {"datacenter": None}, "unknown", "yes"),
    ("gpu_type", {"gpu_model": "RTX 3060 Ti"}, "RTX 3060 Ti", "RTX 3060"),
    ("gpu_count", {"gpu_count": 2}, "2", "== 1"),
    ("vram", {"vram_gib": 8.0}, "8 GiB", ">= 12 GiB"),
    ("price", {"price_usd_per_hour": Decimal("0.62")}, "$0.62/h", "<= $0.50/h"),
    ("reliability", {"reliability": 0.94999}, "0.9499", ">= 0.95"),
    ("reliability", {"reliability": None}, "unknown", ">= 0.95"),
    ("download", {"download_mbps": 99.96}, "99.9 Mbps", ">= 100 Mbps"),
    ("download", {"download_mbps": None}, "unknown", ">= 100 Mbps"),
    ("location", {"region": Region("JP")}, "JP", "US"),
    ("location", {"region": None}, "unknown", "US"),
    ("cpus", {"cpu_cores": 2.0}, "2", ">= 4"),
    ("cpus", {"cpu_cores": None}, "unknown", ">= 4"),
    ("ram", {"ram_gib": 15.5}, "15.5 GiB", ">= 16 GiB"),
    ("ram", {"ram_gib": None}, "unknown", ">= 16 GiB"),
    ("disk", {"disk_gib": 10.0}, "10 GiB", ">= 20 GiB"),
    ("disk", {"disk_gib": None}, "unknown", ">= 20 GiB"),
    ("ports", {"open_ports": 1}, "1", ">= 2"),
    ("ports", {"open_ports": None}, "unknown", ">= 2"),
    ("stale", {"fetched_at": NOW - timedelta(seconds=600.4)}, "601 s old", "<= 600 s old"),
]


@pytest.mark.parametrize(("name", "change", "value", "bound"), BREACHES)
def test_a_no_names_filter_value_and_bound(
    name: str, change: dict[str, Any], value: str, bound: str
) -> None:
    """A person must be able to see from the words alone why an offer was refused."""
    broken = msgspec.structs.replace(PLAIN, **change)
    snapshot = Snapshot((PLAIN, broken), taken_at=NOW)
    found = verdicts(snapshot.columns, Asked(EVERY_BOUND, NOW, 0.0))
    noes = [verdict for verdict in found if not verdict.passes[1]]
    assert [verdict.filter for verdict in noes] == [name]
    assert (noes[0].value(broken), noes[0].bound) == (value, bound)
    assert all(verdict.passes[0] for verdict in found)


def test_filters_are_asked_in_the_stated_order() -> None:
    """Which no is reported depends on the order, so the order is part of the contract."""
    asked = Asked(EVERY_BOUND, NOW, 0.0)
    names = [
        verdict.filter for verdict in verdicts(Snapshot((PLAIN,), taken_at=NOW).columns, asked)
    ]
    assert names == [ask.__name__ for ask in FILTERS]
    assert names == [
        "provider",
        "available",
        "kind",
        "verified",
        "datacenter",
        "gpu_type",
        "gpu_count",
        "vram",
        "price",
        "reliability",
        "download",
        "location",
        "cpus",
        "ram",
        "disk",
        "ports",
        "stale",
    ]


def test_a_bound_that_is_not_set_is_not_asked() -> None:
    """An unknown value is no reason to refuse where nobody cares about it."""
    bare = msgspec.structs.replace(
        PLAIN, reliability=None, region=None, verified=None, disk_gib=None, open_ports=None
    )
    open_demand = Requirements(verified_only=False, disk_gib=0)
    found = verdicts(Snapshot((bare,), taken_at=NOW).columns, Asked(open_demand, NOW, 0.0))
    assert [v.filter for v in found] == ["available", "kind", "gpu_count", "stale"]
    assert all(v.passes.all() for v in found)


def test_any_number_of_gpus_is_no_bound() -> None:
    """What a server keeps warm has no number in it."""
    eight = msgspec.structs.replace(PLAIN, gpu_count=8)
    columns = Snapshot((PLAIN, eight), taken_at=NOW).columns
    found = verdicts(columns, Asked(Requirements(gpu_count=None), NOW, 0.0))
    assert "gpu_count" not in [verdict.filter for verdict in found]


def test_a_bound_of_zero_still_wants_a_known_value() -> None:
    """`--min-reliability 0` asks for a number, unlike leaving it out."""
    nobody_knows = msgspec.structs.replace(PLAIN, reliability=None)
    verdict = said("reliability", Requirements(min_reliability=0.0), PLAIN, nobody_knows)
    assert verdict.passes.tolist() == [True, False]


def test_a_price_equal_to_the_budget_is_within_it() -> None:
    """The setting is called a maximum."""
    at_limit = msgspec.structs.replace(PLAIN, price_usd_per_hour=Decimal("0.5"))
    assert said("price", EVERY_BOUND, at_limit).passes.all()


def test_interruptible_and_on_demand_never_mix() -> None:
    """A bid that can be outbid is another good than a machine that stays."""
    offers = (PLAIN, msgspec.structs.replace(PLAIN, interruptible=True))
    assert said("kind", Requirements(), *offers).passes.tolist() == [True, False]
    assert said("kind", Requirements(interruptible=True), *offers).passes.tolist() == [False, True]


def test_an_offer_ages_between_snapshot_and_decision() -> None:
    """A snapshot that was fresh when taken may be decided over much later."""
    verdict = said("stale", Requirements(), PLAIN, at=NOW + timedelta(seconds=601))
    assert not verdict.passes.any()
    assert verdict.value(PLAIN) == "601 s old"


NEAREST: list[tuple[str, list[dict[str, Any]], str | None]] = [
    (
        "provider",
        [{"provider": "render"}, {"provider": "akash"}, {"provider": "akash"}],
        "akash, render",
    ),
    ("available", [{"available": False}], None),
    ("kind", [{"interruptible": True}], "interruptible"),
    ("verified", [{"verified": None}], "no"),
    ("datacenter", [{"datacenter": None}], "no"),
    ("gpu_type", [{"gpu_model": m} for m in "ABBCCCDDDD"], "D, C, B"),
    ("gpu_count", [{"gpu_count": 8}, {"gpu_count": 2}], "2"),
    ("vram", [{"vram_gib": 8.0}, {"vram_gib": 11.0}], "11"),
    (
        "price",
        [{"price_usd_per_hour": Decimal("0.9")}, {"price_usd_per_hour": Decimal("0.5201")}],
        "0.53",
    ),
    (
        "reliability",
        [{"reliability": 0.5}, {"reliability": 0.93217}, {"reliability": None}],
        "0.9321",
    ),
    ("reliability", [{"reliability": None}], None),
    ("location", [{"region": Region("DE")}, {"region": None}], "DE"),
    ("location", [{"region": None}], None),
    ("ports", [{"open_ports": 1}, {"open_ports": 0}], "1"),
    ("stale", [{"fetched_at": NOW - timedelta(hours=1)}], None),
]


@pytest.mark.parametrize(("name", "changes", "nearest"), NEAREST)
def test_the_nearest_value_is_what_one_would_type(
    name: str, changes: list[dict[str, Any]], nearest: str | None
) -> None:
    """It is printed as advice, and must work when it is followed."""
    offers = [msgspec.structs.replace(PLAIN, **change) for change in changes]
    verdict = said(name, EVERY_BOUND, *offers)
    assert verdict.nearest(np.arange(len(offers))) == nearest
    assert verdict.nearest(np.arange(0)) is None


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        ("0.5", "$0.50"),
        ("0.50001", "$0.5001"),
        ("12", "$12.00"),
        ("0.22266", "$0.2227"),
        ("0", "$0.00"),
    ],
)
def test_money_is_never_shown_smaller_than_it_is(amount: str, text: str) -> None:
    """`$0.50 above $0.50` would explain nothing."""
    assert usd(Decimal(amount)) == text


def test_typed_prices_are_rounded_up_and_others_down() -> None:
    """Both directions let the offer in that the number was taken from."""
    assert typed_up(0.5201) == Decimal("0.53")
    assert typed_up(0.04321) == Decimal("0.0433")
    assert typed_up(0.3) == Decimal("0.30")
    assert floored(0.98239, 4) == "0.9823"
    assert floored(100.0, 1) == "100"
    assert floored(float("inf"), 1) == "Infinity"


def test_an_empty_market_is_a_market() -> None:
    """No offers is an ordinary answer of a provider."""
    found = verdicts(Snapshot((), taken_at=NOW).columns, Asked(EVERY_BOUND, NOW, 0.0))
    assert len(found) == len(FILTERS)
    assert all(v.passes.shape == (0,) for v in found)


def test_the_default_age_is_the_stated_one() -> None:
    """The documents promise ten minutes."""
    assert filters.DEFAULT_MAX_AGE_S == 600.0
