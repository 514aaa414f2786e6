"""The environment of a container, as a kubelet would make it, and what `$(NAME)` stands for.

Hides the order in which sources go over each other, and every kind of `valueFrom`. A rented machine
resolves nothing: all of it happens here, before anything is rented. Pure: what was read from the
cluster comes as `Found`.

Source: kubernetes pkg/kubelet/kubelet_pods.go, third_party/forked/golang/expansion and
pkg/kubelet/envvars, 1.32; checked 2026-11. The one difference: variables with the addresses of
Services are seen by `$(NAME)`, and are shipped only where the operator says so, since nobody can
reach these addresses from outside.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator, Mapping, Sequence
from decimal import ROUND_CEILING, Decimal
from typing import Any, Final

from msgspec import Struct

from gp4u.errors import BadInput
from gp4u.kube.quantity import parse_quantity
from gp4u.kubelet.held import PodObject
from gp4u.kubelet.policy import NodePolicy
from gp4u.kubelet.spec.admission import Notice
from gp4u.kubelet.spec.references import Found, Kind, Unresolved
from gp4u.kubelet.spec.resources import GIB

CONFIG_ERROR: Final = "CreateContainerConfigError"
_REFERENCE: Final = re.compile(r"\$(?:\$|\(([^)]*)\))")
_NAME: Final = re.compile(r"[ -<>-~]+")
"""Printable ASCII without `=`. Source: KEP-4369, relaxed names, on from 1.32; checked 2026-11."""
_SUBSCRIPT: Final = re.compile(r"metadata\.(labels|annotations)\['(.*)'\]", re.DOTALL)
_FIELDS: Final = {
    "metadata.name": ("metadata", "name"),
    "metadata.namespace": ("metadata", "namespace"),
    "metadata.uid": ("metadata", "uid"),
    "spec.nodeName": ("spec", "nodeName"),
    "spec.serviceAccountName": ("spec", "serviceAccountName"),
    "spec.restartPolicy": ("spec", "restartPolicy"),
    "spec.schedulerName": ("spec", "schedulerName"),
    "status.phase": ("status", "phase"),
}


class Addresses(Struct, frozen=True, kw_only=True):
    """What a pod may ask about where it is."""

    host_ip: str = ""
    """Of the node; empty: not known."""
    pod_ip: str = ""
    """Known before the machine is rented only where a relay stands in for it; empty: not known."""


class Env(Struct, frozen=True, kw_only=True):
    """The environment of one container."""

    values: Mapping[str, str]
    """What is shipped."""
    seen: Mapping[str, str]
    """What `$(NAME)` sees: the same, and the variables of Services."""
    notices: tuple[Notice, ...] = ()


def environment(
    pod: PodObject,
    container: Mapping[str, Any],
    found: Found,
    *,
    addresses: Addresses,
    policy: NodePolicy,
) -> Env | Unresolved:
    """Return a container's environment; `Unresolved` names the first thing that is missing."""
    services = service_variables(found.services)
    made = _Making(pod, container, found, addresses, policy, services)
    for source in container.get("envFrom") or ():
        if (missing := made.take_all(source)) is not None:
            return missing
    for variable in container.get("env") or ():
        if (missing := made.take(variable)) is not None:
            return missing
    values = made.values
    shipped = {**services, **values} if policy.service_variables else values
    return Env(values=shipped, seen={**services, **values}, notices=tuple(made.notices))


def expand(text: str, env: Mapping[str, str]) -> str:
    """Return a text with each `$(NAME)` replaced; `$$` is one `$`, what is not known stays."""

    def value(match: re.Match[str]) -> str:
        name = match[1]
        return "$" if name is None else env.get(name, match[0])

    return _REFERENCE.sub(value, text)


def unknown_names(text: str, env: Mapping[str, str]) -> tuple[str, ...]:
    """Return the names that a text refers to and nobody knows."""
    names = (match[1] for match in _REFERENCE.finditer(text))
    return tuple(name for name in names if name is not None and name not in env)


