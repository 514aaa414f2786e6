"""The simulated Akash itself: orders, bids, leases and escrow, over the machines of the world.

Hides the auction and the money. A deployment locks its deposit, its groups are orders, hosts that
could place a group bid after a while and never above its ceiling, one bid becomes a lease and the
others are lost. A lease pays per block out of the escrow, whether or not anything runs; what is
left returns when the deployment closes; an empty escrow closes it. Everything that is paid is
charged to the world's meter, in whole blocks. Nothing here knows HTTP.

Time is stepped: `step` carries the market to the world's present, as every request does.

Source: node:x/market, x/deployment and x/escrow, provider:bidengine, as restated in
docs/reference/akash.md; checked 2026-11. What the source leaves open is a setting.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from decimal import Decimal

import msgspec

from gp4u.sim.akash.sdl import Group, Service
from gp4u.sim.akash.supply import Card, address, card_of, provider_address
from gp4u.sim.contracts import Contract, Order, Step, Trouble
from gp4u.sim.launch import Launch, LaunchFailed, Port, Running
from gp4u.sim.market import Machine, Slice
from gp4u.sim.world import World

FIRST_HEIGHT = 28_826_831
"""The chain's height when the world began."""
MAX_BIDS = 20
MICRO = Decimal(1_000_000)
MANIFEST_TIMEOUT_S = 300.0
CPU_USD, RAM_GIB_USD, DISK_GIB_USD = Decimal("0.003"), Decimal("0.0008"), Decimal("0.00002")
"""What a host adds per hour for a CPU, a GiB of memory and a GiB of disk. Ours."""


class AkashSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What the sources leave open or disagree on, and what tests want otherwise."""

    api_key: str = "sim-key"
    block_time_s: float = 6.0
    bid_delay_s: tuple[float, float] = (5.0, 30.0)
    bid_life_s: float = 300.0
    """How long after its order a bid can be accepted."""
    status_delay_s: tuple[float, float] = (2.0, 6.0)
    """How long a host does not answer for a new lease."""
    list_lag_s: tuple[float, float] = (0.0, 1.0)
    """How long the Console's list is blind to a change, drawn per deployment."""
    replica_lag_s: float = 8.0
    """How far the second node is behind the first."""
    replica_lags: bool = True
    newer_lists: bool = False
    """Lists of all there ever were, by state, at most 100 rows; else of active ones, with leases
    mixed up."""
    ignores_deposit: bool = False
    """Whether the server funds from credits, as newer ones do."""
    forwards_name_proto: bool = True
    """Whether the Console passes on what its published schema leaves out."""
    akt_share: float = 0.0
    """Share of hosts whose newest bid is in AKT."""
    akt_usd: Decimal = Decimal("0.7003602983340738")
    debug_prices: bool = True
    """Whether `debug=true` still tells hosts apart."""
    throttle: float = 0.0
    """No budget is published. Above 0: calls per minute and key."""


class Bid:
    """One host's answer to an order."""

    def __init__(self, host: Host, price: Decimal, at: float, slice_: Slice, card: Card) -> None:
        self.host, self.price, self.at, self.slice, self.card = host, price, at, slice_, card
        self.state = "open"

    def visible(self, now: float) -> bool:
        """Whether it has come in."""
        return self.at <= now


class Lease:
    """A group on a host. Costs from the block it was made in."""

    def __init__(self, bid: Bid, contract: Contract, at: float, height: int) -> None:
        self.bid, self.contract, self.at, self.height = bid, contract, at, height
        self.state, self.reason, self.closed_on = "active", "", 0
        self.withheld: list[Step] | None = None
        """The boot that waits for the manifest; None: it was delivered."""
        self.answers_from = at
        self.deadline: float | None = None
        """When the host takes it back, once it has said so."""
        self.beside: dict[str, Running] = {}
        """What runs of the group's further services, by name."""
        self.failed: set[str] = set()

    @property
    def live(self) -> bool:
        """Whether it costs money."""
        return self.state in ("active", "reclaiming")


