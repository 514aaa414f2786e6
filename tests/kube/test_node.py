"""The Node object on a real control plane: what others read off it, and that it stays."""

from __future__ import annotations

from typing import Any

import pytest

from tests.kube.town import Town, until

pytestmark = pytest.mark.timeout(240)


def test_the_node_is_what_others_look_for(vast: Town) -> None:
    """Schedulers, autoscalers and load balancers go by these labels, this taint, this capacity."""
    node = vast.plane.get("node", vast.node)
    labels = node["metadata"]["labels"]
    assert labels["type"] == "virtual-kubelet"
    assert labels["kubernetes.io/hostname"] == vast.node
    assert labels["kubernetes.io/os"] == "linux"
    assert "node.kubernetes.io/exclude-from-external-load-balancers" in labels
    taints = {(t["key"], t["effect"]) for t in node["spec"]["taints"]}
    assert ("virtual-kubelet.io/provider", "NoSchedule") in taints
    assert node["spec"]["providerID"] == f"gp4u://{vast.node}"
    status = node["status"]
    assert {"cpu", "memory", "pods", "ephemeral-storage"} <= status["allocatable"].keys()
    conditions = {each["type"]: each["status"] for each in status["conditions"]}
    assert conditions["Ready"] == "True"
    assert conditions["NetworkUnavailable"] == "False"
    assert [each["type"] for each in status["addresses"]] == ["InternalIP"]
    assert status["daemonEndpoints"]["kubeletEndpoint"]["Port"] == 10250


def test_the_node_offers_what_its_markets_have(vast: Town) -> None:
    """Pods that ask for a GPU are bound only where there is one: soon, or nobody can begin."""

    def offers() -> bool:
        allocatable = vast.plane.get("node", vast.node)["status"]["allocatable"]
        return int(allocatable["nvidia.com/gpu"]) > 0

    until(offers, "the node to offer GPUs", vast.said, patience_s=20)


def test_the_lease_is_renewed_and_belongs_to_the_node(vast: Town) -> None:
    """Fifty seconds without it, and the control plane deletes every paid pod five minutes later."""
    uid = vast.plane.get("node", vast.node)["metadata"]["uid"]

    def lease() -> dict[str, Any]:
        return vast.plane.get("lease", vast.node, "-n", "kube-node-lease")

    first = lease()
    assert first["metadata"]["ownerReferences"] == [
        {"apiVersion": "v1", "kind": "Node", "name": vast.node, "uid": uid}
    ]
    assert first["spec"]["holderIdentity"] == vast.node
    until(
        lambda: lease()["spec"]["renewTime"] != first["spec"]["renewTime"],
        "the lease to be renewed",
        vast.said,
    )


def test_a_deleted_node_object_comes_back(vast: Town) -> None:
    """An administrator's slip must not cost the machines behind the pods."""
    before = vast.plane.get("node", vast.node)["metadata"]["uid"]
    vast.plane.admitted("delete", "node", vast.node)

    def anew() -> bool:
        done = vast.plane.kubectl("get", "node", vast.node, "-o", "json")
        return done.code == 0 and done.json["metadata"]["uid"] != before

    until(anew, "the node to register anew", vast.said)
    vast.wait_ready()


def test_the_api_server_reaches_the_node_and_strangers_do_not(vast: Town) -> None:
    """Logs and exec go this way; whoever may not ask the API server may not ask the node."""
    assert vast.plane.admitted("get", "--raw", f"/api/v1/nodes/{vast.node}/proxy/healthz") == "ok"
    pods = vast.plane.admitted("get", "--raw", f"/api/v1/nodes/{vast.node}/proxy/pods")
    assert '"PodList"' in pods
    assert vast.call("/pods") == 401
    assert vast.call("/pods", certificate=vast.plane.client_certificate("eve", "eve")) == 403
