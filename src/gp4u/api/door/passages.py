"""Which route a request will reach, and which role that needs, found before the framework looks.

Exists because who may call must be known before a body is read, and because the framework would
try every route in turn. Roles are written at the routes (`replies.py`); `door.py` asks for them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

from fastapi.routing import iter_route_contexts
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Scope

from gp4u.api.door.tokens import RANKS
from gp4u.api.replies import ROLE_KEY


class Passage(NamedTuple):
    """What the table knows of a route."""

    path: str
    """Its template."""
    role: str
    at_once: Callable[[Scope], ASGIApp | None] | None = None
    """Gives the reply where it is ready, so that nobody need ask the framework; must not raise.
    None: this route never has one."""


class RouteTable:
    """Which route a request will reach, found without asking the framework.

    It looks at the same routes in the same order as the framework does.
    """

    def __init__(self, routes: Iterable[BaseRoute]) -> None:
        self._patterns: list[tuple[str, re.Pattern[str], str, Passage]] = []
        plain = set()
        for found in iter_route_contexts(list(routes)):
            if found.path is None or not found.methods:
                continue
            role = (getattr(found, "openapi_extra", None) or {}).get(ROLE_KEY, "admin")
            if role not in RANKS:
                raise ValueError(f"{found.path}: no such role: {role!r}")
            route = getattr(found, "original_route", found)
            passage = Passage(found.path, role, getattr(route, "at_once", None))
            start, parameter, _ = found.path.partition("{")
            if not parameter:
                plain.add(found.path)
            for method in found.methods:
                self._patterns.append((start, found.path_regex, method, passage))
        self._plain = {path: dict(self._search(path)) for path in plain}

    def find(self, path: str) -> Mapping[str, Passage]:
        """Return the passages of a path by method; empty where there is no such path."""
        known = self._plain.get(path)
        return dict(self._search(path)) if known is None else known

    def _search(self, path: str) -> Iterator[tuple[str, Passage]]:
        seen = set()
        for start, pattern, method, passage in self._patterns:
            if path.startswith(start) and method not in seen and pattern.match(path):
                seen.add(method)
                yield method, passage
