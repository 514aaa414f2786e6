"""Every variable that GP4U reads: typed and bounded, with its unit, default and meaning.

Hides where a value comes from: the environment, `.env`, `config.env`, a YAML file of preferences,
or the default. The first that names a variable wins, and `Settings.origin` tells which it was. An
empty value means "the default", so `VASTAI_API_KEY= gp4u ...` really runs without a key.

It exists so that a bad value stops the start with variable, value and range, all of them at once,
and so that no other file asks the environment. The seeds' names are the names; what is new is
`GP4U_*`. What a value is good for is left to whoever is handed it: GPU names to `gpus.py`, places
to `places.py`, the ledger's file to the ledger. What is set of one provider stands in
`provider_settings.py`, and how values arrive as text in `variables.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, NamedTuple, cast
from urllib.parse import parse_qsl, unquote, urlsplit

from pydantic import AfterValidator, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from gp4u.errors import BadInput, SettingsError
from gp4u.model import DEFAULT_WEIGHTS
from gp4u.node_settings import NodeGroup
from gp4u.provider_settings import (
    SEED_PROVIDERS,
    ProviderDefaults,
    ProviderSettings,
    default_values,
    provider_variables,
)
from gp4u.server_settings import ApiGroup, BudgetGroup, service
from gp4u.variables import (
    HIDDEN,
    Entry,
    Flag,
    Group,
    Names,
    Reader,
    Token,
    Variable,
    Word,
    disorder,
    entry_of,
    shown,
    variable_of,
)

ENV_FILES = (".env", "config.env")
"""Read from the working directory, the first before the second, both after the environment."""
_DATABASES = "sqlite:///<path of a file> or postgresql://<user>:<password>@<host>/<database>"
_PASSWORD = re.compile(r"(?<=//)[^/@\s]*(?=@)|(?<=[?&]password=)[^&#\s]*")


def _database_url(value: str) -> str:
    if re.fullmatch(r"postgres(ql)?://[^\s/?#]+/[^\s/?#]+(\?\S*)?", value):
        return value
    path = value.removeprefix("sqlite:///")
    if path == value or not path or path == ":memory:" or "?" in path or "\x00" in path:
        raise ValueError(f"{_DATABASES}; the ledger must outlive the process")
    return value


def _passwords(url: str) -> list[str]:
    """Return the passwords in a URL, as written and as meant."""
    if "://" not in url:
        return []
    parts = urlsplit(url)
    asked = [value for name, value in parse_qsl(parts.query) if name == "password"]
    word = parts.password
    return [*asked, *([word, unquote(word)] if word else [])]


class BreakerGroup(Group):
    """When a provider's circuit breaker opens, and how it closes again."""

    threshold: Annotated[
        int,
        Field(ge=1, le=1000),
        Variable(
            "PROVIDER_CIRCUIT_BREAKER_THRESHOLD", "failures", "failures in a row that open it"
        ),
    ] = 5
    timeout_s: Annotated[
        float,
        Field(gt=0, le=86_400),
        Variable("PROVIDER_CIRCUIT_BREAKER_TIMEOUT", "s", "how long it stays open before a trial"),
    ] = 60.0
    half_open_max_calls: Annotated[
        int,
        Field(ge=1, le=100),
        Variable(
            "PROVIDER_CIRCUIT_BREAKER_HALF_OPEN_MAX_CALLS", "calls", "trial calls when half open"
        ),
    ] = 3


