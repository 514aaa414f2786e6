"""What the running process tells those who operate it: `/livez`, `/readyz` and `/metrics`.

Hides where the facts are: guards, book and ledger are asked when somebody asks, so that watching
costs nothing while nobody watches; only calls, requests and delays are counted as they happen.
What the numbers mean stands in `metric_table.py`, and what to do about them in
`docs/howto/monitor.md`.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Final, Literal

from fastapi import APIRouter, Request
from msgspec import Struct
from starlette.responses import Response

from gp4u.api.replies import StrictRoute, documented, json_reply, role
from gp4u.book import Book
from gp4u.clock import Clock
from gp4u.errors import LedgerUnusable
from gp4u.metrics import Metrics
from gp4u.rentals import rental as rentals
from gp4u.rentals.budget import Budget, used
from gp4u.rentals.ledger import Ledger
from gp4u.rentals.rental import RentalState
from gp4u.resilience.breaker import BreakerState
from gp4u.resilience.guard import Guard
from gp4u.telemetry import clean

PROMETHEUS_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
UNREADY: Final = 503
SILENT_S: Final = 600.0
"""A part that shows no progress for so long is stuck: the longest planned pause of one is 300 s."""
PULSE_S: Final = 0.5
OK: Final = "ok"


class AliveShape(Struct, frozen=True, kw_only=True):
    """That the process answers at all."""

    status: Literal["ok"]


class ReadyShape(Struct, frozen=True, kw_only=True):
    """Whether the process can do its work, part by part."""

    status: Literal["ok", "unready"]
    parts: Mapping[str, str]
    """Ledger and background parts, to `ok` or what is wrong; one that is wrong makes it unready."""
    providers: Mapping[str, str]
    """Open market to `ok` or the state of its breaker. None of them makes the process unready."""
    disabled: Mapping[str, str]
    """Market that is not open to why."""


_ALIVE: Final = AliveShape(status="ok")
_READY: Final = ReadyShape(
    status="ok",
    parts={"ledger": OK, "reconcile vastai": OK},
    providers={"vastai": OK, "akash": "breaker OPEN"},
    disabled={"render": "RENDER_API_KEY is not set"},
)
_PAGE: Final = """\
# HELP gp4u_book_offers Offers that are held, for all remembered queries together
# TYPE gp4u_book_offers gauge
gp4u_book_offers{provider="vastai"} 64.0
"""


def operation_routes(
    *,
    clock: Clock,
    book: Book,
    ledger: Ledger,
    guards: Mapping[str, Guard],
    disabled: Mapping[str, str],
    metrics: Metrics,
    beats: Mapping[str, Callable[[], float]],
    budget: Budget | None = None,
    listeners: Callable[[], int] = lambda: 0,
) -> APIRouter:
    """Return the routes.

    `beats` is keyed by the name of a background part and tells the seconds since it last made
    progress; a part is stuck after `SILENT_S`. `budget` is what renting is held to, if anything;
    `listeners` tells how many read the event stream.
    """
    router = APIRouter(tags=["operations"], route_class=StrictRoute)
    page = MetricsPage(
        clock=clock,
        book=book,
        ledger=ledger,
        guards=guards,
        metrics=metrics,
        beats=beats,
        budget=budget,
    )

    @router.get(
        "/livez",
        summary="Whether the process answers",
        operation_id="alive",
        response_model=None,
        openapi_extra=role("open"),
        responses=documented(AliveShape, what="It answers", example=_ALIVE),
    )
    async def livez(request: Request) -> Response:
        """Nothing is looked at: who restarts what does not answer here restarts what hangs."""
        return json_reply(request, _ALIVE)

    @router.get(
        "/readyz",
        summary="Whether every part of the process works",
        operation_id="ready",
        response_model=None,
        openapi_extra=role("open"),
        responses=documented(
            ReadyShape, what="Every part works", example=_READY, also={UNREADY: "`parts` says why"}
        ),
    )
    async def readyz(request: Request) -> Response:
        """A part that does not work is named. A market that is down is shown, and no reason to be
        unready: there are others to serve, and rentals to keep.
        """
        parts = await _parts(ledger, beats)
        shape = ReadyShape(
            status="ok" if _works(parts) else "unready",
            parts=parts,
            providers={slug: _standing(guard) for slug, guard in guards.items()},
            disabled={slug: clean(why) for slug, why in disabled.items()},
        )
        return json_reply(request, shape, 200 if shape.status == "ok" else UNREADY)

    @router.get(
        "/metrics",
        summary="Every metric, for Prometheus",
        operation_id="metrics",
        response_model=None,
        openapi_extra=role("read"),
        responses=documented(
            None, what="The page", example=_PAGE, media=(PROMETHEUS_TYPE.partition(";")[0],)
        ),
    )
    async def show_metrics() -> Response:
        """In the text format 0.0.4. `docs/reference/metrics.md` lists them, and
        `docs/howto/monitor.md` says which to watch. Where the ledger cannot be read, rentals and
        budgets stay at what they were, and `gp4u_ready` is 0.
        """
        metrics.subscribers(listeners())
        return Response(await page.text(), media_type=PROMETHEUS_TYPE)

    return router


class MetricsPage:
    """What a scrape gets: what is counted as it happens, and what is looked up for each scrape."""

    def __init__(
        self,
        *,
        clock: Clock,
        book: Book,
        ledger: Ledger,
        guards: Mapping[str, Guard],
        metrics: Metrics,
        beats: Mapping[str, Callable[[], float]],
        budget: Budget | None = None,
    ) -> None:
        self._clock, self._book, self._ledger, self._guards = clock, book, ledger, guards
        self._metrics, self._beats, self._budget = metrics, beats, budget

    async def text(self) -> bytes:
        """Return it in the text format 0.0.4."""
        now = self._clock.now()
        parts = await _parts(self._ledger, self._beats)
        self._metrics.ready(_works(parts))
        for slug, guard in self._guards.items():
            _draw_guard(self._metrics, slug, guard)
        _draw_book(self._metrics, self._book, self._guards, now)
        if parts["ledger"] == OK:
            await _draw_rentals(self._metrics, self._ledger, self._guards, self._budget, now)
        return self._metrics.render()


class Pulse:
    """Notes how late the event loop comes back to a timer: what else runs in it is why."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    async def run(self) -> None:
        """Note it for ever."""
        now = asyncio.get_running_loop().time
        while True:
            due = now() + PULSE_S
            await asyncio.sleep(PULSE_S)
            self._metrics.loop_lag(max(0.0, now() - due))


