"""Akash's SDL: a workload as the YAML that is bid on, and what the chain and the host make of it.

What this file hides: the shape of the SDL, units (milli-CPU, bytes, an amount per block), and the
three rules that a reader would not guess. A global port that is seen outside as 80 becomes an HTTP
name and loses its TCP port, so 80 is always moved. A host keeps one outside number per service
whatever the protocol, so TCP and UDP of one number are told apart. And the name of the placement is
the only text of ours that reaches the chain, so it is the rental's key.

`group_specs` and `manifest` compute from an SDL what the official tools print, group by group; the
second is sent to a host where the market did not compute it itself. All of it is pure.

Source: chain-sdk go/sdl and its fixtures testdata/sdl, 2026-07 (docs/reference/akash.md).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from decimal import ROUND_CEILING, ROUND_HALF_EVEN, Decimal
from typing import Any, Final

import msgspec
import yaml

from gp4u.errors import BadInput
from gp4u.model import Container, Port, RegistryLogin, RentalKey, Workload
from gp4u.providers import bootstrap

MAIN: Final = "app"
"""The service that is the workload's own container; its further ones keep their names."""
DENOM: Final = "uact"
"""A millionth of a dollar; the only unit that the chain takes for a new deployment."""
HTTP_PORT: Final = 80
"""Seen outside under this number, a port becomes an HTTP name."""
SPARE_PORTS: Final = 20_000
"""From here on outside numbers are given where a port cannot keep its own."""
MAX_AMOUNT: Final = 10_000_000
MAX_CPUS, MAX_GPUS = 384, 24
MAX_MEMORY_GIB, MAX_STORAGE_GIB = 2048, 32 * 1024
MAX_IMAGE: Final = 1024
MAX_SCRIPT: Final = 131_071
"""Bytes of one argument that Linux takes (MAX_ARG_STRLEN, execve(2)); the SDL itself has no bound
that is written down."""
BESIDE_CPUS, BESIDE_RAM_GIB, BESIDE_DISK_GIB = 1.0, 2.0, 10.0
"""What a container beside the first one gets; it has no GPU."""

_IDLE_PORT: Final = Port(number=65_535)
"""Exposed where a workload has no port: the market takes no group that nobody can reach."""
_SERVICE: Final = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
_SIZE: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([kKMGTPE]i?)?")
_UNITS: Final = {"": 1} | {
    unit + binary: base**power
    for binary, base in (("", 1000), ("i", 1024))
    for power, units in enumerate(("kK", "M", "G", "T", "P", "E"), 1)
    for unit in units
}
_HTTP_OPTIONS: Final[Mapping[str, object]] = {
    "maxBodySize": 1048576,
    "readTimeout": 60000,
    "sendTimeout": 60000,
    "nextTries": 3,
    "nextTimeout": 0,
    "nextCases": ["error", "timeout"],
}
"""What stands in a manifest where the SDL says nothing of it."""


class _Plain(yaml.SafeDumper):
    """Writes what is shared out in full: the market's parser need not know anchors."""

    def ignore_aliases(self, data: object) -> bool:
        del data
        return True


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """The hardware that is asked for, for the workload's own container."""

    gpus: int
    model: str
    """As the market writes it: `h100`; empty: any."""
    ram: str = ""
    """`80Gi`; empty: any."""
    interface: str = ""
    """`pcie` or `sxm`; empty: any."""
    cpus: float
    ram_gib: float


def sdl(workload: Workload, key: RentalKey, wish: Wish, *, amount: int) -> dict[str, Any]:
    """Return the SDL of a workload; `amount` is the most uact per block that it may cost.

    Raises:
        BadInput: the market cannot take this workload.
    """
    _check(workload, wish, amount)
    entrypoint, command = _program(workload)
    main = Container(
        name=MAIN,
        image=workload.image,
        entrypoint=entrypoint,
        command=command,
        env=workload.env,
        ports=workload.ports or (_IDLE_PORT,),
    )
    group = (main, *(_beside(each, workload) for each in workload.beside))
    services: dict[str, object] = {}
    sizes = {MAIN: _resources(wish.cpus, wish.ram_gib, workload.disk_gib, _gpu(wish))}
    for each in group:
        if each.name in services or not _SERVICE.fullmatch(each.name):
            raise BadInput("container", each.name, "a name of its own: letters, digits, dashes")
        peers = [other.name for other in group if other is not each]
        services[each.name] = _service(each, peers, workload.login)
        sizes.setdefault(each.name, _resources(BESIDE_CPUS, BESIDE_RAM_GIB, BESIDE_DISK_GIB, None))
    amounts = {name: amount if name == MAIN else 1 for name in services}
    return {
        "version": "2.0" if workload.login is None else "2.1",
        "services": services,
        "profiles": {
            "compute": {name: {"resources": size} for name, size in sizes.items()},
            "placement": {
                str(key): {
                    "pricing": {
                        name: {"denom": DENOM, "amount": each} for name, each in amounts.items()
                    }
                }
            },
        },
        "deployment": {name: {str(key): {"profile": name, "count": 1}} for name in services},
    }


