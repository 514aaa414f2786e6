"""Which markets there are, and how settings become open providers.

Hides which of them are built in, which another package brings, which were registered by a program,
which of all these are enabled and have what they need, and how they are guarded. What one market
wants to be opened with is in `opening.py` of its folder. A new built-in market is its folder and a
line in `BUILT_IN`.

A process has one registry that everybody means who names none, since a program that adds a market
must not have to hand it to whoever opens an app: docs/adr/0016-one-registry-per-process.md.
"""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from random import Random, SystemRandom
from typing import Final

import httpx2
from msgspec import Struct

from gp4u.clock import Clock, SystemClock
from gp4u.errors import BadInput
from gp4u.provider_settings import (
    SEED_PROVIDERS,
    ProviderDefaults,
    ProviderSettings,
    default_provider,
)
from gp4u.providers.akash.opening import OPENING as AKASH
from gp4u.providers.contract import Provider, ProviderSpec
from gp4u.providers.custom.opening import check_variables, opening_of
from gp4u.providers.custom.provider import BaseProvider
from gp4u.providers.http import Http, Judge, Observe, Sign, harmless
from gp4u.providers.ionet.opening import OPENING as IONET
from gp4u.providers.opening import Opening, Wire, defaults_of, key_of
from gp4u.providers.plugins import Plugins, installed
from gp4u.providers.render.opening import OPENING as RENDER
from gp4u.providers.vastai.opening import OPENING as VASTAI
from gp4u.resilience.guard import Guard, build_guard
from gp4u.resilience.shared import SharedLimits, SharedPace
from gp4u.settings import Settings, load_settings

BUILT_IN: Final = (VASTAI, IONET, AKASH, RENDER)

SPECS: Final[Mapping[str, ProviderSpec]] = {each.spec.slug: each.spec for each in BUILT_IN}
"""Slug to the facts of each built-in market."""

_log = logging.getLogger(__name__)


class OpenProviders(Struct, frozen=True):
    """The markets that are open, their guards, and why the others are not."""

    providers: Mapping[str, Provider]
    guards: Mapping[str, Guard]
    own: Mapping[str, ProviderSettings]
    """Slug to the settings that it was opened with."""
    disabled: Mapping[str, str]
    """Slug to a sentence that says why, and what to do about it."""
    logins: Mapping[str, str]
    """Slug to address and key in one text. Secret: only a digest of it may be kept."""
    shared: SharedLimits | None = None
    """Where the pace of calls is shared with other processes; None: nowhere."""

    async def aclose(self) -> None:
        """Close every connection."""
        for slug, provider in self.providers.items():
            try:
                await provider.aclose()
            except Exception as error:  # noqa: BLE001 - a rim: a plug-in must not hold up the end
                _log.warning("%s: cannot be closed: %s", slug, _said(error))
        if self.shared is not None:
            await self.shared.aclose()


class Registry:
    """Every market that a process knows, open or not."""

    def __init__(self, plugins: Plugins | None = None) -> None:
        """`plugins` stands for the installed ones, which are looked for where it is None."""
        found = installed() if plugins is None else plugins
        self._openings = {each.spec.slug: each for each in (*BUILT_IN, *found.openings)}
        self._broken = dict(found.broken)
        self._alone: dict[str, OpenProviders] = {}
        """Objects that were registered, and that no app has opened yet."""
        self._open: list[OpenProviders] = []
        """Of each open app, the newest last."""

    @property
    def specs(self) -> Mapping[str, ProviderSpec]:
        """Slug to the facts of each market, built in, brought or registered."""
        return {slug: each.spec for slug, each in self._openings.items()}

    @property
    def defaults(self) -> tuple[ProviderDefaults, ...]:
        """What the variables of all these markets are called and default to."""
        added = [defaults_of(spec) for slug, spec in self.specs.items() if slug not in SPECS]
        return (*SEED_PROVIDERS, *added)

    def load_settings(self, environ: Mapping[str, str], cwd: Path) -> Settings:
        """Read the settings with the variables of every market that is known by now.

        Raises:
            SettingsError: some variables are bad; it lists all of them.
        """
        return load_settings(environ, cwd, providers=self.defaults)

    def register(self, what: object) -> None:
        """Add a market: a `BaseProvider`, as an object or a class, or an `Opening`.

        The next app that opens has it open as well. Until then an object can be asked by the
        defaults, without an app.

        Raises:
            BadInput: an app is open, the name or a variable is taken, or it is no market.
        """
        opening = opening_of(what)
        slug = opening.spec.slug
        if self._open:
            raise BadInput("provider", slug, "must be registered before an app opens; one is open")
        check_variables(defaults_of(opening.spec), self.defaults)
        self._openings[slug] = opening
        if isinstance(what, BaseProvider):
            # A directory that has no files: these are the defaults, whatever lies about.
            settings = load_settings({}, Path(os.devnull), providers=self.defaults)
            self._alone[slug] = open_providers(
                settings, (opening,), clock=SystemClock(), random=SystemRandom()
            )

    def unregister(self, slug: str) -> None:
        """Forget a market that was registered or brought; an app that has it open keeps it.

        Raises:
            BadInput: it is built in, or there is none of this name.
        """
        if slug in SPECS or slug not in self._openings:
            raise BadInput("provider", slug, "must be a market that was added")
        del self._openings[slug]
        self._alone.pop(slug, None)

    def get_all_healthy(self) -> list[Provider]:
        """Return the open markets that are HEALTHY now, in the order in which they are known.

        Those of the app that opened last; a market that was not asked yet counts as HEALTHY. Before
        an app opens, these are the objects that were registered.
        """
        return [
            provider
            for opened in self._newest()
            for slug, provider in opened.providers.items()
            if opened.guards[slug].is_healthy
        ]

    def why_unhealthy(self) -> dict[str, str]:
        """Return slug to a reason for each market that `get_all_healthy` leaves out."""
        why: dict[str, str] = {}
        for opened in self._newest():
            why |= opened.disabled
            for slug, guard in opened.guards.items():
                if not guard.is_healthy:
                    health = guard.health()
                    why[slug] = f"{health.status}: {health.last_error}"
        return why

    def _newest(self) -> Sequence[OpenProviders]:
        return self._open[-1:] or tuple(self._alone.values())

    @asynccontextmanager
    async def opened(
        self,
        settings: Settings,
        *,
        clock: Clock,
        random: Random,
        transport: httpx2.AsyncBaseTransport | None = None,
        observe: Observe | None = None,
    ) -> AsyncIterator[OpenProviders]:
        """Open every market that is enabled and has what it needs, until the block is left.

        Nothing is sent yet. Settings that were read without knowing of a market leave it at its
        defaults.
        """
        for alone in self._alone.values():
            await alone.aclose()
        self._alone.clear()
        opened = open_providers(
            settings,
            tuple(self._openings.values()),
            clock=clock,
            random=random,
            broken=self._broken,
            transport=transport,
            observe=observe,
        )
        self._open.append(opened)
        try:
            yield opened
        finally:
            self._open.remove(opened)
            await opened.aclose()


