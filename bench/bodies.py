"""What the four markets answer to a search, recorded from their simulators and made larger.

Hides how a body with so many rows comes to be: a real client asks a real simulator over loopback
once, what comes back is kept, and its rows are repeated under new ids until there are enough. Each
row is therefore shaped and spread as the simulator, written from the market's documents, has it.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from itertools import count, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import httpx2
import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gp4u.app import open_app
from gp4u.model import Requirements
from gp4u.providers.contract import Query
from gp4u.settings import load_settings
from gp4u.sim.serve import simulator

RENDER_PAGE = 50
IONET_LEAN = ("id", "name", "num_cards", "price", "location", "vram_per_card")


class Recorder(httpx2.AsyncBaseTransport):
    """Carries calls over the network, and keeps the newest body by the path that it came from."""

    def __init__(self) -> None:
        self._network = httpx2.AsyncHTTPTransport()
        self.bodies: dict[str, bytes] = {}

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        response = await self._network.handle_async_request(request)
        body = await response.aread()
        if response.status_code == 200:
            self.bodies[request.url.path] = body
        return httpx2.Response(response.status_code, stream=httpx2.ByteStream(body))

    async def aclose(self) -> None:
        await self._network.aclose()


class Recorded(NamedTuple):
    """What one search made the simulator of a market say."""

    bodies: Mapping[str, bytes]
    """By path."""
    environ: Mapping[str, str]
    """The variables that led a client there."""
    origin: str
    """What the addresses among them begin with."""

    def ending(self, path: str) -> bytes:
        """Return the one body whose path ends so."""
        (body,) = (body for at, body in self.bodies.items() if at.endswith(path))
        return body


async def recorded(provider: str, *, offers: int) -> Recorded:
    """Let a client ask a simulated market once."""
    with TemporaryDirectory() as folder:
        async with simulator(provider, offers=offers) as market:
            environ, origin = market.env, market.origin
            database = {"GP4U_DATABASE_URL": f"sqlite:///{folder}/ledger.db"}
            settings = load_settings({**environ, **database}, Path(folder))
            recorder = Recorder()
            async with open_app(settings, transport=recorder) as app:
                wanted = Requirements(providers=(provider,), verified_only=False)
                snapshot = await app.book.snapshot(Query(requirements=wanted))
    (note,) = snapshot.sources
    assert not note.error, note.error
    assert snapshot.offers
    return Recorded(recorder.bodies, environ, origin)


def ionet_list(body: bytes, rows: int, *, lean: bool = False) -> bytes:
    """Return a list of hardware with so many rows; `lean` ones have only what an offer needs."""
    found = [row for row in msgspec.json.decode(body)["data"]["hardware"] if row["price"]]
    if lean:
        found = [{name: row[name] for name in IONET_LEAN} for row in found]
    numbers = count(1000)
    repeated = (row | {"id": next(numbers)} for _ in count() for row in found)
    return msgspec.json.encode({"data": {"hardware": list(islice(repeated, rows))}})


def render_pages(body: bytes, rows: int) -> list[bytes]:
    """Return the pages of a list of offers with so many rows."""
    page: dict[str, Any] = msgspec.json.decode(body)
    numbers = count(1)
    repeated = (
        row | {"offer_id": f"{row['offer_id']}-{next(numbers)}"}
        for _ in count()
        for row in page["data"]
    )
    return [
        msgspec.json.encode(page | {"data": list(islice(repeated, RENDER_PAGE)), "total": rows})
        for _ in range(0, rows, RENDER_PAGE)
    ]


@asynccontextmanager
async def canned(cans: Mapping[str, Sequence[bytes]]) -> AsyncIterator[int]:
    """Answer every call with the body of its path, or its `page` of them; yield the port."""

    async def answer(request: Request) -> Response:
        bodies = cans.get(request.url.path)
        if bodies is None:
            return Response(b"{}", 404, media_type="application/json")
        page = int(request.query_params.get("page", 1)) if len(bodies) > 1 else 1
        return Response(bodies[page - 1], media_type="application/json")

    routes = [Route("/{path:path}", answer, methods=["GET", "POST", "PUT"])]
    config = uvicorn.Config(Starlette(routes=routes), log_level="critical", lifespan="off")
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        async with asyncio.TaskGroup() as group:
            serving = group.create_task(server.serve(sockets=[listener]))
            yield listener.getsockname()[1]
            server.should_exit = True
            await serving
