"""The market's paths over HTTP: forms, codings, validators, refusals, and lines that end early."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import MutableMapping
from typing import Any

import msgspec
import pytest
import zstandard
from fastapi import FastAPI

from gp4u.api import failing
from gp4u.api.market import gpus
from gp4u.api.market.catalogue import Catalogue
from gp4u.api.market.gpus import MAX_STREAMS, STALL_S, gpu_routes, media_for
from gp4u.book import STANDING
from gp4u.errors import Unavailable
from tests.unit.api.shop import PATH, SECRET, Shop, front_of, many
from tests.unit.fair import book_of
from tests.virtual_loop import run_virtual

A = many("a", 120, seed=1)
LINES = "application/x-ndjson"


@pytest.mark.parametrize(
    ("accept", "media"),
    [
        ("", "application/json"),
        ("*/*", "application/json"),
        ("application/*", "application/json"),
        ("application/json", "application/json"),
        ("application/json; charset=utf-8", "application/json"),
        ("application/x-ndjson", LINES),
        ("application/x-ndjson, application/json;q=0.9", LINES),
        ("application/x-ndjson;q=0.1, application/json", "application/json"),
        ("application/json;q=0, */*", LINES),
        ("text/html,application/xhtml+xml,*/*;q=0.8", "application/json"),
        ("text/html", None),
        ("*/*;q=0", None),
    ],
)
def test_the_form_is_what_the_client_likes_best(accept: str, media: str | None) -> None:
    """A browser and curl get JSON, and lines only who asks for them."""
    assert media_for(accept) == media


def test_a_form_that_there_is_not_is_refused() -> None:
    """406, on every path that has forms."""

    async def scenario() -> None:
        async with front_of(Shop("a", A)) as front:
            for path in (PATH, "/api/v1/gpu-models"):
                reply = await front.http.get(path, headers={"accept": "text/csv"})
                assert (reply.status_code, reply.json()["code"]) == (406, "not_acceptable")
            reply = await front.http.get("/api/v1/gpu-models", headers={"accept": LINES})
            assert reply.status_code == 406

    run_virtual(scenario)


@pytest.mark.parametrize("path", [PATH + "?limit=50", "/api/v1/gpu-models"])
def test_each_coding_is_the_same_answer_under_a_tag_of_its_own(path: str) -> None:
    """A cache must not hand packed bytes to somebody who cannot read them."""

    async def scenario() -> None:
        async with front_of(Shop("a", A)) as front:
            bodies, tags = set(), set()
            for _ in range(2):  # the second time they are ready
                for coding in ("identity", "gzip", "zstd"):
                    request = front.http.build_request(
                        "GET", path, headers={"accept-encoding": coding}
                    )
                    reply = await front.http.send(request, stream=True)
                    raw = b"".join([each async for each in reply.aiter_raw()])
                    assert reply.headers.get("content-encoding", "identity") == coding
                    assert int(reply.headers["content-length"]) == len(raw)
                    assert reply.headers["vary"] == "Accept, Accept-Encoding"
                    assert reply.headers["cache-control"] == "no-cache"
                    tags.add(reply.headers["etag"])
                    if coding == "gzip":
                        raw = gzip.decompress(raw)
                    elif coding == "zstd":
                        raw = zstandard.ZstdDecompressor().decompressobj().decompress(raw)
                    bodies.add(raw)
            assert len(bodies) == 1
            assert len(tags) == 3

    run_virtual(scenario)


def test_who_has_the_page_is_told_so_until_it_changes() -> None:
    """`If-None-Match` with one tag, several, weak ones or a star; not with another coding's."""

    async def scenario() -> None:
        shop = Shop("a", A)
        async with front_of(shop) as front:
            tag = (await front.get()).headers["etag"]
            for known in (tag, f'"x", {tag}', f"W/{tag}", "*"):
                reply = await front.get(if_none_match=known)
                assert (reply.status_code, reply.content) == (304, b"")
                assert reply.headers["etag"] == tag
            for known in ('"x"', tag.replace("identity", "gzip"), ""):
                assert (await front.get(if_none_match=known)).status_code == 200
            shop.stock = ()
            await front.refreshed()
            assert (await front.get(if_none_match=tag)).status_code == 200

    run_virtual(scenario)


