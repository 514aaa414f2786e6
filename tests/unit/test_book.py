"""What the book serves, when it asks again, and what it does when nobody answers."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta
from random import Random

import numpy as np
import pytest

from gp4u.book import (
    LAGGARD_S,
    MAX_QUERIES,
    PATIENCE_S,
    TtlPolicy,
)
from gp4u.errors import CircuitBreakerOpen, Malformed, ProviderError, Unavailable
from gp4u.model import (
    STRETCH,
    Coded,
    Columns,
    Snapshot,
    stretches,
)
from gp4u.providers.contract import OfferPage, Query
from tests.unit.fair import ANY, Market, asking, book_of, ids, varied
from tests.virtual_loop import EPOCH, run_virtual


@pytest.mark.parametrize(
    ("success_rate", "ttl_s"),
    [(1.0, 300), (0.9, 300), (0.89, 45), (0.7, 45), (0.69, 30), (0.5, 30), (0.49, 10), (0.0, 10)],
)
def test_offers_stay_young_by_how_reliable_their_market_is(
    success_rate: float, ttl_s: float
) -> None:
    """The first seed's four steps, seen from outside: when is the market asked again?"""

    async def scenario() -> None:
        market = Market()
        market.success_rate = success_rate
        book = book_of(market)
        first = await book.snapshot(ANY)
        await asyncio.sleep(ttl_s - 0.1)
        assert await book.snapshot(ANY) is first
        assert len(market.asked) == 1
        await asyncio.sleep(0.1)
        assert ids(await book.snapshot(ANY)) == [("a", "2")]
        assert len(market.asked) == 2

    run_virtual(scenario)


def test_the_steps_follow_the_settings() -> None:
    """`PROVIDER_CACHE_*` set base, most and least; 1.5 x base never exceeds the most."""
    policy = TtlPolicy(base_s=100.0, max_s=120.0, min_s=5.0)
    assert [policy.ttl_s(rate) for rate in (1.0, 0.8, 0.6, 0.1)] == [120.0, 120.0, 100.0, 5.0]


def test_the_success_rate_counts_as_it_is_after_the_fetch() -> None:
    """The fetch itself may have been the failure that makes the market unreliable."""

    async def scenario() -> None:
        market = Market(takes_s=1.0)
        book = book_of(market)
        async with asyncio.TaskGroup() as group:
            group.create_task(book.snapshot(ANY))
            await asyncio.sleep(0.5)
            market.success_rate = 0.6
        await asyncio.sleep(30.0)
        await book.snapshot(ANY)
        assert len(market.asked) == 2

    run_virtual(scenario)


@pytest.mark.parametrize("seed", range(5))
def test_many_readers_share_one_fetch(seed: int) -> None:
    """A market allows ten searches a minute, and a hundred pods ask at once."""

    async def scenario() -> None:
        market = Market(takes_s=2.0)
        book = book_of(market)
        async with asyncio.TaskGroup() as group:
            reads = [group.create_task(book.snapshot(ANY)) for _ in range(20)]
        assert len(market.asked) == 1
        assert {tuple(ids(read.result())) for read in reads} == {(("a", "1"),)}
        assert book.stats()["a"].hits == 19

    run_virtual(scenario, seed)


def test_a_reader_that_gives_up_does_not_take_the_others_down() -> None:
    """The fetch is repeated for those who still wait."""

    async def scenario() -> None:
        market = Market(takes_s=2.0)
        book = book_of(market)
        async with asyncio.TaskGroup() as group:
            first = group.create_task(book.snapshot(ANY))
            second = group.create_task(book.snapshot(ANY))
            await asyncio.sleep(1.0)
            first.cancel()
        assert ids(second.result()) == [("a", "2")]

    run_virtual(scenario)


def test_each_query_has_offers_of_its_own() -> None:
    """Prices are for the disk of the query, so no other query may see them."""

    async def scenario() -> None:
        market = Market()
        book = book_of(market)
        small, large = asking(disk_gib=10.0), asking(disk_gib=500.0)
        assert ids(await book.snapshot(small)) == [("a", "1")]
        assert ids(await book.snapshot(large)) == [("a", "2")]
        assert ids(await book.snapshot(asking(disk_gib=10.0))) == [("a", "1")]
        assert market.asked == [small, large]

    run_virtual(scenario)


def test_markets_are_asked_at_the_same_time() -> None:
    """The slowest one is waited for once, not all of them in turn."""

    async def scenario() -> None:
        book = book_of(Market("a", takes_s=3.0), Market("b", takes_s=2.0))
        snapshot = await book.snapshot(ANY)
        assert asyncio.get_running_loop().time() == 3.0
        assert ids(snapshot) == [("a", "1"), ("b", "1")]
        assert [n.provider for n in snapshot.sources] == ["a", "b"]

    run_virtual(scenario)


