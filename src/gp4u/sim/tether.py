"""Ties one local process to its simulator: whatever happens to either, nothing is left behind.

A tether is a small process between the simulator and a command. It starts the command in a
session of its own, copies what the command prints into a bounded log, and ends everything the
command started when the command ends, or when the simulator closes the pipe on the tether's
stdin. A killed simulator closes that pipe too, and that is the point: SIGKILL cannot be caught,
but its effect on a pipe can be seen. The tether sits in a session of its own, so that what is
sent to the simulator's process group does not reach it.

It leaves what to run, where and with which environment to `runtime.py`. Only the standard
library is imported, and the file is run by its path: see `Order` for what it is told.

Source: PR_SET_CHILD_SUBREAPER and PR_SET_PDEATHSIG, prctl(2), checked November 2026.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import TypedDict

LOG_BYTES = 1024 * 1024
"""The most that a log file ever holds; the older half goes when it is full."""

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_CHUNK = 64 * 1024


class Order(TypedDict):
    """What to do: one line of JSON on stdin, which then stays open for as long as it shall run."""

    argv: list[str]
    env: dict[str, str]
    """All of it; nothing is inherited."""
    directory: str
    """Where the command starts; removed at the end."""
    log_fd: int
    """An open file to keep the output in."""
    grace_s: float
    """Between SIGTERM and SIGKILL, where the command does not end by itself."""


class Report(TypedDict, total=False):
    """One line of JSON on stdout, once the command runs (`pid`) or could not be started."""

    pid: int
    errno: int
    error: str


class Log:
    """A file that holds the newest output; the simulator reads it through its own descriptor."""

    def __init__(self, fd: int, limit: int = LOG_BYTES) -> None:
        self._fd, self._limit = fd, limit

    def append(self, data: bytes) -> None:
        """Add to the end; make room by dropping the older half, up to a line's end."""
        with locked(self._fd, fcntl.LOCK_EX):
            size = os.fstat(self._fd).st_size
            if size + len(data) > self._limit:
                half = self._limit // 2
                kept = os.pread(self._fd, half, max(0, size - half))
                kept = kept[kept.find(b"\n") + 1 :]
                os.ftruncate(self._fd, 0)
                os.pwrite(self._fd, kept, 0)
                size = len(kept)
            os.pwrite(self._fd, data, size)


@contextlib.contextmanager
def locked(fd: int, how: int) -> Iterator[None]:
    """Hold `how` (LOCK_SH, LOCK_EX) on the file against the process at the tether's other end."""
    fcntl.lockf(fd, how)
    try:
        yield
    finally:
        fcntl.lockf(fd, fcntl.LOCK_UN)


