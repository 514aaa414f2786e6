"""`kubectl exec` and `attach`: a command with its streams, over SPDY or WebSocket.

One command, one connection, one session. What the session writes goes to the client as fast as it
reads; what the client writes goes to the session as fast as that takes it, and the connection is
not read further than that. A client that leaves ends the session at once; a session that breaks is
told to the client as a Status, never as output.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from gp4u.errors import Gp4uError
from gp4u.kubelet.streams.channels import Channels, Outcome, Wish
from gp4u.kubelet.streams.closing import close, drawn
from gp4u.kubelet.streams.command_spdy import VERSIONS, SpdyChannels
from gp4u.kubelet.streams.command_websocket import DIALECTS, WebSocketChannels
from gp4u.kubelet.streams.pipe import IDLE_S, LINGER_S, ClientLeft
from gp4u.kubelet.streams.spdy_wire import SPDY, accept_spdy
from gp4u.kubelet.streams.upgrade import Upgrade
from gp4u.kubelet.streams.websocket import accept_websocket
from gp4u.providers.session import Session

STREAMS_S: Final = 30.0
"""The client opens its streams within so long.

Source: kubernetes kubelet pkg/cri/streaming, DefaultStreamCreationTimeout, 1.32; checked 2026-11.
"""
SUBPROTOCOLS: Final = tuple(each for each in DIALECTS if each)


async def serve_exec(
    upgrade: Upgrade,
    open_session: Callable[[tuple[str, ...], bool], Awaitable[Session]],
    *,
    idle_s: float = IDLE_S,
) -> None:
    """Run a command; returns once the connection is closed.

    `open_session` is called with the command and whether there is a terminal, once the client is
    ready; a `Gp4uError` or `OSError` of its is told to the client. The session is closed here.
    """
    wish = Wish.of(upgrade.query)
    if not wish.command:
        await upgrade.refuse(400, "you must specify at least 1 command")
        return

    async def opened() -> Session:
        return await open_session(wish.command, wish.tty)

    await _serve(upgrade, wish, opened, ends_input=True, idle_s=idle_s)


async def serve_attach(
    upgrade: Upgrade,
    open_session: Callable[[bool], Awaitable[Session]],
    *,
    idle_s: float = IDLE_S,
) -> None:
    """Join a container's streams; returns once the connection is closed. See `serve_exec`."""
    wish = Wish.of(upgrade.query)

    async def opened() -> Session:
        return await open_session(wish.tty)

    await _serve(upgrade, wish, opened, ends_input=False, idle_s=idle_s)


async def _serve(
    upgrade: Upgrade,
    wish: Wish,
    opened: Callable[[], Awaitable[Session]],
    *,
    ends_input: bool,
    idle_s: float,
) -> None:
    """Agree on a protocol, run the command over it, and close the connection."""
    try:
        channels = await _accepted(upgrade, wish, idle_s)
        if channels is not None:
            await _RemoteCommand(channels, opened, ends_input=ends_input).run()
    except ClientLeft:
        pass
    finally:
        await upgrade.aclose()


async def _accepted(upgrade: Upgrade, wish: Wish, idle_s: float) -> Channels | None:
    """Answer the handshake; None if it was refused.

    Raises:
        ClientLeft: nobody is there any more.
    """
    if not wish.streams:
        await upgrade.refuse(400, "you must specify at least 1 of stdin, stdout, stderr")
    elif upgrade.wants("websocket"):
        protocol = await accept_websocket(upgrade, SUBPROTOCOLS)
        if protocol is not None:
            return WebSocketChannels(upgrade, wish, protocol, idle_s=idle_s)
    elif upgrade.wants(SPDY):
        version = await accept_spdy(upgrade, VERSIONS)
        if version is not None:
            return SpdyChannels(upgrade, wish, version, idle_s=idle_s)
    else:
        await upgrade.refuse(400, f"unable to upgrade: ask for {SPDY} or websocket")
    return None


class _RemoteCommand:
    """One command on one connection that has been accepted."""

    def __init__(
        self,
        channels: Channels,
        opened: Callable[[], Awaitable[Session]],
        *,
        ends_input: bool,
    ) -> None:
        """Take both ends; `ends_input`: the input ends at once where none is wished for."""
        self._channels, self._opened, self._ends_input = channels, opened, ends_input

    async def run(self) -> None:
        """Run it to its end, or until the client leaves."""
        try:
            async with asyncio.TaskGroup() as tasks:
                reading = tasks.create_task(self._channels.run())
                await self._command()
                await asyncio.sleep(LINGER_S)  # cut short by the client, who leaves
                reading.cancel()
        except* ClientLeft:
            pass

    async def _command(self) -> None:
        """Open the session, run it, tell the outcome, and close it whatever happens."""
        channels = self._channels
        try:
            async with asyncio.timeout(STREAMS_S):
                await channels.ready()
        except TimeoutError:
            why = f"the client did not open all streams within {STREAMS_S:.0f} s"
            await channels.finish(Outcome(why=why))
            return
        try:
            session = await self._opened()
        except (Gp4uError, OSError) as error:
            channels.stdin.discard()
            await channels.finish(Outcome(why=str(error)))
            return
        try:
            outcome = await self._conversation(session)
            channels.stdin.discard()
            await channels.finish(outcome)
        finally:
            await close(session)

    async def _conversation(self, session: Session) -> Outcome:
        """Copy both ways until the command ended."""
        async with asyncio.TaskGroup() as tasks:
            feeding = [
                tasks.create_task(self._feed(session)),
                tasks.create_task(self._resize(session)),
            ]
            outcome = await self._listen(session)
            for each in feeding:
                each.cancel()
        return outcome

    async def _listen(self, session: Session) -> Outcome:
        """Pass on what the command writes, and return how it ended."""
        try:
            async with drawn(session.output()) as output:
                async for stream, data in output:
                    await self._channels.write(stream, data)
            return Outcome(code=await session.exit_code())
        except (Gp4uError, OSError) as error:
            return Outcome(why=str(error))

    async def _feed(self, session: Session) -> None:
        """Pass on what the client writes; what a command that ended does not take is dropped."""
        stdin = self._channels.stdin
        try:
            if self._channels.wish.stdin:
                while data := await stdin.take():
                    await session.send(data)
                await session.end_input()
            elif self._ends_input:
                await session.end_input()
        except (Gp4uError, OSError):
            stdin.discard()

    async def _resize(self, session: Session) -> None:
        """Pass on the size of the terminal."""
        try:
            while self._channels.wish.tty:
                columns, rows = await self._channels.sizes.next()
                await session.resize(columns, rows)
        except (Gp4uError, OSError):
            return
