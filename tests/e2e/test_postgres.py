"""What can go wrong between us and a real PostgreSQL, and what must be told then.

The line runs through a small relay that can cut it at the worst moment: when the commit has been
sent. Whatever happens, an intent is on disk before it is told, and nothing is told that is not so.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import traceback
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import sqlalchemy as sa

from gp4u.errors import (
    BadInput,
    LedgerLocked,
    LedgerUnusable,
    OwnerHasRental,
    StaleRental,
)
from gp4u.rentals import rental as rentals
from gp4u.rentals import schema
from gp4u.rentals.ledger import Ledger, LedgerMove, _row, open_ledger
from gp4u.rentals.postgres import Postgres
from gp4u.rentals.rental import Rental, RentalState
from tests.e2e.processes import KEY, Desk, market
from tests.postgres import PASSWORD, QUOTED, Server, schema_of, server
from tests.unit.rentals.builders import AT, POLICY, intended


class Relay:
    """A line to the server; `cut` says what becomes of the next commit on it."""

    def __init__(self) -> None:
        self.cut: str | None = None
        """`before`: it does not arrive. `after`: it does, and its reply is lost."""
        self.closed = False
        """Whether nobody gets through any more."""
        self.port = 0
        self._lines: set[asyncio.StreamWriter] = set()

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one connection until either side ends it."""
        if self.closed:
            writer.transport.abort()
            return
        there, back = await asyncio.open_connection("127.0.0.1", server().port)
        self._lines |= {writer, back}
        async with asyncio.TaskGroup() as group:
            group.create_task(self._up(reader, back, writer))
            group.create_task(self._down(there, writer))
        self._lines -= {writer, back}

    def hang_up(self) -> None:
        """End every connection."""
        for line in self._lines:
            line.transport.abort()

    async def _up(
        self, reader: asyncio.StreamReader, back: asyncio.StreamWriter, writer: asyncio.StreamWriter
    ) -> None:
        with suppress(ConnectionError):
            while said := await reader.read(65536):
                if b"COMMIT\0" in said and self.cut is not None:
                    if self.cut == "after":
                        back.write(said)
                        await back.drain()
                    self.cut = None
                    writer.transport.abort()
                    break
                back.write(said)
                await back.drain()
        back.close()

    async def _down(self, there: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while said := await there.read(65536):
                if not writer.is_closing():
                    writer.write(said)
                    await writer.drain()
        writer.close()


@asynccontextmanager
async def relayed() -> AsyncIterator[tuple[Ledger, Relay, str]]:
    """A ledger behind a relay, and the URL of the same one without it."""
    relay, url = Relay(), server().url()
    listening = await asyncio.start_server(relay.carry, "127.0.0.1", 0)
    relay.port = listening.sockets[0].getsockname()[1]
    try:
        async with open_ledger(url.replace(f":{server().port}/", f":{relay.port}/")) as ledger:
            yield ledger, relay, url
    finally:
        relay.hang_up()
        listening.close()
        await listening.wait_closed()


def was_cut(relay: Relay) -> bool:
    """Whether the cut that was asked for has happened."""
    return relay.cut is None


async def every_rental(url: str) -> list[Rental]:
    """Read a ledger through a line of its own."""
    async with open_ledger(url) as ledger:
        return await ledger.every_rental()


async def test_an_intent_whose_commit_arrived_is_told_as_written() -> None:
    """The reply was lost, the row is there: renting may go on, once, and its event is told."""
    async with relayed() as (ledger, relay, url):
        heard: list[LedgerMove] = []
        ledger.on_event = lambda *event: heard.append(LedgerMove(*event))
        rental = intended()
        relay.cut = "after"
        await ledger.intend(rental, b"{}")

        assert was_cut(relay)
        assert await every_rental(url) == [rental]
        assert heard == await ledger.events_after(0, 10)
        assert [event.kind for event in heard] == ["intended"]


async def test_an_intent_whose_commit_did_not_arrive_is_told_as_lost() -> None:
    """Nothing is on disk, so nothing may be rented; the next one finds the ledger as it was."""
    async with relayed() as (ledger, relay, url):
        relay.cut = "before"
        with pytest.raises(LedgerUnusable, match="lost on its way"):
            await ledger.intend(intended(), b"{}")
        assert was_cut(relay)
        assert await every_rental(url) == []

        await ledger.intend(intended(), b"{}")
        assert len(await every_rental(url)) == 1


async def test_an_intent_of_which_nobody_can_tell_is_told_as_unknown() -> None:
    """The line stays dead: no rent, and whatever is on disk is there for the reconciler."""
    async with relayed() as (ledger, relay, url):
        rental = intended()
        relay.cut, relay.closed = "after", True
        with pytest.raises(LedgerUnusable):
            await ledger.intend(rental, b"{}")

        assert await every_rental(url) == [rental]
        relay.closed = False
        with pytest.raises(OwnerHasRental) as refused:
            await ledger.intend(intended(), b"{}")
        assert refused.value.key == rental.key


@pytest.mark.parametrize("cut", ["before", "after"])
async def test_a_move_is_told_as_what_is_on_disk(cut: str) -> None:
    """A move that arrived counts; one that did not can be made again from the same version."""
    async with relayed() as (ledger, relay, url):
        rental = intended()
        await ledger.intend(rental, b"{}")
        moved = rentals.confirm(rental, "901", at=AT, settle=POLICY.settle)
        relay.cut = cut
        if cut == "after":
            assert await ledger.move(rental, moved, at=AT) == moved
        else:
            with pytest.raises(LedgerUnusable, match="lost on its way"):
                await ledger.move(rental, moved, at=AT)
            assert await every_rental(url) == [rental]
            await ledger.move(rental, moved, at=AT)

        assert await every_rental(url) == [moved]
        assert [event.kind for event in await ledger.events(rental.key)] == ["intended", "starting"]


@pytest.mark.parametrize("cut", ["before", "after"])
async def test_a_request_whose_commit_was_lost_is_begun_and_finished_once(cut: str) -> None:
    """Neither is the caller told that it is under way already, nor is its reply forgotten."""
    async with relayed() as (ledger, relay, _):
        relay.cut = cut
        assert (await ledger.begin_request("k", fingerprint=b"f", at=AT)).state == "new"
        relay.cut = cut
        await ledger.finish_request("k", status=201, body=b"x", at=AT)
        relay.cut = cut
        await ledger.keep_decision("d", b"{}", AT)

        assert (await ledger.begin_request("k", fingerprint=b"f", at=AT)).state == "done"
        assert await ledger.decision("d") == b"{}"


async def test_a_connection_that_broke_while_idle_is_replaced_unnoticed() -> None:
    """A firewall or a fail-over drops idle lines; nobody has to hear of it."""
    async with relayed() as (ledger, relay, url):
        await ledger.intend(intended("cli:a"), b"{}")
        relay.hang_up()
        await ledger.intend(intended("cli:b"), b"{}")
        server().run(
            "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'gp4u'"
        )
        assert len(await ledger.open_rentals()) == 2
        assert len(await every_rental(url)) == 2


async def test_a_writer_that_is_cancelled_leaves_nothing_and_blocks_nobody() -> None:
    """Ctrl-C in the middle of a transaction: the next writer does not wait for it."""
    url = server().url()
    async with open_ledger(url) as ledger, open_ledger(url) as other:
        inside = asyncio.Event()

        async def write() -> None:
            async with ledger.database.writing() as db:
                row = _row(intended("cli:cancelled"))
                await db.execute(sa.insert(schema.rentals).values(**row))
                inside.set()
                await asyncio.Event().wait()

        task = asyncio.get_running_loop().create_task(write())
        await inside.wait()
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        await other.intend(intended("cli:b"), b"{}")

        assert [r.owner for r in await ledger.every_rental()] == ["cli:b"]


async def test_a_foreign_row_that_takes_the_owner_first_is_named() -> None:
    """The index holds even against a writer that does not wait for its turn."""
    url = server().url()
    async with open_ledger(url) as ledger, open_ledger(url) as other:
        theirs = intended("cli:a")
        refused: list[OwnerHasRental] = []

        async def intend() -> None:
            try:
                await ledger.intend(intended("cli:a"), b"{}")
            except OwnerHasRental as error:
                refused.append(error)

        assert isinstance(other.database, Postgres)
        unlocked = other.database._transaction("BEGIN")
        async with asyncio.TaskGroup() as group, unlocked as db:
            await db.execute(sa.insert(schema.rentals).values(**_row(theirs)))
            group.create_task(intend())
            await _somebody_waits()

    assert [error.key for error in refused] == [theirs.key]


async def _somebody_waits() -> None:
    """Return once a statement waits for another transaction."""
    waiting = "select count(*) from pg_stat_activity where wait_event = 'transactionid'"
    async with asyncio.timeout(10):
        while server().run(waiting) == "0":  # noqa: ASYNC110 - the server sets no event of ours
            await asyncio.sleep(0.01)


async def test_one_of_many_owners_and_one_of_many_moves_wins() -> None:
    """L2, L8 between processes: eight connections, one live rental, one move per version."""
    url = server().url()
    async with open_ledger(url) as one, open_ledger(url) as two:
        won: list[Rental] = []
        lost: list[OwnerHasRental] = []

        async def intend(ledger: Ledger) -> None:
            rental = intended("cli:a")
            try:
                await ledger.intend(rental, b"{}")
                won.append(rental)
            except OwnerHasRental as error:
                lost.append(error)

        async with asyncio.TaskGroup() as group:
            for number in range(8):
                group.create_task(intend((one, two)[number % 2]))
        (rental,) = won
        assert {error.key for error in lost} == {rental.key}
        assert len(lost) == 7

        moves: list[Rental] = []

        async def move(ledger: Ledger, instance_id: str) -> None:
            after = rentals.confirm(rental, instance_id, at=AT, settle=POLICY.settle)
            with suppress(StaleRental):
                moves.append(await ledger.move(rental, after, at=AT))

        async with asyncio.TaskGroup() as group:
            for number in range(8):
                group.create_task(move((one, two)[number % 2], str(number)))
        assert moves == await two.every_rental()


async def test_events_are_committed_in_the_order_of_their_ids() -> None:
    """Who reads on from an id must not miss one that was committed later with a smaller one."""
    url = server().url()
    async with open_ledger(url) as one, open_ledger(url) as two:
        seen: list[int] = []
        writing = True

        async def write(ledger: Ledger, name: str) -> None:
            for number in range(30):
                await ledger.note(name, "note", str(number), at=AT)

        async def follow() -> None:
            while writing or len(seen) < 60:
                seen.extend(e.id for e in await one.events_after(seen[-1] if seen else 0, 100))

        async with asyncio.TaskGroup() as group:
            group.create_task(follow())
            async with asyncio.TaskGroup() as writers:
                writers.create_task(write(one, "a"))
                writers.create_task(write(two, "b"))
            writing = False
        assert len(seen) == 60
        assert seen == sorted(seen)


async def test_whoever_loses_the_session_that_holds_is_told_and_another_may_hold() -> None:
    """Two loops on one ledger would release each other's work: the first one has to stop."""
    url = server().url()
    async with open_ledger(url) as one, open_ledger(url) as two:
        with pytest.raises(LedgerUnusable, match="session that held it was lost"):
            await _hold_until_it_is_lost(one)
        async with two.hold():
            with pytest.raises(LedgerLocked, match=f"process {os.getpid()}"):
                async with one.hold():
                    pass


async def _hold_until_it_is_lost(ledger: Ledger) -> None:
    async with ledger.hold():
        server().run(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where application_name ~ '^gp4u [0-9]+ on '"
        )
        await asyncio.Event().wait()


async def test_a_process_that_is_killed_holds_no_longer(tmp_path: Path) -> None:
    """P9: the lock dies with its session, so a restart needs nobody's help."""
    url = server().url()
    script = tmp_path / "hold.py"
    script.write_text(
        "import asyncio\n"
        "from gp4u.rentals.ledger import open_ledger\n"
        "async def main():\n"
        f"    async with open_ledger({url!r}) as ledger, ledger.hold():\n"
        "        print('held', flush=True)\n"
        "        await asyncio.Event().wait()\n"
        "asyncio.run(main())\n"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, script, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    assert await process.stdout.readline() == b"held\n"
    async with open_ledger(url) as ledger:
        with pytest.raises(LedgerLocked, match=f"process {process.pid} on "):
            async with ledger.hold():
                pass
        process.send_signal(signal.SIGKILL)
        await process.wait()
        await _freed(ledger)


async def _freed(ledger: Ledger) -> None:
    """Hold a ledger as soon as the server has noticed that its holder is gone."""
    async with asyncio.timeout(10):
        while True:
            with suppress(LedgerLocked):
                async with ledger.hold():
                    return


async def test_a_commit_is_durable_even_where_the_server_was_told_otherwise() -> None:
    """An intent must be on disk, and some servers are set up for speed."""
    url = f"{server().url()}&synchronous_commit=off"
    async with open_ledger(url) as ledger, ledger.database.writing() as db:
        assert (await db.execute(sa.text("show synchronous_commit"))).scalar() == "on"


async def test_only_what_can_be_seen_again_waits_for_no_disk() -> None:
    """And the next intent waits again: the ease ends with its transaction."""
    show = sa.text("show synchronous_commit")
    async with open_ledger(server().url()) as ledger:
        async with ledger.database.writing(durable=False) as db:
            assert (await db.execute(show)).scalar() == "off"
        async with ledger.database.writing() as db:
            assert (await db.execute(show)).scalar() == "on"


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://gp4u:wrong%2Fcanary@127.0.0.1:{port}/postgres?sslmode=disable",
        f"postgresql://gp4u:{QUOTED}@127.0.0.1:{{port}}/no_such_database?sslmode=disable",
        f"postgresql://gp4u:{QUOTED}@127.0.0.1:1/postgres",
        f"postgresql://gp4u:{QUOTED}@127.0.0.1:{{port}}/postgres?search_path=no_such_schema",
    ],
)
async def test_a_server_that_does_not_let_us_in_is_told_without_the_password(url: str) -> None:
    """The text ends on screens and in logs; it names the place, and what the server said."""
    with pytest.raises(LedgerUnusable, match=r"postgresql://127\.0\.0\.1:\d+/") as caught:
        async with open_ledger(url.format(port=server().port)):
            pass

    said = "".join(traceback.format_exception(caught.value))
    assert not any(secret in said for secret in (PASSWORD, QUOTED, "canary"))


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://gp4u:can/ary@127.0.0.1/postgres",
        "postgresql://gp4u:canary@127.0.0.1:port/postgres",
        "postgresql://gp4u:canary@[::1/postgres",
        "postgres://gp4u:canary@127.0.0.1/postgres?sslmode=canary",
    ],
)
async def test_a_url_that_cannot_be_read_is_refused_without_quoting_it(url: str) -> None:
    """A slash in a password looks like a port to whoever parses it, and is then printed."""
    with pytest.raises(BadInput, match="GP4U_DATABASE_URL") as caught:
        async with open_ledger(url):
            pass

    said = "".join(traceback.format_exception(caught.value))
    assert "can" not in said.replace("cannot", "")


