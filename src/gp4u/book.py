"""The book: the newest offers of every provider. It *is* the cache.

A reader gets a frozen snapshot and never waits for a provider whose offers are young enough. How
long they stay young depends on how reliable the provider has been: a reliable one is asked seldom,
since little changes; an unreliable one soon, since its last answer may be wrong. When a provider
cannot answer, its last known offers stay, with their age and the error beside them; whether they
are still good enough to rent from is for the selection to say.

One fetch per provider and query is in flight at a time, whoever waits for it. Providers are asked
side by side, and none is waited for longer than `PATIENCE_S`, its tries, turns and pages together;
once one has answered, the others not longer than `LAGGARD_S` more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Final

from msgspec import Struct

from gp4u.clock import Clock
from gp4u.errors import ProviderError, RateLimitExceeded, Throttled, Unavailable
from gp4u.model import Snapshot, SourceNote, Stretch, stretches
from gp4u.providers.contract import OfferPage, Provider, Query
from gp4u.providers.turns import in_turns

UNTOLD_RETRY_S: Final = 6.0
"""After a 429 that names no time."""
PATIENCE_S: Final = 65.0
"""For all of one provider's answer: the slowest call that an adapter makes has 60 s."""
LAGGARD_S: Final = 20.0
"""For the others, once one provider has answered: Akash's price list takes 16 s when it is cold."""
MAX_QUERIES: Final = 64
"""Distinct queries remembered; the least recently used goes first."""


class TtlPolicy(Struct, frozen=True, kw_only=True):
    """How long offers stay young. Defaults are the first seed's."""

    base_s: float = 30.0
    max_s: float = 300.0
    min_s: float = 10.0
    enabled: bool = True

    def ttl_s(self, success_rate: float) -> float:
        """Return the seconds for a success rate of 0..1: the first seed's four steps."""
        if not self.enabled:
            return 0.0
        if success_rate >= 0.9:
            return self.max_s
        if success_rate >= 0.7:
            return min(self.max_s, 1.5 * self.base_s)
        if success_rate >= 0.5:
            return self.base_s
        return self.min_s


class BookStats(Struct, frozen=True, kw_only=True):
    """One provider's share of the book."""

    hits: int
    misses: int
    ttl_s: float
    offers: int
    """Held for all remembered queries together."""
    fetched_at: datetime | None
    """When the newest of them came in."""
    skipped_rows: int
    """Rows that broke their schema, since the process started."""
    error: str
    """Why the last fetch for some query failed; empty where none did."""


class _Shelf:
    """One provider and its counts."""

    __slots__ = ("hits", "misses", "provider", "skipped_rows", "success_rate")

    def __init__(self, provider: Provider, success_rate: Callable[[], float]) -> None:
        self.provider, self.success_rate = provider, success_rate
        self.hits = self.misses = self.skipped_rows = 0


class _Page:
    """What is known of one provider for one query; but for `doubts`, written under its lock."""

    __slots__ = (
        "doubts",
        "error",
        "fetched_at",
        "fresh_until",
        "known",
        "lock",
        "retry_in_s",
        "shelf",
        "stretches",
    )

    def __init__(self, shelf: _Shelf) -> None:
        self.shelf = shelf
        self.lock = asyncio.Lock()
        self.known = OfferPage(offers=())
        self.stretches: tuple[Stretch, ...] = ()
        """Its offers once more; they keep their columns for as long as they are known."""
        self.fetched_at: datetime | None = None
        self.fresh_until = 0.0
        self.error = ""
        self.retry_in_s: float | None = None
        self.doubts = 0
        """How often it was called old; a fetch that was under way then is old as well."""


class _Entry:
    """One query: its pages, and the snapshot of them while all are young."""

    __slots__ = ("fresh_until", "pages", "snapshot", "used_at")

    def __init__(self, pages: tuple[_Page, ...]) -> None:
        self.pages = pages
        self.snapshot: Snapshot | None = None
        self.fresh_until = self.used_at = 0.0