@pytest.mark.parametrize(
    "error",
    [
        Unavailable("a", "offers", "down"),
        Malformed("a", "offers", "html"),
        CircuitBreakerOpen("a", "offers", retry_in_s=9),
    ],
    ids=lambda e: type(e).__name__,
)
def test_a_market_that_fails_keeps_its_last_offers_with_age_and_error(error: ProviderError) -> None:
    """H12, H27: what is known stays readable; whether it is good enough is not the book's word."""

    async def scenario() -> None:
        market = Market(skipped=3)
        book = book_of(market)
        await book.snapshot(ANY)
        await asyncio.sleep(400)
        market.error = error
        stale = await book.snapshot(ANY)
        assert ids(stale) == [("a", "1")]
        (note,) = stale.sources
        assert (note.age_s, note.error, note.offers) == (400.0, str(error), 1)
        assert (note.complete, note.skipped_rows) == (False, 3)
        assert stale.taken_at == EPOCH + timedelta(seconds=400)
        assert book.stats()["a"].error == str(error)

    run_virtual(scenario)


def test_a_market_that_fails_touches_no_other() -> None:
    """H13: an outage is one provider's."""

    async def scenario() -> None:
        sick, well = Market("a"), Market("b")
        sick.error = Unavailable("a", "offers", "down")
        snapshot = await book_of(sick, well).snapshot(ANY)
        assert ids(snapshot) == [("b", "1")]
        assert [(n.provider, n.offers, n.error) for n in snapshot.sources] == [
            ("a", 0, "a offers: down"),
            ("b", 1, ""),
        ]

    run_virtual(scenario)


def test_a_market_that_hangs_holds_up_the_others_only_so_long() -> None:
    """One market's tries and turns can take minutes; who looks for offers wants the others'."""

    async def scenario() -> None:
        hanging, well = Market("a", takes_s=3600.0), Market("b")
        book = book_of(hanging, well)
        snapshot = await book.snapshot(ANY)
        assert asyncio.get_running_loop().time() == LAGGARD_S
        assert ids(snapshot) == [("b", "1")]
        assert [n.error for n in snapshot.sources] == [
            "a offers: no whole answer within 20 s",
            "",
        ]
        await book.snapshot(ANY)
        assert len(hanging.asked) == 1, "it is not asked anew by the next reader"

    run_virtual(scenario)


def test_who_has_answered_before_shortens_the_wait_as_well() -> None:
    """What is young needs no call; whoever holds it wants no minute's wait for the rest."""

    async def scenario() -> None:
        slow, well = Market("a"), Market("b")
        book = book_of(slow, well)
        await book.snapshot(ANY)
        slow.takes_s = 3600.0
        book.invalidate("a")
        began = asyncio.get_running_loop().time()
        snapshot = await book.snapshot(ANY)
        assert asyncio.get_running_loop().time() - began == LAGGARD_S
        assert ids(snapshot) == [("a", "1"), ("b", "1")], "its last known offers stay"

    run_virtual(scenario)


@pytest.mark.parametrize("takes_s", [PATIENCE_S - 1, PATIENCE_S + 1])
def test_a_market_that_is_asked_alone_has_its_whole_time(takes_s: float) -> None:
    """Nobody waits for an answer beside it."""

    async def scenario() -> None:
        snapshot = await book_of(Market("a", takes_s=takes_s)).snapshot(ANY)
        assert ids(snapshot) == ([("a", "1")] if takes_s < PATIENCE_S else [])
        assert asyncio.get_running_loop().time() == min(takes_s, PATIENCE_S)

    run_virtual(scenario)


def test_a_timeout_that_is_not_the_books_is_a_bug_and_loud() -> None:
    """An adapter turns its own deadlines into errors; what comes out raw must not look like one."""

    class Broken(Market):
        async def offers(self, query: Query) -> OfferPage:
            raise TimeoutError

    async def scenario() -> None:
        with pytest.raises(ExceptionGroup) as info:
            await book_of(Broken()).snapshot(ANY)
        assert isinstance(info.value.exceptions[0], TimeoutError)

    run_virtual(scenario)


