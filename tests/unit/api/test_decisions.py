"""Decisions and markets over HTTP: explained, kept for a while, and without any effect."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gp4u.api.rentals import examples
from gp4u.api.rentals.decisions import MarketsShape
from gp4u.api.rentals.held import OrphansShape, RentalsShape
from gp4u.desk.shapes import (
    DecisionShape,
    DryRunShape,
    OfferShape,
    RentalShape,
    StreamedStep,
)
from tests.simulated import Market
from tests.unit.api.office import DEMAND, office
from tests.virtual_loop import run_virtual


def test_a_decision_is_explained_and_can_be_read_again(tmp_path: Path) -> None:
    """Who asks why a machine was chosen asks later than who chose it."""

    async def life() -> None:
        market = Market()
        async with office(market, tmp_path) as here:
            asked = {"demand": DEMAND, "top": 3, "rejections": True}
            reply = await here.ask("POST", "/api/v1/decisions", json=asked)
            assert reply.status_code == 200
            told = msgspec.json.decode(reply.content, type=DecisionShape)
            assert 0 < len(told.ranked) <= 3
            assert told.candidates >= len(told.ranked)
            assert isinstance(told.rejections, list)
            assert len(told.rejections) == told.rejected
            assert told.log[-1].endswith("launching...")
            assert told.explanation.startswith(f"{told.candidates}/")
            again = await here.ask("GET", f"/api/v1/decisions/{told.id}")
            assert again.content == reply.content
            assert market.rents() == 0
        async with office(market, tmp_path, seed=2) as restarted:
            later = await restarted.ask("GET", f"/api/v1/decisions/{told.id}")
            assert later.content == reply.content
            await asyncio.sleep(25 * 3600)
            await restarted.ask("POST", "/api/v1/decisions", json=asked)
            gone = await restarted.ask("GET", f"/api/v1/decisions/{told.id}")
            assert (gone.status_code, gone.json()["code"]) == (404, "not_found")

    run_virtual(life)


def test_nothing_that_fits_is_an_answer_and_not_an_error(tmp_path: Path) -> None:
    """A dry run is asked to learn exactly this: what keeps everything out."""

    async def life() -> None:
        async with office(Market(), tmp_path) as here:
            asked = {"demand": {**DEMAND, "max_price_usd_per_hour": 0.0001}}
            reply = await here.ask("POST", "/api/v1/decisions", json=asked)
            assert reply.status_code == 200
            told = reply.json()
            assert (told["candidates"], told["ranked"]) == (0, [])
            assert told["rejected"] > 0
            assert "price" in told["explanation"]
            assert any(one["filter"] == "price" for one in told["relaxations"])

    run_virtual(life)


def test_a_search_that_kept_everything_out_is_told_over_a_wider_one(tmp_path: Path) -> None:
    """A market that has no such GPU gives no rows, so there would be no reason to read."""

    async def life() -> None:
        async with office(Market(), tmp_path) as here:
            reply = await here.ask("POST", "/api/v1/decisions", json={"demand": {"gpu": ["B200"]}})
            told = reply.json()
            assert told["candidates"] == 0
            assert told["rejected"] > 0

    run_virtual(life)


def test_the_decision_behind_a_rental_is_found_under_its_key(tmp_path: Path) -> None:
    """Why this machine is the question that comes with every bill."""

    async def life() -> None:
        async with office(Market(), tmp_path) as here:
            rental = await here.rent()
            reply = await here.ask("GET", f"/api/v1/decisions/{rental['key']}")
            assert reply.status_code == 200, reply.text
            told = msgspec.json.decode(reply.content, type=DecisionShape)
            assert told.id == rental["key"]
            assert rental["offer_id"] in [one.offer.offer_id for one in told.ranked]

    run_virtual(life)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"top": -1}, "top"),
        ({"top": 10_001}, "top"),
        ({"top": "many"}, "top"),
        ({"demand": {"locations": ["Atlantis"]}}, "demand.locations"),
        ({"demand": {"gpu": [""]}}, "demand.gpu.0"),
        ({"demand": {"min_reliability": 95}}, "demand.min_reliability"),
        ({"demand": {"min_vram_gib": 1e9}}, "demand.min_vram_gib"),
        ({"demand": []}, "demand"),
        ({"depth": 3}, "depth"),
    ],
)
def test_a_question_out_of_bounds_is_refused_by_its_field(
    tmp_path: Path, body: dict[str, Any], field: str
) -> None:
    """Every refusal says which part of the body it is about."""

    async def life() -> None:
        async with office(Market(), tmp_path) as here:
            reply = await here.ask("POST", "/api/v1/decisions", json=body)
            assert (reply.status_code, reply.json()["field"]) == (422, field), reply.text

    run_virtual(life)


def test_all_candidates_are_told_where_no_number_is_given(tmp_path: Path) -> None:
    """`gp4u offers` lists everything that fits, also from a server."""

    async def life() -> None:
        async with office(Market(), tmp_path) as here:
            told = (await here.ask("POST", "/api/v1/decisions", json={"top": None})).json()
            assert len(told["ranked"]) == told["candidates"] > 10
            none = (await here.ask("POST", "/api/v1/decisions", json={"top": 0})).json()
            assert none["ranked"] == []
            assert none["candidates"] == told["candidates"]

    run_virtual(life)


def test_absent_takes_the_setting_and_null_is_no_bound(tmp_path: Path) -> None:
    """A client that has its own settings must be able to say that there is no bound at all."""

    async def life() -> None:
        async with office(
            Market(), tmp_path, variables={"VAST_MAX_PRICE_PER_HOUR": "0.0001"}
        ) as here:
            bound = (await here.ask("POST", "/api/v1/decisions", json={})).json()
            free = {"demand": {"max_price_usd_per_hour": None}}
            unbound = (await here.ask("POST", "/api/v1/decisions", json=free)).json()
            assert bound["candidates"] == 0
            assert unbound["candidates"] > 0

    run_virtual(life)


def test_closed_markets_are_told_with_their_reason(tmp_path: Path) -> None:
    """Whoever wonders why a market has no offers finds out without the server's log."""

    async def life() -> None:
        async with office(Market(), tmp_path) as here:
            markets = {
                one["provider"]: one
                for one in (await here.ask("GET", "/api/v1/markets")).json()["items"]
            }
            assert markets["vastai"]["open"]
            assert markets["vastai"]["title"] == "Vast.ai"
            assert "logs" in markets["vastai"]["can"]
            assert not markets["ionet"]["open"]
            assert markets["ionet"]["why"]
            asked = {"demand": {"providers": ["ionet"]}}
            closed = await here.ask("POST", "/api/v1/decisions", json=asked)
            assert (closed.status_code, closed.json()["code"]) == (403, "market_closed")
            assert closed.json()["provider"] == "ionet"

    run_virtual(life)


@pytest.mark.parametrize(
    ("example", "shape"),
    [
        (examples.OFFER, OfferShape),
        (examples.DECISION, DecisionShape),
        (examples.MARKETS, MarketsShape),
        (examples.RENTAL, RentalShape),
        (examples.RENTAL_SHOWN, RentalShape),
        (examples.RELEASED, RentalShape),
        (examples.RENTALS, RentalsShape),
        (examples.DRY_RUN, DryRunShape),
        (examples.ORPHANS, OrphansShape),
    ],
)
def test_each_example_is_what_it_is_an_example_of(example: object, shape: type) -> None:
    """An example that the API would never send is worse than none."""
    read: object = msgspec.convert(example, shape, strict=False)
    assert msgspec.to_builtins(read) == example


def test_each_line_of_the_example_streams_is_a_step() -> None:
    """Clients are written against these lines."""
    decoder = msgspec.json.Decoder(StreamedStep)
    for lines in (examples.RENT_STEPS, examples.RELEASE_STEPS):
        assert [decoder.decode(line) for line in lines.splitlines()]
