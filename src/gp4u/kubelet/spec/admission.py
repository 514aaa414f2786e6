"""What a pod must not ask of this node, told before any money is spent; and what is ignored.

Hides which fields of a pod a rented container cannot honour. What would change what the workload
does is refused, by field; what would only have made it safer or handier is ignored, and said once
as an event. Pure.

What a market can do is asked of its abilities; what the annotations mean is left to
`annotations.py`, whether ConfigMaps and Secrets are there to `references.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from typing import Any, Final, Literal

from msgspec import Struct

from gp4u.errors import BadInput
from gp4u.kubelet.held import PodObject
from gp4u.kubelet.policy import NodePolicy
from gp4u.kubelet.spec.annotations import strangers, wish_of
from gp4u.kubelet.spec.resources import GIB, GPU, asked_of_node, main_container, wants_gpu
from gp4u.providers.contract import Ability

NORMAL: Final = "Normal"
WARNING: Final = "Warning"
UNSUPPORTED: Final = "UnsupportedPodSpec"
"""Of a field that cannot be honoured here; where a kubelet has a word for it, that is used."""
INVALID: Final = "InvalidPodSpec"
_LABEL: Final = re.compile(r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?")
_SUBDOMAIN: Final = re.compile(rf"(?=.{{1,253}}\Z){_LABEL.pattern}(?:\.{_LABEL.pattern})*")
"""DNS-1123. Names become labels at the market, paths of a spool, and parts of an owner."""
_VOLUMES: Final = frozenset(("configMap", "secret", "downwardAPI", "projected", "emptyDir"))
_SOURCES: Final = frozenset(("configMap", "secret", "downwardAPI", "serviceAccountToken"))
_VALUE_SOURCES: Final = frozenset(
    ("configMapKeyRef", "secretKeyRef", "fieldRef", "resourceFieldRef")
)
_IGNORED_OF_POD: Final = {
    "hostAliases": "the machine's /etc/hosts is left as it is",
    "dnsConfig": "the machine has its own resolver",
    "hostname": "the market names the machine",
    "subdomain": "the market names the machine",
    "runtimeClassName": "the market chooses the runtime",
    "shareProcessNamespace": "each container has its own",
    "setHostnameAsFQDN": "the market names the machine",
    "hostUsers": "the host decides about user namespaces",
}
_IGNORED_SECURITY: Final = (
    *("allowPrivilegeEscalation", "appArmorProfile", "capabilities", "fsGroup"),
    *("fsGroupChangePolicy", "procMount", "readOnlyRootFilesystem", "runAsGroup", "runAsNonRoot"),
    *("runAsUser", "seLinuxOptions", "seccompProfile", "supplementalGroups"),
    *("supplementalGroupsPolicy", "sysctls", "windowsOptions"),
)


class Refusal(Struct, frozen=True):
    """A pod that can never run here: it is Failed, and nothing is rented."""

    reason: str
    """Of the pod and its Warning event: `OutOfnvidia.com/gpu`."""
    message: str
    """Without the prefix that a kubelet gives it."""


class Notice(Struct, frozen=True):
    """Something that somebody should know, and that keeps nothing back."""

    reason: str
    message: str
    kind: Literal["Normal", "Warning"] = WARNING
    """Of its event."""


def is_daemon(pod: PodObject) -> bool:
    """Tell whether a DaemonSet owns a pod: one for each node, and none for a rented machine."""
    owners = pod["metadata"].get("ownerReferences") or ()
    return any(owner.get("kind") == "DaemonSet" for owner in owners)


def is_mirror(pod: PodObject) -> bool:
    """Tell whether a pod only mirrors what some kubelet runs from a file."""
    return "kubernetes.io/config.mirror" in (pod["metadata"].get("annotations") or {})


def refusal_of(
    pod: PodObject,
    policy: NodePolicy,
    *,
    held_gpus: int = 0,
    abilities: Mapping[str, Ability] | None = None,
) -> Refusal | None:
    """Return why a pod can never run here, or None where nothing speaks against it.

    `held_gpus`: what other pods of the node have taken. `abilities`: slug to what the market can,
    of those that may be rented from; None or empty: not known, and not asked for.
    """
    problem = next(_problems(pod), None)
    if problem is not None:
        return problem
    try:
        asks = asked_of_node(pod)
        if refusal := _too_much(asks, policy, held_gpus):
            return refusal
        wish = wish_of(pod, policy, markets=abilities or ())
    except BadInput as error:
        return Refusal(INVALID, str(error))
    if not asks.get(GPU) and not policy.accept_cpu:
        told = f"no container has a limit for {GPU}, and node {policy.name} takes no pod without"
        return Refusal(UNSUPPORTED, f"spec.containers[0].resources.limits: {told}")
    if len(pod["spec"]["containers"]) > 1:
        return _several(pod, split=wish.split, policy=policy, abilities=abilities)
    return None


def notices_of(pod: PodObject) -> tuple[Notice, ...]:
    """Return what of a pod is ignored, in the order of its fields."""
    return tuple(_notices(pod))


def _problems(pod: PodObject) -> Iterator[Refusal]:
    spec = pod["spec"]
    yield from _of_names(pod)
    yield from _of_pod(spec)
    for place, volume in enumerate(spec.get("volumes") or ()):
        yield from _of_volume(volume, f"spec.volumes[{place}]")
    for group in ("initContainers", "containers"):
        for place, container in enumerate(spec.get(group) or ()):
            yield from _of_container(container, f"spec.{group}[{place}]")
    yield from _of_init_containers(spec)


def _of_names(pod: PodObject) -> Iterator[Refusal]:
    about, spec = pod["metadata"], pod["spec"]
    for member, form in (("name", _SUBDOMAIN), ("namespace", _LABEL)):
        if not form.fullmatch(about.get(member) or ""):
            told = f"metadata.{member}: {about.get(member)!r} is not valid: must be a DNS-1123 name"
            yield Refusal(INVALID, told)
    for group in ("initContainers", "containers"):
        for place, container in enumerate(spec.get(group) or ()):
            if not _LABEL.fullmatch(container.get("name") or ""):
                field = f"spec.{group}[{place}].name"
                told = f"{field}: {container.get('name')!r} is not valid: must be a DNS-1123 label"
                yield Refusal(INVALID, told)


def _of_pod(spec: Mapping[str, Any]) -> Iterator[Refusal]:
    system = (spec.get("os") or {}).get("name", "linux")
    selected = (spec.get("nodeSelector") or {}).get("kubernetes.io/os", "linux")
    if not system == selected == "linux":
        told = "spec.os.name: machines run linux"
        yield Refusal("PodOSNotSupported", told)
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(field):
            yield cannot(f"spec.{field}", "a rented container has no part of its host")
    if spec.get("resourceClaims"):
        yield cannot("spec.resourceClaims", "there are no claims on a rented machine")


def _of_volume(volume: Mapping[str, Any], where: str) -> Iterator[Refusal]:
    kind = next((member for member in volume if member != "name"), "emptyDir")
    if kind not in _VOLUMES:
        told = f"volume {volume['name']!r} is of a kind that cannot be brought to a rented machine"
        yield cannot(f"{where}.{kind}", told)
    for place, source in enumerate((volume.get("projected") or {}).get("sources") or ()):
        for member in source:
            if member not in _SOURCES:
                told = f"of volume {volume['name']!r} cannot be brought to a rented machine"
                yield cannot(f"{where}.projected.sources[{place}].{member}", told)


def _of_container(container: Mapping[str, Any], where: str) -> Iterator[Refusal]:
    security = container.get("securityContext") or {}
    if security.get("privileged"):
        yield cannot(f"{where}.securityContext.privileged", "a rented container is nobody's root")
    for place, port in enumerate(container.get("ports") or ()):
        if port.get("hostPort"):
            told = "ports outside are the market's to give; leave hostPort out"
            yield cannot(f"{where}.ports[{place}].hostPort", told)
        if port.get("protocol", "TCP") not in ("TCP", "UDP"):
            told = f"{port['protocol']} cannot be published"
            yield cannot(f"{where}.ports[{place}].protocol", told)
    for place, variable in enumerate(container.get("env") or ()):
        for member in set(variable.get("valueFrom") or {}) - _VALUE_SOURCES:
            yield cannot(f"{where}.env[{place}].valueFrom.{member}", "cannot be resolved here")
    if container.get("volumeDevices"):
        yield cannot(f"{where}.volumeDevices", "a rented machine has no devices of the cluster")
    if container.get("imagePullPolicy") == "Never":
        yield cannot(f"{where}.imagePullPolicy", "no image is on a machine before it is rented")
    if (container.get("resources") or {}).get("claims"):
        yield cannot(f"{where}.resources.claims", "there are no claims on a rented machine")
    if container.get("restartPolicyRules"):
        yield cannot(f"{where}.restartPolicyRules", "a pod's restartPolicy holds for all of it")
    yield from _of_hooks(container.get("lifecycle") or {}, f"{where}.lifecycle")


def _of_hooks(lifecycle: Mapping[str, Any], where: str) -> Iterator[Refusal]:
    """A hook that only waits leaves nothing undone when it is left out; all others do."""
    for hook in ("postStart", "preStop"):
        for kind in set(lifecycle.get(hook) or {}) - {"sleep"}:
            told = "hooks are not run on a rented machine; let the command do it"
            yield cannot(f"{where}.{hook}.{kind}", told)


def _of_init_containers(spec: Mapping[str, Any]) -> Iterator[Refusal]:
    """Init containers run in the machine's one container, so they need its image and a command."""
    containers = spec["containers"]
    main = main_container(spec)
    for place, init in enumerate(spec.get("initContainers") or ()):
        where = f"spec.initContainers[{place}]"
        if init.get("restartPolicy") == "Always":
            yield cannot(f"{where}.restartPolicy", "sidecars are not run beside the workload")
        elif init.get("image") != main.get("image"):
            told = f"must be that of container {main['name']!r}, in whose machine it runs"
            yield cannot(f"{where}.image", told)
        elif not init.get("command"):
            told = "must be given: what an image runs by itself is not known before it is rented"
            yield cannot(f"{where}.command", told)
        elif not main.get("command"):
            field = f"spec.containers[{containers.index(main)}].command"
            yield cannot(field, f"must be given where {where} runs first")


