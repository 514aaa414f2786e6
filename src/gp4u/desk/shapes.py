"""The stable shapes: how everything looks as JSON, for the REST API and for `-o json` alike.

Programs are built on these, so a field that was published stays. They are typed on both sides: the
server encodes them, the command line reads them back when it speaks to a server, and prints its
tables from them, so both ways of running it show the same. Unknown is null, money is a decimal
string in dollars that keeps its zeroes, stamps are RFC 3339 in UTC, ratios are 0..1, durations
carry their unit in the name.

Foreign text is cleaned when a shape is made; whoever prints one need not ask where a text is from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import ROUND_HALF_EVEN, Decimal
from typing import TYPE_CHECKING, Annotated, Any, Final

from msgspec import UNSET, Meta, Struct, UnsetType

from gp4u.model import Endpoint, Instance, Offer, Rejection, SourceNote
from gp4u.rentals import rental as rentals
from gp4u.rentals.rental import Rental
from gp4u.telemetry import clean

if TYPE_CHECKING:
    from gp4u.rentals.ledger import LedgerEvent  # SQL, which who only reads shapes can spare

MICRO_DOLLAR: Final = Decimal("0.000001")
"""A few seconds of a cheap machine cost some millionths."""
Stamp = Annotated[datetime, Meta(tz=True)]
"""A moment, written as RFC 3339 in UTC."""


class OfferShape(Struct, frozen=True, kw_only=True):
    """An offer, as `gp4u offers -o json` and `GET /api/v1/gpus` show it."""

    id: str
    """`provider/offer_id`: what `GET /api/v1/gpus/{id}` takes."""
    provider: str
    offer_id: str
    gpu_model: str
    gpu_count: int
    vram_gib: float
    price_usd_per_hour: Decimal
    region: str | None
    country: str | None
    reliability: float | None
    download_mbps: float | None
    interruptible: bool
    g_score: float | None
    g_score_parts: Mapping[str, float] | None
    fetched_at: Stamp
    gpu_usd_per_hour: Decimal
    storage_usd_per_hour: Decimal
    upload_mbps: float | None
    cpu_cores: float | None
    ram_gib: float | None
    disk_gib: float | None
    open_ports: int | None
    machine_id: str | None
    host_id: str | None
    verified: bool | None
    datacenter: bool | None
    estimated: bool
    available: bool


class CandidateShape(Struct, frozen=True, kw_only=True):
    """An offer that fits, with the parts that sum to its score."""

    offer: OfferShape
    score: float
    parts: Mapping[str, float]


class RejectionShape(Struct, frozen=True, kw_only=True):
    """Why one offer does not fit: the first filter that said no, with what it saw and wanted."""

    offer: OfferShape
    filter: str
    value: str
    bound: str


class RelaxationShape(Struct, frozen=True, kw_only=True):
    """What one bound alone keeps out, and the nearest value that would admit something."""

    filter: str
    bound: str
    excluded_alone: int
    nearest: str | None


class SourceShape(Struct, frozen=True, kw_only=True):
    """How one market's part of an answer came about."""

    provider: str
    offers: int
    age_s: float
    complete: bool
    skipped_rows: int
    error: str
    retry_in_s: float | None


class DecisionShape(Struct, frozen=True, kw_only=True):
    """The whole answer to a demand, as it is told: nothing here has to be computed again."""

    id: str | None
    """Under which it can be read again; None for one that was not kept."""
    decided_at: Stamp
    candidates: int
    """How many offers fit."""
    rejected: int
    ranked: Sequence[CandidateShape]
    """Best first, as many as were asked for."""
    relaxations: Sequence[RelaxationShape]
    sources: Sequence[SourceShape]
    log: Sequence[str]
    """The selection log, line by line; its last line is the choice, or why there is none."""
    explanation: str
    """One sentence that counts the reasons, and a line per bound that could be relaxed."""
    denied: Sequence[str]
    """Markets that refused our key."""
    broken_by_market: Mapping[str, str]
    """Market none of whose offers fits, to what its nearest one breaks: `ports >= 2 (1)`."""
    rejections: Sequence[RejectionShape] | UnsetType = UNSET
    """Only where they were asked for."""


