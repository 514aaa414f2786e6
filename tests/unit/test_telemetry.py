"""The rim: nothing foreign and nothing secret passes it, and every metric is in the table."""

from __future__ import annotations

import base64
import io
import json
import logging
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Literal
from urllib.parse import quote

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from gp4u.errors import Denied, OutcomeUnknown, ProviderError
from gp4u.model import RentalKey
from gp4u.telemetry import (
    METRICS,
    OUTCOMES,
    REDACTED,
    Metrics,
    Redactor,
    clean,
    configure,
    outcome_of,
)

CANARY = "canary/key+4711=="


class FrozenClock:
    """Always the same moment."""

    def now(self) -> datetime:
        return datetime(2026, 11, 22, 12, 0, tzinfo=UTC)


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    """Give the process its loggers back; `configure` is global by nature."""
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    yield
    root.handlers[:] = before
    root.setLevel(level)
    structlog.reset_defaults()


def start(fmt: Literal["auto", "json", "console"] = "json", level: str = "info") -> io.StringIO:
    """Configure logging with the canary as the secret; return where it goes."""
    stream = io.StringIO()
    configure(level, fmt, [CANARY], stream, FrozenClock())
    return stream


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    """Return what was logged as JSON, one object a line."""
    return [json.loads(line) for line in stream.getvalue().splitlines()]


@given(st.text(max_size=600), st.integers(min_value=1, max_value=300))
def test_clean_text_is_one_harmless_line_of_bounded_length(text: str, limit: int) -> None:
    """A host name from a market may carry an escape sequence that rewrites the terminal."""
    line = clean(text, limit)
    assert len(line) <= limit
    assert not any(
        ord(c) < 0x20 or 0x7F <= ord(c) <= 0x9F or ord(c) in range(0x2028, 0x202F) for c in line
    )
    line.encode("utf-8")
    assert clean(line, limit) == line


def test_cleaning_names_what_it_takes_away() -> None:
    """C0, C1, bidi and invisible characters go; readable text of any script stays."""
    assert clean("\x1b[31mred\x1b[0m \x9b2J\u202eevil\u2066 \ufeffok") == "[31mred[0m 2Jevil ok"
    assert clean("two\r\nlines\tand a tab") == "two lines and a tab"
    assert clean("Zürich, 東京, Київ") == "Zürich, 東京, Київ"
    assert clean("x" * 300) == "x" * 255 + "…"
    assert clean("\ud800lone half") == "lone half"


def test_cleaning_a_huge_text_costs_little() -> None:
    """Providers have sent bodies of many megabytes where a sentence was due."""
    assert len(clean("\x00" * 50_000_000 + "end", 64)) <= 64


@pytest.mark.parametrize(
    "echo",
    [
        CANARY,
        quote(CANARY, safe=""),
        base64.b64encode(CANARY.encode()).decode(),
        base64.b64encode(f"user:{CANARY}".encode()).decode(),
        base64.b64encode(f"u:{CANARY}".encode()).decode(),
        base64.urlsafe_b64encode(f"me:{CANARY}".encode()).decode(),
    ],
)
def test_a_secret_is_hidden_in_every_form_in_which_it_is_echoed(echo: str) -> None:
    """A provider that answers a bad key repeats it: in the URL, in a header, in base64."""
    shown = Redactor([CANARY])(f"before {echo} after")
    assert REDACTED in shown
    assert CANARY[2:-2] not in shown
    assert base64.b64encode(CANARY.encode()).decode()[:12] not in shown


@given(st.text(min_size=8, max_size=40), st.text(max_size=40), st.text(max_size=40))
def test_no_secret_survives_whatever_surrounds_it(secret: str, before: str, after: str) -> None:
    """Hiding is by value, so it must not depend on how the text around it looks."""
    assert secret in REDACTED or secret not in Redactor([secret])(before + secret + after)


def test_the_beginning_of_a_secret_before_a_cut_is_hidden() -> None:
    """Text is cut where it is received, often in the middle of an echoed key."""
    received = clean("x" * 20 + CANARY, 33)
    assert received.endswith("…")
    assert Redactor([CANARY])(received) == "x" * 20 + REDACTED + "…"


def test_an_empty_secret_hides_nothing() -> None:
    """An unset key is the empty string in many places, and stands between any two characters."""
    assert Redactor(["", "ab"])("about nothing") == "about nothing"


@pytest.mark.parametrize("fmt", ["json", "console"])
def test_no_secret_and_no_escape_passes_the_rim(fmt: Literal["json", "console"]) -> None:
    """Values, keys, nested values, tracebacks and other people's log lines all leave here."""
    stream = start(fmt)
    log = structlog.get_logger()
    log.info(f"sent {CANARY}", url=f"https://x/?k={CANARY}", nested={"a": [CANARY]}, **{CANARY: 1})
    log.info("split", text=f"{CANARY[:4]}\x1b{CANARY[4:]} \x1b[2J")
    try:
        raise ValueError(f"\x1b]0;title\x07 {CANARY}")
    except ValueError:
        log.exception("broke")
        logging.getLogger("somebody.else").exception("theirs %s", CANARY)
    text = stream.getvalue()
    assert CANARY not in text
    assert "\x1b" not in text
    assert text.count(REDACTED) >= 7
    assert "ValueError" in text


