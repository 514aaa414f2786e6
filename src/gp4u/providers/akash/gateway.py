"""A host's own gateway on Akash: logs and commands over a WebSocket, with a token for it alone.

What this file hides: what is asked of a gateway and for how long, and all distrust.
A host writes its address into the chain itself, so the address is foreign text: https only, every
address behind its name must be public, the connection goes to the very address that was checked,
and it is never led on. In development, plain http to loopback is let through by a switch.

The frames are in `frames.py`, commands whose streams stay open in `shell.py`. A connection is
anything with `send` and `receive` (`Socket`), so a test may stand in for the network; the real one,
with TLS and its pinned certificates, is in `dial.py`.

Source: provider:gateway/rest and chain-sdk:go/provider, 2026-06 (docs/reference/akash.md).
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, suppress
from typing import Final

import httpx2
import msgspec

from gp4u.errors import Malformed, Unavailable
from gp4u.providers.akash.dial import CONNECT_S, Closed, Declined, Dial, Door, Socket
from gp4u.providers.akash.frames import LEASE_NOT_FOUND, MAX_OUTPUT, Frame, Shell, explain
from gp4u.providers.akash.shell import LeaseSession, session_path
from gp4u.providers.akash.wire import SLUG, LeaseId, lease_path
from gp4u.providers.contract import Finished
from gp4u.providers.http import MAX_URL, UNREADABLE, addresses_of, may_connect
from gp4u.providers.session import Session

LOGS_S: Final = 20.0
QUIET_S: Final = 2.0
"""After so long without a line the log is at its end: a host need not close the connection."""
MAX_LINES: Final = 10_000
STDIN_CHUNK: Final = 16 << 10


class _Line(msgspec.Struct):
    """A line and, what nobody needs here, the name of the pod that printed it."""

    message: str = ""


def logs_path(lease: LeaseId, service: str, *, tail: int, follow: bool) -> str:
    """Return the path of a service's log. Without a service the lines of all come mixed."""
    params = {"follow": str(follow).lower(), "tail": str(tail), "service": service}
    return f"{lease_path(lease)}/logs?{httpx2.QueryParams(params)}"


def shell_path(lease: LeaseId, service: str, command: Sequence[str], *, stdin: bytes) -> str:
    """Return the path that runs a command. Every parameter is mandatory.

    The frames have no end of input. So a command that is to read some is given as many bytes as
    there are through `head`, which ends its input after them; the image must have a shell then.
    """
    argv = list(command)
    if stdin:
        script = 'n=$1; shift; head -c "$n" | "$@"'
        argv = ["sh", "-c", script, "sh", str(len(stdin)), *argv]
    params: dict[str, str] = {f"cmd{n}": word for n, word in enumerate(argv)}
    params |= {"service": service, "podIndex": "0", "tty": "0", "stdin": "1" if stdin else "0"}
    return f"{lease_path(lease)}/shell?{httpx2.QueryParams(params)}"


