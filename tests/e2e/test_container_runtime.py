"""The container runtime against a real engine: podman's service, runc, bridged networks."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator

import httpx2
import pytest

from gp4u.sim.containers import LABEL
from gp4u.sim.engine import Engine
from gp4u.sim.launch import ERR, OUT, Launch, LaunchFailed, Port, Running, Runtime
from gp4u.sim.runtime import can_run, container

from .podman import IMAGE, PAGE, service

POLITE = "trap 'exit 0' TERM; echo up; busybox sleep 600 & wait"
"""A script that runs until it is asked to end, and then ends at once."""


@pytest.fixture(scope="module")
def socket() -> Iterator[str]:
    """The path of podman's socket; one service for the whole module."""
    with service() as path:
        yield path


@pytest.fixture
async def runtime(socket: str) -> AsyncIterator[Runtime]:
    """A runtime of containers, closed after the test."""
    opened = await container(socket)
    assert opened is not None
    yield opened
    await opened.aclose()


def shell(script: str, *, ports: tuple[Port, ...] = (), **env: str) -> Launch:
    """A launch of a shell script in our image."""
    return Launch(instance_id="7", image=IMAGE, command=("sh", "-c", script), ports=ports, env=env)


async def left(socket: str) -> int:
    """Count the containers of all simulators in the engine."""
    engine = await Engine.connect(socket)
    assert engine is not None
    try:
        return len(await engine.labelled(LABEL))
    finally:
        await engine.aclose()


async def logged(running: Running, words: str) -> str:
    """Wait until the words are in the log, and return all of it."""
    async with asyncio.timeout(30):
        while words not in (text := await running.logs(1000)):  # noqa: ASYNC110 -- a container cannot set an event
            await asyncio.sleep(0.02)
    return text


async def exit_code(running: Running) -> int:
    """Wait until the container ended by itself."""
    async with asyncio.timeout(30):
        while (code := running.exited()) is None:  # noqa: ASYNC110 -- a container cannot set an event
            await asyncio.sleep(0.02)
    return code


async def fetched(url: str) -> str:
    """GET until somebody listens: a container has started before its program listens."""
    async with httpx2.AsyncClient(trust_env=False) as client, asyncio.timeout(30):
        while True:
            try:
                reply = await client.get(url)
            except httpx2.TransportError:
                await asyncio.sleep(0.02)
                continue
            assert reply.status_code == 200
            return reply.text


async def test_the_image_asked_for_answers_at_its_mapped_port(
    runtime: Runtime, socket: str
) -> None:
    """The promise of the container runtime, from the pull of nothing to the removal of all."""
    running = await runtime.start(
        Launch(
            instance_id="7",
            image=IMAGE,
            entrypoint="/bin/busybox",
            command=("httpd", "-f", "-vv", "-p", "8000", "-h", "/www"),
            ports=(Port(8000, "tcp"), Port(8001, "tcp"), Port(5353, "udp")),
        )
    )
    assert set(running.ports) == {(8000, "tcp"), (8001, "tcp"), (5353, "udp")}
    assert len(set(running.ports.values())) == 3
    url = f"http://127.0.0.1:{running.ports[8000, 'tcp']}/index.html"
    assert await fetched(url) == PAGE
    assert "url:/index.html" in await logged(running, "response:200")
    assert running.exited() is None
    assert await left(socket) == 1

    async with asyncio.TaskGroup() as group:
        group.create_task(running.stop())
        group.create_task(running.stop())
    await running.stop()
    assert running.exited() is None
    assert await running.logs(10) == ""
    assert await left(socket) == 0
    with pytest.raises(httpx2.TransportError):
        httpx2.get(url, trust_env=False)


async def test_two_containers_of_one_image_are_reached_apart(runtime: Runtime) -> None:
    """Both listen on 8000; only the host's ports tell them apart."""
    serve = "echo $NAME > /www/name; exec busybox httpd -f -p 8000 -h /www"
    ports = (Port(8000, "tcp"),)
    async with asyncio.TaskGroup() as group:
        first = group.create_task(runtime.start(shell(serve, ports=ports, NAME="june-stt")))
        second = group.create_task(runtime.start(shell(serve, ports=ports, NAME="june-tts")))
    for each, name in ((first.result(), "june-stt"), (second.result(), "june-tts")):
        assert await fetched(f"http://127.0.0.1:{each.ports[8000, 'tcp']}/name") == f"{name}\n"


async def test_both_streams_and_the_exit_code_of_a_failing_command_are_seen(
    runtime: Runtime,
) -> None:
    """A workload that dies must be told from one that is only slow, and its last words kept."""
    running = await runtime.start(shell("echo to stdout; echo to stderr >&2; exit 7"))
    assert await exit_code(running) == 7
    assert sorted((await running.logs(10)).splitlines()) == ["to stderr", "to stdout"]
    await running.stop()
    assert running.exited() == 7


async def test_only_the_tail_of_the_log_is_returned(runtime: Runtime) -> None:
    """Providers let a client ask for the last lines."""
    script = "for n in $(busybox seq 100); do echo line $n; done"
    running = await runtime.start(shell(script))
    await exit_code(running)
    assert await running.logs(2) == "line 99\nline 100\n"


