"""A simulated market in this process, and client processes that can be killed at any moment.

`Market` outlives its clients as a real one does: a request that was sent takes effect whether or
not the client still lives. `Client` is everything that `gp4u` is, built by the composition root on
a real SQLite file, or on a real PostgreSQL under `patient()`. `cut` runs a coroutine up to its n-th
await and then never again, which is what `kill -9` looks like from inside: no `except`, no
`finally`.

Everything runs on the virtual loop, so patience costs no time.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Coroutine, Generator, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from decimal import Decimal
from pathlib import Path
from random import Random
from typing import Any, TypeVar

import httpx2
import sqlalchemy as sa
from starlette.types import ASGIApp

from gp4u.app import App, open_app
from gp4u.errors import ProviderError
from gp4u.model import Demand, HealthCheck, Port, Requirements, Workload
from gp4u.providers.registry import Registry
from gp4u.rentals import rental as rentals
from gp4u.rentals.database import Sqlite
from gp4u.rentals.rental import Rental
from gp4u.settings import load_settings
from gp4u.sim.contracts import Contract
from gp4u.sim.faults import Faults, Rule
from gp4u.sim.inprocess import InProcessTransport
from gp4u.sim.runtime import pretend
from gp4u.sim.vastai.app import vast_app
from gp4u.sim.vastai.gate import VastSettings
from gp4u.sim.world import World
from tests.patient import Killed, before_commits, hang_up
from tests.virtual_loop import EPOCH, VirtualClock

T = TypeVar("T")

SETTLE_S, LATE_WINDOW_S = 5, 60
NOWHERE = Path("/dev")
"""A folder without settings."""
API_KEY = "account-key-canary"
BASE_URL = "http://127.0.0.1:9/api/v0"
DEMAND = Demand(requirements=Requirements(gpu_models=("RTX 3090",), disk_gib=16, ports=1))
WORKLOAD = Workload(
    image="busybox",
    env={"TOKEN": "workload-secret"},
    ports=(Port(number=8000),),
    disk_gib=16,
    health=(HealthCheck(port=8000, path="/health"),),
)

_frozen: list[object] = []
"""What was cut. Kept for ever: collecting it would run the `finally` that a killed process never
reaches."""


class Behind:
    """What a client's connections lead to: any market, over a world that a test can look into."""

    def __init__(self, world: World, faults: Faults, app: ASGIApp) -> None:
        self.world, self.faults, self.inner = world, faults, InProcessTransport(app)
        self.requests: list[tuple[str, str, bytes]] = []
        """Method, path and body of everything that reached the market."""

    @property
    def live(self) -> list[Contract]:
        """Contracts that cost money now."""
        return self.world.leaked()

    def rents(self) -> int:
        """How many contracts were ever made."""
        return len(self.world.contracts)


class Market(Behind):
    """A Vast.ai that a test can look into."""

    def __init__(
        self,
        seed: int = 1,
        *,
        rules: Iterable[Rule] = (),
        boot_s: tuple[float, float] = (5.0, 20.0),
        list_lag_s: tuple[float, float] = (0.0, 3.0),
        throttle: float = 1.0,
        faults: Faults | None = None,
        dead_start_ratio: float = 0.0,
        account_id: int = 17,
        api_key: str = API_KEY,
    ) -> None:
        loop = asyncio.get_running_loop()
        world = World(
            loop.time,
            Random(seed),
            runtime=pretend(Random(seed)),
            offers=60,
            boot_s=boot_s,
            epoch_s=EPOCH.timestamp() + loop.time(),
            dead_start_ratio=dead_start_ratio,
        )
        faults = faults or Faults(rules, Random(seed))
        settings = VastSettings(
            api_key=api_key,
            list_lag_s=list_lag_s,
            throttle=throttle,
            account_id=account_id,
        )
        super().__init__(world, faults, vast_app(world, faults, settings))


class Wire(httpx2.AsyncBaseTransport):
    """One client's connections: to the market, and to what runs on rented machines."""

    def __init__(self, market: Behind) -> None:
        self._market = market
        self.alive = True
        self.serving: set[asyncio.Task[httpx2.Response]] = set()

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        if not self.alive:
            await asyncio.get_running_loop().create_future()
        if request.url.port != 9:
            return await self._workload(request)
        body = await request.aread()
        self._market.requests.append((request.method, request.url.path, body))
        # The market's side goes on when the client dies or leaves, so it is a task of its own.
        task = asyncio.get_running_loop().create_task(
            self._market.inner.handle_async_request(request)
        )
        self.serving.add(task)
        task.add_done_callback(self._served)
        await asyncio.wait([task])
        if not self.alive:
            await asyncio.get_running_loop().create_future()
        return task.result()

    def _served(self, task: asyncio.Task[httpx2.Response]) -> None:
        self.serving.discard(task)
        if not task.cancelled():
            task.exception()  # the client may have left before its connection was lost

    async def _workload(self, request: httpx2.Request) -> httpx2.Response:
        await self._market.world.advance()
        up = {
            port
            for contract in self._market.live
            if contract.running is not None
            for port in contract.running.ports.values()
        }
        if request.url.port in up:
            return httpx2.Response(200, request=request)
        raise httpx2.ConnectError("nothing listens there", request=request)


