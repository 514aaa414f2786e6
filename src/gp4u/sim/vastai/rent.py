"""Vast.ai's create body: what it may hold, what is refused, and what it means for the container.

Hides that `env` mixes variables with Docker flags, and how a run type decides which part of the
body becomes the entrypoint and which the command. Pure: a body in, an order out. Which offer is
rented, and what goes wrong, is decided in `app.py`. Unknown fields are ignored, as the real
service does.

Source: api-reference/openapi/yaml/create_instance.yaml and guides on templates and networking of
the vendor's documentation; skypilot pull 9487 for `env`; checked 2026-11.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation

from gp4u.sim.contracts import Order
from gp4u.sim.launch import Port
from gp4u.sim.vastai.shell import SSH_PORT

IMAGE_MAX, LABEL_MAX, ENV_MAX, ENV_ITEM_MAX, COMMAND_MAX = 1024, 256, 32_768, 256, 4096
PORTS_MAX = 64
DISK_MIN_GB = Decimal(8)
BID_MIN, BID_MAX = Decimal("0.001"), Decimal(128)
BID_MAX_PER_GPU = Decimal(32)

_PORT_FLAG = re.compile(r"^-p\s+(?:\d+:)?(\d+)(?:/(tcp|udp))?$")
ON_START = 'sh -c "$0"; while :; do sleep 3600; done'
"""With an SSH server a container goes on when its on-start script has ended."""
_SSH_ALIASES = {"ssh_direct": "ssh_direc ssh_proxy", "ssh_proxy": "ssh"}


class BadOrderError(Exception):
    """The body cannot be rented by; `slug` is the service's own word."""

    def __init__(self, slug: str, text: str) -> None:
        self.slug = slug
        super().__init__(text)


def order_of(body: Mapping[str, object]) -> Order:
    """Return what a create body asks for.

    Raises:
        BadOrderError: a field is missing, too long, out of range or of the wrong type.
    """
    image = body.get("image")
    if image is None and not (body.get("template_hash_id") or body.get("template_id")):
        raise BadOrderError("invalid_args", "image is required")
    image = "vastai/base-image" if image is None else image
    if not isinstance(image, str) or not 0 < len(image) <= IMAGE_MAX:
        raise BadOrderError("invalid_args", f"image must be text of 1 to {IMAGE_MAX} characters")
    label = body.get("label")
    if label is not None and (not isinstance(label, str) or len(label) > LABEL_MAX):
        raise BadOrderError("invalid_args", f"label must be text of at most {LABEL_MAX} characters")
    state = body.get("target_state") or "running"
    if state not in ("running", "stopped"):
        raise BadOrderError("invalid_args", f"invalid target_state {state!r}")
    pairs = _env(body.get("env"))
    runtype, args, onstart = _run_type(body)
    by_args = runtype == "args"
    entrypoint: str | None = onstart if by_args else None
    command = tuple(args) if by_args and args else None
    if onstart is not None and not by_args:
        entrypoint, command = "/bin/sh", ("-c", ON_START, onstart)
    ports = _ports(pairs, runtype)
    return Order(
        image=image,
        disk_gb=_disk(body.get("disk")),
        label=label,
        bid_usd_per_hour=bid_of(body.get("price")),
        command=command,
        entrypoint=entrypoint,
        env={key: value for key, value in pairs.items() if not key.startswith("-")},
        ports=ports,
        served=tuple(port for port in ports if port.number == SSH_PORT and not by_args),
        login=_login(body.get("image_login")),
        start=state == "running",
        extra={
            "runtype": runtype,
            "args": args,
            "onstart": onstart,
            "extra_env": [list(pair) for pair in pairs.items()],
            "template_hash_id": body.get("template_hash_id"),
        },
    )


