"""A relay gives a rented machine an address in the cluster, where selector Services lead.

No machine of the test's cluster runs containers, so the test is the kubelet of the relay's pod: it
runs what the pod says, with the ConfigMap's file, and writes the pod's status.
"""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.processes import GP4U, clean_environ
from tests.kube.controlplane import ControlPlane
from tests.kube.manifests import PROGRAM, Manifest, pod, pod_spec
from tests.kube.programs import Process, free_port
from tests.kube.town import Ground, Town, new_address, town, until

pytestmark = pytest.mark.timeout(240)
PORT = 18080
SERVICE: Manifest = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "web"},
    "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": PORT}]},
}


@pytest.fixture
def relaying(plane: ControlPlane, tmp_path: Path) -> Iterator[Town]:
    """A node that may make relays."""
    env = {"GP4U_NODE_RELAY_IMAGE": "registry.test/gp4u:1"}
    switches = ("relay.enabled=true",)
    with town(plane, tmp_path, node="gp4u-relaying", switches=switches, **env) as running:
        yield running


@pytest.fixture
def urls(plane: ControlPlane, tmp_path: Path) -> Iterator[Town]:
    """A node over io.net's containers, which have a URL and no port, and that may make relays."""
    env = {"GP4U_NODE_RELAY_IMAGE": "registry.test/gp4u:1", "IONET_API_FLAVOR": "caas"}
    switches = ("relay.enabled=true",)
    town_of = town(plane, tmp_path, node="gp4u-urls", switches=switches, markets=("ionet",), **env)
    with town_of as running:
        yield running


def relay_of(ground: Ground, uid: str, *, but: str = "") -> Manifest:
    """Return the pod that relays to another, once there is one that is not `but`."""

    def made() -> Manifest | None:
        found = ground.items("pods", "-l", f"gp4u.io/relay-for={uid}")
        return next((each for each in found if each["metadata"]["uid"] != but), None)

    return until(made, "the relay", ground.town.said)


def run_relay(ground: Ground, relay: Manifest, folder: Path, address: str) -> Process:
    """Do what a kubelet does with a relay's pod."""
    [container] = relay["spec"]["containers"]
    [volume] = relay["spec"]["volumes"]
    [mount] = container["volumeMounts"]
    config = ground.get("configmap", volume["configMap"]["name"])
    for name, text in config["data"].items():
        (folder / name).write_text(text)
    words = [each.replace(mount["mountPath"], str(folder)) for each in container["args"]]
    env = clean_environ() | {each["name"]: each["value"] for each in container["env"]}
    process = Process("relay", [GP4U, *words], env=env | {"HOME": str(folder)}, folder=folder)
    process.start()
    ready = {"type": "Ready", "status": "True"}
    status = {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]}
    patch = json.dumps({"status": status | {"conditions": [ready]}})
    name = relay["metadata"]["name"]
    ground.admitted("patch", "pod", name, "--subresource=status", "-p", patch)
    return process


def led(ground: Ground) -> list[str]:
    """Return where the cluster's own slices lead."""
    found = ground.items("endpointslices", "-l", "kubernetes.io/service-name=web")
    ends = [end for each in found for end in each["endpoints"] or []]
    return [end["addresses"][0] for end in ends if end["conditions"]["ready"]]


def answer(address: str) -> str:
    """Return what an address answers, once anything does."""
    url = f"http://{address}/health"

    def asked() -> str:
        try:
            with urllib.request.urlopen(url, timeout=5) as reply:
                text: str = reply.read().decode()
                return text
        except OSError:
            return ""

    return until(asked, url)


def test_a_service_with_a_selector_leads_through_the_relay(relaying: Town, tmp_path: Path) -> None:
    """Charts of others have nothing but such Services; and a drained relay has to come back."""
    ground, address = relaying.namespace("relayed"), new_address()
    ground.apply(SERVICE)
    spec = pod_spec(relaying.node, PROGRAM, ports=[PORT])
    ground.apply(pod("web", spec, annotations={"relay": "true"}))
    running = until(
        lambda: (ground.find("pod", "web") or {}).get("status", {}).get("phase") == "Running",
        "the machine to run",
        relaying.said,
    )
    assert running
    uid = ground.get("pod", "web")["metadata"]["uid"]
    relay = relay_of(ground, uid)
    assert "podIP" not in ground.get("pod", "web")["status"], "an address before there is one"
    process = run_relay(ground, relay, tmp_path, address)
    try:
        assert ground.wait_ready("web")["status"]["podIP"] == address
        assert until(lambda: led(ground), "the cluster's own endpoints") == [address]
        assert json.loads(answer(f"{address}:{PORT}"))["port"] == PORT
        ground.admitted("delete", "pod", relay["metadata"]["name"], "--force", "--grace-period=0")
        relay_of(ground, uid, but=relay["metadata"]["uid"])
        ground.admitted("delete", "pod", "web", "--timeout=60s")
        until(lambda: not ground.items("pods"), "the relay to go with its pod")
        until(lambda: not ground.items("configmaps", "-l", "gp4u.io/relay-for"), "its routes")
    finally:
        process.kill()


def test_a_machine_that_has_a_url_only_is_reached_inside_the_cluster(
    urls: Town, tmp_path: Path
) -> None:
    """A client knows the Service and its port, and need not know of any market's gateway."""
    ground, address = urls.namespace("urls"), new_address()
    ground.apply(SERVICE)
    ground.apply(
        pod("web", pod_spec(urls.node, PROGRAM, ports=[PORT]), annotations={"relay": "true"})
    )
    uid = until(lambda: ground.find("pod", "web"), "the pod")["metadata"]["uid"]
    relay = until(
        lambda: ground.items("pods", "-l", f"gp4u.io/relay-for={uid}"),
        "the relay",
        lambda: ground.tell("web"),
        patience_s=150,
    )[0]
    [rental] = urls.open_rentals()
    [end] = rental.endpoints
    assert (end.container_port, bool(end.url)) == (PORT, True)
    process = run_relay(ground, relay, tmp_path, address)
    try:
        assert ground.wait_ready("web")["status"]["podIP"] == address
        assert until(lambda: led(ground), "the cluster's own endpoints") == [address]
        assert json.loads(answer(f"{address}:{PORT}"))["port"] == PORT
        port = free_port()
        words = [ground.plane.kubectl_path, "-n", ground.name, "port-forward", "service/web"]
        forward = Process(
            "forward", [*words, f"{port}:80"], env=ground.plane.kubectl_env(), folder=tmp_path
        )
        forward.start()
        try:
            forward.hear(r"Forwarding from 127\.0\.0\.1")
            assert json.loads(answer(f"127.0.0.1:{port}"))["port"] == PORT
        finally:
            forward.kill()
    finally:
        process.kill()
