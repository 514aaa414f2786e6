"""A ledger on either database: whoever takes `url` or `ledger` runs once on each."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gp4u.rentals.ledger import Ledger, open_ledger
from tests.postgres import server


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a ledger that does not exist yet."""
    return f"sqlite:///{tmp_path}/deep/ledger.db" if request.param == "sqlite" else server().url()


@pytest.fixture
async def ledger(url: str) -> AsyncIterator[Ledger]:
    """An open ledger with nothing in it."""
    async with open_ledger(url) as opened:
        yield opened
