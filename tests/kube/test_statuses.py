"""Statuses and EndpointSlices as a real API server takes them: its merging, rules and fields."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import pytest

from gp4u.clock import SystemClock
from gp4u.kube import paths
from gp4u.kube.access import find_access
from gp4u.kube.client import KubeClient, open_client
from gp4u.kube.events import EventRecorder
from gp4u.kubelet.held import ContainerState, Ended, Run
from gp4u.kubelet.services.publish import Exposure, Publisher
from gp4u.kubelet.services.slices import SERVICE_NAME
from gp4u.kubelet.status.status import PodState, status_of, status_patch
from gp4u.kubelet.status.writer import StatusWriter
from gp4u.model import Endpoint
from tests.kube.controlplane import ControlPlane
from tests.kube.programs import NEWEST, OLDEST

AT = datetime(2026, 11, 1, 12, tzinfo=UTC)
LOST = Ended(exit_code=137, reason="Error", message="it died", started_at=AT, finished_at=AT)
DONE = Ended(exit_code=0, reason="Completed", container_id="gp4u://i/1")
GATE = {"type": "example.org/lb", "status": "True", "lastTransitionTime": "2026-11-01T12:00:00Z"}


def pod(name: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {
            "nodeName": "nowhere",
            "readinessGates": [{"conditionType": GATE["type"]}],
            "initContainers": [
                {"name": "setup", "image": "setup:1"},
                {"name": "proxy", "image": "proxy:1", "restartPolicy": "Always"},
            ],
            "containers": [
                {"name": "app", "image": "app:1", "ports": [{"containerPort": 8001}]},
                {"name": "beside", "image": "beside:1"},
            ],
        },
    }


def container(name: str, run: Run, **more: Any) -> ContainerState:
    return ContainerState(name=name, image=f"{name}:1", run=run, **more)


def life() -> list[dict[str, Any]]:
    """What a node knows of one pod, from first to last."""
    up = {"started_at": AT, "started": True, "ready": True, "container_id": "gp4u://i/1"}
    setup = container("setup", Run.TERMINATED, ended=DONE)
    proxy = container("proxy", Run.RUNNING, **up)
    app = container("app", Run.RUNNING, **up)
    beside = container("beside", Run.RUNNING, **{**up, "ready": False})
    again = container(
        "app",
        Run.WAITING,
        reason="CrashLoopBackOff",
        message="it died",
        last_ended=LOST,
        restarts=1,
    )
    first = {"init_containers": (setup, proxy), "machine_up": True}
    dead = tuple(
        container(name, Run.TERMINATED, ended=LOST, restarts=2) for name in ("app", "beside")
    )
    return [
        {"reason": "ProviderFailed", "message": "no offer fits"},
        {"init_containers": (container("setup", Run.RUNNING, started_at=AT),)},
        {**first, "containers": (app, beside)},
        {**first, "containers": (app, app), "pod_ip": "10.9.8.7"},
        {**first, "containers": (again, beside), "pod_ip": "10.9.8.8"},
        {**first, "containers": (app, beside), "pod_ip": "fd00::7"},
        {**first, "containers": (app, beside)},
        {
            "containers": dead,
            "phase": "Failed",
            "reason": "InstanceLost",
            "disruption": ("TerminationByKubelet", "the market took the machine"),
        },
    ]


async def bound(plane: ControlPlane, client: KubeClient, name: str) -> dict[str, Any]:
    plane.wait(("get", "serviceaccount", "default"), "default")
    plane.apply(pod(name))
    return await client.get(paths.pod("default", name))


@pytest.mark.parametrize("version", [NEWEST, OLDEST])
async def test_every_status_of_a_life_is_taken_as_it_was_meant(
    planes: Callable[[str], ControlPlane], version: str
) -> None:
    """Merged by the server's own rules it says what we said, and no more is to be written."""
    plane = planes(version)
    async with open_client(find_access(kubeconfig=str(plane.admin))) as client:
        seen: Any = await bound(plane, client, "life")
        writer = StatusWriter(client, random=Random(1))
        for number, known in enumerate(life()):
            at = AT + timedelta(seconds=number)
            state = PodState(acknowledged_at=AT, host_ip="10.0.0.9", **known)
            status = status_of(seen, state, at=at)
            seen = await writer.write(seen, status)
            assert seen is not None
            now = seen["status"]
            assert now["phase"] == status["phase"]
            for member in ("reason", "message", "podIP", "hostIP", "startTime"):
                assert now.get(member) == status.get(member), (number, member)
            assert now.get("podIPs", []) == status.get("podIPs", [])
            told = {each["type"]: each for each in now["conditions"]}
            for each in status["conditions"]:
                assert told[each["type"]].get("reason") == each.get("reason"), (number, each)
                assert told[each["type"]]["status"] == each["status"], (number, each)
            again = status_of(seen, state, at=at + timedelta(minutes=1))
            assert status_patch(seen, again) is None, number
            if number == 2:
                body = {"status": {"conditions": [GATE]}}
                seen = await client.patch(paths.pod("default", "life", "status"), body)
        assert seen["status"]["qosClass"] == "BestEffort"
        assert GATE["type"] in {each["type"] for each in seen["status"]["conditions"]}
        assert writer.written == len(life())


