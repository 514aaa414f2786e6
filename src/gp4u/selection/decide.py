"""Who comes first, why the others do not, and how to say it.

`decide` is a function of a snapshot, a demand and a moment; nothing else gets in, so the same
inputs give the same decision whatever the order in which the offers came. The work per offer is
done in numpy; the objects that people look at (`Candidate`, `Rejection`) are made when touched,
since of ten thousand offers a caller reads ten.

Ties are broken by a stated order, never at random: lower price, higher reliability (unknown last),
provider, offer id. Two scores tie when they agree to nine decimals. That is a fixed grid, not "less
than 1e-9 apart": nearness is not transitive, and with it a third offer could decide who wins.

Left to others: what passes (`filters.py`), what it scores (`scorers.py`), who rents it.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from datetime import datetime
from decimal import Decimal
from functools import cached_property
from typing import Generic, TypeVar, overload

import msgspec
import numpy as np
from numpy.typing import NDArray

from gp4u.model import (
    Candidate,
    Decision,
    Demand,
    Offer,
    Rejection,
    Relaxation,
    Requirements,
    Snapshot,
)
from gp4u.selection.filters import DEFAULT_MAX_AGE_S, Asked, Mask, Rows, floored, verdicts
from gp4u.selection.gscore import g_score
from gp4u.selection.scorers import Field, Scored, score

TIE_DECIMALS = 9
_FIRST_RANKED = 64
"""How many of the best are put in order at once; most callers look no further."""
_TEN_CENTS = Decimal("0.10")
_UNSET = Requirements()

Entry = TypeVar("Entry", Candidate, Rejection)


class Sieve:
    """Every bound's verdict over one snapshot."""

    def __init__(self, snapshot: Snapshot, asked: Asked) -> None:
        self.offers, self.columns = snapshot.offers, snapshot.columns
        self.verdicts = verdicts(snapshot.columns, asked)
        self._passes: Mask = np.array([said.passes for said in self.verdicts])
        """Bound by offer."""
        self.fits: Mask = np.logical_and.reduce(self._passes, axis=0)

    @cached_property
    def first_no(self) -> NDArray[np.intp]:
        """Per offer the index of the first verdict that says no; meaningless where all say yes."""
        first: NDArray[np.intp] = self._passes.argmin(axis=0)
        return first

    @cached_property
    def breaches(self) -> NDArray[np.intp]:
        """Per offer the number of bounds it breaks."""
        broken: NDArray[np.intp] = np.sum(~self._passes, axis=0)
        return broken

    def rejected_by(self, index: int) -> Rows:
        """Rows whose first no comes from this verdict."""
        return np.flatnonzero(~self.fits & (self.first_no == index))

    def rejected_only_by(self, index: int) -> Rows:
        """Rows that break this bound and no other."""
        return np.flatnonzero(~self._passes[index] & (self.breaches == 1))

    def broken_by(self, row: int) -> list[str]:
        """Return every bound that one offer breaks, with its value: `ports >= 2 (1)`."""
        return [
            f"{said.filter} {said.bound} ({said.value(self.offers[row])})"
            for said, passes in zip(self.verdicts, self._passes[:, row], strict=True)
            if not passes
        ]