def bid_of(price: object) -> Decimal | None:
    """Return a bid in $/h for the whole instance, or None for on demand.

    Raises:
        BadOrderError: not a number, or out of range.
    """
    if price is None:
        return None
    number = _decimal(price)
    if number is None or not BID_MIN <= number <= BID_MAX:
        raise BadOrderError(
            "invalid_price", f"Please set a bid price between {BID_MIN} and {BID_MAX}."
        )
    return number


def _login(login: object) -> tuple[str, str, str] | None:
    """Return registry, user and password of `-u USER -p PASS REGISTRY`."""
    if login is None:
        return None
    words = login.split() if isinstance(login, str) else []
    match words:
        case ["-u", user, "-p", password, *registry] if len(registry) <= 1:
            return (registry[0] if registry else "docker.io", user, password)
        case _:
            raise BadOrderError("invalid_args", "image_login must be -u USER -p PASS REGISTRY")


def _disk(disk: object) -> Decimal:
    number = DISK_MIN_GB if disk is None else _decimal(disk)
    if number is None or number < DISK_MIN_GB:
        raise BadOrderError("invalid_args", f"disk must be a number of at least {DISK_MIN_GB} GB")
    return number


def _env(env: object) -> dict[str, str]:
    if env is None:
        return {}
    if not isinstance(env, dict):
        raise BadOrderError("invalid_args", "invalid env type: env must be a dict")
    pairs = {str(key): str(value) for key, value in env.items()}
    if any(len(text) > ENV_ITEM_MAX for pair in pairs.items() for text in pair):
        raise BadOrderError(
            "invalid_args", f"env keys and values are limited to {ENV_ITEM_MAX} characters"
        )
    if sum(len(key) + len(value) for key, value in pairs.items()) > ENV_MAX:
        raise BadOrderError("invalid_args", f"env is limited to {ENV_MAX} characters")
    return pairs


def _run_type(body: Mapping[str, object]) -> tuple[str, list[str], str | None]:
    """Return the run type, the container's arguments and the on-start text."""
    args = body.get("args")
    args_text = body.get("args_str")
    onstart = body.get("onstart")
    if args is not None and not (isinstance(args, list) and all(isinstance(a, str) for a in args)):
        raise BadOrderError("invalid_args", "args must be a list of strings")
    if not isinstance(args_text, str | None) or not isinstance(onstart, str | None):
        raise BadOrderError("invalid_args", "args_str and onstart must be text")
    words: list[str] = list(args) if isinstance(args, list) else (args_text or "").split()
    if sum(map(len, words)) + len(onstart or "") > COMMAND_MAX:
        raise BadOrderError(
            "invalid_args", f"args and onstart are limited to {COMMAND_MAX} characters"
        )
    runtype = body.get("runtype")
    if runtype is None:
        runtype = "args" if words else "ssh"
    if not isinstance(runtype, str):
        raise BadOrderError("invalid_args", "runtype must be text")
    return _SSH_ALIASES.get(runtype, runtype), words, onstart or None


def _ports(pairs: Mapping[str, str], runtype: str) -> tuple[Port, ...]:
    """Return the container ports to forward; the host half of a flag is not honoured."""
    ports: dict[Port, None] = {}
    if "ssh_direc" in runtype or "jupyter_direc" in runtype:
        ports[Port(22, "tcp")] = None
    if "jupyter_direc" in runtype:
        ports[Port(8080, "tcp")] = None
    for key in pairs:
        if not key.startswith("-p"):
            continue
        match = _PORT_FLAG.match(key.strip())
        if match is None or not 0 < int(match[1]) <= 99_999:
            raise BadOrderError("invalid_args", f"invalid port mapping {key!r}")
        ports[Port(int(match[1]), match[2] or "tcp")] = None
    if len(ports) > PORTS_MAX:
        raise BadOrderError("invalid_args", f"at most {PORTS_MAX} ports")
    return tuple(ports)


def _decimal(value: object) -> Decimal | None:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        number = Decimal(str(value))
    except InvalidOperation:
        return None
    return number if number.is_finite() else None
