"""The market as it is served: pages that are ready as bytes, lines, single offers, prices by model.

What this file hides: that an answer is worked out once per state of the book and query string, and
given out as the same bytes until the book changes; and that working it out over hundreds of
thousands of offers is done in turns, so that nobody else waits. Nothing here refers to offers
between two requests, or the book could not let go of what it replaced.

What a query means is read in `listing.py`, what fits it is found in `matching.py`, what goes over
the wire around the bytes is `gpus.py`'s.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from datetime import datetime
from hashlib import blake2b
from itertools import islice
from typing import Final
from weakref import WeakKeyDictionary

import msgspec
import numpy as np
from msgspec import Struct

from gp4u.api.market import listing
from gp4u.api.market.compression import Coding, compressed
from gp4u.api.market.listing import Ask
from gp4u.api.market.matching import Order, Picker, Rows, Sorting, id_of
from gp4u.api.market.walks import Walks
from gp4u.book import STANDING, Book
from gp4u.clock import Clock
from gp4u.desk.shapes import OfferShape, SourceShape, offer_shape, source_shape
from gp4u.errors import NoSuch
from gp4u.model import Offer, Stretch
from gp4u.providers.contract import Query
from gp4u.providers.turns import in_turns
from gp4u.selection.prices import ModelPrices, model_prices
from gp4u.telemetry import clean

READY_BYTES: Final = 24 * 1024 * 1024
"""Of pages that are kept, in all their codings."""
READY_PAGES: Final = 256
SHAPED: Final = 100
"""Offers written out at one go: some milliseconds."""
_encoder: Final = msgspec.json.Encoder()


class ListingShape(Struct, frozen=True, kw_only=True):
    """A page of offers."""

    items: Sequence[OfferShape]
    total: int
    """How many offers match, on all pages together."""
    next_cursor: str | None
    """Asks for the next page; null on the last one."""
    taken_at: datetime
    """The moment that this page, and the ages in `sources`, are told for."""
    sources: Sequence[SourceShape]


class GpuModelsShape(Struct, frozen=True, kw_only=True):
    """What can be had of each model at each market, by market and model."""

    items: Sequence[ModelPrices]
    taken_at: datetime
    sources: Sequence[SourceShape]


class Page(Struct, frozen=True, eq=False, weakref=True):
    """An answer that is ready."""

    version: int
    """Of the book."""
    etag: str
    """Without quotes and coding; empty where it also depends on the time, so serves once."""
    bodies: dict[Coding, bytes]
    """What there is of it so far."""

    @property
    def size(self) -> int:
        """Bytes of all codings."""
        return sum(map(len, self.bodies.values()))


class Catalogue:
    """See the module's docstring."""

    def __init__(
        self,
        *,
        book: Book,
        clock: Clock,
        providers: Sequence[str],
        secret: bytes,
        query: Query = STANDING,
    ) -> None:
        """`providers` are all markets that may be named; `secret` signs cursors; `query` is what
        the book is told to keep warm.
        """
        self._book, self._clock, self._query = book, clock, query
        self._providers, self._secret = tuple(providers), secret
        self._pages: OrderedDict[bytes, Page] = OrderedDict()
        self._working = asyncio.Lock()
        self._rows: WeakKeyDictionary[Stretch, Rows] = WeakKeyDictionary()
        self._walks = Walks()
        self._run = secrets.token_hex(4)
        """Tells the pages of this process from those of another one."""

    def ready(self, key: bytes, coding: Coding) -> Page | None:
        """Return a page that can be given out as it is; never waits.

        `key` is the query string of a listing.
        """
        page = self._pages.get(key)
        if page is None or page.version != self._book.version(self._query):
            return None
        self._pages.move_to_end(key)
        return page if coding in page.bodies else None

    def asked(self, query: bytes, *, streams: bool = False) -> Ask:
        """Return what a query string asks.

        Raises:
            BadInput: as `listing.asked`.
        """
        return listing.asked(query, providers=self._providers, secret=self._secret, streams=streams)

    async def page(self, query: bytes, coding: Coding) -> Page:
        """Return the listing that a query string asks for, with a body in a coding.

        Raises:
            BadInput: as `listing.asked`.
        """
        ask = self.asked(query)
        return await self._kept(query, coding, lambda: self._listed(query, ask))

    async def models(self, query: bytes, coding: Coding) -> Page:
        """Return what each model costs at each market, with a body in a coding.

        Raises:
            NoSuch: no such market. UnknownGpu: no such GPU. BadInput: no such parameter.
        """
        found = listing.values(query, listing.WHICH)
        providers = listing.known_providers(found.get("provider", ()), self._providers)
        wanted = listing.gpu_models(found.get("gpu", ()))
        key = b"models?" + query
        return await self._kept(key, coding, lambda: self._priced(key, providers, wanted))

    async def find(self, name: str) -> OfferShape:
        """Return the offer with an id as `OfferShape` has it.

        Raises:
            NoSuch: there is no such market, or no such offer any longer.
        """
        provider, _, offer_id = name.partition("/")
        if provider not in self._providers:
            raise NoSuch("provider", clean(provider, 60), self._providers)
        parts = await self._all_rows(self._book.current(self._query).stretches)
        looks = (rows.find((provider, offer_id)) for rows in parts)
        for found in await in_turns(looks, piece=1):
            if found is not None:
                return offer_shape(found)
        raise NoSuch("id", clean(name, 200), hint="no such offer, or no longer")

    async def lines(self, ask: Ask) -> AsyncGenerator[bytes, None]:
        """Yield every match in order, one JSON object a line, some lines at a time."""
        held = list(self._book.current(self._query).stretches)
        writing = self._written(held, ask)
        try:
            async with aclosing(writing):
                async for some in writing:
                    yield some
        finally:
            del writing
            # The book may have let go of these long ago: then they end here, a few at a time.
            while held:
                held.pop()
                await asyncio.sleep(0)

    async def _written(self, held: Sequence[Stretch], ask: Ask) -> AsyncGenerator[bytes, None]:
        parts = await self._all_rows(held)
        shown = self._walks.shown(ask.after.walk) if ask.after else None
        order = Order(ask, Sorting(ask, parts), at=self._clock.now(), shown=shown)
        await in_turns(map(order.look, parts), piece=1)
        rest = islice(order.offers(), ask.limit)
        while ahead := list(islice(rest, SHAPED)):
            yield b"".join(_encoded(offer, ask.fields) + b"\n" for offer in ahead)
            await asyncio.sleep(0)

    async def _kept(self, key: bytes, coding: Coding, make: Callable[[], Awaitable[Page]]) -> Page:
        """Return a page with a body in a coding; whoever comes meanwhile finds it done."""
        async with self._working:
            page = self.ready(key, "identity") or await make()
            if coding not in page.bodies:
                page.bodies[coding] = await compressed(page.bodies["identity"], coding)
            if page.etag:
                self._keep(key, page)
        return page

    def _keep(self, key: bytes, page: Page) -> None:
        pages = self._pages
        if any(each.version != page.version for each in islice(pages.values(), 1)):
            pages.clear()  # all are of one state of the book, and this one is of a newer
        pages[key] = page
        pages.move_to_end(key)
        while len(pages) > READY_PAGES or sum(each.size for each in pages.values()) > READY_BYTES:
            pages.popitem(last=False)

    async def _listed(self, query: bytes, ask: Ask) -> Page:
        version, snapshot = self._book.version(self._query), self._book.current(self._query)
        parts = await self._all_rows(snapshot.stretches)
        sorting, limit = Sorting(ask, parts), ask.limit or listing.DEFAULT_LIMIT
        before = ask.after.walk if ask.after else ""
        shown = self._walks.shown(before) if before else None
        now = self._clock.now()
        picker = Picker(ask, sorting, most=limit + 1, at=now, shown=shown)
        await in_turns(map(picker.look, parts), piece=1)
        best, after = picker.best[:limit], None
        if len(picker.best) > limit:
            hashes = np.fromiter((hash(id_of(each[3])) for each in best), np.int64, len(best))
            walk = self._walks.add(before, hashes)
            after = listing.cursor(sorting.position(best[-1], walk), ask, self._secret)
        items = await in_turns((_encoded(each[3], ask.fields) for each in best), piece=SHAPED)
        end = {
            "total": picker.total,
            "next_cursor": after,
            "taken_at": snapshot.taken_at,
            "sources": list(map(source_shape, snapshot.sources)),
        }
        body = b'{"items":[%b],%b' % (b",".join(items), _encoder.encode(end)[1:])
        return self._page(version, query, body, lasts=ask.filters.max_age_s is None)

    async def _priced(self, key: bytes, providers: Sequence[str], wanted: Sequence[str]) -> Page:
        version, snapshot = self._book.version(self._query), self._book.current(self._query)
        found = await model_prices(snapshot)
        shape = GpuModelsShape(
            items=[
                each
                for each in found
                if (not providers or each.provider in providers)
                and (not wanted or each.gpu_model in wanted)
            ],
            taken_at=snapshot.taken_at,
            sources=list(map(source_shape, snapshot.sources)),
        )
        return self._page(version, key, _encoder.encode(shape))

    def _page(self, version: int, key: bytes, body: bytes, *, lasts: bool = True) -> Page:
        asked = blake2b(key, digest_size=8).hexdigest()
        etag = f"{self._run}-{version}-{asked}" if lasts else ""
        return Page(version, etag, {"identity": body})

    async def _all_rows(self, parts: Sequence[Stretch]) -> list[Rows]:
        return await in_turns(map(self._rows_of, parts), piece=1)

    def _rows_of(self, stretch: Stretch) -> Rows:
        rows = self._rows.get(stretch)
        if rows is None:
            rows = self._rows[stretch] = Rows(stretch)
        return rows


def _encoded(offer: Offer, fields: Sequence[str]) -> bytes:
    shape = offer_shape(offer)
    return _encoder.encode({name: getattr(shape, name) for name in fields} if fields else shape)
