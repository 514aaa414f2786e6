"""A ledger outlives a change of account: what another one pays for is neither lost nor closed."""

from __future__ import annotations

from pathlib import Path

import pytest

from gp4u.errors import Refused
from gp4u.rentals.rental import RentalState
from tests.simulated import DEMAND, WORKLOAD, Market, client
from tests.virtual_loop import run_virtual


def test_another_account_s_listing_closes_nothing(tmp_path: Path) -> None:
    """Its silence says nothing of a machine that this account never paid for (H24, L6)."""

    async def tale() -> None:
        ledger = tmp_path / "ledger.db"
        ours, theirs = Market(seed=3), Market(seed=4, account_id=99, api_key="another-key")
        async with client(ours, ledger) as one:
            rental = await one.app.broker.rent("cli:a", DEMAND, WORKLOAD)
        async with client(theirs, ledger, key="another-key") as two:
            await two.settle()
            tick = await two.app.reconciler.tick("vastai")
            held = await two.app.ledger.get(rental.key)
            with pytest.raises(Refused, match="another one"):
                await two.app.broker.release(rental.key)
        assert [r.key for r in tick.elsewhere] == [rental.key]
        assert held is not None
        assert held.state is RentalState.RUNNING
        async with client(ours, ledger) as again:
            released = await again.app.broker.release(rental.key)
        assert released.state is RentalState.RELEASED
        assert ours.live == []

    run_virtual(tale)


def test_a_person_can_close_what_no_key_reaches_any_more(tmp_path: Path) -> None:
    """An account that is gone must not keep a rental open for ever; history says on whose word."""

    async def tale() -> None:
        ledger = tmp_path / "ledger.db"
        async with client(Market(seed=3), ledger) as one:
            rental = await one.app.broker.rent("cli:a", DEMAND, WORKLOAD)
            forgotten = await one.app.broker.forget(rental.key)
            history = await one.app.ledger.events(rental.key)
        assert forgotten.state is RentalState.RELEASED
        assert history[-1].kind == "forgotten"

    run_virtual(tale)
