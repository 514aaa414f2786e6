"""Vast.ai's offer search: the filter language, the order, the caps, and what an offer row holds.

Hides how a search body becomes rows. Values are coerced as the real service must (the official
client sends every plain number as text), aliases and derived fields are translated, and prices
are made for the disk and the kind of rent that the search names. HTTP and identity are
`app.py`'s part, instances `instances.py`'s.

Source: api-reference/openapi/yaml/search_offers.yaml of the vendor's documentation; query fields
of package `vastai` 1.9.1; recorded offers of July 2025; checked 2026-11. Marked where inferred.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from decimal import Decimal, InvalidOperation
from functools import lru_cache

from gp4u.sim.market import Machine, Slice
from gp4u.sim.world import World

Row = dict[str, object]
Fields = Mapping[str, object]
"""A row, or a part of one, that others read too."""
_Passes = Callable[[Fields], bool]
_Test = tuple[str, _Passes]
"""A field of the row, and what it must be."""
OPERATORS = ("eq", "neq", "gt", "gte", "lt", "lte", "in", "notin")
SERVER_STORAGE_GB = Decimal(8)
"""Disk that prices assume when a search names none."""
ROWS_CAP = 64
"""Rows a search answers at most, whatever `limit` says, and as many when it says nothing."""

_NOT_FILTERS = frozenset({"order", "type", "limit", "select_cols", "client_id", "api_key"})
_ALIASES = {
    "reliability2": "reliability",
    "dphtotal": "dph_total",
    "gpu_totalram": "gpu_total_ram",
    "ubuntu_version": "os_version",
    "driver_version": "driver_vers",
    "cpu_ram_GB": "cpu_ram",
    "gpu_ram_GB": "gpu_ram",
    "gpu_totalram_GB": "gpu_total_ram",
    "target_reliability": "expected_reliability",
    "datacenter": "hosting_type",
    "verified": "vericode",
}
_TYPES = {
    "on-demand": False,
    "ondemand": False,
    "reserved": False,
    "bid": True,
    "interruptible": True,
}


class SearchError(Exception):
    """The body is not a search; the text is what the service would say."""


def offers_found(
    world: World, query: Mapping[str, object], *, cap: int = ROWS_CAP, strict: bool = True
) -> list[Row]:
    """Return the rows that a search body finds, ordered and cut.

    Args:
        strict: whether an unknown field fails the call; else it is ignored. Both were reported.

    Raises:
        SearchError: an unknown operator, field or type, or a value of no use.
    """
    kind = query.get("type", "on-demand")
    if not isinstance(kind, str) or kind not in _TYPES:
        raise SearchError(f"{kind!r} is not a valid offer type")
    storage_gb = _storage(query.get("allocated_storage"))
    bid = _TYPES[kind]
    listed = [
        (rank, machine, part, rentable)
        for rank, (machine, part, rentable) in enumerate(world.offers(), 1)
        if not bid or machine.min_bid_per_gpu is not None
    ]

    def row(rank: int, machine: Machine, part: Slice, rentable: bool) -> Row:
        made = offer_row(world, machine, part, storage_gb=storage_gb, bid=bid, rentable=rentable)
        made["rn"] = rank
        return made

    known = frozenset(row(*listed[0])) if listed else frozenset()
    tests = [
        test
        for field, wanted in query.items()
        if field not in _NOT_FILTERS
        and (field != "allocated_storage" or isinstance(wanted, Mapping))
        for test in _tests(field, wanted, known, strict=strict and bool(listed))
    ]
    # What its hardware rules out is never priced: most of a market, for most searches.
    fixed = _fixed_fields(listed[0][1], listed[0][2]) if listed else frozenset()
    hard = [test for field, test in tests if field in fixed]
    soft = [test for field, test in tests if field not in fixed]
    fitting = (each for each in listed if _passes(hardware(each[1], each[2].gpus), hard))
    found = [made for made in (row(*each) for each in fitting) if _passes(made, soft)]
    ordered = _ordered(found, query.get("order"))
    return ordered[: _limit(query.get("limit"), cap)]


def row_filter(filters: object, *, allowed: Collection[str]) -> Callable[[Fields], bool]:
    """Return whether a row passes filters on its columns, as in the instance list.

    Raises:
        SearchError: an operator or a column is unknown, or not one of `allowed`.
    """
    if not isinstance(filters, Mapping):
        raise SearchError(f"{filters!r} is not a valid search filter")
    for field in filters:
        if field not in allowed:
            raise SearchError(f"{field} is not a valid search key")
    tests = [
        _test(field, op, value)[1]
        for field, wanted in filters.items()
        for op, value in _ops(wanted)
    ]
    return lambda row: _passes(row, tests)


# Rows.


def offer_row(
    world: World, machine: Machine, part: Slice, *, storage_gb: Decimal, bid: bool, rentable: bool
) -> Row:
    """Return one offer with all its fields, priced for `storage_gb` and the kind of rent."""
    count = len(part.gpus)
    floor = (machine.min_bid_per_gpu or Decimal(0)) * count
    base = floor if bid else machine.usd_per_gpu_hour * count
    fields = machine_fields(world, machine, part.gpus)
    prices = price_fields(machine, count, base, storage_gb)
    total = float(base + machine.storage_usd_per_hour(storage_gb))
    row: Row = {
        "id": part.offer_id,
        "ask_contract_id": part.offer_id,
        **fields,
        **prices,
        **_scores(machine, count, total),
        "dph_total_adj": float(
            base
            + machine.storage_usd_per_hour(storage_gb)
            + 2 * (machine.down_usd_per_gb + machine.up_usd_per_gb)
        ),
        "discounted_dph_total": total,
        "discounted_hourly": 0,
        "discount_rate": None,
        "min_bid": float(floor) if floor else None,
        "is_bid": bid,
        "rentable": rentable,
        "rented": world.holds(machine.machine_id),
        "avail_vol_ask_id": part.offer_id + 1_000_000_000,
        "avail_vol_size": int(machine.disk_gb / 2),
        "avail_vol_dph": float(machine.storage_usd_per_hour(storage_gb)),
        "nw_disk_min_bw": None,
        "nw_disk_max_bw": None,
        "nw_disk_avg_bw": None,
        "start_date": None,
        "rn": 1,
    }
    for field in machine.not_reported & row.keys():
        row[field] = None
    return row


def machine_fields(world: World, machine: Machine, gpus: tuple[int, ...]) -> Row:
    """Return what a row says of the hardware, its place and its host, and for how long."""
    row = {**hardware(machine, gpus)}
    row["duration"] = max(world.listing_ends_s(machine), 0.0)
    row["end_date"] = end_date(world, machine)
    return row


def end_date(world: World, machine: Machine) -> float:
    """Return the Unix time at which the listing of a machine ends."""
    return world.epoch(world.now_s) + world.listing_ends_s(machine)


@lru_cache(maxsize=8192)
def hardware(machine: Machine, gpus: tuple[int, ...]) -> Fields:
    """Return what does not change with time of a machine and a slice of its GPUs.

    A host who changes something of its machine lists another one, as far as this is concerned.
    """
    gpu, count = machine.gpu, len(gpus)
    share = Decimal(count) / machine.gpu_count
    verified = machine.verification == "verified"
    row: Row = {
        "bundle_id": machine.bundle_id,
        "bundled_results": None,
        "machine_id": machine.machine_id,
        "host_id": machine.host_id,
        "hosting_type": None if machine.datacenter is None else int(machine.datacenter),
        "hostname": None,
        "cluster_id": None,
        "logo": "/static/logos/vastai_small2.png",
        "webpage": None,
        "resource_type": "gpu",
        "external": machine.external,
        "geolocation": machine.place,
        "geolocode": None if machine.place is None else zlib.crc32(machine.place.encode()),
        "public_ipaddr": machine.address,
        "static_ip": machine.static_ip,
        "verification": machine.verification,
        "vericode": int(verified),
        "verified": verified,
        "gpu_name": gpu.name,
        "num_gpus": count,
        "gpu_ram": gpu.ram_mb,
        "gpu_total_ram": gpu.ram_mb * count,
        "gpu_frac": float(share),
        "gpu_arch": gpu.arch,
        "gpu_ids": [machine.machine_id * 8 + position for position in gpus],
        "gpu_lanes": 16,
        "gpu_mem_bw": gpu.mem_bw_gbps,
        "gpu_max_power": gpu.max_power_w,
        "gpu_max_temp": 87,
        "gpu_display_active": False,
        "compute_cap": gpu.compute_cap,
        "cuda_max_good": machine.cuda,
        "driver_version": machine.driver,
        "driver_vers": driver_number(machine.driver),
        "bw_nvlink": 300.0 if "SXM" in gpu.name else 0,
        "pcie_bw": 24.5,
        "pci_gen": 4.0,
        "total_flops": gpu.tflops * count,
        "cpu_name": machine.cpu_name,
        "cpu_cores": machine.cpu_cores,
        "cpu_cores_effective": float(machine.cpu_cores * share),
        "cpu_ghz": machine.cpu_ghz,
        "cpu_arch": machine.cpu_arch,
        "cpu_ram": machine.ram_mb,
        "has_avx": 1,
        "mobo_name": machine.board,
        "os_version": "22.04",
        "disk_space": round(machine.disk_gb * float(share), 1),
        "disk_bw": machine.disk_bw,
        "disk_name": machine.disk_name,
        "inet_down": machine.down_mbps,
        "inet_up": machine.up_mbps,
        "direct_port_count": machine.open_ports * count // machine.gpu_count,
        "vms_enabled": False,
        "is_vm_deverified": False,
        "reliability": machine.reliability,
        "reliability2": machine.reliability,
        "reliability_mult": round(machine.reliability**10, 7),
        "expected_reliability": machine.reliability,
        "duration": None,
        "end_date": None,
        "time_remaining": "",
        "time_remaining_isbid": "",
    }
    for field in machine.not_reported & row.keys():
        row[field] = None
    return row


def _fixed_fields(machine: Machine, part: Slice) -> frozenset[str]:
    """Return the fields of a row that its hardware alone decides."""
    return frozenset(hardware(machine, part.gpus)) - {"duration", "end_date"}


def price_fields(machine: Machine, count: int, base: Decimal, storage_gb: Decimal) -> Row:
    """Return the prices for `count` GPUs at `base` $/h in all, and a disk; the sums are exact."""
    disk = machine.storage_usd_per_hour(storage_gb)
    return {
        "dph_base": float(base),
        "dph_total": float(base + disk),
        "storage_cost": float(machine.storage_usd_per_gb_month),
        "storage_total_cost": float(disk),
        "inet_down_cost": float(machine.down_usd_per_gb),
        "inet_up_cost": float(machine.up_usd_per_gb),
        "internet_down_cost_per_tb": float(machine.down_usd_per_gb * 1024),
        "internet_up_cost_per_tb": float(machine.up_usd_per_gb * 1024),
        "vram_costperhour": float(base * 1024 / (machine.gpu.ram_mb * count)),
        "credit_discount_max": 0.4 if machine.datacenter else 0,
        "search": cost_object(base, disk),
        "instance": cost_object(Decimal(0), disk),
    }


def cost_object(gpu: Decimal, disk: Decimal) -> Row:
    """Return the `search` or `instance` object of a row, in dollars per hour."""
    return {
        "gpuCostPerHour": float(gpu),
        "diskHour": float(disk),
        "totalHour": float(gpu + disk),
        "discountTotalHour": 0,
        "discountedTotalPerHour": float(gpu + disk),
    }


def driver_number(version: str) -> int:
    """Return `570.124.04` as 570124004: three digits per part, without the leading zero."""
    return int("".join(part.zfill(3) for part in version.split(".")))


def country(place: object) -> str | None:
    """Return what follows the last comma of a place: `US` of `California, US`."""
    return place.rsplit(",", 1)[-1].strip().upper() if isinstance(place, str) else None


def _scores(machine: Machine, count: int, total: float) -> Row:
    dlperf = machine.gpu.dlperf * count
    flops = machine.gpu.tflops * count
    return {
        "dlperf": dlperf,
        "dlperf_per_dphtotal": dlperf / total,
        "flops_per_dphtotal": flops / total,
        "score": dlperf / total * machine.reliability,
    }


# The filter language.


def _ops(wanted: object) -> list[tuple[str, object]]:
    if not isinstance(wanted, Mapping):
        raise SearchError(f"{wanted!r} is not a valid search filter")
    for op in wanted:
        if op not in OPERATORS:
            raise SearchError(f"{op} is not a valid search op")
    return [(str(op), value) for op, value in wanted.items()]


def _tests(field: str, wanted: object, known: frozenset[str], *, strict: bool) -> Iterator[_Test]:
    """Yield what a row must pass for one field of a search."""
    for op, value in _ops(wanted):
        if field == "id":
            yield field, lambda _: False  # known to match nothing; look up by ask_contract_id
        elif field == "rented" and _boolean(value) is True:
            continue  # "also those on machines I hold", not "only those"
        elif field == "geolocation":
            yield field, _place_test(op, value)
        elif field == "allocated_storage":
            yield _test("disk_space", "gte", value)
        elif field == "external":
            yield field, _true_test(field, op, value)
        elif field in ("driver_version", "driver_vers"):
            yield _test("driver_vers", op, _each(value, _driver))
        elif field.endswith("_GB"):
            yield _test(_ALIASES.get(field, field), op, _each(value, _thousandfold))
        elif field == "target_reliability":
            yield _test("expected_reliability", "gte", value)
        elif field == "gpu_name":
            yield _test(field, op, _each(value, _spaced))
        elif field in _ALIASES or field in known:
            yield _test(_ALIASES.get(field, field), op, value)
        elif strict:
            raise SearchError(f"{field} is not a valid search key")


def _passes(row: Fields, tests: Iterable[_Passes]) -> bool:
    return all(test(row) for test in tests)


def _test(field: str, op: str, wanted: object) -> _Test:
    return field, lambda row: _holds(row.get(field), op, wanted)


def _true_test(field: str, op: str, wanted: object) -> _Passes:
    """Take an unknown value for false."""
    return lambda row: _holds(bool(row.get(field)), op, wanted)


def _place_test(op: str, wanted: object) -> _Passes:
    codes = _each(wanted, lambda code: str(code).strip().upper())
    return lambda row: _holds(country(row.get("geolocation")), op, codes)


def _holds(value: object, op: str, wanted: object) -> bool:
    """Whether a row's value stands in the relation; an unknown value stands only in `neq`, `notin`
    and in an `in` that names null."""
    if op in ("in", "notin"):
        options = wanted if isinstance(wanted, list) else [wanted]
        return (op == "in") == any(_equal(value, option) for option in options)
    if op in ("eq", "neq"):
        return (op == "eq") == _equal(value, wanted)
    mine, other = _number(value), _number(wanted)
    if mine is None or other is None:
        return False
    match op:
        case "gt":
            return mine > other
        case "gte":
            return mine >= other
        case "lt":
            return mine < other
        case _:
            return mine <= other


def _equal(value: object, wanted: object) -> bool:
    if value is None or wanted is None:
        return value is None and wanted is None
    if isinstance(value, str):
        return value == str(wanted)
    mine, other = _number(value), _number(wanted)
    return mine is not None and mine == other


def _number(value: object) -> Decimal | None:
    """Numbers, texts of numbers, and booleans or their texts as 0 and 1."""
    flag = _boolean(value)
    if flag is not None:
        return Decimal(flag)
    if not isinstance(value, str | int | float):
        return None
    try:
        number = Decimal(str(value).strip())
    except InvalidOperation:
        return None
    return number if number.is_finite() else None


def _boolean(value: object) -> bool | None:
    if isinstance(value, bool):
        return value
    texts = {"true": True, "false": False}
    return texts.get(value.strip().lower()) if isinstance(value, str) else None


def _each(wanted: object, change: Callable[[object], object]) -> object:
    return [change(item) for item in wanted] if isinstance(wanted, list) else change(wanted)


def _spaced(name: object) -> object:
    return name.replace("_", " ") if isinstance(name, str) else name


def _thousandfold(value: object) -> object:
    number = _number(value)
    return None if number is None else float(number * 1000)


def _driver(value: object) -> object:
    text = str(value)
    parts = text.split(".")
    if len(parts) == 3 and all(part.isdigit() for part in parts):
        return driver_number(text)
    return value


# Order and limit.


def _ordered(rows: list[Row], order: object) -> list[Row]:
    """Sort by each [field, direction] pair, strongest first; rows without the value go last."""
    pairs = order if isinstance(order, list) else []
    for pair in reversed(pairs):
        if not isinstance(pair, list) or len(pair) != 2:
            raise SearchError(f"{pair!r} is not a valid order")
        field = _ALIASES.get(str(pair[0]), str(pair[0]))
        known = [row for row in rows if row.get(field) is not None]
        unknown = [row for row in rows if row.get(field) is None]
        known.sort(key=lambda row: _sort_key(row[field]), reverse=str(pair[1]) == "desc")
        rows = known + unknown
    return rows


def _sort_key(value: object) -> tuple[Decimal, str]:
    number = _number(value)
    return (number, "") if number is not None else (Decimal(0), str(value))


def _limit(wanted: object, cap: int) -> int:
    number = _number(wanted)
    return cap if number is None or number <= 0 else min(int(number), cap)


def _storage(wanted: object) -> Decimal:
    """The disk that prices are made for: a plain number; a filter is no statement about price."""
    number = None if isinstance(wanted, Mapping) else _number(wanted)
    return SERVER_STORAGE_GB if number is None or number < 0 else number
