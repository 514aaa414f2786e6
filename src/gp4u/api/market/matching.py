"""Which offers a listing has, and in which order: columns against filters, one stretch at a time.

Pure, and cut into steps of about a millisecond by whoever calls: a `Picker` or an `Order` is shown
one stretch after the other and knows the answer when it has seen all. A page never sorts a whole
market: of each stretch at most a page is kept, and only what can still be on it.

Unknown is last in either direction, and ties are broken by market and offer id, so the order of
two offers never depends on what else there is.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from datetime import datetime
from functools import partial
from heapq import merge
from operator import attrgetter, is_, itemgetter
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gp4u import places
from gp4u.api.market.listing import Ask, Filters, Position
from gp4u.api.market.walks import Hashes, among
from gp4u.model import Coded, Offer, Region, Stretch
from gp4u.selection.gscore import scores_of
from gp4u.telemetry import clean

Numbers = NDArray[np.float64]
Mask = NDArray[np.bool_]

_COLUMNS: Final = {
    "price_usd_per_hour": "price",
    "gpu_count": "gpu_count",
    "vram_gib": "vram_gib",
    "reliability": "reliability",
    "download_mbps": "download_mbps",
    "cpu_cores": "cpus",
    "ram_gib": "ram_gib",
    "disk_gib": "disk_gib",
    "open_ports": "ports",
}
"""Field of an offer to column of a stretch."""

ID_CHARS: Final = 200
"""Of an offer's id, as `shapes.py` shows it."""
Placed = tuple[float, str, str, Offer]
"""An offer with what it is sorted by: value, market, offer id."""
_place = itemgetter(0, 1, 2)


def id_of(offer: Offer) -> tuple[str, str]:
    """Return market and offer id as they are shown: cleaned, where the market's is odd."""
    own = offer.offer_id
    is_plain = own.isascii() and own.isprintable() and " " not in own and len(own) <= ID_CHARS
    return offer.provider, own if is_plain else clean(own, ID_CHARS)


