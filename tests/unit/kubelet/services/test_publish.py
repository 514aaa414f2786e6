"""Services that lead to rented machines, and stop doing so in time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import pytest
from structlog.testing import capture_logs

from gp4u.kube.client import KubeClient
from gp4u.kube.events import EventRecorder
from gp4u.kubelet.services.publish import REFRESH_S, WITHDRAW_S, Exposure, Publisher
from gp4u.kubelet.services.slices import MANAGED_BY, OURS, SERVICE_NAME
from gp4u.model import Endpoint, Protocol
from tests.kube_api import Cut, KubeApi
from tests.virtual_loop import VirtualClock, run_virtual

IP = "8.8.4.4"
SLICES = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices"


def june(**meta: Any) -> dict[str, Any]:
    """The pod of the worked example: two services of one machine."""
    ports = [
        {"name": "stt", "containerPort": 8001},
        {"name": "tts", "containerPort": 8000},
    ]
    return {
        "kind": "Pod",
        "metadata": {"name": "june", "labels": {"app": "june"}, **meta},
        "spec": {
            "nodeName": "node-1",
            "containers": [{"name": "app", "image": "june:1", "ports": ports}],
        },
        "status": {"phase": "Running"},
    }


def service(name: str, port: int, target: int | str | None = None, **more: Any) -> dict[str, Any]:
    listed = {"name": "http", "port": port, "targetPort": target or port, "protocol": "TCP"}
    meta = {"name": name, "annotations": {"gp4u.io/pod": "june"}, **more.pop("metadata", {})}
    spec = {"ports": [listed], "clusterIP": "10.96.0.9", "ipFamilies": ["IPv4"], **more}
    return {"kind": "Service", "metadata": meta, "spec": spec}


def machine(host: str = IP) -> tuple[Endpoint, ...]:
    return (
        Endpoint(container_port=8001, host=host, port=42352),
        Endpoint(container_port=8000, host=host, port=42351),
    )


class World:
    """A cluster, a publisher of one node, and what names lead to."""

    def __init__(self, api: KubeApi, client: KubeClient, **options: Any) -> None:
        self.api = api
        self.names: dict[str, list[str]] = {}
        self.recorder = EventRecorder(
            client, component="gp4u", host="node-1", clock=VirtualClock(), random=Random(2)
        )
        self.publisher = self.another(client, **options)
        self.tasks: list[asyncio.Task[None]] = []

    def another(self, client: KubeClient, **options: Any) -> Publisher:
        options = {"node_name": "node-1", "resolve": self.resolve, **options}
        return Publisher(client, random=Random(1), recorder=self.recorder, **options)

    async def resolve(self, host: str) -> list[str]:
        if host.replace(".", "").isdigit():
            return [host]
        if host not in self.names:
            raise OSError(host)
        return self.names[host]

    def slices(self) -> list[dict[str, Any]]:
        return self.api.all("endpointslices")

    def ends(self) -> dict[str, tuple[list[str], int, bool]]:
        """Service to addresses, first port, and whether the first is ready."""
        found = {}
        for each in self.slices():
            name = each["metadata"]["labels"][SERVICE_NAME]
            ips = [ip for end in each["endpoints"] for ip in end["addresses"]]
            ready = each["endpoints"][0]["conditions"]["ready"]
            found[name] = (ips, each["ports"][0]["port"], ready)
        return found

    def reasons(self) -> list[str]:
        return sorted(each["reason"] for each in self.api.all("events"))

    def set(self, pod: Mapping[str, Any], **more: Any) -> None:
        more = {"endpoints": machine(), "ready": True, "provider": "vastai", **more}
        self.publisher.set(Exposure(pod=pod, **more))


@asynccontextmanager
async def world(**options: Any) -> AsyncIterator[World]:
    api = KubeApi()
    async with api.client() as client, asyncio.TaskGroup() as group:
        found = World(api, client, **options)
        for run in (found.publisher.run, found.recorder.run):
            found.tasks.append(group.create_task(run()))
        await asyncio.sleep(1)
        yield found
        for task in found.tasks:
            task.cancel()


def test_two_services_of_one_machine_get_its_remapped_ports() -> None:
    """The seed's worked example, with its log lines."""

    async def story() -> None:
        async with world() as w:
            pod = w.api.add(june())
            stt = w.api.add(service("june-stt", 8001))
            w.api.add(service("june-tts", 80, "tts"))
            await asyncio.sleep(1)
            with capture_logs() as logs:
                w.set(pod)
                await asyncio.sleep(1)
            assert w.ends() == {
                "june-stt": ([IP], 42352, True),
                "june-tts": ([IP], 42351, True),
            }
            told = next(e for e in w.slices() if "june-stt" in e["metadata"]["name"])
            assert told["metadata"]["name"].startswith("june-stt-gp4u-")
            assert told["metadata"]["labels"] == {SERVICE_NAME: "june-stt", MANAGED_BY: OURS}
            (owner,) = told["metadata"]["ownerReferences"]
            assert owner["uid"] == stt["metadata"]["uid"]
            assert "blockOwnerDeletion" not in owner
            assert told["addressType"] == "IPv4"
            assert told["ports"] == [{"name": "http", "port": 42352, "protocol": "TCP"}]
            (end,) = told["endpoints"]
            assert end["targetRef"]["uid"] == pod["metadata"]["uid"]
            assert end["conditions"] == {"ready": True, "serving": True, "terminating": False}
            lines = [each["event"] for each in logs]
            assert lines[:3] == [
                "[VAST] Instance ready, updating service endpoints:",
                f"  - june-stt.default.svc.cluster.local:8001 → {IP}:42352",
                f"  - june-tts.default.svc.cluster.local:80 → {IP}:42351",
            ]
            assert "EndpointPublished" in w.reasons()

    run_virtual(story)


