"""The desk that asks a running server: the same wishes as everywhere, over its REST API.

Hides which path answers what, and that a rent or a release is told line by line. What a server adds
is little: it goes on when the command line is interrupted, so a rent is sent with a key of its own
and never twice. Texts and failures are those of the desk in the server; what a connection can do
wrong is `server.py`'s.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from datetime import timedelta
from decimal import Decimal
from random import Random
from typing import Any, Final
from urllib.parse import quote

import httpx2
from msgspec import Struct

from gp4u.cli.server import PATIENT_S, QUICK_S, Server, open_server
from gp4u.desk.desk import Tell
from gp4u.desk.shapes import (
    DecisionShape,
    DoneStep,
    DryRunShape,
    FinishedShape,
    IntendedStep,
    LookShape,
    MarketShape,
    PricesShape,
    ProblemStep,
    RentalShape,
    StreamedStep,
    UnexplainedShape,
)
from gp4u.desk.spans import span_text
from gp4u.errors import NoSuch, OutcomeUnknown, ServerUnavailable
from gp4u.model import Demand, RentalKey, Workload

MAX_DECISION: Final = 512 << 20
"""Bytes; every offer of every market is in it where all are asked for."""
AGAIN_S: Final = 1.0
_PAGE: Final = "1000"
_WORD: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@~+-]{0,199}")
"""What a path can hold and any key, name or id has."""


class _Markets(Struct):
    items: list[MarketShape]


class _Page(Struct):
    items: list[RentalShape]
    unexplained: list[UnexplainedShape]
    warnings: list[str]
    failed: str | None = None
    next_cursor: str | None = None


class _Orphans(Struct):
    items: list[UnexplainedShape]
    warnings: list[str]


class RemoteDesk:
    """Implements `Desk`; see the module's docstring."""

    def __init__(self, server: Server, random: Random) -> None:
        """`random` makes the keys under which rents are sent."""
        self._server, self._random = server, random

    async def markets(self) -> Sequence[MarketShape]:
        """See `Desk.markets`."""
        return (await self._server.ask("GET", "/api/v1/markets", _Markets)).items

    async def decide(
        self, demand: Demand, *, top: int | None, rejections: bool, tell: Tell
    ) -> DecisionShape:
        """See `Desk.decide`; of the server's waiting nothing is told."""
        del tell
        return await self._server.ask(
            "POST",
            "/api/v1/decisions",
            DecisionShape,
            body={"demand": demand_body(demand), "top": top, "rejections": rejections},
            wait_s=PATIENT_S,
            cap=MAX_DECISION,
        )

    async def dry_run(self, demand: Demand, workload: Workload) -> DryRunShape:
        """See `Desk.dry_run`."""
        return await self._server.ask(
            "POST",
            "/api/v1/rentals",
            DryRunShape,
            body={
                "demand": demand_body(demand),
                "workload": workload_body(workload),
                "dry_run": True,
            },
            wait_s=PATIENT_S,
        )

    async def rent(
        self, owner: str, demand: Demand, workload: Workload, *, wait: bool, tell: Tell
    ) -> RentalShape:
        """See `Desk.rent`; when this is cancelled, the server goes on.

        Raises:
            ServerUnavailable: with `sent`, nobody knows whether it was rented.
        """
        lines = self._server.lines(
            "POST",
            "/api/v1/rentals",
            body={
                "name": owner.removeprefix("cli:"),
                "demand": demand_body(demand),
                "workload": workload_body(workload),
                "wait": wait,
            },
            key=f"cli-{self._random.getrandbits(128):032x}",
        )
        intended: RentalShape | None = None

        def told(step: Any) -> None:
            nonlocal intended
            if isinstance(step, IntendedStep):
                intended = step.rental
            tell(step)

        try:
            return await self._last_of(lines, told)
        except ServerUnavailable as error:
            if intended is None or not error.sent:
                raise
            detail = f"{error}; it goes on with rental {intended.key}"
            key = RentalKey(intended.key)
            raise OutcomeUnknown(intended.provider, "rent", detail, key=key) from error

    async def look(self, *, everything: bool, ask: bool) -> LookShape:
        """See `Desk.look`."""
        params = {"all": _truth(everything), "ask": _truth(ask), "limit": _PAGE}
        first = page = await self._page(params, PATIENT_S if ask else QUICK_S)
        rentals = list(page.items)
        while page.next_cursor is not None:
            page = await self._page(
                {"all": params["all"], "limit": _PAGE, "cursor": page.next_cursor}, QUICK_S
            )
            rentals += page.items
        return LookShape(
            rentals=rentals,
            unexplained=first.unexplained,
            warnings=first.warnings,
            failed=first.failed,
        )

    async def find(self, word: str) -> RentalShape:
        """See `Desk.find`."""
        return await self._server.ask("GET", _rental(word), RentalShape)

    async def release(self, key: str, *, reason: str, wait: bool, tell: Tell) -> RentalShape:
        """See `Desk.release`; when this is cancelled, the server goes on."""
        params = {"wait": _truth(wait), "reason": reason}
        while True:
            lines = self._server.lines("DELETE", _rental(key), params=params)
            rental = await self._last_of(lines, tell)
            if not wait or rental.state == "released":
                return rental
            await asyncio.sleep(AGAIN_S)  # the server waits only so long for the proof

    async def forget(self, key: str) -> RentalShape:
        """See `Desk.forget`."""
        return await self._server.ask(
            "DELETE", _rental(key), RentalShape, params={"forget": "true"}, wait_s=PATIENT_S
        )

    async def logs(self, key: str, *, tail: int, container: str | None = None) -> str:
        """See `Desk.logs`."""
        params = {"tail": str(tail), "raw": "true"}
        params |= {"container": container} if container is not None else {}
        return await self._server.text(f"{_rental(key)}/logs", params=params, wait_s=PATIENT_S)

    async def execute(
        self,
        key: str,
        command: Sequence[str],
        *,
        stdin: bytes,
        timeout_s: float,
        container: str | None = None,
    ) -> FinishedShape:
        """See `Desk.execute`."""
        body = {"command": list(command), "stdin": stdin, "timeout_s": timeout_s}
        body |= {"container": container} if container is not None else {}
        return await self._server.ask(
            "POST",
            f"{_rental(key)}/exec",
            FinishedShape,
            body=body,
            wait_s=PATIENT_S + timeout_s,
        )

    async def orphans(self) -> tuple[Sequence[UnexplainedShape], Sequence[str]]:
        """See `Desk.orphans`."""
        found = await self._server.ask("GET", "/api/v1/orphans", _Orphans, wait_s=PATIENT_S)
        return found.items, found.warnings

    async def release_orphan(self, provider: str, instance_id: str) -> None:
        """See `Desk.release_orphan`."""
        path = f"/api/v1/orphans/{quote(provider, safe='')}/{quote(instance_id, safe='')}"
        await self._server.send("DELETE", path, wait_s=PATIENT_S)

    async def prices(
        self, gpu_model: str, *, within: timedelta, provider: str | None
    ) -> PricesShape:
        """See `Desk.prices`."""
        params = {"gpu": gpu_model, "range": span_text(within)}
        params |= {"provider": provider} if provider is not None else {}
        return await self._server.ask("GET", "/api/v1/prices", PricesShape, params=params)

    async def _page(self, params: Mapping[str, str], wait_s: float) -> _Page:
        return await self._server.ask("GET", "/api/v1/rentals", _Page, params=params, wait_s=wait_s)

    async def _last_of(self, lines: AsyncGenerator[bytes, None], tell: Tell) -> RentalShape:
        """Tell the steps of a stream, and return what it ends with.

        Raises:
            Gp4uError: what its problem tells.
            ServerUnavailable: it has no end.
        """
        async with aclosing(lines) as each:
            async for line in each:
                step = self._server.decoded_line(line, StreamedStep)
                match step:
                    case DoneStep(rental=rental):
                        return rental
                    case ProblemStep(problem=problem):
                        raise self._server.error_of(problem)
                    case None:
                        whole = self._server.decoded_line(line, RentalShape)
                        if whole is not None:  # an answer in one piece
                            return whole  # type: ignore[no-any-return] # decoded as that
                        # Else a step of another version's: the next ones may be known.
                    case _:
                        tell(step)
        why = f"the server {self._server.url} stopped telling before it was done"
        raise ServerUnavailable(why, sent=True)


