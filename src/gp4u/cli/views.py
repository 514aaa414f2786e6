"""What people see of offers, decisions, rentals and settings: which columns, and which go first.

Hides every choice of wording and layout. What it shows are the shapes of `api/shapes.py`, wherever
they were made; their texts are clean, and are only cut here. Widths are `tables.py`'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

from msgspec import UNSET, structs

from gp4u.cli.screen import Form, Screen
from gp4u.cli.tables import Cell, Column, Row
from gp4u.cli.terminal import cut
from gp4u.desk.shapes import (
    CandidateShape,
    DecisionShape,
    EndpointShape,
    OfferShape,
    RejectionShape,
    RentalShape,
    UnexplainedShape,
    money,
)
from gp4u.model import Demand
from gp4u.telemetry import clean

if TYPE_CHECKING:
    from gp4u.settings import Settings

STATE_STYLE: Final[Mapping[str, str]] = {
    "intended": "yellow",
    "starting": "yellow",
    "running": "green",
    "releasing": "magenta",
    "released": "dim",
    "orphan": "bold red",
    "foreign": "dim",
}
UNKNOWN: Final = "-"
_VALUELESS_UNITS: Final = frozenset({"", "URL", "path", "names", "places", "ratio"})
"""Units of settings that say what a value is, and not how much."""


def age(since: datetime | None, at: datetime) -> str:
    """Return how long ago, as kubectl would: `42s`, `5m`, `3h`, `2d`."""
    if since is None:
        return UNKNOWN
    seconds = max(0, int((at - since).total_seconds()))
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "m")):
        if seconds >= 2 * size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def name_of(rental: RentalShape) -> str:
    """Return what `--name` was, or the whole owner of a rental that was not made here."""
    return rental.owner.removeprefix("cli:")


def gpus_of(model: str, count: int) -> str:
    """Return `RTX 3090`, or `4x RTX 3090`."""
    name = clean(model, 60)
    return name if count == 1 else f"{count}x {name}"


_OFFERS: Final = (
    Column(head="PROVIDER"),
    # Some markets name an offer in sixty letters; its beginning tells it apart.
    Column(head="OFFER", style="cyan", short=8, shorten=lambda text: cut(text, 16), least=10),
    Column(head="GPU"),
    Column(head="VRAM", right=True, drop=23),
    Column(head="$/HOUR", right=True, style="bold"),
    Column(head="REGION"),
    Column(head="RELIABLE", right=True, drop=31),
    Column(head="DOWN Mbps", right=True, drop=21),
    Column(head="G-SCORE", right=True, drop=22),
    Column(head="AGE", right=True, drop=30),
)
_OFFERS_WIDE: Final = (
    *_OFFERS,
    Column(head="SPEED REL EFF", right=True, drop=19),
    Column(head="CPUS", right=True, drop=16),
    Column(head="RAM", right=True, drop=17),
    Column(head="DISK", right=True, drop=14),
    Column(head="PORTS", right=True, drop=10),
    Column(head="UP Mbps", right=True, drop=12),
    Column(head="HOSTING", drop=15),
    Column(head="VERIFIED", drop=13),
    Column(head="KIND", drop=18),
    Column(head="MACHINE", drop=11, short=9, shorten=lambda text: cut(text, 16)),
)


def show_offers(screen: Screen, offers: Sequence[OfferShape], at: datetime) -> None:
    """Print offers in the form that was asked for."""
    match screen.form:
        case Form.NAME:
            screen.names(f"{o.provider}/{clean(o.offer_id)}" for o in offers)
        case Form.JSON | Form.YAML:
            screen.data(offers)
        case Form.WIDE:
            rows = [[*_offer_row(o, at), *_offer_rest(o)] for o in offers]
            screen.table(_OFFERS_WIDE, rows)
        case Form.TABLE:
            screen.table(_OFFERS, [_offer_row(o, at) for o in offers])
    estimates = sorted({o.provider for o in offers if o.estimated})
    if estimates and not screen.is_data:
        screen.note(f"~ an estimate: {', '.join(estimates)} names the price once hosts have bid")


def _offer_row(o: OfferShape, at: datetime) -> list[str | Cell]:
    return [
        o.provider,
        clean(o.offer_id, 100),
        gpus_of(o.gpu_model, o.gpu_count),
        f"{o.vram_gib:g} GiB",
        price(o.price_usd_per_hour, estimated=o.estimated),
        o.region or _unknown(),
        _share(o.reliability),
        _number(o.download_mbps),
        f"{o.g_score:.0f}" if o.g_score is not None else _unknown(),
        age(o.fetched_at, at),
    ]


def _offer_rest(o: OfferShape) -> list[str | Cell]:
    parts = o.g_score_parts
    return [
        _unknown() if parts is None else " ".join(f"{each:.2f}" for each in parts.values()),
        _number(o.cpu_cores),
        _number(o.ram_gib, " GiB"),
        _number(o.disk_gib, " GiB"),
        _number(o.open_ports),
        _number(o.upload_mbps),
        {True: "datacenter", False: "home", None: UNKNOWN}[o.datacenter],
        {True: "yes", False: "no", None: UNKNOWN}[o.verified],
        "bid" if o.interruptible else "on demand",
        clean(o.machine_id or UNKNOWN, 40),
    ]


_PARTS: Final = {
    "price": "PRICE",
    "performance": "SPEED",
    "gpu_match": "GPU",
    "location": "PLACE",
    "availability": "AVAIL",
}
"""Criterion to the head of its part of the score; one that is missing here heads itself."""


def show_candidates(screen: Screen, candidates: Sequence[CandidateShape]) -> None:
    """Print ranked candidates with the parts that their scores are the sum of."""
    if not candidates:
        return
    parts = list(candidates[0].parts)
    columns = (
        Column(head="#", right=True, drop=3),
        Column(head="PROVIDER"),
        Column(head="OFFER", style="cyan", short=-1, shorten=lambda text: cut(text, 16), least=8),
        Column(head="MODEL", drop=7),
        Column(head="$/HOUR", right=True, drop=8),
        Column(head="REGION", drop=5),
        Column(head="RELIABLE", right=True, drop=2),
        Column(head="G-SCORE", right=True, drop=0),
        Column(head="SCORE", right=True, style="bold"),
        Column(head="="),
        *(Column(head=_PARTS.get(part, part.upper()), right=True) for part in parts),
    )
    rows = []
    for rank, c in enumerate(candidates, 1):
        o = c.offer
        row: list[str | Cell] = [
            f"{rank}",
            o.provider,
            clean(o.offer_id, 100),
            gpus_of(o.gpu_model, o.gpu_count),
            price(o.price_usd_per_hour, estimated=o.estimated),
            o.region or _unknown(),
            _share(o.reliability),
            f"{o.g_score:.0f}" if o.g_score is not None else _unknown(),
            Cell(f"{c.score:.3f}", "bold green" if rank == 1 else ""),
            "=",
            *(f"{c.parts[part]:.3f}" for part in parts),
        ]
        rows.append(row)
    screen.table(columns, rows)


def decision_data(decision: DecisionShape) -> dict[str, Any]:
    """Return a decision as `-o json` and `-o yaml` show it: the winner on top, and flat rows."""
    best = decision.ranked[0] if decision.ranked else None
    answer: dict[str, Any] = {
        "offer": best.offer.offer_id if best else None,
        "provider": best.offer.provider if best else None,
        "score": best.score if best else None,
        "candidates": decision.candidates,
        "rejected": decision.rejected,
        "ranked": [
            {**structs.asdict(c.offer), "score": c.score, "parts": c.parts} for c in decision.ranked
        ],
        "relaxations": decision.relaxations,
        "sources": decision.sources,
        "decided_at": decision.decided_at,
    }
    if decision.rejections is not UNSET:
        answer["rejections"] = [
            {
                "provider": r.offer.provider,
                "offer_id": r.offer.offer_id,
                "filter": r.filter,
                "value": r.value,
                "bound": r.bound,
            }
            for r in decision.rejections
        ]
    return answer


_REJECTIONS: Final = (
    Column(head="PROVIDER"),
    Column(head="OFFER", style="cyan", short=1, shorten=lambda text: cut(text, 16), least=8),
    Column(head="GPU", drop=3),
    Column(head="$/HOUR", right=True, drop=2),
    Column(head="FILTER", style="yellow"),
    Column(head="VALUE", least=10),
    Column(head="BOUND", least=10),
)


def show_rejections(screen: Screen, found: Sequence[RejectionShape]) -> None:
    """Print every rejection with filter, value and bound."""
    if not found:
        return
    rows = [
        [
            r.offer.provider,
            clean(r.offer.offer_id, 100),
            gpus_of(r.offer.gpu_model, r.offer.gpu_count),
            price(r.offer.price_usd_per_hour, estimated=r.offer.estimated),
            r.filter,
            clean(r.value, 80),
            clean(r.bound, 80),
        ]
        for r in found
    ]
    screen.table(_REJECTIONS, rows)


FLAG_OF: Final[Mapping[str, str]] = {
    "provider": "--provider {}",
    "kind": "--interruptible",
    "verified": "--unverified",
    "datacenter": "--datacenter",
    "gpu_type": "--gpu {}",
    "gpu_count": "--gpus {}",
    "vram": "--min-vram {}",
    "price": "--max-price {}",
    "reliability": "--min-reliability {}",
    "download": "--min-download {}",
    "location": "--location {}",
    "cpus": "--cpus {}",
    "ram": "--ram {}",
    "disk": "--disk {}",
    "ports": "--port at most {} times",
}
"""Filter to the flag that relaxes its bound."""


def show_relaxations(screen: Screen, decision: DecisionShape, demand: Demand) -> None:
    """Say beside the result what each bound alone keeps out, and which flag would let some in."""
    found = [one for one in decision.relaxations if one.excluded_alone]
    if not found:
        if decision.rejected:
            screen.note("  no single bound keeps an offer out: at least two must give way")
        return
    rows = []
    for one in found:
        flag = FLAG_OF.get(one.filter, "")
        nearest = clean(one.nearest or "", 60).replace(", ", ",").replace(" ", "")
        wanted = demand.requirements
        if one.filter == "datacenter" or (one.filter == "kind" and wanted.interruptible):
            flag = f"without {flag}"
        rows.append(
            [
                f"{one.filter} {clean(one.bound, 60)}",
                f"{one.excluded_alone}",
                flag.format(nearest) if flag and one.nearest else UNKNOWN,
            ]
        )
    columns = (
        Column(head="BOUND", least=12),
        Column(head="ALONE KEEPS OUT", right=True),
        Column(head="NEAREST THAT ADMITS SOME", style="cyan"),
    )
    screen.note_table(columns, rows)


def short_key(key: str) -> str:
    """Return the part of a key that names its rental; the check at its end is for machines."""
    return key.rpartition("-")[0] if key.count("-") == 3 else key


_RENTALS: Final = (
    Column(head="NAME", least=8),
    Column(head="KEY", style="cyan", short=2, shorten=short_key),
    Column(head="STATE"),
    Column(head="PROVIDER", drop=5),
    Column(head="GPU", drop=3),
    Column(head="$/HOUR", right=True, drop=4),
    Column(head="COST $", right=True, drop=6),
    Column(head="AGE", right=True, drop=1),
    Column(head="ENDPOINTS", least=12),
)
_RENTALS_WIDE: Final = (
    *_RENTALS,
    Column(head="INSTANCE", drop=-4),
    Column(head="OFFER", drop=-6),
    Column(head="REGION", drop=-5),
    Column(head="IMAGE", drop=-3),
    Column(head="SEEN", drop=-2),
    Column(head="REASON", drop=-1),
)


def show_rentals(
    screen: Screen,
    found: Sequence[RentalShape],
    at: datetime,
    extra: Sequence[UnexplainedShape] = (),
) -> None:
    """Print rentals, and after them instances that no rental explains (`extra`)."""
    match screen.form:
        case Form.NAME:
            screen.names(r.key for r in found)
        case Form.JSON | Form.YAML:
            screen.data([*map(_without_history, found), *extra])
        case Form.TABLE | Form.WIDE:
            wide = screen.form is Form.WIDE
            rows: list[Row] = []
            for r in found:
                rows += _rental_rows(r, at, wide=wide, folded=screen.out.is_terminal)
            for thing in extra:
                rows.append([*_extra_row(thing), *(_extra_rest(thing) if wide else ())])
            screen.table(_RENTALS_WIDE if wide else _RENTALS, rows)


def say_nothing_is_rented(screen: Screen, *, everything: bool) -> None:
    """Say so, since an empty table says nothing."""
    if not screen.is_data:
        screen.note("nothing is rented" if everything else "nothing is rented; -a shows what was")


def _without_history(rental: RentalShape) -> RentalShape:
    return structs.replace(rental, history=UNSET)


def _rental_rows(r: RentalShape, at: datetime, *, wide: bool, folded: bool) -> list[Row]:
    """Return a rental's row; if `folded`, each further endpoint stands in a row of its own."""
    ends = [f"{_port(e)}→{e.address}" for e in r.endpoints]
    if not ends:
        ends = [f"({clean(r.reason, 60)})" if r.reason else UNKNOWN]
    first, *more = ends if folded else [", ".join(ends)]
    row: list[str | Cell] = [
        clean(name_of(r), 70),
        r.key,
        _state(r.state),
        r.provider,
        gpus_of(r.gpu_model, r.gpu_count),
        price(r.price_usd_per_hour, estimated=r.estimated),
        money(r.cost_usd),
        age(r.intended_at, at),
    ]
    rest = _rental_rest(r) if wide else []
    rows: list[Row] = [[*row, first, *rest]]
    rows += [[*("" for _ in row), end, *("" for _ in rest)] for end in more]
    return rows


