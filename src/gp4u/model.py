"""The values that everything else speaks about; frozen, comparable, without I/O.

An offer is a listing made comparable. A demand is what somebody wants, a workload what shall run.
A decision is the whole answer to a demand over one snapshot. An instance is what a provider
reports. The durable record of holding one, the rental, lives in `rentals/rental.py`.

They are msgspec structs: building one costs a fraction of a frozen dataclass, and a market has
hundreds of thousands of offers. Offers and regions are hidden from the garbage collector, which
would visit all of them again and again; nothing in them can lead back to them.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from functools import cached_property
from itertools import chain
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, NewType, TypeVar

from msgspec import Struct, field

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Kind = TypeVar("Kind", bound=np.generic)

RentalKey = NewType("RentalKey", str)
"""The token we mint and put in a provider-visible label; joins a rental to its instance."""

DEFAULT_WEIGHTS: Mapping[str, float] = {
    "price": 0.30,
    "performance": 0.25,
    "gpu_match": 0.20,
    "location": 0.15,
    "availability": 0.10,
}
"""Criterion to weight. Source: the second seed, "Scoring Criteria"."""


class Region(Struct, frozen=True, cache_hash=True, gc=False):
    """A place as far as a provider tells it: ISO 3166 country, and the subdivision where known."""

    country: str
    """Two capital letters."""
    subdivision: str | None = None
    """The part after the dash of ISO 3166-2: `CA` in `US-CA`."""

    @property
    def code(self) -> str:
        """`US-CA`, or `US` where only the country is known."""
        return f"{self.country}-{self.subdivision}" if self.subdivision else self.country


class Offer(Struct, frozen=True, kw_only=True, gc=False):
    """One thing that can be rented now, in one shape for every provider."""

    provider: str
    offer_id: str
    gpu_model: str
    """Canonical name of `gpus.py`, or the provider's own where that file knows no such model."""
    gpu_count: int
    vram_gib: float
    """Per GPU, as the model is sold: 24 for 24,564 MB."""
    price_usd_per_hour: Decimal
    """All-in for the disk of the query that fetched it: GPU and storage, without traffic."""
    gpu_usd_per_hour: Decimal
    """The part of the price that runs only while the instance runs."""
    storage_usd_per_hour: Decimal
    """The part that runs from creation to release, for the disk of the query."""
    fetched_at: datetime
    interruptible: bool = False
    """True: the price is a bid, and a higher one takes the machine away."""
    estimated: bool = False
    """True: the price is a guess until a bid is on the table (Akash)."""
    region: Region | None = None
    reliability: float | None = None
    """The provider's own uptime estimate, 0..1."""
    download_mbps: float | None = None
    upload_mbps: float | None = None
    cpu_cores: float | None = None
    ram_gib: float | None = None
    disk_gib: float | None = None
    """The largest disk one may ask for."""
    open_ports: int | None = None
    """How many container ports can be reached from outside."""
    machine_id: str | None = None
    """The physical machine; offers that share it share its GPUs and its fate."""
    host_id: str | None = None
    verified: bool | None = None
    """True: the market vouches for it: it has checked the host, or is itself the seller."""
    datacenter: bool | None = None
    available: bool = True
    traffic_usd_per_gb: Decimal | None = None

    @property
    def id(self) -> tuple[str, str]:
        """(provider, offer_id): unique within a snapshot."""
        return (self.provider, self.offer_id)


class Requirements(Struct, frozen=True, kw_only=True):
    """Hard bounds. An offer that breaks one is rejected; an unknown value breaks it too."""

    gpu_models: tuple[str, ...] = ()
    """Canonical models, any of which will do; empty: any GPU. Their order is a preference."""
    gpu_count: int | None = 1
    """Exactly so many: nobody pays for GPUs that were not asked for. None: any number, for those
    who only look."""
    min_vram_gib: float | None = None
    max_price_usd_per_hour: Decimal | None = None
    min_reliability: float | None = None
    min_download_mbps: float | None = None
    min_cpus: float | None = None
    min_ram_gib: float | None = None
    disk_gib: float = 20.0
    ports: int = 0
    """How many container ports must be reachable from outside."""
    locations: tuple[str, ...] = ()
    """Tokens of `places.py` (`US-CA`, `US`, `EU`); any will do, their order is a preference."""
    providers: tuple[str, ...] = ()
    """Provider slugs; empty: all."""
    interruptible: bool = False
    """True: only interruptible offers; False: only those that nobody can take away."""
    verified_only: bool = True
    """Only what the market vouches for; see `Offer.verified`."""
    datacenter_only: bool = False
    """Only hosts that the market says stand in a datacenter."""


