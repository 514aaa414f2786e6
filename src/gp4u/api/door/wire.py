"""The server's end of a connection: what a peer may cost that never sends, or never reads, enough.

Hides uvicorn. It has no deadline for a request's head, none for a body, and none for a reply that
nobody takes; it reads two framings of one body as the first of them; and it answers what it cannot
read in plain text. `LimitedProtocol` adds these where the bytes are, below any route. What is asked
of a whole request is `door.py`'s.

Source: uvicorn 0.54.0, `protocols/http/h11_impl.py`; h11 0.16.0 (November 2026).
"""

from __future__ import annotations

import asyncio
import resource
import socket
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from gp4u.api.door.refusals import MAX_HEAD_BYTES, MAX_URL_BYTES, REFUSALS
from gp4u.api.failing import problem_reply

FILES_KEPT: Final = 128
"""File descriptors that connections must leave to the ledger, the markets and the logs."""
_CODES: Final = {400: "bad_request", 408: "too_slow", 431: "head_too_large", 503: "saturated"}


@dataclass(frozen=True, slots=True)
class WireLimits:
    """What a connection may cost."""

    header_timeout_s: float = 10.0
    """For a whole head to arrive: of the first request from the connection's start, of a later one
    from its first byte."""
    stall_s: float = 10.0
    """How often it is looked whether a body, or a reply, still moves."""
    min_bytes_per_s: int = 1024
    """How fast it has to."""
    linger_s: float = 5.0
    """For the rest of a body that was answered before its end."""
    keep_alive_s: int = 5
    """For the next request to begin."""
    max_connections: int = 1024
    """Open at a time; one that waits longest for a head makes room for a newcomer."""
    backlog: int = 1024
    stop_s: int = 3
    """For replies to end once the server stops; those without an end get a third of it."""


def server_config(app: ASGIApp, limits: WireLimits | None = None) -> uvicorn.Config:
    """Return how uvicorn serves an app: on connections with limits, silent, without upgrades."""
    bounds = limits or WireLimits()

    class Protocol(LimitedProtocol):
        limits = bounds

    return uvicorn.Config(
        app,
        http=Protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,  # who calls is who connects; a header can be made up
        backlog=bounds.backlog,
        timeout_keep_alive=bounds.keep_alive_s,
        timeout_graceful_shutdown=bounds.stop_s,
        # The door tells too long a URL from too large a head; this only has to end both.
        h11_max_incomplete_event_size=2 * (MAX_URL_BYTES + MAX_HEAD_BYTES),
        reset_contextvars=True,
    )


class _Connection(h11.Connection):
    """Reads requests, and remembers as which status an unreadable one has to be answered."""

    hint = 400

    def next_event(self) -> Any:
        """Return the next event.

        Raises:
            h11.RemoteProtocolError: it cannot be read, or could be read in two ways.
        """
        try:
            event = super().next_event()
        except h11.RemoteProtocolError as error:
            self.hint = error.error_status_hint
            raise
        if isinstance(event, h11.Request):
            names = {name for name, _ in event.headers}
            if b"content-length" in names and b"transfer-encoding" in names:
                raise h11.RemoteProtocolError("Content-Length and Transfer-Encoding at once")
        return event


