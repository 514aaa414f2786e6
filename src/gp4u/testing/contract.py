"""The checks: everything above an adapter relies on what they say.

What each error means, that a rent is sent once, that a listing is complete or says so, that
abilities are what the spec declares. The subclass opens its adapter as it is opened in production,
over a market that it can break on purpose; this file knows no market, no simulator and no HTTP.

Checks are plain functions that hand a coroutine to `run`, so no plug-in of pytest is needed and a
virtual clock can be put under them. An ability that the spec does not declare is checked, too: the
adapter must refuse it properly. Nothing is skipped.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress

import msgspec
import pytest
from msgspec.structs import replace

from gp4u.errors import (
    BadInput,
    InstanceAbsent,
    Malformed,
    OfferGone,
    OutcomeUnknown,
    ProviderError,
    Unavailable,
)
from gp4u.model import InstanceState, Offer, RentalKey
from gp4u.providers.contract import Ability, Query
from gp4u.testing.findings import (
    beyond,
    check_stamp,
    check_unsupported,
    first_of,
    may_be_absent,
    must,
    problems,
    raises,
)
from gp4u.testing.steps import Steps, key_of
from gp4u.testing.troubles import ONLY, READ, RENT, TOOK_EFFECT, Act, Market, Trouble


class ProviderContract(Steps):
    """What every adapter must do; pytest collects a subclass whose name begins with `Test`."""

    @classmethod
    def pytest_generate_tests(cls, metafunc: pytest.Metafunc) -> None:
        """Make one case of each trouble that is possible at this market."""
        possible = [trouble for trouble in Trouble if trouble not in cls.impossible]
        cases: Mapping[str, Sequence[object]] = {
            "read_trouble": [trouble for trouble in possible if trouble in READ],
            "act": [Act.PING, Act.OFFERS, Act.INSTANCES, Act.LOGS],
            "rent_trouble": [trouble for trouble in possible if trouble in RENT],
            "release_trouble": [trouble for trouble in possible if trouble in READ],
            "any_trouble": possible,
        }
        for name, values in cases.items():
            if name in metafunc.fixturenames:
                metafunc.parametrize(name, values, ids=str)

    # Nothing is wrong.

    def test_a_ping_tells_whose_key_it_is(self) -> None:
        """The cheapest proof of a key; credit, where told, is a number."""

        async def check(market: Market) -> None:
            credit = (await market.provider.ping()).credit_usd
            must(credit is None or credit.is_finite(), f"the credit is {credit}")

        self._on_a_market(check)

    def test_offers_are_comparable(self) -> None:
        """One shape, one all-in price: a NaN or a price per GPU would win every decision."""

        async def check(market: Market) -> None:
            spec = market.provider.spec
            page = await market.provider.offers(self._query)
            must(bool(page.offers), "no offers: give a demand that something fits")
            ids = [offer.offer_id for offer in page.offers]
            must(len(set(ids)) == len(ids), "two offers share an id")
            for offer in page.offers:
                for problem in problems(offer, spec.slug, spec.can):
                    must(False, f"offer {offer.offer_id}: {problem}")

        self._on_a_market(check)

    def test_an_interruptible_search_brings_nothing_else(self) -> None:
        """A bid and a fixed price are never mixed up, and a market without bids shows none."""

        async def check(market: Market) -> None:
            wanted = replace(self.demand.requirements, interruptible=True)
            page = await market.provider.offers(Query(requirements=wanted))
            shown = {offer.interruptible for offer in page.offers if offer.available}
            if Ability.INTERRUPTIBLE in market.provider.spec.can:
                must(shown == {True}, f"a search for bids brought interruptible: {sorted(shown)}")
            else:
                must(True not in shown, "INTERRUPTIBLE is not declared, and such offers show")

        self._on_a_market(check)

    def test_an_account_that_holds_nothing_says_so(self) -> None:
        """Only a complete and empty listing lets a rental end."""

        async def check(market: Market) -> None:
            listing = await market.provider.instances()
            must(not listing.instances, f"an empty account lists {listing.instances}")
            check_stamp(listing)
            if self._rents(market):
                must(listing.complete, f"incomplete ({listing.why_incomplete}): no rental can end")
            else:
                must(not listing.complete, "cannot list what is held, and calls it complete")

        self._on_a_market(check)

    def test_the_calls_of_a_rent_are_told_before_they_are_sent(self) -> None:
        """`--dry-run` sends nothing, and what it prints carries the key that finds it again."""

        async def check(market: Market, offer: Offer, key: RentalKey) -> None:
            calls = market.provider.rent_calls(offer, self.workload, key)
            again = market.provider.rent_calls(offer, self.workload, key)
            must(bool(calls) and calls == again, "rent_calls is not a function of its input")
            if Ability.LABELS in market.provider.spec.can:
                text = msgspec.json.encode(calls).decode()
                must(key in text, "no call carries the key: a lost reply is lost for ever")
            must(not await market.truth(), "rent_calls rented something")

        self._when_renting(check)

    def test_a_rental_lives_from_offer_to_proven_absence(self) -> None:
        """Rent, find it by key, see it run, read its logs, release it, see that it is gone."""

        async def check(market: Market, offer: Offer, key: RentalKey) -> None:
            provider, can = market.provider, market.provider.spec.can
            instance_id = await self._rent(market, key, offer)
            shown = await self._shown(market, key, instance_id, state=InstanceState.RUNNING)
            must(shown.instance_id == instance_id, f"{instance_id} is listed as {shown}")
            told = shown.paid_until is None or Ability.PREPAID in can
            must(told, f"paid until {shown.paid_until}, and PREPAID is not declared")
            await self._check_endpoints(market, key, instance_id)
            if Ability.LOGS in can:
                text = await provider.logs(instance_id, tail=5)
                must(len(text.splitlines()) <= 5, "more lines than the tail that was asked for")
            if Ability.EXEC in can:
                ended = await provider.exec(instance_id, ["true"])
                must(ended.exit_code == 0, f"`true` ended as {ended}")
            await self._check_bill(market, instance_id)
            await self._release(market, key, instance_id)
            must(len(await market.truth()) == 1, "one rent made more than one thing")
            await self._nothing_costs(market, "a proven absence")

        self._when_renting(check)

    def test_what_is_gone_may_be_asked_for_again(self) -> None:
        """A release is repeated until absence is proven; the last one meets nothing."""

        async def check(market: Market, offer: Offer, key: RentalKey) -> None:
            instance_id = await self._rent(market, key, offer)
            await self._shown(market, key, instance_id)
            await self._release(market, key, instance_id)
            with may_be_absent("the release of what is gone"):
                await market.provider.release(instance_id)
            if Ability.LOGS in market.provider.spec.can:
                with may_be_absent("logs of what is gone"):
                    await market.provider.logs(instance_id)

        self._when_renting(check)

    def test_two_rentals_are_told_apart(self) -> None:
        """Each is found by its own key, and the end of one leaves the other alone."""

        async def check(market: Market, offer: Offer, key: RentalKey) -> None:
            other = key_of(2)
            one = await self._rent(market, key, offer)
            two = await self._rent(market, other)
            must(one != two, f"two rentals have the id {one}")
            await self._shown(market, key, one)
            await self._shown(market, other, two)
            await self._release(market, key, one)
            kept = [held for held in await market.truth() if held.costs]
            must(len(kept) == 1, f"released one of two, and {len(kept)} are left")
            await self._shown(market, other, two)
            await self._release(market, other, two)

        self._when_renting(check)

    # Abilities are declared, and what is not declared is refused.

    def test_a_workload_beyond_its_abilities_is_refused_before_money(self) -> None:
        """What a market cannot run must fail as bad input, not as a machine that never answers."""

        async def check(market: Market, offer: Offer, key: RentalKey) -> None:
            for ability, workload in beyond(self.workload):
                refusal: BadInput | None = None
                try:
                    market.provider.rent_calls(offer, workload, key)
                except BadInput as error:
                    refusal = error
                if ability in market.provider.spec.can:
                    must(refusal is None, f"{ability.name} is declared, and refused: {refusal}")
                    continue
                must(refusal is not None, f"{ability.name} is not declared, and not refused")
                with raises((BadInput,), f"a rent that needs {ability.name}"):
                    await self._send_rent(market, offer, key, workload)
            must(not await market.truth(), "something was rented that cannot run")

        self._when_renting(check)

    def test_a_call_that_it_does_not_offer_is_refused_as_unsupported(self) -> None:
        """Callers ask `can`; who does not ask must get a clear no, never a guess."""

        async def check(market: Market) -> None:
            provider, can = market.provider, market.provider.spec.can
            if Ability.LOGS not in can:
                await check_unsupported("logs", provider.logs(self.some_instance_id))
            if Ability.MULTI_CONTAINER not in can:
                second = provider.logs(self.some_instance_id, container="second")
                await check_unsupported("a second container's logs", second)
                into = provider.open_exec(
                    self.some_instance_id, key_of(1), ["true"], tty=False, container="second"
                )
                await check_unsupported("open_exec into a second container", into)
            if Ability.EXEC not in can:
                await check_unsupported("exec", provider.exec(self.some_instance_id, ["true"]))
            if Ability.SHELL not in can:
                inside = provider.open_exec(self.some_instance_id, key_of(1), ["true"], tty=False)
                await check_unsupported("open_exec", inside)
            if Ability.FORWARD not in can:
                port = provider.open_port(self.some_instance_id, key_of(1), 80)
                await check_unsupported("open_port", port)
            if Ability.FOLLOW not in can:
                await check_unsupported("follow", first_of(provider, self.some_instance_id))
            if Ability.RESTART not in can:
                await check_unsupported("restart", provider.restart(self.some_instance_id))
            if Ability.PREPAID not in can:
                await check_unsupported("extend", provider.extend(self.some_instance_id))
            if Ability.BILL not in can:
                bill = await provider.billed(self.some_instance_id)
                must(bill is None, "BILL is not declared, and there is one")
            if not self._rents(market):
                await check_unsupported("release", provider.release(self.some_instance_id))

        self._on_a_market(check)

    def test_bids_are_chosen_by_the_caller(self) -> None:
        """At an auction nothing is paid for that the decision did not choose."""

        async def check(market: Market, offer: Offer, key: RentalKey) -> None:
            asked: list[int] = []

            def none_will_do(bids: Sequence[Offer]) -> None:
                asked.append(len(bids))

            rent = market.provider.rent(offer, self.workload, key, choose=none_will_do)
            if Ability.AUCTION in market.provider.spec.can:
                with raises((OfferGone,), "an auction of which no bid will do"):
                    await rent
                must(bool(asked), "AUCTION is declared, and nobody was asked to choose")
                await self._nothing_costs(market, "an auction that came to nothing")
                return
            with suppress(OutcomeUnknown, OfferGone):
                await rent
            must(not asked, "AUCTION is not declared, and there was something to choose")

        self._when_renting(check)

    # Troubles.

    def test_a_trouble_in_a_look_at_the_market_is_told_as_what_it_is(
        self, read_trouble: Trouble, act: Act
    ) -> None:
        """Who acts on it depends on its name: a refused key is not retried, an outage is."""

        async def without_a_rental(market: Market) -> None:
            market.strike(read_trouble, act)
            with raises(READ[read_trouble], f"{act} under {read_trouble}"):
                if act is Act.PING:
                    await market.provider.ping()
                else:
                    await market.provider.offers(self._query)
            market.heal()
            await self._again(market.provider.ping)

        async def with_a_rental(market: Market, offer: Offer, key: RentalKey) -> None:
            provider = market.provider
            if act is Act.LOGS and Ability.LOGS not in provider.spec.can:
                return await check_unsupported("logs", provider.logs(self.some_instance_id))
            instance_id = await self._rent(market, key, offer)
            await self._shown(market, key, instance_id, state=InstanceState.RUNNING)
            market.strike(read_trouble, act)
            with raises(READ[read_trouble], f"{act} under {read_trouble}") as caught:
                if act is Act.LOGS:
                    await provider.logs(instance_id)
                else:
                    self._check_truthful(await provider.instances(), key, instance_id)
                    caught.allowed = read_trouble is not Trouble.DENIED
            market.heal()
            await self._again(provider.ping)
            return must(len(await market.truth()) == 1, "a look rented something")

        if act in (Act.PING, Act.OFFERS):
            self._on_a_market(without_a_rental)
        else:
            self._when_renting(with_a_rental)

    def test_a_trouble_in_a_rent_is_never_paid_twice(self, rent_trouble: Trouble) -> None:
        """Sent once. What may have worked is unknown; what was refused has made nothing."""

        async def check(market: Market, offer: Offer, key: RentalKey) -> None:
            market.strike(rent_trouble, Act.RENT)
            with raises(RENT[rent_trouble], f"rent under {rent_trouble}") as caught:
                await self._send_rent(market, offer, key)
            market.heal()
            if isinstance(caught.error, OutcomeUnknown):
                must(caught.error.key == key, f"the error names the key {caught.error.key!r}")
            if isinstance(caught.error, Unavailable):
                must(not caught.error.sent, "says that it was sent, and is not OutcomeUnknown")
            made = await market.truth()
            must(len(made) <= 1, f"one rent made {len(made)} things: it was sent again")
            if rent_trouble not in TOOK_EFFECT:
                await self._nothing_costs(market, f"rent under {rent_trouble}")
            else:
                must(len(made) == 1, "this market rents nothing when its reply is lost")
                if Ability.LABELS in market.provider.spec.can:
                    found = await self._shown(market, key, None)
                    await self._release(market, key, found.instance_id)

        self._when_renting(check)

    def test_what_shows_late_is_found(self) -> None:
        """A listing may be blind for `settle_s`, and must not stay so."""

        async def check(market: Market, offer: Offer, key: RentalKey) -> None:
            market.strike(Trouble.LATE_LISTING, Act.RENT)
            instance_id: str | None = None
            with suppress(OutcomeUnknown):  # a market whose reply has no id needs the listing
                instance_id = await self._send_rent(market, offer, key)
            market.heal()
            check_stamp(await market.provider.instances())
            found = await self._shown(market, key, instance_id)
            await self._release(market, key, found.instance_id)

        self._when_renting(check)

    def test_a_partial_page_proves_nothing(self) -> None:
        """A listing that lacks what is held and calls itself complete lets it run for ever."""

        async def check(market: Market, offer: Offer, key: RentalKey) -> None:
            instance_id = await self._rent(market, key, offer)
            await self._shown(market, key, instance_id)
            market.strike(Trouble.PARTIAL_PAGE, Act.INSTANCES)
            with suppress(Malformed, Unavailable):  # no listing at all is honest
                self._check_truthful(await market.provider.instances(), key, instance_id)
            market.heal()
            await self._release(market, key, instance_id)

        self._when_renting(check)

    def test_a_trouble_in_a_release_is_told_and_the_next_one_works(
        self, release_trouble: Trouble
    ) -> None:
        """A release goes on until the machine is gone; a no must not look like a yes."""

        async def check(market: Market, offer: Offer, key: RentalKey) -> None:
            instance_id = await self._rent(market, key, offer)
            await self._shown(market, key, instance_id)
            market.strike(release_trouble, Act.RELEASE)
            effective = release_trouble in TOOK_EFFECT
            expected = READ[release_trouble] + ((InstanceAbsent,) if effective else ())
            with raises(expected, f"release under {release_trouble}") as caught:
                await market.provider.release(instance_id)
                caught.allowed = effective  # a second try may have been answered
            market.heal()
            await self._again(market.provider.ping)
            await self._release(market, key, instance_id)

        self._when_renting(check)

    def test_a_whole_life_survives(self, any_trouble: Trouble) -> None:
        """Every step is struck once: one rental lives, it ends, and nothing is left."""

        async def struck(market: Market, act: Act, call: Callable[[], Awaitable[object]]) -> None:
            if ONLY.get(any_trouble, act) is act:
                market.strike(any_trouble, act)
            with suppress(ProviderError):  # which one it must be is checked above
                await call()
            market.heal()
            await self._again(market.provider.ping)

        async def check(market: Market, offer: Offer, key: RentalKey) -> None:
            provider = market.provider
            await struck(market, Act.PING, provider.ping)
            await struck(market, Act.OFFERS, lambda: provider.offers(self._query))
            await struck(market, Act.RENT, lambda: self._send_rent(market, offer, key))
            await self._again(lambda: provider.offers(self._query))
            if not any(held.costs for held in await market.truth()):
                key = key_of(2)
                await self._rent(market, key)
            if self.rents_unlabelled:
                return  # what a lost reply made cannot be found, which is why it is a choice
            found = await self._shown(market, key, None)
            await struck(market, Act.INSTANCES, provider.instances)
            await struck(market, Act.LOGS, lambda: provider.logs(found.instance_id))
            await struck(market, Act.RELEASE, lambda: provider.release(found.instance_id))
            await self._release(market, key, found.instance_id)
            await self._nothing_costs(market, f"a life under {any_trouble}")

        self._when_renting(check)
