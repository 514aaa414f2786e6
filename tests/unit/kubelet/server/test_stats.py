"""What node and pods use: how it is read, and how it is told to metrics-server."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from gp4u.errors import Unavailable
from gp4u.kubelet.held import Run
from gp4u.kubelet.server.sampling import SCRIPT, Sample, Sampler, read
from gp4u.kubelet.server.stats import Usage, own_usage, resource_text, summary
from gp4u.kubelet.server.ways_in import WaysIn
from gp4u.providers.bootstrap import PID_FILE
from gp4u.providers.contract import Ability, Finished
from gp4u.providers.session import Stream
from tests.unit.kubelet.shown import Echo, Node, Shown, held, rental, state
from tests.virtual_loop import VirtualClock, run_virtual

AT = datetime(2026, 1, 1, 0, 0, 10, tzinfo=UTC)
OWN = Usage(AT, 2_500_000_000, 1000, 1, 2)
TOLD = Finished(exit_code=0, stdout=b"cpu_us 1500000\nmemory 5000\ninactive 1000\n")


def sampler_of(market: Shown, node: Node) -> Sampler:
    """Return a sampler of the node's pods, all at one market."""
    return Sampler(node, WaysIn({"shown": market}), clock=VirtualClock())


@contextmanager
def working(root: Path) -> Iterator[None]:
    """Run what looks like a workload under our bootstrap: a session that computes."""
    pid_file = Path(f"{root}{PID_FILE}")
    pid_file.parent.mkdir()
    script = f'echo $$ >"{pid_file}"; echo go; while :; do :; done'
    process = subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE, start_new_session=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"go\n"
        yield
    finally:
        process.kill()
        process.communicate()


def sampled(**env: str) -> Sample:
    """Run the script for real."""
    path = {"PATH": os.environ["PATH"]}
    done = subprocess.run(["sh", "-c", SCRIPT], env=path | env, capture_output=True, check=True)
    found = read(done.stdout, AT)
    assert found is not None, done
    assert done.stderr == b""
    return found


def test_the_script_reads_a_session_of_processes(tmp_path: Path) -> None:
    """Simulated machines share one accounting: their processes are added up instead."""
    with working(tmp_path):
        first = sampled(GP4U_ROOT=str(tmp_path))
        assert 0 < first.memory_bytes < 100_000_000
        later = first
        for _ in range(200):
            if later.cpu_ns > first.cpu_ns:
                break
            later = sampled(GP4U_ROOT=str(tmp_path))
        assert later.cpu_ns > first.cpu_ns


def test_the_script_reads_a_container() -> None:
    """A rented machine has an accounting of its own, or at least processes."""
    assert sampled().memory_bytes > 0


def test_what_is_no_sample_is_none() -> None:
    """What a machine prints is its guest's word (S17)."""
    assert read(b"", AT) is None
    assert read(b"cpu_us 1\n", AT) is None
    assert read(b"cpu_us -1\nmemory 5\n", AT) is None
    assert read(b"cpu_us " + b"9" * 40 + b"\nmemory 5\n", AT) is None
    assert read(b"\xffcpu_us 1\ncpu_us 2\nmemory 5\ninactive 9\n", AT) == Sample(AT, 2000, 0)


def test_nothing_is_sampled_until_somebody_asks_and_then_not_too_often() -> None:
    """A command in a machine for nobody costs the market's limit and the workload's time."""

    async def inside() -> None:
        market, node = Shown(), Node(held(of=rental()))
        market.ended = TOLD
        sampler = sampler_of(market, node)
        async with asyncio.TaskGroup() as group:
            task = group.create_task(sampler.run())
            await asyncio.sleep(600)
            assert market.commands == []
            assert sampler.samples() == {}
            for _ in range(20):
                await asyncio.sleep(15)
                sampler.samples()
            assert 8 <= len(market.commands) <= 11
            (sample,) = sampler.samples().values()
            assert (sample.cpu_ns, sample.memory_bytes) == (1_500_000_000, 4000)
            await asyncio.sleep(310)
            asked = len(market.commands)
            await asyncio.sleep(3600)
            assert len(market.commands) == asked
            task.cancel()

    run_virtual(inside)


def test_cpu_time_never_falls_and_a_pod_that_ended_is_forgotten() -> None:
    """metrics-server takes a counter that falls for a restart."""

    async def inside() -> None:
        market, node = Shown(), Node(held(of=rental()))
        market.ended = TOLD
        sampler = sampler_of(market, node)
        async with asyncio.TaskGroup() as group:
            task = group.create_task(sampler.run())
            sampler.samples()
            await asyncio.sleep(1)
            market.ended = Finished(exit_code=0, stdout=b"cpu_us 1\nmemory 7\n")
            await asyncio.sleep(60)
            (sample,) = sampler.samples().values()
            assert (sample.cpu_ns, sample.memory_bytes) == (1_500_000_000, 7)
            node.every = [held(state(run=Run.TERMINATED), of=rental())]
            await asyncio.sleep(60)
            assert sampler.samples() == {}
            task.cancel()

    run_virtual(inside)


