"""The io.net adapter in trouble: lost replies, refusals, odd pages, and what each must not cost."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from decimal import Decimal

import httpx2
import msgspec
import pytest

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
from gp4u.model import InstanceState, RentalKey
from gp4u.providers.contract import Query
from gp4u.providers.ionet.adapter import IoNet
from gp4u.providers.ionet.opening import make
from gp4u.sim.faults import Rule
from tests.contract.ionet.market import DEMAND, KEY, ROOT, VM, WORKLOAD, market
from tests.virtual_loop import EPOCH, VirtualClock, run_virtual


def test_an_extension_whose_reply_was_lost_is_never_sent_again() -> None:
    """Each success adds an hour and takes the money; the next listing tells."""

    async def scene() -> None:
        async with market(max_retries=3) as m:
            instance_id = await m.running()
            m.faults.add(Rule(kind="reset_after", endpoint="extend"))
            with pytest.raises(OutcomeUnknown):
                await m.provider.extend(instance_id)
            assert m.faults.calls("extend") == 1
            (shown,) = (await m.provider.instances()).instances
            assert shown.paid_until is not None
            assert shown.paid_until > EPOCH + timedelta(minutes=115)

    run_virtual(scene)


@pytest.mark.parametrize(
    "kind", ["reset_after", "hang_after", "status_after", "cut_body", "failed_without_id"]
)
def test_a_lost_reply_is_an_unknown_outcome_and_the_name_finds_it(kind: str) -> None:
    """Never sent twice; the listing by our key settles it."""

    async def scene() -> None:
        rule = Rule(kind=kind, endpoint="create", seconds=300)
        async with market(rule, max_retries=3) as m:
            with pytest.raises(OutcomeUnknown) as caught:
                await m.rented()
            assert caught.value.key == KEY
            assert m.faults.calls("create") == 1
            (shown,) = (await m.provider.instances()).instances
            assert shown.label == KEY
            await m.provider.release(shown.instance_id)
            assert m.world.leaked() == []

    run_virtual(scene)


def test_an_effect_that_comes_late_is_found_by_the_name() -> None:
    """Absence at first proves nothing; the key shows it when it is there."""

    async def scene() -> None:
        rule = Rule(kind="late_effect", endpoint="create", seconds=40)
        async with market(rule) as m:
            with pytest.raises(OutcomeUnknown):
                await m.rented()
            assert (await m.provider.instances()).instances == ()
            await asyncio.sleep(41)
            (shown,) = (await m.provider.instances()).instances
            assert shown.label == KEY

    run_virtual(scene)


def test_a_second_order_of_the_same_name_is_an_unknown_outcome() -> None:
    """The name is ours alone, so what has it is ours; a plain refusal would lose it."""

    async def scene() -> None:
        async with market() as m:
            first = await m.rented()
            with pytest.raises(OutcomeUnknown):
                await m.rented()
            (shown,) = (await m.provider.instances()).instances
            assert shown.instance_id == first

    run_virtual(scene)


def test_a_rent_that_never_left_may_be_sent_again() -> None:
    """A refused connection is no doubt."""

    async def scene() -> None:
        async with market(Rule(kind="refuse", endpoint="create", times=1), max_retries=2) as m:
            await m.rented()
            assert len(m.world.contracts) == 1

    run_virtual(scene)


def test_a_late_listing_shows_the_rental_in_time() -> None:
    """Creation is asynchronous: for a while the list is blind."""

    async def scene() -> None:
        async with market(Rule(kind="late_listing", endpoint="create", seconds=15)) as m:
            await m.rented()
            assert (await m.provider.instances()).instances == ()
            await asyncio.sleep(16)
            assert len((await m.provider.instances()).instances) == 1

    run_virtual(scene)


def test_an_offer_that_was_taken_meanwhile_is_gone() -> None:
    """By the word of the order, or already by the price call."""

    async def scene() -> None:
        async with market(Rule(kind="offer_gone", endpoint="create")) as m:
            with pytest.raises(OfferGone):
                await m.rented()
        async with market() as m:
            offer = await m.offer()
            for machine in m.world.machines:
                m.world.change_machine(machine.machine_id, taken=True)
            with pytest.raises(OfferGone):
                await m.provider.rent(offer, WORKLOAD, KEY)
            assert m.faults.calls("create") == 0

    run_virtual(scene)


def test_a_price_that_rose_since_the_offer_stops_the_rent() -> None:
    """The offer's price is what was decided on."""

    async def scene() -> None:
        async with market() as m:
            offer = await m.offer()
            cheap = msgspec.structs.replace(
                offer, price_usd_per_hour=offer.price_usd_per_hour * Decimal("0.9")
            )
            with pytest.raises(OfferGone, match="costs"):
                await m.provider.rent(cheap, WORKLOAD, KEY)
            assert m.world.contracts == []

    run_virtual(scene)