class CacheGroup(Group):
    """How long the book's offers count as fresh; see the adaptive TTL in `book.py`."""

    enabled: Annotated[Flag, Variable("PROVIDER_CACHE_ENABLED", "", "off: every read fetches")] = (
        True
    )
    ttl_s: Annotated[
        float, Field(gt=0, le=86_400), Variable("PROVIDER_CACHE_TTL", "s", "base lifetime")
    ] = 30.0
    max_ttl_s: Annotated[
        float,
        Field(gt=0, le=86_400),
        Variable("PROVIDER_CACHE_MAX_TTL", "s", "lifetime where nine calls in ten succeed"),
    ] = 300.0
    min_ttl_s: Annotated[
        float,
        Field(gt=0, le=86_400),
        Variable("PROVIDER_CACHE_MIN_TTL", "s", "lifetime where fewer than half succeed"),
    ] = 10.0

    @model_validator(mode="after")
    def _ordered(self) -> CacheGroup:
        if not self.min_ttl_s <= self.ttl_s <= self.max_ttl_s:
            raise disorder(
                "PROVIDER_CACHE_TTL",
                self.ttl_s,
                f"from PROVIDER_CACHE_MIN_TTL ({shown(self.min_ttl_s)})"
                f" to PROVIDER_CACHE_MAX_TTL ({shown(self.max_ttl_s)})",
            )
        return self


class RetryGroup(Group):
    """How calls that are safe to repeat are repeated."""

    max_retries: Annotated[
        int,
        Field(ge=0, le=10),
        Variable("PROVIDER_MAX_RETRIES", "tries", "tries in all; 0 and 1 both mean once"),
    ] = 3
    base_delay_s: Annotated[
        float,
        Field(ge=0, le=600),
        Variable("PROVIDER_RETRY_BASE_DELAY", "s", "wait before the second try; then it doubles"),
    ] = 2.0
    max_delay_s: Annotated[
        float, Field(ge=0, le=3600), Variable("PROVIDER_RETRY_MAX_DELAY", "s", "longest wait")
    ] = 32.0
    jitter_s: Annotated[
        float,
        Field(ge=0, le=600),
        Variable("PROVIDER_RETRY_JITTER", "s", "random part that is added to a wait"),
    ] = 1.0

    @model_validator(mode="after")
    def _ordered(self) -> RetryGroup:
        if self.base_delay_s > self.max_delay_s:
            raise disorder(
                "PROVIDER_RETRY_BASE_DELAY",
                self.base_delay_s,
                f"at most PROVIDER_RETRY_MAX_DELAY ({shown(self.max_delay_s)})",
            )
        return self


class DemandGroup(Group):
    """The demand of somebody who says nothing; None and empty mean no bound.

    The seeds show example values for these, not defaults, so there is no default but "any".
    """

    gpu_types: Annotated[
        Names,
        Variable(
            "VAST_GPU_TYPE",
            "names",
            "GPU models, the best liked first",
            allowed="comma list of names",
        ),
    ] = ()
    min_vram_gib: Annotated[
        float | None, Field(gt=0, le=10_000), Variable("VAST_MIN_GPU_MEMORY", "GiB", "VRAM per GPU")
    ] = None
    max_price: Annotated[
        Decimal | None,
        Field(gt=0, le=10_000),
        Variable("VAST_MAX_PRICE_PER_HOUR", "USD/hour", "highest all-in price of an offer"),
    ] = None
    min_download_mbps: Annotated[
        float | None,
        Field(ge=0, le=1_000_000),
        Variable("VAST_MIN_DOWNLOAD_SPEED", "Mbit/s", "download speed of the host"),
    ] = None
    min_reliability: Annotated[
        float | None,
        Field(ge=0, le=1),
        Variable("VAST_RELIABILITY_SCORE", "ratio", "uptime estimate of the host; 0.95 is 95 %"),
    ] = None
    locations: Annotated[
        Names,
        Variable(
            "VAST_DATACENTER_LOCATION",
            "places",
            "US-CA, US, EU; the best liked first",
            allowed="comma list of places",
        ),
    ] = ()


def _weights(value: Mapping[str, float] | None) -> Mapping[str, float] | None:
    """Scale weights that sum to 1 or to 100; anything else is somebody's mistake."""
    if value is None:
        return None
    if unknown := sorted(set(value) - set(DEFAULT_WEIGHTS)):
        raise ValueError(
            f"no criterion is called {', '.join(unknown)}: {', '.join(DEFAULT_WEIGHTS)}"
        )
    total = sum(value.values())
    if min(value.values(), default=0.0) < 0 or not any(
        abs(total - n) <= n / 1000 for n in (1, 100)
    ):
        raise ValueError("weights from 0 up that sum to 1 or to 100")
    return MappingProxyType({name: value.get(name, 0.0) / total for name in DEFAULT_WEIGHTS})


