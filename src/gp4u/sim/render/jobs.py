"""Dispersed's jobs over the world's contracts: placement, states, timeouts, the bill, the rows.

Hides how one contract becomes a job, which carries the title, and a run, which carries the address.
The market bills a PERSISTENT job from its creation until it is told to end, in any state, so the
whole rate stands where the world keeps what runs from creation to destruction; a BATCH is billed
while it executes. A job that finds no node waits for one, unpaid, until its time is up.

Ends that no call brings about (an exit, a lost node) are noticed by `look`, which every request
calls first; timeouts come at their second.

Source: `docs/reference/render.md`, states and billing; what is inferred is marked there. 2026-11.
"""

from __future__ import annotations

import math
import re
import uuid
from collections.abc import Awaitable, Callable
from decimal import Decimal

from gp4u.sim.contracts import Contract, Order, Trouble
from gp4u.sim.faults import Kind, Strike
from gp4u.sim.render.gate import RenderSettings
from gp4u.sim.render.offers import Row, larger_node_for, node_for, stamp
from gp4u.sim.render.order import JobOrder, echo
from gp4u.sim.world import World

STATUSES = (
    "PENDING",
    "ASSIGNED",
    "PREPARING",
    "RUNNING",
    "COMPLETED",
    "FAILING",
    "FAILED",
    "CANCELLING",
    "CANCELLED",
)
_ENDED = ("COMPLETED", "FAILED", "CANCELLED")
_EXITED = re.compile(r"exited with code (-?\d+)")
_LOOK_S = 1.0
_ALL_LINES = 10_000


class Job:
    """One job and its only run."""

    def __init__(self, order: JobOrder, ident: str, run_ident: str, at: float) -> None:
        self.order, self.ident, self.run_ident = order, ident, run_ident
        self.title = order.title
        self.created_at = self.changed_at = self.listed_from = at
        self.contract: Contract | None = None
        self.placed_at: float | None = None
        self.usd_per_hour = Decimal(0)
        """Of the node it is on, whole."""
        self.address_lag_s = 0.0
        self.lost_since: float | None = None
        self.last_word = ""
        """A state that overrules what the contract says."""
        self.reason = ""
        self.ended_at: float | None = None

    @property
    def status(self) -> str:
        """The service's word for where it stands."""
        if self.last_word:
            return self.last_word
        contract = self.contract
        if contract is None or contract.actual in (None, "scheduling"):
            return "PENDING"
        if contract.up and contract.actual != "loading":
            return "RUNNING"
        return "ASSIGNED" if contract.actual == "created" else "PREPARING"

    @property
    def ended(self) -> bool:
        """Whether nothing of it is left but its record."""
        return self.status in _ENDED


