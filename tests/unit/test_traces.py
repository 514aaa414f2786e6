"""Traces: what becomes a span, what is in it, and that without an address nothing of it exists."""

from __future__ import annotations

import io
import logging
import subprocess
import sys
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from random import Random
from threading import Thread
from typing import Any

import httpx2
import pytest
import structlog
from fastapi import FastAPI, Request
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from gp4u.app import open_app
from gp4u.errors import BadInput, Unavailable
from gp4u.settings import load_settings
from gp4u.telemetry import configure
from gp4u.traces import Traces, opened_traces
from tests.simulated import API_KEY, BASE_URL, DEMAND, WORKLOAD, Market, Wire
from tests.virtual_loop import EPOCH, VirtualClock, run_virtual

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    """Give the process its loggers back; both libraries' settings are global by nature."""
    root, theirs = logging.getLogger(), logging.getLogger("opentelemetry")
    before, levels = list(root.handlers), (root.level, theirs.level)
    yield
    root.handlers[:] = before
    root.setLevel(levels[0])
    theirs.setLevel(levels[1])
    structlog.reset_defaults()


class Collected:
    """Traces that stay in this process."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.traces = Traces(self._exporter, clock=VirtualClock(), at_once=True)

    @property
    def spans(self) -> dict[str, ReadableSpan]:
        """The spans that have ended, by name."""
        return {span.name: span for span in self._exporter.get_finished_spans()}


def attributes(span: ReadableSpan) -> dict[str, Any]:
    """What a span says of itself."""
    return dict(span.attributes or {})


def parent_of(span: ReadableSpan) -> str:
    """The id of the span that a span is in; empty for none."""
    return f"{span.parent.span_id:016x}" if span.parent else ""


def id_of(span: ReadableSpan) -> str:
    """A span's own id."""
    context = span.get_span_context()
    assert context is not None
    return f"{context.span_id:016x}"


def trace_of(span: ReadableSpan) -> str:
    """The id of the trace that a span belongs to."""
    context = span.get_span_context()
    assert context is not None
    return f"{context.trace_id:032x}"


async def asked(collected: Collected, path: str, **headers: str) -> httpx2.Response:
    """Ask a small app that is traced, and return what it answers."""
    app = FastAPI()

    @app.get("/things/{name}")
    async def thing(name: str, request: Request) -> str:
        request.scope["role"] = "read"
        observe = collected.traces.observing(None)
        observe("vastai", "offers", None, 0.25)
        structlog.get_logger().info("inside")
        return name

    @app.get("/broken")
    async def broken() -> None:
        raise ZeroDivisionError("secret-in-an-error")

    transport = httpx2.ASGITransport(
        app=collected.traces.serving(app),
        raise_app_exceptions=False,
    )
    async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        return await client.get(path, headers=headers)


def test_a_request_is_a_span_under_the_name_of_its_route() -> None:
    """Names with ids in them cannot be grouped, and a query may hold what is secret."""

    async def life() -> None:
        collected = Collected()
        await asked(collected, "/things/4090?token=hidden-in-a-query")
        span = collected.spans["GET /things/{name}"]
        assert span.kind is SpanKind.SERVER
        assert attributes(span) == {
            "http.request.method": "GET",
            "http.route": "/things/{name}",
            "http.response.status_code": 200,
            "url.scheme": "http",
            "gp4u.role": "read",
        }
        assert span.status.status_code is StatusCode.UNSET
        assert "hidden-in-a-query" not in span.to_json()

    run_virtual(life)


def test_a_callers_trace_goes_on_in_ours() -> None:
    """Whoever looks for a slow request looks in one trace, from the browser to the market."""

    async def life() -> None:
        collected = Collected()
        await asked(collected, "/things/a", traceparent=f"00-{TRACE}-{PARENT}-01")
        span = collected.spans["GET /things/{name}"]
        assert (trace_of(span), parent_of(span)) == (TRACE, PARENT)

    run_virtual(life)


@pytest.mark.parametrize("header", ["", "00-xyz-1-01", f"00-{'0' * 32}-{PARENT}-01", "\xff" * 9000])
def test_a_traceparent_that_is_none_begins_a_trace_of_its_own(header: str) -> None:
    """It is a stranger's text; nothing of it may break the request."""

    async def life() -> None:
        collected = Collected()
        transport = httpx2.ASGITransport(
            app=collected.traces.serving(FastAPI()),
        )
        async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            raw = [(b"traceparent", header.encode("latin-1"))]
            assert (await client.get("/nothing", headers=raw)).status_code == 404
        span = collected.spans["GET"]
        assert parent_of(span) == ""
        assert trace_of(span) not in (TRACE, "0" * 32)

    run_virtual(life)


