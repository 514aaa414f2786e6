"""How the markets stand, in the shapes and words of the first seed: one market, and all together.

Hides the rules by which many facts become one word, and the seed's names and units: times in
milliseconds, rates and shares 0..1, limits per minute. What is known comes from the guards and the
book as values; nothing here asks anybody. The paths are `health.py`.

All markets together are

- `healthy` where every open market is HEALTHY,
- `unavailable` where every open market is UNAVAILABLE, or none is open,
- `degraded` in between.

A market is UNAVAILABLE while its breaker is OPEN or its key is refused, DEGRADED while its breaker
is HALF_OPEN or less than 70 % of its newest 100 calls were answered, else HEALTHY. One that is not
open to us is told with the reason, and counts for nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from msgspec import Struct

from gp4u.book import BookStats
from gp4u.desk.shapes import Stamp
from gp4u.resilience.breaker import BreakerState
from gp4u.resilience.guard import DEGRADED_BELOW, Health, HealthStatus
from gp4u.selection.spread import BUCKETS, Spread
from gp4u.telemetry import clean

_PER_MINUTE = 60.0


class MarketHealthShape(Struct, frozen=True, kw_only=True):
    """How one market stands, in short."""

    status: HealthStatus
    success_rate: float
    """0..1 of the newest 100 calls; 1 while there are none."""
    avg_response_time: float | None
    """Milliseconds; null while nothing was called."""
    circuit_breaker: BreakerState
    rate_limit_utilization: float
    """0..1 of a minute's calls."""
    reason: str
    """Why it is not HEALTHY; empty where it is."""


class CountsShape(Struct, frozen=True, kw_only=True):
    """How many open markets there are of each status."""

    total_providers: int
    healthy: int
    degraded: int
    unavailable: int


class HealthShape(Struct, frozen=True, kw_only=True):
    """How all markets stand."""

    status: str
    """healthy, degraded or unavailable."""
    providers: Mapping[str, MarketHealthShape]
    summary: CountsShape
    disabled: Mapping[str, str]
    """Market that is not open to us, to the reason."""


class BreakerShape(Struct, frozen=True, kw_only=True):
    """A circuit breaker; counts are since the server started."""

    state: BreakerState
    """An OPEN whose time is up reads as HALF_OPEN."""
    failure_count: int
    """Failures in a row, up to now."""
    success_count: int
    last_failure_time: Stamp | None
    trip_count: int
    retry_in_s: float
    """Seconds to the next trial; 0 unless OPEN."""
    open_s: float
    """Seconds spent OPEN, all in all."""


class LimiterShape(Struct, frozen=True, kw_only=True):
    """A rate limiter; where it is switched off, its numbers are null."""

    rate: float | None
    """Calls per minute."""
    capacity: float | None
    """Calls at once."""
    available_tokens: int | None
    """How many calls may leave now."""
    utilization: float
    """Share of the capacity that is in use, 0..1."""
    requests_blocked: int
    """Calls that had to wait for their turn, or were refused because it was too far away."""


class ShelfShape(Struct, frozen=True, kw_only=True):
    """One market's share of the cache."""

    hits: int
    misses: int
    hit_ratio: float
    """0..1; 0 while nothing was asked."""
    current_ttl: float
    """Seconds that offers stay young, by the market's success rate."""
    offers: int
    fetched_at: Stamp | None
    skipped_rows: int
    error: str
    """Why the newest fetch failed; empty if it did not."""


class CacheShape(Struct, frozen=True, kw_only=True):
    """How often offers were young enough to be served as they were."""

    total_hits: int
    total_misses: int
    hit_ratio: float
    """0..1; 0 while nothing was asked."""
    providers: Mapping[str, ShelfShape]


class LatencyShape(Struct, frozen=True, kw_only=True):
    """Response times of the newest 100 calls in milliseconds; null while there are none."""

    calls: int
    avg: float | None
    p50: float | None
    p95: float | None
    p99: float | None


