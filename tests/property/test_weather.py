"""Bad weather: everything that goes wrong at once, drawn from a seed, judged by the laws.

Two owners rent, hold for some minutes and release, again and again, while the market does whatever
its weather says. The settle time and the late window are honest, that is, as long as the weather's
worst lag; within them no law has an exception, so each moment is judged and not only the end.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.weathered import live_through

SEEDS = range(60)


@pytest.mark.parametrize("ten", range(0, len(SEEDS), 10))
def test_no_weather_breaks_a_law(tmp_path: Path, ten: int) -> None:
    """L1, L2, L3, L5, L6, ledger = meter: in weather from calm to bad."""
    outcomes = [live_through(seed, tmp_path) for seed in SEEDS[ten : ten + 10]]

    assert sum(outcome.served for outcome in outcomes) >= 10, "the owners got next to nothing"
    assert sum(outcome.faults for outcome in outcomes) >= 100, "there was hardly any weather"


def test_a_seed_can_be_told_again(tmp_path: Path) -> None:
    """A failing seed is worth nothing if it does not fail again."""
    once, again = (live_through(7, tmp_path / folder) for folder in ("once", "again"))

    assert once == again
