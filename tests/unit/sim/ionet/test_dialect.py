"""The io.net dialect by itself: identity, envelopes, bodies, prices, states and prepaid time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from random import Random
from typing import Any

import httpx2
import msgspec
import pytest

from gp4u import gpus
from gp4u.sim.faults import Faults, Rule
from gp4u.sim.inprocess import InProcessTransport
from gp4u.sim.ionet.app import CONSOLE, ENTERPRISE, ionet_app
from gp4u.sim.ionet.gate import IoNetSettings
from gp4u.sim.ionet.orders import filled_in
from gp4u.sim.ionet.supply import title
from gp4u.sim.market import GPUS
from gp4u.sim.runtime import pretend
from gp4u.sim.world import World
from tests.virtual_loop import run_virtual

KEY = "test-key"
EASY = IoNetSettings(api_key=KEY, throttle=0.0, list_lag_s=(0.0, 0.0), log_open_s=0.0)
CAAS, VMAAS = f"{ENTERPRISE}/caas", f"{ENTERPRISE}/vmaas"
SSH = {"ada": "ssh-ed25519 AAAAC3Nza ada@example.com"}


class Market:
    """The client's side, and the truth behind it."""

    def __init__(self, client: httpx2.AsyncClient, world: World, faults: Faults) -> None:
        self.client, self.world, self.faults = client, world, faults

    async def get(self, path: str, status: int = 200, **params: object) -> Any:
        """Return what a read answers, out of its envelope if it has one."""
        texts = {name: str(value) for name, value in params.items()}
        reply = await self.client.get(path, params=texts)
        assert reply.status_code == status, reply.text
        body = reply.json()
        return body["data"] if isinstance(body, dict) and "data" in body else body

    async def row(self, gpus: int = 1) -> dict[str, Any]:
        """Return the cheapest free row of the catalogue of so many GPUs."""
        rows = (await self.get(f"{CONSOLE}/caas/hardware"))["hardware"]
        free = [r for r in rows if r["num_cards"] == gpus and not r["sold_out"] and r["price"]]
        cheapest: dict[str, Any] = min(free, key=lambda r: r["price"])
        return cheapest

    async def order(self, **changes: Any) -> dict[str, Any]:
        """Return a body that the containers' create call takes, changed."""
        row = await self.row()
        return {
            "resource_private_name": "one",
            "duration_hours": 1,
            "gpus_per_container": 1,
            "hardware_id": row["id"],
            "location_ids": [row["location"]],
            "container_config": {"replica_count": 1, "traffic_port": 8000},
            "registry_config": {"image_url": "busybox"},
            **changes,
        }

    async def deploy(self, **changes: Any) -> httpx2.Response:
        """Order a container."""
        return await self.client.post(f"{CAAS}/deploy", json=await self.order(**changes))

    async def deployed(self, **changes: Any) -> str:
        """Order a container and return its id."""
        reply = await self.deploy(**changes)
        assert reply.status_code == 200, reply.text
        return str(reply.json()["deployment_id"])


@asynccontextmanager
async def market(
    *rules: Rule, settings: IoNetSettings = EASY, key: str | None = KEY, credit: str = "25"
) -> AsyncIterator[Market]:
    """Open a market on the running loop's clock; boots take ten seconds."""
    world = World(
        asyncio.get_running_loop().time,
        Random(1),
        runtime=pretend(Random(2)),
        offers=80,
        boot_s=(10.0, 10.0),
        credit_usd=Decimal(credit),
    )
    faults = Faults(rules, Random(3))
    async with httpx2.AsyncClient(
        transport=InProcessTransport(ionet_app(world, faults, settings)),
        base_url="http://sim.test",
        headers={"X-API-KEY": key} if key else {},
    ) as client:
        yield Market(client, world, faults)


def test_without_its_key_nothing_but_the_consoles_lists_can_be_read() -> None:
    """The enterprise paths want the header, in any case; Bearer is not it."""

    async def scene() -> None:
        async with market(key=None) as m:
            for path in ("/caas/hardware", "/caas/locations", "/vmaas/hardware"):
                await m.get(f"{CONSOLE}{path}")
            for path in (f"{CAAS}/deployments", f"{CONSOLE}/caas/deployments", f"{VMAAS}/hardware"):
                reply = await m.client.get(path, headers={"authorization": f"Bearer {KEY}"})
                assert (reply.status_code, reply.json()) == (401, {"detail": "Not authenticated"})
        async with market(key="wrong") as m:
            assert (await m.get(f"{CAAS}/deployments", 401))["detail"] == "Invalid API key"

    run_virtual(scene)


