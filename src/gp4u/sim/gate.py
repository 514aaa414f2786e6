"""What every call to a simulated market passes before and after its handler.

Hides how faults become bytes or dead connections, so that handlers only say what the service does
when it works, and a dialect's own gate only who is let in and how it says no. The order matters: a
lost connection comes before everything, identity and throttle before the effect, and a reply is
spoilt only after the effect is done.
"""

from __future__ import annotations

import asyncio
import json
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import Protocol

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gp4u.sim.faults import Faults, Kind, Rule, Strike
from gp4u.sim.world import World

ABORT = "gp4u.abort"
"""Key of the ASGI state under which a server offers to kill the connection."""


class ConnectionLostError(ConnectionError):
    """The connection died, where no server is there to kill a real one (in-process tests)."""

    def __init__(self, *, sent: bool) -> None:
        self.sent = sent
        """False: not even a connection was made."""
        super().__init__("connection lost" if sent else "connection refused")


class Call(msgspec.Struct, frozen=True):
    """One call on its way to its handler."""

    request: Request
    body: dict[str, object]
    strike: Strike

    @property
    def ident(self) -> str:
        """The id in the path."""
        return str(self.request.path_params["id"])

    @property
    def number(self) -> int:
        """The id in the path, where ids are numbers."""
        return int(self.request.path_params["id"])


class Handler(Protocol):
    """What an endpoint does."""

    async def __call__(self, call: Call) -> Response: ...


class CallRefusedError(Exception):
    """A handler's way out with an error reply."""

    def __init__(self, response: Response) -> None:
        self.response = response
        super().__init__(response.status_code)


class Gate(ABC):
    """Wraps the handlers of one dialect."""

    def __init__(self, world: World, faults: Faults) -> None:
        self._world, self._faults = world, faults

    def wrap(
        self, endpoint: str, handler: Handler, *, public: bool = False, bad_json: int = 400
    ) -> Callable[[Request], Awaitable[Response]]:
        """Return the ASGI endpoint of a handler.

        Args:
            endpoint: its name for the throttle and for faults.
            public: whether it works without a key.
            bad_json: the status that unparsable JSON gets.
        """

        async def answer(request: Request) -> Response:
            raw = await request.body()
            strike = self._faults.strike(endpoint, at=self._world.age_s)
            if (lost := await _before(request, strike)) is not None:
                return lost
            await self._world.advance()
            try:
                await self._prepare()
                self._admit(request, raw, endpoint, strike, public=public)
                call = Call(request, self._body(raw, bad_json), strike)
                if (late := strike.get(Kind.LATE_EFFECT)) is not None:
                    self._world.later(late.seconds or 0.0, _parked(handler, call))
                    return await lose(request, sent=True)
                response = await handler(call)
            except CallRefusedError as refused:
                return _spoilt(refused.response, strike)
            return await _after(request, response, strike)

        return answer

    async def _prepare(self) -> None:  # noqa: B027 -- most dialects have no state of their own
        """Bring the dialect's own state up to the world's now."""

    @abstractmethod
    def _admit(
        self, request: Request, raw: bytes, endpoint: str, strike: Strike, *, public: bool
    ) -> None:
        """Let the call in, or raise `CallRefusedError` with the words of this market."""

    @abstractmethod
    def _unreadable(self, status: int) -> CallRefusedError:
        """Return how this market refuses a body that is not a JSON object."""

    def _body(self, raw: bytes, bad_json: int) -> dict[str, object]:
        if not raw.strip():
            return {}
        try:
            body = json.loads(raw)
        except (ValueError, RecursionError):
            body = None
        if not isinstance(body, dict):
            raise self._unreadable(bad_json)
        return body


def struck_status(strike: Strike) -> None:
    """Raise the error page that a fault asks for, if one does."""
    if (rule := strike.get(Kind.STATUS)) is not None:
        raise CallRefusedError(status_page(rule))


def status_page(rule: Rule) -> Response:
    """Return the error page of whatever stands before the service, or the rule's own body."""
    status = rule.status or 503
    if rule.body is not None:
        return Response(rule.body, status, media_type="application/json")
    page = f"<html><head><title>{status}</title></head><body><h1>{status}</h1></body></html>"
    return Response(page, status, media_type="text/html")


async def lose(request: Request, *, sent: bool) -> Response:
    """Kill the connection; the reply returned is for nobody.

    Raises:
        ConnectionLostError: there is no real connection to kill.
    """
    abort = request.scope.get("state", {}).get(ABORT)
    if abort is None:
        raise ConnectionLostError(sent=sent)
    abort()
    await asyncio.sleep(0.01)  # the server must notice before it is handed a reply
    return Response(status_code=499)


async def _before(request: Request, strike: Strike) -> Response | None:
    if strike.get(Kind.REFUSE) is not None:
        return await lose(request, sent=False)
    if strike.get(Kind.RESET_BEFORE) is not None:
        return await lose(request, sent=True)
    if (hang := strike.get(Kind.HANG_BEFORE)) is not None:
        return await _hang(request, hang)
    if (slow := strike.get(Kind.LATENCY)) is not None:
        await asyncio.sleep(slow.seconds or 1.0)
    return None


async def _after(request: Request, response: Response, strike: Strike) -> Response:
    if strike.get(Kind.RESET_AFTER) is not None:
        return await lose(request, sent=True)
    if (hang := strike.get(Kind.HANG_AFTER)) is not None:
        return await _hang(request, hang)
    if (rule := strike.get(Kind.STATUS_AFTER)) is not None:
        return status_page(rule)
    if strike.get(Kind.CUT_BODY) is not None:
        return _CutResponse(bytes(response.body))
    return _spoilt(response, strike)


async def _hang(request: Request, rule: Rule) -> Response:
    """Say nothing until the client leaves or the time is up, then die."""
    try:
        async with asyncio.timeout(3600.0 if rule.seconds is None else rule.seconds):
            while (await request.receive())["type"] != "http.disconnect":
                pass
    except TimeoutError:
        pass
    return await lose(request, sent=True)


def _parked(handler: Handler, call: Call) -> Callable[[], Awaitable[None]]:
    async def act() -> None:
        try:
            await handler(call)
        except CallRefusedError:
            return  # too late to tell anybody

    return act


def _spoilt(response: Response, strike: Strike) -> Response:
    rule = strike.get(Kind.BODY)
    if rule is None:
        return response
    if rule.body is not None:
        return Response(rule.body, rule.status or 200, media_type="application/json")
    whole = bytes(response.body)
    match rule.shape:
        case "html":
            page = "<!doctype html><p>Please sign in to the network.</p>"
            return Response(page, 200, media_type="text/html")
        case "truncated":
            content = whole[: len(whole) // 2]
        case "deep":
            content = b"[" * 100_000
        case "empty":
            content = b""
        case "list":
            content = b"[]"
        case "null":
            content = b"null"
        case _:
            content = b'{"offers": [{"id": 1, \x00\xff\x1b[31m'
    return Response(content, rule.status or 200, media_type="application/json")


class _CutResponse(Response):
    """Promises the whole body and sends half of it."""

    def __init__(self, whole: bytes) -> None:
        self._half = whole[: len(whole) // 2]
        super().__init__(whole, media_type="application/json")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self._half, "more_body": True})
        await asyncio.sleep(0.01)  # let the half go out
        await lose(Request(scope, receive), sent=True)
