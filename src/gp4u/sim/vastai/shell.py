"""The SSH server that Vast.ai puts into an instance with an `ssh` run type.

Hides the library, who is let in, and how a session becomes a command in the instance. The server
runs in the simulator, one for each instance, and is reached at a port of its own as well as under
the name of the market's proxy. It needs the library `asyncssh`; without it, nobody listens.

Source: guides on instances, connecting by SSH, of the vendor's documentation; RFC 4254; checked
2026-11.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from gp4u.sim.launch import ERR, Inside, LaunchFailed, Running

if TYPE_CHECKING:
    import asyncssh

SSH_PORT: Final = 22
USER: Final = "root"
_CHUNK: Final = 32 * 1024

Keys = Callable[[], Collection[str]]
"""Returns the public keys that are let in now, a line each."""


def host_key() -> Any | None:
    """Return a new host key of a machine; None where the library is not there."""
    try:
        import asyncssh
    except ImportError:
        return None
    return asyncssh.generate_private_key("ssh-ed25519")


class SshDoor:
    """An SSH server into one instance."""

    def __init__(
        self, acceptor: asyncssh.SSHAcceptor, inside: set[asyncssh.SSHServerConnection]
    ) -> None:
        self._acceptor, self._inside = acceptor, inside
        self.ports: Mapping[tuple[int, str], int] = {(SSH_PORT, "tcp"): acceptor.get_port()}

    async def aclose(self) -> None:
        """Close the server and every connection to it."""
        self._acceptor.close()
        for connection in list(self._inside):
            connection.abort()
            await connection.wait_closed()
        await self._acceptor.wait_closed()


async def open_door(running: Running, key: Any, keys: Keys, address: str) -> SshDoor:
    """Listen at a free port of an address.

    Raises:
        OSError: there is none.
    """
    import asyncssh

    inside: set[asyncssh.SSHServerConnection] = set()

    async def serve(process: asyncssh.SSHServerProcess[bytes]) -> None:
        await _serve(running, process)

    acceptor = await asyncssh.listen(
        address,
        0,
        server_factory=_guards(running, keys, inside),
        server_host_keys=[key],
        process_factory=serve,
        encoding=None,
        line_editor=False,
        compression_algs=None,
        keepalive_interval=0,
    )
    return SshDoor(acceptor, inside)


def _guards(
    running: Running, keys: Keys, inside: set[asyncssh.SSHServerConnection]
) -> type[asyncssh.SSHServer]:
    """Return what makes a guard for each connection, who notes it in `inside`."""
    import asyncssh

    class Server(asyncssh.SSHServer):
        """Lets in who shows a known key, to run commands and to reach ports."""

        _connection: asyncssh.SSHServerConnection

        def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
            self._connection = conn
            inside.add(conn)

        def connection_lost(self, exc: Exception | None) -> None:
            del exc
            inside.discard(self._connection)

        def begin_auth(self, username: str) -> bool:
            del username
            return True

        def public_key_auth_supported(self) -> bool:
            return True

        def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
            shown = _bare(key.export_public_key("openssh").decode())
            return username == USER and shown in {_bare(known) for known in keys()}

        def connection_requested(
            self, dest_host: str, dest_port: int, orig_host: str, orig_port: int
        ) -> Any:
            del orig_host, orig_port
            if dest_host not in ("localhost", "127.0.0.1", "::1"):
                return False
            return self._reached(dest_port)

        async def _reached(self, port: int) -> Any:
            try:
                host, number = await running.reach(port)
            except LaunchFailed as failed:
                raise asyncssh.ChannelOpenError(
                    asyncssh.OPEN_CONNECT_FAILED, str(failed)
                ) from failed
            return await self._connection.forward_connection(host, number)

    return Server


def _bare(line: str) -> tuple[str, ...]:
    """Return a key without its comment."""
    return tuple(line.split()[:2])


async def _serve(running: Running, process: asyncssh.SSHServerProcess[bytes]) -> None:
    """Run what a session asks for, as the login shell of the instance's user would."""
    terminal = process.get_terminal_type()
    line = process.command
    argv = ["sh"] if line is None else ["sh", "-c", line]
    try:
        inside = await running.enter(argv, tty=terminal is not None)
    except LaunchFailed as failed:
        process.stderr.write(f"{failed}\n".encode())
        process.exit(255)
        return
    columns, rows, *_ = process.get_terminal_size()
    if terminal is not None and columns and rows:
        await inside.resize(columns, rows)

    async def out(which: int, data: bytes) -> None:
        stream = process.stderr if which == ERR else process.stdout
        with suppress(OSError):  # who asked has left
            stream.write(data)
            await stream.drain()

    async with asyncio.TaskGroup() as tasks:
        feeding = tasks.create_task(_feed(process, inside))
        leaving = tasks.create_task(_left(process, inside))
        code = await inside.run(out)
        feeding.cancel()
        leaving.cancel()
    process.exit(code)


async def _feed(process: asyncssh.SSHServerProcess[bytes], inside: Inside) -> None:
    """Pass on what is typed, sizes and signals."""
    import asyncssh

    while True:
        try:
            data = await process.stdin.read(_CHUNK)
        except asyncssh.TerminalSizeChanged as changed:
            await inside.resize(changed.width, changed.height)
            continue
        except (asyncssh.SignalReceived, asyncssh.BreakReceived):
            await inside.end()
            return
        except (asyncssh.Error, OSError):
            return
        if not data:
            await inside.end_input()
            return
        await inside.write(data)


async def _left(process: asyncssh.SSHServerProcess[bytes], inside: Inside) -> None:
    """End a command whose session was closed."""
    await process.channel.wait_closed()
    await inside.end()
