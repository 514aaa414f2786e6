"""From settings to an open Vast.ai adapter: its key, and how long a rent call may take."""

from __future__ import annotations

from typing import Final

from gp4u.clock import Clock
from gp4u.provider_settings import ProviderSettings
from gp4u.providers.opening import Opening, Wire, key_of
from gp4u.providers.pins import FilePins
from gp4u.providers.ssh import Ssh
from gp4u.providers.vastai.adapter import SPEC, VastAI
from gp4u.providers.vastai.replies import SLUG, judge
from gp4u.settings import Settings


def _open(own: ProviderSettings, settings: Settings, clock: Clock, wire: Wire) -> VastAI:
    http = wire(judge, {"authorization": f"Bearer {key_of(own)}"})
    installation = settings.installation_secret
    # The account's key is as good a secret: whoever has it can attach keys of his own anyway.
    secret = installation.get_secret_value() if installation else key_of(own)
    return VastAI(
        http,
        base_url=own.base_url,
        clock=clock,
        ssh=Ssh(
            SLUG,
            secret=secret.encode(),
            pins=FilePins(settings.known_hosts),
            allow_loopback=settings.allow_loopback,
        ),
        rent_timeout_s=settings.rent_timeout_s,
    )


OPENING: Final = Opening(SPEC, _open)
