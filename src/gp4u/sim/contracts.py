"""A contract: what a renter asked for, its states, and what can go wrong on the way.

Hides the script of a boot. `boot_plan` turns a contract and its trouble into timed steps; `World`
carries them out. Kept apart from the world so that a new kind of trouble is written in one place.

Source of states and texts: Vast.ai documentation (instance states, troubleshooting) and public bug
reports that quote `status_msg`, checked 2026-11.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from decimal import Decimal
from enum import StrEnum
from random import Random
from typing import Protocol, assert_never

import msgspec

from gp4u.sim.launch import Launch, Port, Running, Runtime
from gp4u.sim.market import Machine

_LOG_LINES = 10_000


class Trouble(StrEnum):
    """What can befall one contract; scripted when it is made."""

    OCI_ERROR = "oci_error"
    """The container cannot be created; stays `created` with the runtime's error text."""
    PULL_ERROR = "pull_error"
    PULL_DENIED = "pull_denied"
    """The registry wants a login, and got none or a wrong one."""
    SLOW_PULL = "slow_pull"
    """Twenty times the usual boot, with a text that stands still."""
    STUCK = "stuck"
    """Loads for ever."""
    DEAD_START = "dead_start"
    """Comes up and exits at once."""
    OFFLINE = "offline"
    """The host is out of contact for a while in mid-boot."""
    HOST_LOSS = "host_loss"
    """The host is lost for good after the contract ran."""
    OUTBID_LOADING = "outbid_loading"
    OUTBID_RUNNING = "outbid_running"
    FLICKER = "flicker"
    """Reported as loading for a while although it serves."""
    QUEUED = "queued"
    """Waits for its GPU before it boots."""
    NO_PORTS = "no_ports"
    """Runs, but the host forwards nothing."""
    WRONG_MACHINE = "wrong_machine"
    """Placed on another machine than the offer's."""


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What a renter asked for; `extra` is kept for the dialect to echo."""

    image: str
    disk_gb: Decimal
    label: str | None = None
    bid_usd_per_hour: Decimal | None = None
    """For the whole instance; None: on demand."""
    command: tuple[str, ...] | None = None
    entrypoint: str | None = None
    env: Mapping[str, str] = {}
    ports: tuple[Port, ...] = ()
    served: tuple[Port, ...] = ()
    """Those of the ports that the market itself listens on, and not what is rented."""
    login: tuple[str, str, str] | None = None
    """Registry, user and password that the image is pulled with."""
    start: bool = True
    extra: Mapping[str, object] = {}


class Step(msgspec.Struct, frozen=True):
    """Something that happens to a contract by itself, at a time of the world's clock."""

    at: float
    kind: str
    text: str = ""


class Door(Protocol):
    """A way into a running instance that the market itself keeps open."""

    @property
    def ports(self) -> Mapping[tuple[int, str], int]:
        """(container port, protocol) to host port."""

    async def aclose(self) -> None:
        """Let nobody in any more, and send everybody out."""


class Contract:
    """One instance: the renter's order, its price, and what became of it."""

    def __init__(
        self,
        contract_id: int,
        offer_id: int,
        machine: Machine,
        gpus: tuple[int, ...],
        order: Order,
        at: float,
    ) -> None:
        self.id, self.offer_id, self.machine, self.gpus, self.order = (
            contract_id,
            offer_id,
            machine,
            gpus,
            order,
        )
        self.label = order.label
        self.name = str(contract_id)
        """What the market calls it towards its customers."""
        self.created_at, self.destroyed_at = at, None  # type: float, float | None
        self.bid = order.bid_usd_per_hour
        self.gpu_usd_per_hour = self.bid or machine.usd_per_gpu_hour * len(gpus)
        self.disk_usd_per_hour = machine.storage_usd_per_hour(order.disk_gb)
        """Both prices are changed by `World.reprice`, so that the meter knows from when."""
        self.actual: str | None = None
        self.intended = self.cur = self.next = "running"
        self.status_msg: str | None = None
        self.up = False
        """The container really runs: this, not `actual`, is what GPU time is billed by."""
        self.offline = False
        self.holds_gpus = True
        self.ports: dict[tuple[int, str], int] = {}
        self.hides_ports = False
        self.ran_since: float | None = None
        self.logs_kept = ""
        """What the last process printed, once it is gone."""
        self.running: Running | None = None
        self.door: Door | None = None
        """What the market listens with on the machine, while the instance is up."""
        self.plan: list[Step] = []
        """What will happen by itself; `World.schedule` adds to it."""

    @property
    def alive(self) -> bool:
        """Whether it still exists, running or not; only then can it cost anything."""
        return self.destroyed_at is None

    @property
    def queued(self) -> bool:
        """Whether it is stopped and waits for its GPUs to start again."""
        return self.cur == "stopped" and self.next == "running"

    @property
    def rates(self) -> dict[str, Decimal]:
        """Dollars per hour that run now. Out of contact costs nothing; stopped costs the disk."""
        if not self.alive or self.offline:
            return {}
        rates = {"disk": self.disk_usd_per_hour}
        if self.up:
            rates["gpu"] = self.gpu_usd_per_hour
        return rates

    def mark_stopped(self) -> None:
        """Note that it is stopped and shall be; its GPUs are free for others."""
        self.intended = self.cur = self.next = "stopped"
        self.holds_gpus = False

    def drop_boot_steps(self) -> None:
        """Take from the plan what only comes of running."""
        self.plan = [step for step in self.plan if step.kind in ("listing_end", "online")]

    def forget(self, kind: str) -> None:
        """Take every step of a kind from the plan."""
        self.plan = [step for step in self.plan if step.kind != kind]


