"""What the Node object says, and what has to be written when it says something else; pure.

Hides the shape of a v1.Node. Only what is ours is ever compared or written: our labels,
annotations, taints and address, our conditions, and the amounts we offer. What others put on the
node (taints of its controllers, labels of its users, a cordon) is none of our business.

Source: kubernetes pkg/kubelet/kubelet_node_status.go and pkg/kubelet/nodestatus/setters.go, 1.36;
virtual-kubelet node/node.go, 2026-07; checked 2026-11.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final
from uuid import NAMESPACE_URL, uuid5

from msgspec import Struct

from gp4u import __version__
from gp4u.errors import BadInput
from gp4u.kube.quantity import parse_quantity
from gp4u.kubelet.node.capacity import Shortage
from gp4u.kubelet.policy import NodePolicy

GPU: Final = "nvidia.com/gpu"
MARKETS_TAINT: Final = "gp4u.io/markets-unavailable"
MARKETS_CONDITION: Final = "MarketsAvailable"
GPUS_CONDITION: Final = "GpusRentable"
LABELS_KEPT: Final = "gp4u.io/owned-labels"
"""Annotation: keys of the operator's labels, so that one that is dropped is also removed."""
TAINTS_KEPT: Final = "gp4u.io/owned-taints"
RETIRED: Final = "gp4u.io/decommissioned"
"""Annotation: the node is being taken out of service, and must not come back by itself."""

_KEYS: Final = ("cpu", "memory", "ephemeral-storage", "pods", GPU)


class Face(Struct, frozen=True, kw_only=True):
    """What the node shows at one moment, beside its policy."""

    gpus: int
    markets: Mapping[str, str]
    """Market to why it does not answer; empty text: it does."""
    more: int | None = None
    """GPUs that could be rented besides; None: nobody knows now."""
    shortage: Shortage | None = None
    """Why that is nothing, where it is."""
    shut: bool = False
    """No market has answered for a while: nobody should be sent here."""
    features: Sequence[str] = ()
    """Of the API, that this node declares to have."""


def provider_id(name: str) -> str:
    """Return what tells our node from a cloud's."""
    return f"gp4u://{name}"


def new_node(policy: NodePolicy, face: Face, *, at: datetime) -> dict[str, Any]:
    """Return the Node object to create."""
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": policy.name,
            "labels": labels(policy),
            "annotations": _annotations(policy),
        },
        "spec": {"providerID": provider_id(policy.name), "taints": _taints(policy, face)},
        "status": status(None, policy, face, at=at),
    }


def check_ours(node: Mapping[str, Any]) -> None:
    """Refuse to take over a node that stands for somebody else's machine.

    Raises:
        BadInput: its `providerID` is not ours.
    """
    name = node["metadata"]["name"]
    held = (node.get("spec") or {}).get("providerID") or ""
    if held not in {"", provider_id(name)}:
        why = f"this node is there already and is not ours: its providerID is {held}"
        raise BadInput("GP4U_NODE_NAME", name, why)


def is_retired(node: Mapping[str, Any]) -> bool:
    """Whether the node is being taken out of service for good."""
    return RETIRED in (node["metadata"].get("annotations") or {})


def gpus(node: Mapping[str, Any]) -> int:
    """Return how many GPUs the node offers now."""
    amounts = (node.get("status") or {}).get("allocatable") or {}
    return int(parse_quantity(amounts.get(GPU, "0")))


def labels(policy: NodePolicy) -> dict[str, str]:
    """Return the labels of the node; the operator's own go first, but for what it is."""
    return {
        "kubernetes.io/role": "agent",
        "node.kubernetes.io/exclude-from-external-load-balancers": "true",
        "alpha.service-controller.kubernetes.io/exclude-balancer": "true",
        "gp4u.io/interruptible": "true" if policy.interruptible else "false",
        **policy.labels,
        "type": "virtual-kubelet",
        "kubernetes.io/hostname": policy.name,
        "kubernetes.io/os": "linux",
        "kubernetes.io/arch": "amd64",
    }


