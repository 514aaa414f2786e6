"""Logs as they are asked for, one look after the other."""

from __future__ import annotations

import asyncio

from gp4u.kubelet.held import Run
from gp4u.kubelet.logs.store import LogStore
from gp4u.kubelet.server.logs import Logs
from tests.unit.kubelet.shown import Shown, held, rental, state
from tests.virtual_loop import VirtualClock, run_virtual


def test_a_look_at_the_last_line_loses_none_of_those_before() -> None:
    """What was not asked for today is asked for tomorrow: by people, or when the pod has ended."""

    async def inside() -> None:
        market, pod = Shown(), held(of=rental())
        store = LogStore({"shown": market}, clock=VirtualClock())
        logs = Logs(store, clock=VirtualClock())

        async def told(**asked: str) -> str:
            query = {name: [value] for name, value in asked.items()}
            reply = await logs.reply(pod, pod.containers[0], query, lambda: pod)
            assert not isinstance(reply.body, bytes)
            return b"".join([piece async for piece in reply.body]).decode()

        market.text = "one\ntwo\nthree\n"
        assert await told(tailLines="1") == "three\n"
        assert await told() == "one\ntwo\nthree\n"
        await asyncio.sleep(10)
        market.text += "four\nfive\nsix\n"
        assert await told(tailLines="1") == "six\n"
        await store.keep_final(pod)
        pod = held(state(run=Run.TERMINATED))
        assert await told() == market.text

    run_virtual(inside)
