"""The Render dialects: Dispersed's compute API as an ASGI app over the world.

Hides which path does what. Written from the market's documents, never from an adapter, and it
shares no code with one. Its parts: `gate.py` (throttle, faults), `identity.py` (the
signature), `order.py` (the create body), `offers.py` (supply), `jobs.py` (jobs
and runs). The proposed node API, flavour `legacy`, is `legacy.py`; an app speaks one of the
two. Each behaviour and its origin is listed in docs/reference/render.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from gp4u.sim.faults import Faults, Kind, Strike
from gp4u.sim.gate import Call, Handler
from gp4u.sim.render.gate import RenderGate, RenderSettings, listed, refusal
from gp4u.sim.render.identity import Doorkeeper
from gp4u.sim.render.jobs import STATUSES, Job, Jobs
from gp4u.sim.render.legacy import NodeApi
from gp4u.sim.render.offers import Row, offer_row, offered, registry_rows, stamp
from gp4u.sim.render.order import BadJobError, job_order
from gp4u.sim.world import World

T = TypeVar("T")

PAGE_MAX = 50
_LIST_PARAMETERS = frozenset(("page", "limit", "sort", "filter[status]", "filter[job_uuid]"))


def render_app(world: World, faults: Faults, settings: RenderSettings | None = None) -> Starlette:
    """Return the API as an ASGI app. The caller moves the world, or leaves that to the calls.

    Raises:
        ValueError: no such flavour.
    """
    settings = settings or RenderSettings()
    if settings.flavor == "legacy":
        return Starlette(routes=NodeApi(world, faults, settings).routes())
    if settings.flavor != "dispersed":
        raise ValueError(f"flavor: {settings.flavor!r} is neither dispersed nor legacy")
    return Starlette(routes=Dispersed(world, faults, settings).routes())


class Dispersed:
    """The handlers of the compute API."""

    def __init__(self, world: World, faults: Faults, settings: RenderSettings) -> None:
        self._world, self._settings = world, settings
        self._jobs = Jobs(world, settings)
        self._gate = RenderGate(
            world,
            faults,
            settings,
            identify=Doorkeeper(world, settings),
            prepare=self._jobs.look,
        )

    def routes(self) -> list[BaseRoute]:
        """Return every path."""
        calls: list[tuple[str, str, str, Handler]] = [
            ("GET", "/v1/compute/offers", "search", self._offers),
            ("GET", "/v1/gpu-registry", "registry", self._registry),
            ("GET", "/v1/nodes", "nodes", self._nodes),
            ("POST", "/v1/jobs", "create", self._create),
            ("GET", "/v1/jobs", "list", self._list),
            ("GET", "/v1/jobs/{id}", "show", self._show),
            ("PUT", "/v1/jobs/{id}/cancel", "destroy", self._cancel),
            ("GET", "/v1/job-runs", "runs", self._runs),
            ("GET", "/v1/job-runs/{id}", "run", self._run),
        ]
        return [
            Route(path, self._gate.wrap(endpoint, handler), methods=[method])
            for method, path, endpoint, handler in calls
        ]

    async def _offers(self, call: Call) -> Response:
        nodes = offered(self._world, dict(call.request.query_params))
        quoted_at = stamp(self._world.epoch(self._world.now_s))
        return self._listed(call, nodes, lambda node: offer_row(node, quoted_at))

    async def _registry(self, call: Call) -> Response:
        return self._listed(call, registry_rows(self._world), _as_it_is)

    async def _nodes(self, call: Call) -> Response:
        """A consumer sees its own nodes, and has none."""
        return self._listed(call, [], _as_it_is)

    async def _create(self, call: Call) -> Response:
        strike = call.strike
        if strike.get(Kind.NO_CREDIT) is not None or self._world.credit_usd <= 0:
            raise refusal(402, "insufficient_balance", "Add credits in the console.")
        if (rule := strike.get(Kind.OFFER_GONE)) is not None:
            raise refusal(rule.status or 409, "no_capacity", "No such GPU is available.")
        try:
            order = job_order(call.body)
        except BadJobError as error:
            raise refusal(400, "validation_error", str(error)) from error
        job = self._jobs.create(order, strike)
        if strike.get(Kind.DUPLICATE) is not None:
            self._jobs.create(order, strike)
        if (rule := strike.get(Kind.FAILED_WITH_ID)) is not None:
            made = {"data": self._jobs.job_row(job)}
            raise refusal(rule.status or 422, "start_failed", "It was not started.", made=made)
        if strike.get(Kind.FAILED_WITHOUT_ID) is not None:
            body = {"error": {"code": "internal", "message": "Something went wrong."}}
            return JSONResponse(body, 200)
        return self._one(self._jobs.job_row(job), 201)

    async def _list(self, call: Call) -> Response:
        return self._listed(call, self._wanted(call, self._jobs.visible), self._jobs.job_row)

    async def _show(self, call: Call) -> Response:
        return self._one(self._jobs.job_row(self._held(call)))

    async def _cancel(self, call: Call) -> Response:
        job = self._held(call)
        reason = call.body.get("reason")
        if call.body.keys() != {"reason"} or not isinstance(reason, str):
            raise refusal(400, "validation_error", "the body must be a reason and nothing else")
        if job.ended:
            raise refusal(409, "invalid_state", f"the job is {job.status}")
        if call.strike.get(Kind.RELEASE_IGNORED) is not None:
            return self._one({**self._jobs.job_row(job), "status": "CANCELLING"})
        self._jobs.cancel(job)
        return self._one(self._jobs.job_row(job))

    async def _runs(self, call: Call) -> Response:
        named = self._settings.runs_name_job
        jobs = self._wanted(call, self._jobs.runs)
        if self._settings.runs_need_job and "filter[job_uuid]" not in call.request.query_params:
            raise refusal(400, "validation_error", "filter[job_uuid] is required")
        return self._listed(call, jobs, lambda job: self._jobs.run_row(job, named=named))

    async def _run(self, call: Call) -> Response:
        """The only reply that holds the log."""
        job = self._jobs.find_run(call.ident)
        if job is None:
            raise refusal(404, "not_found", "No such run.")
        logs = await self._jobs.log(job)
        return self._one({**self._jobs.run_row(job, named=True), "logs": logs})

    def _wanted(self, call: Call, jobs: Callable[[Strike], list[Job]]) -> Sequence[Job]:
        """Return the jobs that the call's filters let through, in its order."""
        query = call.request.query_params
        others = sorted(query.keys() - _LIST_PARAMETERS)
        if others:
            raise refusal(400, "validation_error", f"unknown parameter {others[0]}")
        if query.get("sort", "created_at") not in ("created_at", "-created_at"):
            raise refusal(400, "validation_error", "sort must be created_at or -created_at")
        wanted = query["filter[status]"].split(",") if "filter[status]" in query else STATUSES
        if not set(wanted) <= set(STATUSES):
            raise refusal(400, "validation_error", "unknown status")
        idents = query.get("filter[job_uuid]")
        found = [
            job
            for job in jobs(call.strike)
            if job.status in wanted and (idents is None or job.ident in idents.split(","))
        ]
        return found[::-1] if query.get("sort") == "-created_at" else found

    def _held(self, call: Call) -> Job:
        job = self._jobs.find(call.ident)
        if job is None:
            raise refusal(404, "not_found", "No such job.")
        return job

    def _listed(self, call: Call, things: Sequence[T], row: Callable[[T], Row]) -> Response:
        bare = self._settings.bare_lists
        return listed(call.request, things, row, call.strike, most=PAGE_MAX, bare=bare)

    def _one(self, row: Row, status: int = 200) -> Response:
        return JSONResponse({"data": row} if self._settings.wrapped_job else row, status)


def _as_it_is(row: Row) -> Row:
    return row
