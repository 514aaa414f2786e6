"""Operating an instance of the dialect: release, stop, logs, bids, money, keys."""

from __future__ import annotations

import asyncio
import json
import re
from random import Random
from typing import Any

import pytest

from gp4u.sim.faults import Rule
from tests.unit.sim.vastai.dialect import fill, market, settle
from tests.virtual_loop import run_virtual


def test_release_answers_and_what_is_gone_is_404() -> None:
    """And a release can be answered without being done."""

    async def scene() -> None:
        async with market(Rule(kind="release_ignored", endpoint="destroy", times=1)) as m:
            contract = await m.rented()
            path = f"/api/v0/instances/{contract.id}/"
            assert (await m.call("DELETE", path)).json()["success"] is True
            assert m.world.leaked() == [contract]
            assert (await m.call("DELETE", path, json={})).json()["success"] is True
            assert m.world.leaked() == []
            again = await m.call("DELETE", path)
            assert (again.status_code, again.json()["error"]) == (404, "no_such_instance")

    run_virtual(scene)


def test_stop_and_start_change_ports_and_reboot_keeps_them() -> None:
    """A host port belongs to a container, not to an instance."""

    async def scene() -> None:
        async with market() as m:
            contract = await m.running(env={"-p 8000:8000": "1"})
            first = dict(contract.ports)
            await m.call("PUT", f"/api/v0/instances/reboot/{contract.id}/", json={})
            await settle()
            await m.world.advance()
            assert contract.ports == first
            path = f"/api/v0/instances/{contract.id}/"
            await m.call("PUT", path, json={"state": "stopped"})
            await settle()
            (row,) = (await m.listed())["instances"]
            assert (row["actual_status"], row["ports"]) == ("exited", {})
            assert row["instance"]["gpuCostPerHour"] == 0
            await m.call("PUT", path, json={"state": "running"})
            await settle()
            await m.world.advance()
            assert contract.ports != first

    run_virtual(scene)


def test_a_start_without_a_gpu_is_refused_politely() -> None:
    """200, and false: the wish stays queued."""

    async def scene() -> None:
        async with market(Rule(kind="start_refused", endpoint="update")) as m:
            contract = await m.running()
            path = f"/api/v0/instances/{contract.id}/"
            await m.call("PUT", path, json={"state": "stopped"})
            reply = await m.call("PUT", path, json={"state": "running"})
            assert reply.status_code == 200
            assert reply.json()["error"] == "resources_unavailable"
            assert contract.queued

    run_virtual(scene)


def test_the_label_can_be_changed_within_its_length() -> None:
    """1024 here, where a rent takes 256."""

    async def scene() -> None:
        async with market() as m:
            contract = await m.rented()
            path = f"/api/v0/instances/{contract.id}/"
            assert (await m.call("PUT", path, json={"label": "x" * 1024})).status_code == 200
            assert contract.label == "x" * 1024
            reply = await m.call("PUT", path, json={"label": "x" * 1025})
            assert (reply.status_code, reply.json()["error"]) == (400, "label_too_long")

    run_virtual(scene)


def test_logs_come_from_another_address_a_little_later_without_a_key() -> None:
    """First 404, then the text; and nobody asks for a key there."""

    async def scene() -> None:
        async with market() as m:
            contract = await m.rented(env={"-p 8000:8000": "1"})
            path = f"/api/v0/instances/request_logs/{contract.id}/"
            early = (await m.call("PUT", path, json={"tail": "10"})).json()
            assert early["success"] is True
            assert "result_url" not in early
            await settle()
            url = (await m.call("PUT", path, json={"tail": "10"})).json()["result_url"]
            del m.client.headers["Authorization"]
            assert (await m.client.get(url)).status_code == 404
            await asyncio.sleep(1)
            reply = await m.client.get(url)
            assert reply.status_code == 200
            assert "8000/tcp" in reply.text
            assert 1 < len(reply.text.splitlines()) <= 10

    run_virtual(scene)


def test_logs_are_cut_and_filtered_and_refused_for_strangers() -> None:
    """`tail` is text; an unknown instance has its own error."""

    async def scene() -> None:
        async with market() as m:
            contract = await m.running(env={"-p 8000:8000": "1"})

            async def text(**body: Any) -> str:
                path = f"/api/v0/instances/request_logs/{contract.id}/"
                url = (await m.call("PUT", path, json=body)).json()["result_url"]
                await asyncio.sleep(1)
                return (await m.client.get(url)).text

            assert len((await text(tail="1")).splitlines()) == 1
            assert all(
                "listening" in line for line in (await text(filter="listening")).splitlines()
            )
            assert "success, running" in await text(daemon_logs="true")
            await m.call("PUT", f"/api/v0/instances/{contract.id}/", json={"state": "stopped"})
            assert "8000/tcp" in await text(tail="100")
            unknown = await m.call("PUT", "/api/v0/instances/request_logs/7/", json={})
            assert (unknown.status_code, unknown.json()["error"]) == (404, "invalid_id")

    run_virtual(scene)


