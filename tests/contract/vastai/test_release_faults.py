"""What goes wrong while a machine boots, and while it is released; and what is not ours.

A stopped instance still costs. Only absent is free, and only a listing proves absence.
"""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest

from gp4u.errors import ProviderError
from gp4u.model import InstanceState
from gp4u.rentals import rental as rentals
from gp4u.rentals.broker import Dropped, Progress
from gp4u.rentals.rental import Rental, RentalState
from gp4u.sim.contracts import Contract, Order
from gp4u.sim.faults import BODY_SHAPES, THROTTLE_SHAPES, Rule
from tests.laws import SMALLEST_USD, Story, held_now, told


def on_release(kind: str, *calls: int, **more: object) -> Rule:
    """A fault of the release call; without numbers, of every one."""
    return Rule(kind=kind, endpoint="destroy", calls=calls, **more)  # type: ignore[arg-type] # fields of one rule, spelled by the test


def on_contract(trouble: str, *, seconds: float | None = None) -> Rule:
    """A trouble of the first machine that is made."""
    return Rule(kind=trouble, endpoint="create", calls=(1,), seconds=seconds)


@pytest.mark.parametrize(
    ("trouble", "reason", "within_s"),
    [
        ("stuck", "boot_timeout", 900),
        ("slow_pull", "", 400),
        ("oci_error", "cannot_start", 60),
        ("pull_error", "cannot_start", 60),
        ("dead_start", "workload_exited", 700),
        ("no_ports", "boot_timeout", 900),
        ("outbid_loading", "stopped_by_provider", 60),
        ("queued", "", 120),
        ("flicker", "", 60),
        ("wrong_machine", "", 60),
    ],
)
def test_a_machine_that_does_not_come_up_is_replaced_and_a_slow_one_is_waited_for(
    tmp_path: Path, trouble: str, reason: str, within_s: float
) -> None:
    """H28 and its kin: what cannot start is released, what may still start is not."""
    heard: list[Progress] = []

    async def tale(story: Story) -> None:
        rental = await story.rent(tell=heard.append)

        assert rental.state is RentalState.RUNNING
        first, *others = story.contracts
        if not reason:
            assert story.rent_calls == 1
            assert first.alive
        else:
            assert [p.reason for p in heard if isinstance(p, Dropped)] == [reason]
            assert len(others) == 1
            assert others[0].machine.machine_id != first.machine.machine_id
            assert others[0].created_at - first.created_at < within_s + 40
            assert first.destroyed_at is not None
        held_now(story.market, await story.app.ledger.every_rental())

    told(tale, tmp_path, on_contract(trouble))


def test_a_host_that_is_offline_for_a_while_in_boot_is_waited_for(tmp_path: Path) -> None:
    """H29: five minutes out of contact, then it goes on; nothing is bought meanwhile."""

    async def tale(story: Story) -> None:
        rental = await story.rent()

        assert rental.state is RentalState.RUNNING
        assert story.rent_calls == 1

    told(tale, tmp_path, on_contract("offline", seconds=300.0))


def test_a_host_that_stays_offline_is_given_up(tmp_path: Path) -> None:
    """H30: after ten minutes of it another machine is better than this one."""

    async def tale(story: Story) -> None:
        rental = await story.rent()

        assert rental.state is RentalState.RUNNING
        assert (await story.reasons())[0] in ("host_offline", "boot_timeout")
        assert len(story.contracts) == 2

    told(tale, tmp_path, on_contract("offline", seconds=1e6))


@pytest.mark.parametrize("trouble", ["outbid_running", "dead_start"])
def test_a_machine_that_was_stopped_under_us_is_released(tmp_path: Path, trouble: str) -> None:
    """M4: preempted; the stopped contract would go on to bill its disk for ever."""

    async def tale(story: Story) -> None:
        rental = await story.rent(wait=False)
        await story.client.settle(seconds=900)

        now = await story.newest(rental)
        assert now.state is RentalState.RELEASED
        assert now.reason in ("stopped_by_provider", "workload_exited")
        assert story.market.live == []

    told(tale, tmp_path, on_contract(trouble, seconds=30.0))


def test_a_release_that_is_ignored_is_asked_for_until_it_is_true(tmp_path: Path) -> None:
    """H31: `success: true`, and the machine is still there; success is not believed."""

    async def tale(story: Story) -> None:
        rental = await story.rent()
        done = await story.app.broker.release(rental.key)

        assert done.state is RentalState.RELEASED
        assert done.release_tries == 4
        assert story.market.live == []

    told(tale, tmp_path, on_release("release_ignored", 1, 2, 3))


