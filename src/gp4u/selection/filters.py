"""Hard requirements: which offers may be rented at all, and what exactly is wrong with the others.

Each filter is one function from a snapshot's columns to a `Verdict`: a mask over all offers, and
the words for one of them. It returns None where the demand does not set that bound. The mask and
the words stand side by side so that a no can never be told differently from how it was decided.

An unknown value breaks a bound, by name: the value reads `unknown`. What is left out here: how good
an offer is (`scorers.py`), and who comes first (`decide.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from datetime import datetime
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from gp4u.model import Coded, Columns, Offer, Region, Requirements
from gp4u.places import within

Mask: TypeAlias = NDArray[np.bool_]
Rows: TypeAlias = NDArray[np.intp]

UNKNOWN = "unknown"
DEFAULT_MAX_AGE_S = 600.0
"""Twice the longest time an offer may be served from memory: older means the provider is away."""
_SHOWN_VALUES = 3
"""How many other models, places or providers a relaxation names."""
_CENT = Decimal("0.01")
_TEN_CENTS = Decimal("0.10")
_HUNDREDTH_OF_A_CENT = Decimal("0.0001")


@dataclass(frozen=True, slots=True)
class Asked:
    """The hard bounds of one demand, at one moment."""

    requirements: Requirements
    at: datetime
    elapsed_s: float
    """From the snapshot to `at`: by so much every offer is older than its column says."""
    max_age_s: float = DEFAULT_MAX_AGE_S


def _no_value(rows: Rows) -> str | None:
    """The nearest value of a bound that is a fact to wait for, not a number to move."""
    del rows
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What one bound says of every offer, and how to say it of one."""

    filter: str
    bound: str
    """As shown beside a value: `>= 0.95`."""
    breach: str
    """As it reads after a number of offers: `reliability below 0.95`."""
    passes: Mask
    value: Callable[[Offer], str]
    nearest: Callable[[Rows], str | None] = _no_value
    """From rows that fail to the nearest bound, as typed, that lets at least one of them in."""
    missing: Callable[[], Mask] | None = None
    """Where the value is unknown; None for a value that every offer has."""


Filter: TypeAlias = Callable[[Columns, Asked], Verdict | None]


def provider(columns: Columns, asked: Asked) -> Verdict | None:
    """One of the named providers."""
    wanted = asked.requirements.providers
    if not wanted:
        return None
    return Verdict(
        filter="provider",
        bound=" or ".join(wanted),
        breach=f"provider not {' or '.join(wanted)}",
        passes=_per_value(columns.provider, lambda slug: slug in wanted),
        value=lambda offer: offer.provider,
        nearest=lambda rows: _most_numerous(columns.provider, rows),
    )


def available(columns: Columns, asked: Asked) -> Verdict | None:
    """Free to rent now, as the provider says."""
    del asked
    return Verdict(
        filter="available",
        bound="yes",
        breach="not available",
        passes=columns.available,
        value=lambda offer: _yes(offer.available),
    )


def kind(columns: Columns, asked: Asked) -> Verdict | None:
    """Interruptible if so asked, and not otherwise: the two are never mixed up in one ranking."""
    wanted = asked.requirements.interruptible
    return Verdict(
        filter="kind",
        bound=_kind(wanted),
        breach=_kind(not wanted),
        passes=columns.interruptible if wanted else ~columns.interruptible,
        value=lambda offer: _kind(offer.interruptible),
        nearest=lambda rows: _kind(not wanted) if rows.size else None,
    )


def verified(columns: Columns, asked: Asked) -> Verdict | None:
    """The market vouches for the host, or sells by itself; one that does not say does not."""
    if not asked.requirements.verified_only:
        return None
    return Verdict(
        filter="verified",
        bound="yes",
        breach="not verified",
        passes=_per_value(columns.verified, lambda said: said is True),
        value=lambda offer: UNKNOWN if offer.verified is None else _yes(offer.verified),
        nearest=lambda rows: _yes(False) if rows.size else None,
        missing=lambda: _per_value(columns.verified, lambda said: said is None),
    )


