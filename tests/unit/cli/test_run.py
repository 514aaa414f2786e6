"""What ends a command while it waits for somebody who types."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ASKS = """
from gp4u.cli.run import confirmed, run
from gp4u.cli.screen import Screen

screen = Screen()

async def job():
    confirmed(screen, "release 2 rentals?", yes=False)

run(job(), screen)
"""


def sleeps(pid: int) -> bool:
    """Tell whether a process waits for something."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "S"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_question_is_left_by_the_first_signal(number: signal.Signals, code: int) -> None:
    """Whoever is asked whether to release, and presses Ctrl-C, wants out, and not to be asked on
    until it is pressed again."""
    ours, theirs = os.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", ASKS], stdin=theirs, stdout=theirs, stderr=theirs
    ) as asking:
        try:
            os.close(theirs)
            told = b""
            while b"[y/N]" not in told:
                told += os.read(ours, 1000)
            while not sleeps(asking.pid):
                pass  # it has printed the question, and does not wait for an answer yet
            asking.send_signal(number)
            assert asking.wait(10) == code
        finally:
            asking.kill()
            os.close(ours)
