"""Whose turn it is to rent, how soon a market is looked at, and who has to wait for having failed.

Hides that a thousand pods want a machine at once: a few rents are under way at a time, namespaces
take turns, and a rent whose pod went away is withdrawn as long as nothing has been sent for it.
What is torn down never comes through here. What a rent brought is the worker's business.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from functools import partial
from typing import Any, Final

from msgspec import Struct

from gp4u.errors import Gp4uError, RateLimitExceeded
from gp4u.kubelet.pods.runs import rent_wait_s
from gp4u.kubelet.pods.spending import NOTE, Spending
from gp4u.model import Demand, Workload
from gp4u.rentals.broker import Broker, Dropped, Intended, Progress, Waiting
from gp4u.rentals.reconcile import Reconciler
from gp4u.rentals.rental import Rental

AT_ONCE: Final = 8
"""Rents under way at a time."""
WIDER: Final = 0.1
"""For each rent that worked, the lane is so much wider, after markets' limits had narrowed it."""
LIMIT_WAIT_S: Final = (5.0, 60.0)
"""Shortest and longest wait for a market that lets us rent only so often."""
LOOK_PAUSE_S: Final = 2.0
LOOK_PAUSE_MAX_S: Final = 5.0
LOOK_SHARE: Final = 1.0
"""Between two looks, at least so many times what the last one took."""
EXPECT_S: Final = 35.0
"""A market is looked at often for so long after something was begun there; by then the loop that
looks at it always has seen that there is something to watch."""
MOST_OWNERS: Final = 10_000
FORGIVEN_S: Final = 3600.0


class Withdrawn(Gp4uError):
    """The rent was called off before anything was sent."""


class Errand(Struct, kw_only=True):
    """A wish to rent, and who wants to hear of it."""

    owner: str
    namespace: str
    controller: str | None = None
    """UID of what makes such pods."""
    demand: Demand
    workload: Workload
    avoid: Collection[tuple[str, str]]
    place: str = ""
    """Written to the rental's history, for who finds it without its pod."""
    tell: Callable[[Progress], None]
    done: Callable[[Rental | Exception], None]
    sent: bool = False
    """Whether an intent of it is on disk that may have been sent."""
    withdrawn: bool = False


