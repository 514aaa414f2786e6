"""Sessions and links that run in the test itself: what a command or a port does is a few lines."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from gp4u.kubelet.streams.remote_command import serve_exec
from gp4u.kubelet.streams.upgrade import Upgrade
from gp4u.providers.session import Link, Session, Stream

V4 = "v4.channel.k8s.io"


def target(**flags: Any) -> str:
    """Return the path of an exec with these flags; the command is `cat -`."""
    query = "".join(f"&{name}={value}" for name, value in flags.items())
    return f"/exec/default/pod/main?command=cat&command=-{query}"


def serving(
    session: Session, asked: list[Any] | None = None
) -> Callable[[Upgrade], Awaitable[None]]:
    """Return a server whose one command is `session`."""

    async def opened(command: tuple[str, ...], tty: bool) -> Session:
        if asked is not None:
            asked.append((command, tty))
        return session

    return lambda upgrade: serve_exec(upgrade, opened)


class Told(Session):
    """A command that does what a test says, and remembers what was done to it."""

    def __init__(self) -> None:
        self._out: asyncio.Queue[tuple[Stream, bytes] | Exception | None] = asyncio.Queue()
        self._code: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.taken = bytearray()
        self.takes = asyncio.Event()
        self.takes.set()
        self.took = asyncio.Event()
        self.input_ended = asyncio.Event()
        self.sizes: list[tuple[int, int]] = []
        self.resized = asyncio.Event()
        self.written = 0
        self.left_by: asyncio.Task[object] | None = None
        self.closed_by: asyncio.Task[object] | None = None
        self.closed_at: float | None = None
        self.closed = asyncio.Event()

    def say(self, data: bytes, stream: Stream = Stream.OUT) -> None:
        """Write."""
        self._out.put_nowait((stream, data))

    def end(self, code: int = 0) -> None:
        """End with an exit code."""
        self._out.put_nowait(None)
        self._code.set_result(code)

    async def has_taken(self, size: int) -> None:
        """Return once so many bytes were read."""
        while len(self.taken) < size:
            self.took.clear()
            await self.took.wait()

    def break_with(self, error: Exception) -> None:
        """Lose the connection to the machine."""
        self._out.put_nowait(error)

    async def output(self) -> AsyncIterator[tuple[Stream, bytes]]:
        try:
            while (said := await self._out.get()) is not None:
                if isinstance(said, Exception):
                    raise said
                yield said
                self.written += len(said[1])
        finally:
            self.left_by = asyncio.current_task()

    async def send(self, data: bytes) -> None:
        await self.takes.wait()
        self.taken += data
        self.took.set()

    async def end_input(self) -> None:
        self.input_ended.set()

    async def resize(self, columns: int, rows: int) -> None:
        self.sizes.append((columns, rows))
        self.resized.set()

    async def exit_code(self) -> int:
        return await self._code

    async def aclose(self) -> None:
        self.closed_by = asyncio.current_task()
        self.closed_at = asyncio.get_running_loop().time()
        self.closed.set()


class Cat(Told):
    """Writes what it reads, and ends with its input."""

    async def send(self, data: bytes) -> None:
        await super().send(data)
        self.say(data)

    async def end_input(self) -> None:
        await super().end_input()
        self.end()


class Port(Link):
    """A program behind a port, that a test speaks for."""

    def __init__(self, *, echoes: bool = False) -> None:
        self._out: asyncio.Queue[bytes | Exception] = asyncio.Queue()
        self._echoes = echoes
        self.taken = bytearray()
        self.takes = asyncio.Event()
        self.takes.set()
        self.input_ended = asyncio.Event()
        self.closed = asyncio.Event()

    def say(self, data: bytes) -> None:
        """Write; nothing means the end."""
        self._out.put_nowait(data)

    def break_with(self, error: Exception) -> None:
        """Lose the connection."""
        self._out.put_nowait(error)

    async def output(self) -> AsyncIterator[bytes]:
        while data := await self._out.get():
            if isinstance(data, Exception):
                raise data
            yield data

    async def send(self, data: bytes) -> None:
        await self.takes.wait()
        self.taken += data
        if self._echoes:
            self.say(data)

    async def end_input(self) -> None:
        self.input_ended.set()
        if self._echoes:
            self.say(b"")

    async def aclose(self) -> None:
        self.closed.set()
