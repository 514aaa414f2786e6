"""GPU names: what each spelling means, and what it must never be taken for."""

from __future__ import annotations

import math

import pytest

from gp4u.errors import BadInput, UnknownGpu
from gp4u.gpus import canonical, models, one, sold_names, wanted


def model_of(name: str, vram_mb: float | None = None, interface: str | None = None) -> str | None:
    gpu = canonical(name, vram_mb, interface)
    return gpu.model if gpu else None


@pytest.mark.parametrize(
    ("sold", "model"),
    [
        ("RTX 4070S Ti", "RTX 4070 Ti Super"),
        ("RTX 4070S", "RTX 4070 Super"),
        ("GTX 1660 S", "GTX 1660 Super"),
        ("Q RTX 6000", "Quadro RTX 6000"),
        ("RTX 6000Ada", "RTX 6000 Ada"),
        ("InstinctMI250X", "MI250X"),
        ("GeForce 970", "GTX 970"),
        ("NVIDIA A100-SXM4-80GB", "A100 SXM4 80GB"),
        ("NVIDIA A100 80GB PCIe", "A100 PCIe 80GB"),
        ("NVIDIA GeForce RTX 4070 Ti SUPER", "RTX 4070 Ti Super"),
        ("NVIDIA GeForce RTX 3060 Laptop GPU", "RTX 3060 Laptop"),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", "RTX PRO 6000 WS"),
        ("NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition", "RTX PRO 6000 Max-Q"),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "RTX PRO 6000 S"),
        ("NVIDIA RTX 4000 SFF Ada Generation", "RTX 4000 SFF Ada"),
        ("Tesla V100-SXM2-32GB", "Tesla V100 SXM2 32GB"),
        ("GeForce RTX 3090 Ti", "RTX 3090 Ti"),
        ("RTX4090", "RTX 4090"),
        ("rtx_4090", "RTX 4090"),
        ("A4000", "RTX A4000"),
        ("GTX1080Ti", "GTX 1080 Ti"),
    ],
)
def test_every_markets_spelling_means_the_same_card(sold: str, model: str) -> None:
    """Vast.ai, drivers, io.net and people each have their own quirks for one card."""
    assert model_of(sold) == model


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("RTX 3060", "RTX 3060 Ti"),
        ("RTX 4070", "RTX 4070S"),
        ("RTX 4070S", "RTX 4070S Ti"),
        ("RTX 4090", "RTX 4090D"),
        ("RTX 3070", "RTX 3070 laptop"),
        ("A4000", "RTX 4000Ada"),
        ("RTX A4000", "Q RTX 4000"),
        ("RTX A6000", "RTX 6000Ada"),
        ("Q RTX 6000", "RTX 6000Ada"),
        ("H100 NVL", "H100 PCIE"),
        ("H100 SXM", "H100 PCIE"),
        ("RTX PRO 6000 S", "RTX PRO 6000 WS"),
        ("RTX PRO 6000", "RTX PRO 6000 Max-Q"),
        ("L40", "L40S"),
        ("A10", "A10g"),
        ("A100 PCIE", "A100X"),
        ("Titan X", "GTX TITAN X"),
        ("RX 7900 XT", "RX 7900 XTX"),
    ],
)
def test_cards_that_differ_in_one_letter_stay_apart(one: str, other: str) -> None:
    """A near miss is a wrong card that somebody pays for."""
    assert model_of(one) is not None
    assert model_of(other) is not None
    assert model_of(one) != model_of(other)


@pytest.mark.parametrize(
    "name",
    ["", "   ", "RTX 4090 Ti", "RTX 2080 Max-Q", "A100-SXM4-40GB MIG 1g.5gb", "4000", "RTX 40900"],
)
def test_a_name_that_is_not_resolved_word_for_word_is_unknown(name: str) -> None:
    """Guessing would turn a slice of an A100, or a card that never was, into a whole card."""
    assert canonical(name) is None


@pytest.mark.parametrize(
    ("sold", "vram_mb", "model"),
    [
        ("RTX 4090", 24564, "RTX 4090"),
        ("RTX 4090", 49140, "RTX 4090 48GB"),
        ("A100 SXM4", 40960, "A100 SXM4 40GB"),
        ("A100 SXM4", 81920, "A100 SXM4 80GB"),
        ("A100 PCIE", 81251, "A100 PCIe 80GB"),
        ("Tesla V100", 32510, "Tesla V100 32GB"),
        ("RTX 3080", 12288, "RTX 3080 12GB"),
        ("RTX 4060 Ti", 16380, "RTX 4060 Ti 16GB"),
        ("RTX 2080 Ti", 22528, "RTX 2080 Ti 22GB"),
        ("L40S", 46068, "L40S"),
        ("L4", 23034, "L4"),
        ("B200", 183359, "B200"),
        ("rtx6000", 49140, "RTX 6000 Ada"),
    ],
)
def test_memory_as_the_driver_reports_it_tells_cards_of_one_name_apart(
    sold: str, vram_mb: float, model: str
) -> None:
    """Two A100, or a rebuilt 4090, share a name on the market and differ by half their price."""
    assert model_of(sold, vram_mb) == model


