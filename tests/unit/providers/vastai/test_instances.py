"""What is read from instances: the listing as proof, states, addresses, logs and the bill."""

from __future__ import annotations

import asyncio
import itertools
import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import httpx2
import pytest

from gp4u.errors import Denied, InstanceAbsent, Malformed, ProviderError, Refused, Unavailable
from gp4u.model import Endpoint, Instance, InstanceState, Listing, Protocol
from gp4u.providers.vastai.adapter import MAX_CHARGE_PAGES, MAX_LIST_PAGES
from gp4u.providers.vastai.replies import instance_state, to_instance
from tests.unit.providers.scripted import Script, market, recorded
from tests.virtual_loop import EPOCH, run_virtual


def row(number: int, **fields: object) -> dict[str, object]:
    """Return a row of the list for a running instance."""
    return {
        "id": number,
        "label": f"label-{number}",
        "actual_status": "running",
        "intended_status": "running",
        "cur_state": "running",
        "next_state": "running",
        **fields,
    }


def page(*rows: object, total: int | None = None, token: str | None = None) -> dict[str, object]:
    """Return a page of the list."""
    return {
        "success": True,
        "instances_found": len(rows),
        "total_instances": len(rows) if total is None else total,
        "label_counts": {},
        "next_token": token,
        "instances": list(rows),
    }


def listing(*pages: object) -> Listing:
    """Return what a walk through these pages amounts to."""
    return run_virtual(market(Script(*pages)).instances)


def ids(found: Listing) -> list[str]:
    """Return the instance ids of a listing."""
    return [each.instance_id for each in found.instances]


def instance(**fields: object) -> Instance:
    """Return a row as an instance."""
    found = to_instance(row(1, **fields))
    assert found is not None
    return found


def error_of(work: Any) -> ProviderError:
    """Return the provider error that a coroutine function ends in."""
    with pytest.raises(ProviderError) as info:
        run_virtual(work)
    return info.value


# The listing.


def test_the_listing_is_every_page_of_the_v1_list() -> None:
    """25 rows are the most that one page holds; the old list answers 410."""
    script = Script(
        page(row(1), row(2), total=5, token="b"),
        page(row(3), row(4), total=5, token="c"),
        page(row(5), total=5),
    )
    found = run_virtual(market(script).instances)
    assert ids(found) == ["1", "2", "3", "4", "5"]
    assert (found.complete, found.why_incomplete) == (True, "")
    assert script.paths == ["GET /api/v1/instances/"] * 3
    plain = {"limit": "25", "order_by": '[{"col": "id", "dir": "asc"}]', "select_filters": "{}"}
    assert script.params == [plain, plain | {"after_token": "b"}, plain | {"after_token": "c"}]


def test_a_listing_is_stamped_before_its_first_byte_is_sent() -> None:
    """L5: what began after the stamp may be missing from it."""

    async def late() -> Listing:
        there = market(Script(page()))
        await asyncio.sleep(7)
        return await there.instances()

    assert run_virtual(late).began_at == EPOCH + timedelta(seconds=7)


def test_an_empty_account_is_a_complete_listing() -> None:
    """Else nothing could ever be proven absent."""
    found = listing(page())
    assert (found.instances, found.complete) == ((), True)


INCOMPLETE: dict[str, tuple[list[object], list[str]]] = {
    "total disagrees": ([page(row(1), total=2)], ["1"]),
    "page lost": ([page(row(1), total=3, token="b"), page(row(3), total=3)], ["1", "3"]),
    "total changed": (
        [page(row(1), total=2, token="b"), page(row(2), row(3), total=3)],
        ["1", "2", "3"],
    ),
    "rows moved between pages": (
        [page(row(1), row(2), total=3, token="b"), page(row(2), total=3)],
        ["1", "2"],
    ),
    "cursor loop": (
        [page(row(1), total=2, token="b"), page(row(2), total=2, token="b"), page(total=2)],
        ["1", "2"],
    ),
    "empty page with a cursor": (
        [page(row(1), total=1, token="b"), page(total=1, token="c")],
        ["1"],
    ),
    "row without an id": ([page(row(1), {"label": "x"}, total=1)], ["1"]),
    "row that is no object": ([page(row(1), None, "x", total=1)], ["1"]),
    "page shorter than it says": ([page(row(1)) | {"instances_found": 2}], ["1"]),
}


