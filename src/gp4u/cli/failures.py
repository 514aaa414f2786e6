"""What a failure means to a script, and what a person may do about it.

Every command leaves with one of these codes; `docs/reference/cli.md` lists them. The text of an
error is its own; here it only gets a code and a hint of the next step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import IntEnum
from typing import TYPE_CHECKING, Final

from gp4u.cli.screen import Form, Screen
from gp4u.errors import (
    BadInput,
    BudgetRefused,
    CalledOff,
    CircuitBreakerOpen,
    Denied,
    Gp4uError,
    KubeDenied,
    KubeUnavailable,
    LedgerLocked,
    LedgerUnusable,
    MarketClosed,
    NothingFits,
    OutcomeUnknown,
    OwnerHasRental,
    RateLimitExceeded,
    Refused,
    ServerDenied,
    ServerUnavailable,
    Throttled,
    Unavailable,
)
from gp4u.model import Demand
from gp4u.telemetry import Redactor, clean

if TYPE_CHECKING:
    from gp4u.desk.shapes import DecisionShape, SourceShape


class Code(IntEnum):
    """With what a command leaves."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    NOTHING_FITS = 3
    NOT_ALLOWED = 4
    BUDGET = 5
    UNAVAILABLE = 6
    CONFLICT = 7
    HELD = 8
    UNKNOWN = 9
    INTERRUPTED = 130
    BROKEN_PIPE = 141
    TERMINATED = 143


class Leave(Exception):
    """The command has said what it had to say, and ends with this code: ours, or a workload's."""

    def __init__(self, code: int) -> None:
        self.code = code
        super().__init__(code)


def code_of(error: Gp4uError) -> Code:
    """Return the code that tells a script what kind of failure this is."""
    match error:
        case BadInput():
            return Code.USAGE
        case NothingFits():
            return Code.NOTHING_FITS
        case Denied() | MarketClosed() | ServerDenied() | KubeDenied():
            return Code.NOT_ALLOWED
        case BudgetRefused():
            return Code.BUDGET
        case Refused(code="insufficient_credit" | "unlabelled" | "other_account"):
            return Code.NOT_ALLOWED
        case OwnerHasRental() | CalledOff():
            return Code.CONFLICT
        case LedgerLocked():
            return Code.HELD
        case OutcomeUnknown():
            return Code.UNKNOWN
        case Unavailable() | Throttled() | CircuitBreakerOpen() | RateLimitExceeded():
            return Code.UNAVAILABLE
        case ServerUnavailable() | KubeUnavailable():
            return Code.UNAVAILABLE
        case _:
            return Code.FAILED


_OF_LOOK: Final = {
    "market_closed": Code.NOT_ALLOWED,
    "provider_denied": Code.NOT_ALLOWED,
    "provider_unavailable": Code.UNAVAILABLE,
}


def code_of_look(failed: str) -> Code:
    """Return the code for a look in which a market could not be asked; `failed` says why."""
    return _OF_LOOK.get(failed, Code.FAILED)


def hints_of(error: Gp4uError) -> Sequence[tuple[str, str]]:
    """Return what one may do next: pairs of what to type or change, and what that does."""
    match error:
        case Denied():
            return (
                (_key_variable(error.provider), "is not accepted"),
                ("gp4u config", "shows where it comes from"),
                *_key_page(error.provider),
            )
        case Refused(code="insufficient_credit"):
            return (("--max-price", "looks for less; or add credit to the account"),)
        case Refused(code="other_account"):
            return (
                (_key_variable(error.provider), "must be a key of that account"),
                ("gp4u config", "shows where the one in force comes from"),
            )
        case OwnerHasRental():
            return (
                ("gp4u ps", "shows it"),
                (f"gp4u release {error.key}", "ends it"),
                ("--name", "with another name rents anew"),
            )
        case OutcomeUnknown():
            return next_steps(str(error.key))
        case BudgetRefused():
            return (
                (error.budget, "sets this bound"),
                ("gp4u ps", "shows what is rented"),
            )
        case ServerUnavailable():
            return (
                ("GP4U_API_URL", "names the server; without it this machine does the work"),
                ("gp4u serve", "starts one"),
            )
        case ServerDenied():
            return (
                ("GP4U_API_TOKEN", "is what the server is shown"),
                ("GP4U_API_TOKENS", "on the server says which tokens may do what"),
            )
        case KubeDenied():
            return (
                ("--kubeconfig, --context", "say which cluster, and as whom"),
                (f"kubectl auth can-i {error.verb}", "asks for the right; the chart grants it"),
            )
        case LedgerLocked():
            return (("GP4U_DATABASE_URL", "names another ledger; or stop that process"),)
        case LedgerUnusable():
            return (
                ("GP4U_DATABASE_URL", "names the ledger"),
                ("gp4u config", "shows where it comes from"),
            )
        case Unavailable() | CircuitBreakerOpen() | Throttled() | RateLimitExceeded():
            return (
                ("again in a minute", "may work"),
                ("gp4u ps --cached", "shows rentals as last seen"),
            )
        case _:
            return ()


