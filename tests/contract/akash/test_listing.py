"""What is held on Akash, told by sources that lag, mix things up or fail.

The simulator's own books are the judge: what is held, what was paid, how often something was made.
"""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from gp4u.errors import (
    Malformed,
)
from gp4u.model import InstanceState
from gp4u.sim.akash.market import AkashSettings
from gp4u.sim.faults import Kind, Rule
from tests.akash_simulated import (
    EASY,
    KEY,
    ORIGIN,
    Sim,
    told,
)


def test_a_late_listing_shows_it_in_the_end() -> None:
    """Console and chain may both be blind to what is new."""

    async def tale(sim: Sim) -> None:
        await sim.rented()
        assert (await sim.provider.instances()).instances == ()
        await asyncio.sleep(30)
        assert (await sim.only()).label == KEY

    told(tale, Rule(kind=Kind.LATE_LISTING, endpoint="create", seconds=40))


def test_what_any_node_shows_exists() -> None:
    """The Console's list is empty; a node knows better."""

    async def tale(sim: Sim) -> None:
        dseq = await sim.rented()
        await asyncio.sleep(20)
        assert (await sim.only()).instance_id == dseq

    told(tale, Rule(kind=Kind.LIST_EMPTY, endpoint="list"))


def test_what_the_console_shows_exists_where_nodes_lag() -> None:
    """Its name is not known yet, so the listing proves nothing."""

    async def tale(sim: Sim) -> None:
        dseq = await sim.rented()
        listing = await sim.provider.instances()
        assert [i.instance_id for i in listing.instances] == [dseq]
        assert not listing.complete
        assert "name" in listing.why_incomplete

    told(tale, Rule(kind=Kind.LIST_EMPTY, endpoint="node"))


def test_without_any_node_a_listing_proves_nothing() -> None:
    """One source is not enough to call something absent."""

    async def tale(sim: Sim) -> None:
        listing = await sim.provider.instances()
        assert not listing.complete
        assert "node" in listing.why_incomplete

    told(tale, Rule(kind=Kind.STATUS, endpoint="node", status=503))


def test_nodes_of_another_version_are_no_witnesses() -> None:
    """501 is a wrong path, not an outage; the Console's part goes on, and nothing is proven."""
    body = '{"code":12,"message":"Not Implemented","details":[]}'

    async def tale(sim: Sim) -> None:
        dseq = await sim.rented()
        listing = await sim.provider.instances()
        assert [i.instance_id for i in listing.instances] == [dseq]
        assert not listing.complete

    told(tale, Rule(kind=Kind.STATUS, endpoint="node", status=501, body=body))


def test_two_nodes_are_asked_and_a_dead_one_is_replaced() -> None:
    """Public nodes lag and fail: one answer is enough, and more are sought."""

    async def tale(sim: Sim) -> None:
        listing = await sim.provider.instances()
        assert listing.complete
        for node in ("/rest/", "/rest2/"):
            assert sim.sent("GET", f"{node}akash/deployment")

    told(tale)
    told(tale, Rule(kind=Kind.STATUS, endpoint="node", status=503, calls=(1, 2, 3, 4)))


def test_two_dead_nodes_do_not_keep_the_third_from_being_asked() -> None:
    """Their failures in a row would open a breaker that all of them shared."""
    three = [f"{ORIGIN}/rest", f"{ORIGIN}/rest2", f"{ORIGIN}/rest"]

    async def tale(sim: Sim) -> None:
        dseq = await sim.rented()
        listing = await sim.provider.instances()
        assert listing.complete
        assert [i.instance_id for i in listing.instances] == [dseq]

    down = Rule(kind=Kind.STATUS, endpoint="node", status=503, times=8)
    told(tale, down, rest=three, threshold=5)


def test_without_a_node_to_ask_the_variable_is_named() -> None:
    """Nothing can ever be proven absent then, and somebody must learn why."""

    async def tale(sim: Sim) -> None:
        listing = await sim.provider.instances()
        assert not listing.complete
        assert "AKASH_REST_URL" in listing.why_incomplete

    told(tale, rest=[])