def _rental_rest(r: RentalShape) -> list[str | Cell]:
    return [
        clean(r.instance_id or UNKNOWN, 40),
        clean(r.offer_id, 40),
        r.region or _unknown(),
        r.image,
        r.seen or _unknown(),
        clean(r.reason or "", 60) or _unknown(),
    ]


def _state(state: str) -> Cell:
    return Cell(state, STATE_STYLE.get(state, ""))


def _extra_row(thing: UnexplainedShape) -> list[str | Cell]:
    cost = thing.price_usd_per_hour
    row: list[str | Cell] = [_unknown(), thing.key or UNKNOWN]
    row += [_state(thing.state), thing.provider, _unknown()]
    row += [_unknown() if cost is None else price(cost), _unknown(), _unknown()]
    return [*row, f"({thing.note})"]


def _extra_rest(thing: UnexplainedShape) -> list[str | Cell]:
    nothing = _unknown()
    return [clean(thing.instance_id, 40), nothing, nothing, nothing, thing.seen, nothing]


def show_rental(screen: Screen, rental: RentalShape) -> None:
    """Print one rental in full, as `rent` does in the end."""
    if screen.form is Form.NAME:
        screen.names([rental.key])
        return
    if screen.is_data:
        screen.data(_without_history(rental))
        return
    where = f", {rental.region}" if rental.region else ""
    facts = [
        ("key", rental.key),
        ("name", clean(name_of(rental), 70)),
        ("state", rental.state),
        ("machine", f"{gpus_of(rental.gpu_model, rental.gpu_count)}{where}, {rental.provider}"),
        ("price", f"{hourly(rental)}, all-in"),
    ]
    if rental.live and rental.paid_until is not None:
        until = f"{rental.paid_until:%Y-%m-%d %H:%M} UTC; more is bought while `gp4u serve` runs"
        facts.append(("paid", f"until {until}"))
    facts += [("endpoint", f"{_port(e)} → {e.url or e.address}") for e in rental.endpoints]
    for name, value in facts:
        screen.text(f"{screen.out.painted(f'{name:<9}', 'dim')} {value}\n")


