"""What somebody adds to the markets, in one of its forms, made an `Opening` that can be trusted.

Hides that a market may come as an `Opening`, as a class of the first seed's form, as an object of
one, or as a function that makes either; and holds its facts to what variables, tables and metrics
need of them. Where it comes from - a call of `register`, or another package - is said in
`registry.py` and `plugins.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Final

from gp4u.clock import Clock
from gp4u.errors import BadInput
from gp4u.provider_settings import (
    ProviderDefaults,
    ProviderSettings,
    default_provider,
    provider_variables,
)
from gp4u.providers.contract import Provider, ProviderSpec
from gp4u.providers.custom.provider import SLUG, BaseProvider
from gp4u.providers.http import harmless
from gp4u.providers.opening import Opening, Wire, defaults_of
from gp4u.settings import Settings, variables

FORMS: Final = (
    "must be an Opening, a BaseProvider (class or object), or a function that returns one of them"
)
RESERVED: Final = ("PROVIDER", "VAST", "GP4U")
_ENV: Final = re.compile(r"[A-Z][A-Z0-9_]*")


def opening_of(what: object) -> Opening:
    """Return how to open what somebody adds.

    A class, or a function without arguments, makes a new provider each time that an app opens; an
    object is open in one app at a time.

    Raises:
        BadInput: it is of no form that we know, or its facts cannot be.
        Exception: whatever a class or a function raises when it is called.
    """
    if isinstance(what, BaseProvider):
        opening = Opening(what.spec, _once(what))
    elif isinstance(what, Opening):
        opening = what
    elif callable(what):
        opening = _made_by(what)
    else:
        raise BadInput("provider", harmless(repr(what), 80), FORMS)
    _check(opening.spec)
    return opening


def check_variables(new: ProviderDefaults, known: Iterable[ProviderDefaults]) -> None:
    """See that a new provider does not take the slug or a variable of a known one, or of ours.

    Raises:
        BadInput: it does.
    """
    if new.env in RESERVED:
        raise BadInput("provider", new.slug, f"must be another word: {new.env}_ is our own prefix")
    others = tuple(known)
    if any(new.slug == each.slug for each in others):
        raise BadInput("provider", new.slug, "must be new: there is a provider of this name")
    taken = {name for entry in variables(others) for name in entry.names}
    own = [name for entry in provider_variables(new) for name in entry.names]
    if clash := next((name for name in own if name in taken), None):
        raise BadInput("provider", new.slug, f"must have its own variables: {clash} is another's")


def _made_by(make: Callable[[], object]) -> Opening:
    """Return the opening of what a class or a function makes; it is called once to know its facts.

    Raises:
        BadInput: it makes something else.
    """
    made = make()
    if isinstance(made, Opening):
        return made
    if not isinstance(made, BaseProvider):
        raise BadInput("provider", harmless(repr(made), 80), FORMS)

    def open_new(own: ProviderSettings, settings: Settings, clock: Clock, wire: Wire) -> Provider:
        fresh = make()
        if not isinstance(fresh, BaseProvider) or fresh.name != made.name:
            raise BadInput("provider", made.name, "must be made anew at each call, of one name")
        return fresh.connect(own, settings, clock, wire)

    return Opening(made.spec, open_new)


def _once(
    provider: BaseProvider,
) -> Callable[[ProviderSettings, Settings, Clock, Wire], Provider]:
    def open_it(own: ProviderSettings, settings: Settings, clock: Clock, wire: Wire) -> Provider:
        if provider.is_open:
            bound = "is one object, and open in another app; register its class instead"
            raise BadInput("provider", provider.name, bound)
        return provider.connect(own, settings, clock, wire)

    return open_it


def _check(spec: ProviderSpec) -> None:
    """Hold a market's facts to what everything that shows or stores them needs.

    Raises:
        BadInput: one of them cannot be.
    """
    if not isinstance(spec, ProviderSpec):
        raise BadInput("spec", harmless(repr(spec), 80), "must be a ProviderSpec")
    if not SLUG.fullmatch(spec.slug):
        raise BadInput("slug", harmless(spec.slug, 40), f"must match {SLUG.pattern}")
    if not _ENV.fullmatch(spec.env):
        raise BadInput("env", harmless(spec.env, 40), f"must match {_ENV.pattern}")
    try:
        default_provider(defaults_of(spec), allow_loopback=False)
    except ValueError as error:
        facts = f"{spec.base_url} {spec.rate_limit_per_min}/min"
        bound = "must be an https URL, and from 1 to 100000 requests/min"
        raise BadInput(spec.slug, harmless(facts, 80), bound) from error
