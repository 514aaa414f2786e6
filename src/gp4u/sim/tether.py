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
_CLONE_NEWNS = 0x0002_0000
_MS_BIND, _MS_REC, _MS_PRIVATE = 0x1000, 0x4000, 0x4_0000
_MNT_DETACH = 2
_LAYER = ".root"
"""After the name of a command's directory: where its layer of files is mounted."""
_CHUNK = 64 * 1024


class Order(TypedDict):
    """What to do: one line of JSON on stdin, which then stays open for as long as it shall run."""

    argv: list[str]
    env: dict[str, str]
    """All of it; nothing is inherited."""
    directory: str
    """Where the command starts; removed at the end."""
    own_root: bool
    """Whether what it writes anywhere shall be its own, if the kernel allows it."""
    log_fd: int
    """An open file to keep the output in."""
    grace_s: float
    """Between SIGTERM and SIGKILL, where the command does not end by itself."""


class Report(TypedDict, total=False):
    """One line of JSON on stdout, once the command runs (`pid`) or could not be started."""

    pid: int
    own_root: bool
    """Whether it has a view of all files in which what it writes is its own."""
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
        root = own_root(order["directory"]) if order["own_root"] else None
        self.has_own_root = root is not None

        def place() -> None:
            # For the case that somebody kills the tether itself. There are no threads here.
            prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if root is not None:
                os.chroot(root)
                os.chdir(order["directory"])

        self._child = subprocess.Popen(  # noqa: S603 -- to run what it is told is its purpose
            order["argv"],
            env=told(order, own_root=self.has_own_root),
            cwd=order["directory"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=place,
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


def told(order: Order, *, own_root: bool) -> dict[str, str]:
    """Return the command's environment, with where its files' root is if it asked for its own."""
    if not order["own_root"]:
        return order["env"]
    return {**order["env"], "GP4U_ROOT": "" if own_root else order["directory"]}


def own_root(directory: str) -> str | None:
    """Lay a layer over all files that takes what is written; return where, None where we may not.

    This process gets mounts of its own for it, so nobody else sees them and they go with us. What
    is mounted below the root is shared as it is, but for `/tmp`.

    Source: unshare(2), mount(2) and the kernel's documentation of overlayfs; checked 2026-11.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    base = directory + _LAYER

    def mount(kind: str, source: str, target: str, flags: int = 0, data: str = "") -> bool:
        words = (source.encode(), target.encode(), kind.encode())
        done: int = libc.mount(*words, ctypes.c_ulong(flags), data.encode())
        return done == 0

    if os.geteuid() != 0 or libc.unshare(_CLONE_NEWNS) != 0:
        return None
    mounts = _mounts()
    if not mount("", "none", "/", _MS_REC | _MS_PRIVATE):
        return None
    os.mkdir(base)  # noqa: PTH102 -- as everywhere here: pathlib would make the start slower
    if not mount("tmpfs", "tmpfs", base):
        return None
    upper, work, root = f"{base}/upper", f"{base}/work", f"{base}/root"
    for each in (upper, work, root):
        os.mkdir(each)  # noqa: PTH102 -- same
    layers = f"lowerdir=/,upperdir={upper},workdir={work}"
    if not mount("overlay", "overlay", root, data=layers):
        return None
    done: list[str] = []
    for place in mounts:
        if place == "/tmp":  # noqa: S108 -- the machine's own, which instances do not share
            mount("tmpfs", "tmpfs", root + place)
            os.makedirs(root + directory, exist_ok=True)  # noqa: PTH103 -- same
            mount("", directory, root + directory, _MS_BIND)
        elif not any(place.startswith(f"{each}/") for each in done):
            mount("", place, root + place, _MS_BIND | _MS_REC)
        done.append(place)
    return root


def _mounts() -> list[str]:
    """Return what is mounted below the root, in the order in which it was done.

    Source: /proc/pid/mounts, proc(5): blanks in a path are written as octal numbers.
    """
    with open("/proc/self/mounts", encoding="utf-8") as table:  # noqa: PTH123 -- as above
        places = [line.split()[1].replace("\\040", " ") for line in table]
    return [place for place in dict.fromkeys(places) if place != "/"]


def _unmount(directory: str) -> None:
    base = directory + _LAYER
    if os.path.isdir(base):  # noqa: PTH112 -- as above
        ctypes.CDLL(None).umount2(base.encode(), _MNT_DETACH)
        with contextlib.suppress(OSError):
            os.rmdir(base)  # noqa: PTH106 -- as above


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
        _report({"pid": tether.pid, "own_root": tether.has_own_root})
        return tether.run()
    finally:
        import shutil  # as above

        _unmount(order["directory"])
        shutil.rmtree(order["directory"], ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
