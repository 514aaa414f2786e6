"""What can be asked of the market: filters, order, pages and fields, from a query string.

One table, `PARAMETERS`, drives the reading of a query and its documentation, so neither can know a
parameter that the other does not. Numbers are named as in `OfferShape`, with `min_` or `max_`
before them; an unknown value fails every bound. What a typing error would silently widen is
refused, with the nearest name.

A cursor is a place in the order (sort value, provider, offer id), not a number of rows, so what
comes and goes between two pages moves nothing; what moves itself is the matter of `walks.py`. It is
signed, and bound to the filters and the order it was made for. Which offers those are is found in
`matching.py`.
"""

from __future__ import annotations

import hmac
import math
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final
from urllib.parse import parse_qsl

import msgspec
from msgspec import Struct

from gp4u import gpus, places
from gp4u.api.replies import unknown_parameter
from gp4u.desk.shapes import OfferShape
from gp4u.errors import BadInput, NoSuch
from gp4u.telemetry import clean

DEFAULT_LIMIT: Final = 100
MAX_LIMIT: Final = 1000
MAX_LINES: Final = 10_000_000
MAX_NUMBER: Final = 10**9
MAX_COUNT: Final = 10**6
"""Of a stream, which has no page to fill."""
NUMBERS: Final[Mapping[str, str]] = {
    "price_usd_per_hour": "US dollars per hour, all-in",
    "gpu_count": "GPUs",
    "vram_gib": "GiB per GPU, as sold",
    "g_score": "G-Score, 0..100",
    "reliability": "the market's own uptime estimate, 0..1",
    "download_mbps": "Mbps",
    "upload_mbps": "Mbps",
    "cpu_cores": "CPU cores",
    "ram_gib": "GiB of main memory",
    "disk_gib": "GiB, the largest disk one may ask for",
    "open_ports": "ports that can be reached from outside",
}
"""Fields that can be bounded and sorted by, to their meaning."""
FLAGS: Final[Mapping[str, str]] = {
    "verified": "the market vouches for the host",
    "datacenter": "it stands in a data centre",
    "interruptible": "a higher bid takes it away",
}
SORTS: Final = (*NUMBERS, "gpu_model", "provider")
FIELDS: Final = OfferShape.__struct_fields__
_NUMBER: Final = re.compile(r"[0-9]{1,15}(?:\.[0-9]{1,20})?(?:[eE][+-]?[0-9]{1,2})?")
_WHOLE: Final = re.compile(r"[0-9]{1,9}")
_SEAL_BYTES: Final = 16


class Bound(Struct, frozen=True):
    """One number's bound."""

    name: str
    """Of `NUMBERS`."""
    least: bool
    """True: not below `value`; False: not above it."""
    value: float


class Filters(Struct, frozen=True, kw_only=True):
    """What an offer must be."""

    providers: tuple[str, ...] = ()
    gpu_models: tuple[str, ...] = ()
    """Canonical."""
    locations: tuple[str, ...] = ()
    """Tokens of `places.py`."""
    bounds: tuple[Bound, ...] = ()
    flags: tuple[tuple[str, bool], ...] = ()
    """Of `FLAGS`."""
    available: bool | None = True
    """None: either."""
    max_age_s: float | None = None


class Position(Struct, frozen=True, array_like=True):
    """A place in an order: that of the last offer of a page."""

    value: float | str | None
    """Of what is sorted by; None where that is unknown."""
    provider: str
    offer_id: str
    walk: str = ""
    """Which pages went before, as `walks.py` names them."""


class Ask(Struct, frozen=True, kw_only=True):
    """Everything that is asked of a listing."""

    filters: Filters = Filters()
    sort: str = "price_usd_per_hour"
    descending: bool = False
    limit: int | None = None
    """None: the default of a page, no limit of a stream."""
    after: Position | None = None
    fields: tuple[str, ...] = ()
    """In the order that was asked for; empty: all."""


class Parameter(Struct, frozen=True, kw_only=True):
    """A query parameter: how it is read and how it is told."""

    name: str
    about: str
    schema: Mapping[str, Any]
    read: Callable[[str, str], object]
    """From its name and one value. Raises BadInput."""
    repeats: bool = False
    example: object = None


def _number(name: str, text: str) -> float:
    if not _NUMBER.fullmatch(text) or not math.isfinite(value := float(text)):
        raise BadInput(name, clean(text, 60), "must be a number, and not negative")
    if value > MAX_NUMBER:
        raise BadInput(name, clean(text, 60), f"must be at most {MAX_NUMBER}")
    return value


def _limit(name: str, text: str) -> int:
    if not _WHOLE.fullmatch(text) or int(text) < 1:
        bound = f"must be from 1 to {MAX_LIMIT}, or up to {MAX_LINES} where lines are streamed"
        raise BadInput(name, clean(text, 60), bound)
    return int(text)


