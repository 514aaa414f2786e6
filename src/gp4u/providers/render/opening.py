"""From settings to an open Render adapter, in the flavour that they ask for."""

from __future__ import annotations

from typing import Final

from gp4u.clock import Clock
from gp4u.provider_settings import ProviderSettings
from gp4u.providers.contract import Provider, ProviderSpec
from gp4u.providers.opening import Opening, Wire, key_of, lacks_key
from gp4u.providers.render.adapter import SEED_URL, SPEC, Render, flavor_of
from gp4u.providers.render.legacy import RenderLegacy
from gp4u.providers.render.signing import Signer
from gp4u.providers.render.wire import judge
from gp4u.settings import Settings


def _flavor(own: ProviderSettings) -> str:
    return flavor_of(own.flavor, base_url=own.base_url, has_secret=own.api_secret is not None)


def _lacks(own: ProviderSettings, spec: ProviderSpec) -> str:
    if why := lacks_key(own, spec):
        return why
    unset = own.flavor == "auto" and own.base_url == SEED_URL
    if own.api_secret is None and (unset or _flavor(own) == "dispersed"):
        return f"no RENDER_API_SECRET; a key comes with its secret at {spec.key_url}"
    return ""


def _open(own: ProviderSettings, settings: Settings, clock: Clock, wire: Wire) -> Provider:
    if _flavor(own) == "legacy":
        http = wire(judge, {"authorization": f"Bearer {key_of(own)}"})
        return RenderLegacy(
            http, base_url=own.base_url, clock=clock, rent_timeout_s=settings.rent_timeout_s
        )
    secret = own.api_secret.get_secret_value() if own.api_secret else ""
    return Render(
        wire(judge, {}, sign=Signer(key_of(own), secret, clock)),
        base_url=own.base_url,
        clock=clock,
        rent_timeout_s=settings.rent_timeout_s,
        read_timeout_s=own.timeout_s,
    )


OPENING: Final = Opening(SPEC, _open, _lacks)