@pytest.mark.parametrize("name", INCOMPLETE)
def test_a_listing_with_a_doubt_is_incomplete_and_keeps_what_it_saw(name: str) -> None:
    """H23: it may add knowledge, and never proves absence."""
    pages, seen = INCOMPLETE[name]
    found = listing(*pages)
    assert not found.complete
    assert found.why_incomplete
    assert ids(found) == seen


def test_a_list_without_end_is_given_up_and_incomplete() -> None:
    """L14: a cursor can be new for ever."""
    numbers = itertools.count(1)

    class Endless(Script):
        def reply_to(self, request: httpx2.Request) -> object:
            number = next(numbers)
            return page(row(number), total=10_000, token=str(number))

    script = Endless()
    found = run_virtual(market(script).instances)
    assert len(script.requests) == MAX_LIST_PAGES
    assert not found.complete


def test_a_page_that_fails_fails_the_listing() -> None:
    """L6: a failed listing proves nothing, and half of one is easily taken for a whole."""
    pages = (page(row(1), total=2, token="b"), httpx2.Response(502, html="<html>"))
    assert isinstance(error_of(market(Script(*pages)).instances), Unavailable)


@pytest.mark.parametrize(
    "reply",
    [
        httpx2.Response(
            410, json={"success": False, "error": "deprecated_endpoint", "msg": "gone"}
        ),
        httpx2.Response(200, html="<html>Log in</html>"),
        httpx2.Response(404, html="<html>Not found</html>"),
        {"success": True},
        {"success": True, "instances": None},
        {"success": True, "instances": {}},
        {"success": True, "instances": [], "total_instances": "none"},
    ],
    ids=["410", "html", "404", "no rows", "null", "object", "total"],
)
def test_what_is_no_listing_is_never_an_empty_one(reply: object) -> None:
    """H17, H40: peers took it for an empty account, and rented again and again."""
    assert isinstance(error_of(market(Script(reply)).instances), Malformed)


def test_a_listing_that_is_denied_says_so() -> None:
    """H39: a 404 that means a bad key, and not an absent instance."""
    body = {"success": False, "error": "auth_error", "msg": "Invalid user key"}
    reply = httpx2.Response(404, json=body)
    assert isinstance(error_of(market(Script(reply)).instances), Denied)


def test_the_newer_of_two_rows_with_one_id_counts() -> None:
    """H22: while we page, a row can come twice."""
    pages = (page(row(1), total=1, token="b"), page(row(1, actual_status="exited"), total=1))
    found = listing(*pages)
    assert [each.state for each in found.instances] == [InstanceState.EXITED]


# Rows.


def test_the_documented_row_becomes_an_instance() -> None:
    """Its field set and types are the vendor's."""
    (found,) = listing(recorded("instances_list_v1")).instances
    assert found == Instance(
        provider="vastai",
        instance_id="312",
        label="ML Training Job 2025",
        state=InstanceState.RUNNING,
        status="success, running nvidia/cuda_11.0.3-devel-ubuntu18.04/ssh",
        endpoints=(
            Endpoint(container_port=22, host="192.0.2.45", port=20000),
            Endpoint(container_port=8888, host="192.0.2.45", port=8888),
        ),
        price_usd_per_hour=Decimal("0.8021"),
        machine_id="12",
        created_at=datetime.fromtimestamp(1668804745.1223178, UTC),
    )


def test_a_stale_shape_of_ports_costs_no_more_than_the_endpoints() -> None:
    """The vendor's page for one instance still shows a list of numbers."""
    found = to_instance(recorded("instance_show_v0")["instances"])
    assert found is not None
    assert (found.instance_id, found.endpoints) == ("883", ())


def test_a_booting_row_may_hold_nothing_but_its_id() -> None:
    """Most fields are null or missing until the host has reported."""
    assert to_instance({"id": 5}) == Instance(
        provider="vastai", instance_id="5", label=None, state=InstanceState.BOOTING
    )


@pytest.mark.parametrize(
    ("raw", "ours"),
    [
        (5, "5"),
        ("5", "5"),
        ("0005", "5"),
        (None, None),
        (True, None),
        (-5, None),
        (5.0, None),
        ("", None),
        ("5 ", None),
        ("²", None),
        ("9" * 30, None),
        (10**30, None),
        ([5], None),
    ],
    ids=str,
)
def test_an_id_is_a_number_or_its_digits(raw: object, ours: str | None) -> None:
    """H20: it goes into a path, so nothing else may."""
    found = to_instance({"id": raw})
    assert (None if found is None else found.instance_id) == ours


