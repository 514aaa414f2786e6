"""What 5,000 listings cost from bytes to offers, against decoding the same bytes and nothing else.

Two bodies are measured. `whole` has every field of rows as they were recorded, most of which the
decoder only skips; `lean` has the fields that we read, so there is less to skip and our own work
weighs more. The yardstick decodes them into the same row type. A third line, without a bound, sets
the whole body against decoding without a type, which builds every value.

Rounds of both sides alternate and the median counts, so that a busy machine slows both alike.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from random import Random

import msgspec

from gp4u.model import Offer, Requirements
from gp4u.providers.vastai_replies import ListedOffer, SearchReply, parse_offers, to_offer

BOUND = 4.0
LISTINGS = 5_000
ROUNDS = 15
RECORDED = Path(__file__).parents[1] / "tests/payloads/vastai/offers_recorded_2025-07-26.json"
MODELS = (("RTX 5090", 32607), ("RTX 4090", 24564), ("RTX 3060", 12288), ("A100 SXM4", 81920))
PLACES = ("Ontario, CA", "Texas, US", "California, US", ", DE", "Sweden, SE", "Japan, JP", None)


def _rows(random: Random) -> list[dict[str, object]]:
    recorded = json.loads(RECORDED.read_text(encoding="utf-8"))["offers"]
    rows = []
    for number in range(LISTINGS):
        name, gpu_ram = random.choice(MODELS)
        base, storage = random.uniform(0.05, 4.0), random.uniform(0.05, 1.0)
        rows.append(
            random.choice(recorded)
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


def _body(rows: list[dict[str, object]]) -> bytes:
    return json.dumps({"offers": rows}, separators=(",", ":")).encode()


def _offers(body: bytes) -> list[Offer | None]:
    wanted, at = Requirements(), datetime(2026, 1, 1, tzinfo=UTC)
    return [to_offer(row, wanted, at) for row in parse_offers(body)[0]]


def _ms(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1e3


def _medians(body: bytes, yardstick: Callable[[], object]) -> tuple[float, float]:
    """Return milliseconds of ours and of the yardstick."""
    rounds = [(_ms(lambda: _offers(body)), _ms(yardstick)) for _ in range(ROUNDS + 1)][1:]
    return statistics.median(o for o, _ in rounds), statistics.median(y for _, y in rounds)


def _report(name: str, body: bytes, yardstick: Callable[[], object], bound: float | None) -> bool:
    ours_ms, bare_ms = _medians(body, yardstick)
    ok = bound is None or ours_ms / bare_ms <= bound
    print(
        json.dumps(
            {
                "name": f"{name}, {len(body) / 2**20:.1f} MiB",
                "ours": round(ours_ms, 2),
                "yardstick": round(bare_ms, 2),
                "unit": "ms",
                "ratio": round(ours_ms / bare_ms, 2),
                "bound": bound,
                "ok": ok,
            }
        )
    )
    return ok


def main() -> int:
    """Print each measure as a line of JSON; 1 if one is over its bound."""
    rows = _rows(Random(1))
    read = set(ListedOffer.__struct_fields__)
    whole = _body(rows)
    lean = _body([{k: v for k, v in row.items() if k in read} for row in rows])
    for body in (whole, lean):
        offers = _offers(body)
        assert len(offers) == LISTINGS
        assert None not in offers
    typed = msgspec.json.Decoder(SearchReply)
    oks = [
        _report("listings to offers, whole rows", whole, lambda: typed.decode(whole), BOUND),
        _report("listings to offers, lean rows", lean, lambda: typed.decode(lean), BOUND),
        _report(
            "listings to offers, whole rows, against untyped decoding",
            whole,
            lambda: msgspec.json.decode(whole),
            None,
        ),
    ]
    return 0 if all(oks) else 1


if __name__ == "__main__":
    sys.exit(main())
