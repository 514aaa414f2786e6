"""What Vast.ai's replies mean: rows as offers and as instances, and its many ways to say no.

What this file hides: the marketplace's wire types, its state fields, and how an error is told
from a success. Three things shape it: a 200 can be a failure, a failure can have rented, and a 404
can mean a bad key. All of it is pure. Which calls are made is `adapter.py`'s part.

Source: `docs/reference/vastai.md`, which names the document behind each fact; checked 2026-11.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from decimal import ROUND_CEILING, Decimal
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from gp4u import gpus, places
from gp4u.errors import (
    Denied,
    InstanceAbsent,
    Malformed,
    OfferGone,
    ProviderError,
    Refused,
    Throttled,
    Unavailable,
)
from gp4u.model import Endpoint, Instance, InstanceState, Offer, Protocol, Requirements
from gp4u.providers.http import UNREADABLE, Reply, decode, excerpt, harmless
from gp4u.providers.ssh import Address
from gp4u.providers.turns import each_row, good_rows
from gp4u.resilience.backoff import MAX_RETRY_AFTER_S, parse_retry_after, sane_retry_after

SLUG: Final = "vastai"
MIN_DISK_GB: Final = 8
HOURS_PER_MONTH: Final = 720
"""A storage price per month is divided by this: exact on recorded offers of 2025-07."""
BID_OVER_FLOOR: Final = Decimal("1.25")
"""We bid this much over the lowest bid: the lowest has the shortest life."""
BID_STEP_USD: Final = Decimal("0.0001")
LEAST_BID_USD: Final = Decimal("0.001")
LEAST_USD_PER_HOUR: Final = Decimal("0.000001")
MOST_USD_PER_HOUR: Final = Decimal(10_000)
"""What is not between the two is another unit, or an attack on the arithmetic."""

Id = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Word = Annotated[str, Meta(max_length=256)]


class ListedOffer(msgspec.Struct, gc=False):
    """One row of the search reply. Only identity and GPU are never null; prices must be numbers."""

    id: Id
    machine_id: Id
    host_id: Id
    num_gpus: Annotated[int, Meta(ge=1, le=4096)]
    gpu_name: Annotated[str, Meta(min_length=1, max_length=256)]
    gpu_ram: Annotated[float, Meta(gt=0)]
    """MB per GPU, as the driver reports it."""
    dph_base: Decimal | None = None
    dph_total: Decimal | None = None
    storage_cost: Decimal | None = None
    """$/GB/month."""
    min_bid: Decimal | None = None
    is_bid: bool | None = None
    geolocation: Word | None = None
    reliability2: float | None = None
    reliability: float | None = None
    inet_down: float | None = None
    """Mbps."""
    inet_up: float | None = None
    inet_down_cost: Decimal | None = None
    cpu_cores: float | None = None
    cpu_cores_effective: float | None = None
    cpu_ram: float | None = None
    """MB of the whole machine."""
    disk_space: float | None = None
    direct_port_count: float | None = None
    hosting_type: int | None = None
    verification: Word | None = None
    rentable: bool | None = None
    rented: bool | None = None


class SearchReply(msgspec.Struct):
    """All rows of a search, not read yet, so that a bad one hides no other."""

    offers: list[msgspec.Raw]


class ListReply(msgspec.Struct):
    """A page of the v1 list; rows stay loose, since a booting instance lacks most fields."""

    instances: list[Any]
    instances_found: int | None = None
    """On this page."""
    total_instances: int | None = None
    """On all pages."""
    next_token: str | None = None


class Charge(msgspec.Struct):
    """One row of the charges."""

    source: str | None = None
    """`instance-123`."""
    amount: Decimal | None = None


class ChargesReply(msgspec.Struct):
    """A page of the charges."""

    results: list[Charge]
    next_token: str | None = None


class UserReply(msgspec.Struct):
    """Whose key it is; `credit` is the money that can be spent."""

    id: int | None = None
    email: str | None = None
    username: str | None = None
    credit: Decimal | None = None


class RentReply(msgspec.Struct):
    """The answer to a create call that worked; the key of the instance in it is never read."""

    new_contract: Any = None


class ErrorBody(msgspec.Struct):
    """What a reply may say about itself; any field can be missing or of another type."""

    success: Any = None
    error: Any = None
    msg: Any = None
    detail: Any = None
    message: Any = None
    new_contract: Any = None
    retry_after: Any = None


def offer_rows(body: bytes) -> Iterator[ListedOffer | None]:
    """Yield the rows of a search reply; None for one that breaks its schema.

    Raises:
        Malformed: it is no search reply; raised when the first row is asked for.
    """
    yield from each_row(decode(SLUG, "offers", body, SearchReply).offers, ListedOffer)


def parse_offers(body: bytes) -> tuple[list[ListedOffer], int]:
    """Return the rows that keep their schema and how many do not.

    Raises:
        Malformed: it is no search reply, or more than half of its rows are bad.
    """
    return good_rows(SLUG, "offers", offer_rows(body))


def to_offer(row: ListedOffer, wanted: Requirements, at: datetime) -> Offer | None:
    """Return the row as an offer priced for the demand, or None where it has no usable price.

    A number that cannot be (a reliability of 98, a disk of -1) counts as unknown.
    """
    prices = _bid_prices(row, wanted) if wanted.interruptible else _prices(row, wanted)
    if prices is None:
        return None
    gpu_usd, storage_usd = prices
    gpu = gpus.canonical(row.gpu_name, row.gpu_ram)
    cores, own = row.cpu_cores, row.cpu_cores_effective
    ram_gib = None
    if cores and own and row.cpu_ram and cores > 0 and own > 0 and row.cpu_ram > 0:
        ram_gib = row.cpu_ram * min(1.0, own / cores) / 1024
    reliability = row.reliability if row.reliability2 is None else row.reliability2
    down, up, disk, ports = row.inet_down, row.inet_up, row.disk_space, row.direct_port_count
    return Offer(
        provider=SLUG,
        offer_id=str(row.id),
        gpu_model=gpu.model if gpu else harmless(row.gpu_name),
        gpu_count=row.num_gpus,
        vram_gib=gpu.vram_gib if gpu else round(row.gpu_ram / 1024, 1),
        price_usd_per_hour=gpu_usd + storage_usd,
        gpu_usd_per_hour=gpu_usd,
        storage_usd_per_hour=storage_usd,
        fetched_at=at,
        interruptible=wanted.interruptible,
        region=places.parse(row.geolocation),
        reliability=reliability if reliability is not None and 0 <= reliability <= 1 else None,
        download_mbps=down if down is not None and down >= 0 else None,
        upload_mbps=up if up is not None and up >= 0 else None,
        cpu_cores=own if own is not None and own >= 0 else None,
        ram_gib=ram_gib,
        disk_gib=disk if disk is not None and disk >= 0 else None,
        open_ports=None if ports is None else int(min(max(ports, 0), 65_535)),
        machine_id=str(row.machine_id),
        host_id=str(row.host_id),
        verified=None if row.verification is None else row.verification == "verified",
        datacenter=None if row.hosting_type is None else row.hosting_type == 1,
        available=row.rentable is not False and row.rented is not True,
        traffic_usd_per_gb=_usd(row.inet_down_cost),
    )


def _prices(row: ListedOffer, wanted: Requirements) -> tuple[Decimal, Decimal] | None:
    """Return $/h of GPU and of storage on demand; None where a part cannot be told."""
    if row.is_bid:
        return None  # priced as a bid: on demand it costs more, and nobody says how much
    base, storage = _usd(row.dph_base), _storage(row, wanted)
    if row.dph_base is None or row.storage_cost is None:
        total = _usd(row.dph_total)  # for the disk that the search named
        if total is not None and row.dph_base is None and storage is not None:
            base = total - storage
        elif total is not None and row.storage_cost is None and base is not None:
            storage = total - base
    if base is None or base < LEAST_USD_PER_HOUR or storage is None or storage < 0:
        return None
    return base, storage


def _bid_prices(row: ListedOffer, wanted: Requirements) -> tuple[Decimal, Decimal] | None:
    """Return $/h of what we would bid and of storage; the bid is in steps that can be sent."""
    floor, storage = _usd(row.min_bid), _storage(row, wanted)
    if floor is None or floor < LEAST_USD_PER_HOUR or storage is None:
        return None
    bid = (floor * BID_OVER_FLOOR).quantize(BID_STEP_USD, rounding=ROUND_CEILING)
    return max(bid, LEAST_BID_USD), storage


def _usd(amount: Decimal | None) -> Decimal | None:
    """Return an amount of money that can be one: finite, not negative, not too much."""
    if amount is None or not amount.is_finite() or not 0 <= amount <= MOST_USD_PER_HOUR:
        return None
    return +amount  # to the arithmetic's precision: a price may come with 10,000 digits


def _storage(row: ListedOffer, wanted: Requirements) -> Decimal | None:
    price = _usd(row.storage_cost)
    return None if price is None else price * _disk_gb(wanted.disk_gib) / HOURS_PER_MONTH


@lru_cache(maxsize=64)
def _disk_gb(disk_gib: float) -> Decimal:
    return Decimal(str(max(disk_gib, MIN_DISK_GB)))


def to_instance(row: object) -> Instance | None:
    """Return one row of the list as an instance; None where not even its id can be read."""
    if not isinstance(row, Mapping) or (instance_id := id_text(row.get("id"))) is None:
        return None
    label = row.get("label")
    state = instance_state(row)
    return Instance(
        provider=SLUG,
        instance_id=instance_id,
        label=label if isinstance(label, str) else None,
        state=state,
        status=harmless(_word(row, "status_msg") or _word(row, "actual_status")),
        endpoints=tuple(sorted(_endpoints(row.get("public_ipaddr"), row.get("ports")), key=_order)),
        price_usd_per_hour=_loose_usd(row.get("dph_total")),
        machine_id=id_text(row.get("machine_id")),
        created_at=_stamp(row.get("start_date")),
        exit_code=_exit_code(row) if state in _ENDED else None,
    )


_ENDED: Final = (InstanceState.EXITED, InstanceState.STOPPED)
_EXIT_TEXT: Final = re.compile(r"exited(?: with code)? \(?(\d{1,3})\b", re.IGNORECASE)
"""Docker's own words of a container that ended: `Exited (3) 2 minutes ago`, `exited with code 3`.
The market passes on what the host reports; that it always does so is inferred."""


def _exit_code(row: Mapping[str, Any]) -> int | None:
    found = _EXIT_TEXT.search(_word(row, "status_msg"))
    code = int(found[1]) if found else None
    return code if code is not None and code <= 255 else None


class Way(msgspec.Struct, frozen=True, kw_only=True):
    """Where one instance can be entered."""

    has_shell: bool
    """Whether it was rented with the market's SSH server."""
    addresses: tuple[Address, ...]
    """The direct one first, then the market's proxy; empty while there are none."""