@pytest.mark.parametrize("command", ["ls /", "du -s /workspace", "rm /workspace/x"])
def test_only_small_commands_are_executed(command: str) -> None:
    """It is no shell."""

    async def scene() -> None:
        async with market() as m:
            contract = await m.rented()
            path = f"/api/v0/instances/command/{contract.id}/"
            good = await m.call("PUT", path, json={"command": command})
            assert good.json()["writeable_path"]
            for bad in ("cat /etc/passwd", "", "ls " + "x" * 512, 5):
                reply = await m.call("PUT", path, json={"command": bad})
                assert (reply.status_code, reply.json()["error"]) == (400, "invalid_args")

    run_virtual(scene)


def test_a_bid_can_be_raised_on_a_bid_only() -> None:
    """Null means the price needed to win; the kind of a rent cannot be changed."""

    async def scene() -> None:
        async with market() as m:
            contract = await m.rented(price=5)
            path = f"/api/v0/instances/bid_price/{contract.id}/"
            assert contract.bid == 5
            await m.call("PUT", path, json={"client_id": "me", "price": 6})
            assert contract.bid == 6
            await m.call("PUT", path, json={"client_id": "me", "price": None})
            assert contract.bid == contract.machine.min_bid_per_gpu
            assert (await m.call("PUT", path, json={"price": 0})).status_code == 400
            assert (await m.call("PUT", path, json={"price": 33})).status_code == 400
            plain = await m.rented()
            path = f"/api/v0/instances/bid_price/{plain.id}/"
            assert (await m.call("PUT", path, json={"price": 1})).status_code == 400

    run_virtual(scene)


def test_many_can_be_stopped_and_destroyed_at_once() -> None:
    """The plural forms."""

    async def scene() -> None:
        async with market(offers=150) as m:
            ids = await fill(m, 3)
            await m.call("PUT", "/api/v0/instances/", json={"state": "stopped", "ids": ids})
            assert {c.cur for c in m.world.leaked()} == {"stopped"}
            await m.call("DELETE", "/api/v0/instances/", json={"instance_ids": ids})
            assert m.world.leaked() == []

    run_virtual(scene)


def test_charges_and_credit_follow_the_meter() -> None:
    """One row per instance and day, whose items sum to it."""

    async def scene() -> None:
        async with market() as m:
            contract = await m.running(label="mine")
            await asyncio.sleep(2 * 86_400)
            await m.call("DELETE", f"/api/v0/instances/{contract.id}/")
            page = (await m.call("GET", "/api/v0/charges/", params={"limit": "2"})).json()
            assert page["count"] == 2
            rest = (
                await m.call("GET", "/api/v0/charges/", params={"after_token": page["next_token"]})
            ).json()
            rows = page["results"] + rest["results"]
            assert len(rows) == page["total"] >= 3
            assert {row["source"] for row in rows} == {f"instance-{contract.id}"}
            assert {row["metadata"]["label"] for row in rows} == {"mine"}
            assert {item["type"] for row in rows for item in row["items"]} == {"gpu", "disk"}
            for row in rows:
                assert row["amount"] == pytest.approx(sum(item["amount"] for item in row["items"]))
            total = sum(row["amount"] for row in rows)
            assert total == pytest.approx(float(m.world.meter_total()))
            user = (await m.call("GET", "/api/v0/users/current")).json()
            assert user["credit"] == pytest.approx(25 - total)

    run_virtual(scene)


