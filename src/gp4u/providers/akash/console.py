"""Akash's Console as we call it: one method per question, each one exchange.

What this file hides: paths, envelopes, the older and the newer way of listing, and an exchange rate
that must not grow old. The key, if there is one, is in the `Http` that is handed in, and goes
nowhere else.

Source: `docs/reference/akash.md`, sections on the Console; checked 2026-11.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from decimal import ROUND_CEILING, Decimal
from typing import Any, Final
from urllib.parse import quote

import msgspec

from gp4u.clock import Clock
from gp4u.errors import Malformed, OutcomeUnknown, ProviderError, Refused, Unavailable
from gp4u.model import RentalKey
from gp4u.providers.akash import estimates, held, wire
from gp4u.providers.akash.estimates import Host
from gp4u.providers.akash.held import Held
from gp4u.providers.akash.wire import SLUG, Money
from gp4u.providers.contract import Call
from gp4u.providers.http import UNREADABLE, Http, decode
from gp4u.providers.turns import good_in_turns

RATE_LIVES: Final = timedelta(hours=1)
LIST_PAGE, LIST_PAGE_NEWER = 1000, 100
MAX_LIST_PAGES: Final = 50
TOKEN_LIVES_S: Final = 120


class Console:
    """The Console, with its key or without."""

    def __init__(self, http: Http, *, url: str, block_time_s: float, clock: Clock) -> None:
        self._http, self._url, self._clock = http, url.rstrip("/"), clock
        self._block_time_s = block_time_s
        self._akt: tuple[Decimal, datetime] | None = None
        self._list_params: dict[str, str] = {"limit": str(LIST_PAGE)}
        self.owner: str | None = None
        """The account's address on the chain, once a reply has told it."""

    def call(self, method: str, path: str, body: Mapping[str, object] | None = None) -> Call:
        """Return a call that has not been sent."""
        return Call(method=method, url=f"{self._url}{path}", body=body)

    async def send(
        self, operation: str, call: Call, *, safe: bool, timeout_s: float | None = None
    ) -> bytes:
        """Send a call."""
        return await self._http.send(operation, call, safe=safe, timeout_s=timeout_s)

    async def get(
        self,
        operation: str,
        path: str,
        params: Mapping[str, str] | None = None,
        *,
        timeout_s: float | None = None,
    ) -> bytes:
        """Read something."""
        call = self.call("GET", path)
        return await self._http.send(operation, call, safe=True, params=params, timeout_s=timeout_s)

    async def hosts(self) -> list[Host]:
        """Return every provider, those that are offline too."""
        body = await self.get("hosts", "/v1/providers", {"scope": "all"})
        return (await good_in_turns(SLUG, "hosts", estimates.host_rows(body)))[0]

    async def host(self, owner: str) -> Host:
        """Return one provider."""
        return decode(
            SLUG, "host", await self.get("host", f"/v1/providers/{quote(owner, safe='')}"), Host
        )

    async def money(self, *, needs_akt: bool) -> Money:
        """Return today's rates; one that could not be renewed for an hour is none any more."""
        now = self._clock.now()
        if needs_akt:
            try:
                body = await self.get("akt", "/v1/market-data/akash-network")
                price = decode(SLUG, "akt", body, wire.MarketData).price
                self._akt = (price, now) if price.is_finite() and price > 0 else self._akt
            except ProviderError:
                pass  # the last one may still be young enough
        known = self._akt
        young = known is not None and now - known[1] <= RATE_LIVES
        akt_usd = known[0] if known is not None and young else None
        return Money(block_time_s=self._block_time_s, akt_usd=akt_usd)

    async def show(self, dseq: str) -> Held:
        """Return one deployment, with what its hosts say of it.

        Raises:
            InstanceAbsent: there is none of this number.
        """
        body = await self.get("show", _deployment(dseq))
        return decode(SLUG, "show", body, held.HeldReply).data

    async def listed(self) -> tuple[dict[str, Held], str]:
        """Return what is not closed, by number, and why the list may lack some.

        Older servers count the rows of a page, newer ones all of them: where such a count and the
        rows disagree, or two such counts do, something was missed.
        """
        found: dict[str, Held] = {}
        skip, why, counts = 0, "", set[int]()
        for _ in range(MAX_LIST_PAGES):
            page = await self._list_page(skip)
            shown, before = len(page.deployments), len(found)
            skip += shown
            for raw in page.deployments:
                try:
                    one = msgspec.json.decode(raw, type=Held)
                except UNREADABLE:
                    why = why or "a row cannot be read"
                    continue
                found[one.dseq] = one
                self.owner = one.deployment.id.owner or self.owner
            if page.total not in (None, shown):
                counts.add(page.total or 0)
            if not page.has_more and shown < int(self._list_params["limit"]):
                break
            if len(found) == before:
                why = why or "the pages lead nowhere"
                break
        else:
            why = why or f"more than {MAX_LIST_PAGES} pages"
        if len(counts) > 1 or max(counts, default=0) > skip:
            why = why or f"the pages show {skip} and count {', '.join(map(str, sorted(counts)))}"
        return {d: one for d, one in found.items() if one.deployment.state != "closed"}, why

    async def _list_page(self, skip: int) -> held.ListPage:
        """Return one page; which kind of server it is, is learned from the first refusal."""
        params = {"skip": str(skip), **self._list_params}
        try:
            body = await self.get("instances", "/v1/deployments", params)
        except Refused:
            if "state" in params:
                raise
            self._list_params = {"limit": str(LIST_PAGE_NEWER), "state": "active"}
            return await self._list_page(skip)
        return decode(SLUG, "instances", body, held.ListReply).data

    async def close(self, dseq: str) -> None:
        """End a deployment. Safe to repeat.

        Raises:
            InstanceAbsent: there is none of this number.
            Unavailable: it was not closed.
        """
        body = await self.send("release", self.call("DELETE", _deployment(dseq)), safe=True)
        done = decode(SLUG, "release", body, wire.DoneReply).data
        if done is not None and not done.success:
            raise Unavailable(SLUG, "release", "the market says that it did not close it")

    async def deposit(self, dseq: str, usd: Decimal) -> None:
        """Put more into the escrow of a deployment.

        Raises:
            InstanceAbsent: there is none of this number.
            OutcomeUnknown: it may have been done.
        """
        body = {"data": {"dseq": dseq, "deposit": cents(usd)}}
        call = self.call("POST", "/v1/deposit-deployment", body)
        try:
            reply = await self.send("extend", call, safe=False)
            decode(SLUG, "extend", reply, dict[str, Any])
        except (Unavailable, Malformed) as error:
            if isinstance(error, Unavailable) and not error.sent:
                raise
            raise OutcomeUnknown(SLUG, "extend", error.detail, key=RentalKey(dseq)) from error

    async def token(self, leases: Mapping[str, object]) -> str:
        """Return a token for hosts that opens what `leases` says, for two minutes."""
        body = {"data": {"ttl": TOKEN_LIVES_S, "leases": leases}}
        call = self.call("POST", "/v1/create-jwt-token", body)
        reply = await self.send("token", call, safe=True)
        return decode(SLUG, "token", reply, held.TokenReply).data.token

    async def who(self) -> str:
        """Return the account's address on the chain, which at first only a token tells.

        Raises:
            Malformed: it does not.
        """
        if self.owner is None:
            self.owner = held.issuer(await self.token({"access": "scoped", "scope": ["status"]}))
        if self.owner is None:
            raise Malformed(SLUG, "token", "it does not say whose account it is")
        return self.owner

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()


def _deployment(dseq: str) -> str:
    return f"/v1/deployments/{quote(dseq, safe='')}"


def cents(usd: Decimal) -> Decimal:
    """Return an amount that is not less and can be paid in."""
    return usd.quantize(Decimal("0.01"), ROUND_CEILING)
