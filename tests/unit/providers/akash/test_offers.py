"""Akash's prices, hosts and bids as offers, and its errors, one reply at a time."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gp4u.errors import (
    Denied,
    InstanceAbsent,
    Malformed,
    OfferGone,
    ProviderError,
    Refused,
    Throttled,
    Unavailable,
)
from gp4u.model import Offer, Region, Requirements
from gp4u.providers.akash import bids, estimates, wire
from gp4u.providers.akash.estimates import Host, Kind
from gp4u.providers.akash.wire import Coin, Money
from gp4u.providers.http import Reply

PAYLOADS = Path(__file__).parents[3] / "payloads" / "akash"
AT = datetime(2026, 11, 1, tzinfo=UTC)
DOLLARS = Money(block_time_s=6.0)
OWNER = "akash17erkmem6xcugfnew2c0ujfqtet32j29ztk03jt"


def recorded() -> dict[str, Any]:
    """Return the recorded answer with hosts told apart."""
    found: dict[str, Any] = json.loads(
        (PAYLOADS / "console-gpu-prices-debug-trimmed.json").read_text()
    )
    return found


def offers_of(
    prices: dict[str, Any],
    host: Host | None = None,
    wanted: Requirements | None = None,
    money: Money = DOLLARS,
    free: dict[tuple[str, str, str], int] | None = None,
) -> list[Offer]:
    """Turn a price list into offers, with one host known."""
    rows, _ = estimates.parse_prices(json.dumps(prices).encode())
    known = host or Host(owner=OWNER)
    wanted = wanted or Requirements()
    return list(estimates.each_offer(rows, {known.owner: known}, free or {}, wanted, money, AT))


def test_the_recorded_host_becomes_an_estimate() -> None:
    """The one answer that was recorded for real; its bid of 5264.579248 uact is $3.1587."""
    (offer,) = offers_of(recorded())
    assert offer.estimated
    assert offer.offer_id == f"{OWNER}/h100-80Gi-sxm5"
    assert (offer.gpu_model, offer.vram_gib, offer.gpu_count) == ("H100 SXM", 80, 1)
    assert round(offer.price_usd_per_hour, 4) == Decimal("3.1587")
    assert offer.reliability is None
    assert not offer.interruptible


def test_a_price_is_per_card() -> None:
    """The market's price pages are made of bids on exactly one."""
    (one,) = offers_of(recorded())
    (eight,) = offers_of(recorded(), wanted=Requirements(gpu_count=8))
    assert eight.price_usd_per_hour == one.price_usd_per_hour * 8


def test_where_no_number_is_asked_for_there_is_an_estimate_for_each_usual_one() -> None:
    """Ten cards are free: enough for one, two, four and eight of them; each id tells its kind."""
    found = offers_of(recorded(), wanted=Requirements(gpu_count=None))
    assert [offer.gpu_count for offer in found] == [1, 2, 4, 8]
    (eight,) = offers_of(recorded(), wanted=Requirements(gpu_count=8))
    assert found[3] == msgspec.structs.replace(eight, offer_id=f"{eight.offer_id}*8")
    assert len({offer.offer_id for offer in found}) == 4
    assert {estimates.offer_kind(offer) for offer in found} == {estimates.offer_kind(eight)}


def test_a_host_without_enough_free_cards_makes_no_offer() -> None:
    """10 of 23 are free in the recorded answer."""
    assert offers_of(recorded(), wanted=Requirements(gpu_count=10))
    assert not offers_of(recorded(), wanted=Requirements(gpu_count=11))


@pytest.mark.parametrize(
    "host",
    [
        Host(owner=OWNER, is_online=False),
        Host(owner=OWNER, is_valid_version=False),
        Host(owner="akash1other"),
    ],
)
def test_a_host_that_cannot_be_rented_from_makes_no_offer(host: Host) -> None:
    """The list of providers holds those that are offline, and prices outlive their hosts."""
    assert not offers_of(recorded(), host)


def test_what_a_host_says_of_itself_is_kept_apart_from_what_is_known() -> None:
    """Where it stands is told by its address first; an unknown uptime stays unknown."""
    host = msgspec.json.decode(
        json.dumps(
            {
                "owner": OWNER,
                "ipCountryCode": "US",
                "ipRegionCode": "CA",
                "country": "DE",
                "uptime30d": None,
                "uptime7d": 0.991,
                "isAudited": True,
                "networkSpeedDown": 0,
                "stats": {
                    "cpu": {"available": 2500},
                    "memory": {"available": 8 * 2**30},
                    "storage": {"ephemeral": {"available": 100 * 2**30}},
                },
            }
        ),
        type=Host,
    )
    (offer,) = offers_of(recorded(), host)
    assert offer.region == Region("US", "CA")
    assert offer.reliability == 0.991
    assert offer.download_mbps is None
    assert offer.verified is True
    assert (offer.cpu_cores, offer.ram_gib, offer.disk_gib) == (2.5, 8, 100)


