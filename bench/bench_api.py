"""The server over 350,000 offers: requests per second, patience during a refresh, and memory.

The server is the one that `gp4u serve` runs, with its door, its log and its loops, in a process of
its own; only the look at what is rented is left out, since its markets are canned bodies, in
another process, and know of searches alone. A third process drives it: 32
connections that are kept alive, each with one request at a time, over bare sockets, so that what is
measured is the server. Beside it stand yardsticks in a fourth process, driven in the same way and
in turn with it:

`bare`: a Starlette route that returns the same ready bytes. `naive`: a FastAPI route that returns a
list of dicts, as most are written. `empty`: a FastAPI route that returns an empty dict.

While one refresh of all markets goes on, no task may wait long for its turn (with nobody else
asking), and callers may not wait much longer than they do when nothing else happens (while 32 of
them ask all the time). Memory is the most that the server ever had, after several refreshes.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final
from urllib.parse import urlsplit

from bench_sync import Ticker, answer_from_cans

LEAST_OF_BARE, LEAST_OF_NAIVE, LEAST_OF_EMPTY = 0.7, 20.0, 0.6
MOST_STALL_MS, MOST_P99, MOST_MIB = 50.0, 5.0, 400.0
OFFERS: Final = 350_000
ROWS: Final[Mapping[str, int]] = {
    "vastai": 64,
    "ionet": 336_000,
    "akash": 18_000,
    "render": 1_000,
}
"""As in `bench_sync.py`; hosts of Akash have offers for one, two, four and eight cards."""
CLIENTS: Final = 32
ROUNDS: Final = 5
ROUND_S: Final = 2.0
SLOW_S: Final = 15.0
"""For the naive route, which does not answer once in a round."""
REFRESHES: Final = 3
IDLE_S: Final = 6.0
LOOK_S: Final = 45.0
"""For how long callers keep asking while everything is fetched again."""
LISTING: Final = "/api/v1/gpus?limit=1000"
HEALTH: Final = "/api/v1/provider-health/health"


class Caller(asyncio.Protocol):
    """One connection: asks, reads the reply to its end, and asks again."""

    def __init__(self, request: bytes, done: Callable[[float, float], None]) -> None:
        self._request, self._done = request, done
        self._transport: asyncio.Transport | None = None
        self._head = b""
        self._missing = 0
        self._began = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._ask()

    def data_received(self, data: bytes) -> None:
        if self._missing:
            self._missing -= len(data)
        else:
            self._head += data
            head, blank, body = self._head.partition(b"\r\n\r\n")
            if not blank:
                return
            assert head.startswith(b"HTTP/1.1 200"), head[:200]
            length = head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]
            self._missing, self._head = int(length) - len(body), b""
        if self._missing == 0:
            now = time.monotonic()
            self._done(now, now - self._began)
            self._ask()

    def _ask(self) -> None:
        assert self._transport is not None
        self._began = time.monotonic()
        self._transport.write(self._request)


async def _drive(url: str, seconds: float) -> list[tuple[float, float]]:
    """Return when each reply was there, and how long it took."""
    target = urlsplit(url)
    assert target.hostname
    path = f"{target.path}?{target.query}" if target.query else target.path
    request = f"GET {path} HTTP/1.1\r\nHost: {target.netloc}\r\n\r\n".encode()
    found: list[tuple[float, float]] = []
    loop = asyncio.get_running_loop()

    def done(at: float, took_s: float) -> None:
        found.append((round(at, 4), round(took_s, 5)))

    callers = [
        await loop.create_connection(
            lambda: Caller(request, done), target.hostname, target.port or 80
        )
        for _ in range(CLIENTS)
    ]
    await asyncio.sleep(seconds)
    for transport, _ in callers:
        transport.abort()
    return found


async def _serve() -> None:
    """Serve; answer `refresh` and `memory` on standard input with a line of JSON each."""
    from gp4u.api.door.wire import server_config
    from gp4u.api.server import serve_api
    from gp4u.serving import open_server
    from gp4u.settings import load_settings
    from gp4u.telemetry import configure

    folder, loop = Path.cwd(), asyncio.get_running_loop()
    environ = json.loads(sys.stdin.readline())
    environ |= {"GP4U_DATABASE_URL": f"sqlite:///{folder}/ledger.db"}
    settings, unread = load_settings(environ, folder), open(os.devnull, "w")  # noqa: ASYNC230, PTH123, SIM115 - never waits, for the whole process
    configure(
        level=settings.log_level,
        fmt=settings.log_format,
        secrets=settings.secrets(),
        stream=unread,
    )
    async with open_server(settings) as server:
        gc.freeze()  # as `Server.run` does, which would also look at what is rented
        book = server.app.book

        missing, came = set(server.app.providers), asyncio.Event()
        tell = book.on_refresh
        assert tell is not None

        def refreshed(slug: str, offers: int, error: str) -> None:
            assert not error, error
            tell(slug, offers, error)
            missing.discard(slug)
            if not missing:
                came.set()

        book.on_refresh = refreshed

        async def refresh() -> dict[str, object]:
            missing.update(server.app.providers)
            came.clear()
            began, ticker = time.monotonic(), Ticker()
            async with ticker.running():
                book.invalidate()
                await came.wait()
                ended = time.monotonic()
                await asyncio.sleep(2.5)  # what was replaced is let go
            return {"from": began, "to": ended, "stall_ms": round(ticker.longest_s * 1e3, 1)}

        async def obey() -> None:
            await came.wait()
            offers = {slug: stats.offers for slug, stats in book.stats().items()}
            print(json.dumps({"offers": offers}), flush=True)
            while (word := await loop.run_in_executor(None, sys.stdin.readline)).strip():
                told = await refresh() if word.strip() == "refresh" else _memory_mib()
                print(json.dumps(told), flush=True)

        async def listen() -> None:
            await serve_api(server_config(server.api), host="127.0.0.1", port=0, started=_tell)

        async with asyncio.TaskGroup() as group:
            running = [group.create_task(_awaited(part)) for part in (*server.loops, listen)]
            await obey()
            for task in running:
                task.cancel()


async def _awaited(part: Callable[[], Awaitable[None]]) -> None:
    await part()


def _tell(url: str) -> None:
    print(json.dumps({"url": url}), flush=True)


def _memory_mib() -> dict[str, object]:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    told = {name: text for name, _, text in (line.partition(":") for line in lines)}
    return {
        "peak_mib": round(int(told["VmHWM"].split()[0]) / 1024, 1),
        "mib": round(int(told["VmRSS"].split()[0]) / 1024, 1),
    }


async def _yardsticks(body: bytes) -> None:
    """Serve the yardsticks over these ready bytes until standard input ends."""
    import uvicorn
    from fastapi import FastAPI
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    items: list[dict[str, Any]] = json.loads(body)["items"]

    async def bare(_request: Request) -> Response:
        return Response(body, media_type="application/json")

    fast = FastAPI()

    @fast.get("/naive", response_model=None)  # the annotation is mypy's, not the framework's
    async def naive() -> list[dict[str, Any]]:
        return items

    @fast.get("/empty")
    async def empty() -> dict[str, Any]:
        return {}

    async with asyncio.TaskGroup() as group:
        servers, urls = [], dict[str, str]()
        for app, names in (
            (Starlette(routes=[Route("/bare", bare)]), ("bare",)),
            (fast, ("naive", "empty")),
        ):
            config = uvicorn.Config(app, log_level="critical", lifespan="off")
            servers.append(uvicorn.Server(config))
            # With its protocol named, or small replies would wait for acknowledgements.
            listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
            listener.bind(("127.0.0.1", 0))
            group.create_task(servers[-1].serve(sockets=[listener]))
            port = listener.getsockname()[1]
            urls |= {name: f"http://127.0.0.1:{port}/{name}" for name in names}
        print(json.dumps(urls), flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
        for server in servers:
            server.should_exit = True


class Child:
    """A process of this script in another role; lines of JSON go to and fro."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def tell(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def hear(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)


