"""The desk over the real parts of this process: what it words, hides, and shares."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import pytest
import sqlalchemy as sa

from gp4u.api.problems import problem_of
from gp4u.app import App
from gp4u.desk.desk import NoOfferFits
from gp4u.desk.local import LocalDesk
from gp4u.desk.looking import failure_of
from gp4u.desk.redacting import hidden_calls, without_secrets
from gp4u.desk.shapes import DecidedStep, IntendedStep, StepShape
from gp4u.desk.telling import STORED_TOP, decision_shape, told_decision
from gp4u.desk.wording import harmless, new_lines
from gp4u.errors import (
    BadInput,
    CircuitBreakerOpen,
    Denied,
    LedgerUnusable,
    Malformed,
    MarketClosed,
    NoSuch,
    OwnerHasRental,
    ProviderError,
    Refused,
    Throttled,
    Unavailable,
)
from gp4u.model import Demand, Offer, Requirements, Snapshot, Workload
from gp4u.providers.contract import Call
from gp4u.rentals.history import PriceRow
from gp4u.selection.decide import decide
from gp4u.sim.faults import Rule
from tests.simulated import DEMAND, WORKLOAD, Market, client, engine_of
from tests.unit.api.office import office
from tests.virtual_loop import EPOCH, run_virtual


def _silent(_step: StepShape) -> None:
    return


@asynccontextmanager
async def _desk(market: Market, folder: Path) -> AsyncIterator[tuple[LocalDesk, App]]:
    async with client(market, folder / "ledger.db") as one:
        yield one.app.desk, one.app


def test_what_is_rented_is_told_before_it_can_cost(tmp_path: Path) -> None:
    """Whoever is cut off in the middle has to know the key by then."""

    async def life() -> None:
        market = Market()
        rents: list[int] = []
        steps: list[StepShape] = []

        def tell(step: StepShape) -> None:
            steps.append(step)
            if isinstance(step, IntendedStep):
                rents.append(market.rents())

        async with _desk(market, tmp_path) as (desk, _):
            rental = await desk.rent("cli:june", DEMAND, WORKLOAD, wait=True, tell=tell)
            assert rents == [0]
            assert isinstance(steps[0], DecidedStep)
            intended = next(step for step in steps if isinstance(step, IntendedStep))
            assert intended.rental.key == rental.key
            assert rental.offer_id in intended.choice
            assert rental.state == "running"

    run_virtual(life)


def test_an_owner_who_has_one_is_told_so_before_any_market_is_asked(tmp_path: Path) -> None:
    """The answer is on disk; a search would cost time and the market's patience."""

    async def life() -> None:
        market = Market()
        async with _desk(market, tmp_path) as (desk, _):
            held = await desk.rent("cli:june", DEMAND, WORKLOAD, wait=False, tell=_silent)
            before = len(market.requests)
            with pytest.raises(OwnerHasRental) as refused:
                await desk.rent("cli:june", DEMAND, WORKLOAD, wait=False, tell=_silent)
            assert refused.value.key == held.key
            assert len(market.requests) == before

    run_virtual(life)


def test_nothing_that_fits_comes_with_the_whole_decision(tmp_path: Path) -> None:
    """In front of the desk nothing is computed: what explains it has to be in the exception."""

    async def life() -> None:
        wanted = Requirements(gpu_models=("RTX 3090",), max_price_usd_per_hour=Decimal("0.0001"))
        async with _desk(Market(), tmp_path) as (desk, _):
            with pytest.raises(NoOfferFits) as nothing:
                await desk.rent(
                    "cli:june",
                    Demand(requirements=wanted),
                    WORKLOAD,
                    wait=False,
                    tell=_silent,
                )
            decision = nothing.value.decision
            assert decision.candidates == 0
            assert decision.rejected > 0
            assert any(one.filter == "price" for one in decision.relaxations)

    run_virtual(life)


