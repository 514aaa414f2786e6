"""Pods of two containers on one rented machine, at a market that runs them side by side."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gp4u.rentals.rental import Rental
from tests.kube.controlplane import ControlPlane
from tests.kube.manifests import PROGRAM, Manifest, pod, pod_spec, sh
from tests.kube.programs import Process, free_port
from tests.kube.town import Ground, town, until

pytestmark = pytest.mark.timeout(300)
NODE = "gp4u-akash"
BOTH = ("helper", "main")
SERVE = " ".join(PROGRAM)


def two(helper: str, main: str, **more: Any) -> Manifest:
    """Return the spec of a pod whose second container has the GPU; each runs a line of shell."""
    # At this market a command takes several calls first, and its limit is a call in 1.2 s.
    spec = pod_spec(NODE, sh(main), ports=[8000], env={"WHO": "main"}, **more)
    env = {"WHO": "helper"}
    (first,) = pod_spec(NODE, sh(helper), ports=[9000], gpus=0, env=env)["containers"]
    command = ["sh", "-c", 'test "$WHO" = helper']
    probe = {"exec": {"command": command}, "periodSeconds": 20, "timeoutSeconds": 20}
    return spec | {
        "containers": [first | {"name": "helper", "livenessProbe": probe}, *spec["containers"]]
    }


@pytest.fixture(scope="module")
def akash(plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    """A node that rents from Akash alone, and a namespace on it."""
    with town(plane, tmp_path_factory.mktemp("akash"), node=NODE, markets=("akash",)) as running:
        yield running.namespace("containers")


def test_each_of_two_containers_is_reached_by_its_name(akash: Ground, tmp_path: Path) -> None:
    """Logs, commands, files, usage and ports: what is asked of one never comes from the other."""
    line = 'echo "I am $WHO"; exec ' + SERVE
    akash.apply(pod("pair", two(line, line), annotations={"exec": "true"}))
    ready = akash.wait_ready("pair")
    states = ready["status"]["containerStatuses"]
    assert [each["name"] for each in states] == [*BOTH]
    assert len({each["containerID"] for each in states}) == 2
    (rental,) = _rentals(akash, ready)
    for name in BOTH:
        log = akash.admitted("logs", "pair", "-c", name)
        assert [each for each in log.splitlines() if "I am" in each] == [f"I am {name}"]
        said = akash.admitted("exec", "pair", "-c", name, "--", "sh", "-c", "echo $WHO")
        assert said == f"{name}\n"
        sent = tmp_path / name
        sent.write_text(name)
        where = akash.admitted("exec", "pair", "-c", name, "--", "pwd").strip()
        akash.admitted("cp", "-c", name, str(sent), f"pair:{where}/mine")
    for name in BOTH:
        assert akash.admitted("exec", "pair", "-c", name, "--", "cat", "mine") == name
    assert "I am helper" in akash.town.gp4u("logs", rental.key, "-c", "helper").out
    done = akash.town.gp4u("exec", rental.key, "-c", "helper", "--", "sh", "-c", "echo $WHO")
    assert done.out == "helper\n", done
    assert _answers(akash, 9000, tmp_path)
    assert _answers(akash, 8000, tmp_path)

    def sampled() -> bool:
        raw = akash.plane.admitted("get", "--raw", f"/api/v1/nodes/{NODE}/proxy/stats/summary")
        (one,) = [each for each in json.loads(raw)["pods"] if each["podRef"]["name"] == "pair"]
        return {each["name"] for each in one["containers"] if "cpu" in each} == {*BOTH}

    until(sampled, "the usage of both", akash.town.said)
    again = akash.get("pod", "pair")["status"]["containerStatuses"]
    assert {each["restartCount"] for each in again} == {0}, "its probe was put to the helper"


def test_a_pod_ends_with_the_code_of_each_of_its_containers(akash: Ground) -> None:
    """The machine is kept for the one that still works, and both logs outlive it."""
    helper = 'echo "helper begins"; sleep 6; echo "helper ends"; exit 3'
    akash.apply(pod("job", two(helper, 'echo "main is quick"', restart="Never")))
    done = akash.wait_phase("job", "Failed")
    states = {each["name"]: each["state"] for each in done["status"]["containerStatuses"]}
    codes = {name: state["terminated"]["exitCode"] for name, state in states.items()}
    assert codes == {"helper": 3, "main": 0}

    def released() -> bool:
        return not any(each.is_live for each in _rentals(akash, done))

    until(released, "its machine to be released", akash.town.said)
    assert akash.admitted("logs", "job", "-c", "helper") == "helper begins\nhelper ends\n"
    assert akash.admitted("logs", "job", "-c", "main") == "main is quick\n"


def _rentals(ground: Ground, pod: Manifest) -> list[Rental]:
    """Return the rentals that there were for a pod."""
    uid = pod["metadata"]["uid"]
    return [each for each in ground.town.rentals() if each.owner == f"pod:{uid}"]


def _answers(ground: Ground, number: int, folder: Path) -> bool:
    """Whether the pod's port answers through kubectl."""
    port = free_port()
    words = [ground.plane.kubectl_path, "-n", ground.name, "port-forward", "pod/pair"]
    env = ground.plane.kubectl_env()
    forward = Process(f"forward-{number}", [*words, f"{port}:{number}"], env=env, folder=folder)
    forward.start()
    try:
        forward.hear(r"Forwarding from 127\.0\.0\.1")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=20) as reply:
            return bool(json.load(reply)["status"] == "ok")
    finally:
        forward.kill()
