"""Vast.ai: what we ask of it, in its search language, with its labels and at its pace.

What this file hides: paths, request bodies, paging. What its replies mean, errors among them, is in
`vastai_replies.py`. `docs/reference/vastai.md` holds the wire contract and the source of each fact.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any, ClassVar, Final

from gp4u import gpus, places
from gp4u.clock import Clock
from gp4u.errors import BadInput, Malformed, OutcomeUnknown, Unavailable
from gp4u.model import Instance, Listing, Offer, Protocol, RentalKey, Requirements, Workload
from gp4u.providers.contract import (
    Ability,
    Account,
    Call,
    OfferPage,
    Provider,
    ProviderSpec,
    Query,
)
from gp4u.providers.http import Http, decode
from gp4u.providers.vastai_replies import (
    MIN_DISK_GB,
    SLUG,
    ChargesReply,
    ErrorBody,
    ListedOffer,
    ListReply,
    RentReply,
    UserReply,
    id_text,
    parse_offers,
    to_instance,
    to_offer,
)
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
    },
    can=Ability.LABELS
    | Ability.PORTS
    | Ability.LOGS
    | Ability.COMMAND
    | Ability.INTERRUPTIBLE
    | Ability.BILL,
)

PAGE_OFFERS: Final = 64
"""Rows one search answers at most, whatever is asked (vastai.md 3.2, seen live 2026-09)."""
MAX_PAGES: Final = 3
MAX_GROUPS: Final = 3
PAGE_INSTANCES: Final = 25
MAX_LIST_PAGES: Final = 400
PAGE_CHARGES: Final = 100
MAX_CHARGE_PAGES: Final = 20
CHARGES_DAYS: Final = 366
LEAST_REPORTED: Final = 0.93
"""A driver reports down to this share of the memory that is sold: 23,034 MB of 24 GiB."""
MAX_IMAGE: Final = 1024
MAX_ENV_CHARS: Final = 32_768
MAX_ENV_ITEM: Final = 256
MAX_ARGS_CHARS: Final = 4096
MAX_PORTS: Final = 64


class VastAI(Provider):
    """One Vast.ai account."""

    spec: ClassVar[ProviderSpec] = SPEC

    def __init__(
        self, http: Http, *, base_url: str, clock: Clock, rent_timeout_s: float = 60.0
    ) -> None:
        """`base_url` may end in a version of the API; both versions are spoken."""
        self._http, self._clock = http, clock
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
        groups = _groups(wanted.gpu_models)
        for models in groups:
            names = _sold_names(models)
            if models and not names:
                continue  # not sold here; without names the search would be for any GPU
            body = search_body(wanted, names)
            bad, cut_off = await self._walk(
                body, found, MAX_PAGES if len(groups) == 1 else 1, wanted.max_price_usd_per_hour
            )
            skipped += bad
            if cut_off:
                bad, cut_off = await self._walk(narrow(body, wanted), found, 1, None)
                skipped += bad
                complete = complete and not cut_off
        at = self._clock.now()
        offers = [to_offer(row, wanted, at) for row in found.values()]
        good = tuple(offer for offer in offers if offer is not None)
        return OfferPage(
            offers=good, complete=complete, skipped_rows=skipped + len(offers) - len(good)
        )

    def rent_calls(self, offer: Offer, workload: Workload, key: RentalKey) -> tuple[Call, ...]:
        """Return the one call that rents.

        Raises:
            BadInput: the market cannot take this workload.
        """
        url = f"{self._v0}/asks/{offer.offer_id}/"
        return (Call(method="PUT", url=url, body=rent_body(offer, workload, key)),)

    async def rent(self, offer: Offer, workload: Workload, key: RentalKey) -> str:
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
        walk = _ListWalk()
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
        decode(SLUG, "release", body, ErrorBody)  # a captive portal's page releases nothing

    async def logs(self, instance_id: str, *, tail: int = 1000) -> str:
        call = Call(
            method="PUT",
            url=f"{self._v0}/instances/request_logs/{instance_id}/",
            body={"tail": str(tail)},
        )
        body = await self._http.send("logs", call, safe=True)
        url = decode(SLUG, "logs", body, dict[str, Any]).get("result_url")
        return await self._http.fetch_result(url) if isinstance(url, str) and url else ""

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
        await self._http.aclose()

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
            page, bad = parse_offers(await self._http.send("offers", call, safe=True))
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


class _ListWalk:
    """Gathers the pages of one listing, and whatever speaks against its being complete."""

    def __init__(self) -> None:
        self.token: str | None = None
        """Where the next page begins; None: this was the last."""
        self._found: dict[str, Instance] = {}
        self._tokens: set[str] = set()
        self._total: int | None = None
        self._why = ""

    def doubt(self, why: str) -> None:
        """Note why the listing cannot prove absence; the first reason stays."""
        self._why = self._why or why

    def add(self, page: ListReply) -> None:
        """Take in a page."""
        if page.instances_found not in (None, len(page.instances)):
            self.doubt("a page is shorter than it says")
        if None not in (self._total, page.total_instances) and self._total != page.total_instances:
            self.doubt("the total changed while paging")
        self._total = self._total if page.total_instances is None else page.total_instances
        for row in page.instances:
            instance = to_instance(row)
            if instance is None:
                self.doubt("a row without an id")
            else:
                self._found[instance.instance_id] = instance  # of two rows, the newer page's
        self.token = page.next_token
        if self.token is not None and (self.token in self._tokens or not page.instances):
            self.doubt("the cursor leads nowhere")
            self.token = None
        elif self.token is not None:
            self._tokens.add(self.token)

    def listing(self, *, began_at: datetime) -> Listing:
        """Return what was seen."""
        if self._total not in (None, len(self._found)):
            self.doubt(f"{len(self._found)} instances shown of {self._total}")
        return Listing(
            provider=SLUG,
            instances=tuple(self._found.values()),
            complete=not self._why,
            began_at=began_at,
            why_incomplete=self._why,
        )


def _groups(models: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Return the models by search: one each while the budget of calls allows, the rest together."""
    if not models:
        return [()]
    if len(models) <= MAX_GROUPS:
        return [(model,) for model in models]
    head = [(model,) for model in models[: MAX_GROUPS - 1]]
    return [*head, models[MAX_GROUPS - 1 :]]


