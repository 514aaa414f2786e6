"""Akash's bids as offers: exact at last, for what was really asked for.

What this file hides: that a bid is for the whole group, that any host may make one, and how a card
is spelled in it. All of it is pure.

Source: `docs/reference/akash.md`, sections on a rent and on prices; checked 2026-11.
"""

from __future__ import annotations

import re
from datetime import datetime
from decimal import Decimal
from typing import Any, Final

import msgspec

from gp4u.model import Offer
from gp4u.providers.akash.estimates import Host, Kind, offer_kind
from gp4u.providers.akash.wire import SLUG, Coin, LeaseId, Money, Word, dig
from gp4u.providers.http import decode, harmless, rows

_GPU_KEY: Final = re.compile(r"vendor/nvidia/model/([^/]+)(?:/ram/([^/]+))?(?:/interface/([^/]+))?")


class BidRow(msgspec.Struct):
    """One host's answer to an order."""

    id: LeaseId
    state: Word
    price: Coin
    resources_offer: Any = None


class _BidHolder(msgspec.Struct):
    bid: BidRow


class _BidsReply(msgspec.Struct):
    data: list[msgspec.Raw]


def parse_bids(body: bytes) -> list[BidRow]:
    """Return the bids that can still be accepted; a row that cannot be read is none.

    Raises:
        Malformed: it is no list of bids.
    """
    kept, _ = rows(decode(SLUG, "bids", body, _BidsReply).data, _BidHolder)
    return [row.bid for row in kept if row.bid.state == "open"]


def bid_offer(
    bid: BidRow, offer: Offer, host: Host | None, money: Money, at: datetime
) -> Offer | None:
    """Return a bid as an offer that can be compared; None where its price cannot be told.

    What was asked for is what one gets; the card is the bid's own word, where it has one. What is
    not known of the host that bids is unknown, whatever was known of the one that was hoped for.
    """
    usd = money.usd_per_hour(bid.price)
    if usd is None:
        return None
    _, kind = offer_kind(offer)
    told = _bid_kind(bid.resources_offer) or kind
    named = Kind(told.model, told.ram or kind.ram, told.interface or kind.interface)
    gpu, owner = named.gpu, bid.id.provider
    known = host if host is not None else Host(owner=owner)
    return msgspec.structs.replace(
        offer,
        offer_id=f"{owner}/{named.text}",
        gpu_model=gpu.model if gpu else harmless(named.model),
        vram_gib=gpu.vram_gib if gpu else offer.vram_gib,
        price_usd_per_hour=usd,
        gpu_usd_per_hour=usd,
        storage_usd_per_hour=Decimal(0),
        fetched_at=at,
        estimated=False,
        region=known.region,
        reliability=known.reliability,
        download_mbps=known.network_speed_down or None,
        upload_mbps=known.network_speed_up or None,
        machine_id=owner,
        host_id=owner,
        verified=known.is_audited,
        disk_gib=known.disk_gib or offer.disk_gib,
        available=True,
    )


def _bid_kind(resources: object) -> Kind | None:
    """Return the first card that a bid promises: `vendor/nvidia/model/h100/ram/80Gi/...`."""
    for each in resources if isinstance(resources, list) else ():
        attributes = dig(each, "resources", "gpu").get("attributes")
        for attribute in attributes if isinstance(attributes, list) else ():
            found = _GPU_KEY.fullmatch(str(dig(attribute).get("key", "")))
            if found is not None and found[1] != "*":
                return Kind(found[1], found[2] or "", found[3] or "")
    return None
