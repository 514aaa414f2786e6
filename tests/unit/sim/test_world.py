"""The world's truth: states in order, GPUs sold once, and a bill to the last microsecond."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from random import Random

import pytest

from gp4u.sim.contracts import Contract, Order, Trouble
from gp4u.sim.runtime import pretend
from gp4u.sim.world import World


class Hand:
    """A clock moved by hand."""

    def __init__(self) -> None:
        self.at = 100.0

    def __call__(self) -> float:
        return self.at


Make = Callable[..., World]


@pytest.fixture
def hand() -> Hand:
    """The clock of the world under test."""
    return Hand()


@pytest.fixture
def make(hand: Hand) -> Make:
    """Build a world on that clock; boots take exactly ten seconds."""

    def build(**more: object) -> World:
        options: dict[str, object] = {"offers": 60, "boot_s": (10.0, 10.0), **more}
        return World(hand, Random(1), runtime=pretend(Random(2)), **options)  # type: ignore[arg-type]  # each test names its own

    return build


async def pass_s(world: World, hand: Hand, seconds: float) -> None:
    """Let time pass."""
    hand.at += seconds
    await world.advance()


def single(world: World) -> int:
    """Return the id of an offer of a machine with one GPU."""
    return next(p.offer_id for m, p, free in world.offers() if free and m.gpu_count == 1)


def rent(world: World, trouble: Trouble | None = None, **more: object) -> Contract:
    """Rent a single GPU with a ten-gigabyte disk."""
    order = Order(image="img", disk_gb=Decimal(10), **more)  # type: ignore[arg-type]  # each test names its own
    return world.rent(single(world), order, trouble=trouble)


async def test_a_contract_walks_from_nothing_to_running(make: Make, hand: Hand) -> None:
    """Clients see each of these states; their order is the provider's."""
    world = make()
    contract = rent(world)
    seen: list[str | None] = [contract.actual]
    for _ in range(24):
        await pass_s(world, hand, 0.5)
        if seen[-1] != contract.actual:
            seen.append(contract.actual)
    assert seen == [None, "created", "loading", "running"]


async def test_steps_missed_while_nobody_asked_are_made_up_in_order(make: Make, hand: Hand) -> None:
    """Lazy stepping must not change the bill: GPU time starts when it was due, not when seen."""
    lazy, eager = make(), make()
    first, second = rent(lazy), rent(eager)
    for _ in range(100):
        hand.at += 1
        await eager.advance()
    await lazy.advance()
    assert first.actual == second.actual == "running"
    assert lazy.meter(first) == eager.meter(second) > 0


async def test_the_meter_bills_gpu_while_running_and_disk_until_destroyed(
    make: Make, hand: Hand
) -> None:
    """By the second, as documented: this is the judge of every other bill."""
    world = make()
    contract = rent(world)
    await pass_s(world, hand, 3610)
    await world.stop(contract)
    await pass_s(world, hand, 3600)
    await world.destroy(contract)
    await pass_s(world, hand, 3600)
    disk = contract.disk_usd_per_hour * 7210 / 3600
    assert world.meter(contract) == pytest.approx(
        contract.gpu_usd_per_hour + disk, rel=Decimal("1e-15")
    )
    assert world.meter_total() == world.meter(contract)
    assert world.credit_usd == Decimal(25) - world.meter_total()


async def test_the_meter_runs_between_steps_too(make: Make, hand: Hand) -> None:
    """A reading needs no step first."""
    world = make()
    contract = rent(world)
    hand.at += 1.5
    assert world.meter(contract) == contract.disk_usd_per_hour * 1_500_000 / 3_600_000_000


async def test_an_unreachable_host_is_not_billed(make: Make, hand: Hand) -> None:
    """The documents promise it, and H30 needs a host that is lost and free."""
    world = make()
    contract = rent(world)
    await pass_s(world, hand, 20)
    world.lose_host(contract.machine.machine_id, for_s=100)
    await world.advance()
    assert contract.actual == "offline"
    before = world.meter(contract)
    await pass_s(world, hand, 99)
    assert world.meter(contract) == before
    await pass_s(world, hand, 11)
    assert contract.actual == "running"
    assert world.meter(contract) > before


async def test_renting_a_slice_hides_what_overlaps_it_until_it_is_destroyed(
    make: Make, hand: Hand
) -> None:
    """A GPU must never be sold twice, and the market must recover."""
    world = make(offers=200)
    machine = next(m for m in world.machines if m.gpu_count == 4 and not m.taken)

    def shown() -> set[int]:
        return {p.offer_id for m, p, _ in world.offers() if m.machine_id == machine.machine_id}

    whole, pair, one = (next(p for p in machine.slices if len(p.gpus) == n) for n in (4, 2, 1))
    before = shown()
    assert before == {whole.offer_id, pair.offer_id, one.offer_id}
    contract = world.rent(one.offer_id, Order(image="img", disk_gb=Decimal(10)))
    assert shown().isdisjoint(before)
    busy = set(one.gpus)
    assert all(busy.isdisjoint(p.gpus) for p in machine.slices if p.offer_id in shown())
    with pytest.raises(LookupError):
        world.rent(whole.offer_id, Order(image="img", disk_gb=Decimal(10)))
    await world.destroy(contract)
    assert shown() == before


async def test_offers_may_come_back_under_new_ids(make: Make) -> None:
    """Nobody knows which it is, so a client must bear both."""
    world = make(fresh_offer_ids=True)
    contract = rent(world)
    await world.destroy(contract)
    assert world.find_offer(contract.offer_id) is None
    assert world.was_offered(contract.offer_id)
    assert any(m.machine_id == contract.machine.machine_id for m, _, _ in world.offers())


