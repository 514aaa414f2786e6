"""The simulated auction and its money, through the Console's API."""

from __future__ import annotations

import asyncio
from decimal import Decimal

import msgspec
import pytest

from gp4u.sim.akash.market import MANIFEST_TIMEOUT_S
from gp4u.sim.faults import Kind, Rule
from tests.unit.sim.akash.dialect import EASY, SDL, Sim, akash
from tests.virtual_loop import run_virtual


def test_bids_trickle_in_and_go_stale() -> None:
    """None at once, more and more, and none that can be accepted after five minutes."""

    async def tale() -> None:
        async with akash() as sim:
            deployment = await sim.create()
            counts = []
            for _ in range(4):
                counts.append(len(await sim.bids(deployment)))
                await asyncio.sleep(4)
            assert counts[0] == 0
            assert counts == sorted(counts)
            assert counts[-1] > 1
            await asyncio.sleep(300)
            bids = await sim.bids(deployment)
            assert {bid["state"] for bid in bids} == {"closed"}
            assert (await sim.lease(deployment, bids[0]["id"]["provider"])).status_code == 400

    run_virtual(tale)


def test_no_bid_is_above_the_ceiling_or_of_another_card() -> None:
    """The chain refuses the first, and hosts do not have the second."""

    async def tale() -> None:
        async with akash() as sim:
            everything = await sim.create()
            modest = await sim.create(SDL.replace("amount: 2000", "amount: 300"))
            await asyncio.sleep(15)
            prices = [Decimal(bid["price"]["amount"]) for bid in await sim.bids(everything)]
            cheap = [Decimal(bid["price"]["amount"]) for bid in await sim.bids(modest)]
            assert len(cheap) == sum(price <= 300 for price in prices) < len(prices)
            for bid in await sim.bids(everything):
                assert sim.market.hosts[bid["id"]["provider"]].card.model == "rtx3090"
                gpu = bid["resources_offer"][0]["resources"]["gpu"]["attributes"]
                assert gpu[0]["key"] == "vendor/nvidia/model/rtx3090/ram/24Gi/interface/pcie"

    run_virtual(tale)


def test_an_order_takes_twenty_bids() -> None:
    """So "more bids later" has an end."""

    async def tale() -> None:
        async with akash() as sim:
            anything = await sim.create(
                SDL.replace("nvidia: [{model: rtx3090}]", "nvidia:").replace("2000", "9999")
            )
            await asyncio.sleep(15)
            assert len(await sim.bids(anything)) == 20

    run_virtual(tale)


def test_a_lease_makes_the_other_bids_lost_and_is_idempotent() -> None:
    """The identical call again is the same lease; another host's is refused."""

    async def tale() -> None:
        async with akash() as sim:
            deployment = await sim.leased()
            bids = await sim.bids(deployment)
            assert [bid["state"] for bid in bids].count("active") == 1
            assert {bid["state"] for bid in bids} == {"active", "lost"}
            owner = sim.host(deployment).owner
            assert (await sim.lease(deployment, owner)).status_code == 200
            other = next(b["id"]["provider"] for b in bids if b["id"]["provider"] != owner)
            assert (await sim.lease(deployment, other)).status_code == 400
            assert len(sim.world.contracts) == 1

    run_virtual(tale)


def test_a_lease_pays_by_the_block_from_its_first_one() -> None:
    """Whether or not anything runs; the world's meter and the escrow agree to the last digit."""

    async def tale() -> None:
        async with akash() as sim:
            deployment = await sim.leased()
            (lease,) = deployment.leases
            for blocks in (1, 10, 600):
                await asyncio.sleep(6 * blocks)
                data = (await sim.get(f"/v1/deployments/{deployment.dseq}"))["data"]
                state = data["escrow_account"]["state"]
                paid = Decimal(state["transferred"][0]["amount"])
                expected = lease.bid.price * (sim.market.height - lease.height)
                assert paid == expected
                assert Decimal(state["funds"][0]["amount"]) == 5_000_000 - paid
                assert sim.world.meter_total() == paid / 10**6

    run_virtual(tale)


