"""From an order to its reply: a rent that goes on whoever waits for it, and happens once per key.

Hides idempotency. A request with a key is on disk before it is worked on, and its reply before it
is told, so asking again gives the same reply, also after a restart. Where the process died in
between, what it had rented is found by the owner that the key stands for; only if that came to
nothing is something rented again.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import Struct

from gp4u.api.problems import problem_of
from gp4u.api.rentals.jobs import Job, Jobs
from gp4u.api.rentals.streams import Steps, done_line
from gp4u.desk.shapes import RentalShape, StepShape, rental_shape
from gp4u.errors import Gp4uError, LedgerUnusable, OutcomeUnknown
from gp4u.model import Demand, Workload

if TYPE_CHECKING:
    from gp4u.clock import Clock
    from gp4u.desk.desk import Desk
    from gp4u.rentals.ledger import Ledger

CREATED: Final = 201
ACCEPTED: Final = 202
SERVER_FAULT: Final = 500
_encoder: Final = msgspec.json.Encoder()


class Reply(Struct, frozen=True, kw_only=True):
    """What is answered to an order, now or when it is repeated."""

    status: int
    body: bytes
    """A rental's shape, or the members of a problem."""
    replayed: bool = False

    @property
    def is_problem(self) -> bool:
        """Whether it came to nothing."""
        return self.status not in (CREATED, ACCEPTED)

    @property
    def last_line(self) -> bytes:
        """The same as the end of a stream."""
        return done_line(self.body, is_problem=self.is_problem)


class Order(Struct, frozen=True, kw_only=True):
    """What shall be rented."""

    owner: str
    demand: Demand
    workload: Workload
    wait: bool


class StillRunning(Exception):
    """The same request is being worked on; nothing was begun."""


def made_up_owner(key: str | None) -> str:
    """Return the owner of an order without a name: what the key stands for, else a new one."""
    if key is None:
        return f"api:{secrets.token_hex(6)}"
    return f"api:{hashlib.sha256(key.encode()).hexdigest()[:16]}"


class Orders:
    """Carries out orders; see the module's docstring."""

    def __init__(self, *, desk: Desk, ledger: Ledger, jobs: Jobs, clock: Clock) -> None:
        self._desk, self._ledger, self._jobs, self._clock = desk, ledger, jobs, clock

    async def place(
        self, order: Order, steps: Steps, *, key: str | None, fingerprint: bytes
    ) -> Job[Reply] | Reply:
        """Begin an order, or return what it came to before; `steps` are told as it goes.

        Raises:
            StillRunning: the order of this key is under way.
            BadInput: another one came with this key.
            NoRoom: too many are under way.
        """
        if key is None:
            return self._jobs.start(self._carry_out(order, steps, None, None))
        begun = await self._ledger.begin_request(
            key, fingerprint=fingerprint, at=self._clock.now(), owner=order.owner
        )
        if begun.state == "running":
            raise StillRunning
        if begun.state == "done":
            return Reply(status=begun.status or CREATED, body=begun.body or b"{}", replayed=True)
        try:
            return self._jobs.start(self._carry_out(order, steps, key, begun.rental))
        except Gp4uError:
            await self._ledger.abandon_request(key)
            raise

    async def _carry_out(
        self, order: Order, steps: Steps, key: str | None, had: str | None
    ) -> Reply:
        try:
            reply, is_final = await self._attempt(order, steps, had)
            if key is not None and is_final:
                # Trouble here must not hide the reply: the rental is on disk already.
                with suppress(LedgerUnusable):
                    await self._ledger.finish_request(
                        key, status=reply.status, body=reply.body, at=self._clock.now()
                    )
            elif key is not None:
                await self._ledger.abandon_request(key)
            steps.end(reply.last_line)
        except Exception:
            if key is not None:
                await self._ledger.abandon_request(key)
            raise
        finally:
            steps.close()
        return reply

    async def _attempt(self, order: Order, steps: Steps, had: str | None) -> tuple[Reply, bool]:
        """Return the reply, and whether it is the one for good.

        It is, where the order had its effect, may still have it, or can never have one. What came
        to nothing because a market was in trouble may be tried again.
        """
        try:
            rental = await self._resumed(had) or await self._rent(order, steps.tell)
        except Gp4uError as error:
            problem = problem_of(error)
            status = int(str(problem["status"]))
            reply = Reply(status=status, body=_encoder.encode(problem))
            return reply, status < SERVER_FAULT or isinstance(error, OutcomeUnknown)
        # Confirmed, or only to be found by a listing.
        status = CREATED if rental.instance_id is not None else ACCEPTED
        return Reply(status=status, body=_encoder.encode(rental)), True

    async def _rent(self, order: Order, tell: Callable[[StepShape], None]) -> RentalShape:
        return await self._desk.rent(
            order.owner, order.demand, order.workload, wait=order.wait, tell=tell
        )

    async def _resumed(self, key: str | None) -> RentalShape | None:
        """Return what a process that died had rented for this order, unless it came to nothing."""
        rental = None if key is None else await self._ledger.get(key)
        if rental is None or not (rental.is_live or rental.instance_id is not None):
            return None
        return rental_shape(rental, self._clock.now())
