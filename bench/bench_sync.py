"""One look at four markets with 350,000 GPUs: how long, how much memory, and does the loop live?

The client is a fresh process that opens the app as every command does and takes one snapshot of the
book, which asks all four markets at once and, since nobody has asked before, fetches everything.
Two variants, each with its markets in a process of its own:

`gpus`: the four simulators, drawn until their hosts have as many GPUs as the first seed promises of
each market, answer in their natural rows. A row of io.net is a configuration and stands for many
GPUs; the others show the head of a long list.

`rows`: as many rows as GPUs. No simulator of a market answers so; canned bodies do, and io.net's
rows are cut to what an offer needs, for its list comes as one body, and one body has a cap.

Bounds: peak memory of the client, and the longest time for which its event loop kept a task waiting
that wants a turn every millisecond. Beside them stand the same ticker in an idle loop, which says
how busy this machine was, and the memory before the first call. Nobody may be left out.
"""

from __future__ import annotations

import asyncio
import gc
import json
import resource
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

MOST_MIB = 400.0
MOST_STALL_MS = 50.0
TICK_S = 0.001
SCHEDSTAT = Path("/proc/thread-self/schedstat")
"""Second number: nanoseconds in line for a core. Source: Linux, Documentation/scheduler."""
IDLE_S = 1.0
GPUS: Mapping[str, int] = {"vastai": 10_000, "ionet": 327_000, "akash": 5_000, "render": 8_000}
"""What the first seed promises of each market."""
OFFERS_PER_GPU = 0.75
"""Of what simulated hosts list; a little more than it takes, and checked."""
ROWS: Mapping[str, int] = {"vastai": 64, "ionet": 336_000, "akash": 35_000, "render": 1_000}
"""Of io.net and Render rows; of the others what the recorded simulator lists: Vast.ai shows 64 of
its rows a page, and two in five of Akash's hosts have a kind of card free that has a price."""


def _kept_from_a_core_s() -> float:
    """Return how long this thread was ready to run and the machine ran others; 0 where untold."""
    try:
        return int(SCHEDSTAT.read_text(encoding="ascii").split()[1]) / 1e9
    except OSError:
        return 0.0


class Ticker:
    """Wants a turn every millisecond, and notes the longest that the loop made it wait for one.

    Time in which other programs had the cores is not the loop's doing, and is left out.
    """

    def __init__(self) -> None:
        self.longest_s = 0.0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(self._tick())
            await asyncio.sleep(2 * TICK_S)
            try:
                yield
                await asyncio.sleep(2 * TICK_S)  # what it waits for now counts as well
            finally:
                task.cancel()

    async def _tick(self) -> None:
        now = asyncio.get_running_loop().time
        last, last_kept = now(), _kept_from_a_core_s()
        while True:
            await asyncio.sleep(TICK_S)
            at, kept = now(), _kept_from_a_core_s()
            self.longest_s = max(self.longest_s, at - last - TICK_S - (kept - last_kept))
            last, last_kept = at, kept


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


async def _look() -> dict[str, object]:
    """Take one snapshot with the variables on standard input; return what it cost."""
    from gp4u.app import open_app
    from gp4u.model import Requirements
    from gp4u.providers.contract import Query
    from gp4u.settings import load_settings

    folder = Path.cwd()
    environ = {**json.load(sys.stdin), "GP4U_DATABASE_URL": f"sqlite:///{folder}/ledger.db"}
    idle, busy = Ticker(), Ticker()
    async with open_app(load_settings(environ, folder)) as app:
        gc.freeze()  # as every command does
        async with idle.running():
            await asyncio.sleep(IDLE_S)
        before_mib, began, cpu_began = _peak_mib(), time.perf_counter(), time.process_time()
        async with busy.running():
            wanted = Requirements(verified_only=False)
            snapshot = await app.book.snapshot(Query(requirements=wanted))
        wall_s, cpu_s = time.perf_counter() - began, time.process_time() - cpu_began
    return {
        "offers": {note.provider: note.offers for note in snapshot.sources},
        "errors": [note.error for note in snapshot.sources if note.error],
        "wall_s": round(wall_s, 2),
        "cpu_s": round(cpu_s, 2),
        "peak_mib": round(_peak_mib(), 1),
        "before_mib": round(before_mib, 1),
        "stall_ms": round(busy.longest_s * 1e3, 1),
        "idle_ms": round(idle.longest_s * 1e3, 1),
    }


