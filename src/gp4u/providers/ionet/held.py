"""What an io.net account holds: pages of its list, rows as instances, and where they are reached.

What this file hides: that history stays in the list, that a row has a name and no address while its
workers have an address and no name, status words in several spellings, and whatever speaks against
a list being complete. All of it is pure. Which calls are made is `adapter.py`'s part.

Source: `docs/reference/ionet.md`, states; checked 2026-11.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from gp4u.model import Endpoint, Instance, InstanceState, Listing, Protocol
from gp4u.providers.http import harmless, may_connect
from gp4u.providers.ionet.order import SLUG, Product
from gp4u.providers.ionet.wire import own_id, stamp

OUR_PREFIX: Final = "gp4u-"
"""What our keys begin with; only such rows are worth a closer look at their endpoints."""
_MICRO: Final = Decimal("0.000001")
_MOST_USD: Final = 10**9


class HeldPage(msgspec.Struct):
    """A page of what the account holds or held; rows stay loose, so that none is lost."""

    held: list[Any] = msgspec.field(name="deployments")
    total: int | None = None


class _Config(msgspec.Struct):
    traffic_port: int | None = None


class Detail(msgspec.Struct):
    """One rented thing by itself; it does not tell its own name."""

    amount_paid: Decimal | None = None
    compute_minutes_served: float | None = None
    compute_minutes_remaining: float | None = None
    container_config: _Config | None = None

    @property
    def paid_usd(self) -> Decimal | None:
        """What was paid for all its hours together; None where that is no amount."""
        paid = self.amount_paid
        return paid if paid is not None and paid.is_finite() and 0 <= paid < _MOST_USD else None

    @property
    def usd_per_hour(self) -> Decimal | None:
        """What was paid over what was bought, which is whole hours."""
        minutes = (self.compute_minutes_served or 0) + (self.compute_minutes_remaining or 0)
        paid = self.paid_usd
        if not paid or not 0 < minutes < 10**7:
            return None
        return (paid / max(1, round(minutes / 60))).quantize(_MICRO)


class Worker(msgspec.Struct):
    """A container or a virtual machine of a rented thing."""

    container_id: str | None = None
    public_url: str | None = None
    status: str | None = None
    container_events: list[Any] | None = None
    network_services: Any = None
    ssh_access: Any = None


class Workers(msgspec.Struct):
    """The reply that lists them."""

    workers: list[Worker]


class Walk:
    """Gathers the pages of the lists, and whatever speaks against their being complete."""

    def __init__(self) -> None:
        self.rows: dict[tuple[Product, str], Mapping[str, Any]] = {}
        self._why = ""
        self._total: int | None = None

    def doubt(self, why: str) -> None:
        """Note why the listing cannot prove absence; the first reason stays."""
        self._why = self._why or why

    def add(self, product: Product, page: HeldPage) -> bool:
        """Take in a page; return whether it had anything new.

        A total of 0 beside rows was seen, and tells nothing.
        """
        known = len(self.rows)
        if page.total and self._total and page.total != self._total:
            self.doubt("the total changed while paging")
        self._total = page.total or self._total
        for row in page.held:
            own = own_id(row)
            if own is None:
                self.doubt("a row without an id")
            elif (product, own) in self.rows:
                self.doubt("pages overlap")
            else:
                self.rows[product, own] = row
        return len(self.rows) > known

    def may_go_on(self, product: Product) -> bool:
        """Whether a page that is not full need not be the last: more is promised, or nothing is."""
        return not self._total or self._total > self._count(product)

    def end(self, product: Product) -> None:
        """Compare what one product's pages showed with what they promised."""
        if self._total not in (None, 0, self._count(product)):
            self.doubt(f"{self._count(product)} {product} rows shown of {self._total}")
        self._total = None

    def has(self, product: Product) -> bool:
        """Whether anything of a product was shown."""
        return self._count(product) > 0

    def listing(self, instances: Iterable[Instance], *, began_at: datetime) -> Listing:
        """Return what was seen."""
        return Listing(
            provider=SLUG,
            instances=tuple(instances),
            complete=not self._why,
            began_at=began_at,
            why_incomplete=self._why,
        )

    def _count(self, product: Product) -> int:
        return sum(1 for of, _ in self.rows if of is product)


_STATES: Final = {
    "deployment requested": InstanceState.BOOTING,
    "running": InstanceState.RUNNING,
    "failed": InstanceState.FAILED,
    "termination requested": InstanceState.STOPPED,
}
_GONE: Final = frozenset({"completed", "destroyed"})
"""Nothing of it is left: the paid time is used up, or it was ended."""


def state_word(row: Mapping[str, Any]) -> str:
    """Return the status in the documents' spelling: it also comes in capitals and with `_`."""
    value = row.get("status")
    return " ".join(value.lower().replace("_", " ").split()) if isinstance(value, str) else ""


def is_over(row: Mapping[str, Any]) -> bool:
    """Whether a row only tells of the past.

    A failed one does once none of its paid time is left: nobody says that it changes its word then,
    and without this a release of it would be waited for in vain.
    """
    word = state_word(row)
    return word in _GONE or (word == "failed" and _minutes_left(row) == 0)


def _minutes_left(row: Mapping[str, Any]) -> float | None:
    minutes: Any = row.get("compute_minutes_remaining")
    told = isinstance(minutes, int | float) and not isinstance(minutes, bool)
    return minutes if told and 0 <= minutes < 10**7 else None


