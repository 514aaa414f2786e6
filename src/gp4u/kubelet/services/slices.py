"""EndpointSlices of a pod: which Services want it, and what leads from them to its machine.

Hides the API's shape of a slice and how a Service's port becomes a port of a rented machine:
`targetPort` by number or name, then the market's mapping. Pure; who writes slices is `publish.py`.

Only addresses of the pod's own rental get in, never one that somebody wrote into an object, and of
those only what the outside may call: a market that lies must not point a Service at the cluster.

Source: kubernetes api discovery/v1 types.go and k8s.io/endpointslice, 1.36; checked 2026-11.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any, Final

from msgspec import Struct

from gp4u.errors import BadInput
from gp4u.kubelet.held import PodObject
from gp4u.kubelet.spec.annotations import Expose, asks_for_relay, expose_of
from gp4u.model import Endpoint
from gp4u.providers.http import may_connect

Json = dict[str, Any]

MANAGED_BY: Final = "endpointslice.kubernetes.io/managed-by"
OURS: Final = "virtual-node.gp4u.io"
SERVICE_NAME: Final = "kubernetes.io/service-name"
POD_UID: Final = "gp4u.io/pod-uid"
NODE: Final = "gp4u.io/node"
BACKED_BY_POD: Final = "gp4u.io/pod"
BACKED_BY_SELECTOR: Final = "gp4u.io/selector"
_HASH_CHARS: Final = 10
_MOST_ADDRESSES: Final = 16
"""Of one name; a slice holds 1000."""


class Problem(Struct, frozen=True):
    """Something that whoever wrote the pod or the Service should know."""

    reason: str
    message: str
    about_service: bool = False


class Way(Struct, frozen=True, kw_only=True, order=True):
    """How one port of a Service is reached from outside."""

    host: str
    port: int
    name: str
    """Of the Service's port; empty where it has none."""
    protocol: str
    app_protocol: str | None
    service_port: int


class Backing(Struct, frozen=True, kw_only=True):
    """What one Service gets of one pod."""

    ways: tuple[Way, ...]
    problems: tuple[Problem, ...]


def wanted_ports(service: Mapping[str, Any], pod: PodObject) -> tuple[int, ...] | None:
    """Return the container ports that a Service gets of a pod; None: it does not get it at all.

    Empty where the Service itself says which, by its `targetPort`s.
    """
    meta = pod["metadata"]
    if service["metadata"]["namespace"] != meta["namespace"]:
        return None
    if names_pod(service, pod):
        return ()
    try:
        expose = expose_of(pod)
    except BadInput:
        expose = Expose()  # it was refused at its admission
    ports = [each.port for each in expose.services if each.service == service["metadata"]["name"]]
    return tuple(ports) or None


def names_pod(service: Mapping[str, Any], pod: PodObject) -> bool:
    """Whether a Service says by an annotation of ours that a pod stands behind it."""
    said = service["metadata"].get("annotations") or {}
    if said.get(BACKED_BY_POD, "").strip() == pod["metadata"]["name"]:
        return True
    if BACKED_BY_SELECTOR not in said:
        return False
    terms = [each.partition("=") for each in said[BACKED_BY_SELECTOR].split(",")]
    labels = pod["metadata"].get("labels") or {}
    return all(sign and labels.get(key.strip()) == value.strip() for key, sign, value in terms)


