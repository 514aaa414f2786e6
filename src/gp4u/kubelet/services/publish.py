"""Points Services at machines: EndpointSlices with an outside address and port, kept true.

Hides the watching of Services, names that have to be resolved, and every race between a pod that
goes, a Service that changes and a server that does not answer. It exists because nobody else in a
cluster can lead a Service to a port that a market has remapped, and because an address must be
taken out before its machine is given up: a moment later it may be another customer's.

Slices that are not ours are never touched; ours are found again by their marks after a restart, and
go when their pod is gone. What a slice says is `slices.py`'s part; whether a pod is ready, the
controller's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import suppress
from random import Random
from typing import Any, Final

import structlog
from msgspec import Struct

from gp4u.errors import BadInput, KubeAbsent, KubeConflict, KubeError, KubeExists, KubeInvalid
from gp4u.kube import paths
from gp4u.kube.client import KubeClient, PatchKind
from gp4u.kube.events import EventRecorder
from gp4u.kube.watch import Informer, Retry
from gp4u.kubelet.held import PodObject
from gp4u.kubelet.services.slices import (
    BACKED_BY_POD,
    BACKED_BY_SELECTOR,
    MANAGED_BY,
    OURS,
    Problem,
    Way,
    backing,
    families_of,
    family_of,
    is_ours,
    is_publishable,
    leaving,
    pod_uid,
    same_slice,
    slices_of,
    wanted_ports,
)
from gp4u.kubelet.spec.annotations import expose_of
from gp4u.kubelet.status.conditions import ENDED
from gp4u.model import Endpoint
from gp4u.providers.http import addresses_of
from gp4u.selection.decide import endpoint_log
from gp4u.telemetry import clean

Json = dict[str, Any]
Resolve = Callable[[str], Awaitable[Sequence[str]]]
Problems = frozenset[Problem | tuple[str, Problem]]
"""Of a pod; those of a Service with its UID."""
Line = tuple[str, int, str, int]
"""Name of a Service, its port, address and port of the machine."""

AT_ONCE: Final = 8
"""So many pods' slices are written at a time."""
WITHDRAW_S: Final = 10.0
"""So long somebody waits for endpoints to be taken out; the loop goes on with it after that."""
REFRESH_S: Final = 60.0
"""How often the names of machines are resolved anew."""
SWEEP_S: Final = 300.0
"""How often it is looked whether the pod of a slice that nobody claims is still there."""


class Exposure(Struct, frozen=True, kw_only=True):
    """One pod, and where its machine can be reached."""

    pod: PodObject
    endpoints: tuple[Endpoint, ...] = ()
    ready: bool = False
    terminating: bool = False
    provider: str = ""
    """Slug of the market, for the log."""
    relay_ip: str | None = None
    """Address in the cluster at which a relay listens on the container ports."""


