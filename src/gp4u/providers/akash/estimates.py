"""Akash's prices and hosts as offers: what so many cards would cost on each host that has them.

What this file hides: that the market has no priced offers. Its Console tells, per kind of card,
what each host has free and what its newest bid for one card was; another list tells where a host
stands and how reliable it is. An offer joins the two, and is an estimate. All of it is pure.

The feeds are those of the Console's own pages and may change without notice. So fields that may go
are optional, and what still cannot be read is left out by itself: a host's bid, not all of them.

`each_offer` is a generator, so that a caller can take some hundred offers at a time; what is the
same for all offers of a host, or of a kind of card, is worked out once.

Source: `docs/reference/akash.md`, sections on prices and hosts; checked 2026-11.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from functools import lru_cache
from itertools import product
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from gp4u import gpus, places
from gp4u.model import Offer, Region, Requirements
from gp4u.providers.akash.wire import (
    ANY_HOST,
    SLUG,
    Coin,
    Money,
    Word,
    is_price,
    usd_per_hour,
)
from gp4u.providers.contract import OfferPage
from gp4u.providers.http import UNREADABLE, decode, harmless, rows
from gp4u.providers.turns import AT_ONCE_BYTES, cut, each_row, good_rows

GIB: Final = 2**30
CPUS_PER_GPU, RAM_GIB_PER_GPU = 4.0, 16.0
"""What is asked for where the demand does not say: the market sells what one requests."""
OPEN_PORTS: Final = 100
"""Any number of TCP ports can be had; some bound must stand in the offer."""
Stocks = Mapping[tuple[str, str, str], int]
"""(model, ram, interface) to how many such cards are free in the whole market."""

_NOTHING: Final = Decimal(0)
_COUNT: Final = re.compile(r"[0-9]{1,4}\Z")
_RAM: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*Gi")


class _Camel(msgspec.Struct, rename="camel", gc=False):
    """A row of the Console's own, which spells its fields in camel case."""


class Stock(_Camel):
    """One host's cards of one kind."""

    owner: Word
    allocated: int = 0
    allocatable: int = 0


class _Units(msgspec.Struct, gc=False):
    val: int | str = ""


class _Gpu(msgspec.Struct, gc=False):
    units: _Units | None = None


class _Resources(msgspec.Struct, gc=False):
    gpu: _Gpu | None = None


class _Promise(msgspec.Struct, gc=False):
    resources: _Resources | None = None
    count: int = 1


class _BidData(msgspec.Struct, gc=False):
    """The bid as it stands on the chain."""

    price: Coin | None = None
    resources_offer: list[_Promise] | None = None


class _Bid(_Camel):
    hourly_price: Decimal | None = None
    """Dollars, rounded to cents."""
    data: _BidData | None = None


class BestBid(_Camel):
    """The bid that the market takes a host's price from."""

    provider: Stock
    best_bid: _Bid


class _Availability(_Camel):
    providers: list[Stock] | None = None
    """None: the market tells no hosts apart."""


class _Statistic(_Camel):
    weighted_average: Decimal | None = None


class _KindRow(_Camel):
    model: Annotated[str, Meta(min_length=1, max_length=64)]
    vendor: Word = "nvidia"
    ram: Word | None = None
    interface: Word | None = None
    price: _Statistic | None = None


class PriceRow(_KindRow):
    """All that is known of the price of one kind of card, host by host where asked for."""

    provider_availability: _Availability | None = None
    providers_with_best_bid: list[BestBid] = []

    @property
    def stocks(self) -> list[Stock] | None:
        """What each host has of it; None where hosts are not told apart."""
        return None if self.provider_availability is None else self.provider_availability.providers

    @property
    def pays_in_akt(self) -> bool:
        """Whether some price of it is in AKT, so that an exchange rate is needed."""
        return any(
            (data := each.best_bid.data) is not None
            and data.price is not None
            and data.price.denom == "uakt"
            for each in self.providers_with_best_bid
        )


class Prices(msgspec.Struct):
    """The price list, as it should be."""

    models: list[PriceRow]


class _RawPrices(msgspec.Struct):
    models: list[msgspec.Raw]


class _RawAvailability(_Camel):
    providers: list[msgspec.Raw] | None = None


class _RawPriceRow(_KindRow):
    provider_availability: _RawAvailability | None = None
    providers_with_best_bid: list[msgspec.Raw] = []


class _Free(msgspec.Struct, gc=False):
    available: float | None = None


class _Storage(msgspec.Struct, gc=False):
    ephemeral: _Free | None = None


class _Stats(msgspec.Struct, gc=False):
    cpu: _Free | None = None
    """Milli-CPU."""
    memory: _Free | None = None
    """Bytes, as is storage."""
    storage: _Storage | None = None


