"""Bad rows in good replies: what hosts and markets write that cannot be (H20 to H22).

A row that breaks its schema is skipped and counted; what cannot be read is neither rented nor taken
for gone.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest

from gp4u.errors import Malformed
from gp4u.model import InstanceState
from gp4u.providers.contract import Query
from gp4u.rentals.rental import RentalState
from gp4u.sim.faults import Rule
from tests.laws import Story, told
from tests.simulated import BASE_URL, DEMAND

QUERY = Query(requirements=DEMAND.requirements)
RETRY_AFTER = ["2", "0", "-5", "NaN", "1e999", "Wed, 21 Oct 2099 07:28:00 GMT", "soon", "\x7f"]


async def market_says(story: Story, method: str, path: str, **more: Any) -> dict[str, Any]:
    """Ask the market directly, past our own client, in the pace that it allows."""
    await asyncio.sleep(2)
    async with httpx2.AsyncClient(transport=story.market.inner) as direct:
        root = BASE_URL.rsplit("/", 1)[0]
        headers = {"authorization": "Bearer account-key-canary"}
        response = await direct.request(method, f"{root}{path}", headers=headers, **more)
    answer: dict[str, Any] = msgspec.json.decode(response.content)
    return answer


def body(endpoint: str, content: object, *, times: int | None = None) -> Rule:
    """A reply replaced by this one."""
    text = content if isinstance(content, str) else msgspec.json.encode(content).decode()
    return Rule(kind="body", endpoint=endpoint, body=text, times=times)


@pytest.mark.parametrize(
    "change",
    [
        {"id": None},
        {"id": "twelve"},
        {"num_gpus": "2"},
        {"gpu_name": None},
        {"gpu_ram": "24 GB"},
        {"dph_base": "cheap", "dph_total": "cheap"},
        {"dph_base": None, "dph_total": None},
        {"dph_base": -1, "dph_total": -1},
        {"dph_base": 0, "dph_total": 0},
        {"geolocation": 7},
        {"reliability2": "high"},
    ],
    ids=lambda change: ",".join(f"{k}={v}" for k, v in change.items()),
)
def test_a_bad_row_of_a_search_is_skipped_and_counted(
    tmp_path: Path, change: dict[str, object]
) -> None:
    """H20, H21: one host's nonsense costs that host's offer and nobody else's."""

    async def tale(story: Story) -> None:
        honest = await market_says(story, "POST", "/v0/bundles/", json=search_body())
        rows = honest["offers"]
        assert len(rows) >= 3
        bad = {**rows[0], **change}
        story.faults.add(body("search", {"offers": [bad, *rows[1:]]}))
        page = await story.app.providers["vastai"].offers(QUERY)

        assert page.skipped_rows == 1
        assert len(page.offers) == len(rows) - 1
        assert str(rows[0]["id"]) not in {o.offer_id for o in page.offers}

    told(tale, tmp_path)


def test_a_price_beyond_every_number_is_no_price(tmp_path: Path) -> None:
    """H21: `1e999` is infinity to some decoders; it must neither be rented nor stop the search."""

    async def tale(story: Story) -> None:
        honest = await market_says(story, "POST", "/v0/bundles/", json=search_body())
        rows = honest["offers"]
        text = msgspec.json.encode({"offers": rows}).decode()
        price = str(rows[0]["dph_base"])
        assert price in text
        story.faults.add(body("search", text.replace(f'"dph_base":{price}', '"dph_base":1e999', 1)))
        page = await story.app.providers["vastai"].offers(QUERY)

        assert page.skipped_rows == 1
        assert all(o.price_usd_per_hour.is_finite() for o in page.offers)

    told(tale, tmp_path)


def test_a_search_of_mostly_bad_rows_is_malformed(tmp_path: Path) -> None:
    """H20: more than half bad means that the contract has changed, not that hosts err."""

    async def tale(story: Story) -> None:
        honest = await market_says(story, "POST", "/v0/bundles/", json=search_body())
        good, *_ = honest["offers"]
        story.faults.add(body("search", {"offers": [good, {"id": 1}, {"id": 2}]}))
        with pytest.raises(Malformed):
            await story.app.providers["vastai"].offers(QUERY)

    told(tale, tmp_path)


def test_an_offer_that_is_listed_twice_is_one_offer(tmp_path: Path) -> None:
    """H22: duplicates would make one machine look like two candidates."""

    async def tale(story: Story) -> None:
        honest = await market_says(story, "POST", "/v0/bundles/", json=search_body())
        rows = honest["offers"]
        story.faults.add(body("search", {"offers": [*rows, rows[0]]}))
        page = await story.app.providers["vastai"].offers(QUERY)

        ids = [o.offer_id for o in page.offers]
        assert len(ids) == len(set(ids)) == len(rows)

    told(tale, tmp_path)


@pytest.mark.parametrize(
    "row",
    [{}, {"id": None}, {"id": "x"}, {"id": True}, 7, None, "row"],
    ids=["empty", "null", "word", "bool", "number", "nothing", "text"],
)
def test_a_row_without_identity_makes_a_listing_incomplete(tmp_path: Path, row: object) -> None:
    """H20: the row that cannot be read may be ours, so nothing is concluded from the rest."""

    async def tale(story: Story) -> None:
        rental = await story.rent()
        page = {"instances": [row], "instances_found": 1, "total_instances": 1, "next_token": None}
        bad = story.faults.add(body("list", page))
        await story.client.settle(seconds=300)
        assert (await story.newest(rental)).state is RentalState.RUNNING
        story.faults.remove(bad)
        await story.client.settle(seconds=60)

        assert await story.still_serves(rental)

    told(tale, tmp_path)


def test_an_unknown_word_for_a_state_is_neither_gone_nor_failed(tmp_path: Path) -> None:
    """H20: markets add states; what we do not know, we wait out."""

    async def tale(story: Story) -> None:
        rental = await story.rent()
        page = await market_says(story, "GET", "/v1/instances/")
        page["instances"][0]["actual_status"] = "defragmenting"
        odd = story.faults.add(body("list", page))
        await story.client.settle(seconds=300)
        now = await story.newest(rental)
        assert (now.state, now.seen) == (RentalState.RUNNING, InstanceState.UNKNOWN)
        story.faults.remove(odd)
        await story.client.settle(seconds=60)

        assert await story.still_serves(rental)

    told(tale, tmp_path)


def test_an_instance_that_is_listed_twice_is_one_instance(tmp_path: Path) -> None:
    """H22: taken for a duplicate, it would be released while it serves."""

    async def tale(story: Story) -> None:
        rental = await story.rent()
        page = await market_says(story, "GET", "/v1/instances/")
        page["instances"] *= 2
        story.faults.add(body("list", page))
        await story.client.settle(seconds=120)

        assert await story.still_serves(rental)
        assert story.sent("DELETE", "/instances/") == []

    told(tale, tmp_path)


def search_body() -> dict[str, object]:
    """What finds the offers of `DEMAND` and some more."""
    return {
        "gpu_name": {"in": ["RTX 3090"]},
        "num_gpus": {"eq": 1},
        "rentable": {"eq": True},
        "rented": {"eq": False},
        "order": [["dph_total", "asc"]],
        "type": "on-demand",
        "limit": 64,
    }
