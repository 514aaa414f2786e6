"""Identity, throttle, and faults as a client of the dialect meets them."""

from __future__ import annotations

import asyncio
import json

import httpx2
import msgspec
import pytest

from gp4u.sim.faults import Rule
from gp4u.sim.vastai.gate import THRESHOLDS_S, VastSettings
from tests.unit.sim.vastai.dialect import EASY, KEY, market
from tests.virtual_loop import run_virtual

STRICT = msgspec.structs.replace(EASY, throttle=1.0)


def test_an_absent_key_is_403_and_a_wrong_one_404() -> None:
    """The 404 is the trap: it must carry `auth_error`, or it reads as an absent instance."""

    async def scene() -> None:
        async with market(key="") as nobody:
            absent = await nobody.call("GET", "/api/v0/users/current/")
            assert (absent.status_code, absent.json()["error"]) == (403, "auth_error")
        async with market(key="wrong") as stranger:
            wrong = await stranger.call("GET", "/api/v0/users/current/")
            assert (wrong.status_code, wrong.json()["error"]) == (404, "auth_error")
            assert (await stranger.call("POST", "/api/v0/bundles/", json={})).status_code == 404

    run_virtual(scene)


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "bundles"), ("GET", "bundles"), ("GET", "gpu_names/unique"), ("GET", "gpu_types")],
)
@pytest.mark.parametrize("slash", ["", "/"])
def test_public_calls_need_no_key_in_either_spelling(method: str, path: str, slash: str) -> None:
    """Price watchers never send one."""

    async def scene() -> None:
        async with market(key="") as nobody:
            reply = await nobody.call(method, f"/api/v0/{path}{slash}")
            assert reply.status_code == 200
            assert reply.headers["content-type"] == "application/json"

    run_virtual(scene)


def test_the_key_may_stand_in_the_query() -> None:
    """Old clients send it there."""

    async def scene() -> None:
        async with market(key="") as nobody:
            reply = await nobody.call("GET", f"/api/v0/users/current?api_key={KEY}")
            assert reply.status_code == 200

    run_virtual(scene)


@pytest.mark.parametrize("endpoint", ["list", "show", "update"])
def test_a_call_before_its_interval_is_refused_and_one_at_it_passes(endpoint: str) -> None:
    """Intervals are per endpoint and identity; a client that keeps them must never see 429."""
    paths = {
        "list": ("GET", "/api/v1/instances/"),
        "show": ("GET", "/api/v0/instances/1/"),
        "update": ("PUT", "/api/v0/instances/1/"),
    }

    async def scene() -> None:
        async with market(settings=STRICT) as m:
            method, path = paths[endpoint]
            assert (await m.call(method, path)).status_code != 429
            early = await m.call(method, path)
            assert early.status_code == 429
            assert f"threshold={THRESHOLDS_S[endpoint]}" in early.json()["detail"]
            for _ in range(20):
                await asyncio.sleep(THRESHOLDS_S[endpoint])
                assert (await m.call(method, path)).status_code != 429

    run_virtual(scene)


def test_ids_in_a_path_share_one_limit_and_endpoints_do_not() -> None:
    """Polling five instances one by one runs into it."""

    async def scene() -> None:
        async with market(settings=STRICT) as m:
            assert (await m.call("GET", "/api/v0/instances/1/")).status_code == 200
            assert (await m.call("GET", "/api/v0/instances/2/")).status_code == 429
            assert (await m.call("GET", "/api/v1/instances/")).status_code == 200

    run_virtual(scene)


def test_a_rent_too_soon_is_penalised() -> None:
    """4.5 s between rents; whoever does not keep them waits 12 s."""

    async def scene() -> None:
        async with market(settings=STRICT) as m:
            offer = await m.single()
            assert (await m.create(offer)).status_code == 200
            assert (await m.create(offer)).status_code == 429
            await asyncio.sleep(5)
            assert (await m.create(offer)).status_code == 429
            await asyncio.sleep(12)
            assert (await m.create(offer)).status_code == 410

    run_virtual(scene)


def test_searches_are_ten_in_any_minute_per_address() -> None:
    """A sliding window: the eleventh waits for the first to leave."""

    async def scene() -> None:
        async with market(settings=STRICT) as m:
            for _ in range(10):
                assert await m.search(num_gpus={"eq": 1})
                await asyncio.sleep(1)
            assert (await m.call("POST", "/api/v0/bundles/", json={})).status_code == 429
            await asyncio.sleep(50)
            assert (await m.call("POST", "/api/v0/bundles/", json={})).status_code == 200
            assert (await m.call("POST", "/api/v0/bundles/", json={})).status_code == 429

    run_virtual(scene)


