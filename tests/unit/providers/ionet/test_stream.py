"""A log stream that never ends: what is taken of it, and when it is left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from random import Random

import httpx2
import pytest

from gp4u.errors import Denied, Unavailable
from gp4u.providers.contract import Call
from gp4u.providers.http import Http
from gp4u.providers.ionet.judge import judge
from gp4u.providers.ionet.stream import log_text
from gp4u.resilience.guard import build_guard
from tests.virtual_loop import VirtualClock, run_virtual

CALL = Call(method="GET", url="https://x.test/log")


class _Stream(httpx2.AsyncByteStream):
    def __init__(self, chunks: list[bytes], pause_s: float, then_s: float) -> None:
        self._chunks, self._pause_s, self._then_s = chunks, pause_s, then_s
        self.closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self._chunks:
            await asyncio.sleep(self._pause_s)
            yield chunk
        await asyncio.sleep(self._then_s)

    async def aclose(self) -> None:
        self.closed = True


class _Server(httpx2.AsyncBaseTransport):
    def __init__(self, stream: _Stream, status: int = 200) -> None:
        self._stream, self._status = stream, status

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        assert request.headers["x-api-key"] == "a-long-secret-key"
        return httpx2.Response(self._status, stream=self._stream)


async def collected(stream: _Stream, status: int = 200, max_bytes: int = 1000) -> bytes:
    """Return what is taken of a stream."""
    http = Http(
        "ionet",
        guard=build_guard("ionet", random=Random(1), clock=VirtualClock(), max_retries=1),
        judge=judge,
        headers={"x-api-key": "a-long-secret-key"},
        timeout_s=10.0,
        transport=_Server(stream, status),
    )
    try:
        return await http.collect("logs", CALL, for_s=2.0, max_bytes=max_bytes)
    finally:
        await http.aclose()


def test_a_stream_is_left_once_it_is_silent() -> None:
    """It stays open for ever; what came so far is the log."""

    async def scene() -> None:
        stream = _Stream([b"data: a\n\n", b"data: b\n\n"], 1.0, 3600.0)
        began = asyncio.get_running_loop().time()
        assert await collected(stream) == b"data: a\n\ndata: b\n\n"
        assert asyncio.get_running_loop().time() - began == pytest.approx(4.0, abs=0.1)
        assert stream.closed

    run_virtual(scene)


def test_a_stream_that_babbles_is_cut_at_its_cap() -> None:
    """Without silence only the size can end it."""

    async def scene() -> None:
        stream = _Stream([b"x" * 100] * 1000, 0.01, 0.0)
        assert len(await collected(stream, max_bytes=250)) == 250

    run_virtual(scene)


def test_a_key_in_a_log_is_blotted_out() -> None:
    """A program may print what it was never given, if somebody gave it to it."""

    async def scene() -> None:
        stream = _Stream([b"key a-long-secret-key\n"], 0.0, 0.0)
        assert await collected(stream) == b"key [redacted]\n"

    run_virtual(scene)


def test_an_error_reply_is_judged_like_any_other() -> None:
    """A stream that is none must not read as a log."""

    async def scene() -> None:
        stream = _Stream([b'{"detail":"no"}'], 0.0, 0.0)
        with pytest.raises(Denied):
            await collected(stream, 401)

    run_virtual(scene)


def test_a_server_that_never_answers_is_unavailable() -> None:
    """Silence before the first byte is no empty log."""

    class _Mute(httpx2.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
            raise httpx2.ReadTimeout("nothing", request=request)

    async def scene() -> None:
        http = Http(
            "ionet",
            guard=build_guard("ionet", random=Random(1), clock=VirtualClock(), max_retries=1),
            judge=judge,
            headers={"x-api-key": "a-long-secret-key"},
            timeout_s=10.0,
            transport=_Mute(),
        )
        with pytest.raises(Unavailable):
            await http.collect("logs", CALL, for_s=2.0)
        await http.aclose()

    run_virtual(scene)


@pytest.mark.parametrize(
    ("stream", "tail", "text"),
    [
        (b"data: a\n\ndata: b\n\n", 10, "a\nb\n"),
        (b": ping\r\ndata:a\r\n\r\n", 10, "a\n"),
        (b"a\nb\nc\n", 2, "b\nc\n"),
        (b"a\nb", 2, "a\nb\n"),
        (b"a\n", 0, ""),
        (b"", 5, ""),
        (b"data: \x1b[31mred\x07\n\n", 5, " [31mred \n"),
        (b"data: \xff\n\n", 5, "\ufffd\n"),
    ],
)
def test_events_become_lines(stream: bytes, tail: int, text: str) -> None:
    """Framed or raw, the newest lines, and nothing that steers a terminal."""
    assert log_text([stream], tail) == text


def test_what_was_cut_off_does_not_run_into_the_next_stream() -> None:
    """A stream is left in the middle of a line, at its cap or at its silence."""
    assert log_text([b"data: a\n\ndata: ha", b"data: error\n\n"], 10) == "a\nha\nerror\n"
    assert log_text([b"data: a\n\n", b"raw\n"], 10) == "a\nraw\n"
    assert log_text([b"data: a\n\ndata: b\n\n", b"data: c\n\n"], 2) == "b\nc\n"


def test_a_line_of_plain_text_that_looks_like_an_event_hides_no_other() -> None:
    """A program may print `data:` as well; what makes a stream one of events is its beginning."""
    plain = b"loading\ndata: 5 GB\nready\n"
    assert log_text([plain], 10) == plain.decode()
    assert log_text([b": hello\n\nevent: log\ndata: a\n\nid: 1\ndata: b\n\n"], 10) == "a\nb\n"
    assert log_text([b"\n\ndata: a\n\n"], 10) == "a\n"
