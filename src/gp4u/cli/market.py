"""`gp4u offers` and `gp4u decide`: what can be rented, and what would be. Neither changes anything.

Both ask the same question, so a market is heard the same way, and both end with 3 and the reasons
where nothing fits.
"""

from __future__ import annotations

from gp4u.app import App
from gp4u.cli.failures import note_sources
from gp4u.cli.follow import LAUNCHING, Follower, clean_line, selection_lines
from gp4u.cli.screen import Form, Screen
from gp4u.cli.views import show_candidates, show_offers, show_rejections
from gp4u.errors import NothingFits
from gp4u.model import Decision, Demand
from gp4u.selection.decide import explain, to_json
from gp4u.telemetry import clean


async def list_offers(opened: App, screen: Screen, demand: Demand, *, limit: int) -> None:
    """Print every offer that passes the demand, cheapest first; 0 as a limit is none.

    Raises:
        NothingFits: there is none.
    """
    decision = await _decision(opened, screen, demand)
    good = sorted(
        (c.offer for c in decision.candidates),
        key=lambda o: (o.price_usd_per_hour, o.provider, o.offer_id),
    )
    shown = good[:limit] if limit else good
    at = opened.clock.now()
    if not good:
        if screen.form in (Form.JSON, Form.YAML):
            screen.data([])  # a list, as ever: the reasons are on stderr
        raise NothingFits(decision)
    show_offers(screen, shown, at)
    note_sources(screen, decision.sources)
    of = f" of {len(good)}" if len(shown) < len(good) else ""
    disk = f"{demand.requirements.disk_gib:g} GB"
    more = "; -o wide shows more" if screen.form is Form.TABLE else ""
    screen.hint(f"{len(shown)}{of} offers, prices all-in with {disk} of disk{more}")


async def show_decision(
    opened: App, screen: Screen, demand: Demand, *, top: int, explain_all: bool
) -> None:
    """Print who would be rented and why; with `explain_all` also why each other would not.

    Raises:
        NothingFits: nobody would.
    """
    decision = await _decision(opened, screen, demand)
    if decision.best is None:
        if explain_all and not screen.is_data:
            show_rejections(screen, decision.rejections)
        raise NothingFits(decision)
    if screen.form is Form.NAME:
        screen.names(
            f"{c.offer.provider}/{clean(c.offer.offer_id)}" for c in decision.candidates[:top]
        )
    elif screen.is_data:
        screen.data(to_json(decision, top=top, rejections=explain_all))
    else:
        *told, selected = selection_lines(decision, top=0)
        for line in told:
            screen.line(line)
        show_candidates(screen, decision.candidates[:top])
        screen.line(selected.removesuffix(LAUNCHING), "bold")  # nothing is launched here
        if explain_all:
            for line in explain(decision).splitlines():
                screen.line(clean_line(line))
            show_rejections(screen, decision.rejections)
        else:
            _hint_at_the_rest(screen, decision, top)
    note_sources(screen, decision.sources)


def _hint_at_the_rest(screen: Screen, decision: Decision, top: int) -> None:
    more = len(decision.candidates) - top
    if more > 0:
        screen.hint(f"{more} more would do; --top shows them")
    if decision.rejections:
        screen.hint(f"{len(decision.rejections)} do not fit; --explain says why")


async def _decision(opened: App, screen: Screen, demand: Demand) -> Decision:
    asked = demand.requirements.providers or tuple(opened.providers)
    screen.busy(f"asking {', '.join(asked)}")
    decision = await opened.broker.decide(demand, tell=Follower(screen, now=opened.clock.now))
    screen.rest()
    return decision
