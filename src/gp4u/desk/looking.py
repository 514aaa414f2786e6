"""One look at the markets for everybody who wants one at the same time.

Hides that a look is a reconcile of each market: it lists instances, moves rentals and finds what
nothing explains. A hundred callers who want to see their rentals at once cost each market one call.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from gp4u.desk.shapes import UnexplainedShape, unexplained_shape
from gp4u.errors import (
    CircuitBreakerOpen,
    Denied,
    LedgerUnusable,
    ProviderError,
    RateLimitExceeded,
    Throttled,
    Unavailable,
)
from gp4u.telemetry import clean

if TYPE_CHECKING:
    from gp4u.rentals.reconcile import Reconciler, Tick

_GRAVITY: Final = ("provider_failed", "provider_denied", "provider_unavailable")
"""Codes of why a market could not be asked, the gravest last."""


class Seen(Struct, frozen=True, kw_only=True):
    """What one look at some markets brought."""

    unexplained: Sequence[UnexplainedShape]
    warnings: Sequence[str]
    errors: Sequence[str]
    """Of the warnings those that say why a market could not be asked, in its own words."""
    failed: str | None
    """Code of the gravest reason why a market could not be asked."""
    trouble: ProviderError | None
    """The last of them."""


class Looks:
    """Looks at markets, one look per market at a time, whoever wants it."""

    def __init__(self, reconciler: Reconciler) -> None:
        self._reconciler = reconciler
        self._going: dict[str, asyncio.Future[Tick]] = {}

    async def at(self, slugs: Sequence[str]) -> Seen:
        """Reconcile these markets once, side by side; trouble is told, and stops none of them.

        Raises:
            LedgerUnusable: the ledger is in trouble, not a market.
        """
        outcomes: dict[str, Tick | ProviderError] = {}
        ours: list[LedgerUnusable] = []

        async def look(slug: str) -> None:
            try:
                outcomes[slug] = await self._shared(slug)
            except ProviderError as error:
                outcomes[slug] = error
            except LedgerUnusable as error:
                ours.append(error)  # raised below: here it would come out wrapped in a group

        async with asyncio.TaskGroup() as group:
            for slug in slugs:
                group.create_task(look(slug))
        if ours:
            raise ours[0]
        return _seen([(slug, outcomes[slug]) for slug in slugs])

    async def _shared(self, slug: str) -> Tick:
        """Return the tick that is under way, or make one.

        Raises:
            ProviderError: the listing failed.
        """
        while (going := self._going.get(slug)) is not None:
            await asyncio.wait([going])  # awaited itself, it would be cancelled with one who waits
            if not going.cancelled():
                return going.result()
            # Whoever made it went away in the middle of it: somebody else begins anew.
        going = self._going[slug] = asyncio.get_running_loop().create_future()
        try:
            tick = await self._reconciler.tick(slug)
        except BaseException as error:
            if isinstance(error, ProviderError):
                going.set_exception(error)
                going.exception()  # heard here, should nobody else have waited for it
            raise
        else:
            going.set_result(tick)
            return tick
        finally:
            del self._going[slug]
            going.cancel()


def failure_of(error: ProviderError) -> str:
    """Return the code of why a market could not be asked."""
    match error:
        case Denied():
            return "provider_denied"
        case Unavailable() | Throttled() | CircuitBreakerOpen() | RateLimitExceeded():
            return "provider_unavailable"
        case _:
            return "provider_failed"


def _seen(outcomes: Sequence[tuple[str, Tick | ProviderError]]) -> Seen:
    unexplained: list[UnexplainedShape] = []
    warnings: list[str] = []
    errors: list[ProviderError] = []
    for slug, outcome in outcomes:
        if isinstance(outcome, ProviderError):
            errors.append(outcome)
            warnings.append(f"{clean(str(outcome), 400)}; its rentals are shown as last seen")
            continue
        warnings += [clean(problem, 400) for problem in outcome.problems]
        if outcome.elsewhere:
            accounts = ", ".join(sorted({clean(r.account, 40) for r in outcome.elsewhere}))
            warnings.append(
                f"{slug}: {len(outcome.elsewhere)} of its rentals are paid by another account "
                f"({accounts}) and are shown as last seen"
            )
        orphans = [(orphan.instance, orphan.key) for orphan in outcome.orphans]
        unexplained += [unexplained_shape(slug, one, "orphan", key) for one, key in orphans]
        unexplained += [unexplained_shape(slug, i, "foreign", i.label) for i in outcome.foreign]
    return Seen(
        unexplained=unexplained,
        warnings=warnings,
        errors=[clean(str(error), 400) for error in errors],
        failed=max((failure_of(error) for error in errors), key=_GRAVITY.index, default=None),
        trouble=errors[-1] if errors else None,
    )
