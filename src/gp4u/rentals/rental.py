"""A rental: our durable record of one attempt to hold one machine, from intent to release.

    intended -> starting -> running -> releasing -> released

The first three are *live*, all but the last are *open*. Any live state may go to `releasing`, and a
`reason` says why. `released` is the only end, and means that the provider told us that nothing of
it is left. There is no failed state: a failure is a reason to release.

This file knows which moves are legal and what a rental has cost. It is pure: it takes the time as
an argument, and neither stores anything (`ledger.py`) nor talks to anybody (`broker.py`,
`reconcile.py`).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from datetime import datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from random import Random
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from gp4u.errors import IllegalMove
from gp4u.model import Endpoint, Instance, InstanceState, Offer, RentalKey, Workload

KEY_PREFIX: Final = "gp4u"
PAID_TOLERANCE: Final = timedelta(minutes=2)
"""An end of paid time that moved by less is no news: markets round it to minutes."""
_KEY_PARTS: Final = 4
_ALPHABET: Final = "abcdefghijklmnopqrstuvwxyz234567"


class RentalState(StrEnum):
    """Where a rental stands; see the module's docstring for the order."""

    INTENDED = "intended"
    STARTING = "starting"
    RUNNING = "running"
    RELEASING = "releasing"
    RELEASED = "released"


LIVE: Final = frozenset({RentalState.INTENDED, RentalState.STARTING, RentalState.RUNNING})
OPEN: Final = LIVE | {RentalState.RELEASING}


class Hopeless(StrEnum):
    """Why a live rental that its owner still wants is given up: its machine will not serve."""

    NEVER_RENTED = "never_rented"
    NEVER_LISTED = "never_listed"
    INSTANCE_LOST = "instance_lost"
    PRICE_ABOVE_CEILING = "price_above_ceiling"
    STOPPED_BY_PROVIDER = "stopped_by_provider"
    CANNOT_START = "cannot_start"
    WORKLOAD_EXITED = "workload_exited"
    HOST_OFFLINE = "host_offline"
    BOOT_TIMEOUT = "boot_timeout"


class Rental(Struct, frozen=True, kw_only=True):
    """One attempt to hold one machine. Every move makes a new value with a higher version."""

    key: RentalKey
    owner: str
    """Whom it serves: `cli:<name>`, `api:<id>`, `pod:<uid>`."""
    provider: str
    offer_id: str
    account: str
    """The provider's account that pays, as it tells accounts apart; empty where it does not."""
    machine_id: str | None
    gpu_model: str
    gpu_count: int
    region: str | None
    workload: Workload
    """Without its environment, files and logins: they may be secret, and only the rent call needs
    them."""
    price_usd_per_hour: Decimal
    """All-in; of an `estimated` one it is replaced by what the market then charges."""
    gpu_usd_per_hour: Decimal
    storage_usd_per_hour: Decimal
    ceiling_usd_per_hour: Decimal
    """Above this the machine is released on first sight."""
    estimated: bool = False
    """Whether the price is still the offer's estimate."""
    intended_at: datetime
    provable_at: datetime
    """Only a complete listing begun after this moment proves that nothing is there."""
    state: RentalState = RentalState.INTENDED
    version: int = 1
    epoch: int = 1
    reason: str = ""
    """Why it left the live states."""
    instance_id: str | None = None
    confirmed_at: datetime | None = None
    """When the provider made something: by its reply, or as it dates what a listing shows."""
    running_at: datetime | None = None
    """When the workload first answered."""
    releasing_at: datetime | None = None
    released_at: datetime | None = None
    endpoints: tuple[Endpoint, ...] = ()
    seen: InstanceState | None = None
    """The provider's last word on the instance."""
    seen_status: str = ""
    seen_at: datetime | None = None
    """When a listing last showed it."""
    missing_since: datetime | None = None
    """When a complete listing first lacked what an earlier one had shown; None: it is there."""
    ever_ran: bool = False
    exit_code: int | None = None
    """With what the workload ended last, where the market tells; None while it runs."""
    paid_until: datetime | None = None
    """On prepaid markets: when the time that was bought runs out, as a listing last said."""
    extend_tried_at: datetime | None = None
    """When more time was last asked for, whatever came of it."""
    changed_at: datetime | None = None
    """When `seen` last changed."""
    gpu_seconds: float = 0.0
    """Seconds of GPU time before `gpu_since`."""
    gpu_since: datetime | None = None
    """Start of the GPU time that still runs."""
    release_tries: int = 0
    release_tried_at: datetime | None = None
    billed_usd: Decimal | None = None
    """The provider's own figure, once it gave one."""
    bill_final: bool = False
    """Whether the provider's figure can no longer grow."""
    others: tuple[str, ...] = ()
    """Further instances that were made under this key: duplicates, and what came too late."""

    @property
    def is_live(self) -> bool:
        """Whether the owner still wants it, so that it blocks another rental of that owner."""
        return self.state in LIVE

    @property
    def is_open(self) -> bool:
        """Whether money may still run for it."""
        return self.state in OPEN


