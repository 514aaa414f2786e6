"""What is in force, where it came from, and what stops the start; no environment but ours."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path

import pytest
from pydantic import ValidationError

from gp4u.errors import BadInput, SettingsError
from gp4u.provider_settings import SEED_PROVIDERS, ProviderDefaults, default_provider
from gp4u.settings import Settings, load_settings, variables

CANARY = "canary-key-4711"


@pytest.fixture
def cwd(tmp_path: Path) -> Path:
    """Give an empty working directory."""
    return tmp_path


def complaints(environ: Mapping[str, str], cwd: Path) -> dict[str, str]:
    """Return variable to complaint; fails where the settings are accepted."""
    with pytest.raises(SettingsError) as caught:
        load_settings(environ, cwd)
    return {problem.field: str(problem) for problem in caught.value.problems}


def test_the_defaults_are_the_seeds(cwd: Path) -> None:
    """The first seed documents them one by one, and people rely on what they copied from it."""
    settings = load_settings({"HOME": "/home/ada"}, cwd)
    facts = {
        each.slug: (each.base_url, each.rate_limit_per_min, each.timeout_s, each.enabled)
        for each in settings.providers.values()
    }
    assert facts == {
        "vastai": ("https://console.vast.ai/api/v0", 100, 30.0, True),
        "ionet": ("https://api.io.solutions/enterprise/v1/io-cloud", 150, 30.0, True),
        "akash": ("https://rpc.cosmos.directory/akash", 50, 30.0, True),
        "render": ("https://api.render.network/v1", 100, 30.0, True),
    }
    breaker, cache, retry = settings.breaker, settings.cache, settings.retry
    assert (breaker.threshold, breaker.timeout_s, breaker.half_open_max_calls) == (5, 60.0, 3)
    assert (cache.enabled, cache.ttl_s, cache.max_ttl_s, cache.min_ttl_s) == (
        True,
        30.0,
        300.0,
        10.0,
    )
    delays = (retry.max_retries, retry.base_delay_s, retry.max_delay_s, retry.jitter_s)
    assert delays == (3, 2.0, 32.0, 1.0)
    assert settings.rate_limiter_enabled


def test_a_demand_has_no_bound_that_nobody_asked_for(cwd: Path) -> None:
    """The second seed's values are examples; as defaults they would hide most of the market."""
    demand = load_settings({"HOME": "/home/ada"}, cwd).demand
    assert set(demand.model_dump().values()) == {(), None}


def test_the_demand_is_read_with_exact_money_and_ordered_lists(cwd: Path) -> None:
    """Order is a preference, and a price is compared with prices to the last digit."""
    environ = {
        "VAST_GPU_TYPE": "RTX3060, RTX4090",
        "VAST_MIN_GPU_MEMORY": "12",
        "VAST_MAX_PRICE_PER_HOUR": "0.10",
        "VAST_MIN_DOWNLOAD_SPEED": "100",
        "VAST_RELIABILITY_SCORE": "0.95",
        "VAST_DATACENTER_LOCATION": "US-CA,US,EU",
    }
    demand = load_settings(environ, cwd).demand
    assert demand.gpu_types == ("RTX3060", "RTX4090")
    assert demand.max_price == Decimal("0.10")
    assert (demand.min_vram_gib, demand.min_download_mbps, demand.min_reliability) == (
        12.0,
        100.0,
        0.95,
    )
    assert demand.locations == ("US-CA", "US", "EU")


def test_the_environment_beats_both_files_and_the_first_file_the_second(cwd: Path) -> None:
    """A person who exports a variable means now; the files hold what usually holds."""
    (cwd / ".env").write_text("VASTAI_TIMEOUT=20\nVASTAI_RATE_LIMIT=7\n")
    (cwd / "config.env").write_text(
        "VASTAI_TIMEOUT=30\nVASTAI_RATE_LIMIT=8\n"
        "VAST_GPU_TYPE=RTX3060           # Must have this GPU type\n"
        "export PROVIDER_CACHE_TTL='60'\n"
    )
    settings = load_settings({"VASTAI_TIMEOUT": "10"}, cwd)
    vastai = settings.provider("vastai")
    assert (vastai.timeout_s, vastai.rate_limit_per_min) == (10.0, 7)
    assert settings.demand.gpu_types == ("RTX3060",)
    assert settings.cache.ttl_s == 60.0
    names = ("VASTAI_TIMEOUT", "VASTAI_RATE_LIMIT", "VAST_GPU_TYPE", "VASTAI_ENABLED")
    assert [settings.origin(name) for name in names] == [
        "environment",
        ".env",
        "config.env",
        "default",
    ]


