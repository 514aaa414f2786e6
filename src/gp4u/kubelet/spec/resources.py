"""What a pod's spec says of machines: amounts of resources, and the nodes that it selects.

Hides how Kubernetes adds up containers, and by which labels pods ask for a GPU model. Pure. What is
made of it is left to `annotations.py`, whether the node has so much to `admission.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final

from gp4u.errors import BadInput
from gp4u.kube.quantity import parse_quantity
from gp4u.kubelet.held import PodObject

GPU: Final = "nvidia.com/gpu"
GPU_PRODUCT: Final = "nvidia.com/gpu.product"
GPU_MEMORY: Final = "nvidia.com/gpu.memory"
"""Labels that GPU feature discovery puts on nodes, the memory in MiB; pods select by them.

Source: NVIDIA k8s-device-plugin, docs/gpu-feature-discovery; checked 2026-11.
"""
GIB: Final = 2**30
_MIB_PER_GIB: Final = 1024


def asked_of_node(pod: PodObject, container: str | None = None) -> dict[str, Decimal]:
    """Return what a pod asks a node for: resource to amount in its base unit.

    Containers run together, init containers before them and one by one.

    Raises:
        BadInput: an amount is no quantity.
    """
    spec = pod["spec"]
    together: dict[str, Decimal] = {}
    for place, each in enumerate(spec["containers"]):
        if container in (None, each["name"]):
            for resource, amount in _requests(each, f"spec.containers[{place}]").items():
                together[resource] = together.get(resource, Decimal(0)) + amount
    for place, each in enumerate(spec.get("initContainers") or () if container is None else ()):
        for resource, amount in _requests(each, f"spec.initContainers[{place}]").items():
            together[resource] = max(together.get(resource, Decimal(0)), amount)
    if container is None:
        together.update(_requests(spec, "spec"))
    return together


def main_container(spec: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the container that gets the GPU; where none asks for one, the first."""
    containers: list[Mapping[str, Any]] = list(spec["containers"])
    return next((each for each in containers if wants_gpu(each)), containers[0])


def wants_gpu(container: Mapping[str, Any]) -> bool:
    """Tell whether a container asks for a GPU."""
    resources = container.get("resources") or {}
    told = {**(resources.get("requests") or {}), **(resources.get("limits") or {})}
    return str(told.get(GPU, "0")) != "0"


def selected_vram_gib(pod: PodObject) -> float | None:
    """Return the GPU memory that a pod selects nodes by, or None."""
    told = [text for text in selected(pod, GPU_MEMORY) if text.isascii() and text.isdigit()]
    return min(int(text) for text in told) / _MIB_PER_GIB if told else None


def selected(pod: PodObject, label: str) -> list[str]:
    """Return the values of a node label that a pod asks for; none where others would do as well."""
    spec = pod["spec"]
    if (one := (spec.get("nodeSelector") or {}).get(label)) is not None:
        return [one]
    node_affinity = (spec.get("affinity") or {}).get("nodeAffinity") or {}
    required = node_affinity.get("requiredDuringSchedulingIgnoredDuringExecution") or {}
    terms = required.get("nodeSelectorTerms") or ()
    per_term: list[list[str]] = [
        [
            value
            for rule in term.get("matchExpressions") or ()
            if rule.get("key") == label and rule.get("operator") == "In"
            for value in rule.get("values") or ()
        ]
        for term in terms
    ]
    return (
        list(dict.fromkeys(value for term in per_term for value in term)) if all(per_term) else []
    )


def _requests(part: Mapping[str, Any], field: str) -> dict[str, Decimal]:
    """Requests of a container, or of a whole pod; a limit alone is a request as well."""
    resources = part.get("resources") or {}
    texts = {**(resources.get("limits") or {}), **(resources.get("requests") or {})}
    found = {}
    for resource, text in texts.items():
        try:
            found[resource] = parse_quantity(str(text))
        except BadInput as error:
            raise BadInput(f"{field}.resources[{resource}]", text, error.bound) from None
    return found