class EndpointShape(Struct, frozen=True, kw_only=True):
    """Where a container port can be reached from outside."""

    port: int
    protocol: str
    address: str
    """`host:port`, with brackets around an IPv6 address."""
    url: str | None


class EventShape(Struct, frozen=True, kw_only=True):
    """One line of a rental's history."""

    at: Stamp
    kind: str
    text: str


class RentalShape(Struct, frozen=True, kw_only=True):
    """A rental, as `rent`, `ps` and `release` show it."""

    key: str
    state: str
    """intended, starting, running, releasing or released."""
    live: bool
    """Whether its owner still wants it."""
    endpoints: Sequence[EndpointShape]
    owner: str
    provider: str
    offer_id: str
    instance_id: str | None
    gpu_model: str
    gpu_count: int
    region: str | None
    image: str
    price_usd_per_hour: Decimal
    estimated: bool
    cost_usd: Decimal
    """So far; what the market billed, once it did."""
    paid_until: Stamp | None
    reason: str | None
    seen: str | None
    """The market's last word on the instance, in our words."""
    status: str | None
    """The same in the market's own words."""
    intended_at: Stamp
    running_at: Stamp | None
    released_at: Stamp | None
    history: Sequence[EventShape] | UnsetType = UNSET
    """Only where one rental is shown."""


class UnexplainedShape(Struct, frozen=True, kw_only=True):
    """An instance that no rental explains."""

    key: str | None
    state: str
    """`orphan`: ours, and swept; `foreign`: another installation's, and never touched."""
    endpoints: Sequence[EndpointShape] = ()
    provider: str
    instance_id: str
    price_usd_per_hour: Decimal | None
    seen: str
    note: str


class CallShape(Struct, frozen=True, kw_only=True):
    """An HTTP call that renting would send; keys of ours are hidden in it."""

    method: str
    url: str
    body: Mapping[str, Any] | None


class DryRunShape(Struct, frozen=True, kw_only=True):
    """What `rent --dry-run` shows: the choice, and the calls that would carry it out."""

    decision: DecisionShape
    offer: OfferShape | None
    """Who would be rented; None where nothing fits."""
    calls: Sequence[CallShape]


class MarketShape(Struct, frozen=True, kw_only=True):
    """A market, and whether it is open to us."""

    provider: str
    title: str
    open: bool
    why: str
    """Why it is closed; empty where it is open."""
    can: Sequence[str]
    """What it lets us do: `logs`, `exec`, ..."""


class LookShape(Struct, frozen=True, kw_only=True):
    """What there is: the ledger's rentals, and what a look at the markets added to them."""

    rentals: Sequence[RentalShape]
    unexplained: Sequence[UnexplainedShape]
    warnings: Sequence[str]
    """What could not be found out, as sentences."""
    failed: str | None
    """Code of the gravest reason why a market could not be asked; None where all were."""


class FinishedShape(Struct, frozen=True, kw_only=True):
    """How a command inside an instance ended; output is base64 on the wire."""

    exit_code: int
    stdout: bytes
    stderr: bytes


class PricePointShape(Struct, frozen=True, kw_only=True):
    """Prices of one GPU model at one market at one time, USD per GPU and hour."""

    at: Stamp
    count: int
    """Offers at that moment, or the mean over a stretch of time that was folded into one."""
    min: Decimal
    median: Decimal
    p90: Decimal


class PriceSeriesShape(Struct, frozen=True, kw_only=True):
    """One market's prices of one model, oldest first."""

    provider: str
    points: Sequence[PricePointShape]


class PricesShape(Struct, frozen=True, kw_only=True):
    """What one model cost over a stretch of time."""

    gpu_model: str
    since: Stamp
    until: Stamp
    series: Sequence[PriceSeriesShape]