def mint_key(installation: str, secret: bytes, random: Random) -> RentalKey:
    """Return a new key: prefix, installation, 50 random bits, and a check that only we can make.

    The shape fits every market's label and Kubernetes names: lower-case letters, digits, dashes,
    33 characters, the telling part first.
    """
    nonce = "".join(random.choice(_ALPHABET) for _ in range(10))
    return RentalKey(f"{KEY_PREFIX}-{installation}-{nonce}-{_check(installation, nonce, secret)}")


def key_in(label: str | None, installation: str, secret: bytes) -> RentalKey | None:
    """Return our key if the label starts with one that this installation made, else None."""
    if label is None or not label.startswith(f"{KEY_PREFIX}-{installation}-"):
        return None
    parts = label.split()[0].split("-")
    if len(parts) != _KEY_PARTS:
        return None
    _, _, nonce, check = parts
    if not hmac.compare_digest(check.encode(), _check(installation, nonce, secret).encode()):
        return None
    return RentalKey("-".join(parts))


def is_foreign_key(label: str | None, installation: str, secret: bytes) -> bool:
    """Whether the label looks like a key of this software that this installation did not make."""
    return (
        label is not None
        and label.startswith(f"{KEY_PREFIX}-")
        and key_in(label, installation, secret) is None
    )


def _check(installation: str, nonce: str, secret: bytes) -> str:
    digest = hmac.new(secret, f"{installation}-{nonce}".encode(), hashlib.sha256).digest()
    return base64.b32encode(digest).decode().lower()[:10]


def intend(
    *,
    key: RentalKey,
    owner: str,
    offer: Offer,
    workload: Workload,
    account: str = "",
    ceiling_usd_per_hour: Decimal,
    at: datetime,
    patience: timedelta,
    epoch: int,
) -> Rental:
    """Return the intent to rent an offer; `patience` is how long a lost call may take effect."""
    return Rental(
        key=key,
        owner=owner,
        provider=offer.provider,
        offer_id=offer.offer_id,
        account=account,
        machine_id=offer.machine_id,
        gpu_model=offer.gpu_model,
        gpu_count=offer.gpu_count,
        region=offer.region.code if offer.region else None,
        workload=replace(workload, env={}, files=(), before=(), login=None),
        price_usd_per_hour=offer.price_usd_per_hour,
        gpu_usd_per_hour=offer.gpu_usd_per_hour,
        storage_usd_per_hour=offer.storage_usd_per_hour,
        ceiling_usd_per_hour=ceiling_usd_per_hour,
        estimated=offer.estimated,
        intended_at=at,
        provable_at=at + patience,
        epoch=epoch,
    )


def confirm(
    rental: Rental,
    instance_id: str,
    *,
    at: datetime,
    settle: timedelta,
    made_at: datetime | None = None,
) -> Rental:
    """`intended -> starting`: the provider made an instance, told by its reply or by a listing.

    `made_at` is the provider's date of it, where a listing has one: it costs from then on, however
    late we look.
    """
    if rental.state is not RentalState.INTENDED:
        raise IllegalMove(f"{rental.key}: cannot confirm an instance in state {rental.state}")
    return _moved(
        rental,
        RentalState.STARTING,
        instance_id=instance_id,
        confirmed_at=_made_at(rental, made_at, at),
        provable_at=at + settle,
    )


