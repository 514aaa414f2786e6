"""Dispersed's supply: rows of its offers as offers of ours, and what of one a job can be tied to.

What this file hides: the wire types of an offer, the market's region codes, and that an offer
cannot be booked: a job states minimums, so the id that we show carries what pins a job to the
offer. All of it is pure. `parse_offers` turns whole bodies into offers, `to_offers` rows one by
one, for a caller that gives others their turn in between; the pages are asked for by `adapter.py`.

Source: `docs/reference/render.md`, offers, which names the document behind each fact; checked
2026-11.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from functools import lru_cache
from typing import Annotated, Final, NamedTuple

import msgspec
from msgspec import Meta

from gp4u import gpus
from gp4u.model import Offer, Region
from gp4u.providers.contract import OfferPage
from gp4u.providers.http import harmless
from gp4u.providers.render.paging import parse_page
from gp4u.providers.render.wire import SLUG, Word, usd_per_hour

MAX_PORTS: Final = 20
"""Ports we ask for at most; the market names no bound."""
_NOTHING: Final = Decimal(0)
_MOST: Final = 1e6
"""No machine has so many GB or cores; beyond it stands another unit, or nonsense."""


class GpuKind(msgspec.Struct, frozen=True, gc=False):
    """One kind of GPU in a machine."""

    name: Word | None = None
    gpu_registry_uuid: Word | None = None
    min_vram_gib: float | None = None


class Hardware(msgspec.Struct):
    """The machine behind an offer; GPUs without a count are no offer of ours."""

    gpu_count: Annotated[int, Meta(ge=0, le=4096)]
    gpu_model_label: Word | None = None
    gpu_registry_uuid: Word | None = None
    min_gpu_vram_gib: float | None = None
    """Per GPU, of the smallest in the machine."""
    gpu_models: list[GpuKind] | None = None
    cpu_cores: float | None = None
    ram_gib: float | None = None
    storage_gib: float | None = None


class Pricing(msgspec.Struct, gc=False):
    """What the whole described machine costs."""

    hourly_rate_usd: Decimal


class ListedOffer(msgspec.Struct):
    """One row of `GET /v1/compute/offers`."""

    offer_id: Annotated[str, Meta(max_length=128, pattern=r"^[!-~]+\Z")]
    hardware_summary: Hardware
    pricing: Pricing
    region_code: Word | None = None


# What the operator of the region names says of where each lies. A node is a private machine that
# was sorted under the nearest code, so the state is where its region is, not more.
_PLACES: Final = """
    us-east-1 US VA; us-east-2 US OH; us-west-1 US CA; us-west-2 US OR; us-gov-east-1 US OH;
    us-gov-west-1 US OR; ca-central-1 CA; ca-west-1 CA; mx-central-1 MX; sa-east-1 BR;
    eu-central-1 DE; eu-central-2 CH; eu-west-1 IE; eu-west-2 GB; eu-west-3 FR; eu-south-1 IT;
    eu-south-2 ES; eu-north-1 SE; il-central-1 IL; me-central-1 AE; me-south-1 BH; af-south-1 ZA;
    ap-east-1 HK; ap-east-2 TW; ap-south-1 IN; ap-south-2 IN; ap-southeast-1 SG; ap-southeast-2 AU;
    ap-southeast-3 ID; ap-southeast-4 AU; ap-southeast-5 MY; ap-southeast-6 NZ; ap-southeast-7 TH;
    ap-northeast-1 JP; ap-northeast-2 KR; ap-northeast-3 JP; cn-north-1 CN; cn-northwest-1 CN