@contextmanager
def _child(*role: str, folder: str | None = None) -> Iterator[Child]:
    pipe = subprocess.PIPE
    command = [sys.executable, str(Path(__file__).resolve()), *role]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=folder) as process:
        child = Child(process)
        try:
            yield child
        finally:
            child.close()


def _samples(url: str, seconds: float) -> list[tuple[float, float]]:
    with _child("drive", url, str(seconds)) as driver:
        found: list[tuple[float, float]] = driver.hear()
    return found


def _per_s(url: str, seconds: float = ROUND_S) -> float:
    return len(_samples(url, seconds)) / seconds


def _p99_ms(samples: list[tuple[float, float]]) -> float:
    return statistics.quantiles((took_s for _, took_s in samples), n=100)[98] * 1e3


def _fetched(url: str) -> bytes:
    with urllib.request.urlopen(url) as reply:  # noqa: S310 - a server of our own
        body: bytes = reply.read()
    return body


def _rates(ours: str, yardsticks: Mapping[str, str]) -> list[dict[str, object]]:
    """Compare requests per second; sides alternate, and the median of the rounds counts."""
    urls = {"listing": ours + LISTING, "health": ours + HEALTH, **yardsticks}
    naive = urls.pop("naive")
    rounds: dict[str, list[float]] = {name: [] for name in urls}
    for _ in range(ROUNDS):
        for name, url in urls.items():
            rounds[name].append(_per_s(url))
    rounds["naive"] = [_per_s(naive, SLOW_S)]
    each = {name: statistics.median(found) for name, found in rounds.items()}
    return [
        _compared(f"{name} against {yardstick}", each[name], each[yardstick], bound)
        for name, yardstick, bound in (
            ("listing", "bare", LEAST_OF_BARE),
            ("listing", "naive", LEAST_OF_NAIVE),
            ("health", "empty", LEAST_OF_EMPTY),
        )
    ]


