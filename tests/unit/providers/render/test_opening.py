"""From variables to an open Render adapter: which flavour, and what is missing for it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from random import Random

import httpx2
import pytest

from gp4u.providers.http import Http, Judge, Sign
from gp4u.providers.render.adapter import Render
from gp4u.providers.render.legacy import RenderLegacy
from gp4u.providers.render.opening import OPENING
from gp4u.resilience.guard import build_guard
from gp4u.settings import Settings, load_settings
from tests.virtual_loop import VirtualClock, run_virtual

NODES = "https://nodes.example/v1"


def settings(**variables: str) -> Settings:
    """Return what these variables make."""
    return load_settings(variables, Path("/nonexistent"))


def lacks(**variables: str) -> str:
    """Return what is missing to open Render with these variables."""
    return OPENING.lacks(settings(**variables).provider("render"), OPENING.spec)


@pytest.mark.parametrize(
    ("variables", "word"),
    [
        ({}, "RENDER_API_KEY"),
        ({"RENDER_API_KEY": "pk"}, "RENDER_API_SECRET"),
        ({"RENDER_API_KEY": "pk", "RENDER_API_FLAVOR": "dispersed"}, "RENDER_API_SECRET"),
        (
            {"RENDER_API_KEY": "pk", "RENDER_BASE_URL": "https://api.dispersed.com/v1"},
            "RENDER_API_SECRET",
        ),
        ({"RENDER_API_KEY": "pk", "RENDER_BASE_URL": "https://api.render.network/v1/"}, "SECRET"),
        ({"RENDER_API_SECRET": "sk"}, "RENDER_API_KEY"),
    ],
)
def test_what_is_missing_is_told_by_name_with_the_page_where_it_is_made(
    variables: Mapping[str, str], word: str
) -> None:
    """Half a key pair would be sent as a Bearer key to an address that is no market's."""
    said = lacks(**variables)
    assert word in said
    assert "https://console.dispersed.com" in said


@pytest.mark.parametrize(
    ("variables", "kind", "asked"),
    [
        (
            {"RENDER_API_KEY": "pk_1234567", "RENDER_API_SECRET": "sk"},
            Render,
            "https://api.dispersed.com/v1/jobs?limit=1",
        ),
        (
            {"RENDER_PUBLIC_KEY": "pk_1234567", "RENDER_SECRET_KEY": "sk"},
            Render,
            "https://api.dispersed.com/v1/jobs?limit=1",
        ),
        (
            {"RENDER_API_KEY": "key_1234567", "RENDER_BASE_URL": NODES},
            RenderLegacy,
            f"{NODES}/nodes?limit=1",
        ),
        (
            {"RENDER_API_KEY": "key_1234567", "RENDER_API_FLAVOR": "legacy"},
            RenderLegacy,
            "https://api.render.network/v1/nodes?limit=1",
        ),
    ],
)
def test_the_flavour_decides_the_address_and_how_one_proves_who_one_is(
    variables: Mapping[str, str], kind: type[object], asked: str
) -> None:
    """A signed call to the real market; a Bearer key only to who was named for it."""
    sent: list[httpx2.Request] = []

    class Silent(httpx2.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
            sent.append(request)
            raise httpx2.ConnectError("nobody there", request=request)

    def wire(
        judge: Judge, headers: Mapping[str, str], *, sign: Sign | None = None, part: str = ""
    ) -> Http:
        guard = build_guard("render", random=Random(1), clock=VirtualClock(), max_retries=0)
        return Http(
            f"render{part}",
            guard=guard,
            judge=judge,
            headers=headers,
            sign=sign,
            timeout_s=5,
            transport=Silent(),
        )

    async def scene() -> None:
        all_of_it = settings(**variables)
        own = all_of_it.provider("render")
        assert OPENING.lacks(own, OPENING.spec) == ""
        adapter = OPENING.open(own, all_of_it, VirtualClock(), wire)
        assert type(adapter) is kind
        with pytest.raises(Exception, match="nobody there"):
            await adapter.ping()
        await adapter.aclose()

    run_virtual(scene)
    (request,) = sent
    assert str(request.url) == asked
    if kind is Render:
        assert "authorization" not in request.headers
        assert {"x-api-key", "x-time", "x-nonce", "x-signature"} <= request.headers.keys()
    else:
        assert request.headers["authorization"] == "Bearer key_1234567"
