"""What io.net sells: rows of its two lists as offers, and what a price call says of one.

What this file hides: that a price is for a whole configuration and before fees, that a container's
row knows neither CPU nor disk while a machine's does, and which rows of live data mean nothing. All
of it is pure, and takes a body to offers without a network: `offers_of` at once, `slices` in steps
short enough for an event loop. Which calls are made is `adapter.py`'s part.

`verified` is true for every row: io.net lists no hosts. It sells configurations under its own name
and price, own fleet and resold supply alike, and chooses the machine itself; so it is the seller,
and no row tells of anybody else for whom it would have to vouch.

Source: `docs/reference/ionet.md`, offers; checked 2026-11.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from decimal import ROUND_CEILING, Decimal
from functools import lru_cache
from typing import Annotated, Any, Final, TypeAlias, TypeVar

import msgspec
from msgspec import Meta
from msgspec.structs import replace

from gp4u import gpus, places
from gp4u.errors import OfferGone
from gp4u.model import Offer, Region
from gp4u.providers.http import UNREADABLE, decode, harmless
from gp4u.providers.ionet.order import (
    BLOCK_HOURS,
    SLUG,
    VM_PORTS,
    HardwareId,
    Product,
    Sold,
    hardware_text,
    offer_tail,
)
from gp4u.providers.ionet.wire import Word, inner
from gp4u.providers.turns import AT_ONCE_BYTES, PIECE, cut, each_row, good_rows, pieces

T = TypeVar("T")

MOST_USD_PER_HOUR: Final = 10_000
PRICE_TOLERANCE: Final = Decimal("1.02")
"""A price that rose by less between the offer and the rent is taken."""
_FEE_TRIES: Final = 3
_MICRO: Final = Decimal("0.000001")
_NOTHING: Final = Decimal(0)
_MOST: Final = 10**9
"""No core, GiB or GB of a machine is counted so high."""
_PORTS: Final = {Product.CAAS: 1, Product.VMAAS: VM_PORTS}

ShapeKey: TypeAlias = tuple[str, int, str]
"""Folded title, number of GPUs and country: what the two products' rows have in common."""
Shape: TypeAlias = tuple[float | None, float | None, float | None]
"""Cores, GiB of memory and GB of disk of a whole configuration."""
_UNTOLD: Final[Shape] = (None, None, None)
_Alike: TypeAlias = tuple[str | None, int, str | None, float | None, str | None]
"""Title, number of GPUs, location, GB per GPU and interconnect, as a row has them."""
_Kind: TypeAlias = tuple[str, float, Region | None, str, float | None, float | None, float | None]
"""Model, GiB per GPU, place, what an offer's id ends in, and the shape, of rows that are alike."""


class Hardware(msgspec.Struct, gc=False):
    """One configuration at one location, of either product; prices are for all its GPUs."""

    id: HardwareId
    num_cards: Annotated[int, Meta(ge=0, le=4096)]
    price: float
    """US dollars per hour for the whole configuration, before fees; 0 means no price.

    Money is a Decimal from the offer on; here it is the key to one that was worked out before, and
    to hash a Decimal costs more than the rest of an offer.
    """
    name: Word | None = None
    hardware_name: Word | None = None
    deploy_id: HardwareId | None = None
    hardware_id: HardwareId | None = None
    location: Word | None = None
    """ISO 3166 alpha-2."""
    vram_per_card: float | None = None
    """GB per GPU, as the card is sold."""
    interconnect: Word | None = None
    sold_out: bool | None = None
    available_replicas: int | None = None
    storage: float | None = None
    """GB."""
    vcpu: float | None = None
    memory: float | None = None
    """GB."""

    @property
    def sold_as(self) -> HardwareId:
        """What the price and create calls know it by; a text of digits stays a text."""
        if self.deploy_id is not None:
            return self.deploy_id
        return self.id if self.hardware_id is None else self.hardware_id

    @property
    def free(self) -> bool:
        """Whether it can be had now, as far as the row tells."""
        left = self.available_replicas
        return self.sold_out is not True and (left is None or left > 0)

    @property
    def title(self) -> str:
        """The GPU's name."""
        return self.name or self.hardware_name or ""


