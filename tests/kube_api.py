"""A fake Kubernetes API server in this process, with the semantics that a node meets, and trouble.

`KubeApi` is what the tests hold: its objects can be set up and changed as another actor would
(`add`, `change`, `remove`), every call is written down in `calls`, and trouble is scripted: `deny`
and `fail` for single calls, `set_down` and `hung` for the whole server, `cut` for the watches.
Clients come to it by `client()` (ours, over `transport()`), which streams, so watches work, and
which reads no clock but the loop's, so that everything runs under virtual time.

It knows nothing of the package but the client that it hands out.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, suppress
from copy import deepcopy
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

import httpx

from gp4u.clock import Clock
from gp4u.kube.client import KubeClient, open_client
from tests.kube_store import (
    CLUSTER_WIDE,
    KINDS,
    PLURALS,
    Change,
    Object,
    Store,
    Target,
    Trouble,
    selector,
    target_of,
)
from tests.virtual_loop import VirtualClock

BOOKMARK_S = 60.0
GROUPS = {
    "leases": "coordination.k8s.io/v1",
    "endpointslices": "discovery.k8s.io/v1",
    "certificatesigningrequests": "certificates.k8s.io/v1",
    "jobs": "batch/v1",
    "deployments": "apps/v1",
}


class Cut(Enum):
    """How open watches are cut."""

    END = auto()
    """The stream ends as after `timeoutSeconds`."""
    RESET = auto()
    """The connection breaks."""
    GONE = auto()
    """An ERROR event with code 410."""
    SILENT = auto()
    """Nothing comes any more, not even a bookmark: half-open TCP."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call that reached the server."""

    verb: str
    """`get`, `list`, `watch`, `create`, `update`, `patch`, `delete`."""
    path: str
    query: Mapping[str, str]
    body: Any
    at: float
    """Loop time."""
    target: Target


@dataclass(slots=True)
class Fault:
    """A scripted no; `left` None: for ever. `hits` counts how often it was said."""

    matches: Callable[[Call], bool]
    trouble: Trouble
    left: int | None = None
    hits: int = 0

    def lift(self) -> None:
        """Say it no more."""
        self.left = 0


@dataclass(eq=False, slots=True)
class _Watch:
    target: Target
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    cut: Cut | None = None


