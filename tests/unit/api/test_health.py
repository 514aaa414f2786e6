"""The first seed's health paths: its names, its nesting, its states, and what they are made of."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import msgspec
import pytest

from gp4u.api.health import examples as health_examples
from gp4u.api.health import standing
from gp4u.api.health.health import (
    CheckShape,
    InvalidatedShape,
    ResetShape,
    SyncShape,
    health_routes,
)
from gp4u.book import STANDING
from gp4u.errors import Denied, Throttled, Unavailable
from gp4u.resilience.guard import HealthStatus
from tests.unit.api.quarter import Quarter, client_of, offer
from tests.virtual_loop import run_virtual

ROOT = "/api/v1/provider-health"
CLOSED = {"render": "set RENDER_API_KEY"}
DEAD = Unavailable("ionet", "ping", "connection refused")


@asynccontextmanager
async def serving(quarter: Quarter) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of the health paths over some markets; one more is closed."""
    routes = health_routes(
        providers=quarter.providers,
        guards=quarter.guards,
        disabled=CLOSED,
        book=quarter.book,
        clock=quarter.clock,
    )
    async with client_of(routes) as client:
        yield client


async def got(client: httpx2.AsyncClient, path: str) -> Any:
    """What a GET of the path answers."""
    reply = await client.get(path)
    assert reply.status_code == 200, reply.text
    return reply.json()


async def posted(client: httpx2.AsyncClient, path: str) -> Any:
    """What a POST to the path answers."""
    reply = await client.post(path)
    assert reply.status_code == 200, reply.text
    return reply.json()


async def trip(client: httpx2.AsyncClient, slug: str) -> None:
    """Let a market's breaker open by five failing checks."""
    for _ in range(5):
        await posted(client, f"{ROOT}/providers/{slug}/health-check")


def test_system_health_has_the_seeds_shape_and_names_what_is_wrong() -> None:
    """People's scripts read these very keys."""

    async def life() -> None:
        quarter = Quarter("vastai", "ionet")
        quarter.markets["ionet"].error = DEAD
        async with serving(quarter) as client:
            await posted(client, f"{ROOT}/providers/vastai/health-check")
            await trip(client, "ionet")
            body = await got(client, f"{ROOT}/health")
        assert body["status"] == "degraded"
        assert body["summary"] == {
            "total_providers": 2,
            "healthy": 1,
            "degraded": 0,
            "unavailable": 1,
        }
        assert body["providers"]["vastai"] == {
            "status": "HEALTHY",
            "success_rate": 1.0,
            "avg_response_time": 200,
            "circuit_breaker": "CLOSED",
            "rate_limit_utilization": pytest.approx(0, abs=0.01),
            "reason": "",
        }
        dead = body["providers"]["ionet"]
        assert (dead["status"], dead["circuit_breaker"]) == ("UNAVAILABLE", "OPEN")
        assert (dead["success_rate"], dead["rate_limit_utilization"]) == (0.0, 0.0333)
        assert dead["reason"] == (
            "circuit breaker is OPEN, next trial in 60 s; 0% of the newest 5 calls were answered"
        )
        assert body["disabled"] == CLOSED

    run_virtual(life)


@pytest.mark.parametrize(
    ("statuses", "word"),
    [
        ((), "unavailable"),
        (("HEALTHY", "HEALTHY"), "healthy"),
        (("UNAVAILABLE", "UNAVAILABLE"), "unavailable"),
        (("HEALTHY", "UNAVAILABLE"), "degraded"),
        (("HEALTHY", "DEGRADED"), "degraded"),
        (("DEGRADED",), "degraded"),
        (("DEGRADED", "UNAVAILABLE"), "degraded"),
    ],
)
def test_one_word_for_all_markets_follows_the_stated_rules(
    statuses: tuple[str, ...], word: str
) -> None:
    """A server that has no market is of no use, however well its parts do."""
    assert standing.overall(map(HealthStatus, statuses)) == word


def test_without_a_market_the_paths_still_answer_and_say_why() -> None:
    """The first thing that somebody without a key sees."""

    async def life() -> None:
        async with serving(Quarter()) as client:
            body = await got(client, f"{ROOT}/health")
            assert (body["status"], body["disabled"]) == ("unavailable", CLOSED)
            summary = await got(client, f"{ROOT}/metrics/summary")
            assert (summary["uptime"], summary["g_score"]["scored"]) == (None, 0)
            synced = await got(client, "/api/v1/providers/sync")
            assert (synced["offers"], synced["providers"]) == (0, {})
            cache = await got(client, f"{ROOT}/cache/stats")
            assert cache == {
                "total_hits": 0,
                "total_misses": 0,
                "hit_ratio": 0.0,
                "providers": {},
            }

    run_virtual(life)