async def test_a_missing_driver_is_told_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """asyncpg is an extra: who has no PostgreSQL needs none."""
    monkeypatch.setitem(sys.modules, "asyncpg", None)

    with pytest.raises(BadInput, match=r"pip install 'gp4u\[postgres\]'"):
        async with open_ledger("postgresql://gp4u@127.0.0.1/postgres"):
            pass


async def test_a_ledger_in_a_file_loads_no_driver_of_the_other_database(tmp_path: Path) -> None:
    """`gp4u ps --cached` has to answer at once."""
    code = (
        "import asyncio, sys\n"
        "from gp4u.rentals.ledger import open_ledger\n"
        "async def main():\n"
        f"    async with open_ledger('sqlite:///{tmp_path}/l.db') as ledger:\n"
        "        await ledger.open_rentals()\n"
        "asyncio.run(main())\n"
        "heavy = ('asyncpg', 'sqlalchemy.ext.asyncio', 'greenlet', 'gp4u.rentals.postgres')\n"
        "print([name for name in heavy if name in sys.modules])\n"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()

    assert out.strip() == b"[]"


@pytest.fixture
def own() -> Iterator[Server]:
    """A server that a test may stop."""
    one = Server()
    yield one
    one.close()


async def test_a_server_that_was_down_is_used_again_without_a_restart_of_ours(own: Server) -> None:
    """While it is down nothing can be rented; afterwards everything is as it was."""
    async with open_ledger(own.url()) as ledger:
        rental = intended()
        await ledger.intend(rental, b"{}")
        own.stop()
        with pytest.raises(LedgerUnusable):
            await ledger.intend(intended("cli:b"), b"{}")
        with pytest.raises(LedgerUnusable):
            await ledger.open_rentals()
        own.start()

        assert await ledger.open_rentals() == [rental]
        await ledger.intend(intended("cli:b"), b"{}")


def test_a_rent_that_was_killed_is_found_by_the_next_command(tmp_path: Path) -> None:
    """The whole program on PostgreSQL: `kill -9` in mid-rent, then `ps` and `release`."""
    url = server().url()
    with market(cwd=tmp_path) as vast:
        home = tmp_path / "home"
        desk = Desk(vast, home, GP4U_DATABASE_URL=url, GP4U_RENT_TIMEOUT_S="3")
        with desk.start("rent", "--gpu", "RTX3090", "--image", "foo", "--port", "8000") as renting:
            renting.hear(r"instance \d+ confirmed")
            renting.kill()
        (row,) = desk.ps()
        assert KEY.fullmatch(row["key"])
        assert vast.labels() == [row["key"]]
        done = desk.gp4u("release", row["key"])

        assert done.code == 0, done
        assert (desk.ps(), vast.labels()) == ([], [])
        assert not desk.ledger.exists(), "nothing was written to a file"
        state = server().run("select state from rentals", schema=schema_of(url))
        assert state == RentalState.RELEASED
