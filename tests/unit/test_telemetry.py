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

from gp4u.telemetry import REDACTED, Redactor, clean, configure, request_log

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


def told(**changes: Any) -> None:
    """Log a request as the door does."""
    about: dict[str, Any] = {
        "method": "GET",
        "route": "/api/v1/gpus/{id}",
        "status": 200,
        "seconds": 0.0123456,
        "request_id": "5f0c9a31-2a",
        "role": "read",
    }
    request_log(**(about | changes))


def test_each_request_is_one_line_that_a_machine_can_read() -> None:
    """Whoever looks for a slow or refused request has only this line."""
    stream = start()
    told()
    (line,) = lines(stream)
    assert line == {
        "timestamp": "2026-11-22T12:00:00.000+00:00",
        "level": "info",
        "event": "http_request",
        "method": "GET",
        "route": "/api/v1/gpus/{id}",
        "status": 200,
        "ms": 12.346,
        "request_id": "5f0c9a31-2a",
        "role": "read",
    }


def test_a_request_is_told_as_any_other_event_is() -> None:
    """It goes a shorter way through the log, with the same stamp, shape and order of fields."""
    stream = start()
    told()
    about = {"method": "GET", "route": "/api/v1/gpus/{id}", "status": 200, "ms": 12.346}
    log = structlog.get_logger()
    log.info("http_request", **about, request_id="5f0c9a31-2a", role="read")
    short, long = lines(stream)
    assert list(short.items()) == list(long.items())


def test_where_only_warnings_are_logged_no_request_is() -> None:
    """A busy server would fill a disk with them; who wants none says so by the level."""
    stream = start(level="warning")
    told()
    assert lines(stream) == []


def test_a_token_that_is_sent_as_a_request_id_is_hidden() -> None:
    """The id is the caller's own text, and whoever mixes up two headers sends a secret in it."""
    stream = io.StringIO()
    token = "reader-token-0123456789"
    configure("info", "json", [token], stream, FrozenClock())
    for _ in range(2):  # the second one might come out of a memory of the first
        told(request_id=token)
    assert token not in stream.getvalue()
    assert [line["request_id"] for line in lines(stream)] == [REDACTED] * 2


def test_what_one_configuration_has_hidden_the_next_one_hides_anew() -> None:
    """Short texts are remembered; remembered beyond their redactor they would show a new secret."""
    first = io.StringIO()
    configure("info", "json", [], first, FrozenClock())
    told(request_id=CANARY)
    second = start()
    told(request_id=CANARY)
    assert CANARY in first.getvalue()
    assert CANARY not in second.getvalue()


def test_every_line_of_a_request_carries_its_id() -> None:
    """What went wrong in a request is found by the id in its answer."""
    stream = start()
    bound = structlog.contextvars.bind_contextvars(request_id="5f0c9a31-2a")
    structlog.get_logger().warning("market_failed")
    logging.getLogger("other").warning("theirs")
    structlog.contextvars.reset_contextvars(**bound)
    structlog.get_logger().warning("later")
    assert [line.get("request_id") for line in lines(stream)] == [
        *["5f0c9a31-2a"] * 2,
        None,
    ]
