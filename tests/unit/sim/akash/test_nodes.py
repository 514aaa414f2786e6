"""The simulated nodes: pages, versions, lag, and one query over RPC."""

from __future__ import annotations

import asyncio
import base64
from datetime import datetime
from typing import Any

import httpx2
import pytest

from tests.unit.sim.akash.dialect import Sim, akash
from tests.virtual_loop import run_virtual

PROVIDERS = "/akash/provider/v1beta4/providers"
DEPLOYMENTS = "/akash/deployment/v1beta4/deployments/list"


@pytest.mark.parametrize(
    "path",
    [
        "/rest/akash/market/v1beta3/providers",
        "/rest/akash/deployment/v1beta3/deployments/list",
        "/rest/akash/provider/v1beta4/nothing",
        "/rest2/akash/cosmos/v1/x",
    ],
)
def test_versions_that_are_gone_are_501(path: str) -> None:
    """With the gateway's own body; a client must not take it for an outage."""

    async def tale() -> None:
        async with akash(key="") as sim:
            reply = await sim.client.get(path)
            assert reply.status_code == 501
            assert reply.json() == {"code": 12, "message": "Not Implemented", "details": []}

    run_virtual(tale)


def test_pages_are_walked_by_an_opaque_key() -> None:
    """Every row once, and an empty key at the end."""

    async def tale() -> None:
        async with akash(key="") as sim:
            whole = (await sim.get(f"/rest{PROVIDERS}"))["providers"]
            seen: list[Any] = []
            params = {"pagination.limit": "7"}
            while True:
                page = await sim.get(f"/rest{PROVIDERS}", **params)
                seen += page["providers"]
                key = page["pagination"]["next_key"]
                if not key:
                    break
                params["pagination.key"] = key
            assert seen == whole
            assert len(seen) > 20

    run_virtual(tale)


def test_totals_of_the_chains_own_lists_are_of_a_page() -> None:
    """And an offset without a state is refused."""

    async def tale() -> None:
        async with akash() as sim:
            for _ in range(3):
                await sim.create()
            page = await sim.get(f"/rest{DEPLOYMENTS}", **{"pagination.limit": "2"})
            assert page["pagination"]["total"] == "2"
            assert page["pagination"]["next_key"]
            reply = await sim.client.get(f"/rest{DEPLOYMENTS}", params={"pagination.offset": "1"})
            assert reply.status_code == 400
            params = {"pagination.offset": "1", "filters.state": "active"}
            assert len((await sim.get(f"/rest{DEPLOYMENTS}", **params))["deployments"]) == 2

    run_virtual(tale)


def test_groups_have_their_names_on_the_chain() -> None:
    """The one place where our key can be read."""

    async def tale() -> None:
        async with akash() as sim:
            deployment = await sim.create()
            params = {"filters.owner": sim.market.account, "filters.state": "active"}
            (row,) = (await sim.get(f"/rest{DEPLOYMENTS}", **params))["deployments"]
            assert row["deployment"]["id"]["dseq"] == deployment.dseq
            assert row["groups"][0]["group_spec"]["name"] == "gp4u-key"
            strange = {"filters.owner": "akash1other"}
            assert (await sim.get(f"/rest{DEPLOYMENTS}", **strange))["deployments"] == []
            info = await sim.get(
                "/rest/akash/deployment/v1beta4/deployments/info",
                **{"id.owner": sim.market.account, "id.dseq": deployment.dseq},
            )
            assert info == row
            gone = await sim.client.get(
                "/rest/akash/deployment/v1beta4/deployments/info",
                params={"id.owner": sim.market.account, "id.dseq": "1"},
            )
            assert (gone.status_code, gone.json()["code"]) == (404, 5)

    run_virtual(tale)


async def shown(sim: Sim, node: str) -> int:
    """Return how many active deployments a node shows."""
    page = await sim.get(f"{node}{DEPLOYMENTS}", **{"filters.state": "active"})
    return len(page["deployments"])


def test_the_second_node_is_behind_the_first() -> None:
    """What is new comes late there, and what is closed goes late."""

    async def tale() -> None:
        async with akash() as sim:
            deployment = await sim.create()
            assert (await shown(sim, "/rest"), await shown(sim, "/rest2")) == (1, 0)
            await asyncio.sleep(11)
            assert await shown(sim, "/rest2") == 1
            await sim.client.delete(f"/v1/deployments/{deployment.dseq}")
            assert (await shown(sim, "/rest"), await shown(sim, "/rest2")) == (0, 1)
            await asyncio.sleep(11)
            assert await shown(sim, "/rest2") == 0

    run_virtual(tale)


