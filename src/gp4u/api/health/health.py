"""`/api/v1/provider-health/*` and `/api/v1/providers/sync`: the first seed's paths and fields.

Hides who is asked for what: guards know how calls went, the book how often it could spare one, and
both tell it at once; only a health check and a sync make calls. What the words mean, and when
everything is healthy, degraded or unavailable, is `standing.py`'s.

A market that does not answer is no failure of ours: these paths answer 200 and say so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, Final

from fastapi import APIRouter, Path, Query, Request
from msgspec import Struct
from starlette.responses import Response

from gp4u.api.health import examples as health_examples
from gp4u.api.health.standing import (
    BreakerShape,
    CacheShape,
    HealthShape,
    LimiterShape,
    MarketDetailShape,
    SummaryShape,
    breaker_shape,
    cache_shape,
    counts_shape,
    detail_shape,
    health_shape,
    limiter_shape,
    overall,
    spread_shape,
    summary_of,
)
from gp4u.api.problems import problem_of
from gp4u.api.replies import StrictRoute, documented, json_reply, role
from gp4u.book import STANDING, Book
from gp4u.clock import Clock
from gp4u.desk.shapes import SourceShape, Stamp, micros, source_shape
from gp4u.errors import MarketClosed, NoSuch, ProviderError
from gp4u.providers.contract import Account, Provider
from gp4u.resilience.breaker import BreakerState
from gp4u.resilience.guard import Guard, Health, HealthStatus
from gp4u.selection.spread import Spreads
from gp4u.telemetry import clean

ROOT: Final = "/api/v1/provider-health"
_OF_MARKET: Final = (403, 404)
"""Problems of a path that names a market: it is closed, or there is none of that name."""


class AccountShape(Struct, frozen=True, kw_only=True):
    """Whose key it is, as far as the market tells; null where it does not."""

    id: str | None
    name: str | None
    credit_usd: Decimal | None


class CheckShape(Struct, frozen=True, kw_only=True):
    """What one real call to a market brought."""

    provider: str
    ok: bool
    """Whether it answered and accepted our key."""
    status: HealthStatus
    """How the market stands after the call."""
    circuit_breaker: BreakerState
    response_time: float
    """Milliseconds from the question to the answer, waits and retries included."""
    checked_at: Stamp
    account: AccountShape | None
    code: str | None
    """Why not, as the code of a problem: `provider_unavailable`, `provider_denied`, ..."""
    error: str | None
    """The same in words."""
    retry_in_s: float | None
    """Where nothing was sent, or the market said so: when it may be asked again."""


class ResetShape(BreakerShape, frozen=True, kw_only=True):
    """A breaker that was closed by hand."""

    provider: str
    was: BreakerState


class InvalidatedShape(Struct, frozen=True, kw_only=True):
    """Whose offers count as old now."""

    invalidated: list[str]


class SyncedShape(SourceShape, frozen=True, kw_only=True):
    """What fetching one market brought."""

    ok: bool
    seconds: float | None
    """How long its fetch took; null where it has never been fetched."""


class SyncShape(Struct, frozen=True, kw_only=True):
    """What fetching every market brought."""

    began_at: Stamp
    seconds: float
    offers: int
    ok: bool
    """Whether every open market answered."""
    providers: Mapping[str, SyncedShape]
    disabled: Mapping[str, str]


_HEALTH: Final = documented(HealthShape, example=health_examples.HEALTH)
_DETAIL: Final = documented(MarketDetailShape, example=health_examples.DETAIL, errors=_OF_MARKET)
_CHECK: Final = documented(
    CheckShape,
    what="What the call brought; `ok` is false where the market did not answer as it should",
    example=health_examples.CHECK,
    errors=_OF_MARKET,
)
_BREAKERS: Final = documented(
    dict[str, BreakerShape], what="By market", example={"vastai": health_examples.BREAKER}
)
_RESET: Final = documented(ResetShape, example=health_examples.RESET, errors=_OF_MARKET)
_LIMITERS: Final = documented(
    dict[str, LimiterShape], what="By market", example={"vastai": health_examples.LIMITER}
)
_CACHE: Final = documented(CacheShape, example=health_examples.CACHE)
_INVALIDATED: Final = documented(
    InvalidatedShape, example=health_examples.INVALIDATED, errors=_OF_MARKET
)
_SUMMARY: Final = documented(SummaryShape, example=health_examples.SUMMARY)
_SYNC: Final = documented(
    SyncShape,
    what="What each market brought; one that failed has an `error`",
    example=health_examples.SYNC,
)

Name = Annotated[
    str, Path(description="A market's name: `vastai`, `ionet`, ...", examples=["vastai"])
]
Which = Annotated[
    str | None,
    Query(description="Only this market; all of them if left out or empty.", examples=["vastai"]),
]


def health_routes(
    *,
    providers: Mapping[str, Provider],
    guards: Mapping[str, Guard],
    disabled: Mapping[str, str],
    book: Book,
    clock: Clock,
) -> APIRouter:
    """Return the routes. All mappings are keyed by slug; `disabled` says why a market is closed."""
    paths = _Paths(providers, guards, disabled, book, clock)
    router = APIRouter(route_class=StrictRoute, tags=["provider health"])

    def add(
        method: str, path: str, answer: Any, summary: str, responses: Any, needed: Any = "read"
    ) -> None:
        router.add_api_route(
            path,
            answer,
            methods=[method],
            summary=summary,
            operation_id=answer.__name__,
            responses=responses,
            response_model=None,
            openapi_extra=role(needed),
        )

    market = f"{ROOT}/providers/{{name}}"
    add("GET", f"{ROOT}/health", paths.health, "How all markets stand", _HEALTH)
    add("GET", f"{market}/health", paths.market_health, "How one market stands", _DETAIL)
    add("POST", f"{market}/health-check", paths.check_market, "Ask a market now", _CHECK, "admin")
    add("GET", f"{ROOT}/circuit-breakers", paths.breakers, "Circuit breakers", _BREAKERS)
    reset = f"{ROOT}/circuit-breakers/{{name}}/reset"
    add("POST", reset, paths.reset_breaker, "Close a circuit breaker", _RESET, "admin")
    add("GET", f"{ROOT}/rate-limiters", paths.limiters, "Rate limiters", _LIMITERS)
    add("GET", f"{ROOT}/cache/stats", paths.cache, "The cache", _CACHE)
    forget = f"{ROOT}/cache/invalidate"
    add("POST", forget, paths.invalidate, "Call cached offers old", _INVALIDATED, "admin")
    add("GET", f"{ROOT}/metrics/summary", paths.summary, "Everything in one answer", _SUMMARY)
    add("GET", "/api/v1/providers/sync", paths.sync, "Fetch every market now", _SYNC)
    return router


class _Paths:
    """The handlers; their docstrings are what OpenAPI says of them."""

    def __init__(
        self,
        providers: Mapping[str, Provider],
        guards: Mapping[str, Guard],
        disabled: Mapping[str, str],
        book: Book,
        clock: Clock,
    ) -> None:
        self._providers, self._guards = providers, guards
        self._closed = {slug: clean(why, 400) for slug, why in disabled.items()}
        self._book, self._clock = book, clock
        self._spreads = Spreads()
        self._syncing = asyncio.Lock()
        self._synced: SyncShape | None = None

    async def health(self, request: Request) -> Response:
        """Tell how every open market stands, and all of them in one word.

        `healthy`: every open market is HEALTHY. `unavailable`: every open market is UNAVAILABLE,
        or none is open. `degraded`: anything in between. A market is UNAVAILABLE while its breaker
        is OPEN or it refuses our key, DEGRADED while its breaker is HALF_OPEN or less than 70 % of
        its newest 100 calls were answered. Markets that are not open are under `disabled` with the
        reason, and count for nothing. Times are in milliseconds, rates 0..1.
        """
        return json_reply(request, health_shape(self._healths(), self._closed))

    async def market_health(self, request: Request, name: Name) -> Response:
        """Tell all that is known of how one market stands. No call is made."""
        return json_reply(request, self._detail(self._open(name)))

    async def check_market(self, request: Request, name: Name) -> Response:
        """Ask the market the cheapest question that proves that our key works.

        The call passes the same guard as every other: it waits for its turn, counts for the
        breaker, and is not sent while that is OPEN. The answer is 200 whether or not the market
        did: `ok` says which, `code` and `error` why not.
        """
        slug = self._open(name)
        now = asyncio.get_running_loop().time
        began, failure, account = now(), None, None
        try:
            account = await self._providers[slug].ping()
        except ProviderError as error:
            failure = error
        took_s = now() - began
        health = self._guards[slug].health()
        return json_reply(request, _checked(health, account, failure, took_s, self._clock.now()))

    async def breakers(self, request: Request) -> Response:
        """Tell the state of each open market's breaker; an OPEN whose time is up is HALF_OPEN."""
        shapes = {slug: breaker_shape(health) for slug, health in self._healths().items()}
        return json_reply(request, shapes)

    async def reset_breaker(self, request: Request, name: Name) -> Response:
        """Close a breaker by hand, and forgive: the next call is sent. Counts stay."""
        slug = self._open(name)
        guard = self._guards[slug]
        was = guard.health().breaker.state
        guard.reset_breaker()
        shape = breaker_shape(guard.health())
        known = {field: getattr(shape, field) for field in shape.__struct_fields__}
        return json_reply(request, ResetShape(**known, provider=slug, was=was))

    async def limiters(self, request: Request) -> Response:
        """Tell how much of each open market's rate is left, in calls per minute."""
        shapes = {slug: limiter_shape(health) for slug, health in self._healths().items()}
        return json_reply(request, shapes)

    async def cache(self, request: Request) -> Response:
        """Tell how often offers were young enough to be served, and how long they stay so."""
        return json_reply(request, cache_shape(self._book.stats()))

    async def invalidate(self, request: Request, provider: Which = None) -> Response:
        """Call the offers of one market, or of all, old: who asks next gets fresh ones."""
        chosen = [self._open(provider, "provider")] if provider else list(self._providers)
        for slug in chosen:
            self._book.invalidate(slug)
        return json_reply(request, InvalidatedShape(invalidated=chosen))

    async def summary(self, request: Request) -> Response:
        """Tell everything that the other paths tell, and how the G-Scores of all offers are spread.

        Nothing is fetched for it. Response times are percentiles over the newest 100 calls of each
        market; uptime is the share of time in which a breaker was not OPEN; percentiles of scores
        are exact to a tenth of a point.
        """
        every, by_slug = await self._spreads.of(self._book.current(STANDING))
        healths = self._healths()
        stats = self._book.stats()
        ups = [health.uptime for health in healths.values()]
        shape = SummaryShape(
            status=overall(health.status for health in healths.values()),
            at=self._clock.now(),
            uptime=round(sum(ups) / len(ups), 6) if ups else None,
            summary=counts_shape(healths),
            hit_ratio=cache_shape(stats).hit_ratio,
            g_score=spread_shape(every),
            providers={slug: summary_of(self._detail(slug), by_slug.get(slug)) for slug in healths},
            disabled=self._closed,
        )
        return json_reply(request, shape)

    async def sync(self, request: Request) -> Response:
        """Fetch the offers of every open market now, and tell what each brought.

        A market that does not answer keeps its last known offers; its error stands beside them.
        One sync is under way at a time: who asks meanwhile gets the same answer.
        """
        before = self._synced
        async with self._syncing:
            if self._synced is before:  # else somebody has done it while we waited
                self._synced = await self._sync()
            synced = self._synced
        return json_reply(request, synced)

    async def _sync(self) -> SyncShape:
        now = asyncio.get_running_loop().time
        began_at, began = self._clock.now(), now()
        self._book.invalidate()
        snapshot = await self._book.snapshot(STANDING)
        stats = self._book.stats()
        found = {}
        for note in snapshot.sources:
            shape = source_shape(note)
            known = {field: getattr(shape, field) for field in shape.__struct_fields__}
            took_s = stats[note.provider].took_s
            seconds = None if took_s is None else round(took_s, 3)
            found[note.provider] = SyncedShape(**known, ok=not note.error, seconds=seconds)
        return SyncShape(
            began_at=began_at,
            seconds=round(now() - began, 3),
            offers=sum(each.offers for each in found.values()),
            ok=all(each.ok for each in found.values()),
            providers=found,
            disabled=self._closed,
        )

    def _healths(self) -> dict[str, Health]:
        return {slug: guard.health() for slug, guard in self._guards.items()}

    def _detail(self, slug: str) -> MarketDetailShape:
        title = self._providers[slug].spec.title
        return detail_shape(self._guards[slug].health(), self._book.stats()[slug], title)

    def _open(self, name: str, field: str = "name") -> str:
        """Return the slug of an open market.

        Raises:
            NoSuch: there is no such market. MarketClosed: it is not open to us.
        """
        if name in self._providers:
            return name
        if name in self._closed:
            raise MarketClosed(name, self._closed[name])
        raise NoSuch(field, clean(name, 60), (*self._providers, *self._closed))


def _checked(
    health: Health,
    account: Account | None,
    failure: ProviderError | None,
    took_s: float,
    at: datetime,
) -> CheckShape:
    told: Mapping[str, Any] = {} if failure is None else problem_of(failure)
    return CheckShape(
        provider=health.provider,
        ok=failure is None,
        status=health.status,
        circuit_breaker=health.breaker.state,
        response_time=round(1000 * took_s, 1),
        checked_at=at,
        account=None if account is None else _account_shape(account),
        code=told.get("code"),
        error=told.get("detail"),
        retry_in_s=told.get("retry_in_s"),
    )


def _account_shape(account: Account) -> AccountShape:
    credit = account.credit_usd
    return AccountShape(
        id=clean(account.id, 100) or None,
        name=clean(account.name, 100) or None,
        credit_usd=None if credit is None else micros(credit),
    )