def test_each_container_of_a_machine_is_sampled_by_itself() -> None:
    """`kubectl top pod --containers` shows which of them it is."""

    async def inside() -> None:
        market, node = Shown(), Node(held(state("stt"), state("tts"), of=rental()))
        market.ended = TOLD
        sampler = sampler_of(market, node)
        async with asyncio.TaskGroup() as group:
            task = group.create_task(sampler.run())
            sampler.samples()
            await asyncio.sleep(1)
            assert set(sampler.samples()) == {("gp4u-x-1", "stt"), ("gp4u-x-1", "tts")}
            assert set(market.into) == {None, "tts"}
            task.cancel()

    run_virtual(inside)


def test_a_machine_that_does_not_answer_is_asked_less() -> None:
    """One that has no shell is asked four times an hour, and none holds up the others."""

    async def inside() -> None:
        broken, mute = Shown(), Shown(can=Ability.LOGS)
        broken.error = Unavailable("shown", "exec", "503")
        for market, most in ((broken, 11), (mute, 0)):
            sampler = sampler_of(market, Node(held(of=rental())))
            async with asyncio.TaskGroup() as group:
                task = group.create_task(sampler.run())
                for _ in range(10):
                    assert sampler.samples() == {}
                    await asyncio.sleep(60)
                task.cancel()
            assert len(market.commands) <= most

    run_virtual(inside)


class Vanished(Echo):
    """A command on a machine that is gone: it says nothing, and answers no farewell."""

    async def output(self) -> AsyncIterator[tuple[Stream, bytes]]:
        await asyncio.Event().wait()
        yield Stream.OUT, b""

    async def aclose(self) -> None:
        await asyncio.Event().wait()


def test_a_machine_that_vanished_does_not_end_the_sampling() -> None:
    """All the others would show their last figures for ever."""

    async def inside() -> None:
        market = Shown(can=Ability.SHELL)
        market.session = Vanished()
        sampler = sampler_of(market, Node(held(of=rental())))
        async with asyncio.TaskGroup() as group:
            task = group.create_task(sampler.run())
            sampler.samples()
            await asyncio.sleep(120)
            market.session = Echo(TOLD.stdout)
            sampler.samples()
            await asyncio.sleep(120)
            assert len(sampler.samples()) == 1
            task.cancel()

    run_virtual(inside)


def test_the_page_is_what_metrics_server_reads() -> None:
    """Names, the order of labels and stamps are an interface; one slip empties `kubectl top`."""
    pods = [held(of=rental()), held(uid="u2", name="mute", of=rental("gp4u-x-2"))]
    samples = {("gp4u-x-1", "stt"): Sample(AT - timedelta(seconds=2), 1_500_000_000, 4000)}
    at, of = "1767225610000", "1767225608000"
    where = 'container="stt",pod="june",namespace="default"'
    lines = [
        each
        for each in resource_text(OWN, pods, samples).decode().splitlines()
        if not each.startswith("#")
    ]
    assert lines == [
        f"node_cpu_usage_seconds_total 2.500000000 {at}",
        f"node_memory_working_set_bytes 1000 {at}",
        f'pod_cpu_usage_seconds_total{{namespace="default",pod="june"}} 1.500000000 {of}',
        f'pod_memory_working_set_bytes{{namespace="default",pod="june"}} 4000 {of}',
        f"container_cpu_usage_seconds_total{{{where}}} 1.500000000 {of}",
        f"container_memory_working_set_bytes{{{where}}} 4000 {of}",
        f"container_start_time_seconds{{{where}}} 1767225600.000",
        'container_start_time_seconds{container="stt",pod="mute",namespace="default"} '
        "1767225600.000",
        "resource_scrape_error 0",
    ]


def test_the_summary_names_every_running_pod_and_leaves_out_what_is_unknown() -> None:
    """A 0 that means unknown would scale a Deployment down."""
    pods = [
        held(state("stt"), state("tts"), of=rental()),
        held(state(run=Run.WAITING), uid="u2", name="later"),
    ]
    samples = {("gp4u-x-1", "stt"): Sample(AT, 1_500_000_000, 4000)}
    told = summary(
        node_name="n1",
        started_at=AT - timedelta(hours=1),
        own=OWN,
        before=Usage(AT - timedelta(seconds=1), 2_000_000_000, 1, 1, 1),
        pods=pods,
        samples=samples,
        only_cpu_and_memory=True,
    )
    assert told["node"]["cpu"]["usageNanoCores"] == 500_000_000
    assert told["node"]["startTime"] == "2025-12-31T23:00:10Z"
    (one,) = told["pods"]
    assert one["podRef"] == {"name": "june", "namespace": "default", "uid": "uid-1"}
    stt, tts = one["containers"]
    assert stt["cpu"] == {"time": "2026-01-01T00:00:10Z", "usageCoreNanoSeconds": 1_500_000_000}
    assert stt["memory"]["workingSetBytes"] == 4000
    assert "cpu" not in tts
    assert one["cpu"]["usageCoreNanoSeconds"] == 1_500_000_000


def test_the_node_uses_what_this_process_uses() -> None:
    """Nothing else runs on the node; a made-up figure would mislead an autoscaler."""
    first = own_usage(AT)
    assert first.memory_bytes > 10_000_000
    assert own_usage(AT).cpu_ns >= first.cpu_ns > 0
