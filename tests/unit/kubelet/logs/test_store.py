"""Logs of containers: fetched, followed, and kept when the machine is gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from gp4u.errors import InstanceAbsent, Unavailable
from gp4u.kubelet.held import Run
from gp4u.kubelet.logs.run import RunLog
from gp4u.kubelet.logs.store import LogStore
from gp4u.providers.contract import Ability
from tests.unit.kubelet.shown import Shown, held, rental, state
from tests.virtual_loop import VirtualClock, run_virtual


def store_of(market: Shown, directory: Path | None = None, **bounds: int) -> LogStore:
    """Return a store in front of one market."""
    return LogStore({"shown": market}, clock=VirtualClock(), directory=directory, **bounds)


def texts(store: LogStore, container: str = "stt", uid: str = "uid-1") -> list[str]:
    """Return what is kept of each run."""
    return [text_of(run) for run in store.runs(uid, container)]


def text_of(run: RunLog) -> str:
    pieces, _ = run.read(0, 1 << 30)
    return b"".join(data for _, data in pieces).decode()


def test_marks_are_not_shown_and_say_how_runs_ended() -> None:
    """Our bootstrap's lines are for us: a run's end and its exit code, no words of the workload."""

    async def inside() -> None:
        market, pod = Shown(), held(of=rental())
        store = store_of(market)
        market.text = "gp4u: run 1\nhello\nbye gp4u: exit 7\ngp4u: run 2\nagain\n"
        assert await store.look(pod, "stt") == ""
        assert texts(store) == ["hello\nbye ", "again\n"]
        assert [run.exit_code for run in store.runs("uid-1", "stt")] == [7, None]
        ending = store.ending("uid-1", "stt")
        assert ending is not None
        assert (ending.run, ending.exit_code) == (2, None)

    run_virtual(inside)


def test_init_containers_have_logs_of_their_own() -> None:
    """They run before the workload in its place; `kubectl logs -c` must tell them apart."""

    async def inside() -> None:
        market = Shown()
        inits = (state("fetch", Run.TERMINATED), state("warm", Run.TERMINATED))
        pod = held(state(), inits=inits, of=rental())
        store = store_of(market)
        market.text = (
            "no net\ngp4u: init 0 exit 4\ngot it\ngp4u: init 0 exit 0\n"
            "warm\ngp4u: init 1 exit 0\ngp4u: run 1\nserving\n"
        )
        await store.look(pod, "stt")
        assert texts(store, "fetch") == ["no net\n", "got it\n"]
        assert texts(store, "warm") == ["warm\n"]
        assert texts(store) == ["serving\n"]
        ending = store.ending("uid-1", "fetch")
        assert ending is not None
        assert (ending.run, ending.exit_code) == (2, 0)

    run_virtual(inside)


def test_containers_side_by_side_have_logs_and_ends_of_their_own() -> None:
    """Each is asked for by its name; the init containers print where the first one does."""

    async def inside() -> None:
        inits = (state("fetch", Run.TERMINATED),)
        market, pod = Shown(), held(state("stt"), state("tts"), inits=inits, of=rental())
        store = store_of(market)
        market.text = "got it\ngp4u: init 0 exit 0\ngp4u: run 1\nhear: me\ngp4u: exit 2\n"
        market.beside["tts"] = "gp4u: run 1\nspeak\ngp4u: exit 3\ngp4u: run 2\n"
        for name in ("stt", "tts", "fetch"):
            await store.look(pod, name)
        assert len(market.looks) == 2
        assert texts(store, "fetch") == ["got it\n"]
        assert (texts(store, "stt"), texts(store, "tts")) == (["hear: me\n"], ["speak\n", ""])
        endings = [store.ending("uid-1", name) for name in ("stt", "tts")]
        assert [(each.run, each.exit_code) for each in endings if each] == [(1, 2), (2, None)]

    run_virtual(inside)


def test_the_last_words_of_every_container_are_kept() -> None:
    """The machine takes the log of all of them along, whichever ended first."""

    async def inside() -> None:
        market, pod = Shown(), held(state("stt"), state("tts"), of=rental())
        store = store_of(market)
        market.text, market.beside["tts"] = "heard\n", "spoken\n"
        await store.keep_final(pod)
        market.text = market.beside["tts"] = "a stranger's\n"
        assert (texts(store, "stt"), texts(store, "tts")) == (["heard\n"], ["spoken\n"])
        assert all(run.is_over for name in ("stt", "tts") for run in store.runs("uid-1", name))

    run_virtual(inside)


def test_a_look_within_a_second_costs_no_call() -> None:
    """Ten people who look at one log must not be ten calls to a market with a limit."""

    async def inside() -> None:
        market, pod = Shown(), held(of=rental())
        store = store_of(market)
        market.answer_s = 0.5
        async with asyncio.TaskGroup() as group:
            for _ in range(10):
                group.create_task(store.look(pod, "stt"))
        assert len(market.looks) == 1
        await asyncio.sleep(2)
        await store.look(pod, "stt")
        assert len(market.looks) == 2

    run_virtual(inside)


def test_a_market_that_does_not_answer_is_named() -> None:
    """People are told why there is no log, and what there was stays."""

    async def inside() -> None:
        market, pod = Shown(), held(of=rental())
        store = store_of(market)
        market.text = "one\n"
        await store.look(pod, "stt")
        market.error = Unavailable("shown", "logs", "503")
        await asyncio.sleep(5)
        assert "503" in await store.look(pod, "stt")
        assert texts(store) == ["one\n"]

    run_virtual(inside)


def test_the_log_outlives_the_machine() -> None:
    """The last words of a Job are read before its machine goes, and shown as long as its pod is."""

    async def inside() -> None:
        market, pod = Shown(), held(of=rental())
        store = store_of(market)
        market.text = "result: 42\ngp4u: exit 0"
        await store.keep_final(pod)
        market.error = InstanceAbsent("shown", "logs")
        assert await store.look(held(), "stt") == ""
        assert texts(store) == ["result: 42\n"]
        ending = store.ending("uid-1", "stt")
        assert ending is not None
        assert ending.exit_code == 0
        assert store.tail("uid-1", "stt", 4) == " 42\n"
        store.forget("uid-1")
        assert texts(store) == []

    run_virtual(inside)


def test_a_dead_market_holds_no_release_up() -> None:
    """A log that cannot be read must not keep a machine that costs money (H41)."""

    async def inside() -> float:
        market, pod = Shown(), held(of=rental())
        market.answer_s = 3600
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        await store_of(market).keep_final(pod)
        return loop.time() - began_s

    assert run_virtual(inside) <= 20


def test_the_last_look_is_tried_twice() -> None:
    """One 503 right before the end must not lose the whole log of a Job."""

    async def inside() -> None:
        market, pod = Shown(), held(of=rental())
        store = store_of(market)
        market.text, market.error = "result\n", Unavailable("shown", "logs", "503")

        async def heal() -> None:
            await asyncio.sleep(1)
            market.error = None

        async with asyncio.TaskGroup() as group:
            group.create_task(heal())
            await store.keep_final(pod)
        assert texts(store) == ["result\n"]

    run_virtual(inside)


def test_another_machine_begins_another_run() -> None:
    """A pod that lost its machine has the log of the lost one as its `previous` one."""

    async def inside() -> None:
        market = Shown()
        store = store_of(market)
        market.text = "first\n"
        await store.keep_final(held(of=rental("gp4u-x-1")))
        market.text = ""
        await store.look(held(of=rental("gp4u-x-2")), "stt")
        assert texts(store) == ["first\n", ""]

    run_virtual(inside)


def test_a_termination_message_is_of_the_run_that_ended() -> None:
    """What the next run prints is no word of the one that failed."""

    async def inside() -> None:
        market, pod = Shown(), held(of=rental())
        store = store_of(market)
        market.text = "gp4u: run 1\nboom\ngp4u: exit 1\n"
        await store.look(pod, "stt")
        assert store.tail("uid-1", "stt") == "boom\n"
        market.text += "gp4u: run 2\n"
        await asyncio.sleep(5)
        await store.look(pod, "stt")
        assert store.tail("uid-1", "stt") == "boom\n", "the next run has printed nothing yet"
        market.text += "fine\n"
        await asyncio.sleep(5)
        await store.look(pod, "stt")
        assert store.tail("uid-1", "stt", before=True) == "boom\n"
        assert store.tail("uid-1", "stt") == "fine\n"

    run_virtual(inside)


def test_a_kept_log_survives_a_restart_of_the_node(tmp_path: Path) -> None:
    """The machine is gone, so nobody else can tell it any more; other people may not read it."""

    async def before() -> None:
        market = Shown()
        market.text = "result\n"
        await store_of(market, tmp_path / "logs").keep_final(held(of=rental()))

    run_virtual(before)
    (file,) = (tmp_path / "logs").iterdir()
    assert file.stat().st_mode & 0o077 == 0
    again = store_of(Shown(), tmp_path / "logs")
    assert texts(again) == ["result\n"]
    again.sweep(["uid-1"])
    assert texts(again) == ["result\n"]
    again.sweep([])
    assert not list((tmp_path / "logs").iterdir())


def test_no_name_walks_out_of_the_folder(tmp_path: Path) -> None:
    """A pod's names are foreign text (S11)."""

    async def inside() -> None:
        market = Shown()
        market.text = "x\n"
        store = store_of(market, tmp_path / "logs")
        await store.keep_final(held(of=rental(), uid="../../etc"))
        assert texts(store, uid="../../etc") == ["x\n"]

    run_virtual(inside)
    assert [each.name for each in tmp_path.iterdir()] == ["logs"]
    assert not list((tmp_path / "logs").iterdir())


