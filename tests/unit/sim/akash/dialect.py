"""A simulated Akash in process, for tests of the dialect: a client, the market, its faults."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from random import Random
from typing import Any

import httpx2

from gp4u.sim.akash.app import akash_app
from gp4u.sim.akash.market import AkashMarket, AkashSettings, Deployment, Host
from gp4u.sim.faults import Faults, Rule
from gp4u.sim.inprocess import InProcessTransport
from gp4u.sim.runtime import pretend
from gp4u.sim.world import World

KEY = "test-key"
EASY = AkashSettings(
    api_key=KEY,
    list_lag_s=(0.0, 0.0),
    bid_delay_s=(5.0, 10.0),
    status_delay_s=(2.0, 2.0),
    replica_lag_s=10.0,
)
SDL = """
version: "2.0"
services:
  app:
    image: busybox:1.36
    args: ["serve"]
    env: ["A=b"]
    expose:
      - {port: 8000, as: 8000, proto: tcp, to: [{global: true}]}
profiles:
  compute:
    app:
      resources:
        cpu: {units: 2}
        memory: {size: 4Gi}
        storage: [{size: 10Gi}]
        gpu: {units: 1, attributes: {vendor: {nvidia: [{model: rtx3090}]}}}
  placement:
    gp4u-key: {pricing: {app: {denom: uact, amount: 2000}}}
deployment:
  app: {gp4u-key: {profile: app, count: 1}}
"""


class Sim:
    """The client's side, and the truth behind it."""

    def __init__(
        self, client: httpx2.AsyncClient, world: World, market: AkashMarket, faults: Faults
    ) -> None:
        self.client, self.world, self.market, self.faults = client, world, market, faults

    async def get(self, path: str, **params: str) -> Any:
        """Read something that must be there."""
        reply = await self.client.get(path, params=params)
        assert reply.status_code == 200, reply.text
        return reply.json()

    async def create(self, sdl: str = SDL, deposit: float = 5) -> Deployment:
        """Publish a deployment and return what became of it."""
        body = {"data": {"sdl": sdl, "deposit": deposit}}
        reply = await self.client.post("/v1/deployments", json=body)
        assert reply.status_code == 201, reply.text
        return self.market.deployments[reply.json()["data"]["dseq"]]

    async def bids(self, deployment: Deployment) -> list[dict[str, Any]]:
        """Return the bids that have come in."""
        rows = (await self.get("/v1/bids", dseq=deployment.dseq))["data"]
        return [row["bid"] for row in rows]

    async def lease(self, deployment: Deployment, provider: str) -> httpx2.Response:
        """Accept the bid of a host."""
        lease = {"dseq": deployment.dseq, "gseq": 1, "oseq": 1, "provider": provider}
        return await self.client.post("/v1/leases", json={"manifest": "[]", "leases": [lease]})

    async def leased(self, sdl: str = SDL, deposit: float = 5) -> Deployment:
        """Publish a deployment and accept its first bid."""
        deployment = await self.create(sdl, deposit)
        await asyncio.sleep(15)
        bid = (await self.bids(deployment))[0]
        reply = await self.lease(deployment, bid["id"]["provider"])
        assert reply.status_code == 200, reply.text
        return deployment

    async def running(self, sdl: str = SDL) -> Deployment:
        """The same, once everything is up."""
        deployment = await self.leased(sdl)
        await asyncio.sleep(30)
        await self.world.advance()
        await self.market.step()
        return deployment

    async def token(self, **leases: Any) -> str:
        """Return a token for gateways."""
        body = {"data": {"ttl": 60, "leases": leases or {"access": "full"}}}
        reply = await self.client.post("/v1/create-jwt-token", json=body)
        assert reply.status_code == 201, reply.text
        token: str = reply.json()["data"]["token"]
        return token

    def host(self, deployment: Deployment) -> Host:
        """Return the host of a deployment's lease."""
        return deployment.leases[0].bid.host


@asynccontextmanager
async def akash(
    *rules: Rule, settings: AkashSettings = EASY, key: str = KEY, credit: str = "100"
) -> AsyncIterator[Sim]:
    """Open a market on the running loop's clock; boots take ten seconds."""
    world = World(
        asyncio.get_running_loop().time,
        Random(1),
        runtime=pretend(Random(2)),
        offers=60,
        boot_s=(10.0, 10.0),
        credit_usd=Decimal(credit),
    )
    faults = Faults(rules, Random(3))
    app = akash_app(world, faults, settings)
    async with httpx2.AsyncClient(
        transport=InProcessTransport(app),
        base_url="http://sim.test",
        headers={"x-api-key": key} if key else {},
    ) as client:
        yield Sim(client, world, app.state.market, faults)
