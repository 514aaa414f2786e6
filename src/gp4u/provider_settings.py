"""One provider's variables: what they are called, how they are bounded, what they default to.

Hides that a provider's variables have its own prefix, that some have other names there, and that
some are had by one provider only. It exists so that a provider that somebody adds is set exactly as
a built-in one is. Where values come from, and everything that is not about one provider, is in
`settings.py`; how a market is opened with these is in `providers/opening.py`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, ValidationInfo

from gp4u.variables import Entry, Flag, Group, Names, Token, Variable, Word, entry_of, variable_of

_LOOPBACK = re.compile(r"localhost|127(\.\d{1,3}){3}|::1")


@dataclass(frozen=True)
class ProviderDefaults:
    """What a provider's variables are called and default to; plug-ins add some."""

    slug: str
    env: str
    """Prefix of its variables, without the underscore."""
    base_url: str
    """Empty: the provider's own code knows it, unless the variable says another."""
    rate_limit_per_min: int
    key_aliases: tuple[str, ...] = ()
    key_variable: str = "API_KEY"
    url_variable: str = "BASE_URL"
    secret_aliases: tuple[str, ...] = ()
    flavors: tuple[str, ...] = ()
    """Dialects to choose from, besides `auto`; empty: the provider speaks one."""
    flavor_note: str = ""
    """What somebody who chooses among them must know."""
    extras: tuple[str, ...] = ()
    """Fields of `ProviderSettings` that only some providers have, and this one does."""


SEED_PROVIDERS = (
    ProviderDefaults(
        "vastai", "VASTAI", "https://console.vast.ai/api/v0", 100, key_aliases=("VAST_API_KEY",)
    ),
    ProviderDefaults(
        "ionet",
        "IONET",
        "https://api.io.solutions/enterprise/v1/io-cloud",
        150,
        flavors=("caas", "vmaas", "legacy"),
    ),
    ProviderDefaults(
        "akash",
        "AKASH",
        "https://rpc.cosmos.directory/akash",
        50,
        key_variable="CONSOLE_API_KEY",
        url_variable="RPC_URL",
        extras=("rest_urls", "console_url", "block_time_s", "bid_window_s"),
    ),
    ProviderDefaults(
        "render",
        "RENDER",
        "https://api.render.network/v1",
        100,
        key_aliases=("RENDER_PUBLIC_KEY",),
        secret_aliases=("RENDER_SECRET_KEY",),
        flavors=("dispersed", "legacy"),
        flavor_note="legacy is a proposed API that no known service speaks",
        extras=("api_secret",),
    ),
)
"""Source: the first seed, "Provider-Specific Settings"; io.net's address: docs/reference/ionet.md.

The seed's address of io.net, `https://api.io.net/v1`, is in no document of that market. It can be
set, and then the older dialect is spoken there.
"""
_EXTRAS = ("flavor", "api_secret", "rest_urls", "console_url", "block_time_s", "bid_window_s")


def _base_url(value: str, info: ValidationInfo) -> str:
    if not value:
        return value  # the default of a provider that brings its own: an empty variable is no value
    parts = urlsplit(value)
    host = parts.hostname or ""
    try:
        port = parts.port
    except ValueError:
        port = 0
    if not host or port == 0 or parts.username is not None or parts.query or parts.fragment:
        raise ValueError("an https URL with a host, without user, query or fragment")
    if any(character.isspace() or not character.isprintable() for character in value):
        raise ValueError("an https URL without spaces")
    if parts.scheme == "http":
        if not _LOOPBACK.fullmatch(host):
            raise ValueError("https; plain http is for loopback addresses only")
        if not info.data.get("allow_loopback"):
            raise ValueError("https; plain http on loopback needs GP4U_ALLOW_LOOPBACK=1")
    elif parts.scheme != "https":
        raise ValueError("an https URL")
    return value.rstrip("/")


