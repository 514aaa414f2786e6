"""Akash's market as the adapter reads it: pings, estimates, and where it looks when one is down.

The simulator's own books are the judge: what is held, what was paid, how often something was made.
"""

from __future__ import annotations

import asyncio
from decimal import Decimal

import msgspec
import pytest

from gp4u.errors import Malformed
from gp4u.model import Requirements
from gp4u.providers.contract import Query
from gp4u.sim.faults import Kind, Rule
from tests.akash_simulated import (
    API_KEY,
    EASY,
    KEY,
    WANTED,
    WORKLOAD,
    Sim,
    told,
)


def test_a_ping_tells_what_can_be_spent_and_whose_it_is() -> None:
    """A listing of one account proves nothing of what another one's rentals cost."""

    async def tale(sim: Sim) -> None:
        account = await sim.provider.ping()
        assert account.credit_usd == 100
        assert account.id == sim.market.account

    told(tale)


def test_a_ping_without_a_key_proves_that_the_market_is_there() -> None:
    """Quoting needs no account."""

    async def tale(sim: Sim) -> None:
        assert (await sim.provider.ping()).credit_usd is None
        assert sim.sent("GET", "/v1/gpu")

    told(tale, api_key=None)


def test_offers_are_estimates_of_hosts_that_have_cards_free() -> None:
    """Nothing has a price here until somebody bids, and an offer says so."""

    async def tale(sim: Sim) -> None:
        page = await sim.provider.offers(Query(requirements=WANTED))
        assert page.complete
        assert not page.skipped_rows
        assert len(page.offers) > 20
        for offer in page.offers:
            host = sim.market.hosts[str(offer.host_id)]
            assert offer.estimated
            assert abs(offer.price_usd_per_hour - host.machine.usd_per_gpu_hour) < Decimal("1e-6")
            assert sim.market.allocated(host) < host.machine.gpu_count
            assert offer.verified == (host.machine.verification == "verified")

    told(tale)


def test_an_interruptible_demand_finds_nothing_here() -> None:
    """There is no spot market."""

    async def tale(sim: Sim) -> None:
        wanted = Requirements(interruptible=True)
        assert (await sim.provider.offers(Query(requirements=wanted))).offers == ()

    told(tale)


def test_the_key_goes_to_the_console_alone() -> None:
    """Nodes and hosts are strangers; nor does it ever stand in a URL."""

    async def tale(sim: Sim) -> None:
        dseq = await sim.running()
        await sim.provider.logs(dseq)
        await sim.provider.instances()
        for request in sim.wire.requests:
            to_chain = request.url.path.startswith(("/rest", "/rpc"))
            assert ("x-api-key" in request.headers) is not to_chain
            assert API_KEY not in str(request.url)

    told(tale)


def test_without_the_console_providers_are_known_from_the_chain() -> None:
    """Their state is not: no uptime, no audit, but where they stand."""
    down = Rule(kind=Kind.STATUS, endpoint="providers", status=503)

    async def tale(sim: Sim) -> None:
        page = await sim.provider.offers(Query(requirements=WANTED))
        assert page.offers
        assert {offer.reliability for offer in page.offers} == {None}
        assert any(offer.region for offer in page.offers)
        assert sim.sent("GET", "/rest/akash/provider")
        assert not sim.sent("POST", "/rpc")

    told(tale, down)


def test_without_any_rest_node_the_rpc_tells_the_same() -> None:
    """The last way to the list of providers, in protobuf."""
    rules = [
        Rule(kind=Kind.STATUS, endpoint=endpoint, status=503) for endpoint in ("providers", "node")
    ]
    seen: list[set[str]] = []

    async def tale(sim: Sim) -> None:
        page = await sim.provider.offers(Query(requirements=WANTED))
        seen.append({offer.offer_id for offer in page.offers})

    told(tale, *rules)
    told(tale, rules[0])
    assert seen[0]
    assert seen[0] == seen[1]


def test_a_price_in_akt_is_offered_while_the_rate_is_young() -> None:
    """A rate that could not be renewed for an hour is none: the offer is left out."""
    all_in_akt = msgspec.structs.replace(EASY, akt_share=1.0)
    fails_later = Rule(kind=Kind.STATUS, endpoint="market_data", status=503, after_s=10)

    async def tale(sim: Sim) -> None:
        async def count() -> int:
            return len((await sim.provider.offers(Query(requirements=WANTED))).offers)

        fresh = await count()
        assert fresh > 20
        await asyncio.sleep(3000)
        assert await count() == fresh
        await asyncio.sleep(700)
        assert await count() == 0

    told(tale, fails_later, settings=all_in_akt)


def test_a_market_that_tells_no_hosts_apart_is_offered_as_one() -> None:
    """`debug` is a feed of the Console's own pages and may go."""

    async def tale(sim: Sim) -> None:
        offer = next(
            o
            for o in (await sim.provider.offers(Query(requirements=WANTED))).offers
            if o.gpu_model == "RTX 3090"
        )
        assert offer.offer_id.startswith("any/")
        dseq = await sim.provider.rent(offer, WORKLOAD, KEY)
        assert sim.market.deployments[dseq].leases

    told(tale, settings=msgspec.structs.replace(EASY, debug_prices=False))


def test_a_token_that_names_nobody_is_no_ping() -> None:
    """An account without a name would be taken for every other one."""

    async def tale(sim: Sim) -> None:
        with pytest.raises(Malformed):
            await sim.provider.ping()

    told(tale, Rule(kind=Kind.BODY, endpoint="token", body='{"data":{"token":"opaque"}}'))


def test_a_list_of_hosts_that_is_gone_is_read_from_the_chain() -> None:
    """The Console's feeds may change without notice."""

    async def tale(sim: Sim) -> None:
        assert (await sim.provider.offers(Query(requirements=WANTED))).offers

    told(tale, Rule(kind=Kind.STATUS, endpoint="providers", status=404))
