"""Which markets there are, which of them open, and why the others do not."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import EntryPoint
from pathlib import Path
from random import Random
from typing import Any

import httpx2
import pytest
from msgspec.structs import replace

import gp4u
from gp4u import BaseProvider, Opening, Provider, Registry, get_provider_registry, open_app
from gp4u.app import App
from gp4u.errors import BadInput, Denied, SettingsError
from gp4u.provider_settings import SEED_PROVIDERS
from gp4u.providers.plugins import Plugins, known_providers, load
from gp4u.providers.registry import BUILT_IN
from gp4u.providers.vastai.opening import OPENING as VASTAI
from gp4u.settings import load_settings
from tests.unit.providers.scripted import Script
from tests.virtual_loop import VirtualClock

NONE = Plugins((), {})
KEYS = {
    "VASTAI_API_KEY": "key-of-vastai",
    "IONET_API_KEY": "key-of-ionet",
    "AKASH_ENABLED": "true",
    "RENDER_API_KEY": "key-of-render",
    "RENDER_API_SECRET": "secret-of-render",
}
"""What the first seed's `.env` has, with the secret that Render's key comes with."""
BUILT_IN_SLUGS = ["vastai", "ionet", "akash", "render"]


class Shop(BaseProvider):
    """A market without rows."""

    def __init__(self, name: str = "shop") -> None:
        super().__init__(name)

    async def fetch_gpus(self) -> list[object]:
        return []


def make_shop() -> Shop:
    """Return a new shop, as a plug-in's function may."""
    return Shop()


def make_opening() -> Opening:
    """Return another market's opening, as a plug-in's function may."""
    return OTHER


def fall_over() -> Shop:
    """Break, as somebody else's code may."""
    raise RuntimeError("no\x1b[2J licence")


def leave() -> Shop:
    """Leave the program, as code that is meant for a command line may."""
    raise SystemExit(3)


OTHER = Opening(replace(VASTAI.spec, slug="other", env="OTHER", key_aliases=()), VASTAI.open)
BAD_SLUG = Opening(replace(OTHER.spec, slug="Other One"), VASTAI.open)
BAD_URL = Opening(replace(OTHER.spec, base_url="http://other.example"), VASTAI.open)
TAKEN = Opening(replace(OTHER.spec, env="VASTAI"), VASTAI.open)
SHOP = Shop()
NOT_A_MARKET = 7


def point(name: str, attribute: str) -> EntryPoint:
    """Return an entry point that leads into this file."""
    return EntryPoint(name, f"{__name__}:{attribute}", "gp4u.providers")


@asynccontextmanager
async def opened(
    registry: Registry, folder: Path, script: Script | None = None, **env: str
) -> AsyncIterator[App]:
    """Open an app over a registry."""
    environ = {"GP4U_DATABASE_URL": f"sqlite:///{folder}/ledger.db", "PROVIDER_MAX_RETRIES": "1"}
    settings = registry.load_settings(environ | env, folder)
    async with open_app(
        settings,
        clock=VirtualClock(),
        random=Random(1),
        transport=script or Script(),
        registry=registry,
    ) as app:
        yield app


def slugs(providers: Sequence[Provider]) -> list[str]:
    return [each.spec.slug for each in providers]


async def test_every_built_in_market_that_has_its_key_is_healthy_once_open(tmp_path: Path) -> None:
    """The seed's balancing begins with this list, and only failures take a market off it."""
    registry = Registry(NONE)
    assert registry.get_all_healthy() == []
    async with opened(registry, tmp_path, None, **KEYS) as app:
        assert slugs(registry.get_all_healthy()) == BUILT_IN_SLUGS
        assert [p.get_metrics().get_success_rate() for p in registry.get_all_healthy()] == [1.0] * 4
        assert app.disabled == {}
    assert registry.get_all_healthy() == []


