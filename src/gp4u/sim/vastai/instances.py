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
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cmp_to_key

import msgspec

from gp4u.sim.contracts import Contract
from gp4u.sim.vastai.search import (
    Row,
    SearchError,
    cost_object,
    filter_rows,
    machine_fields,
    price_fields,
)
from gp4u.sim.vastai.shell import SSH_PORT
from gp4u.sim.world import World

PAGE_MAX = 25
"""Rows of one page of the list, by default and at most."""

# Columns that the list can filter and order by; what is computed for the answer is refused.
STORED = frozenset(
    (
        "id",
        "label",
        "actual_status",
        "intended_status",
        "cur_state",
        "next_state",
        "gpu_name",
        "verification",
        "machine_id",
        "host_id",
        "image_uuid",
        "image_runtype",
        "start_date",
        "end_date",
        "template_id",
        "template_hash_id",
        "is_bid",
        "geolocation",
        "public_ipaddr",
        "status_msg",
        "gpu_arch",
        "cpu_name",
        "bundle_id",
    )
)


_Keyed = tuple[tuple[object, ...], Row]


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
    hardware = machine_fields(world, machine, contract.gpus)
    paid_gpu = contract.gpu_usd_per_hour
    proxy, proxy_port = _proxy(world, contract)
    row: Row = {
        **hardware,
        **price_fields(machine, len(contract.gpus), paid_gpu, order.disk_gb),
        "id": contract.id,
        "actual_status": contract.actual,
        "intended_status": contract.intended,
        "cur_state": contract.cur,
        "next_state": contract.next,
        "label": contract.label,
        "status_msg": contract.status_msg,
        "template_id": None,
        "template_hash_id": extra.get("template_hash_id"),
        "template_name": None,
        "image_uuid": order.image,
        "image_args": extra.get("args", []),
        "image_runtype": extra.get("runtype", "ssh"),
        "extra_env": extra.get("extra_env", []),
        "onstart": extra.get("onstart"),
        "jupyter_token": extra.get("jupyter_token"),
        "public_ipaddr": _address(world, contract) if reported else None,
        "local_ipaddrs": "10.0.0.5 172.17.0.2 \n" if reported else "",
        "ssh_host": proxy,
        "ssh_idx": str(contract.id % 9 + 1),
        "ssh_port": proxy_port,
        "machine_dir_ssh_port": 20_000 + machine.machine_id % 10_000,
        "ports": ports,
        "direct_port_start": numbers[0] if numbers else -1,
        "direct_port_end": numbers[-1] if numbers else -1,
        "start_date": world.epoch(contract.created_at),
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
        "is_bid": contract.bid is not None,
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


def list_page(rows: Sequence[Row], query: ListQuery) -> Row:
    """Return the list's answer for one page of the rows.

    Raises:
        SearchError: a filter names a computed or unknown column, or an unknown operator.
    """
    found = filter_rows(rows, query.filters, allowed=STORED)
    descending = [down for _, down in query.order]

    def by_key(a: _Keyed, b: _Keyed) -> int:
        return _compare(a[0], b[0], descending)

    keyed = sorted(((_key(row, query.order), row) for row in found), key=cmp_to_key(by_key))
    after = query.after
    if after is not None:
        keyed = [pair for pair in keyed if _compare(pair[0], after, descending) > 0]
    page = keyed[: query.limit]
    more = len(keyed) > len(page)
    return {
        "success": True,
        "instances_found": len(page),
        "total_instances": len(found),
        "label_counts": dict(Counter(str(row["label"] or "") for row in found)),
        "next_token": encoded_token(page[-1][0]) if more else None,
        "instances": [_picked(row, query.columns) for _, row in page],
    }


def _picked(row: Row, columns: tuple[str, ...] | None) -> Row:
    return row if columns is None else {name: row.get(name) for name in columns}


def _order_item(item: object) -> tuple[str, bool]:
    column = item.get("col") if isinstance(item, dict) else None
    if not isinstance(item, dict) or not isinstance(column, str) or column not in STORED:
        raise SearchError(f"{item!r} is not a valid order")
    return column, item.get("dir") == "desc"


def _key(row: Row, order: Sequence[tuple[str, bool]]) -> tuple[object, ...]:
    return tuple(row.get(column) for column, _ in order)


def _compare(a: tuple[object, ...], b: tuple[object, ...], descending: Sequence[bool]) -> int:
    for mine, other, down in zip(a, b, descending, strict=True):
        left, right = _rank(mine), _rank(other)
        if left != right:
            return (1 if left > right else -1) * (-1 if down else 1)
    return 0


def _rank(value: object) -> tuple[int, float, str]:
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


def _address(world: World, contract: Contract) -> str:
    """Everything runs here; the real service ends some addresses with a newline."""
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