def test_orders_bids_and_leases_can_be_read_there_too() -> None:
    """As rows of their own, filtered by state."""

    async def tale() -> None:
        async with akash() as sim:
            deployment = await sim.leased()
            base = "/rest/akash/market/v1beta5"
            (order,) = (await sim.get(f"{base}/orders/list"))["orders"]
            assert (order["id"]["dseq"], order["state"]) == (deployment.dseq, "active")
            lost = (await sim.get(f"{base}/bids/list", **{"filters.state": "lost"}))["bids"]
            assert lost
            assert {row["bid"]["state"] for row in lost} == {"lost"}
            (lease,) = (await sim.get(f"{base}/leases/list"))["leases"]
            assert lease["lease"]["id"]["provider"] == sim.host(deployment).owner

    run_virtual(tale)


async def query(sim: Sim, path: str, data: str) -> httpx2.Response:
    """Ask a node over RPC."""
    params = {"path": path, "data": data, "height": "0", "prove": False}
    body = {"jsonrpc": "2.0", "id": 1, "method": "abci_query", "params": params}
    return await sim.client.post("/rpc", json=body)


def test_providers_can_be_read_over_rpc() -> None:
    """In protobuf: the first field of the first provider is its address."""

    async def tale() -> None:
        async with akash(key="") as sim:
            reply = await query(sim, "/akash.provider.v1beta4.Query/Providers", "0a021805")
            response = reply.json()["result"]["response"]
            value = base64.b64decode(response["value"])
            owners = list(sim.market.hosts)
            assert [owner.encode() in value for owner in owners[:6]] == [True] * 5 + [False]
            assert value[0] == 0x0A

    run_virtual(tale)


@pytest.mark.parametrize(
    ("path", "data", "code"),
    [
        ("/akash.provider.v1beta4.Query/Providers", "zz", 3),
        ("/akash.provider.v1beta4.Query/Providers", "0a7f", 3),
        ("/akash.market.v1beta3.Query/Bids", "", 6),
    ],
)
def test_a_query_that_fails_says_so_in_its_code(path: str, data: str, code: int) -> None:
    """HTTP says 200 all the same."""

    async def tale() -> None:
        async with akash(key="") as sim:
            reply = await query(sim, path, data)
            assert reply.status_code == 200
            assert reply.json()["result"]["response"]["code"] == code

    run_virtual(tale)


def test_the_height_grows_with_time() -> None:
    """One block every six seconds."""

    async def tale() -> None:
        async with akash(key="") as sim:
            before = int(
                (await sim.get("/rpc/status"))["result"]["sync_info"]["latest_block_height"]
            )
            await asyncio.sleep(60)
            after = int(
                (await sim.get("/rpc/status"))["result"]["sync_info"]["latest_block_height"]
            )
            assert after - before == 10

    run_virtual(tale)


def test_the_newest_block_has_the_time_at_which_it_was_made() -> None:
    """From height and time together the time of any other height follows."""

    async def tale() -> None:
        async with akash(key="") as sim:
            await asyncio.sleep(20)
            told = (await sim.get("/rpc/status"))["result"]["sync_info"]
            made_at = datetime.fromisoformat(told["latest_block_time"]).timestamp()
            age = sim.world.epoch(sim.world.now_s) - made_at
            assert 0 <= age < sim.market.settings.block_time_s
            assert age == pytest.approx(20 % sim.market.settings.block_time_s, abs=1e-3)

    run_virtual(tale)


def test_a_group_and_an_escrow_can_be_read_alone() -> None:
    """The same as in the list of deployments."""

    async def tale() -> None:
        async with akash() as sim:
            deployment = await sim.create()
            (whole,) = (await sim.get(f"/rest{DEPLOYMENTS}"))["deployments"]
            where = {"id.owner": sim.market.account, "id.dseq": deployment.dseq}
            path = "/rest/akash/deployment/v1beta4/groups/info"
            assert await sim.get(path, **where, **{"id.gseq": "1"}) == {"group": whole["groups"][0]}
            none = await sim.client.get(path, params={**where, "id.gseq": "2"})
            assert none.status_code == 404
            accounts = (await sim.get("/rest/akash/escrow/v1/types/accounts"))["accounts"]
            assert accounts == [whole["escrow_account"]]

    run_virtual(tale)