def test_a_key_of_another_project_gets_the_answer_that_was_seen() -> None:
    """It is no 401: a client that only knows statuses takes it for a bad request."""

    async def scene() -> None:
        async with market(key=IoNetSettings().other_project_key) as m:
            assert await m.get(f"{CAAS}/deployments", 400) == {"key_set": True}

    run_virtual(scene)


def test_machines_can_be_filtered_by_size_in_the_units_of_the_documents() -> None:
    """Disk and memory are asked for in MB and shown in GB."""

    async def scene() -> None:
        async with market() as m:
            path = f"{VMAAS}/hardware"
            rows = (await m.get(path))["hardware"]
            disk = sorted(row["storage"] for row in rows)[len(rows) // 2]
            large = (await m.get(path, storage_min=disk * 1000))["hardware"]
            assert large == [row for row in rows if row["storage"] >= disk]
            assert len(large) < len(rows)
            few = (await m.get(path, gpu_memory_max=24, cpu_cores_min=8))["hardware"]
            assert few == [r for r in rows if r["vram_per_card"] <= 24 and r["vcpu"] >= 8]
            assert (await m.client.get(f"{path}?storage_min=lots")).status_code == 422

    run_virtual(scene)


def test_an_unknown_path_answers_as_the_framework_does() -> None:
    """JSON with `detail`, whatever is wrong with the path."""

    async def scene() -> None:
        async with market() as m:
            assert await m.get(f"{CAAS}/hardware", 404) == {"detail": "Not Found"}
            assert await m.get(f"{CAAS}/deploy", 405) == {"detail": "Method Not Allowed"}
            reply = await m.client.post(f"{CAAS}/deploy", content=b"{")
            assert reply.status_code == 422
            assert reply.json()["detail"][0]["type"] == "json_invalid"

    run_virtual(scene)


@pytest.mark.parametrize("gpu", GPUS, ids=lambda gpu: f"{gpu.name}-{gpu.ram_mb}")
def test_every_gpu_keeps_its_identity_under_this_markets_name(gpu: Any) -> None:
    """A machine that two markets sell must be one model in both."""
    sold = {15360: 16, 20475: 20, 23028: 24, 23034: 24, 46068: 48, 81559: 80, 183359: 192}
    gib = sold.get(gpu.ram_mb, round(gpu.ram_mb / 1024))
    here, there = gpus.canonical(title(gpu), gib * 1024), gpus.canonical(gpu.name, gpu.ram_mb)
    assert here is not None
    assert there is not None
    assert here.model == there.model


def test_prices_are_for_the_whole_configuration_and_the_meter_agrees() -> None:
    """Two hours of eight GPUs cost what the price call said, to the last digit."""

    async def scene() -> None:
        async with market(credit="1000") as m:
            row = await m.row(gpus=4)
            query = {"hardware_id": row["id"], "location_ids": f'["{row["location"]}"]'}
            price = await m.get(
                f"{CAAS}/price", gpus_per_container=4, replica_count=1, duration_hours=2, **query
            )
            fee = Decimal(str(price["ionet_fee"]))
            total = Decimal(str(price["total_cost_usdc"]))
            assert total == Decimal(str(row["price"])) * 2 + fee
            await m.deployed(
                hardware_id=row["id"],
                location_ids=[row["location"]],
                gpus_per_container=4,
                duration_hours=2,
            )
            assert m.world.meter_total() == total
            await asyncio.sleep(1800)
            await m.world.advance()
            assert m.world.meter_total() == total

    run_virtual(scene)


def test_locations_have_numbers_and_codes_for_the_same_place() -> None:
    """Clients were seen to send either."""

    async def scene() -> None:
        async with market() as m:
            row = await m.row()
            places = (await m.get(f"{CONSOLE}/caas/locations"))["locations"]
            (number,) = [p["id"] for p in places if p["iso2"] == row["location"]]
            replicas = await m.get(
                f"{CAAS}/available-replicas", hardware_id=row["id"], hardware_qty=1
            )
            (there,) = [r for r in replicas if r["id"] == number]
            assert there["available_replicas"] == row["available_replicas"]
            await m.deployed(location_ids=[number])

    run_virtual(scene)


@pytest.mark.parametrize(
    ("changes", "place", "kind"),
    [
        ({"duration_hours": 0}, "duration_hours", "value_error"),
        ({"duration_hours": 1.5}, "duration_hours", "value_error"),
        ({"resource_private_name": "Not OK"}, "resource_private_name", "value_error"),
        ({"location_ids": "[1]"}, "location_ids", "value_error"),
        ({"label": "x"}, "label", "extra_forbidden"),
        ({"container_config": {"replica_count": 1}}, "traffic_port", "missing"),
        (
            {"container_config": {"replica_count": 1, "traffic_port": 8000, "disk": 10}},
            "disk",
            "extra_forbidden",
        ),
        ({"registry_config": {}}, "image_url", "missing"),
    ],
)
def test_a_body_is_checked_field_by_field(changes: dict[str, Any], place: str, kind: str) -> None:
    """A client's mistake must show here, and not on the real market."""

    async def scene() -> None:
        async with market() as m:
            reply = await m.deploy(**changes)
            assert reply.status_code == 422
            (item,) = reply.json()["detail"]
            assert (item["loc"][-1], item["type"]) == (place, kind)
            assert m.world.contracts == []

    run_virtual(scene)


def test_hardware_ids_keep_their_type() -> None:
    """A number sent as a text is another hardware, and unknown."""

    async def scene() -> None:
        async with market() as m:
            rows = (await m.get(f"{CONSOLE}/caas/hardware"))["hardware"]
            kinds = {type(row["id"]) for row in rows}
            assert kinds == {int, str}
            row = next(r for r in rows if isinstance(r["id"], int) and r["available_replicas"])
            body = {"hardware_id": str(row["id"]), "location_ids": [row["location"]]}
            assert (await m.deploy(**body)).status_code == 404

    run_virtual(scene)


def test_a_name_is_taken_once_and_for_all() -> None:
    """The market calls it unique; the check says so before the order does."""

    async def scene() -> None:
        async with market() as m:
            check = f"{CONSOLE}/caas/clusters/check_cluster_name_availability"
            assert await m.get(check, cluster_name="one") is True
            one = await m.deployed()
            assert await m.get(check, cluster_name="one") is False
            again = await m.deploy()
            assert again.status_code == 400
            assert "exists" in again.json()["detail"]
            url = f"{CONSOLE}/caas/clusters/{one}/update-name"
            reply = await m.client.put(url, json={"cluster_name": "two"})
            assert reply.json()["status"] == "succeeded"
            assert await m.get(check, cluster_name="one") is True

    run_virtual(scene)


def test_a_deployment_walks_through_its_states_and_the_url_comes_last() -> None:
    """Requested, running without an address, running with one, being ended, ended."""

    async def scene() -> None:
        async with market() as m:
            one = await m.deployed()

            async def look() -> tuple[str, str | None]:
                detail = await m.get(f"{CAAS}/deployment/{one}")
                assert "name" not in detail
                found = (await m.get(f"{CAAS}/deployment/{one}/containers"))["workers"]
                return detail["status"], found[0]["public_url"] if found else None

            assert await look() == ("deployment requested", None)
            await asyncio.sleep(10)
            assert await look() == ("running", None)
            await asyncio.sleep(3)
            status, url = await look()
            assert status == "running"
            port = m.world.contracts[0].ports[8000, "tcp"]
            assert url == f"http://127.0.0.1:{port}"
            (row,) = (await m.get(f"{CAAS}/deployments"))["deployments"]
            assert (row["name"], "public_url" in row) == ("one", False)
            bare = await m.get(f"{CAAS}/deployment/{one}/container/{one[:8]}-c0")
            assert bare["public_url"] == url
            reply = await m.client.delete(f"{CAAS}/deployment/{one}")
            assert reply.json() == {"status": "termination requested", "deployment_id": one}
            assert await look() == ("termination requested", None)
            await asyncio.sleep(3)
            assert await look() == ("destroyed", None)
            reply = await m.client.delete(f"{CAAS}/deployment/{one}")
            assert reply.json()["status"] == "destroyed"

    run_virtual(scene)


def test_time_that_ran_out_ends_a_deployment_at_that_moment() -> None:
    """Even where nobody looked for hours; what was bought meanwhile counts."""

    async def scene() -> None:
        async with market() as m:
            one, two = await m.deployed(), await m.deployed(resource_private_name="two")
            reply = await m.client.post(
                f"{CAAS}/deployment/{two}/extend", json={"duration_hours": 2}
            )
            assert reply.json()["data"]["compute_minutes_remaining"] == 180
            await asyncio.sleep(2 * 3600)
            assert (await m.get(f"{CAAS}/deployment/{one}"))["status"] == "completed"
            later = await m.get(f"{CAAS}/deployment/{two}")
            assert (later["status"], later["compute_minutes_remaining"]) == ("running", 60)
            late = await m.client.post(
                f"{CAAS}/deployment/{one}/extend", json={"duration_hours": 1}
            )
            assert late.status_code == 400
            await asyncio.sleep(3600)
            assert (await m.get(f"{CAAS}/deployment/{two}"))["status"] == "completed"
            assert m.world.leaked() == []

    run_virtual(scene)


def test_an_update_is_flat_and_makes_the_container_anew() -> None:
    """A nested body is refused in the words that were seen."""

    async def scene() -> None:
        async with market() as m:
            one = await m.deployed()
            url = f"{CAAS}/deployment/{one}"
            nested = await m.client.patch(url, json={"container_config": {"traffic_port": 1}})
            assert nested.status_code == 422
            assert nested.json()["detail"][0]["type"] == "extra_forbidden"
            flat = await m.client.patch(url, json={"image_url": "busybox:2", "traffic_port": 9000})
            assert flat.json()["deployment_id"] == one
            config = (await m.get(url))["container_config"]
            assert (config["image_url"], config["traffic_port"]) == ("busybox:2", 9000)

    run_virtual(scene)


def test_secrets_are_never_shown_again_and_args_are_dropped() -> None:
    """Write-only means names alone; and what was seen to be lost is lost here."""

    async def scene() -> None:
        async with market() as m:
            config = {
                "replica_count": 1,
                "traffic_port": 8000,
                "env_variables": {"A": "1"},
                "secret_env_variables": {"TOKEN": "hunter2"},
                "entrypoint": ["sh", "-c", "echo $A $$A"],
                "args": ["lost"],
            }
            one = await m.deployed(container_config=config)
            reply = await m.client.get(f"{CAAS}/deployment/{one}")
            assert "hunter2" not in reply.text
            assert reply.json()["data"]["container_config"]["secret_env_keys"] == ["TOKEN"]
            order = m.world.contracts[0].order
            assert order.env == {"A": "1", "TOKEN": "hunter2"}
            assert (order.entrypoint, order.command) == ("sh", ("-c", "echo 1 $A"))

    run_virtual(scene)


@pytest.mark.parametrize(
    ("word", "text"),
    [("$A", "1"), ("${A}", "1"), ("$$A", "$A"), ("$NONE!", "!"), ("$$$$", "$$"), ("5$", "5$")],
)
def test_the_scheduler_fills_in_dollars(word: str, text: str) -> None:
    """Whoever forgets to double one loses it."""
    assert filled_in(word, {"A": "1"}) == text


def machine_body(row: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Return a body that the machines' create call takes, changed."""
    return {
        "resource_private_name": "vm-one",
        "duration_hours": 1,
        "gpus_per_vm": row["num_cards"],
        "hardware_id": row["deploy_id"],
        "location_ids": [row["location"]],
        "vm_image_type": "general",
        "ssh_keys": SSH,
        "network_services": {"web": {"port": 8080, "protocol": "tcp", "whitelist": ["0.0.0.0/0"]}},
        **changes,
    }


def test_a_machine_answers_with_nothing_and_gets_an_address() -> None:
    """Its pages start at one, its ports are public once it is up."""

    async def scene() -> None:
        async with market() as m:
            rows = (await m.get(f"{VMAAS}/hardware"))["hardware"]
            row = next(r for r in rows if r["num_cards"] == 1 and not r["sold_out"])
            reply = await m.client.post(f"{VMAAS}/deploy", json=machine_body(row))
            assert (reply.status_code, reply.content) == (200, b"")
            assert (await m.client.get(f"{VMAAS}/deployments?page=0")).status_code == 422
            (held,) = (await m.get(f"{VMAAS}/deployments", page=1))["deployments"]
            assert held["name"] == "vm-one"
            assert (await m.get(f"{CAAS}/deployments"))["deployments"] == []
            vms = f"{VMAAS}/deployment/{held['id']}/vms"
            (vm,) = (await m.get(vms, page=1))["workers"]
            assert vm["network_services"]["web"]["public_port"] is None
            await asyncio.sleep(11)
            (vm,) = (await m.get(vms))["workers"]
            port = m.world.contracts[0].ports[8080, "tcp"]
            web = vm["network_services"]["web"]
            assert (web["public_ip"], web["public_port"], web["port"]) == ("127.0.0.1", port, 8080)
            assert (await m.get(f"{CAAS}/deployment/{held['id']}", 404))["detail"]

    run_virtual(scene)


@pytest.mark.parametrize(
    "changes",
    [
        {"image": "busybox"},
        {"vm_image_type": "windows"},
        {"ssh_keys": {}},
        {"ssh_keys": {"ada": "not a key"}},
        {"network_services": {"web": {"port": 8080, "protocol": "tcp", "whitelist": []}}},
        {"network_services": {"web": {"port": 8080, "protocol": "sctp", "whitelist": ["::/0"]}}},
        {"duration_hours": 8761},
        {"location_ids": [1, 2]},
    ],
)
def test_a_machines_body_is_checked_as_strictly(changes: dict[str, Any]) -> None:
    """Unknown keys are refused; it takes no image."""

    async def scene() -> None:
        async with market() as m:
            rows = (await m.get(f"{VMAAS}/hardware"))["hardware"]
            body = machine_body(rows[0], **changes)
            assert (await m.client.post(f"{VMAAS}/deploy", json=body)).status_code == 422

    run_virtual(scene)


def test_the_published_limit_holds_per_ten_seconds() -> None:
    """150 at once, then none until the window moved; the header says how long."""

    async def scene() -> None:
        async with market(settings=msgspec.structs.replace(EASY, throttle=1.0)) as m:
            for _ in range(150):
                await m.get(f"{CONSOLE}/caas/locations")
            reply = await m.client.get(f"{CONSOLE}/caas/locations")
            assert (reply.status_code, reply.headers["retry-after"]) == (429, "10")
            assert reply.json() == {"detail": "Rate limit exceeded"}
            await asyncio.sleep(10)
            await m.get(f"{CONSOLE}/caas/locations")

    run_virtual(scene)


def test_logs_are_events_and_the_consoles_are_plain() -> None:
    """Two forms of one log, as two documents have it."""

    async def scene() -> None:
        async with market() as m:
            one = await m.deployed()
            await asyncio.sleep(15)
            path = f"/caas/deployment/{one}/log/{one[:8]}-c0"
            events = await m.client.get(f"{ENTERPRISE}{path}?stream=stdout")
            assert events.headers["content-type"].startswith("text/event-stream")
            assert events.text.startswith("data: [boot]")
            plain = await m.client.get(f"{CONSOLE}{path}")
            assert plain.text.startswith("[boot]")
            errors = await m.client.get(f"{ENTERPRISE}{path}?stream=stderr")
            assert errors.text == ""
            assert (await m.client.get(f"{ENTERPRISE}{path}?stream=x")).status_code == 422

    run_virtual(scene)


@pytest.mark.parametrize(
    ("rule", "status", "made"),
    [
        (Rule(kind="no_credit", endpoint="create"), 402, 0),
        (Rule(kind="offer_gone", endpoint="create"), 400, 0),
        (Rule(kind="failed_without_id", endpoint="create"), 200, 1),
        (Rule(kind="failed_with_id", endpoint="create"), 500, 1),
        (Rule(kind="status", status=503, endpoint="create"), 503, 0),
        (Rule(kind="status_after", status=502, endpoint="create"), 502, 1),
    ],
)
def test_an_order_can_fail_in_each_documented_way(rule: Rule, status: int, made: int) -> None:
    """With and without something having been made."""

    async def scene() -> None:
        async with market(rule) as m:
            reply = await m.deploy()
            assert reply.status_code == status
            assert len(m.world.contracts) == made
            if rule.kind == "failed_without_id":
                assert list(reply.json()) == ["detail"]
            if rule.kind.startswith("status"):
                assert "html" in reply.headers["content-type"]

    run_virtual(scene)


def test_a_release_that_is_only_answered_leaves_it_running() -> None:
    """The client must look, and ask again."""

    async def scene() -> None:
        async with market(Rule(kind="release_ignored", endpoint="destroy", times=1)) as m:
            one = await m.deployed()
            await m.client.delete(f"{CAAS}/deployment/{one}")
            assert len(m.world.leaked()) == 1
            await m.client.delete(f"{CAAS}/deployment/{one}")
            assert m.world.leaked() == []

    run_virtual(scene)


def test_sold_out_rows_say_so_and_cannot_be_had() -> None:
    """A row stands for several machines, and is gone with the last."""

    async def scene() -> None:
        async with market(credit="1000") as m:
            row = await m.row()
            where = {"hardware_id": row["id"], "location_ids": [row["location"]]}
            for n in range(row["available_replicas"]):
                await m.deployed(resource_private_name=f"n{n}", **where)
            rows = (await m.get(f"{CONSOLE}/caas/hardware"))["hardware"]
            (now,) = [
                r
                for r in rows
                if (r["id"], r["num_cards"], r["location"])
                == (row["id"], row["num_cards"], row["location"])
            ]
            assert (now["sold_out"], now["available_replicas"]) == (True, 0)
            assert "capacity" in (await m.deploy(**where)).json()["detail"]

    run_virtual(scene)
