"""Leader election: never two at once, and never nobody for long."""

from __future__ import annotations

import asyncio
from random import Random

import pytest

from gp4u.kube.leases import LeaderLease
from tests.kube_api import KubeApi
from tests.virtual_loop import VirtualClock, run_virtual

PATH = "/apis/coordination.k8s.io/v1/namespaces/default/leases/gp4u"


class Candidate:
    """One replica: a lease over a client of its own, and a note of when it led."""

    def __init__(self, name: str, leading: list[tuple[str, float, str, int]]) -> None:
        self.name, self.notes = name, leading
        self.lease: LeaderLease | None = None

    async def run(self, api: KubeApi, seed: int) -> None:
        """Lead whenever possible, until cancelled."""
        loop = asyncio.get_running_loop()
        async with api.client(timeout_s=5) as client:
            self.lease = lease = LeaderLease(
                client,
                namespace="default",
                name="gp4u",
                identity=self.name,
                clock=VirtualClock(),
                random=Random(seed),
            )

            async def lead() -> None:
                self.notes.append((self.name, loop.time(), "begins", lease.fence))
                try:
                    await asyncio.sleep(10**9)
                finally:
                    self.notes.append((self.name, loop.time(), "ends", lease.fence))

            await lease.run(lead)


def test_one_leads_and_the_other_takes_over_at_once_when_it_leaves() -> None:
    """A rolling update must not leave the node without a leader for a lease's length."""

    async def life() -> None:
        api, notes = KubeApi(), list[tuple[str, float, str, int]]()
        async with asyncio.TaskGroup() as group:
            a = group.create_task(Candidate("a", notes).run(api, 1))
            await asyncio.sleep(1)
            b = group.create_task(Candidate("b", notes).run(api, 2))
            await asyncio.sleep(60)
            a.cancel()
            await asyncio.sleep(10)
            b.cancel()
        assert [(name, what, fence) for name, _, what, fence in notes] == [
            ("a", "begins", 1),
            ("a", "ends", 1),
            ("b", "begins", 2),
            ("b", "ends", 2),
        ]
        assert notes[2][1] - notes[1][1] <= 4

    run_virtual(life)


def test_a_killed_leader_is_followed_after_its_lease_has_expired() -> None:
    """Not sooner, as it may only be slow; not much later, as nobody acts meanwhile (R1)."""

    async def life() -> None:
        api, notes = KubeApi(), list[tuple[str, float, str, int]]()
        record = {
            "holderIdentity": "killed",
            "leaseDurationSeconds": 15,
            "leaseTransitions": 4,
            "renewTime": "1999-01-01T00:00:00.000000Z",
        }
        api.add({"kind": "Lease", "metadata": {"name": "gp4u"}, "spec": record})
        async with asyncio.TaskGroup() as group:
            task = group.create_task(Candidate("b", notes).run(api, 2))
            await asyncio.sleep(30)
            task.cancel()
        (_, at, _, fence), *_ = notes
        assert 15 <= at <= 19
        assert fence == 5

    run_virtual(life)


@pytest.mark.parametrize("trouble", ["down", "hung", "503", "denied"])
def test_who_cannot_renew_stops_before_anybody_else_may_begin(trouble: str) -> None:
    """10 s without a renewal, and no call that costs money is made any more (R3)."""

    async def life() -> None:
        api, notes = KubeApi(), list[tuple[str, float, str, int]]()
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as group:
            candidate = Candidate("a", notes)
            task = group.create_task(candidate.run(api, 1))
            await asyncio.sleep(20.5)
            lease = candidate.lease
            assert lease is not None
            led = [lease.leads]
            began = loop.time()
            match trouble:
                case "down":
                    api.set_down()
                case "hung":
                    api.hung = True
                case "503":
                    api.fail("*", "leases", 503)
                case _:
                    api.deny("update", "leases")
            await asyncio.sleep(12)
            led.append(lease.leads)
            assert led == [True, False]
            assert notes[-1][2] == "ends"
            assert 7.9 <= notes[-1][1] - began <= 10
            task.cancel()

    run_virtual(life)


