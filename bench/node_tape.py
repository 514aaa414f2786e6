"""A market that is only a tape and a door: it prints half a gibibyte as fast as it is read, and
each command that is run there has ended at once.

It stands in for a real one where the node's own part of a stream is measured: what a log or a
terminal costs from the market's connection on, up to kubectl.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from decimal import Decimal
from itertools import count
from typing import ClassVar, Final

from gp4u.clock import Clock
from gp4u.errors import InstanceAbsent
from gp4u.model import Instance, InstanceState, Listing, Offer, RentalKey, Workload
from gp4u.provider_settings import ProviderSettings
from gp4u.providers.contract import (
    Ability,
    Account,
    Call,
    Choose,
    OfferPage,
    Provider,
    ProviderSpec,
    Query,
)
from gp4u.providers.opening import Opening, Wire
from gp4u.providers.session import Session, Stream
from gp4u.settings import Settings

SLUG: Final = "tape"
LINE: Final = b"x" * 127 + b"\n"
PIECE: Final = LINE * 511
"""Goes behind a line of its own, so that no two pieces are equal."""
SIZE: Final = 512 * 1024 * 1024
SPEC: Final = ProviderSpec(
    slug=SLUG,
    title="Tape",
    env="TAPE",
    base_url="https://tape.invalid",
    rate_limit_per_min=100_000,
    key_url="",
    key_required=False,
    settle_s=0.0,
    late_window_s=0.0,
    can=Ability.LABELS | Ability.LOGS | Ability.COMMAND | Ability.FOLLOW | Ability.SHELL,
)
_takes = count()


def pieces() -> Iterator[bytes]:
    """Yield what the tape prints."""
    took = next(_takes)
    for number in range(SIZE // (len(PIECE) + len(LINE))):
        yield f"take {took}, piece {number} ".encode().ljust(len(LINE) - 1, b"-") + b"\n" + PIECE


class Ended(Session):
    """A command that wrote nothing and ended well."""

    async def output(self) -> AsyncIterator[tuple[Stream, bytes]]:
        nothing: tuple[tuple[Stream, bytes], ...] = ()
        for each in nothing:
            yield each

    async def send(self, data: bytes) -> None:
        """Nobody reads it."""

    async def end_input(self) -> None:
        """Nobody reads it."""

    async def resize(self, columns: int, rows: int) -> None:
        """It has no terminal."""

    async def exit_code(self) -> int:
        return 0

    async def aclose(self) -> None:
        """Nothing is open."""


class Tape(Provider):
    """Everything that was rented runs, and prints for whoever listens."""

    spec: ClassVar[ProviderSpec] = SPEC

    def __init__(self, clock: Clock) -> None:
        self._clock, self._ids = clock, count(1)
        self._labels: dict[str, str] = {}

    async def ping(self) -> Account:
        return Account(id="bench")

    async def offers(self, query: Query) -> OfferPage:
        at, price = self._clock.now(), Decimal("0.1")
        one = Offer(
            provider=SLUG,
            offer_id="tape",
            gpu_model="RTX 4090",
            gpu_count=1,
            vram_gib=24,
            price_usd_per_hour=price,
            gpu_usd_per_hour=price,
            storage_usd_per_hour=Decimal(0),
            fetched_at=at,
            reliability=0.999,
            download_mbps=1000,
            disk_gib=1000,
            verified=True,
            datacenter=True,
        )
        return OfferPage(offers=(one,))

    def rent_calls(self, offer: Offer, workload: Workload, key: RentalKey) -> tuple[Call, ...]:
        return ()

    async def rent(
        self, offer: Offer, workload: Workload, key: RentalKey, *, choose: Choose | None = None
    ) -> str:
        instance_id = str(next(self._ids))
        self._labels[instance_id] = key
        return instance_id

    async def instances(self) -> Listing:
        at = self._clock.now()
        running = tuple(
            Instance(provider=SLUG, instance_id=each, label=label, state=InstanceState.RUNNING)
            for each, label in self._labels.items()
        )
        return Listing(provider=SLUG, instances=running, complete=True, began_at=at)

    async def release(self, instance_id: str) -> None:
        if self._labels.pop(instance_id, None) is None:
            raise InstanceAbsent(SLUG, "release", instance_id)

    async def logs(
        self, instance_id: str, *, tail: int = 1000, container: str | None = None
    ) -> str:
        return ""

    async def follow(
        self, instance_id: str, *, container: str | None = None
    ) -> AsyncIterator[bytes]:
        await asyncio.sleep(0.5)  # whoever asked first shall hear the first line as well
        for piece in pieces():
            yield piece

    async def open_exec(
        self,
        instance_id: str,
        key: RentalKey,
        command: Sequence[str],
        *,
        tty: bool,
        container: str | None = None,
    ) -> Session:
        return Ended()


def _open(_own: ProviderSettings, _settings: Settings, clock: Clock, _wire: Wire) -> Tape:
    return Tape(clock)


OPENING: Final = Opening(SPEC, _open)
