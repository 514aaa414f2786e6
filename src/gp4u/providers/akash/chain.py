"""Akash's chain, read through public nodes: REST first, CometBFT's RPC where no REST node answers.

What this file hides: paging, nodes that lag or are down, the version in every path, and the
protobuf of the one query that is also asked over RPC. Nodes are public and of nobody's in
particular, so several are asked: what one of them shows exists, and only what none of them shows,
while enough have answered, may be absent.

Nothing here carries a key. Each node has a guard of its own, so that two that are down do not keep
the third from being asked.

Source: `docs/reference/akash.md` (node:x/market/keeper, chain-sdk:proto, 2026); checked 2026-11.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import ssl
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Final
from urllib.parse import quote

import httpx2
import msgspec

from gp4u.errors import Malformed, ProviderError
from gp4u.providers.akash.estimates import Host
from gp4u.providers.akash.held import Block, Held
from gp4u.providers.akash.wire import SLUG
from gp4u.providers.contract import Call
from gp4u.providers.http import Http, decode, harmless, rows

PAGE: Final = 200
MAX_PAGES: Final = 50
NODES_ASKED: Final = 2
"""How many answers are sought; a further node is asked only in place of one that gave none."""
BLOCK_SERVES_S: Final = 600.0
"""For so long a block counts as the newest: its age is known, and only its successors' is taken."""
_PROVIDERS: Final = "/akash/provider/v1beta4/providers"
_CERTIFICATES: Final = "/akash/cert/v1/certificates/list"
_DEPLOYMENTS: Final = "/akash/deployment/v1beta4/deployments/list"


class _Page(msgspec.Struct):
    next_key: str | None = None


class _Attribute(msgspec.Struct):
    key: str
    value: str


class _ChainHost(msgspec.Struct):
    owner: str
    host_uri: str = ""
    attributes: list[_Attribute] = []


class _HostsReply(msgspec.Struct):
    providers: list[msgspec.Raw]
    pagination: _Page | None = None


class _HostReply(msgspec.Struct):
    provider: _ChainHost


class _DeploymentsReply(msgspec.Struct):
    deployments: list[msgspec.Raw]
    pagination: _Page | None = None


class _Cert(msgspec.Struct):
    cert: str
    """PEM, in base64 once more."""


class _CertRow(msgspec.Struct):
    certificate: _Cert


class _CertsReply(msgspec.Struct):
    certificates: list[msgspec.Raw]


class _AbciResponse(msgspec.Struct):
    code: int = 0
    log: str = ""
    value: str | None = None


class _AbciResult(msgspec.Struct):
    response: _AbciResponse


class _AbciReply(msgspec.Struct):
    result: _AbciResult


class _SyncInfo(msgspec.Struct):
    latest_block_height: str
    latest_block_time: datetime


class _StatusResult(msgspec.Struct):
    sync_info: _SyncInfo


class _StatusReply(msgspec.Struct):
    result: _StatusResult


class Node(msgspec.Struct, frozen=True):
    """A public node: its address, and the way there."""

    url: str
    http: Http


class Seen(msgspec.Struct, frozen=True):
    """What nodes show of one account: the union, and how many of them answered in full."""

    deployments: Mapping[str, Held]
    answers: int


def rest_urls(given: Sequence[str], rpc_url: str) -> tuple[str, ...]:
    """Return the REST nodes' addresses: those given, or the twin of the RPC address if it has one.

    Source: cosmos.directory names its proxies `rpc.` and `rest.`; checked 2026-11.
    """
    url = httpx2.URL(rpc_url)
    if given or not url.host.startswith("rpc."):
        return tuple(given)
    return (str(url.copy_with(host=f"rest.{url.host.removeprefix('rpc.')}")).rstrip("/"),)


