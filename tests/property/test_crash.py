"""`kill -9` at every await and before every commit of a rent and of a release.

After each death a new process starts on the same ledger, reconciles, and releases. Judged by the
market's own billing meter: nothing is bought twice, every machine is explained by an open rental,
nothing is left behind, and the ledger's cost is the meter's. Faults P1, P2, H2; laws L1 to L5.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from decimal import Decimal
from pathlib import Path

import pytest

from gp4u.rentals.rental import RentalState
from gp4u.sim.faults import Rule
from tests.patient import Killed
from tests.simulated import DEMAND, WORKLOAD, Client, Cut, Market, client, cut
from tests.virtual_loop import run_virtual

TO_THE_CENT_OF_A_CENT = Decimal("0.000001")


async def rent(one: Client) -> None:
    """The whole of a rent, until the workload answers."""
    await one.app.broker.rent("cli:a", DEMAND, WORKLOAD)


async def rent_and_release(one: Client) -> None:
    """A whole life, so that cuts fall into the release as well."""
    rental = await one.app.broker.rent("cli:a", DEMAND, WORKLOAD)
    await one.app.broker.release(rental.key)


async def recover(market: Market, ledger: Path | str, *, rents: int = 1) -> None:
    """Start anew, reconcile, check the laws, release, check the books."""
    async with client(market, ledger, seed=2) as again:
        await again.settle()
        held = await again.app.ledger.open_rentals()
        assert market.rents() <= rents, "bought twice"
        assert {c.order.label for c in market.live} == {
            r.key for r in held if r.instance_id is not None and r.is_live
        }, "a machine that no rental explains, or a rental without its machine"
        for rental in held:
            assert rental.state in (RentalState.RUNNING, RentalState.RELEASING)
        await again.release_everything()
        everything, cost = await again.books()
    assert [r.state for r in everything] == [RentalState.RELEASED] * len(everything)
    assert market.live == [], "leaked"
    assert abs(cost - market.world.meter_total()) <= TO_THE_CENT_OF_A_CENT


def cuts(
    saga: Callable[[Client], Awaitable[None]], folder: Path, *, rules: tuple[Rule, ...] = ()
) -> int:
    """Kill the saga at its 1st, 2nd, ... await, each in a world of its own; return how many."""

    async def life(number: int) -> bool:
        market = Market(seed=3, rules=rules)
        ledger = folder / f"{number}.db"
        async with client(market, ledger) as one:
            try:
                await cut(_coroutine(saga, one), number)
            except Cut:
                one.kill()
                finished = False
            else:
                finished = True
        await recover(market, ledger)
        return finished

    number = 1
    while not run_virtual(lambda n=number: life(n), seed=number):  # type: ignore[misc] # mypy cannot infer a lambda's default
        number += 1
    return number - 1


async def _coroutine(saga: Callable[[Client], Awaitable[None]], one: Client) -> None:
    await saga(one)


def test_a_kill_at_each_await_of_rent_leaks_nothing(tmp_path: Path) -> None:
    """The gap that costs money lies between "the provider did it" and "we know it"."""
    assert cuts(rent, tmp_path) >= 10, "the saga has fewer awaits than calls: nothing was cut"


def test_a_kill_at_each_await_of_a_whole_life_leaks_nothing(tmp_path: Path) -> None:
    """A process that dies while it releases must not forget that it was releasing."""
    assert cuts(rent_and_release, tmp_path) >= 15


def test_a_kill_at_each_await_after_a_lost_reply_leaks_nothing(tmp_path: Path) -> None:
    """H2 and P1 together: the rent worked, the reply was lost, and then the process died."""
    lost = (Rule(kind="reset_after", endpoint="create", calls=(1,)),)

    assert cuts(rent, tmp_path, rules=lost) >= 10


def test_a_kill_before_each_commit_leaks_nothing(tmp_path: Path) -> None:
    """The last write is lost: what the disk says is older than what happened."""

    async def life(number: int) -> bool:
        market = Market(seed=3)
        ledger = tmp_path / f"{number}.db"
        async with client(market, ledger) as one:
            one.die_at_commit(number)
            try:
                await rent_and_release(one)
            except (Killed, BaseExceptionGroup):
                finished = False
            else:
                finished = True
        await recover(market, ledger)
        return finished

    number = 1
    while not run_virtual(lambda n=number: life(n), seed=number):  # type: ignore[misc] # mypy cannot infer a lambda's default
        number += 1
    assert number - 1 >= 5, "fewer commits than moves: nothing was killed"


@pytest.mark.parametrize("second", range(1, 25, 4))
def test_a_second_crash_during_recovery_leaks_nothing(tmp_path: Path, second: int) -> None:
    """P2: recovery is the ordinary loop, so it survives what the ordinary loop survives."""

    async def life(first: int) -> None:
        market = Market(seed=3)
        ledger = tmp_path / f"{first}.db"
        async with client(market, ledger) as one:
            with pytest.raises(Cut):
                await cut(_coroutine(rent_and_release, one), first)
            one.kill()
        async with client(market, ledger, seed=5) as two:
            try:
                await cut(two.look(30), second)
            except Cut:
                two.kill()
        await recover(market, ledger)

    for first in range(2, 26, 3):
        run_virtual(lambda n=first: life(n), seed=first)  # type: ignore[misc] # mypy cannot infer a lambda's default
