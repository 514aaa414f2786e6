"""Dispersed's jobs as a client sees them: bounds, states, the bill, and trouble."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import httpx2
import msgspec
import pytest

from gp4u.sim.faults import Rule
from gp4u.sim.launch import Port
from gp4u.sim.render.order import job_order
from tests.unit.sim.render.dialect import EASY, PAYLOADS, market
from tests.virtual_loop import run_virtual


@pytest.mark.parametrize(
    "changes",
    [
        {"task": "FOREVER"},
        {"max_timeout_run_ms": 60_000},
        {"task": "BATCH"},
        {"task": "BATCH", "max_timeout_run_ms": 59_999},
        {"max_timeout_assign_ms": 1000},
        {"max_timeout_assign_ms": 299_999},
        {"max_timeout_start_ms": 119_999},
        {"gpu_count": -1},
        {"gpu_count": 1.5},
        {"gpu_name": "RTX 4090"},
        {"title": 7},
        {"max_node_count": 2},
        {"max_retry_count": -1},
        {"allowed_region_codes": ["moon-1"]},
        {"allowed_region_codes": ["us-west-2"] * 37},
        {"command": ["serve"]},
        {"parameters": {"type": "vm", "parameters": {}}},
        {"parameters": None},
        {"docker": {"command": ["serve"]}},
        {"docker": {"entrypoint": "sh"}},
        {"docker": {"image": ""}},
        {"docker": {"image": "nginx:1.27"}},
        {"docker": {"ports": ["80"]}},
        {"docker": {"ports": [0]}},
        {"docker": {"ports": [80, 80]}},
        {"docker": {"env": {"A": 1}}},
        {"docker": {"allowed_ips": ["everybody"]}},
        {"docker": {"allowed_ips": ["10.0.0.1"]}},
        {"docker": {"volumes": {}}},
    ],
    ids=str,
)
def test_a_body_out_of_bounds_makes_nothing(changes: dict[str, Any]) -> None:
    """Every documented rule of the create call; a command is an unknown field."""

    async def scene() -> None:
        async with market() as m:
            reply = await m.call("POST", "/v1/jobs", await m.order(**changes))
            assert (reply.status_code, reply.json()["error"]["code"]) == (400, "validation_error")
            assert m.world.contracts == []

    run_virtual(scene)


@pytest.mark.parametrize("name", ["dispersed-job-persistent.json", "dispersed-job-batch.json"])
def test_the_markets_own_examples_are_understood(name: str) -> None:
    """Once image and tag are filled in, as the examples' own client does."""
    body = json.loads((PAYLOADS / name).read_text())
    body["parameters"]["parameters"]["image"] = "someone/benchmark"
    order = job_order(body)
    assert order.image == "someone/benchmark:latest"
    assert (order.gpu_count, order.vram_gb, order.storage_gb) == (1, 13, 20)
    if order.persistent:
        assert order.ports == (Port(22, "tcp"), Port(8080, "tcp"))
        assert order.run_s is None
    else:
        assert order.run_s == 7200


def test_a_job_passes_its_states_and_only_the_run_has_the_address() -> None:
    """PENDING, ASSIGNED, PREPARING, RUNNING; logs on the single run alone."""

    async def scene() -> None:
        async with market() as m:
            job = await m.created()
            assert (job["object"], job["status"], job["title"]) == ("job", "PENDING", "a title")
            seen = [job["status"]]
            for _ in range(30):
                await asyncio.sleep(0.5)
                status = (await m.job(job["uuid"]))["status"]
                seen += [status] if status != seen[-1] else []
            assert seen == ["PENDING", "ASSIGNED", "PREPARING", "RUNNING"]
            assert "node_urls" not in await m.job(job["uuid"])
            run = await m.run_of(job["uuid"])
            assert (run["object"], run["job_uuid"]) == ("job_run", job["uuid"])
            (url,) = run["node_urls"]
            assert (url["description"], url["hostname"], url["protocol"]) == (
                "80",
                "127.0.0.1",
                "tcp",
            )
            assert url["port"] == m.contract.ports[80, "tcp"]
            assert "logs" not in run
            single = (await m.call("GET", f"/v1/job-runs/{run['uuid']}")).json()
            assert "ready" in single["logs"]

    run_virtual(scene)