@pytest.mark.parametrize("path", ["/api/v1/gpus", "/api/v1/gpus/a/1", "/api/v1/gpu-models"])
def test_head_is_get_without_a_body(path: str) -> None:
    """What a monitor asks, before and after the page is ready."""

    async def scenario() -> None:
        async with front_of(Shop("a", A)) as front:
            for _ in range(2):
                head, get = await front.http.head(path), await front.http.get(path)
                assert head.status_code == get.status_code == 200
                names = ("content-length", "content-type", "etag")
                for name in names:
                    assert head.headers.get(name) == get.headers.get(name)
            lines = await front.http.head(PATH, headers={"accept": LINES})
            assert (lines.headers["content-type"], lines.content) == (LINES, b"")

    run_virtual(scenario)


@pytest.mark.parametrize(
    ("path", "status", "code", "field"),
    [
        (PATH + "?limt=5", 422, "bad_input", "limt"),
        (PATH + "?limit=0", 422, "bad_input", "limit"),
        (PATH + "?sort=size", 422, "bad_input", "sort"),
        (PATH + "?fields=id,key", 422, "bad_input", "fields"),
        (PATH + "?cursor=forged", 422, "bad_input", "cursor"),
        (PATH + "?gpu=RTX4099", 422, "unknown_gpu", "gpu"),
        (PATH + "?provider=nowhere", 404, "not_found", "provider"),
        (PATH + "/nowhere/1", 404, "not_found", "provider"),
        (PATH + "/a/none", 404, "not_found", "id"),
        (PATH + "/a", 404, "not_found", "id"),
        (PATH + "/", 404, "not_found", "provider"),
        (PATH + "/a/1?fields=id", 422, "bad_input", "fields"),
        ("/api/v1/gpu-models?provider=nowhere", 404, "not_found", "provider"),
        ("/api/v1/gpu-models?limit=3", 422, "bad_input", "limit"),
    ],
)
def test_what_cannot_be_answered_is_a_problem_that_names_it(
    path: str, status: int, code: str, field: str
) -> None:
    """Status, stable code, and the parameter that it is about."""

    async def scenario() -> None:
        async with front_of(Shop("a", A), others=("closed",)) as front:
            reply = await front.http.get(path)
            problem = reply.json()
            assert (reply.status_code, problem["code"], problem["field"]) == (status, code, field)
            if field == "provider":
                assert problem["known"] == ["a", "closed"]

    run_virtual(scenario)


def test_an_offer_is_shown_under_its_id() -> None:
    """With its slashes as they are, or as a careful client writes them."""

    async def scenario() -> None:
        odd = msgspec.structs.replace(A[0], offer_id="own er/h100*2")
        async with front_of(Shop("a", [odd])) as front:
            for path in ("a/own er/h100*2", "a%2Fown%20er%2Fh100%2A2"):
                reply = await front.http.get(f"{PATH}/{path}")
                assert reply.json()["id"] == "a/own er/h100*2"

    run_virtual(scenario)


def test_a_market_that_fails_is_told_beside_what_it_had() -> None:
    """And one that has not answered yet is told as well; nobody waits for it."""

    async def scenario() -> None:
        shop, late = Shop("a", A), Shop("b")
        late.takes_s = 3600.0
        book = book_of(shop, late)
        async with asyncio.TaskGroup() as group:
            keeper = group.create_task(book.keep(STANDING))
            await asyncio.sleep(1)
            catalogue = Catalogue(book=book, clock=book._clock, providers=["a", "b"], secret=SECRET)
            page = await catalogue.page(b"limit=1", "identity")
            sources = msgspec.json.decode(page.bodies["identity"])["sources"]
            assert [each["error"] for each in sources] == ["", "no answer yet"]
            shop.error = Unavailable("a", "offers", "down")
            book.invalidate("a")
            await asyncio.sleep(10)
            page = await catalogue.page(b"limit=1", "identity")
            body = msgspec.json.decode(page.bodies["identity"])
            assert (body["sources"][0]["error"], len(body["items"])) == ("a offers: down", 1)
            keeper.cancel()

    run_virtual(scenario)


