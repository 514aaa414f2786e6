"""What the markets hold in store for a node: the same machines that its pods may get."""

from __future__ import annotations

import asyncio
from pathlib import Path

from gp4u.book import STANDING
from gp4u.kubelet.node.capacity import NO_OFFER
from gp4u.kubelet.node.outlook import LOOK_S, MarketOutlook, gpus_of
from tests.unit.kubelet.cluster import Cluster, gpu_pod, told, with_policy
from tests.virtual_loop import VirtualClock


def test_what_the_nodes_highest_price_forbids_is_not_offered(tmp_path: Path) -> None:
    """Pods would be bound to a node that rents nothing for them."""

    async def tale(cluster: Cluster) -> None:
        async with cluster.node() as node, asyncio.TaskGroup() as group:
            outlook = MarketOutlook(
                book=node.app.book,
                ledger=node.app.ledger,
                guards=node.app.guards,
                budget=node.app.budget,
                policy=lambda: cluster.policy,
                pods=node.controller,
                clock=VirtualClock(),
            )
            parts = [
                group.create_task(each) for each in (node.app.book.keep(STANDING), outlook.run())
            ]
            await asyncio.sleep(LOOK_S)
            assert outlook.tell().room.more
            with_policy(cluster, max_price_usd_per_hour=0.001)
            await asyncio.sleep(LOOK_S)
            assert outlook.tell().room.more == 0
            assert outlook.tell().room.shortage == NO_OFFER
            for part in parts:
                part.cancel()

    told(tale, tmp_path)


def test_gpus_of_a_pod_are_those_that_the_scheduler_sets_aside() -> None:
    """Init containers go before the others, so that the larger need counts."""
    four = {"name": "fetch", "resources": {"limits": {"nvidia.com/gpu": "4"}}}
    pod = gpu_pod("a", containers=[{}, {"name": "beside"}], initContainers=[four])

    assert gpus_of(pod) == 4
    assert gpus_of(gpu_pod("a", containers=[{}, {"name": "beside"}])) == 2
    assert gpus_of({**pod, "status": {"phase": "Succeeded"}}) == 0
