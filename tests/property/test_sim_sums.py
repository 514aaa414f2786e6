"""The simulator's short cuts against the plain way: sums, the end of credit, pages, searches."""

from __future__ import annotations

import operator
from decimal import Decimal
from fractions import Fraction
from random import Random
from typing import Any

import pytest

from gp4u.sim.contracts import Contract, Order
from gp4u.sim.runtime import pretend
from gp4u.sim.vastai.instances import instance_row, list_page, list_query
from gp4u.sim.vastai.search import SERVER_STORAGE_GB, offer_row, offers_found
from gp4u.sim.world import World

SEEDS = range(12)


class Hand:
    """A clock moved by hand."""

    at = 100.0

    def __call__(self) -> float:
        return self.at


def make(hand: Hand, seed: int, **more: Any) -> World:
    """Build a world in which everything happens at whole seconds, soon before a midnight."""
    more = {"boot_s": (20.0, 20.0), "epoch_s": 86_400.0 * 20_000 - 60, "offers": 80, **more}
    return World(hand, Random(seed), runtime=pretend(Random(seed)), **more)


def rent(world: World, random: Random) -> Contract:
    """Rent something that is free."""
    free = [part.offer_id for _, part, is_free in world.offers() if is_free]
    order = Order(image="img", disk_gb=Decimal(random.randrange(1, 40)), label=f"l{len(free) % 3}")
    return world.rent(random.choice(free), order)


async def act(world: World, random: Random) -> None:
    """Do one thing of many that change what is running, or what it costs."""
    held = world.leaked()
    chosen = random.choice(held) if held else None
    match random.randrange(9):
        case 0 | 1 | 2:
            rent(world, random)
        case 3 if chosen is not None:
            await world.stop(chosen)
        case 4 if chosen is not None:
            await world.start(chosen)
        case 5 if chosen is not None:
            await world.destroy(chosen)
        case 6 if chosen is not None:
            world.set_bid(chosen, Decimal(random.randrange(1, 900)) / 1000)
        case 7 if chosen is not None:
            world.lose_host(chosen.machine.machine_id, for_s=10.0)
            await world.advance()
        case 8 if chosen is not None:
            world.reprice(chosen, gpu=Decimal("0.4"), disk=Decimal(1) / 3)
        case _:
            pass


@pytest.mark.parametrize("seed", SEEDS)
async def test_the_meter_is_the_plain_sum_of_every_second(seed: int) -> None:
    """Nothing is added up until it changes or is read, and nothing may be lost by that."""
    hand, random = Hand(), Random(seed)
    world = make(hand, seed, credit_usd=Decimal(100_000))
    plain: dict[int, Fraction] = {}
    for _ in range(150):
        await act(world, random)
        for contract in world.leaked():
            if not contract.offline:
                gpu = Fraction(contract.gpu_usd_per_hour if contract.up else 0)
                second = (Fraction(contract.disk_usd_per_hour) + gpu) / 3600
                plain[contract.id] = plain.get(contract.id, Fraction(0)) + second
        hand.at += 1
        await world.advance()
    assert len(world.contracts) > 10
    for contract in world.contracts:
        exact = plain.get(contract.id, Fraction(0))
        rounded = Decimal(exact.numerator) / Decimal(exact.denominator)
        assert world.meter(contract) == rounded
        by_day = sum(world.charges(contract).values(), Decimal(0))
        assert by_day == pytest.approx(rounded, rel=Decimal("1e-26"))
    whole = sum(plain.values(), Fraction(0))
    spent = Decimal(whole.numerator) / Decimal(whole.denominator)
    assert world.credit_usd == 100_000 - spent
    assert world.meter_total() == pytest.approx(spent, rel=Decimal("1e-26"))


