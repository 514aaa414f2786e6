"""From words on a command line to a demand and a workload; every refusal names the flag.

What words look like is known here; what may be asked at all, and what the settings say where
nothing is asked, is `api/asking.py`'s. Nothing is guessed: what is empty or no number is refused
before anything is sent. How flags are declared is in `flags.py`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Final

from msgspec import UNSET, UnsetType
from msgspec.structs import replace

from gp4u.cli.flags import DemandFlags
from gp4u.desk import asking
from gp4u.errors import BadInput
from gp4u.model import Demand, HealthCheck, Port, Protocol, Workload

if TYPE_CHECKING:
    from gp4u.settings import Settings

_PORT: Final = re.compile(r"[0-9]{1,5}")
_FLAGS: Final = {
    "gpu": "--gpu",
    "gpus": "--gpus",
    "min_vram_gib": "--min-vram",
    "max_price_usd_per_hour": "--max-price",
    "min_reliability": "--min-reliability",
    "min_download_mbps": "--min-download",
    "min_cpus": "--cpus",
    "min_ram_gib": "--ram",
    "disk_gib": "--disk",
    "ports": "--port",
    "locations": "--location",
    "providers": "--provider",
    "weights": "--weight",
    "image": "--image",
    "env": "--env",
    "health": "--health",
}
"""What is asked for to the flag that asks it."""


def demand(
    flags: DemandFlags, settings: Settings, *, disk_gib: float = 20.0, ports: int = 0
) -> Demand:
    """Return the demand that flags and settings make together.

    Where a server does the work, it alone knows its markets: which of them are named is not checked
    here.

    Raises:
        BadInput: a flag is out of bounds; nothing is guessed.
    """
    markets = _words("--provider", flags.provider)
    here = settings.api.url is None
    asked = asking.Asked(
        gpu=_words("--gpu", flags.gpu) or UNSET,
        gpus=flags.gpus,
        min_vram_gib=_or_unset(flags.min_vram),
        max_price_usd_per_hour=UNSET
        if flags.max_price is None
        else asking.dollars("--max-price", flags.max_price),
        min_reliability=_or_unset(flags.min_reliability),
        min_download_mbps=_or_unset(flags.min_download),
        min_cpus=flags.cpus,
        min_ram_gib=flags.ram,
        disk_gib=disk_gib,
        ports=ports,
        locations=_words("--location", flags.location) or UNSET,
        providers=markets if here else (),
        interruptible=flags.interruptible,
        verified_only=not flags.unverified,
        datacenter_only=flags.datacenter,
        weights=dict(_weight(word) for word in _words("--weight", flags.weight)) or UNSET,
    )
    found = asking.demand(asked, settings, _FLAGS)
    if here:
        return found
    return replace(found, requirements=replace(found.requirements, providers=tuple(markets)))


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
    return asking.workload(
        image=image,
        command=command,
        env=dict(_variable(word) for word in env),
        ports=[_port(word) for word in _words("--port", ports)],
        health=[_check(word) for word in health],
        disk_gib=disk_gib,
        names=_FLAGS,
    )


def owner_name(name: str | None, random: Random) -> str:
    """Return the rental's owner; without a name one is made up, so that each call rents anew.

    Raises:
        BadInput: the name is not lower-case letters, digits, dots and dashes.
    """
    if name is None:
        return f"cli:{random.choice(_ADJECTIVES)}-{random.choice(_NOUNS)}-{random.randrange(1000)}"
    return asking.owner_of("--name", name)


_ADJECTIVES: Final = ("brisk", "calm", "deft", "eager", "fleet", "keen", "lucid", "quick", "spry")
_NOUNS: Final = ("otter", "heron", "lynx", "finch", "marten", "tern", "vole", "wren", "ibex")


def _words(flag: str, values: Sequence[str] | None) -> list[str]:
    """Split repeated and comma-separated values into words, in order.

    Raises:
        BadInput: the flag was given, and holds no word; as a bound it would hold nothing out.
    """
    words = [word.strip() for text in values or () for word in text.split(",") if word.strip()]
    if values and not words:
        raise BadInput(flag, ",".join(values), "is empty")
    return words


def _or_unset(value: float | None) -> float | UnsetType:
    return UNSET if value is None else value


def _port(text: str) -> Port:
    number, _, protocol = text.partition("/")
    if not _PORT.fullmatch(number) or not 1 <= int(number) <= asking.MAX_PORT:
        bound = f"must be 1 to {asking.MAX_PORT}, with /udp if it is not tcp"
        raise BadInput("--port", text, bound)
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
        or not 1 <= int(number) <= asking.MAX_PORT
    ):
        raise BadInput("--health", text, "must be http:PORT/path or tcp:PORT")
    if kind == "tcp" and slash:
        raise BadInput("--health", text, "a tcp check has no path")
    return HealthCheck(port=int(number), path=f"/{path}" if kind == "http" else None)


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise BadInput("--env", name, "must be NAME=VALUE")
    return name, value


def _weight(word: str) -> tuple[str, float]:
    name, value = asking.weight("--weight", word)
    if not 0 <= value <= 1:
        raise BadInput("--weight", word, "must be from 0 to 1")
    return name, value


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
