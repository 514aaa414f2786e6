"""`kill -9`, Ctrl-C and SIGTERM in the middle of a rent, on real processes.

The fine-grained version, at every await, runs on a virtual clock in `tests/property`. Here a real
kernel kills a real program, and the market is asked over HTTP what it sold.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.processes import KEY, Desk, Market, market, wait_for

RENT = ("rent", "--gpu", "RTX3090", "--image", "foo", "--port", "8000", "--health", "http:8000/x")

NEVER_RENTED = {("releasing", "never_rented"), ("released", "never_rented")}


@pytest.fixture
def vast(tmp_path: Path) -> Iterator[Market]:
    """A market of this test's own: two rents within 4.5 s on one account are one too many."""
    with market(cwd=tmp_path) as running:
        yield running


@pytest.fixture
def desk(vast: Market, tmp_path: Path) -> Desk:
    """A user of it, with a ledger of their own."""
    # Patience counts from the rent call's deadline on: a short one, or the test waits a minute.
    return Desk(vast, tmp_path / "home", GP4U_RENT_TIMEOUT_S="3")


def settled(desk: Desk, key: str) -> dict[str, Any]:
    """Return the rental once it is no longer only intended; `ps` is what settles it."""

    def look() -> dict[str, Any] | None:
        [shown] = [r for r in desk.ps("--all") if r["key"] == key]
        return None if shown["state"] == "intended" else shown

    return wait_for(look, "ps to settle the rental")


@pytest.mark.parametrize(
    "moment",
    [r"\): vastai/", r"instance \d+ confirmed", r"starting: booting"],
    ids=["after-the-key", "after-the-reply", "while-booting"],
)
def test_after_a_kill_ps_tells_the_truth_and_release_ends_it(
    vast: Market, desk: Desk, moment: str
) -> None:
    """Whenever it dies, the next command knows what is there, and nothing is bought twice."""
    before = len(vast.bought())
    with desk.start(*RENT, "--name", "june") as renting:
        renting.hear(moment)
        renting.kill()
    found = KEY.search(renting.said)
    assert found is not None
    key = found.group()

    shown = settled(desk, key)
    held = [each for each in vast.instances() if each["label"] == key]
    assert len(held) <= 1
    if held:
        assert shown["instance_id"] == str(held[0]["id"])
        assert shown["state"] in ("starting", "running")
        assert desk.gp4u(*RENT, "--name", "june").code == 7, "it is still june's"
    else:
        assert (shown["state"], shown["reason"]) in NEVER_RENTED
    assert desk.gp4u("release", key).code == 0
    assert key not in vast.labels()
    assert len(vast.bought()) - before == len(held)


def test_a_machine_whose_reply_never_came_is_adopted_by_its_key(tmp_path: Path) -> None:
    """The gap that costs money: the market has sold, and we were killed before we heard of it."""
    script = tmp_path / "faults.json"
    script.write_text(
        json.dumps([{"kind": "hang_after", "endpoint": "create", "calls": [1], "seconds": 30}])
    )
    with market(faults=script, cwd=tmp_path) as vast:
        desk = Desk(vast, tmp_path / "home")
        with desk.start(*RENT, "--name", "june") as renting:
            key = renting.hear(KEY.pattern).group()
            [sold] = wait_for(lambda: vast.instances() or None, "the market to sell")
            renting.kill()

        [shown] = desk.ps("--cached")
        assert (shown["state"], shown["instance_id"]) == ("intended", None)
        shown = settled(desk, key)
        assert shown["instance_id"] == str(sold["id"])
        running = wait_for(
            lambda: (r := settled(desk, key))["state"] == "running" and r, "the workload to answer"
        )
        assert running["endpoints"]
        assert desk.gp4u("release", "june").code == 0
        assert vast.instances() == []
        assert [b.label for b in vast.bought()] == [key], "one machine, bought once"


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["ctrl-c", "sigterm"]
)
def test_an_interrupted_rent_says_the_key_again(
    vast: Market, desk: Desk, number: signal.Signals, code: int
) -> None:
    """What may be paid for must be in the last lines that one sees."""
    with desk.start(*RENT, "--name", "june", "-o", "json") as renting:
        key = renting.hear(KEY.pattern).group()
        renting.hear("confirmed")
        done = renting.end(number)
    assert (done.code, done.out) == (code, "")
    last_words = done.err[done.err.index("interrupted") :]
    assert f"gp4u release {key}" in last_words
    assert "Traceback" not in done.err
    [shown] = desk.ps("--cached")
    assert (shown["key"], shown["state"]) == (key, "starting")


def test_a_rent_without_an_answer_is_9_and_the_key_is_on_both_streams(tmp_path: Path) -> None:
    """A script must see the difference to a failure: this one may cost money."""
    script = tmp_path / "faults.json"
    script.write_text(
        json.dumps([{"kind": "hang_after", "endpoint": "create", "calls": [1], "seconds": 30}])
    )
    with market(faults=script, cwd=tmp_path) as vast:
        desk = Desk(vast, tmp_path / "home", GP4U_RENT_TIMEOUT_S="1")
        done = desk.gp4u(*RENT, "--no-wait", "-o", "json")
        assert done.code == 9, done
        key = done.json["key"]
        assert done.json["state"] == "intended"
        assert f"gp4u release {key}" in done.err
        [sold] = vast.instances()
        assert settled(desk, key)["instance_id"] == str(sold["id"])