class Slow:
    """A client of an ASGI app that takes some bytes, and then no more."""

    def __init__(self, app: FastAPI, taken: int) -> None:
        self._app, self._taken = app, taken
        self.sent: list[MutableMapping[str, Any]] = []

    async def ask(self) -> None:
        """Ask for lines."""
        scope = {
            "type": "http",
            "method": "GET",
            "path": PATH,
            "raw_path": PATH.encode(),
            "query_string": b"",
            "headers": [(b"accept", LINES.encode())],
            "asgi": {"spec_version": "2.3", "version": "3.0"},
        }
        await self._app(scope, asyncio.Event().wait, self._send)  # type: ignore[arg-type]  # says nothing more

    async def _send(self, message: MutableMapping[str, Any]) -> None:
        if len(self.sent) == self._taken:
            await asyncio.sleep(10_000)
        self.sent.append(message)


def app_over(catalogue: Catalogue) -> FastAPI:
    """Return an app with the market's routes."""
    app = FastAPI()
    failing.install(app)
    app.include_router(gpu_routes(catalogue=catalogue))
    return app


def test_a_client_that_takes_nothing_is_cut_off_and_not_told_that_it_was_all() -> None:
    """Its stream has no last chunk, and the offers that it held are let go."""

    async def scenario() -> None:
        async with front_of(Shop("a", A)) as front:
            slow = Slow(app_over(front.catalogue), taken=2)
            began = asyncio.get_running_loop().time()
            with pytest.raises(BaseException) as info:  # noqa: PT011 - in groups, as the framework has it
                await slow.ask()
            assert asyncio.get_running_loop().time() - began == pytest.approx(STALL_S)
            assert isinstance(info.value, (TimeoutError, ExceptionGroup))
            assert slow.sent[-1].get("more_body") is True

    run_virtual(scenario)


def test_only_so_many_read_lines_at_once() -> None:
    """Each holds on to the market that it began with; the next one is told to come again."""

    async def scenario() -> None:
        async with front_of(Shop("a", A)) as front:
            app = app_over(front.catalogue)
            async with asyncio.TaskGroup() as group:
                reading = [group.create_task(Slow(app, taken=1).ask()) for _ in range(MAX_STREAMS)]
                await asyncio.sleep(1)
                late = Slow(app, taken=99)
                await late.ask()
                head = late.sent[0]
                assert head["status"] == 503
                assert (b"retry-after", b"5") in head["headers"]
                for task in reading:
                    task.cancel()
            again = Slow(app, taken=99)
            await again.ask()
            assert again.sent[0]["status"] == 200
            assert again.sent[-1].get("more_body") is False

    run_virtual(scenario)


def test_the_document_has_every_parameter_and_shape() -> None:
    """What is read by hand is documented by hand, from the same table."""
    book = book_of(Shop("a"))
    catalogue = Catalogue(book=book, clock=book._clock, providers=["a"], secret=SECRET)
    paths = app_over(catalogue).openapi()["paths"]
    listing, models = paths[PATH]["get"], paths["/api/v1/gpu-models"]["get"]
    assert {"limit", "cursor", "fields", "sort", "max_price_usd_per_hour"} <= {
        each["name"] for each in listing["parameters"]
    }
    assert [each["name"] for each in models["parameters"]] == ["provider", "gpu"]
    assert set(listing["responses"]) >= {"200", "304", "404", "406", "422", "503"}
    assert set(listing["responses"]["200"]["content"]) == {"application/json", LINES}
    example = listing["responses"]["200"]["content"]["application/json"]["example"]
    assert example["items"][0]["price_usd_per_hour"] == "0.342500"
    assert {each["x-gp4u-role"] for each in (listing, models)} == {"read"}
    assert gpus.COMMON["Vary"] == "Accept, Accept-Encoding"