@pytest.mark.parametrize("kind", ["status", "refuse", "reset_before", "hang_before"])
def test_a_release_that_fails_for_an_hour_never_ends_as_released(tmp_path: Path, kind: str) -> None:
    """H32: the age grows, the wish stays, and once the market hears us again it is over."""

    async def tale(story: Story) -> None:
        rental = await story.rent()
        deaf = story.faults.add(on_release(kind, status=503, seconds=100.0))
        await wish_its_end(story, rental)
        await story.client.settle(seconds=3600)
        assert (await story.newest(rental)).state is RentalState.RELEASING
        assert len(story.market.live) == 1

        story.faults.remove(deaf)
        await story.client.settle(seconds=700)
        assert (await story.newest(rental)).state is RentalState.RELEASED
        assert story.market.live == []

    told(tale, tmp_path)


def test_a_release_goes_on_while_listings_fail(tmp_path: Path) -> None:
    """H32, L6: we cannot see, but we know what we want and what it is called."""

    async def tale(story: Story) -> None:
        rental = await story.rent()
        story.faults.add(Rule(kind="body", endpoint="list", shape="garbage"))
        await wish_its_end(story, rental)
        await story.client.settle(seconds=60)

        assert story.market.live == [], "an hour of garbage would have cost an hour of rent"
        assert (await story.newest(rental)).state is RentalState.RELEASING, "nothing proves it yet"

    told(tale, tmp_path)


@pytest.mark.parametrize("kind", ["reset_after", "status_after", "hang_after", "cut_body"])
def test_a_release_whose_reply_is_lost_is_settled_by_a_listing(tmp_path: Path, kind: str) -> None:
    """H32: it worked and nobody told us."""

    async def tale(story: Story) -> None:
        rental = await story.rent()
        done = await story.app.broker.release(rental.key)

        assert done.state is RentalState.RELEASED

    told(tale, tmp_path, on_release(kind, 1, status=504, seconds=300.0))


@pytest.mark.parametrize("shape", THROTTLE_SHAPES)
def test_a_throttled_release_is_paced_and_then_done(tmp_path: Path, shape: str) -> None:
    """H9: 429 in every shape; even a quota's reset hours away delays it by minutes only."""

    async def tale(story: Story) -> None:
        rental = await story.rent()
        asked_at = story.world.now_s
        done = await story.app.broker.release(rental.key)

        assert done.state is RentalState.RELEASED
        assert story.trips == 0
        assert story.world.now_s - asked_at < (400 if shape == "quota" else 60)

    told(tale, tmp_path, on_release("throttle", 1, shape=shape))


@pytest.mark.parametrize("header", ["3", "-1", "nan", "1e9", "never"])
def test_any_retry_after_of_a_release_is_survived(tmp_path: Path, header: str) -> None:
    """H10: a release must not be talked out of by a header."""

    async def tale(story: Story) -> None:
        rental = await story.rent()
        done = await story.app.broker.release(rental.key)

        assert done.state is RentalState.RELEASED

    told(tale, tmp_path, on_release("throttle", 1, retry_after=header))


@pytest.mark.parametrize("shape", BODY_SHAPES)
def test_nonsense_in_answer_to_a_release_is_settled_by_a_listing(
    tmp_path: Path, shape: str
) -> None:
    """H17: whatever it said, what the list shows counts."""

    async def tale(story: Story) -> None:
        rental = await story.rent()
        done = await story.app.broker.release(rental.key)

        assert done.state is RentalState.RELEASED
        assert story.market.live == []

    told(tale, tmp_path, on_release("body", 1, shape=shape))


@pytest.mark.parametrize("shape", BODY_SHAPES)
def test_a_bill_that_cannot_be_read_is_fetched_later(tmp_path: Path, shape: str) -> None:
    """H17: the end of a rental does not wait for its bill, and the bill is not forgotten."""

    async def tale(story: Story) -> None:
        rental = await story.rent()
        done = await story.app.broker.release(rental.key)
        assert done.state is RentalState.RELEASED
        assert done.billed_usd is None
        await story.client.settle(seconds=150)

        billed = (await story.newest(rental)).billed_usd
        assert billed is not None
        assert abs(billed - story.world.meter_total()) <= SMALLEST_USD

    told(tale, tmp_path, Rule(kind="body", endpoint="charges", calls=(1, 2), shape=shape))