def _too_much(asks: Mapping[str, Decimal], policy: NodePolicy, held_gpus: int) -> Refusal | None:
    """Say what a pod wants more of than the whole node has."""
    has: dict[str, tuple[Decimal, Callable[[Decimal], str]]] = {
        "cpu": (Decimal(policy.cpus), _plain),
        "memory": (Decimal(policy.memory_gib) * GIB, _in_gib),
        "ephemeral-storage": (Decimal(policy.disk_gib) * GIB, _in_gib),
        GPU: (Decimal(policy.max_gpus), _plain),
    }
    for resource, amount in asks.items():
        if amount <= 0:
            continue
        capacity, text = has.get(resource, (Decimal(0), _plain))
        used = Decimal(held_gpus if resource == GPU else 0)
        if used + amount > capacity:
            told = (
                f"Node didn't have enough resource: {resource}, requested: {text(amount)}, "
                f"used: {text(used)}, capacity: {text(capacity)}"
            )
            return Refusal(f"OutOf{resource}", told)
    return None


def _several(
    pod: PodObject,
    *,
    split: bool,
    policy: NodePolicy,
    abilities: Mapping[str, Ability] | None,
) -> Refusal | None:
    """Say why several containers cannot run: in one machine, or in one each."""
    spec = pod["spec"]
    containers = spec["containers"]
    if split:
        if spec.get("initContainers"):
            return cannot("spec.initContainers", "cannot be run where each container has a machine")
        return None
    with_gpu = [each["name"] for each in containers if wants_gpu(each)]
    if len(with_gpu) > 1:
        told = f"only one container of a machine gets its GPUs, and {', '.join(with_gpu)} want some"
        return cannot("spec.containers", f"{told}{_or_split(policy)}")
    if not abilities or any(Ability.MULTI_CONTAINER in can for can in abilities.values()):
        return None
    told = f"no open market runs {len(containers)} containers on one machine"
    return cannot("spec.containers", f"{told}{_or_split(policy)}")


