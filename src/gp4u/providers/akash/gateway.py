"""A host's own gateway on Akash: logs and commands over a WebSocket, with a token for it alone.

What this file hides: the frames of the shell (a byte for the kind, then data), and all distrust.
A host writes its address into the chain itself, so the address is foreign text: https only, every
address behind its name must be public, the connection goes to the very address that was checked,
and it is never led on. In development, plain http to loopback is let through by a switch.

The frames are sans-IO (`Shell`); a connection is anything with `send` and `receive` (`Socket`), so
a test may stand in for the network. The real one, with TLS and its pinned certificates, is in
`dial.py`.

Source: provider:gateway/rest and chain-sdk:go/provider, 2026-06 (docs/reference/akash.md).
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from enum import IntEnum
from typing import Final

import httpx2
import msgspec

from gp4u.errors import Denied, InstanceAbsent, Malformed, Refused, Unavailable
from gp4u.providers.akash.dial import CONNECT_S, Closed, Declined, Dial, Door, Socket
from gp4u.providers.akash.wire import SLUG, LeaseId
from gp4u.providers.contract import Finished
from gp4u.providers.http import MAX_URL, UNREADABLE, addresses_of, harmless, may_connect

LOGS_S: Final = 20.0
QUIET_S: Final = 2.0
"""After so long without a line the log is at its end: a host need not close the connection."""
MAX_OUTPUT: Final = 32 << 20
"""Bytes that are taken of a command's output, or of a log."""
MAX_LINES: Final = 10_000
STDIN_CHUNK: Final = 16 << 10


class Frame(IntEnum):
    """The first byte of a shell message."""

    STDOUT = 100
    STDERR = 101
    RESULT = 102
    FAILURE = 103
    STDIN = 104


class Shell:
    """What came out of a command so far; bytes in, no I/O."""

    def __init__(self) -> None:
        self.stdout, self.stderr = bytearray(), bytearray()
        self.exit_code: int | None = None
        """None until the host said how it ended."""
        self.failure = ""
        """Why it could not be run."""

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come."""
        return self.exit_code is not None or bool(self.failure)

    def feed(self, message: bytes | str) -> None:
        """Take in a message.

        Raises:
            Malformed: it is no frame, or there is more output than anybody wants.
        """
        if isinstance(message, str) or not message:
            raise Malformed(SLUG, "exec", "a message that is no frame")
        body = message[1:]
        match message[0]:
            case Frame.STDOUT:
                self.stdout += body
            case Frame.STDERR:
                self.stderr += body
            case Frame.RESULT:
                self._end(body)
            case Frame.FAILURE:
                self.failure = harmless(body.decode("utf-8", "replace")) or "no reason told"
            case _:
                pass  # a kind that came later than this program
        if len(self.stdout) + len(self.stderr) > MAX_OUTPUT:
            raise Malformed(SLUG, "exec", f"over {MAX_OUTPUT} bytes of output")

    def _end(self, body: bytes) -> None:
        try:
            told = msgspec.json.decode(body, type=_Result)
        except UNREADABLE as error:
            raise Malformed(SLUG, "exec", "its result cannot be read") from error
        if told.exit_code is None:
            self.failure = harmless(told.message or "") or "ended without an exit code"
        else:
            self.exit_code = told.exit_code

    def finished(self) -> Finished:
        """Return how it ended.

        Raises:
            Refused: it could not be run.
            Unavailable: nobody said how it ended; it may have run.
        """
        if self.failure:
            raise Refused(SLUG, "exec", self.failure, code="exec_failed")
        if self.exit_code is None:
            raise Unavailable(SLUG, "exec", "the connection ended without a result")
        return Finished(
            exit_code=self.exit_code, stdout=bytes(self.stdout), stderr=bytes(self.stderr)
        )


class _Result(msgspec.Struct):
    exit_code: int | None = None
    message: str | None = None


class _Line(msgspec.Struct):
    name: str = ""
    message: str = ""


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


def lease_path(lease: LeaseId) -> str:
    """Return the path of a lease on its host's gateway."""
    return f"/lease/{lease.dseq}/{lease.gseq}/{lease.oseq}"


class Gateway:
    """Speaks to hosts; holds no connection between two calls."""

    def __init__(self, dial: Dial, *, allow_loopback: bool = False) -> None:
        self._dial, self._allow_loopback = dial, allow_loopback

    async def logs(
        self, host_uri: str, lease: LeaseId, token: str, *, tail: int, pins: Sequence[bytes] = ()
    ) -> str:
        """Return the newest lines of all services; of several, each with its pod's name.

        Raises:
            InstanceAbsent: the host has no such lease.
            Malformed: the host's address is not one that we may follow.
            Unavailable: the host could not be reached.
        """
        wanted = min(max(tail, 1), MAX_LINES)
        path = f"{lease_path(lease)}/logs?follow=false&tail={wanted}"
        lines: deque[_Line] = deque(maxlen=wanted)
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
            _explain("logs", ended)
        except TimeoutError as error:
            if not is_open:
                raise Unavailable(SLUG, "logs", "the host does not answer") from error
        except (OSError, ssl.SSLError) as error:
            raise Unavailable(SLUG, "logs", f"{type(error).__name__} at the host") from error
        several = len({line.name for line in lines}) > 1
        told = [f"{n.name}: {n.message}" if several else n.message for n in lines]
        return "".join(f"{line}\n" for line in told)

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
            _explain("exec", ended)
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


def _line(message: bytes | str) -> _Line:
    try:
        return msgspec.json.decode(message, type=_Line)
    except UNREADABLE:
        text = message if isinstance(message, str) else message.decode("utf-8", "replace")
        return _Line(message=text)


def _explain(operation: str, ended: Closed | Declined) -> None:
    """Raise what an end means; an end without a meaning is only an end."""
    text = harmless(str(ended), 200)
    if isinstance(ended, Closed):
        if ended.code == 4001:
            raise InstanceAbsent(SLUG, operation, text) from ended
        if ended.code is not None and ended.code >= 4000:
            raise Unavailable(SLUG, operation, text) from ended
        return
    if ended.status in (401, 403):
        raise Denied(SLUG, operation, text) from ended
    if ended.status == 404:
        raise InstanceAbsent(SLUG, operation, text) from ended
    if 400 <= ended.status < 500:
        raise Refused(SLUG, operation, text, code=str(ended.status)) from ended
    if 300 <= ended.status < 400:
        raise Malformed(SLUG, operation, "the host's address leads on") from ended
    raise Unavailable(SLUG, operation, text) from ended
