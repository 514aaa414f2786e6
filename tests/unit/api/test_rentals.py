"""Renting over HTTP: which reply an order gets, once per key, whoever hangs up or dies."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gp4u.desk.shapes import DoneStep, ProblemStep, StreamedStep
from gp4u.sim.faults import Rule
from tests.patient import Killed
from tests.simulated import Market
from tests.unit.api.office import DEMAND, ORDER, WORKLOAD, Exchange, office
from tests.virtual_loop import run_virtual

KEY = {"Idempotency-Key": "order-1"}
ALL_STEPS = msgspec.json.Decoder(StreamedStep)


def test_an_order_becomes_a_rental_that_is_listed_shown_and_released(tmp_path: Path) -> None:
    """The whole life of a rental has to be reachable by paths alone."""

    async def life() -> None:
        market = Market()
        async with office(market, tmp_path) as here:
            rental = await here.rent(name="june")
            assert rental["owner"] == "cli:june"
            assert rental["endpoints"]
            listed = (await here.ask("GET", "/api/v1/rentals")).json()
            assert [each["key"] for each in listed["items"]] == [rental["key"]]
            shown = await here.ask("GET", "/api/v1/rentals/june")
            kinds = [line["kind"] for line in shown.json()["history"]]
            assert kinds[0] == "intended"
            assert "running" in kinds
            done = await here.ask("DELETE", f"/api/v1/rentals/{rental['key']}?wait=true")
            assert (done.status_code, done.json()["state"]) == (200, "released")
            assert not market.live
            again = await here.ask("DELETE", f"/api/v1/rentals/{rental['key']}")
            assert (again.status_code, again.json()["state"]) == (200, "released")

    run_virtual(life)


def test_without_wait_the_reply_comes_once_the_market_has_confirmed(tmp_path: Path) -> None:
    """A program that polls must not be held for minutes of boot."""

    async def life() -> None:
        async with office(Market(), tmp_path) as here:
            reply = await here.ask("POST", "/api/v1/rentals", json=ORDER)
            assert reply.status_code == 201
            rental = reply.json()
            assert rental["state"] == "starting"
            assert rental["instance_id"]
            assert reply.headers["location"] == f"/api/v1/rentals/{rental['key']}"
            assert rental["owner"].startswith("api:")

    run_virtual(life)


def test_an_order_whose_reply_was_lost_is_accepted_and_not_created(tmp_path: Path) -> None:
    """201 would be a lie where only a listing can tell whether there is a machine."""

    async def life() -> None:
        market = Market(rules=[Rule(kind="reset_after", endpoint="create", calls=(1,))])
        async with office(market, tmp_path) as here:
            reply = await here.ask("POST", "/api/v1/rentals", json=ORDER)
            assert reply.status_code == 202
            assert reply.json()["state"] == "intended"
            assert reply.json()["instance_id"] is None
            assert market.rents() == 1

    run_virtual(life)


def test_the_same_key_and_body_get_the_same_reply(tmp_path: Path) -> None:
    """A client that never saw the reply has to be able to ask again without paying twice."""

    async def life() -> None:
        market = Market()
        async with office(market, tmp_path) as here:
            first = await here.ask("POST", "/api/v1/rentals", json=ORDER, headers=KEY)
            again = await here.ask("POST", "/api/v1/rentals", json=ORDER, headers=KEY)
            assert (again.status_code, again.content) == (first.status_code, first.content)
            assert "idempotency-replayed" not in first.headers
            assert again.headers["idempotency-replayed"] == "true"
            assert again.headers["location"] == first.headers["location"]
            assert market.rents() == 1
        async with office(market, tmp_path, seed=2) as restarted:
            later = await restarted.ask("POST", "/api/v1/rentals", json=ORDER, headers=KEY)
            assert (later.status_code, later.content) == (first.status_code, first.content)
            assert market.rents() == 1

    run_virtual(life)


def test_a_body_written_in_another_order_is_the_same_request(tmp_path: Path) -> None:
    """What counts is what is asked for, not how a client's JSON library sorts it."""

    async def life() -> None:
        market = Market()
        async with office(market, tmp_path) as here:
            first = await here.ask("POST", "/api/v1/rentals", json=ORDER, headers=KEY)
            turned = {"workload": dict(reversed(list(WORKLOAD.items()))), "demand": DEMAND}
            again = await here.ask("POST", "/api/v1/rentals", json=turned, headers=KEY)
            assert again.content == first.content
            assert market.rents() == 1

    run_virtual(life)