class Publisher:
    """Keeps the slices of all pods of one node; `run` it in a task."""

    def __init__(
        self,
        client: KubeClient,
        *,
        node_name: str,
        random: Random,
        recorder: EventRecorder,
        resolve: Resolve | None = None,
        allow_loopback: bool = False,
        cluster_domain: str = "cluster.local",
    ) -> None:
        self._client, self._node, self._random = client, node_name, random
        self._recorder, self._resolve = recorder, resolve or _resolved
        self._allow_loopback, self._domain = allow_loopback, cluster_domain
        marked = {"labelSelector": f"{MANAGED_BY}={OURS}"}
        self._services = Informer(
            client, paths.services(), random=random, on_change=self._service_changed
        )
        self._slices = Informer(
            client,
            paths.endpointslices(),
            random=random,
            params=marked,
            on_change=self._slice_changed,
        )
        self._exposures: dict[str, Exposure] = {}
        self._books: dict[str, _Book] = {}
        self._annotated: dict[str, dict[str, Json]] = {}
        """Namespace to UID to Service, of those that name pods."""
        self._addresses: dict[str, tuple[str, ...]] = {}
        """What the hosts in use resolved to last."""
        self._dirty: dict[str, None] = {}
        self._wake = asyncio.Event()
        self._log = structlog.get_logger()

    @property
    def trouble(self) -> str:
        """What keeps slices of any pod from being written, for readiness; empty: nothing."""
        return next((str(book.error) for book in self._books.values() if book.error), "")

    @property
    def synced(self) -> bool:
        """Whether it knows the Services and the slices that there are."""
        return self._services.synced.is_set() and self._slices.synced.is_set()

    def set(self, exposure: Exposure) -> None:
        """Say how one pod can be reached now; slices follow as soon as they can."""
        uid = exposure.pod["metadata"]["uid"]
        self._exposures[uid] = exposure
        self._book(uid).withdrawn = False
        self._mark(uid)

    async def withdraw(self, uid: str) -> None:
        """Take a pod's endpoints out: first as not ready and terminating, then altogether.

        Returns once they are gone. Where the API server does not answer, after ten seconds; then
        they are taken out as soon as it does.
        """
        self._exposures.pop(uid, None)
        try:
            async with asyncio.timeout(WITHDRAW_S):
                # What an earlier process wrote is known once it was listed.
                await self._slices.synced.wait()
                book = self._books.get(uid)
                if book is None:
                    return
                book.withdrawn = True
                while True:
                    if await self._attempt(uid):
                        return
                    await asyncio.sleep(self._retry_s(book))
        except TimeoutError:
            self._book(uid).withdrawn = True
            self._mark(uid)
            self._log.warning("endpoints_not_withdrawn_yet", pod_uid=uid, problem=self.trouble)

    async def run(self) -> None:
        """Follow Services and exposures until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._services.run())
            group.create_task(self._slices.run())
            group.create_task(self._refresh())
            await self._services.synced.wait()
            await self._slices.synced.wait()
            for _ in range(AT_ONCE):
                group.create_task(self._work())

    # What wakes it

    def _mark(self, uid: str) -> None:
        self._dirty[uid] = None
        self._wake.set()

    def _service_changed(self, old: Json | None, new: Json | None) -> None:
        meta = (new or old or {})["metadata"]
        namespace, name = meta["namespace"], meta["name"]
        listed = self._annotated.setdefault(namespace, {})
        names_pods = meta["uid"] in listed
        listed.pop(meta["uid"], None)
        if new is not None and _names_pods(new):
            listed[meta["uid"]] = new
            names_pods = True
        if not listed:
            del self._annotated[namespace]
        for uid, exposure in self._exposures.items():
            pod = exposure.pod
            if pod["metadata"]["namespace"] == namespace and (
                names_pods or name in _exposed(pod) or name in self._book(uid).services
            ):
                self._mark(uid)

    def _slice_changed(self, old: Json | None, new: Json | None) -> None:
        told = new or old or {}
        uid = pod_uid(told)
        if not uid or not is_ours(told, self._node):
            return
        book, path = self._book(uid), _path(told)
        if new is None:
            book.slices.pop(path, None)
        else:
            book.slices[path] = new
        self._mark(uid)

    async def _refresh(self) -> None:
        """Resolve the names of machines anew, now and then."""
        while True:
            await asyncio.sleep(REFRESH_S)
            hosts: dict[str, list[str]] = {}
            for uid in self._exposures:
                for host in self._book(uid).hosts:
                    hosts.setdefault(host, []).append(uid)
            for host in [host for host in self._addresses if host not in hosts]:
                del self._addresses[host]
            for host, uids in hosts.items():
                before = self._addresses.get(host, ())
                if await self._look_up(host) != before:
                    for uid in uids:
                        self._mark(uid)

    # What it does

    async def _work(self) -> None:
        while True:
            while not self._dirty:
                self._wake.clear()
                await self._wake.wait()
            uid = next(iter(self._dirty))
            del self._dirty[uid]
            try:
                done = await self._attempt(uid)
            except Exception:  # noqa: BLE001 - a pod's bug must not become another pod's
                self._log.exception("endpoints_not_written", pod_uid=uid)
                done = False
            if not done:
                self._later(uid, self._retry_s(self._book(uid)))

    def _later(self, uid: str, wait_s: float) -> None:
        """Look at a pod again in a while; of several such wishes the newest counts."""
        book = self._book(uid)
        if book.timer is not None:
            book.timer.cancel()
        book.timer = asyncio.get_running_loop().call_later(wait_s, self._mark, uid)

    def _retry_s(self, book: _Book) -> float:
        if book.retry is None:
            book.retry = Retry(self._random)
        return book.retry.delay(book.error, asyncio.get_running_loop().time())

    async def _attempt(self, uid: str) -> bool:
        """Bring the slices of one pod to what they should be; whether that was done."""
        book = self._book(uid)
        book.users += 1
        try:
            async with book.lock:
                exposure = self._exposures.get(uid)
                if exposure is not None:
                    await self._publish(exposure, book)
                elif book.withdrawn:
                    await self._remove(book, frozenset(book.slices))
                else:
                    await self._claim(uid, book)
            book.error = None
        except KubeError as error:
            if book.error is None:
                self._log.warning("endpoints_not_written", pod_uid=uid, problem=str(error))
            book.error = error
            return False
        finally:
            book.users -= 1
            if not book.users and not book.slices and uid not in self._exposures:
                self._books.pop(uid, None)
        return True

    async def _publish(self, exposure: Exposure, book: _Book) -> None:
        pod, told = exposure.pod, bool(exposure.endpoints or exposure.ready)
        wanted: dict[str, Json] = {}
        services: dict[str, Json] = {}
        problems: list[Problem | tuple[str, Problem]] = []
        lines: list[Line] = []
        hosts: list[str] = []
        candidates = self._candidates(pod)
        for service in candidates:
            ports = wanted_ports(service, pod)
            if ports is None:
                continue
            if service["spec"].get("selector") and exposure.relay_ip is not None:
                continue  # the cluster's own endpoints lead to the relay already
            found = backing(service, pod, ports, exposure.endpoints, relay_ip=exposure.relay_ip)
            services[service["metadata"]["name"]] = service
            about = service["metadata"]["uid"]
            problems += [
                (about, each) if each.about_service else each
                for each in found.problems
                if told or each.about_service
            ]
            addresses, families = {}, families_of(service)
            for way in found.ways:
                hosts.append(way.host)
                ips, problem = await self._reach(way.host, exposure.relay_ip)
                addresses[way.host] = tuple(ip for ip in ips if family_of(ip) in families)
                if ips and not addresses[way.host]:
                    title = f"Service {service['metadata']['name']}"
                    problem = f"{title}: the machine has no address of {' or '.join(families)}"
                if problem:
                    problems.append(Problem("AddressRefused", problem))
            for each in slices_of(
                service,
                pod,
                found.ways,
                addresses,
                node=self._node,
                ready=exposure.ready,
                terminating=exposure.terminating,
            ):
                wanted[_path(each)] = each
            lines += self._lines(service, found.ways, addresses)
        if exposure.ready:
            missing = _exposed(pod) - {each["metadata"]["name"] for each in candidates}
            problems += [
                Problem("ServiceMissing", f"there is no Service {name} to stand behind")
                for name in missing
            ]
        book.hosts, book.services = frozenset(hosts), frozenset(services)
        by_uid = {each["metadata"]["uid"]: each for each in services.values()}
        self._tell_problems(pod, by_uid, frozenset(problems), book)
        await self._remove(book, book.slices.keys() - wanted.keys())
        for path, each in wanted.items():
            await self._write(path, each, book)
        self._announce(exposure, lines, book)

    def _candidates(self, pod: PodObject) -> list[Json]:
        """Return the Services that may want a pod."""
        namespace = pod["metadata"]["namespace"]
        found = dict(self._annotated.get(namespace, {}))
        for name in _exposed(pod):
            service = self._services.named(namespace, name)
            if service is not None:
                found[service["metadata"]["uid"]] = service
        return list(found.values())

    async def _write(self, path: str, wanted: Json, book: _Book) -> None:
        known = book.slices.get(path)
        if known is not None and not known:  # its creation was tried, and nobody knows
            known = await self._look(path, book)
        if known is None:
            # From here on it may be there, whatever becomes of the call.
            book.slices[path] = {}
            parent = paths.endpointslices(wanted["metadata"]["namespace"])
            try:
                book.slices[path] = await self._client.create(parent, wanted)
                return
            except KubeExists:
                known = await self._look(path, book)
            if known is None:
                return
        if same_slice(known, wanted):
            return
        meta = {each: wanted["metadata"][each] for each in ("labels", "annotations")}
        patch = {
            "metadata": {"uid": known["metadata"]["uid"], **meta},
            "endpoints": wanted["endpoints"],
            "ports": wanted["ports"],
        }
        try:
            book.slices[path] = await self._client.patch(path, patch, kind=PatchKind.MERGE)
        except KubeAbsent:
            book.slices.pop(path, None)
            raise

    async def _look(self, path: str, book: _Book) -> Json | None:
        """Read a slice that may be ours; None: there is none, or it is somebody else's."""
        try:
            found = await self._client.get(path)
        except KubeAbsent:
            book.slices.pop(path, None)
            return None
        if not is_ours(found, self._node):
            self._log.warning("endpoint_slice_is_a_strangers", path=path)
            book.slices.pop(path, None)
            return None
        book.slices[path] = found
        return found

    async def _remove(self, book: _Book, gone: Collection[str]) -> None:
        """Take slices out: first all as leaving, then away."""
        there = []
        for path in sorted(gone):
            known = book.slices.get(path) or await self._look(path, book)
            if known is not None:
                there.append((path, known))
        for path, known in there:
            with suppress(KubeAbsent, KubeConflict, KubeInvalid):  # the delete will tell
                await self._client.patch(path, leaving(known), kind=PatchKind.MERGE)
        for path, known in there:
            with suppress(KubeAbsent, KubeConflict):  # gone, or another one by now
                await self._client.delete(path, uid=known["metadata"]["uid"])
            book.slices.pop(path, None)
        if there and not book.slices:
            self._log.info("endpoints_withdrawn", slices=len(there))
            if book.pod is not None:
                self._recorder.tell(
                    book.pod, "Normal", "EndpointWithdrawn", f"withdrawn: {', '.join(book.told)}"
                )
            book.told = ()

    async def _claim(self, uid: str, book: _Book) -> None:
        """Look after slices that nobody has claimed since the start: is their pod still there?"""
        for each in [each for each in book.slices.values() if each]:
            refs = [end.get("targetRef") or {} for end in each.get("endpoints") or ()]
            named = next((ref for ref in refs if ref.get("uid") == uid and ref.get("name")), None)
            if named is None or not await self._is_there(uid, named):
                self._log.info("endpoint_slice_swept", path=_path(each), pod_uid=uid)
                await self._remove(book, {_path(each)})
        if book.slices:
            self._later(uid, SWEEP_S)

    async def _is_there(self, uid: str, named: Mapping[str, str]) -> bool:
        try:
            pod = await self._client.get(paths.pod(named["namespace"], named["name"]))
        except KubeAbsent:
            return False
        phase = (pod.get("status") or {}).get("phase")
        return pod["metadata"]["uid"] == uid and phase not in ENDED

    # Addresses

    async def _reach(self, host: str, relay_ip: str | None) -> tuple[tuple[str, ...], str]:
        """Return the addresses that a host may be reached at, and what is wrong with the others."""
        if host == relay_ip:  # the cluster gave it, and it leads to a pod of ours
            return (host,), ""
        found = self._addresses.get(host) or await self._look_up(host)
        if not found:
            return (), f"the machine's name {clean(host, 128)} has no address"
        good = tuple(ip for ip in found if is_publishable(ip, allow_loopback=self._allow_loopback))
        bad = sorted(set(found) - set(good))
        return good, f"the machine's address {', '.join(bad)} is not public" if bad else ""

    async def _look_up(self, host: str) -> tuple[str, ...]:
        """Resolve a name; what it led to before holds while nobody can tell."""
        try:
            found = tuple(sorted(await self._resolve(host)))
        except (OSError, ValueError):
            found = ()
        if found:
            self._addresses[host] = found
        return self._addresses.get(host, ())

    # What it tells

    def _lines(
        self,
        service: Mapping[str, Any],
        ways: Sequence[Way],
        addresses: Mapping[str, Sequence[str]],
    ) -> list[Line]:
        meta = service["metadata"]
        name = f"{meta['name']}.{meta['namespace']}.svc.{self._domain}"
        return [
            (name, way.service_port, addresses[way.host][0], way.port)
            for way in ways
            if addresses.get(way.host)
        ]

    def _announce(self, exposure: Exposure, lines: list[Line], book: _Book) -> None:
        book.pod = exposure.pod
        if not exposure.ready or exposure.terminating or not lines:
            return
        prefix = {"vastai": "VAST"}.get(exposure.provider, exposure.provider.upper() or "GP4U")
        text = endpoint_log(prefix, lines)
        told = tuple(each.strip(" -") for each in text[1:])
        if told == book.told:
            return
        book.told = told
        meta = exposure.pod["metadata"]
        for each in text:
            self._log.info(each)
        about = f"{meta['namespace']}/{meta['name']}"
        self._log.info("endpoints_published", pod=about, endpoints=list(told))
        self._recorder.tell(exposure.pod, "Normal", "EndpointPublished", ", ".join(told))

    def _tell_problems(
        self,
        pod: PodObject,
        services: Mapping[str, Json],
        problems: Problems,
        book: _Book,
    ) -> None:
        """Tell what is new, once; what went away may be told again."""
        for each in problems - book.problems:
            if isinstance(each, Problem):
                self._recorder.tell(pod, "Warning", each.reason, each.message)
            else:
                uid, problem = each
                self._recorder.tell(services[uid], "Warning", problem.reason, problem.message)
        book.problems = problems

    def _book(self, uid: str) -> _Book:
        return self._books.setdefault(uid, _Book())