def test_the_small_calls_around_instances_keep_what_they_are_given() -> None:
    """Keys, variables, prepaying: enough for the official client to work."""

    async def scene() -> None:
        async with market() as m:
            assert (await m.call("GET", "/api/v0/ssh/")).status_code == 404
            added = await m.call("POST", "/api/v0/ssh/", json={"ssh_key": "ssh-ed25519 AAAA x@y"})
            number = added.json()["key"]["id"]
            keys = (await m.call("GET", "/api/v0/ssh/")).json()
            assert [key["id"] for key in keys] == [number]
            assert (await m.create(vm=True)).status_code == 200
            assert (await m.call("DELETE", f"/api/v0/ssh/{number}/")).status_code == 200
            bad = await m.call("POST", "/api/v0/ssh/", json={"ssh_key": "hello"})
            assert bad.status_code == 400

            await m.call("POST", "/api/v0/secrets/", json={"key": "A", "value": "1"})
            assert (await m.call("GET", "/api/v0/secrets/")).json()["secrets"] == {"A": "1"}
            await m.call("DELETE", "/api/v0/secrets/", json={"key": "A"})
            assert (await m.call("GET", "/api/v0/secrets/")).json()["secrets"] == {}

            contract = await m.rented()
            one = f"/api/v0/instances/{contract.id}/ssh"
            await m.call("POST", f"{one}/", json={"ssh_key": "ssh-ed25519 BBBB x@y"})
            (attached,) = (await m.call("GET", one)).json()["ssh_keys"]
            assert (await m.call("DELETE", f"{one}/{attached['id']}/")).status_code == 200
            prepay = f"/api/v0/instances/prepay/{contract.id}/"
            assert (await m.call("PUT", prepay, json={"amount": 10.0})).json()["success"] is True
            assert (await m.call("PUT", prepay, json={"amount": 1000})).status_code == 411

    run_virtual(scene)


@pytest.mark.parametrize(
    ("method", "path", "key"),
    [
        ("GET", "/api/v0/volumes?owner=me", "volumes"),
        ("POST", "/api/v0/volumes/search/", "offers"),
        ("GET", "/api/v0/template/", "templates"),
        ("GET", "/api/v0/machines?owner=me", "machines"),
        ("GET", "/api/v1/invoices/", "results"),
        ("GET", "/api/v0/instances/pending-price-increases/", "pending_price_increases"),
        ("GET", "/api/v0/instances/filters/", "filters"),
    ],
)
def test_empty_lists_are_answered_in_their_shape(method: str, path: str, key: str) -> None:
    """The official client asks for all of these."""

    async def scene() -> None:
        async with market() as m:
            reply = await m.call(method, path)
            assert reply.status_code == 200
            assert reply.json()[key] == []

    run_virtual(scene)


def test_no_body_and_no_parameter_makes_the_simulator_fail() -> None:
    """A traceback of ours would pass for a fault of the market's."""
    values: list[Any] = [None, True, -1, 1e308, "x", "1", [], [1, "a", None], {}, {"eq": 1}]
    values += [{"in": None}, {"gt": [1]}, {"eq": {}}, [["dph_total", "asc"]], [[[], []]], "NaN"]
    fields = re.findall(
        r"\w+",
        """num_gpus gpu_name geolocation verified rented id order limit type driver_version
        allocated_storage external cpu_ram_GB image env disk price label runtype args onstart
        target_state state ids instance_ids tail filter command amount q ssh_key key value
        contract_ids vm""",
    )
    params = ["select_filters", "order_by", "limit", "select_cols", "after_token", "q"]

    async def scene() -> None:
        async with market() as m:
            contract, offer_id, random = await m.rented(), await m.single(), Random(1)
            writes = [
                ("POST", "bundles"),
                ("PUT", "search/asks"),
                ("PUT", f"asks/{offer_id}"),
                ("PUT", "launch_instance"),
                ("POST", "asks/bulk"),
                ("PUT", f"instances/{contract.id}"),
                ("PUT", "instances"),
                ("PUT", f"instances/bid_price/{contract.id}"),
                ("PUT", f"instances/request_logs/{contract.id}"),
                ("PUT", f"instances/command/{contract.id}"),
                ("PUT", f"instances/prepay/{contract.id}"),
                ("POST", "contracts/fetch"),
                ("POST", "ssh"),
                ("POST", "secrets"),
                ("DELETE", "secrets"),
                ("POST", "volumes/search"),
            ]
            for _ in range(500):
                method, path = random.choice(writes)
                body = {random.choice(fields): random.choice(values) for _ in range(3)}
                reply = await m.call(method, f"/api/v0/{path}/", json=body)
                assert reply.status_code < 500, (path, body)
            for _ in range(300):
                query = {
                    name: json.dumps(random.choice(values)) for name in random.sample(params, 2)
                }
                path = random.choice(("/api/v1/instances/", "/api/v0/charges/", "/api/v0/bundles/"))
                reply = await m.call("GET", path, params=query)
                assert reply.status_code < 500, (path, query)

    run_virtual(scene)