def way_in(row: Mapping[str, Any]) -> Way:
    """Read where an instance's SSH is: a direct port of its own address, or a proxy's name.

    The two are never mixed: a port belongs to the address that it stands beside.
    """
    addresses = [
        Address(endpoint.host, endpoint.port)
        for endpoint in _endpoints(row.get("public_ipaddr"), row.get("ports"))
        if endpoint.container_port == SSH_PORT and endpoint.protocol is Protocol.TCP
    ]
    proxy, port = _word(row, "ssh_host"), _port(row.get("ssh_port"))
    if _PROXY.fullmatch(proxy) and port is not None:
        addresses.append(Address(proxy, port))
    return Way(has_shell="ssh" in _word(row, "image_runtype"), addresses=tuple(addresses))


SSH_PORT: Final = 22
_PROXY: Final = re.compile(r"[A-Za-z0-9.-]{1,253}")


_STATES: Final = {
    "": InstanceState.BOOTING,
    "created": InstanceState.BOOTING,
    "loading": InstanceState.BOOTING,
    "scheduling": InstanceState.BOOTING,
    "rebooting": InstanceState.BOOTING,
    "recycling": InstanceState.BOOTING,
    "running": InstanceState.RUNNING,
    "exited": InstanceState.EXITED,
    "stopped": InstanceState.EXITED,
    "frozen": InstanceState.STOPPED,  # paused in memory; only a start call would wake it
    "offline": InstanceState.OFFLINE,
}
_STARTING: Final = ("", "created", "loading")
_FATAL: Final = re.compile(
    "oci runtime create failed|failed to pull|pull access denied|manifest unknown"
    "|no space left|error response from daemon|unauthorized"
)
"""What the status text of a starting instance holds when it will never start (vastai.md 5.6)."""


