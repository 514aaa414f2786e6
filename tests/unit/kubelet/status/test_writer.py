"""Statuses on their way to an API server that is slow, away, full or says no."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import pytest

from gp4u.kubelet.held import ContainerState, Run
from gp4u.kubelet.status.status import PodState, status_of
from gp4u.kubelet.status.writer import StatusWriter
from tests.kube_api import KubeApi
from tests.virtual_loop import EPOCH, run_virtual

PATH = "/api/v1/namespaces/default/pods/job"


def pod_body(name: str = "job") -> dict[str, Any]:
    return {
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {"nodeName": "node-1", "containers": [{"name": "app", "image": "app:1"}]},
        "status": {"phase": "Pending"},
    }


def told(pod: Mapping[str, Any], run: Run = Run.RUNNING, **more: Any) -> dict[str, Any]:
    app = ContainerState(name="app", image="app:1", run=run, started=True, ready=True)
    state = PodState(containers=(app,), acknowledged_at=EPOCH, host_ip="10.0.0.9", **more)
    return status_of(pod, state, at=EPOCH)


@asynccontextmanager
async def writing() -> AsyncIterator[tuple[KubeApi, StatusWriter, dict[str, Any]]]:
    api = KubeApi()
    pod = api.add(pod_body())
    async with api.client() as client:
        yield api, StatusWriter(client, random=Random(1)), pod


def test_a_status_is_written_and_comes_back() -> None:
    """The caller goes on from what the server made of it."""

    async def story() -> None:
        async with writing() as (api, writer, pod):
            after = await writer.write(pod, told(pod))
            assert after is not None
            assert after["status"]["phase"] == "Running"
            assert api.find(PATH) == after
            (call,) = api.told("*", "pods")
            assert call.path == f"{PATH}/status"
            assert call.body["metadata"] == {"uid": pod["metadata"]["uid"]}

    run_virtual(story)


def test_a_status_that_is_there_already_is_not_written() -> None:
    """Level, not edge: a worker says how things stand as often as it likes."""

    async def story() -> None:
        async with writing() as (api, writer, pod):
            after = await writer.write(pod, told(pod))
            assert after is not None
            again = await writer.write(after, told(after))
            assert again == after
            assert len(api.told("patch")) == 1

    run_virtual(story)


def test_a_look_that_lags_behind_our_own_write_loses_nothing() -> None:
    """The watch brings the pod later than the reply does; a flap in between must be undone."""

    async def story() -> None:
        async with writing() as (api, writer, pod):
            await writer.write(pod, told(pod, reason="Slow"))
            await asyncio.sleep(2)
            # Made from the look before the first write, and equal to it but for that reason.
            await writer.write(pod, told(pod))
            now = api.find(PATH)
            assert now is not None
            assert "reason" not in now["status"]

    run_virtual(story)


def test_a_pod_is_written_about_once_a_second_and_the_newest_wins() -> None:
    """Probe flapping must not become a write storm."""

    async def story() -> None:
        async with writing() as (api, writer, pod):
            loop = asyncio.get_running_loop()
            async with asyncio.TaskGroup() as group:
                for number in range(20):
                    group.create_task(writer.write(pod, told(pod, reason=f"R{number}")))
                    await asyncio.sleep(0.05)
            assert loop.time() <= 3.0
            assert len(api.told("patch")) <= 3
            now = api.find(PATH)
            assert now is not None
            assert now["status"]["reason"] == "R19"

    run_virtual(story)


def test_the_end_of_a_pod_is_told_at_once() -> None:
    """A Job that waits for it should not wait for our pace, not even behind a write that does."""

    async def story() -> None:
        async with writing() as (api, writer, pod):
            loop = asyncio.get_running_loop()
            after = await writer.write(pod, told(pod))
            assert after is not None
            async with asyncio.TaskGroup() as group:
                group.create_task(writer.write(after, told(after, reason="Slow")))
                await asyncio.sleep(0.1)
                ended = await writer.write(after, told(after, phase="Failed"))
                assert loop.time() < 0.2
            assert ended is not None
            assert ended["status"]["phase"] == "Failed"
            assert len(api.told("patch")) == 2

    run_virtual(story)


def test_a_status_outlasts_an_api_server_that_is_away() -> None:
    """K3: nothing is given up, and it is back within seconds of the server."""

    async def story() -> None:
        async with writing() as (api, writer, pod):
            api.set_down()
            async with asyncio.TaskGroup() as group:
                first = group.create_task(writer.write(pod, told(pod, reason="Old")))
                await asyncio.sleep(120)
                second = group.create_task(writer.write(pod, told(pod)))
                api.set_down(False)
            assert first.result() is not None
            assert second.result() == api.find(PATH)
            now = api.find(PATH)
            assert now is not None
            assert "reason" not in now["status"]

    run_virtual(story)


@pytest.mark.parametrize("namesake", [False, True])
def test_a_pod_that_is_gone_gets_no_status(namesake: bool) -> None:
    """K7, K11: 404 is the end, and a new pod of the same name is somebody else."""

    async def story() -> None:
        async with writing() as (api, writer, pod):
            api.remove(PATH, grace_s=0)
            if namesake:
                api.add(pod_body())
            assert await writer.write(pod, told(pod)) is None
            now = api.find(PATH)
            assert now is None or now["status"]["phase"] == "Pending"

    run_virtual(story)


def test_a_conflict_is_read_anew_and_written_again() -> None:
    """K11: somebody else was in between."""

    async def story() -> None:
        async with writing() as (api, writer, pod):
            api.fail("patch", "status", 409, reason="Conflict", times=2)
            gate = {"type": "example.org/lb", "status": "True"}
            api.change(f"{PATH}/status", {"status": {"conditions": [gate]}})
            after = await writer.write(pod, told(pod))
            assert after is not None
            assert after["status"]["phase"] == "Running"
            assert gate in after["status"]["conditions"]

    run_virtual(story)


def test_an_invalid_status_is_sent_once() -> None:
    """K11: sending it again would be answered the same for ever."""

    async def story() -> None:
        async with writing() as (api, writer, pod):
            api.fail("patch", "status", 422, reason="Invalid")
            for _ in range(3):
                assert await writer.write(pod, told(pod)) == pod
                await asyncio.sleep(5)
            assert len(api.told("patch")) == 1
            await writer.write(pod, told(pod, reason="Another"))
            assert len(api.told("patch")) == 2

    run_virtual(story)


def test_a_denial_is_an_alert_and_not_a_loop() -> None:
    """K11: somebody has to mend a role; once it is, the newest status is written."""

    async def story() -> None:
        async with writing() as (api, writer, pod):
            denial = api.deny("patch", "pods/status")
            async with asyncio.TaskGroup() as group:
                task = group.create_task(writer.write(pod, told(pod)))
                await asyncio.sleep(600)
                assert "forbidden" in writer.denied
                assert denial.hits <= 10
                denial.lift()
                await asyncio.sleep(400)
                assert task.done()
                assert writer.denied == ""
            now = api.find(PATH)
            assert now is not None
            assert now["status"]["phase"] == "Running"

    run_virtual(story)