@pytest.mark.parametrize("seed", SEEDS)
async def test_credit_ends_when_the_plain_sum_of_all_rates_has_used_it_up(seed: int) -> None:
    """The moment comes from running sums; a millisecond before it everything runs still."""
    hand, random = Hand(), Random(seed)
    world = make(hand, seed, credit_usd=Decimal(1000))
    for _ in range(40):
        await act(world, random)
        hand.at += 1
        await world.advance()
    rent(world, random)
    hand.at += 60
    await world.advance()
    world.pay_in(Decimal("0.01") - world.credit_usd)
    burn = sum((sum(c.rates.values(), Decimal(0)) for c in world.leaked()), Decimal(0))
    up = {contract.id for contract in world.leaked() if contract.up}
    assert up
    left_s = float(world.credit_usd * 3600 / burn)
    hand.at += left_s - 0.001
    await world.advance()
    assert {contract.id for contract in world.leaked() if contract.up} == up
    hand.at += 0.002
    await world.advance()
    assert not any(contract.up for contract in world.leaked())


@pytest.mark.parametrize("seed", SEEDS)
async def test_pages_are_those_of_the_whole_rows(seed: int) -> None:
    """A page makes only its own rows; order, totals and the way on are those of all of them."""
    hand, random = Hand(), Random(seed)
    world = make(hand, seed, credit_usd=Decimal(1000))
    for _ in range(40):
        rent(world, random)
        hand.at += random.randrange(3)
        await world.advance()
    contracts = world.leaked()
    column = random.choice(["label", "start_date", "end_date", "gpu_name", "machine_id", "is_bid"])
    down = random.random() < 0.5
    rows: list[Any] = [r for c in contracts if (r := instance_row(world, c))["label"] != "l1"]
    rows.sort(key=lambda row: row["id"])
    rows.sort(key=lambda row: row[column], reverse=down)
    params = {
        "limit": "7",
        "order_by": f'[{{"col": "{column}", "dir": "{"desc" if down else "asc"}"}}]',
        "select_filters": '{"label": {"neq": "l1"}}',
    }
    paged: list[object] = []
    while True:
        page: Any = list_page(world, contracts, list_query(params))
        paged += page["instances"]
        assert page["total_instances"] == len(rows)
        assert sum(page["label_counts"].values()) == len(rows)
        if page["next_token"] is None:
            break
        params["after_token"] = page["next_token"]
    assert paged == rows
    assert len(rows) > 7


@pytest.mark.parametrize("seed", SEEDS)
async def test_a_search_finds_what_a_look_at_every_row_finds(seed: int) -> None:
    """What its hardware rules out is not priced; the answer must not show it."""
    hand, random = Hand(), Random(seed)
    world = make(hand, seed)
    for _ in range(10):
        rent(world, random)
    dearer = next(world.offers())[0].machine_id
    for _ in range(2):
        world.change_machine(dearer, cpu_cores=random.randrange(200), reliability=0.999)
        rows: list[Any] = [
            offer_row(world, m, part, storage_gb=SERVER_STORAGE_GB, bid=False, rentable=free)
            for m, part, free in world.offers()
        ]
        for rank, row in enumerate(rows, 1):
            row["rn"] = rank
        bounds = {
            "gpu_ram": (operator.ge, "gte", 12_000),
            "dph_total": (operator.le, "lte", 2.0),
            "cpu_cores": (operator.gt, "gt", random.randrange(60)),
            "duration": (operator.ge, "gte", 86_400 * random.randrange(60)),
            "rentable": (operator.eq, "eq", True),
            "rented": (operator.eq, "eq", False),
        }
        chosen = random.sample(sorted(bounds), 3)
        for field in chosen:
            holds, _, bound = bounds[field]
            rows = [row for row in rows if row[field] is not None and holds(row[field], bound)]
        rows.sort(key=lambda row: row["dph_total"])
        query = {field: {bounds[field][1]: bounds[field][2]} for field in chosen}
        found = offers_found(world, {**query, "order": [["dph_total", "asc"]]}, cap=1000)
        assert found == rows
        assert rows
