"""What somebody who walks through pages has been shown already.

A market moves while it is walked through. By its place in the order alone, an offer whose price
rises over the cursor would come twice, and one whose price falls under it never. So a cursor also
names what went before it: of each page a set of numbers, one per offer, and the page before that.
The next page is then the first of what has not been shown.

Only so much is remembered, and nothing over a restart. Whose walk is forgotten goes on by place.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.int64]

MOST_BYTES: Final = 8 * 1024 * 1024
"""Of all walks together: a million offers."""
MERGED: Final = 4
"""Walks whose pages are also kept as one, for their next step."""
_NODE_BYTES: Final = 400
"""What a page costs beside its numbers."""


class _Page(NamedTuple):
    before: str
    """Name of the page before it; empty for the first."""
    hashes: Hashes

    @property
    def size(self) -> int:
        return self.hashes.nbytes + _NODE_BYTES


class Walks:
    """See the module's docstring."""

    def __init__(self) -> None:
        self._pages: OrderedDict[str, _Page] = OrderedDict()
        self._merged: OrderedDict[str, Hashes] = OrderedDict()
        self._size = 0

    def add(self, before: str, hashes: Hashes) -> str:
        """Remember a page that follows another one (empty: none), and return its name."""
        name = secrets.token_hex(8)
        shown = self.shown(before) if before else np.empty(0, np.int64)
        self._pages[name] = page = _Page(before, hashes)
        self._size += page.size
        if shown is not None:
            self._merge(name, np.sort(np.concatenate([shown, hashes]), kind="stable"))
        while self._size > MOST_BYTES:
            gone, page = self._pages.popitem(last=False)
            self._merged.pop(gone, None)
            self._size -= page.size
        return name

    def shown(self, name: str) -> Hashes | None:
        """Return the numbers of all that was shown up to a page, sorted; None if forgotten."""
        parts: list[Hashes] = []
        at = name
        while at:
            page = self._pages.get(at)
            if page is None:
                return None
            self._pages.move_to_end(at)
            parts.append(page.hashes)
            at = page.before
        if name not in self._merged:
            self._merge(name, np.sort(np.concatenate(parts)))
        self._merged.move_to_end(name)
        return self._merged[name]

    def _merge(self, name: str, hashes: Hashes) -> None:
        self._merged[name] = hashes
        while len(self._merged) > MERGED:
            self._merged.popitem(last=False)


def among(hashes: Hashes, shown: Hashes) -> NDArray[np.bool_]:
    """Return which numbers are among sorted ones."""
    if not shown.size:
        return np.zeros(len(hashes), np.bool_)
    places = np.minimum(np.searchsorted(shown, hashes), len(shown) - 1)
    found: NDArray[np.bool_] = shown[places] == hashes
    return found
