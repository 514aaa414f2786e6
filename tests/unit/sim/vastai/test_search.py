"""The filter language of offer search: what the official client sends must find what it means."""

from __future__ import annotations

import operator
from collections.abc import Callable
from decimal import Decimal
from random import Random
from typing import Any

import pytest

from gp4u.sim.contracts import Order
from gp4u.sim.runtime import pretend
from gp4u.sim.vastai.search import SearchError, country, driver_number, offers_found
from gp4u.sim.world import World

ALL = 10_000
OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "lt": operator.lt,
    "lte": operator.le,
    "gt": operator.gt,
    "gte": operator.ge,
    "eq": operator.eq,
    "neq": operator.ne,
}


@pytest.fixture
def world() -> World:
    """A market large enough to have every kind of row."""
    return World(lambda: 0.0, Random(11), runtime=pretend(Random(2)), offers=500)


def found(world: World, **query: Any) -> list[dict[str, Any]]:
    """Search without the cap."""
    return offers_found(world, query, cap=ALL)


def test_text_numbers_and_real_ones_find_the_same(world: World) -> None:
    """The command line sends every plain number as text."""
    assert found(world, num_gpus={"eq": "1"}) == found(world, num_gpus={"eq": 1}) != []
    assert found(world, reliability={"gt": "0.99"}) == found(world, reliability={"gt": 0.99}) != []


def test_text_booleans_and_real_ones_find_the_same(world: World) -> None:
    """Coercion covers booleans as well."""
    assert found(world, static_ip={"eq": "true"}) == found(world, static_ip={"eq": True}) != []


@pytest.mark.parametrize("op", OPERATORS)
def test_every_operator_means_what_it_says(world: World, op: str) -> None:
    """Each splits the market in two along its own line."""
    bound = 2
    mine = {row["id"] for row in found(world) if OPERATORS[op](row["num_gpus"], bound)}
    assert {row["id"] for row in found(world, num_gpus={op: bound})} == mine
    assert mine


def test_several_operators_on_one_field_all_hold(world: World) -> None:
    """A range is two operators under one key."""
    rows = found(world, gpu_ram={"gte": 20_000, "lte": 25_000})
    assert rows
    assert all(20_000 <= row["gpu_ram"] <= 25_000 for row in rows)


def test_membership_and_its_opposite_divide_the_market(world: World) -> None:
    """`notin` is the complement of `in`, whatever the spelling of the numbers."""
    some = found(world, num_gpus={"in": ["1", 2]})
    rest = found(world, num_gpus={"notin": ["1", 2]})
    assert {row["num_gpus"] for row in some} == {1, 2}
    assert len(some) + len(rest) == len(found(world))


def test_places_are_found_by_country_code(world: World) -> None:
    """The place is text; the filter takes what follows its last comma."""
    rows = found(world, geolocation={"in": ["US", "CA"]})
    assert {country(row["geolocation"]) for row in rows} == {"US", "CA"}
    assert any(row["geolocation"].startswith("California") for row in rows)
    assert not found(world, geolocation={"in": ["EU"]})
    assert [row for row in rows if row["geolocation"] == "Ontario, CA"]


@pytest.mark.parametrize(
    ("query", "holds"),
    [
        ({"datacenter": {"eq": True}}, lambda row: row["hosting_type"] == 1),
        ({"datacenter": {"eq": False}}, lambda row: row["hosting_type"] == 0),
        ({"verified": {"eq": True}}, lambda row: row["verification"] == "verified"),
        ({"duration": {"gt": 864_000.0}}, lambda row: row["duration"] > 864_000),
        ({"driver_version": {"gte": 560_000_000}}, lambda row: row["driver_vers"] >= 560_000_000),
        ({"driver_version": {"gte": "560.35.03"}}, lambda row: row["driver_vers"] >= 560_035_003),
        ({"reliability2": {"gte": 0.99}}, lambda row: row["reliability"] >= 0.99),
        ({"target_reliability": {"gte": 0.99}}, lambda row: row["reliability"] >= 0.99),
        ({"dphtotal": {"lte": 0.2}}, lambda row: row["dph_total"] <= 0.2),
        ({"gpu_totalram": {"gte": 80_000}}, lambda row: row["gpu_total_ram"] >= 80_000),
        ({"cpu_ram_GB": {"gte": 256}}, lambda row: row["cpu_ram"] >= 256_000),
        ({"gpu_ram_GB": {"gte": 40}}, lambda row: row["gpu_ram"] >= 40_000),
        ({"allocated_storage": {"gte": 500}}, lambda row: row["disk_space"] >= 500),
        ({"gpu_name": {"eq": "RTX_4090"}}, lambda row: row["gpu_name"] == "RTX 4090"),
        ({"external": {"eq": False}}, lambda row: not row["external"]),
        ({"compute_cap": {"gte": 890}}, lambda row: row["compute_cap"] >= 890),
        ({"ubuntu_version": {"gte": "20.04"}}, lambda row: float(row["os_version"]) >= 20.04),
    ],
)
def test_aliases_and_derived_fields_reach_their_column(
    world: World, query: dict[str, Any], holds: Any
) -> None:
    """Clients send names that no row carries."""
    rows = found(world, **query)
    assert rows
    assert all(holds(row) for row in rows)


