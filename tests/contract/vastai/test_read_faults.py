"""What goes wrong while we only look: searches, listings, and what happens to held machines.

The law behind most of it is L6: an error, a partial or a suddenly empty listing moves no rental
towards released and starts no rent.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from gp4u.errors import Denied, Malformed, NothingFits, ProviderError, Throttled, Unavailable
from gp4u.model import InstanceState
from gp4u.providers.contract import Query
from gp4u.rentals.plan import Frozen
from gp4u.rentals.rental import RentalState
from gp4u.sim.faults import BODY_SHAPES, THROTTLE_SHAPES, Rule
from tests.laws import Story, is_serving, lost_without_cause, told
from tests.simulated import DEMAND
from tests.virtual_loop import EPOCH

QUERY = Query(requirements=DEMAND.requirements)
RETRY_AFTER = ["2", "0", "-5", "NaN", "1e999", "Wed, 21 Oct 2099 07:28:00 GMT", "soon", "\x7f"]


@pytest.mark.parametrize("shape", THROTTLE_SHAPES[:4])
def test_a_throttled_listing_is_waited_out(tmp_path: Path, shape: str) -> None:
    """H9: no Retry-After; paced by what is documented, and no failure of the market."""

    async def tale(story: Story) -> None:
        rental = await story.rent()

        assert rental.state is RentalState.RUNNING
        assert story.trips == 0
        assert story.app.guards["vastai"].health().breaker.failure_count == 0
        assert story.rent_calls == 1

    told(tale, tmp_path, Rule(kind="throttle", endpoint="list", calls=(1, 2), shape=shape))


@pytest.mark.parametrize("shape", THROTTLE_SHAPES[:4])
def test_a_throttled_search_rests_for_its_window_and_then_works(tmp_path: Path, shape: str) -> None:
    """H9: ten searches a minute are allowed, so after a 429 a minute's rest is due."""

    async def tale(story: Story) -> None:
        rental = await story.rent()

        assert rental.state is RentalState.RUNNING
        assert story.faults.calls("search") == 2
        assert (rental.intended_at - EPOCH).total_seconds() >= 60
        assert story.trips == 0

    told(tale, tmp_path, Rule(kind="throttle", endpoint="search", calls=(1,), shape=shape))


def test_a_search_that_stays_throttled_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    """Somebody waits at a terminal: after a bit over a minute he is told why nothing was found."""

    async def tale(story: Story) -> None:
        with pytest.raises(NothingFits) as nothing:
            await story.rent()

        assert "rate limit" in nothing.value.decision.sources[0].error
        assert 30 <= story.world.age_s <= 120
        assert story.market.rents() == 0

    told(tale, tmp_path, Rule(kind="throttle", endpoint="search", shape="detail"))


@pytest.mark.parametrize("header", RETRY_AFTER)
@pytest.mark.parametrize("endpoint", ["search", "list"])
def test_any_retry_after_of_a_read_is_survived(tmp_path: Path, endpoint: str, header: str) -> None:
    """H10: honoured up to 300 s, nonsense ignored; five minutes later all is well in any case."""

    async def tale(story: Story) -> None:
        try:
            rental = await story.rent()
        except NothingFits:
            assert endpoint == "search"
            await story.client.settle(seconds=320)
            rental = await story.rent()

        assert rental.state is RentalState.RUNNING
        assert story.world.age_s < 330 + 60
        assert story.trips == 0

    told(tale, tmp_path, Rule(kind="throttle", endpoint=endpoint, calls=(1,), retry_after=header))


def test_a_used_up_search_quota_is_told_as_such(tmp_path: Path) -> None:
    """H9: its reset is at midnight; nobody sleeps until then, and held machines are untouched."""

    async def tale(story: Story) -> None:
        with pytest.raises(Throttled) as throttled:
            await story.app.providers["vastai"].offers(QUERY)

        assert throttled.value.retry_after_s == 300
        assert story.world.age_s < 60
        assert story.trips == 0

    told(tale, tmp_path, Rule(kind="throttle", endpoint="search", shape="quota"))


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("status", 500),
        ("status", 502),
        ("status", 503),
        ("status", 504),
        ("reset_before", None),
        ("reset_after", None),
        ("refuse", None),
        ("cut_body", None),
    ],
)
@pytest.mark.parametrize("endpoint", ["search", "list"])
def test_a_failing_read_is_tried_three_times_at_most(
    tmp_path: Path, endpoint: str, kind: str, status: int | None
) -> None:
    """H11, H16: a second and a third chance, and no storm."""

    async def tale(story: Story) -> None:
        provider = story.app.providers["vastai"]
        with pytest.raises(Unavailable):
            await (provider.offers(QUERY) if endpoint == "search" else provider.instances())

        assert story.faults.calls(endpoint) == 3

    told(tale, tmp_path, Rule(kind=kind, endpoint=endpoint, status=status))


