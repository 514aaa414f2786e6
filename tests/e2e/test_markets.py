"""Four markets behind one command line: compared in one table, rented from, looked into, released.

What they charged is in `test_bills.py`.
"""

from __future__ import annotations

import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.processes import GP4U, Desk, Done, Markets, markets

MARKETS = ("vastai", "ionet", "akash", "render")
WORDS = ("--image", "june/stt", "--port", "8000", "--health", "http:8000/health")


@pytest.fixture(scope="module")
def fair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Markets]:
    """Every simulated market in one process."""
    with markets(cwd=tmp_path_factory.mktemp("sim")) as running:
        yield running


@pytest.fixture
def desk(fair: Markets, tmp_path: Path) -> Desk:
    """A user with an account at each market."""
    return Desk(fair, tmp_path / "home")


def rows(done: Done) -> list[dict[str, Any]]:
    """Return the offers that a command printed as JSON."""
    assert done.code == 0, done
    found: list[dict[str, Any]] = done.json
    return found


def test_without_a_name_every_market_is_simulated(fair: Markets) -> None:
    """One line each, and each with all that a client of it needs."""
    assert tuple(fair.lines) == MARKETS
    for line in fair.lines.values():
        assert set(line) == {"provider", "base_url", "api_key", "env"}
        assert line["base_url"] in line["env"].values()
        assert line["api_key"] in line["env"].values()


def test_one_table_holds_the_offers_of_every_market_cheapest_first(desk: Desk) -> None:
    """The first promise: whoever sells it, the all-in price decides where it stands."""
    found = rows(desk.gp4u("offers", "--gpu", "RTX4090", "-o", "json"))
    assert {offer["provider"] for offer in found} == set(MARKETS)
    assert {offer["gpu_model"] for offer in found} == {"RTX 4090"}
    prices = [Decimal(offer["price_usd_per_hour"]) for offer in found]
    assert prices == sorted(prices)
    assert {offer["provider"] for offer in found if offer["estimated"]} == {"akash"}


def test_a_table_says_age_place_reliability_and_which_price_is_an_estimate(desk: Desk) -> None:
    """A dash where a market does not tell; a mark and a footnote where it cannot know yet."""
    done = desk.gp4u("offers", "--gpu", "RTX4090")
    assert done.code == 0, done
    head, *lines = done.out.splitlines()
    assert {"PROVIDER", "$/HOUR", "REGION", "RELIABLE", "AGE"} <= set(head.split())
    by_market = {line.split()[0]: line for line in lines}
    assert set(by_market) == set(MARKETS)
    assert " -  " in by_market["ionet"], "it says nothing of reliability"
    assert " % " in by_market["vastai"]
    assert {line.split()[0] for line in lines if "~" in line} == {"akash"}
    assert "~ an estimate: akash" in done.err


def test_a_market_that_does_not_answer_is_named_beside_the_offers_of_the_others(
    desk: Desk,
) -> None:
    """Three markets are better than none, but nobody may think that these were all."""
    away = {"IONET_BASE_URL": "http://127.0.0.1:1/enterprise/v1/io-cloud"}
    done = desk.gp4u("offers", "--gpu", "RTX4090", "-o", "json", PROVIDER_MAX_RETRIES="0", **away)
    assert {offer["provider"] for offer in rows(done)} == {"vastai", "akash", "render"}
    assert "ionet could not be asked" in done.err
    alone = desk.gp4u("offers", "--provider", "ionet", PROVIDER_MAX_RETRIES="0", **away)
    assert (alone.code, alone.out) == (6, "")


@pytest.mark.parametrize("slug", MARKETS)
def test_a_rental_comes_up_and_ends_on_each_market(desk: Desk, slug: str) -> None:
    """The same words everywhere: healthy endpoints, and back to released."""
    rented = desk.gp4u("rent", "--provider", slug, "--gpu", "RTX4090", *WORDS, "-o", "json")
    assert rented.code == 0, rented
    rental = rented.json
    assert (rental["provider"], rental["state"]) == (slug, "running")
    with urllib.request.urlopen(rental["endpoints"][0]["url"], timeout=5) as reply:  # noqa: S310 - loopback
        assert reply.status == 200
    lines = desk.gp4u("logs", rental["key"], "--tail", "3")
    assert (lines.code, "/health" in lines.out) == (0, True), lines
    inside = desk.gp4u("exec", rental["key"], "--", "sh", "-c", "echo hello; exit 3")
    if slug == "akash":
        assert (inside.code, inside.out) == (3, "hello\n"), inside
    else:
        assert (inside.code, inside.out) == (2, ""), inside
        assert "is at " in inside.err

    released = desk.gp4u("release", rental["key"], "-o", "json")
    assert released.code == 0, released
    (after,) = desk.ps("--all")
    assert after["state"] == "released"
    assert Decimal(after["cost_usd"]) > 0
    assert desk.ps() == []


