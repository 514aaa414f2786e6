"""The order that rents a machine at Vast.ai: a workload as the body of its create call.

What this file hides: that ports are variables, which run type takes which part of a workload, and
how much of everything the market takes. A workload for which somebody will want in runs under the
market's own SSH server, which then stands in the place of its entrypoint: possible only where that
is known. All else keeps the image's entrypoint, or replaces it by one of ours. Pure.

Source: `docs/reference/vastai.md`, renting and run types; checked 2026-11.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from gp4u.errors import BadInput
from gp4u.model import Offer, Protocol, RegistryLogin, RentalKey, Workload
from gp4u.providers import bootstrap
from gp4u.providers.vastai.replies import MIN_DISK_GB

MAX_IMAGE: Final = 1024
MAX_ENV_CHARS: Final = 32_768
MAX_ENV_ITEM: Final = 256
MAX_ARGS_CHARS: Final = 4096
"""Of `args` and `onstart` together."""
MAX_PORTS: Final = 64
ARGS: Final = "args"
SSH: Final = "ssh_direc ssh_proxy"

_TO_THE_LOG: Final = '[ -n "${GP4U_ROOT+set}" ] || exec >/proc/1/fd/1 2>&1\n'
"""What an on-start script prints is not what the market shows; what the first process prints is."""
_SCRIPT_PREFIX: Final = "GP4U_S"


def rent_body(offer: Offer, workload: Workload, key: RentalKey) -> dict[str, object]:
    """Return the body of the create call.

    Raises:
        BadInput: the market cannot take this workload; nothing was sent.
    """
    if len(workload.image) > MAX_IMAGE:
        raise BadInput("image", workload.image[:40], f"Vast.ai takes {MAX_IMAGE} characters")
    if workload.beside:
        raise BadInput("containers", len(workload.beside) + 1, "Vast.ai runs one container")
    if sum(map(len, (*workload.entrypoint, *workload.command))) > MAX_ARGS_CHARS:
        raise BadInput("command", "...", f"Vast.ai takes {MAX_ARGS_CHARS} characters in all")
    program, variables = _program(workload)
    body: dict[str, object] = {
        "client_id": "me",
        "image": workload.image,
        "env": _env(workload, variables),
        "price": None,
        "disk": float(max(workload.disk_gib, MIN_DISK_GB)),
        "label": key,
        **program,
        "cancel_unavail": True,
        "target_state": "running",
    }
    if offer.interruptible:
        # Without a price a bid search rents on demand, at the on-demand price.
        body["price"] = float(offer.gpu_usd_per_hour)
    if workload.login is not None:
        body["image_login"] = _login(workload.login)
    return body


def _program(workload: Workload) -> tuple[dict[str, object], Mapping[str, str]]:
    """Return what says which program runs, and the variables that this takes."""
    entrypoint, command = workload.entrypoint, workload.command
    if entrypoint and workload.shell:
        script, variables = _fitting(_TO_THE_LOG + _script(workload), workload)
        return {"runtype": SSH, "onstart": script}, variables
    if _is_scripted(workload):
        script, variables = _fitting(_script(workload), workload)
        return {"runtype": ARGS, "onstart": "/bin/sh", "args": ["-c", script]}, variables
    if entrypoint:
        words = [*entrypoint[1:], *command]
        return {"runtype": ARGS, "onstart": entrypoint[0], "args": words}, {}
    # The plainest: keeps the image's entrypoint; no ssh, no onstart.
    return {"runtype": ARGS, **({"args": list(command)} if command else {})}, {}


def _is_scripted(workload: Workload) -> bool:
    return bootstrap.is_needed(workload) or (bool(workload.entrypoint) and bool(_long(workload)))


def _script(workload: Workload) -> str:
    return bootstrap.exported(_long(workload)) + bootstrap.script(workload)


def _long(workload: Workload) -> dict[str, str]:
    """Return the variables that are too long to be one at the market; a script can set them."""
    return {name: value for name, value in workload.env.items() if len(value) > MAX_ENV_ITEM}


def _fitting(script: str, workload: Workload) -> tuple[str, Mapping[str, str]]:
    """Return a script that the market takes; a longer one travels in variables.

    Raises:
        BadInput: it is too long for these as well.
    """
    if len(script) <= MAX_ARGS_CHARS - len("/bin/sh-c"):
        return script, {}
    short, variables = bootstrap.packed(script, prefix=_SCRIPT_PREFIX, piece=MAX_ENV_ITEM)
    room = MAX_ENV_CHARS - _size(workload.env) - MAX_PORTS * len("-p 65535:65535/udp1")
    if _size(variables) > room:
        told = sum(len(file.content) for file in workload.files)
        bound = (
            f"Vast.ai takes {MAX_ARGS_CHARS} characters of a script, or {max(room, 0)} of variables"
            f" when packed; with its files this one comes to {_size(variables)}"
        )
        raise BadInput("files", f"{told} bytes in {len(workload.files)} files", bound)
    return short, variables


def _login(login: RegistryLogin) -> str:
    """Return what is given to `docker login`, word by word."""
    words = (login.username, login.password, login.server)
    for name, word in zip(("username", "password", "server"), words, strict=True):
        if not word or any(character.isspace() or character in "'\"\\" for character in word):
            raise BadInput("login", name, "Vast.ai takes words without blanks and quotes")
    return f"-u {login.username} -p {login.password} {login.server}"


def _env(workload: Workload, more: Mapping[str, str]) -> dict[str, str]:
    """Return variables and ports in one: a key that starts with a dash is a flag of Docker's."""
    scripted = workload.entrypoint and (workload.shell or _is_scripted(workload))
    own = {n: v for n, v in workload.env.items() if not (scripted and n in _long(workload))}
    for name, value in own.items():
        if not name or name.startswith("-"):
            raise BadInput("env", name, "a variable's name must not be empty or start with a dash")
        if len(name) > MAX_ENV_ITEM or len(value) > MAX_ENV_ITEM:
            raise BadInput("env", name[:40], f"Vast.ai takes {MAX_ENV_ITEM} characters each")
    if len(workload.ports) > MAX_PORTS:
        raise BadInput("port", len(workload.ports), f"Vast.ai forwards at most {MAX_PORTS} ports")
    env = {**own, **more}
    for port in workload.ports:
        suffix = "" if port.protocol is Protocol.TCP else f"/{port.protocol}"
        env[f"-p {port.number}:{port.number}{suffix}"] = "1"
    if _size(env) > MAX_ENV_CHARS:
        raise BadInput("env", f"{len(env)} variables", f"Vast.ai takes {MAX_ENV_CHARS} characters")
    return env


def _size(env: Mapping[str, str]) -> int:
    return sum(len(name) + len(value) for name, value in env.items())
