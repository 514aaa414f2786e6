"""The streams of a remote command over WebSocket: the first byte of each message says which.

Source: kubernetes apimachinery pkg/util/remotecommand and pkg/util/httpstream/wsstream, 1.32;
checked 2026-11.
"""

from __future__ import annotations

import base64
import binascii
from enum import IntEnum
from typing import Final, NoReturn

from msgspec import Struct

from gp4u.kubelet.streams.channels import Channels, Outcome, Wish
from gp4u.kubelet.streams.pipe import IDLE_S, ClientLeft, Pipe
from gp4u.kubelet.streams.websocket import PIECE_BYTES, WebSocketConnection
from gp4u.providers.session import Stream


class Channel(IntEnum):
    """What the first byte of a message means."""

    STDIN = 0
    STDOUT = 1
    STDERR = 2
    ERROR = 3
    RESIZE = 4
    CLOSE = 255
    """v5 only: the byte after it names a channel on which nothing more will come."""


class Dialect(Struct, frozen=True, kw_only=True):
    """What a subprotocol means."""

    as_json: bool
    base64: bool = False
    half_close: bool = False


DIALECTS: Final = {
    "v5.channel.k8s.io": Dialect(as_json=True, half_close=True),
    "v4.channel.k8s.io": Dialect(as_json=True),
    "v4.base64.channel.k8s.io": Dialect(as_json=True, base64=True),
    "channel.k8s.io": Dialect(as_json=False),
    "base64.channel.k8s.io": Dialect(as_json=False, base64=True),
    "": Dialect(as_json=False),
}


class Messages:
    """Messages of numbered channels, as their subprotocol writes them."""

    def __init__(self, *, is_base64: bool = False) -> None:
        self.websocket = WebSocketConnection()
        self._base64 = is_base64

    def packed(self, channel: int, data: bytes) -> bytes:
        """Return the frames that carry `data` on a channel; one, where there is no data."""
        frames = []
        for at in range(0, len(data) or 1, PIECE_BYTES):
            piece = data[at : at + PIECE_BYTES]
            if self._base64:
                piece = bytes((ord("0") + channel,)) + base64.b64encode(piece)
            else:
                piece = bytes((channel,)) + piece
            frames.append(self.websocket.message(piece, text=self._base64))
        return b"".join(frames)

    def received(self, data: bytes) -> list[tuple[int, bytes]]:
        """Return channel and content of each message that is whole with these bytes."""
        found = []
        for message in self.websocket.receive(data):
            if not message:
                continue
            channel, content = message[0], message[1:]
            if self._base64:
                channel -= ord("0")
                try:
                    content = base64.b64decode(content, validate=True)
                except binascii.Error:
                    continue
            found.append((channel, content))
        return found


class WebSocketChannels(Channels):
    """Every channel is there from the beginning."""

    def __init__(self, pipe: Pipe, wish: Wish, protocol: str, *, idle_s: float = IDLE_S) -> None:
        super().__init__(pipe, wish, idle_s=idle_s)
        self._dialect = DIALECTS[protocol]
        self._messages = Messages(is_base64=self._dialect.base64)
        self._outputs = {Stream.OUT: wish.stdout, Stream.ERR: wish.stderr}

    async def run(self) -> NoReturn:
        while not self._messages.websocket.closed:
            for channel, content in self._messages.received(await self._flow.read()):
                self._on(channel, content)
            self._flow.answer(self._messages.websocket.answers())
        raise ClientLeft("the client closed the WebSocket")

    async def ready(self) -> None:
        # An empty message tells clients that the command is there; it is the first they wait for.
        first = next((each for each, wished in self._outputs.items() if wished), Channel.ERROR)
        await self._flow.send(self._messages.packed(first, b""))

    async def write(self, stream: Stream, data: bytes) -> None:
        if data and self._outputs[stream]:
            await self._flow.send(self._messages.packed(stream, data))

    async def finish(self, outcome: Outcome) -> None:
        told = outcome.told(as_json=self._dialect.as_json)
        frames = self._messages.packed(Channel.ERROR, told) if told else b""
        await self._flow.send(frames + self._messages.websocket.close())

    def _on(self, channel: int, content: bytes) -> None:
        match channel:
            case Channel.STDIN if self.wish.stdin:
                self.stdin.put(content)
            case Channel.RESIZE:
                self.sizes.put(content)
            case Channel.CLOSE if self._dialect.half_close and content[:1] == b"\0":
                self.stdin.end()