def test_what_is_asked_for_grows_with_the_demand() -> None:
    """The market sells what one requests, so the demand's own bounds are requested."""
    (offer,) = offers_of(recorded(), wanted=Requirements(min_cpus=32, min_ram_gib=200))
    assert (offer.cpu_cores, offer.ram_gib) == (32, 200)


def test_a_price_in_akt_needs_a_rate() -> None:
    """A stale rate would turn a price into a guess of a guess: no offer at all."""
    prices = recorded()
    bid = prices["models"][0]["providersWithBestBid"][0]["bestBid"]
    bid["data"]["price"] = {"denom": "uakt", "amount": "7516.96"}
    assert not offers_of(prices)
    (offer,) = offers_of(prices, money=Money(block_time_s=6.0, akt_usd=Decimal("0.7")))
    assert offer.price_usd_per_hour == Decimal("7516.96") * 600 / 10**6 * Decimal("0.7")
    rows, _ = estimates.parse_prices(json.dumps(prices).encode())
    assert rows[0].pays_in_akt


def test_without_an_exact_price_the_rounded_one_serves() -> None:
    """The exact bid is a field that may be dropped without notice."""
    prices = recorded()
    del prices["models"][0]["providersWithBestBid"][0]["bestBid"]["data"]
    (offer,) = offers_of(prices)
    assert offer.price_usd_per_hour == Decimal("3.16")


def test_where_hosts_are_not_told_apart_the_market_as_a_whole_is_offered() -> None:
    """Without `debug` there are prices by card only, and the inventory says what is free."""
    prices = json.loads((PAYLOADS / "console-gpu-prices-trimmed-2026-07-17.json").read_text())
    stock = (PAYLOADS / "console-gpu-trimmed-2026-07-17.json").read_bytes()
    (offer,) = offers_of(prices, free=estimates.free_by_kind(stock))
    assert offer.offer_id == "any/a100-80Gi-sxm4"
    assert offer.price_usd_per_hour == Decimal("1.36")
    assert offer.host_id is None
    assert not offers_of(
        prices, wanted=Requirements(gpu_count=7), free=estimates.free_by_kind(stock)
    )


def test_a_price_of_a_whole_node_is_divided_by_its_cards() -> None:
    """The feed promises bids on one card; where a bid itself says eight, its price is for eight."""
    prices = recorded()
    bid = prices["models"][0]["providersWithBestBid"][0]["bestBid"]["data"]
    (one,) = offers_of(prices)
    bid["resources_offer"][0]["resources"]["gpu"]["units"]["val"] = "4"
    bid["resources_offer"][0]["count"] = 2
    (eighth,) = offers_of(prices)
    assert eighth.price_usd_per_hour == one.price_usd_per_hour / 8


@pytest.mark.parametrize("offered", ["", None, [], [{}], [{"resources": {"gpu": None}}]])
def test_a_bid_that_does_not_say_for_how_many_cards_is_for_one(offered: Any) -> None:
    """So the feed promises, and the part that says it may be dropped."""
    prices = recorded()
    bid = prices["models"][0]["providersWithBestBid"][0]["bestBid"]["data"]
    (one,) = offers_of(prices)
    if offered == "":
        del bid["resources_offer"]
    else:
        bid["resources_offer"] = offered
    assert [o.price_usd_per_hour for o in offers_of(prices)] == [one.price_usd_per_hour]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda row: row["bestBid"]["data"]["price"].update(amount="cheap"),
        lambda row: row["bestBid"]["data"].update(resources_offer="many"),
        lambda row: row.update(provider=None),
        lambda row: row.update(bestBid=7),
    ],
)
def test_a_bid_that_cannot_be_read_hides_no_other(spoil: Callable[[Any], None]) -> None:
    """All hosts of a kind of card stand in one row: one of them must not take it out of sight."""
    prices = recorded()
    row = prices["models"][0]
    other = copy.deepcopy(row["providersWithBestBid"][0])
    other["provider"]["owner"] = "akash1other"
    spoil(other)
    row["providersWithBestBid"].append(other)
    (offer,) = offers_of(prices)
    assert offer.host_id == OWNER
    _, skipped = estimates.parse_prices(json.dumps(prices).encode())
    assert skipped == 1


