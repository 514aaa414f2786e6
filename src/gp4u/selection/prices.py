"""What GPUs cost: prices by model and market, over everything that a snapshot holds.

One offer may be of eight GPUs, and its neighbour of one; what compares is a GPU and hour. Hides how
a market of hundreds of thousands of offers is put in groups without holding up anybody: stretch by
stretch, then group by group, with a turn for others before each. Keeping prices over time is
`rentals/history.py`.

Only offers that can be had now and that nobody can take away count: a bid is another good, and what
is rented already has no price today.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from decimal import Decimal
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from gp4u.model import Snapshot, Stretch
from gp4u.providers.turns import in_turns

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_MICRO: Final = 6
"""Decimals that are kept."""


class ModelPrices(Struct, frozen=True, kw_only=True):
    """Prices of one GPU model at one market at one moment, in USD per GPU and hour, all-in."""

    gpu_model: str
    provider: str
    count: int
    """Offers that the prices are taken from."""
    gpus: int
    """GPUs in them."""
    vram_gib: float
    """Of one GPU; the least where offers differ."""
    min: Decimal
    median: Decimal
    """The price at or below which half of the offers are; always one that is asked."""
    p90: Decimal


class _Group:
    """Everything of one model at one market, stretch by stretch."""

    __slots__ = ("gpus", "usd", "vram_gib")

    def __init__(self) -> None:
        self.usd: list[NDArray[np.float64]] = []
        self.gpus = 0
        self.vram_gib = math.inf


_Groups = dict[tuple[str, str], _Group]


async def model_prices(snapshot: Snapshot, provider: str | None = None) -> list[ModelPrices]:
    """Return the prices of each model at each market, or at one, by market and model."""
    groups: _Groups = defaultdict(_Group)
    await in_turns(_sorted_in(groups, snapshot.stretches, provider), piece=1)
    return await in_turns(_told(groups), piece=1)


def _sorted_in(
    groups: _Groups, parts: Iterable[Stretch], provider: str | None
) -> Iterator[Stretch]:
    """Yield each stretch whose offers have been added to their groups."""
    for part in parts:
        _sort_in(groups, part, provider)
        yield part


def _sort_in(groups: _Groups, part: Stretch, provider: str | None) -> None:
    import numpy as np  # 60 ms that most commands never need

    columns = part.columns
    wanted = columns.available & ~columns.interruptible & (columns.gpu_count >= 1)
    wanted &= np.isfinite(columns.price)
    for place, slug in enumerate(columns.provider.values):
        if provider is not None and slug != provider:
            continue
        rows = np.flatnonzero(wanted & (columns.provider.codes == place))
        if not len(rows):
            continue
        codes = columns.gpu.codes[rows]
        order = np.argsort(codes, kind="stable")
        rows, codes = rows[order], codes[order]
        usd = columns.price[rows] / columns.gpu_count[rows]
        starts = np.flatnonzero(np.diff(codes, prepend=-1))
        for start, end in zip(starts, [*starts[1:], len(rows)], strict=True):
            group = groups[str(slug), str(columns.gpu.values[codes[start]])]
            group.usd.append(usd[start:end])
            group.gpus += int(columns.gpu_count[rows[start:end]].sum())
            group.vram_gib = min(group.vram_gib, float(columns.vram_gib[rows[start:end]].min()))


def _told(groups: _Groups) -> Iterator[ModelPrices]:
    import numpy as np  # 60 ms that most commands never need

    for slug, model in sorted(groups):
        group = groups[slug, model]
        usd = np.sort(np.concatenate(group.usd))
        yield ModelPrices(
            gpu_model=model,
            provider=slug,
            count=len(usd),
            gpus=group.gpus,
            vram_gib=group.vram_gib,
            min=_dollars(usd[0]),
            median=_dollars(usd[_rank(0.5, len(usd))]),
            p90=_dollars(usd[_rank(0.9, len(usd))]),
        )


def _rank(share: float, of: int) -> int:
    """Return the place of the value below or at which that share of the sorted ones lies."""
    return math.ceil(share * of) - 1


def _dollars(usd: float) -> Decimal:
    return Decimal(f"{usd:.{_MICRO}f}")
