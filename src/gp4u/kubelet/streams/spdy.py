"""SPDY/3.1 as Kubernetes speaks it, without the network: bytes to events, calls to bytes.

An API server up to 1.35 talks to its nodes in no other protocol when somebody types `exec`,
`attach` or `port-forward`. It is a subset: streams with a few headers, PING, no flow control.
Nothing here waits or keeps data: a data frame is handed on piece by piece as it comes, so a frame
of 16 MiB costs no more memory than one of 16 bytes. Whoever reads the network bounds what is kept,
by reading no further.

What the protocol owes the other side for what came, such as the echo of a PING, is in `answers`.

Source: SPDY Protocol, draft 3.1 (chromium.org), and moby/spdystream, which speaks it at the other
end: it ignores WINDOW_UPDATE, drops data of a stream that was not replied to, and ends the
connection at a frame of unknown type; checked 2026-11.
"""

from __future__ import annotations

import struct
from enum import IntEnum, IntFlag
from typing import Final

from msgspec import Struct

from gp4u.kubelet.streams.spdy_headers import BadBlock, HeaderReader, Headers, HeaderWriter

VERSION: Final = 3
HEAD_BYTES: Final = 8
PIECE_BYTES: Final = 32 * 1024
"""The payload of the data frames that we send."""
MOST_CONTROL_BYTES: Final = 32 * 1024
"""The payload of a control frame that we read; Kubernetes sends less than 1 KiB."""
MOST_STREAMS: Final = 1024
"""Open at once on one connection; a forwarded connection takes two."""
MOST_STREAM_ID: Final = 0x7FFFFFFF


class Role(IntEnum):
    """Which end we are; streams and PINGs that a client begins are odd, a server's even."""

    CLIENT = 1
    SERVER = 0


class Kind(IntEnum):
    """Control frames."""

    SYN_STREAM = 1
    SYN_REPLY = 2
    RST_STREAM = 3
    SETTINGS = 4
    PING = 6
    GOAWAY = 7
    HEADERS = 8
    WINDOW_UPDATE = 9


class Code(IntEnum):
    """Why a stream was reset."""

    PROTOCOL_ERROR = 1
    INVALID_STREAM = 2
    REFUSED_STREAM = 3
    CANCEL = 5
    INTERNAL_ERROR = 6


class Opened(Struct, frozen=True):
    """The other side opened a stream; it waits for `reply` or `reset`."""

    stream: int
    headers: Headers


class Replied(Struct, frozen=True):
    """The other side accepted a stream of ours, or sent more headers for one."""

    stream: int
    headers: Headers


class Data(Struct, frozen=True):
    """Bytes of a stream; never empty. A frame can come as several of these."""

    stream: int
    data: bytes


class Ended(Struct, frozen=True):
    """Nothing more will come on a stream; we may still send."""

    stream: int


class Reset(Struct, frozen=True):
    """The other side gave a stream up: nothing more goes either way."""

    stream: int
    code: int


class Ponged(Struct, frozen=True):
    """Our PING came back."""

    number: int


class WentAway(Struct, frozen=True):
    """The other side opens no more streams, and takes none."""

    last: int


class Broken(Struct, frozen=True):
    """What came is not the protocol. The connection can only be closed; no event follows."""

    why: str


Event = Opened | Replied | Data | Ended | Reset | Ponged | WentAway | Broken


class _Side(IntFlag):
    """Which halves of a stream are still open."""

    IN = 1
    OUT = 2


