"""What follows from one listing: every rule of not leaking, as a pure function.

Silence never counts as absence: only a complete listing, begun after a rental's `provable_at`,
proves that nothing is there; a machine that served must be missing for as long as a listing may be
blind; and when too much vanishes at once, nothing is concluded at all. Doing what follows is the
business of `reconcile.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final

from msgspec import Struct

from gp4u.model import Instance, InstanceState, Listing, RentalKey
from gp4u.providers.contract import Ability, ProviderSpec
from gp4u.rentals import rental as rentals
from gp4u.rentals.rental import Hopeless, Rental, RentalState

MASS_SHARE: Final = 0.2
MASS_COUNT: Final = 3
"""More than this share *and* this many gone at once is more likely our own trouble."""
EXITED_AFTER_RUN_S: Final = 30.0
"""A container that ran and ended gets this long to come back before it counts as ended."""
EXITED_AT_START_S: Final = 600.0
"""One that has not run yet gets this long: `exited` can persist for minutes after a start."""
LOST_AFTER_S: Final = 600.0
"""A host that its provider cannot reach is given up after this long; it may come back."""
FIRST_PROBES_S: Final = 30.0
"""An instance that was just seen to run is probed for so long before its boot can be too late: it
may have answered since long ago, while nobody was there to ask."""
EXTEND_BEFORE: Final = timedelta(minutes=10)
"""Paid time that ends sooner is extended, if the rental is still wanted."""
EXTEND_PAUSE: Final = timedelta(minutes=5)
"""Between two purchases of time: the first must be able to show, or it is bought twice."""
PRICE_TOLERANCE: Final = 1.02
RELEASE_RETRY_MAX_S: Final = 60.0


class Policy(Struct, frozen=True, kw_only=True):
    """The times that a reconciler goes by, in seconds."""

    settle_s: float
    late_window_s: float
    bill_lag_s: float = 0.0
    rent_timeout_s: float = 60.0
    boot_timeout_s: float = 900.0
    orphan_grace_s: float = 30.0
    labelled: bool = True
    """False: listings carry no keys of ours; what has no known id is neither seen nor missed."""
    prepaid: bool = True
    """False: there is no time to be bought, whatever a listing says of its end."""

    @property
    def patience(self) -> timedelta:
        """How long after an intent a lost rent call may still take effect and show."""
        return timedelta(seconds=self.rent_timeout_s + self.late_window_s + self.settle_s)

    @property
    def late(self) -> timedelta:
        """How long after the end of a rent call its effect may still come and show."""
        return timedelta(seconds=self.late_window_s + self.settle_s)

    @property
    def bill_lag(self) -> timedelta:
        """How long after the end of a rental its bill may still grow."""
        return timedelta(seconds=self.bill_lag_s)

    @property
    def settle(self) -> timedelta:
        """How long after our last call a listing may be blind to its effect."""
        return timedelta(seconds=self.settle_s)


class Observe(Struct, frozen=True):
    """A listing shows the rental's instance: adopt it if need be, and take over what it says."""

    rental: Rental
    instance: Instance


class Probe(Struct, frozen=True):
    """The instance runs: ask the workload."""

    rental: Rental
    instance: Instance


class Miss(Struct, frozen=True):
    """A complete listing lacks a machine that was shown before: remember since when."""

    rental: Rental


class GiveUp(Struct, frozen=True):
    """A live rental has no future: begin to release it."""

    rental: Rental
    reason: Hopeless


class Extend(Struct, frozen=True):
    """The time that was paid for is nearly over, and the rental is still wanted: buy more."""

    rental: Rental
    instance_id: str


class Release(Struct, frozen=True):
    """Ask the provider to stop an instance of a releasing rental, or one too many of a live one."""

    rental: Rental
    instance_id: str
    duplicate: bool = False


class Close(Struct, frozen=True):
    """Absence is proven: the end."""

    rental: Rental


class ReleaseOrphan(Struct, frozen=True):
    """An instance with our key that no open rental explains, and that outlived its grace."""

    instance: Instance
    key: RentalKey


class Frozen(Struct, frozen=True):
    """Too much vanished at once: nothing is concluded from this listing."""

    vanished: int
    held: int