class _Rows(msgspec.Struct):
    hardware: list[Hardware]


class Catalogue(msgspec.Struct):
    """The usual form of a list of hardware; `data` may be missing around it, or the key in it."""

    data: _Rows


class _RawRows(msgspec.Struct):
    hardware: list[msgspec.Raw]


_OPENING: Final = re.compile(rb'\s*\{\s*"data"\s*:\s*\{\s*"hardware"\s*:\s*\[')


class _RawCatalogue(msgspec.Struct):
    data: _RawRows


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """What all rows of one look at the market share."""

    product: Product
    at: datetime
    places_by: Mapping[str, int]
    """The market's number of each country, by its two capital letters; may lack some."""
    fee_factor: Decimal | None
    """All-in price over listed price; None: unknown, so that every price is an estimate."""
    shapes: Mapping[ShapeKey, Shape]
    """For containers: what the machines of the same shape have at least."""


class Priced(msgspec.Struct):
    """The answer to a price call: for all replicas and hours, with fees."""

    total_cost_usdc: Decimal
    available_replica_count: list[int] | int | None = None

    @property
    def usd_per_hour(self) -> Decimal | None:
        """Dollars per hour of the block that was asked for; None where it is no price."""
        total = self.total_cost_usdc
        if not (total.is_finite() and 0 < total <= MOST_USD_PER_HOUR * BLOCK_HOURS):
            return None
        return total / BLOCK_HOURS

    def refusal(self, offer: Offer) -> OfferGone | None:
        """Return why the offer is not what it was: no room, or another price; None: it holds."""
        counts = self.available_replica_count
        counts = [counts] if isinstance(counts, int) else counts
        if counts and sum(counts) <= 0:
            return OfferGone(SLUG, "price", "no replica is left")
        usd = self.usd_per_hour
        if usd is None:
            return OfferGone(SLUG, "price", "it has no price now")
        if usd <= offer.price_usd_per_hour * PRICE_TOLERANCE:
            return None
        return OfferGone(SLUG, "price", f"it costs ${usd:.6g} an hour now")


def parse_hardware(operation: str, body: bytes) -> tuple[list[Hardware], int]:
    """Return the rows of a list of hardware, and how many break their schema.

    Raises:
        Malformed: it is no list of hardware, or more than half of its rows break the schema.
    """
    return good_rows(SLUG, operation, hardware_rows(operation, body))


def hardware_rows(operation: str, body: bytes) -> Iterable[Hardware | None]:
    """Return the rows of a list of hardware; None for one that breaks its schema.

    Raises:
        Malformed: it is no list of hardware; raised when the first row is asked for.
    """
    if len(body) <= AT_ONCE_BYTES:
        try:
            return msgspec.json.decode(body, type=Catalogue).data.hardware
        except UNREADABLE:
            pass  # not the usual form, or a row is not as it should be
    return _one_by_one(operation, body)


def _one_by_one(operation: str, body: bytes) -> Iterator[Hardware | None]:
    def whole(body: bytes) -> list[msgspec.Raw]:
        try:
            return msgspec.json.decode(body, type=_RawCatalogue).data.hardware
        except UNREADABLE:
            inside = inner(operation, body, "hardware")
            return decode(SLUG, operation, inside, list[msgspec.Raw])

    @lru_cache(maxsize=4096)
    def one(value: T) -> T:
        return value

    for row in each_row(cut(body, _OPENING, whole), Hardware):
        if row is not None:
            # Few values stand in all rows; a copy in each would be half of the memory.
            row.name, row.location = one(row.name), one(row.location)
            row.price, row.vram_per_card = one(row.price), one(row.vram_per_card)
        yield row


def place_numbers(operation: str, body: bytes) -> dict[str, int]:
    """Return the market's number of each country, by its two capital letters.

    Raises:
        Malformed: it is no list of locations.
    """
    found = decode(SLUG, operation, inner(operation, body, "locations"), list[Any])
    return {
        row["iso2"].upper(): row["id"]
        for row in found
        if isinstance(row, Mapping)
        and isinstance(row.get("iso2"), str)
        and type(row.get("id")) is int
        and 0 <= row["id"] < 10**12
    }


