"""When a walk through pages has seen everything, and when it only looks so."""

from __future__ import annotations

import json

import msgspec
import pytest

from gp4u.errors import Malformed
from gp4u.providers.render.paging import Page, Walk, parse_one, parse_page


class Row(msgspec.Struct):
    """A row with an id."""

    uuid: str


def walk(*pages: Page[Row], per_page: int = 2, max_pages: int = 9) -> Walk[Row]:
    """Walk through pages until it is over."""
    found: Walk[Row] = Walk(lambda row: row.uuid, per_page=per_page, max_pages=max_pages)
    for page in pages:
        assert not found.over, "asked for a page too many"
        found.add(page)
    assert found.over, "would ask for one more"
    return found


def page(ids: str, total: int | None = None, bad: int = 0) -> Page[Row]:
    """Return a page with a row per letter."""
    return Page([Row(letter) for letter in ids], bad, total)


@pytest.mark.parametrize(
    "pages",
    [
        [page("", 0)],
        [page("")],
        [page("ab", 2)],
        [page("a")],
        [page("ab"), page("")],
        [page("ab", 3), page("c", 3)],
        [page("ab"), page("cd"), page("e")],
        [page("a", 3), page("b", 3), page("c", 3)],
        [page("a", 2, bad=1)],
    ],
    ids=str,
)
def test_a_walk_that_saw_everything_has_no_doubt(pages: list[Page[Row]]) -> None:
    """Also where the server's pages are shorter than asked, or the total is missing."""
    assert walk(*pages).why == ""


@pytest.mark.parametrize(
    ("pages", "why"),
    [
        ([page("ab", 3), page("c", 4), page("", 4)], "the total changed while paging"),
        ([page("cd", 3), page("", 3)], "2 rows shown of 3"),
        ([page("ab", 4), page("ab", 4)], "a page came twice"),
        ([page("ab"), page("ab")], "a page came twice"),
        ([page("abc", 2)], "3 rows shown of 2"),
    ],
)
def test_a_walk_that_may_have_missed_something_says_why(pages: list[Page[Row]], why: str) -> None:
    """Absence proven by such a list would leave a machine billing."""
    assert walk(*pages).why == why


def test_a_walk_ends() -> None:
    """A server that always has one more page is not followed for ever."""
    pages = [page(letter * 2) for letter in "abc"]
    pages = [Page([Row(f"{n}a"), Row(f"{n}b")], 0, None) for n, _ in enumerate(pages)]
    assert walk(*pages, max_pages=3).why == "more than 3 pages"


@pytest.mark.parametrize(
    ("body", "total"),
    [
        ('{"data":[{"uuid":"a"}],"total":7}', 7),
        ('{"data":[{"uuid":"a"}]}', None),
        ('{"data":[{"uuid":"a"}],"total":"many"}', None),
        ('{"data":[{"uuid":"a"}],"total":true}', None),
        (' [{"uuid":"a"}]', None),
    ],
)
def test_a_page_comes_wrapped_or_bare(body: str, total: int | None) -> None:
    """The documents wrap it; one client saw it bare."""
    found = parse_page("render", "instances", body.encode(), Row)
    assert ([row.uuid for row in found.rows], found.bad, found.total) == (["a"], 0, total)


def test_bad_rows_are_counted_until_they_are_most() -> None:
    """One odd row is skipped; a page of them is another API."""
    rows = [{"uuid": "a"}, {"uuid": "b"}, {"id": 3}]
    found = parse_page("render", "offers", json.dumps(rows).encode(), Row)
    assert (len(found.rows), found.bad) == (2, 1)
    with pytest.raises(Malformed, match="2 of 3"):
        parse_page("render", "offers", json.dumps([*rows[:1], {}, {}]).encode(), Row)


@pytest.mark.parametrize("body", ["", "null", "7", "{}", '{"data":7}', '{"data":null}', "[" * 9999])
def test_what_is_no_page_is_malformed(body: str) -> None:
    """An empty page would be proof that nothing is held."""
    with pytest.raises(Malformed):
        parse_page("render", "instances", body.encode(), Row)


@pytest.mark.parametrize("body", ['{"uuid":"a"}', '{"data":{"uuid":"a"}}'])
def test_an_object_comes_wrapped_or_bare(body: str) -> None:
    """A third party tolerates both."""
    assert parse_one("render", "rent", body.encode(), Row).uuid == "a"


@pytest.mark.parametrize("body", ["[]", "{}", '{"data":[]}', '{"data":{}}', "null"])
def test_what_is_no_object_is_malformed(body: str) -> None:
    """A rent's answer without an id is an unknown outcome, not a success."""
    with pytest.raises(Malformed):
        parse_one("render", "rent", body.encode(), Row)