class Placed:
    """A group of a deployment, its order, bids and lease."""

    def __init__(self, gseq: int, group: Group, bids: Sequence[Bid]) -> None:
        self.gseq, self.group, self.bids = gseq, group, tuple(bids)
        self.lease: Lease | None = None
        self.state, self.order_state = "open", "open"


class Deployment:
    """What a tenant published, with its money."""

    def __init__(
        self, dseq: str, placed: Sequence[Placed], at: float, height: int, deposit: Decimal
    ) -> None:
        self.dseq, self.placed, self.at, self.height = dseq, tuple(placed), at, height
        self.deposit = self.funds = deposit
        """In uact."""
        self.transferred = Decimal(0)
        self.settled_at = height
        self.state, self.closed_at = "active", None  # type: str, float | None
        self.trouble: tuple[Trouble | None, float | None] = (None, None)
        self.shown_from = self.hidden_from = at
        """When the Console's list notices that it is there, and that it is closed."""
        self.on_chain_from = at
        """When the first node shows it."""

    @property
    def open(self) -> bool:
        """Whether it still holds money."""
        return self.state == "active"

    @property
    def leases(self) -> list[Lease]:
        """Every lease that was made for it."""
        return [placed.lease for placed in self.placed if placed.lease is not None]

    @property
    def rate(self) -> Decimal:
        """What it pays per block now, in uact."""
        return sum((lease.bid.price for lease in self.leases if lease.live), Decimal(0))

    def state_at(self, at: float) -> str | None:
        """Return what a node that knows the chain up to then says; None: never heard of it."""
        if at < self.on_chain_from:
            return None
        return "closed" if self.closed_at is not None and self.closed_at <= at else "active"


class Host:
    """A provider: a machine of the world that sells here."""

    def __init__(self, machine: Machine, card: Card, pays_akt: bool) -> None:
        self.machine, self.card, self.pays_akt = machine, card, pays_akt
        self.owner = provider_address(machine)


class TenantError(Exception):
    """What the market refuses; the dialect says it in its own words."""

    def __init__(self, kind: str, text: str, **more: object) -> None:
        self.kind, self.more = kind, more
        super().__init__(text)


