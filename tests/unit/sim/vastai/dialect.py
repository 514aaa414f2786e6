"""A simulated Vast.ai in process, for tests of the dialect: a client, its world and its faults."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from random import Random
from typing import Any

import httpx2

from gp4u.sim.contracts import Contract
from gp4u.sim.faults import Faults, Rule
from gp4u.sim.inprocess import InProcessTransport
from gp4u.sim.runtime import pretend
from gp4u.sim.vastai.app import vast_app
from gp4u.sim.vastai.gate import VastSettings
from gp4u.sim.world import World

KEY = "test-key"
EASY = VastSettings(api_key=KEY, throttle=0.0, list_lag_s=(0.0, 0.0))
"""No throttle and no lag, so that a test shows one thing at a time."""


class Market:
    """The client's side, and the truth behind it."""

    def __init__(self, client: httpx2.AsyncClient, world: World, faults: Faults) -> None:
        self.client, self.world, self.faults = client, world, faults

    async def call(self, method: str, path: str, **more: Any) -> httpx2.Response:
        """Send a call below the origin."""
        return await self.client.request(method, path, **more)

    async def search(self, **query: Any) -> list[dict[str, Any]]:
        """Return the offers a query finds."""
        reply = await self.call("POST", "/api/v0/bundles/", json=query)
        assert reply.status_code == 200, reply.text
        offers: list[dict[str, Any]] = reply.json()["offers"]
        return offers

    async def single(self) -> int:
        """Return the id of the cheapest rentable offer of one GPU with room for a disk."""
        offers = await self.search(
            num_gpus={"eq": 1},
            rentable={"eq": True},
            disk_space={"gte": 50},
            min_bid={"gt": 0},
            order=[["dph_total", "asc"]],
        )
        return int(offers[0]["id"])

    async def create(self, offer_id: int | None = None, **body: Any) -> httpx2.Response:
        """Rent an offer with the least a body needs."""
        offer_id = await self.single() if offer_id is None else offer_id
        full = {"image": "busybox", "disk": 10, **body}
        return await self.call("PUT", f"/api/v0/asks/{offer_id}/", json=full)

    async def rented(self, **body: Any) -> Contract:
        """Rent a single GPU and return the contract behind the answer."""
        reply = await self.create(**body)
        assert reply.status_code == 200, reply.text
        contract = self.world.contract(reply.json()["new_contract"])
        assert contract is not None
        return contract

    async def running(self, **body: Any) -> Contract:
        """Rent, and let time pass until it runs."""
        contract = await self.rented(**body)
        await asyncio.sleep(20)
        await self.world.advance()
        assert contract.actual == "running"
        return contract

    async def listed(self, **params: str) -> dict[str, Any]:
        """Return one page of the list."""
        reply = await self.call("GET", "/api/v1/instances/", params=params)
        assert reply.status_code == 200, reply.text
        page: dict[str, Any] = reply.json()
        return page


@asynccontextmanager
async def market(
    *rules: Rule,
    settings: VastSettings = EASY,
    offers: int = 60,
    credit: str = "25",
    key: str = KEY,
    **world_options: Any,
) -> AsyncIterator[Market]:
    """Open a market on the running loop's clock; boots take ten seconds."""
    world = World(
        asyncio.get_running_loop().time,
        Random(1),
        runtime=pretend(Random(2)),
        offers=offers,
        boot_s=(10.0, 10.0),
        credit_usd=Decimal(credit),
        **world_options,
    )
    faults = Faults(rules, Random(3))
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with httpx2.AsyncClient(
        transport=InProcessTransport(vast_app(world, faults, settings)),
        base_url="http://sim.test",
        headers=headers,
    ) as client:
        yield Market(client, world, faults)


async def settle() -> None:
    """Let anything boot that can."""
    await asyncio.sleep(30)


async def fill(m: Market, count: int) -> list[int]:
    """Rent that many offers and return the instances' ids."""
    offers = await m.search(num_gpus={"eq": 1}, rentable={"eq": True}, disk_space={"gte": 10})
    assert len(offers) >= count
    replies = [
        await m.create(offer["id"], label=f"l{n % 2}") for n, offer in enumerate(offers[:count])
    ]
    return [reply.json()["new_contract"] for reply in replies]