def instance_state(row: Mapping[str, Any]) -> InstanceState:
    """Read the state fields and the status text together; a word we do not know is UNKNOWN."""
    actual = _word(row, "actual_status").lower()
    intended, current, following = (
        _word(row, name).lower() for name in ("intended_status", "cur_state", "next_state")
    )
    if actual in _STARTING and _FATAL.search(_word(row, "status_msg").lower()):
        return InstanceState.FAILED
    if {intended, current, following} - {""} == {"stopped"}:
        return InstanceState.STOPPED  # outbid, out of credit, stopped by hand: it will not return
    queued = (intended, current, following) == ("running", "stopped", "running")
    if queued and actual in ("exited", "stopped"):
        return InstanceState.BOOTING  # it waits for its GPU
    return _STATES.get(actual, InstanceState.UNKNOWN)


def _endpoints(address: object, ports: object) -> Iterator[Endpoint]:
    """Yield where container ports are reachable: `{"8000/tcp": [{"HostPort": "40123"}]}`."""
    if not isinstance(address, str) or not isinstance(ports, Mapping):
        return
    try:
        host = str(ipaddress.ip_address(address.strip()))
    except ValueError:
        return
    for name, bound in ports.items():
        number, _, protocol = str(name).partition("/")
        port, outside = _port(number), _host_port(bound)
        if port is not None and outside is not None and protocol in ("", "tcp", "udp"):
            yield Endpoint(
                container_port=port,
                protocol=Protocol(protocol or "tcp"),
                host=host,
                port=outside,
            )