class _Lazy(Sequence[Entry], Generic[Entry]):
    """A sequence that knows its length, and makes its entries when they are touched."""

    def __init__(self, offers: tuple[Offer, ...], rows: Rows) -> None:
        self._offers, self._rows = offers, rows
        self._made: dict[int, Entry] = {}

    @abstractmethod
    def _position(self, index: int) -> int:
        """Where in `_rows` the entry of this rank is."""

    @abstractmethod
    def _make(self, position: int) -> Entry:
        """Build the entry at a position of `_rows`."""

    def _entry(self, position: int) -> Entry:
        if position not in self._made:
            self._made[position] = self._make(position)
        return self._made[position]

    def find(self, provider: str, offer_id: str) -> Entry | None:
        """Return the entry of one offer, without making or ordering the others."""
        wanted = (provider, offer_id)
        for position, row in enumerate(self._rows.tolist()):
            if self._offers[row].id == wanted:
                return self._entry(position)
        return None

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Entry: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Entry]: ...
    def __getitem__(self, index: int | slice) -> Entry | Sequence[Entry]:
        if isinstance(index, slice):
            return tuple(self[i] for i in range(*index.indices(len(self))))
        if not -len(self) <= index < len(self):
            raise IndexError(f"{index} is not a rank among {len(self)}")
        return self._entry(self._position(index % len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]  # compared by content, like a list


class Ranking(_Lazy[Candidate]):
    """The offers that fit, best first; only as far down as somebody looks is anything ordered."""

    def __init__(self, offers: tuple[Offer, ...], rows: Rows, scored: Scored) -> None:
        super().__init__(offers, rows)
        self._scored = scored
        self._grid = np.rint(scored.total * 10**TIE_DECIMALS)
        self._order: list[int] = []

    def _position(self, index: int) -> int:
        if index >= len(self._order):
            self._order = self._best(max(2 * (index + 1), _FIRST_RANKED))
        return self._order[index]

    def _best(self, count: int) -> list[int]:
        """At least so many positions, in order; all who tie with the last one are among them."""
        if count >= len(self):
            head = np.arange(len(self))
        else:
            worst = len(self) - count
            head = np.flatnonzero(self._grid >= np.partition(self._grid, worst)[worst])
        return sorted(head.tolist(), key=self._place)

    def _place(self, position: int) -> tuple[object, ...]:
        offer = self._offers[self._rows[position]]
        unreliability = math.inf if offer.reliability is None else -offer.reliability
        return (-self._grid[position], offer.price_usd_per_hour, unreliability, *offer.id)

    def _make(self, position: int) -> Candidate:
        offer = self._offers[self._rows[position]]
        known = g_score(offer)
        return Candidate(
            offer=offer,
            score=float(self._scored.total[position]),
            parts={name: float(part[position]) for name, part in self._scored.parts.items()},
            g_score=known.score if known else None,
        )


class Rejections(_Lazy[Rejection]):
    """The offers that do not fit, by the filter that said no, then provider and offer id."""

    def __init__(self, sieve: Sieve) -> None:
        super().__init__(sieve.offers, np.flatnonzero(~sieve.fits))
        self.sieve = sieve

    @cached_property
    def _order(self) -> list[int]:
        first_no = self.sieve.first_no[self._rows].tolist()
        ids = [self._offers[row].id for row in self._rows.tolist()]
        return sorted(range(len(ids)), key=lambda position: (first_no[position], *ids[position]))

    def _position(self, index: int) -> int:
        return self._order[index]

    def _make(self, position: int) -> Rejection:
        row = self._rows[position]
        said, offer = self.sieve.verdicts[self.sieve.first_no[row]], self._offers[row]
        return Rejection(offer=offer, filter=said.filter, value=said.value(offer), bound=said.bound)


def decide(
    snapshot: Snapshot, demand: Demand, *, at: datetime, max_age_s: float = DEFAULT_MAX_AGE_S
) -> Decision:
    """Return the whole answer to a demand: who fits, best first, and why the others do not.

    `at` is aware; an offer fetched more than `max_age_s` before it is never a candidate.

    Raises:
        BadInput: the demand's weights are no weights.
    """
    elapsed_s = (at - snapshot.taken_at).total_seconds()
    sieve = Sieve(snapshot, Asked(demand.requirements, at, elapsed_s, max_age_s))
    rows = np.flatnonzero(sieve.fits)
    field = Field(snapshot.columns, rows, demand.requirements, elapsed_s)
    return Decision(
        demand=demand,
        decided_at=at,
        candidates=Ranking(snapshot.offers, rows, score(field, demand.preferences.weights)),
        rejections=Rejections(sieve),
        sources=snapshot.sources,
    )


def relaxations(decision: Decision) -> tuple[Relaxation, ...]:
    """Return what each broken bound alone keeps out, the most first, then in the filters' order."""
    sieve = _sieve(decision)
    found = []
    for index, said in enumerate(sieve.verdicts):
        if said.passes.all():
            continue
        alone = sieve.rejected_only_by(index)
        found.append(
            Relaxation(
                filter=said.filter,
                bound=said.bound,
                excluded_alone=len(alone),
                nearest=said.nearest(alone),
            )
        )
    return tuple(sorted(found, key=lambda relaxation: -relaxation.excluded_alone))


class LeftOut(msgspec.Struct, frozen=True, kw_only=True):
    """A market none of whose offers fits, and what its nearest one lacks."""

    provider: str
    offers: int
    nearest: Offer
    """Of those that break the fewest bounds the cheapest."""
    broken: tuple[str, ...]
    """Each bound that it breaks, with its value: `ports >= 2 (1)`."""


def left_out(decision: Decision) -> tuple[LeftOut, ...]:
    """Return each market that offers something, but nothing that fits, by name."""
    sieve = _sieve(decision)
    providers, price = sieve.columns.provider, sieve.columns.price
    found = []
    for code, slug in sorted(enumerate(providers.values), key=lambda pair: str(pair[1])):
        rows = np.flatnonzero(providers.codes == code)
        if sieve.fits[rows].any():
            continue
        near = rows[sieve.breaches[rows] == sieve.breaches[rows].min()]
        row = int(near[np.argmin(price[near])])
        found.append(
            LeftOut(
                provider=str(slug),
                offers=len(rows),
                nearest=sieve.offers[row],
                broken=tuple(sieve.broken_by(row)),
            )
        )
    return tuple(found)


def explain(decision: Decision) -> str:
    """Return one sentence that counts the reasons, and a line per bound that could be relaxed.

    The sentence has the form that `kubectl describe pod` has made familiar:
    `0/64 offers fit: 40 price above $0.50/h, 12 reliability below 0.95, 12 reliability unknown.`
    """
    fitting, total = len(decision.candidates), len(decision.candidates) + len(decision.rejections)
    reasons = ", ".join(f"{count} {reason}" for reason, count in _histogram(_sieve(decision)))
    if not total:
        reasons = "nobody offers anything now"
    lines = [f"{fitting}/{total} offers fit{': ' if reasons else ''}{reasons}."]
    if decision.rejections:
        lines += _relaxation_lines(relaxations(decision))
    lines += [
        f"  {note.provider} could not be asked: {note.error}; "
        f"its {note.offers} offers are {note.age_s:.0f} s old"
        for note in decision.sources
        if note.error
    ]
    return "\n".join(lines)


def why_not(decision: Decision, provider: str, offer_id: str) -> Rejection | Candidate | None:
    """Return what became of one offer; None for an offer that the decision never saw."""
    return _found(decision.rejections, provider, offer_id) or _found(
        decision.candidates, provider, offer_id
    )


def selection_log(decision: Decision, *, prefix: str = "VAST", top: int = 3) -> list[str]:
    """Return the lines that tell a person how the machine was chosen.

    Source: the second seed, "Example Selection Log"; `endpoint_log` has its last lines.
    """
    fitting, total = len(decision.candidates), len(decision.candidates) + len(decision.rejections)
    lines = [
        f"[{prefix}] Searching for instances matching: {_matching(decision.demand.requirements)}",
        f"[{prefix}] Found {total} candidates, filtering...",
        f"[{prefix}] After filtering: {fitting} instances remain",
    ]
    best = decision.best
    if best is None:
        return [*lines, f"[{prefix}] No instance fits: {explain(decision)}"]
    lines.append(f"[{prefix}] Scoring instances:")
    lines += [_scored_line(candidate) for candidate in decision.candidates[:top]]
    return [*lines, f"[{prefix}] Selected instance {_word(best.offer.offer_id)} - launching..."]


def endpoint_log(prefix: str, endpoints: Iterable[tuple[str, int, str, int]]) -> list[str]:
    """Return the lines that follow once it answers, one per (name, container port, host, port)."""
    return [
        f"[{prefix}] Instance ready, updating service endpoints:",
        *(
            f"  - {name}:{container_port} → {f'[{host}]' if ':' in host else host}:{port}"
            for name, container_port, host, port in endpoints
        ),
    ]


def to_json(decision: Decision, *, top: int | None, rejections: bool) -> dict[str, object]:
    """Return the decision as plain JSON-able values; prices are strings, unknown is null.

    `top` limits `ranked` (None: all); `rejections` is a key only where it is asked for.
    """
    best = decision.best
    answer: dict[str, object] = {
        "offer": best.offer.offer_id if best else None,
        "provider": best.offer.provider if best else None,
        "score": best.score if best else None,
        "candidates": len(decision.candidates),
        "rejected": len(decision.rejections),
        "ranked": [_ranked(candidate) for candidate in decision.candidates[:top]],
        "relaxations": [msgspec.to_builtins(found) for found in relaxations(decision)],
        "sources": [msgspec.to_builtins(note) for note in decision.sources],
        "decided_at": decision.decided_at.isoformat(),
    }
    if rejections:
        answer["rejections"] = [_rejected(rejection) for rejection in decision.rejections]
    return answer


def _sieve(decision: Decision) -> Sieve:
    """The verdicts behind a decision; asked anew where it was not made in this process."""
    if isinstance(decision.rejections, Rejections):
        return decision.rejections.sieve
    offers = [rejection.offer for rejection in decision.rejections]
    offers += [candidate.offer for candidate in decision.candidates]
    snapshot = Snapshot(offers, taken_at=decision.decided_at)
    return Sieve(snapshot, Asked(decision.demand.requirements, decision.decided_at, 0.0))


def _histogram(sieve: Sieve) -> list[tuple[str, int]]:
    """Reasons with their counts, the most frequent first; unknown values are counted by name."""
    counts: list[tuple[str, int]] = []
    for index, said in enumerate(sieve.verdicts):
        rows = sieve.rejected_by(index)
        unknown = int(said.missing()[rows].sum()) if said.missing and rows.size else 0
        counts += [(said.breach, len(rows) - unknown), (f"{said.filter} unknown", unknown)]
    return sorted((pair for pair in counts if pair[1]), key=lambda pair: -pair[1])


def _relaxation_lines(found: tuple[Relaxation, ...]) -> list[str]:
    alone = [relaxation for relaxation in found if relaxation.excluded_alone]
    if not alone:
        return ["  no single bound keeps an offer out by itself: at least two must give way"]
    return [
        f"  {one.filter} {one.bound} alone keeps out {one.excluded_alone}; "
        + (f"nearest that admits some: {one.nearest}" if one.nearest else "no value admits any")
        for one in alone
    ]


def _found(entries: Sequence[Entry], provider: str, offer_id: str) -> Entry | None:
    if isinstance(entries, _Lazy):
        return entries.find(provider, offer_id)
    return next((entry for entry in entries if entry.offer.id == (provider, offer_id)), None)


def _matching(asked: Requirements) -> str:
    """The bounds that were set, in the seed's words and order."""
    wanted = "/".join(_word(model) for model in asked.gpu_models) or "any GPU"
    price = asked.max_price_usd_per_hour
    bounds: tuple[tuple[str, object], ...] = (
        ("{}", _times(asked.gpu_count or 1, wanted)),
        ("{:g}GB+", asked.min_vram_gib),
        ("<{}/hr", None if price is None else _money(price)),
        ("{}+ reliability", None if (r := asked.min_reliability) is None else _percent(r, 4)),
        ("{:g}Mbps+", asked.min_download_mbps),
        ("{}", "/".join(asked.locations) or None),
        ("{:g}+ CPUs", asked.min_cpus),
        ("{:g}GB+ RAM", asked.min_ram_gib),
        ("{:g}GB+ disk", asked.disk_gib if asked.disk_gib != _UNSET.disk_gib else None),
        ("{}+ ports", asked.ports or None),
        ("{}", "interruptible" if asked.interruptible else None),
        ("{}", None if asked.verified_only else "unverified too"),
        ("{}", "datacenter" if asked.datacenter_only else None),
        ("on {}", "/".join(asked.providers) or None),
    )
    return ", ".join(text.format(value) for text, value in bounds if value is not None)


def _scored_line(candidate: Candidate) -> str:
    offer = candidate.offer
    known = offer.reliability
    reliability = "reliability unknown" if known is None else f"{_percent(known, 1)} reliability"
    region = offer.region.code if offer.region else "-"
    gpu = _times(offer.gpu_count, _word(offer.gpu_model) or "-")
    about = "~" if offer.estimated else ""
    return (
        f"  - Instance {_word(offer.offer_id)}: Score {candidate.score:.2f} "
        f"({gpu}, {about}{_money(offer.price_usd_per_hour)}/hr, {region}, {reliability})"
    )


def _times(count: int, gpu: str) -> str:
    return gpu if count == 1 else f"{count}x {gpu}"


def _word(foreign: str) -> str:
    """A market's name as one word that is safe on a terminal: no blanks, no control characters."""
    return "".join(char for char in foreign if char.isprintable() and not char.isspace())


def _money(amount: Decimal) -> str:
    """Cents, or hundredths of a cent for what costs less than ten cents."""
    return f"${amount:.2f}" if amount >= _TEN_CENTS else f"${amount:.4f}"


def _percent(share: float, places: int) -> str:
    """Cut and not rounded: 0.9996 is not yet 100 %."""
    return f"{floored(Decimal(repr(share)) * 100, places)}%"


def _ranked(candidate: Candidate) -> dict[str, object]:
    offer = candidate.offer
    known = g_score(offer)
    return {
        "provider": offer.provider,
        "offer_id": offer.offer_id,
        "score": candidate.score,
        "parts": dict(candidate.parts),
        "g_score": candidate.g_score,
        "g_score_parts": known.parts if known else None,
        "gpu_model": offer.gpu_model,
        "gpu_count": offer.gpu_count,
        "vram_gib": offer.vram_gib,
        "price_usd_per_hour": format(offer.price_usd_per_hour, "f"),
        "region": offer.region.code if offer.region else None,
        "reliability": offer.reliability,
        "download_mbps": offer.download_mbps,
        "interruptible": offer.interruptible,
        "fetched_at": offer.fetched_at.isoformat(),
    }


def _rejected(rejection: Rejection) -> dict[str, object]:
    return {
        "provider": rejection.offer.provider,
        "offer_id": rejection.offer.offer_id,
        "filter": rejection.filter,
        "value": rejection.value,
        "bound": rejection.bound,
    }
