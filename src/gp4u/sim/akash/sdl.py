"""Akash's SDL as the market reads it: what is refused, and what the chain makes of the rest.

Hides a strict reader of the description language: keys that the schema does not know, sizes,
resources without their attributes, prices in a unit that the chain no longer takes. Pure: text in,
groups out. Shares nothing with the client that writes such text.

Source: chain-sdk go/sdl/sdl-input.schema.yaml and go/sdl/gpu.go, 2026-07; docs/reference/akash.md.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import msgspec
import yaml

VERSIONS = ("2.0", "2.1")
DENOM = "uact"
MAX_PRICE = 10_000_000
_TOP = {"version", "services", "profiles", "deployment", "include", "endpoints", "reclamation"}
_SERVICE = {"image", "command", "args", "env", "expose", "params", "credentials", "dependencies"}
_EXPOSE = {"port", "as", "proto", "to", "accept", "http_options"}
_TO = {"global", "service", "ip"}
_RESOURCES = {"cpu", "memory", "storage", "gpu"}
_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)([KMGTPE]i|[kKMGTPE]|)")
_POWERS = "KMGTPE"


class SdlError(Exception):
    """The text cannot be deployed."""


class Port(msgspec.Struct, frozen=True):
    """A port of a service that is seen from outside its group."""

    inside: int
    outside: int
    protocol: str
    """`tcp` or `udp`."""

    @property
    def is_http(self) -> bool:
        """Whether it becomes a name at the ingress, and no port."""
        return self.outside == 80 and self.protocol == "tcp"


class Service(msgspec.Struct, frozen=True, kw_only=True):
    """What one service runs, and on what."""

    name: str
    image: str
    command: tuple[str, ...]
    args: tuple[str, ...]
    env: Mapping[str, str]
    ports: tuple[Port, ...]
    login: tuple[str, str, str] | None
    """Registry, user and password."""
    count: int
    cpu_milli: int
    memory: int
    """Bytes."""
    storage: int
    """Bytes, all volumes together."""
    gpus: int
    cards: tuple[tuple[str, str, str], ...]
    """(model, ram, interface), any of which will do; empty text: any."""
    amount: Decimal
    """The most uact per block for one replica."""


class Group(msgspec.Struct, frozen=True):
    """The services that one provider runs together: an order, once it is on the chain."""

    name: str
    services: tuple[Service, ...]

    @property
    def ceiling(self) -> Decimal:
        """The most that the group may cost, in uact per block."""
        return sum((s.amount * s.count for s in self.services), Decimal(0))


def read_sdl(text: object) -> tuple[Group, ...]:
    """Return the groups of an SDL, by name.

    Raises:
        SdlError: it is none, or breaks the schema.
    """
    if not isinstance(text, str):
        raise SdlError("sdl must be text")
    try:
        document = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise SdlError("not YAML") from error
    top = _mapping(document, "document", _TOP)
    if top.get("version") not in VERSIONS:
        raise SdlError("version must be 2.0 or 2.1")
    services = _mapping(top.get("services"), "services")
    deployment = _mapping(top.get("deployment"), "deployment")
    if set(services) != set(deployment):
        raise SdlError("each service must be deployed, and each deployment be a service")
    groups: dict[str, list[Service]] = {}
    for name in sorted(deployment):
        for placement, use in _mapping(deployment[name], f"deployment.{name}").items():
            groups.setdefault(placement, []).append(_service(top, name, placement, use))
    made = tuple(Group(name, tuple(found)) for name, found in sorted(groups.items()))
    for group in made:
        if not any(service.ports for service in group.services):
            raise SdlError(f"{group.name}: nothing is exposed globally")
    return made


def group_spec(group: Group) -> dict[str, Any]:
    """Return a group as the chain prints it: `quantity` for bytes, amounts with 18 places."""
    return {
        "name": group.name,
        "requirements": {"signed_by": {"all_of": [], "any_of": []}, "attributes": []},
        "resources": [
            {
                "resource": resource(number, service),
                "count": service.count,
                "price": {"denom": DENOM, "amount": f"{service.amount:.18f}"},
            }
            for number, service in enumerate(group.services, 1)
        ],
    }


def resource(number: int, service: Service) -> dict[str, Any]:
    """Return one service's resources as the chain prints them."""
    gpu: dict[str, Any] = {"units": {"val": str(service.gpus)}, "attributes": []}
    for model, ram, interface in service.cards:
        key = f"vendor/nvidia/model/{model or '*'}"
        key += f"/ram/{ram}" if ram else ""
        key += f"/interface/{interface}" if interface else ""
        gpu["attributes"].append({"key": key, "value": "true"})
    gpu["attributes"].sort(key=lambda each: each["key"])
    return {
        "id": number,
        "cpu": {"units": {"val": str(service.cpu_milli)}, "attributes": []},
        "memory": {"quantity": {"val": str(service.memory)}, "attributes": []},
        "storage": [
            {"name": "default", "quantity": {"val": str(service.storage)}, "attributes": []}
        ],
        "gpu": gpu,
        "endpoints": [
            {} if port.is_http else {"kind": "RANDOM_PORT", "sequence_number": 0}
            for port in service.ports
        ],
    }


