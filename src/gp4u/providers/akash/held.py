"""What Akash tells of a deployment, as an instance: its groups, leases, services and money.

What this file hides: which of the many states of deployment, lease and service together mean that
something runs, and that the Console and the chain each tell half of it. All of it is pure.

Source: `docs/reference/akash.md`, which names the document behind each fact; checked 2026-11.
"""

from __future__ import annotations

import base64
import ipaddress
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import islice
from typing import Any, Final, TypeVar

import msgspec

from gp4u.model import Endpoint, Instance, InstanceState, Protocol
from gp4u.providers.akash.sdl import MAIN
from gp4u.providers.akash.wire import (
    MICRO,
    SLUG,
    Coin,
    Dseq,
    LeaseId,
    Money,
    Number,
    Word,
    dig,
)
from gp4u.providers.http import UNREADABLE, harmless

T = TypeVar("T")

UNTAKEN_AFTER: Final = timedelta(minutes=4)
"""An order older than this is in nobody's hands: whoever placed it has taken a bid, or has died."""
MAX_ENDPOINTS: Final = 1000
"""Of what one host says of one lease; it may say anything."""
_NAME: Final = re.compile(r"(?!-)[a-zA-Z0-9-]{1,63}(\.(?!-)[a-zA-Z0-9-]{1,63})*\.?")
_CLOCK_DSEQ: Final = range(10**12, 10**14)
"""A deployment's number that is the server's clock in milliseconds, and not a block height."""


class Block(msgspec.Struct, frozen=True):
    """A block of the chain: its height, and when it was made."""

    height: int
    at: datetime


class _Id(msgspec.Struct):
    dseq: Dseq
    owner: Word | None = None


class _Deployment(msgspec.Struct):
    id: _Id
    state: Word = ""
    created_at: Number | None = None
    """Block height."""


class _GroupSpec(msgspec.Struct):
    name: Word
    resources: Any = None


class _Group(msgspec.Struct):
    group_spec: _GroupSpec


class _Service(msgspec.Struct):
    available: int = 0
    total: int = 0
    ready_replicas: int | None = None
    uris: list[str] | None = None

    @property
    def is_up(self) -> bool:
        """Whether it serves, with all the replicas that it should have."""
        ready = self.available if self.ready_replicas is None else self.ready_replicas
        return self.available >= 1 and ready >= self.total


class _Forwarded(msgspec.Struct):
    host: Word = ""
    port: int = 0
    externalPort: int = 0  # noqa: N815 - the market's spelling
    proto: str | None = None


class _Ip(msgspec.Struct):
    IP: Word = ""
    Port: int = 0
    ExternalPort: int = 0
    Protocol: str | None = None


class Status(msgspec.Struct):
    """What the host itself says of a lease."""

    services: dict[str, _Service | None] | None = None
    forwarded_ports: dict[str, list[_Forwarded] | None] | None = None
    ips: dict[str, list[_Ip] | None] | None = None


class _Reclamation(msgspec.Struct):
    deadline: Any = None


class Lease(msgspec.Struct):
    """A group on a host, and its price per block."""

    id: LeaseId
    state: Word
    price: Coin
    reason: Any = None
    reclamation: _Reclamation | None = None
    status: Any = None
    """The host's own words, passed on as they are; None where it does not answer."""

    @property
    def told(self) -> Status | None:
        """What its host says; None where that cannot be read, so that it spoils nothing else."""
        try:
            return None if self.status is None else msgspec.convert(self.status, Status)
        except msgspec.ValidationError:
            return None

    @property
    def is_live(self) -> bool:
        """Whether it runs; one that is announced to end still does."""
        return self.state in ("active", "reclaiming")


class _EscrowState(msgspec.Struct):
    funds: list[Coin] = []
    transferred: list[Coin] = []
    settled_at: Number | None = None
    """Block height at which `funds` was right."""


class _Escrow(msgspec.Struct):
    state: _EscrowState | None = None


class Held(msgspec.Struct):
    """A deployment with what hangs on it, as the Console or a node of the chain tells it."""

    deployment: _Deployment
    groups: list[_Group] = []
    leases: list[Lease] = []
    escrow_account: _Escrow | None = None

    @property
    def dseq(self) -> str:
        """Its number."""
        return str(self.deployment.id.dseq)

    @property
    def live_leases(self) -> list[Lease]:
        """What costs money now."""
        return [lease for lease in self.leases if lease.is_live]

    @property
    def label(self) -> str | None:
        """The name of its first group, which is our key where it is ours."""
        return self.groups[0].group_spec.name if self.groups else None

    @property
    def transferred_usd(self) -> Decimal | None:
        """What hosts were paid out of it; None where some of it was not in dollars."""
        state = self.escrow_account.state if self.escrow_account is not None else None
        if state is None or any(c.denom != "uact" and c.amount for c in state.transferred):
            return None
        paid = sum((c.amount for c in state.transferred), Decimal(0)) / MICRO
        return paid if paid.is_finite() else None