def to_yaml(document: Mapping[str, Any]) -> str:
    """Return an SDL as the text that is sent."""
    text: str = yaml.dump(document, Dumper=_Plain, sort_keys=False, width=1000)
    return text


def ceiling_amount(usd_per_hour: Decimal, blocks_per_hour: Decimal) -> int:
    """Return the most uact per block that keeps within a price per hour, at least 1."""
    amount = (usd_per_hour * 1_000_000 / blocks_per_hour).to_integral_value(ROUND_CEILING)
    return max(1, min(int(amount), MAX_AMOUNT))


def group_specs(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what the chain will hold: one group per placement, with its resources and ceilings.

    In the form of the official fixtures: `size` for bytes, amounts with 18 places.
    """
    groups = []
    for placement, services in _placements(document).items():
        rules = _part(document, "profiles", "placement", placement)
        signed = _part(rules, "signedBy")
        attributes = _part(rules, "attributes")
        groups.append(
            {
                "name": placement,
                "requirements": {
                    "signed_by": {"all_of": signed.get("allOf"), "any_of": signed.get("anyOf")},
                    "attributes": [
                        {"key": name, "value": _word(attributes[name])}
                        for name in sorted(attributes)
                    ]
                    or None,
                },
                "resources": [
                    {
                        "resource": _resource(document, number, service, profile),
                        "count": count,
                        "price": _price(_part(rules, "pricing", profile)),
                    }
                    for number, (service, profile, count) in enumerate(services, 1)
                ],
            }
        )
    return groups


def manifest(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what a host is told to run: one group per placement, with its services."""
    return [
        {
            "name": placement,
            "services": [
                _manifest_service(document, number, *each)
                for number, each in enumerate(services, 1)
            ],
        }
        for placement, services in _placements(document).items()
    ]


def size_bytes(text: object) -> int:
    """Return the bytes of an SDL size: `2Gi`, `500M`, `1024`.

    Raises:
        BadInput: it is no size.
    """
    found = _SIZE.fullmatch(str(text).strip())
    if found is None:
        raise BadInput("size", text, "a number with Ki, Mi, Gi, Ti, k, M, G or T")
    return int(Decimal(found[1]) * _UNITS[found[2] or ""])


def outside_ports(ports: Sequence[Port]) -> list[tuple[Port, int]]:
    """Return each port with the number that the SDL asks for it: its own where that can be."""
    given: list[tuple[Port, int]] = []
    taken = {HTTP_PORT}
    spare = (number for number in range(SPARE_PORTS, 65_536))
    wanted = {port.number for port in ports}
    for port in ports:
        number = port.number
        if number in taken:
            number = next(n for n in spare if n not in taken and n not in wanted)
        taken.add(number)
        given.append((port, number))
    return given


def _check(workload: Workload, wish: Wish, amount: int) -> None:
    bounds: tuple[tuple[str, float, float, str], ...] = (
        ("gpus", wish.gpus, MAX_GPUS, "GPUs"),
        ("cpus", wish.cpus, MAX_CPUS, "CPUs"),
        ("ram", wish.ram_gib, MAX_MEMORY_GIB, "GiB of memory"),
        ("disk", workload.disk_gib, MAX_STORAGE_GIB, "GiB of disk"),
        ("price", amount, MAX_AMOUNT, "uact per block"),
    )
    for name, value, most, unit in bounds:
        if not (math.isfinite(value) and 0 < value <= most):
            raise BadInput(name, value, f"Akash takes more than 0 and at most {most:g} {unit}")
    for image in (workload.image, *(each.image for each in workload.beside)):
        if not 0 < len(image) <= MAX_IMAGE:
            raise BadInput("image", image[:40], f"Akash takes 1 to {MAX_IMAGE} characters")


def _program(workload: Workload) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return what replaces the image's entrypoint and its arguments; empty: nothing does.

    A host starts a container anew whenever it ends, so a script stays when its work is done.
    """
    if not bootstrap.is_needed(workload):
        return workload.entrypoint, workload.command
    script = bootstrap.script(workload, hold=True)
    if len(script.encode()) > MAX_SCRIPT:
        told = sum(len(file.content) for file in workload.files)
        bound = f"Akash takes {MAX_SCRIPT} bytes of a script, and with its files it has"
        raise BadInput("files", f"{told} bytes", f"{bound} {len(script.encode())}")
    return ("/bin/sh", "-c"), (script,)


def _beside(container: Container, workload: Workload) -> Container:
    """Return a further container with what replaces its program, so that its runs are told too."""
    own = Workload(
        image=container.image,
        entrypoint=container.entrypoint,
        command=container.command,
        restart=workload.restart,
    )
    entrypoint, command = _program(own)
    return msgspec.structs.replace(container, entrypoint=entrypoint, command=command)


def _service(
    container: Container, peers: Sequence[str], login: RegistryLogin | None
) -> dict[str, object]:
    """Return what runs. A command replaces the image's arguments and keeps its entrypoint."""
    made: dict[str, object] = {"image": container.image}
    if container.entrypoint:
        made["command"] = list(container.entrypoint)
    if login is not None:
        made["credentials"] = {
            "host": login.server,
            "username": login.username,
            "password": login.password,
        }
    if container.command:
        made["args"] = list(container.command)
    for name in container.env:
        if not name or "=" in name:
            raise BadInput("env", name[:40], "a variable's name has no = and is not empty")
    if container.env:
        made["env"] = [f"{name}={value}" for name, value in container.env.items()]
    made["expose"] = list(_exposures(container.ports, peers))
    return made


def _exposures(ports: Sequence[Port], peers: Sequence[str]) -> Iterator[dict[str, object]]:
    """Yield what is exposed, to whom, and under which number.

    Towards its peers in the group a port must be exposed as well: seen from outside alone, it
    cannot be reached by the service's name. They look for it under its own number, so one that has
    to be another outside is exposed to them apart.
    """
    inner = [{"service": peer} for peer in peers]
    taken: set[int] = set()
    for port, seen in outside_ports(ports):
        inside = seen if port.number in taken else port.number
        taken.add(inside)
        to = [{"global": True}, *(inner if inside == seen else ())]
        each: dict[str, object] = {
            "port": port.number,
            "as": seen,
            "proto": str(port.protocol),
            "to": to,
        }
        yield each
        if inner and inside != seen:
            yield each | {"as": inside, "to": inner}


def _resources(
    cpus: float, ram_gib: float, disk_gib: float, gpu: Mapping[str, object] | None
) -> dict[str, object]:
    sizes: dict[str, object] = {
        "cpu": {"units": f"{math.ceil(cpus * 1000)}m"},
        "memory": {"size": f"{math.ceil(ram_gib * 1024)}Mi"},
        "storage": [{"size": f"{math.ceil(disk_gib * 1024)}Mi"}],
    }
    return sizes if gpu is None else sizes | {"gpu": gpu}


def _gpu(wish: Wish) -> dict[str, object]:
    named = {"model": wish.model, "ram": wish.ram, "interface": wish.interface}
    model = {name: text for name, text in named.items() if text}
    return {
        "units": wish.gpus,
        "attributes": {"vendor": {"nvidia": [model] if wish.model else None}},
    }


def _placements(document: Mapping[str, Any]) -> dict[str, list[tuple[str, str, int]]]:
    """Return placement -> (service, compute profile, count), by the service's name."""
    found: dict[str, list[tuple[str, str, int]]] = {}
    deployment = _part(document, "deployment")
    for service in sorted(deployment):
        for placement, use in deployment[service].items():
            place = found.setdefault(placement, [])
            place.append((service, str(use["profile"]), int(use.get("count", 1))))
    return dict(sorted(found.items()))


def _resource(document: Mapping[str, Any], number: int, service: str, profile: str) -> Any:
    sizes = _part(document, "profiles", "compute", profile, "resources")
    storage = sizes.get("storage") or []
    volumes = [storage] if isinstance(storage, Mapping) else storage
    return {
        "id": number,
        "cpu": {"units": {"val": str(_milli(_part(sizes, "cpu").get("units")))}},
        "memory": {"size": {"val": str(size_bytes(_part(sizes, "memory").get("size")))}},
        "storage": [_volume(each) for each in volumes],
        "gpu": _gpu_on_chain(_part(sizes, "gpu")),
        "endpoints": _endpoints(_part(document, "services", service)),
    }


def _volume(volume: Mapping[str, Any]) -> dict[str, object]:
    made: dict[str, object] = {
        "name": volume.get("name", "default"),
        "size": {"val": str(size_bytes(volume.get("size")))},
    }
    attributes = _part(volume, "attributes")
    if attributes:
        made["attributes"] = [
            {"key": name, "value": _word(attributes[name])} for name in sorted(attributes)
        ]
    return made


def _gpu_on_chain(gpu: Mapping[str, Any]) -> dict[str, object]:
    units = int(gpu.get("units", 0))
    made: dict[str, object] = {"units": {"val": str(units)}}
    if units:
        vendors = _part(gpu, "attributes", "vendor")
        keys = sorted(
            key for vendor, models in vendors.items() for key in _gpu_keys(vendor, models or [])
        )
        made["attributes"] = [{"key": key, "value": "true"} for key in keys]
    return made


def _gpu_keys(vendor: str, models: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield `vendor/nvidia/model/h100/ram/80Gi/interface/sxm`; of no model, the one for any."""
    for each in models or [{"model": "*"}]:
        key = f"vendor/{vendor}/model/{each['model']}"
        for name in ("ram", "interface"):
            key += f"/{name}/{each[name]}" if each.get(name) else ""
        yield key


def _exposed(service: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Yield (port, one of those it is exposed to)."""
    for port in service.get("expose") or []:
        for to in port.get("to") or [{}]:
            yield port, to


def _endpoints(service: Mapping[str, Any]) -> list[dict[str, int]]:
    """Return an endpoint per globally exposed port; kind 1 is a random port, none is HTTP."""
    return [
        {"sequence_number": 0} if _is_http(port) else {"kind": 1, "sequence_number": 0}
        for port, to in _exposed(service)
        if to.get("global")
    ]


def _is_http(port: Mapping[str, Any]) -> bool:
    outside = int(port.get("as") or port["port"])
    return outside == HTTP_PORT and str(port.get("proto") or "tcp").lower() != "udp"


def _price(price: Mapping[str, Any]) -> dict[str, str]:
    amount = Decimal(str(price.get("amount", 0))).quantize(Decimal(1).scaleb(-18), ROUND_HALF_EVEN)
    return {"denom": str(price.get("denom", "")), "amount": f"{amount:f}"}


def _manifest_service(
    document: Mapping[str, Any], number: int, name: str, profile: str, count: int
) -> dict[str, Any]:
    service = _part(document, "services", name)
    made: dict[str, Any] = {
        "name": name,
        "image": service.get("image"),
        "command": service.get("command"),
        "args": service.get("args"),
        "env": service.get("env"),
        "resources": _resource(document, number, name, profile),
        "count": count,
        "expose": [
            {
                "port": int(port["port"]),
                "externalPort": int(port.get("as") or 0),
                "proto": str(port.get("proto") or "tcp").upper(),
                "service": to.get("service", ""),
                "global": bool(to.get("global", False)),
                "hosts": port.get("accept"),
                "httpOptions": dict(_HTTP_OPTIONS),
                "ip": to.get("ip", ""),
                "endpointSequenceNumber": 0,
            }
            for port, to in _exposed(service)
        ],
        "credentials": service.get("credentials"),
    }
    mounts = _part(service, "params", "storage")
    if mounts:
        made["params"] = {
            "storage": [
                {
                    "name": each,
                    "mount": mounts[each].get("mount", ""),
                    "readOnly": bool(mounts[each].get("readOnly", False)),
                }
                for each in sorted(mounts)
            ]
        }
    return made


def _part(document: Mapping[str, Any], *names: str) -> Mapping[str, Any]:
    """Return a mapping inside of another; an empty one where any step of the way is missing."""
    for name in names:
        inner = document.get(name)
        document = inner if isinstance(inner, Mapping) else {}
    return document


def _milli(units: object) -> int:
    text = str(units)
    return int(text[:-1]) if text.endswith("m") else int(Decimal(text) * 1000)


def _word(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
