"""What io.net sells: rows as offers, what a price is for, and when one holds no more."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gp4u.errors import Malformed, OfferGone
from gp4u.model import Offer
from gp4u.providers.ionet import hardware
from gp4u.providers.ionet.hardware import Priced, Terms
from gp4u.providers.ionet.order import Product, sold

PAYLOADS = Path(__file__).resolve().parents[3] / "payloads" / "ionet"
AT = datetime(2026, 11, 1, tzinfo=UTC)


def terms(product: Product = Product.CAAS, **changes: Any) -> Terms:
    """Return what all rows share: one place with a number, and a fee of two per cent."""
    given = {"at": AT, "places_by": {"US": 1}, "fee_factor": Decimal("1.02"), "shapes": {}}
    return Terms(product=product, **{**given, **changes})


def offers(body: bytes, **changes: Any) -> list[Offer]:
    """Return the offers of a list of hardware."""
    return hardware.offers_of(body, terms(**changes))


def offer_of(row: dict[str, Any], **changes: Any) -> Offer | None:
    """Return a row of the container catalogue as an offer."""
    full = {"id": 203, "name": "GeForce RTX 4090", "num_cards": 1, "price": 0.3, "location": "US"}
    full |= {"vram_per_card": 24, **row}
    made = offers(json.dumps({"data": {"hardware": [full]}}).encode(), **changes)
    return made[0] if made else None


def test_the_documented_rows_become_offers() -> None:
    """The only real rows that may be shared: names, prices and sizes must come out right."""
    body = (PAYLOADS / "vmaas_hardware_docs_example.json").read_bytes()
    made = offers(body, product=Product.VMAAS, places_by={}, fee_factor=Decimal(1))
    got = [
        (o.offer_id, o.gpu_model, o.gpu_count, o.price_usd_per_hour, o.vram_gib, o.disk_gib)
        for o in made
    ]
    assert got == [
        ("vmaas:12x1@US", "RTX 4090", 1, Decimal("0.300000"), 24.0, 500.0),
        ("vmaas:12x2@US", "RTX 4090", 2, Decimal("0.600000"), 24.0, 1000.0),
        ("vmaas:B200_sxm6x8x8@US", "B200", 8, Decimal("39.920000"), 180.0, 22528.0),
        ("vmaas:B200_sxm6x8x8@AU", "B200", 8, Decimal("39.920000"), 180.0, 22528.0),
    ]


def test_the_price_is_for_all_gpus_with_fees_and_nothing_is_divided_or_multiplied() -> None:
    """The market prices a configuration; per GPU it would be eight times too cheap."""
    offer = offer_of({"num_cards": 8, "price": 24})
    assert offer is not None
    assert offer.price_usd_per_hour == Decimal("24.48")
    assert not offer.estimated
    assert offer_of({"name": "Unheard Of", "vram_per_card": None}) is None
    unknown = offer_of({}, fee_factor=None)
    assert unknown is not None
    assert (unknown.price_usd_per_hour, unknown.estimated) == (Decimal("0.3"), True)


@pytest.mark.parametrize(
    "odd",
    [
        {"num_cards": 0},
        {"name": ""},
        {"price": 0},
        {"price": -1},
        {"price": "NaN"},
        {"price": 1e9},
        {"location": None},
        {"location": "somewhere"},
        {"id": "8 H100"},
        {"id": 'H"100'},
        {"id": -5},
        {"name": "  "},
        {"price": "0.5"},
    ],
)
def test_a_row_that_cannot_be_rented_makes_no_offer(odd: dict[str, Any]) -> None:
    """Live data has rows without GPU, name or price."""
    full = {"id": 1, "name": "H100", "num_cards": 1, "price": 2, "location": "US"}
    body = json.dumps([full, {**full, **odd}]).encode()
    assert [offer.offer_id for offer in offers(body)] == ["caas:1x1@US/1"]


def test_a_row_that_breaks_its_schema_costs_only_itself() -> None:
    """One new type in one row must not empty the market; a market of them is another one."""
    good = {"id": 1, "name": "H100", "num_cards": 1, "price": 2, "location": "US"}
    body = {"data": {"hardware": [good, {**good, "price": {}}]}}
    rows, skipped = hardware.parse_hardware("offers", json.dumps(body).encode())
    assert (len(rows), skipped) == (1, 1)
    with pytest.raises(Malformed):
        hardware.parse_hardware("offers", json.dumps([{"price": {}}] * 3).encode())


@pytest.mark.parametrize(
    "wrapped",
    [
        b'{"data":{"hardware":[%s]}}',
        b'{"hardware":[%s],"total":0}',
        b'{"data":[%s]}',
        b"[%s]",
    ],
)
def test_wrapped_and_bare_answers_read_the_same(wrapped: bytes) -> None:
    """The envelope was seen to come and go."""
    row = b'{"id":1,"name":"H100","num_cards":1,"price":2,"location":"US"}'
    rows, _ = hardware.parse_hardware("offers", wrapped % row)
    assert [row.id for row in rows] == [1]


@pytest.mark.parametrize("body", [b"", b"null", b"7", b'{"data":null}', b'{"x":1}', b"[" * 99_999])
def test_what_is_no_list_of_hardware_is_malformed(body: bytes) -> None:
    """It must not read as an empty market."""
    with pytest.raises(Malformed):
        hardware.parse_hardware("offers", body)


def test_the_shape_of_a_machine_tells_what_the_containers_row_does_not() -> None:
    """Without CPU, memory and disk no demand that names them could be met."""
    body = (PAYLOADS / "vmaas_hardware_docs_example.json").read_bytes()
    machines = hardware.parse_hardware("shapes", body)[0]
    offer = offer_of({}, shapes=hardware.shapes_of(machines))
    assert offer is not None
    assert (offer.cpu_cores, offer.ram_gib, offer.disk_gib) == (39, 125, 500)
    plain = offer_of({})
    assert plain is not None
    assert (plain.cpu_cores, plain.ram_gib, plain.disk_gib) == (None, None, None)


def test_a_price_that_rose_or_cannot_be_is_no_longer_the_offer() -> None:
    """The last look before money: two per cent are rounding, more is another price."""
    offer = offer_of({})
    assert offer is not None
    assert Priced(Decimal("0.31")).refusal(offer) is None
    for total in ("0.33", "0", "NaN", "sNaN", "-1", "1E+999999"):
        assert isinstance(Priced(Decimal(total)).refusal(offer), OfferGone)
    assert isinstance(Priced(Decimal("0.3"), [0]).refusal(offer), OfferGone)
    assert Priced(Decimal("0.3"), [2]).refusal(offer) is None


def test_of_machines_of_one_shape_the_least_is_promised() -> None:
    """A container may land on any of them; one row that says nothing hides what the others say."""
    row = {"id": 1, "name": "H100", "num_cards": 8, "price": 9, "location": "US"}
    rows = [
        {**row, "vcpu": 200, "memory": 1000, "storage": 5000},
        {**row, "vcpu": 96, "memory": 2000, "storage": None},
        {**row, "name": " h100 ", "vcpu": 128, "memory": 1500, "storage": 4000},
        {**row, "location": "DE", "vcpu": 1, "memory": 1, "storage": 1},
    ]
    found, _ = hardware.parse_hardware("shapes", json.dumps(rows).encode())
    assert hardware.shapes_of(found) == {
        ("h100", 8, "US"): (96, 1000, 4000),
        ("h100", 8, "DE"): (1, 1, 1),
    }


@pytest.mark.parametrize(
    ("odd", "free"),
    [
        ({}, True),
        ({"available_replicas": 3}, True),
        ({"available_replicas": 0}, False),
        ({"available_replicas": -1}, False),
        ({"available_replicas": 3, "sold_out": True}, False),
        ({"sold_out": False}, True),
    ],
)
def test_what_is_sold_out_is_shown_and_is_not_available(odd: dict[str, Any], free: bool) -> None:
    """Either field says so; a count below zero is no machine either."""
    offer = offer_of(odd)
    assert offer is not None
    assert (offer.available, offer.estimated) == (free, False)


def test_the_fee_is_asked_for_rows_that_can_be_had_the_wanted_size_first() -> None:
    """One odd row must not make every price a guess; three calls are the most that it may cost."""
    row = {"name": "H100", "location": "US", "num_cards": 1}
    rows: list[dict[str, Any]] = [
        {**row, "id": 1, "price": 3},
        {**row, "id": 2, "price": 2, "num_cards": 2},
        {**row, "id": 3, "price": 0},
        {**row, "id": 4, "price": 1, "sold_out": True},
        {**row, "id": 5, "price": 4},
        {**row, "id": 1, "price": 3.5, "location": "DE"},
        {**row, "id": 6, "price": 0.5, "num_cards": 8},
        {**row, "id": 7, "price": 0.1, "num_cards": 0},
        {**row, "id": 8, "price": 0.1, "location": "Mars"},
    ]
    found, _ = hardware.parse_hardware("offers", json.dumps(rows).encode())
    asked = hardware.cheapest(found, 1, terms())
    assert [(each.hardware, listed) for each, listed in asked] == [
        (1, 3),
        (5, 4),
        (6, Decimal("0.5")),
    ]
    assert asked[0][0].place == 1


def test_rows_come_in_steps_with_nothing_lost_or_twice() -> None:
    """Between two steps the event loop gets its turn."""
    row = {"name": "H100", "num_cards": 1, "price": 2, "location": "US"}
    body = json.dumps({"data": {"hardware": [{**row, "id": n} for n in range(601)]}}).encode()
    found, _ = hardware.parse_hardware("offers", body)
    steps = list(hardware.slices(found, terms()))
    assert [len(step) for step in steps] == [250, 250, 101]
    assert [offer for step in steps for offer in step] == offers(body)


def test_a_price_keeps_the_digits_it_was_written_in() -> None:
    """Money through binary fractions would cost $0.30000000000000004 an hour."""
    offer = offer_of({"price": 0.1}, fee_factor=Decimal(3))
    assert offer is not None
    assert offer.price_usd_per_hour == Decimal("0.3")
    rounded = offer_of({"price": 0.1}, fee_factor=Decimal(1) / 3)
    assert rounded is not None
    assert rounded.price_usd_per_hour == Decimal("0.033334")  # never below what is charged


odd = st.one_of(
    st.sampled_from(["NaN", "sNaN", "-Infinity", "", " ", "US", 2**63, -(10**400), 5e-324, 1e300]),
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=12),
    st.just([]) | st.just({}),
)
PLAIN = {"id": 1, "name": "H100", "num_cards": 1, "price": 2, "location": "US", "vram_per_card": 80}
fields = st.sampled_from(
    [*PLAIN, "deploy_id", "hardware_id", "available_replicas", "sold_out", "vcpu", "interconnect"]
)


@given(st.lists(st.dictionaries(fields, odd, max_size=4), max_size=4))
def test_whatever_a_row_holds_its_offer_is_sound_and_can_be_rented(
    changes: list[dict[str, Any]],
) -> None:
    """Live data is odd; what comes out of it is priced, has memory, and its id reads back."""
    body = json.dumps([PLAIN] * 5 + [{**PLAIN, **each} for each in changes]).encode()
    made = offers(body)
    assert len(made) >= 5
    for offer in made:
        assert 0 < offer.price_usd_per_hour <= 10_200
        assert offer.vram_gib > 0
        assert offer.gpu_count > 0
        assert offer.region is None or offer.region.country.isupper()
        assert sold(offer.offer_id).offer_id == offer.offer_id


@pytest.mark.parametrize("amount", ["NaN", "sNaN", "Infinity", "1E+999999", "0", "-1", "1e6"])
def test_what_is_no_price_is_none(amount: str) -> None:
    """It would be divided, and by that it would stop the sync instead of one price."""
    body = json.dumps({"data": {"total_cost_usdc": amount}}).encode()
    assert msgspec.json.decode(body, type=dict[str, Priced])["data"].usd_per_hour is None


def test_places_whose_number_could_not_be_sent_back_have_none() -> None:
    """They are asked for by their code then."""
    rows = [
        {"id": 1, "iso2": "us"},
        {"id": -1, "iso2": "DE"},
        {"id": 10**12, "iso2": "FR"},
        {"id": True, "iso2": "SE"},
        {"id": 5},
        7,
    ]
    assert hardware.place_numbers("locations", json.dumps(rows).encode()) == {"US": 1}
