"""Calls to the API server: what each status means, what is sent, and what is bounded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import httpx
import pytest

from gp4u.errors import (
    BadInput,
    KubeAbsent,
    KubeConflict,
    KubeDenied,
    KubeError,
    KubeExists,
    KubeGone,
    KubeInvalid,
    KubeUnavailable,
)
from gp4u.kube import paths
from gp4u.kube.client import AT_ONCE, BEHIND_S, MAX_EVENT_BYTES, KubeClient, PatchKind, open_client
from tests.kube_api import Cut, KubeApi
from tests.virtual_loop import run_virtual

POD = {"kind": "Pod", "metadata": {"name": "a"}, "spec": {"nodeName": "n1"}}


@pytest.mark.parametrize(
    ("code", "reason", "kind"),
    [
        (400, "BadRequest", KubeInvalid),
        (401, "Unauthorized", KubeDenied),
        (403, "Forbidden", KubeDenied),
        (404, "NotFound", KubeAbsent),
        (405, "MethodNotAllowed", KubeInvalid),
        (409, "AlreadyExists", KubeExists),
        (409, "Conflict", KubeConflict),
        (410, "Expired", KubeGone),
        (422, "Invalid", KubeInvalid),
        (429, "TooManyRequests", KubeUnavailable),
        (500, "InternalError", KubeUnavailable),
        (503, "ServiceUnavailable", KubeUnavailable),
        (504, "Timeout", KubeUnavailable),
    ],
)
def test_each_status_is_one_error(code: int, reason: str, kind: type[KubeError]) -> None:
    """Who acts on a failure is decided by its class alone."""

    async def life() -> None:
        api = KubeApi()
        api.fail("get", "pods/a", code, reason=reason, message="words")
        async with api.client() as client:
            with pytest.raises(KubeError, match=f"GET /api/v1.*{code} words") as caught:
                await client.get(paths.pod("default", "a"))
        assert type(caught.value) is kind

    run_virtual(life)


def test_retry_after_is_handed_on() -> None:
    """Whoever backs off needs the server's own word."""

    async def life() -> None:
        api = KubeApi()
        api.fail("get", "pods", 429, retry_after_s=7)
        async with api.client() as client:
            with pytest.raises(KubeUnavailable) as caught:
                await client.get(paths.pod("default", "a"))
        assert caught.value.retry_after_s == 7

    run_virtual(life)


def test_a_server_that_is_down_or_hangs_is_unavailable_in_time() -> None:
    """The heartbeat gives a call 10 s, and a call without an end would be a heartbeat missed."""

    async def life() -> None:
        api = KubeApi()
        loop = asyncio.get_running_loop()
        async with api.client(timeout_s=10) as client:
            api.set_down()
            with pytest.raises(KubeUnavailable, match="refused"):
                await client.get(paths.node("n1"))
            api.set_down(False)
            api.hung = True
            began = loop.time()
            with pytest.raises(KubeUnavailable, match="within 10 s"):
                await client.get(paths.node("n1"))
            assert loop.time() - began == pytest.approx(10)

    run_virtual(life)


def test_an_object_is_made_read_changed_and_deleted() -> None:
    """The verbs, each against the server's own rules."""

    async def life() -> None:
        api = KubeApi()
        async with api.client() as client:
            made = await client.create(paths.pods("default"), POD)
            path = paths.pod("default", "a")
            with pytest.raises(KubeExists):
                await client.create(paths.pods("default"), POD)
            await client.patch(path, {"metadata": {"labels": {"x": "1"}}})
            await client.patch(
                path, {"metadata": {"labels": {"x": None, "y": "2"}}}, kind=PatchKind.MERGE
            )
            steps = [{"op": "add", "path": "/metadata/labels/z", "value": "3"}]
            changed = await client.patch(path, steps, kind=PatchKind.JSON)
            assert changed["metadata"]["labels"] == {"y": "2", "z": "3"}
            with pytest.raises(KubeConflict):
                await client.replace(path, made)
            with pytest.raises(KubeConflict):
                await client.patch(path, {"metadata": {"uid": "another"}})
            with pytest.raises(KubeConflict):
                await client.delete(path, uid="another", grace_s=0)
            await client.delete(path, uid=made["metadata"]["uid"], grace_s=0)
            with pytest.raises(KubeAbsent):
                await client.get(path)

    run_virtual(life)


