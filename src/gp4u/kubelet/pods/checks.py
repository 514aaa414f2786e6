"""The probes of a pod's running containers: one prober for each run, and what they say together.

Hides which probers there should be, and where their questions go: to the address at which the
machine publishes a port, or inside by the market.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from functools import partial
from random import Random
from typing import Any

from msgspec import Struct

from gp4u.clock import Clock
from gp4u.kubelet.held import PodObject
from gp4u.kubelet.pods.inside import can_run, run_inside
from gp4u.kubelet.pods.memory import Memory
from gp4u.kubelet.probes.probing import ContainerProber, Target
from gp4u.kubelet.probes.tally import ProbeTally
from gp4u.model import Protocol
from gp4u.providers.contract import Provider
from gp4u.rentals.rental import Rental

Warn = Callable[[str, str, str], None]
"""Takes container, reason and message of a Warning Event."""


class Probed(Struct, frozen=True):
    """A run of a container that should be probed."""

    spec: Mapping[str, Any]
    container_id: str
    started_at: datetime
    started: bool
    """Whether it was known before to be started, and to be ready."""
    ready: bool


def probed_runs(pod: PodObject, memory: Memory) -> dict[str, Probed]:
    """Return the runs that go on, by container, with what the pod's status knows of each."""
    specs = {each["name"]: each for each in pod["spec"]["containers"]}
    told = {each["name"]: each for each in pod.get("status", {}).get("containerStatuses", ())}
    found = {}
    for slot in memory.slots:
        for name, runs in slot.runs.items():
            if runs.begun is None:
                continue
            before = told.get(name, {})
            same = before.get("containerID") == runs.begun.container_id
            found[name] = Probed(
                spec=specs[name],
                container_id=runs.begun.container_id,
                started_at=runs.begun.started_at,
                started=same and bool(before.get("started")),
                ready=same and bool(before.get("ready")),
            )
    return found


class Checks:
    """The probers of one pod."""

    def __init__(
        self,
        *,
        pod: PodObject,
        tally: ProbeTally,
        rental_of: Callable[[str], Rental | None],
        known_as: Callable[[str], str | None],
        providers: Mapping[str, Provider],
        clock: Clock,
        random: Random,
        tell: Callable[[], None],
        warn: Warn,
        allow_loopback: bool,
    ) -> None:
        """`rental_of` maps a container to the rental that runs it now, `known_as` to the name by
        which a market tells it from the first one of its machine; `pod` is whose they are.
        """
        self._pod, self._tally = pod, tally
        self._rental_of, self._known_as, self._providers = rental_of, known_as, providers
        self._clock, self._random = clock, random
        self._tell, self._warn, self._allow_loopback = tell, warn, allow_loopback
        self._probers: dict[str, tuple[str, ContainerProber, asyncio.Task[None]]] = {}

    def keep(self, wanted: Mapping[str, Probed], group: asyncio.TaskGroup) -> None:
        """Have exactly these runs probed, by tasks of the group; keyed by container."""
        for name in list(self._probers):
            if name not in wanted or wanted[name].container_id != self._probers[name][0]:
                _, _, task = self._probers.pop(name)
                task.cancel()
        for name, probed in wanted.items():
            if name not in self._probers:
                prober = self._prober(name, probed)
                self._probers[name] = (
                    probed.container_id,
                    prober,
                    group.create_task(_probe(name, prober)),
                )

    @property
    def verdicts(self) -> Mapping[str, tuple[bool, bool]]:
        """Container to whether it is started, and whether it is ready."""
        return {name: (each.started, each.ready) for name, (_, each, _) in self._probers.items()}

    def unhealthy(self, container: str) -> str:
        """Return why a container has to be restarted; empty: it has not."""
        _, prober, _ = self._probers.get(container, (None, None, None))
        wanted = prober.restart_wanted if prober is not None else None
        return wanted.message if wanted is not None else ""

    def _prober(self, name: str, probed: Probed) -> ContainerProber:
        rental = self._rental_of(name)
        provider = self._providers.get(rental.provider) if rental is not None else None
        has_way_in = provider is not None and can_run(provider)
        exec_: Callable[[Sequence[str], float], Awaitable[int]] | None = None
        if has_way_in:
            exec_ = partial(self._run, name)
        return ContainerProber(
            probed.spec,
            target=partial(self._target, name),
            exec_=exec_,
            clock=self._clock,
            random=self._random,
            tell=self._tell,
            warn=partial(self._warn, name),
            count=partial(self._tally.count, self._pod, name),
            started_at=probed.started_at,
            started=probed.started,
            ready=probed.ready,
            allow_loopback=self._allow_loopback,
        )

    def _target(self, name: str, port: int) -> Target:
        rental = self._rental_of(name)
        for end in rental.endpoints if rental is not None else ():
            if end.container_port == port and end.protocol is Protocol.TCP:
                return end.url or (end.host, end.port)
        return None

    async def _run(self, name: str, command: Sequence[str], within_s: float) -> int:
        rental = self._rental_of(name)
        if rental is None:
            raise TimeoutError("the machine is gone")
        return await run_inside(
            self._providers[rental.provider],
            rental,
            command,
            within_s=within_s,
            container=self._known_as(name),
        )


async def _probe(container: str, prober: ContainerProber) -> None:
    try:
        await prober.run()
    except Exception:  # noqa: BLE001 - a rim: one container's probes must not end its pod's worker
        _log().exception("prober_failed", container=container)


def _log() -> Any:
    import structlog  # 60 ms that only a process that stays has to pay

    return structlog.get_logger()