Action = Observe | Probe | Miss | GiveUp | Extend | Release | Close | ReleaseOrphan | Frozen


class Orphan(Struct, frozen=True):
    """An instance of ours that nothing explains, and when we first saw it so."""

    instance: Instance
    key: RentalKey
    first_seen_at: datetime


def plan(
    open_rentals: Sequence[Rental],
    listing: Listing,
    keys: Mapping[str, RentalKey],
    *,
    orphans: Mapping[str, datetime],
    policy: Policy,
    at: datetime,
) -> list[Action]:
    """Return what follows from one listing, in the order in which it should be done.

    `keys` maps instance ids to our key on their label; `orphans` maps instance ids to when they
    were first seen unexplained. `open_rentals` must have been read after the listing.
    """
    by_key: dict[str, list[Instance]] = {}
    by_id = {i.instance_id: i for i in listing.instances}
    for instance in listing.instances:
        if (key := keys.get(instance.instance_id)) is not None:
            by_key.setdefault(key, []).append(instance)

    shown: dict[str, list[Instance]] = {}
    for r in open_rentals:
        mine = list(by_key.get(r.key, ()))
        known = by_id.get(r.instance_id) if r.instance_id is not None else None
        if known is not None and known not in mine:
            mine.append(known)  # its label was lost or rewritten; the id is the second way
        shown[r.key] = sorted(mine, key=lambda i: (i.instance_id != r.instance_id, i.instance_id))

    held = [r for r in open_rentals if r.confirmed_at is not None and r.is_live]
    vanished = [r for r in held if not shown[r.key]]
    freeze = len(vanished) > MASS_COUNT and len(vanished) > MASS_SHARE * len(held)

    actions: list[Action] = []
    if freeze:
        actions.append(Frozen(len(vanished), len(held)))
    for r in open_rentals:
        if shown[r.key]:
            actions += _shown(r, shown[r.key], policy, at)
            continue
        trusted = listing.complete and not freeze
        if is_due_by_id(r, at, again=not trusted):
            # Its end is wished, so it is asked for by id, whatever the listing knows or hides.
            actions.append(Release(r, r.instance_id or ""))
        elif r.instance_id is None and not policy.labelled:
            continue  # nobody can tell: only a person can end it
        elif trusted and listing.began_at > _provable_at(r, policy):
            actions += _absent(r, listing.began_at, policy)
    explained = {i.instance_id for mine in shown.values() for i in mine}
    for instance_id, key in keys.items():
        if instance_id in explained:
            continue
        first = orphans.get(instance_id)
        if first is not None and (at - first).total_seconds() >= policy.orphan_grace_s:
            actions.append(ReleaseOrphan(by_id[instance_id], key))
    return actions


def _provable_at(r: Rental, policy: Policy) -> datetime:
    """Return the moment after which a listing without the rental's instance proves something.

    One that was confirmed but never listed gets the whole late window: it is more likely to be slow
    to show than not to be there.
    """
    if r.is_live and r.confirmed_at is not None and r.seen_at is None:
        late = timedelta(seconds=policy.late_window_s) + policy.settle
        return max(r.provable_at, r.confirmed_at + late)
    return r.provable_at


def _absent(r: Rental, began_at: datetime, policy: Policy) -> list[Action]:
    """Return what follows for a rental that a listing begun then is proven to lack."""
    if r.is_live:
        if r.confirmed_at is None:
            return [GiveUp(r, Hopeless.NEVER_RENTED)]
        if r.seen_at is None:
            return [GiveUp(r, Hopeless.NEVER_LISTED)]
        # One listing without it can be the marketplace's own trouble: it must be so for a while.
        if r.missing_since is None:
            return [Miss(r)]
        gone = began_at - r.missing_since >= policy.settle
        return [GiveUp(r, Hopeless.INSTANCE_LOST)] if gone else []
    return [Close(r)]


def is_due_by_id(r: Rental, at: datetime, *, again: bool) -> bool:
    """Whether to ask for the end of an instance that is not shown: once, or `again` and again."""
    if r.state is not RentalState.RELEASING or r.instance_id is None:
        return False
    return not r.release_tries or (again and _may_try_release(r, at))


