"""When probes are put, and what follows from their answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gp4u.errors import Unavailable
from gp4u.kubelet.probes.probing import (
    ContainerProber,
    Kind,
    ProbeRecord,
    Target,
    port_number,
    probe_of,
    unreachable_probe,
)
from tests.virtual_loop import EPOCH, VirtualClock, run_virtual


def container(**probes: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": "app",
        "image": "app:1",
        "ports": [
            {"name": "http", "containerPort": 8000},
            {"containerPort": 53, "protocol": "UDP"},
        ],
        **{f"{kind}Probe": spec for kind, spec in probes.items()},
    }


def by_command(**more: Any) -> dict[str, Any]:
    return {"exec": {"command": ["check"]}, "timeoutSeconds": 5, **more}


class Workload:
    """Something that answers commands, as it is told to."""

    def __init__(self) -> None:
        self.code: int | Exception = 0
        self.slow_s = 0.0
        self.asked: list[float] = []
        self.told: list[tuple[bool, bool, bool]] = []
        self.warnings: list[tuple[str, str]] = []
        self.prober: ContainerProber

    async def run(self, command: Sequence[str], timeout_s: float) -> int:
        assert list(command) == ["check"]
        assert timeout_s > 0
        self.asked.append(asyncio.get_running_loop().time())
        await asyncio.sleep(self.slow_s)
        if isinstance(self.code, Exception):
            raise self.code
        return self.code

    def is_ready(self) -> bool:
        return self.prober.ready

    def tell(self) -> None:
        p = self.prober
        self.told.append((p.started, p.ready, p.restart_wanted is not None))

    def warn(self, reason: str, message: str) -> None:
        self.warnings.append((reason, message))


@asynccontextmanager
async def probing(spec: dict[str, Any], **options: Any) -> AsyncIterator[Workload]:
    work = Workload()
    options = {"exec_": work.run, "target": lambda _: None, **options}
    work.prober = ContainerProber(
        spec, clock=VirtualClock(), random=Random(1), tell=work.tell, warn=work.warn, **options
    )
    async with asyncio.TaskGroup() as group:
        task = group.create_task(work.prober.run())
        yield work
        task.cancel()


def test_a_container_without_probes_is_ready_at_once() -> None:
    """As soon as it runs; there is nothing to ask."""

    async def story() -> None:
        async with probing(container()) as work:
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert (work.prober.started, work.prober.ready) == (True, True)

    run_virtual(story)


def test_a_readiness_probe_follows_the_workload_both_ways() -> None:
    """One success makes it ready, three failures in a row unready, and nothing is restarted."""

    async def story() -> None:
        async with probing(container(readiness=by_command())) as work:
            await asyncio.sleep(5)
            assert work.is_ready()
            work.code = 1
            await asyncio.sleep(20)
            assert work.is_ready()
            await asyncio.sleep(10)
            assert not work.is_ready()
            work.code = 0
            await asyncio.sleep(10)
            assert work.is_ready()
            assert work.prober.restart_wanted is None
            assert work.told == [
                (True, False, False),
                (True, True, False),
                (True, False, False),
                (True, True, False),
            ]
            message = "Readiness probe failed: the command ended with 1"
            assert work.warnings == [("Unhealthy", message)] * 3

    run_virtual(story)


def test_a_container_is_not_ready_before_its_first_success() -> None:
    """Ready reported while unreachable is what users of such nodes complain about."""

    async def story() -> None:
        async with probing(container(readiness=by_command(successThreshold=3))) as work:
            await asyncio.sleep(15)
            assert not work.prober.ready
            await asyncio.sleep(10)
            assert work.prober.ready

    run_virtual(story)


def test_a_liveness_probe_that_fails_for_good_wants_a_restart_once() -> None:
    """And asks no more: the next run of the container has its own prober."""

    async def story() -> None:
        probe = by_command(failureThreshold=2, periodSeconds=3, terminationGracePeriodSeconds=7)
        async with probing(container(liveness=probe, readiness=by_command())) as work:
            await asyncio.sleep(10)
            work.code = 3
            await asyncio.sleep(60)
            wanted = work.prober.restart_wanted
            assert wanted is not None
            assert wanted.grace_s == 7
            assert wanted.message == (
                "liveness probe failed 2 times in a row: the command ended with 3"
            )
            assert not work.prober.ready
            assert work.told[-1] == (True, False, True)
            assert [each[2] for each in work.told].count(True) == 1
            asked = len(work.asked)
            await asyncio.sleep(60)
            assert len(work.asked) == asked

    run_virtual(story)


def test_a_failure_now_and_then_restarts_nothing() -> None:
    """They are counted in a row."""

    async def story() -> None:
        async with probing(container(liveness=by_command())) as work:
            for turn in range(30):
                work.code = 0 if turn % 3 == 2 else 1
                await asyncio.sleep(10)
            assert work.prober.restart_wanted is None

    run_virtual(story)


def test_other_probes_wait_for_the_startup_probe() -> None:
    """A model that loads for ten minutes must not be restarted for being slow."""

    async def story() -> None:
        spec = container(
            startup=by_command(failureThreshold=60), liveness=by_command(), readiness=by_command()
        )
        async with probing(spec) as work:
            work.code = 1
            await asyncio.sleep(500)
            assert not work.prober.started
            assert len(work.asked) == 50
            work.code = 0
            await asyncio.sleep(15)
            assert (work.prober.started, work.prober.ready) == (True, True)

    run_virtual(story)


def test_a_startup_probe_that_never_passes_wants_a_restart() -> None:
    """Six failures ten seconds apart are a minute."""

    async def story() -> None:
        async with probing(container(startup=by_command(failureThreshold=6))) as work:
            work.code = 1
            await asyncio.sleep(49)
            assert work.prober.restart_wanted is None
            await asyncio.sleep(5)
            assert work.prober.restart_wanted is not None

    run_virtual(story)


def test_the_first_probe_waits_for_the_initial_delay_from_the_containers_start() -> None:
    """Not from the prober's: after a restart of the node the delay is long over."""

    async def story() -> None:
        spec = container(readiness=by_command(initialDelaySeconds=60))
        async with probing(spec) as work:
            await asyncio.sleep(120)
            assert 60 <= work.asked[0] <= 62
        begun = EPOCH - timedelta(hours=1)
        async with probing(spec, started_at=begun, started=True, ready=True) as work:
            before = asyncio.get_running_loop().time()
            assert work.prober.ready
            await asyncio.sleep(11)
            assert work.asked[0] - before <= 10

    run_virtual(story)


