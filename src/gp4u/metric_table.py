"""Every metric there is, in one table, with the closed sets that its labels come from.

It exists so that the reference page, the alert rules and the dashboard are all written from one
table, or held to it by a test, and so that no foreign text ever becomes a label. Keeping count is
`metrics.py`; what is worth counting, and when, is left to those who count.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, NamedTuple

from gp4u.errors import (
    CircuitBreakerOpen,
    Denied,
    InstanceAbsent,
    Malformed,
    OfferGone,
    OutcomeUnknown,
    RateLimitExceeded,
    Refused,
    Throttled,
    Unavailable,
)

OPERATIONS: Final = ("ping", "offers", "rent", "instances", "release", "logs", "exec", "billed")
RENTAL_STATES: Final = ("intended", "starting", "running", "releasing", "released")
BREAKER_STATES: Final = ("CLOSED", "OPEN", "HALF_OPEN")
HEALTH_STATES: Final = ("HEALTHY", "DEGRADED", "UNAVAILABLE")
METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
STATUSES: Final = ("1xx", "2xx", "3xx", "4xx", "5xx")
REFUSALS: Final = (
    "bad_request",
    "body_too_large",
    "foreign_origin",
    "head_too_large",
    "host_not_allowed",
    "internal",
    "method_not_allowed",
    "no_such_path",
    "not_json",
    "role_needed",
    "saturated",
    "token_needed",
    "token_required",
    "token_wrong",
    "too_many_guesses",
    "too_many_streams",
    "too_slow",
    "url_too_long",
)
"""Codes of the problems that the server's door answers with, whatever the route."""
BUDGETS: Final = ("usd_per_hour", "usd_per_day", "rentals")
PHASES: Final = ("Pending", "Running", "Succeeded", "Failed")
SHARES: Final = ("offered", "in_use")
OTHER: Final = "other"
_OUTCOMES: tuple[tuple[type[BaseException], str], ...] = (
    (Unavailable, "unavailable"),
    (Throttled, "throttled"),
    (Denied, "denied"),
    (Malformed, "malformed"),
    (Refused, "refused"),
    (CircuitBreakerOpen, "breaker_open"),
    (RateLimitExceeded, "rate_limited"),
    (OfferGone, "offer_gone"),
    (OutcomeUnknown, "unknown"),
    (InstanceAbsent, "absent"),
)
OUTCOMES: Final = ("ok", *(word for _, word in _OUTCOMES), "error")


def outcome_of(error: BaseException | None) -> str:
    """Return the word of `OUTCOMES` for how a call ended; None stands for success."""
    if error is None:
        return "ok"
    return next((word for kind, word in _OUTCOMES if isinstance(error, kind)), "error")


Topic = Literal[
    "Providers", "Breakers and limits", "Book", "Rentals and money", "API", "Node", "Process"
]


class Metric(NamedTuple):
    """One line of the table: everything that a scrape says of a metric, and where it is drawn."""

    topic: Topic
    name: str
    kind: Literal["counter", "gauge", "histogram"]
    labels: tuple[str, ...]
    meaning: str
    buckets: tuple[float, ...] = ()
    """Upper bounds of a histogram, in seconds."""


_CALLS_S = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_REQUESTS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 60)
_COMMITS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 2.5)
_LAG_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1)