def backing(
    service: Mapping[str, Any],
    pod: PodObject,
    ports: Sequence[int],
    endpoints: Iterable[Endpoint],
    *,
    relay_ip: str | None,
) -> Backing:
    """Return the ways from a Service to a pod's machine, and what stands in between.

    `ports` is what `wanted_ports` said. With a relay those that the machine has lead to it, by
    container port.
    """
    spec = service["spec"]
    ways: list[Way] = []
    problems = [Problem(*each, about_service=True) for each in _oddities(spec)]
    if spec.get("type") == "ExternalName":
        return Backing(ways=(), problems=tuple(problems))
    mapped = {(each.container_port, each.protocol.value.upper()): each for each in endpoints}
    found, missing = _targets(spec, pod, ports)
    title = f"Service {service['metadata']['name']}"
    problems += [Problem("EndpointPortMissing", f"{title}: {each}") for each in missing]
    for listed, number in found:
        protocol = listed.get("protocol") or "TCP"
        endpoint = mapped.get((number, protocol))
        if endpoint is None:
            text = f"{title}: the machine does not publish container port {number}/{protocol}"
            problems.append(Problem("EndpointPortMissing", text))
            continue
        if relay_ip is not None and protocol == "TCP":
            host, port = relay_ip, number
        elif endpoint.url is not None and _awaits_relay(pod):
            continue
        elif endpoint.url is not None:
            text = (
                f"{title}: this market publishes port {number} at {endpoint.url} only; a Service "
                "reaches it through a relay (gp4u.io/relay)"
            )
            problems.append(Problem("RelayNeeded", text))
            continue
        else:
            host, port = endpoint.host, endpoint.port
        ways.append(
            Way(
                host=host,
                port=port,
                name=listed.get("name") or "",
                protocol=protocol,
                app_protocol=listed.get("appProtocol"),
                service_port=listed["port"],
            )
        )
    return Backing(ways=tuple(ways), problems=tuple(problems))


def slices_of(
    service: Mapping[str, Any],
    pod: PodObject,
    ways: Iterable[Way],
    addresses: Mapping[str, Sequence[str]],
    *,
    node: str,
    ready: bool,
    terminating: bool,
) -> list[Json]:
    """Return the slices of one Service and pod: one for each host and family of addresses.

    `addresses` says what the hosts of the ways resolve to; a host without any has no slice. Names
    follow from the pod's UID, so that the same slice is never made twice.
    """
    hosts = groupby(sorted(ways), key=lambda way: way.host)
    made: list[Json] = []
    for index, (host, group) in enumerate(hosts):
        listed = list(group)
        for family in families_of(service):
            found = sorted(ip for ip in addresses.get(host, ()) if family_of(ip) == family)
            if found:
                slice_ = _slice(service, pod, family, index, node)
                slice_["ports"] = [_port(way) for way in listed]
                conditions = {
                    "ready": ready and not terminating,
                    "serving": ready,
                    "terminating": terminating,
                }
                # A Service that wants to know those that are not ready gets them; but never one
                # that goes: its address may be another tenant's in a moment.
                if service["spec"].get("publishNotReadyAddresses") and not terminating:
                    conditions["ready"] = True
                slice_["endpoints"] = [
                    {"addresses": [ip], "conditions": conditions, "targetRef": _reference(pod)}
                    for ip in found[:_MOST_ADDRESSES]
                ]
                made.append(slice_)
    return made