def _sold_names(models: Iterable[str]) -> list[str]:
    return sorted({name for model in models for name in gpus.sold_names(model)})


def search_body(wanted: Requirements, names: Iterable[str]) -> dict[str, object]:
    """Return the wide search: what the demand is about, without its bounds.

    `names` are GPU names as the market spells them; none: any GPU.
    """
    body: dict[str, object] = {
        "rentable": {"eq": True},
        "rented": {"eq": False},
        "external": {"eq": False},
        "num_gpus": {"eq": wanted.gpu_count},
        "order": [["dph_total", "asc"]],
        "type": "bid" if wanted.interruptible else "on-demand",
        "limit": PAGE_OFFERS,
        "allocated_storage": float(max(wanted.disk_gib, MIN_DISK_GB)),
    }
    if wanted.verified_only:
        body["verified"] = {"eq": True}
    if names:
        body["gpu_name"] = {"in": list(names)}
    return body


def narrow(body: Mapping[str, object], wanted: Requirements) -> dict[str, object]:
    """Return the search with every bound that the market can apply. Each hit is checked again."""
    bounds: dict[str, object] = {
        "disk_space": {"gte": float(max(wanted.disk_gib, MIN_DISK_GB))},
    }
    if wanted.max_price_usd_per_hour is not None:
        bounds["dph_total"] = {"lte": float(wanted.max_price_usd_per_hour)}
    if wanted.min_vram_gib is not None:
        bounds["gpu_ram"] = {"gte": round(wanted.min_vram_gib * 1024 * LEAST_REPORTED)}
    if wanted.min_reliability is not None:
        bounds["reliability"] = {"gte": wanted.min_reliability}
    if wanted.min_download_mbps is not None:
        bounds["inet_down"] = {"gte": wanted.min_download_mbps}
    if wanted.min_cpus is not None:
        bounds["cpu_cores_effective"] = {"gte": wanted.min_cpus}
    if wanted.min_ram_gib is not None:
        # The machine's; our share of it is smaller, and is told apart here.
        bounds["cpu_ram"] = {"gte": int(wanted.min_ram_gib * 1024)}
    if wanted.ports:
        bounds["direct_port_count"] = {"gte": wanted.ports}
    if wanted.locations:
        bounds["geolocation"] = {"in": list(places.countries(wanted.locations))}
    return {**body, **bounds}


def rent_body(offer: Offer, workload: Workload, key: RentalKey) -> dict[str, object]:
    """Return the body of the create call.

    Raises:
        BadInput: the market cannot take this workload; nothing was sent.
    """
    if len(workload.image) > MAX_IMAGE:
        raise BadInput("image", workload.image[:40], f"Vast.ai takes {MAX_IMAGE} characters")
    if sum(map(len, workload.command)) > MAX_ARGS_CHARS:
        raise BadInput("command", "...", f"Vast.ai takes {MAX_ARGS_CHARS} characters in all")
    body: dict[str, object] = {
        "client_id": "me",
        "image": workload.image,
        "env": _env(workload),
        "price": None,
        "disk": float(max(workload.disk_gib, MIN_DISK_GB)),
        "label": key,
        "runtype": "args",  # keeps the image's entrypoint; no ssh, no onstart
        "cancel_unavail": True,
        "target_state": "running",
    }
    if offer.interruptible:
        # Without a price a bid search rents on demand, at the on-demand price.
        body["price"] = float(offer.gpu_usd_per_hour)
    if workload.command:
        body["args"] = list(workload.command)
    return body


def _env(workload: Workload) -> dict[str, str]:
    """Return variables and ports in one: a key that starts with a dash is a flag of Docker's."""
    for name, value in workload.env.items():
        if not name or name.startswith("-"):
            raise BadInput("env", name, "a variable's name must not be empty or start with a dash")
        if len(name) > MAX_ENV_ITEM or len(value) > MAX_ENV_ITEM:
            raise BadInput("env", name[:40], f"Vast.ai takes {MAX_ENV_ITEM} characters each")
    if len(workload.ports) > MAX_PORTS:
        raise BadInput("port", len(workload.ports), f"Vast.ai forwards at most {MAX_PORTS} ports")
    env = dict(workload.env)
    for port in workload.ports:
        suffix = "" if port.protocol is Protocol.TCP else f"/{port.protocol}"
        env[f"-p {port.number}:{port.number}{suffix}"] = "1"
    if sum(len(name) + len(value) for name, value in env.items()) > MAX_ENV_CHARS:
        raise BadInput("env", f"{len(env)} variables", f"Vast.ai takes {MAX_ENV_CHARS} characters")
    return env
