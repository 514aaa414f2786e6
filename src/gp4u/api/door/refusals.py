"""Why a request is turned away before any route: what can be told from its head alone, purely.

Holds the bounds of a head and the whole table of what is said at the door. The order in which the
questions are asked, and who asks them, is `door.py`'s.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from starlette.types import Scope

from gp4u.api.door.passages import Passage
from gp4u.api.door.tokens import RANKS
from gp4u.telemetry import clean

MAX_URL_BYTES: Final = 8 << 10
MAX_HEAD_BYTES: Final = 16 << 10
MAX_HEADERS: Final = 100
REFUSALS: Final[Mapping[str, tuple[int, str]]] = {
    "bad_request": (400, "Not a request that can be read"),
    "token_needed": (401, "A token is needed"),
    "token_wrong": (401, "Nobody has this token"),
    "token_required": (403, "Tokens must be granted before others may call"),
    "role_needed": (403, "The token's role does not allow it"),
    "foreign_origin": (403, "A page of another site may not do this"),
    "no_such_path": (404, "There is no such path"),
    "method_not_allowed": (405, "Not with this method"),
    "too_slow": (408, "The request did not arrive in time"),
    "body_too_large": (413, "The body is too large"),
    "url_too_long": (414, "The URL is too long"),
    "not_json": (415, "The body must be JSON"),
    "host_not_allowed": (421, "This server is not known under that host name"),
    "too_many_guesses": (429, "Too many wrong tokens from this address"),
    "head_too_large": (431, "The head is too large"),
    "internal": (500, "A bug"),
    "saturated": (503, "The server is full"),
    "too_many_streams": (503, "The server has no room for another stream"),
}
"""Code to status and title of everything that is said at the door."""

_SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
_HOST: Final = re.compile(r"(?:\[([0-9a-f:.]+)\]|([a-z0-9_-]+(?:\.[a-z0-9_-]+)*)\.?)(?::\d{1,5})?")
_HOME: Final = frozenset({"localhost", "127.0.0.1", "::1"})
_ONCE: Final = frozenset(
    (b"host", b"authorization", b"content-length", b"content-type", b"transfer-encoding", b"origin")
)
"""Headers that two readers could understand in two ways if they came twice."""

Headers = Mapping[bytes, bytes]
"""Lower-case name to value; the last, where a name comes more than once."""


class Refusal(NamedTuple):
    """One request turned away."""

    code: str
    """A key of `REFUSALS`."""
    detail: str = ""
    headers: Mapping[str, str] | None = None
    members: Mapping[str, object] | None = None
    """What the problem is about, besides."""


class Hosts:
    """The names under which the server may be called.

    Source: a page whose name was made to mean this machine (DNS rebinding) still sends its own name
    in Host; a page cannot choose that header. Fetch standard, forbidden request-headers, November
    2026.
    """

    def __init__(self, names: Sequence[str] = ()) -> None:
        """`names` are allowed beside loopback; `*.example.org` means all below it."""
        self._names = _HOME.union(each.lower() for each in names if not each.startswith("*."))
        self._suffixes = tuple(each[1:].lower() for each in names if each.startswith("*."))

    def misdirected(self, scope: Scope, headers: Headers) -> Refusal | None:
        """Return the refusal of a host that is not ours; the address that was called always is."""
        said = headers.get(b"host", b"").decode("latin-1").lower()
        parts = _HOST.fullmatch(said)
        if parts is not None:
            name = parts[1] or parts[2]
            server = scope.get("server")
            if name in self._names or (server is not None and name == server[0]):
                return None
            if self._suffixes and name.endswith(self._suffixes):
                return None
        told = clean(said, 100) or "no host"
        return Refusal("host_not_allowed", f"{told} is not in GP4U_API_HOSTS")


def unreadable(scope: Scope, headers: Headers) -> Refusal | None:
    """Return the refusal of a head that is too large, or that could be read in two ways."""
    pairs = scope["headers"]
    url_bytes = len(scope.get("raw_path") or scope["path"]) + len(scope["query_string"])
    if url_bytes > MAX_URL_BYTES:
        return Refusal("url_too_long", f"at most {MAX_URL_BYTES} bytes")
    if len(pairs) > MAX_HEADERS or sum([len(n) + len(v) for n, v in pairs]) > MAX_HEAD_BYTES:
        bound = f"at most {MAX_HEADERS} headers and {MAX_HEAD_BYTES} bytes"
        return Refusal("head_too_large", bound)
    if len(headers) != len(pairs):
        names = [name for name, _ in pairs]
        twice = [name.decode() for name in _ONCE if names.count(name) > 1]
        if twice:
            return _broken(f"{twice[0]} twice")
    if b"content-length" in headers:
        if b"transfer-encoding" in headers:
            return _broken("Content-Length and Transfer-Encoding at once")
        if not headers[b"content-length"].isdigit():
            return _broken("Content-Length is no number")
    return None


def unrouted(passages: Mapping[str, Passage], method: str) -> Refusal | None:
    """Return the refusal of a path that no route has, or not with this method."""
    if not passages:
        return Refusal("no_such_path")
    if method in passages:
        return None
    allowed = ", ".join(sorted(passages))
    return Refusal("method_not_allowed", f"allowed: {allowed}", {"Allow": allowed})


def lacking(passage: Passage, role: str) -> Refusal | None:
    """Return the refusal of a role that is lower than what the route needs."""
    if RANKS[role] >= RANKS[passage.role]:
        return None
    members = {"needed": passage.role, "role": role}
    return Refusal("role_needed", f"this needs the role {passage.role}", None, members)


def foreign(scope: Scope, headers: Headers) -> Refusal | None:
    """Return the refusal of a change that another site's page makes its visitor's browser send.

    Source: Fetch standard (November 2026): browsers add Origin to every request that is neither
    GET nor HEAD, and Sec-Fetch-Site to all that go to trustworthy addresses, loopback included.
    """
    if scope["method"] in _SAFE:
        return None
    site = headers.get(b"sec-fetch-site", b"none")
    origin = headers.get(b"origin")
    # `same-site` is foreign as well: to a browser, another port of this machine is the same site.
    if site in (b"none", b"same-origin") and (
        origin is None or origin.partition(b"://")[2].lower() == headers[b"host"].lower()
    ):
        return None
    return Refusal("foreign_origin", clean((origin or site).decode("latin-1"), 200))


def unfit_body(headers: Headers, limit_bytes: int) -> Refusal | None:
    """Return the refusal of a body that is not JSON, or says that it is too large."""
    if int(headers.get(b"content-length", b"0")) > limit_bytes:
        return too_large(limit_bytes)
    media = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    if media == b"application/json" or (
        media.startswith(b"application/") and media.endswith(b"+json")
    ):
        return None
    return Refusal("not_json", "Content-Type: application/json")


def too_large(limit_bytes: int) -> Refusal:
    """Return the refusal of a body that is larger than that."""
    members = {"bound": str(limit_bytes)}
    return Refusal("body_too_large", f"at most {limit_bytes} bytes", None, members)


def full(code: str, detail: str) -> Refusal:
    """Return the refusal of what there is no room for now."""
    return Refusal(code, detail, {"Retry-After": "1"}, {"retry_in_s": 1.0})


def _broken(detail: str) -> Refusal:
    return Refusal("bad_request", detail, {"Connection": "close"})
