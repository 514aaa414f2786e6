"""The book that a server keeps warm: what is served at once, fetched when, and let go."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import numpy as np
import structlog

from gp4u.book import (
    GRACE_S,
    LAGGARD_S,
    LEAST_APART_S,
    MAX_QUERIES,
    STANDING,
    UNASKED,
    Book,
    TtlPolicy,
)
from gp4u.errors import Throttled, Unavailable
from gp4u.model import (
    STRETCH,
    stretches,
)
from gp4u.providers.contract import OfferPage, Query
from tests.unit.fair import ANY, Market, asking, book_of, ids, offer
from tests.virtual_loop import EPOCH, run_virtual


@asynccontextmanager
async def kept(book: Book, query: Query = STANDING) -> AsyncIterator[None]:
    """Keep a query warm meanwhile."""
    async with asyncio.TaskGroup() as group:
        keeper = group.create_task(book.keep(query))
        yield
        keeper.cancel()


def test_what_is_known_is_told_at_once() -> None:
    """A page of a server waits for no market: not for the first answer, and not for a newer one."""

    async def scenario() -> None:
        market = Market(takes_s=5.0)
        book = book_of(market)
        async with kept(book):
            await asyncio.sleep(1)
            nothing = book.current(STANDING)
            assert ids(nothing) == []
            assert [(n.error, n.complete) for n in nothing.sources] == [(UNASKED, False)]
            await asyncio.sleep(14)
            assert ids(book.current(STANDING)) == [("a", "1")]
            assert [n.age_s for n in book.current(STANDING).sources] == [10.0]
        assert market.asked == [STANDING]

    run_virtual(scenario)


def test_each_market_is_asked_again_when_its_own_offers_are_no_longer_young() -> None:
    """A reliable one seldom, an unreliable one often, and one that hangs holds up neither."""

    async def scenario() -> None:
        good, poor, hanging = Market("a"), Market("b"), Market("c", takes_s=1e6)
        poor.success_rate = 0.6
        async with kept(book_of(good, poor, hanging)):
            await asyncio.sleep(601)
        assert len(good.asked) == 3
        assert len(poor.asked) == 21
        assert 8 <= len(hanging.asked) <= 9  # a minute of patience, then ten seconds

    run_virtual(scenario)


def test_what_is_called_old_is_fetched_at_once_and_not_too_often() -> None:
    """After a rent the market differs; but a hundred rents are not a hundred searches."""

    async def scenario() -> None:
        a, b = Market("a"), Market("b")
        book = book_of(a, b)
        async with kept(book):
            await asyncio.sleep(100)
            book.invalidate("a")
            await asyncio.sleep(0.1)
            assert (len(a.asked), len(b.asked)) == (2, 1)
            for _ in range(200):
                book.invalidate("a")
                await asyncio.sleep(0.1)
            assert len(a.asked) == 2 + int(20 / LEAST_APART_S)
            await asyncio.sleep(LEAST_APART_S)
            assert ids(book.current(STANDING)) == [("a", str(len(a.asked))), ("b", "1")]

    run_virtual(scenario)


def test_a_listener_hears_of_every_fetch_of_what_is_kept_warm() -> None:
    """Whoever asked for it; and of no other query."""

    async def scenario() -> None:
        market, heard = Market(), list[tuple[str, int, str]]()
        book = book_of(market)
        book.on_refresh = lambda *told: heard.append(told)
        async with kept(book):
            await asyncio.sleep(1)
            await book.snapshot(ANY)
            assert heard == [("a", 1, "")]
            await asyncio.sleep(10)
            book.invalidate()
            market.error = Unavailable("a", "offers", "down")
            await book.snapshot(STANDING)
            assert heard[1:] == [("a", 1, "a offers: down")]
            market.error = None
            await asyncio.sleep(20)
            assert heard[2:] == [("a", 1, "")]

    run_virtual(scenario)


def test_a_version_changes_with_what_is_told_and_not_with_its_age() -> None:
    """What was made of it stays true for as long as the version stays."""

    async def scenario() -> None:
        market = Market()
        book = book_of(market)
        async with kept(book):
            await asyncio.sleep(1)
            first = book.version(STANDING)
            await asyncio.sleep(200)
            assert book.version(STANDING) == first
            market.error = Unavailable("a", "offers", "down")
            await asyncio.sleep(100)
            failed = book.version(STANDING)
            assert failed > first
            await asyncio.sleep(100)
            assert book.version(STANDING) == failed, "the same failure again is nothing new"
            market.error = None
            await asyncio.sleep(20)
            assert book.version(STANDING) > failed

    run_virtual(scenario)


def test_readers_and_the_keeper_share_one_fetch() -> None:
    """The reader takes part in the keeper's; the keeper finds the reader's done."""

    async def scenario() -> None:
        market = Market(takes_s=2.0)
        book = book_of(market)
        async with kept(book):
            await asyncio.sleep(1)
            assert ids(await book.snapshot(STANDING)) == [("a", "1")]
            assert len(market.asked) == 1
            await asyncio.sleep(100)
            assert len(market.asked) == 1

    run_virtual(scenario)


def test_what_was_replaced_is_let_go() -> None:
    """A market is hundreds of megabytes; two of each would not fit, whoever fetched the newer."""

    async def scenario() -> None:
        market = Market()
        book = book_of(market)
        async with kept(book):
            await asyncio.sleep(1)
            for refresh in (book.invalidate, lambda: book.snapshot(STANDING)):
                old = [weakref.ref(each) for each in book.current(STANDING).stretches]
                await asyncio.sleep(LEAST_APART_S)
                book.invalidate()
                done = refresh()
                if done is not None:
                    await done
                await asyncio.sleep(GRACE_S + LEAST_APART_S)
                gc.collect()
                assert old
                assert not any(each() for each in old)

    run_virtual(scenario)


def test_a_bug_in_one_market_does_not_end_the_others() -> None:
    """It is told in the sources, and tried again; the process goes on."""

    class Broken(Market):
        async def offers(self, query: Query) -> OfferPage:
            self.asked.append(query)
            raise ZeroDivisionError

    async def scenario() -> None:
        broken, well = Broken("a"), Market("b")
        book = book_of(broken, well)
        async with kept(book):
            await asyncio.sleep(400)
            sources = book.current(STANDING).sources
            assert ["nobody foresaw" in note.error for note in sources] == [True, False]
            assert (len(broken.asked), len(well.asked)) == (2, 2)

    with structlog.testing.capture_logs() as logs:
        run_virtual(scenario)
    assert [(log["event"], log["provider"]) for log in logs] == [("fetch_failed", "a")]


def test_what_is_kept_warm_is_not_forgotten_for_others() -> None:
    """However many other queries come."""

    async def scenario() -> None:
        market = Market()
        book = book_of(market)
        async with kept(book):
            await asyncio.sleep(1)
            for number in range(MAX_QUERIES + 5):
                await book.snapshot(asking(disk_gib=float(number)))
            assert ids(book.current(STANDING)) == [("a", "1")]

    run_virtual(scenario)


def test_without_a_cache_the_keeper_still_pauses() -> None:
    """`PROVIDER_CACHE_ENABLED=false` must not become a loop of searches."""

    async def scenario() -> None:
        market = Market()
        async with kept(book_of(market, ttl=TtlPolicy(enabled=False))):
            await asyncio.sleep(301)
        assert len(market.asked) == 11

    run_virtual(scenario)


def test_the_keeper_waits_as_long_as_a_market_says() -> None:
    """A 429 names a time; to ask before it only makes it longer."""

    async def scenario() -> None:
        market = Market()
        market.error = Throttled("a", "offers", "slow down", retry_after_s=120.0)
        async with kept(book_of(market)):
            await asyncio.sleep(130)
        assert len(market.asked) == 2

    run_virtual(scenario)


def test_a_column_of_one_value_takes_no_room() -> None:
    """Most columns of a market say the same of all its offers, or nothing."""
    (part,) = stretches([offer("a", number) for number in range(STRETCH)], taken_at=EPOCH)
    columns = part.columns
    assert np.isnan(columns.reliability).all()
    assert columns.price.tolist() == [0.4] * STRETCH
    for column in (columns.reliability, columns.price, columns.available, columns.gpu.codes):
        assert column.strides == (0,)
    varying = [msgspec.structs.replace(offer("a", n), reliability=n / 7) for n in range(5)]
    (part,) = stretches(varying, taken_at=EPOCH)
    assert part.columns.reliability.tolist() == [n / 7 for n in range(5)]


def test_a_fetch_of_somebody_else_that_hangs_holds_up_a_reader_only_so_long() -> None:
    """A server keeps the query warm; who reads it while one market hangs has the others' offers."""

    async def scenario() -> None:
        good, hanging = Market("a"), Market("b", takes_s=1e6)
        book = book_of(good, hanging)
        async with kept(book):
            await asyncio.sleep(1)
            began = asyncio.get_running_loop().time()
            assert ids(await book.snapshot(STANDING)) == [("a", "1")]
            assert asyncio.get_running_loop().time() - began <= LAGGARD_S
        assert len(hanging.asked) == 1

    run_virtual(scenario)
