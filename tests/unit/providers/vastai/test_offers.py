"""What a search asks of Vast.ai, and what its rows are worth."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import httpx2
import msgspec
import pytest

from gp4u.errors import Malformed, Unavailable
from gp4u.model import Offer, Region, Requirements
from gp4u.providers.contract import Query
from gp4u.providers.vastai.adapter import MAX_PAGES
from gp4u.providers.vastai.replies import ListedOffer, parse_offers, to_offer
from gp4u.providers.vastai.search import PAGE_OFFERS, narrow, search_body
from tests.unit.providers.scripted import Script, market, recorded
from tests.virtual_loop import EPOCH, run_virtual

RECORDED = recorded("offers_recorded_2025-07-26")
PLAIN = {
    "id": 7,
    "machine_id": 70,
    "host_id": 700,
    "num_gpus": 1,
    "gpu_name": "RTX 4090",
    "gpu_ram": 24564,
    "dph_base": 0.36,
    "dph_total": 0.38,
    "storage_cost": 0.72,
    "min_bid": 0.2,
}
ANYTHING = Requirements()
EVERY_BOUND = Requirements(
    gpu_models=("RTX 4090",),
    gpu_count=2,
    min_vram_gib=24,
    max_price_usd_per_hour=Decimal("0.50"),
    min_reliability=0.95,
    min_download_mbps=100,
    min_cpus=4,
    min_ram_gib=16,
    disk_gib=40,
    ports=2,
    locations=("US-CA", "DE"),
)


def page(*rows: object) -> bytes:
    """Return a search reply."""
    return json.dumps({"offers": rows}).encode()


def offer_of(wanted: Requirements = ANYTHING, /, **changes: Any) -> Offer | None:
    """Return the offer that a plain row becomes with some fields changed."""
    rows, bad = parse_offers(page(PLAIN | changes))
    assert bad == 0
    return to_offer(rows[0], wanted, EPOCH)


def priced(*prices: float, first_id: int = 1, **changes: object) -> dict[str, list[Any]]:
    """Return a page with a row for each price, as the market would send it."""
    return {
        "offers": [
            PLAIN | {"id": first_id + n, "dph_base": price, "dph_total": price} | changes
            for n, price in enumerate(prices)
        ]
    }


def full(start: float, step: float = 0.001, **more: Any) -> dict[str, list[Any]]:
    """Return a page that was cut off at the market's limit, by rising price."""
    return priced(*(round(start + n * step, 6) for n in range(PAGE_OFFERS)), **more)


def search(script: Script, wanted: Requirements) -> Any:
    """Return the page of offers for a demand."""
    return run_virtual(lambda: market(script).offers(Query(requirements=wanted)))


# What is asked.


def test_a_search_names_kind_disk_and_all_four_defaults() -> None:
    """What the server adds by itself is unsettled, so nothing is left to it."""
    assert search_body(Requirements(disk_gib=40), ["RTX 4090"]) == {
        "rentable": {"eq": True},
        "rented": {"eq": False},
        "external": {"eq": False},
        "verified": {"eq": True},
        "num_gpus": {"eq": 1},
        "gpu_name": {"in": ["RTX 4090"]},
        "order": [["dph_total", "asc"]],
        "type": "on-demand",
        "limit": 64,
        "allocated_storage": 40.0,
    }


def test_a_search_for_datacenters_says_so() -> None:
    """They are few, and would drown in the rows that one search may show."""
    body = search_body(Requirements(datacenter_only=True), [])
    assert body["datacenter"] == {"eq": True}


def test_a_search_for_anything_names_no_gpu_and_never_less_disk_than_is_sold() -> None:
    """8 GB is the least; a price for less would be a price for nothing."""
    body = search_body(Requirements(disk_gib=1, verified_only=False, interruptible=True), [])
    assert "gpu_name" not in body
    assert "verified" not in body
    assert "datacenter" not in body
    assert body["type"] == "bid"
    assert body["allocated_storage"] == 8.0


def test_a_search_for_any_number_of_gpus_names_none() -> None:
    """Who only looks wants the single cards beside the machines of eight."""
    assert "num_gpus" not in search_body(Requirements(gpu_count=None), [])


