"""Logs and commands through kubectl, the API server and the node, beside the bare server's."""

from __future__ import annotations

import os
import select
import subprocess
import time
from statistics import median
from typing import Final

from node_scene import BARE, NODE, PATIENCE_S, Scene, waited
from node_tape import SIZE, SLUG
from tests.kube.manifests import Manifest, pod, pod_spec

NAMESPACE: Final = "streams"
LOG_ROUNDS: Final = 3
EXEC_ROUNDS: Final = 15
CHUNK: Final = 1 << 20
ENOUGH: Final = SIZE * 9 // 10


def streams(scene: Scene) -> dict[str, dict[str, float]]:
    """Return MB/s of a log and ms of a command, by where the pod runs: `node` or `bare`."""
    bare = scene.bare()
    bare.start()
    bare.hear("listening")
    scene.namespace(NAMESPACE)
    pods = {"node": _pod("node", NODE), "bare": _pod("bare", BARE)}
    scene.plane.apply(*pods.values(), namespace=NAMESPACE)

    def runs() -> bool:
        found = scene.plane.get("-n", NAMESPACE, "pod", "node")
        return bool(found["status"]["phase"] == "Running")

    waited(runs, "the pod that streams", lambda: scene.plane.admitted("get", "pods", "-A"))
    _trip(scene, "node")
    _trip(scene, "bare")
    trips = [{name: _trip(scene, name) for name in pods} for _ in range(EXEC_ROUNDS)]
    # The tape begins anew with each round, as nobody reads between two.
    logs = [{name: _rate(scene, name) for name in pods} for _ in range(LOG_ROUNDS)]
    bare.kill()
    return {
        "log": {name: median(each[name] for each in logs) for name in pods},
        "exec": {name: 1e3 * median(each[name] for each in trips) for name in pods},
    }


def _pod(name: str, node: str) -> Manifest:
    made = pod(name, pod_spec(node), annotations={"providers": SLUG})
    return made | {"spec": made["spec"] | {"nodeName": node}}


def _rate(scene: Scene, name: str) -> float:
    """Return the MB/s of a log, from its first byte on; the last ones may wait in some buffer."""
    words = [scene.plane.kubectl_path, "-n", NAMESPACE, "logs", "-f", "--tail=0", name]
    env = scene.plane.kubectl_env()
    with subprocess.Popen(words, env=env, stdout=subprocess.PIPE) as kubectl:
        assert kubectl.stdout is not None
        pipe = kubectl.stdout.fileno()
        read, began = len(os.read(pipe, 1)), time.monotonic()
        while read < ENOUGH and select.select([pipe], [], [], PATIENCE_S)[0]:
            piece = os.read(pipe, CHUNK)
            if not piece:
                break
            read += len(piece)
        took_s = time.monotonic() - began
        kubectl.kill()
    assert read >= ENOUGH, f"{read} of {ENOUGH} bytes came"
    return read / 1e6 / took_s


def _trip(scene: Scene, name: str) -> float:
    """Return the seconds of one `kubectl exec ... true`, from its start to its end."""
    began = time.monotonic()
    done = scene.plane.kubectl("-n", NAMESPACE, "exec", name, "--", "true")
    assert done.code == 0, done
    return time.monotonic() - began
