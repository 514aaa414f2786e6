"""A simulated Dispersed in process, with a client that signs by hand; for tests of the dialect."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import quote

import httpx2

from gp4u.sim.contracts import Contract
from gp4u.sim.faults import Faults, Rule
from gp4u.sim.inprocess import InProcessTransport
from gp4u.sim.render.app import render_app
from gp4u.sim.render.gate import RenderSettings
from gp4u.sim.runtime import pretend
from gp4u.sim.world import World
from tests.virtual_loop import EPOCH

PAYLOADS = Path(__file__).parents[3] / "payloads" / "render"
VECTORS = json.loads((PAYLOADS / "dispersed-signing-vectors.json").read_text())
PUBLIC, SECRET = VECTORS["public_key"], VECTORS["secret_key"]
EASY = RenderSettings(
    api_key=PUBLIC,
    api_secret=SECRET,
    throttle=0.0,
    list_lag_s=(0.0, 0.0),
    address_lag_s=(0.0, 0.0),
)


class Market:
    """A client that signs by hand, and the truth behind."""

    def __init__(self, client: httpx2.AsyncClient, world: World, faults: Faults) -> None:
        self.client, self.world, self.faults = client, world, faults
        self._count = 0

    async def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        ahead_s: float = 0.0,
        blank: str = "%20",
    ) -> httpx2.Response:
        """Send a signed call; `headers` replace what was signed."""
        raw = b""
        if body is not None:
            raw = json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
        text = "&".join(
            f"{quote(name, safe='')}={quote(value, safe='').replace('%20', blank)}"
            for name, value in sorted((query or {}).items())
        )
        self._count += 1
        time_ms = str(round((EPOCH.timestamp() + _now_s() + ahead_s) * 1000))
        nonce = f"{self._count:032x}"
        digest = hashlib.sha256(raw).hexdigest()
        parts = (PUBLIC, time_ms, nonce, method, path, text, digest)
        mac = hmac.new(SECRET.encode(), "|".join(parts).encode(), hashlib.sha256).hexdigest()
        signed = {
            "X-API-Key": PUBLIC,
            "X-Time": time_ms,
            "X-Nonce": nonce,
            "X-Signature": mac,
            **(headers or {}),
        }
        url = f"{path}?{text}" if text else path
        return await self.client.request(method, url, content=raw, headers=signed)

    async def order(self, **changes: Any) -> dict[str, Any]:
        """Return a body that fits the cheapest single GPU; `docker` changes what runs."""
        reply = await self.call(
            "GET", "/v1/compute/offers", query={"filter[gpu_count]": "1", "limit": "50"}
        )
        offers = reply.json()["data"]
        cheapest = min(offers, key=lambda o: o["pricing"]["hourly_rate_usd"])
        docker = {
            "image": "nginx",
            "tag": "1.27",
            "ports": [80],
            "allowed_ips": ["0.0.0.0/0"],
            **changes.pop("docker", {}),
        }
        body = {
            "task": "PERSISTENT",
            "title": "a title",
            "gpu_count": 1,
            "gpu_registry_uuid": cheapest["hardware_summary"]["gpu_registry_uuid"],
            "max_timeout_run_ms": None,
            "parameters": {"type": "docker", "parameters": docker},
            **changes,
        }
        return {name: value for name, value in body.items() if value != "left out"}

    async def created(self, **changes: Any) -> dict[str, Any]:
        """Create a job and return it."""
        reply = await self.call("POST", "/v1/jobs", await self.order(**changes))
        assert reply.status_code == 201, reply.text
        job: dict[str, Any] = reply.json()
        return job

    async def job(self, ident: str) -> dict[str, Any]:
        """Return a job."""
        job: dict[str, Any] = (await self.call("GET", f"/v1/jobs/{ident}")).json()
        return job

    async def run_of(self, ident: str) -> dict[str, Any]:
        """Return a job's only run."""
        reply = await self.call("GET", "/v1/job-runs", query={"filter[job_uuid]": ident})
        (run,) = reply.json()["data"]
        return dict(run)

    @property
    def contract(self) -> Contract:
        """The only contract that lives."""
        (contract,) = self.world.leaked()
        return contract


def _now_s() -> float:
    return asyncio.get_running_loop().time()


@asynccontextmanager
async def market(
    *rules: Rule, settings: RenderSettings = EASY, credit: str = "1000", **world_options: Any
) -> AsyncIterator[Market]:
    """Open a market whose clock is the virtual loop's; boots take ten seconds."""
    world = World(
        _loop_time(),
        Random(1),
        runtime=pretend(Random(2)),
        offers=60,
        boot_s=(10.0, 10.0),
        epoch_s=EPOCH.timestamp() + _now_s(),
        credit_usd=Decimal(credit),
        **world_options,
    )
    faults = Faults(rules, Random(3))
    async with httpx2.AsyncClient(
        transport=InProcessTransport(render_app(world, faults, settings)),
        base_url="http://sim.test",
    ) as client:
        yield Market(client, world, faults)


def _loop_time() -> Any:
    return asyncio.get_running_loop().time
