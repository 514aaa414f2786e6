"""What an adapter's author gives to the suite, and the steps that its checks are made of.

Hides waiting, breakers that take their time to close, markets that answer a rent without an id,
and how a rental is found: by its key, and only without labels by its id.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from datetime import UTC, datetime
from random import Random
from typing import Any, ClassVar, TypeVar

from gp4u.errors import (
    BadInput,
    CircuitBreakerOpen,
    InstanceAbsent,
    OutcomeUnknown,
    ProviderError,
    RateLimitExceeded,
    Refused,
    Throttled,
    Unavailable,
)
from gp4u.model import (
    Demand,
    Instance,
    InstanceState,
    Listing,
    Offer,
    RentalKey,
    Snapshot,
    Workload,
)
from gp4u.providers.contract import Ability, Query
from gp4u.rentals.rental import mint_key
from gp4u.testing.findings import ContractBroken, check_stamp, must, raises
from gp4u.testing.troubles import Market, Trouble

T = TypeVar("T")
Check = Callable[[Market], Awaitable[None]]
RentCheck = Callable[[Market, Offer, RentalKey], Awaitable[None]]


class Steps(ABC):
    """`market` and `demand` must be given; the rest has defaults."""

    demand: ClassVar[Demand]
    """Bounds that at least two offers of the market pass."""
    workload: ClassVar[Workload] = Workload(image="busybox", disk_gib=16)
    """What the market can run; with a port wherever it has `PORTS`."""
    impossible: ClassVar[frozenset[Trouble]] = frozenset()
    """Troubles that this market cannot have by its nature (a list without pages has no part)."""
    rents_unlabelled: ClassVar[bool] = False
    """A market without `LABELS` that rents all the same; False: it is for quotes only."""
    some_instance_id: ClassVar[str] = "1"
    """An id of the shape that the market gives; nothing with it need exist."""
    patience_s: ClassVar[float] = 600.0
    """How long the suite waits for what must come: a start, a listing, an end."""
    poll_s: ClassVar[float] = 1.0

    @abstractmethod
    def market(self) -> AbstractAsyncContextManager[Market]:
        """Open a fresh market that holds nothing, and an adapter with a good key."""

    def run(self, scenario: Coroutine[Any, Any, None]) -> None:
        """Run one check to its end; override it to put another clock or loop under it."""
        asyncio.run(scenario)

    @property
    def _query(self) -> Query:
        return Query(requirements=self.demand.requirements)

    def _on_a_market(self, check: Check) -> None:
        async def scenario() -> None:
            async with self.market() as market:
                await check(market)

        self.run(scenario())

    def _when_renting(self, check: RentCheck) -> None:
        """Check a market that can be rented from; of any other, that it refuses to be."""

        async def scenario(market: Market) -> None:
            offer, key = await self._offer(market), key_of(1)
            if self._rents(market):
                await check(market, offer, key)
            else:
                await self._check_never_rents(market, offer, key)

        self._on_a_market(scenario)

    def _rents(self, market: Market) -> bool:
        return self.rents_unlabelled or Ability.LABELS in market.provider.spec.can

    async def _offer(self, market: Market) -> Offer:
        """Return the best offer, by the same decision as in production."""
        page = await market.provider.offers(self._query)
        offer = self._best(page.offers)
        if offer is None:
            raise ContractBroken(f"none of {len(page.offers)} offers passes the demand given")
        return offer

    def _best(self, offers: Sequence[Offer]) -> Offer | None:
        from gp4u.selection.decide import decide  # numpy: not for who only imports this file

        at = max((offer.fetched_at for offer in offers), default=datetime.now(UTC))
        best = decide(Snapshot(offers, taken_at=at), self.demand, at=at).best
        return None if best is None else best.offer

    async def _send_rent(
        self, market: Market, offer: Offer, key: RentalKey, workload: Workload | None = None
    ) -> str:
        what = workload or self.workload
        return await market.provider.rent(offer, what, key, choose=self._best)

    async def _rent(self, market: Market, key: RentalKey, offer: Offer | None = None) -> str:
        """Rent where nothing is wrong; a market that answers without an id is asked by key."""
        try:
            instance_id = await self._send_rent(market, offer or await self._offer(market), key)
        except OutcomeUnknown:
            return (await self._shown(market, key, None)).instance_id
        must(bool(instance_id), "a rent returned an empty instance id")
        return instance_id

    def _mine(self, listing: Listing, key: RentalKey, instance_id: str | None) -> list[Instance]:
        """Return what a listing shows of a rental."""
        if self.rents_unlabelled:
            return [i for i in listing.instances if i.instance_id == instance_id]
        return [i for i in listing.instances if (i.label or "").split(" ")[0] == key]

    def _check_truthful(self, listing: Listing, key: RentalKey, instance_id: str) -> None:
        """Insist that a listing shows what is held, or says that it may lack something."""
        check_stamp(listing)
        if listing.complete:
            shown = self._mine(listing, key, instance_id)
            must(bool(shown), f"complete, and lacks the instance {instance_id} that is held")
        else:
            must(bool(listing.why_incomplete), "incomplete without a word why")

    async def _shown(
        self,
        market: Market,
        key: RentalKey,
        instance_id: str | None,
        *,
        state: InstanceState | None = None,
    ) -> Instance:
        """Wait until a listing shows the rental, once, in a state if one is given."""
        last = "nothing"

        async def look() -> Instance | None:
            nonlocal last
            listing = await market.provider.instances()
            mine = self._mine(listing, key, instance_id)
            must(len(mine) <= 1, f"{len(mine)} instances of one rental")
            last = f"{mine or listing}"
            return mine[0] if mine and state in (None, mine[0].state) else None

        what = f"{state or 'an instance'} under the key {key}"
        return await self._until(look, lambda: f"{what} is not listed; last: {last}")

    async def _check_endpoints(self, market: Market, key: RentalKey, instance_id: str) -> None:
        """Insist on an address that can be called for every port that was asked for."""
        can = market.provider.spec.can
        wanted = {port.number for port in self.workload.ports}
        declared = Ability.PORTS in can
        must(declared == bool(wanted), f"PORTS declared: {declared}; ports wanted: {wanted}")
        last: Sequence[object] = ()

        async def look() -> Instance | None:
            nonlocal last
            instance = await self._shown(market, key, instance_id)
            last = instance.endpoints
            published = {endpoint.container_port for endpoint in instance.endpoints}
            return instance if wanted <= published else None

        instance = await self._until(look, lambda: f"ports {wanted} not published; last: {last}")
        for endpoint in instance.endpoints:
            if Ability.RAW_PORTS in can:
                must(bool(endpoint.host) and 0 < endpoint.port < 65_536, f"RAW_PORTS: {endpoint}")
            else:
                must(bool(endpoint.url), f"RAW_PORTS is not declared, and no URL: {endpoint}")

    async def _check_bill(self, market: Market, instance_id: str) -> None:
        bill = await market.provider.billed(instance_id)
        declared = Ability.BILL in market.provider.spec.can
        must(bill is None or declared, "BILL is not declared, and there is one")
        must(bill is None or (bill.is_finite() and bill >= 0), f"the bill is {bill}")

    async def _release(self, market: Market, key: RentalKey, instance_id: str) -> None:
        """Release until a complete listing proves the absence, and look whether that is true."""
        passing = (InstanceAbsent, Unavailable, Throttled, RateLimitExceeded, CircuitBreakerOpen)

        async def gone() -> bool | None:
            with suppress(*passing):
                await market.provider.release(instance_id)
            listing = await market.provider.instances()
            return True if listing.complete and not self._mine(listing, key, instance_id) else None

        await self._until(gone, lambda: f"{instance_id} was released, and is never proven absent")
        left = [held for held in await market.truth() if held.costs and held.label == key]
        must(not left, f"a complete listing lacks what still costs: {left}")

    async def _nothing_costs(self, market: Market, after: str) -> None:
        async def clean() -> bool | None:
            return None if any(held.costs for held in await market.truth()) else True

        await self._until(clean, lambda: f"after {after} something still costs money")

    async def _check_never_rents(self, market: Market, offer: Offer, key: RentalKey) -> None:
        """Insist on a refusal: without labels a lost reply could never be settled."""
        with suppress(BadInput, Refused):  # what a rent would send may be told all the same
            market.provider.rent_calls(offer, self.workload, key)
        with raises((Refused,), "rent without LABELS") as caught:
            await self._send_rent(market, offer, key)
        code = caught.error.code if isinstance(caught.error, Refused) else ""
        must(bool(code), "rent without LABELS is refused without a code")
        must(not await market.truth(), "a quote-only market rented something")

    async def _again(self, call: Callable[[], Awaitable[object]]) -> None:
        """Wait until the market answers again: a breaker opens and closes at its own pace."""
        last = ""

        async def look() -> bool | None:
            nonlocal last
            try:
                await call()
            except ProviderError as error:
                last = str(error)
                return None
            return True

        await self._until(look, lambda: f"the trouble is over, and the adapter still fails: {last}")

    async def _until(self, look: Callable[[], Awaitable[T | None]], told: Callable[[], str]) -> T:
        loop = asyncio.get_running_loop()
        until = loop.time() + self.patience_s
        while (found := await look()) is None:
            if loop.time() >= until:
                raise ContractBroken(f"{told()} (waited {self.patience_s:g} s)")
            await asyncio.sleep(self.poll_s)
        return found


def key_of(number: int) -> RentalKey:
    """Return a key of the shape that the ledger mints; the same number gives the same key."""
    return mint_key("check", b"contract", Random(number))  # noqa: S311 - a name, not a secret
