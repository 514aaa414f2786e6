"""The ledger on either database: durable intents, guarded moves, one live rental per owner.

Every test without a database in its name runs on a real SQLite file and on a real PostgreSQL.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from gp4u.errors import (
    BadInput,
    Fenced,
    LedgerLocked,
    LedgerUnusable,
    OwnerHasRental,
    StaleRental,
)
from gp4u.model import InstanceState
from gp4u.rentals import rental as rentals
from gp4u.rentals.ledger import Ledger, open_ledger
from gp4u.rentals.rental import RentalState
from tests.postgres import raw
from tests.unit.rentals.builders import AT, POLICY, after, intended, seen


@pytest.fixture
def file(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/deep/ledger.db"


async def test_an_intent_survives_a_process_that_is_killed(url: str, tmp_path: Path) -> None:
    """P1: the row is on disk when `intend` returns, whatever happens to the process next."""
    script = tmp_path / "die.py"
    script.write_text(
        "import asyncio, os, signal\n"
        "from gp4u.rentals.ledger import open_ledger\n"
        "from tests.unit.rentals.builders import intended\n"
        "async def main():\n"
        f"    async with open_ledger({url!r}) as ledger:\n"
        "        await ledger.intend(intended('cli:killed'), b'{}')\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "asyncio.run(main())\n"
    )
    root = Path(__file__).parents[3]
    process = await asyncio.create_subprocess_exec(
        sys.executable, script, cwd=root, env={"PYTHONPATH": str(root)}
    )
    assert await process.wait() == -signal.SIGKILL

    async with open_ledger(url) as again:
        (found,) = await again.open_rentals()

    assert found.owner == "cli:killed"
    assert found.state is RentalState.INTENDED


async def test_an_owner_has_one_live_rental(ledger: Ledger) -> None:
    """L2: the second intent is refused, and names the first."""
    first = intended("cli:a")
    await ledger.intend(first, b"{}")

    with pytest.raises(OwnerHasRental) as refused:
        await ledger.intend(intended("cli:a"), b"{}")

    assert refused.value.key == first.key


async def test_the_index_itself_forbids_a_second_live_rental(ledger: Ledger, url: str) -> None:
    """The database keeps the promise even against code that forgets to ask."""
    await ledger.intend(intended("cli:a"), b"{}")

    with pytest.raises(AssertionError, match=r"rentals\.owner|one_live_rental_per_owner"):
        raw(
            url,
            "insert into rentals select 'other', owner, provider, state, version, epoch,"
            " instance_id, intended_at, body from rentals",
        )


async def test_a_releasing_rental_lets_its_owner_rent_again(ledger: Ledger) -> None:
    """Releasing may take hours; the owner need not wait for the proof."""
    first = intended("cli:a")
    await ledger.intend(first, b"{}")
    await ledger.move(first, rentals.give_up(first, "asked", at=AT), at=AT)

    await ledger.intend(intended("cli:a"), b"{}")

    assert len(await ledger.open_rentals()) == 2


async def test_a_move_from_a_stale_version_is_refused(ledger: Ledger) -> None:
    """L8: two processes read the same row; the slower one must not write over the faster."""
    rental = intended()
    await ledger.intend(rental, b"{}")
    await ledger.move(rental, rentals.confirm(rental, "901", at=AT, settle=POLICY.settle), at=AT)

    with pytest.raises(StaleRental):
        await ledger.move(rental, rentals.give_up(rental, "asked", at=AT), at=AT)

    assert (await ledger.open_rentals())[0].state is RentalState.STARTING


async def test_a_move_under_another_epoch_is_refused(ledger: Ledger, url: str) -> None:
    """L8: after a take-over the old holder's moves do not count."""
    rental = intended()
    await ledger.intend(rental, b"{}")
    raw(url, "update rentals set epoch = 2")

    with pytest.raises(StaleRental):
        await ledger.move(rental, rentals.give_up(rental, "asked", at=AT), at=AT)