@pytest.mark.parametrize(
    "other",
    [{**ORDER, "name": "june"}, {**ORDER, "demand": {**DEMAND, "max_price_usd_per_hour": None}}],
)
def test_the_same_key_with_another_body_is_refused(tmp_path: Path, other: dict[str, Any]) -> None:
    """Whoever uses a key twice has made a mistake, and must not get another order's machine.

    A null says something that an absent field does not.
    """

    async def life() -> None:
        market = Market()
        async with office(market, tmp_path) as here:
            await here.ask("POST", "/api/v1/rentals", json=ORDER, headers=KEY)
            reply = await here.ask("POST", "/api/v1/rentals", json=other, headers=KEY)
            assert reply.status_code == 422
            assert reply.json()["field"] == "Idempotency-Key"
            assert market.rents() == 1

    run_virtual(life)


@pytest.mark.parametrize("seed", [None, 1, 2, 3])
def test_two_orders_with_one_key_at_once_rent_one_machine(tmp_path: Path, seed: int | None) -> None:
    """An impatient client sends again while the first one is still on its way."""

    async def life() -> None:
        market = Market()
        async with office(market, tmp_path) as here:
            replies = []

            async def order() -> None:
                replies.append(await here.ask("POST", "/api/v1/rentals", json=ORDER, headers=KEY))

            async with asyncio.TaskGroup() as group:
                for _ in range(5):
                    group.create_task(order())
            assert sorted(reply.status_code for reply in replies) == [201, 409, 409, 409, 409]
            refused = next(reply for reply in replies if reply.status_code == 409)
            assert refused.json()["code"] == "request_in_progress"
            assert int(refused.headers["retry-after"]) > 0
            assert market.rents() == 1

    run_virtual(life, seed)


def test_orders_without_a_key_rent_anew(tmp_path: Path) -> None:
    """Without a name and a key nothing says that two orders mean the same machine."""

    async def life() -> None:
        market = Market()
        async with office(market, tmp_path) as here:
            one, two = await here.rent(), await here.rent()
            assert one["key"] != two["key"]
            assert market.rents() == 2

    run_virtual(life)


def test_a_name_has_one_live_rental(tmp_path: Path) -> None:
    """Names are shared with the command line, where the same is refused."""

    async def life() -> None:
        market = Market()
        async with office(market, tmp_path) as here:
            held = await here.rent(name="june")
            order = {**ORDER, "name": "june"}
            reply = await here.ask("POST", "/api/v1/rentals", json=order)
            assert (reply.status_code, reply.json()["code"]) == (409, "owner_has_rental")
            assert reply.json()["key"] == held["key"]
            assert market.rents() == 1

    run_virtual(life)


@pytest.mark.parametrize("accept", ["application/json", "application/x-ndjson"])
def test_a_client_that_hangs_up_in_the_middle_of_a_rent_stops_nothing(
    tmp_path: Path, accept: str
) -> None:
    """Half a rent is the expensive half: the machine runs, and nobody follows it."""

    async def life() -> None:
        market = Market()
        async with office(market, tmp_path) as here:
            order = {**ORDER, "wait": True, "name": "june"}
            call = here.exchange("POST", "/api/v1/rentals", body=order, accept=accept)
            async with asyncio.TaskGroup() as group:
                group.create_task(call.run())
                await here.until(lambda: market.rents() > 0)
                call.hang_up()
            assert b'"step":"done"' not in call.read
            assert not here.jobs.is_idle
            await here.until(lambda: here.jobs.is_idle)
            assert (await here.one.app.desk.find("june")).state == "running"
            assert market.rents() == 1

    run_virtual(life)


