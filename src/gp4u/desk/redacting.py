"""What a dry run may show: calls as they would be sent, without anything that is a secret.

Hides which environment variables of a workload count as secret, and where such a value can turn up
in a call: in the body at any depth, in a URL, or in a text that a market makes of the environment.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from msgspec.structs import replace

from gp4u.desk.shapes import CallShape
from gp4u.model import Workload
from gp4u.telemetry import Redactor

if TYPE_CHECKING:
    from gp4u.providers.contract import Call

HIDDEN: Final = "***"
_SECRET_NAME: Final = re.compile(r"KEY|TOKEN|SECRET|PASS|CREDENTIAL|AUTH", re.IGNORECASE)
_PASSWORD: Final = re.compile(r"(?<=://)[^/@\s]+@")


def without_secrets(workload: Workload) -> Workload:
    """Return the workload with hidden what may be secret: variables that are called so, the content
    of files, the password for a registry.
    """
    hidden = {k: HIDDEN if _SECRET_NAME.search(k) else v for k, v in workload.env.items()}
    login = workload.login and replace(workload.login, password=HIDDEN)
    files = tuple(replace(each, content=HIDDEN.encode()) for each in workload.files)
    return replace(workload, env=hidden, login=login, files=files)


def hidden_calls(
    calls: Sequence[Call], workload: Workload, secrets: Sequence[str]
) -> list[CallShape]:
    """Return calls as they would be sent, with keys of ours, the workload's secrets and passwords
    in URLs hidden.
    """
    own = [value for name, value in workload.env.items() if _SECRET_NAME.search(name)]
    redact = Redactor([*secrets, *own])

    def hide(value: Any) -> Any:
        match value:
            case str():
                return _PASSWORD.sub(f"{HIDDEN}@", redact(value))
            case Mapping():
                return {name: hide(inner) for name, inner in value.items()}
            case list() | tuple():
                return [hide(inner) for inner in value]
            case _:
                return value

    return [
        CallShape(
            method=call.method,
            url=hide(call.url),
            body=hide(call.body) if call.body is not None else None,
        )
        for call in calls
    ]