def test_a_machine_that_is_already_gone_is_released_without_trouble(tmp_path: Path) -> None:
    """H33: somebody ended it by hand a second before; `no_such_instance` is what we wanted."""

    async def tale(story: Story) -> None:
        rental = await story.rent()
        await story.world.destroy(story.contracts[0])
        done = await story.app.broker.release(rental.key)

        assert done.state is RentalState.RELEASED
        assert story.trips == 0

    told(tale, tmp_path)


def test_what_is_not_ours_is_never_touched(tmp_path: Path) -> None:
    """H35, L7: other people's machines, other installations' keys, and forged ones."""

    async def tale(story: Story) -> None:
        ours = story.app.ledger.mint(story.app.broker._random)
        prefix, installation, nonce, check = ours.split("-")
        labels = [
            None,
            "my training run",
            "gp4u",
            "gp4u-zzzzzz-abcdefghij-abcdefghij",
            f"{prefix}-{installation}-{nonce}-{check[::-1]}",
            f"{prefix}-{installation}-{nonce}",
            f"x{ours}",
        ]
        strangers = [stranger(story, label) for label in labels]
        rental = await story.rent()
        await story.client.settle(seconds=900)
        tick = await story.app.reconciler.tick("vastai")

        assert all(contract.alive for contract in strangers)
        for contract in strangers:
            assert not [p for _, p, _ in story.market.requests if str(contract.id) in p]
        assert {i.instance_id for i in tick.foreign} == {str(c.id) for c in strangers[3:6]}
        assert (await story.newest(rental)).state is RentalState.RUNNING
        await story.app.broker.release(rental.key)
        assert all(contract.alive for contract in strangers)
        for contract in strangers:
            await story.world.destroy(contract)
            story.contracts.remove(contract)  # no part of our books

    told(tale, tmp_path)


def test_a_machine_under_a_key_of_ours_that_no_ledger_knows_is_swept(tmp_path: Path) -> None:
    """L3: the ledger lost its last writes in a power cut; the key still proves whose it is."""

    async def tale(story: Story) -> None:
        key = story.app.ledger.mint(story.app.broker._random)
        lost = stranger(story, f"{key} (a note)")
        await story.client.settle(seconds=20)
        assert lost in story.market.live, "its intent may be on its way to the disk"
        await story.client.settle(seconds=60)

        assert lost.destroyed_at is not None
        assert lost.destroyed_at - lost.created_at <= 120
        story.contracts.remove(lost)  # nobody's rental: there is no row to book it on

    told(tale, tmp_path)


def test_a_bid_below_the_floor_leaves_nothing_behind(tmp_path: Path) -> None:
    """H5, M4 for real: the market makes a stopped contract of an outbid rent and names it."""

    async def tale(story: Story) -> None:
        rental = await story.rent(wait=False)
        contract = story.contracts[0]
        story.world.script(contract, "outbid")
        await story.client.settle(seconds=60)

        now = await story.newest(rental)
        assert (now.seen, now.state) == (InstanceState.STOPPED, RentalState.RELEASED)
        assert now.reason == "stopped_by_provider"

    told(tale, tmp_path)


def test_credit_that_runs_out_stops_and_releases_what_is_held(tmp_path: Path) -> None:
    """M1: the market stops everything, and stopped contracts bill their disks into debt."""

    async def tale(story: Story) -> None:
        rental = await story.rent()
        story.world.pay_in(Decimal("0.0005") - story.world.credit_usd)
        await story.client.settle(seconds=120)
        assert (await story.newest(rental)).state is RentalState.RELEASED

        with pytest.raises(ProviderError, match="credit"):
            await story.rent("cli:b")
        assert len(story.contracts) == 1

    told(tale, tmp_path)


async def wish_its_end(story: Story, rental: Rental) -> None:
    """Begin to release it as `release` does, and leave the rest to the loop."""
    at = story.app.clock.now()
    await story.app.ledger.move(rental, rentals.give_up(rental, "asked", at=at), at=at)


def stranger(story: Story, label: str | None) -> Contract:
    """Make a contract that our client has not asked for."""
    offer_id = next(part.offer_id for _, part, free in story.world.offers() if free)
    order = Order(image="busybox", disk_gb=Decimal(10), label=label)
    return story.world.rent(offer_id, order)
