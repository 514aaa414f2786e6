"""The API as a whole: what its document promises, and that the interactive page is all our own."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi import APIRouter
from starlette.responses import Response

from gp4u.api.door.door import Door
from gp4u.api.door.tokens import Tokens
from gp4u.api.replies import ROLE_KEY, StrictRoute, role
from gp4u.api.server import build_api, document
from gp4u.serving import Server, open_server
from gp4u.settings import load_settings


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    """A server without a market that is open: what is asked here needs none."""
    environ = {"GP4U_DATABASE_URL": f"sqlite:///{tmp_path}/ledger.db"}
    async with open_server(load_settings(environ, tmp_path)) as opened:
        yield opened


@pytest.fixture
async def client(server: Server) -> AsyncIterator[httpx2.AsyncClient]:
    """A caller on loopback, through the door."""
    transport = httpx2.ASGITransport(app=server.api)
    async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as caller:
        yield caller


def operations(about: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield method, path and what is said of each operation."""
    for path, methods in about["paths"].items():
        for method, operation in methods.items():
            yield method, path, operation


async def test_every_operation_says_who_may_call_what_it_does_and_shows_an_example(
    server: Server,
) -> None:
    """The document is what a stranger writes a client from; a gap in it is a question to us."""
    about = document(server.routes)
    tags = {each["name"] for each in about["tags"]}
    ids = [operation["operationId"] for _, _, operation in operations(about)]
    assert len(ids) == len(set(ids)) > 20
    for method, path, operation in operations(about):
        where = (method, path)
        assert operation[ROLE_KEY] in ("open", "read", "rent", "admin"), where
        assert operation["summary"], where
        assert operation["description"], where
        assert set(operation["tags"]) <= tags, where
        good = [r for status, r in operation["responses"].items() if status.startswith("2")]
        contents = [each for reply in good for each in reply["content"].values()]
        assert contents, where
        assert any("example" in each for each in contents), where
        if method == "post" and "requestBody" in operation:
            name = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"]
            schema = about["components"]["schemas"][name.rpartition("/")[2]]
            assert schema.get("examples") or schema.get("example"), where


async def test_reading_is_for_readers_and_money_is_not(server: Server) -> None:
    """A role that slipped would give a reader's token the power to spend."""
    needed = {
        (method, path): operation[ROLE_KEY]
        for method, path, operation in operations(document(server.routes))
    }
    for (method, path), who in needed.items():
        if method == "get" and path not in ("/livez", "/readyz"):
            assert who == "read", path
    changing = {place: who for place, who in needed.items() if place[0] != "get"}
    assert {who for place, who in changing.items() if "rentals" in place[1]} == {"rent"}
    others = {who for place, who in changing.items() if place[1].startswith("/api/v1/provider-")}
    assert others == {"admin"}


async def test_every_reference_in_the_document_leads_somewhere(server: Server) -> None:
    """Shapes are moved to `components` by hand; one that was lost breaks every generator."""
    about = document(server.routes)
    found = set(re.findall(r'"#/components/schemas/([^"]+)"', str(about).replace("'", '"')))
    assert found
    assert found <= set(about["components"]["schemas"])
    assert "$defs" not in str(about)


async def test_the_document_is_served_as_it_is_made(
    server: Server, client: httpx2.AsyncClient
) -> None:
    """Twice the same, and the same as the one that is kept in the documentation."""
    first, second = [await client.get("/api/v1/openapi.json") for _ in range(2)]
    assert first.status_code == second.status_code == 200
    assert first.json() == second.json() == document(server.routes)
    assert first.json()["openapi"].startswith("3.1")


async def test_the_interactive_page_loads_nothing_from_elsewhere(
    client: httpx2.AsyncClient,
) -> None:
    """A script from a stranger would see each token that somebody types into the page."""
    page = await client.get("/docs")
    assert page.status_code == 200
    assert "script-src 'self'" in page.headers["content-security-policy"]
    loaded = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(loaded) >= 3
    for path in loaded:
        if not path.startswith("data:"):
            assert path.startswith("/docs/"), path
            asset = await client.get(path)
            assert asset.status_code == 200, path
            assert len(asset.content) > 50, path


async def test_a_path_that_takes_nothing_refuses_a_parameter_all_the_same(
    client: httpx2.AsyncClient,
) -> None:
    """Such paths are called by a short way; a typing error must not look like an answer."""
    refused = await client.get("/api/v1/markets?provder=vastai")
    assert refused.status_code == 422
    assert refused.json()["field"] == "provder"
    assert "this path takes none" in refused.json()["bound"]
    assert (await client.get("/api/v1/markets")).status_code == 200


async def test_a_ready_page_is_the_same_by_the_short_way(
    server: Server, client: httpx2.AsyncClient
) -> None:
    """The door gives out a page that is ready; the framework would have given the same."""
    path = "/api/v1/gpus?limit=3"
    first = await client.get(path)
    short = await client.get(path)
    transport = httpx2.ASGITransport(app=server.routes)
    async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as inside:
        long = await inside.get(path)
    assert first.content == short.content == long.content
    assert short.headers["etag"] == long.headers["etag"]
    known = await client.get(path, headers={"If-None-Match": short.headers["etag"]})
    assert (known.status_code, known.content) == (304, b"")


@pytest.mark.parametrize("path", ["/plain", "/asked?number=1"])
async def test_a_bug_in_a_route_is_a_problem_that_says_nothing_of_it(path: str) -> None:
    """Whichever way the route is called; what failed is in the log, under the request's id."""
    router = APIRouter(route_class=StrictRoute)

    @router.get("/plain", openapi_extra=role("read"), response_model=None)
    async def plain() -> Response:
        raise ZeroDivisionError("the secret of the house")

    @router.get("/asked", openapi_extra=role("read"), response_model=None)
    async def asked(number: int) -> Response:
        raise ZeroDivisionError(f"the secret of the house, {number}")

    api = Door(build_api([router]), tokens=Tokens())
    transport = httpx2.ASGITransport(app=api)
    async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as caller:
        failed = await caller.get(path)
    assert failed.status_code == 500
    assert failed.headers["content-type"] == "application/problem+json"
    assert failed.json()["code"] == "internal"
    assert failed.json()["instance"] == failed.headers["x-request-id"]
    assert "secret" not in failed.text
