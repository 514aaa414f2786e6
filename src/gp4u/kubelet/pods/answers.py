"""What a rent brought, and what it told on its way, as Events and as a slot; pure.

The broker speaks of candidates and errors; a pod has a reason to wait, a time to try again, and
Events that say why this machine was chosen, or why none was.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from msgspec.structs import replace

from gp4u.errors import (
    BadInput,
    BudgetRefused,
    CalledOff,
    CircuitBreakerOpen,
    LedgerUnusable,
    NothingFits,
    OfferGone,
    OwnerHasRental,
    ProviderError,
    RateLimitExceeded,
    Throttled,
    Unavailable,
)
from gp4u.kubelet.pods import wording
from gp4u.kubelet.pods.memory import CREATING, Slot, Why
from gp4u.kubelet.pods.renting import Withdrawn
from gp4u.kubelet.pods.runs import missed
from gp4u.kubelet.pods.spending import Overspent
from gp4u.kubelet.pods.wording import News
from gp4u.kubelet.spec.annotations import Wish
from gp4u.model import Decision
from gp4u.rentals.broker import (
    Decided,
    Dropped,
    Intended,
    PassedOver,
    Progress,
    Rented,
    Settled,
    Unsettled,
    Waiting,
    Watched,
)
from gp4u.rentals.rental import Rental
from gp4u.telemetry import clean

TAKEN_WAIT_S: Final = 2.0
"""After everything that fitted was taken by others."""
_TEXT: Final = 600


def news_of(progress: Progress, decision: Decision | None, wish: Wish | None) -> Iterator[News]:
    """Yield what a step of a rent is worth; `decision` is the one that the rent is made by."""
    match progress:
        case Intended(rental, candidate):
            if decision is not None:
                text = wording.selected(candidate, decision)
                yield News("Normal", "OfferSelected", f"{_narrowed(wish)}{text}")
            renting = f"Renting offer {rental.offer_id} of {rental.provider} as {rental.key}"
            yield News("Normal", "InstanceRenting", renting)
        case Rented(rental):
            text = f"{rental.provider} made instance {rental.instance_id} for {rental.key}"
            yield News("Normal", "InstanceRented", text)
        case Unsettled(rental, detail):
            text = f"nobody knows yet whether {rental.provider} rented it out: {detail}"
            yield News("Warning", "RentOutcomeUnknown", clean(text, _TEXT))
        case Dropped(reason="not_sent" | "throttled"):
            return  # the market wants patience; the waiting container says so
        case Dropped(rental, reason):
            text = f"offer {rental.offer_id} of {rental.provider} came to nothing: {reason}"
            yield News("Warning", "OfferDropped", clean(text, _TEXT))
        case PassedOver(provider, reason):
            text = f"{provider} cannot run this pod: {reason}"
            yield News("Warning", "MarketPassedOver", clean(text, _TEXT))
        case Decided() | Waiting() | Watched() | Settled():
            return


def after_rent(
    slot: Slot, outcome: Rental | Exception, wish: Wish | None, *, now_s: float, again_s: float
) -> tuple[Slot, tuple[News, ...]]:
    """Return the slot once its rent has ended, and what to tell of it.

    `again_s` is when to look again where only time or the market can help. A rental that came to
    nothing on the way is settled by this.
    """
    slot = replace(slot, renting=False)
    if isinstance(outcome, Rental):
        return replace(slot, rental=outcome, why=CREATING), ()
    if isinstance(outcome, CalledOff):
        return slot, ()  # what that means is read from the ledger, as of any machine
    if slot.rental is not None and not slot.rental.is_live:
        slot = replace(slot, settled=slot.rental.key, replace=False)
    match outcome:
        case Withdrawn() | OwnerHasRental():
            return slot, ()
        case NothingFits(decision=decision):
            text = f"{_narrowed(wish)}{wording.nothing_fits(decision)}"
            slot = replace(slot, why=Why("NoOffer", text), rent_at_s=again_s)
            return slot, (News("Warning", "NoOffer", text),)
        case BudgetRefused():
            text = clean(str(outcome), _TEXT)
            slot = replace(slot, why=Why("BudgetExceeded", text), rent_at_s=again_s)
            return slot, (News("Warning", "BudgetExceeded", text),)
        case Overspent(wait_s=wait_s):
            text, again_s = str(outcome), max(again_s, now_s + wait_s)
            slot = replace(slot, why=Why("SpendCapReached", text), rent_at_s=again_s)
            return slot, (News("Warning", "SpendCapReached", text),)
        case BadInput():
            text = clean(f"no market that has a fitting offer can run this: {outcome}", _TEXT)
            slot = replace(slot, why=Why("NoOffer", text), rent_at_s=again_s)
            return slot, (News("Warning", "NoOffer", text),)
        case LedgerUnusable():
            text = clean(f"nothing can be rented now: {outcome}", _TEXT)
            slot = replace(slot, why=Why("LedgerUnusable", text), rent_at_s=again_s)
            return slot, (News("Warning", "LedgerUnusable", text),)
        case OfferGone():
            # Others were faster, most of them ours: there is more, and it is looked for at once.
            text = clean(str(outcome), _TEXT)
            slot = replace(
                slot, why=Why("RentFailed", text), rent_at_s=min(again_s, now_s + TAKEN_WAIT_S)
            )
            return slot, (News("Warning", "RentFailed", text),)
        case CircuitBreakerOpen() | RateLimitExceeded() | Throttled() | Unavailable():
            # The market's own trouble: no reason to wait for long.
            text = clean(str(outcome), _TEXT)
            slot = replace(slot, why=Why("RentFailed", text), rent_at_s=again_s)
            return slot, (News("Warning", "RentFailed", text),)
        case ProviderError():
            text = clean(str(outcome), _TEXT)
        case _:
            text = f"renting failed: {type(outcome).__name__}"
    slot = missed(slot, Why("RentFailed", text), now_s=now_s, avoid=None)
    wait_s = slot.rent_at_s - now_s
    return slot, (News("Warning", "RentFailed", f"{text}; tried again in {wait_s:.0f} s"),)


def _narrowed(wish: Wish | None) -> str:
    """Say for whose sake the choice was narrowed beyond what the pod asks for; mostly nothing."""
    if wish is None or not wish.raised_by_secrets:
        return ""
    return f"only {wish.tier} hosts, for the pod's Secrets; "