class Book:
    """All offers; see the module's docstring."""

    def __init__(
        self,
        providers: Mapping[str, Provider],
        success_rates: Mapping[str, Callable[[], float]],
        *,
        ttl: TtlPolicy,
        clock: Clock,
    ) -> None:
        """Both mappings are keyed by slug; success rates are 0..1."""
        self._shelves = {
            slug: _Shelf(provider, success_rates[slug]) for slug, provider in providers.items()
        }
        self._ttl, self._clock = ttl, clock
        self._entries: dict[Query, _Entry] = {}

    async def snapshot(self, query: Query) -> Snapshot:
        """Return a frozen view for a query, fetching only what is no longer young.

        A provider that fails adds its last known offers, or none, and a note; it never fails the
        snapshot, and never delays the others' part of it beyond its own deadline. A provider that
        is asked for and not open adds nothing.
        """
        at = asyncio.get_running_loop().time()
        entry = self._entries.get(query)
        if entry is None:
            entry = self._new_entry(query)
        entry.used_at = at
        if at < entry.fresh_until and entry.snapshot is not None:
            for page in entry.pages:
                page.shelf.hits += 1
            return entry.snapshot
        wait = _Wait()
        async with asyncio.TaskGroup() as group:
            for page in entry.pages:
                group.create_task(self._refresh(page, query, wait))
        entry.snapshot = self._merge(entry.pages)
        entry.fresh_until = min((page.fresh_until for page in entry.pages), default=0.0)
        return entry.snapshot

    def invalidate(self, provider: str | None = None) -> None:
        """Call the offers of one provider, or of all, old; they stay readable if a fetch fails."""
        for entry in self._entries.values():
            for page in entry.pages:
                if provider in (None, page.shelf.provider.spec.slug):
                    page.doubts += 1
                    page.fresh_until = entry.fresh_until = 0.0

    def stats(self) -> dict[str, BookStats]:
        """Return hits, misses and what is held, by provider."""
        pages = [page for entry in self._entries.values() for page in entry.pages]
        result = {}
        for slug, shelf in self._shelves.items():
            own = [page for page in pages if page.shelf is shelf]
            result[slug] = BookStats(
                hits=shelf.hits,
                misses=shelf.misses,
                ttl_s=self._ttl.ttl_s(shelf.success_rate()),
                offers=sum(len(page.known.offers) for page in own),
                fetched_at=max((p.fetched_at for p in own if p.fetched_at), default=None),
                skipped_rows=shelf.skipped_rows,
                error=next((page.error for page in own if page.error), ""),
            )
        return result

    def _new_entry(self, query: Query) -> _Entry:
        asked = query.requirements.providers
        shelves = [s for slug, s in self._shelves.items() if not asked or slug in asked]
        if len(self._entries) >= MAX_QUERIES:
            del self._entries[min(self._entries, key=lambda each: self._entries[each].used_at)]
        entry = self._entries[query] = _Entry(tuple(map(_Page, shelves)))
        return entry

    async def _refresh(self, page: _Page, query: Query, wait: _Wait) -> None:
        now, shelf = asyncio.get_running_loop().time, page.shelf
        if now() < page.fresh_until:
            shelf.hits += 1
            wait.shorten()
            return
        async with page.lock:
            if now() < page.fresh_until:  # somebody else has fetched it meanwhile
                shelf.hits += 1
                wait.shorten()
                return
            shelf.misses += 1
            doubts = page.doubts
            try:
                fetched = await wait.for_offers(shelf.provider, query)
            except ProviderError as error:
                page.error, page.retry_in_s = str(error), _retry_in_s(error)
                # Asked again soon, but not by every reader at once.
                ttl_s = self._ttl.ttl_s(0.0)
            else:
                fetched_at = self._clock.now()
                parts = await in_turns(stretches(fetched.offers, taken_at=fetched_at), piece=1)
                page.known, page.error, page.retry_in_s = fetched, "", None
                page.fetched_at, page.stretches = fetched_at, tuple(parts)
                shelf.skipped_rows += fetched.skipped_rows
                ttl_s = self._ttl.ttl_s(shelf.success_rate())
            page.fresh_until = now() + ttl_s if page.doubts == doubts else 0.0

    def _merge(self, pages: tuple[_Page, ...]) -> Snapshot:
        now = self._clock.now()
        notes = []
        for page in pages:
            age_s = (now - page.fetched_at).total_seconds() if page.fetched_at else 0.0
            notes.append(
                SourceNote(
                    provider=page.shelf.provider.spec.slug,
                    offers=len(page.known.offers),
                    age_s=max(0.0, age_s),
                    complete=page.known.complete,
                    skipped_rows=page.known.skipped_rows,
                    error=page.error,
                    retry_in_s=page.retry_in_s,
                )
            )
        return Snapshot(
            of=[part for page in pages for part in page.stretches],
            taken_at=now,
            sources=tuple(notes),
        )


class _Wait:
    """One reader's wait for several providers: who hangs must not hold up those that answer."""

    def __init__(self) -> None:
        self._until = asyncio.get_running_loop().time() + PATIENCE_S
        self._limits: set[asyncio.Timeout] = set()

    def shorten(self) -> None:
        """Give the others `LAGGARD_S` from now on: somebody has answered."""
        until = asyncio.get_running_loop().time() + LAGGARD_S
        if until < self._until:
            self._until = until
            for limit in self._limits:
                if not limit.expired():
                    limit.reschedule(until)

    async def for_offers(self, provider: Provider, query: Query) -> OfferPage:
        """Search.

        Raises:
            ProviderError: what the provider raised, or that it took too long.
        """
        now = asyncio.get_running_loop().time
        began = now()
        limit = asyncio.timeout_at(self._until)
        try:
            async with limit:
                self._limits.add(limit)
                found = await provider.offers(query)
        except TimeoutError as error:
            if not limit.expired():
                raise  # not ours: a bug
            slug, why = provider.spec.slug, f"no whole answer within {now() - began:.0f} s"
            raise Unavailable(slug, "offers", why) from error
        finally:
            self._limits.discard(limit)
        self.shorten()
        return found


def _retry_in_s(error: ProviderError) -> float | None:
    match error:
        case Throttled():
            return UNTOLD_RETRY_S if error.retry_after_s is None else error.retry_after_s
        case RateLimitExceeded():
            return error.retry_in_s
        case _:
            return None
