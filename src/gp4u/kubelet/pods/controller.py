"""All pods of one node: a worker for each UID, and what they share.

Hides how a pod and its worker find each other, and how one learns that the other is gone: pods come
from the informer, moves of rentals from the ledger, and both are taken as hints to look again. A
pod that is missing is asked for by name before anything is let go for good; a rental whose pod is
missing is looked at twice. It exists so that a pod's worker has to know of no other pod.

When the process ends nothing is released: the next one goes on where this one stood. What one pod
needs done is `worker.py`'s, its order `steps.py`'s.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from functools import partial
from random import Random
from typing import Any, Final

from gp4u.clock import Clock
from gp4u.errors import KubeAbsent, KubeDenied, KubeError, LedgerUnusable
from gp4u.kube import paths
from gp4u.kube.client import KubeClient
from gp4u.kube.events import EventRecorder
from gp4u.kube.watch import Informer
from gp4u.kubelet.held import Held, PodObject
from gp4u.kubelet.logs.store import LogStore
from gp4u.kubelet.pods import loss
from gp4u.kubelet.pods.checks import Checks
from gp4u.kubelet.pods.memory import controller_of, has_begun, is_terminal
from gp4u.kubelet.pods.parting import Parting
from gp4u.kubelet.pods.renting import AT_ONCE, Looks, Patience, RentLane
from gp4u.kubelet.pods.showing import Showing
from gp4u.kubelet.pods.spending import NOTE, Spending, place, whose
from gp4u.kubelet.pods.worker import Worker
from gp4u.kubelet.policy import NodePolicy
from gp4u.kubelet.probes.tally import ProbeTally
from gp4u.kubelet.services.publish import Publisher
from gp4u.kubelet.spec.references import Objects
from gp4u.kubelet.status.writer import StatusWriter
from gp4u.model import RentalKey
from gp4u.providers.contract import Ability, Provider
from gp4u.rentals.broker import Broker
from gp4u.rentals.ledger import Hear, Ledger
from gp4u.rentals.reconcile import Reconciler
from gp4u.rentals.rental import Rental

OWNER: Final = "pod:"
SWEEP_S: Final = 60.0
"""Between two looks for rentals whose pod is gone; the second one lets go."""
FIRST_SWEEP_S: Final = 15.0
CONFIRM_S: Final = (1.0, 15.0)
"""Between two tries to ask for a pod that the watch no longer shows."""
LOOK_SHARE: Final = 0.3
"""Of the calls that a market allows, for reading logs to see whether runs have ended."""
LOOK_S: Final = 20.0


class Controller:
    """Implements `Pods`; `run` it in a task, beside informer, publisher and recorder."""

    def __init__(
        self,
        *,
        broker: Broker,
        ledger: Ledger,
        reconciler: Reconciler,
        providers: Mapping[str, Provider],
        clock: Clock,
        random: Random,
        client: KubeClient,
        informer: Informer,
        recorder: EventRecorder,
        publisher: Publisher,
        logs: LogStore,
        writer: StatusWriter,
        policy: Callable[[], NodePolicy],
        max_rents: int = AT_ONCE,
        tally: ProbeTally | None = None,
        allow_unlabelled: bool = False,
        allow_loopback: bool = False,
        pod_ip: Callable[[Held], str | None] = lambda _: None,
    ) -> None:
        """`informer` watches the pods of the node, and tells `on_change` of them.

        `max_rents` is how many calls that rent are under way at a time; `tally` counts the results
        of probes.

        `pod_ip` gives the address inside the cluster that leads to a pod, if there is one; who
        changes its answer calls `wake`.
        """
        self._ledger, self._clock, self._random = ledger, clock, random
        self._client, self._informer, self._logs = client, informer, logs
        self._policy, self._providers = policy, providers
        self._tally = tally or ProbeTally()
        spending = Spending(ledger, clock, lambda: policy().failed_usd_per_hour)
        self.lane = RentLane(broker, spending=spending, at_once=max_rents)
        self.looks = Looks(reconciler, providers)
        self.parting = Parting(
            broker=broker,
            providers=providers,
            client=client,
            publisher=publisher,
            logs=logs,
            writer=writer,
            lane=self.lane,
            looks=self.looks,
        )
        self._make = partial(
            Worker,
            ledger=ledger,
            reconciler=reconciler,
            providers=providers,
            rentable={
                slug: each.spec.can
                for slug, each in providers.items()
                if not each.spec.quoted_only
                and (allow_unlabelled or Ability.LABELS in each.spec.can)
            },
            clock=clock,
            random=random,
            objects=Objects(client),
            recorder=recorder,
            logs=logs,
            policy=policy,
            lane=self.lane,
            looks=self.looks,
            patience=Patience(),
            parting=self.parting,
            show=partial(
                Showing,
                clock=clock,
                policy=policy,
                publisher=publisher,
                logs=logs,
                writer=writer,
                pod_ip=pod_ip,
            ),
            follow=self._follow,
            taken_gpus=self._taken_gpus,
            look_s=self._look_s,
            checks=partial(
                Checks,
                tally=self._tally,
                providers=providers,
                clock=clock,
                random=random,
                allow_loopback=allow_loopback,
            ),
        )
        self._workers: dict[str, Worker] = {}
        self._named: dict[tuple[str, str], list[Worker]] = {}
        """By namespace and name, for who asks of one among thousands."""
        self._sharing: Mapping[str, int] = Counter()
        """Market to how many pods run there, as of `_counted_s`."""
        self._counted_s = float("-inf")
        self._uids: dict[str, str] = {}
        """Rental key to the UID of its pod."""
        self._missing: dict[str, datetime] = {}
        """Rental key to when its pod was first not there."""
        self._cluster = ""
        self._group: asyncio.TaskGroup | None = None
        self.trouble = "starting"
        """Why it does not work yet; empty: it does. For readiness."""

    # --- Pods ---

    def all(self) -> Sequence[Held]:
        """Return every pod bound to the node, in no order."""
        return [worker.held for worker in self._workers.values()]

    def find(self, namespace: str, name: str, uid: str | None = None) -> Held | None:
        """Return the pod of this name, and of this UID where one is given."""
        named = self._named.get((namespace, name), ())
        found = [worker.held for worker in named if uid in (None, worker.uid)]
        # Two bear one name for a moment, while the elder is let go.
        return next((held for held in found if not held.leaving), found[-1] if found else None)

    # --- what others tell ---

    def on_change(self, old: PodObject | None, new: PodObject | None) -> None:
        """Take note of a change of the pods of the node; for the informer."""
        if self._group is None:
            return  # everything is looked at when it begins
        if new is not None:
            self._meet(new)
        elif old is not None:
            self._miss(old)

    def wake(self, uid: str) -> None:
        """Have one pod looked at again."""
        if uid in self._workers:
            self._workers[uid].wake()

    @property
    def gpus_in_use(self) -> int:
        """How many GPUs the pods of the node were admitted with."""
        return sum(worker.gpus for worker in self._workers.values())

    def phases(self) -> Mapping[str, int]:
        """Return how many pods there are in each phase, for metrics."""
        return Counter(
            str(worker.held.pod.get("status", {}).get("phase", "Pending"))
            for worker in self._workers.values()
        )

    # --- the loop ---

    async def run(self) -> None:
        """Work until cancelled; nothing is released by that."""
        before = self._ledger.on_event
        self._ledger.on_event = partial(self._on_move, before)
        try:
            await self._informer.synced.wait()
            self._cluster = await self._which_cluster()
            rentals = await self._open_rentals()
            self._logs.sweep(list(self._informer.objects))
            async with asyncio.TaskGroup() as group:
                self._group = group
                group.create_task(self.lane.run())
                group.create_task(self.looks.run())
                group.create_task(self._sweep())
                for uid, pod in list(self._informer.objects.items()):
                    found = rentals.get(uid, [])
                    if not found and has_begun(pod) and not is_terminal(pod):
                        found = await self._ended_rentals(pod)
                    self._begin(pod, found)
                self.trouble = ""
        finally:
            self._group = None
            self._ledger.on_event = before
            self.trouble = "stopped"

    def _meet(self, pod: PodObject) -> None:
        uid = pod["metadata"]["uid"]
        if uid in self._workers:
            self._workers[uid].notice(pod)
        else:
            self._begin(pod, ())

    def _begin(self, pod: PodObject, rentals: Iterable[Rental]) -> None:
        if self._group is None:
            return
        meta = pod["metadata"]
        named = f"{meta['namespace']}/{meta['name']}"
        worker = self._make(pod, rentals, place=place(self._home, named, controller_of(pod)))
        self._workers[worker.uid] = worker
        self._named.setdefault((meta["namespace"], meta["name"]), []).append(worker)
        self._group.create_task(self._see_through(worker))

    async def _see_through(self, worker: Worker) -> None:
        await worker.run()
        del self._workers[worker.uid]
        self._unname(worker)
        self._tally.forget(worker.uid)
        for key in [key for key, uid in self._uids.items() if uid == worker.uid]:
            del self._uids[key]
        back = self._informer.objects.get(worker.uid)
        if back is not None:
            self._begin(back, ())  # it was not gone after all

    def _unname(self, worker: Worker) -> None:
        where = (worker.held.namespace, worker.held.name)
        self._named[where].remove(worker)
        if not self._named[where]:
            del self._named[where]

    def _miss(self, pod: PodObject) -> None:
        """Deal with a pod that the watch no longer shows."""
        worker = self._workers.get(pod["metadata"]["uid"])
        if worker is None or self._group is None:
            return
        if worker.is_letting_go:
            worker.vanish()
        else:
            self._group.create_task(self._confirm(worker))

    async def _confirm(self, worker: Worker) -> None:
        """Ask for a pod by name until it is clear whether it is gone; it may cost a machine."""
        tries = 0
        while worker.uid not in self._informer.objects:
            try:
                gone = await self.parting.is_gone(worker.held.pod)
            except KubeError:
                gone = False
            if gone:
                worker.vanish()
                return
            tries += 1
            first_s, most_s = CONFIRM_S
            await asyncio.sleep(min(most_s, first_s * 2.0 ** min(tries, 10)))

    # --- rentals whose pod is gone ---

    async def _sweep(self) -> None:
        pause_s = FIRST_SWEEP_S
        while True:
            try:
                await self._look_for_missing()
            except (LedgerUnusable, KubeError) as error:
                _log().warning("sweep_failed", problem=str(error))
            except Exception:  # noqa: BLE001 - a rim: what runs must not end with it
                _log().exception("sweep_failed")
            await asyncio.sleep(pause_s * self._random.uniform(0.9, 1.1))
            pause_s = SWEEP_S

    async def _look_for_missing(self) -> None:
        """Let go what is rented for pods of this node that do not exist, at the second look."""
        if self._informer.trouble:
            return  # nothing is known of what there is
        missing = {
            rental.key: rental
            for uid, rentals in (await self._open_rentals()).items()
            if uid not in self._workers and uid not in self._informer.objects
            for rental in rentals
            if rental.is_live
        }
        for key in [key for key in self._missing if key not in missing]:
            del self._missing[key]
        for key, rental in missing.items():
            if key not in self._missing:
                self._missing[key] = self._clock.now()
            elif await self._is_podless(rental):
                _log().warning("releasing_rental_without_pod", rental=key, owner=rental.owner)
                await self.parting.call_off(rental, loss.GONE)
                del self._missing[key]

    async def _is_podless(self, rental: Rental) -> bool:
        """Whether a rental was made for a pod of this very node, and that pod is gone."""
        places = [e.text for e in await self._ledger.events(rental.key) if e.kind == NOTE]
        home, named, _ = whose(places[-1] if places else "")
        namespace, _, name = named.partition("/")
        if home != self._home or not name:
            return False  # of another node or cluster, which will see to it
        try:
            found = await self._client.get(paths.pod(namespace, name))
        except KubeAbsent:
            return True
        return _uid_of(rental) != str(found["metadata"]["uid"])

    async def _which_cluster(self) -> str:
        """Return what tells this cluster from others: the UID of a namespace that each has."""
        tries = 0
        while True:
            try:
                found = await self._client.get(paths.namespace("kube-system"))
            except (KubeDenied, KubeAbsent) as error:
                _log().error("cluster_unknown", problem=str(error))
                return "unknown"
            except KubeError:
                tries += 1
                await asyncio.sleep(min(CONFIRM_S[1], 2.0 ** min(tries, 10)))
            else:
                uid: str = found["metadata"]["uid"]
                return uid

    # --- the ledger ---

    def _on_move(
        self, before: Hear | None, number: int, key: str, at: datetime, kind: str, text: str
    ) -> None:
        if before is not None:
            before(number, key, at, kind, text)
        uid = self._uids.get(key)
        if uid is not None:
            self.wake(uid)

    async def _open_rentals(self) -> Mapping[str, list[Rental]]:
        """Return the open rentals of pods, by the pod's UID, oldest first."""
        found: defaultdict[str, list[Rental]] = defaultdict(list)
        for rental in await self._ledger.open_rentals():
            if rental.owner.startswith(OWNER):
                found[_uid_of(rental)].append(rental)
        return found

    async def _ended_rentals(self, pod: PodObject) -> list[Rental]:
        """Return the newest rental of each machine of a pod of which none is open."""
        owner = f"{OWNER}{pod['metadata']['uid']}"
        names = [each["name"] for each in pod["spec"]["containers"]]
        split = [f"{owner}/{name}" for name in names] if len(names) > 1 else []
        found = [await self._ledger.rentals_page(limit=1, owner=each) for each in (owner, *split)]
        return [rental for page in found for rental in page]

    # --- small questions ---

    @property
    def _home(self) -> str:
        return f"{self._cluster}/{self._policy().name}"

    def _follow(self, key: RentalKey, uid: str) -> None:
        self._uids[key] = uid

    def _taken_gpus(self, uid: str) -> int:
        return sum(worker.gpus for each, worker in self._workers.items() if each != uid)

    def _look_s(self, market: str) -> float:
        """Return how often one pod's log may be read, so that all together stay in the share."""
        if market not in self._providers:
            return LOOK_S
        now_s = asyncio.get_running_loop().time()
        if now_s >= self._counted_s + LOOK_S:  # not for each of a thousand that ask
            self._counted_s = now_s
            self._sharing = Counter(worker.market for worker in self._workers.values())
        allowed_per_s = self._providers[market].spec.rate_limit_per_min * LOOK_SHARE / 60
        return max(LOOK_S, self._sharing[market] / allowed_per_s)


def _uid_of(rental: Rental) -> str:
    """Return the pod in `pod:<uid>` or `pod:<uid>/<container>`."""
    return rental.owner.removeprefix(OWNER).partition("/")[0]


def _log() -> Any:
    import structlog  # 60 ms that only a process that stays has to pay

    return structlog.get_logger()
