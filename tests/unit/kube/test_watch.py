"""The informer against an API server in trouble, one trouble at a time; its law is below."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import pytest

from gp4u.kube.watch import Informer
from tests.kube_api import Cut, KubeApi
from tests.kube_store import Change
from tests.virtual_loop import run_virtual

PATH = "/api/v1/pods"
Told = list[tuple[str | None, str | None]]


def pod(name: str, node: str = "n1", **meta: Any) -> dict[str, Any]:
    """Return a pod to be added."""
    return {"kind": "Pod", "metadata": {"name": name, **meta}, "spec": {"nodeName": node}}


@asynccontextmanager
async def following(api: KubeApi) -> AsyncIterator[tuple[Informer, Told]]:
    """Run an informer of the pods of node n1; second: what it told, as names with UID tails."""
    told: Told = []

    def label(each: dict[str, Any] | None) -> str | None:
        return None if each is None else each["metadata"]["name"]

    async with api.client() as client, asyncio.TaskGroup() as group:
        informer = Informer(
            client,
            PATH,
            random=Random(5),
            params={"fieldSelector": "spec.nodeName=n1"},
            on_change=lambda old, new: told.append((label(old), label(new))),
        )
        task = group.create_task(informer.run())
        yield informer, told
        task.cancel()


def held(informer: Informer) -> set[str]:
    """Return the UIDs that an informer knows."""
    return set(informer.objects)


def there(api: KubeApi) -> set[str]:
    """Return the UIDs of the pods of node n1."""
    return {p["metadata"]["uid"] for p in api.all("pods") if p["spec"]["nodeName"] == "n1"}


def test_what_is_there_and_what_comes_is_told_once() -> None:
    """The list and the watch overlap nowhere, and other nodes' pods are not ours."""

    async def life() -> None:
        api = KubeApi()
        api.add(pod("a"))
        api.add(pod("strange", node="n2"))
        async with following(api) as (informer, told):
            await informer.synced.wait()
            api.add(pod("b"))
            api.change("/api/v1/namespaces/default/pods/a", {"metadata": {"labels": {"x": "y"}}})
            api.remove("/api/v1/namespaces/default/pods/b", grace_s=0)
            await asyncio.sleep(1)
            assert told == [(None, "a"), (None, "b"), ("a", "a"), ("b", None)]
            assert held(informer) == there(api)

    run_virtual(life)


def test_managed_fields_are_not_kept() -> None:
    """They are often half of an object, and a node holds a thousand of them."""

    async def life() -> None:
        api = KubeApi()
        api.add(pod("a", managedFields=[{"manager": "kubectl"}]))
        async with following(api) as (informer, _):
            await informer.synced.wait()
            api.add(pod("b", managedFields=[{"manager": "kubectl"}]))
            await asyncio.sleep(1)
            assert len(informer.objects) == 2
            assert not any("managedFields" in p["metadata"] for p in informer.objects.values())

    run_virtual(life)


def test_lists_are_read_page_by_page() -> None:
    """A node of 1,200 pods comes in three pages, and nothing blocks the loop for long."""

    async def life() -> None:
        api = KubeApi()
        for number in range(1200):
            api.add(pod(f"p{number}"))
        async with following(api) as (informer, _):
            await informer.synced.wait()
            assert held(informer) == there(api)
            assert len(api.told("list")) == 3
            assert all(each["kind"] == "Pod" for each in informer.objects.values())

    run_virtual(life)


@pytest.mark.parametrize("how", [Cut.END, Cut.RESET, Cut.GONE, Cut.SILENT])
def test_a_cut_watch_is_taken_up_again(how: Cut) -> None:
    """Half-open connections, restarts and compaction all end in the same state (K1, K2)."""

    async def life() -> None:
        api = KubeApi()
        api.add(pod("a"))
        async with following(api) as (informer, told):
            await asyncio.sleep(30)
            assert api.cut(how) == 1
            api.add(pod("b"))
            api.remove("/api/v1/namespaces/default/pods/a", grace_s=0)
            await asyncio.sleep(160 if how is Cut.SILENT else 5)
            assert held(informer) == there(api)
            assert sorted(told[1:], key=str) == [("a", None), (None, "b")]
            assert informer.relists == (2 if how is Cut.GONE else 1)

    run_virtual(life)


