"""The page on the command line and the command line tell the same, both ways."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.main import get_command

from gp4u.cli import commands
from gp4u.cli.failures import Code
from gp4u.cli.views import FLAG_OF, decision_data
from gp4u.desk.shapes import OfferShape, RentalShape, UnexplainedShape
from gp4u.desk.telling import decision_shape
from gp4u.model import Demand, Snapshot
from gp4u.selection.decide import decide
from gp4u.selection.filters import FILTERS
from gp4u.settings import Row
from tests.unit.rentals.builders import AT, offer

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "reference" / "cli.md").read_text("utf-8")
EVERYWHERE = {"--help", "-h"}
WORDS_OF_FILTERS = {"available", "ports", "stale"}
"""Filters that no flag of the demand relaxes."""


def sections(mark: str) -> Mapping[str, str]:
    """The page's sections at one level, by title."""
    parts = re.split(rf"(?m)^{mark} (.+)$", PAGE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def first_cells(text: str) -> set[str]:
    """Every word in backticks in the first cells of a section's tables."""
    cells = re.findall(r"(?m)^\|([^|]+)\|", re.split(r"(?m)^#", text)[0])
    return {word for cell in cells for word in re.findall(r"`([^`]+)`", cell)}


def leaves(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Every command that does something, with all of its words."""
    if not hasattr(command, "commands"):
        yield name, command
        return
    for word, inner in command.commands.items():
        yield from leaves(inner, f"{name} {word}")


COMMANDS = dict(leaves(get_command(commands.app), "gp4u"))
SHARED = {"what to rent": "What to rent", "how to show it": "How to show it"}


def flags(command: Any) -> set[str]:
    """Every spelling of every flag of a command."""
    context = typer.Context(command)
    return {
        spelling
        for each in command.get_params(context)
        if each.param_type_name == "option"
        for spelling in (*each.opts, *each.secondary_opts)
    } - EVERYWHERE


def test_the_page_has_every_command_and_no_other() -> None:
    """What is not written down is found by nobody; what is gone must not be looked for."""
    told = {title.strip("`") for title in sections("##") if title.startswith("`gp4u")}
    assert told == set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_each_commands_flags_are_on_the_page_and_no_others(name: str) -> None:
    """Both ways: a flag that was renamed leaves its old name behind."""
    by_title = sections("##")
    text = by_title[f"`{name}`"]
    told = first_cells(text)
    for words, title in SHARED.items():
        if f"[{words}](#{words.replace(' ', '-')})" in text:
            told |= first_cells(by_title[title])
    assert told == flags(COMMANDS[name])


def test_every_exit_code_is_on_the_page_and_no_other() -> None:
    """Scripts are written by this table."""
    rows = re.findall(r"(?m)^\| (\d+) \| `(\w+)` \|", PAGE)
    assert {name: int(code) for code, name in rows} == {code.name: int(code) for code in Code}


def test_every_key_of_the_output_is_on_the_page_and_no_other() -> None:
    """Programs are written by these tables."""
    told = {title: first_cells(text) for title, text in sections("###").items()}
    found = decide(Snapshot([offer()], taken_at=AT), Demand(), at=AT)
    decision = decision_data(decision_shape(found, top=1, rejections=True))
    rental = {*RentalShape.__struct_fields__, *UnexplainedShape.__struct_fields__}
    assert told["an offer"] == set(OfferShape.__struct_fields__)
    assert told["a rental"] == rental - {"history"}, "which `-o json` leaves out"
    assert told["a decision"] == {*decision, "calls"}
    assert told["a variable"] == set(Row._fields)


def test_every_bound_names_the_flag_that_relaxes_it() -> None:
    """A hint that names no flag leaves the search for it to the reader."""
    names = {each.__name__ for each in FILTERS}
    assert names == set(FLAG_OF) | WORDS_OF_FILTERS
    known = flags(COMMANDS["gp4u rent"])
    assert {flag.split()[0] for flag in FLAG_OF.values()} <= known
