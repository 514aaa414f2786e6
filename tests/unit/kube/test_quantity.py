"""Quantities, as the API writes them."""

from __future__ import annotations

from decimal import Decimal

import pytest

from gp4u.errors import BadInput
from gp4u.kube.quantity import parse_quantity


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("1", "1"),
        ("500m", "0.5"),
        ("1.5Gi", str(3 * 2**29)),
        ("2e3", "2000"),
        ("2E3", "2000"),
        ("1E", "1000000000000000000"),
        ("1Ei", str(2**60)),
        ("100n", "0.0000001"),
        ("-3u", "-0.000003"),
        (".5", "0.5"),
        ("5.", "5"),
        (7, "7"),
    ],
)
def test_a_quantity_is_read_as_the_api_reads_it(text: str | int, amount: str) -> None:
    """A pod's limits decide what is rented: a factor of 1024 is money."""
    assert parse_quantity(text) == Decimal(amount)


@pytest.mark.parametrize(
    "text", ["", "Gi", "1 Gi", "1gi", "1mi", "e3", "1e9999", "nan", "0x1", "٣"]
)
def test_what_is_no_quantity_is_refused(text: str) -> None:
    """A value that is guessed at would rent the wrong machine."""
    with pytest.raises(BadInput, match="quantity"):
        parse_quantity(text)


def test_two_spellings_of_one_amount_are_equal() -> None:
    """The API server writes 8192Gi back as 8Ti, and that is no change."""
    assert parse_quantity("8192Gi") == parse_quantity("8Ti")
