"""The objects below a path as they are now, kept up by list and watch.

Hides paging, bookmarks, versions that are too old, watches that fall silent and objects that went
away while nobody looked. What it tells is a level, not a history: `objects` holds what there is,
keyed by UID, and `on_change` is called for each difference, in whatever way it was learned.

An object of the same name and another UID is another object: its coming is told as the first one's
going and then its own arrival. What is done about a change is left to the owner of the callback,
which must not block.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import aclosing
from random import Random
from typing import Any, Final

import structlog

from gp4u.errors import KubeDenied, KubeError, KubeGone, KubeInvalid, KubeUnavailable
from gp4u.kube.client import KubeClient, KubeObject

OnChange = Callable[[KubeObject | None, KubeObject | None], None]
"""Called with the old and the new object; None: there was, or is, none."""

FIRST_RETRY_S: Final = 0.8
LONGEST_RETRY_S: Final = 5.0
"""Short, because an API server that is back must be noticed within 5 s, and each retry is one call.
client-go goes up to 30 s, for the sake of clusters with thousands of watchers.
Source: kubernetes client-go tools/cache/reflector.go, 1.36; checked 2026-11."""
REFUSED_RETRY_S: Final = 30.0
"""After a plain no: somebody has to change a role or a program first."""
LONGEST_ASKED_S: Final = 30.0
"""The longest wait that the server's own word can impose."""
HEALTHY_S: Final = 120.0
"""A watch that lasted so long is a new beginning: the next trouble is retried soon."""
SHORT_S: Final = 1.0
"""A watch that ends sooner, and without a word, did not work."""
WATCH_FOR_S: Final = (300, 600)


