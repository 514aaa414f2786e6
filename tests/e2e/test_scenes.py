"""`gp4u render` as a person uses it, against the simulated proposal in a process of its own.

The finer points of a lost reply and of a cancel that is not heeded run on a virtual clock in
`tests/unit/cli/test_scenes.py`.
"""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.processes import KEY, Desk, Markets, markets, wait_for

START = ("render", "start", "https://scenes.example/a.orbx", "--engine", "octane")


@pytest.fixture
def farm(tmp_path: Path) -> Iterator[Markets]:
    """A render market of this test's own, so that its bill is this test's too."""
    with markets("render", flavor="legacy", cwd=tmp_path) as running:
        yield running


@pytest.fixture
def desk(farm: Markets, tmp_path: Path) -> Desk:
    """A user of it."""
    return Desk(farm, tmp_path / "home")


def jobs(desk: Desk) -> list[dict[str, Any]]:
    """Return what `render ls` shows."""
    done = desk.gp4u("render", "ls", "-o", "json")
    assert done.code == 0, done
    found: list[dict[str, Any]] = done.json
    return found


def test_a_scene_is_rendered_to_its_last_frame_and_costs_what_the_meter_says(
    tmp_path: Path,
) -> None:
    """From one command to the film; the list and the market's own meter agree with what it says."""
    with markets("render", flavor="legacy", cwd=tmp_path) as farm:
        desk = Desk(farm, tmp_path / "home")
        done = desk.gp4u(*START, "--frames", "1-9:2", "--wait", "-o", "json")
        assert done.code == 0, done
        frames = [int(n) for n in re.findall(r"(\d)/5 frames", done.err)]
        assert frames == sorted(frames)
        assert len(set(frames)) > 2, "frame by frame, not all at once"
        found = KEY.search(done.err)
        assert found is not None
        film = done.json
        assert (film["key"], film["state"]) == (found.group(), "completed")
        assert (film["frames_done"], film["frames_total"]) == (5, 5)
        assert jobs(desk) == [film]
        assert desk.ps("--all") == [], "it is no rental"
    charged = farm.charged()["render"]
    assert [each.open for each in charged.contracts] == [False]
    assert charged.total_usd.quantize(Decimal("0.000001")) == Decimal(film["cost_usd"]) > 0


def test_after_a_kill_the_job_is_found_by_its_key_and_can_be_ended(tmp_path: Path) -> None:
    """The gap that costs money: the market has the scene, and we were killed before we heard."""
    script = tmp_path / "faults.json"
    script.write_text(
        json.dumps([{"kind": "hang_after", "endpoint": "create", "calls": [1], "seconds": 60}])
    )
    with markets("render", flavor="legacy", faults=script, cwd=tmp_path) as farm:
        desk = Desk(farm, tmp_path / "home")
        with desk.start(*START, "--frames", "1-100000") as starting:
            key = starting.hear(KEY.pattern).group()
            [lost] = wait_for(lambda: jobs(desk) or None, "the market to have the scene")
            starting.kill()
        assert (lost["key"], lost["frames_total"]) == (key, 100_000)
        assert lost["job_id"] not in starting.said, "its reply never came"

        done = desk.gp4u("render", "cancel", key, "-o", "json")
        assert done.code == 0, done
        [ended] = done.json
        assert (ended["job_id"], ended["state"]) == (lost["job_id"], "cancelled")
        assert jobs(desk) == [ended]
    [sold] = farm.charged()["render"].contracts
    assert (sold.instance_id, sold.open) == (lost["job_id"], False)


def test_ctrl_c_leaves_the_job_and_says_what_cancels_it(desk: Desk) -> None:
    """The command in the last lines is the one that works."""
    with desk.start(*START, "--frames", "1-100000", "--wait") as waiting:
        key = waiting.hear(KEY.pattern).group()
        waiting.hear("submitted")
        waiting.hear("0/100000 frames")
        done = waiting.end(signal.SIGINT)
    assert (done.code, done.out) == (130, "")
    last_words = done.err[done.err.index("interrupted") :]
    assert "goes on" in last_words
    assert "Traceback" not in done.err
    [command] = re.findall(r"gp4u (render cancel \S+)", last_words)
    assert key in command
    [still] = wait_for(lambda: jobs(desk) or None, "the job to be listed")
    assert still["state"] in ("queued", "assigned", "rendering")
    assert desk.gp4u(*command.split()).code == 0
    assert [each["state"] for each in jobs(desk)] == ["cancelled"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ((*START, "--frames", "9-1"), "--frames: '9-1'"),
        ((*START, "--frames", "240"), "FIRST-LAST"),
        ((*START, "--frames", "1-2", "--tier", "4"), "--tier: 4"),
        ((*START, "--frames", "1-2", "--max-obh", "0"), "--max-obh: '0'"),
        ((*START, "--frames", "1-2", "--priority", "NOW!"), "--priority: 'NOW!'"),
        ((*START[:3], "--engine", "arnold", "--frames", "1-2"), "octane, redshift, cycles"),
        (START, "--frames"),
        (("render", "start", "no such", *START[3:], "--frames", "1-2"), "SCENE: 'no such'"),
        (("render", "cancel"), "JOB|KEY"),
        (("sim", "serve", "--flavor", "vanilla"), "--flavor: 'vanilla'"),
        (("sim", "serve", "--provider", "akash", "--flavor", "legacy"), "--flavor"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else "",
)
def test_bad_input_names_the_flag_and_sends_nothing(
    tmp_path: Path, line: tuple[str, ...], said: str
) -> None:
    """Exit 2, the value and its bound, no traceback; and no key is needed to be told."""
    done = Desk(None, tmp_path).gp4u(*line)
    assert (done.code, done.out) == (2, "")
    assert said in done.err
    assert "Traceback" not in done.err
    assert not (tmp_path / "ledger.db").exists()


def test_a_word_that_means_no_job_is_refused_and_a_refused_key_is_4(desk: Desk) -> None:
    """The two mistakes that only the market can tell."""
    done = desk.gp4u("render", "cancel", "job_nope")
    assert (done.code, "JOB|KEY: 'job_nope'" in done.err) == (2, True)
    done = desk.gp4u("render", "ls", RENDER_API_KEY="canary-not-the-key")
    assert done.code == 4
    assert "RENDER_API_KEY" in done.err
    assert "canary" not in done.out + done.err


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"RENDER_API_KEY": "pk_x"},
        {
            "RENDER_API_KEY": "pk_x",
            "RENDER_API_SECRET": "sk_x",
            "RENDER_API_FLAVOR": "dispersed",
        },
    ],
    ids=["no-key", "no-secret", "dispersed"],
)
def test_without_the_proposal_it_says_what_to_set_and_that_nobody_speaks_it(
    tmp_path: Path, environ: dict[str, str]
) -> None:
    """Exit 4 for each command: nothing was sent to the real market."""
    desk = Desk(None, tmp_path, **environ)
    for words in ((*START, "--frames", "1-2"), ("render", "ls"), ("render", "cancel", "x")):
        done = desk.gp4u(*words)
        assert (done.code, done.out) == (4, "")
        assert "RENDER_API_FLAVOR=legacy" in done.err
        assert "no service is known to speak it" in done.err