def test_an_hour_without_listings_changes_no_rental(tmp_path: Path) -> None:
    """H13, L6: silence is no absence; when the market is back, everything is as it was."""

    async def tale(story: Story) -> None:
        rental = await story.rent()
        out = story.faults.add(Rule(kind="status", status=503))
        await story.client.settle(seconds=3600)
        assert (await story.newest(rental)).state is RentalState.RUNNING
        asked = story.faults.calls("list")
        assert asked < 60, "the breaker let a storm through"

        story.faults.remove(out)
        await story.client.settle(seconds=700)
        assert await story.still_serves(rental)

    told(tale, tmp_path)


@pytest.mark.parametrize("shape", BODY_SHAPES)
def test_a_search_that_answers_nonsense_is_malformed(tmp_path: Path, shape: str) -> None:
    """H17, H19: asked once, not retried; the owner is told that the market said nonsense."""

    async def tale(story: Story) -> None:
        with pytest.raises(Malformed):
            await story.app.providers["vastai"].offers(QUERY)
        assert story.faults.calls("search") == 1

        with pytest.raises(NothingFits) as nothing:
            await story.rent()
        assert nothing.value.decision.sources[0].error
        assert story.rent_calls == 0

    told(tale, tmp_path, Rule(kind="body", endpoint="search", shape=shape))


@pytest.mark.parametrize("shape", BODY_SHAPES)
def test_a_listing_that_answers_nonsense_proves_nothing(tmp_path: Path, shape: str) -> None:
    """H17, L6: for ten minutes every listing is garbage; the machine is kept."""

    async def tale(story: Story) -> None:
        rental = await story.rent()
        story.faults.add(Rule(kind="body", endpoint="list", shape=shape))
        with pytest.raises(Malformed):
            await story.app.reconciler.tick("vastai")
        await story.client.settle(seconds=600)

        assert (await story.newest(rental)).state is RentalState.RUNNING
        assert len(story.market.live) == 1

    told(tale, tmp_path)


@pytest.mark.parametrize("kind", ["list_lost_page", "list_loop", "list_wrong_total"])
def test_a_listing_that_contradicts_itself_is_incomplete_and_closes_nothing(
    tmp_path: Path, kind: str
) -> None:
    """H23: a lost page, a cursor in a circle, a total that disagrees; ten minutes of it."""

    async def tale(story: Story) -> None:
        rental = await story.rent()
        story.faults.add(Rule(kind=kind, endpoint="list"))
        tick = await story.app.reconciler.tick("vastai")
        assert not tick.listing.complete
        assert tick.listing.why_incomplete
        await story.client.settle(seconds=600)

        assert await story.still_serves(rental)

    told(tale, tmp_path)


def test_a_release_is_not_proven_by_a_listing_that_lost_a_page(tmp_path: Path) -> None:
    """H23, L5: the machine may be on the page that is missing."""

    async def tale(story: Story) -> None:
        rental = await story.rent()
        story.faults.add(Rule(kind="release_ignored", endpoint="destroy"))
        story.faults.add(Rule(kind="list_lost_page", endpoint="list"))
        await story.app.broker.release(rental.key, wait=False)
        await story.client.settle(seconds=600)

        assert (await story.newest(rental)).state is RentalState.RELEASING
        assert len(story.market.live) == 1

    told(tale, tmp_path)


def test_an_empty_list_while_five_machines_are_held_concludes_nothing(tmp_path: Path) -> None:
    """H24: ten minutes of a wrong account, with status 200; nobody is lost, nothing is bought."""

    async def tale(story: Story) -> None:
        held = [await story.rent(f"cli:{n}", demand=ANY_GPU) for n in range(5)]
        story.faults.add(Rule(kind="list_empty", endpoint="list"))
        tick = await story.app.reconciler.tick("vastai")
        assert tick.listing.complete
        assert tick.actions == (Frozen(5, 5),)
        await story.client.settle(seconds=600)

        assert lost_without_cause(story.market, await story.app.ledger.every_rental()) == []
        assert all([is_serving(await story.newest(rental)) for rental in held])
        assert len(story.contracts) == 5

    told(tale, tmp_path)


def test_one_empty_list_does_not_cost_a_single_machine_either(tmp_path: Path) -> None:
    """L6: one rental is too few for the guard above; a gap must last before it is believed."""

    async def tale(story: Story) -> None:
        rental = await story.rent()
        gap = story.faults.add(Rule(kind="list_empty", endpoint="list"))
        tick = await story.app.reconciler.tick("vastai")
        assert tick.listing.complete
        assert tick.listing.instances == ()
        story.faults.remove(gap)
        await story.client.settle(seconds=60)

        assert await story.still_serves(rental)
        assert (await story.newest(rental)).missing_since is None

    told(tale, tmp_path)


