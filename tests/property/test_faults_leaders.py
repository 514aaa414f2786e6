"""A leader that sleeps through its own replacement, at each await of a rent: R1, R2, R3.

A process can stop for a minute - a paused machine, a swapped-out guest - and wake up not knowing
it. By then another one leads, and has rented for the same pod, or has taken over what was begun.
Whatever the sleeper was about to do, the pod ends with one machine, and the market's meter with
what the ledger says.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Coroutine, Generator
from contextlib import asynccontextmanager, suppress
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeVar

import pytest

from gp4u.errors import Fenced, Gp4uError, OwnerHasRental
from gp4u.rentals.rental import Rental, RentalState
from gp4u.sim.faults import Rule
from tests.simulated import DEMAND, WORKLOAD, Client, Market, client
from tests.virtual_loop import run_virtual

T = TypeVar("T")
OWNER = "pod:11111111-1111-4111-8111-111111111111"
CENT = Decimal("0.000001")


class _Sleeping(Awaitable[T]):
    """A coroutine that goes on with its n-th suspension only once it is woken."""

    def __init__(
        self, coroutine: Coroutine[Any, Any, T], awaits: int, asleep: asyncio.Event
    ) -> None:
        self._coroutine, self._left, self._asleep = coroutine, awaits, asleep
        self.wake = asyncio.Event()

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
                self._asleep.set()
                while not self.wake.is_set():
                    try:
                        yield from self.wake.wait().__await__()
                    except asyncio.CancelledError as error:
                        thrown = error  # a deadline that passed meanwhile: seen on waking
                if thrown is not None:
                    continue
            try:
                yield waited_for
            except BaseException as error:  # noqa: BLE001 - handed on to where it belongs
                thrown = error


@asynccontextmanager
async def leading(one: Client) -> AsyncIterator[None]:
    """Hold the ledger and reconcile, as the one that leads does."""
    life = asyncio.get_running_loop().create_task(one.app.run())
    await asyncio.sleep(1)
    assert not life.done(), "it holds nothing"
    try:
        yield
    finally:
        life.cancel()
        with suppress(asyncio.CancelledError):
            await life


async def rent(one: Client) -> Rental:
    """Rent for the pod, as its worker does."""
    return await one.app.broker.rent(OWNER, DEMAND, WORKLOAD, wait=False)


async def story(
    folder: Path, awaits: int, *, gives_up: bool, rules: tuple[Rule, ...]
) -> tuple[bool, str]:
    """Have a leader fall asleep at an await; return whether it did, and what became of its rent."""
    market, ledger = Market(seed=3, rules=rules), folder / f"{awaits}.db"
    asleep = asyncio.Event()
    async with client(market, ledger, seed=1) as old, client(market, ledger, seed=2) as new:
        async with old.app.ledger.hold():
            sleeping = _Sleeping(rent(old), awaits, asleep)
            task = asyncio.get_running_loop().create_task(_outcome(sleeping))
            done = asyncio.get_running_loop().create_task(asleep.wait())
            await asyncio.wait([task, done], return_when=asyncio.FIRST_COMPLETED)
            done.cancel()
        # Its hold has lapsed, and it does not know: from here on another one leads.
        fell_asleep = asleep.is_set()
        async with leading(new):
            try:
                await rent(new)
            except OwnerHasRental:
                assert fell_asleep or task.done()
            if gives_up:
                await asyncio.sleep(900)
            sleeping.wake.set()
            await asyncio.wait([task])
            await asyncio.sleep(600)

            held = [r for r in await new.app.ledger.open_rentals() if r.is_live]
            assert len(held) <= 1
            assert len(market.live) == len(held), "a machine that no rental explains"
            await new.release_everything()
            await asyncio.sleep(200)
            everything, cost = await new.books()
            assert market.live == []
            assert {r.state for r in everything} == {RentalState.RELEASED}
            assert abs(cost - market.world.meter_total()) <= CENT
    return fell_asleep, task.result()


async def _outcome(rent: Awaitable[Rental]) -> str:
    try:
        return (await rent).state.value
    except Gp4uError as error:
        return type(error).__name__


@pytest.mark.parametrize("gives_up", [False, True], ids=["brief", "long"])
@pytest.mark.parametrize("lost", [False, True], ids=["answered", "reply-lost"])
def test_a_leader_that_slept_through_its_replacement_makes_no_second_machine(
    gives_up: bool, lost: bool, tmp_path: Path
) -> None:
    """R1 to R3: between decision and intent it is fenced off; later, its work is taken over."""
    rules = (Rule(kind="reset_after", endpoint="create", calls=(1,)),) if lost else ()
    outcomes: list[str] = []
    awaits = 1
    while True:
        fell_asleep, became = run_virtual(
            lambda n=awaits: story(tmp_path, n, gives_up=gives_up, rules=rules),  # type: ignore[misc] # mypy cannot infer a lambda's default
            seed=awaits,
        )
        if not fell_asleep:
            break
        outcomes.append(became)
        awaits += 1

    assert len(outcomes) >= 5, "nothing was slept through"
    assert Fenced.__name__ in outcomes, "nobody was ever fenced off"
