"""Who calls, and whether they may: asked of the API server, remembered for a while."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gp4u.errors import KubeError, KubeUnavailable
from gp4u.kubelet.server.auth import Caller, Reviewer, allowed
from tests.kube_api import KubeApi
from tests.virtual_loop import VirtualClock, run_virtual

CERTIFICATE: dict[str, Any] = {
    "subject": ((("organizationName", "masters"),), (("commonName", "kube-apiserver"),)),
    "notAfter": "Jan  2 00:00:00 2026 GMT",
}


def test_a_certificate_names_user_and_groups() -> None:
    """The API server comes with one; RBAC knows it by CN and O."""

    async def inside() -> None:
        async with KubeApi().client() as client:
            reviewer = Reviewer(client, node_name="n", clock=VirtualClock())
            who = await reviewer.who(CERTIFICATE, "")
            assert who == Caller("kube-apiserver", ("masters", "system:authenticated"))

    run_virtual(inside)


def test_a_certificate_that_ran_out_on_an_open_connection_is_none() -> None:
    """TLS looks at it only once; a connection may stay open for weeks."""

    async def inside() -> None:
        async with KubeApi().client() as client:
            reviewer = Reviewer(client, node_name="n", clock=VirtualClock())
            await asyncio.sleep(24 * 3600 + 1)
            assert await reviewer.who(CERTIFICATE, "") is None

    run_virtual(inside)


def test_a_token_is_shown_to_the_api_server_once_in_two_minutes() -> None:
    """metrics-server comes every 15 s; a review of each would double its cost."""

    async def inside() -> None:
        api = KubeApi()
        api.tokens["good"] = {"username": "metrics", "groups": ["g"], "extra": {"k": ["v"]}}
        async with api.client() as client:
            reviewer = Reviewer(client, node_name="n", clock=VirtualClock())
            wanted = Caller("metrics", ("g",), "", (("k", ("v",)),))
            for _ in range(5):
                assert await reviewer.who(None, "Bearer good") == wanted
            assert len(api.told("create", "tokenreviews")) == 1
            await asyncio.sleep(121)
            assert await reviewer.who(None, "bearer good") == wanted
            assert len(api.told("create", "tokenreviews")) == 2

    run_virtual(inside)


@pytest.mark.parametrize(
    "header", ["", "Bearer", "Bearer ", "Basic Z29vZA==", "good", "Bearer bad"]
)
def test_nobody_else_is_anybody(header: str) -> None:
    """There is no anonymous caller (S1)."""

    async def inside() -> None:
        api = KubeApi()
        api.tokens["good"] = {"username": "metrics"}
        async with api.client() as client:
            reviewer = Reviewer(client, node_name="n", clock=VirtualClock())
            assert await reviewer.who(None, header) is None
            assert await reviewer.who({}, header) is None

    run_virtual(inside)


def test_an_answer_holds_long_if_yes_and_short_if_no() -> None:
    """A new right works within half a minute, and a frequent caller costs one review in five."""

    async def inside() -> None:
        api = KubeApi()
        asked: list[Any] = []

        def may(spec: Any) -> bool:
            asked.append(spec)
            return is_open

        is_open = False
        api.may = may
        async with api.client() as client:
            reviewer = Reviewer(client, node_name="n", clock=VirtualClock())
            caller = Caller("u", ("g",), "id", (("k", ("v",)),))
            assert not await reviewer.may(caller, "get", "metrics")
            is_open = True
            await asyncio.sleep(29)
            assert not await reviewer.may(caller, "get", "metrics")
            await asyncio.sleep(2)
            assert await reviewer.may(caller, "get", "metrics")
            await asyncio.sleep(299)
            assert await reviewer.may(caller, "get", "metrics")
            assert len(asked) == 2
            assert asked[0] == {
                "user": "u",
                "groups": ["g"],
                "uid": "id",
                "extra": {"k": ["v"]},
                "resourceAttributes": {
                    "version": "v1",
                    "resource": "nodes",
                    "name": "n",
                    "verb": "get",
                    "subresource": "metrics",
                },
            }
            await reviewer.may(Caller("other"), "get", "metrics")
            assert len(asked) == 3

    run_virtual(inside)


def test_many_at_once_are_one_review() -> None:
    """A dashboard's hundred log streams must not be a hundred reviews."""

    async def inside() -> None:
        api = KubeApi()
        api.latency_s = 0.5
        async with api.client() as client:
            reviewer = Reviewer(client, node_name="n", clock=VirtualClock())
            async with asyncio.TaskGroup() as group:
                for _ in range(100):
                    group.create_task(reviewer.may(Caller("u"), "get", "proxy"))
        assert len(api.told("create", "subjectaccessreviews")) == 1

    run_virtual(inside)


def test_the_wider_right_is_asked_for_where_the_narrow_one_is_not_given() -> None:
    """Older clusters know only nodes/proxy."""

    async def inside() -> None:
        api = KubeApi()
        api.may = lambda spec: spec["resourceAttributes"]["subresource"] == "proxy"
        async with api.client() as client:
            reviewer = Reviewer(client, node_name="n", clock=VirtualClock())
            assert await allowed(reviewer, Caller("u"), ("get",), ("pods", "proxy"))
            assert not await allowed(reviewer, Caller("u"), ("get",), ("metrics",))

    run_virtual(inside)


def test_every_verb_must_be_allowed() -> None:
    """A caller who may only `get` runs no command (S2)."""

    async def inside() -> None:
        api = KubeApi()
        api.may = lambda spec: spec["resourceAttributes"]["verb"] == "get"
        async with api.client() as client:
            reviewer = Reviewer(client, node_name="n", clock=VirtualClock())
            assert not await allowed(reviewer, Caller("u"), ("get", "create"), ("proxy",))

    run_virtual(inside)


def test_nobody_is_let_in_because_nobody_could_be_asked() -> None:
    """An API server that is away closes the door; it does not open it."""

    async def inside() -> None:
        api = KubeApi()
        api.tokens["good"] = {"username": "metrics"}
        async with api.client() as client:
            reviewer = Reviewer(client, node_name="n", clock=VirtualClock())
            api.set_down(True)
            with pytest.raises(KubeUnavailable):
                await reviewer.who(None, "Bearer good")
            with pytest.raises(KubeError):
                await allowed(reviewer, Caller("u"), ("get",), ("pods", "proxy"))
            api.set_down(False)
            assert await reviewer.who(None, "Bearer good") == Caller("metrics")

    run_virtual(inside)