def next_steps(key: str) -> Sequence[tuple[str, str]]:
    """Return what settles a rental whose end nobody waited for."""
    return (("gp4u ps", "shows what became of it"), (f"gp4u release {key}", "ends it"))


def _key_variable(provider: str) -> str:
    from gp4u.providers.plugins import known_providers  # as the settings have loaded it

    known = {each.slug: each for each in known_providers()}
    own = known.get(provider)
    return f"{own.env}_{own.key_variable}" if own else f"{provider.upper()}_API_KEY"


def _key_page(provider: str) -> Sequence[tuple[str, str]]:
    from gp4u.providers.registry import get_provider_registry  # the adapters: seldom needed

    spec = get_provider_registry().specs.get(provider)
    return ((spec.key_url, "is where keys are made"),) if spec and spec.key_url else ()


def explain(screen: Screen, error: Gp4uError, secrets: Sequence[str] = ()) -> None:
    """Say on stderr what went wrong and what to do, without secrets or control characters."""
    redact = Redactor(secrets)
    lines = [clean(redact(line), 1000) for line in str(error).splitlines()]
    screen.fail("\n".join(lines) or type(error).__name__)
    screen.steps(hints_of(error))


@contextmanager
def reasons_told(screen: Screen, demand: Demand) -> Iterator[None]:
    """Leave with the reasons where nothing fits a demand.

    Raises:
        Leave: nothing does.
    """
    from gp4u.desk.desk import NoOfferFits  # what asks a desk has loaded it

    try:
        yield
    except NoOfferFits as error:
        screen.rest()
        if screen.form in (Form.JSON, Form.YAML) and not screen.told:
            from msgspec.structs import replace

            from gp4u.cli.views import decision_data  # views need our words, and we need theirs

            screen.data(decision_data(replace(error.decision, ranked=())))
        raise Leave(explain_nothing(screen, error.decision, demand)) from error


def explain_nothing(screen: Screen, decision: DecisionShape, demand: Demand) -> Code:
    """Say why nothing fits, and what each bound alone keeps out; return the code to leave with."""
    unheard = [note for note in decision.sources if note.error and not note.offers]
    if unheard and len(unheard) == len(decision.sources):
        screen.fail("no market could be asked")
        note_sources(screen, decision.sources)
        for provider in decision.denied:
            screen.steps(hints_of(Denied(provider, "offers")))
        if len(decision.denied) == len(unheard):
            return Code.NOT_ALLOWED
        screen.steps(hints_of(Unavailable("", "")))
        return Code.UNAVAILABLE
    from gp4u.cli.views import show_relaxations  # as above

    if decision.rejected:
        reasons = decision.explanation.partition("\n")[0].partition(": ")[2]
        screen.fail(f"no offer fits, of {decision.rejected}: {clean(reasons, 1000)}")
    else:
        screen.fail(f"no offer fits: nobody offers {_asked_for(demand)} now")
    show_relaxations(screen, decision, demand)
    note_sources(screen, decision.sources)
    return Code.NOTHING_FITS


def _asked_for(demand: Demand) -> str:
    """Say what a market was searched for; bounds on its rows come after that."""
    asked = demand.requirements
    models = " or ".join(asked.gpu_models) or "any GPU"
    kind = "interruptible" if asked.interruptible else "on demand"
    hosts = "on a verified host" if asked.verified_only else "on any host"
    if asked.datacenter_only:
        hosts += " in a datacenter"
    return f"{asked.gpu_count}x {models} {kind} {hosts}"


def note_sources(screen: Screen, sources: Sequence[SourceShape]) -> None:
    """Say which providers could not be asked, or did not show everything."""
    for note in sources:
        if note.error:
            screen.warn(f"{note.provider} could not be asked: {clean(note.error, 400)}")
        elif not note.complete:
            screen.warn(f"{note.provider} has more offers than it shows; narrow the search")
