"""What 10,000 offers cost from bytes on, against decoding the same bytes and nothing else.

Each market in its own rows. The yardstick decodes them in one pass into the row types that the
adapter reads. Of Vast.ai two bodies are measured: `whole` has every field of rows as they were
recorded, most of which the decoder only skips; `lean` has the fields that we read, so there is less
to skip and our own work weighs more. The other markets' rows come from their simulators.

Rounds of both sides alternate and the median counts, so that a busy machine slows both alike.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from random import Random
from typing import NamedTuple

import msgspec
from bodies import ionet_list, recorded, render_pages

from gp4u.model import Offer, Requirements
from gp4u.providers.akash import estimates
from gp4u.providers.akash.wire import Money
from gp4u.providers.ionet import hardware
from gp4u.providers.ionet.order import Product
from gp4u.providers.render.offers import ListedOffer as RenderOffer
from gp4u.providers.render.offers import parse_offers as parse_render
from gp4u.providers.vastai.replies import ListedOffer, parse_offers, to_offer

BOUND = 4.0
OFFERS = 10_000
ROUNDS = 9
AKASH_WORLD = 26_000
"""Offers that the simulated hosts list, so that Akash makes 10,000 estimates of them."""
RECORDED = Path(__file__).parents[1] / "tests/payloads/vastai/offers_recorded_2025-07-26.json"
MODELS = (("RTX 5090", 32607), ("RTX 4090", 24564), ("RTX 3060", 12288), ("A100 SXM4", 81920))
PLACES = ("Ontario, CA", "Texas, US", "California, US", ", DE", "Sweden, SE", "Japan, JP", None)
WANTED, AT = Requirements(), datetime(2026, 1, 1, tzinfo=UTC)


class Case(NamedTuple):
    """One market's bytes, and both ways to go through them."""

    name: str
    bodies: Sequence[bytes]
    ours: Callable[[], Sequence[Offer | None]]
    bare: Callable[[], object]


class VastaiReply(msgspec.Struct):
    """A search reply, read in one pass."""

    offers: list[ListedOffer]


class RenderPage(msgspec.Struct):
    """A page of offers, read in one pass."""

    data: list[RenderOffer]


def _vastai_rows(random: Random) -> list[dict[str, object]]:
    recorded_rows = json.loads(RECORDED.read_text(encoding="utf-8"))["offers"]
    rows = []
    for number in range(OFFERS):
        name, gpu_ram = random.choice(MODELS)
        base, storage = random.uniform(0.05, 4.0), random.uniform(0.05, 1.0)
        rows.append(
            random.choice(recorded_rows)
            | {
                "id": 20_000_000 + number,
                "ask_contract_id": 20_000_000 + number,
                "machine_id": random.randrange(1, 40_000),
                "host_id": random.randrange(1, 100_000),
                "gpu_name": name,
                "gpu_ram": gpu_ram,
                "geolocation": random.choice(PLACES),
                "dph_base": base,
                "dph_total": base + storage * 20 / 720,
                "storage_cost": storage,
                "min_bid": base / 2,
                "is_bid": False,
                "rented": False,
                "rentable": True,
                "reliability2": random.uniform(0.6, 1.0),
                "inet_down": random.uniform(10, 9000),
                "inet_up": random.uniform(10, 9000),
                "disk_space": random.uniform(20, 4000),
            }
        )
    return rows


def _vastai() -> Iterator[Case]:
    rows = _vastai_rows(Random(1))
    read = set(ListedOffer.__struct_fields__)
    lean = [{name: value for name, value in row.items() if name in read} for row in rows]
    for name, found in (("whole", rows), ("lean", lean)):
        body = json.dumps({"offers": found}, separators=(",", ":")).encode()

        def ours(body: bytes = body) -> Sequence[Offer | None]:
            return [to_offer(row, WANTED, AT) for row in parse_offers(body)[0]]

        def bare(body: bytes = body) -> object:
            return msgspec.json.decode(body, type=VastaiReply)

        yield Case(f"vastai, {name} rows", [body], ours, bare)


def _ionet() -> Case:
    found = asyncio.run(recorded("ionet", offers=2_000))
    body = ionet_list(found.ending("/caas/hardware"), OFFERS + OFFERS // 100)  # some mean nothing
    machines, _ = hardware.parse_hardware("shapes", found.ending("/vmaas/hardware"))
    terms = hardware.Terms(
        product=Product.CAAS,
        at=AT,
        places_by=hardware.place_numbers("locations", found.ending("/locations")),
        fee_factor=Decimal("1.05"),
        shapes=hardware.shapes_of(machines),
    )
    return Case(
        "ionet",
        [body],
        lambda: hardware.offers_of(body, terms),
        lambda: msgspec.json.decode(body, type=hardware.Catalogue),
    )


def _akash() -> Case:
    found = asyncio.run(recorded("akash", offers=AKASH_WORLD))
    prices, hosts = found.ending("/v1/gpu-prices"), found.ending("/v1/providers")
    money = Money(block_time_s=6.0, akt_usd=Decimal("1.5"))

    def bare() -> object:
        return (
            msgspec.json.decode(prices, type=estimates.Prices),
            msgspec.json.decode(hosts, type=list[estimates.Host]),
        )

    return Case(
        "akash",
        [prices, hosts],
        lambda: estimates.estimates(prices, hosts, WANTED, money, AT).offers,
        bare,
    )


def _render() -> Case:
    found = asyncio.run(recorded("render", offers=500))
    pages = render_pages(found.ending("/compute/offers"), OFFERS)
    return Case(
        "render",
        pages,
        lambda: parse_render(pages, AT).offers,
        lambda: [msgspec.json.decode(page, type=RenderPage) for page in pages],
    )


def _ms(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1e3


def _report(case: Case) -> bool:
    made = len(case.ours())
    assert made >= OFFERS, f"{case.name}: only {made} offers"
    rounds = [(_ms(case.ours), _ms(case.bare)) for _ in range(ROUNDS)]
    ours_ms = statistics.median(ours for ours, _ in rounds)
    bare_ms = statistics.median(bare for _, bare in rounds)
    mib = sum(map(len, case.bodies)) / 2**20
    ok = ours_ms / bare_ms <= BOUND
    print(
        json.dumps(
            {
                "name": f"bytes to {made} offers, {case.name}, {mib:.1f} MiB",
                "ours": round(ours_ms, 2),
                "yardstick": round(bare_ms, 2),
                "unit": "ms",
                "ratio": round(ours_ms / bare_ms, 2),
                "bound": BOUND,
                "ok": ok,
            }
        ),
        flush=True,
    )
    return ok


def main() -> int:
    """Print each measure as a line of JSON; 1 if one is over its bound."""
    cases = [*_vastai(), _ionet(), _akash(), _render()]
    oks = [_report(case) for case in cases]
    return 0 if all(oks) else 1


if __name__ == "__main__":
    sys.exit(main())
