"""Vast.ai's view of contracts: the instance row, and the list with its pages, filters and order.

Hides how a contract of the world looks to a client: half of it null while it boots, ports as text
and only while it runs, prices with the disk that was rented. Whether the client may see it yet
(lag, staleness, lost pages) is decided in `app.py`, which passes in what is visible.

Source: api-reference/openapi/yaml/show_instances.yaml and show_instance.yaml of the vendor's
documentation, public clients' records of live answers; checked 2026-11.
"""

from __future__ import annotations

import base64
import binascii
import json
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import msgspec

from gp4u.sim.contracts import Contract
from gp4u.sim.vastai.search import (
    Row,
    SearchError,
    cost_object,
    end_date,
    machine_fields,
    price_fields,
    row_filter,
)
from gp4u.sim.vastai.shell import SSH_PORT
from gp4u.sim.world import World

PAGE_MAX = 25
"""Rows of one page of the list, by default and at most."""

# Columns that the list can filter and order by; what is computed for the answer is refused.
STORED: Mapping[str, Callable[[World, Contract], object]] = {
    "id": lambda _, contract: contract.id,
    "label": lambda _, contract: contract.label,
    "actual_status": lambda _, contract: contract.actual,
    "intended_status": lambda _, contract: contract.intended,
    "cur_state": lambda _, contract: contract.cur,
    "next_state": lambda _, contract: contract.next,
    "gpu_name": lambda _, contract: contract.machine.gpu.name,
    "verification": lambda _, contract: contract.machine.verification,
    "machine_id": lambda _, contract: contract.machine.machine_id,
    "host_id": lambda _, contract: contract.machine.host_id,
    "image_uuid": lambda _, contract: contract.order.image,
    "image_runtype": lambda _, contract: contract.order.extra.get("runtype", "ssh"),
    "start_date": lambda world, contract: world.epoch(contract.created_at),
    "end_date": lambda world, contract: end_date(world, contract.machine),
    "template_id": lambda *_: None,
    "template_hash_id": lambda _, contract: contract.order.extra.get("template_hash_id"),
    "is_bid": lambda _, contract: contract.bid is not None,
    "geolocation": lambda _, contract: contract.machine.place,
    "public_ipaddr": lambda world, contract: _address(world, contract),
    "status_msg": lambda _, contract: contract.status_msg,
    "gpu_arch": lambda _, contract: contract.machine.gpu.arch,
    "cpu_name": lambda _, contract: contract.machine.cpu_name,
    "bundle_id": lambda _, contract: contract.machine.bundle_id,
}


_Stored = tuple[Contract, Row]
"""With its columns, as far as a call needs them."""
_Order = Sequence[tuple[str, bool]]
_Key = tuple[object, ...]
_Rank = tuple[int, float, str]


class TokenError(Exception):
    """The cursor is not one of ours."""


