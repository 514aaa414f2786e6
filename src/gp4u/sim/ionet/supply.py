"""The world's machines as io.net sells them: configurations at a location, each with one price.

Hides how many machines become one row. This market names no hosts: a row stands for every machine
of a GPU model, a count and a country, at the price of the whole configuration. The own fleet has
numbers for ids, resold supply has texts, and live data has rows that mean nothing; so has this.

Source: the example rows of io.net's "get hardware list" and the catalogue seen by QuantumNous/
new-api, as restated in docs/reference/ionet.md; checked 2026-11. Names follow the example rows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from statistics import median

import msgspec

from gp4u.sim.market import Gpu, Machine, Slice
from gp4u.sim.world import World

Row = dict[str, object]

# What a driver reports -> what the card is sold with, where rounding does not tell.
_SOLD_GB = {
    15360: 16,
    20475: 20,
    23028: 24,
    23034: 24,
    46068: 48,
    81559: 80,
    95830: 94,
    97887: 96,
    143771: 141,
    183359: 192,
}
_BOARDS = {"A100 SXM4": "sxm4", "H100 SXM": "sxm5", "H200": "sxm5", "B200": "sxm6"}
_RESOLD_FROM = 0.9
"""GPUs that mostly stand in datacenters are resold supply; the others are the own fleet."""


class Configuration(msgspec.Struct, frozen=True, kw_only=True):
    """One row: so many GPUs of a model in a country, and the machines that can be it."""

    hardware_id: int | str
    row_id: str
    """Of the virtual machines' list, unique per configuration and location."""
    title: str
    brand: str
    interconnect: str | None
    gpus: int
    country: str
    usd_per_hour: Decimal
    vram_gb: int
    storage_gb: int
    vcpu: int
    memory_gb: int
    machines: tuple[int, ...]

    @property
    def resold(self) -> bool:
        """Whether its id is a text."""
        return isinstance(self.hardware_id, str)


class Supply:
    """All configurations of a world, and which of its machines are free for them."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.configurations = _configurations(world.machines)
        countries = sorted({each.country for each in self.configurations})
        self.places = {country: number for number, country in enumerate(countries, start=1)}
        """Country to the market's number of the location."""

    def find(self, hardware_id: object, gpus: int, country: str) -> Configuration | None:
        """Return a configuration; its id must have the type it is sold with."""
        for each in self.configurations:
            same_id = each.hardware_id == hardware_id and type(each.hardware_id) is type(
                hardware_id
            )
            if same_id and each.gpus == gpus and each.country == country:
                return each
        return None

    def country(self, location: object) -> str | None:
        """Return the country of a location's number or code."""
        if isinstance(location, str):
            return location if location in self.places else None
        return next((c for c, number in self.places.items() if number == location), None)

    def free(self) -> Mapping[tuple[int, int], Slice]:
        """Return what can be rented now, by machine and number of GPUs."""
        return {(m.machine_id, len(part.gpus)): part for m, part, ok in self._world.offers() if ok}

    def slices(self, wanted: Configuration) -> Sequence[Slice]:
        """Return the free parts of machines that can be a configuration."""
        free = self.free()
        parts = (free.get((machine, wanted.gpus)) for machine in wanted.machines)
        return [part for part in parts if part is not None]

    def container_rows(self) -> list[Row]:
        """Return the catalogue of containers, with the odd rows of live data."""
        free = self.free()
        rows: list[Row] = []
        for each in self.configurations:
            left = sum((machine, each.gpus) in free for machine in each.machines)
            rows.append(
                {
                    "id": each.hardware_id,
                    "name": each.title,
                    "brand_name": each.brand,
                    "num_cards": each.gpus,
                    "available_replicas": left,
                    "sold_out": left == 0,
                    "price": each.usd_per_hour,
                    "location": each.country,
                    "vram_per_card": each.vram_gb,
                }
            )
        odd: Row = {
            "brand_name": "NVIDIA",
            "available_replicas": 3,
            "sold_out": False,
            "location": "US",
            "vram_per_card": 0,
        }
        rows.append({**odd, "id": 1, "name": "", "num_cards": 0, "price": Decimal("0.05")})
        rows.append({**odd, "id": 2, "name": "H100", "num_cards": 8, "price": 0})
        return rows

    def machine_rows(self) -> list[Row]:
        """Return the list of virtual machines' hardware."""
        free = self.free()
        return [
            {
                "id": each.row_id,
                "deploy_id": each.hardware_id,
                "name": each.title,
                "num_cards": each.gpus,
                "supplier": "external" if each.resold else "internal",
                "sold_out": not any((machine, each.gpus) in free for machine in each.machines),
                "price": each.usd_per_hour,
                "vram_per_card": each.vram_gb,
                "interconnect": each.interconnect,
                "nvlink": False,
                "storage": each.storage_gb,
                "vcpu": each.vcpu,
                "memory": each.memory_gb,
                "location": each.country,
            }
            for each in self.configurations
        ]


