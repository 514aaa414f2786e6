"""A market in the first seed's form: its rows, its bugs, and the way its calls leave."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from random import Random
from typing import Any

import httpx2
import pytest

from gp4u import BaseProvider, Query, Registry, Requirements
from gp4u.app import App, open_app
from gp4u.errors import (
    BadInput,
    CircuitBreakerOpen,
    Denied,
    Malformed,
    ProviderError,
    Refused,
    Throttled,
    Unavailable,
)
from gp4u.model import Demand, RentalKey, Workload
from gp4u.providers.custom.provider import FETCH_S, MOST_TOLD
from gp4u.providers.plugins import Plugins
from gp4u.selection.decide import decide
from gp4u.selection.gscore import g_score
from tests.unit.providers.scripted import Script
from tests.virtual_loop import VirtualClock, run_virtual

KEY = "my-own-key-4711"
URL = "https://93.184.215.14/api"
"""A public address, so that no name has to be looked up."""
ROW = {"gpu_model": "RTX 4090", "memory_gb": 24, "price": 0.5}
QUERY = Query(requirements=Requirements(disk_gib=33))


class MyCustomProvider(BaseProvider):
    """The first seed's example, word for word but for where its two settings come from."""

    def __init__(self) -> None:
        super().__init__("my_provider")
        self.api_key = KEY
        self.base_url = URL

    async def fetch_gpus(self) -> list[dict[str, Any]]:
        response = await self.client.get(
            f"{self.base_url}/gpus", headers={"Authorization": f"Bearer {self.api_key}"}
        )
        rows: list[dict[str, Any]] = response.json()
        return rows

    def normalize_gpu_data(self, raw_data: dict[str, Any]) -> dict[str, Any]:
        return {
            "provider": "My Provider",
            "model": raw_data["gpu_model"],
            "vram_gb": raw_data["memory_gb"],
            "price_per_hour": raw_data["price"],
            "g_score": self._calculate_g_score(raw_data),
        }


class Shop(BaseProvider):
    """A market whose rows are already in our words, and need no network."""

    def __init__(self, rows: object = (), name: str = "shop") -> None:
        super().__init__(name)
        self.rows = rows

    async def fetch_gpus(self) -> Any:
        if isinstance(self.rows, BaseException):
            raise self.rows
        return self.rows

    def normalize_gpu_data(self, raw_data: Any) -> Any:
        return raw_data


@asynccontextmanager
async def opened(
    market: BaseProvider, folder: Path, script: Script | None = None, **env: str
) -> AsyncIterator[App]:
    """Open an app that has this market beside the built-in ones, which are closed."""
    registry = Registry(Plugins((), {}))
    registry.register(market)
    environ = {"GP4U_DATABASE_URL": f"sqlite:///{folder}/ledger.db", "PROVIDER_MAX_RETRIES": "1"}
    settings = registry.load_settings(environ | env, folder)
    async with open_app(
        settings,
        clock=VirtualClock(),
        random=Random(1),
        transport=script or Script(),
        registry=registry,
    ) as app:
        yield app


async def page_of(*rows: object, folder: Path) -> tuple[list[Any], Shop]:
    """Return the offers that a shop's rows become, and the shop."""
    shop = Shop(list(rows))
    async with opened(shop, folder) as app:
        page = await app.providers["shop"].offers(QUERY)
        assert page.skipped_rows == len(rows) - len(page.offers)
    return list(page.offers), shop


def good(**more: object) -> dict[str, object]:
    """Return a row that is fine, with more in it."""
    return {"model": "RTX 4090", "vram_gb": 24, "price_per_hour": "0.50", **more}


async def test_the_seeds_class_is_a_market_like_any_other(tmp_path: Path) -> None:
    """It is printed in a guide that people have followed, so it has to work as it stands."""
    script = Script([ROW, ROW | {"gpu_model": "H100 SXM", "memory_gb": 80, "price": 2}])
    async with opened(MyCustomProvider(), tmp_path, script) as app:
        snapshot = await app.book.snapshot(Query(requirements=Requirements()))
        decision = decide(snapshot, Demand(), at=app.clock.now())
    assert [str(r.url) for r in script.requests] == [f"{URL}/gpus"]
    assert script.requests[0].headers["authorization"] == f"Bearer {KEY}"
    cheap, dear = sorted(decision.candidates, key=lambda c: c.offer.price_usd_per_hour)
    assert cheap.offer.id == ("my_provider", "row-0")
    assert (cheap.offer.gpu_model, cheap.offer.vram_gib) == ("RTX 4090", 24)
    assert cheap.offer.price_usd_per_hour == Decimal("0.5")
    assert dear.offer.price_usd_per_hour == 2
    assert cheap.g_score is not None, "scored by the formula of all markets"