def instance_row(world: World, contract: Contract) -> Row:
    """Return one instance with all its fields, as far along as the contract is."""
    machine, order = contract.machine, contract.order
    extra: Mapping[str, object] = order.extra
    age_s = world.now_s - contract.created_at
    reported = contract.actual is not None
    running = contract.up and contract.actual == "running"
    ports = port_map(contract)
    numbers = sorted(contract.ports.values()) if ports else []
    column = stored_columns(world, contract, STORED)
    paid_gpu = contract.gpu_usd_per_hour
    proxy, proxy_port = _proxy(world, contract)
    row: Row = {
        **machine_fields(world, machine, contract.gpus),
        **price_fields(machine, len(contract.gpus), paid_gpu, order.disk_gb),
        "id": column["id"],
        "actual_status": column["actual_status"],
        "intended_status": column["intended_status"],
        "cur_state": column["cur_state"],
        "next_state": column["next_state"],
        "label": column["label"],
        "status_msg": column["status_msg"],
        "template_id": column["template_id"],
        "template_hash_id": column["template_hash_id"],
        "template_name": None,
        "image_uuid": column["image_uuid"],
        "image_args": extra.get("args", []),
        "image_runtype": column["image_runtype"],
        "extra_env": extra.get("extra_env", []),
        "onstart": extra.get("onstart"),
        "jupyter_token": extra.get("jupyter_token"),
        "public_ipaddr": column["public_ipaddr"],
        "local_ipaddrs": "10.0.0.5 172.17.0.2 \n" if reported else "",
        "ssh_host": proxy,
        "ssh_idx": str(contract.id % 9 + 1),
        "ssh_port": proxy_port,
        "machine_dir_ssh_port": 20_000 + machine.machine_id % 10_000,
        "ports": ports,
        "direct_port_start": numbers[0] if numbers else -1,
        "direct_port_end": numbers[-1] if numbers else -1,
        "start_date": column["start_date"],
        "uptime_mins": None
        if contract.ran_since is None
        else (world.now_s - contract.ran_since) / 60,
        "cpu_util": 0.02 if running else None,
        "gpu_util": 0.0 if running else None,
        "gpu_temp": 41.0 if running else None,
        "mem_limit": round(machine.ram_mb / 1024, 3) if running else None,
        "mem_usage": 0.25 if running else None,
        "vmem_usage": 0.0 if running else None,
        "disk_util": 0.02 if running else -1,
        "disk_usage": 0.05 if running else -1,
        "disk_space": float(order.disk_gb),
        "gpu_totalram": machine.gpu.ram_mb * len(contract.gpus),
        "is_bid": column["is_bid"],
        "min_bid": _floor(contract),
        "dlperf": machine.gpu.dlperf * len(contract.gpus),
        "score": None,
        "rentable": False,
        "instance": cost_object(
            paid_gpu if contract.cur == "running" else paid_gpu * 0, contract.disk_usd_per_hour
        ),
        "client_run_time": age_s / 3600,
        "host_run_time": 2_592_000.0,
        "credit_balance": None,
        "credit_discount": None,
        "country_code": None,
        "volume_info": [],
    }
    total = float(contract.gpu_usd_per_hour + contract.disk_usd_per_hour)
    row["dlperf_per_dphtotal"] = machine.gpu.dlperf * len(contract.gpus) / total
    row["flops_per_dphtotal"] = machine.gpu.tflops * len(contract.gpus) / total
    for field in (machine.not_reported - {"score"}) & row.keys():
        row[field] = None
    return row


def port_map(contract: Contract) -> dict[str, list[dict[str, str]]]:
    """Return `{"8000/tcp": [{"HostIp": ..., "HostPort": "40123"}]}`; empty unless it runs."""
    if not contract.up or contract.offline or contract.hides_ports:
        return {}
    hosts = ("0.0.0.0", "::") if contract.id % 2 else ("0.0.0.0",)  # noqa: S104 -- wire data
    return {
        f"{number}/{protocol}": [{"HostIp": host, "HostPort": str(host_port)} for host in hosts]
        for (number, protocol), host_port in sorted(contract.ports.items())
    }


def stored_columns(world: World, contract: Contract, names: Iterable[str]) -> Row:
    """Return the named ones of the columns that the list can filter and order by."""
    hidden = contract.machine.not_reported
    return {name: None if name in hidden else STORED[name](world, contract) for name in names}


class ListQuery(msgspec.Struct, frozen=True, kw_only=True):
    """The parameters of one call of the list, decoded."""

    limit: int
    filters: object
    """Column to operators, unless the client sent something else."""
    order: tuple[tuple[str, bool], ...]
    """(column, descending), strongest first; ends with `id`."""
    columns: tuple[str, ...] | None
    after: tuple[object, ...] | None
    """Values of the ordering columns of the last row already seen."""


def list_query(params: Mapping[str, str]) -> ListQuery:
    """Decode the query string of the list.

    Raises:
        SearchError: a parameter is not JSON of its kind, or orders by an unknown column.
        TokenError: the cursor is not one of ours.
    """
    order = [_order_item(item) for item in _list(params, "order_by")]
    if not any(column == "id" for column, _ in order):
        order.append(("id", False))
    columns = _list(params, "select_cols")
    filters = _json(params, "select_filters", {})
    try:
        limit = int(params.get("limit") or PAGE_MAX)
    except ValueError:
        raise SearchError("limit is not a number") from None
    return ListQuery(
        limit=5 if limit <= 0 else min(limit, PAGE_MAX),
        filters=filters,
        order=tuple(order),
        columns=None if not columns or "*" in columns else tuple(str(name) for name in columns),
        after=decoded_token(params.get("after_token"), len(order)),
    )


