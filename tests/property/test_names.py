"""Laws of names: what is printed can be read back, and every market's list is understood."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gp4u.errors import BadInput, UnknownGpu
from gp4u.gpus import Gpu, canonical, models, sold_names, wanted
from gp4u.model import Region
from gp4u.places import area, nearness, parse, parse_token, within

NAMES = Path(__file__).parent.parent / "payloads" / "names"
CONTINENTS = ("EU", "ASIA", "NA", "SA", "AF", "OC")
COUNTRIES = tuple(sorted(frozenset().union(*(area(token) for token in CONTINENTS))))

NEVER_SOLD = {"RTX 4090 Ti", "RTX 5090 Ti"}
"""Names that Vast.ai keeps a place for, of cards that were never made: nothing is known of them."""
NOT_ISO = {"RD", "SUR", "UR", "VZ"}
"""Codes in Vast.ai's list of Latin America that no standard has; meant are DO, SR, UY and VE."""

gpus = st.sampled_from(models())
regions = st.builds(Region, st.sampled_from(COUNTRIES)) | st.sampled_from(
    [Region("US", "CA"), Region("US", "NY"), Region("CA", "ON"), Region("CA", "BC")]
)


def names(file: str) -> list[Any]:
    rows: list[Any] = json.loads((NAMES / file).read_text())
    return rows


@given(gpu=gpus)
def test_a_canonical_name_reads_back_as_itself(gpu: Gpu) -> None:
    """Offers carry the name as text; filters, scores and the ledger must find the card again."""
    assert canonical(gpu.model) == gpu
    assert gpu.model in wanted(gpu.model)
    assert gpu.model in wanted(gpu.family) or gpu.model != gpu.family


@given(
    gpu=gpus, case=st.sampled_from([str.upper, str.lower, str.title]), gap=st.sampled_from(" _-")
)
def test_case_and_separators_do_not_matter(gpu: Gpu, case: Any, gap: str) -> None:
    """`RTX_4090`, `rtx-4090` and `Rtx 4090` are typed by people and tools every day."""
    assert canonical(case(gpu.model).replace(" ", gap)) == gpu
    assert canonical(f"NVIDIA {gpu.model}") == gpu


@given(gpu=gpus, share=st.floats(0.94, 1.0))
def test_a_spelling_of_the_search_filter_and_its_memory_lead_back_to_the_model(
    gpu: Gpu, share: float
) -> None:
    """What a filter asks the market for must be recognised when the market answers."""
    for sold in sold_names(gpu.model):
        assert canonical(sold, gpu.vram_gib * 1024 * share) == gpu


@given(gpu=gpus, vram_mb=st.floats(512, 400_000))
def test_any_memory_gives_a_model_that_reads_back_and_has_about_that_memory(
    gpu: Gpu, vram_mb: float
) -> None:
    """Rebuilt cards and slices must not be passed off as the card on the box."""
    sold = canonical(gpu.model.removesuffix(f" {gpu.vram_gib:.0f}GB"), vram_mb)
    assert sold is not None
    assert canonical(sold.model) == sold
    assert abs(sold.vram_gib - vram_mb / 1024) <= max(0.5, 0.12 * sold.vram_gib)


@given(
    text=st.text(max_size=40) | st.builds(lambda gpu: gpu.model, gpus),
    vram_mb=st.none() | st.floats(),
)
def test_foreign_text_is_a_gpu_or_nothing(text: str, vram_mb: float | None) -> None:
    """A market's field can hold anything; one row must not end the fetch."""
    gpu = canonical(text, vram_mb)
    assert gpu is None or canonical(gpu.model) == gpu
    try:
        found = wanted(text)
    except UnknownGpu:
        return
    assert found
    assert all(canonical(model) is not None for model in found)


def test_every_gpu_name_of_vastai_is_known_or_known_to_be_empty() -> None:
    """A name that the market adds shows up here, not as a card without a score."""
    unknown = {name for name in names("vastai_gpu_names.json") if canonical(name) is None}
    assert unknown == NEVER_SOLD


def test_every_device_of_akash_is_known_with_its_memory_and_form_factor() -> None:
    """The network tells model, memory and interface apart; all three must survive."""
    for name, interface, memory in names("akash_gpus.json"):
        gib = float(memory.removesuffix("Gi"))
        gpu = canonical(name, gib * 1024, interface)
        assert gpu is not None, name
        assert gpu.vram_gib == gib, name
        if interface.startswith("SXM"):
            assert "SXM" in gpu.model, name


def test_every_gpu_of_ionet_is_known() -> None:
    """io.net writes marketing names and gigabytes as sold."""
    for name, interface, gigabytes in names("ionet_gpus.json"):
        gpu = canonical(name, gigabytes * 1024, interface)
        assert gpu is not None, name
        assert gpu.vram_gib == pytest.approx(gigabytes, rel=0.07), name


def test_every_country_of_vastai_is_on_the_map() -> None:
    """A country without a continent would be kept out by every location bound."""
    for code in names("vastai_countries.json"):
        assert (parse(f"Somewhere, {code}") is None) == (code in NOT_ISO), code


def test_a_country_lies_on_exactly_one_continent() -> None:
    """A country on two would be counted twice, and one on none could not be asked for."""
    for code in COUNTRIES:
        assert sum(code in area(token) for token in CONTINENTS) == 1, code


@given(region=regions)
def test_a_region_reads_back_from_its_code(region: Region) -> None:
    """The code is what people see, and what they then type."""
    assert parse(region.code) == region
    token = parse_token(
        {"AF": "AFG", "AS": "ASM", "NA": "NAM", "SA": "SAU"}.get(region.code, region.code)
    )
    assert within(region, token)
    assert area(token) == {region.country}


@given(one=regions, other=regions)
def test_nearness_is_a_symmetric_number_between_0_and_1(one: Region, other: Region) -> None:
    """On a fixed scale, and nowhere is nearer than here."""
    assert nearness(one, other) == pytest.approx(nearness(other, one))
    assert 0 < nearness(one, other) <= nearness(one, one) < 1


@given(text=st.text(max_size=30) | st.text("USCAEU-, ", max_size=8))
def test_foreign_text_is_a_place_or_nothing(text: str) -> None:
    """A market's field can hold anything; a user's must be refused in words."""
    region = parse(text)
    assert region is None or region.country in COUNTRIES
    try:
        token = parse_token(text)
    except BadInput:
        return
    assert parse_token(token) == token
    assert area(token)