async def test_the_score_that_a_class_gives_itself_counts_for_nothing(tmp_path: Path) -> None:
    """A market that could set its own score would always be the best."""
    offers, _ = await page_of(good(), good(g_score=100), folder=tmp_path)
    plain, proud = (g_score(offer) for offer in offers)
    assert plain == proud is not None
    assert math.isnan(Shop()._calculate_g_score({}))


async def test_every_field_of_the_table_reaches_the_offer(tmp_path: Path) -> None:
    """What an author writes down must not get lost on the way."""
    full = good(
        id="a1",
        gpu_count=2,
        location="Ontario, CA",
        reliability=0.98,
        download_mbps=900,
        upload_mbps="450.5",
        cpu_cores=16,
        ram_gb=64,
        disk_gb=500,
        open_ports=8,
        interruptible=True,
        available=False,
        verified=False,
        datacenter=True,
        machine_id=77,
        host_id="h",
        colour="blue",
    )
    ((offer,), _) = await page_of(full, folder=tmp_path)
    assert (offer.offer_id, offer.gpu_count, offer.region.code) == ("a1", 2, "CA-ON")
    assert (offer.reliability, offer.download_mbps, offer.upload_mbps) == (0.98, 900, 450.5)
    assert (offer.cpu_cores, offer.ram_gib, offer.disk_gib, offer.open_ports) == (16, 64, 500, 8)
    assert (offer.interruptible, offer.available, offer.verified) == (True, False, False)
    assert (offer.datacenter, offer.machine_id, offer.host_id) == (True, "77", "h")


async def test_a_row_that_says_little_is_taken_as_all_in(tmp_path: Path) -> None:
    """The seed's four fields have to be enough to be shown to somebody who asked for nothing."""
    ((offer,), _) = await page_of(good(), folder=tmp_path)
    assert (offer.disk_gib, offer.gpu_count, offer.verified) == (33, 1, True)
    assert offer.gpu_usd_per_hour == offer.price_usd_per_hour == Decimal("0.50")
    assert (offer.reliability, offer.region, offer.open_ports) == (None, None, None)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"model": None}, "model"),
        ({"model": ""}, "model"),
        ({"model": ["RTX 4090"]}, "model"),
        ({"price_per_hour": None}, "price_per_hour"),
        ({"price_per_hour": 0}, "price_per_hour"),
        ({"price_per_hour": -0.5}, "price_per_hour"),
        ({"price_per_hour": math.nan}, "price_per_hour"),
        ({"price_per_hour": "Infinity"}, "price_per_hour"),
        ({"price_per_hour": "1e-999999"}, "price_per_hour"),
        ({"price_per_hour": "0." + "1" * 99}, "price_per_hour"),
        ({"price_per_hour": True}, "price_per_hour"),
        ({"price_per_hour": {}}, "price_per_hour"),
        ({"price_per_hour": "cheap"}, "price_per_hour"),
        ({"vram_gb": -1}, "vram_gb"),
        ({"model": "Voodoo 2", "vram_gb": None}, "vram_gb"),
        ({"gpu_count": 0}, "gpu_count"),
        ({"gpu_count": 1.5}, "gpu_count"),
        ({"reliability": 98}, "reliability"),
        ({"verified": "yes"}, "verified"),
        ({"location": 3.5}, "location"),
    ],
)
async def test_a_bad_row_is_skipped_counted_and_named(
    change: dict[str, object], field: str, tmp_path: Path
) -> None:
    """One market's mistake must not become a wrong price, nor hide the rows beside it."""
    offers, shop = await page_of(good() | change, good(id="fine"), folder=tmp_path)
    assert [offer.offer_id for offer in offers] == ["fine"]
    assert len(shop.skipped) == 1
    assert shop.skipped[0].startswith(f"row 0: {field}: ")


