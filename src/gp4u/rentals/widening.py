"""What would have to give way where a market's own search left everything out.

A market is asked with some of a demand's bounds, so what breaks those never comes here, and nobody
could say by which of them it failed. Where a market showed nothing at all, it is asked once more
with these bounds open: first for the same GPUs, then for any. The offers that come are judged by
the demand as it is; so they are rejections with a reason, and the same explanation fits all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from msgspec.structs import replace

from gp4u.book import Book
from gp4u.model import Requirements, Snapshot
from gp4u.providers.contract import Query

APART_S = 60.0
"""A wider search is not asked again for so long, by however many who all find nothing."""


class WiderLook:
    """Asks the book, for everybody who decides in this process."""

    def __init__(self, book: Book) -> None:
        self._book = book
        self._answered: dict[Query, float] = {}
        """Wider query to the loop time when it last was answered."""

    async def add_to(self, snapshot: Snapshot, wanted: Requirements) -> Snapshot:
        """Return the snapshot with what silent markets have for a wider search; itself if nothing.

        What could not be asked is left as it was: an explanation is not worth an error.
        """
        for wider in wider_searches(wanted):
            silent = [note.provider for note in snapshot.sources if not (note.offers or note.error)]
            if not silent:
                break
            # Everybody's standing search is among these, unless only some are silent.
            only = wanted.providers if len(silent) == len(snapshot.sources) else tuple(silent)
            query = Query(requirements=replace(wider, providers=only))
            snapshot = _joined(snapshot, await self._look(query), silent)
        return snapshot

    async def _look(self, query: Query) -> Snapshot:
        now = asyncio.get_running_loop().time
        if now() - self._answered.get(query, -APART_S) < APART_S:
            return self._book.current(query)
        found = await self._book.snapshot(query)  # one fetch for all who ask meanwhile
        recent = {each: at for each, at in self._answered.items() if now() - at < APART_S}
        self._answered = {**recent, query: now()}
        return found


def wider_searches(wanted: Requirements) -> Iterator[Requirements]:
    """Yield what to ask instead, wider and wider; disk stays, since prices are with it."""
    any_gpu = Requirements(
        gpu_count=None,
        verified_only=False,
        disk_gib=wanted.disk_gib,
        interruptible=wanted.interruptible,
    )
    if wanted.gpu_models:
        yield replace(any_gpu, gpu_models=wanted.gpu_models)
    yield any_gpu
    if wanted.interruptible:
        yield replace(any_gpu, interruptible=False)


def _joined(snapshot: Snapshot, wider: Snapshot, silent: list[str]) -> Snapshot:
    """Return both as one; of each silent market the wider look counts, if it was one."""
    told = {note.provider: note for note in wider.sources if note.offers and not note.error}
    seen = [provider for provider in silent if provider in told]
    if not seen:
        return snapshot
    return Snapshot(
        of=[*snapshot.stretches, *wider.stretches],
        taken_at=max(snapshot.taken_at, wider.taken_at),
        sources=tuple(
            told[note.provider] if note.provider in seen else note for note in snapshot.sources
        ),
    )