"""
REGIONS: Final[Mapping[str, Region]] = {
    words[0]: Region(*words[1:]) for words in (entry.split() for entry in _PLACES.split(";"))
}
"""Region code to place. Source: AWS documentation, "Regions and Zones", checked 2026-11."""


class Pin(NamedTuple):
    """What of an offer a job can be tied to: jobs are not made from offer ids.

    The offer id that we show and keep is `offer@region_code/gpu_registry_uuid`.
    """

    offer: str
    region_code: str
    gpu_registry_uuid: str


_TAIL: Final = r"@([a-z0-9-]{1,40})/([\w.-]{1,64})"
_GOOD_TAIL: Final = re.compile(_TAIL, re.ASCII)
_PIN: Final = re.compile(rf"([!-~]+){_TAIL}", re.ASCII)


def pin_of(offer_id: str) -> Pin | None:
    """Read a pin out of an offer id; None for an offer that no job can be tied to."""
    match = _PIN.fullmatch(offer_id)
    return Pin(match[1], match[2], match[3]) if match else None


def parse_offers(bodies: Iterable[bytes], at: datetime) -> OfferPage:
    """Return the offers in the bodies of a list's pages, in their order; `at` is when they came.

    Raises:
        Malformed: a body is no page, or more than half of its rows are bad.
    """
    offers: list[Offer] = []
    bad = 0
    for body in bodies:
        page = parse_page(SLUG, "offers", body, ListedOffer)
        found = [offer for offer in to_offers(page.rows, at) if offer is not None]
        bad += page.bad + len(page.rows) - len(found)
        offers += found
    return OfferPage(offers=tuple(offers), skipped_rows=bad)


def to_offers(rows: Iterable[ListedOffer], at: datetime) -> Iterator[Offer | None]:
    """Yield each row as an offer; None for one without GPU, with mixed GPUs, or without a price.

    The whole rate is `storage_usd_per_hour`: it runs from creation to the end, in any state.

    `verified` is True although a node is a private person's machine that nobody is known to have
    checked: the market sells under its own name, picks the node itself and tells no host from
    another, so there is nothing to choose by. False or None would hide the whole market from
    everybody who has not asked for unverified hosts.
    """
    for row in rows:
        hardware, usd = row.hardware_summary, usd_per_hour(row.pricing.hourly_rate_usd)
        kind = _only(hardware.gpu_models)
        if usd is None or hardware.gpu_count < 1 or kind is None:
            yield None
            continue
        name = kind.name or hardware.gpu_model_label
        vram = positive(hardware.min_gpu_vram_gib) or positive(kind.min_vram_gib)
        gpu = card_of(name, vram) if name else None
        if gpu is None:
            yield None
            continue
        code = row.region_code or ""
        tail = _tail_if_good(code, hardware.gpu_registry_uuid or kind.gpu_registry_uuid or "")
        yield Offer(
            provider=SLUG,
            offer_id=row.offer_id + tail,
            gpu_model=gpu[0],
            gpu_count=hardware.gpu_count,
            vram_gib=gpu[1],
            price_usd_per_hour=usd,
            gpu_usd_per_hour=_NOTHING,
            storage_usd_per_hour=usd,
            fetched_at=at,
            region=REGIONS.get(code),
            cpu_cores=positive(hardware.cpu_cores),
            ram_gib=positive(hardware.ram_gib),
            disk_gib=positive(hardware.storage_gib),
            open_ports=MAX_PORTS,
            verified=True,
            available=tail != "",
        )


def positive(amount: float | None) -> float | None:
    """Return an amount that can be one; None for none, or for what no machine has."""
    return amount if amount is not None and 0 < amount < _MOST else None


_UNSAID: Final = GpuKind()


def _only(kinds: Sequence[GpuKind] | None) -> GpuKind | None:
    """Return the one kind of GPU in a machine, which may say nothing; None where they are mixed."""
    if not kinds:
        return _UNSAID
    first = kinds[0]
    if len(kinds) > 1 and any(_kind(each) != _kind(first) for each in kinds):
        return None
    return first


def _kind(gpu: GpuKind) -> tuple[str | None, str | None]:
    return gpu.gpu_registry_uuid, gpu.name


@lru_cache(maxsize=4096)
def card_of(name: str, vram_gib: float | None) -> tuple[str, float] | None:
    """Return model and GiB of a card as it is sold; None where its memory cannot be told."""
    gpu = gpus.canonical(name, None if vram_gib is None else vram_gib * 1024)
    if gpu is not None:
        return gpu.model, gpu.vram_gib
    return None if vram_gib is None else (harmless(name), vram_gib)


@lru_cache(maxsize=8192)
def _tail_if_good(region_code: str, gpu_registry_uuid: str) -> str:
    """Return what makes an offer's id a pin; empty where no job can be tied to it."""
    tail = f"@{region_code}/{gpu_registry_uuid}"
    return tail if _GOOD_TAIL.fullmatch(tail) else ""