def test_a_workload_that_the_cheapest_market_cannot_take_goes_to_the_next(desk: Desk) -> None:
    """Render runs no command; that is no reason to say no where others do."""
    words = ("--provider", "render", "--provider", "vastai", "--gpu", "RTX4090", "--image", "x")
    refused = desk.gp4u("rent", *words[:2], *words[4:], "--dry-run", "--", "true")
    assert refused.code == 2, refused
    assert "command" in refused.err
    taken = desk.gp4u("rent", *words, "--dry-run", "-o", "json", "--", "true")
    assert taken.code == 0, taken
    assert "/asks/" in taken.json["calls"][0]["url"]


@pytest.mark.parametrize("slug", MARKETS)
def test_a_dry_run_shows_no_secret_of_any_market(desk: Desk, slug: str) -> None:
    """Each says the environment in its own shape, one of them inside a text of its own."""
    words = ("--provider", slug, "--gpu", "RTX4090", "--image", "x", "--port", "80", "--dry-run")
    shown = desk.gp4u("rent", *words, "-e", "API_TOKEN=qz7", "-e", "GREETING=hello")
    assert shown.code == 0, shown
    assert "API_TOKEN" in shown.out
    assert "hello" in shown.out
    assert "qz7" not in shown.out + shown.err


def test_a_market_without_its_key_is_closed_and_harms_nobody(desk: Desk) -> None:
    """Most people have an account at one market; that is no error."""
    without = dict.fromkeys(("IONET_API_KEY", "RENDER_API_SECRET"), "")
    found = rows(desk.gp4u("offers", "--gpu", "RTX4090", "-o", "json", **without))
    assert {offer["provider"] for offer in found} == {"vastai", "akash"}
    asked = desk.gp4u("offers", "--provider", "render", **without)
    assert asked.code == 4, asked
    assert "RENDER_API_SECRET" in asked.err
    both = desk.gp4u("offers", "--provider", "render", "--provider", "vastai", **without)
    assert (both.code, "render is not asked" in both.err) == (0, True)


def test_what_a_command_inside_prints_and_reads_is_passed_on_byte_by_byte(desk: Desk) -> None:
    """A file that is fetched or sent so must arrive as it was."""
    rented = desk.gp4u("rent", "--provider", "akash", "--gpu", "RTX4090", *WORDS, "--name", "box")
    assert rented.code == 0, rented
    payload = bytes(range(256)) * 40
    done = subprocess.run(
        [GP4U, "exec", "-i", "box", "--", "cat"],
        env=desk.env,
        cwd=desk.home,
        input=payload,
        capture_output=True,
        timeout=40,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, payload, b"")
    assert desk.gp4u("exec", "box", "--timeout", "0", "--", "true").code == 2
    assert desk.gp4u("release", "box").code == 0


@pytest.mark.parametrize(
    ("slug", "words", "said"),
    [
        ("ionet", ("--port", "80", "--port", "81"), "ports >= 2"),
        ("ionet", ("--port", "53/udp"), "port: '53/udp'"),
        ("render", ("--port", "80", "--", "true"), "command:"),
        ("render", ("--port", "53/udp"), "port: '53/udp'"),
        ("vastai", tuple(f"--port={n}" for n in range(8000, 8071)), "at most 64 ports"),
    ],
    ids=lambda value: "-".join(value)[:20] if isinstance(value, tuple) else "",
)
def test_what_a_market_cannot_take_is_refused_by_name_before_anything_is_sent(
    desk: Desk, slug: str, words: tuple[str, ...], said: str
) -> None:
    """Field, value and bound; and no intent, so nothing that could cost."""
    done = desk.gp4u("rent", "--provider", slug, "--gpu", "RTX4090", "--image", "x", *words)
    assert done.code in (2, 3), done
    assert said in done.err
    assert desk.ps("--all", "--cached") == []


def test_serve_says_how_many_markets_answered_and_which_did_not(desk: Desk) -> None:
    """A wrong key at one market is said with its next step, and stops nothing else."""
    bad = {"VASTAI_API_KEY": "wrong-key", "GP4U_PORT": "0"}
    with desk.start("serve", **bad) as running:
        running.hear("Initialized 3 GPU providers")
        assert "Provider vastai initialization failed: 401 Unauthorized" in running.said
        assert "\N{WHITE HEAVY CHECK MARK}" not in running.said, "a log is no terminal"
        assert running.end(signal.SIGTERM).code in (0, 130, 143)
