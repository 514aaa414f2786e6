"""Rows in pieces: nothing is lost or counted wrongly, and everybody else gets a turn."""

from __future__ import annotations

import asyncio
import gc
import json
import re
from collections.abc import Awaitable, Callable, Iterator
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gp4u.errors import Malformed
from gp4u.providers.turns import (
    PIECE,
    Pieces,
    cut,
    each_row,
    good_in_turns,
    good_rows,
    in_turns,
    pieces,
    settled,
)


class Row(msgspec.Struct):
    id: int


def raw(*rows: object) -> list[msgspec.Raw]:
    """Return rows as a body holds them."""
    return msgspec.json.decode(msgspec.json.encode(rows), type=list[msgspec.Raw])


@pytest.mark.parametrize("count", [0, 1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE, 3 * PIECE + 7])
async def test_everything_comes_out_once_and_in_order(count: int) -> None:
    """A piece that is exactly full is not the last one, and not one too many."""
    assert await in_turns(iter(range(count))) == list(range(count))


async def test_somebody_else_runs_before_every_piece() -> None:
    """A market's worth of rows must not keep a heartbeat from beating."""
    beats: list[int] = []
    done = 0

    def steps() -> Iterator[int]:
        nonlocal done
        for number in range(10 * PIECE):
            done = number
            yield number

    async def heart() -> None:
        while True:
            beats.append(done)
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as group:
        beating = group.create_task(heart())
        await in_turns(steps())
        beating.cancel()
    ahead = [after - before for before, after in pairwise(beats)]
    assert len(beats) >= 10
    assert max(ahead) <= PIECE


async def test_nothing_is_done_before_the_first_turn() -> None:
    """Whoever calls may have just looked through a large body, and that was long enough."""
    began = False

    def steps() -> Iterator[int]:
        nonlocal began
        began = True
        yield 1

    async def look() -> bool:
        return began

    async with asyncio.TaskGroup() as group:
        working = group.create_task(in_turns(steps()))
        looking = group.create_task(look())
    assert working.result() == [1]
    assert looking.result() is False


async def test_what_a_step_raises_comes_out() -> None:
    """A body that is no list is found out inside of the first step."""

    def steps() -> Iterator[int]:
        yield 1
        raise Malformed("a", "offers", "no list")

    with pytest.raises(Malformed, match="no list"):
        await in_turns(steps())


def test_a_bad_row_is_told_where_it_stands() -> None:
    """One host's bad row must not hide the others, nor move them."""
    found = list(each_row(raw({"id": 1}, {"id": "x"}, None, [], {"id": 4, "more": True}), Row))
    assert found == [Row(1), None, None, None, Row(4)]


Believe = Callable[[list[Row | None]], Awaitable[tuple[list[Row], int]]]


async def at_once(rows: list[Row | None]) -> tuple[list[Row], int]:
    """Tell good from bad rows in one go."""
    return good_rows("a", "offers", rows)


async def piecewise(rows: list[Row | None]) -> tuple[list[Row], int]:
    """Tell good from bad rows two at a time."""
    return await good_in_turns("a", "offers", rows, piece=2)


@pytest.mark.parametrize("believe", [at_once, piecewise])
@pytest.mark.parametrize(("good", "bad"), [(0, 0), (1, 0), (1, 1), (3, 3)])
async def test_rows_are_believed_up_to_one_half_bad(believe: Believe, good: int, bad: int) -> None:
    """Some hosts write nonsense."""
    rows = [*(Row(number) for number in range(good)), *(None for _ in range(bad))]
    assert await believe(rows) == (rows[:good], bad)


@pytest.mark.parametrize("believe", [at_once, piecewise])
@pytest.mark.parametrize(("good", "bad"), [(0, 1), (1, 2), (3, 4)])
async def test_more_bad_rows_than_good_ones_are_another_contract(
    believe: Believe, good: int, bad: int
) -> None:
    """A renamed field must not look like an empty market."""
    rows = [*(Row(number) for number in range(good)), *(None for _ in range(bad))]
    with pytest.raises(Malformed, match=f"a offers: {bad} of {good + bad} rows"):
        await believe(rows)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 7])
