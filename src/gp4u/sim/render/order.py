"""Dispersed's create body: what it may hold, what is refused, and what it means for a container.

Hides the many bounds of a job. Pure: a body in, a `JobOrder` out. A key that the documents do not
name is refused, so that a client which believes in a `command` learns that there is none. Which
node a job gets, and what becomes of it, is `jobs.py`'s part.

Source: `docs/reference/render.md`, creating a job; refusing unknown keys is inferred. 2026-11.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping

import msgspec

from gp4u.sim.launch import Port

ASSIGN_MIN_MS, START_MIN_MS, RUN_MIN_MS = 300_000, 120_000, 60_000
START_DEFAULT_MS = 300_000
REGIONS_MAX = 36

_JOB_KEYS = frozenset(
    (
        "task",
        "title",
        "description",
        "cpu_count",
        "gpu_count",
        "min_ram_gb",
        "min_storage_gb",
        "min_vram_gb",
        "gpu_name",
        "gpu_registry_uuid",
        "allowed_region_codes",
        "max_node_count",
        "max_retry_count",
        "max_timeout_assign_ms",
        "max_timeout_start_ms",
        "max_timeout_run_ms",
        "parameters",
    )
)
_DOCKER_KEYS = frozenset(
    (
        "image",
        "tag",
        "host",
        "user",
        "secret",
        "sshkey",
        "allowed_ips",
        "ports",
        "env",
        "volumes",
        "imagesrc",
    )
)
_REGION = re.compile(r"[a-z]{2}-(gov-)?(north|south|east|west|central)+-\d")


class BadJobError(Exception):
    """The body asks for what cannot be."""


class JobOrder(msgspec.Struct, frozen=True, kw_only=True):
    """A job as it was asked for; `body` is kept for the echo."""

    title: str
    persistent: bool
    cpu_count: float
    gpu_count: int
    ram_gb: float
    storage_gb: float
    vram_gb: float
    gpu_name: str | None
    registry_uuid: str | None
    regions: tuple[str, ...]
    assign_s: float
    start_s: float
    run_s: float | None
    image: str
    env: Mapping[str, str]
    ports: tuple[Port, ...]
    login: tuple[str, str, str] | None
    """Registry, user and password."""
    body: Mapping[str, object]


def job_order(body: Mapping[str, object]) -> JobOrder:
    """Return what a create body asks for.

    Raises:
        BadJobError: a field is missing, unknown, out of range or of the wrong type.
    """
    _no_others(body, _JOB_KEYS, "")
    task = body.get("task")
    if task not in ("PERSISTENT", "BATCH"):
        raise BadJobError("task must be PERSISTENT or BATCH")
    docker = _docker(body.get("parameters"))
    env = _env(docker.get("env", {}))
    if key := _text(docker, "sshkey"):
        env["SSH_PUBKEY"] = key
    name, uuid = body.get("gpu_name"), body.get("gpu_registry_uuid")
    if name is not None and uuid is not None:
        raise BadJobError("gpu_name excludes gpu_registry_uuid")
    if _whole(body, "max_node_count", 1, least=1) != 1:
        raise BadJobError("max_node_count above 1 is not simulated")
    _whole(body, "max_retry_count", 0, least=0)
    _text(body, "description")
    return JobOrder(
        title=_text(body, "title"),
        persistent=task == "PERSISTENT",
        cpu_count=_amount(body, "cpu_count"),
        gpu_count=_whole(body, "gpu_count", 0, least=0),
        ram_gb=_amount(body, "min_ram_gb"),
        storage_gb=_amount(body, "min_storage_gb"),
        vram_gb=_amount(body, "min_vram_gb"),
        gpu_name=_text(body, "gpu_name") or None,
        registry_uuid=_text(body, "gpu_registry_uuid") or None,
        regions=_regions(body.get("allowed_region_codes", [])),
        assign_s=_whole(body, "max_timeout_assign_ms", ASSIGN_MIN_MS, least=ASSIGN_MIN_MS) / 1000,
        start_s=_whole(body, "max_timeout_start_ms", START_DEFAULT_MS, least=START_MIN_MS) / 1000,
        run_s=_run_s(body, persistent=task == "PERSISTENT"),
        image=_image(docker),
        env=env,
        ports=_ports(docker),
        login=_login(docker),
        body=body,
    )


def echo(order: JobOrder) -> dict[str, object]:
    """Return the requirements as the job shows them, without the registry's secret."""
    shown = {name: order.body.get(name) for name in sorted(_JOB_KEYS)}
    parameters = shown["parameters"]
    if isinstance(parameters, dict) and isinstance(parameters.get("parameters"), dict):
        docker = {**parameters["parameters"], "secret": ""}
        shown["parameters"] = {**parameters, "parameters": docker}
    return shown