def test_an_empty_value_asks_for_the_default(cwd: Path) -> None:
    """Blanking the key for one run must not quietly spend money with the key from the file."""
    (cwd / ".env").write_text(f"VASTAI_API_KEY={CANARY}\n")
    settings = load_settings({"VASTAI_API_KEY": ""}, cwd)
    assert settings.provider("vastai").api_key is None
    assert settings.origin("VASTAI_API_KEY") == "default"


def test_the_alias_of_the_second_seed_names_the_same_key(cwd: Path) -> None:
    """The second seed writes `VAST_API_KEY` into `config.env`."""
    (cwd / "config.env").write_text("VAST_API_KEY=from-alias\n")
    settings = load_settings({}, cwd)
    assert settings.secrets() == ("from-alias",)
    assert settings.origin("VASTAI_API_KEY") == settings.origin("VAST_API_KEY") == "config.env"
    both = load_settings({"VASTAI_API_KEY": "own-name", "VAST_API_KEY": "alias"}, cwd)
    assert both.secrets() == ("own-name",)


def test_a_secret_may_lie_in_a_file_of_its_own(cwd: Path) -> None:
    """Clusters mount secrets as files; a trailing newline is the editor's, not the key's."""
    (cwd / "key").write_text(f"{CANARY}\n")
    settings = load_settings({"VASTAI_API_KEY_FILE": "key"}, cwd)
    assert settings.secrets() == (CANARY,)
    assert settings.origin("VASTAI_API_KEY") == str(cwd / "key")
    assert "VASTAI_API_KEY_FILE" in complaints({"VASTAI_API_KEY_FILE": "missing"}, cwd)


def test_a_file_without_its_secret_stops_the_start(cwd: Path) -> None:
    """One that is not filled yet must not open a market with no key at all."""
    (cwd / "key").write_text("\n")
    assert "VASTAI_API_KEY_FILE" in complaints({"VASTAI_API_KEY_FILE": "key"}, cwd)


BAD_VALUES = [
    ("VASTAI_RATE_LIMIT", "0", "from 1 to 100000"),
    ("IONET_RATE_LIMIT", "1.5", "whole number"),
    ("AKASH_TIMEOUT", "0", "above 0 to 600"),
    ("RENDER_ENABLED", "maybe", "true, false, 1, 0, yes, no, on or off"),
    ("RENDER_ENABLED", "t", "true, false, 1, 0, yes, no, on or off"),
    ("VASTAI_SETTLE_S", "-1", "from 0 to 3600"),
    ("VASTAI_LATE_WINDOW_S", "inf", "from 0 to 86400"),
    ("PROVIDER_CIRCUIT_BREAKER_THRESHOLD", "five", "from 1 to 1000"),
    ("PROVIDER_CIRCUIT_BREAKER_TIMEOUT", "nan", "above 0"),
    ("PROVIDER_MAX_RETRIES", "11", "from 0 to 10"),
    ("PROVIDER_CACHE_TTL", "301", "PROVIDER_CACHE_MAX_TTL (300)"),
    ("PROVIDER_RETRY_BASE_DELAY", "33", "PROVIDER_RETRY_MAX_DELAY (32)"),
    ("VAST_MAX_PRICE_PER_HOUR", "NaN", "above 0"),
    ("VAST_MAX_PRICE_PER_HOUR", "1e999", "above 0"),
    ("VAST_RELIABILITY_SCORE", "95", "from 0 to 1"),
    ("VAST_MIN_GPU_MEMORY", "Infinity", "above 0"),
    ("GP4U_DATABASE_URL", "mysql://db/gp4u", "sqlite:///<path of a file>"),
    ("GP4U_DATABASE_URL", "sqlite:///:memory:", "sqlite:///<path of a file>"),
    ("GP4U_DATABASE_URL", "sqlite:///", "sqlite:///<path of a file>"),
    ("GP4U_LOG_FORMAT", "xml", "one of auto, json, console"),
    ("GP4U_LOG_LEVEL", "loud", "one of debug, info, warning, error, critical"),
    ("GP4U_PORT", "65536", "from 0 to 65535"),
    ("GP4U_HOST", "a b", "host name or address"),
    ("GP4U_RENT_TIMEOUT_S", "0", "above 0"),
    ("GP4U_CONFIG", "missing.yaml", "readable UTF-8 file"),
    ("GP4U_NODE_NAME", "a" * 64, "63 at most"),
    ("GP4U_NODE_NAME", "gpu..1", "a node's name"),
    ("GP4U_NODE_NAME", "gpu.-1", "a node's name"),
    ("GP4U_NODE_LISTEN", "everywhere", "IPv4 or IPv6 address"),
    ("GP4U_NODE_TLS_CERT_FILE", "tls.crt", "together with GP4U_NODE_TLS_KEY_FILE"),
    ("VKUBELET_TAINT_KEY", "gpu of mine", "a taint key"),
    ("VKUBELET_TAINT_KEY", "a/b/c", "a taint key"),
    ("VKUBELET_TAINT_VALUE", "x" * 64, "63 at most"),
]