def _or_split(policy: NodePolicy) -> str:
    if not policy.allow_split:
        return ""
    return "; with the annotation gp4u.io/containers: split each gets a machine of its own"


def _notices(pod: PodObject) -> Iterator[Notice]:
    spec = pod["spec"]
    for name, nearest in strangers(pod):
        hint = f"; did you mean {nearest}?" if nearest else ""
        yield Notice("UnknownAnnotation", f"metadata.annotations[{name}] means nothing here{hint}")
    for field, why in _IGNORED_OF_POD.items():
        if spec.get(field) not in (None, "", [], {}):
            yield _ignored(f"spec.{field}", why)
    if spec.get("dnsPolicy", "ClusterFirst") not in ("ClusterFirst", "Default"):
        yield _ignored("spec.dnsPolicy", "the machine has its own resolver")
    yield from _of_security(spec.get("securityContext") or {}, "spec.securityContext")
    for place, volume in enumerate(spec.get("volumes") or ()):
        directory = volume.get("emptyDir") or {}
        for member in ("medium", "sizeLimit"):
            if directory.get(member):
                why = "it is a directory on the machine's disk"
                yield _ignored(f"spec.volumes[{place}].emptyDir.{member}", why)
    for group in ("initContainers", "containers"):
        for place, container in enumerate(spec.get(group) or ()):
            yield from _of_ignored(container, f"spec.{group}[{place}]")
    if spec.get("ephemeralContainers"):
        yield _ignored("spec.ephemeralContainers", "none can be added to a rented machine")