class Row(NamedTuple):
    """One line of `gp4u config`."""

    variable: str
    value: str
    """As it is in force; secrets are hidden, nothing is the empty string."""
    origin: str
    unit: str
    meaning: str


class Settings(BaseSettings):
    """All that is in force. Made by `load_settings`; never changes afterwards."""

    model_config = SettingsConfigDict(
        frozen=True, extra="ignore", allow_inf_nan=False, hide_input_in_errors=True
    )

    providers: Annotated[Mapping[str, ProviderSettings], AfterValidator(MappingProxyType)]
    """By slug, in the order in which they are known."""
    breaker: BreakerGroup = BreakerGroup()
    rate_limiter_enabled: Annotated[
        Flag, Variable("PROVIDER_RATE_LIMITER_ENABLED", "", "off: only documented intervals hold")
    ] = True
    cache: CacheGroup = CacheGroup()
    retry: RetryGroup = RetryGroup()
    demand: DemandGroup = DemandGroup()
    api: ApiGroup = ApiGroup()
    budget: BudgetGroup = BudgetGroup()
    node: NodeGroup = NodeGroup()
    weights: Annotated[Mapping[str, float] | None, AfterValidator(_weights)] = None
    """Criterion to weight, all five, summing to 1; None: the model's default weights."""

    database_url: Annotated[
        str,
        AfterValidator(_database_url),
        Variable(
            "GP4U_DATABASE_URL",
            "URL",
            "the ledger",
            allowed=_DATABASES,
            default="sqlite:///$XDG_DATA_HOME/gp4u/ledger.db",
        ),
    ]
    allow_loopback: Annotated[
        Flag, Variable("GP4U_ALLOW_LOOPBACK", "", "lets a base URL be plain http on loopback")
    ] = False
    allow_unlabelled: Annotated[
        Flag,
        Variable(
            "GP4U_ALLOW_UNLABELLED",
            "",
            "rents from markets that cannot list by key; a lost reply is then a person's to settle",
        ),
    ] = False
    log_level: Annotated[
        Literal["debug", "info", "warning", "error", "critical"],
        Word,
        Variable("GP4U_LOG_LEVEL", "", "least severity that is logged"),
    ] = "info"
    log_format: Annotated[
        Literal["auto", "json", "console"],
        Word,
        Variable("GP4U_LOG_FORMAT", "", "auto: console on a terminal, else one JSON object a line"),
    ] = "auto"
    rent_timeout_s: Annotated[
        float,
        Field(gt=0, le=3600),
        Variable("GP4U_RENT_TIMEOUT_S", "s", "deadline of the rent call alone"),
    ] = 60.0
    boot_timeout_s: Annotated[
        float,
        Field(gt=0, le=86_400),
        Variable("GP4U_BOOT_TIMEOUT_S", "s", "how long an instance may take to get healthy"),
    ] = 900.0
    max_offer_age_s: Annotated[
        float,
        Field(gt=0, le=86_400),
        Variable("GP4U_MAX_OFFER_AGE_S", "s", "older offers are shown, not rented"),
    ] = 600.0
    orphan_grace_s: Annotated[
        float,
        Field(ge=0, le=86_400),
        Variable("GP4U_ORPHAN_GRACE_S", "s", "how long an orphan is watched before its release"),
    ] = 30.0
    host: Annotated[
        str,
        Field(pattern=r"^[0-9A-Za-z.:-]+$", max_length=253),
        Variable(
            "GP4U_HOST", "", "address that `serve` listens on", allowed="host name or address"
        ),
    ] = "127.0.0.1"
    port: Annotated[
        int, Field(ge=0, le=65_535), Variable("GP4U_PORT", "", "its port; 0 takes a free one")
    ] = 8000
    price_history_days: Annotated[
        int,
        Field(ge=1, le=3650),
        Variable("GP4U_PRICE_HISTORY_DAYS", "days", "how long prices are remembered"),
    ] = 90
    redis_url: Annotated[
        str | None,
        AfterValidator(service("redis", "rediss")),
        Variable(
            "GP4U_REDIS_URL",
            "URL",
            "shares the pace of calls between processes",
            allowed="redis://[:<password>@]<host>[:<port>][/<number>]",
        ),
    ] = None
    otlp_url: Annotated[
        str | None,
        AfterValidator(service("http", "https")),
        Variable(
            "GP4U_OTLP_URL",
            "URL",
            "takes traces, as OTLP over HTTP; none: no traces",
            allowed="http(s)://<host>[:<port>][/<path>]",
        ),
    ] = None
    installation_secret: Annotated[
        Token, Variable("GP4U_INSTALLATION_SECRET", "", "signs our keys; none: made on first use")
    ] = None
    known_hosts: Annotated[
        Path,
        Variable(
            "GP4U_KNOWN_HOSTS",
            "path",
            "keeps the SSH host keys of rented machines, each believed once",
            allowed="path of a file",
            default="$XDG_DATA_HOME/gp4u/known_hosts.json",
        ),
    ]
    config: Annotated[
        Path | None,
        Variable("GP4U_CONFIG", "path", "YAML file of preferences", allowed="path of a YAML file"),
    ] = None

    origins: Mapping[str, str] = Field(default=MappingProxyType({}), repr=False)
    """Variable to where its value came from; what is missing here is a default."""
    unknown: tuple[str, ...] = ()
    """One sentence for each variable that looks like ours and is not, with the nearest name."""
    entries: tuple[Entry, ...] = Field(default=(), repr=False)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 -- the signature is the library's
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003 -- the signature is the library's
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 -- same
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 -- same
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take the layers that `load_settings` read, and nothing from the process's environment."""
        layers = cast("InitSettingsSource", init_settings).init_kwargs["layers"]
        return tuple(InitSettingsSource(cls, layer) for layer in layers)

    @property
    def provider_slugs(self) -> tuple[str, ...]:
        """Every provider there are settings for, enabled or not."""
        return tuple(self.providers)

    def provider(self, slug: str) -> ProviderSettings:
        """Return one provider's settings.

        Raises:
            BadInput: there is no such provider.
        """
        if slug not in self.providers:
            raise BadInput("provider", slug, f"one of {', '.join(self.providers)}")
        return self.providers[slug]

    def origin(self, name: str) -> str:
        """Return `environment`, `.env`, `config.env`, `default`, or the path of a file.

        Raises:
            BadInput: no variable has this name.
        """
        for entry in self.entries:
            if name in entry.names:
                return self.origins.get(entry.variable, "default")
        raise BadInput("variable", name, "no such variable")

    def table(self) -> list[Row]:
        """Return what is in force, a row per variable in the order of the reference page."""
        rows = []
        for entry in self.entries:
            value: Any = self
            for step in entry.paths[0]:
                value = value[step] if isinstance(value, Mapping) else getattr(value, step)
            text = shown(value)
            if entry.unit == "URL":
                text = _PASSWORD.sub(HIDDEN, text)
            origin = self.origin(entry.variable)
            rows.append(Row(entry.variable, text, origin, entry.unit, entry.meaning))
        return rows

    def secrets(self) -> tuple[str, ...]:
        """Return every value that must never leave its place, for the log rim to hide."""
        held = [self.installation_secret, self.api.token]
        held += [token for _, token in self.api.granted]
        for each in self.providers.values():
            held += [each.api_key, each.api_secret]
        urls = [self.database_url, self.otlp_url or "", self.redis_url or ""]
        passwords = [word for url in urls for word in _passwords(url)]
        return (*(each.get_secret_value() for each in held if each), *passwords)


