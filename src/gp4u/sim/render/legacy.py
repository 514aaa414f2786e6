"""The PROPOSED node API of Render, flavour `legacy`, over the world. Nothing real speaks it.

Hides how a world of rentable machines looks as OctaneBench nodes: one machine in four renders
scenes, priced per OctaneBench-hour, the others run containers, priced per hour; the two price lists
never mix. A render job holds its node for as long as its frames take and costs score x time; its
progress is a function of time, so that looking at it changes nothing.

Source: `docs/reference/render.md`, the proposal; OctaneBench units and tiers:
know.rendernetwork.com, checked 2026-11.
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, Iterator, Mapping
from decimal import Decimal

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from gp4u.sim.contracts import Contract, Order
from gp4u.sim.faults import Faults, Kind, Strike
from gp4u.sim.gate import Call, Handler
from gp4u.sim.launch import Port
from gp4u.sim.market import Machine
from gp4u.sim.render.gate import RenderGate, RenderSettings, listed, refusal
from gp4u.sim.render.offers import Row, stamp
from gp4u.sim.render.scene import Scene, scene_of
from gp4u.sim.world import World

PAGE_MAX = 100
ENGINES = ("octane", "redshift", "cycles")
USD_PER_OBH = {1: Decimal("0.022"), 2: Decimal("0.011"), 3: Decimal("0.0055")}
"""By tier: a credit of 1.10 $ buys 100 OBh at tier 2, 200 at tier 3; tier 1 is not sold yet."""
_OB_PER_TFLOPS = 16
"""Brings an RTX 4090 to about 1,300."""
_COMPUTE_KEYS = frozenset(("kind", "node_id", "image", "env", "ports", "max_hours", "client_ref"))
_ENDED = ("completed", "failed", "cancelled")


class NodeJob:
    """One job of either kind; `scene` is None for a container."""

    def __init__(self, ident: str, at: float, client_ref: str | None, contract: Contract) -> None:
        self.ident, self.created_at, self.client_ref = ident, at, client_ref
        self.contract = contract
        self.scene: Scene | None = None
        self.final, self.error = "", ""
        self.listed_from = at


class NodeApi:
    """The handlers of the proposed API."""

    def __init__(self, world: World, faults: Faults, settings: RenderSettings) -> None:
        self._world, self._settings = world, settings
        self._jobs: dict[str, NodeJob] = {}
        self._gate = RenderGate(
            world, faults, settings, identify=self._identify, prepare=self._look
        )

    def routes(self) -> list[BaseRoute]:
        """Return every path."""
        calls: list[tuple[str, str, str, Handler]] = [
            ("GET", "/v1/nodes", "search", self._nodes),
            ("GET", "/v1/nodes/{id}", "node", self._node),
            ("POST", "/v1/jobs", "create", self._create),
            ("GET", "/v1/jobs", "list", self._list),
            ("GET", "/v1/jobs/{id}", "show", self._show),
            ("DELETE", "/v1/jobs/{id}", "destroy", self._delete),
            ("POST", "/v1/ai/generate", "generate", self._generate),
        ]
        return [
            Route(path, self._gate.wrap(endpoint, handler), methods=[method])
            for method, path, endpoint, handler in calls
        ]

    def _identify(self, request: Request, raw: bytes) -> None:
        del raw
        given = request.headers.get("authorization", "")
        if not hmac.compare_digest(given.encode(), f"Bearer {self._settings.api_key}".encode()):
            raise refusal(401, "unauthorized", "missing or unknown API key")

    async def _nodes(self, call: Call) -> Response:
        query = call.request.query_params
        others = sorted(query.keys() - {"status", "tier", "kind", "page", "limit"})
        if others:
            raise refusal(400, "validation_error", f"unknown parameter {others[0]}")
        tier, kind = query.get("tier", "all"), query.get("kind")
        if tier not in ("all", "1", "2", "3") or kind not in (None, "render", "compute"):
            raise refusal(400, "validation_error", "tier is all, 1, 2 or 3; kind render or compute")
        nodes = [
            machine
            for machine in self._free()
            if tier in ("all", str(tier_of(machine))) and kind in (None, kind_of(machine))
        ]
        return listed(call.request, nodes, node_row, call.strike, under="nodes", most=PAGE_MAX)

    async def _node(self, call: Call) -> Response:
        return JSONResponse(node_row(self._machine(call.ident)))

    async def _create(self, call: Call) -> Response:
        strike = call.strike
        if strike.get(Kind.NO_CREDIT) is not None or self._world.credit_usd <= 0:
            raise refusal(402, "insufficient_credit", "no credits left")
        if (rule := strike.get(Kind.OFFER_GONE)) is not None:
            raise refusal(rule.status or 409, "node_busy", "the node is taken")
        if call.body.get("kind") == "compute":
            job = self._compute(call.body, strike)
        else:
            job = self._render(call.body, strike)
        if (rule := strike.get(Kind.FAILED_WITH_ID)) is not None:
            made = {"job_id": job.ident}
            raise refusal(rule.status or 422, "start_failed", "it was not started", made=made)
        if strike.get(Kind.FAILED_WITHOUT_ID) is not None:
            return JSONResponse({"error": {"code": "internal", "message": "try again"}})
        return JSONResponse({"job_id": job.ident, "status": "queued"}, 201)

    def _compute(self, body: Mapping[str, object], strike: Strike) -> NodeJob:
        others = sorted(body.keys() - _COMPUTE_KEYS)
        if others:
            raise refusal(400, "validation_error", f"unknown field {others[0]}")
        machine = self._machine(body.get("node_id"))
        if kind_of(machine) != "compute":
            raise refusal(400, "validation_error", "a render node runs no containers")
        image, env, ports = body.get("image"), body.get("env", {}), body.get("ports", [])
        if not isinstance(image, str) or not image:
            raise refusal(400, "validation_error", "image must be text")
        if not isinstance(env, dict) or not all(isinstance(v, str) for v in env.values()):
            raise refusal(400, "validation_error", "env must map names to text")
        if not isinstance(ports, list) or not all(
            isinstance(p, int) and 0 < p < 65_536 for p in ports
        ):
            raise refusal(400, "validation_error", "ports must be a list of ports")
        contract = self._take(
            machine,
            Order(
                image=image,
                disk_gb=Decimal(0),
                env=env,
                ports=tuple(Port(p, "tcp") for p in ports),
                label=_client_ref(body),
            ),
            strike,
        )
        usd_per_hour = machine.usd_per_gpu_hour * machine.gpu_count
        self._world.reprice(contract, gpu=usd_per_hour, disk=Decimal(0))
        return self._noted(contract, body, strike)

    def _render(self, body: Mapping[str, object], strike: Strike) -> NodeJob:
        scene = scene_of(body, Decimal(str(self._settings.obh_per_frame)))
        ident = body.get("node_id")
        machine = self._machine(ident) if ident is not None else self._render_node(scene.tier)
        if kind_of(machine) != "render" or tier_of(machine) != scene.tier:
            raise refusal(409, "no_node", "no node of this kind and tier")
        order = Order(
            image=f"scene:{scene.engine}",
            disk_gb=Decimal(0),
            label=_client_ref(body),
            start=False,  # frames are no program of ours
        )
        contract = self._take(machine, order, strike)
        contract.holds_gpus = True
        job = self._noted(contract, body, strike)
        job.scene = scene.on(octanebench(machine), self._world.now_s)
        usd_per_hour = job.scene.score * USD_PER_OBH[scene.tier]

        async def begin() -> None:
            if not job.final:
                self._world.reprice(contract, gpu=Decimal(0), disk=usd_per_hour)

        self._world.later(job.scene.begins_at - self._world.now_s, begin)
        over = "max_obh is used up" if job.scene.is_capped else ""
        final = "failed" if over else "completed"
        self._world.later(job.scene.ends_at - self._world.now_s, self._ending(job, final, over))
        return job

    def _render_node(self, tier: int) -> Machine:
        for machine in self._free():
            if kind_of(machine) == "render" and tier_of(machine) == tier:
                return machine
        raise refusal(409, "no_node", "no render node of this tier is free")

    def _take(self, machine: Machine, order: Order, strike: Strike) -> Contract:
        if not self._is_free(machine):
            raise refusal(409, "node_busy", "the node is taken")
        trouble, trouble_s = strike.trouble
        offer_id = machine.slices[0].offer_id
        contract = self._world.rent(offer_id, order, trouble=trouble, trouble_s=trouble_s)
        self._world.reprice(contract, gpu=Decimal(0), disk=Decimal(0))
        return contract

    def _noted(self, contract: Contract, body: Mapping[str, object], strike: Strike) -> NodeJob:
        world = self._world
        lost = strike.get(Kind.LABEL_LOST) is not None
        ref = None if lost else _client_ref(body)
        job = NodeJob(f"job_{contract.id}", world.now_s, ref, contract)
        contract.name = job.ident
        late = strike.get(Kind.LATE_LISTING)
        lag = world.random.uniform(*self._settings.list_lag_s)
        job.listed_from += lag if late is None else late.seconds or 15.0
        self._jobs[job.ident] = job
        return job

    async def _list(self, call: Call) -> Response:
        query = call.request.query_params
        ref, stale = query.get("client_ref"), call.strike.get(Kind.LIST_STALE)
        at = self._world.now_s - (0.0 if stale is None else stale.seconds or 15.0)
        jobs = [
            job
            for job in self._jobs.values()
            if job.listed_from <= at and (not ref or job.client_ref == ref)
        ]
        if call.strike.get(Kind.LIST_EMPTY) is not None:
            jobs = []
        return listed(call.request, jobs, self._row, call.strike, under="jobs", most=PAGE_MAX)

    async def _show(self, call: Call) -> Response:
        return JSONResponse(self._row(self._held(call)))

    async def _delete(self, call: Call) -> Response:
        job = self._held(call)
        if call.strike.get(Kind.RELEASE_IGNORED) is None:
            await self._end(job, "cancelled", "")
        return JSONResponse(self._row(job), 202)

    async def _generate(self, call: Call) -> Response:
        """Kept because the first text of the project names it; nothing is drawn."""
        if not isinstance(call.body.get("prompt"), str):
            raise refusal(400, "validation_error", "prompt must be text")
        ident = f"img_{self._world.random.getrandbits(48):012x}"
        return JSONResponse({"image_id": ident}, 202)

    async def _look(self) -> None:
        """Notice containers that ended by themselves, or never came up."""
        for job in self._jobs.values():
            contract = job.contract
            if job.final or job.scene is not None:
                continue
            said = contract.status_msg or ""
            broken = not contract.up and said.startswith("Error response from daemon")
            if broken or contract.actual == "exited" or contract.cur == "stopped":
                await self._end(job, "failed", said or "the node stopped")

    def _ending(self, job: NodeJob, final: str, error: str) -> Callable[[], Awaitable[None]]:
        async def act() -> None:
            await self._end(job, final, error)

        return act

    async def _end(self, job: NodeJob, final: str, error: str) -> None:
        if job.final:
            return
        job.final, job.error = final, error
        if job.scene is not None:
            job.scene = job.scene.stopped(self._world.now_s)
        # What was due has been charged; the clock may already show more than this moment.
        self._world.reprice(job.contract, gpu=Decimal(0), disk=Decimal(0))
        await self._world.destroy(job.contract)

    def _row(self, job: NodeJob) -> Row:
        world, contract, scene = self._world, job.contract, job.scene
        now = world.now_s
        row: Row = {
            "job_id": job.ident,
            "kind": "compute" if scene is None else "render",
            "status": self._status(job),
            "progress": 0.0 if scene is None else scene.progress(now),
            "frames_done": 0 if scene is None else scene.frames_done(now),
            "frames_total": 0 if scene is None else scene.frames_total,
            "obh_used": 0.0 if scene is None else float(scene.obh_used(now)),
            "cost_usd": str(world.meter(contract)),
            "node_id": node_id(contract.machine),
            "endpoints": [],
            "outputs": [] if scene is None else scene.outputs(now, job.ident),
            "created_at": stamp(world.epoch(job.created_at)),
            "client_ref": job.client_ref,
        }
        if contract.up and not contract.offline and not contract.hides_ports:
            host = world.runtime.address
            row["endpoints"] = [
                {
                    "container_port": n,
                    "host": host,
                    "port": outside,
                    "protocol": protocol,
                }
                for (n, protocol), outside in contract.ports.items()
            ]
        if job.error:
            row["error"] = job.error
        return row

    def _status(self, job: NodeJob) -> str:
        if job.final:
            return job.final
        if job.scene is not None:
            return job.scene.status(self._world.now_s)
        if job.contract.up:
            return "running"
        return "queued" if job.contract.actual is None else "assigned"

    def _held(self, call: Call) -> NodeJob:
        job = self._jobs.get(call.ident)
        if job is None:
            raise refusal(404, "not_found", "no such job")
        return job

    def _machine(self, ident: object) -> Machine:
        for machine in self._world.machines:
            if node_id(machine) == ident:
                return machine
        raise refusal(404, "not_found", "no such node")

    def _free(self) -> Iterator[Machine]:
        """Yield the machines that are free as a whole: a node is never split."""
        for machine, part, free in self._world.offers():
            if free and part is machine.slices[0]:
                yield machine

    def _is_free(self, machine: Machine) -> bool:
        return any(machine is free for free in self._free())


def node_id(machine: Machine) -> str:
    """Return a machine's name as a node."""
    return f"node-{machine.machine_id}"


