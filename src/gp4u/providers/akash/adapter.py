"""Akash: what we ask of its Console and its chain, and when.

What this file hides: that nothing here has a price until an order is out, and that no single source
tells everything. Offers are estimates from the newest bids. Names of deployments stand on the
chain, what runs is known to the Console, logs and commands are at the host. What prices, bids
and deployments mean is in `estimates.py`, `bids.py` and `held.py`, the order's text in `sdl.py`,
the auction in `auction.py`; the three surfaces are `console.py`, `chain.py` and `gateway.py`.

The Console's key goes to the Console alone. Without one the market can be quoted.
`docs/reference/akash.md` holds the wire contract and the source of each fact.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import aclosing
from decimal import Decimal
from typing import ClassVar, Final

import msgspec

from gp4u.clock import Clock
from gp4u.errors import InstanceAbsent, Malformed, Refused, Unavailable
from gp4u.model import Instance, Listing, Offer, RentalKey, Workload
from gp4u.providers.akash import estimates, held, sdl, wire
from gp4u.providers.akash.auction import BID_WINDOW_S, Auction, ceiling_usd_per_hour
from gp4u.providers.akash.chain import Chain
from gp4u.providers.akash.console import Console, cents
from gp4u.providers.akash.estimates import Host
from gp4u.providers.akash.gateway import Gateway
from gp4u.providers.akash.held import Held, Lease
from gp4u.providers.akash.wire import SLUG, Money
from gp4u.providers.contract import (
    Ability,
    Account,
    Call,
    Choose,
    Finished,
    OfferPage,
    Provider,
    ProviderSpec,
    Query,
    fit,
)
from gp4u.providers.http import decode, harmless
from gp4u.providers.session import Session
from gp4u.providers.turns import in_turns

SPEC: Final = ProviderSpec(
    slug=SLUG,
    title="Akash Network",
    env="AKASH",
    base_url="https://rpc.cosmos.directory/akash",
    rate_limit_per_min=50,
    key_url="https://console.akash.network/",
    key_aliases=("AKASH_CONSOLE_API_KEY",),
    key_required=False,
    settle_s=30,  # public nodes lag; two blocks at the very least
    late_window_s=120,
    can=Ability.LABELS
    | Ability.PORTS
    | Ability.LOGS
    | Ability.EXEC
    | Ability.COMMAND
    | Ability.BILL
    | Ability.MULTI_CONTAINER
    | Ability.AUCTION
    | Ability.PREPAID
    | Ability.UDP
    | Ability.RAW_PORTS
    | Ability.MANY_PORTS
    | Ability.SHELL
    | Ability.FILES
    | Ability.ENTRYPOINT
    | Ability.REGISTRY_LOGIN
    | Ability.FOLLOW,
)
CONSOLE_URL: Final = "https://console-api.akash.network"
BLOCK_TIME_S: Final = 6.0
PRICES_TIMEOUT_S: Final = 60.0
LEAST_DEPOSIT_USD, LEAST_TOP_UP_USD = Decimal(5), Decimal("0.5")
HOURS_PAID_AHEAD: Final = 2


class Akash(Provider):
    """One Console account, or none, and the chain."""

    spec: ClassVar[ProviderSpec] = SPEC

    def __init__(
        self,
        console: Console,
        chain: Chain,
        gateway: Gateway,
        *,
        has_key: bool,
        block_time_s: float = BLOCK_TIME_S,
        bid_window_s: float = BID_WINDOW_S,
        clock: Clock,
    ) -> None:
        """`has_key` says whether `console` may rent; the other two never carry a key."""
        self._bid_window_s = bid_window_s
        self._console, self._chain, self._gateway = console, chain, gateway
        self._has_key, self._clock = has_key, clock
        self._blocks_per_hour = Money(block_time_s=block_time_s).blocks_per_hour

    async def ping(self) -> Account:
        if not self._has_key:
            estimates.free_by_kind(await self._console.get("ping", "/v1/gpu"))
            return Account()
        body = await self._console.get("ping", "/v1/balances")
        balance = decode(SLUG, "ping", body, wire.BalanceReply).data.balance
        return Account(id=await self._console.who(), credit_usd=balance)

    async def offers(self, query: Query) -> OfferPage:
        """Estimate what so many cards cost on each host that has them free."""
        wanted = query.requirements
        if wanted.interruptible:
            return OfferPage(offers=())
        body = await self._console.get(
            "prices", "/v1/gpu-prices", {"debug": "true"}, timeout_s=PRICES_TIMEOUT_S
        )
        parts = await in_turns(estimates.price_rows(body), piece=1)
        listed, skipped = estimates.believed(parts)
        hosts = await self._hosts()
        free: estimates.Stocks = {}
        if any(row.stocks is None for row in listed):
            free = estimates.free_by_kind(await self._console.get("inventory", "/v1/gpu"))
        money = await self._console.money(needs_akt=any(row.pays_in_akt for row in listed))
        at = self._clock.now()
        found = await in_turns(estimates.each_offer(listed, hosts, free, wanted, money, at))
        return OfferPage(offers=tuple(found), skipped_rows=skipped)

    def rent_calls(self, offer: Offer, workload: Workload, key: RentalKey) -> tuple[Call, ...]:
        """Return the three calls that rent; what the market will number stands in braces.

        Raises:
            BadInput: the market cannot take this workload.
        """
        fit(SPEC, offer, workload)
        _, kind = estimates.offer_kind(offer)
        wish = sdl.Wish(
            gpus=offer.gpu_count,
            model=kind.model,
            ram=kind.ram,
            interface=kind.bus,
            cpus=offer.cpu_cores or estimates.CPUS_PER_GPU * offer.gpu_count,
            ram_gib=offer.ram_gib or estimates.RAM_GIB_PER_GPU * offer.gpu_count,
        )
        most = ceiling_usd_per_hour(offer)
        amount = sdl.ceiling_amount(most, self._blocks_per_hour)
        document = sdl.sdl(workload, key, wish, amount=amount)
        deposit = cents(max(LEAST_DEPOSIT_USD, most * HOURS_PAID_AHEAD))
        create = {"data": {"sdl": sdl.to_yaml(document), "deposit": deposit}}
        manifest = msgspec.json.encode(sdl.manifest(document)).decode()
        lease = {"dseq": "{dseq}", "gseq": 1, "oseq": 1, "provider": "{provider}"}
        return (
            self._console.call("POST", "/v1/deployments", create),
            self._console.call("GET", "/v1/bids?dseq={dseq}"),
            self._console.call("POST", "/v1/leases", {"manifest": manifest, "leases": [lease]}),
        )

    async def rent(
        self, offer: Offer, workload: Workload, key: RentalKey, *, choose: Choose | None = None
    ) -> str:
        if not self._has_key:
            raise Refused(SLUG, "rent", "renting needs AKASH_CONSOLE_API_KEY", code="no_key")
        create, _, lease = self.rent_calls(offer, workload, key)
        hosts = await self._hosts() if choose is not None else {}
        auction = Auction(
            self._console, offer, hosts, choose, self._clock, window_s=self._bid_window_s
        )
        return await auction.run(create, (lease.body or {})["manifest"], key)

    async def instances(self) -> Listing:
        """List what the Console or any node shows, then read each by itself.

        The Console's list may show a deployment beside another's leases, so only numbers are taken
        from it. What is closed stays closed, whatever a lagging node says.
        """
        began_at = self._clock.now()
        found: list[Instance] = []
        why = "" if self._has_key else "no key to list with"
        if self._has_key:
            listed, why = await self._console.listed()
            seen = await self._chain.deployments(await self._console.who())
            why = why or ("" if seen.answers else self._chain.why_silent)
            money = await self._console.money(needs_akt=False)
            numbers = dict.fromkeys([*listed, *seen.deployments])
            newest = await self._chain.newest() if numbers else None
            for dseq in numbers:
                alone = await self._told(dseq)
                on_chain = seen.deployments.get(dseq) or listed.get(dseq)
                instance = held.to_instance(dseq, alone, on_chain, money, newest, at=began_at)
                if instance is not None:
                    found.append(instance)
                    why = why or ("" if instance.label else f"{dseq} has no name that can be read")
        return Listing(
            provider=SLUG,
            instances=tuple(found),
            complete=not why,
            began_at=began_at,
            why_incomplete=why,
        )

    async def release(self, instance_id: str) -> None:
        await self._console.close(instance_id)

    async def logs(
        self, instance_id: str, *, tail: int = 1000, container: str | None = None
    ) -> str:
        lease = await self._live_lease(instance_id)
        if lease is None:
            return ""
        service = _service("logs", lease, container)
        uri, token, pins = await self._admission(lease, "logs")
        return await self._gateway.logs(uri, lease.id, token, service=service, tail=tail, pins=pins)

    async def exec(
        self,
        instance_id: str,
        command: Sequence[str],
        *,
        stdin: bytes = b"",
        timeout_s: float = 60,
        container: str | None = None,
    ) -> Finished:
        lease = await self._running(instance_id)
        service = _service("exec", lease, container)
        uri, token, pins = await self._admission(lease, "shell")
        return await self._gateway.exec(
            uri,
            lease.id,
            token,
            service=service,
            command=command,
            stdin=stdin,
            timeout_s=timeout_s,
            pins=pins,
        )

    async def open_exec(
        self,
        instance_id: str,
        key: RentalKey,
        command: Sequence[str],
        *,
        tty: bool,
        container: str | None = None,
    ) -> Session:
        del key  # the token is for the lease
        lease = await self._running(instance_id)
        service = _service("exec", lease, container)
        uri, token, pins = await self._admission(lease, "shell")
        return await self._gateway.session(
            uri, lease.id, token, service=service, command=command, tty=tty, pins=pins
        )

    async def follow(
        self, instance_id: str, *, container: str | None = None
    ) -> AsyncIterator[bytes]:
        lease = await self._running(instance_id)
        service = _service("follow", lease, container)
        uri, token, pins = await self._admission(lease, "logs")
        lines = self._gateway.follow(uri, lease.id, token, service=service, pins=pins)
        async with aclosing(lines):
            async for line in lines:
                yield line

    async def extend(self, instance_id: str) -> None:
        """Put two more hours at the present price into the escrow; what is unspent returns."""
        money = await self._console.money(needs_akt=False)
        live = (await self._console.show(instance_id)).live_leases
        prices = [money.usd_per_hour(lease.price) or Decimal(0) for lease in live]
        usd = max(LEAST_TOP_UP_USD, sum(prices, Decimal(0)) * HOURS_PAID_AHEAD)
        await self._console.deposit(instance_id, usd)

    async def billed(self, instance_id: str) -> Decimal | None:
        """Return what its hosts were paid so far; None where some of it was not in dollars."""
        try:
            return (await self._console.show(instance_id)).transferred_usd
        except InstanceAbsent:
            return None

    async def aclose(self) -> None:
        await self._console.aclose()
        await self._chain.aclose()

    async def _hosts(self) -> dict[str, Host]:
        """Return every provider by address: as the Console knows it, else as the chain does."""
        try:
            hosts = await self._console.hosts()
        except (Unavailable, Malformed, Refused):
            hosts = await self._chain.hosts()
        return {host.owner: host for host in hosts}

    async def _told(self, dseq: str) -> Held | None:
        """Return a deployment by itself; None: unreadable, yet listed, so it exists."""
        try:
            return await self._console.show(dseq)
        except (InstanceAbsent, Malformed, Unavailable, Refused):
            return None

    async def _live_lease(self, dseq: str) -> Lease | None:
        return next(iter((await self._console.show(dseq)).live_leases), None)

    async def _running(self, dseq: str) -> Lease:
        """Return a lease whose services run.

        Raises:
            Refused: none runs yet.
        """
        lease = await self._live_lease(dseq)
        if lease is None or not _services(lease):
            raise Refused(SLUG, "exec", "no service runs yet", code="not_running")
        return lease

    async def _admission(self, lease: Lease, scope: str) -> tuple[str, str, tuple[bytes, ...]]:
        """Return a host's address, a token for this one thing there, and its own certificates."""
        owner = lease.id.provider
        try:
            host = await self._console.host(owner)
        except (Unavailable, Malformed, Refused):
            host = await self._chain.host(owner)
        grant = {"provider": owner, "access": "scoped", "scope": [scope]}
        token = await self._console.token({"access": "granular", "permissions": [grant]})
        return host.host_uri or "", token, await self._chain.certificates(owner)


def _services(lease: Lease) -> Collection[str]:
    """Return the services of a lease, as far as its host tells of any."""
    told = lease.told
    return (told.services if told is not None else None) or ()


def _service(operation: str, lease: Lease, container: str | None) -> str:
    """Return the service that is a container; None is the workload's own.

    Raises:
        Refused: the lease has no such one.
    """
    services = _services(lease)
    if container is None:
        # What was not rented by us has names of its own.
        return sdl.MAIN if not services or sdl.MAIN in services else next(iter(services))
    if services and container not in services:
        known = ", ".join(each for each in services if each != sdl.MAIN) or "none"
        detail = harmless(f"no further container {container!r}; there are: {known}", 300)
        raise Refused(SLUG, operation, detail, code="no_container")
    return container
