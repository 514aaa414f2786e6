"""What leaves the process for people to read: log lines, and the text in them.

Hides structlog, imported only where it is used, because `clean` is needed everywhere and must cost
nothing to import. It exists so that two promises are kept in one place: foreign text is data (no
control character, no line of any length reaches a log or a terminal), and no secret passes the rim,
in whatever form an exception or a provider echoes it. What is worth saying is left to those who say
it; what is counted is in `metrics.py`, and what is timed in `traces.py`.
"""

from __future__ import annotations

import base64
import json
import logging
import re
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from functools import lru_cache
from typing import Any, Literal, TextIO
from urllib.parse import quote, quote_plus

import msgspec

from gp4u.clock import Clock, SystemClock

REDACTED = "[redacted]"
MAX_VALUE_CHARS = 1024
MAX_TRACE_CHARS = 16_384
_MAX_ITEMS, _MAX_DEPTH = 50, 5
_SHORTEST_SECRET = 4
"""A shorter one would black out half of every line; no provider hands out such keys."""
_SHORTEST_PREFIX = 8
_CUT = "…"
_encoder = msgspec.json.Encoder()
_SHORT, _REMEMBERED = 64, 512
"""Texts up to so many characters are cleaned once, as long as they are among the newest so many."""

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
    renderer: Any = _JsonLines(stream, stamp, rim, told=threshold <= logging.INFO)
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
    for chatty in ("httpx", "httpcore", "httpx2", "httpcore2", "asyncssh", "asyncio"):
        logging.getLogger(chatty).setLevel(max(threshold, logging.WARNING))


def request_log(
    *,
    method: str,
    route: str,
    status: int,
    seconds: float,
    request_id: str,
    role: str | None = None,
) -> None:
    """Write the one line that every answered request leaves.

    `route` is the template; path and query stay out, because they may hold what is secret. `role`
    is what the caller's token grants, None where nobody asked for one.
    """
    import structlog

    about: dict[str, str | int | float | None] = {
        "method": method,
        "route": route,
        "status": status,
        "ms": round(seconds * 1000.0, 3),
        "request_id": request_id,
        "role": role,
    }
    last = structlog.get_config()["processors"][-1]
    if isinstance(last, _JsonLines):
        last.write("http_request", about)
    else:
        structlog.get_logger().info("http_request", **about)


class _JsonLines:
    """The renderer of JSON lines, and a short way for the commonest of them."""

    def __init__(self, stream: TextIO, stamp: _Stamp, rim: _Rim, *, told: bool) -> None:
        """`told` says whether lines of the level `info` are written at all."""
        self._stream, self._stamp, self._rim, self._told = stream, stamp, rim, told

    def __call__(self, _logger: Any, _method: str, event: Mapping[str, Any]) -> str:
        return json.dumps(event, ensure_ascii=False, default=str)

    def write(self, event: str, about: Mapping[str, str | int | float | None]) -> None:
        """Write a flat line of the level `info` as the whole chain would, in a tenth of the time.

        Its names are ours, and its numbers finite.
        """
        if not self._told:
            return
        line: dict[str, Any] = {"timestamp": self._stamp.text(), "level": "info", "event": event}
        for name, value in about.items():
            line[name] = self._rim.line(value) if isinstance(value, str) else value
        self._stream.write(_encoder.encode(line).decode() + "\n")
        self._stream.flush()


class _Stamp:
    """Adds the injected wall time, RFC 3339 in UTC."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def __call__(
        self, _logger: Any, _method: str, event: MutableMapping[str, Any]
    ) -> MutableMapping[str, Any]:
        event["timestamp"] = self.text()
        return event

    def text(self) -> str:
        """Return this moment."""
        return self._clock.now().isoformat(timespec="milliseconds")


_MADE_HERE = ("timestamp", "level")


class _Rim:
    """The last thing a log line passes: only plain, short, harmless values without secrets."""

    def __init__(self, redact: Redactor) -> None:
        self._redact = redact
        self._short = lru_cache(_REMEMBERED)(self._hidden)

    def __call__(
        self, _logger: Any, _method: str, event: MutableMapping[str, Any]
    ) -> MutableMapping[str, Any]:
        # The first two were made right before; at a line per request, looking at them would show.
        found: dict[str, object] = {key: event.pop(key) for key in _MADE_HERE if key in event}
        if "event" in event:
            found["event"] = self._value(event.pop("event"), 0)
        for key, value in event.items():
            if key in ("exception", "stack") and isinstance(value, str):
                found[key] = self._trace(value)
            else:
                found[self._line(str(key), 64)] = self._value(value, 0)
        return found

    def line(self, text: str) -> str:
        """Return a value as it may be written."""
        return self._line(text, MAX_VALUE_CHARS)

    def _line(self, text: str, limit: int) -> str:
        # Names of fields, routes and methods come again with every line.
        return self._short(text, limit) if len(text) <= _SHORT else self._hidden(text, limit)

    def _hidden(self, text: str, limit: int) -> str:
        # Clean before hiding, or a control character inside a secret saves it from being seen; cut
        # after hiding, or half of it stays.
        whole = clean(text[: 8 * limit], 8 * limit)
        return clean(self._redact(whole if len(text) <= 8 * limit else whole + _CUT), limit)

    def _trace(self, text: str) -> str:
        """Keep line breaks, which make it readable, and the end, which says what failed."""
        text = self._redact(_CONTROL.sub("", text))
        return text if len(text) <= MAX_TRACE_CHARS else _CUT + text[1 - MAX_TRACE_CHARS :]

    def _value(self, value: object, depth: int) -> object:
        if type(value) is str:
            return self._line(value, MAX_VALUE_CHARS)
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
