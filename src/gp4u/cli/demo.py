"""`gp4u demo`: the whole idea on real parts, with no account and no key.

Four simulated markets listen on loopback ports; everything else is what a user runs: the adapters
ask them over HTTP, one selection over all of them explains itself, a real program starts behind the
rented instance, its two services are probed and called, its cost ticks, and it is released. In the
end the simulators' own billing meters, which no client can see, are laid beside the ledger.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from datetime import datetime
from decimal import Decimal
from pathlib import Path

import httpx2
from msgspec import Struct

from gp4u import gpus
from gp4u.app import App, open_app
from gp4u.cli.failures import reasons_told
from gp4u.cli.follow import Follower, cost_after, duration, log_prefix
from gp4u.cli.screen import Form, Screen
from gp4u.cli.views import hourly
from gp4u.desk.shapes import RentalShape, money
from gp4u.errors import BadInput
from gp4u.model import Demand, HealthCheck, Port, Requirements, Workload
from gp4u.providers.plugins import Plugins
from gp4u.providers.registry import SPECS, Registry
from gp4u.selection.decide import endpoint_log
from gp4u.settings import load_settings
from gp4u.sim.runtime import can_run
from gp4u.sim.serve import PROVIDERS, RUNTIMES, Simulator, simulator
from gp4u.telemetry import clean

OK = 200
SERVICES = (("june-stt", 8001), ("june-tts", 8000))
"""The two services of the second seed's worked example."""
IMAGE = "docker.io/library/busybox:stable"
"""What runs where a container engine answers; a local process needs no image."""
TICK_S = 1.0
_RUNS_AS = {
    "container": "containers",
    "process": "local processes",
    "pretend": "nothing really runs",
}
_IN_CONTAINER = "; ".join(
    [
        *(
            f"busybox mkdir -p /tmp/{name} && "
            f'echo \'{{"service": "{name}", "port": {port}}}\' > /tmp/{name}/health'
            for name, port in SERVICES
        ),
        f"busybox httpd -p {SERVICES[0][1]} -h /tmp/{SERVICES[0][0]}",
        f"exec busybox httpd -f -vv -p {SERVICES[1][1]} -h /tmp/{SERVICES[1][0]}",
    ]
)


class Called(Struct, frozen=True):
    """What one service answered."""

    name: str
    port: int
    url: str
    status: int
    body: str


async def run_demo(
    screen: Screen, *, once: bool, runtime: str, image: str, seed: int, offers: int
) -> None:
    """Run the demo; with `once` it releases by itself, else on Ctrl-C.

    Raises:
        BadInput: a flag is out of bounds, or the runtime cannot be had.
    """
    if runtime not in RUNTIMES:
        raise BadInput("--runtime", runtime, f"must be one of {', '.join(RUNTIMES)}")
    if not 1 <= offers <= 100_000:
        raise BadInput("--offers", offers, "must be from 1 to 100000")
    chosen = await _runtime(runtime, image)
    async with AsyncExitStack() as stack:
        markets = [
            await stack.enter_async_context(
                simulator(slug, seed=seed, offers=offers, runtime_name=chosen)
            )
            for slug in PROVIDERS
        ]
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="gp4u-demo-"))
        env = {"GP4U_DATABASE_URL": f"sqlite:///{folder}/ledger.db"}
        for market in markets:
            env |= market.env
        closed_shop = Registry(Plugins((), {}))  # a plug-in's market is no simulated one
        settings = load_settings(env, Path(folder))
        app = await stack.enter_async_context(open_app(settings, registry=closed_shop))
        screen.note(f"simulated markets, seed {seed}, {_RUNS_AS[chosen]}:", "dim")
        for market in markets:
            screen.note(f"  {SPECS[market.provider].title}: {market.origin}", "dim")
        await _Play(screen, app, markets, _workload(chosen, image)).run(once=once)


async def _runtime(asked: str, image: str) -> str:
    """Return the runtime to use: a container where an engine can run the image, else a process."""
    if asked not in ("auto", "container"):
        return asked
    if await can_run(image):
        return "container"
    if asked == "container":
        raise BadInput(
            "--runtime", asked, f"no container engine (Docker, podman) that can run {image} answers"
        )
    return "process"


def _workload(runtime: str, image: str) -> Workload:
    """Return the two services as one workload; in a container busybox serves them."""
    contained = runtime == "container"
    return Workload(
        image=image if contained else "gp4u/demo",
        command=("sh", "-c", _IN_CONTAINER) if contained else (),
        env={f"GP4U_SERVICE_{port}": name for name, port in SERVICES},
        ports=tuple(Port(number=port, name=name) for name, port in SERVICES),
        disk_gib=16,
        # Where nothing really runs, nothing answers.
        health=()
        if runtime == "pretend"
        else tuple(HealthCheck(port=port, path="/health") for _, port in SERVICES),
    )


_DEMAND = Demand(
    requirements=Requirements(
        gpu_models=gpus.wanted("RTX3060"),
        min_vram_gib=12,
        max_price_usd_per_hour=Decimal("0.50"),
        min_reliability=0.95,
        min_download_mbps=100,
        disk_gib=16,
        ports=len(SERVICES),
        locations=("US-CA", "US-TX", "US-NY", "US", "EU"),
    )
)
"""The second seed's example, hard requirements and ordered places."""


