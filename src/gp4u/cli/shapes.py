"""The stable keys: how an offer, an endpoint and a rental look as JSON, and money as a string.

Programs are built on these, so a key that was published stays. Unknown is null, money is a string
that keeps its zeroes, stamps are ISO 8601 in UTC. The shape of a decision is its own
(`selection/decide.py`).
"""

from __future__ import annotations

from datetime import datetime
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Any, Final

from gp4u.model import Endpoint, Instance, Offer
from gp4u.rentals import rental as rentals
from gp4u.rentals.rental import Rental
from gp4u.telemetry import clean

MICRO_DOLLAR: Final = Decimal("0.000001")
"""A few seconds of a cheap machine cost some millionths."""


def money(amount: Decimal) -> str:
    """Return dollars to the micro-dollar, as a string that keeps the zeroes."""
    return f"{amount.quantize(MICRO_DOLLAR, rounding=ROUND_HALF_EVEN):f}"


def offer_json(offer: Offer) -> dict[str, object]:
    """Return an offer with the stable keys of `offers -o json`; unknown is null."""
    from gp4u.selection.gscore import g_score  # only where offers are shown

    score = g_score(offer)
    return {
        "provider": offer.provider,
        "offer_id": offer.offer_id,
        "gpu_model": offer.gpu_model,
        "gpu_count": offer.gpu_count,
        "vram_gib": offer.vram_gib,
        "price_usd_per_hour": money(offer.price_usd_per_hour),
        "region": offer.region.code if offer.region else None,
        "country": offer.region.country if offer.region else None,
        "reliability": offer.reliability,
        "download_mbps": offer.download_mbps,
        "interruptible": offer.interruptible,
        "g_score": round(score.score, 1) if score else None,
        "g_score_parts": score.parts if score else None,
        "fetched_at": offer.fetched_at.isoformat(),
        "gpu_usd_per_hour": money(offer.gpu_usd_per_hour),
        "storage_usd_per_hour": money(offer.storage_usd_per_hour),
        "upload_mbps": offer.upload_mbps,
        "cpu_cores": offer.cpu_cores,
        "ram_gib": offer.ram_gib,
        "disk_gib": offer.disk_gib,
        "open_ports": offer.open_ports,
        "machine_id": offer.machine_id,
        "host_id": offer.host_id,
        "verified": offer.verified,
        "datacenter": offer.datacenter,
        "estimated": offer.estimated,
    }


def address(endpoint: Endpoint) -> str:
    """Return `host:port`, with brackets around an IPv6 address."""
    host = clean(endpoint.host, 100)
    return f"[{host}]:{endpoint.port}" if ":" in host else f"{host}:{endpoint.port}"


def endpoint_json(endpoint: Endpoint) -> dict[str, object]:
    """Return an endpoint with its address and, for tcp, a URL."""
    return {
        "port": endpoint.container_port,
        "protocol": str(endpoint.protocol),
        "address": address(endpoint),
        "url": f"http://{address(endpoint)}" if endpoint.protocol == "tcp" else None,
    }


def rental_json(rental: Rental, at: datetime) -> dict[str, Any]:
    """Return a rental with the stable keys of `rent`, `ps` and `release`."""
    return {
        "key": rental.key,
        "state": str(rental.state),
        "endpoints": [endpoint_json(e) for e in rental.endpoints] if rental.is_live else [],
        "owner": rental.owner,
        "provider": rental.provider,
        "offer_id": rental.offer_id,
        "instance_id": rental.instance_id,
        "gpu_model": rental.gpu_model,
        "gpu_count": rental.gpu_count,
        "region": rental.region,
        "image": rental.workload.image,
        "price_usd_per_hour": money(rental.price_usd_per_hour),
        "estimated": rental.estimated,
        "cost_usd": money(rentals.cost_usd(rental, at=at)),
        "paid_until": rental.paid_until.isoformat() if rental.paid_until else None,
        "reason": rental.reason or None,
        "seen": str(rental.seen) if rental.seen else None,
        "status": clean(rental.seen_status) or None,
        "intended_at": rental.intended_at.isoformat(),
        "running_at": rental.running_at.isoformat() if rental.running_at else None,
        "released_at": rental.released_at.isoformat() if rental.released_at else None,
    }


def unexplained_json(
    provider: str, instance: Instance, state: str, key: str | None
) -> dict[str, Any]:
    """Return an instance that no rental explains: `state` is `orphan` or `foreign`."""
    price = instance.price_usd_per_hour
    orphan = state == "orphan"
    return {
        "key": clean(key, 100) if key else None,
        "state": state,
        "endpoints": [],
        "provider": provider,
        "instance_id": instance.instance_id,
        "price_usd_per_hour": None if price is None else money(price),
        "seen": str(instance.state),
        "note": "nothing explains it: gp4u sweep" if orphan else "another installation's",
    }
