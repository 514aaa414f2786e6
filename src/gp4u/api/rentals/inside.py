"""What goes on inside a rented instance: its log, and commands.

Hides that a market only shows the newest lines of a log, so that following one means to ask again
and again. What a workload printed is a stranger's text: no terminal must obey it, so it is cleaned
unless somebody wants it raw.
"""

from __future__ import annotations

from typing import Annotated, Final

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from gp4u.api.rentals.bodies import ExecBody
from gp4u.api.rentals.held import PATH, Word
from gp4u.api.rentals.streams import OpenEnded, followed_log, shown_log
from gp4u.api.replies import documented, json_reply, role
from gp4u.desk.desk import Desk
from gp4u.desk.shapes import FinishedShape

MAX_TAIL: Final = 100_000
TEXT: Final = "text/plain; charset=utf-8"
Follow = Annotated[
    bool, Query(description="Go on with new lines until the instance is gone, or you hang up.")
]
Tail = Annotated[int, Query(ge=1, le=MAX_TAIL, description="Newest lines.")]
Raw = Annotated[
    bool, Query(description="As it was printed, with colours and whatever else a terminal obeys.")
]
Beside = Annotated[
    str | None,
    Query(max_length=63, description="A container beside the workload's own, by its name."),
]


def add_inside(router: APIRouter, *, desk: Desk) -> None:
    """Add the routes."""

    @router.get(
        PATH + "/{word}/logs",
        summary="What the workload printed",
        operation_id="logs",
        responses=documented(
            None,
            media=("text/plain",),
            example="listening on port 8000\n",
            errors=(403, 404, 422, 502, 503),
        ),
        response_model=None,
        openapi_extra=role("read"),
    )
    async def logs(
        word: Word,
        follow: Follow = False,
        tail: Tail = 1000,
        raw: Raw = False,
        container: Beside = None,
    ) -> Response:
        """Return the newest lines that the workload of a rental printed.

        With `follow` new ones come until the instance is gone, the server stops, or you hang up.
        """
        # Followed by its key: a name may mean another rental once this one is gone.
        key = (await desk.find(word)).key if follow else word
        first = await desk.logs(word, tail=tail, container=container)
        if not follow:
            return Response(shown_log(first, raw=raw), media_type=TEXT)
        lines = followed_log(desk, key, first, tail=tail, raw=raw, container=container)
        return OpenEnded(lines, TEXT)

    @router.post(
        PATH + "/{word}/exec",
        summary="Run a command inside the instance",
        operation_id="exec",
        responses=documented(
            FinishedShape,
            what="It ended, well or not",
            example={"exit_code": 0, "stdout": "R1BVIDA6IFJUWCA0MDkwCg==", "stderr": ""},
            errors=(403, 404, 422, 502, 503),
        ),
        response_model=None,
        openapi_extra=role("rent"),
    )
    async def execute(request: Request, word: Word, body: ExecBody) -> Response:
        """Run a command inside a rented instance, and return how it ended.

        Output is base64, since it may be no text. Nothing is run twice: where the connection to the
        market broke, nobody knows whether it ran.
        """
        done = await desk.execute(
            word,
            body.words(),
            stdin=body.stdin,
            timeout_s=body.timeout_s,
            container=body.container,
        )
        return json_reply(request, done)