def test_a_pod_can_name_its_services_itself() -> None:
    """`gp4u.io/expose` serves those who cannot annotate the Service."""

    async def story() -> None:
        async with world() as w:
            said = {"gp4u.io/expose": "june-stt:8001, june-tts:8000, june-more:1"}
            pod = w.api.add(june(annotations=said))
            for name, port in (("june-stt", 8001), ("june-tts", 80)):
                body = service(name, port, 8001 if name == "june-stt" else 80)
                body["metadata"]["annotations"] = {}
                w.api.add(body)
            await asyncio.sleep(1)
            w.set(pod)
            await asyncio.sleep(1)
            assert w.ends() == {
                "june-stt": ([IP], 42352, True),
                "june-tts": ([IP], 42351, True),
            }
            assert "ServiceMissing" in w.reasons()
            body = service("june-more", 1)
            body["metadata"]["annotations"] = {}
            w.api.add(body)
            await asyncio.sleep(1)
            assert "EndpointPortMissing" in w.reasons()

    run_virtual(story)


def test_a_service_can_select_pods_by_labels_that_are_ours_to_read() -> None:
    """A Deployment's pods have no names that a Service could know."""

    async def story() -> None:
        async with world() as w:
            first = w.api.add(june())
            second = w.api.add(june(name="june-2"))
            other = w.api.add(june(name="other", labels={"app": "other"}))
            away = w.api.add(june(namespace="away"))
            body = service("june-stt", 8001)
            body["metadata"]["annotations"] = {"gp4u.io/selector": "app=june"}
            w.api.add(body)
            for number, pod in enumerate((first, second, other, away)):
                w.set(pod, endpoints=machine(f"8.8.4.{number}"))
            await asyncio.sleep(1)
            ips = {end["addresses"][0] for each in w.slices() for end in each["endpoints"]}
            assert ips == {"8.8.4.0", "8.8.4.1"}

    run_virtual(story)


def test_a_pod_that_is_not_ready_is_listed_as_such() -> None:
    """Nothing is sent there, and who asks sees why."""

    async def story() -> None:
        async with world() as w:
            pod = w.api.add(june())
            w.api.add(service("june-stt", 8001))
            w.set(pod, ready=False)
            await asyncio.sleep(1)
            assert w.ends() == {"june-stt": ([IP], 42352, False)}
            w.set(pod)
            await asyncio.sleep(1)
            assert w.ends() == {"june-stt": ([IP], 42352, True)}
            writes = len(w.api.told("create", SLICES)) + len(w.api.told("patch", SLICES))
            assert writes == 2

    run_virtual(story)


