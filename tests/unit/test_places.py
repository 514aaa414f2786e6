"""Places: what markets and people write, and what they mean by it."""

from __future__ import annotations

import pytest

from gp4u.errors import BadInput
from gp4u.model import Region
from gp4u.places import area, countries, nearness, parse, parse_token, rtt_ms, within


def code_of(text: str | None) -> str | None:
    region = parse(text)
    return region.code if region else None


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("California, US", "US-CA"),
        ("California, United States", "US-CA"),
        ("Ontario, CA", "CA-ON"),
        ("Qu\u00e9bec, CA", "CA-QC"),
        (", US", "US"),
        ("US", "US"),
        ("us-ca", "US-CA"),
        ("US-California", "US-CA"),
        ("EU-DE", "DE"),
        ("Germany, DE", "DE"),
        ("Sweden, SE", "SE"),
        ("San Jose, California, US", "US-CA"),
        ("New York, New York, US", "US-NY"),
        ("Washington, D.C., US", "US-DC"),
        ("NY, US", "US-NY"),
        ("  texas ,us ", "US-TX"),
        ("US-TX,", "US-TX"),
        ("San Jose, California", "US-CA"),
        ("Georgia, US", "US-GA"),
        ("Georgia, GE", "GE"),
        ("Korea, KR", "KR"),
        ("Guinea-Bissau", "GW"),
        ("Bavaria, DE", "DE"),
        ("us-west-2", "US"),
    ],
)
def test_a_markets_place_is_understood(text: str, code: str) -> None:
    """Markets write states, countries, codes and any number of commas."""
    assert code_of(text) == code


@pytest.mark.parametrize(
    "text", [None, "", " ", ",", "??", "XX", "EU", "sa-east-1", "me-south-1", "\u6771\u4eac"]
)
def test_a_place_without_a_known_country_is_unknown(text: str | None) -> None:
    """Unknown must stay unknown: `me-south-1` is a cloud in Bahrain, not Montenegro."""
    assert parse(text) is None


def test_ca_after_the_comma_is_canada_and_california_after_the_dash() -> None:
    """Taking one for the other would rent in the wrong country."""
    assert parse("Ontario, CA") == Region("CA", "ON")
    assert code_of("CA") == "CA"
    assert code_of("Los Angeles, CA") == "CA"
    assert parse("US-CA") == Region("US", "CA")
    assert parse_token("CA") == "CA"
    assert area("CA") == {"CA"}
    assert not within(Region("US", "CA"), "CA")


@pytest.mark.parametrize(
    ("text", "token"),
    [
        ("us", "US"),
        ("us-ca", "US-CA"),
        ("California", "US-CA"),
        ("CA-ON", "CA-ON"),
        ("Germany", "DE"),
        ("EU-DE", "DE"),
        ("UK", "GB"),
        ("eu", "EU"),
        ("Europe", "EU"),
        ("asia", "ASIA"),
        ("AS", "ASIA"),
        ("North America", "NA"),
        ("SA", "SA"),
        ("Saudi Arabia", "SAU"),
        ("Namibia", "NAM"),
        ("ASIA-SA", "SAU"),
    ],
)
def test_a_token_has_one_spelling(text: str, token: str) -> None:
    """Equal wishes must compare equal; and a token read back must be itself."""
    assert parse_token(text) == token
    assert parse_token(token) == token


@pytest.mark.parametrize(
    "text", ["", "XX", "US-ZZ", "DE-BE", "EU-US", "us-west-2", "US,CA", "Atlantis"]
)
def test_a_token_that_names_no_place_is_refused(text: str) -> None:
    """`US-ZZ` must not widen to all of the United States."""
    with pytest.raises(BadInput, match=r"VAST_DATACENTER_LOCATION.*a country \(US, DE\)") as caught:
        parse_token(text, field="VAST_DATACENTER_LOCATION")
    assert (caught.value.field, caught.value.value) == ("VAST_DATACENTER_LOCATION", text)


@pytest.mark.parametrize(
    ("text", "near"), [("Germny", "DE"), ("Calfornia", "US-CA"), ("usca", "US-CA")]
)
def test_a_mistyped_token_is_answered_with_a_near_one(text: str, near: str) -> None:
    """Nobody knows the codes by heart."""
    with pytest.raises(BadInput, match=f"did you mean {near}"):
        parse_token(text)


def test_eu_is_the_continent() -> None:
    """The seed means a European fallback, and London is as near to Paris as Berlin is."""
    assert {"DE", "FR", "IE", "GB", "CH", "NO", "UA"} <= area("EU")
    assert not {"US", "TR", "KZ", "GE", "SL"} & area("EU")


def test_a_continent_wins_over_the_country_with_its_letters_which_three_letters_reach() -> None:
    """`NA`, `SA`, `AF` and `AS` are continents as tokens, but countries in a market's row."""
    assert {"US", "CA", "MX"} <= area("NA")
    assert {"BR", "CL"} <= area("SA")
    assert area("SAU") == {"SA"}
    assert within(parse("Riyadh, SA"), "SAU")
    assert within(parse("Riyadh, SA"), "ASIA")
    assert not within(parse("Riyadh, SA"), "SA")


def test_a_region_lies_within_its_state_its_country_and_its_continent() -> None:
    """That is what an ordered list from narrow to wide relies on."""
    california = Region("US", "CA")
    assert [within(california, token) for token in ("US-CA", "US", "NA")] == [True, True, True]
    assert [within(california, token) for token in ("US-TX", "CA", "EU")] == [False, False, False]


def test_a_place_known_too_roughly_lies_in_no_state() -> None:
    """Some host in the United States is not surely one in California."""
    assert not within(Region("US"), "US-CA")
    assert not within(None, "US")
    assert within(Region("US"), "US")


def test_a_server_side_filter_gets_sorted_countries() -> None:
    """The market filters by two-letter countries only, and the request must be reproducible."""
    assert countries(("US-CA", "DE", "US-TX", "CA")) == ("CA", "DE", "US")
    assert countries(()) == ()
    assert len(countries(("EU", "DE"))) == len(area("EU"))


@pytest.mark.parametrize(
    ("one", "other", "low_ms", "high_ms"),
    [
        (Region("US", "TX"), Region("GB"), 85, 150),
        (Region("US", "CA"), Region("US", "NY"), 50, 85),
        (Region("DE"), Region("NL"), 8, 20),
        (Region("JP"), Region("US", "CA"), 100, 160),
    ],
)
def test_the_estimated_round_trip_is_of_the_measured_order(
    one: Region, other: Region, low_ms: float, high_ms: float
) -> None:
    """Bounds hold what people measure on such routes: 113 ms from Texas to London, for one."""
    rtt = rtt_ms(one, other)
    assert rtt is not None
    assert low_ms <= rtt <= high_ms


def test_nearer_is_larger_and_unknown_is_nothing() -> None:
    """A scorer multiplies it by a weight: the order must be right and the scale fixed."""
    here = Region("US", "CA")
    places = [here, Region("US", "TX"), Region("US", "NY"), Region("DE"), Region("ZA")]
    values = [nearness(here, place) for place in places]
    assert values == sorted(values, reverse=True)
    assert nearness(here, here) == pytest.approx(1 / (1 + 8 / 25))
    assert nearness(here, Region("QQ")) == 0.0
    assert rtt_ms(Region("QQ"), here) is None


def test_a_state_that_is_not_on_the_map_stands_in_the_middle_of_its_country() -> None:
    """An adapter may know subdivisions that this table does not."""
    assert nearness(Region("DE", "BY"), Region("FR")) == nearness(Region("DE"), Region("FR"))