def shapes_of(found: Iterable[Hardware]) -> dict[ShapeKey, Shape]:
    """Return what machines have, by shape: where several rows share one, the least of each."""
    told: dict[ShapeKey, Shape] = {}
    for _ in with_shapes(found, told):
        pass
    return told


def with_shapes(
    found: Iterable[Hardware | None], told: dict[ShapeKey, Shape]
) -> Iterator[Hardware | None]:
    """Yield the rows as they are, adding what each tells to `told`; see `shapes_of`."""
    for row in found:
        country = _country(row.location) if row is not None else ""
        if row is not None and country and row.num_cards:
            key = (_folded(row.title), row.num_cards, country)
            own = _shape(row)
            known = told.get(key, own)
            told[key] = own if known == own else _least(known, own)
        yield row


def cheapest(
    found: Sequence[Hardware], gpu_count: int | None, terms: Terms
) -> list[tuple[Sold, Decimal]]:
    """Return what to ask a price of to learn the fee, each with its listed price: `likeliest`."""
    return [
        (
            Sold(
                terms.product,
                row.sold_as,
                row.num_cards,
                country := _country(row.location),
                terms.places_by.get(country),
            ),
            exact(row.price),
        )
        for row in likeliest(found, gpu_count)
    ]


def likeliest(found: Sequence[Hardware], gpu_count: int | None) -> list[Hardware]:
    """Return the few rows whose price call is the likeliest to be answered, best first.

    Free rows, at most one of each hardware: those with as many GPUs as wanted (None: any) before
    the others, and the cheapest of them first. The likeliest of some and of others are those of
    both.
    """
    free = [row for row in found if row.num_cards and row.free and _is_priced(row.price)]
    free.sort(key=lambda row: (row.num_cards != (gpu_count or row.num_cards), row.price))
    chosen: dict[HardwareId, Hardware] = {}
    for row in free:
        sold_as = row.sold_as
        if sold_as not in chosen and _country(row.location) and hardware_text(sold_as) is not None:
            chosen[sold_as] = row
        if len(chosen) == _FEE_TRIES:
            break
    return list(chosen.values())


def offers_of(body: bytes, terms: Terms) -> list[Offer]:
    """Return the offers of a list of hardware, all at once.

    Raises:
        Malformed: as `parse_hardware`.
    """
    return _made(parse_hardware("offers", body)[0], terms, _Kinds(terms))


def slices(found: list[Hardware], terms: Terms, size: int = PIECE) -> Iterator[list[Offer]]:
    """Yield the offers of `size` rows at a time, taking those out of the list.

    Rows that mean nothing make none: those without GPU, name, price or place, which live data has,
    and those of a GPU of which nobody knows the memory.
    """
    kinds = _Kinds(terms)
    for piece in pieces(found, size):
        yield _made(piece, terms, kinds)


class _Kinds:
    """What was worked out once for all rows of one look that share it."""

    __slots__ = ("_terms", "known", "usd")

    def __init__(self, terms: Terms) -> None:
        self._terms = terms
        self.known: dict[_Alike, _Kind] = {}
        self.usd: dict[float, Decimal] = {}
        """Listed price to price with fees."""

    def learn(self, alike: _Alike) -> _Kind | None:
        """Return a kind that is not known yet; None for rows that mean nothing."""
        title, count, location, vram_gb, interconnect = alike
        country, terms = _country(location), self._terms
        gpu = _gpu(title, vram_gb, interconnect) if title else None
        if gpu is None or not count or not country:
            return None
        tail = offer_tail(count, country, terms.places_by.get(country))
        shape = terms.shapes.get((gpu[2], count, country), _UNTOLD)
        made = self.known[alike] = (gpu[0], gpu[1], places.parse(country), tail, *shape)
        return made

    def price(self, listed: float) -> Decimal | None:
        """Return a price with fees that is not known yet; None where it is no price."""
        usd = _with_fees(listed, self._terms.fee_factor)
        if usd is not None:
            self.usd[listed] = usd
        return usd