class KubeApi:
    """A cluster without machines."""

    def __init__(self, clock: Clock | None = None) -> None:
        self.store = Store(clock or VirtualClock())
        self.store.on_change = self._wake
        self.calls: list[Call] = []
        self.faults: list[Fault] = []
        self.down = False
        """Whether connections are refused; `set_down` sets it."""
        self.hung = False
        """Calls are taken and never answered; watches fall silent."""
        self.latency_s = 0.0
        self.blocked: set[tuple[str, str]] = set()
        """Namespace and name of pods that a PodDisruptionBudget keeps from eviction."""
        self.tokens: dict[str, Object] = {}
        """Bearer token to the `user` of a TokenReview's status."""
        self.may: Callable[[Object], bool] = lambda _: True
        """Says yes or no to the spec of a SubjectAccessReview."""
        self._watches: list[_Watch] = []
        for name in ("default", "kube-system", "kube-public", "kube-node-lease"):
            self.add({"kind": "Namespace", "metadata": {"name": name}})

    # What other actors do

    def add(self, body: Mapping[str, Any]) -> Object:
        """Create an object as it is given, its status and UID included; namespace `default`."""
        target = self._target_of_object(body)
        return deepcopy(self.store.create(target, body, raw=True))

    def find(self, path: str) -> Object | None:
        """Return the object at this path as it is now, or None."""
        try:
            return deepcopy(self.store.find(target_of(path)))
        except Trouble:
            return None

    def all(self, resource: str) -> list[Object]:
        """Return all objects of a resource, e.g. `pods`, by namespace and name."""
        return deepcopy(self.store.listed(Target("v1", resource), lambda _: True))

    def change(self, path: str, patch: Mapping[str, Any]) -> Object:
        """Merge into an object (RFC 7386); `{"status": ...}` on a path that ends in `/status`."""
        target = target_of(path)
        return deepcopy(self.store.patch(target, "application/merge-patch+json", patch))

    def remove(self, path: str, *, grace_s: int | None = None) -> Object:
        """Delete as `kubectl delete` does; `grace_s` 0 is `--force`."""
        return deepcopy(self.store.delete(target_of(path), grace_s=grace_s))

    def collect_garbage(self) -> None:
        """Delete what belongs to owners of which none is left, as the controller does."""
        uids = {each["metadata"]["uid"] for each in self.store.objects.values()}
        for (resource, namespace, name), each in list(self.store.objects.items()):
            owners = each["metadata"].get("ownerReferences") or []
            if owners and not any(owner["uid"] in uids for owner in owners):
                self.store.delete(Target(GROUPS.get(resource, "v1"), resource, namespace, name))

    # Trouble

    def fail(
        self,
        verb: str,
        path: str,
        code: int,
        *,
        reason: str = "",
        message: str = "scripted",
        times: int | None = None,
        retry_after_s: int | None = None,
    ) -> Fault:
        """Answer calls of this verb (`*`: any) whose path matches the pattern with a status."""
        pattern = re.compile(path)
        trouble = Trouble(code, reason, message, retry_after_s=retry_after_s)

        def matches(call: Call) -> bool:
            return verb in {"*", call.verb} and pattern.search(call.path) is not None

        fault = Fault(matches, trouble, times)
        self.faults.append(fault)
        return fault

    def deny(self, verb: str, resource: str) -> Fault:
        """Take a permission away; `resource` is e.g. `secrets` or `pods/status`."""
        words = f'{resource} is forbidden: User "us" cannot {verb} resource "{resource}"'
        trouble = Trouble(403, "Forbidden", words)

        def matches(call: Call) -> bool:
            asked = call.target.resource + (f"/{call.target.sub}" if call.target.sub else "")
            return verb in {"*", call.verb} and asked == resource

        fault = Fault(matches, trouble)
        self.faults.append(fault)
        return fault

    def cut(self, how: Cut, resource: str | None = None) -> int:
        """Cut all open watches, or those of one resource; return how many."""
        cut = [w for w in self._watches if resource in {None, w.target.resource} and not w.cut]
        for each in cut:
            each.cut = how
            each.wake.set()
        return len(cut)

    def set_down(self, down: bool = True) -> None:
        """Stop the server, with all its connections, or start it again."""
        self.down = down
        self._wake()

    def forget_history(self) -> None:
        """Compact: watches from any earlier version are answered with 410 as an HTTP status."""
        self.store.forget()

    @property
    def watching(self) -> int:
        """How many watches are open."""
        return len(self._watches)

    # Coming to it

    def transport(self) -> httpx.AsyncBaseTransport:
        """Return connections to it."""
        return _Transport(self)

    def client(
        self, *, timeout_s: float = 30.0, writes_per_s: float | None = None
    ) -> AbstractAsyncContextManager[KubeClient]:
        """Return our client, connected to it."""
        return open_client(
            transport=self.transport(), timeout_s=timeout_s, writes_per_s=writes_per_s
        )

    def told(self, verb: str, path: str = "") -> list[Call]:
        """Return the calls of this verb (`*`: any) whose path matches the pattern, oldest first."""
        return [
            each
            for each in self.calls
            if verb in {"*", each.verb} and re.search(path, each.path) is not None
        ]

    async def answer(self, request: httpx.Request) -> httpx.Response:
        """Answer one call as the server would."""
        if self.down:
            raise httpx.ConnectError("connection refused", request=request)
        raw = await request.aread()
        await asyncio.sleep(self.latency_s)
        if self.hung:
            await asyncio.get_running_loop().create_future()
        query = dict(request.url.params)
        headers = {"content-type": "application/json"}
        try:
            target = target_of(request.url.raw_path.partition(b"?")[0].decode())
            verb = _verb(request.method, target, query)
            body = json.loads(raw) if raw else None
            now = asyncio.get_running_loop().time()
            call = Call(verb, request.url.path, query, body, now, target)
            self.calls.append(call)
            self._trip(call)
            if verb == "watch":
                return httpx.Response(200, stream=_Stream(self._watch(call), request))
            code, reply = self._do(call, request.headers.get("content-type", ""))
        except Trouble as trouble:
            if trouble.more.get("retry_after_s") is not None:
                headers["retry-after"] = str(trouble.more["retry_after_s"])
            code, reply = trouble.code, trouble.status
        content = httpx.ByteStream(json.dumps(reply).encode())
        return httpx.Response(code, stream=content, headers=headers)

    # Inside

    def _trip(self, call: Call) -> None:
        for fault in self.faults:
            if fault.left != 0 and fault.matches(call):
                fault.hits += 1
                if fault.left is not None:
                    fault.left -= 1
                raise fault.trouble

    def _do(self, call: Call, content_type: str) -> tuple[int, Object]:
        target, body = call.target, call.body
        match call.verb:
            case "get":
                return 200, self.store.find(target)
            case "list":
                return 200, self._list(target, call.query)
            case "create":
                return 201, self._create(target, body)
            case "update":
                return 200, self.store.update(target, body)
            case "patch":
                return 200, self.store.patch(target, content_type, body)
            case "delete":
                return 200, self._delete(target, body or {})
            case _:
                raise Trouble(405, "MethodNotAllowed", "the server does not allow this method")

    def _create(self, target: Target, body: Object) -> Object:
        if target.resource == "tokenreviews":
            user = self.tokens.get(body["spec"].get("token", ""))
            status = {"authenticated": True, "user": user} if user else {"authenticated": False}
            return {**body, "status": status}
        if target.resource == "subjectaccessreviews":
            return {**body, "status": {"allowed": self.may(body["spec"])}}
        if target.sub == "eviction":
            return self._evict(target, body)
        if target.sub == "token":
            token = f"token-of-{target.namespace}-{target.name}"
            return {**body, "status": {"token": token, "expirationTimestamp": None}}
        return self.store.create(target, body)

    def _evict(self, target: Target, body: Object) -> Object:
        options = body.get("deleteOptions") or {}
        if (target.namespace, target.name) in self.blocked:
            message = "Cannot evict pod as it would violate the pod's disruption budget."
            raise Trouble(429, "TooManyRequests", message)
        uid = (options.get("preconditions") or {}).get("uid")
        pod = Target(target.group, "pods", target.namespace, target.name)
        self.store.delete(pod, uid=uid, grace_s=options.get("gracePeriodSeconds"))
        return {"kind": "Status", "apiVersion": "v1", "status": "Success", "code": 201}

    def _delete(self, target: Target, options: Object) -> Object:
        uid = (options.get("preconditions") or {}).get("uid")
        return self.store.delete(target, uid=uid, grace_s=options.get("gracePeriodSeconds"))

    def _list(self, target: Target, query: Mapping[str, str]) -> Object:
        found = self.store.listed(target, selector(target, query))
        version, begin = str(self.store.version), 0
        if "continue" in query:
            version, _, offset = query["continue"].partition("/")
            begin = int(offset)
            if int(version) < self.store.oldest:
                message = "The provided continue parameter is too old"
                raise Trouble(410, "Expired", message)
        meta: Object = {"resourceVersion": version}
        limit = int(query.get("limit", 0))
        if limit and len(found) > begin + limit:
            meta["continue"] = f"{version}/{begin + limit}"
            found = found[begin : begin + limit]
        else:
            found = found[begin:]
        bare = [
            {k: v for k, v in each.items() if k not in {"apiVersion", "kind"}} for each in found
        ]
        kind = f"{KINDS[target.resource]}List"
        return {"kind": kind, "apiVersion": target.group, "metadata": meta, "items": bare}

    def _watch(self, call: Call) -> AsyncGenerator[bytes, None]:
        target, query = call.target, call.query
        matches = selector(target, query)
        seen = int(query.get("resourceVersion") or 0) or self.store.version
        if seen < self.store.oldest:
            raise Trouble(410, "Expired", f"too old resource version: {seen}")
        return self._lines(call, matches, seen)

    async def _lines(
        self, call: Call, matches: Callable[[Object], bool], seen: int
    ) -> AsyncGenerator[bytes, None]:
        target, query = call.target, call.query
        watch = _Watch(target)
        self._watches.append(watch)
        loop = asyncio.get_running_loop()
        ends = loop.time() + float(query.get("timeoutSeconds") or 1800)
        bookmark = loop.time() + BOOKMARK_S
        try:
            while True:
                watch.wake.clear()
                if watch.cut is Cut.SILENT or self.hung:
                    await loop.create_future()
                if watch.cut is None and seen < self.store.oldest:
                    watch.cut = Cut.GONE  # compacted before this watch could read it
                if watch.cut is None and not self.down:
                    for change in self.store.since(seen):
                        seen = change.version
                        if line := _line(change, target, matches):
                            yield line
                if watch.cut is Cut.GONE:
                    yield _encoded("ERROR", Trouble(410, "Expired", "too old").status)
                if watch.cut is Cut.RESET or self.down:
                    raise ConnectionResetError
                if watch.cut is not None or loop.time() >= ends:
                    return
                if loop.time() >= bookmark:
                    bookmark = loop.time() + BOOKMARK_S
                    if query.get("allowWatchBookmarks") == "true":
                        yield _bookmark(target, seen)
                if watch.wake.is_set():
                    continue
                with suppress(TimeoutError):
                    async with asyncio.timeout_at(min(ends, bookmark)):
                        await watch.wake.wait()
        finally:
            self._watches.remove(watch)

    def _wake(self) -> None:
        for watch in self._watches:
            watch.wake.set()

    @staticmethod
    def _target_of_object(body: Mapping[str, Any]) -> Target:
        resource = PLURALS[body["kind"]]
        group = body.get("apiVersion") or GROUPS.get(resource, "v1")
        namespace = "" if resource in CLUSTER_WIDE else "default"
        return Target(group, resource, body["metadata"].get("namespace", namespace))