class Retry:
    """How long to wait between two tries: doubling, with jitter, and forgotten when all is well."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._failures = 0
        self._latest = float("-inf")

    def delay(self, error: KubeError | None, at: float) -> float:
        """Return the seconds to wait after a failure at loop time `at`; None: it just ended."""
        if at - self._latest > HEALTHY_S:
            self._failures = 0
        self._latest = at
        self._failures += 1
        if isinstance(error, KubeDenied | KubeInvalid):
            return self._random.uniform(REFUSED_RETRY_S / 2, REFUSED_RETRY_S)
        if isinstance(error, KubeUnavailable) and error.retry_after_s is not None:
            asked_s = min(error.retry_after_s, LONGEST_ASKED_S)
            return asked_s + self._random.uniform(0.0, FIRST_RETRY_S)
        most_s = min(LONGEST_RETRY_S, FIRST_RETRY_S * 2 ** min(self._failures - 1, 16))
        return self._random.uniform(most_s / 2, most_s)


class Informer:
    """Keeps `objects` true; see the module's text. `run` it in a task."""

    def __init__(
        self,
        client: KubeClient,
        path: str,
        *,
        random: Random,
        params: Mapping[str, str] | None = None,
        on_change: OnChange = lambda _old, _new: None,
    ) -> None:
        self._client, self._path = client, path
        self._params: dict[str, Any] = dict(params or {})
        self._random, self._on_change = random, on_change
        self._retry = Retry(random)
        self._objects: dict[str, KubeObject] = {}
        self._uids: dict[tuple[str, str], str] = {}
        """Namespace and name to the UID that holds it now."""
        self._version: str | None = None
        self._heard_at: float | None = None
        self._log = structlog.get_logger().bind(path=path, **self._params)
        self.synced = asyncio.Event()
        """Set once everything was listed, and from then on."""
        self.trouble = ""
        """What keeps it from hearing anything now; for readiness."""
        self.relists = 0
        """How often everything was listed."""

    @property
    def objects(self) -> Mapping[str, KubeObject]:
        """What there is, keyed by UID; not to be changed."""
        return self._objects

    @property
    def heard_s(self) -> float:
        """Seconds since the server last said anything at all; infinite before that."""
        if self._heard_at is None:
            return float("inf")
        return asyncio.get_running_loop().time() - self._heard_at

    def named(self, namespace: str, name: str) -> KubeObject | None:
        """Return the object of this name; `namespace` is empty for what has none."""
        uid = self._uids.get((namespace, name))
        return None if uid is None else self._objects[uid]

    async def run(self) -> None:
        """Follow until cancelled, whatever the server does."""
        loop = asyncio.get_running_loop()
        while True:
            began, error = loop.time(), None
            lists = self._version is None
            try:
                heard = await self._follow(self._version or await self._list())
                if heard or loop.time() - began >= SHORT_S:
                    self._hear()
                    continue
            except KubeError as failure:
                error = failure
            if isinstance(error, KubeGone):
                self._version = None
                # Of what was listed a moment ago, it says that the next list fares no better.
                if not lists or loop.time() - began >= SHORT_S:
                    continue
            if self.trouble and isinstance(error, KubeUnavailable):
                # An outage, not a cut. A server that comes back may have been restored from a
                # backup, and then has no event for who asks to go on from its former future.
                self._version = None
            self._tell(error)
            await asyncio.sleep(self._retry.delay(error, loop.time()))

    async def _list(self) -> str:
        # Without a resourceVersion: as of now, and not from a cache that may lag or, after a
        # restore of etcd, be ahead. Of one node's pods, that is worth its price.
        listed = await self._client.list(self._path, **self._params)
        self._hear()
        self.relists += 1
        there = {each["metadata"]["uid"]: each for each in listed.items}
        for uid in [uid for uid in self._objects if uid not in there]:
            self._remove(uid)
        for each in there.values():
            self._put(each)
        self._version = listed.version
        self.synced.set()
        return listed.version

    async def _follow(self, version: str) -> bool:
        """Watch from `version` until the stream ends; return whether anything came."""
        heard = False
        events = self._client.watch(
            self._path,
            version=version,
            timeoutSeconds=self._random.randint(*WATCH_FOR_S),
            **self._params,
        )
        async with aclosing(events):
            async for event in events:
                heard = True
                self._hear()
                match event.kind:
                    case "ADDED" | "MODIFIED":
                        self._put_if_newer(event.object)
                    case "DELETED":
                        self._remove(event.object["metadata"]["uid"], event.object)
                    case _:
                        pass  # a bookmark, or what a later server may add: only its version counts
                self._version = str(event.object["metadata"]["resourceVersion"])
        return heard

    def _put_if_newer(self, new: KubeObject) -> None:
        """Leave out an older bearer of a name: a watch that goes on further back tells it again."""
        held = self.named(*_key(new))
        if held is not None and held["metadata"]["uid"] != new["metadata"]["uid"]:
            was, is_ = (each["metadata"].get("creationTimestamp", "") for each in (held, new))
            if is_ < was:
                return
        self._put(new)

    def _put(self, new: KubeObject) -> None:
        uid, key = new["metadata"]["uid"], _key(new)
        before = self._uids.get(key)
        if before is not None and before != uid:
            self._remove(before)
        # Nobody reads who wrote which field last, and it is often half of an object.
        new["metadata"].pop("managedFields", None)
        old = self._objects.get(uid)
        if old == new:
            return  # the version alone does not tell: after a restore it is given out again
        self._objects[uid] = new
        self._uids[key] = uid
        self._on_change(old, new)

    def _remove(self, uid: str, last: KubeObject | None = None) -> None:
        """Forget an object; `last` is its last state, where the server told it."""
        held = self._objects.pop(uid, None)
        if held is None:
            return
        if self._uids.get(_key(held)) == uid:
            del self._uids[_key(held)]
        self._on_change(last or held, None)

    def _hear(self) -> None:
        self._heard_at = asyncio.get_running_loop().time()
        if self.trouble:
            self._log.info("watch_works_again")
        self.trouble = ""

    def _tell(self, error: KubeError | None) -> None:
        trouble = str(error or "the watch ended at once")
        if trouble != self.trouble:
            self._log.warning("watch_failed", error=trouble)
        self.trouble = trouble


def _key(each: KubeObject) -> tuple[str, str]:
    meta = each["metadata"]
    return meta.get("namespace", ""), meta["name"]
