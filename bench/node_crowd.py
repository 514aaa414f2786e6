"""A thousand pods, created at once and already bound; and when each of them was seen to do what."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from contextlib import aclosing
from itertools import cycle, islice
from typing import Any, Final

from node_market import MODELS
from tests.kube.manifests import pod, pod_spec

from gp4u.kube import paths
from gp4u.kube.client import KubeClient

AT_ONCE: Final = 32
"""Connections that create pods."""
Json = dict[str, Any]


class Crowd:
    """Pods of one node in one namespace, as a watch tells of them."""

    def __init__(self, client: KubeClient, namespace: str, node: str) -> None:
        self._client, self.namespace, self._node = client, namespace, node
        self.created: dict[str, float] = {}
        """UID to when the call that made the pod was sent."""
        self.running: dict[str, float] = {}
        """UID to when it was first seen as Running."""
        self.statuses: dict[str, list[Json]] = {}
        """UID to each status that was seen of it, in order."""
        self.pods: dict[str, Json] = {}
        self.seen: dict[tuple[str, int], float] = {}
        """UID and generation to when the status first told that the node had seen it."""
        self.watching = asyncio.Event()
        self._changed = asyncio.Event()

    def manifests(self, count: int) -> Iterator[Json]:
        """Yield pods: one GPU each, of ten models in turn."""
        for number, model in enumerate(islice(cycle(MODELS.values()), count)):
            made = pod(f"pod-{number}", pod_spec(self._node), annotations={"gpu-type": model})
            yield made | {"spec": made["spec"] | {"nodeName": self._node}}

    async def create(self, count: int) -> None:
        """Create so many, as fast as the API server takes them."""
        waiting = self.manifests(count)

        async def some() -> None:
            for each in waiting:
                at = _now()
                made = await self._client.create(paths.pods(self.namespace), each)
                self.created[made["metadata"]["uid"]] = at

        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(some())

    async def watch(self) -> None:
        """Take note of everything until cancelled."""
        path, mine = paths.pods(self.namespace), f"spec.nodeName={self._node}"
        listed = await self._client.list(path, fieldSelector=mine)
        version = listed.version
        self.watching.set()
        while True:
            events = self._client.watch(path, version=version, fieldSelector=mine)
            async with aclosing(events):
                async for event in events:
                    version = event.object["metadata"]["resourceVersion"]
                    if event.kind in ("ADDED", "MODIFIED"):
                        self._see(event.object)

    async def wait_running(self, count: int) -> None:
        """Wait until so many were seen as Running."""
        while len(self.running) < count:
            self._changed.clear()
            await self._changed.wait()

    async def wait_seen(self, wanted: Iterable[tuple[str, int]]) -> None:
        """Wait until the statuses tell that these generations of pods were seen."""
        for each in wanted:
            while each not in self.seen:
                self._changed.clear()
                await self._changed.wait()

    def _see(self, seen: Json) -> None:
        at, uid, status = _now(), seen["metadata"]["uid"], seen["status"]
        if status.get("phase") == "Running":
            self.running.setdefault(uid, at)
        before = self.statuses.setdefault(uid, [])
        if not before or before[-1] != status:
            before.append(status)
        for generation in range(status.get("observedGeneration", 0), 0, -1):
            if (uid, generation) in self.seen:
                break
            self.seen[uid, generation] = at
        self.pods[uid] = seen
        self._changed.set()


def _now() -> float:
    return asyncio.get_running_loop().time()
