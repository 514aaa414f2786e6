"""The API put together: every router, what each request passes, and the document about it.

What is served under which path is in the routes' own files; who may come in is in `door.py`, how
failures are told in `problems.py`, how bytes arrive in `wire.py`. Here is only the order of things,
and what OpenAPI says of all paths alike.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import uvicorn
from fastapi import APIRouter, FastAPI, Request
from fastapi.middleware.asyncexitstack import AsyncExitStackMiddleware
from fastapi.openapi.utils import get_openapi
from fastapi.telemetry import TelemetryConfig
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp

from gp4u import __version__
from gp4u.api import failing
from gp4u.api.docs import OPENAPI_PATH, docs_routes
from gp4u.api.replies import JSON, ROLE_KEY, hoisted, json_reply, problem_docs, role
from gp4u.errors import BadInput

_ANY_PATH: Final = (400, 401, 403, 404, 405, 408, 414, 421, 422, 429, 431, 500, 503)
"""What the door, or a bug, may make of any request."""
_WITH_BODY: Final = (411, 413, 415)
_ABOUT: Final = """\
Offers, explained decisions, and rentals that are never forgotten.

Money is a decimal string in US dollars, stamps are RFC 3339 in UTC, ratios are 0..1, durations
carry their unit in the name, unknown is null. Failures are problems (RFC 9457) with a stable
`code`. Every answer has an `X-Request-Id`, which finds the request in the log.
"""
_TAGS: Final = (
    ("provider health", "How each market does: the provider layer from outside"),
    ("market", "What can be rented, and for how much"),
    ("decisions", "What would be rented, and why"),
    ("rentals", "What is held, from the intent to the proven end"),
    ("events", "What happens, as it happens"),
    ("operations", "For those who run this server"),
)


_TRACED_ELSEWHERE: Final[TelemetryConfig] = {
    "tracing": False,
    "metrics": False,
    "logs": False,
    "operation_spans": False,
    "auto_configure": False,
}
"""The framework's own spans hold paths, queries and texts of exceptions; ours are in `traces.py`.

Source: FastAPI 0.165, `fastapi/telemetry/_api.py`: on by default, and exported wherever
FASTAPI_OTEL_AUTO_CONFIGURE says so; checked in November 2026.
"""


class _Api(FastAPI):
    """Without the layers that do what the door does: bodies have their bound there, and bugs their
    end, and each layer takes its time at each message.
    """

    def build_middleware_stack(self) -> ASGIApp:
        """Return the routes behind what turns exceptions into problems."""
        known = {
            kind: told for kind, told in self.exception_handlers.items() if kind is not Exception
        }
        return ExceptionMiddleware(AsyncExitStackMiddleware(self.router), handlers=known)


def build_api(routers: Sequence[APIRouter]) -> FastAPI:
    """Return the app with all of these routes and their documentation, behind no door yet."""
    app = _Api(
        title="GP4U",
        version=__version__,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        telemetry=_TRACED_ELSEWHERE,
    )
    failing.install(app)
    for router in (*routers, docs_routes()):
        # As they are: one that is included is matched three times over, at each request.
        app.router.routes.extend(router.routes)
    page: list[Response] = []

    @app.get(OPENAPI_PATH, include_in_schema=False, openapi_extra=role("open"))
    async def openapi(request: Request) -> Response:
        if not page:  # made when it is first asked for, which takes a third of a second
            page.append(json_reply(request, await asyncio.to_thread(document, app)))
        return Response(page[0].body, media_type=JSON, headers={"Cache-Control": "no-cache"})

    return app


def document(app: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI 3.1 document of an app: paths, shapes, who may call, what may go wrong."""
    made = get_openapi(
        title=app.title,
        version=app.version,
        openapi_version="3.1.0",
        summary="Every GPU marketplace as one pool",
        description=_ABOUT,
        routes=app.routes,
        tags=[{"name": name, "description": text} for name, text in _TAGS],
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
    )
    for operations in made["paths"].values():
        for method, operation in operations.items():
            _complete(method, operation)
    schemes = {"token": {"type": "http", "scheme": "bearer", "description": _SCHEME}}
    made.setdefault("components", {})["securitySchemes"] = schemes
    return hoisted(made)


_SCHEME: Final = "One of GP4U_API_TOKENS; none is needed while the server has none"


def _complete(method: str, operation: dict[str, Any]) -> None:
    """Add to one operation what the door answers, and which role it asks for."""
    needed = operation.get(ROLE_KEY, "admin")
    operation[ROLE_KEY] = needed
    if JSON in operation["responses"].get("422", {}).get("content", {}):
        del operation["responses"]["422"]  # the framework's, whose shape is not ours
    more = (*_ANY_PATH, *(_WITH_BODY if method in ("post", "put", "patch", "delete") else ()))
    for status, text in problem_docs(more).items():
        operation["responses"].setdefault(str(status), text)
    operation["responses"] = dict(sorted(operation["responses"].items()))
    if needed != "open":
        # The empty one: without tokens in the settings, callers on loopback need none.
        operation["security"] = [{"token": []}, {}]


async def serve_api(
    config: uvicorn.Config, *, host: str, port: int, started: Callable[[str], None]
) -> None:
    """Serve until cancelled; `started` gets the URL once the socket listens.

    After that it takes at most `WireLimits.stop_s` to end.

    Raises:
        BadInput: the address cannot be listened on.
    """

    class Server(uvicorn.Server):
        """Leaves signals to the command line, which ends the whole task group at once."""

        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # By its protocol asyncio knows that small writes must not wait for each other's receipt: 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(config.backlog)  # before it is said: whoever reads that may call at once
    except OSError as error:
        listener.close()
        raise BadInput("--port", port, f"cannot listen on {host}: {error.strerror}") from error
    server = Server(config)
    shown = f"[{host}]" if ":" in host else host
    started(f"http://{shown}:{listener.getsockname()[1]}")
    try:
        await server.serve(sockets=[listener])
    except asyncio.CancelledError:
        await _stop(server, listener)
        raise
    finally:
        listener.close()


async def _stop(server: uvicorn.Server, listener: socket.socket) -> None:
    """Let replies under way come to their end, for as long as the wire allows, and cut the rest."""
    if not server.started:
        return
    await server.shutdown(sockets=[listener])
    for connection in list(server.server_state.connections):
        connection.transport.abort()
    await asyncio.sleep(0)  # which closes them
