"""What others see of a pod: its status, its entry in the kubelet API, its place behind Services.

Hides when each of them is told: everything is worked out at each look, from what the worker knows,
and told only where it changed. It exists so that a worker says nothing about the pod but by what it
knows. Shapes are `status.py`'s, containers `containers.py`'s, slices the publisher's business.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Final

from msgspec.structs import replace

from gp4u.clock import Clock
from gp4u.kubelet.held import ContainerState, Held, PodObject
from gp4u.kubelet.logs.store import LogStore
from gp4u.kubelet.pods.containers import Checks, container_states, init_states, is_up
from gp4u.kubelet.pods.memory import Memory, Why
from gp4u.kubelet.policy import NodePolicy
from gp4u.kubelet.services.publish import Exposure, Publisher
from gp4u.kubelet.status.status import PodState, status_of, status_patch
from gp4u.kubelet.status.writer import StatusWriter
from gp4u.model import Endpoint
from gp4u.rentals.rental import Rental, RentalState

_RESIZE: Final = {
    "type": "PodResizePending",
    "status": "True",
    "reason": "Infeasible",
    "message": "a rented machine cannot be resized",
}


class Showing:
    """What is shown of one pod."""

    def __init__(
        self,
        pod: PodObject,
        *,
        clock: Clock,
        policy: Callable[[], NodePolicy],
        publisher: Publisher,
        logs: LogStore,
        writer: StatusWriter,
        pod_ip: Callable[[Held], str | None],
    ) -> None:
        """`pod_ip` gives the address inside the cluster that leads to the pod, if there is one."""
        self._clock, self._policy = clock, policy
        self._publisher, self._logs, self._writer = publisher, logs, writer
        self._pod_ip = pod_ip
        self._status: dict[str, Any] = {}
        self._exposed: Exposure | None = None
        self._is_writing = False
        self._unsaid = asyncio.Event()
        self.pod = pod
        """The newest look at it: by the watch, or as our last write left it."""
        self.held = Held(pod=pod)

    def show(
        self,
        memory: Memory,
        checks: Checks,
        *,
        rentals: Mapping[str, Rental],
        beside: frozenset[str],
        leaving: bool,
        stopped: bool,
        again: bool,
        is_unread: bool,
        group: asyncio.TaskGroup,
    ) -> None:
        """Work out what is to be seen now, and tell what is new.

        `rentals` maps containers to the rentals that run them, `beside` are those that are not the
        first one of their machine; `stopped`: it is deleted, and nothing of it runs; `again`
        compares with what the API server has, as others write there as well. `is_unread`: it has
        machines of which nothing is known yet, so that what was told of it before stays.
        """
        uid = self.pod["metadata"]["uid"]
        app = container_states(
            self.pod,
            memory,
            checks,
            tail=lambda name, before: self._logs.tail(uid, name, before=before),
        )
        init = init_states(self.pod, memory, app, lambda name: self._logs.ending(uid, name))
        self.held = Held(
            pod=self.pod,
            containers=app,
            init_containers=init,
            rentals=rentals,
            beside=beside,
            ready=self.held.ready,
            leaving=leaving,
        )
        if is_unread:
            return
        if memory.acknowledged_at is not None or stopped:
            self._tell_status(
                memory, app, init, leaving=leaving, stopped=stopped, again=again, group=group
            )
        self._expose(memory, rentals, leaving=leaving)

    async def tell_last(self, within_s: float) -> None:
        """Wait until the newest status is written, or it takes too long."""
        if not self._status:
            return  # it was deleted before anything was said of it
        try:
            async with asyncio.timeout(within_s):
                await self._writer.write(self.pod, self._status)
        except TimeoutError:
            return  # the API server is away: whoever asks it sees no status anyway

    def _tell_status(
        self,
        memory: Memory,
        app: tuple[ContainerState, ...],
        init: tuple[ContainerState, ...],
        *,
        leaving: bool,
        stopped: bool,
        again: bool,
        group: asyncio.TaskGroup,
    ) -> None:
        at = self._clock.now()
        outcome = memory.outcome
        why = _why(memory)
        state = PodState(
            containers=app,
            init_containers=init,
            acknowledged_at=memory.acknowledged_at or at,
            host_ip=self._policy().address,
            pod_ip=self._pod_ip(self.held),
            machine_up=is_up(memory),
            reason=outcome.reason if outcome is not None else why.reason,
            message=outcome.message if outcome is not None else why.message,
            phase=outcome.phase if outcome is not None else None,
            disruption=outcome.disruption if outcome is not None else None,
            finalising=leaving or outcome is not None,
            stopped=stopped,
        )
        status = status_of(self.pod, state, at=at)
        if "resources" in memory.ignored:
            _add_condition(status, _RESIZE)
        ready = any(
            each["type"] == "Ready" and each["status"] == "True"
            for each in status.get("conditions", ())
        )
        self.held = replace(self.held, ready=ready and not leaving)
        if status == self._status and not again:
            return
        self._status = status
        # While something is being written, the look at the pod is from before that.
        if not self._is_writing and status_patch(self.pod, status) is None:
            return
        self._unsaid.set()
        if not self._is_writing:
            self._is_writing = True
            group.create_task(self._write())

    async def _write(self) -> None:
        try:
            while self._unsaid.is_set():
                self._unsaid.clear()
                pod = self.pod
                written = await self._writer.write(pod, self._status)
                # What the watch brought meanwhile is newer, and may tell of a deletion.
                if written is not None and self.pod is pod:
                    self.pod = written
        finally:
            self._is_writing = False

    def _expose(self, memory: Memory, rentals: Mapping[str, Rental], *, leaving: bool) -> None:
        endpoints: dict[Endpoint, None] = {}
        provider = ""
        for rental in rentals.values():
            if rental.state is RentalState.RUNNING:
                endpoints.update(dict.fromkeys(rental.endpoints))
                provider = provider or rental.provider
        address = self._pod_ip(self.held)
        exposure = Exposure(
            pod=self.pod,
            endpoints=tuple(endpoints),
            ready=self.held.ready and not memory.is_over,
            terminating=leaving,
            provider=provider,
            # The node's own address stands in for pods without a relay; nothing listens there.
            relay_ip=None if address == self._policy().address else address,
        )
        if self._exposed is None and not endpoints:
            return
        if exposure != self._exposed:
            self._exposed = exposure
            self._publisher.set(exposure)


def _why(memory: Memory) -> Why:
    """Return why the pod as a whole waits, for its `reason` and `message`."""
    if memory.hold is not None:
        return memory.hold
    for slot in memory.slots:
        if slot.begun is None and slot.done is None and slot.why.reason not in _USUAL:
            return slot.why
    return Why("")


_USUAL: Final = frozenset({"ContainerCreating", "CrashLoopBackOff"})


def _add_condition(status: dict[str, Any], condition: Mapping[str, Any]) -> None:
    kept = [each for each in status.get("conditions", ()) if each["type"] != condition["type"]]
    status["conditions"] = [*kept, dict(condition)]