def test_disk_and_memory_are_bounded(tmp_path: Path) -> None:
    """A thousand chatty pods must not fill either; the newest logs stay."""

    async def inside(directory: Path | None) -> LogStore:
        market = Shown()
        bounds = {"total_bytes": 100_000, "spool_bytes": 100_000}
        store = store_of(market, directory, **bounds)
        for number in range(30):
            market.text = f"{number} " + "x" * 10_000 + "\n"
            await store.keep_final(
                held(of=rental(f"gp4u-x-{number}"), uid=f"uid-{number}", name=f"p{number}")
            )
        return store

    async def in_memory() -> None:
        store = await inside(None)
        kept = [len(t) for n in range(30) for t in texts(store, uid=f"uid-{n}")]
        assert sum(kept) <= 110_000
        assert texts(store, uid="uid-29")[0].startswith("29 ")

    async def on_disk() -> None:
        store = await inside(tmp_path)
        assert texts(store, uid="uid-29")[0].startswith("29 ")

    run_virtual(in_memory)
    run_virtual(on_disk)
    assert sum(each.stat().st_size for each in tmp_path.iterdir()) <= 110_000


def test_a_follower_keeps_the_log_fresh_and_a_silent_one_is_asked_less() -> None:
    """Polling costs calls: only while somebody follows, and slower where nothing comes."""

    async def inside() -> None:
        market, pod = Shown(), held(of=rental())
        store = store_of(market)
        async with store.attended(lambda: pod, "stt"):
            for number in range(5):
                market.text += f"{number}\n"
                await asyncio.sleep(2)
            assert texts(store) == ["0\n1\n2\n3\n4\n"]
            asked = len(market.looks)
            await asyncio.sleep(80)
            assert len(market.looks) - asked <= 16
        asked = len(market.looks)
        await asyncio.sleep(600)
        assert len(market.looks) == asked

    run_virtual(inside)