def test_a_row_of_the_inventory_that_cannot_be_read_hides_no_other() -> None:
    """As with prices."""
    row = {"model": "t4", "ram": "16Gi", "interface": "PCIe", "allocatable": 3, "allocated": 4}
    body = {"gpus": {"details": {"nvidia": [row, row | {"allocated": 1}, {"model": 7}]}}}
    found = estimates.free_by_kind(json.dumps(body).encode())
    assert found == {("t4", "16Gi", "PCIe"): 2}


def test_a_kind_that_no_host_has_is_not_offered_by_the_whole_market() -> None:
    """An empty list of hosts tells them apart all the same: there is none."""
    prices = recorded()
    prices["models"][0]["providerAvailability"]["providers"] = []
    assert not offers_of(prices, free={("h100", "80Gi", "SXM5"): 5})


def test_one_host_offers_a_kind_once() -> None:
    """Two rows that differ in spelling alone would be two offers of one id."""
    prices = recorded()
    prices["models"].append(copy.deepcopy(prices["models"][0]) | {"interface": "sxm5"})
    assert len(offers_of(prices)) == 1


def test_three_bodies_become_offers_at_once() -> None:
    """What the adapter makes of them slice by slice."""
    host = {"owner": OWNER, "isAudited": True, "ipCountryCode": "DE"}
    page = estimates.estimates(
        json.dumps(recorded()).encode(),
        json.dumps([host, {"owner": ""}, {"owner": "akash1x"}]).encode(),
        Requirements(),
        DOLLARS,
        AT,
    )
    known = Host(owner=OWNER, is_audited=True, ip_country_code="DE")
    assert list(page.offers) == offers_of(recorded(), known)


@pytest.mark.parametrize("amount", ["NaN", "-1", "0", "1e30", "Infinity"])
def test_a_price_that_cannot_be_one_makes_no_offer(amount: str) -> None:
    """It would win every comparison, or break it."""
    prices = recorded()
    bid = prices["models"][0]["providersWithBestBid"][0]["bestBid"]
    bid["data"]["price"]["amount"] = amount
    assert not offers_of(prices)


def test_a_bad_row_is_skipped_and_counted_and_too_many_are_malformed() -> None:
    """One lying host must not hide the market; a market of nonsense is no market."""
    prices = recorded()
    good = prices["models"][0]
    prices["models"] = [good, {**good, "model": 7}, good]
    rows, bad = estimates.parse_prices(json.dumps(prices).encode())
    assert (len(rows), bad) == (2, 1)
    prices["models"] = [good, {"model": ""}, 7]
    with pytest.raises(Malformed):
        estimates.parse_prices(json.dumps(prices).encode())


@pytest.mark.parametrize(
    ("amount", "usd"),
    [
        ("4262.041502", "2.5572"),
        ("3398.934588", "2.0394"),
        ("5264.579248", "3.1587"),
        ("70", "0.0420"),
    ],
)
def test_amounts_per_block_agree_with_the_console(amount: str, usd: str) -> None:
    """Its own figures: blocks of 6 s, a millionth of a dollar."""
    made = DOLLARS.usd_per_hour(Coin("uact", Decimal(amount)))
    assert made is not None
    assert round(made, 4) == Decimal(usd)


def test_an_unknown_coin_is_worth_nothing_that_we_know() -> None:
    """An IBC denomination stands in SDLs of the wild."""
    assert DOLLARS.usd_per_hour(Coin("ibc/170C", Decimal(1000))) is None


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (Kind("h100", "80Gi", "sxm5"), "h100-80Gi-sxm5"),
        (Kind("a100-80gb", "", "pcie"), "a100-80gb-any-pcie"),
        (Kind("t4"), "t4-any-any"),
    ],
)
def test_an_offers_id_names_host_and_card(kind: Kind, text: str) -> None:
    """A rent knows nothing else of the card; models with dashes were seen."""
    (offer,) = offers_of(recorded())
    offer = msgspec.structs.replace(offer, offer_id=f"{OWNER}/{kind.text}")
    assert kind.text == text
    assert estimates.offer_kind(offer) == (OWNER, kind)


def bids_reply(**changes: Any) -> bytes:
    """Return a reply with the recorded bid, changed."""
    bid = recorded()["models"][0]["providersWithBestBid"][0]["bestBid"]["data"]
    row = {"id": bid["id"], "state": "open", "price": bid["price"], **changes}
    row.setdefault("resources_offer", bid["resources_offer"])
    return json.dumps({"data": [{"bid": row, "escrow_account": {}}]}).encode()