def test_compaction_while_away_lists_again_and_makes_up_the_deletes() -> None:
    """410 comes as an HTTP status here: what vanished in between has to be told (K1, K5)."""

    async def life() -> None:
        api = KubeApi()
        api.add(pod("a"))
        async with following(api) as (informer, told):
            await informer.synced.wait()
            await asyncio.sleep(1)
            api.set_down()
            await asyncio.sleep(20)
            api.remove("/api/v1/namespaces/default/pods/a", grace_s=0)
            api.add(pod("b"))
            api.forget_history()
            api.set_down(False)
            await asyncio.sleep(5)
            assert told == [(None, "a"), ("a", None), (None, "b")]

    run_virtual(life)


def test_the_same_name_with_a_new_uid_is_a_delete_and_an_add() -> None:
    """A StatefulSet's next pod must never inherit the last one's machine (K7)."""

    async def life() -> None:
        api = KubeApi()
        api.add(pod("web-0"))
        async with following(api) as (informer, told):
            await informer.synced.wait()
            await asyncio.sleep(1)
            api.set_down()
            api.remove("/api/v1/namespaces/default/pods/web-0", grace_s=0)
            api.add(pod("web-0"))
            api.forget_history()
            api.set_down(False)
            await asyncio.sleep(5)
            assert told == [(None, "web-0"), ("web-0", None), (None, "web-0")]
            assert held(informer) == there(api)

    run_virtual(life)


def test_an_older_bearer_of_a_name_that_is_told_again_takes_nobodys_place() -> None:
    """After a restore of etcd the past may be told once more; its pod must not oust ours (K4)."""

    async def life() -> None:
        api = KubeApi()
        first = api.add(pod("web-0"))
        async with following(api) as (informer, told):
            await informer.synced.wait()
            await asyncio.sleep(5)
            api.remove("/api/v1/namespaces/default/pods/web-0", grace_s=0)
            api.add(pod("web-0"))
            await asyncio.sleep(5)
            before = list(told)
            api.store.version += 1
            api.store._tell(Change(api.store.version, "v1", "pods", first, first))
            await asyncio.sleep(5)
            assert told == before
            assert held(informer) == there(api)

    run_virtual(life)


@pytest.mark.parametrize("code", [429, 500, 503])
def test_a_storm_is_waited_out_and_noticed_to_be_over_within_five_seconds(code: int) -> None:
    """Backing off must not turn a minute's outage of the API into two of ours (K3)."""

    async def life() -> None:
        api = KubeApi()
        async with following(api) as (informer, _):
            await informer.synced.wait()
            storm = api.fail("*", "pods", code)
            api.cut(Cut.RESET)
            await asyncio.sleep(300)
            assert 60 <= storm.hits <= 130
            assert f"{code}" in informer.trouble
            api.add(pod("late"))
            storm.lift()
            await asyncio.sleep(5)
            assert held(informer) == there(api)
            assert informer.trouble == ""

    run_virtual(life)


def test_retry_after_is_honoured() -> None:
    """The server knows best how long it wants to be left alone."""

    async def life() -> None:
        api = KubeApi()
        fault = api.fail("list", "pods", 429, times=1, retry_after_s=20)
        async with following(api) as (informer, _):
            await asyncio.sleep(19.9)
            assert fault.hits == 1
            assert not informer.synced.is_set()
            await asyncio.sleep(1)
            assert informer.synced.is_set()

    run_virtual(life)


def test_a_missing_permission_is_named_and_asked_for_seldom() -> None:
    """403 is an alert for a person, not a loop against the API (K12)."""

    async def life() -> None:
        api = KubeApi()
        denied = api.deny("list", "pods")
        async with following(api) as (informer, _):
            await asyncio.sleep(600)
            assert "forbidden" in informer.trouble
            assert denied.hits <= 41
            denied.lift()
            await asyncio.sleep(31)
            assert informer.synced.is_set()

    run_virtual(life)


