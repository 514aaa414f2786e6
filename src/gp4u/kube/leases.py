"""Which of several processes leads: one Lease object, renewed as long as its holder lives.

Hides the record and its clocks. A lease is a hint, not a lock: a process can be stopped between a
look and a deed. So the holder stops by its own clock before anybody else may begin (10 s, 15 s),
and each term has a number, `fence`, that grows with every change of hands; whoever writes what
must not be written twice carries it along.

Others' clocks are never compared with ours: a lease has expired once it was seen unchanged for its
whole duration.

Source: kubernetes client-go tools/leaderelection/leaderelection.go (record, 15 s, 10 s, 2 s), 1.36;
checked 2026-11.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from random import Random
from typing import Final

import structlog

from gp4u.clock import Clock
from gp4u.errors import KubeAbsent, KubeConflict, KubeError
from gp4u.kube import paths
from gp4u.kube.client import KubeClient, KubeObject

DURATION_S: Final = 15.0
DEADLINE_S: Final = 10.0
RENEW_S: Final = 2.0
RENEW_AGAIN_S: Final = 1.0
"""After a renewal that failed: the deadline does not wait."""
LETTING_GO_S: Final = 2.0
"""For the last word of a holder that leaves; without it the next one waits for `DURATION_S`."""


class _LostError(Exception):
    """The term is over, for us or for certain soon."""


class LeaderLease:
    """One candidate for one Lease; `run` it in a task.

    `client` has connections and deadlines of its own; `identity` is of this process alone.
    """

    def __init__(
        self,
        client: KubeClient,
        *,
        namespace: str,
        name: str,
        identity: str,
        clock: Clock,
        random: Random,
    ) -> None:
        self._client, self._clock, self._random = client, clock, random
        self._namespace, self._name, self._identity = namespace, name, identity
        self._path = paths.lease(namespace, name)
        self._seen: tuple[str, float] | None = None
        """Version of the Lease, and the loop time at which we first saw it."""
        self._held: KubeObject = {}
        """The Lease as we last wrote it; empty outside of a term."""
        self._renewed_at = 0.0
        """Loop time at which the last renewal that worked was begun."""
        self._trouble = ""
        self._log = structlog.get_logger().bind(lease=f"{namespace}/{name}", identity=identity)
        self.holder = ""
        """Who held it when we last looked; empty: nobody."""
        self.fence = 0
        """The number of our term; grows with every change of hands. 0 before the first."""

    @property
    def leads(self) -> bool:
        """Whether we hold it at this moment, by our own clock."""
        if not self._held:
            return False
        return asyncio.get_running_loop().time() < self._renewed_at + DEADLINE_S

    async def run(self, lead: Callable[[], Awaitable[None]]) -> None:
        """Wait for the lease, then run `lead` as long as it is held; and again, if it was lost.

        `lead` is cancelled at once when the lease could not be renewed for `DEADLINE_S`. Returns
        when `lead` does; what it raises comes out in an exception group. Either way, and when
        cancelled, the lease is let go, so that the next one need not wait.
        """
        while True:
            await self._acquire()
            self._log.info("leading", fence=self.fence)
            lost = False
            try:
                async with asyncio.TaskGroup() as group:
                    keeping = group.create_task(self._keep())
                    await lead()
                    keeping.cancel()
            except* _LostError:
                lost = True
            finally:
                if not lost:
                    await self._let_go()
                self._held = {}
            if not lost:
                return
            self._log.warning("no_longer_leading", fence=self.fence, error=self._trouble)

    async def _acquire(self) -> None:
        while True:
            try:
                if await self._try():
                    return
            except KubeConflict:
                pass  # somebody was faster
            except KubeError as error:
                self._tell(error)
            await asyncio.sleep(RENEW_S * self._random.uniform(1.0, 1.5))

    async def _try(self) -> bool:
        """Take the lease if it is free; return whether it is ours now."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            lease = await self._client.get(self._path)
        except KubeAbsent:
            body: KubeObject = {
                "apiVersion": "coordination.k8s.io/v1",
                "kind": "Lease",
                "metadata": {"namespace": self._namespace, "name": self._name},
                "spec": self._spec(1, self._stamp()),
            }
            self._begin(await self._client.create(paths.leases(self._namespace), body), began)
            return True
        spec = lease.get("spec") or {}
        self.holder = spec.get("holderIdentity") or ""
        version = lease["metadata"]["resourceVersion"]
        if self._seen is None or self._seen[0] != version:
            self._seen = version, began
        patience_s = max(DURATION_S, float(spec.get("leaseDurationSeconds") or 0))
        if self.holder not in {"", self._identity} and began < self._seen[1] + patience_s:
            return False
        fence = int(spec.get("leaseTransitions") or 0) + 1
        body = {**lease, "spec": self._spec(fence, self._stamp())}
        self._begin(await self._client.replace(self._path, body), began)
        return True

    def _begin(self, lease: KubeObject, began: float) -> None:
        self._held, self._renewed_at, self._trouble = lease, began, ""
        self.fence = lease["spec"]["leaseTransitions"]
        self.holder = self._identity

    async def _keep(self) -> None:
        """Renew until the lease is lost, and say so by raising."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                async with asyncio.timeout_at(self._renewed_at + DEADLINE_S):
                    await asyncio.sleep(RENEW_AGAIN_S if self._trouble else RENEW_S)
                    began = loop.time()
                    try:
                        await self._renew()
                        self._renewed_at, self._trouble = began, ""
                    except KubeAbsent as error:
                        self._tell(error)
                        raise _LostError from error
                    except KubeError as error:
                        self._tell(error)
        except TimeoutError as error:
            raise _LostError from error

    async def _renew(self) -> None:
        since = self._held["spec"]["acquireTime"]
        try:
            body = {**self._held, "spec": self._spec(self.fence, since)}
            self._held = await self._client.replace(self._path, body)
        except KubeConflict:
            # Ours with a lost reply, or somebody else's: the object itself says.
            found = await self._client.get(self._path)
            spec = found.get("spec") or {}
            self.holder = spec.get("holderIdentity") or ""
            if self.holder != self._identity or spec.get("leaseTransitions") != self.fence:
                self._trouble = f"held by {self.holder or 'nobody'}"
                raise _LostError from None
            body = {**found, "spec": self._spec(self.fence, since)}
            self._held = await self._client.replace(self._path, body)

    async def _let_go(self) -> None:
        """Say that nobody holds it. Best effort: unsaid, the next one waits a little longer."""
        spec = {**self._held["spec"], "holderIdentity": "", "leaseDurationSeconds": 1}
        with suppress(KubeError, TimeoutError):
            async with asyncio.timeout(LETTING_GO_S):
                await self._client.replace(self._path, {**self._held, "spec": spec})

    def _spec(self, fence: int, since: str) -> KubeObject:
        return {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": int(DURATION_S),
            "acquireTime": since,
            "renewTime": self._stamp(),
            "leaseTransitions": fence,
        }

    def _stamp(self) -> str:
        return self._clock.now().strftime("%Y-%m-%dT%H:%M:%S.%fZ")

    def _tell(self, error: KubeError) -> None:
        trouble = str(error)
        if trouble != self._trouble:
            self._log.warning("lease_not_renewed", error=trouble)
        self._trouble = trouble
