"""What is rented, over HTTP: the list, one rental, its log, and its end."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import msgspec
import pytest
from pydantic import ValidationError

from gp4u.api.rentals.bodies import ExecBody
from gp4u.desk.shapes import DoneStep, RentalShape, StreamedStep
from gp4u.sim.faults import Rule
from tests.simulated import Market
from tests.unit.api.office import Office, office
from tests.virtual_loop import run_virtual

ALL_STEPS = msgspec.json.Decoder(StreamedStep)


def test_a_list_is_cut_into_pages_without_gap_or_repetition(tmp_path: Path) -> None:
    """What is listed page by page has to be what there is, whatever the size of a page."""

    async def life() -> None:
        async with office(Market(), tmp_path) as here:
            made = [(await here.rent(name=f"n{number}"))["key"] for number in range(4)]
            await here.ask("DELETE", f"/api/v1/rentals/{made[0]}?wait=true")
            assert await _keys(here, "limit=2") == made[1:]
            every = [each.key for each in await here.one.app.ledger.all_rentals()]
            assert set(made) <= set(every)
            for limit in (1, 3, len(every), 1000):
                assert await _keys(here, f"all=true&limit={limit}") == every
            released = await _keys(here, "all=true&state=released&state=releasing&limit=1")
            assert released == [key for key in every if key not in made[1:]]
            assert await _keys(here, "owner=cli:n2") == [made[2]]
            assert await _keys(here, "provider=vastai&limit=1") == made[1:]

    run_virtual(life)


async def _keys(here: Office, query: str) -> list[str]:
    keys: list[str] = []
    cursor = ""
    while True:
        page = (await here.ask("GET", f"/api/v1/rentals?{query}{cursor}")).json()
        keys += [each["key"] for each in page["items"]]
        if page["next_cursor"] is None:
            return keys
        cursor = f"&cursor={page['next_cursor']}"


@pytest.mark.parametrize(
    ("query", "status", "field"),
    [
        ("provider=nowhere", 404, "provider"),
        ("state=gone", 422, "state.0"),
        ("limit=0", 422, "limit"),
        ("limit=1001", 422, "limit"),
        ("cursor=%00", 422, "cursor"),
        ("cursor=WyJ4Il0", 422, "cursor"),
        ("colour=red", 422, "colour"),
    ],
)
def test_a_list_refuses_what_it_does_not_know(
    tmp_path: Path, query: str, status: int, field: str
) -> None:
    """A mistyped filter that is ignored shows rentals that were not asked for."""

    async def life() -> None:
        async with office(Market(), tmp_path) as here:
            reply = await here.ask("GET", f"/api/v1/rentals?{query}")
            assert (reply.status_code, reply.json()["field"]) == (status, field), reply.text

    run_virtual(life)


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", ""), ("DELETE", ""), ("GET", "/logs"), ("POST", "/exec")],
)
def test_a_rental_that_there_is_not_is_not_found(tmp_path: Path, method: str, path: str) -> None:
    """Every path of a rental says in the same way that there is none."""

    async def life() -> None:
        async with office(Market(), tmp_path) as here:
            body = {"command": ["true"]} if method == "POST" else None
            reply = await here.ask(method, f"/api/v1/rentals/nothing{path}", json=body)
            assert (reply.status_code, reply.json()["code"]) == (404, "not_found")

    run_virtual(life)


def test_a_release_that_nobody_waits_for_goes_on_by_itself(tmp_path: Path) -> None:
    """While the market is away the wish is on disk: 202 is all that can be said, and it holds."""

    async def life() -> None:
        gone = Rule(kind="status", endpoint="*", status=503, after_s=100, until_s=400)
        market = Market(rules=[gone])
        async with office(market, tmp_path) as here:
            rental = await here.rent(name="june")
            loop = asyncio.get_running_loop()
            await asyncio.sleep(max(0.0, 110 - loop.time()))
            began = loop.time()
            reply = await here.ask("DELETE", "/api/v1/rentals/june")
            assert (reply.status_code, reply.json()["state"]) == (202, "releasing")
            assert loop.time() - began < 60
            await asyncio.sleep(400)
            await here.one.look(20)
            assert not market.live
            shown = await here.ask("GET", f"/api/v1/rentals/{rental['key']}")
            assert shown.json()["state"] == "released"

    run_virtual(life)


def test_a_release_is_told_line_by_line(tmp_path: Path) -> None:
    """`gp4u release` on a server shows what it shows without one."""

    async def life() -> None:
        async with office(Market(), tmp_path) as here:
            await here.rent(name="june")
            url = "/api/v1/rentals/june?wait=true"
            call = here.exchange("DELETE", url, accept="application/x-ndjson")
            await call.run()
            last = ALL_STEPS.decode(call.read.splitlines()[-1])
            assert isinstance(last, DoneStep)
            assert last.rental.state == "released"
            missing = here.exchange("DELETE", "/api/v1/rentals/none", accept="application/x-ndjson")
            await missing.run()
            assert missing.status == 404

    run_virtual(life)


def test_closing_without_proof_is_for_admins(tmp_path: Path) -> None:
    """It ends our record of something that may go on costing money."""

    async def life() -> None:
        async with office(Market(), tmp_path) as here:
            await here.rent(name="june")
            url = "/api/v1/rentals/june?forget=true"
            call = here.exchange("DELETE", url)
            call._scope["role"] = "rent"
            await call.run()
            assert (call.status, json.loads(call.read)["code"]) == (403, "role_needed")
            reply = await here.ask("DELETE", url)
            assert (reply.status_code, reply.json()["reason"]) == (200, "forgotten_by_user")

    run_virtual(life)


def test_many_who_ask_the_markets_at_once_cost_each_market_one_call(tmp_path: Path) -> None:
    """A dashboard in a hundred tabs must not use up the market's patience with us."""

    async def life() -> None:
        market = Market()
        async with office(market, tmp_path) as here:
            await here.rent()
            before = len(market.requests)
            async with asyncio.TaskGroup() as group:
                asked = [
                    group.create_task(here.ask("GET", "/api/v1/rentals?ask=true"))
                    for _ in range(50)
                ]
            assert len({task.result().content for task in asked}) == 1
            assert len(market.requests) - before <= 2

    run_virtual(life)


