"""HTTP/1.1 over TLS with nothing in between: what a kubelet's port speaks.

ASGI servers cannot give a connection away, and `Upgrade: SPDY/3.1` needs just that; so this is a
small server over h11. It hides deadlines, limits, framing, keep-alive, back-pressure and the end of
a client; a handler gets a whole request and gives a reply, a reply that goes on, or a `Takeover`.
Where connections come from is `listener.py`'s business; who may call what is not known here.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

import h11
import structlog
from msgspec import Struct

from gp4u.kubelet.streams.upgrade import Upgrade

PIECE_BYTES: Final = 256 * 1024
READ_BYTES: Final = 64 * 1024
MAX_PARAMETERS: Final = 1000
_REASONS: Final = {400: "bad request", 408: "too slow", 413: "too large", 431: "head too large"}
_TEXT: Final = "text/plain; charset=utf-8"


class Limits(Struct, frozen=True, kw_only=True):
    """What a connection may cost."""

    handshake_s: float = 10.0
    head_s: float = 10.0
    """From a request's first byte to the end of its head; a new connection's first byte has as
    long."""
    body_s: float = 30.0
    idle_s: float = 90.0
    """Between requests."""
    write_s: float = 60.0
    """For a reply that has an end; one that goes on waits for its reader, as a kubelet's does."""
    head_bytes: int = 64 * 1024
    body_bytes: int = 1024 * 1024
    connections: int = 1024
    """At a time; whoever waits between requests for longest makes room."""


class Request(Struct, frozen=True, kw_only=True):
    """One request, whole."""

    method: str
    target: str
    """As it was sent."""
    path: str
    """Without the query, percent-encoded as it was sent."""
    query: Mapping[str, Sequence[str]]
    headers: Sequence[tuple[str, str]]
    """Names in lower case, in the order in which they came."""
    body: bytes = b""
    certificate: Mapping[str, Any] | None = None
    """The client's, verified, as `ssl.SSLSocket.getpeercert` tells it."""

    def __repr__(self) -> str:
        return f"Request({self.method} {self.path})"  # a traceback shows no token

    def header(self, name: str) -> str:
        """Return a header's first value, or an empty text."""
        return next((value for each, value in self.headers if each == name), "")

    def first(self, name: str) -> str | None:
        """Return a parameter's first value, None where it is not there."""
        values = self.query.get(name)
        return values[0] if values else None


class Reply(Struct, frozen=True, kw_only=True):
    """What is answered; a body that is an iterator goes on until it ends or the client leaves."""

    status: int = 200
    body: bytes | AsyncIterator[bytes] = b""
    content_type: str = _TEXT
    headers: Sequence[tuple[str, str]] = ()


class Takeover(Struct, frozen=True):
    """The connection itself is wanted; `serve` answers, and leaves it closed."""

    serve: Callable[[Upgrade], Awaitable[None]]


Handler = Callable[[Request], Awaitable[Reply | Takeover]]


def told(status: int, text: str) -> Reply:
    """Return a plain text reply, as a kubelet tells what is wrong."""
    return Reply(status=status, body=f"{text}\n".encode())


class _GoneError(Exception):
    """The client left, or is too slow to be waited for."""


