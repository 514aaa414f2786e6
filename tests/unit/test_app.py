"""The loops that a server keeps: what one look runs into is not the end of the process."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.simulated import Market, client, engine_of
from tests.virtual_loop import run_virtual


@pytest.mark.parametrize("number", range(2, 7))
def test_a_ledger_that_cannot_be_read_once_ends_no_loop(number: int, tmp_path: Path) -> None:
    """A database that is restarted is in trouble for seconds; the next look finds it well again,
    whichever of its reads it was that failed."""

    async def life() -> None:
        market = Market()
        async with client(market, tmp_path / "ledger.db") as one:
            read = 0

            @sa.event.listens_for(engine_of(one.app), "before_cursor_execute")
            def trouble(_connection: object, _cursor: object, statement: str, *_: object) -> None:
                nonlocal read
                read += "rentals" in statement and statement.startswith("SELECT")
                if read == number:
                    read += 1
                    raise sa.exc.OperationalError("", None, Exception("disk I/O error"))

            await one.settle(seconds=400)
            assert read > number + 1, "it went on"
        await market.world.aclose()

    run_virtual(life)