@asynccontextmanager
async def open_remote_desk(
    url: str,
    token: str | None,
    random: Random,
    *,
    transport: httpx2.AsyncBaseTransport | None = None,
) -> AsyncIterator[RemoteDesk]:
    """Open the desk of the server at an address; nothing is sent yet. `transport` is for tests."""
    async with open_server(url, token, transport=transport) as server:
        yield RemoteDesk(server, random)


def demand_body(demand: Demand) -> dict[str, Any]:
    """Return a demand as the server reads it: every field, so that no setting of its gets in."""
    asked = demand.requirements
    price = asked.max_price_usd_per_hour
    return {
        "gpu": asked.gpu_models,
        "gpus": asked.gpu_count,
        "min_vram_gib": asked.min_vram_gib,
        "max_price_usd_per_hour": None if price is None else _plain(price),
        "min_reliability": asked.min_reliability,
        "min_download_mbps": asked.min_download_mbps,
        "min_cpus": asked.min_cpus,
        "min_ram_gib": asked.min_ram_gib,
        "disk_gib": asked.disk_gib,
        "ports": asked.ports,
        "locations": asked.locations,
        "providers": asked.providers,
        "interruptible": asked.interruptible,
        "verified_only": asked.verified_only,
        "datacenter_only": asked.datacenter_only,
        "weights": demand.preferences.weights,
    }


def workload_body(workload: Workload) -> dict[str, Any]:
    """Return a workload as the server reads it."""
    return {
        "image": workload.image,
        "command": workload.command,
        "env": workload.env,
        "ports": [
            {"number": port.number, "protocol": port.protocol, "name": port.name}
            for port in workload.ports
        ],
        "health": [{"port": check.port, "path": check.path} for check in workload.health],
        "disk_gib": workload.disk_gib,
    }


def _rental(word: str) -> str:
    """Return the path of a rental.

    Raises:
        NoSuch: the word can be no key, name or id, and could mean another path.
    """
    if not _WORD.fullmatch(word):
        hint = "no rental has this key, name or id; `gp4u ps -a` lists all"
        raise NoSuch("key", word, hint=hint)
    return f"/api/v1/rentals/{quote(word, safe='')}"


def _truth(value: bool) -> str:
    return "true" if value else "false"


def _plain(amount: Decimal) -> str:
    return f"{amount:f}"
