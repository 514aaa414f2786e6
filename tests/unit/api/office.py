"""A server's desk over a simulated market, asked without a socket and on the virtual loop.

`office` opens everything that the routes need on a ledger file that outlives it, as a restarted
server finds it. `Exchange` is one request whose caller may read slowly, or hang up at any moment.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx2
from fastapi import FastAPI

from gp4u.api import failing
from gp4u.api.rentals.decisions import decision_routes
from gp4u.api.rentals.events import EventBus, event_routes
from gp4u.api.rentals.jobs import Jobs
from gp4u.api.rentals.rentals import rental_routes
from tests.simulated import (
    API_KEY,
    BASE_URL,
    LATE_WINDOW_S,
    SETTLE_S,
    Client,
    Market,
    client_of,
)

WORKLOAD: Mapping[str, Any] = {
    "image": "busybox",
    "env": {"TOKEN": "workload-secret"},
    "ports": [8000],
    "disk_gib": 16,
    "health": [{"port": 8000, "path": "/health"}],
}
DEMAND: Mapping[str, Any] = {"gpu": ["rtx3090"], "disk_gib": 16, "ports": 1}
ORDER: Mapping[str, Any] = {"demand": DEMAND, "workload": WORKLOAD}


class Exchange:
    """One request and what has come of its reply so far."""

    def __init__(
        self, app: FastAPI, method: str, url: str, *, body: object = None, **headers: str
    ) -> None:
        path, _, query = url.partition("?")
        told = {"content-type": "application/json", **headers}
        self._app = app
        self._scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": [(k.replace("_", "-").encode(), v.encode()) for k, v in told.items()],
            "client": ("127.0.0.1", 40_000),
            "server": ("127.0.0.1", 8000),
        }
        self._body = b"" if body is None else json.dumps(body).encode()
        self._sent = False
        self._gone = asyncio.Event()
        self._reading = asyncio.Event()
        self._reading.set()
        self.status = 0
        self.complete = False
        self.headers: dict[str, str] = {}
        self.read = b""

    async def run(self) -> None:
        """Have it answered, to its end or until the caller has hung up."""
        await self._app(self._scope, self._receive, self._send)

    def hang_up(self) -> None:
        """Close the connection."""
        self._gone.set()

    def stop_reading(self) -> None:
        """Leave whatever comes in the network, until `read_on`."""
        self._reading.clear()

    def read_on(self) -> None:
        """Take what comes."""
        self._reading.set()

    async def _receive(self) -> dict[str, Any]:
        if not self._sent:
            self._sent = True
            return {"type": "http.request", "body": self._body, "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        await self._reading.wait()
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {k.decode(): v.decode() for k, v in message["headers"]}
        else:
            self.read += message.get("body", b"")
            self.complete = not message.get("more_body", False)


class Office:
    """The routes, and what is behind them."""

    def __init__(self, app: FastAPI, one: Client, bus: EventBus, jobs: Jobs) -> None:
        self.app, self.one, self.bus, self.jobs = app, one, bus, jobs
        self._http = httpx2.AsyncClient(
            transport=httpx2.ASGITransport(app), base_url="http://127.0.0.1:8000", timeout=None
        )

    async def ask(self, method: str, url: str, **more: Any) -> httpx2.Response:
        """Send a request and return the whole reply."""
        return await self._http.request(method, url, **more)

    async def rent(self, **more: Any) -> dict[str, Any]:
        """Rent, and return the rental once its workload answers."""
        reply = await self.ask("POST", "/api/v1/rentals", json={**ORDER, "wait": True, **more})
        assert reply.status_code == 201, reply.text
        rental: dict[str, Any] = reply.json()
        return rental

    async def until(self, happened: Callable[[], bool]) -> None:
        """Let time pass until something has happened; ten minutes at most."""
        async with asyncio.timeout(600):
            while not happened():  # noqa: ASYNC110 - nobody tells when a simulated market moves
                await asyncio.sleep(0.1)

    def exchange(self, method: str, url: str, **more: Any) -> Exchange:
        """Return a request that has not been sent."""
        return Exchange(self.app, method, url, **more)


@asynccontextmanager
async def office(
    market: Market,
    folder: Path,
    *,
    seed: int = 1,
    max_jobs: int = 64,
    kept: int = 1000,
    variables: Mapping[str, str] = MappingProxyType({}),
) -> AsyncIterator[Office]:
    """Open a server's parts; leaving stops it, and with it whatever it was doing."""
    environ = {
        "VASTAI_BASE_URL": BASE_URL,
        "VASTAI_API_KEY": API_KEY,
        "VASTAI_BILL_LAG_S": "0",
        "VASTAI_SETTLE_S": str(SETTLE_S),
        "VASTAI_LATE_WINDOW_S": str(LATE_WINDOW_S),
        **variables,
    }
    async with client_of(market, environ, folder / "ledger.db", seed=seed) as one:
        opened = one.app
        bus = EventBus(clock=opened.clock, boot=f"boot{seed}", kept=kept)
        opened.ledger.on_event = bus.rental_event
        jobs = Jobs(max_jobs)
        app = FastAPI()
        failing.install(app)
        parts: dict[str, Any] = {
            "desk": opened.desk,
            "ledger": opened.ledger,
            "clock": opened.clock,
            "settings": opened.settings,
        }
        app.include_router(decision_routes(**parts))
        app.include_router(rental_routes(jobs=jobs, **parts))
        app.include_router(event_routes(bus=bus, ledger=opened.ledger))
        async with opened.ledger.hold(), asyncio.TaskGroup() as group:
            working = group.create_task(jobs.run())
            await asyncio.sleep(0)
            try:
                yield Office(app, one, bus, jobs)
            finally:
                working.cancel()