class BucketShape(Struct, frozen=True, kw_only=True):
    """Offers whose score is at least `start` and less than `end`; the last holds 100 as well."""

    start: int
    end: int
    count: int


class SpreadShape(Struct, frozen=True, kw_only=True):
    """How G-Scores (0..100) are spread over the offers at hand; null where none has one."""

    scored: int
    unscored: int
    """Offers of GPUs that the formula knows too little of."""
    min: float | None
    p10: float | None
    p25: float | None
    median: float | None
    p75: float | None
    p90: float | None
    max: float | None
    buckets: Sequence[BucketShape]


class MarketDetailShape(MarketHealthShape, frozen=True, kw_only=True):
    """How one market stands, with all that is known."""

    provider: str
    title: str
    uptime: float
    """Share of the time since `since` in which its breaker was not OPEN, 0..1."""
    since: Stamp
    response_times: LatencyShape
    breaker: BreakerShape
    rate_limiter: LimiterShape
    cache: ShelfShape
    denied: bool
    """Whether the market refuses our key."""
    last_error: str
    """The newest failure, in words; empty if there was none."""


class MarketSummaryShape(MarketDetailShape, frozen=True, kw_only=True):
    """The same with how its offers score."""

    g_score: SpreadShape


class SummaryShape(Struct, frozen=True, kw_only=True):
    """Everything in one answer."""

    status: str
    at: Stamp
    uptime: float | None
    """Mean of the open markets' uptime, 0..1; null where none is open."""
    summary: CountsShape
    hit_ratio: float
    g_score: SpreadShape
    providers: Mapping[str, MarketSummaryShape]
    disabled: Mapping[str, str]


def overall(statuses: Iterable[HealthStatus]) -> str:
    """Return the one word for all open markets; the rules are in the module's docstring."""
    found = set(statuses)
    if found <= {HealthStatus.UNAVAILABLE}:
        return "unavailable"
    return "healthy" if found == {HealthStatus.HEALTHY} else "degraded"


def health_shape(healths: Mapping[str, Health], disabled: Mapping[str, str]) -> HealthShape:
    """Return how all markets stand; both mappings are keyed by slug."""
    return HealthShape(
        status=overall(health.status for health in healths.values()),
        providers={slug: _in_short(health) for slug, health in healths.items()},
        summary=counts_shape(healths),
        disabled=disabled,
    )


def counts_shape(healths: Mapping[str, Health]) -> CountsShape:
    """Return how many there are of each status."""
    found = Counter(health.status for health in healths.values())
    return CountsShape(
        total_providers=len(healths),
        healthy=found[HealthStatus.HEALTHY],
        degraded=found[HealthStatus.DEGRADED],
        unavailable=found[HealthStatus.UNAVAILABLE],
    )


def breaker_shape(health: Health) -> BreakerShape:
    """Return a market's circuit breaker."""
    stats = health.breaker
    return BreakerShape(
        state=stats.state,
        failure_count=stats.failure_count,
        success_count=stats.success_count,
        last_failure_time=health.last_failure_time,
        trip_count=stats.trip_count,
        retry_in_s=round(stats.retry_in_s, 3),
        open_s=round(stats.open_s, 3),
    )


def limiter_shape(health: Health) -> LimiterShape:
    """Return a market's rate limiter, by the minute."""
    stats = health.rate_limit
    if stats is None:
        return LimiterShape(
            rate=None,
            capacity=None,
            available_tokens=None,
            utilization=0.0,
            requests_blocked=health.requests_blocked,
        )
    return LimiterShape(
        rate=_plain(stats.rate_per_s * _PER_MINUTE),
        capacity=_plain(stats.capacity),
        available_tokens=int(stats.available_tokens),
        utilization=round(stats.utilization, 4),
        requests_blocked=health.requests_blocked,
    )


def cache_shape(stats: Mapping[str, BookStats]) -> CacheShape:
    """Return the cache, all together and by market."""
    hits = sum(each.hits for each in stats.values())
    misses = sum(each.misses for each in stats.values())
    return CacheShape(
        total_hits=hits,
        total_misses=misses,
        hit_ratio=_ratio(hits, misses),
        providers={slug: shelf_shape(each) for slug, each in stats.items()},
    )


