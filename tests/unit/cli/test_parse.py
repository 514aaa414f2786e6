"""From words to a demand and a workload."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from random import Random

import pytest

from gp4u.cli import parse
from gp4u.cli.flags import DemandFlags
from gp4u.errors import BadInput, UnknownGpu
from gp4u.model import Port, Protocol
from gp4u.settings import Settings, load_settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings with a demand of their own."""
    environ = {
        "HOME": str(tmp_path),
        "VAST_GPU_TYPE": "RTX3060,RTX3090",
        "VAST_MAX_PRICE_PER_HOUR": "0.5",
        "VAST_DATACENTER_LOCATION": "US-CA,EU",
    }
    return load_settings(environ, tmp_path)


def test_a_flag_wins_over_its_variable_and_the_rest_stays(settings: Settings) -> None:
    """Who says nothing gets the settings' demand; who says one thing changes that one."""
    asked = parse.demand(DemandFlags(), settings).requirements
    assert asked.gpu_models == ("RTX 3060", "RTX 3090")
    assert (asked.max_price_usd_per_hour, asked.locations) == (Decimal("0.5"), ("US-CA", "EU"))
    asked = parse.demand(DemandFlags(gpu=["rtx4090"], max_price="$1"), settings).requirements
    assert asked.gpu_models == ("RTX 4090",)
    assert (asked.max_price_usd_per_hour, asked.locations) == (Decimal(1), ("US-CA", "EU"))


def test_hosts_are_verified_and_anywhere_unless_a_flag_says_otherwise(settings: Settings) -> None:
    """The safe choice is made for who says nothing; the dear one is not."""
    plain = parse.demand(DemandFlags(), settings).requirements
    assert (plain.verified_only, plain.datacenter_only) == (True, False)
    asked = parse.demand(DemandFlags(unverified=True, datacenter=True), settings).requirements
    assert (asked.verified_only, asked.datacenter_only) == (False, True)


def test_order_is_kept_and_commas_and_repetition_mean_the_same(settings: Settings) -> None:
    """The first wish comes first."""
    one = parse.demand(DemandFlags(gpu=["RTX4090,RTX3090"], location=["EU,US"]), settings)
    two = parse.demand(DemandFlags(gpu=["RTX4090", "RTX3090"], location=["EU", "US"]), settings)
    assert one == two
    assert one.requirements.gpu_models == ("RTX 4090", "RTX 3090")


def test_a_bad_variable_is_named_and_not_a_flag_that_nobody_gave(tmp_path: Path) -> None:
    """Looking for a flag in one's shell history would not help."""
    settings = load_settings({"HOME": str(tmp_path), "VAST_GPU_TYPE": "RTX999"}, tmp_path)
    with pytest.raises(UnknownGpu, match="VAST_GPU_TYPE"):
        parse.demand(DemandFlags(), settings)


@pytest.mark.parametrize("price", ["0", "-1", "nan", "inf", "1e9", "cheap", "", "0x10"])
def test_a_price_that_is_none_is_refused(settings: Settings, price: str) -> None:
    """NaN compares false with everything: as a bound it would hold nothing out, or all."""
    with pytest.raises(BadInput, match="--max-price"):
        parse.demand(DemandFlags(max_price=price), settings)


def test_an_amount_beyond_all_machines_is_told_the_bound_that_it_breaks(
    settings: Settings,
) -> None:
    """That 10,000,000,000 must be above 0 helps nobody."""
    with pytest.raises(BadInput, match=r"--min-vram: .* below 1000000000"):
        parse.demand(DemandFlags(min_vram=1e10), settings)


def test_weights_that_are_not_given_share_what_is_left(settings: Settings) -> None:
    """The sum stays one, and the rest keep their proportion."""
    weights = parse.demand(DemandFlags(weight=["price=0.65"]), settings).preferences.weights
    assert weights["price"] == pytest.approx(0.65)
    assert sum(weights.values()) == pytest.approx(1)
    assert weights["performance"] / weights["location"] == pytest.approx(0.25 / 0.15)


@pytest.mark.parametrize("weight", ["price", "price=2", "price=nan", "beauty=0.1", "price=-0.1"])
def test_a_weight_that_is_none_is_refused(settings: Settings, weight: str) -> None:
    """A sum that is not one would make scores that mean nothing."""
    with pytest.raises(BadInput, match="--weight"):
        parse.demand(DemandFlags(weight=[weight]), settings)


def workload(
    *, ports: Sequence[str] = (), health: Sequence[str] = (), env: Sequence[str] = ()
) -> object:
    """A workload with some of its flags."""
    return parse.workload(
        image="busybox", command=(), ports=ports, env=env, disk_gib=20, health=health
    )


def test_a_workload_is_read_as_it_is_meant() -> None:
    """Ports once each, protocols by name, values with equal signs in them whole."""
    built = parse.workload(
        image="ghcr.io/a/b:v1@sha256:00",
        command=("serve", "--port", "8000"),
        ports=("8000,53/udp", "8000/tcp"),
        env=("URL=http://x/?a=b", "EMPTY="),
        disk_gib=20,
        health=("http:8000/health?deep=1", "tcp:8000"),
    )
    assert built.ports == (Port(number=8000), Port(number=53, protocol=Protocol.UDP))
    assert built.env == {"URL": "http://x/?a=b", "EMPTY": ""}
    assert [(c.port, c.path) for c in built.health] == [(8000, "/health?deep=1"), (8000, None)]


@pytest.mark.parametrize("port", ["0", "65536", "²", "\uff19", "8000/sctp", "9" * 5000, "-1"])
def test_a_port_that_is_none_is_refused(port: str) -> None:
    """Some digits are no numbers to Python, and some numbers are longer than it likes."""
    with pytest.raises(BadInput, match="--port"):
        workload(ports=[port, "80"])


@pytest.mark.parametrize(
    "check", ["http:x/", "udp:8000", "tcp:8000/x", "http:8000/a b", "http:8000/\x1b", "http:9/", ""]
)
def test_a_health_check_that_is_none_is_refused(check: str) -> None:
    """A check of a port that is not published would never pass."""
    with pytest.raises(BadInput, match="--health"):
        workload(ports=["8000"], health=[check])


@pytest.mark.parametrize("name", ["", "A", "a b", "-a", "a-", "a" * 64, "june\n", "é"])
def test_a_name_that_is_none_is_refused(name: str) -> None:
    """A name becomes part of what is typed and logged."""
    with pytest.raises(BadInput, match="--name"):
        parse.owner_name(name, Random(1))


def test_without_a_name_one_is_made_up_that_could_have_been_given() -> None:
    """It is typed again, in `gp4u logs NAME`."""
    made = parse.owner_name(None, Random(1)).removeprefix("cli:")
    assert parse.owner_name(made, Random(2)) == f"cli:{made}"
