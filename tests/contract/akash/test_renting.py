"""A rent on Akash: order, bids, lease, and what is left of one that came to nothing.

The simulator's own books are the judge: what is held, what was paid, how often something was made.
"""

from __future__ import annotations

import asyncio
from decimal import Decimal

import msgspec
import pytest

from gp4u.errors import (
    BadInput,
    OfferGone,
    OutcomeUnknown,
    Refused,
    Throttled,
    Unavailable,
)
from gp4u.model import Container, InstanceState, Port, Workload
from gp4u.sim.faults import Kind, Rule
from tests.akash_simulated import (
    KEY,
    ORIGIN,
    WORKLOAD,
    Sim,
    cheapest,
    everything_returned,
    told,
)


def test_a_rental_runs_is_paid_by_the_block_and_returns_its_deposit() -> None:
    """The whole way: order, bids, lease, status, logs, command, end; the meter is the bill."""

    async def tale(sim: Sim) -> None:
        dseq = await sim.running()
        instance = await sim.only()
        assert (instance.instance_id, instance.label) == (dseq, KEY)
        assert instance.state is InstanceState.RUNNING
        assert [e.container_port for e in instance.endpoints] == [8000]
        assert "listening on 0.0.0.0:8000" in await sim.provider.logs(dseq)
        done = await sim.provider.exec(dseq, ["echo", "a b"])
        assert (done.exit_code, done.stdout) == (0, b"a b\n")
        await sim.provider.release(dseq)
        listing = await sim.provider.instances()
        assert (listing.instances, listing.complete) == ((), True)
        assert sim.world.meter_total() > 0
        assert await sim.provider.billed(dseq) == sim.world.meter_total()
        price = instance.price_usd_per_hour
        blocks = sim.world.meter_total() / (price or Decimal(1)) * 600
        assert blocks == int(blocks)
        await everything_returned(sim)

    told(tale)


def test_the_real_bids_are_chosen_among_as_offers() -> None:
    """The estimate is of no CPU and memory; the decision is made over what is really asked."""
    seen: list[int] = []

    async def tale(sim: Sim) -> None:
        def dearest(offers: object) -> object:
            assert isinstance(offers, list)
            seen.append(len(offers))
            assert not any(offer.estimated for offer in offers)
            assert {offer.gpu_model for offer in offers} == {"RTX 3090"}
            return max(offers, key=lambda o: o.price_usd_per_hour)

        offer = await sim.offer()
        dseq = await sim.provider.rent(
            offer,
            WORKLOAD,
            KEY,
            choose=dearest,  # type: ignore[arg-type]  # told apart above
        )
        (placed,) = sim.market.deployments[dseq].placed
        assert placed.lease is not None
        bids = sim.market.bids(sim.market.deployments[dseq], placed)
        visible = [b for b in bids if b.at <= placed.lease.at]
        assert placed.lease.bid.price == max(b.price for b in visible)
        assert {b.state for b in bids if b is not placed.lease.bid} == {"lost"}

    told(tale)
    assert seen == [max(seen)]
    assert seen[0] > 1


def test_without_a_choice_only_the_host_that_was_decided_for_will_do() -> None:
    """Another's bid could stand on the other side of the world."""

    async def tale(sim: Sim) -> None:
        offer = await sim.offer()
        dseq = await sim.provider.rent(offer, WORKLOAD, KEY)
        assert (await sim.only()).machine_id == offer.host_id
        assert sim.market.deployments[dseq].leases[0].bid.host.owner == offer.host_id

    told(tale)


def test_no_bid_is_ever_above_the_ceiling() -> None:
    """The order itself carries it, so the chain holds it."""

    async def tale(sim: Sim) -> None:
        offer = msgspec.structs.replace(await sim.offer(), price_usd_per_hour=Decimal("0.01"))
        with pytest.raises(OfferGone):
            await sim.provider.rent(offer, WORKLOAD, KEY, choose=cheapest)
        (deployment,) = sim.market.deployments.values()
        assert deployment.placed[0].bids == ()
        await everything_returned(sim)

    told(tale)