class AkashMarket:
    """The truth behind Console, chain and gateways."""

    def __init__(self, world: World, settings: AkashSettings) -> None:
        self.world, self.settings = world, settings
        self.account = address("tenant")
        self.deployments: dict[str, Deployment] = {}
        """By number, oldest first, closed ones too."""
        self.unreachable: set[str] = set()
        """Hosts by address that answer nobody."""
        self.deaf: dict[str, int] = {}
        """Hosts by address that lose so many manifests."""
        self._ticking = False
        self.hosts: dict[str, Host] = {}
        for machine in world.machines:
            card = card_of(machine)
            if card is not None:
                in_akt = world.random.random() < settings.akt_share
                host = Host(machine, card, in_akt)
                self.hosts[host.owner] = host

    # Reading.

    @property
    def height(self) -> int:
        """The newest block."""
        return FIRST_HEIGHT + int(self.world.age_s / self.settings.block_time_s)

    @property
    def height_at(self) -> float:
        """When that block was made, in seconds since 1970."""
        since = self.world.age_s % self.settings.block_time_s
        return self.world.epoch(self.world.now_s - since)

    @property
    def locked_usd(self) -> Decimal:
        """What lies in escrows."""
        return sum((d.funds for d in self.deployments.values() if d.open), Decimal(0)) / MICRO

    @property
    def balance_usd(self) -> Decimal:
        """What the account can still lock."""
        return self.world.credit_usd - self.locked_usd

    def held(self) -> list[Deployment]:
        """Return the deployments that still hold money; what a test wants to be empty."""
        return [d for d in self.deployments.values() if d.open]

    def online(self) -> dict[str, Host]:
        """Return the hosts that can be reached now."""
        there = {machine.machine_id for machine, _, _ in self.world.offers()}
        busy = {d.bid.host.owner for x in self.held() for d in x.leases if d.live}
        return {
            owner: host
            for owner, host in self.hosts.items()
            if owner not in self.unreachable and (host.machine.machine_id in there or owner in busy)
        }

    def allocated(self, host: Host) -> int:
        """Return how many of a host's cards are in use."""
        machine = self.world.machine(host.machine.machine_id)
        if machine.taken:
            return machine.gpu_count
        return sum(
            len(lease.contract.gpus)
            for deployment in self.held()
            for lease in deployment.leases
            if lease.live and lease.bid.host is host
        )

    def hourly_usd(self, host: Host, count: int = 1) -> Decimal:
        """Return what a host asks for so many cards, without CPU, memory and disk."""
        machine = self.world.machine(host.machine.machine_id)
        return machine.usd_per_gpu_hour * count

    def per_block(self, usd_per_hour: Decimal) -> Decimal:
        """Return an hourly price in uact per block, with the digits a bid has."""
        blocks = Decimal(3600) / Decimal(str(self.settings.block_time_s))
        return (usd_per_hour * MICRO / blocks).quantize(MICRO**-1)

    # Acting. The caller has called `step` before.

    def create(
        self, groups: Sequence[Group], deposit_usd: Decimal, *, no_bids: bool = False
    ) -> Deployment:
        """Publish a deployment: lock its deposit and let hosts think about it.

        Raises:
            TenantError: the account cannot pay the deposit.
        """
        if deposit_usd > self.balance_usd:
            raise TenantError(
                "insufficient_balance",
                "Insufficient balance.",
                requiredAmountUsd=float(deposit_usd),
                availableAmountUsd=float(self.balance_usd),
            )
        now = self.world.now_s
        number = int(self.world.epoch(now) * 1000)
        while str(number) in self.deployments:
            number += 1
        placed = [
            Placed(gseq, group, () if no_bids else self._bids(group))
            for gseq, group in enumerate(groups, 1)
        ]
        made = Deployment(str(number), placed, now, self.height, deposit_usd * MICRO)
        made.shown_from = now + self._drawn(self.settings.list_lag_s)
        self.deployments[made.dseq] = made
        return made

    def bids(self, deployment: Deployment, placed: Placed) -> list[Bid]:
        """Return the bids of an order that have come in, with what became of them."""
        now = self.world.now_s
        stale = now >= deployment.at + self.settings.bid_life_s
        for bid in placed.bids:
            if bid.state == "open" and (stale or not deployment.open):
                bid.state = "closed"
        return [bid for bid in placed.bids if bid.visible(now)]

    def accept(self, deployment: Deployment, placed: Placed, owner: str) -> bool:
        """Turn a host's bid into a lease and hand over the manifest; again, only the latter.

        Returns whether the manifest arrived.

        Raises:
            TenantError: there is no such open bid, or the host does not answer.
        """
        if placed.lease is not None:
            if placed.lease.bid.host.owner != owner or not placed.lease.live:
                raise TenantError("bad_request", "the order is not open")
            return self._deliver(placed.lease)
        found = [b for b in self.bids(deployment, placed) if b.host.owner == owner]
        if not deployment.open or not found or found[0].state != "open":
            raise TenantError("bad_request", "bid not open")
        if owner in self.unreachable:
            raise TenantError("provider_unreachable", "The provider cannot be reached.")
        return self._deliver(self._make_lease(deployment, placed, found[0]))

    def deposit(self, deployment: Deployment, usd: Decimal) -> None:
        """Put more into an escrow.

        Raises:
            TenantError: the account cannot pay it, or the deployment is closed.
        """
        if not deployment.open:
            raise TenantError("bad_request", "the deployment is closed")
        if usd > self.balance_usd:
            raise TenantError(
                "insufficient_balance",
                "Insufficient balance.",
                requiredAmountUsd=float(usd),
                availableAmountUsd=float(self.balance_usd),
            )
        deployment.deposit += usd * MICRO
        deployment.funds += usd * MICRO

    async def close(self, deployment: Deployment, reason: str = "owner") -> None:
        """End a deployment; what is left of its money is the account's again."""
        if not deployment.open:
            return
        for placed in deployment.placed:
            placed.state = placed.order_state = "closed"
            if placed.lease is not None and placed.lease.live:
                await self._end(placed.lease, "closed", reason)
        deployment.state, deployment.closed_at = "closed", self.world.now_s
        deployment.hidden_from = self.world.now_s + self._drawn(self.settings.list_lag_s)

    def reclaim(self, deployment: Deployment, in_s: float) -> None:
        """Let the hosts of a deployment announce that they take it back."""
        for lease in deployment.leases:
            lease.state, lease.deadline = "reclaiming", self.world.now_s + in_s

    async def step(self) -> None:
        """Carry everything to the world's present: what is due is paid, what is over ends."""
        for deployment in list(self.deployments.values()):
            if deployment.open:
                await self._settle(deployment)
                for lease in deployment.leases:
                    await self._look_after(deployment, lease)

    # Inside.

    def _keep_time(self) -> None:
        """Step at every block while something costs, even if nobody calls."""

        async def tick() -> None:
            self._ticking = False
            await self.step()
            if self.held():
                self._keep_time()

        if not self._ticking:
            self._ticking = True
            self.world.later(self.settings.block_time_s, tick)

    def _bids(self, group: Group) -> list[Bid]:
        """Return the bids that will come in, by time; the market takes the first twenty."""
        world, now = self.world, self.world.now_s
        count = sum(service.gpus * service.count for service in group.services)
        wishes = [service.cards for service in group.services if service.cards]
        free: dict[int, Slice] = {
            machine.machine_id: part
            for machine, part, rentable in world.offers()
            if rentable and len(part.gpus) == count
        }
        made = []
        for host in self.online().values():
            part = free.get(host.machine.machine_id)
            fits = all(any(host.card.fits(wish) for wish in cards) for cards in wishes)
            if part is None or not fits or not _has_room(host.machine, group):
                continue
            price = self.per_block(self.hourly_usd(host, count) + _extras_usd(group))
            if price <= group.ceiling:
                at = now + self._drawn(self.settings.bid_delay_s)
                made.append(Bid(host, price, at, part, host.card))
        made.sort(key=lambda bid: bid.at)
        return made[:MAX_BIDS]

    def _make_lease(self, deployment: Deployment, placed: Placed, bid: Bid) -> Lease:
        trouble, trouble_s = deployment.trouble
        first = main_of(placed.group)
        try:
            contract = self.world.rent(
                bid.slice.offer_id,
                _order(placed.group, first),
                trouble=trouble,
                trouble_s=trouble_s,
            )
        except LookupError:
            raise TenantError("bad_request", "the provider has no such resources now") from None
        # Paid by the block, below; the world's own meter by the second must stand still.
        self.world.reprice(contract, gpu=Decimal(0), disk=Decimal(0))
        contract.name = deployment.dseq
        lease = Lease(bid, contract, self.world.now_s, self.height)
        lease.answers_from += self._drawn(self.settings.status_delay_s)
        lease.withheld, contract.plan = contract.plan, []
        placed.lease, placed.order_state = lease, "active"
        for other in placed.bids:
            other.state = "active" if other is bid else "lost"
        self._keep_time()
        return lease

    def _deliver(self, lease: Lease) -> bool:
        owner = lease.bid.host.owner
        if lease.withheld is None:
            return True
        if owner in self.unreachable:
            return False
        if self.deaf.get(owner, 0) > 0:
            self.deaf[owner] -= 1
            return False
        waited = self.world.now_s - lease.at
        late = [msgspec.structs.replace(step, at=step.at + waited) for step in lease.withheld]
        self.world.schedule(lease.contract, *late)
        lease.withheld = None
        return True

    async def _settle(self, deployment: Deployment) -> None:
        """Pay for the blocks since the last time; what cannot be paid ends here."""
        blocks, rate = self.height - deployment.settled_at, deployment.rate
        if blocks <= 0:
            return
        if rate <= 0:
            deployment.settled_at = self.height
            return
        payable = min(blocks, int(deployment.funds / rate))
        for lease in deployment.leases:
            if lease.live:
                usd = lease.bid.price * payable / MICRO
                self.world.charge(lease.contract, "gpu", usd)
        deployment.funds -= rate * payable
        deployment.transferred += rate * payable
        deployment.settled_at += payable
        if payable < blocks:
            for lease in deployment.leases:
                if lease.live:
                    await self._end(lease, "insufficient_funds", "insufficient_funds")
            await self.close(deployment, "insufficient_funds")

    async def _look_after(self, deployment: Deployment, lease: Lease) -> None:
        """See to what time brings: a manifest that never came, a notice that ran out, services."""
        now, contract = self.world.now_s, lease.contract
        if not lease.live:
            return
        if lease.withheld is not None and now >= lease.at + MANIFEST_TIMEOUT_S:
            await self._end(lease, "closed", "manifest_timeout")
        elif lease.deadline is not None and now >= lease.deadline:
            await self._end(lease, "closed", "decommission")
        elif contract.up:
            placed = next(p for p in deployment.placed if p.lease is lease)
            for service in placed.group.services:
                if service is not main_of(placed.group):
                    await self._run_beside(lease, service)

    async def _run_beside(self, lease: Lease, service: Service) -> None:
        if service.name in lease.beside or service.name in lease.failed:
            return
        launch = Launch(
            instance_id=f"{lease.contract.id}-{service.name}",
            image=service.image,
            command=(*service.command[1:], *service.args) or None,
            entrypoint=service.command[0] if service.command else None,
            env=dict(service.env),
            ports=_runtime_ports(service),
            own_root=bool(service.command),
            login=service.login,
        )
        try:
            lease.beside[service.name] = await self.world.runtime.start(launch)
        except LaunchFailed:
            lease.failed.add(service.name)

    async def _end(self, lease: Lease, state: str, reason: str) -> None:
        lease.state, lease.reason, lease.closed_on = state, reason, self.height
        for running in lease.beside.values():
            with suppress(Exception):
                await running.stop()
        await self.world.destroy(lease.contract)

    def _drawn(self, bounds: tuple[float, float]) -> float:
        return self.world.random.uniform(*bounds)


