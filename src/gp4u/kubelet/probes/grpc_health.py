"""The gRPC health check as bytes: one unary call over HTTP/2, without I/O.

Hides HTTP/2 framing, gRPC's message prefix and the two protobuf messages of the health service,
each of one field. It exists because the whole of gRPC would be a large dependency for one question.
Connecting, deadlines and what the answer means for a container are left to others.

Source: grpc/grpc doc/health-checking.md and doc/PROTOCOL-HTTP2.md; checked 2026-11.
"""

from __future__ import annotations

import struct
from typing import Final

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions

SERVING: Final = 1
_STATES: Final = {0: "UNKNOWN", 1: "SERVING", 2: "NOT_SERVING", 3: "SERVICE_UNKNOWN"}
_UNIMPLEMENTED: Final = "12"
_MAX_REPLY: Final = 4096
_PATH: Final = "/grpc.health.v1.Health/Check"
_VARINT_BITS: Final = 64


class HealthCall:
    """One question and its answer.

    Send `begin()`, then feed every piece that comes to `receive` and send what it returns; `result`
    is None until the answer is there.
    """

    def __init__(self, service: str, *, authority: str, agent: str, tls: bool = False) -> None:
        self._http = h2.connection.H2Connection(
            config=h2.config.H2Configuration(client_side=True, header_encoding="utf-8")
        )
        self._service, self._authority, self._agent = service, authority, agent
        self._scheme = "https" if tls else "http"
        self._data = b""
        self._http_status = self._grpc_status = ""
        self.result: str | None = None
        """Empty: it is SERVING; else why that is not so."""

    def begin(self) -> bytes:
        """Return the first bytes to send."""
        http = self._http
        http.initiate_connection()
        stream = http.get_next_available_stream_id()
        http.send_headers(
            stream,
            [
                (":method", "POST"),
                (":scheme", self._scheme),
                (":path", _PATH),
                (":authority", self._authority),
                ("user-agent", self._agent),
                ("te", "trailers"),
                ("content-type", "application/grpc"),
            ],
        )
        asked = _text_field(1, self._service) if self._service else b""
        http.send_data(stream, b"\0" + struct.pack("!I", len(asked)) + asked, end_stream=True)
        return bytes(http.data_to_send())

    def receive(self, data: bytes) -> bytes:
        """Take what came; return what has to be sent for it. Empty data: the other side closed."""
        if not data:
            self._end("the connection was closed before the answer")
            return b""
        try:
            events = self._http.receive_data(data)
        except h2.exceptions.ProtocolError:
            self._end("the answer is not HTTP/2")
            return b""
        for event in events:
            self._take(event)
        return bytes(self._http.data_to_send())

    def _take(self, event: h2.events.Event) -> None:
        match event:
            case h2.events.ResponseReceived() | h2.events.TrailersReceived():
                headers = {_text(name): _text(value) for name, value in event.headers or ()}
                self._http_status = headers.get(":status", self._http_status)
                self._grpc_status = headers.get("grpc-status", self._grpc_status)
            case h2.events.DataReceived():
                self._data += event.data or b""
                self._http.acknowledge_received_data(
                    event.flow_controlled_length or 0, event.stream_id or 1
                )
                if len(self._data) > _MAX_REPLY:
                    self._end("the answer is too long")
            case h2.events.StreamEnded():
                self._end(self._judged())
            case h2.events.StreamReset():
                self._end("the call was reset")
            case h2.events.ConnectionTerminated():
                self._end("the connection was given up")

    def _end(self, problem: str) -> None:
        if self.result is None:
            self.result = problem

    def _judged(self) -> str:
        if self._http_status != "200":
            return f"answered HTTP {self._http_status or 'nothing'}"
        if self._grpc_status == _UNIMPLEMENTED:
            return "the server does not have the health service"
        if self._grpc_status != "0":
            return f"gRPC status {self._grpc_status or 'missing'}"
        state = _serving_state(self._data)
        if state is None:
            return "the answer is no health reply"
        return "" if state == SERVING else f"service is {_STATES.get(state, state)}"


def _serving_state(data: bytes) -> int | None:
    """Return the status field of one uncompressed reply; an absent field is 0."""
    if len(data) < 5 or data[0] != 0 or struct.unpack("!I", data[1:5])[0] != len(data) - 5:
        return None
    at, state = 5, 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(data, at)
            if key >> 3 == 1:
                state = value
        elif kind == 2:  # a field of a later version: passed over
            length, at = _varint(data, at)
            at += length
        else:
            return None
        if at < 0:
            return None
    return state if at == len(data) else None


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Return a number and where the next begins; -1 where the bytes end too early."""
    value = 0
    for shift in range(0, _VARINT_BITS + 6, 7):
        if at < 0 or at >= len(data):
            return 0, -1
        value |= (data[at] & 0x7F) << shift
        at += 1
        if data[at - 1] < 0x80:
            return value, at
    return 0, -1


def _text_field(number: int, text: str) -> bytes:
    raw = text.encode()
    length, size = bytearray(), len(raw)
    while size > 0x7F:
        length.append(size & 0x7F | 0x80)
        size >>= 7
    length.append(size)
    return bytes([number << 3 | 2]) + bytes(length) + raw


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode(errors="replace")