def datacenter(columns: Columns, asked: Asked) -> Verdict | None:
    """The market says that the host stands in a datacenter; one that does not say does not."""
    if not asked.requirements.datacenter_only:
        return None
    return Verdict(
        filter="datacenter",
        bound="yes",
        breach="not in a datacenter",
        passes=_per_value(columns.datacenter, lambda said: said is True),
        value=lambda offer: UNKNOWN if offer.datacenter is None else _yes(offer.datacenter),
        nearest=lambda rows: _yes(False) if rows.size else None,
        missing=lambda: _per_value(columns.datacenter, lambda said: said is None),
    )


def gpu_type(columns: Columns, asked: Asked) -> Verdict | None:
    """One of the wanted models, compared by canonical name."""
    wanted = asked.requirements.gpu_models
    if not wanted:
        return None
    return Verdict(
        filter="gpu_type",
        bound=" or ".join(wanted),
        breach=f"GPU not {' or '.join(wanted)}",
        passes=_per_value(columns.gpu, lambda model: model in wanted),
        value=lambda offer: offer.gpu_model,
        nearest=lambda rows: _most_numerous(columns.gpu, rows),
    )


def gpu_count(columns: Columns, asked: Asked) -> Verdict | None:
    """Exactly as many GPUs as asked for, where a number was asked for."""
    wanted = asked.requirements.gpu_count
    if wanted is None:
        return None

    def nearest(rows: Rows) -> str | None:
        counts = columns.gpu_count[rows].astype(int).tolist()
        return str(min(counts, key=lambda n: (abs(n - wanted), n))) if counts else None

    return Verdict(
        filter="gpu_count",
        bound=f"== {wanted}",
        breach=f"GPU count not {wanted}",
        passes=columns.gpu_count == wanted,
        value=lambda offer: str(offer.gpu_count),
        nearest=nearest,
    )


def vram(columns: Columns, asked: Asked) -> Verdict | None:
    """Enough memory per GPU, by the size the model is sold as."""
    least = asked.requirements.min_vram_gib
    return _at_least("vram", columns.vram_gib, least, lambda o: o.vram_gib, " GiB", 2)


def price(columns: Columns, asked: Asked) -> Verdict | None:
    """The all-in price is within the budget; the budget itself is still within it."""
    most = asked.requirements.max_price_usd_per_hour
    if most is None:
        return None

    def nearest(rows: Rows) -> str | None:
        prices = columns.price[rows]
        return format(typed_up(float(prices.min())), "f") if prices.size else None

    return Verdict(
        filter="price",
        bound=f"<= {usd(most)}/h",
        breach=f"price above {usd(most)}/h",
        passes=columns.price <= float(most),
        value=lambda offer: f"{usd(offer.price_usd_per_hour)}/h",
        nearest=nearest,
    )


def reliability(columns: Columns, asked: Asked) -> Verdict | None:
    """The provider's uptime estimate is high enough."""
    least = asked.requirements.min_reliability
    return _at_least("reliability", columns.reliability, least, lambda o: o.reliability, "", 4)


def download(columns: Columns, asked: Asked) -> Verdict | None:
    """The advertised downlink is fast enough."""
    least = asked.requirements.min_download_mbps
    return _at_least(
        "download", columns.download_mbps, least, lambda o: o.download_mbps, " Mbps", 1
    )


def location(columns: Columns, asked: Asked) -> Verdict | None:
    """Within one of the wanted places; an unknown place is within none."""
    wanted = asked.requirements.locations
    if not wanted:
        return None

    def inside(region: Hashable) -> bool:
        return isinstance(region, Region) and any(within(region, token) for token in wanted)

    return Verdict(
        filter="location",
        bound=" or ".join(wanted),
        breach=f"location outside {', '.join(wanted)}",
        passes=_per_value(columns.region, inside),
        value=lambda offer: offer.region.code if offer.region else UNKNOWN,
        nearest=lambda rows: _most_numerous(columns.region, rows),
        missing=lambda: _per_value(columns.region, lambda region: region is None),
    )


def cpus(columns: Columns, asked: Asked) -> Verdict | None:
    """Enough CPU cores."""
    return _at_least(
        "cpus", columns.cpus, asked.requirements.min_cpus, lambda o: o.cpu_cores, "", 2
    )


def ram(columns: Columns, asked: Asked) -> Verdict | None:
    """Enough main memory."""
    least = asked.requirements.min_ram_gib
    return _at_least("ram", columns.ram_gib, least, lambda o: o.ram_gib, " GiB", 1)


