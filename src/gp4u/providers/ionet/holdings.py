"""One look at what an io.net account holds: two lists in pages, then each running thing of ours.

Hides that a look takes several calls, on which of them it may fail as a whole, and which it does
not repeat. What a page and a row mean is in `held.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from gp4u.clock import Clock
from gp4u.errors import BadInput, Denied, InstanceAbsent, Malformed, Refused, Unavailable
from gp4u.model import Instance, InstanceState, Listing, RentalKey
from gp4u.providers.contract import Call
from gp4u.providers.http import Http
from gp4u.providers.ionet import held
from gp4u.providers.ionet.order import Product
from gp4u.providers.ionet.wire import own_id, read

PAGE: Final = 100
MAX_PAGES: Final = 100
FIRST_PAGE: Final = {Product.CAAS: 0, Product.VMAAS: 1}


class Holdings:
    """Reads what is held."""

    def __init__(
        self,
        http: Http,
        root: str,
        *,
        clock: Clock,
        allow_loopback: bool,
        sure: frozenset[Product],
    ) -> None:
        """`sure` names the products that this account has, so that their lists must answer."""
        self._http, self._root, self._clock = http, root, clock
        self._allow_loopback, self._sure, self._lists = allow_loopback, sure, list(Product)
        self._details: dict[str, held.Detail] = {}
        """What an order fixed for good, its port and price, of the instances listed last."""

    async def listing(self) -> Listing:
        """List both products, whichever is rented from: either may hold what we pay for.

        The list of a product that this account need not have may refuse, until it has once answered
        or shown anything; it is not asked again then.
        """
        began_at = self._clock.now()
        walk = held.Walk()
        for product in tuple(self._lists):
            try:
                await self._walk(product, walk)
            except (Denied, Malformed, Refused):
                if product in self._sure or walk.has(product):
                    raise
                self._lists.remove(product)
            else:
                self._sure |= {product}
        found = [
            await self._looked_at(held.to_instance(row, product, own, at=began_at))
            for (product, own), row in walk.rows.items()
            if not held.is_over(row)
        ]
        listed = {instance.instance_id for instance in found}
        self._details = {own: each for own, each in self._details.items() if own in listed}
        return walk.listing(found, began_at=began_at)

    async def named(self, product: Product, key: RentalKey) -> str | None:
        """Return the instance id of what was made under a key; None where it does not show."""
        walk = held.Walk()
        await self._walk(product, walk)
        for (_, own), row in walk.rows.items():
            if row.get("name") == key and not held.is_over(row):
                return f"{product}:{own}"
        return None

    async def workers(self, instance_id: str) -> list[held.Worker]:
        """Return the containers or machines of an instance, one as we order them.

        Raises:
            InstanceAbsent: there is no such instance.
            BadInput: it is no id of an instance.
        """
        of_vm = instance_id.startswith(Product.VMAAS)
        url = f"{self.url_of(instance_id)}/{'vms' if of_vm else 'containers'}"
        params = {"page": str(FIRST_PAGE[Product.VMAAS]), "page_size": "20"} if of_vm else None
        return read("workers", await self._get("workers", url, params), held.Workers).workers

    def url_of(self, instance_id: str) -> str:
        """Return where an instance is told about, changed and ended.

        Raises:
            BadInput: it is no id of an instance.
        """
        product, _, own = instance_id.partition(":")
        if product not in list(Product) or own_id({"id": own}) is None:
            raise BadInput("instance", instance_id, "io.net instances read like caas:<id>")
        return f"{self._root}/{product}/deployment/{own}"

    async def _walk(self, product: Product, walk: held.Walk) -> None:
        url, first = f"{self._root}/{product}/deployments", FIRST_PAGE[product]
        for number in range(first, first + MAX_PAGES):
            params = {"page": str(number), "page_size": str(PAGE)}
            page = read("instances", await self._get("instances", url, params), held.HeldPage)
            new = walk.add(product, page)
            if not new or (len(page.held) < PAGE and not walk.may_go_on(product)):
                return walk.end(product)
        return walk.doubt(f"more than {MAX_PAGES} pages")

    async def _looked_at(self, instance: Instance) -> Instance:
        """Add what only further calls tell, where it is ours and runs."""
        ours = (instance.label or "").startswith(held.OUR_PREFIX)
        if not ours or instance.state is not InstanceState.RUNNING:
            return instance
        near, own = self._allow_loopback, instance.instance_id
        try:
            found = await self.workers(own)
            if own.startswith(Product.VMAAS):
                return held.with_addresses(instance, found, allow_loopback=near)
            if own not in self._details:
                body = await self._get("detail", self.url_of(own))
                self._details[own] = read("detail", body, held.Detail)
            return held.with_url(instance, found, self._details[own], allow_loopback=near)
        except (InstanceAbsent, Malformed, Refused, Unavailable):
            # It ended between the calls, or cannot be read: a row all the same, which holds back
            # nothing that concerns the others, such as the purchase of their next hour.
            return msgspec.structs.replace(instance, state=InstanceState.UNKNOWN)

    async def _get(
        self, operation: str, url: str, params: Mapping[str, str] | None = None
    ) -> bytes:
        call = Call(method="GET", url=url)
        return await self._http.send(operation, call, safe=True, params=params)