def variables(providers: Sequence[ProviderDefaults] = SEED_PROVIDERS) -> tuple[Entry, ...]:
    """Return every variable there is, providers first, in the order of the reference page."""
    entries = [entry for provider in providers for entry in provider_variables(provider)]
    for name, info in Settings.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, Group):
            entries += [
                entry_of(each, ((name, inner),))
                for inner, each in info.annotation.model_fields.items()
            ]
        elif name == "allow_loopback":
            inside = tuple(("providers", each.slug, name) for each in providers)
            entries.append(entry_of(info, ((name,), *inside)))
        elif variable_of(info):
            entries.append(entry_of(info, ((name,),)))
    return tuple(entries)


def load_settings(
    environ: Mapping[str, str],
    cwd: Path,
    *,
    providers: Sequence[ProviderDefaults] = SEED_PROVIDERS,
) -> Settings:
    """Read every layer and return what is in force.

    Raises:
        SettingsError: some variables are bad; it lists all of them.
    """
    entries = variables(providers)
    reader = Reader(entries, cwd)
    reader.take("environment", environ)
    for name in ENV_FILES:
        reader.take(name, reader.env_file(name))
    anchored: dict[str, object] = {}
    if path := reader.raw.get("GP4U_CONFIG"):
        anchored["config"] = cwd / str(path)
        reader.preferences(cwd / str(path))
    scheme, _, file = str(reader.raw.get("GP4U_DATABASE_URL", "")).partition("sqlite:///")
    if not scheme and file not in ("", ":memory:"):
        anchored["database_url"] = f"sqlite:///{cwd / file}"
    prefixes = [f"{each.env}_" for each in SEED_PROVIDERS]
    prefixes += ["PROVIDER_", "VAST_", "GP4U_", "VKUBELET_"]
    theirs = [f"{each.env}_" for each in providers if each not in SEED_PROVIDERS]
    mentioned = {
        entry.paths[0][1]: {"mentioned": True}
        for entry in entries
        if entry.paths[0][0] == "providers" and entry.variable in reader.origins
    }
    about = {
        "origins": MappingProxyType(reader.origins),
        "unknown": tuple(reader.unknown(prefixes, theirs)),
        "entries": entries,
        "providers": mentioned,
    }
    layers = [about, anchored, *reader.layers, _defaults(environ, providers)]
    settings = None
    try:
        settings = Settings(layers=layers)
    except ValidationError as error:
        reader.problems += [_problem(each, reader, entries) for each in error.errors()]
    if reader.problems or settings is None:
        raise SettingsError(tuple({each.field: each for each in reader.problems}.values()))
    return settings


