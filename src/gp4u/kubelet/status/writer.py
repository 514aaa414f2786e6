"""Tells the API server what a pod's status is, until it is told.

Hides order, pace and failure of those writes: one at a time for each pod and about one a second,
the newest status in place of older ones that still wait, a patch that fails on a namesake, and a
retry for as long as the server is away. It exists so that a pod's worker can say how things stand
and go on. What a status says is `status.py`'s part.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from random import Random
from typing import Any, Final

from gp4u.errors import (
    KubeAbsent,
    KubeConflict,
    KubeDenied,
    KubeError,
    KubeInvalid,
    KubeUnavailable,
)
from gp4u.kube import paths
from gp4u.kube.client import KubeClient
from gp4u.kubelet.held import PodObject
from gp4u.kubelet.status.conditions import ENDED
from gp4u.kubelet.status.status import resettled, status_patch

PACE_S: Final = 1.0
"""Between two writes for one pod; the end of a pod does not wait for its turn."""
AWAY_S: Final = (0.8, 30.0)
"""First and longest wait while the API server does not answer."""
DENIED_S: Final = (30.0, 300.0)
"""The same while it says that we may not: somebody has to mend a role first."""
CONFLICT_S: Final = 0.1
"""First wait after the pod turned out to have changed."""


class StatusWriter:
    """Writes the statuses of all pods of a node."""

    def __init__(self, client: KubeClient, *, random: Random) -> None:
        self._client, self._random = client, random
        self._lines: dict[str, _Line] = {}
        self._log = _log()
        self.denied = ""
        """Why no status can be written, for readiness; empty: it can be, as far as is known."""
        self.written = 0
        """How many patches were taken."""

    async def write(self, pod: PodObject, status: Mapping[str, Any]) -> PodObject | None:
        """Write a status; return the pod as it then is, or None where that pod is gone.

        `pod` is the newest look at it. Waits for its turn, and while the server is away for as long
        as that takes; a newer status that comes meanwhile is written in its place. A status that
        the server calls invalid is logged, and not sent again while it stays the same.
        """
        line = self._lines.setdefault(pod["metadata"]["uid"], _Line())
        line.wanted += 1
        line.pod, line.status = pod, status
        turn = line.wanted
        # A newer status may end the pod: then there is nothing to wait for any more.
        if status.get("phase") in ENDED:
            line.hurry.set()
        async with line.lock:
            if line.done >= turn:
                return line.last
            await self._pace(line)
            await self._settle(line)
            return line.last

    def forget(self, uid: str) -> None:
        """Drop what is kept about a pod that is gone."""
        self._lines.pop(uid, None)

    async def _pace(self, line: _Line) -> None:
        loop = asyncio.get_running_loop()
        if loop.time() >= line.free_at or line.hurry.is_set():
            return
        try:
            async with asyncio.timeout_at(line.free_at):
                await line.hurry.wait()
        except TimeoutError:
            pass  # its turn has come

    async def _settle(self, line: _Line) -> None:
        """Write the newest status of a line; returns once that is done or cannot be."""
        tries = 0
        while True:
            turn, pod, status = line.wanted, line.pod, line.status
            try:
                line.last = await self._send(line, pod, status)
            except KubeAbsent:
                line.last = None
            except KubeInvalid as error:
                self._log.error("pod_status_refused", pod=_named(pod), problem=str(error))
                line.refused, line.last = _patch(pod, line.last, status), pod
            except KubeError as error:
                if isinstance(error, KubeConflict):
                    if not await self._reread(line):
                        line.last, line.done = None, turn
                        return
                    wait_s = min(AWAY_S[1], CONFLICT_S * 2.0**tries)
                else:
                    wait_s = self._patience_s(error, tries)
                tries = min(tries + 1, 16)
                await asyncio.sleep(wait_s * self._random.uniform(0.5, 1.0))
                continue
            line.done = turn
            return

    async def _send(
        self, line: _Line, pod: PodObject, status: Mapping[str, Any]
    ) -> PodObject | None:
        patch = _patch(pod, line.last, status)
        if patch is None or patch == line.refused:
            return pod
        line.refused = None
        line.hurry.clear()
        path = paths.pod(pod["metadata"]["namespace"], pod["metadata"]["name"], "status")
        line.free_at = asyncio.get_running_loop().time() + PACE_S
        written: PodObject = await self._client.patch(path, patch)
        self.written += 1
        if self.denied:
            self._log.info("pod_status_allowed_again")
            self.denied = ""
        return written

    async def _reread(self, line: _Line) -> bool:
        """Look at the pod anew; False: it is gone, or another pod bears its name."""
        meta = line.pod["metadata"]
        try:
            fresh = await self._client.get(paths.pod(meta["namespace"], meta["name"]))
        except KubeAbsent:
            return False
        except KubeError:
            return True  # the write itself will say what is the matter
        if fresh["metadata"]["uid"] != meta["uid"]:
            return False
        line.pod, line.last = fresh, None
        return True

    def _patience_s(self, error: KubeError, tries: int) -> float:
        """Return how long to wait before the next try."""
        if not isinstance(error, KubeDenied):
            told = error.retry_after_s if isinstance(error, KubeUnavailable) else None
            return told or min(AWAY_S[1], AWAY_S[0] * 2.0**tries)
        if not self.denied:
            self._log.error("pod_status_denied", problem=str(error))
        self.denied = str(error)
        return min(DENIED_S[1], DENIED_S[0] * 2.0**tries)


class _Line:
    """What is still to be written for one pod, and what was."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.hurry = asyncio.Event()
        self.wanted = self.done = 0
        self.pod: PodObject = {}
        self.status: Mapping[str, Any] = {}
        self.last: PodObject | None = None
        self.refused: object = None
        """The patch that the server called invalid."""
        self.free_at = 0.0
        """Loop time before which nothing more is written."""


def _patch(
    pod: PodObject, written: PodObject | None, status: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Return what leads to a status from either of two looks at one pod: the one that the watch
    brought, and our own last write. Versions are opaque, so nobody knows which is the newer.
    """
    wanted = resettled(pod, status)
    if written is None or _version(written) == _version(pod):
        return status_patch(pod, wanted)
    wanted = resettled(written, wanted)
    found = [each for each in (status_patch(pod, wanted), status_patch(written, wanted)) if each]
    if len(found) < 2:
        return found[0] if found else None
    one, other = found
    changes = {**one["status"], **other["status"]}
    for member, key in (("conditions", "type"), ("podIPs", "ip"), ("hostIPs", "ip")):
        listed = [*one["status"].get(member, ()), *other["status"].get(member, ())]
        if listed:
            changes[member] = list({each[key]: each for each in listed}.values())
    return {**one, "status": changes}


def _version(pod: PodObject) -> str | None:
    version: str | None = pod["metadata"].get("resourceVersion")
    return version


def _named(pod: PodObject) -> str:
    return f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"


def _log() -> Any:
    import structlog  # 60 ms that only a process that stays has to pay

    return structlog.get_logger()
