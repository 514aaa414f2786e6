"""One answer of each path of decisions, rentals and orphans, as OpenAPI shows them.

Kept apart from the paths, so that what they do is not buried under what they look like. A test
reads each of them as the shape that it is an example of.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

_AT: Final = "2026-11-20T12:00:00Z"
_KEY: Final = "gp4u-7xhaot-qonpgiskau-iqaxiimpbj"

OFFER: Final[dict[str, Any]] = {
    "id": "vastai/4711",
    "provider": "vastai",
    "offer_id": "4711",
    "gpu_model": "RTX 4090",
    "gpu_count": 1,
    "vram_gib": 24.0,
    "price_usd_per_hour": "0.341000",
    "region": "US-CA",
    "country": "US",
    "reliability": 0.997,
    "download_mbps": 812.5,
    "interruptible": False,
    "g_score": 81.4,
    "g_score_parts": {"price": 0.84, "speed": 0.79},
    "fetched_at": _AT,
    "gpu_usd_per_hour": "0.335000",
    "storage_usd_per_hour": "0.006000",
    "upload_mbps": 640.0,
    "cpu_cores": 16.0,
    "ram_gib": 64.0,
    "disk_gib": 512.0,
    "open_ports": 100,
    "machine_id": "8812",
    "host_id": "305",
    "verified": True,
    "datacenter": False,
    "estimated": False,
    "available": True,
}

DECISION: Final[dict[str, Any]] = {
    "id": "d-5b1c9a0e2f47",
    "decided_at": _AT,
    "candidates": 12,
    "rejected": 52,
    "ranked": [
        {
            "offer": OFFER,
            "score": 0.87,
            "parts": {
                "price": 0.27,
                "performance": 0.21,
                "gpu_match": 0.2,
                "location": 0.1,
                "availability": 0.09,
            },
        }
    ],
    "relaxations": [
        {"filter": "price", "bound": "<= $0.50/h", "excluded_alone": 7, "nearest": "$0.52/h"}
    ],
    "sources": [
        {
            "provider": "vastai",
            "offers": 64,
            "age_s": 3.2,
            "complete": True,
            "skipped_rows": 0,
            "error": "",
            "retry_in_s": None,
        }
    ],
    "log": [
        "[VAST] Searching for instances matching: RTX4090, <$0.50/hr",
        "[VAST] Found 64 candidates, filtering...",
        "[VAST] After filtering: 12 instances remain",
        "[VAST] Scoring instances:",
        "  - Instance 4711: Score 0.87 (RTX4090, $0.34/hr, US-CA, 99.7% reliability)",
        "[VAST] Selected instance 4711 - launching...",
    ],
    "explanation": "12/64 offers fit: 52 price above $0.50/h.",
    "denied": [],
    "broken_by_market": {},
}

MARKETS: Final[dict[str, Any]] = {
    "items": [
        {
            "provider": "vastai",
            "title": "Vast.ai",
            "open": True,
            "why": "",
            "can": ["labels", "ports", "logs", "exec"],
        },
        {
            "provider": "ionet",
            "title": "io.net",
            "open": False,
            "why": "IONET_API_KEY is not set",
            "can": ["labels", "ports"],
        },
    ]
}

RENTAL: Final[dict[str, Any]] = {
    "key": _KEY,
    "state": "starting",
    "live": True,
    "endpoints": [],
    "owner": "cli:june",
    "provider": "vastai",
    "offer_id": "4711",
    "instance_id": "20548457",
    "gpu_model": "RTX 4090",
    "gpu_count": 1,
    "region": "US-CA",
    "image": "vllm/vllm-openai:latest",
    "price_usd_per_hour": "0.341000",
    "estimated": False,
    "cost_usd": "0.000095",
    "paid_until": None,
    "reason": None,
    "seen": None,
    "status": None,
    "intended_at": _AT,
    "running_at": None,
    "released_at": None,
}

RENTAL_SHOWN: Final[dict[str, Any]] = {
    **RENTAL,
    "state": "running",
    "endpoints": [
        {
            "port": 8000,
            "protocol": "tcp",
            "address": "198.51.100.7:40412",
            "url": "http://198.51.100.7:40412",
        }
    ],
    "seen": "running",
    "status": "running",
    "running_at": "2026-11-20T12:01:10Z",
    "cost_usd": "0.170500",
    "history": [
        {"at": _AT, "kind": "intended", "text": "vastai offer 4711 at $0.3410/h"},
        {"at": "2026-11-20T12:00:01Z", "kind": "starting", "text": "instance 20548457"},
        {"at": "2026-11-20T12:01:10Z", "kind": "running", "text": "healthy"},
    ],
}

RELEASED: Final[dict[str, Any]] = {
    **RENTAL,
    "state": "released",
    "live": False,
    "reason": "released_by_user",
    "released_at": "2026-11-20T12:31:00Z",
    "cost_usd": "0.176000",
}

RENTALS: Final[dict[str, Any]] = {
    "items": [RENTAL],
    "next_cursor": None,
    "unexplained": [],
    "warnings": [],
    "failed": None,
}

DRY_RUN: Final[dict[str, Any]] = {
    "decision": {**DECISION, "id": None},
    "offer": OFFER,
    "calls": [
        {
            "method": "PUT",
            "url": "https://console.vast.ai/api/v0/asks/4711/",
            "body": {"image": "vllm/vllm-openai:latest", "label": _KEY},
        }
    ],
}

ORPHANS: Final[dict[str, Any]] = {
    "items": [
        {
            "key": _KEY,
            "state": "orphan",
            "endpoints": [],
            "provider": "vastai",
            "instance_id": "20548457",
            "price_usd_per_hour": "0.341000",
            "seen": "running",
            "note": "nothing explains it: gp4u sweep",
        }
    ],
    "warnings": [],
}


def _lines(*steps: Mapping[str, Any]) -> str:
    return "".join(f"{json.dumps(step)}\n" for step in steps)


RENT_STEPS: Final = _lines(
    {"step": "waiting", "seconds": 6.0},
    {"step": "rented", "rental": RENTAL},
    {"step": "done", "rental": RENTAL},
)

RELEASE_STEPS: Final = _lines(
    {"step": "watched", "rental": RENTAL, "probe": "", "problem": ""},
    {"step": "settled", "rental": RELEASED},
    {"step": "done", "rental": RELEASED},
)
