"""What an io.net account holds: states, addresses, prepaid time, and when a list proves nothing."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gp4u.model import Instance, InstanceState
from gp4u.providers.ionet import held
from gp4u.providers.ionet.order import Product
from gp4u.providers.ionet.wire import read

AT = datetime(2026, 11, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("status", "state"),
    [
        ("deployment requested", InstanceState.BOOTING),
        ("DEPLOYMENT_REQUESTED", InstanceState.BOOTING),
        ("Running", InstanceState.RUNNING),
        ("failed", InstanceState.FAILED),
        ("TERMINATION_REQUESTED", InstanceState.STOPPED),
        ("paused", InstanceState.UNKNOWN),
        (None, InstanceState.UNKNOWN),
    ],
)
def test_a_status_is_read_in_any_spelling_and_a_new_one_is_never_running(
    status: str | None, state: InstanceState
) -> None:
    """Case and underscores were seen to vary."""
    row = {"status": status, "name": "gp4u-x"}
    assert held.to_instance(row, Product.CAAS, "a", at=AT).state is state
    assert not held.is_over(row)


@pytest.mark.parametrize("status", ["completed", "DESTROYED", "destroyed"])
def test_what_is_over_is_no_instance(status: str) -> None:
    """The list keeps history; a row of the past must not look like a machine."""
    assert held.is_over({"status": status})


def test_paid_time_counts_from_our_own_clock_and_never_too_long() -> None:
    """Minutes are whole and rounded somehow; believing the later end would let it run out."""
    row: dict[str, Any] = {"status": "running", "compute_minutes_remaining": 42}
    assert held.to_instance(row, Product.CAAS, "a", at=AT).paid_until == AT + timedelta(minutes=41)
    booting = {**row, "status": "deployment requested"}
    assert held.to_instance(booting, Product.CAAS, "a", at=AT).paid_until is None
    for odd in (None, -1, True, "7", 10**12):
        row["compute_minutes_remaining"] = odd
        assert held.to_instance(row, Product.CAAS, "a", at=AT).paid_until is None


@pytest.mark.parametrize(
    ("url", "host", "port"),
    [
        ("https://abc.io.systems", "abc.io.systems", 443),
        ("https://abc.io.systems:8443/x?y", "abc.io.systems", 8443),
        ("https://1.1.1.1", "1.1.1.1", 443),
        ("https://[2606:4700:4700::1111]:444", "2606:4700:4700::1111", 444),
        ("http://127.0.0.1:40123", "127.0.0.1", 40123),
        ("http://abc.io.systems", None, None),
        ("http://10.0.0.1", None, None),
        ("https://10.0.0.1", None, None),
        ("https://169.254.169.254", None, None),
        ("https://[::ffff:10.0.0.1]", None, None),
        ("https://localhost", None, None),
        ("https://vault:8200", None, None),
        ("https://@abc.io.systems", None, None),
        ("https://abc.io.systems:0", None, None),
        ("https://user:pass@abc.io.systems", None, None),
        ("https://a\x1b[31m", None, None),
        ("file:///etc/passwd", None, None),
        ("https://abc:99999", None, None),
        ("", None, None),
        (None, None, None),
    ],
)
def test_a_public_url_is_taken_only_where_it_is_one(
    url: str | None, host: str | None, port: int | None
) -> None:
    """It is foreign text that makes us connect somewhere."""
    instance = held.to_instance({"status": "running"}, Product.CAAS, "a", at=AT)
    detail = read("detail", b'{"container_config":{"traffic_port":8000}}', held.Detail)
    got = held.with_url(instance, [held.Worker(public_url=url)], detail, allow_loopback=True)
    if host is None:
        assert (got.state, got.endpoints) == (InstanceState.BOOTING, ())
        return
    (end,) = got.endpoints
    assert got.state is InstanceState.RUNNING
    assert (end.container_port, end.host, end.port) == (8000, host, port)
    assert end.url is not None
    assert end.url.count("/") == 2


def test_this_machine_is_an_address_for_development_alone() -> None:
    """A market could have us ask our own services; simulators have no other address."""
    instance = held.to_instance({"status": "running"}, Product.CAAS, "a", at=AT)
    detail = read("detail", b'{"container_config":{"traffic_port":8000}}', held.Detail)
    for url in ("http://127.0.0.1:40123", "https://127.0.0.1", "http://[::1]:80"):
        for near in (True, False):
            found = [held.Worker(public_url=url)]
            got = held.with_url(instance, found, detail, allow_loopback=near)
            assert bool(got.endpoints) is near
            assert ("cannot be used" in got.status) is not near


def machine(services: Any, near: bool = False, ssh: Any = None) -> Instance:
    """Return a running virtual machine with one worker."""
    instance = held.to_instance({"status": "running"}, Product.VMAAS, "a", at=AT)
    worker = held.Worker(network_services=services, ssh_access=ssh)
    return held.with_addresses(instance, [worker], allow_loopback=near)


def test_a_machine_is_up_once_all_its_ports_are_public() -> None:
    """Half of them would be published as if the rest had been forgotten."""
    one = {"port": 22, "protocol": "tcp", "public_port": 40022, "public_ip": "1.1.1.1"}
    other = {"port": 53, "protocol": "udp", "public_port": None, "public_ip": None}
    assert machine({"a": one, "b": other}).state is InstanceState.BOOTING
    other |= {"public_port": "40053", "public_ip": "1.1.1.1"}
    whole = machine({"a": one, "b": other}, ssh="ubuntu@1.1.1.1 -p 40022")
    assert whole.state is InstanceState.RUNNING
    assert [(e.container_port, e.protocol, e.port) for e in whole.endpoints] == [
        (22, "tcp", 40022),
        (53, "udp", 40053),
    ]
    assert "ubuntu@1.1.1.1" in whole.status  # nowhere else can it be read


@pytest.mark.parametrize("services", [None, {}, [], {"a": None}])
def test_a_machine_that_tells_no_services_is_not_up_for_that(services: Any) -> None:
    """While it is made there may be none to tell; then all of none are public."""
    assert machine(services).state is InstanceState.BOOTING
    assert machine(services, ssh="ubuntu@1.1.1.1").state is InstanceState.RUNNING
    instance = held.to_instance({"status": "running"}, Product.VMAAS, "a", at=AT)
    assert held.with_addresses(instance, [], allow_loopback=False).state is InstanceState.BOOTING


@pytest.mark.parametrize("ip", ["10.0.0.1", "169.254.169.254", "127.0.0.1", "::1", "x", None])
def test_an_address_that_is_not_public_is_none(ip: str | None) -> None:
    """A probe would be sent into our own network."""
    service = {"port": 22, "protocol": "tcp", "public_port": 40022, "public_ip": ip}
    assert machine({"a": service}).endpoints == ()
    assert bool(machine({"a": service}, near=True).endpoints) == (ip in ("127.0.0.1", "::1"))


def test_the_hourly_price_is_what_was_paid_over_whole_hours() -> None:
    """Minutes lose a part of themselves to rounding; hours were bought whole."""
    detail = held.Detail(
        amount_paid=Decimal("0.90"), compute_minutes_served=61, compute_minutes_remaining=118
    )
    assert detail.usd_per_hour == Decimal("0.30")
    assert held.Detail(amount_paid=Decimal("0.90")).usd_per_hour is None
    assert held.Detail(amount_paid=Decimal("NaN"), compute_minutes_served=60).usd_per_hour is None


def test_a_failed_one_is_over_when_none_of_its_time_is_left() -> None:
    """Its word may stay for ever, and then a release of it would never be proven."""
    row: dict[str, Any] = {"status": "failed", "compute_minutes_remaining": 12}
    assert not held.is_over(row)
    row["compute_minutes_remaining"] = 0
    assert held.is_over(row)
    assert not held.is_over({"status": "failed"})
    assert not held.is_over({"status": "running", "compute_minutes_remaining": 0})


def walked(*pages: held.HeldPage) -> held.Walk:
    """Return a walk through all pages of one product."""
    walk = held.Walk()
    for page in pages:
        walk.add(Product.CAAS, page)
    walk.end(Product.CAAS)
    return walk


ROWS = [{"id": f"d-{n}", "status": "running"} for n in range(4)]


@pytest.mark.parametrize(
    ("pages", "why"),
    [
        ([held.HeldPage(ROWS, 4)], ""),
        ([held.HeldPage(ROWS[:2], 4), held.HeldPage(ROWS[2:], 4)], ""),
        ([held.HeldPage([], 0)], ""),
        ([held.HeldPage(ROWS, None), held.HeldPage([], None)], ""),
        ([held.HeldPage(ROWS, 0), held.HeldPage([], 0)], ""),
        ([held.HeldPage(ROWS, 5)], "4 caas rows shown of 5"),
        ([held.HeldPage(ROWS, 3)], "4 caas rows shown of 3"),
        ([held.HeldPage(ROWS, -1)], "4 caas rows shown of -1"),
        ([held.HeldPage([], 2)], "0 caas rows shown of 2"),
        ([held.HeldPage(ROWS[:2], 4), held.HeldPage(ROWS[2:], 5)], "the total changed"),
        ([held.HeldPage(ROWS[:3], 4), held.HeldPage(ROWS[2:], 4)], "pages overlap"),
        ([held.HeldPage([*ROWS, {"name": "x"}], 5)], "a row without an id"),
        ([held.HeldPage([*ROWS, {"id": "../x"}], 5)], "a row without an id"),
        ([held.HeldPage([*ROWS, 7], 5)], "a row without an id"),
    ],
)
def test_pages_that_disagree_prove_no_absence(pages: list[held.HeldPage], why: str) -> None:
    """What a list hides would be taken for gone, and paid for unseen."""
    listing = walked(*pages).listing([], began_at=AT)
    assert listing.complete == (why == "")
    assert listing.why_incomplete.startswith(why)


def test_a_page_that_is_not_full_is_the_last_only_where_the_total_says_so() -> None:
    """Without a total the market may have cut the page size; only an empty page is an end."""
    walk = held.Walk()
    walk.add(Product.CAAS, held.HeldPage(ROWS, 0))
    assert walk.may_go_on(Product.CAAS)
    walk = held.Walk()
    walk.add(Product.CAAS, held.HeldPage(ROWS, 4))
    assert not walk.may_go_on(Product.CAAS)


odd = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=4,
)
SERVICE = st.sampled_from(["port", "protocol", "public_port", "public_ip"])


@given(
    st.dictionaries(st.sampled_from(["id", "status", "name", "created_at"]), odd),
    odd,
    st.dictionaries(st.just("a"), st.dictionaries(SERVICE, odd) | odd) | odd,
)
def test_whatever_a_row_holds_it_is_an_instance(
    row: dict[str, Any], minutes: object, services: object
) -> None:
    """One odd row must not hide all others behind an exception."""
    instance = held.to_instance(
        {**row, "compute_minutes_remaining": minutes}, Product.CAAS, "a", at=AT
    )
    assert (instance.state is InstanceState.RUNNING) == (held.state_word(row) == "running")
    walked(held.HeldPage([row]))
    assert len(machine(services).endpoints) <= 1