class Rows:
    """A stretch with what listings need beside its columns, each worked out when first wanted.

    It does not refer to the stretch, so that it may be kept for as long as the stretch is alive.
    """

    __slots__ = ("_by_id", "_extra", "_hashes", "columns", "offers")

    def __init__(self, stretch: Stretch) -> None:
        self.offers, self.columns = stretch.offers, stretch.columns
        self._extra: dict[str, Numbers] = {}
        self._by_id: tuple[NDArray[np.int32], NDArray[np.int32]] | None = None
        self._hashes: Hashes | None = None

    def numbers(self, name: str) -> Numbers:
        """Return a field of `listing.NUMBERS` by row; unknown is NaN."""
        if name in _COLUMNS:
            column: Numbers = getattr(self.columns, _COLUMNS[name])
            return column
        if name not in self._extra:
            if name == "g_score":
                self._extra[name] = scores_of(self.columns)
            else:
                found = list(map(attrgetter(name), self.offers))
                self._extra[name] = np.array(found, np.float64)  # None becomes NaN
        return self._extra[name]

    @property
    def by_id(self) -> NDArray[np.int32]:
        """Row numbers in the order of (market, offer id)."""
        return self._ordered()[0]

    @property
    def rank(self) -> NDArray[np.int32]:
        """The place of each row in `by_id`."""
        return self._ordered()[1]

    @property
    def hashes(self) -> Hashes:
        """A number for each row's `id_of`, the same for as long as we run."""
        if self._hashes is None:
            found = map(hash, map(id_of, self.offers))
            self._hashes = np.fromiter(found, np.int64, len(self.offers))
        return self._hashes

    def find(self, name: tuple[str, str]) -> Offer | None:
        """Return the offer that is shown under a market and an offer id."""
        for row in np.flatnonzero(self.hashes == hash(name)).tolist():
            if id_of(self.offers[row]) == name:
                return self.offers[row]
        return None

    def _ordered(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        if self._by_id is None:
            ids = [offer.id for offer in self.offers]
            by_id = np.array(sorted(range(len(ids)), key=ids.__getitem__), np.int32)
            rank = np.empty(len(ids), np.int32)
            rank[by_id] = np.arange(len(ids), dtype=np.int32)
            self._by_id = by_id, rank
        return self._by_id


def passing(rows: Rows, filters: Filters, at: datetime) -> Mask:
    """Return which rows pass; `at` is the moment that ages are told for."""
    columns = rows.columns
    found: Mask = np.ones(len(rows.offers), np.bool_)
    for bound in filters.bounds:
        column = rows.numbers(bound.name)
        found &= column >= bound.value if bound.least else column <= bound.value
    if filters.available is not None:
        found &= columns.available == filters.available
    for name, wanted in filters.flags:
        if name == "interruptible":
            found &= columns.interruptible == wanted
        else:
            told = columns.verified if name == "verified" else columns.datacenter
            found &= _per_value(told, partial(is_, wanted))
    if filters.providers:
        found &= _per_value(columns.provider, lambda slug: slug in filters.providers)
    if filters.gpu_models:
        found &= _per_value(columns.gpu, lambda model: model in filters.gpu_models)
    if filters.locations:
        found &= _per_value(columns.region, lambda region: _inside(region, filters.locations))
    if filters.max_age_s is not None:
        since_s = (at - columns.taken_at).total_seconds()
        found &= columns.age_s + since_s <= filters.max_age_s
    return found


def _inside(region: Hashable, tokens: Sequence[str]) -> bool:
    return isinstance(region, Region) and any(places.within(region, token) for token in tokens)


def _per_value(coded: Coded, holds: Callable[[Hashable], bool]) -> Mask:
    """Ask once per distinct value, then spread the answers over the rows."""
    answers: Mask = np.array([holds(value) for value in coded.values], np.bool_)[coded.codes]
    return answers


class Sorting:
    """An order of offers, as numbers of which the smallest comes first."""

    def __init__(self, ask: Ask, parts: Sequence[Rows]) -> None:
        self._name = ask.sort
        self._sign = -1.0 if ask.descending else 1.0
        self._words: tuple[str, ...] = ()
        """What texts are sorted as: their place among all there are."""
        if ask.sort in ("gpu_model", "provider"):
            coded = (self._coded(rows) for rows in parts)
            self._words = tuple(sorted({str(word) for each in coded for word in each.values}))

    def keys(self, rows: Rows) -> Numbers:
        """Return a row's place in the order, but for ties; unknown is infinite."""
        if self._words:
            coded = self._coded(rows)
            places_by = [bisect_left(self._words, str(word)) for word in coded.values]
            found = np.array(places_by, np.float64)[coded.codes]
        else:
            found = rows.numbers(self._name)
        return np.where(np.isnan(found), np.inf, self._sign * found)

    def key_of(self, position: Position) -> float:
        """Return the key of what a position was made of."""
        match position.value:
            case None:
                return np.inf
            case str() as word:
                # What is gone since lies between its neighbours.
                at = bisect_left(self._words, word)
                is_there = self._words[at : at + 1] == (word,)
                return self._sign * (at if is_there else at - 0.5)
            case number:
                return self._sign * number

    def position(self, placed: Placed, walk: str) -> Position:
        """Return the place of an offer, as something that outlives this order."""
        key, provider, offer_id, _ = placed
        value: float | str | None = None
        if np.isfinite(key):
            value = self._words[int(self._sign * key)] if self._words else float(self._sign * key)
        return Position(value, provider, offer_id, walk)

    def ahead(self, rows: Rows, keys: Numbers, position: Position, shown: Hashes | None) -> Mask:
        """Return which rows a walk has not seen; where that is forgotten, those after its place."""
        if shown is not None:
            return ~among(rows.hashes, shown)
        key = self.key_of(position)
        here = (position.provider, position.offer_id)
        passed = bisect_right(rows.by_id, here, key=lambda row: rows.offers[row].id)
        found: Mask = (keys > key) | ((keys == key) & (rows.rank >= passed))
        return found

    def _coded(self, rows: Rows) -> Coded:
        return rows.columns.gpu if self._name == "gpu_model" else rows.columns.provider


class Picker:
    """The first offers of an order, and how many there are."""

    def __init__(
        self, ask: Ask, sorting: Sorting, *, most: int, at: datetime, shown: Hashes | None = None
    ) -> None:
        """`shown` is what the walk that is asked for has seen; None: told by its place alone."""
        self._ask, self._sorting, self._most, self._at = ask, sorting, most, at
        self._shown = shown
        self._best: list[Placed] = []
        self.total = 0
        """All that pass, whether they come after the cursor or not."""

    def look(self, rows: Rows) -> None:
        """Take the next stretch into account."""
        found = passing(rows, self._ask.filters, self._at)
        self.total += int(np.count_nonzero(found))
        keys = self._sorting.keys(rows)
        if len(self._best) == self._most:
            found &= keys <= self._best[-1][0]
        if self._ask.after is not None:
            found &= self._sorting.ahead(rows, keys, self._ask.after, self._shown)
        chosen = _in_order(rows, keys, np.flatnonzero(found))[: self._most]
        if chosen.size:
            both = [*self._best, *_placed(rows, keys, chosen)]
            self._best = sorted(both, key=_place)[: self._most]

    @property
    def best(self) -> Sequence[Placed]:
        """The first ones among all that were looked at, in order."""
        return self._best


class Order:
    """All offers of an order, one after the other, without sorting them all at once."""

    def __init__(
        self, ask: Ask, sorting: Sorting, *, at: datetime, shown: Hashes | None = None
    ) -> None:
        """`shown` as for a `Picker`."""
        self._ask, self._sorting, self._at, self._shown = ask, sorting, at, shown
        self._parts: list[Iterable[Placed]] = []

    def look(self, rows: Rows) -> None:
        """Take the next stretch into account."""
        found = passing(rows, self._ask.filters, self._at)
        keys = self._sorting.keys(rows)
        if self._ask.after is not None:
            found &= self._sorting.ahead(rows, keys, self._ask.after, self._shown)
        chosen = _in_order(rows, keys, np.flatnonzero(found))
        if chosen.size:
            self._parts.append(_placed(rows, keys, chosen))

    def offers(self) -> Iterator[Offer]:
        """Yield them."""
        return (placed[3] for placed in merge(*self._parts, key=_place))


def _in_order(rows: Rows, keys: Numbers, chosen: NDArray[np.intp]) -> NDArray[np.intp]:
    return chosen[np.lexsort((rows.rank[chosen], keys[chosen]))] if chosen.size else chosen


def _placed(rows: Rows, keys: Numbers, chosen: NDArray[np.intp]) -> Iterator[Placed]:
    offers = rows.offers
    for row in chosen.tolist():
        offer = offers[row]
        yield float(keys[row]), offer.provider, offer.offer_id, offer