def shelf_shape(stats: BookStats) -> ShelfShape:
    """Return one market's share of the cache."""
    return ShelfShape(
        hits=stats.hits,
        misses=stats.misses,
        hit_ratio=_ratio(stats.hits, stats.misses),
        current_ttl=_plain(stats.ttl_s),
        offers=stats.offers,
        fetched_at=stats.fetched_at,
        skipped_rows=stats.skipped_rows,
        error=clean(stats.error, 400),
    )


def detail_shape(health: Health, stats: BookStats, title: str) -> MarketDetailShape:
    """Return all that is known of how one market stands."""
    short = _in_short(health)
    return MarketDetailShape(
        **{name: getattr(short, name) for name in short.__struct_fields__},
        provider=health.provider,
        title=title,
        uptime=round(health.uptime, 6),
        since=health.since,
        response_times=LatencyShape(
            calls=health.calls,
            avg=_ms(health.avg_response_time_ms),
            p50=_ms(health.p50_ms),
            p95=_ms(health.p95_ms),
            p99=_ms(health.p99_ms),
        ),
        breaker=breaker_shape(health),
        rate_limiter=limiter_shape(health),
        cache=shelf_shape(stats),
        denied=health.denied,
        last_error=clean(health.last_error, 400),
    )


def summary_of(detail: MarketDetailShape, spread: Spread | None) -> MarketSummaryShape:
    """Return a market's part of the summary."""
    known = {name: getattr(detail, name) for name in detail.__struct_fields__}
    return MarketSummaryShape(**known, g_score=spread_shape(spread))


def spread_shape(spread: Spread | None) -> SpreadShape:
    """Return how scores are spread; None stands for no offer at all."""
    spread = spread or _NOTHING
    p10, p25, median, p75, p90 = spread.percentiles or (None,) * 5
    wide = 100 // BUCKETS
    return SpreadShape(
        scored=spread.scored,
        unscored=spread.unscored,
        min=spread.lowest,
        p10=p10,
        p25=p25,
        median=median,
        p75=p75,
        p90=p90,
        max=spread.highest,
        buckets=[
            BucketShape(start=wide * place, end=wide * (place + 1), count=count)
            for place, count in enumerate(spread.buckets)
        ],
    )


_NOTHING = Spread(
    scored=0, unscored=0, buckets=(0,) * BUCKETS, percentiles=None, lowest=None, highest=None
)


def _in_short(health: Health) -> MarketHealthShape:
    return MarketHealthShape(
        status=health.status,
        success_rate=round(health.success_rate, 4),
        avg_response_time=_ms(health.avg_response_time_ms),
        circuit_breaker=health.breaker.state,
        rate_limit_utilization=round(health.rate_limit_utilization, 4),
        reason="" if health.status is HealthStatus.HEALTHY else _reason(health),
    )


def _reason(health: Health) -> str:
    why = []
    if health.denied:
        why.append("the market refuses our key")
    match health.breaker.state:
        case BreakerState.OPEN:
            why.append(f"circuit breaker is OPEN, next trial in {health.breaker.retry_in_s:.0f} s")
        case BreakerState.HALF_OPEN:
            why.append("circuit breaker is HALF_OPEN: trial calls decide")
        case BreakerState.CLOSED:
            pass
    if health.success_rate < DEGRADED_BELOW:
        why.append(f"{health.success_rate:.0%} of the newest {health.calls} calls were answered")
    return "; ".join(why)


def _ms(value: float | None) -> float | None:
    return None if value is None else _plain(round(value, 1))


def _ratio(hits: int, misses: int) -> float:
    return round(hits / (hits + misses), 4) if hits + misses else 0.0


def _plain(value: float) -> float:
    """Return a whole number without its `.0`, as the seed writes it."""
    near = round(value, 6)
    return int(near) if near == int(near) else near