def test_a_health_check_is_a_real_call_and_tells_the_account() -> None:
    """A status that only repeats what was known would not find a key that was revoked."""

    async def life() -> None:
        quarter = Quarter("vastai")
        async with serving(quarter) as client:
            body = await posted(client, f"{ROOT}/providers/vastai/health-check")
        assert quarter.markets["vastai"].called == 1
        assert (body["provider"], body["ok"], body["status"]) == ("vastai", True, "HEALTHY")
        assert body["response_time"] == 200.0
        assert body["account"] == {"id": "17", "name": "ada", "credit_usd": "24.180000"}
        assert (body["code"], body["error"]) == (None, None)
        assert body["checked_at"] == "2026-01-01T00:00:00.200000Z"

    run_virtual(life)


@pytest.mark.parametrize(
    ("error", "code", "status", "retry_in_s"),
    [
        (DEAD, "provider_unavailable", "DEGRADED", None),
        (Denied("ionet", "ping", "bad key"), "provider_denied", "UNAVAILABLE", None),
        (Throttled("ionet", "ping", retry_after_s=7), "provider_throttled", "HEALTHY", 7),
    ],
)
def test_a_market_that_does_not_answer_is_told_and_fails_no_request(
    error: Any, code: str, status: str, retry_in_s: float | None
) -> None:
    """The check worked: it found out that the market does not."""

    async def life() -> None:
        quarter = Quarter("ionet")
        quarter.markets["ionet"].error = error
        async with serving(quarter) as client:
            body = await posted(client, f"{ROOT}/providers/ionet/health-check")
        assert (body["ok"], body["code"], body["account"]) == (False, code, None)
        assert (body["status"], body["retry_in_s"]) == (status, retry_in_s)
        assert str(error) in body["error"]

    run_virtual(life)


def test_a_breaker_is_seen_closed_open_half_open_and_closed_again() -> None:
    """Each state as the seed names it; an OPEN whose time is up must not look like an outage."""

    async def life() -> None:
        quarter = Quarter("ionet")
        market = quarter.markets["ionet"]

        async def state() -> Any:
            return (await got(client, f"{ROOT}/circuit-breakers"))["ionet"]

        async with serving(quarter) as client:
            before = await state()
            market.error = DEAD
            await trip(client, "ionet")
            tripped = await state()
            called = market.called
            refused = await posted(client, f"{ROOT}/providers/ionet/health-check")
            await asyncio.sleep(60)
            trial = await state()
            market.error = None
            seen = [await posted(client, f"{ROOT}/providers/ionet/health-check") for _ in range(3)]
            after = await state()
        assert [each["state"] for each in (before, tripped, trial, after)] == [
            "CLOSED",
            "OPEN",
            "HALF_OPEN",
            "CLOSED",
        ]
        assert (before["last_failure_time"], before["trip_count"]) == (None, 0)
        assert (tripped["failure_count"], tripped["trip_count"]) == (5, 1)
        assert tripped["last_failure_time"] == "2026-01-01T00:00:01Z"
        assert (refused["code"], refused["retry_in_s"]) == ("circuit_breaker_open", 60)
        assert market.called == called + 3, "nothing was sent while it was OPEN"
        assert [each["circuit_breaker"] for each in seen] == ["HALF_OPEN", "HALF_OPEN", "CLOSED"]
        assert (after["success_count"], after["failure_count"], after["open_s"]) == (3, 0, 60)

    run_virtual(life)


def test_a_reset_by_hand_closes_the_breaker_and_the_next_call_is_sent() -> None:
    """The seed's way out for whoever knows that the market is back."""

    async def life() -> None:
        quarter = Quarter("ionet")
        market = quarter.markets["ionet"]
        market.error = DEAD
        async with serving(quarter) as client:
            await trip(client, "ionet")
            body = await posted(client, f"{ROOT}/circuit-breakers/ionet/reset")
            assert (body["provider"], body["was"], body["state"]) == ("ionet", "OPEN", "CLOSED")
            assert (body["failure_count"], body["trip_count"]) == (0, 1)
            market.error = None
            check = await posted(client, f"{ROOT}/providers/ionet/health-check")
        assert check["ok"]

    run_virtual(life)


