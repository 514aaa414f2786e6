"""The virtual node in bad weather: pods come and go, processes die, markets and API server fail.

A life is drawn from a seed and told by the seed alone. The judge is the market's own billing meter,
looked at every few seconds and in the end: a pod never has two machines (L2), what costs is
explained (L1, L3), nobody is forgotten (L4), phases never go back (L10), and nothing is left.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import pytest

from gp4u.sim.faults import Faults
from tests.kube_api import Cut
from tests.laws import end, held_now
from tests.unit.kubelet.cluster import Cluster, Market, Node, by, gpu_pod
from tests.virtual_loop import run_virtual

SEEDS = range(12)
LIFE_S = 900.0
SETTLE_S, LATE_WINDOW_S = "45", "180"
"""As long as the worst lag of this weather; see `tests/weathered.py`."""
RANK = {"": 0, "Pending": 0, "Running": 1, "Succeeded": 2, "Failed": 2}
UNTOLD_S = 60.0
"""A pod may be without a word for so long, while node and API server are there."""


@dataclass
class Seen:
    """What was seen of one pod so far."""

    phase: str = ""
    restarts: int = 0
    since_s: float = 0.0


@dataclass
class Outcome:
    """What came of one life; equal for equal seeds."""

    pods: int = 0
    ran: int = 0
    ended: int = 0
    lives: int = 0
    faults: int = 0
    machines: int = 0
    seen: dict[str, Seen] = field(default_factory=dict, compare=False)


class Broken(AssertionError):
    """A law is broken; names the seed."""


def live_through(seed: int, folder: Path) -> Outcome:
    """Live one seed's life, and judge it.

    Raises:
        Broken: a law is broken; the text names seed and law.
    """
    folder.mkdir(parents=True, exist_ok=True)

    async def life() -> Outcome:
        random = Random(seed)
        faults = Faults.weather(random, severity=random.uniform(0.0, 0.7))
        market = Market(seed, faults=faults, dead_start_ratio=0.03, offers=200)
        return await _live(Cluster(folder, market), random)

    try:
        return run_virtual(life, seed=seed)
    except (AssertionError, ExceptionGroup) as error:
        raise Broken(f"seed {seed}: {_first(error)}") from error


async def _live(cluster: Cluster, random: Random) -> Outcome:
    loop, outcome = asyncio.get_running_loop(), Outcome()
    until = loop.time() + LIFE_S
    users = loop.create_task(_users(cluster, random, outcome))
    environ = {"VASTAI_SETTLE_S": SETTLE_S, "VASTAI_LATE_WINDOW_S": LATE_WINDOW_S}
    while loop.time() < until:
        outcome.lives += 1
        async with cluster.node(seed=random.getrandbits(16), **environ) as node:
            stays_s = random.choice([random.uniform(1, 60), random.uniform(60, 600)])
            await _watch(cluster, node, outcome, min(until, loop.time() + stays_s))
            if random.random() < 0.6:
                await node.kill()
        await asyncio.sleep(random.uniform(0.0, 30.0))
    users.cancel()
    with suppress(asyncio.CancelledError):
        await users
    await _end(cluster, outcome, environ)
    return outcome


async def _users(cluster: Cluster, random: Random, outcome: Outcome) -> None:
    """Create and delete pods, end programs, and break the API server, again and again."""
    names = [f"p{number}" for number in range(6)]
    while True:
        await asyncio.sleep(random.uniform(0.5, 25.0))
        name = random.choice(names)
        match random.choice(["create", "create", "create", "delete", "force", "end", "server"]):
            case "create" if cluster.pod(name) is None:
                outcome.pods += 1
                cluster.api.add(_pod(name, random))
            case "delete" if cluster.pod(name) is not None:
                cluster.delete(name)
            case "force" if cluster.pod(name) is not None:
                cluster.delete(name, grace_s=0)
            case "end" if cluster.market.live:
                program = cluster.market.programs.running.get(
                    str(random.choice(cluster.market.live).id)
                )
                if program is not None:
                    program.code = random.choice([0, 0, 1, 137])
            case "server":
                await _server_trouble(cluster, random)
            case _:
                pass


def _pod(name: str, random: Random) -> dict[str, Any]:
    restart = random.choice(["Always", "OnFailure", "Never"])
    owner = random.choice([None, by("ReplicaSet"), by("Job")])
    wishes: Mapping[str, str] = random.choice(
        [{}, {}, {"gp4u.io/on-loss": "rerent"}, {"gp4u.io/interruptible": "true"}]
    )
    return gpu_pod(name, restart=restart, owner=owner, annotations=wishes)


async def _server_trouble(cluster: Cluster, random: Random) -> None:
    match random.randrange(4):
        case 0:
            cluster.api.cut(random.choice(list(Cut)))
        case 1:
            cluster.api.forget_history()
            cluster.api.cut(Cut.GONE)
        case 2:
            cluster.api.fail(
                "*", "pods", random.choice([429, 500, 503]), times=random.randint(1, 9)
            )
        case _:
            cluster.api.set_down()
            await asyncio.sleep(random.uniform(1.0, 40.0))
            cluster.api.set_down(down=False)


async def _watch(cluster: Cluster, node: Node, outcome: Outcome, until: float) -> None:
    """Judge every few seconds for as long as this process lives."""
    loop = asyncio.get_running_loop()
    quiet_since = loop.time()
    while loop.time() < until:
        await asyncio.sleep(2.9)
        assert node.is_alive, "the node ended by itself"
        held_now(cluster.market, await node.rentals())
        silent = node.informer.heard_s >= UNTOLD_S - 5  # a watch that is cut off says nothing (K2)
        if cluster.api.down or cluster.api.faults or silent:
            quiet_since = loop.time()
            cluster.api.faults[:] = [f for f in cluster.api.faults if f.left is None or f.left > 0]
        told = loop.time() - quiet_since > UNTOLD_S and not node.informer.trouble
        for pod in cluster.api.all("pods"):
            _judge_pod(pod, outcome, told=told, now_s=loop.time())


def _judge_pod(pod: Mapping[str, Any], outcome: Outcome, *, told: bool, now_s: float) -> None:
    uid, status = pod["metadata"]["uid"], pod["status"]
    seen = outcome.seen.setdefault(uid, Seen(since_s=now_s))
    phase = status.get("phase", "")
    assert RANK[phase] >= RANK[seen.phase], f"L10: {uid} went from {seen.phase} to {phase}"
    over = RANK[seen.phase] == RANK["Failed"]
    assert not over or phase == seen.phase, f"L10: {uid} left {seen.phase}"
    entries = status.get("containerStatuses", ())
    restarts = entries[0]["restartCount"] if entries else 0
    assert restarts >= seen.restarts, f"L10: {uid} has fewer restarts than before"
    if phase == "Running" and seen.phase != "Running":
        outcome.ran += 1
    if RANK[phase] == RANK["Failed"] and not over:
        outcome.ended += 1
    seen.phase, seen.restarts = phase, restarts
    if not told or now_s - seen.since_s < UNTOLD_S or phase in ("Succeeded", "Running"):
        return
    if phase == "Failed":
        code = entries[0]["state"].get("terminated", {}).get("exitCode") if entries else None
        assert status.get("reason") or code, f"L4: {uid} failed without a reason"
    elif not pod["metadata"].get("deletionTimestamp"):
        waiting = entries[0]["state"].get("waiting", {}) if entries else {}
        assert waiting.get("reason"), f"L4: {uid} is Pending without a reason"


async def _end(cluster: Cluster, outcome: Outcome, environ: Mapping[str, str]) -> None:
    """Delete every pod, let the node go on until nothing is left, and judge the books."""
    cluster.api.set_down(down=False)
    cluster.api.faults.clear()
    outcome.faults = len(cluster.market.faults.fired)
    async with cluster.node(seed=99, **environ) as node:
        await asyncio.sleep(200.0)
        for pod in cluster.api.all("pods"):
            cluster.delete(pod["metadata"]["name"])
        await cluster.until_true(lambda: not cluster.api.all("pods"), within_s=900)
        await cluster.until_true(lambda: not node.controller.all(), within_s=900)
        held_now(cluster.market, await node.rentals())
        await node.stop()
        live = [r for r in await node.rentals() if r.is_live]
        assert live == [], f"L3: no pod is left, and these are wanted: {live}"
        await end(cluster.market, node.client)
    outcome.machines = cluster.market.rents()


def _first(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"


@pytest.mark.parametrize("some", range(0, len(SEEDS), 6))
def test_no_weather_breaks_a_law_of_pods(tmp_path: Path, some: int) -> None:
    """L1 to L5, L10: in weather from calm to bad, through kills and restarts; nothing is left."""
    outcomes = [live_through(seed, tmp_path / str(seed)) for seed in SEEDS[some : some + 6]]

    assert sum(outcome.ran for outcome in outcomes) >= 20, "hardly a pod ran"
    assert sum(outcome.ended for outcome in outcomes) >= 3, "hardly a pod ended"
    assert sum(outcome.faults for outcome in outcomes) >= 50, "there was hardly any weather"
    assert sum(outcome.lives for outcome in outcomes) >= 18, "hardly a process died"


def test_a_seed_of_pods_can_be_told_again(tmp_path: Path) -> None:
    """A failing seed is worth nothing if it does not fail again."""
    once, again = (live_through(5, tmp_path / folder) for folder in ("once", "again"))

    assert once == again