IPV4 = {"HostIp": "0.0.0.0", "HostPort": "40123"}  # noqa: S104 - what the market answers
IPV6 = {"HostIp": "::", "HostPort": "40999"}


@pytest.mark.parametrize(
    ("ports", "expected"),
    [
        (None, []),
        ({}, []),
        ([8080, 8081], []),
        ("8000/tcp", []),
        ({"8000/tcp": None}, []),
        ({"8000/tcp": []}, []),
        ({"8000/tcp": [IPV4]}, [(8000, "tcp", 40123)]),
        ({"8000/tcp": [{"HostPort": 40123}]}, [(8000, "tcp", 40123)]),
        ({"8000/tcp": [IPV4, IPV6]}, [(8000, "tcp", 40123)]),
        ({"8000/tcp": [IPV6, IPV4]}, [(8000, "tcp", 40123)]),
        ({"8000/tcp": [IPV6]}, [(8000, "tcp", 40999)]),
        ({"8000/tcp": [{}, None, IPV4]}, [(8000, "tcp", 40123)]),
        ({"9000/udp": [IPV4], "22/tcp": [IPV4]}, [(22, "tcp", 40123), (9000, "udp", 40123)]),
        ({"8000": [IPV4]}, [(8000, "tcp", 40123)]),
        ({"8000/sctp": [IPV4]}, []),
        ({"http/tcp": [IPV4]}, []),
        ({"²/tcp": [IPV4]}, []),
        ({"0/tcp": [IPV4], "65536/tcp": [IPV4]}, []),
        ({"8000/tcp": [{"HostPort": "0"}]}, []),
        ({"8000/tcp": [{"HostPort": "65536"}]}, []),
        ({"8000/tcp": [{"HostPort": "x"}]}, []),
    ],
    ids=lambda v: str(v)[:40],
)
def test_ports_are_read_from_every_shape_that_was_seen(
    ports: object, expected: list[tuple[int, str, int]]
) -> None:
    """The host port is random and a text, and there is none until the container runs."""
    found = instance(public_ipaddr="203.0.113.7", ports=ports).endpoints
    assert [(e.container_port, e.protocol.value, e.port) for e in found] == expected


def test_ports_that_are_absent_are_no_endpoints() -> None:
    """The key itself is missing while the instance boots."""
    assert instance(public_ipaddr="203.0.113.7").endpoints == ()


@pytest.mark.parametrize(
    ("address", "host"),
    [
        ("203.0.113.7", "203.0.113.7"),
        ("203.0.113.7\n", "203.0.113.7"),
        (" 2001:DB8::1 \n", "2001:db8::1"),
        (None, None),
        ("", None),
        ("host.example", None),
        ("203.0.113.7; reboot", None),
        (42, None),
    ],
    ids=str,
)
def test_an_address_is_an_ip_address_or_none(address: object, host: str | None) -> None:
    """It may end in a newline; and it will be connected to, so it is nothing else."""
    found = instance(public_ipaddr=address, ports={"8000/udp": [IPV4]}).endpoints
    expected = [] if host is None else [(host, Protocol.UDP)]
    assert [(e.host, e.protocol) for e in found] == expected


@pytest.mark.parametrize(
    ("price", "ours"),
    [
        (0.8021, Decimal("0.8021")),
        (1, Decimal(1)),
        ("0.5", Decimal("0.5")),
        (None, None),
        (True, None),
        (-1, None),
        ("NaN", None),
        ("free", None),
        (10**400, None),
        (10**5000, None),
        ({}, None),
    ],
    ids=lambda v: str(v)[:12] if not isinstance(v, int) else f"int{v % 97}",
)
def test_the_price_of_an_instance_is_a_price_or_unknown(
    price: object, ours: Decimal | None
) -> None:
    """H21: it is compared with a ceiling, and money hangs on it."""
    assert instance(dph_total=price).price_usd_per_hour == ours


@pytest.mark.parametrize(
    "stamp", [None, "now", True, 1e300, -1e300, 10**400], ids=lambda v: str(v)[:9]
)
def test_a_stamp_that_is_none_is_unknown(stamp: object) -> None:
    """H36: it is for display only, and must not break what is not."""
    assert instance(start_date=stamp).created_at is None


def test_foreign_words_come_clean_and_short() -> None:
    """S8: the status text is whatever the host's container engine printed."""
    found = instance(status_msg="\x1b]0;x\x07 error\n" + "y" * 9999, label={"not": "text"})
    assert found.status.startswith("]0;x  error")
    assert len(found.status) <= 160
    assert found.label is None


