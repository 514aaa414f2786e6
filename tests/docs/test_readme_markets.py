"""The README's table of markets says what the adapters declare."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gp4u.providers.contract import Ability
from gp4u.providers.registry import SPECS

README = (Path(__file__).resolve().parents[2] / "README.md").read_text("utf-8")
ABILITIES = {
    "several ports": Ability.MANY_PORTS,
    "own command": Ability.COMMAND,
    "logs": Ability.LOGS,
    "`gp4u exec`": Ability.EXEC,
    "`kubectl exec`": Ability.SHELL,
    "several containers": Ability.MULTI_CONTAINER,
    "bids": Ability.INTERRUPTIBLE,
    "tells its bill": Ability.BILL,
}
"""Head of a column to what it is about."""


def table() -> dict[str, dict[str, str]]:
    """Return the table's cells by slug, then by the head of their column."""
    lines = re.findall(r"(?m)^\| market \|.*\n(?:\|.*\n)+", README)[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    head = rows[0]
    cells = [dict(zip(head, row, strict=True)) for row in rows[2:]]
    return {row["`--provider`"].strip("`"): row for row in cells}


def test_the_table_has_every_market_and_no_other() -> None:
    """Whoever reads it chooses among what there is."""
    assert list(table()) == list(SPECS)
    assert set(ABILITIES) <= set(next(iter(table().values())))


@pytest.mark.parametrize("slug", SPECS)
def test_each_market_can_what_the_table_says_and_nothing_else(slug: str) -> None:
    """A yes that is none costs somebody an evening."""
    row, spec = table()[slug], SPECS[slug]
    assert {head: row[head] for head in ABILITIES} == {
        head: "yes" if ability in spec.can else "no" for head, ability in ABILITIES.items()
    }
    assert f"({spec.key_url})" in row["opened by"]
    for name in re.findall(r"`(\w+)`", row["opened by"]):
        assert name.startswith(f"{spec.env}_")
