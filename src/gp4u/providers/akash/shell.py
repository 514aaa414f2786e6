"""A command in a lease with its streams open, over the frames of a host's gateway.

What this file hides: what the frames lack. They have no end of input, and a command that waits for
one would wait for ever; so without a terminal the input travels in lines of its own, which a small
shell script in front of the command takes apart, up to one that says that it was the last. The
image must have `sh`, `mktemp`, `mkfifo` and `base64` then. On a terminal the end is what a user
would type.

Source: provider:gateway/rest, 2026-06 (docs/reference/akash.md); the script was tried with the
shells of Debian, busybox and bash.
"""

from __future__ import annotations

import asyncio
import base64
import ssl
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from typing import Final

import httpx2

from gp4u.errors import Malformed, Unavailable
from gp4u.providers.akash.dial import Closed, Socket
from gp4u.providers.akash.frames import Frame, Result, explain
from gp4u.providers.akash.wire import SLUG, LeaseId, lease_path
from gp4u.providers.session import Session, Stream

STDIN_CHUNK: Final = 12 << 10
"""Bytes in one piece of input; as a line of base64 they are a third more."""
END_OF_TRANSMISSION: Final = b"\x04"
_UNWRAP: Final = """\
d=$(mktemp -d) && mkfifo "$d/i" || exit 125
exec 3<&0
{ while IFS= read -r l <&3 && [ "$l" != . ]; do printf %s "$l" | base64 -d; done; } >"$d/i" &
p=$!
"$@" <"$d/i" 3<&-
e=$?
kill $p 2>/dev/null
rm -rf "$d"
exit $e
"""
"""Feeds a command from lines of base64. The pipe has a name, so that the reader of lines can be
ended when the command ends first: in a pipeline it would hold everything up."""


def session_path(lease: LeaseId, service: str, command: Sequence[str], *, tty: bool) -> str:
    """Return the path that starts a command with an open input."""
    argv = list(command) if tty else ["sh", "-c", _UNWRAP, "sh", *command]
    params: dict[str, str] = {f"cmd{n}": word for n, word in enumerate(argv)}
    params |= {"service": service, "podIndex": "0", "tty": "1" if tty else "0", "stdin": "1"}
    return f"{lease_path(lease)}/shell?{httpx2.QueryParams(params)}"


class LeaseSession(Session):
    """A command in a lease."""

    def __init__(self, socket: Socket, stack: AsyncExitStack, *, tty: bool) -> None:
        """`stack` holds the connection; it is closed with the session."""
        self._socket, self._stack, self._tty = socket, stack, tty
        self._result: Result | None = None
        self._read = False
        self._over = asyncio.Event()

    async def output(self) -> AsyncIterator[tuple[Stream, bytes]]:
        self._read = True
        try:
            while self._result is None:
                message = await self._received()
                if isinstance(message, str) or not message:
                    raise Malformed(SLUG, "exec", "a message that is no frame")
                body = message[1:]
                match message[0]:
                    case Frame.STDOUT if body:
                        yield Stream.OUT, body
                    case Frame.STDERR if body:
                        yield Stream.ERR, body
                    case Frame.RESULT | Frame.FAILURE:
                        self._result = Result.of(message)
        finally:
            self._over.set()

    async def send(self, data: bytes) -> None:
        for start in range(0, len(data), STDIN_CHUNK):
            piece = data[start : start + STDIN_CHUNK]
            await self._type(piece if self._tty else base64.b64encode(piece) + b"\n")

    async def end_input(self) -> None:
        await self._type(END_OF_TRANSMISSION if self._tty else b".\n")

    async def resize(self, columns: int, rows: int) -> None:
        if self._tty:
            size = struct.pack(">HH", columns & 0xFFFF, rows & 0xFFFF)
            await self._socket.send(bytes([Frame.RESIZE]) + size)

    async def exit_code(self) -> int:
        if not self._read:
            async for _ in self.output():
                pass  # the end comes after all that nobody wanted to see
        await self._over.wait()
        if self._result is None:
            raise Unavailable(SLUG, "exec", "the connection ended without a result")
        return self._result.code() & 0xFF

    async def aclose(self) -> None:
        self._over.set()
        try:
            await self._stack.aclose()
        except (OSError, ssl.SSLError):
            return  # it was gone already

    async def _type(self, data: bytes) -> None:
        await self._socket.send(bytes([Frame.STDIN]) + data)

    async def _received(self) -> bytes | str:
        try:
            return await self._socket.receive()
        except Closed as closed:
            explain("exec", closed)
            raise Unavailable(SLUG, "exec", "the connection ended without a result") from closed
        except (OSError, ssl.SSLError) as error:
            raise Unavailable(SLUG, "exec", f"{type(error).__name__} at the host") from error