def test_a_job_echoes_what_was_asked_for_without_its_secret() -> None:
    """A registry's password must not come back in every list."""

    async def scene() -> None:
        async with market() as m:
            job = await m.created(docker={"secret": "hunter2hunter2", "env": {"A": "1"}})
            assert job["gpu_count"] == 1
            assert job["parameters"]["parameters"]["ports"] == [80]
            assert job["parameters"]["parameters"]["allowed_ips"] == ["0.0.0.0/0"]
            listed = (await m.call("GET", "/v1/jobs")).text
            assert "hunter2" not in listed

    run_virtual(scene)


def test_an_ssh_key_becomes_a_variable() -> None:
    """For images that are made for it."""

    async def scene() -> None:
        async with market() as m:
            await m.created(docker={"sshkey": "ssh-ed25519 AAAA", "ports": [22]})
            assert m.contract.order.env["SSH_PUBKEY"] == "ssh-ed25519 AAAA"
            await asyncio.sleep(12)
            (row,) = (await m.call("GET", "/v1/job-runs")).json()["data"]
            assert row["node_urls"][0]["description"] == "ssh"

    run_virtual(scene)


def test_the_cheapest_node_that_has_enough_is_taken() -> None:
    """Minimums are minimums: the job may get another node than a client looked at."""

    async def scene() -> None:
        async with market() as m:
            await m.created(gpu_registry_uuid="left out", min_vram_gb=20)
            price = m.contract.machine.usd_per_gpu_hour
            others = [
                machine.usd_per_gpu_hour
                for machine, part, free in m.world.offers()
                if free
                and len(part.gpus) == 1
                and machine.gpu.ram_mb >= 20 * 1024
                and machine.gpu.arch == "nvidia"
            ]
            assert m.contract.machine.gpu.ram_mb >= 20 * 1024
            assert price <= min(others)

    run_virtual(scene)


def test_a_job_that_nothing_fits_waits_unpaid_and_fails_when_its_time_is_up() -> None:
    """Five minutes at least: a doomed request fails slowly."""

    async def scene() -> None:
        async with market() as m:
            job = await m.created(min_vram_gb=10_000)
            await asyncio.sleep(299)
            assert (await m.job(job["uuid"]))["status"] == "PENDING"
            assert (await m.call("GET", "/v1/job-runs")).json()["data"] == []
            await asyncio.sleep(2)
            job = await m.job(job["uuid"])
            assert (job["status"], bool(job["status_reason"])) == ("FAILED", True)
            assert m.world.meter_total() == 0

    run_virtual(scene)


def test_a_waiting_job_gets_a_node_that_comes_free() -> None:
    """The queue is real."""

    async def scene() -> None:
        async with market() as m:
            body = await m.order()
            for machine in m.world.machines:
                m.world.change_machine(machine.machine_id, taken=True)
            job = (await m.call("POST", "/v1/jobs", body)).json()
            await asyncio.sleep(60)
            for machine in m.world.machines:
                m.world.change_machine(machine.machine_id, taken=False)
            await m.job(job["uuid"])
            await asyncio.sleep(15)
            assert (await m.job(job["uuid"]))["status"] == "RUNNING"

    run_virtual(scene)


def test_cancelling_takes_a_moment_and_cannot_be_done_to_what_has_ended() -> None:
    """CANCELLING, CANCELLED, then 409; an unknown job is 404."""

    async def scene() -> None:
        async with market() as m:
            job = await m.created()
            await asyncio.sleep(12)
            path = f"/v1/jobs/{job['uuid']}/cancel"
            assert (await m.call("PUT", path, {"reason": "x"})).json()["status"] == "CANCELLING"
            assert (await m.call("PUT", path, {"reason": "x"})).status_code == 200
            await asyncio.sleep(2.5)
            assert (await m.job(job["uuid"]))["status"] == "CANCELLED"
            again = await m.call("PUT", path, {"reason": "x"})
            assert (again.status_code, again.json()["error"]["code"]) == (409, "invalid_state")
            none = await m.call("PUT", "/v1/jobs/none/cancel", {"reason": "x"})
            assert none.status_code == 404
            assert m.world.leaked() == []

    run_virtual(scene)