class Jobs:
    """Every job ever made, oldest first, and what becomes of them."""

    def __init__(self, world: World, settings: RenderSettings) -> None:
        self._world, self._settings = world, settings
        self._jobs: dict[str, Job] = {}
        self._looking = False

    def find(self, ident: str) -> Job | None:
        """Return a job, ended or not."""
        return self._jobs.get(ident)

    def find_run(self, ident: str) -> Job | None:
        """Return the job of a run."""
        return next(
            (j for j in self._jobs.values() if j.run_ident == ident and j.placed_at is not None),
            None,
        )

    def visible(self, strike: Strike) -> list[Job]:
        """Return what lists show: not yet the newest."""
        if strike.get(Kind.LIST_EMPTY) is not None:
            return []
        stale = strike.get(Kind.LIST_STALE)
        at = self._world.now_s - (0.0 if stale is None else stale.seconds or 15.0)
        return [job for job in self._jobs.values() if job.listed_from <= at]

    def create(self, order: JobOrder, strike: Strike) -> Job:
        """Make a job and put it on a node, if there is one."""
        world, settings = self._world, self._settings
        job = Job(order, self._uuid(), self._uuid(), world.now_s)
        if strike.get(Kind.LABEL_LOST) is not None:
            job.title = ""
        late = strike.get(Kind.LATE_LISTING)
        lag = world.random.uniform(*settings.list_lag_s)
        job.listed_from += lag if late is None else late.seconds or 15.0
        job.address_lag_s = world.random.uniform(*settings.address_lag_s)
        self._jobs[job.ident] = job
        self._place(job, strike)
        self._at(order.assign_s, self._unless_placed(job))
        self._keep_looking()
        return job

    def cancel(self, job: Job) -> None:
        """Begin to end a job."""
        self._wind_down(job, "CANCELLING", "CANCELLED", "cancelled by its consumer")

    async def look(self) -> None:
        """Notice what has happened to the contracts since the last look."""
        for job in self._jobs.values():
            if not job.last_word:
                await self._look_at(job)

    async def log(self, job: Job) -> str:
        """Return everything its container printed."""
        contract = job.contract
        if contract is None:
            return ""
        if contract.running is not None:
            return await contract.running.logs(_ALL_LINES)
        return contract.logs_kept

    def job_row(self, job: Job) -> Row:
        """Return the job as the service shows it; it knows no address."""
        world, order = self._world, job.order

        def at(when: float | None) -> str | None:
            return None if when is None else stamp(world.epoch(when))

        ran = job.contract.ran_since if job.contract is not None else None
        return {
            **echo(order),
            "object": "job",
            "uuid": job.ident,
            "title": job.title,
            "status": job.status,
            "status_reason": job.reason or None,
            "created_at": at(job.created_at),
            "updated_at": at(job.changed_at),
            "started_at": at(ran),
            "completed_at": at(job.ended_at),
            "timeout_assign_at_ms": int(world.epoch(job.created_at + order.assign_s) * 1000),
            "image_size_bytes": None,
            "container_access_tokens": [],
            "source_recipe_uuid": None,
        }

    def run_row(self, job: Job, *, named: bool) -> Row:
        """Return the job's run; `named` says whether it tells whose run it is."""
        world = self._world

        def ms(when: float | None) -> int | None:
            return None if when is None else int(world.epoch(when) * 1000)

        began = job.placed_at or 0.0
        end = world.now_s if job.ended_at is None else job.ended_at
        row: Row = {
            "object": "job_run",
            "uuid": job.run_ident,
            "status": job.status,
            "started_at_ms": ms(began),
            "ended_at_ms": ms(job.ended_at),
            "duration_ms": int((end - began) * 1000),
            "node_urls": self._urls(job),
        }
        if named:
            row["job_uuid"] = job.ident
        if self._settings.rate_on_run:
            row["pricing"] = {"hourly_rate_usd": float(job.usd_per_hour)}
        return row

    def runs(self, strike: Strike) -> list[Job]:
        """Return the jobs that were put on a node, so have a run."""
        return [
            job
            for job in self.visible(strike)
            if job.placed_at is not None and job.status != "PENDING"
        ]

    def _urls(self, job: Job) -> list[Row]:
        """Return where it is reachable: by description, in no particular order."""
        contract = job.contract
        if contract is None or not contract.up or contract.hides_ports or job.last_word:
            return []
        if contract.ran_since is None or self._world.now_s < contract.ran_since + job.address_lag_s:
            return []
        urls: list[Row] = [
            {
                "description": "ssh" if number == 22 else str(number),
                "hostname": self._world.runtime.address,
                "port": outside,
                "protocol": protocol,
            }
            for (number, protocol), outside in contract.ports.items()
        ]
        return urls[::-1] if len(job.ident) % 2 == 0 else urls

    def _place(self, job: Job, strike: Strike) -> None:
        trouble, trouble_s = strike.trouble
        node = None
        if trouble is Trouble.WRONG_MACHINE:
            node, trouble = larger_node_for(self._world, job.order), None
        node = node or node_for(self._world, job.order)
        if node is None:
            return
        order = job.order
        asked = Order(
            image=order.image,
            disk_gb=Decimal(str(order.storage_gb)),
            label=job.title,
            env=order.env,
            ports=order.ports,
            login=order.login,
        )
        contract = self._world.rent(node.part.offer_id, asked, trouble=trouble, trouble_s=trouble_s)
        job.contract, job.placed_at = contract, self._world.now_s
        contract.name = job.ident
        job.usd_per_hour = node.usd_per_hour
        unpaid = Decimal(0)
        self._world.reprice(
            contract,
            disk=job.usd_per_hour if order.persistent else unpaid,
            gpu=unpaid if order.persistent else job.usd_per_hour,
        )
        self._at(order.start_s, self._unless_up(job))
        if order.run_s is not None:
            self._at(order.start_s + order.run_s, self._unless_over(job))

    async def _look_at(self, job: Job) -> None:
        contract, now = job.contract, self._world.now_s
        if contract is None:
            self._place(job, Strike())
            return
        if contract.offline:
            job.lost_since = now if job.lost_since is None else job.lost_since
            if now - job.lost_since >= self._settings.vanish_s:
                self._fail(job, "contact to the node was lost")
            return
        job.lost_since = None
        said = contract.status_msg or ""
        if contract.cur == "stopped":
            broke = self._world.credit_usd <= 0
            self._fail(job, "insufficient balance" if broke else "the node left the network")
        elif contract.actual == "exited":
            code = _EXITED.search(said)
            if not job.order.persistent and code is not None and code[1] == "0":
                await self._end(job, "COMPLETED", "")
            else:
                self._fail(job, said)
        elif not contract.up and _cannot_start(contract, said):
            self._fail(job, said)

    def _fail(self, job: Job, reason: str) -> None:
        self._wind_down(job, "FAILING", "FAILED", reason)

    def _wind_down(self, job: Job, passing: str, final: str, reason: str) -> None:
        if job.ended or job.last_word == passing:
            return
        job.last_word, job.reason, job.changed_at = passing, reason, self._world.now_s
        if job.contract is not None:
            self._stop_charging(job.contract)  # paid until it was told to end

        async def finish() -> None:
            if not job.ended:
                await self._end(job, final, reason)

        self._at(self._settings.cancel_s, finish)

    async def _end(self, job: Job, final: str, reason: str) -> None:
        job.last_word, job.reason = final, reason
        job.ended_at = job.changed_at = self._world.now_s
        contract = job.contract
        if contract is None or not contract.alive:
            return
        # What was due has been charged; the clock may already show more than this moment.
        self._stop_charging(contract)
        paid = self._world.meter(contract)
        if self._settings.whole_hours and job.order.persistent and job.usd_per_hour > 0:
            hours = math.ceil(paid / job.usd_per_hour)
            self._world.charge(contract, "disk", job.usd_per_hour * hours - paid)
        await self._world.destroy(contract)

    def _stop_charging(self, contract: Contract) -> None:
        self._world.reprice(contract, gpu=Decimal(0), disk=Decimal(0))

    def _unless_placed(self, job: Job) -> Callable[[], Awaitable[None]]:
        async def act() -> None:
            if not job.last_word and job.contract is None:
                await self._end(job, "FAILED", "no node was assigned in time")

        return act

    def _unless_up(self, job: Job) -> Callable[[], Awaitable[None]]:
        async def act() -> None:
            contract = job.contract
            if not job.last_word and contract is not None and not contract.up:
                await self._end(job, "FAILED", "the container did not start in time")

        return act

    def _unless_over(self, job: Job) -> Callable[[], Awaitable[None]]:
        async def act() -> None:
            if not job.last_word:
                await self._end(job, "FAILED", "the job ran into its time limit")

        return act

    def _at(self, in_s: float, action: Callable[[], Awaitable[None]]) -> None:
        self._world.later(in_s, action)

    def _keep_looking(self) -> None:
        """Look every second while there is something to see, though nobody asks."""
        if self._looking:
            return
        self._looking = True

        async def again() -> None:
            self._looking = False
            await self.look()
            if any(not job.ended for job in self._jobs.values()):
                self._keep_looking()

        self._at(_LOOK_S, again)

    def _uuid(self) -> str:
        return str(uuid.UUID(int=self._world.random.getrandbits(128), version=4))


def _cannot_start(contract: Contract, said: str) -> bool:
    """Whether a container that is not up will never be."""
    if said.startswith("Error response from daemon"):
        return True
    waits = any(step.kind in ("created", "loading", "start") for step in contract.plan)
    return contract.actual == "created" and bool(said) and not waits
