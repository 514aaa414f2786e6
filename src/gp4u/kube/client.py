"""Calls to the Kubernetes API: JSON objects in and out, and its statuses as our errors.

Hides HTTP, paging, deadlines, size caps and how fast we write. Objects are plain dictionaries and
changes are patches of them: a typed model would drop the fields that it does not know when it is
written back. What is done about an error, and whether a call is sent again, is left to the caller.

`open_client` gives one client with connections of its own; the heartbeat has a second one, which
waits for nobody.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from enum import StrEnum
from typing import Any, Final
from urllib.parse import urlencode

import httpx
import msgspec
from lightkube.core.exceptions import ConfigError

from gp4u.errors import (
    KubeAbsent,
    KubeConflict,
    KubeDenied,
    KubeError,
    KubeExists,
    KubeGone,
    KubeInvalid,
    KubeUnavailable,
)
from gp4u.kube.access import Access
from gp4u.kube.denials import Denials
from gp4u.resilience.backoff import parse_retry_after
from gp4u.resilience.bucket import Bucket
from gp4u.telemetry import clean

KubeObject = dict[str, Any]
"""Any object of the API, JSON decoded."""

CALL_S: Final = 30.0
AT_ONCE: Final = 32
"""Calls of one client under way; more would only wait at the server, each on its own connection."""
WRITES_PER_S: Final = 50.0
"""As many as a kubelet may, and twice as many at once.

Source: kubernetes pkg/kubelet/apis/config/v1beta1/defaults.go (kubeAPIQPS 50, kubeAPIBurst 100),
1.32; checked 2026-11.
"""
BEHIND_S: Final = 1.0
BEHIND_STEP_S: Final = 0.02
"""How long what can wait makes room for what cannot, and how often it looks."""
PAGE: Final = 500
MAX_BYTES: Final = 64 * 1024 * 1024
"""Of one reply; a page of 500 objects stays far below."""
MAX_EVENT_BYTES: Final = 8 * 1024 * 1024
"""Of one line of a watch. An object is at most 1.5 MiB in etcd, and JSON is longer than that."""
WATCH_IDLE_S: Final = 150.0
"""Bookmarks come once a minute: whoever says nothing for longer is gone."""
_MAX_DETAIL: Final = 1024
_SHORTEST_WAIT_S: Final = 0.001
"""What is missing of a token can be too little for a clock to show."""
_OTHER_UID: Final = "metadata.uid: Invalid value"
"""Said of a patch that carries the UID of another object: the precondition of a patch.

