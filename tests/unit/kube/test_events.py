"""Events: they arrive, and they never flood or block anybody."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random
from typing import Any

from gp4u.kube.events import BURST, QUEUE, EventRecorder
from tests.kube_api import KubeApi
from tests.virtual_loop import VirtualClock, run_virtual

NODE = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1", "uid": "n1"}}


def pod(name: str = "a") -> dict[str, Any]:
    """Return a pod to tell about."""
    meta = {"name": name, "namespace": "default", "uid": f"uid-{name}", "resourceVersion": "7"}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta}


@asynccontextmanager
async def recording(api: KubeApi) -> AsyncIterator[EventRecorder]:
    """Run a recorder against this server."""
    async with api.client() as client, asyncio.TaskGroup() as group:
        recorder = EventRecorder(
            client, component="gp4u", host="n1", clock=VirtualClock(), random=Random(1)
        )
        task = group.create_task(recorder.run())
        yield recorder
        task.cancel()


def test_an_event_arrives_with_all_that_kubectl_describe_looks_for() -> None:
    """Peers built a recorder without a sink, and nobody noticed."""

    async def life() -> None:
        api = KubeApi()
        async with recording(api) as recorder:
            recorder.tell(
                pod(), "Normal", "OfferSelected", "cheap", field_path="spec.containers{main}"
            )
            await asyncio.sleep(1)
        (event,) = api.all("events")
        assert event["involvedObject"] == {
            "apiVersion": "v1",
            "kind": "Pod",
            "namespace": "default",
            "name": "a",
            "uid": "uid-a",
            "resourceVersion": "7",
            "fieldPath": "spec.containers{main}",
        }
        assert event["source"] == {"component": "gp4u", "host": "n1"}
        assert (event["type"], event["reason"], event["message"]) == (
            "Normal",
            "OfferSelected",
            "cheap",
        )
        assert event["count"] == 1
        assert event["firstTimestamp"] == event["lastTimestamp"] == "2026-01-01T00:00:00Z"
        assert event["metadata"]["namespace"] == "default"

    run_virtual(life)


def test_a_nodes_event_lives_in_the_default_namespace() -> None:
    """The API refuses it anywhere else, as nodes have none."""

    async def life() -> None:
        api = KubeApi()
        async with recording(api) as recorder:
            recorder.tell(NODE, "Normal", "Starting", "up")
            await asyncio.sleep(1)
            assert recorder.sent == 1

    run_virtual(life)


def test_a_repeated_event_is_counted_up() -> None:
    """One line with a count tells more than fifty lines."""

    async def life() -> None:
        api = KubeApi()
        async with recording(api) as recorder:
            for _ in range(5):
                recorder.tell(pod(), "Warning", "NoOffer", "nothing fits")
                await asyncio.sleep(30)
        (event,) = api.all("events")
        assert event["count"] == 5
        assert event["lastTimestamp"] == "2026-01-01T00:02:00Z"

    run_virtual(life)


def test_an_event_that_expired_is_told_anew() -> None:
    """The API forgets events after an hour; a count of nothing would be lost."""

    async def life() -> None:
        api = KubeApi()
        async with recording(api) as recorder:
            recorder.tell(pod(), "Warning", "NoOffer", "nothing fits")
            await asyncio.sleep(1)
            (event,) = api.all("events")
            api.remove(f"/api/v1/namespaces/default/events/{event['metadata']['name']}")
            recorder.tell(pod(), "Warning", "NoOffer", "nothing fits")
            await asyncio.sleep(1)
        (event,) = api.all("events")
        assert event["count"] == 2

    run_virtual(life)


def test_many_similar_events_become_one() -> None:
    """A message with a number in it is another one each time, and no less a flood."""

    async def life() -> None:
        api = KubeApi()
        async with recording(api) as recorder:
            for number in range(20):
                recorder.tell(pod(), "Warning", "NoOffer", f"{number} offers, none fits")
                await asyncio.sleep(1)
        events = api.all("events")
        assert len(events) == 11
        (combined,) = [each for each in events if each["message"].startswith("(combined")]
        assert combined["count"] == 10
        assert combined["message"].endswith("19 offers, none fits")

    run_virtual(life)


def test_one_object_cannot_flood_the_cluster_nor_silence_another() -> None:
    """25 at once, then one in five minutes; and each object has its own allowance."""

    async def life() -> None:
        api = KubeApi()
        async with recording(api) as recorder:
            for number in range(100):
                recorder.tell(pod(), "Normal", f"Reason{number}", "words")
            recorder.tell(pod("b"), "Normal", "Quiet", "words")
            await asyncio.sleep(1)
            about = [each["involvedObject"]["name"] for each in api.all("events")]
            assert about.count("a") == BURST
            assert about.count("b") == 1
            assert recorder.dropped == 100 - BURST
            await asyncio.sleep(301)
            recorder.tell(pod(), "Normal", "Later", "words")
            await asyncio.sleep(1)
            assert len(api.all("events")) == BURST + 2

    run_virtual(life)


def test_telling_never_blocks_and_memory_is_bounded_while_the_api_is_away() -> None:
    """Nobody may wait for an event, least of all for ever."""

    async def life() -> None:
        api = KubeApi()
        api.set_down()
        async with recording(api) as recorder:
            for number in range(QUEUE + 500):
                recorder.tell(pod(f"p{number}"), "Normal", "Told", "words")
            assert len(recorder._queue) == QUEUE
            await asyncio.sleep(3)
            api.set_down(False)
            await asyncio.sleep(60)
            assert recorder.sent + recorder.dropped == QUEUE + 500
            assert QUEUE - 2 <= len(api.all("events")) <= QUEUE

    run_virtual(life)


def test_an_event_survives_a_short_outage() -> None:
    """An API server that restarts must not cost the reason of a decision."""

    async def life() -> None:
        api = KubeApi()
        api.fail("create", "events", 503, times=3)
        async with recording(api) as recorder:
            recorder.tell(pod(), "Normal", "OfferSelected", "cheap")
            await asyncio.sleep(30)
        assert len(api.all("events")) == 1

    run_virtual(life)


def test_without_permission_each_event_costs_one_call_and_nothing_stops() -> None:
    """RBAC without events is a poorer node, and not a broken one (K12)."""

    async def life() -> None:
        api = KubeApi()
        denied = api.deny("create", "events")
        async with recording(api) as recorder:
            for number in range(10):
                recorder.tell(pod(), "Normal", f"Reason{number}", "words")
            await asyncio.sleep(60)
            assert denied.hits == 10
            assert recorder.dropped == 10
            denied.lift()
            recorder.tell(pod(), "Normal", "Again", "words")
            await asyncio.sleep(1)
            assert len(api.all("events")) == 1

    run_virtual(life)


def test_a_message_is_one_clean_line() -> None:
    """What a market says is foreign text: no escape sequence reaches somebody's terminal."""

    async def life() -> None:
        api = KubeApi()
        async with recording(api) as recorder:
            recorder.tell(pod(), "Normal", "Told", "red\x1b[31m\nand more" + "x" * 10_000)
            await asyncio.sleep(1)
        (event,) = api.all("events")
        assert event["message"].startswith("red[31m and more")
        assert len(event["message"]) == 4096

    run_virtual(life)


def test_the_end_of_a_process_sends_what_waits_within_its_time() -> None:
    """The last words of a node are often the ones that matter."""

    async def life() -> None:
        api = KubeApi()
        async with api.client() as client:
            recorder = EventRecorder(
                client, component="gp4u", host="n1", clock=VirtualClock(), random=Random(1)
            )
            recorder.tell(pod(), "Normal", "Killing", "bye")
            await recorder.flush(2)
            assert len(api.all("events")) == 1
            api.set_down()
            recorder.tell(pod("b"), "Normal", "Killing", "bye")
            began = asyncio.get_running_loop().time()
            await recorder.flush(2)
            assert asyncio.get_running_loop().time() - began <= 2

    run_virtual(life)
