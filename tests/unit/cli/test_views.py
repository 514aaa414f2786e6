"""What people and programs see of rentals, offers, logs and calls."""

from __future__ import annotations

import json
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from msgspec.structs import replace

from gp4u.cli.follow import Follower, cost_after, duration
from gp4u.cli.screen import Form, Screen
from gp4u.cli.views import (
    age,
    decision_data,
    gpus_of,
    price,
    show_offers,
    show_rental,
    show_rentals,
)
from gp4u.desk.shapes import (
    DecidedStep,
    IntendedStep,
    OfferShape,
    PassedOverStep,
    RentalShape,
    RentedStep,
    SettledStep,
    WatchedStep,
    money,
    offer_shape,
    rental_shape,
    unexplained_shape,
)
from gp4u.desk.telling import decision_shape
from gp4u.desk.wording import harmless, new_lines
from gp4u.model import Demand, Endpoint, Instance, InstanceState, Region, RentalKey, Snapshot
from gp4u.selection.decide import decide
from tests.unit.cli.paper import Paper
from tests.unit.rentals.builders import AT, after, intended, offer
from tests.unit.rentals.builders import running as running_rental

HOSTILE = "\x1b]0;owned\x07\x9b31m\x1b[31mred\u202e\r\nnext"


def instance(**changes: object) -> Instance:
    """An instance of nobody's."""
    known = {"provider": "vastai", "instance_id": "7", "label": None}
    return Instance(**(known | {"state": InstanceState.RUNNING} | changes))  # type: ignore[arg-type] # keywords by name


def shown_offer(**changes: Any) -> OfferShape:
    """An offer as the desk tells it."""
    return offer_shape(offer(**changes))


def shown_rental(owner: str = "cli:a", **changes: Any) -> RentalShape:
    """A rental that is about to be rented, as the desk tells it."""
    return rental_shape(intended(owner, **changes), AT)


def screen(form: Form, *, tty: bool = False) -> tuple[Screen, Paper, Paper]:
    """A screen and its two sheets."""
    out, err = Paper(tty=tty), Paper(tty=tty)
    return Screen(form, out=out, err=err), out, err


def test_money_keeps_its_zeroes_and_never_turns_into_an_exponent() -> None:
    """`0E-6` is no price to whoever parses it."""
    assert money(Decimal(0)) == "0.000000"
    assert money(Decimal("1E-7")) == "0.000000"
    assert money(Decimal("0.0000005")) == "0.000000"
    assert money(Decimal("12.3456789")) == "12.345679"
    assert (price(Decimal("0.0806")), price(Decimal("0.1"), estimated=True)) == ("0.081", "~0.100")


def test_ages_and_durations_read_like_those_of_other_tools() -> None:
    """`119s`, then `2m`; a rent of three minutes is not 185 seconds to a person."""
    ages = [age(AT, AT + timedelta(seconds=s)) for s in (0, 119, 120, 7199, 7200, 200_000)]
    assert ages == ["0s", "119s", "2m", "119m", "2h", "2d"]
    assert age(None, AT) == "-"
    assert [duration(s) for s in (-1, 59.9, 60, 185)] == ["0 s", "59 s", "1 min 00 s", "3 min 05 s"]
    assert [gpus_of("RTX 3090", n) for n in (1, 4)] == ["RTX 3090", "4x RTX 3090"]


def test_an_offer_has_the_stable_keys_and_null_where_nothing_is_known() -> None:
    """Programs are built on these."""
    shown, out, _ = screen(Form.JSON)
    show_offers(shown, [shown_offer()], AT)
    [row] = json.loads(out.getvalue())
    assert row["price_usd_per_hour"] == "0.396000"
    unknown = ("region", "country", "reliability", "download_mbps", "upload_mbps")
    assert [row[key] for key in unknown] == [None] * 5
    assert (row["interruptible"], row["fetched_at"]) == (False, "2026-11-20T12:00:00+00:00")


def test_an_estimate_is_marked_and_says_who_will_know_better() -> None:
    """A price that only a bid can make must not read like one that can be paid."""
    shown, out, err = screen(Form.TABLE)
    show_offers(
        shown, [shown_offer(), shown_offer(provider="akash", offer_id="2", estimated=True)], AT
    )
    firm, guess = out.plain.splitlines()[1:]
    assert ("~" in firm, "~0.396" in guess) == (False, True)
    assert "akash" in err.plain
    shown, _, err = screen(Form.TABLE)
    show_offers(shown, [shown_offer()], AT)
    assert err.plain == "", "no footnote where there is nothing to note"
    shown, _, err = screen(Form.JSON)
    show_offers(shown, [shown_offer(estimated=True)], AT)
    assert err.plain == "", "programs have the key `estimated`"


