"""What is rented, and its end: the list, one rental with its history, release, and orphans.

Hides how a list is cut into pages, and how long a release is waited for: asking for one puts it on
disk, and from then on it goes on by itself, whoever waits.
"""

from __future__ import annotations

import asyncio
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Final

import msgspec
from fastapi import APIRouter, Path, Query, Request
from starlette.responses import Response

from gp4u.api.rentals.examples import ORPHANS, RELEASE_STEPS, RELEASED, RENTAL_SHOWN, RENTALS
from gp4u.api.rentals.streams import (
    Hangup,
    Steps,
    WorkingStream,
    refused,
    wants_ndjson,
    while_there,
)
from gp4u.api.replies import NDJSON, documented, json_reply, role
from gp4u.desk.desk import Desk
from gp4u.desk.shapes import RentalShape, UnexplainedShape, rental_shape
from gp4u.errors import BadInput, NoSuch
from gp4u.rentals.rental import Rental, RentalState
from gp4u.telemetry import clean

if TYPE_CHECKING:
    from gp4u.clock import Clock
    from gp4u.rentals.ledger import Ledger

PATH: Final = "/api/v1/rentals"
ASKED_S: Final = 20.0
"""How long a release that nobody waits for may take to reach the market; it goes on anyway."""
PROVEN_S: Final = 900.0
"""How long a release is waited for."""
MAX_LIMIT: Final = 1000
Word = Annotated[
    str,
    Path(
        min_length=1,
        max_length=200,
        description="Key, start of a key, name, or instance id.",
        examples=["june"],
    ),
]
Slug = Annotated[str, Path(min_length=1, max_length=100, examples=["vastai"])]
InstanceId = Annotated[str, Path(min_length=1, max_length=200, examples=["4711"])]
Everything = Annotated[
    bool, Query(alias="all", description="Also what was released; then the newest come first.")
]
Ask = Annotated[
    bool,
    Query(description="Ask the markets first; else rentals are shown as they were last seen."),
]
States = Annotated[
    list[RentalState], Query(alias="state", max_length=5, description="Only these; repeatable.")
]
Market = Annotated[str | None, Query(max_length=100, description="Only this market's.")]
Owner = Annotated[
    str | None,
    Query(max_length=200, description="Only this owner's: `cli:` and a name, or `api:` and an id."),
]
Limit = Annotated[int, Query(ge=1, le=MAX_LIMIT)]
Cursor = Annotated[
    str | None, Query(max_length=300, description="`next_cursor` of the page before.")
]
Wait = Annotated[
    bool, Query(description="Answer once it is proven that nothing is left, for up to 15 minutes.")
]
Forget = Annotated[
    bool,
    Query(description="Close it without any proof, for what no key can reach; needs `admin`."),
]
Reason = Annotated[str, Query(pattern="^[a-z0-9_]{1,40}$", description="Why, for its history.")]


class RentalsShape(msgspec.Struct, frozen=True, kw_only=True):
    """A page of rentals, and what a look at the markets added."""

    items: Sequence[RentalShape]
    next_cursor: str | None
    """For the next page; null on the last."""
    unexplained: Sequence[UnexplainedShape]
    """Instances that no rental explains; only with `ask`."""
    warnings: Sequence[str]
    """What could not be found out."""
    failed: str | None
    """Code of the gravest reason why a market could not be asked; null where all were."""


class OrphansShape(msgspec.Struct, frozen=True, kw_only=True):
    """Machines of ours that nothing explains."""

    items: Sequence[UnexplainedShape]
    warnings: Sequence[str]
    """What could not be found out."""


