"""JSON over HTTP to one provider: each call is guarded, each reply is judged before it is read.

What this file hides: httpx2, deadlines, size caps, decompression, and the question whether a byte
left this machine. What it leaves to others: what a status means in a given market (the adapter's
`judge`), and whether a failed call is tried again (`resilience/guard.py`).

A reply is bounded on the wire and after decompression, is never followed to another address while
it carries a key, and is decoded only as a whole. Should a provider echo the key, it is blotted out
before anybody reads the reply.
"""

from __future__ import annotations

import asyncio
import io
import ipaddress
import re
import ssl
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC
from email.utils import parsedate_to_datetime
from functools import cache
from http.cookiejar import DefaultCookiePolicy
from typing import Final, Protocol, TypeVar

import httpx2
import msgspec

from gp4u.errors import BadInput, Malformed, ProviderError, Unavailable
from gp4u.providers.contract import Call
from gp4u.resilience.backoff import parse_retry_after
from gp4u.resilience.guard import Guard

T = TypeVar("T")
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

CONNECT_S: Final = 5.0
MAX_BYTES: Final = 32 * 1024 * 1024
"""Cap on a body, both as received and as decompressed."""
UNPACK_BYTES: Final = 1024 * 1024
"""Of a compressed body at one go; everybody else has a turn in between."""
MAX_STREAM_BYTES: Final = 4 * 1024 * 1024
"""Cap on what is taken of a stream that may never end."""
LISTEN_S: Final = 10.0
"""For so long a stream that is never silent is read."""
MAX_URL: Final = 2048
_SHORTEST_SECRET: Final = 8
"""A shorter key is not blotted out of replies: it could be any number in them."""
_SECRET_HEADER: Final = re.compile("auth|key|token|secret|cookie|sign")
_MOST_SECRETS: Final = 32
"""Newest keys of one provider that are blotted; code that makes one per call must not pile up."""
_NOT_SENT: Final = (
    httpx2.ConnectError,
    httpx2.ConnectTimeout,
    httpx2.PoolTimeout,
    httpx2.UnsupportedProtocol,
)
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")
_DOCUMENTATION: Final = tuple(
    ipaddress.ip_network(each)
    for each in ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "2001:db8::/32")
)
"""Source: RFC 5737 and RFC 3849."""
UNREADABLE: Final = (msgspec.MsgspecError, RecursionError, UnicodeDecodeError)
"""What decoding foreign JSON raises: 100,000 brackets are a RecursionError, not a ValueError."""
_encoder: Final = msgspec.json.Encoder(decimal_format="number")


class Reply(msgspec.Struct, frozen=True):
    """A complete answer: status, headers (lower-case names) and the decompressed body."""

    status: int
    headers: Mapping[str, str]
    content: bytes


class Request(msgspec.Struct, frozen=True):
    """One attempt of one call, as it is about to leave: what a signature is made of."""

    method: str
    path: str
    """Without host and query, as it stands in the URL."""
    query: str
    """As it stands in the URL, without the question mark."""
    body: bytes


class Judge(Protocol):
    """Says what a reply means in one market: None for a success, else the error to raise."""

    def __call__(self, operation: str, reply: Reply) -> ProviderError | None: ...


Sign = Callable[[Request], Mapping[str, str]]
"""Returns the headers that prove who sends this very attempt; asked anew for each one."""
Observe = Callable[[str, str, ProviderError | None, float], None]
"""Told of each try: provider, operation, its error or None, seconds."""


def _unobserved(
    _provider: str, _operation: str, _error: ProviderError | None, _seconds: float
) -> None:
    return