class Connection:
    """One connection's requests, one after the other."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        handle: Handler,
        limits: Limits,
    ) -> None:
        self._reader, self._writer = reader, writer
        self._handle, self._limits = handle, limits
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=limits.head_bytes)
        self._only_head = False
        """Whether the request in hand is a HEAD: its reply has no body, whatever it says."""
        self._is_last = False
        self.is_idle = True
        self.since_s = asyncio.get_running_loop().time()

    async def run(self) -> None:
        """Serve until either side has had enough."""
        try:
            wait_s = self._limits.head_s
            while await self._one(wait_s):
                self._http.start_next_cycle()
                self.is_idle, self.since_s = True, asyncio.get_running_loop().time()
                wait_s = self._limits.idle_s
        except h11.RemoteProtocolError as error:
            await self._refuse(error.error_status_hint)
        except (_GoneError, OSError, h11.LocalProtocolError):
            pass  # it may leave at any moment

    def close(self) -> None:
        """End it as soon as what was written has left."""
        self.is_idle = False  # it makes room once only, however long its peer takes to agree
        self._writer.close()

    def leave(self) -> None:
        """End it, behind the reply that is on its way where there is one."""
        self._is_last = True
        if self.is_idle:
            self.close()

    async def _one(self, wait_s: float) -> bool:
        """Serve one request; return whether another one may come."""
        event = await self._begun(wait_s)
        if event is None:
            return False
        self.is_idle = False
        body = await self._body()
        if body is None:
            await self._refuse(413)
            return False
        target = event.target.decode("ascii", "replace")
        try:
            request = self._request(event, target, body)
        except ValueError:
            await self._refuse(400)
            return False
        reply = await self._answer(request)
        if isinstance(reply, Takeover):
            pending = self._http.trailing_data[0]
            upgrade = Upgrade(
                request.method,
                target,
                request.headers,
                self._reader,
                self._writer,
                pending=pending,
            )
            await reply.serve(upgrade)
            return False
        await self._send(reply)
        states = self._http.our_state, self._http.their_state
        is_over = self._is_last or self._writer.is_closing()
        return states == (h11.DONE, h11.DONE) and not is_over

    def _request(self, event: h11.Request, target: str, body: bytes) -> Request:
        """Put a request together.

        Raises:
            ValueError: its parameters are too many.
        """
        parts = urlsplit(target)
        headers = [(n.decode("latin-1"), v.decode("latin-1")) for n, v in event.headers]
        tls = self._writer.get_extra_info("ssl_object")
        return Request(
            method=event.method.decode("ascii"),
            target=target,
            path=parts.path,
            query=parse_qs(parts.query, keep_blank_values=True, max_num_fields=MAX_PARAMETERS),
            headers=headers,
            body=body,
            certificate=tls.getpeercert() or None,
        )

    async def _begun(self, wait_s: float) -> h11.Request | None:
        """Wait for a request's head; None: nothing more comes.

        Raises:
            h11.RemoteProtocolError: it cannot be read, or could be read in two ways.
        """
        self._only_head = False
        event = self._http.next_event()
        if event is h11.NEED_DATA and not self._http.trailing_data[0]:
            try:
                async with asyncio.timeout(wait_s):
                    self._take(await self._reader.read(READ_BYTES))
            except TimeoutError:
                return None
            event = self._http.next_event()
        try:
            async with asyncio.timeout(self._limits.head_s):
                while event is h11.NEED_DATA:
                    self._take(await self._reader.read(READ_BYTES))
                    event = self._http.next_event()
        except TimeoutError:
            raise h11.RemoteProtocolError("slow", error_status_hint=408) from None
        if not isinstance(event, h11.Request):
            return None
        self._only_head = event.method == b"HEAD"
        names = {name for name, _ in event.headers}
        if b"content-length" in names and b"transfer-encoding" in names:
            raise h11.RemoteProtocolError("two framings of one body", error_status_hint=400)
        return event

    async def _body(self) -> bytes | None:
        """Read the request's body; None where it is too large."""
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self._limits.body_s):
                while True:
                    if self._http.they_are_waiting_for_100_continue:
                        go_on = h11.InformationalResponse(status_code=100, headers=[])
                        self._writer.write(self._http.send(go_on) or b"")
                    event = self._http.next_event()
                    if event is h11.NEED_DATA:
                        self._take(await self._reader.read(READ_BYTES))
                    elif isinstance(event, h11.Data):
                        size += len(event.data)
                        parts.append(bytes(event.data))
                        if size > self._limits.body_bytes:
                            return None
                    else:
                        return b"".join(parts)
        except TimeoutError:
            raise h11.RemoteProtocolError("slow", error_status_hint=408) from None

    def _take(self, data: bytes) -> None:
        if not data and self._http.their_state is h11.IDLE and not self._http.trailing_data[0]:
            raise _GoneError
        self._http.receive_data(data)

    async def _answer(self, request: Request) -> Reply | Takeover:
        try:
            return await self._handle(request)
        except Exception:  # noqa: BLE001 - a request's bug must not become another one's
            structlog.get_logger().exception("kubelet_request_failed", path=request.path)
            return told(500, "internal error")

    async def _send(self, reply: Reply) -> None:
        if isinstance(reply.body, bytes):
            length = ("Content-Length", str(len(reply.body)))
            pieces = [*self._head(reply, length)]
            if reply.body and not self._only_head:
                pieces += self._http.send_with_data_passthrough(h11.Data(data=reply.body)) or []
            pieces += self._http.send_with_data_passthrough(h11.EndOfMessage()) or []
            self._writer.writelines(pieces)
            await self._flushed(self._limits.write_s)
            return
        self._writer.writelines(self._head(reply, ("Transfer-Encoding", "chunked")))
        async with aclosing(reply.body) as body:  # type: ignore[type-var] # every body that goes on is an async generator
            is_whole = await self._copy(body)
        if not is_whole:
            raise _GoneError
        self._writer.writelines(self._http.send_with_data_passthrough(h11.EndOfMessage()) or [])
        await self._flushed(self._limits.write_s)

    def _head(self, reply: Reply, framing: tuple[str, str]) -> list[bytes]:
        headers = [
            ("Content-Type", reply.content_type),
            ("X-Content-Type-Options", "nosniff"),
            framing,
            *reply.headers,
        ]
        reason = HTTPStatus(reply.status).phrase
        head = h11.Response(status_code=reply.status, headers=headers, reason=reason)
        return self._http.send_with_data_passthrough(head) or []

    async def _copy(self, body: AsyncIterator[bytes]) -> bool:
        """Send a reply that goes on; False where the client left before its end."""

        async def copy() -> bool:
            try:
                await self._writer.drain()
                async for piece in body:
                    if piece:
                        event = h11.Data(data=piece)
                        self._writer.writelines(self._http.send_with_data_passthrough(event) or [])
                        await self._writer.drain()
            except OSError:
                return False
            except Exception:  # noqa: BLE001 - what reads must see that it is cut off, and no more
                structlog.get_logger().exception("kubelet_reply_failed")
                return False
            return True

        async with asyncio.TaskGroup() as group:
            copying = group.create_task(copy())
            leaving = group.create_task(self._left())
            await asyncio.wait({copying, leaving}, return_when=asyncio.FIRST_COMPLETED)
            leaving.cancel()
            copying.cancel()
        return not copying.cancelled() and copying.result()

    async def _left(self) -> None:
        """Wait until the client is gone."""
        with suppress(OSError):
            data = await self._reader.read(PIECE_BYTES)
            if data:
                # The next request, ahead of time. It is kept; whether the client is still there
                # is told by our writing from here on.
                self._http.receive_data(data)
                await asyncio.Event().wait()

    async def _flushed(self, within_s: float) -> None:
        try:
            async with asyncio.timeout(within_s):
                await self._writer.drain()
        except TimeoutError:
            self._writer.transport.abort()
            raise _GoneError from None

    async def _refuse(self, status: int) -> None:
        """Say why a request was not read, and end the connection."""
        if self._http.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self._writer.transport.abort()
            return
        status = status if status in _REASONS else 400
        reply = told(status, _REASONS[status])
        with suppress(OSError, _GoneError):
            await self._send(
                Reply(status=status, body=reply.body, headers=[("Connection", "close")])
            )
