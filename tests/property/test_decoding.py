"""Whatever a market sends: it is understood, or it is one of our errors; it never crashes us.

H16 to H23. The values are drawn from what JSON can hold, and from what Python's own parsers are
known to stumble over: huge numbers, booleans that are numbers, digits that are none.
"""

from __future__ import annotations

import json
import math
from typing import Any

import msgspec
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gp4u.errors import Malformed, ProviderError, Refused, Throttled, Unavailable
from gp4u.model import InstanceState, Requirements
from gp4u.providers.http import Reply, decode, excerpt, harmless
from gp4u.providers.vastai.replies import (
    ListedOffer,
    ListReply,
    judge,
    parse_offers,
    to_instance,
    to_offer,
)
from tests.unit.providers.scripted import Script, market, recorded
from tests.virtual_loop import EPOCH, run_virtual

OPERATIONS = ("ping", "offers", "rent", "instances", "release", "logs", "billed")
RECORDED = recorded("offers_recorded_2025-07-26")["offers"]
LISTED = recorded("instances_list_v1")["instances"][0]

odd = st.sampled_from(
    [
        *("NaN", "sNaN", "-Infinity", "1e999", "1E+999999", "²", "-0", "", " 7 ", "0x10", "1_000"),
        *(0, -1, 2**63, 2**64, 10**400, -(10**400), 1e300, -1e300, 5e-324, 0.1, True, False, None),
        *([], {}, [None], {"a": 1}),
    ]
)
leaves = st.one_of(
    odd,
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=20),
)
values = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)
wishes = st.builds(
    Requirements,
    interruptible=st.booleans(),
    disk_gib=st.floats(min_value=0, max_value=100_000),
)


