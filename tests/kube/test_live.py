"""Weights that change while the node runs: the next pod's machine is chosen by them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.kube.chart import NAMESPACE
from tests.kube.controlplane import ControlPlane
from tests.kube.manifests import PROGRAM, Manifest, pod, pod_spec
from tests.kube.town import Ground, town, until

pytestmark = pytest.mark.timeout(300)
NAME = "vast-selection-weights"
NONE = dict.fromkeys(("price", "performance", "gpu_match", "location", "availability"), "0")


def weights(**given: str) -> Manifest:
    """Return the seed's ConfigMap; criteria that are not given weigh nothing."""
    meta = {"name": NAME, "namespace": NAMESPACE}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": NONE | given}


def weighed(ground: Ground, name: str) -> set[str]:
    """Apply a pod; return the criteria that gave its machine a score, by the Event that says so."""
    ground.apply(pod(name, pod_spec(ground.town.node, PROGRAM, ports=[8000])))
    said = ground.wait_event(name, "OfferSelected")
    parts = re.findall(r"(\w+) (\d\.\d\d)\b", said[said.index("score") : said.index(");")])
    return {criterion for criterion, score in parts if criterion in NONE and float(score)}


def test_weights_are_read_while_the_node_runs_and_bad_ones_are_refused(
    plane: ControlPlane, tmp_path: Path
) -> None:
    """Only the price counts, then a slip of the pen changes nothing, then only performance."""
    with town(plane, tmp_path, node="gp4u-live") as running:
        ground = running.namespace("live")

        def told(reason: str, word: str) -> int:
            """How often an Event of the ConfigMap has said this."""
            selector = f"--field-selector=involvedObject.name={NAME},reason={reason}"
            found = plane.get("events", "-n", NAMESPACE, selector)["items"]
            return sum(each["count"] for each in found if word in each["message"])

        def change(to: Manifest, reason: str, word: str = "") -> None:
            before = told(reason, word)
            plane.apply(to)
            until(lambda: told(reason, word) > before, f"{reason} {word}", running.said)

        change(weights(price="100"), "ConfigApplied")
        assert weighed(ground, "cheap") == {"price"}
        change(weights(price="much"), "ConfigRefused", "data.price: 'much' is not valid: a number")
        assert weighed(ground, "still") == {"price"}
        assert "config_refused" in running.said()
        change(weights(performance="100"), "ConfigApplied")
        assert weighed(ground, "fast") == {"performance"}
        plane.admitted("delete", "configmap", NAME, "-n", NAMESPACE)
