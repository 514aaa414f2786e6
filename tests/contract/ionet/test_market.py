"""The io.net adapter against its simulator: every call, once clean and once per fault."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import msgspec
import pytest

from gp4u.errors import (
    BadInput,
    Denied,
    OfferGone,
    OutcomeUnknown,
    Refused,
)
from gp4u.model import InstanceState, Port, Requirements
from gp4u.providers.contract import Ability, Query
from gp4u.providers.ionet.adapter import IoNet
from gp4u.providers.ionet.opening import make
from gp4u.sim.faults import Rule
from gp4u.sim.ionet.gate import IoNetSettings
from tests.contract.ionet.market import ACCOUNT_KEY, DEMAND, EASY, KEY, ROOT, VM, WORKLOAD, market
from tests.virtual_loop import EPOCH, VirtualClock, run_virtual


def easy(**changes: object) -> IoNetSettings:
    """Return the easy settings, changed."""
    return msgspec.structs.replace(EASY, **changes)


def test_a_ping_proves_the_key() -> None:
    """A wrong one is told at once, and not as an empty account."""

    async def scene() -> None:
        async with market() as m:
            await m.provider.ping()
        for key in ("another-key", IoNetSettings().other_project_key):
            async with market(key=key) as m:
                with pytest.raises(Denied):
                    await m.provider.ping()

    run_virtual(scene)


@pytest.mark.parametrize("flavor", ["auto", "caas", "vmaas"])
def test_offers_cost_what_the_market_then_charges(flavor: str) -> None:
    """Fees are in the price: the meter after one hour's purchase says the same."""

    async def scene() -> None:
        async with market(flavor=flavor) as m:
            offer = await m.offer()
            assert (offer.gpu_model, offer.gpu_count, offer.vram_gib) == ("RTX 4090", 1, 24)
            assert offer.region is not None
            assert offer.disk_gib is not None
            assert offer.open_ports == (32 if flavor == "vmaas" else 1)
            assert not offer.estimated
            await m.provider.rent(offer, VM if flavor == "vmaas" else WORKLOAD, KEY)
            assert m.world.meter_total() == offer.price_usd_per_hour

    run_virtual(scene)


def test_rows_that_mean_nothing_are_skipped_and_counted() -> None:
    """The live catalogue has rows without GPU and rows without price."""

    async def scene() -> None:
        async with market() as m:
            page = await m.provider.offers(Query(requirements=DEMAND))
            assert page.skipped_rows == 2
            assert page.complete
            assert all(offer.price_usd_per_hour > 0 for offer in page.offers)

    run_virtual(scene)


@pytest.mark.parametrize("endpoint", ["shapes", "locations", "price"])
def test_offers_come_without_what_only_makes_them_better(endpoint: str) -> None:
    """Places have codes beside numbers; prices without known fees say that they are estimates."""

    async def scene() -> None:
        async with market() as m:
            m.faults.add(Rule(kind="status", status=400, body='{"detail":"x"}', endpoint=endpoint))
            offer = await m.offer()
            assert (offer.disk_gib is None) == (endpoint == "shapes")
            assert ("/" in offer.offer_id) == (endpoint != "locations")
            assert offer.estimated == (endpoint == "price")
            m.faults.clear()
            if endpoint == "price":
                with pytest.raises(OfferGone):  # the fee is more than a rounding
                    await m.provider.rent(offer, WORKLOAD, KEY)
            else:
                await m.provider.rent(offer, WORKLOAD, KEY)
                assert len(m.world.leaked()) == 1

    run_virtual(scene)


@pytest.mark.parametrize("status", [401, 403, 404])
def test_containers_are_offered_to_an_account_without_machines(status: int) -> None:
    """The flavour says that it need not have them; its key is as good as any."""

    async def scene() -> None:
        async with market(flavor="caas") as m:
            m.faults.add(
                Rule(kind="status", status=status, body='{"detail":"Forbidden"}', endpoint="shapes")
            )
            offer = await m.offer()
            assert (offer.disk_gib, offer.estimated) == (None, False)
            assert isinstance(m.provider, IoNet)
            assert not m.provider._http._guard.health().denied

    run_virtual(scene)