def test_a_machine_that_a_long_empty_list_hid_is_still_released(tmp_path: Path) -> None:
    """H24, L5: what is believed lost is asked to end by its id before its rental is closed."""

    async def tale(story: Story) -> None:
        rental = await story.rent()
        story.faults.add(Rule(kind="list_empty", endpoint="list"))
        await story.client.settle(seconds=300)

        now = await story.newest(rental)
        assert (now.state, now.reason) == (RentalState.RELEASED, "instance_lost")
        assert story.market.live == []

    told(tale, tmp_path)


def test_a_flicker_of_the_state_costs_nothing(tmp_path: Path) -> None:
    """H29: reported as loading for ten seconds although it serves."""

    async def tale(story: Story) -> None:
        rental = await story.rent()
        await story.client.settle(seconds=120)

        assert await story.still_serves(rental)

    told(tale, tmp_path, Rule(kind="flicker", endpoint="create", seconds=20.0))


def test_a_lost_host_is_given_up_after_ten_minutes_and_released(tmp_path: Path) -> None:
    """H30: out of contact for good; the owner is told, and the contract does not linger."""

    async def tale(story: Story) -> None:
        rental = await story.rent()
        await story.client.settle(seconds=300)
        now = await story.newest(rental)
        assert (now.state, now.seen) == (RentalState.RUNNING, InstanceState.OFFLINE)
        await story.client.settle(seconds=600)

        now = await story.newest(rental)
        assert (now.state, now.reason) == (RentalState.RELEASED, "host_offline")
        assert story.market.live == []

    told(tale, tmp_path, Rule(kind="host_loss", endpoint="create", seconds=10.0))


def test_a_machine_deleted_in_the_console_is_noticed(tmp_path: Path) -> None:
    """H30: absence, proven and steady, ends the rental with its reason."""

    async def tale(story: Story) -> None:
        rental = await story.rent()
        await story.world.destroy(story.contracts[0])
        await story.client.settle(seconds=120)

        now = await story.newest(rental)
        assert (now.state, now.reason) == (RentalState.RELEASED, "instance_lost")
        assert story.rent_calls == 1, "whether to rent again is the owner's business"

    told(tale, tmp_path)


def test_a_key_that_is_revoked_in_mid_life_leaves_the_rental_as_it_was(tmp_path: Path) -> None:
    """H39: we can neither see nor release; that is said, and nothing is concluded from it."""

    async def tale(story: Story) -> None:
        rental = await story.rent()
        revoked = story.faults.add(Rule(kind="bad_key"))
        with pytest.raises(Denied):
            await story.app.reconciler.tick("vastai")
        with pytest.raises(Denied):
            await story.app.broker.release(rental.key)
        asked = len(story.market.requests)
        await story.client.settle(seconds=1800)
        assert len(story.market.requests) - asked <= 7, "a refused key is tried every 5 minutes"
        assert (await story.newest(rental)).state is RentalState.RELEASING
        assert len(story.market.live) == 1

        story.faults.remove(revoked)
        await story.client.settle(seconds=400)
        assert (await story.newest(rental)).state is RentalState.RELEASED

    told(tale, tmp_path)


def test_a_key_that_is_revoked_while_a_machine_boots_keeps_the_rental(tmp_path: Path) -> None:
    """H39: `rent` ends with `Denied`; the rental goes on, and is taken up where it was."""

    async def tale(story: Story) -> None:
        rental = await story.rent(wait=False)
        revoked = story.faults.add(Rule(kind="bad_key"))
        with pytest.raises(ProviderError):
            await story.app.reconciler.tick("vastai")
        await story.client.settle(seconds=60)
        assert (await story.newest(rental)).state is RentalState.STARTING

        story.faults.remove(revoked)
        await story.client.settle(seconds=400)
        assert await story.still_serves(rental)

    told(tale, tmp_path)


@pytest.mark.parametrize("label", [None, "renamed by hand", "gp4u-zzzzzz-aaaaaaaaaa-bbbbbbbbbb"])
def test_a_rewritten_label_does_not_cost_the_machine(tmp_path: Path, label: str | None) -> None:
    """H34: somebody edited it in the console; the id still says that it is ours."""

    async def tale(story: Story) -> None:
        rental = await story.rent()
        story.contracts[0].label = label
        await story.client.settle(seconds=120)

        assert await story.still_serves(rental)

    told(tale, tmp_path)


ANY_GPU = msgspec.structs.replace(
    DEMAND, requirements=msgspec.structs.replace(DEMAND.requirements, gpu_models=())
)
