"""A real redis-server of a test's own, on a free loopback port; nothing of it outlives the test.

`scripts/setup-databases.sh` installs the program. There is no stand-in: what is tested is that the
scripts mean to Redis what they mean to us.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from redis import Redis
from redis.exceptions import ConnectionError as NotThere

STARTS_WITHIN_S = 10.0


class RedisServer:
    """One server that can be killed, frozen and started anew on the same port."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"redis://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it, empty; return when it answers.

        Raises:
            AssertionError: it does not.
        """
        self._process = subprocess.Popen(
            [
                *("redis-server", "--port", str(self.port), "--bind", "127.0.0.1"),
                *("--save", "", "--appendonly", "no", "--dir", str(self._folder)),
            ],
            stdout=subprocess.DEVNULL,
        )
        until = time.monotonic() + STARTS_WITHIN_S
        with self.client() as client:
            while True:
                with suppress(NotThere):
                    client.ping()
                    return
                assert self._process.poll() is None, "redis-server ended at once"
                assert time.monotonic() < until, "redis-server does not answer"
                time.sleep(0.01)

    def kill(self) -> None:
        """End it at once, without a word to its clients."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Let it take connections and answer none."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self._process.pid, signal.SIGCONT)

    @contextmanager
    def client(self) -> Iterator[Redis]:
        """Look into it, past everything of ours."""
        client = Redis(port=self.port, protocol=2)
        try:
            yield client
        finally:
            client.close()


@contextmanager
def redis_server(folder: Path) -> Iterator[RedisServer]:
    """Run a server until the block is left."""
    server = RedisServer(folder)
    server.start()
    try:
        yield server
    finally:
        server.kill()
