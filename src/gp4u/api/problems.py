"""How every failure is told over HTTP: one table from exceptions to problems (RFC 9457), and back.

A problem has a status, a stable code, words, and members that say what it is about. The way back
(`error_of`) is for our own command line: whatever desk it stands at, it sees the same exceptions.
So nothing of the web framework is imported here: how a problem becomes a reply is `failing.py`'s,
and what is told to a request that reaches no route is `door.py`'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from gp4u.desk.desk import NoOfferFits
from gp4u.desk.shapes import DecisionShape
from gp4u.errors import (
    BadInput,
    BudgetRefused,
    CalledOff,
    CircuitBreakerOpen,
    Denied,
    Gp4uError,
    IllegalMove,
    InstanceAbsent,
    LedgerLocked,
    LedgerUnusable,
    Malformed,
    MarketClosed,
    NoneHealthy,
    NoSuch,
    OfferGone,
    OutcomeUnknown,
    OwnerHasRental,
    ProviderError,
    RateLimitExceeded,
    Refused,
    StaleRental,
    Throttled,
    Unavailable,
    UnknownGpu,
)
from gp4u.model import RentalKey
from gp4u.telemetry import clean

DOCS: Final = "https://github.com/gp4u/gp4u/blob/main/docs/reference/problems.md#"
_POLICY: Final = frozenset({"unlabelled", "other_account"})

_TABLE: Final[tuple[tuple[type[Gp4uError], int, str, str], ...]] = (
    (NoSuch, 404, "not_found", "Nothing has this name"),
    (UnknownGpu, 422, "unknown_gpu", "No GPU model has this name"),
    (BadInput, 422, "bad_input", "A value is out of bounds"),
    (OwnerHasRental, 409, "owner_has_rental", "The owner already has a live rental"),
    (CalledOff, 409, "called_off", "It was released while it was coming up"),
    (NoOfferFits, 409, "nothing_fits", "No offer fits"),
    (StaleRental, 409, "stale_rental", "Somebody else moved the rental first"),
    (BudgetRefused, 402, "budget_refused", "A budget does not allow it"),
    (MarketClosed, 403, "market_closed", "The market is not open to us"),
    (OutcomeUnknown, 504, "outcome_unknown", "Nobody knows yet whether it was rented"),
    (OfferGone, 409, "offer_gone", "The offer is gone"),
    (InstanceAbsent, 404, "instance_absent", "The market has no such instance"),
    (Denied, 502, "provider_denied", "The market does not accept our key"),
    (Malformed, 502, "provider_malformed", "The market's answer cannot be read"),
    (Refused, 502, "provider_refused", "The market declined"),
    (Throttled, 503, "provider_throttled", "The market was asked too often"),
    (RateLimitExceeded, 503, "rate_limit_exceeded", "Our own limit for this market is reached"),
    (CircuitBreakerOpen, 503, "circuit_breaker_open", "The market's circuit breaker is open"),
    (Unavailable, 503, "provider_unavailable", "The market does not answer"),
    (ProviderError, 502, "provider_failed", "The market failed"),
    (NoneHealthy, 503, "none_healthy", "No market is healthy"),
    (LedgerLocked, 503, "ledger_locked", "Another process holds the ledger"),
    (LedgerUnusable, 503, "ledger_unusable", "The ledger cannot be used"),
    (IllegalMove, 500, "internal", "A bug"),
    (Gp4uError, 500, "internal", "A bug"),
)
"""The first row whose class fits decides."""

OF_STATUS: Final[Mapping[int, tuple[str, str]]] = {
    400: ("bad_request", "Not a request that can be read"),
    401: ("token_needed", "A token is needed"),
    403: ("not_allowed", "Not allowed"),
    404: ("no_such_path", "There is no such path"),
    405: ("method_not_allowed", "Not with this method"),
    406: ("not_acceptable", "Not in this form"),
    413: ("body_too_large", "The body is too large"),
    415: ("not_json", "The body must be JSON"),
}

OF_ROUTES: Final[Mapping[str, tuple[int, str]]] = {
    "request_in_progress": (409, "The same request is being worked on"),
    "stopping": (503, "The server stops"),
}
"""What a route answers where nothing has failed."""


def codes() -> Mapping[str, tuple[int, str]]:
    """Return every code that a route answers with, with its status and title."""
    found = {code: (status, title) for _, status, code, title in _TABLE}
    found["insufficient_credit"] = (402, "The account has too little money")
    found["policy_refused"] = (403, "The settings do not allow it")
    of_status = {code: (status, title) for status, (code, title) in OF_STATUS.items()}
    return {**found, **OF_ROUTES, **of_status}


def problem_body(
    status: int, code: str, title: str, detail: str = "", **members: object
) -> dict[str, object]:
    """Return the members of a problem; one that is None is left out."""
    body: dict[str, object] = {"type": DOCS + code, "title": title, "status": status, "code": code}
    if detail:
        body["detail"] = clean(detail, 1000)
    return body | {name: value for name, value in members.items() if value is not None}


def problem_of(error: Gp4uError, request_id: str | None = None) -> dict[str, object]:
    """Return the members of the problem that tells an exception."""
    status, code, title = _kind(error)
    detail = "" if isinstance(error, NoOfferFits) else str(error)
    return problem_body(status, code, title, detail, instance=request_id, **_members(error))


def error_of(problem: Mapping[str, Any]) -> Gp4uError:
    """Return the exception that a problem tells, for a code of ours; else a `Gp4uError`."""
    code, detail = str(problem.get("code", "")), str(problem.get("detail", ""))
    about = {"provider": "", "operation": "", "key": "", "owner": "", **problem}
    market = (str(about["provider"]), str(about["operation"]))
    said = str(problem.get("said", detail))
    wait_s = problem.get("retry_in_s")
    bad = (str(problem.get("field", "")), problem.get("value"), str(problem.get("bound", "")))
    match code:
        case "not_found":
            known = tuple(map(str, problem.get("known") or ()))
            return NoSuch(bad[0], str(bad[1]), known, hint=bad[2])
        case "unknown_gpu":
            return UnknownGpu(bad[0], str(bad[1]), tuple(map(str, problem.get("known") or ())))
        case "bad_input":
            return BadInput(*bad)
        case "owner_has_rental":
            return OwnerHasRental(str(about["owner"]), RentalKey(str(about["key"])))
        case "called_off":
            reason = str(problem.get("reason", ""))
            return CalledOff(RentalKey(str(about["key"])), reason)
        case "nothing_fits":
            return NoOfferFits(msgspec.convert(problem["decision"], DecisionShape))
        case "budget_refused":
            return BudgetRefused(
                *(str(problem.get(n, "")) for n in ("budget", "would_be", "allows"))
            )
        case "market_closed":
            return MarketClosed(market[0], str(problem.get("why", detail)))
        case "outcome_unknown":
            return OutcomeUnknown(*market, said, key=RentalKey(str(about["key"])))
        case "insufficient_credit" | "policy_refused" | "provider_refused":
            return Refused(*market, said, code=str(problem.get("reason", "")))
        case "provider_throttled":
            return Throttled(*market, said, retry_after_s=wait_s)
        case "rate_limit_exceeded":
            return RateLimitExceeded(*market, retry_in_s=wait_s or 0.0)
        case "circuit_breaker_open":
            return CircuitBreakerOpen(*market, retry_in_s=wait_s or 0.0)
        case "ledger_unusable":
            return LedgerUnusable(detail)
        case "ledger_locked":
            return LedgerLocked(str(problem.get("path", "")), str(problem.get("holder", "")))
        case "stale_rental":
            return StaleRental(detail)
    plain = {"provider_denied": Denied, "provider_malformed": Malformed, "offer_gone": OfferGone}
    plain |= {"provider_unavailable": Unavailable, "instance_absent": InstanceAbsent}
    plain |= {"provider_failed": ProviderError}
    return plain[code](*market, said) if code in plain else Gp4uError(detail or code)


def _kind(error: Gp4uError) -> tuple[int, str, str]:
    if isinstance(error, Refused) and error.code == "insufficient_credit":
        return 402, "insufficient_credit", "The account has too little money"
    if isinstance(error, Refused) and error.code in _POLICY:
        return 403, "policy_refused", "The settings do not allow it"
    return next(
        (status, code, title) for kind, status, code, title in _TABLE if isinstance(error, kind)
    )


def _members(error: Gp4uError) -> dict[str, object]:
    """Return what a problem is about; texts of markets are cleaned."""
    about: dict[str, object] = {}
    match error:
        case BadInput():
            about = {
                "field": error.field,
                "value": clean(str(error.value), 200),
                "bound": clean(error.bound, 1000),
            }
            if isinstance(error, NoSuch):
                about["known"] = error.known or None
            elif isinstance(error, UnknownGpu):
                about["known"] = error.nearest or None
        case OwnerHasRental():
            about = {"owner": error.owner, "key": error.key}
        case CalledOff():
            about = {"key": error.key, "reason": clean(error.reason, 200)}
        case NoOfferFits():
            about = {"decision": error.decision}
        case BudgetRefused():
            about = {"budget": error.budget, "would_be": error.would_be, "allows": error.bound}
        case MarketClosed():
            about = {"provider": error.provider, "why": clean(error.why, 400)}
        case LedgerLocked():
            about = {"path": error.path, "holder": error.holder}
        case ProviderError():
            about = {
                "provider": error.provider,
                "operation": error.operation,
                "said": clean(error.detail, 1000),
                "retry_in_s": retry_in_s(error),
                "key": getattr(error, "key", None),
                "reason": getattr(error, "code", None),
            }
        case _:
            pass
    return about


def retry_in_s(error: ProviderError) -> float | None:
    """Return when a market may be asked again, where anybody knows."""
    match error:
        case Throttled():
            return error.retry_after_s
        case RateLimitExceeded() | CircuitBreakerOpen():
            return error.retry_in_s
        case _:
            return None