def boot_plan(
    contract: Contract,
    random: Random,
    *,
    at: float,
    boot_s: float,
    trouble: Trouble | None,
    trouble_s: float | None,
) -> list[Step]:
    """Return the steps from a rent at `at` to running, or to wherever the trouble leads.

    Args:
        boot_s: time from rent to running, without trouble.
        trouble_s: how long a passing trouble lasts, or how long after running a later one strikes.
    """
    plan: list[Step] = []
    if trouble is Trouble.SLOW_PULL:
        boot_s *= 20
    if trouble is Trouble.QUEUED:
        plan.append(Step(at, "scheduling"))
        at += 5 * boot_s if trouble_s is None else trouble_s
    half = at + 0.5 * boot_s
    up = at + boot_s
    after = up + (5.0 if trouble_s is None else trouble_s)
    plan += [
        Step(at + 0.05 * boot_s, "created"),
        Step(at + 0.15 * boot_s, "loading", _pulling(random)),
    ]
    texts = [Step(at + part * boot_s, "message", _pulling(random)) for part in (0.3, 0.45, 0.7)]
    match trouble:
        case Trouble.OCI_ERROR:
            return [plan[0], Step(at + 0.15 * boot_s, "message", _oci_error(contract))]
        case Trouble.PULL_ERROR:
            return [*plan, *texts, Step(up, "message", _pull_error(contract))]
        case Trouble.PULL_DENIED:
            return [*plan, *texts, Step(up, "message", _pull_denied(contract))]
        case Trouble.STUCK:
            return plan + texts
        case Trouble.SLOW_PULL:
            return [*plan, Step(up, "start")]
        case Trouble.OUTBID_LOADING:
            return [*plan, *texts[:2], Step(half, "outbid")]
        case Trouble.OFFLINE:
            back = half + (600.0 if trouble_s is None else trouble_s)
            return [
                *plan,
                Step(half, "offline"),
                Step(back, "online"),
                Step(back + 0.5 * boot_s, "start"),
            ]
        case Trouble.DEAD_START:
            return [*plan, *texts, Step(up, "start"), Step(up + 0.1, "dead")]
        case Trouble.OUTBID_RUNNING:
            return [*plan, *texts, Step(up, "start"), Step(after, "outbid")]
        case Trouble.HOST_LOSS:
            return [*plan, *texts, Step(up, "start"), Step(after, "offline")]
        case Trouble.FLICKER:
            flicker = [Step(after, "flicker"), Step(after + 10.0, "steady")]
            return [*plan, *texts, Step(up, "start"), *flicker]
        case Trouble.QUEUED | Trouble.NO_PORTS | Trouble.WRONG_MACHINE | None:
            return [*plan, *texts, Step(up, "start")]
        case _:
            assert_never(trouble)


def _pulling(random: Random) -> str:
    layer = f"{random.getrandbits(48):012x}"
    return f"{layer}: {random.choice(('Pulling fs layer', 'Downloading', 'Extracting'))}"


def _oci_error(contract: Contract) -> str:
    return (
        "Error response from daemon: failed to create task for container: failed to create shim "
        "task: OCI runtime create failed: runc create failed: unable to start container process "
        f"of C.{contract.id}"
    )


def _pull_error(contract: Contract) -> str:
    image = contract.order.image
    return f"Error response from daemon: manifest for {image} not found: manifest unknown"


def _pull_denied(contract: Contract) -> str:
    image = contract.order.image.partition(":")[0]
    return (
        f"Error response from daemon: pull access denied for {image}, repository does not exist or "
        "may require 'docker login': denied: requested access to the resource is denied"
    )


def launch_of(contract: Contract, more: Mapping[str, str], runtime: Runtime) -> Launch:
    """Return what to start for a contract, with more variables than its renter asked for.

    What the market itself listens on is not the program's; where all is pretended nobody listens.
    """
    order, pretended = contract.order, runtime.name == "pretend"
    ports = tuple(port for port in order.ports if pretended or port not in order.served)
    return Launch(
        instance_id=str(contract.id),
        image=order.image,
        command=order.command,
        entrypoint=order.entrypoint,
        env={**order.env, **more},
        ports=ports,
        own_root=order.entrypoint is not None,
        login=order.login,
    )


Attend = Callable[[Contract], Awaitable[Door | None]]
"""Opens a way into what has just started, if there is one."""


async def nobody(_: Contract) -> None:
    """Open no way in."""


async def open_door(contract: Contract, running: Running, attend: Attend) -> None:
    """Let a market open its way into what has started, unless it is halted meanwhile."""
    door = await attend(contract)
    if door is None:
        return
    if contract.running is not running:
        await door.aclose()  # nobody else knows of it
        return
    contract.door = door
    contract.ports |= door.ports


async def wind_up(contract: Contract, running: Running, door: Door | None) -> None:
    """End what ran for a contract, and keep what it printed."""
    if door is not None:
        await door.aclose()
    contract.logs_kept = await running.logs(_LOG_LINES)
    await running.stop()
