"""What a provider is: seven calls, its facts as data, and what each error means here.

An adapter knows one market's dialect and nothing else. Retry, pacing, caching, scoring, metrics
and logging happen around it (`http.py`, `resilience/guard.py`, `book.py`), never in it.

The method that matters most is `instances`: one call per provider and tick feeds every rental, and
it is the only thing that can prove that a machine is gone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from decimal import Decimal
from enum import Flag, auto
from typing import ClassVar

import msgspec

from gp4u.errors import BadInput, Refused
from gp4u.model import Listing, Offer, Protocol, RentalKey, Requirements, Workload
from gp4u.providers.session import Link, Session
from gp4u.resilience.bucket import Pace
from gp4u.resilience.guard import Guard


class Ability(Flag):
    """What a provider can do. Whoever wants something of it asks here, instead of trying.

    `unfit` asks for a whole workload. What a spec does not declare, its adapter must refuse as
    `unsupported`; `gp4u.testing.ProviderContract` looks whether it does.
    """

    NONE = 0
    LABELS = auto()
    """Instances carry our key, so they can be found again. Without it a provider is quoted, and
    rented from only where `GP4U_ALLOW_UNLABELLED` says so."""
    PORTS = auto()
    """Container ports are reachable from outside."""
    LOGS = auto()
    """What the workload prints can be read."""
    EXEC = auto()
    """A command can be run inside an instance."""
    COMMAND = auto()
    """The image's command can be replaced."""
    INTERRUPTIBLE = auto()
    """Sells by bid, and takes the machine away for a higher one."""
    BILL = auto()
    """Tells what an instance has cost so far."""
    MULTI_CONTAINER = auto()
    """Runs several containers on one machine, and lets each be looked into by its name."""
    PREPAID = auto()
    """Time is bought in blocks; a rental that lives is extended before its block ends."""
    AUCTION = auto()
    """Offers are estimates; the real ones are bids that come after an order is placed."""
    UDP = auto()
    """A published port may be UDP."""
    RAW_PORTS = auto()
    """A container port is reached at an address and port; without it, by one HTTP URL only."""
    MANY_PORTS = auto()
    """More than one container port can be published."""
    SHELL = auto()
    """A command runs inside an instance with its streams open, with a terminal if wanted."""
    FORWARD = auto()
    """A container port that is not published can be reached through the market."""
    FILES = auto()
    """Files and commands that come first, where the workload's entrypoint is known."""
    ENTRYPOINT = auto()
    """The image's entrypoint can be replaced."""
    REGISTRY_LOGIN = auto()
    """An image that is not public can be pulled."""
    RESTART = auto()
    """A workload can be started anew in its machine."""
    FOLLOW = auto()
    """What the workload prints can be followed as it comes."""


class ProviderSpec(msgspec.Struct, frozen=True, kw_only=True):
    """The facts about a provider that others need; no behaviour."""

    slug: str
    title: str
    env: str
    """Prefix of its variables: `VASTAI` makes `VASTAI_API_KEY`, `VASTAI_BASE_URL`, ..."""
    base_url: str
    rate_limit_per_min: int
    key_url: str
    """The page where a key is made."""
    key_aliases: tuple[str, ...] = ()
    key_required: bool = True
    settle_s: float = 30.0
    """How long after our last call a listing may still be blind to its effect."""
    bill_lag_s: float = 0.0
    """How long after the end of an instance its bill may still grow."""
    late_window_s: float = 120.0
    """How long a lost rent call may still take effect. Patience is this plus `settle_s`."""
    paces: Mapping[str, Pace] = msgspec.field(default_factory=dict)
    """Endpoint name to the interval that the provider documents; holds under the rate limit."""
    can: Ability = Ability.NONE
    quoted_only: str = ""
    """Why nothing can be rented here, whatever is allowed, in words for people; empty: it can."""


class Query(msgspec.Struct, frozen=True, kw_only=True, cache_hash=True):
    """What the book asks a provider for: a demand's hard bounds, as far as they shape a search."""

    requirements: Requirements


class OfferPage(msgspec.Struct, frozen=True, kw_only=True):
    """What a search brought."""

    offers: Sequence[Offer]
    """A tuple, or for a long list `turns.Pieces`; nobody may change it."""
    complete: bool = True
    """False: the provider has more rows for this query than it will show."""
    skipped_rows: int = 0
    """Rows that broke their schema."""


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """An HTTP call that has not been sent: what `--dry-run` prints and `rent` sends."""

    method: str
    url: str
    body: Mapping[str, object] | None = None


class Account(msgspec.Struct, frozen=True, kw_only=True):
    """What a ping tells about whose key this is."""

    id: str = ""
    """What tells accounts apart; empty where the provider does not say."""
    name: str = ""
    credit_usd: Decimal | None = None
    """Spendable money; None where the provider does not say."""