def _host_port(bound: object) -> int | None:
    """Return the port outside; where an IPv6 twin stands beside it, the IPv4 one."""
    found = [each for each in bound if isinstance(each, Mapping)] if isinstance(bound, list) else []
    for each in sorted(found, key=lambda one: ":" in str(one.get("HostIp"))):
        port = _port(each.get("HostPort"))
        if port is not None:
            return port
    return None


def _order(endpoint: Endpoint) -> tuple[int, str]:
    return endpoint.container_port, endpoint.protocol


def _port(value: object) -> int | None:
    text = id_text(value)
    return int(text) if text is not None and 0 < int(text) < 65_536 else None


def _word(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    return value if isinstance(value, str) else ""


def _loose_usd(value: object) -> Decimal | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return _usd(Decimal(str(value)))
    except (ArithmeticError, ValueError):  # no number; or one of more digits than Python prints
        return None


def _stamp(value: object) -> datetime | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return datetime.fromtimestamp(value, UTC)
    except (ValueError, OverflowError, OSError):
        return None


def id_text(value: object) -> str | None:
    """Return an id, which may come as a number or as its digits; None for anything else."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return str(value) if 0 <= value < 2**63 else None
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20:
        return str(int(value))  # 007 and 7 are one instance
    return None


_THROTTLED: Final = re.compile(r"too frequent|\brate_limit_exceeded\b|_quota_exceeded\b")
_DENIED: Final = re.compile(r"\bauth_error\b|invalid user key|session (?:has |is )?expired")
_GONE: Final = re.compile(r"\bno_such_ask\b|\bnot available\b|no longer available")
_ABSENT: Final = re.compile(r"\bno_such_instance\b|\bnot_found\b|\binvalid_id\b|does not exist")
_NO_CREDIT: Final = re.compile(r"credit\b|\bmissing_billing\b|\bbilling\b|\bbalance\b|\bfunds\b")
_THRESHOLD: Final = re.compile(r"threshold=([0-9]{1,4}(?:\.[0-9]{1,6})?)")


def judge(operation: str, reply: Reply) -> ProviderError | None:
    """Say what a reply means: its status, then `error`, then words of its text.

    For a rent, whatever is not a clear no becomes `Unavailable`, which the caller must take for an
    unknown outcome; an instance id in the reply is never lost, whatever else it says.
    """
    body = _error_body(reply.content)
    said = body or ErrorBody()
    ok = 200 <= reply.status < 300
    if ok and not _declined(said):
        return None
    parts = (said.error, said.msg, said.detail, said.message)
    text = " ".join(harmless(part, 400) for part in parts if isinstance(part, str) and part)
    if body is None:
        text = excerpt(reply.content)  # never of an object: a create's reply holds a secret
    code = harmless(said.error, 64) if isinstance(said.error, str) else ""
    who = (
        SLUG,
        operation,
        f"HTTP {reply.status}: {text[:200]}" if text else f"HTTP {reply.status}",
    )
    made = id_text(said.new_contract) if operation == "rent" else None
    if made is not None:
        return Refused(*who, code=code, instance_id=made)
    words = text.lower()
    if operation == "rent" and ok:
        # Seen to have rented all the same, with the id withheld (vastai.md 4.5).
        return OfferGone(*who) if "no_such_ask" in words else Unavailable(*who)
    if reply.status >= 500 or reply.status == 408:
        return Unavailable(*who)
    if reply.status == 429 or _THROTTLED.search(words):
        return Throttled(*who, retry_after_s=_retry_after(reply, said, words))
    if reply.status == 401 or _DENIED.search(words):
        return Denied(*who)
    if 300 <= reply.status < 400 or code == "deprecated_endpoint":
        return Malformed(*who)
    return _judge_refusal(operation, reply.status, code, words, who, is_json=body is not None)


_OF_ONE: Final = ("release", "logs", "attach", "restart")
"""Operations on one instance, of which the market can say that there is none."""


def _judge_refusal(
    operation: str, status: int, code: str, words: str, who: tuple[str, str, str], *, is_json: bool
) -> ProviderError:
    """Tell apart the ways to have understood and said no: 4xx, and 200 declined."""
    if operation == "rent" and (status in (409, 410) or _GONE.search(words)):
        return OfferGone(*who)
    if operation in _OF_ONE and status in (200, 404, 410) and _ABSENT.search(words):
        return InstanceAbsent(*who)
    if status == 411 or _NO_CREDIT.search(words):
        return Refused(*who, code="insufficient_credit")
    if status == 403 and code != "invalid_args":
        return Denied(*who)
    if status in (404, 405, 410) and not is_json and operation != "rent":
        return Malformed(*who)  # no such endpoint: not the marketplace we know
    return Refused(*who, code=code or str(status))


def _error_body(content: bytes) -> ErrorBody | None:
    """Return what the reply says about itself; None where it is no JSON object."""
    try:
        return msgspec.json.decode(content, type=ErrorBody)
    except UNREADABLE:
        return None


def _declined(said: ErrorBody) -> bool:
    if said.success is None:
        return bool(said.error)
    return said.success in (False, "false")


def _retry_after(reply: Reply, said: ErrorBody, words: str) -> float | None:
    """Read how long to wait: `Retry-After`, a quota's reset time, else the stated interval.

    Times of day are taken against the reply's own `Date`, since the provider's clock may be off.
    """
    now = _http_date(reply.headers.get("date"))
    header = reply.headers.get("retry-after")
    told = _seconds(said.retry_after if header is None else header)
    if told is not None:
        return sane_retry_after(told)
    if header is not None and now is not None:
        return parse_retry_after(header, now)
    reset = _seconds(reply.headers.get("x-ratelimit-reset"))
    if reset is not None:
        wait_s = reset - now.timestamp() if now else MAX_RETRY_AFTER_S
        return sane_retry_after(max(0.0, wait_s))
    stated = _THRESHOLD.search(words)
    return sane_retry_after(float(stated[1])) if stated else None


def _seconds(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None


def _http_date(text: str | None) -> datetime | None:
    try:
        date = parsedate_to_datetime(text or "")
    except (ValueError, TypeError, IndexError, OverflowError):  # all seen from it on noise
        return None
    return date if date.tzinfo else date.replace(tzinfo=UTC)