class Http:
    """The one way an adapter speaks to its provider."""

    def __init__(
        self,
        provider: str,
        *,
        guard: Guard,
        judge: Judge,
        headers: Mapping[str, str],
        timeout_s: float,
        sign: Sign | None = None,
        secrets: Iterable[str] = (),
        allow_loopback: bool = False,
        transport: httpx2.AsyncBaseTransport | None = None,
        observe: Observe | None = None,
    ) -> None:
        """`headers` carry the key; they and what `sign` returns go to the provider alone.

        A reply that says the key back, or one of `secrets`, is blotted before anybody reads it.

        Raises:
            BadInput: the key cannot stand in a header.
        """
        self._provider, self._guard, self._judge, self._observe = (
            provider,
            guard,
            judge,
            observe or _unobserved,
        )
        self._headers, self._sign = dict(headers), sign
        _check_headers(provider, headers)
        self._secrets: list[str] = []
        self._hide([*headers.values(), *secrets])
        self._timeout_s, self._allow_loopback = timeout_s, allow_loopback
        self._client = httpx2.AsyncClient(
            transport=transport,
            follow_redirects=False,
            trust_env=False,  # a proxy from the environment would see the key
            verify=_trusted() if transport is None else True,
        )
        # What a reply sets is nobody's business: one call must not shape the next.
        self._client.cookies.jar.set_policy(DefaultCookiePolicy(allowed_domains=[]))

    async def send(
        self,
        operation: str,
        call: Call,
        *,
        safe: bool,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> bytes:
        """Send a call through the guard and return the body of a reply that the judge let pass.

        `operation` names the endpoint for pacing and errors. `safe` says that sending it twice does
        no harm; only then is it ever sent twice after a byte may have left. `headers` are of this
        call alone, and are no place for a secret: a reply that repeats them is not blotted.

        Raises:
            Unavailable: transport, deadline, or what the judge calls so.
            Malformed: the body is too large or packed in a way that was not asked for.
            ProviderError: what the judge or the guard say.
        """
        limit_s = timeout_s or self._timeout_s

        async def exchange() -> Reply:
            return await self._exchange(
                operation, call, params=params, headers=headers, timeout_s=limit_s
            )

        reply = await self._guarded(operation, exchange, safe=safe, timeout_s=limit_s)
        return reply.content

    async def visit(
        self,
        operation: str,
        call: Call,
        *,
        safe: bool,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        trusted: bool = False,
    ) -> Reply:
        """Send a call that somebody else's code made, through the guard; return the whole reply.

        Where the address is not `trusted` it is foreign text, and held to what `fetch_result`
        holds it to. `headers` may carry a key: under a name that says so, it is blotted out of
        every reply.

        Raises:
            BadInput: a header cannot stand in a request.
            Malformed: the URL is not one we may follow; else as in `send`.
            ProviderError: what the judge or the guard say.
        """
        given = headers or {}
        _check_headers(self._provider, given)
        self._hide(value for name, value in given.items() if _SECRET_HEADER.search(name.lower()))
        stranger: httpx2.URL | None = None
        if not trusted:
            stranger, (first, *_) = await self._pinned(call.url, operation)
            call = Call(method=call.method, url=first, body=call.body)

        async def exchange() -> Reply:
            return await self._exchange(
                operation,
                call,
                params=params,
                headers=headers,
                timeout_s=self._timeout_s,
                stranger=stranger,
            )

        return await self._guarded(operation, exchange, safe=safe, timeout_s=self._timeout_s)

    async def collect(
        self,
        operation: str,
        call: Call,
        *,
        params: Mapping[str, str] | None = None,
        for_s: float,
        max_bytes: int = MAX_STREAM_BYTES,
    ) -> bytes:
        """Read a stream until it ends, is silent for `for_s`, or holds `max_bytes`.

        One that goes on is left after `LISTEN_S`. Safe to repeat, so only for reads.

        Raises:
            Unavailable: not even its head came.
            ProviderError: what the judge or the guard say.
        """

        async def beginning() -> Reply:
            accept = {"accept": "text/event-stream, text/plain", "accept-encoding": "identity"}
            request = self._request(call, params, accept, timeout_s=self._timeout_s)
            body = bytearray()
            async with self._sent(operation, request) as response:
                chunks = aiter(response.aiter_raw())
                try:
                    async with asyncio.timeout(LISTEN_S):
                        while len(body) < max_bytes:
                            async with asyncio.timeout(for_s):
                                body += await anext(chunks)
                except (StopAsyncIteration, TimeoutError):
                    pass  # it ended, or has told all it has for now
            return self._reply(response, bytes(body[:max_bytes]))

        reply = await self._guarded(
            operation, beginning, safe=True, timeout_s=self._timeout_s + LISTEN_S + for_s
        )
        return reply.content

    async def fetch_result(self, url: str, *, deadline_s: float = 10.0) -> str:
        """Read a document that the provider points to, without our key, as soon as it is there.

        Such a URL is foreign text: it must be https to a public address (loopback only where
        development allows it), is never redirected, and gets no credentials. Empty text when it is
        not there by the deadline: no log is not an error.

        Raises:
            Malformed: the URL is not one we may follow, or leads on to another.
            Unavailable: at the deadline its host could still not be reached.
        """
        trouble: Unavailable | None = None
        wait_s = 0.2
        try:
            async with asyncio.timeout(deadline_s):
                stranger, pinned = await self._pinned(url)
                while True:
                    call = Call(method="GET", url=pinned[0])
                    try:
                        reply = await self._exchange(
                            "result", call, timeout_s=deadline_s, stranger=stranger
                        )
                    except Unavailable as error:
                        trouble = error
                        pinned = [*pinned[1:], pinned[0]]  # its next address may be reachable
                    else:
                        trouble = None
                        if reply.status == 200:
                            return reply.content.decode("utf-8", errors="replace")
                        if 300 <= reply.status < 400:
                            raise Malformed(self._provider, "result", "the result URL leads on")
                    await asyncio.sleep(wait_s)
                    wait_s = min(2.0, wait_s * 1.5)
        except TimeoutError:
            if trouble is not None:
                raise trouble from None
            return ""

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def _guarded(
        self,
        operation: str,
        exchange: Callable[[], Awaitable[Reply]],
        *,
        safe: bool,
        timeout_s: float,
    ) -> Reply:
        """Try an exchange as the guard lets; return the reply that the judge passed."""

        async def attempt() -> Reply:
            now = asyncio.get_running_loop().time
            began = now()
            outcome: ProviderError | None = None
            try:
                reply = await exchange()
                outcome = self._judge(operation, reply)
                if outcome is not None:
                    outcome.status = reply.status
                    raise outcome
                return reply
            except ProviderError as error:
                outcome = error
                raise
            except asyncio.CancelledError:
                outcome = Unavailable(self._provider, operation, "cut off before its answer")
                raise
            finally:
                self._observe(self._provider, operation, outcome, now() - began)

        return await self._guard.call(attempt, endpoint=operation, safe=safe, timeout_s=timeout_s)

    async def _exchange(
        self,
        operation: str,
        call: Call,
        *,
        timeout_s: float,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        stranger: httpx2.URL | None = None,
    ) -> Reply:
        """Send once and read the whole reply; to a `stranger`, whom the URL names, without key."""
        own = {"accept": "application/json", "accept-encoding": "gzip", **(headers or {})}
        request = self._request(call, params, own, timeout_s=timeout_s, stranger=stranger)
        async with self._sent(operation, request) as response:
            body = await _bounded_body(response)
        if len(body) > UNPACK_BYTES and not await self._quotes_a_secret(body):
            return Reply(response.status_code, dict(response.headers), body)
        return self._reply(response, body)

    async def _quotes_a_secret(self, body: bytes) -> bool:
        """Look through a large body for what is hidden, some of it at a time."""
        for secret in (each.encode() for each in self._secrets):
            for start in range(0, len(body), UNPACK_BYTES):
                if body.find(secret, start, start + UNPACK_BYTES + len(secret) - 1) >= 0:
                    return True
                await asyncio.sleep(0)
        return False

    def _request(
        self,
        call: Call,
        params: Mapping[str, str] | None,
        headers: Mapping[str, str],
        *,
        timeout_s: float,
        stranger: httpx2.URL | None = None,
    ) -> httpx2.Request:
        body = b"" if call.body is None else _encoder.encode(call.body)
        request = self._client.build_request(
            call.method,
            call.url,
            params=params,
            headers=headers,
            content=None if call.body is None else body,
            timeout=httpx2.Timeout(timeout_s, connect=CONNECT_S),
        )
        if call.body is not None:
            request.headers["content-type"] = "application/json"
        if stranger is not None:
            request.headers["host"] = stranger.netloc.decode("ascii")
            request.headers["connection"] = "close"  # the address may serve other names as well
            request.extensions["sni_hostname"] = stranger.raw_host.decode("ascii")
            return request
        request.headers.update(self._headers)
        if self._sign is not None:
            path, _, query = request.url.raw_path.decode("ascii").partition("?")
            request.headers.update(self._sign(Request(call.method, path, query, body)))
        return request

    @asynccontextmanager
    async def _sent(
        self, operation: str, request: httpx2.Request
    ) -> AsyncIterator[httpx2.Response]:
        """Send once; what goes wrong until the reply is read becomes an error of ours."""
        try:
            response = await self._client.send(request, stream=True)
            try:
                yield response
            finally:
                await response.aclose()
        except _NOT_SENT as error:
            raise Unavailable(self._provider, operation, self._why(error), sent=False) from error
        except httpx2.HTTPError as error:
            raise Unavailable(self._provider, operation, self._why(error)) from error
        except _BadBodyError as error:
            raise Malformed(self._provider, operation, str(error)) from error

    def _reply(self, response: httpx2.Response, body: bytes) -> Reply:
        for secret in self._secrets:
            body = body.replace(secret.encode(), b"[redacted]")
        return Reply(response.status_code, dict(response.headers), body)

    def _why(self, error: Exception) -> str:
        text = _short(error)
        for secret in self._secrets:
            text = text.replace(secret, "[redacted]")
        return text

    def _hide(self, values: Iterable[str]) -> None:
        """Have the keys in these headers' values blotted out of replies from now on."""
        keys = [value.split()[-1] for value in values if value.strip()]
        new = [key for key in keys if len(key) >= _SHORTEST_SECRET and key not in self._secrets]
        self._secrets = [*new, *self._secrets][:_MOST_SECRETS]

    async def _pinned(self, url: str, operation: str = "result") -> tuple[httpx2.URL, list[str]]:
        """Return the URL, and it again with each of its host's checked addresses for a host.

        Pinned, since a name could point elsewhere by the time it is connected to.
        """
        bound = f"the {operation} URL must be plain https to a public address"
        try:
            target = httpx2.URL(url[: MAX_URL + 1])
        except httpx2.InvalidURL as error:
            raise Malformed(self._provider, operation, bound) from error
        plain = target.scheme in ("https", "http") and target.host and not target.userinfo
        if len(url) > MAX_URL or not plain or not 0 < (target.port or 443) < 65_536:
            raise Malformed(self._provider, operation, bound)
        addresses = await self._addresses(target, operation)
        encrypted = target.scheme == "https"
        for address in addresses:
            loopback = self._allow_loopback and address.is_loopback
            if not (loopback or (encrypted and may_connect(address))):
                raise Malformed(self._provider, operation, bound)
        return target, [str(target.copy_with(host=str(address))) for address in addresses]

    async def _addresses(self, url: httpx2.URL, operation: str) -> list[Address]:
        """Return every address of the URL's host, at least one."""
        try:
            async with asyncio.timeout(CONNECT_S):
                return await addresses_of(url.raw_host.decode("ascii"), url.port or 443)
        except (OSError, TimeoutError, UnicodeError) as error:
            raise Unavailable(
                self._provider, operation, "its host has no address", sent=False
            ) from error
        except ValueError as error:
            raise Malformed(self._provider, operation, "its host has no plain address") from error


@cache
def _trusted() -> ssl.SSLContext:
    """Return whom this machine trusts: 25 ms to read, so all ways out share it."""
    return httpx2.create_ssl_context(trust_env=False)


def _check_headers(provider: str, headers: Mapping[str, str]) -> None:
    if not all(value.isascii() and value.isprintable() for value in headers.values()):
        raise BadInput(f"key of {provider}", "(hidden)", "must be printable ASCII on one line")


async def addresses_of(host: str, port: int) -> list[Address]:
    """Return every address of a host, at least one; an address is its own.

    Raises:
        OSError: the name has none.
        UnicodeError: the name cannot be one.
        ValueError: one of its addresses is not plain.
    """
    try:
        return [ipaddress.ip_address(host)]
    except ValueError:
        pass  # a name
    found = await asyncio.get_running_loop().getaddrinfo(host, port)
    return list(dict.fromkeys(ipaddress.ip_address(info[4][0]) for info in found))


def may_connect(address: Address, *, allow_loopback: bool = False) -> bool:
    """Tell whether foreign text may make us connect to an address: public, or allowed loopback.

    Loopback is for development, and so are the networks of documentation, where nobody ever is: a
    simulated machine may have such an address. An IPv6 address that stands for an IPv4 one is
    judged as the latter.
    """
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id is not None or address.is_site_local or address.teredo is not None:
            return False
        inner = address.ipv4_mapped or address.sixtofour
        if address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
        if inner is not None:
            address = inner
    if address.is_loopback or any(address in each for each in _DOCUMENTATION):
        return allow_loopback
    return address.is_global and not address.is_multicast and not address.is_reserved


def decode(provider: str, operation: str, body: bytes, kind: type[T]) -> T:
    """Decode a whole JSON body into `kind`.

    Raises:
        Malformed: it is not JSON, is nested too deep, or breaks the shape.
    """
    try:
        return msgspec.json.decode(body, type=kind)
    except UNREADABLE as error:
        raise Malformed(provider, operation, f"{_short(error)}; body: {excerpt(body)}") from error


def retry_after_s(reply: Reply) -> float | None:
    """Return how long a reply asks to wait by its `Retry-After`, 0..300 s; None: it does not say.

    A time of day counts from the reply's own `Date`, since clocks differ; without that it says
    nothing.
    """
    header = reply.headers.get("retry-after", "")
    try:
        now = parsedate_to_datetime(reply.headers.get("date", ""))
    except (ValueError, TypeError, IndexError, OverflowError):  # it slices; noise trips it anywhere
        return parse_retry_after(header, None)
    return parse_retry_after(header, now if now.tzinfo else now.replace(tzinfo=UTC))


def excerpt(body: bytes, limit: int = 160) -> str:
    """Return the start of a foreign body as harmless printable text."""
    return harmless(body[: limit * 4].decode("utf-8", errors="replace"), limit)


def harmless(text: str, limit: int = 160) -> str:
    """Return the start of a foreign text on one line, without anything that steers a terminal."""
    return "".join(c if c.isprintable() else " " for c in text[:limit]).strip()


def rows(body: list[msgspec.Raw], kind: type[T]) -> tuple[list[T], int]:
    """Decode rows one by one; return the ones that fit, and how many did not."""
    kept: list[T] = []
    decoder = msgspec.json.Decoder(kind)
    for raw in body:
        try:
            kept.append(decoder.decode(raw))
        except UNREADABLE:
            continue
    return kept, len(body) - len(kept)


class _BadBodyError(Exception):
    """A body passed a cap, or is packed in a way that cannot be read."""


async def _bounded_body(response: httpx2.Response) -> bytes:
    encoding = response.headers.get("content-encoding", "").strip().lower()
    if encoding not in ("", "identity", "gzip"):
        raise _BadBodyError(f"content-encoding {harmless(encoding, 20)!r} was not asked for")
    unzip = zlib.decompressobj(wbits=31) if encoding == "gzip" else None
    body = io.BytesIO()  # hands out what it holds without a copy
    wire = 0
    async for chunk in response.aiter_raw():
        wire += len(chunk)
        if wire > MAX_BYTES:
            raise _BadBodyError(f"the body is over {MAX_BYTES} bytes")
        if unzip is None:
            body.write(chunk)
        else:
            await _unpack(unzip, chunk, body)
    if unzip is not None and wire and not unzip.eof:
        raise httpx2.ReadError("the gzip body ended early")
    return body.getvalue()


async def _unpack(unzip: zlib._Decompress, chunk: bytes, body: io.BytesIO) -> None:
    """Add what a chunk unpacks to, which can be a thousand times as much, in pieces."""
    more = True
    while more:
        try:
            piece = unzip.decompress(chunk, UNPACK_BYTES)
        except zlib.error as error:
            raise _BadBodyError(f"broken gzip: {error}") from error
        if body.tell() + len(piece) > MAX_BYTES:
            raise _BadBodyError(f"the body unpacks to over {MAX_BYTES} bytes")
        body.write(piece)
        chunk = unzip.unconsumed_tail
        if more := bool(chunk) or len(piece) == UNPACK_BYTES:
            await asyncio.sleep(0)
    if unzip.unused_data:
        raise _BadBodyError("something follows the gzip body")


def _short(error: Exception) -> str:
    text = harmless(str(error), 160)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
