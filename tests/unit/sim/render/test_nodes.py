"""The proposed node API as a client sees it: key, nodes, bounds of a job, refusals."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from random import Random
from typing import Any

import httpx2
import pytest

from gp4u.sim.faults import Faults, Rule
from gp4u.sim.inprocess import InProcessTransport
from gp4u.sim.render.app import render_app
from gp4u.sim.render.gate import RenderSettings
from gp4u.sim.runtime import pretend
from gp4u.sim.world import World
from tests.virtual_loop import EPOCH, run_virtual

EASY = RenderSettings(flavor="legacy", api_key="seed-key", throttle=0.0, list_lag_s=(0.0, 0.0))
SCENE = {"tier": 2, "scene_file": "s.orbx", "engine": "octane", "frames": 10}


class Market:
    """A client with a key, and the truth behind."""

    def __init__(self, client: httpx2.AsyncClient, world: World) -> None:
        self.client, self.world = client, world

    async def nodes(self, **query: str) -> list[dict[str, Any]]:
        """Return a page of nodes."""
        reply = await self.client.get("/v1/nodes", params={"limit": "100", **query})
        assert reply.status_code == 200, reply.text
        rows: list[dict[str, Any]] = reply.json()["nodes"]
        return rows

    async def compute(self, **changes: Any) -> httpx2.Response:
        """Submit a container to the first compute node."""
        node = (await self.nodes(kind="compute"))[0]
        body = {"kind": "compute", "node_id": node["node_id"], "image": "nginx", "ports": [80]}
        return await self.client.post("/v1/jobs", json=body | changes)

    async def scene(self, **changes: Any) -> httpx2.Response:
        """Submit a scene."""
        return await self.client.post("/v1/jobs", json=SCENE | changes)


@asynccontextmanager
async def market(*rules: Rule, key: str = "seed-key") -> AsyncIterator[Market]:
    """Open a market on the virtual loop's clock."""
    loop = asyncio.get_running_loop()
    world = World(
        loop.time,
        Random(1),
        runtime=pretend(Random(2)),
        offers=200,
        boot_s=(10.0, 10.0),
        epoch_s=EPOCH.timestamp() + loop.time(),
        credit_usd=Decimal(1000),
    )
    async with httpx2.AsyncClient(
        transport=InProcessTransport(render_app(world, Faults(rules, Random(3)), EASY)),
        base_url="http://sim.test",
        headers={"Authorization": f"Bearer {key}"},
    ) as client:
        yield Market(client, world)


def test_a_key_is_asked_for_on_every_call() -> None:
    """401 with a code, as the proposal says."""

    async def scene() -> None:
        async with market(key="other") as m:
            for method, path in (("GET", "/v1/nodes"), ("POST", "/v1/jobs"), ("GET", "/v1/jobs/x")):
                reply = await m.client.request(method, path)
                assert (reply.status_code, reply.json()["error"]["code"]) == (401, "unauthorized")

    run_virtual(scene)


def test_nodes_have_every_field_and_some_lack_a_few() -> None:
    """Missing fields are normal, and a price may come as text: clients must cope with both."""

    async def scene() -> None:
        async with market() as m:
            rows = await m.nodes()
            render = next(row for row in rows if row["kind"] == "render")
            assert render.keys() >= {
                "node_id",
                "gpu_model",
                "gpu_memory",
                "octanebench_score",
                "price_per_obh",
                "tier",
                "supported_engines",
            }
            assert {type(row["price_per_obh"]) for row in rows} == {str, float}
            assert any("reputation" not in row for row in rows)
            assert any("reputation" in row for row in rows)
            assert all(("price_per_hour_usd" in r) == (r["kind"] == "compute") for r in rows)
            one = (await m.client.get(f"/v1/nodes/{render['node_id']}")).json()
            assert one == render
            assert (await m.client.get("/v1/nodes/none")).status_code == 404

    run_virtual(scene)


def test_nodes_are_filtered_by_kind_and_tier() -> None:
    """There is no tier 4."""

    async def scene() -> None:
        async with market() as m:
            assert {row["kind"] for row in await m.nodes(kind="render")} == {"render"}
            assert {row["tier"] for row in await m.nodes(tier="3")} == {3}
            for query in ({"tier": "4"}, {"kind": "quantum"}, {"colour": "red"}, {"limit": "101"}):
                assert (await m.client.get("/v1/nodes", params=query)).status_code == 400

    run_virtual(scene)


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"command": ["x"]}, 400),
        ({"image": ""}, 400),
        ({"env": {"A": 1}}, 400),
        ({"ports": ["80"]}, 400),
        ({"client_ref": 7}, 400),
        ({"node_id": "none"}, 404),
    ],
)
def test_a_container_that_cannot_be_is_refused(changes: dict[str, Any], status: int) -> None:
    """And nothing is made."""

    async def scene() -> None:
        async with market() as m:
            assert (await m.compute(**changes)).status_code == status
            assert m.world.contracts == []

    run_virtual(scene)


