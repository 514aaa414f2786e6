"""What follows from a look, where a rental moves meanwhile or the ledger takes no move."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from random import Random

import pytest
import sqlalchemy as sa
from msgspec.structs import replace

from gp4u.errors import LedgerUnusable, Unavailable
from gp4u.model import Endpoint, HealthCheck, Instance, InstanceState
from gp4u.rentals import rental as rentals
from gp4u.rentals.plan import Probe
from gp4u.rentals.probe import PROBE_TIMEOUT_S, Prober
from gp4u.rentals.rental import Rental, RentalState
from gp4u.testing import Act, Trouble
from tests.contract.conformance.in_memory import SPEC, Shop, Thing, Upright
from tests.unit.rentals.builders import intended
from tests.unit.rentals.test_abilities import Place, told
from tests.virtual_loop import VirtualClock

SETTLE = timedelta(seconds=5)


class Slow(Upright):
    """Takes its time to end a machine: something else happens meanwhile."""

    spec = replace(SPEC, slug="vastai")

    def __init__(self, shop: Shop) -> None:
        super().__init__(shop)
        self.shown_as: dict[str, InstanceState] = {}
        self.meanwhile: Callable[[], Awaitable[object]] | None = None

    def instance(self, thing: Thing) -> Instance:
        state = self.shown_as.get(str(thing.number), InstanceState.RUNNING)
        return replace(super().instance(thing), state=state)

    async def billed(self, instance_id: str) -> Decimal | None:
        if self.meanwhile is not None:
            await self.meanwhile()
        return await super().billed(instance_id)

    async def release(self, instance_id: str) -> None:
        if self.meanwhile is not None:
            await self.meanwhile()
        await super().release(instance_id)


class Mute(Prober):
    """Asks workloads that take every connection and never answer."""

    def __init__(self) -> None:
        super().__init__(allow_loopback=False)

    async def healthy(self, endpoints: Iterable[Endpoint], checks: Iterable[HealthCheck]) -> str:
        await asyncio.sleep(PROBE_TIMEOUT_S)
        return "no answer"


@pytest.mark.parametrize("state", [InstanceState.RUNNING, InstanceState.FAILED])
def test_nothing_more_is_done_for_a_rental_that_was_moved_meanwhile(
    state: InstanceState, tmp_path: Path
) -> None:
    """The reply to its rent came while the look that adopts it was ending another machine.

    What was planned for it stood on what it was: it is neither asked to end without that wish on
    disk, nor told to have answered.
    """

    async def tale(place: Place) -> None:
        market = place.reconciler._providers["vastai"]
        assert isinstance(market, Slow)
        at = VirtualClock().now()
        old, new = await _made(place, "cli:old", 2), await _made(place, "cli:new", 1)
        market.shown_as["101"] = state
        await place.ledger.move(old, rentals.give_up(old, "asked", at=at), at=at)

        async def confirmed() -> None:
            market.meanwhile = None
            now = rentals.confirm(new, "101", at=at, settle=SETTLE)
            await place.ledger.move(new, now, at=at)

        market.meanwhile = confirmed
        tick = await place.reconciler.tick("vastai")

        assert not tick.problems
        assert [thing.alive for thing in place.shop.things] == [False, True]
        now = await place.ledger.get(new.key)
        assert now is not None
        assert now.state is RentalState.STARTING

        await place.reconciler.tick("vastai")
        now = await place.ledger.get(new.key)
        assert now is not None
        failed = state is InstanceState.FAILED
        assert now.state is (RentalState.RELEASING if failed else RentalState.RUNNING)

    told(tale, tmp_path, Slow)


def test_a_bill_that_is_overtaken_is_read_again_later(tmp_path: Path) -> None:
    """Somebody else books an orphan on the rental while its bill is asked for."""

    async def tale(place: Place) -> None:
        market = place.reconciler._providers["vastai"]
        assert isinstance(market, Slow)
        at = VirtualClock().now()
        made = await _made(place, "cli:a", 1)
        place.shop.find("100").alive = False
        ended = rentals.close(rentals.give_up(made, "asked", at=at, instance_id="100"), at=at)
        await place.ledger.move(made, ended, at=at)
        await place.reconciler.recall_bills()

        async def booked() -> None:
            market.meanwhile = None
            await place.ledger.move(ended, rentals.add_other(ended, "101"), at=at)

        market.meanwhile = booked
        await place.reconciler.tick("vastai")
        await asyncio.sleep(60)
        await place.reconciler.tick("vastai")

        now = await place.ledger.get(made.key)
        assert now is not None
        assert (now.others, now.billed_usd) == (("101",), Decimal("0.04"))

    told(tale, tmp_path, Slow)


async def _made(place: Place, owner: str, seconds: int) -> Rental:
    """Return a rental that was intended so long ago, and of which the reply is still to come."""
    at = VirtualClock().now() - timedelta(seconds=seconds)
    made = replace(intended(owner), key=place.ledger.mint(Random(owner)), intended_at=at)
    await place.ledger.intend(made, b"{}")
    place.shop.make(made.key, ())
    return made


@pytest.mark.parametrize("listed", [True, False])
def test_wished_ends_are_asked_for_while_the_ledger_takes_no_writes(
    listed: bool, tmp_path: Path
) -> None:
    """A full disk stops what is new; what is to end costs money until its market is asked."""

    async def tale(place: Place) -> None:
        at = VirtualClock().now()
        for number, owner in enumerate(("cli:a", "cli:b", "cli:c")):
            made = await _made(place, owner, 9 - number)
            held = rentals.confirm(made, str(100 + number), at=at, settle=SETTLE)
            await place.ledger.move(made, held, at=at)
            if owner != "cli:c":
                await place.ledger.move(held, rentals.give_up(held, "asked", at=at), at=at)
        await _take_no_writes(place)
        if not listed:
            place.shop.struck[Act.INSTANCES] = Trouble.SERVER_ERROR

        with pytest.raises(LedgerUnusable if listed else Unavailable):
            await place.reconciler.tick("vastai")

        assert [thing.alive for thing in place.shop.things] == [False, False, True]

    told(tale, tmp_path, Slow)


def test_nothing_is_ended_whose_end_could_not_be_written(tmp_path: Path) -> None:
    """It has no future, but its owner was not told so."""

    async def tale(place: Place) -> None:
        market = place.reconciler._providers["vastai"]
        assert isinstance(market, Slow)
        await _made(place, "cli:a", 1)
        market.shown_as["100"] = InstanceState.FAILED
        await _take_no_writes(place)

        with pytest.raises(LedgerUnusable):
            await place.reconciler.tick("vastai")

        assert [thing.alive for thing in place.shop.things] == [True]

    told(tale, tmp_path, Slow)


async def _take_no_writes(place: Place) -> None:
    await place.reconciler.account("vastai")  # is on record before the disk is full
    async with place.ledger.database.reading() as db:
        await db.execute(sa.text("PRAGMA query_only = ON"))


def test_workloads_that_say_nothing_are_asked_side_by_side(tmp_path: Path) -> None:
    """Each takes five seconds to fail, and meanwhile nobody's wished end is asked for."""

    async def tale(place: Place) -> None:
        place.reconciler._prober = Mute()
        for number in range(20):
            await _made(place, f"cli:{number}", 30 - number)
        began = asyncio.get_running_loop().time()

        tick = await place.reconciler.tick("vastai")

        assert asyncio.get_running_loop().time() - began <= 2 * PROBE_TIMEOUT_S
        assert sum(isinstance(action, Probe) for action in tick.actions) == 20
        assert set(place.reconciler.probes.values()) == {"no answer"}

    told(tale, tmp_path, Slow)
