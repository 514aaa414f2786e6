"""Every command twice: once it does the work itself, once a server does. Nobody may notice.

Two users have each a ledger, and each a set of simulated markets of the same seed. One types
commands into an embedded command line; the other one's command line has no key and no ledger, and
asks a `gp4u serve` that holds them. What both print, on both streams, and the codes with which they
leave are laid side by side. Only what must differ is masked: keys, numbers of instances, ages,
moments, addresses, and what a few seconds have cost.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.processes import KEY, Desk, Done, Market, Markets, market, markets, wait_for

FORMS = ("table", "wide", "json", "yaml", "name")
AKASH = ("-p", "akash", "--gpu", "RTX3090", "--weight", "availability=0")
"""An offer's age counts there, and a server's offers are older."""
RENT = ("rent", *AKASH, "--image", "foo", "--port", "8000", "--health", "http:8000/x")
QUIET = {"GP4U_LOG_LEVEL": "warning"}
"""A server says a line per request; nobody reads the pipe while it runs, and it would fill."""
UNCACHED = {"PROVIDER_CACHE_ENABLED": "false"}
"""A server keeps offers for minutes; what was rented meanwhile would be among them."""
NOT_FOR_SALE = ("-p", "akash", "--gpu", "RTX3090", "--max-price", "0.001")

_ALWAYS = (
    (KEY.pattern, "<key>"),
    (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)", "<moment>"),
    (r"(age_s\"?: )[\d.e-]+", r"\1<age>"),
    (r"(?<![\w.])\d+[smhd](?![\w/])", "<age>"),
    (r"\b\d\d:\d\d\b", "<time>"),
    (r"127\.0\.0\.1:\d+", "<address>"),
    (r" {2,}", "  "),
    (r"(?m) +$", ""),
)
_OF_RENTALS = (
    (r"(?m)^\[ *\d+ s\] .*\n", ""),  # one line per look that brought something new
    (r"after \d+ (s|min).*", "after <a while>"),
    (r"(cost_usd\"?: )[\"'][\d.]+[\"']", r"\1<cost>"),
    (r"(?<!\S)0\.\d{6}(?!\S)", "<cost>"),
    (r"(?<![\d.])\d{6,}(?![\d.])", "<number>"),
)


def masked(text: str) -> str:
    """Return what is printed without what no two runs have in common."""
    for pattern, shown in (*_ALWAYS, *_OF_RENTALS):
        text = re.sub(pattern, shown, text)
    return text


def seen(done: Done) -> tuple[int, str, str]:
    """Return what somebody sees of a command."""
    return done.code, masked(done.out), masked(done.err)


class Both:
    """The same person twice: `here` without a server, `there` with one."""

    def __init__(self, here: Desk, there: Desk, server: Desk) -> None:
        self.here, self.there, self.server = here, there, server

    def gp4u(self, *words: str) -> Done:
        """Run a command on both sides; return how it ended with the server.

        Raises:
            AssertionError: it was not the same.
        """
        with self.here.start(*words) as one, self.there.start(*words) as other:
            here, there = one.end(), other.end()
        assert seen(there) == seen(here), words
        assert "Traceback" not in there.err
        return there


@contextmanager
def pair(mine: Market | Markets, other: Market | Markets, home: Path, **env: str) -> Iterator[Both]:
    """Seat both users, one in front of each set of markets."""
    here = Desk(mine, home / "here", **env)
    server = Desk(other, home / "server", **QUIET, **env)
    with server.start("serve", "--port", "0") as serving:
        url = serving.hear(r"http://[^ ]+").group()
        yield Both(here, Desk(None, home / "there", GP4U_API_URL=url), server)
        stopped = serving.end(signal.SIGTERM)
    assert (stopped.code, "Traceback" in stopped.err) == (143, False)


@pytest.fixture(scope="module")
def looking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    """Both, at three markets that are open and one that is not, for what changes nothing."""
    home = tmp_path_factory.mktemp("looking")
    for side in ("mine", "other"):
        (home / side).mkdir()
    with (
        markets("vastai", "ionet", "akash", cwd=home / "mine") as mine,
        markets("vastai", "ionet", "akash", cwd=home / "other") as other,
        pair(mine, other, home) as both,
    ):
        yield both


LOOKS: list[tuple[str, ...]] = [
    *((*("ps", "-o"), form) for form in FORMS),
    ("ps", "--all"),
    ("ps", "--cached"),
    ("ps", "--all", "--cached", "-o", "json"),
    *((*("offers", *AKASH, "-o"), form) for form in FORMS),
    ("offers", *AKASH, "--limit", "1"),
    ("offers", "-p", "ionet,akash", "--gpu", "RTX4090", "--unverified"),
    ("offers", "-p", "render,akash", "--gpu", "RTX3090"),
    *((*("decide", *AKASH, "-o"), form) for form in FORMS),
    ("decide", *AKASH, "--explain", "--top", "2"),
    ("decide", *AKASH, "--explain", "--top", "2", "-o", "json"),
    ("decide", "-p", "akash,ionet", "--weight", "price=1", "--location", "EU,US"),
    *((*(*RENT, "--dry-run", "-o"), form) for form in FORMS),
    ("rent", *AKASH, "--image", "foo", "--dry-run", "-e", "API_TOKEN=hunter22", "-o", "json"),
    ("sweep",),
    ("sweep", "--dry-run", "-o", "json"),
    ("release", "--all"),
    ("release", "--all", "-o", "json"),
    ("prices", "RTX2060"),
    ("prices", "RTX2060", "-o", "json"),
]
NOTHING_FITS: list[tuple[str, ...]] = [
    ("offers", "-p", "ionet,akash", "--gpu", "RTX4090", "--interruptible"),
    ("offers", *NOT_FOR_SALE),
    ("offers", *NOT_FOR_SALE, "-o", "json"),
    ("decide", *NOT_FOR_SALE),
    ("decide", *NOT_FOR_SALE, "--explain"),
    ("decide", *NOT_FOR_SALE, "-o", "json"),
    ("decide", *NOT_FOR_SALE, "-o", "name"),
    ("rent", *NOT_FOR_SALE, "--image", "foo"),
    ("rent", *NOT_FOR_SALE, "--image", "foo", "-o", "yaml"),
    ("rent", *NOT_FOR_SALE, "--image", "foo", "--dry-run"),
    ("decide", "-p", "akash", "--gpu", "RTX2060", "--gpus", "64", "--interruptible"),
]
REFUSED: list[tuple[int, tuple[str, ...]]] = [
    (4, ("offers", "-p", "render")),
    (4, ("rent", "-p", "render", "--image", "foo")),
    (2, ("offers", "-p", "aws")),
    (2, ("offers", "--gpu", "RTX490")),
    (2, ("offers", "--limit", "-1")),
    (2, ("decide", "--gpus", "65")),
    (2, ("decide", "--location", "Atlantis")),
    (2, ("decide", "--weight", "price=2")),
    (2, ("rent", "--image", "not an image")),
    (2, ("rent", "--image", "foo", "--health", "http:8000/x")),
    (2, ("rent", "--image", "foo", "--name", "Not A Name")),
    (2, ("logs", "nobody")),
    (2, ("logs", "")),
    (2, ("logs", "gp4u")),
    (2, ("logs", "a/b")),
    (2, ("logs", "..")),
    (2, ("logs", "nobody", "--tail", "0")),
    (2, ("exec", "nobody", "--", "true")),
    (2, ("exec", "nobody", "--timeout", "0", "--", "true")),
    (2, ("release",)),
    (2, ("release", "nobody")),
    (2, ("release", "nobody", "--forget", "--yes")),
    (2, ("prices", "RTX490")),
    (2, ("prices", "RTX4090", "--range", "9y")),
    (2, ("prices", "RTX4090", "--provider", "aws")),
]


@pytest.mark.parametrize("words", LOOKS, ids=" ".join)
def test_what_is_looked_at_looks_the_same(looking: Both, words: tuple[str, ...]) -> None:
    """Tables, empty ones too, and every form for programs."""
    assert looking.gp4u(*words).code == 0


@pytest.mark.parametrize("words", NOTHING_FITS, ids=" ".join)
def test_where_nothing_fits_the_reasons_are_the_same(looking: Both, words: tuple[str, ...]) -> None:
    """They are worked out where the offers are, and said where the person is."""
    assert looking.gp4u(*words).code == 3


@pytest.mark.parametrize(("code", "words"), REFUSED, ids=lambda value: str(value))
def test_what_is_refused_is_refused_in_the_same_words(
    looking: Both, code: int, words: tuple[str, ...]
) -> None:
    """By the flag's name here, by a field's name on the wire: a person sees the flag."""
    assert looking.gp4u(*words).code == code


def test_prices_are_drawn_the_same_from_one_history(looking: Both) -> None:
    """Only a server writes them down, so the other one reads the server's ledger."""
    beside = Desk(looking.here.market, looking.here.home)
    beside.env["GP4U_DATABASE_URL"] = looking.server.env["GP4U_DATABASE_URL"]
    both = Both(beside, looking.there, looking.server)
    wait_for(
        lambda: looking.there.gp4u("prices", "RTX4090", "-o", "name").out or None,
        "the server to write prices down",
    )
    for form in FORMS:
        told = both.gp4u("prices", "RTX4090", "--range", "1d", "-o", form)
        assert told.code == 0
        assert "akash" in told.out