def test_the_narrow_search_carries_every_bound_that_the_market_knows() -> None:
    """64 rows are all it shows, so they had better be the ones that fit."""
    wide = search_body(EVERY_BOUND, ["RTX 4090"])
    assert narrow(wide, EVERY_BOUND) == wide | {
        "disk_space": {"gte": 40.0},
        "dph_total": {"lte": 0.5},
        "gpu_ram": {"gte": 22856},  # a 24 GiB card reports down to 23,034 MB
        "reliability": {"gte": 0.95},
        "inet_down": {"gte": 100},
        "cpu_cores_effective": {"gte": 4},
        "cpu_ram": {"gte": 16384},
        "direct_port_count": {"gte": 2},
        "geolocation": {"in": ["DE", "US"]},
    }
    assert narrow(wide, Requirements(disk_gib=1)) == wide | {"disk_space": {"gte": 8.0}}


def test_models_are_asked_for_as_the_market_spells_them() -> None:
    """`A4000` and `RTX 6000 Ada` find nothing there."""
    script = Script(priced(), priced())
    search(script, Requirements(gpu_models=("RTX A4000", "RTX 6000 Ada")))
    assert [b["gpu_name"] for b in script.bodies] == [
        {"in": ["RTX A4000"]},
        {"in": ["RTX 6000Ada"]},
    ]
    assert script.paths == ["POST /api/v0/bundles/"] * 2


def test_many_models_share_the_budget_of_searches() -> None:
    """Ten calls a minute is all there is: what is wished for most has a search of its own."""
    models = ("RTX 4090", "RTX 3090", "RTX 3060", "RTX A4000", "L40S")
    script = Script(*[priced()] * 3)
    search(script, Requirements(gpu_models=models))
    assert [b["gpu_name"]["in"] for b in script.bodies] == [
        ["RTX 4090"],
        ["RTX 3090"],
        ["L40S", "RTX 3060", "RTX A4000"],
    ]


def test_a_model_that_is_not_sold_there_is_not_searched_for() -> None:
    """Without a name the search would be for any GPU, and 64 strangers would come back."""
    script = Script()
    found = search(script, Requirements(gpu_models=("RTX 2000E Ada",)))
    assert script.requests == []
    assert found.offers == ()
    assert found.complete


# Pages.


def test_a_page_that_was_not_cut_off_is_all_there_is() -> None:
    """One call, and nothing is missing."""
    script = Script(priced(0.1, 0.2))
    found = search(script, Requirements())
    assert [o.offer_id for o in found.offers] == ["1", "2"]
    assert (found.complete, found.skipped_rows, len(script.requests)) == (True, 0, 1)


def test_a_page_that_was_cut_off_is_followed_by_the_next_in_price() -> None:
    """There is no cursor; the dearest price so far is one."""
    script = Script(full(0.1), priced(0.163, 0.2, first_id=64))
    found = search(script, Requirements())
    assert len(found.offers) == 65
    assert found.complete
    assert "dph_total" not in script.bodies[0]
    assert script.bodies[1] == script.bodies[0] | {"dph_total": {"gte": 0.163}}


def test_what_is_still_cut_off_is_searched_for_with_every_bound() -> None:
    """The wide rows explain; the narrow ones are what can be rented."""
    pages = [full(0.1 + n / 10, first_id=1 + 100 * n) for n in range(MAX_PAGES)]
    script = Script(*pages, priced(0.45, first_id=900))
    wanted = Requirements(max_price_usd_per_hour=Decimal("0.5"))
    found = search(script, wanted)
    assert len(found.offers) == 64 * MAX_PAGES + 1
    assert found.complete
    assert script.bodies[-1] == narrow(script.bodies[0], wanted)


def test_offers_are_incomplete_where_even_the_narrow_search_was_cut_off() -> None:
    """Only then may something that fits be missing."""
    pages = [full(0.1 + n / 10, first_id=1 + 100 * n) for n in range(MAX_PAGES)]
    script = Script(*pages, full(0.1, first_id=900))
    assert not search(script, Requirements()).complete


def test_paging_ends_where_only_dearer_offers_can_follow() -> None:
    """Each search is a tenth of the minute's budget."""
    script = Script(full(0.1))
    found = search(script, Requirements(max_price_usd_per_hour=Decimal("0.12")))
    assert (len(found.offers), found.complete, len(script.requests)) == (64, True, 1)


def test_a_page_that_repeats_itself_does_not_loop() -> None:
    """More than 64 offers at one price: the cursor cannot get past them."""
    same = full(0.1, step=0.0)
    script = Script(same, same, priced(0.1, first_id=900))
    found = search(script, Requirements())
    assert len(found.offers) == 65
    assert "disk_space" in script.bodies[2], "the third search is the narrow one"


