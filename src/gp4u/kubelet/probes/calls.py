"""One question of a probe, put to a machine from outside: by HTTP, by TCP or by gRPC.

Hides connections, redirects and caps. A machine is a stranger, and a probe is a wish of whoever
wrote the pod, so an address is checked after its name was resolved and the connection goes to
what was checked: public, or loopback where a rehearsal allows it. Nothing is kept between two
questions. When they are put and what follows from the answers is `probing.py`'s part.

Source: kubernetes pkg/probe/http, pkg/probe/grpc, pkg/probe/tcp, 1.32; checked 2026-11.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import cache
from typing import Final
from urllib.parse import quote, urljoin, urlsplit

import h11
from msgspec import Struct
from msgspec.structs import replace

from gp4u.kubelet.probes.grpc_health import HealthCall
from gp4u.providers.http import addresses_of, may_connect
from gp4u.telemetry import clean

AGENT: Final = "kube-probe/1.36"
MAX_BODY: Final = 10 * 1024
"""Bytes of a body that are looked at; it need not end by then."""
_MAX_HEAD: Final = 64 * 1024
_MAX_REDIRECTS: Final = 10
_PIECE: Final = 16 * 1024
_NOBODY_BEHIND: Final = frozenset({502, 503, 504})
"""What a market's proxy says while the workload does not answer."""
_NOT_THEIRS: Final = frozenset({"connection", "content-length", "transfer-encoding"})
_IN_PATH: Final = "/?&=%:@!$'()*+,;~[]"


class Answer(Struct, frozen=True):
    """What came of a question."""

    problem: str = ""
    """Why it counts as a failure; empty: it passed."""
    warning: str = ""
    """What is odd about one that passed."""


class Place(Struct, frozen=True, kw_only=True):
    """Where a question goes."""

    host: str
    """An address or a name."""
    port: int
    tls: bool = False
    by_name: bool = False
    """Whether a market's proxy stands there, which sends requests on by the name they ask for."""

    @property
    def authority(self) -> str:
        """Host and port as a URL has them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.tls else 80) else f"{host}:{self.port}"


def place_of(url: str) -> Place | None:
    """Return the place that a market's HTTP address names; None where it names none."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return None
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
        return None
    tls = parts.scheme == "https"
    return Place(host=parts.hostname, port=port or (443 if tls else 80), tls=tls, by_name=True)


class Outside:
    """Asks; holds nothing but what may be connected to."""

    def __init__(self, *, allow_loopback: bool) -> None:
        self._allow_loopback = allow_loopback

    async def http(self, place: Place, path: str, headers: Sequence[tuple[str, str]]) -> Answer:
        """Ask with GET; 200 to 399 passes. Redirects are followed on the same host alone.

        `headers` are the probe's own; they win over ours, but for those that frame the message.
        """
        target = _target(path)
        for _ in range(_MAX_REDIRECTS + 1):
            try:
                status, location = await self._get(place, target, headers)
            except (OSError, ValueError, h11.ProtocolError) as error:
                return Answer(_told(error))
            if not 300 <= status < 400 or not location:
                return Answer("" if 200 <= status < 400 else f"answered HTTP {status}")
            onward = _redirected(place, target, location)
            if onward is None:
                warning = "it redirects to another host, which was not asked"
                return Answer(warning=f"{warning}: {clean(location, 128)}")
            place, target = onward
        return Answer(f"it redirects more than {_MAX_REDIRECTS} times")

    async def tcp(self, place: Place) -> Answer:
        """Ask whether a connection is accepted; behind a proxy, whether anybody answers."""
        try:
            if place.by_name:
                status, _ = await self._get(place, "/", ())
                return Answer(f"answered HTTP {status}" if status in _NOBODY_BEHIND else "")
            async with self._connection(place, tls=False):
                return Answer()
        except (OSError, ValueError, h11.ProtocolError) as error:
            return Answer(_told(error))

    async def grpc(self, place: Place, service: str) -> Answer:
        """Ask the health service whether a service is SERVING; empty: the server as a whole."""
        call = HealthCall(service, authority=place.authority, agent=AGENT, tls=place.tls)
        try:
            async with self._connection(place, "h2") as (reader, writer):
                writer.write(call.begin())
                while call.result is None:
                    await writer.drain()
                    writer.write(call.receive(await reader.read(_PIECE)))
        except (OSError, ValueError) as error:
            return Answer(_told(error))
        return Answer(call.result)

    async def _get(
        self, place: Place, target: str, headers: Sequence[tuple[str, str]]
    ) -> tuple[int, str]:
        """Return the status and the `Location` of one GET.

        Raises:
            OSError: nobody answers.
            ValueError: it must not be asked.
            h11.ProtocolError: the question cannot be put, or the answer is not HTTP.
        """
        http = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MAX_HEAD)
        request = h11.Request(method="GET", target=target, headers=_headers(place, headers))
        asked = http.send(request)
        asked = (asked or b"") + (http.send(h11.EndOfMessage()) or b"")
        async with self._connection(place) as (reader, writer):
            writer.write(asked)
            await writer.drain()
            status, location, seen = 0, "", 0
            while True:
                event = http.next_event()
                if event is h11.NEED_DATA:
                    piece = await reader.read(_PIECE)
                    if not piece and not status:
                        raise ConnectionResetError
                    http.receive_data(piece)
                elif isinstance(event, h11.Response):
                    status = event.status_code
                    told = dict(event.headers)
                    location = told.get(b"location", b"").decode("latin-1")
                elif isinstance(event, h11.Data):
                    seen += len(event.data)
                    if seen >= MAX_BODY:
                        break
                elif isinstance(event, h11.EndOfMessage):
                    break
                elif isinstance(event, h11.ConnectionClosed):
                    raise ConnectionResetError
        return status, location

    @asynccontextmanager
    async def _connection(
        self, place: Place, speaks: str = "http/1.1", *, tls: bool = True
    ) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """Connect to the first address of a place that takes it; leave without a farewell.

        Raises:
            OSError: none does.
            ValueError: one of them is none that foreign text may lead to.
        """
        addresses = await addresses_of(place.host, place.port)
        for address in addresses:
            if not may_connect(address, allow_loopback=self._allow_loopback):
                raise ValueError(f"the address {address} is not public")
        encrypted = place.tls and tls
        problem: OSError = ConnectionError("the name has no address")
        for address in addresses:
            try:
                reader, writer = await asyncio.open_connection(
                    str(address),
                    place.port,
                    ssl=_unchecked(speaks) if encrypted else None,
                    server_hostname=place.host if encrypted else None,
                )
            except OSError as error:
                problem = error
                continue
            try:
                yield reader, writer
            finally:
                writer.transport.abort()
            return
        raise problem


