"""What every call to the Vast.ai dialect passes before and after its handler.

Hides identity, the throttle, and how faults become bytes or dead connections, so that handlers
only say what the service does when it works. The order matters: a lost connection comes before
everything, a throttle before the effect, and a reply is spoilt only after the effect is done.

Source: api-reference/rate-limits-and-errors.mdx, permissions.mdx and the endpoint files of the
vendor's documentation, source of package `vastai` 1.9.1; checked 2026-11.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import Receive, Scope, Send

from gp4u.sim.faults import Faults, Kind, Rule, Strike
from gp4u.sim.world import World

ABORT = "gp4u.abort"
"""Key of the ASGI state under which a server offers to kill the connection."""

# Seconds between two calls of one endpoint by one identity. Source: `x-rate-limit` and the 429
# examples of the endpoint files; the vendor does not promise them.
THRESHOLDS_S: Mapping[str, float] = {
    "create": 4.5,
    "launch": 5.0,
    "list": 1.0,
    "show": 2.0,
    "update": 1.0,
    "bulk_update": 2.0,
    "destroy": 3.0,
    "reboot": 1.0,
    "recycle": 1.0,
    "bid": 5.5,
    "command": 1.5,
    "prepay": 2.0,
    "balance": 3.0,
    "charges": 1.0,
    "invoices": 3.0,
    "ssh_write": 1.0,
    "ssh_detach": 2.0,
    "secrets": 5.0,
    "secrets_write": 3.0,
    "templates": 3.0,
    "volumes": 5.5,
}
CREATE_PENALTY_S = 12.0
SEARCHES = 10
SEARCH_WINDOW_S = 60.0
_SLACK_S = 0.05
"""Calls spaced by the documented interval must pass, whatever a clock's rounding does."""


class VastSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What reports about the real service disagree on, and what tests want otherwise."""

    api_key: str = "sim-key"
    account_id: int = 424_242
    rows_cap: int = 64
    strict_fields: bool = True
    """Whether an unknown search field fails the call."""
    throttle: float = 1.0
    """Factor on every documented interval; 0 turns the throttle off."""
    throttle_shape: str = "detail"
    """One of `faults.THROTTLE_SHAPES`."""
    retry_after: bool = False
    gone_status: int = 410
    """How a rent of a taken offer fails: 410, 404, 400 or 409; all were seen."""
    list_lag_s: tuple[float, float] = (0.0, 1.0)
    """How long the list is blind to a new or a destroyed contract, drawn per contract."""
    low_bid_id: bool = True
    """Whether the error about a bid below the floor names the contract that it made."""
    show_gone_404: bool = False
    """Whether one absent instance is 404; else 200 with null."""
    absent_error: str = "no_such_instance"
    """`no_such_instance` as seen live, or `not_found` as documented."""
    log_delay_s: float = 0.3
    charges_lag_s: float = 0.0


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
    def number(self) -> int:
        """The id in the path."""
        return int(self.request.path_params["id"])


class Handler(Protocol):
    """What an endpoint does."""

    async def __call__(self, call: Call) -> Response: ...


class CallRefusedError(Exception):
    """A handler's way out with an error reply."""

    def __init__(self, response: Response) -> None:
        self.response = response
        super().__init__(response.status_code)


def refusal(status: int, error: str, msg: str, **more: object) -> CallRefusedError:
    """Return an error in the usual shape, to be raised."""
    body = {"success": False, "error": error, "msg": msg, **more}
    return CallRefusedError(JSONResponse(body, status))


