"""The programs of a real control plane: where they are, and how one of them is run.

`scripts/setup-controlplane.sh` builds them into a cache outside of the tree, one folder per thing
and version; `KUBEBUILDER_ASSETS` may have those of the newest version. A program that is missing
fails the test that needs it, by name. Whatever is started here ends when the test run ends, however
that ends: the kernel kills it when its parent is gone.

Source: PR_SET_PDEATHSIG, prctl(2), checked November 2026.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from tests.e2e.processes import Done

LOCKS = Path(__file__).parents[2] / "scripts" / "controlplane"
"""One folder per thing and version that is built."""
MARKET_ADDRESS = "203.0.113.45"
"""Where the simulated markets' machines answer, in a network made by `scripts/namespace.sh`."""
PATIENCE_S = 60.0
WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
"""Which of the test processes this is: they share one network."""
_PORTS = iter(range(20_000 + 1_000 * WORKER, 21_000 + 1_000 * WORKER))
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)


def versions(thing: str) -> list[str]:
    """Return the versions of a thing that are built, `v1.36.3` for one, newest first."""
    names = [each.name for each in LOCKS.glob(f"{thing}-v*")]
    found = [name.removeprefix(f"{thing}-") for name in names]
    return sorted(found, key=lambda v: [int(n) for n in re.findall(r"\d+", v)], reverse=True)


NEWEST, *_, OLDEST = versions("kubernetes")


def program(name: str, *, thing: str = "kubernetes", version: str | None = None) -> str:
    """Return the path of a program, of the newest version if none is given.

    Raises:
        AssertionError: it has not been built.
    """
    newest = versions(thing)[0]
    if version in (None, newest) and (given := os.environ.get("KUBEBUILDER_ASSETS")):
        path = Path(given) / name
        if os.access(path, os.X_OK):
            return str(path)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    path = cache / "gp4u" / "controlplane" / f"{thing}-{version or newest}" / name
    assert os.access(path, os.X_OK), f"{path} is not there; `make controlplane` builds it"
    return str(path)


def require_namespace() -> None:
    """Fail where the addresses that these tests stand on are not this machine's.

    Raises:
        AssertionError: they are not; it says what to run.
    """
    try:
        with socket.socket() as trial:
            trial.bind((MARKET_ADDRESS, 0))
    except OSError as error:
        raise AssertionError(
            "these tests need a network of their own, with public addresses in it; run: "
            "scripts/namespace.sh .venv/bin/python -m pytest tests/kube"
        ) from error


def free_port() -> int:
    """Return a TCP port that nobody listens on, at any address, and never the same one twice.

    It lies below those that the kernel hands out to connections: one of them could take it before
    whoever wants to listen there does, a client that waits for that very server among them.
    """
    for port in _PORTS:
        with socket.socket() as trial, suppress(OSError):
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(("0.0.0.0", port))  # noqa: S104 - in a network of its own
            return port
    raise AssertionError("no port is free")


def run(
    words: Sequence[str],
    *,
    env: Mapping[str, str],
    cwd: Path | None = None,
    stdin: str | bytes = b"",
    patience_s: float = PATIENCE_S,
) -> Done:
    """Run a command to its end, and return what it said."""
    done = subprocess.run(
        list(words),
        env=env,
        cwd=cwd,
        input=stdin.encode() if isinstance(stdin, str) else stdin,
        capture_output=True,
        timeout=patience_s,
        check=False,
        preexec_fn=partial(_die_with, os.getpid()),
    )
    return Done(done.returncode, done.stdout.decode("utf-8", "replace"), done.stderr.decode())


class Process:
    """A process whose output goes to a file, that can be killed and started again."""

    def __init__(
        self, name: str, words: Sequence[str], *, env: Mapping[str, str], folder: Path
    ) -> None:
        self.name, self.words, self.env, self.folder = name, list(words), dict(env), folder
        self.log = folder / f"{name}.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Of the run that is on."""
        assert self._process is not None
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    @property
    def code(self) -> int | None:
        """With what the newest run ended; None while it runs."""
        return None if self._process is None else self._process.poll()

    @property
    def said(self) -> str:
        """Everything it has written, in all its runs, stderr and stdout as they came."""
        return self.log.read_text("utf-8", "replace") if self.log.exists() else ""

    def start(self) -> None:
        """Start it; what it writes is added to its log."""
        assert not self.is_running, f"{self.name} runs already"
        with self.log.open("ab") as sink:
            self._process = subprocess.Popen(
                self.words,
                env=self.env,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                preexec_fn=partial(_die_with, os.getpid()),
            )

    def hear(self, pattern: str, *, after: int = 0) -> re.Match[str]:
        """Return the first match in its log from an offset on, waiting for it."""
        return self.wait_until(lambda: re.search(pattern, self.said[after:]), f"{pattern!r}")

    def wait_until(self, what: Callable[[], re.Match[str] | None], name: str) -> re.Match[str]:
        """Return the first answer that is not None, while the process runs.

        Raises:
            AssertionError: it ended, or there was none in time.
        """
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            if (found := what()) is not None:
                return found
            assert self.is_running, f"{self.name} ended ({self.code}): {self.tail()}"
            time.sleep(0.05)
        raise AssertionError(f"waited {PATIENCE_S} s for {name} of {self.name}: {self.tail()}")

    def tail(self, size: int = 4000) -> str:
        """Return the end of what it said."""
        return self.said[-size:]

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal, wait for its end, and return its exit code."""
        assert self._process is not None
        with suppress(ProcessLookupError):
            self._process.send_signal(number)
        try:
            return self._process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(PATIENCE_S)
            raise AssertionError(f"{self.name} ignored {number.name}: {self.tail()}") from None

    def kill(self) -> None:
        """End it at once, as a power cut would; it is no error if it has ended."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.kill()
            self._process.wait(PATIENCE_S)


def _die_with(parent: int) -> None:
    """In the child, between fork and exec: ask the kernel to end it with its parent."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)
