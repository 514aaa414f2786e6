"""One rent on Akash: an order goes out, bids come in, one of them becomes a lease.

What this file hides: the wait for bids, and that each step can leave something behind. The order is
sent once. From then on its number is known, so whatever does not end in a lease is closed here, and
what could not be closed is named in the error. A process that dies on the way leaves an order that
a listing finds by our key.

The pauses here are no retries: they are how this market works (docs/reference/akash.md 5.1).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final

from gp4u.clock import Clock
from gp4u.errors import (
    Denied,
    InstanceAbsent,
    Malformed,
    OfferGone,
    OutcomeUnknown,
    ProviderError,
    Refused,
    Unavailable,
)
from gp4u.model import Offer, RentalKey
from gp4u.providers.akash import wire
from gp4u.providers.akash.bids import BidRow, bid_offer, parse_bids
from gp4u.providers.akash.console import Console
from gp4u.providers.akash.estimates import Host, offer_kind
from gp4u.providers.akash.wire import ANY_HOST, SLUG
from gp4u.providers.contract import Call, Choose
from gp4u.providers.http import decode

HEADROOM: Final = Decimal("1.5")
"""An order's ceiling over its estimate, which is of a bid with hardly any CPU and memory."""
BIDS_POLL_S: Final = 4.0
BID_WINDOW_S: Final = 16.0
"""The first bid is seldom the best one: choose after this."""
BIDS_WAIT_S: Final = 60.0
MANIFEST_TRIES: Final = 3
MANIFEST_PAUSE_S: Final = 5.0
CREATE_TIMEOUT_S: Final = 60.0
LEASE_TIMEOUT_S: Final = 120.0

Bids = dict[str, tuple[BidRow, Offer]]
"""Host to its open bid, and what that offers."""


def ceiling_usd_per_hour(offer: Offer) -> Decimal:
    """Return the most that an order for this offer lets hosts bid, in $/h."""
    return offer.price_usd_per_hour * (HEADROOM if offer.estimated else 1)


class Auction:
    """One order, from its publication on."""

    def __init__(
        self,
        console: Console,
        offer: Offer,
        hosts: Mapping[str, Host],
        choose: Choose | None,
        clock: Clock,
        *,
        window_s: float = BID_WINDOW_S,
    ) -> None:
        self._console, self._offer, self._hosts = console, offer, hosts
        self._choose, self._clock, self._window_s = choose, clock, window_s

    async def run(self, create: Call, manifest: object, key: RentalKey) -> str:
        """Publish the order and turn one of its bids into a lease; return the deployment's number.

        `manifest` is handed to the host where the market does not return one.

        Raises:
            OfferGone: no bid that will do came in time; the order is closed.
            Refused: declined; where `instance_id` is set, something was made and may still be.
            OutcomeUnknown: the order may have gone out.
        """
        order = await self._publish(create, key)
        dseq = str(order.dseq)
        try:
            await self._bidding(dseq, order.manifest or manifest)
        except ProviderError as error:
            told = await self._give_up(dseq, error)
            if told is error:
                raise
            raise told from error
        return dseq

    async def _publish(self, create: Call, key: RentalKey) -> wire.Order:
        try:
            body = await self._console.send(
                "create", create, safe=False, timeout_s=CREATE_TIMEOUT_S
            )
            order = decode(SLUG, "create", body, wire.OrderReply).data
        except Unavailable as error:
            if not error.sent:
                raise
            raise OutcomeUnknown(SLUG, "rent", error.detail, key=key) from error
        except Malformed as error:
            raise OutcomeUnknown(SLUG, "rent", "the reply cannot be read", key=key) from error
        if order.signTx is not None and order.signTx.code:
            detail = f"transaction failed with {order.signTx.code}: {order.signTx.rawLog}"
            raise Refused(SLUG, "rent", detail[:200], code="tx_failed")
        return order

    async def _bidding(self, dseq: str, manifest: object) -> None:
        now = asyncio.get_running_loop().time
        began = now()
        failed: set[str] = set()
        while True:
            over_s = now() - began
            bids = await self._bids(dseq)
            for each in failed:
                bids.pop(each, None)
            picked = self._pick(bids) if over_s >= self._window_s else None
            if picked is not None:
                if await self._lease(dseq, manifest, bids[picked][0]):
                    return
                failed.add(picked)
                continue
            if over_s >= BIDS_WAIT_S:
                raise OfferGone(SLUG, "rent", f"none of {len(bids)} bids will do")
            await asyncio.sleep(min(BIDS_POLL_S, max(1.0, self._window_s / 4)))

    async def _bids(self, dseq: str) -> Bids:
        """Return the open bids; none where they cannot be had: the deadline ends the wait."""
        try:
            rows = parse_bids(await self._console.get("bids", "/v1/bids", {"dseq": dseq}))
        except Denied:
            raise  # nor will any other call get through
        except ProviderError:
            return {}
        in_akt = any(row.price.denom == "uakt" for row in rows)
        money = await self._console.money(needs_akt=in_akt)
        at = self._clock.now()
        found: Bids = {}
        for row in rows:
            host = self._hosts.get(row.id.provider)
            made = bid_offer(row, self._offer, host, money, at)
            if made is not None:
                found[row.id.provider] = (row, made)
        return found

    def _pick(self, bids: Bids) -> str | None:
        """Return the host whose bid is taken; None: none will do.

        Where nobody chooses it must be the host that was decided for, unless that was no one.
        """
        by_price = sorted(bids.items(), key=lambda each: (each[1][1].price_usd_per_hour, each[0]))
        if self._choose is not None:
            chosen = self._choose([made for _, (_, made) in by_price]) if by_price else None
            return chosen.host_id if chosen is not None else None
        owner, _ = offer_kind(self._offer)
        return next((who for who, _ in by_price if owner in (who, ANY_HOST)), None)

    async def _lease(self, dseq: str, manifest: object, bid: BidRow) -> bool:
        """Accept a bid; False: it cannot be had, and no lease was made. Safe to repeat."""
        lease = {
            "dseq": dseq,
            "gseq": bid.id.gseq,
            "oseq": bid.id.oseq,
            "provider": bid.id.provider,
        }
        body = {"manifest": manifest, "leases": [lease]}
        call = self._console.call("POST", "/v1/leases", body)
        for left in reversed(range(MANIFEST_TRIES)):
            try:
                reply = await self._console.send(
                    "lease", call, safe=True, timeout_s=LEASE_TIMEOUT_S
                )
                decode(SLUG, "lease", reply, dict[str, Any])
                return True
            except OfferGone:
                return False
            except Refused as error:
                if error.code != "manifest_not_delivered" or not left:
                    raise
            await asyncio.sleep(MANIFEST_PAUSE_S)  # the lease exists, and its host knows nothing
        return False

    async def _give_up(self, dseq: str, cause: ProviderError) -> ProviderError:
        """Close what was made, so that its deposit returns; return what to raise.

        What may be there still is named: after a cut connection a late effect may follow.
        """
        code = cause.code if isinstance(cause, Refused) else ""
        try:
            await self._console.close(dseq)
        except InstanceAbsent:
            return cause
        except ProviderError:
            return Refused(SLUG, "rent", cause.detail, code=code or "not_leased", instance_id=dseq)
        if isinstance(cause, OfferGone | Denied):
            return cause
        return Refused(SLUG, "rent", cause.detail, code=code or "not_leased", instance_id=dseq)
