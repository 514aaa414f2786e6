"""`/livez`, `/readyz` and `/metrics`: what they say, also while parts are broken."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx2
import pytest
import sqlalchemy as sa

from gp4u.api.health.operations import SILENT_S, Pulse, operation_routes
from gp4u.book import STANDING
from gp4u.errors import ProviderError, Unavailable
from gp4u.metrics import Metrics
from gp4u.rentals import rental as rentals
from gp4u.rentals.budget import Budget
from gp4u.rentals.database import Sqlite
from gp4u.rentals.ledger import Ledger, open_ledger
from tests.unit.api.quarter import Quarter, client_of
from tests.unit.rentals.builders import intended
from tests.virtual_loop import EPOCH, run_virtual


@asynccontextmanager
async def serving(
    folder: Path,
    quarter: Quarter,
    *,
    beats: Mapping[str, Callable[[], float]] | None = None,
    **more: Any,
) -> AsyncIterator[tuple[Ledger, httpx2.AsyncClient]]:
    """A ledger, and a client of the operator's paths over it and some markets."""
    async with open_ledger(f"sqlite:///{folder}/ledger.db") as ledger:
        routes = operation_routes(
            clock=quarter.clock,
            book=quarter.book,
            ledger=ledger,
            guards=quarter.guards,
            disabled={"render": "set RENDER_API_KEY\x1b[2J"},
            metrics=Metrics(["vastai", "ionet", "render"]),
            beats=beats or {},
            **more,
        )
        async with client_of(routes) as client:
            yield ledger, client


def break_ledger(ledger: Ledger) -> None:
    """Let every statement fail, as on a disk that is gone."""
    database = ledger.database
    assert isinstance(database, Sqlite)

    @sa.event.listens_for(database.engine, "before_cursor_execute")
    def gone(*_: object) -> None:
        raise sa.exc.OperationalError("select", {}, OSError("disk I/O error"))