async def test_an_unknown_name_is_kept_and_reported(tmp_path: Path) -> None:
    """A card that is new today is still a card; it has no score, and somebody should know."""
    strange = good(model="Voodoo 2", vram_gb=12, location="Atlantis")
    ((offer,), shop) = await page_of(strange, folder=tmp_path)
    assert (offer.gpu_model, offer.vram_gib, offer.region) == ("Voodoo 2", 12, None)
    assert "Voodoo 2 is no GPU that we know; Atlantis is no place" in shop.skipped[0]


async def test_two_rows_of_one_name_are_one_offer(tmp_path: Path) -> None:
    """An offer is known by its id; with two of them nobody could say which was meant."""
    offers, shop = await page_of(good(id="a"), good(id="a", price_per_hour=9), folder=tmp_path)
    assert [offer.price_usd_per_hour for offer in offers] == [Decimal("0.50")]
    assert "row 1: id: 'a'" in shop.skipped[0]


async def test_a_row_that_its_own_class_cannot_read_is_skipped(tmp_path: Path) -> None:
    """A missing key of one row is a bug in one row, and its text must not steer a terminal."""
    script = Script([ROW, {"memory_gb": 24, "price": 1}, ROW])
    market = MyCustomProvider()
    async with opened(market, tmp_path, script) as app:
        page = await app.providers["my_provider"].offers(QUERY)
    assert [offer.offer_id for offer in page.offers] == ["row-0", "row-2"]
    assert page.skipped_rows == 1
    assert "normalize_gpu_data failed: KeyError: 'gpu_model'" in market.skipped[0]


async def test_rows_that_are_all_bad_are_an_error_and_not_an_empty_market(tmp_path: Path) -> None:
    """An empty list would look as if there was nothing to rent."""
    shop = Shop([{"price": 1}] * 50)
    async with opened(shop, tmp_path) as app:
        with pytest.raises(Malformed, match="none of 50 rows can be read; row 0: model"):
            await app.providers["shop"].offers(QUERY)
    assert len(shop.skipped) == MOST_TOLD


