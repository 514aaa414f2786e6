"""The interactive documentation, served whole from this process: nothing is loaded from elsewhere.

The pages' scripts and styles come out of an installed package, because a page that fetches a script
from a stranger would hand it every token that is typed in.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from importlib.resources import files
from typing import Final

from fastapi import APIRouter
from starlette.responses import Response

from gp4u.api.replies import role

DOCS_PATH: Final = "/docs"
OPENAPI_PATH: Final = "/api/v1/openapi.json"
CSP: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_PAGE: Final = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>GP4U API</title>
<link rel="stylesheet" href="{DOCS_PATH}/swagger-ui.css">
<link rel="icon" href="data:,">
</head>
<body>
<main id="reference"></main>
<script src="{DOCS_PATH}/swagger-ui-bundle.js"></script>
<script src="{DOCS_PATH}/start.js"></script>
</body>
</html>
"""
_START: Final = f"""SwaggerUIBundle({{
  url: "{OPENAPI_PATH}",
  dom_id: "#reference",
  deepLinking: true,
  filter: true,
  displayRequestDuration: true,
  tryItOutEnabled: true,
  validatorUrl: null,
}});
"""
_KINDS: Final[Mapping[str, str]] = {"js": "text/javascript", "css": "text/css"}
_SHIPPED: Final = ("swagger-ui-bundle.js", "swagger-ui.css")


def docs_routes() -> APIRouter:
    """Return the page and what it loads."""
    router = APIRouter(include_in_schema=False)
    anybody = role("open")

    @router.get(DOCS_PATH, openapi_extra=anybody)
    async def page() -> Response:
        headers = {"Content-Security-Policy": CSP}
        return Response(_PAGE, headers=headers, media_type="text/html; charset=utf-8")

    @router.get(f"{DOCS_PATH}/start.js", openapi_extra=anybody)
    async def start() -> Response:
        return Response(_START, media_type=f"{_KINDS['js']}; charset=utf-8")

    for name in _SHIPPED:
        router.add_api_route(
            f"{DOCS_PATH}/{name}", _shipped(name), methods=["GET"], openapi_extra=anybody
        )
    return router


def _shipped(name: str) -> Callable[[], Awaitable[Response]]:
    async def asset() -> Response:
        # Read when it is asked for: two megabytes that a server seldom needs.
        body = files("fastapi_swagger").joinpath("resources", name).read_bytes()
        kind = _KINDS[name.rpartition(".")[2]]
        headers = {"Cache-Control": "public, max-age=86400"}
        return Response(body, headers=headers, media_type=f"{kind}; charset=utf-8")

    return asset
