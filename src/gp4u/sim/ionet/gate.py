"""What every call to the io.net dialect passes, and the shapes of its errors.

Hides identity, the throttle, and the error bodies of a FastAPI service behind a content network.
How a fault becomes a dead connection is the same everywhere and comes from the gate it extends.

Source: io.net's reference pages and the client in QuantumNous/new-api, as restated in
docs/reference/ionet.md; checked 2026-11.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from decimal import Decimal

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from gp4u.sim.faults import Faults, Kind, Strike
from gp4u.sim.gate import CallRefusedError, Gate, Handler, struck_status
from gp4u.sim.world import World

CALLS, WINDOW_S = 150, 10.0
"""The one published limit, per key. Source: io.net/docs/reference/io-explorer."""
_SLACK_S = 0.05
_numbers = msgspec.json.Encoder(decimal_format="number")


class IoNetSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What the documents leave open or disagree on, and what tests want otherwise."""

    api_key: str = "sim-key"
    other_project_key: str = "sim-key-of-another-project"
    """A key that exists, and was not made for this project: it gets the odd 400 that was seen."""
    throttle: float = 1.0
    """Factor on the published window; 0 turns the throttle off."""
    list_lag_s: tuple[float, float] = (0.0, 1.0)
    """How long the list is blind to a new deployment, drawn per deployment."""
    health_s: float = 2.0
    """From running to a passed health check, where nothing really runs."""
    terminate_s: float = 2.0
    """From `termination requested` to `destroyed`."""
    fee_percent: Decimal = Decimal(5)
    """What `/price` adds to the catalogue's price, service and conversion together."""
    refund: str = "none"
    """`none`, or `after_first_hour`: unused time beyond it is given back pro rata."""
    log_open_s: float = 100.0
    """How long a log stream stays open when there is nothing new."""
    bare: bool = False
    """Reads without the `data` envelope."""
    plain_catalogue: bool = False
    """The catalogue as a plain list, as it was seen at times."""
    upper_case_status: bool = False
    """`DEPLOYMENT_REQUESTED` instead of `deployment requested`."""
    naive_stamps: bool = False
    """Timestamps without a zone."""
    total_zero: bool = False
    """`total` is 0 beside rows."""
    vm_reply_empty: bool = True
    """Whether creating a virtual machine answers with nothing, as a third party saw it."""


class IoNetGate(Gate):
    """The gate of this dialect."""

    def __init__(self, world: World, faults: Faults, settings: IoNetSettings) -> None:
        super().__init__(world, faults)
        self._own = settings
        self._recent: deque[float] = deque()

    def wrap(
        self, endpoint: str, handler: Handler, *, public: bool = False, bad_json: int = 422
    ) -> Callable[[Request], Awaitable[Response]]:
        """Return the ASGI endpoint of a handler; see the gate it extends."""
        return super().wrap(endpoint, handler, public=public, bad_json=bad_json)

    def _unreadable(self, status: int) -> CallRefusedError:
        del status
        return CallRefusedError(_invalid([_item((), "JSON decode error", "json_invalid")]))

    def _admit(
        self, request: Request, raw: bytes, endpoint: str, strike: Strike, *, public: bool
    ) -> None:
        del raw
        key = _key(request, legacy=endpoint == "devices")
        if key and key == self._own.other_project_key:
            raise CallRefusedError(JSONResponse({"key_set": True}, 400))
        if strike.get(Kind.BAD_KEY) is not None or (key and key != self._own.api_key):
            raise refused(401, "Invalid API key")
        if not key and not public:
            raise refused(401, "Not authenticated")
        if (rule := strike.get(Kind.THROTTLE)) is not None:
            raise CallRefusedError(_too_fast(rule.retry_after))
        self._pace()
        struck_status(strike)

    def _pace(self) -> None:
        window_s, now = WINDOW_S * self._own.throttle, self._world.now_s
        if window_s <= 0:
            return
        while self._recent and now - self._recent[0] >= window_s - _SLACK_S:
            self._recent.popleft()
        if len(self._recent) >= CALLS:
            wait_s = window_s - (now - self._recent[0])
            raise CallRefusedError(_too_fast(f"{wait_s:.0f}"))
        self._recent.append(now)


def reply(value: object, status: int = 200) -> Response:
    """Return JSON in which amounts of money are exact numbers."""
    return Response(_numbers.encode(value), status, media_type="application/json")


def answer(settings: IoNetSettings, value: object) -> Response:
    """Return the answer to a read, in the envelope that the settings ask for."""
    return reply(value if settings.bare else {"data": value})


def refused(status: int, detail: str, **more: object) -> CallRefusedError:
    """Return an error in the usual shape, to be raised."""
    return CallRefusedError(JSONResponse({"detail": detail, **more}, status))


def invalid(*problems: tuple[tuple[str, ...], str, str], where: str = "body") -> CallRefusedError:
    """Return a 422 to be raised, of (place in the body or query, text, type) each."""
    return CallRefusedError(_invalid([_item(*each, where) for each in problems]))


def _item(
    place: tuple[str, ...], text: str, kind: str, where: str = "body"
) -> Mapping[str, object]:
    return {"loc": [where, *place], "msg": text, "type": kind}


def _invalid(items: list[Mapping[str, object]]) -> Response:
    return JSONResponse({"detail": items}, 422)


def _too_fast(retry_after: str | None) -> Response:
    headers = {} if retry_after is None else {"Retry-After": retry_after}
    return JSONResponse({"detail": "Rate limit exceeded"}, 429, headers)


def _key(request: Request, *, legacy: bool) -> str:
    if legacy:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        return token.strip() if scheme.lower() == "bearer" else ""
    return request.headers.get("x-api-key", "")
