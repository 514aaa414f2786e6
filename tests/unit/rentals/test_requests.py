"""Idempotency keys and kept decisions, on either database."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from gp4u.errors import BadInput
from gp4u.rentals import requests
from gp4u.rentals.ledger import Ledger, open_ledger
from gp4u.rentals.requests import Begun
from tests.unit.rentals.builders import AT, after, intended

DAY_S = 24 * 3600.0


async def test_a_reply_is_told_again_to_whoever_asks_again(ledger: Ledger) -> None:
    """A caller that lost the reply gets it, not a second machine."""
    assert await ledger.begin_request("k", fingerprint=b"f", at=AT) == Begun("new")
    await ledger.finish_request("k", status=201, body=b'{"key": 1}', at=after(5))

    again = await ledger.begin_request("k", fingerprint=b"f", at=after(10))

    assert again == Begun("done", 201, b'{"key": 1}')


async def test_a_reply_outlives_the_process(url: str) -> None:
    """A retry may well come after a restart: that is when replies get lost."""
    async with open_ledger(url) as first:
        await first.begin_request("k", fingerprint=b"f", at=AT)
        await first.finish_request("k", status=409, body=b"no", at=AT)
    async with open_ledger(url) as second:
        assert await second.begin_request("k", fingerprint=b"f", at=AT) == Begun("done", 409, b"no")


async def test_a_request_that_is_under_way_is_not_begun_twice(ledger: Ledger) -> None:
    """However long it takes: this process knows that it is at work on it."""
    await ledger.begin_request("k", fingerprint=b"f", at=AT)

    for seconds in (0, 60, 3600):
        begun = await ledger.begin_request("k", fingerprint=b"f", at=after(seconds))
        assert begun == Begun("running")


async def test_of_many_who_begin_one_request_at_once_one_does_it(ledger: Ledger) -> None:
    """A client that sends anew at once meets the first try while that still waits for the disk."""
    async with asyncio.TaskGroup() as group:
        tries = [
            group.create_task(ledger.begin_request("k", fingerprint=b"f", at=AT)) for _ in range(5)
        ]

    assert sorted(each.result().state for each in tries) == ["new", *["running"] * 4]


async def test_a_reply_on_its_way_to_disk_is_not_worked_out_again(ledger: Ledger) -> None:
    """Between the end of a request and its reply on disk it is still the first one's."""
    await ledger.begin_request("k", fingerprint=b"f", at=AT)
    async with asyncio.TaskGroup() as group:
        tries = [
            group.create_task(ledger.begin_request("k", fingerprint=b"f", at=AT)) for _ in range(5)
        ]
        group.create_task(ledger.finish_request("k", status=201, body=b"x", at=AT))

    assert {each.result().state for each in tries} <= {"running", "done"}


async def test_a_key_with_another_request_is_refused(ledger: Ledger) -> None:
    """To answer it with the first one's reply would be a lie; whether that is done or under way."""
    await ledger.begin_request("k", fingerprint=b"f", at=AT)
    with pytest.raises(BadInput, match="Idempotency-Key"):
        await ledger.begin_request("k", fingerprint=b"g", at=AT)
    await ledger.finish_request("k", status=201, body=b"", at=AT)
    with pytest.raises(BadInput, match="Idempotency-Key"):
        await ledger.begin_request("k", fingerprint=b"g", at=AT)


async def test_a_request_that_came_to_nothing_can_be_asked_again(ledger: Ledger) -> None:
    """A market in trouble is no final answer."""
    await ledger.begin_request("k", fingerprint=b"f", at=AT)
    await ledger.abandon_request("k")

    assert await ledger.begin_request("k", fingerprint=b"f", at=AT) == Begun("new")


async def test_a_reply_cannot_be_abandoned(ledger: Ledger) -> None:
    """What was told once must be told again, whatever order the clean-up comes in."""
    await ledger.begin_request("k", fingerprint=b"f", at=AT)
    await ledger.finish_request("k", status=201, body=b"x", at=AT)
    await ledger.abandon_request("k")

    assert (await ledger.begin_request("k", fingerprint=b"f", at=AT)).state == "done"


