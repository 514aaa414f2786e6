"""What is set of the virtual node: `gp4u node run`, and what it tells a cluster of itself.

Beside `server_settings.py`: how these variables arrive as text is in `variables.py`, and what a
node's parts go by is `kubelet/policy.py`, which is made from them and from a ConfigMap while it
runs. The three names of the taint are those that virtual kubelets have long had.
"""

from __future__ import annotations

import ipaddress
import re
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from gp4u.variables import Flag, Group, Variable, disorder

NODE_NAME: Final = "vast-gpu-node-1"
"""Source: the second seed, "How It Works in Practice"."""
CLASSES: Final = ("on-demand", "spot")
_WORD: Final = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_NAME: Final = re.compile(rf"(?=.{{1,63}}\Z){_WORD}(\.{_WORD})*")
"""Of a node, which is the value of a label as well.

Source: kubernetes apimachinery pkg/util/validation/validation.go, 1.36; checked 2026-11.
"""
_LABEL: Final = r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
_MAX_PORT: Final = 65_535
_MANY: Final = 16


class NodeClass(NamedTuple):
    """One node, and whether its pods get machines that can be taken away."""

    name: str
    is_spot: bool

    def __str__(self) -> str:
        return f"{self.name}={CLASSES[self.is_spot]}"


def _nodes(value: Any) -> Any:
    """Read a comma list of NAME or NAME=CLASS."""
    if not isinstance(value, str):
        return value
    found = []
    for word in re.split(r"[,\s]+", value.strip()):
        name, _, kind = word.partition("=")
        if not _NAME.fullmatch(name):
            raise ValueError(
                f"{name[:40]!r}: a node's name has lower-case letters, digits, - and ., 63 at most"
            )
        if kind not in ("", *CLASSES):
            raise ValueError(f"{name}={kind[:20]}: a class is one of {', '.join(CLASSES)}")
        found.append(NodeClass(name, kind == "spot"))
    if len({each.name for each in found}) != len(found):
        raise ValueError("two nodes of one name")
    if len(found) > _MANY:
        raise ValueError(f"at most {_MANY} nodes")
    return tuple(found)


def _address(value: str | None) -> str | None:
    return None if value is None else str(ipaddress.ip_address(value))


def _listen(value: str) -> str:
    return str(ipaddress.ip_address(value))


def _taint_key(value: str) -> str:
    """Take a key, or `none`: an empty one would be the default."""
    if value == "none":
        return ""
    if not re.fullmatch(rf"((?=.{{1,253}}/){_WORD}(\.{_WORD})*/)?{_LABEL}", value):
        raise ValueError("a taint key, such as example.org/gpu, or none")
    return value


def _taint_value(value: str) -> str:
    if not re.fullmatch(_LABEL, value):
        raise ValueError("letters, digits, -, _ and ., 63 at most")
    return value


def _namespace(value: str | None) -> str | None:
    if value is not None and not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", value):
        raise ValueError("lower-case letters, digits and dashes, 63 at most")
    return value


def _pair(value: str | None) -> str | None:
    """Take NAMESPACE/NAME of a ConfigMap, or the name alone."""
    if value is not None and not re.fullmatch(r"([a-z0-9-]{1,63}/)?[a-z0-9.-]{1,253}", value):
        raise ValueError("NAME or NAMESPACE/NAME")
    return value


