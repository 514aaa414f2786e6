"""What leaves the process for people and machines to watch: log lines and metrics.

Hides structlog and prometheus_client, both imported only where they are used, because `clean` is
needed everywhere and must cost nothing to import. It exists so that two promises are kept in one
place: foreign text is data (no control character, no line of any length reaches a log, a terminal
or a metric), and no secret passes the rim, in whatever form an exception or a provider echoes it.
What is worth saying is left to those who say it.
"""

from __future__ import annotations

import base64
import json
import logging
import re
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TextIO
from urllib.parse import quote, quote_plus

from gp4u.clock import Clock, SystemClock
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

if TYPE_CHECKING:
    from prometheus_client import Counter, Gauge, Histogram

REDACTED = "[redacted]"
MAX_VALUE_CHARS = 1024
MAX_TRACE_CHARS = 16_384
_MAX_ITEMS, _MAX_DEPTH = 50, 5
_SHORTEST_SECRET = 4
"""A shorter one would black out half of every line; no provider hands out such keys."""
_SHORTEST_PREFIX = 8
_CUT = "…"

_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff\ud800-\udfff]"
)
"""C0 but tab and line feed, DEL, C1, bidi marks, invisible joints, halves of surrogate pairs."""
_BREAKS = re.compile("[\t\n\u2028\u2029]+")


def clean(text: str, limit: int = 256) -> str:
    """Return foreign text as one harmless line of at most `limit` characters.

    Control, bidi and invisible characters go, line breaks become spaces, and what is cut off is
    marked with an ellipsis. Every text that a provider or a workload sends passes through here.
    """
    line = _BREAKS.sub(" ", _CONTROL.sub("", text[: 8 * limit])).strip()
    return line if len(line) <= limit and len(text) <= 8 * limit else line[: limit - 1] + _CUT


class Redactor:
    """Blacks out secrets by value: plain, URL-encoded, as JSON, and inside base64."""

    def __init__(self, secrets: Iterable[str]) -> None:
        held = [each for each in secrets if len(each) >= _SHORTEST_SECRET]
        forms = {form for each in held for form in _forms(each)}
        longest_first = sorted(forms, key=lambda form: (-len(form), form))
        self._forms = tuple(longest_first)
        self._pattern = re.compile("|".join(map(re.escape, longest_first))) if forms else None

    def __call__(self, text: str) -> str:
        """Return the text without any secret, whole or cut off at an ellipsis."""
        if self._pattern is None:
            return text
        text = self._pattern.sub(REDACTED, text)
        if _CUT not in text:
            return text
        parts = text.split(_CUT)
        return _CUT.join([*map(self._without_tail, parts[:-1]), parts[-1]])

    def _without_tail(self, text: str) -> str:
        """Drop the beginning of a secret at the end of text that somebody has cut."""
        for form in self._forms:
            for length in range(min(len(form), len(text)), _SHORTEST_PREFIX - 1, -1):
                if text.endswith(form[:length]):
                    return text[:-length] + REDACTED
        return text


