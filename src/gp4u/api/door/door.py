"""The door of the server: what every request passes before any route, and every reply after it.

Hides the order of the questions, cheapest first and before a byte of the body is read: is it a
request at all, does it mean this host, who asks, may they, does a foreign page send it, is there
room. It exists so that no route has to think of any of this, and none can forget it: a path that
the table of routes does not know is answered here. The questions themselves are in `refusals.py`.
What a slow or broken connection does is `wire.py`'s; what fails in a route is told by
`problems.py`.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Callable, Iterable, Sequence
from itertools import count
from typing import Any, Final, Protocol

import structlog
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gp4u.api.door.passages import RouteTable
from gp4u.api.door.refusals import (
    REFUSALS,
    Headers,
    Hosts,
    Refusal,
    foreign,
    full,
    lacking,
    too_large,
    unfit_body,
    unreadable,
    unrouted,
)
from gp4u.api.door.tokens import Guesses, Tokens, is_loopback
from gp4u.api.failing import problem_reply

MAX_STREAMS: Final = 100
"""Replies without an end in sight, at a time: events, logs that are followed, whole listings."""
BODY_S: Final = 60.0
"""For all of a body to arrive."""
ALWAYS_SERVED: Final = frozenset({"/livez", "/readyz", "/metrics"})
"""Whoever watches a server must be answered most of all when it is full."""
UNROUTED: Final = "other"
"""In place of the route's path where no route has the path."""
GONE: Final = 499
"""What is told as the status when the caller hung up before the answer."""

_REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_DEFAULTS: Final = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"cache-control", b"no-store"),
)
"""On every reply that does not set its own."""


class Watch(Protocol):
    """What is counted of requests."""

    def http(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count a request that was answered, or given up by its caller."""

    def refused(self, reason: str) -> None:
        """Count one that was turned away; `reason` is a code of `REFUSALS`."""

    def in_flight(self, by: int) -> None:
        """Count one that a route begins (1) or has ended (-1)."""


class Door:
    """Pure ASGI around an app; see the module's docstring."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        tokens: Tokens,
        hosts: Sequence[str] = (),
        max_body_bytes: int = 1 << 20,
        max_concurrent: int = 256,
        max_streams: int = MAX_STREAMS,
        body_timeout_s: float = BODY_S,
        metrics: Watch | None = None,
        log: Callable[..., None] | None = None,
        routes: Callable[[], Iterable[BaseRoute]] | None = None,
    ) -> None:
        """`hosts` are as in `Hosts`. `routes` gives the routes of `app`, by default its attribute
        of that name; it is called at the first request. `log` is called after each request with
        route, method, status, seconds, request_id and role.
        """
        self._app, self._tokens, self._metrics, self._log = app, tokens, metrics, log
        self._hosts = Hosts(hosts)
        self._max_body_bytes, self._body_timeout_s = max_body_bytes, body_timeout_s
        self._max_concurrent, self._max_streams = max_concurrent, max_streams
        self._routes = routes or (lambda: getattr(app, "routes", ()))
        self._table: RouteTable | None = None
        self._guesses = Guesses()
        boot = secrets.token_hex(4)
        self._ids = (f"{boot}-{number:x}" for number in count(1))
        self._busy = self._streams = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        now = asyncio.get_running_loop().time
        began_s = now()
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"")
        request_id = given.decode() if _REQUEST_ID.fullmatch(given) else next(self._ids)
        reply = _Reply(self, send, request_id)
        scope["request_id"] = request_id
        bound = structlog.contextvars.bind_contextvars(request_id=request_id)
        try:
            refusal = self._examine(scope, headers, reply, at=began_s)
            if refusal is None:
                refusal = await self._serve(scope, headers, receive, reply)
            if refusal is not None:
                await self._refuse(refusal, scope, receive, reply)
        finally:
            structlog.contextvars.reset_contextvars(**bound)
            self._tell(reply, scope["method"], now() - began_s)

    def admit_stream(self) -> bool:
        """Count a reply as a stream instead of a request; False where there is no room for it."""
        if self._streams >= self._max_streams:
            return False
        self._streams += 1
        self._busy -= 1
        return True

    def _examine(
        self, scope: Scope, headers: Headers, reply: _Reply, *, at: float
    ) -> Refusal | None:
        """Return why a request does not get in, from its head alone."""
        if self._table is None:
            self._table = RouteTable(self._routes())
        path, root = scope["path"], scope.get("root_path", "")
        if root and path.startswith(root):
            path = path[len(root) :]
        method = scope["method"]
        passages = self._table.find(path)
        passage = passages.get(method)
        if passage is not None:
            reply.route, reply.at_once = passage.path, passage.at_once
        refusal = unreadable(scope, headers) or self._hosts.misdirected(scope, headers)
        if refusal is None and (passage is None or passage.role != "open"):
            refusal = self._unknown_caller(scope, headers, reply, at)
        if refusal is not None:
            return refusal
        if passage is None:
            return unrouted(passages, method)
        return lacking(passage, reply.role) or foreign(scope, headers)

    def _unknown_caller(
        self, scope: Scope, headers: Headers, reply: _Reply, at: float
    ) -> Refusal | None:
        """Return why the caller is not let in; else note the role that it has."""
        if not self._tokens:
            if not (_is_home(scope.get("server")) and _is_home(scope.get("client"))):
                return Refusal("token_required", "GP4U_API_TOKENS grants none")
            reply.role = "admin"
            return None
        scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
        if not token or scheme.lower() != b"bearer":
            challenge = {"WWW-Authenticate": 'Bearer realm="gp4u"'}
            return Refusal("token_needed", "Authorization: Bearer TOKEN", challenge)
        address = (scope.get("client") or ("",))[0]
        wait_s = self._guesses.wait_s(address, at=at)
        if wait_s:
            again = {"Retry-After": str(int(wait_s) + 1)}
            return Refusal("too_many_guesses", "", again, {"retry_in_s": round(wait_s, 1)})
        digest = self._tokens.digest(token.strip())
        role = self._tokens.role_of(digest)
        if role is None:
            self._guesses.missed(address, digest, at=at)
            challenge = {"WWW-Authenticate": 'Bearer realm="gp4u", error="invalid_token"'}
            return Refusal("token_wrong", "", challenge)
        reply.role = role
        return None

    async def _serve(
        self, scope: Scope, headers: Headers, receive: Receive, reply: _Reply
    ) -> Refusal | None:
        """Hand the request to the app; return a refusal where there is no room or no whole body."""
        if self._busy >= self._max_concurrent and reply.route not in ALWAYS_SERVED:
            return full("saturated", f"{self._max_concurrent} requests are being served")
        scope["role"] = reply.role
        self._busy += 1
        if self._metrics is not None:
            self._metrics.in_flight(1)
        try:
            if b"transfer-encoding" in headers or headers.get(b"content-length", b"0") != b"0":
                body = await self._body(headers, receive)
                if not isinstance(body, bytes):
                    return body
                receive = _replay(body, receive)
            ready = None if reply.at_once is None else reply.at_once(scope)
            await (ready or self._app)(scope, receive, reply.send)
        except Exception:
            # A rim: one request's bug must not become another's.
            if reply.turned_away is not None:
                return reply.turned_away
            log = structlog.get_logger()
            log.exception("request_failed", method=scope["method"], route=reply.route)
            if reply.status is None:
                return Refusal("internal", "the log says more, under this request's id")
            if not reply.complete:
                raise  # the connection must break, or half an answer is taken for a whole one
        finally:
            if reply.streams:
                self._streams -= 1
            else:
                self._busy -= 1
            if self._metrics is not None:
                self._metrics.in_flight(-1)
        return reply.turned_away  # here where the route took that for its caller's end

    async def _body(self, headers: Headers, receive: Receive) -> bytes | Refusal | None:
        """Return the whole body, or why not; None where the caller has hung up."""
        limit = self._max_body_bytes
        unfit = unfit_body(headers, limit)
        if unfit is not None:
            return unfit
        parts = bytearray()
        try:
            async with asyncio.timeout(self._body_timeout_s):
                while True:
                    message = await receive()
                    if message["type"] != "http.request":
                        return None
                    parts += message.get("body", b"")
                    if len(parts) > limit:
                        return too_large(limit)
                    if not message.get("more_body", False):
                        return bytes(parts)
        except TimeoutError:
            detail = f"no whole body within {self._body_timeout_s:g} s"
            return Refusal("too_slow", detail, {"Connection": "close"})

    async def _refuse(
        self, refusal: Refusal, scope: Scope, receive: Receive, reply: _Reply
    ) -> None:
        status, title = REFUSALS[refusal.code]
        if self._metrics is not None:
            self._metrics.refused(refusal.code)
        reply.turned_away = None
        answer = problem_reply(
            status,
            refusal.code,
            title,
            refusal.detail,
            headers=refusal.headers,
            instance=reply.request_id,
            **(refusal.members or {}),
        )
        await answer(scope, receive, reply.send)

    def _tell(self, reply: _Reply, method: str, seconds: float) -> None:
        status = GONE if reply.status is None else reply.status
        if self._metrics is not None:
            self._metrics.http(reply.route, method, status, seconds)
        if self._log is not None:
            self._log(
                route=reply.route,
                method=method,
                status=status,
                seconds=seconds,
                request_id=reply.request_id,
                role=None if reply.role == "open" else reply.role,
            )


