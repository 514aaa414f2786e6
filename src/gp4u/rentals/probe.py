"""Does the workload in a running instance answer?

`running` is the provider's word for "the container was started"; only an answer from outside makes
a rental running. The address, or the name or URL in its place, is the provider's, so it is checked
before it is called: public, or loopback where development allows it. A certificate must be good for
its name. What the workload answers is never read, only that it does.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterable
from contextlib import suppress
from http.cookiejar import DefaultCookiePolicy
from typing import Final

import httpx2

from gp4u.model import Endpoint, HealthCheck, Protocol
from gp4u.providers.http import Address, addresses_of, may_connect

PROBE_TIMEOUT_S: Final = 5.0
_PORTS: Final = {"http": 80, "https": 443}
_NO_ANSWER: Final = "no answer"


class Prober:
    """Probes workloads; holds connections, without any credentials."""

    def __init__(
        self, *, allow_loopback: bool, transport: httpx2.AsyncBaseTransport | None = None
    ) -> None:
        self._allow_loopback, self._transport = allow_loopback, transport
        self._clients: dict[str, httpx2.AsyncClient] = {}

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
        for client in self._clients.values():
            await client.aclose()

    async def _check(self, endpoint: Endpoint, check: HealthCheck) -> str:
        host = f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host
        base = endpoint.url or f"http://{host}:{endpoint.port}"
        try:
            # The slash keeps what follows out of the address, whatever it is.
            target = httpx2.URL(f"{base.rstrip('/')}/{(check.path or '').removeprefix('/')}")
        except httpx2.InvalidURL:
            return "the path is not one"
        if target.scheme not in _PORTS or not target.host or target.userinfo:
            return "the published address is none that can be called"
        port = target.port or _PORTS[target.scheme]
        problem = ""
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                addresses = await addresses_of(target.raw_host.decode("ascii"), port)
                if refusal := self._refusal(addresses):
                    return refusal
                for address in addresses:
                    problem = await self._try(target, address, port, check)
                    if not problem.startswith(_NO_ANSWER):
                        break
        except (TimeoutError, OSError, ValueError) as error:  # a UnicodeError is a ValueError
            return f"{_NO_ANSWER} ({type(error).__name__})"
        return problem

    async def _try(
        self, target: httpx2.URL, address: Address, port: int, check: HealthCheck
    ) -> str:
        try:
            if check.path is not None:
                return await self._get(target, address)
            _, writer = await asyncio.open_connection(str(address), port)
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()
            return ""
        except (OSError, httpx2.HTTPError) as error:
            return f"{_NO_ANSWER} ({type(error).__name__})"

    async def _get(self, target: httpx2.URL, address: Address) -> str:
        """Ask at the address that was checked: by now the name could lead elsewhere."""
        url, headers, extensions = target, {}, {}
        if target.host != str(address):
            url = target.copy_with(host=str(address))
            # The address may serve other names, so the connection is not kept for them.
            headers = {"host": target.netloc.decode("ascii"), "connection": "close"}
            extensions = {"sni_hostname": target.raw_host.decode("ascii")}
        client = self._client(target.scheme)
        async with client.stream("GET", url, headers=headers, extensions=extensions) as response:
            if 200 <= response.status_code < 400:
                return ""
            return f"HTTP {response.status_code}"

    def _refusal(self, addresses: Iterable[Address]) -> str:
        for address in addresses:
            if not may_connect(address, allow_loopback=self._allow_loopback):
                return f"the published address {address} is not public"
        return ""

    def _client(self, scheme: str) -> httpx2.AsyncClient:
        """Return the client of a scheme, made on first use: loading every authority takes time."""
        if scheme not in self._clients:
            trusting_nobody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            client = httpx2.AsyncClient(
                transport=self._transport,
                timeout=PROBE_TIMEOUT_S,
                follow_redirects=False,
                trust_env=False,
                verify=ssl.create_default_context() if scheme == "https" else trusting_nobody,
            )
            # One guest's cookie is not another's; without this they would share the jar.
            client.cookies.jar.set_policy(DefaultCookiePolicy(allowed_domains=[]))
            self._clients[scheme] = client
        return self._clients[scheme]
