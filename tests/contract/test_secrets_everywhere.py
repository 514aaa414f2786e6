"""No key or secret of any market stands in an address, a log, an error, or a file (S4, S5).

Each market in turn answers every call with the keys that it was sent, in the shapes of its errors
and of its successes; what was written, raised, logged or sent is then searched for them.
"""

from __future__ import annotations

import io
import json
import logging
import traceback
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
import structlog

from gp4u.errors import Gp4uError
from gp4u.telemetry import configure
from tests.contract.conformance.dialects import KEY, SECRET
from tests.contract.conformance.quarter import MARKETS, Quarter, quarter
from tests.virtual_loop import run_virtual

STATUSES = (200, 400, 401, 403, 404, 429, 500)


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """Everything that is logged, at the finest level, through the ordinary rim."""
    stream = io.StringIO()
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    configure("DEBUG", "json", [KEY, SECRET], stream)
    yield stream
    root.handlers[:], root.level = before, level
    structlog.reset_defaults()


class Echo(httpx2.AsyncBaseTransport):
    """Says back what it was sent, once the market has shown its offers."""

    def __init__(self, inner: httpx2.AsyncBaseTransport, status: int) -> None:
        self._inner, self._status = inner, status
        self.speaks = False
        self.urls: list[str] = []
        self.bodies: list[bytes] = []
        self.headers: list[str] = []

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        self.urls.append(str(request.url))
        self.bodies.append(await request.aread())
        self.headers.append(repr(request.headers.raw))
        if not self.speaks:
            return await self._inner.handle_async_request(request)
        text = f"your key {KEY}, and all you sent: {request.headers.raw!r}"
        body = {
            "success": False,
            "error": {"code": KEY, "message": text},
            "detail": text,
            "message": text,
            "msg": text,
            "data": {"status": KEY},
        }
        stream = httpx2.ByteStream(json.dumps(body).encode())
        return httpx2.Response(self._status, stream=stream, request=request)


@pytest.mark.parametrize("status", STATUSES)
@pytest.mark.parametrize("slug", list(MARKETS))
def test_what_a_market_says_back_of_a_key_reaches_nobody(
    tmp_path: Path, log: io.StringIO, slug: str, status: int
) -> None:
    """A reply is foreign text, and some of it is our own secret coming back."""
    said: list[str] = []
    echoes: list[Echo] = []

    def way(inner: httpx2.AsyncBaseTransport) -> httpx2.AsyncBaseTransport:
        echoes.append(Echo(inner, status))
        return echoes[-1]

    async def life() -> None:
        async with quarter(tmp_path, slug, way) as place:
            rental, _ = await place.rent(slug)
            (echo,) = echoes
            echo.speaks = True
            await every_call(place, slug, rental.instance_id or "", said)
            echo.speaks = False
            await place.release(rental)
            said.append(repr(place.app.settings) + str(place.app.settings))

    run_virtual(life)

    (echo,) = echoes
    assert KEY in "".join(echo.headers), "the market was never shown the key"
    for name, text in {
        "an address": "\n".join(echo.urls),
        "a body": "\n".join(map(repr, echo.bodies)),
        "what was raised": "\n".join(said),
        "the log": log.getvalue(),
    }.items():
        assert KEY not in text, f"the key is in {name}"
        assert SECRET not in text, f"the secret is in {name}"
    for path in (path for path in tmp_path.rglob("*") if path.is_file()):
        held = path.read_bytes()
        assert KEY.encode() not in held, f"the key is in {path.name}"
        assert SECRET.encode() not in held, f"the secret is in {path.name}"


async def every_call(place: Quarter, slug: str, instance_id: str, said: list[str]) -> None:
    """Do all that speaks to one market, and keep the text of what it raises, chain and all."""
    provider, app = place.app.providers[slug], place.app
    app.book.invalidate()

    async def offers() -> None:
        snapshot, _ = await place.offers()
        said.append(repr(snapshot))
        said.extend(stats.error for stats in app.book.stats().values())

    async def rent() -> None:
        await place.rent(slug)

    async def tick() -> None:
        await app.reconciler.tick(slug)

    async def logs() -> None:
        said.append(await provider.logs(instance_id))

    async def extend() -> None:
        await provider.extend(instance_id)

    async def run() -> None:
        await provider.exec(instance_id, ["true"])

    async def bill() -> None:
        await provider.billed(instance_id)

    async def release() -> None:
        await provider.release(instance_id)

    for call in (provider.ping, offers, rent, tick, logs, extend, run, bill, release):
        try:
            await call()
        except Gp4uError as error:
            said.append("".join(traceback.format_exception(error)))
            said.append(repr(error.__dict__))
            structlog.get_logger().exception("call_failed", error=error)
    said.append(repr(app.guards[slug].health()))
