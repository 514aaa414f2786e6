"""The truth that a simulated provider reports well or badly: contracts, their states, the bill.

Hides time and money: contracts walk through their states on the world's own clock, every second
that costs something is metered, and neither can be changed by what a dialect tells its clients.
The meter is the judge of every test about leaks and double rents. Nothing here knows HTTP; words
for states are those of Vast.ai, the richest dialect.

Time is stepped, not awaited: `advance` carries the world from where it was to what the clock says,
through every event on the way and in order. A background task may call it, and every request
does; both together are safe. A step costs work for what it changes, however many contracts there
are: what comes next is a heap, what all cost is added up in `meter.py`.

Source of states and billing rules: Vast.ai documentation (instances, billing), checked 2026-11.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from heapq import heappop, heappush
from itertools import count
from random import Random

import msgspec

from gp4u.sim.contracts import (
    Attend,
    Contract,
    Order,
    Step,
    Trouble,
    boot_plan,
    launch_of,
    nobody,
    open_door,
    wind_up,
)
from gp4u.sim.launch import Launch, LaunchFailed, Runtime
from gp4u.sim.market import Machine, Slice, draw_market
from gp4u.sim.meter import Meter

_NEVER = float("inf")


class World:
    """Machines, contracts, credit and the meter, all as of the last `advance`.

    Args:
        clock_s: monotonic seconds; only differences matter.
        random: the seed of everything; the same seed and calls give the same world.
        offers: how many rentable offers the market holds at first.
        boot_s: shortest and longest time from rent to running.
        stop_s: how long a host takes to report a stop.
        epoch_s: Unix time of the first clock reading.
        dead_start_ratio: share of contracts that never come up.
        host_losses_per_hour: how often the host of a running contract vanishes.
        fresh_offer_ids: whether a machine's offers come back under new ids after a release.
    """

    def __init__(
        self,
        clock_s: Callable[[], float],
        random: Random,
        *,
        runtime: Runtime,
        offers: int = 200,
        machines: Sequence[Machine] | None = None,
        credit_usd: Decimal = Decimal("25"),
        boot_s: tuple[float, float] = (20.0, 90.0),
        stop_s: float = 2.0,
        epoch_s: float = 1_795_000_000.0,
        dead_start_ratio: float = 0.0,
        host_losses_per_hour: float = 0.0,
        fresh_offer_ids: bool = False,
    ) -> None:
        self._clock_s, self.random, self.runtime = clock_s, random, runtime
        self._boot_s, self._stop_s = boot_s, stop_s
        self._dead_start_ratio, self._host_losses_per_hour = dead_start_ratio, host_losses_per_hour
        self._fresh_offer_ids = fresh_offer_ids
        self._began_at, self._epoch_s = clock_s(), epoch_s
        drawn = draw_market(random, offers) if machines is None else machines
        self._machines = {machine.machine_id: machine for machine in drawn}
        self._on_offer: dict[int, tuple[int, Slice]] = {}
        for machine in self._machines.values():
            self._enlist(machine)
        self._retired: set[int] = set()
        self._offline: set[int] = set()
        self._live: dict[int, Contract] = {}
        self._on: defaultdict[int, list[Contract]] = defaultdict(list)
        """What is live on a machine, oldest first."""
        self._queue: dict[int, Contract] = {}
        """What has waited for its GPUs, and may still."""
        self._next_id = 20_000_000 + random.randrange(1_000_000)
        self._paid_in, self._broke, self._meter = credit_usd, credit_usd <= 0, Meter()
        self._carried_to = self._began_at
        """How far the world has come: whatever happens takes effect from here on, or later."""
        self._lock = asyncio.Lock()
        self._tasks: asyncio.TaskGroup | None = None
        # Two heaps. What is due at one time happens in the order of the rents, then of the plans.
        self._serial = count()
        self._steps: list[tuple[float, int, int, Step]] = []
        self._later: list[tuple[float, int, Callable[[], Awaitable[None]]]] = []
        self.contracts: list[Contract] = []
        """Every contract ever made, oldest first."""
        self.environment: Callable[[Contract], Mapping[str, str]] = lambda _: {}
        """What a dialect adds to the renter's own variables when a contract starts."""
        self.attend: Attend = nobody
        """How a dialect opens a way into what has just started."""

    # Reading. Nothing below changes the world.

    @property
    def now_s(self) -> float:
        """The world's clock."""
        return self._clock_s()

    @property
    def age_s(self) -> float:
        """Seconds since the world began."""
        return self.now_s - self._began_at

    def epoch(self, at: float) -> float:
        """Return the Unix time of a reading of the world's clock."""
        return self._epoch_s + (at - self._began_at)

    @property
    def machines(self) -> tuple[Machine, ...]:
        """Every machine, in the order they were drawn."""
        return tuple(self._machines.values())

    def machine(self, machine_id: int) -> Machine:
        """Return a machine as its host lists it now."""
        return self._machines[machine_id]

    def offers(self) -> Iterator[tuple[Machine, Slice, bool]]:
        """Yield what is on offer: machine, slice, and whether it can be rented.

        Per machine and size one slice whose GPUs are all free, so renting a slice hides those that
        overlap it. Machines held by another customer show their largest slice as not rentable.
        """
        age_s = self.age_s
        for machine in self._machines.values():
            if machine.machine_id in self._offline or machine.listed_for_s - age_s <= 0:
                continue
            if machine.taken:
                yield machine, machine.slices[0], False
                continue
            busy = self._busy(machine.machine_id)
            shown = 0
            for part in machine.slices:
                if len(part.gpus) != shown and busy.isdisjoint(part.gpus):
                    shown = len(part.gpus)
                    yield machine, part, True

    def find_offer(self, offer_id: int) -> tuple[Machine, Slice, bool] | None:
        """Return an offer by id with whether it can be rented now; None if there never was one."""
        if offer_id not in self._on_offer:
            return None
        machine_id, part = self._on_offer[offer_id]
        machine = self._machines[machine_id]
        free = self._busy(machine_id).isdisjoint(part.gpus)
        return machine, part, free and not machine.taken and machine_id not in self._offline

    def was_offered(self, offer_id: int) -> bool:
        """Whether the id belonged to an offer that has since been issued anew."""
        return offer_id in self._retired

    def listing_ends_s(self, machine: Machine) -> float:
        """Return the seconds until the host's listing of the machine ends."""
        return machine.listed_for_s - self.age_s

    def holds(self, machine_id: int) -> bool:
        """Whether the account has a contract on the machine."""
        return bool(self._on.get(machine_id))

    def contract(self, contract_id: int) -> Contract | None:
        """Return a contract that still exists."""
        return self._live.get(contract_id)

    def leaked(self) -> list[Contract]:
        """Return what still exists, so still costs; what a test wants to be empty at its end."""
        return list(self._live.values())

    def meter(self, contract: Contract) -> Decimal:
        """Return the dollars a contract has cost up to now."""
        return self._meter.cost(contract.id, self._us(self.now_s))

    def charges(self, contract: Contract) -> dict[tuple[int, str], Decimal]:
        """Return (UTC day number, `gpu` | `disk` | `bwd` | ...) -> dollars, in order of time."""
        return self._meter.charges(contract.id, self._us(self.now_s))

    def meter_total(self) -> Decimal:
        """Return the dollars that all contracts ever made have cost up to now."""
        return sum((self.meter(contract) for contract in self.contracts), Decimal(0))

    def charged(self) -> dict[str, object]:
        """Return the meter as plain data: the sum, and each contract ever made, oldest first.

        Dollars are text, with every digit. `id` is what the market calls the contract towards its
        customers, `label` what the renter asked it to be called.
        """
        rows = [
            {
                "id": contract.name,
                "label": contract.label,
                "usd": f"{self.meter(contract):f}",
                "open": contract.alive,
            }
            for contract in self.contracts
        ]
        return {"total_usd": f"{self.meter_total():f}", "contracts": rows}

    @property
    def credit_usd(self) -> Decimal:
        """What is left of the money paid in; below zero once disks ran on without credit."""
        return self._paid_in - self._meter.total(self._us(self.now_s))

    # Acting. The caller has called `advance` first.

    def rent(
        self,
        offer_id: int,
        order: Order,
        *,
        trouble: Trouble | None = None,
        trouble_s: float | None = None,
    ) -> Contract:
        """Make a contract and plan its way to running.

        Args:
            trouble_s: how long a passing trouble lasts, or when a later one strikes.

        Raises:
            LookupError: the offer is unknown or taken.
        """
        found = self.find_offer(offer_id)
        if found is None or not found[2]:
            raise LookupError(offer_id)
        machine, part, _ = found
        now = self.now_s
        contract = Contract(self._next_id, offer_id, machine, part.gpus, order, now)
        self._next_id += self.random.randrange(1, 40)
        self.contracts.append(contract)
        self._live[contract.id] = contract
        if trouble is None and self.random.random() < self._dead_start_ratio:
            trouble = self.random.choice((Trouble.DEAD_START, Trouble.OCI_ERROR, Trouble.STUCK))
        if trouble is Trouble.WRONG_MACHINE:
            others = [m for m in self._machines.values() if m.gpu.name != machine.gpu.name]
            contract.machine = self.random.choice(others or [machine])
        self._on[contract.machine.machine_id].append(contract)
        self._charge_from(contract, now)
        listing_ends_at = now + max(self.listing_ends_s(machine), 0.0)
        self.schedule(contract, Step(listing_ends_at, "listing_end"))
        if order.start:
            contract.hides_ports = trouble is Trouble.NO_PORTS
            boot_s = self._boot_time()
            boot = boot_plan(
                contract, self.random, at=now, boot_s=boot_s, trouble=trouble, trouble_s=trouble_s
            )
            self.schedule(contract, *boot)
        else:
            contract.mark_stopped()
            self.schedule(contract, Step(now + self._stop_s, "exited"))
        return contract

    async def destroy(self, contract: Contract) -> None:
        """End a contract: what ran is stopped, its disk is gone, nothing costs any more."""
        if not contract.alive:
            return
        contract.destroyed_at = now = self.now_s
        contract.plan.clear()
        del self._live[contract.id]
        self._on[contract.machine.machine_id].remove(contract)
        await self._halt(contract, now)
        if self._fresh_offer_ids:
            self._reissue(contract.machine.machine_id)
        self._resume_queued(self.now_s)

    async def stop(self, contract: Contract) -> None:
        """Stop the container; the GPUs are free for others, the disk stays and costs."""
        await self._stop_at(contract, self.now_s)
        self._resume_queued(self.now_s)

    async def start(self, contract: Contract) -> bool:
        """Start a stopped contract; False: its GPUs are taken, and the wish stays queued."""
        if contract.cur == "running":
            return True
        contract.intended = contract.next = "running"
        if self._broke or not self._can_resume(contract):
            self._queue[contract.id] = contract
            return False
        self._resume(contract, self.now_s)
        return True

    async def restart(self, contract: Contract, *, fresh: bool) -> None:
        """Reboot the container, or with `fresh` make it anew from its image; GPUs are kept.

        One whose program ended starts again, as `docker restart` would have it.
        """
        ended = contract.actual == "exited" and contract.cur != "stopped" and contract.alive
        if not contract.up and not ended:
            return
        ports = contract.ports
        await self._halt(contract, self.now_s, keep_gpus=True)
        contract.ports = {} if fresh or self.runtime.name != "pretend" else ports
        contract.actual = "recycling" if fresh else "rebooting"
        contract.drop_boot_steps()
        half = self._boot_time() / 2
        at = self.now_s
        self.schedule(contract, Step(at + half / 2, "loading"), Step(at + half, "start"))

    def set_bid(self, contract: Contract, usd_per_hour: Decimal) -> None:
        """Change the price of an interruptible contract from now on."""
        contract.bid = contract.gpu_usd_per_hour = usd_per_hour
        self._charge_from(contract, self.now_s)

    def reprice(self, contract: Contract, *, gpu: Decimal, disk: Decimal) -> None:
        """Change what a contract costs per hour, from as far as the world has come.

        That is the moment of the event that is being carried out, though the clock may show more.
        """
        contract.gpu_usd_per_hour, contract.disk_usd_per_hour = gpu, disk
        self._charge_from(contract, self._carried_to)

    def schedule(self, contract: Contract, *steps: Step) -> None:
        """Add steps to a contract's plan."""
        contract.plan += steps
        for step in steps:
            heappush(self._steps, (step.at, contract.id, next(self._serial), step))

    def script(self, contract: Contract, kind: str, *, in_s: float = 0.0, text: str = "") -> None:
        """Plan an event for a contract: `outbid`, `offline`, `online`, `exited`, `flicker`, ..."""
        self.schedule(contract, Step(self.now_s + in_s, kind, text))

    def transfer(
        self, contract: Contract, *, down_gb: Decimal = Decimal(0), up_gb: Decimal = Decimal(0)
    ) -> None:
        """Charge traffic of a contract at its machine's prices."""
        self.charge(contract, "bwd", down_gb * contract.machine.down_usd_per_gb)
        self.charge(contract, "bwu", up_gb * contract.machine.up_usd_per_gb)

    def charge(self, contract: Contract, kind: str, usd: Decimal) -> None:
        """Charge a sum at once, as for prepaid time; below zero it is given back."""
        self._meter.settle(contract.id, self._us(self._carried_to))  # charges go by time
        self._meter.charge(contract.id, self._us(self.now_s), kind, usd)

    def pay_in(self, usd: Decimal) -> None:
        """Add credit; what was stopped for lack of it stays stopped."""
        self._paid_in += usd
        self._broke = self._meter.total(self._us(self._carried_to)) >= self._paid_in

    def change_machine(self, machine_id: int, **changes: object) -> Machine:
        """Let a host change its terms (`taken`, `usd_per_gpu_hour`, ...); contracts keep theirs."""
        for part in self._machines[machine_id].slices:
            del self._on_offer[part.offer_id]
        machine = msgspec.structs.replace(self._machines[machine_id], **changes)
        self._machines[machine_id] = machine
        self._enlist(machine)
        self._resume_queued(self.now_s)
        return machine

    def lose_host(self, machine_id: int, *, for_s: float | None = None) -> None:
        """Take a machine out of contact, with all that runs there; None: for good."""
        self._offline.add(machine_id)
        for contract in self._on.get(machine_id, ()):
            self.script(contract, "offline")
            if for_s is not None:
                self.script(contract, "online", in_s=for_s)

    def later(self, in_s: float, action: Callable[[], Awaitable[None]]) -> None:
        """Do something at a later time of the world: an effect that was parked on its way."""
        heappush(self._later, (self.now_s + in_s, next(self._serial), action))

    async def advance(self) -> None:
        """Carry the world to the clock's now, through every event on the way and in order."""
        async with self._lock:
            now = self.now_s
            self._notice_exits(now)
            while True:
                at, contract, step = self._next_step()
                broke_at = self._broke_at()
                parked_at = self._later[0][0] if self._later else _NEVER
                if min(at, broke_at, parked_at) > now:
                    break
                if parked_at <= min(at, broke_at):
                    _, _, action = heappop(self._later)
                    self._carry_to(parked_at)
                    await action()
                elif broke_at < at or contract is None or step is None:
                    await self._stop_all(broke_at)
                else:
                    contract.plan.remove(step)
                    self._carry_to(step.at)
                    await self._happen(contract, step)
                    self._resume_queued(step.at)
            self._carry_to(now)
            self._resume_queued(now)

    async def run(self, *, every_s: float = 0.2) -> None:
        """Keep the world moving while nobody asks; ends by cancellation.

        While it runs, programs are started and stopped beside it, so that a slow image pull holds
        up nobody else; without it they are started and stopped within `advance`.
        """
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            try:
                while True:
                    await self.advance()
                    await asyncio.sleep(every_s)
            finally:
                self._tasks = None

    async def aclose(self) -> None:
        """Stop everything that really runs. Contracts stay as they are."""
        for contract in self._live.values():
            if contract.door is not None:
                await contract.door.aclose()
        await self.runtime.aclose()

    # Events.

    def _next_step(self) -> tuple[float, Contract | None, Step | None]:
        while self._steps:
            at, contract_id, _, step = self._steps[0]
            contract = self._live.get(contract_id)
            if contract is not None and step in contract.plan:
                return at, contract, step
            heappop(self._steps)  # done, or no longer planned
        return _NEVER, None, None

    async def _happen(self, contract: Contract, step: Step) -> None:
        match step.kind:
            case "start":
                await self._launch(contract, step.at)
            case "created" | "loading" | "scheduling":
                if not contract.offline:
                    contract.actual = step.kind
                contract.status_msg = step.text or contract.status_msg
            case "message":
                contract.status_msg = step.text
            case "dead":
                await self._exit(contract, step.at, 1)
            case "offline":
                contract.offline, contract.actual = True, "offline"
                self._charge_from(contract, step.at)
                self._offline.add(contract.machine.machine_id)
            case "online":
                contract.offline = False
                contract.actual = "running" if contract.up else "loading"
                self._charge_from(contract, step.at)
                self._offline.discard(contract.machine.machine_id)
            case "flicker":
                contract.actual = "loading"
            case "steady":
                contract.actual = "running" if contract.up else contract.actual
            case "outbid":
                was_up = contract.up
                await self._stop_at(contract, step.at)
                if not was_up:
                    contract.forget("exited")
            case "listing_end":
                await self._stop_at(contract, step.at)
            case "exited":
                contract.actual = "exited"
            case unknown:
                raise ValueError(f"no such event: {unknown!r}")

    async def _launch(self, contract: Contract, at: float) -> None:
        """Start the program; `at` is when it counts as up, whatever starting it really took."""
        launch = launch_of(contract, self.environment(contract), self.runtime)
        if self._tasks is None:
            await self._started(contract, launch, at)
        else:
            self._tasks.create_task(self._started(contract, launch, None))

    async def _started(self, contract: Contract, launch: Launch, at: float | None) -> None:
        try:
            running = await self.runtime.start(launch)
        except LaunchFailed as failed:
            contract.actual, contract.status_msg = "created", str(failed)
            return
        if not contract.alive or contract.cur == "stopped":
            await running.stop()  # released while it started: nobody else knows of this program
            return
        up_at = self.now_s if at is None else at
        contract.running, contract.up, contract.ran_since = running, True, up_at
        self._charge_from(contract, up_at)
        contract.ports = contract.ports or dict(running.ports)
        await open_door(contract, running, self.attend)
        contract.actual = "offline" if contract.offline else "running"
        contract.status_msg = f"success, running {contract.order.image.replace(':', '_')}"
        if self._host_losses_per_hour > 0:
            hours = self.random.expovariate(self._host_losses_per_hour)
            self.schedule(contract, Step(up_at + hours * 3600, "offline"))

    def _notice_exits(self, now: float) -> None:
        for contract in self._live.values():
            running = contract.running if contract.up else None
            code = running.exited() if running is not None else None
            if code is not None and not any(s.kind == "dead" for s in contract.plan):
                self.schedule(contract, Step(now, "dead", str(code)))

    async def _exit(self, contract: Contract, at: float, code: int) -> None:
        """The process ended by itself: the contract keeps its GPUs and the wish to run."""
        exited = contract.running.exited() if contract.running is not None else None
        await self._halt(contract, at, keep_gpus=True)
        contract.actual = "exited"
        contract.status_msg = f"container exited with code {code if exited is None else exited}"

    async def _stop_all(self, at: float) -> None:
        """Credit ran out: everything stops, disks go on."""
        self._carry_to(at)
        self._broke = True
        for contract in list(self._live.values()):
            await self._stop_at(contract, at)

    async def _stop_at(self, contract: Contract, at: float) -> None:
        contract.mark_stopped()
        contract.drop_boot_steps()
        await self._halt(contract, at)
        self.schedule(contract, Step(at + self._stop_s, "exited"))

    async def _halt(self, contract: Contract, at: float, *, keep_gpus: bool = False) -> None:
        running, contract.running = contract.running, None
        door, contract.door = contract.door, None
        contract.up, contract.ports, contract.ran_since = False, {}, None
        contract.holds_gpus = keep_gpus and contract.alive
        self._charge_from(contract, at)
        if running is None:
            return
        if self._tasks is None:
            await wind_up(contract, running, door)
        else:
            self._tasks.create_task(wind_up(contract, running, door))

    def _can_resume(self, contract: Contract) -> bool:
        machine = self._machines.get(contract.machine.machine_id)
        if machine is None or machine.taken or machine.machine_id in self._offline:
            return False
        return self._busy(machine.machine_id).isdisjoint(contract.gpus)

    def _resume(self, contract: Contract, at: float) -> None:
        contract.intended = contract.cur = contract.next = "running"
        contract.holds_gpus = True
        contract.forget("exited")
        half = self._boot_time() / 2
        loading = Step(at + half / 4, "loading", "Starting")
        self.schedule(contract, loading, Step(at + half, "start"))

    def _resume_queued(self, at: float) -> None:
        """Start what can start again, the oldest contract first."""
        for contract_id, contract in sorted(self._queue.items()):
            if not contract.queued or not contract.alive:
                del self._queue[contract_id]
            elif not self._broke and self._can_resume(contract):
                self._resume(contract, at)

    def _reissue(self, machine_id: int) -> None:
        """Give a machine's offers new ids, as if its host had listed it anew."""
        machine = self._machines[machine_id]
        self._retired.update(part.offer_id for part in machine.slices)
        top = 1 + max(self._on_offer)
        parts = tuple(Slice(top + n, part.gpus) for n, part in enumerate(machine.slices))
        self.change_machine(machine_id, slices=parts)

    def _enlist(self, machine: Machine) -> None:
        for part in machine.slices:
            self._on_offer[part.offer_id] = (machine.machine_id, part)

    def _busy(self, machine_id: int) -> set[int]:
        return {gpu for c in self._on.get(machine_id, ()) if c.holds_gpus for gpu in c.gpus}

    def _boot_time(self) -> float:
        return self.random.uniform(*self._boot_s)

    # Money.

    def _charge_from(self, contract: Contract, at: float) -> None:
        """Let the meter run at what a contract costs since its state or its price has changed."""
        from_us = self._us(max(at, self._carried_to))
        self._meter.run(contract.id, from_us, contract.rates)

    def _carry_to(self, at: float) -> None:
        self._carried_to = max(self._carried_to, at)

    def _broke_at(self) -> float:
        """When credit ends at the present burn; never, if it has ended already."""
        at_us = None if self._broke else self._meter.reaches_at_us(self._paid_in)
        if at_us is None:
            return _NEVER
        return self._began_at + float(at_us / 1_000_000 - Fraction(self._epoch_s))

    def _us(self, at: float) -> int:
        """Return the Unix time of a reading of the world's clock in microseconds."""
        return round(self.epoch(at) * 1_000_000)