@pytest.mark.parametrize("body", [{}, {"reason": 7}, {"reason": "x", "force": True}])
def test_a_cancel_needs_its_reason(body: dict[str, Any]) -> None:
    """And nothing else."""

    async def scene() -> None:
        async with market() as m:
            job = await m.created()
            reply = await m.call("PUT", f"/v1/jobs/{job['uuid']}/cancel", body)
            assert reply.status_code == 400

    run_virtual(scene)


def test_lists_filter_by_status_and_sort_by_age() -> None:
    """Ended jobs stay on record for ever."""

    async def scene() -> None:
        async with market() as m:
            first = await m.created(title="1")
            await m.created(title="2")
            await m.call("PUT", f"/v1/jobs/{first['uuid']}/cancel", {"reason": "x"})
            await asyncio.sleep(15)

            async def titles(query: Mapping[str, str]) -> list[str]:
                reply = await m.call("GET", "/v1/jobs", query=query)
                return [job["title"] for job in reply.json()["data"]]

            assert await titles({"sort": "created_at"}) == ["1", "2"]
            assert await titles({"sort": "-created_at"}) == ["2", "1"]
            assert await titles({"filter[status]": "RUNNING,PENDING"}) == ["2"]
            assert await titles({"filter[status]": "CANCELLED"}) == ["1"]
            dead = await m.call("GET", "/v1/jobs", query={"filter[status]": "DEAD"})
            assert dead.status_code == 400
            assert (await m.call("GET", "/v1/jobs", query={"sort": "title"})).status_code == 400

    run_virtual(scene)


# Time and money.


@pytest.mark.parametrize(("whole_hours", "hours"), [(False, "1.5"), (True, "2")])
def test_the_bill_runs_from_creation_to_the_end_by_the_second_or_the_hour(
    whole_hours: bool, hours: str
) -> None:
    """The documents say neither; a user says from creation."""

    async def scene() -> None:
        settings = msgspec.structs.replace(EASY, whole_hours=whole_hours, cancel_s=0.0)
        async with market(settings=settings) as m:
            job = await m.created()
            rate = m.contract.machine.usd_per_gpu_hour
            await asyncio.sleep(5400)
            await m.call("PUT", f"/v1/jobs/{job['uuid']}/cancel", {"reason": "x"})
            await m.job(job["uuid"])
            assert m.world.leaked() == []
            assert m.world.meter_total() == pytest.approx(
                rate * Decimal(hours), rel=Decimal("1e-9")
            )

    run_virtual(scene)


def test_a_time_limit_ends_a_batch_at_its_second_though_nobody_asks() -> None:
    """A BATCH pays for execution: 120 s to start and 60 s to run, less 10 s of boot."""

    async def scene() -> None:
        async with market() as m:
            job = await m.created(
                task="BATCH", max_timeout_run_ms=60_000, max_timeout_start_ms=120_000
            )
            rate = m.contract.machine.usd_per_gpu_hour
            await asyncio.sleep(3600)
            assert (await m.job(job["uuid"]))["status"] == "FAILED"
            assert m.world.meter_total() == pytest.approx(rate * 170 / 3600, rel=Decimal("1e-9"))

    run_virtual(scene)


def test_a_container_that_does_not_start_in_time_fails() -> None:
    """`max_timeout_start_ms`, from the moment a node is there."""

    async def scene() -> None:
        async with market(Rule(kind="stuck", endpoint="create")) as m:
            job = await m.created(max_timeout_start_ms=120_000)
            await asyncio.sleep(119)
            assert (await m.job(job["uuid"]))["status"] == "PREPARING"
            await asyncio.sleep(2)
            assert (await m.job(job["uuid"]))["status"] == "FAILED"

    run_virtual(scene)


def test_an_oversized_node_is_charged_whole_and_the_run_tells_its_rate() -> None:
    """One GPU asked for, several given."""

    async def scene() -> None:
        async with market(Rule(kind="wrong_machine", endpoint="create")) as m:
            job = await m.created()
            await asyncio.sleep(12)
            contract = m.contract
            count = len(contract.gpus)
            assert count > 1
            rate = float(contract.machine.usd_per_gpu_hour * count)
            assert (await m.run_of(job["uuid"]))["pricing"] == {"hourly_rate_usd": rate}
            before = m.world.meter_total()
            await asyncio.sleep(3600)
            assert float(m.world.meter_total() - before) == pytest.approx(rate)

    run_virtual(scene)