class Host(_Camel):
    """What is known of one provider, by the Console or, in less detail, by the chain."""

    owner: Annotated[str, Meta(min_length=1, max_length=128)]
    host_uri: Word | None = None
    is_online: bool = True
    is_valid_version: bool = True
    is_audited: bool | None = None
    """An auditor whom the market's Console counts has signed for what it says of itself."""
    ip_country_code: Word | None = None
    ip_region_code: Word | None = None
    country: Word | None = None
    location_region: Word | None = None
    uptime30d: float | None = None
    uptime7d: float | None = None
    uptime1d: float | None = None
    network_speed_down: float | None = None
    """Mbps, as the host says itself; 0: not said."""
    network_speed_up: float | None = None
    stats: _Stats | None = None

    @property
    def region(self) -> Region | None:
        """Where it stands by its address; else by its own word."""
        return _region(
            self.ip_country_code, self.ip_region_code, self.location_region, self.country
        )

    @property
    def reliability(self) -> float | None:
        """The longest uptime there is, 0..1."""
        for uptime in (self.uptime30d, self.uptime7d, self.uptime1d):
            if uptime is not None:
                return uptime if 0 <= uptime <= 1 else None
        return None

    @property
    def disk_gib(self) -> float | None:
        """How much disk it has free, GiB."""
        disk = self.stats.storage if self.stats is not None else None
        return _of(disk.ephemeral if disk is not None else None, GIB)


def _of(free: _Free | None, unit: int) -> float | None:
    """Return what is free in a unit, at least 0; None where it is not told."""
    if free is None or free.available is None:
        return None
    return max(0.0, free.available / unit)


@lru_cache(maxsize=4096)
def _region(
    country: str | None, subdivision: str | None, told: str | None, told_country: str | None
) -> Region | None:
    if country:
        return places.parse(f"{(subdivision or '').rpartition('-')[2]}, {country}")
    return places.parse(told) or places.parse(told_country)


class Kind(msgspec.Struct, frozen=True):
    """A kind of card as an offer's id spells it: `h100`, `80Gi`, `sxm5`; empty: any."""

    model: str
    ram: str = ""
    interface: str = ""

    @property
    def text(self) -> str:
        """`h100-80Gi-sxm5`, with `any` for what is not told."""
        return f"{self.model}-{self.ram or 'any'}-{self.interface or 'any'}"

    @property
    def bus(self) -> str:
        """The interface as an SDL spells it, which knows two."""
        lowered = self.interface.lower()
        return "sxm" if "sxm" in lowered else "pcie" if "pcie" in lowered else ""

    @property
    def gpu(self) -> gpus.Gpu | None:
        """The card that the market means by it."""
        ram_gib = self.ram_gib
        vram_mb = None if ram_gib is None else ram_gib * 1024
        return gpus.canonical(self.model, vram_mb, self.interface or None)

    @property
    def ram_gib(self) -> float | None:
        """Its memory."""
        found = _RAM.fullmatch(self.ram.strip())
        return float(found[1]) if found else None


LISTED_COUNTS: Final = (1, 2, 4, 8)
"""How many cards a host's estimates are for where no number was asked for."""
_TIMES: Final = re.compile(r"\*[1-9][0-9]*\Z")
"""How an id ends that stands beside those of the same host and kind for other numbers."""


def offer_kind(offer: Offer) -> tuple[str, Kind]:
    """Return the owner and the kind of card that an offer's id names."""
    owner, _, text = offer.offer_id.partition("/")
    text = _TIMES.sub("", text)
    model, ram, interface = text.rsplit("-", 2)
    return owner, Kind(model, *(part if part != "any" else "" for part in (ram, interface)))


def parse_prices(body: bytes) -> tuple[list[PriceRow], int]:
    """Return the rows of the price list, and how many parts of it cannot be read.

    Raises:
        Malformed: it is no price list, or more than half of its rows are bad.
    """
    return believed(list(price_rows(body)))


def price_rows(body: bytes) -> Iterator[tuple[PriceRow | None, int]]:
    """Yield each row of the price list and how many parts of it cannot be read; None: all of it.

    A row has everything of one kind of card, so it is a piece of work by itself.

    Raises:
        Malformed: it is no price list; raised when the first row is asked for.
    """
    if len(body) <= AT_ONCE_BYTES:
        try:
            yield from ((row, 0) for row in msgspec.json.decode(body, type=Prices).models)
            return
        except UNREADABLE:
            pass  # some part of some row
    for raw in decode(SLUG, "prices", body, _RawPrices).models:
        try:
            yield msgspec.json.decode(raw, type=PriceRow), 0
        except UNREADABLE:
            yield _salvaged(raw)