def _whole(name: str, text: str) -> float:
    if not _WHOLE.fullmatch(text) or int(text) < 1:
        raise BadInput(name, clean(text, 60), "must be a whole number from 1")
    if int(text) > MAX_COUNT:
        raise BadInput(name, clean(text, 60), f"must be at most {MAX_COUNT}")
    return float(text)


def _choice(known: Sequence[str]) -> Callable[[str, str], str]:
    def read(name: str, text: str) -> str:
        if text not in known:
            raise BadInput(name, clean(text, 60), f"must be one of {', '.join(known)}")
        return text

    return read


def _words(known: Sequence[str]) -> Callable[[str, str], tuple[str, ...]]:
    def read(name: str, text: str) -> tuple[str, ...]:
        one = _choice(known)
        return tuple(one(name, word) for word in text.split(","))

    return read


def _numeric(name: str) -> tuple[Parameter, Parameter]:
    schema, about = {"type": "number", "minimum": 0, "maximum": MAX_NUMBER}, NUMBERS[name]
    return (
        Parameter(name=f"min_{name}", about=f"At least: {about}", schema=schema, read=_number),
        Parameter(name=f"max_{name}", about=f"At most: {about}", schema=schema, read=_number),
    )


_YES_NO: Final = ("true", "false")
_AVAILABLE: Final = ("true", "false", "any")
_BOTH_WAYS: Final = (*SORTS, *(f"-{name}" for name in SORTS))

WHICH: Final[tuple[Parameter, ...]] = (
    Parameter(
        name="provider",
        about="Market; may be repeated, any will do",
        schema={"type": "string"},
        read=lambda _, text: text,
        repeats=True,
        example="vastai",
    ),
    Parameter(
        name="gpu",
        about="GPU in any spelling (`A100` is every A100); may be repeated, any will do",
        schema={"type": "string"},
        read=lambda name, text: gpus.wanted(clean(text, 100), name),
        repeats=True,
        example="RTX4090",
    ),
)
"""Which GPUs, and where they are sold."""

PARAMETERS: Final[tuple[Parameter, ...]] = (
    *WHICH,
    Parameter(
        name="location",
        about="Country, state or continent (`DE`, `US-CA`, `EU`); may be repeated",
        schema={"type": "string"},
        read=lambda name, text: places.parse_token(clean(text, 100), name),
        repeats=True,
        example="EU",
    ),
    Parameter(
        name="gpus",
        about="Exactly so many GPUs",
        schema={"type": "integer", "minimum": 1, "maximum": MAX_COUNT},
        read=_whole,
    ),
    *(parameter for name in NUMBERS for parameter in _numeric(name)),
    *(
        Parameter(
            name=name,
            about=f"Only where it is so, or where it is not: {about}",
            schema={"type": "string", "enum": list(_YES_NO)},
            read=lambda name, text: _choice(_YES_NO)(name, text) == "true",
        )
        for name, about in FLAGS.items()
    ),
    Parameter(
        name="available",
        about="Free to rent now: `true`, only what is not: `false`, either: `any`",
        schema={"type": "string", "enum": list(_AVAILABLE), "default": "true"},
        read=_choice(_AVAILABLE),
    ),
    Parameter(
        name="max_age_s",
        about="Fetched from its market within so many seconds",
        schema={"type": "number", "minimum": 0, "maximum": MAX_NUMBER},
        read=_number,
    ),
    Parameter(
        name="sort",
        about="Order; with `-` the largest first. Unknown values come last, ties by id",
        schema={"type": "string", "enum": list(_BOTH_WAYS), "default": "price_usd_per_hour"},
        read=_choice(_BOTH_WAYS),
    ),
    Parameter(
        name="limit",
        about="Offers on a page; of a stream, none where not given",
        schema={"type": "integer", "minimum": 1, "maximum": MAX_LIMIT, "default": DEFAULT_LIMIT},
        read=_limit,
    ),
    Parameter(
        name="cursor",
        about="`next_cursor` of the page before, with the same filters and the same order",
        schema={"type": "string", "maxLength": 2000},
        read=lambda _, text: text,
    ),
    Parameter(
        name="fields",
        about="Only these keys of each offer, with commas between them",
        schema={"type": "array", "items": {"type": "string", "enum": list(FIELDS)}},
        read=_words(FIELDS),
        example=["id", "gpu_model", "price_usd_per_hour"],
    ),
)


def parameters(of: Sequence[Parameter] = PARAMETERS) -> list[dict[str, Any]]:
    """Return the parameters as OpenAPI documents them."""
    return [_documented(each) for each in of]