class Tether:
    """One running command and the three things that can happen to it: output, an end, an order."""

    def __init__(self, order: Order) -> None:
        """Start the command.

        Raises:
            OSError: the command cannot be executed.
            ValueError: an argument or a variable holds what no process can be given.
        """
        self._log = Log(order["log_fd"])
        self._grace_s = order["grace_s"]
        self._code: int | None = None
        self._kill_at: float | None = None
        self._events = selectors.DefaultSelector()
        prctl = ctypes.CDLL(None).prctl
        # Grandchildren that lose their parent become ours instead of init's: none gets away.
        prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self._signals = _signal_pipe()
        self._watch(self._signals, self._on_signal)
        self._watch(sys.stdin.fileno(), self._on_stdin)
        self._child = subprocess.Popen(  # noqa: S603 -- to run what it is told is its purpose
            order["argv"],
            env=order["env"],
            cwd=order["directory"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            # For the case that somebody kills the tether itself. There are no threads here.
            preexec_fn=lambda: prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0),
        )
        assert self._child.stdout is not None  # noqa: S101 -- for the type checker: it is a PIPE
        self._output = self._child.stdout.fileno()
        self._watch(self._output, self._on_output)

    @property
    def pid(self) -> int:
        """Of the command."""
        return self._child.pid

    def run(self) -> int:
        """Wait for the command's end, or bring it about; return its code, 128 + n for signal n."""
        while self._code is None:
            for key, _ in self._events.select(self._patience_s()):
                key.data()
            if self._kill_at is not None and time.monotonic() >= self._kill_at:
                self._signal_group(signal.SIGKILL)
        _end_descendants()
        while self._output in self._events.get_map():
            self._on_output()
        return self._code

    def _watch(self, fd: int, act: Callable[[], None]) -> None:
        os.set_blocking(fd, False)
        self._events.register(fd, selectors.EVENT_READ, act)

    def _patience_s(self) -> float | None:
        if self._kill_at is None:
            return None
        # Once overdue, look again now and then: a process in the kernel dies when it returns.
        return max(0.05, self._kill_at - time.monotonic())

    def _on_output(self) -> None:
        data = _read(self._output)
        if data:
            self._log.append(data)
        elif data is not None or self._code is not None:
            self._events.unregister(self._output)  # closed, or dead with nothing left to read

    def _on_stdin(self) -> None:
        if _read(sys.stdin.fileno()) == b"":
            self._events.unregister(sys.stdin.fileno())
            self._end()

    def _on_signal(self) -> None:
        if signal.SIGTERM in (_read(self._signals) or b""):
            self._end()
        with contextlib.suppress(ChildProcessError):
            while (done := os.waitpid(-1, os.WNOHANG))[0]:
                if done[0] == self._child.pid:
                    code = os.waitstatus_to_exitcode(done[1])
                    self._code = self._child.returncode = code if code >= 0 else 128 - code
                    return  # the rest is collected by `_end_descendants`

    def _end(self) -> None:
        if self._kill_at is None:
            self._kill_at = time.monotonic() + self._grace_s
            self._signal_group(signal.SIGTERM)

    def _signal_group(self, number: signal.Signals) -> None:
        # The command leads its session, so it cannot leave its group; it is unreaped, so the
        # number is still its own.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._child.pid, number)


def _signal_pipe() -> int:
    """Turn SIGCHLD and SIGTERM into bytes on a pipe; return the end to read."""
    here, there = os.pipe()
    os.set_blocking(there, False)
    signal.set_wakeup_fd(there, warn_on_full_buffer=False)
    for number in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(number, lambda *_: None)  # a handler, so that the command gets the default
    return here


def _read(fd: int) -> bytes | None:
    """Return what is there, b"" at the end, None where there is nothing yet."""
    try:
        return os.read(fd, _CHUNK)
    except BlockingIOError:
        return None


def _end_descendants() -> None:
    """Kill what the command left running, generation by generation, as a container's end would."""
    while True:
        for pid in _children():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def _children() -> list[int]:
    """Return the processes whose parent is this one.

    Source: /proc/pid/stat, proc(5), checked November 2026: the name in parentheses may hold
    anything, the state and the parent follow the last parenthesis.
    """
    from pathlib import Path  # not needed before the end: it would make the start slower

    me, found = os.getpid(), []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            fields = (entry / "stat").read_bytes().rpartition(b")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[1]) == me:
            found.append(int(entry.name))
    return found


def _order() -> Order:
    """Read the one line that stdin starts with, and not a byte more."""
    line = bytearray()
    while not line.endswith(b"\n"):
        data = os.read(sys.stdin.fileno(), _CHUNK)
        if not data:
            raise EOFError("stdin ended before the order did")
        line += data
    order: Order = json.loads(line)
    return order


def _report(report: Report) -> None:
    os.write(sys.stdout.fileno(), json.dumps(report).encode() + b"\n")


def main() -> int:
    """Carry out the order on stdin; return the command's exit code."""
    order = _order()
    try:
        try:
            tether = Tether(order)
        except (OSError, ValueError) as error:
            _report({"errno": getattr(error, "errno", None) or 0, "error": str(error)})
            return 127
        _report({"pid": tether.pid})
        return tether.run()
    finally:
        import shutil  # as above

        shutil.rmtree(order["directory"], ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