Source: kubernetes 1.32.2 and 1.36.3, measured; checked 2026-11.
"""
_JSON: Final = "application/json"
_HEADERS: Final = {"accept": _JSON, "accept-encoding": "identity", "user-agent": "gp4u"}


class PatchKind(StrEnum):
    """How a patch is merged; the value is its content type."""

    STRATEGIC = "application/strategic-merge-patch+json"
    MERGE = "application/merge-patch+json"
    JSON = "application/json-patch+json"


class Listed(msgspec.Struct, frozen=True):
    """A whole list, and the version from which a watch goes on."""

    items: list[KubeObject]
    version: str


class WatchEvent(msgspec.Struct, frozen=True):
    """One line of a watch; `kind` is ADDED, MODIFIED, DELETED or BOOKMARK."""

    kind: str
    object: KubeObject


class KubeClient:
    """One way to the API server; made by `open_client`."""

    def __init__(
        self,
        line: _Line,
        *,
        timeout_s: float = CALL_S,
        writes_per_s: float | None,
        denials: Denials | None = None,
        first: KubeClient | None = None,
    ) -> None:
        self._line, self._timeout_s = line, timeout_s
        self.denials = denials or Denials()
        """What this client, and those beside it, were told that they may not do."""
        self._room = asyncio.Semaphore(AT_ONCE)
        self._writes = _Lane(writes_per_s)
        # Of its own: what goes away never waits behind a burst of what comes.
        self._deletes = _Lane(writes_per_s)
        self._first = first
        """Whose calls go before our writes."""

    def beside(self, *, writes_per_s: float | None) -> KubeClient:
        """Return a client over the same connections, with a pace of its own for what it writes.

        Where this client has more calls than room for them, the writes of the other one wait, each
        for a second at most.
        """
        return KubeClient(
            self._line,
            timeout_s=self._timeout_s,
            writes_per_s=writes_per_s,
            denials=self.denials,
            first=self,
        )

    async def get(self, path: str, **params: str | int) -> KubeObject:
        """Read one object.

        Raises:
            KubeError: it was not read; `KubeAbsent` where there is none.
        """
        return await self._call("GET", path, params)

    async def list(self, path: str, **params: str | int) -> Listed:
        """Read all objects below `path`, page by page; each knows its `apiVersion` and `kind`.

        Raises:
            KubeError: it was not read as a whole; then nothing is known of what there is.
        """
        try:
            return await self._pages(path, {**params, "limit": PAGE})
        except KubeGone:
            # The first page's version went out of history while the others were read.
            return await self._pages(path, dict(params))

    async def create(self, path: str, body: Mapping[str, Any]) -> KubeObject:
        """Create an object below `path`, and return it as it is now.

        Raises:
            KubeExists: there is one of that name.
            KubeError: nobody knows, or it was refused.
        """
        await self._turn()
        return await self._call("POST", path, {}, body)

    async def patch(
        self, path: str, body: Any, *, kind: PatchKind = PatchKind.STRATEGIC
    ) -> KubeObject:
        """Change an object, and return it as it is now.

        Raises:
            KubeConflict: the patch names a UID or version, and the object has another one.
            KubeError: nobody knows, or it was refused.
        """
        await self._turn()
        return await self._call("PATCH", path, {}, body, content_type=kind.value)

    async def replace(self, path: str, body: Mapping[str, Any]) -> KubeObject:
        """Write a whole object, and return it as it is now.

        Raises:
            KubeConflict: the object changed since the version that `body` carries.
            KubeError: nobody knows, or it was refused.
        """
        await self._turn()
        return await self._call("PUT", path, {}, body)

    async def delete(
        self, path: str, *, uid: str | None = None, grace_s: int | None = None
    ) -> KubeObject:
        """Delete an object, if it still is the one of this UID; return its last state or a Status.

        Raises:
            KubeAbsent: there is none.
            KubeConflict: it has another UID.
            KubeError: nobody knows, or it was refused.
        """
        await self._deletes.turn()
        options: KubeObject = {"apiVersion": "v1", "kind": "DeleteOptions"}
        if grace_s is not None:
            options["gracePeriodSeconds"] = grace_s
        if uid is not None:
            options["preconditions"] = {"uid": uid}
        return await self._call("DELETE", path, {}, options)

    async def quiet(self, within_s: float) -> None:
        """Return once there is room for more calls, or after so long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while self._room.locked():  # noqa: ASYNC110 - it tells only those who take its room
                    await asyncio.sleep(BEHIND_STEP_S)

    async def _turn(self) -> None:
        """Wait until something may be written."""
        if self._first is not None:
            await self._first.quiet(BEHIND_S)
        await self._writes.turn()

    async def watch(
        self, path: str, *, version: str, idle_s: float = WATCH_IDLE_S, **params: str | int
    ) -> AsyncGenerator[WatchEvent, None]:
        """Yield what changes below `path` from `version` on, until the server ends the stream.

        Close it (`contextlib.aclosing`) when leaving early.

        Raises:
            KubeGone: the version is too old; list again.
            KubeUnavailable: the connection broke, or nothing came for `idle_s`.
            KubeError: it was refused.
        """
        query = {**params, "watch": "true", "resourceVersion": version}
        query.setdefault("allowWatchBookmarks", "true")
        lines = _Lines(path)
        try:
            async with asyncio.timeout(self._timeout_s):
                reply = await self._line.send("GET", path, query)
            try:
                if reply.status_code != httpx.codes.OK:
                    async with asyncio.timeout(self._timeout_s):
                        raw = await _read(reply, "WATCH", path)
                    refusal = _refusal("WATCH", path, reply, raw)
                    self.denials.note("WATCH", path, refusal)
                    raise refusal
                self.denials.note("WATCH", path, None)
                chunks = reply.aiter_bytes()
                while True:
                    async with asyncio.timeout(idle_s):
                        chunk = await anext(chunks, None)
                    if chunk is None:
                        return
                    for line in lines.split(chunk):
                        yield _event(path, line)
            finally:
                await reply.aclose()
        except TimeoutError as error:
            raise KubeUnavailable("WATCH", path, "nothing heard for too long") from error
        except httpx.HTTPError as error:
            raise KubeUnavailable("WATCH", path, _told(error)) from error
        except ConfigError as error:
            raise KubeDenied("WATCH", path, _told(error)) from error

    async def _pages(self, path: str, query: dict[str, str | int]) -> Listed:
        items: list[KubeObject] = []
        while True:
            page = await self._call("GET", path, query, verb="LIST")
            kind = str(page.get("kind", "")).removesuffix("List")
            about = {"apiVersion": page.get("apiVersion", ""), "kind": kind}
            # The items of a list do not say what they are, and whoever gets one has to know.
            items += [{**about, **item} for item in page.get("items") or ()]
            meta = page.get("metadata") or {}
            if not meta.get("continue"):
                return Listed(items, str(meta.get("resourceVersion", "")))
            query = {**query, "continue": meta["continue"]}
            query.pop("resourceVersion", None)

    async def _call(
        self,
        method: str,
        path: str,
        params: Mapping[str, str | int],
        body: Any = None,
        *,
        content_type: str = _JSON,
        verb: str = "",
    ) -> KubeObject:
        verb = verb or method
        content = None if body is None else msgspec.json.encode(body)
        kind = "" if content is None else content_type
        try:
            async with self._room, asyncio.timeout(self._timeout_s):
                reply = await self._line.send(method, path, params, content, kind)
                try:
                    raw = await _read(reply, verb, path)
                finally:
                    await reply.aclose()
        except TimeoutError as error:
            detail = f"no reply within {self._timeout_s:g} s"
            raise KubeUnavailable(verb, path, detail) from error
        except httpx.HTTPError as error:
            raise KubeUnavailable(verb, path, _told(error)) from error
        except ConfigError as error:
            raise KubeDenied(verb, path, _told(error)) from error
        if not reply.is_success:
            refusal = _refusal(verb, path, reply, raw)
            self.denials.note(verb, path, refusal)
            raise refusal
        self.denials.note(verb, path, None)
        return _object(verb, path, raw)