async def _parts(ledger: Ledger, beats: Mapping[str, Callable[[], float]]) -> dict[str, str]:
    """Return part to `ok` or what is wrong with it; the ledger comes first."""
    parts = {"ledger": OK}
    try:
        await ledger.open_rentals()
    except LedgerUnusable as error:
        parts["ledger"] = clean(str(error), 400)
    for name, silence_s in beats.items():
        silent_s = silence_s()
        parts[name] = OK if silent_s <= SILENT_S else f"no progress for {silent_s:.0f} s"
    return parts


def _works(parts: Mapping[str, str]) -> bool:
    return all(state == OK for state in parts.values())


def _standing(guard: Guard) -> str:
    state = guard.health().breaker.state
    return OK if state is BreakerState.CLOSED else f"breaker {state}"


def _draw_guard(metrics: Metrics, slug: str, guard: Guard) -> None:
    health = guard.health()
    opened_at = health.breaker.opened_at
    open_s = 0.0 if opened_at is None else asyncio.get_running_loop().time() - opened_at
    metrics.provider_health(
        slug, health.status, success_rate=health.success_rate, uptime=health.uptime
    )
    metrics.breaker(slug, health.breaker.state, trips=health.breaker.trip_count, open_s=open_s)
    metrics.limiter(
        slug, utilization=health.rate_limit_utilization, blocked=health.requests_blocked
    )
    if health.shared is not None:
        metrics.shared_limits(slug, health.shared)


def _draw_book(metrics: Metrics, book: Book, guards: Mapping[str, Guard], now: datetime) -> None:
    for slug, held in book.stats().items():
        since = held.fetched_at or guards[slug].health().since
        age_s = max(0.0, (now - since).total_seconds())
        metrics.book(slug, offers=held.offers, age_s=age_s, refresh_s=held.took_s)
        metrics.book_reads(slug, hits=held.hits, misses=held.misses)
        metrics.skipped_rows(slug, held.skipped_rows)


async def _draw_rentals(
    metrics: Metrics,
    ledger: Ledger,
    guards: Mapping[str, Guard],
    budget: Budget | None,
    now: datetime,
) -> None:
    everything = await ledger.every_rental()
    # A rental can outlive its market's being open, and costs all the same.
    for slug in {*guards, *(each.provider for each in everything)}:
        mine = [each for each in everything if each.provider == slug]
        releasing = [
            (now - each.releasing_at).total_seconds()
            for each in mine
            if each.state is RentalState.RELEASING and each.releasing_at is not None
        ]
        metrics.rentals(
            slug,
            Counter(each.state.value for each in mine),
            releasing_age_s=max(releasing, default=0.0),
            cost_usd=float(sum(rentals.cost_usd(each, at=now) for each in mine)),
        )
    if budget is not None:
        metrics.budgets(used(budget, everything, at=now))