@pytest.mark.parametrize("what", ["key", "start of key", "name", "owner", "instance"])
def test_one_rental_goes_by_many_words(tmp_path: Path, what: str) -> None:
    """People type what they remember; everything that takes a key takes these."""

    async def life() -> None:
        async with _desk(Market(), tmp_path) as (desk, _):
            rental = await desk.rent("cli:june", DEMAND, WORKLOAD, wait=True, tell=_silent)
            word = {
                "key": rental.key,
                "start of key": rental.key[:-4],
                "name": "june",
                "owner": "cli:june",
                "instance": str(rental.instance_id),
            }[what]
            assert (await desk.find(word)).key == rental.key
            await desk.logs(word, tail=10)
            done = await desk.release(word, reason="asked", wait=True, tell=_silent)
            assert (done.key, done.state) == (rental.key, "released")

    run_virtual(life)


def test_a_container_that_a_rental_has_not_is_refused_by_name(tmp_path: Path) -> None:
    """Before the market is asked: it has only numbers for what runs there."""

    async def life() -> None:
        async with _desk(Market(), tmp_path) as (desk, _):
            await desk.rent("cli:june", DEMAND, WORKLOAD, wait=True, tell=_silent)
            with pytest.raises(BadInput, match="none") as refused:
                await desk.logs("june", tail=10, container="side")
            assert refused.value.field == "container"
            await desk.release("june", reason="asked", wait=True, tell=_silent)

    run_virtual(life)


def test_a_word_that_means_several_or_none_is_refused(tmp_path: Path) -> None:
    """Releasing the wrong machine because a word was short would be our fault."""

    async def life() -> None:
        async with _desk(Market(), tmp_path) as (desk, _):
            for name in ("one", "two"):
                await desk.rent(f"cli:{name}", DEMAND, WORKLOAD, wait=False, tell=_silent)
            with pytest.raises(NoSuch, match="no rental has this key"):
                await desk.find("three")
            with pytest.raises(NoSuch):
                await desk.find("")
            with pytest.raises(BadInput, match="how every key begins"):
                await desk.release("gp4u-", reason="asked", wait=False, tell=_silent)

    run_virtual(life)


def test_a_released_rental_needs_no_market_to_be_released_again(tmp_path: Path) -> None:
    """Idempotent means that it works when the market is closed or away, too."""

    async def life() -> None:
        market = Market()
        async with _desk(market, tmp_path) as (desk, _):
            rental = await desk.rent("cli:june", DEMAND, WORKLOAD, wait=True, tell=_silent)
            await desk.release("june", reason="asked", wait=True, tell=_silent)
            before = len(market.requests)
            again = await desk.release(rental.key, reason="other", wait=True, tell=_silent)
            assert (again.state, again.reason) == ("released", "asked")
            assert len(market.requests) == before

    run_virtual(life)


def test_a_market_that_is_away_leaves_its_rentals_as_last_seen(tmp_path: Path) -> None:
    """What could not be found out is said, and nothing is hidden because of it."""

    async def life() -> None:
        down = Rule(kind="refuse", endpoint="*", after_s=100)
        async with _desk(Market(rules=[down]), tmp_path) as (desk, _):
            rental = await desk.rent("cli:june", DEMAND, WORKLOAD, wait=True, tell=_silent)
            await asyncio.sleep(200)
            look = await desk.look(everything=False, ask=True)
            assert [one.key for one in look.rentals] == [rental.key]
            assert look.failed == "provider_unavailable"
            assert "as last seen" in look.warnings[0]
            quiet = await desk.look(everything=False, ask=False)
            assert (quiet.failed, list(quiet.warnings)) == (None, [])

    run_virtual(life)


def test_an_orphan_is_listed_and_released_and_nothing_else_is(tmp_path: Path) -> None:
    """Only what nothing explains may be ended by hand; a rental has its own way out."""

    async def life() -> None:
        market = Market()
        (tmp_path / "lost").mkdir()
        secret = {"GP4U_INSTALLATION_SECRET": "one-secret-for-both-ledgers-0123456789"}
        async with office(market, tmp_path / "lost", variables=secret) as before:
            await before.rent()
            held = market.live[0]
        async with office(market, tmp_path, seed=2, variables=secret) as here:
            listed = (await here.ask("GET", "/api/v1/orphans")).json()
            ((orphan,),) = [listed["items"]]
            assert (orphan["state"], orphan["provider"]) == ("orphan", "vastai")
            wrong = await here.ask("DELETE", "/api/v1/orphans/vastai/1")
            assert wrong.status_code == 404
            assert wrong.json()["known"] == [orphan["instance_id"]]
            assert held in market.live
            nowhere = await here.ask("DELETE", "/api/v1/orphans/nowhere/1")
            assert (nowhere.status_code, nowhere.json()["field"]) == (404, "provider")
            closed = await here.ask("DELETE", "/api/v1/orphans/ionet/1")
            assert (closed.status_code, closed.json()["code"]) == (403, "market_closed")
            done = await here.ask("DELETE", f"/api/v1/orphans/vastai/{orphan['instance_id']}")
            assert done.status_code == 202
            await asyncio.sleep(60)
            assert held not in market.live

    run_virtual(life)


