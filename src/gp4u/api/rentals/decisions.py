"""`/api/v1/decisions` and `/api/v1/markets`: who would be rented and why, and who could be asked.

Hides where a decision is kept: one that was only asked for is kept for a day under an id of its
own, the one behind a rental for as long as the rental, under its key.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Final

import msgspec
from fastapi import APIRouter, Path, Request
from msgspec import UnsetType
from msgspec.structs import replace
from starlette.responses import Response

from gp4u.api.rentals.bodies import MAX_TOP, DecisionBody
from gp4u.api.rentals.examples import DECISION, MARKETS
from gp4u.api.replies import StrictRoute, documented, json_reply, role
from gp4u.desk.desk import Desk
from gp4u.desk.shapes import DecisionShape, MarketShape, StepShape
from gp4u.errors import NoSuch
from gp4u.telemetry import clean

if TYPE_CHECKING:
    from gp4u.clock import Clock
    from gp4u.rentals.ledger import Ledger
    from gp4u.settings import Settings

PATH: Final = "/api/v1/decisions"
KEPT_ROWS: Final = 1000
_encoder: Final = msgspec.json.Encoder()
_decoder: Final = msgspec.json.Decoder(DecisionShape)
DecisionId = Annotated[
    str,
    Path(
        min_length=1,
        max_length=200,
        description="Id of a decision, or key of the rental that it led to.",
        examples=["d-5b1c9a0e2f47"],
    ),
]


class MarketsShape(msgspec.Struct, frozen=True, kw_only=True):
    """Every market that there are settings for."""

    items: Sequence[MarketShape]


def decision_routes(*, desk: Desk, ledger: Ledger, clock: Clock, settings: Settings) -> APIRouter:
    """Return the routes; demands take their defaults from `settings`."""
    router = APIRouter(route_class=StrictRoute, tags=["decisions"])

    @router.post(
        PATH,
        summary="Who would be rented, and why",
        operation_id="decide",
        responses=documented(
            DecisionShape,
            what="The whole answer, also where nothing fits",
            example=DECISION,
            errors=(403, 422, 503),
        ),
        response_model=None,
        openapi_extra=role("read"),
    )
    async def decide(request: Request, body: DecisionBody) -> Response:
        """Decide over the newest offers; nothing is rented and nothing changed.

        Where nothing fits, `candidates` is 0, and `explanation` and `relaxations` say what each
        bound keeps out. The answer can be read again under its `id` for 24 hours, with the first
        1,000 of its candidates and of its rejections.
        """
        top = MAX_TOP if body.top is None else body.top
        found = await desk.decide(
            body.wanted(settings), top=top, rejections=body.rejections, tell=_unheard
        )
        decision_id = f"d-{secrets.token_hex(6)}"
        told = replace(found, id=decision_id)
        await ledger.keep_decision(decision_id, _encoder.encode(_kept(told)), clock.now())
        return json_reply(request, told)

    @router.get(
        PATH + "/{decision_id}",
        summary="A decision of before",
        operation_id="decision",
        responses=documented(DecisionShape, example=DECISION, errors=(404, 422, 503)),
        response_model=None,
        openapi_extra=role("read"),
    )
    async def decision(request: Request, decision_id: DecisionId) -> Response:
        """Show a decision that was asked for within 24 hours, or the one behind a rental."""
        body = await ledger.decision(decision_id)
        if body is None:
            hint = "no decision of the last 24 hours has this id, and no rental this key"
            raise NoSuch("id", clean(decision_id, 200), hint=hint)
        try:
            found = _decoder.decode(body)
        except msgspec.ValidationError:
            hint = "this decision was kept by an older version, in a form that is not told any more"
            raise NoSuch("id", clean(decision_id, 200), hint=hint) from None
        return json_reply(request, replace(found, id=decision_id))

    @router.get(
        "/api/v1/markets",
        summary="The markets, and which are open",
        operation_id="markets",
        responses=documented(MarketsShape, example=MARKETS),
        response_model=None,
        openapi_extra=role("read"),
    )
    async def markets(request: Request) -> Response:
        """List every market, why it is closed where it is, and what it lets us do."""
        return json_reply(request, MarketsShape(items=await desk.markets()))

    return router


def _kept(told: DecisionShape) -> DecisionShape:
    """Return what is kept of an answer: a commit must not take longer than the answer itself."""
    brief = replace(told, ranked=told.ranked[:KEPT_ROWS])
    if isinstance(told.rejections, UnsetType):
        return brief
    return replace(brief, rejections=told.rejections[:KEPT_ROWS])


def _unheard(_step: StepShape) -> None:
    return
