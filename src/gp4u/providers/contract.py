"""What a provider is: seven calls, its facts as data, and what each error means here.

An adapter knows one market's dialect and nothing else. Retry, pacing, caching, scoring, metrics
and logging happen around it (`http.py`, `resilience/guard.py`, `book.py`), never in it.

The method that matters most is `instances`: one call per provider and tick feeds every rental, and
it is the only thing that can prove that a machine is gone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from decimal import Decimal
from enum import Flag, auto
from typing import ClassVar

import msgspec

from gp4u.model import Listing, Offer, RentalKey, Requirements, Workload
from gp4u.resilience.bucket import Pace


class Ability(Flag):
    """What a provider can do; consumers ask here instead of trying."""

    NONE = 0
    LABELS = auto()
    """Instances carry our key, so they can be found again. Without it a provider is quote-only."""
    PORTS = auto()
    """Container ports are reachable from outside."""
    LOGS = auto()
    EXEC = auto()
    COMMAND = auto()
    """The image's command can be replaced."""
    INTERRUPTIBLE = auto()
    BILL = auto()
    """Tells what an instance has cost so far."""
    MULTI_CONTAINER = auto()


class ProviderSpec(msgspec.Struct, frozen=True, kw_only=True):
    """The facts about a provider that others need; no behaviour."""

    slug: str
    title: str
    env: str
    """Prefix of its variables: `VASTAI` makes `VASTAI_API_KEY`, `VASTAI_BASE_URL`, ..."""
    base_url: str
    rate_limit_per_min: int
    key_url: str
    """The page where a key is made."""
    key_aliases: tuple[str, ...] = ()
    key_required: bool = True
    settle_s: float = 30.0
    """How long after our last call a listing may still be blind to its effect."""
    bill_lag_s: float = 0.0
    """How long after the end of an instance its bill may still grow."""
    late_window_s: float = 120.0
    """How long a lost rent call may still take effect. Patience is this plus `settle_s`."""
    paces: Mapping[str, Pace] = msgspec.field(default_factory=dict)
    """Endpoint name to the interval that the provider documents; holds under the rate limit."""
    can: Ability = Ability.NONE


class Query(msgspec.Struct, frozen=True, kw_only=True, cache_hash=True):
    """What the book asks a provider for: a demand's hard bounds, as far as they shape a search."""

    requirements: Requirements


class OfferPage(msgspec.Struct, frozen=True, kw_only=True):
    """What a search brought."""

    offers: tuple[Offer, ...]
    complete: bool = True
    """False: the provider has more rows for this query than it will show."""
    skipped_rows: int = 0
    """Rows that broke their schema."""


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """An HTTP call that has not been sent: what `--dry-run` prints and `rent` sends."""

    method: str
    url: str
    body: Mapping[str, object] | None = None


class Account(msgspec.Struct, frozen=True, kw_only=True):
    """What a ping tells about whose key this is."""

    id: str = ""
    """What tells accounts apart; empty where the provider does not say."""
    name: str = ""
    credit_usd: Decimal | None = None
    """Spendable money; None where the provider does not say."""


class Provider(ABC):
    """One marketplace. Each method is one exchange; none retries, sleeps, caches or logs.

    Every method may raise `Unavailable`, `Throttled`, `Denied`, `Malformed`, `CircuitBreakerOpen`
    and `RateLimitExceeded`; what else it raises is said at the method.
    """

    spec: ClassVar[ProviderSpec]

    @abstractmethod
    async def ping(self) -> Account:
        """Prove that the key works with the cheapest call there is."""

    @abstractmethod
    async def offers(self, query: Query) -> OfferPage:
        """Search; prices are all-in for the query's disk and in its kind (bid or on demand)."""

    @abstractmethod
    def rent_calls(self, offer: Offer, workload: Workload, key: RentalKey) -> tuple[Call, ...]:
        """Return the calls that `rent` would send, in order. Pure."""

    @abstractmethod
    async def rent(self, offer: Offer, workload: Workload, key: RentalKey) -> str:
        """Start paying for the offer under our key; return the instance id. Sent at most once.

        Raises:
            OfferGone: nothing was rented, another candidate may do.
            Refused: declined; where `instance_id` is set, something was made all the same.
            OutcomeUnknown: it may have worked; only a listing settles it.
        """

    @abstractmethod
    async def instances(self) -> Listing:
        """List everything the account holds, ours or not, through all pages."""

    @abstractmethod
    async def release(self, instance_id: str) -> None:
        """Stop paying. Success only means that the provider heard us; a listing proves the rest.

        Raises:
            InstanceAbsent: there is no such instance.
        """

    @abstractmethod
    async def logs(self, instance_id: str, *, tail: int = 1000) -> str:
        """Return the newest `tail` lines that the workload printed; empty where there are none.

        Raises:
            InstanceAbsent: there is no such instance.
        """

    async def billed(self, instance_id: str) -> Decimal | None:
        """Return what the provider has charged for it so far; None where it cannot tell."""
        del instance_id
        return None

    async def aclose(self) -> None:  # noqa: B027 - not every market holds connections
        """Give up the connections."""