async def test_everything_stops_when_the_credit_is_gone_and_disks_go_on(
    make: Make, hand: Hand
) -> None:
    """At the very second: money must not run below zero by GPU time."""
    world = make(credit_usd=Decimal("0.01"))
    contract = rent(world)
    await pass_s(world, hand, 86_400)
    assert (contract.cur, contract.up) == ("stopped", False)
    disk = sum(usd for (_, kind), usd in world.charges(contract).items() if kind == "disk")
    gpu = sum(usd for (_, kind), usd in world.charges(contract).items() if kind == "gpu")
    assert 0 < gpu < Decimal("0.01")
    assert gpu + disk > Decimal("0.01")
    assert not await world.start(contract)


@pytest.mark.parametrize(
    ("trouble", "after_s", "actual", "intended", "text"),
    [
        (Trouble.OCI_ERROR, 600, "created", "running", ": OCI runtime create failed:"),
        (Trouble.PULL_ERROR, 600, "loading", "running", "manifest unknown"),
        (Trouble.STUCK, 6000, "loading", "running", ""),
        (Trouble.SLOW_PULL, 150, "loading", "running", ""),
        (Trouble.SLOW_PULL, 210, "running", "running", "success"),
        (Trouble.OFFLINE, 100, "offline", "running", ""),
        (Trouble.OFFLINE, 700, "running", "running", "success"),
        (Trouble.OUTBID_LOADING, 600, "loading", "stopped", ""),
        (Trouble.OUTBID_RUNNING, 60, "exited", "stopped", ""),
        (Trouble.FLICKER, 18, "loading", "running", ""),
        (Trouble.FLICKER, 30, "running", "running", "success"),
        (Trouble.QUEUED, 20, "scheduling", "running", ""),
        (Trouble.QUEUED, 70, "running", "running", "success"),
        (Trouble.DEAD_START, 60, "exited", "running", "exited with code"),
        (Trouble.HOST_LOSS, 9999, "offline", "running", ""),
    ],
)
async def test_each_trouble_leads_where_it_should(
    make: Make,
    hand: Hand,
    trouble: Trouble,
    after_s: float,
    actual: str,
    intended: str,
    text: str,
) -> None:
    """These are the combinations that peers misread."""
    world = make()
    contract = rent(world, trouble)
    await pass_s(world, hand, after_s)
    assert (contract.actual, contract.intended) == (actual, intended)
    assert text in (contract.status_msg or "")
    assert contract.alive


async def test_a_flickering_instance_is_billed_throughout(make: Make, hand: Hand) -> None:
    """It serves all the time; only the report wavers."""
    world = make()
    contract = rent(world, Trouble.FLICKER)
    await pass_s(world, hand, 110)
    gpu = sum(usd for (_, kind), usd in world.charges(contract).items() if kind == "gpu")
    assert gpu == pytest.approx(contract.gpu_usd_per_hour * 100 / 3600, rel=Decimal("1e-12"))


async def test_a_stopped_contract_starts_again_once_its_gpu_is_free(make: Make, hand: Hand) -> None:
    """The refused start stays queued, and bills hours later: why we never stop."""
    world = make()
    contract = rent(world)
    await pass_s(world, hand, 20)
    await world.stop(contract)
    await pass_s(world, hand, 5)
    assert contract.actual == "exited"
    rival = world.rent(contract.offer_id, Order(image="img", disk_gb=Decimal(10)))
    assert not await world.start(contract)
    await pass_s(world, hand, 100)
    assert contract.queued
    await world.destroy(rival)
    await pass_s(world, hand, 100)
    assert contract.actual == "running"


async def test_destroying_in_mid_boot_leaves_nothing(make: Make, hand: Hand) -> None:
    """The commonest release of all: the reader changed his mind."""
    world = make()
    contract = rent(world)
    await pass_s(world, hand, 5)
    await world.destroy(contract)
    await pass_s(world, hand, 100)
    assert not contract.up
    assert world.leaked() == []
    assert world.contracts == [contract]
    assert contract.destroyed_at == 105.0


async def test_a_parked_action_happens_at_its_time(make: Make, hand: Hand) -> None:
    """A late effect must take effect even if nobody calls in between."""
    world = make()
    done: list[int] = []

    async def act() -> None:
        done.append(rent(world).id)

    world.later(30, act)
    await pass_s(world, hand, 29)
    assert done == []
    await pass_s(world, hand, 2)
    assert len(done) == 1


async def test_charges_are_split_at_midnight(make: Make, hand: Hand) -> None:
    """The provider shows one row per contract and day."""
    world = make(epoch_s=86_400.0 * 100 - 50)
    contract = rent(world)
    await pass_s(world, hand, 100)
    days = {day for day, _ in world.charges(contract)}
    assert days == {99, 100}
    total = sum(world.charges(contract).values(), Decimal(0))
    assert total == pytest.approx(world.meter(contract), rel=Decimal("1e-26"))


async def test_traffic_is_charged_at_the_machines_price(make: Make) -> None:
    """Only where it is asked for: rents in tests move no data."""
    world = make()
    contract = rent(world)
    world.transfer(contract, down_gb=Decimal(3), up_gb=Decimal(2))
    terms = contract.machine
    assert world.meter(contract) == 3 * terms.down_usd_per_gb + 2 * terms.up_usd_per_gb


async def test_a_changed_price_leaves_running_contracts_alone(make: Make) -> None:
    """A price that moves between decision and rent is only the next renter's business."""
    world = make()
    contract = rent(world)
    paid = contract.gpu_usd_per_hour
    world.change_machine(contract.machine.machine_id, usd_per_gpu_hour=Decimal(9))
    assert contract.gpu_usd_per_hour == paid
    assert world.machine(contract.machine.machine_id).usd_per_gpu_hour == 9
