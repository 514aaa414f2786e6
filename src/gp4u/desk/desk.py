"""The desk: everything that a person or a program can ask of GP4U, one method for each wish.

The REST routes and the command line both stand in front of it, so the two cannot drift apart. It
takes a demand, a workload, a key, and answers in shapes (`shapes.py`). `LocalDesk` answers from the
open parts of this process; the command line has another one that asks a running server.

What goes wrong is raised as it is everywhere (`errors.py`), whichever desk is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Protocol

from gp4u.desk.shapes import (
    DecisionShape,
    DryRunShape,
    FinishedShape,
    LookShape,
    MarketShape,
    PricesShape,
    RentalShape,
    StepShape,
    UnexplainedShape,
)
from gp4u.errors import Gp4uError
from gp4u.model import Demand, Workload

Tell = Callable[[StepShape], None]


class NoOfferFits(Gp4uError):
    """What `NothingFits` becomes in front of the desk: `decision` is told, not computed."""

    def __init__(self, decision: DecisionShape) -> None:
        self.decision = decision
        super().__init__("no offer fits")


class Desk(Protocol):
    """What can be asked."""

    async def markets(self) -> Sequence[MarketShape]:
        """Return every market there are settings for, in their order."""

    async def decide(
        self, demand: Demand, *, top: int | None, rejections: bool, tell: Tell
    ) -> DecisionShape:
        """Return who would be rented and why; None as `top` is everybody who fits.

        Where nothing fits because the search itself kept every offer out, the reasons are those of
        a wider search. Nothing is changed, and nothing is raised when nothing fits.
        """

    async def dry_run(self, demand: Demand, workload: Workload) -> DryRunShape:
        """Return the choice and the calls that `rent` would send; send none of them.

        Raises:
            BadInput: no candidate's market can take this workload.
        """

    async def rent(
        self, owner: str, demand: Demand, workload: Workload, *, wait: bool, tell: Tell
    ) -> RentalShape:
        """Rent; return once the workload answers, or with `wait=False` once it is rented.

        Raises:
            NoOfferFits, OwnerHasRental, BudgetRefused, BadInput, OutcomeUnknown, ProviderError: as
                `Broker.rent` does.
        """

    async def look(self, *, everything: bool, ask: bool) -> LookShape:
        """Return the rentals: open ones, or with `everything` the newest of any state.

        With `ask` every open market is listed first; else they are as they were last seen.
        """

    async def find(self, word: str) -> RentalShape:
        """Return the one rental that a key, its beginning, a name or an instance id means.

        Its history is with it.

        Raises:
            NoSuch: none. BadInput: several.
        """

    async def release(self, key: str, *, reason: str, wait: bool, tell: Tell) -> RentalShape:
        """Release; return once it is proven that nothing is left, or with `wait=False` once asked.

        Raises:
            NoSuch: there is no such rental. MarketClosed: its market is closed to us.
            ProviderError: it cannot be released by us.
        """

    async def forget(self, key: str) -> RentalShape:
        """Close a rental on a person's word, without proof.

        Raises:
            NoSuch: there is no such rental.
        """

    async def logs(self, key: str, *, tail: int, container: str | None = None) -> str:
        """Return the newest lines of what the workload printed, or a container beside it.

        Raises:
            NoSuch, MarketClosed: as `release`. BadInput: it has no instance yet or no such
                container, or its market tells no logs.
            ProviderError: the market does not tell.
        """

    async def execute(
        self,
        key: str,
        command: Sequence[str],
        *,
        stdin: bytes,
        timeout_s: float,
        container: str | None = None,
    ) -> FinishedShape:
        """Run a command inside the instance, or a container beside the workload's own; return how
        it ended.

        Raises:
            NoSuch, MarketClosed, BadInput, ProviderError: as `logs`.
        """

    async def orphans(self) -> tuple[Sequence[UnexplainedShape], Sequence[str]]:
        """List every open market; return machines of ours that nothing explains, and warnings.

        Raises:
            ProviderError: no market could be listed.
        """

    async def release_orphan(self, provider: str, instance_id: str) -> None:
        """Release a machine that nothing explains; it is looked up once more before.

        Raises:
            NoSuch: it is no orphan. ProviderError: the market did not take it.
        """

    async def prices(
        self, gpu_model: str, *, within: timedelta, provider: str | None
    ) -> PricesShape:
        """Return what a canonical model cost, as far back as `within`."""