def test_a_difference_does_not_pass(looking: Both) -> None:
    """Whoever compares must be able to lose: a mask too wide would hide what it is for."""
    for name, value in (("VAST_GPU_TYPE", "RTX4090"), ("NO_SUCH_VARIABLE", "1")):
        there = Desk(None, looking.there.home, **{name: value})
        there.env["GP4U_API_URL"] = looking.there.env["GP4U_API_URL"]
        both = Both(looking.here, there, looking.server)
        if name == "VAST_GPU_TYPE":
            with pytest.raises(AssertionError):
                both.gp4u("offers", "-p", "akash", "--limit", "3", "-o", "json")
        else:
            both.gp4u("offers", "-p", "akash", "--limit", "3", "-o", "json")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Done(0, "", ""), Done(6, "", "")),
        (Done(0, "a", ""), Done(0, "", "a")),
        (Done(0, "vastai  0.140", ""), Done(0, "vastai  0.141", "")),
        (Done(0, "running", ""), Done(0, "released", "")),
        (Done(0, '"price_usd_per_hour": "0.14"', ""), Done(0, '"price_usd_per_hour": "0.15"', "")),
        (Done(2, "", "gp4u: --gpu: 'x'"), Done(2, "", "gp4u: gpu: 'x'")),
        (Done(0, "NAME  KEY", ""), Done(0, "NAME KEY", "")),
    ],
)
def test_what_is_masked_hides_nothing_that_counts(one: Done, other: Done) -> None:
    """Code, stream, price, state, the name of a flag, a column."""
    assert seen(one) != seen(other)