def test_a_log_line_is_one_json_object_in_a_stable_order() -> None:
    """Machines split on line feeds, and people read the first three fields."""
    stream = start()
    structlog.get_logger().info("rent.sent", provider="vastai\nFAKE", price=float("nan"), n=3)
    (line,) = lines(stream)
    assert list(line)[:3] == ["timestamp", "level", "event"]
    assert line == {
        "timestamp": "2026-11-22T12:00:00.000+00:00",
        "level": "info",
        "event": "rent.sent",
        "provider": "vastai FAKE",
        "price": "nan",
        "n": 3,
    }


def test_endless_values_are_cut() -> None:
    """One log line must never be what fills the disk."""
    stream = start()
    structlog.get_logger().info("e", text="x" * 10**6, many=list(range(10**4)), k={"d": {"d": {}}})
    assert len(stream.getvalue()) < 3000


def test_the_level_holds_for_our_lines_and_for_theirs() -> None:
    """Libraries log each request at info, with its URL."""
    stream = start(level="warning")
    structlog.get_logger().info("quiet")
    logging.getLogger("other").info("quiet")
    structlog.get_logger().warning("ours")
    logging.getLogger("other").warning("theirs")
    assert [line["event"] for line in lines(stream)] == ["ours", "theirs"]


def test_auto_means_json_where_nobody_watches() -> None:
    """A stream without a terminal is read by a machine."""
    stream = start("auto")
    structlog.get_logger().info("hello")
    assert lines(stream)[0]["event"] == "hello"


def test_configuring_again_replaces_the_last_set_up() -> None:
    """Two handlers would write every line twice, and the first one no longer knows the secrets."""
    first, second = start(), start()
    logging.getLogger("other").warning("once")
    assert first.getvalue() == ""
    assert len(lines(second)) == 1


def test_every_failure_has_a_word_for_the_metrics() -> None:
    """An outcome outside the set would be a new series for every bug."""
    assert outcome_of(None) == "ok"
    assert outcome_of(Denied("vastai", "ping")) == "denied"
    assert outcome_of(OutcomeUnknown("vastai", "rent", key=RentalKey("k"))) == "unknown"
    assert outcome_of(ZeroDivisionError()) == "error"
    seen = {outcome_of(kind.__new__(kind)) for kind in ProviderError.__subclasses__()}
    assert seen == set(OUTCOMES) - {"ok", "error"}


def test_every_metric_of_the_table_is_scraped_and_no_other() -> None:
    """Dashboards and alerts are written against the table."""
    metrics = Metrics(["vastai"])
    metrics.provider_call("vastai", "rent", None, 0.2)
    metrics.breaker("vastai", "OPEN", 2)
    metrics.bucket("vastai", 4)
    metrics.book("vastai", offers=64, age_s=1.5)
    metrics.skipped_rows("vastai", 3)
    metrics.rentals("vastai", {"running": 2}, releasing_age_s=0, cost_usd=0.5)
    metrics.double_rent("vastai")
    metrics.orphan_released("vastai")
    metrics.foreign_instances("vastai", 1)
    page = metrics.render().decode()
    helped = {line.split()[2] for line in page.splitlines() if line.startswith("# HELP")}
    assert helped == {metric.name for metric in METRICS}
    for line in (
        'gp4u_provider_calls_total{operation="rent",outcome="ok",provider="vastai"} 1.0',
        'gp4u_rents_total{outcome="ok",provider="vastai"} 1.0',
        'gp4u_breaker_state{provider="vastai",state="OPEN"} 1.0',
        'gp4u_breaker_state{provider="vastai",state="CLOSED"} 0.0',
        'gp4u_rentals{provider="vastai",state="running"} 2.0',
        'gp4u_rentals{provider="vastai",state="intended"} 0.0',
        'gp4u_book_skipped_rows_total{provider="vastai"} 3.0',
        'gp4u_cost_usd{provider="vastai"} 0.5',
    ):
        assert line in page.splitlines()


def test_a_count_kept_elsewhere_is_counted_once() -> None:
    """The breaker tells its total at each scrape; adding totals up would invent trips."""
    metrics = Metrics(["vastai"])
    for trips in (1, 1, 3, 3):
        metrics.breaker("vastai", "CLOSED", trips)
    assert 'gp4u_breaker_trips_total{provider="vastai"} 3.0' in metrics.render().decode()


def test_foreign_text_never_becomes_a_label() -> None:
    """Each new label value is a new series for ever, on somebody else's word."""
    metrics = Metrics(["vastai"])
    for number in range(100):
        metrics.provider_call(f"evil-{number}", f"op-{number}", None, 0.1)
    page = metrics.render().decode()
    assert "evil" not in page
    assert 'operation="other",outcome="ok",provider="other"} 100.0' in page
