"""What the markets of this tree share when they are put to the contract suite."""

from __future__ import annotations

from collections.abc import Coroutine
from contextlib import AbstractAsyncContextManager
from typing import Any, ClassVar

from gp4u.model import Demand, Port, Requirements, Workload
from gp4u.testing import Market, ProviderContract
from tests.contract.conformance.simulated import Dialect, simulated
from tests.virtual_loop import run


class Conforming(ProviderContract):
    """The suite over one simulated market, on the virtual loop."""

    dialect: ClassVar[Dialect]
    demand: ClassVar[Demand] = Demand(
        requirements=Requirements(disk_gib=16, ports=1, verified_only=False)
    )
    workload: ClassVar[Workload] = Workload(
        image="busybox:1.36", ports=(Port(number=8000),), disk_gib=16
    )
    poll_s: ClassVar[float] = 5.0

    def market(self) -> AbstractAsyncContextManager[Market]:
        return simulated(self.dialect)

    def run(self, scenario: Coroutine[Any, Any, None]) -> None:
        run(scenario, seed=1)
