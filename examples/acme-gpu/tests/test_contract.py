"""The adapter keeps the contract: with nothing wrong, and once per trouble, over a fake in process.

The checks are GP4U's. What is Acme's own is how it is opened, and what each trouble looks like.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import httpx2
from fake_acme import KEY, FakeAcme
from gp4u.clock import SystemClock
from gp4u.model import Demand, Port, Requirements, Workload
from gp4u.providers.contract import Provider
from gp4u.providers.opening import defaults_of
from gp4u.providers.registry import open_providers
from gp4u.settings import load_settings
from gp4u.testing import Act, Held, Market, ProviderContract, Trouble

from gp4u_acme.adapter import OPENING, SPEC

STATUS = {
    Trouble.SERVER_ERROR: 503,
    Trouble.THROTTLED: 429,
    Trouble.DENIED: 401,
    Trouble.OFFER_GONE: 409,
}


class Eager(selectors.DefaultSelector):
    """Looks at once what is there, and remembers for how long it was asked to wait."""

    skipped_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.skipped_s += timeout or 0.0
        return super().select(None if timeout is None else 0)


class Hurried(asyncio.SelectorEventLoop):
    """A loop that waits for no timer: deadlines, pauses and retries are as they are, and take no time.

    Only for what stays in this process: a reply through a socket would come too late.
    """

    def __init__(self) -> None:
        self._eager = Eager()
        super().__init__(self._eager)

    def time(self) -> float:
        return super().time() + self._eager.skipped_s


class Line(httpx2.AsyncBaseTransport):
    """The way to a market in this process, on which a call or its reply can be lost."""

    def __init__(self, market: FakeAcme) -> None:
        self.market = market
        self.trouble: Trouble | None = None

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        match self.trouble:
            case Trouble.NO_CONNECTION:
                raise httpx2.ConnectError("refused", request=request)
            case Trouble.LOST_BEFORE:
                raise httpx2.ReadError("lost", request=request)
            case Trouble.HANG:
                await asyncio.Event().wait()  # until the adapter's deadline
        status, text = self.market.reply(
            request.method,
            request.url.raw_path.decode(),
            request.headers.get("authorization", ""),
            await request.aread(),
        )
        match self.trouble:
            case Trouble.LOST_REPLY:
                raise httpx2.ReadError("lost", request=request)
            case Trouble.MALFORMED:
                text = b"{"
        return httpx2.Response(status, stream=httpx2.ByteStream(text))


class AcmeAtHand:
    """The adapter, and the market behind it: what the suite looks at and breaks."""

    def __init__(self, provider: Provider, line: Line) -> None:
        self.provider, self._line, self._acme = provider, line, line.market

    def strike(self, trouble: Trouble, act: Act) -> None:
        del act  # the suite makes no other call until it heals
        self._line.trouble = trouble
        self._acme.fail_with = STATUS.get(trouble)
        self._acme.forgets_last = trouble is Trouble.PARTIAL_PAGE
        if trouble is Trouble.LATE_LISTING:
            self._acme.late_lists = 3

    def heal(self) -> None:
        self._line.trouble = self._acme.fail_with = None
        self._acme.forgets_last = False

    async def truth(self) -> Sequence[Held]:
        return [Held(name, id_ in self._acme.machines) for id_, name in self._acme.made.items()]


class TestAcme(ProviderContract):
    """The checks are inherited."""

    demand = Demand(requirements=Requirements(ports=1))
    workload = Workload(image="nginx:stable", ports=(Port(80),))
    some_instance_id = "m/1"

    @asynccontextmanager
    async def market(self) -> AsyncIterator[Market]:
        """Open the adapter as GP4U does, over a fresh market."""
        line = Line(FakeAcme())
        settings = load_settings(
            {"ACME_API_KEY": KEY}, Path(__file__).parent, providers=[defaults_of(SPEC)]
        )
        opened = open_providers(
            settings, (OPENING,), clock=SystemClock(), random=Random(1), transport=line
        )
        try:
            yield AcmeAtHand(opened.providers["acme"], line)
        finally:
            await opened.aclose()

    def run(self, scenario: Coroutine[Any, Any, None]) -> None:
        with asyncio.Runner(loop_factory=Hurried) as runner:
            runner.run(scenario)
