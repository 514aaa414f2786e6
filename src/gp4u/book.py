"""The book: the newest offers of every provider. It *is* the cache.

A reader gets a frozen snapshot and never waits for a provider whose offers are young enough. How
long they stay young depends on how reliable the provider has been: a reliable one is asked seldom,
since little changes; an unreliable one soon, since its last answer may be wrong. When a provider
cannot answer, its last known offers stay, with their age and the error beside them; whether they
are still good enough to rent from is for the selection to say.

One fetch per provider and query is in flight at a time, whoever waits for it. Providers are asked
side by side, and none is waited for longer than `PATIENCE_S`, its tries, turns and pages together;
once one has answered, the others not longer than `LAGGARD_S` more.

A process that stays keeps one query warm (`keep`): each market is asked again when its offers are
no longer young, on a schedule of its own, and `current` tells what is known without waiting. What
was replaced is let go in turns: freeing a whole market at once would hold up everybody.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime
from typing import Final

from msgspec import Struct

from gp4u.clock import Clock
from gp4u.errors import ProviderError, RateLimitExceeded, Throttled, Unavailable
from gp4u.model import Requirements, Snapshot, SourceNote, Stretch, stretches
from gp4u.providers.contract import OfferPage, Provider, Query
from gp4u.providers.turns import in_turns, settled

UNTOLD_RETRY_S: Final = 6.0
"""After a 429 that names no time."""
PATIENCE_S: Final = 65.0
"""For all of one provider's answer: the slowest call that an adapter makes has 60 s."""
LAGGARD_S: Final = 20.0
"""For the others, once one provider has answered: Akash's price list takes 16 s when it is cold."""
MAX_QUERIES: Final = 64
"""Distinct queries remembered; the least recently used goes first."""
STANDING: Final = Query(requirements=Requirements(gpu_count=None, verified_only=False))
"""What a server keeps warm: everything that can be rented on demand."""
UNASKED: Final = "no answer yet"
"""Where nothing has come and nothing has failed."""
LEAST_APART_S: Final = 5.0
"""Between two fetches that nobody waits for, however often their offers are called old."""
GRACE_S: Final = 1.0
"""How long replaced offers stay for whoever is just reading them."""


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
    took_s: float | None
    """How long the newest fetch took, whether it failed or not; None while there was none."""


class _Shelf:
    """One provider and its counts."""

    __slots__ = ("hits", "misses", "provider", "skipped_rows", "success_rate", "took_s")

    def __init__(self, provider: Provider, success_rate: Callable[[], float]) -> None:
        self.provider, self.success_rate = provider, success_rate
        self.hits = self.misses = self.skipped_rows = 0
        self.took_s: float | None = None


