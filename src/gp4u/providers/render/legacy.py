"""A PROPOSED node API for Render: OctaneBench nodes, a Bearer key, render jobs by frame.

**Nothing is known to speak this.** Render's rendering network has no public API; the address, the
key and the fields in this file come from the project's first text, completed here so that they have
one meaning. The real market is `adapter.py`. This adapter answers to the flavour `legacy`, says in
its title that it is a proposal, and is tested against a simulator of the same proposal.

What this file hides: paths, bodies, and how an OctaneBench price becomes dollars per hour. Compute
nodes and render nodes have two price lists an order of magnitude apart, so `offers` shows compute
nodes alone; render nodes and render jobs have a small API of their own below.

Source: `docs/reference/render.md`, the proposal; units of OctaneBench: know.rendernetwork.com,
checked 2026-11.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import ClassVar, Final
from urllib.parse import quote

from gp4u.clock import Clock
from gp4u.errors import BadInput, Malformed, OutcomeUnknown, Refused, Unavailable
from gp4u.model import Listing, Offer, Protocol, RentalKey, Workload
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
)
from gp4u.providers.http import Http, decode
from gp4u.providers.render.legacy_wire import (
    ENGINES,
    Frames,
    JobRow,
    Made,
    Node,
    RenderProgress,
    bound_of,
    decimal_of,
    frames_body,
    has_ended,
    tier_of,
    to_instance,
    to_offers,
    to_progress,
)
from gp4u.providers.render.offers import MAX_PORTS
from gp4u.providers.render.paging import Walk, parse_page
from gp4u.providers.render.wire import SLUG
from gp4u.providers.turns import in_turns

SPEC: Final = ProviderSpec(
    slug=SLUG,
    title="Render (legacy: a proposed API)",
    env="RENDER",
    base_url="https://api.render.network/v1",
    rate_limit_per_min=100,
    key_url="https://console.dispersed.com",  # of the real market: nobody makes keys for this one
    settle_s=30,
    late_window_s=120,
    can=Ability.LABELS | Ability.PORTS | Ability.RAW_PORTS | Ability.MANY_PORTS | Ability.BILL,
)

PAGE: Final = 100
MAX_PAGES: Final = 100


class RenderLegacy(Provider):
    """One account of the proposed API."""

    spec: ClassVar[ProviderSpec] = SPEC

    def __init__(
        self, http: Http, *, base_url: str, clock: Clock, rent_timeout_s: float = 60.0
    ) -> None:
        self._http, self._clock, self._base = http, clock, base_url.rstrip("/")
        self._rent_timeout_s = rent_timeout_s

    async def ping(self) -> Account:
        """Read one node."""
        body = await self._get("ping", "nodes", {"limit": "1"})
        parse_page(SLUG, "ping", body, Node, under="nodes")
        return Account(name="proposed API, no known service")

    async def offers(self, query: Query) -> OfferPage:
        """Walk the compute nodes; those with another number of GPUs are told apart by the book."""
        del query
        return await self._nodes("compute", tier=None)

    async def render_nodes(self, *, tier: int | None = None) -> OfferPage:
        """Walk the render nodes, priced at full use; they run scenes, never containers.

        Raises:
            BadInput: no such tier.
        """
        return await self._nodes("render", tier=None if tier is None else tier_of(tier))

    def rent_calls(self, offer: Offer, workload: Workload, key: RentalKey) -> tuple[Call, ...]:
        """Return the one call that rents.

        Raises:
            BadInput: the proposal has no way to say this workload.
        """
        fit(SPEC, offer, workload)
        if workload.command:
            raise BadInput("command", workload.command[0][:40], "the proposed API takes no command")
        if workload.beside:
            raise BadInput("containers", len(workload.beside) + 1, "one container a job")
        if len(workload.ports) > MAX_PORTS:
            raise BadInput("port", len(workload.ports), f"at most {MAX_PORTS} ports")
        for port in workload.ports:
            if port.protocol is not Protocol.TCP:
                raise BadInput("port", f"{port.number}/{port.protocol}", "TCP only")
        body = {
            "kind": "compute",
            "node_id": offer.offer_id,
            "image": workload.image,
            "env": dict(workload.env),
            "ports": [port.number for port in workload.ports],
            "client_ref": key,
        }
        return (Call(method="POST", url=f"{self._base}/jobs", body=body),)

    async def rent(
        self, offer: Offer, workload: Workload, key: RentalKey, *, choose: Choose | None = None
    ) -> str:
        del choose
        (call,) = self.rent_calls(offer, workload, key)
        return await self._create("rent", call, key)

    async def instances(self) -> Listing:
        """List compute jobs that have not ended; a render job is no instance."""
        began_at = self._clock.now()
        walk = await self._jobs()
        found = [job for job in walk.found.values() if job.kind != "render"]
        return Listing(
            provider=SLUG,
            instances=tuple(to_instance(job) for job in found if not has_ended(job)),
            complete=not walk.why,
            began_at=began_at,
            why_incomplete=walk.why,
        )

    async def release(self, instance_id: str) -> None:
        await self._delete("release", instance_id)

    async def logs(
        self, instance_id: str, *, tail: int = 1000, container: str | None = None
    ) -> str:
        del tail, container
        raise Refused(SLUG, "logs", f"no logs of {instance_id} in this API", code="unsupported")

    async def billed(self, instance_id: str) -> Decimal | None:
        job = decode(SLUG, "billed", await self._get("billed", _path(instance_id)), JobRow)
        return decimal_of(job.cost_usd)

    async def submit_render(
        self,
        scene_file: str,
        engine: str,
        frames: Frames | int,
        tier: int,
        key: RentalKey,
        *,
        priority: str = "normal",
        max_obh: Decimal | None = None,
    ) -> str:
        """Submit a scene and return its job's id. Sent at most once; `key` finds it again.

        `scene_file` is the address of an uploaded scene, `frames` a range or a number of frames
        from 1 on. `max_obh` bounds the OctaneBench-hours, so the cost.

        Raises:
            BadInput: no such engine or tier, no frames or no bound; nothing was sent.
            Refused: declined.
            OutcomeUnknown: it may have worked; `find_renders(key)` tells.
        """
        if not scene_file or not scene_file.isprintable():
            raise BadInput("scene_file", scene_file[:80], "the address of a scene")
        if engine not in ENGINES:
            raise BadInput("engine", engine, " or ".join(ENGINES))
        body: dict[str, object] = {
            "kind": "render",
            "tier": tier_of(tier),
            "scene_file": scene_file,
            "engine": engine,
            "frames": frames_body(frames),
            "priority": priority,
            "client_ref": key,
        }
        if max_obh is not None:
            body["max_obh"] = bound_of(max_obh)
        call = Call(method="POST", url=f"{self._base}/jobs", body=body)
        return await self._create("submit_render", call, key)

    async def render_job(self, job_id: str) -> RenderProgress:
        """Return how far a render job is.

        Raises:
            InstanceAbsent: there is no such job.
        """
        body = await self._get("render_job", _path(job_id))
        return to_progress(decode(SLUG, "render_job", body, JobRow))

    async def find_renders(self, key: RentalKey | None = None) -> tuple[RenderProgress, ...]:
        """Return the render jobs that were submitted under a key, ended ones too; None: all.

        Raises:
            Malformed: the list is not whole, so what it lacks may be there.
        """
        walk = await self._jobs(key or "")
        if walk.why:
            raise Malformed(SLUG, "instances", walk.why)
        mine = [job for job in walk.found.values() if job.kind == "render"]
        return tuple(to_progress(job) for job in mine if key in (None, job.client_ref))

    async def cancel_render(self, job_id: str) -> None:
        """Stop a render job; frames that are done stay paid.

        Raises:
            InstanceAbsent: there is no such job.
        """
        await self._delete("cancel_render", job_id)

    async def aclose(self) -> None:
        await self._http.aclose()

    async def _nodes(self, kind: str, *, tier: int | None) -> OfferPage:
        walk: Walk[Node] = Walk(_node_id, per_page=PAGE, max_pages=MAX_PAGES)
        wanted = {"status": "active", "tier": "all" if tier is None else str(tier), "kind": kind}
        while not walk.over:
            params = {**wanted, "page": str(walk.pages + 1), "limit": str(PAGE)}
            body = await self._get("offers", "nodes", params)
            walk.add(parse_page(SLUG, "offers", body, Node, under="nodes"))
        offers = await in_turns(to_offers(walk.found.values(), kind, self._clock.now()))
        good = tuple(offer for offer in offers if offer is not None)
        return OfferPage(
            offers=good, complete=not walk.why, skipped_rows=walk.bad + len(offers) - len(good)
        )

    async def _jobs(self, client_ref: str = "") -> Walk[JobRow]:
        walk: Walk[JobRow] = Walk(_job_id, per_page=PAGE, max_pages=MAX_PAGES)
        while not walk.over:
            params = {
                "client_ref": client_ref,
                "page": str(walk.pages + 1),
                "limit": str(PAGE),
            }
            body = await self._get("instances", "jobs", params)
            walk.add(parse_page(SLUG, "instances", body, JobRow, under="jobs"))
        if walk.bad:
            walk.doubt("a row without an id")
        return walk

    async def _create(self, operation: str, call: Call, key: RentalKey) -> str:
        try:
            body = await self._http.send(
                operation, call, safe=False, timeout_s=self._rent_timeout_s
            )
            return decode(SLUG, operation, body, Made).job_id
        except Unavailable as error:
            if not error.sent:
                raise
            raise OutcomeUnknown(SLUG, operation, error.detail, key=key) from error
        except Malformed as error:
            raise OutcomeUnknown(SLUG, operation, "the reply cannot be read", key=key) from error

    async def _delete(self, operation: str, job_id: str) -> None:
        call = Call(method="DELETE", url=f"{self._base}/{_path(job_id)}")
        decode(SLUG, operation, await self._http.send(operation, call, safe=True), JobRow)

    async def _get(
        self, operation: str, path: str, params: Mapping[str, str] | None = None
    ) -> bytes:
        call = Call(method="GET", url=f"{self._base}/{path}")
        return await self._http.send(operation, call, safe=True, params=params)


def _path(job_id: str) -> str:
    return f"jobs/{quote(job_id, safe='')}"


def _node_id(row: Node) -> str:
    return row.node_id


def _job_id(row: JobRow) -> str:
    return row.job_id
