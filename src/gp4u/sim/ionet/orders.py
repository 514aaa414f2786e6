"""The bodies that io.net's create and update calls take, checked as strictly as its documents say.

Hides which field of which product must be what, and how a list of complaints is gathered. Whether
the hardware is free, the name unused and the money there is the market's business.

Source: io.net/docs/reference/caas/deploy-a-container, update-deployment-configuration and
vmaas/deploy-vms, as restated in docs/reference/ionet.md; checked 2026-11.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from decimal import Decimal

import msgspec

from gp4u.sim.contracts import Order
from gp4u.sim.ionet.gate import invalid
from gp4u.sim.launch import Port

Check = Callable[[object], str]
"""Returns what is wrong with a value, or an empty text."""
Problem = tuple[tuple[str, ...], str, str]

_CIDR = re.compile(r"[0-9]{1,3}(\.[0-9]{1,3}){3}/[0-9]{1,2}|[0-9a-fA-F:]+/[0-9]{1,3}")
_SSH_KEY = re.compile(r"(ssh-(ed25519|rsa)|ecdsa-sha2-\S+) [A-Za-z0-9+/=]+( .*)?")


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """What a create call asks for, of either product."""

    name: str
    hours: int
    gpus: int
    hardware_id: object
    location: object
    order: Order
    config: Mapping[str, object] = {}
    """What a container's details show of its configuration."""
    services: Mapping[str, Mapping[str, object]] = {}
    """A virtual machine's network services by name."""


def container_wish(body: Mapping[str, object]) -> Wish:
    """Read the body of `POST /caas/deploy`.

    Raises:
        CallRefusedError: 422, with every complaint.
    """
    _check(
        body,
        {
            "resource_private_name": _name,
            "duration_hours": _whole(1),
            "gpus_per_container": _whole(1),
            "hardware_id": _hardware,
            "location_ids": _places,
            "container_config": _object,
            "registry_config": _object,
        },
    )
    config, registry = _inner(body, "container_config"), _inner(body, "registry_config")
    _check(
        config,
        {"replica_count": _whole(1, 1), "traffic_port": _whole(1, 65_535)},
        {
            "env_variables": _texts,
            "secret_env_variables": _texts,
            "entrypoint": _words,
            "args": _words,
        },
        ("container_config",),
    )
    optional = {"registry_username": _text, "registry_secret": _text}
    _check(registry, {"image_url": _text}, optional, ("registry_config",))
    return _wish(body, "gpus_per_container", container_order(config, registry), config=config)


def container_order(config: Mapping[str, object], registry: Mapping[str, object]) -> Order:
    """Return what a checked configuration starts. `args` are taken and dropped, as was seen."""
    env = {**_inner(config, "env_variables"), **_inner(config, "secret_env_variables")}
    known = {name: str(value) for name, value in env.items()}
    words = config.get("entrypoint")
    entry = [filled_in(str(w), known) for w in words] if isinstance(words, list) else []
    return Order(
        image=str(registry.get("image_url")),
        disk_gb=Decimal(0),
        entrypoint=entry[0] if entry else None,
        command=tuple(entry[1:]) if entry else None,
        env=known,
        ports=(Port(int(str(config.get("traffic_port"))), "tcp"),),
        login=_login(registry),
    )


def _login(registry: Mapping[str, object]) -> tuple[str, str, str] | None:
    user, secret = registry.get("registry_username"), registry.get("registry_secret")
    if not user or not secret:
        return None
    host, slash, _ = str(registry.get("image_url")).partition("/")
    return (host if slash else "docker.io"), str(user), str(secret)


def filled_in(word: str, env: Mapping[str, str]) -> str:
    """Return an entrypoint's word after the scheduler: `$NAME` is replaced, `$$` is a dollar."""

    def one(match: re.Match[str]) -> str:
        return "$" if match[0] == "$$" else env.get(match[1] or match[2] or "", "")

    return re.sub(r"\$\$|\$\{(\w+)\}|\$(\w+)", one, word)


def machine_wish(body: Mapping[str, object]) -> Wish:
    """Read the body of `POST /vmaas/deploy`.

    Raises:
        CallRefusedError: 422, with every complaint.
    """
    _check(
        body,
        {
            "resource_private_name": _name,
            "duration_hours": _whole(1, 8760),
            "gpus_per_vm": _whole(1, 8),
            "hardware_id": _hardware,
            "location_ids": _places,
            "vm_image_type": _one_of("general", "datascience"),
            "ssh_keys": _ssh_keys,
        },
        {"network_services": _object, "github_ids": _words, "vms_qty": _whole(1)},
    )
    services = _inner(body, "network_services")
    for name, service in services.items():
        place = ("network_services", name)
        needed: dict[str, Check] = {
            "port": _whole(1, 65_535),
            "protocol": _one_of("tcp", "udp"),
            "whitelist": _cidrs,
        }
        _check(service if isinstance(service, dict) else {}, needed, {}, place)
    order = Order(
        image=f"io.net/vm-{body['vm_image_type']}",
        disk_gb=Decimal(0),
        ports=tuple(
            Port(int(s["port"]), str(s["protocol"]))
            for s in services.values()
            if isinstance(s, dict)
        ),
    )
    return _wish(body, "gpus_per_vm", order, services=services)


