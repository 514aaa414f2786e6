"""A command inside an instance: a process beside the instance's own, with or without a terminal.

Hides pipes, pseudo terminals and how a process is put where another one is. Who lets it in, and
over which wire its streams go, is each market's own.

Source: pty(7), setsid(2), ioctl_tty(2), chroot(2) and /proc/pid/root in proc(5); checked 2026-11.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import struct
import termios
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Final

from gp4u.sim.launch import ERR, OUT, Output

_CHUNK: Final = 64 * 1024
_LINGER_S: Final = 0.5
"""How long output is waited for whose writer was left behind by a command that has ended."""
_SIZE: Final = (80, 24)


async def spawned(
    argv: Sequence[str],
    env: Mapping[str, str],
    *,
    tty: bool,
    directory: str,
    root: str | None = None,
) -> Spawned:
    """Start a process in a directory, with all of its environment, seeing the files of `root`.

    Raises:
        OSError: it cannot be started.
    """
    if tty:
        return await _on_a_terminal(argv, env, directory, root)
    process = await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=dict(env),
        cwd=directory if root is None else None,
        start_new_session=True,
        preexec_fn=_placing(root, directory, tty=False),
    )
    assert process.stdin is not None  # noqa: S101 -- for the type checker: all three are pipes
    assert process.stdout is not None  # noqa: S101 -- same
    assert process.stderr is not None  # noqa: S101 -- same
    return Spawned(process, process.stdin, {OUT: process.stdout, ERR: process.stderr}, None)


async def _on_a_terminal(
    argv: Sequence[str], env: Mapping[str, str], directory: str, root: str | None
) -> Spawned:
    ours, theirs = os.openpty()
    try:
        _set_size(ours, *_SIZE)
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={"TERM": "xterm-256color", **env},
            cwd=directory if root is None else None,
            start_new_session=True,
            preexec_fn=_placing(root, directory, tty=True),
        )
    except BaseException:
        os.close(ours)
        raise
    finally:
        os.close(theirs)
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(reader)
    # One descriptor for each direction, since each transport closes its own.
    await loop.connect_read_pipe(lambda: protocol, os.fdopen(os.dup(ours), "rb", 0))
    transport, drained = await loop.connect_write_pipe(
        asyncio.streams.FlowControlMixin, os.fdopen(ours, "wb", 0)
    )
    writer = asyncio.StreamWriter(transport, drained, None, loop)
    return Spawned(process, writer, {OUT: reader}, ours)


def _placing(root: str | None, directory: str, *, tty: bool) -> Callable[[], None] | None:
    """Return what a new process does before it becomes its command."""
    if root is None and not tty:
        return None

    def place() -> None:
        if root is not None:
            os.chroot(root)
            os.chdir(directory)
        if tty:
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    return place


def _set_size(terminal: int, columns: int, rows: int) -> None:
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


class Spawned:
    """A command that is a process of this machine."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        stdin: asyncio.StreamWriter,
        outputs: Mapping[int, asyncio.StreamReader],
        terminal: int | None,
    ) -> None:
        self._process, self._stdin = process, stdin
        self._outputs, self._terminal = outputs, terminal

    @property
    def is_over(self) -> bool:
        """Whether it has ended."""
        return self._process.returncode is not None

    async def run(self, out: Output) -> int:
        """Hand on what it writes until it ends; 128 + n for signal n."""
        try:
            async with asyncio.TaskGroup() as tasks:
                pumps = [
                    tasks.create_task(_pump(stream, which, out))
                    for which, stream in self._outputs.items()
                ]
                code = await self._process.wait()
                await asyncio.wait(pumps, timeout=_LINGER_S)
                for pump in pumps:
                    pump.cancel()
        finally:
            await self.end()
        return 128 - code if code < 0 else code

    async def write(self, data: bytes) -> None:
        """Write to its input; what comes too late is dropped."""
        with suppress(OSError):
            self._stdin.write(data)
            await self._stdin.drain()

    async def end_input(self) -> None:
        """Close its input; on a terminal by what a user would type."""
        if self._terminal is not None:
            await self.write(b"\x04")
        else:
            self._stdin.close()

    async def resize(self, columns: int, rows: int) -> None:
        """Tell the size of its terminal, if it has one."""
        if self._terminal is not None and not self._stdin.is_closing():
            _set_size(self._terminal, columns, rows)

    async def end(self) -> None:
        """Kill it and its whole session's first group."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._stdin.close()
        await self._process.wait()


async def _pump(stream: asyncio.StreamReader, which: int, out: Output) -> None:
    with suppress(OSError):  # EIO is how a terminal ends
        while data := await stream.read(_CHUNK):
            await out(which, data)


class Pretended:
    """A command in an instance that is nothing: a few words are understood, nothing is run."""

    def __init__(self, argv: Sequence[str]) -> None:
        self._argv = tuple(argv)

    async def run(self, out: Output) -> int:
        """Say what the command would have said."""
        match self._argv:
            case ("echo", *words):
                await out(OUT, f"{' '.join(words)}\n".encode())
                return 0
            case ("true",):
                return 0
            case ("false",):
                return 1
            case _:
                await out(ERR, f"sh: {self._argv[0]}: not found\n".encode())
                return 127

    async def write(self, data: bytes) -> None:
        """Nobody reads it."""

    async def end_input(self) -> None:
        """Nobody reads it."""

    async def resize(self, columns: int, rows: int) -> None:
        """There is no terminal."""

    async def end(self) -> None:
        """It has ended long ago."""
