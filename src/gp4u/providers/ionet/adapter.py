"""io.net: containers and virtual machines in prepaid hours, found again by their unique name.

What this file hides: two products with one account, their paths and page numbers, and that one look
at what we hold takes several calls. Bodies are written in `order.py`; replies are read in
`hardware.py` (what is sold), `held.py` (what we hold) and `judge.py` (errors). `holdings.py` looks
at what we hold, `legacy.py` speaks the seed's older dialect. `docs/reference/ionet.md` holds the
wire contract and the source of each fact.

A container publishes exactly one HTTP port, under a URL. A virtual machine publishes several, at an
address, but runs no container image by itself, and nothing here logs into it to start one: it is
rented only for who asks for a bare machine by the image `vm:general` or `vm:datascience`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import ClassVar, Final, TypeVar

import msgspec

from gp4u.clock import Clock
from gp4u.errors import (
    InstanceAbsent,
    Malformed,
    OfferGone,
    OutcomeUnknown,
    ProviderError,
    Refused,
    Unavailable,
)
from gp4u.model import Listing, Offer, RentalKey, Workload
from gp4u.providers.contract import (
    Ability,
    Account,
    Call,
    Choose,
    OfferPage,
    Provider,
    ProviderSpec,
    Query,
    fit,
    only_one,
)
from gp4u.providers.http import Http
from gp4u.providers.ionet import hardware, held, order
from gp4u.providers.ionet.holdings import FIRST_PAGE, Holdings
from gp4u.providers.ionet.order import SLUG, Product
from gp4u.providers.ionet.stream import log_text
from gp4u.providers.ionet.wire import made_id, own_id, read
from gp4u.providers.turns import PIECE, Pieces, good_in_turns, in_turns, settled

T = TypeVar("T")

_CAN: Final = Ability.LABELS | Ability.PORTS | Ability.PREPAID | Ability.BILL
_VM_CAN: Final = _CAN | Ability.RAW_PORTS | Ability.MANY_PORTS | Ability.UDP
SPEC: Final = ProviderSpec(
    slug=SLUG,
    title="io.net",
    env="IONET",
    base_url="https://api.io.solutions/enterprise/v1/io-cloud",
    rate_limit_per_min=150,
    key_url="https://io.net/docs/reference/caas/get-started-with-caas-api",
    settle_s=30,
    late_window_s=120,
    can=_CAN | Ability.LOGS | Ability.COMMAND | Ability.ENTRYPOINT | Ability.REGISTRY_LOGIN,
)

RENT_TIMEOUT_S: Final = 60.0
LOG_QUIET_S: Final = 2.0


class IoNet(Provider):
    """One io.net account, from which containers are rented."""

    spec: ClassVar[ProviderSpec] = SPEC
    sells: ClassVar[Product] = Product.CAAS

    def __init__(
        self,
        http: Http,
        *,
        base_url: str,
        clock: Clock,
        allow_loopback: bool = False,
        lists_all: bool = True,
    ) -> None:
        """`base_url` may end in a product's name.

        `lists_all` says that the account has both products, so that either's list must answer.
        """
        self._http, self._clock = http, clock
        root = base_url.rstrip("/")
        for product in Product:
            root = root.removesuffix(f"/{product}")
        self._root, self._public = root, root.replace("/enterprise/v1/", "/v1/")
        self._held = Holdings(
            http,
            root,
            clock=clock,
            allow_loopback=allow_loopback,
            sure=frozenset(Product) if lists_all else frozenset({self.sells}),
        )

    async def ping(self) -> Account:
        first = {"page": str(FIRST_PAGE[self.sells]), "page_size": "1"}
        body = await self._get("ping", f"{self._root}/{self.sells}/deployments", first)
        read("ping", body, held.HeldPage)
        return Account()

    async def offers(self, query: Query) -> OfferPage:
        """Read the whole list, which is not paged, and what turns its prices into all-in ones.

        Rows of containers do not tell CPU, memory and disk; those of virtual machines of the same
        shape do. Fees are learned from a price call and hold for all rows.
        """
        at = self._clock.now()
        machines = f"{self._root}/{Product.VMAAS}/hardware"
        shapes: Mapping[hardware.ShapeKey, hardware.Shape] = {}
        if self.sells is Product.CAAS:
            body = await self._get("offers", f"{self._public}/{Product.CAAS}/hardware")
            shapes = await self._shapes(machines)
        else:
            body = await self._get("offers", machines)
        found = hardware.hardware_rows("offers", body)
        del body  # or it would be kept beside everything that is made of it
        rows, bad = await good_in_turns(SLUG, "offers", found)
        where = f"{self._public}/{Product.CAAS}/locations"
        numbers = await self._extra("locations", where, hardware.place_numbers) or {}
        terms = hardware.Terms(
            product=self.sells, at=at, places_by=numbers, fee_factor=None, shapes=shapes
        )
        factor = await self._fee_factor(rows, query.requirements.gpu_count, terms)
        terms, count = msgspec.structs.replace(terms, fee_factor=factor), len(rows)
        slices = map(tuple, hardware.slices(rows, terms))
        made = Pieces(await in_turns(settled(slices), piece=1))
        return OfferPage(offers=made, skipped_rows=bad + count - len(made))

    def rent_calls(self, offer: Offer, workload: Workload, key: RentalKey) -> tuple[Call, ...]:
        """Return the call that confirms the price and the one that rents.

        Raises:
            BadInput: the market cannot take this workload.
        """
        sold = order.sold(offer.offer_id)
        # By what is rented, whichever of the two this adapter shows in its own offers.
        can = _VM_CAN if sold.product is Product.VMAAS else SPEC.can
        fit(msgspec.structs.replace(self.spec, can=can), offer, workload)
        create = order.create_call(self._root, sold, workload, key)
        return order.price_call(self._root, sold), create

    async def rent(
        self, offer: Offer, workload: Workload, key: RentalKey, *, choose: Choose | None = None
    ) -> str:
        del choose
        confirm, create = self.rent_calls(offer, workload, key)
        price = read("price", await self._http.send("price", confirm, safe=True), hardware.Priced)
        if (gone := price.refusal(offer)) is not None:
            raise gone
        product = order.sold(offer.offer_id).product
        try:
            body = await self._http.send("rent", create, safe=False, timeout_s=RENT_TIMEOUT_S)
            made = made_id(body)
        except Unavailable as error:
            if not error.sent:
                raise
            raise OutcomeUnknown(SLUG, "rent", error.detail, key=key) from error
        except Malformed as error:
            raise OutcomeUnknown(SLUG, "rent", "the reply cannot be read", key=key) from error
        except Refused as error:
            if error.instance_id is None:
                raise
            own = f"{product}:{error.instance_id}"
            raise Refused(SLUG, "rent", error.detail, code=error.code, instance_id=own) from error
        # Virtual machines are made with an empty reply.
        return f"{product}:{made}" if made is not None else await self._found(product, key)

    async def instances(self) -> Listing:
        return await self._held.listing()

    async def release(self, instance_id: str) -> None:
        call = Call(method="DELETE", url=self._held.url_of(instance_id))
        await self._http.send("release", call, safe=True)

    async def extend(self, instance_id: str) -> None:
        """Buy one more hour. Never repeated: each success adds, and is paid at once."""
        url = f"{self._held.url_of(instance_id)}/extend"
        call = Call(method="POST", url=url, body={"duration_hours": order.BLOCK_HOURS})
        try:
            await self._http.send("extend", call, safe=False)
        except (Unavailable, Malformed) as error:
            if isinstance(error, Unavailable) and not error.sent:
                raise
            why = f"{instance_id}: {error.detail}"
            raise OutcomeUnknown(SLUG, "extend", why, key=RentalKey("")) from error

    async def logs(
        self, instance_id: str, *, tail: int = 1000, container: str | None = None
    ) -> str:
        """Return what the first container printed, errors after the rest."""
        only_one(SPEC, "logs", container)
        if instance_id.startswith(Product.VMAAS):
            raise Refused(SLUG, "logs", "virtual machines have no logs here", code="unsupported")
        found = await self._held.workers(instance_id)
        container = own_id({"id": found[0].container_id}) if found else None
        if container is None:
            return ""
        call = Call(method="GET", url=f"{self._held.url_of(instance_id)}/log/{container}")
        streams = [
            await self._http.collect("logs", call, params={"stream": name}, for_s=LOG_QUIET_S)
            for name in ("stdout", "stderr")
        ]
        return log_text(streams, tail)

    async def billed(self, instance_id: str) -> Decimal | None:
        """Return what was paid for it in advance so far, all its hours together."""
        try:
            body = await self._get("billed", self._held.url_of(instance_id))
        except InstanceAbsent:
            return None
        return read("billed", body, held.Detail).paid_usd

    async def aclose(self) -> None:
        await self._http.aclose()

    async def _get(
        self, operation: str, url: str, params: Mapping[str, str] | None = None
    ) -> bytes:
        return await self._http.send(
            operation, Call(method="GET", url=url), safe=True, params=params
        )

    async def _extra(self, operation: str, url: str, parse: Callable[[str, bytes], T]) -> T | None:
        """Read what makes offers better and is not needed for them; None where there is no such."""
        try:
            return parse(operation, await self._get(operation, url))
        except (Malformed, Refused):
            return None

    async def _shapes(self, url: str) -> Mapping[hardware.ShapeKey, hardware.Shape]:
        """Read what the rows of containers do not tell; nothing where that cannot be read."""
        told: dict[hardware.ShapeKey, hardware.Shape] = {}
        try:
            found = hardware.hardware_rows("shapes", await self._get("shapes", url))
            await good_in_turns(SLUG, "shapes", hardware.with_shapes(found, told))
        except (Malformed, Refused):
            return {}
        return told

    async def _fee_factor(
        self, rows: Sequence[hardware.Hardware], gpu_count: int | None, terms: hardware.Terms
    ) -> Decimal | None:
        """Return all-in price over listed price, asked for a free row; None: cannot be told."""
        best: list[hardware.Hardware] = []
        for start in range(0, len(rows), PIECE):
            best = hardware.likeliest([*best, *rows[start : start + PIECE]], gpu_count)
            await asyncio.sleep(0)  # what else runs in this loop must not wait for all rows
        for sold, listed in hardware.cheapest(best, gpu_count, terms):
            call = order.price_call(self._root, sold)
            try:
                body = await self._http.send("price", call, safe=True)
                usd = read("price", body, hardware.Priced).usd_per_hour
            except (Malformed, Refused, OfferGone):
                continue  # this row is odd; another may tell
            if usd is not None and usd < listed * 2:
                return usd / listed
        return None

    async def _found(self, product: Product, key: RentalKey) -> str:
        """Return the id of what was just made under our key.

        Raises:
            OutcomeUnknown: it does not show yet.
        """
        try:
            found = await self._held.named(product, key)
        except ProviderError as error:
            raise OutcomeUnknown(SLUG, "rent", error.detail, key=key) from error
        if found is None:
            raise OutcomeUnknown(SLUG, "rent", "accepted, and not listed yet", key=key)
        return found


class IoNetVms(IoNet):
    """The same account, from which bare virtual machines are rented."""

    spec: ClassVar[ProviderSpec] = msgspec.structs.replace(SPEC, can=_VM_CAN)
    sells: ClassVar[Product] = Product.VMAAS