def _verb(method: str, target: Target, query: Mapping[str, str]) -> str:
    match method:
        case "GET" if query.get("watch") in {"1", "true"}:
            return "watch"
        case "GET":
            return "get" if target.name else "list"
        case _:
            verbs = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
            return verbs.get(method, method)


def _line(change: Change, target: Target, matches: Callable[[Object], bool]) -> bytes | None:
    if change.resource != target.resource:
        return None
    either = change.new or change.old or {}
    if target.namespace not in {"", either["metadata"].get("namespace", "")}:
        return None
    was = change.old is not None and matches(change.old)
    is_ = change.new is not None and matches(change.new)
    match was, is_:
        case False, False:
            return None
        case False, True:
            return _encoded("ADDED", either)
        case True, True:
            return _encoded("MODIFIED", either)
        case _:
            return _encoded("DELETED", either)


def _bookmark(target: Target, seen: int) -> bytes:
    meta = {"resourceVersion": str(seen), "creationTimestamp": None}
    kind = KINDS[target.resource]
    return _encoded("BOOKMARK", {"kind": kind, "apiVersion": target.group, "metadata": meta})


def _encoded(kind: str, about: Mapping[str, Any]) -> bytes:
    return json.dumps({"type": kind, "object": about}).encode() + b"\n"


class _Stream(httpx.AsyncByteStream):
    def __init__(self, lines: AsyncGenerator[bytes, None], request: httpx.Request) -> None:
        self._lines, self._request = lines, request

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        try:
            return await anext(self._lines)
        except ConnectionResetError as error:
            raise httpx.ReadError("connection reset", request=self._request) from error

    async def aclose(self) -> None:
        await self._lines.aclose()


class _Transport(httpx.AsyncBaseTransport):
    def __init__(self, api: KubeApi) -> None:
        self._api = api

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return await self._api.answer(request)
