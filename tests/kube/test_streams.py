"""kubectl exec, cp, attach, port-forward and logs, in both protocols, on a real API server.

A kubectl of today speaks WebSocket to the API server, an old one SPDY; what reaches the node is
SPDY, WebSocket passed through, or WebSocket end to end, by version. Each test runs in both ways.

Source: KEP-4006 (kubernetes/enhancements), and the variables KUBECTL_REMOTE_COMMAND_WEBSOCKETS and
KUBECTL_PORT_FORWARD_WEBSOCKETS of kubectl 1.31 and later; checked November 2026.
"""

from __future__ import annotations

import json
import re
import ssl
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlencode

import pytest
from websockets.sync.client import connect
from websockets.typing import Subprotocol

from tests.kube.manifests import PROGRAM, pod, pod_spec, sh
from tests.kube.programs import NEWEST, OLDEST, Process, free_port
from tests.kube.terminal import Terminal
from tests.kube.town import Ground, Town, until

pytestmark = pytest.mark.timeout(240)
MODERN: dict[str, str] = {}
OLD = {
    "KUBECTL_REMOTE_COMMAND_WEBSOCKETS": "false",
    "KUBECTL_PORT_FORWARD_WEBSOCKETS": "false",
}
both_ways = pytest.mark.parametrize("how", [MODERN, OLD], ids=["websocket", "spdy"])
NAME = "shell"


@pytest.fixture(scope="module", params=[NEWEST, OLDEST])
def shell(towns: Callable[[str], Town], request: pytest.FixtureRequest) -> Iterator[Ground]:
    """A pod with a shell and a port, shared by the tests of this file: they only look into it."""
    town = towns(request.param)
    ground = town.namespace("streams")
    script = "echo ready; exec " + " ".join(PROGRAM)
    spec = pod_spec(town.node, sh(script), ports=[8000])
    ground.apply(pod(NAME, spec, annotations={"exec": "true"}))
    ground.wait_ready(NAME)
    yield ground
    ground.admitted("delete", "pod", NAME, "--wait=false")


@both_ways
def test_exec_runs_a_command_and_tells_its_exit_code(shell: Ground, how: dict[str, str]) -> None:
    """Scripts go by the code; people by both streams, kept apart."""
    script = "echo out; echo err >&2; exit 7"
    done = shell.kubectl("exec", NAME, "--", "sh", "-c", script, **how)
    assert (done.code, done.out) == (7, "out\n"), done
    assert "err\n" in done.err


@both_ways
def test_what_is_piped_in_arrives_and_ends(shell: Ground, how: dict[str, str]) -> None:
    """Without the end of stdin `kubectl exec -i ... < file` hangs for ever."""
    sent = "".join(f"{n}\n" for n in range(20_000))
    done = shell.kubectl("exec", "-i", NAME, "--", "wc", "-l", stdin=sent, **how)
    assert (done.code, done.out.strip()) == (0, "20000"), done


@both_ways
def test_a_terminal_is_one_on_the_other_side_too(shell: Ground, how: dict[str, str]) -> None:
    """An editor or a debugger needs its size, and to hear when that changes."""
    words = [shell.plane.kubectl_path, "-n", shell.name, "exec", "-it", NAME, "--", "sh"]
    env = shell.plane.kubectl_env() | how
    with Terminal(words, env=env, cwd=shell.town.folder) as terminal:
        terminal.type("tty && stty size\n")
        terminal.see(r"/dev/(pts/\d+|tty\w*)")
        terminal.see(r"30 100")
        terminal.resize(columns=120, rows=40)
        terminal.type("sleep 1; stty size\n")
        terminal.see(r"40 120")
        terminal.type("exit 3\n")
        assert terminal.end() == 3


@both_ways
def test_files_are_copied_both_ways(shell: Ground, how: dict[str, str], tmp_path: Path) -> None:
    """`kubectl cp` is tar through exec: every byte has to survive."""
    sent = tmp_path / "sent"
    sent.write_bytes(bytes(range(256)) * 4096)
    where = shell.admitted("exec", NAME, "--", "pwd").strip()
    there = f"{NAME}:{where}/copied-{len(how)}"
    done = shell.kubectl("cp", str(sent), there, **how)
    assert done.code == 0, done
    back = tmp_path / "back"
    done = shell.kubectl("cp", there, str(back), **how)
    assert done.code == 0, done
    assert back.read_bytes() == sent.read_bytes()


@both_ways
def test_a_port_is_forwarded_again_and_again(
    shell: Ground, how: dict[str, str], tmp_path: Path
) -> None:
    """One forward carries many connections, each of which ends on its own."""
    port = free_port()
    words = [shell.plane.kubectl_path, "-n", shell.name, "port-forward", f"pod/{NAME}"]
    env = shell.plane.kubectl_env() | how
    forward = Process("forward", [*words, f"{port}:8000"], env=env, folder=tmp_path)
    forward.start()
    try:
        forward.hear(r"Forwarding from 127\.0\.0\.1")
        for _ in range(5):
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=20) as reply:
                assert json.load(reply)["status"] == "ok"
    finally:
        forward.kill()


def test_logs_can_be_cut_followed_and_stamped(shell: Ground) -> None:
    """Each of kubectl's options is answered by the node alone: nobody filters after it."""
    until(lambda: "ready" in shell.admitted("logs", NAME), "the first line")
    assert "ready" not in shell.admitted("logs", NAME, "--tail=0")
    assert shell.admitted("logs", NAME, "--limit-bytes=3") == "rea"
    stamped = shell.admitted("logs", NAME, "--timestamps").splitlines()[0]
    assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z ready", stamped), stamped
    done = shell.kubectl("logs", NAME, "--previous")
    assert done.code != 0
    assert "previous terminated container" in done.err


def test_a_follower_hears_what_is_printed_later(shell: Ground, tmp_path: Path) -> None:
    """`kubectl logs -f` is how people watch a start."""
    words = [shell.plane.kubectl_path, "-n", shell.name, "logs", "-f", NAME]
    follower = Process("logs", words, env=shell.plane.kubectl_env(), folder=tmp_path)
    follower.start()
    try:
        follower.hear(r"ready")
        [slice_port] = re.findall(r"PORT_8000=(\d+)", shell.admitted("exec", NAME, "--", "env"))
        with urllib.request.urlopen(f"http://203.0.113.45:{slice_port}/heard-later", timeout=20):
            pass
        follower.hear(r"/heard-later")
    finally:
        follower.kill()


def test_a_websocket_client_of_old_is_understood(shell: Ground) -> None:
    """Dashboards and the Python client speak v4.channel.k8s.io, passed through to the node."""
    context = ssl.create_default_context(cafile=str(shell.plane.authority))
    context.load_cert_chain(*shell.plane.client_certificate("board", "board", "system:masters"))
    wanted = [("command", "sh"), ("command", "-c"), ("command", "echo hello; exit 5")]
    query = urlencode([*wanted, ("stdout", "true"), ("stderr", "true")])
    path = f"/api/v1/namespaces/{shell.name}/pods/{NAME}/exec?{query}"
    url = shell.plane.url.replace("https", "wss") + path
    heard: dict[int, bytes] = {}
    with connect(
        url,
        ssl=context,
        subprotocols=[Subprotocol("v4.channel.k8s.io")],
        proxy=None,
        open_timeout=30,
    ) as socket:
        for message in socket:
            assert isinstance(message, bytes)
            heard[message[0]] = heard.get(message[0], b"") + message[1:]
    assert heard[1] == b"hello\n"
    status = json.loads(heard[3])
    assert status["details"]["causes"] == [{"reason": "ExitCode", "message": "5"}]
