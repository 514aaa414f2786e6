"""`self.client`: the HTTP client that a provider's own class speaks through.

It looks like the clients that people know (`get`, `post`, a response with `json()`), and hides that
every call goes by the provider's guard, under our caps, to addresses that we may call. What differs
from those clients is on purpose: a reply that is no success is raised as one of our errors, since
that is what retries, breaker and exit codes are made of, and no redirect is followed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

import msgspec

from gp4u.errors import (
    BadInput,
    Denied,
    Malformed,
    ProviderError,
    Refused,
    Throttled,
    Unavailable,
)
from gp4u.providers.contract import Call
from gp4u.providers.http import UNREADABLE, Http, Judge, Reply, excerpt, retry_after_s

OPERATION = "offers"
"""What a class of the first seed's form asks its market for; the name in errors and metrics."""


class Response(msgspec.Struct, frozen=True):
    """A success, read to its end."""

    status_code: int
    headers: Mapping[str, str]
    """Lower-case names."""
    content: bytes

    @property
    def text(self) -> str:
        """The body as UTF-8; what is none becomes a replacement character."""
        return self.content.decode("utf-8", errors="replace")

    def json(self) -> Any:
        """Return the body as Python objects.

        Raises:
            ValueError: it is not JSON, or nested too deep.
        """
        try:
            return msgspec.json.decode(self.content)
        except UNREADABLE as error:
            raise ValueError(f"the reply is not JSON: {excerpt(self.content)}") from error

    def raise_for_status(self) -> Response:
        """Return this: what is no success was raised before anybody held it."""
        return self


class Client:
    """One provider's way out, once its market is open."""

    def __init__(self, provider: str, trusted_url: Callable[[], str]) -> None:
        """`trusted_url` is asked before each call: what has its origin is called as it stands."""
        self._provider, self._trusted_url = provider, trusted_url
        self._make: Callable[[], Http] | None = None
        self._http: Http | None = None
        self.calls = 0
        """How many calls were begun."""

    def open(self, make: Callable[[], Http]) -> None:
        """Be told how to get connections; they are made by the first call."""
        self._make = make

    async def aclose(self) -> None:
        """Give the connections up."""
        http, self._http, self._make = self._http, None, None
        if http is not None:
            await http.aclose()

    async def get(
        self,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, str | int | float] | None = None,
    ) -> Response:
        """Read from a URL; what `request` says holds here too."""
        return await self.request("GET", url, headers=headers, params=params)

    async def post(
        self,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, str | int | float] | None = None,
        json: Mapping[str, object] | None = None,
    ) -> Response:
        """Ask by POST, as some markets want to be searched; it may be sent again like a GET."""
        return await self.request("POST", url, headers=headers, params=params, json=json)

    async def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, str | int | float] | None = None,
        json: Mapping[str, object] | None = None,
    ) -> Response:
        """Send a call that only reads, and return its success.

        An address that does not begin like the provider's `base_url` must be https and public:
        it may come from a reply, and a reply must not make us call our own network.

        Raises:
            BadInput: the market is not open, or a header cannot stand in a request.
            ProviderError: what went wrong, by the kinds of `errors.py`; also a URL that we may not
                call, and a redirect.
        """
        if self._make is None:
            raise BadInput("provider", self._provider, "is not open: register it, and open an app")
        self._http = self._http or self._make()
        self.calls += 1
        reply = await self._http.visit(
            OPERATION,
            Call(method=method, url=url, body=json),
            safe=True,
            params=None if params is None else {name: str(each) for name, each in params.items()},
            headers=headers,
            trusted=_is_same_origin(url, self._trusted_url()),
        )
        return Response(reply.status, reply.headers, reply.content)


def judge_for(provider: str) -> Judge:
    """Return what tells a success from a failure by the status alone."""

    def judge(operation: str, reply: Reply) -> ProviderError | None:
        status = reply.status
        if 200 <= status < 300:
            return None
        who = (provider, operation, f"HTTP {status}: {excerpt(reply.content)}".rstrip(": "))
        if status in (401, 403):
            return Denied(*who)
        if status == 429:
            return Throttled(*who, retry_after_s=retry_after_s(reply))
        if status == 408 or status >= 500:
            return Unavailable(*who)
        if 300 <= status < 400:
            return Malformed(provider, operation, f"HTTP {status}: the address leads on elsewhere")
        return Refused(*who, code=str(status))

    return judge


def _is_same_origin(url: str, trusted: str) -> bool:
    """Tell whether a URL is https and leads to the very host and port of a trusted one."""
    try:
        asked, known = urlsplit(url), urlsplit(trusted)
        same_port = (asked.port or 443) == (known.port or 443)
    except ValueError:
        return False
    is_https = asked.scheme == known.scheme == "https"
    has_user = asked.username is not None
    return (
        is_https
        and not has_user
        and same_port
        and bool(asked.hostname)
        and (asked.hostname == known.hostname)
    )
