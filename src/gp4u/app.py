"""The composition root: the one place that builds objects, hands each what it needs, and owns the
task group. Everything else receives its collaborators by name.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from random import Random, SystemRandom

import httpx2

from gp4u.book import Book, TtlPolicy
from gp4u.clock import Clock, SystemClock
from gp4u.desk.local import LocalDesk
from gp4u.desk.telling import stored_decision
from gp4u.errors import Denied, ProviderError
from gp4u.metrics import Metrics
from gp4u.model import InstanceState
from gp4u.providers.contract import Provider
from gp4u.providers.http import Observe
from gp4u.providers.registry import Registry, get_provider_registry
from gp4u.rentals.broker import Broker
from gp4u.rentals.budget import Budget
from gp4u.rentals.history import PriceHistory
from gp4u.rentals.ledger import Ledger, open_ledger
from gp4u.rentals.plan import Release, ReleaseOrphan, make_policy
from gp4u.rentals.probe import Prober
from gp4u.rentals.reconcile import Reconciler, Tick
from gp4u.rentals.rental import RentalState
from gp4u.rentals.traced import TracedBroker
from gp4u.resilience.guard import Guard
from gp4u.settings import Settings
from gp4u.traces import Traces

BUSY_TICK_S = 5.0
"""Between two looks at a provider while something of ours is starting or being released there."""
QUIET_TICK_S = 30.0
DENIED_TICK_S = 300.0
"""A refused key is tried again only this often."""


@dataclass(frozen=True, slots=True)
class App:
    """The open parts. `disabled` says of each market that is not open why not."""

    settings: Settings
    clock: Clock
    providers: Mapping[str, Provider]
    guards: Mapping[str, Guard]
    disabled: Mapping[str, str]
    book: Book
    ledger: Ledger
    reconciler: Reconciler
    broker: Broker
    history: PriceHistory
    budget: Budget
    desk: LocalDesk
    metrics: Metrics | None
    turned_at: dict[str, float] = field(default_factory=dict)
    """Market to the loop time at which its reconcile loop last came round."""

    def beats(self) -> Mapping[str, Callable[[], float]]:
        """Return background part to a question: how many seconds ago did it last come round?"""

        def since(slug: str) -> Callable[[], float]:
            now = asyncio.get_running_loop().time
            began = now()
            return lambda: now() - self.turned_at.get(slug, began)

        return {f"reconcile {slug}": since(slug) for slug in self.providers}

    async def run(self, *also: Callable[[], Awaitable[None]]) -> None:
        """Reconcile every open market until cancelled, beside whatever else is given.

        Raises:
            LedgerLocked: another process does this for the same ledger.
        """
        async with self.ledger.hold():
            await self.reconciler.recall_bills()
            async with asyncio.TaskGroup() as group:
                for slug in self.providers:
                    group.create_task(self._reconcile(slug))
                for part in also:
                    group.create_task(_awaited(part))

    async def _reconcile(self, slug: str) -> None:
        import structlog  # 60 ms that only a process that stays has to pay

        log = structlog.get_logger().bind(provider=slug)
        trouble = ""
        told: set[str] = set()
        while True:
            self.turned_at[slug] = asyncio.get_running_loop().time()
            pause_s = QUIET_TICK_S
            try:
                tick = await self.reconciler.tick(slug)
                busy = await self._is_busy(slug, tick)
            except ProviderError as error:
                if not trouble:
                    log.warning("listing_failed", error=str(error))
                trouble = str(error)
                pause_s = DENIED_TICK_S if isinstance(error, Denied) else BUSY_TICK_S
            except Exception:
                # A rim: one market's bug must not stop the others' sweep. Told when it begins.
                if trouble != "bug":
                    log.exception("tick_failed")
                trouble = "bug"
                pause_s = BUSY_TICK_S
            else:
                if trouble:
                    log.info("listing_works_again")
                trouble = ""
                for problem in sorted(set(tick.problems) - told):
                    log.warning("action_failed", error=problem)
                told = set(tick.problems)
                self._count(slug, tick)
                if busy:
                    pause_s = BUSY_TICK_S
            await asyncio.sleep(pause_s)

    def _count(self, slug: str, tick: Tick) -> None:
        if self.metrics is None:
            return
        self.metrics.foreign_instances(slug, len(tick.foreign))
        for action in tick.actions:
            match action:
                case ReleaseOrphan():
                    self.metrics.orphan_released(slug)
                case Release(duplicate=True):
                    self.metrics.double_rent(slug)
                case _:
                    pass

    async def _is_busy(self, slug: str, tick: Tick) -> bool:
        if tick.orphans or tick.problems or not tick.listing.complete:
            return True
        rentals = await self.ledger.open_rentals(slug)
        return any(
            r.state is not RentalState.RUNNING or r.seen is not InstanceState.RUNNING
            for r in rentals
        )


def _rate_of(guard: Guard) -> Callable[[], float]:
    return lambda: guard.success_rate


async def greetings(providers: Mapping[str, Provider]) -> Mapping[str, ProviderError | None]:
    """Ask every market for the first time, all at once; return why each did not answer, or None."""
    outcomes: dict[str, ProviderError | None] = dict.fromkeys(providers)

    async def greet(slug: str) -> None:
        try:
            await providers[slug].ping()
        except ProviderError as error:
            outcomes[slug] = error
        except Exception:  # noqa: BLE001 - a rim: one market's bug must not stop the others
            import structlog  # 60 ms that only trouble costs

            structlog.get_logger().bind(provider=slug).exception("greeting_failed")
            outcomes[slug] = ProviderError(slug, "ping", "failed in a way that nobody foresaw")

    async with asyncio.TaskGroup() as group:
        for slug in providers:
            group.create_task(greet(slug))
    return outcomes


def _observer(metrics: Metrics | None, traces: Traces | None) -> Observe | None:
    count = metrics.provider_call if metrics else None
    return traces.observing(count) if traces else count


async def _awaited(part: Callable[[], Awaitable[None]]) -> None:
    await part()


@asynccontextmanager
async def open_app(
    settings: Settings,
    *,
    clock: Clock | None = None,
    random: Random | None = None,
    transport: httpx2.AsyncBaseTransport | None = None,
    metrics: Metrics | None = None,
    traces: Traces | None = None,
    registry: Registry | None = None,
) -> AsyncIterator[App]:
    """Build everything from settings, and close it in the end. Nothing is sent yet.

    `registry` says which markets there are; None is the one of this process. `clock`, `random` and
    `transport` (for provider calls and probes) are for tests, which drive all three.

    Raises:
        BadInput: a setting does not fit.
        LedgerUnusable: the ledger cannot be opened.
    """
    clock = clock or SystemClock()
    random = random or SystemRandom()
    secret = settings.installation_secret
    async with AsyncExitStack() as stack:
        ledger = await stack.enter_async_context(
            open_ledger(
                settings.database_url,
                installation_secret=secret.get_secret_value().encode() if secret else None,
            )
        )
        known = registry or get_provider_registry()
        opened = await stack.enter_async_context(
            known.opened(
                settings,
                clock=clock,
                random=random,
                transport=transport,
                observe=_observer(metrics, traces),
            )
        )
        prober = Prober(allow_loopback=settings.allow_loopback, transport=transport)
        stack.push_async_callback(prober.aclose)
        book = Book(
            opened.providers,
            {slug: _rate_of(guard) for slug, guard in opened.guards.items()},
            ttl=TtlPolicy(
                base_s=settings.cache.ttl_s,
                max_s=settings.cache.max_ttl_s,
                min_s=settings.cache.min_ttl_s,
                enabled=settings.cache.enabled,
            ),
            clock=clock,
        )
        reconciler = Reconciler(
            providers=opened.providers,
            ledger=ledger,
            prober=prober,
            policies={
                slug: make_policy(
                    provider.spec,
                    settle_s=opened.own[slug].settle_s,
                    late_window_s=opened.own[slug].late_window_s,
                    bill_lag_s=opened.own[slug].bill_lag_s,
                    rent_timeout_s=settings.rent_timeout_s,
                    boot_timeout_s=settings.boot_timeout_s,
                    orphan_grace_s=settings.orphan_grace_s,
                )
                for slug, provider in opened.providers.items()
            },
            logins=opened.logins,
            clock=clock,
        )
        budget = Budget(
            usd_per_hour=settings.budget.usd_per_hour,
            usd_per_day=settings.budget.usd_per_day,
            max_rentals=settings.budget.max_rentals,
        )
        broker = (Broker if traces is None else partial(TracedBroker, traces))(
            providers=opened.providers,
            book=book,
            ledger=ledger,
            reconciler=reconciler,
            clock=clock,
            random=random,
            max_offer_age_s=settings.max_offer_age_s,
            allow_unlabelled=settings.allow_unlabelled,
            budget=budget,
            encode=stored_decision,
        )
        history = PriceHistory(ledger.database, keep=timedelta(days=settings.price_history_days))
        desk = LocalDesk(
            providers=opened.providers,
            guards=opened.guards,
            disabled=opened.disabled,
            specs=known.specs,
            book=book,
            broker=broker,
            reconciler=reconciler,
            ledger=ledger,
            history=history,
            clock=clock,
            secrets=settings.secrets(),
        )
        yield App(
            settings=settings,
            clock=clock,
            providers=opened.providers,
            guards=opened.guards,
            disabled=opened.disabled,
            book=book,
            ledger=ledger,
            reconciler=reconciler,
            broker=broker,
            history=history,
            budget=budget,
            desk=desk,
            metrics=metrics,
        )