def kind_of(machine: Machine) -> str:
    """Return what a node does: one machine in four renders."""
    return "render" if machine.machine_id % 4 == 0 else "compute"


def tier_of(machine: Machine) -> int:
    """Return a node's tier: priority where its host is verified, else economy."""
    return 2 if machine.verification == "verified" else 3


def octanebench(machine: Machine) -> int:
    """Return a node's score, all its GPUs together."""
    return round(machine.gpu.tflops * _OB_PER_TFLOPS) * machine.gpu_count


def node_row(machine: Machine) -> Row:
    """Return a machine as a node; some do not report everything, some prices come as text."""
    kind, tier = kind_of(machine), tier_of(machine)
    price = USD_PER_OBH[tier]
    row: Row = {
        "node_id": node_id(machine),
        "kind": kind,
        "gpu_model": machine.gpu.name,
        "gpu_count": machine.gpu_count,
        "gpu_memory": round(machine.gpu.ram_mb / 1024),
        "octanebench_score": octanebench(machine),
        "tier": tier,
        "price_per_obh": str(price) if machine.machine_id % 2 else float(price),
        "location": (machine.place or "").rpartition(", ")[2] or None,
        "uptime": round(machine.reliability * 100, 2),
        "reputation": round(machine.reliability * 98, 1),
        "supported_engines": list(ENGINES),
        "ai_capabilities": machine.gpu.compute_cap >= 800,
        "cuda_version": str(machine.cuda),
        "driver_version": machine.driver,
        "operator_id": f"op-{machine.host_id}",
        "jobs_completed": machine.machine_id % 500,
        "average_render_time": None,
    }
    if kind == "compute":
        row["price_per_hour_usd"] = float(machine.usd_per_gpu_hour * machine.gpu_count)
    if machine.not_reported:
        del row["reputation"], row["cuda_version"]
    return row


def _client_ref(body: Mapping[str, object]) -> str | None:
    ref = body.get("client_ref")
    if ref is not None and not isinstance(ref, str):
        raise refusal(400, "validation_error", "client_ref must be text")
    return ref
