"""Two nodes of the simulated chain over REST, one of them behind, and one over CometBFT's RPC.

Hides paging by opaque keys, totals that are of a page, versions that are gone (501) and the
protobuf of the one query that RPC answers. What is printed comes from `rows.py`.

Source: node:x/*/keeper/grpc_query.go, chain-sdk:proto and CometBFT's RPC, as restated in
docs/reference/akash.md 2 and 3; checked 2026-11.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from gp4u.sim.akash.console import host_uri
from gp4u.sim.akash.gate import chain_refused
from gp4u.sim.akash.market import AkashMarket, Deployment, Host, Placed
from gp4u.sim.akash.rows import Row, bid_row, chain_deployment, escrow_row, lease_row
from gp4u.sim.akash.sdl import group_spec
from gp4u.sim.akash.supply import place
from gp4u.sim.faults import Kind
from gp4u.sim.gate import Call, Handler

PAGE = 100
LIVE = {
    "deployment": "v1beta4",
    "market": "v1beta5",
    "provider": "v1beta4",
    "audit": "v1",
    "cert": "v1",
    "escrow": "v1",
}
"""The version of each module that nodes speak; every other one is 501."""
NODES = ("/rest", "/rest2")
RPC = "/rpc"


class Chain:
    """The nodes' handlers."""

    def __init__(self, market: AkashMarket) -> None:
        self._market = market

    def calls(self) -> list[tuple[str, str, str, Handler]]:
        """Return (method, path, endpoint, handler); none needs a key."""
        return [
            *(("GET", f"{node}/akash/{{path:path}}", "node", self._rest) for node in NODES),
            ("POST", RPC, "rpc", self._query),
            ("GET", f"{RPC}/status", "rpc", self._status),
        ]

    async def _rest(self, call: Call) -> Response:
        module, _, rest = call.request.path_params["path"].partition("/")
        version, _, path = rest.partition("/")
        if LIVE.get(module) != version:
            raise chain_refused(501, "Not Implemented")
        match module, path.split("/"):
            case "provider", ["providers"]:
                rows = [provider_row(call.request, host) for host in self._market.hosts.values()]
                return _page(call.request, "providers", rows)
            case "provider", ["providers", owner]:
                host = self._market.hosts.get(owner)
                if host is None:
                    raise chain_refused(404, "provider not found")
                return JSONResponse({"provider": provider_row(call.request, host)})
            case "deployment", ["deployments", "list"]:
                return _page(call.request, "deployments", self._deployments(call), own=True)
            case "deployment", ["deployments", "info"]:
                return JSONResponse(self._info(call))
            case "deployment", ["groups", "info"]:
                return JSONResponse({"group": self._group(call)})
            case "market", ["orders", "list"]:
                return _page(call.request, "orders", list(self._orders(call)), own=True)
            case "market", ["bids", "list"]:
                return _page(call.request, "bids", list(self._bids(call)), own=True)
            case "market", ["leases", "list"]:
                return _page(call.request, "leases", list(self._leases(call)), own=True)
            case "escrow", ["types", "accounts"]:
                accounts = [escrow_row(self._market, each) for each, _ in self._known(call)]
                return _page(call.request, "accounts", accounts)
            case "cert", ["certificates", "list"]:
                return _page(call.request, "certificates", [])
            case "market", ["params"]:
                return JSONResponse({"params": {"order_max_bids": 20}})
            case _:
                raise chain_refused(501, "Not Implemented")

    def _knows_up_to(self, call: Call) -> float:
        """Return how far the node that was asked knows the chain."""
        settings, now = self._market.settings, self._market.world.now_s
        behind = call.request.url.path.startswith(f"{NODES[1]}/")
        stale = call.strike.get(Kind.LIST_STALE)
        lag = settings.replica_lag_s if behind and settings.replica_lags else 0.0
        return now - max(lag, 0.0 if stale is None else stale.seconds or 15.0)

    def _known(self, call: Call) -> Iterator[tuple[Deployment, str]]:
        """Yield the deployments that the node knows and the query asks for, with their states."""
        params, at = call.request.query_params, self._knows_up_to(call)
        if params.get("filters.owner") not in (None, "", self._market.account):
            return
        if call.strike.get(Kind.LIST_EMPTY) is not None:
            return
        for deployment in self._market.deployments.values():
            state = deployment.state_at(at)
            if state is not None and params.get("filters.dseq") in (None, "", deployment.dseq):
                yield deployment, state

    def _deployments(self, call: Call) -> list[Row]:
        wanted = call.request.query_params.get("filters.state")
        return [
            chain_deployment(self._market, deployment, state)
            for deployment, state in self._known(call)
            if wanted in (None, "", state)
        ]

    def _info(self, call: Call) -> Row:
        params = call.request.query_params
        deployment = self._market.deployments.get(params.get("id.dseq", ""))
        state = deployment.state_at(self._knows_up_to(call)) if deployment is not None else None
        if deployment is None or state is None or params.get("id.owner") != self._market.account:
            raise chain_refused(404, "deployment not found")
        return chain_deployment(self._market, deployment, state)

    def _group(self, call: Call) -> Row:
        gseq = call.request.query_params.get("id.gseq")
        for group in self._info(call)["groups"]:
            if str(group["id"]["gseq"]) == gseq:
                found: Row = group
                return found
        raise chain_refused(404, "group not found")

    def _placed(self, call: Call) -> Iterator[tuple[Deployment, Placed]]:
        for deployment, _ in self._known(call):
            for placed in deployment.placed:
                yield deployment, placed

    def _orders(self, call: Call) -> Iterator[Row]:
        wanted = call.request.query_params.get("filters.state")
        for deployment, placed in self._placed(call):
            if wanted in (None, "", placed.order_state):
                order_id = {"owner": self._market.account, "dseq": deployment.dseq}
                yield {
                    "id": {**order_id, "gseq": placed.gseq, "oseq": 1},
                    "state": placed.order_state,
                    "spec": group_spec(placed.group),
                    "created_at": str(deployment.height),
                }

    def _bids(self, call: Call) -> Iterator[Row]:
        wanted = call.request.query_params.get("filters.state")
        for deployment, placed in self._placed(call):
            for bid in self._market.bids(deployment, placed):
                if wanted in (None, "", bid.state):
                    yield bid_row(self._market, deployment, placed, bid)

    def _leases(self, call: Call) -> Iterator[Row]:
        wanted = call.request.query_params.get("filters.state")
        for deployment, placed in self._placed(call):
            if placed.lease is not None and wanted in (None, "", placed.lease.state):
                yield {"lease": lease_row(self._market, deployment, placed)}

    async def _query(self, call: Call) -> Response:
        params: Any = call.body.get("params")
        if call.body.get("method") != "abci_query" or not isinstance(params, dict):
            error = {"code": -32601, "message": "Method not found"}
            return JSONResponse({"jsonrpc": "2.0", "id": 1, "error": error})
        told = {"code": 0, "log": "", "height": str(self._market.height)}
        if params.get("path") == "/akash.provider.v1beta4.Query/Providers":
            try:
                asked = bytes.fromhex(str(params.get("data", "")))
                told["value"] = base64.b64encode(self._providers(call.request, asked)).decode()
            except (ValueError, IndexError):
                told |= {"code": 3, "log": "invalid request"}
        else:
            told |= {"code": 6, "log": "unknown query path"}
        return JSONResponse({"jsonrpc": "2.0", "id": 1, "result": {"response": told}})

    def _providers(self, request: Request, asked: bytes) -> bytes:
        """Return a page of QueryProvidersResponse."""
        page = _message(_message(asked).get(1, b""))
        start = int.from_bytes(page.get(1, b""), "big")
        limit = int.from_bytes(page.get(3, b""), "big") or PAGE
        hosts = list(self._market.hosts.values())
        out = b""
        for host in hosts[start : start + limit]:
            row = provider_row(request, host)
            body = _bytes(1, row["owner"]) + _bytes(2, row["host_uri"])
            for each in row["attributes"]:
                body += _bytes(3, _bytes(1, each["key"]) + _bytes(2, each["value"]))
            out += _bytes(1, body + _bytes(4, _bytes(1, "") + _bytes(2, "")))
        more = start + limit < len(hosts)
        return out + _bytes(2, _bytes(1, (start + limit).to_bytes(4, "big")) if more else b"")

    async def _status(self, call: Call) -> Response:
        del call
        made_at = datetime.fromtimestamp(self._market.height_at, UTC).isoformat()
        sync = {
            "latest_block_height": str(self._market.height),
            "latest_block_time": made_at.replace("+00:00", "Z"),
            "catching_up": False,
        }
        return JSONResponse({"jsonrpc": "2.0", "id": -1, "result": {"sync_info": sync}})