def believed(found: Sequence[tuple[PriceRow | None, int]]) -> tuple[list[PriceRow], int]:
    """Return the rows of the price list, and how many rows and parts of rows cannot be read.

    Raises:
        Malformed: more than half of its rows are bad.
    """
    kept, bad = good_rows(SLUG, "prices", (row for row, _ in found))
    return kept, bad + sum(parts for _, parts in found)


def _salvaged(raw: msgspec.Raw) -> tuple[PriceRow | None, int]:
    """Return what can be read of a row, and how many of its parts cannot."""
    try:
        row = msgspec.json.decode(raw, type=_RawPriceRow)
    except UNREADABLE:
        return None, 0
    available = row.provider_availability
    stocks, bad_stocks = rows((available and available.providers) or [], Stock)
    bids, bad_bids = rows(row.providers_with_best_bid, BestBid)
    told = available is not None and available.providers is not None
    own = (row.model, row.vendor, row.ram, row.interface, row.price)
    return PriceRow(*own, _Availability(stocks if told else None), bids), bad_stocks + bad_bids


def parse_hosts(body: bytes) -> list[Host]:
    """Return the Console's list of providers, without the rows that cannot be read.

    Raises:
        Malformed: it is no list, or more than half of its rows are bad.
    """
    return good_rows(SLUG, "hosts", host_rows(body))[0]


_OPENING: Final = re.compile(rb"\s*\[")


def host_rows(body: bytes) -> Iterator[Host | None]:
    """Yield the rows of the Console's list of providers; None for one that cannot be read.

    Raises:
        Malformed: it is no list; raised when the first row is asked for.
    """
    if len(body) <= AT_ONCE_BYTES:
        try:
            yield from msgspec.json.decode(body, type=list[Host])
            return
        except UNREADABLE:
            pass  # some row

    def whole(body: bytes) -> list[msgspec.Raw]:
        return decode(SLUG, "hosts", body, list[msgspec.Raw])

    yield from each_row(cut(body, _OPENING, whole), Host)


class _GpuStock(msgspec.Struct):
    model: str
    ram: str | None = None
    interface: str | None = None
    allocatable: int = 0
    allocated: int = 0


class _GpuDetails(msgspec.Struct):
    details: dict[str, list[msgspec.Raw]]


class _GpuReply(msgspec.Struct):
    gpus: _GpuDetails


def free_by_kind(body: bytes) -> dict[tuple[str, str, str], int]:
    """Return how many cards of each (model, ram, interface) are free in the whole market.

    Raises:
        Malformed: it is no inventory, or more than half of its rows are bad.
    """
    free: dict[tuple[str, str, str], int] = {}
    raw = decode(SLUG, "inventory", body, _GpuReply).gpus.details.get("nvidia", [])
    for row in good_rows(SLUG, "inventory", each_row(raw, _GpuStock))[0]:
        kind = (row.model, row.ram or "", row.interface or "")
        free[kind] = free.get(kind, 0) + max(0, row.allocatable - row.allocated)
    return free


def estimates(
    prices: bytes,
    hosts: bytes,
    wanted: Requirements,
    money: Money,
    at: datetime,
    *,
    inventory: bytes | None = None,
) -> OfferPage:
    """Return all offers of the Console's three bodies at once; `at` is when they were fetched.

    `inventory` is needed only where the price list tells no hosts apart.

    Raises:
        Malformed: a body is not what it should be.
    """
    listed, skipped = parse_prices(prices)
    known = {host.owner: host for host in parse_hosts(hosts)}
    free = free_by_kind(inventory) if inventory is not None else {}
    made = tuple(each_offer(listed, known, free, wanted, money, at))
    return OfferPage(offers=made, skipped_rows=skipped)


class _Machine(msgspec.Struct, frozen=True):
    """What the offers of one host have in common."""

    owner: str | None = None
    region: Region | None = None
    reliability: float | None = None
    download_mbps: float | None = None
    upload_mbps: float | None = None
    cpu_cores: float = 0.0
    ram_gib: float = 0.0
    disk_gib: float | None = None
    verified: bool | None = None