class LimitedProtocol(H11Protocol):
    """One connection; see the module's docstring."""

    limits: ClassVar[WireLimits] = WireLimits()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        size = self.config.h11_max_incomplete_event_size
        self._strict = _Connection(h11.SERVER, size or 2 * (MAX_URL_BYTES + MAX_HEAD_BYTES))
        self.conn = self._strict
        self._deadline: asyncio.TimerHandle | None = None
        self._waits_for: str | None = None
        self._since_s = 0.0
        self._received = self._looked_at = 0
        self._write_check: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # uvicorn narrows it the same way
        """Begin to wait for a head; make room where there are too many connections."""
        super().connection_made(transport)
        self._send_at_once(transport)
        if len(self.connections) > _at_most(self.limits.max_connections) and not self._make_room():
            self._answer(503)
            return
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Take bytes, and see what is waited for next."""
        self._received += len(data)
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """Go on with the next request, or wait for the rest of this one."""
        super().on_response_complete()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget every deadline."""
        self._wait_for(None)
        self._stop_write_check()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """End after the reply that is under way, or in the midst of one that does not end."""
        super().shutdown()
        if not self.transport.is_closing():
            self.loop.call_later(self.limits.stop_s / 3, self.transport.close)

    def pause_writing(self) -> None:
        """Look from now on whether the peer takes anything."""
        super().pause_writing()
        if self._write_check is None:
            self._check_writing(None)

    def resume_writing(self) -> None:
        """The peer has caught up."""
        self._stop_write_check()
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """Answer what could not be read, with the status that says why."""
        del msg
        self._answer(self._strict.hint)

    @staticmethod
    def _send_at_once(transport: asyncio.Transport) -> None:
        """Let no reply's body wait for its head to be acknowledged, which takes a peer 40 ms.

        asyncio does this where a socket says that it is TCP, and those that a listener of ours
        accepts say 0. Source: CPython 3.11, `asyncio/base_events.py`, `_set_nodelay`.
        """
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def _should_upgrade(self) -> bool:
        return False  # without a word in the log for each that asks

    def _watch(self) -> None:
        """Set the deadline of what the connection now waits for."""
        if self.transport.is_closing():
            self._wait_for(None)
            return
        state = self.conn.their_state
        answered = self.cycle is not None and self.cycle.response_complete
        if state is h11.IDLE and (self.cycle is None or self.conn.trailing_data[0]):
            self._wait_for("head")
        elif state is h11.SEND_BODY:
            self._wait_for("rest" if answered else "body")
        else:
            self._wait_for(None)

    def _wait_for(self, what: str | None) -> None:
        if what == self._waits_for:
            return
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        self._waits_for, self._since_s = what, self.loop.time()
        if what == "head":
            self._deadline = self.loop.call_later(self.limits.header_timeout_s, self._head_is_late)
        elif what == "body":
            self._looked_at = self._received
            self._deadline = self.loop.call_later(self.limits.stall_s, self._check_body)
        elif what == "rest":
            self._deadline = self.loop.call_later(self.limits.linger_s, self.transport.close)

    def _head_is_late(self) -> None:
        if self.conn.trailing_data[0]:
            self._answer(408)
        else:
            self.transport.close()

    def _check_body(self) -> None:
        least = self.limits.min_bytes_per_s * self.limits.stall_s
        if self._received - self._looked_at < least and not self.flow.read_paused:
            self.transport.close()
            return
        self._looked_at = self._received
        self._deadline = self.loop.call_later(self.limits.stall_s, self._check_body)

    def _check_writing(self, before: int | None) -> None:
        """Cut off a peer that has taken too little of what waits for it since the last look."""
        waiting = self.transport.get_write_buffer_size()
        if before is not None:
            least = self.limits.min_bytes_per_s * self.limits.stall_s
            if before - waiting < least:
                self.transport.abort()
                return
        self._write_check = self.loop.call_later(self.limits.stall_s, self._check_writing, waiting)

    def _stop_write_check(self) -> None:
        if self._write_check is not None:
            self._write_check.cancel()
            self._write_check = None

    def _make_room(self) -> bool:
        """Close the connection that has waited longest for a head; False where none waits."""
        waiting = [
            each
            for each in self.connections
            if isinstance(each, LimitedProtocol) and each is not self and each.idle
        ]
        if not waiting:
            return False
        oldest = min(waiting, key=lambda each: each._since_s)  # noqa: SLF001 - of the same class
        oldest.transport.close()
        return True

    @property
    def idle(self) -> bool:
        """Whether no request is under way here."""
        served = self.cycle is None or self.cycle.response_complete
        return served and not self.transport.is_closing()

    def _answer(self, status: int) -> None:
        """Say why the connection ends, and end it."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.abort()  # in the midst of a reply: its reader must not think it whole
            return
        status = status if status in _CODES else 400
        code = _CODES[status]
        problem = problem_reply(status, code, REFUSALS[code][1], headers={"Connection": "close"})
        head = h11.Response(status_code=status, headers=problem.raw_headers, reason=b"")
        for event in (head, h11.Data(data=bytes(problem.body)), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


def _at_most(connections: int) -> int:
    """Return how many connections the process has file descriptors for."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return connections if files == resource.RLIM_INFINITY else min(connections, files - FILES_KEPT)