def test_a_render_node_runs_no_containers_and_a_taken_node_is_409() -> None:
    """Two kinds of nodes, and one renter each."""

    async def scene() -> None:
        async with market() as m:
            render = (await m.nodes(kind="render"))[0]["node_id"]
            assert (await m.compute(node_id=render)).status_code == 400
            taken = (await m.nodes(kind="compute"))[0]["node_id"]
            assert (await m.compute()).status_code == 201
            assert (await m.compute(node_id=taken)).status_code == 409
            assert taken not in {row["node_id"] for row in await m.nodes()}

    run_virtual(scene)


@pytest.mark.parametrize(
    "changes",
    [
        {"tier": 4},
        {"tier": "2"},
        {"engine": "arnold"},
        {"scene_file": ""},
        {"frames": 0},
        {"frames": {"start": 5, "end": 1}},
        {"frames": {"start": 1, "end": 5, "step": 0}},
        {"frames": {"first": 1}},
        {"max_obh": "much"},
        {"max_obh": 0},
        {"max_obh": -1},
        {"colour": "red"},
    ],
)
def test_a_scene_that_cannot_be_is_refused(changes: dict[str, Any]) -> None:
    """And no node is held for it."""

    async def scene() -> None:
        async with market() as m:
            assert (await m.scene(**changes)).status_code == 400
            assert m.world.contracts == []

    run_virtual(scene)


@pytest.mark.parametrize(
    ("frames", "total"),
    [(7, 7), ({"start": 1, "end": 10}, 10), ({"start": 1, "end": 10, "step": 3}, 4)],
)
def test_frames_are_a_number_or_a_range_with_its_end(frames: Any, total: int) -> None:
    """1 to 10 by 3 is 1, 4, 7, 10."""

    async def scene() -> None:
        async with market() as m:
            ident = (await m.scene(frames=frames)).json()["job_id"]
            assert (await m.client.get(f"/v1/jobs/{ident}")).json()["frames_total"] == total

    run_virtual(scene)


def test_a_cancelled_scene_keeps_what_it_did_and_frees_its_node() -> None:
    """Frames that are done stay paid; a second delete is no error."""

    async def scene() -> None:
        async with market() as m:
            ident = (await m.scene(frames=100_000)).json()["job_id"]
            await asyncio.sleep(65)
            reply = await m.client.delete(f"/v1/jobs/{ident}")
            assert (reply.status_code, reply.json()["status"]) == (202, "cancelled")
            cost = m.world.meter_total()
            assert cost > 0
            await asyncio.sleep(3600)
            again = await m.client.delete(f"/v1/jobs/{ident}")
            assert (again.status_code, again.json()) == (202, reply.json())
            assert m.world.meter_total() == cost
            assert m.world.leaked() == []

    run_virtual(scene)


def test_jobs_are_listed_by_their_reference() -> None:
    """The way to find what a lost reply made."""

    async def scene() -> None:
        async with market() as m:
            await m.compute(client_ref="a")
            await m.scene(client_ref="b")

            async def refs(**query: str) -> list[str]:
                reply = await m.client.get("/v1/jobs", params=query)
                return [row["client_ref"] for row in reply.json()["jobs"]]

            assert await refs() == ["a", "b"]
            assert await refs(client_ref="") == ["a", "b"]
            assert await refs(client_ref="b") == ["b"]
            assert await refs(client_ref="c") == []

    run_virtual(scene)


def test_a_container_that_ends_by_itself_has_failed_with_its_last_words() -> None:
    """A service that is gone must not look like one that runs."""

    async def scene() -> None:
        async with market(Rule(kind="dead_start", endpoint="create")) as m:
            ident = (await m.compute()).json()["job_id"]
            await asyncio.sleep(12)
            row = (await m.client.get(f"/v1/jobs/{ident}")).json()
            assert (row["status"], bool(row["error"])) == ("failed", True)
            assert m.world.leaked() == []

    run_virtual(scene)


def test_an_image_is_promised_and_nothing_more() -> None:
    """Kept because the first text of the project names it."""

    async def scene() -> None:
        async with market() as m:
            reply = await m.client.post("/v1/ai/generate", json={"prompt": "a cat"})
            assert reply.status_code == 202
            assert reply.json()["image_id"]
            assert (await m.client.post("/v1/ai/generate", json={})).status_code == 400

    run_virtual(scene)


def test_a_429_says_how_long_to_wait() -> None:
    """100 requests a minute is the proposal's limit."""

    async def scene() -> None:
        async with market(Rule(kind="throttle", endpoint="search", retry_after="9")) as m:
            reply = await m.client.get("/v1/nodes")
            assert (reply.status_code, reply.headers["retry-after"]) == (429, "9")

    run_virtual(scene)
