"""The body of Dispersed's create call: how an offer and a workload become a job with minimums.

What this file hides: the fields of a job, the image in three parts, and the order of keys in which
a body is hashed. It also holds every reason why this market cannot take a workload; each is told
before anything is sent. Pure.

Source: `docs/reference/render.md`, creating a job; checked 2026-11.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Final

from gp4u.errors import BadInput
from gp4u.model import Offer, Protocol, RentalKey, Workload
from gp4u.providers.render.offers import MAX_PORTS, pin_of

ASSIGN_MS: Final = 300_000
"""The shortest wait for a node that may be asked for."""
START_MS: Final = 900_000
"""For pulling the image and starting it; a GPU image has many gigabytes."""
LEAST_REPORTED: Final = 0.93
"""A driver reports down to this share of the memory that a card is sold with."""
EVERYBODY: Final = ("0.0.0.0/0",)
"""A job is shut to all addresses but its list. Who calls is not known here, so it is opened."""

_IMAGE: Final = re.compile(r"[!-~]{1,512}")


def job_body(
    offer: Offer, workload: Workload, key: RentalKey, allowed_ips: Sequence[str] = EVERYBODY
) -> dict[str, object]:
    """Return the body of the create call, its keys in the order that is signed.

    Raises:
        BadInput: the market cannot take this workload or this offer; nothing was sent.
    """
    pin = pin_of(offer.offer_id)
    if pin is None:
        raise BadInput("offer", offer.offer_id, "Render ties a job to a GPU type; this has none")
    if workload.command:
        raise BadInput(
            "command",
            workload.command[0][:40],
            "Render runs the image's own entrypoint, without command",
        )
    if workload.beside:
        raise BadInput("containers", len(workload.beside) + 1, "Render runs one container a job")
    if len(workload.ports) > MAX_PORTS:
        raise BadInput("port", len(workload.ports), f"at most {MAX_PORTS} ports on Render")
    for port in workload.ports:
        if port.protocol is not Protocol.TCP:
            raise BadInput("port", f"{port.number}/{port.protocol}", "Render forwards TCP only")
    for name, value in workload.env.items():
        if not name or not _is_plain(name) or not _is_plain(value):
            raise BadInput("env", name[:40], "Render's signature is sure for ASCII text only")
    login = workload.login
    if login is not None and not (_is_plain(login.username) and _is_plain(login.password)):
        raise BadInput("login", login.server, "Render's signature is sure for ASCII text only")
    host, image, tag = _image(workload.image)
    body: dict[str, object] = {
        "task": "PERSISTENT",
        "title": key,
        "description": "",
        "cpu_count": math.floor(offer.cpu_cores or 0),
        "gpu_count": offer.gpu_count,
        "gpu_registry_uuid": pin.gpu_registry_uuid,
        "min_ram_gb": math.floor(offer.ram_gib or 0),
        "min_storage_gb": math.ceil(workload.disk_gib),
        "min_vram_gb": math.floor(offer.vram_gib * LEAST_REPORTED),
        "allowed_region_codes": [pin.region_code],
        "max_node_count": 1,
        "max_retry_count": 0,
        "max_timeout_assign_ms": ASSIGN_MS,
        "max_timeout_start_ms": START_MS,
        "max_timeout_run_ms": None,
        "parameters": {
            "type": "docker",
            "parameters": {
                "image": image,
                "tag": tag,
                "host": host,
                "user": workload.login.username if workload.login else "",
                "secret": workload.login.password if workload.login else "",
                "sshkey": "",
                "allowed_ips": list(allowed_ips),
                "ports": sorted({port.number for port in workload.ports}),
                "env": dict(workload.env),
                "volumes": [],
            },
        },
    }
    return {name: _ordered(body[name]) for name in sorted(body)}


def _ordered(value: object) -> object:
    """Return JSON with its keys sorted at every level, which is how it is hashed."""
    if isinstance(value, Mapping):
        return {name: _ordered(value[name]) for name in sorted(value)}
    return value


def _is_plain(text: str) -> bool:
    return text.isascii() and "\x7f" not in text


def _image(image: str) -> tuple[str, str, str]:
    """Return registry (empty: Docker's own), repository and tag.

    Raises:
        BadInput: it cannot be said in these three fields.
    """
    if not _IMAGE.fullmatch(image) or "@" in image:
        raise BadInput("image", image[:80], "Render takes registry, name and tag, without digest")
    first, slash, rest = image.partition("/")
    has_host = bool(slash) and ("." in first or ":" in first or first == "localhost")
    host, path = (first, rest) if has_host else ("", image)
    name, colon, tag = path.partition(":")
    if not name or (colon and not tag) or "/" in tag:
        raise BadInput("image", image[:80], "registry/name:tag")
    return host, name, tag or "latest"
