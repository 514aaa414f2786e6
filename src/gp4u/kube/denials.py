"""What the API server says that we may not do: for whoever has to mend a role.

Each part that is told no goes on without, in its own way and often in silence, for a missing right
is no fault of the object that it happened to. So that an operator hears of every one, it is noted
beside the call itself: once when it begins, until such a call is allowed again. What is refused for
another reason (a quota, a policy, a namespace that ends) is no right, and not noted.

Source: kubernetes apiserver pkg/endpoints/handlers/responsewriters/errors.go (the words of a
refusal) and plugin/pkg/admission/certificates, 1.36; checked 2026-11.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any, Final

from gp4u.errors import KubeDenied, KubeError

FORGET_S: Final = 900.0
"""After the last no: whoever needed it may be gone, and would never ask again."""
MOST: Final = 64
"""Noted at a time; a role that is missing altogether is named well enough by so many."""
_OF_A_ROLE: Final = re.compile(r"is forbidden: User \"|is forbidden: user not permitted ")
_VERSIONS: Final = re.compile(r"^/(?:api|apis/[^/]+)/[^/]+/")

_What = tuple[str, str, str]
"""Verb, namespace and resource, `pods/status` for one."""


class Denials:
    """Of the calls of one or more clients."""

    def __init__(self) -> None:
        self._known: dict[_What, float] = {}
        """To the loop time of the last no."""

    def told(self) -> list[str]:
        """Return what may not be done now, `delete pods in june` for one."""
        at = asyncio.get_running_loop().time()
        self._known = {w: last for w, last in self._known.items() if at - last <= FORGET_S}
        return [_worded(what) for what in self._known]

    def note(self, verb: str, path: str, error: KubeError | None) -> None:
        """Take note of how a call ended; `error` None: it worked."""
        if error is None:
            if self._known and self._known.pop(what := _what(verb, path), None) is not None:
                _log().info("api_allowed_again", right=_worded(what))
            return
        if not (isinstance(error, KubeDenied) and _OF_A_ROLE.search(str(error))):
            return
        what = _what(verb, path)
        if what not in self._known:
            if len(self.told()) >= MOST:
                return
            _log().error("api_denied", right=_worded(what), problem=str(error))
        self._known[what] = asyncio.get_running_loop().time()


_VERBS: Final = {"POST": "create", "PUT": "update"}


def _what(verb: str, path: str) -> _What:
    parts = _VERSIONS.sub("", path).split("/")
    namespace = ""
    if parts[0] == "namespaces" and len(parts) > 2:
        namespace, parts = parts[1], parts[2:]
    resource = "/".join([parts[0], *parts[2:3]])
    return _VERBS.get(verb, verb.lower()), namespace, resource


def _worded(what: _What) -> str:
    verb, namespace, resource = what
    return f"{verb} {resource}" + (f" in {namespace}" if namespace else "")


def _log() -> Any:
    import structlog  # 60 ms that only a process that stays has to pay

    return structlog.get_logger()
