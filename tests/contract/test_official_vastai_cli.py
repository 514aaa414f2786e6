"""The official `vastai` command line against our simulator: what it sends and prints must fit.

The simulator is written from the same documents as our adapter, by other hands; the vendor's own
program is the third opinion. It lives in `.venv-vastai`, which `setup-vastai-cli.sh` makes.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from gp4u.sim.faults import Faults, Rule
from gp4u.sim.serve import Simulator, simulator
from gp4u.sim.vastai.gate import VastSettings

PROGRAM = Path(__file__).parents[2] / ".venv-vastai" / "bin" / "vastai"

Cli = Callable[..., Awaitable[str]]
KEY = "official-cli-test-key"
EASY = VastSettings(api_key=KEY, throttle=0.0, list_lag_s=(0.0, 0.0), log_delay_s=0.05)


@pytest.fixture(scope="module", autouse=True)
def installed() -> None:
    """Fail by name where the program is missing: a contract not tried holds for nobody."""
    if not PROGRAM.exists():
        pytest.fail(f"{PROGRAM} is missing; tests/contract/setup-vastai-cli.sh installs it")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One fresh home for the program's own files."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture
async def sim() -> AsyncIterator[Simulator]:
    """A patient simulator: no throttle, no lag, boots in a fifth of a second."""
    async with simulator(settings=EASY, boot_scale=0.05) as running:
        yield running


@pytest.fixture
def cli(sim: Simulator, home: Path) -> Cli:
    """Run the program against the simulator."""
    return program(sim.origin, home)


def program(origin: str, home: Path, key: str = KEY) -> Cli:
    """Return a function that runs the program and returns all it printed."""

    async def run(*words: str) -> str:
        process = await asyncio.create_subprocess_exec(
            PROGRAM,
            *words,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            stdin=asyncio.subprocess.DEVNULL,
            env={
                "VAST_URL": origin,
                "VAST_API_KEY": key,
                "HOME": str(home),
                "XDG_CONFIG_HOME": str(home),
                "XDG_CACHE_HOME": str(home),
                "NO_COLOR": "1",
                "COLUMNS": "250",
            },
        )
        out, _ = await process.communicate()
        return re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", out.decode())

    return run


async def rows(cli: Cli, *words: str) -> list[dict[str, Any]]:
    """Run a command with `--raw` and return the list it printed."""
    found = json.loads(await cli(*words, "--raw"))
    assert isinstance(found, list)
    return found


async def rented(cli: Cli, *more: str) -> int:
    """Rent the cheapest single RTX 4090 and return the instance's id."""
    offers = await rows(cli, "search", "offers", "gpu_name=RTX_4090 num_gpus=1", "-o", "dph_total")
    reply = json.loads(
        await cli(
            *("create", "instance", str(offers[0]["id"]), "--image", "busybox", "--disk", "10"),
            *(*more, "--raw"),
        )
    )
    assert reply["success"] is True
    return int(reply["new_contract"])


async def running(sim: Simulator, instance: int) -> None:
    """Wait on the world, not on a clock, until the instance runs."""
    contract = sim.world.contract(instance)
    assert contract is not None
    async with asyncio.timeout(10):
        while contract.actual != "running":  # noqa: ASYNC110 -- the world has no event to wait on
            await asyncio.sleep(0.02)


async def test_a_search_with_many_operators_returns_only_rows_that_satisfy_them(cli: Cli) -> None:
    """The program sends numbers as text and GB as MB; a server that compares raw finds nothing."""
    wanted = (
        "gpu_name=RTX_4090 num_gpus=1 reliability>0.9 inet_down>=200 cuda_max_good>=12.1 "
        "geolocation in [US,CA] gpu_ram>=20 disk_space>=50 direct_port_count>=4"
    )
    found = await rows(cli, "search", "offers", wanted)
    assert len(found) >= 3
    for row in found:
        assert row["gpu_name"] == "RTX 4090"
        assert row["num_gpus"] == 1
        assert row["reliability"] > 0.9
        assert row["inet_down"] >= 200
        assert row["cuda_max_good"] >= 12.1
        assert row["geolocation"].rsplit(",", 1)[-1].strip() in ("US", "CA")
        assert row["gpu_ram"] >= 20_000
        assert row["disk_space"] >= 50
        assert row["direct_port_count"] >= 4
        assert row["verification"] == "verified"
        assert row["rentable"] is True
    scores = [row["score"] for row in found if row["score"] is not None]
    assert scores == sorted(scores, reverse=True)


