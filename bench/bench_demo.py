"""How long a newcomer waits: from the demo's command to two healthy endpoints, in `process`.

A whole process, timed from outside: the market starts, offers are fetched and scored, a machine is
rented and boots, a program starts and answers its probes. Most of it is the simulated boot, which
is drawn from the same seed each time. The yardstick is a bare start of the same interpreter in the
same run: it says how busy the machine was. The bound is in seconds, for it is a person who waits.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

BOUND_S = 15.0
ROUNDS = 3
READY = "Instance ready"
DEMO = (str(Path(sys.executable).with_name("gp4u")), "demo", "--once", "-o", "json")


def _bare_s() -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", "pass"], check=True)
    return time.perf_counter() - began


def _demo_s() -> float:
    """Return the time to the line that says that both services answer their probes."""
    began = time.perf_counter()
    ready_s = None
    with subprocess.Popen(
        [*DEMO, "--runtime", "process"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        for line in running.stderr:
            if READY in line:
                ready_s = time.perf_counter() - began
        answer = json.loads(running.stdout.read())
    assert running.returncode == 0
    assert [each["status"] for each in answer["endpoints"]] == [200, 200]
    assert answer["leaked"] == 0
    assert ready_s is not None
    return ready_s


def main() -> int:
    """Print the measure as one line of JSON; 1 if it is over its bound."""
    rounds = [(_demo_s(), _bare_s()) for _ in range(ROUNDS)]
    ours_s = statistics.median(ours for ours, _ in rounds)
    bare_s = statistics.median(bare for _, bare in rounds)
    ok = ours_s <= BOUND_S
    print(
        json.dumps(
            {
                "name": "demo to healthy endpoints",
                "ours": round(ours_s, 2),
                "yardstick": round(bare_s, 4),
                "unit": "s",
                "ratio": round(ours_s / bare_s, 1),
                "bound": BOUND_S,
                "ok": ok,
            }
        )
    )
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
