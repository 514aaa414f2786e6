"""Simulated markets as the contract suite wants them: opened as in production, broken on purpose.

`opened` builds an adapter from variables through the registry, on a simulator in this process.
What a trouble looks like at one market is said as rules of its simulator; the suite knows none.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from random import Random
from typing import Any

from msgspec import Struct
from starlette.applications import Starlette

from gp4u.providers.contract import Provider
from gp4u.providers.registry import open_providers
from gp4u.settings import load_settings
from gp4u.sim.faults import Faults, Kind, Rule
from gp4u.sim.inprocess import InProcessTransport
from gp4u.sim.runtime import pretend
from gp4u.sim.world import World
from gp4u.testing import Act, Held, Trouble
from gp4u.testing.troubles import ONLY
from tests.virtual_loop import EPOCH, VirtualClock

ORIGIN = "http://127.0.0.1:9"
LATE_S = 10.0
"""By so much a late listing is late: within every market's `settle_s`."""
KINDS: Mapping[Trouble, tuple[str, Mapping[str, Any]]] = {
    Trouble.NO_CONNECTION: (Kind.REFUSE, {}),
    Trouble.LOST_BEFORE: (Kind.RESET_BEFORE, {}),
    Trouble.LOST_REPLY: (Kind.RESET_AFTER, {}),
    Trouble.HANG: (Kind.HANG_BEFORE, {"seconds": 7200.0}),
    Trouble.SERVER_ERROR: (Kind.STATUS, {"status": 503}),
    Trouble.THROTTLED: (Kind.THROTTLE, {}),
    Trouble.DENIED: (Kind.BAD_KEY, {}),
    Trouble.MALFORMED: (Kind.BODY, {"shape": "garbage"}),
    Trouble.OFFER_GONE: (Kind.OFFER_GONE, {}),
    Trouble.LATE_LISTING: (Kind.LATE_LISTING, {"seconds": LATE_S}),
    Trouble.PARTIAL_PAGE: (Kind.LIST_LOST_PAGE, {}),
}


class Dialect(Struct, frozen=True, kw_only=True):
    """One market: how it is simulated, opened and broken."""

    slug: str
    app: Callable[[World, Faults], Starlette]
    env: Mapping[str, str]
    endpoints: Mapping[Act, str]
    """The simulator's name of the endpoint that an act cannot do without."""
    held: Callable[[Starlette, World], Sequence[Held]] | None = None
    """What is held beside contracts; None: contracts are everything."""
    finish: Callable[[Provider, Starlette], None] | None = None
    """What else an opened adapter needs to run without a socket."""


def _contracts(world: World) -> list[Held]:
    return [Held(contract.label, contract.alive) for contract in world.contracts]


class Simulated:
    """A simulated market and the adapter over it."""

    def __init__(
        self, provider: Provider, dialect: Dialect, world: World, app: Starlette, faults: Faults
    ) -> None:
        self.provider, self.world, self.faults = provider, world, faults
        self._dialect, self._app = dialect, app
        self._struck: Trouble | None = None

    def strike(self, trouble: Trouble, act: Act) -> None:
        self._struck = trouble
        kind, fields = KINDS[trouble]
        self.faults.add(Rule(kind=kind, endpoint=self._dialect.endpoints[act], **fields))

    def heal(self) -> None:
        if self._struck in ONLY:  # the others show in an error that the suite insists on
            fired = {kind for _, _, kind in self.faults.fired}
            assert KINDS[self._struck][0] in fired, f"{self._struck} struck nothing"
        self._struck = None
        self.faults.clear()

    async def truth(self) -> Sequence[Held]:
        await self.world.advance()
        if self._dialect.held is not None:
            return self._dialect.held(self._app, self.world)
        return _contracts(self.world)


def make_world(*, seed: int = 1, offers: int = 120) -> World:
    """Return a world on the running loop's clock; boots take ten seconds."""
    loop = asyncio.get_running_loop()
    return World(
        loop.time,
        Random(seed),
        runtime=pretend(Random(2)),
        offers=offers,
        boot_s=(10.0, 10.0),
        credit_usd=Decimal(1000),
        epoch_s=EPOCH.timestamp() + loop.time(),
    )


@asynccontextmanager
async def simulated(dialect: Dialect) -> AsyncIterator[Simulated]:
    """Open a fresh market on the running loop's clock, and its adapter from variables."""
    world, faults = make_world(), Faults(random=Random(3))
    app = dialect.app(world, faults)
    environ = {"GP4U_ALLOW_LOOPBACK": "1", **dialect.env}
    opened = open_providers(
        load_settings(environ, Path("/nonexistent")),
        clock=VirtualClock(),
        random=Random(4),
        transport=InProcessTransport(app),
    )
    provider = opened.providers[dialect.slug]
    if dialect.finish is not None:
        dialect.finish(provider, app)
    try:
        yield Simulated(provider, dialect, world, app, faults)
    finally:
        await opened.aclose()
        await world.aclose()
