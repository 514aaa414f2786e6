"""The markets of this tree, each in every flavour, for the contract suite."""

from __future__ import annotations

from typing import Final

from starlette.applications import Starlette

from gp4u.providers.akash.adapter import Akash
from gp4u.providers.akash.gateway import Gateway
from gp4u.providers.contract import Provider
from gp4u.sim.akash.app import akash_app, client_env
from gp4u.sim.akash.market import AkashMarket, AkashSettings
from gp4u.sim.ionet.app import ENTERPRISE, ionet_app
from gp4u.sim.ionet.gate import IoNetSettings
from gp4u.sim.render.app import render_app
from gp4u.sim.render.gate import RenderSettings
from gp4u.sim.vastai.app import vast_app
from gp4u.sim.vastai.gate import VastSettings
from gp4u.sim.world import World
from gp4u.testing import Act, Held
from tests.akash_simulated import AppDial
from tests.contract.conformance.simulated import ORIGIN, Dialect

KEY, SECRET = "account-key-canary", "account-secret-canary"
_USUAL: Final = {
    Act.OFFERS: "search",
    Act.RENT: "create",
    Act.INSTANCES: "list",
    Act.RELEASE: "destroy",
}

VASTAI = Dialect(
    slug="vastai",
    app=lambda world, faults: vast_app(world, faults, VastSettings(api_key=KEY)),
    env={"VASTAI_BASE_URL": f"{ORIGIN}/api/v0", "VASTAI_API_KEY": KEY},
    endpoints={**_USUAL, Act.PING: "user", Act.LOGS: "logs"},
)


def _ionet(flavor: str) -> Dialect:
    legacy = flavor == "legacy"
    listing, logs = ("devices", "devices") if legacy else ("list", "containers")
    return Dialect(
        slug="ionet",
        app=lambda world, faults: ionet_app(
            world, faults, IoNetSettings(api_key=KEY, log_open_s=0.0)
        ),
        env={
            "IONET_BASE_URL": f"{ORIGIN}/v1" if legacy else f"{ORIGIN}{ENTERPRISE}",
            "IONET_API_KEY": KEY,
            "IONET_API_FLAVOR": flavor,
        },
        endpoints={
            **_USUAL,
            Act.PING: listing,
            Act.OFFERS: "devices" if legacy else "shapes" if flavor == "vmaas" else "catalogue",
            Act.INSTANCES: listing,
            Act.LOGS: logs,
        },
    )


IONET = _ionet("auto")
IONET_CAAS = _ionet("caas")
IONET_VMAAS = _ionet("vmaas")
IONET_LEGACY = _ionet("legacy")


def _akash_held(app: Starlette, world: World) -> list[Held]:
    """Return every order: an open one has a deposit in it, lease or not."""
    del world
    market: AkashMarket = app.state.market
    return [Held(each.placed[0].group.name, each.open) for each in market.deployments.values()]


def _akash_finish(provider: Provider, app: Starlette) -> None:
    assert isinstance(provider, Akash)
    provider._gateway = Gateway(AppDial(app), allow_loopback=True)


_AKASH_SETTINGS: Final = AkashSettings(api_key=KEY)
AKASH = Dialect(
    slug="akash",
    app=lambda world, faults: akash_app(world, faults, _AKASH_SETTINGS),
    env=client_env(ORIGIN, _AKASH_SETTINGS),
    endpoints={**_USUAL, Act.PING: "balances", Act.LOGS: "token"},
    held=_akash_held,
    finish=_akash_finish,
)
AKASH_WITHOUT_KEY = Dialect(
    slug="akash",
    app=AKASH.app,
    env={name: value for name, value in AKASH.env.items() if not name.endswith("_KEY")},
    endpoints={**AKASH.endpoints, Act.PING: "inventory"},
    held=_akash_held,
)


def _render(flavor: str) -> Dialect:
    return Dialect(
        slug="render",
        app=lambda world, faults: render_app(
            world, faults, RenderSettings(api_key=KEY, api_secret=SECRET, flavor=flavor)
        ),
        env={
            "RENDER_BASE_URL": f"{ORIGIN}/v1",
            "RENDER_API_KEY": KEY,
            "RENDER_API_SECRET": SECRET,
            "RENDER_API_FLAVOR": flavor,
        },
        endpoints={
            **_USUAL,
            Act.PING: "search" if flavor == "legacy" else "list",
            Act.LOGS: "run",
        },
    )


RENDER = _render("dispersed")
RENDER_LEGACY = _render("legacy")