def test_a_row_that_the_consoles_page_lost_is_shown_by_a_node() -> None:
    """Older servers count what they show, so the page itself gives nothing away."""

    async def tale(sim: Sim) -> None:
        dseq = await sim.rented()
        assert (await sim.only()).instance_id == dseq

    told(tale, Rule(kind=Kind.LIST_LOST_PAGE, endpoint="list"))


def on_servers(newer: bool) -> AkashSettings:
    """Return the easy market with one kind of list or the other."""
    return msgspec.structs.replace(EASY, newer_lists=newer)


@pytest.mark.parametrize("newer", [False, True])
def test_pages_that_disagree_with_their_count_prove_nothing(newer: bool) -> None:
    """Something was missed, and it could be the one that is looked for."""

    async def tale(sim: Sim) -> None:
        await sim.rented()
        listing = await sim.provider.instances()
        assert len(listing.instances) == 1
        assert not listing.complete
        assert "count" in listing.why_incomplete

    told(tale, Rule(kind=Kind.LIST_WRONG_TOTAL, endpoint="list"), settings=on_servers(newer))


def test_a_page_that_is_lost_leaves_a_hole_that_shows() -> None:
    """Newer servers count all rows, so a page without its rows gives itself away."""

    async def tale(sim: Sim) -> None:
        await sim.rented()
        listing = await sim.provider.instances()
        assert len(listing.instances) == 1
        assert not listing.complete

    told(tale, Rule(kind=Kind.LIST_LOST_PAGE, endpoint="list"), settings=on_servers(newer=True))


def test_leases_that_the_list_mixes_up_do_no_harm() -> None:
    """The August 2026 server shows a deployment beside another's leases; each is read alone."""

    async def tale(sim: Sim) -> None:
        hosts = {}
        for n in range(3):
            dseq = await sim.rented(key=type(KEY)(f"{KEY[:-1]}{n}"))
            hosts[dseq] = sim.market.deployments[dseq].leases[0].bid.host.owner
        listing = await sim.provider.instances()
        assert {i.instance_id: i.machine_id for i in listing.instances} == hosts
        assert len(set(hosts.values())) == 3
        assert {i.label for i in listing.instances} == {f"{KEY[:-1]}{n}" for n in range(3)}

    told(tale)


def test_newer_servers_are_listed_in_pages_of_what_is_active() -> None:
    """They refuse the large page that older ones need, and keep all that was ever closed."""

    async def tale(sim: Sim) -> None:
        closed = await sim.rented()
        await sim.provider.release(closed)
        dseq = await sim.rented()
        for _ in range(2):
            assert (await sim.only()).instance_id == dseq
        lists = [r.url.params for r in sim.sent("GET", "/v1/deployments") if r.url.query]
        assert [each["limit"] for each in lists] == ["1000", "100", "100"]
        assert [each.get("state") for each in lists] == [None, "active", "active"]

    told(tale, settings=on_servers(newer=True))


def test_a_node_that_lags_does_not_bring_back_what_is_closed() -> None:
    """Closed is for ever, and the Console knows it."""

    async def tale(sim: Sim) -> None:
        dseq = await sim.rented()
        await asyncio.sleep(20)
        await sim.provider.release(dseq)
        assert (await sim.provider.instances()).instances == ()

    lagging = msgspec.structs.replace(EASY, replica_lags=True, replica_lag_s=60.0)
    told(tale, settings=lagging)


def test_one_that_cannot_be_read_alone_is_still_there() -> None:
    """It is listed, so it exists; nothing more is known."""

    async def tale(sim: Sim) -> None:
        await sim.running()
        instance = await sim.only()
        assert (instance.state, instance.label) == (InstanceState.UNKNOWN, KEY)

    told(tale, Rule(kind=Kind.STATUS, endpoint="show", status=503))


@pytest.mark.parametrize("shape", ["garbage", "html", "truncated", "deep", "empty", "list", "null"])
def test_a_list_that_cannot_be_read_is_malformed(shape: str) -> None:
    """And never an empty one."""

    async def tale(sim: Sim) -> None:
        with pytest.raises(Malformed):
            await sim.provider.instances()

    told(tale, Rule(kind=Kind.BODY, endpoint="list", shape=shape))