class Chain:
    """The nodes that are asked, in the order in which they are."""

    def __init__(self, *, rest: Sequence[Node], rpc: Node) -> None:
        """`rest` are REST nodes, `rpc` is a CometBFT node."""
        self._rest, self._rpc = tuple(rest), rpc
        self._newest: Block | None = None
        self._asked_at: float | None = None

    @property
    def why_silent(self) -> str:
        """Why nobody tells of deployments, once nobody did."""
        if self._rest:
            return "no node of the chain answered"
        return "no node of the chain to ask; set AKASH_REST_URL"

    async def hosts(self) -> list[Host]:
        """Return every provider that the chain knows; of their state it knows nothing.

        Raises:
            ProviderError: no node answered; what the last one said.
        """
        for node in self._rest:
            try:
                raw = await _walk(node, _PROVIDERS, {}, "chain_hosts")
            except ProviderError:
                continue  # the next node may know
            return [_host(each) for each in rows(raw, _ChainHost)[0]]
        return [_host(each) async for each in self._rpc_hosts()]

    async def host(self, owner: str) -> Host:
        """Return one provider.

        Raises:
            ProviderError: no node knows it; what the last one said.
        """
        trouble: ProviderError = Malformed(SLUG, "chain_hosts", "no node to ask for a host")
        for node in self._rest:
            try:
                call = Call(method="GET", url=f"{node.url}{_PROVIDERS}/{quote(owner, safe='')}")
                body = await node.http.send("chain_hosts", call, safe=True)
                return _host(decode(SLUG, "chain_hosts", body, _HostReply).provider)
            except ProviderError as error:
                trouble = error
        async for each in self._rpc_hosts():
            if each.owner == owner:
                return _host(each)
        raise trouble

    async def deployments(self, owner: str) -> Seen:
        """Return the active deployments of an account that any node shows, by number.

        A node that shows what was not asked for, or what cannot be read, has not answered.
        """
        found: dict[str, Held] = {}
        answers = 0
        for node in self._rest:
            params = {"filters.owner": owner, "filters.state": "active"}
            try:
                raw = await _walk(node, _DEPLOYMENTS, params, "chain_deployments")
            except ProviderError:
                continue
            kept, bad = rows(raw, Held)
            for held in kept:
                head = held.deployment
                if head.state == "active" and head.id.owner in (None, owner):
                    found.setdefault(held.dseq, held)
                else:
                    bad += 1
            answers += not bad
            if answers == NODES_ASKED:
                break
        return Seen(found, answers)

    async def newest(self) -> Block | None:
        """Return a block of the last minutes, else the newest that is known; None where none is."""
        now = asyncio.get_running_loop().time()
        if self._asked_at is None or now - self._asked_at >= BLOCK_SERVES_S:
            self._asked_at = now
            call = Call(method="GET", url=f"{self._rpc.url}/status")
            try:
                body = await self._rpc.http.send("chain_status", call, safe=True)
                told = decode(SLUG, "chain_status", body, _StatusReply).result.sync_info
                if told.latest_block_time.tzinfo is not None:
                    self._newest = Block(int(told.latest_block_height), told.latest_block_time)
            except (ProviderError, ValueError):
                pass  # the last one still tells more than none
        return self._newest

    async def certificates(self, owner: str) -> tuple[bytes, ...]:
        """Return the certificates that a provider has registered (DER); none where nobody tells."""
        params = {"filter.owner": owner, "filter.state": "valid"}
        for node in self._rest:
            call = Call(method="GET", url=f"{node.url}{_CERTIFICATES}")
            try:
                body = await node.http.send("chain_certs", call, safe=True, params=params)
                found = decode(SLUG, "chain_certs", body, _CertsReply).certificates
            except ProviderError:
                continue  # the next node may know
            return tuple(der for each in rows(found, _CertRow)[0] for der in _der(each))
        return ()

    async def aclose(self) -> None:
        """Close the connections."""
        for node in (*self._rest, self._rpc):
            await node.http.aclose()

    async def _rpc_hosts(self) -> AsyncIterator[_ChainHost]:
        key = b""
        for _ in range(MAX_PAGES):
            call = Call(method="POST", url=self._rpc.url, body=_abci(key))
            body = await self._rpc.http.send("chain_rpc", call, safe=True)
            answer = decode(SLUG, "chain_rpc", body, _AbciReply).result.response
            if answer.code:
                raise Malformed(SLUG, "chain_rpc", harmless(answer.log))
            try:
                value = base64.b64decode(answer.value or "", validate=True)
                hosts, key = read_providers(value)
            except (binascii.Error, ValueError, IndexError) as error:
                raise Malformed(SLUG, "chain_rpc", "the value is not protobuf") from error
            for host in hosts:
                yield host
            if not key:
                return
        raise Malformed(SLUG, "chain_rpc", "the pages do not end")


