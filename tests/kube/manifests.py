"""What a user writes: pods for a virtual node, and what makes pods. Dictionaries, as in YAML."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

Manifest = dict[str, Any]

PROGRAM = (sys.executable, "-m", "gp4u.sim.program")
"""What a simulated machine runs where no command is given: it answers on every port it has."""
TOLERATION: Manifest = {"key": "virtual-kubelet.io/provider", "operator": "Exists"}


def sh(script: str) -> tuple[str, ...]:
    """Return a command that is a line of shell."""
    return ("sh", "-c", script)


def pod_spec(
    node: str,
    command: Sequence[str] = (),
    *,
    ports: Sequence[int] = (),
    gpus: int = 1,
    grace_s: int = 2,
    env: Mapping[str, str] | None = None,
    restart: str = "Always",
    **more: Any,
) -> Manifest:
    """Return the spec of a pod with one container `main`, for a node; `more` goes beside it."""
    container: Manifest = {
        "name": "main",
        "image": "registry.test/june:1",
        "resources": {"limits": {"nvidia.com/gpu": str(gpus)}} if gpus else {},
        "ports": [{"containerPort": port, "name": f"p{port}"} for port in ports],
        "env": [{"name": name, "value": value} for name, value in (env or {}).items()],
    }
    if command:
        container["command"] = list(command)
    container |= more.pop("container", {})
    return {
        "nodeSelector": {"kubernetes.io/hostname": node},
        "tolerations": [TOLERATION],
        "restartPolicy": restart,
        "terminationGracePeriodSeconds": grace_s,
        "containers": [container],
    } | more


def pod(
    name: str,
    spec: Manifest,
    *,
    annotations: Mapping[str, str] | None = None,
    labels: Mapping[str, str] | None = None,
) -> Manifest:
    """Return a pod."""
    marked = {f"gp4u.io/{key}": value for key, value in (annotations or {}).items()}
    metadata = {"name": name, "labels": {"app": name} | dict(labels or {}), "annotations": marked}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def template(spec: Manifest, app: str, annotations: Mapping[str, str] | None = None) -> Manifest:
    """Return the pod template of a Deployment or the like."""
    made = pod(app, spec, annotations=annotations)
    del made["metadata"]["name"]
    return {"metadata": made["metadata"], "spec": spec}


def deployment(name: str, spec: Manifest, *, replicas: int) -> Manifest:
    """Return a Deployment of pods labelled `app: <name>`."""
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": template(spec, name),
        },
    }


def stateful_set(name: str, spec: Manifest, *, replicas: int = 1) -> Manifest:
    """Return a StatefulSet of pods labelled `app: <name>`."""
    return deployment(name, spec, replicas=replicas) | {
        "kind": "StatefulSet",
        "spec": {
            "replicas": replicas,
            "serviceName": name,
            "selector": {"matchLabels": {"app": name}},
            "template": template(spec, name),
        },
    }


def job(name: str, spec: Manifest, *, backoff_limit: int = 0) -> Manifest:
    """Return a Job of one pod, which is not tried again."""
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name},
        "spec": {"backoffLimit": backoff_limit, "template": template(spec, name)},
    }


def service(name: str, port: int, *, pod: str) -> Manifest:
    """Return a Service without a selector that the node points at a pod."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "annotations": {"gp4u.io/pod": pod}},
        "spec": {"ports": [{"name": "http", "port": port, "targetPort": port}]},
    }
