"""The whole exception tree, and who acts on each branch.

    Gp4uError
      BadInput                 a value is out of bounds; names field, value, bound
        UnknownGpu             no such GPU model; carries the nearest names
        NoSuch                 nothing has this name; carries the known ones
        SettingsError          variables are bad; carries every one      -> the start stops
      ProviderError            carries provider, operation, detail
        Unavailable            transport, 5xx, timeout of a safe call   -> backoff; breaker counts
        Throttled              429                                      -> backoff; not a failure
        Denied                 bad key, 401, 403                        -> nobody retries
        Malformed              the reply breaks its schema              -> no retry; breaker counts
        Refused                understood and declined (credit, arguments) -> nobody retries
        CircuitBreakerOpen     we refused; nothing was sent             -> book serves what it has
        RateLimitExceeded      we refused; nothing was sent             -> book serves what it has
        OfferGone              taken, or the price moved                -> broker takes the next one
        OutcomeUnknown         the rent may have worked                 -> reconcile alone
        InstanceAbsent         already gone                             -> success for release
      NoneHealthy              nobody to hand work to; says who is not -> the caller waits
      MarketClosed             a market that is not open to us, and why -> the caller prints why
      BudgetRefused            renting would break a budget             -> nothing was sent
      NothingFits              no candidate; carries the decision       -> the caller prints why
      OwnerHasRental           a second live rental for one owner       -> caller shows the first
      CalledOff                released by somebody while it was being rented -> no other one
      IllegalMove              a bug, or a stale copy of a rental       -> loud at its rim
      StaleRental              somebody else moved the rental first     -> re-read, decide again
      LedgerLocked             another process holds the ledger         -> exit code 8
      LedgerUnusable           corrupt, read-only, full or too new      -> no intent, so no rent
        Fenced                 another process took over                -> this one may only end
      KubeError                the API server said no; carries verb, path, detail
        KubeUnavailable        transport, 429, 5xx                      -> backoff, for ever
        KubeDenied             401, 403                                 -> named, degrade by feature
        KubeConflict           409                                      -> re-read, decide again
          KubeExists           409 of a create                          -> read what is there
        KubeAbsent             404                                      -> success for a delete
        KubeGone               410: the version is too old              -> relist
        KubeInvalid            400, 422: what we sent is wrong          -> ours or the user's
      ServerUnavailable        the GP4U server does not answer as one   -> the command line says so
      ServerDenied             it wants another token                   -> the command line says so

An expected answer is a value (`Rejection`), not an exception. Provider errors are raised in
`providers/`, `CircuitBreakerOpen` and `RateLimitExceeded` in `resilience/`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gp4u.model import Decision, RentalKey


class Gp4uError(Exception):
    """Everything this package raises on purpose."""


class BadInput(Gp4uError):
    """A value is out of bounds; the text names the field, the value and the bound."""

    def __init__(self, field: str, value: object, bound: str) -> None:
        self.field, self.value, self.bound = field, value, bound
        super().__init__(f"{field}: {value!r} is not valid: {bound}")


class UnknownGpu(BadInput):
    """No GPU model has this name; `nearest` holds the closest known names, best first."""

    def __init__(self, field: str, value: str, nearest: tuple[str, ...]) -> None:
        self.nearest = nearest
        hint = f"did you mean {', '.join(nearest)}?" if nearest else "no known name is close to it"
        super().__init__(field, value, f"unknown GPU model; {hint}")


class NoSuch(BadInput):
    """Nothing has this name: no provider, rental, offer or decision; `known` are names there are.

    `known` may be empty where there are too many, or none.
    """

    def __init__(
        self, field: str, value: str, known: tuple[str, ...] = (), *, hint: str = ""
    ) -> None:
        self.known = known
        told = f"known are {', '.join(known)}" if known else "there is none"
        super().__init__(field, value, hint or told)


class SettingsError(BadInput):
    """Variables are out of bounds; `problems` lists every one, and the text has a line for each."""

    def __init__(self, problems: tuple[BadInput, ...]) -> None:
        first = problems[0]
        super().__init__(first.field, first.value, first.bound)
        self.problems = problems
        self.args = ("\n".join(str(each) for each in problems),)


class ProviderError(Gp4uError):
    """Something about one call to one provider; `detail` is cleaned and short enough for a log."""

    status: int | None = None
    """Of the HTTP reply that it was read from; None where there was no reply. Set by `http.py`."""

    def __init__(self, provider: str, operation: str, detail: str = "") -> None:
        self.provider, self.operation, self.detail = provider, operation, detail
        super().__init__(
            f"{provider} {operation}: {detail}" if detail else f"{provider} {operation}"
        )


class Unavailable(ProviderError):
    """Transport failure, 5xx, or the deadline of a call that is safe to repeat.

    `sent` is False when no byte left this machine, which makes even a rent safe to try again.
    """

    def __init__(
        self, provider: str, operation: str, detail: str = "", *, sent: bool = True
    ) -> None:
        self.sent = sent
        super().__init__(provider, operation, detail)


class Throttled(ProviderError):
    """The provider said 429; `retry_after_s` is its own word on how long to wait, if any."""

    def __init__(
        self, provider: str, operation: str, detail: str = "", *, retry_after_s: float | None = None
    ) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(provider, operation, detail)


class Denied(ProviderError):
    """The key is wrong, expired, or lacks a permission."""


class Malformed(ProviderError):
    """The reply is not what the provider's contract says."""


