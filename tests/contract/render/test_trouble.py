"""The adapter of Dispersed in trouble: lost replies, lying lists, lost and oversized nodes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta

import msgspec
import pytest

from gp4u.errors import (
    Denied,
    InstanceAbsent,
    Malformed,
    OfferGone,
    OutcomeUnknown,
    ProviderError,
    Refused,
    Throttled,
    Unavailable,
)
from gp4u.model import InstanceState
from gp4u.providers.render.adapter import Render
from gp4u.rentals import rental as rentals
from gp4u.rentals.plan import GiveUp, Policy, Release, plan
from gp4u.sim.faults import Rule
from tests.contract.render.market import (
    EASY,
    KEY,
    ONE_GPU,
    WORKLOAD,
    cheapest,
    dispersed,
    only,
    rented,
)
from tests.virtual_loop import VirtualClock, run_virtual


@pytest.mark.parametrize(
    "rule",
    [
        Rule(kind="reset_after", endpoint="create"),
        Rule(kind="hang_after", endpoint="create", seconds=300),
        Rule(kind="status_after", endpoint="create", status=503),
        Rule(kind="body", endpoint="create", shape="garbage"),
        Rule(kind="body", endpoint="create", shape="empty"),
        Rule(kind="cut_body", endpoint="create"),
        Rule(kind="failed_without_id", endpoint="create"),
        Rule(kind="late_effect", endpoint="create", seconds=40),
    ],
    ids=lambda rule: f"{rule.kind}-{rule.shape or ''}",
)
def test_a_lost_reply_is_never_sent_again_and_is_found_by_its_title(rule: Rule) -> None:
    """Titles are not unique: a blind second try rents twice."""

    async def scene() -> None:
        async with dispersed(rule) as (adapter, market):
            with pytest.raises(OutcomeUnknown) as caught:
                await rented(adapter)
            assert caught.value.key == KEY
            assert market.wire.calls("POST") == ["/v1/jobs"]
            await asyncio.sleep(45)
            assert (await only(adapter)).label == KEY
            assert len(market.world.contracts) == 1

    run_virtual(scene)


def test_an_oversized_node_shows_even_where_runs_are_listed_for_one_job_only() -> None:
    """It is charged as a whole from its creation, so it must show before it runs."""

    async def scene() -> None:
        rule = Rule(kind="wrong_machine", endpoint="create", times=1)
        strict = msgspec.structs.replace(EASY, runs_need_job=True)
        async with dispersed(rule, settings=strict) as (adapter, _):
            _, offer = await rented(adapter)
            await asyncio.sleep(5)
            instance = await only(adapter)
            assert instance.state is InstanceState.BOOTING
            assert instance.price_usd_per_hour is not None
            assert instance.price_usd_per_hour > offer.price_usd_per_hour

    run_virtual(scene)


@pytest.mark.parametrize("status", [None, 400, 402, 404, 409])
def test_a_refusal_that_names_a_job_hands_on_its_id(status: int | None) -> None:
    """Something was made all the same, and costs money until it is released."""

    async def scene() -> None:
        rule = Rule(kind="failed_with_id", endpoint="create", status=status)
        async with dispersed(rule) as (adapter, market):
            with pytest.raises(Refused) as caught:
                await rented(adapter)
            assert caught.value.instance_id is not None
            await adapter.release(caught.value.instance_id)
            await asyncio.sleep(5)
            assert (await adapter.instances()).instances == ()
            assert market.live == []

    run_virtual(scene)


def test_a_rent_that_is_cut_short_is_found_and_was_sent_once() -> None:
    """Whoever leaves while the reply is under way leaves a job behind, under its key."""

    async def scene() -> None:
        rule = Rule(kind="hang_after", endpoint="create", seconds=300)
        async with dispersed(rule) as (adapter, market):
            offer = await cheapest(adapter)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(5):
                    await adapter.rent(offer, WORKLOAD, KEY)
            assert market.wire.calls("POST") == ["/v1/jobs"]
            assert (await only(adapter)).label == KEY

    run_virtual(scene)


@pytest.mark.parametrize("kind", ["refuse", "reset_before", "hang_before"])
def test_a_stalled_read_is_repeated_with_a_new_nonce_and_time(kind: str) -> None:
    """The control plane stalls now and then; a nonce that was sent once is worthless."""

    async def scene() -> None:
        rule = Rule(kind=kind, endpoint="list", times=1, seconds=300)
        async with dispersed(rule) as (adapter, market):
            await adapter.ping()
            first, second = (headers for _, headers in market.wire.sent)
            assert first["x-nonce"] != second["x-nonce"]
            assert int(second["x-time"]) > int(first["x-time"])
            assert first["x-signature"] != second["x-signature"]

    run_virtual(scene)


def test_a_rent_that_never_left_is_tried_again() -> None:
    """A refused connection bought nothing."""

    async def scene() -> None:
        async with dispersed(Rule(kind="refuse", endpoint="create", times=1)) as (adapter, market):
            await rented(adapter)
            assert len(market.world.contracts) == 1

    run_virtual(scene)


def test_a_job_that_is_listed_late_makes_no_second_one() -> None:
    """The listing's blindness is what `settle_s` stands for."""

    async def scene() -> None:
        rule = Rule(kind="late_listing", endpoint="create", seconds=20)
        async with dispersed(rule) as (adapter, _):
            ident, _ = await rented(adapter)
            assert (await adapter.instances()).instances == ()
            assert adapter.spec.settle_s > 20
            await asyncio.sleep(21)
            assert (await only(adapter)).instance_id == ident

    run_virtual(scene)


