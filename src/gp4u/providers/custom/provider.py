"""`BaseProvider`: a market of one's own in two methods, as the first seed shows it.

Somebody derives a class, says in `fetch_gpus` what to ask and in `normalize_gpu_data` what a row
means, and registers an object of it. This file makes a `Provider` of that, one that is quoted and
not rented from: calls leave by the guard, rows become offers, and a bug in either method is that
market's trouble and nobody else's. Which markets there are is `registry.py`'s part, what a row must
hold that of `rows.py`.

A market that is also rented from is a class derived from `Provider`, with an `Opening`.
"""

from __future__ import annotations

import asyncio
import logging
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

from gp4u.clock import Clock
from gp4u.errors import (
    BadInput,
    CircuitBreakerOpen,
    Malformed,
    ProviderError,
    Refused,
    Unavailable,
)
from gp4u.model import Listing, Offer, RentalKey, Workload
from gp4u.provider_settings import ProviderSettings
from gp4u.providers.contract import (
    Account,
    Call,
    Choose,
    OfferPage,
    Provider,
    ProviderSpec,
    Query,
)
from gp4u.providers.custom.client import OPERATION, Client, judge_for
from gp4u.providers.custom.rows import Made, to_offer
from gp4u.providers.http import harmless
from gp4u.providers.opening import Wire, key_of
from gp4u.providers.turns import in_turns
from gp4u.resilience.breaker import BreakerState
from gp4u.resilience.guard import Guard
from gp4u.settings import Settings

SLUG: Final = re.compile(r"[a-z][a-z0-9_-]{0,30}")
FETCH_S: Final = 120.0
"""Deadline of a whole `fetch_gpus`, however many calls it makes."""
MOST_TOLD: Final = 10
"""Reasons that are kept of one fetch."""
_QUOTED: Final = "is quoted only: its class does not say how to rent"

_log = logging.getLogger(__name__)