class Finished(msgspec.Struct, frozen=True, kw_only=True):
    """How a command that was run inside an instance ended."""

    exit_code: int
    stdout: bytes = b""
    stderr: bytes = b""


class ProviderMetrics:
    """What a provider's guard has seen of it; the names are the first seed's."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard

    def get_success_rate(self) -> float:
        """Return the share of the newest 100 calls that were answered; 1.0 while there are none."""
        return self._guard.success_rate

    @property
    def is_healthy(self) -> bool:
        """Whether its breaker is closed, its key accepted, and most of its calls answered."""
        return self._guard.is_healthy


def unsupported(spec: ProviderSpec, operation: str) -> Refused:
    """Return the refusal of something that a market does not do at all."""
    return Refused(spec.slug, operation, f"{spec.title} does not do this", code="unsupported")


def only_one(spec: ProviderSpec, operation: str, container: str | None) -> None:
    """Insist that nobody means a further container, at a market that runs one on a machine.

    Raises:
        Refused: somebody does.
    """
    if container is not None:
        detail = f"{spec.title} runs one container on a machine: there is no {container[:80]!r}"
        raise Refused(spec.slug, operation, detail, code="unsupported")


def unfit(spec: ProviderSpec, offer: Offer, workload: Workload) -> BadInput | None:
    """Say what of a workload a market cannot do, by its abilities; None: it may take it.

    Bounds that are a market's own (how long, how many) are told by its `rent_calls`.
    """
    can, title = spec.can, spec.title
    ports = [*workload.ports, *(port for each in workload.beside for port in each.ports)]
    commands = [workload.command, *(each.command for each in workload.beside)]
    replaced = next((command for command in commands if command), None)
    if replaced and Ability.COMMAND not in can:
        return BadInput("command", replaced[0][:40], f"{title} runs the image's own command")
    if workload.beside and Ability.MULTI_CONTAINER not in can:
        return BadInput("containers", len(workload.beside) + 1, f"{title} runs one container")
    if ports and Ability.PORTS not in can:
        return BadInput("port", ports[0].number, f"{title} publishes no port")
    if len(ports) > 1 and Ability.MANY_PORTS not in can:
        return BadInput("port", len(ports), f"{title} publishes one port")
    if refusal := _unfit_around(spec, workload):
        return refusal
    for port in ports:
        if port.protocol is Protocol.UDP and Ability.UDP not in can:
            return BadInput("port", f"{port.number}/udp", f"{title} publishes TCP only")
    for check in workload.health:
        if check.path is None and Ability.RAW_PORTS not in can:
            # What stands in front of it takes every connection, whether the workload lives or not.
            bound = f"{title} publishes HTTP addresses: only a check by HTTP tells whether it works"
            return BadInput("health", f"tcp:{check.port}", bound)
    if offer.interruptible and Ability.INTERRUPTIBLE not in can:
        return BadInput("interruptible", offer.offer_id, f"{title} takes no bids")
    return None


def fit(spec: ProviderSpec, offer: Offer, workload: Workload) -> None:
    """Insist that a market can do all that a workload asks for; each adapter does before it rents.

    Raises:
        BadInput: it cannot.
    """
    if (why := unfit(spec, offer, workload)) is not None:
        raise why


def _unfit_around(spec: ProviderSpec, workload: Workload) -> BadInput | None:
    """Say what of the things around a workload's program a market cannot do."""
    can, title = spec.can, spec.title
    entrypoints = [workload.entrypoint, *(each.entrypoint for each in workload.beside)]
    replaced = next((entrypoint for entrypoint in entrypoints if entrypoint), None)
    if replaced and Ability.ENTRYPOINT not in can:
        return BadInput("entrypoint", replaced[0][:40], f"{title} runs the image's own entrypoint")
    if workload.login is not None and Ability.REGISTRY_LOGIN not in can:
        return BadInput("login", workload.login.server, f"{title} pulls public images only")
    for field, wanted in (
        ("files", workload.files),
        ("directories", workload.directories),
        ("before", workload.before),
        ("working_dir", workload.working_dir),
    ):
        if not wanted:
            continue
        told = wanted if isinstance(wanted, str) else f"{len(wanted)} of them"
        if Ability.FILES not in can:
            bound = f"{title} starts a container, and does nothing around it"
            return BadInput(field, told, bound)
        if not workload.entrypoint:
            bound = "needs the entrypoint as well: what stands around a program has to start it"
            return BadInput(field, told, bound)
    return None


Choose = Callable[[Sequence[Offer]], Offer | None]
"""Picks among bids made comparable, by the same decision as among offers; None: none will do."""


