"""Probes of one run of a container: is it started, does it serve, must it be restarted?

Hides defaults, delays, counts and the startup gate. HTTP, TCP and gRPC probes come from this
process and go to where the machine publishes the port, because that is the way that everybody else
takes; commands go through the market. Nothing here restarts anything or writes a status: who made
the prober is told that something changed, and looks. How a question is put is `calls.py`'s
part.

Source: kubernetes pkg/kubelet/prober, 1.32; checked 2026-11.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from enum import StrEnum
from random import Random
from typing import Any, Final

from msgspec import Struct
from msgspec.structs import replace

from gp4u.clock import Clock
from gp4u.errors import Gp4uError
from gp4u.kubelet.held import PodObject
from gp4u.kubelet.probes.calls import Answer, Outside, Place, place_of

Target = tuple[str, int] | str | None
"""Where a container port can be reached: host and port, or a URL; None: nowhere yet."""
EXEC_TRIES: Final = 3
START_SPREAD_S: Final = 1.0
"""Within this the first probe of a fresh container is put, so that many do not come at once."""
SLOW_NETWORK_S: Final = 2.0
"""A shorter timeout is less than a way across an ocean and back may take on a bad day."""
_HANDLERS: Final = ("httpGet", "tcpSocket", "grpc", "exec")


class Kind(StrEnum):
    """Which of a container's probes."""

    STARTUP = "startup"
    READINESS = "readiness"
    LIVENESS = "liveness"


class Probe(Struct, frozen=True, kw_only=True):
    """One probe of a container, with every default filled in. Times are in seconds."""

    kind: Kind
    handler: str
    how: Mapping[str, Any]
    initial_delay_s: float
    period_s: float
    timeout_s: float
    successes: int
    failures: int
    grace_s: int | None
    """How long a container that this probe condemns has to end; None: as long as ever."""


class ProbeRecord(Struct, frozen=True):
    """How one probe stands: its verdict, and how many results in a row speak against it."""

    verdict: bool
    run: int = 0

    def after(self, passed: bool, probe: Probe) -> ProbeRecord:
        """Return how it stands after one more result."""
        if passed is self.verdict:
            return ProbeRecord(self.verdict)
        run = self.run + 1
        needed = probe.successes if passed else probe.failures
        return ProbeRecord(passed) if run >= needed else ProbeRecord(self.verdict, run)


class RestartWanted(Struct, frozen=True):
    """A liveness or startup probe has failed for good."""

    message: str
    grace_s: int | None = None


def probe_of(container: Mapping[str, Any], kind: Kind) -> Probe | None:
    """Return one probe of a container spec; None where it has none."""
    spec = container.get(f"{kind}Probe")
    if not spec:
        return None
    handler = next((each for each in _HANDLERS if spec.get(each) is not None), None)
    if handler is None:
        return None
    return Probe(
        kind=kind,
        handler=handler,
        how=spec[handler],
        initial_delay_s=float(spec.get("initialDelaySeconds") or 0),
        period_s=float(spec.get("periodSeconds") or 10),
        timeout_s=float(spec.get("timeoutSeconds") or 1),
        successes=int(spec.get("successThreshold") or 1),
        failures=int(spec.get("failureThreshold") or 3),
        grace_s=spec.get("terminationGracePeriodSeconds"),
    )


def unreachable_probe(pod: PodObject, published: Collection[int] | None = None) -> str:
    """Say which probe can never pass, because nobody can reach the port it asks; empty: none.

    `published` are container ports that will be open to the outside, by TCP; None: those that the
    containers declare. A probe that names a host of its own is not looked at.
    """
    containers = _containers(pod["spec"])
    if published is None:
        published = {
            each["containerPort"]
            for container in containers
            for each in container.get("ports") or ()
            if each.get("protocol", "TCP") == "TCP"
        }
    for container in containers:
        for kind in Kind:
            probe = probe_of(container, kind)
            if probe is None or probe.handler == "exec" or probe.how.get("host"):
                continue
            about = f"{kind} probe of container {container['name']}"
            number = port_number(probe.how.get("port"), container)
            if number is None:
                return f"{about}: no port of it is named {str(probe.how.get('port'))[:64]!r}"
            if number not in published:
                return f"{about}: port {number} is not published, so it cannot be asked from here"
    return ""


