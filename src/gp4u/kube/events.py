"""What `kubectl describe` shows below an object: Events, told without ever making anybody wait.

Hides the API's Event objects, and the manners that keep them from flooding a cluster: a repeated
event is counted up, many similar ones become one, an object that talks too much is slowed down, and
what cannot be sent for long is dropped, the oldest first, and counted. An event that is lost loses
nothing but itself: nobody may decide by events.

Source: kubernetes client-go tools/record/events_cache.go (similar events, 10 in 10 minutes; 25 at
once per source and object, then one in 5 minutes), 1.36; checked 2026-11.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Mapping
from contextlib import suppress
from random import Random
from typing import Any, Final, Literal

import msgspec
import structlog

from gp4u.clock import Clock
from gp4u.errors import KubeAbsent, KubeError, KubeUnavailable
from gp4u.kube import paths
from gp4u.kube.client import KubeClient, KubeObject
from gp4u.kube.watch import Retry
from gp4u.resilience.bucket import Bucket
from gp4u.telemetry import clean

EventKind = Literal["Normal", "Warning"]

QUEUE: Final = 8192
"""Events that wait to be sent; beyond, the oldest is dropped."""
REMEMBERED: Final = 4096
"""Events whose repetition is counted, and objects whose pace is kept; beyond, the least recent."""
SIMILAR: Final = 10
SIMILAR_S: Final = 600.0
BURST: Final = 25
THEN_ONE_PER_S: Final = 300.0
TRIES: Final = 8
"""Of one event while the API is away; then it is dropped in favour of newer ones."""
MAX_MESSAGE: Final = 4096
_COMBINED: Final = "(combined from similar events): "

_About = tuple[str, ...]
"""Kind, namespace, name, UID and field path of what an event is about, and more of the event."""


class _Pending(msgspec.Struct):
    """One event on its way, or one that was told and may be told again."""

    body: KubeObject
    count: int = 1
    first: str = ""
    last: str = ""
    last_at: float = 0.0
    name: str = ""
    """Of the Event object; empty until it exists."""
    queued: bool = False


class _Similar(msgspec.Struct):
    """How many different messages one object's reason had lately."""

    messages: set[str]
    since: float


