"""How the G-Scores of a whole market are spread, told without holding up anybody.

Scores are counted in steps of a tenth of a point, stretch by stretch, with a turn for others before
each, and each stretch once: markets are fetched one by one, so most of a new snapshot has been
counted before. A tenth is as fine as a score is ever shown, and counts add up where percentiles do
not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Final
from weakref import WeakKeyDictionary

from msgspec import Struct

from gp4u.model import Snapshot, Stretch
from gp4u.providers.turns import in_turns
from gp4u.selection.gscore import g_scores

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_STEPS: Final = 1000
"""Of a tenth of a point each."""
_PER_POINT: Final = 10
BUCKETS: Final = 10
"""Equal parts of 0..100."""
PERCENTILES: Final = (0.10, 0.25, 0.50, 0.75, 0.90)


class Spread(Struct, frozen=True, kw_only=True):
    """How some offers' scores are spread over 0..100; the numbers are None where none has one."""

    scored: int
    unscored: int
    """Offers of GPUs that the formula knows too little of."""
    buckets: tuple[int, ...]
    """How many lie in 0..10, 10..20, ..., 90..100; a bound belongs to the upper one."""
    percentiles: tuple[float, ...] | None
    """At the shares of `PERCENTILES`, to a tenth of a point."""
    lowest: float | None
    highest: float | None


class _Tally:
    """Counts by step, and offers without a score."""

    __slots__ = ("counts", "unscored")

    def __init__(self, counts: NDArray[np.int64], unscored: int) -> None:
        self.counts, self.unscored = counts, unscored


class Spreads:
    """Remembers what it has counted for as long as somebody holds the offers."""

    def __init__(self) -> None:
        self._counted: WeakKeyDictionary[Stretch, Mapping[str, _Tally]] = WeakKeyDictionary()

    async def of(self, snapshot: Snapshot) -> tuple[Spread, Mapping[str, Spread]]:
        """Return the spread over all offers, and by market."""
        parts = snapshot.stretches
        tallies = await in_turns(map(self._tally, parts), piece=1)
        slugs = sorted({slug for found in tallies for slug in found})
        by_slug = {slug: [found[slug] for found in tallies if slug in found] for slug in slugs}
        every = [tally for found in tallies for tally in found.values()]
        return _spread(every), {slug: _spread(own) for slug, own in by_slug.items()}

    def _tally(self, part: Stretch) -> Mapping[str, _Tally]:
        known = self._counted.get(part)
        if known is None:
            known = self._counted[part] = _count(part)
        return known


def _count(part: Stretch) -> Mapping[str, _Tally]:
    import numpy as np  # 60 ms that most commands never need

    snapshot = Snapshot(taken_at=part.columns.taken_at, of=[part])
    scores, market = g_scores(snapshot), part.columns.provider
    found = {}
    for place, slug in enumerate(market.values):
        own = scores[market.codes == place]
        known = own[~np.isnan(own)]
        steps = np.clip(np.rint(known * _PER_POINT), 0, _STEPS).astype(np.int64)
        counts = np.bincount(steps, minlength=_STEPS + 1)
        found[str(slug)] = _Tally(counts, len(own) - len(known))
    return found


def _spread(tallies: Iterable[_Tally]) -> Spread:
    import numpy as np  # 60 ms that most commands never need

    counts, unscored = np.zeros(_STEPS + 1, np.int64), 0
    for tally in tallies:
        counts += tally.counts
        unscored += tally.unscored
    scored = int(counts.sum())
    wide = _STEPS // BUCKETS
    buckets = counts[:_STEPS].reshape(BUCKETS, wide).sum(axis=1)
    buckets[-1] += counts[_STEPS]  # a full hundred
    known = np.flatnonzero(counts)
    percentiles = None
    if scored:
        up_to = np.cumsum(counts)
        percentiles = tuple(
            int(np.searchsorted(up_to, np.ceil(share * scored))) / _PER_POINT
            for share in PERCENTILES
        )
    return Spread(
        scored=scored,
        unscored=unscored,
        buckets=tuple(map(int, buckets)),
        percentiles=percentiles,
        lowest=int(known[0]) / _PER_POINT if scored else None,
        highest=int(known[-1]) / _PER_POINT if scored else None,
    )