class BaseProvider(Provider):
    """A market that is compared with the others; derive from it and write the first two methods."""

    def __init__(
        self,
        name: str,
        *,
        title: str = "",
        base_url: str = "",
        rate_limit_per_min: int = 60,
        key_required: bool = False,
        key_url: str = "",
    ) -> None:
        """`name` is the market's slug; `MY_PROVIDER_...` are the variables of `my_provider`.

        `base_url`, `rate_limit_per_min` and `key_url` (the page where a key is made) are what holds
        where its variables say nothing. With `key_required` it stays closed until
        `MY_PROVIDER_API_KEY` is set.

        Raises:
            BadInput: no slug can look like this.
        """
        if not isinstance(name, str) or not SLUG.fullmatch(name):
            bound = "must be lower-case letters, digits, - and _, a letter first, at most 31"
            raise BadInput("provider", harmless(str(name), 40), bound)
        self.spec = ProviderSpec(  # type: ignore[misc] # this class learns its market only here
            slug=name,
            title=title or name,
            env=name.upper().replace("-", "_"),
            base_url=base_url,
            rate_limit_per_min=rate_limit_per_min,
            key_url=key_url,
            key_required=key_required,
            quoted_only=_QUOTED,
        )
        self.name = name
        self.base_url = base_url
        self.api_key = ""
        self.client = Client(name, lambda: self.base_url)
        self.skipped: tuple[str, ...] = ()
        """What was wrong with rows of the newest fetch: the first reasons, for people."""
        self._guard: Guard | None = None
        self._clock: Clock | None = None

    async def fetch_gpus(self) -> Sequence[Any]:
        """Return the market's rows, each as `normalize_gpu_data` takes it; ask by `self.client`."""
        raise NotImplementedError(f"{type(self).__name__} does not say how to fetch_gpus")

    def normalize_gpu_data(self, raw: Any, /) -> Mapping[str, Any]:
        """Return a row in the words of `docs/howto/add-a-provider.md`.

        An exception skips the row, and is told.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say how to normalize_gpu_data")

    def _calculate_g_score(self, raw: Any, /) -> float:
        """Return NaN: a class may ask, and the score is not its to give.

        One formula scores the offers of every market, after they are comparable.
        """
        del raw
        return math.nan

    def connect(
        self, own: ProviderSettings, _settings: Settings, clock: Clock, wire: Wire
    ) -> BaseProvider:
        """Take what the settings say, and a way out; return this.

        What a variable says goes before what the class itself has set.
        """
        if key := key_of(own):
            self.api_key = key
        if own.base_url != self.spec.base_url:
            self.base_url = own.base_url
        self._clock = clock
        self.client.open(lambda: wire(judge_for(self.name), {}))
        return self

    def go_by(self, guard: Guard) -> None:
        """Be told the guard that `self.client` goes by."""
        super().go_by(guard)
        self._guard = guard

    @property
    def is_open(self) -> bool:
        """Whether an app has it open."""
        return self._clock is not None

    async def ping(self) -> Account:
        """Fetch once: there is no cheaper call that proves that the market answers."""
        await self._fetch(self._opened().guard)
        return Account()

    async def offers(self, query: Query) -> OfferPage:
        """Return all that the class brings; which of it suits a demand is said later.

        Raises:
            Malformed: `fetch_gpus` failed, or not one of its rows can be read.
        """
        opened = self._opened()
        listings = await self._fetch(opened.guard)
        disk_gib = query.requirements.disk_gib
        read = await in_turns(self._read(listings, opened.clock.now(), disk_gib))
        offers = tuple(each.offer for each in read if isinstance(each, Made))
        bad = len(read) - len(offers)
        reasons = (each.remark if isinstance(each, Made) else str(each) for each in read)
        told = [f"row {number}: {why}" for number, why in enumerate(reasons) if why]
        self._tell(told, bad, len(read))
        if bad and not offers:
            raise Malformed(self.name, OPERATION, f"none of {bad} rows can be read; {told[0]}")
        return OfferPage(offers=offers, skipped_rows=bad)

    def rent_calls(self, offer: Offer, workload: Workload, key: RentalKey) -> tuple[Call, ...]:
        """Raise.

        Raises:
            BadInput: always.
        """
        del offer, workload, key
        raise BadInput("provider", self.name, _QUOTED)

    async def rent(
        self, offer: Offer, workload: Workload, key: RentalKey, *, choose: Choose | None = None
    ) -> str:
        """Raise `Refused`."""
        del offer, workload, key, choose
        raise Refused(self.name, "rent", _QUOTED, code="unlabelled")

    async def instances(self) -> Listing:
        """Return nothing, and that it proves nothing."""
        return Listing(
            provider=self.name,
            instances=(),
            complete=False,
            began_at=self._opened().clock.now(),
            why_incomplete=_QUOTED,
        )

    async def release(self, instance_id: str) -> None:
        """Raise `Refused`."""
        raise Refused(self.name, "release", f"{instance_id}: {_QUOTED}", code="unsupported")

    async def logs(
        self, instance_id: str, *, tail: int = 1000, container: str | None = None
    ) -> str:
        """Raise `Refused`."""
        del tail, container
        raise Refused(self.name, "logs", f"{instance_id}: {_QUOTED}", code="unsupported")

    async def aclose(self) -> None:
        """Give up the connections; afterwards it may be opened anew."""
        self._clock = None
        await self.client.aclose()

    def _opened(self) -> _Opened:
        if self._guard is None or self._clock is None:
            raise BadInput("provider", self.name, "is not open: register it, and open an app")
        return _Opened(self._guard, self._clock)

    async def _fetch(self, guard: Guard) -> Sequence[Any]:
        """Run `fetch_gpus` to its end; what goes wrong in it is an error of this market.

        Calls by `self.client` are counted as they are made. A fetch that made none is counted as
        one, so that a class that asks in another way can be found ill as well.
        """
        breaker = guard.health().breaker
        if breaker.state is BreakerState.OPEN:
            raise CircuitBreakerOpen(self.name, OPERATION, retry_in_s=breaker.retry_in_s)
        calls = self.client.calls
        outcome: ProviderError | None = None
        listings: Sequence[Any] = ()
        try:
            async with asyncio.timeout(FETCH_S):
                listings = _rows(await self.fetch_gpus())
        except ProviderError as error:
            if self.client.calls > calls:
                raise
            outcome = error
        except TimeoutError:
            outcome = Unavailable(self.name, OPERATION, f"fetch_gpus took over {FETCH_S:g} s")
        except Exception as error:  # noqa: BLE001 - a rim: a market's bug must not become the book's
            outcome = Malformed(self.name, OPERATION, f"fetch_gpus failed: {self._said(error)}")
        if outcome is None and self.client.calls > calls:
            return listings

        async def counted() -> Sequence[Any]:
            if outcome is not None:  # of a kind that the guard counts, and does not repeat
                raise Malformed(self.name, OPERATION)
            return listings

        try:
            return await guard.call(counted, endpoint="fetch", safe=True, timeout_s=FETCH_S)
        except Malformed as error:
            raise outcome or error from None

    def _read(
        self, listings: Sequence[Any], at: datetime, disk_gib: float
    ) -> Iterator[Made | BadInput]:
        """Yield an offer for each row, or what is wrong with it."""
        seen: set[str] = set()
        for number, raw in enumerate(listings):
            try:
                row = self.normalize_gpu_data(raw)
                made = to_offer(self.name, row, number=number, at=at, disk_gib=disk_gib)
                if made.offer.offer_id in seen:
                    raise BadInput("id", made.offer.offer_id, "must be the row's own")
            except BadInput as error:
                yield error
            except Exception as error:  # noqa: BLE001 - a rim: one row's bug must not hide the others
                yield BadInput("row", number, f"normalize_gpu_data failed: {self._said(error)}")
            else:
                seen.add(made.offer.offer_id)
                yield made

    def _said(self, error: Exception) -> str:
        text = f"{type(error).__name__}: {error}"
        return harmless(text.replace(self.api_key, "[redacted]") if self.api_key else text)

    def _tell(self, told: Sequence[str], bad: int, rows: int) -> None:
        """Keep the reasons, and log when they begin and when they end."""
        if told and not self.skipped:
            more = f" and {len(told) - 1} more" if len(told) > 1 else ""
            _log.warning("%s: %d of %d rows skipped; %s%s", self.name, bad, rows, told[0], more)
        elif self.skipped and not told:
            _log.info("%s: every row can be read again", self.name)
        self.skipped = tuple(told[:MOST_TOLD])


class _Opened(NamedTuple):
    """What an open market has."""

    guard: Guard
    clock: Clock


def _rows(brought: object) -> Sequence[Any]:
    if isinstance(brought, Mapping) or not isinstance(brought, Iterable):
        raise TypeError(f"it returned {type(brought).__name__}, and not a list of rows")
    return list(brought)
