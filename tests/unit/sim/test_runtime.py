"""The runtimes that need no engine: pretended instances and local processes."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random

import httpx2
import pytest

from gp4u.sim.launch import ERR, OUT, Inside, Launch, LaunchFailed, Port, Running, Runtime
from gp4u.sim.runtime import can_run, container, pretend, process


def launch(*command: str, ports: tuple[Port, ...] = (), **env: str) -> Launch:
    """A launch of a command, or of our program where there is none."""
    return Launch(instance_id="1", image="any/image", command=command or None, env=env, ports=ports)


def alive(pid: int) -> bool:
    """Tell whether a process runs; a zombie does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False  # gone before it was opened, or between opening and reading
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def exists(path: str) -> bool:
    """Tell whether there is such a file or directory."""
    return Path(path).exists()


async def logged(running: Running, lines: int) -> list[str]:
    """Wait until so many lines were printed, and return them all."""
    async with asyncio.timeout(10):
        while (text := await running.logs(10_000)).count("\n") < lines:  # noqa: ASYNC110 -- not ours to set
            await asyncio.sleep(0.005)
    return text.splitlines()


async def exit_code(running: Running) -> int:
    """Wait until it ended by itself."""
    async with asyncio.timeout(10):
        while (code := running.exited()) is None:  # noqa: ASYNC110 -- not ours to set
            await asyncio.sleep(0.005)
    return code


@pytest.fixture
async def processes() -> AsyncIterator[Runtime]:
    """A runtime of processes, closed after the test."""
    runtime = process()
    yield runtime
    await runtime.aclose()


async def test_a_pretended_instance_is_the_same_for_the_same_seed() -> None:
    """A test of a whole market must be repeatable."""
    ports = tuple(Port(number, "tcp") for number in range(8000, 8020))
    first = await pretend(Random(7)).start(launch(ports=ports))
    second = await pretend(Random(7)).start(launch(ports=ports))
    assert first.ports == second.ports
    assert len(set(first.ports.values())) == 20
    assert await first.logs(100) == await second.logs(100)


async def test_a_pretended_instance_tells_of_its_image_and_ports() -> None:
    """Logs that say nothing about the launch would hide a mix-up of instances."""
    running = await pretend(Random(7)).start(launch(ports=(Port(8000, "tcp"),)))
    text = await running.logs(100)
    assert "any/image" in text
    assert "8000/tcp" in text
    assert (await running.logs(1)).count("\n") == 1
    await running.stop()
    assert await running.logs(100) == ""
    assert running.exited() is None


async def test_without_a_command_our_program_answers_on_every_port(processes: Runtime) -> None:
    """The promise of the demo: behind a rental there is something that answers."""
    running = await processes.start(
        launch(ports=(Port(8000, "tcp"), Port(8001, "tcp")), GP4U_SERVICE_8000="june-tts")
    )
    await logged(running, 2)
    async with httpx2.AsyncClient(trust_env=False) as client:
        first = await client.get(f"http://127.0.0.1:{running.ports[8000, 'tcp']}/health")
        second = await client.get(f"http://127.0.0.1:{running.ports[8001, 'tcp']}/health")
    assert first.json()["service"] == "june-tts"
    assert second.json()["port"] == 8001
    assert len(await logged(running, 4)) == 4
    assert running.exited() is None