async def test_what_a_dead_process_had_rented_is_told_to_the_next(url: str) -> None:
    """A crash between intent and reply: the retry gets that rental, and the holder knows at once
    that nobody else is at work on it."""
    rental = intended("api:of-k")
    async with open_ledger(url) as dead:
        await dead.begin_request("k", fingerprint=b"f", at=AT, owner="api:of-k")
        await dead.intend(rental, b"{}")
    async with open_ledger(url) as next_one, next_one.hold():
        begun = await next_one.begin_request("k", fingerprint=b"f", at=after(3), owner="api:of-k")
        assert begun == Begun("new", rental=rental.key)
        assert (await next_one.begin_request("k", fingerprint=b"f", at=after(4))).state == "running"


async def test_a_process_that_may_yet_live_is_left_its_request_for_a_while(url: str) -> None:
    """Without the hold nobody knows whether the other process is dead; patience decides."""
    async with open_ledger(url) as one, open_ledger(url) as other:
        await one.begin_request("k", fingerprint=b"f", at=AT)
        early = await other.begin_request("k", fingerprint=b"f", at=after(119))
        late = await other.begin_request("k", fingerprint=b"f", at=after(120))

    assert (early.state, late.state) == ("running", "new")


async def test_a_request_without_an_owner_points_to_no_rental(url: str) -> None:
    """A rental of nobody's must not be taken for this one's."""
    async with open_ledger(url) as dead:
        await dead.begin_request("k", fingerprint=b"f", at=AT)
        await dead.intend(intended(""), b"{}")
    async with open_ledger(url) as next_one, next_one.hold():
        assert await next_one.begin_request("k", fingerprint=b"f", at=AT) == Begun("new")


async def test_a_key_is_free_again_after_a_day(ledger: Ledger) -> None:
    """Replies are not kept for ever."""
    await ledger.begin_request("k", fingerprint=b"f", at=AT)
    await ledger.finish_request("k", status=201, body=b"x", at=AT)

    begun = await ledger.begin_request("k", fingerprint=b"g", at=after(DAY_S + 1))

    assert begun == Begun("new")


async def test_only_so_many_replies_are_kept(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever may rent must not be able to fill the disk; the oldest reply goes first."""
    monkeypatch.setattr(requests, "MAX_REPLIES", 3)
    await ledger.begin_request("open", fingerprint=b"f", at=AT)
    for n in range(5):
        await ledger.begin_request(f"k{n}", fingerprint=b"f", at=after(n))
        await ledger.finish_request(f"k{n}", status=201, body=b"x", at=after(n))

    states = {
        key: (await ledger.begin_request(key, fingerprint=b"f", at=after(9))).state
        for key in ("open", "k0", "k1", "k2", "k3", "k4")
    }

    assert states == {"open": "running", "k0": "new", "k1": "new"} | dict.fromkeys(
        ("k2", "k3", "k4"), "done"
    )


async def test_a_decision_without_a_rental_is_kept_for_a_day(ledger: Ledger) -> None:
    """`GET /decisions/{id}` explains a dry run; it is not a book-keeping matter."""
    await ledger.keep_decision("d1", b'{"a": 1}', AT)
    await ledger.keep_decision("d1", b'{"a": 2}', after(1))  # the same id: the newest counts

    assert await ledger.decision("d1") == b'{"a": 2}'
    assert await ledger.decision("d2") is None
    await ledger.keep_decision("d2", b"{}", after(DAY_S + 2))
    assert await ledger.decision("d1") is None
    assert await ledger.decision("d2") == b"{}"


async def test_a_decision_behind_a_rental_is_never_dropped(ledger: Ledger) -> None:
    """A purchase must be explainable for as long as it is on the books."""
    rental = intended()
    await ledger.intend(rental, b'{"why": 1}')
    await ledger.keep_decision("later", b"{}", AT + timedelta(days=400))

    assert await ledger.decision(rental.key) == b'{"why": 1}'


@pytest.mark.parametrize(("number", "size", "left"), [(3, 1 << 20, 3), (100, 25, 2), (100, 5, 1)])
async def test_kept_decisions_are_bounded_in_number_and_in_bytes(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, number: int, size: int, left: int
) -> None:
    """Ten thousand candidates make a large answer; a loop of dry runs must not fill the disk."""
    monkeypatch.setattr(requests, "MAX_DECISIONS", number)
    monkeypatch.setattr(requests, "MAX_DECISION_BYTES", size)
    for n in range(6):
        await ledger.keep_decision(f"d{n}", b"x" * 10, after(n))

    found = [n for n in range(6) if await ledger.decision(f"d{n}") is not None]

    assert found == list(range(6 - left, 6))