def test_a_list_is_taken_apart_in_order_and_let_go(count: int) -> None:
    """What has been used up must not be kept until the last row is."""
    rows = list(range(count))
    left, found = [], []
    for piece in pieces(rows, 3):
        found.append(piece)
        left.append(len(rows))
    assert [row for piece in found for row in piece] == list(range(count))
    assert all(len(piece) == 3 for piece in found[:-1])
    assert left == [max(0, count - 3 * turn) for turn in range(1, len(found) + 1)]


ROWS: list[object] = [
    {"id": 1, "text": "},{"},
    {"id": 2, "inner": [{"a": 1}, {"b": [{"c": 2}, {"d": 3}]}, {"e": 4}]},
    {"id": 3, "text": '"},{"a":"'},
    {},
    {"id": 4, "deep": [[{"x": 1}, {"y": 2}], [{"z": 3}]]},
    7,
    {"id": 5},
]


def whole(body: bytes) -> list[msgspec.Raw]:
    """Return the rows of an envelope at once."""
    found = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    return msgspec.json.decode(found["rows"], type=list[msgspec.Raw])


@given(
    picked=st.lists(st.sampled_from(ROWS), max_size=12),
    at_once=st.integers(1, 200),
    written=st.sampled_from([(",", ":"), (", ", ": ")]),
)
def test_a_list_that_is_cut_has_the_rows_of_one_that_is_read_whole(
    picked: list[object], at_once: int, written: tuple[str, str]
) -> None:
    """What looks like the end of a row can stand in a text, or inside of another row."""
    body = json.dumps({"rows": picked, "total": 3}, separators=written).encode()
    rows = cut(body, re.compile(rb'\{"rows":\s*\['), whole, at_once=at_once)
    assert [msgspec.json.decode(row) for row in rows] == picked


def test_a_plain_list_is_cut_and_never_taken_as_a_whole() -> None:
    """Else the largest lists would be the ones that hold up everybody."""
    body = json.dumps({"rows": [{"id": n} for n in range(1000)]}, separators=(",", ":")).encode()
    sizes: list[int] = []

    def noted(rest: bytes) -> list[msgspec.Raw]:
        sizes.append(len(rest))
        return whole(rest)

    rows = cut(body, re.compile(rb'\{"rows":\['), noted, at_once=100)
    assert [msgspec.json.decode(row)["id"] for row in rows] == list(range(1000))
    assert max(sizes) < 200


@pytest.mark.parametrize("body", [b"", b"{", b'{"rows":[{"id":1},{"id":2},{"id"', b"[1]"])
def test_what_is_no_list_is_for_the_whole_to_refuse(body: bytes) -> None:
    """A body that ends early must not pass for the rows that it does have."""
    with pytest.raises(msgspec.MsgspecError):
        list(cut(body, re.compile(rb'\{"rows":\['), whole, at_once=12))


@given(st.lists(st.lists(st.integers(), max_size=4)), st.data())
def test_pieces_are_one_list(parts: list[list[int]], data: st.DataObject) -> None:
    """Its length, its elements from either end, and every stretch of it."""
    whole, ours = [each for part in parts for each in part], Pieces(parts)
    assert (len(ours), list(ours)) == (len(whole), whole)
    assert [ours[place] for place in range(-len(whole), len(whole))] == whole + whole
    some = data.draw(st.slices(len(whole) + 2))
    assert list(ours[some]) == whole[some]
    with pytest.raises(IndexError):
        ours[len(whole)]


def test_the_collector_has_seen_each_step_before_the_next() -> None:
    """A tuple of plain offers is visited once, while it is small change, and then never again."""

    def made() -> Iterator[tuple[bytes, ...]]:
        for number in range(3):
            yield tuple(bytes([number, place]) for place in range(50))

    tracked = [gc.is_tracked(each) for each in settled(made())]
    assert tracked == [False] * 3
