"""Port-forward over WebSocket channels, for clients without SPDY: a fixed set of ports.

Each port in the query has two channels, one for bytes and one for what went wrong, and one
connection, opened at the start. Nothing can be half-closed here. Once every connection has ended,
so does the WebSocket.

Source: kubernetes kubelet pkg/cri/streaming/portforward/websocket.go, 1.32; checked 2026-11.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Mapping, Sequence
from typing import Final, NoReturn

from gp4u.errors import Gp4uError
from gp4u.kubelet.streams.closing import close
from gp4u.kubelet.streams.command_websocket import Messages
from gp4u.kubelet.streams.forward_spdy import ROOM_BYTES
from gp4u.kubelet.streams.forwarding import Connect, copy, port_of
from gp4u.kubelet.streams.intake import Intake, Room
from gp4u.kubelet.streams.pipe import IDLE_S, LINGER_S, ClientLeft, Flow, Pipe

SUBPROTOCOLS: Final = ("v4.channel.k8s.io", "v4.base64.channel.k8s.io")
MOST_PORTS: Final = 64


def ports_of(query: Mapping[str, Sequence[str]]) -> tuple[int, ...]:
    """Return the ports that `port=` asks for, repeated or with commas.

    Raises:
        ValueError: there is none, one is not a port, or there are too many.
    """
    asked = [each for value in query.get("port", ()) for each in value.split(",")]
    if not asked:
        raise ValueError('the query parameter "port" is required')
    if len(asked) > MOST_PORTS:
        raise ValueError(f"{len(asked)} ports are too many: at most {MOST_PORTS}")
    return tuple(port_of(each.strip()) for each in asked)


class WebSocketForward:
    """The ports of one connection; that of index i has channels 2i and 2i+1."""

    def __init__(
        self,
        pipe: Pipe,
        protocol: str,
        ports: Sequence[int],
        connect: Connect,
        *,
        idle_s: float = IDLE_S,
    ) -> None:
        room = Room(ROOM_BYTES)
        self._flow = Flow(pipe, room, idle_s=idle_s)
        self._messages = Messages(is_base64="base64" in protocol)
        self._ports, self._connect = ports, connect
        self._intakes = [Intake(room) for _ in ports]

    async def run(self) -> None:
        """Serve the ports until all connections ended, or the client leaves."""
        try:
            async with asyncio.TaskGroup() as tasks:
                reading = tasks.create_task(self._read())
                async with asyncio.TaskGroup() as connections:
                    for index in range(len(self._ports)):
                        connections.create_task(self._serve(index))
                await self._flow.send(self._messages.websocket.close())
                await asyncio.sleep(LINGER_S)  # cut short by the client, who leaves
                reading.cancel()
        except* ClientLeft:
            pass

    async def _read(self) -> NoReturn:
        while not self._messages.websocket.closed:
            for channel, content in self._messages.received(await self._flow.read()):
                if channel % 2 == 0 and 0 <= channel // 2 < len(self._intakes):
                    self._intakes[channel // 2].put(content)
            self._flow.answer(self._messages.websocket.answers())
        raise ClientLeft("the client closed the WebSocket")

    async def _serve(self, index: int) -> None:
        """Carry the connection to one port, and tell what went wrong with it."""
        port, intake = self._ports[index], self._intakes[index]
        for channel in (2 * index, 2 * index + 1):
            await self._send(channel, struct.pack("<H", port))
        try:
            link = await self._connect(port)
        except (Gp4uError, OSError) as error:
            intake.discard()
            await self._send(2 * index + 1, str(error).encode())
            return
        try:
            why = await copy(
                link, intake, lambda data: self._send(2 * index, data), lambda: _end(intake)
            )
        finally:
            await close(link)
        intake.discard()
        if why:
            await self._send(2 * index + 1, why.encode())

    async def _send(self, channel: int, data: bytes) -> None:
        await self._flow.send(self._messages.packed(channel, data))


async def _end(intake: Intake) -> None:
    """Take no more of what the client sends: it cannot be told that the port is done."""
    intake.discard()
    intake.end()