@cache
def _unchecked(speaks: str) -> ssl.SSLContext:
    """Return TLS that looks at no certificate: a probe asks whether something answers, not who.

    One for all probes, as each costs tens of kilobytes.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols([speaks])
    return context


def _target(path: str) -> str:
    """Return a path as a request line has it."""
    whole = path if path.startswith("/") else f"/{path}"
    return quote(whole.split("#", 1)[0], safe=_IN_PATH)


def _headers(place: Place, theirs: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return what is sent: the probe's headers, and ours where it has none of that name."""
    said = {name.lower() for name, _ in theirs}
    ours = [("Host", place.authority), ("User-Agent", AGENT), ("Accept", "*/*")]
    if place.by_name:  # its proxy knows nobody by another name
        theirs = [each for each in theirs if each[0].lower() != "host"]
        said.discard("host")
    kept = [each for each in theirs if each[0].lower() not in _NOT_THEIRS and each[1]]
    mine = [each for each in ours if each[0].lower() not in said]
    return [*mine, *kept, ("Connection", "close")]


def _redirected(place: Place, target: str, location: str) -> tuple[Place, str] | None:
    """Return where a redirect leads; None where that is another host or port.

    Another port of the same address may be another tenant's machine.
    """
    scheme = "https" if place.tls else "http"
    try:
        parts = urlsplit(urljoin(f"{scheme}://{place.authority}{target}", location))
        port = parts.port
    except ValueError:
        return None
    if parts.scheme not in ("http", "https") or parts.hostname != place.host.lower():
        return None
    tls = parts.scheme == "https"
    port = port or (443 if tls else 80)
    if port != place.port and not place.by_name:
        return None
    query = f"?{parts.query}" if parts.query else ""
    return replace(place, tls=tls, port=port), _target(f"{parts.path or '/'}{query}")


def _told(error: Exception) -> str:
    """Say why there was no answer, in a few words."""
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    if isinstance(error, h11.LocalProtocolError):
        return "the probe's path or headers cannot be sent"
    if isinstance(error, h11.ProtocolError):
        return "the answer is not HTTP"
    if isinstance(error, UnicodeError):
        return "the host's name cannot be one"
    if isinstance(error, ssl.SSLError):
        return f"no TLS: {clean(error.reason or 'handshake failed', 64)}"
    if isinstance(error, OSError):
        return f"no answer ({type(error).__name__})"
    return clean(str(error), 128)
