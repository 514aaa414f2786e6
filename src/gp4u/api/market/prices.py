"""`GET /api/v1/prices`: what one GPU model cost, market by market, as far back as is asked for.

Hides how the words of a query become a model and a stretch of time. What is known of the past is
the desk's; who writes it down is `rentals/recorder.py`.
"""

from __future__ import annotations

from typing import Annotated, Final

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from gp4u import gpus
from gp4u.api.replies import StrictRoute, documented, json_reply, role
from gp4u.desk.desk import Desk
from gp4u.desk.shapes import PricesShape
from gp4u.desk.spans import span

_EXAMPLE: Final = {
    "gpu_model": "RTX 4090",
    "since": "2026-11-13T12:00:00Z",
    "until": "2026-11-20T12:00:00Z",
    "series": [
        {
            "provider": "vastai",
            "points": [
                {
                    "at": "2026-11-20T11:55:00Z",
                    "count": 214,
                    "min": "0.281000",
                    "median": "0.362000",
                    "p90": "0.528000",
                }
            ],
        }
    ],
}

Gpu = Annotated[
    str,
    Query(
        max_length=100,
        description="One model, in any spelling: `RTX4090`, `A100 SXM4 80GB`.",
        examples=["RTX4090"],
    ),
]
Range = Annotated[
    str,
    Query(
        alias="range",
        max_length=40,
        description="How far back: a whole number and s, m, h, d or w; from 1h to 90d.",
        examples=["7d"],
    ),
]
Market = Annotated[
    str | None,
    Query(max_length=100, description="Only this market.", examples=["vastai"]),
]


def price_routes(*, desk: Desk) -> APIRouter:
    """Return the route."""
    router = APIRouter(route_class=StrictRoute, tags=["market"])

    @router.get(
        "/api/v1/prices",
        summary="What a GPU model cost",
        operation_id="prices",
        responses=documented(PricesShape, example=_EXAMPLE, errors=(404, 422, 503)),
        response_model=None,
        openapi_extra=role("read"),
    )
    async def prices(
        request: Request, gpu: Gpu, back: Range = "7d", provider: Market = None
    ) -> Response:
        """Tell minimum, median and 90th percentile in USD per GPU and hour, oldest first.

        Each fetch of a market adds a point of what could be rented on demand then; what is older
        than a week is kept by the hour. A server that was not running wrote nothing, so there may
        be gaps.
        """
        found = await desk.prices(gpus.one(gpu), within=span(back), provider=provider)
        return json_reply(request, found)

    return router