class Refused(ProviderError):
    """The provider understood and declined; `code` is its own word (`insufficient_credit`, ...).

    A refused rent can still have made an instance (Vast: a bid below the floor leaves a stopped,
    billing contract). Then `instance_id` says which one, and it must be released.
    """

    def __init__(
        self,
        provider: str,
        operation: str,
        detail: str = "",
        *,
        code: str = "",
        instance_id: str | None = None,
    ) -> None:
        self.code, self.instance_id = code, instance_id
        super().__init__(provider, operation, detail)


class CircuitBreakerOpen(ProviderError):
    """The breaker is open: nothing was sent. `retry_in_s` is the time to the next trial."""

    def __init__(self, provider: str, operation: str, *, retry_in_s: float) -> None:
        self.retry_in_s = retry_in_s
        detail = f"circuit breaker is OPEN, next trial in {retry_in_s:.0f} s"
        super().__init__(provider, operation, detail)


class RateLimitExceeded(ProviderError):
    """Our own limiter would make the call wait too long: nothing was sent."""

    def __init__(self, provider: str, operation: str, *, retry_in_s: float) -> None:
        self.retry_in_s = retry_in_s
        super().__init__(provider, operation, f"rate limit reached, free in {retry_in_s:.1f} s")


class OfferGone(ProviderError):
    """The offer was taken, or its price moved, between decision and rent. Nothing was rented."""


class OutcomeUnknown(ProviderError):
    """The rent may have worked. Never sent again; only a listing by `key` settles it."""

    def __init__(self, provider: str, operation: str, detail: str = "", *, key: RentalKey) -> None:
        self.key = key
        super().__init__(provider, operation, detail)


class InstanceAbsent(ProviderError):
    """The provider says that it has no such instance."""


class NoneHealthy(Gp4uError):
    """Work was to be handed to a HEALTHY provider, and there is none; `why` is keyed by slug."""

    def __init__(self, why: Mapping[str, str]) -> None:
        self.why = dict(why)
        told = "; ".join(f"{slug}: {reason}" for slug, reason in self.why.items())
        super().__init__(f"no provider is HEALTHY: {told or 'none is open'}")


class MarketClosed(Gp4uError):
    """A market that something needs is not open to us; `why` says what would open it."""

    def __init__(self, provider: str, why: str) -> None:
        self.provider, self.why = provider, why
        super().__init__(f"{provider} is closed: {why}")


class BudgetRefused(Gp4uError):
    """Renting would break a budget of the operator's; nothing was sent.

    `budget` is the variable that sets it, `would_be` what the total would come to, `bound` its
    limit; both in the variable's unit.
    """

    def __init__(self, budget: str, would_be: str, bound: str) -> None:
        self.budget, self.would_be, self.bound = budget, would_be, bound
        super().__init__(f"{budget}: renting this would make it {would_be}, and it allows {bound}")


class NothingFits(Gp4uError):
    """No offer passes the demand's hard bounds; `decision` explains each rejection."""

    def __init__(self, decision: Decision) -> None:
        self.decision = decision
        super().__init__("no offer fits")


class OwnerHasRental(Gp4uError):
    """The owner already has a live rental; `key` names it."""

    def __init__(self, owner: str, key: RentalKey) -> None:
        self.owner, self.key = owner, key
        super().__init__(f"owner {owner!r} already has the live rental {key}")


class CalledOff(Gp4uError):
    """Somebody released the rental while it was still coming up, so no other one is rented."""

    def __init__(self, key: RentalKey, reason: str) -> None:
        self.key, self.reason = key, reason
        super().__init__(f"rental {key} was released while it was coming up: {reason}")


class IllegalMove(Gp4uError):
    """A rental was asked to make a move that its state does not allow."""


class StaleRental(Gp4uError):
    """The rental changed since it was read: somebody else moved it first."""


class LedgerLocked(Gp4uError):
    """Another process holds this ledger; `holder` is what it wrote about itself."""

    def __init__(self, path: str, holder: str) -> None:
        self.path, self.holder = path, holder
        super().__init__(f"the ledger {path} is held by {holder or 'another process'}")


class LedgerUnusable(Gp4uError):
    """The ledger cannot be trusted with an intent: corrupt, read-only, full, or too new."""


class Fenced(LedgerUnusable):
    """Another process took over the ledger, so this one may rent and move nothing any more."""


class ServerUnavailable(Gp4uError):
    """The GP4U server that does our work cannot be asked: not there, too busy, or none at all.

    `sent` is True where the request may have reached it, so that nobody knows what came of it.
    """

    def __init__(self, detail: str, *, sent: bool = False) -> None:
        self.sent = sent
        super().__init__(detail)


class ServerDenied(Gp4uError):
    """The GP4U server that does our work wants a token, or another one."""


class KubeError(Gp4uError):
    """The Kubernetes API server did not do what it was asked."""

    def __init__(self, verb: str, path: str, detail: str) -> None:
        self.verb, self.path, self.detail = verb, path, detail
        super().__init__(f"{verb} {path}: {detail}")


class KubeUnavailable(KubeError):
    """It did not answer, or asked for patience; `retry_after_s` is what it asked for."""

    def __init__(
        self, verb: str, path: str, detail: str, *, retry_after_s: float | None = None
    ) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(verb, path, detail)


class KubeDenied(KubeError):
    """Our ServiceAccount may not do this, or its token is not accepted."""


class KubeConflict(KubeError):
    """The object changed since it was read, or is not the one that was meant (UID)."""


class KubeExists(KubeConflict):
    """There is an object of that name already."""


class KubeAbsent(KubeError):
    """There is no such object."""


class KubeGone(KubeError):
    """The version asked for is too old to be watched from."""


class KubeInvalid(KubeError):
    """The object breaks the API's rules."""
