"""Port-forward over SPDY: two streams for each forwarded connection, many pairs at once.

Source: kubernetes kubelet pkg/cri/streaming/portforward and client-go tools/portforward, 1.32;
checked 2026-11.
"""

from __future__ import annotations

import asyncio
from typing import Final, Literal

from gp4u.errors import Gp4uError
from gp4u.kubelet.streams.closing import close
from gp4u.kubelet.streams.forwarding import Connect, copy, port_of
from gp4u.kubelet.streams.intake import Intake, Room
from gp4u.kubelet.streams.pipe import IDLE_S, ClientLeft, Flow, Pipe
from gp4u.kubelet.streams.spdy import Code, Data, Ended, Event, Opened, Reset
from gp4u.kubelet.streams.spdy_headers import Headers
from gp4u.kubelet.streams.spdy_wire import SpdyWire

PAIR_S: Final = 30.0
"""The second stream of a pair comes within so long after the first."""
MOST_STREAMS: Final = 1024
ROOM_BYTES: Final = 4 * 1024 * 1024
"""What all pairs of one connection together may hold of what the client sent."""

Part = Literal["error", "data"]


class _Pair:
    """One forwarded connection, from the first of its streams to its end."""

    def __init__(self, key: str, port: int, room: Room) -> None:
        self.key, self.port = key, port
        self.streams: dict[Part, int] = {}
        self.complete = asyncio.Event()
        self.intake = Intake(room)
        self.task: asyncio.Task[None] | None = None


class SpdyForward:
    """The pairs of one connection."""

    def __init__(self, pipe: Pipe, connect: Connect, *, idle_s: float = IDLE_S) -> None:
        self._connect = connect
        self._room = Room(ROOM_BYTES)
        self._wire = SpdyWire(Flow(pipe, self._room, idle_s=idle_s), most_streams=MOST_STREAMS)
        self._pairs: dict[str, _Pair] = {}
        self._parts: dict[int, tuple[_Pair, Part]] = {}
        self._tasks = asyncio.TaskGroup()

    async def run(self) -> None:
        """Serve pairs until the client leaves."""
        try:
            async with self._tasks:
                await self._wire.run(self._on)
        except* ClientLeft:
            pass

    def _on(self, event: Event) -> None:
        match event:
            case Opened(stream, headers):
                self._opened(stream, headers)
            case Data(stream, data):
                if (of := self._parts.get(stream)) and of[1] == "data":
                    of[0].intake.put(data)
            case Ended(stream):
                if (of := self._parts.get(stream)) and of[1] == "data":
                    of[0].intake.end()
            case Reset(stream, _):
                if (of := self._parts.get(stream)) and of[1] == "data" and of[0].task:
                    of[0].task.cancel()

    def _opened(self, stream: int, headers: Headers) -> None:
        """Take a stream into its pair, or refuse it."""
        spdy = self._wire.spdy
        try:
            part = _part(headers)
            port = port_of(_first(headers, "port"))
        except ValueError:
            self._wire.answer(spdy.reset(stream, Code.PROTOCOL_ERROR))
            return
        key = _key(headers, part, stream)
        pair = self._pairs.get(key)
        if pair is None:
            pair = self._pairs[key] = _Pair(key, port, self._room)
            pair.task = self._tasks.create_task(self._serve(pair))
            # Not in the task itself: one that is cancelled before its first step runs no `finally`.
            pair.task.add_done_callback(lambda _: self._forget(pair))
        elif part in pair.streams or pair.port != port:
            self._wire.answer(spdy.reset(stream, Code.PROTOCOL_ERROR))
            return
        pair.streams[part] = stream
        self._parts[stream] = pair, part
        self._wire.answer(spdy.reply(stream))
        if len(pair.streams) == 2:
            pair.complete.set()

    async def _serve(self, pair: _Pair) -> None:
        """Carry one connection from its first stream to its end."""
        why = await self._carry(pair)
        if why and "error" in pair.streams:
            error = pair.streams["error"]
            await self._wire.send(self._wire.spdy.send(error, why.encode()))

    async def _carry(self, pair: _Pair) -> str:
        """Connect and copy; return what the client is to be told in words, if anything."""
        try:
            async with asyncio.timeout(PAIR_S):
                await pair.complete.wait()
        except TimeoutError:
            return f"the second stream for port {pair.port} did not come within {PAIR_S:.0f} s"
        try:
            link = await self._connect(pair.port)
        except (Gp4uError, OSError) as error:
            return str(error) or f"port {pair.port} cannot be reached"
        data = pair.streams["data"]
        spdy, wire = self._wire.spdy, self._wire
        try:
            # A connection that breaks later is reset by `_forget`, without words: with them the
            # client would drop all its other connections.
            await copy(
                link,
                pair.intake,
                lambda octets: wire.send(spdy.send(data, octets)),
                lambda: wire.send(spdy.end(data)),
            )
        finally:
            await close(link)
        return ""

    def _forget(self, pair: _Pair) -> None:
        """End both streams, and keep nothing of the pair."""
        # The client reads the error stream to its end before it lets go of the connection.
        spdy = self._wire.spdy
        pair.intake.discard()
        del self._pairs[pair.key]
        for part, stream in pair.streams.items():
            del self._parts[stream]
            if part == "error":
                self._wire.answer(spdy.end(stream))
            self._wire.answer(spdy.reset(stream, Code.CANCEL) if part == "data" else b"")


def _first(headers: Headers, name: str) -> str:
    return headers.get(name, ("",))[0]


def _part(headers: Headers) -> Part:
    """Return which half of a pair a stream wants to be.

    Raises:
        ValueError: none.
    """
    match _first(headers, "streamtype"):
        case "error":
            return "error"
        case "data":
            return "data"
    raise ValueError("neither error nor data")


def _key(headers: Headers, part: Part, stream: int) -> str:
    """Return what both streams of a pair have in common; old clients just open data after error."""
    request = _first(headers, "requestid")
    return f"request {request}" if request else f"stream {stream - 2 * (part == 'data')}"