def changed(row: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Draw a real row with some of its fields replaced or dropped."""
    names = st.sampled_from(sorted(row))
    replaced = st.dictionaries(names, values, max_size=4)
    dropped = st.sets(names, max_size=2)
    return st.builds(
        lambda new, gone: {k: v for k, v in (row | new).items() if k not in gone}, replaced, dropped
    )


@given(st.one_of(st.binary(max_size=300), values.map(lambda v: json.dumps(v).encode())))
@example(b"[" * 100_000)
@example(b'{"offers": ' * 50_000)
@example(b'{"offers": [' + b"[" * 100_000)
@example(b'{"offers": [{"id": ' + b"9" * 100_000 + b"}]}")
@example(b"\xff\xfe{\x00}\x00")
def test_any_bytes_are_offers_or_malformed(body: bytes) -> None:
    """H17, H19: a market's reply is foreign text, whatever its status said."""
    said = ""
    try:
        rows, bad = parse_offers(body)
        assert bad <= len(rows)
    except Malformed as error:
        said = str(error)
    assert len(said) < 512
    assert said.isprintable()


@given(st.lists(changed(RECORDED[0]), max_size=4), wishes)
@settings(max_examples=300)
def test_any_row_is_a_sane_offer_or_skipped(
    rows: list[dict[str, Any]], wanted: Requirements
) -> None:
    """H20, H21: what reaches the selection has a price that is one, and numbers that can be."""
    try:
        listed, bad = parse_offers(json.dumps({"offers": rows}).encode())
    except Malformed:
        return
    assert len(listed) + bad == len(rows)
    for row in listed:
        offer = to_offer(row, wanted, EPOCH)
        if offer is None:
            continue
        price = float(offer.price_usd_per_hour)
        assert 0 < price < math.inf
        assert offer.price_usd_per_hour == offer.gpu_usd_per_hour + offer.storage_usd_per_hour
        assert offer.gpu_usd_per_hour > 0
        assert offer.storage_usd_per_hour >= 0
        assert offer.gpu_count >= 1
        assert 0 < offer.vram_gib < math.inf
        assert offer.reliability is None or 0 <= offer.reliability <= 1
        for number in (offer.download_mbps, offer.cpu_cores, offer.ram_gib, offer.disk_gib):
            assert number is None or 0 <= number < math.inf
        assert offer.open_ports is None or 0 <= offer.open_ports <= 65_535
        assert offer.offer_id.isascii()
        assert offer.offer_id.isdigit()
        assert offer.gpu_model.isprintable()
        msgspec.json.encode(offer)


@given(st.lists(changed(RECORDED[0]), min_size=1, max_size=4))
def test_rows_together_are_read_as_they_are_one_by_one(rows: list[dict[str, Any]]) -> None:
    """The fast way over all rows must not differ from the patient one."""
    good = []
    for row in rows:
        try:
            good += parse_offers(json.dumps({"offers": [row]}).encode())[0]
        except Malformed:
            continue
    try:
        together, bad = parse_offers(json.dumps({"offers": rows}).encode())
    except Malformed:
        assert 2 * len(good) < len(rows)
    else:
        assert repr(together) == repr(good)  # a NaN among them equals nothing
        assert bad == len(rows) - len(good)


@given(st.integers(min_value=0))
def test_no_prefix_of_a_reply_is_a_reply(cut: int) -> None:
    """H16: half an answer must not look like a small market or an empty account."""
    offers = json.dumps({"offers": RECORDED}).encode()
    listing = json.dumps(recorded("instances_list_v1")).encode()
    for body, parse in (
        (offers, parse_offers),
        (listing, lambda b: decode("vastai", "instances", b, ListReply)),
    ):
        try:
            parse(body[: cut % len(body)])
        except Malformed:
            continue
        raise AssertionError(cut % len(body))


@given(st.one_of(changed(LISTED), values))
@settings(max_examples=300)
@example({"id": 1, "public_ipaddr": "1.2.3.4", "ports": {"²/tcp": [{"HostPort": "²"}]}})
@example({"id": 1, "dph_total": True, "start_date": 10**400})
def test_any_row_of_the_list_is_an_instance_or_none(row: object) -> None:
    """H20: one broken row must not blind us to all that we pay for."""
    found = to_instance(row)
    if found is None:
        return
    assert found.instance_id.isascii()
    assert found.instance_id.isdigit()
    assert found.state in InstanceState
    assert found.status.isprintable()
    assert all(0 < e.port < 65_536 and 0 < e.container_port < 65_536 for e in found.endpoints)
    price = found.price_usd_per_hour
    assert price is None or (price.is_finite() and price >= 0)


@given(
    st.lists(
        st.fixed_dictionaries(
            {"instances": st.lists(st.builds(lambda n: {"id": n}, st.integers(0, 6)), max_size=4)},
            optional={
                "total_instances": st.integers(0, 7),
                "instances_found": st.integers(0, 4),
                "next_token": st.sampled_from(["a", "b", None]),
            },
        ),
        min_size=1,
        max_size=4,
    )
)
@settings(max_examples=300)
def test_a_complete_listing_has_shown_as_many_as_it_says(pages: list[dict[str, Any]]) -> None:
    """H23, L5: absence is concluded from completeness, so completeness must be earned."""
    pages[-1].pop("next_token", None)
    script = Script(*pages)
    found = run_virtual(market(script).instances)
    assert len({each.instance_id for each in found.instances}) == len(found.instances)
    if found.complete:
        read = pages[: len(script.requests)]
        assert all(p.get("total_instances") in (None, len(found.instances)) for p in read)
        assert all(p.get("instances_found") in (None, len(p["instances"])) for p in read)
        assert read[-1].get("next_token") is None
    else:
        assert found.why_incomplete


bodies = st.one_of(
    st.binary(max_size=100),
    st.fixed_dictionaries(
        {},
        optional={
            "success": st.sampled_from([True, False, None, "false", 0]),
            "error": st.one_of(st.sampled_from(["auth_error", "no_such_ask", "not_found"]), values),
            "msg": st.one_of(st.sampled_from(["too frequent", "no longer available"]), values),
            "detail": values,
            "new_contract": st.one_of(st.integers(0, 10**9), values),
            "retry_after": values,
        },
    ).map(lambda said: json.dumps(said).encode()),
)
headers = st.fixed_dictionaries(
    {},
    optional={
        name: st.one_of(
            st.sampled_from(["5", "nan", "-1", "1e400", "²", "Wed, 21 Oct 2026 07:28:00 GMT"]),
            st.text(st.characters(max_codepoint=255), max_size=20),
        )
        for name in ("retry-after", "date", "x-ratelimit-reset")
    },
)


@given(st.sampled_from(OPERATIONS), st.integers(100, 599), headers, bodies)
@settings(max_examples=500)
@example("rent", 500, {}, b'{"error": "no_such_ask", "msg": "too frequent"}')
@example("offers", 429, {"retry-after": "Wed, 21 Oct 99999 07:28:00 GMT", "date": "x"}, b"")
def test_any_reply_has_one_meaning_and_it_is_never_a_crash(
    operation: str, status: int, named: dict[str, str], body: bytes
) -> None:
    """H5, H10, H17: and the meanings on which money hangs are never guessed."""
    error = judge(operation, Reply(status, named, body))
    if error is None:
        assert 200 <= status < 300
        return
    assert isinstance(error, ProviderError)
    assert error.detail.isprintable()
    assert len(error.detail) < 256
    if isinstance(error, Throttled) and error.retry_after_s is not None:
        assert 0 <= error.retry_after_s <= 300
    if operation == "rent" and status >= 500:
        made = isinstance(error, Refused) and error.instance_id is not None
        assert made or isinstance(error, Unavailable)


@given(st.integers(0, 2**63 - 1), st.integers(200, 599), st.booleans())
def test_an_instance_id_beside_a_no_is_always_kept(number: int, status: int, as_text: bool) -> None:
    """H5: it is being paid for."""
    said = {"success": False, "msg": "no", "new_contract": str(number) if as_text else number}
    error = judge("rent", Reply(status, {}, json.dumps(said).encode()))
    assert isinstance(error, Refused)
    assert error.instance_id == str(number)


@given(st.text(max_size=400), st.binary(max_size=400))
def test_foreign_text_becomes_one_short_printable_line(text: str, body: bytes) -> None:
    """S8: C0, C1, bidirectional marks and line breaks all steer something."""
    for said in (harmless(text, 50), excerpt(body, 50)):
        assert said.isprintable()
        assert len(said) <= 50


def test_every_field_that_we_read_was_recorded_or_is_documented() -> None:
    """H40: a misspelt field would be null for ever, and nobody would notice."""
    known = set(RECORDED[0]) | set(recorded("offers_docs_example")["offers"][0])
    assert set(ListedOffer.__struct_fields__) <= known