@cache
def get_provider_registry() -> Registry:
    """Return the registry of this process: the same one each time."""
    return Registry()


def open_providers(
    settings: Settings,
    openings: Sequence[Opening] = BUILT_IN,
    *,
    clock: Clock,
    random: Random,
    broken: Mapping[str, str] | None = None,
    transport: httpx2.AsyncBaseTransport | None = None,
    observe: Observe | None = None,
) -> OpenProviders:
    """Open each of these markets that is enabled and has what it needs. Nothing is sent yet.

    Raises:
        BadInput: the pace is to be shared, and cannot be.
    """
    shared = SharedLimits(settings.redis_url) if settings.redis_url else None
    providers: dict[str, Provider] = {}
    guards: dict[str, Guard] = {}
    used: dict[str, ProviderSettings] = {}
    disabled = dict(broken or {})
    logins: dict[str, str] = {}
    for opening in openings:
        spec = opening.spec
        own = _own(settings, spec)
        if not own.enabled:
            disabled[spec.slug] = f"switched off by {spec.env}_ENABLED"
            continue
        pace = shared.pace(spec.slug, key_of(own)) if shared is not None else None
        guard = _guard(settings, own, spec, clock=clock, random=random, shared=pace)
        wire = _wire(settings, own, spec, guard, clock, random, transport, observe)
        try:
            if why := opening.lacks(own, spec):
                disabled[spec.slug] = why
                continue
            provider = opening.open(own, settings, clock, wire)
            provider.go_by(guard)
        except Exception as error:
            if opening in BUILT_IN:
                raise  # a rim for what others wrote; a bug of ours is loud
            disabled[spec.slug] = f"it cannot be opened: {_said(error)}"
            continue
        guards[spec.slug], used[spec.slug], providers[spec.slug] = guard, own, provider
        logins[spec.slug] = f"{own.base_url} {key_of(own)}"
    return OpenProviders(providers, guards, used, disabled, logins, shared)


def _own(settings: Settings, spec: ProviderSpec) -> ProviderSettings:
    """Return a market's settings; its defaults, where its variables were not read."""
    if spec.slug in settings.providers:
        return settings.providers[spec.slug]
    return default_provider(defaults_of(spec), allow_loopback=settings.allow_loopback)


def _said(error: Exception) -> str:
    said = harmless(str(error), 200)
    return said if isinstance(error, BadInput) else f"{type(error).__name__}: {said}"


def _wire(
    settings: Settings,
    own: ProviderSettings,
    spec: ProviderSpec,
    guard: Guard,
    clock: Clock,
    random: Random,
    transport: httpx2.AsyncBaseTransport | None,
    observe: Observe | None,
) -> Wire:
    """Return what makes a provider's ways out; the one without a part goes by `guard`.

    A part is not the account's, so nobody shares its pace.
    """

    def make(
        judge: Judge, headers: Mapping[str, str], *, sign: Sign | None = None, part: str = ""
    ) -> Http:
        return Http(
            spec.slug,
            guard=_guard(settings, own, spec, clock=clock, random=random) if part else guard,
            judge=judge,
            headers=headers,
            timeout_s=own.timeout_s,
            sign=sign,
            secrets=[key_of(own), own.api_secret.get_secret_value() if own.api_secret else ""],
            allow_loopback=settings.allow_loopback,
            transport=transport,
            observe=observe,
        )

    return make


def _guard(
    settings: Settings,
    own: ProviderSettings,
    spec: ProviderSpec,
    *,
    clock: Clock,
    random: Random,
    shared: SharedPace | None = None,
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
        shared=shared,
    )