def learn(rental: Rental, instance_id: str, *, at: datetime) -> Rental:
    """Record what a reply told of a rental that is being released already: it costs as well."""
    return replace(
        rental,
        version=rental.version + 1,
        instance_id=instance_id,
        confirmed_at=rental.confirmed_at or at,
    )


def doubt(rental: Rental, *, at: datetime, late: timedelta) -> Rental:
    """Record that the rent call ended without a clear answer; it may take effect for `late` more.

    The call may have waited for its turn before it was sent, so patience counts from its end.
    """
    if rental.state is not RentalState.INTENDED:
        raise IllegalMove(f"{rental.key}: there is no rent call in state {rental.state}")
    return replace(
        rental, version=rental.version + 1, provable_at=max(rental.provable_at, at + late)
    )


def add_other(rental: Rental, instance_id: str) -> Rental:
    """Record a further instance that was made under this key, in any state: it cost money too."""
    return replace(rental, version=rental.version + 1, others=(*rental.others, instance_id))


def observe(rental: Rental, instance: Instance, *, at: datetime) -> Rental:
    """Take over what a listing says of the instance; also starts and stops the GPU's clock."""
    if not rental.is_open:
        raise IllegalMove(f"{rental.key}: is released, yet a listing shows {instance.instance_id}")
    running = instance.state is InstanceState.RUNNING
    gpu_seconds, gpu_since = rental.gpu_seconds, rental.gpu_since
    if running and gpu_since is None:
        gpu_since = at
    elif not running and gpu_since is not None:
        gpu_seconds, gpu_since = gpu_seconds + (at - gpu_since).total_seconds(), None
    changed = instance.state is not rental.seen
    told = instance.price_usd_per_hour if rental.estimated else None
    if told is not None:
        gpu = max(Decimal(0), told - rental.storage_usd_per_hour)
        rental = replace(rental, price_usd_per_hour=told, gpu_usd_per_hour=gpu, estimated=False)
    return replace(
        rental,
        version=rental.version + 1,
        instance_id=instance.instance_id,
        confirmed_at=rental.confirmed_at or _made_at(rental, instance.created_at, at),
        endpoints=instance.endpoints,
        seen=instance.state,
        seen_status=instance.status,
        seen_at=at,
        missing_since=None,
        paid_until=instance.paid_until,
        ever_ran=rental.ever_ran or running,
        exit_code=_exit_code(rental, instance),
        changed_at=at if changed else rental.changed_at,
        gpu_seconds=gpu_seconds,
        gpu_since=gpu_since,
    )


def tells_something_new(rental: Rental, instance: Instance) -> bool:
    """Whether `observe` would change more than the time of the last look."""
    return (
        rental.instance_id != instance.instance_id
        or rental.seen is not instance.state
        or rental.seen_status != instance.status
        or rental.endpoints != instance.endpoints
        or rental.missing_since is not None
        or differ(rental.paid_until, instance.paid_until)
        or rental.exit_code != _exit_code(rental, instance)
        or (rental.estimated and instance.price_usd_per_hour is not None)
    )


def _exit_code(rental: Rental, instance: Instance) -> int | None:
    """Return with what the workload ended, as far as it was ever told; nothing once it runs."""
    if instance.state is InstanceState.RUNNING:
        return None
    return rental.exit_code if instance.exit_code is None else instance.exit_code


def differ(one: datetime | None, other: datetime | None) -> bool:
    """Whether two ends of paid time are not the same one; a market may round or estimate it."""
    if one is None or other is None:
        return one is not other
    return abs(one - other) > PAID_TOLERANCE


def miss(rental: Rental, *, at: datetime) -> Rental:
    """Record that a complete listing lacks what an earlier one had shown."""
    if not rental.is_live or rental.seen_at is None:
        raise IllegalMove(f"{rental.key}: cannot be missed in state {rental.state}")
    return replace(rental, version=rental.version + 1, missing_since=at)


