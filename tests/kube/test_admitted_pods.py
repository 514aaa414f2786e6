"""Pods as a real API server admits them: its defaults, its own volume, its tokens."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

from gp4u.kube import paths
from gp4u.kube.access import find_access
from gp4u.kube.client import open_client
from gp4u.kubelet.policy import NodePolicy
from gp4u.kubelet.spec.references import API_ACCESS_PATH, Objects, Unresolved
from gp4u.kubelet.spec.workload import Prepared, prepare
from gp4u.model import Port
from gp4u.providers.contract import Ability
from tests.kube.controlplane import ControlPlane
from tests.kube.programs import NEWEST, OLDEST

POLICY = NodePolicy(name="nowhere", address="10.0.0.7")
MARKETS = {"vastai": ~Ability.NONE}
CONTAINER = {
    "name": "june",
    "image": "ozzu/june:latest",
    "command": ["serve", "--at=$(JUNE_STT_SERVICE_HOST)"],
    "ports": [{"containerPort": 8001, "name": "stt"}],
    "readinessProbe": {"httpGet": {"port": "stt", "path": "/healthz"}},
    "envFrom": [{"configMapRef": {"name": "june"}}],
    "env": [
        {"name": "UID", "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}},
        {"name": "CPUS", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}},
        {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "june", "key": "key"}}},
    ],
    "resources": {"limits": {"nvidia.com/gpu": "1", "cpu": "1500m"}},
    "volumeMounts": [{"name": "conf", "mountPath": "/etc/june"}],
}
OBJECTS = (
    {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "june"}},
    {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "june-stt"},
        "spec": {"ports": [{"port": 8001, "name": "stt"}]},
    },
    {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "june"},
        "data": {"MODEL": "base\n\u00e4"},
        "binaryData": {"weights": base64.b64encode(b"\x00\xff").decode()},
    },
)
SECRET = {
    "apiVersion": "v1",
    "kind": "Secret",
    "metadata": {"name": "june"},
    "stringData": {"key": "it's $HOME"},
}
POD = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "june"},
    "spec": {
        "nodeName": POLICY.name,
        "serviceAccountName": "june",
        "containers": [CONTAINER],
        "volumes": [{"name": "conf", "configMap": {"name": "june"}}],
    },
}


@pytest.mark.parametrize("version", [NEWEST, OLDEST])
async def test_a_pod_as_it_is_admitted_is_resolved_whole(
    planes: Callable[[str], ControlPlane], version: str
) -> None:
    """Defaults and the injected token must neither refuse it nor fill its events with noise."""
    plane = planes(version)
    namespace = f"admitted-{version.replace('.', '-')}"
    plane.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
    plane.apply(*OBJECTS, namespace=namespace)
    plane.wait(("get", "configmap", "kube-root-ca.crt", "-n", namespace), "kube-root-ca.crt")
    plane.apply(POD, namespace=namespace)
    async with open_client(find_access(kubeconfig=str(plane.admin))) as client:
        pod = await client.get(paths.pod(namespace, "june"))
        missing = await prepare(pod, POLICY, Objects(client), abilities=MARKETS)
        assert isinstance(missing, Unresolved)
        assert missing.reason == "MandatorySecretNotFound"
        plane.apply(SECRET, namespace=namespace)
        made = await prepare(pod, POLICY, Objects(client), abilities=MARKETS)
        service = await client.get(paths.service(namespace, "june-stt"))
        told: dict[str, Any] = {"gp4u.io/api-access": "true"}
        open_pod = {**pod, "metadata": {**pod["metadata"], "annotations": told}}
        shipped = await prepare(
            open_pod, replace(POLICY, service_variables=True), Objects(client), abilities=MARKETS
        )
    assert isinstance(made, Prepared)
    assert [notice.reason for notice in made.notices] == ["TrustRaisedBySecrets"]
    workload = made.machines[0].workload
    assert workload.entrypoint == ("serve", f"--at={service['spec']['clusterIP']}")
    assert workload.env == {
        "MODEL": "base\n\u00e4",
        "UID": pod["metadata"]["uid"],
        "CPUS": "2",
        "KEY": "it's $HOME",
    }
    assert {file.path: file.content for file in workload.files} == {
        "/etc/june/MODEL": "base\n\u00e4".encode(),
        "/etc/june/weights": b"\x00\xff",
    }
    assert workload.ports == (Port(8001, name="stt"),)
    assert isinstance(shipped, Prepared)
    more = shipped.machines[0].workload
    assert more.env["JUNE_STT_SERVICE_PORT_STT"] == "8001"
    assert more.env["KUBERNETES_SERVICE_PORT_HTTPS"] == "443"
    token = next(file.content for file in more.files if file.path == f"{API_ACCESS_PATH}/token")
    middle = token.split(b".")[1]
    claims = json.loads(base64.urlsafe_b64decode(middle + b"=" * (-len(middle) % 4)))
    assert claims["kubernetes.io"]["pod"]["uid"] == pod["metadata"]["uid"]
    assert claims["sub"] == f"system:serviceaccount:{namespace}:june"
