"""What the node's benchmark stands in: a control plane, a market, and the node as a process.

The processes are real ones, started as in `tests/kube`. What a process costs is read from the
kernel, and what it asked of the API server from that one's audit log, so that nobody measures
itself.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from tests.e2e.processes import clean_environ
from tests.kube.chart import NAMESPACE, account_of, rights
from tests.kube.controlplane import ControlPlane
from tests.kube.programs import MARKET_ADDRESS, Process

from gp4u.kube.access import find_access
from gp4u.kube.client import KubeClient, open_client

NODE: Final = "bench-node"
NODE_ADDRESS: Final = "203.0.113.46"
BARE: Final = "bench-bare"
BARE_ADDRESS: Final = "203.0.113.47"
KUBELET_PORT: Final = 10250
SERVING: Final = "kubernetes.io/kubelet-serving"
PATIENCE_S: Final = 60.0
TICK_S: Final = os.sysconf("SC_CLK_TCK")


class Cost:
    """What a process has used so far."""

    def __init__(self, pid: int) -> None:
        self._pid = pid

    @property
    def rss_mib(self) -> float:
        """Memory that is resident now."""
        return self._memory("VmRSS")

    @property
    def peak_mib(self) -> float:
        """The most that ever was."""
        return self._memory("VmHWM")

    @property
    def cpu_s(self) -> float:
        """Processor time, of all its threads."""
        fields = Path(f"/proc/{self._pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICK_S

    def _memory(self, name: str) -> float:
        for line in Path(f"/proc/{self._pid}/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) / 1024
        raise AssertionError(f"no {name} of {self._pid}")


class Scene:
    """The processes, and the administrator's way to the API server."""

    def __init__(self, plane: ControlPlane, folder: Path, offers: int) -> None:
        self.plane, self.folder = plane, folder
        paths = {"PYTHONPATH": os.environ["PYTHONPATH"], "HOME": str(folder)}
        self.env = clean_environ() | paths
        self._ready, self._told = folder / "market.env", folder / "market.json"
        words = [str(self._ready), str(self._told), str(offers), MARKET_ADDRESS]
        self.market = self.python("market", "node_market.py", *words)
        self.rights = rights(NODE, NODE)
        self.plane.apply(*self.rights)
        self.kubeconfig = plane.token_kubeconfig(NAMESPACE, account_of(self.rights))
        self.ledger = folder / "ledger.db"

    def python(self, name: str, file: str, *words: str) -> Process:
        """Return a file of this benchmark as a process that is still to be started."""
        program = [sys.executable, str(Path(__file__).with_name(file)), *words]
        return Process(name, program, env=self.env, folder=self.folder)

    def open_market(self) -> dict[str, str]:
        """Start the market, and return the variables that lead to it."""
        self.market.start()
        waited(self._ready.exists, "the market", self.market.tail)
        time.sleep(0.1)
        found: dict[str, str] = json.loads(self._ready.read_text())
        return found

    def close_market(self) -> dict[str, float]:
        """End the market; return when which label was rented there, by the machine's clock."""
        self.market.end()
        found: dict[str, float] = json.loads(self._told.read_text())
        return found

    def node(self, env: Mapping[str, str], *, name: str = "node") -> Process:
        """Return `gp4u node run`, with the market's pace lifted, still to be started."""
        process = self.python(name, "node_unpaced.py", "node", "run")
        process.env |= {
            "KUBECONFIG": str(self.kubeconfig),
            "GP4U_NODE_NAME": NODE,
            "GP4U_NODE_ADDRESS": NODE_ADDRESS,
            "GP4U_NODE_LISTEN": NODE_ADDRESS,
            "GP4U_NODE_NAMESPACE": NAMESPACE,
            "GP4U_NODE_MAX_GPUS": "2000",
            "GP4U_NODE_MAX_PODS": "2000",
            "GP4U_DATABASE_URL": f"sqlite:///{self.ledger}",
            "GP4U_NODE_MAX_RENTS": "64",  # eight are what a real market's pace allows
            "PROVIDER_RATE_LIMITER_ENABLED": "0",
            "VAST_MAX_PRICE_PER_HOUR": "20",
            "VAST_RELIABILITY_SCORE": "0.5",
            **env,
        }
        return process

    def bare(self) -> Process:
        """Return the server that a stream is compared with, as a node that the cluster knows."""
        certificate, key = self.plane.server_certificate(BARE, BARE_ADDRESS)
        words = [BARE_ADDRESS, str(KUBELET_PORT), str(certificate), str(key)]
        self.plane.apply({"apiVersion": "v1", "kind": "Node", "metadata": {"name": BARE}})
        status = {
            "addresses": [{"type": "InternalIP", "address": BARE_ADDRESS}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": KUBELET_PORT}},
        }
        patch = ("patch", "node", BARE, "--subresource=status", "--type=merge", "-p")
        self.plane.admitted(*patch, json.dumps({"status": status}))
        return self.python("bare", "node_bare.py", *words)

    def wait_ready(self, node: Process) -> None:
        """Wait until the node is Ready, approving the certificates that it asks for."""

        def ready() -> bool:
            assert node.is_running, node.tail()
            for each in self.plane.get("csr")["items"]:
                if each["spec"]["signerName"] == SERVING and not each["status"].get("conditions"):
                    self.plane.admitted("certificate", "approve", each["metadata"]["name"])
            done = self.plane.kubectl("get", "node", NODE, "-o", "json")
            if done.code:
                return False
            conditions = done.json["status"].get("conditions", [])
            return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)

        waited(ready, "the node to be Ready", node.tail)

    def calls(self) -> Counter[tuple[str, str]]:
        """Return how many calls of the node are over, by verb and resource."""
        made = self.plane.calls_of(NAMESPACE, account_of(self.rights))
        return Counter((each.verb, each.resource) for each in made)

    @asynccontextmanager
    async def client(self) -> AsyncIterator[KubeClient]:
        """Open the administrator's way, without any limit of ours."""
        access = find_access(kubeconfig=str(self.plane.admin))
        async with open_client(access, writes_per_s=None) as client:
            yield client

    def namespace(self, name: str) -> None:
        """Make a namespace in which pods can be created."""
        self.plane.admitted("create", "namespace", name)
        self.plane.wait(("get", "serviceaccount", "default", "-n", name), "its account")


def waited(what: Callable[[], bool], name: str, said: Callable[[], str]) -> None:
    """Wait until something is so.

    Raises:
        AssertionError: it was not in time.
    """
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        if what():
            return
        time.sleep(0.1)
    raise AssertionError(f"waited {PATIENCE_S} s for {name}\n{said()}")
