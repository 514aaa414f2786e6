"""The contract suite passes what is upright, and fails every sin that costs money."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from typing import ClassVar

import pytest
from msgspec import Struct
from msgspec.structs import replace

from gp4u.errors import (
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
from gp4u.model import Instance, Listing, Offer, RentalKey, Workload
from gp4u.providers.contract import (
    Ability,
    Account,
    Call,
    Choose,
    Finished,
    OfferPage,
    ProviderSpec,
    Query,
)
from gp4u.testing import Act, ContractBroken, ProviderContract, Trouble
from tests.contract.conformance.in_memory import (
    SPEC,
    Auctioneer,
    QuoteOnly,
    Thing,
    Unlabelled,
    Upon,
    Upright,
)
from tests.virtual_loop import EPOCH


class TestUpright(Upon):
    """Passes."""

    adapter = Upright


class TestQuoteOnly(Upon):
    """Passes, by refusing."""

    adapter = QuoteOnly


class TestUnlabelled(Upon):
    """Passes where its author says that it rents without labels."""

    adapter = Unlabelled
    rents_unlabelled = True


class TestAuctioneer(Upon):
    """Passes, by asking."""

    adapter = Auctioneer


# The sins, each with the check that must notice it.


class NoCredit(Upright):
    """Takes a text for money."""

    async def ping(self) -> Account:
        self.shop.enter(Act.PING)
        return Account(credit_usd=Decimal("NaN"))


class CallsDeniedAnOutage(Upright):
    """A refused key would be tried for ever."""

    async def ping(self) -> Account:
        try:
            return await super().ping()
        except Denied as error:
            raise Unavailable("shop", "ping", error.detail) from error


class SwallowsGarbage(Upright):
    """An unreadable market looks like an empty one."""

    async def offers(self, query: Query) -> OfferPage:
        try:
            return await super().offers(query)
        except Malformed:
            return OfferPage(offers=())


class NeverRecovers(Upright):
    """One failure, and it is broken for good."""

    broken = False

    async def ping(self) -> Account:
        if self.broken:
            raise Unavailable("shop", "ping", "still open")
        try:
            return await super().ping()
        except ProviderError:
            self.broken = True
            raise


class CountsThrottlesAsRefusals(Upright):
    """Patience would have helped."""

    async def logs(
        self, instance_id: str, *, tail: int = 1000, container: str | None = None
    ) -> str:
        try:
            return await super().logs(instance_id, tail=tail, container=container)
        except Throttled as error:
            raise Refused("shop", "logs", error.detail, code="slow") from error


class _Offers(Upright):
    """Spoils the second offer."""

    def spoil(self, offer: Offer) -> Offer:
        return offer

    def offer(self, number: int, interruptible: bool) -> Offer:
        offer = super().offer(number, interruptible)
        return self.spoil(offer) if number == 1 else offer


class NanPrice(_Offers):
    def spoil(self, offer: Offer) -> Offer:
        return replace(offer, price_usd_per_hour=Decimal("NaN"))


class NegativePrice(_Offers):
    def spoil(self, offer: Offer) -> Offer:
        return replace(offer, price_usd_per_hour=Decimal(-1))


class PricePerPart(_Offers):
    def spoil(self, offer: Offer) -> Offer:
        return replace(offer, price_usd_per_hour=offer.gpu_usd_per_hour / 4)


class PercentReliability(_Offers):
    def spoil(self, offer: Offer) -> Offer:
        return replace(offer, reliability=99.0)


class NaiveStamp(_Offers):
    def spoil(self, offer: Offer) -> Offer:
        return replace(offer, fetched_at=datetime(2026, 1, 1))  # noqa: DTZ001 - the sin itself


class SameIds(_Offers):
    def spoil(self, offer: Offer) -> Offer:
        return replace(offer, offer_id="o0")


class AnothersName(_Offers):
    def spoil(self, offer: Offer) -> Offer:
        return replace(offer, provider="vastai")


class Guesses(_Offers):
    def spoil(self, offer: Offer) -> Offer:
        return replace(offer, estimated=True)


class NoMemory(_Offers):
    def spoil(self, offer: Offer) -> Offer:
        return replace(offer, vram_gib=float("nan"))


class EndlessDisk(_Offers):
    def spoil(self, offer: Offer) -> Offer:
        return replace(offer, disk_gib=float("inf"))


class MixesBids(_Offers):
    """A fixed price among bids."""

    def spoil(self, offer: Offer) -> Offer:
        return replace(offer, interruptible=False)


class NeverComplete(Upright):
    """No rental could ever end."""

    async def instances(self) -> Listing:
        listing = await super().instances()
        return replace(listing, complete=False, why_incomplete="who knows")


class HidesTheKey(Upright):
    """What it would send carries no key."""

    def rent_calls(self, offer: Offer, workload: Workload, key: RentalKey) -> tuple[Call, ...]:
        (call,) = super().rent_calls(offer, workload, key)
        return (replace(call, body=None),)


class RentsOnADryRun(Upright):
    def rent_calls(self, offer: Offer, workload: Workload, key: RentalKey) -> tuple[Call, ...]:
        self.shop.make(key, ())
        return super().rent_calls(offer, workload, key)


class LosesTheLabel(Upright):
    """Nothing is found by key."""

    def instance(self, thing: Thing) -> Instance:
        return replace(super().instance(thing), label=None)


class ListsTwice(Upright):
    async def instances(self) -> Listing:
        listing = await super().instances()
        return replace(listing, instances=listing.instances * 2)


class PublishesNothing(Upright):
    def instance(self, thing: Thing) -> Instance:
        return replace(super().instance(thing), endpoints=())


class Prepays(Upright):
    """Says until when it is paid, and does not declare that it can be extended."""

    def instance(self, thing: Thing) -> Instance:
        return replace(super().instance(thing), paid_until=EPOCH)


class TalksTooMuch(Upright):
    async def logs(
        self, instance_id: str, *, tail: int = 1000, container: str | None = None
    ) -> str:
        return await super().logs(instance_id, container=container)


class FailsCommands(Upright):
    async def exec(
        self,
        instance_id: str,
        command: Sequence[str],
        *,
        stdin: bytes = b"",
        timeout_s: float = 60,
        container: str | None = None,
    ) -> Finished:
        return Finished(exit_code=127)


class BillsNonsense(Upright):
    async def billed(self, instance_id: str) -> Decimal | None:
        return Decimal("-Infinity")


class ForgetsToRelease(Upright):
    """Hides what it was asked to release, and lets it run."""

    async def release(self, instance_id: str) -> None:
        self.shop.find(instance_id).listed_at = float("inf")


class TripsOverAbsence(Upright):
    async def release(self, instance_id: str) -> None:
        try:
            await super().release(instance_id)
        except InstanceAbsent as error:
            raise Refused("shop", "release", "no such thing", code="absent") from error


class ReleasesEverything(Upright):
    async def release(self, instance_id: str) -> None:
        for thing in self.shop.things:
            thing.alive = False


class DropsTheSecondContainer(Upright):
    """Runs half of the workload, and says nothing."""

    def rent_calls(self, offer: Offer, workload: Workload, key: RentalKey) -> tuple[Call, ...]:
        return super().rent_calls(offer, replace(workload, beside=()), key)


class BoastsOfContainers(Upright):
    """Declares what it refuses."""

    spec: ClassVar[ProviderSpec] = replace(SPEC, can=SPEC.can | Ability.MULTI_CONTAINER)


class GuessesUnsupported(Upright):
    """Has no EXEC, and answers."""

    spec: ClassVar[ProviderSpec] = replace(SPEC, can=SPEC.can & ~Ability.EXEC)

    async def exec(
        self,
        instance_id: str,
        command: Sequence[str],
        *,
        stdin: bytes = b"",
        timeout_s: float = 60,
        container: str | None = None,
    ) -> Finished:
        return Finished(exit_code=0)


class ShowsAnyContainer(Upright):
    """Has one container, and answers for every other."""

    async def logs(
        self, instance_id: str, *, tail: int = 1000, container: str | None = None
    ) -> str:
        return "" if container else await super().logs(instance_id, tail=tail)


class TakesAnyBid(Auctioneer):
    async def rent(
        self, offer: Offer, workload: Workload, key: RentalKey, *, choose: Choose | None = None
    ) -> str:
        return await super().rent(offer, workload, key)


class AsksForNothing(Auctioneer):
    """Asks to choose, and does not declare it."""

    spec: ClassVar[ProviderSpec] = SPEC


class SendsAgain(Upright):
    """Rents once more when the reply was lost."""

    def sent(self, workload: Workload, key: RentalKey) -> str:
        try:
            return super().sent(workload, key)
        except Unavailable:
            return super().sent(workload, key)


class CallsALostReplyAnOutage(Upright):
    """Somebody would try again."""

    async def rent(
        self, offer: Offer, workload: Workload, key: RentalKey, *, choose: Choose | None = None
    ) -> str:
        return self.sent(workload, key)


class CallsASentRentUnsent(Upright):
    """The same, and says that it is safe."""

    async def rent(
        self, offer: Offer, workload: Workload, key: RentalKey, *, choose: Choose | None = None
    ) -> str:
        try:
            return self.sent(workload, key)
        except Unavailable as error:
            raise Unavailable("shop", "rent", error.detail, sent=True) from error


class NamesAnotherKey(Upright):
    async def rent(
        self, offer: Offer, workload: Workload, key: RentalKey, *, choose: Choose | None = None
    ) -> str:
        try:
            return await super().rent(offer, workload, key)
        except OutcomeUnknown as error:
            raise OutcomeUnknown("shop", "rent", error.detail, key=RentalKey("x")) from error


class CallsGoneAnOutage(Upright):
    def sent(self, workload: Workload, key: RentalKey) -> str:
        try:
            return super().sent(workload, key)
        except OfferGone as error:
            raise Unavailable("shop", "rent", error.detail, sent=False) from error


class RentsWhatWasRefused(Upright):
    """Makes something although it says that it was throttled."""

    def sent(self, workload: Workload, key: RentalKey) -> str:
        try:
            return super().sent(workload, key)
        except Throttled:
            self.shop.make(key, ())
            raise


class RemembersTheList(Upright):
    """Serves the first listing for ever."""

    first: Listing | None = None

    async def instances(self) -> Listing:
        self.first = self.first or await super().instances()
        return self.first


class ProvesByHalf(Upright):
    """Calls a part of the list the whole."""

    async def instances(self) -> Listing:
        return replace(await super().instances(), complete=True)


class SilentHalf(Upright):
    """Knows that something is missing, and does not say what."""

    async def instances(self) -> Listing:
        return replace(await super().instances(), why_incomplete="")


class ListsAnOutageAsEmpty(Upright):
    """A market that is away would end every rental."""

    async def instances(self) -> Listing:
        try:
            return await super().instances()
        except Unavailable:
            return Listing(provider="shop", instances=(), complete=True, began_at=self.clock.now())


class SwallowsANo(Upright):
    """Says released, and nobody heard it."""

    async def release(self, instance_id: str) -> None:
        try:
            await super().release(instance_id)
        except Unavailable:
            return


class LeavesADuplicate(Upright):
    """After a trouble two are running under one key, of which it lists one."""

    async def release(self, instance_id: str) -> None:
        if self.shop.struck and len(self.shop.things) == 1:
            self.shop.make(self.shop.things[0].label, ()).listed_at = float("inf")
        await super().release(instance_id)


class RentsForQuotes(QuoteOnly):
    async def rent(
        self, offer: Offer, workload: Workload, key: RentalKey, *, choose: Choose | None = None
    ) -> str:
        return self.sent(workload, key)


class CallsNothingComplete(QuoteOnly):
    async def instances(self) -> Listing:
        return replace(await super().instances(), complete=True)


class Sin(Struct, frozen=True):
    """What is done, which check must notice it, and what it must say."""

    adapter: type[Upright]
    check: str
    says: str
    given: tuple[str, ...] = ()


_LOOK = "test_a_trouble_in_a_look_at_the_market_is_told_as_what_it_is"
_RENT = "test_a_trouble_in_a_rent_is_never_paid_twice"
_RELEASE = "test_a_trouble_in_a_release_is_told_and_the_next_one_works"
_LIFE = "test_a_rental_lives_from_offer_to_proven_absence"
_CALLS = "test_the_calls_of_a_rent_are_told_before_they_are_sent"
_OFFERS = "test_offers_are_comparable"
_NOTHING = "test_an_account_that_holds_nothing_says_so"
_BEYOND = "test_a_workload_beyond_its_abilities_is_refused_before_money"
SINS = (
    Sin(NoCredit, "test_a_ping_tells_whose_key_it_is", "credit is NaN"),
    Sin(CallsDeniedAnOutage, _LOOK, "must raise Denied", (Trouble.DENIED, Act.PING)),
    Sin(SwallowsGarbage, _LOOK, "raised nothing", (Trouble.MALFORMED, Act.OFFERS)),
    Sin(NeverRecovers, _LOOK, "still fails", (Trouble.SERVER_ERROR, Act.PING)),
    Sin(CountsThrottlesAsRefusals, _LOOK, "must raise Throttled", (Trouble.THROTTLED, Act.LOGS)),
    Sin(ListsAnOutageAsEmpty, _LOOK, "complete, and lacks", (Trouble.HANG, Act.INSTANCES)),
    Sin(NanPrice, _OFFERS, "its prices"),
    Sin(NegativePrice, _OFFERS, "its prices"),
    Sin(PricePerPart, _OFFERS, "is not its parts"),
    Sin(PercentReliability, _OFFERS, "reliability"),
    Sin(NaiveStamp, _OFFERS, "time zone"),
    Sin(SameIds, _OFFERS, "share an id"),
    Sin(AnothersName, _OFFERS, "its provider"),
    Sin(Guesses, _OFFERS, "AUCTION is not declared"),
    Sin(NoMemory, _OFFERS, "GPUs of nan"),
    Sin(EndlessDisk, _OFFERS, "network, CPU, memory or disk"),
    Sin(MixesBids, "test_an_interruptible_search_brings_nothing_else", "search for bids"),
    Sin(NeverComplete, _NOTHING, "no rental can end"),
    Sin(CallsNothingComplete, _NOTHING, "calls it complete"),
    Sin(HidesTheKey, _CALLS, "no call carries the key"),
    Sin(RentsOnADryRun, _CALLS, "rent_calls rented"),
    Sin(RentsForQuotes, _CALLS, "rent without LABELS must raise Refused"),
    Sin(LosesTheLabel, _LIFE, "is not listed"),
    Sin(ListsTwice, _LIFE, "2 instances of one rental"),
    Sin(PublishesNothing, _LIFE, "not published"),
    Sin(Prepays, _LIFE, "PREPAID is not declared"),
    Sin(TalksTooMuch, _LIFE, "more lines than the tail"),
    Sin(FailsCommands, _LIFE, "`true` ended as"),
    Sin(BillsNonsense, _LIFE, "the bill is -Infinity"),
    Sin(ForgetsToRelease, _LIFE, "what still costs"),
    Sin(TripsOverAbsence, "test_what_is_gone_may_be_asked_for_again", "raised Refused"),
    Sin(ReleasesEverything, "test_two_rentals_are_told_apart", "0 are left"),
    Sin(DropsTheSecondContainer, _BEYOND, "MULTI_CONTAINER is not declared, and not refused"),
    Sin(BoastsOfContainers, _BEYOND, "MULTI_CONTAINER is declared, and refused"),
    Sin(
        ShowsAnyContainer,
        "test_a_call_that_it_does_not_offer_is_refused_as_unsupported",
        "a second container's logs, which is not declared",
    ),
    Sin(
        GuessesUnsupported,
        "test_a_call_that_it_does_not_offer_is_refused_as_unsupported",
        "exec, which is not declared",
    ),
    Sin(TakesAnyBid, "test_bids_are_chosen_by_the_caller", "must raise OfferGone"),
    Sin(AsksForNothing, "test_bids_are_chosen_by_the_caller", "something to choose"),
    Sin(SendsAgain, _RENT, "sent again", (Trouble.LOST_REPLY,)),
    Sin(CallsALostReplyAnOutage, _RENT, "must raise OutcomeUnknown", (Trouble.LOST_REPLY,)),
    Sin(CallsASentRentUnsent, _RENT, "says that it was sent", (Trouble.NO_CONNECTION,)),
    Sin(NamesAnotherKey, _RENT, "names the key 'x'", (Trouble.HANG,)),
    Sin(CallsGoneAnOutage, _RENT, "must raise OfferGone", (Trouble.OFFER_GONE,)),
    Sin(RentsWhatWasRefused, _RENT, "still costs money", (Trouble.THROTTLED,)),
    Sin(RemembersTheList, "test_what_shows_late_is_found", "is not listed"),
    Sin(ProvesByHalf, "test_a_partial_page_proves_nothing", "complete, and lacks"),
    Sin(SilentHalf, "test_a_partial_page_proves_nothing", "without a word why"),
    Sin(SwallowsANo, _RELEASE, "raised nothing", (Trouble.SERVER_ERROR,)),
    Sin(LeavesADuplicate, "test_a_whole_life_survives", "still costs", (Trouble.LOST_REPLY,)),
)


@pytest.mark.parametrize("sin", SINS, ids=lambda sin: sin.adapter.__name__)
def test_a_sin_is_noticed(sin: Sin) -> None:
    """A suite that lets it pass would be worth nothing; the text must say what it was."""
    suite = type("Suite", (Upon,), {"adapter": sin.adapter})()

    with pytest.raises(ContractBroken, match=sin.says):
        getattr(suite, sin.check)(*sin.given)


def test_every_check_notices_some_sin() -> None:
    """No check of the suite is one that cannot fail."""
    checks = {
        name
        for name, _ in inspect.getmembers(ProviderContract, inspect.isfunction)
        if name.startswith("test_")
    }
    assert checks == {sin.check for sin in SINS}
