"""From `helm install` to `helm uninstall` as the guide has it, with two replicas on PostgreSQL.

No machine of the test's cluster runs containers. So the test does what a kubelet would: it takes a
pod that the Deployment made, puts its environment together from the API server, and runs the
container's command with it, under the ServiceAccount's token. What an image and a pod's own network
would give is all that is added.
"""

from __future__ import annotations

import signal
import time
import urllib.request
from base64 import b64decode
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.processes import GP4U, clean_environ
from tests.kube.chart import CHART, ROOT, helm
from tests.kube.controlplane import ControlPlane, control_plane
from tests.kube.manifests import Manifest
from tests.kube.programs import Process, require_namespace
from tests.kube.town import Ground, Town, new_address, until
from tests.postgres import server

pytestmark = pytest.mark.timeout(240)
NAMESPACE = "kube-system"
EXAMPLE = ROOT / "examples" / "june"
RELEASE = "june"
NODE = "vast-gpu-node-1"
TAKEN_OVER_S = 25.0


class Release(Town):
    """The chart with the example's values, and what its pods would run."""

    def start(self) -> None:
        """Install it, and run what the first pod would."""
        self.market.start()
        secret = ("-n", NAMESPACE, "create", "secret", "generic")
        key, url = f"VASTAI_API_KEY={self._sold['VASTAI_API_KEY']}", server().url()
        self.plane.admitted(*secret, "vast-api-key", f"--from-literal={key}")
        self.plane.admitted(*secret, "gp4u-ledger", f"--from-literal=GP4U_DATABASE_URL={url}")
        rest = {name: text for name, text in self._sold.items() if name != "VASTAI_API_KEY"}
        sets = [
            word
            for each in rest.items()
            for word in ("--set-string", "settings.{}={}".format(*each))
        ]
        values = str(EXAMPLE / "values.yaml")
        words = ("install", RELEASE, str(CHART), "-n", NAMESPACE, "-f", values, *sets)
        said = helm(*words, kubeconfig=self.plane.admin)
        assert "deployment/virtual-kubelet-vast" in said
        self.process.start()
        self.wait_ready()

    @cached_property
    def pods(self) -> list[Manifest]:
        """What the Deployment made."""

        def made() -> list[Manifest]:
            selector = f"app.kubernetes.io/instance={RELEASE}"
            found: list[Manifest] = self.plane.get("pods", "-n", NAMESPACE, "-l", selector)["items"]
            return found if len(found) == 2 else []

        return until(made, "two pods of the Deployment")

    @cached_property
    def process(self) -> Process:
        """What the first pod runs."""
        return self.container(self.pods[0], self.address, "node")

    @cached_property
    def env(self) -> dict[str, str]:
        """Of the commands beside it: those of the first pod."""
        return self.process.env

    def replica(self, name: str, address: str) -> Process:
        """Return what the second pod runs."""
        return self.container(self.pods[1], address, name)

    def container(self, pod: Manifest, address: str, name: str) -> Process:
        """Return the process of a pod's only container."""
        spec = pod["spec"]
        [container] = spec["containers"]
        env = clean_environ() | self._environment(container, address)
        # The volumes, and an address of its own: both replicas stand on one machine here.
        folder = self.folder / name
        folder.mkdir()
        env = {key: text.replace("/data/", f"{folder}/", 1) for key, text in env.items()}
        kubeconfig = self.plane.token_kubeconfig(NAMESPACE, spec["serviceAccountName"])
        env |= {"KUBECONFIG": str(kubeconfig), "HOME": str(folder), "GP4U_NODE_LISTEN": address}
        return Process(name, [GP4U, *container["args"]], env=env, folder=folder)

    @cached_property
    def _sold(self) -> dict[str, str]:
        """What a customer of the simulated market puts into the environment."""
        found: dict[str, str] = self.offered_env()
        return found

    def _environment(self, container: Manifest, address: str) -> dict[str, str]:
        env: dict[str, str] = {}
        for source in container["envFrom"]:
            if "configMapRef" in source:
                env |= self._read("configmap", source["configMapRef"]["name"])
            else:
                env |= self._read("secret", source["secretRef"]["name"])
        fields = {"status.podIP": address, "metadata.namespace": NAMESPACE}
        for each in container["env"]:
            source = each["valueFrom"]
            if "fieldRef" in source:
                env[each["name"]] = fields[source["fieldRef"]["fieldPath"]]
            else:
                named = source["secretKeyRef"]
                env[each["name"]] = self._read("secret", named["name"])[named["key"]]
        return env

    def _read(self, kind: str, name: str) -> dict[str, str]:
        data: dict[str, str] = self.plane.get(kind, name, "-n", NAMESPACE)["data"]
        if kind == "secret":
            return {key: b64decode(text).decode() for key, text in data.items()}
        return data

    def where(self) -> str:
        """Return where the node says that it is."""
        found: list[dict[str, Any]] = self.plane.get("node", self.node)["status"]["addresses"]
        return str(found[0]["address"])