def test_bad_rows_fill_a_page_like_good_ones() -> None:
    """H20: 63 rows that can be read are a whole page, if a 64th could not."""
    first = full(0.1)
    script = Script({"offers": [*first["offers"][1:], {}]}, priced(0.2, first_id=900))
    found = search(script, Requirements())
    assert (len(found.offers), found.skipped_rows, len(script.requests)) == (64, 1, 2)


def test_rows_without_a_total_price_do_not_stop_the_search() -> None:
    """Without it there is no cursor, but there is still the narrow search."""
    script = Script(full(0.1, dph_total=None), priced(0.1, first_id=900))
    assert len(search(script, Requirements()).offers) == 65


def test_of_two_rows_with_one_id_the_newer_counts() -> None:
    """H22: prices move while we page."""
    page_2 = priced(0.163, first_id=64) | {"offers": [PLAIN | {"id": 1, "dph_base": 0.17}]}
    found = search(Script(full(0.1), page_2), Requirements())
    assert len(found.offers) == 64
    assert {o.offer_id: o.gpu_usd_per_hour for o in found.offers}["1"] == Decimal("0.17")


def test_a_page_that_fails_fails_the_search() -> None:
    """Half a search would be called all there is."""
    with pytest.raises(Unavailable):
        search(Script(full(0.1), httpx2.Response(502, text="<html>")), Requirements())


# Rows.


def test_recorded_prices_are_right_to_the_last_digit() -> None:
    """They were recorded with the price for 8 GB beside them, summed in binary floats."""
    rows, bad = parse_offers(json.dumps(RECORDED).encode())
    assert bad == 0
    for row, raw in zip(rows, RECORDED["offers"], strict=True):
        offer = to_offer(row, Requirements(disk_gib=8), EPOCH)
        assert offer is not None
        for ours, theirs in (
            (offer.price_usd_per_hour, raw["search"]["totalHour"]),
            (offer.gpu_usd_per_hour, raw["search"]["gpuCostPerHour"]),
            (offer.storage_usd_per_hour, raw["search"]["diskHour"]),
        ):
            assert abs(float(ours) - theirs) <= math.ulp(theirs)
        assert offer.price_usd_per_hour == offer.gpu_usd_per_hour + offer.storage_usd_per_hour


def test_a_recorded_row_becomes_an_offer_in_our_units() -> None:
    """MB are GiB as sold, a place is a region, and the machine's memory is shared by cores."""
    rows, _ = parse_offers(json.dumps(RECORDED).encode())
    offer = to_offer(rows[0], Requirements(disk_gib=72), EPOCH)
    assert offer == Offer(
        provider="vastai",
        offer_id="21348645",
        gpu_model="RTX 5090",
        gpu_count=1,
        vram_gib=32.0,
        price_usd_per_hour=Decimal("0.10533333333333333") + Decimal("0.09333333333333335"),
        gpu_usd_per_hour=Decimal("0.10533333333333333"),
        storage_usd_per_hour=Decimal("0.09333333333333335"),
        fetched_at=EPOCH,
        region=Region("CA", "ON"),
        reliability=0.9964528,
        download_mbps=2118.0,
        upload_mbps=2241.5,
        cpu_cores=24.0,
        ram_gib=63745 / 1024,
        disk_gib=2973.7,
        open_ports=499,
        machine_id="37228",
        host_id="98979",
        verified=False,
        datacenter=False,
        available=False,
        traffic_usd_per_gb=Decimal("0.001953125"),
    )
    second = to_offer(rows[1], Requirements(), EPOCH)
    assert second is not None
    assert second.region == Region("US", "TX")


def test_the_vendors_own_example_becomes_an_offer() -> None:
    """Its values are invented, its types are the contract."""
    rows, bad = parse_offers(json.dumps(recorded("offers_docs_example")).encode())
    assert (len(rows), bad) == (1, 0)
    assert to_offer(rows[0], Requirements(), EPOCH) is not None


def test_a_row_may_lack_everything_but_identity_gpu_and_price() -> None:
    """The vendor's own row type promises no more; unknown is None, and never zero."""
    bare = {k: v for k, v in PLAIN.items() if k != "min_bid"}
    nulls = {f: None for f in ListedOffer.__struct_fields__ if f not in PLAIN}
    for raw in (bare, bare | nulls):
        rows, bad = parse_offers(page(raw))
        offer = to_offer(rows[0], Requirements(), EPOCH)
        assert bad == 0
        assert offer is not None
        unknown = {k for k, v in msgspec.structs.asdict(offer).items() if v is None}
        assert unknown == {
            *("region", "reliability", "download_mbps", "upload_mbps", "cpu_cores", "ram_gib"),
            *("disk_gib", "open_ports", "verified", "datacenter", "traffic_usd_per_gb"),
        }