async def test_a_market_whose_key_is_refused_is_not_healthy(tmp_path: Path) -> None:
    """Work that is handed to it would come back undone."""
    script = Script(httpx2.Response(401, json={"msg": "bad key"}))
    registry = Registry(NONE)
    async with opened(registry, tmp_path, script, **KEYS) as app:
        with pytest.raises(Denied):
            await app.providers["vastai"].ping()
        assert slugs(registry.get_all_healthy()) == BUILT_IN_SLUGS[1:]
        assert registry.why_unhealthy()["vastai"].startswith("UNAVAILABLE: vastai ping")


async def test_a_market_without_its_key_is_closed_with_reason_and_page(tmp_path: Path) -> None:
    """Most people have an account at one market; that is no error."""
    async with opened(Registry(NONE), tmp_path) as app:
        assert dict(app.providers) == {}
    assert list(app.disabled) == BUILT_IN_SLUGS
    for opening in BUILT_IN:
        said = app.disabled[opening.spec.slug]
        assert re.match(rf"no {opening.spec.env}_\w*KEY; .*https://", said), said


async def test_akash_without_a_key_is_asked_only_by_those_who_want_it(tmp_path: Path) -> None:
    """It is public: everybody else would wait for it on each search, and never know why."""
    async with opened(Registry(NONE), tmp_path, VASTAI_API_KEY="key-of-vastai") as app:
        assert list(app.providers) == ["vastai"]
        assert "AKASH_ENABLED=true shows its public prices" in app.disabled["akash"]
    for wish in ({"AKASH_ENABLED": "true"}, {"AKASH_RPC_URL": "https://rpc.example/akash"}):
        async with opened(Registry(NONE), tmp_path, None, **wish) as app:
            assert list(app.providers) == ["akash"]
    async with opened(Registry(NONE), tmp_path, AKASH_ENABLED="false") as app:
        assert app.disabled["akash"] == "switched off by AKASH_ENABLED"
    (tmp_path / ".env").write_text("AKASH_ENABLED=\n")
    async with opened(Registry(NONE), tmp_path) as app:
        assert "akash" in app.disabled


async def test_what_is_registered_before_an_app_opens_is_opened_with_it(tmp_path: Path) -> None:
    """As an object, a class, a function, or in full as an opening."""
    for what, slug in (
        (Shop(), "shop"),
        (Shop, "shop"),
        (make_shop, "shop"),
        (OTHER, "other"),
        (make_opening, "other"),
    ):
        registry = Registry(NONE)
        registry.register(what)
        async with opened(registry, tmp_path, OTHER_API_KEY="key-of-other") as app:
            assert list(app.providers) == [slug]
            assert registry.get_all_healthy() == [app.providers[slug]]


async def test_registering_while_an_app_is_open_is_refused(tmp_path: Path) -> None:
    """Book and loops are built by then: it would be registered, and never asked."""
    registry = Registry(NONE)
    async with opened(registry, tmp_path):
        with pytest.raises(BadInput, match="before an app opens"):
            registry.register(Shop())
    registry.register(Shop())
    assert slugs(registry.get_all_healthy()) == ["shop"]


def test_a_registered_object_can_be_asked_before_there_is_an_app() -> None:
    """The first seed's example of balancing knows no app; it is run as it is printed."""
    registry = Registry(NONE)
    registry.register(Shop("one"))
    registry.register(Shop("two"))
    providers = registry.get_all_healthy()
    assert [providers[n % len(providers)].spec.slug for n in range(3)] == ["one", "two", "one"]
    weights = [p.get_metrics().get_success_rate() for p in providers]
    assert Random(1).choices(providers, weights=weights)[0] in providers


@pytest.mark.parametrize(
    ("what", "why"),
    [
        (7, "must be an Opening"),
        (int, "must be an Opening"),
        (BAD_SLUG, "slug"),
        (BAD_URL, "https URL"),
        (VASTAI, "there is a provider of this name"),
        (Shop("vastai"), "there is a provider of this name"),
        (Shop("vast"), "VAST_ is our own prefix"),
        (Shop("provider"), "PROVIDER_ is our own prefix"),
        (TAKEN, "VASTAI_API_KEY is another's"),
    ],
)
def test_what_cannot_be_a_market_is_refused_at_once(what: object, why: str) -> None:
    """Whoever calls `register` stands before the mistake, and can mend it."""
    registry = Registry(NONE)
    with pytest.raises(BadInput, match=why):
        registry.register(what)
    assert list(registry.specs) == BUILT_IN_SLUGS