@pytest.fixture
def release(tmp_path: Path) -> Iterator[Release]:
    """A release in a cluster of its own: the example asks for any virtual node."""
    require_namespace()
    (tmp_path / "cluster").mkdir()
    (tmp_path / "release").mkdir()
    with control_plane(tmp_path / "cluster") as plane:
        made = Release(plane, tmp_path / "release", node=NODE)
        try:
            made.start()
            yield made
        finally:
            made.kill()


def answers(plane: ControlPlane, service: str) -> str:
    """Return what an address that is published for a Service answers."""

    def published() -> list[Manifest]:
        words = ("endpointslices", "-l", f"kubernetes.io/service-name={service}")
        found: list[Manifest] = plane.get(*words)["items"]
        return [each for each in found if each["endpoints"]]

    [one] = until(published, f"an address of {service}")
    url = f"http://{one['endpoints'][0]['addresses'][0]}:{one['ports'][0]['port']}/health"
    with urllib.request.urlopen(url, timeout=20) as reply:
        text: str = reply.read().decode()
        return text


def test_a_stranger_installs_it_and_june_speaks(release: Release) -> None:
    """The guide from end to end; then the replica that leads dies, and nobody notices."""
    plane, ground = release.plane, Ground(release, "default")
    other = release.replica("other", new_address())
    other.start()
    try:
        other.hear("the kubelet API of")
        assert [each["status"]["phase"] for each in release.pods] == ["Pending"] * 2, (
            "the node must not run on itself"
        )
        plane.admitted("apply", "-f", str(EXAMPLE / "june.yaml"))
        statuses = ground.wait_ready("june")["status"]["containerStatuses"]
        assert "OfferSelected" in ground.describe("pod", "june")
        assert answers(plane, "june-stt") == "ok stt\n"
        assert answers(plane, "june-tts") == "ok tts\n"
        assert "june listens and speaks" in ground.admitted("logs", "june")

        release.process.kill()
        before = len(release.process.said)
        began = time.monotonic()

        def taken() -> bool:
            return release.where() == other.env["GP4U_NODE_ADDRESS"]

        until(taken, "the other replica to take over", other.tail)
        assert time.monotonic() - began < TAKEN_OVER_S

        def served() -> bool:
            release.approve()  # the certificate of the other one
            return ground.kubectl("logs", "june").code == 0

        until(served, "its log", other.tail)
        assert answers(plane, "june-stt") == "ok stt\n"
        assert ground.get("pod", "june")["status"]["containerStatuses"] == statuses
        assert len(release.rentals()) == 1
        # The first one comes back, and finds that it is not its turn.
        release.process.start()
        release.process.hear("the kubelet API of", after=before)
        assert release.where() == other.env["GP4U_NODE_ADDRESS"]

        done = release.gp4u(
            "node", "decommission", "--yes", "--timeout", "90", "--kubeconfig", str(plane.admin)
        )
        assert done.code == 0, (done, other.tail())
        assert plane.kubectl("get", "node", NODE).code != 0
        assert ground.find("pod", "june") is None
        helm("uninstall", RELEASE, "-n", NAMESPACE, kubeconfig=plane.admin)
        assert other.is_running, other.tail()
        assert other.end(signal.SIGTERM) == 143, other.tail()
        [bill] = release.stop().values()
        assert [each.open for each in bill.contracts] == [False]
    finally:
        other.kill()
