"""What is on disk when: no test can cut the power, but each can see what waits for the disk."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from pathlib import Path

import pytest
import sqlalchemy as sa

from gp4u.errors import LedgerLocked, LedgerUnusable
from gp4u.rentals import rental as rentals
from gp4u.rentals.database import Database, open_database
from gp4u.rentals.ledger import open_ledger
from gp4u.rentals.rental import RentalState
from tests.contract.conformance.in_memory import Upright
from tests.unit.rentals.builders import AT, POLICY, intended
from tests.unit.rentals.test_abilities import opened


class Disk:
    """Takes the place of `os.fsync`: counts, and can be made to fail or to hang."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.flushed: list[str] = []
        """What was flushed, oldest first."""
        self.fails = False
        self.goes_on = threading.Event()
        self.goes_on.set()
        monkeypatch.setattr(os, "fsync", self._fsync)

    def _fsync(self, descriptor: int) -> None:
        assert self.goes_on.wait(10)
        if self.fails:
            raise OSError(errno.EIO, "I/O error")
        self.flushed.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    """The disk of this test."""
    return Disk(monkeypatch)


async def write(database: Database, *, durable: bool = True) -> None:
    """Write something."""
    async with database.writing(durable=durable) as db:
        await db.execute(sa.text("create table if not exists t (a)"))
        await db.execute(sa.text("insert into t values (1)"))


async def test_only_what_can_be_seen_again_waits_for_no_disk(tmp_path: Path, disk: Disk) -> None:
    """An intent must outlive a power cut; that a machine was seen, the next listing tells again."""
    async with open_database(f"sqlite:///{tmp_path}/ledger.db") as database:
        await write(database, durable=False)
        assert not disk.flushed
        await write(database)
        assert disk.flushed == ["ledger.db-wal", tmp_path.name]
        await write(database)
        assert disk.flushed[2:] == ["ledger.db-wal"]


async def test_nobody_returns_before_what_it_wrote_is_on_disk(tmp_path: Path, disk: Disk) -> None:
    """And those who came while the disk was busy wait once, together."""
    async with open_database(f"sqlite:///{tmp_path}/ledger.db") as database:
        await write(database)
        before = len(disk.flushed)
        disk.goes_on.clear()
        async with asyncio.TaskGroup() as group:
            writers = [group.create_task(write(database)) for _ in range(20)]
            async with database.reading() as db:
                found = await db.execute(sa.text("select count(*) from t"))
            while found.scalar() < 21:
                await asyncio.sleep(0)
                async with database.reading() as db:
                    found = await db.execute(sa.text("select count(*) from t"))
            assert not any(each.done() for each in writers), "all are committed, none is on disk"
            disk.goes_on.set()
        assert len(disk.flushed) - before == 2


async def test_a_disk_that_fails_lets_nothing_be_rented(tmp_path: Path, disk: Disk) -> None:
    """What may not be on disk may not cost money; and it is tried again, not believed."""
    async with open_ledger(f"sqlite:///{tmp_path}/ledger.db") as ledger:
        disk.fails = True
        for _ in range(2):
            with pytest.raises(LedgerUnusable, match="did not get to disk"):
                await write(ledger.database)
        with pytest.raises(LedgerUnusable):
            await ledger.intend(intended(), b"{}")


async def test_a_ledger_behind_a_link_waits_for_the_real_one(tmp_path: Path, disk: Disk) -> None:
    """SQLite keeps its log beside the file that a link leads to, and not beside the link."""
    (tmp_path / "volume").mkdir()
    (tmp_path / "ledger.db").symlink_to(tmp_path / "volume" / "real.db")
    async with open_database(f"sqlite:///{tmp_path}/ledger.db") as database:
        await write(database)
    assert disk.flushed == ["real.db-wal", "volume"]


async def test_a_link_to_a_ledger_is_held_with_it(tmp_path: Path) -> None:
    """Under whichever name two processes know it: only one may reconcile."""
    (tmp_path / "link.db").symlink_to(tmp_path / "ledger.db")
    async with (
        open_ledger(f"sqlite:///{tmp_path}/ledger.db") as one,
        open_ledger(f"sqlite:///{tmp_path}/link.db") as other,
        one.hold(),
    ):
        with pytest.raises(LedgerLocked):
            async with other.hold():
                pass


async def test_a_lock_that_cannot_be_asked_is_trouble_with_the_ledger(tmp_path: Path) -> None:
    """Whoever starts a server hears what is wrong, and not of a bug."""
    (tmp_path / "ledger.db.lock").mkdir()
    async with open_ledger(f"sqlite:///{tmp_path}/ledger.db") as ledger:
        with pytest.raises(LedgerUnusable, match=r"ledger\.db\.lock"):
            async with ledger.hold():
                pass


async def test_a_ledger_whose_file_is_somebody_elses_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A volume may let us write a file that we may not close to others."""

    def chmod(_path: object, _mode: int, **_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "chmod", chmod)
    with pytest.raises(LedgerUnusable, match="Operation not permitted"):
        async with open_ledger(f"sqlite:///{tmp_path}/ledger.db"):
            pass


async def test_what_is_being_forgotten_may_be_moved_meanwhile(tmp_path: Path, disk: Disk) -> None:
    """A look goes on with its end while the wish to end it waits for the disk."""
    async with opened(tmp_path, Upright) as place:
        made = intended()
        await place.ledger.intend(made, b"{}")
        disk.goes_on.clear()
        async with asyncio.TaskGroup() as group:
            forgetting = group.create_task(place.broker.forget(made.key))
            now = made
            while now.is_live:
                await asyncio.sleep(0)
                (now,) = await place.ledger.open_rentals()
            asked = rentals.release_tried(now, at=AT, settle=POLICY.settle)
            await place.ledger.move(now, asked, at=AT, durable=False)
            disk.goes_on.set()
        assert forgetting.result().state is RentalState.RELEASED
