"""Markets' spellings of places -> Region; what a location token covers; how near two regions are.

A market says `California, US`, `Ontario, CA`, `, US` or `EU-DE`, a user says `US-CA`, `EU` or
`Germany`. This file turns the first into a `Region`, and tells whether a region lies within the
second. The trap that shapes it: `CA` is California after a state's dash and Canada everywhere else,
so what stands after the last comma is read as a country before anything else is tried.

Which place somebody prefers, and how much it counts, is the business of `selection/`.
"""

from __future__ import annotations

import difflib
import math
import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache

from gp4u.errors import BadInput
from gp4u.model import Region

# ISO 3166 code, latitude and longitude of the middle (of the people rather than of the land, where
# the two are far apart), and English name. Each country lies on one continent here; those that lie
# on two are put where their networks connect: Russia and Cyprus in Europe; Turkey, the Caucasus
# and Kazakhstan in Asia; Central America and the Caribbean in North America.
_COUNTRIES = {
    "EU": """
        AD 43 2 Andorra; AL 41 20 Albania; AT 48 15 Austria; AX 60 20 Aland Islands;
        BA 44 18 Bosnia and Herzegovina; BE 51 4 Belgium; BG 43 25 Bulgaria; BY 54 28 Belarus;
        CH 47 8 Switzerland; CY 35 33 Cyprus; CZ 50 15 Czechia; DE 51 10 Germany; DK 56 11 Denmark;
        EE 59 25 Estonia; ES 40 -3 Spain; FI 61 25 Finland; FO 62 -7 Faroe Islands; FR 47 2 France;
        GB 53 -1 United Kingdom; GG 49 -3 Guernsey; GI 36 -5 Gibraltar; GR 38 23 Greece;
        HR 45 16 Croatia; HU 47 19 Hungary; IE 53 -7 Ireland; IM 54 -5 Isle of Man;
        IS 64 -21 Iceland;
        IT 43 12 Italy; JE 49 -2 Jersey; LI 47 10 Liechtenstein; LT 55 24 Lithuania;
        LU 50 6 Luxembourg; LV 57 25 Latvia; MC 44 7 Monaco; MD 47 29 Moldova; ME 43 19 Montenegro;
        MK 42 22 North Macedonia; MT 36 14 Malta; NL 52 5 Netherlands; NO 60 10 Norway;
        PL 52 19 Poland; PT 39 -9 Portugal; RO 46 25 Romania; RS 44 21 Serbia; RU 56 44 Russia;
        SE 59 16 Sweden; SI 46 15 Slovenia; SJ 78 16 Svalbard; SK 49 19 Slovakia;
        SM 44 12 San Marino;
        UA 49 31 Ukraine; VA 42 12 Vatican City; XK 43 21 Kosovo""",
    "ASIA": """
        AE 25 55 United Arab Emirates; AF 34 67 Afghanistan; AM 40 45 Armenia; AZ 40 48 Azerbaijan;
        BD 24 90 Bangladesh; BH 26 51 Bahrain; BN 5 115 Brunei; BT 27 90 Bhutan; CN 33 113 China;
        GE 42 44 Georgia; HK 22 114 Hong Kong; ID -6 110 Indonesia; IL 32 35 Israel; IN 22 79 India;
        IQ 33 44 Iraq; IR 34 52 Iran; JO 32 36 Jordan; JP 36 138 Japan; KG 42 74 Kyrgyzstan;
        KH 12 105 Cambodia; KP 39 126 North Korea; KR 37 127 South Korea; KW 29 48 Kuwait;
        KZ 48 70 Kazakhstan; LA 18 103 Laos; LB 34 36 Lebanon; LK 7 80 Sri Lanka; MM 20 96 Myanmar;
        MN 48 106 Mongolia; MO 22 114 Macao; MV 4 73 Maldives; MY 3 102 Malaysia; NP 28 84 Nepal;
        OM 23 58 Oman; PH 14 121 Philippines; PK 31 71 Pakistan; PS 32 35 Palestine; QA 25 51 Qatar;
        SA 24 45 Saudi Arabia; SG 1 104 Singapore; SY 35 37 Syria; TH 14 101 Thailand;
        TJ 38 69 Tajikistan; TL -9 126 Timor-Leste; TM 38 59 Turkmenistan; TR 40 31 Turkey;
        TW 24 121 Taiwan; UZ 41 67 Uzbekistan; VN 16 107 Vietnam; YE 15 45 Yemen""",
    "NA": """
        AG 17 -62 Antigua and Barbuda; AI 18 -63 Anguilla; AW 13 -70 Aruba; BB 13 -60 Barbados;
        BL 18 -63 Saint Barthelemy; BM 32 -65 Bermuda; BQ 12 -68 Bonaire; BS 25 -77 Bahamas;
        BZ 17 -89 Belize; CA 47 -83 Canada; CR 10 -84 Costa Rica; CU 22 -80 Cuba; CW 12 -69 Curacao;
        DM 15 -61 Dominica; DO 19 -70 Dominican Republic; GD 12 -62 Grenada; GL 64 -51 Greenland;
        GP 16 -62 Guadeloupe; GT 15 -91 Guatemala; HN 15 -87 Honduras; HT 19 -72 Haiti;
        JM 18 -77 Jamaica; KN 17 -63 Saint Kitts and Nevis; KY 19 -81 Cayman Islands;
        LC 14 -61 Saint Lucia; MF 18 -63 Saint Martin; MQ 15 -61 Martinique; MS 17 -62 Montserrat;
        MX 20 -100 Mexico; NI 12 -86 Nicaragua; PA 9 -80 Panama;
        PM 47 -56 Saint Pierre and Miquelon;
        PR 18 -66 Puerto Rico; SV 14 -89 El Salvador; SX 18 -63 Sint Maarten;
        TC 22 -72 Turks and Caicos Islands; TT 11 -61 Trinidad and Tobago; US 39 -93 United States;
        VC 13 -61 Saint Vincent and the Grenadines; VG 18 -65 British Virgin Islands;
        VI 18 -65 United States Virgin Islands""",
    "SA": """
        AR -34 -61 Argentina; BO -17 -66 Bolivia; BR -20 -46 Brazil; CL -33 -71 Chile;
        CO 5 -75 Colombia; EC -1 -79 Ecuador; FK -52 -59 Falkland Islands; GF 5 -53 French Guiana;
        GY 6 -58 Guyana; PE -11 -76 Peru; PY -25 -57 Paraguay; SR 6 -55 Suriname;
        UY -34 -56 Uruguay;
        VE 10 -67 Venezuela""",
    "AF": """
        AO -10 15 Angola; BF 12 -2 Burkina Faso; BI -3 30 Burundi; BJ 7 2 Benin; BW -24 26 Botswana;
        CD -4 22 Democratic Republic of the Congo; CF 6 19 Central African Republic; CG -3 15 Congo;
        CI 7 -5 Ivory Coast; CM 5 12 Cameroon; CV 15 -24 Cape Verde; DJ 12 43 Djibouti;
        DZ 36 3 Algeria; EG 30 31 Egypt; EH 25 -13 Western Sahara; ER 15 39 Eritrea;
        ET 9 39 Ethiopia;
        GA 0 11 Gabon; GH 6 -1 Ghana; GM 13 -16 Gambia; GN 10 -12 Guinea; GQ 2 10 Equatorial Guinea;
        GW 12 -15 Guinea-Bissau; KE -1 37 Kenya; KM -12 44 Comoros; LR 6 -10 Liberia;
        LS -30 28 Lesotho; LY 32 14 Libya; MA 33 -7 Morocco; MG -19 47 Madagascar; ML 13 -7 Mali;
        MR 19 -14 Mauritania; MU -20 58 Mauritius; MW -14 34 Malawi; MZ -18 36 Mozambique;
        NA -21 17 Namibia; NE 14 6 Niger; NG 8 6 Nigeria; RE -21 56 Reunion; RW -2 30 Rwanda;
        SC -5 55 Seychelles; SD 15 32 Sudan; SH -16 -6 Saint Helena; SL 8 -12 Sierra Leone;
        SN 15 -16 Senegal; SO 4 45 Somalia; SS 7 30 South Sudan; ST 0 7 Sao Tome and Principe;
        SZ -26 31 Eswatini; TD 11 17 Chad; TG 7 1 Togo; TN 36 10 Tunisia; TZ -6 36 Tanzania;
        UG 1 32 Uganda; YT -13 45 Mayotte; ZA -27 28 South Africa; ZM -14 28 Zambia;
        ZW -18 30 Zimbabwe""",
    "OC": """
        AS -14 -171 American Samoa; AU -33 148 Australia; CK -21 -160 Cook Islands;
        FJ -18 178 Fiji; FM 7 158 Micronesia; GU 13 145 Guam; KI 1 173 Kiribati;
        MH 7 171 Marshall Islands; MP 15 146 Northern Mariana Islands; NC -22 166 New Caledonia;
        NF -29 168 Norfolk Island; NR -1 167 Nauru; NU -19 -170 Niue; NZ -39 175 New Zealand;
        PF -18 -149 French Polynesia; PG -7 146 Papua New Guinea; PN -25 -130 Pitcairn Islands;
        PW 7 134 Palau; SB -9 160 Solomon Islands; TK -9 -172 Tokelau; TO -21 -175 Tonga;
        TV -9 179 Tuvalu; VU -17 168 Vanuatu; WF -13 -176 Wallis and Futuna; WS -14 -172 Samoa""",
}

