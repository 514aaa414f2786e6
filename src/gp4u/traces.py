"""Traces: what each request, each call to a market and each rent took, for who collects them.

Hides OpenTelemetry, an extra (`gp4u[telemetry]`) that is imported only where `GP4U_OTLP_URL` is
set; without it there is no `Traces`, and nothing here costs anything. It exists so that no other
file knows of spans: a server, a market's observer and the broker are wrapped from outside. Names
and attributes of spans come from closed sets, but for rental keys; what a market or a caller says
never gets into one. Counting is in `metrics.py`.
"""

from __future__ import annotations

import logging
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Iterator,
    MutableMapping,
    Sequence,
)
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from gp4u.clock import Clock, SystemClock
from gp4u.errors import BadInput
from gp4u.metric_table import METHODS, outcome_of

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
    from opentelemetry.trace import Span

EXPORT_S: Final = 2.0
"""For one batch, retries included; the end of the process waits for the last one."""
TRACES_PATH: Final = "/v1/traces"
SERVER_ERROR: Final = 500
_NS: Final = 1_000_000_000

Message = MutableMapping[str, Any]
App = Callable[
    [Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]],
    Awaitable[None],
]
Observe = Callable[[str, str, Any, float], None]
"""Told of each call: provider, operation, its error or None, seconds."""
Note = Callable[[str, str], None]
"""Adds an attribute to a span: name, value."""


@asynccontextmanager
async def opened_traces(
    url: str | None, *, clock: Clock | None = None
) -> AsyncIterator[Traces | None]:
    """Give what sends spans to `url` by OTLP over HTTP; None where there is no address.

    An address without a path gets the one that collectors listen on, `/v1/traces`. The variables
    of OpenTelemetry itself (`OTEL_EXPORTER_OTLP_HEADERS`, `OTEL_RESOURCE_ATTRIBUTES`,
    `OTEL_TRACES_SAMPLER`, ...) hold as well. In the end what is left is sent, for `EXPORT_S` or so.

    Source: opentelemetry-exporter-otlp-proto-http 1.45, whose own default path it is and which
    reads those variables; checked in November 2026.

    Raises:
        BadInput: the extra is not installed.
    """
    if url is None:
        yield None
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError as error:
        host = urlsplit(url).hostname or ""
        bound = "traces need an extra: pip install 'gp4u[telemetry]'"
        raise BadInput("GP4U_OTLP_URL", host, bound) from error
    if urlsplit(url).path in ("", "/"):
        url = url.rstrip("/") + TRACES_PATH
    traces = Traces(OTLPSpanExporter(endpoint=url, timeout=EXPORT_S), clock=clock)
    try:
        yield traces
    finally:
        traces.close()