class _TurnedAwayError(Exception):
    """Ends a route whose reply was not admitted."""


class _Reply:
    """One reply on its way out, and what will be told of it."""

    __slots__ = (
        "_door",
        "_send",
        "at_once",
        "complete",
        "request_id",
        "role",
        "route",
        "status",
        "streams",
        "turned_away",
    )

    def __init__(self, door: Door, send: Send, request_id: str) -> None:
        self._door, self._send, self.request_id = door, send, request_id
        self.route, self.role = UNROUTED, "open"
        self.at_once: Callable[[Scope], ASGIApp | None] | None = None
        self.status: int | None = None
        self.complete = self.streams = False
        self.turned_away: Refusal | None = None

    async def send(self, message: Message) -> None:
        """Pass a message on; the first gets the headers that every reply has."""
        if self.turned_away is not None:
            raise _TurnedAwayError
        if message["type"] == "http.response.start":
            headers = list(message.get("headers", ()))
            names = {name.lower() for name, _ in headers}
            status = message["status"]
            if b"content-length" not in names and status not in (204, 304):
                self.streams = self._door.admit_stream()
                if not self.streams:
                    self.turned_away = full("too_many_streams", "until another one ends")
                    raise _TurnedAwayError
            headers.append((b"x-request-id", self.request_id.encode()))
            headers += [pair for pair in _DEFAULTS if pair[0] not in names]
            self.status = status
            message = {**message, "headers": headers}
        elif not message.get("more_body", False):
            self.complete = True
        await self._send(message)


def _is_home(address: Sequence[Any] | None) -> bool:
    """Tell whether one end of a connection is this machine; a Unix socket is, and has no port."""
    return address is None or address[1] is None or is_loopback(address[0])


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives the whole body first, and then goes on as before."""
    rest: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return rest.pop() if rest else await receive()

    return replayed
