"""Who is calling Dispersed: four headers, a clock, and a memory of nonces.

Hides how a signature is checked. Stricter than the real service may be: a body must be sent in the
very bytes that are hashed, so that a client which hashes one form and sends another is noticed. In
the query a blank may be signed as `+` or as `%20`, since clients that work do either.

Source: `docs/reference/render.md`, signing; checked 2026-11.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from urllib.parse import quote, unquote_plus

from starlette.requests import Request

from gp4u.sim.render.gate import RenderSettings, refusal
from gp4u.sim.world import World

CLOCK_WINDOW_S = 300
_NONCE = re.compile(r"[0-9a-f]{32}")


class Doorkeeper:
    """Checks signatures; remembers every nonce that it let in."""

    def __init__(self, world: World, settings: RenderSettings) -> None:
        self._world, self._settings = world, settings
        self._nonces: set[str] = set()

    def __call__(self, request: Request, raw: bytes) -> None:
        """Let a call in.

        Raises:
            CallRefusedError: 401, with the reason.
        """
        key, stamp, nonce, signed = (
            request.headers.get(name, "")
            for name in ("x-api-key", "x-time", "x-nonce", "x-signature")
        )
        if not hmac.compare_digest(key.encode(), self._settings.api_key.encode()):
            raise refusal(401, "invalid_api_key", "unknown or expired API key")
        if not (stamp.isascii() and stamp.isdigit() and len(stamp) == 13):
            raise refusal(401, "invalid_time", "X-Time must be Unix time in milliseconds")
        now_s = self._world.epoch(self._world.now_s) + self._settings.clock_skew_s
        if abs(int(stamp) / 1000 - now_s) > CLOCK_WINDOW_S:
            raise refusal(401, "invalid_time", "X-Time is not within 5 minutes of server time")
        if not _NONCE.fullmatch(nonce):
            raise refusal(401, "invalid_nonce", "X-Nonce must be 32 hex characters")
        if not any(
            hmac.compare_digest(signed.encode(), expected.encode())
            for expected in self._signatures(request, raw, stamp, nonce)
        ):
            raise refusal(401, "invalid_signature", "signature does not match")
        if nonce in self._nonces:
            raise refusal(401, "nonce_reused", "X-Nonce was used before")
        self._nonces.add(nonce)

    def _signatures(self, request: Request, raw: bytes, stamp: str, nonce: str) -> set[str]:
        settings = self._settings
        body = _hashed_form(raw)
        if body != raw:
            raise refusal(401, "invalid_signature", "the body is not in its canonical form")
        digest = hashlib.sha256(body).hexdigest()
        pairs = [part.partition("=") for part in request.url.query.split("&") if part]
        plain = sorted((unquote_plus(name), unquote_plus(value)) for name, _, value in pairs)
        found = set()
        for blank in ("+", "%20"):
            query = "&".join(f"{_encoded(n, blank)}={_encoded(v, blank)}" for n, v in plain)
            parts = (settings.api_key, stamp, nonce, request.method, request.url.path, query)
            text = "|".join((*parts, digest))
            mac = hmac.new(settings.api_secret.encode(), text.encode(), hashlib.sha256)
            found.add(mac.hexdigest())
        return found


def _encoded(text: str, blank: str) -> str:
    return quote(text, safe="").replace("%20", blank)


def _hashed_form(raw: bytes) -> bytes:
    if not raw:
        return b""
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        return raw  # no JSON: the handler's matter
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
