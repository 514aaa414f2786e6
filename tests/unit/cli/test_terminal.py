"""Width, colour and the moving line."""

from __future__ import annotations

import asyncio

import pytest

from gp4u.cli.screen import Form, Screen
from gp4u.cli.terminal import Colour, Terminal, cut, width_of
from tests.unit.cli.paper import Paper, Torn
from tests.virtual_loop import run_virtual

EIGHTY = {"COLUMNS": "80", "TERM": "xterm"}


@pytest.mark.parametrize(
    ("environ", "colour", "tty", "coloured"),
    [
        ({"TERM": "xterm"}, Colour.AUTO, True, True),
        ({"TERM": "xterm", "NO_COLOR": "1"}, Colour.AUTO, True, False),
        ({"TERM": "xterm", "NO_COLOR": ""}, Colour.AUTO, True, True),
        ({"TERM": "dumb"}, Colour.AUTO, True, False),
        ({"TERM": "xterm"}, Colour.AUTO, False, False),
        ({"NO_COLOR": "1"}, Colour.ALWAYS, False, True),
        ({"TERM": "xterm"}, Colour.NEVER, True, False),
    ],
)
def test_colour_is_for_terminals_and_for_who_asks(
    environ: dict[str, str], colour: Colour, tty: bool, coloured: bool
) -> None:
    """An escape code in a pipe breaks whoever reads it; NO_COLOR is a promise."""
    paper = Paper(tty=tty)
    Terminal(paper, colour, environ).lines("word", "bold red")
    assert ("\x1b[" in paper.getvalue()) is coloured
    assert paper.plain == "word\n"


def test_a_pipe_has_no_width_and_a_terminal_never_less_than_it_can_use() -> None:
    """A table for a program must not lose columns to a terminal that is not there."""
    assert Terminal(Paper(tty=False), environ=EIGHTY).width is None
    assert Terminal(Paper(), environ=EIGHTY).width == 80
    assert Terminal(Paper(), environ={"COLUMNS": "3"}).width == 20
    assert Terminal(Paper(), environ={"COLUMNS": "wide"}).width == 80


def test_lines_wrap_between_words_and_keep_what_is_copied_in_one_piece() -> None:
    """Half a key on each of two lines is no key."""
    paper = Paper()
    key = "gp4u-abcdef-abcdefghij-abcdefghij"
    Terminal(paper, environ={"COLUMNS": "40"}).lines(f"  interrupted; rental {key} may be paid for")
    lines = paper.plain.splitlines()
    assert lines[0] == "  interrupted; rental"
    assert all(len(line) <= 40 for line in lines)
    assert all(line.startswith("  ") for line in lines)
    assert sum(key in line for line in lines) == 1


def test_wide_characters_count_twice_and_combining_ones_not_at_all() -> None:
    """A column is as wide as what is seen in it."""
    assert (width_of("abc"), width_of("東京"), width_of("e\u0301")) == (3, 4, 1)
    assert cut("東京都", 5) == "東京…"
    assert cut("abc", 3) == "abc"
    assert cut("abcd", 0) == ""


def test_the_moving_line_is_drawn_anew_and_leaves_nothing_behind() -> None:
    """It stays the last line: what is printed meanwhile comes above it."""
    paper = Paper()
    terminal = Terminal(paper, environ=EIGHTY)
    shown = iter(f"{n} s" for n in range(100))

    async def life() -> None:
        terminal.busy(lambda: next(shown))
        await asyncio.sleep(0.55)
        terminal.lines("a line")
        terminal.rest()

    run_virtual(life)
    text = paper.plain
    assert [f"{n} s" in text for n in (0, 3, 5)] == [True, True, True]
    last = paper.getvalue().split("\x1b[2K")[-1]
    assert last == "a line\n"


def test_nothing_moves_behind_a_pipe() -> None:
    """A log file full of spinners helps nobody."""
    paper = Paper(tty=False)

    async def life() -> None:
        Terminal(paper, environ=EIGHTY).busy(lambda: "busy")
        await asyncio.sleep(1)

    run_virtual(life)
    assert paper.getvalue() == ""


def test_a_terminal_that_closes_stops_no_rent() -> None:
    """Progress is for its reader; the rent behind it goes on when nobody reads."""
    screen = Screen(Form.TABLE, out=Paper(), err=Torn())

    async def life() -> None:
        screen.busy("renting")
        screen.note("rental gp4u-1")
        screen.warn("slow")
        screen.fail("odd")
        screen.steps([("gp4u ps", "shows it")])
        screen.rest()

    run_virtual(life)


def test_a_result_that_nobody_takes_is_a_failure() -> None:
    """Unlike progress: whoever asked for it does not have it."""
    screen = Screen(Form.JSON, out=Torn(), err=Paper())
    with pytest.raises(BrokenPipeError):
        screen.data({"key": 1})
