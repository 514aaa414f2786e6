"""Many machines at once, over two markets: what a user does on the first busy day."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kube.controlplane import ControlPlane
from tests.kube.manifests import PROGRAM, deployment, pod_spec
from tests.kube.town import town, until

pytestmark = pytest.mark.timeout(420)
NODE = "gp4u-fleet"
REPLICAS = 20
MARKETS = ("vastai", "ionet")
LONG_S = 180
"""Vast.ai lets an account rent once in 4.5 s and release once in 3 s; io.net is quicker."""


def test_a_deployment_of_twenty_comes_up_drains_and_goes(
    plane: ControlPlane, tmp_path: Path
) -> None:
    """Scale, drain, delete: then nothing is left, and the ledger is what both markets charged."""
    with town(plane, tmp_path, node=NODE, markets=MARKETS) as running:
        ground = running.namespace("fleet")
        ground.apply(deployment("fleet", pod_spec(NODE, PROGRAM, ports=[8000]), replicas=1))

        def ready() -> int:
            status = ground.get("deployment", "fleet")["status"]
            return int(status.get("readyReplicas", 0))

        until(lambda: ready() == 1, "the first pod", running.said)
        ground.admitted("scale", "deployment/fleet", f"--replicas={REPLICAS}")
        until(lambda: ready() == REPLICAS, "all of them", running.said, patience_s=LONG_S)
        assert {each.provider for each in running.open_rentals()} == {*MARKETS}

        words = ("--pod-selector=app=fleet", "--ignore-daemonsets", "--timeout=120s")
        done = plane.kubectl("drain", NODE, *words, patience_s=150)
        assert done.code == 0, done
        assert "evicted" in done.out
        waiting = [each["spec"].get("nodeName") for each in ground.items("pods")]
        assert waiting == [None] * REPLICAS, "made anew, and held back by the cordon"
        ground.admitted("delete", "deployment", "fleet")
        until(lambda: not ground.items("pods"), "the pods to go")
        until(
            lambda: not running.open_rentals(),
            "the machines to be released",
            running.said,
            patience_s=LONG_S,
        )
