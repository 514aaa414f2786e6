"""Where an offer becomes an instance, and stops being one.

`rent` decides, writes an intent, sends the rent call once, and then follows the rental through the
reconciler until its workload answers. Whatever cuts it short - a crash, a cancellation, a lost
reply - leaves an intent on disk that the reconciler settles by key; nothing here has to clean up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from decimal import Decimal
from random import Random
from typing import Final

import msgspec
from msgspec import Struct

from gp4u.book import Book
from gp4u.clock import Clock
from gp4u.errors import (
    BadInput,
    BudgetRefused,
    CalledOff,
    CircuitBreakerOpen,
    Denied,
    NothingFits,
    OfferGone,
    OutcomeUnknown,
    OwnerHasRental,
    ProviderError,
    RateLimitExceeded,
    Refused,
    StaleRental,
    Throttled,
    Unavailable,
)
from gp4u.model import Candidate, Decision, Demand, Offer, RentalKey, Snapshot, Workload
from gp4u.providers.contract import Ability, Call, Provider, Query, unfit
from gp4u.providers.turns import in_turns
from gp4u.rentals import rental as rentals
from gp4u.rentals.budget import UNBOUND, Budget
from gp4u.rentals.ledger import Ledger
from gp4u.rentals.reconcile import Reconciler
from gp4u.rentals.rental import Hopeless, Rental, RentalState
from gp4u.rentals.shopping import Shopping
from gp4u.rentals.widening import WiderLook

COOL_S: Final = 60.0
"""An offer that was gone, or that we have got, is not tried again for so long."""
MOST_COOLING: Final = 10_000
ESTIMATE_HEADROOM: Final = Decimal("1.5")
"""A bid may be so much over the estimate that its order was placed by."""
THROTTLED_WAIT_S: Final = 20.0
SEARCH_PATIENCE_S: Final = 75.0
"""How long a search waits for markets that count by the minute."""
_QUOTED_ONLY: Final = (
    "quoted only: with these settings it cannot list what was rented by our key "
    "(GP4U_ALLOW_UNLABELLED=1 rents all the same)"
)
NO_AFTER_S: Final = 45.0
"""Offers of which none fits are fetched anew once they are that old: who waits is told the truth,
and hears soon of what has become free. As all who wait for the same share a fetch, this is one or
two calls a minute and market."""
FIRST_POLL_S: Final = 1.0
SLOWEST_POLL_S: Final = 10.0


class Decided(Struct, frozen=True):
    """The choice is made; nothing is paid yet."""

    decision: Decision


class Waiting(Struct, frozen=True):
    """Every market that was asked wants patience; they are asked again after so many seconds."""

    seconds: float


class Intended(Struct, frozen=True):
    """The intent is on disk; the rent call comes next."""

    rental: Rental
    candidate: Candidate


class Rented(Struct, frozen=True):
    """The provider confirmed an instance."""

    rental: Rental


class Unsettled(Struct, frozen=True):
    """The reply was lost or unclear: listings will tell."""

    rental: Rental
    detail: str


class Watched(Struct, frozen=True):
    """A look at a rental that is not settled yet; `probe` says why its workload does not answer."""

    rental: Rental
    probe: str
    problem: str


class PassedOver(Struct, frozen=True):
    """A market that had a better offer cannot run this workload; told once, before money."""

    provider: str
    reason: BadInput


class Dropped(Struct, frozen=True):
    """This candidate came to nothing; another may be tried."""

    rental: Rental
    reason: str


class Settled(Struct, frozen=True):
    """The rental reached the state that was waited for."""

    rental: Rental


Progress = (
    Decided | Waiting | PassedOver | Intended | Rented | Unsettled | Watched | Dropped | Settled
)
Tell = Callable[[Progress], None]


def silent(_progress: Progress) -> None:
    return


class Broker:
    """Rents and releases; see the module's docstring."""

    def __init__(
        self,
        *,
        providers: Mapping[str, Provider],
        book: Book,
        ledger: Ledger,
        reconciler: Reconciler,
        clock: Clock,
        random: Random,
        max_offer_age_s: float,
        allow_unlabelled: bool = False,
        budget: Budget = UNBOUND,
        encode: Callable[[Decision], bytes] | None = None,
    ) -> None:
        """With `allow_unlabelled` markets are rented from whose listings do not carry our key.

        `encode` says how the decision behind a rental is stored, as JSON.
        """
        self._providers, self._book, self._ledger = providers, book, ledger
        self._reconciler, self._clock, self._random = reconciler, clock, random
        self._max_offer_age_s, self._allow_unlabelled = max_offer_age_s, allow_unlabelled
        self._budget, self._encode = budget, encode or _as_json
        self._wider = WiderLook(book)
        self._cooling: dict[tuple[str, str], tuple[float, datetime]] = {}
        """Offer to the loop time until which it is left alone, and to when it was gone."""
        self._trying: set[tuple[str, str]] = set()
        """Single machines that a rent is trying to get at this moment."""

    async def decide(self, demand: Demand, *, tell: Tell = silent) -> Decision:
        """Return the explained choice over the book's newest offers; changes nothing.

        Where all that was heard is that the markets were asked too often, they are asked again for
        `SEARCH_PATIENCE_S`: Vast.ai takes ten searches a minute from one address. Where a market's
        own search left everything out, a wider one says what would have to give way.
        """
        snapshot = await self._offers(demand, tell)
        decision = await self._decide_over(snapshot, demand)
        if decision.best is None and _is_old(snapshot, decision.decided_at):
            self._book.invalidate()
            snapshot = await self._offers(demand, tell)
            decision = await self._decide_over(snapshot, demand)
        if decision.best is None:
            wider = await self._wider.add_to(snapshot, demand.requirements)
            if wider is not snapshot:
                decision = await self._decide_over(wider, demand)
        return decision

    async def _offers(self, demand: Demand, tell: Tell) -> Snapshot:
        loop = asyncio.get_running_loop()
        until = loop.time() + SEARCH_PATIENCE_S
        snapshot = await self._book.snapshot(Query(requirements=demand.requirements))
        while (pause_s := _patience_asked_s(snapshot)) and loop.time() + pause_s <= until:
            tell(Waiting(pause_s))
            await asyncio.sleep(pause_s)
            self._book.invalidate()
            snapshot = await self._book.snapshot(Query(requirements=demand.requirements))
        return snapshot

    async def _decide_over(self, snapshot: Snapshot, demand: Demand) -> Decision:
        from gp4u.selection.decide import decide  # numpy: 130 ms that looking and releasing spare

        await in_turns((part.columns for part in snapshot.stretches), piece=1)
        return decide(snapshot, demand, at=self._clock.now(), max_age_s=self._max_offer_age_s)

    async def dry_run(
        self, demand: Demand, workload: Workload
    ) -> tuple[Decision, Candidate | None, tuple[Call, ...]]:
        """Return the decision, who would be rented first, and the calls for it; sends none of them.

        Raises:
            BadInput: no candidate's market can take this workload.
        """
        decision = await self.decide(demand)
        key = self._ledger.mint(self._random)
        why: BadInput | None = None
        for candidate in decision.candidates:
            try:
                return decision, candidate, self._calls(candidate.offer, workload, key)
            except BadInput as error:
                why = why or error
        if why is not None:
            raise why
        return decision, None, ()

    async def rent(
        self,
        owner: str,
        demand: Demand,
        workload: Workload,
        *,
        wait: bool = True,
        avoid: Collection[tuple[str, str]] = (),
        note: tuple[str, str] | None = None,
        tell: Tell = silent,
    ) -> Rental:
        """Rent the best offer that can be had; return the rental once its workload answers.

        `avoid` names machines, as (provider, machine_id), that are not tried: they would not serve.
        `note` is a kind and a text that are in the rental's history from its first moment on.
        With `wait=False` it returns as soon as the provider confirmed an instance, or as soon as it
        is clear that only listings can tell (the rental is then still `intended`).

        Raises:
            NothingFits: no offer passes the demand; nothing was sent.
            OwnerHasRental: the owner already has a live rental; nothing was sent.
            BadInput: no candidate's market can take this workload; nothing was sent.
            CalledOff: somebody released it meanwhile; no other one was rented.
            BudgetRefused: every candidate that was left would break the budget.
            OutcomeUnknown: patience ended without a sign of the instance; it is being sought. Or
                the market cannot list by key, and only a person can look; no other was rented.
            ProviderError: every candidate came to nothing; the last reason.
        """
        decision = await self.decide(demand, tell=tell)
        tell(Decided(decision))
        if decision.best is None:
            raise NothingFits(decision)
        stored = self._encode(decision)
        shopping, taken = Shopping(), None
        for candidate in decision.candidates:
            offer = candidate.offer
            if shopping.is_over:
                break
            if not shopping.may_try(offer) or (offer.provider, offer.machine_id) in avoid:
                continue
            if offer.id in self._trying or self._is_cooling(offer):
                taken = offer
                continue
            try:
                with self._claimed(offer):
                    rental = await self._attempt(
                        owner, demand, workload, candidate, stored, note, tell, shopping
                    )
            except BadInput as error:
                if shopping.pass_over(offer.provider, error):
                    tell(PassedOver(offer.provider, error))
                continue
            except (BudgetRefused, OwnerHasRental, ProviderError) as error:
                shopping.refused(offer, error)
                continue
            if wait and rental.is_live:
                rental = await self._follow(rental, tell)
            _check_wanted(rental)
            if not wait:
                return rental
            if rental.state is RentalState.RUNNING:
                tell(Settled(rental))
                return rental
            tell(Dropped(rental, rental.reason))
            shopping.dropped(offer, rental, _failure(rental))
        for key in shopping.may_cost:
            await self.release(key, tell=tell)  # nobody else may be there to see it through
        if shopping.failure is None and taken is not None:
            self._book.invalidate(taken.provider)  # who asks next shall see what else there is
            raise OfferGone(taken.provider, "rent", "all that fits was taken a moment ago")
        raise shopping.failure or NothingFits(decision)

    async def release(
        self, key: RentalKey, *, reason: str = "asked", wait: bool = True, tell: Tell = silent
    ) -> Rental:
        """Begin to release a rental, and wait for the proof that nothing is left of it.

        Releasing what is already releasing or released is no error.

        Raises:
            BadInput: there is no such rental; or the reason is one that only a machine can give.
            Refused: another account pays for it, so this key cannot release it; or nobody knows
                whether it exists, and its market cannot be asked by key.
        """
        if reason in frozenset(Hopeless):
            raise BadInput("reason", reason, "it is what we say of a machine that will not serve")
        self._check_traceable(await self._read(key))
        rental = await self._begin_release(key, reason)
        started = asyncio.get_running_loop().time()
        while rental.is_open:
            problem = await self._look(rental.provider)
            rental = await self._read(key)
            if not rental.is_open:
                break
            if rental.account not in ("", await self._reconciler.account(rental.provider)):
                raise Refused(
                    rental.provider,
                    "release",
                    f"rental {key} is paid by account {rental.account}, and the key in force is of "
                    "another one",
                    code="other_account",
                )
            if not wait and rental.release_tried_at is not None and not problem:
                return rental
            tell(Watched(rental, "", problem))
            await asyncio.sleep(_pause_s(asyncio.get_running_loop().time() - started))
        tell(Settled(rental))
        return rental

    async def call_off(self, key: RentalKey, *, reason: str) -> Rental:
        """Begin to release a rental, and return as soon as that is on disk.

        What is still under way for it comes to nothing, and whoever reconciles asks the market.

        Raises:
            BadInput: there is no such rental; or the reason is one that only a machine can give.
        """
        if reason in frozenset(Hopeless):
            raise BadInput("reason", reason, "it is what we say of a machine that will not serve")
        return await self._begin_release(key, reason)

    async def forget(self, key: RentalKey) -> Rental:
        """Close a rental on a person's word, without any proof; for what no key can reach any more.

        Raises:
            BadInput: there is no such rental.
        """
        text = "closed on the user's word; nothing was proved"
        while True:
            rental = await self._begin_release(key, "forgotten_by_user")
            if not rental.is_open:
                return rental
            at = self._clock.now()
            after = rentals.close(rental, at=at)
            try:
                return await self._ledger.move(rental, after, at=at, kind="forgotten", text=text)
            except StaleRental:
                continue  # somebody moved it meanwhile: read again

    async def _begin_release(self, key: RentalKey, reason: str) -> Rental:
        while True:
            rental = await self._read(key)
            if not rental.is_live:
                return rental
            at = self._clock.now()
            try:
                return await self._ledger.move(
                    rental, rentals.give_up(rental, reason, at=at), at=at
                )
            except StaleRental:
                continue  # somebody moved it meanwhile: read again

    async def _attempt(
        self,
        owner: str,
        demand: Demand,
        workload: Workload,
        candidate: Candidate,
        stored: bytes,
        note: tuple[str, str] | None,
        tell: Tell,
        shopping: Shopping,
    ) -> Rental:
        """Put the intent on disk, send the rent call once, record its outcome."""
        offer = candidate.offer
        provider = self._providers[offer.provider]
        policy = self._reconciler.policy(offer.provider)
        key = self._ledger.mint(self._random)
        self._calls(offer, workload, key)  # raises BadInput before anything is written
        account = await self._reconciler.account(offer.provider)
        intent = rentals.intend(
            key=key,
            owner=owner,
            offer=offer,
            workload=workload,
            account=account,
            ceiling_usd_per_hour=_ceiling(offer, demand),
            at=self._clock.now(),
            patience=policy.patience,
            epoch=self._ledger.epoch,
        )
        await self._ledger.intend(intent, stored, budget=self._budget, note=note)
        shopping.intended(offer, key)
        tell(Intended(intent, candidate))
        try:
            instance_id = await provider.rent(
                offer,
                workload,
                key,
                choose=(lambda bids: self._choose(bids, demand))
                if Ability.AUCTION in provider.spec.can
                else None,
            )
        except OutcomeUnknown as error:
            tell(Unsettled(intent, error.detail))
            doubted = await self._doubt(intent, error.detail, policy.late)
            if not policy.labelled and doubted.instance_id is None:
                raise OutcomeUnknown(offer.provider, "rent", _lost(doubted), key=key) from error
            return doubted
        except ProviderError as error:
            await self._came_to_nothing(intent, error, tell)
            raise
        if self._is_single(offer):  # the book may show it for a while yet
            self._cool(offer.id)
        rental = await self._confirm(intent, instance_id, policy.settle)
        tell(Rented(rental))
        return rental

    def _calls(self, offer: Offer, workload: Workload, key: RentalKey) -> tuple[Call, ...]:
        """Return the calls that would rent.

        Raises:
            BadInput: this market cannot take the workload, or may not be rented from.
        """
        provider = self._providers[offer.provider]
        if provider.spec.quoted_only:
            raise BadInput("provider", offer.provider, provider.spec.quoted_only)
        if Ability.LABELS not in provider.spec.can and not self._allow_unlabelled:
            raise BadInput("provider", offer.provider, _QUOTED_ONLY)
        if (why := unfit(provider.spec, offer, workload)) is not None:
            raise why
        return provider.rent_calls(offer, workload, key)

    def _check_traceable(self, rental: Rental) -> None:
        """Raise `Refused` for a rental of which nobody can tell whether it exists."""
        known = rental.provider in self._providers
        if not rental.is_open or rental.instance_id is not None or not known:
            return
        if not self._reconciler.policy(rental.provider).labelled:
            raise Refused(rental.provider, "release", _lost(rental), code="unlabelled")

    def _choose(self, bids: Sequence[Offer], demand: Demand) -> Offer | None:
        """Decide over bids as over offers."""
        from gp4u.selection.decide import decide  # loaded by now: the offers were decided over

        at = self._clock.now()
        snapshot = Snapshot(bids, taken_at=at)
        best = decide(snapshot, demand, at=at, max_age_s=self._max_offer_age_s).best
        return best.offer if best is not None else None

    async def _confirm(self, intent: Rental, instance_id: str, settle: timedelta) -> Rental:
        at = self._clock.now()
        after = rentals.confirm(intent, instance_id, at=at, settle=settle)
        try:
            return await self._ledger.move(intent, after, at=at, text=f"instance {instance_id}")
        except StaleRental:
            # Another process listed it and adopted it before the reply reached us, or somebody
            # began to release it. What was written holds; our reply only adds the id.
            return await self._learn(intent.key, instance_id, at)

    async def _learn(self, key: RentalKey, instance_id: str, at: datetime) -> Rental:
        while True:
            rental = await self._read(key)
            if not rental.is_open or rental.instance_id is not None:
                return rental
            after = rentals.learn(rental, instance_id, at=at)
            text = f"the reply told of instance {instance_id}"
            try:
                return await self._ledger.move(rental, after, at=at, kind="told", text=text)
            except StaleRental:
                continue  # somebody moved it meanwhile: read again

    async def _doubt(self, intent: Rental, detail: str, late: timedelta) -> Rental:
        at = self._clock.now()
        try:
            after = rentals.doubt(intent, at=at, late=late)
            return await self._ledger.move(intent, after, at=at, kind="unknown", text=detail)
        except StaleRental:
            return await self._read(intent.key)  # a listing has settled it already

    async def _came_to_nothing(self, intent: Rental, error: ProviderError, tell: Tell) -> None:
        """Record a clean no: nothing was made, or the error itself told what was."""
        at = self._clock.now()
        settle = self._reconciler.policy(intent.provider).settle
        instance_id = error.instance_id if isinstance(error, Refused) else None
        after = rentals.give_up(
            intent, _reason(error), at=at, provable_at=at + settle, instance_id=instance_id
        )
        text = f"{_reason(error)}: {error.detail}"
        try:
            rental = await self._ledger.move(intent, after, at=at, text=text)
            rental = await self._close_unlisted(rental, at)
        except StaleRental:
            # A listing has settled it, or somebody released it: the market's word adds to that.
            if instance_id is not None:
                rental = await self._learn(intent.key, instance_id, at)
            else:
                rental = await self._close_unlisted(await self._read(intent.key), at)
            _check_wanted(rental)
        if isinstance(error, OfferGone):
            self._cool((intent.provider, intent.offer_id))
        tell(Dropped(rental, _reason(error)))
        if isinstance(error, Throttled):
            await asyncio.sleep(min(THROTTLED_WAIT_S, error.retry_after_s or THROTTLED_WAIT_S))

    async def _close_unlisted(self, rental: Rental, at: datetime) -> Rental:
        """Close what no listing could prove absent: the market's own no is all the proof there is.

        Raises:
            StaleRental: somebody moved it meanwhile.
        """
        labelled = self._reconciler.policy(rental.provider).labelled
        unknown = rental.state is RentalState.RELEASING and rental.instance_id is None
        if labelled or not unknown:
            return rental
        after = rentals.close(rental, at=at)
        return await self._ledger.move(rental, after, at=at, text="the market said no")

    async def _follow(self, rental: Rental, tell: Tell) -> Rental:
        """Look at the provider until the rental runs or is no longer live."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        pause_s = FIRST_POLL_S
        while True:
            await asyncio.sleep(pause_s)
            problem = await self._look(rental.provider)
            rental = await self._read(rental.key)
            if rental.state is RentalState.RUNNING or not rental.is_live:
                return rental
            tell(Watched(rental, self._reconciler.probes.get(rental.key, ""), problem))
            pause_s = _pause_s(loop.time() - started)

    async def _look(self, provider: str) -> str:
        """Run one tick; return why it failed, or an empty text."""
        try:
            tick = await self._reconciler.tick(provider)
        except Denied:
            raise
        except ProviderError as error:
            return str(error)
        return "; ".join(tick.problems)

    async def _read(self, key: str) -> Rental:
        rental = await self._ledger.get(key)
        if rental is None:
            raise BadInput("key", key, "no rental has this key")
        return rental

    @contextmanager
    def _claimed(self, offer: Offer) -> Iterator[None]:
        """Keep other rents of ours off a single machine: all but one of them would lose."""
        if self._is_single(offer):
            self._trying.add(offer.id)
        try:
            yield
        finally:
            self._trying.discard(offer.id)

    def _is_single(self, offer: Offer) -> bool:
        """Whether an offer is one machine, which whoever rents it takes from all others."""
        can = self._providers[offer.provider].spec.can
        return offer.machine_id is not None and Ability.AUCTION not in can

    def _cool(self, offer: tuple[str, str]) -> None:
        self._cooling.pop(offer, None)
        if len(self._cooling) >= MOST_COOLING:
            del self._cooling[next(iter(self._cooling))]
        until_s = asyncio.get_running_loop().time() + COOL_S
        self._cooling[offer] = until_s, self._clock.now()

    def _is_cooling(self, offer: Offer) -> bool:
        """Whether an offer was gone lately, or after it was fetched."""
        known = self._cooling.get(offer.id)
        if known is None:
            return False
        until_s, at = known
        return until_s > asyncio.get_running_loop().time() or offer.fetched_at <= at


def _as_json(decision: Decision) -> bytes:
    from gp4u.selection.decide import to_json  # loaded by now: it was decided

    return msgspec.json.encode(to_json(decision, top=20, rejections=False))


def _pause_s(waited_s: float) -> float:
    """Return how long to wait before the next look: often at first, then every ten seconds."""
    return min(SLOWEST_POLL_S, max(FIRST_POLL_S, waited_s / 6))


def _is_old(snapshot: Snapshot, at: datetime) -> bool:
    """Whether a market that answered was asked so long ago that its offers may have changed."""
    since_s = (at - snapshot.taken_at).total_seconds()
    return any(note.age_s + since_s >= NO_AFTER_S for note in snapshot.sources if not note.error)


def _patience_asked_s(snapshot: Snapshot) -> float:
    """Return how long to wait before the markets may be asked again; 0 where there is no need."""
    waits = [note.retry_in_s for note in snapshot.sources]
    known = [max(1.0, wait) for wait in waits if wait is not None]
    return min(known) if known and len(known) == len(waits) and not snapshot.offers else 0.0


def _lost(rental: Rental) -> str:
    """Say what to do about a rental that cannot be found by key."""
    return (
        f"nobody knows whether rental {rental.key} came to be, and this market cannot be searched "
        "by key: look into its own console, end there what was made, then close it with "
        f"`gp4u release {rental.key} --forget`. Until then its owner rents nothing else"
    )


def _ceiling(offer: Offer, demand: Demand) -> Decimal:
    """Return the price above which the machine is not wanted: the budget, else the offer's.

    An estimate may be off, and the bid that was chosen by the demand is still wanted.
    """
    expected = offer.price_usd_per_hour * (ESTIMATE_HEADROOM if offer.estimated else 1)
    return demand.requirements.max_price_usd_per_hour or expected


def _reason(error: ProviderError) -> str:
    match error:
        case OfferGone():
            return "offer_gone"
        case Refused():
            return f"refused:{error.code}" if error.code else "refused"
        case Denied():
            return "denied"
        case Throttled():
            return "throttled"
        case CircuitBreakerOpen() | RateLimitExceeded() | Unavailable():
            return "not_sent"
        case _:
            return "failed"


def _check_wanted(rental: Rental) -> None:
    """Raise `CalledOff` for a rental that left the live states by another will than ours."""
    if not rental.is_live and rental.reason not in frozenset(Hopeless):
        raise CalledOff(rental.key, rental.reason)


def _failure(rental: Rental) -> ProviderError:
    """Say as an error what became of a rental that did not come to run."""
    detail = f"rental {rental.key} was given up: {rental.reason}"
    if rental.seen_status:
        detail += f" ({rental.seen_status})"
    if rental.reason in (Hopeless.NEVER_RENTED, Hopeless.NEVER_LISTED):
        return OutcomeUnknown(rental.provider, "rent", detail, key=rental.key)
    return Unavailable(rental.provider, "rent", detail)
