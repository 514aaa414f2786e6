"""Which markets there are, and how settings become open providers.

A new market is one adapter file and one line in `_ADAPTERS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import Random
from typing import Final

import httpx2
from msgspec import Struct

from gp4u.clock import Clock
from gp4u.providers import vastai, vastai_replies
from gp4u.providers.contract import Provider, ProviderSpec
from gp4u.providers.http import Http, Judge, Observe
from gp4u.resilience.guard import Guard, build_guard
from gp4u.settings import ProviderSettings, Settings


class _Adapter(Struct, frozen=True):
    spec: ProviderSpec
    judge: Judge
    headers: Callable[[str], Mapping[str, str]]
    """What carries the key."""
    make: Callable[[Http, ProviderSettings, Settings, Clock], Provider]


_ADAPTERS: Final = (
    _Adapter(
        spec=vastai.SPEC,
        judge=vastai_replies.judge,
        headers=lambda key: {"authorization": f"Bearer {key}"},
        make=lambda http, own, all_, clock: vastai.VastAI(
            http, base_url=own.base_url, clock=clock, rent_timeout_s=all_.rent_timeout_s
        ),
    ),
)

SPECS: Final[Mapping[str, ProviderSpec]] = {a.spec.slug: a.spec for a in _ADAPTERS}
"""Slug to the facts of each market that can be opened."""


class OpenProviders(Struct, frozen=True):
    """The markets that are open, their guards, and why the others are not."""

    providers: Mapping[str, Provider]
    guards: Mapping[str, Guard]
    disabled: Mapping[str, str]
    """Slug to a sentence that says why, and what to do about it."""
    logins: Mapping[str, str]
    """Slug to address and key in one text. Secret: only a digest of it may be kept."""

    async def aclose(self) -> None:
        """Close every connection."""
        for provider in self.providers.values():
            await provider.aclose()


def open_providers(
    settings: Settings,
    *,
    clock: Clock,
    random: Random,
    transport: httpx2.AsyncBaseTransport | None = None,
    observe: Observe | None = None,
) -> OpenProviders:
    """Open every market that is enabled and has its key. Nothing is sent yet."""
    providers: dict[str, Provider] = {}
    guards: dict[str, Guard] = {}
    disabled: dict[str, str] = {}
    logins: dict[str, str] = {}
    for adapter in _ADAPTERS:
        spec = adapter.spec
        own = settings.provider(spec.slug)
        if not own.enabled:
            disabled[spec.slug] = f"switched off by {spec.env}_ENABLED"
            continue
        if own.api_key is None and spec.key_required:
            disabled[spec.slug] = f"no {spec.env}_API_KEY; make a key at {spec.key_url}"
            continue
        guard = _guard(settings, own, spec, clock=clock, random=random)
        http = Http(
            spec.slug,
            guard=guard,
            judge=adapter.judge,
            headers=adapter.headers(own.api_key.get_secret_value()) if own.api_key else {},
            timeout_s=own.timeout_s,
            allow_loopback=settings.allow_loopback,
            transport=transport,
            **({"observe": observe} if observe else {}),
        )
        guards[spec.slug] = guard
        key = own.api_key.get_secret_value() if own.api_key else ""
        logins[spec.slug] = f"{own.base_url} {key}"
        providers[spec.slug] = adapter.make(http, own, settings, clock)
    return OpenProviders(providers, guards, disabled, logins)


def _guard(
    settings: Settings, own: ProviderSettings, spec: ProviderSpec, *, clock: Clock, random: Random
) -> Guard:
    return build_guard(
        spec.slug,
        threshold=settings.breaker.threshold,
        timeout_s=settings.breaker.timeout_s,
        half_open_max_calls=settings.breaker.half_open_max_calls,
        rate_per_min=own.rate_limit_per_min if settings.rate_limiter_enabled else None,
        burst=own.rate_limit_per_min,
        paces=spec.paces,
        max_retries=settings.retry.max_retries,
        base_delay_s=settings.retry.base_delay_s,
        max_delay_s=settings.retry.max_delay_s,
        jitter_s=settings.retry.jitter_s,
        random=random,
        clock=clock,
    )
