"""Simulated providers on loopback ports, for a person, the demo and tests.

Hides the server: which port, how it starts and stops, and how a fault kills a real connection.
Everything runs inside one task group that is left only when the programs in rented instances have
been stopped. Printing the ready line is the command line's part.
"""

from __future__ import annotations

import asyncio
import ipaddress
import math
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from decimal import Decimal
from importlib.util import find_spec
from random import Random
from typing import Any

import msgspec
import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from gp4u.clock import SystemClock
from gp4u.sim.akash.app import akash_app, client_env
from gp4u.sim.akash.market import AkashSettings
from gp4u.sim.faults import Faults, Kind
from gp4u.sim.gate import ABORT
from gp4u.sim.ionet.app import ENTERPRISE, ionet_app
from gp4u.sim.ionet.gate import IoNetSettings
from gp4u.sim.launch import LOOPBACK, Runtime
from gp4u.sim.render.app import render_app
from gp4u.sim.render.gate import RenderSettings
from gp4u.sim.runtime import container, pretend, process
from gp4u.sim.vastai.app import vast_app
from gp4u.sim.vastai.gate import VastSettings
from gp4u.sim.world import World

BOOT_S = (1.0, 4.0)
"""From rent to running: short, so that nobody need wait."""
BID_S = (0.5, 2.0)
"""From an order to a bid on it."""
_LATE_MARGIN_S = 1.0
_APART = 1_000_003
"""Between the seeds of two markets that were given the same one."""

Settings = AkashSettings | IoNetSettings | RenderSettings | VastSettings


class _Dialect(msgspec.Struct, frozen=True):
    """How one market is simulated, and what its clients are told."""

    app: Callable[[World, Faults, Any], Starlette]
    settings: Callable[[str, str], Settings]
    """Of an account with a key and, where there is such a thing, a secret."""
    env: Callable[[str, Any], dict[str, str]]
    """The variables that lead to an origin; the first one is the address of the API."""
    blind_s: Callable[[Any], float]
    """How long a listing may be blind to a change."""


def _vastai_env(origin: str, settings: VastSettings) -> dict[str, str]:
    return {
        "VASTAI_BASE_URL": f"{origin}/api/v0",
        "VASTAI_API_KEY": settings.api_key,
        "VASTAI_BILL_LAG_S": str(math.ceil(settings.charges_lag_s)),
    }


def _ionet_env(origin: str, settings: IoNetSettings) -> dict[str, str]:
    return {"IONET_BASE_URL": f"{origin}{ENTERPRISE}", "IONET_API_KEY": settings.api_key}


def _render_env(origin: str, settings: RenderSettings) -> dict[str, str]:
    return {
        "RENDER_BASE_URL": f"{origin}/v1",
        "RENDER_API_KEY": settings.api_key,
        "RENDER_API_SECRET": settings.api_secret,
        "RENDER_API_FLAVOR": settings.flavor,
    }


_DIALECTS: Mapping[str, _Dialect] = {
    "vastai": _Dialect(
        vast_app, lambda key, _: VastSettings(api_key=key), _vastai_env, lambda s: s.list_lag_s[1]
    ),
    "ionet": _Dialect(
        ionet_app, lambda key, _: IoNetSettings(api_key=key), _ionet_env, lambda s: s.list_lag_s[1]
    ),
    "akash": _Dialect(
        akash_app,
        lambda key, _: AkashSettings(api_key=key, bid_delay_s=BID_S),
        client_env,
        lambda s: s.list_lag_s[1] + s.replica_lag_s,
    ),
    "render": _Dialect(
        render_app,
        lambda key, secret: RenderSettings(api_key=f"pk_{key}", api_secret=f"sk_{secret}"),
        _render_env,
        lambda s: s.list_lag_s[1],
    ),
}
PROVIDERS = tuple(_DIALECTS)
RUNTIMES = ("pretend", "process", "container", "auto")
FLAVORED = "render"
"""The market whose dialect can be chosen."""
RENDER_FLAVORS = ("dispersed", "legacy")


class NoEngineError(RuntimeError):
    """`container` was asked for, and neither Docker nor podman answers."""


