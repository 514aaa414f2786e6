"""A request that asks for its connection to become something else, and that connection.

The HTTP server parses the head, checks who calls, and makes one of these; from then on the bytes
are ours. `answer` writes the 101 and `refuse` anything else, once. After a 101 it is a pipe: `read`
what comes, `write` without waiting, `drain` to wait for room. However the connection ends, that is
`ClientLeft` here.

What is spoken on it is the business of `spdy.py` and `websocket.py`.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Final
from urllib.parse import parse_qs, urlsplit

from gp4u.kubelet.streams.pipe import ClientLeft

READ_BYTES: Final = 256 * 1024
"""The most that one `read` returns."""
WRITE_BYTES: Final = 256 * 1024
"""What may wait to be sent before `drain` waits."""
CLOSE_S: Final = 2.0
"""How long a polite end of the connection may take."""
KEEPALIVE_S: Final = 30
"""A client that vanished without a word is looked for after so much silence."""
LIVE_TCP_STATES: Final = frozenset({1})
"""ESTABLISHED. Source: Linux include/net/tcp_states.h; checked 2026-11."""


class Upgrade:
    """One request with its connection. Whoever made it need not close it: the `serve_*` do."""

    def __init__(
        self,
        method: str,
        target: str,
        headers: Iterable[tuple[str, str]],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        pending: bytes = b"",
    ) -> None:
        """Take over a connection.

        `target` is the path with its query, as it was sent. `headers` are in the order in which
        they came, names in any case. `pending` is what was read after the head already.
        """
        self.method, self.target = method, target
        self._headers = tuple((name.lower(), value.strip()) for name, value in headers)
        self._reader, self._writer = reader, writer
        self._pending = pending

    @property
    def headers(self) -> Sequence[tuple[str, str]]:
        """Names in lower case, in the order in which they came."""
        return self._headers

    @property
    def path(self) -> str:
        """The target without its query, percent-encoded as it came."""
        return urlsplit(self.target).path

    @property
    def query(self) -> Mapping[str, Sequence[str]]:
        """Each parameter's values, in order; those without a value have an empty one."""
        return parse_qs(urlsplit(self.target).query, keep_blank_values=True)

    def words(self, name: str) -> list[str]:
        """Return the comma-separated words of a header, of all its lines, in order."""
        wanted = name.lower()
        return [
            word.strip()
            for each, value in self._headers
            if each == wanted
            for word in value.split(",")
            if word.strip()
        ]

    def wants(self, protocol: str) -> bool:
        """Say whether the connection is asked to become this (`SPDY/3.1`, `websocket`)."""
        asked = [word.lower() for word in self.words("connection")]
        named = [word.lower() for word in self.words("upgrade")]
        return "upgrade" in asked and protocol.lower() in named

    async def accept(self, headers: Iterable[tuple[str, str]]) -> None:
        """Say 101; what follows is the other protocol.

        Raises:
            ClientLeft: nobody is there any more.
        """
        self._keep_alive()
        transport = self._writer.transport
        transport.set_write_buffer_limits(high=WRITE_BYTES)
        self.write(_head(HTTPStatus.SWITCHING_PROTOCOLS, headers))
        await self.drain()

    async def refuse(self, status: int, text: str, headers: Iterable[tuple[str, str]] = ()) -> None:
        """Answer with an error as plain text, and close the connection. Never raises."""
        body = f"{text}\n".encode()
        fields = [
            ("Content-Type", "text/plain; charset=utf-8"),
            ("X-Content-Type-Options", "nosniff"),
            ("Content-Length", str(len(body))),
            ("Connection", "close"),
            *headers,
        ]
        self.write(_head(HTTPStatus(status), fields) + body)
        await self.aclose()

    async def read(self) -> bytes:
        """Return what came; waits until something did.

        Raises:
            ClientLeft: nobody is there any more.
        """
        if self._pending:
            pending, self._pending = self._pending, b""
            return pending
        try:
            data = await self._reader.read(READ_BYTES)
        except OSError as error:
            raise ClientLeft(f"the connection broke: {error}") from error
        if not data:
            raise ClientLeft("the client left")
        return data

    def write(self, data: bytes) -> None:
        """Send, or keep it to be sent; the caller bounds how much by `drain` or `waiting`."""
        if data and not self._writer.is_closing():
            self._writer.write(data)

    @property
    def waiting(self) -> int:
        """Bytes that were written and have not been sent yet."""
        return self._writer.transport.get_write_buffer_size()

    async def drain(self) -> None:
        """Return once there is room for more.

        Raises:
            ClientLeft: nobody is there any more.
        """
        try:
            await self._writer.drain()
        except OSError as error:
            raise ClientLeft(f"the connection broke: {error}") from error

    def left(self) -> bool:
        """Say whether the client is known to have closed, though not all it sent was read.

        For those who have stopped reading, and so would not see the end. False where the system
        does not tell, and while the client's farewell itself waits behind what we do not read: TCP
        delivers in order, so then only the keep-alive finds out.
        """
        if self._writer.is_closing():
            return True
        connection = self._writer.get_extra_info("socket")
        if connection is None or not hasattr(socket, "TCP_INFO"):
            return False
        try:
            (state,) = struct.unpack(
                "B", connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)
            )
        except OSError:
            return False
        return state not in LIVE_TCP_STATES

    async def aclose(self) -> None:
        """Send what waits, as far as that goes quickly, and close. Never raises."""
        try:
            async with asyncio.timeout(CLOSE_S):
                self._writer.close()
                await self._writer.wait_closed()
        except (OSError, TimeoutError):
            pass
        finally:  # also where the wait is cut short: what has been closed already is left alone
            self._writer.transport.abort()

    def abort(self) -> None:
        """Close at once; what waits is lost."""
        self._writer.transport.abort()

    def _keep_alive(self) -> None:
        connection = self._writer.get_extra_info("socket")
        if connection is None:
            return
        try:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if hasattr(socket, "TCP_KEEPIDLE"):
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_S)
        except OSError:
            return


def _head(status: HTTPStatus, headers: Iterable[tuple[str, str]]) -> bytes:
    """Return a reply's status line and headers, to the empty line that ends them."""
    lines = [f"HTTP/1.1 {status.value} {status.phrase}"]
    lines += [f"{name}: {value}" for name, value in headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", "replace")