def _defaults(
    environ: Mapping[str, str], providers: Sequence[ProviderDefaults]
) -> dict[str, object]:
    """Return the lowest layer: the defaults that the fields themselves cannot hold."""
    data = Path(environ.get("XDG_DATA_HOME", ""))
    if not data.is_absolute():
        home = environ.get("HOME")
        data = (Path(home) if home else Path.home()) / ".local" / "share"
    return {
        "providers": {each.slug: default_values(each) for each in providers},
        "database_url": f"sqlite:///{data / 'gp4u' / 'ledger.db'}",
        "known_hosts": data / "gp4u" / "known_hosts.json",
    }


def _problem(error: ErrorDetails, reader: Reader, entries: Sequence[Entry]) -> BadInput:
    """Translate one complaint of pydantic's: variable, value, range, and where it is set."""
    context = error.get("ctx", {})
    if variable := context.get("variable"):
        return BadInput(variable, context["value"], context["bound"])
    steps = tuple(str(step) for step in error["loc"])
    entry = next(
        (each for each in entries if any(steps[: len(path)] == path for path in each.paths)), None
    )
    variable = entry.variable if entry else steps[0]
    value = HIDDEN if entry and entry.secret else _harmless(str(reader.raw.get(variable, "")))
    own_words = context.get("error")
    bound = str(own_words) if own_words else entry.allowed if entry else error["msg"]
    return BadInput(variable, value, f"{bound} (set in {reader.origins.get(variable, 'default')})")


def _harmless(text: str) -> str:
    """Return a bad value as it may be shown: a URL may carry a password or a key."""
    return re.sub(r"//[^/@]*@", f"//{HIDDEN}@", text).partition("?")[0][:100]
