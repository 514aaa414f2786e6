"""The adapter of Dispersed against its simulator: the whole contract, once clean and per fault."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from typing import Any

import msgspec
import pytest

from gp4u.errors import (
    BadInput,
    Denied,
    InstanceAbsent,
)
from gp4u.model import InstanceState, Port, Requirements, Workload
from gp4u.providers.contract import Ability, Query
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
from tests.virtual_loop import run_virtual


def test_ping_proves_the_key_pair() -> None:
    """A doctor's first question; a wrong secret must show here and not at the first rent."""

    async def scene() -> None:
        async with dispersed() as (adapter, _):
            await adapter.ping()
        async with dispersed(secret="sk_other") as (adapter, market):
            with pytest.raises(Denied):
                await adapter.ping()
            assert len(market.wire.sent) == 1, "nobody repeats what was denied"

    run_virtual(scene)


def test_offers_with_any_number_of_gpus_are_those_with_each() -> None:
    """Without a number the market shows all its sizes in one walk."""

    async def scene() -> None:
        async with dispersed() as (adapter, _):

            async def seen(count: int | None) -> set[str]:
                page = await adapter.offers(Query(requirements=Requirements(gpu_count=count)))
                return {offer.offer_id for offer in page.offers}

            everything = await seen(None)
            assert everything >= await seen(1) | await seen(2)
            assert await seen(2)

    run_virtual(scene)


def test_offers_are_what_the_world_has_with_a_price_for_the_whole_node() -> None:
    """Four GPUs for the price of one would win every ranking."""

    async def scene() -> None:
        async with dispersed() as (adapter, market):
            for count in (1, 2):
                wanted = Query(requirements=Requirements(gpu_count=count))
                page = await adapter.offers(wanted)
                assert page.complete
                assert page.skipped_rows == 0
                truth = {
                    part.offer_id: machine.usd_per_gpu_hour * count
                    for machine, part, free in market.world.offers()
                    if free and len(part.gpus) == count and machine.gpu.arch == "nvidia"
                }
                seen = {
                    int(o.offer_id.removeprefix("off_").partition("@")[0]): o.price_usd_per_hour
                    for o in page.offers
                }
                assert seen == truth
                assert all(o.gpu_count == count and o.available for o in page.offers)
                assert all(o.region is not None for o in page.offers)

    run_virtual(scene)


