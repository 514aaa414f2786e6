"""A node that declares WebSockets: the API server passes them through instead of translating.

Whether it did is told by the API server itself, which counts both.

Source: KEP-4006 (kubernetes/enhancements), Kubernetes 1.36; apiserver pkg/util/proxy/metrics;
checked November 2026.
"""

from __future__ import annotations

import json
import re
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kube.controlplane import ControlPlane
from tests.kube.manifests import PROGRAM, pod, pod_spec, sh
from tests.kube.programs import Process, free_port
from tests.kube.terminal import Terminal
from tests.kube.town import Ground, town

pytestmark = pytest.mark.timeout(240)
NAME = "shell"
COUNTED = re.compile(
    r"^apiserver_websocket_streaming_requests_total"
    r'\{proxy_type="proxied_to_kubelet",subresource="(\w+)"\} (\d+)',
    re.M,
)


@pytest.fixture(scope="module")
def shell(plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    """A pod with a shell and a port, on a node that declares WebSockets."""
    folder = tmp_path_factory.mktemp("websockets")
    with town(plane, folder, node="vast-websockets", GP4U_NODE_WEBSOCKETS="1") as there:
        ground = there.namespace("websockets")
        script = "echo ready; exec " + " ".join(PROGRAM)
        spec = pod_spec(there.node, sh(script), ports=[8000])
        ground.apply(pod(NAME, spec, annotations={"exec": "true"}))
        ground.wait_ready(NAME)
        yield ground


def passed_through(plane: ControlPlane) -> Counter[str]:
    """Return how often requests of each subresource went on to a node as they came."""
    found = COUNTED.findall(plane.admitted("get", "--raw", "/metrics"))
    return Counter({subresource: int(times) for subresource, times in found})


def test_the_node_says_what_it_can(shell: Ground) -> None:
    """The declaration is in the node's status, where the API server looks for it."""
    node = shell.plane.get("node", shell.town.node)
    assert node["status"]["declaredFeatures"] == ["ExtendWebSocketsToKubelet"]


def test_exec_keeps_both_streams_input_and_code(shell: Ground) -> None:
    """v5 is the only WebSocket dialect that can end the input; without that this hangs."""
    before = passed_through(shell.plane)
    script = "wc -c; echo err >&2; exit 7"
    done = shell.kubectl("exec", "-i", NAME, "--", "sh", "-c", script, stdin="x" * 3_000_000)
    assert (done.code, done.out.strip()) == (7, "3000000"), done
    assert "err\n" in done.err
    assert passed_through(shell.plane) - before == {"exec": 1}


def test_a_terminal_has_its_size(shell: Ground) -> None:
    """Sizes travel on a channel of their own."""
    words = [shell.plane.kubectl_path, "-n", shell.name, "exec", "-it", NAME, "--", "sh"]
    with Terminal(words, env=shell.plane.kubectl_env(), cwd=shell.town.folder) as terminal:
        terminal.type("stty size\n")
        terminal.see(r"30 100")
        terminal.resize(columns=120, rows=40)
        terminal.type("sleep 1; stty size\n")
        terminal.see(r"40 120")
        terminal.type("exit 3\n")
        assert terminal.end() == 3


def test_a_port_is_forwarded_through_a_tunnel(shell: Ground, tmp_path: Path) -> None:
    """SPDY inside WebSocket messages, all the way from kubectl to the node."""
    before = passed_through(shell.plane)
    port = free_port()
    words = [shell.plane.kubectl_path, "-n", shell.name, "port-forward", f"pod/{NAME}"]
    env = shell.plane.kubectl_env()
    forward = Process("forward", [*words, f"{port}:8000"], env=env, folder=tmp_path)
    forward.start()
    try:
        forward.hear(r"Forwarding from 127\.0\.0\.1")
        for _ in range(5):
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=20) as reply:
                assert json.load(reply)["status"] == "ok"
    finally:
        forward.kill()
    assert passed_through(shell.plane) - before == {"portforward": 1}


def test_an_old_client_is_served_as_before(shell: Ground) -> None:
    """SPDY from end to end: what is declared takes nothing away."""
    old = {"KUBECTL_REMOTE_COMMAND_WEBSOCKETS": "false"}
    done = shell.kubectl("exec", "-i", NAME, "--", "cat", stdin="through", **old)
    assert (done.code, done.out) == (0, "through"), done
