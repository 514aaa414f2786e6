"""The Console's dialect: who may call, what it says of the market, and how it errs."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gp4u.sim.faults import Kind, Rule
from tests.unit.sim.akash.dialect import EASY, KEY, SDL, Sim, akash
from tests.virtual_loop import run_virtual

PUBLIC = ("/v1/gpu", "/v1/gpu-prices", "/v1/providers", "/v1/market-data/akash-network")
PRIVATE = ("/v1/deployments", "/v1/bids?dseq=1", "/v1/balances")

RECORDED = Path(__file__).parents[3] / "payloads/akash/console-gpu-prices-debug-trimmed.json"


@pytest.mark.parametrize("path", PUBLIC)
def test_the_market_is_open_to_anybody(path: str) -> None:
    """Reads need no key."""

    async def tale() -> None:
        async with akash(key="") as sim:
            assert (await sim.client.get(path)).status_code == 200

    run_virtual(tale)


@pytest.mark.parametrize("path", PRIVATE)
@pytest.mark.parametrize("key", ["", "wrong"])
def test_an_account_is_not(path: str, key: str) -> None:
    """401, with the words that the market uses."""

    async def tale() -> None:
        async with akash(key=key) as sim:
            reply = await sim.client.get(path)
            assert reply.status_code == 401
            assert reply.json()["message"] == "Invalid API key"
            assert reply.json()["code"] == "unauthorized"

    run_virtual(tale)


def test_a_key_and_a_token_together_are_refused() -> None:
    """One of the two, the server cannot tell which was meant."""

    async def tale() -> None:
        async with akash() as sim:
            reply = await sim.client.get("/v1/balances", headers={"authorization": "Bearer x"})
            assert reply.status_code == 400

    run_virtual(tale)


def test_prices_tell_hosts_apart_only_when_asked() -> None:
    """`debug=true` is what makes them usable."""

    async def tale() -> None:
        async with akash() as sim:
            plain = (await sim.get("/v1/gpu-prices"))["models"]
            full = (await sim.get("/v1/gpu-prices", debug="true"))["models"]
            assert len(plain) == len(full) > 5
            assert all("providers" not in row["providerAvailability"] for row in plain)
            for row in full:
                stock = row["providerAvailability"]["providers"]
                assert len(stock) == len(row["providersWithBestBid"])
                assert row["availability"]["total"] == sum(each["allocatable"] for each in stock)
                best = row["providersWithBestBid"][0]["bestBid"]
                exact = float(best["data"]["price"]["amount"]) * 600 / 10**6
                assert abs(best["hourlyPrice"] - exact) < 0.006

    run_virtual(tale)


def keys(value: object, at: str = "") -> set[str]:
    """Return the paths of every key inside of a value."""
    if isinstance(value, list):
        return set().union(*(keys(each, at) for each in value))
    if not isinstance(value, dict):
        return set()
    return set().union(*({f"{at}/{k}"} | keys(v, f"{at}/{k}") for k, v in value.items()))


def test_every_field_of_a_price_is_one_that_was_recorded() -> None:
    """A field that nobody saw would be a client's trap."""

    async def tale() -> None:
        async with akash(key="") as sim:
            told = await sim.get("/v1/gpu-prices", debug="true")
            assert keys(told) <= keys(json.loads(RECORDED.read_text()))
            assert len(keys(told)) > 60

    run_virtual(tale)


def test_a_lease_takes_cards_out_of_the_inventory() -> None:
    """And its end gives them back."""

    async def tale() -> None:
        async with akash() as sim:

            async def allocated() -> int:
                return int((await sim.get("/v1/gpu"))["gpus"]["total"]["allocated"])

            before = await allocated()
            deployment = await sim.leased()
            assert await allocated() == before + 1
            owner = sim.host(deployment).owner
            (row,) = (await sim.get("/v1/gpu", provider=owner))["gpus"]["details"]["nvidia"]
            assert row["allocated"] >= 1
            await sim.client.delete(f"/v1/deployments/{deployment.dseq}")
            assert await allocated() == before

    run_virtual(tale)


