"""Acme, a small market that does not exist: what it is asked, and what its replies mean.

Everything that an adapter of GP4U has to be stands here: the facts, three shapes of replies, one
function that makes an offer of a row, and a method per call. Retries, pacing, caps, caching and
scoring happen around it.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import ClassVar
from urllib.parse import quote

import msgspec
from gp4u import gpus, places
from gp4u.clock import Clock
from gp4u.errors import (
    InstanceAbsent,
    Malformed,
    OfferGone,
    OutcomeUnknown,
    ProviderError,
    Unavailable,
)
from gp4u.model import (
    Endpoint,
    Instance,
    InstanceState,
    Listing,
    Offer,
    RentalKey,
    Workload,
)
from gp4u.provider_settings import ProviderSettings
from gp4u.providers.contract import (
    Ability,
    Account,
    Call,
    Choose,
    OfferPage,
    Provider,
    ProviderSpec,
    Query,
    only_one,
    unfit,
)
from gp4u.providers.custom.client import judge_for
from gp4u.providers.http import Http, Reply, decode, harmless, rows
from gp4u.providers.opening import Opening, Wire, key_of
from gp4u.settings import Settings

SPEC = ProviderSpec(
    slug="acme",
    title="Acme",
    env="ACME",
    base_url="https://api.acme.example/v1",
    rate_limit_per_min=60,
    key_url="https://acme.example/account/keys",
    settle_s=2,  # Acme shows a machine at once; two seconds are for the clocks
    can=Ability.LABELS | Ability.PORTS | Ability.RAW_PORTS | Ability.MANY_PORTS | Ability.LOGS,
)
STATES = {
    "starting": InstanceState.BOOTING,
    "running": InstanceState.RUNNING,
    "ended": InstanceState.EXITED,
    "stopped": InstanceState.STOPPED,
    "failed": InstanceState.FAILED,
}


class Row(msgspec.Struct):
    """One kind of machine that is free; the price is that of the whole machine."""

    sku: str
    gpu_model: str
    memory_gb: float
    gpus: int
    disk_gb: float
    price: Decimal
    country: str
    uptime: float
    free: int


class Machine(msgspec.Struct):
    """One machine that the account holds."""

    id: str
    name: str
    status: str
    price: Decimal
    host: str = ""
    ports: Mapping[int, int] = {}
    """Container port to the port at `host`."""


class Machines(msgspec.Struct):
    machines: list[msgspec.Raw]
    total: int


class Rows(msgspec.Struct):
    gpus: list[msgspec.Raw]


class Me(msgspec.Struct):
    account: str
    credit_usd: Decimal


class Made(msgspec.Struct):
    id: str


class Logs(msgspec.Struct):
    lines: list[str]


class Acme(Provider):
    """Acme's API, one method per call."""

    spec: ClassVar[ProviderSpec] = SPEC

    def __init__(self, http: Http, *, base_url: str, clock: Clock) -> None:
        self._http, self._url, self._clock = http, base_url, clock

    async def ping(self) -> Account:
        me = decode("acme", "ping", await self._get("ping", "/me"), Me)
        return Account(id=me.account, credit_usd=me.credit_usd)

    async def offers(self, query: Query) -> OfferPage:
        del query  # Acme lists all it has; what suits is decided later
        body = await self._get("offers", "/gpus")
        found, bad = rows(decode("acme", "offers", body, Rows).gpus, Row)
        offers = [offer for row in found if (offer := self._offer(row)) is not None]
        return OfferPage(offers=tuple(offers), skipped_rows=bad + len(found) - len(offers))

    def rent_calls(self, offer: Offer, workload: Workload, key: RentalKey) -> tuple[Call, ...]:
        """Return the one call of a rent.

        Raises:
            BadInput: the workload needs what `SPEC` does not declare.
        """
        if (why := unfit(SPEC, offer, workload)) is not None:
            raise why
        body = {
            "sku": offer.offer_id,
            "name": key,  # the rental key, by which the machine is found again
            "image": workload.image,
            "env": dict(workload.env),
            "ports": [port.number for port in workload.ports],
            "disk_gb": workload.disk_gib,
        }
        return (Call(method="POST", url=f"{self._url}/machines", body=body),)

    async def rent(
        self, offer: Offer, workload: Workload, key: RentalKey, *, choose: Choose | None = None
    ) -> str:
        del choose
        (call,) = self.rent_calls(offer, workload, key)
        try:
            body = await self._http.send("rent", call, safe=False)
            return decode("acme", "rent", body, Made).id
        except Unavailable as error:
            if not error.sent:
                raise
            raise OutcomeUnknown("acme", "rent", error.detail, key=key) from error
        except Malformed as error:
            raise OutcomeUnknown("acme", "rent", "the reply cannot be read", key=key) from error

    async def instances(self) -> Listing:
        began_at = self._clock.now()  # before the first byte: what is made later may be missing
        answer = decode("acme", "instances", await self._get("instances", "/machines"), Machines)
        found, bad = rows(answer.machines, Machine)
        whole = not bad and answer.total == len(found)
        return Listing(
            provider="acme",
            instances=tuple(self._instance(machine) for machine in found),
            complete=whole,
            began_at=began_at,
            why_incomplete="" if whole else f"{len(found)} of {answer.total} can be read",
        )

    async def release(self, instance_id: str) -> None:
        url = f"{self._url}/machines/{quote(instance_id, safe='')}"
        await self._http.send("release", Call(method="DELETE", url=url), safe=True)

    async def logs(
        self, instance_id: str, *, tail: int = 1000, container: str | None = None
    ) -> str:
        only_one(SPEC, "logs", container)
        path = f"/machines/{quote(instance_id, safe='')}/logs"
        body = await self._get("logs", path, {"tail": str(tail)})
        return "".join(f"{line}\n" for line in decode("acme", "logs", body, Logs).lines)

    async def aclose(self) -> None:
        await self._http.aclose()

    async def _get(
        self, operation: str, path: str, params: Mapping[str, str] | None = None
    ) -> bytes:
        call = Call(method="GET", url=self._url + path)
        return await self._http.send(operation, call, safe=True, params=params)

    def _offer(self, row: Row) -> Offer | None:
        """Return a row as an offer; None where its price or size cannot be."""
        gpu = gpus.canonical(row.gpu_model, row.memory_gb * 1024)
        if not (row.price.is_finite() and 0 < row.price < 10_000 and 0 < row.gpus <= 64):
            return None
        return Offer(
            provider="acme",
            offer_id=row.sku,
            gpu_model=gpu.model if gpu else harmless(row.gpu_model),
            gpu_count=row.gpus,
            vram_gib=gpu.vram_gib if gpu else row.memory_gb,
            price_usd_per_hour=row.price,
            gpu_usd_per_hour=row.price,
            storage_usd_per_hour=Decimal(0),
            fetched_at=self._clock.now(),
            region=places.parse(row.country),
            reliability=row.uptime if 0 <= row.uptime <= 1 else None,
            disk_gib=row.disk_gb,
            open_ports=16,
            verified=True,  # Acme owns what it rents out
            available=row.free > 0,
        )

    def _instance(self, machine: Machine) -> Instance:
        return Instance(
            provider="acme",
            instance_id=machine.id,
            label=machine.name,
            state=STATES.get(machine.status, InstanceState.UNKNOWN),
            status=harmless(machine.status),
            endpoints=tuple(
                Endpoint(container_port=inside, host=machine.host, port=outside)
                for inside, outside in machine.ports.items()
            ),
            price_usd_per_hour=machine.price,
        )


def judge(operation: str, reply: Reply) -> ProviderError | None:
    """Say what Acme's statuses mean: the usual, and two of its own."""
    if reply.status == 404 and operation in ("release", "logs"):
        return InstanceAbsent("acme", operation)
    if reply.status == 409 and operation == "rent":
        return OfferGone("acme", operation, "sold out")
    return judge_for("acme")(operation, reply)


def _open(own: ProviderSettings, _settings: Settings, clock: Clock, wire: Wire) -> Acme:
    http = wire(judge, {"authorization": f"Bearer {key_of(own)}"})
    return Acme(http, base_url=own.base_url, clock=clock)


OPENING = Opening(SPEC, _open)