async def test_derived_fields_of_a_search_are_translated(cli: Cli) -> None:
    """Driver, duration and datacenter are sent under names that no row carries."""
    wanted = (
        "driver_version>=535.86.05 duration>3 datacenter=true gpu_name in [RTX_4090,A100_SXM4] "
        "cpu_ram>=64 static_ip=true"
    )
    found = await rows(cli, "search", "offers", wanted, "-o", "dph_total-")
    assert found
    for row in found:
        assert row["driver_vers"] >= 535_086_005
        assert row["duration"] > 3 * 86_400
        assert row["hosting_type"] == 1
        assert row["gpu_name"] in ("RTX 4090", "A100 SXM4")
        assert row["cpu_ram"] >= 64_000
        assert row["static_ip"] is True
    prices = [row["dph_total"] for row in found]
    assert prices == sorted(prices, reverse=True)


async def test_without_defaults_and_with_nin_a_search_shows_the_rest_of_the_market(
    cli: Cli,
) -> None:
    """`-n` drops every default filter, and `nin` travels as `notin` with text numbers."""
    found = await rows(cli, "search", "offers", "-n", "num_gpus nin [1,2]")
    assert found
    assert all(row["num_gpus"] > 2 for row in found)
    assert len(await rows(cli, "search", "offers", "-n", "num_gpus>=1")) == 64


async def test_an_interruptible_search_is_priced_by_the_floor_and_the_disk(cli: Cli) -> None:
    """A bid search shows `min_bid` as the GPU part; storage for the disk comes on top."""
    found = await rows(
        cli,
        *("search", "offers", "--interruptible", "gpu_name!=RTX_4090", "-o", "dph_total"),
        *("--storage", "40", "--limit", "3"),
    )
    assert len(found) == 3
    for row in found:
        assert row["is_bid"] is True
        assert row["gpu_name"] != "RTX 4090"
        assert row["dph_base"] == row["min_bid"]
        assert row["dph_total"] == pytest.approx(row["dph_base"] + row["storage_cost"] * 40 / 720)


async def test_the_new_search_path_finds_the_same_offers(cli: Cli) -> None:
    """`--new` wraps the same object into another call."""
    old = await rows(cli, "search", "offers", "gpu_name=RTX_4090")
    new = await rows(cli, "search", "offers", "--new", "gpu_name=RTX_4090")
    assert [row["id"] for row in old] == [row["id"] for row in new]
    assert old


async def test_an_instance_is_created_shown_labelled_logged_and_destroyed(
    cli: Cli, sim: Simulator
) -> None:
    """The whole life of a rental, in the vendor's own words."""
    env = "-e A=1 -p 8000:8000 -p 9000:9000/udp"
    instance = await rented(cli, "--label", "my-label", "--env", env, "--ssh", "--direct")
    await running(sim, instance)

    (row,) = await rows(cli, "show", "instances", "--label", "my-label")
    assert row["id"] == instance
    assert row["actual_status"] == "running"
    assert set(row["ports"]) == {"22/tcp", "8000/tcp", "9000/udp"}
    assert row["ports"]["8000/tcp"][0]["HostPort"].isdigit()
    assert dict(row["extra_env"])["A"] == "1"
    assert row["public_ipaddr"].strip() == "127.0.0.1"

    table = await cli("show", "instances")
    assert "my-label" in table
    assert "running" in table
    one = json.loads(await cli("show", "instance", str(instance), "--raw"))
    assert one["id"] == instance
    assert str(instance) in await cli("show", "instance", str(instance))

    assert "new label" in await cli("label", "instance", str(instance), "new label")
    contract = sim.world.contract(instance)
    assert contract is not None
    assert contract.label == "new label"
    assert "8000/tcp" in await cli("logs", str(instance), "--tail", "50")

    assert "destroying instance" in await cli("destroy", "instance", str(instance), "-y")
    assert sim.world.leaked() == []
    assert "does not exist" in await cli("destroy", "instance", str(instance), "-y")