def test_a_hundred_followers_ask_as_often_as_one() -> None:
    """A dashboard that is open on many screens must not use up a market's limit."""

    async def inside() -> None:
        market, pod = Shown(), held(of=rental())
        store = store_of(market)

        async def watch() -> None:
            async with store.attended(lambda: pod, "stt"):
                await asyncio.sleep(60)

        async with asyncio.TaskGroup() as group:
            for _ in range(100):
                group.create_task(watch())
        assert len(market.looks) <= 60

    run_virtual(inside)


@pytest.mark.parametrize("early", ["", "2\n", "1\n2\n"])
def test_a_stream_is_followed_without_gaps_or_repeats(early: str) -> None:
    """Where the market streams, lines come at once, and those of both ways only once."""

    async def inside() -> None:
        market = Shown(can=Ability.LOGS | Ability.FOLLOW)
        market.stream = asyncio.Queue()
        pod = held(of=rental())
        store = store_of(market)
        market.text = "1\n2\n"
        market.stream.put_nowait(early.encode())
        async with store.attended(lambda: pod, "stt"):
            await asyncio.sleep(3)
            for line in (b"3\n", b"4", b"\n"):
                market.stream.put_nowait(line)
                market.text += line.decode()
            await asyncio.sleep(1)
            assert texts(store) == ["1\n2\n3\n4\n"]
            market.stream.put_nowait(None)
            await asyncio.sleep(30)
            assert texts(store) == ["1\n2\n3\n4\n"]
        await store.keep_final(pod)
        assert texts(store) == ["1\n2\n3\n4\n"]

    run_virtual(inside)


def test_a_follower_who_leaves_in_the_middle_takes_his_own_end_with_him() -> None:
    """Ctrl-C closes a generator that has more to say; that is its end, and no failure of ours."""

    async def inside() -> None:
        pod = held(of=rental())
        store = store_of(Shown())
        before = asyncio.all_tasks()

        async def following() -> AsyncGenerator[int, None]:
            async with store.attended(lambda: pod, "stt"):
                yield 1
                yield 2

        follower = following()
        assert await anext(follower) == 1
        assert asyncio.all_tasks() != before
        await follower.aclose()
        assert asyncio.all_tasks() == before, "nobody is asked any more"

    run_virtual(inside)
