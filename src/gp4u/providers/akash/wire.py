"""What all of Akash's surfaces share on the wire: money, ids, what a rent makes, and how to say no.

What this file hides: amounts per block in two currencies, numbers that are text, and the ways in
which a Console, a node and whatever stands before them refuse. All of it is pure. Prices and hosts
are read in `estimates.py`, bids in `bids.py`, deployments in `held.py`; which calls are made is in
`adapter.py`.

Source: `docs/reference/akash.md`, which names the document behind each fact; checked 2026-11.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from functools import lru_cache
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from gp4u.errors import (
    Denied,
    InstanceAbsent,
    Malformed,
    OfferGone,
    ProviderError,
    Refused,
    Throttled,
    Unavailable,
)
from gp4u.providers.http import UNREADABLE, Reply, excerpt, harmless, retry_after_s

SLUG: Final = "akash"
ANY_HOST: Final = "any"
"""Stands for the owner where an estimate is of the whole market."""
MICRO: Final = Decimal(1_000_000)
LEAST_USD_PER_HOUR: Final = Decimal("0.000001")
MOST_USD_PER_HOUR: Final = Decimal(10_000)
_MOST_AMOUNT: Final = Decimal(10**15)
"""More per block is no price, and would only overflow."""

Word = Annotated[str, Meta(max_length=256)]
Number = int | str
Dseq = Annotated[str, Meta(pattern=r"\A[0-9]{1,20}\Z")] | Annotated[int, Meta(ge=0)]
"""A deployment's number. Nodes are strangers, and it becomes part of paths at the Console."""


class Coin(msgspec.Struct, frozen=True, gc=False):
    """An amount as the chain writes it: decimal text and its unit."""

    denom: Word
    amount: Decimal


class Money(msgspec.Struct, frozen=True, kw_only=True):
    """How amounts per block become dollars per hour at one moment."""

    block_time_s: float
    akt_usd: Decimal | None = None
    """None: no exchange rate is known that is young enough."""

    @property
    def blocks_per_hour(self) -> Decimal:
        """600 for blocks of 6 s."""
        return _blocks_per_hour(self.block_time_s)

    @property
    def usd_per_hour_each(self) -> Mapping[str, Decimal]:
        """Unit to what one of it per block is in dollars per hour; without those it cannot tell."""
        each = self.blocks_per_hour / MICRO
        return (
            {"uact": each} if self.akt_usd is None else {"uact": each, "uakt": each * self.akt_usd}
        )

    def usd_per_hour(self, price: Coin) -> Decimal | None:
        """Return what an amount per block costs; None where its unit cannot be told in dollars."""
        return usd_per_hour(price, self.usd_per_hour_each)


def usd_per_hour(price: Coin, each: Mapping[str, Decimal]) -> Decimal | None:
    """Return what an amount per block costs, by `Money`'s rates; None where that is no price."""
    rate, amount = each.get(price.denom), price.amount
    if rate is None or not amount.is_finite() or amount > _MOST_AMOUNT:
        return None
    usd = amount * rate
    return usd if LEAST_USD_PER_HOUR <= usd <= MOST_USD_PER_HOUR else None


def is_price(usd: Decimal) -> bool:
    """Whether a number can be what something costs in $/h."""
    return usd.is_finite() and LEAST_USD_PER_HOUR <= usd <= MOST_USD_PER_HOUR


@lru_cache(maxsize=16)
def _blocks_per_hour(block_time_s: float) -> Decimal:
    return Decimal(3600) / Decimal(str(block_time_s))


class LeaseId(msgspec.Struct, frozen=True):
    """Which host serves which group: the end of the path of all its calls."""

    dseq: Dseq
    gseq: int
    oseq: int
    provider: Word


def lease_path(lease: LeaseId) -> str:
    """Return the path of a lease on its host's gateway."""
    return f"/lease/{lease.dseq}/{lease.gseq}/{lease.oseq}"


def dig(value: object, *names: str) -> Mapping[str, Any]:
    """Return a mapping inside of foreign data; an empty one where the way there is missing."""
    for name in names:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value if isinstance(value, Mapping) else {}


class SignTx(msgspec.Struct):
    """How the transaction behind a call ended; a code other than 0 is a failure."""

    code: int = 0
    rawLog: str | None = None  # noqa: N815 - the market's spelling


class Order(msgspec.Struct):
    """What a create call made."""

    dseq: Dseq
    manifest: str | None = None
    signTx: SignTx | None = None  # noqa: N815 - the market's spelling


class OrderReply(msgspec.Struct):
    """The same in its envelope."""

    data: Order


class _Done(msgspec.Struct):
    success: bool = True


class DoneReply(msgspec.Struct):
    """What a call says that changes something and makes nothing."""

    data: _Done | None = None


class BalanceData(msgspec.Struct):
    """What the account may spend."""

    balance: Decimal | None = None


class BalanceReply(msgspec.Struct):
    """The same in its envelope."""

    data: BalanceData


class MarketData(msgspec.Struct):
    """The price of AKT; other fields have always been 0."""

    price: Decimal


class _ErrorBody(msgspec.Struct):
    message: Any = None
    code: Any = None


_THROTTLED_CODES: Final = ("rate_limited", "balance_top_up_pending")
_ONE_DEPLOYMENT: Final = ("show", "release", "extend")


def judge(operation: str, reply: Reply) -> ProviderError | None:
    """Say what a reply of the Console or of a node means: its status, then its `code`."""
    status = reply.status
    if 200 <= status < 300:
        return None
    try:
        body = msgspec.json.decode(reply.content, type=_ErrorBody)
    except UNREADABLE:
        body = _ErrorBody()
    text = body.message if isinstance(body.message, str) else excerpt(reply.content)
    code = harmless(body.code, 64) if isinstance(body.code, str) else ""
    who = (SLUG, operation, f"HTTP {status}: {harmless(text, 200)}")
    if status == 429 or code in _THROTTLED_CODES:
        return Throttled(*who, retry_after_s=retry_after_s(reply))
    if status in (401, 403):
        return Denied(*who)
    if status == 402:
        broke = code == "insufficient_balance"
        return Refused(*who, code="insufficient_credit" if broke else code or "payment_required")
    if code == "manifest_not_delivered":
        return Refused(*who, code=code)
    if code == "provider_unreachable" and operation == "lease":
        return OfferGone(*who)
    if status == 501:
        return Malformed(SLUG, operation, f"wrong version of the API: {who[2]}")
    if status >= 500 or status == 408:
        return Unavailable(*who)
    if 300 <= status < 400:
        return Malformed(*who)
    if operation == "lease":
        return OfferGone(*who)  # the bid went stale, was closed, or another took it
    if status == 404 and operation in _ONE_DEPLOYMENT:
        return InstanceAbsent(*who)
    return Refused(*who, code=code or str(status))
