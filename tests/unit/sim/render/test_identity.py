"""Who may call Dispersed, and what it offers: signatures, pages, filters."""

from __future__ import annotations

import hashlib
import hmac
from typing import Any

import pytest

from gp4u.sim.market import PLACES
from gp4u.sim.render.offers import region_code
from tests.unit.sim.render.dialect import PUBLIC, SECRET, VECTORS, market
from tests.virtual_loop import EPOCH, run_virtual


@pytest.mark.parametrize("vector", VECTORS["vectors"], ids=lambda vector: vector["name"])
def test_every_signature_of_the_vectors_is_let_in(vector: dict[str, Any]) -> None:
    """The vectors were made with the official client's algorithm, at this very second."""

    async def scene() -> None:
        async with market() as m:
            query = vector["canonical_query"]
            reply = await m.client.request(
                vector["method"],
                vector["path"] + (f"?{query}" if query else ""),
                content=(vector["canonical_body"] or "").encode(),
                headers=vector["headers"],
            )
            assert reply.status_code in (200, 201, 404), reply.text
            again = await m.client.request(
                vector["method"],
                vector["path"] + (f"?{query}" if query else ""),
                content=(vector["canonical_body"] or "").encode(),
                headers=vector["headers"],
            )
            assert (again.status_code, again.json()["error"]["code"]) == (401, "nonce_reused")

    run_virtual(scene)


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"X-API-Key": "pk_other"}, "invalid_api_key"),
        ({"X-API-Key": ""}, "invalid_api_key"),
        ({"X-Time": "soon"}, "invalid_time"),
        ({"X-Time": "1767225600"}, "invalid_time"),
        ({"X-Nonce": "abc"}, "invalid_nonce"),
        ({"X-Nonce": "A" * 32}, "invalid_nonce"),
        ({"X-Nonce": "f" * 32}, "invalid_signature"),
        ({"X-Signature": "0" * 64}, "invalid_signature"),
        ({"X-Signature": ""}, "invalid_signature"),
    ],
)
def test_a_header_that_is_wrong_is_401(headers: dict[str, str], code: str) -> None:
    """Each of the four is checked."""

    async def scene() -> None:
        async with market() as m:
            reply = await m.call("GET", "/v1/jobs", headers=headers)
            assert (reply.status_code, reply.json()["error"]["code"]) == (401, code)

    run_virtual(scene)


def test_a_clock_may_be_off_by_five_minutes_and_not_more() -> None:
    """In both directions."""

    async def scene() -> None:
        async with market() as m:
            for ahead_s, status in ((300, 200), (-300, 200), (301, 401), (-301, 401)):
                reply = await m.call("GET", "/v1/jobs", ahead_s=ahead_s)
                assert reply.status_code == status, ahead_s

    run_virtual(scene)


def test_a_body_in_another_form_than_the_hashed_one_is_401() -> None:
    """A client that hashes one thing and sends another would break on the first update."""

    async def scene() -> None:
        async with market() as m:
            raw = b'{"reason": "x"}'
            time_ms, nonce = str(round(EPOCH.timestamp() * 1000)), "0" * 32
            digest = hashlib.sha256(raw).hexdigest()
            text = "|".join((PUBLIC, time_ms, nonce, "PUT", "/v1/jobs/x/cancel", "", digest))
            headers = {
                "X-API-Key": PUBLIC,
                "X-Time": time_ms,
                "X-Nonce": nonce,
                "X-Signature": hmac.new(SECRET.encode(), text.encode(), "sha256").hexdigest(),
            }
            reply = await m.client.put("/v1/jobs/x/cancel", content=raw, headers=headers)
            assert reply.status_code == 401

    run_virtual(scene)


@pytest.mark.parametrize("blank", ["+", "%20"])
def test_a_blank_in_a_query_may_be_signed_in_both_ways(blank: str) -> None:
    """The official example and third parties differ, and both work."""

    async def scene() -> None:
        async with market() as m:
            reply = await m.call(
                "GET", "/v1/compute/offers", blank=blank, query={"filter[gpu_name]": "RTX 4090"}
            )
            assert reply.status_code == 200
            assert reply.json()["data"]

    run_virtual(scene)


