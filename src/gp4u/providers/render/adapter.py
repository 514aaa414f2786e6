"""Render's compute market, Dispersed: what we ask of it, and the limits of what it can be asked.

What this file hides: paths, paging, deadlines. What a job asks for is in `job.py`, what replies
mean in `offers.py` and `wire.py`, how a call is signed in `signing.py`. The flavour `legacy`, a
proposed API that no service is known to speak, is `legacy.py`; `flavor_of` says which of the two an
account gets.

Limits of this market, all told before money: the image's own entrypoint runs and takes no command;
only TCP ports; no digest in an image; one container. Its offers describe capacity and cannot be
booked: a job states minimums, and a larger node than wanted may be given and charged as a whole.
`docs/reference/render.md` holds the wire contract and the source of each fact.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import ClassVar, Final
from urllib.parse import quote, urlsplit

from gp4u.clock import Clock
from gp4u.errors import Malformed, OutcomeUnknown, Refused, Unavailable
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
from gp4u.providers.render.job import EVERYBODY, job_body
from gp4u.providers.render.offers import ListedOffer, to_offers
from gp4u.providers.render.paging import Walk, parse_one, parse_page, settled
from gp4u.providers.render.wire import (
    ACTIVE,
    ENDED,
    PLACED,
    SLUG,
    Job,
    Run,
    newest,
    status_of,
    to_instance,
)
from gp4u.providers.turns import in_turns

SEED_URL: Final = "https://api.render.network/v1"
"""Default of `RENDER_BASE_URL`; it appears in no document of the market's."""
DISPERSED_URL: Final = "https://api.dispersed.com"
_DISPERSED_HOSTS: Final = ("dispersed.com", "compute.x.io")

SPEC: Final = ProviderSpec(
    slug=SLUG,
    title="Render (Dispersed)",
    env="RENDER",
    base_url=SEED_URL,
    rate_limit_per_min=100,
    key_url="https://console.dispersed.com",
    key_aliases=("RENDER_PUBLIC_KEY",),
    settle_s=60,  # a lost create is to be sought for a minute (render.md, idempotency)
    late_window_s=120,
    can=Ability.LABELS
    | Ability.PORTS
    | Ability.LOGS
    | Ability.RAW_PORTS
    | Ability.MANY_PORTS
    | Ability.REGISTRY_LOGIN,
)

PAGE: Final = 50
"""Rows of a page at most."""
MAX_OFFER_PAGES: Final = 20
MAX_LIST_PAGES: Final = 100
READ_TIMEOUT_S: Final = 20.0
"""The control plane can stall a connection while a fresh one is served at once."""


def flavor_of(chosen: str, *, base_url: str, has_secret: bool) -> str:
    """Return `dispersed` or `legacy` for the value of `RENDER_API_FLAVOR`.

    `auto` means Dispersed where both keys are set or the address is its own, else `legacy`.
    """
    if chosen != "auto":
        return chosen
    host = urlsplit(base_url).hostname or ""
    own = any(host == name or host.endswith(f".{name}") for name in _DISPERSED_HOSTS)
    return "dispersed" if has_secret or own else "legacy"


def dispersed_url(base_url: str) -> str:
    """Return where Dispersed is: as configured, but never at the seed's default address."""
    return DISPERSED_URL if base_url == SEED_URL else re.sub(r"/v1/?$", "", base_url).rstrip("/")


