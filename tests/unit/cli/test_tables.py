"""Tables that give way where there is no room."""

from __future__ import annotations

import pytest

from gp4u.cli.tables import Cell, Column, draw
from gp4u.cli.views import short_key

KEY = "gp4u-abcdef-abcdefghij-abcdefghij"
COLUMNS = (
    Column(head="NAME", least=6),
    Column(head="KEY", short=2, shorten=short_key),
    Column(head="COST", right=True, drop=1),
    Column(head="GPU", drop=3),
)
ROW = ("a-rather-long-name", KEY, "0.5", Cell("RTX 3090", "green"))


def plain(text: str, _style: str) -> str:
    """No colour at all."""
    return text


def lines(width: int | None) -> list[str]:
    """The table at a width."""
    return draw(COLUMNS, [ROW], width, plain).splitlines()


def test_without_an_edge_everything_is_shown_whole() -> None:
    """A pipe gets every column and every character."""
    head, row = lines(None)
    assert head.split() == ["NAME", "KEY", "COST", "GPU"]
    assert row == f"a-rather-long-name  {KEY}   0.5  RTX 3090"


def test_it_gives_way_step_by_step_in_the_stated_order() -> None:
    """The least needed goes first, and no more of it than must."""
    assert len(lines(69)[1]) == 69
    assert lines(68)[0].split() == ["NAME", "KEY", "GPU"]
    assert KEY in lines(63)[1]
    assert "gp4u-abcdef-abcdefghij  RTX 3090" in lines(62)[1]
    assert lines(45)[0].split() == ["NAME", "KEY"]
    assert lines(36)[1] == "a-rather-lo…  gp4u-abcdef-abcdefghij"


@pytest.mark.parametrize("width", range(32, 90))
def test_no_line_is_wider_than_the_terminal_while_that_can_be(width: int) -> None:
    """A terminal folds what is too wide, and then nothing stands under its head any more."""
    assert max(map(len, lines(width))) <= width


def test_heads_are_numbers_side_when_their_cells_are() -> None:
    """Numbers are compared by their last digits."""
    table = draw((Column(head="N", right=True),), [("1",), ("100",)], None, plain)
    assert table == "  N\n  1\n100\n"


def test_colour_takes_no_width() -> None:
    """An escape code counted as text shifts every column after it."""

    def loud(text: str, style: str) -> str:
        return f"<{style}>{text}</>" if style else text

    table = draw((Column(head="A", style="cyan"), Column(head="B")), [("x", "y")], None, loud)
    assert table.splitlines()[1] == "<cyan>x</>  y"