class NoSuchAddressError(ValueError):
    """What is rented shall listen at an address that this machine does not have."""


def check_address(address: str) -> None:
    """Insist that this machine can listen at an IP address.

    Raises:
        NoSuchAddressError: it cannot.
    """
    try:
        family = socket.AF_INET6 if ipaddress.ip_address(address).version == 6 else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.bind((address, 0))
    except (OSError, ValueError) as error:
        raise NoSuchAddressError(f"{address} is not an address of this machine: {error}") from error


class Simulator:
    """One simulated provider that listens."""

    def __init__(
        self, provider: str, world: World, faults: Faults, settings: Settings, port: int
    ) -> None:
        self.provider, self.world, self.faults = provider, world, faults
        self.settings = settings
        self.api_key = settings.api_key
        self.origin = f"http://127.0.0.1:{port}"
        self.base_url = next(iter(self._address.values()))

    @property
    def env(self) -> dict[str, str]:
        """The variables a client needs to speak to this one, and to wait no longer than it must."""
        slow = {rule.kind: rule.seconds or 15.0 for rule in self.faults.rules}
        lag = max(
            _DIALECTS[self.provider].blind_s(self.settings),
            slow.get(Kind.LATE_LISTING, 0.0),
            slow.get(Kind.LIST_STALE, 0.0),
        )
        late = slow.get(Kind.LATE_EFFECT, 0.0)
        prefix = self.provider.upper()
        return self._address | {
            "GP4U_ALLOW_LOOPBACK": "1",
            f"{prefix}_SETTLE_S": str(math.ceil(lag + _LATE_MARGIN_S)),
            f"{prefix}_LATE_WINDOW_S": str(math.ceil(late + _LATE_MARGIN_S)),
        }

    @property
    def _address(self) -> dict[str, str]:
        return _DIALECTS[self.provider].env(self.origin, self.settings)

    @property
    def ready_line(self) -> dict[str, object]:
        """What `sim serve` prints as one line of JSON once it listens."""
        return {
            "provider": self.provider,
            "base_url": self.base_url,
            "api_key": self.api_key,
            "env": self.env,
        }


async def open_runtime(name: str, random: Random, address: str = LOOPBACK) -> Runtime:
    """Return a runtime by name; `auto` is `container` where an engine answers, else `process`.

    Raises:
        NoEngineError: `container`, and no engine answers.
        ValueError: no such name.
    """
    match name:
        case "pretend":
            return pretend(random, address)
        case "process":
            return process(address)
        case "container" | "auto":
            found = await container(address=address)
            if found is None and name == "container":
                raise NoEngineError("no container engine answers (Docker or podman)")
            return found or process(address)
        case _:
            raise ValueError(f"runtime: {name!r} is not one of {', '.join(RUNTIMES)}")