def changed_config(body: Mapping[str, object]) -> None:
    """Check the flat body of `PATCH /caas/deployment/{id}`.

    Raises:
        CallRefusedError: 422; a nested `container_config` is `extra_forbidden`.
    """
    _check(
        body,
        {},
        {
            "env_variables": _texts,
            "secret_env_variables": _texts,
            "entrypoint": _words,
            "traffic_port": _whole(1, 65_535),
            "image_url": _text,
            "registry_username": _text,
            "registry_secret": _text,
            "args": _words,
            "command": _text,
        },
    )


def hours_of(body: Mapping[str, object]) -> int:
    """Read the body of `POST .../extend`.

    Raises:
        CallRefusedError: 422.
    """
    _check(body, {"duration_hours": _whole(1)})
    return int(str(body["duration_hours"]))


def _wish(
    body: Mapping[str, object],
    gpus: str,
    order: Order,
    *,
    config: Mapping[str, object] | None = None,
    services: Mapping[str, object] | None = None,
) -> Wish:
    places = body["location_ids"]
    return Wish(
        name=str(body["resource_private_name"]),
        hours=int(str(body["duration_hours"])),
        gpus=int(str(body[gpus])),
        hardware_id=body["hardware_id"],
        location=places[0] if isinstance(places, list) else None,
        order=order,
        config=config or {},
        services={n: s for n, s in (services or {}).items() if isinstance(s, dict)},
    )


def _inner(body: Mapping[str, object], name: str) -> Mapping[str, object]:
    value = body.get(name)
    return value if isinstance(value, dict) else {}


def _check(
    body: Mapping[str, object],
    needed: Mapping[str, Check],
    optional: Mapping[str, Check] | None = None,
    place: tuple[str, ...] = (),
) -> None:
    """Raise a 422 of everything that is missing, wrong or unknown."""
    known = {**needed, **(optional or {})}
    problems: list[Problem] = [
        ((*place, name), "Field required", "missing") for name in needed if name not in body
    ]
    for name, value in body.items():
        if name not in known:
            text = "Extra inputs are not permitted"
            problems.append(((*place, name), text, "extra_forbidden"))
        elif (value is not None or name in needed) and (wrong := known[name](value)):
            problems.append(((*place, name), wrong, "value_error"))
    if problems:
        raise invalid(*problems)


def _whole(least: int, most: int = 10**9) -> Check:
    def check(value: object) -> str:
        good = type(value) is int and least <= value <= most
        return "" if good else f"Input should be a whole number from {least} to {most}"

    return check


def _one_of(*words: str) -> Check:
    return lambda value: "" if value in words else f"Input should be one of {', '.join(words)}"


def _name(value: object) -> str:
    good = isinstance(value, str) and re.fullmatch(r"[a-z0-9][a-z0-9-]{0,62}", value)
    return "" if good else "Input should be lower-case letters, digits and hyphens"


def _text(value: object) -> str:
    return "" if isinstance(value, str) and value else "Input should be a valid string"


def _texts(value: object) -> str:
    good = isinstance(value, dict) and all(isinstance(v, str) for v in value.values())
    return "" if good else "Input should be an object of strings"


def _words(value: object) -> str:
    good = isinstance(value, list) and all(isinstance(v, str) for v in value)
    return "" if good else "Input should be a list of strings"


def _object(value: object) -> str:
    return "" if isinstance(value, dict) else "Input should be a valid object"


def _hardware(value: object) -> str:
    good = type(value) is int or (isinstance(value, str) and value)
    return "" if good else "Input should be a valid integer or string"


def _places(value: object) -> str:
    good = (
        isinstance(value, list)
        and len(value) == 1
        and (type(value[0]) is int or isinstance(value[0], str))
    )
    return "" if good else "Input should be a list of exactly one location"


def _ssh_keys(value: object) -> str:
    good = (
        isinstance(value, dict)
        and value
        and all(isinstance(v, str) and _SSH_KEY.fullmatch(v) for v in value.values())
    )
    return "" if good else "Input should be public keys by name"


def _cidrs(value: object) -> str:
    good = (
        isinstance(value, list)
        and value
        and all(isinstance(v, str) and _CIDR.fullmatch(v) for v in value)
    )
    return "" if good else "Input should be at least one CIDR"