def test_an_unknown_value_fails_every_comparison(world: World) -> None:
    """A null is not small, not large, and not equal."""
    unknown = {row["id"] for row in found(world) if row["cpu_cores"] is None}
    assert unknown
    for op in ("lt", "gte", "eq"):
        assert unknown.isdisjoint(row["id"] for row in found(world, cpu_cores={op: 8}))


def test_a_filter_by_id_matches_nothing(world: World) -> None:
    """Seen live: one offer is looked up by `ask_contract_id`."""
    row = found(world)[0]
    assert found(world, id={"eq": row["id"]}) == []
    assert [r["id"] for r in found(world, ask_contract_id={"eq": row["id"]})] == [row["id"]]


def test_rented_true_includes_and_rented_false_excludes_machines_i_hold(world: World) -> None:
    """It does not select; that was documented late."""
    machine = next(m for m in world.machines if m.gpu_count == 4 and not m.taken)
    world.rent(machine.slices[-1].offer_id, Order(image="i", disk_gb=Decimal(8)))
    mine = {row["id"] for row in found(world) if row["rented"]}
    assert mine
    assert mine <= {row["id"] for row in found(world, rented={"eq": True})}
    assert mine.isdisjoint(row["id"] for row in found(world, rented={"eq": False}))


def test_prices_add_up_to_the_last_digit_for_any_disk(world: World) -> None:
    """`dph_total` = `dph_base` + storage for the disk named; traffic is not in it."""
    for storage, gb in ((None, 8), (40.0, 40), ("12.5", Decimal("12.5"))):
        query = {} if storage is None else {"allocated_storage": storage}
        for row in found(world, **query):
            disk = Decimal(str(row["storage_cost"])) * gb / 720
            assert Decimal(str(row["storage_total_cost"])) == disk
            assert Decimal(str(row["dph_total"])) == Decimal(str(row["dph_base"])) + disk
            assert row["search"]["totalHour"] == row["dph_total"]
            assert row["search"]["gpuCostPerHour"] == row["dph_base"]
            assert row["dph_total_adj"] == pytest.approx(
                row["dph_total"] + 2 * (row["inet_up_cost"] + row["inet_down_cost"])
            )


def test_a_bid_search_is_priced_by_its_floor_and_has_no_others(world: World) -> None:
    """A row without a floor cannot be bid for."""
    rows = found(world, type="bid")
    assert rows
    assert all(row["is_bid"] and row["dph_base"] == row["min_bid"] > 0 for row in rows)
    assert len(rows) < len(found(world))
    assert not any(row["is_bid"] for row in found(world, type="ondemand"))


def test_an_order_sorts_by_its_first_field_first_and_puts_unknowns_last(world: World) -> None:
    """Stable in two fields, and a null is neither best nor worst."""
    rows = found(world, order=[["num_gpus", "desc"], ["dph_total", "asc"]])
    keys = [(-row["num_gpus"], row["dph_total"]) for row in rows]
    assert keys == sorted(keys)
    scores = [row["score"] for row in found(world, order=[["score", "desc"]])]
    known = [score for score in scores if score is not None]
    assert known == sorted(known, reverse=True)
    assert None in scores
    assert scores[len(known) :] == [None] * (len(scores) - len(known))


@pytest.mark.parametrize(("limit", "rows"), [(None, 64), (3, 3), ("3", 3), (10_000, 64), (0, 64)])
def test_a_search_answers_at_most_sixty_four_rows(world: World, limit: object, rows: int) -> None:
    """Whatever is asked for; only a narrow filter gets past it."""
    assert len(offers_found(world, {"limit": limit})) == rows


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ({"num_gpus": {"equals": 1}}, "equals is not a valid search op"),
        ({"compute_capability": {"gte": 800}}, "compute_capability is not a valid search key"),
        ({"type": "spot"}, "'spot' is not a valid offer type"),
        ({"num_gpus": 1}, "not a valid search filter"),
    ],
)
def test_what_is_no_search_is_refused(world: World, query: dict[str, Any], says: str) -> None:
    """Silence here would hide a client's mistake."""
    with pytest.raises(SearchError, match=says):
        offers_found(world, query)


def test_an_unknown_field_can_be_ignored_instead(world: World) -> None:
    """One large client sends such a field and gets rows: the real service may do either."""
    query = {"compute_capability": {"gte": 800}, "num_gpus": {"eq": 1}}
    rows = offers_found(world, query, strict=False)
    assert rows
    assert {row["num_gpus"] for row in rows} == {1}


def test_a_taken_machine_shows_but_is_not_rentable(world: World) -> None:
    """A search without the filter must meet such rows."""
    assert any(not row["rentable"] for row in found(world))
    assert all(row["rentable"] for row in found(world, rentable={"eq": True}))


def test_driver_versions_become_the_documented_number() -> None:
    """570.124.04 is 570124004 in recorded rows."""
    assert driver_number("570.124.04") == 570_124_004
    assert driver_number("535.86.05") == 535_086_005


def test_a_country_is_what_follows_the_last_comma() -> None:
    """Places may carry more commas, or nothing before the only one."""
    assert country("Shandong, Jinan, CN") == "CN"
    assert country(", US") == "US"
    assert country(None) is None