def test_without_credit_the_refusal_says_so() -> None:
    """No other candidate would do better."""

    async def scene() -> None:
        async with market(credit="0.01") as m:
            with pytest.raises(Refused) as caught:
                await m.rented()
            assert caught.value.code == "insufficient_credit"

    run_virtual(scene)


@pytest.mark.parametrize("operation", ["ping", "offers", "instances", "release", "logs", "billed"])
@pytest.mark.parametrize(
    ("rule", "error"),
    [
        (Rule(kind="bad_key"), Denied),
        (Rule(kind="throttle", retry_after="3"), Throttled),
        (Rule(kind="status", status=503), Unavailable),
        (Rule(kind="status", status=403), Unavailable),
        (Rule(kind="reset_before"), Unavailable),
        (Rule(kind="refuse"), Unavailable),
        (Rule(kind="body", shape="html"), Malformed),
    ],
    ids=["denied", "throttled", "down", "challenge", "reset", "refused", "portal"],
)
def test_every_read_tells_trouble_by_its_kind(
    operation: str, rule: Rule, error: type[ProviderError]
) -> None:
    """Whoever acts on it knows nothing of this market."""

    async def scene() -> None:
        async with market() as m:
            instance_id = await m.running()
            m.faults.add(rule)
            with pytest.raises(error):
                await _do(m.provider, operation, instance_id)
            m.faults.clear()
            await _do(m.provider, operation, instance_id)

    run_virtual(scene)


async def _do(
    provider: object, operation: str, instance_id: str, rent: tuple[object, ...] = ()
) -> None:
    arguments: Sequence[object] = {
        "ping": (),
        "instances": (),
        "offers": (Query(requirements=DEMAND),),
        "rent": rent,
    }.get(operation, (instance_id,))
    await getattr(provider, operation)(*arguments)


@pytest.mark.parametrize("shape", ["garbage", "truncated", "deep", "empty", "null", "list"])
@pytest.mark.parametrize("operation", ["ping", "offers", "instances"])
def test_a_reply_that_cannot_be_read_is_never_an_empty_one(operation: str, shape: str) -> None:
    """An empty account would be believed, and everything in it forgotten."""

    async def scene() -> None:
        async with market() as m:
            await m.running()
            m.faults.add(Rule(kind="body", shape=shape))
            if (operation, shape) == ("offers", "list"):
                page = await m.provider.offers(Query(requirements=DEMAND))
                assert list(page.offers) == []  # a bare list is a form of this one answer
                return
            with pytest.raises(Malformed):
                await _do(m.provider, operation, "")

    run_virtual(scene)


@pytest.mark.parametrize("kind", ["list_empty", "list_lost_page", "list_wrong_total"])
def test_a_list_that_misses_something_proves_no_absence(kind: str) -> None:
    """Except where the market itself says that there is nothing."""

    async def scene() -> None:
        async with market(flavor="caas") as m:
            await m.running()
            m.faults.add(Rule(kind=kind, endpoint="list"))
            listing = await m.provider.instances()
            # An empty list with an honest total is told by nobody else: the settle time and the
            # mass rule are there for it.
            assert listing.complete == (kind == "list_empty")
            assert bool(listing.why_incomplete) != listing.complete

    run_virtual(scene)


def test_all_pages_are_walked_and_the_past_is_left_out() -> None:
    """History stays in the list for ever; what lives may stand on any page."""

    async def scene() -> None:
        async with market(flavor="caas", credit="1000") as m:
            offer = await m.offer()
            for n in range(129):
                past = await m.provider.rent(offer, WORKLOAD, RentalKey(f"gp4u-past-{n}"))
                await m.provider.release(past)
            made = await m.rented()
            await asyncio.sleep(5)
            m.requests.clear()
            listing = await m.provider.instances()
            assert [(i.instance_id, listing.complete) for i in listing.instances] == [(made, True)]
            pages = [
                r.url.params["page"] for r in m.requests if r.url.path.endswith("caas/deployments")
            ]
            assert pages == ["0", "1"]
            m.faults.add(Rule(kind="list_loop", endpoint="list"))
            listing = await m.provider.instances()
            assert not listing.complete

    run_virtual(scene)