def test_a_slow_answer_is_a_failure_and_leaves_the_beat() -> None:
    """Probes stand a period apart, however long an answer takes."""

    async def story() -> None:
        async with probing(container(readiness=by_command(periodSeconds=4))) as work:
            work.slow_s = 6
            await asyncio.sleep(100)
            assert work.warnings[0][1] == "Readiness probe failed: no answer within 5 s"
            gaps = {round(b - a, 3) for a, b in zip(work.asked, work.asked[1:], strict=False)}
            assert gaps == {5.0}
            work.slow_s = 1
            work.asked.clear()
            await asyncio.sleep(50)
            gaps = {round(b - a, 3) for a, b in zip(work.asked, work.asked[1:], strict=False)}
            assert gaps == {4.0}

    run_virtual(story)


def test_a_market_that_stumbles_counts_for_nothing() -> None:
    """An exec that could not be made says nothing of the workload; it is tried three times."""

    async def story() -> None:
        async with probing(container(liveness=by_command(), readiness=by_command())) as work:
            await asyncio.sleep(5)
            work.code = Unavailable("vastai", "exec", "no route")
            work.asked.clear()
            await asyncio.sleep(100)
            assert work.prober.ready
            assert work.prober.restart_wanted is None
            assert len(work.asked) == 60
            assert {each[0] for each in work.warnings} == {"Unhealthy"}
            assert "errored" in work.warnings[0][1]

    run_virtual(story)


def test_a_market_without_commands_never_passes_one() -> None:
    """It is refused before that; were it not, Ready would be a lie."""

    async def story() -> None:
        async with probing(container(readiness=by_command()), exec_=None) as work:
            await asyncio.sleep(60)
            assert not work.prober.ready
            assert "runs no commands" in work.warnings[0][1]

    run_virtual(story)


def test_a_port_that_is_not_published_yet_fails() -> None:
    """It may be in a moment; until then nobody can reach it."""

    async def story() -> None:
        probe = {"tcpSocket": {"port": "http"}, "timeoutSeconds": 5}
        async with probing(container(readiness=probe)) as work:
            await asyncio.sleep(5)
            assert work.warnings == [
                ("Unhealthy", "Readiness probe failed: port 8000 is not published")
            ]

    run_virtual(story)


def test_a_timeout_shorter_than_an_ocean_is_told_of() -> None:
    """The default of one second is meant for the same rack."""

    async def story() -> None:
        async with probing(container(readiness={"exec": {"command": ["check"]}})) as work:
            await asyncio.sleep(3)
            (warning,) = work.warnings
            assert warning[0] == "ProbeWarning"
            assert "readiness (1 s)" in warning[1]

    run_virtual(story)


class AtOnce(Random):
    """Chance that never waits."""

    def uniform(self, a: float, b: float) -> float:
        return min(a, b)


@asynccontextmanager
async def web_server(status: int = 200) -> AsyncIterator[tuple[int, list[str]]]:
    heads: list[str] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            heads.append((await reader.readuntil(b"\r\n\r\n")).decode())
            writer.write(f"HTTP/1.1 {status} x\r\nContent-Length: 0\r\n\r\n".encode())
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            heads.append("")
        finally:
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1], heads


async def _one_answer(handler: dict[str, Any], target: Target) -> tuple[bool, list[str]]:
    """Return whether the first probe passed, and the warnings."""
    done, warnings = asyncio.Event(), list[str]()

    def tell() -> None:
        if prober.ready:
            done.set()

    def warn(_: str, message: str) -> None:
        warnings.append(message)
        done.set()

    probe = {**handler, "timeoutSeconds": 10}
    prober = ContainerProber(
        container(readiness=probe),
        target=lambda port: target if port == 8000 else None,
        exec_=None,
        clock=VirtualClock(),
        random=AtOnce(),
        tell=tell,
        warn=warn,
        allow_loopback=True,
    )
    async with asyncio.TaskGroup() as group:
        task = group.create_task(prober.run())
        await done.wait()
        task.cancel()
    return prober.ready, warnings