async def test_a_command_sees_its_ports_and_nothing_of_ours(
    processes: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Our environment holds keys; the ports are what a command cannot guess."""
    monkeypatch.setenv("VASTAI_API_KEY", "secret")
    running = await processes.start(
        launch("env", ports=(Port(8000, "tcp"), Port(53, "udp")), MODEL="small", PORT="8000")
    )
    assert await exit_code(running) == 0
    env = dict(line.split("=", 1) for line in (await running.logs(100)).splitlines())
    tcp, udp = running.ports[8000, "tcp"], running.ports[53, "udp"]
    home = env.pop("HOME")
    assert Path(home).name.startswith("gp4u-instance-")
    assert env == {
        "PATH": os.environ["PATH"],
        "TMPDIR": home,
        "MODEL": "small",
        "PORT": str(tcp),
        "PORT_8000": str(tcp),
        "PORT_53_UDP": str(udp),
        "GP4U_ADDRESS": "127.0.0.1",
        "GP4U_PORTS": f"8000/tcp={tcp},53/udp={udp}",
    }


async def test_an_entrypoint_stands_before_the_command(processes: Runtime) -> None:
    """As in a container, the command is arguments to the entrypoint."""
    running = await processes.start(
        Launch(instance_id="1", image="i", entrypoint="sh", command=("-c", "echo $0 $1", "a", "b"))
    )
    assert await logged(running, 1) == ["a b"]


async def test_the_exit_code_of_a_command_is_seen_and_survives_the_stop(
    processes: Runtime,
) -> None:
    """A provider reports an instance that ended by itself, also while it is cleaned up."""
    running = await processes.start(launch("sh", "-c", "echo done; exit 7"))
    assert await exit_code(running) == 7
    assert await running.logs(10) == "done\n"
    await running.stop()
    assert running.exited() == 7


async def test_a_stopped_instance_did_not_end_by_itself(processes: Runtime) -> None:
    """The code of a SIGTERM that we sent is not the workload's."""
    running = await processes.start(launch("sh", "-c", "echo $$ $PWD; exec sleep 600"))
    pid, directory = (await logged(running, 1))[0].split()
    async with asyncio.TaskGroup() as group:
        group.create_task(running.stop())
        group.create_task(running.stop())
    await running.stop()
    assert running.exited() is None
    assert not alive(int(pid))
    assert not exists(directory)
    assert await running.logs(10) == ""


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("no-such-command", 'exec: "no-such-command": executable file not found in $PATH'),
        ("/no/such/file", 'exec: "/no/such/file": stat /no/such/file: no such file'),
        ("/", 'exec: "/": permission denied'),
    ],
)
async def test_a_command_that_cannot_start_fails_in_dockers_words(
    processes: Runtime, command: str, reason: str
) -> None:
    """Clients tell a failed start by the daemon's text."""
    with pytest.raises(LaunchFailed) as caught:
        await processes.start(launch(command))
    assert "OCI runtime create failed" in str(caught.value)
    assert reason in str(caught.value)


async def test_two_instances_never_share_a_host_port(processes: Runtime) -> None:
    """The second would answer for the first."""
    ports = tuple(Port(number, "tcp") for number in range(8000, 8010))
    async with asyncio.TaskGroup() as group:
        starts = [group.create_task(processes.start(launch(ports=ports))) for _ in range(4)]
    taken = [port for start in starts for port in start.result().ports.values()]
    assert len(set(taken)) == 40


async def test_closing_stops_everything_and_starts_nothing_more() -> None:
    """After `aclose` a machine is as it was."""
    runtime = process()
    pids = []
    for _ in range(3):
        running = await runtime.start(launch("sh", "-c", "echo $$; exec sleep 600"))
        pids.append(int((await logged(running, 1))[0]))
    await runtime.aclose()
    assert not any(map(alive, pids))
    with pytest.raises(LaunchFailed, match="shutting down"):
        await runtime.start(launch("sleep", "600"))


async def test_a_cancelled_start_leaves_no_process(processes: Runtime, tmp_path: Path) -> None:
    """A client that hangs up in the middle must not leave a command that nobody knows."""
    mark = tmp_path / "pid"
    for steps in range(12):
        task = asyncio.ensure_future(
            processes.start(launch("sh", "-c", f"echo $$ >> {mark}; exec sleep 600"))
        )
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled():
            await task.result().stop()
    pids = mark.read_text().split() if mark.exists() else []
    assert not any(alive(int(pid)) for pid in pids)