def test_providers_are_a_bare_list_and_one_is_a_bare_object() -> None:
    """Without the envelope that everything else has; errors are plain text."""

    async def tale() -> None:
        async with akash() as sim:
            rows = await sim.get("/v1/providers", scope="all")
            assert isinstance(rows, list)
            one = await sim.get(f"/v1/providers/{rows[0]['owner']}")
            assert one == rows[0]
            assert (await sim.client.get("/v1/providers/xyz")).text == "Invalid address"
            assert (await sim.client.get("/v1/providers/akash1none")).status_code == 404

    run_virtual(tale)


def test_an_unreachable_host_is_listed_as_offline() -> None:
    """The list holds those as well."""

    async def tale() -> None:
        async with akash() as sim:
            owner = next(iter(sim.market.online()))
            sim.market.unreachable.add(owner)
            row = await sim.get(f"/v1/providers/{owner}")
            assert row["isOnline"] is False
            assert row["name"] is None

    run_virtual(tale)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/deployments", {"sdl": SDL}),
        ("/v1/deployments", {"data": {"sdl": "version: 1"}}),
        ("/v1/deployments", {"data": {"sdl": SDL, "deposit": "5"}}),
        ("/v1/deployments", {"data": {"sdl": SDL, "deposit": 0.4}}),
        ("/v1/leases", {"data": {"leases": []}}),
        ("/v1/leases", {"leases": []}),
        ("/v1/leases", {"manifest": [], "leases": [{}]}),
        ("/v1/deposit-deployment", {"dseq": "1"}),
        ("/v1/create-jwt-token", {"data": {"leases": {"access": "full", "scope": ["logs"]}}}),
        ("/v1/create-jwt-token", {"data": {"leases": {"access": "scoped", "scope": ["all"]}}}),
        ("/v1/create-jwt-token", {"data": {"leases": {"access": "granular"}}}),
        ("/v1/create-jwt-token", {"data": {"ttl": 0, "leases": {"access": "full"}}}),
    ],
)
def test_a_body_that_is_wrong_is_refused(path: str, body: Any) -> None:
    """Each write checks its envelope and its fields."""

    async def tale() -> None:
        async with akash() as sim:
            reply = await sim.client.post(path, json=body)
            assert reply.status_code == 400
            assert set(reply.json()) >= {"error", "message", "code", "type"}

    run_virtual(tale)


def test_what_is_not_json_is_refused() -> None:
    """In the same envelope."""

    async def tale() -> None:
        async with akash() as sim:
            reply = await sim.client.post("/v1/deployments", content=b"{")
            assert (reply.status_code, reply.json()["code"]) == (400, "validation_error")

    run_virtual(tale)


def test_a_number_is_the_servers_clock() -> None:
    """In milliseconds, as text, and never twice the same."""

    async def tale() -> None:
        async with akash() as sim:
            first, second = await sim.create(), await sim.create()
            assert first.dseq != second.dseq
            assert int(first.dseq) == int(sim.world.epoch(first.at) * 1000)

    run_virtual(tale)


def test_an_older_list_mixes_leases_up_and_a_single_read_does_not() -> None:
    """The quirk that makes every deployment be read by itself."""

    async def tale() -> None:
        async with akash() as sim:
            one, two = await sim.leased(), await sim.leased()
            rows = (await sim.get("/v1/deployments", limit="1000"))["data"]["deployments"]
            told = {r["deployment"]["id"]["dseq"]: r["leases"][0]["id"]["dseq"] for r in rows}
            assert told == {one.dseq: two.dseq, two.dseq: one.dseq}
            alone = (await sim.get(f"/v1/deployments/{one.dseq}"))["data"]
            assert alone["leases"][0]["id"]["dseq"] == one.dseq
            assert "groups" not in alone

    run_virtual(tale)


@pytest.mark.parametrize(
    ("newer", "params", "rows", "more"),
    [
        (False, {"limit": "2"}, 2, False),
        (False, {"limit": "2", "skip": "0"}, 2, True),
        (False, {"limit": "1000", "skip": "0"}, 3, False),
        (True, {"limit": "2"}, 2, True),
        (True, {"limit": "100", "skip": "2"}, 1, False),
    ],
)
def test_lists_page_in_two_ways(newer: bool, params: dict[str, str], rows: int, more: bool) -> None:
    """The older server says that nothing follows unless `skip` is given, and counts the page."""

    async def tale() -> None:
        async with akash(settings=msgspec.structs.replace(EASY, newer_lists=newer)) as sim:
            for _ in range(3):
                await sim.create()
            data = (await sim.get("/v1/deployments", **params))["data"]
            assert len(data["deployments"]) == rows
            assert data["pagination"]["hasMore"] is more
            assert data["pagination"]["total"] == (3 if newer else rows)

    run_virtual(tale)