class DecidedStep(Struct, frozen=True, kw_only=True, tag_field="step", tag="decided"):
    """The choice is made; nothing is paid yet."""

    decision: DecisionShape


class WaitingStep(Struct, frozen=True, kw_only=True, tag_field="step", tag="waiting"):
    """Every market that was asked wants patience; they are asked again after so many seconds."""

    seconds: float


class PassedOverStep(Struct, frozen=True, kw_only=True, tag_field="step", tag="passed_over"):
    """A market that had a better offer cannot run this workload."""

    provider: str
    reason: str


class IntendedStep(Struct, frozen=True, kw_only=True, tag_field="step", tag="intended"):
    """The intent is on disk; the rent call comes next."""

    rental: RentalShape
    choice: str
    """The last line of the selection log, of the offer that is really rented."""


class RentedStep(Struct, frozen=True, kw_only=True, tag_field="step", tag="rented"):
    """The provider confirmed an instance."""

    rental: RentalShape


class UnsettledStep(Struct, frozen=True, kw_only=True, tag_field="step", tag="unsettled"):
    """The reply was lost or unclear: listings will tell."""

    rental: RentalShape
    detail: str


class WatchedStep(Struct, frozen=True, kw_only=True, tag_field="step", tag="watched"):
    """A look at a rental that is not settled yet; `probe` says why its workload does not answer."""

    rental: RentalShape
    probe: str
    problem: str


class DroppedStep(Struct, frozen=True, kw_only=True, tag_field="step", tag="dropped"):
    """This candidate came to nothing; another may be tried."""

    rental: RentalShape
    reason: str


class SettledStep(Struct, frozen=True, kw_only=True, tag_field="step", tag="settled"):
    """The rental reached the state that was waited for."""

    rental: RentalShape


StepShape = (
    DecidedStep
    | WaitingStep
    | PassedOverStep
    | IntendedStep
    | RentedStep
    | UnsettledStep
    | WatchedStep
    | DroppedStep
    | SettledStep
)
"""What a rent or a release tells while it goes on; one JSON object a line where it is streamed."""


class DoneStep(Struct, frozen=True, kw_only=True, tag_field="step", tag="done"):
    """The last line of a stream: what a reply in one piece would have held."""

    rental: RentalShape


class ProblemStep(Struct, frozen=True, kw_only=True, tag_field="step", tag="problem"):
    """The last line of a stream that came to nothing: the members of the problem (RFC 9457)."""

    problem: Mapping[str, Any]


StreamedStep = StepShape | DoneStep | ProblemStep
"""One line of a streamed rent or release."""


def money(amount: Decimal) -> str:
    """Return dollars to the micro-dollar, as a string that keeps the zeroes."""
    return f"{micros(amount):f}"


def micros(amount: Decimal) -> Decimal:
    """Return dollars to the micro-dollar."""
    return amount.quantize(MICRO_DOLLAR, rounding=ROUND_HALF_EVEN)


def offer_shape(offer: Offer) -> OfferShape:
    """Return an offer as it is shown."""
    from gp4u.selection.gscore import g_score  # only where offers are shown

    score = g_score(offer)
    offer_id = clean(offer.offer_id, 200)
    return OfferShape(
        id=f"{offer.provider}/{offer_id}",
        provider=offer.provider,
        offer_id=offer_id,
        gpu_model=clean(offer.gpu_model, 100),
        gpu_count=offer.gpu_count,
        vram_gib=offer.vram_gib,
        price_usd_per_hour=micros(offer.price_usd_per_hour),
        region=offer.region.code if offer.region else None,
        country=offer.region.country if offer.region else None,
        reliability=offer.reliability,
        download_mbps=offer.download_mbps,
        interruptible=offer.interruptible,
        g_score=round(score.score, 1) if score else None,
        g_score_parts=score.parts if score else None,
        fetched_at=offer.fetched_at,
        gpu_usd_per_hour=micros(offer.gpu_usd_per_hour),
        storage_usd_per_hour=micros(offer.storage_usd_per_hour),
        upload_mbps=offer.upload_mbps,
        cpu_cores=offer.cpu_cores,
        ram_gib=offer.ram_gib,
        disk_gib=offer.disk_gib,
        open_ports=offer.open_ports,
        machine_id=offer.machine_id,
        host_id=offer.host_id,
        verified=offer.verified,
        datacenter=offer.datacenter,
        estimated=offer.estimated,
        available=offer.available,
    )


