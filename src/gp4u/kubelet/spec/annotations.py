"""What a pod asks of the markets: its `gp4u.io/` annotations, its resources, the node's defaults.

Hides how each annotation is written and which of the three goes first: an annotation before the
pod's own spec, the spec before the node's defaults. What may be asked at all is the same for a pod
as for the command line: bounds and names are read by `desk/asking.py`, `gpus.py` and `places.py`.
Nothing is guessed: what cannot be read is refused with field, value and bound.

Whether the node can do what the spec says otherwise is left to `admission.py`, what runs on the
machine to `workload.py`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Mapping
from datetime import timedelta
from decimal import Decimal
from enum import StrEnum
from typing import Final, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from gp4u import gpus, places
from gp4u.desk import asking
from gp4u.errors import BadInput
from gp4u.kubelet.held import PodObject
from gp4u.kubelet.policy import NodePolicy, OnLoss, Tier
from gp4u.kubelet.spec.references import uses_secrets
from gp4u.kubelet.spec.resources import (
    GIB,
    GPU,
    GPU_PRODUCT,
    asked_of_node,
    selected,
    selected_vram_gib,
)
from gp4u.model import DEFAULT_WEIGHTS, Demand, Preferences

Value = TypeVar("Value")
Kind = TypeVar("Kind", bound=StrEnum)

PREFIX: Final = "gp4u.io/"
KNOWN: Final = (
    "api-access",
    "containers",
    "disk",
    "exec",
    "expose",
    "gpu-type",
    "interruptible",
    "locations",
    "max-lifetime",
    "max-price",
    "max-wait",
    "min-cpus",
    "min-download",
    "min-ram",
    "min-reliability",
    "min-vram",
    "on-loss",
    "policy",
    "providers",
    "relay",
    "trust",
)
"""Every annotation that a pod may carry, without the prefix."""
PRESETS: Final[Mapping[str, Mapping[str, float]]] = {
    "balanced": DEFAULT_WEIGHTS,
    "cheapest": {"price": 1.0},
    "fastest": {"performance": 1.0},
}
"""Name of a policy to what counts in it."""
LONGEST: Final = timedelta(days=366)
_PORT_DIGITS: Final = 5
_NONE: Final[tuple[str, ...]] = ()
_TIERS: Final = tuple(Tier)
_DURATION: Final = re.compile(r"(?:(\d{1,6})d)?(?:(\d{1,6})h)?(?:(\d{1,6})m)?(?:(\d{1,8})s)?")
_SERVICE: Final = re.compile(r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?")


class ServicePort(Struct, frozen=True):
    """A Service that wants one container port of a pod."""

    service: str
    port: int


class Expose(Struct, frozen=True, kw_only=True):
    """Which Services a pod's machine shall stand behind."""

    everything: bool = False
    """Every Service that names the pod."""
    services: tuple[ServicePort, ...] = ()


class Wish(Struct, frozen=True, kw_only=True):
    """What a pod asks for, with the node's defaults where it says nothing."""

    demand: Demand
    on_loss: OnLoss
    max_lifetime: timedelta | None
    """From the pod's start; then it ends as failed."""
    max_wait: timedelta | None
    """How long it waits for an offer before it is Failed; None: for ever."""
    tier: Tier
    """Where it may go, with what its Secrets ask for."""
    raised_by_secrets: bool
    """Whether it would have been let go further without its Secrets."""
    split: bool
    """One machine for each container."""
    expose: Expose
    relay: bool
    api_access: bool
    """Whether the token of its ServiceAccount is shipped to the machine."""
    exec: bool
    """Whether somebody will want in: `kubectl exec`, `cp`, ports that are not published."""


def field_of(name: str) -> str:
    """Return how an annotation is called in a refusal."""
    return f"metadata.annotations[{PREFIX}{name}]"


def wish_of(
    pod: PodObject,
    policy: NodePolicy,
    *,
    markets: Collection[str] = (),
    container: str | None = None,
) -> Wish:
    """Return what a pod asks for; with `container`, what that one of its containers does.

    `markets` are the slugs that may be asked for; empty: whatever is written.

    Raises:
        BadInput: an annotation, or what the spec asks for, is out of bounds.
    """
    said = _said(pod)
    api_access = _given(said, "api-access", _flag, False)
    floor = _default_tier(policy)
    asked_tier = _given(said, "trust", _choice(Tier), floor)
    secret = uses_secrets(pod, api_access=api_access)
    tier = max(asked_tier, policy.secret_tier, key=_TIERS.index) if secret else asked_tier
    split = _given(said, "containers", _word("native", "split"), "native") == "split"
    if split and not policy.allow_split:
        raise BadInput(field_of("containers"), "split", f"node {policy.name} does not allow it")
    relay = asks_for_relay(pod)
    if relay and policy.relay_image is None:
        raise BadInput(field_of("relay"), "true", f"node {policy.name} has no relay image")
    return Wish(
        demand=_demand(pod, policy, said, tier, markets, container),
        on_loss=_given(said, "on-loss", _choice(OnLoss), _default_on_loss(pod, policy)),
        max_lifetime=_given(said, "max-lifetime", duration, None),
        max_wait=_given(said, "max-wait", duration, policy.no_offer_after),
        tier=tier,
        raised_by_secrets=tier != asked_tier,
        split=split,
        expose=expose_of(pod),
        relay=relay,
        api_access=api_access,
        exec=_given(said, "exec", _flag, True),
    )


