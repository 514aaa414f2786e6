"""The server put together: the open app, the API before it, and every loop that a server keeps.

Beside `app.py`, which builds what every command needs, stands here what only a process that stays
needs: the book kept warm, prices written down, events passed on, jobs that outlive the request they
came with. `gp4u serve` and `uvicorn gp4u.asgi:app` both open this.
"""

from __future__ import annotations

import ctypes
import gc
import secrets
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from random import Random
from typing import Final

import httpx2
from fastapi import FastAPI
from fastapi.routing import iter_route_contexts
from starlette.types import ASGIApp

from gp4u.api.door.door import Door
from gp4u.api.door.tokens import Tokens, check_exposure
from gp4u.api.door.wire import WireLimits, server_config
from gp4u.api.health.health import health_routes
from gp4u.api.health.operations import Pulse, operation_routes
from gp4u.api.market.catalogue import Catalogue
from gp4u.api.market.gpus import gpu_routes
from gp4u.api.market.prices import price_routes
from gp4u.api.rentals.decisions import decision_routes
from gp4u.api.rentals.events import EventBus, event_routes
from gp4u.api.rentals.jobs import Jobs
from gp4u.api.rentals.rentals import rental_routes
from gp4u.api.server import build_api, serve_api
from gp4u.app import App, greetings, open_app
from gp4u.book import STANDING
from gp4u.clock import Clock
from gp4u.errors import ProviderError
from gp4u.metrics import Metrics
from gp4u.providers.registry import Registry
from gp4u.rentals.recorder import PriceRecorder
from gp4u.settings import Settings
from gp4u.telemetry import request_log
from gp4u.traces import opened_traces

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_LARGE_BLOCK_BYTES: Final = 4 << 20
"""Above what waits for a caller's socket: such a block comes and goes with each reply."""
_SPARE_BYTES: Final = 2 * _LARGE_BLOCK_BYTES
"""What the heap keeps at its end; glibc's own 128 KiB would be given back with each reply."""

Greet = Callable[[Mapping[str, ProviderError | None], Mapping[str, str]], None]


@dataclass(frozen=True, slots=True)
class Server:
    """An open server: the API as an ASGI app, and the loops that have to run beside it."""

    app: App
    routes: FastAPI
    """The API without its door."""
    api: ASGIApp
    loops: tuple[Callable[[], Awaitable[None]], ...]
    metrics: Metrics

    async def run(self, *also: Callable[[], Awaitable[None]]) -> None:
        """Run every loop until cancelled, beside whatever else is given.

        Raises:
            LedgerLocked: another process does this for the same ledger.
        """
        gc.freeze()  # code stays: to look through it for garbage stalls the loop each time
        await self.app.run(*self.loops, *also)


async def serve(
    settings: Settings,
    *,
    host: str,
    port: int,
    started: Callable[[str], None],
    greeted: Greet,
) -> None:
    """Serve until cancelled.

    `started` gets the address that is served; `greeted` once gets each open market, with why its
    first call failed, or None, and each other one with why it is not open.

    Raises:
        BadInput: the address cannot be listened on, or only with tokens.
        LedgerLocked: another process serves the same ledger.
    """
    check_exposure(host, Tokens(settings.api.granted))
    async with open_server(settings, host=host) as server:
        limits = WireLimits(header_timeout_s=settings.api.header_timeout_s)
        config = server_config(server.api, limits)

        async def listen() -> None:
            await serve_api(config, host=host, port=port, started=started)

        async def greet() -> None:
            greeted(await greetings(server.app.providers), server.app.disabled)

        await server.run(listen, greet)


