"""From what somebody asks for to a demand and a workload: every bound, once.

Hides the defaults of the settings and what may be asked at all. The command line and the REST
bodies both come through here, so both refuse the same; `names` says how a field is called by whom
it is told (`--max-price` or `max_price_usd_per_hour`). Nothing is guessed: what is empty, unknown
or out of range is refused before anything is sent.

What words look like on a command line is left to `cli/parse.py`, in JSON to `bodies.py`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Final

from msgspec import UNSET, Struct, UnsetType

from gp4u import gpus as catalogue
from gp4u import places
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
MAX_PRICE: Final = 10_000
MAX_AMOUNT: Final = 1e9
PERCENT: Final = 100
NAME: Final = r"[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?"
ENV_NAME: Final = r"[A-Za-z_][A-Za-z0-9_]*"
IMAGE: Final = r"[A-Za-z0-9][A-Za-z0-9._/:@-]{0,1023}"
_ROUNDING: Final = 1e-9
_NO_NAMES: Final[Mapping[str, str]] = {}


class Asked(Struct, frozen=True, kw_only=True):
    """A demand as somebody words it. UNSET takes the setting, None is no bound."""

    gpu: Sequence[str] | UnsetType = UNSET
    """Names in any spelling, first choice first; empty: any."""
    gpus: int = 1
    min_vram_gib: float | UnsetType | None = UNSET
    max_price_usd_per_hour: Decimal | UnsetType | None = UNSET
    min_reliability: float | UnsetType | None = UNSET
    min_download_mbps: float | UnsetType | None = UNSET
    min_cpus: float | UnsetType | None = UNSET
    min_ram_gib: float | UnsetType | None = UNSET
    disk_gib: float = 20.0
    ports: int = 0
    locations: Sequence[str] | UnsetType = UNSET
    providers: Sequence[str] | UnsetType = UNSET
    interruptible: bool = False
    verified_only: bool = True
    datacenter_only: bool = False
    weights: Mapping[str, float] | UnsetType = UNSET
    """Criterion to weight; those that are left out share what is left, in their old proportion."""


def demand(asked: Asked, settings: Settings, names: Mapping[str, str] = _NO_NAMES) -> Demand:
    """Return the demand that is asked for, with the settings where nothing is said.

    Raises:
        BadInput: something is out of bounds; nothing is guessed.
    """
    own = settings.demand

    def name(field: str) -> str:
        return names.get(field, field)

    def given(
        field: str, words: Sequence[str] | UnsetType, default: Sequence[str], variable: str
    ) -> list[tuple[str, str]]:
        if isinstance(words, UnsetType):
            return [(word, variable) for word in default]
        return [(word, name(field)) for word in words]

    def amount(field: str, default: float | None) -> float | None:
        value = getattr(asked, field)
        return positive(name(field), default if value is UNSET else value)

    wanted = given("gpu", asked.gpu, own.gpu_types, "VAST_GPU_TYPE")
    models = [model for word, field in wanted for model in catalogue.wanted(word, field)]
    near = given("locations", asked.locations, own.locations, "VAST_DATACENTER_LOCATION")
    price = asked.max_price_usd_per_hour
    share = asked.min_reliability
    return Demand(
        requirements=Requirements(
            gpu_models=tuple(dict.fromkeys(models)),
            gpu_count=whole_number(name("gpus"), asked.gpus, 1, MAX_GPUS),
            min_vram_gib=amount("min_vram_gib", own.min_vram_gib),
            max_price_usd_per_hour=bounded_price(
                name("max_price_usd_per_hour"),
                own.max_price if isinstance(price, UnsetType) else price,
            ),
            min_reliability=ratio(
                name("min_reliability"),
                own.min_reliability if isinstance(share, UnsetType) else share,
            ),
            min_download_mbps=amount("min_download_mbps", own.min_download_mbps),
            min_cpus=amount("min_cpus", None),
            min_ram_gib=amount("min_ram_gib", None),
            disk_gib=disk(name("disk_gib"), asked.disk_gib),
            ports=whole_number(name("ports"), asked.ports, 0, MAX_PORT),
            locations=tuple(places.parse_token(word, field) for word, field in near),
            providers=markets(name("providers"), asked.providers, settings.provider_slugs),
            interruptible=asked.interruptible,
            verified_only=asked.verified_only,
            datacenter_only=asked.datacenter_only,
        ),
        preferences=Preferences(weights=weights(name("weights"), asked.weights, settings.weights)),
    )


def workload(
    *,
    image: str,
    command: Sequence[str],
    env: Mapping[str, str],
    ports: Sequence[Port],
    health: Sequence[HealthCheck],
    disk_gib: float,
    names: Mapping[str, str] = _NO_NAMES,
) -> Workload:
    """Return the workload that is asked for; a port that is named twice is published once.

    Raises:
        BadInput: a part of it is not what it must be.
    """

    def name(field: str) -> str:
        return names.get(field, field)

    if not re.fullmatch(IMAGE, image):
        bound = "must be an image reference such as vllm/vllm-openai:v1"
        raise BadInput(name("image"), image, bound)
    for variable in env:
        if not re.fullmatch(ENV_NAME, variable):
            raise BadInput(name("env"), variable, "must be NAME=VALUE")
    published = {port.number for port in ports if port.protocol is Protocol.TCP}
    for check in health:
        if check.port not in published:
            bound = f"the port must also be given with {name('ports')}"
            raise BadInput(name("health"), check.port, bound)
        if any(c.isspace() or not c.isprintable() for c in check.path or ""):
            bound = "the path must not hold blanks or control characters"
            raise BadInput(name("health"), check.path, bound)
    return Workload(
        image=image,
        command=tuple(command),
        env=dict(env),
        ports=tuple(dict.fromkeys(ports)),
        disk_gib=disk(name("disk_gib"), disk_gib),
        health=tuple(health),
    )


def owner_of(field: str, name: str) -> str:
    """Return the owner that a name stands for. Whoever gives it, one name is one owner.

    Raises:
        BadInput: the name is not lower-case letters, digits, dots and dashes.
    """
    if not re.fullmatch(NAME, name):
        raise BadInput(field, name, "1 to 63 of a-z, 0-9, '.', '_' and '-', ends alphanumeric")
    return f"cli:{name}"


def disk(field: str, gib: float) -> float:
    """Return a disk, in GiB.

    Raises:
        BadInput: it is out of bounds.
    """
    if not 1 <= gib <= MAX_DISK_GIB:
        raise BadInput(field, gib, f"must be from 1 to {MAX_DISK_GIB} GB")
    return gib


def positive(field: str, value: float | None) -> float | None:
    """Return an amount of something, or None.

    Raises:
        BadInput: it is not above 0, or beyond all machines.
    """
    if value is not None and not 0 < value < MAX_AMOUNT:
        raise BadInput(field, value, f"must be above 0 and below {MAX_AMOUNT:.0f}")
    return value


def weights(
    field: str, given: Mapping[str, float] | UnsetType, base: Mapping[str, float] | None
) -> dict[str, float]:
    """Return all weights, summing to 1.

    Numbers above 1 make all of them percent. Criteria that are not given share what is left, in the
    proportion that `base` gives them; without one, the default weights do.

    Raises:
        BadInput: a criterion that there is not, a number out of bounds, or a sum other than 1.
    """
    base = dict(base or DEFAULT_WEIGHTS)
    if isinstance(given, UnsetType) or not given:
        return base
    for criterion in given:
        if criterion not in base:
            raise BadInput(field, criterion, f"criterion must be one of {', '.join(base)}")
    whole = PERCENT if max(given.values()) > 1 else 1
    fixed = {criterion: value / whole for criterion, value in given.items()}
    for criterion, value in given.items():
        if not 0 <= value <= whole:
            raise BadInput(field, f"{criterion}={value:g}", f"must be from 0 to {whole}")
    left = 1.0 - sum(fixed.values())
    rest = sum(value for criterion, value in base.items() if criterion not in fixed)
    if left < -_ROUNDING or (left > _ROUNDING and rest == 0):
        total = sum(given.values())
        raise BadInput(field, total, f"the weights must sum to {whole}")
    from gp4u.selection.scorers import check_weights  # numpy, only where weights are given

    share = max(0.0, left) / rest if rest else 0.0
    return check_weights({name: fixed.get(name, old * share) for name, old in base.items()})


def markets(
    field: str, asked: Sequence[str] | UnsetType, known: Collection[str]
) -> tuple[str, ...]:
    """Return provider slugs, each once, in order.

    Raises:
        BadInput: one of them is not known.
    """
    slugs = () if isinstance(asked, UnsetType) else tuple(dict.fromkeys(asked))
    for slug in slugs:
        if slug not in known:
            raise BadInput(field, slug, f"known: {', '.join(known)}")
    return slugs


def whole_number(field: str, value: int, least: int, most: int) -> int:
    """Return a count.

    Raises:
        BadInput: it is out of bounds.
    """
    if not least <= value <= most:
        raise BadInput(field, value, f"must be from {least} to {most}")
    return value


def dollars(field: str, text: str) -> Decimal:
    """Read a price per hour, with or without its sign.

    Raises:
        BadInput: it is no number, or no price.
    """
    try:
        price = Decimal(text.removeprefix("$"))
    except InvalidOperation:
        raise BadInput(field, text, "must be dollars per hour, such as 0.50") from None
    if not price.is_finite():
        raise BadInput(field, text, f"must be above 0 and at most {MAX_PRICE} $/h")
    return price


def weight(field: str, word: str) -> tuple[str, float]:
    """Read one `criterion=number`; whether there is such a criterion is `weights`' to say.

    Raises:
        BadInput: it is not of that form.
    """
    name, _, text = word.partition("=")
    try:
        return name.strip(), float(text)
    except ValueError:
        raise BadInput(field, word, "must be criterion=number") from None


def bounded_price(field: str, price: Decimal | None) -> Decimal | None:
    """Return a price per hour, or None.

    Raises:
        BadInput: it is out of bounds.
    """
    if price is not None and (not price.is_finite() or not 0 < price <= MAX_PRICE):
        raise BadInput(field, f"{price}", f"must be above 0 and at most {MAX_PRICE} $/h")
    return price


def ratio(field: str, share: float | None) -> float | None:
    """Return a share from 0 to 1, or None.

    Raises:
        BadInput: it is out of bounds.
    """
    if share is not None and not 0 <= share <= 1:
        raise BadInput(field, share, "must be from 0 to 1 (0.95 is 95 %)")
    return share