@asynccontextmanager
async def open_client(
    access: Access | None = None,
    *,
    transport: httpx.AsyncBaseTransport | None = None,
    timeout_s: float = CALL_S,
    writes_per_s: float | None = WRITES_PER_S,
) -> AsyncIterator[KubeClient]:
    """Open connections of their own to the API server; nothing is sent yet.

    `transport` takes the place of the network (and then `access` may be missing); `writes_per_s`
    None: no limit, as the heartbeat has it.

    Raises:
        BadInput: the credentials cannot be used.
    """
    if transport is None:
        if access is None:
            raise ValueError("either access or transport")
        transport = access.transport()
    server = access.server if access else "http://kubernetes.invalid"
    async with transport:
        line = _Line(server.rstrip("/"), transport, access.auth() if access else None)
        yield KubeClient(line, timeout_s=timeout_s, writes_per_s=writes_per_s)


class _Line:
    """Sends requests as somebody. An `httpx.AsyncClient` would do the same for twice the price."""

    def __init__(
        self, server: str, transport: httpx.AsyncBaseTransport, auth: httpx.Auth | None
    ) -> None:
        self._server, self._transport, self._auth = server, transport, auth

    async def send(
        self,
        method: str,
        path: str,
        params: Mapping[str, str | int],
        content: bytes | None = None,
        content_type: str = "",
    ) -> httpx.Response:
        """Return the reply, its body still to be read; it has to be closed."""
        url = f"{self._server}{path}?{urlencode(params)}" if params else f"{self._server}{path}"
        headers = _HEADERS if not content_type else {**_HEADERS, "content-type": content_type}
        request = httpx.Request(method, url, headers=headers, content=content)
        if self._auth is None:
            return await self._transport.handle_async_request(request)
        async with aclosing(self._auth.async_auth_flow(request)) as flow:
            with _credentials():
                signed = await anext(flow)
            while True:
                reply = await self._transport.handle_async_request(signed)
                try:
                    with _credentials():
                        signed = await flow.asend(reply)
                except StopAsyncIteration:
                    return reply
                except BaseException:
                    await reply.aclose()
                    raise
                await reply.aclose()  # it was not let in, and has another way


