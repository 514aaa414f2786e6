"""The proposed node API's rows: OctaneBench arithmetic, missing fields, odd values."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import msgspec
import pytest

from gp4u.errors import BadInput
from gp4u.model import InstanceState, Offer
from gp4u.providers.render.legacy_wire import (
    JobRow,
    Node,
    bound_of,
    decimal_of,
    has_ended,
    to_instance,
    to_offer,
    to_offers,
    to_progress,
)

NOW = datetime(2026, 11, 1, tzinfo=UTC)


def test_a_node_that_does_not_say_its_kind_is_no_offer_and_is_counted() -> None:
    """Of which price list its price is cannot be told; of the other kind it is no mistake."""
    rows = [Node("a"), Node("b", kind="render"), Node("c", kind="compute")]
    assert list(to_offers(rows, "compute", NOW)) == [None, None]


def offer(**changes: Any) -> Offer | None:
    """Return the offer that a node becomes."""
    row = {
        "node_id": "node-1",
        "kind": "render",
        "gpu_model": "RTX 4090",
        "gpu_memory": 24,
        "octanebench_score": 1300,
        "price_per_obh": "0.011",
    }
    return to_offer(msgspec.json.decode(msgspec.json.encode(row | changes), type=Node), NOW)


@pytest.mark.parametrize("price", ["0.011", 0.011])
def test_a_render_node_costs_its_score_times_the_price_of_one_hour(price: object) -> None:
    """1,300 OBh an hour at 0.011 $ are 14.30 $; dividing by 100 would be another unit."""
    found = offer(price_per_obh=price)
    assert found is not None
    assert found.price_usd_per_hour == Decimal("14.300")


def test_a_compute_node_costs_what_it_says_whatever_its_score() -> None:
    """Two price lists, never mixed."""
    found = offer(kind="compute", price_per_hour_usd=0.4)
    assert found is not None
    assert found.price_usd_per_hour == Decimal("0.4")
    assert offer(kind="compute") is None


@pytest.mark.parametrize(
    "changes",
    [
        {"octanebench_score": None},
        {"price_per_obh": None},
        {"price_per_obh": "NaN"},
        {"price_per_obh": 0},
        {"octanebench_score": -5},
        {"octanebench_score": "1e999999"},
        {"gpu_model": None},
        {"gpu_model": "X9", "gpu_memory": None},
    ],
)
def test_a_node_without_a_gpu_or_a_price_is_no_offer(changes: Any) -> None:
    """Missing fields are normal; a price of nothing is not."""
    assert offer(**changes) is None


@pytest.mark.parametrize(
    ("uptime", "reputation", "reliability"),
    [
        (99, 95, 0.97),
        (99, None, 0.99),
        (None, 95, 0.95),
        (None, None, None),
        (990, 95, 0.95),
        (-1, 101, None),
    ],
)
def test_reliability_is_the_mean_of_what_is_known(
    uptime: object, reputation: object, reliability: float | None
) -> None:
    """Percent there, a share here; a number that cannot be counts as unknown."""
    found = offer(uptime=uptime, reputation=reputation)
    assert found is not None
    assert found.reliability == pytest.approx(reliability)


@pytest.mark.parametrize(
    ("location", "code"), [("US", "US"), ("DE", "DE"), ("US-CA", "US-CA"), ("", None)]
)
def test_a_location_is_a_country_or_a_region(location: str, code: str | None) -> None:
    """As the proposal says."""
    found = offer(location=location)
    assert found is not None
    assert (found.region.code if found.region else None) == code


def test_missing_fields_are_unknown() -> None:
    """One GPU is what a node has that does not say."""
    found = offer(gpu_count=None)
    assert found is not None
    assert found.gpu_count == 1
    assert (found.disk_gib, found.ram_gib, found.cpu_cores) == (None, None, None)


@pytest.mark.parametrize(
    ("status", "state"),
    [
        ("queued", InstanceState.BOOTING),
        ("assigned", InstanceState.BOOTING),
        ("running", InstanceState.RUNNING),
        ("paused", InstanceState.UNKNOWN),
        (None, InstanceState.UNKNOWN),
    ],
)
def test_states(status: object, state: InstanceState) -> None:
    """A word that we do not know is neither ready, nor failed, nor gone."""
    assert to_instance(JobRow("job_1", status=status)).state is state


@pytest.mark.parametrize("status", [["completed"], {"is": "completed"}, 7, None])
def test_a_state_that_is_no_word_has_not_ended(status: object) -> None:
    """An odd row must neither stop the listing of all others nor count as gone."""
    assert not has_ended(JobRow("job_1", status=status))
    assert has_ended(JobRow("job_1", status="completed"))


def test_only_whole_tcp_endpoints_count() -> None:
    """What cannot be connected to is no endpoint."""
    good = {"container_port": 80, "host": "203.0.113.5", "port": 4000, "protocol": "tcp"}
    odd = [good | {"port": "x"}, good | {"protocol": "udp"}, good | {"host": "a\nb"}, 7]
    odd += [good | {"host": host} for host in ("", "a b", "me@evil.example", "evil/../x")]
    odd += [good | {"protocol": ["tcp"]}]
    assert to_instance(JobRow("job_1", endpoints=[*odd, good])).endpoints[0].port == 4000
    assert len(to_instance(JobRow("job_1", endpoints=[*odd, good])).endpoints) == 1


@pytest.mark.parametrize("share", [10**400, -(10**400)])
def test_a_share_beyond_any_float_is_bounded(share: int) -> None:
    """JSON has numbers that Python cannot make a float of."""
    assert to_progress(JobRow("job_1", progress=share)).progress in (0.0, 1.0)


@pytest.mark.parametrize(("tier", "verified"), [(1, True), (2, None), (3, None), (None, None)])
def test_only_the_trusted_tier_is_vouched_for(tier: int | None, verified: bool | None) -> None:
    """Nobody shall rent from a proposal without having asked for hosts that nobody checked."""
    found = offer(tier=tier)
    assert found is not None
    assert found.verified is verified


@pytest.mark.parametrize("bound", ["0", "-1", "NaN", "Infinity", "1000001"])
def test_a_bound_that_bounds_nothing_is_refused(bound: str) -> None:
    """NaN is no JSON, and a bound below zero may read as none."""
    with pytest.raises(BadInput) as caught:
        bound_of(Decimal(bound))
    assert caught.value.field == "max_obh"
    assert bound_of(Decimal("0.5")) == Decimal("0.5")


def test_progress_stays_within_its_bounds_whatever_is_sent() -> None:
    """A bar of 300 % would break a screen, and a null a program."""
    found = to_progress(
        JobRow("job_1", progress=3, frames_done=-1, frames_total="x", outputs=[1, "u"], error=None)
    )
    assert (found.progress, found.frames_done, found.frames_total) == (1.0, 0, 0)
    assert found.outputs == ("u",)
    assert (found.error, found.cost_usd) == ("", None)


@pytest.mark.parametrize(
    ("value", "number"),
    [
        ("0.5", Decimal("0.5")),
        (1, Decimal(1)),
        ("x", None),
        (True, None),
        (-1, None),
        ("inf", None),
    ],
)
def test_money_may_come_as_text(value: object, number: Decimal | None) -> None:
    """Decimals travel as text where a float would lose a digit."""
    assert decimal_of(value) == number
