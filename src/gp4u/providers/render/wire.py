"""What Dispersed says of jobs: a job and its run as one instance, and its ways to say no.

What this file hides: the wire types of jobs and runs, and how the two are put together, since the
job carries our key and the run carries the address. All of it is pure. Offers are `offers.py`'s
part, which calls are made `adapter.py`'s; `judge`, and what text may be a host or a price, also
serve the proposed node API, whose error body is the same.

Source: `docs/reference/render.md`, which names the document behind each fact; checked 2026-11.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Any, Final, TypeGuard

import msgspec
from msgspec import Meta

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
from gp4u.model import Endpoint, Instance, InstanceState
from gp4u.providers.http import UNREADABLE, Reply, excerpt, harmless, retry_after_s

SLUG: Final = "render"
LEAST_USD_PER_HOUR: Final = Decimal("0.000001")
MOST_USD_PER_HOUR: Final = Decimal(10_000)
"""What is not between the two is another unit, or an attack on the arithmetic."""
SSH_PORT: Final = 22

Word = Annotated[str, Meta(max_length=256)]
Uuid = Annotated[str, Meta(max_length=64, pattern=r"^[0-9A-Za-z_-]+\Z")]
"""Nothing in it can lead a path elsewhere."""


class Job(msgspec.Struct):
    """One job; all but its id stays loose, since no recorded answer is public."""

    uuid: Uuid
    title: Any = None
    status: Any = None
    status_reason: Any = None
    created_at: Any = None
    parameters: Any = None
    pricing: Any = None


class Run(msgspec.Struct):
    """One execution of a job on one node."""

    uuid: Uuid
    job_uuid: Word | None = None
    started_at_ms: Any = None
    node_urls: Any = None
    pricing: Any = None
    logs: Any = None


class _Said(msgspec.Struct):
    error: Any = None
    data: msgspec.Raw = msgspec.Raw(b"null")
    """Left unread: whole lists come in it."""
    uuid: Any = None
    job_id: Any = None


_STATES: Final = {
    "PENDING": InstanceState.BOOTING,
    "ASSIGNED": InstanceState.BOOTING,
    "PREPARING": InstanceState.BOOTING,
    "RUNNING": InstanceState.RUNNING,
    "FAILING": InstanceState.FAILED,
    "CANCELLING": InstanceState.STOPPED,
}
ENDED: Final = frozenset({"COMPLETED", "FAILED", "CANCELLED"})
"""Jobs stay on record for ever; in these states nothing of them is left to pay for."""
ACTIVE: Final = tuple(_STATES)
PLACED: Final = ("ASSIGNED", "PREPARING", "RUNNING")
"""In these a job has a run, so a node, and may have an address."""


def status_of(job: Job) -> str:
    """Return the market's word for a job's state."""
    return job.status.upper() if isinstance(job.status, str) else ""


def to_instance(job: Job, run: Run | None) -> Instance:
    """Return a job and its run, if it has one, as one instance."""
    endpoints = tuple(sorted(_endpoints(run), key=lambda e: e.container_port))
    state = _STATES.get(status_of(job), InstanceState.UNKNOWN)
    if state is InstanceState.RUNNING and not _ports(job) <= {e.container_port for e in endpoints}:
        state = InstanceState.BOOTING  # it runs, and the proxy in front of it is not there yet
    return Instance(
        provider=SLUG,
        instance_id=job.uuid,
        label=job.title if isinstance(job.title, str) else None,
        state=state,
        status=harmless(_text(job.status_reason) or _text(job.status)),
        endpoints=endpoints,
        price_usd_per_hour=_rate(run.pricing if run else None) or _rate(job.pricing),
        created_at=_stamp(job.created_at),
    )


def newest(runs: Iterable[Run]) -> Run | None:
    """Return the run that began last."""
    return max(runs, key=lambda run: _number(run.started_at_ms), default=None)


def _endpoints(run: Run | None) -> Iterator[Endpoint]:
    """Yield where container ports are reachable; an address is told by its description alone."""
    urls = run.node_urls if run is not None else None
    seen: set[int] = set()
    for entry in urls if isinstance(urls, list) else ():
        if not isinstance(entry, Mapping) or not is_tcp(entry):
            continue
        said, host, outside = (entry.get(name) for name in ("description", "hostname", "port"))
        port = _port(SSH_PORT if said == "ssh" else said)
        number = _port(outside)
        if port is None or port in seen or number is None or not is_host(host):
            continue
        seen.add(port)  # of two ways to one port, the first
        named = f"[{host}]" if ":" in host else host
        url = f"https://{named}:{number}" if entry.get("tls") is True else None
        yield Endpoint(container_port=port, host=host, port=number, url=url)


_HOST: Final = re.compile(r"[0-9A-Za-z]([0-9A-Za-z.:-]{0,252})\Z")


def is_host(text: object) -> TypeGuard[str]:
    """Whether foreign text is a name or an address, and nothing that leads elsewhere."""
    return isinstance(text, str) and _HOST.match(text) is not None


def is_tcp(entry: Mapping[Any, Any]) -> bool:
    """Whether an address is one of TCP, as all are that do not say otherwise."""
    said = entry.get("protocol", "tcp")
    return isinstance(said, str) and said.lower() == "tcp"


def _ports(job: Job) -> set[int]:
    """Return the ports that the job asked for, as far as its echo tells."""
    asked = job.parameters.get("parameters") if isinstance(job.parameters, Mapping) else None
    ports = asked.get("ports") if isinstance(asked, Mapping) else None
    found = (_port(each) for each in ports) if isinstance(ports, list) else ()
    return {port for port in found if port is not None}


def _port(value: object) -> int | None:
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 6:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return value if 0 < value < 65_536 else None


def usd_per_hour(amount: Decimal) -> Decimal | None:
    """Return a price per hour that can be one: finite, above nothing, not absurd."""
    if not amount.is_finite() or not LEAST_USD_PER_HOUR <= amount <= MOST_USD_PER_HOUR:
        return None
    return +amount  # to the arithmetic's precision: a price may come with 10,000 digits


def _rate(pricing: object) -> Decimal | None:
    value = pricing.get("hourly_rate_usd") if isinstance(pricing, Mapping) else None
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return usd_per_hour(Decimal(str(value)))
    except (ArithmeticError, ValueError):  # no number; or one of more digits than Python prints
        return None


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) and abs(value) < 1e18 else 0.0


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _stamp(value: object) -> datetime | None:
    try:
        at = datetime.fromisoformat(_text(value))
    except ValueError:
        return None
    return at if at.tzinfo else at.replace(tzinfo=UTC)


_NO_CREDIT: Final = re.compile(r"credit|balance|funds|payment")
_CREATES: Final = ("rent", "submit_render")
_OF_ONE: Final = ("release", "logs", "billed", "render_job", "cancel_render")


def judge(operation: str, reply: Reply) -> ProviderError | None:
    """Say what a reply means: its status, then `error.code`, then words of its text.

    No catalogue of codes is published, so the status leads. For a create, whatever is not a clear
    no becomes `Unavailable`, which the caller must take for an unknown outcome. A no that names
    what it made all the same becomes `Refused` with its id.
    """
    ok = 200 <= reply.status < 300
    if ok and b'"error"' not in reply.content:
        return None
    said = _said(reply.content)
    if ok and (said is None or not isinstance(said.error, Mapping) or _names_one(said)):
        return None  # an `error` that is text belongs to a job, not to the reply
    code, text = _words(said, reply.content)
    who = (SLUG, operation, f"HTTP {reply.status}: {text}" if text else f"HTTP {reply.status}")
    if ok:
        return Unavailable(*who) if operation in _CREATES else Malformed(*who)
    if reply.status >= 500 or reply.status == 408:
        return Unavailable(*who)
    if reply.status == 429:
        return Throttled(*who, retry_after_s=retry_after_s(reply))
    if reply.status == 401:
        hint = "; check the keys, and that this machine's clock is right to five minutes"
        return Denied(SLUG, operation, who[2] + hint)
    made = _made(reply.content) if operation in _CREATES else None
    if reply.status == 402 or (operation in _CREATES and _NO_CREDIT.search(f"{code} {text}")):
        return Refused(*who, code="insufficient_credit", instance_id=made)
    if reply.status == 403:
        return Denied(*who)
    if reply.status < 400 or (said is None and operation not in _CREATES):
        return Malformed(*who)  # no such endpoint, or a page: not the market we know
    gone = reply.status in (404, 409, 410)
    if operation == "rent" and gone and said is not None and made is None:
        return OfferGone(*who)  # nothing was made, and another node may do
    if operation in _OF_ONE and gone:
        return InstanceAbsent(*who)  # a 409 is a job that has ended already
    return Refused(*who, code=code or str(reply.status), instance_id=made)


def _said(content: bytes) -> _Said | None:
    """Return what a JSON object says of itself; None for anything else."""
    try:
        return msgspec.json.decode(content, type=_Said)
    except UNREADABLE:
        return None


def _names_one(said: _Said) -> bool:
    """Whether a reply names one thing, bare or within `data`; a list beside an error does not."""
    return bool(said.uuid or said.job_id) or bytes(said.data)[:1] == b"{"


class _Made(msgspec.Struct):
    uuid: Uuid | None = None
    job_id: Uuid | None = None
    data: _Made | None = None


def _made(content: bytes) -> str | None:
    """Return the id of what a refused create made, if it names one."""
    try:
        said = msgspec.json.decode(content, type=_Made)
    except UNREADABLE:
        return None
    inner = said.data or said
    return inner.uuid or inner.job_id


def _words(said: _Said | None, content: bytes) -> tuple[str, str]:
    """Return the error's code and message, both harmless."""
    if said is None:
        return "", excerpt(content)
    if not isinstance(said.error, Mapping):
        return "", harmless(_text(said.error), 200)
    return (
        harmless(_text(said.error.get("code")), 64),
        harmless(_text(said.error.get("message")), 200),
    )
