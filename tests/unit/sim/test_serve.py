"""The simulator on a real port: how it starts, what it tells, and that it leaves nothing behind."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from contextlib import suppress
from decimal import Decimal
from pathlib import Path

import httpx2
import pytest

from gp4u.sim.faults import Faults, Rule
from gp4u.sim.serve import (
    PROVIDERS,
    NoSuchAddressError,
    Simulator,
    open_runtime,
    simulator,
)
from gp4u.sim.vastai.gate import VastSettings

EASY = VastSettings(throttle=0.0, list_lag_s=(0.0, 0.0))

SERVE = """
import asyncio, json
from gp4u.sim.serve import serve
ready = lambda line: print(json.dumps(line), flush=True)
asyncio.run(serve(["vastai"], runtime_name="process", boot_scale=0.02, ready=ready))
"""


def client(sim: Simulator) -> httpx2.AsyncClient:
    """Return a client with the simulator's key."""
    return httpx2.AsyncClient(
        base_url=sim.origin, headers={"Authorization": f"Bearer {sim.api_key}"}, timeout=5
    )


async def cheapest(http: httpx2.AsyncClient) -> int:
    """Return the id of the cheapest rentable offer."""
    query = {"rentable": {"eq": True}, "num_gpus": {"eq": 1}, "disk_space": {"gte": 20}}
    reply = await http.post("/api/v0/bundles/", json=query)
    return int(reply.json()["offers"][0]["id"])


async def test_a_simulator_tells_all_that_a_client_needs() -> None:
    """The ready line is the contract with whoever starts it."""
    async with simulator(seed=5) as sim:
        line = json.loads(json.dumps(sim.ready_line))
        assert set(line) == {"provider", "base_url", "api_key", "env"}
        assert line["base_url"].startswith("http://127.0.0.1:")
        assert line["env"]["VASTAI_BASE_URL"] == line["base_url"]
        assert line["env"]["VASTAI_API_KEY"] == line["api_key"]
        assert line["env"]["GP4U_ALLOW_LOOPBACK"] == "1"
        assert float(line["env"]["VASTAI_SETTLE_S"]) > sim.settings.list_lag_s[1]
        async with client(sim) as http:
            assert (await http.get("/api/v0/users/current/")).json()["credit"] == 25


async def test_render_speaks_the_flavor_that_is_asked_for_and_the_others_heed_none() -> None:
    """Its proposed API answers another path and another key than its market's; and says so."""
    for flavor, path in (("legacy", "/v1/nodes"), ("dispersed", "/v1/compute/offers")):
        async with simulator("render", flavor=flavor) as sim, client(sim) as http:
            assert sim.env["RENDER_API_FLAVOR"] == flavor
            answered = (await http.get(path)).status_code
            assert answered == (200 if flavor == "legacy" else 401), "legacy takes a Bearer key"
    async with simulator("ionet", flavor="legacy") as sim, simulator("ionet") as usual:
        assert sim.env.keys() == usual.env.keys()


async def test_the_waits_it_tells_cover_its_own_faults() -> None:
    """A client that settles sooner than the list lags would be wrong by our fault."""
    rules = [Rule(kind="late_effect", seconds=90), Rule(kind="list_stale", seconds=20)]
    async with simulator(faults=Faults(rules)) as sim:
        assert float(sim.env["VASTAI_SETTLE_S"]) > 20
        assert float(sim.env["VASTAI_LATE_WINDOW_S"]) > 90


async def test_markets_of_one_seed_are_not_one_market_under_two_names() -> None:
    """Four times the same machine would be compared with itself."""
    prices = []
    for provider in PROVIDERS:
        async with simulator(provider, seed=9) as sim:
            prices.append(tuple(m.usd_per_gpu_hour for m in sim.world.machines))
    assert len(set(prices)) == len(PROVIDERS)