METRICS: Final = (
    Metric(
        "Providers",
        "gp4u_provider_success_rate",
        "gauge",
        ("provider",),
        "Share of the newest 100 outcomes that were good, 0 to 1; 1 while there are none",
    ),
    Metric(
        "Providers",
        "gp4u_provider_health",
        "gauge",
        ("provider", "state"),
        "1 for the health it is in, else 0",
    ),
    Metric(
        "Providers",
        "gp4u_provider_uptime",
        "gauge",
        ("provider",),
        "Share of the time since the start in which its breaker was not open, 0 to 1",
    ),
    Metric(
        "Providers",
        "gp4u_provider_calls_total",
        "counter",
        ("provider", "operation", "outcome"),
        "Calls to a provider by how they ended; a retry is a call of its own",
    ),
    Metric(
        "Providers",
        "gp4u_provider_call_seconds",
        "histogram",
        ("provider", "operation"),
        "Time from a call's start to its end, without the wait for its turn",
        _CALLS_S,
    ),
    Metric(
        "Breakers and limits",
        "gp4u_breaker_state",
        "gauge",
        ("provider", "state"),
        "1 for the state it is in, else 0",
    ),
    Metric(
        "Breakers and limits",
        "gp4u_breaker_open_seconds",
        "gauge",
        ("provider",),
        "Time since it opened and has not closed again, failed trials included; 0 where closed",
    ),
    Metric(
        "Breakers and limits",
        "gp4u_breaker_trips_total",
        "counter",
        ("provider",),
        "How often the breaker opened",
    ),
    Metric(
        "Breakers and limits",
        "gp4u_limiter_utilization",
        "gauge",
        ("provider",),
        "Share of the provider's own limit that is in use, 0 to 1",
    ),
    Metric(
        "Breakers and limits",
        "gp4u_bucket_blocked_total",
        "counter",
        ("provider",),
        "Calls that had to wait for their turn, or were refused because it was too far away",
    ),
    Metric(
        "Breakers and limits",
        "gp4u_shared_limits_up",
        "gauge",
        ("provider",),
        "1 while the pace is shared with other processes, 0 while that cannot be; absent unless"
        " `GP4U_REDIS_URL` is set",
    ),
    Metric(
        "Book",
        "gp4u_book_age_seconds",
        "gauge",
        ("provider",),
        "Time since the newest good fetch; since the start where there was none",
    ),
    Metric(
        "Book",
        "gp4u_book_offers",
        "gauge",
        ("provider",),
        "Offers that are held, for all remembered queries together",
    ),
    Metric(
        "Book",
        "gp4u_book_refresh_seconds",
        "gauge",
        ("provider",),
        "How long the newest fetch took, pages and waits included",
    ),
    Metric(
        "Book",
        "gp4u_book_hits_total",
        "counter",
        ("provider",),
        "Reads that were answered from the book",
    ),
    Metric("Book", "gp4u_book_misses_total", "counter", ("provider",), "Reads that made it fetch"),
    Metric(
        "Book",
        "gp4u_book_skipped_rows_total",
        "counter",
        ("provider",),
        "Rows that broke their schema",
    ),
    Metric(
        "Book",
        "gp4u_price_points_total",
        "counter",
        ("provider",),
        "Points that were added to the price history",
    ),
    Metric(
        "Rentals and money",
        "gp4u_rentals",
        "gauge",
        ("provider", "state"),
        "Rentals in the ledger by state",
    ),
    Metric(
        "Rentals and money",
        "gp4u_releasing_age_seconds",
        "gauge",
        ("provider",),
        "How long the oldest rental has been releasing; 0 where none is",
    ),
    Metric(
        "Rentals and money",
        "gp4u_rents_total",
        "counter",
        ("provider", "outcome"),
        "Rent calls by how they ended",
    ),
    Metric(
        "Rentals and money",
        "gp4u_double_rents_total",
        "counter",
        ("provider",),
        "Second instances found under one key; each is released, and each is a bug",
    ),
    Metric(
        "Rentals and money",
        "gp4u_orphans_released_total",
        "counter",
        ("provider",),
        "Instances of ours that no open rental explained",
    ),
    Metric(
        "Rentals and money",
        "gp4u_foreign_instances",
        "gauge",
        ("provider",),
        "Instances of the account that are not ours; never touched",
    ),
    Metric(
        "Rentals and money",
        "gp4u_cost_usd",
        "gauge",
        ("provider",),
        "What the rentals of the ledger have cost",
    ),
    Metric(
        "Rentals and money",
        "gp4u_budget_used",
        "gauge",
        ("budget",),
        "Share of a budget that is used, 0 to 1; absent where no budget is set",
    ),
    Metric(
        "API",
        "gp4u_http_requests_total",
        "counter",
        ("route", "method", "status"),
        "Requests by the route that answered, method and class of status",
    ),
    Metric(
        "API",
        "gp4u_http_request_seconds",
        "histogram",
        ("route", "method"),
        "Time from a request's head to the end of its answer",
        _REQUESTS_S,
    ),
    Metric("API", "gp4u_http_in_flight", "gauge", (), "Requests that are being answered now"),
    Metric(
        "API",
        "gp4u_http_refused_total",
        "counter",
        ("reason",),
        "Requests that the door turned away, by the problem's code",
    ),
    Metric("API", "gp4u_event_subscribers", "gauge", (), "Readers of the event stream now"),
    Metric("Node", "gp4u_node_pods", "gauge", ("node", "phase"), "Pods bound to it by phase"),
    Metric(
        "Node",
        "gp4u_node_gpus",
        "gauge",
        ("node", "share"),
        "GPUs that it offers the scheduler, and those that pods were admitted with",
    ),
    Metric(
        "Node",
        "gp4u_node_rents_waiting",
        "gauge",
        ("node",),
        "Pods whose rent waits for its turn",
    ),
    Metric(
        "Node",
        "gp4u_node_heartbeat_age_seconds",
        "gauge",
        ("node",),
        "Time since the last renewal of its Lease that arrived; from 50 on its pods are unready",
    ),
    Metric(
        "Node",
        "gp4u_node_watch_age_seconds",
        "gauge",
        ("node",),
        "Time since anything was heard of its pods from the API server",
    ),
    Metric(
        "Node",
        "gp4u_node_certificate_seconds",
        "gauge",
        ("node",),
        "Time until its serving certificate expires",
    ),
    Metric(
        "Node",
        "gp4u_node_certificate_lifetime_seconds",
        "gauge",
        ("node",),
        "How long its serving certificate is good for in all; the next one is asked for after 70 %",
    ),
    Metric(
        "Process", "gp4u_ready", "gauge", (), "1 where `/readyz` would say ready at this scrape"
    ),
    Metric(
        "Process",
        "gp4u_loop_lag_seconds",
        "histogram",
        (),
        "How late the event loop came back to a timer, looked at twice a second",
        _LAG_S,
    ),
    Metric(
        "Process",
        "gp4u_ledger_commit_seconds",
        "histogram",
        (),
        "Time that a write to the ledger took, until it was on disk",
        _COMMITS_S,
    ),
)
"""Every metric of ours. Label values come from closed sets only; a stranger becomes `other`."""

PROCESS_METRICS: Final = (
    Metric(
        "Process",
        "process_resident_memory_bytes",
        "gauge",
        (),
        "Memory that the process really occupies",
    ),
    Metric("Process", "process_virtual_memory_bytes", "gauge", (), "Memory that it has mapped"),
    Metric("Process", "process_cpu_seconds_total", "counter", (), "Processor time that it used"),
    Metric("Process", "process_open_fds", "gauge", (), "Files and sockets that it has open"),
    Metric("Process", "process_max_fds", "gauge", (), "How many of them it may have open"),
    Metric(
        "Process",
        "process_start_time_seconds",
        "gauge",
        (),
        "When it was started, in seconds since 1970",
    ),
)
"""What the client library tells of the process by itself, under the names that everybody uses."""

LABELS: Final[Mapping[str, tuple[str, ...]]] = {
    "operation": OPERATIONS,
    "outcome": OUTCOMES,
    "state": (*BREAKER_STATES, *HEALTH_STATES, *RENTAL_STATES),
    "budget": BUDGETS,
    "method": METHODS,
    "status": STATUSES,
    "reason": REFUSALS,
    "phase": PHASES,
    "share": SHARES,
}
"""Label to its closed set; `provider` and `route` get theirs when the process knows them."""