@asynccontextmanager
async def open_server(
    settings: Settings,
    *,
    host: str = "",
    clock: Clock | None = None,
    random: Random | None = None,
    transport: httpx2.AsyncBaseTransport | None = None,
    registry: Registry | None = None,
) -> AsyncIterator[Server]:
    """Build a server from settings, and close it in the end; nothing is sent or listened to yet.

    `host` is a name under which it may be called, besides those of the settings. The rest is as in
    `open_app`.

    Raises:
        BadInput: a setting does not fit.
        LedgerUnusable: the ledger cannot be opened.
    """
    _return_large_blocks()
    metrics = Metrics(settings.provider_slugs, [each.name for each in settings.node.nodes])
    async with (
        opened_traces(settings.otlp_url) as traces,
        open_app(
            settings,
            clock=clock,
            random=random,
            transport=transport,
            metrics=metrics,
            traces=traces,
            registry=registry,
        ) as app,
    ):
        bus = EventBus(
            clock=app.clock,
            boot=secrets.token_hex(4),
            ledger_id=await app.ledger.newest_event(),
        )
        recorder = PriceRecorder(
            book=app.book, history=app.history, clock=app.clock, query=STANDING
        )
        _listen(app, bus, recorder, metrics)
        jobs, pulse = Jobs(), Pulse(metrics)
        routes = _routes(app, bus, jobs, metrics)
        metrics.close_routes(each.path for each in iter_route_contexts(routes.routes) if each.path)
        door = Door(
            routes,
            tokens=Tokens(settings.api.granted),
            hosts=(*settings.api.hosts, *((host,) if host else ())),
            max_body_bytes=settings.api.max_body_bytes,
            max_concurrent=settings.api.max_concurrent,
            metrics=metrics,
            log=request_log,
        )

        async def keep() -> None:
            await app.book.keep(STANDING)

        api = traces.serving(door) if traces else door
        yield Server(app, routes, api, (keep, recorder.run, jobs.run, pulse.run), metrics)


def _return_large_blocks() -> None:
    """Have large blocks of memory go back to the system once they are free.

    After the first market's body of some ten megabytes glibc takes such blocks from its heap, where
    what is allocated beside them keeps them from being returned: fifty megabytes by the third
    refresh of a large market. Other C libraries have no such habit, and no such call.

    Source: mallopt(3) of the Linux man-pages 6.9, M_MMAP_THRESHOLD and M_TRIM_THRESHOLD; checked
    2026-11.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BLOCK_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _SPARE_BYTES)  # which follows the other only while that is unset


def _listen(app: App, bus: EventBus, recorder: PriceRecorder, metrics: Metrics) -> None:
    """Connect those who tell with those who pass it on."""

    def refreshed(slug: str, offers: int, error: str) -> None:
        bus.offers_refreshed(slug, offers, error)
        recorder.refreshed(slug, offers, error)

    def moved(slug: str) -> Callable[[str, str], None]:
        return lambda old, new: bus.provider_state(slug, old, new)

    app.book.on_refresh = refreshed
    app.ledger.on_event = bus.rental_event
    app.ledger.database.on_commit = metrics.ledger_commit
    recorder.on_written = metrics.price_points
    for slug, guard in app.guards.items():
        guard.on_change = moved(slug)


def _routes(app: App, bus: EventBus, jobs: Jobs, metrics: Metrics) -> FastAPI:
    """Return the API without its door."""
    catalogue = Catalogue(
        book=app.book,
        clock=app.clock,
        providers=app.settings.provider_slugs,
        secret=app.ledger.signing_key("cursors"),
    )
    return build_api(
        [
            gpu_routes(catalogue=catalogue),  # asked for most, so looked for first
            health_routes(
                providers=app.providers,
                guards=app.guards,
                disabled=app.disabled,
                book=app.book,
                clock=app.clock,
            ),
            price_routes(desk=app.desk),
            decision_routes(
                desk=app.desk, ledger=app.ledger, clock=app.clock, settings=app.settings
            ),
            rental_routes(
                desk=app.desk,
                ledger=app.ledger,
                jobs=jobs,
                clock=app.clock,
                settings=app.settings,
            ),
            event_routes(bus=bus, ledger=app.ledger),
            operation_routes(
                clock=app.clock,
                book=app.book,
                ledger=app.ledger,
                guards=app.guards,
                disabled=app.disabled,
                metrics=metrics,
                beats=app.beats(),
                budget=app.budget,
                listeners=lambda: bus.listeners,
            ),
        ]
    )