def test_a_whole_life_is_told_the_same_and_leaves_nothing(tmp_path: Path) -> None:
    """Rented, refused by a budget and by a name, looked into, released: step by step."""
    for side in ("mine", "other"):
        (tmp_path / side).mkdir()
    with (
        markets("akash", cwd=tmp_path / "mine") as mine,
        markets("akash", cwd=tmp_path / "other") as other,
        pair(mine, other, tmp_path, GP4U_MAX_RENTALS="1", **UNCACHED) as both,
    ):
        rented = both.gp4u(*RENT, "--name", "june")
        assert rented.code == 0, rented
        assert KEY.search(rented.out)
        assert both.gp4u(*RENT, "--name", "june").code == 7
        assert both.gp4u(*RENT, "--name", "june", "-o", "name").code == 7
        assert both.gp4u(*RENT, "--name", "july").code == 5
        for form in FORMS:
            assert both.gp4u("ps", "-o", form).code == 0
        assert both.gp4u("ps", "--cached").code == 0
        shown = both.here.gp4u("logs", "june"), both.there.gp4u("logs", "june")
        assert ['"GET /x" 200' in each.out for each in shown] == [True, True]
        echoed = both.gp4u("exec", "june", "--", "sh", "-c", "echo hi; echo no >&2; exit 3")
        assert (echoed.code, echoed.out, echoed.err) == (3, "hi\n", "no\n")
        assert both.gp4u("exec", "june", "--", "/no/such/program").code != 0

        assert both.gp4u("release", "june", "--forget").code == 2, "nobody said yes"
        assert both.gp4u("release", "june").code == 0
        assert both.gp4u("release", "june", "-o", "json").code == 0, "as often as one likes"
        both.gp4u("logs", "june")
        both.gp4u("exec", "june", "--", "true")
        for form in FORMS:
            assert both.gp4u("ps", "--all", "-o", form).code == 0
    for sold in (mine, other):
        bill = sold.charged()["akash"]
        assert [contract.open for contract in bill.contracts] == [False]