class Provider(ABC):
    """One marketplace. Each method is one exchange; none retries, sleeps, caches or logs.

    Every method may raise `Unavailable`, `Throttled`, `Denied`, `Malformed`, `CircuitBreakerOpen`
    and `RateLimitExceeded`; what else it raises is said at the method.

    What looks inside a machine takes a `container`: the name of one of the workload's `beside`,
    at markets with `MULTI_CONTAINER`; None is the workload's own. A name that nothing has, or that
    the market cannot have, is `Refused`.
    """

    spec: ClassVar[ProviderSpec]
    _metrics: ProviderMetrics | None = None

    def go_by(self, guard: Guard) -> None:
        """Be told the guard that the calls go through; by whoever opens the market, once."""
        self._metrics = ProviderMetrics(guard)

    def get_metrics(self) -> ProviderMetrics:
        """Return how this market has been doing.

        Raises:
            BadInput: it was never opened, so nothing is known of it.
        """
        if self._metrics is None:
            raise BadInput("provider", self.spec.slug, "is not open")
        return self._metrics

    @abstractmethod
    async def ping(self) -> Account:
        """Prove that the key works with the cheapest call there is."""

    @abstractmethod
    async def offers(self, query: Query) -> OfferPage:
        """Search; prices are all-in for the query's disk and in its kind (bid or on demand)."""

    @abstractmethod
    def rent_calls(self, offer: Offer, workload: Workload, key: RentalKey) -> tuple[Call, ...]:
        """Return the calls that `rent` would send, in order. Pure."""

    @abstractmethod
    async def rent(
        self, offer: Offer, workload: Workload, key: RentalKey, *, choose: Choose | None = None
    ) -> str:
        """Start paying for the offer under our key; return the instance id. Sent at most once.

        A market with `AUCTION` hands the bids it gets to `choose`; the others ignore it.

        Raises:
            OfferGone: nothing was rented, another candidate may do.
            Refused: declined; where `instance_id` is set, something was made all the same.
            OutcomeUnknown: it may have worked; only a listing settles it.
        """

    @abstractmethod
    async def instances(self) -> Listing:
        """List everything the account holds, ours or not, through all pages."""

    @abstractmethod
    async def release(self, instance_id: str) -> None:
        """Stop paying. Success only means that the provider heard us; a listing proves the rest.

        Raises:
            InstanceAbsent: there is no such instance.
        """

    @abstractmethod
    async def logs(
        self, instance_id: str, *, tail: int = 1000, container: str | None = None
    ) -> str:
        """Return the newest `tail` lines that a container printed; empty where there are none.

        Raises:
            InstanceAbsent: there is no such instance.
        """

    async def extend(self, instance_id: str) -> None:
        """Buy one more block of time; only for `PREPAID`. Safe to repeat only where it says so.

        Raises:
            InstanceAbsent: there is no such instance.
            OutcomeUnknown: it may have been bought; the next listing's `paid_until` tells.
        """
        del instance_id
        raise unsupported(self.spec, "extend")

    async def exec(
        self,
        instance_id: str,
        command: Sequence[str],
        *,
        stdin: bytes = b"",
        timeout_s: float = 60,
        container: str | None = None,
    ) -> Finished:
        """Run a command inside a container; only for `EXEC`.

        Raises:
            InstanceAbsent: there is no such instance.
            Unavailable: the connection ended without a result; the command may have run.
        """
        del instance_id, command, stdin, timeout_s, container
        raise unsupported(self.spec, "exec")

    async def open_exec(
        self,
        instance_id: str,
        key: RentalKey,
        command: Sequence[str],
        *,
        tty: bool,
        container: str | None = None,
    ) -> Session:
        """Start a command inside a container and return it with its streams open; for `SHELL`.

        Raises:
            InstanceAbsent: there is no such instance.
            Unavailable: it cannot be reached; nothing was started.
        """
        del instance_id, key, command, tty, container
        raise unsupported(self.spec, "exec")

    async def open_port(self, instance_id: str, key: RentalKey, port: int) -> Link:
        """Connect to a port inside the instance that is not published; for `FORWARD`.

        Raises:
            InstanceAbsent: there is no such instance.
            Unavailable: nothing listens there, or the instance cannot be reached.
        """
        del instance_id, key, port
        raise unsupported(self.spec, "port-forward")

    def follow(self, instance_id: str, *, container: str | None = None) -> AsyncIterator[bytes]:
        """Yield what a container prints from now on, in pieces of any size; for `FOLLOW`.

        Ends when it does.

        Raises:
            InstanceAbsent: there is no such instance.
            Unavailable: the connection broke; some lines may be lost.
        """
        del instance_id, container
        raise unsupported(self.spec, "follow")

    async def restart(self, instance_id: str) -> None:
        """Start the workload anew in its machine, which goes on costing; for `RESTART`.

        Raises:
            InstanceAbsent: there is no such instance.
        """
        del instance_id
        raise unsupported(self.spec, "restart")

    async def billed(self, instance_id: str) -> Decimal | None:
        """Return what the provider has charged for it so far; None where it cannot tell."""
        del instance_id
        return None

    async def aclose(self) -> None:  # noqa: B027 - not every market holds connections
        """Give up the connections."""