def test_a_list_that_expires_while_it_is_read_is_read_again_at_once() -> None:
    """A half list would be taken for the whole, and what it lacks for deleted."""

    async def life() -> None:
        api = KubeApi()
        for number in range(600):
            api.add({**POD, "metadata": {"name": f"p{number}"}})
        async with api.client() as client:
            api.latency_s = 1

            async def compact() -> None:
                await asyncio.sleep(1.5)  # between the first page and the second
                api.change(
                    "/api/v1/namespaces/default/pods/p1", {"metadata": {"labels": {"x": ""}}}
                )
                api.forget_history()

            async with asyncio.TaskGroup() as group:
                group.create_task(compact())
                listed = await client.list(paths.pods())
        assert len(listed.items) == 600
        assert [call.query.get("limit") for call in api.told("list")][-1] is None

    run_virtual(life)


def test_a_field_that_cannot_be_selected_by_is_invalid() -> None:
    """spec.nodeName works on pods alone: elsewhere it would look like an empty cluster."""

    async def life() -> None:
        async with KubeApi().client() as client:
            with pytest.raises(KubeInvalid, match="field label not supported"):
                await client.list(paths.secrets(), fieldSelector="spec.nodeName=n1")

    run_virtual(life)


def test_a_burst_of_writes_keeps_its_rate_and_deletes_do_not_wait_behind_it() -> None:
    """Teardown has its own lane: what costs money must not queue behind what will."""

    async def life() -> None:
        api = KubeApi()
        loop = asyncio.get_running_loop()
        api.add(POD)
        ended: dict[str, float] = {}
        async with api.client(writes_per_s=50) as client, asyncio.TaskGroup() as group:

            async def make(number: int) -> None:
                await client.create(
                    paths.pods("default"), {"kind": "Pod", "metadata": {"name": f"n{number}"}}
                )
                ended["made"] = loop.time()

            async def remove() -> None:
                await asyncio.sleep(0.1)
                await client.delete(paths.pod("default", "a"), grace_s=0)
                ended["removed"] = loop.time()

            for number in range(600):
                group.create_task(make(number))
            group.create_task(remove())
        assert ended["made"] == pytest.approx(10, abs=0.1)
        assert ended["removed"] == pytest.approx(0.1, abs=0.05)

    run_virtual(life)


class _Raw(httpx.AsyncBaseTransport):
    """Answers everything with these bytes, in these pieces, and then ends."""

    def __init__(self, *pieces: bytes, status: int = 200) -> None:
        self._pieces, self._status = pieces, status

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        class Stream(httpx.AsyncByteStream):
            async def __aiter__(inner) -> AsyncIterator[bytes]:  # noqa: N805  # `self` is taken
                for piece in self._pieces:
                    yield piece

        return httpx.Response(self._status, stream=Stream())


def test_a_watch_is_cut_into_lines_wherever_the_pieces_end() -> None:
    """TCP keeps no lines; and the end of the stream may come without a line feed before it."""

    async def life() -> None:
        text = b"".join(
            b'{"type":"ADDED","object":{"metadata":{"name":"p%d"}}}\n' % n for n in range(50)
        )
        for size in (1, 7, 53, 1000):
            pieces = [text[at : at + size] for at in range(0, len(text), size)]
            async with open_client(transport=_Raw(*pieces)) as client:
                events = client.watch(paths.pods(), version="1")
                names = [event.object["metadata"]["name"] async for event in events]
            assert names == [f"p{n}" for n in range(50)]

    run_virtual(life)


