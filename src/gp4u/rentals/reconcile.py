"""The loop that makes the ledger and the provider agree; it is the watcher and the crash recovery.

Each tick lists a provider once, reads the ledger *after* that, asks `plan` what follows, and does
it. The order matters: an intent is on disk before its rent call, so whatever a listing shows was
intended before the listing began, and an instance that the later read does not explain is an orphan
for certain. What follows from a listing is said in `plan.py`; here it is done.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Final

from msgspec import Struct

from gp4u.clock import Clock
from gp4u.errors import (
    CircuitBreakerOpen,
    Denied,
    Fenced,
    InstanceAbsent,
    LedgerUnusable,
    OutcomeUnknown,
    ProviderError,
    RateLimitExceeded,
    StaleRental,
)
from gp4u.model import Instance, Listing, RentalKey
from gp4u.providers.contract import Ability, Provider
from gp4u.rentals import rental as rentals
from gp4u.rentals.ledger import Ledger
from gp4u.rentals.plan import (
    Action,
    Close,
    Extend,
    Frozen,
    GiveUp,
    Miss,
    Observe,
    Orphan,
    Policy,
    Probe,
    Release,
    ReleaseOrphan,
    is_due_by_id,
    plan,
)
from gp4u.rentals.probe import Prober
from gp4u.rentals.rental import Rental, RentalState

BILL_PAUSE: Final = timedelta(hours=1)
"""Between two looks at a bill that may yet grow."""
BILL_RETRY: Final = timedelta(minutes=1)
"""After a look that failed."""
PROBES_AT_ONCE: Final = 32
"""Of one look."""


class Tick(Struct, frozen=True, kw_only=True):
    """What one look at one provider brought."""

    listing: Listing
    actions: tuple[Action, ...]
    orphans: tuple[Orphan, ...]
    foreign: tuple[Instance, ...]
    """Instances with a key of this software that another installation made; never touched."""
    elsewhere: tuple[Rental, ...] = ()
    """Open rentals that another account pays for: this listing says nothing of them."""
    problems: tuple[str, ...] = ()
    """Calls of this tick that failed; the next tick tries again."""


class Reconciler:
    """Carries out the plan, provider by provider."""

    def __init__(
        self,
        *,
        providers: Mapping[str, Provider],
        ledger: Ledger,
        prober: Prober,
        policies: Mapping[str, Policy],
        logins: Mapping[str, str],
        clock: Clock,
    ) -> None:
        """`logins` maps a provider to what stands for its key and address, without telling them."""
        self._providers, self._ledger, self._prober = providers, ledger, prober
        self._policies, self._logins, self._clock = policies, logins, clock
        self._accounts: dict[str, str] = {}
        self._frozen: set[str] = set()
        self._orphans: dict[str, dict[str, datetime]] = {slug: {} for slug in providers}
        self._bill_due: dict[str, dict[RentalKey, datetime]] = {slug: {} for slug in providers}
        """By provider: ended rentals whose bill is not final, and when to ask for it next."""
        self._listing_locks = {slug: asyncio.Lock() for slug in providers}
        self.probes: dict[str, str] = {}
        """Rental key to why its workload did not answer last time; empty text once it did."""

    def policy(self, provider: str) -> Policy:
        """Return the times that hold for a provider."""
        return self._policies[provider]

    async def account(self, provider: str) -> str:
        """Return which account the provider's key belongs to; empty where it does not say.

        Asked once per key and remembered in the ledger: a listing of one account proves nothing of
        what another one pays for.

        Raises:
            ProviderError: it is not known yet, and could not be asked.
        """
        if provider not in self._accounts:
            login = self._logins[provider]
            known = await self._ledger.account_of(provider, login)
            if known is None:
                known = (await self._providers[provider].ping()).id
                await self._ledger.remember_account(provider, login, known)
            self._accounts[provider] = known
        return self._accounts[provider]

    async def tick(self, provider: str) -> Tick:
        """List one provider, compare, act. One tick per provider at a time.

        Raises:
            ProviderError: the listing failed; nothing was concluded.
            LedgerUnusable: it cannot be read, or did not take a move; the rest was done.
        """
        async with self._listing_locks[provider]:
            account = await self.account(provider)
            try:
                listing = await self._providers[provider].instances()
            except Denied:
                raise
            except ProviderError:
                await self._release_unseen(provider, account)
                raise
            everything = await self._ledger.open_rentals(provider)  # after the listing: see above
            open_rentals = [r for r in everything if _is_paid_by(r, account)]
            keys = {
                i.instance_id: key
                for i in listing.instances
                if (key := self._ledger.key_in(i.label)) is not None
            }
            at = self._clock.now()
            orphans = self._note_orphans(provider, listing, keys, open_rentals, at)
            actions = plan(
                open_rentals,
                listing,
                keys,
                orphans=self._orphans[provider],
                policy=self._policies[provider],
                at=at,
            )
            if not any(isinstance(action, Frozen) for action in actions):
                self._frozen.discard(provider)
            problems = await self._carry_out(provider, actions)
            await self._bill_late(provider, listing)
            return Tick(
                listing=listing,
                actions=tuple(actions),
                orphans=orphans,
                foreign=tuple(
                    i
                    for i in listing.instances
                    if i.instance_id not in keys and self._ledger.is_foreign(i.label)
                ),
                elsewhere=tuple(r for r in everything if not _is_paid_by(r, account)),
                problems=tuple(problems),
            )

    def _note_orphans(
        self,
        provider: str,
        listing: Listing,
        keys: Mapping[str, RentalKey],
        open_rentals: Iterable[Rental],
        at: datetime,
    ) -> tuple[Orphan, ...]:
        explained_keys = {r.key for r in open_rentals}
        explained_ids = {r.instance_id for r in open_rentals}
        seen = self._orphans[provider]
        now = [
            i
            for i in listing.instances
            if i.instance_id in keys
            and keys[i.instance_id] not in explained_keys
            and i.instance_id not in explained_ids
        ]
        present = {i.instance_id for i in now}
        for gone in [known for known in seen if known not in present]:
            del seen[gone]
        return tuple(
            Orphan(i, keys[i.instance_id], seen.setdefault(i.instance_id, at)) for i in now
        )

    async def _carry_out(self, provider: str, actions: Sequence[Action]) -> list[str]:
        newest: dict[str, Rental] = {}
        overtaken: set[str] = set()
        problems: list[str] = []
        unwritten: list[LedgerUnusable] = []
        turns = asyncio.Semaphore(PROBES_AT_ONCE)

        async def attempt(action: Action) -> None:
            of = None if isinstance(action, ReleaseOrphan | Frozen) else action.rental
            if of is not None and of.key in overtaken:
                return  # all that was planned for it stood on what it was
            try:
                await self._do(provider, action, newest)
            except StaleRental:
                # Somebody else moved it first; the next tick sees what they made of it.
                if of is not None:
                    overtaken.add(of.key)
            except ProviderError as error:
                problems.append(str(error))
            except LedgerUnusable as error:
                # What is to end costs money until it is asked for; what is not, ends by no wish
                # that is not on disk.
                unwritten.append(error)
                if of is not None and of.is_live:
                    overtaken.add(of.key)

        async def ask(probe: Probe) -> None:
            async with turns:
                await attempt(probe)

        probes = [action for action in actions if isinstance(action, Probe)]
        for action in actions:
            if not isinstance(action, Probe):
                await attempt(action)
            if unwritten and isinstance(unwritten[-1], Fenced):
                raise unwritten[-1]
        # Last and side by side: a workload that says nothing keeps others waiting for seconds.
        async with asyncio.TaskGroup() as group:
            for probe in probes:
                group.create_task(ask(probe))
        if unwritten:
            raise unwritten[0]
        return problems

    async def _do(self, provider: str, action: Action, newest: dict[str, Rental]) -> None:
        """Do one action; `newest` carries the version that earlier actions of this tick made."""
        at = self._clock.now()
        match action:
            case Observe(rental, instance):
                newest[rental.key] = await self._observe(newest.get(rental.key, rental), instance)
            case Probe(rental, instance):
                await self._probe(newest.get(rental.key, rental), instance)
            case Miss(rental):
                if rental.missing_since is None:
                    after = rentals.miss(rental, at=at)
                    await self._ledger.move(rental, after, at=at, kind="missing", durable=False)
            case GiveUp(rental, reason):
                before = newest.get(rental.key, rental)
                after = rentals.give_up(before, reason, at=at)
                newest[rental.key] = await self._ledger.move(before, after, at=at)
            case Extend(rental, instance_id):
                before = newest.get(rental.key, rental)
                newest[rental.key] = await self._note_extension(before, instance_id)
                await self._extend(before, instance_id)
            case Release(rental, instance_id, duplicate):
                before = newest.get(rental.key, rental)
                if duplicate:
                    newest[rental.key] = before = await self._count_in(before, instance_id)
                    await self.release_instance(provider, instance_id)
                else:
                    newest[rental.key] = await self._release(before, instance_id)
            case Close(rental):
                await self._close(newest.get(rental.key, rental))
            case ReleaseOrphan(instance, key):
                await self.release_orphan(instance, key)
            case Frozen(vanished, held):
                if provider not in self._frozen:  # told when it begins, not on every look
                    text = f"{vanished} of {held} vanished at once"
                    await self._ledger.note(provider, "frozen", text, at=at)
                self._frozen.add(provider)

    async def _observe(self, before: Rental, instance: Instance) -> Rental:
        at = self._clock.now()
        adopted = before
        if before.state is RentalState.INTENDED:
            settle = self._policies[before.provider].settle
            adopted = rentals.confirm(
                before, instance.instance_id, at=at, settle=settle, made_at=instance.created_at
            )
        after = rentals.observe(adopted, instance, at=at)
        word = "adopted" if adopted is not before else "seen"
        text = f"instance {instance.instance_id} is {instance.state}"
        seen = await self._ledger.move(
            before, after, at=at, kind=word, text=text, durable=word == "adopted"
        )
        bought = rentals.differ(before.paid_until, seen.paid_until) or seen.billed_usd is None
        return await self._bill_block(seen) if bought and seen.paid_until is not None else seen

    async def _bill_block(self, before: Rental) -> Rental:
        """Book what was paid in advance: that money is gone, however short the rental will be."""
        if not before.is_live or Ability.PREPAID not in self._providers[before.provider].spec.can:
            return before
        try:
            billed = await self._billed(before)
        except ProviderError:
            return before  # it is asked again when it ends
        if billed is None or billed == before.billed_usd:
            return before
        after = rentals.bill(before, billed, final=False)
        text = f"${billed:.6f}"
        return await self._ledger.move(
            before, after, at=self._clock.now(), kind="billed", text=text
        )

    async def _probe(self, before: Rental, instance: Instance) -> None:
        problem = await self._prober.healthy(instance.endpoints, before.workload.health)
        self.probes[before.key] = problem
        if not problem:
            at = self._clock.now()
            after = rentals.answer(before, at=at)
            await self._ledger.move(before, after, at=at, text="healthy", durable=False)

    async def _note_extension(self, before: Rental, instance_id: str) -> Rental:
        at = self._clock.now()
        until = f"{before.paid_until:%H:%M:%S} UTC" if before.paid_until else "unknown"
        text = f"buying more time for {instance_id}, paid until {until}"
        after = rentals.extend_tried(before, at=at)
        return await self._ledger.move(before, after, at=at, kind="extend", text=text)

    async def _extend(self, before: Rental, instance_id: str) -> None:
        """Buy more time, once; whether it was bought, a later `paid_until` tells.

        Raises:
            ProviderError: it was not bought.
        """
        try:
            await self._providers[before.provider].extend(instance_id)
        except InstanceAbsent:
            return  # listings will say so, too
        except OutcomeUnknown as error:
            await self._ledger.note(before.key, "extend", error.detail, at=self._clock.now())

    async def _release_unseen(self, provider: str, account: str) -> None:
        """Go on asking for wished ends while listings fail: each minute of waiting costs money."""
        for rental in await self._ledger.open_rentals(provider):
            if not _is_paid_by(rental, account) or rental.instance_id is None:
                continue
            if not is_due_by_id(rental, self._clock.now(), again=True):
                continue
            try:
                await self._release(rental, rental.instance_id)
            except Fenced:
                raise
            except (ProviderError, StaleRental, LedgerUnusable):
                continue

    async def _release(self, before: Rental, instance_id: str) -> Rental:
        settle = self._policies[before.provider].settle
        sent = True
        try:
            await self.release_instance(before.provider, instance_id)
        except (CircuitBreakerOpen, RateLimitExceeded):
            sent = False
            raise
        finally:
            if sent:
                # Recorded even if it failed: a lost reply may have had its effect.
                at = self._clock.now()
                after = rentals.release_tried(before, at=at, settle=settle)
                before = await self._ledger.move(
                    before, after, at=at, kind="release", text=f"asked for {instance_id}"
                )
        return before

    async def release_orphan(self, instance: Instance, key: RentalKey) -> None:
        """Ask for the end of an instance that nothing explains, and have its cost booked.

        Raises:
            ProviderError: as `release_instance`.
        """
        rental = await self._ledger.get(key)
        if rental is None:
            text = f"releasing orphan {instance.instance_id}"
            await self._ledger.note(key, "orphan", text, at=self._clock.now())
        elif instance.instance_id != rental.instance_id:
            await self._count_in(rental, instance.instance_id, kind="orphan")
        self._bill_due[instance.provider][key] = self._clock.now()
        await self.release_instance(instance.provider, instance.instance_id)

    async def _count_in(self, before: Rental, instance_id: str, kind: str = "double") -> Rental:
        """Book a further instance on the rental under whose key it was made, once."""
        if instance_id in before.others:
            return before
        return await self._ledger.move(
            before,
            rentals.add_other(before, instance_id),
            at=self._clock.now(),
            kind=kind,
            text=f"releasing {instance_id}",
        )

    async def release_instance(self, provider: str, instance_id: str) -> None:
        """Ask a provider to stop an instance; one that is already gone is what we wanted.

        Raises:
            ProviderError: it did not hear us, or we cannot tell.
        """
        try:
            await self._providers[provider].release(instance_id)
        except InstanceAbsent:
            return

    async def _close(self, before: Rental) -> None:
        at = self._clock.now()
        after = rentals.close(before, at=at)
        await self._ledger.move(before, after, at=at, text="proven absent")
        self.probes.pop(before.key, None)
        await self._settle_bill(after)

    async def recall_bills(self) -> None:
        """Take up the bills that an earlier process left unsettled; for processes that stay."""
        for rental in await self._ledger.every_rental():
            due = self._bill_due.get(rental.provider)
            if due is not None and not rental.is_open and not rental.bill_final:
                due[rental.key] = self._clock.now()

    async def _settle_bill(self, rental: Rental) -> None:
        """Book what the provider says an ended rental cost; ask again later if it may yet grow."""
        due = self._bill_due[rental.provider]
        at = self._clock.now()
        due[rental.key] = at + BILL_RETRY
        try:
            billed = await self._billed(rental)
        except ProviderError:
            return  # the bill can wait; the end of the rental could not
        lag = self._policies[rental.provider].bill_lag
        final = at >= (rental.released_at or at) + lag or lag == timedelta(0)
        if billed is not None:
            after = rentals.bill(rental, billed, final=final)
            await self._ledger.move(rental, after, at=at, kind="billed", text=f"${billed:.6f}")
        if final:
            due.pop(rental.key, None)
        else:
            due[rental.key] = at + BILL_PAUSE

    async def _billed(self, rental: Rental) -> Decimal | None:
        """Return what the provider charged for all that was made under the key; None: unknown.

        Raises:
            ProviderError: it could not be asked.
        """
        provider = self._providers[rental.provider]
        total = Decimal(0)
        ids = [i for i in (rental.instance_id, *rental.others) if i is not None]
        if not ids or Ability.BILL not in provider.spec.can:
            return None
        for instance_id in ids:
            amount = await provider.billed(instance_id)
            if amount is None:
                return None
            total += amount
        return total

    async def _bill_late(self, provider: str, listing: Listing) -> None:
        """Ask for the bills that are due."""
        shown = {i.instance_id for i in listing.instances}
        at = self._clock.now()
        for key in sorted(k for k, due in self._bill_due[provider].items() if due <= at):
            rental = await self._ledger.get(key)
            if rental is None:
                del self._bill_due[provider][key]
            elif not rental.is_open and not shown.intersection(
                (rental.instance_id, *rental.others)
            ):
                with suppress(StaleRental):  # somebody booked more on it: it stays due
                    await self._settle_bill(rental)


def _is_paid_by(rental: Rental, account: str) -> bool:
    """Whether a listing of `account` can show the rental's instance; unknown counts as yes."""
    return not rental.account or not account or rental.account == account
