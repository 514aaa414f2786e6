"""Who is let in to the Render dialects, how often, and how they say no.

Hides the throttle and the pages of lists. Who is calling is told by the function that a dialect
hands in: a signature for Dispersed, a Bearer key for the proposed node API. How a fault becomes a
dead connection is the same for every market and comes from the gate it extends.

Source: `docs/reference/render.md`, errors and limits; no catalogue of codes is published, so the
words of `error.code` are ours. Checked 2026-11.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from gp4u.sim.faults import Faults, Kind, Strike
from gp4u.sim.gate import CallRefusedError, Gate, struck_status
from gp4u.sim.world import World

T = TypeVar("T")

CALLS_PER_MIN = 100
"""Of one account, as a purse that refills; the market publishes no limit."""


class RenderSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Which dialect, whose account, and what is not known of the real service."""

    flavor: str = "dispersed"
    """`dispersed`, or `legacy` for the proposed node API."""
    api_key: str = "pk_sim"
    """Dispersed's public key; the Bearer key of `legacy`."""
    api_secret: str = "sk_sim"  # noqa: S105 -- of a simulated account
    throttle: float = 1.0
    """Factor on the time in which the purse of calls refills; 0 turns the throttle off."""
    list_lag_s: tuple[float, float] = (0.0, 1.0)
    """How long lists are blind to a new job, drawn per job."""
    address_lag_s: tuple[float, float] = (0.0, 2.0)
    """How long after RUNNING a run gets its `node_urls`, drawn per job."""
    cancel_s: float = 2.0
    """How long a job is CANCELLING."""
    clock_skew_s: float = 0.0
    """How far the service's clock is ahead."""
    bare_lists: bool = False
    """Whether lists come without their envelope, as one client saw."""
    wrapped_job: bool = False
    """Whether a single object comes within `data`, as another tolerates."""
    runs_name_job: bool = True
    """Whether a run in a list carries `job_uuid`; the documents' example does not."""
    runs_need_job: bool = False
    """Whether runs are listed for one job only, as every example does it."""
    rate_on_run: bool = True
    """Whether a run tells what its node costs; nothing documents that."""
    whole_hours: bool = False
    """Whether a part of an hour is charged as a whole one; nothing documents either way."""
    vanish_s: float = 120.0
    """How long a job whose node is lost still says RUNNING."""
    obh_per_frame: float = 0.5
    """`legacy`: OctaneBench-hours that a frame takes."""


def refusal(
    status: int,
    code: str,
    message: str,
    *,
    made: Mapping[str, object] | None = None,
    **headers: str,
) -> CallRefusedError:
    """Return an error in the usual shape, to be raised; `made` stands beside it."""
    body = {"error": {"code": code, "message": message}, **(made or {})}
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return CallRefusedError(JSONResponse(body, status, headers=named))


Identify = Callable[[Request, bytes], None]
"""Lets a call in by its headers and raw body, or raises `CallRefusedError`."""
Prepare = Callable[[], Awaitable[None]]
"""Brings the dialect's own state up to the world's now."""


class RenderGate(Gate):
    """Holds the purse of calls."""

    def __init__(
        self,
        world: World,
        faults: Faults,
        settings: RenderSettings,
        *,
        identify: Identify,
        prepare: Prepare,
    ) -> None:
        super().__init__(world, faults)
        self._settings, self._identify, self._look = settings, identify, prepare
        self._calls_left, self._counted_at = float(CALLS_PER_MIN), world.now_s

    async def _prepare(self) -> None:
        await self._look()

    def _unreadable(self, status: int) -> CallRefusedError:
        return refusal(status, "validation_error", "the body must be a JSON object")

    def _admit(
        self, request: Request, raw: bytes, endpoint: str, strike: Strike, *, public: bool
    ) -> None:
        del endpoint, public
        if strike.get(Kind.BAD_KEY) is not None:
            raise refusal(401, "unauthorized", "unknown or expired API key")
        self._identify(request, raw)
        if (rule := strike.get(Kind.THROTTLE)) is not None:
            wait_s = "7" if rule.retry_after is None else rule.retry_after
            raise refusal(429, "rate_limited", "too many requests", Retry_After=wait_s)
        self._throttle()
        struck_status(strike)

    def _throttle(self) -> None:
        if self._settings.throttle <= 0:
            return
        per_s = CALLS_PER_MIN / (60 * self._settings.throttle)
        now = self._world.now_s
        refilled = self._calls_left + (now - self._counted_at) * per_s
        self._calls_left, self._counted_at = min(float(CALLS_PER_MIN), refilled), now
        if self._calls_left < 1:
            wait_s = f"{(1 - self._calls_left) / per_s:.1f}"
            raise refusal(429, "rate_limited", "too many requests", Retry_After=wait_s)
        self._calls_left -= 1


def listed(
    request: Request,
    things: Sequence[T],
    row: Callable[[T], object],
    strike: Strike,
    *,
    under: str = "data",
    most: int,
    bare: bool = False,
) -> Response:
    """Return the page of `things` that a call asks for, a `row` each, spoilt by what struck it.

    Raises:
        CallRefusedError: `page` or `limit` is out of range.
    """
    page, limit = _number(request, "page", 1, 10**6), _number(request, "limit", 20, most)
    if strike.get(Kind.LIST_LOST_PAGE) is not None:
        page += 1
    if strike.get(Kind.LIST_LOOP) is not None:
        page = 1
    total = len(things) + (1 if strike.get(Kind.LIST_WRONG_TOTAL) is not None else 0)
    shown = [row(thing) for thing in things[(page - 1) * limit : page * limit]]
    if bare:
        return JSONResponse(shown)
    return JSONResponse({under: shown, "page": page, "limit": limit, "total": total})


def _number(request: Request, name: str, default: int, most: int) -> int:
    text = request.query_params.get(name, str(default))
    if not (text.isascii() and text.isdigit() and len(text) < 8 and 1 <= int(text) <= most):
        raise refusal(400, "validation_error", f"{name} must be a number from 1 to {most}")
    return int(text)
