"""The proposed node API: its adapter against its simulator, containers and render jobs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from decimal import Decimal
from pathlib import Path
from random import Random

import httpx2
import msgspec
import pytest

from gp4u.app import open_app
from gp4u.errors import (
    BadInput,
    Denied,
    InstanceAbsent,
    Malformed,
    OfferGone,
    OutcomeUnknown,
    ProviderError,
    Refused,
    Throttled,
    Unavailable,
)
from gp4u.model import InstanceState, RentalKey, Workload
from gp4u.providers.contract import Ability
from gp4u.providers.render.legacy import RenderLegacy
from gp4u.providers.render.legacy_wire import Frames
from gp4u.settings import load_settings
from gp4u.sim.faults import Rule
from tests.contract.render.market import (
    EASY,
    KEY,
    ONE_GPU,
    PUBLIC,
    WORKLOAD,
    Market,
    cheapest,
    legacy,
)
from tests.virtual_loop import VirtualClock, run_virtual

MANY = 200
"""Offers enough for render nodes of each tier that is sold."""


async def rented(adapter: RenderLegacy) -> str:
    """Rent the cheapest single GPU."""
    return await adapter.rent(await cheapest(adapter), WORKLOAD, KEY)


async def score_of(market: Market, node: str | None) -> int:
    """Return a node's OctaneBench score, as the API says."""
    reply = await market.wire.handle_async_request(
        httpx2.Request(
            "GET",
            f"https://sim.test/v1/nodes/{node}",
            headers={"authorization": f"Bearer {EASY.api_key}"},
        )
    )
    return int(msgspec.json.decode(await reply.aread())["octanebench_score"])


def test_the_adapter_says_that_it_speaks_a_proposal() -> None:
    """Nobody shall take its prices for a market's."""

    async def scene() -> None:
        async with legacy() as (adapter, _):
            assert "proposed" in adapter.spec.title
            assert "no known service" in (await adapter.ping()).name
        async with legacy(key="other") as (adapter, _):
            with pytest.raises(Denied):
                await adapter.ping()

    run_virtual(scene)


def test_a_container_lives_from_queued_to_gone_and_is_billed_while_it_runs() -> None:
    """The whole life, with the bill that this API tells."""

    async def scene() -> None:
        async with legacy() as (adapter, market):
            offer = await cheapest(adapter)
            ident = await adapter.rent(offer, WORKLOAD, KEY)
            (early,) = (await adapter.instances()).instances
            assert (early.state, early.label) == (InstanceState.BOOTING, KEY)
            await asyncio.sleep(10)
            (instance,) = (await adapter.instances()).instances
            assert instance.state is InstanceState.RUNNING
            (contract,) = market.live
            assert instance.endpoints[0].port == contract.ports[8000, "tcp"]
            await asyncio.sleep(1800)
            await adapter.release(ident)
            assert market.live == []
            await adapter.release(ident)
            billed = await adapter.billed(ident)
            assert billed is not None
            assert billed == market.world.meter_total()
            assert billed == pytest.approx(offer.gpu_usd_per_hour / 2, rel=Decimal("1e-6"))
            assert Ability.BILL in adapter.spec.can
            listing = await adapter.instances()
            assert listing.complete
            assert listing.instances == ()

    run_virtual(scene)


def test_offers_are_compute_nodes_and_render_nodes_have_a_list_of_their_own() -> None:
    """A node of OctaneBench 1300 costs some 14 $/h to render with, and some 0.4 $ to compute."""

    async def scene() -> None:
        async with legacy(offers=MANY) as (adapter, market):
            compute = {o.offer_id: o for o in (await adapter.offers(ONE_GPU)).offers}
            render = {o.offer_id: o for o in (await adapter.render_nodes()).offers}
            assert compute
            assert render
            assert not compute.keys() & render.keys()
            for ident, offer in render.items():
                score = await score_of(market, ident)
                assert offer.price_usd_per_hour in (
                    score * Decimal("0.011"),
                    score * Decimal("0.0055"),
                )
                assert offer.open_ports == 0
            tier_2 = await adapter.render_nodes(tier=2)
            assert {o.offer_id for o in tier_2.offers} < render.keys()

    run_virtual(scene)


