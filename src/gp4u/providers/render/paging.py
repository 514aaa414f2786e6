"""Lists in pages, as Dispersed and the proposed node API send them, and what makes one complete.

What this file hides: that a list comes wrapped or bare, that its total may be missing, and how a
walk through numbered pages notices that it saw too little. Whether something is absent may only be
concluded from a walk without doubt. Pure; `adapter.py` and `legacy.py` ask for the pages.

Source: `docs/reference/render.md`, paging; checked 2026-11.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import lru_cache
from types import GenericAlias
from typing import Any, Generic, NamedTuple, TypeVar

import msgspec

from gp4u.errors import Malformed
from gp4u.providers.http import UNREADABLE, decode, rows

T = TypeVar("T")


class Page(NamedTuple, Generic[T]):
    """One page of any list."""

    rows: list[T]
    bad: int
    """Rows that broke their schema."""
    total: int | None
    """Over all pages; None where the answer does not say."""


def parse_page(
    provider: str, operation: str, body: bytes, kind: type[T], *, under: str = "data"
) -> Page[T]:
    """Return a page, wrapped in an object that holds it `under` a name, or bare.

    Raises:
        Malformed: it is no page, or more than half of its rows are bad.
    """
    rows_of: Any = kind  # a key of a cache, which `type[T]` is not to a type checker
    bare = body.lstrip()[:1] == b"["
    try:
        whole = _whole(rows_of, None if bare else under).decode(body)
    except UNREADABLE:
        return _row_by_row(provider, operation, body, kind, None if bare else under)
    return Page(whole, 0, None) if bare else Page(whole.rows, 0, _count(whole.total))


@lru_cache(maxsize=32)
def _whole(kind: Any, under: str | None) -> msgspec.json.Decoder[Any]:
    """Return what reads a page at once, which works where every row fits."""
    every = GenericAlias(list, (kind,))
    if under is None:
        return msgspec.json.Decoder(every)
    fields: list[tuple[str, Any] | tuple[str, Any, Any]] = [("rows", every), ("total", Any, None)]
    return msgspec.json.Decoder(msgspec.defstruct("Whole", fields, rename={"rows": under}))


def _row_by_row(
    provider: str, operation: str, body: bytes, kind: type[T], under: str | None
) -> Page[T]:
    """Return a page without its bad rows."""
    total: Any = None
    if under is None:
        raw = decode(provider, operation, body, list[msgspec.Raw])
    else:
        said = decode(provider, operation, body, dict[str, msgspec.Raw])
        if under not in said:
            raise Malformed(provider, operation, f"no {under!r} in the reply")
        raw = decode(provider, operation, bytes(said[under]), list[msgspec.Raw])
        total = decode(provider, operation, bytes(said.get("total", b"null")), Any)
    good, bad = rows(raw, kind)
    if bad * 2 > len(raw):
        raise Malformed(provider, operation, f"{bad} of {len(raw)} rows break the schema")
    return Page(good, bad, _count(total))


def _count(total: object) -> int | None:
    return total if isinstance(total, int) and not isinstance(total, bool) else None


def parse_one(provider: str, operation: str, body: bytes, kind: type[T]) -> T:
    """Return an object, bare as documented or wrapped in `data` as also seen.

    Raises:
        Malformed: it is neither.
    """
    said = decode(provider, operation, body, dict[str, msgspec.Raw])
    inner = said.get("data") if "uuid" not in said else None
    return decode(provider, operation, body if inner is None else bytes(inner), kind)


class Walk(Generic[T]):
    """Gathers the pages of one list, and whatever speaks against its being complete."""

    def __init__(self, ident: Callable[[T], str], *, per_page: int, max_pages: int) -> None:
        self._ident, self._per_page, self._max_pages = ident, per_page, max_pages
        self.found: dict[str, T] = {}
        """Rows by id, in the order in which they came; of two rows, the newer page's."""
        self.pages = self.bad = 0
        self.over = False
        self.why = ""
        """Why rows may be missing; empty: they are all here."""
        self._total: int | None = None

    def doubt(self, why: str) -> None:
        """Note why rows may be missing; the first reason stays."""
        self.why = self.why or why

    def add(self, page: Page[T]) -> None:
        """Take in the next page."""
        known = len(self.found)
        self.pages += 1
        self.bad += page.bad
        self.found.update((self._ident(row), row) for row in page.rows)
        if None not in (self._total, page.total) and self._total != page.total:
            self.doubt("the total changed while paging")
        self._total = self._total if page.total is None else page.total
        size, seen = len(page.rows) + page.bad, len(self.found) + self.bad
        self.over = size == 0 or (
            size < self._per_page if self._total is None else seen >= self._total
        )
        if self.over:
            if self._total not in (None, seen):
                self.doubt(f"{seen} rows shown of {self._total}")
        elif len(self.found) == known:
            self.over = True
            self.doubt("a page came twice")
        elif self.pages == self._max_pages:
            self.over = True
            self.doubt(f"more than {self._max_pages} pages")


async def settled(walk: Callable[[], Awaitable[Walk[T]]]) -> Walk[T]:
    """Walk a list of things that come and go; return every row seen, and what speaks against it.

    Beyond one page it is walked twice: when one thing ends and another begins between two pages,
    the total is right and a row is missing.
    """
    first = await walk()
    if first.pages == 1:
        return first
    second = await walk()
    if second.found.keys() != first.found.keys():
        second.doubt("the jobs changed while paging")
    second.doubt(first.why)
    second.found = {**first.found, **second.found}
    return second
