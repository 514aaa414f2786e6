"""Services whose way to a machine is a relay in the cluster, and what is told until it is there."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gp4u.model import Endpoint
from tests.unit.kubelet.services.test_publish import june, service, world
from tests.virtual_loop import run_virtual


def test_a_machine_that_has_a_url_only_needs_a_relay() -> None:
    """kube-proxy cannot speak TLS, nor ask for a name."""

    async def story() -> None:
        async with world() as w:
            pod = w.api.add(june())
            w.api.add(service("june-stt", 8001))
            url = Endpoint(container_port=8001, host="x.example", port=443, url="https://x.example")
            w.set(pod, endpoints=(url,))
            await asyncio.sleep(1)
            assert w.slices() == []
            assert "RelayNeeded" in w.reasons()
            w.set(pod, endpoints=(url,), relay_ip="10.244.1.7")
            await asyncio.sleep(1)
            assert w.ends() == {"june-stt": (["10.244.1.7"], 8001, True)}

    run_virtual(story)


def test_a_pod_that_has_asked_for_a_relay_is_not_told_to() -> None:
    """Its relay takes a moment to come; until then there is nothing for anybody to do."""

    async def story() -> None:
        async with world() as w:
            pod = w.api.add(june(annotations={"gp4u.io/relay": "true"}))
            w.api.add(service("june-stt", 8001))
            url = Endpoint(container_port=8001, host="x.example", port=443, url="https://x.example")
            w.set(pod, endpoints=(url,), ready=False)
            await asyncio.sleep(1)
            assert w.slices() == []
            assert w.reasons() == []

    run_virtual(story)


def test_a_selector_service_is_left_to_the_cluster_where_there_is_a_relay() -> None:
    """The pod's address is the relay's, so that the cluster's own slice leads there already."""

    async def story() -> None:
        async with world() as w:
            pod = w.api.add(june())
            w.api.add(service("june-stt", 8001, selector={"app": "june"}))
            w.set(pod, relay_ip="10.244.1.7")
            await asyncio.sleep(1)
            assert w.slices() == []

    run_virtual(story)


@pytest.mark.parametrize("more", [{}, {"selector": {"app": "june"}}])
def test_a_service_that_a_pod_names_is_not_missed_where_there_is_a_relay(
    more: dict[str, Any],
) -> None:
    """Who reads that there is no such Service looks for the mistake in the wrong place."""

    async def story() -> None:
        async with world() as w:
            w.api.add(service("june-stt", 8001, metadata={"annotations": {}}, **more))
            pod = w.api.add(june(annotations={"gp4u.io/expose": "june-stt:8001"}))
            w.set(pod, relay_ip="10.244.1.7")
            await asyncio.sleep(1)
            assert "ServiceMissing" not in w.reasons()

    run_virtual(story)


def test_a_relay_is_published_for_what_its_machine_has() -> None:
    """It listens on those ports alone, and on none once the machine is let go."""

    async def story() -> None:
        async with world() as w:
            pod = w.api.add(june())
            w.api.add(service("june-stt", 8001))
            w.api.add(service("june-more", 9000))
            w.set(pod, relay_ip="10.244.1.7")
            await asyncio.sleep(1)
            assert w.ends() == {"june-stt": (["10.244.1.7"], 8001, True)}
            assert "EndpointPortMissing" in w.reasons()
            await w.publisher.withdraw(pod["metadata"]["uid"])
            w.set(pod, relay_ip="10.244.1.7", endpoints=(), ready=False)
            await asyncio.sleep(1)
            assert w.slices() == []

    run_virtual(story)
