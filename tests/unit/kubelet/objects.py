"""Pods as the API server would give them, for the tests of what becomes of them."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any, Final

from gp4u.kubelet.policy import NodePolicy
from gp4u.kubelet.spec.references import Found, Kind
from gp4u.providers.contract import Ability

POLICY: Final = NodePolicy(name="vast-gpu-node-1", address="10.0.0.7")
EVERYTHING: Final = ~Ability.NONE
MARKETS: Final = {"vastai": EVERYTHING}
UID: Final = "5c8e4f1e-0000-4000-8000-000000000001"


def container(name: str = "main", *, gpus: int = 1, **members: Any) -> dict[str, Any]:
    """Return a container that wants a GPU and has a command."""
    limits = {"nvidia.com/gpu": str(gpus)} if gpus else {}
    plain = {
        "name": name,
        "image": "ozzu/june:1",
        "command": ["serve"],
        "resources": {"limits": limits, "requests": dict(limits)},
    }
    return {**plain, **members}


def pod(
    *containers: Mapping[str, Any],
    annotations: Mapping[str, str] | None = None,
    labels: Mapping[str, str] | None = None,
    owner: str | None = None,
    **spec: Any,
) -> dict[str, Any]:
    """Return a pod; annotations are written without their prefix."""
    about: dict[str, Any] = {"name": "june", "namespace": "default", "uid": UID}
    if annotations:
        about["annotations"] = {f"gp4u.io/{name}": text for name, text in annotations.items()}
    if labels:
        about["labels"] = dict(labels)
    if owner:
        about["ownerReferences"] = [{"kind": owner, "name": "it", "controller": True}]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": about,
        "spec": {
            "nodeName": POLICY.name,
            "restartPolicy": "Always",
            "containers": [dict(each) for each in containers] or [container()],
            **spec,
        },
    }


def config_map(**texts: str) -> dict[str, Any]:
    """Return a ConfigMap of these keys."""
    return {"data": texts}


def secret(**texts: str | bytes) -> dict[str, Any]:
    """Return a Secret of these keys."""
    return {"data": {key: packed(text) for key, text in texts.items()}}


def packed(text: str | bytes) -> str:
    """Return bytes as an object holds them."""
    raw = text.encode() if isinstance(text, str) else text
    return base64.b64encode(raw).decode()


def found(
    *,
    maps: Mapping[str, Mapping[str, Any]] | None = None,
    secrets: Mapping[str, Mapping[str, Any]] | None = None,
    services: Sequence[Mapping[str, Any]] = (),
) -> Found:
    """Return what was read from the cluster."""
    objects: dict[tuple[Kind, str], Mapping[str, Any] | None] = {}
    objects.update({(Kind.CONFIG_MAP, name): each for name, each in (maps or {}).items()})
    objects.update({(Kind.SECRET, name): each for name, each in (secrets or {}).items()})
    return Found(objects=objects, services=services)