class SpdyConnection:
    """One end of a connection. What is sent on a stream that is over is dropped: no bytes."""

    def __init__(self, role: Role = Role.SERVER, *, most_streams: int = MOST_STREAMS) -> None:
        """Begin; `most_streams` of the other side may be open at once, more are refused."""
        self._role, self._most_streams = role, most_streams
        self._reader, self._writer = HeaderReader(), HeaderWriter()
        self._open: dict[int, _Side] = {}
        self._kept = bytearray()  # a frame that has not come in full, but for data
        self._data_stream = 0  # of the data frame that is being received,
        self._data_left = 0  # of which so many bytes are missing,
        self._data_ends = False  # and whether the stream ends with it
        self._last_theirs = 0
        self._next_ours = 1 if role is Role.CLIENT else 2
        self._answers = bytearray()
        self._broken = False

    @property
    def streams(self) -> int:
        """How many streams are open, in one half at least."""
        return len(self._open)

    def is_open(self, stream: int) -> bool:
        """Say whether we may still send on a stream."""
        return bool(self._open.get(stream, _Side(0)) & _Side.OUT)

    def answers(self) -> bytes:
        """Return what is owed to the other side for what came: send it, whatever else waits.

        It is no larger than what was received since the last time.
        """
        owed = bytes(self._answers)
        self._answers.clear()
        return owed

    # What we send

    def open(self, headers: Headers, *, ends: bool = False) -> tuple[int, bytes]:
        """Open a stream: its number, and the bytes to send; `ends`: nothing will come from us."""
        stream, self._next_ours = self._next_ours, self._next_ours + 2
        self._open[stream] = _Side.IN if ends else _Side.IN | _Side.OUT
        body = struct.pack(">IIH", stream, 0, 0) + self._writer.block(headers)
        return stream, _control(Kind.SYN_STREAM, body, flags=int(ends))

    def reply(self, stream: int, headers: Headers | None = None) -> bytes:
        """Accept a stream of the other side, which waits for that before it sends."""
        if stream not in self._open:
            return b""
        return _control(
            Kind.SYN_REPLY, struct.pack(">I", stream) + self._writer.block(headers or {})
        )

    def send(self, stream: int, data: bytes) -> bytes:
        """Return the frames that carry `data`."""
        if not self.is_open(stream):
            return b""
        if len(data) <= PIECE_BYTES:
            return struct.pack(">II", stream, len(data)) + data if data else b""
        view = memoryview(data)
        parts: list[bytes | memoryview] = []
        for at in range(0, len(data), PIECE_BYTES):
            piece = view[at : at + PIECE_BYTES]
            parts += [struct.pack(">II", stream, len(piece)), piece]
        return b"".join(parts)

    def end(self, stream: int) -> bytes:
        """Say that nothing more will come from us on a stream."""
        if not self.is_open(stream):
            return b""
        self._close(stream, _Side.OUT)
        return struct.pack(">II", stream, 1 << 24)

    def reset(self, stream: int, code: Code) -> bytes:
        """Give a stream up."""
        if self._open.pop(stream, None) is None:
            return b""
        return _reset(stream, code)

    def ping(self, number: int) -> bytes:
        """Ask for a sign of life."""
        return _control(Kind.PING, struct.pack(">I", number))

    def go_away(self) -> bytes:
        """Say that we take no more streams, and whether that is for what came."""
        return _control(Kind.GOAWAY, struct.pack(">II", self._last_theirs, int(self._broken)))

    # What comes

    def receive(self, data: bytes) -> list[Event]:
        """Return what these bytes say, together with those before them, in order.

        The last event is `Broken` where they say nothing; from then on there are none.
        """
        events: list[Event] = []
        if self._broken:
            return events
        try:
            self._receive(data, events)
        except (_Nonsense, BadBlock) as error:
            self._broken = True
            self._kept.clear()
            self._open.clear()
            events.append(Broken(str(error)))
        return events

    def _receive(self, data: bytes, events: list[Event]) -> None:
        at = 0
        while at < len(data):
            if self._data_left:
                at = self._take_data(data, at, events)
            else:
                at = self._take_frame(data, at, events)

    def _take_data(self, data: bytes, at: int, events: list[Event]) -> int:
        """Hand on what came of the data frame that is being received; return where it ends."""
        end = min(len(data), at + self._data_left)
        self._data_left -= end - at
        stream = self._data_stream
        if self._open.get(stream, _Side(0)) & _Side.IN:
            events.append(Data(stream, data[at:end]))
            if not self._data_left and self._data_ends:
                self._ended(stream, events)
        return end

    def _take_frame(self, data: bytes, at: int, events: list[Event]) -> int:
        """Take bytes of a head or a control frame, and act once it is whole; return how far."""
        kept = self._kept
        if len(kept) < HEAD_BYTES:
            end = min(len(data), at + HEAD_BYTES - len(kept))
            kept += data[at:end]
            if len(kept) < HEAD_BYTES:
                return end
            at = end
        first, second = struct.unpack_from(">II", kept)
        length: int = second & 0xFFFFFF
        if not first >> 31:
            kept.clear()
            self._begin_data(first, length, bool(second >> 24 & 1), events)
            return at
        if length > MOST_CONTROL_BYTES:
            raise _Nonsense(f"a control frame of {length} bytes")
        end = min(len(data), at + HEAD_BYTES + length - len(kept))
        kept += data[at:end]
        if len(kept) == HEAD_BYTES + length:
            body = bytes(kept[HEAD_BYTES:])
            kept.clear()
            self._act(first, second >> 24, body, events)
        return end

    def _begin_data(self, stream: int, length: int, ends: bool, events: list[Event]) -> None:
        self._data_stream, self._data_left, self._data_ends = stream, length, ends
        if not length and ends and self._open.get(stream, _Side(0)) & _Side.IN:
            self._ended(stream, events)

    def _act(self, first: int, flags: int, body: bytes, events: list[Event]) -> None:
        """Act on a whole control frame."""
        version, kind = first >> 16 & 0x7FFF, first & 0xFFFF
        if version != VERSION:
            raise _Nonsense(f"a frame of SPDY version {version}")
        match kind:
            case Kind.SYN_STREAM:
                self._opened(flags, body, events)
            case Kind.SYN_REPLY | Kind.HEADERS:
                stream = _number(body, 0) & MOST_STREAM_ID
                headers = self._reader.headers(body[4:])
                if self._open.get(stream, _Side(0)) & _Side.IN:
                    events.append(Replied(stream, headers))
                    if flags & 1:
                        self._ended(stream, events)
            case Kind.RST_STREAM:
                stream = _number(body, 0) & MOST_STREAM_ID
                code = _number(body, 4)
                if self._open.pop(stream, None) is not None:
                    events.append(Reset(stream, code))
            case Kind.PING:
                number = _number(body, 0)
                if number % 2 == self._role.value:
                    events.append(Ponged(number))
                else:
                    self._answers += self.ping(number)
            case Kind.GOAWAY:
                events.append(WentAway(_number(body, 0) & MOST_STREAM_ID))
            case Kind.SETTINGS | Kind.WINDOW_UPDATE:
                pass
            case _:
                raise _Nonsense(f"a frame of unknown type {kind}")

    def _opened(self, flags: int, body: bytes, events: list[Event]) -> None:
        """Take a new stream, or reset it: its headers are read anyway, for those that follow."""
        stream = _number(body, 0) & MOST_STREAM_ID
        if len(body) < 10:
            raise _Nonsense("a SYN_STREAM that is cut short")
        headers = self._reader.headers(body[10:])
        if stream <= self._last_theirs or stream % 2 == self._role.value:
            self._open.pop(stream, None)
            self._answers += _reset(stream, Code.PROTOCOL_ERROR)
            return
        self._last_theirs = stream
        if len(self._open) >= self._most_streams:
            self._answers += _reset(stream, Code.REFUSED_STREAM)
            return
        self._open[stream] = _Side.IN | _Side.OUT
        events.append(Opened(stream, headers))
        if flags & 2:
            self._close(stream, _Side.OUT)
        if flags & 1:
            self._ended(stream, events)

    def _ended(self, stream: int, events: list[Event]) -> None:
        self._close(stream, _Side.IN)
        events.append(Ended(stream))

    def _close(self, stream: int, side: _Side) -> None:
        left = self._open[stream] & ~side
        if left:
            self._open[stream] = left
        else:
            del self._open[stream]


class _Nonsense(Exception):
    """What came is not the protocol."""


def _number(body: bytes, at: int) -> int:
    if len(body) < at + 4:
        raise _Nonsense("a control frame that is cut short")
    (value,) = struct.unpack_from(">I", body, at)
    return int(value)


def _control(kind: Kind, body: bytes, *, flags: int = 0) -> bytes:
    return struct.pack(">HHI", 0x8000 | VERSION, kind, flags << 24 | len(body)) + body


def _reset(stream: int, code: Code) -> bytes:
    return _control(Kind.RST_STREAM, struct.pack(">II", stream, code))
