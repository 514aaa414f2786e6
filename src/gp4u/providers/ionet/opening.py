"""From settings to an open io.net adapter, in the dialect that they ask for."""

from __future__ import annotations

from typing import Final

from gp4u.clock import Clock
from gp4u.provider_settings import ProviderSettings
from gp4u.providers.contract import Provider
from gp4u.providers.http import Http
from gp4u.providers.ionet.adapter import SPEC, IoNet, IoNetVms
from gp4u.providers.ionet.judge import judge
from gp4u.providers.ionet.legacy import IoNetLegacy, dialect, headers
from gp4u.providers.opening import Opening, Wire, key_of
from gp4u.settings import Settings


def make(
    http: Http, *, base_url: str, clock: Clock, flavor: str = "auto", allow_loopback: bool = False
) -> Provider:
    """Return the adapter of a flavour: `auto`, `caas`, `vmaas` or `legacy`.

    `allow_loopback` lets instances be reached on this machine, as those of simulators are.

    Raises:
        BadInput: no such flavour.
    """
    spoken = dialect(flavor, base_url)
    if spoken == "legacy":
        return IoNetLegacy(http, base_url=base_url, clock=clock, spec=SPEC)
    kind = IoNetVms if spoken == "vmaas" else IoNet
    return kind(
        http,
        base_url=base_url,
        clock=clock,
        allow_loopback=allow_loopback,
        lists_all=spoken == "auto",
    )


def _open(own: ProviderSettings, settings: Settings, clock: Clock, wire: Wire) -> Provider:
    http = wire(judge, headers(key_of(own), own.flavor, own.base_url))
    return make(
        http,
        base_url=own.base_url,
        clock=clock,
        flavor=own.flavor,
        allow_loopback=settings.allow_loopback,
    )


OPENING: Final = Opening(SPEC, _open)
