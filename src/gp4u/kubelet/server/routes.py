"""Which request is which: a kubelet's paths, and what a caller must be allowed for each. Pure.

A path is read once, here, and both what is done and what is asked of the authoriser come from that
one reading; a path that could be read in two ways is none. Source: kubernetes
pkg/kubelet/server/{server,auth}.go, 1.32 and 1.36, and KEP-2862; checked 2026-11.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Final
from urllib.parse import unquote

from msgspec import Struct

VERBS: Final = {"GET": "get", "POST": "create"}
"""Method to the verb that it stands for; nothing here takes another one."""
_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_UID: Final = re.compile(r"[0-9A-Za-z-]{1,128}")


class What(StrEnum):
    """What is asked for."""

    LOGS = "containerLogs"
    EXEC = "exec"
    ATTACH = "attach"
    RUN = "run"
    PORT_FORWARD = "portForward"
    PODS = "pods"
    RUNNING_PODS = "runningpods"
    SUMMARY = "stats/summary"
    METRICS = "metrics"
    RESOURCE = "metrics/resource"
    CADVISOR = "metrics/cadvisor"
    PROBES = "metrics/probes"
    HEALTH = "healthz"
    CONFIG = "configz"
    NODE_LOGS = "logs"


INTO: Final = frozenset({What.EXEC, What.ATTACH, What.RUN, What.PORT_FORWARD})
"""What reaches into a container. `create` must be allowed whatever the method: a WebSocket is a
GET."""
_METHODS: Final = {
    What.EXEC: ("GET", "POST"),
    What.ATTACH: ("GET", "POST"),
    What.PORT_FORWARD: ("GET", "POST"),
    What.RUN: ("POST",),
}
_FINE: Final = {
    What.PODS: "pods",
    What.RUNNING_PODS: "pods",
    What.HEALTH: "healthz",
    What.CONFIG: "configz",
}
"""What a grant of its own is asked for first, before `proxy`, which grants nearly everything."""
_OWN: Final = {
    What.SUMMARY: "stats",
    What.METRICS: "metrics",
    What.RESOURCE: "metrics",
    What.CADVISOR: "metrics",
    What.PROBES: "metrics",
    What.NODE_LOGS: "log",
}
_FIXED: Final = {each.value: each for each in What if each not in INTO and each is not What.LOGS}


class Route(Struct, frozen=True, kw_only=True):
    """One path, read."""

    what: What
    namespace: str = ""
    pod: str = ""
    uid: str | None = None
    container: str = ""
    rest: str = ""
    """What follows `/healthz/` or `/logs/`."""

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods that it has."""
        return _METHODS.get(self.what, ("GET",))

    def verbs(self, method: str) -> tuple[str, ...]:
        """Return the verbs that the caller must be allowed, all of them."""
        verb = VERBS[method]
        return (verb, "create") if self.what in INTO and verb != "create" else (verb,)

    @property
    def subresources(self) -> tuple[str, ...]:
        """The node's sub-resources of which one must be granted, in the order of asking."""
        if self.what in _FINE:
            return (_FINE[self.what], "proxy")
        return (_OWN.get(self.what, "proxy"),)


def read(path: str) -> Route | None:
    """Return what a path, percent-encoded, leads to; None where that is nothing."""
    words = [unquote(word) for word in path.removeprefix("/").split("/")]
    if words[-1] == "" and len(words) > 1:
        words.pop()  # clients send both forms of `/runningpods/`
    if any(word in ("", ".", "..") or "/" in word or "\0" in word for word in words):
        return None
    first, *others = words
    joined = "/".join(words)
    if joined in _FIXED:
        return Route(what=_FIXED[joined])
    match first, others:
        case (("healthz" | "logs"), _):
            return Route(what=What(first), rest="/".join(others))
        case "containerLogs", [namespace, pod, container]:
            found = Route(what=What.LOGS, namespace=namespace, pod=pod, container=container)
        case (("exec" | "attach" | "run"), [namespace, pod, container]):
            found = Route(what=What(first), namespace=namespace, pod=pod, container=container)
        case (("exec" | "attach" | "run"), [namespace, pod, uid, container]):
            what = What(first)
            found = Route(what=what, namespace=namespace, pod=pod, uid=uid, container=container)
        case "portForward", [namespace, pod]:
            found = Route(what=What.PORT_FORWARD, namespace=namespace, pod=pod)
        case "portForward", [namespace, pod, uid]:
            found = Route(what=What.PORT_FORWARD, namespace=namespace, pod=pod, uid=uid)
        case _:
            return None
    return found if _is_sound(found) else None


def _is_sound(route: Route) -> bool:
    """Whether every name in it is one that the API server lets an object have."""
    names = (route.namespace, route.pod, route.container or "x")
    uid_is_one = route.uid is None or _UID.fullmatch(route.uid) is not None
    return uid_is_one and all(_NAME.fullmatch(name) for name in names)