class _Page:
    """What is known of one provider for one query; but for `doubts`, written under its lock."""

    __slots__ = (
        "doubts",
        "error",
        "fetched_at",
        "fresh_until",
        "known",
        "lock",
        "replaced",
        "retry_in_s",
        "shelf",
        "stretches",
        "version",
        "woken",
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
        self.version = 0
        """Changes with the offers, and with what is told of them beside their age."""
        self.woken = asyncio.Event()
        """Set when it was called old: whoever keeps it warm need not wait any longer."""
        self.replaced: list[Stretch] = []
        """Older offers that are still to be let go; only where the page is kept warm."""

    def put(self, fetched: OfferPage, parts: list[Stretch], at: datetime) -> None:
        """Take in what a fetch brought."""
        self.known, self.stretches, self.fetched_at = fetched, tuple(parts), at
        self.error, self.retry_in_s = "", None
        self.version += 1

    def fail(self, error: str, retry_in_s: float | None = None) -> None:
        """Note why there is nothing newer."""
        if (error, retry_in_s) != (self.error, self.retry_in_s):
            self.error, self.retry_in_s = error, retry_in_s
            self.version += 1


class _Entry:
    """One query: its pages, and the snapshot of them while all are young."""

    __slots__ = ("fresh_until", "is_kept", "pages", "snapshot", "used_at")

    def __init__(self, pages: tuple[_Page, ...]) -> None:
        self.pages = pages
        self.is_kept = False
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
        self.on_refresh: Callable[[str, int, str], None] | None = None
        """Told after each fetch for a query that is kept warm: slug, offers that came (those that
        stayed, where it failed), and the error or an empty text. Called in the loop: must not
        stall, and not raise."""

    async def snapshot(self, query: Query) -> Snapshot:
        """Return a frozen view for a query, fetching only what is no longer young.

        A provider that fails adds its last known offers, or none, and a note; it never fails the
        snapshot, and never delays the others' part of it beyond its own deadline. A provider that
        is asked for and not open adds nothing.
        """
        at = asyncio.get_running_loop().time()
        entry = self._entry(query)
        entry.used_at = at
        if at < entry.fresh_until and entry.snapshot is not None:
            for page in entry.pages:
                page.shelf.hits += 1
            return entry.snapshot
        wait = _Wait()
        async with asyncio.TaskGroup() as group:
            for page in entry.pages:
                group.create_task(self._refresh(page, query, wait, entry))
        merged = self._merge(entry.pages)
        if entry.is_kept:
            # A snapshot that is kept here would hold what is to be let go.
            for page in entry.pages:
                if page.replaced:
                    page.woken.set()
        else:
            entry.snapshot = merged
            entry.fresh_until = min((page.fresh_until for page in entry.pages), default=0.0)
        return merged

    def current(self, query: Query) -> Snapshot:
        """Return at once what is known for a query, with its age and what is wrong with it."""
        pages = self._entry(query).pages
        for page in pages:
            page.shelf.hits += page.fetched_at is not None
        return self._merge(pages)

    def version(self, query: Query) -> int:
        """Return a number that changes with what `current` tells, but for ages; it only grows."""
        return sum(page.version for page in self._entry(query).pages)

    async def keep(self, query: Query) -> None:
        """Keep a query warm until cancelled; each market on a schedule of its own."""
        entry = self._entry(query)
        entry.is_kept, entry.snapshot, entry.fresh_until = True, None, 0.0
        try:
            async with asyncio.TaskGroup() as group:
                for page in entry.pages:
                    group.create_task(self._keep(page, query, entry))
        finally:
            entry.is_kept = False

    def invalidate(self, provider: str | None = None) -> None:
        """Call the offers of one provider, or of all, old; they stay readable if a fetch fails."""
        for entry in self._entries.values():
            for page in entry.pages:
                if provider in (None, page.shelf.provider.spec.slug):
                    page.doubts += 1
                    page.fresh_until = entry.fresh_until = 0.0
                    page.woken.set()

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
                took_s=shelf.took_s,
            )
        return result

    def _entry(self, query: Query) -> _Entry:
        entry = self._entries.get(query)
        if entry is not None:
            return entry
        asked = query.requirements.providers
        shelves = [s for slug, s in self._shelves.items() if not asked or slug in asked]
        if len(self._entries) >= MAX_QUERIES:
            spare = [each for each, entry in self._entries.items() if not entry.is_kept]
            del self._entries[min(spare, key=lambda each: self._entries[each].used_at)]
        entry = self._entries[query] = _Entry(tuple(map(_Page, shelves)))
        return entry

    async def _keep(self, page: _Page, query: Query, entry: _Entry) -> None:
        now, slug = asyncio.get_running_loop().time, page.shelf.provider.spec.slug
        is_broken = False
        while True:
            began = now()
            page.woken.clear()
            try:
                await self._refresh(page, query, _Wait(), entry)
            except Exception:  # noqa: BLE001 - a rim: one market's bug must not stop the others
                if not is_broken:
                    import structlog  # 60 ms that only a process that stays has to pay

                    structlog.get_logger().bind(provider=slug).exception("fetch_failed")
                page.fail(f"{slug} offers: failed in a way that nobody foresaw; see the log")
                page.fresh_until = now() + self._ttl.max_s
                self._tell(page)
                is_broken = True
            else:
                is_broken = False
            await self._let_go(page)
            least_s = 0.0 if self._ttl.enabled else self._ttl.base_s
            soonest = max(began + least_s, now() + (page.retry_in_s or 0.0))
            await _pause(page, until=max(page.fresh_until, soonest))
            await asyncio.sleep(began + LEAST_APART_S - now())

    async def _let_go(self, page: _Page) -> None:
        """Free what was replaced, some of it at a time."""
        if page.replaced:
            await asyncio.sleep(GRACE_S)
        while page.replaced:
            page.replaced.pop()
            await asyncio.sleep(0)

    def _tell(self, page: _Page) -> None:
        if self.on_refresh is not None:
            self.on_refresh(page.shelf.provider.spec.slug, len(page.known.offers), page.error)

    async def _refresh(self, page: _Page, query: Query, wait: _Wait, entry: _Entry) -> None:
        now, shelf = asyncio.get_running_loop().time, page.shelf
        if now() < page.fresh_until:
            shelf.hits += 1
            wait.shorten()
            return
        if not await wait.for_turn(page.lock):
            return  # who fetches it will tell what came of it
        try:
            if now() < page.fresh_until:  # somebody else has fetched it meanwhile
                shelf.hits += 1
                wait.shorten()
                return
            shelf.misses += 1
            began, doubts = now(), page.doubts
            try:
                fetched = await wait.for_offers(shelf.provider, query)
            except ProviderError as error:
                page.fail(str(error), _retry_in_s(error))
                # Asked again soon, but not by every reader at once.
                ttl_s = self._ttl.ttl_s(0.0)
            else:
                fetched_at = self._clock.now()
                cut = settled(stretches(fetched.offers, taken_at=fetched_at))
                parts = await in_turns(cut, piece=1)
                if entry.is_kept:  # whoever reads it next shall not have to wait for its columns
                    await in_turns((part.columns for part in parts), piece=1)
                    page.replaced += page.stretches
                page.put(fetched, parts, fetched_at)
                shelf.skipped_rows += fetched.skipped_rows
                ttl_s = self._ttl.ttl_s(shelf.success_rate())
            shelf.took_s = now() - began
            page.fresh_until = now() + ttl_s if page.doubts == doubts else 0.0
            if entry.is_kept:
                self._tell(page)
        finally:
            page.lock.release()

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
                    complete=page.known.complete and page.fetched_at is not None,
                    skipped_rows=page.known.skipped_rows,
                    error=page.error or ("" if page.fetched_at else UNASKED),
                    retry_in_s=page.retry_in_s,
                )
            )
        return Snapshot(
            of=[part for page in pages for part in page.stretches],
            taken_at=now,
            sources=tuple(notes),
        )


async def _pause(page: _Page, *, until: float) -> None:
    """Wait until a time of the loop, or until the page is called old."""
    with suppress(TimeoutError):
        async with asyncio.timeout_at(until):
            await page.woken.wait()


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

    async def for_turn(self, lock: asyncio.Lock) -> bool:
        """Take a lock; False: who has it kept it for too long."""
        limit = asyncio.timeout_at(self._until)
        try:
            async with limit:
                self._limits.add(limit)
                await lock.acquire()
        except TimeoutError:
            return False
        finally:
            self._limits.discard(limit)
        return True

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