def _shown(r: Rental, mine: list[Instance], policy: Policy, at: datetime) -> list[Action]:
    """Return what follows for one rental of which a listing shows instances, its own one first."""
    instance, *extra = mine
    if r.instance_id is not None and instance.instance_id != r.instance_id:
        # The one that serves is only missing from this listing: what is there is one too many.
        extra = mine
    actions: list[Action] = [Release(r, i.instance_id, duplicate=True) for i in extra]
    if extra is mine:
        return actions
    if rentals.tells_something_new(r, instance) or r.state is RentalState.INTENDED:
        actions.append(Observe(r, instance))
    if r.state is RentalState.RELEASING:
        if _may_try_release(r, at):
            actions.append(Release(r, instance.instance_id))
        return actions
    reason = _hopeless(r, instance, policy, at)
    if reason is not None:
        # Asked for at once: the process that gave it up may not live to the next tick.
        actions += [GiveUp(r, reason), Release(r, instance.instance_id)]
        return actions
    if policy.prepaid and _needs_time(r, instance, at):
        actions.append(Extend(r, instance.instance_id))
    if instance.state is InstanceState.RUNNING and r.state is not RentalState.RUNNING:
        actions.append(Probe(r, instance))
    return actions


def _needs_time(r: Rental, instance: Instance, at: datetime) -> bool:
    """Whether more time should be bought now."""
    if instance.paid_until is None or instance.paid_until - at >= EXTEND_BEFORE:
        return False
    return r.extend_tried_at is None or at - r.extend_tried_at >= EXTEND_PAUSE


def _hopeless(r: Rental, instance: Instance, policy: Policy, at: datetime) -> Hopeless | None:
    """Return why a shown instance has no future."""
    since = r.changed_at if r.seen is instance.state and r.changed_at else at
    for_s = (at - since).total_seconds()
    price = instance.price_usd_per_hour
    if not r.ever_ran and price is not None:
        ceiling = float(r.ceiling_usd_per_hour) * PRICE_TOLERANCE
        if float(price) > ceiling:
            return Hopeless.PRICE_ABOVE_CEILING
    match instance.state:
        case InstanceState.STOPPED:
            return Hopeless.STOPPED_BY_PROVIDER
        case InstanceState.FAILED:
            return Hopeless.CANNOT_START
        case InstanceState.EXITED:
            grace_s = EXITED_AFTER_RUN_S if r.ever_ran else EXITED_AT_START_S
            if for_s >= grace_s:
                return Hopeless.WORKLOAD_EXITED
        case InstanceState.OFFLINE:
            if for_s >= LOST_AFTER_S:
                return Hopeless.HOST_OFFLINE
        case InstanceState.BOOTING | InstanceState.RUNNING | InstanceState.UNKNOWN:
            pass
    begun = r.confirmed_at or r.intended_at
    if instance.state is InstanceState.RUNNING and for_s < FIRST_PROBES_S:
        return None
    if r.state is not RentalState.RUNNING and (at - begun).total_seconds() > policy.boot_timeout_s:
        return Hopeless.BOOT_TIMEOUT
    return None


def _may_try_release(r: Rental, at: datetime) -> bool:
    """Whether the next try is due: at once, then after 2, 4, 8 ... seconds, for ever."""
    if r.release_tried_at is None:
        return True
    wait_s = min(RELEASE_RETRY_MAX_S, 2.0 ** min(r.release_tries, 10))
    return (at - r.release_tried_at).total_seconds() >= wait_s


def make_policy(
    spec: ProviderSpec,
    *,
    settle_s: float | None,
    late_window_s: float | None,
    bill_lag_s: float | None,
    rent_timeout_s: float,
    boot_timeout_s: float,
    orphan_grace_s: float,
) -> Policy:
    """Return a provider's times: the settings' where given, else its own."""
    return Policy(
        settle_s=spec.settle_s if settle_s is None else settle_s,
        late_window_s=spec.late_window_s if late_window_s is None else late_window_s,
        bill_lag_s=spec.bill_lag_s if bill_lag_s is None else bill_lag_s,
        rent_timeout_s=rent_timeout_s,
        boot_timeout_s=boot_timeout_s,
        orphan_grace_s=orphan_grace_s,
        labelled=Ability.LABELS in spec.can,
        prepaid=Ability.PREPAID in spec.can,
    )