class Gateway:
    """Speaks to hosts; holds no connection between two calls."""

    def __init__(self, dial: Dial, *, allow_loopback: bool = False) -> None:
        self._dial, self._allow_loopback = dial, allow_loopback

    async def logs(
        self,
        host_uri: str,
        lease: LeaseId,
        token: str,
        *,
        service: str,
        tail: int,
        pins: Sequence[bytes] = (),
    ) -> str:
        """Return the newest lines of a service.

        Raises:
            InstanceAbsent: the host has no such lease.
            Malformed: the host's address is not one that we may follow.
            Unavailable: the host could not be reached.
        """
        wanted = min(max(tail, 1), MAX_LINES)
        path = logs_path(lease, service, tail=wanted, follow=False)
        lines: deque[str] = deque(maxlen=wanted)
        taken, is_open = 0, False
        door = await self.door("logs", host_uri)
        try:
            async with asyncio.timeout(LOGS_S), self._dial(door, path, token, pins) as socket:
                is_open = True
                while taken < MAX_OUTPUT:
                    async with asyncio.timeout(QUIET_S if lines else LOGS_S):
                        message = await socket.receive()
                    taken += len(message)
                    lines.append(_line(message))
        except (Closed, Declined) as ended:
            explain("logs", ended)
        except TimeoutError as error:
            if not is_open:
                raise Unavailable(SLUG, "logs", "the host does not answer") from error
        except (OSError, ssl.SSLError) as error:
            raise Unavailable(SLUG, "logs", f"{type(error).__name__} at the host") from error
        return "".join(f"{line}\n" for line in lines)

    async def follow(
        self,
        host_uri: str,
        lease: LeaseId,
        token: str,
        *,
        service: str,
        pins: Sequence[bytes] = (),
    ) -> AsyncGenerator[bytes, None]:
        """Yield the lines of a service as they come.

        Raises:
            InstanceAbsent: the host has no such lease.
            Malformed: the host's address is not one that we may follow.
            Unavailable: the host could not be reached, or hung up.
        """
        path = logs_path(lease, service, tail=0, follow=True)
        door = await self.door("follow", host_uri)
        began = False
        try:
            async with self._dial(door, path, token, pins) as socket:
                began = True
                while True:
                    yield f"{_line(await socket.receive())}\n".encode()
        except (Closed, Declined) as ended:
            if began and isinstance(ended, Closed) and ended.code in (None, LEASE_NOT_FOUND, 1000):
                return  # the lease is closed, or its workload is over
            explain("follow", ended)
            raise Unavailable(SLUG, "follow", "the connection broke") from ended
        except TimeoutError as error:
            raise Unavailable(SLUG, "follow", "the host does not answer") from error
        except (OSError, ssl.SSLError) as error:
            raise Unavailable(SLUG, "follow", f"{type(error).__name__} at the host") from error

    async def session(
        self,
        host_uri: str,
        lease: LeaseId,
        token: str,
        *,
        service: str,
        command: Sequence[str],
        tty: bool,
        pins: Sequence[bytes] = (),
    ) -> Session:
        """Start a command in a service and return it with its streams open.

        Raises:
            As `exec`, but that nothing was started where it is Unavailable.
        """
        path = session_path(lease, service, command, tty=tty)
        door = await self.door("exec", host_uri)
        stack = AsyncExitStack()
        try:
            socket = await stack.enter_async_context(self._dial(door, path, token, pins))
        except (Closed, Declined) as ended:
            explain("exec", ended)
            raise Unavailable(SLUG, "exec", "the host hung up") from ended
        except TimeoutError as error:
            raise Unavailable(SLUG, "exec", "the host does not answer") from error
        except (OSError, ssl.SSLError) as error:
            raise Unavailable(SLUG, "exec", f"{type(error).__name__} at the host") from error
        return LeaseSession(socket, stack, tty=tty)

    async def exec(
        self,
        host_uri: str,
        lease: LeaseId,
        token: str,
        *,
        service: str,
        command: Sequence[str],
        stdin: bytes,
        timeout_s: float,
        pins: Sequence[bytes] = (),
    ) -> Finished:
        """Run a command in a service and return how it ended.

        Raises:
            InstanceAbsent: the host has no such lease.
            Refused: the host could not run it.
            Malformed: the host's address is not one that we may follow, or what it says is not.
            Unavailable: it ended without a result, or was not reached; the command may have run.
        """
        shell = Shell()
        path = shell_path(lease, service, command, stdin=stdin)
        door = await self.door("exec", host_uri)
        try:
            async with asyncio.timeout(timeout_s), self._dial(door, path, token, pins) as socket:
                await _converse(socket, shell, stdin)
        except (Closed, Declined) as ended:
            explain("exec", ended)
        except TimeoutError as error:
            raise Unavailable(SLUG, "exec", f"no result within {timeout_s:g} s") from error
        except (OSError, ssl.SSLError) as error:
            raise Unavailable(SLUG, "exec", f"{type(error).__name__} at the host") from error
        return shell.finished()

    async def door(self, operation: str, host_uri: str) -> Door:
        """Check a host's address and return where to connect.

        Raises:
            Malformed: it is not https to a public address.
            Unavailable: its name has no address.
        """
        bound = "a host's address must be https to a public address"
        try:
            url = httpx2.URL(host_uri[: MAX_URL + 1])
        except httpx2.InvalidURL as error:
            raise Malformed(SLUG, operation, bound) from error
        plain = not (url.userinfo or url.query or url.fragment) and url.path in ("", "/")
        if len(host_uri) > MAX_URL or not (plain and url.host and url.scheme in ("https", "http")):
            raise Malformed(SLUG, operation, bound)
        encrypted = url.scheme == "https"
        port = url.port or (443 if encrypted else 80)
        try:
            async with asyncio.timeout(CONNECT_S):
                addresses = await addresses_of(url.raw_host.decode("ascii"), port)
        except (OSError, TimeoutError, ValueError) as error:  # a UnicodeError is a ValueError
            detail = "the host's name has no address"
            raise Unavailable(SLUG, operation, detail, sent=False) from error
        for address in addresses:
            loopback = self._allow_loopback and address.is_loopback
            if not (loopback or (encrypted and may_connect(address))):
                raise Malformed(SLUG, operation, bound)
        shown = f"[{url.host}]" if ":" in url.host else url.host
        return Door(
            url=f"{'wss' if encrypted else 'ws'}://{shown}:{port}",
            address=str(addresses[0]),
            port=port,
            host=url.raw_host.decode("ascii"),
            encrypted=encrypted,
        )


async def _converse(socket: Socket, shell: Shell, stdin: bytes) -> None:
    """Send the input while output comes in: one that waits for the other may wait for ever.

    Raises:
        Closed: the connection ended before the command did.
    """
    trouble: Exception | None = None
    async with asyncio.TaskGroup() as tasks:
        feeding = tasks.create_task(_feed(socket, stdin))
        try:
            while not shell.is_over:
                shell.feed(await socket.receive())
        except (Closed, Malformed, OSError) as error:
            trouble = error
        feeding.cancel()
    if trouble is not None:
        raise trouble


async def _feed(socket: Socket, stdin: bytes) -> None:
    for start in range(0, len(stdin), STDIN_CHUNK):
        with suppress(OSError):  # what was lost shows on receiving
            await socket.send(bytes([Frame.STDIN]) + stdin[start : start + STDIN_CHUNK])


def _line(message: bytes | str) -> str:
    """Return what was printed; what is not in the gateway's form is taken as it is."""
    try:
        return msgspec.json.decode(message, type=_Line).message
    except UNREADABLE:
        return message if isinstance(message, str) else message.decode("utf-8", "replace")