async def test_trouble_with_rows_is_logged_when_it_begins_and_when_it_ends(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A line for every fetch would bury everything else."""
    shop = Shop([good(), 7])
    caplog.set_level("INFO", logger="gp4u.providers.custom.provider")
    async with opened(shop, tmp_path) as app:
        for rows in ([good(), 7], [good(), 8], [good()], [good()]):
            shop.rows = rows
            await app.providers["shop"].offers(QUERY)
    assert [record.getMessage() for record in caplog.records] == [
        "shop: 1 of 2 rows skipped; row 1: row: '7' is not valid: "
        "must be a mapping of field names to values",
        "shop: every row can be read again",
    ]


@pytest.mark.parametrize("fault", [KeyError("x"), ValueError("bad\x1b[2J"), RecursionError()])
async def test_a_bug_in_a_class_is_that_markets_trouble_alone(
    fault: Exception, tmp_path: Path
) -> None:
    """The book asks everybody at once; an error of another kind would take all markets down."""
    shop = Shop(fault)
    async with opened(shop, tmp_path) as app:
        snapshot = await app.book.snapshot(QUERY)
    (note,) = snapshot.sources
    assert f"fetch_gpus failed: {type(fault).__name__}" in note.error
    assert "\x1b" not in note.error


@pytest.mark.parametrize("brought", [None, 7, {"gpus": []}])
async def test_what_is_no_list_of_rows_is_an_error(brought: object, tmp_path: Path) -> None:
    """A reply with an envelope is easily taken for its contents."""
    async with opened(Shop(brought), tmp_path) as app:
        with pytest.raises(Malformed, match="not a list of rows"):
            await app.providers["shop"].offers(QUERY)


async def test_a_key_that_stands_in_a_classs_own_error_is_blotted_out(tmp_path: Path) -> None:
    """Exceptions quote what they were given, and end in logs."""
    shop = Shop(RuntimeError(f"cannot log in with {KEY}"))
    async with opened(shop, tmp_path, SHOP_API_KEY=KEY) as app:
        with pytest.raises(Malformed) as caught:
            await app.providers["shop"].offers(QUERY)
    assert KEY not in str(caught.value)


def test_a_fetch_that_never_ends_is_cut_off(tmp_path: Path) -> None:
    """Its calls have deadlines; what stands between them may wait for ever."""

    class Sleeper(Shop):
        async def fetch_gpus(self) -> Any:
            await asyncio.Event().wait()

    async def life() -> None:
        async with opened(Sleeper(), tmp_path) as app:
            began = asyncio.get_running_loop().time()
            with pytest.raises(Unavailable, match="fetch_gpus took over"):
                await app.providers["shop"].offers(QUERY)
            assert asyncio.get_running_loop().time() - began == pytest.approx(FETCH_S, abs=1)

    run_virtual(life)


async def test_a_class_that_asks_in_another_way_can_be_found_ill_as_well(tmp_path: Path) -> None:
    """Health is read from outcomes; without any, a market that always fails would look well."""
    shop = Shop(OSError("their own client broke"))
    async with opened(shop, tmp_path, PROVIDER_CIRCUIT_BREAKER_THRESHOLD="3") as app:
        market = app.providers["shop"]
        for _ in range(3):
            with pytest.raises(Malformed, match="their own client broke"):
                await market.offers(QUERY)
        assert market.get_metrics().get_success_rate() == 0.0
        assert not market.get_metrics().is_healthy
        with pytest.raises(CircuitBreakerOpen):
            await market.offers(QUERY)


async def test_a_fetch_by_its_own_client_is_not_counted_twice(tmp_path: Path) -> None:
    """Each call is counted as it is made; the fetch around it is not another one."""
    script = Script([ROW], [ROW])
    async with opened(MyCustomProvider(), tmp_path, script) as app:
        await app.providers["my_provider"].offers(QUERY)
        assert app.guards["my_provider"].health().calls == 1
        await app.providers["my_provider"].ping()
        assert app.guards["my_provider"].health().calls == 2


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (301, Malformed),
        (401, Denied),
        (403, Denied),
        (404, Refused),
        (408, Unavailable),
        (422, Refused),
        (429, Throttled),
        (500, Unavailable),
        (503, Unavailable),
    ],
)
async def test_a_reply_that_is_no_success_is_one_of_our_errors_with_its_status(
    status: int, kind: type[ProviderError], tmp_path: Path
) -> None:
    """Retries, breaker and exit codes go by the kind; people go by the status."""
    script = Script(httpx2.Response(status, text=f"no, {KEY}"))
    async with opened(MyCustomProvider(), tmp_path, script) as app:
        with pytest.raises(kind) as caught:
            await app.providers["my_provider"].offers(QUERY)
    assert type(caught.value) is kind
    assert isinstance(caught.value, ProviderError)
    assert caught.value.status == status
    assert KEY not in str(caught.value)


async def test_calls_are_repeated_as_the_settings_say(tmp_path: Path) -> None:
    """The same backoff as for every market."""

    async def life() -> None:
        script = Script(httpx2.Response(503), [ROW])
        async with opened(MyCustomProvider(), tmp_path, script, PROVIDER_MAX_RETRIES="2") as app:
            assert len((await app.providers["my_provider"].offers(QUERY)).offers) == 1

    await asyncio.to_thread(run_virtual, life)


@pytest.mark.parametrize(
    "url",
    [
        "http://93.184.215.14/next",
        "https://10.0.0.1/next",
        "https://127.0.0.1/next",
        "https://169.254.169.254/latest/meta-data",
        "https://[::1]/next",
        "https://user:secret@93.184.215.14/next",
        "file:///etc/passwd",
        "https://",
    ],
)
async def test_an_address_from_a_reply_cannot_reach_our_own_network(
    url: str, tmp_path: Path
) -> None:
    """The next page's address is written by the market, and we stand where it cannot."""

    class Paged(MyCustomProvider):
        async def fetch_gpus(self) -> Any:
            return (await self.client.get(url)).json()

    script = Script([ROW])
    async with opened(Paged(), tmp_path, script) as app:
        with pytest.raises(Malformed, match="must be plain https to a public address"):
            await app.providers["my_provider"].offers(QUERY)
    assert not script.requests


async def test_another_public_address_is_called_at_the_address_that_was_checked(
    tmp_path: Path,
) -> None:
    """Pages may lie elsewhere; a name could point elsewhere once more by the time it is called."""

    class Paged(MyCustomProvider):
        async def fetch_gpus(self) -> Any:
            reply = await self.client.post(
                "https://93.184.215.15/p", json={"a": 1}, params={"n": 2}
            )
            assert (reply.status_code, reply.raise_for_status()) == (200, reply)
            assert reply.headers["content-type"] == "application/json"
            assert reply.text.startswith("[")
            return reply.json()

    script = Script([ROW])
    async with opened(Paged(), tmp_path, script) as app:
        assert len((await app.providers["my_provider"].offers(QUERY)).offers) == 1
    assert script.bodies == [{"a": 1}]
    assert script.params == [{"n": "2"}]


async def test_a_reply_that_repeats_the_key_is_blotted_before_anybody_reads_it(
    tmp_path: Path,
) -> None:
    """Echoing what was sent is common, and what is read ends in logs; other headers are no keys."""

    class Echoed(MyCustomProvider):
        async def fetch_gpus(self) -> Any:
            reply = await self.client.get(
                f"{self.base_url}/me", headers={"X-Api-Key": KEY, "X-Region": "us-central-1"}
            )
            assert reply.json() == {"you": "[redacted]", "from": "us-central-1"}
            return []

    script = Script({"you": KEY, "from": "us-central-1"})
    async with opened(Echoed(), tmp_path, script) as app:
        assert (await app.providers["my_provider"].offers(QUERY)).offers == ()


@pytest.mark.parametrize("body", [b"<html>", b"[" * 100_000, b"\xff\xfe"])
async def test_a_body_that_is_not_json_is_an_error_of_this_market(
    body: bytes, tmp_path: Path
) -> None:
    """A captive portal answers 200 as well."""
    async with opened(
        MyCustomProvider(), tmp_path, Script(httpx2.Response(200, content=body))
    ) as app:
        with pytest.raises(Malformed, match="the reply is not JSON"):
            await app.providers["my_provider"].offers(QUERY)


async def test_variables_go_before_what_a_class_sets_itself(tmp_path: Path) -> None:
    """Whoever runs the program decides where it calls, with which key, and whether at all."""
    script = Script([ROW])
    env = {"MY_PROVIDER_BASE_URL": "https://93.184.215.99/v2/", "MY_PROVIDER_API_KEY": "other-key"}
    async with opened(MyCustomProvider(), tmp_path, script, **env) as app:
        await app.providers["my_provider"].offers(QUERY)
    assert str(script.requests[0].url) == "https://93.184.215.99/v2/gpus"
    assert script.requests[0].headers["authorization"] == "Bearer other-key"
    async with opened(MyCustomProvider(), tmp_path, MY_PROVIDER_ENABLED="false") as app:
        assert app.disabled["my_provider"] == "switched off by MY_PROVIDER_ENABLED"


async def test_it_is_quoted_and_never_rented_from(tmp_path: Path) -> None:
    """Its class does not say how; whatever tries must hear so before money is spent."""
    async with opened(Shop([good()]), tmp_path, GP4U_ALLOW_UNLABELLED="1") as app:
        shop = app.providers["shop"]
        (offer,) = (await shop.offers(QUERY)).offers
        key = RentalKey("gp4u-a-b-c")
        with pytest.raises(BadInput, match="quoted only"):
            shop.rent_calls(offer, Workload(image="x"), key)
        for attempt in (
            shop.rent(offer, Workload(image="x"), key),
            shop.release("1"),
            shop.logs("1"),
        ):
            with pytest.raises(Refused):
                await attempt
        assert not (await shop.instances()).complete
        with pytest.raises(BadInput, match="quoted only"):
            await app.broker.rent("cli:x", Demand(), Workload(image="x"))
        assert await app.ledger.open_rentals() == []


@pytest.mark.parametrize("name", ["", "My Provider", "9lives", "a" * 32, "x/y", "Ümlaut", "a\n"])
def test_a_name_that_cannot_be_a_slug_is_refused(name: str) -> None:
    """It becomes part of variables, labels and tables."""
    with pytest.raises(BadInput, match="lower-case"):
        BaseProvider(name)


async def test_a_class_without_its_two_methods_says_which_is_missing(tmp_path: Path) -> None:
    """Somebody writes one of them first, and tries."""
    async with opened(BaseProvider("bare"), tmp_path) as app:
        with pytest.raises(Malformed, match="BaseProvider does not say how to fetch_gpus"):
            await app.providers["bare"].offers(QUERY)


async def test_a_closed_market_says_so(tmp_path: Path) -> None:
    """Without an app there are no connections, and no guard."""
    market = MyCustomProvider()
    async with opened(market, tmp_path) as app:
        assert app.providers["my_provider"] is market
    with pytest.raises(BadInput, match="is not open"):
        await market.offers(QUERY)
    with pytest.raises(BadInput, match="is not open"):
        await market.client.get(URL)
    with pytest.raises(BadInput, match="is not open"):
        Shop().get_metrics()