def _docker(parameters: object) -> dict[str, object]:
    if not isinstance(parameters, dict):
        raise BadJobError("parameters must be an object")
    _no_others(parameters, frozenset(("type", "parameters")), "parameters.")
    docker = parameters.get("parameters")
    if parameters.get("type") != "docker" or not isinstance(docker, dict):
        raise BadJobError("parameters must have the type docker and an object of parameters")
    _no_others(docker, _DOCKER_KEYS, "parameters.parameters.")
    ips = docker.get("allowed_ips", [])
    if not isinstance(ips, list) or not all(_is_range(each) for each in ips):
        raise BadJobError("allowed_ips must be a list of CIDR ranges")
    if not isinstance(docker.get("volumes", []), list):
        raise BadJobError("volumes must be a list")
    for name in ("user", "secret", "imagesrc"):
        _text(docker, name)
    return docker


def _no_others(body: Mapping[str, object], known: frozenset[str], where: str) -> None:
    others = sorted(body.keys() - known)
    if others:
        raise BadJobError(f"unknown field {where}{others[0]}")


def _image(docker: Mapping[str, object]) -> str:
    image, tag, host = (_text(docker, name) for name in ("image", "tag", "host"))
    if not image or any(c.isspace() or c in "@:" for c in image):
        raise BadJobError("image must be a name without tag or digest")
    return f"{host}/{image}:{tag or 'latest'}" if host else f"{image}:{tag or 'latest'}"


def _login(docker: Mapping[str, object]) -> tuple[str, str, str] | None:
    host, user, secret = (_text(docker, name) for name in ("host", "user", "secret"))
    return (host or "docker.io", user, secret) if user and secret else None


def _ports(docker: Mapping[str, object]) -> tuple[Port, ...]:
    ports = docker.get("ports", [])
    if not isinstance(ports, list):
        raise BadJobError("ports must be a list")
    found = []
    for port in ports:
        if not isinstance(port, int) or isinstance(port, bool) or not 0 < port < 65_536:
            raise BadJobError(f"{port!r} is not a port")
        found.append(Port(port, "tcp"))
    if len(set(found)) != len(found):
        raise BadJobError("a port is named twice")
    return tuple(found)


def _env(env: object) -> dict[str, str]:
    if not isinstance(env, dict) or not all(isinstance(v, str) for v in env.values()):
        raise BadJobError("env must map names to text")
    return dict(env)


def _regions(codes: object) -> tuple[str, ...]:
    if not isinstance(codes, list) or len(codes) > REGIONS_MAX:
        raise BadJobError(f"allowed_region_codes must be a list of at most {REGIONS_MAX}")
    for code in codes:
        if not isinstance(code, str) or not _REGION.fullmatch(code):
            raise BadJobError(f"unknown region {code!r}")
    return tuple(codes)


def _run_s(body: Mapping[str, object], *, persistent: bool) -> float | None:
    if persistent:
        if body.get("max_timeout_run_ms") is not None:
            raise BadJobError("max_timeout_run_ms must be null for PERSISTENT")
        return None
    if body.get("max_timeout_run_ms") is None:
        raise BadJobError("max_timeout_run_ms is required for BATCH")
    return _whole(body, "max_timeout_run_ms", RUN_MIN_MS, least=RUN_MIN_MS) / 1000


def _whole(body: Mapping[str, object], name: str, default: int, *, least: int) -> int:
    value = body.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise BadJobError(f"{name} must be a whole number of at least {least}")
    return value


def _amount(body: Mapping[str, object], name: str) -> float:
    value = body.get(name, 0)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e9:
        raise BadJobError(f"{name} must be a number of at least 0")
    return float(value)


def _text(body: Mapping[str, object], name: str) -> str:
    value = body.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise BadJobError(f"{name} must be text")
    return value


def _is_range(text: object) -> bool:
    try:
        ipaddress.ip_network(str(text), strict=False)
    except ValueError:
        return False
    return isinstance(text, str) and "/" in text
