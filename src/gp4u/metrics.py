"""Keeping count: the metrics of one process, and the page that a scrape gets.

Hides prometheus_client, which is imported only where metrics are really kept. Every label value
passes one gate: what is not in its closed set is counted as `other`, so that the number of series
is bounded whatever a market or a caller says. Which metrics there are is in `metric_table.py`; when
each is told is left to those who tell.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from gp4u.metric_table import (
    BREAKER_STATES,
    BUDGETS,
    HEALTH_STATES,
    LABELS,
    METRICS,
    OTHER,
    PHASES,
    REFUSALS,
    RENTAL_STATES,
    outcome_of,
)

if TYPE_CHECKING:
    from prometheus_client import Counter, Gauge, Histogram

_FROM_THE_START = (
    "gp4u_double_rents_total",
    "gp4u_orphans_released_total",
    "gp4u_breaker_trips_total",
    "gp4u_bucket_blocked_total",
    "gp4u_book_hits_total",
    "gp4u_book_misses_total",
)
"""Counters whose first rise must be seen as one: a series that begins at 1 did not rise."""


class Metrics:
    """The metrics of one process, on a registry of their own."""

    def __init__(self, providers: Iterable[str], nodes: Iterable[str] = ()) -> None:
        """`providers` closes the set of that label; each has its zeroes from the start.

        `nodes` are those that this process is.
        """
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
        from prometheus_client import disable_created_metrics as without_creation_times
        from prometheus_client.process_collector import ProcessCollector

        # One more series per counter that nobody asked for.
        without_creation_times()  # type: ignore[no-untyped-call] # the library has no types here
        self._known = {**LABELS, "provider": tuple(providers), "route": ()}
        self._known["node"] = tuple(nodes)
        self._labels = {metric.name: metric.labels for metric in METRICS}
        self._registry = CollectorRegistry()
        self._counters: dict[str, Counter] = {}
        self._gauges: dict[str, Gauge] = {}
        self._histograms: dict[str, Histogram] = {}
        self._totals: dict[tuple[str, str], float] = {}
        self._requests: dict[tuple[str, str, int], Callable[[float], None]] = {}
        for metric in METRICS:
            about: tuple[str, str, tuple[str, ...]] = (metric.name, metric.meaning, metric.labels)
            if metric.kind == "counter":
                self._counters[metric.name] = Counter(*about, registry=self._registry)
            elif metric.kind == "gauge":
                self._gauges[metric.name] = Gauge(*about, registry=self._registry)
            else:
                self._histograms[metric.name] = Histogram(
                    *about, registry=self._registry, buckets=metric.buckets
                )
        for provider in self._known["provider"]:
            for name in _FROM_THE_START:
                self._counters[name].labels(provider)
        for reason in REFUSALS:
            self._counters["gp4u_http_refused_total"].labels(reason)
        ProcessCollector(registry=self._registry)
        self._in_flight = 0
        self._gauges["gp4u_http_in_flight"].set_function(lambda: self._in_flight)

    # --- markets ---

    def provider_call(
        self, provider: str, operation: str, error: BaseException | None, seconds: float
    ) -> None:
        """Count one call; `error` is what it raised, None for success."""
        outcome = outcome_of(error)
        self._count("gp4u_provider_calls_total", 1, provider, operation, outcome)
        if operation == "rent":
            self._count("gp4u_rents_total", 1, provider, outcome)
        labels = self._closed("gp4u_provider_call_seconds", (provider, operation))
        self._histograms["gp4u_provider_call_seconds"].labels(*labels).observe(seconds)

    def provider_health(
        self, provider: str, status: str, *, success_rate: float, uptime: float
    ) -> None:
        """Show a provider's health as it is now; both shares are 0..1."""
        for each in HEALTH_STATES:
            self._set("gp4u_provider_health", float(each == status), provider, each)
        self._set("gp4u_provider_success_rate", success_rate, provider)
        self._set("gp4u_provider_uptime", uptime, provider)

    def breaker(self, provider: str, state: str, *, trips: int, open_s: float) -> None:
        """Show a breaker as it is now.

        `trips` is its own count since the process started; `open_s` the seconds since the trip
        that began this outage, 0 where it is closed.
        """
        for each in BREAKER_STATES:
            self._set("gp4u_breaker_state", float(each == state), provider, each)
        self._set("gp4u_breaker_open_seconds", open_s, provider)
        self._raise_to("gp4u_breaker_trips_total", provider, trips)

    def limiter(self, provider: str, *, utilization: float, blocked: int) -> None:
        """Show how much of a limit is in use, 0..1, and how many calls it has held up so far."""
        self._set("gp4u_limiter_utilization", utilization, provider)
        self._raise_to("gp4u_bucket_blocked_total", provider, blocked)

    def shared_limits(self, provider: str, up: bool) -> None:
        """Show whether a provider's pace is shared with other processes, where it is to be."""
        self._set("gp4u_shared_limits_up", float(up), provider)

    # --- the book and its prices ---

    def book(
        self, provider: str, *, offers: int, age_s: float, refresh_s: float | None = None
    ) -> None:
        """Show what the book holds of one provider; None where nothing was fetched yet."""
        self._set("gp4u_book_offers", offers, provider)
        self._set("gp4u_book_age_seconds", age_s, provider)
        if refresh_s is not None:
            self._set("gp4u_book_refresh_seconds", refresh_s, provider)

    def book_reads(self, provider: str, *, hits: int, misses: int) -> None:
        """Show the book's own counts of reads since the process started."""
        self._raise_to("gp4u_book_hits_total", provider, hits)
        self._raise_to("gp4u_book_misses_total", provider, misses)

    def skipped_rows(self, provider: str, rows: int) -> None:
        """Show how many rows broke their schema since the process started."""
        self._raise_to("gp4u_book_skipped_rows_total", provider, rows)

    def price_points(self, provider: str, points: int) -> None:
        """Count points that were added to the price history."""
        self._count("gp4u_price_points_total", points, provider)

    # --- rentals and money ---

    def rentals(
        self, provider: str, by_state: Mapping[str, int], *, releasing_age_s: float, cost_usd: float
    ) -> None:
        """Show one provider's rentals as the ledger has them; a state that is missing has none."""
        for state in RENTAL_STATES:
            self._set("gp4u_rentals", by_state.get(state, 0), provider, state)
        self._set("gp4u_releasing_age_seconds", releasing_age_s, provider)
        self._set("gp4u_cost_usd", cost_usd, provider)

    def double_rent(self, provider: str) -> None:
        """Count a second instance under one key."""
        self._count("gp4u_double_rents_total", 1, provider)

    def orphan_released(self, provider: str) -> None:
        """Count an orphan whose release was sent."""
        self._count("gp4u_orphans_released_total", 1, provider)

    def foreign_instances(self, provider: str, number: int) -> None:
        """Show how many instances of the account are not ours."""
        self._set("gp4u_foreign_instances", number, provider)

    def budgets(self, used: Mapping[str, float]) -> None:
        """Show the share of each budget that is used; keyed by `BUDGETS`, those that are set."""
        for name in BUDGETS:
            if name in used:
                self._set("gp4u_budget_used", used[name], name)

    # --- the API ---

    def close_routes(self, templates: Iterable[str]) -> None:
        """Say which routes there are; until then, and for any other, requests count as `other`."""
        self._known["route"] = tuple(templates)
        self._requests.clear()

    def http(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count one answered request; `route` is the template, and never the path."""
        count = self._requests.get((route, method, status // 100))
        if count is None:
            count = self._request_of(route, method, status)
        count(seconds)

    def in_flight(self, change: int) -> None:
        """Note that a request came in (+1) or was answered (-1)."""
        self._in_flight += change

    def refused(self, reason: str) -> None:
        """Count a request that no route saw; `reason` is one of `REFUSALS`."""
        self._count("gp4u_http_refused_total", 1, reason)

    def subscribers(self, number: int) -> None:
        """Show how many read the event stream."""
        self._set("gp4u_event_subscribers", number)

    # --- nodes ---

    def node(
        self,
        node: str,
        *,
        pods: Mapping[str, int],
        offered: int,
        in_use: int,
        waiting: int,
        heartbeat_s: float,
        watch_s: float,
        certificate_s: float,
        certificate_life_s: float,
    ) -> None:
        """Show a node as it is now; `pods` maps phases to how many there are."""
        for phase in PHASES:
            self._set("gp4u_node_pods", pods.get(phase, 0), node, phase)
        self._set("gp4u_node_gpus", offered, node, "offered")
        self._set("gp4u_node_gpus", in_use, node, "in_use")
        self._set("gp4u_node_rents_waiting", waiting, node)
        self._set("gp4u_node_heartbeat_age_seconds", heartbeat_s, node)
        self._set("gp4u_node_watch_age_seconds", watch_s, node)
        self._set("gp4u_node_certificate_seconds", certificate_s, node)
        self._set("gp4u_node_certificate_lifetime_seconds", certificate_life_s, node)

    # --- the process ---

    def ready(self, is_ready: bool) -> None:
        """Show whether the process can do its work."""
        self._set("gp4u_ready", float(is_ready))

    def loop_lag(self, seconds: float) -> None:
        """Note how late the event loop was, once."""
        self._histograms["gp4u_loop_lag_seconds"].observe(seconds)

    def ledger_commit(self, seconds: float) -> None:
        """Note how long a write to the ledger took."""
        self._histograms["gp4u_ledger_commit_seconds"].observe(seconds)

    def render(self) -> bytes:
        """Return the page that a scrape gets, in the text format 0.0.4."""
        from prometheus_client import generate_latest

        return generate_latest(self._registry)

    # --- labels ---

    def _request_of(self, route: str, method: str, status: int) -> Callable[[float], None]:
        """Return what counts such a request; remembered under names of ours only."""
        labels = self._closed("gp4u_http_requests_total", (route, method, f"{status // 100}xx"))
        key = (labels[0], labels[1], status // 100 if labels[2] != OTHER else 0)
        found = self._requests.get(key)
        if found is None:
            counted = self._counters["gp4u_http_requests_total"].labels(*labels).inc
            timed = self._histograms["gp4u_http_request_seconds"].labels(*labels[:2]).observe

            def found(seconds: float) -> None:
                counted()
                timed(seconds)

            self._requests[key] = found
        return found

    def _count(self, name: str, by: float, *labels: str) -> None:
        self._counters[name].labels(*self._closed(name, labels)).inc(by)

    def _raise_to(self, name: str, provider: str, total: float) -> None:
        """Add what a count kept elsewhere has grown by; it starts at zero with the process."""
        (label,) = self._closed(name, (provider,))
        grown = total - self._totals.get((name, label), 0)
        if grown > 0:
            self._totals[name, label] = total
            self._count(name, grown, label)

    def _set(self, name: str, value: float, *labels: str) -> None:
        gauge = self._gauges[name]
        (gauge.labels(*self._closed(name, labels)) if labels else gauge).set(value)

    def _closed(self, name: str, values: Sequence[str]) -> tuple[str, ...]:
        """Return label values from the closed sets: a scrape must not grow with foreign text."""
        pairs = zip(self._labels[name], values, strict=True)
        return tuple(value if value in self._known[label] else OTHER for label, value in pairs)
