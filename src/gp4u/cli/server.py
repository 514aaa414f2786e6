"""HTTP to a GP4U server: deadlines, size caps, sending again, and what its failures mean.

Hides the connection. A problem that the server tells becomes the exception that it tells of, so
whoever asks sees what they would see without a server. What is no answer of a GP4U server (a page
of a proxy's, silence, a refused connection) becomes `ServerUnavailable`, and a token that will not
do `ServerDenied`; both say which variable is to blame. Which paths there are is `remote.py`'s.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final, NoReturn, TypeVar

import httpx2
import msgspec

from gp4u import __version__
from gp4u.api.problems import error_of
from gp4u.errors import Gp4uError, ServerDenied, ServerUnavailable
from gp4u.telemetry import clean

QUICK_S: Final = 15.0
"""For an answer that needs no market."""
PATIENT_S: Final = 240.0
"""For one that does: a search goes on for up to 140 s, and calls stand in line before that."""
CONNECT_S: Final = 10.0
MAX_REPLY: Final = 64 << 20
MAX_LINE: Final = 16 << 20
"""Of a stream; a decision is the longest."""
_MAX_PROBLEM: Final = 4 << 20
_MAX_WAIT_S: Final = 30.0
_JSON: Final = "application/json"
_NDJSON: Final = "application/x-ndjson"
_PROBLEM: Final = "application/problem+json"
_WANTS_TOKEN: Final = frozenset(
    {
        "token_needed",
        "token_wrong",
        "token_required",
        "role_needed",
        "not_allowed",
        "too_many_guesses",
    }
)
_NOT_THIS_SERVER: Final = frozenset({"no_such_path", "method_not_allowed", "not_acceptable"})
"""What a server of another version says to us."""
_NOT_NOW: Final = frozenset({"saturated", "too_many_streams", "too_slow"})
_STILL_RUNNING: Final = "request_in_progress"
"""The first try of a request that is sent again goes on."""
_BROKEN: Final = (httpx2.NetworkError, httpx2.RemoteProtocolError)
T = TypeVar("T")


class Server:
    """One server, by its address."""

    def __init__(self, client: httpx2.AsyncClient, url: str) -> None:
        """`url` has no slash at its end."""
        self._client, self.url = client, url

    async def ask(
        self,
        method: str,
        path: str,
        answer: type[T],
        *,
        params: Mapping[str, str] | None = None,
        body: object = None,
        wait_s: float = QUICK_S,
        cap: int = MAX_REPLY,
    ) -> T:
        """Send a request and return its answer, decoded.

        Raises:
            Gp4uError: what the server tells; ServerUnavailable, ServerDenied.
        """
        request = self._request(method, path, params=params, body=body, wait_s=wait_s)
        async with self._sent(request) as reply:
            content = await self._content(reply, _JSON, cap)
        return self._decoded(content, answer)

    async def text(self, path: str, *, params: Mapping[str, str], wait_s: float) -> str:
        """Return an answer that is plain text.

        Raises:
            Gp4uError: as `ask`.
        """
        request = self._request("GET", path, params=params, accept="text/plain", wait_s=wait_s)
        async with self._sent(request) as reply:
            content = await self._content(reply, "text/plain", MAX_REPLY)
        return content.decode("utf-8", errors="replace")

    async def send(self, method: str, path: str, *, wait_s: float) -> None:
        """Send a request whose answer says nothing more than that it is done.

        Raises:
            Gp4uError: as `ask`.
        """
        async with self._sent(self._request(method, path, wait_s=wait_s)) as reply:
            await self._content(reply, None, MAX_REPLY)

    async def lines(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: object = None,
        key: str | None = None,
        wait_s: float = PATIENT_S,
    ) -> AsyncGenerator[bytes, None]:
        """Yield the lines of a streamed answer; an answer in one piece is one line.

        `key` is the request's own (Idempotency-Key), with which it may be sent again.

        Raises:
            Gp4uError: as `ask`; of a stream that broke, `ServerUnavailable` with `sent`.
        """
        request = self._request(
            method, path, params=params, body=body, accept=f"{_NDJSON}, {_JSON}", wait_s=wait_s
        )
        if key is not None:
            request.headers["Idempotency-Key"] = key
        async with self._sent(request) as reply:
            if _media(reply) != _NDJSON:
                yield await self._content(reply, _JSON, MAX_LINE)
                return
            rest = b""
            async for chunk in self._chunks(reply):
                *whole, rest = (rest + chunk).split(b"\n")
                for line in whole:
                    if line.strip():
                        yield line
                if len(rest) > MAX_LINE:
                    self._unreadable("sends a line without an end")
            if rest.strip():
                yield rest

    def decoded_line(self, line: bytes, answer: Any) -> Any:
        """Return a line as what it should be, or None where it is something else."""
        try:
            return msgspec.json.decode(line, type=answer)
        except msgspec.MsgspecError:
            return None

    def error_of(self, problem: Mapping[str, Any], *, status: int | None = None) -> Gp4uError:
        """Return the exception that a problem tells."""
        code = str(problem.get("code", ""))
        detail = str(problem.get("detail") or problem.get("title") or code)
        if code in _WANTS_TOKEN or status == httpx2.codes.UNAUTHORIZED:
            return ServerDenied(f"the server {self.url} does not let us in: {clean(detail, 400)}")
        if code in _NOT_NOW:
            return ServerUnavailable(f"the server {self.url} is too busy: {clean(detail, 400)}")
        if code in _NOT_THIS_SERVER:
            return ServerUnavailable(
                f"the server {self.url} cannot do this, so it is of another version than "
                f"{__version__}: {clean(detail, 400)}"
            )
        if code == "host_not_allowed":
            return ServerUnavailable(
                f"the server {self.url} does not go by that name: {clean(detail, 400)}"
            )
        try:
            return error_of(problem)
        except (KeyError, TypeError, msgspec.MsgspecError):
            return ServerUnavailable(f"the server {self.url} tells a failure that cannot be read")

    def _request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: object = None,
        accept: str = _JSON,
        wait_s: float,
    ) -> httpx2.Request:
        headers = {"Accept": accept}
        content = None
        if body is not None:
            content = msgspec.json.encode(body)
            headers["Content-Type"] = _JSON
        return self._client.build_request(
            method,
            f"{self.url}{path}",
            params=params,
            content=content,
            headers=headers,
            timeout=httpx2.Timeout(wait_s, connect=CONNECT_S),
        )

    @asynccontextmanager
    async def _sent(self, request: httpx2.Request) -> AsyncIterator[httpx2.Response]:
        """Send a request, once more where its connection broke and it is safe; yield a good reply.

        Raises:
            Gp4uError: as `ask`.
        """
        safe = request.method != "POST" or "Idempotency-Key" in request.headers
        again = 1 if safe else 0
        while True:
            try:
                reply = await self._client.send(request, stream=True)
            except _BROKEN as error:
                if again:
                    again -= 1
                    continue
                raise self._lost(error) from error
            except (httpx2.HTTPError, httpx2.InvalidURL) as error:
                raise self._lost(error) from error
            try:
                if reply.is_success:
                    yield reply
                    return
                failure, wait_s = await self._failure(reply)
            finally:
                await reply.aclose()
            if wait_s is None:
                raise failure
            await asyncio.sleep(wait_s)  # our own first try, whose connection broke, goes on

    async def _failure(self, reply: httpx2.Response) -> tuple[Gp4uError, float | None]:
        """Return what a reply tells, and how long to wait before it is asked for once more."""
        status = reply.status_code
        if _media(reply) != _PROBLEM:
            kind = ServerDenied if status in (401, 403) else ServerUnavailable
            return kind(
                f"{self.url} answers HTTP {status} {_media(reply)}, which no GP4U server of this "
                "version does"
            ), None
        problem = self._decoded(await self._bounded(reply, _MAX_PROBLEM), dict[str, Any])
        if problem.get("code") == _STILL_RUNNING:
            told = reply.headers.get("Retry-After", "")
            wait_s = float(told) if told.isdecimal() else 1.0
            return self.error_of(problem), min(_MAX_WAIT_S, wait_s)
        return self.error_of(problem, status=status), None

    async def _content(self, reply: httpx2.Response, media: str | None, cap: int) -> bytes:
        if media is not None and _media(reply) != media:
            self._unreadable(f"answers with {_media(reply)}")
        return await self._bounded(reply, cap)

    async def _bounded(self, reply: httpx2.Response, cap: int) -> bytes:
        content = bytearray()
        async for chunk in self._chunks(reply):
            content += chunk
            if len(content) > cap:
                self._unreadable(f"answers with more than {cap >> 20} MiB")
        return bytes(content)

    async def _chunks(self, reply: httpx2.Response) -> AsyncIterator[bytes]:
        try:
            async for chunk in reply.aiter_bytes():
                yield chunk
        except httpx2.HTTPError as error:
            raise self._lost(error) from error

    def _decoded(self, content: bytes, answer: type[T]) -> T:
        try:
            return msgspec.json.decode(content, type=answer)
        except msgspec.MsgspecError as error:
            self._unreadable(f"answers something else than it should ({clean(str(error), 200)})")

    def _unreadable(self, why: str) -> NoReturn:
        raise ServerUnavailable(
            f"{self.url} {why}: no GP4U server, or one of another version than {__version__}",
            sent=True,
        )

    def _lost(self, error: Exception) -> ServerUnavailable:
        """Return what to say of a connection that failed."""
        url = self.url
        if isinstance(error, httpx2.ConnectTimeout):
            return ServerUnavailable(f"the server {url} cannot be reached within {CONNECT_S:.0f} s")
        if isinstance(error, (httpx2.ConnectError, httpx2.UnsupportedProtocol, httpx2.InvalidURL)):
            why = clean(str(error), 200)
            return ServerUnavailable(f"the server {url} cannot be reached{why and ': '}{why}")
        if isinstance(error, httpx2.TimeoutException):
            return ServerUnavailable(f"the server {url} does not answer", sent=True)
        return ServerUnavailable(f"the connection to the server {url} broke", sent=True)


@asynccontextmanager
async def open_server(
    url: str, token: str | None, *, transport: httpx2.AsyncBaseTransport | None = None
) -> AsyncIterator[Server]:
    """Open a way to a server and close it in the end; nothing is sent yet."""
    headers = {"User-Agent": f"gp4u-cli/{__version__}"}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    verify = httpx2.create_ssl_context(trust_env=False) if url.startswith("https:") else False
    async with httpx2.AsyncClient(
        headers=headers, trust_env=False, verify=verify, transport=transport
    ) as client:
        yield Server(client, url)


def _media(reply: httpx2.Response) -> str:
    return clean(reply.headers.get("Content-Type", "").partition(";")[0].strip().lower(), 60)