def families_of(service: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the families of addresses that a Service takes."""
    return tuple(service["spec"].get("ipFamilies") or ("IPv4", "IPv6"))


def family_of(ip: str) -> str:
    """Return the family of an address, as a slice has it."""
    return "IPv6" if ":" in ip else "IPv4"


def is_publishable(ip: str, *, allow_loopback: bool) -> bool:
    """Whether an address of a machine may stand in a slice: public, as the API wants it.

    `allow_loopback` also lets the addresses of rehearsals through, but for loopback itself, which
    the API refuses.
    """
    try:
        address = ipaddress.ip_address(ip)
    except ValueError:
        return False
    return may_connect(address, allow_loopback=allow_loopback) and not address.is_loopback


def same_slice(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two slices say the same, as far as we write it."""
    return _said(one) == _said(other)


def leaving(slice_: Mapping[str, Any]) -> Json:
    """Return the merge patch that says that what a slice leads to is going away."""
    endpoints = [
        {
            **each,
            "conditions": {**(each.get("conditions") or {}), "ready": False, "terminating": True},
        }
        for each in slice_.get("endpoints") or ()
    ]
    return {"metadata": {"uid": slice_["metadata"]["uid"]}, "endpoints": endpoints}


def pod_uid(slice_: Mapping[str, Any]) -> str:
    """Return the UID of the pod that a slice of ours is for; empty: it does not say."""
    uid: str = (slice_["metadata"].get("annotations") or {}).get(POD_UID, "")
    return uid


def is_ours(slice_: Mapping[str, Any], node: str) -> bool:
    """Whether a slice was made by this node."""
    meta = slice_["metadata"]
    managed = (meta.get("labels") or {}).get(MANAGED_BY) == OURS
    return managed and (meta.get("annotations") or {}).get(NODE) == node


def _awaits_relay(pod: PodObject) -> bool:
    try:
        return asks_for_relay(pod)
    except BadInput:
        return False  # it was refused at its admission


def _oddities(spec: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """Say what of a Service will not work as its author may think."""
    if spec.get("type") == "ExternalName":
        yield "ServiceNotServed", "an ExternalName Service has no endpoints"
        return
    if spec.get("selector"):
        text = "it has a selector, so the cluster's own endpoints are mixed with those of machines"
        yield "ServiceHasSelector", f"{text}: remove the selector"
    if spec.get("clusterIP") == "None":
        text = "it is headless: names lead to a machine's address, where the container's port is"
        yield "ServiceIsHeadless", f"{text} another one; only SRV records tell it"


def _targets(
    spec: Mapping[str, Any], pod: PodObject, ports: Sequence[int]
) -> tuple[list[tuple[Mapping[str, Any], int]], list[str]]:
    """Return the Service's ports, each with its container port; and what has none, as text."""
    listed = spec.get("ports") or []
    numbers = [_container_port(each, pod) for each in listed]
    if not ports:
        both = list(zip(listed, numbers, strict=True))
        unknown = [each for each, number in both if number is None]
        missing = [f"no container port is named {each.get('targetPort')!r}" for each in unknown]
        return [(each, number) for each, number in both if number is not None], missing
    found: dict[int, tuple[Mapping[str, Any], int]] = {}
    missing = []
    for port in ports:
        by_target = [at for at, number in enumerate(numbers) if number == port]
        by_port = [at for at, each in enumerate(listed) if each["port"] == port]
        lone = [0] if len(listed) == len(ports) == 1 else []
        at = next(iter([*by_target, *by_port, *lone]), None)
        if at is None:
            missing.append(f"none of its ports leads to container port {port}")
        else:
            found[at] = (listed[at], port)
    return list(found.values()), missing


def _container_port(listed: Mapping[str, Any], pod: PodObject) -> int | None:
    target = listed.get("targetPort") or listed["port"]
    if isinstance(target, int):
        return target
    protocol = listed.get("protocol") or "TCP"
    spec = pod["spec"]
    for container in (*spec["containers"], *(spec.get("initContainers") or ())):
        for port in container.get("ports") or ():
            if port.get("name") == target and (port.get("protocol") or "TCP") == protocol:
                number: int = port["containerPort"]
                return number
    return int(target) if target.isascii() and target.isdigit() else None


def _slice(service: Mapping[str, Any], pod: PodObject, family: str, index: int, node: str) -> Json:
    about, uid = service["metadata"], pod["metadata"]["uid"]
    told = f"{about['uid']}/{uid}/{family}/{index}"
    suffix = hashlib.sha256(told.encode()).hexdigest()[:_HASH_CHARS]
    owner = {"apiVersion": "v1", "kind": "Service", "name": about["name"], "uid": about["uid"]}
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": f"{about['name']}-gp4u-{suffix}",
            "generateName": f"{about['name']}-gp4u-",
            "namespace": about["namespace"],
            "labels": {SERVICE_NAME: about["name"], MANAGED_BY: OURS},
            "annotations": {POD_UID: uid, NODE: node},
            "ownerReferences": [owner],
        },
        "addressType": family,
    }


def _port(way: Way) -> Json:
    port: Json = {"name": way.name, "port": way.port, "protocol": way.protocol}
    return port if way.app_protocol is None else {**port, "appProtocol": way.app_protocol}


def _reference(pod: PodObject) -> Json:
    meta = pod["metadata"]
    named = {key: meta[key] for key in ("namespace", "name", "uid")}
    return {"kind": "Pod", **named}


def _said(slice_: Mapping[str, Any]) -> tuple[object, ...]:
    meta = slice_["metadata"]
    ports = [
        (each.get("name") or "", each["port"], each.get("protocol"), each.get("appProtocol"))
        for each in slice_.get("ports") or ()
    ]
    endpoints = [
        (each["addresses"], each.get("conditions"), each.get("targetRef"))
        for each in slice_.get("endpoints") or ()
    ]
    labels, said = meta.get("labels") or {}, meta.get("annotations") or {}
    marks = (labels.get(SERVICE_NAME), labels.get(MANAGED_BY), said.get(POD_UID), said.get(NODE))
    return slice_.get("addressType"), marks, ports, endpoints
