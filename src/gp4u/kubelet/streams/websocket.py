"""WebSocket for the kubelet's streams: the handshake, messages, and a pipe through them.

Frames are `websockets`' business, without its network. Compression is not offered: a message that
unpacks to a thousand times its size would have to be bounded somewhere. A message is taken whole,
since its first byte says which stream it belongs to, so its size is bounded.

Source: RFC 6455; kubernetes apimachinery pkg/util/httpstream/wsstream, 1.32; checked 2026-11.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final

from websockets.datastructures import Headers
from websockets.frames import CloseCode, Frame, Opcode
from websockets.http11 import Request
from websockets.protocol import OPEN, Protocol, Side
from websockets.server import ServerProtocol

from gp4u.kubelet.streams.pipe import MOST_OWED_BYTES, ClientLeft
from gp4u.kubelet.streams.upgrade import Upgrade

PROTOCOL: Final = "Sec-WebSocket-Protocol"
MOST_MESSAGE_BYTES: Final = 1024 * 1024
PIECE_BYTES: Final = 32 * 1024
"""The payload of the messages that we send."""
QUIET: Final = logging.getLogger("gp4u.websocket")
"""`websockets` writes a line about each connection; ours are told of by the HTTP server."""
QUIET.setLevel(logging.CRITICAL)


async def accept_websocket(upgrade: Upgrade, supported: Sequence[str]) -> str | None:
    """Answer the handshake: the subprotocol, empty where none was asked for, or None if refused.

    The first of the client's words that is supported is taken.
    """
    offered = upgrade.words(PROTOCOL)
    chosen = next((each for each in offered if each in supported), "")
    if offered and not chosen:
        known = ", ".join(supported)
        await upgrade.refuse(403, f"no common subprotocol: supported are {known}")
        return None
    # The tunnel's name has a slash, which RFC 6455 does not allow: the word is our own to choose.
    others = [(name, value) for name, value in upgrade.headers if name != PROTOCOL.lower()]
    reply = ServerProtocol(logger=QUIET).accept(
        Request(upgrade.target, Headers(others), upgrade.method)
    )
    if reply.status_code != 101:
        text = (reply.body or b"").decode().strip()
        await upgrade.refuse(reply.status_code, text)
        return None
    await upgrade.accept([*reply.headers.raw_items(), *([(PROTOCOL, chosen)] if chosen else [])])
    return chosen


class WebSocketConnection:
    """One open connection, without the network: bytes to messages, messages to bytes."""

    def __init__(self) -> None:
        self._protocol = Protocol(
            Side.SERVER, state=OPEN, max_size=MOST_MESSAGE_BYTES, logger=QUIET
        )
        self._parts: list[bytes] = []

    @property
    def closed(self) -> bool:
        """Whether the other side closed it, or broke it; nothing more will come."""
        return self._protocol.close_rcvd is not None or self._protocol.parser_exc is not None

    def receive(self, data: bytes) -> list[bytes]:
        """Return the messages that are whole with these bytes; text as its UTF-8."""
        messages = []
        self._protocol.receive_data(data)
        for event in self._protocol.events_received():
            if not isinstance(event, Frame):
                continue
            if event.opcode in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
                if event.data:  # the library bounds the bytes of a message, not its fragments
                    self._parts.append(bytes(event.data))
                if event.fin:
                    messages.append(b"".join(self._parts))
                    self._parts.clear()
        return messages

    def answers(self) -> bytes:
        """Return what is owed to the other side for what came: pongs, the echo of a close."""
        return b"".join(self._protocol.data_to_send())

    def message(self, data: bytes, *, text: bool = False) -> bytes:
        """Return the frame of a message; nothing once the connection is closed."""
        if self._protocol.state is not OPEN:
            return b""
        (self._protocol.send_text if text else self._protocol.send_binary)(data)
        return self.answers()

    def close(self, code: CloseCode = CloseCode.NORMAL_CLOSURE) -> bytes:
        """Return the frame that ends it; nothing more can be sent."""
        if self._protocol.state is not OPEN:
            return b""
        self._protocol.send_close(code)
        return self.answers()


class WebSocketPipe:
    """Bytes both ways through the messages of a WebSocket: a tunnel."""

    def __init__(self, upgrade: Upgrade) -> None:
        self._upgrade = upgrade
        self._websocket = WebSocketConnection()
        self._owed = 0

    async def read(self) -> bytes:
        """Return what came, never nothing.

        Raises:
            ClientLeft: the other end is gone.
        """
        while True:
            if self._websocket.closed:
                raise ClientLeft("the client closed the WebSocket")
            messages = self._websocket.receive(await self._upgrade.read())
            answers = self._websocket.answers()
            self._upgrade.write(answers)
            self._owed += len(answers)
            if self._owed > MOST_OWED_BYTES:
                await self.drain()
            if any(messages):
                return b"".join(messages)

    def write(self, data: bytes) -> None:
        """Send, without waiting."""
        for at in range(0, len(data), PIECE_BYTES):
            self._upgrade.write(self._websocket.message(data[at : at + PIECE_BYTES]))

    async def drain(self) -> None:
        """Return once there is room for more.

        Raises:
            ClientLeft: the other end is gone.
        """
        await self._upgrade.drain()
        self._owed = 0

    def left(self) -> bool:
        """Say whether the other end is known to be gone."""
        return self._upgrade.left()

    def close(self) -> None:
        """Say that nothing more will be sent."""
        self._upgrade.write(self._websocket.close())
