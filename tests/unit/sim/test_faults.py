"""Faults as data: which call they hit, and how they are read."""

from __future__ import annotations

from random import Random

import pytest

from gp4u.sim.contracts import Trouble
from gp4u.sim.faults import Faults, Kind, Rule


def test_a_rule_hits_the_call_numbers_of_its_endpoint_only() -> None:
    """ "The second create" must mean just that."""
    faults = Faults([Rule(kind="status", endpoint="create", calls=(2,), status=503)])
    hits = [faults.strike("create", at=0).get(Kind.STATUS) for _ in range(3)]
    assert [hit is not None for hit in hits] == [False, True, False]
    assert faults.strike("list", at=0).get(Kind.STATUS) is None
    assert faults.fired == [(0, "create", "status")]


def test_a_rule_holds_within_its_window_of_time() -> None:
    """An outage has a begin and an end."""
    faults = Faults([Rule(kind="refuse", after_s=10, until_s=20)])
    hits = [faults.strike("list", at=at).get(Kind.REFUSE) is not None for at in (9, 10, 19, 20)]
    assert hits == [False, True, True, False]


def test_a_rule_strikes_no_more_often_than_it_may() -> None:
    """`times` lets a fault heal by itself."""
    faults = Faults([Rule(kind="refuse", times=2)])
    hits = [faults.strike("list", at=0).get(Kind.REFUSE) is not None for _ in range(4)]
    assert hits == [True, True, False, False]


def test_rules_can_be_added_and_taken_back_while_running() -> None:
    """A test breaks the world and heals it again."""
    faults = Faults()
    rule = faults.add(Rule(kind="refuse"))
    assert faults.strike("list", at=0).get(Kind.REFUSE) is rule
    faults.remove(rule)
    assert faults.strike("list", at=0).get(Kind.REFUSE) is None
    faults.add(rule)
    faults.clear()
    assert faults.strike("list", at=0).rules == {}


def test_a_new_rule_starts_its_count_afresh() -> None:
    """Rules come and go in a test; none may inherit another's count."""
    faults = Faults()
    for _ in range(100):
        rule = faults.add(Rule(kind="refuse", times=1))
        assert faults.strike("list", at=0).get(Kind.REFUSE) is rule
        faults.remove(rule)


def test_a_trouble_reaches_the_contract_with_its_seconds() -> None:
    """States of an instance are scripted by the same rules as calls."""
    faults = Faults([Rule(kind="outbid_running", endpoint="create", seconds=30)])
    assert faults.strike("create", at=0).trouble == (Trouble.OUTBID_RUNNING, 30)


def test_rules_are_read_from_json() -> None:
    """`--faults FILE` holds a list of rules."""
    faults = Faults.from_json(b'[{"kind": "latency", "endpoint": "list", "seconds": 2.5}]')
    assert faults.rules == (Rule(kind="latency", endpoint="list", seconds=2.5),)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("{", "faults"),
        ('[{"kind": "earthquake"}]', "earthquake"),
        ('[{"kind": "latency", "secnods": 1}]', "secnods"),
        ('[{"kind": "latency", "chance": 2}]', "chance"),
        ('[{"kind": "body", "shape": "round"}]', "round"),
        ('[{"kind": "throttle", "shape": "round"}]', "round"),
    ],
)
def test_a_bad_file_is_refused_by_name(text: str, names: str) -> None:
    """A fault that silently does nothing makes a green test worthless."""
    with pytest.raises(ValueError, match=names):
        Faults.from_json(text)


def test_one_seed_makes_one_weather() -> None:
    """A failing simulation must be repeatable."""

    def story(seed: int) -> list[tuple[float, str, str]]:
        faults = Faults.weather(Random(seed), 1.0)
        for n in range(200):
            faults.strike(("create", "list", "destroy")[n % 3], at=n)
        return faults.fired

    assert story(1) == story(1)
    assert story(1) != story(2)
    assert {kind for _, _, kind in story(1)} >= {"latency", "status", "reset_after"}


def test_calm_weather_does_nothing() -> None:
    """Severity 0 is the control group."""
    faults = Faults.weather(Random(1), 0.0)
    assert all(faults.strike("create", at=n).rules == {} for n in range(200))