def test_a_command_is_refused_before_money() -> None:
    """The proposal has no way to say it."""

    async def scene() -> None:
        async with legacy() as (adapter, market):
            offer = await cheapest(adapter)
            sent = len(market.wire.sent)
            with pytest.raises(BadInput, match="command"):
                await adapter.rent(offer, Workload(image="x", command=("a",)), KEY)
            assert len(market.wire.sent) == sent

    run_virtual(scene)


@pytest.mark.parametrize("kind", ["reset_after", "status_after", "failed_without_id", "cut_body"])
def test_a_lost_reply_is_found_by_its_reference(kind: str) -> None:
    """`client_ref` is this API's label."""

    async def scene() -> None:
        async with legacy(Rule(kind=kind, endpoint="create")) as (adapter, market):
            with pytest.raises(OutcomeUnknown):
                await rented(adapter)
            assert market.wire.calls("POST") == ["/v1/jobs"]
            (instance,) = (await adapter.instances()).instances
            assert instance.label == KEY

    run_virtual(scene)


def test_a_node_that_was_taken_is_a_gone_offer() -> None:
    """Two renters, one node."""

    async def scene() -> None:
        async with legacy() as (adapter, market):
            offer = await cheapest(adapter)
            await adapter.rent(offer, WORKLOAD, KEY)
            with pytest.raises(OfferGone):
                await adapter.rent(offer, WORKLOAD, KEY)
            assert len(market.world.contracts) == 1

    run_virtual(scene)


@pytest.mark.parametrize(
    ("rule", "error"),
    [
        (Rule(kind="bad_key"), Denied),
        (Rule(kind="throttle", retry_after="1"), Throttled),
        (Rule(kind="status", status=502), Unavailable),
        (Rule(kind="body", shape="html"), Malformed),
        (Rule(kind="body", shape="truncated"), Malformed),
    ],
)
def test_every_reading_tells_trouble_by_its_kind(rule: Rule, error: type[ProviderError]) -> None:
    """The same judge as the real market's, since the error body is the same."""

    async def scene() -> None:
        readings: list[Callable[[RenderLegacy], Awaitable[object]]] = [
            lambda adapter: adapter.ping(),
            lambda adapter: adapter.instances(),
            lambda adapter: adapter.offers(ONE_GPU),
            lambda adapter: adapter.render_job("job_1"),
        ]
        for reading in readings:
            async with legacy(rule) as (adapter, _):
                with pytest.raises(error):
                    await reading(adapter)

    run_virtual(scene)


def test_a_429_is_waited_out_as_it_asks() -> None:
    """`Retry-After` is this API's own word."""

    async def scene() -> None:
        rule = Rule(kind="throttle", endpoint="search", retry_after="12", times=1)
        async with legacy(rule) as (adapter, _):
            began = asyncio.get_running_loop().time()
            await adapter.ping()
            assert asyncio.get_running_loop().time() - began >= 12

    run_virtual(scene)


def test_a_list_with_a_wrong_total_proves_no_absence() -> None:
    """A rental would be closed while its machine bills on."""

    async def scene() -> None:
        async with legacy(Rule(kind="list_wrong_total", endpoint="list")) as (adapter, _):
            await rented(adapter)
            assert not (await adapter.instances()).complete

    run_virtual(scene)


def test_what_is_absent_is_absent_and_logs_are_unsupported() -> None:
    """The API knows no logs, and says so as data."""

    async def scene() -> None:
        async with legacy() as (adapter, _):
            for call in (adapter.release, adapter.render_job, adapter.cancel_render):
                with pytest.raises(InstanceAbsent):
                    await call("job_none")
            with pytest.raises(Refused):
                await adapter.logs("job_none")
            assert Ability.LOGS not in adapter.spec.can

    run_virtual(scene)


