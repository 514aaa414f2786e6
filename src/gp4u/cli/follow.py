"""Tells a person, step by step, what a rent or a release is doing.

On a terminal the newest step is one moving line with the time elapsed and the cost so far; behind a
pipe each change is a line. The key of a rental is said before the call that can cost money. The
steps are shapes (`api/shapes.py`), so it is the same whether this process does the work or a
server.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from decimal import Decimal
from typing import Final

from gp4u.cli.screen import Screen
from gp4u.cli.views import hourly, name_of
from gp4u.desk.shapes import (
    DecidedStep,
    DecisionShape,
    DroppedStep,
    IntendedStep,
    PassedOverStep,
    RentalShape,
    RentedStep,
    SettledStep,
    StepShape,
    UnsettledStep,
    WaitingStep,
    WatchedStep,
    money,
)
from gp4u.telemetry import clean

MINUTE_S: Final = 60
SCORED: Final = "  - "
"""How a line of the selection log begins that is about one offer; a table says more."""
_HOUR_S: Final = 3600


def duration(seconds: float) -> str:
    """Return `42 s` or `3 min 05 s`."""
    whole = max(0, int(seconds))
    if whole < MINUTE_S:
        return f"{whole} s"
    return f"{whole // MINUTE_S} min {whole % MINUTE_S:02} s"


class Follower:
    """Takes what the desk tells; `decision` and `rental` are the newest it told of."""

    def __init__(self, screen: Screen, *, now: Callable[[], datetime]) -> None:
        self._screen, self._now = screen, now
        self._last = ""
        self._started = now()
        self.decision: DecisionShape | None = None
        self.rental: RentalShape | None = None

    def __call__(self, step: StepShape) -> None:
        """Take one step."""
        match step:
            case DecidedStep(decision=decision):
                self.decision = decision
                if decision.candidates:
                    for line in decision.log[:-1]:  # nothing is launched yet
                        self._screen.note(line)
            case WaitingStep(seconds=seconds):
                self._say(f"asked too often; asking again in {seconds:.0f} s", "yellow")
            case PassedOverStep(provider=provider, reason=reason):
                self._say(f"passing over {provider}: {reason}", "yellow")
            case IntendedStep(rental=rental, choice=choice):
                self._started = self._now()
                self._screen.note(choice, "bold")
                # The key comes before the call: whatever happens next, it can be asked for.
                offer = f"{rental.provider}/{rental.offer_id}"
                cost = hourly(rental)
                self._say(f"rental {rental.key} ({name_of(rental)}): {offer} at {cost}", "bold")
                self._show(rental, "sending the rent call")
            case RentedStep(rental=rental):
                self._say(f"instance {rental.instance_id} confirmed, waiting for it to start")
                self._show(rental, "starting: not listed yet")
            case UnsettledStep(rental=rental, detail=detail):
                self._say(
                    f"the reply was lost ({detail}); looking for the key in listings", "yellow"
                )
                self._show(rental, "looking for the key in listings")
            case WatchedStep():
                self._watch(step)
            case DroppedStep(rental=rental, reason=reason):
                self._screen.rest()
                why = reason.replace("_", " ").replace(":", ": ")
                self._say(f"rental {rental.key} came to nothing: {why}", "yellow")
            case SettledStep(rental=rental):
                self.rental = rental
                self._screen.rest()
                style = "green" if rental.state == "running" else ""
                after = duration(self._elapsed_s())
                self._say(f"rental {rental.key} is {rental.state} after {after}", style)

    def _elapsed_s(self) -> float:
        return (self._now() - self._started).total_seconds()

    def _say(self, text: str, style: str = "") -> None:
        self._screen.note(clean(text, 400), style)

    def _show(self, rental: RentalShape, what: str) -> None:
        self.rental = rental
        told_at = self._now()

        def line() -> str:
            cost = cost_after(rental, (self._now() - told_at).total_seconds())
            return f"{duration(self._elapsed_s())}  ${money(cost)}  {what}"

        self._screen.busy(line)

    def _watch(self, step: WatchedStep) -> None:
        rental = step.rental
        seen = rental.seen or "not listed yet"
        text = f"{rental.state}: {seen}"
        if rental.status and rental.status.lower() != seen:
            text += f", {clean(rental.status, 80)}"
        if step.probe:
            text += f", {clean(step.probe, 120)}"
        if step.problem:
            text += f"; {clean(step.problem, 200)}"
        self._show(rental, text)
        if not self._screen.err.moves and text != self._last:
            self._say(f"[{self._elapsed_s():4.0f} s] {text}")
        self._last = text


def cost_after(rental: RentalShape, seconds: float) -> Decimal:
    """Return about what a rental has cost so many seconds after it was told of, in dollars.

    A line that moves between two looks needs it; what is printed in the end is the ledger's figure.
    """
    if rental.seen != "running":
        return rental.cost_usd
    return rental.cost_usd + rental.price_usd_per_hour * Decimal(str(max(0.0, seconds))) / _HOUR_S


def log_prefix(decision: DecisionShape) -> str:
    """Return what the lines of a decision's log begin with, without its brackets."""
    return decision.log[0].partition("]")[0].lstrip("[") if decision.log else "GP4U"