class Preferences(Struct, frozen=True, kw_only=True):
    """What breaks ties among offers that all pass: weights by criterion, summing to 1."""

    weights: Mapping[str, float] = field(default_factory=lambda: dict(DEFAULT_WEIGHTS))


class Demand(Struct, frozen=True, kw_only=True):
    """Hard bounds and wishes together."""

    requirements: Requirements = Requirements()
    preferences: Preferences = field(default_factory=Preferences)


class Protocol(StrEnum):
    """Transport of a container port."""

    TCP = "tcp"
    UDP = "udp"


class Port(Struct, frozen=True, order=True):
    """A container port that must be reachable from outside."""

    number: int
    protocol: Protocol = Protocol.TCP
    name: str | None = None
    """What it serves, for people: `june-stt`."""


class HealthCheck(Struct, frozen=True, kw_only=True):
    """How to tell from outside that the workload answers."""

    port: int
    """Container port."""
    path: str | None = None
    """None: a TCP connection is enough; else an HTTP GET must answer 2xx or 3xx."""


class Container(Struct, frozen=True, kw_only=True):
    """One more container of a workload, beside the first; they reach each other by name."""

    name: str
    image: str
    command: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    """Replaces the image's own entrypoint."""
    env: Mapping[str, str] = field(default_factory=dict)
    ports: tuple[Port, ...] = ()


class File(Struct, frozen=True, kw_only=True):
    """One file that must be there before the workload starts."""

    path: str
    """Absolute, inside the container."""
    content: bytes
    mode: int = 0o644


class RegistryLogin(Struct, frozen=True, kw_only=True):
    """What an image's registry wants to see; one for each workload."""

    server: str
    username: str
    password: str


class Restart(StrEnum):
    """Whether a workload that ends is started again in the same machine."""

    NEVER = "never"
    ON_FAILURE = "on-failure"
    ALWAYS = "always"


class Workload(Struct, frozen=True, kw_only=True):
    """What shall run on the rented machine."""

    image: str
    command: tuple[str, ...] = ()
    """Arguments of the entrypoint; empty: what the image does by itself."""
    entrypoint: tuple[str, ...] = ()
    """Replaces the image's own entrypoint."""
    env: Mapping[str, str] = field(default_factory=dict)
    ports: tuple[Port, ...] = ()
    disk_gib: float = 20.0
    health: tuple[HealthCheck, ...] = ()
    """All must pass before the rental counts as running; empty: a running instance is enough."""
    beside: tuple[Container, ...] = ()
    """More containers on the same machine; only markets with `MULTI_CONTAINER` take them."""
    before: tuple[tuple[str, ...], ...] = ()
    """Commands that are run first, each to success, in the same container; need `FILES`."""
    files: tuple[File, ...] = ()
    """Written before anything runs; need `FILES`."""
    directories: tuple[str, ...] = ()
    """Made before anything runs, for everybody to write to; need `FILES`. Absolute."""
    working_dir: str | None = None
    login: RegistryLogin | None = None
    """For an image that is not public; needs `REGISTRY_LOGIN`."""
    restart: Restart | None = None
    """None: whatever the market does."""
    shell: bool = False
    """Whether somebody will want in: exec, and ports that are not published; needs `SHELL`."""


class Endpoint(Struct, frozen=True, kw_only=True):
    """Where a container port can be reached from outside."""

    container_port: int
    protocol: Protocol = Protocol.TCP
    host: str
    """An IP address, or a name where the market gives names."""
    port: int
    url: str | None = None
    """Where the market publishes an HTTP address instead of a bare port; without a path."""


class InstanceState(StrEnum):
    """What a provider says of an instance, in our words. Absence is not a state: it is no row."""

    BOOTING = "booting"
    """Not up yet, and may still come up by itself."""
    RUNNING = "running"
    """The container runs; whether the workload answers is the probe's business."""
    EXITED = "exited"
    """The container ended, and the provider still wants it up: it may be restarting."""
    STOPPED = "stopped"
    """Will not run again by itself, and still costs its disk."""
    FAILED = "failed"
    """Can be told to never come up; `status` says why."""
    OFFLINE = "offline"
    """The provider lost contact with the host."""
    UNKNOWN = "unknown"
    """A word we do not know: not ready, not failed, not gone."""


