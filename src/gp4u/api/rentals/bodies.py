"""The bodies of requests: which fields they have, and how they become what the desk is asked.

Types and the coarse bounds are declared here, so that OpenAPI tells them; what a value means, and
every bound that the command line has too, is in `asking.py`. A field that is absent takes the
setting, an explicit null is no bound.
"""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Mapping
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Base64Bytes, BaseModel, BeforeValidator, ConfigDict, Field

from gp4u.desk import asking
from gp4u.desk.asking import MAX_AMOUNT, MAX_DISK_GIB, MAX_GPUS, MAX_PORT, MAX_PRICE, Asked
from gp4u.errors import BadInput
from gp4u.model import Demand, HealthCheck, Port, Protocol, Workload

if TYPE_CHECKING:
    from gp4u.settings import Settings

MAX_TOP = 10_000
MAX_EXEC_S = 3600
MAX_STDIN = 1024 * 1024
Word = Annotated[str, Field(min_length=1, max_length=100)]
Text = Annotated[str, Field(max_length=32_768)]
Amount = Annotated[float, Field(gt=0, lt=MAX_AMOUNT)]
Disk = Annotated[float, Field(ge=1, le=MAX_DISK_GIB, description="GB; it is priced in.")]
PortNumber = Annotated[int, Field(ge=1, le=MAX_PORT)]
_STRICT = ConfigDict(
    extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
)
"""Strict: 1 and "yes" are no booleans; only decimals and base64 are made from text."""


class DemandBody(BaseModel):
    """What is wanted. Absent fields take the server's `VAST_*` settings; null is no bound."""

    model_config = _STRICT | ConfigDict(
        json_schema_extra={
            "examples": [
                {"gpu": ["RTX4090"], "max_price_usd_per_hour": "0.50", "min_reliability": 0.95}
            ]
        }
    )

    gpu: list[Word] = Field(default=[], max_length=100)
    """GPU models in any spelling, first choice first; an empty list is any GPU."""
    gpus: int = Field(default=1, ge=1, le=MAX_GPUS)
    """How many, exactly."""
    min_vram_gib: Amount | None = None
    """Per GPU."""
    max_price_usd_per_hour: Annotated[Decimal, Field(gt=0, le=MAX_PRICE, strict=False)] | None = (
        None
    )
    """All-in."""
    min_reliability: Annotated[float, Field(ge=0, le=1)] | None = None
    """Share of time up: 0.95 is 95 %."""
    min_download_mbps: Amount | None = None
    min_cpus: Amount | None = None
    min_ram_gib: Amount | None = None
    disk_gib: Disk = 20.0
    ports: int = Field(default=0, ge=0, le=MAX_PORT)
    """How many container ports must be reachable from outside."""
    locations: list[Word] = Field(default=[], max_length=100)
    """Nearest wish first: `US-CA`, `US`, `EU`."""
    providers: list[Word] = Field(default=[], max_length=100)
    """Markets; an empty list is all."""
    interruptible: bool = False
    """Only what can be taken away for a higher bid; else only what cannot."""
    verified_only: bool = True
    datacenter_only: bool = False
    """Only hosts that the market says stand in a datacenter."""
    weights: dict[Word, Annotated[float, Field(ge=0, le=100)]] = Field(default={}, max_length=20)
    """Criterion to weight, summing to 1 or 100; criteria left out share what is left."""

    def asked(self, **more: Any) -> Asked:
        """Return what is asked for; `more` overrides."""
        told = {name: getattr(self, name) for name in self.model_fields_set}
        return Asked(**{**told, **more})


class PortBody(BaseModel):
    """A container port to publish."""

    model_config = _STRICT

    number: PortNumber
    protocol: Literal["tcp", "udp"] = "tcp"
    name: Annotated[str, Field(max_length=63)] | None = None
    """What it serves, for people."""


class HealthBody(BaseModel):
    """How to tell from outside that the workload answers."""

    model_config = _STRICT

    port: PortNumber
    path: Annotated[str, Field(pattern="^/", max_length=1024)] | None = None
    """An HTTP GET must answer 2xx or 3xx; null: a connection is enough."""