def test_endpoints_are_out_before_withdraw_returns() -> None:
    """The address may be another customer's a moment after the machine is released."""

    async def story() -> None:
        async with world() as w:
            pod = w.api.add(june())
            w.api.add(service("june-stt", 8001))
            w.set(pod)
            await asyncio.sleep(1)
            w.api.calls.clear()
            await w.publisher.withdraw(pod["metadata"]["uid"])
            assert w.slices() == []
            verbs = [call.verb for call in w.api.told("*", SLICES)]
            assert verbs == ["patch", "delete"]
            (leaving,) = w.api.told("patch", SLICES)
            (end,) = leaving.body["endpoints"]
            assert end["conditions"] == {"ready": False, "serving": True, "terminating": True}
            await asyncio.sleep(1)
            assert "EndpointWithdrawn" in w.reasons()

    run_virtual(story)


def test_a_withdrawal_while_slices_are_being_made_leaves_none() -> None:
    """K6: a pod that is deleted in that moment is never published."""

    async def story() -> None:
        async with world() as w:
            w.api.latency_s = 0.5
            pod = w.api.add(june())
            w.api.add(service("june-stt", 8001))
            await asyncio.sleep(2)
            w.set(pod)
            await asyncio.sleep(0.2)  # the create is on its way
            await w.publisher.withdraw(pod["metadata"]["uid"])
            await asyncio.sleep(5)
            assert w.slices() == []

    run_virtual(story)


def test_a_withdrawal_goes_on_when_the_api_server_is_back() -> None:
    """The machine's release does not wait for it longer than ten seconds."""

    async def story() -> None:
        async with world() as w:
            pod = w.api.add(june())
            w.api.add(service("june-stt", 8001))
            w.set(pod)
            await asyncio.sleep(1)
            w.api.set_down()
            began = asyncio.get_running_loop().time()
            await w.publisher.withdraw(pod["metadata"]["uid"])
            assert asyncio.get_running_loop().time() - began <= WITHDRAW_S + 0.1
            await asyncio.sleep(60)
            w.api.set_down(False)
            await asyncio.sleep(10)
            assert w.slices() == []

    run_virtual(story)


def test_a_create_whose_reply_is_lost_makes_no_second_slice() -> None:
    """It took effect, and nobody was told; kube-proxy would use both."""

    async def story() -> None:
        async with world() as w:
            pod = w.api.add(june())
            w.api.add(service("june-stt", 8001))
            await asyncio.sleep(1)
            w.api.cut(Cut.SILENT, "endpointslices")  # the informer will not tell either
            w.set(pod)
            await asyncio.sleep(1)
            w.publisher._books[pod["metadata"]["uid"]].slices.clear()
            w.set(pod, ready=False)
            await asyncio.sleep(1)
            assert w.ends() == {"june-stt": ([IP], 42352, False)}
            assert len(w.slices()) == 1

    run_virtual(story)


def test_a_strangers_slice_is_left_alone() -> None:
    """The controllers of the cluster, and other nodes of ours, have their own."""

    async def story() -> None:
        async with world() as w:
            pod = w.api.add(june())
            w.api.add(service("june-stt", 8001))
            theirs = {
                "kind": "EndpointSlice",
                "metadata": {"name": "june-stt-abc", "labels": {SERVICE_NAME: "june-stt"}},
                "addressType": "IPv4",
                "endpoints": [{"addresses": ["10.0.0.7"]}],
                "ports": [],
            }
            another = {
                **theirs,
                "metadata": {
                    "name": "june-stt-gp4u-x",
                    "labels": {SERVICE_NAME: "june-stt", MANAGED_BY: OURS},
                    "annotations": {"gp4u.io/node": "node-2", "gp4u.io/pod-uid": "gone"},
                },
            }
            w.api.add(theirs)
            w.api.add(another)
            w.set(pod)
            await asyncio.sleep(1)
            await w.publisher.withdraw(pod["metadata"]["uid"])
            await asyncio.sleep(REFRESH_S * 10)
            left = {each["metadata"]["name"] for each in w.slices()}
            assert left == {"june-stt-abc", "june-stt-gp4u-x"}

    run_virtual(story)


