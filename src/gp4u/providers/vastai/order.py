"""The order that rents a machine at Vast.ai: a workload as the body of its create call.

What this file hides: that ports are variables, and how much of everything the market takes. Pure.

Source: `docs/reference/vastai.md`, renting; checked 2026-11.
"""

from __future__ import annotations

from typing import Final

from gp4u.errors import BadInput
from gp4u.model import Offer, Protocol, RentalKey, Workload
from gp4u.providers.vastai.replies import MIN_DISK_GB

MAX_IMAGE: Final = 1024
MAX_ENV_CHARS: Final = 32_768
MAX_ENV_ITEM: Final = 256
MAX_ARGS_CHARS: Final = 4096
MAX_PORTS: Final = 64


def rent_body(offer: Offer, workload: Workload, key: RentalKey) -> dict[str, object]:
    """Return the body of the create call.

    Raises:
        BadInput: the market cannot take this workload; nothing was sent.
    """
    if len(workload.image) > MAX_IMAGE:
        raise BadInput("image", workload.image[:40], f"Vast.ai takes {MAX_IMAGE} characters")
    if workload.beside:
        raise BadInput("containers", len(workload.beside) + 1, "Vast.ai runs one container")
    if sum(map(len, workload.command)) > MAX_ARGS_CHARS:
        raise BadInput("command", "...", f"Vast.ai takes {MAX_ARGS_CHARS} characters in all")
    body: dict[str, object] = {
        "client_id": "me",
        "image": workload.image,
        "env": _env(workload),
        "price": None,
        "disk": float(max(workload.disk_gib, MIN_DISK_GB)),
        "label": key,
        "runtype": "args",  # keeps the image's entrypoint; no ssh, no onstart
        "cancel_unavail": True,
        "target_state": "running",
    }
    if offer.interruptible:
        # Without a price a bid search rents on demand, at the on-demand price.
        body["price"] = float(offer.gpu_usd_per_hour)
    if workload.command:
        body["args"] = list(workload.command)
    return body


def _env(workload: Workload) -> dict[str, str]:
    """Return variables and ports in one: a key that starts with a dash is a flag of Docker's."""
    for name, value in workload.env.items():
        if not name or name.startswith("-"):
            raise BadInput("env", name, "a variable's name must not be empty or start with a dash")
        if len(name) > MAX_ENV_ITEM or len(value) > MAX_ENV_ITEM:
            raise BadInput("env", name[:40], f"Vast.ai takes {MAX_ENV_ITEM} characters each")
    if len(workload.ports) > MAX_PORTS:
        raise BadInput("port", len(workload.ports), f"Vast.ai forwards at most {MAX_PORTS} ports")
    env = dict(workload.env)
    for port in workload.ports:
        suffix = "" if port.protocol is Protocol.TCP else f"/{port.protocol}"
        env[f"-p {port.number}:{port.number}{suffix}"] = "1"
    if sum(len(name) + len(value) for name, value in env.items()) > MAX_ENV_CHARS:
        raise BadInput("env", f"{len(env)} variables", f"Vast.ai takes {MAX_ENV_CHARS} characters")
    return env
