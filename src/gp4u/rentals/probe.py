"""Does the workload in a running instance answer?

`running` is the provider's word for "the container was started"; only an answer from outside makes
a rental running. The address is the provider's, so it is checked before it is called: public, or
loopback where development allows it. What the workload answers is never read, only that it does.
"""

from __future__ import annotations

import asyncio
import ipaddress
import ssl
from collections.abc import Iterable
from http.cookiejar import DefaultCookiePolicy
from typing import Final

import httpx2

from gp4u.model import Endpoint, HealthCheck, Protocol
from gp4u.providers.http import may_connect

PROBE_TIMEOUT_S: Final = 5.0


class Prober:
    """Probes workloads; holds one connection pool, without any credentials."""

    def __init__(
        self, *, allow_loopback: bool, transport: httpx2.AsyncBaseTransport | None = None
    ) -> None:
        self._allow_loopback = allow_loopback
        self._client = httpx2.AsyncClient(
            transport=transport,
            timeout=PROBE_TIMEOUT_S,
            follow_redirects=False,
            trust_env=False,
            # Trusts nobody, since probes are plain HTTP; the default would load every authority.
            verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
        )
        # One guest's cookie is not another's; without this they would share the jar.
        self._client.cookies.jar.set_policy(DefaultCookiePolicy(allowed_domains=[]))

    async def healthy(self, endpoints: Iterable[Endpoint], checks: Iterable[HealthCheck]) -> str:
        """Return an empty text when every check passes, else why the first one does not."""
        known = {e.container_port: e for e in endpoints if e.protocol is Protocol.TCP}
        for check in checks:
            endpoint = known.get(check.port)
            if endpoint is None:
                return f"port {check.port} is not published yet"
            problem = await self._check(endpoint, check)
            if problem:
                return f"port {check.port}: {problem}"
        return ""

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def _check(self, endpoint: Endpoint, check: HealthCheck) -> str:
        refusal = self._refusal(endpoint.host)
        if refusal:
            return refusal
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                if check.path is not None:
                    return await self._get(endpoint, check.path)
                _, writer = await asyncio.open_connection(endpoint.host, endpoint.port)
                writer.close()
                return ""
        except (TimeoutError, OSError, httpx2.HTTPError) as error:
            return f"no answer ({type(error).__name__})"

    async def _get(self, endpoint: Endpoint, path: str) -> str:
        host = f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host
        try:
            # The slash keeps what follows out of the address, whatever it is.
            url = httpx2.URL(f"http://{host}:{endpoint.port}/{path.removeprefix('/')}")
        except httpx2.InvalidURL:
            return "the path is not one"
        async with self._client.stream("GET", url) as response:
            if 200 <= response.status_code < 400:
                return ""
            return f"HTTP {response.status_code}"

    def _refusal(self, host: str) -> str:
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            return "the published address is not an IP address"
        if may_connect(address, allow_loopback=self._allow_loopback):
            return ""
        return f"the published address {address} is not public"