class OrphanReleaseShape(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked of a market; a later look tells whether it is gone."""

    provider: str
    instance_id: str
    state: str
    """`releasing`."""


def add_held(router: APIRouter, *, desk: Desk, ledger: Ledger, clock: Clock) -> None:
    """Add the routes."""
    _add_list(router, desk, ledger, clock)
    _add_show(router, desk)
    _add_release(router, desk)
    _add_orphans(router, desk)


def _add_list(router: APIRouter, desk: Desk, ledger: Ledger, clock: Clock) -> None:
    @router.get(
        PATH,
        summary="What is rented",
        operation_id="rentals",
        responses=documented(RentalsShape, example=RENTALS, errors=(404, 422, 503)),
        response_model=None,
        openapi_extra=role("read"),
    )
    async def rentals(
        request: Request,
        everything: Everything = False,
        ask: Ask = False,
        state: States = [],  # noqa: B006 - never changed; the framework copies it
        provider: Market = None,
        owner: Owner = None,
        limit: Limit = 100,
        cursor: Cursor = None,
    ) -> Response:
        """List open rentals, the oldest first, or with `all` those of any state, the newest first.

        With `ask` every open market is asked first, which also shows what nothing explains; many
        who ask at once cost each market one call.
        """
        after = None if cursor is None else _place(cursor)
        if provider is not None:
            known = tuple(market.provider for market in await desk.markets())
            if provider not in known:
                raise NoSuch("provider", clean(provider, 100), known)
        look = await desk.look(everything=False, ask=ask) if ask else None
        found = await ledger.rentals_page(
            limit=limit + 1,
            after=after,
            open_only=not everything,
            states=[str(one) for one in state],
            provider=provider,
            owner=owner,
        )
        at = clock.now()
        page = RentalsShape(
            items=[rental_shape(rental, at) for rental in found[:limit]],
            next_cursor=_cursor(found[limit - 1]) if len(found) > limit else None,
            unexplained=look.unexplained if look else (),
            warnings=look.warnings if look else (),
            failed=look.failed if look else None,
        )
        return json_reply(request, page)


def _add_show(router: APIRouter, desk: Desk) -> None:
    @router.get(
        PATH + "/{word}",
        summary="One rental, with its history and its cost so far",
        operation_id="rental",
        responses=documented(RentalShape, example=RENTAL_SHOWN, errors=(404, 422, 503)),
        response_model=None,
        openapi_extra=role("read"),
    )
    async def rental(request: Request, word: Word) -> Response:
        """Show the one rental that a word means, as it was last seen.

        A word that means several open rentals is refused with 422.
        """
        return json_reply(request, await desk.find(word))


def _add_release(router: APIRouter, desk: Desk) -> None:
    docs = documented(
        RentalShape,
        what="Released: the market's own listing proves that nothing is left",
        example=RELEASED,
        errors=(403, 404, 422, 502, 503),
        also={202: "Being released; it goes on by itself, and costs until it is proven gone"},
    )
    docs[200]["content"] = {
        **docs[200]["content"],
        NDJSON: {"schema": {"type": "string"}, "example": RELEASE_STEPS},
    }

    @router.delete(
        PATH + "/{word}",
        summary="Release a rental",
        operation_id="release",
        responses=docs,
        response_model=None,
        openapi_extra=role("rent"),
    )
    async def release(
        request: Request,
        word: Word,
        wait: Wait = False,
        forget: Forget = False,
        reason: Reason = "released_by_user",
    ) -> Response:
        """Stop paying for a rental. Releasing one again changes nothing and is no error.

        The wish is on disk before the market is asked, so it is carried out whoever hangs up. With
        `Accept: application/x-ndjson` each look is a line; the last is `done` with the rental, or
        `problem`.
        """
        if forget:
            if request.scope.get("role", "admin") != "admin":
                detail = "closing a rental without proof needs the role admin"
                return refused(request.scope, "role_needed", detail)
            return json_reply(request, await desk.forget(word))
        key = (await desk.find(word)).key
        steps = Steps()

        async def released() -> RentalShape:
            try:
                async with asyncio.timeout(PROVEN_S if wait else ASKED_S):
                    return await desk.release(key, reason=reason, wait=wait, tell=steps.tell)
            except TimeoutError:
                return await desk.find(key)

        if wants_ndjson(request):
            return WorkingStream(steps, released)
        try:
            done = await while_there(request, released())
        except Hangup:
            return Response()  # nobody hears it; the release goes on
        return json_reply(request, done, 200 if done.state == RentalState.RELEASED else 202)


def _add_orphans(router: APIRouter, desk: Desk) -> None:
    @router.get(
        "/api/v1/orphans",
        summary="Machines of ours that nothing explains",
        operation_id="orphans",
        responses=documented(OrphansShape, example=ORPHANS, errors=(502, 503)),
        response_model=None,
        openapi_extra=role("read"),
    )
    async def orphans(request: Request) -> Response:
        """Ask every open market what it holds, and list what carries our key without a rental.

        The server releases such machines by itself after `GP4U_ORPHAN_GRACE_S`.
        """
        found, warnings = await desk.orphans()
        return json_reply(request, OrphansShape(items=found, warnings=warnings))

    @router.delete(
        "/api/v1/orphans/{provider}/{instance_id}",
        summary="Release a machine that nothing explains",
        operation_id="release_orphan",
        status_code=202,
        responses=documented(
            OrphanReleaseShape,
            status=202,
            what="The market was asked to end it",
            example={"provider": "vastai", "instance_id": "4711", "state": "releasing"},
            errors=(403, 404, 422, 502, 503),
        ),
        response_model=None,
        openapi_extra=role("admin"),
    )
    async def release_orphan(request: Request, provider: Slug, instance_id: InstanceId) -> Response:
        """Look once more, and end the machine if still nothing explains it."""
        await desk.release_orphan(provider, instance_id)
        asked = OrphanReleaseShape(provider=provider, instance_id=instance_id, state="releasing")
        return json_reply(request, asked, 202)


def _cursor(last: Rental) -> str:
    told = msgspec.json.encode((last.intended_at.isoformat(), last.key))
    return urlsafe_b64encode(told).rstrip(b"=").decode("ascii")


def _place(cursor: str) -> tuple[str, str]:
    """Return the place that a cursor means. A forged one leads to a place of the same list.

    Raises:
        BadInput: it is none of ours.
    """
    try:
        told = urlsafe_b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4))
        at, key = msgspec.json.decode(told, type=tuple[datetime, str])
        if at.tzinfo is not None and "\0" not in key:
            return at.isoformat(), key
    except (ValueError, msgspec.MsgspecError):
        pass
    raise BadInput("cursor", clean(cursor, 60), "must be the next_cursor of a page before")
