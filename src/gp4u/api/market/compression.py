"""Content coding: which one a client wants, and a body in it without holding anybody up.

Hides the grammar of `Accept-Encoding` and two compressors behind one. A large body is compressed
in pieces with turns for everybody else in between; one that is shorter than its frame goes as it
is.

Source: RFC 9110, sections 8.4, 12.4.2 and 12.5.3; RFC 8878 (zstd); checked 2026-11.
"""

from __future__ import annotations

import asyncio
import re
import zlib
from functools import lru_cache
from typing import Final, Literal, Protocol

import zstandard

Coding = Literal["zstd", "gzip", "identity"]

LEAST_BYTES: Final = 1024
"""A shorter body goes as it is."""
PIECE_BYTES: Final = 64 * 1024
"""At one go: about a millisecond."""
_PREFERRED: Final[tuple[Coding, ...]] = ("zstd", "gzip", "identity")
"""Where a client likes several the same."""
_GZIP_LEVEL: Final = 4
_ZSTD_LEVEL: Final = 3
_GZIP_FRAME: Final = 16 + zlib.MAX_WBITS
_WEIGHT: Final = re.compile(r"0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?")


class Coder(Protocol):
    """A body in the making; what is given in comes out of `compress` and `flush` together."""

    def compress(self, data: bytes, /) -> bytes:
        """Take some more of the body."""

    def flush(self) -> bytes:
        """End it."""


@lru_cache(maxsize=256)
def coding_for(accept_encoding: str | None) -> Coding:
    """Return the coding that a client likes best; `identity` where it names none that we know.

    A client that refuses even that gets it all the same, for there is nothing else to send.
    """
    if not accept_encoding:
        return "identity"
    weights = weighted(accept_encoding)
    if "x-gzip" in weights:
        weights.setdefault("gzip", weights["x-gzip"])
    rest = weights.get("*", 0.0)
    liked: dict[Coding, float] = {name: weights.get(name, rest) for name in _PREFERRED}
    if "identity" not in weights and "*" not in weights:
        # Acceptable, but who names a coding wants that one.
        liked["identity"] = min((q for q in weights.values() if q > 0), default=1.0) / 2
    best = max(_PREFERRED, key=lambda name: liked[name])
    return best if liked[best] > 0 else "identity"


def weighted(header: str) -> dict[str, float]:
    """Return a list's weights, keyed by lower-case name; what cannot be read is left out."""
    found: dict[str, float] = {}
    for part in header.lower().split(","):
        name, *others = part.split(";")
        told = [word.partition("=") for word in others]
        weights = [value.strip() for key, _, value in told if key.strip() == "q"]
        if name.strip() and all(map(_WEIGHT.fullmatch, weights)):
            found[name.strip()] = float(weights[-1]) if weights else 1.0
    return found


def coder(coding: Coding) -> Coder | None:
    """Return a compressor; None for `identity`."""
    match coding:
        case "zstd":
            return zstandard.ZstdCompressor(level=_ZSTD_LEVEL).compressobj()
        case "gzip":
            return zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, _GZIP_FRAME)
        case "identity":
            return None


async def compressed(body: bytes, coding: Coding) -> bytes:
    """Return a body in a coding; others run in between."""
    making = coder(coding)
    if making is None:
        return body
    parts = []
    for start in range(0, len(body), PIECE_BYTES):
        parts.append(making.compress(body[start : start + PIECE_BYTES]))
        await asyncio.sleep(0)
    return b"".join([*parts, making.flush()])