_SETTINGS: Final = (
    Column(head="VARIABLE"),
    Column(head="VALUE", least=12),
    Column(head="ORIGIN", least=11),
    Column(head="MEANING", drop=1),
)


def show_settings(screen: Screen, settings: Settings) -> None:
    """Print what is in force, where each value came from, secrets hidden."""
    rows = settings.table()
    if screen.form is Form.NAME:
        screen.names(row.variable for row in rows)
    elif screen.is_data:
        screen.data([row._asdict() for row in rows])
    else:
        lines: list[Row] = []
        for row in rows:
            style = "dim" if row.origin == "default" else ""
            value = row.value or UNKNOWN
            if row.value and row.unit not in _VALUELESS_UNITS:
                value = f"{row.value} {row.unit}"
            cells = [row.variable, clean(value), clean(row.origin), row.meaning]
            lines.append([Cell(text, style) for text in cells])
        screen.table(_SETTINGS, lines)


def hourly(rental: RentalShape) -> str:
    """Return what a rental costs in an hour, as it stands in a sentence; `~` marks an estimate."""
    return f"{'~' if rental.estimated else ''}${price(rental.price_usd_per_hour)}/h"


def price(usd_per_hour: Decimal, *, estimated: bool = False) -> str:
    """Return dollars per hour to the tenth of a cent; `~` marks an estimate."""
    return ("~" if estimated else "") + f"{usd_per_hour:.3f}"


def _port(endpoint: EndpointShape) -> str:
    return f"{endpoint.port}/udp" if endpoint.protocol != "tcp" else f"{endpoint.port}"


def _unknown() -> Cell:
    return Cell(UNKNOWN, "dim")


def _share(value: float | None) -> str | Cell:
    """Return a share in percent, cut and not rounded: 99.96 % is not yet 100 %."""
    return _unknown() if value is None else f"{int(value * 1000 + 1e-9) / 10:.1f} %"


def _number(value: float | None, unit: str = "") -> str | Cell:
    return _unknown() if value is None else f"{value:,.0f}{unit}"