async def page(client: httpx2.AsyncClient) -> dict[str, float]:
    """The samples of a scrape, without comments."""
    reply = await client.get("/metrics")
    assert reply.status_code == 200
    assert reply.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    lines = [line for line in reply.text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def test_alive_is_said_whatever_is_broken(tmp_path: Path) -> None:
    """Who restarts what does not answer must not restart it because a disk is full."""

    async def life() -> None:
        beats = {"keeper": lambda: 1e9}
        async with serving(tmp_path, Quarter("vastai"), beats=beats) as (ledger, client):
            break_ledger(ledger)
            reply = await client.get("/livez")
        assert (reply.status_code, reply.json()) == (200, {"status": "ok"})

    run_virtual(life)


def test_ready_names_every_part_and_why_a_market_is_closed(tmp_path: Path) -> None:
    """It is the first thing that is looked at, and has to say where to look next."""

    async def life() -> None:
        beats = {"reconcile vastai": lambda: 12.0}
        async with serving(tmp_path, Quarter("vastai"), beats=beats) as (_, client):
            reply = await client.get("/readyz")
        assert (reply.status_code, reply.json()) == (
            200,
            {
                "status": "ok",
                "parts": {"ledger": "ok", "reconcile vastai": "ok"},
                "providers": {"vastai": "ok"},
                "disabled": {"render": "set RENDER_API_KEY[2J"},
            },
        )

    run_virtual(life)


def test_a_ledger_that_cannot_be_used_makes_it_unready_by_name(tmp_path: Path) -> None:
    """Without a ledger there is no intent, and without an intent nothing may be rented."""

    async def life() -> None:
        async with serving(tmp_path, Quarter("vastai")) as (ledger, client):
            break_ledger(ledger)
            reply = await client.get("/readyz")
        assert reply.status_code == 503
        assert reply.json()["status"] == "unready"
        assert "disk I/O error" in reply.json()["parts"]["ledger"]

    run_virtual(life)


@pytest.mark.parametrize(("silent_s", "status"), [(SILENT_S, 200), (SILENT_S + 1, 503)])
def test_a_loop_that_makes_no_progress_makes_it_unready_by_name(
    tmp_path: Path, silent_s: float, status: int
) -> None:
    """A loop that hangs looks like a quiet one from outside, and rentals go unwatched."""

    async def life() -> None:
        beats = {"keeper": lambda: 3.0, "reconcile vastai": lambda: silent_s}
        async with serving(tmp_path, Quarter("vastai"), beats=beats) as (_, client):
            reply = await client.get("/readyz")
        assert reply.status_code == status
        assert reply.json()["parts"] == {
            "ledger": "ok",
            "keeper": "ok",
            "reconcile vastai": "ok" if status == 200 else "no progress for 601 s",
        }

    run_virtual(life)


async def fail(quarter: Quarter, slug: str, times: int) -> None:
    """Let so many calls to a market fail."""
    quarter.markets[slug].error = Unavailable(slug, "ping", "connection refused")
    for _ in range(times):
        with pytest.raises(ProviderError):
            await quarter.markets[slug].ping()


def test_markets_that_are_down_are_shown_and_do_not_make_it_unready(tmp_path: Path) -> None:
    """Restarting our process does not mend theirs, and there are rentals to keep."""

    async def life() -> None:
        quarter = Quarter("vastai", "ionet")
        for slug in quarter.markets:
            await fail(quarter, slug, 5)
        async with serving(tmp_path, quarter) as (_, client):
            reply = await client.get("/readyz")
        assert reply.status_code == 200
        assert reply.json()["providers"] == {"vastai": "breaker OPEN", "ionet": "breaker OPEN"}

    run_virtual(life)


def test_the_three_conditions_of_the_alerts_are_in_the_numbers(tmp_path: Path) -> None:
    """Success rate, time since the breaker opened and use of the limit are what is alerted on."""

    async def life() -> None:
        quarter = Quarter("vastai", "ionet", rate_per_min=10.0)
        for _ in range(5):
            await quarter.markets["vastai"].ping()
        await fail(quarter, "vastai", 5)
        async with serving(tmp_path, quarter) as (_, client):
            found = await page(client)
            assert found['gp4u_provider_success_rate{provider="vastai"}'] == 0.5
            assert found['gp4u_limiter_utilization{provider="vastai"}'] > 0.7
            assert found['gp4u_breaker_open_seconds{provider="vastai"}'] < 1
            assert found['gp4u_provider_health{provider="vastai",state="UNAVAILABLE"}'] == 1
            assert found['gp4u_provider_health{provider="ionet",state="HEALTHY"}'] == 1
            assert found['gp4u_breaker_open_seconds{provider="ionet"}'] == 0
            await asyncio.sleep(301)
            with pytest.raises(ProviderError):  # a trial that fails does not begin a new outage
                await quarter.markets["vastai"].ping()
            found = await page(client)
            assert found['gp4u_breaker_open_seconds{provider="vastai"}'] > 300
            assert found['gp4u_breaker_trips_total{provider="vastai"}'] == 2

    run_virtual(life)


def test_a_book_that_was_never_filled_grows_old_all_the_same(tmp_path: Path) -> None:
    """An age of zero would say that everything is fresh, and no alert would ever come."""

    async def life() -> None:
        quarter = Quarter("vastai")
        async with serving(tmp_path, quarter) as (_, client):
            await asyncio.sleep(700)
            found = await page(client)
            assert found['gp4u_book_age_seconds{provider="vastai"}'] == 700
            assert 'gp4u_book_refresh_seconds{provider="vastai"}' not in found
            await quarter.book.snapshot(STANDING)
            await quarter.book.snapshot(STANDING)
            found = await page(client)
            assert found['gp4u_book_age_seconds{provider="vastai"}'] < 1
            assert found['gp4u_book_refresh_seconds{provider="vastai"}'] == pytest.approx(0.2)
            assert found['gp4u_book_offers{provider="vastai"}'] == 1
            assert found['gp4u_book_hits_total{provider="vastai"}'] == 1
            assert found['gp4u_book_misses_total{provider="vastai"}'] == 1

    run_virtual(life)


async def keep(ledger: Ledger, owner: str, *, releasing_s: float = 0.0, **changes: Any) -> None:
    """Put an intent into the ledger, and let it be on its way out for so many seconds."""
    rental = intended(owner, **changes)
    await ledger.intend(rental, b"{}")
    if releasing_s:
        at = EPOCH - timedelta(seconds=releasing_s)
        out = rentals.give_up(rental, "asked", at=at)
        await ledger.move(rental, out, at=at, kind="releasing", text="asked")


def test_money_is_counted_from_the_ledger_even_where_the_market_is_closed(tmp_path: Path) -> None:
    """A machine of a market that was switched off is the one that nobody looks at."""

    async def life() -> None:
        budget = Budget(usd_per_hour=Decimal(10), max_rentals=4)
        async with serving(tmp_path, Quarter("vastai"), budget=budget, listeners=lambda: 3) as (
            ledger,
            client,
        ):
            await keep(ledger, "cli:a")
            await keep(ledger, "cli:b", releasing_s=640)
            await keep(ledger, "cli:c", releasing_s=50)
            await keep(ledger, "cli:d", releasing_s=7200, provider="render")
            found = await page(client)
        assert found['gp4u_rentals{provider="vastai",state="intended"}'] == 1
        assert found['gp4u_rentals{provider="vastai",state="releasing"}'] == 2
        assert found['gp4u_releasing_age_seconds{provider="vastai"}'] == pytest.approx(640, abs=1)
        assert found['gp4u_releasing_age_seconds{provider="render"}'] == pytest.approx(7200, abs=1)
        assert found['gp4u_budget_used{budget="rentals"}'] == 1
        assert 0 < found['gp4u_budget_used{budget="usd_per_hour"}'] < 1
        assert 'gp4u_budget_used{budget="usd_per_day"}' not in found
        assert found["gp4u_event_subscribers"] == 3
        assert found["gp4u_ready"] == 1

    run_virtual(life)


def test_the_page_is_served_while_the_ledger_is_broken(tmp_path: Path) -> None:
    """The one scrape that matters most is that of a process in trouble."""

    async def life() -> None:
        async with serving(tmp_path, Quarter("vastai")) as (ledger, client):
            break_ledger(ledger)
            found = await page(client)
        assert found["gp4u_ready"] == 0
        assert found['gp4u_provider_success_rate{provider="vastai"}'] == 1

    run_virtual(life)


def test_the_pulse_sees_how_late_the_loop_is() -> None:
    """What blocks the loop delays every request and every watch over a rental."""

    async def life() -> None:
        metrics = Metrics([])
        async with asyncio.TaskGroup() as group:
            beating = group.create_task(Pulse(metrics).run())
            await asyncio.sleep(10.1)
            beating.cancel()
        text = metrics.render().decode()
        assert "gp4u_loop_lag_seconds_count 20.0" in text
        assert 'gp4u_loop_lag_seconds_bucket{le="0.001"} 20.0' in text

    run_virtual(life)
