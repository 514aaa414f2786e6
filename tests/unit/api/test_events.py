"""The stream of events: bounded, resumable, and never in anybody's way."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from gp4u.api.rentals.events import HEARTBEAT_S, MAX_LISTENERS
from tests.simulated import Market
from tests.unit.api.office import Exchange, Office, office
from tests.virtual_loop import run_virtual


def _told(call: Exchange) -> list[tuple[str, str, dict[str, Any]]]:
    """Return (id, event, data) of each whole frame that was read."""
    found = []
    for frame in call.read.decode().split("\n\n")[:-1]:
        fields = dict(line.split(": ", 1) for line in frame.splitlines() if line[0] != ":")
        if "event" in fields:
            found.append((fields["id"], fields["event"], json.loads(fields["data"])))
    return found


async def _heard(here: Office, query: str = "", **headers: str) -> list[tuple[str, str, Any]]:
    """Listen for a moment, and return what was told."""
    call = here.exchange("GET", f"/api/v1/events{query}", **headers)
    async with asyncio.TaskGroup() as group:
        group.create_task(call.run())
        await asyncio.sleep(1)
        call.hang_up()
    assert call.status == 200, call.read
    return _told(call)


def test_a_listener_hears_what_happens_in_its_order(tmp_path: Path) -> None:
    """Three sources, one stream: what it is about, and when it was."""

    async def life() -> None:
        async with office(Market(), tmp_path) as here:
            call = here.exchange("GET", "/api/v1/events")
            async with asyncio.TaskGroup() as group:
                group.create_task(call.run())
                await asyncio.sleep(1)
                here.bus.offers_refreshed("vastai", 64, "")
                here.bus.provider_state("ionet", "CLOSED", "OPEN")
                rental = await here.rent()
                call.hang_up()
            assert call.headers["content-type"].startswith("text/event-stream")
            told = _told(call)
            assert [event for _, event, _ in told[:2]] == ["offers.refreshed", "provider.state"]
            assert told[0][2]["offers"] == 64
            assert (told[1][2]["from"], told[1][2]["to"]) == ("CLOSED", "OPEN")
            moves = [data for _, event, data in told if event == "rental.moved"]
            assert {move["key"] for move in moves} == {rental["key"]}
            assert [m["state"] for m in moves if m["state"]] == ["intended", "starting", "running"]
            numbers = [int(mark.split("-")[1].split(".")[0]) for mark, _, _ in told]
            assert numbers == sorted(set(numbers))

    run_virtual(life)


@pytest.mark.parametrize("way", ["header", "query"])
def test_who_was_away_goes_on_where_it_stopped(tmp_path: Path, way: str) -> None:
    """A connection that breaks must not lose what happened meanwhile, nor tell it twice."""

    async def life() -> None:
        async with office(Market(), tmp_path) as here:
            for offers in range(5):
                here.bus.offers_refreshed("vastai", offers, "")
            first = await _heard(here, "?after=boot1-0.0")
            assert [data["offers"] for _, _, data in first] == [0, 1, 2, 3, 4]
            mark = first[2][0]
            if way == "header":
                again = await _heard(here, last_event_id=mark)
            else:
                again = await _heard(here, f"?after={mark}")
            assert again == first[3:]
            assert await _heard(here, f"?after={first[-1][0]}") == []

    run_virtual(life)


@pytest.mark.parametrize("after", ["boot0-3.0", "boot1-2.0", "boot1-999.0", "nonsense", "", "-1"])
def test_a_place_that_is_gone_or_foreign_is_told_to_be(tmp_path: Path, after: str) -> None:
    """Going on in silence would leave a hole that the listener does not know of."""

    async def life() -> None:
        async with office(Market(), tmp_path, kept=5) as here:
            for offers in range(20):
                here.bus.offers_refreshed("vastai", offers, "")
            ((mark, event, _),) = await _heard(here, f"?after={after}")
            assert event == "reset"
            assert mark == "boot1-20.0"
            assert await _heard(here, f"?after={mark}") == []

    run_virtual(life)


def test_rental_moves_are_made_up_for_after_a_restart(tmp_path: Path) -> None:
    """Somebody watches money being spent; a restart of the server must not hide a part of it."""

    async def life() -> None:
        market = Market()
        async with office(market, tmp_path) as here:
            await here.rent(name="june")
            marks = await _heard(here, "?after=boot1-0.0&types=rental.moved")
            seen, missed = marks[0], [data for _, _, data in marks[1:]]
            assert missed
        async with office(market, tmp_path, seed=2) as restarted:
            first, *rest = await _heard(restarted, f"?after={seen[0]}")
            assert first[1] == "reset"
            assert [data for _, _, data in rest] == missed
            broken = await _heard(restarted, f"?after={first[0]}")
            assert [data for _, _, data in broken[1:]] == missed
            half = await _heard(restarted, f"?after={rest[0][0]}")
            assert [data for _, _, data in half[1:]] == missed[1:]
            assert await _heard(restarted, f"?after={rest[-1][0]}") == []
            other = await _heard(restarted, f"?after={seen[0]}&types=provider.state")
            assert [event for _, event, _ in other] == ["reset"]

    run_virtual(life)


def test_only_the_wanted_types_are_told(tmp_path: Path) -> None:
    """A program that waits for one thing should not have to read the others."""

    async def life() -> None:
        async with office(Market(), tmp_path) as here:
            here.bus.offers_refreshed("vastai", 1, "")
            here.bus.provider_state("vastai", "CLOSED", "OPEN")
            one = await _heard(here, "?after=boot1-0.0&types=provider.state")
            assert [event for _, event, _ in one] == ["provider.state"]
            two = "?after=boot1-0.0&types=provider.state&types=offers.refreshed"
            assert len(await _heard(here, two)) == 2
            reply = await here.ask("GET", "/api/v1/events?types=weather")
            assert (reply.status_code, reply.json()["code"]) == (422, "bad_input")

    run_virtual(life)


def test_a_quiet_stream_is_kept_open_by_comments(tmp_path: Path) -> None:
    """Proxies close what is silent for a minute."""

    async def life() -> None:
        async with office(Market(), tmp_path) as here:
            call = here.exchange("GET", "/api/v1/events")
            async with asyncio.TaskGroup() as group:
                group.create_task(call.run())
                await asyncio.sleep(4 * HEARTBEAT_S + 1)
                call.hang_up()
            assert call.read.count(b": nothing new\n\n") == 4
            assert _told(call) == []

    run_virtual(life)


def test_a_slow_listener_is_told_what_it_lost_and_cut_off(tmp_path: Path) -> None:
    """Whoever does not read must cost neither memory nor anybody else's events."""

    async def life() -> None:
        async with office(Market(), tmp_path, kept=10) as here:
            slow = here.exchange("GET", "/api/v1/events")
            quick = here.exchange("GET", "/api/v1/events")
            async with asyncio.TaskGroup() as group:
                group.create_task(slow.run())
                group.create_task(quick.run())
                await asyncio.sleep(1)
                slow.stop_reading()
                for number in range(50):
                    here.bus.offers_refreshed("vastai", number, "")
                    await asyncio.sleep(0.1)
                slow.read_on()
                await asyncio.sleep(1)
                quick.hang_up()
            assert [data["offers"] for _, _, data in _told(quick)] == list(range(50))
            last = _told(slow)[-1]
            assert last[1] == "lost"
            assert last[2]["events"] > 0
            assert len(_told(slow)) < 10

    run_virtual(life)