# States, provinces and territories of the two countries whose markets name them.
_SUBDIVISIONS = {
    "US": """
        AK 61 -150 Alaska; AL 33 -87 Alabama; AR 35 -92 Arkansas; AZ 33 -112 Arizona;
        CA 36 -119 California; CO 39 -105 Colorado; CT 42 -73 Connecticut;
        DC 39 -77 District of Columbia; DE 39 -76 Delaware; FL 28 -82 Florida; GA 33 -84 Georgia;
        HI 21 -158 Hawaii; IA 42 -93 Iowa; ID 44 -115 Idaho; IL 41 -89 Illinois; IN 40 -86 Indiana;
        KS 38 -97 Kansas; KY 38 -86 Kentucky; LA 31 -91 Louisiana; MA 42 -71 Massachusetts;
        MD 39 -77 Maryland; ME 44 -70 Maine; MI 43 -84 Michigan; MN 45 -94 Minnesota;
        MO 38 -92 Missouri; MS 33 -90 Mississippi; MT 47 -111 Montana; NC 35 -79 North Carolina;
        ND 47 -99 North Dakota; NE 41 -97 Nebraska; NH 43 -71 New Hampshire; NJ 40 -74 New Jersey;
        NM 35 -106 New Mexico; NV 37 -116 Nevada; NY 41 -74 New York; OH 40 -83 Ohio;
        OK 36 -97 Oklahoma; OR 45 -123 Oregon; PA 40 -77 Pennsylvania; RI 42 -71 Rhode Island;
        SC 34 -81 South Carolina; SD 44 -99 South Dakota; TN 36 -87 Tennessee; TX 31 -97 Texas;
        UT 40 -112 Utah; VA 38 -78 Virginia; VT 44 -73 Vermont; WA 47 -122 Washington;
        WI 44 -89 Wisconsin; WV 39 -81 West Virginia; WY 43 -107 Wyoming""",
    "CA": """
        AB 52 -114 Alberta; BC 50 -123 British Columbia; MB 50 -97 Manitoba;
        NB 46 -66 New Brunswick;
        NL 48 -54 Newfoundland and Labrador; NS 45 -63 Nova Scotia;
        NT 62 -114 Northwest Territories;
        NU 64 -69 Nunavut; ON 44 -79 Ontario; PE 46 -63 Prince Edward Island; QC 46 -73 Quebec;
        SK 51 -106 Saskatchewan; YT 61 -135 Yukon""",
}