def to_instance(row: Mapping[str, Any], product: Product, own: str, *, at: datetime) -> Instance:
    """Return a row of the list as an instance, without the endpoints that the list does not tell.

    `at` is our own time of the listing, from which the paid minutes run.
    """
    name, word, minutes = row.get("name"), state_word(row), _minutes_left(row)
    paid_until = None
    if word == "running" and minutes is not None:
        # Minutes are whole, and nobody says which way they were rounded: the worse is taken.
        paid_until = at + timedelta(minutes=max(0, minutes - 1))
    return Instance(
        provider=SLUG,
        instance_id=f"{product}:{own}",
        label=name if isinstance(name, str) else None,
        state=_STATES.get(word, InstanceState.UNKNOWN),
        status=harmless(word),
        created_at=stamp(row.get("created_at")),
        paid_until=paid_until,
    )


def with_url(
    instance: Instance, found: list[Worker], detail: Detail, *, allow_loopback: bool
) -> Instance:
    """Return a running container's instance with what its worker and its detail tell.

    The public URL appears once the market's own health check of the port passed; until then the
    container is up and cannot be reached.
    """
    port = _port(detail.container_config.traffic_port) if detail.container_config else None
    urls = [worker.public_url for worker in found if worker.public_url]
    ends = [end for url in urls if (end := _url_endpoint(url, port, allow_loopback)) is not None]
    status = instance.status
    if urls and not ends:
        status = f"up, its public URL cannot be used: {urls[0]}"
    elif not ends:
        told = next((text for worker in found if (text := _last_event(worker))), "")
        status = f"up, its health check has not passed{': ' if told else ''}{told}"
    return msgspec.structs.replace(
        instance,
        state=InstanceState.RUNNING if ends else InstanceState.BOOTING,
        status=harmless(status),
        endpoints=tuple(ends[:1]),
        price_usd_per_hour=detail.usd_per_hour,
    )


def _url_endpoint(url: str, port: int | None, allow_loopback: bool) -> Endpoint | None:
    """Return where a public URL leads; None where nobody may be sent there.

    It must be https. Plain http is only for what `allow_loopback` lets through, as simulators have
    it. A name is judged by whoever connects, once it has addresses.
    """
    try:
        parts = urlsplit(url)
        host, outside = parts.hostname or "", parts.port
    except ValueError:
        return None
    address = _address_of(host)
    if address is not None and not may_connect(address, allow_loopback=allow_loopback):
        return None
    is_near = address is not None and not may_connect(address)
    if parts.scheme != "https" and not (parts.scheme == "http" and is_near):
        return None
    if port is None or parts.username is not None or outside == 0:
        return None
    if address is None and not _NAME.fullmatch(host):
        return None
    return Endpoint(
        container_port=port,
        host=host,
        port=outside or (443 if parts.scheme == "https" else 80),
        url=f"{parts.scheme}://{parts.netloc}",
    )


_NAME: Final = re.compile(r"(?=.{1,253}\Z)[0-9a-z_-]+(\.[0-9a-z_-]+)+\.?")
"""A host with a dot in it: one without is a machine of ours, if it is any."""


def _address_of(host: object) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host) if isinstance(host, str) else None
    except ValueError:
        return None


def _last_event(worker: Worker) -> str:
    last = worker.container_events[-1] if worker.container_events else None
    text = last.get("message") if isinstance(last, Mapping) else worker.status
    return text if isinstance(text, str) else ""


def with_addresses(instance: Instance, found: list[Worker], *, allow_loopback: bool) -> Instance:
    """Return a running virtual machine's instance with its addresses, once all are public.

    One without network services is up once it tells how to log in.
    """
    services = [each for worker in found for each in _services(worker)]
    ends = [end for each in services if (end := _address(each, allow_loopback)) is not None]
    login = next((w.ssh_access for w in found if w.ssh_access), None)
    ready = len(ends) == len(services) and bool(services or login)
    status = "up, its ports are not public yet"
    if ready:
        status = f"{instance.status}, ssh {login}" if isinstance(login, str) else instance.status
    return msgspec.structs.replace(
        instance,
        state=InstanceState.RUNNING if ready else InstanceState.BOOTING,
        status=harmless(status),
        endpoints=tuple(sorted(ends, key=lambda end: (end.container_port, end.protocol))),
    )


def _services(worker: Worker) -> Iterator[Mapping[str, Any]]:
    told = worker.network_services
    for each in told.values() if isinstance(told, Mapping) else ():
        if isinstance(each, Mapping):
            yield each


def _address(service: Mapping[str, Any], allow_loopback: bool) -> Endpoint | None:
    port, outside = _port(service.get("port")), _port(service.get("public_port"))
    protocol = str(service.get("protocol") or "tcp").lower()
    address = _address_of(service.get("public_ip"))
    if address is None or not may_connect(address, allow_loopback=allow_loopback):
        return None
    if port is None or outside is None or protocol not in ("tcp", "udp"):
        return None
    return Endpoint(
        container_port=port, protocol=Protocol(protocol), host=str(address), port=outside
    )


def _port(value: object) -> int | None:
    if isinstance(value, str) and re.fullmatch("[0-9]{1,5}", value):
        value = int(value)
    return value if type(value) is int and 0 < value < 65_536 else None
