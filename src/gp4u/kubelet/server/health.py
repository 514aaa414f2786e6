"""The one thing that a node says without asking who wants to know: that its loop goes round.

A kubelet of the cluster that runs this process as a pod has no token for the kubelet API, and its
liveness probe must fail when the event loop is stuck, which an open TCP port alone does not show.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Final

from gp4u.errors import BadInput

WAIT_S: Final = 5.0
MOST: Final = 64
"""Callers at a time."""
_HEAD_BYTES: Final = 8192
_OK: Final = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n"
    b"Connection: close\r\n\r\nok"
)


async def tell_health(host: str, port: int) -> None:
    """Answer every request with `ok` until cancelled; port 0 does nothing.

    Raises:
        BadInput: the port cannot be listened on.
    """
    if not port:
        return
    callers = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal callers
        callers += 1
        try:
            if callers <= MOST:
                async with asyncio.timeout(WAIT_S):
                    await reader.readuntil(b"\r\n\r\n")
                    writer.write(_OK)
                    await writer.drain()
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # whoever asks badly is told nothing
        finally:
            callers -= 1
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    try:
        server = await asyncio.start_server(answer, host, port, limit=_HEAD_BYTES)
    except OSError as error:
        bound = f"cannot be listened on: {error.strerror or error}"
        raise BadInput("GP4U_NODE_HEALTH_PORT", port, bound) from error
    async with server:
        await server.serve_forever()