def outer_patch(node: Mapping[str, Any], policy: NodePolicy, face: Face) -> dict[str, Any] | None:
    """Return the strategic merge patch that makes everything but the status right; None: it is.

    Taints are one list in the API, so where they change, the patch holds those of others too, and
    the version that they were read at.
    """
    meta, spec = node["metadata"], node.get("spec") or {}
    have_labels = meta.get("labels") or {}
    have_notes = meta.get("annotations") or {}
    wanted = labels(policy)
    dropped = set(_split(have_notes.get(LABELS_KEPT))) - set(wanted)
    change: dict[str, Any] = {}
    new_labels = _difference(have_labels, wanted, dropped)
    new_notes = _difference(have_notes, _annotations(policy), ())
    ours = {taint["key"]: taint for taint in _taints(policy, face)}
    owned = {*ours, MARKETS_TAINT, *_split(have_notes.get(TAINTS_KEPT))}
    have = spec.get("taints") or []
    if [each for each in have if each["key"] in owned] != list(ours.values()):
        theirs = [each for each in have if each["key"] not in owned]
        change["spec"] = {"taints": [*theirs, *ours.values()]}
        change["metadata"] = {"resourceVersion": meta["resourceVersion"]}
    if not spec.get("providerID"):
        change.setdefault("spec", {})["providerID"] = provider_id(policy.name)
    if new_labels:
        change.setdefault("metadata", {})["labels"] = new_labels
    if new_notes:
        change.setdefault("metadata", {})["annotations"] = new_notes
    return change or None