def _configurations(machines: Sequence[Machine]) -> tuple[Configuration, ...]:
    groups: dict[tuple[str, int, str, int], list[Machine]] = {}
    for machine in machines:
        country = (machine.place or "").rpartition(",")[2].strip()
        if not re.fullmatch("[A-Z]{2}", country):
            continue
        for size in dict.fromkeys(len(part.gpus) for part in machine.slices):
            key = (machine.gpu.name, machine.gpu.ram_mb, country, size)
            groups.setdefault(key, []).append(machine)
    numbers: dict[tuple[str, int, str], int] = {}
    made = []
    for (name, ram_mb, country, size), members in sorted(groups.items()):
        gpu = members[0].gpu
        fleet = numbers.setdefault((name, ram_mb, country), 200 + len(numbers))
        resold_as = f"{title(gpu).replace(' ', '_')}_{_SOLD_GB.get(ram_mb, 0)}x{size}"
        resold = gpu.datacenter >= _RESOLD_FROM
        price = Decimal(str(median(m.usd_per_gpu_hour for m in members))) * size
        share = min(size / m.gpu_count for m in members)
        made.append(
            Configuration(
                hardware_id=resold_as if resold else fleet,
                row_id=f"{resold_as}__{country}" if resold else f"{fleet}__{size}",
                title=title(gpu),
                brand="AMD" if gpu.arch == "amd" else "NVIDIA",
                interconnect=_BOARDS.get(name),
                gpus=size,
                country=country,
                usd_per_hour=max(price.quantize(Decimal("0.01")), Decimal("0.01")),
                vram_gb=_SOLD_GB.get(ram_mb, round(ram_mb / 1024)),
                storage_gb=max(int(min(m.disk_gb for m in members) * share), 20),
                vcpu=max(int(min(m.cpu_cores for m in members) * share), 1),
                memory_gb=max(int(min(m.ram_mb for m in members) * share / 1000), 1),
                machines=tuple(m.machine_id for m in members),
            )
        )
    return tuple(made)


def title(gpu: Gpu) -> str:
    """Return a GPU's name as this market prints it: the maker's, in full."""
    name = gpu.name
    if gpu.arch == "amd":
        return f"Radeon {name}"
    name = re.sub(r"\bQ (?=RTX)", "Quadro ", name)
    name = re.sub(r"(\d{4})Ada\b", r"\1 Ada Generation", name)
    name = re.sub(r"(\d{4}) ?S Ti\b", r"\1 Ti SUPER", name)
    name = re.sub(r"(\d{4}) ?S\b", r"\1 SUPER", name)
    name = re.sub(r"(\d{4})D\b", r"\1 D", name)
    name = name.replace(" laptop", " Laptop GPU").replace("PCIE", "PCIe")
    gamers = re.match(r"(?:GTX \d{4}|RTX [2-5]0[5-9]0)\b", name)
    return f"GeForce {name}" if gamers else name