def test_a_quiet_watch_hears_its_bookmarks() -> None:
    """Readiness goes by `heard_s`, and a node without events is not a deaf one."""

    async def life() -> None:
        api = KubeApi()
        async with following(api) as (informer, _):
            worst = 0.0
            for _ in range(1800):
                await asyncio.sleep(1)
                worst = max(worst, informer.heard_s)
            assert worst <= 62
            assert informer.relists == 1
            assert len(api.told("watch")) <= 7

    run_virtual(life)


def test_watches_that_end_at_once_do_not_spin() -> None:
    """A proxy that closes every stream must cost a call every few seconds, not thousands."""

    async def life() -> None:
        api = KubeApi()
        async with following(api) as (informer, _):
            await informer.synced.wait()
            for _ in range(600):
                api.cut(Cut.END)
                await asyncio.sleep(0.1)
            assert len(api.told("watch")) < 40

    run_virtual(life)


def test_lists_that_are_too_old_at_once_do_not_spin() -> None:
    """A server that answers each watch with 410 must not be listed for as fast as it can."""

    async def life() -> None:
        api = KubeApi()
        gone = api.fail("watch", "pods", 410, times=500)
        async with following(api) as (informer, _):
            await asyncio.sleep(60)
            assert 12 <= informer.relists <= 40
            gone.lift()
            api.add(pod("late"))
            await asyncio.sleep(5)
            assert held(informer) == there(api)

    run_virtual(life)


@pytest.mark.parametrize("seed", range(40))
def test_whatever_happens_it_ends_with_what_the_server_has(seed: int) -> None:
    """The law: any order of changes, cuts, outages and compactions converges (K1-K5, K7).

    What was told adds up to the same: a delete for each add but those still there, per UID.
    """
    random = Random(seed)

    async def life() -> None:
        api = KubeApi()
        alive: dict[str, str] = {}

        def note(old: dict[str, Any] | None, new: dict[str, Any] | None) -> None:
            for each in (old, new):
                if each is not None and old is not None and new is not None:
                    assert each["metadata"]["uid"] in alive, "changed, and never added"
            if old is None and new is not None:
                assert new["metadata"]["uid"] not in alive, "added twice"
                assert new["metadata"]["name"] not in alive.values(), "two of one name"
                alive[new["metadata"]["uid"]] = new["metadata"]["name"]
            if new is None and old is not None:
                del alive[old["metadata"]["uid"]]

        async with api.client() as client, asyncio.TaskGroup() as group:
            informer = Informer(
                client,
                PATH,
                random=random,
                params={"fieldSelector": "spec.nodeName=n1"},
                on_change=note,
            )
            task = group.create_task(informer.run())
            for _ in range(60):
                _trouble(api, random)
                await asyncio.sleep(random.choice([0, 0, 0.01, 1, 20, 200]))
            api.set_down(False)
            await asyncio.sleep(160)
            assert held(informer) == there(api) == set(alive)
            versions = {p["metadata"]["resourceVersion"] for p in informer.objects.values()}
            assert versions == {
                p["metadata"]["resourceVersion"]
                for p in api.all("pods")
                if p["spec"]["nodeName"] == "n1"
            }
            task.cancel()

    run_virtual(life, seed)


def _trouble(api: KubeApi, random: Random) -> None:
    names = [each["metadata"]["name"] for each in api.all("pods")]
    match random.randrange(9):
        case 0 | 1 | 2:
            name = f"p{random.randrange(5)}"
            if name not in names:
                api.add(pod(name, node=random.choice(["n1", "n1", "n2"])))
        case 3 if names:
            path = f"/api/v1/namespaces/default/pods/{random.choice(names)}"
            api.remove(path, grace_s=random.choice([0, None]))
        case 4 if names:
            path = f"/api/v1/namespaces/default/pods/{random.choice(names)}"
            api.change(path, {"metadata": {"labels": {"at": str(random.random())}}})
        case 5:
            api.cut(random.choice(list(Cut)))
        case 6:
            api.set_down(not api.down)
        case 7:
            api.forget_history()
        case _:
            api.fail("*", "pods", random.choice([429, 500, 410]), times=random.randrange(3))