def disk(columns: Columns, asked: Asked) -> Verdict | None:
    """The wanted disk can be had; zero asks for none."""
    least = asked.requirements.disk_gib or None
    return _at_least("disk", columns.disk_gib, least, lambda o: o.disk_gib, " GiB", 1)


def ports(columns: Columns, asked: Asked) -> Verdict | None:
    """Enough container ports can be reached from outside; zero asks for none."""
    least = asked.requirements.ports or None
    return _at_least("ports", columns.ports, least, lambda o: o.open_ports, "", 0)


def stale(columns: Columns, asked: Asked) -> Verdict | None:
    """Fetched lately enough: an older offer may be shown, but no money is bet on it."""

    def value(offer: Offer) -> str:
        return f"{math.ceil((asked.at - offer.fetched_at).total_seconds())} s old"

    return Verdict(
        filter="stale",
        bound=f"<= {asked.max_age_s:g} s old",
        breach=f"older than {asked.max_age_s:g} s",
        passes=columns.age_s + asked.elapsed_s <= asked.max_age_s,
        value=value,
    )


FILTERS: tuple[Filter, ...] = (
    provider,
    available,
    kind,
    verified,
    datacenter,
    gpu_type,
    gpu_count,
    vram,
    price,
    reliability,
    download,
    location,
    cpus,
    ram,
    disk,
    ports,
    stale,
)
"""In the order in which they are asked: a rejection names the first that said no."""


def verdicts(columns: Columns, asked: Asked) -> tuple[Verdict, ...]:
    """Return what each bound that is set says, in the order of `FILTERS`."""
    return tuple(said for ask in FILTERS if (said := ask(columns, asked)) is not None)


def usd(amount: Decimal) -> str:
    """Return `$0.50`, or `$0.5004` where hundredths of a cent matter; never rounded down."""
    rounded = amount.quantize(_HUNDREDTH_OF_A_CENT, ROUND_CEILING)
    in_cents = rounded.quantize(_CENT, ROUND_FLOOR)
    return f"${in_cents if rounded == in_cents else rounded.normalize():f}"


def typed_up(price_usd: float) -> Decimal:
    """Return the smallest price a person would type that is not below this one."""
    exact = Decimal(repr(price_usd))
    return exact.quantize(_CENT if exact >= _TEN_CENTS else _HUNDREDTH_OF_A_CENT, ROUND_CEILING)


def floored(value: float | Decimal, places: int) -> str:
    """Return the value cut to so many decimals: what is shown never claims more than there is."""
    exact = value if isinstance(value, Decimal) else Decimal(repr(float(value)))
    if not exact.is_finite():
        return str(exact)
    return format(exact.quantize(Decimal(1).scaleb(-places), ROUND_FLOOR).normalize(), "f")


def _at_least(
    name: str,
    column: NDArray[np.float64],
    least: float | None,
    get: Callable[[Offer], float | None],
    unit: str,
    places: int,
) -> Verdict | None:
    if least is None:
        return None

    def value(offer: Offer) -> str:
        known = get(offer)
        return UNKNOWN if known is None else f"{floored(known, places)}{unit}"

    def nearest(rows: Rows) -> str | None:
        known = column[rows]
        known = known[~np.isnan(known)]
        return floored(float(known.max()), places) if known.size else None

    bound = f"{float(least):.10g}{unit}"
    return Verdict(
        filter=name,
        bound=f">= {bound}",
        breach=f"{name} below {bound}",
        passes=column >= least,
        value=value,
        nearest=nearest,
        missing=lambda: np.isnan(column),
    )


def _per_value(coded: Coded, holds: Callable[[Hashable], bool]) -> Mask:
    """Ask once per distinct value, then spread the answers over the rows."""
    answers: Mask = np.array([holds(value) for value in coded.values], np.bool_)[coded.codes]
    return answers


def _most_numerous(coded: Coded, rows: Rows) -> str | None:
    counts = np.bincount(coded.codes[rows], minlength=len(coded.values)).tolist()
    seen = [
        (-count, value.code if isinstance(value, Region) else str(value))
        for value, count in zip(coded.values, counts, strict=True)
        if count and value is not None
    ]
    return ", ".join(text for _, text in sorted(seen)[:_SHOWN_VALUES]) or None


def _kind(interruptible: bool) -> str:
    return "interruptible" if interruptible else "on demand"


def _yes(said: bool) -> str:
    return "yes" if said else "no"
