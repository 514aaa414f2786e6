"""Who may call: tokens and their roles, guesses at them, and when tokens must be set.

Hides how tokens are kept (salted digests only) and compared (each with all, in constant time), and
what counts as guessing. Which call needs which role is written at the routes; `door.py` asks.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
import socket
from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from gp4u.errors import BadInput

if TYPE_CHECKING:
    from pydantic import SecretStr

RANKS: Final = {"open": 0, "read": 1, "rent": 2, "admin": 3}
"""Role to rank: who has one may do whatever a lower one may. `open` needs no token."""
GUESSES: Final = 10
"""Different wrong tokens that one address may show within `GUESS_WINDOW_S`."""
GUESS_WINDOW_S: Final = 60.0
_ADDRESSES: Final = 4096
"""Addresses remembered; the one that was heard of first is forgotten first."""


class Tokens:
    """The tokens that are granted; false where there are none."""

    __slots__ = ("_granted", "_salt")

    def __init__(self, granted: Sequence[tuple[str, SecretStr]] = ()) -> None:
        """`granted` holds (role, token)."""
        self._salt = secrets.token_bytes(16)
        self._granted = tuple(
            (RANKS[role], role, self.digest(token.get_secret_value().encode()))
            for role, token in granted
        )

    def __bool__(self) -> bool:
        return bool(self._granted)

    def digest(self, token: bytes) -> bytes:
        """Return what is kept and compared of a token."""
        return hashlib.sha256(self._salt + token).digest()

    def role_of(self, digest: bytes) -> str | None:
        """Return the highest role that the token with this digest has; None for a wrong one."""
        best: tuple[int, str | None] = (0, None)
        for rank, role, granted in self._granted:  # to the end: when it stops must tell nothing
            if hmac.compare_digest(granted, digest) and rank > best[0]:
                best = (rank, role)
        return best[1]


class Guesses:
    """Counts different wrong tokens by address, so that trying them out is slow.

    Different ones, because a program with an old token shows the same one for ever: it must not
    lock out those who share its address.
    """

    def __init__(self) -> None:
        self._tries: OrderedDict[str, tuple[float, set[bytes]]] = OrderedDict()

    def wait_s(self, address: str, *, at: float) -> float:
        """Return for how many seconds no token is looked at from there; 0 for at once."""
        since, wrong = self._tries.get(_network(address), (at, ()))
        return max(0.0, since + GUESS_WINDOW_S - at) if len(wrong) >= GUESSES else 0.0

    def missed(self, address: str, digest: bytes, *, at: float) -> None:
        """Remember a wrong token."""
        network = _network(address)
        since, wrong = self._tries.get(network, (at, set()))
        if at >= since + GUESS_WINDOW_S:
            since, wrong = at, set()
        wrong.add(digest)
        self._tries[network] = (since, wrong)
        if len(self._tries) > _ADDRESSES:
            self._tries.popitem(last=False)


def check_exposure(host: str, tokens: Tokens) -> None:
    """Refuse to listen where others can call while nobody needs a token.

    Raises:
        BadInput: `host`, an address or a name, is not loopback alone, and there are no tokens.
    """
    if tokens or _leads_home(host):
        return
    raise BadInput(
        "GP4U_API_TOKENS",
        "",
        f"listening on {host or 'every address'} lets others call: grant tokens as a comma list of "
        "ROLE:TOKEN (roles are read, rent and admin), or listen on 127.0.0.1",
    )


@lru_cache(maxsize=1024)
def is_loopback(address: str) -> bool:
    """Tell whether an IP address leads back to this machine; False for anything else."""
    found = _parsed(address)
    return found is not None and found.is_loopback


def _leads_home(host: str) -> bool:
    """Tell whether a name or address means loopback and nothing else."""
    if not host:
        return False
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return False
    return bool(found) and all(is_loopback(str(entry[4][0])) for entry in found)


@lru_cache(maxsize=1024)
def _network(address: str) -> str:
    """Return what one caller cannot change at will: an IPv4 address, an IPv6 network of 64 bits."""
    found = _parsed(address)
    if isinstance(found, ipaddress.IPv6Address):
        return str(ipaddress.IPv6Network((found.packed[:8] + bytes(8), 64)))
    return str(found or address)


def _parsed(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return None
    return getattr(found, "ipv4_mapped", None) or found