def test_limits_are_told_by_the_minute() -> None:
    """`VASTAI_RATE_LIMIT=100` must read as 100 here, and not as one and two thirds a second."""

    async def life() -> None:
        quarter = Quarter("vastai", rate_per_min=100)
        quarter.markets["vastai"].takes_s = 0.0
        async with serving(quarter) as client:
            for _ in range(13):
                await posted(client, f"{ROOT}/providers/vastai/health-check")
            body = await got(client, f"{ROOT}/rate-limiters")
        assert body == {
            "vastai": {
                "rate": 100,
                "capacity": 100,
                "available_tokens": 87,
                "utilization": 0.13,
                "requests_blocked": 0,
            }
        }

    run_virtual(life)


def test_a_limiter_that_is_off_has_no_numbers_and_no_utilization() -> None:
    """`PROVIDER_RATE_LIMITER_ENABLED=false` must not look like a limit of zero."""

    async def life() -> None:
        async with serving(Quarter("vastai", rate_per_min=None)) as client:
            body = await got(client, f"{ROOT}/rate-limiters")
        limiter = body["vastai"]
        assert (limiter["rate"], limiter["capacity"], limiter["available_tokens"]) == (None,) * 3
        assert limiter["utilization"] == 0

    run_virtual(life)


def test_the_cache_tells_hits_and_lifetimes_and_forgets_when_told() -> None:
    """Forcing fresh data has to reach the market, or the button is a lie."""

    async def life() -> None:
        quarter = Quarter("vastai", "ionet")
        async with serving(quarter) as client:
            for _ in range(4):
                await quarter.book.snapshot(STANDING)
            body = await got(client, f"{ROOT}/cache/stats")
            assert (body["total_hits"], body["total_misses"], body["hit_ratio"]) == (6, 2, 0.75)
            assert set(body["providers"]) == {"vastai", "ionet"}
            shelf = body["providers"]["vastai"]
            assert (shelf["hits"], shelf["misses"], shelf["hit_ratio"]) == (3, 1, 0.75)
            assert (shelf["current_ttl"], shelf["offers"]) == (300, 1)

            async def calls() -> list[int]:
                await quarter.book.snapshot(STANDING)
                return [market.called for market in quarter.markets.values()]

            told = await posted(client, f"{ROOT}/cache/invalidate?provider=vastai")
            assert (told, await calls()) == ({"invalidated": ["vastai"]}, [2, 1])
            for path in ("cache/invalidate", "cache/invalidate?provider="):
                told = await posted(client, f"{ROOT}/{path}")
                assert told == {"invalidated": ["vastai", "ionet"]}
            assert await calls() == [3, 2]

    run_virtual(life)


def test_a_sync_asks_every_market_and_a_failing_one_is_told() -> None:
    """One dead market must not keep the offers of the others from anybody."""

    async def life() -> None:
        quarter = Quarter("vastai", "ionet")
        quarter.markets["vastai"].takes_s = 1.5
        async with serving(quarter) as client:
            first = await got(client, "/api/v1/providers/sync")
            quarter.markets["ionet"].error = DEAD
            quarter.markets["vastai"].offered = [offer("vastai", n) for n in range(3)]
            second = await got(client, "/api/v1/providers/sync")
        assert (first["ok"], first["offers"]) == (True, 2)
        assert (second["ok"], second["offers"], second["seconds"]) == (False, 4, 1.5)
        good, bad = second["providers"]["vastai"], second["providers"]["ionet"]
        assert (good["ok"], good["offers"], good["seconds"], good["error"]) == (True, 3, 1.5, "")
        assert (bad["ok"], bad["offers"], bad["seconds"]) == (False, 1, 0.2)
        assert "connection refused" in bad["error"]
        assert bad["age_s"] == pytest.approx(2.8), "what it last had is served, with its age"

    run_virtual(life)


def test_syncs_at_the_same_time_ask_each_market_once() -> None:
    """Ten impatient people must not use up a market's rate between them."""

    async def life() -> None:
        quarter = Quarter("vastai")
        bodies = []

        async def one() -> None:
            bodies.append(await got(client, "/api/v1/providers/sync"))

        async with serving(quarter) as client:
            async with asyncio.TaskGroup() as group:
                for _ in range(10):
                    group.create_task(one())
            assert (quarter.markets["vastai"].called, len(bodies)) == (1, 10)
            assert all(body == bodies[0] for body in bodies)
            await one()
        assert quarter.markets["vastai"].called == 2

    run_virtual(life)