def test_a_call_to_a_market_is_a_span_inside_the_request() -> None:
    """That is where the time of a slow request went."""

    async def life() -> None:
        collected = Collected()
        await asked(collected, "/things/a")
        request, call = collected.spans["GET /things/{name}"], collected.spans["vastai offers"]
        assert parent_of(call) == id_of(request)
        assert call.kind is SpanKind.CLIENT
        assert call.start_time is not None
        assert call.end_time is not None
        assert call.end_time == EPOCH.timestamp() * 1e9
        assert call.end_time - call.start_time == 250_000_000
        assert attributes(call) == {
            "gp4u.provider": "vastai",
            "gp4u.operation": "offers",
            "gp4u.outcome": "ok",
        }

    run_virtual(life)


def test_a_failed_call_is_an_error_by_its_outcome_and_not_by_the_markets_words() -> None:
    """What a market says may be anything, and the collector is somebody else's machine."""
    collected = Collected()
    told: list[tuple[object, ...]] = []
    observe = collected.traces.observing(lambda *each: told.append(each))
    error = Unavailable("vastai", "ping", "the key was account-key-canary")
    observe("vastai", "ping", error, 1.0)
    span = collected.spans["vastai ping"]
    assert told == [("vastai", "ping", error, 1.0)]
    assert span.status.status_code is StatusCode.ERROR
    assert attributes(span)["gp4u.outcome"] == "unavailable"
    assert "canary" not in span.to_json()


def test_a_bug_ends_the_span_as_an_error_without_its_text() -> None:
    """A trace of an exception holds values of variables' making, and values may be secret."""

    async def life() -> None:
        collected = Collected()
        reply = await asked(collected, "/broken")
        assert reply.status_code == 500
        span = collected.spans["GET /broken"]
        assert span.status.status_code is StatusCode.ERROR
        assert "secret-in-an-error" not in span.to_json()

    run_virtual(life)


def test_the_log_lines_of_a_request_name_its_trace() -> None:
    """From a line in the log to the trace it belongs to, and back."""

    async def life() -> None:
        collected = Collected()
        stream = io.StringIO()
        configure("info", "json", [], stream)
        await asked(collected, "/things/a", traceparent=f"00-{TRACE}-{PARENT}-01")
        assert f'"trace_id": "{TRACE}"' in stream.getvalue()
        structlog.get_logger().info("later")
        assert "trace_id" not in stream.getvalue().splitlines()[-1]

    run_virtual(life)


def test_a_rent_and_a_release_are_spans_with_their_calls_in_them(tmp_path: Path) -> None:
    """Minutes pass between asking and having a machine, over many calls; this shows which."""

    async def life() -> None:
        collected, market = Collected(), Market()
        settings = load_settings(
            {
                "GP4U_DATABASE_URL": f"sqlite:///{tmp_path}/ledger.db",
                "GP4U_ALLOW_LOOPBACK": "1",
                "VASTAI_API_KEY": API_KEY,
                "VASTAI_BASE_URL": BASE_URL,
            },
            tmp_path,
        )
        wire = Wire(market)
        async with open_app(
            settings,
            clock=VirtualClock(),
            random=Random(1),
            transport=wire,
            traces=collected.traces,
        ) as app:
            rental = await app.broker.rent("cli:a", DEMAND, WORKLOAD)
            await app.broker.release(rental.key)
        await market.world.aclose()
        rent, release = collected.spans["rent"], collected.spans["release"]
        assert attributes(rent) == {
            "gp4u.rental": rental.key,
            "gp4u.provider": "vastai",
            "gp4u.state": "running",
        }
        assert attributes(release)["gp4u.state"] == "released"
        assert parent_of(collected.spans["vastai rent"]) == id_of(rent)
        assert parent_of(collected.spans["vastai release"]) == id_of(release)
        assert not any(API_KEY in span.to_json() for span in collected.spans.values())

    run_virtual(life)


def test_a_rent_that_comes_to_nothing_is_an_error_by_its_kind(tmp_path: Path) -> None:
    """An attempt that failed is what a trace is opened for."""
    collected = Collected()
    with pytest.raises(Unavailable), collected.traces.span("rent"):
        raise Unavailable("vastai", "rent", "account-key-canary")
    span = collected.spans["rent"]
    assert span.status.status_code is StatusCode.ERROR
    assert span.status.description == "unavailable: Unavailable"
    assert "canary" not in span.to_json()