@pytest.mark.parametrize("status", [404, 409, 410])
def test_capacity_that_is_gone_is_a_gone_offer(status: int) -> None:
    """Nothing was made, so the next candidate may be tried."""

    async def scene() -> None:
        rule = Rule(kind="offer_gone", endpoint="create", status=status)
        async with dispersed(rule) as (adapter, market):
            with pytest.raises(OfferGone):
                await rented(adapter)
            assert market.world.contracts == []

    run_virtual(scene)


def test_a_job_without_a_node_fails_after_its_time_and_leaves_nothing() -> None:
    """Somebody else took the node: the job waits, unpaid, and then disappears from the list."""

    async def scene() -> None:
        async with dispersed() as (adapter, market):
            offer = await cheapest(adapter)
            for machine in market.world.machines:
                market.world.change_machine(machine.machine_id, taken=True)
            await adapter.rent(offer, WORKLOAD, KEY)
            assert (await only(adapter)).state is InstanceState.BOOTING
            await asyncio.sleep(310)
            assert (await adapter.instances()).instances == ()
            assert market.world.meter_total() == 0

    run_virtual(scene)


@pytest.mark.parametrize(
    ("rule", "error"),
    [
        (Rule(kind="bad_key"), Denied),
        (Rule(kind="status", status=403), Denied),
        (Rule(kind="throttle", retry_after="1"), Throttled),
        (Rule(kind="status", status=500), Unavailable),
        (Rule(kind="body", shape="garbage"), Malformed),
        (Rule(kind="body", shape="html"), Malformed),
        (Rule(kind="body", shape="deep"), Malformed),
        (Rule(kind="body", shape="null"), Malformed),
        (Rule(kind="body", shape="empty"), Malformed),
        (Rule(kind="status", status=302), Malformed),
        (Rule(kind="status", status=404), Malformed),
    ],
    ids=lambda value: (
        f"{value.kind}-{value.shape or value.status or ''}" if isinstance(value, Rule) else ""
    ),
)
def test_every_reading_tells_trouble_by_its_kind(rule: Rule, error: type[ProviderError]) -> None:
    """Who acts on a failure depends on its type alone."""

    async def scene() -> None:
        readings: list[Callable[[Render], Awaitable[object]]] = [
            lambda adapter: adapter.ping(),
            lambda adapter: adapter.instances(),
            lambda adapter: adapter.offers(ONE_GPU),
            lambda adapter: adapter.logs("some-job"),
        ]
        for reading in readings:
            async with dispersed(rule) as (adapter, _):
                with pytest.raises(error):
                    await reading(adapter)

    run_virtual(scene)


