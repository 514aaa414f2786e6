"""io.net's envelopes and scalars: what every reply of it has in common.

What this file hides: that the same answer comes wrapped in `data` or bare, that stamps come without
a zone, and which texts may become part of a path. What stands inside is read by `hardware.py` (what
is sold) and `held.py` (what we hold); what an error means, by `judge.py`. All of it is pure.

Source: `docs/reference/ionet.md`, which names the document behind each fact; checked 2026-11.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Final, TypeVar

import msgspec
from msgspec import Meta

from gp4u.errors import Malformed
from gp4u.providers.http import decode, excerpt
from gp4u.providers.ionet.order import SLUG

T = TypeVar("T")

Word = Annotated[str, Meta(max_length=256)]
_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")


def inner(operation: str, body: bytes, *keys: str) -> bytes:
    """Return what is inside `data`, if that is there, and inside the first of `keys`.

    A list stands for what it would be wrapped in. Wrapped and bare come from every call.

    Raises:
        Malformed: it is neither object nor list, or has none of the keys.
    """
    whole = _fields(operation, body)
    if whole is not None and "data" in whole:
        body = bytes(whole["data"])
        whole = _fields(operation, body)
    if whole is None or not keys:
        return body
    for key in keys:
        if key in whole:
            return bytes(whole[key])
    raise Malformed(SLUG, operation, f"no {keys[0]!r} in it; body: {excerpt(body)}")


def _fields(operation: str, body: bytes) -> dict[str, msgspec.Raw] | None:
    """Return an object's fields unread; None for a list."""
    if body[:64].lstrip()[:1] == b"[":
        return None
    return decode(SLUG, operation, body, dict[str, msgspec.Raw])


def read(operation: str, body: bytes, kind: type[T]) -> T:
    """Decode a wrapped or a bare object into `kind`.

    Raises:
        Malformed: it breaks the shape.
    """
    return decode(SLUG, operation, inner(operation, body), kind)


def own_id(row: object) -> str | None:
    """Return the id of a row; None where it has none that could stand in a path."""
    found = row.get("id") if isinstance(row, Mapping) else None
    text = str(found) if type(found) in (int, str) else ""
    return text if _ID.fullmatch(text) and text.strip(".") else None


def made_id(body: bytes) -> str | None:
    """Return the id in the answer to a create call; None where it says nothing of it.

    Raises:
        Malformed: it is neither empty nor an object.
    """
    if not body.strip():
        return None
    whole = decode(SLUG, "rent", inner("rent", body), dict[str, Any])
    return own_id({"id": whole.get("deployment_id")})


def stamp(value: object) -> datetime | None:
    """Read a time; without a zone it is UTC."""
    try:
        read_ = datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        return None
    return read_.replace(tzinfo=UTC) if read_ is not None and read_.tzinfo is None else read_