def test_what_cannot_be_looked_at_closer_is_still_listed() -> None:
    """One deployment's broken page must not hide the others, nor look like an end."""

    async def scene() -> None:
        async with market() as m:
            await m.running()
            m.faults.add(Rule(kind="body", shape="garbage", endpoint="containers"))
            listing = await m.provider.instances()
            (shown,) = listing.instances
            assert (shown.state, shown.label) == (InstanceState.UNKNOWN, KEY)
            assert listing.complete

    run_virtual(scene)


@pytest.mark.parametrize("trouble", ["oci_error", "dead_start"])
def test_a_start_that_failed_is_told_as_failed(trouble: str) -> None:
    """It is paid for and will never serve."""

    async def scene() -> None:
        async with market(Rule(kind=trouble, endpoint="create")) as m:
            await m.running()
            (shown,) = (await m.provider.instances()).instances
            assert shown.state is InstanceState.FAILED

    run_virtual(scene)


def test_a_server_that_never_answers_has_no_url_and_still_costs() -> None:
    """The URL is the market's own word that the health check passed."""

    async def scene() -> None:
        async with market(Rule(kind="no_ports", endpoint="create")) as m:
            await m.running()
            await asyncio.sleep(600)
            (shown,) = (await m.provider.instances()).instances
            assert (shown.state, shown.endpoints) == (InstanceState.BOOTING, ())
            assert m.world.meter_total() > 0

    run_virtual(scene)


@pytest.mark.parametrize("operation", ["release", "extend", "logs"])
def test_what_is_not_there_is_absent(operation: str) -> None:
    """For a release that is success."""

    async def scene() -> None:
        async with market() as m:
            with pytest.raises(InstanceAbsent):
                await _do(m.provider, operation, "caas:00000000-0000")
            assert await m.provider.billed("caas:00000000-0000") is None
            with pytest.raises(BadInput):
                await _do(m.provider, operation, "../../user")

    run_virtual(scene)


HTML = "<!DOCTYPE html><title>Just a moment</title>"
NOT_FOUND = '{"detail":"Deployment not found"}'
COMPLAINT = '{"detail":[{"loc":["body","duration_hours"],"msg":"wrong","type":"int_type"}]}'


@pytest.mark.parametrize(
    ("operation", "endpoint", "status", "body", "error"),
    [
        ("ping", "list", 400, '{"key_set": true}', Denied),
        ("offers", "catalogue", 401, '{"detail":"Invalid API key"}', Denied),
        ("instances", "list", 403, '{"detail":"Forbidden"}', Denied),
        ("rent", "create", 402, '{"detail":"Payment required"}', Refused),
        ("rent", "create", 400, '{"detail":"Insufficient IO Credits balance"}', Refused),
        ("extend", "extend", 402, '{"detail":"Payment required"}', Refused),
        ("release", "destroy", 404, NOT_FOUND, InstanceAbsent),
        ("release", "destroy", 410, NOT_FOUND, InstanceAbsent),
        ("logs", "containers", 404, NOT_FOUND, InstanceAbsent),
        ("extend", "extend", 404, NOT_FOUND, InstanceAbsent),
        ("rent", "create", 422, COMPLAINT, Refused),
        ("extend", "extend", 422, COMPLAINT, Refused),
        ("rent", "create", 429, '{"detail":"Rate limit exceeded"}', Throttled),
        ("extend", "extend", 429, '{"detail":"Rate limit exceeded"}', Throttled),
        ("rent", "create", 503, HTML, OutcomeUnknown),
        ("rent", "create", 403, HTML, OutcomeUnknown),
        ("rent", "create", 200, HTML, OutcomeUnknown),
        ("extend", "extend", 503, HTML, OutcomeUnknown),
        ("extend", "extend", 200, '{"detail":"Something went wrong"}', OutcomeUnknown),
        ("release", "destroy", 503, HTML, Unavailable),
        ("release", "destroy", 200, '{"detail":"Something went wrong"}', Malformed),
        ("instances", "list", 200, '{"detail":"Something went wrong"}', Malformed),
        ("instances", "list", 404, '{"detail":"Not Found"}', Malformed),
        ("offers", "catalogue", 200, '{"detail":"Something went wrong"}', Malformed),
        ("rent", "price", 400, '{"detail":"Not enough capacity"}', OfferGone),
        ("rent", "create", 200, '{"detail":"Not enough capacity"}', OfferGone),
        ("rent", "create", 404, '{"detail":"Hardware not found"}', OfferGone),
    ],
)
def test_every_row_of_the_error_table_comes_through_as_one_kind(
    operation: str, endpoint: str, status: int, body: str, error: type[ProviderError]
) -> None:
    """What was told wrong would be acted on wrong: a wait, a second purchase, a lost machine."""

    async def scene() -> None:
        async with market() as m:
            instance_id = await m.running()
            offer = await m.offer()
            m.faults.add(Rule(kind="status", status=status, body=body, endpoint=endpoint))
            calls = m.faults.calls(endpoint)
            arguments = (offer, WORKLOAD, RentalKey("gp4u-other"))
            with pytest.raises(error) as caught:
                await _do(m.provider, operation, instance_id, arguments)
            assert type(caught.value) is error
            if operation in ("rent", "extend"):
                assert m.faults.calls(endpoint) == calls + 1
            if isinstance(caught.value, Refused) and status != 422:
                assert caught.value.code == "insufficient_credit"

    run_virtual(scene)


