"""Requests to an HTTP address that sends them on by the name they ask for.

Markets that publish URLs have one proxy for many machines: what a client says it wants
(`localhost`, a Service, a pod) means nothing there. Hides how a request is given the URL's own
name, and that this can be done once for each connection.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

from gp4u.errors import Unavailable
from gp4u.kubelet.probes.calls import Place
from gp4u.kubelet.streams.closing import drawn
from gp4u.providers.session import Link

MAX_HEAD: Final = 64 * 1024
_END: Final = b"\r\n\r\n"
_VERSIONS: Final = (b" HTTP/1.1", b" HTTP/1.0")
_REPLACED: Final = frozenset({b"host", b"connection", b"keep-alive", b"proxy-connection"})


class NotRelayed(Exception):
    """A connection that is not made, or a request that is not sent on, whoever asks for it."""


def renamed(head: bytes, place: Place) -> bytes:
    """Return a request's head as the machine's market wants it: by its name, and one at a time.

    What follows on the same connection would have a name of its own, so there is nothing to follow;
    but a connection that becomes another protocol's stays.

    Raises:
        NotRelayed: this is not HTTP/1.
    """
    first, *lines = head.removesuffix(_END).split(b"\r\n")
    if not first.endswith(_VERSIONS):
        raise NotRelayed("only HTTP/1.1 is relayed to a URL")
    fields = [(line.partition(b":")[0].strip().lower(), line) for line in lines]
    upgrades = any(name == b"upgrade" for name, _ in fields)
    kept = [line for name, line in fields if name not in _REPLACED]
    ours = b"Connection: upgrade" if upgrades else b"Connection: close"
    host = b"Host: " + place.authority.encode("ascii")
    return b"\r\n".join([first, host, *kept, ours, b"", b""])


class NamedLink(Link):
    """A connection to such an address, whose first request gets its name."""

    def __init__(self, inner: Link, place: Place) -> None:
        self._inner, self._place = inner, place
        self._head = b""
        self._is_sent, self._problem = False, ""

    async def output(self) -> AsyncIterator[bytes]:
        """Yield what comes until it ends; see `Link`."""
        try:
            async with drawn(self._inner.output()) as output:
                async for data in output:
                    yield data
        except Unavailable:
            if not self._problem:
                raise
        if self._problem:
            raise Unavailable("http", "forward", self._problem)

    async def send(self, data: bytes) -> None:
        """Write, once the head of the request is there.

        Raises:
            Unavailable: the connection broke, or what comes is no request that can be named.
        """
        if self._is_sent:
            await self._inner.send(data)
            return
        self._head += data
        head, end, rest = self._head.partition(_END)
        if not end and len(head) <= MAX_HEAD and _may_be_http(head):
            return
        try:
            named = renamed(head + end, self._place)
        except NotRelayed as error:
            self._problem = str(error)
            await self._inner.aclose()
            raise Unavailable("http", "forward", self._problem) from error
        self._head, self._is_sent = b"", True
        await self._inner.send(named + rest)

    async def end_input(self) -> None:
        """Say that nothing more will come."""
        await self._inner.end_input()

    async def aclose(self) -> None:
        """Leave it."""
        await self._inner.aclose()


def _may_be_http(begun: bytes) -> bool:
    """Whether the rest of a head may still come; TLS and binary protocols show at once."""
    first, end, _ = begun.partition(b"\r\n")
    if end:
        return first.endswith(_VERSIONS)
    return first.removesuffix(b"\r").decode("latin-1").isprintable()