@pytest.mark.parametrize(("variable", "value", "bound"), BAD_VALUES)
def test_a_bad_value_stops_the_start_with_variable_value_and_range(
    variable: str, value: str, bound: str, cwd: Path
) -> None:
    """Whoever reads the message must not have to open the manual."""
    text = complaints({variable: value}, cwd)[variable]
    assert value in text
    assert bound in text


def test_the_nodes_of_one_process_have_ports_of_their_own(cwd: Path) -> None:
    """One that is beyond the last, or another's, would end the process only after it has begun."""
    two = {"GP4U_NODE_NAME": "a,b"}
    text = complaints({**two, "GP4U_NODE_PORT": "65535"}, cwd)["GP4U_NODE_PORT"]
    assert "65536 is too high" in text
    text = complaints({**two, "GP4U_NODE_PORT": "10247"}, cwd)["GP4U_NODE_HEALTH_PORT"]
    assert "10247 to 10248" in text
    assert load_settings({**two, "GP4U_NODE_PORT": "0"}, cwd).node.port == 0
    assert load_settings({**two, "GP4U_NODE_PORT": "65534"}, cwd).node.port == 65534


def test_every_bad_variable_is_named_at_once_with_where_it_is_set(cwd: Path) -> None:
    """Three rounds of edit and start for three mistakes are two too many."""
    (cwd / ".env").write_text("VASTAI_TIMEOUT=soon\n")
    found = complaints({"GP4U_PORT": "x", "VAST_RELIABILITY_SCORE": "2"}, cwd)
    assert set(found) == {"VASTAI_TIMEOUT", "GP4U_PORT", "VAST_RELIABILITY_SCORE"}
    assert found["VASTAI_TIMEOUT"].endswith("(set in .env)")
    assert found["GP4U_PORT"].endswith("(set in environment)")


@pytest.mark.parametrize(
    "url",
    [
        "http://console.vast.ai/api/v0",
        "http://10.0.0.1/api",
        "http://127.0.0.1.evil.example/api",
        "http://localhost.evil.example/api",
        "ftp://console.vast.ai",
        "console.vast.ai",
        "https://",
        f"https://user:{CANARY}@console.vast.ai/",
        f"https://console.vast.ai/?api_key={CANARY}",
        "https://console.vast.ai/#part",
        "https://console.vast.ai:99999/",
        "https://console.vast.ai/a b",
    ],
)
def test_a_base_url_that_could_leak_the_key_is_refused(url: str, cwd: Path) -> None:
    """The key travels in a header to whatever this URL names, so nothing in it may be doubtful."""
    text = complaints({"VASTAI_BASE_URL": url, "GP4U_ALLOW_LOOPBACK": "1"}, cwd)["VASTAI_BASE_URL"]
    assert "https" in text
    assert CANARY not in text


@pytest.mark.parametrize("host", ["127.0.0.1:8080", "127.9.9.9", "localhost", "[::1]:1"])
def test_plain_http_needs_loopback_and_permission(host: str, cwd: Path) -> None:
    """The simulator listens there; a forgotten test URL must not pass for the market."""
    environ = {"VASTAI_BASE_URL": f"http://{host}/api/v0/"}
    assert "GP4U_ALLOW_LOOPBACK=1" in complaints(environ, cwd)["VASTAI_BASE_URL"]
    vastai = load_settings({**environ, "GP4U_ALLOW_LOOPBACK": "1"}, cwd).provider("vastai")
    assert vastai.base_url == f"http://{host}/api/v0"
    assert vastai.allow_loopback