def main_of(group: Group) -> Service:
    """Return the service that the world's contract runs: the one with cards, else the first."""
    return next((service for service in group.services if service.gpus), group.services[0])


def _order(group: Group, service: Service) -> Order:
    return Order(
        image=service.image,
        disk_gb=Decimal(service.storage) / 10**9,
        label=group.name,
        command=(*service.command[1:], *service.args) or None,
        entrypoint=service.command[0] if service.command else None,
        env=dict(service.env),
        ports=_runtime_ports(service),
        login=service.login,
    )


def _runtime_ports(service: Service) -> tuple[Port, ...]:
    made = {Port(port.inside, port.protocol): None for port in service.ports}
    return tuple(made)


def _has_room(machine: Machine, group: Group) -> bool:
    cpus = sum(s.cpu_milli * s.count for s in group.services) / 1000
    memory = sum(s.memory * s.count for s in group.services)
    storage = sum(s.storage * s.count for s in group.services)
    return (
        cpus <= machine.cpu_cores
        and memory <= machine.ram_mb * 2**20
        and storage <= machine.disk_gb * 10**9
    )


def _extras_usd(group: Group) -> Decimal:
    """Return what a host adds for everything but its cards, in dollars per hour."""
    total = Decimal(0)
    for service in group.services:
        usd = CPU_USD * service.cpu_milli / 1000
        usd += RAM_GIB_USD * service.memory / 2**30 + DISK_GIB_USD * service.storage / 2**30
        total += usd * service.count
    return total


def services_of(
    lease: Lease, group: Group
) -> Iterator[tuple[Service, bool, Mapping[tuple[int, str], int]]]:
    """Yield each service of a lease: whether it runs, and its ports outside."""
    main, contract = main_of(group), lease.contract
    for service in group.services:
        if service is main:
            up = contract.up and contract.actual == "running" and not contract.offline
            yield service, up, contract.ports if up and not contract.hides_ports else {}
        else:
            running = lease.beside.get(service.name)
            yield (
                service,
                running is not None and running.exited() is None,
                (running.ports if running is not None else {}),
            )