def test_fetching_one_market_again_leaves_the_others_columns_as_they_are() -> None:
    """A large market's columns take far longer to build than to put beside those of another."""

    async def scenario() -> None:
        a, b = Market("a"), Market("b")
        book = book_of(a, b)
        old = await book.snapshot(ANY)
        kept, dropped = old.stretches[1].columns, old.stretches[0].columns
        await asyncio.sleep(10)
        book.invalidate("a")
        new = await book.snapshot(ANY)
        assert new.stretches[1].columns is kept
        assert new.stretches[0].columns is not dropped
        assert [each.offer_id for each in new.offers] == ["2", "1"]

    run_virtual(scenario)


def test_a_snapshot_of_several_fetches_has_the_columns_of_one() -> None:
    """Put together from parts or built from all offers at once: nobody may see a difference."""
    random = Random(5)
    offers = [varied(random, number) for number in range(3 * STRETCH // 2)]
    moments = [EPOCH + timedelta(seconds=each) for each in (3, 40)]
    cut = 100
    parts = [
        *stretches(offers[:cut], taken_at=moments[0]),
        *stretches(offers[cut:], taken_at=moments[1]),
    ]
    taken_at = EPOCH + timedelta(seconds=90.5)
    joined = Snapshot(of=parts, taken_at=taken_at)
    whole = Snapshot(offers, taken_at=taken_at)
    assert joined.offers == whole.offers == tuple(offers)
    for field in dataclasses.fields(Columns):
        ours, theirs = getattr(joined.columns, field.name), getattr(whole.columns, field.name)
        if isinstance(ours, Coded):
            assert [ours.values[code] for code in ours.codes] == [
                theirs.values[code] for code in theirs.codes
            ]
        elif field.name != "taken_at":
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-9)
    assert joined.columns.age_s.tolist() == pytest.approx(
        [(taken_at - each.fetched_at).total_seconds() for each in offers]
    )
    unknown = [each.reliability is None for each in offers]
    assert np.isnan(joined.columns.reliability).tolist() == unknown
    assert joined.columns.price.tolist() == [float(each.price_usd_per_hour) for each in offers]


def test_a_market_that_fails_is_asked_again_soon_and_not_by_every_reader() -> None:
    """H12: a failure is remembered for as short as an unreliable market's offers."""

    async def scenario() -> None:
        market, other = Market("a"), Market("b")
        market.error = Unavailable("a", "offers", "down")
        book = book_of(market, other)
        for _ in range(10):
            await book.snapshot(ANY)
        assert len(market.asked) == 1
        await asyncio.sleep(10.0)
        market.error = None
        healed = await book.snapshot(ANY)
        assert len(market.asked) == 2
        assert len(other.asked) == 1, "the healthy one's offers are still young"
        assert [n.error for n in healed.sources] == ["", ""]

    run_virtual(scenario)


def test_a_bug_in_an_adapter_is_not_an_outage() -> None:
    """What is no provider error is loud: served offers would hide it for ever."""

    class Broken(Market):
        async def offers(self, query: Query) -> OfferPage:
            raise ZeroDivisionError

    async def scenario() -> None:
        with pytest.raises(ExceptionGroup) as info:
            await book_of(Broken()).snapshot(ANY)
        assert isinstance(info.value.exceptions[0], ZeroDivisionError)

    run_virtual(scenario)


@pytest.mark.parametrize(
    ("provider", "asked"), [(None, (2, 2)), ("a", (2, 1)), ("b", (1, 2)), ("c", (1, 1))]
)
def test_what_is_called_old_is_fetched_again(provider: str | None, asked: tuple[int, int]) -> None:
    """After a rent the market differs from what we know of it."""

    async def scenario() -> None:
        a, b = Market("a"), Market("b")
        book = book_of(a, b)
        await book.snapshot(ANY)
        book.invalidate(provider)
        await book.snapshot(ANY)
        assert (len(a.asked), len(b.asked)) == asked

    run_virtual(scenario)


def test_what_is_called_old_is_still_served_if_nothing_newer_can_be_had() -> None:
    """Old is not wrong."""

    async def scenario() -> None:
        market = Market()
        book = book_of(market)
        await book.snapshot(ANY)
        book.invalidate()
        market.error = Unavailable("a", "offers", "down")
        assert ids(await book.snapshot(ANY)) == [("a", "1")]

    run_virtual(scenario)


def test_a_fetch_that_was_under_way_when_its_offers_were_called_old_is_old_as_well() -> None:
    """It may have been answered before the rent that made it old."""

    async def scenario() -> None:
        market = Market(takes_s=2.0)
        book = book_of(market)
        async with asyncio.TaskGroup() as group:
            early = group.create_task(book.snapshot(ANY))
            await asyncio.sleep(1.0)
            book.invalidate("a")
        assert ids(early.result()) == [("a", "1")]
        assert ids(await book.snapshot(ANY)) == [("a", "2")]

    run_virtual(scenario)


def test_only_so_many_queries_are_remembered_and_the_least_used_goes_first() -> None:
    """L14: queries come from outside, and no book may grow without end."""

    async def scenario() -> None:
        market = Market()
        book = book_of(market)
        queries = [asking(disk_gib=float(n)) for n in range(1, MAX_QUERIES + 1)]
        for query in queries:
            await book.snapshot(query)
            await asyncio.sleep(0.1)
        assert book.stats()["a"].offers == MAX_QUERIES
        await book.snapshot(queries[0])  # used again: no longer the oldest
        await asyncio.sleep(0.1)
        await book.snapshot(asking(disk_gib=1000.0))
        assert book.stats()["a"].offers == MAX_QUERIES
        asked = len(market.asked)
        await book.snapshot(queries[0])
        assert len(market.asked) == asked
        await book.snapshot(queries[1])
        assert len(market.asked) == asked + 1

    run_virtual(scenario)


def test_a_book_that_may_keep_nothing_asks_every_time() -> None:
    """`PROVIDER_CACHE_ENABLED=false`; what fails then still has its last offers."""

    async def scenario() -> None:
        market = Market()
        book = book_of(market, ttl=TtlPolicy(enabled=False))
        for number in range(1, 4):
            assert ids(await book.snapshot(ANY)) == [("a", str(number))]
        market.error = Unavailable("a", "offers", "down")
        for _ in range(2):
            assert ids(await book.snapshot(ANY)) == [("a", "3")]
        assert len(market.asked) == 5
        assert book.stats()["a"].ttl_s == 0.0

    run_virtual(scenario)


def test_only_the_providers_that_are_asked_for_are_asked() -> None:
    """`--provider b` must not cost a search at a."""

    async def scenario() -> None:
        a, b = Market("a"), Market("b")
        book = book_of(a, b)
        for _ in range(2):
            assert ids(await book.snapshot(asking(providers=("b",)))) == [("b", "1")]
        assert a.asked == []
        assert (book.stats()["a"].hits, book.stats()["b"].hits) == (0, 1)

    run_virtual(scenario)


@pytest.mark.parametrize("providers", [("nowhere",), ("nowhere", "a")])
def test_a_provider_that_is_not_open_adds_nothing(providers: tuple[str, ...]) -> None:
    """Whether it exists is for whoever reads the demand; here it has no offers."""

    async def scenario() -> None:
        book = book_of(Market("a"))
        for _ in range(2):
            snapshot = await book.snapshot(asking(providers=providers))
            assert [note.provider for note in snapshot.sources] == list(providers[1:])

    run_virtual(scenario)


def test_a_book_without_markets_is_an_empty_snapshot() -> None:
    """No key is set yet; that is no error here."""
    snapshot = run_virtual(lambda: book_of().snapshot(ANY))
    assert (snapshot.offers, snapshot.sources) == ((), ())


def test_the_counts_tell_reads_from_fetches() -> None:
    """They become metrics by provider."""

    async def scenario() -> Mapping[str, object]:
        market = Market(skipped=2)
        book = book_of(market)
        assert book.stats()["a"].fetched_at is None
        await asyncio.sleep(5)
        for _ in range(4):
            await book.snapshot(ANY)
        book.invalidate()
        await book.snapshot(ANY)
        stats = book.stats()["a"]
        return {name: getattr(stats, name) for name in stats.__struct_fields__}

    assert run_virtual(scenario) == {
        "hits": 3,
        "misses": 2,
        "ttl_s": 300.0,
        "offers": 1,
        "fetched_at": EPOCH + timedelta(seconds=5),
        "skipped_rows": 4,
        "error": "",
        "took_s": 0.0,
    }


def test_readers_and_doubters_in_any_order_end_with_what_is_newest() -> None:
    """Whatever the interleaving, a read after the last doubt sees a fetch that began after it."""

    async def scenario() -> None:
        market = Market(takes_s=0.5)
        book = book_of(market)

        async def later(delay_s: float, work: Callable[[], Awaitable[object]]) -> None:
            await asyncio.sleep(delay_s)
            await work()

        async def doubt() -> None:
            book.invalidate("a")

        async with asyncio.TaskGroup() as group:
            for n in range(30):
                work = doubt if n % 7 == 3 else lambda: book.snapshot(ANY)
                group.create_task(later(n * 0.1, work))
        began = len(market.asked)
        book.invalidate()
        (newest,) = (await book.snapshot(ANY)).offers
        assert newest.offer_id == str(began + 1)

    for seed in range(10):
        run_virtual(scenario, seed)