def test_a_bid_becomes_an_exact_offer() -> None:
    """It is for the whole group: nothing is multiplied any more."""
    (estimate,) = offers_of(recorded(), wanted=Requirements(gpu_count=2))
    (bid,) = bids.parse_bids(bids_reply())
    host = Host(owner=OWNER, ip_country_code="DE", uptime30d=0.99, is_audited=True)
    made = bids.bid_offer(bid, estimate, host, DOLLARS, AT)
    assert made is not None
    assert not made.estimated
    assert round(made.price_usd_per_hour, 4) == Decimal("3.1587")
    assert (made.gpu_model, made.gpu_count) == ("H100 SXM", 2)
    assert (made.host_id, made.region, made.reliability) == (OWNER, Region("DE"), 0.99)


def test_a_bid_of_an_unknown_host_says_so() -> None:
    """Bids come from anybody; what is unknown must fail a filter, not take another's figures."""
    (estimate,) = offers_of(recorded(), Host(owner=OWNER, uptime30d=1.0, is_audited=True))
    (bid,) = bids.parse_bids(bids_reply())
    made = bids.bid_offer(bid, estimate, None, DOLLARS, AT)
    assert made is not None
    assert (made.reliability, made.region, made.verified) == (None, None, None)


@pytest.mark.parametrize("state", ["lost", "closed", "active"])
def test_only_open_bids_count(state: str) -> None:
    """The list keeps what was lost and what went stale."""
    assert bids.parse_bids(bids_reply(state=state)) == []


def error(operation: str, status: int, body: object = None, **headers: str) -> ProviderError | None:
    """Judge a reply."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return wire.judge(operation, Reply(status, headers, content))


def code(word: str) -> dict[str, str]:
    """Return the Console's envelope with a code."""
    return {"error": "Error", "message": "said so", "code": word, "type": word}


@pytest.mark.parametrize(
    ("operation", "status", "body", "kind"),
    [
        ("offers", 401, code("unauthorized"), Denied),
        ("offers", 403, code("forbidden"), Denied),
        ("create", 402, code("balance_top_up_pending"), Throttled),
        ("create", 402, code("payment_required"), Refused),
        ("create", 402, code("insufficient_balance"), Refused),
        ("lease", 502, code("provider_unreachable"), OfferGone),
        ("lease", 502, code("manifest_not_delivered"), Refused),
        ("lease", 400, code("bad_request"), OfferGone),
        ("create", 400, code("validation_error"), Refused),
        ("create", 422, code("deployment_resources_changed"), Refused),
        ("create", 409, code("deployment_definition_changed"), Refused),
        ("offers", 429, b"<html>slow down", Throttled),
        ("release", 404, code("not_found"), InstanceAbsent),
        ("show", 404, code("not_found"), InstanceAbsent),
        ("bids", 404, code("not_found"), Refused),
        ("chain_hosts", 501, {"code": 12, "message": "Not Implemented"}, Malformed),
        ("chain_hosts", 503, {"code": 14, "message": "down"}, Unavailable),
        ("offers", 502, b"<html>cloudflare", Unavailable),
        ("offers", 500, code("internal_server_error"), Unavailable),
        ("offers", 302, b"", Malformed),
        ("host", 400, b"Invalid address", Refused),
    ],
)
def test_an_error_means_what_the_market_says_it_does(
    operation: str, status: int, body: object, kind: type[ProviderError]
) -> None:
    """Each row of the market's table, and what stands before it (Cloudflare, a node's proxy)."""
    assert type(error(operation, status, body)) is kind


def test_a_success_is_none() -> None:
    """201 and 202 are as good as 200."""
    assert [error("create", status, {}) for status in (200, 201, 202)] == [None] * 3


def test_no_credit_has_the_word_that_everybody_knows() -> None:
    """The broker stops at it, on every market."""
    made = error("create", 402, code("insufficient_balance"))
    assert isinstance(made, Refused)
    assert made.code == "insufficient_credit"


def test_the_markets_word_on_how_long_to_wait_is_kept() -> None:
    """A pending top-up tells when to come again."""
    made = error("create", 402, code("balance_top_up_pending"), **{"retry-after": "7"})
    assert isinstance(made, Throttled)
    assert made.retry_after_s == 7


def test_a_time_of_day_to_come_again_counts_from_the_replys_own() -> None:
    """Clocks differ; and without one there is no telling."""
    till = {"retry-after": "Sun, 01 Nov 2026 00:00:09 GMT"}
    made = error("offers", 429, None, **till, date="Sun, 01 Nov 2026 00:00:00 GMT")
    assert isinstance(made, Throttled)
    assert made.retry_after_s == 9
    made = error("offers", 429, None, **till)
    assert isinstance(made, Throttled)
    assert made.retry_after_s is None


def test_a_wrong_version_is_not_an_outage() -> None:
    """An operator must read that the path is old, not that the node is down."""
    assert "version" in str(error("chain_hosts", 501, {"code": 12, "message": "Not Implemented"}))
