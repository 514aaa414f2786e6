"""Vast.ai's search: which questions a demand becomes, in the market's filter language.

What this file hides: operators, units and names of the market's fields. Pure; which page is asked
for next is `adapter.py`'s part, what a row means `replies.py`'s.

Source: `docs/reference/vastai.md`, search; checked 2026-11.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from gp4u import gpus, places
from gp4u.model import Requirements
from gp4u.providers.vastai.replies import MIN_DISK_GB

PAGE_OFFERS: Final = 64
"""Rows one search answers at most, whatever is asked (vastai.md 3.2, seen live 2026-09)."""
MAX_GROUPS: Final = 3
LEAST_REPORTED: Final = 0.93
"""A driver reports down to this share of the memory that is sold: 23,034 MB of 24 GiB."""


def groups(models: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Return the models by search: one each while the budget of calls allows, the rest together."""
    if not models:
        return [()]
    if len(models) <= MAX_GROUPS:
        return [(model,) for model in models]
    head = [(model,) for model in models[: MAX_GROUPS - 1]]
    return [*head, models[MAX_GROUPS - 1 :]]


def sold_names(models: Iterable[str]) -> list[str]:
    """Return every name under which the market sells one of these models."""
    return sorted({name for model in models for name in gpus.sold_names(model)})


def search_body(wanted: Requirements, names: Iterable[str]) -> dict[str, object]:
    """Return the wide search: what the demand is about, without its bounds.

    `names` are GPU names as the market spells them; none: any GPU.
    """
    body: dict[str, object] = {
        "rentable": {"eq": True},
        "rented": {"eq": False},
        "external": {"eq": False},
        "order": [["dph_total", "asc"]],
        "type": "bid" if wanted.interruptible else "on-demand",
        "limit": PAGE_OFFERS,
        "allocated_storage": float(max(wanted.disk_gib, MIN_DISK_GB)),
    }
    if wanted.gpu_count is not None:
        body["num_gpus"] = {"eq": wanted.gpu_count}
    if wanted.verified_only:
        body["verified"] = {"eq": True}
    if wanted.datacenter_only:
        body["datacenter"] = {"eq": True}
    if names:
        body["gpu_name"] = {"in": list(names)}
    return body


def narrow(body: Mapping[str, object], wanted: Requirements) -> dict[str, object]:
    """Return the search with every bound that the market can apply. Each hit is checked again."""
    bounds: dict[str, object] = {
        "disk_space": {"gte": float(max(wanted.disk_gib, MIN_DISK_GB))},
    }
    if wanted.max_price_usd_per_hour is not None:
        bounds["dph_total"] = {"lte": float(wanted.max_price_usd_per_hour)}
    if wanted.min_vram_gib is not None:
        bounds["gpu_ram"] = {"gte": round(wanted.min_vram_gib * 1024 * LEAST_REPORTED)}
    if wanted.min_reliability is not None:
        bounds["reliability"] = {"gte": wanted.min_reliability}
    if wanted.min_download_mbps is not None:
        bounds["inet_down"] = {"gte": wanted.min_download_mbps}
    if wanted.min_cpus is not None:
        bounds["cpu_cores_effective"] = {"gte": wanted.min_cpus}
    if wanted.min_ram_gib is not None:
        # The machine's; our share of it is smaller, and is told apart here.
        bounds["cpu_ram"] = {"gte": int(wanted.min_ram_gib * 1024)}
    if wanted.ports:
        bounds["direct_port_count"] = {"gte": wanted.ports}
    if wanted.locations:
        bounds["geolocation"] = {"in": list(places.countries(wanted.locations))}
    return {**body, **bounds}