def test_a_newer_list_refuses_a_large_page() -> None:
    """At most 100."""

    async def tale() -> None:
        async with akash(settings=msgspec.structs.replace(EASY, newer_lists=True)) as sim:
            reply = await sim.client.get("/v1/deployments", params={"limit": "1000"})
            assert reply.status_code == 400

    run_virtual(tale)


def test_a_newer_list_keeps_what_is_closed_and_filters_by_state() -> None:
    """So a client that does not ask for a state walks through all that ever was."""

    async def tale() -> None:
        async with akash(settings=msgspec.structs.replace(EASY, newer_lists=True)) as sim:
            closed, active = (await sim.create()).dseq, (await sim.create()).dseq
            await sim.client.delete(f"/v1/deployments/{closed}")

            async def listed(**params: str) -> list[str]:
                data = (await sim.get("/v1/deployments", **params))["data"]
                return [row["deployment"]["id"]["dseq"] for row in data["deployments"]]

            assert await listed() == [closed, active]
            assert await listed(state="active") == [active]
            assert await listed(state="closed") == [closed]

    run_virtual(tale)


def test_closed_ones_leave_the_list_and_can_still_be_read() -> None:
    """The chain forgets nothing."""

    async def tale() -> None:
        async with akash() as sim:
            deployment = await sim.leased()
            await sim.client.delete(f"/v1/deployments/{deployment.dseq}")
            assert (await sim.get("/v1/deployments"))["data"]["deployments"] == []
            data = (await sim.get(f"/v1/deployments/{deployment.dseq}"))["data"]
            assert data["deployment"]["state"] == "closed"
            assert "owner" in data["leases"][0]["reason"]

    run_virtual(tale)


def test_a_token_names_the_account_and_expires() -> None:
    """Its claims are the market's; its lifetime was asked for."""

    async def tale() -> None:
        async with akash() as sim:
            token = await sim.token(access="scoped", scope=["logs"])
            payload = token.split(".")[1]
            claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
            assert claims["iss"] == sim.market.account
            assert claims["exp"] - claims["iat"] == 60
            assert claims["leases"] == {"access": "scoped", "scope": ["logs"]}

    run_virtual(tale)


Act = Callable[[Sim], Any]


@pytest.mark.parametrize(
    ("rule", "status"),
    [
        (Rule(kind=Kind.BAD_KEY), 401),
        (Rule(kind=Kind.THROTTLE, retry_after="9"), 429),
        (Rule(kind=Kind.STATUS, status=522), 522),
    ],
)
def test_faults_answer_for_the_market(rule: Rule, status: int) -> None:
    """The content network's page is HTML; the rest has the envelope."""

    async def tale() -> None:
        async with akash(rule) as sim:
            reply = await sim.client.get("/v1/balances")
            assert reply.status_code == status
            if status == 429:
                assert reply.headers["retry-after"] == "9"
            if status == 522:
                assert reply.text.startswith("<html>")

    run_virtual(tale)


def test_a_limit_can_be_set_though_none_is_published() -> None:
    """For tests of pacing."""

    async def tale() -> None:
        async with akash(settings=msgspec.structs.replace(EASY, throttle=2)) as sim:
            codes = [(await sim.client.get("/v1/balances")).status_code for _ in range(3)]
            assert codes == [200, 200, 429]
            await asyncio.sleep(60)
            assert (await sim.client.get("/v1/balances")).status_code == 200

    run_virtual(tale)


def test_a_wrong_key_does_not_even_read_the_market() -> None:
    """A key that is sent is checked."""

    async def tale() -> None:
        async with akash(key="x" + KEY) as sim:
            assert (await sim.client.get("/v1/gpu")).status_code == 401

    run_virtual(tale)