def test_a_render_job_goes_frame_by_frame_to_its_end_and_costs_its_octanebench_hours() -> None:
    """A node of score S does S OBh an hour; 0.5 OBh a frame is 1800 / S seconds each."""

    async def scene() -> None:
        async with legacy(offers=MANY) as (adapter, market):
            ident = await adapter.submit_render(
                "https://scenes.example/a.orbx", "octane", Frames(1, 199, 2), 2, KEY
            )
            first = await adapter.render_job(ident)
            assert (first.status, first.frames_done, first.frames_total) == ("queued", 0, 100)
            await asyncio.sleep(3)
            assert (await adapter.render_job(ident)).status == "assigned"
            score = await score_of(market, first.node_id)
            per_frame_s = 1800 / score
            await asyncio.sleep(2 + 30.5 * per_frame_s)
            mid = await adapter.render_job(ident)
            assert (mid.status, mid.frames_done) == ("rendering", 30)
            assert 0.3 < mid.progress < 0.31
            assert len(mid.outputs) == 30
            await asyncio.sleep(100 * per_frame_s)
            done = await adapter.render_job(ident)
            assert (done.status, done.frames_done, done.progress) == ("completed", 100, 1.0)
            assert done.obh_used == pytest.approx(Decimal(50), rel=Decimal("1e-6"))
            assert done.cost_usd == pytest.approx(Decimal("0.55"), rel=Decimal("1e-4"))
            assert done.cost_usd == market.world.meter_total()
            assert market.live == []

    run_virtual(scene)


def test_a_render_job_is_no_instance_and_is_found_by_its_key() -> None:
    """The sweep of orphans releases unexplained instances; a render job must not be one."""

    async def scene() -> None:
        rule = Rule(kind="reset_after", endpoint="create", times=1)
        async with legacy(rule, offers=MANY) as (adapter, _):
            with pytest.raises(OutcomeUnknown):
                await adapter.submit_render("scene", "cycles", 10, 3, KEY)
            assert (await adapter.instances()).instances == ()
            (job,) = await adapter.find_renders(KEY)
            assert job.frames_total == 10
            await adapter.cancel_render(job.job_id)
            (job,) = await adapter.find_renders(KEY)
            assert job.status == "cancelled"

    run_virtual(scene)


def test_a_program_gets_from_variables_to_finished_frames(tmp_path: Path) -> None:
    """The way that docs/reference/render.md shows: an app, its market, a key, then the scene."""

    async def scene() -> None:
        async with legacy(offers=MANY) as (_, market):
            environ = {
                "RENDER_API_FLAVOR": "legacy",
                "RENDER_BASE_URL": "https://sim.test/v1",
                "RENDER_API_KEY": PUBLIC,
                "GP4U_DATABASE_URL": f"sqlite:///{tmp_path / 'l.db'}",
            }
            settings = load_settings(environ, tmp_path)
            async with open_app(settings, clock=VirtualClock(), transport=market.wire) as app:
                render = app.providers["render"]
                assert isinstance(render, RenderLegacy)
                key = app.ledger.mint(Random(6))
                job = await render.submit_render("https://s.example/a", "octane", 30, 2, key)
                done = []
                for _ in range(60):
                    progress = await render.render_job(job)
                    done.append(progress.frames_done)
                    if progress.status == "completed":
                        break
                    await app.reconciler.tick("render")  # which releases what nothing explains
                    await asyncio.sleep(5)
                assert done == sorted(done)
                assert done[-1] == 30
                assert len(set(done)) > 3, "frame by frame, not all at once"

    run_virtual(scene)


def test_every_render_job_is_found_again_with_the_key_it_was_submitted_under() -> None:
    """Render jobs are in no ledger: the list of the market is where a forgotten one turns up."""

    async def scene() -> None:
        async with legacy(offers=MANY) as (adapter, _):
            await rented(adapter)
            other = RentalKey("gp4u-other")
            first = await adapter.submit_render("scene-1", "octane", Frames(1, 240), 2, KEY)
            second = await adapter.submit_render("scene-2", "cycles", 5, 3, other)
            every = {job.job_id: job.key for job in await adapter.find_renders()}
            assert every == {first: KEY, second: other}, "and no container among them"
            assert [job.job_id for job in await adapter.find_renders(other)] == [second]
            for ident in every:
                await adapter.cancel_render(ident)
            assert {job.status for job in await adapter.find_renders()} == {"cancelled"}

    run_virtual(scene)