async def test_who_was_replaced_can_neither_intend_nor_move(ledger: Ledger, url: str) -> None:
    """R1, R3: a holder that slept through its own replacement must not pay for anything."""
    rental = intended()
    async with ledger.hold():
        await ledger.intend(rental, b"{}")
    async with open_ledger(url) as other, other.hold():
        assert other.epoch == ledger.epoch + 1

        with pytest.raises(Fenced, match="another process"):
            await ledger.intend(intended(owner="cli:late"), b"{}")
        with pytest.raises(Fenced, match="another process"):
            await ledger.move(rental, rentals.give_up(rental, "asked", at=AT), at=AT)
        moved = await other.move(rental, rentals.give_up(rental, "asked", at=AT), at=AT)

    assert moved.state is RentalState.RELEASING
    assert [r.reason for r in await ledger.open_rentals()] == ["asked"]


async def test_who_never_held_the_ledger_goes_along_with_any_epoch(
    ledger: Ledger, url: str
) -> None:
    """A command beside a server: the server may restart while the command runs."""
    rental = intended()
    await ledger.intend(rental, b"{}")
    async with open_ledger(url) as server, server.hold():
        moved = await ledger.move(rental, rentals.give_up(rental, "asked", at=AT), at=AT)

        assert moved.state is RentalState.RELEASING
        assert ledger.epoch == server.epoch


async def test_what_was_written_reads_back_the_same(ledger: Ledger) -> None:
    """Decimals, stamps, tuples and enums make the round trip through the row."""
    rental = intended()
    await ledger.intend(rental, b"{}")
    after_it = rentals.confirm(rental, "901", at=AT, settle=timedelta(seconds=30))
    after_it = seen(after_it, InstanceState.RUNNING, 3.5)
    await ledger.move(rental, after_it, at=AT)

    assert await ledger.get(rental.key) == after_it


async def test_history_tells_each_move_in_order(ledger: Ledger) -> None:
    """A person must be able to see what happened, and when."""
    rental = intended()
    await ledger.intend(rental, b"{}")
    moved = await ledger.move(
        rental, rentals.confirm(rental, "901", at=after(2), settle=POLICY.settle), at=after(2)
    )
    await ledger.move(moved, rentals.give_up(moved, "asked", at=after(9)), at=after(9))

    assert [(e.at, e.kind) for e in await ledger.events(rental.key)] == [
        (AT, "intended"),
        (after(2), "starting"),
        (after(9), "releasing"),
    ]


async def test_the_decision_behind_a_rental_is_kept(ledger: Ledger) -> None:
    """A purchase must be explainable from what was stored."""
    rental = intended()
    await ledger.intend(rental, b'{"offer": "5001"}')

    assert await ledger.decision(rental.key) == b'{"offer": "5001"}'


async def test_a_rental_is_found_by_any_of_its_names(ledger: Ledger) -> None:
    """People type a name, the start of a key, or the market's id."""
    rental = intended("cli:june")
    await ledger.intend(rental, b"{}")
    moved = rentals.confirm(rental, "901", at=AT, settle=POLICY.settle)
    await ledger.move(rental, moved, at=AT)

    for word in ("june", "cli:june", rental.key, rental.key[:15], "901"):
        assert [r.key for r in await ledger.find(word)] == [rental.key], word
    assert await ledger.find("gp4u%") == []


async def test_the_installation_outlives_the_process(url: str) -> None:
    """Keys minted yesterday must be recognised today."""
    async with open_ledger(url) as first:
        key = first.mint(__import__("random").Random(1))
    async with open_ledger(url) as second:
        assert second.key_in(key) == key


async def test_a_given_secret_brings_an_installation_back(url: str, tmp_path: Path) -> None:
    """D3: after the ledger was lost, its machines are recognised as its own."""
    secret = b"kept elsewhere"
    async with open_ledger(f"sqlite:///{tmp_path}/a.db", installation_secret=secret) as first:
        key = first.mint(__import__("random").Random(1))
    async with open_ledger(url, installation_secret=secret) as second:
        assert second.key_in(key) == key


async def test_another_installation_secret_is_refused(url: str) -> None:
    """Ignoring it in silence would leave machines of the other installation unrecognised."""
    async with open_ledger(url, installation_secret=b"the first"):
        pass

    with pytest.raises(BadInput, match="GP4U_INSTALLATION_SECRET"):
        async with open_ledger(url, installation_secret=b"another"):
            pass


async def test_a_login_is_remembered_only_as_a_digest(file: str) -> None:
    """S4: the account's key must not be found in the ledger's bytes."""
    async with open_ledger(file) as ledger:
        await _remember(ledger)
    folder = Path(file.removeprefix("sqlite:///")).parent
    assert not any(b"canary-key" in path.read_bytes() for path in folder.iterdir())