@contextmanager
def _credentials() -> Iterator[None]:
    """Have every way in which a program that gives credentials can fail be one."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"no credentials: {type(error).__name__}: {error}") from error


class _Lane:
    """Lets calls through at a rate, first come first served."""

    def __init__(self, per_s: float | None) -> None:
        self._bucket = None if per_s is None else Bucket(per_s, max(1, int(2 * per_s)))
        self._first = asyncio.Lock()

    async def turn(self) -> None:
        if self._bucket is None:
            return
        async with self._first:
            loop = asyncio.get_running_loop()
            while True:
                wait_s = self._bucket.take(1, loop.time())
                if not wait_s:
                    return
                await asyncio.sleep(max(wait_s, _SHORTEST_WAIT_S))


class _Lines:
    """Cuts a stream into lines, however it is chunked."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._begun: list[bytes] = []
        self._bytes = 0

    def split(self, chunk: bytes) -> list[bytes]:
        first, *rest = chunk.split(b"\n")
        self._begun.append(first)
        self._bytes += len(first)
        if self._bytes > MAX_EVENT_BYTES:
            detail = f"one event is larger than {MAX_EVENT_BYTES} bytes"
            raise KubeUnavailable("WATCH", self._path, detail)
        if not rest:
            return []
        whole = [b"".join(self._begun), *rest[:-1]]
        self._begun, self._bytes = [rest[-1]], len(rest[-1])
        return [line for line in whole if line.strip()]


async def _read(reply: httpx.Response, verb: str, path: str) -> bytes:
    parts: list[bytes] = []
    size = 0
    async for part in reply.aiter_bytes():
        size += len(part)
        if size > MAX_BYTES:
            raise KubeUnavailable(verb, path, f"the reply is larger than {MAX_BYTES} bytes")
        parts.append(part)
    return b"".join(parts)


def _object(verb: str, path: str, raw: bytes) -> KubeObject:
    try:
        return msgspec.json.decode(raw, type=KubeObject)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise KubeUnavailable(verb, path, f"the reply is no JSON object: {error}") from error


def _event(path: str, line: bytes) -> WatchEvent:
    told = _object("WATCH", path, line)
    kind, about = told.get("type"), told.get("object")
    if not isinstance(kind, str) or not isinstance(about, dict):
        raise KubeUnavailable("WATCH", path, "a line of the stream is no event")
    if kind == "ERROR":
        raise _error("WATCH", path, int(about.get("code") or 500), about, None)
    return WatchEvent(kind, about)


def _refusal(verb: str, path: str, reply: httpx.Response, raw: bytes) -> KubeError:
    try:
        status = msgspec.json.decode(raw, type=KubeObject)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        # A proxy in between, or a server that dies: its words are all there is.
        status = {"message": raw[:_MAX_DETAIL].decode(errors="replace")}
    after = reply.headers.get("retry-after", "")
    return _error(verb, path, reply.status_code, status, parse_retry_after(after, None))


def _error(
    verb: str, path: str, code: int, status: Mapping[str, Any], retry_after_s: float | None
) -> KubeError:
    reason = str(status.get("reason") or "")
    message = clean(str(status.get("message") or reason), _MAX_DETAIL)
    detail = f"{code} {message}".rstrip()
    match code:
        case 401 | 403:
            return KubeDenied(verb, path, detail)
        case 404:
            return KubeAbsent(verb, path, detail)
        case 409:
            kind = KubeExists if reason == "AlreadyExists" else KubeConflict
            return kind(verb, path, detail)
        case 410:
            return KubeGone(verb, path, detail)
        case 422 if _OTHER_UID in message:
            return KubeConflict(verb, path, detail)
        case 408 | 429:
            return KubeUnavailable(verb, path, detail, retry_after_s=retry_after_s)
        case _ if code >= 500:
            return KubeUnavailable(verb, path, detail, retry_after_s=retry_after_s)
        case _:
            return KubeInvalid(verb, path, detail)


def _told(error: Exception) -> str:
    return clean(f"{type(error).__name__}: {error}".rstrip(": "), _MAX_DETAIL)
