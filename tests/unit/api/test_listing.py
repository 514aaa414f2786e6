"""What a query string asks, and what in it is refused."""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode

import msgspec
import pytest

from gp4u.api.market import listing
from gp4u.api.market.listing import PARAMETERS, Ask, Bound, Filters, Position
from gp4u.errors import BadInput, NoSuch, UnknownGpu

SECRET = b"one secret"


def asked(query: str, *, streams: bool = False, secret: bytes = SECRET) -> Ask:
    """Return what a query string asks of a server that knows two markets."""
    return listing.asked(
        query.encode(), providers=("vastai", "akash"), secret=secret, streams=streams
    )


def test_nothing_asked_is_everything_available_by_price() -> None:
    """The first page that anybody sees."""
    ask = asked("")
    assert ask == Ask()
    assert (ask.filters.available, ask.sort, ask.descending) == (True, "price_usd_per_hour", False)


def test_every_parameter_means_what_its_name_says() -> None:
    """One query with each kind of parameter."""
    ask = asked(
        "provider=akash&provider=vastai&provider=akash&gpu=rtx4090&gpu=3060&gpus=2"
        "&max_price_usd_per_hour=0.5&min_reliability=0.98&min_vram_gib=24&location=usa"
        "&location=US-CA&verified=true&datacenter=false&available=any&max_age_s=60"
        "&sort=-g_score&limit=7&fields=id,gpu_model"
    )
    assert ask.filters == Filters(
        providers=("akash", "vastai"),
        gpu_models=("RTX 4090", "RTX 3060"),
        locations=("US", "US-CA"),
        bounds=(
            Bound("price_usd_per_hour", False, 0.5),
            Bound("vram_gib", True, 24.0),
            Bound("reliability", True, 0.98),
            Bound("gpu_count", True, 2.0),
            Bound("gpu_count", False, 2.0),
        ),
        flags=(("verified", True), ("datacenter", False)),
        available=None,
        max_age_s=60.0,
    )
    assert (ask.sort, ask.descending, ask.limit) == ("g_score", True, 7)
    assert ask.fields == ("id", "gpu_model")


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("limit=-1", "limit"),
        ("limit=1e2", "limit"),
        ("limit=", "limit"),
        ("limit=\u0663", "limit"),
        ("limit=5&limit=5", "limit"),
        ("sort=cheapest", "sort"),
        ("sort=--g_score", "sort"),
        ("sort=", "sort"),
        ("fields=id,secret", "fields"),
        ("fields=", "fields"),
        ("verified=yes", "verified"),
        ("available=maybe", "available"),
        ("gpus=0", "gpus"),
        ("gpus=1.5", "gpus"),
        ("min_reliability=nan", "min_reliability"),
        ("min_reliability=inf", "min_reliability"),
        ("min_reliability=-1", "min_reliability"),
        ("min_reliability=1_0", "min_reliability"),
        ("max_price_usd_per_hour=$1", "max_price_usd_per_hour"),
        ("max_age_s=", "max_age_s"),
        ("location=Atlantis", "location"),
        ("cursor=", "cursor"),
        ("cursor=%00", "cursor"),
        ("cursor=AAAA", "cursor"),
    ],
)
def test_a_bad_value_is_refused_by_name(query: str, field: str) -> None:
    """A caller learns which parameter it was, and what it may be."""
    with pytest.raises(BadInput) as info:
        asked(query)
    assert info.value.field == field
    assert info.value.bound


def test_a_parameter_that_there_is_not_is_refused_with_the_nearest() -> None:
    """A typing error in a filter must not look like no filter."""
    with pytest.raises(BadInput, match="did you mean max_price_usd_per_hour") as info:
        asked("max_price_usd_per_hou=1")
    assert info.value.field == "max_price_usd_per_hou"


def test_an_unknown_market_and_an_unknown_gpu_name_those_that_there_are() -> None:
    """Two refusals of their own: they have statuses and codes of their own."""
    with pytest.raises(NoSuch) as market:
        asked("provider=vast")
    assert market.value.known == ("vastai", "akash")
    with pytest.raises(UnknownGpu) as gpu:
        asked("gpu=RTX4099")
    assert "RTX 4090" in gpu.value.nearest


def test_only_a_stream_may_be_long() -> None:
    """A page is made as one; lines are not."""
    assert asked("limit=5000", streams=True).limit == 5000
    assert asked("limit=1000").limit == 1000


@pytest.mark.parametrize("value", [0.1, 0.30000000000000004, 1e-9, None, "RTX 4090", "é\n"])
def test_a_cursor_brings_back_the_place_it_was_made_of(value: float | str | None) -> None:
    """To the last bit: a price that is rounded on the way loses or repeats an offer."""
    ask = asked("sort=-g_score&gpu=4090")
    place = Position(value, "vastai", "17/a b", "walk")
    word = listing.cursor(place, ask, SECRET)
    assert asked(f"sort=-g_score&gpu=4090&limit=3&fields=id&cursor={word}").after == place


@pytest.mark.parametrize(
    "query", ["sort=g_score&gpu=4090", "sort=-g_score", "sort=-g_score&gpu=4090&verified=true", ""]
)
def test_a_cursor_fits_only_the_filters_and_the_order_it_was_made_for(query: str) -> None:
    """Its place means nothing in another order."""
    word = listing.cursor(Position(1.0, "a", "1"), asked("sort=-g_score&gpu=4090"), SECRET)
    with pytest.raises(BadInput) as info:
        asked(f"{query}&cursor={word}".lstrip("&"))
    assert info.value.field == "cursor"


def test_no_byte_of_a_cursor_can_be_changed() -> None:
    """Nor can one be made without the secret."""
    ask = asked("")
    word = listing.cursor(Position(1.0, "a", "1"), ask, SECRET)
    raw = urlsafe_b64decode(word + "=" * (-len(word) % 4))
    for place in range(len(raw)):
        forged = bytearray(raw)
        forged[place] ^= 1
        with pytest.raises(BadInput):
            listing.position(urlsafe_b64encode(forged).decode(), ask, SECRET)
    with pytest.raises(BadInput):
        listing.position(listing.cursor(Position(1.0, "a", "1"), ask, b"another"), ask, SECRET)


def test_the_documentation_has_every_parameter_and_every_parameter_is_read() -> None:
    """One table makes both; this holds it to that."""
    told = {each["name"]: each for each in listing.parameters()}
    assert set(told) == {each.name for each in PARAMETERS}
    examples = {"cursor": None, "location": "EU", "provider": "akash", "gpu": "H100"}
    for name, each in told.items():
        schema = each["schema"]
        items = schema.get("items", schema)
        good = items.get("enum", [examples.get(name, "1")])[0]
        if good is not None:
            assert isinstance(asked(f"{name}={good}"), Ask)
    assert msgspec.json.encode(told)
