"""Logs as they are asked for, one look after the other."""

from __future__ import annotations

import asyncio

from gp4u.kubelet.held import Ended, Held, Run
from gp4u.kubelet.logs.store import LogStore
from gp4u.kubelet.server.logs import Logs
from tests.unit.kubelet.shown import Shown, held, rental, state
from tests.virtual_loop import VirtualClock, run_virtual


async def told(logs: Logs, pod: Held, **asked: str) -> str:
    """Return the log of a pod's first container, as it was asked for."""
    query = {name: [value] for name, value in asked.items()}
    reply = await logs.reply(pod, pod.containers[0], query, lambda: pod)
    assert not isinstance(reply.body, bytes)
    return b"".join([piece async for piece in reply.body]).decode()


def test_a_look_at_the_last_line_loses_none_of_those_before() -> None:
    """What was not asked for today is asked for tomorrow: by people, or when the pod has ended."""

    async def inside() -> None:
        market, pod = Shown(), held(of=rental())
        store = LogStore({"shown": market}, clock=VirtualClock())
        logs = Logs(store, clock=VirtualClock())
        market.text = "one\ntwo\nthree\n"
        assert await told(logs, pod, tailLines="1") == "three\n"
        assert await told(logs, pod) == "one\ntwo\nthree\n"
        await asyncio.sleep(10)
        market.text += "four\nfive\nsix\n"
        assert await told(logs, pod, tailLines="1") == "six\n"
        await store.keep_final(pod)
        pod = held(state(run=Run.TERMINATED))
        assert await told(logs, pod) == market.text

    run_virtual(inside)


def test_a_machine_that_is_made_ready_hides_no_log_of_the_one_before() -> None:
    """Why the first machine failed is asked while the next one starts, which takes minutes."""

    async def inside() -> None:
        market, pod = Shown(), held(of=rental())
        store = LogStore({"shown": market}, clock=VirtualClock())
        logs = Logs(store, clock=VirtualClock())
        market.text = "boom\n"
        await store.keep_final(pod)
        market.text = ""
        waits = state(run=Run.WAITING, last=Ended(exit_code=1, reason="Error"))
        pod = held(waits, of=rental("gp4u-x-2"))
        assert await told(logs, pod, previous="true") == "boom\n"
        assert await told(logs, pod) == "boom\n"
        market.text = "fine\n"
        pod = held(state(number=2, last=waits.last_ended), of=rental("gp4u-x-2"))
        await asyncio.sleep(10)
        assert await told(logs, pod, previous="true") == "boom\n"
        assert await told(logs, pod) == "fine\n"

    run_virtual(inside)
