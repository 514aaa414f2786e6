"""What `gp4u prices` shows, on terminals of every width and for programs."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from gp4u.cli.prices import show
from gp4u.cli.screen import Form, Screen
from gp4u.cli.terminal import Colour, width_of
from gp4u.desk.shapes import PricePointShape, PriceSeriesShape, PricesShape
from tests.unit.cli.paper import Paper

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
WEEK = timedelta(days=7)


class Plain(Paper):
    """A terminal from before UTF-8."""

    encoding = "ascii"


def point(hours_ago: float, median: str) -> PricePointShape:
    """Prices around a median."""
    usd = Decimal(median)
    return PricePointShape(
        at=NOW - timedelta(hours=hours_ago), count=214, min=usd / 2, median=usd, p90=usd * 2
    )


def series(provider: str, *points: PricePointShape) -> PriceSeriesShape:
    """One market's points."""
    return PriceSeriesShape(provider=provider, points=points)


def week(*found: PriceSeriesShape) -> PricesShape:
    """A week of prices."""
    return PricesShape(gpu_model="RTX 4090", since=NOW - WEEK, until=NOW, series=found)


RISING = series("vastai", *(point(h, f"{0.5 - h / 1000:.3f}") for h in range(160, 0, -1)))


def shown(
    found: PricesShape,
    form: Form = Form.TABLE,
    *,
    tty: bool = True,
    columns: int | None = None,
    monkeypatch: pytest.MonkeyPatch | None = None,
) -> tuple[Paper, Paper]:
    """What is printed."""
    if monkeypatch is not None:
        monkeypatch.setenv("COLUMNS", str(columns))
    out, err = Paper(tty=tty), Paper(tty=tty)
    show(Screen(form, out=out, err=err), found, within=WEEK, at=NOW)
    return out, err


def test_the_newest_prices_and_how_far_they_moved_stand_beside_the_chart() -> None:
    """The picture says where it went, the line what it costs."""
    out, _ = shown(week(RISING))
    lines = out.plain.splitlines()
    assert lines[0] == "RTX 4090, USD per GPU and hour, last 7d, times in UTC"
    told = "vastai: min 0.249, median 0.499 (+46.8%), p90 0.998, 214 offers, 60m ago"
    assert told in out.plain.replace("\n    ", " ")
    chart = [line for line in lines if "│" in line]
    assert (len(chart), chart[0][:7], chart[-1][:7]) == (5, "0.499 │", "0.340 │")
    assert [line.rstrip()[-1] for line in chart] == ["█"] * 5, "the last column is the highest"
    assert lines[-1].split()[0] == "11-13"
    assert lines[-1].split()[-1] == "11-20"


@pytest.mark.parametrize("columns", [20, 80, 100, 120, 300])
def test_it_fits_the_terminal(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chart whose lines are folded is no chart."""
    out, _ = shown(week(RISING, RISING), columns=columns, monkeypatch=monkeypatch)
    lines = out.plain.splitlines()
    assert max(map(width_of, lines)) <= min(columns, 120)
    if columns >= 80:
        assert max(map(width_of, lines)) == min(columns, 120)


def test_a_pipe_gets_the_width_of_a_usual_terminal_and_no_colour() -> None:
    """Whoever pastes it into a message wants what they saw."""
    out, _ = shown(week(RISING), tty=False)
    assert max(map(width_of, out.getvalue().splitlines())) == 80
    assert out.getvalue() == out.plain


def test_no_colour_means_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variable that people set who cannot read coloured text."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    out, _ = shown(week(RISING))
    assert out.getvalue() != out.plain
    monkeypatch.setenv("NO_COLOR", "1")
    out, _ = shown(week(RISING))
    assert out.getvalue() == out.plain


def test_a_terminal_that_is_not_utf8_gets_ascii() -> None:
    """The same picture, in what it can show."""
    out, err = Plain(), Plain()
    show(Screen(Form.TABLE, Colour.NEVER, out=out, err=err), week(RISING), within=WEEK, at=NOW)
    assert out.getvalue().isascii()
    assert len([line for line in out.getvalue().splitlines() if "|" in line]) == 5


def test_wide_is_taller() -> None:
    """More to see for whoever asks for more."""
    out, _ = shown(week(RISING), Form.WIDE)
    assert len([line for line in out.plain.splitlines() if "│" in line]) == 10


def test_a_gap_in_time_is_a_gap_in_the_picture() -> None:
    """Nobody knows what it cost while nothing was written down."""
    out, _ = shown(week(series("vastai", point(167, "0.4"), point(1, "0.5"))), tty=False)
    foot = next(line for line in reversed(out.plain.splitlines()) if "│" in line)
    bars = foot.partition("│")[2]
    assert (bars[0], bars[-1], set(bars[3:-3])) == ("▁", "█", {" "})


def test_one_point_is_drawn_and_has_not_moved() -> None:
    """A server that has just been started."""
    out, _ = shown(week(series("akash", point(0, "0.4"))))
    assert "median 0.400, p90" in out.plain


def test_an_empty_history_says_what_fills_it() -> None:
    """A blank screen says nothing."""
    out, err = shown(week(series("vastai")))
    assert out.plain == ""
    assert "no price of RTX 4090 was written down in the last 7d" in err.plain
    assert "gp4u serve" in err.plain


def test_programs_get_every_point_as_it_is() -> None:
    """Prices as strings that keep their zeroes, moments with their offset."""
    out, _ = shown(week(series("vastai", point(1, "0.4100"))), Form.JSON)
    body = json.loads(out.getvalue())
    assert (body["gpu_model"], body["since"]) == ("RTX 4090", "2026-11-13T12:00:00+00:00")
    assert body["series"][0]["provider"] == "vastai"
    assert body["series"][0]["points"] == [
        {
            "at": "2026-11-20T11:00:00+00:00",
            "count": 214,
            "min": "0.2050",
            "median": "0.4100",
            "p90": "0.8200",
        }
    ]
    out, err = shown(week(), Form.JSON)
    assert (json.loads(out.getvalue())["series"], err.plain) == ([], "")
    out, _ = shown(week(RISING, series("akash")), Form.NAME)
    assert out.getvalue() == "vastai\n"
