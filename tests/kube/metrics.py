"""metrics-server, which `kubectl top` asks: it scrapes the node as any other.

The API server finds it through a Service of type ExternalName, since nothing here routes cluster
addresses.

Source: metrics-server, README "Requirements" and charts/metrics-server, v0.9; checked 2026-11.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.e2e.processes import clean_environ
from tests.kube.controlplane import ControlPlane
from tests.kube.programs import Process, free_port, program

USER = "metrics-server"
NAMESPACE = "kube-system"
RBAC = "rbac.authorization.k8s.io"


@contextmanager
def metrics_server(plane: ControlPlane, folder: Path) -> Iterator[Process]:
    """Run metrics-server, registered with the API server, with the rights that it asks for."""
    port = free_port()
    plane.apply(*_manifests(port), namespace=NAMESPACE)
    kubeconfig = str(plane.client_kubeconfig(USER, USER))
    words = [program("metrics-server", thing="metrics-server")]
    words += [f"--{each}kubeconfig={kubeconfig}" for each in ("", "authentication-")]
    words += [f"--authorization-kubeconfig={kubeconfig}", f"--secure-port={port}"]
    words += [f"--cert-dir={folder}", "--metric-resolution=10s"]
    words += ["--kubelet-request-timeout=5s"]
    words += [f"--kubelet-certificate-authority={plane.authority}"]
    process = Process(USER, words, env=clean_environ(), folder=folder)
    process.start()
    try:
        yield process
    finally:
        process.kill()
        plane.admitted("delete", "apiservice", "v1beta1.metrics.k8s.io")


def _manifests(port: int) -> list[dict[str, Any]]:
    rules = [
        {"apiGroups": [""], "resources": ["nodes/metrics"], "verbs": ["get"]},
        {"apiGroups": [""], "resources": ["pods", "nodes"], "verbs": ["get", "list", "watch"]},
    ]
    role = {"apiVersion": f"{RBAC}/v1", "kind": "ClusterRole", "rules": rules}
    service = {"type": "ExternalName", "externalName": "localhost", "ports": [{"port": port}]}
    return [
        role | {"metadata": {"name": USER}},
        _binding("ClusterRoleBinding", USER, "ClusterRole", USER),
        _binding("ClusterRoleBinding", f"{USER}-auth", "ClusterRole", "system:auth-delegator"),
        _binding("RoleBinding", USER, "Role", "extension-apiserver-authentication-reader"),
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": USER}, "spec": service},
        {
            "apiVersion": "apiregistration.k8s.io/v1",
            "kind": "APIService",
            "metadata": {"name": "v1beta1.metrics.k8s.io"},
            "spec": {
                "group": "metrics.k8s.io",
                "version": "v1beta1",
                "groupPriorityMinimum": 100,
                "versionPriority": 100,
                "insecureSkipTLSVerify": True,
                "service": {"name": USER, "namespace": NAMESPACE, "port": port},
            },
        },
    ]


def _binding(kind: str, name: str, role_kind: str, role: str) -> dict[str, Any]:
    return {
        "apiVersion": f"{RBAC}/v1",
        "kind": kind,
        "metadata": {"name": name},
        "roleRef": {"apiGroup": RBAC, "kind": role_kind, "name": role},
        "subjects": [{"apiGroup": RBAC, "kind": "User", "name": USER}],
    }