_OTHER_NAMES = {
    "usa": "US", "united states of america": "US", "america": "US", "uk": "GB",
    "great britain": "GB", "england": "GB", "scotland": "GB", "wales": "GB",
    "northern ireland": "GB", "holland": "NL", "the netherlands": "NL", "czech republic": "CZ",
    "macedonia": "MK", "russian federation": "RU", "republic of moldova": "MD", "turkiye": "TR",
    "korea": "KR", "republic of korea": "KR", "viet nam": "VN", "burma": "MM", "macau": "MO",
    "uae": "AE", "taiwan province of china": "TW", "cote d ivoire": "CI", "swaziland": "SZ",
    "cabo verde": "CV", "dr congo": "CD", "republic of the congo": "CG", "east timor": "TL",
    "holy see": "VA", "bosnia": "BA", "brunei darussalam": "BN", "iran islamic republic of": "IR",
    "hong kong sar": "HK", "lao pdr": "LA", "syrian arab republic": "SY", "the bahamas": "BS",
}  # fmt: skip
_OTHER_SUBDIVISIONS = {
    ("US", "washington dc"): "DC", ("US", "d c"): "DC", ("US", "washington d c"): "DC",
    ("US", "new york city"): "NY", ("CA", "newfoundland"): "NL", ("CA", "pei"): "PE",
}  # fmt: skip
_AREA_NAMES = {
    "EUROPE": "EU", "ASIA": "ASIA", "AS": "ASIA", "AFRICA": "AF", "OCEANIA": "OC",
    "NORTH AMERICA": "NA", "SOUTH AMERICA": "SA",
}  # fmt: skip
# As a token, a continent's two letters hide the country with the same ones; three letters reach it.
_HIDDEN = {"AFG": "AF", "ASM": "AS", "NAM": "NA", "SAU": "SA"}

