"""Weights and preferences that change while a node runs: read again, refused whole, never lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest

from gp4u.errors import BadInput
from gp4u.kube.events import EventRecorder
from gp4u.kubelet.live import LivePolicies, preferences_in, weights_in
from gp4u.kubelet.policy import NodePolicy
from gp4u.nodes import policies_of, reading
from gp4u.settings import load_settings
from tests.kube_api import KubeApi
from tests.virtual_loop import VirtualClock, run_virtual

WEIGHTS = "/api/v1/namespaces/kube-system/configmaps/vast-selection-weights"
PREFERENCES = "/api/v1/namespaces/kube-system/configmaps/vast-provider-config"
GOOD = {
    "price": "50",
    "performance": "20",
    "gpu_match": "15",
    "location": "10",
    "availability": "5",
}


def configmap(name: str, data: Mapping[str, str]) -> dict[str, Any]:
    """Return a ConfigMap of our namespace."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": "kube-system"},
        "data": dict(data),
    }


@asynccontextmanager
async def live(api: KubeApi, tmp_path: Path) -> AsyncIterator[LivePolicies]:
    """Run the policies of two nodes over an API server."""
    environ = {"GP4U_NODE_NAME": "vast-gpu-node-1,vast-gpu-spot-1=spot", "HOME": str(tmp_path)}
    policies = policies_of(load_settings(environ, tmp_path), address="203.0.113.46")
    async with api.client() as client, asyncio.TaskGroup() as group:
        recorder = EventRecorder(
            client, component="gp4u", host="n1", clock=VirtualClock(), random=Random(3)
        )
        found = LivePolicies(
            client,
            policies,
            weights=("kube-system", "vast-selection-weights"),
            preferences=("kube-system", "vast-provider-config"),
            read=reading(environ, tmp_path),
            recorder=recorder,
            random=Random(4),
        )
        tasks = [group.create_task(each.run()) for each in found.informers]
        tasks.append(group.create_task(recorder.run()))
        for informer in found.informers:
            await informer.synced.wait()
        yield found
        for task in tasks:
            task.cancel()


def instead(data: Mapping[str, str]) -> dict[str, str | None]:
    """Return the merge patch that puts these keys in the place of the good ones."""
    return {**dict.fromkeys(GOOD), **data}


def price(policy: NodePolicy) -> float:
    """Return the weight of the price."""
    return policy.defaults.preferences.weights["price"]


def told(api: KubeApi) -> list[tuple[str, str]]:
    """Return (reason, name of the object) of every Event."""
    return [(each["reason"], each["involvedObject"]["name"]) for each in api.all("events")]


def test_new_weights_are_in_force_on_every_node_without_a_restart(tmp_path: Path) -> None:
    """The seed tells its reader to change the ConfigMap, and expects the next pod to feel it."""
    api = KubeApi()

    async def life() -> None:
        async with live(api, tmp_path) as policies:
            assert price(policies.policy("vast-gpu-node-1")()) == pytest.approx(0.30)
            api.add(configmap("vast-selection-weights", GOOD))
            await asyncio.sleep(1)
            for node in ("vast-gpu-node-1", "vast-gpu-spot-1"):
                assert price(policies.policy(node)()) == pytest.approx(0.50)
            assert policies.policy("vast-gpu-spot-1")().interruptible
            api.remove(WEIGHTS)
            await asyncio.sleep(1)
            assert price(policies.policy("vast-gpu-node-1")()) == pytest.approx(0.30)

    run_virtual(life)