def port_number(port: object, container: Mapping[str, Any]) -> int | None:
    """Return a port of a container by number or name; None where there is none of that name."""
    if isinstance(port, int):
        return port
    for each in container.get("ports") or ():
        if each.get("name") == port and port:
            number: int = each["containerPort"]
            return number
    return int(port) if isinstance(port, str) and port.isascii() and port.isdigit() else None


class ContainerProber:
    """Probes one run of one container; a restart of it wants a new prober.

    `tell` is called, in the loop, after `started`, `ready` or `restart_wanted` has changed; `warn`
    gets reason and message of what belongs into an Event, `count` what each question brought.
    """

    def __init__(
        self,
        container: Mapping[str, Any],
        *,
        target: Callable[[int | str], Target],
        exec_: Callable[[Sequence[str], float], Awaitable[int]] | None,
        clock: Clock,
        random: Random,
        tell: Callable[[], None],
        warn: Callable[[str, str], None],
        count: Callable[[Kind, Answer | None], None] = lambda _kind, _answer: None,
        started_at: datetime | None = None,
        started: bool = False,
        ready: bool = False,
        allow_loopback: bool = False,
    ) -> None:
        self._container, self._target, self._exec = container, target, exec_
        self._clock, self._random, self._tell, self._warn = clock, random, tell, warn
        self._count = count
        self._probes = {kind: probe_of(container, kind) for kind in Kind}
        self._outside = Outside(allow_loopback=allow_loopback)
        self._adopted = started
        self._since = started_at or clock.now()
        self.started = started
        """Whether the startup probe has passed, or there is none."""
        self.ready = ready
        """Whether it is to get work."""
        self.restart_wanted: RestartWanted | None = None

    async def run(self) -> None:
        """Probe until a restart is wanted or nothing is left to ask; else until cancelled."""
        self._warn_of_haste()
        startup = self._probes[Kind.STARTUP]
        if startup is None:
            self._change(started=True)
        elif not self.started and not await self._judge(startup):
            return
        readiness, liveness = self._probes[Kind.READINESS], self._probes[Kind.LIVENESS]
        if readiness is None:
            self._change(ready=True)
        async with asyncio.TaskGroup() as group:
            ready = group.create_task(self._watch(readiness)) if readiness else None
            if liveness is not None:
                await self._judge(liveness)
                if ready is not None:
                    ready.cancel()

    async def _judge(self, probe: Probe) -> bool:
        """Ask until a startup probe has passed, or a probe has condemned the container."""
        await asyncio.sleep(self._first_wait_s(probe))
        beats, failed = _Beats(probe.period_s), 0
        while True:
            answer = await self._ask(probe)
            if answer is not None and not answer.problem:
                failed = 0
                if probe.kind is Kind.STARTUP:
                    self._change(started=True)
                    return True
            elif answer is not None:
                failed += 1
                if failed >= probe.failures:
                    what = f"{probe.kind} probe failed {failed} times in a row: {answer.problem}"
                    self.restart_wanted, self.ready = RestartWanted(what, probe.grace_s), False
                    self._tell()
                    return False
            await beats.next()

    async def _watch(self, probe: Probe) -> None:
        """Ask a readiness probe for as long as the container runs."""
        record = ProbeRecord(self.ready)
        await asyncio.sleep(self._first_wait_s(probe))
        beats = _Beats(probe.period_s)
        while True:
            answer = await self._ask(probe)
            if answer is not None:
                record = record.after(not answer.problem, probe)
                self._change(ready=record.verdict)
            await beats.next()

    async def _ask(self, probe: Probe) -> Answer | None:
        """Put one question; None: nobody knows, so it counts for nothing."""
        answer = await self._answer(probe)
        self._count(probe.kind, answer)
        return answer

    async def _answer(self, probe: Probe) -> Answer | None:
        """Put one question and tell of trouble."""
        title = probe.kind.capitalize()
        try:
            async with asyncio.timeout(probe.timeout_s):
                answer = await self._put(probe)
        except TimeoutError:
            answer = Answer(f"no answer within {probe.timeout_s:g} s")
        except (Gp4uError, OSError) as error:
            self._warn("Unhealthy", f"{title} probe errored: {error}")
            return None
        if answer.problem:
            self._warn("Unhealthy", f"{title} probe failed: {answer.problem}")
        elif answer.warning:
            self._warn("ProbeWarning", f"{title} probe warning: {answer.warning}")
        return answer

    async def _put(self, probe: Probe) -> Answer:
        how = probe.how
        if probe.handler == "exec":
            return await self._run_command(list(how.get("command") or ()), probe.timeout_s)
        place, problem = self._place(how)
        if place is None:
            return Answer(problem)
        if probe.handler == "tcpSocket":
            return await self._outside.tcp(place)
        if probe.handler == "grpc":
            return await self._outside.grpc(place, how.get("service") or "")
        headers = [(each["name"], each.get("value", "")) for each in how.get("httpHeaders") or ()]
        tls = str(how.get("scheme") or "HTTP").upper() == "HTTPS"
        place = place if place.by_name else replace(place, tls=tls)
        return await self._outside.http(place, how.get("path") or "/", headers)

    def _place(self, how: Mapping[str, Any]) -> tuple[Place | None, str]:
        """Return where a probe goes, or None and why it cannot."""
        port = port_number(how.get("port"), self._container)
        if port is None:
            return None, f"no port is named {str(how.get('port'))[:64]!r}"
        target, host = self._target(port), str(how.get("host") or "")
        if host and not self._is_machine(host, target):
            return Place(host=host.strip("[]"), port=port), ""
        if target is None:
            return None, f"port {port} is not published"
        if isinstance(target, str):
            place = place_of(target)
            return place, "" if place else "the published address is none that can be called"
        return Place(host=target[0], port=target[1]), ""

    def _is_machine(self, host: str, target: Target) -> bool:
        """Whether the host that a probe names is the machine itself, where ports are mapped."""
        if isinstance(target, tuple):
            there = target[0]
        else:
            place = place_of(target) if target else None
            there = place.host if place else ""
        with suppress(ValueError):
            return ipaddress.ip_address(host.strip("[]")) == ipaddress.ip_address(there)
        return host.lower() == there.lower()

    async def _run_command(self, command: Sequence[str], timeout_s: float) -> Answer:
        """Run a command in the container; a market that stumbles is asked again."""
        if self._exec is None:
            return Answer("this market runs no commands")
        tries = EXEC_TRIES
        while True:
            tries -= 1
            try:
                code = await self._exec(command, timeout_s)
            except TimeoutError:
                raise  # that is an answer
            except (Gp4uError, OSError):
                if not tries:
                    raise
                continue
            return Answer("" if code == 0 else f"the command ended with {code}")

    def _first_wait_s(self, probe: Probe) -> float:
        """Return how long until a probe is put for the first time."""
        since_s = (self._clock.now() - self._since).total_seconds()
        delay_s = max(0.0, probe.initial_delay_s - since_s)
        # After a restart of the node all its pods are adopted at once, so they spread out more.
        spread_s = probe.period_s if self._adopted else min(START_SPREAD_S, probe.period_s)
        return delay_s + self._random.uniform(0.0, spread_s)

    def _warn_of_haste(self) -> None:
        hasty = [
            f"{kind} ({probe.timeout_s:g} s)"
            for kind, probe in self._probes.items()
            if probe is not None and probe.timeout_s < SLOW_NETWORK_S and not self._adopted
        ]
        if hasty:
            least = f"a machine across the internet may need {SLOW_NETWORK_S:g} s"
            self._warn("ProbeWarning", f"timeoutSeconds is short: {', '.join(hasty)}; {least}")

    def _change(self, *, started: bool | None = None, ready: bool | None = None) -> None:
        """Take over what changed, and tell once if anything did."""
        before = self.started, self.ready
        self.started = before[0] if started is None else started
        self.ready = before[1] if ready is None else ready
        if (self.started, self.ready) != before:
            self._tell()


class _Beats:
    """Evenly spaced moments; those that a long answer has run over are left out."""

    def __init__(self, period_s: float) -> None:
        self._period_s = period_s
        self._at = asyncio.get_running_loop().time()

    async def next(self) -> None:
        now = asyncio.get_running_loop().time()
        self._at = max(now, self._at + self._period_s)
        await asyncio.sleep(self._at - now)


def _containers(spec: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the containers that may have probes: the ordinary ones, and sidecars."""
    first = spec.get("initContainers") or ()
    beside = [each for each in first if each.get("restartPolicy") == "Always"]
    return [*beside, *spec["containers"]]