def test_bids_that_none_will_do_close_the_order() -> None:
    """An order that is left open keeps its deposit."""

    async def tale(sim: Sim) -> None:
        with pytest.raises(OfferGone):
            await sim.provider.rent(await sim.offer(), WORKLOAD, KEY, choose=lambda _: None)
        await everything_returned(sim)

    told(tale)


def test_several_containers_run_in_one_group() -> None:
    """This market runs them together; each brings its own ports."""
    side = Container(name="cache", image="redis:7", ports=(Port(number=6379),))
    workload = msgspec.structs.replace(WORKLOAD, beside=(side,))

    async def tale(sim: Sim) -> None:
        await sim.running(workload)
        instance = await sim.only()
        assert instance.state is InstanceState.RUNNING
        assert {e.container_port for e in instance.endpoints} == {8000, 6379}
        await sim.provider.release(instance.instance_id)
        await everything_returned(sim)

    told(tale)


def test_dry_run_shows_the_very_calls() -> None:
    """What is printed is what is sent, in order; what the market numbers stands in braces."""

    async def tale(sim: Sim) -> None:
        offer = await sim.offer()
        calls = sim.provider.rent_calls(offer, WORKLOAD, KEY)
        assert [(c.method, c.url.removeprefix(ORIGIN)) for c in calls] == [
            ("POST", "/v1/deployments"),
            ("GET", "/v1/bids?dseq={dseq}"),
            ("POST", "/v1/leases"),
        ]
        await sim.provider.rent(offer, WORKLOAD, KEY)
        (sent,) = sim.sent("POST", "/v1/deployments")
        whole = msgspec.json.Encoder(decimal_format="number").encode(calls[0].body)
        assert msgspec.json.decode(sent.content) == msgspec.json.decode(whole)

    told(tale)


def test_a_workload_that_cannot_be_is_refused_before_anything_is_sent() -> None:
    """Nothing is on the wire when it fails."""

    async def tale(sim: Sim) -> None:
        offer = await sim.offer()
        before = len(sim.wire.requests)
        with pytest.raises(BadInput):
            await sim.provider.rent(offer, Workload(image=""), KEY)
        assert len(sim.wire.requests) == before

    told(tale)


def test_without_a_key_renting_is_refused_and_nothing_is_sent() -> None:
    """The market is quote-only then; and an empty list must not prove that rentals are gone."""

    async def tale(sim: Sim) -> None:
        offer = await sim.offer()
        with pytest.raises(Refused) as caught:
            await sim.provider.rent(offer, WORKLOAD, KEY)
        assert caught.value.code == "no_key"
        assert sim.market.deployments == {}
        assert not (await sim.provider.instances()).complete

    told(tale, api_key=None)


def test_no_credit_stops_at_the_order() -> None:
    """The deposit cannot be locked."""

    async def tale(sim: Sim) -> None:
        with pytest.raises(Refused) as caught:
            await sim.rented()
        assert (caught.value.code, caught.value.instance_id) == ("insufficient_credit", None)
        assert sim.market.deployments == {}

    told(tale, credit_usd=Decimal(1))


def test_a_top_up_on_its_way_is_waited_for() -> None:
    """The account refills itself; the market says when to come again."""

    async def tale(sim: Sim) -> None:
        with pytest.raises(Throttled) as caught:
            await sim.rented()
        assert caught.value.retry_after_s == 8
        await sim.rented()

    told(
        tale,
        Rule(
            kind=Kind.NO_CREDIT,
            endpoint="create",
            calls=(1,),
            body="balance_top_up_pending",
            retry_after="8",
        ),
    )


def test_a_transaction_that_failed_made_nothing() -> None:
    """HTTP says 201, and the chain says no."""

    async def tale(sim: Sim) -> None:
        with pytest.raises(Refused) as caught:
            await sim.rented()
        assert caught.value.code == "tx_failed"
        assert sim.market.deployments == {}

    told(tale, Rule(kind=Kind.FAILED_WITHOUT_ID, endpoint="create"))


