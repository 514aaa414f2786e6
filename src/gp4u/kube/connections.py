"""Connections to the API server: aiohttp behind httpx's transport interface.

Hides aiohttp. A call over httpx's own transport takes six times the processor time, and a node with
a thousand pods does little else than such calls (ADR 32). What a reply means is told in
`client.py`.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncIterator
from typing import Final

import aiohttp
import httpx
from yarl import URL

KEPT_S: Final = 60.0
"""How long an idle connection is kept; the server keeps them for longer."""
READ_BYTES: Final = 256 * 1024
"""As much of a reply is read before somebody takes it."""
CONNECT_S: Final = 10.0
_KEEP_ALIVE: Final = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
)
"""A peer that went without a word is noticed by the kernel within a minute."""
_FAILED: Final = (aiohttp.ClientError, OSError, TimeoutError)


class Connections(httpx.AsyncBaseTransport):
    """As many connections to one server as there are calls under way, kept for the next ones.

    It takes no proxy from the environment, follows no redirect, keeps no cookie, unpacks nothing.
    """

    def __init__(self, tls: ssl.SSLContext) -> None:
        self._tls = tls
        self._session: aiohttp.ClientSession | None = None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send one request; the body of the reply is read from its stream.

        Raises:
            httpx.NetworkError: no reply came.
        """
        if self._session is None:
            self._session = self._open()
        try:
            reply = await self._session.request(
                request.method,
                URL(str(request.url), encoded=True),
                headers=request.headers.multi_items(),
                data=request.content or None,
                allow_redirects=False,
            )
        except _FAILED as error:
            raise httpx.NetworkError(f"{type(error).__name__}: {error}") from error
        return httpx.Response(
            reply.status, headers=list(reply.raw_headers), stream=_Body(reply), request=request
        )

    async def aclose(self) -> None:
        """Close them all."""
        if self._session is not None:
            await self._session.close()

    def _open(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                ssl=self._tls, limit=0, keepalive_timeout=KEPT_S, socket_factory=_socket
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S),
            auto_decompress=False,
            trust_env=False,
            read_bufsize=READ_BYTES,
        )


class _Body(httpx.AsyncByteStream):
    def __init__(self, reply: aiohttp.ClientResponse) -> None:
        self._reply = reply

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for piece in self._reply.content.iter_any():
                yield piece
        except _FAILED as error:
            raise httpx.NetworkError(f"{type(error).__name__}: {error}") from error

    async def aclose(self) -> None:
        # What was read whole has given its connection back; any other one is of no use any more.
        self._reply.close()


def _socket(address: aiohttp.AddrInfoType) -> socket.socket:
    family, kind, protocol, _, _ = address
    made = socket.socket(family=family, type=kind, proto=protocol)
    for level, option, value in _KEEP_ALIVE:
        made.setsockopt(level, option, value)
    return made