@pytest.mark.parametrize(
    "settings",
    [
        EASY,
        easy(bare=True),
        easy(plain_catalogue=True),
        easy(upper_case_status=True, naive_stamps=True),
        easy(total_zero=True),
    ],
    ids=["wrapped", "bare", "plain_catalogue", "spelling", "total_zero"],
)
def test_a_container_goes_from_order_to_url_and_back_to_nothing(settings: IoNetSettings) -> None:
    """The whole life, in each form in which the market was seen to answer."""

    async def scene() -> None:
        async with market(settings=settings) as m:
            instance_id = await m.rented()
            (booting,) = (await m.provider.instances()).instances
            assert (booting.instance_id, booting.label) == (instance_id, KEY)
            assert booting.state is InstanceState.BOOTING
            assert (booting.endpoints, booting.paid_until) == ((), None)
            await asyncio.sleep(11)
            (up,) = (await m.provider.instances()).instances
            assert up.state is InstanceState.BOOTING  # the health check has not passed
            assert "health check" in up.status
            await asyncio.sleep(10)
            listing = await m.provider.instances()
            (serving,) = listing.instances
            assert serving.state is InstanceState.RUNNING
            (end,) = serving.endpoints
            outside = m.contract().ports[8000, "tcp"]
            assert (end.container_port, end.port) == (8000, outside)
            assert end.url == f"http://127.0.0.1:{outside}"
            assert serving.price_usd_per_hour == m.world.meter_total()
            assert "listening" in await m.provider.logs(instance_id)
            await m.provider.release(instance_id)
            (ending,) = (await m.provider.instances()).instances
            assert ending.state is InstanceState.STOPPED
            await asyncio.sleep(5)
            listing = await m.provider.instances()
            assert (listing.instances, listing.complete) == ((), True)
            assert m.world.leaked() == []
            assert await m.provider.billed(instance_id) == m.world.meter_total()

    run_virtual(scene)


def test_the_program_gets_its_command_and_variables_as_they_were_meant() -> None:
    """The scheduler fills in dollars; what it starts must be what was asked for."""

    async def scene() -> None:
        async with market() as m:
            await m.running()
            order = m.contract().order
            assert (order.entrypoint, order.command) == ("sh", ("-c", "echo $HOME"))
            assert order.env == {"TOKEN": "workload-secret"}
            shown = [r for r in m.requests if r.url.path.endswith("/deploy")]
            assert len(shown) == 1

    run_virtual(scene)


def test_a_dry_run_shows_the_very_calls_that_are_sent() -> None:
    """Price first, then the order; nothing else may cost money."""

    async def scene() -> None:
        async with market() as m:
            offer = await m.offer()
            calls = m.provider.rent_calls(offer, WORKLOAD, KEY)
            m.requests.clear()
            await m.provider.rent(offer, WORKLOAD, KEY)
            assert [(c.method, c.url) for c in calls] == [
                (r.method, str(r.url)) for r in m.requests
            ]
            assert msgspec.json.decode(m.requests[1].content) == calls[1].body

    run_virtual(scene)


def test_a_machine_is_found_by_its_name_and_has_addresses() -> None:
    """Its create call answers with nothing; ports come as address and number."""

    async def scene() -> None:
        async with market(flavor="vmaas") as m:
            instance_id = await m.running(VM)
            assert instance_id.startswith("vmaas:")
            (serving,) = (await m.provider.instances()).instances
            assert serving.state is InstanceState.RUNNING
            assert [(e.container_port, e.host, e.url) for e in serving.endpoints] == [
                (22, "127.0.0.1", None),
                (8080, "127.0.0.1", None),
            ]
            with pytest.raises(Refused, match="no logs"):
                await m.provider.logs(instance_id)
            await m.provider.extend(instance_id)
            assert await m.provider.billed(instance_id) == m.world.meter_total()
            await m.provider.release(instance_id)
            assert m.world.leaked() == []

    run_virtual(scene)


def test_a_machine_that_is_not_listed_yet_is_an_unknown_outcome() -> None:
    """It was accepted, so it must be sought by its name and not ordered again."""

    async def scene() -> None:
        late = Rule(kind="late_listing", endpoint="create", seconds=30)
        async with market(late, flavor="vmaas") as m:
            with pytest.raises(OutcomeUnknown) as caught:
                await m.rented(VM)
            assert caught.value.key == KEY
            await asyncio.sleep(31)
            (shown,) = (await m.provider.instances()).instances
            assert shown.label == KEY

    run_virtual(scene)


@pytest.mark.parametrize("flavor", ["auto", "vmaas"])
def test_what_the_product_cannot_run_is_refused_before_anything_is_sent(flavor: str) -> None:
    """A container wants one HTTP port, and a machine runs no container."""

    async def scene() -> None:
        async with market(flavor=flavor) as m:
            offer = await m.offer()
            m.requests.clear()
            two = msgspec.structs.replace(WORKLOAD, ports=(Port(number=1), Port(number=2)))
            with pytest.raises(BadInput):
                await m.provider.rent(offer, two, KEY)
            assert m.requests == []
            can = m.provider.spec.can
            assert (Ability.MANY_PORTS in can, Ability.LOGS in can) == (
                flavor == "vmaas",
                flavor == "auto",
            )

    run_virtual(scene)