def provider_row(request: Request, host: Host) -> Row:
    """Return a provider as the chain holds it."""
    country, region, _ = place(host.machine)
    told: Mapping[str, str | None] = {
        "host": "akash",
        "country": country,
        "location-region": f"{region}, {country}" if region else country,
        f"capabilities/gpu/vendor/nvidia/model/{host.card.model}": "true",
    }
    return {
        "owner": host.owner,
        "host_uri": host_uri(request),
        "attributes": [{"key": key, "value": value} for key, value in told.items() if value],
        "info": {"email": "", "website": ""},
    }


def _page(request: Request, name: str, rows: list[Row], *, own: bool = False) -> Response:
    """Return a page; `own`: of the chain's own modules, whose offsets and totals are odd."""
    params = request.query_params
    offset = params.get("pagination.offset")
    if own and offset and not params.get("filters.state"):
        raise chain_refused(400, "offset needs a state filter")
    try:
        start = _cursor(params["pagination.key"]) if params.get("pagination.key") else 0
        start += int(offset or 0)
        limit = int(params.get("pagination.limit") or PAGE)
    except (ValueError, binascii.Error):
        raise chain_refused(400, "invalid pagination") from None
    ordered = rows[::-1] if params.get("pagination.reverse") == "true" else rows
    page = ordered[start : start + limit]
    more = start + limit < len(rows)
    counted = len(page) if own else len(rows)
    total = counted if own or params.get("pagination.count_total") == "true" else 0
    key = base64.b64encode((start + limit).to_bytes(6, "big")).decode() if more else None
    return JSONResponse({name: page, "pagination": {"next_key": key, "total": str(total)}})


def _cursor(key: str) -> int:
    return int.from_bytes(base64.b64decode(key, validate=True), "big")


def _message(data: bytes) -> dict[int, bytes]:
    """Return a message's fields; numbers as their big-endian bytes, of one field the last."""
    fields: dict[int, bytes] = {}
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        if tag & 7 == 0:
            number, at = _varint(data, at)
            fields[tag >> 3] = number.to_bytes(8, "big")
        elif tag & 7 == 2:
            size, at = _varint(data, at)
            if at + size > len(data):
                raise ValueError("cut off")
            fields[tag >> 3] = data[at : at + size]
            at += size
        else:
            raise ValueError("unknown wire type")
    return fields


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


def _bytes(number: int, data: bytes | str) -> bytes:
    raw = data.encode() if isinstance(data, str) else data
    size, length = len(raw), bytearray()
    while size > 127:
        length.append(size & 127 | 128)
        size >>= 7
    return bytes([number << 3 | 2, *length, size]) + raw
