"""`kubectl top`, by the metrics-server that everybody runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kube.manifests import PROGRAM, pod, pod_spec
from tests.kube.metrics import metrics_server
from tests.kube.town import Ground, until

pytestmark = pytest.mark.timeout(240)


def test_top_knows_the_node_and_its_pods(ground: Ground, tmp_path: Path) -> None:
    """Autoscalers read the same numbers; a node without them is left out of their sums."""
    ground.apply(pod("busy", pod_spec(ground.town.node, PROGRAM, ports=[8000])))
    ground.wait_ready("busy")
    with metrics_server(ground.plane, tmp_path) as server:

        def nodes() -> str | None:
            assert server.is_running, server.tail()
            done = ground.plane.kubectl("top", "node", ground.town.node, "--no-headers")
            return done.out if done.code == 0 else None

        line = until(nodes, "kubectl top node", server.tail)
        assert "<unknown>" not in line, line

        def pods() -> str | None:
            done = ground.kubectl("top", "pod", "--no-headers")
            return done.out if done.code == 0 and "busy" in done.out else None

        line = until(pods, "kubectl top pod", server.tail)
        assert line.split()[0] == "busy"
