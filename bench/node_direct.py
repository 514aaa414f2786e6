"""The least that could be done for the same pods: a client that only writes their statuses.

It watches the pods of a node, and as soon as it sees one it sends the patches that it was given,
one after the other, as the same ServiceAccount and over the same transport as the node. It knows no
market, no ledger and no Events, decides nothing, and checks nothing but that each patch was taken.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import httpx
import msgspec

from gp4u.kube.access import find_access
from gp4u.kube.client import AT_ONCE

STRATEGIC = {"content-type": "application/strategic-merge-patch+json"}


async def _serve(kubeconfig: str, node: str, namespace: str, bodies: Path) -> None:
    patches: list[dict[str, Any]] = json.loads(await asyncio.to_thread(bodies.read_text))
    access = find_access(kubeconfig=kubeconfig)
    path = f"/api/v1/namespaces/{namespace}/pods"
    query = {"watch": "true", "fieldSelector": f"spec.nodeName={node}"}
    room, seen = asyncio.Semaphore(AT_ONCE), set[str]()
    async with (
        httpx.AsyncClient(
            base_url=access.server, auth=access.auth(), transport=access.transport(), timeout=60
        ) as client,
        asyncio.TaskGroup() as group,
    ):
        while True:  # the server ends a watch that is read too slowly
            async with client.stream("GET", path, params=query, timeout=None) as watch:
                print("watching", flush=True)
                async for line in watch.aiter_lines():
                    if '"type":"ADDED"' not in line[:32]:
                        continue
                    meta = msgspec.json.decode(line)["object"]["metadata"]
                    if meta["uid"] not in seen:
                        seen.add(meta["uid"])
                        url = f"{path}/{meta['name']}/status"
                        group.create_task(_write(client, room, url, meta["uid"], patches))


async def _write(
    client: httpx.AsyncClient,
    room: asyncio.Semaphore,
    url: str,
    uid: str,
    patches: list[dict[str, Any]],
) -> None:
    for each in patches:
        body = msgspec.json.encode({"metadata": {"uid": uid}, "status": each})
        async with room:
            reply = await client.patch(url, content=body, headers=STRATEGIC)
        reply.raise_for_status()


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1], sys.argv[2], sys.argv[3], Path(sys.argv[4])))
