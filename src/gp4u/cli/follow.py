"""Tells a person, step by step, what a rent or a release is doing.

On a terminal the newest step is one moving line with the time elapsed and the cost so far; behind a
pipe each change is a line. The key of a rental is said before the call that can cost money.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Final

from msgspec import structs

from gp4u.cli.screen import Screen
from gp4u.cli.shapes import money
from gp4u.cli.views import hourly, name_of
from gp4u.model import Candidate, Decision
from gp4u.rentals import rental as rentals
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
from gp4u.rentals.rental import Rental, RentalState
from gp4u.selection.decide import left_out, selection_log
from gp4u.telemetry import clean

MINUTE_S: Final = 60
LAUNCHING: Final = " - launching..."
"""How the selection log ends; a dry run leaves it off."""
_COUNTS: Final = 3
"""Lines of the selection log before the first offer: what was searched, found, and remains."""


def duration(seconds: float) -> str:
    """Return `42 s` or `3 min 05 s`."""
    whole = max(0, int(seconds))
    if whole < MINUTE_S:
        return f"{whole} s"
    return f"{whole // MINUTE_S} min {whole % MINUTE_S:02} s"


class Follower:
    """Takes what the broker tells; `decision` and `rental` are the newest it told of."""

    def __init__(self, screen: Screen, *, now: Callable[[], datetime], log: bool = True) -> None:
        self._screen, self._now, self._log = screen, now, log
        self._last = ""
        self._started = now()
        self.decision: Decision | None = None
        self.rental: Rental | None = None

    def __call__(self, step: Progress) -> None:
        """Take one step."""
        match step:
            case Decided(decision):
                self.decision = decision
                if self._log and decision.best is not None:
                    log_selection(self._screen, decision)
            case Waiting(seconds):
                self._say(f"asked too often; asking again in {seconds:.0f} s", "yellow")
            case PassedOver(provider, reason):
                self._say(f"passing over {provider}: {reason}", "yellow")
            case Intended(rental, candidate):
                self._started = self._now()
                if self._log and self.decision is not None:
                    log_selected(self._screen, self.decision, candidate)
                # The key comes before the call: whatever happens next, it can be asked for.
                offer = f"{rental.provider}/{rental.offer_id}"
                cost = hourly(rental)
                self._say(f"rental {rental.key} ({name_of(rental)}): {offer} at {cost}", "bold")
                self._show(rental, "sending the rent call")
            case Rented(rental):
                self._say(f"instance {rental.instance_id} confirmed, waiting for it to start")
                self._show(rental, "starting: not listed yet")
            case Unsettled(rental, detail):
                self._say(
                    f"the reply was lost ({detail}); looking for the key in listings", "yellow"
                )
                self._show(rental, "looking for the key in listings")
            case Watched(rental, probe, problem):
                self._watch(rental, probe, problem)
            case Dropped(rental, reason):
                self._screen.rest()
                why = reason.replace("_", " ").replace(":", ": ")
                self._say(f"rental {rental.key} came to nothing: {why}", "yellow")
            case Settled(rental):
                self.rental = rental
                self._screen.rest()
                style = "green" if rental.state is RentalState.RUNNING else ""
                after = duration(self._elapsed_s())
                self._say(f"rental {rental.key} is {rental.state} after {after}", style)

    def _elapsed_s(self) -> float:
        return (self._now() - self._started).total_seconds()

    def _say(self, text: str, style: str = "") -> None:
        self._screen.note(clean(text, 400), style)

    def _show(self, rental: Rental, what: str) -> None:
        self.rental = rental

        def line() -> str:
            cost = money(rentals.cost_usd(rental, at=self._now()))
            return f"{duration(self._elapsed_s())}  ${cost}  {what}"

        self._screen.busy(line)

    def _watch(self, rental: Rental, probe: str, problem: str) -> None:
        seen = str(rental.seen) if rental.seen else "not listed yet"
        text = f"{rental.state}: {seen}"
        if rental.seen_status and rental.seen_status.lower() != seen:
            text += f", {clean(rental.seen_status, 80)}"
        if probe:
            text += f", {clean(probe, 120)}"
        if problem:
            text += f"; {clean(problem, 200)}"
        self._show(rental, text)
        if not self._screen.err.moves and text != self._last:
            self._say(f"[{self._elapsed_s():4.0f} s] {text}")
        self._last = text


def log_selection(screen: Screen, decision: Decision) -> None:
    """Print the selection log beside the result, but for its last line: nothing is launched yet."""
    for line in selection_lines(decision, top=3)[:-1]:
        screen.note(line)


def log_selected(screen: Screen, decision: Decision, candidate: Candidate) -> None:
    """Print the last line of the selection log, of the candidate that is really launched."""
    chosen = structs.replace(decision, candidates=(candidate,))
    screen.note(clean_line(selection_log(chosen, prefix=log_prefix(decision), top=0)[-1]), "bold")


def selection_lines(decision: Decision, *, top: int) -> list[str]:
    """Return the selection log, ready to print; its last line says that it is launched."""
    prefix, best = log_prefix(decision), decision.best
    lines = selection_log(decision, prefix=prefix, top=top)
    if best is not None and len(decision.sources) > 1:
        # A market that has nothing to say in the ranking still was asked, and somebody wonders.
        lines[_COUNTS:_COUNTS] = [
            f"[{prefix}] Left out: {out.provider}, of {out.offers} offers the nearest breaks "
            + ", ".join(out.broken)
            for out in left_out(decision)
        ]
    return [clean_line(line) for line in lines]


def log_prefix(decision: Decision) -> str:
    """Return what the seed's log lines begin with: its own word, or ours for another market."""
    best = decision.best
    return "VAST" if best is None or best.offer.provider == "vastai" else "GP4U"


def clean_line(text: str, limit: int = 400) -> str:
    """Clean one line and keep its indent."""
    indent = " " * (len(text) - len(text.lstrip(" ")))
    return indent + clean(text, limit)