async def test_what_was_charged_is_told_by_contract_as_its_customer_knows_it() -> None:
    """Whoever lays the meter beside a ledger has the market's id and their own label."""
    async with simulator(settings=EASY, boot_scale=0.02) as sim, client(sim) as http:
        assert sim.world.charged() == {"total_usd": "0", "contracts": []}
        path = f"/api/v0/asks/{await cheapest(http)}/"
        body = {"image": "busybox", "disk": 10, "label": "mine"}
        made = (await http.put(path, json=body)).json()["new_contract"]
        held = sim.world.charged()["contracts"]
        await http.delete(f"/api/v0/instances/{made}/")
        charged = json.loads(json.dumps(sim.world.charged()))
    (row,) = charged["contracts"]
    assert (row["id"], row["label"], row["open"]) == (str(made), "mine", False)
    assert isinstance(held, list)
    assert held[0]["open"] is True
    assert Decimal(row["usd"]) == Decimal(charged["total_usd"]) > 0


async def test_one_seed_makes_one_market_on_the_wire() -> None:
    """Repeatable from the command line."""
    seen = []
    for _ in range(2):
        async with simulator(seed=9) as sim, client(sim) as http:
            query = {"order": [["dph_total", "asc"]]}
            offers = (await http.post("/api/v0/bundles/", json=query)).json()["offers"]
            seen.append([(offer["id"], offer["dph_total"]) for offer in offers])
    assert seen[0] == seen[1] != []


@pytest.mark.parametrize("kind", ["reset_before", "reset_after", "cut_body"])
async def test_a_fault_kills_a_real_connection(kind: str) -> None:
    """Clients must meet what a network does, not a tidy error."""
    faults = Faults([Rule(kind=kind, endpoint="create", times=1)])
    async with simulator(settings=EASY, faults=faults) as sim, client(sim) as http:
        path = f"/api/v0/asks/{await cheapest(http)}/"
        with pytest.raises(httpx2.TransportError):
            await http.put(path, json={"image": "busybox", "disk": 10})
        assert len(sim.world.leaked()) == (0 if kind == "reset_before" else 1)
        assert (await http.get("/api/v1/instances/")).status_code == 200


async def test_the_world_moves_while_nobody_asks() -> None:
    """Boots and bills do not wait for a request."""
    async with simulator(settings=EASY, boot_scale=0.02) as sim, client(sim) as http:
        path = f"/api/v0/asks/{await cheapest(http)}/"
        await http.put(path, json={"image": "busybox", "disk": 10})
        (contract,) = sim.world.leaked()
        async with asyncio.timeout(5):
            while contract.actual != "running":  # noqa: ASYNC110 -- the world has no event to wait on
                await asyncio.sleep(0.01)


async def test_a_rented_process_answers_on_its_port_and_ends_with_its_contract() -> None:
    """A real program behind a real address, and its output as logs."""
    async with (
        simulator(settings=EASY, boot_scale=0.02, runtime_name="process") as sim,
        client(sim) as http,
    ):
        path = f"/api/v0/asks/{await cheapest(http)}/"
        body = {"image": "busybox", "disk": 10, "env": {"-p 8000:8000": "1"}, "runtype": "args"}
        instance = (await http.put(path, json=body)).json()["new_contract"]
        async with asyncio.timeout(10):
            while True:
                (row,) = (await http.get("/api/v1/instances/")).json()["instances"]
                if row["ports"]:
                    break
                await asyncio.sleep(0.02)
        port = int(row["ports"]["8000/tcp"][0]["HostPort"])
        address = f"http://{row['public_ipaddr'].strip()}:{port}/health"
        async with asyncio.timeout(10):
            while not listens(port):  # noqa: ASYNC110 -- another process's start has no event here
                await asyncio.sleep(0.02)
        assert (await http.get(address)).status_code == 200
        assert (await http.delete(f"/api/v0/instances/{instance}/")).json()["success"] is True
        async with asyncio.timeout(10):
            while listens(port):  # noqa: ASYNC110 -- another process's end has no event here
                await asyncio.sleep(0.02)