def test_a_clock_that_is_off_is_denied_with_a_hint() -> None:
    """The key is right, and nobody would think of the clock."""

    async def scene() -> None:
        off = msgspec.structs.replace(EASY, clock_skew_s=301.0)
        async with dispersed(settings=off) as (adapter, _):
            with pytest.raises(Denied, match="clock"):
                await adapter.ping()
        close = msgspec.structs.replace(EASY, clock_skew_s=-299.0)
        async with dispersed(settings=close) as (adapter, _):
            await adapter.ping()

    run_virtual(scene)


def test_without_credit_a_rent_is_refused_by_name() -> None:
    """Every further candidate would fail alike."""

    async def scene() -> None:
        async with dispersed(Rule(kind="no_credit", endpoint="create")) as (adapter, _):
            with pytest.raises(Refused) as caught:
                await rented(adapter)
            assert caught.value.code == "insufficient_credit"

    run_virtual(scene)


@pytest.mark.parametrize("kind", ["list_lost_page", "list_loop", "list_wrong_total"])
def test_a_list_that_lies_proves_no_absence(kind: str) -> None:
    """A rental would be closed while its machine bills on."""

    async def scene() -> None:
        async with dispersed(offers=200) as (adapter, market):
            await fill(adapter, 60)
            market.faults.add(Rule(kind=kind, endpoint="list"))
            listing = await adapter.instances()
            assert not listing.complete
            assert listing.why_incomplete

    run_virtual(scene)


def test_a_list_of_several_pages_is_complete_when_nothing_moves() -> None:
    """Sixty jobs are two pages; each is shown once, with its address."""

    async def scene() -> None:
        async with dispersed(offers=200) as (adapter, _):
            await fill(adapter, 60)
            await asyncio.sleep(15)
            listing = await adapter.instances()
            assert listing.complete, listing.why_incomplete
            assert len({i.instance_id for i in listing.instances}) == 60
            assert all(i.state is InstanceState.RUNNING for i in listing.instances)

    run_virtual(scene)


def test_a_job_that_slips_through_between_two_pages_spoils_the_listing() -> None:
    """One job ends and one begins while pages are read: the total is the same, and one is missed.

    Rows move up by one, so the first of the next page is never shown.
    """

    async def scene() -> None:
        async with dispersed(offers=200) as (adapter, market):
            idents = await fill(adapter, 60)
            page = await adapter.offers(ONE_GPU)
            market.faults.add(Rule(kind="late_effect", endpoint="create", seconds=3, times=1))
            with pytest.raises(OutcomeUnknown):
                await adapter.rent(page.offers[0], WORKLOAD, KEY)
            await adapter.release(idents[0])
            market.faults.add(Rule(kind="latency", endpoint="list", seconds=5, calls=(2,)))
            listing = await adapter.instances()
            assert not listing.complete
            assert listing.why_incomplete == "the jobs changed while paging"

    run_virtual(scene)


async def fill(adapter: Render, count: int) -> list[str]:
    """Rent so many nodes."""
    page = await adapter.offers(ONE_GPU)
    assert len(page.offers) >= count
    offers = sorted(page.offers, key=lambda o: o.price_usd_per_hour)[:count]
    return [await adapter.rent(offer, WORKLOAD, KEY) for offer in offers]


@pytest.mark.parametrize("trouble", ["oci_error", "pull_error", "dead_start"])
def test_a_job_that_cannot_start_says_so_and_then_is_gone(trouble: str) -> None:
    """FAILING is shown with its reason; a FAILED job costs nothing and stays on record."""

    async def scene() -> None:
        async with dispersed(Rule(kind=trouble, endpoint="create")) as (adapter, market):
            await rented(adapter)
            states = set()
            for _ in range(60):
                await asyncio.sleep(0.5)
                shown = (await adapter.instances()).instances
                states |= {i.state for i in shown}
                if not shown:
                    break
            assert InstanceState.FAILED in states
            assert market.live == []

    run_virtual(scene)


