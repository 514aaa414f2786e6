"""The real server on a loopback port, over four simulated markets, in a thread of this process.

For tests whose client blocks: the server has a thread, a loop and a clock of its own. Nothing is
left out: door, wire, every loop beside the API; only the markets are in process. Its time runs
faster, so that a machine that boots in ten seconds is waited for in a moment.
"""

from __future__ import annotations

import asyncio
import queue
import selectors
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random

from gp4u.api.door.wire import WireLimits, server_config
from gp4u.api.server import serve_api
from gp4u.providers.registry import Registry
from gp4u.serving import open_server
from gp4u.settings import load_settings
from tests.contract.conformance.quarter import Markets
from tests.virtual_loop import VirtualClock

SPEED = 25
"""Seconds of the server's in one of ours."""
START_S, STOP_S = 60, 30
_WIRE = WireLimits(
    header_timeout_s=10.0 * SPEED,
    stall_s=10.0 * SPEED,
    linger_s=5.0 * SPEED,
    keep_alive_s=60 * SPEED,
)
"""The client lives in our time."""


class _QuickSelector(selectors.DefaultSelector):
    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        return super().select(None if timeout is None else timeout / SPEED)


class QuickLoop(asyncio.SelectorEventLoop):
    """A loop whose clock runs faster; sockets work as ever."""

    def __init__(self) -> None:
        self._began_s = 0.0
        super().__init__(_QuickSelector())
        self._began_s = super().time()

    def time(self) -> float:
        return (super().time() - self._began_s) * SPEED


@dataclass
class _Stop:
    loop: asyncio.AbstractEventLoop
    asked: asyncio.Event

    def __call__(self) -> None:
        self.loop.call_soon_threadsafe(self.asked.set)


_Said = queue.Queue[tuple[str, _Stop] | BaseException]


@contextmanager
def api_server(folder: Path, variables: Mapping[str, str] | None = None) -> Iterator[str]:
    """Serve until the block ends, and yield the URL.

    `variables` are set besides those of the markets.
    """
    said: _Said = queue.Queue()

    def live() -> None:
        try:
            with asyncio.Runner(loop_factory=QuickLoop) as runner:
                runner.run(_serve(folder, variables or {}, said))
        except BaseException as error:  # noqa: BLE001 - told in the thread that waits for it
            said.put(error)
        else:
            said.put(SystemExit())

    thread = threading.Thread(target=live)
    thread.start()
    first = said.get(timeout=START_S)
    if isinstance(first, BaseException):
        raise first
    url, stop = first
    try:
        yield url
    finally:
        stop()
        thread.join(STOP_S)
        assert not thread.is_alive(), "the server does not stop"
    last = said.get_nowait()
    if isinstance(last, BaseException) and not isinstance(last, SystemExit):
        raise last


async def _serve(folder: Path, variables: Mapping[str, str], said: _Said) -> None:
    markets = Markets(folder)
    stop = _Stop(asyncio.get_running_loop(), asyncio.Event())
    async with open_server(
        load_settings({**markets.environ, **variables}, folder),
        clock=VirtualClock(),
        random=Random(1),
        transport=markets.transport,
        registry=Registry(),
    ) as server:
        markets.finish(server.app)

        async def listen() -> None:
            await serve_api(
                server_config(server.api, _WIRE),
                host="127.0.0.1",
                port=0,
                started=lambda url: said.put((url, stop)),
            )

        async with asyncio.TaskGroup() as group:
            running = group.create_task(server.run(listen))
            await stop.asked.wait()
            running.cancel()
    await markets.aclose()
