"""Replies that go on: the steps of a rent line by line, a log that is followed, waiting in vain.

Hides who may go away when. What a client waits for is given up when it hangs up; what must not stop
half-way is a job (`jobs.py`), and only the waiting ends. Every buffer here is bounded: a client
that reads too slowly misses steps in the middle, never the last line.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from math import ceil
from typing import Final, TypeVar

import msgspec
from fastapi import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from gp4u.api.door.refusals import REFUSALS
from gp4u.api.failing import problem_reply
from gp4u.api.problems import OF_ROUTES, problem_of
from gp4u.api.replies import NDJSON
from gp4u.desk.desk import Desk
from gp4u.desk.shapes import RentalShape, StepShape
from gp4u.desk.wording import harmless, new_lines
from gp4u.errors import (
    BadInput,
    CircuitBreakerOpen,
    Gp4uError,
    InstanceAbsent,
    MarketClosed,
    ProviderError,
    RateLimitExceeded,
    Throttled,
    Unavailable,
)

FOLLOW_PAUSE_S: Final = 2.0
MAX_STEPS: Final = 1000
UNBUFFERED: Final[Mapping[str, str]] = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
"""A proxy must hand on each line when it comes."""
T = TypeVar("T")
_encoder: Final = msgspec.json.Encoder()


class Hangup(Exception):
    """The client went away; there is nobody to answer."""


def refused(scope: Scope, code: str, detail: str = "", *, retry_s: float | None = None) -> Response:
    """Return the problem of a code that no exception stands for; it may be tried again later."""
    status, title = {**REFUSALS, **OF_ROUTES}[code]
    headers = {} if retry_s is None else {"Retry-After": str(ceil(retry_s))}
    return problem_reply(
        status, code, title, detail, headers=headers, instance=scope.get("request_id")
    )


class Steps:
    """What a rent or a release tells, kept for one reader, as lines of JSON."""

    def __init__(self) -> None:
        self._lines: deque[bytes] = deque(maxlen=MAX_STEPS)
        self._wake = asyncio.Event()
        self._last: bytes | None = None
        self._over = False

    def tell(self, step: StepShape) -> None:
        """Keep a step; of too many the oldest goes."""
        self._lines.append(_encoder.encode(step))
        self._wake.set()

    def end(self, last: bytes) -> None:
        """Keep the line that is the outcome; nothing comes after it."""
        self._last = last
        self.close()

    def close(self) -> None:
        """End, if need be without an outcome."""
        self._over = True
        self._wake.set()

    async def lines(self) -> AsyncIterator[bytes]:
        """Yield each line as it comes, to the last."""
        while True:
            while self._lines:
                yield self._lines.popleft() + b"\n"
            if self._over:
                if self._last is not None:
                    yield self._last + b"\n"
                return
            self._wake.clear()
            await self._wake.wait()


class OpenEnded(StreamingResponse):
    """A reply without a length, sent as it comes; it ends in good order when the server stops."""

    def __init__(
        self, content: AsyncIterator[bytes], kind: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(content, headers={**UNBUFFERED, **(headers or {})}, media_type=kind)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send what comes, until it ends, the client hangs up, or the server stops."""
        try:
            await super().__call__(scope, receive, send)
        except asyncio.CancelledError:
            # Nothing is above this but the server, which takes a cancelled reply for a bug.
            await send({"type": "http.response.body", "body": b"", "more_body": False})


def ndjson(lines: AsyncIterator[bytes], headers: Mapping[str, str]) -> OpenEnded:
    """Return lines of JSON as a reply that is sent as they come."""
    return OpenEnded(lines, NDJSON, headers)


class WorkingStream(OpenEnded):
    """Lines of something that goes on for as long as they are read, and no longer."""

    def __init__(self, steps: Steps, work: Callable[[], Awaitable[RentalShape]]) -> None:
        super().__init__(steps.lines(), NDJSON)
        self._steps, self._work = steps, work

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send what there is to tell while the work is done."""
        async with asyncio.TaskGroup() as group:
            working = group.create_task(self._finish())
            try:
                await super().__call__(scope, receive, send)
            finally:
                working.cancel()

    async def _finish(self) -> None:
        try:
            last = done_line(_encoder.encode(await self._work()), is_problem=False)
        except Gp4uError as error:
            last = done_line(_encoder.encode(problem_of(error)), is_problem=True)
        self._steps.end(last)


def done_line(body: bytes, *, is_problem: bool) -> bytes:
    """Return the last line of a stream, from the body that a reply in one piece has."""
    if is_problem:
        return _encoder.encode({"step": "problem", "problem": msgspec.Raw(body)})
    return _encoder.encode({"step": "done", "rental": msgspec.Raw(body)})


def wants_ndjson(request: Request) -> bool:
    """Whether the client asked for lines instead of a reply in one piece."""
    accepted = request.headers.get("accept", "").lower()
    return any(part.split(";")[0].strip() == NDJSON for part in accepted.split(","))


async def while_there(request: Request, work: Awaitable[T]) -> T:
    """Return what `work` comes to, and give it up when the client hangs up.

    Raises:
        Hangup: it did; else whatever the work raised.
    """

    async def wait() -> T:
        return await work

    async def listen() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    async with asyncio.TaskGroup() as group:
        # The outcome is read below: raised inside, it would come out wrapped in a group.
        working = group.create_task(_kept(wait))
        hearing = group.create_task(listen())
        await asyncio.wait([working, hearing], return_when=asyncio.FIRST_COMPLETED)
        working.cancel()
        hearing.cancel()
    if working.cancelled():
        raise Hangup
    outcome = working.result()
    if isinstance(outcome, _Failed):
        raise outcome.error
    return outcome


class _Failed:
    def __init__(self, error: Exception) -> None:
        self.error = error


async def _kept(wait: Callable[[], Awaitable[T]]) -> T | _Failed:
    try:
        return await wait()
    except Exception as error:  # noqa: BLE001 - handed on to where it belongs
        return _Failed(error)


def shown_log(text: str, *, raw: bool) -> str:
    """Return a log as it is told: without what a terminal obeys, unless `raw`."""
    return text if raw else "".join(f"{harmless(line)}\n" for line in text.splitlines())


async def followed_log(
    desk: Desk, key: str, first: str, *, tail: int, raw: bool, container: str | None
) -> AsyncIterator[bytes]:
    """Yield what a log holds, then what comes to it, until its instance is gone.

    A market that is in trouble meanwhile is asked again; one that refuses for good ends it.
    """
    yield shown_log(first, raw=raw).encode()
    shown = first.splitlines()
    while True:
        await asyncio.sleep(FOLLOW_PAUSE_S)
        try:
            lines = (await desk.logs(key, tail=tail, container=container)).splitlines()
        except (Unavailable, Throttled, RateLimitExceeded, CircuitBreakerOpen):
            continue
        except (InstanceAbsent, BadInput, MarketClosed, ProviderError):
            return  # gone; or nothing that patience would mend
        fresh = new_lines(shown, lines)
        if fresh:
            yield shown_log("".join(f"{line}\n" for line in fresh), raw=raw).encode()
        shown = lines or shown
