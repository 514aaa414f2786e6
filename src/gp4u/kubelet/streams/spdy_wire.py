"""SPDY on a connection: the handshake, and the loop that reads it.

Source: kubernetes apimachinery pkg/util/httpstream (Handshake) and its spdy package, 1.32; checked
2026-11.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, NoReturn

from gp4u.kubelet.streams.pipe import ClientLeft, Flow
from gp4u.kubelet.streams.spdy import Broken, Event, SpdyConnection
from gp4u.kubelet.streams.upgrade import Upgrade

SPDY: Final = "SPDY/3.1"
VERSION_HEADER: Final = "X-Stream-Protocol-Version"
ACCEPTED_HEADER: Final = "X-Accepted-Stream-Protocol-Versions"


async def accept_spdy(upgrade: Upgrade, supported: Sequence[str]) -> str | None:
    """Answer the handshake: the protocol inside, or None if it was refused.

    The first of the client's words that is supported is taken.
    """
    offered = upgrade.words(VERSION_HEADER)
    if not offered:
        await upgrade.refuse(400, f"unable to upgrade: the header {VERSION_HEADER} is missing")
        return None
    chosen = next((each for each in offered if each in supported), None)
    if chosen is None:
        known = ", ".join(supported)
        await upgrade.refuse(
            403,
            f"unable to upgrade: no common stream protocol, supported are {known}",
            [(ACCEPTED_HEADER, each) for each in supported],
        )
        return None
    await upgrade.accept([("Connection", "Upgrade"), ("Upgrade", SPDY), (VERSION_HEADER, chosen)])
    return chosen


class SpdyWire:
    """A connection that speaks SPDY: what comes goes to `on`, which answers but does not wait."""

    def __init__(self, flow: Flow, *, most_streams: int) -> None:
        self.spdy = SpdyConnection(most_streams=most_streams)
        self._flow = flow

    async def run(self, on: Callable[[Event], None]) -> NoReturn:
        """Read for as long as there is a connection.

        Raises:
            ClientLeft: it ended, or what came is not SPDY.
        """
        while True:
            data = await self._flow.read()
            for event in self.spdy.receive(data):
                if isinstance(event, Broken):
                    self.answer(self.spdy.go_away())
                    raise ClientLeft(f"not SPDY: {event.why}")
                on(event)
            self.answer(self.spdy.answers())

    def answer(self, frames: bytes) -> None:
        """Send frames that cannot wait."""
        self._flow.answer(frames)

    async def send(self, frames: bytes) -> None:
        """Send frames; returns once there is room for more.

        Raises:
            ClientLeft: the connection ended.
        """
        if frames:
            await self._flow.send(frames)