class WorkloadBody(BaseModel):
    """What shall run."""

    model_config = _STRICT

    image: str = Field(pattern=f"^{asking.IMAGE}$", max_length=1024)
    command: list[Text] = Field(default=[], max_length=1000)
    """Instead of the image's own; empty: what the image does by itself."""
    env: dict[Annotated[str, Field(pattern=f"^{asking.ENV_NAME}$", max_length=256)], Text] = Field(
        default={}, max_length=1000
    )
    ports: list[PortNumber | PortBody] = Field(default=[], max_length=100)
    """Container ports to publish; a plain number is TCP."""
    health: list[HealthBody] = Field(default=[], max_length=20)
    """All must pass before the rental counts as running. Their ports must be published."""
    disk_gib: Disk = 20.0

    def workload(self) -> Workload:
        """Return the workload.

        Raises:
            BadInput: a part of it is not what it must be.
        """
        _refuse_nul([*self.command, *self.env.values()])
        return asking.workload(
            image=self.image,
            command=self.command,
            env=self.env,
            ports=[
                Port(each)
                if isinstance(each, int)
                else Port(each.number, Protocol(each.protocol), each.name)
                for each in self.ports
            ],
            health=[HealthCheck(port=each.port, path=each.path) for each in self.health],
            disk_gib=self.disk_gib,
            names=_WORKLOAD_NAMES,
        )


class DecisionBody(BaseModel):
    """A question: who would be rented, and why."""

    model_config = _STRICT | ConfigDict(
        json_schema_extra={
            "examples": [
                {"demand": {"gpu": ["RTX4090"], "max_price_usd_per_hour": "0.50"}, "top": 3}
            ]
        }
    )

    demand: DemandBody = Field(default_factory=DemandBody)
    top: Annotated[int, Field(ge=0, le=MAX_TOP)] | None = 10
    """How many of the best to tell; null is all, up to 10,000."""
    rejections: bool = False
    """Whether to tell of other offers why they do not fit: the first 10,000."""

    def wanted(self, settings: Settings) -> Demand:
        """Return the demand.

        Raises:
            BadInput: it is out of bounds.
        """
        return asking.demand(self.demand.asked(), settings, _DEMAND_NAMES)


class RentBody(BaseModel):
    """An order: what is wanted, and what shall run there."""

    model_config = _STRICT | ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "name": "june",
                    "demand": {"gpu": ["RTX4090"], "max_price_usd_per_hour": "0.50"},
                    "workload": {
                        "image": "vllm/vllm-openai:latest",
                        "ports": [8000],
                        "health": [{"port": 8000, "path": "/health"}],
                    },
                }
            ]
        }
    )

    name: Annotated[str, Field(pattern=f"^{asking.NAME}$")] | None = None
    """One live rental per name, whoever gives it; null: each order rents anew."""
    demand: DemandBody = Field(default_factory=DemandBody)
    """Its disk and ports are the workload's, unless it says more."""
    workload: WorkloadBody
    wait: bool = False
    """Answer once the workload answers, instead of once the market has confirmed."""
    dry_run: bool = False
    """Send nothing; tell the choice and the calls that would be sent."""

    def wanted(self, workload: Workload, settings: Settings) -> Demand:
        """Return the demand for a workload.

        Raises:
            BadInput: it is out of bounds, or asks for less than the workload needs.
        """
        needs = {"disk_gib": workload.disk_gib, "ports": len(workload.ports)}
        for field in self.demand.model_fields_set.intersection(needs):
            own = getattr(self.demand, field)
            if own < needs[field]:
                raise BadInput(f"demand.{field}", own, f"the workload needs {needs[field]:g}")
            needs[field] = own
        return asking.demand(self.demand.asked(**needs), settings, _DEMAND_NAMES)


def _whole_base64(given: object) -> object:
    """Refuse what is no base64, but for line breaks: the decoder leaves it out and reads on."""
    if isinstance(given, str):
        b64decode("".join(given.split()), validate=True)
    return given


class ExecBody(BaseModel):
    """A command to run inside an instance."""

    model_config = _STRICT | ConfigDict(
        json_schema_extra={"examples": [{"command": ["nvidia-smi", "-L"]}]}
    )

    command: list[Text] = Field(min_length=1, max_length=1000)
    stdin: Annotated[Base64Bytes, BeforeValidator(_whole_base64), Field(strict=False)] = b""
    """What it reads, in base64; at most 1 MiB."""
    timeout_s: float = Field(default=60.0, gt=0, le=MAX_EXEC_S)
    container: str | None = Field(default=None, max_length=63)
    """One beside the workload's own, by its name."""

    def words(self) -> tuple[str, ...]:
        """Return the command.

        Raises:
            BadInput: it holds what no process can be given, or its input is too large.
        """
        _refuse_nul(self.command)
        if len(self.stdin) > MAX_STDIN:
            bound = f"must be at most {MAX_STDIN} bytes"
            raise BadInput("stdin", f"{len(self.stdin)} bytes", bound)
        return tuple(self.command)


_DEMAND_NAMES: Mapping[str, str] = {name: f"demand.{name}" for name in DemandBody.model_fields}
_WORKLOAD_NAMES: Mapping[str, str] = {
    name: f"workload.{name}" for name in WorkloadBody.model_fields
}


def _refuse_nul(texts: list[str]) -> None:
    for text in texts:
        if "\0" in text:
            raise BadInput("command or env", "a NUL character", "no process can be given one")