@pytest.mark.parametrize("columns", [80, 100, 120])
def test_four_markets_fit_a_terminal_with_age_place_and_reliability(
    columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of them name an offer in sixty letters; nothing that one compares by may go for it."""
    monkeypatch.setenv("COLUMNS", str(columns))
    shown, out, _ = screen(Form.TABLE, tty=True)
    named = {
        "akash": "akash1de6rx554z7haw3gqj2v4upuq0fnemyngde6rx5/rtx4090-24Gi-pcie",
        "ionet": "caas:260x1@KR/16",
        "render": "off_6134816@us-west-1/e8123866-22da-5f48-aec8-66e6f44494a0",
        "vastai": "692419",
    }
    rows = [shown_offer(provider=slug, offer_id=name) for slug, name in named.items()]
    show_offers(shown, rows, AT)
    head, *lines = out.plain.splitlines()
    assert {"PROVIDER", "OFFER", "GPU", "$/HOUR", "REGION", "RELIABLE", "AGE"} <= set(head.split())
    assert [line.split()[0] for line in lines] == list(named)
    assert max(map(len, out.plain.splitlines())) <= columns


@pytest.mark.parametrize("form", list(Form))
def test_no_form_lets_a_markets_text_move_the_cursor(form: Form) -> None:
    """An offer's id, a status, a label: all of it is somebody else's text."""
    shown, out, err = screen(form, tty=True)
    offered = shown_offer(offer_id=HOSTILE, machine_id=HOSTILE, region=Region("US", "CA"))
    show_offers(shown, [offered], AT)
    foreign = unexplained_shape("vastai", instance(label=HOSTILE), "foreign", HOSTILE)
    show_rentals(shown, [shown_rental(offer_id=HOSTILE)], AT, [foreign])
    assert "\x1b]" not in out.getvalue() + err.getvalue()
    assert not {"\u202e", "\r", "\x9b"} & set(out.plain + err.plain)


@pytest.mark.parametrize("columns", [40, 60, 80, 100, 120, 200])
@pytest.mark.parametrize("form", [Form.TABLE, Form.WIDE])
def test_tables_fit_the_terminal_and_always_show_name_key_and_state(
    monkeypatch: pytest.MonkeyPatch, columns: int, form: Form
) -> None:
    """Whatever else goes: these three are what one needs to act."""
    monkeypatch.setenv("COLUMNS", str(columns))
    shown, out, _ = screen(form, tty=True)
    rental = shown_rental("cli:june")
    show_rentals(shown, [rental], AT)
    head, row = out.plain.splitlines()
    assert {"NAME", "KEY", "STATE"} <= set(head.split())
    assert rental.key.rpartition("-")[0] in row
    assert len(row) <= max(columns, 62)
    show_offers(shown, [shown_offer()], AT)
    assert max(map(len, out.plain.splitlines()[2:])) <= max(columns, 45)


def running(*ports: int) -> RentalShape:
    """A rental whose workload answers on some ports."""
    ends = tuple(Endpoint(container_port=p, host="192.0.2.1", port=20_000 + p) for p in ports)
    return rental_shape(replace(running_rental("cli:june"), endpoints=ends), AT)


def test_further_endpoints_stand_below_on_a_terminal_and_beside_in_a_pipe() -> None:
    """A person needs each whole; a program needs one line per rental."""
    for tty, rows in ((True, 3), (False, 2)):
        shown, out, _ = screen(Form.TABLE, tty=tty)
        show_rentals(shown, [running(80, 81)], AT)
        assert len(out.plain.splitlines()) == rows
        assert "81→192.0.2.1:20081" in out.plain


def test_a_rental_is_printed_with_its_key_state_and_endpoints() -> None:
    """What `rent` ends with."""
    shown, out, _ = screen(Form.TABLE)
    show_rental(shown, running(80))
    lines = dict(line.split(maxsplit=1) for line in out.getvalue().splitlines())
    assert lines["key"].startswith("gp4u-")
    assert (lines["state"], lines["endpoint"]) == ("running", "80 → http://192.0.2.1:20080")


def test_the_follower_says_each_change_once_behind_a_pipe() -> None:
    """A log of a boot is read later; it must not have a line per look."""
    shown, _, err = screen(Form.JSON)
    moments = iter(after(n) for n in range(100))
    follow = Follower(shown, now=lambda: next(moments))
    rental = shown_rental("cli:june")
    follow(RentedStep(rental=rental))
    for _ in range(3):
        follow(WatchedStep(rental=rental, probe="", problem=""))
    follow(WatchedStep(rental=rental, probe="http 503", problem=""))
    follow(SettledStep(rental=rental))
    lines = err.getvalue().splitlines()
    assert sum("not listed yet" in line for line in lines) == 2
    assert sum("http 503" in line for line in lines) == 1


def test_only_what_is_launched_is_said_to_be() -> None:
    """A market that cannot run the workload is passed over: its offer was the best and is not
    launched."""
    shown, _, err = screen(Form.JSON)
    found = decide(Snapshot([offer(verified=True, disk_gib=100)], taken_at=AT), Demand(), at=AT)
    told = decision_shape(found, top=3, rejections=False)
    follow = Follower(shown, now=lambda: AT)
    follow(DecidedStep(decision=told))
    follow(PassedOverStep(provider="vastai", reason="runs the image's own command"))
    assert "Scoring instances" in err.getvalue()
    assert "launching" not in err.getvalue()
    choice = "[VAST] Selected instance next - launching..."
    follow(IntendedStep(rental=shown_rental("cli:june"), choice=choice))
    assert choice in err.getvalue().splitlines()


def test_a_cost_that_is_drawn_between_two_looks_grows_as_the_machine_runs() -> None:
    """A line that stands still for ten seconds looks like a program that hangs."""
    rental = running(80)
    assert cost_after(rental, 3600) - rental.cost_usd == rental.price_usd_per_hour
    assert cost_after(rental, -5) == rental.cost_usd
    waiting = shown_rental()
    assert cost_after(waiting, 3600) == waiting.cost_usd


def test_a_decisions_rows_are_flat_and_its_winner_stands_on_top() -> None:
    """Scripts read `.offer` and `.ranked[0].price_usd_per_hour`; those keys were published."""
    offers = [offer(offer_id=name, verified=True, disk_gib=100) for name in ("5001", "9")]
    found = decide(Snapshot(offers, taken_at=AT), Demand(), at=AT)
    shown, out, _ = screen(Form.JSON)
    shown.data(decision_data(decision_shape(found, top=1, rejections=True)))
    told = json.loads(out.getvalue())
    [row] = told["ranked"]
    assert (told["offer"], told["provider"], told["candidates"]) == ("5001", "vastai", 2)
    assert (row["price_usd_per_hour"], row["score"]) == ("0.396000", told["score"])
    assert sum(row["parts"].values()) == pytest.approx(row["score"])
    assert told["decided_at"] == "2026-11-20T12:00:00+00:00"
    assert told["rejections"] == []


@pytest.mark.parametrize(
    ("shown", "now", "new"),
    [
        ([], ["a", "b"], ["a", "b"]),
        (["a", "b"], ["a", "b"], []),
        (["a", "b"], ["a", "b", "c"], ["c"]),
        (["a", "b"], ["b", "c"], ["c"]),
        (["a", "a"], ["a", "a", "a"], ["a"]),
        (["a", "b"], ["x", "y"], ["x", "y"]),
        (["a", "half"], ["a", "half a line", "c"], ["half a line", "c"]),
        (["a", ""], ["a", "", "c"], ["c"]),
        (["a", "b"], [], []),
    ],
)
def test_following_a_log_prints_each_line_once(
    shown: list[str], now: list[str], new: list[str]
) -> None:
    """A market shows the newest lines only: a window that slides."""
    assert list(new_lines(shown, now)) == new


def test_a_logs_lines_keep_their_indent_and_lose_what_a_terminal_obeys() -> None:
    """A traceback without its indent cannot be read; a log must not set a window's title."""
    assert harmless("    raise ValueError") == "    raise ValueError"
    assert harmless("\tindented") == "        indented"
    assert harmless("\x1b[1;31mred\x1b[0m \x1b]0;title\x07text\x1bc") == "red text"
    assert harmless("a\rb\x00c\u202e") == "abc"


def test_a_key_from_elsewhere_is_shown_as_foreign() -> None:
    """Another installation's machine is theirs, whatever its label says."""
    row = unexplained_shape("vastai", instance(), "foreign", RentalKey("gp4u-x"))
    assert (row.state, row.note) == ("foreign", "another installation's")