SIMULATOR = """
import asyncio, sys
from gp4u.sim.launch import Launch
from gp4u.sim.runtime import process

async def main():
    running = await process().start(Launch(
        instance_id="1", image="i",
        command=("sh", "-c", "setsid sleep 600 & echo $! $$ $PWD; exec sleep 600"),
    ))
    while not (text := await running.logs(1)):
        await asyncio.sleep(0.005)
    print(text, end="", flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


async def test_nothing_survives_a_killed_simulator() -> None:
    """`kill -9` is one of the faults that the whole project is tested with."""
    simulator = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SIMULATOR, stdout=subprocess.PIPE, start_new_session=True
    )
    assert simulator.stdout is not None
    async with asyncio.timeout(30):
        daemon, command, directory = (await simulator.stdout.readline()).decode().split()
        assert alive(int(command))
        os.killpg(simulator.pid, signal.SIGKILL)
        await simulator.wait()
        while alive(int(daemon)) or alive(int(command)) or exists(directory):  # noqa: ASYNC110 -- not ours to set
            await asyncio.sleep(0.005)


async def test_no_engine_means_no_runtime_of_containers(tmp_path: Path) -> None:
    """The demo then falls back to processes."""
    assert await container(str(tmp_path / "absent.sock")) is None
    assert not await can_run("any/image", str(tmp_path / "absent.sock"))


async def heard(inside: Inside) -> tuple[bytes, bytes, int]:
    """Return both outputs of a command inside, and its code."""
    said = {OUT: bytearray(), ERR: bytearray()}

    async def out(which: int, data: bytes) -> None:
        said[which] += data

    async with asyncio.timeout(20):
        code = await inside.run(out)
    return bytes(said[OUT]), bytes(said[ERR]), code


async def test_what_an_instance_writes_at_its_root_is_its_own(processes: Runtime) -> None:
    """A rehearsal must not change the machine's files, nor see those of its neighbour."""
    script = (
        'mkdir -p "$GP4U_ROOT/etc/gp4u-own"; echo $$ >"$GP4U_ROOT/etc/gp4u-own/id"; '
        "echo $HOME; exec sleep 600"
    )
    pair = [
        await processes.start(
            Launch(instance_id=n, image="i", entrypoint="sh", command=("-c", script), own_root=True)
        )
        for n in ("1", "2")
    ]
    seen, homes = [], []
    for running in pair:
        homes += await logged(running, 1)
        shown = await running.enter(["sh", "-c", 'cat "$GP4U_ROOT/etc/gp4u-own/id"'], tty=False)
        out, _, code = await heard(shown)
        assert code == 0
        seen.append(out)
    assert len(set(seen)) == 2
    assert not exists("/etc/gp4u-own")
    for running in pair:
        await running.stop()
    assert len(homes) == 2
    assert not any(exists(home) or exists(f"{home}.root") for home in homes)


async def test_a_command_inside_has_its_streams_and_a_terminal(processes: Runtime) -> None:
    """With the instance's own variables, in the directory where its command began."""
    running = await processes.start(launch("sh", "-c", "echo $PWD; exec sleep 600", WHO="me"))
    (directory,) = await logged(running, 1)
    script = "echo $WHO; pwd; echo no >&2; exit 3"
    shown = await heard(await running.enter(["sh", "-c", script], tty=False))
    assert shown == (f"me\n{directory}\n".encode(), b"no\n", 3)

    reading = await running.enter(["cat"], tty=False)
    await reading.write(b"word")
    await reading.end_input()
    assert await heard(reading) == (b"word", b"", 0)

    terminal = await running.enter(["sh", "-c", "read x; stty size; kill -9 $$"], tty=True)
    await terminal.resize(100, 30)
    await terminal.write(b"go\n")
    out, _, code = await heard(terminal)
    assert b"30 100" in out
    assert code == 137


async def test_what_entered_an_instance_ends_with_it(processes: Runtime) -> None:
    """A shell that somebody left open must not outlive the machine it was in."""
    running = await processes.start(launch("sleep", "600"))
    inside = await running.enter(["sh", "-c", "echo $$; exec sleep 600"], tty=False)
    pids: list[int] = []

    async def out(which: int, data: bytes) -> None:
        pids.append(int(data))
        assert which == OUT
        await running.stop()

    async with asyncio.timeout(20):
        assert await inside.run(out) == 137
    assert not alive(pids[0])
    with pytest.raises(LaunchFailed, match="not running"):
        await running.enter(["true"], tty=False)


async def test_a_command_that_is_not_there_fails_in_dockers_words_inside_as_well(
    processes: Runtime,
) -> None:
    """`kubectl exec` shows the text to whoever mistyped."""
    running = await processes.start(launch("sleep", "600"))
    with pytest.raises(LaunchFailed, match="executable file not found"):
        await running.enter(["no-such-command"], tty=False)
