"""A terminal, as a person has one: what is typed, and what appears on it."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

PATIENCE_S = 30.0


class Terminal:
    """A command on a pseudo terminal of 100 columns and 30 rows."""

    def __init__(self, words: Sequence[str], *, env: Mapping[str, str], cwd: Path) -> None:
        self._ours, theirs = pty.openpty()
        self._set_size(columns=100, rows=30)
        self._process = subprocess.Popen(
            list(words),
            env=dict(env) | {"TERM": "xterm"},
            cwd=cwd,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)
        self.shown = ""

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        with suppress(ProcessLookupError):
            self._process.kill()
        self._process.wait(PATIENCE_S)
        os.close(self._ours)

    def resize(self, *, columns: int, rows: int) -> None:
        """Change its size, as dragging a window does."""
        self._set_size(columns=columns, rows=rows)
        # The kernel tells only those whose controlling terminal this is, which a child that was
        # handed an open one does not have.
        self._process.send_signal(signal.SIGWINCH)

    def _set_size(self, *, columns: int, rows: int) -> None:
        fcntl.ioctl(self._ours, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, text: str) -> None:
        """Type something."""
        os.write(self._ours, text.encode())

    def see(self, pattern: str) -> re.Match[str]:
        """Return the first match in what appeared since the last one that was seen."""
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            if found := re.search(pattern, self.shown):
                self.shown = self.shown[found.end() :]
                return found
            if select.select([self._ours], [], [], 0.2)[0] and not self._read():
                break
        raise AssertionError(f"never showed {pattern!r}: {self.shown!r}")

    def end(self) -> int:
        """Wait for the end of the command, and return its exit code."""
        until = time.monotonic() + PATIENCE_S
        while self._process.poll() is None and time.monotonic() < until:
            if select.select([self._ours], [], [], 0.2)[0]:
                self._read()
        code = self._process.poll()
        assert code is not None, f"it did not end: {self.shown!r}"
        return code

    def _read(self) -> bool:
        try:
            chunk = os.read(self._ours, 65536)
        except OSError:  # EIO: the other side has closed
            return False
        self.shown += chunk.decode("utf-8", "replace")
        return bool(chunk)
