"""The small HTTP program: what it reads from its environment, and how it behaves as a process."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import perf_counter

import httpx2
import pytest

from gp4u.sim import program
from gp4u.sim.program import Script, Service, read_script


def free_port() -> int:
    """A port that nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def running(**env: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run the program until the block ends; it listens when the block begins."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-S", program.__file__),
        env=env,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        for _ in filter(None, env.get("GP4U_PORTS", "-").split(",")):
            await process.stdout.readline()
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


def test_the_environment_names_every_port_and_misdeed() -> None:
    """The variables are the program's whole interface."""
    script = read_script(
        {
            "GP4U_PORTS": "8000=43121,53/udp=43122",
            "GP4U_SERVICE_8000": "june-tts",
            "GP4U_SIM_SLOW_S": "0.5",
            "GP4U_SIM_UNHEALTHY": "8000, 53",
            "GP4U_SIM_UNHEALTHY_FOR_S": "4",
            "GP4U_SIM_EXIT_AFTER_S": "9",
            "GP4U_SIM_EXIT_CODE": "7",
        }
    )
    assert script == Script(
        services=(Service(8000, "tcp", 43121, "june-tts"), Service(53, "udp", 43122, "port-53")),
        slow_s=0.5,
        unhealthy_ports=frozenset({8000, 53}),
        unhealthy_for_s=4.0,
        exit_after_s=9.0,
        exit_code=7,
    )


def test_an_empty_environment_asks_for_nothing() -> None:
    """An instance without ports still runs."""
    assert read_script({}) == Script()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("GP4U_PORTS", "8000"),
        ("GP4U_PORTS", "http=80"),
        ("GP4U_PORTS", "8000/sctp=80"),
        ("GP4U_PORTS", "8000=70000"),
        ("GP4U_SIM_SLOW_S", "soon"),
        ("GP4U_SIM_SLOW_S", "-1"),
        ("GP4U_SIM_EXIT_AFTER_S", "nan"),
        ("GP4U_SIM_UNHEALTHY_FOR_S", "inf"),
        ("GP4U_SIM_UNHEALTHY", "yes"),
        ("GP4U_SIM_EXIT_CODE", "256"),
    ],
)
def test_a_bad_variable_is_named(name: str, value: str) -> None:
    """Who mistypes a fault must learn of it, not test without the fault."""
    with pytest.raises(ValueError, match=name):
        read_script({name: value})


@pytest.mark.parametrize(
    ("script", "port", "uptime_s", "healthy"),
    [
        (Script(), 8000, 0.0, True),
        (Script(all_unhealthy=True), 8000, 99.0, False),
        (Script(unhealthy_ports=frozenset({8000})), 8000, 99.0, False),
        (Script(unhealthy_ports=frozenset({8000})), 8001, 0.0, True),
        (Script(unhealthy_for_s=5.0), 8000, 4.9, False),
        (Script(unhealthy_for_s=5.0), 8000, 5.0, True),
    ],
)
def test_health_follows_port_and_age(
    script: Script, port: int, uptime_s: float, healthy: bool
) -> None:
    """Probes are tested against these answers."""
    assert script.is_healthy(port, uptime_s) is healthy


async def test_every_port_answers_any_path_with_its_own_name() -> None:
    """Two services behind one rental must be told apart."""
    stt, tts = free_port(), free_port()
    async with (
        running(
            GP4U_PORTS=f"8001={stt},8000={tts}",
            GP4U_SERVICE_8001="june-stt",
            GP4U_SERVICE_8000="june-tts",
        ) as process,
        httpx2.AsyncClient(trust_env=False) as client,
    ):
        first = await client.get(f"http://127.0.0.1:{stt}/health?deep=1")
        second = await client.post(f"http://127.0.0.1:{tts}/v1/speak", content=b"x" * 100_000)
        assert process.stdout is not None
        log = [await process.stdout.readline(), await process.stdout.readline()]
    assert (first.status_code, second.status_code) == (200, 200)
    assert first.text.count("\n") == 1
    told = first.json()
    assert told.pop("uptime_s") >= 0
    assert told == {
        "service": "june-stt",
        "status": "ok",
        "port": 8001,
        "method": "GET",
        "path": "/health?deep=1",
    }
    assert second.json()["service"] == "june-tts"
    assert b'june-stt 8001 "GET /health?deep=1" 200' in log[0]
    assert b'june-tts 8000 "POST /v1/speak" 200' in log[1]


async def test_one_connection_carries_many_requests() -> None:
    """A client that keeps its connection must find each reply where the last one ended."""
    port = free_port()
    async with running(GP4U_PORTS=f"80={port}"):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(
            b"HEAD /a HTTP/1.1\r\nHost: x\r\n\r\n"
            b"POST /b HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
            b"PUT /c HTTP/1.1\r\nContent-Length: 2\r\n\r\nhi"
            b"GET /d HTTP/1.0\r\n\r\n"
        )
        replies = await reader.read()
        writer.close()
    assert replies.count(b"HTTP/1.1 200 OK") == 4
    paths = [json.loads(line)["path"] for line in replies.splitlines() if line.startswith(b"{")]
    assert paths == ["/b", "/c", "/d"]


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"hello\r\n\r\n", b"400"),
        (b"GET / HTTP/2.0\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", b"400"),
        (b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", b"400"),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * 40_000, b"431"),
    ],
)
async def test_what_is_not_http_gets_a_400_and_a_closed_door(sent: bytes, status: bytes) -> None:
    """A scanner's bytes must not end the program that a test relies on."""
    port = free_port()
    async with running(GP4U_PORTS=f"80={port}") as process:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(sent)
        first = await reader.readline()
        writer.close()
        assert first.split()[1] == status
        assert process.returncode is None