class _Book:
    """What is known of one pod's slices."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.users = 0
        self.slices: dict[str, Json] = {}
        """Path to the slice as it was last seen; empty where only its creation was tried."""
        self.withdrawn = False
        self.hosts: frozenset[str] = frozenset()
        self.services: frozenset[str] = frozenset()
        self.problems: Problems = frozenset()
        self.told: tuple[str, ...] = ()
        """The endpoints that were announced."""
        self.pod: PodObject | None = None
        self.error: KubeError | None = None
        self.retry: Retry | None = None
        self.timer: asyncio.TimerHandle | None = None


def _path(slice_: Mapping[str, Any]) -> str:
    meta = slice_["metadata"]
    return paths.endpointslice(meta["namespace"], meta["name"])


def _names_pods(service: Mapping[str, Any]) -> bool:
    said = service["metadata"].get("annotations") or {}
    return BACKED_BY_POD in said or BACKED_BY_SELECTOR in said


def _exposed(pod: PodObject) -> frozenset[str]:
    """Return the names of the Services that a pod names."""
    try:
        return frozenset(each.service for each in expose_of(pod).services)
    except BadInput:
        return frozenset()  # it was refused at its admission


async def _resolved(host: str) -> Sequence[str]:
    return [str(each) for each in await addresses_of(host, 0)]