def test_a_lost_node_says_running_for_a_while_and_then_fails() -> None:
    """And its reason says so, after the fact."""

    async def scene() -> None:
        async with market(Rule(kind="host_loss", endpoint="create", seconds=5)) as m:
            job = await m.created()
            await asyncio.sleep(20)
            assert (await m.job(job["uuid"]))["status"] == "RUNNING"
            await asyncio.sleep(EASY.vanish_s)
            assert (await m.job(job["uuid"]))["status"] == "FAILING"
            await asyncio.sleep(3)
            ended = await m.job(job["uuid"])
            assert ended["status"] == "FAILED"
            assert "lost" in ended["status_reason"]
            assert m.world.leaked() == []

    run_virtual(scene)


def test_without_credit_nothing_is_made_and_what_runs_fails() -> None:
    """Prepaid credit: 402, and the end of what it paid for."""

    async def scene() -> None:
        async with market(credit="0.01") as m:
            job = await m.created()
            await asyncio.sleep(3600)
            assert (await m.job(job["uuid"]))["status"] in ("FAILING", "FAILED")
            reply = await m.call("POST", "/v1/jobs", await m.order())
            assert reply.status_code == 402

    run_virtual(scene)


# Trouble.


def test_a_stall_strikes_once_and_the_next_call_is_served() -> None:
    """As the control plane was seen to do under load."""

    async def scene() -> None:
        rule = Rule(kind="hang_before", endpoint="list", seconds=60, times=1)
        async with market(rule) as m:
            with pytest.raises(httpx2.ReadError):
                await m.call("GET", "/v1/jobs")
            assert (await m.call("GET", "/v1/jobs")).status_code == 200

    run_virtual(scene)


def test_a_timeout_after_a_create_has_made_the_job() -> None:
    """What a blind second try would double."""

    async def scene() -> None:
        async with market(Rule(kind="hang_after", endpoint="create", seconds=90)) as m:
            body = await m.order()
            with pytest.raises(httpx2.ReadError):
                await m.call("POST", "/v1/jobs", body)
            assert [c.order.label for c in m.world.contracts] == ["a title"]

    run_virtual(scene)


@pytest.mark.parametrize("status", [None, 409])
def test_a_refusal_may_name_the_job_that_was_made_all_the_same(status: int | None) -> None:
    """It bills like any other until somebody reads its id and cancels it."""

    async def scene() -> None:
        rule = Rule(kind="failed_with_id", endpoint="create", status=status)
        async with market(rule) as m:
            reply = await m.call("POST", "/v1/jobs", await m.order())
            assert reply.status_code == (status or 422)
            assert reply.json()["error"]["code"] == "start_failed"
            await asyncio.sleep(60)
            assert (await m.job(reply.json()["data"]["uuid"]))["status"] == "RUNNING"
            assert m.world.meter_total() > 0

    run_virtual(scene)


def test_runs_may_be_listed_for_one_job_only() -> None:
    """Every example of the documents names the job; nobody wrote that it must."""

    async def scene() -> None:
        strict = msgspec.structs.replace(EASY, runs_need_job=True)
        async with market(settings=strict) as m:
            job = await m.created()
            await asyncio.sleep(5)
            assert (await m.call("GET", "/v1/job-runs")).status_code == 400
            assert (await m.run_of(job["uuid"]))["job_uuid"] == job["uuid"]

    run_virtual(scene)


def test_the_purse_of_calls_runs_out_and_refills() -> None:
    """A hundred at once, then one each 0.6 s; the reply says how long to wait."""

    async def scene() -> None:
        async with market(settings=msgspec.structs.replace(EASY, throttle=1.0)) as m:
            statuses = [(await m.call("GET", "/v1/jobs")).status_code for _ in range(101)]
            assert statuses == [200] * 100 + [429]
            refused = await m.call("GET", "/v1/jobs")
            wait_s = float(refused.headers["retry-after"])
            assert 0 < wait_s <= 0.7
            await asyncio.sleep(wait_s)
            assert (await m.call("GET", "/v1/jobs")).status_code == 200

    run_virtual(scene)


def test_an_unknown_flavour_is_an_error_at_the_start() -> None:
    """Not a market that answers 404 to everything."""

    async def scene() -> None:
        with pytest.raises(ValueError, match="flavor"):
            async with market(settings=msgspec.structs.replace(EASY, flavor="both")):
                pass

    run_virtual(scene)