def test_where_no_wanted_market_is_open_the_reason_is_told(tmp_path: Path) -> None:
    """No offers and no key look the same from far away."""

    async def life() -> None:
        async with _desk(Market(), tmp_path) as (desk, app):
            wanted = Demand(requirements=Requirements(providers=("ionet",)))
            with pytest.raises(MarketClosed) as closed:
                await desk.decide(wanted, top=3, rejections=False, tell=_silent)
            assert closed.value.why == app.disabled["ionet"]
            both = Demand(requirements=Requirements(providers=("ionet", "akash")))
            with pytest.raises(MarketClosed, match="akash"):
                await desk.dry_run(both, WORKLOAD)

    run_virtual(life)


def test_the_decision_of_a_rental_is_stored_as_it_is_told(tmp_path: Path) -> None:
    """What was computed from offers that are long gone cannot be computed again."""

    async def life() -> None:
        async with _desk(Market(), tmp_path) as (desk, app):
            rental = await desk.rent("cli:june", DEMAND, WORKLOAD, wait=False, tell=_silent)
            stored = await app.ledger.decision(rental.key)
            assert stored is not None
            assert b'"explanation"' in stored
            assert stored.count(b'"score"') <= STORED_TOP

    run_virtual(life)


def test_prices_are_told_for_as_long_as_they_are_known(tmp_path: Path) -> None:
    """The chart and the path read the same series."""

    async def life() -> None:
        async with _desk(Market(), tmp_path) as (desk, app):
            cents = {"min": Decimal("0.2"), "median": Decimal("0.3"), "p90": Decimal("0.5")}
            row = PriceRow(provider="vastai", gpu_model="RTX 4090", count=3, **cents)
            await app.history.append(app.clock.now(), [row])
            await asyncio.sleep(60)
            told = await desk.prices("RTX 4090", within=timedelta(hours=1), provider=None)
            ((point,),) = [one.points for one in told.series]
            assert (point.count, point.median) == (3, Decimal("0.3"))
            with pytest.raises(NoSuch) as missing:
                await desk.prices("RTX 4090", within=timedelta(hours=1), provider="nowhere")
            assert "vastai" in missing.value.known

    run_virtual(life)


def test_no_secret_is_left_in_a_call_at_any_depth() -> None:
    """A dry run is pasted into tickets."""
    workload = Workload(
        image="busybox", env={"HF_TOKEN": "hf_abcdefgh", "MODE": "fast", "DB_PASSWORD": "hunter22"}
    )
    call = Call(
        method="PUT",
        url="https://user:word@market.example/asks?api_key=our-own-key",
        body={"env": [{"-e HF_TOKEN": "hf_abcdefgh"}], "args": ("--db", "hunter22", "fast")},
    )
    (told,) = hidden_calls([call], workload, ["our-own-key"])
    for secret in ("hf_abcdefgh", "hunter22", "our-own-key", "user:word"):
        assert secret not in str(told)
    assert "fast" in str(told)
    assert without_secrets(workload).env == {
        "HF_TOKEN": "***",
        "MODE": "fast",
        "DB_PASSWORD": "***",
    }


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Denied("x", "list"), "provider_denied"),
        (Unavailable("x", "list"), "provider_unavailable"),
        (Throttled("x", "list"), "provider_unavailable"),
        (CircuitBreakerOpen("x", "list", retry_in_s=1), "provider_unavailable"),
        (Malformed("x", "list"), "provider_failed"),
        (Refused("x", "list"), "provider_failed"),
    ],
)
def test_why_a_market_was_not_heard_has_one_of_three_codes(error: ProviderError, code: str) -> None:
    """The command line turns them into exit codes, so there must be no fourth."""
    assert failure_of(error) == code
    assert problem_of(error)["status"] in (502, 503)


