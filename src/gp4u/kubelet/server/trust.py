"""By which authority clients of the kubelet's port are known: a file, or what the cluster says.

Clusters publish the CA of the API server's own client certificates for extension API servers, in
the ConfigMap `kube-system/extension-apiserver-authentication`. Either source is read again and
again; one that cannot be read, or holds nonsense, leaves what was good before in force.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Final

import structlog

from gp4u.errors import BadInput, KubeAbsent, KubeError
from gp4u.kube.client import KubeClient
from gp4u.kube.paths import configmap
from gp4u.kubelet.server.keys import check_authority

NAMESPACE: Final = "kube-system"
CONFIG_MAP: Final = "extension-apiserver-authentication"
KEY: Final = "client-ca-file"
"""Source: kubernetes staging/src/k8s.io/apiserver/pkg/authentication/request/headerrequest and
pkg/server/options/authentication.go, 1.32; checked 2026-11."""
FILE_S: Final = 30.0
CLUSTER_S: Final = 300.0
AGAIN_S: Final = 15.0


class ClientTrust:
    """The CA of client certificates as it is now."""

    def __init__(
        self, client: KubeClient | None, *, file: Path | None = None, random: Random
    ) -> None:
        """Without a file the cluster is asked; without either no certificate is asked for."""
        self._client, self._file, self._random = client, file, random
        self._problem = ""
        self.pem: bytes | None = None
        """None: not known, so that only tokens are looked at."""
        self.on_change: Callable[[], None] = lambda: None

    async def read(self) -> bool:
        """Look once; return whether the source could be read. Trouble is logged as it begins."""
        try:
            found = await self._found()
        except (KubeError, BadInput, OSError) as error:
            problem = f"{type(error).__name__}: {error}"
            if problem != self._problem:
                known = "the last good one stays" if self.pem else "no client certificate is taken"
                structlog.get_logger().warning("client_ca_unreadable", error=problem, effect=known)
            self._problem = problem
            return False
        if self._problem:
            structlog.get_logger().info("client_ca_readable")
        self._problem = ""
        if found != self.pem:
            self.pem = found
            self.on_change()
        return True

    async def run(self) -> None:
        """Keep it fresh."""
        if self._file is None and self._client is None:
            return
        period_s = CLUSTER_S if self._file is None else FILE_S
        is_read = self.pem is not None
        while True:
            wait_s = period_s if is_read or await self.read() else AGAIN_S
            is_read = False
            await asyncio.sleep(wait_s * self._random.uniform(0.9, 1.1))

    async def _found(self) -> bytes | None:
        if self._file is not None:
            return check_authority(self._file.read_bytes())
        if self._client is None:
            return None
        path = configmap(NAMESPACE, CONFIG_MAP)
        pem = ((await self._client.get(path)).get("data") or {}).get(KEY)
        if not pem:
            raise KubeAbsent("GET", path, f"has no {KEY}")
        return check_authority(str(pem).encode())