def test_a_hiccup_shorter_than_the_deadline_is_survived() -> None:
    """An API server that restarts must not restart the node as well."""

    async def life() -> None:
        api, notes = KubeApi(), list[tuple[str, float, str, int]]()
        async with asyncio.TaskGroup() as group:
            task = group.create_task(Candidate("a", notes).run(api, 1))
            await asyncio.sleep(20.5)
            api.set_down()
            await asyncio.sleep(6)
            api.set_down(False)
            api.fail("update", "leases", 409, reason="Conflict", times=2)
            await asyncio.sleep(60)
            assert [what for _, _, what, _ in notes] == ["begins"]
            task.cancel()

    run_virtual(life)


def test_who_was_overtaken_stops_as_soon_as_it_sees_so() -> None:
    """Somebody edited the Lease, or we were stopped for too long: the record decides."""

    async def life() -> None:
        api, notes = KubeApi(), list[tuple[str, float, str, int]]()
        async with asyncio.TaskGroup() as group:
            task = group.create_task(Candidate("a", notes).run(api, 1))
            await asyncio.sleep(20.5)
            api.change(PATH, {"spec": {"holderIdentity": "b", "leaseTransitions": 2}})
            await asyncio.sleep(3)
            assert [what for _, _, what, _ in notes] == ["begins", "ends"]
            await asyncio.sleep(30)
            assert notes[-1][2:] == ("begins", 3)
            task.cancel()

    run_virtual(life)


def test_a_deleted_lease_ends_the_term() -> None:
    """Whoever sees no Lease may make one: we cannot know whether somebody did."""

    async def life() -> None:
        api, notes = KubeApi(), list[tuple[str, float, str, int]]()
        async with asyncio.TaskGroup() as group:
            task = group.create_task(Candidate("a", notes).run(api, 1))
            await asyncio.sleep(20.5)
            api.remove(PATH)
            await asyncio.sleep(10)
            assert [what for _, _, what, _ in notes] == ["begins", "ends", "begins"]
            task.cancel()

    run_virtual(life)


def test_a_lead_that_ends_lets_the_lease_go_and_its_bug_comes_out() -> None:
    """Else the next one waits for nothing, and the bug is never seen."""

    async def life() -> None:
        api = KubeApi()
        async with api.client() as client:
            lease = LeaderLease(
                client,
                namespace="default",
                name="gp4u",
                identity="a",
                clock=VirtualClock(),
                random=Random(1),
            )

            async def fine() -> None:
                await asyncio.sleep(5)

            async def broken() -> None:
                raise ZeroDivisionError

            await lease.run(fine)
            held = api.find(PATH)
            assert held is not None
            assert held["spec"]["holderIdentity"] == ""
            with pytest.raises(ExceptionGroup) as caught:
                await lease.run(broken)
            assert caught.group_contains(ZeroDivisionError)
            assert not lease.leads

    run_virtual(life)


@pytest.mark.parametrize("seed", range(12))
def test_never_two_lead_at_once_whatever_happens(seed: int) -> None:
    """The law: terms do not overlap, and each has a higher number than the one before (R1)."""
    random = Random(seed)

    async def life() -> None:
        api, notes = KubeApi(), list[tuple[str, float, str, int]]()
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(Candidate(name, notes).run(api, seed + at))
                for at, name in enumerate("abc")
            ]
            for _ in range(40):
                match random.randrange(6):
                    case 0:
                        api.set_down(not api.down)
                    case 1:
                        api.fail("*", "leases", random.choice([409, 429, 500]), times=4)
                    case 2:
                        api.latency_s = random.choice([0, 0.5, 4])
                    case 3:
                        at = random.randrange(3)
                        tasks[at].cancel()
                        name = f"{'abc'[at]}{random.random()}"
                        tasks[at] = group.create_task(Candidate(name, notes).run(api, seed))
                    case _:
                        pass
                await asyncio.sleep(random.choice([0.1, 3, 20]))
            api.set_down(False)
            api.latency_s = 0
            await asyncio.sleep(60)
            assert notes[-1][2] == "begins", "nobody leads in the end"
            for task in tasks:
                task.cancel()
        leads: str | None = None
        fence = 0
        for name, _, what, number in notes:
            if what == "begins":
                assert leads is None
                assert number > fence
                leads, fence = name, number
            else:
                assert leads == name
                leads = None

    run_virtual(life, seed)
