"""Vast.ai: what we ask of it, in its search language, with its labels and at its pace.

What this file hides: paths and paging. What its replies mean, errors among them, is in
`replies.py`, what a search asks in `search.py`, what a rent sends in `order.py`, and what makes a
listing complete in `listing.py`. `docs/reference/vastai.md` holds the wire contract and the source
of each fact.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from decimal import Decimal
from typing import Any, ClassVar, Final

from gp4u.clock import Clock
from gp4u.errors import InstanceAbsent, Malformed, OutcomeUnknown, Refused, Unavailable
from gp4u.model import Listing, Offer, RentalKey, Workload
from gp4u.providers import bootstrap
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
from gp4u.providers.http import Http, decode
from gp4u.providers.session import Link, Session
from gp4u.providers.ssh import Address, Ssh
from gp4u.providers.turns import good_in_turns, in_turns
from gp4u.providers.vastai.listing import ListWalk
from gp4u.providers.vastai.order import rent_body
from gp4u.providers.vastai.replies import (
    SLUG,
    ChargesReply,
    ErrorBody,
    ListedOffer,
    ListReply,
    RentReply,
    UserReply,
    Way,
    id_text,
    offer_rows,
    to_offer,
    way_in,
)
from gp4u.providers.vastai.search import PAGE_OFFERS, groups, narrow, search_body, sold_names
from gp4u.resilience.bucket import Pace

SPEC: Final = ProviderSpec(
    slug=SLUG,
    title="Vast.ai",
    env="VASTAI",
    base_url="https://console.vast.ai/api/v0",
    rate_limit_per_min=100,
    key_url="https://cloud.vast.ai/manage-keys/",
    key_aliases=("VAST_API_KEY",),
    settle_s=30,
    late_window_s=120,
    bill_lag_s=48 * 3600,  # charges come hours late; a day's row is whole on the next day
    # Source: `x-rate-limit` in the vendor's API description, 2026-08 (vastai.md 2.5).
    paces={
        "offers": Pace(calls=10, per_s=60),
        "rent": Pace(per_s=4.5, penalty_s=12),
        "instances": Pace(per_s=1.0),
        "release": Pace(per_s=3.0),
        "logs": Pace(per_s=1.0),
        "billed": Pace(per_s=1.0),
        "attach": Pace(per_s=1.0),
        "restart": Pace(per_s=1.0),
    },
    can=Ability.LABELS
    | Ability.PORTS
    | Ability.LOGS
    | Ability.COMMAND
    | Ability.INTERRUPTIBLE
    | Ability.BILL
    | Ability.UDP
    | Ability.RAW_PORTS
    | Ability.MANY_PORTS
    | Ability.SHELL
    | Ability.FORWARD
    | Ability.FILES
    | Ability.ENTRYPOINT
    | Ability.REGISTRY_LOGIN
    | Ability.RESTART,
)

MAX_PAGES: Final = 3
PAGE_INSTANCES: Final = 25
MAX_LIST_PAGES: Final = 400
PAGE_CHARGES: Final = 100
MAX_CHARGE_PAGES: Final = 20
CHARGES_DAYS: Final = 366


class VastAI(Provider):
    """One Vast.ai account."""

    spec: ClassVar[ProviderSpec] = SPEC

    def __init__(
        self, http: Http, *, base_url: str, clock: Clock, ssh: Ssh, rent_timeout_s: float = 60.0
    ) -> None:
        """`base_url` may end in a version of the API; both versions are spoken."""
        self._http, self._clock, self._ssh = http, clock, ssh
        self._attached: set[str] = set()
        self._rent_timeout_s = rent_timeout_s
        root, versioned = re.subn(r"/v\d+$", "", base_url.rstrip("/"))
        root = root if versioned else f"{root}/api"
        self._v0, self._v1 = f"{root}/v0", f"{root}/v1"

    async def ping(self) -> Account:
        body = await self._get("ping", f"{self._v0}/users/current")
        user = decode(SLUG, "ping", body, UserReply)
        return Account(
            id=str(user.id or ""),
            name=user.email or user.username or str(user.id or ""),
            credit_usd=user.credit,
        )

    async def offers(self, query: Query) -> OfferPage:
        """Search per wanted model, cheapest first, in pages by price; then once with every bound.

        The market shows 64 rows a search and has no cursor. The wide search (what the demand is
        about) feeds the explanation; where it was cut off, the narrow one finds what fits.
        """
        wanted = query.requirements
        found: dict[int, ListedOffer] = {}
        skipped, complete = 0, True
        asked = groups(wanted.gpu_models)
        for models in asked:
            names = sold_names(models)
            if models and not names:
                continue  # not sold here; without names the search would be for any GPU
            body = search_body(wanted, names)
            bad, cut_off = await self._walk(
                body, found, MAX_PAGES if len(asked) == 1 else 1, wanted.max_price_usd_per_hour
            )
            skipped += bad
            if cut_off:
                bad, cut_off = await self._walk(narrow(body, wanted), found, 1, None)
                skipped += bad
                complete = complete and not cut_off
        at = self._clock.now()
        offers = await in_turns(to_offer(row, wanted, at) for row in found.values())
        good = tuple(offer for offer in offers if offer is not None)
        return OfferPage(
            offers=good, complete=complete, skipped_rows=skipped + len(offers) - len(good)
        )

    def rent_calls(self, offer: Offer, workload: Workload, key: RentalKey) -> tuple[Call, ...]:
        """Return the one call that rents.

        Raises:
            BadInput: the market cannot take this workload.
        """
        fit(SPEC, offer, workload)
        url = f"{self._v0}/asks/{offer.offer_id}/"
        return (Call(method="PUT", url=url, body=rent_body(offer, workload, key)),)

    async def rent(
        self, offer: Offer, workload: Workload, key: RentalKey, *, choose: Choose | None = None
    ) -> str:
        del choose
        (call,) = self.rent_calls(offer, workload, key)
        try:
            body = await self._http.send("rent", call, safe=False, timeout_s=self._rent_timeout_s)
            instance = id_text(decode(SLUG, "rent", body, RentReply).new_contract)
        except Unavailable as error:
            if not error.sent:
                raise
            raise OutcomeUnknown(SLUG, "rent", error.detail, key=key) from error
        except Malformed as error:
            # Its text would quote a reply that may hold the key of an instance.
            raise OutcomeUnknown(SLUG, "rent", "the reply cannot be read", key=key) from error
        if instance is None:
            raise OutcomeUnknown(SLUG, "rent", "a success without new_contract", key=key)
        return instance

    async def instances(self) -> Listing:
        began_at = self._clock.now()
        walk = ListWalk()
        for _ in range(MAX_LIST_PAGES):
            params = {
                "limit": str(PAGE_INSTANCES),
                "order_by": '[{"col": "id", "dir": "asc"}]',
                "select_filters": "{}",
            }
            if walk.token is not None:
                params["after_token"] = walk.token
            body = await self._get("instances", f"{self._v1}/instances/", params)
            walk.add(decode(SLUG, "instances", body, ListReply))
            if walk.token is None:
                break
        else:
            walk.doubt(f"more than {MAX_LIST_PAGES} pages")
        return walk.listing(began_at=began_at)

    async def release(self, instance_id: str) -> None:
        call = Call(method="DELETE", url=f"{self._v0}/instances/{instance_id}/", body={})
        body = await self._http.send("release", call, safe=True)
        self._ssh.forget(instance_id)
        self._attached.discard(instance_id)
        decode(SLUG, "release", body, ErrorBody)  # a captive portal's page releases nothing

    async def logs(
        self, instance_id: str, *, tail: int = 1000, container: str | None = None
    ) -> str:
        only_one(SPEC, "logs", container)
        call = Call(
            method="PUT",
            url=f"{self._v0}/instances/request_logs/{instance_id}/",
            body={"tail": str(tail)},
        )
        body = await self._http.send("logs", call, safe=True)
        url = decode(SLUG, "logs", body, dict[str, Any]).get("result_url")
        return await self._http.fetch_result(url) if isinstance(url, str) and url else ""

    async def open_exec(
        self,
        instance_id: str,
        key: RentalKey,
        command: Sequence[str],
        *,
        tty: bool,
        container: str | None = None,
    ) -> Session:
        only_one(SPEC, "exec", container)
        addresses = await self._entry("exec", instance_id, key)
        line = bootstrap.inside(command)
        return await self._ssh.session(instance_id, key, addresses, line, tty=tty)

    async def open_port(self, instance_id: str, key: RentalKey, port: int) -> Link:
        addresses = await self._entry("port-forward", instance_id, key)
        return await self._ssh.link(instance_id, key, addresses, port)

    async def restart(self, instance_id: str) -> None:
        """Reboot the container: its GPUs and its disk are kept, and what it runs begins anew."""
        url = f"{self._v0}/instances/reboot/{instance_id}/"
        body = await self._http.send("restart", Call(method="PUT", url=url, body={}), safe=True)
        decode(SLUG, "restart", body, ErrorBody)

    async def billed(self, instance_id: str) -> Decimal | None:
        """Return the sum of its charges of the last year; they lag by hours.

        None where none is listed, or where the account has more charges than we read.
        """
        now = int(self._clock.now().timestamp())
        days = {"gte": now - CHARGES_DAYS * 86_400, "lte": now + 86_400}
        params = {
            "select_filters": json.dumps({"day": days, "type": {"in": ["instance"]}}),
            "latest_first": "true",
            "limit": str(PAGE_CHARGES),
            "format": "table",
        }
        amounts: list[Decimal] = []
        for _ in range(MAX_CHARGE_PAGES):
            body = await self._get("billed", f"{self._v0}/charges/", params)
            page = decode(SLUG, "billed", body, ChargesReply)
            amounts += [
                row.amount
                for row in page.results
                if row.source == f"instance-{instance_id}" and row.amount is not None
            ]
            if page.next_token is None or not page.results:
                bill = sum(amounts, Decimal(0))
                return bill if amounts and bill.is_finite() else None
            params = params | {"after_token": page.next_token}
        return None

    async def aclose(self) -> None:
        await self._ssh.aclose()
        await self._http.aclose()

    async def _entry(self, operation: str, instance_id: str, key: RentalKey) -> tuple[Address, ...]:
        """Return where an instance's SSH is, with our key attached; empty where it is open."""
        if self._ssh.is_open(instance_id):
            return ()
        client = self._ssh.client_key(key)
        way = await self._way(operation, instance_id)
        if not way.has_shell:
            text = "it was rented without a shell, as its image's entrypoint was not known"
            raise Refused(SLUG, operation, text, code="no_shell")
        if not way.addresses:
            raise Unavailable(SLUG, operation, "it is not up, or its host forwards no port")
        if instance_id not in self._attached:
            call = Call(
                method="POST",
                url=f"{self._v0}/instances/{instance_id}/ssh/",
                body={"ssh_key": client.public},
            )
            with suppress(Refused):  # attached in an earlier life: whether it is, the machine tells
                await self._http.send("attach", call, safe=True)
                self._attached.add(instance_id)
        return way.addresses

    async def _way(self, operation: str, instance_id: str) -> Way:
        """Read one row of the list: asked for alone an instance was seen to lack its ports."""
        if id_text(instance_id) != instance_id:
            raise InstanceAbsent(SLUG, operation, "an id is a number")
        params = {
            "limit": "1",
            "select_filters": json.dumps({"id": {"eq": int(instance_id)}}),
        }
        body = await self._get("instances", f"{self._v1}/instances/", params)
        for row in decode(SLUG, "instances", body, ListReply).instances:
            if isinstance(row, Mapping) and id_text(row.get("id")) == instance_id:
                return way_in(row)
        raise InstanceAbsent(SLUG, operation, f"no instance {instance_id}")

    async def _get(
        self, operation: str, url: str, params: Mapping[str, str] | None = None
    ) -> bytes:
        call = Call(method="GET", url=url)
        return await self._http.send(operation, call, safe=True, params=params)

    async def _walk(
        self,
        body: Mapping[str, object],
        found: dict[int, ListedOffer],
        pages: int,
        enough_usd: Decimal | None,
    ) -> tuple[int, bool]:
        """Add up to `pages` pages of a search, by rising price, to `found`.

        Stops where only prices over `enough_usd` can follow. Returns how many rows were bad, and
        whether there may be more that matter.
        """
        skipped = 0
        for _ in range(pages):
            call = Call(method="POST", url=f"{self._v0}/bundles/", body=body)
            rows = offer_rows(await self._http.send("offers", call, safe=True))
            page, bad = await good_in_turns(SLUG, "offers", rows)
            skipped += bad
            known = len(found)
            found.update((row.id, row) for row in page)
            if len(page) + bad < PAGE_OFFERS:
                return skipped, False
            prices = [
                r.dph_total for r in page if r.dph_total is not None and r.dph_total.is_finite()
            ]
            if not prices or len(found) == known:
                break
            dearest = max(prices)
            if enough_usd is not None and dearest > enough_usd:
                return skipped, False
            body = {**body, "dph_total": {"gte": float(dearest)}}
        return skipped, True
