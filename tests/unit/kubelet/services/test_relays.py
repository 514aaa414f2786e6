"""A relay for each pod that wants one: made, made anew when it ended, and not again and again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import pytest
from msgspec.structs import replace

from gp4u.kube import paths
from gp4u.kube.client import KubeClient
from gp4u.kube.events import EventRecorder
from gp4u.kubelet.held import Held
from gp4u.kubelet.services.relay import routes_in
from gp4u.kubelet.services.relay_pod import RELAY_FOR, ROUTES_FILE, relay_name
from gp4u.kubelet.services.relays import ENDED, Relays
from gp4u.model import Endpoint
from gp4u.rentals.rental import RentalState
from tests.kube_api import KubeApi
from tests.unit.kubelet.objects import POLICY, pod
from tests.unit.kubelet.shown import rental, state
from tests.virtual_loop import VirtualClock, run_virtual

IP = "8.8.4.4"
WANTS = {"relay": "true"}
EVICTED = {"phase": "Failed", "reason": "Evicted", "message": "low on memory"}


class World:
    """A cluster with one pod of the node, and what makes relays for it."""

    def __init__(self, api: KubeApi, client: KubeClient) -> None:
        self.api = api
        june = api.add(pod(annotations=WANTS))
        machine = rental(endpoints=(Endpoint(container_port=8001, host=IP, port=42352),))
        self.held = Held(pod=june, containers=(state("main"),), rentals={"main": machine})
        self.woken: list[str] = []
        self.path = paths.pod("default", relay_name(june))
        self.recorder = EventRecorder(
            client, component="gp4u", host="node-1", clock=VirtualClock(), random=Random(2)
        )
        self.relays = Relays(
            client,
            policy=lambda: replace(POLICY, relay_image="gp4u:1"),
            pods=lambda: self,
            wake=self.woken.append,
            recorder=self.recorder,
            random=Random(1),
        )

    def all(self) -> Sequence[Held]:
        return [self.held]

    def find(self, namespace: str, name: str, uid: str | None = None) -> Held | None:
        return self.held

    @property
    def relay(self) -> dict[str, Any]:
        """Its relay's pod."""
        found = self.api.find(self.path)
        assert found is not None
        return found

    def routes(self) -> dict[int, str]:
        """Return what its relay is told: port to target."""
        path = paths.configmap("default", relay_name(self.held.pod))
        config = self.api.find(path)
        assert config is not None
        return {each.listen_port: each.target for each in routes_in(config["data"][ROUTES_FILE])}

    def ended(self) -> list[str]:
        """What was told of relays that ended."""
        return [e["message"] for e in self.api.all("events") if e["reason"] == ENDED]

    async def end(self) -> None:
        """End the relay that is there, and wait for the next one."""
        before = self.relay["metadata"]["uid"]
        self.api.change(f"{self.path}/status", {"status": EVICTED})
        for _ in range(1000):
            if self.relay["metadata"]["uid"] != before:
                return
            await asyncio.sleep(1)
        raise AssertionError("no other relay was made")


@asynccontextmanager
async def world() -> AsyncIterator[World]:
    api = KubeApi()
    async with api.client() as client, asyncio.TaskGroup() as group:
        found = World(api, client)
        tasks = [group.create_task(run()) for run in (found.relays.run, found.recorder.run)]
        await asyncio.sleep(10)
        yield found
        for task in tasks:
            task.cancel()


def test_a_relay_that_was_evicted_is_made_anew_and_its_address_followed() -> None:
    """A pod that ended never runs again, so the Service would lead nowhere for ever."""

    async def tale() -> None:
        async with world() as found:
            assert found.relay["metadata"]["labels"][RELAY_FOR] == found.held.uid
            running = {"phase": "Running", "podIP": "10.0.0.4"}
            found.api.change(f"{found.path}/status", {"status": running})
            await asyncio.sleep(1)
            assert found.relays.address(found.held) == "10.0.0.4"
            await found.end()
            assert found.relays.address(found.held) is None
            running = {"phase": "Running", "podIP": "10.0.0.9"}
            found.api.change(f"{found.path}/status", {"status": running})
            await asyncio.sleep(1)
            assert found.relays.address(found.held) == "10.0.0.9"
            (text,) = found.ended()
            assert "Failed: Evicted: low on memory" in text

    run_virtual(tale)


def test_relays_that_end_again_and_again_are_made_ever_more_slowly() -> None:
    """A node of the cluster that is full evicts each of them at once."""

    async def tale() -> None:
        async with world() as found:
            now, waits = asyncio.get_running_loop().time, []
            for _ in range(8):
                began = now()
                await found.end()
                waits.append(now() - began)
            assert waits[0] <= 12
            assert waits[3] >= 40
            assert 300 <= waits[-1] <= 310
            await asyncio.sleep(1000)
            began = now()
            await found.end()
            assert now() - began <= 12, "what ran well for long is forgiven"

    run_virtual(tale)


def test_a_relay_that_was_drained_is_made_anew_at_once() -> None:
    """An eviction through the API leaves no object to replace."""

    async def tale() -> None:
        async with world() as found:
            before = found.relay["metadata"]["uid"]
            found.api.remove(found.path, grace_s=0)
            await asyncio.sleep(7)
            assert found.relay["metadata"]["uid"] != before
            assert found.ended() == []

    run_virtual(tale)


@pytest.mark.parametrize("began_anew", [False, True])
def test_a_machine_that_was_let_go_is_relayed_to_no_more(began_anew: bool) -> None:
    """Its address may be somebody else's in a moment; the next machine's takes its place."""

    async def tale() -> None:
        async with world() as found:
            running = {"phase": "Running", "podIP": "10.0.0.4"}
            found.api.change(f"{found.path}/status", {"status": running})
            await asyncio.sleep(1)
            assert found.routes() == {8001: f"{IP}:42352"}
            if began_anew:
                found.relays._made.clear()
            machine, known = found.held.rentals["main"], found.held
            for unclear in (Held(pod=known.pod), replace(known, rentals={"main": rental()})):
                found.held = unclear  # not looked at yet; not told by the market
                await asyncio.sleep(7)
                assert found.routes() == {8001: f"{IP}:42352"}
            found.held = known
            released = {"main": replace(machine, state=RentalState.RELEASING)}
            for gone in (released, {}):
                found.held = replace(found.held, rentals=gone)
                await asyncio.sleep(7)
                assert found.routes() == {}
            end = Endpoint(container_port=8001, host="8.8.4.5", port=1)
            found.held = replace(found.held, rentals={"main": rental(endpoints=(end,))})
            await asyncio.sleep(7)
            assert found.routes() == {8001: "8.8.4.5:1"}
            assert len(found.api.told("create", "pods")) == 2, "the relay itself went on"

    run_virtual(tale)


def test_a_relay_that_may_not_be_removed_is_told_of_once() -> None:
    """K12: a permission that is missing is named, and not asked for all day."""

    async def tale() -> None:
        async with world() as found:
            found.api.deny("delete", "pods")
            found.api.change(f"{found.path}/status", {"status": EVICTED})
            await asyncio.sleep(600)
            told = [e for e in found.api.all("events") if e["reason"] == "RelayFailed"]
            assert len(told) == 1
            assert told[0].get("count", 1) == 1
            assert found.ended() == []

    run_virtual(tale)