def test_a_refused_order_that_made_something_says_what() -> None:
    """It is paid for in advance, and nobody else would end it."""

    async def scene() -> None:
        async with market(Rule(kind="failed_with_id", status=402, endpoint="create")) as m:
            with pytest.raises(Refused) as caught:
                await m.rented()
            assert caught.value.code == "insufficient_credit"
            assert caught.value.instance_id is not None
            (shown,) = (await m.provider.instances()).instances
            assert shown.instance_id == caught.value.instance_id
            await m.provider.release(caught.value.instance_id)
            assert m.world.leaked() == []

    run_virtual(scene)


def test_a_rent_cut_off_in_the_middle_is_found_and_was_sent_once() -> None:
    """A cancellation is a polite crash: the name on the order is all that is needed."""

    async def scene() -> None:
        slow = Rule(kind="hang_after", endpoint="create", seconds=300)
        async with market(slow, max_retries=3) as m:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(5):
                    await m.rented()
            assert m.faults.calls("create") == 1
            (shown,) = (await m.provider.instances()).instances
            assert shown.label == KEY

    run_virtual(scene)


@pytest.mark.parametrize("endpoint", ["containers", "show"])
def test_one_deployments_trouble_holds_back_nothing_of_the_others(endpoint: str) -> None:
    """Were the whole list lost for it, no next hour would be bought for anybody."""

    async def scene() -> None:
        async with market() as m:
            await m.running()
            m.faults.add(Rule(kind="status", status=502, endpoint=endpoint))
            listing = await m.provider.instances()
            (shown,) = listing.instances
            assert (shown.state, shown.label) == (InstanceState.UNKNOWN, KEY)
            assert shown.paid_until is not None
            assert listing.complete
            m.faults.clear()
            (again,) = (await m.provider.instances()).instances
            assert again.state is InstanceState.RUNNING

    run_virtual(scene)


@pytest.mark.parametrize(
    ("held", "named"), [("vmaas", "caas"), ("caas", "vmaas")], ids=["machine", "container"]
)
def test_a_flavour_does_not_hide_what_the_other_product_holds(held: str, named: str) -> None:
    """A complete list without it would be a proof that it is gone, while it is paid for."""

    async def scene() -> None:
        async with market(flavor=held) as m:
            made = await m.running(VM if held == "vmaas" else WORKLOAD)
            assert isinstance(m.provider, IoNet)
            other = make(m.provider._http, base_url=ROOT, clock=VirtualClock(), flavor=named)
            listing = await other.instances()
            assert [i.instance_id for i in listing.instances] == [made]
            m.faults.add(Rule(kind="status", status=403, body="{}", endpoint="list"))
            with pytest.raises(Denied):  # it has answered before, so it is there
                await other.instances()

    run_virtual(scene)


