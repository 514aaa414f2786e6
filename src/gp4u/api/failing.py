"""Problems as replies: what the framework does when a route, or what it was asked, fails.

Which exception is which problem is `problems.py`'s; here they get a status line, `Retry-After`, and
the request's id, and what the framework found wrong with a parameter gets field, value and bound.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from math import ceil
from typing import Any, Final

import msgspec
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from gp4u.api.problems import OF_STATUS, problem_body, problem_of, retry_in_s
from gp4u.api.replies import PROBLEM
from gp4u.errors import Gp4uError, ProviderError
from gp4u.telemetry import clean

_SOON_S: Final = 10.0
"""What a caller is told to wait where nobody knows better."""
_encoder = msgspec.json.Encoder()


def install(app: FastAPI) -> None:
    """Make an app answer with problems, whatever goes wrong in its routes."""
    app.add_exception_handler(Gp4uError, _on_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_status)
    app.add_exception_handler(Exception, _on_bug)


def problem_reply(
    status: int,
    code: str,
    title: str,
    detail: str = "",
    *,
    headers: Mapping[str, str] | None = None,
    **members: object,
) -> Response:
    """Return a problem as a reply; a member that is None is left out."""
    return Response(
        _encoder.encode(problem_body(status, code, title, detail, **members)),
        status,
        dict(headers or {}),
        media_type=PROBLEM,
    )


async def _on_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, Gp4uError)  # noqa: S101 - the framework hands over what was registered
    body = problem_of(error, request.scope.get("request_id"))
    status = int(str(body["status"]))
    if status == HTTPStatus.INTERNAL_SERVER_ERROR:
        raise error  # a bug: told by `_on_bug`, and logged with its traceback at the door
    headers = {}
    if status in (HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.TOO_MANY_REQUESTS):
        wait_s = retry_in_s(error) if isinstance(error, ProviderError) else None
        headers["Retry-After"] = str(max(1, ceil(_SOON_S if wait_s is None else wait_s)))
    return Response(_encoder.encode(body), status, headers, media_type=PROBLEM)


async def _on_invalid(request: Request, error: Exception) -> Response:
    """Tell what the framework found wrong with a parameter or a body; every fault is listed."""
    assert isinstance(error, RequestValidationError)  # noqa: S101 - as above
    faults = [_fault(each) for each in error.errors()]
    members: dict[str, Any] = {**faults[0], "errors": faults if len(faults) > 1 else None}
    return problem_reply(
        422,
        "bad_input",
        "A value is out of bounds",
        "; ".join(f"{each['field']}: {each['value']!r}: {each['bound']}" for each in faults[:10]),
        instance=request.scope.get("request_id"),
        **members,
    )


def _fault(error: Mapping[str, Any]) -> dict[str, str]:
    """Return field, value and bound of one fault; what may be secret is not quoted."""
    if error["type"] == "json_invalid":
        at = error["loc"][-1]
        return {"field": "body", "value": "***", "bound": f"must be JSON; character {at} is not"}
    steps = [str(step) for step in error["loc"]]
    if steps[:1] in (["query"], ["path"], ["header"], ["body"]) and len(steps) > 1:
        steps = steps[1:]
    value = error.get("input")
    plain = isinstance(value, (str, int, float, bool)) and "env" not in steps
    missing = error["type"] == "missing"
    shown = "nothing" if missing else clean(str(value), 200) if plain else "***"
    return {"field": clean(".".join(steps), 200), "value": shown, "bound": clean(error["msg"], 400)}


async def _on_status(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - as above
    code, title = OF_STATUS.get(error.status_code, ("http_error", "The request failed"))
    return problem_reply(
        error.status_code,
        code,
        title,
        "" if error.detail == HTTPStatus(error.status_code).phrase else str(error.detail),
        headers=error.headers,
        instance=request.scope.get("request_id"),
    )


async def _on_bug(request: Request, _error: Exception) -> Response:
    """Tell a bug and nothing about it; the door logs it under the request's id."""
    return problem_reply(
        500,
        "internal",
        "A bug",
        "the log says more, under this request's id",
        instance=request.scope.get("request_id"),
    )