def test_both_products_are_listed_wherever_neither_was_chosen() -> None:
    """What was rented under another flavour must not look as if it had gone."""

    async def scene() -> None:
        async with market(flavor="vmaas") as m:
            machine = await m.running(VM)
            assert isinstance(m.provider, IoNet)
            both = make(
                m.provider._http,
                base_url=f"{ROOT}/caas",
                clock=VirtualClock(),
                allow_loopback=True,
            )
            (shown,) = (await both.instances()).instances
            assert shown.instance_id == machine
            assert len(shown.endpoints) == 2
            await both.release(machine)
            assert m.world.leaked() == []

    run_virtual(scene)


def test_time_is_extended_by_one_hour_and_ends_where_it_was_paid_to() -> None:
    """Prepaid: each hour is on the meter when bought, and after the last the thing is gone."""

    async def scene() -> None:
        async with market() as m:
            instance_id = await m.running()
            began = EPOCH
            (first,) = (await m.provider.instances()).instances
            assert first.paid_until is not None
            assert timedelta(minutes=58) < first.paid_until - began <= timedelta(hours=1)
            hour = m.world.meter_total()
            await m.provider.extend(instance_id)
            assert m.world.meter_total() == 2 * hour
            (longer,) = (await m.provider.instances()).instances
            assert longer.paid_until is not None
            assert longer.paid_until - first.paid_until == timedelta(hours=1)
            await asyncio.sleep(5400)
            assert len((await m.provider.instances()).instances) == 1
            await asyncio.sleep(1800)
            listing = await m.provider.instances()
            assert (listing.instances, listing.complete) == ((), True)
            assert m.world.leaked() == []
            assert m.world.meter_total() == 2 * hour == await m.provider.billed(instance_id)
            with pytest.raises(Refused):
                await m.provider.extend(instance_id)

    run_virtual(scene)


@pytest.mark.parametrize("refund", ["none", "after_first_hour"])
def test_the_bill_is_the_meter_whatever_is_given_back(refund: str) -> None:
    """The documents disagree on refunds; the books follow what the market says it took."""

    async def scene() -> None:
        async with market(settings=easy(refund=refund)) as m:
            instance_id = await m.running()
            hour = m.world.meter_total()
            await m.provider.extend(instance_id)
            await asyncio.sleep(60)
            await m.provider.release(instance_id)
            await asyncio.sleep(5)
            assert m.world.meter_total() == (2 * hour if refund == "none" else hour)
            assert await m.provider.billed(instance_id) == m.world.meter_total()

    run_virtual(scene)


def test_the_key_is_in_one_header_and_nowhere_else() -> None:
    """Not in a URL, a body or an error."""

    async def scene() -> None:
        async with market() as m:
            instance_id = await m.running()
            await m.provider.instances()
            await m.provider.release(instance_id)
            for request in m.requests:
                assert request.headers["x-api-key"] == ACCOUNT_KEY
                assert "authorization" not in request.headers
                assert ACCOUNT_KEY not in str(request.url)
                assert ACCOUNT_KEY.encode() not in request.content

    run_virtual(scene)


def test_the_seeds_dialect_quotes_and_never_rents() -> None:
    """It has no list of what one holds, so nothing rented there could be found again."""

    async def scene() -> None:
        async with market(flavor="legacy") as m:
            await m.provider.ping()
            page = await m.provider.offers(Query(requirements=Requirements()))
            assert len(page.offers) > 20
            made = {f"device:dev-{each.machine_id}": each for each in m.world.machines}
            for offer in page.offers:
                told = made[offer.offer_id]
                assert offer.price_usd_per_hour == told.usd_per_gpu_hour
                assert offer.reliability == told.reliability
                assert offer.download_mbps == pytest.approx(told.down_mbps)
                assert (offer.gpu_count, offer.verified) == (1, True)
            assert m.requests[-1].headers["authorization"] == f"Bearer {ACCOUNT_KEY}"
            assert m.provider.spec.can == Ability.NONE
            listing = await m.provider.instances()
            assert (listing.instances, listing.complete) == ((), False)
            with pytest.raises(BadInput):
                m.provider.rent_calls(page.offers[0], WORKLOAD, KEY)
            for call in (
                m.provider.rent(page.offers[0], WORKLOAD, KEY),
                m.provider.release("x"),
                m.provider.logs("x"),
            ):
                with pytest.raises(Refused):
                    await call
            assert m.world.contracts == []
        async with market(flavor="legacy", key="another-key") as m:
            with pytest.raises(Denied):
                await m.provider.ping()

    run_virtual(scene)