@pytest.mark.parametrize("port", [8000, "http", "8000"])
async def test_a_probe_goes_to_where_the_machine_publishes_the_port(port: int | str) -> None:
    """By number or by name; the container's own number is somebody else's outside."""
    async with web_server() as (there, heads):
        probe = {"httpGet": {"port": port, "path": "/healthz", "scheme": "http"}}
        assert await _one_answer(probe, ("127.0.0.1", there)) == (True, [])
        assert heads[0].startswith("GET /healthz HTTP/1.1")
        assert await _one_answer({"tcpSocket": {"port": port}}, ("127.0.0.1", there)) == (True, [])


async def test_a_probe_goes_to_the_url_that_the_market_publishes() -> None:
    """Some markets have nothing else."""
    async with web_server() as (there, heads):
        probe = {"httpGet": {"port": 8000, "httpHeaders": [{"name": "Host", "value": "app"}]}}
        assert await _one_answer(probe, f"http://127.0.0.1:{there}") == (True, [])
        assert f"Host: 127.0.0.1:{there}" in heads[0]
        problem = "Readiness probe failed: the published address is none that can be called"
        assert await _one_answer(probe, "gopher://x") == (False, [problem])


async def test_a_probe_that_names_the_machine_itself_goes_by_its_ports() -> None:
    """An explicit host that is the machine's is mapped; another one is the user's wish."""
    async with web_server() as (there, _):
        mine = {"httpGet": {"port": 8000, "host": "127.0.0.1"}}
        assert await _one_answer(mine, ("127.0.0.1", there)) == (True, [])
        raw = {"httpGet": {"port": there, "host": "127.0.0.1"}}
        assert await _one_answer(raw, ("8.8.8.8", 1)) == (True, [])
        inside = {"httpGet": {"port": there, "host": "10.0.0.1"}}
        ready, (warning,) = await _one_answer(inside, ("8.8.8.8", 1))
        assert not ready
        assert "not public" in warning


@pytest.mark.parametrize("handler", ["httpGet", "tcpSocket", "grpc"])
def test_a_probe_of_a_port_that_is_not_published_is_found_at_admission(handler: str) -> None:
    """It could never pass; said before money is spent."""
    good = {"spec": {"containers": [container(readiness={handler: {"port": 8000}})]}}
    assert unreachable_probe(good) == ""
    assert "8000 is not published" in unreachable_probe(good, published=())
    bad = {"spec": {"containers": [container(liveness={handler: {"port": 53}})]}}
    problem = unreachable_probe(bad)
    assert problem.startswith("liveness probe of container app: port 53 is not published")
    assert unreachable_probe(bad, published=[53]) == ""


def test_a_probe_of_a_name_that_is_no_port_is_found_at_admission() -> None:
    """A typo."""
    bad = {"spec": {"containers": [container(startup={"httpGet": {"port": "htpp"}})]}}
    assert "named 'htpp'" in unreachable_probe(bad)
    other = {"httpGet": {"port": 1, "host": "example.com"}}
    assert unreachable_probe({"spec": {"containers": [container(startup=other)]}}) == ""
    command = {"exec": {"command": ["x"]}}
    assert unreachable_probe({"spec": {"containers": [container(startup=command)]}}) == ""


def test_defaults_are_those_of_the_api() -> None:
    """Objects from a file or a cache may lack them."""
    probe = probe_of(container(liveness={"httpGet": {"port": 1}}), Kind.LIVENESS)
    assert probe is not None
    assert (probe.period_s, probe.timeout_s, probe.successes, probe.failures) == (10, 1, 1, 3)
    assert probe.grace_s is None
    assert probe_of(container(liveness={}), Kind.LIVENESS) is None
    assert probe_of(container(), Kind.READINESS) is None


@given(results=st.lists(st.booleans(), max_size=60), up=st.integers(1, 4), down=st.integers(1, 4))
def test_a_verdict_changes_only_after_so_many_results_in_a_row(
    results: list[bool], up: int, down: int
) -> None:
    """Against the plainest way to say it: look at the last so many results."""
    spec = container(readiness=by_command(successThreshold=up, failureThreshold=down))
    probe = probe_of(spec, Kind.READINESS)
    assert probe is not None
    record, verdict = ProbeRecord(False), False
    for at, passed in enumerate(results, start=1):
        record = record.after(passed, probe)
        if len(results[:at]) >= up and all(results[:at][-up:]):
            verdict = True
        elif len(results[:at]) >= down and not any(results[:at][-down:]):
            verdict = False
        assert record.verdict is verdict


@pytest.mark.parametrize("port", ["", "-1", "²", None, "http2"])
def test_a_port_that_is_none_has_no_number(port: str | None) -> None:
    """Foreign text, as far as the API lets it through."""
    assert port_number(port, container()) is None
