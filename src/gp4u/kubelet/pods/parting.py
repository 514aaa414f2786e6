"""Letting machines go, and pods: in the one order in which nobody is harmed.

First nobody is sent there any more, for the market may give the address to a stranger within
seconds. Then the workload is asked to stop, its log is read a last time, and the release is put on
disk; from there on the ledger sees to it, whatever becomes of the pod, the market or this process.
Each part is bounded in time, so that neither a dead market nor a dead API server holds up the rest.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from msgspec.structs import replace

from gp4u.errors import BadInput, Gp4uError, KubeAbsent, KubeConflict
from gp4u.kube import paths
from gp4u.kube.client import KubeClient
from gp4u.kubelet.held import Held, PodObject
from gp4u.kubelet.logs.store import LogStore
from gp4u.kubelet.pods.inside import STOP_AND_WAIT, can_run, run_inside
from gp4u.kubelet.pods.memory import Slot
from gp4u.kubelet.pods.renting import Looks, RentLane
from gp4u.kubelet.pods.standing import Standing
from gp4u.kubelet.services.publish import Publisher
from gp4u.kubelet.status.writer import StatusWriter
from gp4u.providers.contract import Provider
from gp4u.rentals.broker import Broker
from gp4u.rentals.rental import Rental


class Parting:
    """Lets go, for all pods of a node; keeps nothing about any of them."""

    def __init__(
        self,
        *,
        broker: Broker,
        providers: Mapping[str, Provider],
        client: KubeClient,
        publisher: Publisher,
        logs: LogStore,
        writer: StatusWriter,
        lane: RentLane,
        looks: Looks,
    ) -> None:
        self._broker, self._providers, self._client = broker, providers, client
        self._publisher, self._logs, self._writer = publisher, logs, writer
        self._lane, self._looks = lane, looks
        self.called_off = 0
        """Rentals that were begun to be released so far."""

    async def withdraw(self, uid: str, owners: Iterable[str]) -> None:
        """Have nobody sent to the pod any more, and no machine rented for it."""
        for owner in owners:
            self._lane.withdraw(owner)
        await self._publisher.withdraw(uid)

    async def ask_all_to_stop(self, now: Standing, *, within_s: float) -> None:
        """Ask every container of a pod that runs to end, and wait for those that heed."""
        async with asyncio.TaskGroup() as group:
            for slot in now.slots:
                for name in slot.running:
                    if slot.rental is not None and slot.rental.is_live:
                        known_as = now.known_as(name)
                        asking = self._ask_to_stop(slot.rental, known_as, within_s=within_s)
                        group.create_task(asking)

    async def _ask_to_stop(self, rental: Rental, container: str | None, *, within_s: float) -> None:
        provider = self._providers.get(rental.provider)
        if provider is None or not can_run(provider) or within_s <= 0:
            return
        try:
            await run_inside(
                provider, rental, STOP_AND_WAIT, within_s=within_s, container=container
            )
        except (Gp4uError, OSError, TimeoutError):
            return  # it is killed then, as a container is that does not heed

    async def keep_logs(self, held: Held) -> None:
        """Read what the pod's machines printed a last time; some seconds at most."""
        if any(rental.instance_id for rental in held.rentals.values()):
            await self._logs.keep_final(held)

    async def call_off(self, rental: Rental, reason: str) -> Rental:
        """Put the release of a rental on disk, and have it carried out.

        Raises:
            LedgerUnusable: it could not be written; nothing was released.
        """
        try:
            released = await self._broker.call_off(rental.key, reason=reason)
        except BadInput:
            return rental  # the ledger was exchanged behind us: there is nothing to release
        if released.is_open:
            self._looks.expect(rental.provider)
        if rental.is_live:
            self.called_off += 1
        return released

    async def let_go(self, now: Standing, reason: Callable[[Slot | None], str]) -> None:
        """Have all machines of a pod released that are still wanted as far as the ledger knows.

        Raises:
            LedgerUnusable: it could not be written; some may be left.
        """
        for suffix, stray in list(now.strays.items()):
            if stray.is_live:
                now.strays[suffix] = await self.call_off(stray, reason(None))
        for each in now.slots:
            if each.rental is None or not each.rental.is_live:
                continue
            released = await self.call_off(each.rental, reason(each))
            slot = now.slot(each.suffix) or each
            if slot.rental is not None and slot.rental.key == released.key:
                slot = replace(slot, rental=released, settled=released.key)
            now.put(slot)

    async def delete(self, pod: PodObject) -> None:
        """Remove the pod's object, if it still is the same one.

        Raises:
            KubeError: it could not be done now.
        """
        meta = pod["metadata"]
        path = paths.pod(meta["namespace"], meta["name"])
        try:
            await self._client.delete(path, uid=meta["uid"], grace_s=0)
        except (KubeAbsent, KubeConflict):
            return

    async def is_gone(self, pod: PodObject) -> bool:
        """Whether the API server has no such pod any more, or another one of that name.

        Raises:
            KubeError: it could not be asked.
        """
        meta: Mapping[str, Any] = pod["metadata"]
        try:
            found = await self._client.get(paths.pod(meta["namespace"], meta["name"]))
        except KubeAbsent:
            return True
        return bool(found["metadata"]["uid"] != meta["uid"])

    def forget(self, uid: str) -> None:
        """Drop what is kept about a pod whose object is gone."""
        self._logs.forget(uid)
        self._writer.forget(uid)
