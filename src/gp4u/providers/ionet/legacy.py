"""The seed's dialect of io.net: Bearer key, one list of devices; quoted, and never rented from.

What this file hides: which of the two dialects an account is spoken to in, and the older one. No
document of the market describes that one; it is kept because settings of old name its address. It
has no list of what an account holds, so nothing that it rented could be found again.

Source: the project's first seed, and the table in `docs/reference/ionet.md`; checked 2026-11.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Final
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from gp4u import gpus, places
from gp4u.clock import Clock
from gp4u.errors import BadInput, Malformed, Refused
from gp4u.model import Listing, Offer, RentalKey, Workload
from gp4u.providers.contract import (
    Ability,
    Account,
    Call,
    Choose,
    OfferPage,
    Provider,
    ProviderSpec,
    Query,
)
from gp4u.providers.http import Http, decode, harmless, rows
from gp4u.providers.ionet.order import SLUG

FLAVORS: Final = ("auto", "caas", "vmaas", "legacy")
MOST_ROWS: Final = 1000
MOST_USD_PER_HOUR: Final = Decimal(10_000)
_CANNOT_RENT: Final = "this dialect cannot list what it rented; unset IONET_BASE_URL to rent"


def dialect(flavor: str, base_url: str) -> str:
    """Return what is spoken: `caas`, `vmaas`, `legacy`, or `auto` for both products.

    Raises:
        BadInput: no such flavour.
    """
    if flavor not in FLAVORS:
        raise BadInput("IONET_API_FLAVOR", flavor, f"must be one of {', '.join(FLAVORS)}")
    host = urlsplit(base_url).hostname
    return "legacy" if flavor == "auto" and host == "api.io.net" else flavor


def headers(key: str, flavor: str, base_url: str) -> Mapping[str, str]:
    """Return what carries the key."""
    carried = {"x-api-key": key}
    if dialect(flavor, base_url) == "legacy":
        carried["authorization"] = f"Bearer {key}"
    return carried


class Device(msgspec.Struct, gc=False):
    """One machine of the list."""

    device_id: Annotated[str, Meta(min_length=1, max_length=128)]
    gpu_model: Annotated[str, Meta(min_length=1, max_length=256)]
    price_per_hour: Decimal
    gpu_memory: float | None = None
    """GB."""
    provider_reputation: float | None = None
    """0..1, or 0..100."""
    availability: str | None = None
    location: Annotated[str, Meta(max_length=256)] | None = None
    bandwidth_gbps: float | None = None


class _Devices(msgspec.Struct):
    devices: list[msgspec.Raw]


class IoNetLegacy(Provider):
    """An account in the seed's dialect; quote-only."""

    def __init__(self, http: Http, *, base_url: str, clock: Clock, spec: ProviderSpec) -> None:
        """`spec` is the market's; of its abilities this dialect has none."""
        self._http, self._clock, self._root = http, clock, base_url.rstrip("/")
        self.spec: ProviderSpec = msgspec.structs.replace(  # type: ignore[misc]  # one class, told its facts
            spec, can=Ability.NONE, quoted_only=f"is quoted only: {_CANNOT_RENT}"
        )

    async def ping(self) -> Account:
        await self._devices("ping", 1)
        return Account()

    async def offers(self, query: Query) -> OfferPage:
        del query  # the dialect has no filters beyond the two that are always set
        found, bad = rows(await self._devices("offers", MOST_ROWS), Device)
        if bad > len(found):
            raise Malformed(SLUG, "offers", f"{bad} rows break the schema")
        at = self._clock.now()
        offers = tuple(offer for row in found if (offer := _to_offer(row, at)) is not None)
        return OfferPage(
            offers=offers,
            complete=len(found) + bad < MOST_ROWS,
            skipped_rows=bad + len(found) - len(offers),
        )

    def rent_calls(self, offer: Offer, workload: Workload, key: RentalKey) -> tuple[Call, ...]:
        """Raise.

        Raises:
            BadInput: always.
        """
        del offer, workload, key
        raise BadInput("IONET_API_FLAVOR", "legacy", _CANNOT_RENT)

    async def rent(
        self, offer: Offer, workload: Workload, key: RentalKey, *, choose: Choose | None = None
    ) -> str:
        del offer, workload, key, choose
        raise Refused(SLUG, "rent", _CANNOT_RENT, code="unlabelled")

    async def instances(self) -> Listing:
        """Return nothing, and that it proves nothing."""
        return Listing(
            provider=SLUG,
            instances=(),
            complete=False,
            began_at=self._clock.now(),
            why_incomplete=_CANNOT_RENT,
        )

    async def release(self, instance_id: str) -> None:
        raise Refused(SLUG, "release", f"{instance_id}: {_CANNOT_RENT}", code="unsupported")

    async def logs(
        self, instance_id: str, *, tail: int = 1000, container: str | None = None
    ) -> str:
        del tail, container
        raise Refused(SLUG, "logs", f"{instance_id}: {_CANNOT_RENT}", code="unsupported")

    async def aclose(self) -> None:
        await self._http.aclose()

    async def _devices(self, operation: str, limit: int) -> list[msgspec.Raw]:
        params = {"status": "available", "verified": "true", "limit": str(limit)}
        call = Call(method="GET", url=f"{self._root}/devices")
        body = await self._http.send(operation, call, safe=True, params=params)
        return decode(SLUG, operation, body, _Devices).devices


def _to_offer(row: Device, at: datetime) -> Offer | None:
    usd, vram = row.price_per_hour, row.gpu_memory
    known = vram is not None and 0 < vram < 4096
    gpu = gpus.canonical(row.gpu_model, vram * 1024 if vram and known else None)
    if not (usd.is_finite() and 0 < usd <= MOST_USD_PER_HOUR) or (gpu is None and not known):
        return None
    reputation = row.provider_reputation
    if reputation is not None and 1 < reputation <= 100:
        reputation /= 100
    speed = row.bandwidth_gbps
    return Offer(
        provider=SLUG,
        offer_id=f"device:{harmless(row.device_id)}",
        gpu_model=gpu.model if gpu else harmless(row.gpu_model),
        gpu_count=1,
        vram_gib=gpu.vram_gib if gpu else float(vram or 0),
        price_usd_per_hour=+usd,
        gpu_usd_per_hour=+usd,
        storage_usd_per_hour=Decimal(0),
        fetched_at=at,
        region=places.parse(row.location),
        reliability=reputation if reputation is not None and 0 <= reputation <= 1 else None,
        download_mbps=speed * 1000 if speed is not None and 0 <= speed < 10**6 else None,
        machine_id=harmless(row.device_id),
        verified=True,  # the list was asked for verified devices only
        available=(row.availability or "available").lower() == "available",
    )