class Instance(Struct, frozen=True, kw_only=True):
    """A provider's running thing, as the provider reports it."""

    provider: str
    instance_id: str
    label: str | None
    """Raw text of the provider's label; our key stands at its start, if it is ours."""
    state: InstanceState
    status: str = ""
    """The provider's own words, cleaned: foreign text, for people only."""
    endpoints: tuple[Endpoint, ...] = ()
    price_usd_per_hour: Decimal | None = None
    machine_id: str | None = None
    created_at: datetime | None = None
    """The provider's stamp; where it sets a cost it is believed between the intent and now."""
    paid_until: datetime | None = None
    """On prepaid markets: when the time that was bought runs out, by our own clock."""
    exit_code: int | None = None
    """With what the workload ended, where the market tells."""


class Listing(Struct, frozen=True, kw_only=True):
    """All instances of one account, as one call (or one walk through its pages) saw them."""

    provider: str
    instances: tuple[Instance, ...]
    complete: bool
    """False: something may be missing, so absence from it proves nothing."""
    began_at: datetime
    """Our own stamp from before the first byte was sent."""
    why_incomplete: str = ""


class Rejection(Struct, frozen=True, kw_only=True):
    """Why one offer did not pass: the first filter that said no, with what it saw and wanted."""

    offer: Offer
    filter: str
    value: str
    bound: str


class Candidate(Struct, frozen=True, kw_only=True):
    """An offer that passed, with its score and the parts that sum to it."""

    offer: Offer
    score: float
    """0..1."""
    parts: Mapping[str, float]
    """Criterion to weighted part; the parts sum to `score`."""
    g_score: float | None = None
    """0..100, the same formula for every provider; None where a part of it is unknown."""


class Relaxation(Struct, frozen=True, kw_only=True):
    """What one bound alone keeps out, and the nearest value that would admit something."""

    filter: str
    bound: str
    excluded_alone: int
    """Offers that break this bound and no other."""
    nearest: str | None
    """The nearest bound that would admit at least one of them; None where no value would."""


class SourceNote(Struct, frozen=True, kw_only=True):
    """How one provider's part of a snapshot came about."""

    provider: str
    offers: int
    age_s: float
    """Since the fetch; 0 for a fresh one."""
    complete: bool = True
    """False: the provider has more offers than it will show for this query."""
    skipped_rows: int = 0
    error: str = ""
    """Why the newest fetch failed, if it did; the offers are then older than they should be."""
    retry_in_s: float | None = None
    """If it failed only because the market was asked too often: when it may be asked again."""


@dataclass(frozen=True, slots=True)
class Coded:
    """A column of few distinct values: `codes[i]` indexes `values`."""

    values: tuple[Hashable, ...]
    codes: NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Columns:
    """Offers by column, in their own order; unknown numbers are NaN."""

    taken_at: datetime
    price: NDArray[np.float64]
    vram_gib: NDArray[np.float64]
    gpu_count: NDArray[np.float64]
    reliability: NDArray[np.float64]
    download_mbps: NDArray[np.float64]
    cpus: NDArray[np.float64]
    ram_gib: NDArray[np.float64]
    disk_gib: NDArray[np.float64]
    ports: NDArray[np.float64]
    age_s: NDArray[np.float64]
    """Seconds between the offer's fetch and `taken_at`."""
    gpu: Coded
    """Values are model names."""
    region: Coded
    """Values are `Region | None`."""
    provider: Coded
    interruptible: NDArray[np.bool_]
    available: NDArray[np.bool_]
    verified: Coded
    """Values are `bool | None`."""
    datacenter: Coded
    """Values are `bool | None`."""


STRETCH: Final = 2048
"""Offers whose columns are built at one go: some milliseconds."""