def list_page(world: World, contracts: Sequence[Contract], query: ListQuery) -> Row:
    """Return the list's answer for one page of the contracts; no row is made that is not on it.

    Raises:
        SearchError: a filter names a computed or unknown column, or an unknown operator.
    """
    passes = row_filter(query.filters, allowed=STORED.keys())
    filtered = query.filters if isinstance(query.filters, Mapping) else ()
    needed = {"label", *filtered, *(column for column, _ in query.order)}
    rows = ((contract, stored_columns(world, contract, needed)) for contract in contracts)
    found = [(contract, row) for contract, row in rows if passes(row)]
    ordered = _ordered(found, query.order)
    if query.after is not None:
        ordered = ordered[_seen(ordered, query.order, query.after) :]
    page = ordered[: query.limit]
    more = len(ordered) > len(page)
    whole = [instance_row(world, contract) for contract, _ in page]
    return {
        "success": True,
        "instances_found": len(page),
        "total_instances": len(found),
        "label_counts": dict(Counter(str(row["label"] or "") for _, row in found)),
        "next_token": encoded_token(_key(page[-1][1], query.order)) if more else None,
        "instances": [_picked(row, query.columns) for row in whole],
    }


def _ordered(found: list[_Stored], order: _Order) -> list[_Stored]:
    for column, down in reversed(order):
        found = sorted(found, key=partial(_column_rank, column), reverse=down)
    return found


def _column_rank(column: str, stored: _Stored) -> _Rank:
    return _rank(stored[1][column])


def _seen(ordered: Sequence[_Stored], order: _Order, after: _Key) -> int:
    """Return how many of the first rows a client has seen that got as far as a key."""
    return bisect_left(
        ordered, True, key=lambda stored: _is_behind(_key(stored[1], order), after, order)
    )


def _picked(row: Row, columns: tuple[str, ...] | None) -> Row:
    return row if columns is None else {name: row.get(name) for name in columns}


def _order_item(item: object) -> tuple[str, bool]:
    column = item.get("col") if isinstance(item, dict) else None
    if not isinstance(item, dict) or not isinstance(column, str) or column not in STORED:
        raise SearchError(f"{item!r} is not a valid order")
    return column, item.get("dir") == "desc"


def _key(row: Row, order: _Order) -> _Key:
    return tuple(row[column] for column, _ in order)


def _is_behind(key: _Key, after: _Key, order: _Order) -> bool:
    for mine, other, (_, down) in zip(key, after, order, strict=True):
        left, right = _rank(mine), _rank(other)
        if left != right:
            return (left > right) != down
    return False


def _rank(value: object) -> _Rank:
    """Order unlike values: null, then numbers, then text."""
    if value is None:
        return (0, 0.0, "")
    if isinstance(value, int | float):
        return (1, float(value), "")
    return (2, 0.0, str(value))


def encoded_token(key: tuple[object, ...]) -> str:
    """Return the opaque cursor for what comes after a row with these ordering values."""
    return base64.urlsafe_b64encode(json.dumps(key).encode()).decode()


def decoded_token(token: str | None, length: int) -> tuple[object, ...] | None:
    """Return a cursor's ordering values; None for no cursor.

    Raises:
        TokenError: it is not one of ours, or was made for another order.
    """
    if not token:
        return None
    try:
        key = json.loads(base64.urlsafe_b64decode(token.encode()))
    except (ValueError, binascii.Error):
        raise TokenError(token) from None
    if not isinstance(key, list) or len(key) != length:
        raise TokenError(token)
    return tuple(key)


def _json(params: Mapping[str, str], name: str, default: object) -> object:
    text = params.get(name)
    if not text:
        return default
    try:
        value: object = json.loads(text)
    except ValueError:
        raise SearchError(f"{name} is not JSON") from None
    return value


def _list(params: Mapping[str, str], name: str) -> list[object]:
    value = _json(params, name, [])
    if not isinstance(value, list):
        raise SearchError(f"{name} is not a list")
    return value


def _address(world: World, contract: Contract) -> str | None:
    """Everything runs here; the real service ends some addresses with a newline."""
    if contract.actual is None:
        return None
    address = world.runtime.address
    return f"{address}\n" if contract.id % 3 == 0 else address


def _proxy(world: World, contract: Contract) -> tuple[str, int]:
    """Return where the market's SSH proxy is; here the same server as the direct one."""
    if contract.door is not None:
        return world.runtime.address, contract.door.ports[SSH_PORT, "tcp"]
    return f"ssh{contract.id % 9 + 1}.vast.ai", 10_000 + contract.id % 30_000


def _floor(contract: Contract) -> float | None:
    per_gpu = contract.machine.min_bid_per_gpu
    return None if per_gpu is None else float(per_gpu * len(contract.gpus))
