"""What the failed pods of one controller may cost in an hour.

A controller makes a new pod for each that fails, and each of them rents. Hides how it is known what
that has cost: from the ledger alone, where each rental's history says for which pod and controller
it was made, and its end what became of that pod. So it holds after a restart, and for all nodes
that share a ledger. What a market took away or lost does not count, nor does what still runs.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Final

from msgspec import Struct

from gp4u.clock import Clock
from gp4u.errors import Gp4uError
from gp4u.kubelet.pods.loss import Kind, ending_of
from gp4u.rentals.ledger import Ledger
from gp4u.rentals.rental import Rental, cost_usd

NOTE: Final = "pod"
"""Kind of the line in a rental's history that says for which pod it was made."""
VARIABLE: Final = "GP4U_NODE_FAILED_USD_PER_HOUR"
HOUR: Final = timedelta(hours=1)
FRESH_S: Final = 5.0
"""So long the ledger is not read again, however many pods ask."""
_MARKETS_FAULT: Final = frozenset({"InstanceLost", "Preempted", "InstanceReleased"})


class Overspent(Gp4uError):
    """The failed pods of a controller have cost too much; nothing was sent."""

    def __init__(self, spent_usd: Decimal, bound_usd: Decimal, *, at: datetime, until: datetime):
        self.wait_s = (until - at).total_seconds()
        super().__init__(
            f"failed pods of the same controller cost ${spent_usd:.2f} within an hour, and "
            f"{VARIABLE} allows ${bound_usd:f}: nothing is rented for it before "
            f"{until:%Y-%m-%d %H:%M:%S} UTC"
        )


class Failed(Struct, frozen=True, kw_only=True):
    """A rental whose pod failed, or never ran on it."""

    began_at: datetime
    ended_at: datetime
    usd: Decimal

    def usd_since(self, since: datetime) -> Decimal:
        """Return what it cost after a moment, as if each second had cost the same."""
        if since <= self.began_at:
            return self.usd
        whole_s = (self.ended_at - self.began_at).total_seconds()
        part_s = (self.ended_at - since).total_seconds()
        if part_s <= 0:
            return Decimal(0)
        return self.usd * Decimal(str(part_s)) / Decimal(str(whole_s))


class Spending:
    """Asks the ledger, for all pods of a node."""

    def __init__(self, ledger: Ledger, clock: Clock, bound: Callable[[], Decimal | None]) -> None:
        """`bound` is in dollars for each controller and hour; None: there is none."""
        self._ledger, self._clock, self._bound = ledger, clock, bound
        self._failed: Mapping[str, Sequence[Failed]] = {}
        self._read_s: float | None = None
        self._reading = asyncio.Lock()  # one read for all who ask

    async def check(self, controller: str | None) -> None:
        """Return if one more machine may be rented for a controller, given by its UID.

        Raises:
            Overspent: it may not.
            LedgerUnusable: nobody can tell.
        """
        bound = self._bound()
        if controller is None or bound is None:
            return
        async with self._reading:
            now_s = asyncio.get_running_loop().time()
            if self._read_s is None or now_s - self._read_s >= FRESH_S:
                at = self._clock.now()
                ended = await self._ledger.ended_since(at - HOUR, kind=NOTE)
                self._failed, self._read_s = failures(ended, at=at), now_s
        at = self._clock.now()
        failed = self._failed.get(controller, ())
        spent = spent_usd(failed, at=at)
        if spent > bound:
            raise Overspent(spent, bound, at=at, until=goes_on_at(failed, bound, at=at))


def place(home: str, named: str, controller: str | None) -> str:
    """Return the line in a rental's history that says for which pod it was made.

    `home` is the node with its cluster, `named` the pod with its namespace.
    """
    return " ".join(filter(None, (home, named, controller)))


def whose(line: str) -> tuple[str, str, str | None]:
    """Return node, pod and controller of such a line; what it does not say is empty."""
    home, named, controller, *_ = [*line.split(" "), "", "", ""]
    return home, named, controller or None


def failures(
    ended: Iterable[tuple[Rental, str]], *, at: datetime
) -> Mapping[str, Sequence[Failed]]:
    """Return what failed, by the UID of the controller; each rental comes with its line."""
    found: defaultdict[str, list[Failed]] = defaultdict(list)
    for rental, line in ended:
        *_, controller = whose(line)
        if controller is None or not is_failure(rental):
            continue
        began_at = rental.confirmed_at or rental.intended_at
        usd = cost_usd(rental, at=at)
        found[controller].append(
            Failed(began_at=began_at, ended_at=rental.released_at or at, usd=usd)
        )
    return found


def is_failure(rental: Rental) -> bool:
    """Whether a rental that left the live states served a pod that failed, or never served."""
    ending = ending_of(rental, interruptible=False)
    match ending.kind:
        case Kind.UNSERVED:
            return True
        case Kind.FAILED:
            return ending.reason not in _MARKETS_FAULT
        case Kind.EXITED:
            return ending.exit_code != 0
        case Kind.PREEMPTED | Kind.LOST | Kind.RELEASED | Kind.REPLACED | Kind.DELETED:
            return False


def spent_usd(failed: Iterable[Failed], *, at: datetime) -> Decimal:
    """Return what they cost within the hour before `at`."""
    return sum((each.usd_since(at - HOUR) for each in failed), Decimal(0))


def goes_on_at(failed: Sequence[Failed], bound: Decimal, *, at: datetime) -> datetime:
    """Return when they will have cost no more than `bound` within an hour, to the second."""

    def is_over_after(wait_s: int) -> bool:
        return spent_usd(failed, at=at + timedelta(seconds=wait_s)) <= bound

    most_s = int(HOUR.total_seconds())
    wait_s = bisect_left(range(most_s), x=True, key=is_over_after)
    return at + timedelta(seconds=wait_s)