class _Play:
    """One showing, from the search to the bill."""

    def __init__(
        self, screen: Screen, app: App, markets: Sequence[Simulator], workload: Workload
    ) -> None:
        self._screen, self._app, self._markets = screen, app, markets
        self._workload = workload
        self._follower = Follower(screen, now=app.clock.now)
        self._called: list[Called] = []

    async def run(self, *, once: bool) -> None:
        """Rent, call, tick, release, and lay the bill beside the meter."""
        try:
            with reasons_told(self._screen, _DEMAND):
                rental = await self._app.desk.rent(
                    "cli:demo", _DEMAND, self._workload, wait=True, tell=self._follower
                )
            self._called = await self._call(rental)
            self._show_endpoints(rental)
            while not once:
                self._show_cost(await self._app.desk.find(rental.key), self._app.clock.now())
                await asyncio.sleep(TICK_S)
        except asyncio.CancelledError:
            # Ctrl-C is how one leaves the demo: take it as said, and clean up.
            task = asyncio.current_task()
            if task is not None:
                task.uncancel()
            self._screen.rest()
            self._screen.note("interrupted: releasing")
        released = await self._release()
        self._report(released)

    async def _release(self) -> RentalShape | None:
        """Release whatever is open; return the newest rental."""
        desk, newest = self._app.desk, self._follower.rental
        for rental in (await desk.look(everything=False, ask=False)).rentals:
            follower = Follower(self._screen, now=self._app.clock.now)
            newest = await desk.release(rental.key, reason="demo_over", wait=True, tell=follower)
        return newest

    async def _call(self, rental: RentalShape) -> list[Called]:
        """Call each service at its published address, as a client would."""
        names = {port: name for name, port in SERVICES} if self._workload.health else {}
        called = []
        async with httpx2.AsyncClient(timeout=10, trust_env=False) as client:
            for endpoint in rental.endpoints:
                if endpoint.port not in names:
                    continue
                url = f"{endpoint.url}/health"
                reply = await client.get(url)
                called.append(
                    Called(
                        names[endpoint.port],
                        endpoint.port,
                        url,
                        reply.status_code,
                        clean(reply.text, 200),
                    )
                )
        order = [port for _, port in SERVICES]
        return sorted(called, key=lambda c: order.index(c.port))

    def _show_endpoints(self, rental: RentalShape) -> None:
        ends = {e.port: e.address.rpartition(":") for e in rental.endpoints}
        decision = self._follower.decision
        lines = endpoint_log(
            log_prefix(decision) if decision is not None else "GP4U",
            [
                (f"{name}.default.svc.cluster.local", port, host.strip("[]"), int(outside))
                for name, port in SERVICES
                if port in ends
                for host, _, outside in (ends[port],)
            ],
        )
        for line in lines:
            self._screen.note(line)
        for call in self._called:
            style = "green" if call.status == OK else "red"
            self._screen.note(f"GET {call.url} -> {call.status}", style)
            self._screen.note(f"    {call.body}", "dim")

    def _show_cost(self, rental: RentalShape, told_at: datetime) -> None:
        def line() -> str:
            now = self._app.clock.now()
            cost = money(cost_after(rental, (now - told_at).total_seconds()))
            running_s = (now - (rental.running_at or rental.intended_at)).total_seconds()
            return f"{duration(running_s)}  ${cost} at {hourly(rental)}  running; Ctrl-C releases"

        self._screen.busy(line)

    def _report(self, released: RentalShape | None) -> None:
        """Print the one object, or the last lines for a person."""
        worlds = [market.world for market in self._markets]
        decision = self._follower.decision
        best = decision.ranked[0] if decision and decision.ranked else None
        answer = {
            "offers": {
                note.provider: note.offers for note in (decision.sources if decision else ())
            },
            "decision": {
                "offer": best.offer.offer_id if best else None,
                "score": round(best.score, 4) if best else None,
                "candidates": decision.candidates if decision else 0,
                "rejected": decision.rejected if decision else 0,
            },
            "rental": {
                "key": released.key if released else None,
                "state": released.state if released else None,
            },
            "endpoints": [
                {"name": c.name, "port": c.port, "url": c.url, "status": c.status}
                for c in self._called
            ],
            "cost_usd": money(released.cost_usd if released else Decimal(0)),
            "meter_usd": money(sum((w.meter_total() for w in worlds), Decimal(0))),
            "leaked": sum(len(w.leaked()) for w in worlds),
        }
        if self._screen.form is Form.NAME:
            self._screen.names([released.key] if released else [])
            return
        if self._screen.is_data:
            self._screen.data(answer)
            return
        same = answer["cost_usd"] == answer["meter_usd"]
        self._screen.line(
            f"cost ${answer['cost_usd']} by the ledger, ${answer['meter_usd']} by the markets' "
            f"meters; leaked {answer['leaked']}",
            "green" if same and not answer["leaked"] else "bold red",
        )
        self._screen.hint(
            "the same on real markets: set VASTAI_API_KEY or another, then `gp4u offers`"
        )