class RentLane:
    """Rents for everybody, a few at a time."""

    def __init__(
        self, broker: Broker, *, spending: Spending | None = None, at_once: int = AT_ONCE
    ) -> None:
        """`spending` has a say in what is rented for the pods of a controller."""
        self._broker, self._at_once, self._width = broker, at_once, float(at_once)
        self._spending = spending
        self._lines: OrderedDict[str, deque[Errand]] = OrderedDict()
        self._under_way: dict[str, tuple[Errand, asyncio.Task[Rental | Exception]]] = {}
        self._group: asyncio.TaskGroup | None = None
        self.asked = 0
        """Rents that were begun so far."""

    @property
    def waiting(self) -> int:
        """How many rents wait for their turn."""
        return sum(map(len, self._lines.values()))

    @property
    def under_way(self) -> int:
        """How many rents are under way."""
        return len(self._under_way)

    def ask(self, errand: Errand) -> None:
        """Rent when its turn comes; `errand.done` is called once, whatever comes of it."""
        self._lines.setdefault(errand.namespace, deque()).append(errand)
        self._go_on()

    def withdraw(self, owner: str) -> None:
        """Call off a rent of which nothing was sent yet; one that was sent goes on to its end."""
        for namespace, line in list(self._lines.items()):
            for errand in [each for each in line if each.owner == owner]:
                line.remove(errand)
                if not line:
                    del self._lines[namespace]
                errand.done(Withdrawn(owner))
        if owner in self._under_way:
            errand, task = self._under_way[owner]
            if not errand.sent and not errand.withdrawn:
                errand.withdrawn = True
                task.cancel()

    async def run(self) -> None:
        """Rent until cancelled. A rent that is cancelled with it is settled by listings."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            self._go_on()
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                self._group = None  # what ends from now on makes room for nobody

    def _go_on(self) -> None:
        while self._group is not None and self._lines and len(self._under_way) < int(self._width):
            namespace, line = self._lines.popitem(last=False)
            errand = line.popleft()
            if line:
                self._lines[namespace] = line  # behind all others
            task = self._group.create_task(self._rent(errand))
            task.add_done_callback(partial(self._over, errand))
            self._under_way[errand.owner] = (errand, task)

    async def _rent(self, errand: Errand) -> Rental | Exception:
        self.asked += 1

        def tell(progress: Progress) -> None:
            match progress:
                case Intended():
                    errand.sent = True
                case Dropped():
                    errand.sent = False
                case _:
                    pass
            errand.tell(progress)

        try:
            if self._spending is not None:
                await self._spending.check(errand.controller)
            while True:
                try:
                    rental = await self._broker.rent(
                        errand.owner,
                        errand.demand,
                        errand.workload,
                        wait=False,
                        avoid=errand.avoid,
                        note=(NOTE, errand.place),
                        tell=tell,
                    )
                    self._width = min(self._at_once, self._width + WIDER)
                    return rental
                except RateLimitExceeded as error:
                    # Nobody's fault: it keeps its place, and the others come in smaller numbers.
                    self._width = max(1.0, self._width - 1)
                    pause_s = min(LIMIT_WAIT_S[1], max(LIMIT_WAIT_S[0], error.retry_in_s))
                    errand.tell(Waiting(pause_s))
                    await asyncio.sleep(pause_s)
        except Gp4uError as error:
            return error
        except Exception as error:  # noqa: BLE001 - a rim: one pod's bug must not stop the others
            _log().exception("rent_failed", owner=errand.owner)
            return error

    def _over(self, errand: Errand, task: asyncio.Task[Rental | Exception]) -> None:
        del self._under_way[errand.owner]
        if not task.cancelled():
            errand.done(task.result())
        elif errand.withdrawn:
            errand.done(Withdrawn(errand.owner))
        self._go_on()


class Looks:
    """Has markets looked at soon after something was begun there, once for all who wait."""

    def __init__(self, reconciler: Reconciler, markets: Iterable[str]) -> None:
        self._reconciler = reconciler
        self._wanted = {slug: asyncio.Event() for slug in markets}

    def expect(self, market: str) -> None:
        """Look now, and then again and again for a while."""
        if market in self._wanted:
            self._wanted[market].set()

    async def run(self) -> None:
        """Look until cancelled."""
        async with asyncio.TaskGroup() as group:
            for market in self._wanted:
                group.create_task(self._look(market))

    async def _look(self, market: str) -> None:
        loop, wanted = asyncio.get_running_loop(), self._wanted[market]
        while True:
            await wanted.wait()
            until, pause_s = 0.0, LOOK_PAUSE_S
            while wanted.is_set() or loop.time() < until:
                if wanted.is_set():
                    wanted.clear()
                    until, pause_s = loop.time() + EXPECT_S, LOOK_PAUSE_S
                began = loop.time()
                try:
                    await self._reconciler.tick(market)
                except Gp4uError:
                    pass  # the loop that looks always tells of it
                except Exception:  # noqa: BLE001 - a rim, as that of the loop that looks always
                    _log().exception("look_failed", provider=market)
                # A look at a thousand machines takes dozens of calls: they are not all there is.
                least_s = max(LOOK_PAUSE_S, LOOK_SHARE * (loop.time() - began))
                await asyncio.sleep(least_s)
                with suppress(TimeoutError):
                    async with asyncio.timeout(pause_s - least_s):
                        await wanted.wait()
                pause_s = min(LOOK_PAUSE_MAX_S, pause_s * 1.2)


class Patience:
    """How long the pods of an owner wait for a machine after others of it failed."""

    def __init__(self) -> None:
        self._failed: OrderedDict[str, tuple[int, float]] = OrderedDict()
        """Owner to how often in a row, and when at last."""

    def failed(self, owner: str, *, now_s: float) -> None:
        """Take note that a pod of the owner failed."""
        count, at_s = self._failed.pop(owner, (0, now_s))
        self._failed[owner] = (count + 1 if now_s - at_s < FORGIVEN_S else 1, now_s)
        if len(self._failed) > MOST_OWNERS:
            self._failed.popitem(last=False)

    def served(self, owner: str) -> None:
        """Take note that a pod of the owner did what it was there for."""
        self._failed.pop(owner, None)

    def until_s(self, owner: str, *, now_s: float) -> float:
        """Return the loop time before which nothing is rented for the owner."""
        count, at_s = self._failed.get(owner, (0, 0.0))
        if not count or now_s - at_s >= FORGIVEN_S:
            return now_s
        return at_s + rent_wait_s(count)


def _log() -> Any:
    import structlog  # 60 ms that only a process that stays has to pay

    return structlog.get_logger()
