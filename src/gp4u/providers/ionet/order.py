"""What io.net is told: an offer's id taken apart, and the bodies of its price and create calls.

What this file hides: what a container and a virtual machine can carry of a workload, under which
names that is said, and how all that a create call needs travels in an offer's id. All of it is
pure, and what the market cannot take is refused by name before anything is sent.

Source: `docs/reference/ionet.md`, which names the document behind each fact; checked 2026-11.
"""

from __future__ import annotations

import json
import re
from enum import StrEnum
from functools import lru_cache
from typing import Annotated, Final
from urllib.parse import urlencode

import msgspec
from msgspec import Meta

from gp4u.errors import BadInput
from gp4u.model import Protocol, RentalKey, Workload
from gp4u.providers.contract import Call

SLUG: Final = "ionet"
BLOCK_HOURS: Final = 1
"""Time is bought in whole hours and not always given back: the smallest block loses the least."""
VM_PORTS: Final = 32
"""Network services we ask of one virtual machine at most; the market publishes no bound."""
VM_IMAGES: Final = ("vm:general", "vm:datascience")
SSH_KEY_ENV: Final = "SSH_PUBLIC_KEY"

HardwareId = int | Annotated[str, Meta(min_length=1, max_length=128)]


class Product(StrEnum):
    """What is sold: containers or virtual machines. Also the first part of every path and id."""

    CAAS = "caas"
    VMAAS = "vmaas"


_GPUS: Final = {Product.CAAS: "gpus_per_container", Product.VMAAS: "gpus_per_vm"}


class Sold(msgspec.Struct, frozen=True):
    """An offer's id, taken apart: all that the price and create calls need."""

    product: Product
    hardware: HardwareId
    gpus: int
    country: str
    place: int | None = None
    """The market's number of the location."""

    @property
    def locations(self) -> list[int | str]:
        """The one location, by number, else by country code, which clients were seen to send."""
        return [self.country if self.place is None else self.place]

    @property
    def offer_id(self) -> str:
        """The same in one text: `caas:203x1@US/1`."""
        tail = offer_tail(self.gpus, self.country, self.place)
        return f"{self.product.value}:{hardware_text(self.hardware)}{tail}"


@lru_cache(maxsize=16_384)
def hardware_text(hardware: HardwareId) -> str | None:
    """Return how an offer's id has a hardware id; None where it could not be told back.

    A text of digits is quoted, for the market takes a number for another hardware than a text.
    """
    if isinstance(hardware, int):
        return str(hardware) if hardware >= 0 else None
    if not _PLAIN.fullmatch(hardware):
        return None
    return f'"{hardware}"' if hardware.isdigit() else hardware


def offer_tail(gpus: int, country: str, place: int | None) -> str:
    """Return what an offer's id has after the hardware; the place's number may be unknown."""
    return f"x{gpus}@{country}" if place is None else f"x{gpus}@{country}/{place}"


_PLAIN: Final = re.compile(r"[!#-~]+")
"""Printable, without blanks and quotes."""
_OFFER_ID: Final = re.compile(r"(caas|vmaas):(\S+)x([0-9]{1,4})@([A-Z]{2})(?:/([0-9]{1,12}))?")


def sold(offer_id: str) -> Sold:
    """Take an offer's id apart.

    Raises:
        BadInput: it is not one of ours.
    """
    parts = _OFFER_ID.fullmatch(offer_id)
    if parts is None:
        raise BadInput("offer", offer_id, "io.net offers read like caas:203x1@US/1")
    product, text, count, country, place = parts.groups()
    hardware: HardwareId = int(text) if text.isdigit() else text.strip('"')
    return Sold(Product(product), hardware, int(count), country, int(place) if place else None)


def price_call(root: str, sold: Sold) -> Call:
    """Return the call that asks what one block of the offer costs now, fees and all."""
    query: dict[str, object] = {
        "location_ids": json.dumps(sold.locations, separators=(",", ":")),  # JSON, in a query
        "hardware_id": sold.hardware,
        _GPUS[sold.product]: sold.gpus,
        "duration_hours": BLOCK_HOURS,
        **({"replica_count": 1} if sold.product is Product.CAAS else {"currency": "usdc"}),
    }
    return Call(method="GET", url=f"{root}/{sold.product}/price?{urlencode(query)}")


def create_call(root: str, sold: Sold, workload: Workload, key: RentalKey) -> Call:
    """Return the call that rents.

    Raises:
        BadInput: the product cannot take this workload.
    """
    own = _machine(workload) if sold.product is Product.VMAAS else _container(workload)
    body = {
        "resource_private_name": key,
        "duration_hours": BLOCK_HOURS,
        _GPUS[sold.product]: sold.gpus,
        "hardware_id": sold.hardware,
        "location_ids": sold.locations,
        **own,
    }
    return Call(method="POST", url=f"{root}/{sold.product}/deploy", body=body)


def _container(workload: Workload) -> dict[str, object]:
    if workload.image in VM_IMAGES:
        raise BadInput("image", workload.image, "a bare machine needs IONET_API_FLAVOR=vmaas")
    if len(workload.ports) != 1 or workload.ports[0].protocol is not Protocol.TCP:
        asked = ",".join(f"{port.number}/{port.protocol}" for port in workload.ports)
        bound = "io.net containers publish exactly one HTTP port; its machines run no images"
        raise BadInput("port", asked, bound)
    if workload.beside:
        raise BadInput("containers", len(workload.beside) + 1, "io.net takes one container")
    if ".dkr.ecr." in workload.image:
        raise BadInput("image", workload.image[:80], "io.net cannot pull from private AWS ECR")
    config: dict[str, object] = {
        "replica_count": 1,
        "traffic_port": workload.ports[0].number,
        "secret_env_variables": dict(workload.env),  # what is write-only cannot be read back
    }
    if words := (*workload.entrypoint, *workload.command):
        # `args` was seen to be dropped; and the market's scheduler fills in what follows a `$`.
        config["entrypoint"] = [word.replace("$", "$$") for word in words]
    registry = {"image_url": workload.image}
    if workload.login is not None:
        registry["registry_username"] = workload.login.username
        registry["registry_secret"] = workload.login.password
    return {"container_config": config, "registry_config": registry}


def _machine(workload: Workload) -> dict[str, object]:
    program = workload.entrypoint or workload.command
    if workload.image not in VM_IMAGES or program or workload.beside or workload.login:
        bound = f"io.net machines run no container: only {' or '.join(VM_IMAGES)}, no command"
        raise BadInput("image", workload.image[:80], bound)
    if set(workload.env) != {SSH_KEY_ENV}:
        names = ",".join(sorted(workload.env))[:80]
        raise BadInput("env", names, f"a bare machine takes {SSH_KEY_ENV}, and nothing else")
    if len(workload.ports) > VM_PORTS:
        raise BadInput("port", len(workload.ports), f"at most {VM_PORTS}")
    services = {
        f"p{port.number}-{port.protocol}": {
            "port": port.number,
            "protocol": port.protocol.value,
            "whitelist": ["0.0.0.0/0"],
        }
        for port in workload.ports
    }
    return {
        "vm_image_type": workload.image.removeprefix("vm:"),
        "ssh_keys": {"gp4u": workload.env[SSH_KEY_ENV]},
        "network_services": services,
    }
