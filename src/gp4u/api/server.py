"""What the running process tells about itself: `/livez`, `/readyz` and `/metrics`.

`/readyz` names each part that is not ready. `/metrics` is drawn from the guards, the book and the
ledger when it is asked for; only calls are counted as they happen. The server and its framework are
imported by those who serve: the composition root imports this file in every command.
"""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from gp4u.book import Book
from gp4u.clock import Clock
from gp4u.errors import BadInput, LedgerUnusable
from gp4u.rentals import rental as rentals
from gp4u.rentals.ledger import Ledger
from gp4u.rentals.rental import RentalState
from gp4u.resilience.breaker import BreakerState
from gp4u.resilience.guard import Guard
from gp4u.telemetry import Metrics

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

PROMETHEUS_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
UNREADY: Final = 503
STOP_S: Final = 3


def build_api(
    *,
    clock: Clock,
    book: Book,
    ledger: Ledger,
    guards: Mapping[str, Guard],
    disabled: Mapping[str, str],
    metrics: Metrics,
) -> Starlette:
    """Return the ASGI app."""
    from starlette.applications import Starlette
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    drawn: Counter[str] = Counter()

    async def livez(_request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def readyz(_request: Request) -> Response:
        parts = {"ledger": await _ledger_state(ledger)}
        for slug, guard in guards.items():
            breaker = guard.health().breaker
            parts[slug] = (
                "ok" if breaker.state is BreakerState.CLOSED else f"breaker {breaker.state}"
            )
        # A market that is down is shown, but does not make this process unready: it has others to
        # serve, and its own rentals to keep.
        ok = parts["ledger"] == "ok"
        body = {"status": "ok" if ok else "unready", "parts": parts, "disabled": dict(disabled)}
        return JSONResponse(body, status_code=200 if ok else UNREADY)

    async def show_metrics(_request: Request) -> Response:
        await _draw(metrics, clock, book, ledger, guards, drawn)
        return Response(metrics.render(), media_type=PROMETHEUS_TYPE)

    return Starlette(
        routes=[
            Route("/livez", livez),
            Route("/readyz", readyz),
            Route("/metrics", show_metrics),
        ]
    )


async def serve_api(
    api: Starlette, *, host: str, port: int, started: Callable[[str], None]
) -> None:
    """Serve until cancelled; `started` gets the URL once the socket listens.

    Raises:
        BadInput: the address cannot be listened on.
    """
    import uvicorn

    class Server(uvicorn.Server):
        """Leaves signals to the command line, which ends the whole task group at once."""

        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen()  # before it is said: whoever reads that may call at once
    except OSError as error:
        listener.close()
        raise BadInput("--port", port, f"cannot listen on {host}: {error.strerror}") from error
    config = uvicorn.Config(
        api,
        log_config=None,
        log_level="warning",  # who we are and where we listen, the command line says
        access_log=False,
        lifespan="off",
        timeout_keep_alive=5,
        timeout_graceful_shutdown=STOP_S,
        server_header=False,
    )
    server = Server(config)
    shown = f"[{host}]" if ":" in host else host
    started(f"http://{shown}:{listener.getsockname()[1]}")
    try:
        await server.serve(sockets=[listener])
    finally:
        listener.close()


async def _ledger_state(ledger: Ledger) -> str:
    try:
        await ledger.open_rentals()
    except LedgerUnusable as error:
        return str(error)
    return "ok"


async def _draw(
    metrics: Metrics,
    clock: Clock,
    book: Book,
    ledger: Ledger,
    guards: Mapping[str, Guard],
    drawn: Counter[str],
) -> None:
    """Copy what the parts know of themselves into the metrics."""
    now = clock.now()
    stats = book.stats()
    everything = await ledger.every_rental()
    for slug, guard in guards.items():
        health = guard.health()
        metrics.breaker(slug, health.breaker.state, health.breaker.trip_count)
        metrics.bucket(slug, health.requests_blocked)
        held = stats[slug]
        age_s = (now - held.fetched_at).total_seconds() if held.fetched_at else 0.0
        metrics.book(slug, offers=held.offers, age_s=age_s)
        metrics.skipped_rows(slug, held.skipped_rows - drawn[slug])
        drawn[slug] = held.skipped_rows
        mine = [r for r in everything if r.provider == slug]
        releasing = [
            (now - r.releasing_at).total_seconds()
            for r in mine
            if r.state is RentalState.RELEASING and r.releasing_at is not None
        ]
        metrics.rentals(
            slug,
            Counter(r.state.value for r in mine),
            releasing_age_s=max(releasing, default=0.0),
            cost_usd=float(sum(rentals.cost_usd(r, at=now) for r in mine)),
        )
