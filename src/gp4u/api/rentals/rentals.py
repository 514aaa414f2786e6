"""`/api/v1/rentals`: an order becomes a rental. Beside it are the routes of what is held.

Hides which reply an order gets and when: once it is settled, step by step, or the same as before.
How an order is carried out once is `ordering.py`'s; what is rented, and its end, `held.py`'s; what
goes on inside an instance, `inside.py`'s.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from math import ceil
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
from fastapi import APIRouter, Header, Request
from starlette.responses import Response

from gp4u.api.rentals.bodies import RentBody
from gp4u.api.rentals.examples import DRY_RUN, RENT_STEPS, RENTAL
from gp4u.api.rentals.held import PATH, add_held
from gp4u.api.rentals.inside import add_inside
from gp4u.api.rentals.jobs import RETRY_S, Jobs, NoRoom, Stopped
from gp4u.api.rentals.ordering import Order, Orders, Reply, StillRunning, made_up_owner
from gp4u.api.rentals.streams import Hangup, Steps, ndjson, refused, wants_ndjson, while_there
from gp4u.api.replies import (
    JSON,
    NDJSON,
    PROBLEM,
    StrictRoute,
    documented,
    json_reply,
    role,
)
from gp4u.desk import asking
from gp4u.desk.desk import Desk
from gp4u.desk.shapes import DryRunShape, RentalShape

if TYPE_CHECKING:
    from gp4u.clock import Clock
    from gp4u.rentals.ledger import Ledger
    from gp4u.settings import Settings

_UNAVAILABLE: Final = 503
IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        pattern=r"^[\x21-\x7e]{1,255}$",
        description="Makes the order happen once, however often it is sent: the same key with the "
        "same body gets the same reply for 24 hours.",
        examples=["6f1c2f4e-0d38-4b36-9a3b-8f2f4a6b7c11"],
    ),
]
_DOCS: Final[dict[int | str, dict[str, Any]]] = documented(
    RentalShape,
    status=201,
    what="Rented; Location is where it can be looked at",
    example=RENTAL,
    errors=(402, 403, 409, 422, 502, 503, 504),
    also={202: "Only a listing of the market can tell whether it was rented; look again"},
) | documented(DryRunShape, what="With `dry_run`: who would be rented, and how", example=DRY_RUN)
_DOCS[200]["description"] += ". As NDJSON: the steps, one a line; the last is the outcome"
_DOCS[200]["content"][NDJSON] = {"schema": {"type": "string"}, "example": RENT_STEPS}


def rental_routes(
    *, desk: Desk, ledger: Ledger, jobs: Jobs, clock: Clock, settings: Settings
) -> APIRouter:
    """Return the routes; orders run in `jobs`, demands take their defaults from `settings`."""
    router = APIRouter(route_class=StrictRoute, tags=["rentals"])
    _add_rent(router, desk, Orders(desk=desk, ledger=ledger, jobs=jobs, clock=clock), settings)
    add_held(router, desk=desk, ledger=ledger, clock=clock)
    add_inside(router, desk=desk)
    return router


def _add_rent(router: APIRouter, desk: Desk, orders: Orders, settings: Settings) -> None:
    @router.post(
        PATH,
        summary="Rent a machine",
        operation_id="rent",
        status_code=201,
        responses=_DOCS,
        response_model=None,
        openapi_extra=role("rent"),
    )
    async def rent(
        request: Request, body: RentBody, idempotency_key: IdempotencyKey = None
    ) -> Response:
        """Rent the best offer that fits, and run the workload there.

        201 once the market has confirmed an instance (with `wait`: once the workload answers), 202
        while only its listings can tell whether there is one. With `Accept: application/x-ndjson`
        each step is a line; the last is `done` with the rental, or `problem`. A client that hangs
        up stops nothing.
        """
        workload = body.workload.workload()
        demand = body.wanted(workload, settings)
        if body.dry_run:
            return json_reply(request, await desk.dry_run(demand, workload))
        name = body.name
        order = Order(
            owner=made_up_owner(idempotency_key) if name is None else asking.owner_of("name", name),
            demand=demand,
            workload=workload,
            wait=body.wait,
        )
        steps = Steps()
        fingerprint = _fingerprint(body)
        try:
            placed = await orders.place(order, steps, key=idempotency_key, fingerprint=fingerprint)
        except StillRunning:
            return refused(request.scope, "request_in_progress", retry_s=RETRY_S)
        except NoRoom as error:
            return refused(request.scope, "saturated", str(error), retry_s=RETRY_S)
        if isinstance(placed, Reply):
            steps.end(placed.last_line)
            replayed = {"Idempotency-Replayed": "true"}
            if wants_ndjson(request):
                return ndjson(steps.lines(), replayed)
            return _answer(placed, replayed)
        if wants_ndjson(request):
            return ndjson(steps.lines(), {})
        try:
            return _answer(await while_there(request, placed.result()))
        except Hangup:
            return Response()  # nobody hears it; the rent goes on
        except Stopped as error:
            return refused(request.scope, "stopping", str(error), retry_s=RETRY_S)


def _fingerprint(body: RentBody) -> bytes:
    """Return what two bodies share only if they ask for the same, however they are written."""
    told = body.model_dump(mode="json", exclude_unset=True)
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).digest()


def _answer(reply: Reply, headers: Mapping[str, str] | None = None) -> Response:
    told = dict(headers or {})
    about = msgspec.json.decode(reply.body, type=_About)
    if not reply.is_problem:
        told["Location"] = f"{PATH}/{about.key}"
    elif reply.status == _UNAVAILABLE:
        wait_s = RETRY_S if about.retry_in_s is None else about.retry_in_s
        told["Retry-After"] = str(max(1, ceil(wait_s)))
    kind = PROBLEM if reply.is_problem else JSON
    return Response(reply.body, reply.status, told, media_type=kind)


class _About(msgspec.Struct):
    """What of a reply goes into its head."""

    key: str = ""
    retry_in_s: float | None = None