class NodeGroup(Group):
    """The virtual node."""

    nodes: Annotated[
        tuple[NodeClass, ...],
        BeforeValidator(_nodes),
        Variable(
            "GP4U_NODE_NAME",
            "names",
            "nodes that one process is; a spot node's pods get machines that can be taken away",
            allowed="comma list of NAME or NAME=CLASS; classes are on-demand and spot",
            default=NODE_NAME,
        ),
    ] = (NodeClass(NODE_NAME, is_spot=False),)
    address: Annotated[
        str | None,
        AfterValidator(_address),
        Variable(
            "GP4U_NODE_ADDRESS",
            "IP",
            "where the API server reaches the node; none: this machine's own address",
            allowed="an IPv4 or IPv6 address",
        ),
    ] = None
    listen: Annotated[
        str,
        AfterValidator(_listen),
        Variable(
            "GP4U_NODE_LISTEN",
            "IP",
            "address that the kubelet API listens on",
            allowed="an IPv4 or IPv6 address",
        ),
    ] = "0.0.0.0"  # noqa: S104 - the API server is on another machine; every caller is reviewed
    port: Annotated[
        int,
        Field(ge=0, le=65_535),
        Variable("GP4U_NODE_PORT", "", "port of the kubelet API; 0 takes a free one"),
    ] = 10250
    health_port: Annotated[
        int,
        Field(ge=0, le=65_535),
        Variable(
            "GP4U_NODE_HEALTH_PORT", "", "where it says, in plain HTTP, that it lives; 0: nowhere"
        ),
    ] = 10248
    auth: Annotated[
        Literal["webhook", "none"],
        Variable(
            "GP4U_NODE_AUTH",
            "",
            "who may call the kubelet API: whom the API server allows, or, by `none`, anybody",
        ),
    ] = "webhook"
    client_ca_file: Annotated[
        Path | None,
        Variable(
            "GP4U_NODE_CLIENT_CA_FILE",
            "path",
            "CA of client certificates; none: what the cluster publishes for extension API servers",
            allowed="path of a PEM file",
        ),
    ] = None
    tls_cert_file: Annotated[
        Path | None,
        Variable(
            "GP4U_NODE_TLS_CERT_FILE",
            "path",
            "serving certificate; none: one is asked of the cluster, and made until it is there",
            allowed="path of a PEM file",
        ),
    ] = None
    tls_key_file: Annotated[
        Path | None,
        Variable("GP4U_NODE_TLS_KEY_FILE", "path", "its key", allowed="path of a PEM file"),
    ] = None
    self_approve: Annotated[
        Flag,
        Variable(
            "GP4U_NODE_SELF_APPROVE",
            "",
            "approve the request for the serving certificate; needs the right to",
        ),
    ] = False
    max_gpus: Annotated[
        int,
        Field(ge=0, le=100_000),
        Variable("GP4U_NODE_MAX_GPUS", "GPUs", "the most that a node offers"),
    ] = 16
    max_pods: Annotated[
        int, Field(ge=1, le=100_000), Variable("GP4U_NODE_MAX_PODS", "pods", "the most it takes")
    ] = 1000
    cpus: Annotated[
        int,
        Field(ge=1, le=1_000_000),
        Variable("GP4U_NODE_CPUS", "cores", "what it tells the scheduler it has"),
    ] = 1024
    memory_gib: Annotated[
        int,
        Field(ge=1, le=10_000_000),
        Variable("GP4U_NODE_MEMORY_GIB", "GiB", "what it tells the scheduler it has"),
    ] = 8192
    max_rents: Annotated[
        int,
        Field(ge=1, le=256),
        Variable("GP4U_NODE_MAX_RENTS", "rents", "calls that rent, under way at a time"),
    ] = 8
    writes_per_s: Annotated[
        float,
        Field(ge=1, le=10_000),
        Variable(
            "GP4U_NODE_WRITES_PER_S",
            "calls/s",
            "changes sent to the API server, statuses above all; twice as many at once",
        ),
    ] = 500.0
    """What a kubelet may for its 110 pods (50 a second), for a thousand of them."""
    accept_cpu: Annotated[
        Flag, Variable("GP4U_NODE_ACCEPT_CPU", "", "take pods that ask for no GPU as well")
    ] = False
    allow_split: Annotated[
        Flag,
        Variable(
            "GP4U_NODE_ALLOW_SPLIT",
            "",
            "let a pod ask for one machine per container, by annotation",
        ),
    ] = False
    secret_tier: Annotated[
        Literal["datacenter", "verified", "any"],
        Variable(
            "GP4U_NODE_SECRET_TIER",
            "",
            "where pods that reference Secrets may go; hosts can read what is sent to them",
        ),
    ] = "datacenter"  # noqa: S105 - how far a host is trusted
    on_loss: Annotated[
        Literal["fail", "rerent"],
        Variable(
            "GP4U_NODE_ON_LOSS",
            "",
            "what becomes of an owned pod whose machine is lost, unless its annotation says",
        ),
    ] = "fail"
    no_offer_after_s: Annotated[
        float | None,
        Field(gt=0, le=2_592_000),
        Variable(
            "GP4U_NODE_NO_OFFER_AFTER_S",
            "s",
            "how long a pod waits for an offer before it fails; none: for ever",
        ),
    ] = None
    max_price: Annotated[
        float | None,
        Field(gt=0, le=100_000),
        Variable("GP4U_NODE_MAX_PRICE", "USD/hour", "the most that a pod's annotation may allow"),
    ] = None
    failed_usd_per_hour: Annotated[
        Decimal,
        Field(gt=0, le=1_000_000),
        Variable(
            "GP4U_NODE_FAILED_USD_PER_HOUR",
            "USD",
            "what failed pods of one controller may cost within an hour; then its others wait",
        ),
    ] = Decimal(10)
    service_variables: Annotated[
        Flag,
        Variable(
            "GP4U_NODE_SERVICE_VARIABLES",
            "",
            "put addresses of cluster Services into environments; machines cannot reach them",
        ),
    ] = False
    weights: Annotated[
        str | None,
        AfterValidator(_pair),
        Variable(
            "GP4U_NODE_WEIGHTS",
            "",
            "ConfigMap of weights, read again while the node runs",
            allowed="NAME or NAMESPACE/NAME",
        ),
    ] = "vast-selection-weights"
    preferences: Annotated[
        str | None,
        AfterValidator(_pair),
        Variable(
            "GP4U_NODE_CONFIG",
            "",
            "ConfigMap with vast-provider-config.yaml, read again while the node runs",
            allowed="NAME or NAMESPACE/NAME",
        ),
    ] = "vast-provider-config"
    namespace: Annotated[
        str | None,
        AfterValidator(_namespace),
        Variable(
            "GP4U_NODE_NAMESPACE",
            "",
            "where its ConfigMaps and its leader Lease are; none: the pod's own, or kube-system",
            allowed="a namespace",
        ),
    ] = None
    leader_election: Annotated[
        Flag,
        Variable(
            "GP4U_NODE_LEADER_ELECTION",
            "",
            "wait for a Lease before acting, so that a second replica can stand by",
        ),
    ] = False
    relay_image: Annotated[
        str | None,
        Variable(
            "GP4U_NODE_RELAY_IMAGE",
            "",
            "image that runs `gp4u relay` in the cluster for pods that want an address there",
            allowed="an image; none: no relays",
        ),
    ] = None
    version: Annotated[
        str,
        Field(pattern=r"^v1\.\d{1,3}\.\d{1,3}[A-Za-z0-9.+-]*$"),
        Variable(
            "GP4U_NODE_KUBELET_VERSION",
            "",
            "version that the node tells of itself",
            allowed="v1.MINOR.PATCH and a suffix",
        ),
    ] = "v1.36.0-gp4u"
    websockets: Annotated[
        Flag,
        Variable(
            "GP4U_NODE_WEBSOCKETS",
            "",
            "declare that exec and port-forward may come as WebSockets (API servers from 1.36 on)",
        ),
    ] = False
    spool: Annotated[
        Path | None,
        Variable(
            "GP4U_NODE_LOG_DIR",
            "path",
            "where logs are kept after a machine is released; none: in memory",
            allowed="path of a folder",
        ),
    ] = None
    taint_key: Annotated[
        str,
        AfterValidator(_taint_key),
        Variable(
            "VKUBELET_TAINT_KEY", "", "key of the node's taint", allowed="a taint key, or none"
        ),
    ] = "virtual-kubelet.io/provider"
    taint_value: Annotated[
        str,
        AfterValidator(_taint_value),
        Variable("VKUBELET_TAINT_VALUE", "", "its value", allowed="a taint value"),
    ] = "gp4u"
    taint_effect: Annotated[
        Literal["NoSchedule", "NoExecute", "PreferNoSchedule"],
        Variable("VKUBELET_TAINT_EFFECT", "", "what it does to pods that do not tolerate it"),
    ] = "NoSchedule"

    @model_validator(mode="after")
    def _fit(self) -> NodeGroup:
        last = self.port + len(self.nodes) - 1
        if last > _MAX_PORT:
            bound = f"each node has a port of its own, at most {_MAX_PORT}: {last} is too high"
            raise disorder("GP4U_NODE_PORT", self.port, bound)
        if self.port and self.port <= self.health_port <= last:
            bound = f"not among the ports of the nodes, {self.port} to {last}"
            raise disorder("GP4U_NODE_HEALTH_PORT", self.health_port, bound)
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            bound = "together with GP4U_NODE_TLS_KEY_FILE, or neither"
            raise disorder("GP4U_NODE_TLS_CERT_FILE", self.tls_cert_file, bound)
        return self
