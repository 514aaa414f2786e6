"""`GET /api/v1/gpus`, `/api/v1/gpus/{id}` and `/api/v1/gpu-models`: the market over HTTP.

What this file hides: negotiation (form, content coding, validators), and a short way for a page
that is ready. A thousand offers are a megabyte of JSON which mostly has not changed since the last
caller; such a page leaves the route without passing the framework's reading of parameters. Whatever
is not ready takes the long way, and comes back by the short one next time.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping, Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from decimal import Decimal
from functools import lru_cache
from typing import Any, Final, NamedTuple
from weakref import WeakKeyDictionary

from fastapi import APIRouter, HTTPException, Request
from fastapi.routing import APIRoute
from msgspec import UNSET, UnsetType, defstruct, structs
from starlette.responses import Response, StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gp4u.api.market import listing
from gp4u.api.market.catalogue import Catalogue, GpuModelsShape, ListingShape, Page
from gp4u.api.market.compression import Coding, coder, coding_for, weighted
from gp4u.api.replies import JSON, NDJSON, StrictRoute, documented, json_reply, role
from gp4u.desk.shapes import OfferShape, SourceShape
from gp4u.selection.prices import ModelPrices

MAX_STREAMS: Final = 8
"""At once: each holds on to the offers that it began with."""
STREAM_RETRY_S: Final = 5
STALL_S: Final = 30.0
"""A client that takes nothing of a stream for so long is cut off."""
COMMON: Final[Mapping[str, str]] = {"Cache-Control": "no-cache", "Vary": "Accept, Accept-Encoding"}

_EXAMPLE: Final = OfferShape(
    id="vastai/20481234",
    provider="vastai",
    offer_id="20481234",
    gpu_model="RTX 4090",
    gpu_count=1,
    vram_gib=24.0,
    price_usd_per_hour=Decimal("0.342500"),
    region="US-CA",
    country="US",
    reliability=0.994,
    download_mbps=812.5,
    interruptible=False,
    g_score=61.4,
    g_score_parts={"performance": 0.534, "reliability": 0.994, "efficiency": 0.506},
    fetched_at=datetime(2026, 11, 22, 9, 30, tzinfo=UTC),
    gpu_usd_per_hour=Decimal("0.340000"),
    storage_usd_per_hour=Decimal("0.002500"),
    upload_mbps=640.0,
    cpu_cores=16.0,
    ram_gib=64.0,
    disk_gib=512.0,
    open_ports=100,
    machine_id="48213",
    host_id="1502",
    verified=True,
    datacenter=False,
    estimated=False,
    available=True,
)
_SOURCE: Final = SourceShape(
    provider="vastai",
    offers=64,
    age_s=4.2,
    complete=False,
    skipped_rows=0,
    error="",
    retry_in_s=None,
)
_PRICES: Final = ModelPrices(
    gpu_model="RTX 4090",
    provider="vastai",
    count=412,
    gpus=655,
    vram_gib=24.0,
    min=Decimal("0.184000"),
    median=Decimal("0.342500"),
    p90=Decimal("0.520000"),
)
_AT: Final = datetime(2026, 11, 22, 9, 30, tzinfo=UTC)
_ListedOffer: Final = defstruct(
    "ListedOffer",
    [(each.name, each.type | UnsetType, UNSET) for each in structs.fields(OfferShape)],
)
"""An offer of which only some fields may have been asked for."""
_Listing: Final = defstruct(
    "Listing",
    [
        ("items", Sequence[_ListedOffer]),  # type: ignore[valid-type]  # made of fields, at run time
        *((each.name, each.type) for each in structs.fields(ListingShape) if each.name != "items"),
    ],
)
_UNCHANGED: Final = {304: {"description": "Still what If-None-Match names"}}


class Wish(NamedTuple):
    """What a request says of the form of its answer."""

    media: str | None
    """JSON or NDJSON; None: neither will do."""
    coding: Coding
    known: str
    """If-None-Match, as it came."""


def gpu_routes(*, catalogue: Catalogue) -> APIRouter:
    """Return the routes of the market."""
    router = APIRouter(tags=["market"])
    seats, replies = asyncio.Semaphore(MAX_STREAMS), _Replies()

    class Ready(APIRoute):
        """Gives out a page that is ready; all others go the framework's way."""

        def at_once(self, scope: Scope) -> ASGIApp | None:
            """Return a page that is ready; the door asks."""
            wish = wish_of(scope["headers"])
            if wish.media != JSON:
                return None
            page = catalogue.ready(scope["query_string"], wish.coding)
            return None if page is None else replies.reply(page, wish)

    async def gpus(request: Request) -> Response:
        """Every offer of every open market that passes the filters, as the book last saw it.

        A page is the same bytes until a market is fetched again, so send `If-None-Match`. Follow
        `next_cursor` for the rest; offers that come and go meanwhile neither repeat others nor hide
        them. With `Accept: application/x-ndjson` all matches come as lines, in one answer.
        """
        wish, query = _wish(request), request.scope["query_string"]
        if wish.media == JSON:
            return replies.reply(await catalogue.page(query, wish.coding), wish)
        ask = catalogue.asked(query, streams=True)
        if seats.locked():
            headers = {"Retry-After": str(STREAM_RETRY_S)}
            raise HTTPException(503, f"{MAX_STREAMS} streams are being read", headers=headers)
        if request.method == "HEAD":
            return Response(headers={**COMMON, **_encoding(wish.coding)}, media_type=NDJSON)
        return _Lines(catalogue.lines(ask), wish.coding, seats)

    async def gpu(request: Request, id: str) -> Response:  # noqa: A002 - the parameter's public name
        """One offer: `id` is `provider/offer_id`, as a listing shows it."""
        return json_reply(request, await catalogue.find(id))

    async def gpu_models(request: Request) -> Response:
        """Offers, GPUs, and least, median and 90th percentile of the price per GPU and hour.

        Of what can be rented now, without bids, by market and model.
        """
        wish = _wish(request)
        if wish.media != JSON:
            raise HTTPException(406, f"there is {JSON}")
        page = await catalogue.models(request.scope["query_string"], wish.coding)
        return replies.reply(page, wish)

    router.add_api_route(
        "/api/v1/gpus",
        gpus,
        methods=["GET"],
        operation_id="list_gpus",
        summary="List offers",
        response_model=None,
        responses=_listed(),
        openapi_extra={**role("read"), "parameters": listing.parameters()},
        route_class_override=Ready,
    )
    router.add_api_route(
        "/api/v1/gpus/{id:path}",
        gpu,
        methods=["GET"],
        operation_id="show_gpu",
        summary="Show one offer",
        response_model=None,
        responses=documented(OfferShape, errors=(404, 422), example=_EXAMPLE),
        openapi_extra=role("read"),
        route_class_override=StrictRoute,
    )
    router.add_api_route(
        "/api/v1/gpu-models",
        gpu_models,
        methods=["GET"],
        operation_id="list_gpu_models",
        summary="Show what each GPU model costs at each market",
        response_model=None,
        responses=_priced(),
        openapi_extra={**role("read"), "parameters": listing.parameters(listing.WHICH)},
    )
    for path, endpoint in (
        ("/api/v1/gpus", gpus),
        ("/api/v1/gpus/{id:path}", gpu),
        ("/api/v1/gpu-models", gpu_models),
    ):
        router.add_api_route(
            path,
            endpoint,
            methods=["HEAD"],
            include_in_schema=False,
            response_model=None,
            openapi_extra=role("read"),
        )
    return router


