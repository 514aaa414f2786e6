"""Dispersed's view of the supply: offers as descriptions of capacity, GPU types, region codes.

Hides that an offer is not a thing one can book: it says what machines there are, and a job states
minimums. Which node a job then gets is decided here as well: the cheapest that has enough of
everything. Pure readings of the world.

Source: `docs/reference/render.md`, offers and creating a job; which node is chosen is inferred.
Checked 2026-11.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal

import msgspec

from gp4u.sim.market import Gpu, Machine, Slice
from gp4u.sim.render.gate import refusal
from gp4u.sim.render.order import JobOrder
from gp4u.sim.world import World

Row = dict[str, object]

_NEAREST = {
    "US": "us-east-1",
    "CA": "ca-central-1",
    "DE": "eu-central-1",
    "NL": "eu-central-1",
    "PL": "eu-central-1",
    "CZ": "eu-central-1",
    "HU": "eu-central-1",
    "UA": "eu-central-1",
    "SE": "eu-north-1",
    "NO": "eu-north-1",
    "FI": "eu-north-1",
    "FR": "eu-west-3",
    "GB": "eu-west-2",
    "IS": "eu-west-1",
    "ES": "eu-south-2",
    "IT": "eu-south-1",
    "BG": "eu-south-1",
    "JP": "ap-northeast-1",
    "KR": "ap-northeast-2",
    "TW": "ap-east-2",
    "VN": "ap-southeast-1",
    "SG": "ap-southeast-1",
    "IN": "ap-south-1",
    "CN": "ap-east-1",
    "IL": "il-central-1",
    "AE": "me-central-1",
    "AU": "ap-southeast-2",
    "BR": "sa-east-1",
    "ZA": "af-south-1",
}
_NEAREST_IN_US = {
    "California": "us-west-1",
    "Washington": "us-west-2",
    "Oregon": "us-west-2",
    "Utah": "us-west-2",
    "Texas": "us-east-2",
}
_FILTERS = frozenset(
    f"filter[{name}]"
    for name in (
        "cpu_count",
        "gpu_count",
        "gpu_name",
        "gpu_registry_uuid",
        "min_vram_gb",
        "min_ram_gb",
        "min_storage_gb",
        "allowed_region_codes",
    )
)
_PAGING = frozenset(("page", "limit", "sort"))


class Node(msgspec.Struct, frozen=True):
    """A machine, or a part of one, that a job can be put on."""

    machine: Machine
    part: Slice

    @property
    def share(self) -> float:
        """Of the machine that comes with these GPUs, 0..1."""
        return len(self.part.gpus) / self.machine.gpu_count

    @property
    def cpu_cores(self) -> int:
        return max(1, int(self.machine.cpu_cores * self.share))

    @property
    def ram_gib(self) -> float:
        return round(self.machine.ram_mb / 1024 * self.share, 2)

    @property
    def storage_gib(self) -> float:
        return round(self.machine.disk_gb * self.share, 1)

    @property
    def vram_gib(self) -> float:
        return round(self.machine.gpu.ram_mb / 1024, 2)

    @property
    def usd_per_hour(self) -> Decimal:
        """Of the whole node."""
        return self.machine.usd_per_gpu_hour * len(self.part.gpus)

    @property
    def region(self) -> str:
        return region_code(self.machine.place)


def free_nodes(world: World) -> Iterator[Node]:
    """Yield what a job could be put on now."""
    for machine, part, free in world.offers():
        if free and machine.gpu.arch == "nvidia":
            yield Node(machine, part)


def node_for(world: World, order: JobOrder) -> Node | None:
    """Return the cheapest node that has enough of everything, or None."""
    fitting = [node for node in free_nodes(world) if _fits(node, order)]
    return min(fitting, key=lambda n: (n.usd_per_hour, n.part.offer_id), default=None)


def larger_node_for(world: World, order: JobOrder) -> Node | None:
    """Return a node with more GPUs than asked for, of the same type where there is one."""
    larger = [n for n in free_nodes(world) if len(n.part.gpus) > max(order.gpu_count, 1)]
    return min(
        larger,
        key=lambda n: (not _is_wanted(n.machine.gpu, order), n.usd_per_hour, n.part.offer_id),
        default=None,
    )


def region_code(place: str | None) -> str:
    """Return the code that a place is sorted under."""
    state, _, country = (place or "").rpartition(", ")
    if country == "US":
        return _NEAREST_IN_US.get(state, "us-east-1")
    if state == "British Columbia":
        return "ca-west-1"
    return _NEAREST.get(country, "us-east-1")


def registry_uuid(gpu: Gpu) -> str:
    """Return the id of a GPU type, the same in every world."""
    return str(uuid.uuid5(uuid.NAMESPACE_OID, f"{gpu.name}/{gpu.ram_mb}"))


def registry_rows(world: World) -> list[Row]:
    """Return every GPU type there is."""
    kinds = {registry_uuid(m.gpu): m.gpu for m in world.machines if m.gpu.arch == "nvidia"}
    return [
        {"uuid": ident, "name": gpu.name, "vram_gb": round(gpu.ram_mb / 1024, 2)}
        for ident, gpu in sorted(kinds.items())
    ]


def offered(world: World, query: dict[str, str]) -> list[Node]:
    """Return what a query finds, oldest first or, by `-created_at`, newest first.

    Raises:
        CallRefusedError: a parameter is unknown or no number.
    """
    others = sorted(query.keys() - _FILTERS - _PAGING)
    if others:
        raise refusal(400, "validation_error", f"unknown parameter {others[0]}")
    nodes = [node for node in free_nodes(world) if _matches(node, query)]
    nodes.sort(key=lambda n: n.part.offer_id, reverse=query.get("sort") == "-created_at")
    return nodes


def stamp(epoch_s: float) -> str:
    """Return a time as the service writes it."""
    return datetime.fromtimestamp(epoch_s, UTC).isoformat(timespec="milliseconds")[:-6] + "Z"


def offer_row(node: Node, quoted_at: str) -> Row:
    """Return what a node is offered as."""
    gpu, count = node.machine.gpu, len(node.part.gpus)
    return {
        "offer_id": f"off_{node.part.offer_id}",
        "availability": {},
        "hardware_summary": {
            "cpu_cores": node.cpu_cores,
            "ram_gib": node.ram_gib,
            "storage_gib": node.storage_gib,
            "gpu_count": count,
            "gpu_model_label": f"NVIDIA {gpu.name}",
            "gpu_registry_uuid": registry_uuid(gpu),
            "min_gpu_vram_gib": node.vram_gib,
            "gpu_models": [
                {
                    "name": gpu.name,
                    "count": count,
                    "min_vram_gib": node.vram_gib,
                    "gpu_registry_uuid": registry_uuid(gpu),
                }
            ],
        },
        "pricing": {"hourly_rate_usd": float(node.usd_per_hour), "quoted_at": quoted_at},
        "region_code": node.region,
    }


def _fits(node: Node, order: JobOrder) -> bool:
    return (
        len(node.part.gpus) == order.gpu_count
        and _is_wanted(node.machine.gpu, order)
        and node.cpu_cores >= order.cpu_count
        and node.ram_gib >= order.ram_gb
        and node.storage_gib >= order.storage_gb
        and node.vram_gib >= order.vram_gb
        and (not order.regions or node.region in order.regions)
    )


def _is_wanted(gpu: Gpu, order: JobOrder) -> bool:
    if order.registry_uuid is not None:
        return registry_uuid(gpu) == order.registry_uuid
    return order.gpu_name is None or _same_name(order.gpu_name, gpu)


def _same_name(name: str, gpu: Gpu) -> bool:
    return name.upper().removeprefix("NVIDIA ").strip() == gpu.name.upper()


def _matches(node: Node, query: dict[str, str]) -> bool:
    exact = {"gpu_count": float(len(node.part.gpus))}
    at_least = {
        "cpu_count": float(node.cpu_cores),
        "min_vram_gb": node.vram_gib,
        "min_ram_gb": node.ram_gib,
        "min_storage_gb": node.storage_gib,
    }
    for name, has in {**exact, **at_least}.items():
        wanted = _numbers(query.get(f"filter[{name}]", ""))
        if len(wanted) == 2 and not wanted[0] <= has <= wanted[1]:
            return False
        if len(wanted) == 1 and (has != wanted[0] if name in exact else has < wanted[0]):
            return False
    uuids, sold_as = query.get("filter[gpu_registry_uuid]"), query.get("filter[gpu_name]")
    regions = query.get("filter[allowed_region_codes]")
    return (
        (uuids is None or registry_uuid(node.machine.gpu) in uuids.split(","))
        and (sold_as is None or _same_name(sold_as, node.machine.gpu))
        and (regions is None or node.region in regions.split(","))
    )


def _numbers(text: str) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")] if text else []
    except ValueError:
        numbers = [0.0, 0.0, 0.0]
    if len(numbers) > 2:
        raise refusal(400, "validation_error", f"{text!r} is not a number or a range")
    return numbers
