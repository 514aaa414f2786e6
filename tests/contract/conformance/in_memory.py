"""A market and an adapter without any wire: small enough to see that they keep the contract.

`Shop` is the market, `Upright` the adapter, `Upon` puts an adapter to the suite. The sins of
`test_the_suite_bites.py` are `Upright` with one method spoilt.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any, ClassVar

from msgspec.structs import replace

from gp4u.errors import (
    BadInput,
    Denied,
    InstanceAbsent,
    Malformed,
    OfferGone,
    OutcomeUnknown,
    Refused,
    Throttled,
    Unavailable,
)
from gp4u.model import (
    Demand,
    Endpoint,
    Instance,
    InstanceState,
    Listing,
    Offer,
    Port,
    RentalKey,
    Requirements,
    Workload,
)
from gp4u.providers.contract import (
    Ability,
    Account,
    Call,
    Choose,
    Finished,
    OfferPage,
    Provider,
    ProviderSpec,
    Query,
    fit,
    only_one,
)
from gp4u.testing import Act, Held, Market, ProviderContract, Trouble
from tests.virtual_loop import VirtualClock, run

LATE_S = 20.0
SPEC = ProviderSpec(
    slug="shop",
    title="Shop",
    env="SHOP",
    base_url="https://shop.example",
    rate_limit_per_min=60,
    key_url="https://shop.example/keys",
    can=Ability.LABELS
    | Ability.PORTS
    | Ability.LOGS
    | Ability.EXEC
    | Ability.COMMAND
    | Ability.INTERRUPTIBLE
    | Ability.BILL
    | Ability.UDP
    | Ability.RAW_PORTS
    | Ability.MANY_PORTS,
)


class Thing:
    """Something that was rented."""

    def __init__(self, number: int, label: str, ports: Sequence[Port], listed_at: float) -> None:
        self.number, self.label, self.ports, self.listed_at = number, label, ports, listed_at
        self.alive = True


class Shop:
    """The market; what strikes it is said per act."""

    def __init__(self) -> None:
        self.things: list[Thing] = []
        self.struck: dict[Act, Trouble] = {}

    def enter(self, act: Act) -> None:
        """What a call meets on its way there."""
        match self.struck.get(act):
            case Trouble.NO_CONNECTION:
                raise Unavailable("shop", act, "refused", sent=False)
            case Trouble.LOST_BEFORE | Trouble.HANG | Trouble.SERVER_ERROR:
                raise Unavailable("shop", act, "no answer")
            case Trouble.THROTTLED:
                raise Throttled("shop", act, "slowly")
            case Trouble.DENIED:
                raise Denied("shop", act, "who are you")
            case Trouble.OFFER_GONE:
                raise OfferGone("shop", act, "sold")

    def leave(self, act: Act) -> None:
        """What a reply meets on its way back."""
        match self.struck.get(act):
            case Trouble.LOST_REPLY:
                raise Unavailable("shop", act, "connection lost")
            case Trouble.MALFORMED:
                raise Malformed("shop", act, "garbage")

    def make(self, label: str, ports: Sequence[Port]) -> Thing:
        """Rent something out."""
        late = self.struck.get(Act.RENT) is Trouble.LATE_LISTING
        listed_at = asyncio.get_running_loop().time() + (LATE_S if late else 0.0)
        self.things.append(Thing(100 + len(self.things), label, ports, listed_at))
        return self.things[-1]

    def find(self, instance_id: str) -> Thing:
        """Return what is alive under an id."""
        for thing in self.things:
            if thing.alive and str(thing.number) == instance_id:
                return thing
        raise InstanceAbsent("shop", "find", instance_id)

    def shown(self) -> list[Thing]:
        """Return what a list shows now."""
        now = asyncio.get_running_loop().time()
        return [thing for thing in self.things if thing.alive and thing.listed_at <= now]


class Upright(Provider):
    """Keeps the contract."""

    spec: ClassVar[ProviderSpec] = SPEC

    def __init__(self, shop: Shop) -> None:
        self.shop, self.clock = shop, VirtualClock()

    async def ping(self) -> Account:
        self.shop.enter(Act.PING)
        self.shop.leave(Act.PING)
        return Account(credit_usd=Decimal(10))

    async def offers(self, query: Query) -> OfferPage:
        self.shop.enter(Act.OFFERS)
        self.shop.leave(Act.OFFERS)
        bids = query.requirements.interruptible
        return OfferPage(offers=tuple(self.offer(number, bids) for number in range(3)))

    def offer(self, number: int, interruptible: bool) -> Offer:
        """Return one offer of three."""
        return Offer(
            provider=self.spec.slug,
            offer_id=f"o{number}",
            gpu_model="RTX 3090",
            gpu_count=1,
            vram_gib=24,
            price_usd_per_hour=Decimal("0.30") + number,
            gpu_usd_per_hour=Decimal("0.29") + number,
            storage_usd_per_hour=Decimal("0.01"),
            fetched_at=self.clock.now(),
            interruptible=interruptible,
            reliability=0.99,
            disk_gib=500,
            open_ports=10,
            verified=True,
        )

    def rent_calls(self, offer: Offer, workload: Workload, key: RentalKey) -> tuple[Call, ...]:
        fit(self.spec, offer, workload)
        if workload.beside:
            raise BadInput("containers", len(workload.beside) + 1, "one container")
        url = f"{SPEC.base_url}/{offer.offer_id}"
        return (Call(method="POST", url=url, body={"label": key, "image": workload.image}),)

    async def rent(
        self, offer: Offer, workload: Workload, key: RentalKey, *, choose: Choose | None = None
    ) -> str:
        self.rent_calls(offer, workload, key)
        try:
            return self.sent(workload, key)
        except Unavailable as error:
            if not error.sent:
                raise
            raise OutcomeUnknown("shop", "rent", error.detail, key=key) from error
        except Malformed as error:
            raise OutcomeUnknown("shop", "rent", error.detail, key=key) from error

    def sent(self, workload: Workload, key: RentalKey) -> str:
        """One exchange with the market."""
        self.shop.enter(Act.RENT)
        thing = self.shop.make(key, workload.ports)
        self.shop.leave(Act.RENT)
        return str(thing.number)

    async def instances(self) -> Listing:
        began_at = self.clock.now()
        self.shop.enter(Act.INSTANCES)
        self.shop.leave(Act.INSTANCES)
        partial = self.shop.struck.get(Act.INSTANCES) is Trouble.PARTIAL_PAGE
        shown = self.shop.shown()[1 if partial else 0 :]
        return Listing(
            provider=self.spec.slug,
            instances=tuple(self.instance(thing) for thing in shown),
            complete=not partial,
            began_at=began_at,
            why_incomplete="shorter than it says" if partial else "",
        )

    def instance(self, thing: Thing) -> Instance:
        """Return one row of the list."""
        return Instance(
            provider=self.spec.slug,
            instance_id=str(thing.number),
            label=thing.label,
            state=InstanceState.RUNNING,
            endpoints=tuple(
                Endpoint(container_port=port.number, host="192.0.2.1", port=40_000 + port.number)
                for port in thing.ports
            ),
        )

    async def release(self, instance_id: str) -> None:
        self.shop.enter(Act.RELEASE)
        self.shop.find(instance_id).alive = False
        self.shop.leave(Act.RELEASE)

    async def logs(
        self, instance_id: str, *, tail: int = 1000, container: str | None = None
    ) -> str:
        only_one(self.spec, "logs", container)
        self.shop.enter(Act.LOGS)
        self.shop.find(instance_id)
        self.shop.leave(Act.LOGS)
        return "".join(f"line {number}\n" for number in range(min(tail, 9)))

    async def exec(
        self,
        instance_id: str,
        command: Sequence[str],
        *,
        stdin: bytes = b"",
        timeout_s: float = 60,
        container: str | None = None,
    ) -> Finished:
        self.shop.find(instance_id)
        return Finished(exit_code=0)

    async def billed(self, instance_id: str) -> Decimal | None:
        return Decimal("0.02")


class QuoteOnly(Upright):
    """Cannot list what it rents, so it does not."""

    spec: ClassVar[ProviderSpec] = replace(SPEC, can=Ability.INTERRUPTIBLE)

    async def rent(
        self, offer: Offer, workload: Workload, key: RentalKey, *, choose: Choose | None = None
    ) -> str:
        raise Refused("shop", "rent", "quoted only", code="unsupported")

    async def instances(self) -> Listing:
        return Listing(
            provider="shop",
            instances=(),
            complete=False,
            began_at=self.clock.now(),
            why_incomplete="cannot list",
        )

    async def release(self, instance_id: str) -> None:
        raise Refused("shop", "release", instance_id, code="unsupported")

    async def logs(
        self, instance_id: str, *, tail: int = 1000, container: str | None = None
    ) -> str:
        raise Refused("shop", "logs", instance_id, code="unsupported")

    async def exec(
        self,
        instance_id: str,
        command: Sequence[str],
        *,
        stdin: bytes = b"",
        timeout_s: float = 60,
        container: str | None = None,
    ) -> Finished:
        raise Refused("shop", "exec", instance_id, code="unsupported")

    async def billed(self, instance_id: str) -> Decimal | None:
        return None


class Unlabelled(Upright):
    """Rents, and its list says nothing of keys."""

    spec: ClassVar[ProviderSpec] = replace(SPEC, can=SPEC.can & ~Ability.LABELS)

    def instance(self, thing: Thing) -> Instance:
        return replace(super().instance(thing), label=None)


class Auctioneer(Upright):
    """Asks which bid to take."""

    spec: ClassVar[ProviderSpec] = replace(SPEC, can=SPEC.can | Ability.AUCTION)

    async def rent(
        self, offer: Offer, workload: Workload, key: RentalKey, *, choose: Choose | None = None
    ) -> str:
        self.rent_calls(offer, workload, key)
        if choose is not None and choose([offer]) is None:
            raise OfferGone("shop", "rent", "no bid will do")
        return await super().rent(offer, workload, key)


class Stall:
    """An adapter and the shop behind it."""

    def __init__(self, adapter: type[Upright]) -> None:
        self.shop = Shop()
        self.provider = adapter(self.shop)

    def strike(self, trouble: Trouble, act: Act) -> None:
        self.shop.struck[act] = trouble

    def heal(self) -> None:
        self.shop.struck.clear()

    async def truth(self) -> Sequence[Held]:
        return [Held(thing.label, thing.alive) for thing in self.shop.things]


class Upon(ProviderContract):
    """The suite over an adapter of this file."""

    adapter: ClassVar[type[Upright]]
    demand: ClassVar[Demand] = Demand(requirements=Requirements(gpu_models=("RTX 3090",), ports=1))
    workload: ClassVar[Workload] = Workload(image="busybox", ports=(Port(number=8000),))
    patience_s: ClassVar[float] = 60.0

    @asynccontextmanager
    async def market(self) -> AsyncIterator[Market]:
        yield Stall(self.adapter)

    def run(self, scenario: Coroutine[Any, Any, None]) -> None:
        run(scenario)
