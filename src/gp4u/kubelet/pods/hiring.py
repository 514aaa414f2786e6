"""One pod's way through the lane of those who rent: from its wish to what came of it.

Hides that a rent runs beside the pod's worker: what it tells on its way is taken over at once, and
what it ends with wakes the worker up. A rental that the ledger has for the pod already is adopted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from random import Random
from typing import Any, Final

from msgspec.structs import replace

from gp4u.errors import LedgerUnusable, OwnerHasRental
from gp4u.kubelet.pods.answers import after_rent, news_of
from gp4u.kubelet.pods.memory import Why
from gp4u.kubelet.pods.renting import Errand, Looks, RentLane
from gp4u.kubelet.pods.standing import Standing
from gp4u.model import Decision, RentalKey
from gp4u.rentals.broker import Decided, Intended, Progress, Rented, Unsettled, Waiting
from gp4u.rentals.ledger import Ledger
from gp4u.rentals.rental import Rental

OFFER_WAIT_S: Final = (20.0, 40.0)
"""Between two looks for an offer: prices are fetched anew about once a minute."""


class Hiring:
    """Rents for one pod."""

    def __init__(
        self,
        now: Standing,
        *,
        ledger: Ledger,
        random: Random,
        lane: RentLane,
        looks: Looks,
        follow: Callable[[RentalKey, str], None],
        wake: Callable[[], None],
        place: str,
    ) -> None:
        """`place` is written to each rental's history, for who finds it without its pod."""
        self._now, self._ledger, self._random = now, ledger, random
        self._lane, self._looks, self._follow, self._wake = lane, looks, follow, wake
        self._place = place
        self._decisions: dict[str, Decision] = {}

    def rent(self, suffix: str, group: asyncio.TaskGroup) -> None:
        """Ask for the machine of one slot; `group` takes what has to be done when that ended."""
        slot = self._now.slot(suffix)
        if slot is None:
            return
        now_s = asyncio.get_running_loop().time()
        why = slot.why
        if not slot.misses and why.reason == "ContainerCreating":
            text = f"waits for its turn to rent, behind {self._lane.waiting} others"
            why = Why("ContainerCreating", text if self._lane.waiting else "is looking for a GPU")
        self._now.put(replace(slot, renting=True, why=why))
        self._lane.ask(
            Errand(
                owner=self._now.owner(suffix),
                namespace=self._now.pod["metadata"]["namespace"],
                controller=self._now.controller,
                demand=slot.demand,
                workload=slot.workload,
                avoid=frozenset((each[0], each[1]) for each in slot.avoid if each[2] > now_s),
                place=self._place,
                tell=partial(self._hear, suffix),
                done=partial(self._ended, suffix, group),
            )
        )

    def withdraw(self, suffix: str) -> None:
        """Call off the rent for one slot, as long as nothing was sent for it."""
        self._lane.withdraw(self._now.owner(suffix))

    def _hear(self, suffix: str, progress: Progress) -> None:
        """Take over what a rent tells on its way."""
        slot = self._now.slot(suffix)
        match progress:
            case Decided(decision):
                self._decisions[suffix] = decision
            case Intended(rental, _):
                self._follow(rental.key, self._now.uid)
                if slot is not None:
                    self._now.put(replace(slot, rental=rental))
            case Rented(rental) | Unsettled(rental, _):
                self._looks.expect(rental.provider)
            case Waiting(seconds) if slot is not None:
                text = f"the markets want patience; they are asked again in {seconds:.0f} s"
                why = Why("ContainerCreating", text)
                self._now.put(replace(slot, why=why))
            case _:
                pass
        self._now.tell(*news_of(progress, self._decisions.get(suffix), self._now.memory.wish))
        self._wake()

    def _ended(self, suffix: str, group: asyncio.TaskGroup, outcome: Rental | Exception) -> None:
        self._decisions.pop(suffix, None)
        slot = self._now.slot(suffix)
        if slot is None:
            return
        now_s = asyncio.get_running_loop().time()
        again_s = now_s + self._random.uniform(*OFFER_WAIT_S)
        wish = self._now.memory.wish
        slot, news = after_rent(slot, outcome, wish, now_s=now_s, again_s=again_s)
        if isinstance(outcome, OwnerHasRental):
            slot = replace(slot, renting=True)  # until it is known which one it is
            group.create_task(self._adopt(suffix, outcome.key))
        self._now.put(slot)
        if not (self._now.leaving or self._now.is_gone):
            self._now.tell(*news)
        self._wake()

    async def _adopt(self, suffix: str, key: RentalKey) -> None:
        """Take over a rental that the ledger has for this pod, and that was not known here."""
        rental = None
        try:
            rental = await self._ledger.get(key)
        except LedgerUnusable as error:
            _log().error("ledger_unusable", pod=self._now.named, problem=str(error))
        slot = self._now.slot(suffix)
        if slot is not None:
            self._now.put(replace(slot, renting=False, rental=rental or slot.rental))
        self._follow(key, self._now.uid)
        self._wake()


def _log() -> Any:
    import structlog  # 60 ms that only a process that stays has to pay

    return structlog.get_logger()