@pytest.mark.parametrize(
    ("shape", "media", "text"),
    [
        ("text", "text/plain", "API requests too frequent"),
        ("text_threshold", "text/plain", "endpoint threshold=1.0"),
        ("detail", "application/json", '"detail":"API requests too frequent endpoint'),
        ("error", "application/json", '"error":"rate_limit_exceeded"'),
        ("quota", "application/json", '"error":"search_quota_exceeded"'),
    ],
)
@pytest.mark.parametrize("retry_after", [None, "2.5", "soon"])
def test_a_429_comes_in_every_shape_that_was_seen(
    shape: str, media: str, text: str, retry_after: str | None
) -> None:
    """A client must survive all of them, with and without a header that may be nonsense."""

    async def scene() -> None:
        rule = Rule(kind="throttle", endpoint="list", shape=shape, retry_after=retry_after)
        async with market(rule) as m:
            reply = await m.call("GET", "/api/v1/instances/")
            assert reply.status_code == 429
            assert reply.headers["content-type"].startswith(media)
            assert text in reply.text
            assert reply.headers.get("retry-after") == retry_after
            assert ("x-ratelimit-reset" in reply.headers) == (shape == "quota")

    run_virtual(scene)


def test_the_throttle_names_its_refill_where_told_to() -> None:
    """Newer services send `Retry-After`; waiting that long is enough."""
    settings = msgspec.structs.replace(STRICT, retry_after=True)

    async def scene() -> None:
        async with market(settings=settings) as m:
            await m.call("GET", "/api/v0/instances/1/")
            wait = float((await m.call("GET", "/api/v0/instances/1/")).headers["retry-after"])
            await asyncio.sleep(wait)
            assert (await m.call("GET", "/api/v0/instances/1/")).status_code == 200

    run_virtual(scene)


@pytest.mark.parametrize(
    ("kind", "error", "rented"),
    [
        ("refuse", httpx2.ConnectError, 0),
        ("reset_before", httpx2.ReadError, 0),
        ("reset_after", httpx2.ReadError, 1),
        ("hang_before", httpx2.ReadError, 0),
        ("hang_after", httpx2.ReadError, 1),
        ("cut_body", httpx2.ReadError, 1),
    ],
)
def test_a_lost_connection_says_nothing_about_the_effect(
    kind: str, error: type[Exception], rented: int
) -> None:
    """Before and after look the same to the client, and only the world knows."""

    async def scene() -> None:
        async with market(Rule(kind=kind, endpoint="create", seconds=30)) as m:
            with pytest.raises(error):
                await m.create()
            assert len(m.world.leaked()) == rented

    run_virtual(scene)


def test_a_late_effect_comes_after_the_reply_was_lost() -> None:
    """The rent is parked in a proxy: nothing now, an instance a minute later."""

    async def scene() -> None:
        async with market(Rule(kind="late_effect", endpoint="create", seconds=60)) as m:
            with pytest.raises(httpx2.ReadError):
                await m.create(label="late")
            assert (await m.listed())["instances"] == []
            await asyncio.sleep(61)
            (row,) = (await m.listed())["instances"]
            assert row["label"] == "late"

    run_virtual(scene)


def test_latency_delays_the_effect_and_the_reply() -> None:
    """A slow call still works."""

    async def scene() -> None:
        async with market(Rule(kind="latency", endpoint="create", seconds=7)) as m:
            began = asyncio.get_running_loop().time()
            contract = await m.rented()
            assert contract.created_at - began == pytest.approx(7)

    run_virtual(scene)


@pytest.mark.parametrize(("kind", "rented"), [("status", 0), ("status_after", 1)])
def test_a_gateway_error_may_or_may_not_have_rented(kind: str, rented: int) -> None:
    """503 with an HTML page, before or after the effect."""

    async def scene() -> None:
        async with market(Rule(kind=kind, endpoint="create", status=503)) as m:
            reply = await m.create()
            assert reply.status_code == 503
            assert "html" in reply.headers["content-type"]
            assert len(m.world.leaked()) == rented

    run_virtual(scene)


@pytest.mark.parametrize("shape", ["garbage", "html", "truncated", "deep", "empty", "list", "null"])
def test_a_spoilt_body_is_no_answer(shape: str) -> None:
    """Each shape must break a client that trusts a 200."""

    async def scene() -> None:
        async with market(Rule(kind="body", endpoint="list", shape=shape)) as m:
            reply = await m.call("GET", "/api/v1/instances/")
            assert reply.status_code == 200
            try:
                answer = json.loads(reply.content)
            except (ValueError, RecursionError):
                return
            assert answer in ([], None)

    run_virtual(scene)


@pytest.mark.parametrize("body", [b"{", b"[1]", b'"text"', b"\xff\xfe"])
def test_a_body_that_is_no_object_is_refused(body: bytes) -> None:
    """400 everywhere, but 483 on `command`."""

    async def scene() -> None:
        async with market() as m:
            search = await m.call("POST", "/api/v0/bundles/", content=body)
            assert search.status_code == 400
            assert search.json()["msg"] == "Invalid json body"
            command = await m.call("PUT", "/api/v0/instances/command/1/", content=body)
            assert command.status_code == 483

    run_virtual(scene)


def test_a_fault_of_the_key_passes() -> None:
    """A key can be refused for a while and then work again."""

    async def scene() -> None:
        async with market(Rule(kind="bad_key", times=1)) as m:
            assert (await m.call("GET", "/api/v0/users/current/")).status_code == 404
            assert (await m.call("GET", "/api/v0/users/current/")).status_code == 200

    run_virtual(scene)


def test_settings_have_the_documented_throttle_by_default() -> None:
    """Faithful unless a test says otherwise."""
    assert VastSettings().throttle == 1.0
    assert THRESHOLDS_S["create"] == 4.5
