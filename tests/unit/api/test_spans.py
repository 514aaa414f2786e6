"""Stretches of time in words."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gp4u.desk.spans import LONGEST, SHORTEST, span, span_text
from gp4u.errors import BadInput


@pytest.mark.parametrize(
    ("text", "hours"),
    [("1h", 1), ("3600s", 1), ("90m", 1.5), ("7d", 168), ("2w", 336), (" 90D ", 2160)],
)
def test_a_span_is_a_number_and_a_unit(text: str, hours: float) -> None:
    """As other tools write them."""
    assert span(text) == timedelta(hours=hours)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "7",
        "d",
        "0d",
        "59m",
        "91d",
        "99999999w",
        "1.5h",
        "-7d",
        "7 d",
        "7y",
        "\uff11d",
        "7d\n8d",
    ],
)
def test_what_is_no_span_is_refused_with_what_one_is(text: str) -> None:
    """A range that was guessed would show another stretch than was meant."""
    with pytest.raises(BadInput, match="from 1h to 90d") as refused:
        span(text, "--range")
    assert (refused.value.field, refused.value.value) == ("--range", text)


@given(st.integers(int(SHORTEST.total_seconds()), int(LONGEST.total_seconds())))
def test_the_word_for_a_span_means_it(seconds: int) -> None:
    """The command line hands its span to a server as a word."""
    meant = timedelta(seconds=seconds)
    assert span(span_text(meant)) == meant
