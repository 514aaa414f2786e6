"""The broker asks what a market can do before money: labels, and everything a workload needs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any, ClassVar, Final

import pytest
from msgspec.structs import replace

from gp4u.book import Book, TtlPolicy
from gp4u.errors import (
    BadInput,
    CalledOff,
    Denied,
    OfferGone,
    OutcomeUnknown,
    OwnerHasRental,
    ProviderError,
    Refused,
)
from gp4u.model import (
    Container,
    Demand,
    File,
    HealthCheck,
    Offer,
    Port,
    Protocol,
    RegistryLogin,
    RentalKey,
    Requirements,
    Restart,
    Workload,
)
from gp4u.providers.contract import Ability, Call, Choose, unfit
from gp4u.rentals.broker import Broker, PassedOver, Progress
from gp4u.rentals.ledger import Ledger, open_ledger
from gp4u.rentals.plan import Action, Extend, Policy, make_policy, plan
from gp4u.rentals.probe import Prober
from gp4u.rentals.reconcile import Reconciler
from gp4u.rentals.rental import Rental, RentalState
from gp4u.testing import Act, Trouble
from tests.contract.conformance.in_memory import SPEC, Shop, Unlabelled, Upright
from tests.unit.rentals.builders import after, instance, listing, offer, running
from tests.virtual_loop import VirtualClock, run_virtual

TIMES: Final[dict[str, Any]] = {
    "settle_s": 5,
    "late_window_s": 60,
    "bill_lag_s": 0,
    "rent_timeout_s": 60,
    "boot_timeout_s": 900,
    "orphan_grace_s": 30,
}
DEMAND = Demand(requirements=Requirements(gpu_models=("RTX 3090",)))
WORKLOAD = Workload(image="busybox", ports=(Port(number=8000),))
BESIDE = replace(WORKLOAD, beside=(Container(name="db", image="redis"),))


class Place:
    """An open broker, the shops behind it by slug, and what it told."""

    def __init__(
        self, broker: Broker, ledger: Ledger, reconciler: Reconciler, shops: dict[str, Shop]
    ) -> None:
        self.broker, self.ledger, self.reconciler, self.shops = broker, ledger, reconciler, shops
        self.heard: list[Progress] = []

    @property
    def shop(self) -> Shop:
        """The only shop."""
        (only,) = self.shops.values()
        return only

    async def rent(self, workload: Workload = WORKLOAD, *, wait: bool = True) -> Rental:
        """Rent, and keep what was told."""
        return await self.broker.rent("cli:a", DEMAND, workload, wait=wait, tell=self.heard.append)

    async def look(self, times: int = 100) -> None:
        """Let so many looks at every market pass, five seconds apart."""
        for _ in range(times):
            for slug in self.shops:
                await self.reconciler.tick(slug)
            await asyncio.sleep(5)

    async def newest(self) -> Rental:
        """Return the rental that was intended last."""
        return (await self.ledger.every_rental())[-1]


class Small(Upright):
    """Runs one container only; its slug comes first where prices tie."""

    spec = replace(SPEC, slug="aaa", title="Small")


class Bigger(Upright):
    """Runs several containers."""

    spec = replace(SPEC, slug="bigger", title="Bigger", can=SPEC.can | Ability.MULTI_CONTAINER)

    def rent_calls(self, offer: Offer, workload: Workload, key: RentalKey) -> tuple[Call, ...]:
        return super().rent_calls(offer, replace(workload, beside=()), key)


class CalledOffMeanwhile(Unlabelled):
    """Says no to a rent that its owner calls off before the no is there."""

    place: ClassVar[Place]
    made: ClassVar[bool]

    async def rent(
        self, offer: Offer, workload: Workload, key: RentalKey, *, choose: Choose | None = None
    ) -> str:
        await self.place.broker.call_off(key, reason="pod deleted")
        own = str(self.shop.make(key, ()).number) if self.made else None
        raise Refused("shop", "rent", "no", code="bad_bid", instance_id=own)


@asynccontextmanager
async def opened(
    folder: Path, *adapters: type[Upright], allow_unlabelled: bool = False
) -> AsyncIterator[Place]:
    """Open a broker over these adapters."""
    clock = VirtualClock()
    shops = {adapter.spec.slug: Shop() for adapter in adapters}
    providers = {adapter.spec.slug: adapter(shops[adapter.spec.slug]) for adapter in adapters}
    async with open_ledger(f"sqlite:///{folder / 'ledger.db'}") as ledger:
        reconciler = Reconciler(
            providers=providers,
            ledger=ledger,
            prober=Prober(allow_loopback=False),
            policies={slug: make_policy(each.spec, **TIMES) for slug, each in providers.items()},
            logins=dict.fromkeys(providers, "login"),
            clock=clock,
        )
        rates = dict.fromkeys(providers, lambda: 1.0)
        broker = Broker(
            providers=providers,
            book=Book(providers, rates, ttl=TtlPolicy(), clock=clock),
            ledger=ledger,
            reconciler=reconciler,
            clock=clock,
            random=Random(1),
            max_offer_age_s=600,
            allow_unlabelled=allow_unlabelled,
        )
        yield Place(broker, ledger, reconciler, shops)


Tale = Callable[[Place], Awaitable[None]]


def told(
    tale: Tale, folder: Path, *adapters: type[Upright], allow_unlabelled: bool = False
) -> None:
    """Run a tale under virtual time."""

    async def life() -> None:
        async with opened(folder, *adapters, allow_unlabelled=allow_unlabelled) as place:
            await tale(place)

    run_virtual(life)


def test_a_market_that_cannot_list_by_key_is_quoted_only(tmp_path: Path) -> None:
    """Nothing that could be lost may be bought; the reason says how to insist."""

    async def tale(place: Place) -> None:
        assert (await place.broker.decide(DEMAND)).candidates, "it must be quoted all the same"
        with pytest.raises(BadInput, match="GP4U_ALLOW_UNLABELLED"):
            await place.rent()
        with pytest.raises(BadInput, match="GP4U_ALLOW_UNLABELLED"):
            await place.broker.dry_run(DEMAND, WORKLOAD)

        assert place.shop.things == []
        assert await place.ledger.every_rental() == []

    told(tale, tmp_path, Unlabelled)


class Showcase(Unlabelled):
    """Has nothing to be rented, whatever one may do."""

    spec = replace(Unlabelled.spec, quoted_only="is quoted only: renting needs SHOP_API_KEY")


@pytest.mark.parametrize("allowed", [False, True])
def test_what_cannot_be_rented_at_all_says_its_own_reason(tmp_path: Path, allowed: bool) -> None:
    """A hint at a permission that would change nothing sends people the wrong way."""

    async def tale(place: Place) -> None:
        with pytest.raises(BadInput, match="renting needs SHOP_API_KEY"):
            await place.rent()
        assert await place.ledger.every_rental() == []

    told(tale, tmp_path, Showcase, allow_unlabelled=allowed)


def test_with_permission_it_is_rented_from_and_released_by_id(tmp_path: Path) -> None:
    """The id of the reply is the only thread, and it is enough while nothing is lost."""

    async def tale(place: Place) -> None:
        rental = await place.rent()
        assert rental.state is RentalState.RUNNING
        await place.look()
        assert (await place.newest()).state is RentalState.RUNNING, "it was given up while it ran"
        done = await place.broker.release(rental.key)

        assert done.state is RentalState.RELEASED
        assert [thing.alive for thing in place.shop.things] == [False]

    told(tale, tmp_path, Unlabelled, allow_unlabelled=True)


@pytest.mark.parametrize("wait", [True, False])
@pytest.mark.parametrize(("trouble", "made"), [(Trouble.LOST_REPLY, 1), (Trouble.HANG, 0)])
def test_a_lost_reply_without_labels_ends_as_unknown_and_rents_nothing_else(
    tmp_path: Path, trouble: Trouble, made: int, wait: bool
) -> None:
    """No listing can settle it, whichever it was: the next candidate could be a second machine."""

    async def tale(place: Place) -> None:
        place.shop.struck[Act.RENT] = trouble
        with pytest.raises(OutcomeUnknown, match=r"own console.*--forget"):
            await place.rent(wait=wait)
        place.shop.struck.clear()

        assert len(place.shop.things) == made
        rental = await place.newest()
        assert (rental.state, rental.instance_id) == (RentalState.INTENDED, None)
        with pytest.raises(OwnerHasRental) as blocked:
            await place.rent()
        assert blocked.value.key == rental.key
        assert len(place.shop.things) == made, "rented again, silently"

    told(tale, tmp_path, Unlabelled, allow_unlabelled=True)


def test_what_is_unknown_without_labels_stays_open_until_a_person_closes_it(tmp_path: Path) -> None:
    """A listing without our key proves nothing here: to call it absent would be a leak."""

    async def tale(place: Place) -> None:
        place.shop.struck[Act.RENT] = Trouble.LOST_REPLY
        with pytest.raises(OutcomeUnknown):
            await place.rent()
        place.shop.struck.clear()
        await place.look(times=200)

        rental = await place.newest()
        assert rental.state is RentalState.INTENDED, f"concluded {rental.reason} from silence"
        with pytest.raises(Refused, match="own console") as refused:
            await place.broker.release(rental.key)
        assert refused.value.code == "unlabelled"
        assert (await place.newest()).state is RentalState.INTENDED
        closed = await place.broker.forget(rental.key)
        assert closed.state is RentalState.RELEASED
        assert (await place.rent()).state is RentalState.RUNNING

    told(tale, tmp_path, Unlabelled, allow_unlabelled=True)


def test_a_clear_no_without_labels_needs_no_listing(tmp_path: Path) -> None:
    """The market said that nothing was made; waiting for a proof by key would never end."""

    async def tale(place: Place) -> None:
        place.shop.struck[Act.RENT] = Trouble.OFFER_GONE
        with pytest.raises(OfferGone):
            await place.rent()

        rentals = await place.ledger.every_rental()
        assert {(r.state, r.reason) for r in rentals} == {(RentalState.RELEASED, "offer_gone")}
        place.shop.struck.clear()

    told(tale, tmp_path, Unlabelled, allow_unlabelled=True)


@pytest.mark.parametrize("made", [True, False])
def test_a_no_that_comes_after_it_was_called_off_is_written_down_without_labels(
    tmp_path: Path, made: bool
) -> None:
    """No listing shows it: what the market said is all that anybody will ever know of it."""

    async def tale(place: Place) -> None:
        CalledOffMeanwhile.place, CalledOffMeanwhile.made = place, made
        with pytest.raises(CalledOff):
            await place.rent()
        await place.look(times=40)

        assert [thing.alive for thing in place.shop.things] == [False] * made
        assert (await place.newest()).state is RentalState.RELEASED

    told(tale, tmp_path, CalledOffMeanwhile, allow_unlabelled=True)


def test_a_market_that_cannot_run_the_workload_is_passed_over_with_a_reason(tmp_path: Path) -> None:
    """The cheaper market is left out before money, once, by name; the dearer one gets it."""

    async def tale(place: Place) -> None:
        best = (await place.broker.decide(DEMAND)).best
        assert best is not None
        assert best.offer.provider == "aaa"
        rental = await place.rent(BESIDE)

        assert rental.provider == "bigger"
        assert place.shops["aaa"].things == []
        assert len(await place.ledger.every_rental()) == 1
        (passed,) = [step for step in place.heard if isinstance(step, PassedOver)]
        assert passed.provider == "aaa"
        assert "Small runs one container" in str(passed.reason)
        _, first, calls = await place.broker.dry_run(DEMAND, BESIDE)
        assert first is not None
        assert (first.offer.provider, len(calls)) == ("bigger", 1)

    told(tale, tmp_path, Small, Bigger)


class Shut(Small):
    """Shows its offers to everybody, and refuses our key where money is meant."""

    why: ClassVar[ProviderError]

    async def rent(
        self, offer: Offer, workload: Workload, key: RentalKey, *, choose: Choose | None = None
    ) -> str:
        raise self.why


class Denying(Shut):
    why = Denied("aaa", "rent", "unknown key")


class Penniless(Shut):
    why = Refused("aaa", "rent", "no money left", code="insufficient_credit")


@pytest.mark.parametrize("shut", [Denying, Penniless])
def test_a_market_that_refuses_the_account_is_left_for_the_next(
    tmp_path: Path, shut: type[Shut]
) -> None:
    """A key that has expired at one market is no reason to go without a machine of another."""

    async def tale(place: Place) -> None:
        rental = await place.rent()

        assert rental.provider == "bigger"
        first, second = await place.ledger.every_rental()
        assert (first.provider, first.is_live) == ("aaa", False)
        assert second.key == rental.key

    told(tale, tmp_path, shut, Bigger)


def test_the_only_market_says_itself_why_it_refuses(tmp_path: Path) -> None:
    """Whoever has one account has to hear that its key is bad."""

    async def tale(place: Place) -> None:
        with pytest.raises(Denied):
            await place.rent()
        assert len(await place.ledger.every_rental()) == 1, "it was tried again with the same key"

    told(tale, tmp_path, Denying)


def test_a_workload_that_nobody_can_run_is_bad_input(tmp_path: Path) -> None:
    """The reason of the best market is what its owner can act on."""

    async def tale(place: Place) -> None:
        assert len((await place.broker.decide(DEMAND)).candidates) > 1
        with pytest.raises(BadInput, match="Small runs one container"):
            await place.rent(BESIDE)
        assert place.shop.things == []
        told_of = [step.provider for step in place.heard if isinstance(step, PassedOver)]
        assert told_of == ["aaa"], "once for a market, not for each of its offers"

    told(tale, tmp_path, Small)


def test_only_an_auction_is_handed_the_choice(tmp_path: Path) -> None:
    """A market without bids has nothing to choose from; one with bids must not choose itself."""
    handed: dict[str, bool] = {}

    class Listening(Upright):
        spec = replace(SPEC, slug="fixed")

        async def rent(
            self, offer: Offer, workload: Workload, key: RentalKey, *, choose: Choose | None = None
        ) -> str:
            handed[self.spec.slug] = choose is not None
            return await super().rent(offer, workload, key)

    class Auction(Listening):
        spec = replace(SPEC, slug="auction", can=SPEC.can | Ability.AUCTION)

    async def tale(place: Place) -> None:
        await place.rent()

    for adapter in (Listening, Auction):
        told(tale, tmp_path / adapter.spec.slug, adapter)
    assert handed == {"fixed": False, "auction": True}


TCP, UDP = Port(number=8000), Port(number=9000, protocol=Protocol.UDP)
LOGIN = RegistryLogin(server="registry.example.com", username="me", password="-")
HTTP_CHECK = HealthCheck(port=8000, path="/")
NEEDS = {
    Ability.COMMAND: replace(WORKLOAD, command=("sleep", "1")),
    Ability.MULTI_CONTAINER: BESIDE,
    Ability.PORTS: WORKLOAD,
    Ability.MANY_PORTS: replace(WORKLOAD, ports=(TCP, Port(number=8001))),
    Ability.UDP: replace(WORKLOAD, ports=(UDP,)),
    Ability.ENTRYPOINT: replace(WORKLOAD, entrypoint=("sleep",)),
    Ability.REGISTRY_LOGIN: replace(WORKLOAD, login=LOGIN),
    Ability.RAW_PORTS: replace(WORKLOAD, health=(HealthCheck(port=8000),)),
}
EVERYTHING = ~Ability.NONE


@pytest.mark.parametrize("ability", list(NEEDS), ids=lambda a: a.name)
def test_a_workload_needs_exactly_the_ability_that_it_uses(ability: Ability) -> None:
    """Named by field, so that its owner knows what to change; and nobody else is left out."""
    without = replace(SPEC, can=EVERYTHING & ~ability)

    refusal = unfit(without, offer(), NEEDS[ability])
    assert refusal is not None
    assert SPEC.title in str(refusal)
    assert unfit(replace(SPEC, can=EVERYTHING), offer(), NEEDS[ability]) is None
    others = [workload for need, workload in NEEDS.items() if need is not ability]
    plain = Workload(image="busybox")
    assert unfit(without, offer(), plain) is None
    if ability is not Ability.PORTS:  # which every other workload here needs as well
        assert [unfit(without, offer(), workload) for workload in others] == [None] * len(others)


@pytest.mark.parametrize(
    "around",
    [
        {"files": (File(path="/etc/x", content=b""),)},
        {"before": (("true",),)},
        {"working_dir": "/srv"},
        {"directories": ("/cache",)},
    ],
    ids=lambda around: next(iter(around)),
)
def test_what_stands_around_a_program_needs_files_and_a_known_entrypoint(
    around: dict[str, object],
) -> None:
    """Dropped in silence it would be missed by a program that is paid for."""
    (field,) = around
    known = replace(WORKLOAD, entrypoint=("sleep",), **around)
    assert unfit(replace(SPEC, can=EVERYTHING), offer(), known) is None
    for spec, workload in (
        (replace(SPEC, can=EVERYTHING & ~Ability.FILES), known),
        (replace(SPEC, can=EVERYTHING), replace(WORKLOAD, **around)),
    ):
        refusal = unfit(spec, offer(), workload)
        assert refusal is not None
        assert refusal.field == field


def test_wishes_leave_no_market_out() -> None:
    """A shell and a restart are had where they can be."""
    wishes: dict[str, object] = {"shell": True, "restart": Restart.ALWAYS}
    without = EVERYTHING & ~(Ability.SHELL | Ability.FILES | Ability.RESTART | Ability.FORWARD)
    assert unfit(replace(SPEC, can=without), offer(), replace(WORKLOAD, **wishes)) is None


def test_what_stands_beside_needs_abilities_too() -> None:
    """A second container's port and command are asked for like the first one's."""
    port = Workload(image="busybox", beside=(Container(name="db", image="redis", ports=(UDP,)),))
    word = Workload(image="busybox", beside=(Container(name="db", image="r", command=("x",)),))

    for workload, ability in ((port, Ability.UDP), (word, Ability.COMMAND)):
        assert unfit(replace(SPEC, can=EVERYTHING & ~ability), offer(), workload) is not None
        assert unfit(replace(SPEC, can=EVERYTHING), offer(), workload) is None


def test_a_check_by_http_does_without_raw_ports() -> None:
    """An address by URL answers HTTP; only a bare connection says nothing there."""
    without = replace(SPEC, can=EVERYTHING & ~Ability.RAW_PORTS)

    assert unfit(without, offer(), replace(WORKLOAD, health=(HTTP_CHECK,))) is None


def test_a_bid_is_placed_only_where_bids_are_taken() -> None:
    """An offer that calls itself interruptible at a market without bids is not believed."""
    without = replace(SPEC, can=EVERYTHING & ~Ability.INTERRUPTIBLE)

    assert unfit(without, offer(interruptible=True), WORKLOAD) is not None
    assert unfit(replace(SPEC, can=EVERYTHING), offer(interruptible=True), WORKLOAD) is None


def test_time_is_bought_only_where_time_is_sold() -> None:
    """A market that tells an end and is not prepaid must not be asked to extend."""
    held = running()
    soon = replace(instance(held), paid_until=after(1100))

    def actions(policy: Policy) -> list[Action]:
        keys = {soon.instance_id: held.key}
        return plan([held], listing([soon]), keys, orphans={}, policy=policy, at=after(1000))

    prepaid = make_policy(replace(SPEC, can=Ability.PREPAID), **TIMES)
    assert Extend(held, soon.instance_id) in actions(prepaid)
    assert not any(isinstance(a, Extend) for a in actions(make_policy(SPEC, **TIMES)))
