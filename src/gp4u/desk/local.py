"""The desk that answers from the open parts of this process.

Hides broker, reconciler, book and ledger from whoever asks: they see shapes and our exceptions. It
adds no rule of its own; it words what could not be found out, hides secrets in what is only shown,
and lets many who want the same look share one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from gp4u.desk.desk import NoOfferFits, Tell
from gp4u.desk.looking import Looks
from gp4u.desk.redacting import hidden_calls, without_secrets
from gp4u.desk.shapes import (
    DecisionShape,
    DryRunShape,
    FinishedShape,
    LookShape,
    MarketShape,
    PricePointShape,
    PriceSeriesShape,
    PricesShape,
    RentalShape,
    UnexplainedShape,
    offer_shape,
    rental_shape,
)
from gp4u.desk.telling import STORED_TOP, Teller, decision_shape, told_decision
from gp4u.errors import (
    BadInput,
    MarketClosed,
    NoSuch,
    NothingFits,
    OwnerHasRental,
)
from gp4u.model import Decision, Demand, Workload
from gp4u.providers.contract import Ability, Provider, ProviderSpec, Query
from gp4u.rentals.rental import Rental
from gp4u.telemetry import clean

if TYPE_CHECKING:
    from gp4u.book import Book
    from gp4u.clock import Clock
    from gp4u.rentals.broker import Broker, Progress
    from gp4u.rentals.history import PriceHistory, PricePoint
    from gp4u.rentals.ledger import Ledger
    from gp4u.rentals.reconcile import Reconciler
    from gp4u.resilience.guard import Guard

NOT_HERE: Final = "no such market in this version"
_NAMING_DASHES: Final = 2
"""What stands before the second dash is the same in every key of an installation."""
_DRY_RUN_TOP: Final = 3


class LocalDesk:
    """Implements `Desk`; see the module's docstring."""

    def __init__(
        self,
        *,
        providers: Mapping[str, Provider],
        guards: Mapping[str, Guard],
        disabled: Mapping[str, str],
        specs: Mapping[str, ProviderSpec],
        book: Book,
        broker: Broker,
        reconciler: Reconciler,
        ledger: Ledger,
        history: PriceHistory,
        clock: Clock,
        secrets: Sequence[str],
    ) -> None:
        """`disabled` says of each market that is not open why; `specs` also has those, for titles.

        `secrets` are the values that no dry run may show.
        """
        self._providers, self._guards, self._disabled = providers, guards, disabled
        self._specs, self._book, self._broker = specs, book, broker
        self._reconciler, self._ledger, self._history = reconciler, ledger, history
        self._clock, self._secrets = clock, tuple(secrets)
        self._looks = Looks(reconciler)

    async def markets(self) -> Sequence[MarketShape]:
        """See `Desk.markets`."""
        slugs = dict.fromkeys([*self._specs, *self._providers, *self._disabled])
        there = [slug for slug in slugs if slug in self._providers or slug in self._disabled]
        return [self._market(slug) for slug in there]

    async def decide(
        self, demand: Demand, *, top: int | None, rejections: bool, tell: Tell
    ) -> DecisionShape:
        """See `Desk.decide`.

        Raises:
            MarketClosed: none of the wanted markets is open.
        """
        self._need_markets(demand)
        teller = Teller()
        decision = await self._broker.decide(
            demand, tell=lambda progress: tell(teller.step(progress, self._clock.now()))
        )
        if decision.best is None:
            decision = await self._with_reasons(decision)
        return await told_decision(decision, top=top, rejections=rejections, denied=self._denied())

    async def dry_run(self, demand: Demand, workload: Workload) -> DryRunShape:
        """See `Desk.dry_run`."""
        self._need_markets(demand)
        # Before the calls are made: a market may put the environment into a text of its own.
        decision, first, calls = await self._broker.dry_run(demand, without_secrets(workload))
        if first is None:
            decision = await self._with_reasons(decision)
        return DryRunShape(
            decision=decision_shape(
                decision, top=_DRY_RUN_TOP, rejections=False, denied=self._denied()
            ),
            offer=None if first is None else offer_shape(first.offer),
            calls=hidden_calls(calls, workload, self._secrets),
        )

    async def rent(
        self, owner: str, demand: Demand, workload: Workload, *, wait: bool, tell: Tell
    ) -> RentalShape:
        """See `Desk.rent`.

        Raises:
            MarketClosed: none of the wanted markets is open.
        """
        for held in await self._ledger.open_rentals():
            if held.owner == owner and held.is_live:
                raise OwnerHasRental(owner, held.key)
        self._need_markets(demand)
        teller = Teller(self._denied())

        def told(progress: Progress) -> None:
            tell(teller.step(progress, self._clock.now()))

        try:
            rental = await self._broker.rent(owner, demand, workload, wait=wait, tell=told)
        except NothingFits as error:
            decision = await self._with_reasons(error.decision)
            shape = decision_shape(
                decision, top=STORED_TOP, rejections=False, denied=self._denied()
            )
            raise NoOfferFits(shape) from error
        return rental_shape(rental, self._clock.now())

    async def look(self, *, everything: bool, ask: bool) -> LookShape:
        """See `Desk.look`."""
        seen = await self._looks.at(tuple(self._providers) if ask else ())
        found = await (self._ledger.all_rentals() if everything else self._ledger.open_rentals())
        failed = seen.failed
        warnings = list(seen.warnings)
        if ask:
            held_at = {rental.provider for rental in await self._ledger.open_rentals()}
            warnings += [
                f"{slug}: {self._why(slug)}; its rentals are shown as last seen"
                for slug in sorted(held_at.difference(self._providers))
            ]
            if any(r.is_open and r.provider not in self._providers for r in found):
                failed = "market_closed"
        at = self._clock.now()
        return LookShape(
            rentals=[rental_shape(rental, at) for rental in found],
            unexplained=seen.unexplained,
            warnings=warnings,
            failed=failed,
        )

    async def find(self, word: str) -> RentalShape:
        """See `Desk.find`."""
        rental = await self._find(word)
        return rental_shape(rental, self._clock.now(), await self._ledger.events(rental.key))

    async def release(self, key: str, *, reason: str, wait: bool, tell: Tell) -> RentalShape:
        """See `Desk.release`; any word that `find` takes will do."""
        rental = await self._find(key)
        if not rental.is_open:
            return rental_shape(rental, self._clock.now())
        self._provider_of(rental)
        teller = Teller()
        done = await self._broker.release(
            rental.key,
            reason=reason,
            wait=wait,
            tell=lambda progress: tell(teller.step(progress, self._clock.now())),
        )
        return rental_shape(done, self._clock.now())

    async def forget(self, key: str) -> RentalShape:
        """See `Desk.forget`; any word that `find` takes will do."""
        rental = await self._find(key)
        return rental_shape(await self._broker.forget(rental.key), self._clock.now())

    async def logs(self, key: str, *, tail: int, container: str | None = None) -> str:
        """See `Desk.logs`; any word that `find` takes will do; the text is raw."""
        lack = "tells no logs"
        instance_id, provider = await self._inside(key, Ability.LOGS, lack, container)
        return await provider.logs(instance_id, tail=tail, container=container)

    async def execute(
        self,
        key: str,
        command: Sequence[str],
        *,
        stdin: bytes,
        timeout_s: float,
        container: str | None = None,
    ) -> FinishedShape:
        """See `Desk.execute`; any word that `find` takes will do."""
        lack = "runs no commands inside an instance"
        instance_id, provider = await self._inside(key, Ability.EXEC, lack, container)
        done = await provider.exec(
            instance_id, tuple(command), stdin=stdin, timeout_s=timeout_s, container=container
        )
        return FinishedShape(exit_code=done.exit_code, stdout=done.stdout, stderr=done.stderr)

    async def orphans(self) -> tuple[Sequence[UnexplainedShape], Sequence[str]]:
        """See `Desk.orphans`.

        Raises:
            ProviderError: a market could not be listed, and the others hold no orphan.
        """
        seen = await self._looks.at(tuple(self._providers))
        found = [each for each in seen.unexplained if each.state == "orphan"]
        if seen.trouble is not None and not found:
            raise seen.trouble
        return found, seen.errors

    async def release_orphan(self, provider: str, instance_id: str) -> None:
        """See `Desk.release_orphan`.

        Raises:
            MarketClosed: its market is closed to us.
        """
        self.check_market(provider)
        tick = await self._reconciler.tick(provider)
        for orphan in tick.orphans:
            if orphan.instance.instance_id == instance_id:
                await self._reconciler.release_orphan(orphan.instance, orphan.key)
                return
        known = tuple(clean(orphan.instance.instance_id, 200) for orphan in tick.orphans)
        raise NoSuch("instance_id", clean(instance_id, 200), known)

    async def prices(
        self, gpu_model: str, *, within: timedelta, provider: str | None
    ) -> PricesShape:
        """See `Desk.prices`.

        Raises:
            NoSuch: there is no such market.
        """
        known = (*self._providers, *self._disabled)
        if provider is not None and provider not in known:
            raise NoSuch("provider", clean(provider, 60), known)
        until = self._clock.now()
        found = await self._history.series(gpu_model, until - within, until, provider)
        return PricesShape(
            gpu_model=gpu_model,
            since=until - within,
            until=until,
            series=[
                PriceSeriesShape(
                    provider=one.provider, points=[_point_shape(point) for point in one.points]
                )
                for one in found
            ],
        )

    def check_market(self, provider: str) -> None:
        """Refuse a market that there is not, or that is closed.

        Raises:
            NoSuch, MarketClosed: as said.
        """
        if provider in self._providers:
            return
        if provider in self._disabled:
            raise MarketClosed(provider, self._disabled[provider])
        raise NoSuch("provider", clean(provider, 60), (*self._providers, *self._disabled))

    def _market(self, slug: str) -> MarketShape:
        spec, is_open = self._specs.get(slug), slug in self._providers
        abilities = [] if spec is None else [str(each.name).lower() for each in spec.can]
        return MarketShape(
            provider=slug,
            title=spec.title if spec is not None else slug,
            open=is_open,
            why="" if is_open else clean(self._why(slug), 300),
            can=abilities,
        )

    def _why(self, slug: str) -> str:
        return self._disabled.get(slug, NOT_HERE)

    def _denied(self) -> list[str]:
        """Return the markets that refuse our key."""
        return [slug for slug, guard in self._guards.items() if guard.health().denied]

    def _need_markets(self, demand: Demand) -> None:
        """Refuse a demand of which no market could be asked.

        Raises:
            MarketClosed: none of them is open.
        """
        asked = demand.requirements.providers or (*self._providers, *self._disabled)
        if any(slug in self._providers for slug in asked):
            return
        if len(asked) == 1:
            raise MarketClosed(asked[0], self._why(asked[0]))
        why = "; ".join(f"{slug}: {self._why(slug)}" for slug in asked)
        raise MarketClosed("every market", why or "there are no settings for any")

    async def _with_reasons(self, decision: Decision) -> Decision:
        """Return the same answer over more offers, where the search itself kept all of them out.

        A market is only asked for the wanted GPU, so an empty reply gives no reasons.
        """
        if decision.rejections or any(note.error for note in decision.sources):
            return decision
        from gp4u.selection.decide import decide  # numpy is loaded by now

        wider = replace(
            decision.demand.requirements,
            gpu_models=(),
            verified_only=False,
            datacenter_only=False,
        )
        snapshot = await self._book.snapshot(Query(requirements=wider))
        if not snapshot.offers:
            return decision
        return decide(snapshot, decision.demand, at=self._clock.now())

    async def _find(self, word: str) -> Rental:
        found = await self._ledger.find(word) if word else []
        if not found:
            hint = "no rental has this key, name or id; `gp4u ps -a` lists all"
            raise NoSuch("key", clean(word, 200), hint=hint)
        by_key = all(r.key.startswith(word) and r.owner != f"cli:{word}" for r in found)
        if by_key and (word.count("-") < _NAMING_DASHES or word.endswith("-")):
            raise BadInput("key", word, "is how every key begins; give more of it")
        several = [r for r in found if r.is_open]
        if len(several) > 1:
            keys = ", ".join(r.key for r in several[:5])
            raise BadInput("key", word, f"is not one rental but {len(several)}: {keys}")
        return found[0]

    def _provider_of(self, rental: Rental) -> Provider:
        provider = self._providers.get(rental.provider)
        if provider is None:
            raise MarketClosed(rental.provider, self._why(rental.provider))
        return provider

    async def _inside(
        self, word: str, ability: Ability, lack: str, container: str | None
    ) -> tuple[str, Provider]:
        """Return a rental's instance id and its market, which can do what is wanted.

        Raises:
            NoSuch: there is no such rental. MarketClosed: its market is closed to us.
            BadInput: it has no instance yet or no such container, or its market cannot do it; the
                text names it, and those of the open markets that can.
        """
        rental = await self._find(word)
        if rental.instance_id is None:
            raise BadInput("key", word, f"the rental is {rental.state} and has no instance yet")
        provider = self._provider_of(rental)
        if ability not in provider.spec.can:
            able = [
                each.spec.title for each in self._providers.values() if ability in each.spec.can
            ]
            others = f"; {', '.join(able)} would" if able else ""
            raise BadInput("key", word, f"is at {provider.spec.title}, which {lack}{others}")
        beside = [each.name for each in rental.workload.beside]
        if container is not None and container not in beside:
            known = ", ".join(beside) or "none"
            raise BadInput("container", container, f"runs beside the rental's own: {known}")
        return rental.instance_id, provider


def _point_shape(point: PricePoint) -> PricePointShape:
    return PricePointShape(
        at=point.at, count=point.count, min=point.min, median=point.median, p90=point.p90
    )