@pytest.mark.parametrize("fate", ["gone", "namesake", "ended", "alive"])
def test_slices_of_an_earlier_process_are_swept_when_their_pod_is_gone(fate: str) -> None:
    """K19: killed between release and withdrawal, the node must not leave a stranger's address."""

    async def story() -> None:
        async with world() as w:
            pod = w.api.add(june())
            w.api.add(service("june-stt", 8001))
            w.set(pod)
            await asyncio.sleep(1)
            w.tasks[0].cancel()  # killed
            path = "/api/v1/namespaces/default/pods/june"
            async with w.api.client() as client:
                after = w.another(client)
                if fate == "ended":
                    w.api.change(f"{path}/status", {"status": {"phase": "Failed"}})
                elif fate != "alive":
                    w.api.remove(path, grace_s=0)
                if fate == "namesake":
                    w.api.add(june())
                async with asyncio.TaskGroup() as group:
                    task = group.create_task(after.run())
                    await asyncio.sleep(2)
                    assert len(w.slices()) == (1 if fate == "alive" else 0)
                    if fate == "alive":  # its machine was lost meanwhile, says the controller
                        await after.withdraw(pod["metadata"]["uid"])
                        assert w.slices() == []
                    task.cancel()

    run_virtual(story)


def test_a_service_that_changes_takes_its_slices_along() -> None:
    """Level, not edge: whatever was true before does not matter."""

    async def story() -> None:
        async with world() as w:
            pod = w.api.add(june())
            w.api.add(service("june-stt", 8001))
            w.set(pod)
            await asyncio.sleep(1)
            path = "/api/v1/namespaces/default/services/june-stt"
            w.api.change(path, {"spec": {"ports": [{"port": 9, "targetPort": "tts"}]}})
            await asyncio.sleep(1)
            assert w.ends() == {"june-stt": ([IP], 42351, True)}
            w.api.change(path, {"metadata": {"annotations": {"gp4u.io/pod": "other"}}})
            await asyncio.sleep(1)
            assert w.slices() == []

    run_virtual(story)


def test_a_slice_that_somebody_edits_or_deletes_is_put_right() -> None:
    """S6: what a namespace user writes into it must not be where the Service leads."""

    async def story() -> None:
        async with world() as w:
            pod = w.api.add(june())
            w.api.add(service("june-stt", 8001))
            w.set(pod)
            await asyncio.sleep(1)
            path = f"{SLICES}/{w.slices()[0]['metadata']['name']}"
            w.api.change(path, {"endpoints": [{"addresses": ["10.96.0.1"]}]})
            await asyncio.sleep(1)
            assert w.ends() == {"june-stt": ([IP], 42352, True)}
            w.api.remove(path)
            await asyncio.sleep(1)
            assert w.ends() == {"june-stt": ([IP], 42352, True)}

    run_virtual(story)


def test_ports_at_several_hosts_have_a_slice_each() -> None:
    """A market may publish each port at another name, and ports are a slice's."""

    async def story() -> None:
        async with world() as w:
            pod = w.api.add(june())
            body = service("june", 8001)
            body["spec"]["ports"] += [{"name": "tts", "port": 8000}]
            w.api.add(body)
            one, other = machine("8.8.4.1")[0], machine("8.8.4.2")[1]
            w.set(pod, endpoints=(one, other))
            await asyncio.sleep(1)
            found = {e["endpoints"][0]["addresses"][0]: e["ports"][0]["port"] for e in w.slices()}
            assert found == {"8.8.4.1": 42352, "8.8.4.2": 42351}

    run_virtual(story)