@pytest.mark.parametrize(
    "pieces",
    [
        [b"no json\n"],
        [b'{"type":"ADDED"}\n'],
        [b"[" * 100_000 + b"\n"],
        [b"x" * (1024 * 1024)] * (MAX_EVENT_BYTES // (1024 * 1024) + 1),
        [b'{"type":"ERROR","object":{"kind":"Status","code":500,"message":"oops"}}\n'],
    ],
)
def test_a_stream_that_is_no_watch_is_an_outage_and_nothing_worse(pieces: list[bytes]) -> None:
    """A proxy in between can say anything; it must neither crash the node nor fill its memory."""

    async def life() -> None:
        async with open_client(transport=_Raw(*pieces)) as client:
            with pytest.raises(KubeUnavailable):
                async for _ in client.watch(paths.pods(), version="1"):
                    pass

    run_virtual(life)


def test_a_reply_that_is_no_status_is_still_told_in_its_own_words() -> None:
    """A load balancer answers in HTML, and its words are all there is to go by."""

    async def life() -> None:
        async with open_client(transport=_Raw(b"<h1>bad gateway</h1>", status=502)) as client:
            with pytest.raises(KubeUnavailable, match="502 <h1>bad gateway"):
                await client.get(paths.node("n1"))

    run_virtual(life)


def test_leaving_a_watch_early_closes_it() -> None:
    """Each forgotten one would hold a connection of the server's for ten minutes."""

    async def life() -> None:
        api = KubeApi()
        async with api.client() as client:
            events = client.watch(paths.pods(), version=str(api.store.version))
            api.add(POD)
            async with aclosing(events):
                async for _ in events:
                    assert api.watching == 1
                    break
            assert api.watching == 0

    run_virtual(life)


def test_a_watch_that_falls_silent_is_an_outage() -> None:
    """Half-open TCP brings neither data nor an error (K2)."""

    async def life() -> None:
        api = KubeApi()
        loop = asyncio.get_running_loop()
        async with api.client() as client, asyncio.TaskGroup() as group:

            async def follow() -> None:
                with pytest.raises(KubeUnavailable, match="nothing heard"):
                    async for _ in client.watch(paths.pods(), version=str(api.store.version)):
                        pass

            began = loop.time()
            task = group.create_task(follow())
            await asyncio.sleep(1)
            api.cut(Cut.SILENT)
            await task
            assert loop.time() - began <= 151

    run_virtual(life)


@pytest.mark.parametrize("name", ["", ".", ".."])
def test_a_name_that_walks_is_refused(name: str) -> None:
    """A user's annotation names a Service; it must not name somebody else's Secret."""
    with pytest.raises(BadInput):
        paths.secret("default", name)


def test_a_name_stays_one_segment() -> None:
    """Whatever is in it: slashes and question marks are quoted."""
    assert paths.configmap("a/b", "c?d/../e") == (
        "/api/v1/namespaces/a%2Fb/configmaps/c%3Fd%2F..%2Fe"
    )


def test_what_can_wait_lets_everything_else_go_first() -> None:
    """A thousand pods tell their statuses at once: an Event must take no room of theirs."""

    async def life() -> None:
        api, order = KubeApi(), list[str]()
        api.latency_s = 0.1
        async with api.client() as client, asyncio.TaskGroup() as group:
            later = client.beside(writes_per_s=None)

            async def make(by: KubeClient, name: str) -> None:
                await by.create(paths.pods("default"), {"kind": "Pod", "metadata": {"name": name}})
                order.append(name)

            statuses = 5 * AT_ONCE
            for number in range(statuses):
                group.create_task(make(client, f"status-{number}"))
            await asyncio.sleep(0)
            group.create_task(make(later, "event"))
        assert statuses - AT_ONCE <= order.index("event") <= statuses

    run_virtual(life)


def test_what_can_wait_does_not_wait_for_ever() -> None:
    """Statuses may never end; each Event waits for a second, and then takes its turn."""

    async def life() -> None:
        api, loop = KubeApi(), asyncio.get_running_loop()
        api.latency_s = 20.0
        async with api.client() as client, asyncio.TaskGroup() as group:
            for number in range(2 * AT_ONCE):
                group.create_task(
                    client.create(
                        paths.pods("default"), {"kind": "Pod", "metadata": {"name": f"n{number}"}}
                    )
                )
            await asyncio.sleep(0)
            later = client.beside(writes_per_s=None)
            await later.create(paths.pods("default"), {"kind": "Pod", "metadata": {"name": "e"}})
            assert loop.time() == pytest.approx(BEHIND_S + api.latency_s, abs=0.1)

    run_virtual(life)
