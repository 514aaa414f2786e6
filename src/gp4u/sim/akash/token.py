"""The token that opens a provider's gateway, and what it opens.

Hides signing. The real ones are signed by the account's key on the chain (ES256K); these are signed
with a secret of the simulator, which its gateways know, so a made-up or altered token fails as it
would there.

Source: chain-sdk:specs/jwt-schema.json as restated in docs/reference/akash.md 6; checked 2026-11.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Mapping
from typing import Any

import msgspec

SCOPES = frozenset(
    (
        "send-manifest",
        "get-manifest",
        "logs",
        "shell",
        "events",
        "status",
        "restart",
        "hostname-migrate",
        "ip-migrate",
        "attestation",
    )
)
DEFAULT_TTL_S = 30


class TokenError(Exception):
    """The wish for a token, or a token, is not valid."""


def check_leases(leases: object) -> Mapping[str, Any]:
    """Return what a token shall open.

    Raises:
        TokenError: it breaks the schema.
    """
    if not isinstance(leases, dict):
        raise TokenError("leases is required")
    access = leases.get("access")
    match access:
        case "full":
            if "scope" in leases:
                raise TokenError("full access takes no scope")
        case "scoped":
            _check_scope(leases.get("scope"))
        case "granular":
            permissions = leases.get("permissions")
            if not isinstance(permissions, list) or not permissions:
                raise TokenError("permissions is required")
            for each in permissions:
                if not isinstance(each, dict) or not isinstance(each.get("provider"), str):
                    raise TokenError("a permission names its provider")
                if each.get("access") == "scoped":
                    _check_scope(each.get("scope"))
                elif each.get("access") != "full":
                    raise TokenError("access must be full or scoped")
        case _:
            raise TokenError("access must be full, scoped or granular")
    return leases


def _check_scope(scope: object) -> None:
    if not isinstance(scope, list) or not scope or not set(scope) <= SCOPES:
        raise TokenError("scope must list known scopes")


def sign(secret: bytes, issuer: str, leases: Mapping[str, Any], *, at: float, ttl_s: float) -> str:
    """Return a token."""
    claims = {
        "iss": issuer,
        "iat": int(at),
        "nbf": int(at),
        "exp": int(at + ttl_s),
        "version": "v1",
        "leases": leases,
    }
    head = _packed(msgspec.json.encode({"alg": "ES256K", "typ": "JWT"}))
    body = f"{head}.{_packed(msgspec.json.encode(claims))}"
    return f"{body}.{_packed(_mac(secret, body))}"


def opened(secret: bytes, token: str, *, at: float, provider: str, scope: str) -> str:
    """Return whose token it is, if it opens this at this provider.

    Raises:
        TokenError: it is not ours, not valid at this time, or does not reach that far.
    """
    body, _, signature = token.rpartition(".")
    if not body or not hmac.compare_digest(
        signature.encode(), _packed(_mac(secret, body)).encode()
    ):
        raise TokenError("token signature is invalid")
    payload = body.partition(".")[2]
    claims = msgspec.json.decode(
        base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)), type=dict[str, Any]
    )
    if not claims["nbf"] <= at < claims["exp"]:
        raise TokenError("token is expired")
    leases = claims["leases"]
    grants = leases["permissions"] if leases["access"] == "granular" else [leases]
    for grant in grants:
        if grant.get("provider", provider) != provider:
            continue
        if grant["access"] == "full" or scope in grant.get("scope", ()):
            return str(claims["iss"])
    raise PermissionError(scope)


def _mac(secret: bytes, body: str) -> bytes:
    return hmac.new(secret, body.encode(), hashlib.sha256).digest()


def _packed(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
