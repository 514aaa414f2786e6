"""The pod beside which a rented machine gets an address inside the cluster.

Hides its manifest: a small unprivileged pod on an ordinary node that runs `gp4u relay`, the
ConfigMap with its routes, and how both go away with the pod that they serve. Pure; who creates them
and waits is the controller, and what runs inside is `relay.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from gp4u.kubelet.held import PodObject
from gp4u.kubelet.policy import NodePolicy
from gp4u.kubelet.services.relay import Route, routes_text
from gp4u.model import Endpoint, Protocol

Json = dict[str, Any]

RELAY_FOR: Final = "gp4u.io/relay-for"
"""Label: UID of the pod that is relayed to."""
ROUTES_FILE: Final = "routes.json"
_MOUNTED: Final = "/etc/gp4u-relay"
_HEALTH_PORT: Final = 8099
_USER: Final = 10001
_NAME_CHARS: Final = 220
"""Of the pod's own name; with the rest it stays below 253."""


def relay_name(pod: PodObject) -> str:
    """Return the name of a pod's relay, and of the ConfigMap that it reads."""
    meta = pod["metadata"]
    return f"{meta['name'][:_NAME_CHARS].rstrip('.-')}-relay-{meta['uid'][:8].lower()}"


def relay_routes(endpoints: Iterable[Endpoint]) -> tuple[Route, ...]:
    """Return what a relay forwards: every TCP port of the machine, under the container's number."""
    found = {}
    for each in endpoints:
        if each.protocol is Protocol.TCP:
            host = f"[{each.host}]" if ":" in each.host else each.host
            found[each.container_port] = each.url or f"{host}:{each.port}"
    return tuple(Route(port, target) for port, target in sorted(found.items()))


def relay_config(pod: PodObject, endpoints: Iterable[Endpoint]) -> Json:
    """Return the ConfigMap that says what a pod's relay forwards."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(pod),
        "data": {ROUTES_FILE: routes_text(relay_routes(endpoints))},
    }


def relay_pod(
    pod: PodObject,
    endpoints: Iterable[Endpoint],
    policy: NodePolicy,
    *,
    allow_loopback: bool = False,
) -> Json:
    """Return the pod that relays to a machine.

    It carries none of the other pod's labels: a Service that selects those finds the other pod,
    whose address is this one's. `allow_loopback` is for rehearsals.
    """
    ports = [each.listen_port for each in relay_routes(endpoints)]
    health_port = next(port for port in range(_HEALTH_PORT, 65536) if port not in ports)
    probe = {"httpGet": {"path": "/", "port": health_port}}
    container = {
        "name": "relay",
        "image": policy.relay_image,
        "args": [
            "relay",
            "--routes",
            f"{_MOUNTED}/{ROUTES_FILE}",
            "--health-port",
            str(health_port),
        ],
        "env": [{"name": "GP4U_ALLOW_LOOPBACK", "value": "true"}] if allow_loopback else [],
        "ports": [{"containerPort": port, "protocol": "TCP"} for port in ports],
        "readinessProbe": {**probe, "periodSeconds": 2},
        "livenessProbe": {**probe, "periodSeconds": 20, "initialDelaySeconds": 20},
        "resources": {
            "requests": {"cpu": "10m", "memory": "64Mi"},
            "limits": {"memory": "256Mi"},
        },
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [{"name": "routes", "mountPath": _MOUNTED, "readOnly": True}],
    }
    spec: Json = {
        "restartPolicy": "Always",
        "terminationGracePeriodSeconds": 5,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "affinity": {"nodeAffinity": _REAL_NODES},
        "securityContext": _security(ports),
        "containers": [container],
        "volumes": [{"name": "routes", "configMap": {"name": relay_name(pod)}}],
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": _metadata(pod), "spec": spec}


def relay_address(relay: Mapping[str, Any]) -> str | None:
    """Return where a relay can be reached inside the cluster; None while it does not run."""
    status = relay.get("status") or {}
    if status.get("phase") != "Running" or "deletionTimestamp" in relay["metadata"]:
        return None
    address: str | None = status.get("podIP") or None
    return address


_REAL_NODES: Final = {
    "requiredDuringSchedulingIgnoredDuringExecution": {
        "nodeSelectorTerms": [
            {
                "matchExpressions": [
                    {"key": "type", "operator": "NotIn", "values": ["virtual-kubelet"]}
                ]
            }
        ]
    }
}


def _security(ports: Iterable[int]) -> Json:
    security: Json = {
        "runAsNonRoot": True,
        "runAsUser": _USER,
        "runAsGroup": _USER,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    if any(port < 1024 for port in ports):
        # One of the few that every cluster allows: low ports for a user that is not root.
        # Source: Kubernetes documentation, "Using sysctls in a Kubernetes Cluster", 1.36; checked
        # 2026-11.
        low = {"name": "net.ipv4.ip_unprivileged_port_start", "value": "0"}
        security["sysctls"] = [low]
    return security


def _metadata(pod: PodObject) -> Json:
    meta = pod["metadata"]
    owner = {
        "apiVersion": "v1",
        "kind": "Pod",
        "name": meta["name"],
        "uid": meta["uid"],
        "controller": True,  # a drain leaves pods alone that nobody controls
    }
    return {
        "name": relay_name(pod),
        "namespace": meta["namespace"],
        "labels": {
            "app.kubernetes.io/name": "gp4u-relay",
            "app.kubernetes.io/managed-by": "gp4u",
            RELAY_FOR: meta["uid"],
        },
        "ownerReferences": [owner],
    }
