"""What pods use of their machines, as the machines tell it when somebody wants to know.

No market tells CPU and memory of a workload, and without them neither `kubectl top pod` nor an
autoscaler works. Where a command can be run inside, one short command reads the container's own
accounting, or adds up its processes. It runs in the background and only as long as somebody asks,
at most twice a minute for a container. What a machine says of itself is its guest's claim: it is
shown, and nothing is decided by it.

Source: Linux Documentation/admin-guide/cgroup-v2.rst, cgroup-v1/{cpuacct,memory}.rst and
filesystems/proc.rst; checked 2026-11.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import datetime
from typing import Final

import structlog
from msgspec import Struct

from gp4u.clock import Clock
from gp4u.errors import Gp4uError, Refused
from gp4u.kubelet.held import Held, Pods, Run
from gp4u.kubelet.server.ways_in import WaysIn
from gp4u.kubelet.streams.closing import close
from gp4u.providers.bootstrap import PID_FILE
from gp4u.providers.session import Stream

PERIOD_S: Final = 30.0
WANTED_S: Final = 300.0
"""For so long after somebody asked, samples are kept fresh."""
AFTER_FAILURE_S: Final = 60.0
AFTER_REFUSAL_S: Final = 900.0
DEADLINE_S: Final = 20.0
AT_ONCE: Final = 8
TICK_S: Final = 5.0
MAX_OUTPUT: Final = 4096
_MOST: Final = 2**63

SCRIPT: Final = f"""\
f="${{GP4U_ROOT:-}}{PID_FILE}" c=/sys/fs/cgroup s=
if [ -z "${{GP4U_ROOT+set}}" ] && [ -r $c/cpu.stat ] && [ -r $c/memory.current ]; then
while read -r k v; do [ "$k" != usage_usec ] || echo "cpu_us $v"; done <$c/cpu.stat
read -r v <$c/memory.current; echo "memory $v"
while read -r k v; do [ "$k" != inactive_file ] || echo "inactive $v"; done <$c/memory.stat
exit 0; fi
if [ -z "${{GP4U_ROOT+set}}" ] && [ -r $c/cpuacct/cpuacct.usage ] &&
[ -r $c/memory/memory.usage_in_bytes ]; then
read -r v <$c/cpuacct/cpuacct.usage; echo "cpu_us $((v/1000))"
read -r v <$c/memory/memory.usage_in_bytes; echo "memory $v"
while read -r k v; do [ "$k" != total_inactive_file ] || echo "inactive $v"
done <$c/memory/memory.stat
exit 0; fi
if [ -r "$f" ]; then read -r p <"$f"
{{ read -r l </proc/$p/stat; }} 2>/dev/null && set -- ${{l##*) }} && s=$4; fi
[ -n "$s" ] || [ -z "${{GP4U_ROOT+set}}" ] || exit 3
t=0 m=0
for f in /proc/[0-9]*/stat; do
{{ read -r l <$f; }} 2>/dev/null || continue
set -- ${{l##*) }}
[ -z "$s" ] || [ "$4" = "$s" ] || continue
t=$((t+${{12}}+${{13}}+${{14}}+${{15}})) m=$((m+${{22}}))
done
echo "cpu_us $((t*10000))"; echo "memory $((m*4096))"
"""
"""Prints `cpu_us`, `memory` and, where it is known, `inactive` (page cache that can go), in bytes.

A set `GP4U_ROOT` is a simulated machine without an accounting of its own: there, as where no such
files are, the processes of the workload's session are added up. A tick is 10 ms and a page 4 KiB on
every machine that is sold.
"""


class Sample(Struct, frozen=True):
    """What a container has used and uses."""

    at: datetime
    cpu_ns: int
    """CPU time since it began; never less than in an earlier sample."""
    memory_bytes: int
    """Its working set."""


Key = tuple[str, str]
"""A rental's key, and the name of a container that it runs."""


class Sampler:
    """Keeps samples of the containers of all running pods."""

    def __init__(self, pods: Pods, ways: WaysIn, *, clock: Clock) -> None:
        self._pods, self._ways, self._clock = pods, ways, clock
        self._samples: dict[Key, Sample] = {}
        self._due_s: dict[Key, float] = {}
        self._wanted_until_s = float("-inf")
        self._wanted = asyncio.Event()

    def samples(self) -> Mapping[Key, Sample]:
        """Return the newest samples; from now on they are kept fresh for a while."""
        self._wanted_until_s = asyncio.get_running_loop().time() + WANTED_S
        self._wanted.set()
        return self._samples

    async def run(self) -> None:
        """Sample as long as somebody wants to know."""
        loop = asyncio.get_running_loop()
        while True:
            if loop.time() > self._wanted_until_s:
                self._wanted.clear()
                await self._wanted.wait()
            await self._round()
            await asyncio.sleep(TICK_S)

    async def _round(self) -> None:
        running = {key: held for held in self._pods.all() for key in keys_of(held).values()}
        for gone in [key for key in self._due_s if key not in running]:
            del self._due_s[gone]
            self._samples.pop(gone, None)
        now_s = asyncio.get_running_loop().time()
        due = sorted((self._due_s.get(key, 0.0), key) for key in running)
        lane = asyncio.Semaphore(AT_ONCE)
        async with asyncio.TaskGroup() as group:
            for at_s, key in due:
                if at_s <= now_s:
                    group.create_task(self._sample(lane, key, running[key]))

    async def _sample(self, lane: asyncio.Semaphore, key: Key, held: Held) -> None:
        loop, (rental, name) = asyncio.get_running_loop(), key
        pause_s = PERIOD_S
        async with lane:
            if self._ways.problem_of_exec(held, name):
                self._due_s[key] = loop.time() + AFTER_REFUSAL_S
                return
            try:
                async with asyncio.timeout(DEADLINE_S):
                    found = read(await self._asked(held, name), self._clock.now())
                if found is None:
                    pause_s = AFTER_FAILURE_S
                else:
                    self._samples[key] = _no_less(found, self._samples.get(key))
            except Refused:
                pause_s = AFTER_REFUSAL_S
            except (Gp4uError, OSError, TimeoutError) as error:
                pause_s = AFTER_FAILURE_S
                structlog.get_logger().debug("usage_not_read", rental=rental, error=str(error))
        self._due_s[key] = loop.time() + pause_s

    async def _asked(self, held: Held, name: str) -> bytes:
        session = await self._ways.command(held, name, ("sh", "-c", SCRIPT), tty=False)
        try:
            await session.end_input()
            output = b""
            async for stream, data in session.output():
                if stream is Stream.OUT and len(output) < MAX_OUTPUT:
                    output += data
            return output
        finally:
            await close(session)


def keys_of(held: Held) -> dict[str, Key]:
    """Return a pod's running containers that have a machine, each with its key among samples."""
    found: dict[str, Key] = {}
    for each in held.containers:
        rental = held.rentals.get(each.name)
        if rental is not None and each.run is Run.RUNNING and rental.instance_id:
            found[each.name] = (rental.key, each.name)
    return found


def read(output: bytes, at: datetime) -> Sample | None:
    """Return what the script printed as a sample; None where it is none."""
    values: dict[str, int] = {}
    for line in output.decode("ascii", "replace").splitlines():
        name, _, number = line.partition(" ")
        if number.isdecimal() and int(number) < _MOST:
            values[name] = int(number)
    if "cpu_us" not in values or "memory" not in values:
        return None
    memory = max(0, values["memory"] - values.get("inactive", 0))
    return Sample(at, values["cpu_us"] * 1000, memory)


def _no_less(found: Sample, before: Sample | None) -> Sample:
    if before is None or found.cpu_ns >= before.cpu_ns:
        return found
    # Processes that ended took their time along; a counter that falls would mean a restart.
    return Sample(found.at, before.cpu_ns, found.memory_bytes)
