"""`gp4u offers` and `gp4u decide`: what can be rented, and what would be. Neither changes anything.

Both ask the same question, so a market is heard the same way, and both end with 3 and the reasons
where nothing fits.
"""

from __future__ import annotations

from msgspec import UNSET
from msgspec.structs import replace

from gp4u.cli.failures import note_sources, reasons_told
from gp4u.cli.follow import SCORED, Follower
from gp4u.cli.markets import need_markets
from gp4u.cli.run import Counter
from gp4u.cli.screen import Form, Screen
from gp4u.cli.views import decision_data, show_candidates, show_offers, show_rejections
from gp4u.desk.desk import NoOfferFits
from gp4u.desk.shapes import DecisionShape
from gp4u.desk.wording import LAUNCHING, clean_line
from gp4u.model import Demand


async def list_offers(at: Counter, screen: Screen, demand: Demand, *, limit: int) -> None:
    """Print every offer that passes the demand, cheapest first; 0 as a limit is none.

    Raises:
        Leave: there is none.
    """
    decision = await _decision(at, screen, demand, top=None, rejections=False)
    good = sorted(
        (c.offer for c in decision.ranked),
        key=lambda o: (o.price_usd_per_hour, o.provider, o.offer_id),
    )
    shown = good[:limit] if limit else good
    with reasons_told(screen, demand):
        if not good:
            if screen.form in (Form.JSON, Form.YAML):
                screen.data([])  # a list, as ever: the reasons are on stderr
            raise NoOfferFits(decision)
    show_offers(screen, shown, at.now())
    note_sources(screen, decision.sources)
    of = f" of {len(good)}" if len(shown) < len(good) else ""
    disk = f"{demand.requirements.disk_gib:g} GB"
    more = "; -o wide shows more" if screen.form is Form.TABLE else ""
    screen.hint(f"{len(shown)}{of} offers, prices all-in with {disk} of disk{more}")


async def show_decision(
    at: Counter, screen: Screen, demand: Demand, *, top: int, explain_all: bool
) -> None:
    """Print who would be rented and why; with `explain_all` also why each other would not.

    Raises:
        Leave: nobody would.
    """
    decision = await _decision(at, screen, demand, top=top, rejections=explain_all)
    rejections = () if decision.rejections is UNSET else decision.rejections
    with reasons_told(screen, demand):
        if not decision.candidates:
            if explain_all and not screen.is_data:
                show_rejections(screen, rejections)
            raise NoOfferFits(replace(decision, rejections=UNSET))
    if screen.form is Form.NAME:
        screen.names(f"{c.offer.provider}/{c.offer.offer_id}" for c in decision.ranked)
    elif screen.is_data:
        screen.data(decision_data(decision))
    else:
        *told, selected = decision.log
        for line in told:
            if not line.startswith(SCORED):  # the table below has them, and more of them
                screen.line(line)
        show_candidates(screen, decision.ranked)
        screen.line(selected.removesuffix(LAUNCHING), "bold")  # nothing is launched here
        if explain_all:
            for line in decision.explanation.splitlines():
                screen.line(clean_line(line))
            show_rejections(screen, rejections)
        else:
            _hint_at_the_rest(screen, decision)
    note_sources(screen, decision.sources)


def _hint_at_the_rest(screen: Screen, decision: DecisionShape) -> None:
    more = decision.candidates - len(decision.ranked)
    if more > 0:
        screen.hint(f"{more} more would do; --top shows them")
    if decision.rejected:
        screen.hint(f"{decision.rejected} do not fit; --explain says why")


async def _decision(
    at: Counter, screen: Screen, demand: Demand, *, top: int | None, rejections: bool
) -> DecisionShape:
    asked = await need_markets(at.desk, screen, demand)
    screen.busy(f"asking {', '.join(asked)}")
    decision = await at.desk.decide(
        demand, top=top, rejections=rejections, tell=Follower(screen, now=at.now)
    )
    screen.rest()
    return decision