class HeldReply(msgspec.Struct):
    """One deployment in the Console's envelope."""

    data: Held


class _Pagination(msgspec.Struct):
    hasMore: bool = False  # noqa: N815 - the market's spelling
    total: Any = None


class ListPage(msgspec.Struct):
    """A page of the Console's list."""

    deployments: list[msgspec.Raw]
    pagination: _Pagination | None = None

    @property
    def has_more(self) -> bool:
        """Whether the market says that another page follows."""
        return self.pagination is not None and self.pagination.hasMore

    @property
    def total(self) -> int | None:
        """How many there are, of this page or in all, by the market's count."""
        told = self.pagination.total if self.pagination is not None else None
        return told if isinstance(told, int) else None


class ListReply(msgspec.Struct):
    """The same in its envelope."""

    data: ListPage


class TokenData(msgspec.Struct):
    """A token for hosts."""

    token: str


class TokenReply(msgspec.Struct):
    """The same in its envelope."""

    data: TokenData


def issuer(token: str) -> str | None:
    """Return whose token it is: the account's address on the chain, which nothing else tells."""
    parts = token.split(".")
    try:
        claims = base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4))
        found = msgspec.json.decode(claims, type=dict[str, Any]).get("iss")
    except (IndexError, ValueError, *UNREADABLE):
        return None
    return found if isinstance(found, str) and found.isalnum() else None


def to_instance(
    dseq: str,
    told: Held | None,
    on_chain: Held | None,
    money: Money,
    newest: Block | None = None,
    *,
    at: datetime,
) -> Instance | None:
    """Return a deployment as an instance; None where it is over, which no later word undoes.

    `told` is what the Console says of it alone, `on_chain` what a node says; the latter names the
    group. Where neither can be read in full it still exists: somebody listed it. `newest` is the
    newest block that is known of, `at` is now.
    """
    if told is not None and told.deployment.state == "closed":
        return None
    known = told if told is not None else on_chain
    label = next((h.label for h in (on_chain, told) if h is not None and h.label), None)
    ports = _wanted_ports(on_chain) or _wanted_ports(told)
    state, words = _state(told, ports)
    made_at = _made_at(dseq)
    is_order = told is not None and not told.leases
    if is_order and made_at is not None and at - made_at > UNTAKEN_AFTER:
        state, words = InstanceState.FAILED, "nobody took a bid in time"
    live = told.live_leases if told is not None else []
    prices = [money.usd_per_hour(lease.price) for lease in live]
    cost = sum((p for p in prices if p is not None), Decimal(0))
    return Instance(
        provider=SLUG,
        instance_id=dseq,
        label=label,
        state=state,
        status=harmless(words),
        endpoints=_reachable(live),
        price_usd_per_hour=cost if prices and None not in prices else None,
        machine_id=live[0].id.provider if live else None,
        created_at=made_at,
        paid_until=_runs_out_at(known, live, money, newest) if known is not None else None,
    )


def _state(held: Held | None, ports: int) -> tuple[InstanceState, str]:
    if held is None:
        return InstanceState.UNKNOWN, "cannot be read"
    if not held.leases:
        return InstanceState.BOOTING, "waiting for bids"
    live = held.live_leases
    if not live:
        if any(lease.state == "insufficient_funds" for lease in held.leases):
            return InstanceState.FAILED, "the escrow ran out of money"
        return InstanceState.FAILED, f"the lease was closed: {_reason(held.leases[0].reason)}"
    statuses = [lease.told for lease in live]
    services = [s for each in statuses for s in ((each and each.services) or {}).values()]
    if None in statuses:
        return InstanceState.UNKNOWN, "the host does not answer for it"
    up = sum(1 for each in services if each is not None and each.is_up)
    if not services or up < len(services):
        return InstanceState.BOOTING, f"{up} of {len(services)} services are up"
    forwarded = sum(1 for status in statuses for each in endpoints(status) if each.url is None)
    if forwarded < ports:
        return InstanceState.BOOTING, f"{forwarded} of {ports} ports are forwarded"
    notice = [lease for lease in live if lease.state == "reclaiming"]
    if notice:
        deadline = notice[0].reclamation.deadline if notice[0].reclamation is not None else None
        return InstanceState.RUNNING, f"the host takes it back at {deadline or 'a time not told'}"
    return InstanceState.RUNNING, "running"