@pytest.mark.parametrize(
    ("sold", "vram_mb"), [("A10g", 22731), ("Tesla T4", 15109), ("A40", 45634), ("Tesla P4", 7611)]
)
def test_memory_lost_to_error_correction_makes_no_new_model(sold: str, vram_mb: float) -> None:
    """Cards with error correction report up to 9 % less than they are sold with."""
    gpu = canonical(sold, vram_mb)
    assert gpu is not None
    assert gpu == canonical(sold)


def test_memory_that_a_card_is_not_sold_with_makes_a_model_of_its_own() -> None:
    """A demand for the 10 GB card must not be served with a rebuilt one, nor promise it less."""
    odd = canonical("RTX 3080", 20480)
    plain = canonical("RTX 3080", 10240)
    assert odd is not None
    assert plain is not None
    assert (odd.model, odd.vram_gib) == ("RTX 3080 20GB", 20.0)
    assert (odd.family, odd.tflops) == (plain.family, plain.tflops)
    assert canonical(odd.model) == odd


def test_memory_that_rounds_to_a_sold_size_makes_no_new_model() -> None:
    """`GTX 1050 2GB` beside `GTX 1050` would be one card under two names."""
    assert model_of("GTX 1050", 1536) == "GTX 1050"


@pytest.mark.parametrize("nonsense", [0.0, -1.0, math.nan, math.inf])
def test_memory_that_cannot_be_counts_as_not_told(nonsense: float) -> None:
    """A broken field must not invent a card with no memory."""
    assert model_of("RTX 4090", nonsense) == "RTX 4090"


def test_where_nothing_tells_cards_apart_the_least_is_promised() -> None:
    """Who is promised less than he gets has lost nothing."""
    assert model_of("A100") == "A100 PCIe 40GB"
    assert model_of("H100") == "H100 PCIe"
    assert model_of("V100") == "Tesla V100 16GB"


@pytest.mark.parametrize(
    ("name", "gib", "interface", "model"),
    [
        ("a100", 80, "sxm", "A100 SXM4 80GB"),
        ("a100", 40, "PCIe", "A100 PCIe 40GB"),
        ("a100", 64, "SXM", "A100 SXM4 64GB"),
        ("h100", 80, "SXM5", "H100 SXM"),
        ("h100", 80, "pcie", "H100 PCIe"),
        ("h200", 141, "SXM5", "H200 SXM"),
        ("h200nvl", 141, "PCIe", "H200 NVL"),
        ("v100", 32, "SXM2", "Tesla V100 SXM2 32GB"),
        ("rtx4090", 24, "PCIe", "RTX 4090"),
        ("B200", 192, "sxm6", "B200"),
    ],
)
def test_an_interface_beside_a_short_name_picks_the_form_factor(
    name: str, gib: float, interface: str, model: str
) -> None:
    """Akash and io.net tell the form factor in a field of its own."""
    assert model_of(name, gib * 1024, interface) == model


def test_hbm3_in_the_name_of_an_h100_means_the_sxm_board() -> None:
    """The driver calls the SXM card `H100 80GB HBM3`; the PCIe one has slower memory."""
    assert model_of("H100 80GB HBM3") == "H100 SXM"
    assert model_of("NVIDIA H100 PCIe") == "H100 PCIe"
    assert model_of("NVIDIA H100 NVL HBM3") == "H100 NVL"
    assert wanted("H100 80GB HBM3") == ("H100 SXM",)


