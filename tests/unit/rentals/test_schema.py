"""An older ledger opens, with everything in it, and is then like a new one."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path
from random import Random

import pytest
import sqlalchemy as sa
from msgspec.structs import replace

from gp4u.errors import LedgerUnusable
from gp4u.rentals import schema
from gp4u.rentals.database import open_database
from gp4u.rentals.ledger import open_ledger
from gp4u.rentals.rental import RentalState
from tests.unit.rentals.builders import AT, intended

VERSION_1 = Path(__file__).with_name("ledger_v1.sql")
"""A file of the first published schema, with a rental, its decision, events and an account."""


def outline(path: Path) -> list[tuple[str, str, str]]:
    """Return kind, name and definition of everything in a file."""
    with closing(sqlite3.connect(path)) as raw:
        found = raw.execute("select type, name, coalesce(sql, '') from sqlite_master order by 1, 2")
        return [(kind, name, " ".join(sql.split())) for kind, name, sql in found]


async def test_a_file_of_the_first_version_opens_with_everything_in_it(tmp_path: Path) -> None:
    """An upgrade must not lose a rental that still costs money."""
    path = tmp_path / "old.db"
    with closing(sqlite3.connect(path)) as raw:
        raw.executescript(VERSION_1.read_text())

    async with open_ledger(f"sqlite:///{path}", installation_secret=b"the first") as ledger:
        (rental,) = await ledger.open_rentals()
        assert (rental.owner, rental.state) == ("cli:old", RentalState.STARTING)
        assert await ledger.decision(rental.key) == b'{"offer": "5001"}'
        assert [event.kind for event in await ledger.events(rental.key)] == ["intended", "starting"]
        assert await ledger.account_of("vastai", "https://market k") == "17"
        await ledger.keep_decision("d", b"{}", AT)
        await ledger.intend(replace(intended("cli:new"), key=ledger.mint(Random(1))), b"{}")

    async with open_ledger(f"sqlite:///{tmp_path / 'new.db'}"):
        pass
    assert outline(path) == outline(tmp_path / "new.db")


async def test_a_ledger_of_any_earlier_version_is_led_to_the_newest(url: str) -> None:
    """On either database, step by step, and the installation stays who it was."""
    async with open_database(url) as database, database.writing() as db:
        await db.execute(schema.BEGINNING)
        for statement in schema.STEPS[0]:
            await db.execute(statement)
        row = {"id": "abcdef", "secret": b"s", "schema_version": 1, "epoch": 1}
        await db.execute(sa.insert(schema.installation).values(**row))

    for _ in range(2):
        async with open_ledger(url) as ledger:
            assert ledger.mint(Random(1)).startswith("gp4u-abcdef-")
            await ledger.keep_decision("d", b"{}", AT)
            async with ledger.database.reading() as db:
                version = await db.execute(sa.select(schema.installation.c.schema_version))
            assert version.scalar() == schema.SCHEMA_VERSION


async def test_a_step_that_fails_leaves_the_ledger_as_it_was(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk in the middle of an upgrade: the older program can go on with the file."""
    async with open_ledger(url) as ledger:
        rental = intended()
        await ledger.intend(rental, b"{}")
    broken = (sa.schema.CreateTable(sa.Table("more", sa.MetaData(), sa.Column("a", sa.Text))),)
    with monkeypatch.context() as patch:
        patch.setattr(schema, "STEPS", (*schema.STEPS, (*broken, *schema.STEPS[0])))
        patch.setattr(schema, "SCHEMA_VERSION", schema.SCHEMA_VERSION + 1)
        with pytest.raises(LedgerUnusable):
            async with open_ledger(url):
                pass

    async with open_ledger(url) as again:
        assert await again.open_rentals() == [rental]
        with pytest.raises(LedgerUnusable, match="more"):
            async with again.database.reading() as db:
                await db.execute(sa.text("select * from more"))


async def test_processes_that_make_a_ledger_at_once_make_one(url: str) -> None:
    """Two first starts at the same moment: one installation, whose keys both know."""
    keys: list[str] = []

    async def start() -> None:
        async with open_ledger(url) as ledger:
            keys.append(ledger.mint(Random(len(keys))))

    async with asyncio.TaskGroup() as group:
        for _ in range(4):
            group.create_task(start())

    async with open_ledger(url) as ledger:
        assert all(ledger.key_in(key) == key for key in keys)
        async with ledger.database.reading() as db:
            count = await db.execute(sa.select(sa.func.count()).select_from(schema.installation))
        assert count.scalar() == 1
