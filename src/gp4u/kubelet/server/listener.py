"""A TCP port whose connections speak TLS: who is let in, and for how long.

TLS is begun by us for each connection instead of once for the port, so that a new certificate is in
force with the next one, and so that a peer that never shakes hands counts as a connection. What is
spoken on it is `http.py`'s business.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import structlog

from gp4u.errors import BadInput
from gp4u.kubelet.server.http import PIECE_BYTES, Connection, Handler, Limits

BACKLOG: Final = 512


class Listener:
    """One port and its connections; see the module's docstring."""

    def __init__(
        self,
        handle: Handler,
        *,
        context: Callable[[], ssl.SSLContext],
        limits: Limits | None = None,
    ) -> None:
        """`context` is asked for each connection: what it returns may change at any time."""
        self._handle, self._context = handle, context
        self._limits = limits or Limits()
        self._open: dict[asyncio.Transport, Connection | None] = {}
        self._socket: socket.socket | None = None
        self.address: tuple[str, int] | None = None
        """Where it listens, once it does."""
        self.started = asyncio.Event()

    def open(self, host: str, port: int) -> None:
        """Take the port; connections wait until `run` serves them.

        Raises:
            BadInput: it cannot be had.
        """
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((host, port))
            sock.listen(BACKLOG)
        except OSError as error:
            sock.close()
            bound = f"cannot be listened on: {error.strerror or error}"
            raise BadInput("kubelet port", f"{host}:{port}", bound) from error
        sock.setblocking(False)
        self._socket = sock
        self.address = sock.getsockname()[:2]

    async def run(self) -> None:
        """Serve the port that was opened until cancelled; then every connection is cut.

        Raises:
            BadInput: it was not opened.
        """
        loop = asyncio.get_running_loop()
        if self._socket is None:
            raise BadInput("kubelet port", "", "must be opened first")
        async with asyncio.TaskGroup() as group:

            def accept(transport: asyncio.Transport) -> None:
                if len(self._open) >= self._limits.connections and not self._make_room():
                    transport.abort()
                    return
                self._open[transport] = None
                group.create_task(self._serve(transport))

            server = await loop.create_server(
                lambda: _Newcomer(accept), sock=self._socket, backlog=BACKLOG
            )
            try:
                self.started.set()
                await server.serve_forever()
            finally:
                server.close()

    def drop_idle(self) -> None:
        """Close the connections once they wait for a request: whom we trust has changed."""
        for connection in [each for each in self._open.values() if each]:
            connection.leave()

    def _make_room(self) -> bool:
        """Close the connection that has waited for its next request for longest."""
        idle = [each for each in self._open.values() if each is not None and each.is_idle]
        if idle:
            min(idle, key=lambda each: each.since_s).close()
        return bool(idle)

    async def _serve(self, raw: asyncio.Transport) -> None:
        loop = asyncio.get_running_loop()
        _keep_alive(raw)
        reader = asyncio.StreamReader(limit=PIECE_BYTES)
        protocol = _Streams(reader)
        transport: asyncio.Transport | None = None
        try:
            with suppress(OSError, ssl.SSLError):  # a port scan, a wrong certificate, a slow one
                transport = await loop.start_tls(
                    raw,
                    protocol,
                    self._context(),
                    server_side=True,
                    ssl_handshake_timeout=self._limits.handshake_s,
                    ssl_shutdown_timeout=2.0,
                )
            if transport is None:
                return
            protocol.connection_made(transport)
            writer = asyncio.StreamWriter(transport, protocol, reader, loop)
            connection = Connection(reader, writer, self._handle, self._limits)
            self._open[raw] = connection
            await connection.run()
        except Exception:  # noqa: BLE001 - a connection's bug must not become the node's end
            structlog.get_logger().exception("kubelet_connection_failed")
        finally:
            del self._open[raw]
            (raw if transport is None else transport).close()


class _Newcomer(asyncio.Protocol):
    """Holds a connection still until TLS begins on it."""

    def __init__(self, accept: Callable[[asyncio.Transport], None]) -> None:
        self._accept = accept

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - a TCP connection is one
        transport.pause_reading()
        self._accept(transport)


class _Streams(asyncio.StreamReaderProtocol):
    def eof_received(self) -> bool:
        """Take the end of input; TLS knows no connection that is open in one direction."""
        super().eof_received()
        return False


def _keep_alive(transport: asyncio.Transport) -> None:
    """Have the system notice a client that vanished without a word, in about a minute."""
    sock = transport.get_extra_info("socket")
    if sock is None:
        return
    with suppress(OSError):  # no such option here: then it takes longer
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