def ships_api_access(pod: PodObject) -> bool:
    """Tell whether the token of a pod's ServiceAccount shall go to its machine.

    Raises:
        BadInput: the annotation is neither true nor false.
    """
    return _given(_said(pod), "api-access", _flag, False)


def asks_for_relay(pod: PodObject) -> bool:
    """Tell whether a pod shall have an address in the cluster.

    Raises:
        BadInput: the annotation is neither true nor false.
    """
    return _given(_said(pod), "relay", _flag, False)


def expose_of(pod: PodObject) -> Expose:
    """Return which Services want a pod: `true`, or `june-stt:8001, june-tts:8000`.

    Raises:
        BadInput: it is neither.
    """
    return _given(_said(pod), "expose", _expose, Expose())


def strangers(pod: PodObject) -> tuple[tuple[str, str], ...]:
    """Return the annotations with our prefix that mean nothing here, each with the nearest name."""
    unknown = sorted(set(_said(pod)) - set(KNOWN))
    nearest = (difflib.get_close_matches(name, KNOWN, n=1, cutoff=0.5) for name in unknown)
    return tuple(
        (f"{PREFIX}{name}", f"{PREFIX}{close[0]}" if close else "")
        for name, close in zip(unknown, nearest, strict=True)
    )


def duration(field: str, text: str) -> timedelta:
    """Read `90s`, `30m`, `2h`, `1d` or several of them, the longest first.

    Raises:
        BadInput: it is not of that form, nothing, or more than a year.
    """
    found = _DURATION.fullmatch(text)
    days, hours, minutes, seconds = (
        (int(each or 0) for each in found.groups()) if found else [0] * 4
    )
    lasts = timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
    if not timedelta() < lasts <= LONGEST:
        bound = f"must be a time such as 90s, 30m, 2h or 1d12h, at most {LONGEST.days}d"
        raise BadInput(field, text, bound)
    return lasts


def _demand(
    pod: PodObject,
    policy: NodePolicy,
    said: Mapping[str, str],
    tier: Tier,
    markets: Collection[str],
    container: str | None,
) -> Demand:
    base = policy.defaults.requirements
    asks = asked_of_node(pod, container)
    count = asks.get(GPU, Decimal(0))

    def amount(name: str, of_spec: float | None, default: float | None) -> float | None:
        return _given(said, name, _amount, of_spec or default)

    wanted = replace(
        base,
        gpu_models=_models(pod, said) or base.gpu_models,
        gpu_count=asking.whole_number(f"limits[{GPU}]", int(count) or 1, 1, asking.MAX_GPUS),
        min_vram_gib=amount("min-vram", selected_vram_gib(pod), base.min_vram_gib),
        max_price_usd_per_hour=_price(said, policy),
        min_reliability=_given(said, "min-reliability", _share, base.min_reliability),
        min_download_mbps=amount("min-download", None, base.min_download_mbps),
        min_cpus=amount("min-cpus", float(asks.get("cpu", 0)), base.min_cpus),
        min_ram_gib=amount("min-ram", float(asks.get("memory", 0)) / GIB, base.min_ram_gib),
        disk_gib=_disk(said, asks, base.disk_gib),
        locations=_given(said, "locations", _places, base.locations),
        providers=_given(said, "providers", _markets(markets), base.providers),
        interruptible=_given(said, "interruptible", _flag, policy.interruptible),
        verified_only=tier is not Tier.ANY,
        datacenter_only=tier is Tier.DATACENTER,
    )
    weights = policy.defaults.preferences.weights
    weights = _given(said, "policy", _weights(weights), weights)
    return Demand(requirements=wanted, preferences=Preferences(weights=weights))


def _price(said: Mapping[str, str], policy: NodePolicy) -> Decimal | None:
    """The price that is asked for, which the node must allow; else the lower of the node's own."""
    cap, field = policy.highest_usd_per_hour, field_of("max-price")
    wished = asking.bounded_price(field, _given(said, "max-price", asking.dollars, None))
    if wished is None:
        return policy.default_usd_per_hour
    if cap is not None and wished > cap:
        bound = f"node {policy.name} allows at most {cap} $/h"
        raise BadInput(field, f"{wished}", bound)
    return wished