# States: actual, intended, cur, next, status text.

STATES = [
    ((None, "running", "running", "running", None), InstanceState.BOOTING),
    (("created", "running", "running", "running", None), InstanceState.BOOTING),
    (("loading", "running", "running", "running", "Pulling fs layer"), InstanceState.BOOTING),
    (("Loading", "running", "running", "running", None), InstanceState.BOOTING),
    (("scheduling", "running", "running", "running", None), InstanceState.BOOTING),
    (("rebooting", "running", "running", "running", None), InstanceState.BOOTING),
    (("recycling", "running", "running", "running", None), InstanceState.BOOTING),
    (("running", "running", "running", "running", "success, running x"), InstanceState.RUNNING),
    (("running", None, None, None, None), InstanceState.RUNNING),
    (("running", "running", "running", "running", "error: x unauthorized"), InstanceState.RUNNING),
    (("loading", "stopped", "stopped", "stopped", None), InstanceState.STOPPED),
    (("exited", "stopped", "stopped", "stopped", None), InstanceState.STOPPED),
    (("running", "stopped", "stopped", "stopped", None), InstanceState.STOPPED),
    (("exited", "stopped", None, None, None), InstanceState.STOPPED),
    (("frozen", "frozen", "running", "running", None), InstanceState.STOPPED),
    (("exited", "running", "running", "running", None), InstanceState.EXITED),
    (("stopped", "running", "running", "running", None), InstanceState.EXITED),
    (("exited", "running", "stopped", "running", None), InstanceState.BOOTING),
    (("loading", "running", "stopped", "running", None), InstanceState.BOOTING),
    (("offline", "running", "running", "running", None), InstanceState.OFFLINE),
    (("offline", "stopped", "stopped", "stopped", None), InstanceState.STOPPED),
    (("unknown", "running", "running", "running", None), InstanceState.UNKNOWN),
    (("hibernating", "running", "running", "running", None), InstanceState.UNKNOWN),
    ((42, "running", "running", "running", None), InstanceState.BOOTING),
    (
        ("created", "running", "running", "running", "x: OCI runtime create failed: y"),
        InstanceState.FAILED,
    ),
    (("loading", "running", "running", "running", "manifest unknown: x"), InstanceState.FAILED),
    (("loading", "running", "running", "running", "no space left on device"), InstanceState.FAILED),
    (
        (None, "running", "running", "running", "Error response from daemon: x"),
        InstanceState.FAILED,
    ),
]


@pytest.mark.parametrize(("words", "state"), STATES, ids=str)
def test_state_fields_are_read_together(words: tuple[object, ...], state: InstanceState) -> None:
    """No one field tells; a word we do not know is neither ready, nor failed, nor gone."""
    names = ("actual_status", "intended_status", "cur_state", "next_state", "status_msg")
    assert instance_state(dict(zip(names, words, strict=True))) is state


# The other calls.


def test_a_release_deletes_the_instance_with_an_empty_object() -> None:
    """The official client always sends one."""
    script = Script(recorded("ok_bodies")["destroy"])
    run_virtual(lambda: market(script).release("312"))
    assert script.paths == ["DELETE /api/v0/instances/312/"]
    assert script.bodies == [{}]


@pytest.mark.parametrize("error", ["no_such_instance", "not_found"])
def test_a_release_of_what_is_gone_says_so(error: str) -> None:
    """H33: one word is documented, the other was seen."""
    reply = httpx2.Response(404, json={"success": False, "error": error, "msg": "x"})
    assert isinstance(error_of(lambda: market(Script(reply)).release("1")), InstanceAbsent)


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (httpx2.Response(404, json={"error": "auth_error", "msg": "Invalid user key"}), Denied),
        (httpx2.Response(404, html="<html>Not Found</html>"), Malformed),
        (httpx2.Response(404, json={"msg": "session expired"}), Denied),
        (httpx2.Response(404, json={"error": "invalid_args", "msg": "x"}), Refused),
        (httpx2.Response(200, html="<html>Log in</html>"), Malformed),
        (httpx2.Response(200, content=b""), Malformed),
        (httpx2.Response(200, json={"success": False, "error": "busy"}), Refused),
        (httpx2.Response(500, json={"error": "no_such_instance"}), Unavailable),
    ],
)
def test_only_an_explicit_word_is_the_absence_of_an_instance(
    reply: httpx2.Response, kind: type[ProviderError]
) -> None:
    """L5, L6: a proxy's 404 must not end a rental that still costs."""
    assert type(error_of(lambda: market(Script(reply)).release("1"))) is kind