def test_a_price_is_all_in_for_the_disk_that_was_asked_for() -> None:
    """0.72 $/GB/month is 0.001 $/GB/h."""
    offer = offer_of(Requirements(disk_gib=100))
    assert offer is not None
    assert offer.storage_usd_per_hour == Decimal("0.1")
    assert offer.price_usd_per_hour == Decimal("0.46")


@pytest.mark.parametrize(
    ("changes", "gpu", "storage"),
    [
        ({"storage_cost": None}, "0.36", "0.02"),
        ({"dph_base": None}, "0.36", "0.02"),
        ({"storage_cost": 0}, "0.36", "0"),
    ],
    ids=["no storage price", "no base price", "free storage"],
)
def test_a_part_of_the_price_that_is_missing_follows_from_the_total(
    changes: dict[str, Any], gpu: str, storage: str
) -> None:
    """The total was made for the disk that the search named."""
    offer = offer_of(**changes)
    assert offer is not None
    assert (offer.gpu_usd_per_hour, offer.storage_usd_per_hour) == (Decimal(gpu), Decimal(storage))


BAD_PRICES: Sequence[object] = (0, -0.1, "NaN", "sNaN", "Infinity", "-Infinity", 1e-9, 1e6, "1e999")


@pytest.mark.parametrize("price", BAD_PRICES, ids=str)
@pytest.mark.parametrize("field", ["dph_base", "min_bid"])
def test_a_price_that_is_none_makes_no_offer(field: str, price: object) -> None:
    """H21: not a number, not finite, nothing, negative, or in another unit."""
    assert offer_of(Requirements(interruptible=field == "min_bid"), **{field: price}) is None


@pytest.mark.parametrize("price", [-0.1, "NaN", "sNaN", "Infinity", 1e6], ids=str)
@pytest.mark.parametrize(
    "wanted", [Requirements(), Requirements(interruptible=True)], ids=["", "bid"]
)
def test_a_storage_price_that_is_none_makes_no_offer(price: object, wanted: Requirements) -> None:
    """H21: it is a part of what we would pay."""
    assert offer_of(wanted, storage_cost=price) is None


def test_a_price_out_of_json_counts_as_skipped() -> None:
    """H21: 1e999 is valid JSON, and Python would call it infinite."""
    body = page(PLAIN, PLAIN | {"id": 8, "dph_base": "_"}).replace(b'"_"', b"1e999")
    rows, bad = parse_offers(body)
    assert (len(rows), bad) == (2, 0)
    reply = httpx2.Response(200, content=body)
    found = search(Script(reply), Requirements())
    assert ([o.offer_id for o in found.offers], found.skipped_rows) == (["7"], 1)


def test_a_bare_nan_is_no_json() -> None:
    """H21: a server that prints it prints no JSON, and all its numbers are in doubt."""
    with pytest.raises(Malformed):
        parse_offers(page(PLAIN | {"dph_base": float("nan")}))


def test_a_bid_is_over_the_floor_and_can_be_sent_as_it_is_shown() -> None:
    """The lowest bid is outbid first; a bid rounded on sending would differ from the decision."""
    offer = offer_of(Requirements(interruptible=True, disk_gib=20), min_bid=0.1053333)
    assert offer is not None
    assert offer.interruptible
    assert offer.gpu_usd_per_hour == Decimal("0.1317")
    assert offer.price_usd_per_hour == Decimal("0.1517")


def test_a_bid_is_never_under_the_least_that_is_taken() -> None:
    """`Please set a bid price >= 0.001.`"""
    offer = offer_of(Requirements(interruptible=True), min_bid=0.0004)
    assert offer is not None
    assert offer.gpu_usd_per_hour == Decimal("0.001")


def test_a_row_that_is_priced_as_a_bid_is_no_offer_on_demand() -> None:
    """Its base price is the lowest bid: on demand one would pay more than was decided."""
    assert offer_of(is_bid=True) is None
    assert offer_of(is_bid=False) is not None