async def test_a_container_is_asked_to_end_before_it_is_killed(runtime: Runtime) -> None:
    """SIGTERM first, as on the real thing: the mark of a polite end reaches the host's port."""
    running = await runtime.start(shell(POLITE))
    await logged(running, "up")
    async with asyncio.timeout(2.5):  # less than the three seconds after which it is killed
        await running.stop()


async def test_a_missing_image_fails_with_the_engines_words(runtime: Runtime, socket: str) -> None:
    """A typing error in an image's name is the commonest failure of all."""
    absent = Launch(instance_id="7", image="registry.invalid/no/such-image:9")
    with pytest.raises(LaunchFailed, match=r"registry\.invalid/no/such-image"):
        await runtime.start(absent)
    assert await left(socket) == 0


@pytest.mark.parametrize(("image", "can"), [(IMAGE, True), ("registry.invalid/absent:1", False)])
async def test_whether_an_image_can_run_is_found_by_running_it(
    socket: str, image: str, can: bool
) -> None:
    """The demo chooses by this between a container and a process."""
    assert await can_run(image, socket) is can
    assert await left(socket) == 0


async def test_a_missing_executable_fails_and_leaves_nothing(runtime: Runtime, socket: str) -> None:
    """The container is made before its command is found absent; it must not stay."""
    launch = Launch(instance_id="7", image=IMAGE, command=("no-such-command",))
    with pytest.raises(LaunchFailed, match=r'"no-such-command": executable file not found'):
        await runtime.start(launch)
    assert await left(socket) == 0


async def test_a_container_removed_behind_our_back_has_ended(runtime: Runtime, socket: str) -> None:
    """Somebody tidies the machine; the provider must report the instance's end."""
    running = await runtime.start(shell("exec busybox sleep 600"))
    engine = await Engine.connect(socket)
    assert engine is not None
    for each in await engine.labelled(LABEL):
        await engine.remove(each)
    await engine.aclose()
    assert await exit_code(running) == 137
    assert "no such container" in await running.logs(10)
    await running.stop()


async def test_closing_removes_its_own_containers_and_no_others(socket: str) -> None:
    """Two simulators may share an engine."""
    mine, theirs = await container(socket), await container(socket)
    assert mine is not None
    assert theirs is not None
    for _ in range(2):
        await mine.start(shell(POLITE))
    other = await theirs.start(shell(POLITE))
    await mine.aclose()
    assert await left(socket) == 1
    assert other.exited() is None
    with pytest.raises(LaunchFailed):
        await mine.start(shell("true"))
    await theirs.aclose()
    assert await left(socket) == 0


async def entered(
    running: Running, *argv: str, tty: bool = False, stdin: bytes | None = None
) -> tuple[bytes, bytes, int]:
    """Run a command inside, and return both its outputs and its code."""
    heard = {OUT: bytearray(), ERR: bytearray()}

    async def out(which: int, data: bytes) -> None:
        heard[which] += data

    inside = await running.enter(argv, tty=tty)
    await inside.resize(100, 30)
    if stdin is not None:
        await inside.write(stdin)
        await inside.end_input()
    async with asyncio.timeout(30):
        code = await inside.run(out)
    return bytes(heard[OUT]), bytes(heard[ERR]), code


async def test_a_command_runs_inside_a_container(runtime: Runtime) -> None:
    """`kubectl exec` in a rehearsal must be what it is on a rented machine."""
    running = await runtime.start(shell(POLITE, WHO="me"))
    script = "echo $WHO; echo no >&2; exit 3"
    assert await entered(running, "sh", "-c", script) == (b"me\n", b"no\n", 3)
    assert await entered(running, "busybox", "cat", stdin=b"x" * 100_000) == (
        b"x" * 100_000,
        b"",
        0,
    )
    out, _, code = await entered(
        running, "sh", "-c", "busybox sleep 0.3; busybox stty size; exit 4", tty=True
    )
    assert (out.strip(), code) == (b"30 100", 4)


async def test_a_port_of_a_container_is_reached_though_nobody_published_it(
    runtime: Runtime,
) -> None:
    """`kubectl port-forward` leads to what only listens inside."""
    running = await runtime.start(shell("busybox httpd -f -p 8080 -h /www"))
    host, port = await running.reach(8080)
    assert await fetched(f"http://{host}:{port}/index.html") == PAGE


SIMULATOR = """
import asyncio, sys
from gp4u.sim.launch import Launch
from gp4u.sim.runtime import container

async def main(socket, image):
    runtime = await container(socket)
    await runtime.start(Launch(
        instance_id="7", image=image, command=("busybox", "sleep", "600"), entrypoint=None
    ))
    print("started", flush=True)
    await asyncio.sleep(600)

asyncio.run(main(*sys.argv[1:]))
"""


async def test_what_a_killed_simulator_left_is_removed_by_the_next(
    runtime: Runtime, socket: str
) -> None:
    """Containers outlive a `kill -9`; the labels say whose they were, and who still lives."""
    mine = await runtime.start(shell(POLITE))
    dead = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", SIMULATOR, socket, IMAGE), stdout=subprocess.PIPE
    )
    assert dead.stdout is not None
    try:
        async with asyncio.timeout(30):
            assert await dead.stdout.readline() == b"started\n"
        assert await left(socket) == 2
    finally:
        dead.send_signal(signal.SIGKILL)
        await dead.wait()

    following = await container(socket)
    assert following is not None
    await following.aclose()
    assert await left(socket) == 1
    assert mine.exited() is None