def test_a_release_is_tried_again_when_it_was_too_fast() -> None:
    """It is safe to repeat, and the market's interval is easily missed."""
    too_fast = httpx2.Response(429, json={"detail": "API requests too frequent"})
    script = Script(too_fast, {"success": True})
    run_virtual(lambda: market(script, tries=2).release("1"))
    assert script.left == 0


def test_logs_are_asked_for_and_fetched_from_where_they_are_put() -> None:
    """Two steps, and the key goes along on the first only."""
    url = "https://203.0.114.9/instance_logs/1.log"
    script = Script(
        recorded("ok_bodies")["logs"] | {"result_url": url},
        httpx2.Response(404, text="not yet"),
        httpx2.Response(200, text="line 1\nline 2\n"),
    )
    assert run_virtual(lambda: market(script).logs("312", tail=50)) == "line 1\nline 2\n"
    assert script.paths[0] == "PUT /api/v0/instances/request_logs/312/"
    assert script.bodies[0] == {"tail": "50"}
    assert ["authorization" in r.headers for r in script.requests] == [True, False, False]


@pytest.mark.parametrize("url", [None, "", 42])
def test_logs_without_a_result_are_empty(url: object) -> None:
    """H41: nothing was printed yet; only a message comes."""
    script = Script({"success": True, "msg": "Status message", "result_url": url})
    assert run_virtual(lambda: market(script).logs("312")) == ""


def test_logs_of_what_is_not_there_say_so() -> None:
    """The word is another one here than for a release."""
    reply = httpx2.Response(404, json={"error": "invalid_id", "msg": "Invalid instance id."})
    assert isinstance(error_of(lambda: market(Script(reply)).logs("1")), InstanceAbsent)


def test_a_log_url_into_our_own_network_is_malformed() -> None:
    """S6: the reply is foreign text, whoever sent it."""
    script = Script({"success": True, "result_url": "http://169.254.169.254/latest/meta-data"})
    assert isinstance(error_of(lambda: market(script).logs("1")), Malformed)
    assert len(script.requests) == 1


def test_the_bill_is_the_sum_of_the_instances_own_charges_on_all_pages() -> None:
    """One row per instance and day; other instances' rows come along."""
    mine = {"source": "instance-12345678", "amount": 0.1}
    script = Script(
        recorded("charges_v0") | {"next_token": "b"},
        {
            "results": [mine, {"source": "instance-1", "amount": 9}, {"source": None}],
            "next_token": None,
        },
    )
    assert run_virtual(lambda: market(script).billed("12345678")) == Decimal("38.521")
    assert script.paths == ["GET /api/v0/charges/"] * 2
    first, second = script.params
    filters = json.loads(first["select_filters"])
    assert filters["type"] == {"in": ["instance"]}
    assert filters["day"]["lte"] > EPOCH.timestamp() > filters["day"]["gte"]
    assert second == dict(first) | {"after_token": "b"}


@pytest.mark.parametrize(
    "results",
    [[], [{"source": "instance-1", "amount": 2}], [{"source": "instance-7", "amount": "NaN"}]],
)
def test_a_bill_that_cannot_be_told_is_unknown_and_not_zero(results: list[object]) -> None:
    """Charges lag by hours."""
    assert run_virtual(lambda: market(Script({"results": results})).billed("7")) is None


def test_a_bill_that_was_not_read_to_its_end_is_unknown() -> None:
    """Half a bill would be taken for the whole."""
    part = {"results": [{"source": "instance-7", "amount": 1}]}
    script = Script(*[part | {"next_token": str(n)} for n in range(MAX_CHARGE_PAGES)])
    assert run_virtual(lambda: market(script).billed("7")) is None
    assert script.left == 0


def test_a_ping_tells_whose_key_it_is_and_what_can_be_spent() -> None:
    """Spendable money is `credit`; `balance` is something else."""
    script = Script({"id": 7, "email": "a@b.example", "credit": 12.34, "balance": 99, "sid": "1"})
    account = run_virtual(market(script).ping)
    assert (account.name, account.credit_usd) == ("a@b.example", Decimal("12.34"))
    assert script.paths == ["GET /api/v0/users/current"]


def test_a_ping_gets_by_without_a_name_or_credit() -> None:
    """Scoped keys may not see either."""
    account = run_virtual(market(Script({"id": 7, "credit": None})).ping)
    assert (account.name, account.credit_usd) == ("7", None)