def test_the_processors_memory_is_not_the_gpus() -> None:
    """`NVIDIA GH200 480GB` counts the memory of the processor beside the GPU."""
    gpu = canonical("NVIDIA GH200 480GB")
    assert gpu is not None
    assert (gpu.model, gpu.vram_gib) == ("GH200", 96.0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("RTX4090", ("RTX 4090",)),
        ("RTX 4090 48GB", ("RTX 4090 48GB",)),
        ("RTX3060", ("RTX 3060",)),
        ("A4000", ("RTX A4000",)),
        ("A6000", ("RTX A6000",)),
        ("H100", ("H100 PCIe", "H100 SXM", "H100 NVL")),
        ("H200", ("H200 SXM", "H200 NVL")),
        ("A100", ("A100 PCIe 40GB", "A100 PCIe 80GB", "A100 SXM4 40GB", "A100 SXM4 80GB")),
        ("a100-80gb", ("A100 PCIe 80GB", "A100 SXM4 80GB")),
        ("A100 PCIe", ("A100 PCIe 40GB", "A100 PCIe 80GB")),
        ("RTX 3080", ("RTX 3080 10GB", "RTX 3080 12GB")),
        ("RTX 3080 20GB", ("RTX 3080 20GB",)),
        ("RTX 6000", ("Quadro RTX 6000",)),
        ("T4", ("Tesla T4",)),
    ],
)
def test_a_users_word_stands_for_what_people_mean_by_it(
    text: str, expected: tuple[str, ...]
) -> None:
    """A family name is any of it; a plain card is not its rebuilt sister with twice the memory."""
    assert wanted(text) == expected


@pytest.mark.parametrize(
    ("text", "nearest"),
    [
        ("RTX4099", "RTX 4090"),
        ("RTX 4090 Ti", "RTX 4090"),
        ("RTX 4090 240GB", "RTX 4090"),
        ("A400", "RTX A4000"),
    ],
)
def test_an_unknown_gpu_names_the_nearest_three(text: str, nearest: str) -> None:
    """Somebody mistyped; the message must hold the word that he meant, and say what was set."""
    with pytest.raises(UnknownGpu, match="VAST_GPU_TYPE") as caught:
        wanted(text, field="VAST_GPU_TYPE")
    assert caught.value.nearest[0] == nearest
    assert len(caught.value.nearest) == 3
    assert all(canonical(name) is not None for name in caught.value.nearest)


def test_a_word_unlike_any_gpu_has_no_nearest() -> None:
    """Three names picked at random would be worse than none."""
    with pytest.raises(UnknownGpu) as caught:
        wanted("banana")
    assert caught.value.nearest == ()


def test_a_search_filter_gets_the_markets_own_spellings() -> None:
    """The server compares letter by letter, blanks and glued `Ada` included."""
    assert sold_names("RTX 6000 Ada") == ("RTX 6000Ada",)
    assert sold_names("RTX 4070 Ti Super") == ("RTX 4070S Ti",)
    assert sold_names("A100 SXM4 80GB") == ("A100 SXM4", "A100 SXM")
    assert sold_names("RTX 4090 48GB") == ("RTX 4090",)
    assert sold_names("RTX 3080 20GB") == ("RTX 3080",)
    assert sold_names("A100 SXM4 64GB") == ("A100 SXM4", "A100 SXM")


def test_a_search_for_what_the_market_has_no_name_for_is_empty_or_verbatim() -> None:
    """Vast.ai cannot tell V100 boards apart; a name that we do not know is the market's own."""
    assert sold_names("Tesla V100 SXM2 32GB") == ()
    assert sold_names("RTX 9090 Titanium") == ("RTX 9090 Titanium",)


def test_published_numbers_are_plausible() -> None:
    """A slip of a column in the table would make a toy outrank a server card."""
    for gpu in models():
        assert 1 <= gpu.vram_gib <= 512, gpu
        assert gpu.tflops is None or 0.5 <= gpu.tflops <= 5000, gpu
        assert gpu.bandwidth_gb_s is None or 20 <= gpu.bandwidth_gb_s <= 10_000, gpu
        assert gpu.reference_usd_per_hour is None or 0.01 <= gpu.reference_usd_per_hour <= 6, gpu
        assert gpu.model.startswith(gpu.family), gpu
    assert len({gpu.model for gpu in models()}) == len(models())


def test_a_name_seen_before_is_answered_from_memory() -> None:
    """Five thousand rows of a search carry a few dozen names; parsing each would cost seconds."""
    assert canonical("RTX 4090", 24564) is canonical("RTX 4090", 24564)


@pytest.mark.parametrize("model", [gpu.model for gpu in models()])
def test_every_model_is_the_one_that_its_own_name_means(model: str) -> None:
    """Three of them are called what their whole family is called."""
    assert one(model) == model
    assert one(model.replace(" ", "").lower()) == model


def test_a_word_for_several_models_is_refused_where_one_is_needed() -> None:
    """A price of all A100 together is the price of none of them."""
    with pytest.raises(BadInput, match="A100 PCIe 40GB, A100 PCIe 80GB") as refused:
        one("A100", "GPU")
    assert refused.value.field == "GPU"
    with pytest.raises(UnknownGpu, match="RTX 4090"):
        one("RTX 4190")