@pytest.mark.parametrize(
    ("field", "value", "ours"),
    [
        ("reliability2", 98.2, "reliability"),
        ("reliability2", -1, "reliability"),
        ("inet_down", -1, "download_mbps"),
        ("inet_up", -1, "upload_mbps"),
        ("disk_space", -1, "disk_gib"),
        ("cpu_cores_effective", -1, "cpu_cores"),
        ("inet_down_cost", "NaN", "traffic_usd_per_gb"),
        ("geolocation", "Atlantis", "region"),
    ],
)
def test_a_number_that_cannot_be_counts_as_unknown(field: str, value: object, ours: str) -> None:
    """H21, other units: 98.2 is no share, and -1 is how hosts say that they do not know."""
    offer = offer_of(**{field: value})
    assert offer is not None
    assert getattr(offer, ours) is None


@pytest.mark.parametrize(
    ("changes", "ram_gib"),
    [
        ({"cpu_ram": 65536, "cpu_cores": 32, "cpu_cores_effective": 8}, 16.0),
        ({"cpu_ram": 65536, "cpu_cores": 8, "cpu_cores_effective": 32}, 64.0),
        ({"cpu_ram": 65536, "cpu_cores": 0, "cpu_cores_effective": 8}, None),
        ({"cpu_ram": 65536, "cpu_cores": None, "cpu_cores_effective": 8}, None),
    ],
)
def test_memory_is_the_share_that_belongs_to_the_cores(
    changes: dict[str, Any], ram_gib: float | None
) -> None:
    """The row tells the whole machine's; a null core count once crashed a price list."""
    offer = offer_of(**changes)
    assert offer is not None
    assert offer.ram_gib == ram_gib


def test_cards_that_share_a_name_are_told_apart_by_their_memory() -> None:
    """Both A100 are sold as `A100 SXM4`."""
    models = [
        offer.gpu_model
        for ram in (40960, 81920)
        if (offer := offer_of(gpu_name="A100 SXM4", gpu_ram=ram)) is not None
    ]
    assert len(set(models)) == 2


def test_a_gpu_that_nobody_knows_keeps_its_name_without_what_steers_a_terminal() -> None:
    """S8: the name is foreign text, and will stand in a table."""
    offer = offer_of(gpu_name="RTX 9999\x1b[31m", gpu_ram=49152)
    assert offer is not None
    assert (offer.gpu_model, offer.vram_gib) == ("RTX 9999 [31m", 48.0)


@pytest.mark.parametrize(
    "changes",
    [
        {"id": "7"},
        {"id": -1},
        {"id": None},
        {"num_gpus": 0},
        {"num_gpus": "1"},
        {"gpu_name": ""},
        {"gpu_name": None},
        {"gpu_ram": 0},
        {"gpu_ram": None},
        {"dph_base": True},
        {"dph_base": "cheap"},
        {"geolocation": "x" * 1000},
        {"reliability2": "high"},
        {"rentable": "yes"},
    ],
    ids=str,
)
def test_a_row_that_breaks_its_schema_is_skipped_and_counted(changes: dict[str, object]) -> None:
    """H20: one host's bad row must not hide the others."""
    rows, bad = parse_offers(page(PLAIN, PLAIN | changes, PLAIN | {"id": 9}))
    assert ([row.id for row in rows], bad) == ([7, 9], 1)


def test_a_row_that_is_no_object_is_skipped_and_counted() -> None:
    """H20: a null in a list is a row as well."""
    rows, bad = parse_offers(page(PLAIN, None, PLAIN, []))
    assert (len(rows), bad) == (2, 2)


def test_rows_are_believed_up_to_one_half_bad() -> None:
    """H20: beyond it, it is the contract that has changed and not a row."""
    assert parse_offers(page(PLAIN, {}))[1] == 1
    with pytest.raises(Malformed, match="2 of 3 rows"):
        parse_offers(page(PLAIN, {}, {}))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"null",
        b'{"offers": ["\\ud800"]}',
        b'{"offers": null}',
        b'{"offers": {}}',
        b'{"hits": []}',
        b"[" * 100_000,
    ],
    ids=lambda body: body[:20].decode() or "empty",
)
def test_what_is_no_search_reply_is_malformed(body: bytes) -> None:
    """H17, H19, H40: a renamed field must not look like an empty market."""
    with pytest.raises(Malformed):
        parse_offers(body)


def test_rows_that_are_bad_anywhere_are_counted_once() -> None:
    """A broken schema and an impossible price are both skipped rows to whoever reads the note."""
    script = Script({"offers": [PLAIN, PLAIN | {"id": 8, "dph_base": 0}, PLAIN | {"id": "x"}]})
    found = search(script, Requirements())
    assert (len(found.offers), found.skipped_rows) == (1, 2)