@pytest.mark.parametrize(
    "rule",
    [
        Rule(kind=Kind.RESET_AFTER, endpoint="create"),
        Rule(kind=Kind.STATUS_AFTER, endpoint="create", status=502),
        Rule(kind=Kind.HANG_AFTER, endpoint="create", seconds=90),
        Rule(kind=Kind.CUT_BODY, endpoint="create"),
        Rule(kind=Kind.BODY, endpoint="create", shape="garbage"),
        Rule(kind=Kind.BODY, endpoint="create", shape="html"),
    ],
)
def test_a_lost_reply_is_never_sent_again_and_found_by_the_key(rule: Rule) -> None:
    """The order may be out: only a listing settles it, by the name of its group."""

    async def tale(sim: Sim) -> None:
        with pytest.raises(OutcomeUnknown) as caught:
            await sim.rented()
        assert caught.value.key == KEY
        assert len(sim.sent("POST", "/v1/deployments")) == 1
        await asyncio.sleep(10)
        instance = await sim.only()
        assert (instance.label, instance.state) == (KEY, InstanceState.BOOTING)
        await asyncio.sleep(300)  # nobody is there who would take a bid
        assert (await sim.only()).state is InstanceState.FAILED
        await sim.provider.release(instance.instance_id)
        await everything_returned(sim)

    told(tale, rule)


def test_an_effect_that_comes_late_is_found_all_the_same() -> None:
    """The reply is lost now, the deployment is made a minute later."""

    async def tale(sim: Sim) -> None:
        with pytest.raises(OutcomeUnknown):
            await sim.rented()
        assert (await sim.provider.instances()).instances == ()
        await asyncio.sleep(70)
        assert (await sim.only()).label == KEY

    told(tale, Rule(kind=Kind.LATE_EFFECT, endpoint="create", seconds=60))


def test_where_no_byte_left_the_order_is_sent_again() -> None:
    """Only then can nothing have been made."""

    async def tale(sim: Sim) -> None:
        await sim.rented()
        assert len(sim.market.deployments) == 1

    told(tale, Rule(kind=Kind.REFUSE, endpoint="create", calls=(1,)))


def test_a_host_that_cannot_be_reached_costs_only_another_bid() -> None:
    """No lease was made, so the next best will do."""

    async def tale(sim: Sim) -> None:
        offer = await sim.offer()
        chosen: list[str] = []

        def lose_the_best(offers: object) -> object:
            assert isinstance(offers, list)
            best = min(offers, key=lambda o: o.price_usd_per_hour)
            if not chosen:
                sim.market.unreachable.add(best.host_id)
            chosen.append(best.host_id)
            return best

        dseq = await sim.provider.rent(
            offer,
            WORKLOAD,
            KEY,
            choose=lose_the_best,  # type: ignore[arg-type]  # told apart above
        )
        assert len(chosen) == 2
        assert sim.market.deployments[dseq].leases[0].bid.host.owner == chosen[1] != chosen[0]

    told(tale)


def test_a_manifest_that_was_lost_is_delivered_again() -> None:
    """The lease exists and costs; its host must learn what to run."""

    async def tale(sim: Sim) -> None:
        offer = await sim.offer()
        sim.market.deaf[str(offer.host_id)] = 2
        dseq = await sim.provider.rent(offer, WORKLOAD, KEY)
        assert len(sim.sent("POST", "/v1/leases")) == 3
        assert sim.market.deployments[dseq].leases[0].withheld is None

    told(tale)


def test_a_host_that_never_takes_the_manifest_is_left() -> None:
    """The deployment is closed, and named in case that this was not heard."""

    async def tale(sim: Sim) -> None:
        offer = await sim.offer()
        sim.market.deaf[str(offer.host_id)] = 99
        with pytest.raises(Refused) as caught:
            await sim.provider.rent(offer, WORKLOAD, KEY)
        assert caught.value.code == "manifest_not_delivered"
        assert caught.value.instance_id in sim.market.deployments
        await everything_returned(sim)

    told(tale)


def test_what_could_not_be_closed_is_named() -> None:
    """The order is out and holds a deposit: somebody must go on trying."""

    async def tale(sim: Sim) -> None:
        with pytest.raises(Refused) as caught:
            await sim.rented()
        (dseq,) = sim.market.deployments
        assert caught.value.instance_id == dseq

    told(
        tale,
        Rule(kind=Kind.OFFER_GONE, endpoint="create"),
        Rule(kind=Kind.STATUS, endpoint="destroy", status=503),
    )