class Stretch:
    """Some offers of one fetch, and their columns once somebody wants them.

    A snapshot is made of these, so that fetching one market again leaves the columns of the others
    as they are, and whoever must not be held up can build them one by one.
    """

    def __init__(self, offers: Sequence[Offer], *, taken_at: datetime) -> None:
        self.offers = offers
        self._taken_at = taken_at

    @cached_property
    def columns(self) -> Columns:
        """These offers as numpy arrays."""
        import numpy as np  # 60 ms that most commands never need

        offers = self.offers

        def numbers(name: str) -> NDArray[np.float64]:
            # None becomes NaN, and a Decimal the nearest float, without a step in Python.
            return _narrow(np.array(list(map(attrgetter(name), offers)), np.float64))

        def flags(name: str) -> NDArray[np.bool_]:
            return _narrow(np.array(list(map(attrgetter(name), offers)), np.bool_))

        def coded(name: str) -> Coded:
            found: list[Hashable] = list(map(attrgetter(name), offers))
            number = {value: place for place, value in enumerate(dict.fromkeys(found))}
            codes = np.fromiter(map(number.__getitem__, found), np.int32, len(found))
            return Coded(tuple(number), _narrow(codes))

        return Columns(
            taken_at=self._taken_at,
            price=numbers("price_usd_per_hour"),
            vram_gib=numbers("vram_gib"),
            gpu_count=numbers("gpu_count"),
            reliability=numbers("reliability"),
            download_mbps=numbers("download_mbps"),
            cpus=numbers("cpu_cores"),
            ram_gib=numbers("ram_gib"),
            disk_gib=numbers("disk_gib"),
            ports=numbers("open_ports"),
            age_s=self._ages_s(),
            gpu=coded("gpu_model"),
            region=coded("region"),
            provider=coded("provider"),
            interruptible=flags("interruptible"),
            available=flags("available"),
            verified=coded("verified"),
            datacenter=coded("datacenter"),
        )

    def _ages_s(self) -> NDArray[np.float64]:
        import numpy as np  # 60 ms that most commands never need

        stamps = [offer.fetched_at for offer in self.offers]
        ages = {at: (self._taken_at - at).total_seconds() for at in set(stamps)}  # mostly one
        return _narrow(np.fromiter(map(ages.__getitem__, stamps), np.float64, len(stamps)))


def _narrow(column: NDArray[Kind]) -> NDArray[Kind]:
    """Return a column in as little memory as it takes: one of a single value is that value once."""
    import numpy as np  # 60 ms that most commands never need

    first = column[:1]
    if not first.size or not np.array_equal(
        column, np.broadcast_to(first, column.shape), equal_nan=True
    ):
        return column
    return np.broadcast_to(first.copy(), column.shape)


def stretches(offers: Sequence[Offer], *, taken_at: datetime) -> Iterator[Stretch]:
    """Yield the offers in order, cut into stretches."""
    for start in range(0, len(offers), STRETCH):
        yield Stretch(offers[start : start + STRETCH], taken_at=taken_at)


class Snapshot:
    """A frozen view of the book at one moment; `columns` are built once, on first use."""

    def __init__(
        self,
        offers: Sequence[Offer] = (),
        *,
        taken_at: datetime,
        sources: tuple[SourceNote, ...] = (),
        of: Sequence[Stretch] = (),
    ) -> None:
        """`of` holds more offers, which follow `offers`, in stretches that are kept elsewhere."""
        self.taken_at = taken_at
        self.sources = sources
        self.stretches = (*stretches(offers, taken_at=taken_at), *of)

    @cached_property
    def offers(self) -> tuple[Offer, ...]:
        """All of them, in order; put together on first use."""
        return tuple(chain.from_iterable(part.offers for part in self.stretches))

    @cached_property
    def columns(self) -> Columns:
        """The same offers as numpy arrays."""
        parts = [part.columns for part in self.stretches]
        return _joined(parts or [Stretch((), taken_at=self.taken_at).columns], self.taken_at)


def _joined(parts: Sequence[Columns], taken_at: datetime) -> Columns:
    """Return columns one after the other as one."""
    import numpy as np  # 60 ms that most commands never need

    def coded(each: Sequence[Coded]) -> Coded:
        distinct = dict.fromkeys(value for part in each for value in part.values)
        number = {value: place for place, value in enumerate(distinct)}
        codes = [
            np.array([number[value] for value in part.values], np.int32)[part.codes]
            for part in each
        ]
        return Coded(tuple(number), np.concatenate(codes))

    columns: dict[str, Any] = {}
    for name in (each.name for each in fields(Columns) if each.name != "taken_at"):
        found = [getattr(part, name) for part in parts]
        if name == "age_s":
            older_s = [(taken_at - part.taken_at).total_seconds() for part in parts]
            found = [ages + more for ages, more in zip(found, older_s, strict=True)]
        columns[name] = coded(found) if isinstance(found[0], Coded) else np.concatenate(found)
    return Columns(taken_at=taken_at, **columns)


class Decision(Struct, frozen=True, kw_only=True):
    """The whole answer to a demand over one snapshot; it can be told from this alone."""

    demand: Demand
    decided_at: datetime
    candidates: Sequence[Candidate]
    """Best first."""
    rejections: Sequence[Rejection]
    sources: tuple[SourceNote, ...] = ()

    @property
    def best(self) -> Candidate | None:
        """The winner, or None where nothing fits."""
        return self.candidates[0] if self.candidates else None