@pytest.mark.parametrize("at_commit", [1, 2, 3, 4, 5])
def test_a_server_that_dies_in_mid_rent_and_is_asked_again_holds_one_machine(
    tmp_path: Path, at_commit: int
) -> None:
    """The retry of a client whose server was killed is the moment at which machines double.

    The commits are the request, the account, the intent, the confirmation and the reply.
    """

    async def life() -> None:
        market = Market()
        waiting: asyncio.Task[None] | None = None
        call: Exchange | None = None
        try:
            async with office(market, tmp_path) as here:
                call = here.exchange(
                    "POST", "/api/v1/rentals", body=ORDER, idempotency_key="order-1"
                )
                here.one.die_at_commit(at_commit)
                waiting = asyncio.get_running_loop().create_task(call.run())
                await asyncio.sleep(120)
        except* Killed:
            pass  # as a process that is no more
        assert waiting is not None
        assert call is not None
        await asyncio.wait([waiting])
        assert call.status == 503 or isinstance(waiting.exception(), Killed)
        async with office(market, tmp_path, seed=2) as restarted:
            reply = await restarted.ask("POST", "/api/v1/rentals", json=ORDER, headers=KEY)
            assert reply.status_code in (201, 202)
            again = await restarted.ask("POST", "/api/v1/rentals", json=ORDER, headers=KEY)
            assert again.content == reply.content
            await restarted.one.look(12)
            assert len(market.live) == 1
            held = await restarted.one.app.ledger.open_rentals()
            assert [rental.key for rental in held if rental.is_live] == [reply.json()["key"]]

    run_virtual(life)


def _steps(call: Exchange) -> list[StreamedStep]:
    return [ALL_STEPS.decode(line) for line in call.read.splitlines()]


def test_a_rent_is_told_line_by_line_and_ends_with_the_rental(tmp_path: Path) -> None:
    """A person at a terminal wants to see what is happening, and the key before money moves."""

    async def life() -> None:
        async with office(Market(), tmp_path) as here:
            order = {**ORDER, "wait": True}
            call = here.exchange(
                "POST", "/api/v1/rentals", body=order, accept="application/x-ndjson"
            )
            await call.run()
            assert call.status == 200
            assert call.headers["content-type"] == "application/x-ndjson"
            *told, last = _steps(call)
            words = [type(step).__name__ for step in told]
            assert words[:3] == ["DecidedStep", "IntendedStep", "RentedStep"]
            assert words[-1] == "SettledStep"
            assert isinstance(last, DoneStep)
            assert last.rental.state == "running"

    run_virtual(life)


def test_a_rent_that_comes_to_nothing_ends_its_lines_with_the_problem(tmp_path: Path) -> None:
    """A stream has one status; how it ended has to be in its last line."""

    async def life() -> None:
        async with office(Market(), tmp_path) as here:
            order = {**ORDER, "demand": {**DEMAND, "max_price_usd_per_hour": "0.0001"}}
            lines = here.exchange(
                "POST",
                "/api/v1/rentals",
                body=order,
                accept="application/x-ndjson",
                idempotency_key="order-1",
            )
            await lines.run()
            last = _steps(lines)[-1]
            assert isinstance(last, ProblemStep)
            assert last.problem["code"] == "nothing_fits"
            whole = await here.ask("POST", "/api/v1/rentals", json=order, headers=KEY)
            assert whole.status_code == 409
            assert whole.headers["content-type"] == "application/problem+json"
            assert whole.json() == last.problem

    run_virtual(life)