def test_a_followed_log_neither_repeats_nor_drops_a_line() -> None:
    """A log is a window that slides; only what has come into it since is new."""
    assert new_lines([], ["a", "b"]) == ["a", "b"]
    assert new_lines(["a", "b"], ["a", "b"]) == []
    assert new_lines(["a", "b"], ["b", "c"]) == ["c"]
    assert new_lines(["a", "ha"], ["a", "half", "c"]) == ["half", "c"]
    assert new_lines(["a", "b"], ["x", "y"]) == ["x", "y"]


class Line(str):
    """A line that counts how often lines are compared."""

    __slots__ = ()
    __hash__ = str.__hash__
    compared = 0

    def __eq__(self, other: object) -> bool:
        Line.compared += 1
        return str.__eq__(self, other)

    def __ne__(self, other: object) -> bool:
        return not self == other


@pytest.mark.parametrize(
    ("shown", "lines"),
    [
        ([f"a{n}" for n in range(2000)], [f"b{n}" for n in range(2000)]),
        (["x"] * 2000 + ["y"], ["x"] * 2000 + ["z"]),
        (["x"] * 2000, ["x"] * 1999 + ["y"]),
    ],
)
def test_a_followed_log_that_runs_away_holds_nobody_up(shown: list[str], lines: list[str]) -> None:
    """Between two looks a workload may print more than the whole window; the server's loop must
    not stand still for minutes to find that little or nothing is left of it."""
    Line.compared = 0
    new_lines([Line(each) for each in shown], [Line(each) for each in lines])
    assert Line.compared <= 3 * (len(shown) + len(lines))


def test_a_line_of_a_log_keeps_its_indent_and_loses_its_colours() -> None:
    """Indents carry meaning; escapes carry a stranger's orders to a terminal."""
    assert harmless("    \x1b[31mred\x1b[0m\x1b]0;title\x07 text") == "    red text"


def test_a_long_answer_leaves_turns_for_others() -> None:
    """Who asks for everything must not hold up those who ask for their health."""
    offers = [
        Offer(
            provider="vastai",
            offer_id=str(number),
            gpu_model="RTX 4090" if number % 2 else "RTX 3090",
            gpu_count=1,
            vram_gib=24.0,
            price_usd_per_hour=Decimal(number + 1),
            gpu_usd_per_hour=Decimal(number + 1),
            storage_usd_per_hour=Decimal(0),
            fetched_at=EPOCH,
            disk_gib=100.0,
            verified=True,
        )
        for number in range(6000)
    ]
    wanted = Demand(requirements=Requirements(gpu_models=("RTX 4090",)))
    decision = decide(Snapshot(offers, taken_at=EPOCH), wanted, at=EPOCH)

    async def life() -> None:
        turns = 0

        async def others() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        async with asyncio.TaskGroup() as group:
            beside = group.create_task(others())
            told = await told_decision(decision, top=None, rejections=True)
            beside.cancel()
        assert turns >= 6000 / 250
        whole = decision_shape(decision, top=None, rejections=True)
        assert told == whole
        assert len(told.ranked) == told.candidates == 3000

    run_virtual(life)


def test_a_look_that_the_ledger_fails_is_told_as_the_ledgers_trouble(tmp_path: Path) -> None:
    """Not as a bug: the database is in trouble, and whoever asked may ask again."""

    async def life() -> None:
        market = Market()
        async with _desk(market, tmp_path) as (desk, app):

            @sa.event.listens_for(engine_of(app), "before_cursor_execute")
            def trouble(*_: object) -> None:
                raise sa.exc.OperationalError("", None, Exception("disk I/O error"))

            with pytest.raises(LedgerUnusable, match="disk I/O error"):
                await desk.look(everything=False, ask=True)
            with pytest.raises(LedgerUnusable, match="disk I/O error"):
                await desk.orphans()
        await market.world.aclose()

    run_virtual(life)
