"""`GET /api/v1/events`: what happens, as it happens, to be taken up again after a break.

Hides how many may listen and how far back anybody can go. There is one bounded ring of events that
all listeners read at their own pace, so a slow one costs nothing but its own place: when the ring
has gone past it, it is told `lost` and cut off. What happened to rentals is in the ledger as well,
so that part can be made up for even after the server was started anew.

Who calls the hooks is the composition root's business; they return at once and never raise.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Final

import msgspec
from fastapi import APIRouter, Header, Query
from msgspec import Struct
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gp4u.api.rentals.streams import OpenEnded, refused
from gp4u.api.replies import StrictRoute, documented, role
from gp4u.rentals.rental import RentalState
from gp4u.telemetry import clean

if TYPE_CHECKING:
    from gp4u.clock import Clock
    from gp4u.rentals.ledger import Ledger

KEPT: Final = 1000
"""Events in the ring."""
MAX_LISTENERS: Final = 100
MADE_UP: Final = 1000
"""Lines of rentals' histories that are read from the ledger for one who was away."""
HEARTBEAT_S: Final = 15.0
RETRY_MS: Final = 3000
RETRY_S: Final = 5.0
EVENT_STREAM: Final = "text/event-stream"
_NOT_OF_A_RENTAL: Final = frozenset({"frozen"})
_STATE_OF: Final[Mapping[str, str]] = {
    **{str(state): str(state) for state in RentalState},
    "adopted": str(RentalState.STARTING),
    "forgotten": str(RentalState.RELEASED),
}
"""Kind of a line to the state that it is a move to."""
_ID: Final = re.compile(r"(?P<boot>[0-9a-z]{1,32})-(?P<number>\d{1,15})\.(?P<ledger_id>\d{1,15})")
_WHAT: Final = "A stream of events; this is one of them, whose `data` is a JSON object"
_encoder: Final = msgspec.json.Encoder()


