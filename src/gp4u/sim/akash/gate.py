"""What every call to the Akash dialects passes, and the shapes of their errors.

Hides the key, the two error envelopes (the Console's and the chain's gateway's) and the step that
brings the market to the present before a handler looks at it. How a fault becomes a dead connection
is the same everywhere and comes from the gate it extends.

Source: console:apps/api error handling, grpc-gateway; docs/reference/akash.md; checked 2026-11.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Mapping

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from gp4u.sim.akash.market import AkashMarket, TenantError
from gp4u.sim.faults import Faults, Kind, Strike
from gp4u.sim.gate import Call, CallRefusedError, Gate, Handler, struck_status

_NAMES = {
    400: ("BadRequestError", "bad_request"),
    401: ("UnauthorizedError", "unauthorized"),
    402: ("PaymentRequiredError", "payment_required"),
    403: ("ForbiddenError", "forbidden"),
    404: ("NotFoundError", "not_found"),
    409: ("ConflictError", "conflict"),
    422: ("UnprocessableEntityError", "validation_error"),
    429: ("TooManyRequestsError", "rate_limited"),
    500: ("InternalServerError", "internal_server_error"),
    502: ("BadGatewayError", "service_unavailable"),
    503: ("ServiceUnavailableError", "service_unavailable"),
}
_GRPC = {400: 3, 404: 5, 500: 2, 501: 12, 503: 14}
_SLACK_S = 0.05


def refused(
    status: int,
    message: str,
    code: str = "",
    *,
    data: Mapping[str, object] | None = None,
    retry_after: str | None = None,
) -> CallRefusedError:
    """Return the Console's error, to be raised; without `code` the generic one of its status."""
    name, generic = _NAMES[status]
    word = code or generic
    body: dict[str, object] = {"error": name, "message": message, "code": word, "type": word}
    if data is not None:
        body["data"] = data
    headers = {} if retry_after is None else {"Retry-After": retry_after}
    return CallRefusedError(JSONResponse(body, status, headers))


def tenant_refused(error: TenantError) -> CallRefusedError:
    """Return what the market refused in the Console's words."""
    match error.kind:
        case "insufficient_balance":
            return refused(402, str(error), error.kind, data=error.more)
        case "provider_unreachable":
            return refused(502, str(error), error.kind)
        case _:
            return refused(400, str(error), error.kind)


def chain_refused(status: int, message: str) -> CallRefusedError:
    """Return the error of the chain's gateway, to be raised."""
    return CallRefusedError(
        JSONResponse({"code": _GRPC[status], "message": message, "details": []}, status)
    )


class AkashGate(Gate):
    """The gate of these dialects."""

    def __init__(self, market: AkashMarket, faults: Faults) -> None:
        super().__init__(market.world, faults)
        self._market = market
        self._recent: deque[float] = deque()

    def wrap(
        self, endpoint: str, handler: Handler, *, public: bool = False, bad_json: int = 400
    ) -> Callable[[Request], Awaitable[Response]]:
        """Return the ASGI endpoint of a handler; see the gate it extends."""

        async def translated(call: Call) -> Response:
            try:
                return await handler(call)
            except TenantError as error:
                raise tenant_refused(error) from error

        return super().wrap(endpoint, translated, public=public, bad_json=bad_json)

    async def _prepare(self) -> None:
        await self._market.step()

    def _unreadable(self, status: int) -> CallRefusedError:
        return refused(status, "Malformed JSON", "validation_error")

    def _admit(
        self, request: Request, raw: bytes, endpoint: str, strike: Strike, *, public: bool
    ) -> None:
        del raw, endpoint  # no limit of an endpoint is published
        key = request.headers.get("x-api-key", "")
        if key and request.headers.get("authorization"):
            raise refused(400, "Send an API key or a token, not both.")
        wrong = key != self._market.settings.api_key
        if strike.get(Kind.BAD_KEY) is not None or (wrong and (key or not public)):
            raise refused(401, "Invalid API key")
        if (rule := strike.get(Kind.THROTTLE)) is not None:
            raise refused(429, "Too many requests", retry_after=rule.retry_after)
        self._pace()
        struck_status(strike)

    def _pace(self) -> None:
        most, now = self._market.settings.throttle, self._world.now_s
        if most <= 0:
            return
        while self._recent and now - self._recent[0] >= 60 - _SLACK_S:
            self._recent.popleft()
        if len(self._recent) >= most:
            wait_s = 60 - (now - self._recent[0])
            raise refused(429, "Too many requests", retry_after=f"{wait_s:.0f}")
        self._recent.append(now)