def test_a_machine_that_moves_takes_its_slices_along() -> None:
    """A restarted machine has another port, sometimes another address."""

    async def story() -> None:
        async with world() as w:
            pod = w.api.add(june())
            w.api.add(service("june-stt", 8001))
            w.set(pod)
            await asyncio.sleep(1)
            moved = (Endpoint(container_port=8001, host="8.8.8.8", port=7),)
            w.set(pod, endpoints=moved)
            await asyncio.sleep(1)
            assert w.ends() == {"june-stt": (["8.8.8.8"], 7, True)}
            assert len(w.slices()) == 1

    run_virtual(story)


def test_a_name_is_resolved_and_followed() -> None:
    """Akash gives names, and slices take addresses only."""

    async def story() -> None:
        async with world() as w:
            w.names["host.example.com"] = ["8.8.8.8", "2606:4700::1"]
            pod = w.api.add(june())
            body = service("june-stt", 8001, ipFamilies=["IPv4", "IPv6"])
            w.api.add(body)
            w.set(pod, endpoints=machine("host.example.com"))
            await asyncio.sleep(1)
            found = {each["addressType"]: each["endpoints"] for each in w.slices()}
            assert found["IPv4"][0]["addresses"] == ["8.8.8.8"]
            assert found["IPv6"][0]["addresses"] == ["2606:4700::1"]
            w.names["host.example.com"] = ["8.8.8.9"]
            await asyncio.sleep(REFRESH_S + 1)
            assert w.ends() == {"june-stt": (["8.8.8.9"], 42352, True)}
            del w.names["host.example.com"]  # a resolver that fails proves nothing
            await asyncio.sleep(REFRESH_S + 1)
            assert w.ends() == {"june-stt": (["8.8.8.9"], 42352, True)}

    run_virtual(story)


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "10.96.0.1", "169.254.169.254", "224.0.0.1", "192.168.1.1", "fd00::1", "::1"],
)
def test_an_address_inside_is_never_published(host: str) -> None:
    """S6: a market that lies would point a Service at the cluster or its cloud."""

    async def story() -> None:
        async with world() as w:
            pod = w.api.add(june())
            w.api.add(service("june-stt", 8001))
            w.set(pod, endpoints=machine(host))
            await asyncio.sleep(1)
            assert w.slices() == []
            assert "AddressRefused" in w.reasons()

    run_virtual(story)


def test_an_address_of_a_family_that_the_service_does_not_take_is_told_of() -> None:
    """Else an Event says that it was published, and there is no slice of it."""

    async def story() -> None:
        async with world() as w:
            w.names["m.example"] = [IP, "2001:4860:4860::8844"]
            pod = w.api.add(june())
            w.api.add(service("june-stt", 8001, ipFamilies=["IPv6"]))
            w.set(pod)
            await asyncio.sleep(1)
            assert w.slices() == []
            assert w.reasons() == ["AddressRefused"]
            w.set(pod, endpoints=machine("m.example"))
            await asyncio.sleep(1)
            assert w.ends() == {"june-stt": (["2001:4860:4860::8844"], 42352, True)}
            (event,) = [e for e in w.api.all("events") if e["reason"] == "EndpointPublished"]
            assert "2001:4860:4860::8844" in event["message"]
            assert IP not in event["message"]

    run_virtual(story)


def test_rehearsals_may_publish_addresses_of_the_documentation() -> None:
    """A simulated machine has nothing better, and loopback is refused by the API."""

    async def story() -> None:
        async with world(allow_loopback=True) as w:
            pod = w.api.add(june())
            w.api.add(service("june-stt", 8001))
            w.set(pod, endpoints=machine("203.0.113.45"))
            await asyncio.sleep(1)
            assert w.ends() == {"june-stt": (["203.0.113.45"], 42352, True)}
            w.set(pod, endpoints=machine("127.0.0.1"))
            await asyncio.sleep(1)
            assert w.slices() == []

    run_virtual(story)