def test_a_lease_call_that_is_lost_is_repeated() -> None:
    """It is idempotent: the same lease, not a second one."""

    async def tale(sim: Sim) -> None:
        dseq = await sim.rented()
        assert len(sim.sent("POST", "/v1/leases")) == 2
        assert len(sim.world.contracts) == 1
        assert sim.market.deployments[dseq].leases

    told(tale, Rule(kind=Kind.RESET_AFTER, endpoint="lease", calls=(1,)))


def test_bids_that_cannot_be_read_for_a_while_are_waited_for() -> None:
    """The order lives on; a page of the content network does not end it."""

    async def tale(sim: Sim) -> None:
        await sim.rented()

    told(tale, Rule(kind=Kind.STATUS, endpoint="bids", status=502, until_s=15))


@pytest.mark.parametrize("status", [404, 429])
def test_an_order_lives_on_while_its_bids_are_refused(status: int) -> None:
    """The list may not know the order yet, or be asked too often: the deadline ends the wait."""

    async def tale(sim: Sim) -> None:
        await sim.rented()
        assert len(sim.market.deployments) == 1

    told(tale, Rule(kind=Kind.STATUS, endpoint="bids", status=status, until_s=20))


def test_a_bid_that_is_gone_costs_only_another_bid() -> None:
    """It went stale, was closed, or somebody else's order took the cards."""

    async def tale(sim: Sim) -> None:
        dseq = await sim.rented()
        tried = [
            msgspec.json.decode(request.content)["leases"][0]["provider"]
            for request in sim.sent("POST", "/v1/leases")
        ]
        assert len(set(tried)) == 2
        assert sim.market.deployments[dseq].leases[0].bid.host.owner == tried[1]

    told(tale, Rule(kind=Kind.OFFER_GONE, endpoint="lease", calls=(1,)))


def test_when_every_bid_is_gone_so_is_the_offer() -> None:
    """The order is closed, its deposit returns, and the error is nobody's cause but its own."""

    async def tale(sim: Sim) -> None:
        with pytest.raises(OfferGone) as caught:
            await sim.rented()
        assert caught.value.__cause__ is not caught.value
        await everything_returned(sim)

    told(tale, Rule(kind=Kind.OFFER_GONE, endpoint="lease"))


def test_a_lease_whose_replies_are_all_lost_is_closed_and_named() -> None:
    """It exists and costs, whatever we heard."""

    async def tale(sim: Sim) -> None:
        with pytest.raises(Refused) as caught:
            await sim.rented()
        (dseq,) = sim.market.deployments
        assert caught.value.instance_id == dseq
        await everything_returned(sim)

    told(tale, Rule(kind=Kind.RESET_AFTER, endpoint="lease"))


@pytest.mark.parametrize("after_s", [5, 30])
def test_a_rent_that_is_cut_off_is_found_by_its_key(after_s: float) -> None:
    """A process that dies in mid-auction leaves an order, or a lease, under our name."""

    async def tale(sim: Sim) -> None:
        rent = asyncio.get_running_loop().create_task(sim.rented())
        await asyncio.sleep(after_s)
        rent.cancel()
        instance = await sim.only()
        assert instance.label == KEY
        await sim.provider.release(instance.instance_id)
        await everything_returned(sim)

    told(tale)


def test_a_failed_look_at_the_hosts_costs_nothing() -> None:
    """Bids are compared by what is known of their hosts: without that no order goes out."""
    rules = [
        Rule(kind=Kind.STATUS, endpoint=name, status=503, after_s=10)
        for name in ("providers", "node", "rpc")
    ]

    async def tale(sim: Sim) -> None:
        offer = await sim.offer()
        await asyncio.sleep(20)
        with pytest.raises(Unavailable):
            await sim.provider.rent(offer, WORKLOAD, KEY, choose=cheapest)
        assert sim.market.deployments == {}

    told(tale, *rules)