def test_the_summary_has_scores_uptime_percentiles_and_hit_ratio() -> None:
    """One call for a dashboard; its parts are those of the other paths."""

    async def life() -> None:
        quarter = Quarter("vastai", "ionet")
        quarter.markets["vastai"].offered = [
            offer("vastai", n, gpu_model=model) for n, model in enumerate(("RTX 4090", "Abacus 1"))
        ]
        async with serving(quarter) as client:
            quarter.markets["ionet"].error = DEAD
            await trip(client, "ionet")
            quarter.markets["ionet"].error = None
            for takes_s in (0.1, 0.2, 0.3, 0.9):
                quarter.markets["vastai"].takes_s = takes_s
                await posted(client, f"{ROOT}/providers/vastai/health-check")
            await quarter.book.snapshot(STANDING)
            await asyncio.sleep(2)
            body = await got(client, f"{ROOT}/metrics/summary")
            detail = await got(client, f"{ROOT}/providers/vastai/health")
        assert (body["status"], body["summary"]["unavailable"]) == ("degraded", 1)
        vastai, ionet = body["providers"]["vastai"], body["providers"]["ionet"]
        assert vastai["response_times"] == {
            "calls": 5,
            "avg": 480,
            "p50": 300,
            "p95": 900,
            "p99": 900,
        }
        assert (vastai["uptime"], vastai["breaker"]["state"]) == (1.0, "CLOSED")
        assert 0 < ionet["uptime"] < 1
        assert body["uptime"] == pytest.approx((1 + ionet["uptime"]) / 2, abs=1e-6)
        scores = body["g_score"]
        assert (scores["scored"], scores["unscored"]) == (1, 1)
        assert sum(bucket["count"] for bucket in scores["buckets"]) == 1
        assert scores["min"] == scores["median"] == scores["max"]
        assert vastai["g_score"] == scores
        assert ionet["g_score"]["scored"] == 0, "its fetch was refused by the breaker"
        same = {name for name in detail if name != "rate_limit_utilization"} - {"cache"}
        same -= {"rate_limiter"}
        assert {name: vastai[name] for name in same} == {name: detail[name] for name in same}
        assert set(vastai) == {*detail, "g_score"}

    run_virtual(life)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "providers/{}/health"),
        ("POST", "providers/{}/health-check"),
        ("POST", "circuit-breakers/{}/reset"),
        ("POST", "cache/invalidate?provider={}"),
    ],
)
def test_an_unknown_market_is_404_with_the_known_ones_and_a_closed_one_is_403(
    method: str, path: str
) -> None:
    """A typing error and a missing key are two problems with two remedies."""

    async def life() -> None:
        async with serving(Quarter("vastai", "ionet")) as client:
            unknown = await client.request(method, f"{ROOT}/{path.format('vestai')}")
            closed = await client.request(method, f"{ROOT}/{path.format('render')}")
        assert (unknown.status_code, unknown.json()["code"]) == (404, "not_found")
        assert unknown.json()["known"] == ["vastai", "ionet", "render"]
        assert unknown.headers["content-type"] == "application/problem+json"
        assert (closed.status_code, closed.json()["code"]) == (403, "market_closed")
        assert closed.json()["why"] == CLOSED["render"]

    run_virtual(life)


def test_a_misspelt_parameter_invalidates_nothing() -> None:
    """`?provdier=vastai` must not be read as all of them."""

    async def life() -> None:
        quarter = Quarter("vastai")
        async with serving(quarter) as client:
            await quarter.book.snapshot(STANDING)
            reply = await client.post(f"{ROOT}/cache/invalidate?provdier=vastai")
            await quarter.book.snapshot(STANDING)
        assert (reply.status_code, reply.json()["field"]) == (422, "provdier")
        assert quarter.markets["vastai"].called == 1

    run_virtual(life)


@pytest.mark.parametrize(
    ("example", "shape"),
    [
        (health_examples.HEALTH, standing.HealthShape),
        (health_examples.DETAIL, standing.MarketDetailShape),
        (health_examples.CHECK, CheckShape),
        (health_examples.BREAKER, standing.BreakerShape),
        (health_examples.RESET, ResetShape),
        (health_examples.LIMITER, standing.LimiterShape),
        (health_examples.CACHE, standing.CacheShape),
        (health_examples.INVALIDATED, InvalidatedShape),
        (health_examples.SUMMARY, standing.SummaryShape),
        (health_examples.SYNC, SyncShape),
    ],
    ids=lambda each: getattr(each, "__name__", ""),
)
def test_each_example_is_one_of_what_it_shows(example: Any, shape: Any) -> None:
    """People build on the example; a key that is gone must be gone there as well."""
    read = msgspec.convert(example, shape)
    assert msgspec.to_builtins(read).keys() == example.keys()