_FLOOR_MS, _MS_PER_100_KM, _HALF_MS = 8.0, 1.5, 25.0
_EARTH_KM = 6371.0
_CLOUD_REGION = re.compile(r"\b(?:north|south|east|west|central)")


def parse(text: str | None) -> Region | None:
    """Return the place that a market means; None where it names no country that we know.

    The part after the last comma is the country, by code or name (`Ontario, CA` is Canada);
    earlier parts are searched for a state, the nearest to the country first. Without a comma, a
    country, `US-CA`, `EU-DE` (a country with its continent before it) or the name of a state.
    """
    return _parse(text) if text else None


def parse_token(text: str, field: str = "location") -> str:
    """Return a location token in its one spelling: a country, a state, or a continent.

    Countries are two letters (`DE`), states have the country before them (`US-CA`), continents are
    `EU`, `ASIA`, `NA`, `SA`, `AF` and `OC`. Names are understood too. `CA` is Canada, `NA` is North
    America (Namibia is `NAM`), `EU` is all of Europe, in the Union or not.

    Raises:
        BadInput: no such place; names `field`, the value, the bound and the nearest tokens.
    """
    token = _token(text)
    if token is None:
        raise BadInput(field, text, f"{_BOUND}{_suggest(text)}")
    return token


def area(token: str) -> frozenset[str]:
    """Return the two-letter codes of the countries that a token touches: `US` for `US-CA`.

    Raises:
        BadInput: no such place.
    """
    token = parse_token(token)
    if token in _CONTINENTS:
        return _CONTINENTS[token]
    return frozenset((_HIDDEN.get(token, token[:2]),))


def within(region: Region | None, token: str) -> bool:
    """Tell whether a region surely lies in what a token names; an unknown place lies in nothing.

    A region of which only the country is known does not lie in any of its states.

    Raises:
        BadInput: no such place.
    """
    if region is None or region.country not in area(token):
        return False
    token = parse_token(token)
    return "-" not in token or region.code == token


def countries(tokens: Iterable[str]) -> tuple[str, ...]:
    """Return the sorted two-letter codes that tokens touch together, for a server-side filter.

    Raises:
        BadInput: one of them is no such place.
    """
    return tuple(sorted(frozenset().union(*(area(token) for token in tokens))))


def rtt_ms(a: Region, b: Region) -> float | None:
    """Estimate the round trip between the middles of two regions; None where one is unknown.

    Source: 8 ms and 1.5 ms per 100 km lies within 30 % of the nine measured routes listed at
    https://kel.bz/post/physical-latency/ (checked 2026-11).
    """
    here, there = _middle(a), _middle(b)
    if here is None or there is None:
        return None
    return _FLOOR_MS + _MS_PER_100_KM * _great_circle_km(here, there) / 100


def nearness(a: Region, b: Region) -> float:
    """Return how near two regions are, 0..1: 0.5 at 25 ms of round trip, 0 where one is unknown.

    Even a region to itself stays below 1, for no machine is closer than the floor of 8 ms.
    """
    rtt = rtt_ms(a, b)
    return 0.0 if rtt is None else 1 / (1 + rtt / _HALF_MS)


@lru_cache(maxsize=8192)
def _parse(text: str) -> Region | None:
    parts = [part for part in text.split(",") if _fold(part)]
    if not parts:
        return None
    last = _fold(parts[-1])
    country = _country(last)
    if country:
        return Region(country, _subdivision(country, map(_fold, parts[-2::-1])))
    return _dashed(parts[-1]) or _STATES_BY_NAME.get(last)


def _dashed(text: str) -> Region | None:
    """`US-CA`, `US-California`, `EU-DE`; of `us-west-2` only the country."""
    head, dash, tail = text.partition("-")
    head, rest = head.strip().upper(), _fold(tail)
    if not dash or not rest:
        return None
    if head in _SUBDIVISIONS:
        return Region(head, _subdivision(head, [rest]))
    inner = rest.upper()
    if head in _CONTINENTS and inner in _CONTINENTS[head]:
        return Region(inner)
    # `sa-east-1` and `me-south-1` are clouds' regions: their letters are no country's.
    return Region(head) if head in _MIDDLES and not _CLOUD_REGION.search(rest) else None