async def _walk(
    node: Node, path: str, params: Mapping[str, str], operation: str
) -> list[msgspec.Raw]:
    """Return the rows of all pages; only an empty key ends them, for totals are of a page."""
    found: list[msgspec.Raw] = []
    query = {**params, "pagination.limit": str(PAGE)}
    seen: set[str] = set()
    call = Call(method="GET", url=f"{node.url}{path}")
    for _ in range(MAX_PAGES):
        body = await node.http.send(operation, call, safe=True, params=query)
        page: _HostsReply | _DeploymentsReply
        if operation == "chain_hosts":
            page = decode(SLUG, operation, body, _HostsReply)
            found += page.providers
        else:
            page = decode(SLUG, operation, body, _DeploymentsReply)
            found += page.deployments
        key = page.pagination.next_key if page.pagination is not None else None
        if not key:
            return found
        if key in seen:
            break
        seen.add(key)
        query["pagination.key"] = key
    raise Malformed(SLUG, operation, "the pages do not end")


def _host(row: _ChainHost) -> Host:
    told = {each.key: each.value for each in row.attributes}
    return Host(
        owner=row.owner,
        host_uri=row.host_uri,
        country=told.get("country"),
        location_region=told.get("location-region") or told.get("region"),
    )


def _der(row: _CertRow) -> Iterator[bytes]:
    """Yield a certificate as a connection shows it; nothing where it cannot be read."""
    try:
        pem = base64.b64decode(row.certificate.cert, validate=True).decode("ascii")
        yield ssl.PEM_cert_to_DER_cert(pem)
    except ValueError:
        return


def _abci(key: bytes) -> dict[str, object]:
    """Return the query for a page of providers: PageRequest with key 1 and limit 3, in field 1."""
    page = (_field(1, key) if key else b"") + b"\x18" + _varint(PAGE)
    return {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "abci_query",
        "params": {
            "path": "/akash.provider.v1beta4.Query/Providers",
            "data": _field(1, page).hex(),
            "height": "0",
            "prove": False,
        },
    }


def read_providers(data: bytes) -> tuple[list[_ChainHost], bytes]:
    """Read QueryProvidersResponse: the providers of a page, and the key of the next one.

    Raises:
        ValueError, IndexError: it is not that message.
    """
    hosts: list[_ChainHost] = []
    key = b""
    for number, value in _fields(data):
        if number == 1:
            parts = list(_fields(value))
            attributes = [dict(_fields(each)) for field, each in parts if field == 3]
            texts = dict(parts)
            hosts.append(
                _ChainHost(
                    owner=texts.get(1, b"").decode(),
                    host_uri=texts.get(2, b"").decode(),
                    attributes=[
                        _Attribute(each.get(1, b"").decode(), each.get(2, b"").decode())
                        for each in attributes
                    ],
                )
            )
        elif number == 2:
            key = dict(_fields(value)).get(1, b"")
    return hosts, key


def _fields(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the fields of a message that hold bytes; numbers are stepped over."""
    at = 0
    while at < len(data):
        tag, at = _read_varint(data, at)
        match tag & 7:
            case 0:
                _, at = _read_varint(data, at)
            case 2:
                size, at = _read_varint(data, at)
                if at + size > len(data):
                    raise ValueError("a field is longer than its message")
                yield tag >> 3, data[at : at + size]
                at += size
            case 1 | 5 as wide:
                at += 8 if wide == 1 else 4
            case _:
                raise ValueError("no such kind of field")


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number without an end")


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _field(number: int, data: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(data)) + data