def test_there_is_room_for_so_many_and_a_seat_is_given_back(tmp_path: Path) -> None:
    """A leak of one seat for each broken connection would close the stream for good in a day."""

    async def life() -> None:
        async with office(Market(), tmp_path) as here:
            calls = [here.exchange("GET", "/api/v1/events") for _ in range(MAX_LISTENERS)]
            async with asyncio.TaskGroup() as group:
                for call in calls:
                    group.create_task(call.run())
                await asyncio.sleep(1)
                refused = await here.ask("GET", "/api/v1/events")
                assert (refused.status_code, refused.json()["code"]) == (503, "too_many_streams")
                assert int(refused.headers["retry-after"]) > 0
                for call in calls:
                    call.hang_up()
            assert await _heard(here) == []

    run_virtual(life)


def test_publishing_never_waits(tmp_path: Path) -> None:
    """The hooks are called in the middle of a fetch and of a commit."""

    async def life() -> None:
        async with office(Market(), tmp_path) as here:
            stuck = here.exchange("GET", "/api/v1/events")
            stuck.stop_reading()
            async with asyncio.TaskGroup() as group:
                group.create_task(stuck.run())
                await asyncio.sleep(1)
                before = asyncio.get_running_loop().time()
                for number in range(5000):
                    here.bus.offers_refreshed("vastai", number, "x" * 1000)
                assert asyncio.get_running_loop().time() == before
                stuck.hang_up()
                stuck.read_on()

    run_virtual(life)


def test_a_text_of_a_market_cannot_forge_an_event(tmp_path: Path) -> None:
    """An error text with line breaks would else end the frame and begin another one."""

    async def life() -> None:
        async with office(Market(), tmp_path) as here:
            here.bus.offers_refreshed("vastai", 0, "no\n\nevent: rental.moved\ndata: {}\n\n")
            ((_, event, data),) = await _heard(here, "?after=boot1-0.0")
            assert event == "offers.refreshed"
            assert "\n" not in data["error"]

    run_virtual(life)


def test_a_server_that_stops_ends_its_streams_in_good_order(tmp_path: Path) -> None:
    """A listener must be able to tell a stop from a broken connection, and logs stay quiet."""

    async def life() -> None:
        async with office(Market(), tmp_path) as here:
            await here.rent(name="june")
            calls = [
                here.exchange("GET", "/api/v1/events"),
                here.exchange("GET", "/api/v1/rentals/june/logs?follow=true"),
            ]
            loop = asyncio.get_running_loop()
            tasks = [loop.create_task(call.run()) for call in calls]
            await asyncio.sleep(5)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            assert [task.cancelled() or task.exception() for task in tasks] == [None, None]
            assert all(call.complete for call in calls)

    run_virtual(life)