def status(
    node: Mapping[str, Any] | None, policy: NodePolicy, face: Face, *, at: datetime
) -> dict[str, Any]:
    """Return the whole status that is ours; a condition that did not flip keeps its time."""
    before = {} if node is None else (node.get("status") or {})
    amounts = _amounts(policy, face)
    told: dict[str, Any] = {
        "capacity": amounts,
        "allocatable": amounts,
        "conditions": list(_conditions(before.get("conditions") or (), face, _stamp(at))),
        "addresses": [{"type": "InternalIP", "address": policy.address}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": policy.port}},
        "nodeInfo": _node_info(policy),
    }
    if face.features or before.get("declaredFeatures"):
        # None takes it out, also of a server that does not know the field.
        told["declaredFeatures"] = sorted(face.features) or None
    return told


def status_patch(node: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Return the strategic merge patch of the status; it fits this very node, by UID."""
    addresses = [{"$patch": "replace"}, *wanted["addresses"]]
    return {
        "metadata": {"uid": node["metadata"]["uid"]},
        "status": {**wanted, "addresses": addresses},
    }


def says_the_same(node: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether the node's status is the wanted one, but for the times of its conditions."""
    have = node.get("status") or {}
    for amounts in ("capacity", "allocatable"):
        held = have.get(amounts) or {}
        for key, amount in wanted[amounts].items():
            # The server writes an amount in its own way: 8192Gi comes back as 8Ti.
            if key not in held or parse_quantity(held[key]) != parse_quantity(amount):
                return False
    verdicts = {each["type"]: _verdict(each) for each in have.get("conditions") or ()}
    if any(verdicts.get(each["type"]) != _verdict(each) for each in wanted["conditions"]):
        return False
    info = have.get("nodeInfo") or {}
    return (
        have.get("addresses") == wanted["addresses"]
        and have.get("daemonEndpoints") == wanted["daemonEndpoints"]
        and all(info.get(key, "") == value for key, value in wanted["nodeInfo"].items())
    )


def _annotations(policy: NodePolicy) -> dict[str, str]:
    taint = policy.taint
    return {
        LABELS_KEPT: ",".join(sorted(policy.labels)),
        TAINTS_KEPT: taint.key if taint is not None else "",
    }


def _taints(policy: NodePolicy, face: Face) -> list[dict[str, str]]:
    taints = []
    if policy.taint is not None:
        held = policy.taint
        taints.append({"key": held.key, "value": held.value, "effect": held.effect})
    if face.shut:
        taints.append({"key": MARKETS_TAINT, "effect": "NoSchedule"})
    return taints


def _amounts(policy: NodePolicy, face: Face) -> dict[str, str]:
    return {
        "cpu": str(policy.cpus),
        "memory": f"{policy.memory_gib}Gi",
        "ephemeral-storage": f"{policy.disk_gib}Gi",
        "pods": str(policy.max_pods),
        GPU: str(face.gpus),
    }


def _conditions(
    before: Sequence[Mapping[str, Any]], face: Face, now: str
) -> Iterable[dict[str, str]]:
    times = {each["type"]: each for each in before}
    for kind, value, reason, message in (
        ("Ready", "True", "KubeletReady", "the virtual node takes pods"),
        ("MemoryPressure", "False", "KubeletHasSufficientMemory", "memory is rented, not shared"),
        ("DiskPressure", "False", "KubeletHasNoDiskPressure", "disks are rented, not shared"),
        ("PIDPressure", "False", "KubeletHasSufficientPID", "machines are rented, not shared"),
        ("NetworkUnavailable", "False", "RouteCreated", "machines have addresses of their own"),
        _markets(face),
        _rentable(face),
    ):
        was = times.get(kind, {})
        flipped = was.get("status") != value or not was.get("lastTransitionTime")
        yield {
            "type": kind,
            "status": value,
            "reason": reason,
            "message": message,
            "lastHeartbeatTime": now,
            "lastTransitionTime": now if flipped else was["lastTransitionTime"],
        }


def _markets(face: Face) -> tuple[str, str, str, str]:
    silent = sorted(slug for slug, why in face.markets.items() if why)
    answering = sorted(set(face.markets) - set(silent))
    if face.shut:
        message = f"no market answers: {', '.join(silent) or 'none is open'}"
        return MARKETS_CONDITION, "False", "NoMarketAnswers", message
    message = f"markets: {', '.join(answering or silent)}"
    return MARKETS_CONDITION, "True", "MarketsAnswer", message


def _rentable(face: Face) -> tuple[str, str, str, str]:
    """Return what a scheduler does not say, to whom every shortage is `Insufficient`."""
    if face.more is None:
        return GPUS_CONDITION, "Unknown", "NotLookedYet", "no market has told what it has"
    if face.shortage is not None:
        return GPUS_CONDITION, "False", face.shortage.reason, face.shortage.message
    return GPUS_CONDITION, "True", "OffersFit", "more GPUs can be rented"


def _node_info(policy: NodePolicy) -> dict[str, str]:
    # The same after every restart: another bootID would look like a machine that was rebooted.
    machine = str(uuid5(NAMESPACE_URL, provider_id(policy.name)))
    return {
        "architecture": "amd64",
        "operatingSystem": "linux",
        "osImage": "GP4U",
        "kernelVersion": __version__,
        "kubeletVersion": policy.kubelet_version,
        "kubeProxyVersion": "",
        "containerRuntimeVersion": f"gp4u://{__version__}",
        "machineID": machine.replace("-", ""),
        "systemUUID": machine,
        "bootID": machine,
    }


def _verdict(condition: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(condition.get(key) for key in ("status", "reason", "message"))


def _difference(
    have: Mapping[str, str], wanted: Mapping[str, str], dropped: Iterable[str]
) -> dict[str, str | None]:
    changed: dict[str, str | None] = {
        key: value for key, value in wanted.items() if have.get(key) != value
    }
    return changed | {key: None for key in dropped if key in have}


def _split(text: str | None) -> list[str]:
    return [part for part in (text or "").split(",") if part]


def _stamp(at: datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")
