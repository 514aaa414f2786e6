"""What the tests of the adapters stand on: a script of replies, and a guard that stays out of it.

Replies are put under httpx2 as a transport, so everything of ours runs as it does on a network.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any

import httpx2

from gp4u.providers.http import Http, Observe, Sign
from gp4u.providers.ssh import Ssh
from gp4u.providers.vastai.adapter import VastAI
from gp4u.providers.vastai.replies import judge
from gp4u.resilience.guard import Guard, build_guard
from tests.virtual_loop import VirtualClock

PAYLOADS = Path(__file__).parents[2] / "payloads/vastai"
KEY = "canary-7f3a9c0d51e2"
BASE_URL = "https://market.example/api/v0"


def recorded(name: str) -> Any:
    """Return a file of `tests/payloads/vastai`, decoded."""
    return json.loads((PAYLOADS / f"{name}.json").read_text(encoding="utf-8"))


def guard_for_test(*, tries: int = 1) -> Guard:
    """Return a guard without a rate limit and without pauses before a retry."""
    return build_guard(
        "vastai",
        random=Random(1),
        clock=VirtualClock(),
        rate_per_min=None,
        max_retries=tries,
        base_delay_s=0.0,
        max_delay_s=0.0,
        jitter_s=0.0,
    )


class Script(httpx2.AsyncBaseTransport):
    """Answers requests from a list, in order, and keeps what was asked."""

    def __init__(self, *replies: httpx2.Response | Exception | object) -> None:
        """A reply that is neither a response nor an error is the JSON body of a 200."""
        self._replies = list(replies)
        self.requests: list[httpx2.Request] = []

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        self.requests.append(request)
        reply = self.reply_to(request)
        if isinstance(reply, Exception):
            raise reply
        if not isinstance(reply, httpx2.Response):
            reply = httpx2.Response(200, json=reply)
        # A new one: a response that was built with its body counts as read.
        return httpx2.Response(reply.status_code, headers=reply.headers, stream=reply.stream)

    def reply_to(self, request: httpx2.Request) -> object:
        """Return the next reply."""
        return self._replies.pop(0)

    @property
    def left(self) -> int:
        """How many replies were not asked for."""
        return len(self._replies)

    @property
    def bodies(self) -> list[Any]:
        """The JSON body of each request, or None."""
        return [json.loads(r.content) if r.content else None for r in self.requests]

    @property
    def paths(self) -> list[str]:
        """Method and path of each request."""
        return [f"{r.method} {r.url.path}" for r in self.requests]

    @property
    def params(self) -> list[Mapping[str, str]]:
        """The query of each request."""
        return [dict(r.url.params) for r in self.requests]


def http_over(
    transport: httpx2.AsyncBaseTransport | None,
    *,
    tries: int = 1,
    timeout_s: float = 5.0,
    allow_loopback: bool = False,
    key: str = KEY,
    observe: Observe | None = None,
    sign: Sign | None = None,
) -> Http:
    """Return the adapter's way out; without a transport it speaks on real sockets."""
    more: dict[str, Any] = {} if observe is None else {"observe": observe}
    return Http(
        "vastai",
        guard=guard_for_test(tries=tries),
        judge=judge,
        headers={"authorization": f"Bearer {key}"},
        timeout_s=timeout_s,
        sign=sign,
        allow_loopback=allow_loopback,
        transport=transport,
        **more,
    )


def market(script: Script, *, tries: int = 1, base_url: str = BASE_URL) -> VastAI:
    """Return the adapter with a script in place of the marketplace."""
    http = http_over(script, tries=tries)
    ssh = Ssh("vastai", secret=b"secret", allow_loopback=True)
    return VastAI(http, base_url=base_url, clock=VirtualClock(), ssh=ssh)