def test_what_is_locked_is_not_the_accounts_until_it_is_closed() -> None:
    """The deposit returns, but for what was paid."""

    async def tale() -> None:
        async with akash() as sim:
            deployment = await sim.leased(deposit=60)
            told = (await sim.get("/v1/balances"))["data"]
            assert told["balance"] == 40
            assert told["total"] == 100
            body = {"data": {"sdl": SDL, "deposit": 50}}
            poor = await sim.client.post("/v1/deployments", json=body)
            assert poor.status_code == 402
            assert poor.json()["code"] == "insufficient_balance"
            assert poor.json()["data"]["requiredAmountUsd"] == 50
            await asyncio.sleep(600)
            for _ in range(2):
                reply = await sim.client.delete(f"/v1/deployments/{deployment.dseq}")
                assert reply.json() == {"data": {"success": True}}
            assert sim.market.balance_usd == 100 - sim.world.meter_total() < 100
            assert sim.market.held() == []
            assert sim.world.leaked() == []

    run_virtual(tale)


def test_an_empty_escrow_ends_everything() -> None:
    """What could not be paid for any more was not delivered: the meter stops at the deposit."""

    async def tale() -> None:
        async with akash() as sim:
            deployment = await sim.leased(deposit=0.5)
            await asyncio.sleep(86_400)
            data = (await sim.get(f"/v1/deployments/{deployment.dseq}"))["data"]
            assert data["deployment"]["state"] == "closed"
            assert data["leases"][0]["state"] == "insufficient_funds"
            price = deployment.leases[0].bid.price / 10**6
            assert Decimal("0.5") - price < sim.world.meter_total() <= Decimal("0.5")

    run_virtual(tale)


def test_a_top_up_keeps_it_alive() -> None:
    """The same rental with more in its escrow."""

    async def tale() -> None:
        async with akash() as sim:
            deployment = await sim.leased(deposit=0.5)
            body = {"data": {"dseq": deployment.dseq, "deposit": 20}}
            reply = await sim.client.post("/v1/deposit-deployment", json=body)
            assert reply.status_code == 200
            await asyncio.sleep(40_000)
            await sim.market.step()
            assert deployment.open
            assert sim.world.meter_total() > Decimal("0.5")

    run_virtual(tale)


def test_a_host_answers_for_a_lease_after_a_while() -> None:
    """First nothing, then services that are not up, then ports."""

    async def tale() -> None:
        async with akash() as sim:
            deployment = await sim.leased()

            async def status() -> object:
                data = (await sim.get(f"/v1/deployments/{deployment.dseq}"))["data"]
                return data["leases"][0]["status"]

            assert await status() is None
            await asyncio.sleep(4)
            early = await status()
            assert isinstance(early, dict)
            assert early["services"]["app"]["available"] == 0
            assert early["forwarded_ports"] == {}
            await asyncio.sleep(30)
            late = await status()
            assert isinstance(late, dict)
            assert late["services"]["app"]["ready_replicas"] == 1
            (port,) = late["forwarded_ports"]["app"]
            assert (port["port"], port["proto"]) == (8000, "TCP")

    run_virtual(tale)


def test_an_http_port_has_a_name_and_no_number() -> None:
    """Seen outside as 80 it goes through the host's ingress."""

    async def tale() -> None:
        async with akash() as sim:
            deployment = await sim.running(SDL.replace("as: 8000", "as: 80"))
            data = (await sim.get(f"/v1/deployments/{deployment.dseq}"))["data"]
            status = data["leases"][0]["status"]
            assert len(status["services"]["app"]["uris"]) == 1
            assert status["forwarded_ports"] == {}

    run_virtual(tale)


