"""A rental on Akash while it lasts and when it ends: time, logs, commands, money.

The simulator's own books are the judge: what is held, what was paid, how often something was made.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from decimal import Decimal

import msgspec
import pytest
from msgspec.structs import replace

from gp4u.errors import (
    InstanceAbsent,
    Malformed,
    OutcomeUnknown,
    Refused,
    Unavailable,
)
from gp4u.model import Container, InstanceState, Port
from gp4u.sim.faults import Kind, Rule
from tests.akash_simulated import (
    EASY,
    KEY,
    WORKLOAD,
    Sim,
    everything_returned,
    told,
)


def test_releasing_twice_is_no_harm_and_the_unknown_is_absent() -> None:
    """It is idempotent; only what never was is absent."""

    async def tale(sim: Sim) -> None:
        dseq = await sim.rented()
        await sim.provider.release(dseq)
        await sim.provider.release(dseq)
        with pytest.raises(InstanceAbsent):
            await sim.provider.release("1")
        await everything_returned(sim)

    told(tale)


def test_a_release_that_was_ignored_shows_in_the_next_listing() -> None:
    """Success means that it was heard, and nothing else."""

    async def tale(sim: Sim) -> None:
        dseq = await sim.rented()
        await sim.provider.release(dseq)
        assert (await sim.only()).instance_id == dseq

    told(tale, Rule(kind=Kind.RELEASE_IGNORED, endpoint="destroy"))


def test_a_captive_portals_page_releases_nothing() -> None:
    """200 in HTML is no success."""

    async def tale(sim: Sim) -> None:
        dseq = await sim.rented()
        with pytest.raises(Malformed):
            await sim.provider.release(dseq)

    told(tale, Rule(kind=Kind.BODY, endpoint="destroy", shape="html"))


def test_a_success_that_says_otherwise_released_nothing() -> None:
    """200 with `success: false`: the rental goes on costing."""

    async def tale(sim: Sim) -> None:
        dseq = await sim.rented()
        with pytest.raises(Unavailable):
            await sim.provider.release(dseq)

    told(tale, Rule(kind=Kind.BODY, endpoint="destroy", body='{"data":{"success":false}}'))


def test_an_escrow_that_is_topped_up_lives_longer() -> None:
    """Without it a long rental ends when its deposit does."""

    async def tale(sim: Sim) -> None:
        dseq = await sim.running()
        before = (await sim.only()).paid_until
        await sim.provider.extend(dseq)
        after = (await sim.only()).paid_until
        assert before is not None
        assert after is not None
        assert after > before
        with pytest.raises(InstanceAbsent):
            await sim.provider.extend("1")

    told(tale)


def test_an_escrow_that_ran_dry_ends_the_rental_at_the_time_that_was_told() -> None:
    """And not a block of it was paid twice or not at all."""

    async def tale(sim: Sim) -> None:
        dseq = await sim.running()
        instance = await sim.only()
        assert instance.paid_until is not None
        now = sim.provider._clock.now
        await asyncio.sleep((instance.paid_until - now()).total_seconds() - 60)
        assert (await sim.only()).state is InstanceState.RUNNING
        await asyncio.sleep(120)
        assert (await sim.provider.instances()).instances == ()
        deposit = sim.market.deployments[dseq].deposit / 10**6
        paid = sim.world.meter_total()
        assert deposit - paid < Decimal("0.001")
        assert await sim.provider.billed(dseq) == paid
        await everything_returned(sim)

    told(tale)


def test_a_lost_reply_of_a_top_up_is_unknown() -> None:
    """It is money: it is not sent again."""

    async def tale(sim: Sim) -> None:
        dseq = await sim.rented()
        with pytest.raises(OutcomeUnknown):
            await sim.provider.extend(dseq)
        assert len(sim.sent("POST", "/v1/deposit-deployment")) == 1

    told(tale, Rule(kind=Kind.RESET_AFTER, endpoint="deposit"))


def test_a_top_up_whose_answer_cannot_be_read_is_unknown_too() -> None:
    """It came through: whether it was done, the next listing tells."""

    async def tale(sim: Sim) -> None:
        dseq = await sim.rented()
        with pytest.raises(OutcomeUnknown):
            await sim.provider.extend(dseq)
        assert len(sim.sent("POST", "/v1/deposit-deployment")) == 1

    told(tale, Rule(kind=Kind.BODY, endpoint="deposit", shape="html"))


@pytest.mark.parametrize("node_is_down", [False, True])
def test_the_end_of_a_long_rental_is_told_by_the_newest_block(node_is_down: bool) -> None:
    """Blocks of 6.174 s counted as 6.0 s are two hours after three days: too early to be of use.

    Where no node tells of a block, the error is that large, and the time is still told.
    """
    down = [Rule(kind=Kind.STATUS, endpoint="rpc", status=503)] if node_is_down else []

    async def tale(sim: Sim) -> None:
        dseq = await sim.running()
        for _ in range(40):
            await sim.provider.extend(dseq)
        await asyncio.sleep(72 * 3600)
        paid_until = (await sim.only()).paid_until
        held = sim.market.deployments[dseq]
        left_s = float(held.funds / held.rate) * 6.174
        assert paid_until is not None
        said_s = (paid_until - sim.provider._clock.now()).total_seconds()
        assert (abs(said_s - left_s) <= 60 + 0.03 * left_s) is not node_is_down

    settings = msgspec.structs.replace(EASY, block_time_s=6.174)
    told(tale, *down, settings=settings, block_time_s=6.0)


def test_a_host_that_takes_it_back_says_so_first_and_then_it_has_failed() -> None:
    """A notice is no end; the end is one, and the deposit must still be fetched."""

    async def tale(sim: Sim) -> None:
        dseq = await sim.running()
        sim.market.reclaim(sim.market.deployments[dseq], in_s=600)
        notice = await sim.only()
        assert notice.state is InstanceState.RUNNING
        assert "takes it back" in notice.status
        await asyncio.sleep(700)
        ended = await sim.only()
        assert ended.state is InstanceState.FAILED
        assert "decommission" in ended.status
        await sim.provider.release(dseq)
        await everything_returned(sim)

    told(tale)


def test_logs_need_a_lease_and_say_absent_for_what_is_not() -> None:
    """An order without a lease has printed nothing."""

    async def tale(sim: Sim) -> None:
        with pytest.raises(InstanceAbsent):
            await sim.provider.logs("1")
        dseq = await sim.running()
        assert len((await sim.provider.logs(dseq, tail=2)).splitlines()) == 2
        await sim.provider.release(dseq)
        assert await sim.provider.logs(dseq) == ""

    told(tale)


def test_a_container_that_is_not_there_has_no_log_and_runs_nothing() -> None:
    """A wrong name must not lead into another container."""
    side = Container(name="cache", image="redis:7", ports=(Port(number=6379),))

    async def tale(sim: Sim) -> None:
        dseq = await sim.running(replace(WORKLOAD, beside=(side,)))
        calls: list[Awaitable[object]] = [
            sim.provider.logs(dseq, container="cash"),
            sim.provider.exec(dseq, ["true"], container="cash"),
            sim.provider.open_exec(dseq, KEY, ["true"], tty=False, container="cash"),
            anext(aiter(sim.provider.follow(dseq, container="cash"))),
        ]
        for call in calls:
            with pytest.raises(Refused, match="there are: cache"):
                await call
        assert "6379" in await sim.provider.logs(dseq, container="cache")
        assert "6379" not in await sim.provider.logs(dseq)

    told(tale)


def test_a_token_opens_one_thing_at_one_host() -> None:
    """The host could use it elsewhere, or for a shell."""

    async def tale(sim: Sim) -> None:
        dseq = await sim.running()
        await sim.provider.logs(dseq)
        host = sim.market.deployments[dseq].leases[0].bid.host.owner
        asked = msgspec.json.decode(sim.sent("POST", "/v1/create-jwt-token")[-1].content)
        assert asked["data"]["leases"] == {
            "access": "granular",
            "permissions": [{"provider": host, "access": "scoped", "scope": ["logs"]}],
        }

    told(tale)


def test_a_command_that_was_cut_off_is_not_a_success() -> None:
    """Nobody knows how it ended."""

    async def tale(sim: Sim) -> None:
        dseq = await sim.running()
        with pytest.raises(Unavailable):
            await sim.provider.exec(dseq, ["echo", "x"])

    told(tale, Rule(kind=Kind.CUT_BODY, endpoint="shell"))


def test_a_command_without_a_service_is_refused() -> None:
    """There is nothing to run it in yet."""

    async def tale(sim: Sim) -> None:
        dseq = await sim.rented()
        with pytest.raises(Refused):
            await sim.provider.exec(dseq, ["true"])

    told(tale)


def test_an_exit_code_is_the_commands_own() -> None:
    """A failure of the command is an answer, not an error."""

    async def tale(sim: Sim) -> None:
        dseq = await sim.running()
        assert (await sim.provider.exec(dseq, ["false"])).exit_code == 1
        assert (await sim.provider.exec(dseq, ["nosuch"])).exit_code == 127

    told(tale)
