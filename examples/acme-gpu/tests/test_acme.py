"""The plug-in as its users have it: found by its entry point, compared, rented from, released.

What every adapter must do is in `test_contract.py`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from fake_acme import FakeAcme, fake_acme
from gp4u import Demand, Query, Requirements, Workload, get_provider_registry, open_app
from gp4u.app import App
from gp4u.errors import BadInput, Denied, OfferGone, OutcomeUnknown
from gp4u.model import Port
from gp4u.rentals.rental import RentalState

DEMAND = Demand(requirements=Requirements(gpu_models=("RTX 4090",)))
WORKLOAD = Workload(image="nginx:stable", ports=(Port(80),))


@pytest.fixture
def market() -> Iterator[FakeAcme]:
    """A market of its own for each test."""
    with fake_acme() as running:
        yield running


@asynccontextmanager
async def opened(market: FakeAcme, folder: Path, **env: str) -> AsyncIterator[App]:
    """Open GP4U as a user of this market has it."""
    environ = market.env | {"GP4U_DATABASE_URL": f"sqlite:///{folder}/ledger.db"} | env
    settings = get_provider_registry().load_settings(environ, folder)
    async with open_app(settings) as app:
        yield app


async def test_its_rows_are_offers_like_any_other(market: FakeAcme, tmp_path: Path) -> None:
    """Names, places and sizes are made comparable; a row with an impossible price is counted."""
    async with opened(market, tmp_path) as app:
        page = await app.providers["acme"].offers(Query(requirements=Requirements()))
    assert [(o.offer_id, o.gpu_model, o.gpu_count) for o in page.offers] == [
        ("eu-4090", "RTX 4090", 1),
        ("eu-3090", "RTX 3090", 1),
        ("us-h100-8", "H100 SXM", 8),
    ]
    assert page.offers[0].region is not None
    assert page.offers[0].region.code == "DE"
    assert page.skipped_rows == 1


async def test_a_machine_is_rented_found_again_and_released(
    market: FakeAcme, tmp_path: Path
) -> None:
    """The whole life, by the same broker that serves the built-in markets."""
    async with opened(market, tmp_path) as app:
        rental = await app.broker.rent("cli:web", DEMAND, WORKLOAD)
        assert (rental.provider, rental.state) == ("acme", RentalState.RUNNING)
        assert [(e.container_port, e.host, e.port) for e in rental.endpoints] == [
            (80, "127.0.0.1", 30_080)
        ]
        assert await app.providers["acme"].logs("m/1", tail=1) == "from Acme\n"
        assert (await app.broker.release(rental.key)).state is RentalState.RELEASED
    assert market.machines == {}


async def test_a_lost_reply_is_never_answered_with_a_second_rent(
    market: FakeAcme, tmp_path: Path
) -> None:
    """The machine is there and costs money, whether or not anybody was told."""
    market.loses_replies = True
    async with opened(market, tmp_path) as app:
        acme = app.providers["acme"]
        page = await acme.offers(Query(requirements=Requirements()))
        with pytest.raises(OutcomeUnknown):
            await acme.rent(page.offers[0], WORKLOAD, app.ledger.mint(app.broker._random))
        listing = await acme.instances()
    assert len(market.made) == 1
    assert listing.complete
    assert len(listing.instances) == 1


async def test_what_is_sold_out_is_gone(market: FakeAcme, tmp_path: Path) -> None:
    """Gone means: take the next candidate, nothing was rented."""
    async with opened(market, tmp_path) as app:
        acme = app.providers["acme"]
        page = await acme.offers(Query(requirements=Requirements()))
        key = app.ledger.mint(app.broker._random)
        await acme.rent(page.offers[1], WORKLOAD, key)
        with pytest.raises(OfferGone):
            await acme.rent(page.offers[1], WORKLOAD, key)


async def test_what_acme_cannot_run_is_refused_before_anything_is_sent(
    market: FakeAcme, tmp_path: Path
) -> None:
    """Whoever needs a command of their own must learn it while it costs nothing."""
    async with opened(market, tmp_path) as app:
        with pytest.raises(BadInput, match="command"):
            await app.broker.rent("cli:web", DEMAND, Workload(image="x", command=("true",)))
    assert market.made == {}


async def test_a_wrong_key_is_denied_with_its_status(market: FakeAcme, tmp_path: Path) -> None:
    """It is the one failure that a person has to mend."""
    async with opened(market, tmp_path, ACME_API_KEY="wrong") as app:
        with pytest.raises(Denied) as caught:
            await app.providers["acme"].ping()
    assert caught.value.status == 401


async def test_without_a_key_it_is_closed_and_says_where_one_is_made(
    market: FakeAcme, tmp_path: Path
) -> None:
    """Most people who have it installed may have no account yet."""
    async with opened(market, tmp_path, ACME_API_KEY="") as app:
        assert "acme" not in app.providers
        assert "https://acme.example/account/keys" in app.disabled["acme"]
