"""Header blocks of SPDY/3: the layout, the compression, and the dictionary that it starts from.

One compressor and one decompressor serve a whole connection, so every block must be read, also that
of a stream nobody wants: a block that is skipped makes all later ones unreadable. A block can claim
to be far larger than what came (a zlib bomb), so what it may grow to is bounded before it grows.

Source: SPDY Protocol, draft 3.1, sections 2.6.10 and 2.6.10.1 (chromium.org); checked 2026-11.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Final

Headers = Mapping[str, Sequence[str]]
"""Names in lower case; a name's values in order."""

MOST_BLOCK_BYTES: Final = 64 * 1024
"""What a header block may grow to. Kubernetes sends less than 1 KiB."""

_TOKENS: Final = (
    "options|head|post|put|delete|trace|accept|accept-charset|accept-encoding|"
    "accept-language|accept-ranges|age|allow|authorization|cache-control|connection|"
    "content-base|content-encoding|content-language|content-length|content-location|"
    "content-md5|content-range|content-type|date|etag|expect|expires|from|host|if-match|"
    "if-modified-since|if-none-match|if-range|if-unmodified-since|last-modified|location|"
    "max-forwards|pragma|proxy-authenticate|proxy-authorization|range|referer|retry-after|"
    "server|te|trailer|transfer-encoding|upgrade|user-agent|vary|via|warning|"
    "www-authenticate|method|get|status|200 OK|version|HTTP/1.1|url|public|set-cookie|"
    "keep-alive|origin"
)
"""Between bars; each stands in the dictionary after its own length."""
_TAIL: Final = (
    "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505"
    "203 Non-Authoritative Information"
    "204 No Content"
    "301 Moved Permanently"
    "400 Bad Request"
    "401 Unauthorized"
    "403 Forbidden"
    "404 Not Found"
    "500 Internal Server Error"
    "501 Not Implemented"
    "503 Service Unavailable"
    "Jan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, "
    "GMT"
    "chunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,"
    "text/plain,text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf-8"
    "charset=iso-8859-1,utf-,*,enq=0."
)
"""Follows the tokens, with nothing between its pieces."""

DICTIONARY: Final = (
    b"".join(struct.pack(">I", len(each)) + each.encode() for each in _TOKENS.split("|"))
    + _TAIL.encode()
)
"""What both ends prime zlib with: 1423 bytes, Adler-32 e3c6a7c2. It is part of the wire format."""


class BadBlock(Exception):
    """A header block cannot be read; nothing that comes later on its connection can."""


class HeaderWriter:
    """Headers to compressed blocks, in the order in which they are sent."""

    def __init__(self) -> None:
        self._zlib = zlib.compressobj(
            9, zlib.DEFLATED, 15, 9, zlib.Z_DEFAULT_STRATEGY, zdict=DICTIONARY
        )

    def block(self, headers: Headers) -> bytes:
        """Return the block; names go out in lower case."""
        parts = [struct.pack(">I", len(headers))]
        for name, values in headers.items():
            for text in (name.lower(), "\0".join(values)):
                octets = text.encode("utf-8", "surrogateescape")
                parts += [struct.pack(">I", len(octets)), octets]
        return self._zlib.compress(b"".join(parts)) + self._zlib.flush(zlib.Z_SYNC_FLUSH)


class HeaderReader:
    """Compressed blocks to headers, in the order in which they came."""

    def __init__(self) -> None:
        self._zlib = zlib.decompressobj(15, zdict=DICTIONARY)

    def headers(self, block: bytes) -> Headers:
        """Return what a block says; a name that stands there twice has the values of both.

        Raises:
            BadBlock: it is not zlib, grows too large, or its lengths do not add up.
        """
        try:
            plain = self._zlib.decompress(block, MOST_BLOCK_BYTES)
        except zlib.error as error:
            raise BadBlock(f"not compressed as agreed: {error}") from error
        # At the bound zlib may have taken all of the block and still keep some of what it says.
        if len(plain) >= MOST_BLOCK_BYTES or self._zlib.eof:
            raise BadBlock(f"larger than {MOST_BLOCK_BYTES} bytes, or the compression ended")
        return _parsed(plain)


def _parsed(plain: bytes) -> Headers:
    """Return the headers of an uncompressed block."""
    fields: dict[str, list[str]] = {}
    at = 0

    def number() -> int:
        nonlocal at
        if at + 4 > len(plain):
            raise BadBlock("cut short")
        (value,) = struct.unpack_from(">I", plain, at)
        at += 4
        return int(value)

    def text() -> str:
        nonlocal at
        length = number()
        if at + length > len(plain):
            raise BadBlock("cut short")
        at += length
        return plain[at - length : at].decode("utf-8", "surrogateescape")

    for _ in range(number()):
        name, value = text().lower(), text()
        if not name:
            raise BadBlock("a header has no name")
        fields.setdefault(name, []).extend(value.split("\0"))
    if at != len(plain):
        raise BadBlock("something follows the last header")
    return fields