class Client:
    """One life of the program, on a ledger that outlives it."""

    def __init__(self, app: App, wire: Wire) -> None:
        self.app, self._wire = app, wire

    @property
    def is_waiting(self) -> bool:
        """Whether the market works on a call of this client."""
        return bool(self._wire.serving)

    def kill(self) -> None:
        """Nothing of this client happens any more."""
        self._wire.alive = False
        if not isinstance(self.app.ledger.database, Sqlite):
            hang_up(self.app.ledger.database)
            return

        @sa.event.listens_for(engine_of(self.app), "before_cursor_execute")
        def dead(*_: object) -> None:
            raise Killed

    def die_at_commit(self, number: int) -> None:
        """Die right before the n-th commit from now on."""
        count = 0

        def count_down(_connection: object = None) -> None:
            nonlocal count
            count += 1
            if count == number:
                self.kill()
                raise Killed

        if isinstance(self.app.ledger.database, Sqlite):
            sa.event.listen(engine_of(self.app), "commit", count_down)
        else:
            before_commits(self.app.ledger.database, count_down)

    async def settle(self, *, seconds: float = 400.0) -> None:
        """Reconcile as `serve` does, for so many virtual seconds."""
        try:
            async with asyncio.timeout(seconds):
                await self.app.run()
        except TimeoutError:
            return

    async def look(self, times: int, slug: str = "vastai") -> None:
        """Run so many ticks in this very coroutine, so that a cut falls into them."""
        for _ in range(times):
            with suppress(ProviderError):
                await self.app.reconciler.tick(slug)
            await asyncio.sleep(5)

    async def release_everything(self) -> None:
        """Release every open rental and wait for the proof."""
        for rental in await self.app.ledger.open_rentals():
            await self.app.broker.release(rental.key)

    async def books(self) -> tuple[list[Rental], Decimal]:
        """Return all rentals and what the ledger says they cost."""
        everything = await self.app.ledger.every_rental()
        at = self.app.clock.now()
        return everything, sum((rentals.cost_usd(r, at=at) for r in everything), Decimal(0))


def engine_of(app: App) -> sa.Engine:
    """Return what a client's ledger file is written through."""
    database = app.ledger.database
    assert isinstance(database, Sqlite)
    return database.engine


@asynccontextmanager
async def client(
    market: Market,
    ledger: Path | str,
    *,
    seed: int = 1,
    settle_s: int = SETTLE_S,
    late_window_s: int = LATE_WINDOW_S,
    key: str = API_KEY,
) -> AsyncIterator[Client]:
    """Start a client on a file, or on the ledger at a URL.

    Leaving the block closes it politely unless it was killed.
    """
    environ = {
        "VASTAI_BASE_URL": BASE_URL,
        "VASTAI_API_KEY": key,
        "VASTAI_BILL_LAG_S": "0",
        "VASTAI_SETTLE_S": str(settle_s),
        "VASTAI_LATE_WINDOW_S": str(late_window_s),
    }
    async with client_of(market, environ, ledger, seed=seed) as one:
        yield one


@asynccontextmanager
async def client_of(
    market: Behind, environ: Mapping[str, str], ledger: Path | str, *, seed: int
) -> AsyncIterator[Client]:
    """Start a client of any market, as its variables say."""
    url, folder = (
        (ledger, NOWHERE) if isinstance(ledger, str) else (f"sqlite:///{ledger}", ledger.parent)
    )
    ours = {"GP4U_ALLOW_LOOPBACK": "1", "GP4U_DATABASE_URL": url}
    wire = Wire(market)
    async with open_app(
        load_settings({**environ, **ours}, folder),
        clock=VirtualClock(),
        random=Random(seed),
        transport=wire,
        registry=Registry(),
    ) as app:
        yield Client(app, wire)


class Cut(Exception):
    """The coroutine was cut at the await that was asked for."""


class _UpTo(Awaitable[T]):
    def __init__(self, coroutine: Coroutine[Any, Any, T], awaits: int) -> None:
        self._coroutine, self._left = coroutine, awaits

    def __await__(self) -> Generator[Any, Any, T]:
        steps = self._coroutine.__await__()
        thrown: BaseException | None = None
        while True:
            try:
                waited_for = steps.send(None) if thrown is None else steps.throw(thrown)
            except StopIteration as done:
                result: T = done.value
                return result
            thrown = None
            self._left -= 1
            if self._left == 0:
                _frozen.extend((steps, self._coroutine, waited_for))
                raise Cut
            try:
                yield waited_for
            except BaseException as error:  # noqa: BLE001 - handed on to where it belongs
                thrown = error


async def cut(coroutine: Coroutine[Any, Any, T], awaits: int) -> T:
    """Run a coroutine, freezing it for ever at its n-th suspension.

    Raises:
        Cut: it was frozen; else its result is returned.
    """

    async def life() -> T:
        return await _UpTo(coroutine, awaits)

    # A task of its own: what the frozen one had started may still want to cancel its parent.
    return await asyncio.get_running_loop().create_task(life())