def each_offer(
    listed: Iterable[PriceRow],
    hosts: Mapping[str, Host],
    free: Stocks,
    wanted: Requirements,
    money: Money,
    at: datetime,
) -> Iterator[Offer]:
    """Yield an estimate per kind of card and host that has enough free and ever named a price.

    Where no number of cards is asked for, there is one for each of `LISTED_COUNTS` that is free.
    Where the market tells no hosts apart, `free` says what there is, and one offer stands for all.
    """
    asked, rates = wanted.gpu_count, money.usd_per_hour_each
    counts = LISTED_COUNTS if asked is None else (asked,)
    machines: dict[tuple[str, int], _Machine | None] = {
        (ANY_HOST, count): _machine(None, wanted, count) for count in counts
    }
    seen: set[str] = set()
    for row, count in product(listed, counts):
        if row.vendor != "nvidia":
            continue  # the market's description language knows no other
        kind = Kind(row.model, row.ram or "", (row.interface or "").lower())
        gpu, text = kind.gpu, kind.text
        model = gpu.model if gpu is not None else harmless(kind.model)
        vram_gib = gpu.vram_gib if gpu is not None else kind.ram_gib or 0.0
        for owner, usd in _priced(row, free, rates, count):
            if (owner, count) not in machines:
                host = hosts.get(owner)
                usable = host is not None and host.is_online and host.is_valid_version
                machines[owner, count] = _machine(host, wanted, count) if usable else None
            machine, offer_id = machines[owner, count], f"{owner}/{text}"
            if asked is None and count > 1:
                offer_id += f"*{count}"
            if machine is None or offer_id in seen:
                continue
            seen.add(offer_id)
            yield Offer(
                provider=SLUG,
                offer_id=offer_id,
                gpu_model=model,
                gpu_count=count,
                vram_gib=vram_gib,
                price_usd_per_hour=usd,
                gpu_usd_per_hour=usd,
                storage_usd_per_hour=_NOTHING,
                fetched_at=at,
                estimated=True,
                region=machine.region,
                reliability=machine.reliability,
                download_mbps=machine.download_mbps,
                upload_mbps=machine.upload_mbps,
                cpu_cores=machine.cpu_cores,
                ram_gib=machine.ram_gib,
                disk_gib=machine.disk_gib,
                open_ports=OPEN_PORTS,
                machine_id=machine.owner,
                host_id=machine.owner,
                verified=machine.verified,
                available=machine.cpu_cores >= 1 and machine.ram_gib >= 1,
            )


def _priced(
    row: PriceRow, free: Stocks, rates: Mapping[str, Decimal], count: int
) -> Iterator[tuple[str, Decimal]]:
    """Yield the owners that have so many cards of this kind free, and $/h for all of them."""
    stocks = row.stocks
    if stocks is None:
        usd = row.price.weighted_average if row.price is not None else None
        left = free.get((row.model, row.ram or "", row.interface or ""), 0)
        if left >= count and usd is not None and is_price(usd):
            yield ANY_HOST, usd * count
        return
    bids = {each.provider.owner: each.best_bid for each in row.providers_with_best_bid}
    for stock in stocks:
        bid = bids.get(stock.owner)
        if bid is not None and stock.allocatable - stock.allocated >= count:
            usd = _card_usd(bid, rates)
            if usd is not None:
                yield stock.owner, usd if count == 1 else usd * count


def _card_usd(bid: _Bid, rates: Mapping[str, Decimal]) -> Decimal | None:
    """Return $/h of one card by a host's newest bid; None where it cannot be told in dollars.

    The exact amount goes before the one that is rounded to cents. It is for all cards of the bid:
    the market says that there is one, and where the bid itself says otherwise, the bid is right.
    """
    data = bid.data
    if data is None or data.price is None:
        usd = bid.hourly_price
        return usd if usd is not None and is_price(usd) else None
    usd = usd_per_hour(data.price, rates)
    cards = _cards(data.resources_offer)
    return usd if usd is None or cards == 1 else usd / cards


def _cards(promises: list[_Promise] | None) -> int:
    """Return for how many cards a bid is; 1 where it does not say."""
    cards = 0
    for each in promises or ():
        gpu = each.resources.gpu if each.resources is not None else None
        if gpu is not None and gpu.units is not None:
            told = gpu.units.val
            cards += each.count * (int(told) if isinstance(told, int) or _COUNT.match(told) else 0)
    return max(1, cards)


def _machine(host: Host | None, wanted: Requirements, count: int) -> _Machine:
    """Return what a host's offers of so many cards share; of no host, what can be said of any."""
    cpus = max(wanted.min_cpus or 0.0, CPUS_PER_GPU * count)
    ram_gib = max(wanted.min_ram_gib or 0.0, RAM_GIB_PER_GPU * count)
    if host is None:
        return _Machine(cpu_cores=cpus, ram_gib=ram_gib)
    stats = host.stats
    free_cpus = _of(stats.cpu, 1000) if stats is not None else None
    free_gib = _of(stats.memory, GIB) if stats is not None else None
    down, up = host.network_speed_down or 0.0, host.network_speed_up or 0.0
    return _Machine(
        host.owner,
        host.region,
        host.reliability,
        down if down > 0 else None,
        up if up > 0 else None,
        cpus if free_cpus is None else min(cpus, free_cpus),
        ram_gib if free_gib is None else min(ram_gib, free_gib),
        host.disk_gib,
        host.is_audited,
    )