def _forms(secret: str) -> Iterable[str]:
    yield secret
    yield quote(secret, safe="")
    yield quote_plus(secret)
    yield json.dumps(secret)[1:-1]
    raw = secret.encode("utf-8", "replace")
    for before in range(3):
        # base64 writes six bits per character, so the same bytes look different after one or two
        # others. Characters that hold bits of a neighbour are left off at both ends.
        first, last = -(-before * 8 // 6), (before + len(raw)) * 8 // 6
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            core = encode(bytes(before) + raw).decode()[first:last]
            if len(core) >= _SHORTEST_PREFIX:
                yield core


def configure(
    level: str,
    fmt: Literal["auto", "json", "console"],
    secrets: Sequence[str],
    stream: TextIO,
    clock: Clock | None = None,
) -> None:
    """Send every log line, structlog's and the standard library's, through one rim to `stream`.

    `auto` means console on a terminal and JSON lines elsewhere. Calling again replaces what the
    last call set up.
    """
    import structlog
    from structlog.stdlib import ProcessorFormatter

    threshold = logging.getLevelNamesMapping()[level.upper()]
    terminal = stream.isatty()
    stamp = _Stamp(clock or SystemClock())
    rim = _Rim(Redactor(secrets))
    renderer: Any = structlog.processors.JSONRenderer(ensure_ascii=False)
    if fmt == "console" or (fmt == "auto" and terminal):
        plain = structlog.dev.plain_traceback
        renderer = structlog.dev.ConsoleRenderer(colors=terminal, exception_formatter=plain)
    before: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        stamp,
    ]
    after: list[Any] = [structlog.processors.format_exc_info, rim, renderer]
    structlog.configure(
        processors=[*before, *after],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.WriteLoggerFactory(file=stream),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(stream)
    handler.set_name("gp4u")
    handler.setFormatter(
        ProcessorFormatter(
            foreign_pre_chain=[*before, structlog.stdlib.add_logger_name],
            processors=[ProcessorFormatter.remove_processors_meta, *after],
        )
    )
    root = logging.getLogger()
    for each in [each for each in root.handlers if each.get_name() == "gp4u"]:
        root.removeHandler(each)
    root.addHandler(handler)
    root.setLevel(threshold)
    for chatty in ("httpx2", "httpcore2", "asyncio"):
        logging.getLogger(chatty).setLevel(max(threshold, logging.WARNING))


class _Stamp:
    """Adds the injected wall time, RFC 3339 in UTC."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def __call__(
        self, _logger: Any, _method: str, event: MutableMapping[str, Any]
    ) -> MutableMapping[str, Any]:
        event["timestamp"] = self._clock.now().isoformat(timespec="milliseconds")
        return event


class _Rim:
    """The last thing a log line passes: only plain, short, harmless values without secrets."""

    def __init__(self, redact: Redactor) -> None:
        self._redact = redact

    def __call__(
        self, _logger: Any, _method: str, event: MutableMapping[str, Any]
    ) -> MutableMapping[str, Any]:
        first = [key for key in ("timestamp", "level", "event") if key in event]
        return {
            self._line(str(key), 64): self._trace(event[key])
            if key in ("exception", "stack") and isinstance(event[key], str)
            else self._value(event[key], 0)
            for key in (*first, *(key for key in event if key not in first))
        }

    def _line(self, text: str, limit: int) -> str:
        # Clean before hiding, or a control character inside a secret saves it from being seen; cut
        # after hiding, or half of it stays.
        whole = clean(text[: 8 * limit], 8 * limit)
        return clean(self._redact(whole if len(text) <= 8 * limit else whole + _CUT), limit)

    def _trace(self, text: str) -> str:
        """Keep line breaks, which make it readable, and the end, which says what failed."""
        text = self._redact(_CONTROL.sub("", text))
        return text if len(text) <= MAX_TRACE_CHARS else _CUT + text[1 - MAX_TRACE_CHARS :]

    def _value(self, value: object, depth: int) -> object:
        if value is None or isinstance(value, (bool, int)):
            return value
        if isinstance(value, float):
            return value if abs(value) < float("inf") else str(value)
        if depth < _MAX_DEPTH and isinstance(value, Mapping):
            pairs = list(value.items())[:_MAX_ITEMS]
            return {self._line(str(k), 64): self._value(v, depth + 1) for k, v in pairs}
        if depth < _MAX_DEPTH and isinstance(value, (list, tuple, set, frozenset)):
            return [self._value(each, depth + 1) for each in list(value)[:_MAX_ITEMS]]
        return self._line(str(value), MAX_VALUE_CHARS)


OPERATIONS = ("ping", "offers", "rent", "instances", "release", "logs", "exec", "billed")
RENTAL_STATES = ("intended", "starting", "running", "releasing", "released")
BREAKER_STATES = ("CLOSED", "OPEN", "HALF_OPEN")
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
OUTCOMES = ("ok", *(word for _, word in _OUTCOMES), "error")


def outcome_of(error: BaseException | None) -> str:
    """Return the word of `OUTCOMES` for how a call ended; None stands for success."""
    if error is None:
        return "ok"
    return next((word for kind, word in _OUTCOMES if isinstance(error, kind)), "error")


@dataclass(frozen=True)
class Metric:
    """One line of the table: everything that a scrape says of a metric."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    labels: tuple[str, ...]
    meaning: str


METRICS = (
    Metric(
        "gp4u_provider_calls_total",
        "counter",
        ("provider", "operation", "outcome"),
        "Calls to a provider by how they ended; a retry is a call of its own",
    ),
    Metric(
        "gp4u_provider_call_seconds",
        "histogram",
        ("provider", "operation"),
        "Time from a call's start to its end, without the wait for its turn",
    ),
    Metric(
        "gp4u_breaker_state", "gauge", ("provider", "state"), "1 for the state it is in, else 0"
    ),
    Metric("gp4u_breaker_trips_total", "counter", ("provider",), "How often the breaker opened"),
    Metric(
        "gp4u_bucket_blocked_total",
        "counter",
        ("provider",),
        "Calls that had to wait for their turn, or were refused because it was too far away",
    ),
    Metric("gp4u_book_age_seconds", "gauge", ("provider",), "Time since the newest good fetch"),
    Metric("gp4u_book_offers", "gauge", ("provider",), "Offers of the newest good fetch"),
    Metric(
        "gp4u_book_skipped_rows_total", "counter", ("provider",), "Rows that broke their schema"
    ),
    Metric("gp4u_rentals", "gauge", ("provider", "state"), "Rentals in the ledger by state"),
    Metric(
        "gp4u_releasing_age_seconds",
        "gauge",
        ("provider",),
        "How long the oldest rental has been releasing; 0 where none is",
    ),
    Metric("gp4u_rents_total", "counter", ("provider", "outcome"), "Rent calls by how they ended"),
    Metric(
        "gp4u_double_rents_total",
        "counter",
        ("provider",),
        "Second instances found under one key; each is released, and each is a bug",
    ),
    Metric(
        "gp4u_orphans_released_total",
        "counter",
        ("provider",),
        "Instances of ours that no open rental explained",
    ),
    Metric(
        "gp4u_foreign_instances",
        "gauge",
        ("provider",),
        "Instances of the account that are not ours; never touched",
    ),
    Metric("gp4u_cost_usd", "gauge", ("provider",), "What the rentals of the ledger have cost"),
)
"""Every metric there is. Label values come from closed sets only; a stranger becomes `other`."""

_LABELS = {
    "operation": OPERATIONS,
    "outcome": OUTCOMES,
    "state": (*BREAKER_STATES, *RENTAL_STATES),
}


class Metrics:
    """The metrics of one process, on a registry of their own."""

    def __init__(self, providers: Iterable[str]) -> None:
        """`providers` closes the set of that label; each has its zeroes from the start."""
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
        from prometheus_client import disable_created_metrics as without_creation_times

        # One more series per counter that nobody asked for.
        without_creation_times()  # type: ignore[no-untyped-call] # the library has no types here
        self._known = {**_LABELS, "provider": tuple(providers)}
        self._registry = CollectorRegistry()
        self._counters: dict[str, Counter] = {}
        self._gauges: dict[str, Gauge] = {}
        self._histograms: dict[str, Histogram] = {}
        self._totals: dict[tuple[str, str], float] = {}
        for metric in METRICS:
            about: tuple[str, str, tuple[str, ...]] = (metric.name, metric.meaning, metric.labels)
            if metric.kind == "counter":
                self._counters[metric.name] = Counter(*about, registry=self._registry)
            elif metric.kind == "gauge":
                self._gauges[metric.name] = Gauge(*about, registry=self._registry)
            else:
                buckets = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
                self._histograms[metric.name] = Histogram(
                    *about, registry=self._registry, buckets=buckets
                )
        for provider in self._known["provider"]:
            for name in ("double_rents", "orphans_released", "breaker_trips", "bucket_blocked"):
                self._counters[f"gp4u_{name}_total"].labels(provider)

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

    def breaker(self, provider: str, state: str, trips: int) -> None:
        """Show a breaker as it is now; `trips` is its own count since the process started."""
        for each in BREAKER_STATES:
            self._set("gp4u_breaker_state", float(each == state), provider, each)
        self._raise_to("gp4u_breaker_trips_total", provider, trips)

    def bucket(self, provider: str, blocked: int) -> None:
        """Show how many calls a provider's limiter has held up since the process started."""
        self._raise_to("gp4u_bucket_blocked_total", provider, blocked)

    def book(self, provider: str, *, offers: int, age_s: float) -> None:
        """Show what the book holds of one provider."""
        self._set("gp4u_book_offers", offers, provider)
        self._set("gp4u_book_age_seconds", age_s, provider)

    def skipped_rows(self, provider: str, rows: int) -> None:
        """Count rows of one answer that broke their schema."""
        self._count("gp4u_book_skipped_rows_total", rows, provider)

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

    def render(self) -> bytes:
        """Return the page that a scrape gets, in the text format 0.0.4."""
        from prometheus_client import generate_latest

        return generate_latest(self._registry)

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
        self._gauges[name].labels(*self._closed(name, labels)).set(value)

    def _closed(self, name: str, values: Sequence[str]) -> tuple[str, ...]:
        """Return label values from the closed sets: a scrape must not grow with foreign text."""
        wanted = next(metric.labels for metric in METRICS if metric.name == name)
        pairs = zip(wanted, values, strict=True)
        return tuple(value if value in self._known[label] else "other" for label, value in pairs)