class Flaky(SpanExporter):
    """A collector that fails as often as it is told, then works."""

    def __init__(self, failures: int) -> None:
        self.failures = failures

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.failures -= 1
        return SpanExportResult.FAILURE if self.failures >= 0 else SpanExportResult.SUCCESS


def test_a_collector_in_trouble_is_told_once_when_it_begins_and_once_when_it_ends() -> None:
    """A line with every batch would bury the log under the one thing that does not matter."""
    stream = io.StringIO()
    configure("info", "json", [], stream)
    traces = Traces(Flaky(3), at_once=True)
    for _ in range(6):
        with traces.span("rent"):
            pass
    told = [line.split('"event": "')[1].split('"')[0] for line in stream.getvalue().splitlines()]
    assert told == ["traces_not_sent", "traces_sent_again"]


class Collector(HTTPServer):
    """An OTLP collector on loopback that keeps what it gets."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Taking)
        self.got: list[tuple[str, ExportTraceServiceRequest]] = []


class _Taking(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        assert self.headers["content-type"] == "application/x-protobuf"
        self.server.got.append((self.path, ExportTraceServiceRequest.FromString(body)))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        return


@pytest.mark.parametrize(("path", "reached"), [("", "/v1/traces"), ("/in/here", "/in/here")])
async def test_spans_reach_a_collector_as_otlp_before_the_process_ends(
    path: str, reached: str
) -> None:
    """What was under way when it ended is what somebody will look for."""
    with Collector() as collector:
        thread = Thread(target=collector.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            async with opened_traces(f"http://127.0.0.1:{collector.server_port}{path}") as traces:
                assert traces is not None
                with traces.span("rent") as note:
                    note("gp4u.provider", "vastai")
        finally:
            collector.shutdown()
            thread.join()
    ((where, request),) = collector.got
    assert where == reached
    (resource,) = request.resource_spans
    about = {each.key: each.value.string_value for each in resource.resource.attributes}
    assert about["service.name"] == "gp4u"
    ((span,),) = [scope.spans for scope in resource.scope_spans]
    assert span.name == "rent"
    assert [(a.key, a.value.string_value) for a in span.attributes] == [("gp4u.provider", "vastai")]


async def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The name of a package inside a traceback does not say what to install; nor may a password."""
    exporter = "opentelemetry.exporter.otlp.proto.http.trace_exporter"
    monkeypatch.setitem(sys.modules, exporter, None)
    with pytest.raises(BadInput, match=r"pip install 'gp4u\[telemetry\]'") as caught:
        async with opened_traces("http://ada:password@collector.test:4318"):
            pass
    assert caught.value.field == "GP4U_OTLP_URL"
    assert "password" not in str(caught.value)


def run(program: str, folder: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run lines inside an open server, in a process of their own."""
    whole = (
        "import asyncio, sys, httpx2\nfrom pathlib import Path\n"
        "from gp4u.serving import open_server\nfrom gp4u.settings import load_settings\n"
        "async def main():\n"
        f"    url = 'sqlite:///{folder}/ledger.db'\n"
        f"    settings = load_settings({{'GP4U_DATABASE_URL': url}}, Path({str(folder)!r}))\n"
        "    async with open_server(settings) as server:\n"
        f"        {program}\n"
        "asyncio.run(main())\n"
    )
    return subprocess.run(
        [sys.executable, "-c", whole], capture_output=True, text=True, env=environ, check=False
    )


def test_without_an_address_nothing_of_it_is_loaded(tmp_path: Path) -> None:
    """The extra costs memory, time and a thread; who did not ask for it must not pay.

    The framework brings the package of OpenTelemetry's names with it, which does nothing.
    """
    loaded = "[m for m in sys.modules if m.startswith(('opentelemetry.sdk', 'opentelemetry.exp'))]"
    done = run(f"print({loaded})", tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")


def test_the_frameworks_own_traces_stay_off_whatever_the_environment_says(tmp_path: Path) -> None:
    """They hold queries and the texts of exceptions, and go wherever a variable points."""
    done = run(
        "print(server.routes._native_telemetry.enabled(), server.routes._telemetry)",
        tmp_path,
        FASTAPI_OTEL_AUTO_CONFIGURE="true",
        OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9",
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("False ")
    assert "True" not in done.stdout