def wish_of(headers: Iterable[tuple[bytes, bytes]]) -> Wish:
    """Return what a request's head says of the form of its answer; repeated lists are joined."""
    accept = accept_encoding = known = b""
    for name, value in headers:
        if name == b"accept":
            accept += value if not accept else b"," + value
        elif name == b"accept-encoding":
            accept_encoding += value if not accept_encoding else b"," + value
        elif name == b"if-none-match":
            known += value if not known else b"," + value
    media = media_for(accept.decode("latin-1"))
    return Wish(media, coding_for(accept_encoding.decode("latin-1")), known.decode("latin-1"))


@lru_cache(maxsize=256)
def media_for(accept: str) -> str | None:
    """Return JSON or NDJSON, whichever is liked better; None where neither is accepted."""
    if not accept.strip():
        return JSON
    weights = weighted(accept)
    rest = weights.get("application/*", weights.get("*/*", 0.0))
    as_one, as_lines = weights.get(JSON, rest), weights.get(NDJSON, rest)
    if not as_one and not as_lines:
        return None
    return NDJSON if as_lines > as_one else JSON


def _wish(request: Request) -> Wish:
    """Raises HTTPException: there is nothing in the form that is asked for."""
    wish = wish_of(request.scope["headers"])
    if wish.media is None:
        raise HTTPException(406, f"there are {JSON} and {NDJSON}")
    return wish