def _country(folded: str) -> str | None:
    code = folded.upper()
    return code if code in _MIDDLES else _COUNTRIES_BY_NAME.get(folded)


def _subdivision(country: str, parts: Iterable[str]) -> str | None:
    """The first part that is a state of the country, by code or name."""
    for part in parts:
        if (country, part.upper()) in _STATE_MIDDLES:
            return part.upper()
        state = _OTHER_SUBDIVISIONS.get((country, part)) or _STATE_CODES.get((country, part))
        if state:
            return state
    return None


@lru_cache(maxsize=1024)
def _token(text: str) -> str | None:
    folded = _fold(text)
    upper = folded.upper()
    if upper in _HIDDEN or upper in _CONTINENTS:
        return upper
    if upper in _AREA_NAMES:
        return _AREA_NAMES[upper]
    if "," in text:
        return None
    country = _country(folded)
    region = Region(country) if country else _dashed(text) or _STATES_BY_NAME.get(folded)
    if region is None:
        return None
    if region.subdivision is None:
        # A state that does not exist must not widen to its whole country.
        if not country and text.strip()[:2].upper() == region.country:
            return None
        return next(
            (alias for alias, code in _HIDDEN.items() if code == region.country), region.code
        )
    return region.code


_BOUND = "a country (US, DE), a state (US-CA, CA-ON), or EU, ASIA, NA, SA, AF, OC"


def _suggest(text: str) -> str:
    """`; did you mean ...?` with up to three tokens whose code or name is close, or nothing."""
    folded = _fold(text)
    names = dict(_COUNTRIES_BY_NAME)
    names.update((name, region.code) for name, region in _STATES_BY_NAME.items())
    names.update((token.lower(), token) for token in (*_CONTINENTS, *_MIDDLES))
    names.update((f"{c} {s}".lower(), f"{c}-{s}") for c, s in _STATE_MIDDLES)
    close = difflib.get_close_matches(folded, names, n=6, cutoff=0.75)
    tokens = tuple(dict.fromkeys(names[name] for name in close))[:3]
    return f"; did you mean {', '.join(tokens)}?" if tokens else ""


def _middle(region: Region) -> tuple[float, float] | None:
    if region.subdivision:
        state = _STATE_MIDDLES.get((region.country, region.subdivision))
        if state:
            return state
    return _MIDDLES.get(region.country)


def _great_circle_km(a: tuple[float, float], b: tuple[float, float]) -> float:
    (lat_a, lon_a), (lat_b, lon_b) = (tuple(map(math.radians, point)) for point in (a, b))
    across = math.cos(lat_a) * math.cos(lat_b) * math.sin((lon_b - lon_a) / 2) ** 2
    chord = min(1.0, math.sin((lat_b - lat_a) / 2) ** 2 + across)
    return 2 * _EARTH_KM * math.asin(math.sqrt(chord))


def _fold(text: str) -> str:
    """Lower case, no accents, words separated by one blank: `Qu\u00e9bec` and `QUEBEC` are one."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return " ".join(re.findall(r"[a-z0-9]+", plain.lower()))


def _rows(table: str) -> list[tuple[str, tuple[float, float], str]]:
    cells = (row.split(maxsplit=3) for row in table.split(";"))
    return [(code, (float(lat), float(lon)), name) for code, lat, lon, name in cells]


_CONTINENTS = {
    name: frozenset(code for code, _, _ in _rows(table)) for name, table in _COUNTRIES.items()
}
_MIDDLES = {code: at for table in _COUNTRIES.values() for code, at, _ in _rows(table)}
_COUNTRIES_BY_NAME = _OTHER_NAMES | {
    _fold(name): code for table in _COUNTRIES.values() for code, _, name in _rows(table)
}
_STATE_MIDDLES = {
    (country, code): at for country, table in _SUBDIVISIONS.items() for code, at, _ in _rows(table)
}
_STATE_CODES = {
    (country, _fold(name)): code
    for country, table in _SUBDIVISIONS.items()
    for code, _, name in _rows(table)
}
# A name alone: the country Georgia was asked for first, so the state needs its country.
_STATES_BY_NAME = {name: Region(country, code) for (country, name), code in _STATE_CODES.items()}
