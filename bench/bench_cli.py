"""What `gp4u --help` and `gp4u --version` cost, against `python -c pass` of the same interpreter.

Whole processes, from the installed console script on, since that is what a shell waits for. Rounds
of all three alternate and the medians count, so that a busy machine slows them alike.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

BOUND = 5.0
ROUNDS = 21
GP4U = str(Path(sys.executable).with_name("gp4u"))
COMMANDS = {"gp4u --help": (GP4U, "--help"), "gp4u --version": (GP4U, "--version")}
BARE = (sys.executable, "-c", "pass")


def _run_ms(command: Sequence[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return (time.perf_counter() - began) * 1e3


def main() -> int:
    """Print each measure as a line of JSON; 1 if one is over its bound."""
    everything = {**COMMANDS, "bare": BARE}
    for command in everything.values():
        _run_ms(command)  # from now on all of them find their files in memory
    rounds = [
        {name: _run_ms(command) for name, command in everything.items()} for _ in range(ROUNDS)
    ]
    medians = {name: statistics.median(each[name] for each in rounds) for name in everything}
    ok = True
    for name in COMMANDS:
        ratio = medians[name] / medians["bare"]
        ok = ok and ratio <= BOUND
        print(
            json.dumps(
                {
                    "name": name,
                    "ours": round(medians[name], 2),
                    "yardstick": round(medians["bare"], 2),
                    "unit": "ms",
                    "ratio": round(ratio, 2),
                    "bound": BOUND,
                    "ok": ratio <= BOUND,
                }
            )
        )
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