class Gate:
    """Wraps handlers; holds when each identity last called each endpoint."""

    def __init__(self, world: World, faults: Faults, settings: VastSettings) -> None:
        self._world, self._faults, self._settings = world, faults, settings
        self._free_at: dict[tuple[str, str], float] = {}
        self._searches: dict[str, deque[float]] = {}

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
            if (lost := await self._before(request, strike)) is not None:
                return lost
            await self._world.advance()
            try:
                self._admit(request, endpoint, strike, public=public)
                call = Call(request, _json_body(raw, bad_json), strike)
                if (late := strike.get(Kind.LATE_EFFECT)) is not None:
                    self._world.later(late.seconds or 0.0, _parked(handler, call))
                    return await lose(request, sent=True)
                response = await handler(call)
            except CallRefusedError as refused:
                return _spoilt(refused.response, strike)
            return await self._after(request, response, strike)

        return answer

    async def _before(self, request: Request, strike: Strike) -> Response | None:
        if strike.get(Kind.REFUSE) is not None:
            return await lose(request, sent=False)
        if strike.get(Kind.RESET_BEFORE) is not None:
            return await lose(request, sent=True)
        if (hang := strike.get(Kind.HANG_BEFORE)) is not None:
            return await _hang(request, hang)
        if (slow := strike.get(Kind.LATENCY)) is not None:
            await asyncio.sleep(slow.seconds or 1.0)
        return None

    async def _after(self, request: Request, response: Response, strike: Strike) -> Response:
        if strike.get(Kind.RESET_AFTER) is not None:
            return await lose(request, sent=True)
        if (hang := strike.get(Kind.HANG_AFTER)) is not None:
            return await _hang(request, hang)
        if (rule := strike.get(Kind.STATUS_AFTER)) is not None:
            return _status(rule)
        if strike.get(Kind.CUT_BODY) is not None:
            return _CutResponse(bytes(response.body))
        return _spoilt(response, strike)

    def _admit(self, request: Request, endpoint: str, strike: Strike, *, public: bool) -> None:
        """Let the call in, or raise why not."""
        key = _key(request)
        if strike.get(Kind.BAD_KEY) is not None or (key and key != self._settings.api_key):
            raise refusal(404, "auth_error", "Invalid user key")
        if not key and not public:
            raise refusal(403, "auth_error", "This action requires login.")
        if (rule := strike.get(Kind.THROTTLE)) is not None:
            threshold = rule.seconds or THRESHOLDS_S.get(endpoint, 1.0)
            shape = rule.shape or self._settings.throttle_shape
            raise CallRefusedError(self._too_fast(shape, threshold, rule.retry_after))
        address = request.client.host if request.client else "-"
        self._throttle(endpoint, key or address, address)
        if (rule := strike.get(Kind.STATUS)) is not None:
            raise CallRefusedError(_status(rule))

    def _throttle(self, endpoint: str, identity: str, address: str) -> None:
        scale, now = self._settings.throttle, self._world.now_s
        if scale <= 0:
            return
        if endpoint == "search":
            recent = self._searches.setdefault(address, deque())
            while recent and now - recent[0] >= SEARCH_WINDOW_S * scale - _SLACK_S:
                recent.popleft()
            if len(recent) >= SEARCHES:
                wait = SEARCH_WINDOW_S * scale - (now - recent[0])
                raise CallRefusedError(self._settled_too_fast(SEARCH_WINDOW_S / SEARCHES, wait))
            recent.append(now)
        threshold = THRESHOLDS_S.get(endpoint)
        if threshold is None:
            return
        free_at = self._free_at.get((endpoint, identity), now)
        if now < free_at:
            if endpoint == "create":
                self._free_at[endpoint, identity] = now + CREATE_PENALTY_S * scale - _SLACK_S
            raise CallRefusedError(self._settled_too_fast(threshold, free_at - now))
        self._free_at[endpoint, identity] = now + threshold * scale - _SLACK_S

    def _settled_too_fast(self, threshold: float, wait: float) -> Response:
        header = f"{wait:.3f}" if self._settings.retry_after else None
        return self._too_fast(self._settings.throttle_shape, threshold, header)

    def _too_fast(self, shape: str, threshold: float, retry_after: str | None) -> Response:
        """Return a 429 in one of the shapes that were seen."""
        text = "API requests too frequent"
        headers = {} if retry_after is None else {"Retry-After": retry_after}
        match shape:
            case "text":
                return PlainTextResponse(text, 429, headers)
            case "text_threshold":
                return PlainTextResponse(f"{text}: endpoint threshold={threshold}", 429, headers)
            case "error":
                msg = f"{text} endpoint threshold={threshold}"
                body = {"success": False, "error": "rate_limit_exceeded", "msg": msg}
                return JSONResponse(body, 429, headers)
            case "quota":
                today = self._world.epoch(self._world.now_s) // 86_400
                headers["X-RateLimit-Reset"] = str(int((today + 1) * 86_400))
                msg = "Daily search quota exceeded."
                return JSONResponse({"error": "search_quota_exceeded", "msg": msg}, 429, headers)
            case _:
                return JSONResponse(
                    {"detail": f"{text} endpoint threshold={threshold}"}, 429, headers
                )


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


async def _hang(request: Request, rule: Rule) -> Response:
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


def _key(request: Request) -> str:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token.strip():
        return token.strip()
    return request.query_params.get("api_key", "")


def _json_body(raw: bytes, bad_json: int) -> dict[str, object]:
    if not raw.strip():
        return {}
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        error, msg = (
            ("invalid_args", "Invalid json_body")
            if bad_json == 483
            else (
                "invalid_request",
                "Invalid json body",
            )
        )
        raise refusal(bad_json, error, msg)
    return body


def _status(rule: Rule) -> Response:
    """Return a gateway's error page, or the rule's own body."""
    status = rule.status or 503
    if rule.body is not None:
        return Response(rule.body, status, media_type="application/json")
    page = f"<html><head><title>{status}</title></head><body><h1>{status}</h1></body></html>"
    return Response(page, status, media_type="text/html")


def _spoilt(response: Response, strike: Strike) -> Response:
    rule = strike.get(Kind.BODY)
    if rule is None:
        return response
    if rule.body is not None:
        return Response(rule.body, rule.status or 200, media_type="application/json")
    whole = bytes(response.body)
    match rule.shape:
        case "html":
            return Response(
                "<!doctype html><p>Please sign in to the network.</p>", 200, media_type="text/html"
            )
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