def test_an_orphan_is_swept_the_same(tmp_path: Path) -> None:
    """A machine that nothing explains any more, because a person closed its rental unproven."""
    for side in ("mine", "other"):
        (tmp_path / side).mkdir()
    with (
        market(cwd=tmp_path / "mine") as mine,
        market(cwd=tmp_path / "other") as other,
        pair(mine, other, tmp_path) as both,
    ):
        lost = ("rent", "--gpu", "RTX3060", "--image", "foo", "--name", "june", "--no-wait")
        assert both.gp4u(*lost).code == 0
        refused = both.gp4u("exec", "june", "--", "true")
        assert (refused.code, "runs no commands" in refused.err) == (2, True)
        for desk in (both.here, both.there):
            wait_for(
                lambda desk=desk: [r["seen"] for r in desk.ps()] == ["running"],  # type: ignore[misc] # bound early
                "the machine to boot",
            )
        assert both.gp4u("release", "june", "--forget", "--yes").code == 0
        for form in FORMS:
            assert both.gp4u("ps", "-o", form).code == 0
        assert both.gp4u("sweep", "--grace", "0", "--dry-run", "-o", "json").code == 0
        assert both.gp4u("sweep", "--grace", "0").code == 2, "nobody said yes"
        swept = both.gp4u("sweep", "--grace", "0", "--yes")
        assert (swept.code, "released" in swept.out) == (0, True)
        assert both.gp4u("sweep", "--grace", "0").code == 0
        assert (mine.instances(), other.instances()) == ([], [])


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_rent_says_its_key_and_that_the_server_goes_on(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    """The one difference that there is: here it stands still, there it is finished."""
    with market(cwd=tmp_path) as vast:
        server = Desk(vast, tmp_path / "server", **QUIET)
        with server.start("serve", "--port", "0") as serving:
            url = serving.hear(r"http://[^ ]+").group()
            desk = Desk(None, tmp_path / "there", GP4U_API_URL=url)
            words = ("rent", "--gpu", "RTX3090", "--image", "foo", "--name", "june")
            with desk.start(*words) as renting:
                key = renting.hear(KEY.pattern).group()
                done = renting.end(number)
            assert done.code == code
            last_words = done.err[done.err.index("interrupted") :]
            assert f"{url} goes on" in last_words
            assert f"gp4u release {key}" in last_words
            running = wait_for(
                lambda: [r for r in desk.ps() if r["state"] == "running"] or None,
                "the server to finish what it was asked for",
            )
            assert [rental["key"] for rental in running] == [key]
            assert desk.gp4u("release", "june").code == 0
            assert serving.end(signal.SIGTERM).code == 143
        assert vast.instances() == []


def test_a_server_that_dies_in_mid_rent_leaves_a_key_and_code_9(tmp_path: Path) -> None:
    """Nobody knows what it did; the next server does, and the command must not rent again."""
    with market(cwd=tmp_path) as vast:
        server = Desk(vast, tmp_path / "server", **QUIET)
        with server.start("serve", "--port", "0") as serving:
            url = serving.hear(r"http://[^ ]+").group()
            desk = Desk(None, tmp_path / "there", GP4U_API_URL=url)
            words = ("rent", "--gpu", "RTX3090", "--image", "foo", "--name", "june")
            with desk.start(*words) as renting:
                key = renting.hear(KEY.pattern).group()
                renting.hear("confirmed")
                serving.kill()
                done = renting.end()
        assert done.code == 9, done
        assert f"gp4u release {key}" in done.err
        gone = desk.gp4u("ps")
        assert (gone.code, "GP4U_API_URL" in gone.err) == (6, True)
        assert [rental["key"] for rental in server.ps()] == [key]
        assert server.gp4u("release", key).code == 0
        assert [bought.label for bought in vast.bought()] == [key]


def test_a_token_that_is_missing_wrong_or_too_weak_is_4_and_names_its_variable(
    tmp_path: Path,
) -> None:
    """What is wrong is no market's key: the next step is on this machine, or the server's."""
    reads, rents = "reads-0123456789abcdef", "rents-0123456789abcdef"
    with market(cwd=tmp_path) as vast:
        tokens = f"read:{reads},rent:{rents}"
        server = Desk(vast, tmp_path / "server", GP4U_API_TOKENS=tokens, **QUIET)
        with server.start("serve", "--port", "0") as serving:
            url = serving.hear(r"http://[^ ]+").group()
            desk = Desk(None, tmp_path / "there", GP4U_API_URL=url)
            dry = ("rent", "--gpu", "RTX3090", "--image", "foo", "--dry-run")
            for words, token, code in (
                (("ps",), "", 4),
                (("ps",), "guessed-0123456789abcdef", 4),
                (("ps",), reads, 0),
                (dry, reads, 4),
                (dry, rents, 0),
            ):
                done = desk.gp4u(*words, **({"GP4U_API_TOKEN": token} if token else {}))
                assert (done.code, "GP4U_API_TOKEN" in done.err) == (code, code == 4), done
                assert not token or token not in done.out + done.err
            assert serving.end(signal.SIGTERM).code == 143
