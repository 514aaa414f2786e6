"""The Akash dialects as one ASGI app over the world: Console, two nodes, RPC, provider gateways.

Hides which path belongs to which surface. In reality each has an address of its own; here the
Console has the root, the nodes `/rest` and `/rest2` (the second lags), the RPC `/rpc`, and all
gateways share the root's address, since no path of theirs is the Console's.

Written from the sources that docs/reference/akash.md restates, never from an adapter, and it
shares no code with one. Its parts: `market.py` (auction and money), `console.py`,
`chain.py`, `gateway.py`, `gate.py` (key and faults), `rows.py` (shapes),
`sdl.py`, `supply.py` and `token.py`.
"""

from __future__ import annotations

import math

from starlette.applications import Starlette
from starlette.routing import BaseRoute, Route

from gp4u.sim.akash.chain import NODES, RPC, Chain
from gp4u.sim.akash.console import Console
from gp4u.sim.akash.gate import AkashGate
from gp4u.sim.akash.gateway import Gateways
from gp4u.sim.akash.market import AkashMarket, AkashSettings
from gp4u.sim.faults import Faults
from gp4u.sim.world import World

_WINDOW_S = 16
"""For so long bids are worth waiting for; here the last one may come much sooner."""


def akash_app(world: World, faults: Faults, settings: AkashSettings | None = None) -> Starlette:
    """Return all surfaces as an ASGI app; `app.state.market` is the truth behind them.

    The caller moves the world, or leaves that to the calls.
    """
    market = AkashMarket(world, settings or AkashSettings())
    secret = world.random.randbytes(32)
    gate = AkashGate(market, faults)
    console = Console(market, secret)
    routes: list[BaseRoute] = []
    for method, path, endpoint, handler in console.calls():
        answer = gate.wrap(endpoint, handler, public=endpoint in Console.PUBLIC)
        routes.append(Route(path, answer, methods=[method]))
    for method, path, endpoint, handler in Chain(market).calls():
        routes.append(Route(path, gate.wrap(endpoint, handler, public=True), methods=[method]))
    routes += Gateways(market, faults, secret).routes(gate)
    app = Starlette(routes=routes)
    app.state.market = market
    return app


def client_env(origin: str, settings: AkashSettings) -> dict[str, str]:
    """Return the variables that a client needs to speak to the surfaces at an address."""
    return {
        "AKASH_CONSOLE_URL": origin,
        "AKASH_CONSOLE_API_KEY": settings.api_key,
        "AKASH_REST_URL": ",".join(f"{origin}{node}" for node in NODES),
        "AKASH_RPC_URL": f"{origin}{RPC}",
        "AKASH_BLOCK_TIME_S": f"{settings.block_time_s:g}",
        "AKASH_BID_WINDOW_S": f"{min(_WINDOW_S, math.ceil(settings.bid_delay_s[1]) + 1)}",
    }