async def test_slow_answers_do_not_wait_for_each_other() -> None:
    """Slowness is per request: fifty clients wait as long as one."""
    port = free_port()
    began = perf_counter()
    async with (
        running(GP4U_PORTS=f"80={port}", GP4U_SIM_SLOW_S="0.2"),
        httpx2.AsyncClient(trust_env=False) as client,
        asyncio.TaskGroup() as group,
    ):
        asked = [group.create_task(client.get(f"http://127.0.0.1:{port}/")) for _ in range(50)]
    took_s = perf_counter() - began
    assert all(task.result().status_code == 200 for task in asked)
    assert 0.2 <= took_s < 50 * 0.2 / 2


async def test_an_unhealthy_port_says_503_and_the_other_200() -> None:
    """A rental is healthy only if all its checks pass; this is how one of them fails."""
    sick, well = free_port(), free_port()
    async with (
        running(GP4U_PORTS=f"8000={sick},8001={well}", GP4U_SIM_UNHEALTHY="8000"),
        httpx2.AsyncClient(trust_env=False) as client,
    ):
        refused = await client.get(f"http://127.0.0.1:{sick}/")
        assert refused.status_code == 503
        assert refused.json()["status"] == "unhealthy"
        assert (await client.get(f"http://127.0.0.1:{well}/")).status_code == 200


async def test_a_start_up_time_passes() -> None:
    """Real services answer 503 while they load their model, then 200."""
    port = free_port()
    statuses = []
    async with (
        running(GP4U_PORTS=f"80={port}", GP4U_SIM_UNHEALTHY_FOR_S="0.4"),
        httpx2.AsyncClient(trust_env=False) as client,
        asyncio.timeout(10),
    ):
        while 200 not in statuses:
            statuses.append((await client.get(f"http://127.0.0.1:{port}/")).status_code)
    assert set(statuses) == {503, 200}
    assert statuses == sorted(statuses, reverse=True)


async def test_a_datagram_is_answered_too() -> None:
    """A UDP port that was asked for must be seen to work."""
    port = free_port()
    async with running(GP4U_PORTS=f"53/udp={port}", GP4U_SERVICE_53="dns"):
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.setblocking(False)
            await loop.sock_connect(client, ("127.0.0.1", port))
            await loop.sock_sendall(client, b"?")
            async with asyncio.timeout(10):
                reply = json.loads(await loop.sock_recv(client, 1000))
    assert reply["service"] == "dns"


async def test_it_exits_by_itself_with_the_code_it_was_told() -> None:
    """A workload that dies is a fault the broker must see."""
    async with running(GP4U_SIM_EXIT_AFTER_S="0.05", GP4U_SIM_EXIT_CODE="7") as process:
        async with asyncio.timeout(10):
            assert await process.wait() == 7


async def test_sigterm_ends_it_with_0_even_with_a_client_waiting() -> None:
    """A polite stop must not take as long as the slowest answer."""
    port = free_port()
    async with running(GP4U_PORTS=f"80={port}", GP4U_SIM_SLOW_S="60") as process:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        await writer.drain()
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(3):
            assert await process.wait() == 0
        writer.close()


@pytest.mark.parametrize(("ports", "code"), [("8000=x", 2), ("8000={taken}", 1)])
def test_what_it_cannot_do_is_said_on_stderr(ports: str, code: int) -> None:
    """`python -m gp4u.sim.program` by hand must not fail without a word."""
    with socket.create_server(("127.0.0.1", 0)) as holder:
        done = subprocess.run(
            [sys.executable, "-m", "gp4u.sim.program"],
            env=os.environ | {"GP4U_PORTS": ports.format(taken=holder.getsockname()[1])},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    assert done.returncode == code
    assert done.stderr.count("\n") == 1


async def test_it_is_up_within_a_few_bare_interpreters() -> None:
    """An instance must not boot slower than the 100 ms that its document promises.

    Measured as a ratio, because a busy machine slows both: a bare interpreter takes about 10 ms.
    """

    async def bare_s() -> float:
        began = perf_counter()
        process = await asyncio.create_subprocess_exec(sys.executable, "-I", "-S", "-c", "pass")
        await process.wait()
        return perf_counter() - began

    async def listening_s() -> float:
        began = perf_counter()
        async with running(GP4U_PORTS=f"80={free_port()}"):
            return perf_counter() - began

    bare = min([await bare_s() for _ in range(5)])
    listening = min([await listening_s() for _ in range(5)])
    assert listening <= 15 * bare, f"{listening * 1000:.0f} ms against {bare * 1000:.0f} ms"