def _documented(parameter: Parameter) -> dict[str, Any]:
    schema = dict(parameter.schema)
    told: dict[str, Any] = {
        "name": parameter.name,
        "in": "query",
        "required": False,
        "description": parameter.about,
    }
    if parameter.repeats:
        schema = {"type": "array", "items": schema}
        told |= {"style": "form", "explode": True}
    elif schema["type"] == "array":
        told |= {"style": "form", "explode": False}
    if parameter.example is not None:
        many = parameter.repeats and not isinstance(parameter.example, list)
        told["example"] = [parameter.example] if many else parameter.example
    return told | {"schema": schema}


def values(query: bytes, of: Sequence[Parameter] = PARAMETERS) -> dict[str, list[object]]:
    """Return what a query string says, read, keyed by parameter.

    Raises:
        BadInput: a parameter is not known, is given twice, or is out of bounds.
    """
    by_name = {parameter.name: parameter for parameter in of}
    found: dict[str, list[object]] = {}
    for name, text in parse_qsl(query.decode("latin-1"), keep_blank_values=True):
        parameter = by_name.get(name)
        if parameter is None:
            raise unknown_parameter(name, sorted(by_name))
        if name in found and not parameter.repeats:
            raise BadInput(name, clean(text, 60), "must be given once")
        found.setdefault(name, []).append(parameter.read(name, text))
    return found


def asked(query: bytes, *, providers: Sequence[str], secret: bytes, streams: bool = False) -> Ask:
    """Return what a query string asks; `providers` are the markets that there are.

    Raises:
        NoSuch: no such market. UnknownGpu: no such GPU.
        BadInput: a parameter is not known or out of bounds, or the cursor is not ours.
    """
    found = values(query)
    one: dict[str, Any] = {name: given[0] for name, given in found.items()}
    sort = str(one.get("sort", Ask().sort))
    limit = one.get("limit")
    most = MAX_LINES if streams else MAX_LIMIT
    if limit is not None and limit > most:
        raise BadInput("limit", limit, f"must be from 1 to {most}")
    ask = Ask(
        filters=Filters(
            providers=known_providers(found.get("provider", ()), providers),
            gpu_models=gpu_models(found.get("gpu", ())),
            locations=tuple(dict.fromkeys(map(str, found.get("location", ())))),
            bounds=tuple(_bounds(one)),
            flags=tuple((name, one[name]) for name in FLAGS if name in one),
            available={"true": True, "false": False, "any": None}[one.get("available", "true")],
            max_age_s=one.get("max_age_s"),
        ),
        sort=sort.removeprefix("-"),
        descending=sort.startswith("-"),
        limit=limit,
        fields=tuple(dict.fromkeys(one.get("fields", ()))),
    )
    if "cursor" in one:
        ask = msgspec.structs.replace(ask, after=position(one["cursor"], ask, secret))
    return ask


def known_providers(names: Sequence[object], known: Sequence[str]) -> tuple[str, ...]:
    """Return the markets that were named, each once.

    Raises:
        NoSuch: there is no such market.
    """
    for name in names:
        if name not in known:
            raise NoSuch("provider", clean(str(name), 60), tuple(known))
    return tuple(dict.fromkeys(map(str, names)))


def gpu_models(families: Sequence[Any]) -> tuple[str, ...]:
    """Return the canonical models of all that were named, each once."""
    return tuple(dict.fromkeys(model for family in families for model in family))


def _bounds(one: Mapping[str, Any]) -> list[Bound]:
    found = []
    for name in NUMBERS:
        if (least := one.get(f"min_{name}")) is not None:
            found.append(Bound(name, True, least))
        if (most := one.get(f"max_{name}")) is not None:
            found.append(Bound(name, False, most))
    if (exact := one.get("gpus")) is not None:
        found += [Bound("gpu_count", True, exact), Bound("gpu_count", False, exact)]
    return found


def cursor(after: Position, ask: Ask, secret: bytes) -> str:
    """Return a place in the order of `ask` as a word that only we can make."""
    told = msgspec.json.encode(after)
    return urlsafe_b64encode(_seal(told, ask, secret) + told).rstrip(b"=").decode("ascii")


def position(word: str, ask: Ask, secret: bytes) -> Position:
    """Return the place that a cursor means.

    Raises:
        BadInput: it was not made by us, or for other filters or another order.
    """
    bound = "must be the next_cursor of a page with the same filters and the same order"
    try:
        whole = urlsafe_b64decode(word.encode("ascii") + b"=" * (-len(word) % 4))
        seal, told = whole[:_SEAL_BYTES], whole[_SEAL_BYTES:]
        if hmac.compare_digest(seal, _seal(told, ask, secret)):
            return msgspec.json.decode(told, type=Position)
    except (ValueError, msgspec.MsgspecError):
        pass
    raise BadInput("cursor", clean(word, 60), bound)


def _seal(told: bytes, ask: Ask, secret: bytes) -> bytes:
    bound_to = msgspec.json.encode((ask.filters, ask.sort, ask.descending))
    return hmac.digest(secret, bound_to + b"\n" + told, "sha256")[:_SEAL_BYTES]