def _of_ignored(container: Mapping[str, Any], where: str) -> Iterator[Notice]:
    yield from _of_security(container.get("securityContext") or {}, f"{where}.securityContext")
    lifecycle = container.get("lifecycle") or {}
    for hook in ("postStart", "preStop"):
        if "sleep" in (lifecycle.get(hook) or {}):
            yield _ignored(f"{where}.lifecycle.{hook}.sleep", "nobody waits there")
    if lifecycle.get("stopSignal"):
        yield _ignored(f"{where}.lifecycle.stopSignal", "a workload is told to end by TERM")
    if container.get("stdin") and not container.get("stdinOnce"):
        yield _ignored(f"{where}.stdin", "a workload's own input is closed; use exec")
    for place, mount in enumerate(container.get("volumeMounts") or ()):
        if mount.get("mountPropagation", "None") != "None":
            yield _ignored(f"{where}.volumeMounts[{place}].mountPropagation", "nothing is mounted")


def _of_security(context: Mapping[str, Any], where: str) -> Iterator[Notice]:
    told = [field for field in _IGNORED_SECURITY if context.get(field) not in (None, [], {})]
    if told:
        fields = ", ".join(f"{where}.{field}" for field in told)
        yield Notice("IgnoredField", f"{fields}: the image and the market decide about this")


def cannot(field: str, why: str) -> Refusal:
    """Return the refusal of a field that cannot be honoured on a rented machine."""
    return Refusal(UNSUPPORTED, f"{field}: {why}")


def _ignored(field: str, why: str) -> Notice:
    return Notice("IgnoredField", f"{field} is ignored: {why}")


def _plain(amount: Decimal) -> str:
    return f"{amount.normalize():f}"


def _in_gib(amount: Decimal) -> str:
    return f"{amount / GIB:.4g}Gi"
