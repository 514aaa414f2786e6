"""The virtual node: a thousand pods at once, rest, a stream of changes, logs and commands.

Everything is real but the market: etcd, an API server with RBAC, `gp4u node run` as its own
process, kubectl. The market is simulated, in a process of its own, and its pace and its boot times
are lifted (`node_market.py`, `node_unpaced.py`), for they are what a real thousand would wait for.
Pods are created already bound, by 32 connections; when one runs is told by a watch. The yardsticks
stand in the same run: for the pods a client that only patches the same statuses (`node_direct.py`),
for streams a server that only writes (`node_bare.py`), each on the same API server.

It needs a network of its own (`scripts/namespace.sh`), which it enters by itself, and the programs
that `make controlplane` builds.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sqlite3
import sys
import tempfile
from collections.abc import Awaitable, Callable
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from node_crowd import Crowd
    from node_scene import Cost, Scene

    from gp4u.kube.client import KubeClient

ROOT: Final = Path(__file__).parents[1]
INSIDE: Final = "GP4U_BENCH_INSIDE"
PODS: Final = int(os.environ.get("GP4U_BENCH_PODS", "1000"))
PARTS: Final = ("crowd", "rest", "changes", "streams")
WANTED: Final = os.environ.get("GP4U_BENCH_ONLY", ",".join(PARTS)).split(",")
"""For work on one part: minutes less. Pods are made for each."""
OFFERS: Final = 1900
DIRECT_ROUNDS: Final = 3
"""Each takes ten seconds, in which a shared machine may be slow or quick."""
CROWD_S: Final = 240.0
"""A crowd that takes longer fails."""
REST_S: Final = 30.0
EVENTS_TOLD_S: Final = 60.0
EVENTS_PER_S: Final = 200
EVENTS_S: Final = 30.0
SHOWN: Final = 10
LEAST_OF_DIRECT: Final = 0.5
MOST_MIB: Final = 300.0
MOST_MS: Final = 250.0
LEAST_OF_BARE_LOG: Final = 0.8
LEAST_MB_PER_S: Final = 100.0
MOST_OF_BARE_EXEC: Final = 2.0
FIRST_DEADLINE_S: Final = 1_000_000

Line = dict[str, object]


def _line(
    name: str, ours: float, unit: str, *, beside: float | None = None, ratio: float | None = None,
    bound: float | None = None, ok: bool = True,
) -> Line:  # fmt: skip
    return {
        "name": name,
        "ours": round(ours, 2),
        "yardstick": None if beside is None else round(beside, 2),
        "unit": unit,
        "ratio": None if ratio is None else round(ratio, 2),
        "bound": bound,
        "ok": ok,
    }


def _p99(values: list[float]) -> float:
    return sorted(values)[max(0, -(-len(values) * 99 // 100) - 1)]


async def _gather(
    client: KubeClient, namespace: str, node: str, then: Callable[[Crowd], Awaitable[None]]
) -> tuple[Crowd, float]:
    """Create the pods of a node, and wait until all of them run; return how long that took."""
    from node_crowd import Crowd

    crowd = Crowd(client, namespace, node)
    async with asyncio.TaskGroup() as group:
        watching = group.create_task(crowd.watch())
        await crowd.watching.wait()
        began = asyncio.get_running_loop().time()
        async with asyncio.timeout(CROWD_S):
            await crowd.create(PODS)
            await crowd.wait_running(PODS)
        took_s = asyncio.get_running_loop().time() - began
        await then(crowd)
        watching.cancel()
    return crowd, took_s


async def _rest(scene: Scene, cost: Cost, name: str) -> list[Line]:
    """Return what the node does while nothing happens."""
    calls, cpu_s = scene.calls(), cost.cpu_s
    await asyncio.sleep(REST_S)
    used_s = cost.cpu_s - cpu_s
    made = scene.calls() - calls
    print(f"at rest, {name}: {dict(made)}", file=sys.stderr)
    return [
        _line(f"API calls at rest, {name}", made.total() * 60 / REST_S, "a minute"),
        _line(f"CPU at rest, {name}", 100 * used_s / REST_S, "% of a core"),
    ]


async def _change(crowd: Crowd, client: KubeClient) -> Line:
    """Change pods at a rate; return how long until those changes that show in a status were seen.

    One in `SHOWN` is a change of the spec, which the node answers with its status; the others are
    of annotations, which it takes in as well. If each had to be written back, the API server would
    be asked for 400 writes a second, and two cores do not give it those (see `pods to Running`).
    """
    from gp4u.kube import paths

    loop, sent = asyncio.get_running_loop(), list[tuple[str, int, float]]()
    pods = list(crowd.pods.items())

    async def patch(number: int) -> None:
        uid, pod = pods[number % len(pods)]
        path = paths.pod(crowd.namespace, pod["metadata"]["name"])
        if number % SHOWN:
            turn = {"annotations": {"example.com/turn": str(number)}}
            await client.patch(path, {"metadata": turn})
            return
        deadline = FIRST_DEADLINE_S - number  # it may only ever come down
        at = loop.time()
        made = await client.patch(path, {"spec": {"activeDeadlineSeconds": deadline}})
        sent.append((uid, made["metadata"]["generation"], at))

    gc.collect()
    gc.freeze()  # else this process waits for its own garbage, a quarter of a second at a time
    began = loop.time()
    async with asyncio.TaskGroup() as group:
        for number in range(int(EVENTS_PER_S * EVENTS_S)):
            await asyncio.sleep(max(0.0, began + number / EVENTS_PER_S - loop.time()))
            group.create_task(patch(number))
    took_s = loop.time() - began
    await crowd.wait_seen((uid, generation) for uid, generation, _ in sent)
    waits = [1e3 * (crowd.seen[uid, generation] - at) for uid, generation, at in sent]
    per_s = EVENTS_PER_S * EVENTS_S / took_s
    print(f"changes: {per_s:.0f}/s, p50 {median(waits):.0f} ms", file=sys.stderr)
    ok = _p99(waits) <= MOST_MS
    return _line(
        f"{per_s:.0f} changes a second, to the status", _p99(waits), "ms p99", bound=MOST_MS, ok=ok
    )


def _patches(crowd: Crowd) -> list[list[dict[str, Any]]]:
    """Return the statuses that the node wrote of each pod, as patches."""
    from gp4u.kubelet.status.status import status_patch

    found = []
    for uid, seen in crowd.statuses.items():
        made = [status_patch(crowd.pods[uid] | {"status": old}, new) for old, new in pairwise(seen)]
        found.append([each["status"] for each in made if each is not None])
    return found


async def _node(
    scene: Scene, client: KubeClient
) -> tuple[list[Line], list[list[dict[str, Any]]], float]:
    """Return the lines of the node alone, the patches of each pod, and the pods a second."""
    from node_scene import NODE, Cost
    from node_streams import streams

    node = scene.node(scene.open_market())
    node.start()
    scene.wait_ready(node)
    cost = Cost(node.pid)
    lines = await _rest(scene, cost, "no pods") if "rest" in WANTED else []
    before, cpu_s, used_s = scene.calls(), cost.cpu_s, 0.0
    changed: list[Line] = []
    patches: list[list[dict[str, Any]]] = []

    async def then(crowd: Crowd) -> None:
        nonlocal used_s
        used_s = cost.cpu_s - cpu_s
        await asyncio.sleep(10)  # the last Events are still told
        made = scene.calls() - before
        print(f"crowd: {dict(made.most_common(4))}, CPU {used_s:.1f} s", file=sys.stderr)
        patches.extend(_patches(crowd))
        if {"rest", "changes"} & {*WANTED}:
            await asyncio.sleep(EVENTS_TOLD_S)
        if "rest" in WANTED:
            lines.extend(await _rest(scene, cost, f"{PODS} pods"))
        if "changes" in WANTED:
            changed.append(await _change(crowd, client))

    scene.namespace("crowd")
    crowd, took_s = await _gather(client, "crowd", NODE, then)
    lines += changed
    lines.append(
        _line("memory, at most", cost.peak_mib, "MiB", bound=MOST_MIB, ok=cost.peak_mib <= MOST_MIB)
    )
    if "streams" in WANTED:
        lines += _stream_lines(await asyncio.to_thread(streams, scene))
    with sqlite3.connect(scene.ledger) as db:
        owners = dict(db.execute("select key, owner from rentals").fetchall())
    node.end()
    waits = []
    for label, at in scene.close_market().items():
        uid = owners.get(label, "").removeprefix("pod:")
        if uid in crowd.created:
            waits.append(at - crowd.created[uid])
    lines.append(_line("bind to rent call", median(waits), "s p50"))
    lines.append(_line("bind to rent call", _p99(waits), "s p99"))
    return lines, patches, PODS / took_s


def _stream_lines(found: dict[str, dict[str, float]]) -> list[Line]:
    log, trip = found["log"], found["exec"]
    share, longer = log["node"] / log["bare"], trip["node"] / trip["bare"]
    enough = log["node"] >= LEAST_MB_PER_S or share >= LEAST_OF_BARE_LOG
    quick = longer <= MOST_OF_BARE_EXEC
    return [
        _line("kubectl logs -f", log["node"], "MB/s", beside=log["bare"], ratio=share,
              bound=LEAST_MB_PER_S, ok=enough),
        _line("kubectl exec true", trip["node"], "ms p50", beside=trip["bare"], ratio=longer,
              bound=MOST_OF_BARE_EXEC, ok=quick),
    ]  # fmt: skip


async def _direct(scene: Scene, client: KubeClient, patches: list[list[dict[str, Any]]]) -> float:
    """Return how many pods a second have their statuses by a client that does nothing else."""
    bodies = scene.folder / "bodies.json"
    bodies.write_text(json.dumps(patches))
    sizes = [len(json.dumps(each)) for pod in patches for each in pod]
    print(f"patches: {len(sizes)}, of {median(sizes):.0f} bytes", file=sys.stderr)

    async def nothing(crowd: Crowd) -> None:
        del crowd

    found = []
    for number in range(DIRECT_ROUNDS):
        name = f"direct-{number}"
        scene.plane.apply({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}})
        scene.namespace(name)
        words = [str(scene.kubeconfig), name, name, str(bodies)]
        direct = scene.python(name, "node_direct.py", *words)
        direct.start()
        direct.hear("watching")
        _, took_s = await _gather(client, name, name, nothing)
        direct.kill()
        found.append(PODS / took_s)
    print(f"direct: {[round(each) for each in found]} pods/s", file=sys.stderr)
    return median(found)


async def _measure() -> list[Line]:
    from node_scene import Scene
    from tests.kube.controlplane import control_plane
    from tests.kube.programs import require_namespace

    require_namespace()
    with tempfile.TemporaryDirectory() as folder, control_plane(Path(folder)) as plane:
        scene = Scene(plane, Path(folder), OFFERS)
        async with scene.client() as client:
            lines, patches, ours = await _node(scene, client)
            direct = await _direct(scene, client, patches)
    ratio = ours / direct
    crowd = _line(
        f"{PODS} pods to Running", ours, "pods/s", beside=direct, ratio=ratio,
        bound=LEAST_OF_DIRECT, ok=ratio >= LEAST_OF_DIRECT,
    )  # fmt: skip
    return [crowd, *lines]


def main() -> int:
    """Print each measure as a line of JSON; 1 if one is over its bound."""
    if INSIDE not in os.environ:
        paths = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(ROOT)]))
        os.environ |= {INSIDE: "1", "PYTHONPATH": paths}
        script = str(ROOT / "scripts" / "namespace.sh")
        os.execv(script, [script, sys.executable, __file__])  # noqa: S606 - this file again
    lines = asyncio.run(_measure())
    for line in lines:
        print(json.dumps(line))
    return 0 if all(line["ok"] for line in lines) else 1


if __name__ == "__main__":
    sys.exit(main())