def _disk(said: Mapping[str, str], asks: Mapping[str, Decimal], default: float) -> float:
    """Disk in GiB. What a pod writes comes beside its image, so a request does not go below the
    default."""
    if (wished := _given(said, "disk", _amount, None)) is not None:
        return asking.disk(field_of("disk"), wished)
    written = float(asks.get("ephemeral-storage", 0)) / GIB
    return asking.disk("requests[ephemeral-storage]", max(written, default))


def _models(pod: PodObject, said: Mapping[str, str]) -> tuple[str, ...]:
    """GPU models by annotation, or as the pod selects nodes by; first choice first."""
    wished: tuple[str, ...] = _given(said, "gpu-type", _words, _NONE)
    names = [(field_of("gpu-type"), word) for word in wished]
    if not names:
        names = [
            (f"spec.nodeSelector[{GPU_PRODUCT}]", product) for product in selected(pod, GPU_PRODUCT)
        ]
    found = [model for field, word in names for model in gpus.wanted(word, field)]
    return tuple(dict.fromkeys(found))


def _default_tier(policy: NodePolicy) -> Tier:
    wanted = policy.defaults.requirements
    if wanted.datacenter_only:
        return Tier.DATACENTER
    return Tier.VERIFIED if wanted.verified_only else Tier.ANY


def _default_on_loss(pod: PodObject, policy: NodePolicy) -> OnLoss:
    """Nobody makes a new one of a bare pod that shall always run: it gets another machine."""
    owned = bool(pod["metadata"].get("ownerReferences"))
    always = pod["spec"].get("restartPolicy", "Always") == "Always"
    return OnLoss.RERENT if always and not owned else policy.on_loss


def _said(pod: PodObject) -> dict[str, str]:
    annotations = pod["metadata"].get("annotations") or {}
    return {
        name.removeprefix(PREFIX): text
        for name, text in annotations.items()
        if name.startswith(PREFIX)
    }


def _given(
    said: Mapping[str, str], name: str, read: Callable[[str, str], Value], default: Value
) -> Value:
    """Return what an annotation says, or the default where the pod has none of that name."""
    if name not in said:
        return default
    text = said[name].strip()
    if not text:
        raise BadInput(field_of(name), said[name], "is empty")
    return read(field_of(name), text)


def _flag(field: str, text: str) -> bool:
    if text not in ("true", "false"):
        raise BadInput(field, text, "must be true or false")
    return text == "true"


def _word(*known: str) -> Callable[[str, str], str]:
    def read(field: str, text: str) -> str:
        if text not in known:
            raise BadInput(field, text, f"must be one of {', '.join(known)}")
        return text

    return read


def _choice(kind: type[Kind]) -> Callable[[str, str], Kind]:
    def read(field: str, text: str) -> Kind:
        if text not in tuple(kind):
            raise BadInput(field, text, f"must be one of {', '.join(kind)}")
        return kind(text)

    return read


def _words(field: str, text: str) -> tuple[str, ...]:
    words = tuple(word.strip() for word in text.split(",") if word.strip())
    if not words:
        raise BadInput(field, text, "is empty")
    return words


def _amount(field: str, text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        raise BadInput(field, text, "must be a number") from None
    return asking.positive(field, value)


def _share(field: str, text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        raise BadInput(field, text, "must be from 0 to 1 (0.95 is 95 %)") from None
    return asking.ratio(field, value)


def _places(field: str, text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(places.parse_token(word, field) for word in _words(field, text)))


def _markets(known: Collection[str]) -> Callable[[str, str], tuple[str, ...]]:
    def read(field: str, text: str) -> tuple[str, ...]:
        words = _words(field, text)
        return asking.markets(field, words, known or words)

    return read


def _weights(base: Mapping[str, float]) -> Callable[[str, str], Mapping[str, float]]:
    """Read a preset, or `price=40,performance=30`; what is left out shares what is left."""

    def read(field: str, text: str) -> Mapping[str, float]:
        if "=" not in text:
            if text not in PRESETS:
                bound = f"must be one of {', '.join(PRESETS)}, or weights: price=40,performance=30"
                raise BadInput(field, text, bound)
            return asking.weights(field, PRESETS[text], base)
        told = [asking.weight(field, word) for word in _words(field, text)]
        if len(dict(told)) != len(told):
            raise BadInput(field, text, "must name each criterion once")
        return asking.weights(field, dict(told), base)

    return read


def _expose(field: str, text: str) -> Expose:
    if text in ("true", "false"):
        return Expose(everything=text == "true")
    return Expose(services=tuple(dict.fromkeys(_service(field, w) for w in _words(field, text))))


def _service(field: str, word: str) -> ServicePort:
    name, _, port = (part.strip() for part in word.partition(":"))
    number = int(port) if port.isascii() and port.isdigit() and len(port) <= _PORT_DIGITS else 0
    if not _SERVICE.fullmatch(name) or not 1 <= number <= asking.MAX_PORT:
        bound = "must be true, or services with container ports: june-stt:8001, june-tts:8000"
        raise BadInput(field, word, bound)
    return ServicePort(name, number)