def listens(port: int) -> bool:
    """Whether something accepts on the loopback port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


async def test_an_error_in_the_body_comes_out_as_itself() -> None:
    """Not wrapped into a group: callers catch what they raised."""
    with pytest.raises(ZeroDivisionError):
        async with simulator():
            raise ZeroDivisionError


async def test_what_it_cannot_do_is_refused_by_name() -> None:
    """Before anything listens."""
    with pytest.raises(ValueError, match="nowhere"):
        async with simulator("nowhere"):
            pass
    with pytest.raises(ValueError, match="thin air"):
        async with simulator(runtime_name="thin air"):
            pass


async def test_auto_always_finds_a_runtime() -> None:
    """The demo must run where no container engine is."""
    from random import Random

    runtime = await open_runtime("auto", Random(1))
    assert runtime.name in ("container", "process")
    await runtime.aclose()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_serve_and_all_that_it_started(number: signal.Signals) -> None:
    """Nothing may outlive it: no process, no port, no traceback."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", SERVE),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3] / "src")},
    )
    assert process.stdout is not None
    assert process.stderr is not None
    async with asyncio.timeout(20):
        line = json.loads(await process.stdout.readline())
        headers = {"Authorization": f"Bearer {line['api_key']}"}
        base = line["base_url"].removesuffix("/api/v0")
        async with httpx2.AsyncClient(base_url=base, headers=headers) as http:
            path = f"/api/v0/asks/{await cheapest(http)}/"
            await http.put(path, json={"image": "b", "disk": 10, "env": {"-p 8000:8000": "1"}})
            ports: dict[str, list[dict[str, str]]] = {}
            while not ports:
                await asyncio.sleep(1.0)  # the simulator's own throttle holds here
                (row,) = (await http.get("/api/v1/instances/")).json()["instances"] or [
                    {"ports": {}}
                ]
                ports = row["ports"]
        port = int(ports["8000/tcp"][0]["HostPort"])
        process.send_signal(number)
        complaints = await process.stderr.read()
        assert await process.wait() == 0
    assert complaints == b""
    assert not listens(port)
    assert not listens(int(base.rsplit(":", 1)[1]))


async def test_an_address_of_this_machine_can_stand_for_the_public_one() -> None:
    """Kubernetes takes no loopback address for an endpoint; what is rented must be elsewhere."""
    async with simulator(
        runtime_name="process", boot_scale=0.02, settings=EASY, public_ip="127.0.0.9"
    ) as sim:
        async with client(sim) as http:
            body = {"image": "x", "disk": 16, "env": {"-p 8000:8000": "1"}}
            reply = await http.put(f"/api/v0/asks/{await cheapest(http)}/", json=body)
            number = reply.json()["new_contract"]
            async with asyncio.timeout(20):
                row: dict[str, object] = {}
                while not row.get("ports"):
                    await asyncio.sleep(0.02)
                    row = (await http.get(f"/api/v0/instances/{number}/")).json()["instances"]
        assert str(row["public_ipaddr"]).strip() == "127.0.0.9"
        (contract,) = sim.world.leaked()
        port = contract.ports[8000, "tcp"]
        async with httpx2.AsyncClient(trust_env=False) as visitor, asyncio.timeout(20):
            while True:
                with suppress(httpx2.TransportError):
                    assert (await visitor.get(f"http://127.0.0.9:{port}/")).is_success
                    break
                await asyncio.sleep(0.02)
            with pytest.raises(httpx2.TransportError):
                await visitor.get(f"http://127.0.0.1:{port}/")


@pytest.mark.parametrize("address", ["203.0.113.200", "nowhere"])
async def test_an_address_that_is_not_this_machines_is_refused_at_once(address: str) -> None:
    """Else every instance would fail for a reason that nobody looks for there."""
    with pytest.raises(NoSuchAddressError, match="not an address of this machine"):
        async with simulator(public_ip=address):
            pass