def service_variables(services: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return the variables that tell where Services are; those without an address have none."""
    found: dict[str, str] = {}
    for service in services:
        spec = service.get("spec") or {}
        address, ports = spec.get("clusterIP") or "None", spec.get("ports") or ()
        if address != "None" and ports:
            found.update(_of_service(service["metadata"]["name"], address, ports))
    return found


def field_value(pod: PodObject, path: str, addresses: Addresses) -> str | None:
    """Return one field of a pod as text, or None where there is no such field to be had."""
    if (found := _SUBSCRIPT.fullmatch(path)) is not None:
        texts: Mapping[str, str] = pod["metadata"].get(found[1]) or {}
        return texts.get(found[2], "")
    match path:
        case "status.hostIP" | "status.hostIPs":
            return addresses.host_ip
        case "status.podIP" | "status.podIPs":
            return addresses.pod_ip
    if (where := _FIELDS.get(path)) is None:
        return None
    part, member = where
    value = (pod.get(part) or {}).get(member)
    return "" if value is None else str(value)


def resource_value(
    pod: PodObject, container: Mapping[str, Any], source: Mapping[str, Any], policy: NodePolicy
) -> str | None:
    """Return a request or limit in units of its divisor, rounded up; None: no such resource.

    A limit that is not set is what the whole node has, a request that is not set is nothing.
    """
    name = source.get("containerName") or container.get("name")
    of = (*pod["spec"]["containers"], *(pod["spec"].get("initContainers") or ()))
    meant = next((each for each in of if each["name"] == name), None)
    kind, _, resource = str(source.get("resource", "")).partition(".")
    if meant is None or kind not in ("limits", "requests") or not resource:
        return None
    told = (meant.get("resources") or {}).get(kind) or {}
    try:
        amount = parse_quantity(str(told.get(resource, "0")))
        divisor = parse_quantity(str(source.get("divisor") or "0")) or Decimal(1)
    except BadInput:
        return None
    if kind == "limits" and not amount:
        amount = _of_node(policy).get(resource, Decimal(0))
    return f"{(amount / divisor).to_integral_value(ROUND_CEILING):f}"


def texts_of(kind: Kind, content: Mapping[str, Any]) -> dict[str, bytes]:
    """Return what a ConfigMap or a Secret holds, by key; what is no base64 is left out."""
    plain = content.get("data") or {}
    if kind is Kind.SECRET:
        return _decoded(plain)
    texts = {key: text.encode() for key, text in plain.items()}
    return {**texts, **_decoded(content.get("binaryData") or {})}


def is_missing(kind: Kind, namespace: str, name: str, key: str = "") -> tuple[str, str]:
    """Return (end of the event's reason, message) for an object or a key that is not there."""
    if key:
        return f"{kind}KeyNotFound", f"key {key!r} of {kind} {namespace}/{name} does not exist"
    return f"{kind}NotFound", f"{kind} {namespace}/{name} does not exist"


class _Making:
    """The environment of one container while it is put together."""

    def __init__(
        self,
        pod: PodObject,
        container: Mapping[str, Any],
        found: Found,
        addresses: Addresses,
        policy: NodePolicy,
        services: Mapping[str, str],
    ) -> None:
        self._pod, self._container, self._found = pod, container, found
        self._addresses, self._policy, self._services = addresses, policy, services
        self.values: dict[str, str] = {}
        self.notices: list[Notice] = []

    @property
    def _namespace(self) -> str:
        namespace: str = self._pod["metadata"]["namespace"]
        return namespace

    def take_all(self, source: Mapping[str, Any]) -> Unresolved | None:
        """Take every key of one `envFrom` over those before it."""
        for member, kind in (("configMapRef", Kind.CONFIG_MAP), ("secretRef", Kind.SECRET)):
            if (named := source.get(member)) is None:
                continue
            name = named.get("name") or ""
            content = self._found.of(kind, name)
            if content is None:
                return self._absent(kind, name, optional=bool(named.get("optional")))
            self._take_keys(kind, name, content, source.get("prefix") or "")
        return None

    def take(self, variable: Mapping[str, Any]) -> Unresolved | None:
        """Take one entry of `env` over what has its name."""
        name, source = variable["name"], variable.get("valueFrom")
        if source is None:
            seen = {**self._services, **self.values}
            self.values[name] = expand(variable.get("value") or "", seen)
            return None
        value = self._from(source)
        if isinstance(value, str):
            self.values[name] = value
            return None
        return value

    def _take_keys(self, kind: Kind, name: str, content: Mapping[str, Any], prefix: str) -> None:
        held = texts_of(kind, content)
        if kind is Kind.CONFIG_MAP:  # what is binary there is for files only
            held = {key: held[key] for key in content.get("data") or {}}
        unfit = []
        for key in sorted(held):
            if _NAME.fullmatch(prefix + key):
                self.values[prefix + key] = _text(held[key])
            else:
                unfit.append(prefix + key)
        if unfit:
            told = f"{kind} {self._namespace}/{name}: no variable can be called {', '.join(unfit)}"
            self.notices.append(Notice("InvalidEnvironmentVariableNames", told))

    def _from(self, source: Mapping[str, Any]) -> str | Unresolved | None:
        """Return a `valueFrom`; None: optional, and not there."""
        for member, kind in (("configMapKeyRef", Kind.CONFIG_MAP), ("secretKeyRef", Kind.SECRET)):
            if (named := source.get(member)) is not None:
                return self._of_key(kind, named)
        if (field := source.get("fieldRef")) is not None:
            path = field.get("fieldPath", "")
            value = field_value(self._pod, path, self._addresses)
            if not value and path in ("status.podIP", "status.podIPs"):
                told = f"{path} is empty: the pod has no address before its machine is rented"
                self.notices.append(Notice("PodAddressUnknown", told))
            return (
                Unresolved(CONFIG_ERROR, f"fieldPath {path!r} is unknown")
                if value is None
                else value
            )
        if (resource := source.get("resourceFieldRef")) is not None:
            value = resource_value(self._pod, self._container, resource, self._policy)
            told = f"resource {resource.get('resource')!r} of {resource.get('containerName', '')!r}"
            return Unresolved(CONFIG_ERROR, f"{told} is unknown") if value is None else value
        return Unresolved(CONFIG_ERROR, f"valueFrom {', '.join(source)} cannot be resolved")

    def _of_key(self, kind: Kind, named: Mapping[str, Any]) -> str | Unresolved | None:
        name, key = named.get("name") or "", named.get("key") or ""
        optional = bool(named.get("optional"))
        content = self._found.of(kind, name)
        if content is None:
            return self._absent(kind, name, optional=optional)
        held = texts_of(kind, content)
        if kind is Kind.CONFIG_MAP and key not in (content.get("data") or {}):
            return self._absent(kind, name, key, optional=optional)
        if key not in held:
            return self._absent(kind, name, key, optional=optional)
        return _text(held[key])

    def _absent(self, kind: Kind, name: str, key: str = "", *, optional: bool) -> Unresolved | None:
        reason, told = is_missing(kind, self._namespace, name, key)
        if not optional and not self._found.settled:
            return Unresolved(f"Mandatory{reason}", told)
        self.notices.append(Notice(f"Optional{reason}", told))
        return None


def _of_service(
    name: str, address: str, ports: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[str, str]]:
    upper = name.upper().replace("-", "_")
    yield f"{upper}_SERVICE_HOST", address
    yield f"{upper}_SERVICE_PORT", str(ports[0]["port"])
    for port in ports:
        if port.get("name"):
            told = port["name"].upper().replace("-", "_")
            yield f"{upper}_SERVICE_PORT_{told}", str(port["port"])
    host = f"[{address}]" if ":" in address else address
    for place, port in enumerate(ports):
        protocol, number = port.get("protocol") or "TCP", str(port["port"])
        url = f"{protocol.lower()}://{host}:{number}"
        if place == 0:
            yield f"{upper}_PORT", url
        prefix = f"{upper}_PORT_{number}_{protocol.upper()}"
        yield prefix, url
        yield f"{prefix}_PROTO", protocol.lower()
        yield f"{prefix}_PORT", number
        yield f"{prefix}_ADDR", address


def _of_node(policy: NodePolicy) -> dict[str, Decimal]:
    return {
        "cpu": Decimal(policy.cpus),
        "memory": Decimal(policy.memory_gib) * GIB,
        "ephemeral-storage": Decimal(policy.disk_gib) * GIB,
    }


def _decoded(texts: Mapping[str, str]) -> dict[str, bytes]:
    found = {}
    for key, text in texts.items():
        try:
            found[key] = base64.b64decode(text, validate=True)
        except binascii.Error:
            continue
    return found


def _text(content: bytes) -> str:
    """A variable is text; what is none is shown as far as it is."""
    return content.decode("utf-8", "replace")
