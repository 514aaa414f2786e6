"""What a route says of itself and how it answers: bytes from a shape, and their documentation.

Hides that the framework documents pydantic models and we answer with msgspec structs, because
those are written out many times faster: `documented` puts a shape's JSON schema where the framework
would have put a model's, and `hoisted` moves the definitions to where a reader of OpenAPI looks for
them. `StrictRoute` refuses query parameters that a route does not know; a typing error in a filter
must not look like "no filter".
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from difflib import get_close_matches
from inspect import iscoroutinefunction
from typing import Any, Final, Literal

import msgspec
from fastapi import Request
from fastapi.routing import APIRoute
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gp4u.errors import BadInput
from gp4u.telemetry import clean

JSON: Final = "application/json"
NDJSON: Final = "application/x-ndjson"
PROBLEM: Final = "application/problem+json"
ROLE_KEY: Final = "x-gp4u-role"
Role = Literal["open", "read", "rent", "admin"]
_COMPONENTS: Final = "#/components/schemas/{name}"
_encoder = msgspec.json.Encoder()


class Problem(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What went wrong (RFC 9457). More members say what it is about: field, provider, key, ..."""

    type: str
    """Where the code is explained."""
    title: str
    status: int
    code: str
    """Stable, for programs."""
    detail: str = ""
    instance: str = ""
    """The request's id."""
    field: str | None = None
    """Of a bad value: which parameter or part of the body."""
    value: str | None = None
    bound: str | None = None
    """What it may be."""
    known: Sequence[str] | None = None
    """Names that there are."""
    provider: str | None = None
    key: str | None = None
    """Of a rental."""
    retry_in_s: float | None = None


def role(needed: Role) -> dict[str, Any]:
    """Return the part of a route's OpenAPI that says who may call it; `open` needs no token."""
    return {ROLE_KEY: needed}


def json_reply(
    request: Request, value: object, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Return a shape, or anything that msgspec encodes, as a reply."""
    del request  # a place for content coding; small bodies go as they are
    return Response(_encoder.encode(value), status, dict(headers or {}), media_type=JSON)


def documented(
    shape: object,
    *,
    status: int = 200,
    what: str = "As asked for",
    example: object = None,
    media: Sequence[str] = (JSON,),
    errors: Sequence[int] = (),
    also: Mapping[int, str] | None = None,
) -> dict[int | str, dict[str, Any]]:
    """Return what a route may answer, for its `responses`.

    `shape` is a msgspec struct, another type, or None where the body is plain text; `errors` are
    the statuses of problems, to which those that every route has are added by the server. `also`
    holds further statuses with the same shape, and what they mean.
    """
    schema: dict[str, Any] = {"type": "string"} if shape is None else _schema(shape)
    content: dict[str, Any] = {"schema": schema}
    if example is not None:
        content["example"] = msgspec.to_builtins(example)
    good = dict.fromkeys(media, content)
    found: dict[int | str, dict[str, Any]] = {status: {"description": what, "content": good}}
    for other, meaning in (also or {}).items():
        found[other] = {"description": meaning, "content": good}
    return found | problem_docs(errors)


def problem_docs(statuses: Sequence[int]) -> dict[int | str, dict[str, Any]]:
    """Return the documentation of problems with these statuses."""
    about = {"content": {PROBLEM: {"schema": _schema(Problem)}}}
    return {status: {"description": _MEANINGS[status], **about} for status in statuses}


_MEANINGS: Final[Mapping[int, str]] = {
    400: "Not a request that can be read",
    401: "A token is needed, or this one will not do",
    402: "A budget or the account's credit does not allow it",
    403: "Not allowed: role, policy, or a market that is closed",
    404: "Nothing has this name; `known` may say what has",
    405: "Not with this method",
    406: "Not in this form",
    408: "The request did not arrive in time",
    409: "Something else is in the way: see the code",
    411: "The length of the body is missing",
    413: "The body is too large",
    414: "The URL is too long",
    415: "The body must be JSON",
    421: "This server is not known under that host name",
    422: "A value is out of bounds: `field`, `value` and `bound` say which",
    429: "Asked too often; Retry-After says when to come again",
    431: "The head is too large",
    500: "A bug; the request's id finds it in the log",
    502: "A market answered something that cannot be used",
    503: "Not now; Retry-After says when to come again",
    504: "Nobody knows yet whether it happened; listings will tell",
}


def hoisted(document: dict[str, Any]) -> dict[str, Any]:
    """Return an OpenAPI document whose shapes stand under `components`, each once."""
    found: dict[str, Any] = document.setdefault("components", {}).setdefault("schemas", {})

    def walk(node: Any) -> None:
        if isinstance(node, dict):
            for name, definition in node.pop("$defs", {}).items():
                if name not in found:
                    found[name] = definition
                    walk(definition)
            for inner in node.values():
                walk(inner)
        elif isinstance(node, list):
            for inner in node:
                walk(inner)

    walk(document["paths"])
    document["components"]["schemas"] = dict(sorted(found.items()))
    return document


def _schema(shape: object) -> dict[str, Any]:
    (schema,), definitions = msgspec.json.schema_components([shape], ref_template=_COMPONENTS)
    return {**schema, "$defs": definitions} if definitions else schema


class StrictRoute(APIRoute):
    """A route that refuses query parameters it does not know.

    One that takes nothing at all is called at once: to find out what it takes costs the framework
    as much as most of our answers.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._takes_nothing = _takes_nothing(self.dependant)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the handler, with the check before it."""
        handle = super().get_route_handler()
        known = sorted(_parameters(self.dependant))

        async def checked(request: Request) -> Response:
            if request.scope["query_string"]:
                for name in request.query_params:
                    if name not in known:
                        raise unknown_parameter(name, known)
            return await handle(request)

        return checked

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer; see the class's docstring."""
        plain = self._takes_nothing and not scope["query_string"]
        if not plain or scope["method"] not in (self.methods or ()):
            await super().handle(scope, receive, send)
            return
        asked = self.dependant.request_param_name
        given = {asked: Request(scope, receive, send)} if asked else {}
        response: Response = await self.endpoint(**given)
        await response(scope, receive, send)


def unknown_parameter(name: str, known: Sequence[str]) -> BadInput:
    """Return the refusal of a query parameter, with the nearest one that there is."""
    near = get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    there = f"known are {', '.join(known)}" if known else "this path takes none"
    return BadInput(clean(name, 60), "a query parameter", f"no such parameter; {hint}{there}")


def _parameters(dependant: Any) -> set[str]:
    own = {field.alias for field in dependant.query_params}
    return own.union(*(_parameters(inner) for inner in dependant.dependencies))


def _takes_nothing(dependant: Any) -> bool:
    """Whether a handler needs at most the request itself, and returns a reply of ours."""
    parts = ("path_params", "query_params", "header_params", "cookie_params", "body_params")
    others = ("dependencies", "websocket_param_name", "http_connection_param_name")
    more = ("response_param_name", "background_tasks_param_name", "security_scopes_param_name")
    wanted = [getattr(dependant, name, None) for name in (*parts, *others, *more)]
    return not any(wanted) and iscoroutinefunction(dependant.call)
