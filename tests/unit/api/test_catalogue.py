"""What a listing has, in which order, and what stays true while the market moves."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from random import Random
from typing import Any

import msgspec
import pytest

from gp4u import places
from gp4u.api.market.catalogue import READY_PAGES
from gp4u.api.market.listing import NUMBERS
from gp4u.api.market.walks import MOST_BYTES, Walks
from gp4u.book import STANDING
from gp4u.desk.shapes import offer_shape
from gp4u.model import STRETCH, Offer
from gp4u.selection.gscore import g_score
from tests.unit.api.shop import Shop, front_of, many
from tests.virtual_loop import EPOCH, run_virtual

replace = msgspec.structs.replace
A, B = many("a", 300, seed=1), many("b", 200, seed=2)


def value(offer: Offer, name: str) -> float | str | None:
    """Return what an offer is sorted by."""
    if name == "g_score":
        score = g_score(offer)
        return score.score if score else None
    found: Any = getattr(offer, name)
    return float(found) if name == "price_usd_per_hour" else found


def in_order(offers: list[Offer], sort: str) -> list[str]:
    """Return ids as a listing must have them: unknown last, ties by market and offer id."""
    name, sign = sort.removeprefix("-"), -1 if sort.startswith("-") else 1
    by_id = sorted(offers, key=lambda o: o.id)
    known = [o for o in by_id if value(o, name) is not None]
    unknown = [o for o in by_id if value(o, name) is None]
    known.sort(key=lambda o: value(o, name), reverse=sign < 0)  # type: ignore[arg-type,return-value]  # of one kind each
    return [f"{o.provider}/{o.offer_id}" for o in (*known, *unknown)]


def available(offers: list[Offer]) -> list[Offer]:
    """Return those that a listing shows where nothing is said of it."""
    return [offer for offer in offers if offer.available]


@pytest.mark.parametrize("sign", ["", "-"])
@pytest.mark.parametrize("name", [*NUMBERS, "gpu_model", "provider"])
def test_every_order_is_that_of_a_plain_sort(name: str, sign: str) -> None:
    """Reversed, ties stay by id, and what is unknown stays last."""

    async def scenario() -> None:
        async with front_of(Shop("a", A), Shop("b", B)) as front:
            expected = in_order(available([*A, *B]), sign + name)
            assert await front.ids(f"?limit=1000&sort={sign}{name}") == expected

    # Reversing a stable sort reverses its ties as well, so the reference sorts ids within values.
    run_virtual(scenario)


Holds = Callable[[Offer], bool]

FILTERS: list[tuple[str, Holds]] = [
    ("provider=b", lambda o: o.provider == "b"),
    ("provider=b&provider=a", lambda _: True),
    ("gpu=4090&gpu=3060", lambda o: o.gpu_model in ("RTX 4090", "RTX 3060")),
    ("gpus=2", lambda o: o.gpu_count == 2),
    ("min_gpu_count=2", lambda o: o.gpu_count >= 2),
    ("min_vram_gib=24&max_vram_gib=24", lambda o: o.vram_gib == 24),
    ("max_price_usd_per_hour=0.3", lambda o: o.price_usd_per_hour <= Decimal("0.3")),
    ("min_price_usd_per_hour=0.3", lambda o: o.price_usd_per_hour >= Decimal("0.3")),
    ("min_reliability=0.5", lambda o: (o.reliability or 0) >= 0.5),
    ("max_reliability=0.5", lambda o: o.reliability is not None and o.reliability <= 0.5),
    ("min_download_mbps=0", lambda o: o.download_mbps is not None),
    ("min_upload_mbps=1000", lambda o: (o.upload_mbps or 0) >= 1000),
    (
        "min_cpu_cores=8&min_ram_gib=64",
        lambda o: (o.cpu_cores or 0) >= 8 and (o.ram_gib or 0) >= 64,
    ),
    ("min_disk_gib=1000", lambda o: (o.disk_gib or 0) >= 1000),
    ("min_open_ports=1", lambda o: (o.open_ports or 0) >= 1),
    ("min_g_score=30", lambda o: (s := g_score(o)) is not None and s.score >= 30),
    ("location=US-CA", lambda o: places.within(o.region, "US-CA")),
    ("location=EU&location=US-CA", lambda o: o.region is not None and o.region.code != "US"),
    ("verified=true", lambda o: o.verified is True),
    ("verified=false", lambda o: o.verified is False),
    ("datacenter=true&interruptible=false", lambda o: bool(o.datacenter) and not o.interruptible),
    ("interruptible=true", lambda o: o.interruptible),
    ("max_price_usd_per_hour=0", lambda _: False),
]


@pytest.mark.parametrize(("query", "holds"), FILTERS, ids=[query for query, _ in FILTERS])
def test_every_filter_lets_through_what_it_says(query: str, holds: Holds) -> None:
    """An unknown value passes no bound, and no flag either way."""

    async def scenario() -> None:
        async with front_of(Shop("a", A), Shop("b", B)) as front:
            expected = [o for o in available([*A, *B]) if holds(o)]
            body = (await front.get(f"?limit=1000&{query}")).json()
            assert body["total"] == len(expected)
            shown = [item["id"] for item in body["items"]]
            assert shown == in_order(expected, "price_usd_per_hour")

    run_virtual(scenario)


@pytest.mark.parametrize(("word", "shown"), [("true", [True]), ("false", [False]), ("any", None)])
def test_what_is_not_available_is_shown_where_it_is_asked_for(
    word: str, shown: list[bool] | None
) -> None:
    """By itself, or beside the rest."""

    async def scenario() -> None:
        async with front_of(Shop("a", A)) as front:
            ids = await front.ids(f"?limit=1000&available={word}")
            kinds = shown or [True, False]
            assert sorted(ids) == sorted(f"a/{o.offer_id}" for o in A if o.available in kinds)

    run_virtual(scenario)


def test_an_age_is_that_of_the_moment_of_asking() -> None:
    """Not of the last refresh; so a page of it is only true now, and is not kept."""

    async def scenario() -> None:
        fresh = [replace(o, fetched_at=EPOCH + timedelta(seconds=30)) for o in A]
        async with front_of(Shop("a", fresh), Shop("b", B)) as front:
            totals = []
            for _ in range(3):
                reply = await front.get("?max_age_s=60")
                assert "etag" not in reply.headers
                totals.append(reply.json()["total"])
                await asyncio.sleep(61)
            assert totals == [len(available([*A, *B])), len(available(A)), 0]

    run_virtual(scenario)


def test_a_listing_is_the_offers_as_they_are_shown_everywhere() -> None:
    """The same shape as `gp4u offers -o json`, and of each only the keys that were asked for."""

    async def scenario() -> None:
        async with front_of(Shop("a", A[:1])) as front:
            shape = msgspec.to_builtins(offer_shape(replace(A[0], available=True)))
            body = (await front.get("?available=any")).json()
            assert body["items"] == [shape | {"available": A[0].available}]
            picked = (await front.get("?available=any&fields=price_usd_per_hour,id")).json()
            keys = ("price_usd_per_hour", "id")
            assert picked["items"] == [{key: shape[key] for key in keys}]
            (source,) = body["sources"]
            assert (source["provider"], source["offers"], source["error"]) == ("a", 1, "")
            assert body["taken_at"] == "2026-01-01T00:00:00Z"

    run_virtual(scenario)


async def walked(front: Any, query: str, between: Callable[[], Any]) -> list[str]:
    """Return the ids of all pages; something happens between any two of them."""
    found: list[str] = []
    after: str | None = ""
    while after is not None:
        body = (await front.get(f"?{query}" + (f"&cursor={after}" if after else ""))).json()
        found += [item["id"] for item in body["items"]]
        after = body["next_cursor"]
        await between()
    return found


@pytest.mark.parametrize("sort", ["price_usd_per_hour", "-g_score", "gpu_model", "-reliability"])
def test_a_walk_through_a_still_market_is_the_order(sort: str) -> None:
    """However long its pages are; the last one says that it is."""

    async def scenario() -> None:
        async with front_of(Shop("a", A), Shop("b", B)) as front:
            for limit in (1, 7, 100, 1000):
                query = f"limit={limit}&sort={sort}&min_reliability=0.3"
                fitting = [o for o in available([*A, *B]) if (o.reliability or 0) >= 0.3]
                found = await walked(front, query, between=lambda: asyncio.sleep(0))
                assert found == in_order(fitting, sort)

    run_virtual(scenario)


@pytest.mark.parametrize("seed", range(6))
def test_a_walk_shows_nothing_twice_and_loses_nothing_that_stays(seed: int) -> None:
    """Prices jump over the cursor in both directions while others come and go."""

    async def scenario() -> None:
        random = Random(seed)
        offers = [replace(o, available=True) for o in many("a", 400, seed)]
        shop, fresh, always = Shop("a", offers), iter(range(1000, 2000)), set(offers)
        stays = {offer.offer_id for offer in offers}

        async def move() -> None:
            kept = [offer for offer in shop.stock if random.random() > 0.02]
            stays.intersection_update(offer.offer_id for offer in kept)
            moved = [
                replace(each, price_usd_per_hour=Decimal(random.randrange(1, 60)) / 100)
                if random.random() < 0.3
                else each
                for each in kept
            ]
            new = [replace(random.choice(offers), offer_id=str(next(fresh))) for _ in range(5)]
            shop.stock = (*moved, *new)
            await front.refreshed()

        async with front_of(shop) as front:
            found = await walked(front, "limit=25", between=move)
        assert len(found) == len(set(found))
        assert {f"a/{name}" for name in stays} <= set(found)
        assert len(stays) < len(always)

    run_virtual(scenario)


def test_a_page_can_be_asked_for_again() -> None:
    """A client whose connection broke takes the same cursor, and loses nothing by it."""

    async def scenario() -> None:
        async with front_of(Shop("a", A)) as front:
            first = (await front.get("?limit=10")).json()
            query = f"?limit=10&cursor={first['next_cursor']}"
            once, again = await front.ids(query), await front.ids(query)
            await front.refreshed()
            assert once == again == await front.ids(query)

    run_virtual(scenario)


def test_a_walk_that_was_forgotten_goes_on_by_its_place() -> None:
    """After a restart with the same secret, and when too many walk at once."""

    async def scenario() -> None:
        async with front_of(Shop("a", A)) as front, front_of(Shop("a", A)) as restarted:
            first = (await front.get("?limit=100")).json()
            rest = await restarted.ids(f"?limit=1000&cursor={first['next_cursor']}")
            shown = [item["id"] for item in first["items"]]
            assert shown + rest == in_order(available(A), "price_usd_per_hour")

    run_virtual(scenario)


def test_walks_are_remembered_within_bounds() -> None:
    """Cursors come from outside, and no memory may grow without end."""
    import numpy as np

    walks, page = Walks(), np.arange(1000, dtype=np.int64)
    names = [walks.add("", page) for _ in range(3 * MOST_BYTES // page.nbytes)]
    assert walks.shown(names[0]) is None
    assert walks.shown(names[-1]) is not None
    assert walks._size <= MOST_BYTES
    longest = ""
    for number in range(20):
        longest = walks.add(longest, page + 1000 * number)
    shown = walks.shown(longest)
    assert shown is not None
    assert shown.tolist() == list(range(20_000))


def test_lines_are_every_match_in_order() -> None:
    """More than a page, from several stretches, with the filters and fields of a page."""

    async def scenario() -> None:
        plenty = many("a", STRETCH + 50, seed=3)
        async with front_of(Shop("a", plenty), Shop("b", B)) as front:
            reply = await front.get("?fields=id&sort=-g_score", accept="application/x-ndjson")
            assert reply.headers["content-type"] == "application/x-ndjson"
            lines = [msgspec.json.decode(line)["id"] for line in reply.content.splitlines()]
            assert lines == in_order(available([*plenty, *B]), "-g_score")
            few = await front.get("?fields=id&limit=3", accept="application/x-ndjson")
            assert len(few.content.splitlines()) == 3

    run_virtual(scenario)


def test_an_offer_is_found_by_the_id_that_a_listing_shows() -> None:
    """Also where it has slashes, blanks or worse in it, and where it is not available."""

    async def scenario() -> None:
        names = ["plain", "own/er/h100-80Gi-sxm5*2", "a b", "x\u202ey", "é" * 150, "%2F", "?&#"]
        odd = [replace(A[0], offer_id=name, available=False) for name in names]
        async with front_of(Shop("a", [*A, *odd])) as front:
            ids = await front.ids("?available=false&limit=1000")
            assert len(ids) == sum(not o.available for o in A) + len(names)
            for name in ids:
                found = await front.catalogue.find(name)
                assert found.id == name

    run_virtual(scenario)


def test_a_page_is_made_once_and_again_after_a_refresh() -> None:
    """The same bytes, until there is something new to tell."""

    async def scenario() -> None:
        shop = Shop("a", A)
        async with front_of(shop) as front:
            first = await front.get("?limit=5")
            page = front.catalogue.ready(b"limit=5", "identity")
            assert page is not None
            assert page is front.catalogue.ready(b"limit=5", "identity")
            shop.stock = tuple(B[:3])
            await front.refreshed()
            assert front.catalogue.ready(b"limit=5", "identity") is None
            second = await front.get("?limit=5")
            assert second.headers["etag"] != first.headers["etag"]
            assert second.json()["total"] == len(available(B[:3]))

    run_virtual(scenario)


def test_only_so_many_pages_are_kept() -> None:
    """Query strings come from outside as well."""

    async def scenario() -> None:
        async with front_of(Shop("a", A[:5])) as front:
            for number in range(READY_PAGES + 20):
                await front.get(f"?max_price_usd_per_hour={number}")
            assert len(front.catalogue._pages) == READY_PAGES
            assert front.catalogue.ready(b"max_price_usd_per_hour=0", "identity") is None

    run_virtual(scenario)


def test_nothing_holds_on_to_offers_between_two_requests() -> None:
    """The book lets go of a market in turns; whoever held it as well would free it at one go."""

    async def scenario() -> None:
        shop = Shop("a", A)
        async with front_of(shop) as front:
            for query in ("?limit=3", "?limit=3&sort=-g_score", "?limit=3&available=any"):
                await front.get(query)
            await front.catalogue.find("a/1")
            old = [weakref.ref(each) for each in front.book.current(STANDING).stretches]
            await front.refreshed()
            gc.collect()
            assert old
            assert not any(each() for each in old)

    run_virtual(scenario)


def test_models_are_told_with_their_prices_and_filtered() -> None:
    """Per GPU: an offer of eight counts as one offer and eight GPUs."""

    async def scenario() -> None:
        eight = replace(A[0], gpu_model="H100 SXM", gpu_count=8, available=True)
        eight = replace(eight, interruptible=False, price_usd_per_hour=Decimal(16))
        one = replace(eight, offer_id="one", gpu_count=1, price_usd_per_hour=Decimal(3))
        other = replace(one, provider="b", gpu_model="RTX 4090")
        async with front_of(Shop("a", [eight, one]), Shop("b", [other])) as front:

            async def rows(query: str) -> list[dict[str, Any]]:
                reply = await front.http.get("/api/v1/gpu-models" + query)
                found: list[dict[str, Any]] = reply.json()["items"]
                return found

            first, second = await rows("")
            assert (first["gpu_model"], first["count"], first["gpus"]) == ("H100 SXM", 2, 9)
            assert (first["min"], first["median"], first["p90"]) == (
                "2.000000",
                "2.000000",
                "3.000000",
            )
            assert second["provider"] == "b"
            assert await rows("?provider=b") == [second]
            assert await rows("?gpu=h100") == [first]

    run_virtual(scenario)
