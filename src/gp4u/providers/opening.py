"""How a market is opened: its facts, what it needs from the settings, and a way out with a guard.

Every market has one `Opening`, in `opening.py` of its own folder; a market that another package
adds has one too. An adapter never builds its connection itself: it is handed a `Wire`, so that no
call leaves without guard, caps and metrics. Which markets there are is `registry.py`'s part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from msgspec import Struct

from gp4u.clock import Clock
from gp4u.provider_settings import ProviderDefaults, ProviderSettings
from gp4u.providers.contract import Provider, ProviderSpec
from gp4u.providers.http import Http, Judge, Sign
from gp4u.settings import Settings


class Wire(Protocol):
    """Makes an adapter's way out."""

    def __call__(
        self,
        judge: Judge,
        headers: Mapping[str, str],
        *,
        sign: Sign | None = None,
        part: str = "",
    ) -> Http:
        """Return an `Http` that carries `headers`; a `part` is guarded apart from the rest."""


def key_of(own: ProviderSettings) -> str:
    """Return the key of the account; empty where there is none."""
    return own.api_key.get_secret_value() if own.api_key else ""


def lacks_key(own: ProviderSettings, spec: ProviderSpec) -> str:
    """Say that the key is missing, and where one is made; empty where it is there or not needed."""
    if own.api_key is not None or not spec.key_required:
        return ""
    where = f"; make a key at {spec.key_url}" if spec.key_url else ""
    return f"no {spec.env}_API_KEY{where}"


def defaults_of(spec: ProviderSpec) -> ProviderDefaults:
    """Return what a market's variables are called and default to, by its facts."""
    return ProviderDefaults(
        spec.slug, spec.env, spec.base_url, spec.rate_limit_per_min, spec.key_aliases
    )


class Opening(Struct, frozen=True):
    """How one market is opened."""

    spec: ProviderSpec
    open: Callable[[ProviderSettings, Settings, Clock, Wire], Provider]
    """Builds the adapter; sends nothing."""
    lacks: Callable[[ProviderSettings, ProviderSpec], str] = lacks_key
    """Says what is missing to open it and where that is had; empty: nothing."""
