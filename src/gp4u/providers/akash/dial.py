"""A real WebSocket to a host on Akash: to the address that was checked, with a pinned certificate.

What this file hides: TLS, the handshake and the library's frames. The host is a stranger. The
connection goes to the very address that was checked and is never led on; the name serves for TLS
and for the `Host` header alone. What is said over it is the business of `gateway.py`.

A host's certificate is its own: it signs it itself and registers it on the chain. So a certificate
that no authority vouches for is accepted if it is, byte for byte, one that the chain has for this
owner; a token is not sent before that is settled.

Source: provider:gateway/rest, 2026-06 (docs/reference/akash.md); the pinning is inferred.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

if TYPE_CHECKING:
    from websockets.client import ClientProtocol
    from websockets.protocol import Event

CONNECT_S: Final = 10.0
MAX_MESSAGE: Final = 1 << 20
GOODBYE_S: Final = 1.0
"""For so long a host that is left may still take what was written; it need never read again."""


class Closed(Exception):
    """The other side ended the connection, with a code of its own from 4000 on."""

    def __init__(self, code: int | None = None, reason: str = "") -> None:
        self.code, self.reason = code, reason
        super().__init__(f"closed with {code}: {reason}")


class Declined(Exception):
    """The host answered the call for a WebSocket with a plain status."""

    def __init__(self, status: int, text: str = "") -> None:
        self.status, self.text = status, text
        super().__init__(f"HTTP {status}: {text}")


class Socket(Protocol):
    """An open WebSocket."""

    async def send(self, message: bytes) -> None:
        """Send a binary message."""

    async def receive(self) -> bytes | str:
        """Return the next message.

        Raises:
            Closed: there is none any more.
        """


class Door(msgspec.Struct, frozen=True, kw_only=True):
    """Where to knock: a checked address, and the name that stands for it."""

    url: str
    """`wss://host:8443`, without a path."""
    address: str
    """The address that was checked; what is connected to."""
    port: int
    host: str
    encrypted: bool


Dial = Callable[[Door, str, str, Sequence[bytes]], AbstractAsyncContextManager[Socket]]
"""Opens a WebSocket: door, path with query, token, certificates that may stand for themselves."""


@asynccontextmanager
async def dial(door: Door, path: str, token: str, pins: Sequence[bytes]) -> AsyncIterator[Socket]:
    """Open a WebSocket to the checked address; the name serves for TLS and the `Host` header."""
    # Imported here: a hundred modules that only logs and exec on this market need.
    from websockets.client import ClientProtocol
    from websockets.uri import parse_uri

    async with asyncio.timeout(CONNECT_S):
        reader, writer = await _connected(door, pins)
    try:
        uri = parse_uri(f"{door.url}{path}")
        # A logger of its own, which says nothing: the library's would print the token.
        mute = logging.Logger("akash", logging.CRITICAL)  # noqa: LOG001 - on purpose no part of the tree
        protocol = ClientProtocol(uri, max_size=MAX_MESSAGE, logger=mute)
        socket = _Wire(reader, writer, protocol)
        async with asyncio.timeout(CONNECT_S):
            await socket.open(token)
        yield socket
        with suppress(OSError):  # a TimeoutError is one
            async with asyncio.timeout(GOODBYE_S):
                await socket.hang_up()
    finally:
        writer.close()
        try:
            with suppress(OSError, ssl.SSLError):
                async with asyncio.timeout(GOODBYE_S):
                    await writer.wait_closed()
        finally:
            writer.transport.abort()


async def _connected(
    door: Door, pins: Sequence[bytes]
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if not door.encrypted:
        return await asyncio.open_connection(door.address, door.port)
    trusted = ssl.create_default_context()
    try:
        return await asyncio.open_connection(
            door.address, door.port, ssl=trusted, server_hostname=door.host
        )
    except ssl.SSLCertVerificationError:
        if not pins:
            raise
    own = ssl.create_default_context()
    own.check_hostname, own.verify_mode = False, ssl.CERT_NONE  # judged below, byte for byte
    reader, writer = await asyncio.open_connection(
        door.address, door.port, ssl=own, server_hostname=door.host
    )
    shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    if shown not in pins:
        writer.close()
        raise ssl.SSLCertVerificationError("the chain has no such certificate for this host")
    return reader, writer


class _Wire:
    """A WebSocket over a stream; the protocol itself is the library's."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        protocol: ClientProtocol,
    ) -> None:
        self._reader, self._writer, self._protocol = reader, writer, protocol
        self._events: deque[Event] = deque()
        self._ended = False

    async def open(self, token: str) -> None:
        """Shake hands.

        Raises:
            Declined: the host answered with another status.
            ConnectionError: it did not answer in HTTP.
        """
        request = self._protocol.connect()
        request.headers["Authorization"] = f"Bearer {token}"
        self._protocol.send_request(request)
        await self._flush()
        try:
            answer = await self._next_event()
        except Closed as closed:
            raise ConnectionError("no answer to the handshake") from closed
        if self._protocol.handshake_exc is not None:
            status = getattr(answer, "status_code", 0)
            body = bytes(getattr(answer, "body", b"") or b"")
            raise Declined(status, body.decode("utf-8", "replace"))

    async def send(self, message: bytes) -> None:
        """Send a binary message; one that comes too late is dropped, and receiving tells why."""
        from websockets.protocol import State

        if self._protocol.state is State.OPEN:
            self._protocol.send_binary(message)
            await self._flush()

    async def receive(self) -> bytes | str:
        """Return the next message.

        Raises:
            Closed: there is none any more.
        """
        from websockets.frames import Frame as WebSocketFrame
        from websockets.frames import Opcode

        parts: list[bytes] = []
        is_text = False
        while True:
            event = await self._next_event()
            if not isinstance(event, WebSocketFrame):
                continue
            if event.opcode is Opcode.CLOSE:
                raise self._closed()
            if event.opcode not in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
                continue  # pings are answered by the protocol
            is_text = is_text if parts else event.opcode is Opcode.TEXT
            parts.append(bytes(event.data))
            if event.fin:
                whole = b"".join(parts)
                return whole.decode("utf-8", "replace") if is_text else whole

    async def hang_up(self) -> None:
        """Say goodbye, without waiting for an answer."""
        from websockets.protocol import State

        if self._protocol.state is State.OPEN:
            self._protocol.send_close(1000)
            await self._flush()

    async def _next_event(self) -> Event:
        while not self._events:
            if self._ended:
                raise self._closed()
            data = await self._reader.read(65_536)
            if data:
                self._protocol.receive_data(data)
            else:
                self._protocol.receive_eof()
                self._ended = True
            await self._flush()
            self._events.extend(self._protocol.events_received())
        return self._events.popleft()

    def _closed(self) -> Closed:
        told = self._protocol.close_rcvd
        return Closed() if told is None else Closed(told.code, told.reason)

    async def _flush(self) -> None:
        for data in self._protocol.data_to_send():
            if data:
                self._writer.write(data)
        with suppress(ConnectionError):  # what was lost shows on reading
            await self._writer.drain()