class Render(Provider):
    """One account of Dispersed; every attempt of every call is signed by `http`."""

    spec: ClassVar[ProviderSpec] = SPEC

    def __init__(
        self,
        http: Http,
        *,
        base_url: str,
        clock: Clock,
        rent_timeout_s: float = 60.0,
        read_timeout_s: float = READ_TIMEOUT_S,
        allowed_ips: Sequence[str] = EVERYBODY,
    ) -> None:
        """`allowed_ips` are the CIDR ranges that may reach what runs."""
        self._http, self._clock = http, clock
        self._rent_timeout_s = rent_timeout_s
        self._read_timeout_s = min(read_timeout_s, READ_TIMEOUT_S)
        self._v1 = f"{dispersed_url(base_url)}/v1"
        self._allowed_ips = tuple(allowed_ips)

    async def ping(self) -> Account:
        """Read one job; the market tells neither whose key it is nor what is left on it."""
        parse_page(SLUG, "ping", await self._get("ping", "jobs", {"limit": "1"}), Job)
        return Account()

    async def offers(self, query: Query) -> OfferPage:
        """Walk the offers with so many GPUs, or with any number.

        Other bounds are applied here, where a no is told.
        """
        walk = Walk(_offer_id, per_page=PAGE, max_pages=MAX_OFFER_PAGES)
        count = query.requirements.gpu_count
        wanted = {} if count is None else {"filter[gpu_count]": str(count)}
        while not walk.over:
            body = await self._page("offers", "compute/offers", wanted, walk.pages + 1)
            walk.add(parse_page(SLUG, "offers", body, ListedOffer))
        offers = await in_turns(to_offers(walk.found.values(), self._clock.now()))
        good = tuple(offer for offer in offers if offer is not None)
        return OfferPage(
            offers=good,
            complete=not walk.why,
            skipped_rows=walk.bad + len(offers) - len(good),
        )

    def rent_calls(self, offer: Offer, workload: Workload, key: RentalKey) -> tuple[Call, ...]:
        """Return the one call that rents.

        Raises:
            BadInput: the market cannot take this workload.
        """
        fit(SPEC, offer, workload)
        body = job_body(offer, workload, key, self._allowed_ips)
        return (Call(method="POST", url=f"{self._v1}/jobs", body=body),)

    async def rent(
        self, offer: Offer, workload: Workload, key: RentalKey, *, choose: Choose | None = None
    ) -> str:
        del choose
        (call,) = self.rent_calls(offer, workload, key)
        try:
            body = await self._http.send("rent", call, safe=False, timeout_s=self._rent_timeout_s)
            return parse_one(SLUG, "rent", body, Job).uuid
        except Unavailable as error:
            if not error.sent:
                raise
            raise OutcomeUnknown(SLUG, "rent", error.detail, key=key) from error
        except Malformed as error:
            raise OutcomeUnknown(SLUG, "rent", "the reply cannot be read", key=key) from error

    async def instances(self) -> Listing:
        """List the jobs that have not ended, then the runs of those that have a node."""
        began_at = self._clock.now()
        jobs = await settled(self._jobs)
        active = [job for job in jobs.found.values() if status_of(job) not in ENDED]
        runs = await self._runs([job for job in active if status_of(job) in PLACED])
        return Listing(
            provider=SLUG,
            instances=tuple(to_instance(job, runs.get(job.uuid)) for job in active),
            complete=not jobs.why,
            began_at=began_at,
            why_incomplete=jobs.why,
        )

    async def release(self, instance_id: str) -> None:
        call = Call(
            method="PUT",
            url=f"{self._v1}/jobs/{quote(instance_id, safe='')}/cancel",
            body={"reason": "released by its renter"},
        )
        body = await self._http.send("release", call, safe=True, timeout_s=self._read_timeout_s)
        parse_one(SLUG, "release", body, Job)  # a captive portal's page releases nothing

    async def logs(
        self, instance_id: str, *, tail: int = 1000, container: str | None = None
    ) -> str:
        """Read the newest run's whole output; the market keeps it in one text, without a cursor."""
        only_one(SPEC, "logs", container)
        run = await self._run_of("logs", instance_id)
        if run is None:
            body = await self._get("logs", f"jobs/{quote(instance_id, safe='')}")
            parse_one(SLUG, "logs", body, Job)  # tells absence from no output
            return ""
        body = await self._get("logs", f"job-runs/{run.uuid}")
        text = parse_one(SLUG, "logs", body, Run).logs
        lines = text.splitlines(keepends=True) if isinstance(text, str) else []
        return "".join(lines[-tail:] if tail > 0 else [])

    async def aclose(self) -> None:
        await self._http.aclose()

    async def _jobs(self) -> Walk[Job]:
        walk: Walk[Job] = Walk(_uuid, per_page=PAGE, max_pages=MAX_LIST_PAGES)
        # New jobs come last, so that they push no row to another page.
        wanted = {"filter[status]": ",".join(ACTIVE), "sort": "created_at"}
        while not walk.over:
            body = await self._page("instances", "jobs", wanted, walk.pages + 1)
            walk.add(parse_page(SLUG, "instances", body, Job))
        if walk.bad:
            walk.doubt("a row without an id")
        return walk

    async def _runs(self, placed: Sequence[Job]) -> Mapping[str, Run]:
        """Return the newest run of each of these jobs that has one, keyed by job.

        All runs are listed at once, which no document shows. A job that is not found in that list
        is asked for by itself, as the documents do it: where the list is refused, or does not say
        whose a run is, all are; else only a running one, whose run slipped through.
        """
        if not placed:
            return {}
        walk: Walk[Run] = Walk(_uuid, per_page=PAGE, max_pages=MAX_LIST_PAGES)
        wanted, tells = {"filter[status]": ",".join(PLACED)}, True
        try:
            while not walk.over:
                body = await self._page("runs", "job-runs", wanted, walk.pages + 1)
                walk.add(parse_page(SLUG, "runs", body, Run))
        except Refused:
            tells = False
        tells = tells and all(run.job_uuid is not None for run in walk.found.values())
        by_job: dict[str, list[Run]] = {}
        for run in walk.found.values():
            by_job.setdefault(run.job_uuid or "", []).append(run)
        found: dict[str, Run] = {}
        for job in placed:
            best = newest(by_job.get(job.uuid, ()))
            if best is None and (not tells or status_of(job) == "RUNNING"):
                best = await self._run_of("runs", job.uuid)
            if best is not None:
                found[job.uuid] = best
        return found

    async def _run_of(self, operation: str, job: str) -> Run | None:
        """Return the newest run of one job; what says that it is another's does not count."""
        body = await self._page(operation, "job-runs", {"filter[job_uuid]": job}, 1)
        listed = parse_page(SLUG, operation, body, Run).rows
        return newest(run for run in listed if run.job_uuid in (None, job))

    async def _page(
        self, operation: str, path: str, wanted: Mapping[str, str], number: int
    ) -> bytes:
        return await self._get(operation, path, {**wanted, "limit": str(PAGE), "page": str(number)})

    async def _get(
        self, operation: str, path: str, params: Mapping[str, str] | None = None
    ) -> bytes:
        call = Call(method="GET", url=f"{self._v1}/{path}")
        return await self._http.send(
            operation, call, safe=True, params=params, timeout_s=self._read_timeout_s
        )


def _offer_id(row: ListedOffer) -> str:
    return row.offer_id


def _uuid(row: Job | Run) -> str:
    return row.uuid