def extend_tried(rental: Rental, *, at: datetime) -> Rental:
    """Record, before it is asked for, that more time is: a crash must not buy it twice."""
    if not rental.is_live:
        raise IllegalMove(f"{rental.key}: no more time is wanted in state {rental.state}")
    return replace(rental, version=rental.version + 1, extend_tried_at=at)


def answer(rental: Rental, *, at: datetime) -> Rental:
    """`starting -> running`: the workload answered."""
    if rental.state is not RentalState.STARTING:
        raise IllegalMove(f"{rental.key}: cannot become running from {rental.state}")
    return _moved(rental, RentalState.RUNNING, running_at=at)


def give_up(
    rental: Rental,
    reason: str,
    *,
    at: datetime,
    provable_at: datetime | None = None,
    instance_id: str | None = None,
) -> Rental:
    """Any live state `-> releasing`. `instance_id` adds what an error reply let slip."""
    if not rental.is_live:
        raise IllegalMove(f"{rental.key}: cannot begin to release in state {rental.state}")
    made_at = at if instance_id is not None else None
    return _moved(
        rental,
        RentalState.RELEASING,
        reason=reason,
        releasing_at=at,
        provable_at=provable_at or rental.provable_at,
        instance_id=instance_id or rental.instance_id,
        confirmed_at=rental.confirmed_at or made_at,
    )


def release_tried(rental: Rental, *, at: datetime, settle: timedelta) -> Rental:
    """Record that the provider was asked to release; pushes out what can prove absence."""
    if rental.state is not RentalState.RELEASING:
        raise IllegalMove(f"{rental.key}: cannot ask for a release in state {rental.state}")
    return replace(
        rental,
        version=rental.version + 1,
        release_tries=rental.release_tries + 1,
        release_tried_at=at,
        provable_at=max(rental.provable_at, at + settle),
    )


def close(rental: Rental, *, at: datetime) -> Rental:
    """`releasing -> released`: a complete listing proved that nothing is left."""
    if rental.state is not RentalState.RELEASING:
        raise IllegalMove(f"{rental.key}: cannot close in state {rental.state}")
    gpu_seconds = rental.gpu_seconds
    if rental.gpu_since is not None:
        end = rental.release_tried_at or rental.seen_at or at
        gpu_seconds += max(0.0, (end - rental.gpu_since).total_seconds())
    return _moved(
        rental, RentalState.RELEASED, released_at=at, gpu_seconds=gpu_seconds, gpu_since=None
    )


def bill(rental: Rental, amount_usd: Decimal, *, final: bool) -> Rental:
    """Record the provider's own figure; `final` says that it can no longer grow."""
    return replace(rental, version=rental.version + 1, billed_usd=amount_usd, bill_final=final)


def cost_usd(rental: Rental, *, at: datetime) -> Decimal:
    """Return what the rental has cost up to `at`: the provider's final figure, else our estimate.

    Until the figure is final it may lack what was not charged yet, so the larger of the two counts.
    The estimate counts the GPU while a listing showed it running, and the disk from the moment the
    provider made the instance to the end.
    """
    if rental.billed_usd is not None and rental.bill_final:
        return rental.billed_usd
    gpu_s = rental.gpu_seconds
    if rental.gpu_since is not None:
        gpu_s += max(0.0, (at - rental.gpu_since).total_seconds())
    disk_s = 0.0
    if rental.confirmed_at is not None:
        end = (rental.release_tried_at or rental.released_at) if not rental.is_live else None
        disk_s = max(0.0, ((end or at) - rental.confirmed_at).total_seconds())
    per_hour = rental.gpu_usd_per_hour * Decimal(str(gpu_s))
    per_hour += rental.storage_usd_per_hour * Decimal(str(disk_s))
    return max(per_hour / 3600, rental.billed_usd or Decimal(0))


def _made_at(rental: Rental, told: datetime | None, at: datetime) -> datetime:
    """Return a provider's date of an instance as far as it can be: between the intent and now."""
    return max(rental.intended_at, min(told or at, at))


def _moved(rental: Rental, state: RentalState, **changes: object) -> Rental:
    return replace(rental, version=rental.version + 1, state=state, **changes)
