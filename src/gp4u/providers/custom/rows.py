"""A row as a provider's own class describes it, in the first seed's words, made an offer.

Such a row is a dictionary that somebody else's code filled, often straight from a market's reply,
so nothing in it is taken on trust: each value is held to its kind and its bounds, and what breaks
them is named with field, value and bound. Unknown keys mean nothing to us. Which rows there are,
and what happens to a bad one, is the business of `provider.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal, InvalidOperation
from typing import Final, NamedTuple

from gp4u import gpus, places
from gp4u.errors import BadInput
from gp4u.model import Offer
from gp4u.providers.http import harmless

LEAST_USD_PER_HOUR, MOST_USD_PER_HOUR = Decimal("0.000001"), Decimal(10_000)
_DIGITS: Final = 40
"""Characters that a number may have; more is an attack on whoever adds it up."""
_TEXT: Final = 120
"""Characters kept of a foreign text."""


class Bound(NamedTuple):
    """What a number of a row may be."""

    high: int
    """The most; the least is 0."""
    unit: str
    is_whole: bool = False


NUMBERS: Final[Mapping[str, Bound]] = {
    "price_per_hour": Bound(int(MOST_USD_PER_HOUR), "USD/hour"),
    "vram_gb": Bound(999, "GiB"),
    "gpu_count": Bound(1000, "GPUs", is_whole=True),
    "reliability": Bound(1, "ratio"),
    "download_mbps": Bound(1_000_000, "Mbit/s"),
    "upload_mbps": Bound(1_000_000, "Mbit/s"),
    "cpu_cores": Bound(10_000, "cores"),
    "ram_gb": Bound(100_000, "GiB"),
    "disk_gb": Bound(10_000_000, "GiB"),
    "open_ports": Bound(65_535, "ports", is_whole=True),
}
FLAGS: Final = ("interruptible", "available", "verified", "datacenter")
TEXTS: Final = ("model", "id", "location", "machine_id", "host_id")
IGNORED: Final = ("provider", "g_score")
"""What the first seed's dictionary has and we know better: who it is from, and how good it is."""


class Made(NamedTuple):
    """An offer, and what one should know about how it was read."""

    offer: Offer
    remark: str
    """Empty, or a sentence: the GPU or the place has a name that we do not know."""


def to_offer(slug: str, row: object, *, number: int, at: datetime, disk_gib: float) -> Made:
    """Return the offer that a row describes; `number` is its place among the rows, from 0.

    A price is taken as all-in, and as that of the whole row, not of each GPU. A row that says
    nothing of its disk therefore has the `disk_gib` that is asked for. Without an `id` the row is
    called by its number. `verified` is True unless the row says otherwise: whoever adds a market
    vouches for it.

    Raises:
        BadInput: the row is no mapping, or a value is missing or out of bounds.
    """
    if not isinstance(row, Mapping):
        raise BadInput("row", _shown(row), "must be a mapping of field names to values")
    texts = {name: _text(row, name) for name in TEXTS}
    numbers = {name: _number(row, name) for name in NUMBERS}
    flags = {name: _flag(row, name) for name in FLAGS}

    def size(name: str) -> float | None:
        told = numbers[name]
        return None if told is None else float(told)

    sold_as, place = texts["model"], texts["location"]
    if not sold_as:
        raise BadInput("model", _shown(row.get("model")), "must be the name of a GPU")
    price, vram_gib = numbers["price_per_hour"], size("vram_gb")
    if price is None or price < LEAST_USD_PER_HOUR:
        bound = f"must be from {LEAST_USD_PER_HOUR} to {MOST_USD_PER_HOUR} USD/hour"
        raise BadInput("price_per_hour", _shown(row.get("price_per_hour")), bound)
    if numbers["gpu_count"] == 0:
        raise BadInput("gpu_count", 0, "must be from 1 to 1000 GPUs")
    gpu = gpus.canonical(sold_as, vram_gib * 1024 if vram_gib else None)
    if gpu is None and not vram_gib:
        raise BadInput("vram_gb", vram_gib, f"must be told: {sold_as} is no GPU that we know")
    region = places.parse(place)
    remarks = [f"{sold_as} is no GPU that we know"] if gpu is None else []
    remarks += [f"{place} is no place that we know"] if place and region is None else []
    ports = numbers["open_ports"]
    offer = Offer(
        provider=slug,
        offer_id=texts["id"] or f"row-{number}",
        gpu_model=gpu.model if gpu else sold_as,
        gpu_count=int(numbers["gpu_count"] or 1),
        vram_gib=gpu.vram_gib if gpu else vram_gib or 0,
        price_usd_per_hour=price,
        gpu_usd_per_hour=price,
        storage_usd_per_hour=Decimal(0),
        fetched_at=at,
        interruptible=flags["interruptible"] is True,
        region=region,
        reliability=size("reliability"),
        download_mbps=size("download_mbps"),
        upload_mbps=size("upload_mbps"),
        cpu_cores=size("cpu_cores"),
        ram_gib=size("ram_gb"),
        disk_gib=disk_gib if numbers["disk_gb"] is None else size("disk_gb"),
        open_ports=None if ports is None else int(ports),
        machine_id=texts["machine_id"] or None,
        host_id=texts["host_id"] or None,
        verified=flags["verified"] is not False,
        datacenter=flags["datacenter"],
        available=flags["available"] is not False,
    )
    return Made(offer, "; ".join(remarks))


def _number(row: Mapping[str, object], name: str) -> Decimal | None:
    """Return a number of the row, exactly as it was written; None where it has none."""
    value = row.get(name)
    if value is None:
        return None
    high, unit, is_whole = NUMBERS[name]
    bound = f"must be a {'whole ' if is_whole else ''}number from 0 to {high} {unit}"
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal | str):
        raise BadInput(name, _shown(value), bound)
    try:
        text = str(value).strip()
        number = Decimal(text if len(text) <= _DIGITS else "NaN")
    except (InvalidOperation, ValueError):
        raise BadInput(name, _shown(value), bound) from None
    if not number.is_finite() or not 0 <= number <= high or (is_whole and number % 1):
        raise BadInput(name, _shown(value), bound)
    return number


def _flag(row: Mapping[str, object], name: str) -> bool | None:
    value = row.get(name)
    if value is not None and not isinstance(value, bool):
        raise BadInput(name, _shown(value), "must be True or False")
    return value


def _text(row: Mapping[str, object], name: str) -> str:
    """Return a text of the row without anything that steers a terminal; a number is one as well."""
    value = row.get(name)
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise BadInput(name, _shown(value), "must be a text")
    return harmless(str(value), _TEXT)


def _shown(value: object) -> str:
    return harmless(str(value), 40)
