"""The page of faults is held to the tests it names, and the tests of faults to the page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests"
PAGE = (ROOT / "docs" / "explanation" / "faults.md").read_text("utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in PAGE.splitlines()
    if line.startswith("|") and "---" not in line
][1:]
IDS = [f"K{number}" for number in range(1, 20)]
IDS += ["L4", "H28", "H29", "H30", "M2", "M4", "P1", "P4", "R1", "R2", "R3"]
IDS += ["S1", "S2", "S4", "S5", "S11", "S16", "S17", "S20"]
NAMED = sorted(set(re.findall(r"`([\w/]+\.py)::(test_\w+)`", PAGE)))


def names_in(file: Path) -> set[str]:
    """Return the names of the tests of a file."""
    return set(re.findall(r"^(?:async )?def (test_\w+)", file.read_text("utf-8"), re.MULTILINE))


@pytest.mark.parametrize("fault", IDS)
def test_each_fault_of_a_node_has_its_row(fault: str) -> None:
    """A fault without an answer is one that nobody thought of."""
    [row] = [row for row in ROWS if row[0] == fault]
    assert all(row[1:4])
    assert "::test_" in row[3]


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_each_test_that_the_page_names_exists(file: str, name: str) -> None:
    """A promise is as good as the test that breaks with it."""
    assert name in names_in(TESTS / file)


def test_each_test_of_a_fault_is_on_the_page() -> None:
    """Whoever looks for what is tested finds it here."""
    written = {
        (str(file.relative_to(TESTS)), name)
        for file in TESTS.rglob("test_faults_*.py")
        for name in names_in(file)
    }
    assert written
    assert written <= set(NAMED)