def test_a_look_survives_the_caller_who_began_it(tmp_path: Path) -> None:
    """Fifty waiting for one look must not fail because the first of them went away."""

    async def life() -> None:
        async with office(Market(), tmp_path) as here:
            rental = await here.rent()
            desk = here.one.app.desk
            async with asyncio.TaskGroup() as group:
                first = group.create_task(desk.look(everything=False, ask=True))
                await asyncio.sleep(0)
                others = [
                    group.create_task(desk.look(everything=False, ask=True)) for _ in range(3)
                ]
                await asyncio.sleep(0)
                first.cancel()
            for other in others:
                assert [each.key for each in other.result().rentals] == [rental["key"]]
                assert other.result().failed is None

    run_virtual(life)


def test_a_log_is_told_without_what_a_terminal_obeys(tmp_path: Path) -> None:
    """What a stranger's program prints must not move the cursor of whoever reads it by curl."""

    async def life() -> None:
        async with office(Market(), tmp_path) as here:
            await here.rent(name="june")
            clean = await here.ask("GET", "/api/v1/rentals/june/logs")
            assert clean.status_code == 200
            assert clean.headers["content-type"] == "text/plain; charset=utf-8"
            raw = await here.ask("GET", "/api/v1/rentals/june/logs?raw=true&tail=5")
            assert raw.status_code == 200
            assert "\x1b" not in clean.text

    run_virtual(life)


@pytest.mark.parametrize(
    ("given", "sent"),
    [("aGk=", b"hi"), ("aGVsbG8g\nd29ybGQ=\n", b"hello world"), ("", b"")],
)
def test_input_of_a_command_is_base64(given: str, sent: bytes) -> None:
    """Programs that write it often break its lines."""
    assert ExecBody.model_validate({"command": ["sh"], "stdin": given}).stdin == sent


@pytest.mark.parametrize("given", ["!!", "hello world!", "_-8=", "aGk", "é"])
def test_input_that_is_no_base64_is_refused(given: str) -> None:
    """What is left of it after every strange character is not what somebody wanted to be run."""
    with pytest.raises(ValidationError, match="stdin"):
        ExecBody.model_validate({"command": ["sh"], "stdin": given})


def test_following_a_log_ends_with_its_instance(tmp_path: Path) -> None:
    """A pipe behind it must see the end when there is nothing more to come."""

    async def life() -> None:
        async with office(Market(), tmp_path) as here:
            await here.rent(name="june")
            call = here.exchange("GET", "/api/v1/rentals/june/logs?follow=true")
            async with asyncio.TaskGroup() as group:
                group.create_task(call.run())
                await asyncio.sleep(10)
                assert call.status == 200
                await here.ask("DELETE", "/api/v1/rentals/june?wait=true")

    run_virtual(life)


def test_a_log_that_is_followed_by_name_stays_with_its_machine(tmp_path: Path) -> None:
    """The name may mean another rental by the time somebody reads on: its log is another one."""

    async def life() -> None:
        async with office(Market(), tmp_path) as here:
            await here.rent(name="june")
            call = here.exchange("GET", "/api/v1/rentals/june/logs?follow=true")
            call.stop_reading()
            async with asyncio.TaskGroup() as group:
                following = group.create_task(call.run())
                await here.ask("DELETE", "/api/v1/rentals/june?wait=true")
                await here.rent(name="june")
                call.read_on()
                await asyncio.sleep(60)
                ended = call.complete
                call.hang_up()
                await following
            assert ended

    run_virtual(life)


def test_a_follower_that_goes_away_stops_asking_the_market(tmp_path: Path) -> None:
    """Each follower costs a call every two seconds, for ever if nobody notices that it left."""

    async def life() -> None:
        market = Market()
        async with office(market, tmp_path) as here:
            await here.rent(name="june")
            call = here.exchange("GET", "/api/v1/rentals/june/logs?follow=true")
            async with asyncio.TaskGroup() as group:
                group.create_task(call.run())
                await asyncio.sleep(10)
                call.hang_up()
            before = len(market.requests)
            await asyncio.sleep(60)
            assert len(market.requests) == before

    run_virtual(life)


def test_the_shown_rental_reads_as_the_shape(tmp_path: Path) -> None:
    """The command line decodes exactly this."""

    async def life() -> None:
        async with office(Market(), tmp_path) as here:
            await here.rent(name="june")
            shown = await here.ask("GET", "/api/v1/rentals/june")
            rental = msgspec.json.decode(shown.content, type=RentalShape)
            assert msgspec.json.encode(rental) == shown.content

    run_virtual(life)