@asynccontextmanager
async def simulator(
    provider: str = "vastai",
    *,
    port: int = 0,
    seed: int = 1,
    offers: int = 200,
    runtime_name: str = "pretend",
    faults: Faults | None = None,
    boot_scale: float = 1.0,
    settings: Settings | None = None,
    flavor: str | None = None,
    credit_usd: Decimal = Decimal("25"),
    public_ip: str = LOOPBACK,
) -> AsyncIterator[Simulator]:
    """Run a simulated provider on 127.0.0.1 for as long as the context lasts.

    Args:
        port: 0 takes a free one.
        boot_scale: factor on `BOOT_S`.
        flavor: which of its two dialects Render speaks; None: the real one.
        public_ip: an address of this machine, at which what is rented listens and is published.

    Raises:
        ValueError: no such provider or runtime.
        NoEngineError: `container`, and no engine answers.
        OSError: the port is taken.
        NoSuchAddressError: the public address is not one of this machine.
    """
    if provider not in PROVIDERS:
        raise ValueError(f"provider: {provider!r} is not one of {', '.join(PROVIDERS)}")
    # Not one market four times over: each has machines and prices of its own.
    random = Random(seed + _APART * PROVIDERS.index(provider))  # noqa: S311 -- a market, not secrets
    if settings is None:
        key = f"{random.getrandbits(256):064x}"
        settings = _DIALECTS[provider].settings(key, key[::-1])
    if flavor is not None and isinstance(settings, RenderSettings):
        settings = msgspec.structs.replace(settings, flavor=flavor)
    faults = Faults() if faults is None else faults
    check_address(public_ip)
    world = World(
        asyncio.get_running_loop().time,
        random,
        runtime=await open_runtime(runtime_name, Random(random.getrandbits(64)), public_ip),  # noqa: S311 -- ports
        offers=offers,
        credit_usd=credit_usd,
        boot_s=(BOOT_S[0] * boot_scale, BOOT_S[1] * boot_scale),
        stop_s=0.5 * boot_scale,
        epoch_s=SystemClock().now().timestamp(),
    )
    failure: Exception | None = None
    try:
        with _listening(port) as listener:
            server = _Server(_DIALECTS[provider].app(world, faults, settings))
            bound: int = listener.getsockname()[1]
            async with asyncio.TaskGroup() as tasks:
                serving = tasks.create_task(server.serve(sockets=[listener]))
                moving = tasks.create_task(world.run())
                await server.up.wait()
                try:
                    yield Simulator(provider, world, faults, settings, bound)
                except Exception as error:  # noqa: BLE001 -- raised below, outside of the group
                    failure = error
                finally:
                    server.should_exit = True
                    await asyncio.wait([serving])
                    moving.cancel()
    finally:
        await world.aclose()
    if failure is not None:
        raise failure


async def serve(
    providers: Sequence[str],
    *,
    port: int = 0,
    seed: int = 1,
    offers: int = 200,
    runtime_name: str = "pretend",
    faults: Faults | None = None,
    boot_scale: float = 1.0,
    flavor: str | None = None,
    public_ip: str = LOOPBACK,
    ready: Callable[[dict[str, object]], None],
    meter: Callable[[dict[str, object]], None] = lambda _: None,
) -> None:
    """Run simulated providers until SIGTERM or SIGINT, then stop them and all that runs in them.

    Args:
        port: of the first provider; the next ones take the following ports. 0: free ones.
        flavor: which of its two dialects Render speaks; None: the real one.
        public_ip: an address of this machine, at which what is rented listens and is published.
        ready: called once per provider when it listens, with its ready line.
        meter: called once at the end, with what each market charged, by provider.

    Raises:
        ValueError: no such provider or runtime.
        NoEngineError: `container`, and no engine answers.
        OSError: a port is taken.
        NoSuchAddressError: the public address is not one of this machine.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    signals = (signal.SIGTERM, signal.SIGINT)
    markets: list[Simulator] = []
    for number in signals:
        loop.add_signal_handler(number, stop.set)
    try:
        async with AsyncExitStack() as stack:
            for place, provider in enumerate(providers):
                running = await stack.enter_async_context(
                    simulator(
                        provider,
                        port=port + place if port else 0,
                        seed=seed,
                        offers=offers,
                        runtime_name=runtime_name,
                        faults=faults,
                        boot_scale=boot_scale,
                        flavor=flavor,
                        public_ip=public_ip,
                    )
                )
                markets.append(running)
                ready(running.ready_line)
            await stop.wait()
            for market in markets:
                await market.world.advance()
            meter({market.provider: market.world.charged() for market in markets})
    finally:
        for number in signals:
            loop.remove_signal_handler(number)


@contextmanager
def _listening(port: int) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        yield listener


class _Protocol(H11Protocol):
    """Offers each call a way to kill its connection."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # uvicorn narrows it too
        super().connection_made(transport)
        self.app_state = {**self.app_state, ABORT: transport.abort}


class _Server(uvicorn.Server):
    """A quiet server inside somebody else's process: no signal handlers, no log of its own."""

    def __init__(self, app: object) -> None:
        self.up = asyncio.Event()
        super().__init__(
            uvicorn.Config(
                app,  # type: ignore[arg-type]  # any ASGI app; uvicorn's union is narrower
                http=_Protocol,
                ws="websockets-sansio" if find_spec("websockets") else "none",
                lifespan="off",
                log_config=None,
                log_level="critical",
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=1,
            )
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.up.set()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
