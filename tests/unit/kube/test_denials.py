"""What may not be done is told until it may: by verb and resource, and by nothing else."""

from __future__ import annotations

import asyncio

import pytest
from structlog.testing import capture_logs

from gp4u.errors import KubeDenied
from gp4u.kube import paths
from gp4u.kube.client import KubeClient, PatchKind
from gp4u.kube.denials import FORGET_S, MOST
from tests.kube_api import KubeApi
from tests.virtual_loop import run_virtual

POD = {"kind": "Pod", "metadata": {"name": "a"}, "spec": {"nodeName": "n1"}}


async def denied_status(client: KubeClient, name: str = "a", namespace: str = "default") -> None:
    """Write a status that may not be written."""
    path = paths.pod(namespace, name, "status")
    with pytest.raises(KubeDenied):
        await client.patch(path, {"status": {}}, kind=PatchKind.MERGE)


def test_a_right_that_is_missing_is_named_until_it_is_back() -> None:
    """K12: whoever mends a role has to know which verb of which resource, and when it is done."""

    async def life() -> None:
        api = KubeApi()
        api.add(POD)
        fault = api.deny("patch", "pods/status")
        async with api.client() as client:
            with capture_logs() as logs:
                await denied_status(client)
                await denied_status(client)
                assert client.denials.told() == ["patch pods/status in default"]
                await client.get(paths.pod("default", "a"))
                assert client.denials.told(), "another call says nothing about this one"
                fault.lift()
                await client.patch(paths.pod("default", "a", "status"), {"status": {}})
            assert client.denials.told() == []
            said = [(each["event"], each["right"]) for each in logs]
            right = "patch pods/status in default"
            assert said == [("api_denied", right), ("api_allowed_again", right)]

    run_virtual(life)


def test_lists_and_watches_are_rights_of_their_own() -> None:
    """A role that has one of them looks complete to whoever reads it in haste."""

    async def life() -> None:
        api = KubeApi()
        async with api.client() as client:
            api.deny("list", "services")
            api.deny("watch", "nodes")
            with pytest.raises(KubeDenied):
                await client.list(paths.services())
            listed = await client.list(paths.nodes())
            with pytest.raises(KubeDenied):
                await anext(client.watch(paths.nodes(), version=listed.version))
            assert client.denials.told() == ["list services", "watch nodes"]

    run_virtual(life)


def test_a_client_beside_another_tells_the_same() -> None:
    """Events have a pace of their own, and nobody asks their client how it is."""

    async def life() -> None:
        api = KubeApi()
        api.deny("create", "events")
        async with api.client() as client:
            with pytest.raises(KubeDenied):
                await client.beside(writes_per_s=None).create(paths.events("june"), {})
            assert client.denials.told() == ["create events in june"]

    run_virtual(life)


def test_what_is_refused_for_another_reason_is_no_missing_right() -> None:
    """A quota of one namespace is its owner's business, and no role helps against it."""

    async def life() -> None:
        api = KubeApi()
        api.fail("create", "pods", 403, reason="Forbidden", message="pods is forbidden: quota")
        async with api.client() as client:
            with pytest.raises(KubeDenied):
                await client.create(paths.pods("default"), POD)
            assert client.denials.told() == []

    run_virtual(life)


def test_a_denial_that_nobody_meets_any_more_is_forgotten() -> None:
    """The pod that needed it may be gone: a node would be called unwell for ever."""

    async def life() -> None:
        api = KubeApi()
        api.add(POD)
        api.deny("patch", "pods/status")
        async with api.client() as client:
            await denied_status(client)
            await asyncio.sleep(FORGET_S)
            assert client.denials.told()
            await asyncio.sleep(1)
            assert client.denials.told() == []

    run_virtual(life)


def test_no_more_are_kept_than_an_operator_reads() -> None:
    """A thousand namespaces without a right are one missing rule."""

    async def life() -> None:
        api = KubeApi()
        api.deny("get", "secrets")
        async with api.client() as client:
            for number in range(MOST + 5):
                with pytest.raises(KubeDenied):
                    await client.get(paths.secret(f"n{number}", "token"))
            assert len(client.denials.told()) == MOST

    run_virtual(life)