def test_a_port_that_the_machine_does_not_publish_is_left_out_and_told() -> None:
    """Traffic to it would reach somebody else's port, or nothing, without a word."""

    async def story() -> None:
        async with world() as w:
            pod = w.api.add(june())
            body = service("june-stt", 8001)
            more = [
                {"name": "udp", "port": 8001, "protocol": "UDP"},
                {"name": "none", "port": 1, "targetPort": "nameless"},
            ]
            body["spec"]["ports"] += more
            w.api.add(body)
            w.set(pod)
            await asyncio.sleep(1)
            (found,) = w.slices()
            assert [each["name"] for each in found["ports"]] == ["http"]
            assert w.reasons().count("EndpointPortMissing") == 2

    run_virtual(story)


def test_udp_ports_are_led_to_udp_ports() -> None:
    """The same number may be mapped twice, once for each protocol."""

    async def story() -> None:
        async with world() as w:
            pod = w.api.add(june())
            body = service("june-stt", 8001)
            body["spec"]["ports"] += [{"name": "udp", "port": 8001, "protocol": "UDP"}]
            w.api.add(body)
            udp = Endpoint(container_port=8001, protocol=Protocol.UDP, host=IP, port=5)
            w.set(pod, endpoints=(*machine(), udp))
            await asyncio.sleep(1)
            (found,) = w.slices()
            assert {(p["name"], p["port"]) for p in found["ports"]} == {("http", 42352), ("udp", 5)}

    run_virtual(story)


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"selector": {"app": "june"}}, "ServiceHasSelector"),
        ({"clusterIP": "None"}, "ServiceIsHeadless"),
        ({"type": "ExternalName", "externalName": "x.example"}, "ServiceNotServed"),
    ],
)
def test_a_service_that_will_surprise_its_author_is_told_of(
    more: dict[str, Any], reason: str
) -> None:
    """What works otherwise than it looks is found by nobody."""

    async def story() -> None:
        async with world() as w:
            pod = w.api.add(june())
            w.api.add(service("june-stt", 8001, **more))
            w.set(pod)
            await asyncio.sleep(1)
            (event,) = [e for e in w.api.all("events") if e["reason"] == reason]
            assert event["involvedObject"]["kind"] == "Service"
            assert event["type"] == "Warning"

    run_virtual(story)


def trouble_down(api: KubeApi) -> Callable[[], None]:
    api.set_down()
    return lambda: api.set_down(False)


def trouble_denied(api: KubeApi) -> Callable[[], None]:
    return api.deny("create", "endpointslices").lift


@pytest.mark.parametrize("begin", [trouble_down, trouble_denied])
def test_trouble_of_the_api_server_is_outlasted(
    begin: Callable[[KubeApi], Callable[[], None]],
) -> None:
    """K3, K12: what should be is written once it can be, and until then it is told."""

    async def story() -> None:
        async with world() as w:
            pod = w.api.add(june())
            w.api.add(service("june-stt", 8001))
            await asyncio.sleep(1)
            end = begin(w.api)
            w.set(pod)
            await asyncio.sleep(30)
            assert w.publisher.trouble
            assert w.slices() == []
            end()
            await asyncio.sleep(40)
            assert w.ends() == {"june-stt": ([IP], 42352, True)}
            assert w.publisher.trouble == ""

    run_virtual(story)


def test_a_hundred_pods_of_one_service_each_have_their_slice() -> None:
    """Ports are a slice's, not an endpoint's, and each machine has another."""

    async def story() -> None:
        async with world() as w:
            body = service("june-stt", 8001)
            body["metadata"]["annotations"] = {"gp4u.io/selector": "app=june"}
            w.api.add(body)
            await asyncio.sleep(1)
            uids = []
            for number in range(100):
                pod = w.api.add(june(name=f"june-{number}"))
                uids.append(pod["metadata"]["uid"])
                end = Endpoint(container_port=8001, host=f"8.8.4.{number}", port=1000 + number)
                w.set(pod, endpoints=(end,))
            await asyncio.sleep(5)
            found = {e["endpoints"][0]["addresses"][0]: e["ports"][0]["port"] for e in w.slices()}
            assert found == {f"8.8.4.{n}": 1000 + n for n in range(100)}
            async with asyncio.TaskGroup() as group:
                for uid in uids:
                    group.create_task(w.publisher.withdraw(uid))
            assert w.slices() == []
            assert not w.publisher._books

    run_virtual(story)
