"""What the markets let one do inside, where instances really run: as processes of this machine."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any, ClassVar

from gp4u.clock import SystemClock
from gp4u.model import Demand, Port, Requirements, Workload
from gp4u.providers.contract import Provider
from gp4u.providers.registry import open_providers
from gp4u.settings import load_settings
from gp4u.sim.akash.market import AkashSettings
from gp4u.sim.serve import Simulator, simulator
from gp4u.sim.vastai.gate import VastSettings
from gp4u.testing import Held, InsideContract, Market, Trouble
from gp4u.testing.troubles import Act

HELLO = """
import socket, sys
with socket.create_server(("127.0.0.1", int(sys.argv[1]))) as listener:
    listener.accept()[0].sendall(b"hello")
"""


class Real:
    """A simulated market whose instances are processes, and the adapter over it."""

    def __init__(self, provider: Provider, sim: Simulator) -> None:
        self.provider, self._sim = provider, sim

    def strike(self, trouble: Trouble, act: Act) -> None:
        raise AssertionError(f"nothing goes wrong here: {trouble}, {act}")

    def heal(self) -> None:
        raise AssertionError("nothing went wrong here")

    async def truth(self) -> Sequence[Held]:
        return [Held(contract.label, contract.alive) for contract in self._sim.world.contracts]


class RealInside(InsideContract):
    """The suite over processes, in real time."""

    slug: ClassVar[str]
    settings: ClassVar[Any]
    demand: ClassVar[Demand] = Demand(
        requirements=Requirements(disk_gib=16, ports=1, verified_only=False)
    )
    workload: ClassVar[Workload] = Workload(
        image="busybox:1.36", ports=(Port(number=8000),), disk_gib=16
    )
    poll_s: ClassVar[float] = 0.2
    listens_on: ClassVar[int]

    @asynccontextmanager
    async def market(self) -> AsyncIterator[Market]:
        async with simulator(
            self.slug, runtime_name="process", boot_scale=0.02, settings=self.settings
        ) as sim:
            opened = open_providers(
                load_settings(sim.env, Path("/nonexistent")), clock=SystemClock(), random=Random(1)
            )
            try:
                yield Real(opened.providers[self.slug], sim)
            finally:
                await opened.aclose()


class TestVastAIInside(RealInside):
    """By SSH, with a key of the rental's own."""

    slug = "vastai"
    settings = VastSettings(throttle=0.0, list_lag_s=(0.0, 0.0), log_delay_s=0.0)
    listens_on = 39_231
    listener = ("python3", "-c", HELLO, "39231")


class TestAkashInside(RealInside):
    """By the gateway of its host."""

    slug = "akash"
    settings = AkashSettings(
        bid_delay_s=(0.0, 0.1), list_lag_s=(0.0, 0.0), replica_lags=False, status_delay_s=(0.0, 0.0)
    )
    listens_on = 39_232
    listener = ("python3", "-c", HELLO, "39232")
