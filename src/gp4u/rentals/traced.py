"""A broker whose rents and releases are spans of a trace, with the calls to the market in them.

It stands beside the broker so that renting knows nothing of traces; `app.py` takes it where spans
are collected.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from gp4u.model import Demand, RentalKey, Workload
from gp4u.rentals.broker import Broker, Tell, silent
from gp4u.rentals.rental import Rental
from gp4u.traces import Note, Traces


class TracedBroker(Broker):
    """A `Broker` that makes a span of each rent and release."""

    def __init__(self, traces: Traces, **parts: Any) -> None:
        """`parts` are what a `Broker` is made of."""
        super().__init__(**parts)
        self._traces = traces

    async def rent(
        self,
        owner: str,
        demand: Demand,
        workload: Workload,
        *,
        wait: bool = True,
        avoid: Collection[tuple[str, str]] = (),
        note: tuple[str, str] | None = None,
        tell: Tell = silent,
    ) -> Rental:
        """Rent, as `Broker.rent` does."""
        with self._traces.span("rent") as tag:
            rental = await super().rent(
                owner, demand, workload, wait=wait, avoid=avoid, note=note, tell=tell
            )
            return _noted(tag, rental)

    async def release(
        self, key: RentalKey, *, reason: str = "asked", wait: bool = True, tell: Tell = silent
    ) -> Rental:
        """Release, as `Broker.release` does."""
        with self._traces.span("release") as note:
            note("gp4u.rental", key)
            return _noted(note, await super().release(key, reason=reason, wait=wait, tell=tell))


def _noted(note: Note, rental: Rental) -> Rental:
    note("gp4u.rental", rental.key)
    note("gp4u.provider", rental.provider)
    note("gp4u.state", str(rental.state))
    return rental