def test_a_manifest_that_never_arrives_ends_the_lease() -> None:
    """502 says that the lease exists; five minutes later it does not."""

    async def tale() -> None:
        async with akash() as sim:
            deployment = await sim.create()
            await asyncio.sleep(15)
            owner = (await sim.bids(deployment))[0]["id"]["provider"]
            sim.market.deaf[owner] = 99
            reply = await sim.lease(deployment, owner)
            assert (reply.status_code, reply.json()["code"]) == (502, "manifest_not_delivered")
            assert len(sim.world.leaked()) == 1
            await asyncio.sleep(MANIFEST_TIMEOUT_S)
            data = (await sim.get(f"/v1/deployments/{deployment.dseq}"))["data"]
            assert data["leases"][0]["state"] == "closed"
            assert "manifest_timeout" in data["leases"][0]["reason"]
            assert data["deployment"]["state"] == "active"

    run_virtual(tale)


def test_an_unreachable_host_makes_no_lease() -> None:
    """The other 502: nothing exists, another bid may be taken."""

    async def tale() -> None:
        async with akash() as sim:
            deployment = await sim.create()
            await asyncio.sleep(15)
            first, second = (bid["id"]["provider"] for bid in (await sim.bids(deployment))[:2])
            sim.market.unreachable.add(first)
            reply = await sim.lease(deployment, first)
            assert (reply.status_code, reply.json()["code"]) == (502, "provider_unreachable")
            assert sim.world.contracts == []
            assert (await sim.lease(deployment, second)).status_code == 200

    run_virtual(tale)


def test_a_failed_transaction_is_a_201_that_made_nothing() -> None:
    """`signTx.code` alone tells."""

    async def tale() -> None:
        async with akash(Rule(kind=Kind.FAILED_WITHOUT_ID, endpoint="create")) as sim:
            body = {"data": {"sdl": SDL, "deposit": 5}}
            reply = await sim.client.post("/v1/deployments", json=body)
            assert reply.status_code == 201
            assert reply.json()["data"]["signTx"]["code"] != 0
            assert sim.market.deployments == {}

    run_virtual(tale)


@pytest.mark.parametrize(
    "code", ["insufficient_balance", "balance_top_up_pending", "payment_required"]
)
def test_there_are_three_ways_to_have_no_money(code: str) -> None:
    """All are 402; only the code tells whether to wait, to pay, or to give up."""

    async def tale() -> None:
        rule = Rule(kind=Kind.NO_CREDIT, endpoint="create", body=code, retry_after="8")
        async with akash(rule) as sim:
            reply = await sim.client.post("/v1/deployments", json={"data": {"sdl": SDL}})
            assert (reply.status_code, reply.json()["code"]) == (402, code)
            assert reply.headers["retry-after"] == "8"
            assert sim.market.deployments == {}

    run_virtual(tale)


@pytest.mark.parametrize(("ignores", "locked"), [(False, 7), (True, 5)])
def test_newer_servers_ignore_the_deposit(ignores: bool, locked: int) -> None:
    """They fund from credits by themselves."""

    async def tale() -> None:
        settings = msgspec.structs.replace(EASY, ignores_deposit=ignores)
        async with akash(settings=settings) as sim:
            await sim.create(deposit=7)
            assert sim.market.locked_usd == locked

    run_virtual(tale)


def test_a_second_service_runs_beside_the_first() -> None:
    """One order, one host, two programs; both end with the lease."""

    async def tale() -> None:
        async with akash() as sim:
            await beside(sim)

    run_virtual(tale)


async def beside(sim: Sim) -> None:
    """Run a group of two services to its end.

    Raises:
        AssertionError: one of them did not run, or did not end.
    """
    sdl = SDL.replace(
        "profiles:",
        "  db:\n    image: redis:7\n    expose:\n"
        "      - {port: 6379, to: [{service: app}, {global: true}]}\nprofiles:",
    )
    size = "resources: {cpu: {units: 1}, memory: {size: 1Gi}, storage: [{size: 1Gi}]}"
    sdl = sdl.replace("  placement:", f"    db: {{{size}}}\n  placement:")
    sdl = sdl.replace("amount: 2000}", "amount: 2000}, db: {denom: uact, amount: 1}")
    sdl += "  db: {gp4u-key: {profile: db, count: 1}}\n"
    deployment = await sim.running(sdl)
    (lease,) = deployment.leases
    assert list(lease.beside) == ["db"]
    await sim.market.close(deployment)
    assert await lease.beside["db"].logs(10) == ""