@pytest.mark.parametrize(
    ("data", "named"),
    [
        ({**GOOD, "price": "much"}, "data.price"),
        ({**GOOD, "prise": "1"}, "prise"),
        ({**GOOD, "price": "-3"}, "weights"),
        ({"weights.yaml": "price: ["}, "YAML"),
        ({"weights.yaml": "price: 2026-13-45"}, "YAML"),
        ({"weights.yaml": "weights:"}, "data.weights"),
        ({"weights.yaml": "weights: cheapest"}, "data.weights"),
        ({"weights.yaml": "1: 60\nspeed: 40"}, "data.1"),
    ],
)
def test_bad_weights_are_refused_by_an_event_and_the_last_good_ones_stay(
    data: Mapping[str, str], named: str, tmp_path: Path
) -> None:
    """A slip of the pen in a ConfigMap must not change what is rented."""
    api = KubeApi()
    api.add(configmap("vast-selection-weights", GOOD))

    async def life() -> None:
        async with live(api, tmp_path) as policies:
            assert price(policies.policy("vast-gpu-node-1")()) == pytest.approx(0.50)
            api.change(WEIGHTS, {"data": instead(data)})
            await asyncio.sleep(5)
            assert price(policies.policy("vast-gpu-node-1")()) == pytest.approx(0.50)
            assert named in policies.refused["weights"]
            messages = [e["message"] for e in api.all("events") if e["reason"] == "ConfigRefused"]
            assert any(named in each and "last good" in each for each in messages)
            assert str(tmp_path) not in messages[-1]
            api.change(WEIGHTS, {"data": {**dict.fromkeys(data), **GOOD}})
            await asyncio.sleep(5)
            assert not policies.refused

    run_virtual(life)


def test_bad_weights_among_the_preferences_do_not_hide_behind_good_weights(tmp_path: Path) -> None:
    """They would come into force when the ConfigMap above them is deleted."""
    api = KubeApi()
    api.add(configmap("vast-selection-weights", GOOD))

    async def life() -> None:
        async with live(api, tmp_path) as policies:
            text = "locations: [US]\nweights: {price: -3}\n"
            api.add(configmap("vast-provider-config", {"vast-provider-config.yaml": text}))
            await asyncio.sleep(5)
            assert "weights" in policies.refused["preferences"]
            api.remove(WEIGHTS)
            await asyncio.sleep(5)
            policy = policies.policy("vast-gpu-node-1")()
            assert price(policy) == pytest.approx(0.30)
            assert policy.defaults.requirements.locations == ()

    run_virtual(life)


def test_preferences_of_the_seeds_file_are_taken_over(tmp_path: Path) -> None:
    """The file of the guide, pasted into a ConfigMap, means what it means to the command line."""
    api = KubeApi()
    text = "gpu:\n  preferred_types: [RTX3060, RTX4090]\nlocations: [US-CA, US]\n"
    api.add(configmap("vast-provider-config", {"vast-provider-config.yaml": text}))

    async def life() -> None:
        async with live(api, tmp_path) as policies:
            wanted = policies.policy("vast-gpu-node-1")().defaults.requirements
            assert wanted.gpu_models == ("RTX 3060", "RTX 4090")
            assert wanted.locations == ("US-CA", "US")
            api.change(PREFERENCES, {"data": {"vast-provider-config.yaml": "gpu: 7\n"}})
            await asyncio.sleep(5)
            api.change(PREFERENCES, {"data": {"vast-provider-config.yaml": "[1]"}})
            await asyncio.sleep(5)
            kept = policies.policy("vast-gpu-node-1")().defaults.requirements
            assert kept == wanted
            assert ("ConfigRefused", "vast-provider-config") in told(api)

    run_virtual(life)


def test_a_port_that_was_given_is_told_in_the_policy(tmp_path: Path) -> None:
    """With port 0 nobody knows it before the server listens, and the Node object has to say it."""
    api = KubeApi()

    async def life() -> None:
        async with live(api, tmp_path) as policies:
            policies.listens("vast-gpu-node-1", 34567)
            api.add(configmap("vast-selection-weights", GOOD))
            await asyncio.sleep(1)
            assert policies.policy("vast-gpu-node-1")().port == 34567

    run_virtual(life)


def test_weights_may_be_one_document_or_a_key_each() -> None:
    """Both are found in the wild."""
    one = weights_in({"weights.yaml": "weights:\n  price: 100\n"})

    assert one == weights_in({"price": "100"}) == {"weights": {"price": 100.0}}
    assert weights_in({}) == {}


def test_preferences_without_their_key_are_refused_by_its_name() -> None:
    """A ConfigMap made by `--from-file` under another name would be silently empty."""
    with pytest.raises(BadInput, match=r"vast-provider-config\.yaml"):
        preferences_in({"config.yaml": ""})