def test_a_list_of_render_jobs_that_is_not_whole_is_no_answer() -> None:
    """After an unknown outcome, "none was made" would be an invitation to submit it again."""

    async def scene() -> None:
        async with legacy(Rule(kind="list_wrong_total", endpoint="list"), offers=MANY) as (a, _):
            await a.submit_render("scene", "octane", 10, 2, KEY)
            with pytest.raises(Malformed, match="rows shown of"):
                await a.find_renders(KEY)

    run_virtual(scene)


@pytest.mark.parametrize("bound", ["0", "-1", "NaN"])
def test_a_bound_that_bounds_nothing_is_refused_before_it_is_sent(bound: str) -> None:
    """Who writes a bound believes that the cost is bounded."""

    async def scene() -> None:
        async with legacy() as (adapter, market):
            with pytest.raises(BadInput, match="max_obh"):
                await adapter.submit_render("s", "octane", 1, 2, KEY, max_obh=Decimal(bound))
            assert market.wire.sent == []

    run_virtual(scene)


def test_nodes_of_a_proposal_are_not_vouched_for() -> None:
    """Whoever has not asked for unverified hosts must not rent from a proposal unawares."""

    async def scene() -> None:
        async with legacy(offers=MANY) as (adapter, _):
            offers = (await adapter.offers(ONE_GPU)).offers
            assert {offer.verified for offer in offers} == {None}

    run_virtual(scene)


def test_a_refusal_that_names_a_job_hands_on_its_id() -> None:
    """A container and a render job alike: something was made all the same."""

    async def scene() -> None:
        rule = Rule(kind="failed_with_id", endpoint="create")
        async with legacy(rule, offers=MANY) as (adapter, market):
            with pytest.raises(Refused) as caught:
                await rented(adapter)
            assert caught.value.instance_id is not None
            await adapter.release(caught.value.instance_id)
            with pytest.raises(Refused) as caught:
                await adapter.submit_render("s", "octane", 1000, 2, KEY)
            assert caught.value.instance_id is not None
            await adapter.cancel_render(caught.value.instance_id)
            assert market.live == []

    run_virtual(scene)


def test_a_bound_on_octanebench_hours_bounds_the_cost() -> None:
    """An endless scene must not be an endless bill."""

    async def scene() -> None:
        async with legacy(offers=MANY) as (adapter, market):
            ident = await adapter.submit_render(
                "scene", "redshift", 100_000, 2, KEY, max_obh=Decimal(10)
            )
            await asyncio.sleep(86_400)
            job = await adapter.render_job(ident)
            assert (job.status, job.frames_done) == ("failed", 20)
            assert job.error
            assert market.world.meter_total() == pytest.approx(Decimal("0.11"), rel=Decimal("1e-4"))

    run_virtual(scene)


@pytest.mark.parametrize(
    ("scene_file", "engine", "frames", "tier", "field"),
    [
        ("", "octane", 1, 2, "scene_file"),
        ("scene", "arnold", 1, 2, "engine"),
        ("scene", "octane", 0, 2, "frames"),
        ("scene", "octane", Frames(5, 4), 2, "frames"),
        ("scene", "octane", Frames(1, 4, 0), 2, "frames"),
        ("scene", "octane", 1, 4, "tier"),
    ],
)
def test_a_render_that_cannot_be_is_refused_before_it_is_sent(
    scene_file: str, engine: str, frames: Frames | int, tier: int, field: str
) -> None:
    """There is no tier 4, and no frame zero of none."""

    async def scene() -> None:
        async with legacy() as (adapter, market):
            with pytest.raises(BadInput) as caught:
                await adapter.submit_render(scene_file, engine, frames, tier, KEY)
            assert caught.value.field == field
            assert market.wire.sent == []

    run_virtual(scene)
