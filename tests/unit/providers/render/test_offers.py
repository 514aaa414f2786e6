"""What Dispersed's offers are to us: units, prices, places, and what a job can be tied to."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from gp4u import places
from gp4u.model import Offer, Region
from gp4u.providers.render.offers import (
    REGIONS,
    ListedOffer,
    parse_offers,
    pin_of,
    to_offers,
)
from gp4u.providers.render.paging import parse_page

NOW = datetime(2026, 11, 1, 12, 0, tzinfo=UTC)
PAYLOADS = Path(__file__).parents[3] / "payloads" / "render"
UUID = "3fa85f64-5717-4562-b3fc-2c963f66afa6"


def row(**changes: Any) -> dict[str, Any]:
    """Return a row of offers; a change of `hardware` goes into the summary."""
    hardware = {
        "cpu_cores": 16,
        "ram_gib": 64,
        "storage_gib": 500,
        "gpu_count": 1,
        "gpu_model_label": "NVIDIA RTX 4090",
        "gpu_registry_uuid": UUID,
        "min_gpu_vram_gib": 23.99,
        "gpu_models": [{"name": "RTX 4090", "count": 1, "gpu_registry_uuid": UUID}],
    }
    whole = {
        "offer_id": "off_1",
        "availability": {},
        "hardware_summary": {**hardware, **changes.pop("hardware", {})},
        "pricing": {"hourly_rate_usd": 0.35, "quoted_at": "2026-11-01T11:59:00Z"},
        "region_code": "us-west-2",
    }
    return {**whole, **changes}


def offer(**changes: Any) -> Offer | None:
    """Return the offer that a row becomes."""
    body = json.dumps({"data": [row(**changes)]}).encode()
    (found,) = to_offers(parse_page("render", "offers", body, ListedOffer).rows, NOW)
    return found


def test_a_row_becomes_an_offer_with_every_field_in_our_units() -> None:
    """Section by section what the reference maps."""
    found = offer()
    assert found is not None
    assert (found.gpu_model, found.gpu_count, found.vram_gib) == ("RTX 4090", 1, 24.0)
    assert (found.cpu_cores, found.ram_gib, found.disk_gib) == (16, 64, 500)
    assert found.price_usd_per_hour == Decimal("0.35")
    assert found.region == Region("US", "OR")
    assert found.reliability is None
    assert found.verified is True, "the market is the seller, and tells hosts apart by nothing"
    assert found.download_mbps is None
    assert not found.interruptible


def test_the_rate_is_the_whole_nodes_and_runs_from_creation() -> None:
    """Six GPUs for 4.14 $ are 4.14 $, not 4.14 $ each."""
    found = offer(
        hardware={"gpu_count": 6, "gpu_models": [{"name": "RTX 4090", "count": 6}]},
        pricing={"hourly_rate_usd": 4.14},
    )
    assert found is not None
    assert found.price_usd_per_hour == found.storage_usd_per_hour == Decimal("4.14")
    assert found.gpu_usd_per_hour == 0


def test_the_offers_id_carries_what_a_job_is_tied_to() -> None:
    """A job is made from minimums, and an offer's id survives a restart where a memory does not."""
    found = offer()
    assert found is not None
    pin = pin_of(found.offer_id)
    assert pin is not None
    assert (pin.offer, pin.region_code, pin.gpu_registry_uuid) == ("off_1", "us-west-2", UUID)
    assert found.offer_id == f"off_1@us-west-2/{UUID}"


@pytest.mark.parametrize(
    "changes",
    [
        {"hardware": {"gpu_registry_uuid": None, "gpu_models": []}},
        {"region_code": None},
        {"region_code": "us west/2"},
        {"hardware": {"gpu_registry_uuid": "a/b"}},
    ],
)
def test_an_offer_that_cannot_be_pinned_is_shown_and_not_available(changes: Any) -> None:
    """Without its type a job may be put on, and charged for, anything."""
    found = offer(**changes)
    assert found is not None
    assert not found.available
    assert pin_of(found.offer_id) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"hardware": {"gpu_count": 0}},
        {"hardware": {"gpu_models": [{"name": "RTX 4090"}, {"name": "RTX 3090"}]}},
        {"hardware": {"gpu_model_label": None, "gpu_models": None}},
        {"hardware": {"min_gpu_vram_gib": None, "gpu_model_label": "X9", "gpu_models": None}},
        {"pricing": {"hourly_rate_usd": 0}},
        {"pricing": {"hourly_rate_usd": -1}},
        {"pricing": {"hourly_rate_usd": "NaN"}},
        {"pricing": {"hourly_rate_usd": "Infinity"}},
        {"pricing": {"hourly_rate_usd": 1e9}},
        {"hardware": {"min_gpu_vram_gib": 1e300, "gpu_model_label": "X9", "gpu_models": None}},
    ],
)
def test_a_row_without_one_gpu_type_or_a_price_is_no_offer(changes: Any) -> None:
    """Mixed GPUs cannot be split; a price of nothing is a mistake, not a bargain."""
    assert offer(**changes) is None