def _base_urls(values: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
    return tuple(_base_url(value, info) for value in values)


def _known_flavor(value: str, info: ValidationInfo) -> str:
    known = ("auto", *info.data.get("flavors", ()))
    if value not in known:
        raise ValueError(f"one of {', '.join(known)}")
    return value


class ProviderSettings(Group):
    """How to speak to one provider."""

    slug: str
    flavors: tuple[str, ...] = ()
    """What `flavor` may be besides `auto`."""
    mentioned: bool = False
    """Whether any of its variables was given a value: somebody wants this provider."""
    allow_loopback: Flag = False
    """`GP4U_ALLOW_LOOPBACK`, repeated here for whoever opens the connection."""
    api_key: Annotated[Token, Variable("API_KEY", "", "key of the account; none: not rented")] = (
        None
    )
    api_secret: Annotated[
        Token, Variable("API_SECRET", "", "second half of the key pair; it signs, and is not sent")
    ] = None
    flavor: Annotated[
        str,
        Word,
        AfterValidator(_known_flavor),
        Variable("API_FLAVOR", "", "dialect; auto: by address and keys", allowed="a dialect"),
    ] = "auto"
    base_url: Annotated[
        str,
        AfterValidator(_base_url),
        Variable("BASE_URL", "URL", "address of the API", allowed="https URL"),
    ]
    rate_limit_per_min: Annotated[
        int,
        Field(ge=1, le=100_000),
        Variable("RATE_LIMIT", "requests/min", "our own limit on the calls we send"),
    ]
    rest_urls: Annotated[
        Names,
        AfterValidator(_base_urls),
        Variable(
            "REST_URL",
            "URLs",
            "the chain's REST nodes, several are asked; none: the twin of the RPC address",
            allowed="comma list of https URLs",
        ),
    ] = ()
    console_url: Annotated[
        str,
        AfterValidator(_base_url),
        Variable("CONSOLE_URL", "URL", "address of the Console's API", allowed="https URL"),
    ] = "https://console-api.akash.network"
    block_time_s: Annotated[
        float,
        Field(ge=1, le=60),
        Variable("BLOCK_TIME_S", "s", "time between two blocks; prices are per block"),
    ] = 6.0
    bid_window_s: Annotated[
        float,
        Field(ge=0, le=60),
        Variable("BID_WINDOW_S", "s", "how long bids are gathered before one is taken"),
    ] = 16.0
    timeout_s: Annotated[
        float, Field(gt=0, le=600), Variable("TIMEOUT", "s", "deadline of one whole call")
    ] = 30.0
    enabled: Annotated[Flag, Variable("ENABLED", "", "whether the provider is used at all")] = True
    settle_s: Annotated[
        float | None,
        Field(ge=0, le=3600),
        Variable("SETTLE_S", "s", "how long a listing may be blind to our last call"),
    ] = None
    late_window_s: Annotated[
        float | None,
        Field(ge=0, le=86_400),
        Variable("LATE_WINDOW_S", "s", "how long a lost rent call may still take effect"),
    ] = None
    bill_lag_s: Annotated[
        float | None,
        Field(ge=0, le=2_678_400),
        Variable("BILL_LAG_S", "s", "how long after its end a rental's bill may still grow"),
    ] = None


def provider_variables(provider: ProviderDefaults) -> list[Entry]:
    """Return one provider's variables, under its own prefix."""
    entries = []
    names = {"base_url": provider.url_variable, "api_key": provider.key_variable}
    aliases = {"api_key": provider.key_aliases, "api_secret": provider.secret_aliases}
    known = {"base_url": provider.base_url, "rate_limit_per_min": provider.rate_limit_per_min}
    has = (*provider.extras, *(("flavor",) if provider.flavors else ()))
    for name, info in ProviderSettings.model_fields.items():
        if not variable_of(info) or (name in _EXTRAS and name not in has):
            continue
        entry = entry_of(
            info,
            (("providers", provider.slug, name),),
            prefix=f"{provider.env}_",
            name=names.get(name),
            aliases=aliases.get(name, ()),
            default=known.get(name),
        )
        if name == "flavor":
            entry = replace(entry, allowed=f"one of {', '.join(('auto', *provider.flavors))}")
            if provider.flavor_note:
                entry = replace(entry, meaning=f"{entry.meaning}; {provider.flavor_note}")
        entries.append(entry)
    return entries


def default_values(provider: ProviderDefaults) -> dict[str, object]:
    """Return what `ProviderSettings` of a provider are, as far as a provider has its own."""
    return {
        "slug": provider.slug,
        "base_url": provider.base_url,
        "rate_limit_per_min": provider.rate_limit_per_min,
        "flavors": provider.flavors,
    }


def default_provider(provider: ProviderDefaults, *, allow_loopback: bool) -> ProviderSettings:
    """Return the settings of a provider whose variables nobody read.

    Raises:
        ValueError: its defaults do not keep their own bounds.
    """
    given = {"allow_loopback": allow_loopback} | default_values(provider)
    return ProviderSettings.model_validate(given)