def _compared(name: str, ours: float, yardstick: float, bound: float) -> dict[str, object]:
    return {
        "name": name,
        "ours": round(ours, 1),
        "yardstick": round(yardstick, 1),
        "unit": "1/s",
        "ratio": round(ours / yardstick, 2),
        "bound": bound,
        "ok": ours / yardstick >= bound,
    }


def _refreshes(server: Child, url: str) -> list[dict[str, object]]:
    """Fetch everything again: a few times alone, then with callers."""
    stalls = []
    for _ in range(REFRESHES):
        server.tell("refresh")
        stalls.append(server.hear()["stall_ms"])
    idle_ms = _p99_ms(_samples(url + LISTING, IDLE_S))
    with _child("drive", url + LISTING, str(LOOK_S)) as driver:
        time.sleep(1)
        server.tell("refresh")
        window = server.hear()
        samples = [each for each in driver.hear() if window["from"] <= each[0] <= window["to"]]
    busy_ms = _p99_ms(samples)
    server.tell("memory")
    memory = server.hear()
    return [
        {
            "name": "longest stall of one refresh",
            "stall_ms": max(stalls),
            "each_ms": stalls,
            "bound": MOST_STALL_MS,
            "ok": max(stalls) <= MOST_STALL_MS,
        },
        {
            "name": "99th percentile during a refresh",
            "busy_ms": round(busy_ms, 1),
            "idle_ms": round(idle_ms, 1),
            "requests": len(samples),
            "seconds": round(window["to"] - window["from"], 1),
            "ratio": round(busy_ms / idle_ms, 2),
            "bound": MOST_P99,
            "ok": busy_ms <= MOST_P99 * idle_ms,
        },
        {"name": "memory", **memory, "bound": MOST_MIB, "ok": memory["peak_mib"] <= MOST_MIB},
    ]


def _measured() -> Iterator[dict[str, object]]:
    with TemporaryDirectory() as folder, _child("cans") as cans:
        environ = json.dumps(cans.hear()["environ"])
        with _child("serve", folder=folder) as server:
            server.tell(environ)
            url = server.hear()["url"]
            offers = server.hear()["offers"]
            total = sum(offers.values())
            yield {"name": "offers", "offers": offers, "total": total, "ok": total >= OFFERS}
            ready = Path(folder, "page.json")
            ready.write_bytes(_fetched(url + LISTING))
            with _child("yardsticks") as beside:
                beside.tell(str(ready))
                yield from _rates(url, beside.hear())
            yield from _refreshes(server, url)


def main() -> int:
    """Print each measure as a line of JSON; 1 if a bound is missed."""
    match sys.argv[1:]:
        case ["cans"]:
            asyncio.run(answer_from_cans(ROWS))
            return 0
        case ["serve"]:
            asyncio.run(_serve())
            return 0
        case ["yardsticks"]:
            asyncio.run(_yardsticks(Path(sys.stdin.readline().strip()).read_bytes()))
            return 0
        case ["drive", url, seconds]:
            print(json.dumps(asyncio.run(_drive(url, float(seconds)))))
            return 0
    all_ok = True
    for each in _measured():
        all_ok = all_ok and bool(each["ok"])
        print(json.dumps(each), flush=True)
    return 0 if all_ok else 1


if __name__ == "__main__":
    sys.exit(main())
