"""What io.net sells and for how much: the catalogues, locations and prices, and the seed's list.

Hides the reads that need no account of what somebody holds, and how a fee comes on top of a price.
Which machines stand behind a row is `supply.py`'s part.

Source: io.net/docs/reference/caas (price-estimation, available-replicas, check-maximum-gpus-per-
container) and vmaas (get-hardware-list, get-deployment-price), as restated in
docs/reference/ionet.md; checked 2026-11.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from decimal import Decimal

from starlette.responses import Response

from gp4u.sim.gate import Call, Handler
from gp4u.sim.ionet.gate import IoNetSettings, answer, invalid, refused, reply
from gp4u.sim.ionet.supply import Configuration, Row, Supply
from gp4u.sim.world import World

_BOUNDS = {
    "gpu_memory": ("vram_per_card", 1),
    "cpu_cores": ("vcpu", 1),
    "device_memory": ("memory", 1000),
    "storage": ("storage", 1000),
}
"""Filter to the field it bounds, and how many of the filter's units make one of the field's: two
filters are documented in MB, over fields that are in GB."""
_MOST = 10**12


class Sales:
    """The handlers of everything that can be asked before renting."""

    def __init__(self, world: World, supply: Supply, settings: IoNetSettings) -> None:
        self._world, self._supply, self._settings = world, supply, settings

    def calls(self) -> list[tuple[str, str, str, Handler]]:
        """Return (method, path below a root, endpoint, handler) of what needs a key."""
        return [
            ("GET", "/caas/hardware/max-gpus-per-container", "max_gpus", self._max_gpus),
            ("GET", "/caas/available-replicas", "replicas", self._replicas),
            ("GET", "/caas/price", "price", self._container_price),
            ("GET", "/vmaas/price", "price", self._machine_price),
        ]

    def public_calls(self) -> list[tuple[str, str, str, Handler]]:
        """Return the same of what the console's root shows to anybody."""
        return [
            ("GET", "/caas/hardware", "catalogue", self._catalogue),
            ("GET", "/caas/locations", "locations", self._locations),
            ("GET", "/vmaas/hardware", "shapes", self.machine_hardware),
        ]

    async def _catalogue(self, call: Call) -> Response:
        del call
        rows = self._supply.container_rows()
        if self._settings.plain_catalogue:
            return reply(rows)
        return answer(self._settings, {"hardware": rows, "total": 0})

    async def machine_hardware(self, call: Call) -> Response:
        rows = self._supply.machine_rows()
        query = call.request.query_params
        if wanted := query.getlist("gpu"):
            rows = [row for row in rows if row["name"] in wanted]
        if regions := query.getlist("regions"):
            rows = [row for row in rows if row["location"] in regions]
        if supplier := query.get("supplier"):
            rows = [row for row in rows if row["supplier"] == supplier]
        for name, (field, unit) in _BOUNDS.items():
            least = count_of(query, f"{name}_min", 0, least=0, most=_MOST)
            most = count_of(query, f"{name}_max", _MOST, least=0, most=_MOST)
            rows = [row for row in rows if least <= int(str(row[field])) * unit <= most]
        return answer(self._settings, {"hardware": rows})

    async def _locations(self, call: Call) -> Response:
        del call
        rows = [self._place(country) for country in self._supply.places]
        return answer(self._settings, {"locations": rows, "total": len(rows)})

    def _place(self, country: str, **more: object) -> Row:
        number = self._supply.places[country]
        return {"id": number, "name": country, "iso2": country, **(more or {"available": 1})}

    async def _max_gpus(self, call: Call) -> Response:
        del call
        best: dict[object, Configuration] = {}
        for each in self._supply.configurations:
            known = best.setdefault(each.hardware_id, each)
            best[each.hardware_id] = max(known, each, key=lambda c: c.gpus)
        rows = [
            {
                "hardware_id": hardware_id,
                "hardware_name": each.title,
                "brand_name": each.brand,
                "max_gpus_per_container": each.gpus,
                "available": len(self._supply.slices(each)),
            }
            for hardware_id, each in best.items()
        ]
        return answer(self._settings, {"hardware": rows, "total": len(rows)})

    async def _replicas(self, call: Call) -> Response:
        query = call.request.query_params
        hardware, count = _hardware_id(query.get("hardware_id")), count_of(query, "hardware_qty")
        rows = []
        for country in self._supply.places:
            found = self._supply.find(hardware, count, country)
            if found is not None:
                left = len(self._supply.slices(found))
                rows.append(self._place(country, available_replicas=left))
        return answer(self._settings, rows)

    async def _container_price(self, call: Call) -> Response:
        query = call.request.query_params
        replicas = count_of(query, "replica_count")
        found, hours = self._asked(query, "gpus_per_container")
        return answer(
            self._settings,
            {
                "replica_count": replicas,
                "gpus_per_container": found.gpus,
                "available_replica_count": [len(self._supply.slices(found))],
                "discount": 0,
                **self._fees(found, hours * replicas),
            },
        )

    async def _machine_price(self, call: Call) -> Response:
        query = call.request.query_params
        if query.get("currency", "usdc") not in ("usdc", "iocoin"):
            raise refused(422, "currency")
        found, hours = self._asked(query, "gpus_per_vm")
        left = [len(self._supply.slices(found))]
        return answer(
            self._settings,
            {"gpus_per_vm": found.gpus, "available_replica_count": left} | self._fees(found, hours),
        )

    def _asked(self, query: Mapping[str, str], gpus: str) -> tuple[Configuration, int]:
        try:
            places = json.loads(query.get("location_ids", ""))
        except ValueError:
            places = None
        if not isinstance(places, list) or len(places) != 1:
            raise refused(422, "location_ids must be a JSON list of locations")
        country = self._supply.country(places[0]) or ""
        hardware = _hardware_id(query.get("hardware_id"))
        found = self._supply.find(hardware, count_of(query, gpus), country)
        if found is None:
            raise refused(404, "Hardware not found")
        return found, count_of(query, "duration_hours")

    def _fees(self, found: Configuration, hours: int) -> Row:
        percent, usd = self._settings.fee_percent, found.usd_per_hour * hours
        return {
            "ionet_fee": usd * percent / 100,
            "ionet_fee_percent": percent,
            "currency_conversion_fee": 0,
            "currency_conversion_fee_percent": 0,
            "total_cost_usdc": self.block_usd(found) * hours,
        }

    def block_usd(self, found: Configuration) -> Decimal:
        """Return the dollars for one hour, fees and all."""
        usd = found.usd_per_hour * (100 + self._settings.fee_percent) / 100
        return usd.quantize(Decimal("0.000001"))

    async def devices(self, call: Call) -> Response:
        """The seed's list: one row per free machine with a single GPU."""
        limit = count_of(call.request.query_params, "limit")
        rows: list[Row] = []
        for machine, part, free in self._world.offers():
            if not free or len(part.gpus) != 1 or len(rows) >= limit:
                continue
            rows.append(
                {
                    "device_id": f"dev-{machine.machine_id}",
                    "gpu_model": machine.gpu.name,
                    "gpu_memory": round(machine.gpu.ram_mb / 1024),
                    "price_per_hour": machine.usd_per_gpu_hour,
                    "performance_score": round(machine.gpu.dlperf, 1),
                    "provider_reputation": machine.reliability,
                    "availability": "available",
                    "location": machine.place,
                    "cluster_ready": machine.gpu_count > 1,
                    "bandwidth_gbps": machine.down_mbps / 1000,
                }
            )
        return reply({"devices": rows})


def _hardware_id(text: str | None) -> int | str:
    return int(text) if text is not None and text.isdigit() else text or ""


def count_of(
    query: Mapping[str, str],
    name: str,
    default: int | None = None,
    *,
    least: int = 1,
    most: int = 10_000,
) -> int:
    text = query.get(name)
    if text is None and default is not None:
        return default
    if text is None or not text.isdigit() or not least <= int(text) <= most:
        raise invalid(((name,), "Input should be in range", "value_error"), where="query")
    return int(text)