class Traces:
    """Makes spans, and sends them in batches from a thread of its own."""

    def __init__(
        self, exporter: SpanExporter, *, clock: Clock | None = None, at_once: bool = False
    ) -> None:
        """With `at_once` each span is exported as it ends; for tests, which look at them."""
        from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        # Their own lines repeat with every batch; `_Told` says once what there is to say.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
        told = _told(exporter)
        self._clock = clock or SystemClock()
        self._provider = _provider()
        self._provider.add_span_processor(
            SimpleSpanProcessor(told) if at_once else BatchSpanProcessor(told)
        )
        self._tracer = self._provider.get_tracer("gp4u")
        self._propagator = TraceContextTextMapPropagator()

    def close(self) -> None:
        """Send what is left, and stop; blocks for `EXPORT_S` or so where nobody takes it."""
        self._provider.shutdown()

    def serving(self, app: App) -> App:
        """Return the ASGI app with a server span around each request.

        A caller's `traceparent` makes it a part of the caller's trace. The span's id stands in
        every log line of the request, as `trace_id`.
        """
        from opentelemetry.trace import SpanKind, StatusCode

        async def traced(
            scope: Message,
            receive: Callable[[], Awaitable[Message]],
            send: Callable[[Message], Awaitable[None]],
        ) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            method = scope["method"] if scope["method"] in METHODS else "_OTHER"
            with self._entered(scope, method, SpanKind.SERVER) as span:

                async def watched(message: Message) -> None:
                    if message["type"] == "http.response.start":
                        span.set_attribute("http.response.status_code", message["status"])
                        if message["status"] >= SERVER_ERROR:
                            span.set_status(StatusCode.ERROR)
                    await send(message)

                try:
                    await app(scope, receive, watched)
                except Exception as error:
                    span.set_status(StatusCode.ERROR, type(error).__name__)
                    raise
                finally:
                    route = getattr(scope.get("route"), "path", None)
                    if route is not None:
                        span.update_name(f"{method} {route}")
                        span.set_attribute("http.route", route)
                    if scope.get("role"):
                        span.set_attribute("gp4u.role", scope["role"])

        return traced

    def observing(self, observe: Observe | None) -> Observe:
        """Return an observer of provider calls that makes a span of each, and tells `observe`."""
        from opentelemetry.trace import SpanKind, StatusCode

        def both(provider: str, operation: str, error: Any, seconds: float) -> None:
            if observe is not None:
                observe(provider, operation, error, seconds)
            ended = int(self._clock.now().timestamp() * _NS)
            outcome = outcome_of(error)
            span = self._tracer.start_span(
                f"{provider} {operation}",
                kind=SpanKind.CLIENT,
                start_time=ended - int(seconds * _NS),
                attributes={
                    "gp4u.provider": provider,
                    "gp4u.operation": operation,
                    "gp4u.outcome": outcome,
                },
            )
            if error is not None:
                span.set_status(StatusCode.ERROR, outcome)
            span.end(end_time=ended)

        return both

    @contextmanager
    def span(self, name: str) -> Iterator[Note]:
        """Open a span around a block; yield what adds an attribute to it.

        What the block raises ends it as an error, with the word of `OUTCOMES` for it.
        """
        from opentelemetry.trace import StatusCode

        with self._tracer.start_as_current_span(
            name, record_exception=False, set_status_on_exception=False
        ) as span:
            try:
                yield span.set_attribute
            except BaseException as error:
                word = outcome_of(error) if isinstance(error, Exception) else "cut off"
                span.set_status(StatusCode.ERROR, f"{word}: {type(error).__name__}")
                raise

    @contextmanager
    def _entered(self, scope: Message, method: str, kind: Any) -> Iterator[Span]:
        """Open a request's span as a child of the caller's, and show its trace to the log."""
        import structlog
        from opentelemetry.trace import format_trace_id

        carrier = {
            name.decode("latin-1"): value.decode("latin-1")
            for name, value in scope["headers"]
            if name in (b"traceparent", b"tracestate")
        }
        with self._tracer.start_as_current_span(
            method,
            context=self._propagator.extract(carrier),
            kind=kind,
            attributes={"http.request.method": method, "url.scheme": scope.get("scheme", "http")},
            record_exception=False,
            set_status_on_exception=False,  # its text would be in there
        ) as span:
            trace_id = format_trace_id(span.get_span_context().trace_id)
            bound = structlog.contextvars.bind_contextvars(trace_id=trace_id)
            try:
                yield span
            finally:
                structlog.contextvars.reset_contextvars(**bound)


def _provider() -> TracerProvider:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider

    from gp4u import __version__

    about = Resource.create({"service.name": "gp4u", "service.version": __version__})
    return TracerProvider(resource=about, shutdown_on_exit=False)


def _told(exporter: SpanExporter) -> SpanExporter:
    """Return an exporter that logs trouble when it starts and when it ends."""
    import structlog
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

    class Told(SpanExporter):
        failing = False

        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            result = exporter.export(spans)
            failed = result is not SpanExportResult.SUCCESS
            if failed and not self.failing:
                structlog.get_logger().warning("traces_not_sent", spans=len(spans))
            elif self.failing and not failed:
                structlog.get_logger().info("traces_sent_again")
            self.failing = failed
            return result

        def shutdown(self) -> None:
            exporter.shutdown()

    return Told()
