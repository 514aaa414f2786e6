"""What can go wrong between an adapter and its market, and which error each must become.

The tables are the contract's heart: who acts on a failure depends on its name alone. How a market
is made to fail is the business of whoever subclasses the suite; what is done with the errors that
come of it is checked in `contract.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Final, Protocol

import msgspec

from gp4u.errors import (
    CircuitBreakerOpen,
    Denied,
    Malformed,
    OfferGone,
    OutcomeUnknown,
    ProviderError,
    RateLimitExceeded,
    Throttled,
    Unavailable,
)
from gp4u.providers.contract import Provider


class Trouble(StrEnum):
    """What can go wrong between an adapter and its market."""

    NO_CONNECTION = "no_connection"
    """Nobody listens: not a byte left this machine."""
    LOST_BEFORE = "lost_before"
    """The connection dies on the way there; nothing happened."""
    LOST_REPLY = "lost_reply"
    """It happened, and the connection dies on the way back."""
    HANG = "hang"
    """Nothing happens and nothing is answered, for longer than any deadline."""
    SERVER_ERROR = "server_error"
    """A 5xx from something in front of the service; nothing happened."""
    THROTTLED = "throttled"
    """Asked too often, in this market's own words."""
    DENIED = "denied"
    """The key is refused, in this market's own words."""
    MALFORMED = "malformed"
    """It happened, and the reply is garbage with a status of success."""
    OFFER_GONE = "offer_gone"
    """Somebody else was faster; strikes a rent only."""
    LATE_LISTING = "late_listing"
    """What is rented shows later than it is made, within `settle_s`; strikes a rent only."""
    PARTIAL_PAGE = "partial_page"
    """A part of the list is left out; strikes a listing only."""


class Act(StrEnum):
    """What an adapter does; a trouble strikes the calls to the market that one of these needs."""

    PING = "ping"
    OFFERS = "offers"
    RENT = "rent"
    INSTANCES = "instances"
    RELEASE = "release"
    LOGS = "logs"


class Held(msgspec.Struct, frozen=True):
    """One thing that was ever rented, as the market itself knows it."""

    label: str | None
    costs: bool
    """It costs money now."""


class Market(Protocol):
    """An open adapter, and the market behind it."""

    @property
    def provider(self) -> Provider:
        """The adapter, built as in production: with its guard, its deadlines and its judge."""

    def strike(self, trouble: Trouble, act: Act) -> None:
        """Let a trouble hit every call that `act` needs, until `heal`."""

    def heal(self) -> None:
        """Take every trouble away."""

    async def truth(self) -> Sequence[Held]:
        """Return everything that was ever rented, as of now; no listing, no adapter."""


ONLY: Final = {
    Trouble.OFFER_GONE: Act.RENT,
    Trouble.LATE_LISTING: Act.RENT,
    Trouble.PARTIAL_PAGE: Act.INSTANCES,
}
"""The troubles that strike one act only."""


_AWAY: Final = (Unavailable, CircuitBreakerOpen)
READ: Final[Mapping[Trouble, tuple[type[ProviderError], ...]]] = {
    Trouble.NO_CONNECTION: _AWAY,
    Trouble.LOST_BEFORE: _AWAY,
    Trouble.LOST_REPLY: _AWAY,
    Trouble.HANG: _AWAY,
    Trouble.SERVER_ERROR: _AWAY,
    Trouble.THROTTLED: (Throttled, RateLimitExceeded),
    Trouble.DENIED: (Denied,),
    Trouble.MALFORMED: (Malformed,),
}
"""The troubles that can strike every act, and what a call that changes nothing must raise."""
RENT: Final[Mapping[Trouble, tuple[type[ProviderError], ...]]] = {
    **READ,
    Trouble.LOST_BEFORE: (OutcomeUnknown,),
    Trouble.LOST_REPLY: (OutcomeUnknown,),
    Trouble.HANG: (OutcomeUnknown,),
    Trouble.SERVER_ERROR: (OutcomeUnknown,),
    Trouble.MALFORMED: (OutcomeUnknown,),
    Trouble.OFFER_GONE: (OfferGone,),
}
"""What a rent must raise; after a byte has left, a silence proves nothing."""
TOOK_EFFECT: Final = (Trouble.LOST_REPLY, Trouble.MALFORMED)
"""The troubles in which the market did what it was asked for, and only its reply is bad."""