def test_offers_are_paged_and_priced_whole() -> None:
    """Page from 1, at most 50 rows, the rate of the whole node."""

    async def scene() -> None:
        async with market() as m:
            first = (await m.call("GET", "/v1/compute/offers", query={"limit": "10"})).json()
            second = (
                await m.call("GET", "/v1/compute/offers", query={"limit": "10", "page": "2"})
            ).json()
            assert (first["page"], first["limit"], second["page"]) == (1, 10, 2)
            assert first["total"] == second["total"] > 20
            ids = [row["offer_id"] for page in (first, second) for row in page["data"]]
            assert len(set(ids)) == 20
            rates = {row["offer_id"]: row["pricing"]["hourly_rate_usd"] for row in first["data"]}
            for machine, part, _ in m.world.offers():
                if (rate := rates.get(f"off_{part.offer_id}")) is not None:
                    assert rate == float(machine.usd_per_gpu_hour * len(part.gpus))

    run_virtual(scene)


@pytest.mark.parametrize(
    ("name", "value", "holds"),
    [
        ("gpu_count", "2", lambda h: h["gpu_count"] == 2),
        ("gpu_count", "2,4", lambda h: 2 <= h["gpu_count"] <= 4),
        ("min_vram_gb", "20", lambda h: h["min_gpu_vram_gib"] >= 20),
        ("min_ram_gb", "64", lambda h: h["ram_gib"] >= 64),
        ("min_storage_gb", "500", lambda h: h["storage_gib"] >= 500),
        ("cpu_count", "32", lambda h: h["cpu_cores"] >= 32),
    ],
)
def test_offers_are_filtered(name: str, value: str, holds: Any) -> None:
    """Every documented filter of numbers, ranges included."""

    async def scene() -> None:
        async with market() as m:
            query = {f"filter[{name}]": value, "limit": "50"}
            found = (await m.call("GET", "/v1/compute/offers", query=query)).json()
            everything = (await m.call("GET", "/v1/compute/offers", query={"limit": "1"})).json()
            assert 0 < found["total"] < everything["total"]
            assert all(holds(row["hardware_summary"]) for row in found["data"])

    run_virtual(scene)


@pytest.mark.parametrize(
    "query",
    [{"limit": "51"}, {"limit": "0"}, {"page": "0"}, {"filter[colour]": "red"}, {"page": "x"}],
)
def test_a_parameter_out_of_bounds_is_400(query: dict[str, str]) -> None:
    """A client that asks for 100 rows and silently gets 50 would take them for all."""

    async def scene() -> None:
        async with market() as m:
            reply = await m.call("GET", "/v1/compute/offers", query=query)
            assert (reply.status_code, reply.json()["error"]["code"]) == (400, "validation_error")

    run_virtual(scene)


def test_gpu_types_are_the_ones_that_offers_name() -> None:
    """A job is matched by the registry."""

    async def scene() -> None:
        async with market() as m:
            kinds = (await m.call("GET", "/v1/gpu-registry", query={"limit": "50"})).json()["data"]
            offers = (await m.call("GET", "/v1/compute/offers", query={"limit": "50"})).json()[
                "data"
            ]
            known = {kind["uuid"] for kind in kinds}
            assert {row["hardware_summary"]["gpu_registry_uuid"] for row in offers} <= known
            assert (await m.call("GET", "/v1/nodes")).json()["data"] == []

    run_virtual(scene)


def test_every_place_of_the_world_is_under_a_region_of_its_country() -> None:
    """A new place in the market's table must not silently become Virginia."""
    for place, _ in PLACES:
        country = (place or ", US").rpartition(", ")[2]
        assert region_code(place).startswith("us-") == (country == "US"), place