def replied(status: int, value: object) -> httpx2.Response:
    """Return a reply whose body comes as one from a network does."""
    return httpx2.Response(status, stream=httpx2.ByteStream(msgspec.json.encode(value)))


class _OneProduct(httpx2.AsyncBaseTransport):
    """The market of an account for which one product does not exist."""

    def __init__(self, without: str, status: int) -> None:
        self._without, self._status = f"/{without}/deployments", status

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        if request.url.path.endswith(self._without):
            return replied(self._status, {"detail": "Not allowed"})
        return replied(200, {"data": {"deployments": [], "total": 0}})


@pytest.mark.parametrize("status", [403, 404])
def test_a_named_product_works_where_the_other_is_not_there(status: int) -> None:
    """That is what naming one is for; without a name both must answer."""

    async def scene() -> None:
        async with market(flavor="caas", transport=_OneProduct("vmaas", status)) as m:
            assert (await m.provider.instances()).complete
            assert (await m.provider.instances()).complete
            assert [r.url.path.split("/")[-2] for r in m.requests] == ["caas", "vmaas", "caas"]
        for flavor in ("auto", "vmaas"):
            async with market(flavor=flavor, transport=_OneProduct("vmaas", status)) as m:
                with pytest.raises((Denied, Malformed)):
                    await m.provider.instances()

    run_virtual(scene)


def test_without_totals_pages_are_asked_for_until_one_is_empty() -> None:
    """A market that shows less than was asked for would seem to have lost the rest."""

    class _Small(httpx2.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
            first = 0 if "/caas/" in request.url.path else 1
            number = int(request.url.params["page"]) - first
            rows = [{"id": f"d-{n}", "status": "failed"} for n in range(5)]
            shown = rows[number * 2 : number * 2 + 2] if first == 0 else []
            return replied(200, {"data": {"deployments": shown, "total": 0}})

    async def scene() -> None:
        async with market(transport=_Small()) as m:
            listing = await m.provider.instances()
            assert (len(listing.instances), listing.complete) == (5, True)

    run_virtual(scene)


def test_a_list_without_end_is_left_and_proves_nothing() -> None:
    """Each page brings something new; a bound is all that ends it."""

    class _Endless(httpx2.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
            rows = [{"id": f"d-{request.url.params['page']}", "status": "destroyed"}]
            return replied(200, {"data": {"deployments": rows, "total": 0}})

    async def scene() -> None:
        async with market(transport=_Endless()) as m:
            listing = await m.provider.instances()
            assert (listing.complete, listing.why_incomplete) == (False, "more than 100 pages")

    run_virtual(scene)


def test_one_odd_row_does_not_make_every_price_a_guess() -> None:
    """The fee is the market's, so another row tells it as well."""

    async def scene() -> None:
        refused = Rule(kind="status", status=422, body=COMPLAINT, endpoint="price", times=1)
        async with market(refused) as m:
            offer = await m.offer()
            assert not offer.estimated
            await m.provider.rent(offer, WORKLOAD, KEY)
            assert m.world.meter_total() == offer.price_usd_per_hour

    run_virtual(scene)


def test_an_address_on_this_machine_needs_the_switch() -> None:
    """What a market writes must not make us ask our own services."""

    async def scene() -> None:
        async with market(allow_loopback=False) as m:
            await m.running()
            (shown,) = (await m.provider.instances()).instances
            assert (shown.state, shown.endpoints) == (InstanceState.BOOTING, ())
            assert "cannot be used" in shown.status

    run_virtual(scene)


def test_what_an_order_fixed_is_asked_for_once() -> None:
    """Each look at each instance costs calls of a limit that all of them share."""

    async def scene() -> None:
        async with market() as m:
            await m.running()
            looks = [(await m.provider.instances()).instances for _ in range(3)]
            assert looks[0] == looks[2]
            assert m.faults.calls("show") == 1
            assert m.faults.calls("containers") == 3

    run_virtual(scene)


def test_a_machines_offer_is_sought_among_machines_by_any_adapter() -> None:
    """Its create call answers with nothing; among containers it would not be found."""

    async def scene() -> None:
        async with market(flavor="vmaas") as m:
            offer = await m.offer()
            assert isinstance(m.provider, IoNet)
            both = make(m.provider._http, base_url=ROOT, clock=VirtualClock())
            made = await both.rent(offer, VM, KEY)
            assert made.startswith("vmaas:")

    run_virtual(scene)