def test_offers_are_walked_through_all_pages() -> None:
    """A page holds 50 rows; the cheapest may be the last."""

    async def scene() -> None:
        async with dispersed(offers=400) as (adapter, market):
            page = await adapter.offers(ONE_GPU)
            assert page.complete
            assert len(page.offers) > 100
            assert len(market.wire.sent) == -(-len(page.offers) // 50)

    run_virtual(scene)


def test_a_rent_runs_gets_its_address_and_ends() -> None:
    """The whole life: PENDING to RUNNING, the address from the run, cancel, absence."""

    async def scene() -> None:
        async with dispersed() as (adapter, market):
            ident, offer = await rented(adapter)
            (contract,) = market.live
            assert contract.order.image == "nginx:1.27"
            assert contract.order.env == {"A": "1", "B": "2"}
            early = await only(adapter)
            assert (early.instance_id, early.label) == (ident, KEY)
            assert early.state is InstanceState.BOOTING
            assert early.endpoints == ()
            await asyncio.sleep(15)
            instance = await only(adapter)
            assert instance.state is InstanceState.RUNNING
            (endpoint,) = instance.endpoints
            assert (endpoint.container_port, endpoint.host) == (8000, "127.0.0.1")
            assert endpoint.port == contract.ports[8000, "tcp"]
            assert instance.price_usd_per_hour == offer.price_usd_per_hour
            assert "listening on 0.0.0.0:8000" in await adapter.logs(ident)
            assert len((await adapter.logs(ident, tail=1)).splitlines()) == 1
            await adapter.release(ident)
            assert (await only(adapter)).state is InstanceState.STOPPED
            await asyncio.sleep(3)
            assert (await adapter.instances()).instances == ()
            assert market.live == []
            with pytest.raises(InstanceAbsent):
                await adapter.release(ident)

    run_virtual(scene)


def test_the_job_asks_for_the_offers_very_type_and_opens_its_allow_list() -> None:
    """Unpinned, a job may land on anything; with the list shut, nobody reaches it."""

    async def scene() -> None:
        async with dispersed() as (adapter, market):
            _, offer = await rented(adapter)
            (contract,) = market.live
            assert offer.offer_id.startswith(f"off_{contract.offer_id}@")
            (call,) = adapter.rent_calls(offer, WORKLOAD, KEY)
            body: Any = call.body
            assert body["task"] == "PERSISTENT"
            assert body["max_timeout_run_ms"] is None
            assert body["title"] == KEY
            assert body["gpu_registry_uuid"] == offer.offer_id.rpartition("/")[2]
            assert body["parameters"]["parameters"]["allowed_ips"] == ["0.0.0.0/0"]

    run_virtual(scene)


def test_a_running_job_without_its_address_is_still_booting() -> None:
    """The proxy in front of a node comes up after the container."""

    async def scene() -> None:
        slow = msgspec.structs.replace(EASY, address_lag_s=(30.0, 30.0))
        async with dispersed(settings=slow) as (adapter, _):
            await rented(adapter)
            await asyncio.sleep(15)
            assert (await only(adapter)).state is InstanceState.BOOTING
            await asyncio.sleep(30)
            assert (await only(adapter)).state is InstanceState.RUNNING

    run_virtual(scene)


def test_a_workload_without_ports_needs_no_address() -> None:
    """It would wait for one for ever."""

    async def scene() -> None:
        async with dispersed() as (adapter, _):
            await rented(adapter, Workload(image="worker", disk_gib=16))
            await asyncio.sleep(15)
            assert (await only(adapter)).state is InstanceState.RUNNING

    run_virtual(scene)


def test_ssh_is_container_port_22() -> None:
    """The market describes that one forward by name instead of by number."""

    async def scene() -> None:
        async with dispersed() as (adapter, _):
            ports = (Port(number=22), Port(number=80))
            await rented(adapter, Workload(image="box", ports=ports, disk_gib=16))
            await asyncio.sleep(15)
            assert [e.container_port for e in (await only(adapter)).endpoints] == [22, 80]

    run_virtual(scene)


def test_a_workload_with_a_command_is_refused_before_money() -> None:
    """There is no way to say a command; running the image without it would be another program."""

    async def scene() -> None:
        async with dispersed() as (adapter, market):
            offer = await cheapest(adapter)
            sent = len(market.wire.sent)
            with pytest.raises(BadInput, match="command"):
                await adapter.rent(offer, Workload(image="x", command=("serve",)), KEY)
            assert len(market.wire.sent) == sent
            assert Ability.COMMAND not in adapter.spec.can

    run_virtual(scene)


@pytest.mark.parametrize(
    "settings",
    [
        msgspec.structs.replace(EASY, bare_lists=True),
        msgspec.structs.replace(EASY, wrapped_job=True),
        msgspec.structs.replace(EASY, runs_name_job=False),
        msgspec.structs.replace(EASY, runs_need_job=True),
        msgspec.structs.replace(EASY, runs_need_job=True, runs_name_job=False),
    ],
    ids=["bare lists", "wrapped objects", "runs without job_uuid", "runs of one job", "both"],
)
def test_every_seen_shape_of_a_reply_is_understood(settings: Any) -> None:
    """No recorded answer is public, and those who saw some disagree."""

    async def scene() -> None:
        async with dispersed(settings=settings) as (adapter, _):
            ident, _ = await rented(adapter)
            await asyncio.sleep(15)
            instance = await only(adapter)
            assert instance.state is InstanceState.RUNNING
            assert [e.container_port for e in instance.endpoints] == [8000]
            assert await adapter.logs(ident)
            await adapter.release(ident)

    run_virtual(scene)


def test_a_job_bills_from_its_creation_and_the_offer_says_so() -> None:
    """The ledger's estimate is made of the offer's two rates; both must run when the meter does."""

    async def scene() -> None:
        async with dispersed() as (adapter, market):
            ident, offer = await rented(adapter)
            await asyncio.sleep(1800)
            await adapter.release(ident)
            await asyncio.sleep(10)
            await adapter.instances()
            cost = offer.storage_usd_per_hour * Decimal(1800) / 3600
            assert market.world.meter_total() == pytest.approx(cost, rel=Decimal("1e-6"))
            assert offer.gpu_usd_per_hour == 0

    run_virtual(scene)


def test_a_client_within_the_rate_limit_is_never_throttled() -> None:
    """The purse of calls and ours are of one size."""

    async def scene() -> None:
        async with dispersed() as (adapter, market):
            for _ in range(150):
                await adapter.ping()
                await asyncio.sleep(0.61)
            assert len(market.wire.sent) == 150

    run_virtual(scene)