def test_no_secret_is_ever_shown(cwd: Path) -> None:
    """Settings end up in logs, bug reports and screenshots."""
    environ = {"VASTAI_API_KEY": CANARY, "GP4U_INSTALLATION_SECRET": CANARY + "2"}
    settings = load_settings(environ, cwd)
    shown = repr(settings) + str(settings) + str(settings.table()) + repr(settings.providers)
    assert CANARY not in shown
    assert set(settings.secrets()) == {CANARY, CANARY + "2"}
    with pytest.raises(SettingsError) as caught:
        load_settings({"VASTAI_API_KEY": f"{CANARY}\nX-Evil: 1"}, cwd)
    assert CANARY not in str(caught.value) + repr(caught.value.problems)


def test_a_broken_line_is_named_by_number_and_not_repeated(cwd: Path) -> None:
    """The line may hold half of a key."""
    (cwd / ".env").write_text(f"VASTAI_TIMEOUT=20\n{CANARY} is my key\n")
    found = complaints({}, cwd)
    assert list(found) == [".env line 2"]
    assert CANARY not in str(found)


def test_nothing_in_a_file_is_filled_in_from_the_environment(
    cwd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is written is what holds; the process's own environment is not looked at behind us."""
    monkeypatch.setenv("VASTAI_API_KEY", "from-the-process")
    monkeypatch.setenv("OTHER", "other")
    (cwd / ".env").write_text("RENDER_API_KEY=${OTHER}\n")
    assert load_settings({}, cwd).secrets() == ("${OTHER}",)


def test_a_misspelt_variable_is_reported_with_the_nearest_name(cwd: Path) -> None:
    """A typing error otherwise looks like a setting that does nothing."""
    (cwd / ".env").write_text("PROVIDER_CACHE_TLL=1\nDB_HOST=x\n")
    unknown = load_settings({"VASTAI_API_KYE": "x", "GP4U_COLOUR": "x"}, cwd).unknown
    assert "VASTAI_API_KYE (environment)" in unknown[0]
    assert unknown[0].endswith("did you mean VASTAI_API_KEY?")
    assert "GP4U_COLOUR" in unknown[1]
    assert "PROVIDER_CACHE_TLL (.env)" in unknown[2]
    assert len(unknown) == 3


def test_variables_that_other_software_sets_are_not_reported(cwd: Path) -> None:
    """A rented machine sets `VAST_*` and a hoster `RENDER_*`; warning of them is noise."""
    environ = {"VAST_CONTAINERLABEL": "C.1", "RENDER_EXTERNAL_URL": "x", "PATH": "/bin"}
    assert load_settings(environ, cwd).unknown == ()


PREFERENCES = """
gpu:
  preferred_types:
    - "RTX3060"     # first choice
    - "RTX4090"
locations: ["US-CA", "US"]
requirements:
  max_price_per_hour: 0.10
  reliability_score: 0.95
weights: {price: 40, performance: 20, gpu_match: 20, location: 10, availability: 10}
"""


def test_the_preferences_file_has_the_second_seeds_form(cwd: Path) -> None:
    """Its values are wishes in order, below the environment and above the defaults."""
    (cwd / "vast-provider-config.yaml").write_text(PREFERENCES)
    environ = {"GP4U_CONFIG": "vast-provider-config.yaml", "VAST_DATACENTER_LOCATION": "EU"}
    settings = load_settings(environ, cwd)
    path = str(cwd / "vast-provider-config.yaml")
    assert settings.demand.gpu_types == ("RTX3060", "RTX4090")
    assert settings.demand.max_price == Decimal("0.1")
    assert settings.demand.locations == ("EU",)
    assert settings.origin("VAST_GPU_TYPE") == path
    assert settings.origin("VAST_DATACENTER_LOCATION") == "environment"
    assert settings.weights is not None
    assert settings.weights["price"] == pytest.approx(0.4)
    assert sum(settings.weights.values()) == pytest.approx(1.0)
    assert settings.config == cwd / "vast-provider-config.yaml"


@pytest.mark.parametrize(
    ("document", "field"),
    [
        ("weights: {price: 1, speed: 0}", "weights"),
        ("weights: {price: 0.5}", "weights"),
        ("weights: {price: 2, location: -1}", "weights"),
        ("weights: {price: .nan, location: 1}", "weights"),
        ("weights: [1, 2]", "weights"),
        ("requirements: {max_price_per_hour: -1}", "VAST_MAX_PRICE_PER_HOUR"),
        ("locations: [1, [2]]", "VAST_DATACENTER_LOCATION"),
        ("[1, 2]", "GP4U_CONFIG"),
        ("gpu: {", "GP4U_CONFIG"),
        ("locations: 2026-13-45", "GP4U_CONFIG"),
        ("!!python/object/apply:os.getcwd []", "GP4U_CONFIG"),
    ],
)
def test_a_bad_preferences_file_stops_the_start(document: str, field: str, cwd: Path) -> None:
    """Weights that sum to something else are somebody's slip, not a scale to be guessed."""
    (cwd / "p.yaml").write_text(document)
    assert list(complaints({"GP4U_CONFIG": "p.yaml"}, cwd)) == [field]


def test_an_unknown_key_of_the_preferences_file_is_reported(cwd: Path) -> None:
    """The file is shared with other tools, so a stranger is a warning and not an error."""
    (cwd / "p.yaml").write_text("gpu: {preferred_type: RTX3060}\n")
    (sentence,) = load_settings({"GP4U_CONFIG": "p.yaml"}, cwd).unknown
    assert sentence.startswith("gpu.preferred_type ")


def test_the_ledger_lies_in_the_users_data_directory(cwd: Path) -> None:
    """The XDG rule: an absolute `XDG_DATA_HOME`, else `~/.local/share`; a relative one is none.

    Source: XDG Base Directory Specification 0.8, "All paths must be absolute".
    """
    home = {"HOME": "/home/ada"}
    usual = "sqlite:////home/ada/.local/share/gp4u/ledger.db"
    assert load_settings(home, cwd).database_url == usual
    assert load_settings({**home, "XDG_DATA_HOME": "rel"}, cwd).database_url == usual
    moved = load_settings({**home, "XDG_DATA_HOME": "/data"}, cwd).database_url
    assert moved == "sqlite:////data/gp4u/ledger.db"


def test_a_relative_ledger_is_anchored_in_the_working_directory(cwd: Path) -> None:
    """A ledger that moves with `cd` is a ledger that is lost."""
    settings = load_settings({"GP4U_DATABASE_URL": "sqlite:///my.db"}, cwd)
    assert settings.database_url == f"sqlite:///{cwd / 'my.db'}"


def test_settings_cannot_be_changed(cwd: Path) -> None:
    """Many parts hold the same object; one that could change it would change it for all."""
    settings = load_settings({}, cwd)
    with pytest.raises(ValidationError):
        settings.port = 1  # type: ignore[misc] # the point of the test
    with pytest.raises(ValidationError):
        settings.breaker.threshold = 1  # type: ignore[misc] # the point of the test
    with pytest.raises(TypeError):
        settings.providers["x"] = settings.provider("vastai")  # type: ignore[index] # same


def test_every_variable_has_a_row_that_can_be_given_back(cwd: Path) -> None:
    """`gp4u config` prints what one would have to write to get the same settings."""
    rows = load_settings({"HOME": "/home/ada"}, cwd).table()
    again = load_settings({row.variable: row.value for row in rows if row.value}, cwd)
    assert [row.value for row in again.table()] == [row.value for row in rows]
    assert len({row.variable for row in rows}) == len(rows) == len(variables())
    assert all(row.meaning for row in rows)


def test_an_adapter_from_outside_brings_its_own_variables(cwd: Path) -> None:
    """A provider installed as a plugin is configured like the built-in ones."""
    extra = ProviderDefaults("acme", "ACME", "https://acme.example/v1", 10)
    environ = {"ACME_API_KEY": CANARY, "ACME_TIMEOUT": "5"}
    settings = load_settings(environ, cwd, providers=(*SEED_PROVIDERS, extra))
    assert settings.provider_slugs == ("vastai", "ionet", "akash", "render", "acme")
    acme = settings.provider("acme")
    assert (acme.rate_limit_per_min, acme.timeout_s) == (10, 5.0)
    assert settings.secrets() == (CANARY,)


def test_unknown_names_are_bad_input(cwd: Path) -> None:
    """A slug comes from a command line; a KeyError would be a traceback on somebody's screen."""
    settings = load_settings({}, cwd)
    with pytest.raises(BadInput, match="vastai, ionet"):
        settings.provider("vast")
    with pytest.raises(BadInput):
        settings.origin("NO_SUCH_VARIABLE")


def test_a_provider_has_only_the_variables_that_mean_something_to_it(cwd: Path) -> None:
    """A secret for a market that signs nothing would only be there to be misused."""
    names = {name for entry in variables() for name in entry.names}
    assert {"IONET_API_FLAVOR", "RENDER_API_FLAVOR", "RENDER_API_SECRET"} <= names
    assert {"RENDER_PUBLIC_KEY", "RENDER_SECRET_KEY", "RENDER_SECRET_KEY_FILE"} <= names
    assert {"AKASH_RPC_URL", "AKASH_REST_URL", "AKASH_CONSOLE_URL"} <= names
    assert {"AKASH_CONSOLE_API_KEY", "AKASH_BLOCK_TIME_S"} <= names
    for absent in ("AKASH_API_KEY", "AKASH_API_FLAVOR", "VASTAI_API_SECRET", "IONET_REST_URL"):
        assert absent not in names
    assert isinstance(load_settings({}, cwd), Settings)


def test_the_key_pair_of_a_market_goes_by_both_of_its_names(cwd: Path) -> None:
    """The market's console says public and secret key; our names say key and secret."""
    environ = {"RENDER_PUBLIC_KEY": "pk_1", "RENDER_SECRET_KEY": CANARY}
    settings = load_settings(environ, cwd)
    render = settings.provider("render")
    assert render.api_key is not None
    assert render.api_key.get_secret_value() == "pk_1"
    assert set(settings.secrets()) == {"pk_1", CANARY}
    assert CANARY not in str(settings.table())
    assert CANARY not in repr(settings)


def test_several_nodes_are_a_comma_list_of_checked_addresses(cwd: Path) -> None:
    """One bad address among good ones would be asked like the others."""
    nodes = "https://a.example/, https://b.example/akash"
    settings = load_settings({"AKASH_REST_URL": nodes}, cwd)
    assert settings.provider("akash").rest_urls == ("https://a.example", "https://b.example/akash")
    with pytest.raises(SettingsError, match="AKASH_REST_URL"):
        load_settings({"AKASH_REST_URL": "https://a.example,http://b.example"}, cwd)


@pytest.mark.parametrize(
    ("variable", "value"), [("IONET_API_FLAVOR", "dispersed"), ("RENDER_API_FLAVOR", "caas")]
)
def test_a_dialect_must_be_one_of_its_own_provider(cwd: Path, variable: str, value: str) -> None:
    """A typing error must not become another market's contract."""
    with pytest.raises(SettingsError, match=rf"{variable}.*auto, "):
        load_settings({variable: value}, cwd)
    settings = load_settings({variable: " Legacy "}, cwd)
    assert settings.provider(variable.partition("_")[0].lower()).flavor == "legacy"


def test_a_provider_is_mentioned_once_one_of_its_variables_has_a_value(cwd: Path) -> None:
    """A market without a key is asked only by those who want it; an empty value is no wish."""
    (cwd / ".env").write_text("RENDER_RATE_LIMIT=9\nIONET_ENABLED=\n")
    settings = load_settings({"AKASH_ENABLED": "true", "GP4U_ALLOW_LOOPBACK": "1"}, cwd)
    mentioned = {slug: own.mentioned for slug, own in settings.providers.items()}
    assert mentioned == {"vastai": False, "ionet": False, "akash": True, "render": True}


def test_a_provider_that_brings_its_own_address_needs_no_variable_for_it(cwd: Path) -> None:
    """A class of the first seed's form may know where it calls, and whoever runs it may differ."""
    own = ProviderDefaults("shop", "SHOP", "", 60)
    assert load_settings({}, cwd, providers=(own,)).provider("shop").base_url == ""
    given = load_settings({"SHOP_BASE_URL": "https://x.example/"}, cwd, providers=(own,))
    assert given.provider("shop").base_url == "https://x.example"
    assert default_provider(own, allow_loopback=True).allow_loopback
    with pytest.raises(ValueError, match="base_url"):
        default_provider(ProviderDefaults("shop", "SHOP", "http://x", 60), allow_loopback=False)