async def test_an_account_is_remembered_by_its_login(ledger: Ledger) -> None:
    """A second process must not have to ask the market again, nor mix two logins up."""
    await _remember(ledger)
    await _remember(ledger)  # once more does no harm


async def _remember(ledger: Ledger) -> None:
    await ledger.remember_account("vastai", "https://market canary-key", "17")

    assert await ledger.account_of("vastai", "https://market canary-key") == "17"
    assert await ledger.account_of("vastai", "https://market other-key") is None


async def test_only_one_process_holds_a_ledger(ledger: Ledger, url: str) -> None:
    """P9: two reconcile loops on one file would release each other's work."""
    async with ledger.hold(), open_ledger(url) as second:
        with pytest.raises(LedgerLocked, match="process"):
            async with second.hold():
                pass
    async with ledger.hold():
        pass


async def test_a_corrupt_ledger_is_refused_at_the_door(tmp_path: Path) -> None:
    """D3: nothing may be rented on books that cannot be trusted."""
    path = tmp_path / "bad.db"
    path.write_bytes(b"SQLite format 3\x00" + b"\xff" * 5000)

    with pytest.raises(LedgerUnusable):
        async with open_ledger(f"sqlite:///{path}"):
            pass


async def test_a_newer_ledger_is_refused(url: str) -> None:
    """D8: an older program must not write what a newer one has to read."""
    async with open_ledger(url):
        pass
    raw(url, "update installation set schema_version = 99")

    with pytest.raises(LedgerUnusable, match="99"):
        async with open_ledger(url):
            pass


async def test_a_write_that_fails_leaves_no_half_move(ledger: Ledger, url: str) -> None:
    """D2: a full disk means no intent, and no intent means no rent."""
    rental = intended()
    if url.startswith("sqlite"):
        full = "create trigger full_disk before insert on decisions begin select"
        raw(url, f"{full} raise(fail, 'disk full'); end")
    else:
        told = "language plpgsql as $$ begin raise exception 'disk full'; end $$"
        raw(
            url,
            f"create function no() returns trigger {told}; create trigger full_disk"
            " before insert on decisions for each row execute function no()",
        )

    with pytest.raises(LedgerUnusable, match="disk full"):
        await ledger.intend(rental, b"{}")

    assert await ledger.open_rentals() == []


async def test_a_ledger_file_is_readable_by_its_user_alone(file: str) -> None:
    """It holds the secret that signs our keys."""
    async with open_ledger(file):
        assert os.stat(file.removeprefix("sqlite:///")).st_mode & 0o077 == 0  # noqa: PTH116 - a test may block


async def test_another_database_is_refused_by_name() -> None:
    """A URL that is not served must not be taken for a file name."""
    with pytest.raises(BadInput, match="GP4U_DATABASE_URL"):
        async with open_ledger("mysql://somewhere/db"):
            pass


async def test_what_ended_lately_is_found_with_what_was_noted_of_it(ledger: Ledger) -> None:
    """K16: by it a node knows, after a restart too, what the failed pods of an owner have cost."""
    live, going, gone, old, plain = (intended(f"cli:{name}") for name in "abcde")
    for each in (live, going, gone, old):
        await ledger.intend(each, b"{}", note=("pod", f"for {each.owner}"))
    await ledger.intend(plain, b"{}")
    await ledger.note(gone.key, "pod", "adopted", at=after(1))
    for each, seconds in ((going, 10), (gone, 4000), (old, 300), (plain, 4000)):
        left = rentals.give_up(each, "asked", at=after(seconds))
        await ledger.move(each, left, at=after(seconds))
        if each is not going:
            closed = rentals.close(left, at=after(seconds))
            await ledger.move(left, closed, at=after(seconds))

    found = await ledger.ended_since(after(3600), kind="pod")

    assert {rental.key: text for rental, text in found} == {
        going.key: "for cli:b",
        gone.key: "adopted",
    }


async def test_nothing_came_after_an_event_that_never_was(ledger: Ledger) -> None:
    """Whoever follows the events may name any id: one of another ledger, or one made up."""
    await ledger.intend(intended(), b"{}")
    assert await ledger.events_after(10**15 - 1, 10) == []
