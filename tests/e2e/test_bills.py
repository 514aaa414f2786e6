"""What a rental cost by the ledger, beside what the market charged by its own meter.

The meter is the simulator's truth: it is written when the simulator stops, and nothing of ours can
see it before. Each market bills in its own way, and each of those ways ends here in one number.
"""

from __future__ import annotations

import json
import socket
from decimal import Decimal
from pathlib import Path

import pytest

from tests.e2e.processes import KEY, Charged, Desk, markets, wait_for

MARKETS = ("vastai", "ionet", "akash", "render")
RENT = ("--gpu", "RTX4090", "--image", "june/stt", "--port", "8000", "--health", "http:8000/health")
BILLED = Decimal("0.000001")
"""How near the ledger is where the market tells a bill: both are cut to micro-dollars."""
ESTIMATED = Decimal("0.001")
"""How near it is where it does not: our clock, a few seconds beside that of the market."""


def near(slug: str) -> Decimal:
    """Return by how many dollars the ledger may differ from a market's meter."""
    return ESTIMATED if slug == "render" else BILLED


def by_the_ledger(desk: Desk) -> Decimal:
    """Return what `gp4u ps -a` says that everything has cost."""
    return sum((Decimal(rental["cost_usd"]) for rental in desk.ps("--all")), Decimal(0))


def of(charged: dict[str, Charged], slug: str) -> Charged:
    """Return a market's bill; nothing of it may still cost anything."""
    assert [sold for sold in charged[slug].contracts if sold.open] == []
    return charged[slug]


@pytest.mark.parametrize("slug", MARKETS)
def test_what_a_rental_cost_is_what_the_market_charged(slug: str, tmp_path: Path) -> None:
    """Prepaid hours, blocks from an escrow, seconds from creation or of running: to the cent."""
    with markets(slug, cwd=tmp_path) as running:
        desk = Desk(running, tmp_path / "home")
        rented = desk.gp4u("rent", "--provider", slug, *RENT, "-o", "json")
        assert rented.code == 0, rented
        key = rented.json["key"]
        assert desk.gp4u("release", key).code == 0
        [after] = desk.ps("--all")
        assert (after["state"], after["key"]) == ("released", key)
        cost = Decimal(after["cost_usd"])
    bill = of(running.charged(), slug)
    [sold] = bill.contracts
    assert (sold.label, bill.total_usd) == (key, sold.usd)
    assert after["instance_id"].endswith(sold.instance_id)
    assert sold.usd > 0
    assert abs(cost - sold.usd) <= near(slug)


def test_a_prepaid_hour_is_a_cost_while_it_runs(tmp_path: Path) -> None:
    """The money is gone when the hour is bought, not when it is over."""
    with markets("ionet", cwd=tmp_path) as running:
        desk = Desk(running, tmp_path / "home")
        rented = desk.gp4u("rent", "--provider", "ionet", *RENT, "-o", "json")
        assert rented.code == 0, rented
        rental = rented.json
        assert rental["cost_usd"] == rental["price_usd_per_hour"]
        assert desk.gp4u("release", rental["key"]).code == 0


@pytest.mark.parametrize("slug", MARKETS)
@pytest.mark.parametrize("moment", ["after-the-key", "once-it-is-listed"])
def test_after_a_kill_nothing_leaks_and_the_bill_is_the_meter(
    slug: str, moment: str, tmp_path: Path
) -> None:
    """A rent that dies has bought nothing, or what the next command finds, bills and ends."""
    with markets(slug, cwd=tmp_path) as running:
        # Two of its programs list at once, and the market lets one of them a second.
        desk = Desk(running, tmp_path / "home", GP4U_RENT_TIMEOUT_S="3", PROVIDER_MAX_RETRIES="6")
        with desk.start("rent", "--provider", slug, *RENT, "--name", "june") as renting:
            key = renting.hear(KEY.pattern).group()
            if moment == "once-it-is-listed":
                # Another process sees it in the market while this one still waits for its reply.
                wait_for(lambda: desk.ps()[0].get("instance_id"), "the market to list it")
            renting.kill()

        def settled() -> bool:
            return bool(desk.ps("--all")[0]["state"] != "intended")

        wait_for(settled, "ps to settle the rental")
        swept = desk.gp4u("sweep", "--grace", "0", "--yes", "-o", "json")
        assert (swept.code, swept.json) == (0, []), "the ledger explains it, so it is no orphan"
        assert desk.gp4u("release", "june").code == 0
        assert desk.ps() == []
        cost = by_the_ledger(desk)
    bill = of(running.charged(), slug)
    assert {sold.label for sold in bill.contracts} <= {key}
    assert len(bill.contracts) <= 1, "bought once at most"
    if moment == "once-it-is-listed" and slug != "akash":
        assert bill.contracts, "it was listed, so it was bought"
    assert abs(cost - bill.total_usd) <= near(slug)


@pytest.mark.parametrize("slug", MARKETS)
def test_a_lost_reply_is_paid_once_and_shows_in_the_ledger(slug: str, tmp_path: Path) -> None:
    """The market has sold, and we never heard of it: found by its key, billed, and ended."""
    script = tmp_path / "faults.json"
    script.write_text(json.dumps([{"kind": "reset_after", "endpoint": "create", "calls": [1]}]))
    with markets(slug, cwd=tmp_path, faults=script) as running:
        desk = Desk(running, tmp_path / "home", GP4U_RENT_TIMEOUT_S="3")
        rented = desk.gp4u("rent", "--provider", slug, *RENT, "--name", "june", "--no-wait")
        assert rented.code == 9, rented
        key = KEY.search(rented.err)
        assert key is not None, rented
        wait_for(lambda: desk.ps()[0]["instance_id"], "the market to list it")
        assert desk.gp4u("release", "june").code == 0
        assert desk.ps() == []
        cost = by_the_ledger(desk)
    bill = of(running.charged(), slug)
    # An order on Akash is no contract yet: without a bid that is taken it costs nothing.
    assert [sold.label for sold in bill.contracts] == ([] if slug == "akash" else [key.group()])
    assert abs(cost - bill.total_usd) <= near(slug)


def test_a_stopped_simulator_leaves_nothing_running_and_says_what_was_not_released(
    tmp_path: Path,
) -> None:
    """Programs of a market that is gone would hold ports and memory until the next reboot."""
    ports: list[int] = []
    with markets("vastai", "render", cwd=tmp_path) as running:
        desk = Desk(running, tmp_path / "home")
        for slug in running.lines:
            rented = desk.gp4u("rent", "--provider", slug, *RENT, "-o", "json")
            assert rented.code == 0, rented
            ports += [int(rented.json["endpoints"][0]["address"].rpartition(":")[2])]
            ports += [int(running.lines[slug]["base_url"].split(":")[2].split("/")[0])]
        assert all(listens(port) for port in ports)
    assert [port for port in ports if listens(port)] == []
    charged = running.charged()
    assert {slug: [sold.open for sold in bill.contracts] for slug, bill in charged.items()} == (
        {"vastai": [True], "render": [True]}
    )


def listens(port: int) -> bool:
    """Whether something accepts on the loopback port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