async def test_stop_start_reboot_and_recycle_change_the_contract(cli: Cli, sim: Simulator) -> None:
    """Each of them is a call of its own on the same path family."""
    instance = await rented(cli)
    await running(sim, instance)
    contract = sim.world.contract(instance)
    assert contract is not None
    assert "stopping" in await cli("stop", "instance", str(instance))
    assert (contract.intended, contract.cur, contract.up) == ("stopped", "stopped", False)
    assert "starting" in await cli("start", "instance", str(instance))
    await running(sim, instance)
    assert "Rebooting" in await cli("reboot", "instance", str(instance))
    await running(sim, instance)
    assert "Recycling" in await cli("recycle", "instance", str(instance))
    await running(sim, instance)
    assert sim.world.leaked() == [contract]


async def test_a_bid_is_placed_and_raised(cli: Cli, sim: Simulator) -> None:
    """Interruptible rent: the price in the body makes it one, and only then can it be changed."""
    instance = await rented(cli, "--bid_price", "0.9")
    await running(sim, instance)
    contract = sim.world.contract(instance)
    assert contract is not None
    assert str(contract.gpu_usd_per_hour) == "0.9"
    await cli("change", "bid", str(instance), "--price", "1.1")
    assert str(contract.gpu_usd_per_hour) == "1.1"


async def test_launch_rents_the_first_hit_of_its_own_search(cli: Cli, sim: Simulator) -> None:
    """Search and rent in one call, with regions spelled by the program."""
    reply = json.loads(
        await cli(
            *("launch", "instance", "-g", "RTX_3090", "-n", "1", "-i", "img:latest"),
            *("-r", "North_America", "-d", "20", "--raw"),
        )
    )
    (contract,) = sim.world.leaked()
    assert contract.id == reply["new_contract"]
    assert contract.machine.gpu.name == "RTX 3090"


async def test_the_account_and_the_charges_are_told(cli: Cli, sim: Simulator) -> None:
    """Credit falls by what the meter says, and each contract has its row."""
    instance = await rented(cli)
    await running(sim, instance)
    await cli("destroy", "instance", str(instance), "-y")
    user = json.loads(await cli("show", "user", "--raw"))
    assert user["credit"] == pytest.approx(float(sim.world.credit_usd))
    assert user["credit"] < 25
    charges = await cli(
        *("show", "invoices-v1", "--charges", "--start-date", "2020-01-01"),
        *("--end-date", "2099-01-01", "--raw"),
    )
    assert f"instance-{instance}" in charges


async def test_a_wrong_key_is_told_as_such(sim: Simulator, home: Path) -> None:
    """It answers 404, which must not read as an absent thing."""
    said = await program(sim.origin, home, key="wrong")("show", "user")
    assert "Invalid user key" in said


async def test_a_taken_offer_is_told_as_gone(cli: Cli, sim: Simulator) -> None:
    """A second rent of one offer fails, and nothing is made."""
    instance = await rented(cli)
    contract = sim.world.contract(instance)
    assert contract is not None
    said = await cli("create", "instance", str(contract.offer_id), "--image", "busybox")
    assert "no longer available" in said
    assert sim.world.leaked() == [contract]


async def test_a_throttled_call_says_so(home: Path) -> None:
    """429 as JSON with `detail`: the program retries three times and then reports it."""
    faults = Faults([Rule(kind="throttle", endpoint="user", shape="detail")])
    async with simulator(settings=EASY, faults=faults) as sim:
        said = await program(sim.origin, home)("show", "user")
        assert "429" in said
        assert sim.faults.calls("user") >= 3


async def test_the_program_sends_a_rent_again_after_a_503_that_rented(home: Path) -> None:
    """Its retry covers the rent call: the danger our adapter must not share, shown on the meter."""
    faults = Faults([Rule(kind="status_after", endpoint="create", status=503)])
    async with simulator(settings=EASY, faults=faults) as sim:
        cli = program(sim.origin, home)
        offers = await rows(cli, "search", "offers", "gpu_name=RTX_4090", "-o", "dph_total")
        said = await cli("create", "instance", str(offers[0]["id"]), "--image", "busybox")
        assert "no longer available" in said
        assert sim.faults.calls("create") == 2
        assert len(sim.world.leaked()) == 1
