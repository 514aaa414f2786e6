"""The laws of rentals hold on PostgreSQL as they do on a file: samples of crashes and of weather.

Every await of the ledger is a real one there, so there are many more moments to die at; the server
must undo what was not committed, and the next process must find everything else.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.patient import Killed, patient
from tests.postgres import server
from tests.property.test_crash import recover, rent_and_release
from tests.simulated import Cut, Market, client, cut
from tests.virtual_loop import run_virtual
from tests.weathered import live_through


@pytest.fixture(autouse=True)
def _patient() -> Iterator[None]:
    with patient():
        yield


def test_no_weather_breaks_a_law_on_postgresql(tmp_path: Path) -> None:
    """L1 to L6, ledger = meter, with two owners at once on four connections."""
    outcomes = [live_through(seed, tmp_path, url=server().url()) for seed in range(4)]

    assert sum(outcome.served for outcome in outcomes) >= 2, "the owners got next to nothing"
    assert sum(outcome.faults for outcome in outcomes) >= 10, "there was hardly any weather"


@pytest.mark.parametrize("start", range(1, 5))
def test_a_kill_at_an_await_leaks_nothing_on_postgresql(start: int) -> None:
    """P1, P2: also in the middle of a statement, of a commit, and of a connection's making."""
    step, deaths, number = 36, 0, start * 9
    while run_virtual(lambda n=number: _cut_at(n), seed=number):  # type: ignore[misc] # mypy cannot infer a lambda's default
        number += step
        deaths += 1
    assert deaths >= 4, "nothing was cut"


async def _cut_at(number: int) -> bool:
    """Die at an await of a whole life; return whether it came to that."""
    market, url = Market(seed=3), server().url()
    async with client(market, url) as one:
        try:
            await cut(rent_and_release(one), number)
        except Cut:
            one.kill()
            died = True
        else:
            died = False
    await recover(market, url)
    return died


@pytest.mark.parametrize("number", range(2, 40, 6))
def test_a_kill_before_a_commit_leaks_nothing_on_postgresql(number: int) -> None:
    """The last transaction is lost, and the server says so to nobody."""

    async def life() -> None:
        market, url = Market(seed=3), server().url()
        async with client(market, url) as one:
            one.die_at_commit(number)
            with pytest.raises((Killed, BaseExceptionGroup)):
                await rent_and_release(one)
        await recover(market, url)

    run_virtual(life, seed=number)
