"""From words on a command line to a demand and a workload; every refusal names the flag.

A flag wins over its `VAST_*` variable. Nothing is guessed: what is empty, unknown, out of range or
no number at all is refused before anything is sent. How flags are declared is in `flags.py`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Final

from gp4u import gpus, places
from gp4u.cli.flags import DemandFlags
from gp4u.errors import BadInput
from gp4u.model import (
    DEFAULT_WEIGHTS,
    Demand,
    HealthCheck,
    Port,
    Preferences,
    Protocol,
    Requirements,
    Workload,
)

if TYPE_CHECKING:
    from gp4u.settings import Settings

MAX_PORT: Final = 65_535
MAX_GPUS: Final = 64
MAX_DISK_GIB: Final = 100_000
_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?")
_ENV_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_PORT: Final = re.compile(r"[0-9]{1,5}")
_IMAGE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:@-]{0,1023}")


def demand(
    flags: DemandFlags, settings: Settings, *, disk_gib: float = 20.0, ports: int = 0
) -> Demand:
    """Return the demand that flags and settings make together.

    Raises:
        BadInput: a flag is out of bounds; nothing is guessed.
    """
    own = settings.demand
    names = _given("--gpu", flags.gpu) or [(name, "VAST_GPU_TYPE") for name in own.gpu_types]
    models = [model for name, field in names for model in gpus.wanted(name, field)]
    price = _price(flags.max_price) if flags.max_price is not None else own.max_price
    reliability = (
        flags.min_reliability if flags.min_reliability is not None else own.min_reliability
    )
    if reliability is not None and not 0 <= reliability <= 1:
        raise BadInput("--min-reliability", reliability, "must be from 0 to 1 (0.95 is 95 %)")
    if not 1 <= flags.gpus <= MAX_GPUS:
        raise BadInput("--gpus", flags.gpus, f"must be from 1 to {MAX_GPUS}")
    places_wanted = _given("--location", flags.location) or [
        (word, "VAST_DATACENTER_LOCATION") for word in own.locations
    ]
    return Demand(
        requirements=Requirements(
            gpu_models=tuple(dict.fromkeys(models)),
            gpu_count=flags.gpus,
            min_vram_gib=_positive("--min-vram", flags.min_vram, own.min_vram_gib),
            max_price_usd_per_hour=price,
            min_reliability=reliability,
            min_download_mbps=_positive(
                "--min-download", flags.min_download, own.min_download_mbps
            ),
            min_cpus=_positive("--cpus", flags.cpus, None),
            min_ram_gib=_positive("--ram", flags.ram, None),
            disk_gib=disk(disk_gib),
            ports=ports,
            locations=tuple(places.parse_token(word, field) for word, field in places_wanted),
            providers=_providers(flags.provider, settings),
            interruptible=flags.interruptible,
            verified_only=not flags.unverified,
        ),
        preferences=Preferences(weights=_weights(flags.weight, settings)),
    )


def workload(
    *,
    image: str,
    command: Sequence[str],
    ports: Sequence[str],
    env: Sequence[str],
    disk_gib: float,
    health: Sequence[str],
) -> Workload:
    """Return the workload that the flags of `rent` describe.

    Raises:
        BadInput: a flag is not what it must be.
    """
    if not _IMAGE.fullmatch(image):
        raise BadInput("--image", image, "must be an image reference such as vllm/vllm-openai:v1")
    parsed = tuple(dict.fromkeys(_port(word) for word, _ in _given("--port", ports)))
    checks = tuple(_check(word) for word in health)
    published = {p.number for p in parsed if p.protocol is Protocol.TCP}
    for check in checks:
        if check.port not in published:
            raise BadInput("--health", check.port, "the port must also be given with --port")
    return Workload(
        image=image,
        command=tuple(command),
        env=dict(_variable(word) for word in env),
        ports=parsed,
        disk_gib=disk(disk_gib),
        health=checks,
    )


def owner_name(name: str | None, random: Random) -> str:
    """Return the rental's owner; without a name one is made up, so that each call rents anew.

    Raises:
        BadInput: the name is not lower-case letters, digits, dots and dashes.
    """
    if name is None:
        return f"cli:{random.choice(_ADJECTIVES)}-{random.choice(_NOUNS)}-{random.randrange(1000)}"
    if not _NAME.fullmatch(name):
        raise BadInput("--name", name, "1 to 63 of a-z, 0-9, '.', '_' and '-', ends alphanumeric")
    return f"cli:{name}"


_ADJECTIVES: Final = ("brisk", "calm", "deft", "eager", "fleet", "keen", "lucid", "quick", "spry")
_NOUNS: Final = ("otter", "heron", "lynx", "finch", "marten", "tern", "vole", "wren", "ibex")


def disk(gib: float) -> float:
    """Return the disk that `--disk` asked for, in GiB.

    Raises:
        BadInput: it is out of bounds.
    """
    if not 1 <= gib <= MAX_DISK_GIB:
        raise BadInput("--disk", gib, f"must be from 1 to {MAX_DISK_GIB} GB")
    return gib


def _given(flag: str, values: Sequence[str] | None) -> list[tuple[str, str]]:
    """Split repeated and comma-separated values into (word, flag), in order.

    Raises:
        BadInput: the flag was given, and holds no word; as a bound it would hold nothing out.
    """
    words = [word.strip() for text in values or () for word in text.split(",") if word.strip()]
    if values and not words:
        raise BadInput(flag, ",".join(values), "is empty")
    return [(word, flag) for word in words]


def _providers(values: Sequence[str] | None, settings: Settings) -> tuple[str, ...]:
    known = settings.provider_slugs
    slugs = tuple(word for word, _ in _given("--provider", values))
    for slug in slugs:
        if slug not in known:
            raise BadInput("--provider", slug, f"known: {', '.join(known)}")
    return slugs


def _price(text: str) -> Decimal:
    try:
        price = Decimal(text.removeprefix("$"))
    except InvalidOperation:
        raise BadInput("--max-price", text, "must be dollars per hour, such as 0.50") from None
    if not price.is_finite() or not 0 < price <= 10_000:
        raise BadInput("--max-price", text, "must be above 0 and at most 10000 $/h")
    return price


def _positive(flag: str, given: float | None, default: float | None) -> float | None:
    value = given if given is not None else default
    if value is not None and not 0 < value < 1e9:
        raise BadInput(flag, value, "must be above 0")
    return value


def _port(text: str) -> Port:
    number, _, protocol = text.partition("/")
    if not _PORT.fullmatch(number) or not 1 <= int(number) <= MAX_PORT:
        raise BadInput("--port", text, f"must be 1 to {MAX_PORT}, with /udp if it is not tcp")
    if protocol not in ("", "tcp", "udp"):
        raise BadInput("--port", text, "the protocol must be tcp or udp")
    return Port(number=int(number), protocol=Protocol(protocol or "tcp"))


def _check(text: str) -> HealthCheck:
    """Read `http:8000/path`, `http:8000` or `tcp:8000`."""
    kind, _, rest = text.partition(":")
    number, slash, path = rest.partition("/")
    if (
        kind not in ("http", "tcp")
        or not _PORT.fullmatch(number)
        or not 1 <= int(number) <= MAX_PORT
    ):
        raise BadInput("--health", text, "must be http:PORT/path or tcp:PORT")
    if kind == "tcp" and slash:
        raise BadInput("--health", text, "a tcp check has no path")
    if any(c.isspace() or not c.isprintable() for c in path):
        raise BadInput("--health", text, "the path must not hold blanks or control characters")
    return HealthCheck(port=int(number), path=f"/{path}" if kind == "http" else None)


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not _ENV_NAME.fullmatch(name):
        raise BadInput("--env", name, "must be NAME=VALUE")
    return name, value


def _weights(given: Sequence[str] | None, settings: Settings) -> dict[str, float]:
    """Return all weights; those that were not given share what is left in their old proportion."""
    weights = dict(settings.weights or DEFAULT_WEIGHTS)
    if not given:
        return weights
    fixed: dict[str, float] = {}
    for word, _ in _given("--weight", given):
        name, _, value = word.partition("=")
        if name not in weights:
            raise BadInput("--weight", word, f"criterion must be one of {', '.join(weights)}")
        try:
            fixed[name] = float(value)
        except ValueError:
            raise BadInput("--weight", word, "must be criterion=number") from None
        if not 0 <= fixed[name] <= 1:
            raise BadInput("--weight", word, "must be from 0 to 1")
    left = 1.0 - sum(fixed.values())
    rest = sum(v for k, v in weights.items() if k not in fixed)
    if left < -1e-9 or (left > 1e-9 and rest == 0):
        raise BadInput("--weight", sum(fixed.values()), "the weights must sum to 1")
    from gp4u.selection.scorers import check_weights  # numpy, only where weights are given

    share = max(0.0, left) / rest if rest else 0.0
    return check_weights({k: fixed.get(k, old * share) for k, old in weights.items()})


def read_faults(path: Path | None) -> str | None:
    """Return the text of a fault script, or None.

    Raises:
        BadInput: it cannot be read.
    """
    if path is None:
        return None
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput("--faults", str(path), f"cannot be read: {error}") from error
