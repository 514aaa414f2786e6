"""The simulated gateways: who is let in, logs and shell, once over a real connection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing, suppress
from random import Random
from socket import AF_INET, SOCK_STREAM, socket

import httpx2
import msgspec
import pytest
import uvicorn

from gp4u.providers.akash.dial import dial
from gp4u.providers.akash.gateway import Gateway
from gp4u.providers.akash.wire import LeaseId
from gp4u.sim.akash.app import akash_app
from gp4u.sim.akash.token import TokenError, opened, sign
from gp4u.sim.faults import Faults
from gp4u.sim.runtime import process
from gp4u.sim.world import World
from tests.unit.sim.akash.dialect import EASY, KEY, SDL, Sim, akash
from tests.virtual_loop import run_virtual

SECRET = b"secret"
GRANULAR = {
    "access": "granular",
    "permissions": [{"provider": "p1", "access": "scoped", "scope": ["logs"]}],
}


@pytest.mark.parametrize(
    ("leases", "provider", "scope", "fits"),
    [
        ({"access": "full"}, "p1", "shell", True),
        ({"access": "scoped", "scope": ["logs"]}, "p1", "logs", True),
        ({"access": "scoped", "scope": ["logs"]}, "p1", "shell", False),
        (GRANULAR, "p1", "logs", True),
        (GRANULAR, "p2", "logs", False),
        (GRANULAR, "p1", "shell", False),
    ],
)
def test_a_token_opens_what_it_says_and_no_more(
    leases: dict[str, object], provider: str, scope: str, fits: bool
) -> None:
    """By provider and by scope."""
    token = sign(SECRET, "akash1me", leases, at=100, ttl_s=30)
    if fits:
        assert opened(SECRET, token, at=110, provider=provider, scope=scope) == "akash1me"
    else:
        with pytest.raises(PermissionError):
            opened(SECRET, token, at=110, provider=provider, scope=scope)


@pytest.mark.parametrize("at", [99, 130])
def test_a_token_has_its_time(at: float) -> None:
    """Neither before nor after."""
    token = sign(SECRET, "akash1me", {"access": "full"}, at=100, ttl_s=30)
    with pytest.raises(TokenError):
        opened(SECRET, token, at=at, provider="p", scope="logs")


@pytest.mark.parametrize("token", ["", "a.b.c", "x"])
def test_a_token_of_somebody_else_opens_nothing(token: str) -> None:
    """Nor does one that was altered."""
    with pytest.raises(TokenError):
        opened(SECRET, token, at=100, provider="p", scope="logs")
    good = sign(b"another", "akash1me", {"access": "full"}, at=100, ttl_s=30)
    with pytest.raises(TokenError):
        opened(SECRET, good, at=100, provider="p", scope="logs")


async def status(sim: Sim, dseq: str, token: str) -> httpx2.Response:
    """Ask a gateway for the status of a lease."""
    headers = {"authorization": f"Bearer {token}"} if token else {}
    bare = httpx2.AsyncClient(transport=sim.client._transport, base_url="http://sim.test")
    return await bare.get(f"/lease/{dseq}/1/1/status", headers=headers)


def test_a_gateway_lets_in_whom_the_token_says() -> None:
    """401 without one, 403 for another's, 404 for no lease, as documented."""

    async def tale() -> None:
        async with akash() as sim:
            deployment = await sim.running()
            full = await sim.token()
            told = await status(sim, deployment.dseq, full)
            assert told.status_code == 200
            assert told.json()["services"]["app"]["available"] == 1
            none = await status(sim, deployment.dseq, "")
            assert (none.status_code, set(none.json())) == (401, {"message"})
            wrong = await sim.token(access="scoped", scope=["logs"])
            assert (await status(sim, deployment.dseq, wrong)).status_code == 403
            assert (await status(sim, "1", full)).status_code == 404
            await asyncio.sleep(61)
            assert (await status(sim, deployment.dseq, full)).status_code == 401

    run_virtual(tale)


@asynccontextmanager
async def served() -> AsyncIterator[tuple[httpx2.AsyncClient, str]]:
    """Serve a market whose instances are processes on a real port."""
    loop = asyncio.get_running_loop()
    world = World(loop.time, Random(1), runtime=process(), offers=60, boot_s=(0.05, 0.05))
    settings = msgspec.structs.replace(EASY, bid_delay_s=(0.0, 0.0), status_delay_s=(0.0, 0.0))
    app = akash_app(world, Faults(), settings)
    config = uvicorn.Config(app, ws="websockets-sansio", lifespan="off", log_config=None)
    server = uvicorn.Server(config)
    with closing(socket(AF_INET, SOCK_STREAM)) as listener:
        listener.bind(("127.0.0.1", 0))
        origin = f"http://127.0.0.1:{listener.getsockname()[1]}"
        serving = loop.create_task(server.serve(sockets=[listener]))
        while not server.started:  # noqa: ASYNC110 -- uvicorn has no event for it
            await asyncio.sleep(0.01)
        try:
            async with httpx2.AsyncClient(base_url=origin, headers={"x-api-key": KEY}) as client:
                yield client, origin
        finally:
            server.should_exit = True
            with suppress(asyncio.CancelledError):
                await serving
            await world.aclose()


async def test_commands_and_logs_go_over_a_real_connection() -> None:
    """A real program behind a real WebSocket: its lines, its output, its exit code, its input."""
    async with served() as (client, origin):
        sdl = SDL.replace('args: ["serve"]', 'command: ["sh", "-c", "echo up; sleep 60"]')
        made = await client.post("/v1/deployments", json={"data": {"sdl": sdl, "deposit": 5}})
        dseq = made.json()["data"]["dseq"]
        bid = (await client.get("/v1/bids", params={"dseq": dseq})).json()["data"][0]["bid"]
        provider = bid["id"]["provider"]
        lease = {"dseq": dseq, "gseq": 1, "oseq": 1, "provider": provider}
        await client.post("/v1/leases", json={"manifest": "[]", "leases": [lease]})
        for _ in range(100):
            data = (await client.get(f"/v1/deployments/{dseq}")).json()["data"]
            if data["leases"][0]["status"]["services"]["app"]["available"]:
                break
            await asyncio.sleep(0.05)
        body = {"data": {"ttl": 60, "leases": {"access": "full"}}}
        token = (await client.post("/v1/create-jwt-token", json=body)).json()["data"]["token"]
        host = (await client.get(f"/v1/providers/{provider}")).json()["hostUri"]
        assert host == origin
        gateway = Gateway(dial, allow_loopback=True)
        where = LeaseId(dseq=dseq, gseq=1, oseq=1, provider=provider)
        assert await gateway.logs(host, where, token, service="app", tail=10) == "up\n"

        async def run(*argv: str, stdin: bytes = b"") -> tuple[int, bytes, bytes]:
            done = await gateway.exec(
                host, where, token, service="app", command=argv, stdin=stdin, timeout_s=20
            )
            return done.exit_code, done.stdout, done.stderr

        assert await run("sh", "-c", "echo a; echo b >&2; exit 3") == (3, b"a\n", b"b\n")
        big = b"0123456789" * 50_000
        assert await run("cat", stdin=big) == (0, big, b"")
        await client.delete(f"/v1/deployments/{dseq}")
