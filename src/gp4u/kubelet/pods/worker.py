"""One pod: from its binding to its end, whatever happens in between.

Hides the shell around `steps.py`: the worker reads how things stand, asks what to do next, does it,
and asks again until there is nothing to do but wait. It is woken by changes of the pod, moves of
its rentals, probes and timers; a wake-up that is lost costs half a minute. Rents are run by a lane
that is shared with all other pods; everything that ends something is done right here, so that it
never waits for them.

Whatever was not done when the process ends is done by the worker that the next process makes of the
same pod: what counts is in the ledger and in the pod's status.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from random import Random
from typing import Any, Final, assert_never

from msgspec.structs import replace

from gp4u.clock import Clock
from gp4u.errors import KubeError, LedgerUnusable, ProviderError
from gp4u.kube.events import EventRecorder
from gp4u.kubelet.held import Held, PodObject
from gp4u.kubelet.logs.store import LogStore
from gp4u.kubelet.pods import beside, loss, runs
from gp4u.kubelet.pods.checks import Checks, probed_runs
from gp4u.kubelet.pods.hiring import Hiring
from gp4u.kubelet.pods.loss import Kind
from gp4u.kubelet.pods.memory import (
    TERMINAL,
    Outcome,
    Slot,
    Why,
    asked_of,
    images_of,
    prepared_again,
    recalled,
    resources_of,
)
from gp4u.kubelet.pods.parting import Parting
from gp4u.kubelet.pods.renting import Looks, Patience, RentLane
from gp4u.kubelet.pods.runs import Rules, Signs
from gp4u.kubelet.pods.showing import Showing
from gp4u.kubelet.pods.standing import Standing
from gp4u.kubelet.pods.steps import (
    Acknowledge,
    Again,
    Conclude,
    Forget,
    Look,
    Prepare,
    Rent,
    Review,
    Stop,
    TearDown,
    Wait,
    step,
)
from gp4u.kubelet.pods.wording import News
from gp4u.kubelet.policy import NodePolicy, OnLoss
from gp4u.kubelet.spec.admission import Refusal, is_daemon, is_mirror
from gp4u.kubelet.spec.references import Objects, Unresolved
from gp4u.kubelet.spec.workload import Machine, Prepared, prepare
from gp4u.model import RentalKey
from gp4u.providers.contract import Ability, Provider
from gp4u.rentals.ledger import Ledger
from gp4u.rentals.reconcile import Reconciler
from gp4u.rentals.rental import Rental

MOST_STEPS: Final = 50
"""Actions without a pause; more would be a loop that does not get on."""
RESYNC_S: Final = (20.0, 30.0)
HOLD_WAIT_S: Final = (2.0, 30.0)
"""First and longest wait for what a pod names and does not exist."""
TROUBLE_WAIT_S: Final = (1.0, 60.0)
"""First and longest wait after a bug, an unusable ledger, or an API server that is away."""
TELL_LAST_S: Final = 5.0
"""How long the last status of a pod that is deleted is waited for."""
REJECTED: Final = "Pod was rejected: "


class Worker:
    """Sees one pod through its life; see the module's docstring."""

    def __init__(
        self,
        pod: PodObject,
        rentals: Iterable[Rental],
        *,
        ledger: Ledger,
        reconciler: Reconciler,
        providers: Mapping[str, Provider],
        rentable: Mapping[str, Ability],
        clock: Clock,
        random: Random,
        objects: Objects,
        recorder: EventRecorder,
        logs: LogStore,
        policy: Callable[[], NodePolicy],
        lane: RentLane,
        looks: Looks,
        patience: Patience,
        parting: Parting,
        show: Callable[[PodObject], Showing],
        follow: Callable[[RentalKey, str], None],
        taken_gpus: Callable[[str], int],
        look_s: Callable[[str], float],
        place: str,
        checks: Callable[..., Checks],
    ) -> None:
        """`rentals` are those of the pod that the ledger has open, and the newest that ended.

        `follow` is told of each rental key of this pod's; `taken_gpus` says how many GPUs the other
        pods have, `look_s` how often a log at a market may be read; `place` is written to each
        rental's history, for who finds it without its pod.
        """
        self._ledger, self._reconciler = ledger, reconciler
        self._providers, self._rentable = providers, rentable
        self._clock, self._random = clock, random
        self._objects, self._logs, self._policy = objects, logs, policy
        self._looks, self._patience, self._parting = looks, patience, parting
        self._taken_gpus, self._look_s = taken_gpus, look_s
        self._now = Standing(show(pod), rentals, recorder=recorder)
        self._awake = asyncio.Event()
        self._moved = True
        """Whether the ledger may have moved a rental of the pod since it was last read."""
        self._resync_at = 0.0
        self._grace: asyncio.Timeout | None = None
        self._stopped = self._deleted = False
        self._checks = checks(
            pod=pod,
            rental_of=self._now.rental_of,
            known_as=self._now.known_as,
            tell=self._awake.set,
            warn=self._now.warn,
        )
        self._hiring = Hiring(
            self._now,
            ledger=ledger,
            random=random,
            lane=lane,
            looks=looks,
            follow=follow,
            wake=self._awake.set,
            place=place,
        )
        for rental in self._now.strays.values():
            follow(rental.key, self.uid)

    # --- what others ask and tell ---

    @property
    def uid(self) -> str:
        """The UID of its pod."""
        return self._now.uid

    @property
    def held(self) -> Held:
        """How the pod stands, for those who only read."""
        return self._now.showing.held

    @property
    def gpus(self) -> int:
        """How many GPUs its pod was admitted with."""
        return self._now.gpus

    @property
    def market(self) -> str:
        """Where its machine runs; empty where none does."""
        return self._now.market

    @property
    def is_letting_go(self) -> bool:
        """Whether its pod may just go: nothing is held or asked for, or we removed it ourselves."""
        return self._deleted or not (self._now.live() or self._now.is_renting)

    def wake(self) -> None:
        """Compare everything again, soon."""
        self._moved = True
        self._awake.set()

    def notice(self, pod: PodObject) -> None:
        """Take over a newer look at the pod."""
        known, self._now.showing.pod = self._now.showing.pod, pod
        if pod["metadata"].get("resourceVersion") == known["metadata"].get("resourceVersion"):
            return  # our own write, whose reply was here first
        self._shorten_grace()
        self._awake.set()

    def vanish(self) -> None:
        """Take note that the pod is known to be gone."""
        self._now.is_gone = True
        self._shorten_grace()
        self._awake.set()

    # --- the loop ---

    async def run(self) -> None:
        """Work until the pod is gone and everything behind it is let go."""
        loop, trouble = asyncio.get_running_loop(), 0
        async with asyncio.TaskGroup() as group:
            while True:
                self._awake.clear()
                try:
                    until_s = await self._pass(group)
                except LedgerUnusable as error:
                    trouble += 1
                    until_s = loop.time() + self._doubling(TROUBLE_WAIT_S, trouble)
                    _log().error("ledger_unusable", pod=self._now.named, problem=str(error))
                except Exception:  # noqa: BLE001 - a rim: one pod's bug must not stop the others
                    trouble += 1
                    until_s = loop.time() + self._doubling(TROUBLE_WAIT_S, trouble)
                    _log().exception("pod_worker_failed", pod=self._now.named)
                else:
                    trouble = 0
                if until_s is None:
                    self._checks.keep({}, group)
                    return
                try:
                    async with asyncio.timeout_at(until_s):
                        await self._awake.wait()
                except TimeoutError:
                    self._moved = True  # by another process: nobody told us

    async def _pass(self, group: asyncio.TaskGroup) -> float | None:
        """Do everything that can be done now; return until when to wait, None: it is over."""
        loop = asyncio.get_running_loop()
        for _ in range(MOST_STEPS):
            await self._take_in()
            self._show(group)
            action = step(
                None if self._now.is_gone else self._now.pod,
                self._now.memory,
                at=self._clock.now(),
                now_s=loop.time(),
                is_held=bool(self._now.live()),
                resync_s=self._random.uniform(*RESYNC_S),
                look_s=self._look_s(self._now.market) if self._now.log_tells else 0.0,
            )
            match action:
                case Wait(until_s):
                    return until_s
                case Forget():
                    return await self._forget()
                case TearDown():
                    return await self._tear_down(group)
                case Acknowledge():
                    self._acknowledge()
                case Prepare():
                    await self._prepare()
                case Review():
                    self._review()
                case Rent(suffix):
                    self._hiring.rent(suffix, group)
                case Look(suffix):
                    await self._look(suffix)
                case Again(suffix):
                    await self._again(suffix)
                case Stop(suffix, reason):
                    await self._stop(suffix, reason)
                case Conclude(outcome):
                    await self._conclude(outcome, group)
                case _:
                    assert_never(action)
        _log().error("pod_worker_gets_nowhere", pod=self._now.named)
        return loop.time() + TROUBLE_WAIT_S[1]

    # --- looking ---

    async def _take_in(self) -> None:
        """Take over what ledger, logs and probes say now."""
        found: dict[str, Rental] = {}
        moved, self._moved = self._moved, False
        for rental in self._now.rentals() if moved else ():
            if rental.is_open:
                newest = await self._ledger.get(rental.key)
                if newest is not None:
                    found[newest.key] = newest
        for suffix, rental in self._now.strays.items():
            self._now.strays[suffix] = found.get(rental.key, rental)
        for slot in self._now.slots:
            if slot.rental is None:
                continue
            rental = found.get(slot.rental.key, slot.rental)
            if rental.version < slot.rental.version:
                rental = slot.rental
            if (
                self._now.memory.is_over
                or self._now.leaving
                or (slot.renting and not rental.is_live)
            ):
                self._now.put(replace(slot, rental=rental))
            else:
                self._notice_machine(slot, rental)

    def _notice_machine(self, slot: Slot, rental: Rental) -> None:
        at, now_s = self._clock.now(), asyncio.get_running_loop().time()
        signs = {
            name: Signs(
                marker=self._logs.ending(self.uid, name, rental.key),
                unhealthy=self._checks.unhealthy(name),
            )
            for name in slot.containers
        }
        noticed = beside.noticed(slot, rental, self._rules(rental), signs, at=at, now_s=now_s)
        self._now.put(noticed.slot)
        self._now.tell(*noticed.news)
        if slot.is_held and not rental.is_live:
            self._now.change(provisional=True)  # what was brought to it may be out of date by now
        if noticed.lost is None:
            return
        ending, wish = noticed.lost, self._now.memory.wish
        is_theirs = ending.kind in (Kind.LOST, Kind.PREEMPTED)
        rerents = wish is not None and wish.on_loss is OnLoss.RERENT
        if is_theirs and rerents and noticed.slot.done is None:  # what is over is not begun again
            slot = runs.lost(noticed.slot, ending, at=at, now_s=now_s)
            self._now.put(slot)
            in_s = slot.rent_at_s - now_s
            text = f"{ending.message}; another machine is rented in {in_s:.0f} s"
            self._now.tell(News("Warning", ending.reason, text))
            return
        disruption = ("TerminationByKubelet", ending.message) if is_theirs else None
        outcome = Outcome(
            phase="Failed", reason=ending.reason, message=ending.message, disruption=disruption
        )
        self._now.change(outcome=outcome)
        self._now.tell(News("Warning", ending.reason, ending.message))

    def _rules(self, rental: Rental) -> Rules:
        wish, provider = self._now.memory.wish, self._providers.get(rental.provider)
        return Rules(
            restart_policy=self._now.pod["spec"].get("restartPolicy", "Always"),
            interruptible=wish is not None and wish.demand.requirements.interruptible,
            can_restart=provider is not None and Ability.RESTART in provider.spec.can,
            replace_unhealthy=wish is not None and wish.on_loss is OnLoss.RERENT,
            **({"settle": self._reconciler.policy(rental.provider).settle} if provider else {}),
        )

    def _show(self, group: asyncio.TaskGroup) -> None:
        """Have everybody see how things stand, and have what runs be probed."""
        is_over = self._now.memory.is_over or self._now.leaving or self._now.is_gone
        wanted = {} if is_over else probed_runs(self._now.pod, self._now.memory)
        self._checks.keep(wanted, group)
        now_s = asyncio.get_running_loop().time()
        again = now_s >= self._resync_at
        if again:
            self._resync_at = now_s + RESYNC_S[0]
        self._now.showing.show(
            self._now.memory,
            self._checks.verdicts,
            rentals=self._now.by_container(),
            beside=self._now.beside(),
            leaving=self._now.leaving or self._now.is_gone,
            stopped=self._stopped,
            again=again and not self._now.is_gone,
            is_unread=self._now.is_unread and not self._stopped,
            group=group,
        )

    # --- doing ---

    def _acknowledge(self) -> None:
        at = self._now.memory.acknowledged_at or self._clock.now()
        self._now.change(acknowledged=True, acknowledged_at=at)
        if not is_daemon(self._now.pod) and not is_mirror(self._now.pod):
            return
        text = "pods of DaemonSets are not run on this virtual node, and nothing is rented for them"
        why = Why("NotRunHere", text)
        self._now.change(daemon=True, hold=why)
        self._now.tell(News("Warning", "NotRunHere", text))

    async def _prepare(self) -> None:
        """Find out what to rent; nothing is rented before all of it is known.

        A pod that has a machine from before this process is not refused for what changed since.
        """
        settled = not self._now.memory.is_prepared and any(
            r.is_live for r in self._now.strays.values()
        )
        try:
            found = await prepare(
                self._now.pod,
                self._policy(),
                self._objects,
                abilities=self._rentable,
                held_gpus=self._taken_gpus(self.uid),
                settled=settled,
                split=self._now.is_split,
            )
        except KubeError as error:
            text = f"what the pod names cannot be read now: {error}"
            self._hold(Why("ContainerCreating", text), None)
            return
        match found:
            case Refusal(reason=reason, message=message):
                text = f"{REJECTED}{message}"
                outcome = Outcome(phase="Failed", reason=reason, message=text)
                self._now.change(outcome=outcome)
                self._now.tell(News("Warning", reason, text))
            case Unresolved(reason=reason, message=message):
                self._hold(
                    Why("CreateContainerConfigError", message), News("Warning", reason, message)
                )
            case Prepared(wish=wish, machines=machines, notices=notices):
                slots = tuple(self._slot(machine) for machine in machines)
                fresh = not self._now.memory.is_prepared
                self._now.change(
                    wish=wish,
                    slots=slots,
                    images=images_of(self._now.pod),
                    resources=resources_of(self._now.pod),
                    asked=asked_of(self._now.pod),
                    stale=False,
                    provisional=settled,
                    hold=None,
                    tries=0,
                )
                if fresh:
                    self._now.tell(*(News(n.kind, n.reason, n.message) for n in notices))
            case _:
                assert_never(found)

    def _slot(self, machine: Machine) -> Slot:
        known = prepared_again(self._now.slots, machine)
        if known is not None:
            return known
        rental = self._now.strays.pop(machine.owner_suffix, None)
        slot = recalled(self._now.pod, machine, rental)
        owner = self._now.controller
        if owner is None:
            return slot
        now_s = asyncio.get_running_loop().time()
        return replace(slot, rent_at_s=self._patience.until_s(owner, now_s=now_s))

    def _hold(self, why: Why, news: News | None) -> None:
        tries = self._now.memory.tries + 1
        again_s = asyncio.get_running_loop().time() + self._doubling(HOLD_WAIT_S, tries)
        self._now.change(hold=why, again_s=again_s, tries=tries)
        if news is not None:
            self._now.tell(news)

    def _review(self) -> None:
        """Take over a change of a pod that has machines, or say that it cannot be."""
        wish = self._now.memory.wish
        if resources_of(self._now.pod) != self._now.memory.resources:
            text = "a rented machine cannot be resized; the change is ignored"
            self._ignore("resources", News("Warning", "ResizeInfeasible", text))
        if images_of(self._now.pod) == self._now.memory.images:
            return
        has_machine = any(slot.is_held or slot.had_run for slot in self._now.slots)
        if has_machine and (wish is None or wish.on_loss is not OnLoss.RERENT):
            text = (
                "the image changed, and the machine goes on with the old one: "
                "gp4u.io/on-loss: rerent allows another machine"
            )
            self._ignore("images", News("Warning", "ImageChangeIgnored", text))
            return
        if has_machine:
            text = "the image changed: the machine is replaced by another one that runs it"
            self._now.tell(News("Normal", "Killing", text))
        for slot in self._now.slots:
            if slot.renting and not slot.is_held:
                self._hiring.withdraw(slot.suffix)  # it would rent for the old one
        slots = tuple(replace(slot, replace=slot.is_held) for slot in self._now.slots)
        self._now.change(slots=slots, images=images_of(self._now.pod), stale=True)

    def _ignore(self, what: str, news: News) -> None:
        self._now.change(ignored=(*self._now.memory.ignored, what))
        self._now.tell(news)

    async def _look(self, suffix: str) -> None:
        slot = self._now.slot(suffix)
        if slot is None:
            return
        held = replace(self.held, rentals=self._now.by_container())
        async with asyncio.TaskGroup() as group:
            for name in (name for name, each in slot.runs.items() if each.done is None):
                group.create_task(self._logs.look(held, name))
        slot = self._now.slot(suffix)
        if slot is not None:
            now_s = asyncio.get_running_loop().time()
            self._now.put(replace(slot, looked_s=now_s, looks=slot.looks + 1))

    async def _again(self, suffix: str) -> None:
        slot = self._now.slot(suffix)
        if slot is None or slot.rental is None or slot.rental.instance_id is None:
            return
        rental, marker = slot.rental, self._logs.ending(self.uid, slot.containers[0])
        try:
            await self._providers[rental.provider].restart(rental.instance_id or "")
        except ProviderError as error:
            now_s = asyncio.get_running_loop().time()
            slot = replace(slot, again_at_s=now_s + self._doubling(TROUBLE_WAIT_S, 4))
            self._now.put(slot)
            self._now.tell(News("Warning", "RestartFailed", f"{rental.provider}: {error}"))
            return
        slot = self._now.slot(suffix) or slot
        self._now.put(runs.restarted(slot, marker, at=self._clock.now()))
        self._looks.expect(rental.provider)

    # --- ending ---

    async def _stop(self, suffix: str, reason: str) -> None:
        """Let one machine go, while the pod goes on or its others do."""
        slot = self._now.slot(suffix)
        if slot is None or slot.rental is None:
            return
        mine = dict.fromkeys(slot.containers, slot.rental)
        await self._parting.keep_logs(replace(self.held, rentals=mine))
        released = await self._parting.call_off(slot.rental, reason)
        slot = self._now.slot(suffix) or slot
        self._now.put(replace(slot, rental=released))

    async def _conclude(self, outcome: Outcome | None, group: asyncio.TaskGroup) -> None:
        """Draw what follows from the end of the pod."""
        if outcome is not None and self._now.memory.outcome is None:
            self._now.change(outcome=outcome)
            self._now.tell(News("Warning", outcome.reason, outcome.message))
        if not self._now.memory.concluded:
            self._now.change(concluded=True)
            self._remember_owner()
            self._show(group)
            await self._parting.withdraw(self.uid, self._now.owners())
            await self._parting.keep_logs(replace(self.held, rentals=self._now.by_container()))
        await self._parting.let_go(self._now, self._now.reason_of)

    def _remember_owner(self) -> None:
        owner = self._now.controller
        if owner is None or self._now.pod.get("status", {}).get("phase") in TERMINAL:
            return
        if self._now.memory.outcome is None and not any(s.exit_code for s in self._now.slots):
            self._patience.served(owner)
        elif any(slot.rental is not None for slot in self._now.slots):
            self._patience.failed(owner, now_s=asyncio.get_running_loop().time())

    async def _tear_down(self, group: asyncio.TaskGroup) -> float:
        """Let everything of a deleted pod go, in order; return when to look again."""
        loop = asyncio.get_running_loop()
        if not self._now.leaving:
            self._now.leaving = True
            self._show(group)
        if not self._stopped:
            await self._parting.withdraw(self.uid, self._now.owners())
            await self._ask_to_stop()
            await self._parting.keep_logs(replace(self.held, rentals=self._now.by_container()))
            self._stopped = True
            self._note_ends()
        await self._parting.let_go(self._now, lambda _: loss.DELETED)
        self._show(group)
        if self._now.is_gone:
            return loop.time()
        if not self._deleted:
            await self._now.showing.tell_last(TELL_LAST_S)
            try:
                await self._parting.delete(self._now.pod)
            except KubeError as error:
                _log().warning("pod_not_deleted", pod=self._now.named, problem=str(error))
                return loop.time() + self._random.uniform(1.0, 5.0)
            self._deleted = True
        return loop.time() + self._random.uniform(*RESYNC_S)

    async def _ask_to_stop(self) -> None:
        """Give the workloads their grace; less of it where it is shortened, or the pod is gone."""
        left_s = self._now.grace_left_s(self._clock.now())
        if left_s <= 0:
            return
        try:
            async with asyncio.timeout(left_s) as self._grace:
                await self._parting.ask_all_to_stop(self._now, within_s=left_s)
        except TimeoutError:
            pass  # they had their time
        finally:
            self._grace = None

    def _shorten_grace(self) -> None:
        if self._grace is not None and not self._grace.expired():
            self._grace.reschedule(
                asyncio.get_running_loop().time() + self._now.grace_left_s(self._clock.now())
            )

    def _note_ends(self) -> None:
        """Take note that nothing runs any more, and with what it ended where that is known."""
        for slot in self._now.slots:
            ends = {name: self._logs.ending(self.uid, name) for name in slot.containers}
            codes = {name: end.exit_code if end is not None else None for name, end in ends.items()}
            at = self._clock.now()
            self._now.put(beside.stopped(slot, codes, at=at, message="the pod was deleted"))

    async def _forget(self) -> float | None:
        """Let everything go of a pod that has no object any more; None: it is done."""
        self._now.leaving = True
        await self._parting.withdraw(self.uid, self._now.owners())
        await self._parting.let_go(self._now, lambda _: loss.GONE)
        if self._now.is_renting:
            return asyncio.get_running_loop().time() + RESYNC_S[0]
        self._parting.forget(self.uid)
        return None

    def _doubling(self, bounds: tuple[float, float], tries: int) -> float:
        first_s, most_s = bounds
        wait_s = min(most_s, first_s * 2.0 ** min(tries - 1, 16))
        return wait_s * self._random.uniform(0.75, 1.0)


def _log() -> Any:
    import structlog  # 60 ms that only a process that stays has to pay

    return structlog.get_logger()