def rejection_shape(rejection: Rejection) -> RejectionShape:
    """Return a rejection as it is shown."""
    return RejectionShape(
        offer=offer_shape(rejection.offer),
        filter=rejection.filter,
        value=clean(rejection.value, 200),
        bound=clean(rejection.bound, 200),
    )


def source_shape(note: SourceNote) -> SourceShape:
    """Return a market's part of an answer as it is shown."""
    return SourceShape(
        provider=note.provider,
        offers=note.offers,
        age_s=note.age_s,
        complete=note.complete,
        skipped_rows=note.skipped_rows,
        error=clean(note.error, 400),
        retry_in_s=note.retry_in_s,
    )


def address(endpoint: Endpoint) -> str:
    """Return `host:port`, with brackets around an IPv6 address."""
    host = clean(endpoint.host, 100)
    return f"[{host}]:{endpoint.port}" if ":" in host else f"{host}:{endpoint.port}"


def endpoint_shape(endpoint: Endpoint) -> EndpointShape:
    """Return an endpoint with its address and, for tcp, a URL."""
    return EndpointShape(
        port=endpoint.container_port,
        protocol=str(endpoint.protocol),
        address=address(endpoint),
        url=f"http://{address(endpoint)}" if endpoint.protocol == "tcp" else None,
    )


def rental_shape(
    rental: Rental, at: datetime, history: Sequence[LedgerEvent] | None = None
) -> RentalShape:
    """Return a rental as it is shown, with what it has cost up to `at`."""
    return RentalShape(
        key=rental.key,
        state=str(rental.state),
        live=rental.is_live,
        endpoints=[endpoint_shape(e) for e in rental.endpoints] if rental.is_live else [],
        owner=rental.owner,
        provider=rental.provider,
        offer_id=clean(rental.offer_id, 200),
        instance_id=None if rental.instance_id is None else clean(rental.instance_id, 200),
        gpu_model=clean(rental.gpu_model, 100),
        gpu_count=rental.gpu_count,
        region=rental.region,
        image=rental.workload.image,
        price_usd_per_hour=micros(rental.price_usd_per_hour),
        estimated=rental.estimated,
        cost_usd=micros(rentals.cost_usd(rental, at=at)),
        paid_until=rental.paid_until,
        reason=rental.reason or None,
        seen=str(rental.seen) if rental.seen else None,
        status=clean(rental.seen_status) or None,
        intended_at=rental.intended_at,
        running_at=rental.running_at,
        released_at=rental.released_at,
        history=UNSET if history is None else [event_shape(event) for event in history],
    )


def event_shape(event: LedgerEvent) -> EventShape:
    """Return a line of a rental's history as it is shown."""
    return EventShape(at=event.at, kind=event.kind, text=clean(event.text, 1000))


def unexplained_shape(
    provider: str, instance: Instance, state: str, key: str | None
) -> UnexplainedShape:
    """Return an instance that no rental explains: `state` is `orphan` or `foreign`."""
    price = instance.price_usd_per_hour
    orphan = state == "orphan"
    return UnexplainedShape(
        key=clean(key, 100) if key else None,
        state=state,
        provider=provider,
        instance_id=clean(instance.instance_id, 200),
        price_usd_per_hour=None if price is None else micros(price),
        seen=str(instance.state),
        note="nothing explains it: gp4u sweep" if orphan else "another installation's",
    )