def _service(top: Mapping[str, Any], name: str, placement: str, use: Any) -> Service:
    where = f"services.{name}"
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise SdlError(f"{name!r} is no name of a service")
    told = _mapping(top["services"][name], where, _SERVICE)
    used = _mapping(use, f"deployment.{name}.{placement}", {"profile", "count"})
    profile, count = str(used.get("profile")), used.get("count")
    if not isinstance(count, int) or not 1 <= count <= 50:
        raise SdlError(f"deployment.{name}: count must be 1 to 50")
    profiles = _mapping(top.get("profiles"), "profiles", {"compute", "placement"})
    compute = _mapping(profiles.get("compute"), "profiles.compute").get(profile)
    sizes = _mapping(
        _mapping(compute, f"profiles.compute.{profile}", {"resources"}).get("resources"),
        f"profiles.compute.{profile}.resources",
        _RESOURCES,
    )
    image = told.get("image")
    if not isinstance(image, str) or not image:
        raise SdlError(f"{where}.image is required")
    gpus, cards = _gpu(sizes.get("gpu"), f"profiles.compute.{profile}.resources.gpu")
    return Service(
        name=name,
        image=image,
        command=_words(told.get("command"), f"{where}.command"),
        args=_words(told.get("args"), f"{where}.args"),
        env=_env(told.get("env"), f"{where}.env"),
        ports=_ports(told.get("expose"), f"{where}.expose", set(top["services"])),
        login=_login(told.get("credentials"), f"{where}.credentials", top["version"]),
        count=count,
        cpu_milli=_milli(_mapping(sizes.get("cpu"), "cpu").get("units")),
        memory=_bytes(_mapping(sizes.get("memory"), "memory").get("size"), "memory.size"),
        storage=_storage(sizes.get("storage"), told.get("params")),
        gpus=gpus,
        cards=cards,
        amount=_amount(profiles, placement, profile),
    )


def _login(credentials: object, where: str, version: object) -> tuple[str, str, str] | None:
    if credentials is None:
        return None
    if version == "2.0":
        raise SdlError(f"{where}: needs version 2.1")
    told = _mapping(credentials, where, {"host", "username", "password", "email"})
    words = [told.get(part) for part in ("host", "username", "password")]
    host, user, password = (word if isinstance(word, str) else "" for word in words)
    if not (host and user and password):
        raise SdlError(f"{where}: host, username and password are required")
    return host, user, password


def _amount(profiles: Mapping[str, Any], placement: str, profile: str) -> Decimal:
    where = f"profiles.placement.{placement}"
    place = _mapping(
        _mapping(profiles.get("placement"), "profiles.placement").get(placement),
        where,
        {"attributes", "signedBy", "pricing"},
    )
    price = _mapping(
        _mapping(place.get("pricing"), f"{where}.pricing").get(profile),
        f"{where}.pricing.{profile}",
        {"denom", "amount"},
    )
    if price.get("denom") != DENOM:
        raise SdlError(f"{where}: the chain takes {DENOM} only")
    amount = price.get("amount")
    if isinstance(amount, bool) or not isinstance(amount, int | float | str):
        raise SdlError(f"{where}: amount must be a number")
    number = Decimal(str(amount))
    if not 0 < number <= MAX_PRICE:
        raise SdlError(f"{where}: amount must be above 0 and at most {MAX_PRICE}")
    return number