async def test_an_object_is_open_in_one_app_at_a_time(tmp_path: Path) -> None:
    """It has one set of connections; a class makes a new provider for each app."""
    shop = Shop()
    first, second = Registry(NONE), Registry(NONE)
    first.register(shop)
    async with opened(first, tmp_path) as app:
        assert list(app.providers) == ["shop"]
        again = load((point("shop", "SHOP"),))
        assert slugs_of(again) == ["shop"]
        second._openings["shop"] = first._openings["shop"]
        other = tmp_path / "other"
        other.mkdir()
        async with opened(second, other) as late:
            assert "open in another app" in late.disabled["shop"]
    async with opened(first, tmp_path) as app:
        assert list(app.providers) == ["shop"]


def slugs_of(found: Plugins) -> list[str]:
    return [each.spec.slug for each in found.openings]


@pytest.mark.parametrize("attribute", ["Shop", "make_shop", "SHOP"])
def test_an_entry_point_may_lead_to_any_form_of_a_market(attribute: str) -> None:
    """A class is what people write first; a function and an object are near."""
    assert slugs_of(load([point("shop", attribute)])) == ["shop"]
    assert slugs_of(load([point("other", "OTHER")])) == ["other"]


@pytest.mark.parametrize(
    ("attribute", "why"),
    [
        ("NO_SUCH", "AttributeError"),
        ("NOT_A_MARKET", "must be an Opening"),
        ("fall_over", "RuntimeError: no [2J licence"),
        ("leave", "SystemExit: 3"),
        ("BAD_SLUG", "slug: 'Other One'"),
        ("BAD_URL", "https URL"),
        ("VASTAI", "there is a provider of this name"),
    ],
)
async def test_a_broken_plug_in_is_listed_with_its_reason_and_stops_nothing(
    attribute: str, why: str, tmp_path: Path
) -> None:
    """Somebody else's package must not keep anybody from their machines."""
    found = load([point("bad", attribute), point("shop", "Shop")])
    assert slugs_of(found) == ["shop"]
    async with opened(Registry(found), tmp_path) as app:
        assert list(app.providers) == ["shop"]
        assert why in app.disabled["bad"]
        assert f"{__name__}:{attribute}" in app.disabled["bad"]


def test_of_two_plug_ins_with_one_name_the_first_is_taken() -> None:
    """By the order of their names, so that it is the same one each time."""
    found = load([point("b", "Shop"), point("a", "make_shop")])
    assert slugs_of(found) == ["shop"]
    assert list(found.broken) == ["b"]


def test_a_broken_plug_in_does_not_take_a_built_in_markets_place() -> None:
    """Its reason would stand where the built-in market's own should."""
    found = load([point("vastai", "NO_SUCH")])
    assert list(found.broken) == [f"vastai ({__name__}:NO_SUCH)"]


async def test_a_plug_in_that_cannot_be_opened_is_closed_with_its_reason(tmp_path: Path) -> None:
    """What works when it is loaded may still fail on somebody's settings."""

    def fail(*_: object) -> Provider:
        raise KeyError("region")

    registry = Registry(
        Plugins((Opening(OTHER.spec, fail), *load([point("s", "Shop")]).openings), {})
    )
    async with opened(registry, tmp_path, OTHER_API_KEY="key-of-other") as app:
        assert list(app.providers) == ["shop"]
        assert app.disabled["other"] == "it cannot be opened: KeyError: 'region'"


