"""A rental from the command line: found, explained, rented, called, watched, released."""

from __future__ import annotations

import json
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest

from tests.e2e.processes import GP4U, KEY, Desk, Market, market

STABLE_KEYS = {
    *("provider", "offer_id", "gpu_model", "gpu_count", "vram_gib", "price_usd_per_hour"),
    *("region", "country", "reliability", "download_mbps", "interruptible", "g_score"),
    "fetched_at",
}


@pytest.fixture
def vast(tmp_path: Path) -> Iterator[Market]:
    """A market of this test's own: two rents within 4.5 s on one account are one too many."""
    with market(cwd=tmp_path) as running:
        yield running


@pytest.fixture
def desk(vast: Market, tmp_path: Path) -> Desk:
    """A user of it, with a ledger of their own."""
    return Desk(vast, tmp_path / "home")


def test_a_whole_life_leaves_nothing_and_costs_what_the_market_charged(
    vast: Market, desk: Desk
) -> None:
    """The main job, as a user does it; the bill is the market's own, asked past our code."""
    offers = desk.gp4u("offers", "--gpu", "RTX3090", "-o", "json").json
    assert offers
    assert all(set(offer) >= STABLE_KEYS for offer in offers)
    assert {offer["gpu_model"] for offer in offers} == {"RTX 3090"}
    prices = [Decimal(offer["price_usd_per_hour"]) for offer in offers]
    assert prices == sorted(prices)

    words = ["--gpu", "RTX3090", "--image", "foo", "--port", "8000", "--health", "http:8000/x"]
    rented = desk.gp4u("rent", *words, "--name", "june", "-o", "json", "-e", "GREETING=hello")
    assert rented.code == 0, rented
    rental = rented.json
    assert rental["state"] == "running"
    assert rented.err.index(rental["key"]) < rented.err.index("confirmed")
    with urllib.request.urlopen(rental["endpoints"][0]["url"], timeout=5) as reply:  # noqa: S310 - loopback
        assert json.load(reply)["status"] == "ok"

    second = desk.gp4u("rent", *words, "--name", "june")
    assert second.code == 7, second
    assert rental["key"] in second.err
    assert vast.labels().count(rental["key"]) == 1

    [shown] = desk.ps()
    assert (shown["key"], shown["state"]) == (rental["key"], "running")

    with desk.start("logs", "-f", "june") as following:
        following.hear('"GET /x" 200', stream="stdout")
        released = desk.gp4u("release", "june", "-o", "json")
        [end] = released.json
        assert (released.code, end["state"]) == (0, "released")
        followed = following.end()
    assert (followed.code, "is gone" in followed.err) == (0, True)

    assert rental["key"] not in vast.labels()
    [charge] = [b for b in vast.bought() if b.label == rental["key"]]
    assert abs(Decimal(end["cost_usd"]) - charge.usd) <= Decimal("0.000001")
    assert desk.ps("--cached") == []
    assert [r["key"] for r in desk.ps("--all")] == [rental["key"]]


def test_a_dry_run_shows_the_calls_without_secrets_and_sends_none(vast: Market, desk: Desk) -> None:
    """What would be sent is shown exactly, but for what must not be seen."""
    key = vast.env["VASTAI_API_KEY"]
    done = desk.gp4u(
        *("rent", "--gpu", "RTX3060", "--image", "foo", "--port", "8000", "--dry-run"),
        *("-e", "API_TOKEN=hunter22", "-e", "PLAIN=seen", "-e", "DB=postgres://u:pw@h/db"),
        *("-o", "json", "--", "serve", "--token", "hunter22", "--key", key),
    )
    assert done.code == 0, done
    [call] = done.json["calls"]
    assert call["method"] == "PUT"
    assert call["url"].endswith(f"/api/v0/asks/{done.json['offer']}/")
    assert call["body"]["env"]["PLAIN"] == "seen"
    assert call["body"]["args"][:2] == ["serve", "--token"]
    for secret in ("hunter22", key, ":pw@"):
        assert secret not in done.out + done.err
    assert done.json["calls"][0]["body"]["label"] not in vast.labels()
    assert desk.ps("--all", "--cached") == []


def test_a_command_after_two_dashes_runs_instead_of_the_image(desk: Desk) -> None:
    """Flags behind `--` belong to the workload."""
    words = ["--gpu", "RTX3060", "--image", "foo", "--name", "echo", "--no-wait"]
    done = desk.gp4u("rent", *words, "-o", "name", "--", "sh", "-c", "echo made it; sleep 60")
    assert done.code == 0, done
    key = done.out.strip()
    assert KEY.fullmatch(key)

    with desk.start("logs", "-f", key) as following:
        following.hear("made it", stream="stdout")
        interrupted = following.end(signal.SIGINT)
    assert interrupted.code == 130
    assert "Traceback" not in interrupted.err


def test_where_nothing_fits_it_says_what_each_bound_alone_keeps_out(desk: Desk) -> None:
    """Exit 3 tells the script, the table tells the person, the JSON tells both."""
    words = ["--gpu", "RTX4090", "--max-price", "0.01", "--min-reliability", "0.1"]
    done = desk.gp4u("decide", *words, "-o", "json")
    assert done.code == 3
    [bound] = [b for b in done.json["relaxations"] if b["excluded_alone"]]
    assert bound["filter"] == "price"
    assert done.json["offer"] is None
    assert f"--max-price {bound['nearest']}" in done.err
    again = desk.gp4u("decide", "--gpu", "RTX4090", "--max-price", bound["nearest"], "-o", "name")
    assert (again.code, again.out.count("vastai/")) == (0, 1)


def test_offers_is_a_list_even_where_nothing_fits(desk: Desk) -> None:
    """A program that reads the list must not meet another shape; the reasons are for people."""
    done = desk.gp4u("offers", "--gpu", "RTX4090", "--max-price", "0.01", "-o", "json")
    assert (done.code, done.json) == (3, [])
    assert "--max-price" in done.err


def test_a_reader_that_leaves_is_no_failure_to_talk_about(desk: Desk) -> None:
    """`gp4u offers | head -1` must be silent."""
    process = subprocess.Popen(
        [GP4U, "offers", "--gpu", "RTX3060", "-o", "json"],
        env=desk.env,
        cwd=desk.home,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.close()
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (141, b"")
