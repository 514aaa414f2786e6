"""A simulated provider without a socket: an httpx2 transport straight into the ASGI app.

Hides how a connection dies where there is none. Faults that kill a real connection over loopback
come out of the app as an exception here; a client must see what it would see on a network.
Nothing in it reads a clock or starts a thread, so it runs under a virtual loop.
"""

from __future__ import annotations

import httpx2
from starlette.types import ASGIApp

from gp4u.sim.gate import ConnectionLostError


class InProcessTransport(httpx2.AsyncBaseTransport):
    """Hands requests to an ASGI app and turns lost connections into transport errors."""

    def __init__(self, app: ASGIApp, *, client: tuple[str, int] = ("127.0.0.1", 40_000)) -> None:
        self._inner = httpx2.ASGITransport(app, client=client)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        try:
            return await self._inner.handle_async_request(request)
        except ConnectionLostError as lost:
            kind = httpx2.ReadError if lost.sent else httpx2.ConnectError
            raise kind(str(lost), request=request) from lost