async def test_the_variables_of_a_plug_in_are_those_of_any_market(tmp_path: Path) -> None:
    """Switching off, keys, limits and deadlines are the same words everywhere."""
    registry = Registry(load([point("other", "OTHER")]))
    env = {"OTHER_API_KEY": "key-of-other", "OTHER_TIMEOUT": "7", "OTHER_RATE_LIMIT": "5"}
    settings = registry.load_settings(env, tmp_path)
    own = settings.provider("other")
    assert (own.timeout_s, own.rate_limit_per_min, own.mentioned) == (7, 5, True)
    assert "OTHER_ENABLED" in {row.variable for row in settings.table()}
    assert settings.secrets() == ("key-of-other",)
    async with opened(registry, tmp_path, OTHER_ENABLED="false") as app:
        assert app.disabled["other"] == "switched off by OTHER_ENABLED"
    with pytest.raises(SettingsError, match="OTHER_TIMEOUT"):
        registry.load_settings({"OTHER_TIMEOUT": "soon"}, tmp_path)


def test_a_plug_in_may_have_variables_that_we_do_not_know(tmp_path: Path) -> None:
    """They are its own business; what is nearly one of ours is a mistake all the same."""
    registry = Registry(load([point("other", "OTHER")]))
    env = {"OTHER_REGION": "eu", "OTHER_TIMEOUTS": "7"}
    (tmp_path / ".env").write_text("OTHER_SHELF=3\n")
    (warning,) = registry.load_settings(env, tmp_path).unknown
    assert warning.startswith("OTHER_TIMEOUTS (environment)")


async def test_a_plug_in_that_cannot_be_closed_keeps_nobody_from_leaving(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What a program did by then is done; others' connections are given up all the same."""

    class Stuck(Shop):
        """A market that fails at its end."""

        async def aclose(self) -> None:
            raise RuntimeError("its own\x1b[2J pool is gone")

    registry, other = Registry(NONE), Shop("other")
    registry.register(Stuck)
    registry.register(other)
    async with opened(registry, tmp_path) as app:
        assert list(app.providers) == ["shop", "other"]
    assert not other.is_open
    assert caplog.messages == ["shop: cannot be closed: RuntimeError: its own [2J pool is gone"]


async def test_settings_that_were_read_without_a_market_leave_it_at_its_defaults(
    tmp_path: Path,
) -> None:
    """A program may read its settings before it adds a market."""
    settings = load_settings({"GP4U_DATABASE_URL": f"sqlite:///{tmp_path}/l.db"}, tmp_path)
    registry = Registry(NONE)
    registry.register(Shop)
    async with open_app(settings, registry=registry) as app:
        assert list(app.providers) == ["shop"]


async def test_who_names_no_registry_means_the_one_of_the_process(tmp_path: Path) -> None:
    """The seed's recipe registers in one place, and opens in another."""
    registry = get_provider_registry()
    assert registry is get_provider_registry()
    settings = load_settings({"GP4U_DATABASE_URL": f"sqlite:///{tmp_path}/l.db"}, tmp_path)
    registry.register(Shop("guest"))
    try:
        async with open_app(settings) as app:
            assert list(app.providers) == ["guest"]
            assert slugs(registry.get_all_healthy()) == ["guest"]
    finally:
        registry.unregister("guest")
    assert "guest" not in registry.specs
    for name in ("guest", "vastai"):
        with pytest.raises(BadInput, match="must be a market that was added"):
            registry.unregister(name)


def test_without_plug_ins_the_settings_know_the_built_in_markets() -> None:
    """The tests' own environment has none installed, and must stay like that."""
    assert known_providers() == SEED_PROVIDERS


def test_every_public_name_is_loaded_from_where_it_lives() -> None:
    """They are listed twice, once for the type checker; and a typing error is an AttributeError."""
    for name in gp4u.__all__:
        found: Any = getattr(gp4u, name)
        assert found.__name__ == name
        assert found.__module__ == gp4u._HOME[name]
    assert set(gp4u.__all__) == set(gp4u._HOME)
    with pytest.raises(AttributeError, match="no attribute 'Basprovider'"):
        gp4u.__getattr__("Basprovider")