class FrameShape(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One event of the stream, by its fields (HTML standard, server-sent events)."""

    event: str
    data: str
    """JSON, by the kind of event."""
    id: str = ""


_EXAMPLE: Final = FrameShape(
    id="5b1c9a0e-17.204",
    event="rental.moved",
    data='{"at":"2026-11-20T12:00:00Z","key":"gp4u-k3x7ab-2q9w8e7r5t-1a2b3c4d5e",'
    '"kind":"running","state":"running","text":"healthy"}',
)


class EventType(StrEnum):
    """What can happen."""

    OFFERS_REFRESHED = "offers.refreshed"
    PROVIDER_STATE = "provider.state"
    RENTAL_MOVED = "rental.moved"


class OffersRefreshed(Struct, frozen=True, kw_only=True):
    """A market was asked for its offers."""

    at: datetime
    provider: str
    offers: int
    """How many it has for this search."""
    error: str
    """Why it did not answer; empty where it did."""


class ProviderState(Struct, frozen=True, kw_only=True, rename={"before": "from", "after": "to"}):
    """A market's breaker moved, or its health changed."""

    at: datetime
    provider: str
    before: str
    after: str


class RentalMoved(Struct, frozen=True, kw_only=True):
    """A line was added to a rental's history."""

    at: datetime
    key: str
    kind: str
    state: str | None
    """Where the line is a move to it."""
    text: str


class _Event(Struct, frozen=True):
    number: int
    ledger_id: int
    """Of the newest line of the ledger that was told up to here."""
    type: EventType
    data: bytes


class EventBus:
    """The ring; see the module's docstring."""

    def __init__(
        self,
        *,
        clock: Clock,
        boot: str,
        ledger_id: int = 0,
        kept: int = KEPT,
        max_listeners: int = MAX_LISTENERS,
    ) -> None:
        """`boot` tells this process from those before it: letters and digits."""
        self._clock, self._boot, self._max_listeners = clock, boot, max_listeners
        self._ring: deque[_Event] = deque(maxlen=kept)
        self._next, self._ledger_id = 1, ledger_id
        self._wakes: set[asyncio.Event] = set()

    def offers_refreshed(self, slug: str, offers: int, error: str) -> None:
        """Tell that a market was asked."""
        told = OffersRefreshed(
            at=self._clock.now(), provider=slug, offers=offers, error=clean(error, 400)
        )
        self._publish(EventType.OFFERS_REFRESHED, told)

    def provider_state(self, slug: str, old: str, new: str) -> None:
        """Tell that a market's breaker moved, or its health changed."""
        told = ProviderState(at=self._clock.now(), provider=slug, before=old, after=new)
        self._publish(EventType.PROVIDER_STATE, told)

    def rental_event(self, event_id: int, key: str, at: datetime, kind: str, text: str) -> None:
        """Tell a line of a rental's history."""
        self._ledger_id = max(self._ledger_id, event_id)
        if (told := _moved(key, at, kind, text)) is not None:
            self._publish(EventType.RENTAL_MOVED, told)

    @property
    def listeners(self) -> int:
        """How many listen now."""
        return len(self._wakes)

    def take_seat(self, wake: asyncio.Event) -> bool:
        """Wake one more listener whenever there is something new; False where there is no room."""
        if len(self._wakes) >= self._max_listeners:
            return False
        self._wakes.add(wake)
        return True

    def leave(self, wake: asyncio.Event) -> None:
        """Give a seat back."""
        self._wakes.discard(wake)

    async def frames(
        self,
        wake: asyncio.Event,
        *,
        after: str | None,
        types: Sequence[EventType],
        ledger: Ledger,
    ) -> AsyncIterator[bytes]:
        """Yield what came after the event of that id, then whatever comes, as frames of a stream.

        No `types` are all of them. It ends only for a listener that is too slow.
        """
        yield f"retry: {RETRY_MS}\n\n".encode()
        place, made_up = await self._resume(after, types, ledger)
        for frame in made_up:
            yield frame
        while True:
            wake.clear()
            while self._oldest <= place < self._next:
                event = self._ring[place - self._next]
                place += 1
                if not types or event.type in types:
                    mark = f"{self._boot}-{event.number}.{event.ledger_id}"
                    yield _framed(event.type, mark, event.data)
            if place < self._oldest:
                missed = {"events": self._oldest - place}
                yield _framed("lost", self._mark(), _encoder.encode(missed))
                return
            if not await _woken(wake):
                yield b": nothing new\n\n"

    @property
    def _oldest(self) -> int:
        return self._next - len(self._ring)

    def _mark(self) -> str:
        """Return the id of the newest event, or of the place before the first."""
        return f"{self._boot}-{self._next - 1}.{self._ledger_id}"

    async def _resume(
        self, after: str | None, types: Sequence[EventType], ledger: Ledger
    ) -> tuple[int, list[bytes]]:
        """Return from which number on to go, and the frames that come before."""
        place, newest = self._next, self._ledger_id
        if after is None:
            return place, []
        known = _ID.fullmatch(after)
        if known and known["boot"] == self._boot:
            number = int(known["number"]) + 1
            if self._oldest <= number <= self._next:
                return number, []
        reset = _encoder.encode({"after": clean(after, 100)})
        lines: list[tuple[str, str, bytes]] = [(after, "reset", reset)]
        here = self._mark()
        if known and (not types or EventType.RENTAL_MOVED in types):
            left = f"{known['boot']}-{known['number']}"
            for line in await ledger.events_after(int(known["ledger_id"]), MADE_UP):
                moved = _moved(line.key, line.at, line.kind, line.text)
                # What has come since this place was taken is told from the ring.
                if moved is not None and (not newest or line.id <= newest):
                    told = _encoder.encode(moved)
                    lines.append((f"{left}.{line.id}", EventType.RENTAL_MOVED, told))
        # Only the last one leads to the ring: a break before it is made up for once more.
        *earlier, (_, kind, data) = lines
        return place, [*(_framed(k, mark, d) for mark, k, d in earlier), _framed(kind, here, data)]

    def _publish(self, kind: EventType, told: Struct) -> None:
        self._ring.append(_Event(self._next, self._ledger_id, kind, _encoder.encode(told)))
        self._next += 1
        for wake in self._wakes:
            wake.set()


class EventStream(OpenEnded):
    """A stream of events, for as long as somebody listens and there is a seat."""

    def __init__(
        self, bus: EventBus, *, after: str | None, types: Sequence[EventType], ledger: Ledger
    ) -> None:
        self._bus, self._wake = bus, asyncio.Event()
        frames = bus.frames(self._wake, after=after, types=types, ledger=ledger)
        super().__init__(frames, EVENT_STREAM)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Take a seat, send frames, and give the seat back."""
        if not self._bus.take_seat(self._wake):
            full = refused(scope, "too_many_streams", retry_s=RETRY_S)
            await full(scope, receive, send)
            return
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._bus.leave(self._wake)


Types = Annotated[
    list[EventType],
    Query(max_length=20, description="Only events of these types; repeatable."),
]
After = Annotated[
    str | None,
    Query(max_length=200, description="Id of the last event that was heard; as Last-Event-ID."),
]
LastEventId = Annotated[
    str | None, Header(alias="Last-Event-ID", description="What a browser sends by itself.")
]


def event_routes(*, bus: EventBus, ledger: Ledger) -> APIRouter:
    """Return the route."""
    router = APIRouter(route_class=StrictRoute, tags=["events"])

    @router.get(
        "/api/v1/events",
        summary="What happens, as it happens",
        operation_id="events",
        responses=documented(
            FrameShape, what=_WHAT, media=(EVENT_STREAM,), example=_EXAMPLE, errors=(422, 503)
        ),
        response_model=None,
        openapi_extra=role("read"),
    )
    async def events(
        types: Types = [],  # noqa: B006 - never changed; the framework copies it
        after: After = None,
        last_event_id: LastEventId = None,
    ) -> Response:
        """Stream server-sent events: offers refreshed, provider states, rental moves.

        Each has an id; whoever comes again with the last one in `Last-Event-ID` (or `after`) goes
        on from there. Where that is too long ago, or from before a restart, `reset` comes first:
        read anew what you keep. Rental moves are made up for all the same. Who reads too slowly
        gets `lost`, and is cut off. A comment every 15 seconds keeps the connection open.
        """
        heard = last_event_id if after is None else after
        return EventStream(bus, after=heard, types=types, ledger=ledger)

    return router


async def _woken(wake: asyncio.Event) -> bool:
    try:
        async with asyncio.timeout(HEARTBEAT_S):
            await wake.wait()
    except TimeoutError:
        return False
    return True


def _moved(key: str, at: datetime, kind: str, text: str) -> RentalMoved | None:
    """Return a line of a rental's history as an event; None for one that is of no rental."""
    if kind in _NOT_OF_A_RENTAL:
        return None
    state = _STATE_OF.get(kind)
    return RentalMoved(at=at, key=key, kind=kind, state=state, text=clean(text, 400))


def _framed(kind: str, mark: str, data: bytes) -> bytes:
    """Return one event as a stream carries it; JSON has no line breaks of its own.

    Source: the WHATWG HTML standard, "Server-sent events", "Interpreting an event stream" (October
    2026): fields `id`, `event` and `data`, a line each, ended by an empty line.
    """
    return f"id: {mark}\nevent: {kind}\ndata: ".encode() + data + b"\n\n"