def test_a_card_that_we_do_not_know_keeps_its_name() -> None:
    """A new GPU must be rentable on the day it appears."""
    found = offer(
        hardware={
            "gpu_models": [{"name": "QX 9000\x1b[31m"}],
            "gpu_model_label": "?",
            "min_gpu_vram_gib": 48,
        }
    )
    assert found is not None
    assert (found.gpu_model, found.vram_gib) == ("QX 9000 [31m", 48)


def test_the_documents_skeleton_of_offers_fits_the_schema() -> None:
    """It has types only, and all of ours must be among them."""
    body = (PAYLOADS / "dispersed-compute-offers-docs-skeleton.json").read_bytes()
    page = parse_page("render", "offers", body, ListedOffer)
    assert (len(page.rows), page.bad, page.total) == (1, 0, 123)
    (found,) = parse_offers([body], NOW).offers
    assert found.price_usd_per_hour == 123


@pytest.mark.parametrize(
    ("code", "region"),
    [
        ("us-west-1", "US-CA"),
        ("us-west-2", "US-OR"),
        ("us-east-1", "US-VA"),
        ("eu-central-1", "DE"),
        ("ap-northeast-1", "JP"),
        ("ca-central-1", "CA"),
    ],
)
def test_region_codes_are_places(code: str, region: str) -> None:
    """`ca-central-1` is Canada; `US-CA` is California."""
    assert REGIONS[code].code == region


def test_every_region_is_a_place_that_a_demand_can_name() -> None:
    """A typing error in the table would hide a region from every demand."""
    for code, region in REGIONS.items():
        assert places.parse_token(region.code) == region.code, code
    assert len(REGIONS) >= 36


def test_a_card_named_twice_is_still_one_kind() -> None:
    """A machine that lists each of its two cards is no mixture, and can be rented."""
    twice = [{"name": "RTX 4090", "gpu_registry_uuid": UUID}] * 2
    found = offer(hardware={"gpu_count": 2, "gpu_models": twice})
    assert found is not None
    assert (found.gpu_model, found.gpu_count) == ("RTX 4090", 2)


def test_memory_that_no_card_has_is_unknown() -> None:
    """A number of another unit must not win a demand for much memory."""
    found = offer(hardware={"min_gpu_vram_gib": 24_564_000.0, "ram_gib": 1e300})
    assert found is not None
    assert (found.gpu_model, found.vram_gib, found.ram_gib) == ("RTX 4090", 24.0, None)


def test_several_bodies_become_one_list_and_bad_rows_are_counted() -> None:
    """One row of another shape, and one without a price, cost themselves and nothing else."""
    good, free = row(), row(offer_id="off_2", pricing={"hourly_rate_usd": 0})
    odd = row(offer_id="off_3", pricing={})
    bodies = [json.dumps({"data": rows}).encode() for rows in ([good, free], [good, good, odd])]
    page = parse_offers(bodies, NOW)
    assert [o.offer_id.partition("@")[0] for o in page.offers] == ["off_1"] * 3
    assert page.skipped_rows == 2
    assert {o.fetched_at for o in page.offers} == {NOW}


def test_rows_become_offers_one_at_a_time() -> None:
    """A caller with ten thousand of them gives others their turn in between."""
    body = json.dumps([row(), row(offer_id="off_2")]).encode()
    asked: list[str] = []

    def rows() -> Iterator[ListedOffer]:
        for each in parse_page("render", "offers", body, ListedOffer).rows:
            asked.append(each.offer_id)
            yield each

    steps = to_offers(rows(), NOW)
    next(steps)
    assert asked == ["off_1"]
    next(steps)
    assert asked == ["off_1", "off_2"]