class EventRecorder:
    """Tells events about objects; `run` it in a task."""

    def __init__(
        self, client: KubeClient, *, component: str, host: str, clock: Clock, random: Random
    ) -> None:
        self._client, self._clock, self._random = client, clock, random
        self._source = {"component": component, "host": host}
        self._queue: deque[_Pending] = deque()
        self._some = asyncio.Event()
        self._told: OrderedDict[_About, _Pending] = OrderedDict()
        self._similar: OrderedDict[_About, _Similar] = OrderedDict()
        self._pace: OrderedDict[_About, Bucket] = OrderedDict()
        self._log = structlog.get_logger().bind(component=component)
        self._trouble = ""
        self.sent = 0
        """Events that the API server took."""
        self.dropped = 0
        """Events that were told and never sent: too many of one object, or no API for too long."""

    def tell(
        self,
        about: Mapping[str, Any],
        kind: EventKind,
        reason: str,
        message: str,
        *,
        field_path: str | None = None,
    ) -> None:
        """Tell that something happened to an object; returns at once.

        `about` has `apiVersion`, `kind` and `metadata`; `reason` is one word in CamelCase;
        `field_path` names a part, e.g. `spec.containers{main}`.
        """
        at = asyncio.get_running_loop().time()
        thing = _thing(about, field_path)
        name = (thing["kind"], thing.get("namespace", ""), thing["name"])
        identity: _About = (*name, thing.get("uid", ""), field_path or "")
        if self._talks_too_much(identity, at):
            self.dropped += 1
            return
        message = clean(message, MAX_MESSAGE)
        key: _About = (*identity, kind, reason)
        if self._is_one_of_many(key, message, at):
            message = f"{_COMBINED}{message}"
        else:
            key = (*key, message)
        told = self._told.get(key)
        stamp = self._clock.now().strftime("%Y-%m-%dT%H:%M:%SZ")
        if told is not None and (told.queued or at - told.last_at <= SIMILAR_S):
            told.count += 1
            told.body["message"] = message
        else:
            namespace = thing.get("namespace") or "default"
            body: KubeObject = {
                "apiVersion": "v1",
                "kind": "Event",
                "metadata": {"namespace": namespace},
                "involvedObject": thing,
                "type": kind,
                "reason": reason,
                "message": message,
                "source": self._source,
            }
            told = _Pending(body, first=stamp)
        told.last, told.last_at = stamp, at
        _remember(self._told, key, told)
        self._enqueue(told)

    async def run(self) -> None:
        """Send what is told until cancelled."""
        while True:
            while self._queue:
                pending = self._queue.popleft()
                pending.queued = False
                await self._deliver(pending)
            self._some.clear()
            await self._some.wait()

    async def flush(self, within_s: float) -> None:
        """Send what is still waiting, for so long at most; for the end of a process."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while self._queue:
                    pending = self._queue.popleft()
                    pending.queued = False
                    await self._deliver(pending)

    def _enqueue(self, pending: _Pending) -> None:
        if pending.queued:
            return
        if len(self._queue) >= QUEUE:
            self._queue.popleft().queued = False
            self.dropped += 1
        pending.queued = True
        self._queue.append(pending)
        self._some.set()

    async def _deliver(self, pending: _Pending) -> None:
        retry = Retry(self._random)
        for tries in range(1, TRIES + 1):
            try:
                await self._send(pending)
            except KubeUnavailable as error:
                self._tell_trouble(error)
                if tries < TRIES:
                    at = asyncio.get_running_loop().time()
                    await asyncio.sleep(retry.delay(error, at))
            except KubeError as error:
                # No permission, a namespace on its way out, or an event that breaks a rule: the
                # next one may fare better, this one will not.
                self._tell_trouble(error)
                break
            else:
                self.sent += 1
                if self._trouble:
                    self._log.info("events_work_again")
                self._trouble = ""
                return
        self.dropped += 1

    async def _send(self, pending: _Pending) -> None:
        namespace = pending.body["metadata"]["namespace"]
        if pending.name:
            change = {
                "count": pending.count,
                "lastTimestamp": pending.last,
                "message": pending.body["message"],
            }
            with suppress(KubeAbsent):  # it lived for an hour, and is told anew
                await self._client.patch(paths.event(namespace, pending.name), change)
                return
        thing = pending.body["involvedObject"]["name"]
        name = f"{thing[:200].rstrip('.-')}.{self._random.getrandbits(64):016x}"
        meta = {"namespace": namespace, "name": name}
        times = {"firstTimestamp": pending.first, "lastTimestamp": pending.last}
        body = {**pending.body, "metadata": meta, **times, "count": pending.count}
        await self._client.create(paths.events(namespace), body)
        pending.name = name

    def _talks_too_much(self, identity: _About, at: float) -> bool:
        bucket = self._pace.get(identity) or Bucket(1 / THEN_ONE_PER_S, BURST)
        _remember(self._pace, identity, bucket)
        return bucket.take(1, at) > 0

    def _is_one_of_many(self, key: _About, message: str, at: float) -> bool:
        similar = self._similar.get(key)
        if similar is None or at - similar.since > SIMILAR_S:
            similar = _Similar(set(), at)
        _remember(self._similar, key, similar)
        if message not in similar.messages and len(similar.messages) >= SIMILAR:
            return True
        similar.messages.add(message)
        return False

    def _tell_trouble(self, error: KubeError) -> None:
        kind = type(error).__name__
        if kind != self._trouble:
            self._log.warning("events_are_lost", error=str(error))
        self._trouble = kind


def _thing(about: Mapping[str, Any], field_path: str | None) -> dict[str, str]:
    meta = about["metadata"]
    thing = {
        "apiVersion": about.get("apiVersion", "v1"),
        "kind": about["kind"],
        "namespace": meta.get("namespace"),
        "name": meta["name"],
        "uid": meta.get("uid"),
        "resourceVersion": meta.get("resourceVersion"),
        "fieldPath": field_path,
    }
    return {key: value for key, value in thing.items() if value}


def _remember(kept: OrderedDict[_About, Any], key: _About, value: object) -> None:
    kept[key] = value
    kept.move_to_end(key)
    if len(kept) > REMEMBERED:
        kept.popitem(last=False)
