"""The least that could be done for the same pods: a client that only writes their statuses.

It watches the pods of a node, and as soon as it sees one it sends what the node sent of one of its
pods, patch after patch, as the same ServiceAccount and over the same transport. It knows no market,
no ledger and no Events, decides nothing, and checks nothing but that each patch was taken.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping
from itertools import cycle
from pathlib import Path
from typing import Any

from gp4u.kube import paths
from gp4u.kube.access import find_access
from gp4u.kube.client import KubeClient, open_client


async def _serve(kubeconfig: str, node: str, namespace: str, bodies: Path) -> None:
    patches: list[list[dict[str, Any]]] = json.loads(await asyncio.to_thread(bodies.read_text))
    waiting = cycle(patches)
    path, mine, seen = paths.pods(namespace), f"spec.nodeName={node}", set[str]()
    access = find_access(kubeconfig=kubeconfig)
    async with open_client(access, writes_per_s=None) as client, asyncio.TaskGroup() as group:
        version = (await client.list(path, fieldSelector=mine)).version
        print("watching", flush=True)
        while True:  # the server ends a watch that is read too slowly
            async for event in client.watch(path, version=version, fieldSelector=mine):
                meta = event.object["metadata"]
                version = meta["resourceVersion"]
                if event.kind == "ADDED" and meta["uid"] not in seen:
                    seen.add(meta["uid"])
                    group.create_task(_write(client, namespace, meta, next(waiting)))


async def _write(
    client: KubeClient, namespace: str, meta: Mapping[str, Any], patches: list[dict[str, Any]]
) -> None:
    path = paths.pod(namespace, meta["name"], "status")
    for each in patches:
        await client.patch(path, {"metadata": {"uid": meta["uid"]}, "status": each})


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1], sys.argv[2], sys.argv[3], Path(sys.argv[4])))