@pytest.mark.parametrize("version", [NEWEST, OLDEST])
async def test_a_namesake_gets_no_status_of_another_pod(
    planes: Callable[[str], ControlPlane], version: str
) -> None:
    """K7: the server itself compares the UID in the patch."""
    plane = planes(version)
    async with open_client(find_access(kubeconfig=str(plane.admin))) as client:
        first = await bound(plane, client, "namesake")
        await client.delete(paths.pod("default", "namesake"), grace_s=0)
        await bound(plane, client, "namesake")
        state = PodState(acknowledged_at=AT, host_ip="10.0.0.9", reason="Mistaken")
        writer = StatusWriter(client, random=Random(1))
        assert await writer.write(first, status_of(first, state, at=AT)) is None
        now = await client.get(paths.pod("default", "namesake"))
        assert "reason" not in now["status"]


@pytest.mark.parametrize("version", [NEWEST, OLDEST])
async def test_slices_follow_a_pod_and_are_gone_when_it_is_withdrawn(
    planes: Callable[[str], ControlPlane], version: str
) -> None:
    """The server's validation is the judge of every field, and its watch tells what became."""
    plane = planes(version)
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "exposed", "annotations": {"gp4u.io/selector": "app=exposed"}},
        "spec": {"ports": [{"name": "web", "port": 80, "targetPort": 8001}]},
    }
    async with (
        open_client(find_access(kubeconfig=str(plane.admin))) as client,
        asyncio.TaskGroup() as group,
    ):
        about = await bound(plane, client, "exposed")
        plane.apply(service)
        recorder = EventRecorder(
            client, component="gp4u", host="nowhere", clock=SystemClock(), random=Random(1)
        )
        publisher = Publisher(
            client,
            node_name="nowhere",
            random=Random(1),
            recorder=recorder,
            allow_loopback=True,
        )
        task = group.create_task(publisher.run())
        params = {"labelSelector": f"{SERVICE_NAME}=exposed"}

        async def until(wanted: list[tuple[str, int, bool]]) -> list[dict[str, Any]]:
            async with asyncio.timeout(20):
                while True:
                    listed = await client.list(paths.endpointslices("default"), **params)
                    found = [
                        (end["addresses"][0], each["ports"][0]["port"], end["conditions"]["ready"])
                        for each in listed.items
                        for end in each["endpoints"]
                    ]
                    if found == wanted:
                        return listed.items
                    await asyncio.sleep(0.05)

        end = Endpoint(container_port=8001, host="203.0.113.45", port=42352)
        publisher.set(Exposure(pod=about, endpoints=(end,)))
        (made,) = await until([("203.0.113.45", 42352, False)])
        publisher.set(Exposure(pod=about, endpoints=(end,), ready=True))
        (now,) = await until([("203.0.113.45", 42352, True)])
        assert now["metadata"]["uid"] == made["metadata"]["uid"]
        await publisher.withdraw(about["metadata"]["uid"])
        assert (await client.list(paths.endpointslices("default"), **params)).items == []
        assert publisher.trouble == ""
        task.cancel()