def test_a_node_that_vanishes_says_running_for_a_while_and_then_is_gone() -> None:
    """A crash and a reclaimed node look the same, and neither is told at once."""

    async def scene() -> None:
        rule = Rule(kind="host_loss", endpoint="create", seconds=5)
        async with dispersed(rule) as (adapter, market):
            await rented(adapter)
            await asyncio.sleep(20)
            assert (await only(adapter)).state is InstanceState.RUNNING
            await asyncio.sleep(60)
            assert (await only(adapter)).state is InstanceState.RUNNING
            await asyncio.sleep(70)
            await adapter.instances()
            await asyncio.sleep(5)
            assert (await adapter.instances()).instances == ()
            assert market.live == []

    run_virtual(scene)


def test_an_oversized_node_is_above_the_ceiling_and_the_plan_releases_it() -> None:
    """Asked for one GPU, given a node of several, charged for all of them."""

    async def scene() -> None:
        async with dispersed(Rule(kind="wrong_machine", endpoint="create")) as (adapter, market):
            ident, offer = await rented(adapter)
            at = VirtualClock().now()
            intent = rentals.intend(
                key=KEY,
                owner="cli:a",
                offer=offer,
                workload=WORKLOAD,
                ceiling_usd_per_hour=offer.price_usd_per_hour,
                at=at,
                patience=timedelta(seconds=60),
                epoch=1,
            )
            rental = rentals.confirm(intent, ident, at=at, settle=timedelta(seconds=30))
            await asyncio.sleep(5)
            listing = await adapter.instances()
            (instance,) = listing.instances
            (contract,) = market.live
            rate = contract.machine.usd_per_gpu_hour * len(contract.gpus)
            assert len(contract.gpus) > 1
            assert instance.price_usd_per_hour == rate > offer.price_usd_per_hour
            actions = plan(
                [rental],
                listing,
                {ident: KEY},
                orphans={},
                policy=Policy(settle_s=30, late_window_s=60),
                at=VirtualClock().now(),
            )
            assert any(isinstance(a, GiveUp) and a.reason == "price_above_ceiling" for a in actions)
            assert any(isinstance(a, Release) and a.instance_id == ident for a in actions)

    run_virtual(scene)


def test_a_duplicate_shows_under_the_same_title() -> None:
    """Only if both are listed can one of them be released."""

    async def scene() -> None:
        async with dispersed(Rule(kind="duplicate", endpoint="create")) as (adapter, _):
            await rented(adapter)
            listing = await adapter.instances()
            assert [i.label for i in listing.instances] == [KEY, KEY]

    run_virtual(scene)


def test_the_logs_of_a_job_without_a_run_are_empty_and_those_of_no_job_are_absent() -> None:
    """An empty list of runs is the same answer to both questions."""

    async def scene() -> None:
        async with dispersed() as (adapter, market):
            offer = await cheapest(adapter)
            for machine in market.world.machines:
                market.world.change_machine(machine.machine_id, taken=True)
            ident = await adapter.rent(offer, WORKLOAD, KEY)
            assert await adapter.logs(ident) == ""
            with pytest.raises(InstanceAbsent):
                await adapter.logs("no-such-job")

    run_virtual(scene)


def test_releasing_what_is_not_there_is_absent() -> None:
    """Success for whoever wanted it gone."""

    async def scene() -> None:
        async with dispersed() as (adapter, _):
            with pytest.raises(InstanceAbsent):
                await adapter.release("no-such-job")

    run_virtual(scene)


def test_an_ignored_release_leaves_the_job_in_the_list() -> None:
    """A polite answer releases nothing; the list does not lie about it."""

    async def scene() -> None:
        rule = Rule(kind="release_ignored", endpoint="destroy", times=1)
        async with dispersed(rule) as (adapter, _):
            ident, _ = await rented(adapter)
            await adapter.release(ident)
            await asyncio.sleep(30)
            assert (await only(adapter)).state is InstanceState.RUNNING

    run_virtual(scene)