def _gpu(gpu: object, where: str) -> tuple[int, tuple[tuple[str, str, str], ...]]:
    if gpu is None:
        return 0, ()
    told = _mapping(gpu, where, {"units", "attributes"})
    units = told.get("units")
    if isinstance(units, bool) or not isinstance(units, int) or units < 0:
        raise SdlError(f"{where}.units must be a whole number")
    if not units:
        return 0, ()
    attributes = _mapping(told.get("attributes"), f"{where}.attributes", {"vendor"})
    vendors = _mapping(attributes.get("vendor"), f"{where}.attributes.vendor", {"nvidia"})
    if "nvidia" not in vendors:
        raise SdlError(f"{where}: the only vendor is nvidia")
    listed = vendors["nvidia"]
    if listed is None:
        return units, (("", "", ""),)
    if not isinstance(listed, list):
        raise SdlError(f"{where}: nvidia must be a list of models")
    cards = []
    for each in listed:
        card = _mapping(each, f"{where}.nvidia", {"model", "ram", "interface"})
        words = [card.get(part, "") for part in ("model", "ram", "interface")]
        if not words[0] or not all(isinstance(word, str) for word in words):
            raise SdlError(f"{where}: model, ram and interface must be text")
        if words[2] not in ("", "pcie", "sxm"):
            raise SdlError(f"{where}: interface must be pcie or sxm")
        cards.append((words[0], words[1], words[2]))
    return units, tuple(cards)


def _ports(expose: object, where: str, services: set[str]) -> tuple[Port, ...]:
    """Return what is seen from outside; of one outside number a provider keeps the first."""
    if expose is None:
        return ()
    if not isinstance(expose, list):
        raise SdlError(f"{where} must be a list")
    ports: dict[int, Port] = {}
    for each in expose:
        told = _mapping(each, where, _EXPOSE)
        inside, outside = told.get("port"), told.get("as", told.get("port"))
        for number in (inside, outside):
            if isinstance(number, bool) or not isinstance(number, int) or not 0 < number < 65_536:
                raise SdlError(f"{where}: ports are 1 to 65535")
        protocol = str(told.get("proto") or "tcp").lower()
        if protocol not in ("tcp", "udp"):
            raise SdlError(f"{where}: proto must be tcp or udp")
        targets = told.get("to")
        if not isinstance(targets, list) or not targets:
            raise SdlError(f"{where}: to must name somebody")
        is_global = False
        for one in targets:
            target = _mapping(one, f"{where}.to", _TO)
            if "service" in target and target["service"] not in services:
                raise SdlError(f"{where}: no such service: {target['service']}")
            is_global = is_global or target.get("global") is True
        if is_global and isinstance(inside, int) and isinstance(outside, int):
            ports.setdefault(outside, Port(inside, outside, protocol))
    return tuple(ports.values())


def _storage(storage: object, params: object) -> int:
    volumes = storage if isinstance(storage, list) else [storage]
    mounts = _mapping(_mapping(params or {}, "params").get("storage") or {}, "params.storage")
    total = 0
    for each in volumes:
        volume = _mapping(each, "storage", {"name", "size", "attributes"})
        total += _bytes(volume.get("size"), "storage.size")
        attributes = _mapping(volume.get("attributes") or {}, "storage.attributes")
        kind, persistent = attributes.get("class"), attributes.get("persistent")
        if kind == "ram" and persistent is not False:
            raise SdlError("storage: class ram needs persistent: false")
        if kind is not None and kind != "ram" and persistent is not True:
            raise SdlError(f"storage: class {kind} needs persistent: true")
        if persistent and volume.get("name") not in mounts:
            raise SdlError("storage: a persistent volume must be mounted")
    return total


def _env(env: object, where: str) -> dict[str, str]:
    pairs = {}
    for each in _words(env, where):
        name, _, value = each.partition("=")
        if not name:
            raise SdlError(f"{where}: a variable has no name")
        pairs[name] = value
    return pairs


def _words(words: object, where: str) -> tuple[str, ...]:
    if words is None:
        return ()
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise SdlError(f"{where} must be a list of texts")
    return tuple(words)


def _milli(units: object) -> int:
    text = str(units)
    try:
        milli = int(text[:-1]) if text.endswith("m") else int(Decimal(text) * 1000)
    except (ValueError, ArithmeticError):
        raise SdlError("cpu.units must be a number") from None
    if not 10 <= milli <= 384_000:
        raise SdlError("cpu.units: 0.01 to 384")
    return milli


def _bytes(size: object, where: str) -> int:
    found = _SIZE.fullmatch(str(size))
    if found is None:
        raise SdlError(f"{where} must be a size")
    unit = found[2]
    base = 1024 if unit.endswith("i") else 1000
    power = _POWERS.index(unit[0].upper()) + 1 if unit else 0
    return int(Decimal(found[1]) * base**power)


def _mapping(value: object, where: str, allowed: set[str] | None = None) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise SdlError(f"{where} must be a mapping")
    unknown = set(value) - allowed if allowed is not None else set()
    if unknown:
        raise SdlError(f"{where}: unknown {', '.join(sorted(map(str, unknown)))}")
    return value
