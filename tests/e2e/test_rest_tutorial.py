"""The curl lines of the tutorial, run in order at a real server over four simulated markets."""

from __future__ import annotations

import re
import signal
import subprocess
from functools import partial
from pathlib import Path

from tests.e2e.processes import Desk, markets, wait_for

PAGE = Path(__file__).parents[2] / "docs" / "tutorial" / "rest-api.md"
STEP = re.compile(
    r"^\$ (curl (?:.*\\\n|[^\n]*'\{[^']*\n)*.*)\n((?:(?!\$ |```).*\n)*)", re.MULTILINE
)
KEY = re.compile(r'"(\w+)":')


def steps() -> list[tuple[str, str]]:
    """Each curl line, with the answer that the page shows under it."""
    blocks = re.findall(r"^```\n(.*?)^```", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    return [(line, shown) for block in blocks for line, shown in STEP.findall(block)]


def test_every_curl_line_of_the_tutorial_answers_what_it_shows(tmp_path: Path) -> None:
    """A page that was right once is worse than none: its reader believes it."""
    found = steps()
    assert len(found) == PAGE.read_text("utf-8").count("\n$ curl")
    with markets(cwd=tmp_path) as town:
        desk = Desk(town, tmp_path / "desk", GP4U_LOG_LEVEL="warning")
        with desk.start("serve", "--port", "0") as server:
            url = server.hear(r"gp4u serves (http://[\d.]+:\d+)")[1]

            def run(line: str) -> str:
                done = subprocess.run(
                    ["bash", "-c", 'curl() { command curl -sS --max-time 60 "$@"; }\n' + line],
                    env=desk.env,
                    cwd=tmp_path,
                    capture_output=True,
                    text=True,
                    check=False,
                )
                assert done.returncode == 0, (line, done.stderr)
                return done.stdout

            def told(line: str, shown: str) -> bool:
                """Whether the answer has every key that the page shows, and its state."""
                answer = run(line.replace("http://localhost:8000", url))
                state = re.search(r'"state":"\w+"', shown)
                fits = set(KEY.findall(shown)) <= set(KEY.findall(answer))
                return fits and (state is None or state[0] in answer)

            for line, shown in found:
                assert KEY.findall(shown), line
                if " -d " in line or "-X DELETE" in line:  # not twice: these change something
                    assert told(line, shown), (line, shown)
                else:
                    wait_for(partial(told, line, shown), line)
            done = server.end(signal.SIGTERM)
            assert done.code == 143, done