def test_trouble_of_a_market_is_not_kept_as_the_reply(tmp_path: Path) -> None:
    """A key whose first try met a broken market must be good for another try."""

    async def life() -> None:
        market = Market(rules=[Rule(kind="bad_key", endpoint="create", times=1)])
        async with office(market, tmp_path) as here:
            failed = await here.ask("POST", "/api/v1/rentals", json=ORDER, headers=KEY)
            assert failed.status_code >= 500, failed.text
            good = await here.ask("POST", "/api/v1/rentals", json=ORDER, headers=KEY)
            assert good.status_code == 201, good.text
            assert "idempotency-replayed" not in good.headers

    run_virtual(life)


def test_a_dry_run_sends_nothing_and_shows_no_secret(tmp_path: Path) -> None:
    """What would be sent is shown to whoever may rent; keys are nobody's to read."""

    async def life() -> None:
        market = Market()
        async with office(market, tmp_path) as here:
            reply = await here.ask("POST", "/api/v1/rentals", json={**ORDER, "dry_run": True})
            assert reply.status_code == 200
            assert reply.json()["offer"]["provider"] == "vastai"
            assert reply.json()["calls"]
            assert "workload-secret" not in reply.text
            assert market.rents() == 0
            listed = (await here.ask("GET", "/api/v1/rentals?all=true")).json()
            assert listed["items"] == []

    run_virtual(life)


def test_a_full_house_refuses_orders_and_forgets_them(tmp_path: Path) -> None:
    """An order that was not taken must not block its key, nor run later by surprise."""

    async def life() -> None:
        market = Market()
        async with office(market, tmp_path, max_jobs=1) as here:
            slow = here.exchange("POST", "/api/v1/rentals", body={**ORDER, "wait": True})
            async with asyncio.TaskGroup() as group:
                group.create_task(slow.run())
                await asyncio.sleep(2)
                reply = await here.ask("POST", "/api/v1/rentals", json=ORDER, headers=KEY)
                assert (reply.status_code, reply.json()["code"]) == (503, "saturated")
                assert int(reply.headers["retry-after"]) > 0
            good = await here.ask("POST", "/api/v1/rentals", json=ORDER, headers=KEY)
            assert good.status_code == 201
            assert market.rents() == 2

    run_virtual(life)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"demand": {"gpus": 0}}, "demand.gpus"),
        ({"demand": {"gpu": ["RTX 9999"]}}, "demand.gpu"),
        ({"demand": {"max_price_usd_per_hour": "NaN"}}, "demand.max_price_usd_per_hour"),
        ({"demand": {"max_price": 1}}, "demand.max_price"),
        ({"demand": {"providers": ["nowhere"]}}, "demand.providers"),
        ({"demand": {"disk_gib": 2}}, "demand.disk_gib"),
        ({"demand": {"weights": {"luck": 1}}}, "demand.weights"),
        ({"demand": {"weights": {"price": 60, "location": 50}}}, "demand.weights"),
        ({"workload": {"image": "no image"}}, "workload.image"),
        ({"workload": {"image": "busybox", "env": {"1X": ""}}}, "workload.env.1X.[key]"),
        ({"workload": {"image": "busybox", "health": [{"port": 1}]}}, "workload.health"),
        ({"workload": {"image": "busybox", "command": ["a\0"]}}, "command or env"),
        ({"name": "Not A Name"}, "name"),
        ({"wait": "perhaps"}, "wait"),
    ],
)
def test_what_is_out_of_bounds_is_refused_by_its_name(
    tmp_path: Path, change: dict[str, Any], field: str
) -> None:
    """A program finds its mistake by the field, and nothing may be rented on a guess."""

    async def life() -> None:
        market = Market()
        async with office(market, tmp_path) as here:
            reply = await here.ask("POST", "/api/v1/rentals", json={**ORDER, **change})
            assert reply.status_code == 422, reply.text
            assert reply.json()["field"] == field, reply.text
            assert not market.requests

    run_virtual(life)
