"""What the markets hold in store for a node: which answer, and how many GPUs could still be rented.

Hides that this is dear to work out: it is done now and then, from a book that is kept
warm, and told at any time from memory. What the node makes of it is `capacity.py`'s and
`node.py`'s.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any, Final

import structlog
from msgspec.structs import replace

from gp4u.book import STANDING, Book
from gp4u.clock import Clock
from gp4u.errors import LedgerUnusable
from gp4u.kube.quantity import parse_quantity
from gp4u.kubelet.held import PodObject, Pods
from gp4u.kubelet.node.capacity import Rentable, Room, still_rentable
from gp4u.kubelet.node.node import Outlook
from gp4u.kubelet.node.node_object import GPU
from gp4u.kubelet.policy import NodePolicy
from gp4u.model import Demand
from gp4u.providers.contract import Query
from gp4u.rentals.budget import Budget
from gp4u.rentals.ledger import Ledger
from gp4u.resilience.breaker import BreakerState
from gp4u.resilience.guard import Guard

LOOK_S: Final = 30.0
UNKNOWN_S: Final = 1.0
"""Until the next look where nobody has told anything: a new node offers nothing before that."""
RECENT: Final = 10_000
"""Rentals that a day's budget is worked out from, at most."""
ENDED: Final = ("Succeeded", "Failed")
BY_BID: Final = Query(requirements=replace(STANDING.requirements, interruptible=True))
"""What a node keeps warm whose pods bid: what is rented on demand tells nothing of that."""


class MarketOutlook:
    """Looks every `LOOK_S`, sooner while nothing is known; `run` it in a task."""

    def __init__(
        self,
        *,
        book: Book,
        ledger: Ledger,
        guards: Mapping[str, Guard],
        budget: Budget,
        policy: Callable[[], NodePolicy],
        pods: Pods,
        clock: Clock,
    ) -> None:
        self._book, self._ledger, self._guards, self._budget = book, ledger, guards, budget
        self._policy, self._pods, self._clock = policy, pods, clock
        self._rentable: Rentable | None = None

    def tell(self) -> Outlook:
        """Return what is known at this moment."""
        in_use = sum(gpus_of(held.pod) for held in self._pods.all())
        markets = {slug: _silence(guard) for slug, guard in self._guards.items()}
        found = self._rentable
        room = Room(in_use=in_use, more=None)
        if found is not None:
            room = Room(in_use=in_use, more=found.gpus, shortage=found.shortage)
        return Outlook(room=room, markets=markets)

    async def run(self) -> None:
        """Look until cancelled."""
        async with asyncio.TaskGroup() as group:
            if self._policy().interruptible:
                group.create_task(self._book.keep(BY_BID))
            await self._look_on()

    async def _look_on(self) -> None:
        while True:
            try:
                self._rentable = await self._look()
            except LedgerUnusable as error:
                structlog.get_logger().warning("capacity_unknown", error=str(error))
                self._rentable = None
            await asyncio.sleep(LOOK_S if self._rentable is not None else UNKNOWN_S)

    async def _look(self) -> Rentable | None:
        """Return what could be rented besides; None where no market has told anything."""
        from gp4u.selection.decide import decide  # numpy: only once there is a book to look at

        policy, at = self._policy(), self._clock.now()
        snapshot = self._book.current(BY_BID if policy.interruptible else STANDING)
        if not snapshot.sources or all(each.error and not each.offers for each in snapshot.sources):
            return None
        wanted = replace(
            policy.defaults.requirements,
            interruptible=policy.interruptible,
            max_price_usd_per_hour=policy.default_usd_per_hour,
        )
        demand = Demand(requirements=wanted, preferences=policy.defaults.preferences)
        decision = decide(snapshot, demand, at=at, max_age_s=float("inf"))
        rentals = await self._ledger.all_rentals(limit=RECENT)
        return still_rentable(
            decision.candidates, self._budget, rentals, most=policy.max_gpus, at=at
        )


def gpus_of(pod: PodObject) -> int:
    """Return how many GPUs the scheduler has set aside for a pod; none for one that has ended."""
    if (pod.get("status") or {}).get("phase") in ENDED:
        return 0
    spec: Mapping[str, Any] = pod["spec"]
    together = sum((_asked(each) for each in spec["containers"]), Decimal(0))
    return int(max((together, *(_asked(each) for each in spec.get("initContainers") or ()))))


def _asked(container: Mapping[str, Any]) -> Decimal:
    limits = (container.get("resources") or {}).get("limits") or {}
    return parse_quantity(str(limits.get(GPU, "0")))


def _silence(guard: Guard) -> str:
    """Return why a market does not answer; empty: it does."""
    state = guard.health().breaker.state
    return "" if state is BreakerState.CLOSED else f"its circuit breaker is {state}"
