"""Who is let in to the Vast.ai dialect, how often, and how it says no.

Hides identity and the throttle. How a fault becomes a dead connection is the same for every market
and comes from the gate it extends.

Source: api-reference/rate-limits-and-errors.mdx, permissions.mdx and the endpoint files of the
vendor's documentation, source of package `vastai` 1.9.1; checked 2026-11.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from gp4u.sim.faults import Faults, Kind, Strike
from gp4u.sim.gate import CallRefusedError, Gate, struck_status
from gp4u.sim.world import World

# Seconds between two calls of one endpoint by one identity. Source: `x-rate-limit` and the 429
# examples of the endpoint files; the vendor does not promise them.
THRESHOLDS_S: Mapping[str, float] = {
    "create": 4.5,
    "launch": 5.0,
    "list": 1.0,
    "show": 2.0,
    "update": 1.0,
    "bulk_update": 2.0,
    "destroy": 3.0,
    "reboot": 1.0,
    "recycle": 1.0,
    "bid": 5.5,
    "command": 1.5,
    "prepay": 2.0,
    "balance": 3.0,
    "charges": 1.0,
    "invoices": 3.0,
    "ssh_write": 1.0,
    "ssh_detach": 2.0,
    "secrets": 5.0,
    "secrets_write": 3.0,
    "templates": 3.0,
    "volumes": 5.5,
}
CREATE_PENALTY_S = 12.0
SEARCHES = 10
SEARCH_WINDOW_S = 60.0
_SLACK_S = 0.05
"""Calls spaced by the documented interval must pass, whatever a clock's rounding does."""


class VastSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What reports about the real service disagree on, and what tests want otherwise."""

    api_key: str = "sim-key"
    account_id: int = 424_242
    rows_cap: int = 64
    strict_fields: bool = True
    """Whether an unknown search field fails the call."""
    throttle: float = 1.0
    """Factor on every documented interval; 0 turns the throttle off."""
    throttle_shape: str = "detail"
    """One of `faults.THROTTLE_SHAPES`."""
    retry_after: bool = False
    gone_status: int = 410
    """How a rent of a taken offer fails: 410, 404, 400 or 409; all were seen."""
    list_lag_s: tuple[float, float] = (0.0, 1.0)
    """How long the list is blind to a new or a destroyed contract, drawn per contract."""
    low_bid_id: bool = True
    """Whether the error about a bid below the floor names the contract that it made."""
    show_gone_404: bool = False
    """Whether one absent instance is 404; else 200 with null."""
    absent_error: str = "no_such_instance"
    """`no_such_instance` as seen live, or `not_found` as documented."""
    log_delay_s: float = 0.3
    charges_lag_s: float = 0.0
    key_delay_s: float = 0.0
    """How long an attached SSH key takes to be known to the machine."""
    logins: Mapping[str, tuple[str, str]] = {}
    """Registry to the user and password without which it gives out no image."""


def refusal(status: int, error: str, msg: str, **more: object) -> CallRefusedError:
    """Return an error in the usual shape, to be raised."""
    body = {"success": False, "error": error, "msg": msg, **more}
    return CallRefusedError(JSONResponse(body, status))


class VastGate(Gate):
    """Holds when each identity last called each endpoint."""

    def __init__(self, world: World, faults: Faults, settings: VastSettings) -> None:
        super().__init__(world, faults)
        self._settings = settings
        self._free_at: dict[tuple[str, str], float] = {}
        self._searches: dict[str, deque[float]] = {}

    def _admit(
        self, request: Request, raw: bytes, endpoint: str, strike: Strike, *, public: bool
    ) -> None:
        del raw
        key = _key(request)
        if strike.get(Kind.BAD_KEY) is not None or (key and key != self._settings.api_key):
            raise refusal(404, "auth_error", "Invalid user key")
        if not key and not public:
            raise refusal(403, "auth_error", "This action requires login.")
        if (rule := strike.get(Kind.THROTTLE)) is not None:
            threshold = rule.seconds or THRESHOLDS_S.get(endpoint, 1.0)
            shape = rule.shape or self._settings.throttle_shape
            raise CallRefusedError(self._too_fast(shape, threshold, rule.retry_after))
        address = request.client.host if request.client else "-"
        self._throttle(endpoint, key or address, address)
        struck_status(strike)

    def _unreadable(self, status: int) -> CallRefusedError:
        if status == 483:
            return refusal(status, "invalid_args", "Invalid json_body")
        return refusal(status, "invalid_request", "Invalid json body")

    def _throttle(self, endpoint: str, identity: str, address: str) -> None:
        scale, now = self._settings.throttle, self._world.now_s
        if scale <= 0:
            return
        if endpoint == "search":
            recent = self._searches.setdefault(address, deque())
            while recent and now - recent[0] >= SEARCH_WINDOW_S * scale - _SLACK_S:
                recent.popleft()
            if len(recent) >= SEARCHES:
                wait = SEARCH_WINDOW_S * scale - (now - recent[0])
                raise CallRefusedError(self._settled_too_fast(SEARCH_WINDOW_S / SEARCHES, wait))
            recent.append(now)
        threshold = THRESHOLDS_S.get(endpoint)
        if threshold is None:
            return
        free_at = self._free_at.get((endpoint, identity), now)
        if now < free_at:
            if endpoint == "create":
                self._free_at[endpoint, identity] = now + CREATE_PENALTY_S * scale - _SLACK_S
            raise CallRefusedError(self._settled_too_fast(threshold, free_at - now))
        self._free_at[endpoint, identity] = now + threshold * scale - _SLACK_S

    def _settled_too_fast(self, threshold: float, wait: float) -> Response:
        header = f"{wait:.3f}" if self._settings.retry_after else None
        return self._too_fast(self._settings.throttle_shape, threshold, header)

    def _too_fast(self, shape: str, threshold: float, retry_after: str | None) -> Response:
        """Return a 429 in one of the shapes that were seen."""
        text = "API requests too frequent"
        headers = {} if retry_after is None else {"Retry-After": retry_after}
        match shape:
            case "text":
                return PlainTextResponse(text, 429, headers)
            case "text_threshold":
                return PlainTextResponse(f"{text}: endpoint threshold={threshold}", 429, headers)
            case "error":
                msg = f"{text} endpoint threshold={threshold}"
                body = {"success": False, "error": "rate_limit_exceeded", "msg": msg}
                return JSONResponse(body, 429, headers)
            case "quota":
                today = self._world.epoch(self._world.now_s) // 86_400
                headers["X-RateLimit-Reset"] = str(int((today + 1) * 86_400))
                msg = "Daily search quota exceeded."
                return JSONResponse({"error": "search_quota_exceeded", "msg": msg}, 429, headers)
            case _:
                return JSONResponse(
                    {"detail": f"{text} endpoint threshold={threshold}"}, 429, headers
                )


def _key(request: Request) -> str:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token.strip():
        return token.strip()
    return request.query_params.get("api_key", "")
