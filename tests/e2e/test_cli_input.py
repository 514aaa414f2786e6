"""Bad input and trouble: what the exit code says, and what the words name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.processes import Desk, Market, market

IMAGE = ("--image", "foo")


@pytest.fixture(scope="module")
def vast(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Market]:
    """A market for this module."""
    with market(cwd=tmp_path_factory.mktemp("market")) as running:
        yield running


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (("offers", "--gpu", "RTX490"), "--gpu"),
        (("offers", "--gpu", ","), "--gpu"),
        (("offers", "--gpus", "two"), "--gpus"),
        (("offers", "--cpus", "nan"), "--cpus"),
        (("offers", "--ram", "-1"), "--ram"),
        (("offers", "--max-price", "NaN"), "--max-price"),
        (("offers", "--min-reliability", "95"), "--min-reliability"),
        (("offers", "--location", "Atlantis"), "--location"),
        (("offers", "--provider", "aws"), "--provider"),
        (("offers", "--disk", "nan"), "--disk"),
        (("offers", "--limit", "-3"), "--limit"),
        (("offers", "-o", "xml"), "--output"),
        (("offers", "--weight", "beauty=1"), "--weight"),
        (("rent",), "--image"),
        (("rent", *IMAGE, "--port", "70000"), "--port"),
        (("rent", *IMAGE, "--port", "²"), "--port"),
        (("rent", *IMAGE, "--health", "http:8000/x"), "--health"),
        (("rent", *IMAGE, "--env", "NOVALUE"), "--env"),
        (("rent", *IMAGE, "--name", "Not A Name"), "--name"),
        (("rent", *IMAGE, "--flag-of-the-workload"), "--flag-of-the-workload"),
        (("serve", "--port", "70000"), "--port"),
        (("sim", "serve", "--runtime", "magic"), "--runtime"),
        (("sim", "serve", "--faults", "/no/such/file"), "--faults"),
        (("sim", "serve", "--meter", "/no/such/folder/file"), "--meter"),
        (("sim", "serve", "-p", "vastai"), "-p"),
        (("sim", "serve", "--provider", "aws"), "vastai, ionet, akash, render"),
        (("sim", "serve", "--provider", "akash", "--provider", "akash"), "--provider"),
        (("offers", "-p", "aws"), "vastai, ionet, akash, render"),
        (("exec", "june"), "COMMAND"),
        (("demo", "--runtime", "magic"), "--runtime"),
        (("bogus",), "bogus"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else "",
)
def test_bad_input_names_the_flag_and_sends_nothing(
    tmp_path: Path, line: tuple[str, ...], said: str
) -> None:
    """Exit 2, the flag by name, no traceback; and no key is needed to be told."""
    done = Desk(None, tmp_path).gp4u(*line)
    assert (done.code, done.out) == (2, "")
    assert said in done.err
    assert "Traceback" not in done.err
    assert not (tmp_path / "ledger.db").exists()


def test_an_unknown_gpu_comes_with_the_nearest_names(tmp_path: Path) -> None:
    """A typing error should cost one more try, not a search through a catalogue."""
    done = Desk(None, tmp_path).gp4u("offers", "--gpu", "RTX409")
    assert done.code == 2
    assert "RTX 4090" in done.err


def test_bad_variables_are_all_named_at_once(tmp_path: Path) -> None:
    """One restart per mistake is a long evening."""
    done = Desk(None, tmp_path).gp4u("ps", VASTAI_RATE_LIMIT="-3", PROVIDER_CACHE_TTL="soon")
    assert done.code == 2
    for name, value in (("VASTAI_RATE_LIMIT", "-3"), ("PROVIDER_CACHE_TTL", "soon")):
        assert f"{name}: '{value}'" in done.err


@pytest.mark.parametrize("command", [("offers",), ("rent", *IMAGE), ("sweep",)])
def test_without_a_key_it_says_where_one_is_made_and_what_works_without(
    tmp_path: Path, command: tuple[str, ...]
) -> None:
    """The first thing that a newcomer meets."""
    done = Desk(None, tmp_path).gp4u(*command)
    assert (done.code, done.out) == (4, "")
    for word in ("VASTAI_API_KEY", "https://", "gp4u demo"):
        assert word in done.err


@pytest.mark.parametrize("command", [("offers",), ("rent", *IMAGE), ("ps",)])
def test_a_key_that_is_refused_is_4_and_is_not_shown(
    vast: Market, tmp_path: Path, command: tuple[str, ...]
) -> None:
    """Not an outage: trying again would not help."""
    done = Desk(vast, tmp_path).gp4u(*command, VASTAI_API_KEY="canary-not-the-key")
    assert done.code == 4
    assert "auth_error" in done.err
    assert "canary" not in done.out + done.err


@pytest.mark.parametrize("command", [("offers", "-o", "json"), ("rent", *IMAGE), ("ps",)])
def test_a_market_that_is_down_is_6(vast: Market, tmp_path: Path, command: tuple[str, ...]) -> None:
    """Nothing was sent: a script may try again."""
    desk = Desk(vast, tmp_path, VASTAI_BASE_URL="http://127.0.0.1:1/api/v0")
    done = desk.gp4u(*command, PROVIDER_MAX_RETRIES="1")
    assert done.code == 6
    assert "vastai" in done.err
    assert desk.ps("--all", "--cached") == []


def test_release_takes_no_word_for_a_rental_that_does_not_name_one(
    vast: Market, tmp_path: Path
) -> None:
    """The beginning that all keys share would name whatever happens to be open."""
    desk = Desk(vast, tmp_path)
    key = desk.gp4u("rent", "--gpu", "RTX3060", *IMAGE, "--no-wait", "-o", "name").out.strip()
    for word in ("", "gp4u", f"{key.rsplit('-', 2)[0]}-", "nobody"):
        done = desk.gp4u("release", word)
        assert (done.code, "KEY" in done.err) == (2, True)
    [shown] = desk.ps("--cached")
    assert shown["state"] == "starting"


def test_a_ledger_that_is_no_ledger_stops_everything(vast: Market, tmp_path: Path) -> None:
    """Without a place for the intent nothing may be rented."""
    (tmp_path / "ledger.db").write_bytes(b"SQLite format 3\0 and then nonsense" * 50)
    done = Desk(vast, tmp_path).gp4u("rent", *IMAGE)
    assert done.code == 1
    assert "GP4U_DATABASE_URL" in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    "line",
    [("-h",), ("--help",), ("rent", "-h"), ("help", "rent"), ("sim", "-h")],
)
def test_help_is_help_in_every_spelling(tmp_path: Path, line: tuple[str, ...]) -> None:
    """Nobody should need help to get help."""
    done = Desk(None, tmp_path).gp4u(*line)
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("Usage: gp4u")


def test_a_shell_can_complete_commands_flags_and_values(tmp_path: Path) -> None:
    """A root help in place of the words would be offered to the shell as words."""
    desk = Desk(None, tmp_path)
    script = desk.gp4u("--show-completion", "bash")
    assert "_GP4U_COMPLETE=complete_bash" in script.out
    for line, expected in (
        ("gp4u of", "offers"),
        ("gp4u rent --loc", "--location"),
        ("gp4u offers --gpu RTX4090", "RTX4090"),
        ("gp4u offers --output y", "yaml"),
    ):
        words = {"COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
        done = desk.gp4u(_GP4U_COMPLETE="complete_bash", **words)
        assert expected in done.out.split()
