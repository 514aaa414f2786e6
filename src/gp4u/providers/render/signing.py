"""How a call to Dispersed is signed: one canonical text of the call, and four headers.

What this file hides: which bytes the market hashes, and in which order. Everything is pure but for
`Signer`, which asks for the time and a nonce and is called anew for every attempt: a nonce that was
sent once is worthless, so a repeated call with its old headers would be refused.

Source: official example client of Dispersed (`compute_examples`, August 2026) and the page
"authenticate requests" of its documentation, checked 2026-11; `docs/reference/render.md`, signing.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from collections.abc import Callable, Mapping
from urllib.parse import parse_qsl, urlencode

from gp4u.clock import Clock
from gp4u.errors import BadInput
from gp4u.providers.http import Request


class Signer:
    """Signs every attempt with the account's key pair; the secret never shows in its text."""

    def __init__(
        self,
        public_key: str,
        secret_key: str,
        clock: Clock,
        *,
        nonce: Callable[[], str] = lambda: secrets.token_hex(16),
    ) -> None:
        """`nonce` returns 32 hex digits, never the same twice by anybody who holds this key.

        Raises:
            BadInput: a key cannot stand in a header.
        """
        for name, key in (("public key", public_key), ("secret key", secret_key)):
            if not key or not key.isascii() or not key.isprintable() or " " in key:
                raise BadInput(f"{name} of render", "(hidden)", "must be printable ASCII")
        self._public_key, self._secret_key = public_key, secret_key
        self._clock, self._nonce = clock, nonce

    def __call__(self, request: Request) -> Mapping[str, str]:
        """Return the headers of this attempt.

        Raises:
            ValueError: the body is not in canonical form: its hash would not be the market's.
        """
        if canonical_body(request.body) != request.body:
            raise ValueError("a body must be sent in the form that is hashed")
        time_ms = str(round(self._clock.now().timestamp() * 1000))
        nonce = self._nonce()
        text = canonical_text(
            self._public_key,
            time_ms,
            nonce,
            method=request.method,
            path=request.path,
            query=request.query,
            body=request.body,
        )
        return {
            "x-api-key": self._public_key,
            "x-time": time_ms,
            "x-nonce": nonce,
            "x-signature": signature(self._secret_key, text),
        }


def canonical_query(query: str) -> str:
    """Return a query in the order and encoding that is signed: by key, then by value."""
    return urlencode(sorted(parse_qsl(query, keep_blank_values=True)))


def canonical_body(body: bytes) -> bytes:
    """Return a JSON body as it is hashed: keys sorted at every level, no blanks, ASCII only.

    Raises:
        ValueError: it is not JSON.
    """
    if not body:
        return b""
    value = json.loads(body)
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def canonical_text(
    public_key: str, time_ms: str, nonce: str, *, method: str, path: str, query: str, body: bytes
) -> str:
    """Return what is signed: seven parts in this order, the last of them a hash of the body."""
    return "|".join(
        (
            public_key,
            time_ms,
            nonce,
            method.upper(),
            path,
            canonical_query(query),
            hashlib.sha256(canonical_body(body)).hexdigest(),
        )
    )


def signature(secret_key: str, text: str) -> str:
    """Return the HMAC-SHA256 of the canonical text, in lower-case hex."""
    return hmac.new(secret_key.encode(), text.encode(), hashlib.sha256).hexdigest()