async def _simulate() -> None:
    """Run the simulators until standard input ends; print variables and GPUs as a line."""
    from gp4u.sim.serve import simulator

    environ: dict[str, str] = {}
    gpus = 0
    async with AsyncExitStack() as stack:
        for provider, wanted in GPUS.items():
            offers = round(wanted * OFFERS_PER_GPU)
            market = await stack.enter_async_context(simulator(provider, offers=offers))
            has = sum(machine.gpu_count for machine in market.world.machines)
            assert has >= wanted, f"{provider} has only {has} GPUs"
            environ |= market.env
            gpus += has
        print(json.dumps({"environ": environ, "behind": f"{gpus} GPUs"}), flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


async def answer_from_cans(wanted: Mapping[str, int]) -> None:
    """Answer with large bodies until standard input ends; print the variables as a line.

    `wanted` is as `ROWS`.
    """
    from bodies import canned, ionet_list, recorded, render_pages

    cans: dict[str, list[bytes]] = {}
    environ: dict[str, str] = {}
    origin = "http://127.0.0.1:{port}"
    for provider, rows in wanted.items():
        small = provider in ("ionet", "render")
        said = await recorded(provider, offers=2_000 if small else rows)
        for path, body in said.bodies.items():
            bodies = [body]
            if path.endswith("/caas/hardware"):
                bodies = [ionet_list(body, rows, lean=True)]
            elif path.endswith("/compute/offers"):
                bodies = render_pages(body, rows)
            cans[f"/{provider}{path}"] = bodies
        environ |= {
            name: value.replace(said.origin, f"{origin}/{provider}")
            for name, value in said.environ.items()
        }
    async with canned(cans) as port:
        told = {name: value.replace("{port}", str(port)) for name, value in environ.items()}
        print(json.dumps({"environ": told, "behind": "a row per GPU"}), flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


def _measured(markets: str) -> dict[str, object]:
    """Start the markets of a variant and then a client; return what its look cost."""
    with (
        subprocess.Popen(
            [sys.executable, __file__, markets],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as serving,
        TemporaryDirectory() as folder,
    ):
        assert serving.stdout is not None
        assert serving.stdin is not None
        told = json.loads(serving.stdout.readline())
        look = subprocess.run(
            [sys.executable, __file__, "look"],
            input=json.dumps(told["environ"]),
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            cwd=folder,
        )
        serving.stdin.close()
    found: dict[str, object] = json.loads(look.stdout)
    return {"behind": told["behind"], **found}


def _report(variant: str, markets: str) -> bool:
    cost = _measured(markets)
    peak, stall, offers = cost["peak_mib"], cost["stall_ms"], cost["offers"]
    assert isinstance(peak, float)
    assert isinstance(stall, float)
    assert isinstance(offers, dict)
    everybody = not cost["errors"] and all(offers.get(provider) for provider in GPUS)
    ok = everybody and peak <= MOST_MIB and stall <= MOST_STALL_MS
    bounds = {"most_mib": MOST_MIB, "most_stall_ms": MOST_STALL_MS, "ok": ok}
    print(json.dumps({"name": f"sync of four markets, {variant}", **cost, **bounds}), flush=True)
    return ok


def main() -> int:
    """Print what each look cost as a line of JSON; 1 if a bound is missed."""
    match sys.argv[1:]:
        case ["simulators"]:
            asyncio.run(_simulate())
            return 0
        case ["cans"]:
            asyncio.run(answer_from_cans(ROWS))
            return 0
        case ["look"]:
            print(json.dumps(asyncio.run(_look())))
            return 0
    oks = [_report("gpus", "simulators"), _report("rows", "cans")]
    return 0 if all(oks) else 1


if __name__ == "__main__":
    sys.exit(main())