_REASONS: Final = {
    "1": "owner",
    "10000": "unstable",
    "10001": "decommission",
    "10002": "unspecified",
    "10003": "manifest_timeout",
    "20000": "insufficient_funds",
}


def _reason(reason: object) -> str:
    text = str(reason) if isinstance(reason, int | str) else ""
    return _REASONS.get(text, text) or "no reason told"


def _wanted_ports(held: Held | None) -> int:
    """Return how many random ports the groups ask for, where their resources are told."""
    count = 0
    for group in held.groups if held is not None else ():
        resources = group.group_spec.resources
        for each in resources if isinstance(resources, list) else ():
            endpoints_ = dig(each, "resource").get("endpoints")
            for endpoint in endpoints_ if isinstance(endpoints_, list) else ():
                count += dig(endpoint).get("kind") in ("RANDOM_PORT", 1)
    return count


def _reachable(live: Sequence[Lease]) -> tuple[Endpoint, ...]:
    """Return where each container port is reached, once: the workload's own container goes first.

    A port that a further container listens on as well cannot be told apart by its number.
    """
    found: dict[tuple[int, Protocol], Endpoint] = {}
    for lease in live:
        for each in islice(endpoints(lease.told), MAX_ENDPOINTS):
            found.setdefault((each.container_port, each.protocol), each)
    return tuple(found.values())


def endpoints(status: Status | None) -> Iterator[Endpoint]:
    """Yield where ports are reachable: by a host's name and random port, a leased IP, or a URL."""
    if status is None:
        return
    for forwarded in _own_first(status.forwarded_ports):
        for one in forwarded or ():
            made = _endpoint(one.host, one.port, one.externalPort, one.proto)
            if made is not None:
                yield made
    for leased in _own_first(status.ips):
        for ip in leased or ():
            made = _endpoint(ip.IP, ip.Port, ip.ExternalPort, ip.Protocol)
            if made is not None:
                yield made
    for service in _own_first(status.services):
        for name in (service.uris if service is not None else None) or ():
            made = _endpoint(name, 80, 80, None)
            if made is not None:
                yield msgspec.structs.replace(made, url=f"http://{made.host}")


def _own_first(services: Mapping[str, T] | None) -> list[T]:
    """Return what is told of each service; the workload's own container goes first."""
    ordered = sorted((services or {}).items(), key=lambda each: each[0] != MAIN)
    return [told for _, told in ordered]


def _endpoint(host: str, inside: int, outside: int, protocol: str | None) -> Endpoint | None:
    """Return an endpoint; None where some part of it cannot be one. It is all foreign text."""
    try:
        spoken = Protocol((protocol or "tcp").lower())
    except ValueError:
        return None
    if not (_is_host(host) and 0 < inside < 65_536 and 0 < outside < 65_536):
        return None
    return Endpoint(container_port=inside, protocol=spoken, host=host.rstrip("."), port=outside)


def _is_host(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return len(text) <= 253 and _NAME.fullmatch(text) is not None
    return True


def _made_at(dseq: str) -> datetime | None:
    number = int(dseq) if dseq.isdecimal() and len(dseq) < 20 else 0
    return datetime.fromtimestamp(number / 1000, UTC) if number in _CLOCK_DSEQ else None


def _runs_out_at(
    held: Held, live: Sequence[Lease], money: Money, newest: Block | None
) -> datetime | None:
    """Return when the escrow is empty at the present rate.

    Its funds are those of a block. The time of a block is told by another one: the newest, else
    the one that this was made in, whose time is the deployment's number. Blocks are not exactly as
    long as they are taken to be, so the nearer one is by days the better for a long rental.
    """
    escrow = held.escrow_account.state if held.escrow_account is not None else None
    if escrow is None or escrow.settled_at is None or not live:
        return None
    denom = live[0].price.denom
    rate = sum((lease.price.amount for lease in live if lease.price.denom == denom), Decimal(0))
    funds = sum((c.amount for c in escrow.funds if c.denom == denom), Decimal(0))
    try:
        made_at = _made_at(held.dseq)
        if newest is None and made_at is not None:
            newest = Block(int(held.deployment.created_at or ""), made_at)
        if newest is None:
            return None
        blocks = int(escrow.settled_at) + int(funds / rate) - newest.height
        return newest.at + timedelta(seconds=money.block_time_s * blocks)
    except (ValueError, ArithmeticError):  # no heights, no rate, or a time out of range
        return None