class _Replies:
    """Pages as replies; one that is ready has its headers written once."""

    def __init__(self) -> None:
        self._whole: WeakKeyDictionary[Page, dict[Coding, Response]] = WeakKeyDictionary()

    def reply(self, page: Page, wish: Wish) -> Response:
        """Return a page, or that the caller has it already."""
        tag = f'"{page.etag}-{wish.coding}"' if page.etag else ""
        if tag and wish.known:
            known = {each.strip().removeprefix("W/") for each in wish.known.split(",")}
            if known & {tag, "*"}:
                return Response(status_code=304, headers={**COMMON, "ETag": tag})
        whole = self._whole.setdefault(page, {})
        if wish.coding not in whole:
            headers = {**COMMON, **_encoding(wish.coding)} | ({"ETag": tag} if tag else {})
            body = page.bodies[wish.coding]
            whole[wish.coding] = Response(body, headers=headers, media_type=JSON)
        return whole[wish.coding]


def _encoding(coding: Coding) -> dict[str, str]:
    return {} if coding == "identity" else {"Content-Encoding": coding}


class _Lines(StreamingResponse):
    """A stream of lines, which holds a seat for as long as it lasts.

    One that ends early ends without its last chunk, so a client can tell that from the end.
    """

    def __init__(
        self, lines: AsyncGenerator[bytes, None], coding: Coding, seats: asyncio.Semaphore
    ) -> None:
        self._lines, self._seats = lines, seats
        headers = {**COMMON, **_encoding(coding)}
        super().__init__(_coded(lines, coding), headers=headers, media_type=NDJSON)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def patient(message: Message) -> None:
            async with asyncio.timeout(STALL_S):
                await send(message)

        async with self._seats, aclosing(self._lines):
            await super().__call__(scope, receive, patient)


async def _coded(lines: AsyncIterator[bytes], coding: Coding) -> AsyncIterator[bytes]:
    making = coder(coding)
    async for some in lines:
        if ready := making.compress(some) if making else some:
            yield ready
    if making:
        yield making.flush()


def _listed() -> dict[int | str, dict[str, Any]]:
    example = ListingShape(
        items=[_EXAMPLE], total=1, next_cursor=None, taken_at=_AT, sources=[_SOURCE]
    )
    found = documented(_Listing, errors=(404, 406, 422, 503), example=example)
    found[200]["content"][NDJSON] = {"schema": {"type": "string"}}
    return found | _UNCHANGED


def _priced() -> dict[int | str, dict[str, Any]]:
    example = GpuModelsShape(items=[_PRICES], taken_at=_AT, sources=[_SOURCE])
    return documented(GpuModelsShape, errors=(404, 406, 422), example=example) | _UNCHANGED
