"""`GET /api/v1/prices` over a real history in a real ledger, fed by a simulated market."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import httpx2
import pytest

from gp4u.api.market.prices import price_routes
from gp4u.book import STANDING
from gp4u.rentals.history import PriceRow
from gp4u.rentals.recorder import PriceRecorder
from tests.simulated import Client, Market, client
from tests.unit.api.quarter import client_of
from tests.virtual_loop import EPOCH, run_virtual

PATH = "/api/v1/prices"


@asynccontextmanager
async def serving(tmp_path: Path) -> AsyncIterator[tuple[Client, httpx2.AsyncClient]]:
    """A program with an open Vast.ai, and a client of the path over its desk."""
    async with (
        client(Market(), tmp_path / "ledger.db") as one,
        client_of(price_routes(desk=one.app.desk)) as caller,
    ):
        yield one, caller


def row(provider: str, usd: str, model: str = "RTX 4090") -> PriceRow:
    """A price."""
    amount = Decimal(usd)
    return PriceRow(
        provider=provider, gpu_model=model, count=3, min=amount, median=amount * 2, p90=amount * 3
    )


def test_what_was_written_down_is_told_market_by_market(tmp_path: Path) -> None:
    """As far back as was asked, the oldest first, in the spelling of the catalogue."""

    async def life() -> None:
        async with serving(tmp_path) as (one, caller):
            now = one.app.clock.now()
            for hours, usd in ((170, "0.1"), (160, "0.2"), (1, "0.3")):
                at = now - timedelta(hours=hours)
                rows = [row("vastai", usd), row("akash", usd), row("vastai", "9", "RTX 3060")]
                await one.app.history.append(at, rows)
            body = (await caller.get(f"{PATH}?gpu=rtx4090")).json()
            assert (body["gpu_model"], body["until"]) == ("RTX 4090", "2026-01-01T00:00:00Z")
            assert body["since"] == "2025-12-25T00:00:00Z"
            assert [each["provider"] for each in body["series"]] == ["akash", "vastai"]
            first, second = body["series"][1]["points"]
            assert first["at"] == "2025-12-25T08:00:00Z"
            assert (second["count"], second["min"], second["median"], second["p90"]) == (
                3,
                "0.300000",
                "0.600000",
                "0.900000",
            )
            body = (await caller.get(f"{PATH}?gpu=RTX+4090&range=1h&provider=akash")).json()
            [series] = body["series"]
            assert (series["provider"], len(series["points"])) == ("akash", 1)

    run_virtual(life)


def test_a_server_that_runs_fills_the_history_by_itself(tmp_path: Path) -> None:
    """From a market's reply to the answer of the path, with nothing in between left out."""

    async def life() -> None:
        async with serving(tmp_path) as (one, caller):
            app = one.app
            recorder = PriceRecorder(
                book=app.book, history=app.history, clock=app.clock, query=STANDING
            )
            app.book.on_refresh = recorder.refreshed
            with suppress(TimeoutError):
                async with asyncio.timeout(700), asyncio.TaskGroup() as group:
                    group.create_task(recorder.run())
                    group.create_task(app.book.keep(STANDING))
            models = {offer.gpu_model for offer in app.book.current(STANDING).offers}
            assert len(models) > 3
            for model in models:
                body = (await caller.get(PATH, params={"gpu": model, "range": "1h"})).json()
                [series] = body["series"]
                assert len(series["points"]) == 3, "one for each fetch, five minutes apart"
                for point in series["points"]:
                    low, middle, high = (Decimal(point[name]) for name in ("min", "median", "p90"))
                    assert 0 < low <= middle <= high

    run_virtual(life)


def test_a_model_without_a_history_is_an_empty_answer(tmp_path: Path) -> None:
    """It exists; nobody has offered it."""

    async def life() -> None:
        async with serving(tmp_path) as (_, caller):
            reply = await caller.get(f"{PATH}?gpu=B200")
            assert (reply.status_code, reply.json()["series"]) == (200, [])
            assert reply.json()["until"] == EPOCH.isoformat().replace("+00:00", "Z")

    run_virtual(life)


@pytest.mark.parametrize(
    ("query", "status", "code", "field", "hint"),
    [
        ("", 422, "bad_input", "gpu", "required"),
        ("gpu=RTX+4190", 422, "unknown_gpu", "gpu", "RTX 4090"),
        ("gpu=H100", 422, "bad_input", "gpu", "H100 SXM"),
        ("gpu=RTX4090&range=3y", 422, "bad_input", "range", "from 1h to 90d"),
        ("gpu=RTX4090&range=5m", 422, "bad_input", "range", "from 1h to 90d"),
        ("gpu=RTX4090&range=91d", 422, "bad_input", "range", "from 1h to 90d"),
        ("gpu=RTX4090&provider=vestai", 404, "not_found", "provider", "vastai"),
        ("gpu=RTX4090&since=7d", 422, "bad_input", "since", "range"),
    ],
)
def test_a_bad_query_is_refused_by_name(
    tmp_path: Path, query: str, status: int, code: str, field: str, hint: str
) -> None:
    """The field, and what it may be, so that the next try is the last."""

    async def life() -> None:
        async with serving(tmp_path) as (_, caller):
            reply = await caller.get(f"{PATH}?{query}")
            body = reply.json()
            assert (reply.status_code, body["code"], body["field"]) == (status, code, field)
            assert hint in reply.text
            assert reply.headers["content-type"] == "application/problem+json"

    run_virtual(life)
