"""One answer of each health path, as OpenAPI shows them: the first seed's numbers where it has any.

Kept apart from the paths, so that what they do is not buried under what they look like. A test
reads each of them as the shape that it is an example of.
"""

from __future__ import annotations

from typing import Any, Final

_STAMP: Final = "2026-11-20T12:00:00Z"

_SHORT: Final[dict[str, Any]] = {
    "status": "HEALTHY",
    "success_rate": 0.98,
    "avg_response_time": 245,
    "circuit_breaker": "CLOSED",
    "rate_limit_utilization": 0.45,
    "reason": "",
}

HEALTH: Final[dict[str, Any]] = {
    "status": "degraded",
    "providers": {
        "vastai": _SHORT,
        "ionet": {
            **_SHORT,
            "status": "UNAVAILABLE",
            "success_rate": 0.12,
            "circuit_breaker": "OPEN",
            "rate_limit_utilization": 0.02,
            "reason": "circuit breaker is OPEN, next trial in 41 s; "
            "12% of the newest 100 calls were answered",
        },
    },
    "summary": {"total_providers": 2, "healthy": 1, "degraded": 0, "unavailable": 1},
    "disabled": {"render": "set RENDER_API_KEY"},
}

BREAKER: Final[dict[str, Any]] = {
    "state": "CLOSED",
    "failure_count": 0,
    "success_count": 1523,
    "last_failure_time": None,
    "trip_count": 0,
    "retry_in_s": 0,
    "open_s": 0,
}

LIMITER: Final[dict[str, Any]] = {
    "rate": 100,
    "capacity": 100,
    "available_tokens": 87,
    "utilization": 0.13,
    "requests_blocked": 0,
}

_SHELF: Final[dict[str, Any]] = {
    "hits": 1234,
    "misses": 234,
    "hit_ratio": 0.8406,
    "current_ttl": 300,
    "offers": 4180,
    "fetched_at": _STAMP,
    "skipped_rows": 0,
    "error": "",
}

CACHE: Final[dict[str, Any]] = {
    "total_hits": 4521,
    "total_misses": 892,
    "hit_ratio": 0.8352,
    "providers": {"vastai": _SHELF},
}

DETAIL: Final[dict[str, Any]] = {
    **_SHORT,
    "provider": "vastai",
    "title": "Vast.ai",
    "uptime": 0.999,
    "since": _STAMP,
    "response_times": {"calls": 100, "avg": 245, "p50": 210, "p95": 480, "p99": 910},
    "breaker": BREAKER,
    "rate_limiter": LIMITER,
    "cache": _SHELF,
    "denied": False,
    "last_error": "",
}

CHECK: Final[dict[str, Any]] = {
    "provider": "vastai",
    "ok": True,
    "status": "HEALTHY",
    "circuit_breaker": "CLOSED",
    "response_time": 212.4,
    "checked_at": _STAMP,
    "account": {"id": "17", "name": "ada", "credit_usd": "24.180000"},
    "code": None,
    "error": None,
    "retry_in_s": None,
}

RESET: Final[dict[str, Any]] = {**BREAKER, "trip_count": 1, "provider": "vastai", "was": "OPEN"}

INVALIDATED: Final[dict[str, Any]] = {"invalidated": ["vastai"]}

_SCORES: Final[dict[str, Any]] = {
    "scored": 4100,
    "unscored": 80,
    "min": 3.1,
    "p10": 21.4,
    "p25": 30.2,
    "median": 38.8,
    "p75": 47.5,
    "p90": 58.1,
    "max": 87.6,
    "buckets": [
        {"start": 10 * place, "end": 10 * place + 10, "count": count}
        for place, count in enumerate((40, 310, 640, 1210, 1080, 510, 210, 80, 20, 0))
    ],
}

SUMMARY: Final[dict[str, Any]] = {
    "status": "healthy",
    "at": _STAMP,
    "uptime": 0.999,
    "summary": {"total_providers": 1, "healthy": 1, "degraded": 0, "unavailable": 0},
    "hit_ratio": 0.8352,
    "g_score": _SCORES,
    "providers": {"vastai": {**DETAIL, "g_score": _SCORES}},
    "disabled": {},
}

SYNC: Final[dict[str, Any]] = {
    "began_at": _STAMP,
    "seconds": 1.842,
    "offers": 4180,
    "ok": True,
    "providers": {
        "vastai": {
            "provider": "vastai",
            "offers": 4180,
            "age_s": 0.0,
            "complete": True,
            "skipped_rows": 0,
            "error": "",
            "retry_in_s": None,
            "ok": True,
            "seconds": 1.84,
        }
    },
    "disabled": {"render": "set RENDER_API_KEY"},
}