def _made(found: Sequence[Hardware], terms: Terms, kinds: _Kinds) -> list[Offer]:
    """Return some rows as offers."""
    # The innermost loop of a sync: what a property or a helper would hide is written out in it.
    product, at, factor = terms.product, terms.at, terms.fee_factor
    head, ports, of_machines = f"{product.value}:", _PORTS[product], product is Product.VMAAS
    kind_of, usd_of = kinds.known.get, kinds.usd.get
    made = []
    for row in found:
        count, title = row.num_cards, row.name or row.hardware_name
        alike = (title, count, row.location, row.vram_per_card, row.interconnect)
        kind, usd = kind_of(alike), usd_of(row.price)
        if kind is None:
            kind = kinds.learn(alike)
        if usd is None:
            usd = kinds.price(row.price)
        sold_as = row.deploy_id
        if sold_as is None:
            sold_as = row.id if row.hardware_id is None else row.hardware_id
        hardware = hardware_text(sold_as)
        if kind is None or usd is None or hardware is None:
            continue
        gpu_model, vram_gib, region, tail, cores, ram, disk = kind
        if of_machines:
            cores, ram, disk = row.vcpu, row.memory, row.storage
            if not (cores and ram and disk and 0 < cores < _MOST > ram > 0 < disk < _MOST):
                cores, ram, disk = _shape(row)
        # Fifteen arguments by name: with one more, CPython packs them into a dict on each call,
        # which makes an offer four times as dear. The others have their defaults here.
        offer = Offer(
            provider=SLUG,
            offer_id=f"{head}{hardware}{tail}",
            gpu_model=gpu_model,
            gpu_count=count,
            vram_gib=vram_gib,
            price_usd_per_hour=usd,
            gpu_usd_per_hour=usd,
            storage_usd_per_hour=_NOTHING,
            fetched_at=at,
            region=region,
            cpu_cores=cores,
            ram_gib=ram,
            disk_gib=disk,
            open_ports=ports,
            verified=True,
        )
        left = row.available_replicas
        if factor is None or row.sold_out or (left is not None and left <= 0):
            offer = replace(offer, estimated=factor is None, available=row.free)
        made.append(offer)
    return made


def _with_fees(price: float, factor: Decimal | None) -> Decimal | None:
    """Return a listed price with fees; None where it is no price."""
    if not _is_priced(price):
        return None
    return (exact(price) * (factor or 1)).quantize(_MICRO, ROUND_CEILING)


def exact(price: float) -> Decimal:
    """Return a number of the wire with the digits that it was written in."""
    return Decimal(repr(price))


def _is_priced(price: float) -> bool:
    return 0 < price <= MOST_USD_PER_HOUR


@lru_cache(maxsize=4096)
def _gpu(
    title: str, vram_gb: float | None, interconnect: str | None
) -> tuple[str, float, str] | None:
    """Return model, GiB per GPU and folded title; None where nobody knows the name or memory."""
    told = vram_gb if vram_gb is not None and 0 < vram_gb < 4096 else None
    gpu = gpus.canonical(title, told * 1024 if told else None, interconnect)
    if gpu is not None:
        return gpu.model, gpu.vram_gib, _folded(title)
    name = harmless(title)
    return (name, told, _folded(title)) if name and told else None


def _folded(title: str) -> str:
    return title.strip().lower()


@lru_cache(maxsize=1024)
def _country(location: str | None) -> str:
    """Return two capital letters; empty where it is no such place."""
    return location.upper() if location and re.fullmatch("[A-Za-z]{2}", location) else ""


def _shape(row: Hardware) -> Shape:
    return _positive(row.vcpu), _positive(row.memory), _positive(row.storage)


def _positive(value: float | None) -> float | None:
    return value if value is not None and 0 < value < _MOST else None


def _least(one: Shape, other: Shape) -> Shape:
    return _lesser(one[0], other[0]), _lesser(one[1], other[1]), _lesser(one[2], other[2])


def _lesser(one: float | None, other: float | None) -> float | None:
    if one is None or other is None:
        return other if one is None else one
    return min(one, other)
