"""Who calls the kubelet's port, and whether they may: both are the API server's word.

A client certificate that the cluster's CA signed names its bearer; a token is shown to the API
server (TokenReview). What somebody may do with this node is asked of it as well
(SubjectAccessReview), so that the cluster's own RBAC holds here. Answers are remembered for a
while, as a kubelet does. Nobody is let in because something could not be asked.

Which rights a path takes is known to `routes.py`; that a certificate is good, to TLS (`trust.py`
says by which CA).
"""

from __future__ import annotations

import asyncio
import hashlib
import ssl
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from typing import Any, Final, Generic, Protocol, TypeVar

import structlog
from msgspec import Struct

from gp4u.clock import Clock
from gp4u.errors import KubeError, KubeInvalid
from gp4u.kube.client import KubeClient
from gp4u.kube.paths import access_reviews, token_reviews

TOKEN_S: Final = 120.0
ALLOWED_S: Final = 300.0
DENIED_S: Final = 30.0
"""Source: kubernetes pkg/kubelet/apis/config/v1beta1/defaults.go, 1.32; checked 2026-11."""
UNKNOWN_TOKEN_S: Final = 10.0
MAX_TOKEN: Final = 32 * 1024
REMEMBERED: Final = 1024
_ANONYMOUS: Final = "system:anonymous"

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Caller(Struct, frozen=True):
    """Somebody, as the cluster knows them."""

    name: str
    groups: tuple[str, ...] = ()
    uid: str = ""
    extra: tuple[tuple[str, tuple[str, ...]], ...] = ()


class Gate(Protocol):
    """Lets callers in, or does not."""

    async def who(self, certificate: Mapping[str, Any] | None, header: str) -> Caller | None:
        """Return who calls, by their verified certificate or their `Authorization` header.

        Raises:
            KubeError: it could not be found out.
        """

    async def may(self, caller: Caller, verb: str, subresource: str) -> bool:
        """Say whether they may do this to a sub-resource of this node.

        Raises:
            KubeError: it could not be found out.
        """


class Open:
    """Lets everybody do everything: only where the operator asked for it by name."""

    def __init__(self) -> None:
        structlog.get_logger().warning(
            "kubelet_api_open",
            meaning="GP4U_NODE_AUTH=none: whoever reaches this port can run commands in every pod",
        )

    async def who(self, certificate: Mapping[str, Any] | None, header: str) -> Caller | None:
        """Take everybody for nobody in particular."""
        del certificate, header
        return Caller(_ANONYMOUS)

    async def may(self, caller: Caller, verb: str, subresource: str) -> bool:
        """Allow it."""
        del caller, verb, subresource
        return True


class Reviewer:
    """Asks the API server about everybody."""

    def __init__(self, client: KubeClient, *, node_name: str, clock: Clock) -> None:
        """`client` should have connections of its own: a review must not wait behind writes."""
        self._client, self._node_name, self._clock = client, node_name, clock
        self._callers: _Remembered[bytes, Caller | None] = _Remembered()
        self._answers: _Remembered[tuple[Caller, str, str], bool] = _Remembered()

    async def who(self, certificate: Mapping[str, Any] | None, header: str) -> Caller | None:
        """Return who calls: the certificate's bearer, else the token's.

        Raises:
            KubeError: the token could not be shown to the API server.
        """
        bearer = self._bearer(certificate) if certificate else None
        if bearer is not None:
            return bearer
        scheme, _, token = header.strip().partition(" ")
        token = token.strip()
        if scheme.lower() != "bearer" or not 0 < len(token) <= MAX_TOKEN:
            return None

        async def ask() -> tuple[Caller | None, float]:
            caller = await self._holder(token)
            return caller, UNKNOWN_TOKEN_S if caller is None else TOKEN_S

        return await self._callers.get(hashlib.sha256(token.encode()).digest(), ask)

    async def may(self, caller: Caller, verb: str, subresource: str) -> bool:
        """Say whether the cluster's RBAC allows it.

        Raises:
            KubeError: it could not be asked.
        """

        async def ask() -> tuple[bool, float]:
            is_allowed = await self._review(caller, verb, subresource)
            return is_allowed, ALLOWED_S if is_allowed else DENIED_S

        return await self._answers.get((caller, verb, subresource), ask)

    def _bearer(self, certificate: Mapping[str, Any]) -> Caller | None:
        """Return whom a verified certificate names: CN is the user, each O a group.

        It is looked at for each request: a connection may outlive it.
        """
        subject: list[tuple[str, str]] = [
            pair for part in certificate.get("subject", ()) for pair in part
        ]
        names = [value for key, value in subject if key == "commonName"]
        until = certificate.get("notAfter")
        if not names or not names[-1] or not until:
            return None
        if ssl.cert_time_to_seconds(until) <= self._clock.now().timestamp():
            return None
        groups = tuple(value for key, value in subject if key == "organizationName")
        return Caller(names[-1], (*groups, "system:authenticated"))

    async def _holder(self, token: str) -> Caller | None:
        review = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token},
        }
        try:
            reply = await self._client.create(token_reviews(), review)
        except KubeInvalid:
            return None  # no API server can make sense of it
        status = reply.get("status") or {}
        user = status.get("user") or {}
        if status.get("authenticated") is not True or not user.get("username"):
            return None
        extra = user.get("extra") or {}
        return Caller(
            str(user["username"]),
            tuple(map(str, user.get("groups") or ())),
            str(user.get("uid") or ""),
            tuple((str(key), tuple(map(str, values))) for key, values in sorted(extra.items())),
        )

    async def _review(self, caller: Caller, verb: str, subresource: str) -> bool:
        about = {"version": "v1", "resource": "nodes", "name": self._node_name}
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": {
                "user": caller.name,
                "groups": list(caller.groups),
                "uid": caller.uid,
                "extra": {key: list(values) for key, values in caller.extra},
                "resourceAttributes": {**about, "verb": verb, "subresource": subresource},
            },
        }
        status = (await self._client.create(access_reviews(), review)).get("status") or {}
        return status.get("allowed") is True and status.get("denied") is not True


async def allowed(
    gate: Gate, caller: Caller, verbs: Sequence[str], subresources: Sequence[str]
) -> bool:
    """Say whether somebody may do all of `verbs`, each to one of the sub-resources.

    Raises:
        KubeError: nothing that could be asked allows it, and something could not be asked.
    """
    for verb in verbs:
        problem: KubeError | None = None
        for subresource in subresources:
            try:
                if await gate.may(caller, verb, subresource):
                    break
            except KubeError as error:
                problem = error
        else:
            if problem is not None:
                raise problem
            return False
    return True


class _Remembered(Generic[Key, Value]):
    """The newest answers, each for its time; one that is being asked for is asked once."""

    def __init__(self) -> None:
        self._known: OrderedDict[Key, tuple[Value, float]] = OrderedDict()
        self._asking: dict[Key, asyncio.Lock] = {}

    async def get(self, key: Key, ask: Callable[[], Awaitable[tuple[Value, float]]]) -> Value:
        """Return an answer; `ask` gives one and for how many seconds it holds."""
        loop = asyncio.get_running_loop()
        lock = self._asking.setdefault(key, asyncio.Lock())
        try:
            async with lock:
                found = self._known.get(key)
                if found is not None and found[1] > loop.time():
                    return found[0]
                value, for_s = await ask()
                self._known[key] = value, loop.time() + for_s
                self._known.move_to_end(key)
                while len(self._known) > REMEMBERED:
                    self._known.popitem(last=False)
                return value
        finally:
            if not lock.locked():
                self._asking.pop(key, None)
